/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The KVM library together with kselftest_harness.h: one named case per rule,
 * each in a process of its own, so that one that fails leaves the others alone.
 */
#ifndef SELFTEST_KVM_HARNESS_H
#define SELFTEST_KVM_HARNESS_H

#include <linux/bits.h>
#include <linux/compiler.h>

#include "kvm_util.h"

/* The library's ends the process, the harness's ends the case. */
#undef ASSERT_EQ
#include "kselftest_harness.h"

/* A debug kernel in an emulator takes longer than the harness thinks. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT 120

/*
 * Where a return does not skip the case: in a setup, after which the case is run, and in
 * a function that it calls, which does not know it.  TEST_F_MEMBER() notes which it is.
 */
#define SKIPPED		255
#define SETUP_SKIP(...)	SKIP(_exit(SKIPPED), __VA_ARGS__)
#define CASE_SKIP(...)	do {				\
	struct __test_metadata *_metadata = this_case;	\
	SKIP(_exit(SKIPPED), __VA_ARGS__);		\
} while (0)

static __maybe_unused struct __test_metadata *this_case;

/* The errno of a call that returns a negative number when it fails, else 0. */
static inline int err_of(long ret)
{
	return ret < 0 ? errno : 0;
}

/* Private memory needs a VM of this type; without it there is nothing to test. */
static void __attribute__((constructor)) require_sw_protected_vm(void)
{
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM));
}

static inline struct kvm_vm *create_protected_vm(void)
{
	return ____vm_create(VM_SHAPE(KVM_X86_SW_PROTECTED_VM), 0);
}

#endif /* SELFTEST_KVM_HARNESS_H */
