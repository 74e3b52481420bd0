/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __LINUX_KVM_PRIVATE_ACCESS_H
#define __LINUX_KVM_PRIVATE_ACCESS_H

#include <linux/err.h>
#include <linux/errno.h>
#include <linux/kvm_types.h>
#include <linux/types.h>

struct folio;
struct kvm;
struct kvm_memory_slot;
struct page;

#ifdef CONFIG_KVM_GUEST_MEMFD

void *kvm_private_lock(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t gfn,
		       bool atomic, struct folio **folio);
void kvm_private_store(void *to, const void *data, int len);
void kvm_private_unlock(void *page, struct folio *folio);
int kvm_private_read(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t gfn,
		     void *data, int offset, int len, bool atomic);
int kvm_private_write(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t gfn,
		      const void *data, int offset, int len);
struct page *kvm_private_get_page(struct kvm *kvm, struct kvm_memory_slot *slot,
				  gfn_t gfn);
void kvm_private_put_page(struct page *page);
int kvm_private_cmpxchg(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t gfn,
			int offset, void *old, const void *new, int len);
kvm_pfn_t kvm_private_pfn(struct kvm *kvm, struct kvm_memory_slot *slot,
			  gfn_t gfn);

#else

static inline void *kvm_private_lock(struct kvm *kvm,
				     struct kvm_memory_slot *slot, gfn_t gfn,
				     bool atomic, struct folio **folio)
{
	return ERR_PTR(-EFAULT);
}

static inline void kvm_private_store(void *to, const void *data, int len)
{
}

static inline void kvm_private_unlock(void *page, struct folio *folio)
{
}

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

static inline struct page *kvm_private_get_page(struct kvm *kvm,
						struct kvm_memory_slot *slot,
						gfn_t gfn)
{
	return ERR_PTR(-EFAULT);
}

static inline void kvm_private_put_page(struct page *page)
{
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
