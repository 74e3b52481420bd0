/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the tests of Xen's and Hyper-V's pages share: a guest that talks to its
 * hypervisor, and pages whose other half is full of what would be believed.
 */
#ifndef SELFTEST_KVM_PRIVATE_MEM_HV_H
#define SELFTEST_KVM_PRIVATE_MEM_HV_H

#include "private_mem.h"

#define HV_GPA		PRIVATE_MEM_GPA
#define HV_NR_PAGES	16
#define HV_SIZE		(HV_NR_PAGES * PAGE_SIZE)

/* What the half that is not the guest's is filled with, for want of better. */
#define HV_DECOY	0x5a

/* A VM with private memory, and what its shared half is to stay. */
struct hv_vm {
	struct private_mem mem;
	uint8_t *decoy;
};

void hv_vm_create(struct hv_vm *hv);
void hv_vm_free(struct hv_vm *hv);

/* What would be believed at @gpa, in the other half. */
void hv_decoy_fill(struct hv_vm *hv, uint64_t gpa, uint8_t val, size_t size);
void hv_decoy_u64(struct hv_vm *hv, uint64_t gpa, uint64_t val);

/* Fails the test unless the whole shared half is as it was made. */
void hv_check_decoy(struct hv_vm *hv);

/* The same for all but the page of @gpa, which is shared with the guest. */
void hv_check_decoy_but(struct hv_vm *hv, uint64_t gpa);

static inline void *hv_shared(struct hv_vm *hv, uint64_t gpa)
{
	return hv->mem.shared + (gpa - HV_GPA);
}

/* What the guest sees, and what it writes. */
static inline uint64_t hv_seen_u64(struct hv_vm *hv, uint64_t gpa)
{
	return vcpu_read_u64(hv->mem.vcpu, gpa);
}

static inline uint32_t hv_seen_u32(struct hv_vm *hv, uint64_t gpa)
{
	return hv_seen_u64(hv, gpa & ~7ull) >> (gpa & 4) * 8;
}

static inline uint8_t hv_seen_u8(struct hv_vm *hv, uint64_t gpa)
{
	return hv_seen_u64(hv, gpa & ~7ull) >> (gpa & 7) * 8;
}

static inline void hv_write_u64(struct hv_vm *hv, uint64_t gpa, uint64_t val)
{
	vcpu_write_u64(hv->mem.vcpu, gpa, val);
}

/* The page that @gpa is in. */
static inline uint64_t hv_page(uint64_t gpa)
{
	return gpa & ~(PAGE_SIZE - 1ull);
}

static inline void hv_make_shared(struct hv_vm *hv, uint64_t gpa)
{
	vm_mem_set_shared(hv->mem.vm, hv_page(gpa), PAGE_SIZE);
}

static inline void hv_make_private(struct hv_vm *hv, uint64_t gpa)
{
	vm_mem_set_private(hv->mem.vm, hv_page(gpa), PAGE_SIZE);
}

static inline void hv_punch(struct hv_vm *hv, uint64_t gpa)
{
	guest_memfd_punch(hv->mem.memfd, hv_page(gpa) - HV_GPA, PAGE_SIZE);
}

/*
 * A few instructions of the guest, with the registers that they take: WRMSR and
 * RDMSR, the hypercall instruction of this processor, a call of %r11, and a moment
 * with interrupts enabled.  What is in RAX afterwards is returned.
 */
enum hv_insn { HV_WRMSR, HV_RDMSR, HV_HYPERCALL, HV_CALL, HV_INTERRUPTS };

/* Where they are, for the guest's eyes only. */
extern char guest_hv_wrmsr[], guest_hv_rdmsr[], guest_hv_vmcall[], guest_hv_vmmcall[];
extern char guest_hv_call[], guest_hv_interrupts[];

uint64_t hv_run(struct hv_vm *hv, enum hv_insn insn, struct kvm_regs *in);
void hv_wrmsr(struct hv_vm *hv, uint32_t msr, uint64_t val);
uint64_t hv_rdmsr(struct hv_vm *hv, uint32_t msr);

/*
 * Has interrupts of @vector counted, by hv_interrupts(), from when it is called.  The
 * handler clears the byte at @ack, if there is one.
 */
void hv_expect_interrupts(struct hv_vm *hv, int vector, uint8_t *ack);

/* Lets the guest take what is pending and returns how many it has taken so far. */
uint64_t hv_interrupts(struct hv_vm *hv);

#endif /* SELFTEST_KVM_PRIVATE_MEM_HV_H */
