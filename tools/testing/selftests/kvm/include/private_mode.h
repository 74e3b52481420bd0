/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A mode of the library in which tests that know nothing of private memory run with
 * all their memory private: KVM_SELFTESTS_PRIVATE=1 in the environment.
 *
 * A VM of the default type becomes a software-protected one, and each of its regions
 * gets a guest_memfd.  What the host wrote before a vCPU runs is loaded into the file,
 * and the memory is made private, all of it.  From then on a region has three mappings:
 *
 *  - the shared half, where KVM must neither read nor write: filled with a pattern, that
 *    has to be there in the end;
 *  - the library's copy of what was loaded (vm_lib_gpa2hva()), which stands for the page
 *    where the guest does not write, such as page tables.  What the library changes there
 *    is loaded anew before a vCPU runs again.  That takes the page away for a moment: where
 *    another vCPU runs just then, the test starts over as it does for the pages below;
 *  - what a test sees through addr_gpa2hva(), which is not accessible.  Nobody can say
 *    what the guest's page has.  A test that looks there starts over, with that page
 *    shared from the beginning: a test finds out by itself what it must share.
 *
 * A region that comes while a vCPU runs stays shared: the guest may be there already.
 *
 * KVM_SELFTESTS_PRIVATE_REPORT names a file for the line that says how many pages were
 * private, and which ones were shared; standard error without it.
 */
#ifndef SELFTEST_KVM_PRIVATE_MODE_H
#define SELFTEST_KVM_PRIVATE_MODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kvm_vm;
struct userspace_mem_region;

#ifdef __x86_64__

/* A new VM, before KVM_CREATE_VM; one that will be freed, and its regions before it */
void private_mode_vm_init(struct kvm_vm *vm);
void private_mode_vm_free(struct kvm_vm *vm);

/* A new region, before KVM knows it; one that KVM knows no longer */
void private_mode_region_add(struct kvm_vm *vm, struct userspace_mem_region *region,
			     bool anonymous);
void private_mode_region_delete(struct userspace_mem_region *region);

/* Pages that the allocator hands out are the host's to fill until a vCPU runs */
void private_mode_pages_alloc(struct kvm_vm *vm, uint64_t gpa, uint64_t nr_pages);

/* Before and after a vCPU runs; errno stays as it is */
void private_mode_run(struct kvm_vm *vm);
void private_mode_ran(struct kvm_vm *vm);

/*
 * From a VM's release to its restart the library keeps its memory, which only a guest
 * can read: a vCPU of the library's brings it.
 */
void private_mode_release(struct kvm_vm *vm);
void private_mode_restart_region(struct kvm_vm *vm, struct userspace_mem_region *region);
void private_mode_restarted_region(struct kvm_vm *vm, struct userspace_mem_region *region);

/* Where the library reads and writes the memory at a guest physical address, NULL: as ever */
void *private_mode_hva(struct userspace_mem_region *region, uint64_t gpa);
void private_mode_wrote(struct kvm_vm *vm, struct userspace_mem_region *region, uint64_t gpa);

/* The slots of an address space; a VM with private memory has but one such space. */
#define PRIVATE_MODE_SLOT_MASK	0xffff

#else

static inline void private_mode_vm_init(struct kvm_vm *vm) { }
static inline void private_mode_vm_free(struct kvm_vm *vm) { }
static inline void private_mode_region_add(struct kvm_vm *vm,
					   struct userspace_mem_region *region,
					   bool anonymous) { }
static inline void private_mode_region_delete(struct userspace_mem_region *region) { }
static inline void private_mode_pages_alloc(struct kvm_vm *vm, uint64_t gpa,
					    uint64_t nr_pages) { }
static inline void private_mode_run(struct kvm_vm *vm) { }
static inline void private_mode_ran(struct kvm_vm *vm) { }
static inline void private_mode_release(struct kvm_vm *vm) { }
static inline void private_mode_restart_region(struct kvm_vm *vm,
					       struct userspace_mem_region *region) { }
static inline void private_mode_restarted_region(struct kvm_vm *vm,
						 struct userspace_mem_region *region) { }
static inline void *private_mode_hva(struct userspace_mem_region *region, uint64_t gpa)
{
	return NULL;
}

static inline void private_mode_wrote(struct kvm_vm *vm, struct userspace_mem_region *region,
				      uint64_t gpa) { }

#endif /* __x86_64__ */

#endif /* SELFTEST_KVM_PRIVATE_MODE_H */
