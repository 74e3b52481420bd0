// SPDX-License-Identifier: GPL-2.0-only
/*
 * Operations on private memory in random order, against a model of what they do.
 *
 * The model knows of each guest page which half of it the guest sees and what the
 * shared half holds, and of each page of the file whether the file has it and what it
 * holds.  After each operation the file must hold as much as the model says, and again
 * and again the guest looks at all that there is.  It looks at no hole then, so that
 * holes stay.
 *
 * The seed is printed; with it, -s repeats what happened.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <linux/falloc.h>
#include <sys/random.h>

#include "kvm_harness.h"
#include "private_mem.h"

#define GPA		PRIVATE_MEM_GPA
#define BLOCK_PAGES	512
#define NR_PAGES	(4 * BLOCK_PAGES)	/* of the guest, and of the file */
#define SIZE		(NR_PAGES * PAGE_SIZE)

/* Each slot has its part of the guest's memory, and lies anywhere in the file. */
#define NR_SLOTS	2
#define SLOT_PAGES	(NR_PAGES / NR_SLOTS)

#define CONTROL_SLOT	(PRIVATE_MEM_SLOT + NR_SLOTS)
#define CONTROL_GPA	(GPA + 0x40000000ull)

#define RANDOM_TIMEOUT	600

/*
 * The guest.
 */

enum { CALL_NEXT = 1, CALL_FAIL };

enum { SKIP_PAGE, CHECK_PAGE, WRITE_PAGE };

struct control {
	uint64_t gpa;
	uint64_t nr;
	struct {
		uint64_t what;
		uint64_t val;
	} pages[NR_PAGES];
};

/* Enough to tell pages apart; one that should be zero is zero all over. */
static const int guest_words[] = { 0, 256, 511 };

static void guest_check(uint64_t index, uint64_t *page, uint64_t val)
{
	uint64_t seen;
	int i;

	if (!val) {
		for (i = 0; i < 512; i++) {
			seen = READ_ONCE(page[i]);
			if (seen)
				guest_call(CALL_FAIL, index, i, seen);
		}
		return;
	}

	for (i = 0; i < ARRAY_SIZE(guest_words); i++) {
		seen = READ_ONCE(page[guest_words[i]]);
		if (seen != val)
			guest_call(CALL_FAIL, index, guest_words[i], seen);
	}
}

static void guest_code(void)
{
	struct control *c = (void *)CONTROL_GPA;
	uint64_t i, val, *page;
	int j;

	for (;;) {
		guest_call(CALL_NEXT, 0, 0, 0);

		for (i = 0; i < c->nr; i++) {
			page = (void *)(c->gpa + i * PAGE_SIZE);
			val = c->pages[i].val;
			switch (c->pages[i].what) {
			case CHECK_PAGE:
				guest_check(i, page, val);
				break;
			case WRITE_PAGE:
				for (j = 0; j < ARRAY_SIZE(guest_words); j++)
					WRITE_ONCE(page[guest_words[j]], val);
				break;
			}
		}
	}
}

/*
 * The model.
 */

struct slot {
	bool bound;
	int gfn;		/* counted from GPA */
	int nr;
	int index;		/* in the file */
};

struct model {
	uint64_t flags;		/* of the file */
	bool aligned;		/* whether slots and file agree modulo 2 MiB */

	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct control *control;
	int memfd;
	uint8_t *shared;	/* the shared half of all slots */

	struct slot slots[NR_SLOTS];
	bool private[NR_PAGES];
	uint64_t shared_val[NR_PAGES];
	bool present[NR_PAGES];		/* by the page of the file */
	uint64_t val[NR_PAGES];
	uint64_t nr_vals;

	uint64_t rng;
	int op;
	char what[96];
	int nr_huge;		/* allocations by a fault of the guest */
};

FIXTURE(random) {
	struct model model;
};

FIXTURE_VARIANT(random) {
	uint64_t flags;
	bool aligned;
};

FIXTURE_VARIANT_ADD(random, small) {
	.aligned = true,
};

FIXTURE_VARIANT_ADD(random, small_misaligned) {
};

FIXTURE_VARIANT_ADD(random, huge) {
	.flags = KVM_GUEST_MEMFD_ALLOW_HUGEPAGE,
	.aligned = true,
};

FIXTURE_VARIANT_ADD(random, huge_misaligned) {
	.flags = KVM_GUEST_MEMFD_ALLOW_HUGEPAGE,
};

static uint64_t seed;
static int nr_ops = 400;

/* What it takes to repeat it, and how far it got. */
static const char *where(struct model *m)
{
	static char buf[192];

	snprintf(buf, sizeof(buf), "seed 0x%lx, operation %d (%s)", seed, m->op, m->what);
	return buf;
}

#define FAIL_IF(m, cond, fmt, ...)					\
do {									\
	if (cond)							\
		TEST_FAIL("%s: " fmt, where(m), ##__VA_ARGS__);		\
} while (0)

static uint64_t rng(struct model *m, uint64_t below)
{
	m->rng ^= m->rng << 13;
	m->rng ^= m->rng >> 7;
	m->rng ^= m->rng << 17;
	return m->rng % below;
}

/*
 * A part of [0, limit): of a page, some pages, blocks, or anything, with a liking for
 * the boundaries of blocks.
 */
static void random_range(struct model *m, int limit, int *first, int *nr)
{
	switch (rng(m, 4)) {
	case 0:
		*first = rng(m, limit);
		*nr = 1;
		break;
	case 1:
		*first = rng(m, limit);
		*nr = 1 + rng(m, 40);
		break;
	case 2:
		*first = rng(m, limit) / BLOCK_PAGES * BLOCK_PAGES;
		*nr = BLOCK_PAGES * (1 + rng(m, 2));
		break;
	default:
		*first = rng(m, limit);
		*nr = 1 + rng(m, limit);
		break;
	}
	*nr = min(*nr, limit - *first);
}

static int count_present(struct model *m, int first, int nr)
{
	int i, present = 0;

	for (i = first; i < first + nr; i++)
		present += m->present[i];
	return present;
}

static int held(struct model *m)
{
	return guest_memfd_held(m->memfd) / PAGE_SIZE;
}

static void check_held(struct model *m)
{
	int want = count_present(m, 0, NR_PAGES), seen = held(m);

	FAIL_IF(m, want != seen, "expected %d pages in the file, found %d", want, seen);
}

/*
 * A fault may take all of a block that the file has nothing of, if all of it is private
 * and the guest has all of it in this slot.
 */
static bool may_be_huge(struct model *m, struct slot *slot, int block)
{
	int index = block * BLOCK_PAGES, i;

	if (!m->flags || count_present(m, index, BLOCK_PAGES))
		return false;
	if (index < slot->index || index + BLOCK_PAGES > slot->index + slot->nr)
		return false;
	for (i = 0; i < BLOCK_PAGES; i++)
		if (!m->private[slot->gfn + index - slot->index + i])
			return false;
	return true;
}

/*
 * Has the guest do what is in control->pages, which is consecutive pages of the slot
 * that lie in one block of the file.
 */
static void run_guest(struct model *m, struct slot *slot, int gfn, int nr)
{
	int index = slot->index + gfn - slot->gfn, block = index / BLOCK_PAGES;
	bool may_huge = may_be_huge(m, slot, block);
	int i, before = held(m), want = 0, seen, mapped;
	struct guest_call call;

	m->control->gpa = GPA + gfn * PAGE_SIZE;
	m->control->nr = nr;

	i = _vcpu_run(m->vcpu);
	FAIL_IF(m, i, "guest access to [%d, %d) failed, errno: %i exit: %s 0x%llx", gfn, gfn + nr,
		errno, exit_reason_str(m->vcpu->run->exit_reason),
		(m->vcpu->run->memory_fault.gpa - GPA) / PAGE_SIZE);
	FAIL_IF(m, !vcpu_get_guest_call(m->vcpu, &call), "unexpected exit %s",
		exit_reason_str(m->vcpu->run->exit_reason));
	i = call.args[0];
	FAIL_IF(m, call.nr == CALL_FAIL,
		"guest page %d (%s), page %d of the file: expected 0x%lx in word %lu, found 0x%lx",
		gfn + i, m->private[gfn + i] ? "private" : "shared", index + i,
		m->control->pages[i].val, call.args[1], call.args[2]);

	for (i = 0; i < nr; i++) {
		uint64_t what = m->control->pages[i].what;

		if (what == WRITE_PAGE && !m->private[gfn + i])
			m->shared_val[gfn + i] = m->control->pages[i].val;
		if (what == SKIP_PAGE || !m->private[gfn + i])
			continue;
		if (what == WRITE_PAGE)
			m->val[index + i] = m->control->pages[i].val;
		want += !m->present[index + i];
		m->present[index + i] = true;
	}

	seen = held(m) - before;
	mapped = vm_get_stat(m->vm, "pages_2m");
	if (may_huge && want && want < BLOCK_PAGES && seen == BLOCK_PAGES) {
		memset(&m->present[block * BLOCK_PAGES], true, BLOCK_PAGES);
		want = BLOCK_PAGES;
		m->nr_huge++;
		FAIL_IF(m, m->aligned && !mapped, "a block was taken and is not mapped huge");
	}
	FAIL_IF(m, seen != want, "guest access to [%d, %d) took %d pages, expected %d%s", gfn,
		gfn + nr, seen, want, may_huge ? " or a block" : "");
	FAIL_IF(m, mapped && (!m->flags || !m->aligned), "%d huge mappings", mapped);
}

enum { LOOK, TOUCH, WRITE };

/* The guest looks at what is in the pages of a slot; or touches or writes all of them. */
static void guest_access(struct model *m, struct slot *slot, int gfn, int nr, int how)
{
	int end = gfn + nr, index, n, i;

	for (; gfn < end; gfn += n) {
		index = slot->index + gfn - slot->gfn;
		n = min(end - gfn, BLOCK_PAGES - index % BLOCK_PAGES);
		for (i = 0; i < n; i++) {
			bool private = m->private[gfn + i];

			m->control->pages[i].what = CHECK_PAGE;
			m->control->pages[i].val = private ? m->val[index + i] :
							     m->shared_val[gfn + i];
			if (how == LOOK && private && !m->present[index + i])
				m->control->pages[i].what = SKIP_PAGE;
			if (how == WRITE) {
				m->control->pages[i].what = WRITE_PAGE;
				m->control->pages[i].val = ++m->nr_vals;
			}
		}
		run_guest(m, slot, gfn, n);
	}
}

static void check_all(struct model *m)
{
	uint64_t *words;
	int i, j;

	for (i = 0; i < NR_SLOTS; i++)
		if (m->slots[i].bound)
			guest_access(m, &m->slots[i], m->slots[i].gfn, m->slots[i].nr, LOOK);

	for (i = 0; i < NR_PAGES; i++) {
		words = (uint64_t *)(m->shared + i * PAGE_SIZE);
		for (j = 0; j < ARRAY_SIZE(guest_words); j++)
			FAIL_IF(m, words[guest_words[j]] != m->shared_val[i],
				"shared half of page %d: expected 0x%lx, found 0x%lx", i,
				m->shared_val[i], words[guest_words[j]]);
	}
	check_held(m);
}

/*
 * The operations.
 */

static void op_convert(struct model *m)
{
	int first, nr, i;
	bool private;

	random_range(m, NR_PAGES, &first, &nr);
	private = rng(m, 3);
	snprintf(m->what, sizeof(m->what), "make [%d, %d) %s", first, first + nr,
		 private ? "private" : "shared");

	vm_set_memory_attributes(m->vm, GPA + first * PAGE_SIZE, nr * PAGE_SIZE,
				 private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0);
	for (i = first; i < first + nr; i++)
		m->private[i] = private;
}

static void op_punch(struct model *m)
{
	int first, nr;

	random_range(m, NR_PAGES, &first, &nr);
	snprintf(m->what, sizeof(m->what), "punch [%d, %d)", first, first + nr);

	guest_memfd_punch(m->memfd, first * PAGE_SIZE, nr * PAGE_SIZE);
	memset(&m->present[first], false, nr * sizeof(*m->present));
	memset(&m->val[first], 0, nr * sizeof(*m->val));
}

static void op_allocate(struct model *m)
{
	int first, nr;

	random_range(m, NR_PAGES, &first, &nr);
	snprintf(m->what, sizeof(m->what), "allocate [%d, %d)", first, first + nr);

	guest_memfd_allocate(m->memfd, first * PAGE_SIZE, nr * PAGE_SIZE);
	memset(&m->present[first], true, nr * sizeof(*m->present));
}

static void op_pwrite(struct model *m)
{
	int first, nr, written, i, j;
	uint64_t (*data)[512];
	ssize_t ret;

	random_range(m, NR_PAGES, &first, &nr);
	snprintf(m->what, sizeof(m->what), "pwrite [%d, %d)", first, first + nr);

	data = calloc(nr, PAGE_SIZE);
	TEST_ASSERT(data, "Insufficient memory");
	for (i = 0; i < nr; i++)
		for (j = 0; j < ARRAY_SIZE(guest_words); j++)
			data[i][guest_words[j]] = m->nr_vals + 1 + i;

	for (written = 0; written < nr && !m->present[first + written]; written++) {
		m->present[first + written] = true;
		m->val[first + written] = ++m->nr_vals;
	}

	ret = pwrite(m->memfd, data, nr * PAGE_SIZE, first * PAGE_SIZE);
	FAIL_IF(m, written && ret != written * PAGE_SIZE,
		"expected %d pages, got %ld bytes, errno: %i", written, ret, errno);
	FAIL_IF(m, !written && (ret != -1 || errno != EEXIST),
		"expected EEXIST, rc: %ld errno: %i", ret, errno);
	free(data);
}

static void op_guest(struct model *m)
{
	struct slot *slot = &m->slots[rng(m, NR_SLOTS)];
	bool write = rng(m, 2);
	int first, nr;

	if (!slot->bound)
		return;

	random_range(m, slot->nr, &first, &nr);
	first += slot->gfn;
	snprintf(m->what, sizeof(m->what), "guest %s [%d, %d)", write ? "writes" : "reads",
		 first, first + nr);
	guest_access(m, slot, first, nr, write ? WRITE : TOUCH);
}

/* A private page of no slot exits, and the guest goes on where it was. */
static void op_fault(struct model *m)
{
	struct kvm_regs regs;
	int gfn = rng(m, NR_PAGES), i, ret;

	for (i = 0; i < NR_SLOTS; i++)
		if (m->slots[i].bound && gfn >= m->slots[i].gfn &&
		    gfn < m->slots[i].gfn + m->slots[i].nr)
			return;
	if (!m->private[gfn])
		return;
	snprintf(m->what, sizeof(m->what), "guest reads %d, which is in no slot", gfn);

	m->control->gpa = GPA + gfn * PAGE_SIZE;
	m->control->nr = 1;
	m->control->pages[0].what = CHECK_PAGE;
	vcpu_regs_get(m->vcpu, &regs);
	ret = _vcpu_run(m->vcpu);
	FAIL_IF(m, !vcpu_is_private_fault(m->vcpu, ret, errno, m->control->gpa),
		"expected a fault, rc: %d errno: %i exit: %s", ret, errno,
		exit_reason_str(m->vcpu->run->exit_reason));
	vcpu_regs_set(m->vcpu, &regs);
}

/* The process writes to the shared half, or gives it up. */
static void op_shared(struct model *m)
{
	bool give_up = rng(m, 2);
	uint64_t *words;
	int first, nr, i, j;

	random_range(m, NR_PAGES, &first, &nr);
	snprintf(m->what, sizeof(m->what), "%s shared half of [%d, %d)",
		 give_up ? "give up" : "write to", first, first + nr);

	if (give_up) {
		TEST_ASSERT(!madvise(m->shared + first * PAGE_SIZE, nr * PAGE_SIZE, MADV_DONTNEED),
			    __KVM_SYSCALL_ERROR("madvise()", -1));
		memset(&m->shared_val[first], 0, nr * sizeof(*m->shared_val));
		return;
	}

	for (i = first; i < first + nr; i++) {
		words = (uint64_t *)(m->shared + i * PAGE_SIZE);
		m->shared_val[i] = ++m->nr_vals;
		for (j = 0; j < ARRAY_SIZE(guest_words); j++)
			words[guest_words[j]] = m->shared_val[i];
	}
}

static void slot_set(struct model *m, int i, uint64_t nr)
{
	struct slot *slot = &m->slots[i];

	vm_set_user_memory_region2(m->vm, PRIVATE_MEM_SLOT + i, KVM_MEM_GUEST_MEMFD,
				   GPA + slot->gfn * PAGE_SIZE, nr * PAGE_SIZE,
				   m->shared + slot->gfn * PAGE_SIZE, m->memfd,
				   slot->index * PAGE_SIZE);
	slot->bound = nr;
}

/* Deletes a slot and, mostly, puts it elsewhere in its part of the guest and in the file. */
static void op_rebind(struct model *m)
{
	int i = rng(m, NR_SLOTS), j, tries;
	struct slot *slot = &m->slots[i], *other;
	bool is_free;

	if (slot->bound)
		slot_set(m, i, 0);
	snprintf(m->what, sizeof(m->what), "unbind slot %d", i);
	if (!rng(m, 8))
		return;

	for (tries = 0; tries < 20; tries++) {
		slot->gfn = i * SLOT_PAGES;
		slot->nr = SLOT_PAGES;
		if (rng(m, 2)) {
			random_range(m, SLOT_PAGES, &slot->gfn, &slot->nr);
			slot->gfn += i * SLOT_PAGES;
		}

		slot->index = rng(m, NR_PAGES - slot->nr + 1);
		if (m->aligned)
			slot->index = slot->index / BLOCK_PAGES * BLOCK_PAGES +
				      slot->gfn % BLOCK_PAGES;
		else if (slot->index % BLOCK_PAGES == slot->gfn % BLOCK_PAGES)
			continue;

		is_free = slot->index + slot->nr <= NR_PAGES;
		for (j = 0; j < NR_SLOTS; j++) {
			other = &m->slots[j];
			if (other->bound && slot->index < other->index + other->nr &&
			    other->index < slot->index + slot->nr)
				is_free = false;
		}
		if (!is_free)
			continue;

		snprintf(m->what, sizeof(m->what), "bind [%d, %d) to [%d, %d) of the file",
			 slot->gfn, slot->gfn + slot->nr, slot->index, slot->index + slot->nr);
		slot_set(m, i, slot->nr);
		return;
	}
}

/* What chance may not come upon: a page of a block that is private and has nothing yet. */
static void op_first(struct model *m)
{
	struct slot *slot = &m->slots[0];

	snprintf(m->what, sizeof(m->what), "touch the first block");
	vm_mem_set_private(m->vm, GPA, SIZE);
	memset(m->private, true, sizeof(m->private));
	slot->nr = SLOT_PAGES;
	slot->index = m->aligned ? 0 : 1;
	slot_set(m, 0, slot->nr);
	guest_access(m, slot, BLOCK_PAGES + 7, 1, WRITE);
}

static void do_operation(struct model *m)
{
	switch (rng(m, 16)) {
	case 0 ... 2:
		op_convert(m);
		break;
	case 3 ... 4:
		op_punch(m);
		break;
	case 5:
		op_allocate(m);
		break;
	case 6 ... 7:
		op_pwrite(m);
		break;
	case 8 ... 12:
		op_guest(m);
		break;
	case 13:
		op_shared(m);
		break;
	case 14:
		op_fault(m);
		break;
	case 15:
		op_rebind(m);
		break;
	}
}

FIXTURE_SETUP(random)
{
	const uint64_t pages = DIV_ROUND_UP(sizeof(struct control), PAGE_SIZE);
	struct model *m = &self->model;
	struct guest_call call;

	m->flags = variant->flags;
	m->aligned = variant->aligned;
	m->rng = seed ?: 1;
	if (m->flags && !host_has_huge_pages())
		return;

	m->vm = private_mem_vm_create(1, NR_PAGES + pages, guest_code, &m->vcpu);
	vm_userspace_mem_region_add(m->vm, VM_MEM_SRC_ANONYMOUS, CONTROL_GPA, CONTROL_SLOT,
				    pages, 0);
	virt_map(m->vm, CONTROL_GPA, CONTROL_GPA, pages);
	m->control = addr_gpa2hva(m->vm, CONTROL_GPA);
	virt_map(m->vm, GPA, GPA, NR_PAGES);

	m->memfd = vm_create_guest_memfd(m->vm, SIZE, m->flags);
	m->shared = shared_mem_alloc_at(SIZE, 0);
	madvise(m->shared, SIZE, m->flags && m->aligned ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	dirty_free_memory(4 * SIZE);

	TEST_ASSERT(!_vcpu_run(m->vcpu) && vcpu_get_guest_call(m->vcpu, &call) &&
		    call.nr == CALL_NEXT, "Guest did not start");
}

FIXTURE_TEARDOWN(random)
{
	if (!self->model.vm)
		return;
	close(self->model.memfd);
	kvm_vm_free(self->model.vm);
}

TEST_F_TIMEOUT(random, operations, RANDOM_TIMEOUT)
{
	struct model *m = &self->model;

	if (!m->vm)
		SKIP(return, "The host has no huge pages");

	TH_LOG("seed 0x%lx, %d operations", seed, nr_ops);
	op_first(m);
	for (m->op = 0; m->op < nr_ops; m->op++) {
		do_operation(m);
		check_held(m);
		if (!rng(m, 4))
			check_all(m);
	}
	check_all(m);

	if (m->flags) {
		EXPECT_LT(0, m->nr_huge)
			TH_LOG("the guest has never taken a block");
	}
}

static void help(const char *name)
{
	printf("usage: %s [-h] [-n operations] [-s seed]\n"
	       " -n: how many operations (default %d)\n"
	       " -s: the seed of an earlier run, to repeat it (default: a new one)\n",
	       name, nr_ops);
	exit(0);
}

int main(int argc, char **argv)
{
	int opt;

	TEST_ASSERT(getrandom(&seed, sizeof(seed), 0) == sizeof(seed), "getrandom() failed");

	while ((opt = getopt(argc, argv, "hn:s:")) != -1) {
		switch (opt) {
		case 'n':
			nr_ops = atoi(optarg);
			TEST_ASSERT(nr_ops > 0, "Expected a number of operations, got '%s'",
				    optarg);
			break;
		case 's':
			seed = strtoul(optarg, NULL, 0);
			break;
		default:
			help(argv[0]);
		}
	}

	return test_harness_run(argc, argv);
}
