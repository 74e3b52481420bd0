// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM's own access to private memory, on behalf of the guest: what it reads and
 * writes when it emulates an instruction or walks the guest's page tables. All
 * of it goes to the page that the guest sees, or nowhere: a page that is private
 * is never looked for at userspace_addr.
 *
 * The contents are reached with the folio locked. A folio leaves its file with
 * the lock held too, and is cleared then, so what is written here is never left
 * behind in a page that belongs to somebody else. A page that is converted or
 * punched meanwhile has had its last access: the guest's instruction that asked
 * for it was under way when that happened, and could have come first.
 *
 * Who needs a page for longer than one access, and other guest memory meanwhile,
 * cannot have its folio locked: it may be the same one. He has a reference, and
 * the page is cleared once more if it left the file before he gave that up. A
 * punch that could not split the huge page leaves it in the file, cleared, and
 * what he writes after that is there, where the guest sees it and nobody else.
 */

#include <linux/highmem.h>
#include <linux/kvm_guest_memfd.h>
#include <linux/kvm_host.h>
#include <linux/kvm_private_access.h>
#include <linux/pagemap.h>

#include <asm/unaligned.h>

static bool private_reachable(struct kvm *kvm, struct kvm_memory_slot *slot)
{
	/* There may be memory that even the host's kernel cannot read. */
	return kvm_arch_private_mem_accessible(kvm) &&
	       slot && !(slot->flags & KVM_MEMSLOT_INVALID);
}

/**
 * kvm_private_lock - get at a private page for more than one access
 * @kvm: the VM
 * @slot: the memslot of @gfn, may be NULL
 * @gfn: the page
 * @atomic: whether the caller cannot sleep; a page that is not in the file, or
 *          that is in use, cannot be had then
 * @folio: set to the folio of the page, locked
 *
 * The page stays the one that the guest has, or had if it is converted, until
 * kvm_private_unlock(). It cannot be punched meanwhile, so be quick, and touch no
 * user memory.
 *
 * Context: may sleep unless @atomic, but not until kvm_private_unlock(). SRCU
 * protects @slot.
 * Return: the address of the page, or an ERR_PTR.
 */
void *kvm_private_lock(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t gfn,
		       bool atomic, struct folio **folio)
{
	if (!private_reachable(kvm, slot))
		return ERR_PTR(-EFAULT);

	*folio = kvm_gmem_lock_folio(slot, gfn, atomic);
	if (IS_ERR(*folio))
		return ERR_CAST(*folio);

	return kmap_local_page(folio_file_page(*folio, kvm_gmem_index(slot, gfn)));
}

/* An entry of a page table is read at once, for vCPUs may be writing it. */
static void private_load(void *data, const void *from, int len)
{
	if (len == sizeof(u64) && IS_ALIGNED((unsigned long)from, sizeof(u64)))
		put_unaligned(READ_ONCE(*(const u64 *)from), (u64 *)data);
	else if (len == sizeof(u32) && IS_ALIGNED((unsigned long)from, sizeof(u32)))
		put_unaligned(READ_ONCE(*(const u32 *)from), (u32 *)data);
	else
		memcpy(data, from, len);
}

/**
 * kvm_private_store - write to a private page that is locked
 * @to: where to, in what kvm_private_lock() returned
 * @data: where to copy from
 * @len: how many bytes, all in the page; 4 or 8 of them that are aligned are
 *       written at once, for others read them
 */
void kvm_private_store(void *to, const void *data, int len)
{
	if (len == sizeof(u64) && IS_ALIGNED((unsigned long)to, sizeof(u64)))
		WRITE_ONCE(*(u64 *)to, get_unaligned((const u64 *)data));
	else if (len == sizeof(u32) && IS_ALIGNED((unsigned long)to, sizeof(u32)))
		WRITE_ONCE(*(u32 *)to, get_unaligned((const u32 *)data));
	else
		memcpy(to, data, len);
}

/**
 * kvm_private_unlock - have done with a private page
 * @page: what kvm_private_lock() returned
 * @folio: the folio that it gave
 */
void kvm_private_unlock(void *page, struct folio *folio)
{
	kunmap_local(page);
	folio_unlock(folio);
	folio_put(folio);
}

/**
 * kvm_private_read - read from a private page
 * @kvm: the VM
 * @slot: the memslot of @gfn, may be NULL
 * @gfn: the page
 * @data: where to copy to
 * @offset: where in the page to start, in bytes
 * @len: how many bytes, all in the page; 4 or 8 of them that are aligned are
 *       read at once
 * @atomic: whether the caller cannot sleep; a page that is not in the file, or
 *          that is in use, cannot be read then
 *
 * Context: SRCU protects @slot.
 * Return: 0 or -errno.
 */
int kvm_private_read(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t gfn,
		     void *data, int offset, int len, bool atomic)
{
	struct folio *folio;
	void *page;

	page = kvm_private_lock(kvm, slot, gfn, atomic, &folio);
	if (IS_ERR(page))
		return PTR_ERR(page);

	private_load(data, page + offset, len);
	kvm_private_unlock(page, folio);

	return 0;
}

/**
 * kvm_private_write - write to a private page
 * @kvm: the VM
 * @slot: the memslot of @gfn, may be NULL
 * @gfn: the page
 * @data: where to copy from
 * @offset: where in the page to start, in bytes
 * @len: how many bytes, all in the page; 4 or 8 of them that are aligned are
 *       written at once
 *
 * Context: may sleep. SRCU protects @slot.
 * Return: 0 or -errno.
 */
int kvm_private_write(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t gfn,
		      const void *data, int offset, int len)
{
	struct folio *folio;
	void *page;

	page = kvm_private_lock(kvm, slot, gfn, false, &folio);
	if (IS_ERR(page))
		return PTR_ERR(page);

	kvm_private_store(page + offset, data, len);
	kvm_private_unlock(page, folio);

	return 0;
}

/**
 * kvm_private_get_page - keep a private page at hand for a while
 * @kvm: the VM
 * @slot: the memslot of @gfn, may be NULL
 * @gfn: the page
 *
 * The page may leave the file at any time, and stays with the caller then. Until
 * kvm_private_put_page(), a huge folio that it is part of cannot be split, which
 * punching waits for: mind to be quick.
 *
 * Context: may sleep. SRCU protects @slot.
 * Return: the page, with a reference, or an ERR_PTR.
 */
struct page *kvm_private_get_page(struct kvm *kvm, struct kvm_memory_slot *slot,
				  gfn_t gfn)
{
	struct folio *folio;
	struct page *page;
	void *address;

	address = kvm_private_lock(kvm, slot, gfn, false, &folio);
	if (IS_ERR(address))
		return ERR_CAST(address);

	page = folio_file_page(folio, kvm_gmem_index(slot, gfn));
	kunmap_local(address);
	folio_unlock(folio);

	return page;
}

/**
 * kvm_private_put_page - let go of a private page
 * @page: what kvm_private_get_page() returned
 *
 * Context: may sleep.
 */
void kvm_private_put_page(struct page *page)
{
	struct folio *folio = page_folio(page);

	/*
	 * It was cleared when it left the file, but has been written to since,
	 * perhaps. It is in no other file: the reference kept it from that.
	 */
	folio_lock(folio);
	if (!folio->mapping && !PageHWPoison(page))
		clear_highpage(page);
	folio_unlock(folio);

	folio_put(folio);
}

#define private_try_cmpxchg(type, ptr, old, new)				\
	try_cmpxchg((type *)(ptr), (type *)(old), *(const type *)(new))

/**
 * kvm_private_cmpxchg - compare and exchange in a private page
 * @kvm: the VM
 * @slot: the memslot of @gfn, may be NULL
 * @gfn: the page
 * @offset: where in the page, in bytes; a multiple of @len, or at least such
 *          that the operand does not leave the page
 * @old: the value expected, and the one that was found
 * @new: the value to store
 * @len: size of the operand: 1, 2, 4 or 8 bytes
 *
 * Atomic towards vCPUs that run.
 *
 * Context: may sleep. SRCU protects @slot.
 * Return: 0 if the values were exchanged, 1 if the old one was not as expected
 * or @gfn is not private any more, or -errno.
 */
int kvm_private_cmpxchg(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t gfn,
			int offset, void *old, const void *new, int len)
{
	struct folio *folio;
	bool done = false;
	void *page;

	page = kvm_private_lock(kvm, slot, gfn, false, &folio);
	if (IS_ERR(page))
		return PTR_ERR(page);

	if (!kvm_gfn_is_private(kvm, gfn))
		goto out;

	switch (len) {
	case 1:
		done = private_try_cmpxchg(u8, page + offset, old, new);
		break;
	case 2:
		done = private_try_cmpxchg(u16, page + offset, old, new);
		break;
	case 4:
		done = private_try_cmpxchg(u32, page + offset, old, new);
		break;
	case 8:
		done = private_try_cmpxchg(u64, page + offset, old, new);
		break;
	default:
		WARN_ON_ONCE(1);
	}
out:
	kvm_private_unlock(page, folio);

	return !done;
}

/**
 * kvm_private_pfn - find the page frame of a private page
 * @kvm: the VM
 * @slot: the memslot of @gfn, may be NULL
 * @gfn: the page
 *
 * For a cache that every invalidation of @gfn drops: the reference that comes
 * with the page frame keeps the memory, but not its place in the guest.
 *
 * Context: may sleep. SRCU protects @slot.
 * Return: the page frame, with a reference, or KVM_PFN_ERR_FAULT.
 */
kvm_pfn_t kvm_private_pfn(struct kvm *kvm, struct kvm_memory_slot *slot,
			  gfn_t gfn)
{
	unsigned int order;
	kvm_pfn_t pfn;

	if (!private_reachable(kvm, slot) ||
	    kvm_gmem_get_pfn(slot, gfn, &pfn, &order))
		return KVM_PFN_ERR_FAULT;

	return pfn;
}
