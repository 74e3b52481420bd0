/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __LINUX_KVM_MEM_ATTRIBUTES_H
#define __LINUX_KVM_MEM_ATTRIBUTES_H

#include <linux/errno.h>
#include <linux/gfp.h>
#include <linux/kvm_types.h>
#include <linux/seqlock.h>
#include <linux/types.h>
#include <linux/xarray.h>

struct kvm;
struct kvm_memory_attributes;

#ifdef CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES

/**
 * struct kvm_mem_attributes_map - attributes of every gfn, as a step function
 * @runs: a value entry with the attributes of each run of equal attributes,
 *        at the run's last gfn. Beyond the last entry the attributes are 0.
 * @lock: lets a lookup find out that @runs changed under it, or keep it as it is.
 */
struct kvm_mem_attributes_map {
	struct xarray runs;
	seqlock_t lock;
};

/**
 * struct kvm_mem_attrs_plan - what it takes to set the attributes of a range
 * @first: the first gfn of the range that does not have the attributes yet
 * @last: the last gfn of the range
 * @attrs: the attributes
 * @before: the attributes of the gfn before @first
 * @split_before: there must be a boundary at @first - 1
 * @split_after: there must be a boundary at @last
 */
struct kvm_mem_attrs_plan {
	gfn_t first;
	gfn_t last;
	unsigned long attrs;
	unsigned long before;
	bool split_before;
	bool split_after;
};

void kvm_mem_attrs_init(struct kvm_mem_attributes_map *map);
void kvm_mem_attrs_destroy(struct kvm_mem_attributes_map *map);
unsigned long kvm_mem_attrs_get(struct kvm_mem_attributes_map *map, gfn_t gfn,
				gfn_t *last);
bool kvm_mem_attrs_uniform(struct kvm_mem_attributes_map *map, gfn_t start,
			   gfn_t end, unsigned long attrs);
bool kvm_mem_attrs_plan(struct kvm_mem_attributes_map *map, gfn_t start,
			gfn_t end, unsigned long attrs,
			struct kvm_mem_attrs_plan *plan);
int kvm_mem_attrs_reserve(struct kvm_mem_attributes_map *map,
			  const struct kvm_mem_attrs_plan *plan, gfp_t gfp);
void kvm_mem_attrs_unreserve(struct kvm_mem_attributes_map *map,
			     const struct kvm_mem_attrs_plan *plan);
void kvm_mem_attrs_set(struct kvm_mem_attributes_map *map,
		       const struct kvm_mem_attrs_plan *plan);

int kvm_vm_ioctl_set_mem_attributes(struct kvm *kvm,
				    struct kvm_memory_attributes *attrs);

#else

struct kvm_mem_attributes_map {};

static inline void kvm_mem_attrs_init(struct kvm_mem_attributes_map *map)
{
}

static inline void kvm_mem_attrs_destroy(struct kvm_mem_attributes_map *map)
{
}

static inline unsigned long
kvm_mem_attrs_get(struct kvm_mem_attributes_map *map, gfn_t gfn, gfn_t *last)
{
	if (last)
		*last = ~(gfn_t)0;
	return 0;
}

static inline bool kvm_mem_attrs_uniform(struct kvm_mem_attributes_map *map,
					 gfn_t start, gfn_t end,
					 unsigned long attrs)
{
	return !attrs;
}

static inline int
kvm_vm_ioctl_set_mem_attributes(struct kvm *kvm,
				struct kvm_memory_attributes *attrs)
{
	return -ENOTTY;
}

#endif /* CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES */

#endif /* __LINUX_KVM_MEM_ATTRIBUTES_H */
