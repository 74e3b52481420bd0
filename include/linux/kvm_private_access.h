/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __LINUX_KVM_PRIVATE_ACCESS_H
#define __LINUX_KVM_PRIVATE_ACCESS_H

#include <linux/errno.h>
#include <linux/kvm_types.h>
#include <linux/types.h>

struct kvm;
struct kvm_memory_slot;

#ifdef CONFIG_KVM_GUEST_MEMFD

int kvm_private_read(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t gfn,
		     void *data, int offset, int len, bool atomic);
int kvm_private_write(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t gfn,
		      const void *data, int offset, int len);
int kvm_private_cmpxchg(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t gfn,
			int offset, void *old, const void *new, int len);
kvm_pfn_t kvm_private_pfn(struct kvm *kvm, struct kvm_memory_slot *slot,
			  gfn_t gfn);

#else

static inline int kvm_private_read(struct kvm *kvm, struct kvm_memory_slot *slot,
				   gfn_t gfn, void *data, int offset, int len,
				   bool atomic)
{
	return -EFAULT;
}

static inline int kvm_private_write(struct kvm *kvm,
				    struct kvm_memory_slot *slot, gfn_t gfn,
				    const void *data, int offset, int len)
{
	return -EFAULT;
}

static inline int kvm_private_cmpxchg(struct kvm *kvm,
				      struct kvm_memory_slot *slot, gfn_t gfn,
				      int offset, void *old, const void *new,
				      int len)
{
	return -EFAULT;
}

/* Never asked where no page is private. */
static inline kvm_pfn_t kvm_private_pfn(struct kvm *kvm,
					struct kvm_memory_slot *slot, gfn_t gfn)
{
	return -EFAULT;
}

#endif /* CONFIG_KVM_GUEST_MEMFD */

#endif /* __LINUX_KVM_PRIVATE_ACCESS_H */
