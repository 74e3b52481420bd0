// SPDX-License-Identifier: GPL-2.0-only
/*
 * Private memory in pieces of 2 MiB: when the guest gets them, when it does not, and
 * that it cannot tell.
 *
 * The VM's statistics say how many huge mappings there are, the file's st_blocks how
 * much memory.
 */
#define _GNU_SOURCE
#include <linux/falloc.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <time.h>

#include "kvm_harness.h"
#include "private_mem.h"

#define SLOT		PRIVATE_MEM_SLOT
#define OTHER_SLOT	(SLOT + 1)
#define GPA		PRIVATE_MEM_GPA
#define BLOCK		PG_SIZE_2M
#define BLOCK_PAGES	512
#define NR_BLOCKS	4
#define SIZE		(NR_BLOCKS * BLOCK)
#define HUGE		KVM_GUEST_MEMFD_ALLOW_HUGEPAGE

/* Mapped in the guest's page tables, for other slots. */
#define OTHER_GPA	(GPA + 0x40000000ull)

#define HUGE_TIMEOUT	120

/* Where the host has no huge pages there is nothing to allow. */
static void __attribute__((constructor)) require_huge_pages(void)
{
	TEST_REQUIRE(host_has_huge_pages());
}

FIXTURE(huge) {
	struct private_mem private_mem;
};

/* The shared half is full of what must never be seen in the private one, and small. */
static void huge_mem_create(struct private_mem *mem)
{
	__private_mem_create(mem, GPA, SIZE, 0x40000000ull / PAGE_SIZE, HUGE);
	madvise(mem->shared, SIZE, MADV_NOHUGEPAGE);
	memset(mem->shared, 0xee, SIZE);
}

FIXTURE_SETUP(huge)
{
	huge_mem_create(&self->private_mem);
	virt_map(self->private_mem.vm, OTHER_GPA, OTHER_GPA, SIZE / PAGE_SIZE);

	/* Whoever gets memory now that was not cleared notices. */
	dirty_free_memory(8 * SIZE);
}

FIXTURE_TEARDOWN(huge)
{
	private_mem_free(&self->private_mem);
}

#define TEST_HUGE(name)	TEST_F_MEMBER(huge, name, private_mem, HUGE_TIMEOUT)

static uint64_t block_gpa(int block)
{
	return GPA + block * BLOCK;
}

/* The value of the first of many pages; it tells pages and generations apart. */
static uint64_t stamp(int gen, int page)
{
	return (uint64_t)gen << 32 | (page + 1);
}

/* Pages of the slot by their number, which is that of the file unless said otherwise. */
static void stamp_pages(struct private_mem *mem, int first, int nr, int gen)
{
	vcpu_stamp(mem->vcpu, GPA + first * PAGE_SIZE, stamp(gen, first), nr);
}

static void verify_pages(struct private_mem *mem, int first, int nr, int gen)
{
	if (!gen)
		vcpu_check(mem->vcpu, GPA + first * PAGE_SIZE, 0, nr * PAGE_SIZE);
	else
		vcpu_verify(mem->vcpu, GPA + first * PAGE_SIZE, stamp(gen, first), nr);
}

static void touch(struct private_mem *mem, int page)
{
	vcpu_read_u64(mem->vcpu, GPA + page * PAGE_SIZE);
}

static void set_private(struct private_mem *mem, int first, int nr)
{
	vm_mem_set_private(mem->vm, GPA + first * PAGE_SIZE, nr * PAGE_SIZE);
}

static void set_shared(struct private_mem *mem, int first, int nr)
{
	vm_mem_set_shared(mem->vm, GPA + first * PAGE_SIZE, nr * PAGE_SIZE);
}

static void punch(struct private_mem *mem, int first, int nr)
{
	guest_memfd_punch(mem->memfd, first * PAGE_SIZE, nr * PAGE_SIZE);
}

static void __expect_mapped(struct private_mem *mem, unsigned long blocks, int line)
{
	unsigned long mapped = vm_get_stat(mem->vm, "pages_2m");

	TEST_ASSERT(mapped == blocks, "line %d: expected %lu huge mappings, found %lu", line,
		    blocks, mapped);
}

static void __expect_held(struct private_mem *mem, unsigned long bytes, int line)
{
	unsigned long held = guest_memfd_held(mem->memfd);

	TEST_ASSERT(held == bytes, "line %d: expected 0x%lx bytes in the file, found 0x%lx", line,
		    bytes, held);
}

#define expect_mapped(mem, blocks)	__expect_mapped(mem, blocks, __LINE__)
#define expect_held(mem, bytes)		__expect_held(mem, bytes, __LINE__)

/* Puts the slot elsewhere, in the guest, in the file, or in the process. */
static void rebind(struct private_mem *mem, uint64_t gpa, uint64_t size, uint64_t offset,
		   void *hva)
{
	vm_set_user_memory_region2(mem->vm, SLOT, 0, 0, 0, NULL, 0, 0);
	vm_set_user_memory_region2(mem->vm, SLOT, KVM_MEM_GUEST_MEMFD, gpa, size, hva,
				   mem->memfd, offset);
}

/*
 * What is mapped huge.
 */

TEST_HUGE(first_touch)
{
	int i;

	/* Wherever in the block it is, be it by reading or by writing. */
	for (i = 0; i < NR_BLOCKS; i++) {
		if (i & 1)
			vcpu_write_u64(self->vcpu, block_gpa(i) + i * 100 * PAGE_SIZE, 0);
		else
			touch(self, i * BLOCK_PAGES + BLOCK_PAGES - 1);
		expect_mapped(self, i + 1);
		expect_held(self, (i + 1) * BLOCK);
	}

	/* No other mappings are needed for all the rest, and no other memory. */
	stamp_pages(self, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	verify_pages(self, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	expect_mapped(self, NR_BLOCKS);
	expect_held(self, SIZE);
}

TEST_F_TIMEOUT(huge, zero_at_first_sight, HUGE_TIMEOUT)
{
	struct private_mem *mem = &self->private_mem;
	uint8_t *shared = mem->shared;
	struct fragments f;
	int round, i;

	if (!memory_dirty(&f))
		SKIP(return, "No CONFIG_HUGETLBFS, which takes most of the memory");

	/* Whoever had the memory before: ordinary memory, then the file itself. */
	for (round = 1; round <= 3; round++) {
		if (round == 2)
			guest_memfd_allocate(mem->memfd, 0, SIZE);
		touch(mem, BLOCK_PAGES - 1);
		verify_pages(mem, 0, NR_BLOCKS * BLOCK_PAGES, 0);
		expect_mapped(mem, NR_BLOCKS);

		vcpu_fill(mem->vcpu, GPA, 0xdddddddddddddddd, SIZE);
		punch(mem, 0, NR_BLOCKS * BLOCK_PAGES);
		expect_mapped(mem, 0);
	}
	memory_unfragment(&f);

	for (i = 0; i < SIZE; i++)
		TEST_ASSERT(shared[i] == 0xee,
			    "Expected 0xee in the shared half at 0x%x, found 0x%x", i, shared[i]);
}

TEST_HUGE(written_before)
{
	uint64_t *buf = shared_mem_alloc(SIZE);
	int i;

	for (i = 0; i < SIZE / PAGE_SIZE; i++) {
		buf[i * 512] = stamp(1, i);
		buf[i * 512 + 511] = stamp(1, i);
	}
	guest_memfd_write(self->memfd, buf + BLOCK / 8, SIZE - BLOCK, BLOCK);

	verify_pages(self, BLOCK_PAGES, (NR_BLOCKS - 1) * BLOCK_PAGES, 1);
	verify_pages(self, 0, BLOCK_PAGES, 0);
	expect_mapped(self, NR_BLOCKS);
}

/* Where the file has small pages already there is no huge one, now or later. */
TEST_HUGE(block_with_a_page)
{
	guest_memfd_allocate(self->memfd, BLOCK + 7 * PAGE_SIZE, PAGE_SIZE);
	stamp_pages(self, 0, 3 * BLOCK_PAGES, 1);
	expect_mapped(self, 2);
	expect_held(self, 3 * BLOCK);
	verify_pages(self, 0, 3 * BLOCK_PAGES, 1);

	/* Until they are gone. */
	punch(self, BLOCK_PAGES, BLOCK_PAGES);
	verify_pages(self, BLOCK_PAGES, BLOCK_PAGES, 0);
	expect_mapped(self, 3);
}

TEST_HUGE(without_flag)
{
	struct private_mem mem;

	private_mem_create(&mem, GPA, SIZE, SIZE / PAGE_SIZE);
	stamp_pages(&mem, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	verify_pages(&mem, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	expect_mapped(&mem, 0);
	private_mem_free(&mem);
}

/* Blocks that reach out of the slot are mapped in small pages, and so allocated. */
TEST_HUGE(edges_of_a_slot)
{
	const int first = 3, nr = 2 * BLOCK_PAGES + 100;

	rebind(self, GPA + first * PAGE_SIZE, nr * PAGE_SIZE, first * PAGE_SIZE, self->shared);

	touch(self, first);
	touch(self, first + nr - 1);
	expect_mapped(self, 0);
	expect_held(self, 2 * PAGE_SIZE);

	touch(self, BLOCK_PAGES);
	expect_mapped(self, 1);
	expect_held(self, BLOCK + 2 * PAGE_SIZE);

	stamp_pages(self, first, nr, 1);
	verify_pages(self, first, nr, 1);
	expect_mapped(self, 1);
	expect_held(self, nr * PAGE_SIZE);

	/* Also where the file has more than the slot shows. */
	guest_memfd_allocate(self->memfd, 3 * BLOCK, BLOCK);
	rebind(self, GPA + 3 * BLOCK, BLOCK - PAGE_SIZE, 3 * BLOCK, self->shared);
	stamp_pages(self, 3 * BLOCK_PAGES, BLOCK_PAGES - 1, 1);
	expect_mapped(self, 0);
	rebind(self, GPA + 3 * BLOCK + PAGE_SIZE, BLOCK - PAGE_SIZE, 3 * BLOCK + PAGE_SIZE,
	       self->shared);
	verify_pages(self, 3 * BLOCK_PAGES + 1, BLOCK_PAGES - 2, 1);
	expect_mapped(self, 0);
	rebind(self, GPA + 3 * BLOCK, BLOCK, 3 * BLOCK, self->shared);
	verify_pages(self, 3 * BLOCK_PAGES, BLOCK_PAGES - 1, 1);
	expect_mapped(self, 1);
}

/* gfn and file index are not the same modulo 2 MiB: nothing is mapped huge, all works. */
TEST_HUGE(misaligned)
{
	static const int shifts[] = { 1, 256, 511 };
	const int nr = 2 * BLOCK_PAGES;
	int i, shift, behind;

	for (i = 0; i < ARRAY_SIZE(shifts); i++) {
		shift = shifts[i];
		behind = shift + nr;
		stamp_pages(self, 0, NR_BLOCKS * BLOCK_PAGES, 1);
		expect_mapped(self, NR_BLOCKS);

		/* The guest finds what lies that far behind in the file, and writes there. */
		rebind(self, GPA, nr * PAGE_SIZE, shift * PAGE_SIZE, self->shared);
		vcpu_verify(self->vcpu, GPA, stamp(1, shift), nr);
		vcpu_stamp(self->vcpu, GPA, stamp(2, shift), nr);
		expect_mapped(self, 0);

		rebind(self, GPA, SIZE, 0, self->shared);
		verify_pages(self, 0, shift, 1);
		verify_pages(self, shift, nr, 2);
		verify_pages(self, behind, NR_BLOCKS * BLOCK_PAGES - behind, 1);
		expect_mapped(self, NR_BLOCKS);
	}

	/* Nor does it matter who allocates. */
	punch(self, 0, NR_BLOCKS * BLOCK_PAGES);
	rebind(self, GPA, nr * PAGE_SIZE, PAGE_SIZE, self->shared);
	vcpu_check(self->vcpu, GPA, 0, nr * PAGE_SIZE);
	vcpu_stamp(self->vcpu, GPA, stamp(1, 0), nr);
	vcpu_verify(self->vcpu, GPA, stamp(1, 0), nr);
	expect_mapped(self, 0);
}

/* Where the shared half lies is its own concern. */
TEST_HUGE(userspace_addr_misaligned)
{
	void *shared = shared_mem_alloc_at(SIZE, PAGE_SIZE);

	rebind(self, GPA, SIZE, 0, shared);
	stamp_pages(self, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	expect_mapped(self, NR_BLOCKS);

	/* A huge page behind it cannot be mapped huge, whatever the private half can. */
	madvise(shared, SIZE, MADV_HUGEPAGE);
	memset(shared, 0x5a, SIZE);
	set_shared(self, BLOCK_PAGES, BLOCK_PAGES);
	vcpu_check(self->vcpu, block_gpa(1), 0x5a5a5a5a5a5a5a5a, BLOCK);
	expect_mapped(self, NR_BLOCKS - 1);
	verify_pages(self, 0, BLOCK_PAGES, 1);
	verify_pages(self, 2 * BLOCK_PAGES, 2 * BLOCK_PAGES, 1);
}

/*
 * A machine as it is: memory up to the legacy VGA hole, from there to the PCI hole
 * below 4 GiB, and above, all in one file.  The holes cost the huge mapping of the
 * block that one of them lies in and nothing else.
 */
#define VGA_HOLE	0xa0000ull
#define VGA_HOLE_END	0xc0000ull
#define PCI_HOLE	0xc0000000ull
#define PCI_HOLE_END	0x100000000ull
#define RAM_END		0x140000000ull

/* The library's memory lies far above, all of the guest's at one virtual address. */
#define LIB_GPA		0x1000000000ull
#define RAM_GVA		0x10000000000ull

static void expect_mmio(struct kvm_vcpu *vcpu, uint64_t gpa)
{
	struct kvm_run *run = vcpu->run;
	int ret = __vcpu_access(vcpu, GUEST_WRITE, RAM_GVA + gpa, 1, 0);

	TEST_ASSERT(!ret && run->exit_reason == KVM_EXIT_MMIO && run->mmio.phys_addr == gpa,
		    "Expected exit MMIO at 0x%lx, rc: %i errno: %i exit: %u (%s)", gpa, ret, errno,
		    run->exit_reason, exit_reason_str(run->exit_reason));
	vcpu_run_complete_io(vcpu);
}

TEST(vga_and_pci_holes)
{
	static const struct { uint64_t gpa, end, offset; } slots[] = {
		{ 0, VGA_HOLE, 0 },
		{ VGA_HOLE_END, PCI_HOLE, VGA_HOLE_END },
		{ PCI_HOLE_END, RAM_END, PCI_HOLE },
	};
	static const uint64_t small[] = {
		0, VGA_HOLE - PAGE_SIZE, VGA_HOLE_END, BLOCK - PAGE_SIZE,
	};
	static const uint64_t huge[] = {
		BLOCK, 2 * BLOCK + 17 * PAGE_SIZE, 0x40000000, PCI_HOLE - BLOCK - PAGE_SIZE,
		PCI_HOLE - PAGE_SIZE, PCI_HOLE_END, PCI_HOLE_END + 2 * BLOCK - PAGE_SIZE,
		RAM_END - PAGE_SIZE,
	};
	const uint64_t size = RAM_END - (PCI_HOLE_END - PCI_HOLE);
	struct private_mem mem = {};
	int i;

	mem.vm = ____vm_create(VM_SHAPE(KVM_X86_SW_PROTECTED_VM), 0);
	vm_userspace_mem_region_add(mem.vm, VM_MEM_SRC_ANONYMOUS, LIB_GPA, 0, 1024, 0);
	kvm_vm_elf_load(mem.vm, program_invocation_name);
	vm_create_irqchip(mem.vm);
	mem.vcpu = vm_vcpu_add(mem.vm, 0, NULL);
	virt_map_level(mem.vm, RAM_GVA, 0, RAM_END, PG_LEVEL_2M);

	mem.memfd = vm_create_guest_memfd(mem.vm, size, HUGE);
	mem.shared = mmap(NULL, size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, mem.shared);
	for (i = 0; i < ARRAY_SIZE(slots); i++) {
		vm_set_user_memory_region2(mem.vm, SLOT + i, KVM_MEM_GUEST_MEMFD, slots[i].gpa,
					   slots[i].end - slots[i].gpa,
					   mem.shared + slots[i].offset, mem.memfd,
					   slots[i].offset);
		vm_mem_set_private(mem.vm, slots[i].gpa, slots[i].end - slots[i].gpa);
	}

	for (i = 0; i < ARRAY_SIZE(small); i++) {
		vcpu_check(mem.vcpu, RAM_GVA + small[i], 0, PAGE_SIZE);
		vcpu_stamp(mem.vcpu, RAM_GVA + small[i], stamp(1, i), 1);
	}
	expect_mapped(&mem, 0);
	expect_held(&mem, ARRAY_SIZE(small) * PAGE_SIZE);

	for (i = 0; i < ARRAY_SIZE(huge); i++) {
		vcpu_check(mem.vcpu, RAM_GVA + huge[i], 0, PAGE_SIZE);
		vcpu_stamp(mem.vcpu, RAM_GVA + huge[i], stamp(2, i), 1);
		expect_mapped(&mem, i + 1);
	}
	expect_held(&mem, ARRAY_SIZE(small) * PAGE_SIZE + ARRAY_SIZE(huge) * BLOCK);

	for (i = 0; i < ARRAY_SIZE(small); i++)
		vcpu_verify(mem.vcpu, RAM_GVA + small[i], stamp(1, i), 1);
	for (i = 0; i < ARRAY_SIZE(huge); i++)
		vcpu_verify(mem.vcpu, RAM_GVA + huge[i], stamp(2, i), 1);

	/* And the holes are holes. */
	expect_mmio(mem.vcpu, VGA_HOLE);
	expect_mmio(mem.vcpu, VGA_HOLE_END - PAGE_SIZE);
	expect_mmio(mem.vcpu, PCI_HOLE);
	expect_mmio(mem.vcpu, PCI_HOLE_END - PAGE_SIZE);

	close(mem.memfd);
	kvm_vm_free(mem.vm);
}

/*
 * Conversions.
 */

#define SHARED_VAL	0xeeeeeeeeeeeeeeeeull

static const struct {
	int first, nr;
} parts[] = {
	{ BLOCK_PAGES, 1 },
	{ 2 * BLOCK_PAGES - 1, 1 },
	{ BLOCK_PAGES + 200, 1 },
	{ BLOCK_PAGES + 200, 50 },
	{ BLOCK_PAGES, BLOCK_PAGES - 1 },
	{ BLOCK_PAGES + 1, BLOCK_PAGES - 1 },
	{ BLOCK_PAGES, BLOCK_PAGES },
	{ BLOCK_PAGES - 1, 2 },
	{ BLOCK_PAGES + 500, BLOCK_PAGES + 20 },
	{ 1, NR_BLOCKS * BLOCK_PAGES - 2 },
};

/* How many blocks a range of pages touches, and how many it covers. */
static int blocks_touched(int first, int nr)
{
	return (first + nr - 1) / BLOCK_PAGES - first / BLOCK_PAGES + 1;
}

static void convert_and_back(struct private_mem *mem)
{
	int i, j, first, nr, behind;

	stamp_pages(mem, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	expect_mapped(mem, NR_BLOCKS);

	for (i = 0; i < ARRAY_SIZE(parts); i++) {
		first = parts[i].first;
		nr = parts[i].nr;
		behind = first + nr;

		/* What is around the part keeps its contents, in small pages. */
		set_shared(mem, first, nr);
		expect_mapped(mem, NR_BLOCKS - blocks_touched(first, nr));
		verify_pages(mem, 0, first, 1);
		verify_pages(mem, behind, NR_BLOCKS * BLOCK_PAGES - behind, 1);
		vcpu_check(mem->vcpu, GPA + first * PAGE_SIZE, SHARED_VAL, nr * PAGE_SIZE);
		expect_mapped(mem, NR_BLOCKS - blocks_touched(first, nr));

		/* Nobody but the guest does anything to have its huge mappings back. */
		set_private(mem, first, nr);
		for (j = first; j < behind; j++)
			if (j == first || !(j % BLOCK_PAGES))
				touch(mem, j);
		expect_mapped(mem, NR_BLOCKS);
		verify_pages(mem, 0, NR_BLOCKS * BLOCK_PAGES, 1);
		expect_mapped(mem, NR_BLOCKS);
		expect_held(mem, SIZE);
	}
}

TEST_HUGE(convert_and_back)
{
	convert_and_back(self);
}

/* Two holes in a block: it is mapped huge when the last of them has gone. */
TEST_HUGE(convert_in_steps)
{
	stamp_pages(self, 0, BLOCK_PAGES, 1);
	expect_mapped(self, 1);

	set_shared(self, 100, 2);
	set_shared(self, 400, 1);
	set_private(self, 100, 1);
	verify_pages(self, 0, 101, 1);
	set_private(self, 400, 1);
	verify_pages(self, 102, BLOCK_PAGES - 102, 1);
	expect_mapped(self, 0);

	set_private(self, 101, 1);
	touch(self, 101);
	expect_mapped(self, 1);
	verify_pages(self, 0, BLOCK_PAGES, 1);
}

/* Not by any hypercall or fault of the block itself, but by its neighbour's. */
TEST_HUGE(convert_the_neighbour)
{
	int i;

	stamp_pages(self, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	for (i = 0; i < 3; i++) {
		set_shared(self, BLOCK_PAGES - 1, 1);
		expect_mapped(self, NR_BLOCKS - 1);
		verify_pages(self, BLOCK_PAGES, (NR_BLOCKS - 1) * BLOCK_PAGES, 1);
		set_private(self, BLOCK_PAGES - 1, 1);
		touch(self, BLOCK_PAGES - 1);
		expect_mapped(self, NR_BLOCKS);
	}
}

/* A page of a block that is not all private costs a page. */
TEST_HUGE(mixed_block)
{
	/* All but one are shared. */
	set_shared(self, 0, BLOCK_PAGES);
	set_private(self, 100, 1);
	touch(self, 100);
	expect_held(self, PAGE_SIZE);

	/* All but one are private. */
	set_shared(self, 2 * BLOCK_PAGES - 1, 1);
	touch(self, BLOCK_PAGES);
	expect_held(self, 2 * PAGE_SIZE);

	/* One half of each of two blocks: as much as a block, but none. */
	set_shared(self, 2 * BLOCK_PAGES, 256);
	set_shared(self, 3 * BLOCK_PAGES + 256, 256);
	touch(self, 3 * BLOCK_PAGES - 1);
	touch(self, 3 * BLOCK_PAGES);
	expect_held(self, 4 * PAGE_SIZE);
	expect_mapped(self, 0);

	verify_pages(self, 100, 1, 0);
	verify_pages(self, BLOCK_PAGES, BLOCK_PAGES - 1, 0);
	verify_pages(self, 2 * BLOCK_PAGES + 256, BLOCK_PAGES, 0);
	vcpu_check(self->vcpu, GPA, SHARED_VAL, 100 * PAGE_SIZE);

	/* What it has in small pages it keeps so. */
	set_private(self, BLOCK_PAGES, BLOCK_PAGES);
	stamp_pages(self, BLOCK_PAGES, BLOCK_PAGES, 1);
	verify_pages(self, BLOCK_PAGES, BLOCK_PAGES, 1);
	expect_mapped(self, 0);
}

/* The shared half has its huge mappings, too, and for blocks that are all shared only. */
TEST_HUGE(shared_half)
{
	void *shared = shared_mem_alloc_at(SIZE, 0);
	const int page = BLOCK_PAGES + 200;

	madvise(shared, SIZE, MADV_HUGEPAGE);
	memset(shared, 0x5a, SIZE);
	rebind(self, GPA, SIZE, 0, shared);
	stamp_pages(self, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	expect_mapped(self, NR_BLOCKS);

	set_shared(self, BLOCK_PAGES, BLOCK_PAGES);
	vcpu_check(self->vcpu, block_gpa(1), 0x5a5a5a5a5a5a5a5a, BLOCK);
	expect_mapped(self, NR_BLOCKS);

	set_private(self, page, 1);
	expect_mapped(self, NR_BLOCKS - 1);
	vcpu_check(self->vcpu, block_gpa(1), 0x5a5a5a5a5a5a5a5a, 200 * PAGE_SIZE);
	verify_pages(self, page, 1, 1);
	vcpu_check(self->vcpu, GPA + (page + 1) * PAGE_SIZE, 0x5a5a5a5a5a5a5a5a,
		   (BLOCK_PAGES - 201) * PAGE_SIZE);
	expect_mapped(self, NR_BLOCKS - 1);

	set_shared(self, page, 1);
	vcpu_check(self->vcpu, GPA + page * PAGE_SIZE, 0x5a5a5a5a5a5a5a5a, PAGE_SIZE);
	expect_mapped(self, NR_BLOCKS);
	set_private(self, BLOCK_PAGES, BLOCK_PAGES);
	verify_pages(self, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	expect_mapped(self, NR_BLOCKS);
}

/*
 * With the workaround for processors that do not stand huge pages of code: what is
 * executed is mapped in small pages, and that alone is a reason for them.
 */
#define NX_HUGE_PAGES	"/sys/module/kvm/parameters"

static char nx_before[8];

static void nx_restore(void)
{
	dir_write(NX_HUGE_PAGES, "nx_huge_pages", nx_before);
}

FIXTURE(nx) {
	struct private_mem private_mem;
};

FIXTURE_SETUP(nx)
{
	int fd = open_path_or_exit(NX_HUGE_PAGES "/nx_huge_pages", O_RDONLY);

	ASSERT_LT(0, read(fd, nx_before, sizeof(nx_before) - 1));
	close(fd);

	/* However the case ends. */
	atexit(nx_restore);
	dir_write(NX_HUGE_PAGES, "nx_huge_pages", "force");
	huge_mem_create(&self->private_mem);
}

FIXTURE_TEARDOWN(nx)
{
	private_mem_free(&self->private_mem);
	nx_restore();
}

#define TEST_NX(name)	TEST_F_MEMBER(nx, name, private_mem, HUGE_TIMEOUT)

TEST_NX(convert_and_back)
{
	convert_and_back(self);
	TEST_ASSERT(!vm_get_stat(self->vm, "nx_lpage_splits"),
		    "Expected no huge page to be split for code, found %lu",
		    vm_get_stat(self->vm, "nx_lpage_splits"));
}

static void expect_executed(struct private_mem *mem, uint64_t gpa)
{
	TEST_ASSERT(vcpu_access(mem->vcpu, GUEST_EXEC, gpa, 0, 0) == 0x1234,
		    "Guest did not execute what it had written");
}

TEST_NX(execute)
{
	const uint64_t gpa = GPA + 7 * PAGE_SIZE;
	int i;

	vcpu_write_u64(self->vcpu, gpa, guest_exec_code(0x1234));
	expect_mapped(self, 1);

	for (i = 0; i < 3; i++) {
		expect_executed(self, gpa);
		expect_mapped(self, 0);

		/* What is only read does not undo it, or the two would go on for ever. */
		touch(self, 20 + i);
		expect_mapped(self, 0);
		expect_executed(self, gpa);
		expect_mapped(self, 0);

		/* What was not executed is mapped huge again. */
		set_shared(self, 0, BLOCK_PAGES);
		set_private(self, 0, BLOCK_PAGES);
		TEST_ASSERT(vcpu_read_u64(self->vcpu, gpa) == guest_exec_code(0x1234),
			    "Guest lost what it had written");
		expect_mapped(self, 1);
	}
}

/*
 * Punches.
 */

TEST_HUGE(punch_blocks)
{
	stamp_pages(self, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	punch(self, BLOCK_PAGES, 2 * BLOCK_PAGES);
	expect_mapped(self, NR_BLOCKS - 2);
	expect_held(self, SIZE - 2 * BLOCK);

	verify_pages(self, 0, BLOCK_PAGES, 1);
	verify_pages(self, BLOCK_PAGES, 2 * BLOCK_PAGES, 0);
	verify_pages(self, 3 * BLOCK_PAGES, BLOCK_PAGES, 1);
	expect_mapped(self, NR_BLOCKS);
	expect_held(self, SIZE);
}

/* What was asked for is gone, and nothing else. */
TEST_HUGE(punch_parts)
{
	int i, first, nr, behind;

	for (i = 0; i < ARRAY_SIZE(parts); i++) {
		first = parts[i].first;
		nr = parts[i].nr;
		behind = first + nr;

		stamp_pages(self, 0, NR_BLOCKS * BLOCK_PAGES, i + 1);
		expect_mapped(self, NR_BLOCKS);
		punch(self, first, nr);
		expect_held(self, SIZE - nr * PAGE_SIZE);
		expect_mapped(self, NR_BLOCKS - blocks_touched(first, nr));

		verify_pages(self, 0, first, i + 1);
		verify_pages(self, behind, NR_BLOCKS * BLOCK_PAGES - behind, i + 1);
		expect_held(self, SIZE - nr * PAGE_SIZE);
		verify_pages(self, first, nr, 0);
		expect_held(self, SIZE);

		punch(self, 0, NR_BLOCKS * BLOCK_PAGES);
	}
}

/* The file has it whether the guest sees it or not. */
TEST_HUGE(punch_while_shared)
{
	stamp_pages(self, 0, BLOCK_PAGES, 1);
	set_shared(self, 0, BLOCK_PAGES);
	punch(self, 50, 3);
	expect_held(self, BLOCK - 3 * PAGE_SIZE);
	set_private(self, 0, BLOCK_PAGES);

	verify_pages(self, 0, 50, 1);
	verify_pages(self, 53, BLOCK_PAGES - 53, 1);
	verify_pages(self, 50, 3, 0);
}

/* The pages that a split is not needed for go, and so does what the others held. */
TEST_F_TIMEOUT(huge, punch_without_split, HUGE_TIMEOUT)
{
	struct private_mem *mem = &self->private_mem;
	int i, first, nr, behind;

	if (!failslab_setup())
		SKIP(return, "No CONFIG_FAILSLAB, or no debugfs to set it up");

	for (i = 0; i < ARRAY_SIZE(parts); i++) {
		first = parts[i].first;
		nr = parts[i].nr;
		behind = first + nr;

		stamp_pages(mem, 0, NR_BLOCKS * BLOCK_PAGES, i + 1);
		expect_mapped(mem, NR_BLOCKS);
		failslab_begin(0);
		punch(mem, first, nr);
		failslab_end();

		verify_pages(mem, 0, first, i + 1);
		verify_pages(mem, first, nr, 0);
		verify_pages(mem, behind, NR_BLOCKS * BLOCK_PAGES - behind, i + 1);
		stamp_pages(mem, first, nr, i + 1);
		verify_pages(mem, 0, NR_BLOCKS * BLOCK_PAGES, i + 1);

		punch(mem, 0, NR_BLOCKS * BLOCK_PAGES);
		expect_held(mem, 0);
	}
}

/*
 * Under a guest that reads all of the block all the time.  What it sees of the part
 * that is punched is what was there, and zeroes when the punch is done; of the rest it
 * sees what was there.
 */
struct reader {
	struct private_mem *mem;
	pthread_t thread;
	int first, nr;		/* the part */
	atomic_bool punched;
	atomic_bool stop;
	atomic_ulong rounds;
};

static void *reader_fn(void *data)
{
	struct reader *r = data;
	int behind = r->first + r->nr, page;
	uint64_t seen;
	bool punched;

	while (!atomic_load(&r->stop)) {
		verify_pages(r->mem, 0, r->first, 1);
		for (page = r->first; page < behind; page += r->nr / 3 + 1) {
			punched = atomic_load(&r->punched);
			seen = vcpu_read_u64(r->mem->vcpu, GPA + page * PAGE_SIZE);
			TEST_ASSERT(!seen || (!punched && seen == stamp(1, page)),
				    "Guest expected %s at page %d, read 0x%lx",
				    punched ? "zeroes" : "zeroes or what was there", page, seen);
		}
		verify_pages(r->mem, behind, 2 * BLOCK_PAGES - behind, 1);
		atomic_fetch_add(&r->rounds, 1);
	}
	return NULL;
}

static void wait_for_rounds(struct reader *r)
{
	unsigned long old = atomic_load(&r->rounds);

	while (atomic_load(&r->rounds) < old + 2)
		sched_yield();
}

TEST_HUGE(punch_under_running_guest)
{
	struct reader r = { .mem = self };
	int i;

	for (i = 0; i < 20; i++) {
		stamp_pages(self, 0, 2 * BLOCK_PAGES, 1);
		expect_mapped(self, 2);

		r.first = i * 53;
		r.nr = 1 + i % 7;
		atomic_store(&r.punched, false);
		atomic_store(&r.stop, false);
		TEST_ASSERT(!pthread_create(&r.thread, NULL, reader_fn, &r),
			    "pthread_create() failed");
		wait_for_rounds(&r);
		punch(self, r.first, r.nr);
		atomic_store(&r.punched, true);
		wait_for_rounds(&r);
		atomic_store(&r.stop, true);
		pthread_join(r.thread, NULL);

		verify_pages(self, r.first, r.nr, 0);
		punch(self, 0, 2 * BLOCK_PAGES);
	}
}

/*
 * Memory errors.
 */

/* A block that the guest has written to, in a cgroup; returns its first page frame. */
static uint64_t stamp_and_find(struct private_mem *mem, struct memcg *cg)
{
	uint64_t pfn;

	memcg_create(cg);
	memcg_enter(cg);
	pfn = memcg_take_and_find(cg, mem->memfd, BLOCK, NULL, BLOCK);
	stamp_pages(mem, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	expect_mapped(mem, NR_BLOCKS);
	return pfn;
}

/* That page and no other has an error, until it is punched. */
static void expect_poison(struct private_mem *mem, int page)
{
	uint8_t data[PAGE_SIZE] = {};
	int behind = page + 1, ret;

	vcpu_expect_poison(mem->vcpu, GPA + page * PAGE_SIZE);
	verify_pages(mem, 0, page, 1);
	verify_pages(mem, behind, NR_BLOCKS * BLOCK_PAGES - behind, 1);
	vcpu_expect_poison(mem->vcpu, GPA + page * PAGE_SIZE);

	/* It stays in the file. */
	ret = pwrite(mem->memfd, data, PAGE_SIZE, page * PAGE_SIZE);
	TEST_ASSERT(ret == -1 && errno == EEXIST,
		    "Expected EEXIST from pwrite() to the poisoned page, rc: %i errno: %i",
		    ret, errno);
	expect_held(mem, SIZE);

	private_mem_set_slot(mem, 0);
	private_mem_set_slot(mem, SIZE);
	vcpu_expect_poison(mem->vcpu, GPA + page * PAGE_SIZE);
	verify_pages(mem, 0, page, 1);
	verify_pages(mem, behind, NR_BLOCKS * BLOCK_PAGES - behind, 1);
}

static void punch_poison(struct private_mem *mem, int page)
{
	punch(mem, page, 1);
	verify_pages(mem, page, 1, 0);
	stamp_pages(mem, page, 1, 1);
	verify_pages(mem, 0, NR_BLOCKS * BLOCK_PAGES, 1);
}

static void hardware_error(struct private_mem *mem, int index)
{
	const int page = BLOCK_PAGES + index;
	struct memcg cg;
	uint64_t pfn;

	pfn = stamp_and_find(mem, &cg);
	memory_error("corrupt-pfn", pfn + index);
	expect_poison(mem, page);
	punch_poison(mem, page);
	memory_error("unpoison-pfn", pfn + index);
	memcg_destroy(&cg);
}

TEST_HUGE(memory_error_first_page)
{
	hardware_error(self, 0);
}

TEST_HUGE(memory_error_last_page)
{
	hardware_error(self, BLOCK_PAGES - 1);
}

TEST_HUGE(memory_error_some_page)
{
	hardware_error(self, 123);
}

/* The page is not the guest's any more when the whole block is punched. */
static void expect_replaced(struct private_mem *mem)
{
	punch(mem, 0, NR_BLOCKS * BLOCK_PAGES);
	expect_held(mem, 0);
	verify_pages(mem, 0, NR_BLOCKS * BLOCK_PAGES, 0);
	expect_mapped(mem, NR_BLOCKS);
	expect_held(mem, SIZE);
}

TEST_HUGE(memory_error_punched_with_block)
{
	struct memcg cg;
	uint64_t pfn;

	pfn = stamp_and_find(self, &cg);
	memory_error("corrupt-pfn", pfn + 123);
	expect_replaced(self);
	memory_error("unpoison-pfn", pfn + 123);
	memcg_destroy(&cg);
}

/* That page and no other, even so. */
TEST_F_TIMEOUT(huge, memory_error_without_split, HUGE_TIMEOUT)
{
	const int index = 123, page = BLOCK_PAGES + index;
	struct private_mem *mem = &self->private_mem;
	struct memcg cg;
	uint64_t pfn;

	if (!failslab_setup())
		SKIP(return, "No CONFIG_FAILSLAB, or no debugfs to set it up");

	pfn = stamp_and_find(mem, &cg);
	memory_error_without_split(pfn + index);
	expect_poison(mem, page);
	punch_poison(mem, page);
	memory_error("unpoison-pfn", pfn + index);
	memcg_destroy(&cg);
}

/* Nor is it the guest's any more when the whole block is punched, and it stays so. */
TEST_F_TIMEOUT(huge, memory_error_without_split_punched, HUGE_TIMEOUT)
{
	struct private_mem *mem = &self->private_mem;
	struct memcg cg;
	uint64_t pfn;
	int i;

	if (!failslab_setup())
		SKIP(return, "No CONFIG_FAILSLAB, or no debugfs to set it up");

	pfn = stamp_and_find(mem, &cg);
	memory_error_without_split(pfn + 123);
	for (i = 0; i < 3; i++)
		expect_replaced(mem);
	memcg_destroy(&cg);
}

/* Two pages of a block, neither of them the first. */
TEST_F_TIMEOUT(huge, memory_errors_without_split, HUGE_TIMEOUT)
{
	struct private_mem *mem = &self->private_mem;
	struct memcg cg;
	uint64_t pfn;

	if (!failslab_setup())
		SKIP(return, "No CONFIG_FAILSLAB, or no debugfs to set it up");

	pfn = stamp_and_find(mem, &cg);
	memory_error_without_split(pfn + 123);
	memory_error_without_split(pfn + 200);
	vcpu_expect_poison(mem->vcpu, block_gpa(1) + 123 * PAGE_SIZE);
	vcpu_expect_poison(mem->vcpu, block_gpa(1) + 200 * PAGE_SIZE);
	verify_pages(mem, 0, BLOCK_PAGES + 123, 1);
	verify_pages(mem, BLOCK_PAGES + 124, 76, 1);
	verify_pages(mem, BLOCK_PAGES + 201, 311, 1);

	/* One that nothing is wrong with is punched, and the others are as they were. */
	punch(mem, BLOCK_PAGES + 150, 1);
	verify_pages(mem, BLOCK_PAGES + 150, 1, 0);
	vcpu_expect_poison(mem->vcpu, block_gpa(1) + 123 * PAGE_SIZE);
	vcpu_expect_poison(mem->vcpu, block_gpa(1) + 200 * PAGE_SIZE);
	verify_pages(mem, BLOCK_PAGES + 124, 26, 1);
	verify_pages(mem, BLOCK_PAGES + 151, 49, 1);

	expect_replaced(mem);
	memory_error("unpoison-pfn", pfn + 123);
	memory_error("unpoison-pfn", pfn + 200);
	memcg_destroy(&cg);
}

/*
 * What goes on around it.
 */

TEST_HUGE(slot_deleted_and_added)
{
	int ret, i;

	stamp_pages(self, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	for (i = 0; i < 3; i++) {
		private_mem_set_slot(self, 0);
		expect_mapped(self, 0);
		ret = __vcpu_access(self->vcpu, GUEST_READ, GPA, 0, 0);
		vcpu_assert_private_fault(self->vcpu, ret, errno, GPA);

		private_mem_set_slot(self, SIZE);
		verify_pages(self, 0, NR_BLOCKS * BLOCK_PAGES, 1);
		expect_mapped(self, NR_BLOCKS);
	}
}

/* The blocks of the file are the guest's wherever they lie. */
TEST_HUGE(slot_elsewhere)
{
	stamp_pages(self, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	vm_mem_set_private(self->vm, OTHER_GPA, SIZE);
	rebind(self, OTHER_GPA, 2 * BLOCK, BLOCK, self->shared);
	vcpu_verify(self->vcpu, OTHER_GPA, stamp(1, BLOCK_PAGES), 2 * BLOCK_PAGES);
	expect_mapped(self, 2);
}

/* Two slots that meet in the midst of a block, in the guest as in the file. */
TEST_HUGE(slots_share_a_block)
{
	const uint64_t half = BLOCK + BLOCK / 2;

	guest_memfd_allocate(self->memfd, 0, SIZE);
	rebind(self, GPA, half, 0, self->shared);
	vm_set_user_memory_region2(self->vm, OTHER_SLOT, KVM_MEM_GUEST_MEMFD, GPA + half,
				   SIZE - half, self->shared + half, self->memfd, half);
	stamp_pages(self, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	expect_mapped(self, NR_BLOCKS - 1);

	/* A part of it is punched that each of them has something of. */
	punch(self, half / PAGE_SIZE - 1, 2);
	verify_pages(self, 0, half / PAGE_SIZE - 1, 1);
	verify_pages(self, half / PAGE_SIZE - 1, 2, 0);
	verify_pages(self, half / PAGE_SIZE + 1, (SIZE - half) / PAGE_SIZE - 1, 1);
}

TEST_HUGE(file_closed)
{
	int ret;

	stamp_pages(self, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	close(self->memfd);
	self->memfd = -1;
	expect_mapped(self, 0);
	ret = __vcpu_access(self->vcpu, GUEST_READ, GPA + BLOCK + 5 * PAGE_SIZE, 0, 0);
	vcpu_assert_private_fault(self->vcpu, ret, errno, GPA + BLOCK + 5 * PAGE_SIZE);
}

/*
 * KVM fetches the instruction and its operand itself, and finds them in whichever page
 * of the block they are: OUTSL or INSL, and an OUT that tells that it is done.
 */
#define OUTS_OUT	0xee6f
#define INS_OUT		0xee6d

static void expect_port_io(struct private_mem *mem, int code_page, uint64_t code, int data_page,
			   uint32_t data)
{
	struct kvm_run *run = mem->vcpu->run;
	uint64_t rip = GPA + code_page * PAGE_SIZE, gpa = GPA + data_page * PAGE_SIZE;
	bool is_out = code == OUTS_OUT;
	struct kvm_regs regs;
	uint32_t *port;
	int ret;

	vcpu_write_u64(mem->vcpu, rip, code);
	vcpu_regs_get(mem->vcpu, &regs);
	regs.rip = rip;
	regs.rsi = gpa;
	regs.rdi = gpa;
	regs.rdx = 0x1234;
	vcpu_regs_set(mem->vcpu, &regs);

	ret = _vcpu_run(mem->vcpu);
	TEST_ASSERT(!ret && run->exit_reason == KVM_EXIT_IO && run->io.port == 0x1234 &&
		    run->io.size == sizeof(*port) && run->io.direction == is_out,
		    "Expected 4 bytes of port I/O with page %d, rc: %i errno: %i exit: %u (%s)",
		    data_page, ret, errno, run->exit_reason, exit_reason_str(run->exit_reason));
	port = (void *)run + run->io.data_offset;
	TEST_ASSERT(!is_out || *port == data, "Expected 0x%x from page %d, got 0x%x", data,
		    data_page, *port);
	if (!is_out)
		*port = data;

	ret = _vcpu_run(mem->vcpu);
	TEST_ASSERT(!ret && run->exit_reason == KVM_EXIT_IO && run->io.size == 1,
		    "Expected the guest to go on, rc: %i errno: %i exit: %u (%s)", ret, errno,
		    run->exit_reason, exit_reason_str(run->exit_reason));
	vcpu_run_complete_io(mem->vcpu);
}

TEST_HUGE(kvm_access)
{
	static const int pages[] = { 0, 1, 300, BLOCK_PAGES - 1 };
	int i;

	stamp_pages(self, 0, BLOCK_PAGES, 1);
	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		expect_port_io(self, BLOCK_PAGES + 77, OUTS_OUT, pages[i],
			       (uint32_t)stamp(1, pages[i]));
		expect_port_io(self, 2 * BLOCK_PAGES - 1, INS_OUT, pages[i], ~pages[i]);
		TEST_ASSERT((uint32_t)vcpu_read_u64(self->vcpu, GPA + pages[i] * PAGE_SIZE) ==
			    (uint32_t)~pages[i],
			    "Guest does not see in page %d what KVM wrote", pages[i]);
		stamp_pages(self, pages[i], 1, 1);
	}
	expect_mapped(self, 2);
	verify_pages(self, 0, BLOCK_PAGES, 1);

	/* What KVM looks at first costs no more than what the guest does. */
	set_shared(self, 2 * BLOCK_PAGES, 100);
	expect_port_io(self, BLOCK_PAGES + 77, OUTS_OUT, 2 * BLOCK_PAGES + 100, 0);
	expect_held(self, 2 * BLOCK + PAGE_SIZE);
	verify_pages(self, 2 * BLOCK_PAGES + 100, 1, 0);
}

/*
 * While KVM reads one word of a block after the other, the block cannot be split at any
 * moment.  The punch of a page waits for one when it can, and the page is gone then.
 */
#define OUTS_JMP	0xfdeb6f

struct emulation {
	struct private_mem *mem;
	pthread_t thread;
	atomic_bool stop;
};

static void *emulation_fn(void *data)
{
	struct emulation *e = data;
	struct kvm_vcpu *vcpu = e->mem->vcpu;
	struct kvm_regs regs;
	int i;

	vcpu_regs_get(vcpu, &regs);
	regs.rip = block_gpa(2);
	regs.rdx = 0x1234;
	while (!atomic_load(&e->stop)) {
		regs.rsi = block_gpa(1);
		vcpu_regs_set(vcpu, &regs);
		for (i = 0; i < 500; i++) {
			vcpu_run(vcpu);
			TEST_ASSERT(vcpu->run->exit_reason == KVM_EXIT_IO,
				    "Expected port I/O, exit: %u (%s)", vcpu->run->exit_reason,
				    exit_reason_str(vcpu->run->exit_reason));
		}
		vcpu_run_complete_io(vcpu);
	}
	return NULL;
}

TEST_HUGE(punch_under_kvm_access)
{
	struct emulation e = { .mem = self };
	uint64_t held;
	int i;

	vcpu_write_u64(self->vcpu, block_gpa(2), OUTS_JMP);
	expect_held(self, BLOCK);
	TEST_ASSERT(!pthread_create(&e.thread, NULL, emulation_fn, &e),
		    "pthread_create() failed");
	for (i = 0; i < 50; i++) {
		/*
		 * An access that comes while the pages are dropped one by one
		 * finds a block that is not empty, and has a small page.
		 */
		while ((held = guest_memfd_held(self->memfd)) != 2 * BLOCK) {
			if (held != BLOCK)
				punch(self, BLOCK_PAGES, BLOCK_PAGES);
			sched_yield();
		}
		punch(self, BLOCK_PAGES + 100 + i, 1);
		expect_held(self, 2 * BLOCK - PAGE_SIZE);
		punch(self, BLOCK_PAGES, BLOCK_PAGES);
	}
	atomic_store(&e.stop, true);
	pthread_join(e.thread, NULL);
}

/*
 * Nor can it while the guest's first touch of the block is being served, which lasts, as
 * the block is cleared.  The vCPU has the CPU only while the punch waits, be it for the
 * lock of the block: when that is free the vCPU has the block in use still.
 */
struct toucher {
	struct private_mem *mem;
	pthread_t thread;
	sem_t go;
	sem_t done;
	bool stop;
};

static void *toucher_fn(void *data)
{
	struct toucher *t = data;

	while (!sem_wait(&t->go) && !t->stop) {
		touch(t->mem, BLOCK_PAGES);
		sem_post(&t->done);
	}
	return NULL;
}

TEST_HUGE(punch_during_first_touch)
{
	const int rounds = 40;
	struct sched_param first = { .sched_priority = 1 };
	struct toucher t = { .mem = self };
	struct timespec start;
	int64_t ns = INT64_MAX;
	int i;

	stay_on_cpu();
	sem_init(&t.go, 0, 0);
	sem_init(&t.done, 0, 0);
	TEST_ASSERT(!pthread_create(&t.thread, NULL, toucher_fn, &t), "pthread_create() failed");
	TEST_ASSERT(!sched_setscheduler(0, SCHED_FIFO, &first), "sched_setscheduler() failed");

	for (i = 0; i < 5; i++) {
		guest_memfd_allocate(self->memfd, BLOCK, BLOCK);
		clock_gettime(CLOCK_MONOTONIC, &start);
		sem_post(&t.go);
		sem_wait(&t.done);
		ns = min(ns, timespec_to_ns(timespec_elapsed(start)));
		punch(self, BLOCK_PAGES, BLOCK_PAGES);
	}

	/* From the start of the touch to its end. */
	for (i = 0; i < rounds; i++) {
		guest_memfd_allocate(self->memfd, BLOCK, BLOCK);
		sem_post(&t.go);
		usleep(ns * i / rounds / 1000);
		punch(self, BLOCK_PAGES + 100, 1);
		expect_held(self, BLOCK - PAGE_SIZE);
		sem_wait(&t.done);
		punch(self, BLOCK_PAGES, BLOCK_PAGES);
		expect_held(self, 0);
	}
	t.stop = true;
	sem_post(&t.go);
	pthread_join(t.thread, NULL);
}

#define SOFT_OFFLINE	"/sys/devices/system/memory/soft_offline_page"

/* A page that is about to fail cannot be moved, and the attempt takes nothing away. */
TEST_F_TIMEOUT(huge, soft_offline, HUGE_TIMEOUT)
{
	struct private_mem *mem = &self->private_mem;
	struct memcg cg;
	uint64_t pfn;
	char buf[32];
	int fd, ret;

	fd = open(SOFT_OFFLINE, O_WRONLY);
	if (fd < 0)
		SKIP(return, "No " SOFT_OFFLINE ", which takes CONFIG_MEMORY_HOTPLUG");

	pfn = stamp_and_find(mem, &cg);
	snprintf(buf, sizeof(buf), "0x%llx", (pfn + 123) * PAGE_SIZE);
	ret = write(fd, buf, strlen(buf));
	TEST_ASSERT(ret == -1 && errno == EBUSY,
		    "Expected EBUSY from taking a private page offline, rc: %i errno: %i",
		    ret, errno);
	close(fd);

	expect_held(mem, SIZE);
	verify_pages(mem, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	private_mem_set_slot(mem, 0);
	private_mem_set_slot(mem, SIZE);
	verify_pages(mem, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	memcg_destroy(&cg);
}

/* Dirty logging of other memory is no reason to give up huge mappings. */
TEST_HUGE(dirty_logging_elsewhere)
{
	void *other = shared_mem_alloc(SIZE);
	int i;

	stamp_pages(self, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	for (i = 0; i < 2; i++) {
		vm_set_user_memory_region(self->vm, OTHER_SLOT, 0, OTHER_GPA, SIZE, other);
		vcpu_write_u64(self->vcpu, OTHER_GPA, 1);
		vm_set_user_memory_region(self->vm, OTHER_SLOT, KVM_MEM_LOG_DIRTY_PAGES,
					  OTHER_GPA, SIZE, other);
		vcpu_write_u64(self->vcpu, OTHER_GPA, 2);
		expect_mapped(self, NR_BLOCKS);
		verify_pages(self, 0, NR_BLOCKS * BLOCK_PAGES, 1);

		set_shared(self, 5, 1);
		set_private(self, 5, 1);
		touch(self, 5);
		expect_mapped(self, NR_BLOCKS);

		vm_set_user_memory_region(self->vm, OTHER_SLOT, 0, OTHER_GPA, SIZE, other);
		expect_mapped(self, NR_BLOCKS);
		vm_set_user_memory_region(self->vm, OTHER_SLOT, 0, OTHER_GPA, 0, other);
		verify_pages(self, 0, NR_BLOCKS * BLOCK_PAGES, 1);
		expect_mapped(self, NR_BLOCKS);
	}
}

/*
 * Where huge pages cannot be had the guest gets small ones.
 */

/* There is room for pages in the cgroup, but not for a block. */
TEST_HUGE(cgroup_limit)
{
	struct memcg cg;

	/* The page tables that the guest's memory takes are there. */
	touch(self, 0);
	memcg_create(&cg);
	memcg_enter(&cg);
	stamp_pages(self, BLOCK_PAGES, 1, 1);
	expect_mapped(self, 2);

	memcg_limit(&cg, memcg_usage(&cg) + BLOCK / 2);
	stamp_pages(self, 2 * BLOCK_PAGES, 100, 1);
	expect_mapped(self, 2);
	expect_held(self, 2 * BLOCK + 100 * PAGE_SIZE);

	memcg_limit(&cg, LONG_MAX);
	stamp_pages(self, 2 * BLOCK_PAGES, 2 * BLOCK_PAGES, 1);
	verify_pages(self, 2 * BLOCK_PAGES, 2 * BLOCK_PAGES, 1);
	expect_mapped(self, 3);
	memcg_destroy(&cg);
}

TEST_F_TIMEOUT(huge, fragmented_host, 300)
{
	struct private_mem *mem = &self->private_mem;
	unsigned long mapped, stalls;
	struct fragments f;

	if (!memory_fragment(&f, mem->vm))
		SKIP(return, "No CONFIG_HUGETLBFS, which takes most of the memory");

	stalls = vmstat_value("compact_stall");
	vcpu_check(mem->vcpu, GPA, 0, SIZE);
	EXPECT_EQ(stalls, vmstat_value("compact_stall"))
		TH_LOG("the guest waited for memory to be moved");
	stamp_pages(mem, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	verify_pages(mem, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	mapped = vm_get_stat(mem->vm, "pages_2m");
	EXPECT_GT(NR_BLOCKS, mapped)
		TH_LOG("there were huge pages, so this case showed nothing");
	expect_held(mem, SIZE);

	/* It was the host and nothing else. */
	memory_unfragment(&f);
	punch(mem, 0, NR_BLOCKS * BLOCK_PAGES);
	stamp_pages(mem, 0, NR_BLOCKS * BLOCK_PAGES, 1);
	expect_mapped(mem, NR_BLOCKS);
}

TEST_HARNESS_MAIN
