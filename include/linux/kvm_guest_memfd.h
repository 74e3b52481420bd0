/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __LINUX_KVM_GUEST_MEMFD_H
#define __LINUX_KVM_GUEST_MEMFD_H

#include <linux/errno.h>
#include <linux/kvm_types.h>
#include <linux/types.h>

struct file;
struct folio;
struct kvm;
struct kvm_create_guest_memfd;
struct kvm_memory_slot;

#ifdef CONFIG_KVM_GUEST_MEMFD

/**
 * struct kvm_gmem_slot - what binds a memslot to a guest_memfd
 * @file: the file, NULL if there is none or its last descriptor is closed.
 *        Written with kvm->slots_lock held. Does not hold a reference: who
 *        follows it takes one, under RCU, and fails if the file is going away.
 * @pgoff: the page of the file that backs the first gfn. Constant while the
 *         slot exists.
 */
struct kvm_gmem_slot {
	struct file __rcu *file;
	pgoff_t pgoff;
};

u64 kvm_gmem_supported_flags(void);
int kvm_gmem_create(struct kvm *kvm, struct kvm_create_guest_memfd *args);
int kvm_gmem_bind(struct kvm *kvm, struct kvm_memory_slot *slot,
		  unsigned int fd, u64 offset);
void kvm_gmem_unbind(struct kvm *kvm, struct kvm_memory_slot *slot);
void kvm_gmem_copy_slot(struct kvm_memory_slot *dest,
			const struct kvm_memory_slot *src);
int kvm_gmem_get_pfn(struct kvm_memory_slot *slot, gfn_t gfn, kvm_pfn_t *pfn,
		     unsigned int *order);
pgoff_t kvm_gmem_index(struct kvm_memory_slot *slot, gfn_t gfn);
struct folio *kvm_gmem_lock_folio(struct kvm_memory_slot *slot, gfn_t gfn,
				  bool atomic);

#else

struct kvm_gmem_slot {};

static inline int kvm_gmem_create(struct kvm *kvm,
				  struct kvm_create_guest_memfd *args)
{
	return -ENOTTY;
}

static inline int kvm_gmem_bind(struct kvm *kvm, struct kvm_memory_slot *slot,
				unsigned int fd, u64 offset)
{
	return -EINVAL;
}

static inline void kvm_gmem_unbind(struct kvm *kvm,
				   struct kvm_memory_slot *slot)
{
}

static inline void kvm_gmem_copy_slot(struct kvm_memory_slot *dest,
				      const struct kvm_memory_slot *src)
{
}

static inline int kvm_gmem_get_pfn(struct kvm_memory_slot *slot, gfn_t gfn,
				   kvm_pfn_t *pfn, unsigned int *order)
{
	return -EFAULT;
}

#endif /* CONFIG_KVM_GUEST_MEMFD */

#endif /* __LINUX_KVM_GUEST_MEMFD_H */
