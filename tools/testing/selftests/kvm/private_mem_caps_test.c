// SPDX-License-Identifier: GPL-2.0-only
/*
 * The capabilities of private memory and the VM types: what /dev/kvm says is
 * what some VM of this host can do, what a VM says is what it can do itself.
 */
#include <fcntl.h>
#include <linux/bits.h>

#include "kvm_harness.h"

#define VM_TYPES	(BIT(KVM_X86_DEFAULT_VM) | BIT(KVM_X86_SW_PROTECTED_VM))

static void set_tdp_mmu(const char *value)
{
	int fd = open("/sys/module/kvm/parameters/tdp_mmu", O_WRONLY);

	TEST_ASSERT(fd >= 0 && write(fd, value, 1) == 1, "tdp_mmu cannot be written");
	close(fd);
}

/* The errno of KVM_CREATE_VM, or 0. */
static int create_vm_err(unsigned long type)
{
	int kvm = open_kvm_dev_path_or_exit();
	int vm = __kvm_ioctl(kvm, KVM_CREATE_VM, (void *)type);
	int err = err_of(vm);

	if (!err)
		close(vm);
	close(kvm);
	return err;
}

TEST(host)
{
	EXPECT_EQ(1, kvm_check_cap(KVM_CAP_USER_MEMORY2));
	EXPECT_EQ(1, kvm_check_cap(KVM_CAP_MEMORY_FAULT_INFO));
	EXPECT_EQ(KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES));
	EXPECT_EQ(1, kvm_check_cap(KVM_CAP_GUEST_MEMFD));
	EXPECT_EQ(KVM_GUEST_MEMFD_ALLOW_HUGEPAGE, kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS));
	EXPECT_EQ(VM_TYPES, kvm_check_cap(KVM_CAP_VM_TYPES));
	EXPECT_EQ(2, kvm_check_cap(KVM_CAP_MULTI_ADDRESS_SPACE));
}

TEST(protected_vm)
{
	struct kvm_vm *vm = create_protected_vm();

	EXPECT_EQ(1, vm_check_cap(vm, KVM_CAP_USER_MEMORY2));
	EXPECT_EQ(1, vm_check_cap(vm, KVM_CAP_MEMORY_FAULT_INFO));
	EXPECT_EQ(KVM_MEMORY_ATTRIBUTE_PRIVATE, vm_check_cap(vm, KVM_CAP_MEMORY_ATTRIBUTES));
	EXPECT_EQ(1, vm_check_cap(vm, KVM_CAP_GUEST_MEMFD));
	EXPECT_EQ(KVM_GUEST_MEMFD_ALLOW_HUGEPAGE, vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS));
	EXPECT_EQ(1, vm_check_cap(vm, KVM_CAP_MULTI_ADDRESS_SPACE));
	kvm_vm_free(vm);
}

TEST(default_vm)
{
	struct kvm_vm *vm = vm_create_barebones();

	EXPECT_EQ(1, vm_check_cap(vm, KVM_CAP_USER_MEMORY2));
	EXPECT_EQ(1, vm_check_cap(vm, KVM_CAP_MEMORY_FAULT_INFO));
	EXPECT_EQ(0, vm_check_cap(vm, KVM_CAP_MEMORY_ATTRIBUTES));
	EXPECT_EQ(0, vm_check_cap(vm, KVM_CAP_GUEST_MEMFD));
	EXPECT_EQ(2, vm_check_cap(vm, KVM_CAP_MULTI_ADDRESS_SPACE));
	kvm_vm_free(vm);
}

TEST(types)
{
	unsigned long type;
	int i;

	EXPECT_EQ(0, create_vm_err(KVM_X86_DEFAULT_VM));
	EXPECT_EQ(0, create_vm_err(KVM_X86_SW_PROTECTED_VM));

	for (type = 2; type < 70; type++) {
		EXPECT_EQ(EINVAL, create_vm_err(type))
			TH_LOG("type %lu", type);
	}
	/* The type is a whole word, and no bit of it may be lost. */
	for (i = 7; i < 64; i++) {
		EXPECT_EQ(EINVAL, create_vm_err(1UL << i))
			TH_LOG("type 1 << %d", i);
		EXPECT_EQ(EINVAL, create_vm_err(1UL << i | KVM_X86_SW_PROTECTED_VM))
			TH_LOG("type 1 << %d | 1", i);
	}
}

FIXTURE(tdp_mmu) {
	struct kvm_vm *vm;	/* from before it was switched off */
};

FIXTURE_SETUP(tdp_mmu)
{
	self->vm = create_protected_vm();
	set_tdp_mmu("N");
}

FIXTURE_TEARDOWN(tdp_mmu)
{
	set_tdp_mmu("Y");
	EXPECT_EQ(VM_TYPES, kvm_check_cap(KVM_CAP_VM_TYPES));
	EXPECT_EQ(0, create_vm_err(KVM_X86_SW_PROTECTED_VM));
	kvm_vm_free(self->vm);
}

TEST_F(tdp_mmu, off)
{
	EXPECT_EQ(BIT(KVM_X86_DEFAULT_VM), kvm_check_cap(KVM_CAP_VM_TYPES));
	EXPECT_EQ(EINVAL, create_vm_err(KVM_X86_SW_PROTECTED_VM));
	EXPECT_EQ(0, create_vm_err(KVM_X86_DEFAULT_VM));

	/* No VM of this host can have private memory now. */
	EXPECT_EQ(0, kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES));
	EXPECT_EQ(0, kvm_check_cap(KVM_CAP_GUEST_MEMFD));
	EXPECT_EQ(1, kvm_check_cap(KVM_CAP_USER_MEMORY2));
}

/* A VM that is there stays what it is. */
TEST_F(tdp_mmu, vm_from_before)
{
	int fd = vm_create_guest_memfd(self->vm, 0x1000, 0);
	void *hva = mmap(NULL, 0x1000, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	EXPECT_EQ(KVM_MEMORY_ATTRIBUTE_PRIVATE,
		  vm_check_cap(self->vm, KVM_CAP_MEMORY_ATTRIBUTES));
	EXPECT_EQ(1, vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD));
	EXPECT_EQ(1, vm_check_cap(self->vm, KVM_CAP_MULTI_ADDRESS_SPACE));
	EXPECT_EQ(0, err_of(__vm_set_user_memory_region2(self->vm, 0, KVM_MEM_GUEST_MEMFD, 0,
							 0x1000, hva, fd, 0)));
	EXPECT_EQ(0, err_of(__vm_set_memory_attributes(self->vm, 0, 0x1000,
						       KVM_MEMORY_ATTRIBUTE_PRIVATE)));
}

TEST_HARNESS_MAIN
