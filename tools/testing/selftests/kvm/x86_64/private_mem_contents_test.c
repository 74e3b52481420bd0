// SPDX-License-Identifier: GPL-2.0-only
/*
 * What private memory holds: zeroes, what the VMM put there before the guest
 * had it, and what the guest wrote; never what somebody had before.
 */
#define _GNU_SOURCE

#include "kvm_harness.h"
#include "private_mem.h"

#define SLOT		PRIVATE_MEM_SLOT
#define GPA		PRIVATE_MEM_GPA

/* Some pages of a block, a whole one, some pages of the next. */
#define NR_PAGES	(512 + 2 * 24)
#define SIZE		(NR_PAGES * PAGE_SIZE)
#define FIRST_GPA	(GPA + (512 - 24) * PAGE_SIZE)

#define OTHER_SLOT	(SLOT + 1)
#define OTHER_GPA	(GPA + 0x1000000ull)
#define OTHER_SIZE	(16 * PAGE_SIZE)

#define CONTENTS_TIMEOUT 120

FIXTURE(contents) {
	struct private_mem private_mem;
};

/* The shared half is full of what must never be seen in the private one. */
FIXTURE_SETUP(contents)
{
	private_mem_create(&self->private_mem, FIRST_GPA, SIZE, 0x2000000 / PAGE_SIZE);
	memset(self->private_mem.shared, 0xee, SIZE);
	/* Whoever gets memory now that was not cleared notices. */
	dirty_free_memory(8 * SIZE);
}

FIXTURE_TEARDOWN(contents)
{
	private_mem_free(&self->private_mem);
}

#define TEST_CONTENTS(name)	TEST_F_MEMBER(contents, name, private_mem, CONTENTS_TIMEOUT)

static uint64_t page_gpa(int page)
{
	return FIRST_GPA + page * PAGE_SIZE;
}

static uint64_t pattern(int page, int gen)
{
	return 0xa5ull << 56 | (uint64_t)gen << 32 | (page + 1);
}

static void fill_pages(struct private_mem *self, int first, int nr, int gen)
{
	int i;

	for (i = first; i < first + nr; i++)
		vcpu_fill(self->vcpu, page_gpa(i), pattern(i, gen), PAGE_SIZE);
}

static void check_pages(struct private_mem *self, int first, int nr, int gen)
{
	int i;

	for (i = first; i < first + nr; i++)
		vcpu_check(self->vcpu, page_gpa(i), gen ? pattern(i, gen) : 0, PAGE_SIZE);
}

static void punch_pages(struct private_mem *self, int first, int nr)
{
	guest_memfd_punch(self->memfd, first * PAGE_SIZE, nr * PAGE_SIZE);
}

static void alloc_pages(struct private_mem *self, int first, int nr)
{
	int ret = fallocate(self->memfd, FALLOC_FL_KEEP_SIZE, first * PAGE_SIZE, nr * PAGE_SIZE);

	TEST_ASSERT(!ret, __KVM_SYSCALL_ERROR("fallocate()", ret));
}

static void write_pages(struct private_mem *self, int first, int nr, int gen)
{
	uint64_t *buf = malloc(nr * PAGE_SIZE);
	int i;

	for (i = 0; i < nr * PAGE_SIZE / 8; i++)
		buf[i] = pattern(first + i / (PAGE_SIZE / 8), gen);
	guest_memfd_write(self->memfd, buf, nr * PAGE_SIZE, first * PAGE_SIZE);
	free(buf);
}

static void check_shared_untouched(struct private_mem *self)
{
	uint8_t *p = self->shared;
	uint64_t i;

	for (i = 0; i < SIZE; i++)
		TEST_ASSERT(p[i] == 0xee, "Expected 0xee in the shared half at 0x%lx, found 0x%x",
			    i, p[i]);
}

TEST_CONTENTS(untouched_is_zero)
{
	check_pages(self, 0, NR_PAGES, 0);
	check_shared_untouched(self);
}

TEST_CONTENTS(fallocated_is_zero)
{
	alloc_pages(self, 0, NR_PAGES);
	check_pages(self, 0, NR_PAGES, 0);
}

/* Allocating what is there already changes nothing. */
TEST_CONTENTS(fallocate_keeps)
{
	fill_pages(self, 0, NR_PAGES, 1);
	alloc_pages(self, 0, NR_PAGES);
	check_pages(self, 0, NR_PAGES, 1);
}

TEST_CONTENTS(guest_reads_what_it_wrote)
{
	fill_pages(self, 0, NR_PAGES, 1);
	check_pages(self, 0, NR_PAGES, 1);
	check_shared_untouched(self);
}

TEST_CONTENTS(punched_is_zero)
{
	static const struct {
		int first, nr;
	} punches[] = {
		{ 0, 1 }, { NR_PAGES - 1, 1 }, { 20, 8 }, { 24, 512 }, { 100, 1 }, { 0, NR_PAGES },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(punches); i++) {
		int first = punches[i].first, nr = punches[i].nr;

		fill_pages(self, 0, NR_PAGES, i + 1);
		punch_pages(self, first, nr);
		check_pages(self, 0, first, i + 1);
		check_pages(self, first, nr, 0);
		check_pages(self, first + nr, NR_PAGES - first - nr, i + 1);
	}
	check_shared_untouched(self);
}

/* Pages go through the allocator and come back without what was in them. */
TEST_CONTENTS(reallocated_is_zero)
{
	int i;

	for (i = 1; i <= 4; i++) {
		check_pages(self, 0, NR_PAGES, 0);
		fill_pages(self, 0, NR_PAGES, i);
		punch_pages(self, 0, NR_PAGES);
		if (i & 1)
			alloc_pages(self, 0, NR_PAGES);
	}
	check_pages(self, 0, NR_PAGES, 0);
}

TEST_CONTENTS(punch_past_the_end)
{
	fill_pages(self, 0, NR_PAGES, 1);
	punch_pages(self, NR_PAGES, 1024);
	check_pages(self, 0, NR_PAGES, 1);

	punch_pages(self, NR_PAGES - 1, 1024);
	check_pages(self, 0, NR_PAGES - 1, 1);
	check_pages(self, NR_PAGES - 1, 1, 0);
}

TEST_CONTENTS(guest_sees_pwrite)
{
	write_pages(self, 3, 1, 1);
	write_pages(self, 20, 520, 1);

	check_pages(self, 0, 3, 0);
	check_pages(self, 3, 1, 1);
	check_pages(self, 4, 16, 0);
	check_pages(self, 20, 520, 1);
	check_pages(self, 540, NR_PAGES - 540, 0);
	check_shared_untouched(self);

	/* The guest owns it from now on. */
	fill_pages(self, 3, 1, 2);
	check_pages(self, 3, 1, 2);
}

/* Not even a page that the guest has only read can be written by the VMM. */
TEST_CONTENTS(pwrite_fills_holes_only)
{
	uint64_t buf[4 * PAGE_SIZE / 8];
	ssize_t ret;

	memset(buf, 0x77, sizeof(buf));

	check_pages(self, 2, 1, 0);
	ret = pwrite(self->memfd, buf, PAGE_SIZE, 2 * PAGE_SIZE);
	TEST_ASSERT(ret == -1 && errno == EEXIST,
		    "Expected EEXIST for a page that the guest has, rc: %zd errno: %i", ret, errno);

	ret = pwrite(self->memfd, buf, sizeof(buf), 0);
	TEST_ASSERT(ret == 2 * PAGE_SIZE, "Expected a short write of 2 pages, rc: %zd errno: %i",
		    ret, errno);
	vcpu_check(self->vcpu, page_gpa(0), 0x7777777777777777ull, 2 * PAGE_SIZE);
	check_pages(self, 2, 2, 0);

	/* A punched page is a hole again. */
	fill_pages(self, 0, 4, 1);
	punch_pages(self, 1, 1);
	guest_memfd_write(self->memfd, buf, PAGE_SIZE, PAGE_SIZE);
	check_pages(self, 0, 1, 1);
	vcpu_check(self->vcpu, page_gpa(1), 0x7777777777777777ull, PAGE_SIZE);
	check_pages(self, 2, 2, 1);
}

/* The file is the memory: the slot can go and come back, elsewhere too. */
TEST_CONTENTS(kept_over_slot_deletion)
{
	fill_pages(self, 0, NR_PAGES, 1);
	private_mem_set_slot(self, 0);
	private_mem_set_slot(self, SIZE);
	check_pages(self, 0, NR_PAGES, 1);

	/* The second half of the file behind the first half of the addresses. */
	private_mem_set_slot(self, 0);
	vm_set_user_memory_region2(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, FIRST_GPA, SIZE / 2,
				   self->shared, self->memfd, SIZE / 2);
	vcpu_check(self->vcpu, page_gpa(0), pattern(NR_PAGES / 2, 1), PAGE_SIZE);
	vcpu_check(self->vcpu, page_gpa(NR_PAGES / 2 - 1), pattern(NR_PAGES - 1, 1), PAGE_SIZE);
}

/* Attributes belong to the guest's addresses and not to memslots. */
TEST_CONTENTS(attributes_kept)
{
	void *other = shared_mem_alloc(OTHER_SIZE);
	uint64_t kept = page_gpa(30), ee = 0xeeeeeeeeeeeeeeeeull;
	int i;

	virt_map(self->vm, OTHER_GPA, OTHER_GPA, OTHER_SIZE / PAGE_SIZE);
	fill_pages(self, 0, NR_PAGES, 1);
	vm_mem_set_shared(self->vm, kept, PAGE_SIZE);

	for (i = 0; i < 3; i++) {
		check_pages(self, 0, 30, 1);
		vcpu_check(self->vcpu, kept, ee, PAGE_SIZE);
		check_pages(self, 31, NR_PAGES - 31, 1);

		switch (i) {
		case 0:
			private_mem_set_slot(self, 0);
			private_mem_set_slot(self, SIZE);
			break;
		case 1:
			/* Dirty logging of another slot, and the slot's removal. */
			vm_set_user_memory_region(self->vm, OTHER_SLOT, 0, OTHER_GPA, OTHER_SIZE,
						  other);
			vcpu_write_u64(self->vcpu, OTHER_GPA, 1);
			vm_set_user_memory_region(self->vm, OTHER_SLOT, KVM_MEM_LOG_DIRTY_PAGES,
						  OTHER_GPA, OTHER_SIZE, other);
			vcpu_write_u64(self->vcpu, OTHER_GPA, 2);
			vm_set_user_memory_region(self->vm, OTHER_SLOT, 0, OTHER_GPA, OTHER_SIZE,
						  other);
			vcpu_write_u64(self->vcpu, OTHER_GPA, 3);
			vm_set_user_memory_region(self->vm, OTHER_SLOT, 0, OTHER_GPA, 0, other);
			break;
		}
	}
	munmap(other, OTHER_SIZE);
}

/* Attributes may be set before there is a slot. */
TEST_CONTENTS(attributes_before_slot)
{
	void *other = shared_mem_alloc(OTHER_SIZE);
	int fd = vm_create_guest_memfd(self->vm, OTHER_SIZE, 0);

	memset(other, 0x5a, OTHER_SIZE);
	virt_map(self->vm, OTHER_GPA, OTHER_GPA, OTHER_SIZE / PAGE_SIZE);
	vm_mem_set_private(self->vm, OTHER_GPA + PAGE_SIZE, PAGE_SIZE);
	vm_set_user_memory_region2(self->vm, OTHER_SLOT, KVM_MEM_GUEST_MEMFD, OTHER_GPA,
				   OTHER_SIZE, other, fd, 0);

	vcpu_check(self->vcpu, OTHER_GPA, 0x5a5a5a5a5a5a5a5aull, PAGE_SIZE);
	vcpu_check(self->vcpu, OTHER_GPA + PAGE_SIZE, 0, PAGE_SIZE);
	vcpu_check(self->vcpu, OTHER_GPA + 2 * PAGE_SIZE, 0x5a5a5a5a5a5a5a5aull,
		   OTHER_SIZE - 2 * PAGE_SIZE);

	vm_set_user_memory_region2(self->vm, OTHER_SLOT, KVM_MEM_GUEST_MEMFD, OTHER_GPA, 0,
				   other, fd, 0);
	close(fd);
	munmap(other, OTHER_SIZE);
}

TEST_HARNESS_MAIN
