// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd: memory that belongs to a guest and not to the process that runs
 * it. Userspace makes a file, binds ranges of it to memslots and says how much
 * of it is to be allocated, but can neither map nor read it. It can fill what
 * the guest has not touched yet, and punch out what it likes.
 *
 * The inode is the memory, a page cache that nothing but this file touches. A
 * file is one VM's view of the memory (struct kvm_gmem), kept in a list of the
 * mapping so that there can be more than one. A binding ties a range of the
 * file to a range of gfns; a file keeps its bindings by the last page of each,
 * so that one find says whether a range is free and who maps a page.
 *
 * A folio is up to date once somebody has seen it. Until then its contents are
 * whatever they were when it was allocated, and cost nothing to clear: it is
 * cleared when it is first handed out. An up-to-date folio is cleared again when
 * it leaves the file, before anybody else can have it.
 *
 * A file can have huge folios, if it was made so: of a size that the MMU can map
 * by one entry, for blocks of the file that are aligned to it. One is put in
 * where all of a block is asked for, the block has nothing yet and the host has
 * one to spare; everything else is single pages. It is split where a part of it
 * is to go. If the split cannot be had, because memory is short or somebody has
 * a reference for too long, that part is cleared and stays. What KVM writes by
 * such a reference after that is seen by the guest whose page it is, and nobody else.
 *
 * References: the file holds the VM. A memslot does not hold the file, or
 * neither would ever go away; it points to the file under RCU, and closing the
 * last descriptor takes the memory out of the guest's reach and clears the
 * pointers. The guest's mappings do not hold folios: whoever takes a folio out
 * of the file invalidates the gfns that may map it first.
 *
 * Locking: kvm->slots_lock > mapping->invalidate_lock > folio lock >
 * mapping->private_lock > kvm->mmu_lock.
 *
 * - kvm->slots_lock: the file pointers of memslots, binding and unbinding.
 * - mapping->invalidate_lock: held for write to change bindings, the list of
 *   views, or to split folios and take them out that the guest may have; for
 *   read by fallocate() to put one in, or to take it back. So it is what
 *   protects folio->private, fallocate()'s note of whose the folio is. Page
 *   faults and pwrite() fill holes without it: nobody maps a hole.
 * - mapping->private_lock: also held to change the list of views, so that the
 *   memory-error path, which comes with a folio locked and can take neither of
 *   the above, can walk it. Bindings are freed after an RCU grace period for
 *   the same reason.
 * - the folio lock: clearing a folio, splitting it, and KVM's own access to the
 *   contents. It is held while a folio leaves the file, so contents cannot
 *   change after they were cleared.
 *
 * A page fault takes none of these but the folio lock, of one folio. It is the
 * invalidation of the gfn that makes it safe: after the fault looked up its
 * folio it checks, with mmu_lock held, that no invalidation began in between.
 */

#include <linux/anon_inodes.h>
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/falloc.h>
#include <linux/highmem.h>
#include <linux/huge_mm.h>
#include <linux/kvm_guest_memfd.h>
#include <linux/kvm_host.h>
#include <linux/pagemap.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/uio.h>
#include <linux/xarray.h>

#include "kvm_mm.h"

/* Bindings carry a mark; a find by mark skips the empty slots of a node. */
#define BINDING		XA_MARK_0

#define GMEM_HUGE_ORDER	(PMD_SHIFT - PAGE_SHIFT)
#define GMEM_HUGE_PAGES	BIT(GMEM_HUGE_ORDER)

/* How often to try a split, with a millisecond or two in between. */
#define GMEM_SPLIT_TRIES	100

static const struct file_operations kvm_gmem_fops;

static atomic_long_t gmem_allocations;

/* One VM's view of the memory: file->private_data. */
struct kvm_gmem {
	struct kvm *kvm;
	struct xarray bindings;
	struct list_head entry;		/* mapping->private_list */
	/* What the inode had before it was KVM's, and has afterwards. */
	const struct inode_operations *i_op;
	const struct address_space_operations *a_ops;
};

struct kvm_gmem_binding {
	struct kvm_memory_slot *slot;	/* valid with kvm->slots_lock held */
	gfn_t base_gfn;
	pgoff_t first;
	pgoff_t last;
	struct rcu_head rcu;
};

static struct kvm_gmem *gmem_from_file(struct file *file)
{
	return file->f_op == &kvm_gmem_fops ? file->private_data : NULL;
}

/* The first binding that ends at page *index of the file or later. */
static struct kvm_gmem_binding *gmem_find_binding(struct kvm_gmem *gmem,
						  unsigned long *index)
{
	return xa_find(&gmem->bindings, index, ULONG_MAX, BINDING);
}

#define gmem_for_each_binding(binding, index, gmem, start, end)			\
	for ((index) = (start), (binding) = gmem_find_binding(gmem, &(index));	\
	     (binding) && (binding)->first < (end);				\
	     (binding) = xa_find_after(&(gmem)->bindings, &(index),		\
				       ULONG_MAX, BINDING))

#define gmem_for_each_view(gmem, mapping)					\
	list_for_each_entry(gmem, &(mapping)->private_list, entry)

static void gmem_invalidate_binding(struct kvm_gmem *gmem,
				    struct kvm_gmem_binding *b, pgoff_t start,
				    pgoff_t end, bool may_block)
{
	kvm_gfns_invalidate_begin(gmem->kvm,
				  b->base_gfn + max(start, b->first) - b->first,
				  b->base_gfn + min(end - 1, b->last) - b->first + 1,
				  KVM_GFNS_PRIVATE, may_block);
}

/*
 * Take the pages [start, end) of the file out of the guest's reach. The
 * invalidate_lock, held from here to the end, keeps the bindings as they are.
 */
static void gmem_invalidate_begin(struct address_space *mapping, pgoff_t start,
				  pgoff_t end)
{
	struct kvm_gmem_binding *b;
	struct kvm_gmem *gmem;
	unsigned long index;

	lockdep_assert_held_write(&mapping->invalidate_lock);

	gmem_for_each_view(gmem, mapping) {
		gmem_for_each_binding(b, index, gmem, start, end) {
			gmem_invalidate_binding(gmem, b, start, end, true);
			cond_resched();
		}
	}
}

static void gmem_invalidate_end(struct address_space *mapping, pgoff_t start,
				pgoff_t end)
{
	struct kvm_gmem_binding *b;
	struct kvm_gmem *gmem;
	unsigned long index;

	lockdep_assert_held_write(&mapping->invalidate_lock);

	gmem_for_each_view(gmem, mapping) {
		gmem_for_each_binding(b, index, gmem, start, end) {
			kvm_gfns_invalidate_end(gmem->kvm);
			cond_resched();
		}
	}
}

/* Drop the guest's mappings of the pages [start, end), and let them come back. */
static void gmem_unmap(struct kvm_gmem *gmem, pgoff_t start, pgoff_t end,
		       bool may_block)
{
	struct kvm_gmem_binding *b;
	unsigned long index;

	gmem_for_each_binding(b, index, gmem, start, end) {
		gmem_invalidate_binding(gmem, b, start, end, may_block);
		kvm_gfns_invalidate_end(gmem->kvm);
		if (may_block)
			cond_resched();
	}
}

/*
 * A huge folio is a gain and not a need: take it if the host has one, but let
 * nobody wait for it. The host hears of the demand, and may have one next time.
 */
static gfp_t gmem_gfp(struct address_space *mapping, unsigned int order)
{
	gfp_t gfp = mapping_gfp_mask(mapping);

	if (order)
		gfp &= ~(__GFP_DIRECT_RECLAIM | __GFP_RETRY_MAYFAIL);

	return gfp;
}

static struct folio *gmem_alloc_folio(struct address_space *mapping,
				      unsigned int order)
{
	return filemap_alloc_folio(gmem_gfp(mapping, order), order);
}

static int gmem_add_folio(struct address_space *mapping, struct folio *folio,
			  pgoff_t index)
{
	return filemap_add_folio(mapping, folio, index,
				 gmem_gfp(mapping, folio_order(folio)));
}

/*
 * Put a folio into a hole, locked, with @cookie in its private field. Returns
 * -EEXIST if there is something in the way.
 */
static struct folio *gmem_new_folio(struct address_space *mapping,
				    pgoff_t index, unsigned int order,
				    void *cookie)
{
	struct folio *folio;
	int r;

	folio = gmem_alloc_folio(mapping, order);
	if (!folio)
		return ERR_PTR(-ENOMEM);

	folio->private = cookie;
	r = gmem_add_folio(mapping, folio, index);
	if (r) {
		folio->private = NULL;
		folio_put(folio);
		return ERR_PTR(r);
	}

	return folio;
}

/* Whether the file has no page in [start, end), at this moment. */
static bool gmem_is_hole(struct address_space *mapping, pgoff_t start,
			 pgoff_t end)
{
	unsigned long index = start;

	return !xa_find(&mapping->i_pages, &index, end - 1, XA_PRESENT);
}

/* Whether the block around @index can be a huge folio, all in [start, end). */
static bool gmem_block_fits(struct address_space *mapping, pgoff_t index,
			    pgoff_t start, pgoff_t end)
{
	pgoff_t first = round_down(index, GMEM_HUGE_PAGES);

	return mapping_large_folio_support(mapping) &&
	       first >= start && first + GMEM_HUGE_PAGES <= end;
}

/*
 * The folio at @index, locked. Allocates it where the file has a hole, a huge one
 * if @huge and if that can be had; a folio that is allocated here has @cookie in
 * its private field.
 */
static struct folio *gmem_get_folio(struct address_space *mapping,
				    pgoff_t index, bool huge, void *cookie)
{
	pgoff_t block = round_down(index, GMEM_HUGE_PAGES);
	struct folio *folio;

	do {
		folio = __filemap_get_folio(mapping, index, FGP_LOCK, 0);
		if (folio)
			return folio;

		folio = ERR_PTR(-ENOMEM);
		if (huge && gmem_is_hole(mapping, block, block + GMEM_HUGE_PAGES))
			folio = gmem_new_folio(mapping, block, GMEM_HUGE_ORDER, cookie);
		if (IS_ERR(folio))
			folio = gmem_new_folio(mapping, index, 0, cookie);
	} while (folio == ERR_PTR(-EEXIST));

	return folio;
}

/*
 * Clear pages of a locked folio. One that has a memory error is not touched, it
 * will not be seen again.
 */
static void gmem_clear_pages(struct folio *folio, unsigned long first,
			     unsigned long nr)
{
	void *address = folio_address(folio) + first * PAGE_SIZE;
	unsigned long i;

	BUILD_BUG_ON(IS_ENABLED(CONFIG_HIGHMEM));

	/* In one go: this is most of what the first touch of a huge page takes. */
	if (folio_test_large(folio) ? !folio_test_has_hwpoisoned(folio) :
				      !folio_test_hwpoison(folio)) {
		memset(address, 0, nr * PAGE_SIZE);
		if (nr > 1)
			cond_resched();
		return;
	}

	for (i = 0; i < nr; i++) {
		if (!PageHWPoison(folio_page(folio, first + i)))
			clear_page(address + i * PAGE_SIZE);
	}
}

/* Make a locked folio fit to be seen, above all its page at @index. */
static int gmem_prepare_folio(struct folio *folio, pgoff_t index)
{
	if (PageHWPoison(folio_file_page(folio, index)))
		return -EHWPOISON;

	if (!folio_test_uptodate(folio)) {
		gmem_clear_pages(folio, 0, folio_nr_pages(folio));
		folio_mark_uptodate(folio);
	}

	return 0;
}

static struct file *gmem_get_file(struct kvm_memory_slot *slot)
{
	struct file *file;

	rcu_read_lock();
	file = rcu_dereference(slot->gmem.file);
	if (file && !get_file_rcu(file))
		file = NULL;
	rcu_read_unlock();

	return file;
}

/**
 * kvm_gmem_index - find a gfn in the file that is bound to its memslot
 * @slot: the memslot
 * @gfn: a gfn that the memslot covers
 *
 * Return: the page index.
 */
pgoff_t kvm_gmem_index(struct kvm_memory_slot *slot, gfn_t gfn)
{
	return gfn - slot->base_gfn + slot->gmem.pgoff;
}

/*
 * Whether an access to @gfn may take a huge folio: if the guest can have all of it
 * as private memory now. What changes meanwhile costs memory, not correctness.
 */
static bool gmem_slot_wants_huge(struct kvm_memory_slot *slot, struct file *file,
				 gfn_t gfn)
{
	struct kvm_gmem *gmem = file->private_data;
	pgoff_t index = kvm_gmem_index(slot, gfn);
	gfn_t first;

	if (!gmem_block_fits(file->f_mapping, index, slot->gmem.pgoff,
			     slot->gmem.pgoff + slot->npages))
		return false;

	first = gfn - index % GMEM_HUGE_PAGES;
	return kvm_mem_attrs_uniform(&gmem->kvm->mem_attributes, first,
				     first + GMEM_HUGE_PAGES,
				     KVM_MEMORY_ATTRIBUTE_PRIVATE);
}

/**
 * kvm_gmem_lock_folio - get at the contents of a private page
 * @slot: the memslot that covers @gfn
 * @gfn: the page
 * @atomic: whether the caller cannot sleep
 *
 * The contents of the page, one of the folio's, may be read and written until the
 * folio is unlocked. An atomic caller gets only what the file has and nobody else
 * is using.
 *
 * Context: SRCU protects @slot.
 * Return: the folio, locked and with a reference, or an ERR_PTR: -EFAULT if no
 * live file is bound to the slot, -EAGAIN only if @atomic, -EHWPOISON, or what
 * the allocation fails with.
 */
struct folio *kvm_gmem_lock_folio(struct kvm_memory_slot *slot, gfn_t gfn,
				  bool atomic)
{
	pgoff_t index = kvm_gmem_index(slot, gfn);
	struct file *file = gmem_get_file(slot);
	struct folio *folio;
	int r;

	if (!file)
		return ERR_PTR(-EFAULT);

	folio = __filemap_get_folio(file->f_mapping, index,
				    FGP_LOCK | (atomic ? FGP_NOWAIT : 0), 0);
	if (!folio && atomic)
		folio = ERR_PTR(-EAGAIN);
	else if (!folio)
		folio = gmem_get_folio(file->f_mapping, index,
				       gmem_slot_wants_huge(slot, file, gfn), NULL);
	fput(file);
	if (IS_ERR(folio))
		return folio;

	/* To clear a huge folio takes too long where one cannot sleep. */
	if (atomic && folio_test_large(folio) && !folio_test_uptodate(folio))
		r = -EAGAIN;
	else
		r = gmem_prepare_folio(folio, index);
	if (r) {
		folio_unlock(folio);
		folio_put(folio);
		return ERR_PTR(r);
	}

	return folio;
}

/**
 * kvm_gmem_get_pfn - look up what backs a private page, for mapping it
 * @slot: the memslot that covers @gfn
 * @gfn: the page
 * @pfn: set to the page frame, with a reference
 * @order: set to the order of the largest block around @gfn that the file has
 *         in one piece, as aligned in the file as it is for the guest
 *
 * The caller must have noted kvm->mmu_invalidate_seq before it found out that
 * @gfn is private, and check with mmu_lock held that nothing invalidated @gfn
 * since.
 *
 * Context: may sleep. SRCU protects @slot.
 * Return: 0, or as kvm_gmem_lock_folio().
 */
int kvm_gmem_get_pfn(struct kvm_memory_slot *slot, gfn_t gfn, kvm_pfn_t *pfn,
		     unsigned int *order)
{
	struct folio *folio = kvm_gmem_lock_folio(slot, gfn, false);
	pgoff_t index = kvm_gmem_index(slot, gfn);

	if (IS_ERR(folio))
		return PTR_ERR(folio);

	*pfn = page_to_pfn(folio_file_page(folio, index));
	*order = folio_order(folio);
	/* A page of it that has a memory error must not be mapped with it. */
	if ((*order && folio_test_has_hwpoisoned(folio)) ||
	    !IS_ALIGNED(gfn ^ index, 1UL << *order))
		*order = 0;
	folio_unlock(folio);

	return 0;
}

/**
 * kvm_gmem_bind - back the private half of a new memslot by a guest_memfd
 * @kvm: the VM
 * @slot: the memslot, not yet visible to anybody
 * @fd: the file descriptor
 * @offset: where in the file the memslot starts, in bytes
 *
 * Context: kvm->slots_lock held.
 * Return: 0, -EBADF without such a descriptor, -ENOMEM, and -EINVAL if the
 * file is no guest_memfd of @kvm, the range is not inside it or not page
 * aligned, or part of the range is bound.
 */
int kvm_gmem_bind(struct kvm *kvm, struct kvm_memory_slot *slot,
		  unsigned int fd, u64 offset)
{
	struct kvm_gmem_binding *new, *b;
	struct address_space *mapping;
	unsigned long index;
	struct kvm_gmem *gmem;
	struct file *file;
	u64 size;
	int r;

	lockdep_assert_held(&kvm->slots_lock);

	file = fget(fd);
	if (!file)
		return -EBADF;

	r = -EINVAL;
	gmem = gmem_from_file(file);
	if (!gmem || gmem->kvm != kvm)
		goto out_file;

	mapping = file->f_mapping;
	size = i_size_read(mapping->host);
	if (!PAGE_ALIGNED(offset) || offset > size ||
	    slot->npages > (size - offset) >> PAGE_SHIFT)
		goto out_file;

	r = -ENOMEM;
	new = kmalloc(sizeof(*new), GFP_KERNEL_ACCOUNT);
	if (!new)
		goto out_file;

	new->slot = slot;
	new->base_gfn = slot->base_gfn;
	new->first = offset >> PAGE_SHIFT;
	new->last = new->first + slot->npages - 1;

	filemap_invalidate_lock(mapping);

	r = -EINVAL;
	index = new->first;
	b = gmem_find_binding(gmem, &index);
	if (b && b->first <= new->last)
		goto out_unlock;

	r = xa_insert(&gmem->bindings, new->last, new, GFP_KERNEL_ACCOUNT);
	if (r)
		goto out_unlock;
	xa_set_mark(&gmem->bindings, new->last, BINDING);

	slot->gmem.pgoff = new->first;
	rcu_assign_pointer(slot->gmem.file, file);
	new = NULL;

out_unlock:
	filemap_invalidate_unlock(mapping);
	kfree(new);
out_file:
	fput(file);
	return r;
}

/**
 * kvm_gmem_unbind - undo kvm_gmem_bind()
 * @kvm: the VM
 * @slot: a memslot that no vCPU can reach, whether it is bound or not
 *
 * Context: kvm->slots_lock held, or the VM is being destroyed and has no
 * files left.
 */
void kvm_gmem_unbind(struct kvm *kvm, struct kvm_memory_slot *slot)
{
	struct file *file = rcu_dereference_protected(slot->gmem.file,
						      !refcount_read(&kvm->users_count) ||
						      lockdep_is_held(&kvm->slots_lock));
	struct kvm_gmem_binding *b;
	struct kvm_gmem *gmem;

	/*
	 * Should the last descriptor be gone already, then kvm_gmem_release()
	 * waits for slots_lock: the file is good, whatever its reference count.
	 */
	if (!file)
		return;

	gmem = file->private_data;

	filemap_invalidate_lock(file->f_mapping);
	b = xa_erase(&gmem->bindings, slot->gmem.pgoff + slot->npages - 1);
	rcu_assign_pointer(slot->gmem.file, NULL);
	filemap_invalidate_unlock(file->f_mapping);

	kfree_rcu(b, rcu);
}

/**
 * kvm_gmem_copy_slot - let a copy of a memslot refer to the same file
 * @dest: the copy
 * @src: the memslot, bound or not
 *
 * The copy must go away before the binding does.
 *
 * Context: kvm->slots_lock held.
 */
void kvm_gmem_copy_slot(struct kvm_memory_slot *dest,
			const struct kvm_memory_slot *src)
{
	/* The lock that protects the pointer is in a VM that neither names. */
	RCU_INIT_POINTER(dest->gmem.file,
			 rcu_dereference_protected(src->gmem.file, true));
	dest->gmem.pgoff = src->gmem.pgoff;
}

/*
 * Take a folio that is locked out of the file. Nothing is in error: this is how a
 * module truncates a single folio.
 */
static void gmem_remove_folio(struct address_space *mapping, struct folio *folio)
{
	WARN_ON_ONCE(generic_error_remove_page(mapping, &folio->page));
}

/*
 * Split a huge folio that is locked. The pages stay where they are, in memory and
 * in the file, so that nobody's mapping of them is wrong.
 */
static int gmem_split_folio(struct address_space *mapping, struct folio *folio)
{
	void *cookie = folio->private;
	unsigned long i;
	int r;

	lockdep_assert_held_write(&mapping->invalidate_lock);

	r = split_folio(folio);
	if (r || !cookie)
		return r;

	/*
	 * Whoever put the folio in may want to take the pages back. From a folio
	 * that a memory error split meanwhile it gets the first page only.
	 */
	for (i = 1; i < GMEM_HUGE_PAGES; i++)
		set_page_private(nth_page(&folio->page, i), (unsigned long)cookie);

	return 0;
}

/*
 * Clear those pages of [start, end) that are of this folio. Returns the page after
 * them.
 */
static pgoff_t gmem_clear_part(struct folio *folio, pgoff_t start, pgoff_t end)
{
	end = min(end, folio_next_index(folio));

	/* What nobody has seen yet will be cleared anyway. */
	if (folio_test_uptodate(folio))
		gmem_clear_pages(folio, start - folio->index, end - start);

	return end;
}

/*
 * Punch [start, end), which is a part of one block. The pages of the block that
 * are outside must keep what they have, whatever happens.
 */
static void gmem_punch_part(struct address_space *mapping, pgoff_t start,
			    pgoff_t end)
{
	pgoff_t index = start;
	struct folio *folio;
	int tries = 0, r;
	bool wait;

	while (index < end) {
		folio = __filemap_get_folio(mapping, index, FGP_LOCK, 0);
		if (!folio) {
			index++;
			continue;
		}

		wait = false;
		if (!folio_test_large(folio)) {
			gmem_remove_folio(mapping, folio);
			index++;
		} else {
			r = gmem_split_folio(mapping, folio);
			/* A fault, say, has a reference, and gives it up soon. */
			wait = r == -EAGAIN && tries++ < GMEM_SPLIT_TRIES &&
			       !fatal_signal_pending(current);
			if (r && !wait)
				index = gmem_clear_part(folio, index, end);
		}
		folio_unlock(folio);
		folio_put(folio);

		if (wait)
			fsleep(USEC_PER_MSEC);
		else
			cond_resched();
	}
}

static long gmem_punch_hole(struct address_space *mapping, loff_t offset,
			    loff_t len)
{
	pgoff_t start, end, first, last;

	start = offset >> PAGE_SHIFT;
	end = min(offset + len, i_size_read(mapping->host)) >> PAGE_SHIFT;
	if (start >= end)
		return 0;

	filemap_invalidate_lock(mapping);

	gmem_invalidate_begin(mapping, start, end);

	/*
	 * Truncation drops a folio as a whole when it cannot split it: let it
	 * see blocks that are to go as a whole only.
	 */
	first = start;
	last = end;
	if (mapping_large_folio_support(mapping)) {
		first = round_up(start, GMEM_HUGE_PAGES);
		last = round_down(end, GMEM_HUGE_PAGES);
		gmem_punch_part(mapping, start, min(first, end));
		gmem_punch_part(mapping, max(first, last), end);
	}
	if (first < last)
		truncate_inode_pages_range(mapping, (loff_t)first << PAGE_SHIFT,
					   ((loff_t)last << PAGE_SHIFT) - 1);

	gmem_invalidate_end(mapping, start, end);

	filemap_invalidate_unlock(mapping);

	return 0;
}

/*
 * Take back those folios of [start, end) that the holder of @cookie put in, and
 * that nobody else counts on.
 */
static void gmem_undo_allocate(struct address_space *mapping, pgoff_t start,
			       pgoff_t end, void *cookie)
{
	struct folio *folio;
	pgoff_t index, next;

	for (index = start; index < end; index = next) {
		next = index + 1;
		filemap_invalidate_lock_shared(mapping);
		folio = __filemap_get_folio(mapping, index, FGP_LOCK, 0);
		if (folio) {
			next = folio_next_index(folio);
			/* What is not up to date, nobody has a mapping of. */
			if (folio->private == cookie &&
			    !folio_test_uptodate(folio))
				gmem_remove_folio(mapping, folio);

			folio_unlock(folio);
			folio_put(folio);
		}
		filemap_invalidate_unlock_shared(mapping);
		cond_resched();
	}
}

static long gmem_allocate(struct address_space *mapping, loff_t offset,
			  loff_t len)
{
	pgoff_t start = offset >> PAGE_SHIFT, end = (offset + len) >> PAGE_SHIFT;
	struct folio *folio;
	pgoff_t index, next;
	void *cookie;
	bool huge;
	long r = 0;

	if (offset + len > i_size_read(mapping->host))
		return -EINVAL;

	/* Tells what this call puts in from what others did and do. */
	cookie = (void *)atomic_long_inc_return(&gmem_allocations);

	for (index = start; index < end; index = next) {
		if (fatal_signal_pending(current)) {
			r = -EINTR;
			break;
		}

		/*
		 * Held so that a hole that is being punched comes to an end,
		 * and for one folio so that nobody waits for the whole range.
		 */
		filemap_invalidate_lock_shared(mapping);
		huge = gmem_block_fits(mapping, index, start, end);
		folio = gmem_get_folio(mapping, index, huge, cookie);
		if (IS_ERR(folio)) {
			filemap_invalidate_unlock_shared(mapping);
			r = PTR_ERR(folio);
			break;
		}

		/*
		 * Another call has put it in and may yet fail: it must not take
		 * back what this one counts on.
		 */
		if (folio->private != cookie)
			folio->private = NULL;

		next = folio_next_index(folio);
		folio_unlock(folio);
		folio_put(folio);
		filemap_invalidate_unlock_shared(mapping);
		cond_resched();
	}

	if (r)
		gmem_undo_allocate(mapping, start, index, cookie);

	return r;
}

static long kvm_gmem_fallocate(struct file *file, int mode, loff_t offset,
			       loff_t len)
{
	struct address_space *mapping = file->f_mapping;

	if (!(mode & FALLOC_FL_KEEP_SIZE))
		return -EOPNOTSUPP;

	if (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE))
		return -EOPNOTSUPP;

	if (!PAGE_ALIGNED(offset) || !PAGE_ALIGNED(len))
		return -EINVAL;

	if (mode & FALLOC_FL_PUNCH_HOLE)
		return gmem_punch_hole(mapping, offset, len);

	return gmem_allocate(mapping, offset, len);
}

/*
 * Fill the hole at @index from userspace, with a folio of this order. The data is
 * complete before the folio is in the file, and no lock is held while it is
 * copied. A page waits for a slow source; a huge folio, which is charged to nobody
 * before it is in the file, takes what is at hand.
 */
static int gmem_fill_hole(struct address_space *mapping, pgoff_t index,
			  unsigned int order, struct iov_iter *from)
{
	unsigned long i, nr = 1UL << order;
	size_t copied = 0, n;
	struct folio *folio;
	int r;

	/* Do not copy what cannot go in, the hole may be gone by then though. */
	if (!gmem_is_hole(mapping, index, index + nr))
		return -EEXIST;

	if (order && fault_in_iov_iter_readable(from, nr * PAGE_SIZE))
		return -EFAULT;

	folio = gmem_alloc_folio(mapping, order);
	if (!folio)
		return -ENOMEM;

	for (i = 0; i < nr && copied == i * PAGE_SIZE; i++) {
		if (order)
			n = copy_page_from_iter_atomic(folio_page(folio, i), 0,
						       PAGE_SIZE, from);
		else
			n = copy_page_from_iter(folio_page(folio, i), 0,
						PAGE_SIZE, from);
		copied += n;
		cond_resched();
	}

	if (copied != nr * PAGE_SIZE) {
		r = -EFAULT;
	} else {
		folio_mark_uptodate(folio);
		r = gmem_add_folio(mapping, folio, index);
	}

	if (!r) {
		folio_unlock(folio);
	} else if (copied) {
		/* It was meant for the guest only. */
		gmem_clear_pages(folio, 0, DIV_ROUND_UP(copied, PAGE_SIZE));
		iov_iter_revert(from, copied);
	}
	folio_put(folio);

	return r;
}

static ssize_t kvm_gmem_write_iter(struct kiocb *iocb, struct iov_iter *from)
{
	struct address_space *mapping = iocb->ki_filp->f_mapping;
	loff_t size = i_size_read(mapping->host);
	loff_t pos = iocb->ki_pos;
	pgoff_t index, end;
	size_t left;
	int r = 0;

	/* To append is to write past the end. */
	if (iocb->ki_flags & IOCB_APPEND)
		return -EINVAL;

	if (!PAGE_ALIGNED(pos) || !PAGE_ALIGNED(iov_iter_count(from)))
		return -EINVAL;

	if (pos > size || iov_iter_count(from) > size - pos)
		return -EINVAL;

	while ((left = iov_iter_count(from))) {
		if (fatal_signal_pending(current)) {
			r = -EINTR;
			break;
		}

		/* A block that fails as a whole goes as far as its pages do. */
		index = pos >> PAGE_SHIFT;
		end = index + (left >> PAGE_SHIFT);
		r = -ENOMEM;
		if (gmem_block_fits(mapping, index, index, end))
			r = gmem_fill_hole(mapping, index, GMEM_HUGE_ORDER, from);
		if (r)
			r = gmem_fill_hole(mapping, index, 0, from);
		if (r)
			break;

		pos += left - iov_iter_count(from);
		cond_resched();
	}

	if (pos == iocb->ki_pos)
		return r;

	swap(pos, iocb->ki_pos);
	return iocb->ki_pos - pos;
}

static int kvm_gmem_release(struct inode *inode, struct file *file)
{
	struct address_space *mapping = inode->i_mapping;
	struct kvm_gmem *gmem = file->private_data;
	struct kvm *kvm = gmem->kvm;
	struct kvm_gmem_binding *b;
	unsigned long index;

	/* slots_lock keeps the memslots that are bound. */
	mutex_lock(&kvm->slots_lock);
	filemap_invalidate_lock(mapping);

	xa_for_each(&gmem->bindings, index, b)
		rcu_assign_pointer(b->slot->gmem.file, NULL);

	gmem_unmap(gmem, 0, ULONG_MAX, true);

	spin_lock(&mapping->private_lock);
	list_del(&gmem->entry);
	spin_unlock(&mapping->private_lock);

	xa_for_each(&gmem->bindings, index, b)
		kfree_rcu(b, rcu);
	xa_destroy(&gmem->bindings);

	filemap_invalidate_unlock(mapping);
	mutex_unlock(&kvm->slots_lock);

	/*
	 * A descriptor that is a path only keeps the inode but not the module,
	 * so that KVM may be gone when the inode is looked at the next time. Let
	 * it have nothing of KVM's, neither pages nor operations.
	 */
	truncate_inode_pages(mapping, 0);
	WRITE_ONCE(mapping->a_ops, gmem->a_ops);
	WRITE_ONCE(inode->i_op, gmem->i_op);

	kfree(gmem);
	kvm_put_kvm(kvm);

	return 0;
}

static const struct file_operations kvm_gmem_fops = {
	.owner		= THIS_MODULE,
	.release	= kvm_gmem_release,
	.llseek		= generic_file_llseek,
	.write_iter	= kvm_gmem_write_iter,
	.fallocate	= kvm_gmem_fallocate,
};

/*
 * A memory error hit the page, which is locked and marked. It stays in the
 * file, for the guest's next access to find; only the mappings go.
 */
static int kvm_gmem_error_remove_page(struct address_space *mapping,
				      struct page *page)
{
	struct folio *folio = page_folio(page);
	pgoff_t index = folio->index + folio_page_idx(folio, page);
	struct kvm_gmem *gmem;

	spin_lock(&mapping->private_lock);
	rcu_read_lock();
	gmem_for_each_view(gmem, mapping)
		gmem_unmap(gmem, index, index + 1, false);
	rcu_read_unlock();
	spin_unlock(&mapping->private_lock);

	return 0;
}

/* The folio left the file, and is locked. Nobody may see what it had. */
static void kvm_gmem_free_folio(struct folio *folio)
{
	if (folio_test_uptodate(folio))
		gmem_clear_pages(folio, 0, folio_nr_pages(folio));
	folio->private = NULL;

	/*
	 * The allocator keeps back a bad page that is freed by itself, but not one
	 * in a folio that memory_failure() could not split: nobody gets any of it.
	 */
	if (folio_test_large(folio) && folio_test_has_hwpoisoned(folio))
		folio_get(folio);
}

static const struct address_space_operations kvm_gmem_aops = {
	.dirty_folio		= noop_dirty_folio,
	.error_remove_page	= kvm_gmem_error_remove_page,
	.free_folio		= kvm_gmem_free_folio,
};

static int kvm_gmem_getattr(struct user_namespace *mnt_userns,
			    const struct path *path, struct kstat *stat,
			    u32 request_mask, unsigned int query_flags)
{
	struct inode *inode = d_inode(path->dentry);

	generic_fillattr(mnt_userns, inode, stat);
	stat->blocks = READ_ONCE(inode->i_mapping->nrpages) <<
		       (PAGE_SHIFT - 9);

	return 0;
}

static int kvm_gmem_setattr(struct user_namespace *mnt_userns,
			    struct dentry *dentry, struct iattr *attr)
{
	return -EINVAL;
}

static const struct inode_operations kvm_gmem_iops = {
	.getattr	= kvm_gmem_getattr,
	.setattr	= kvm_gmem_setattr,
};

/**
 * kvm_gmem_supported_flags - what KVM_CREATE_GUEST_MEMFD can be asked for
 *
 * Return: the flags.
 */
u64 kvm_gmem_supported_flags(void)
{
	/* Without THP, the page cache does not know how to split a folio. */
	return IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) ?
	       KVM_GUEST_MEMFD_ALLOW_HUGEPAGE : 0;
}

/**
 * kvm_gmem_create - KVM_CREATE_GUEST_MEMFD
 * @kvm: the VM
 * @args: the ioctl's argument
 *
 * Return: a file descriptor, -EINVAL for an argument out of bounds, or what
 * the creation of a file fails with.
 */
int kvm_gmem_create(struct kvm *kvm, struct kvm_create_guest_memfd *args)
{
	struct address_space *mapping;
	struct kvm_gmem *gmem;
	struct inode *inode;
	struct file *file;
	loff_t size = args->size;
	bool huge = args->flags & KVM_GUEST_MEMFD_ALLOW_HUGEPAGE;
	int fd, r;

	if (args->flags & ~kvm_gmem_supported_flags() ||
	    memchr_inv(args->reserved, 0, sizeof(args->reserved)))
		return -EINVAL;

	if (size <= 0 || !IS_ALIGNED(size, huge ? PMD_SIZE : PAGE_SIZE))
		return -EINVAL;

	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		return fd;

	r = -ENOMEM;
	gmem = kzalloc(sizeof(*gmem), GFP_KERNEL_ACCOUNT);
	if (!gmem)
		goto err_fd;

	/* The secure variant makes an inode of the file's own. */
	file = anon_inode_getfile_secure("[kvm-gmem]", &kvm_gmem_fops, gmem,
					 O_RDWR, NULL);
	if (IS_ERR(file)) {
		r = PTR_ERR(file);
		goto err_gmem;
	}

	file->f_flags |= O_LARGEFILE;
	file->f_mode |= FMODE_LSEEK | FMODE_PREAD | FMODE_PWRITE |
			FMODE_ATOMIC_POS;

	inode = file_inode(file);
	gmem->i_op = inode->i_op;
	inode->i_op = &kvm_gmem_iops;
	inode->i_mode |= S_IFREG;
	inode->i_size = size;

	/*
	 * Rather than have the OOM killer take the VMM when its memory cgroup
	 * is full, fail: the VMM may know what to give up.
	 */
	mapping = inode->i_mapping;
	gmem->a_ops = mapping->a_ops;
	mapping->a_ops = &kvm_gmem_aops;
	mapping_set_gfp_mask(mapping, GFP_HIGHUSER | __GFP_RETRY_MAYFAIL |
				      __GFP_NOWARN);
	mapping_set_unmovable(mapping);
	if (huge)
		mapping_set_large_folios(mapping);

	kvm_get_kvm(kvm);
	gmem->kvm = kvm;
	xa_init_flags(&gmem->bindings, XA_FLAGS_ACCOUNT);
	list_add(&gmem->entry, &mapping->private_list);

	fd_install(fd, file);
	return fd;

err_gmem:
	kfree(gmem);
err_fd:
	put_unused_fd(fd);
	return r;
}
