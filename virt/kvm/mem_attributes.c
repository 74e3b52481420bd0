// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory attributes: what userspace says of each guest page, above all whether
 * the guest sees its private or its shared half.
 *
 * The attributes of a guest are a step function of the gfn. A guest with
 * terabytes of memory has few steps, so the map stores the steps: an xarray,
 * keyed by the last gfn of each run of equal attributes, with the run's
 * attributes in a value entry. Beyond the last entry the attributes are 0, so
 * a trailing run of 0 has no entry. Neighbouring runs always differ. Thus
 *
 * - the first entry at or after a gfn has the gfn's attributes, and its index
 *   says how far they reach: one find answers a lookup and the question
 *   whether a range is uniform;
 * - to set a range takes two boundaries, one before it and one at its end, and
 *   the erasure of those inside, whatever the size of the range. Memory grows
 *   with the number of runs, and what is set back leaves nothing behind.
 *
 * Boundaries carry a mark, and lookups go by the mark. Keys tend to end in
 * ...fff, the last slot of a node: a marked find skips to them by bitmap where
 * a plain one would step through the empty slots. And an entry that is only
 * reserved has no mark, hence is no boundary.
 *
 * Locking:
 *
 * - kvm->slots_lock serialises the writers, from the reservation to the end of
 *   the set.
 * - map->runs.xa_lock, taken with interrupts disabled, protects the nodes of
 *   map->runs. Memory may be allocated under it.
 * - map->lock, a seqlock and a leaf within xa_lock, protects the boundaries. No
 *   memory is allocated under it, so that lookups can wait for it in any
 *   context except NMI, with scheduler locks held too.
 * - Lookups run under RCU alone as long as no boundary changes. A find is a
 *   walk, not an instant: one that starts before a change and ends after it can
 *   miss the new boundary and the old one. So a lookup that was overtaken starts
 *   again, and then with map->lock held: a set that erases many boundaries
 *   makes one change after the other, and must not starve anyone.
 *
 * A set may take several critical sections, with the CPU given up between
 * them. The attributes of gfns outside the range are right at the end of each
 * one, because the range is cut off from its neighbours first, then filled,
 * and last merged with its neighbours. A lookup inside the range may see old
 * attributes, new ones, or the old ones of a gfn further up in the range; this
 * is what the invalidation in flight is for: whoever acts on a lookup must
 * check, under mmu_lock, that no invalidation of the gfn began since before the
 * lookup.
 */

#include <linux/kvm_host.h>
#include <linux/kvm_mem_attributes.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/seqlock.h>
#include <linux/xarray.h>

#define BOUNDARY	XA_MARK_0

/* The number of boundaries to erase with interrupts disabled. */
#define ERASE_BATCH	64

/**
 * kvm_mem_attrs_init() - make a map in which the attributes of all gfns are 0
 * @map: the map
 */
void kvm_mem_attrs_init(struct kvm_mem_attributes_map *map)
{
	xa_init_flags(&map->runs, XA_FLAGS_LOCK_IRQ | XA_FLAGS_ACCOUNT);
	seqlock_init(&map->lock);
}

static void mem_attrs_lock(struct kvm_mem_attributes_map *map)
	__acquires(&map->runs.xa_lock) __acquires(&map->lock)
{
	xa_lock_irq(&map->runs);
	write_seqlock(&map->lock);
}

static void mem_attrs_unlock(struct kvm_mem_attributes_map *map)
	__releases(&map->lock) __releases(&map->runs.xa_lock)
{
	write_sequnlock(&map->lock);
	xa_unlock_irq(&map->runs);
}

/* Erase the boundaries from first to last; called and returns locked. */
static void mem_attrs_erase(struct kvm_mem_attributes_map *map,
			    unsigned long first, unsigned long last)
{
	XA_STATE(xas, &map->runs, first);
	unsigned int erased = 0;
	void *entry;

	xas_for_each_marked(&xas, entry, last, BOUNDARY) {
		xas_store(&xas, NULL);
		if (++erased % ERASE_BATCH)
			continue;

		xas_reset(&xas);
		mem_attrs_unlock(map);
		cond_resched();
		mem_attrs_lock(map);
	}
}

/**
 * kvm_mem_attrs_destroy() - free what a map holds
 * @map: the map, no longer in use
 *
 * Context: Process context. May sleep.
 */
void kvm_mem_attrs_destroy(struct kvm_mem_attributes_map *map)
{
	mem_attrs_lock(map);
	mem_attrs_erase(map, 0, ULONG_MAX);
	mem_attrs_unlock(map);
	xa_destroy(&map->runs);
}

/**
 * kvm_mem_attrs_get() - look up the attributes of a gfn
 * @map: the map
 * @gfn: the gfn
 * @last: set to the last gfn of the run of equal attributes that @gfn lies in,
 *        ~0 if the run has no end; may be NULL
 *
 * The answer is of this instant. For one that stays right, hold kvm->slots_lock
 * or check for an invalidation of @gfn since before the call.
 *
 * Context: Any context except NMI.
 * Return: The attributes.
 */
unsigned long kvm_mem_attrs_get(struct kvm_mem_attributes_map *map, gfn_t gfn,
				gfn_t *last)
{
	unsigned long index = gfn;
	unsigned long flags;
	unsigned int seq;
	void *entry;

	seq = read_seqbegin(&map->lock);
	entry = xa_find(&map->runs, &index, ULONG_MAX, BOUNDARY);
	if (unlikely(read_seqretry(&map->lock, seq))) {
		index = gfn;
		read_seqlock_excl_irqsave(&map->lock, flags);
		entry = xa_find(&map->runs, &index, ULONG_MAX, BOUNDARY);
		read_sequnlock_excl_irqrestore(&map->lock, flags);
	}

	if (last)
		*last = entry ? index : ~(gfn_t)0;
	return entry ? xa_to_value(entry) : 0;
}
EXPORT_SYMBOL_GPL(kvm_mem_attrs_get);

/**
 * kvm_mem_attrs_uniform() - ask whether a range has the same attributes
 *                           throughout
 * @map: the map
 * @start: the first gfn of the range
 * @end: the gfn after the range, greater than @start
 * @attrs: the attributes in question
 *
 * The cost does not depend on the size of the range. As for the lifetime of
 * the answer, see kvm_mem_attrs_get().
 *
 * Context: Any context except NMI.
 * Return: True if all gfns of the range have the attributes @attrs.
 */
bool kvm_mem_attrs_uniform(struct kvm_mem_attributes_map *map, gfn_t start,
			   gfn_t end, unsigned long attrs)
{
	gfn_t last;

	return kvm_mem_attrs_get(map, start, &last) == attrs && last >= end - 1;
}

/**
 * kvm_mem_attrs_plan() - find out what it takes to set the attributes of a range
 * @map: the map
 * @start: the first gfn of the range
 * @end: the gfn after the range, greater than @start
 * @attrs: the attributes that are to be set
 * @plan: filled in; good until @map changes
 *
 * Most often one run reaches from before the range to behind it, and one lookup
 * is enough.
 *
 * Context: Any context except NMI. The caller serialises all writers of @map.
 * Return: True, or false if all of the range has the attributes already.
 */
bool kvm_mem_attrs_plan(struct kvm_mem_attributes_map *map, gfn_t start,
			gfn_t end, unsigned long attrs,
			struct kvm_mem_attrs_plan *plan)
{
	unsigned long before, now, after;
	gfn_t last;

	before = kvm_mem_attrs_get(map, start ? start - 1 : 0, &last);
	now = before;
	if (last < start)
		now = kvm_mem_attrs_get(map, start, &last);

	plan->attrs = attrs;
	plan->first = start;
	plan->last = end - 1;

	/*
	 * If the range starts in a run that has the attributes already, set
	 * only what follows: a boundary inside the range then never decides
	 * about a gfn before it.
	 */
	if (now == attrs) {
		if (last >= plan->last)
			return false;
		plan->first = last + 1;
		before = attrs;
	}

	after = now;
	if (last < end)
		after = kvm_mem_attrs_get(map, end, NULL);

	plan->before = before;
	plan->split_before = plan->first && before != attrs;
	plan->split_after = after != attrs;
	return true;
}

/*
 * An allocation that fails on the way to a new slot leaves the nodes above it
 * behind, empty. The xarray frees empty nodes when an entry goes, so let one
 * come and go in the lowest node there is.
 */
static void mem_attrs_prune(struct xarray *xa, unsigned long index)
{
	XA_STATE(xas, xa, index);
	void *head;

	xas_lock_irq(&xas);
	head = xa_head_locked(xa);
	if (xa_is_node(head)) {
		unsigned int shift = xa_to_node(head)->shift;

		/* The array may not have grown as far as to the index. */
		if (index >> shift >= XA_CHUNK_SIZE)
			xas_set(&xas, (XA_CHUNK_SIZE << shift) - 1);
		if (!xas_load(&xas)) {
			xas.xa_shift = xas.xa_node->shift;
			xas_store(&xas, XA_ZERO_ENTRY);
			xas_store(&xas, NULL);
		}
	}
	xas_unlock_irq(&xas);
}

static int mem_attrs_reserve(struct xarray *xa, unsigned long index, gfp_t gfp)
{
	XA_STATE(xas, xa, index);

	do {
		xas_lock_irq(&xas);
		if (!xas_load(&xas))
			xas_store(&xas, XA_ZERO_ENTRY);
		xas_unlock_irq(&xas);
		/* Without blocking, xas_store() has tried what can be tried. */
	} while (gfpflags_allow_blocking(gfp) && xas_nomem(&xas, gfp));

	if (xas_error(&xas))
		mem_attrs_prune(xa, index);
	return xas_error(&xas);
}

/**
 * kvm_mem_attrs_reserve() - make sure that the attributes of a range can be set
 * @map: the map
 * @plan: what kvm_mem_attrs_plan() found out
 * @gfp: how to allocate memory
 *
 * No answer changes. On success, kvm_mem_attrs_set() of the same plan must
 * follow, or kvm_mem_attrs_unreserve(), and no other change of @map before it.
 * What takes no new boundary, as when a range is set back, takes no memory
 * either.
 *
 * Context: As @gfp permits. The caller serialises all writers of @map.
 * Return: 0, or -ENOMEM with nothing changed and nothing held.
 */
int kvm_mem_attrs_reserve(struct kvm_mem_attributes_map *map,
			  const struct kvm_mem_attrs_plan *plan, gfp_t gfp)
{
	int r = 0;

	if (plan->split_before)
		r = mem_attrs_reserve(&map->runs, plan->first - 1, gfp);
	if (!r && plan->split_after)
		r = mem_attrs_reserve(&map->runs, plan->last, gfp);
	if (r)
		kvm_mem_attrs_unreserve(map, plan);
	return r;
}

/**
 * kvm_mem_attrs_unreserve() - give up what kvm_mem_attrs_reserve() reserved
 * @map: the map
 * @plan: what was reserved
 *
 * Context: Any context except NMI. The caller serialises all writers of @map.
 */
void kvm_mem_attrs_unreserve(struct kvm_mem_attributes_map *map,
			     const struct kvm_mem_attrs_plan *plan)
{
	if (plan->split_before)
		xa_cmpxchg_irq(&map->runs, plan->first - 1, XA_ZERO_ENTRY, NULL, 0);
	if (plan->split_after)
		xa_cmpxchg_irq(&map->runs, plan->last, XA_ZERO_ENTRY, NULL, 0);
}

/* Store into a slot that has an entry or a reservation: this cannot fail. */
static void mem_attrs_store(struct xarray *xa, unsigned long index,
			    unsigned long attrs)
{
	XA_STATE(xas, xa, index);

	xas_store(&xas, xa_mk_value(attrs));
	WARN_ON_ONCE(xas_error(&xas));
	xas_set_mark(&xas, BOUNDARY);
}

/**
 * kvm_mem_attrs_set() - set the attributes of a range
 * @map: the map
 * @plan: what is reserved
 *
 * Cannot fail. Lookups of gfns outside the range are right all the time, those
 * inside are not: an invalidation of the range must be in flight.
 *
 * Context: Process context. May sleep. The caller serialises all writers of
 *          @map.
 */
void kvm_mem_attrs_set(struct kvm_mem_attributes_map *map,
		       const struct kvm_mem_attrs_plan *plan)
{
	mem_attrs_lock(map);

	/* Cut the range off: the gfns before it keep what they have. */
	if (plan->split_before)
		mem_attrs_store(&map->runs, plan->first - 1, plan->before);

	/*
	 * Fill it, either from a boundary at its end or from the run after it,
	 * which has the attributes already.
	 */
	if (plan->split_after) {
		mem_attrs_store(&map->runs, plan->last, plan->attrs);
		if (plan->first < plan->last)
			mem_attrs_erase(map, plan->first, plan->last - 1);
	} else {
		mem_attrs_erase(map, plan->first, plan->last);
	}

	/* Merge it with the run before it. */
	if (plan->first && !plan->split_before)
		mem_attrs_erase(map, plan->first - 1, plan->first - 1);

	mem_attrs_unlock(map);
}

/**
 * kvm_vm_ioctl_set_mem_attributes() - KVM_SET_MEMORY_ATTRIBUTES
 * @kvm: the VM
 * @attrs: the ioctl's argument
 *
 * All or nothing. To set what is set already costs one lookup and disturbs no
 * vCPU.
 *
 * Context: Process context. Takes kvm->slots_lock, and in it mmu_lock.
 * Return: 0, -EINVAL for an argument out of bounds, -ENOMEM.
 */
int kvm_vm_ioctl_set_mem_attributes(struct kvm *kvm,
				    struct kvm_memory_attributes *attrs)
{
	struct kvm_mem_attributes_map *map = &kvm->mem_attributes;
	struct kvm_mem_attrs_plan plan;
	gfn_t start, end;
	int r = 0;

	/* A gfn is an index of the map, the attributes are an entry. */
	BUILD_BUG_ON(sizeof(gfn_t) != sizeof(unsigned long));
	BUILD_BUG_ON(sizeof(attrs->attributes) != sizeof(unsigned long));

	if (attrs->flags)
		return -EINVAL;
	if (attrs->attributes & ~kvm_supported_mem_attributes(kvm))
		return -EINVAL;
	if (!attrs->size || attrs->address + attrs->size < attrs->address)
		return -EINVAL;
	if (!PAGE_ALIGNED(attrs->address) || !PAGE_ALIGNED(attrs->size))
		return -EINVAL;

	start = attrs->address >> PAGE_SHIFT;
	end = (attrs->address + attrs->size) >> PAGE_SHIFT;

	mutex_lock(&kvm->slots_lock);

	if (!kvm_mem_attrs_plan(map, start, end, attrs->attributes, &plan))
		goto out;

	r = kvm_mem_attrs_reserve(map, &plan, GFP_KERNEL_ACCOUNT);
	if (r)
		goto out;

	kvm_gfns_invalidate_begin(kvm, start, end, KVM_GFNS_ALL, true);
	kvm_mem_attrs_set(map, &plan);
	kvm_gfns_invalidate_end(kvm);
out:
	mutex_unlock(&kvm->slots_lock);
	return r;
}
