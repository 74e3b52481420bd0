// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_GUEST_MEMFD_ALLOW_HUGEPAGE: what a file takes in pieces of 2 MiB, what it
 * does not, and how it gives them back.
 *
 * st_blocks says how much a file holds, and FileHugePages of /proc/meminfo how much
 * of all files is in huge pages.  Holes and pages are told apart by pwrite(), which
 * fills the former only.
 */
#define _GNU_SOURCE /* for fallocate() */
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "kvm_harness.h"
#include "private_mem.h"

#define PAGE		4096UL
#define BLOCK_PAGES	512
#define BLOCK		(BLOCK_PAGES * PAGE)
#define NR_BLOCKS	8
#define FILE_SIZE	(NR_BLOCKS * BLOCK)

#define ALLOCATE	FALLOC_FL_KEEP_SIZE
#define PUNCH		(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)
#define HUGE		KVM_GUEST_MEMFD_ALLOW_HUGEPAGE

/* This much of a limit may go to page tables and to what else a process needs. */
#define SLACK		((long)BLOCK / 2)

/* Where the host has no huge pages there is nothing to allow. */
static void __attribute__((constructor)) require_huge_pages(void)
{
	TEST_REQUIRE(host_has_huge_pages());
}

FIXTURE(create) {
	struct kvm_vm *vm;
};

FIXTURE_SETUP(create)
{
	self->vm = create_protected_vm();
}

FIXTURE_TEARDOWN(create)
{
	kvm_vm_free(self->vm);
}

TEST_F(create, capability)
{
	EXPECT_EQ(HUGE, kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & HUGE);
	EXPECT_EQ(HUGE, vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_FLAGS) & HUGE);
}

TEST_F(create, size)
{
	static const uint64_t bad[] = {
		0, PAGE, BLOCK - PAGE, BLOCK + PAGE, BLOCK / 2, 3 * BLOCK / 2, BLOCK + 1,
		(1UL << 40) + PAGE, LLONG_MAX & ~(PAGE - 1), -BLOCK,
	};
	static const uint64_t good[] = {
		BLOCK, 2 * BLOCK, 3 * BLOCK, 1UL << 40, LLONG_MAX & ~(BLOCK - 1),
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(EINVAL, err_of(__vm_create_guest_memfd(self->vm, bad[i], HUGE)))
			TH_LOG("size 0x%lx", bad[i]);
	}

	for (i = 0; i < ARRAY_SIZE(good); i++) {
		EXPECT_EQ(0, err_of(__vm_create_guest_memfd(self->vm, good[i], HUGE)))
			TH_LOG("size 0x%lx", good[i]);
	}

	/* The rule is the flag's. */
	EXPECT_EQ(0, err_of(__vm_create_guest_memfd(self->vm, BLOCK + PAGE, 0)));
}

TEST_F(create, unknown_flags)
{
	uint64_t known = kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS);
	int i;

	for (i = 0; i < 64; i++) {
		EXPECT_EQ(known & BIT_ULL(i) ? 0 : EINVAL,
			  err_of(__vm_create_guest_memfd(self->vm, BLOCK, HUGE | BIT_ULL(i))))
			TH_LOG("with flag 1 << %d", i);
	}
}

/*
 * Two empty files of the same size, one of them with the flag.
 */
FIXTURE(file) {
	struct kvm_vm *vm;
	int fd;
	int small;		/* the one without */
	char *buf;		/* no two words of it are the same, FILE_SIZE bytes */
	long huge;		/* of other files */
};

/* Nowhere else is anything like it. */
static void fill_with_secret(char *buf, size_t len)
{
	uint64_t *p = (uint64_t *)buf, x = 0x9e3779b97f4a7c15;
	size_t i;

	for (i = 0; i < len / sizeof(*p); i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		p[i] = x;
	}
}

FIXTURE_SETUP(file)
{
	self->vm = create_protected_vm();
	self->fd = vm_create_guest_memfd(self->vm, FILE_SIZE, HUGE);
	self->small = vm_create_guest_memfd(self->vm, FILE_SIZE, 0);
	self->buf = shared_mem_alloc(FILE_SIZE);
	fill_with_secret(self->buf, FILE_SIZE);
	self->huge = file_huge_bytes();
}

FIXTURE_TEARDOWN(file)
{
	kvm_vm_free(self->vm);
}

static int allocate_err(int fd, off_t offset, off_t len)
{
	return err_of(fallocate(fd, ALLOCATE, offset, len));
}

static int punch_err(int fd, off_t offset, off_t len)
{
	return err_of(fallocate(fd, PUNCH, offset, len));
}

/* How many blocks of the file are in one piece, where other files have some bytes so. */
static long nr_huge(long others)
{
	return (file_huge_bytes() - others) / (long)BLOCK;
}

#define EXPECT_HELD(bytes)	EXPECT_EQ((uint64_t)(bytes), guest_memfd_held(self->fd))
#define EXPECT_HUGE(blocks)	EXPECT_EQ((blocks), nr_huge(self->huge))

/* Whether the file has no page there; a hole is a hole again afterwards. */
static bool is_hole(struct __test_metadata *_metadata, int fd, off_t offset)
{
	char buf[PAGE] = "";
	ssize_t ret = pwrite(fd, buf, PAGE, offset);

	if (ret < 0) {
		EXPECT_EQ(EEXIST, errno);
		return false;
	}

	EXPECT_EQ(PAGE, ret);
	EXPECT_EQ(0, err_of(fallocate(fd, PUNCH, offset, PAGE)));
	return true;
}

/* That the range, and nothing around it, is what it should be, look at its ends. */
static void check_ends(struct __test_metadata *_metadata, int fd, off_t offset,
		       off_t len, bool hole)
{
	EXPECT_EQ(hole, is_hole(_metadata, fd, offset))
		TH_LOG("first page, at 0x%lx", offset);
	EXPECT_EQ(hole, is_hole(_metadata, fd, offset + len - PAGE))
		TH_LOG("last page, at 0x%lx", offset + len - PAGE);
	if (offset) {
		EXPECT_EQ(!hole, is_hole(_metadata, fd, offset - PAGE))
			TH_LOG("the page before, at 0x%lx", offset - PAGE);
	}
	if (offset + len < FILE_SIZE) {
		EXPECT_EQ(!hole, is_hole(_metadata, fd, offset + len))
			TH_LOG("the page behind, at 0x%lx", offset + len);
	}
}

TEST_F(file, stat)
{
	struct stat st;

	ASSERT_EQ(0, fstat(self->fd, &st));
	EXPECT_EQ(FILE_SIZE, st.st_size);
	EXPECT_EQ(PAGE, st.st_blksize);
	EXPECT_EQ(0, st.st_blocks);

	ASSERT_EQ(0, allocate_err(self->fd, 0, BLOCK));
	ASSERT_EQ(0, fstat(self->fd, &st));
	EXPECT_EQ(FILE_SIZE, st.st_size);
	EXPECT_EQ(PAGE, st.st_blksize);
	EXPECT_EQ(4096, st.st_blocks);
}

TEST_F(file, allocate_block)
{
	int i;

	/* The last one, too: it ends where the file does. */
	for (i = NR_BLOCKS - 1; i >= 0; i--) {
		EXPECT_EQ(0, allocate_err(self->fd, i * BLOCK, BLOCK));
		EXPECT_HELD((NR_BLOCKS - i) * BLOCK);
		EXPECT_HUGE(NR_BLOCKS - i);
		check_ends(_metadata, self->fd, i * BLOCK, FILE_SIZE - i * BLOCK, false);
	}
}

TEST_F(file, allocate_whole_file)
{
	EXPECT_EQ(0, allocate_err(self->fd, 0, FILE_SIZE));
	EXPECT_HELD(FILE_SIZE);
	EXPECT_HUGE(NR_BLOCKS);

	/* What is there stays. */
	EXPECT_EQ(0, allocate_err(self->fd, 0, FILE_SIZE));
	EXPECT_EQ(0, allocate_err(self->fd, BLOCK + PAGE, BLOCK));
	EXPECT_HELD(FILE_SIZE);
	EXPECT_HUGE(NR_BLOCKS);
}

/* Not a page more is taken than was asked for. */
TEST_F(file, allocate_parts_of_blocks)
{
	static const struct { off_t offset, len, blocks; } ranges[] = {
		{ 0, PAGE, 0 },
		{ BLOCK - PAGE, PAGE, 0 },
		{ 0, BLOCK - PAGE, 0 },
		{ PAGE, BLOCK - PAGE, 0 },
		{ BLOCK / 2, BLOCK, 0 },
		{ BLOCK - 3 * PAGE, BLOCK + 8 * PAGE, 1 },
		{ PAGE, 3 * BLOCK, 2 },
		{ FILE_SIZE - BLOCK - PAGE, BLOCK + PAGE, 1 },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		EXPECT_EQ(0, allocate_err(self->fd, ranges[i].offset, ranges[i].len));
		EXPECT_HELD(ranges[i].len)
			TH_LOG("0x%lx at 0x%lx", ranges[i].len, ranges[i].offset);
		EXPECT_HUGE(ranges[i].blocks)
			TH_LOG("0x%lx at 0x%lx", ranges[i].len, ranges[i].offset);
		check_ends(_metadata, self->fd, ranges[i].offset, ranges[i].len, false);
		ASSERT_EQ(0, punch_err(self->fd, 0, FILE_SIZE));
	}
}

/* Wherever in the block the page is. */
TEST_F(file, allocate_around_a_page)
{
	static const off_t pages[] = { 0, 1, 200, BLOCK_PAGES - 1 };
	int i;

	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		ASSERT_EQ(PAGE, pwrite(self->fd, self->buf, PAGE, BLOCK + pages[i] * PAGE));
		EXPECT_EQ(0, allocate_err(self->fd, 0, 3 * BLOCK));
		EXPECT_HELD(3 * BLOCK)
			TH_LOG("page %ld", pages[i]);
		EXPECT_HUGE(2)
			TH_LOG("page %ld", pages[i]);
		ASSERT_EQ(0, punch_err(self->fd, 0, FILE_SIZE));
	}
}

TEST_F(file, without_flag)
{
	ASSERT_EQ(0, err_of(fallocate(self->small, ALLOCATE, 0, 4 * BLOCK)));
	ASSERT_EQ(4 * BLOCK, pwrite(self->small, self->buf, 4 * BLOCK, 4 * BLOCK));
	EXPECT_EQ(FILE_SIZE, guest_memfd_held(self->small));
	EXPECT_HUGE(0);
}

TEST_F(file, punch_block)
{
	ASSERT_EQ(0, allocate_err(self->fd, 0, FILE_SIZE));

	EXPECT_EQ(0, punch_err(self->fd, 3 * BLOCK, BLOCK));
	EXPECT_HELD(FILE_SIZE - BLOCK);
	EXPECT_HUGE(NR_BLOCKS - 1);
	check_ends(_metadata, self->fd, 3 * BLOCK, BLOCK, true);

	/* A hole can be punched again, and filled again. */
	EXPECT_EQ(0, punch_err(self->fd, 3 * BLOCK, BLOCK));
	EXPECT_HELD(FILE_SIZE - BLOCK);
	EXPECT_EQ(0, allocate_err(self->fd, 3 * BLOCK, BLOCK));
	EXPECT_HELD(FILE_SIZE);
	EXPECT_HUGE(NR_BLOCKS);

	EXPECT_EQ(0, punch_err(self->fd, 0, LLONG_MAX & ~(PAGE - 1)));
	EXPECT_HELD(0);
	EXPECT_HUGE(0);
}

/* Exactly what was asked for is gone, and no block that was not touched breaks. */
TEST_F(file, punch_parts_of_blocks)
{
	static const struct { off_t offset, len, blocks; } ranges[] = {
		{ 2 * BLOCK, PAGE, NR_BLOCKS - 1 },
		{ 3 * BLOCK - PAGE, PAGE, NR_BLOCKS - 1 },
		{ 2 * BLOCK + 100 * PAGE, 7 * PAGE, NR_BLOCKS - 1 },
		{ 2 * BLOCK, BLOCK - PAGE, NR_BLOCKS - 1 },
		{ 2 * BLOCK + PAGE, BLOCK - PAGE, NR_BLOCKS - 1 },
		{ 2 * BLOCK + PAGE, BLOCK - 2 * PAGE, NR_BLOCKS - 1 },
		{ 2 * BLOCK - PAGE, 2 * PAGE, NR_BLOCKS - 2 },
		{ 2 * BLOCK - PAGE, BLOCK + PAGE, NR_BLOCKS - 2 },
		{ 2 * BLOCK, BLOCK + PAGE, NR_BLOCKS - 2 },
		{ BLOCK + BLOCK / 2, 4 * BLOCK, NR_BLOCKS - 5 },
		{ FILE_SIZE - PAGE, PAGE, NR_BLOCKS - 1 },
		{ 0, FILE_SIZE - PAGE, 0 },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		ASSERT_EQ(0, allocate_err(self->fd, 0, FILE_SIZE));
		EXPECT_HUGE(NR_BLOCKS);

		EXPECT_EQ(0, punch_err(self->fd, ranges[i].offset, ranges[i].len));
		EXPECT_HELD(FILE_SIZE - ranges[i].len)
			TH_LOG("0x%lx at 0x%lx", ranges[i].len, ranges[i].offset);
		EXPECT_HUGE(ranges[i].blocks)
			TH_LOG("0x%lx at 0x%lx", ranges[i].len, ranges[i].offset);
		check_ends(_metadata, self->fd, ranges[i].offset, ranges[i].len, true);

		ASSERT_EQ(0, punch_err(self->fd, 0, FILE_SIZE));
		EXPECT_HELD(0);
		EXPECT_HUGE(0);
	}
}

/* The part of a block that is past the end of the range asked for is not the file's. */
TEST_F(file, punch_past_the_end)
{
	ASSERT_EQ(0, allocate_err(self->fd, 0, FILE_SIZE));
	EXPECT_EQ(0, punch_err(self->fd, FILE_SIZE, BLOCK));
	EXPECT_EQ(0, punch_err(self->fd, 1UL << 40, 1UL << 40));
	EXPECT_HELD(FILE_SIZE);
	EXPECT_HUGE(NR_BLOCKS);

	EXPECT_EQ(0, punch_err(self->fd, FILE_SIZE - 3 * PAGE, 1UL << 40));
	EXPECT_HELD(FILE_SIZE - 3 * PAGE);
	EXPECT_HUGE(NR_BLOCKS - 1);
}

/* A block is a block again when the last of its pages is gone. */
TEST_F(file, punch_piece_by_piece)
{
	int i;

	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, allocate_err(self->fd, 0, BLOCK));
		EXPECT_HUGE(1);
		EXPECT_EQ(0, punch_err(self->fd, 0, BLOCK / 2));
		EXPECT_EQ(0, allocate_err(self->fd, 0, BLOCK));
		EXPECT_HELD(BLOCK);
		EXPECT_HUGE(0);
		EXPECT_EQ(0, punch_err(self->fd, BLOCK / 2, BLOCK / 2));
		EXPECT_EQ(0, punch_err(self->fd, 0, BLOCK / 2));
		EXPECT_HELD(0);
	}
}

TEST_F(file, pwrite_block)
{
	EXPECT_EQ(BLOCK, pwrite(self->fd, self->buf, BLOCK, BLOCK));
	EXPECT_HELD(BLOCK);
	EXPECT_HUGE(1);
	check_ends(_metadata, self->fd, BLOCK, BLOCK, false);

	EXPECT_EQ(FILE_SIZE - 2 * BLOCK, pwrite(self->fd, self->buf, FILE_SIZE - 2 * BLOCK,
						2 * BLOCK));
	EXPECT_HELD(FILE_SIZE - BLOCK);
	EXPECT_HUGE(NR_BLOCKS - 1);
}

TEST_F(file, pwrite_parts_of_blocks)
{
	EXPECT_EQ(BLOCK - PAGE, pwrite(self->fd, self->buf, BLOCK - PAGE, 0));
	EXPECT_HELD(BLOCK - PAGE);
	EXPECT_HUGE(0);
	EXPECT_EQ(PAGE, pwrite(self->fd, self->buf, PAGE, BLOCK - PAGE));
	EXPECT_HELD(BLOCK);
	EXPECT_HUGE(0);

	/* A tail, two blocks, a head. */
	EXPECT_EQ(2 * BLOCK + 8 * PAGE, pwrite(self->fd, self->buf, 2 * BLOCK + 8 * PAGE,
					       3 * BLOCK - 3 * PAGE));
	EXPECT_HELD(3 * BLOCK + 8 * PAGE);
	EXPECT_HUGE(2);
	check_ends(_metadata, self->fd, 3 * BLOCK - 3 * PAGE, 2 * BLOCK + 8 * PAGE, false);
}

/* A page in the midst of a block ends a write where it is, as anywhere else. */
TEST_F(file, pwrite_exists)
{
	ASSERT_EQ(0, allocate_err(self->fd, BLOCK + 100 * PAGE, PAGE));

	EXPECT_EQ(BLOCK + 100 * PAGE, pwrite(self->fd, self->buf, FILE_SIZE, 0));
	EXPECT_HELD(BLOCK + 101 * PAGE);
	EXPECT_HUGE(1);
	EXPECT_EQ(EEXIST, err_of(pwrite(self->fd, self->buf, BLOCK, BLOCK + 100 * PAGE)));
	EXPECT_EQ(BLOCK_PAGES * PAGE - 101 * PAGE,
		  pwrite(self->fd, self->buf, BLOCK - 101 * PAGE, BLOCK + 101 * PAGE));
	EXPECT_HELD(2 * BLOCK);
	EXPECT_HUGE(1);
}

/* Each page of a huge one is there. */
TEST_F(file, pwrite_exists_huge)
{
	off_t offset;

	ASSERT_EQ(0, allocate_err(self->fd, BLOCK, BLOCK));

	for (offset = BLOCK; offset < 2 * BLOCK; offset += PAGE) {
		ASSERT_EQ(EEXIST, err_of(pwrite(self->fd, self->buf, PAGE, offset)))
			TH_LOG("offset 0x%lx", offset);
	}
	EXPECT_EQ(EEXIST, err_of(pwrite(self->fd, self->buf, BLOCK, BLOCK)));
	EXPECT_EQ(5 * PAGE, pwrite(self->fd, self->buf, BLOCK, BLOCK - 5 * PAGE));
	EXPECT_HELD(BLOCK + 5 * PAGE);
	EXPECT_HUGE(1);
}

/* The flag changes nothing about how far a write gets. */
TEST_F(file, pwrite_source_fault)
{
	char *end = self->buf + BLOCK + 100 * PAGE;

	ASSERT_EQ(0, munmap(end, FILE_SIZE - BLOCK - 100 * PAGE));

	EXPECT_EQ(EFAULT, err_of(pwrite(self->fd, end, BLOCK, 0)));
	EXPECT_EQ(EFAULT, err_of(pwrite(self->fd, end - 100, BLOCK, 0)));
	EXPECT_HELD(0);

	EXPECT_EQ(BLOCK + 100 * PAGE, pwrite(self->fd, self->buf, 2 * BLOCK, 0));
	EXPECT_HELD(BLOCK + 100 * PAGE);
	EXPECT_HUGE(1);
	check_ends(_metadata, self->fd, 0, BLOCK + 100 * PAGE, false);

	EXPECT_EQ(99 * PAGE, pwrite(self->fd, end - 99 * PAGE - 1, BLOCK, 4 * BLOCK));
	EXPECT_HELD(BLOCK + 199 * PAGE);
	EXPECT_HUGE(1);
}

struct worker {
	pthread_t thread;
	int fd;
	char *buf;
	size_t step;
	long pages;		/* how many this one filled */
	int err;
	unsigned int seed;
	atomic_bool *stop;
};

static void *race_to_fill(void *arg)
{
	struct worker *w = arg;
	off_t off = 0;

	while (off < FILE_SIZE) {
		ssize_t ret = pwrite(w->fd, w->buf, min(w->step, (size_t)(FILE_SIZE - off)), off);

		if (ret > 0) {
			w->pages += ret / PAGE;
			off += ret;
		} else if (errno == EEXIST) {
			off += PAGE;
		} else {
			w->err = errno;
			break;
		}
	}
	return NULL;
}

/* Whoever comes first has the page, in pieces of whatever size, and nobody after. */
TEST_F(file, racing_writers)
{
	static const size_t steps[] = { FILE_SIZE, PAGE, BLOCK, 37 * PAGE };
	struct worker w[ARRAY_SIZE(steps)];
	int round, i;
	long pages;

	for (round = 0; round < 10; round++) {
		ASSERT_EQ(0, punch_err(self->fd, 0, FILE_SIZE));
		for (i = 0; i < ARRAY_SIZE(w); i++) {
			w[i] = (struct worker){ .fd = self->fd, .buf = self->buf,
						.step = steps[i] };
			ASSERT_EQ(0, pthread_create(&w[i].thread, NULL, race_to_fill, &w[i]));
		}
		for (pages = i = 0; i < ARRAY_SIZE(w); i++) {
			ASSERT_EQ(0, pthread_join(w[i].thread, NULL));
			EXPECT_EQ(0, w[i].err);
			pages += w[i].pages;
		}
		ASSERT_EQ(FILE_SIZE / PAGE, pages);
		EXPECT_HELD(FILE_SIZE);
	}
}

static void *do_anything(void *arg)
{
	struct worker *w = arg;

	while (!atomic_load(w->stop)) {
		bool blocks = rand_r(&w->seed) % 2;
		size_t unit = blocks ? BLOCK : PAGE;
		off_t start = rand_r(&w->seed) % (FILE_SIZE / unit) * unit;
		off_t len = (1 + rand_r(&w->seed) % (blocks ? 3 : 40)) * unit;
		int err = 0;

		len = min(len, (off_t)FILE_SIZE - start);
		switch (rand_r(&w->seed) % 3) {
		case 0:
			err = err_of(fallocate(w->fd, ALLOCATE, start, len));
			break;
		case 1:
			err = err_of(fallocate(w->fd, PUNCH, start, len));
			break;
		case 2:
			err = err_of(pwrite(w->fd, w->buf + start, len, start));
			if (err == EEXIST)
				err = 0;
			break;
		}
		if (err)
			w->err = err;
		w->pages++;
	}
	return NULL;
}

/* All at once, all over each other: it works, and the count is right in the end. */
TEST_F(file, all_at_once)
{
	struct worker w[4];
	atomic_bool stop = false;
	int i;

	for (i = 0; i < ARRAY_SIZE(w); i++) {
		w[i] = (struct worker){ .fd = self->fd, .buf = self->buf, .seed = i + 1,
					.stop = &stop };
		ASSERT_EQ(0, pthread_create(&w[i].thread, NULL, do_anything, &w[i]));
	}
	sleep(2);
	atomic_store(&stop, true);
	for (i = 0; i < ARRAY_SIZE(w); i++) {
		ASSERT_EQ(0, pthread_join(w[i].thread, NULL));
		EXPECT_EQ(0, w[i].err);
		EXPECT_LT(0, w[i].pages);
	}

	EXPECT_EQ(0, allocate_err(self->fd, 0, FILE_SIZE));
	EXPECT_HELD(FILE_SIZE);
	EXPECT_EQ(0, punch_err(self->fd, 0, FILE_SIZE));
	EXPECT_HELD(0);
	EXPECT_HUGE(0);
}

TEST_F(file, unevictable)
{
	long before = meminfo_bytes("Unevictable");

	ASSERT_EQ(0, allocate_err(self->fd, 0, FILE_SIZE / 2));
	ASSERT_EQ(FILE_SIZE / 2, pwrite(self->fd, self->buf, FILE_SIZE / 2, FILE_SIZE / 2));
	EXPECT_LE(before + (long)FILE_SIZE - SLACK, meminfo_bytes("Unevictable"));

	/* Split or not. */
	ASSERT_EQ(0, punch_err(self->fd, FILE_SIZE / 2, PAGE));
	ASSERT_EQ(0, punch_err(self->fd, 0, PAGE));
	EXPECT_LE(before + (long)FILE_SIZE - SLACK, meminfo_bytes("Unevictable"));

	ASSERT_EQ(0, punch_err(self->fd, 0, FILE_SIZE));
	EXPECT_GE(before + SLACK, meminfo_bytes("Unevictable"));
}

/* The memory is the system's again, whichever way it leaves the file. */
TEST_F(file, freed)
{
	long before = host_pages_in_use();

	ASSERT_EQ(0, allocate_err(self->fd, 0, FILE_SIZE));
	EXPECT_LE(before + (long)(FILE_SIZE - SLACK) / (long)PAGE, host_pages_in_use());
	ASSERT_EQ(0, punch_err(self->fd, 0, FILE_SIZE));
	EXPECT_GE(before + SLACK / (long)PAGE, host_pages_in_use());

	ASSERT_EQ(0, allocate_err(self->fd, 0, FILE_SIZE));
	ASSERT_EQ(0, punch_err(self->fd, PAGE, FILE_SIZE - 2 * PAGE));
	EXPECT_GE(before + SLACK / (long)PAGE, host_pages_in_use());

	ASSERT_EQ(0, allocate_err(self->fd, 0, FILE_SIZE));
	ASSERT_EQ(0, close(self->fd));
	EXPECT_GE(before + SLACK / (long)PAGE, host_pages_in_use());
	EXPECT_HUGE(0);
}

/*
 * Host memory in small pieces only: it works as if the flag were not there, and does
 * not spend its time looking for what cannot be had.
 */

static long allocate_ns(struct __test_metadata *_metadata, int fd)
{
	struct timespec start, end;

	ASSERT_EQ(0, err_of(fallocate(fd, PUNCH, 0, FILE_SIZE)));
	clock_gettime(CLOCK_MONOTONIC, &start);
	EXPECT_EQ(0, err_of(fallocate(fd, ALLOCATE, 0, FILE_SIZE)));
	clock_gettime(CLOCK_MONOTONIC, &end);
	return (end.tv_sec - start.tv_sec) * 1000000000 + end.tv_nsec - start.tv_nsec;
}

TEST_F_TIMEOUT(file, fragmented_host, 300)
{
	long ns, huge_ns = LONG_MAX, small_ns = LONG_MAX, stalls, i;
	struct fragments f;

	if (!memory_fragment(&f, self->vm))
		SKIP(return, "No CONFIG_HUGETLBFS, which takes most of the memory");

	for (i = 0; i < 3; i++) {
		ns = allocate_ns(_metadata, self->small);
		small_ns = min(ns, small_ns);
		ASSERT_EQ(0, err_of(fallocate(self->small, PUNCH, 0, FILE_SIZE)));

		stalls = vmstat_value("compact_stall");
		ns = allocate_ns(_metadata, self->fd);
		huge_ns = min(ns, huge_ns);
		EXPECT_EQ(stalls, vmstat_value("compact_stall"))
			TH_LOG("waited for memory to be moved");
		EXPECT_HELD(FILE_SIZE);
		EXPECT_GT(NR_BLOCKS / 2, nr_huge(self->huge))
			TH_LOG("there were huge pages, so this case showed nothing");
		ASSERT_EQ(0, punch_err(self->fd, 0, FILE_SIZE));
	}
	EXPECT_LE(huge_ns, 3 * small_ns);

	EXPECT_EQ(FILE_SIZE, pwrite(self->fd, self->buf, FILE_SIZE, 0));
	EXPECT_HELD(FILE_SIZE);
	ASSERT_EQ(0, punch_err(self->fd, 0, FILE_SIZE));

	/* It was the host and nothing else. */
	memory_unfragment(&f);
	EXPECT_EQ(0, allocate_err(self->fd, 0, FILE_SIZE));
	EXPECT_HUGE(NR_BLOCKS);
}

/*
 * The memory cgroup of whoever has them allocated is charged for huge pages as it is
 * for small ones.
 */
#define LIMIT		((long)FILE_SIZE / 2)

FIXTURE(cgroup) {
	struct kvm_vm *vm;
	int fd;
	long huge;
	struct memcg cg;
	char *buf;		/* FILE_SIZE bytes */
	off_t *written;		/* shared with children */
};

FIXTURE_SETUP(cgroup)
{
	self->vm = create_protected_vm();
	self->fd = vm_create_guest_memfd(self->vm, FILE_SIZE, HUGE);
	self->huge = file_huge_bytes();
	memcg_create(&self->cg);

	self->buf = mmap(NULL, FILE_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->buf);
	self->written = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			     -1, 0);
	ASSERT_NE(MAP_FAILED, self->written);
}

FIXTURE_TEARDOWN(cgroup)
{
	EXPECT_EQ(0, close(self->fd));
	kvm_vm_free(self->vm);
	memcg_destroy(&self->cg);
}

/* The errno that a process inside the group gets. */
static int wait_for_child(struct __test_metadata *_metadata, pid_t pid)
{
	int status;

	EXPECT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFEXITED(status));
	EXPECT_GT(254, WEXITSTATUS(status));
	return WEXITSTATUS(status);
}

static pid_t start_fallocate(struct memcg *cg, int fd, off_t offset, off_t len)
{
	pid_t pid = fork();

	if (!pid) {
		memcg_enter(cg);
		_exit(err_of(fallocate(fd, ALLOCATE, offset, len)));
	}
	return pid;
}

static int fallocate_in_cgroup(struct __test_metadata *_metadata, struct memcg *cg,
			       int fd, off_t offset, off_t len)
{
	return wait_for_child(_metadata, start_fallocate(cg, fd, offset, len));
}

/* Writes until it fails: how far it got is left in *written. */
static int pwrite_in_cgroup(struct __test_metadata *_metadata, struct memcg *cg,
			    int fd, const char *src, size_t len, off_t *written)
{
	pid_t pid = fork();
	ssize_t ret;

	if (!pid) {
		/* It stays at the limit, and must have all that it needs till its end. */
		if (mlockall(MCL_CURRENT))
			_exit(255);
		memcg_enter(cg);
		while ((ret = pwrite(fd, src, len - *written, *written)) > 0)
			*written += ret;
		_exit(err_of(ret));
	}
	return wait_for_child(_metadata, pid);
}

/* What is charged beyond this much; a process may need something for itself. */
static long charged_beyond(struct memcg *cg, long bytes)
{
	long beyond = memcg_usage(cg) - bytes;

	return beyond >= 0 && beyond <= SLACK ? 0 : beyond;
}

#define EXPECT_CHARGED(bytes)	EXPECT_EQ(0, charged_beyond(&self->cg, bytes))

TEST_F(cgroup, charged_to_who_allocates)
{
	ASSERT_EQ(0, allocate_err(self->fd, 0, FILE_SIZE / 2));
	EXPECT_CHARGED(0);

	EXPECT_EQ(0, fallocate_in_cgroup(_metadata, &self->cg, self->fd, 0, FILE_SIZE));
	EXPECT_HUGE(NR_BLOCKS);
	EXPECT_CHARGED(FILE_SIZE / 2);

	/* In halves, in pages: a split changes nothing about it. */
	ASSERT_EQ(0, punch_err(self->fd, FILE_SIZE - BLOCK / 2, BLOCK / 2));
	EXPECT_CHARGED(FILE_SIZE / 2 - BLOCK / 2);
	ASSERT_EQ(0, punch_err(self->fd, FILE_SIZE - BLOCK, BLOCK / 2));
	EXPECT_CHARGED(FILE_SIZE / 2 - BLOCK);

	ASSERT_EQ(0, punch_err(self->fd, 0, FILE_SIZE));
	EXPECT_CHARGED(0);
}

/* All is given back, that in huge pages as that in small ones for which it was enough. */
TEST_F(cgroup, limit)
{
	memcg_limit(&self->cg, LIMIT);
	EXPECT_EQ(ENOMEM, fallocate_in_cgroup(_metadata, &self->cg, self->fd, 0, FILE_SIZE));

	EXPECT_HELD(0);
	EXPECT_HUGE(0);
	EXPECT_CHARGED(0);
	EXPECT_EQ(FILE_SIZE, pwrite(self->fd, self->buf, FILE_SIZE, 0));
}

/* So is that of a block which somebody splits meanwhile, by a punch of one page. */
TEST_F(cgroup, limit_while_punched)
{
	siginfo_t info;
	pid_t pid;
	int i, j;

	memcg_limit(&self->cg, LIMIT);
	for (i = 0; i < 10; i++) {
		pid = start_fallocate(&self->cg, self->fd, 0, FILE_SIZE);
		do {
			for (j = 0; j < NR_BLOCKS; j++)
				ASSERT_EQ(0, punch_err(self->fd, j * BLOCK + 7 * PAGE, PAGE));
			info.si_pid = 0;
			ASSERT_EQ(0, waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT));
		} while (!info.si_pid);

		EXPECT_EQ(ENOMEM, wait_for_child(_metadata, pid));
		EXPECT_HELD(0);
		EXPECT_HUGE(0);
	}
	EXPECT_CHARGED(0);
}

/* What the file had before is not the failed call's to take back. */
TEST_F(cgroup, limit_keeps_what_was_there)
{
	const off_t page = 2 * BLOCK + 7 * PAGE;

	ASSERT_EQ(0, allocate_err(self->fd, BLOCK, BLOCK));
	ASSERT_EQ(PAGE, pwrite(self->fd, self->buf, PAGE, page));
	memcg_limit(&self->cg, LIMIT);
	EXPECT_EQ(ENOMEM, fallocate_in_cgroup(_metadata, &self->cg, self->fd, 0, FILE_SIZE));

	EXPECT_HELD(BLOCK + PAGE);
	EXPECT_HUGE(1);
	check_ends(_metadata, self->fd, BLOCK, BLOCK, false);
	check_ends(_metadata, self->fd, page, PAGE, false);
}

/* The last of what may be had is had, although no huge page fits in any more. */
TEST_F(cgroup, limit_of_pwrite)
{
	/* Of the source, too: children share it with the parent, which is not charged. */
	EXPECT_EQ(0, mlock(self->buf, FILE_SIZE));
	memcg_limit(&self->cg, LIMIT + SLACK);
	EXPECT_EQ(ENOMEM, pwrite_in_cgroup(_metadata, &self->cg, self->fd, self->buf,
					   FILE_SIZE, self->written));

	EXPECT_LE(LIMIT, *self->written);
	EXPECT_GE(LIMIT + SLACK, *self->written);
	EXPECT_HELD(*self->written);
	EXPECT_CHARGED(*self->written);
	EXPECT_LE(NR_BLOCKS / 2 - 1, nr_huge(self->huge));
	EXPECT_NE(0, *self->written % BLOCK)
		TH_LOG("nothing was written in small pages, so this case showed nothing");
	check_ends(_metadata, self->fd, 0, *self->written, false);
}

/*
 * What was the guest's is the guest's only: nobody finds it in the memory afterwards,
 * and what was not punched is there still, in the same place.  Root may look, through
 * /proc/kcore, at where the pages are.
 */
FIXTURE(secret) {
	struct kvm_vm *vm;
	int fd;
	struct memcg cg;
	char *secret;		/* BLOCK bytes, which are in the file too */
	uint64_t pfn;		/* where they are there */
	int kcore;
};

FIXTURE_SETUP(secret)
{
	long huge;

	self->vm = create_protected_vm();
	self->fd = vm_create_guest_memfd(self->vm, 2 * BLOCK, HUGE);
	self->kcore = open("/proc/kcore", O_RDONLY);
	self->secret = shared_mem_alloc(BLOCK);
	fill_with_secret(self->secret, BLOCK);

	memcg_create(&self->cg);
	memcg_enter(&self->cg);
	huge = file_huge_bytes();
	self->pfn = memcg_take_and_find(&self->cg, self->fd, BLOCK, self->secret, BLOCK);
	ASSERT_EQ(1, nr_huge(huge));
}

FIXTURE_TEARDOWN(secret)
{
	close(self->fd);
	close(self->kcore);
	kvm_vm_free(self->vm);
	memcg_destroy(&self->cg);
}

enum seen { GONE, KEPT, ZERO };

/* What became of pages [page, page + nr) of the secret, where they were. */
static void check_frames(struct __test_metadata *_metadata, struct _test_data_secret *self,
			 int page, int nr, enum seen seen)
{
	const int words = PAGE / sizeof(uint64_t);
	static uint64_t frames[BLOCK / sizeof(uint64_t)];
	uint64_t *frame = frames, *secret = (uint64_t *)(self->secret + page * PAGE);
	int i, j, same, zero;

	ASSERT_TRUE(read_frames(self->kcore, self->pfn + page, nr, frames));
	for (i = page; i < page + nr; i++, frame += words, secret += words) {
		for (same = zero = j = 0; j < words; j++) {
			same += frame[j] == secret[j];
			zero += !frame[j];
		}
		ASSERT_EQ(seen == KEPT ? words : 0, same)
			TH_LOG("page %d", i);
		if (seen == ZERO) {
			ASSERT_EQ(words, zero)
				TH_LOG("page %d", i);
		}
	}
}

#define EXPECT_FRAMES(page, nr, seen)	check_frames(_metadata, self, page, nr, seen)

/* Nobody drops it, or puts it elsewhere, to make room. */
TEST_F(secret, left_alone)
{
	if (self->kcore < 0)
		SKIP(return, "No CONFIG_PROC_KCORE");

	EXPECT_FRAMES(0, BLOCK_PAGES, KEPT);
	dir_write("/proc/sys/vm", "drop_caches", "3");
	dir_write("/proc/sys/vm", "compact_memory", "1");
	EXPECT_HELD(BLOCK);
	EXPECT_FRAMES(0, BLOCK_PAGES, KEPT);

	/* Nor in pieces. */
	ASSERT_EQ(0, punch_err(self->fd, BLOCK, BLOCK / 2));
	dir_write("/proc/sys/vm", "drop_caches", "3");
	dir_write("/proc/sys/vm", "compact_memory", "1");
	EXPECT_HELD(BLOCK / 2);
	EXPECT_FRAMES(BLOCK_PAGES / 2, BLOCK_PAGES / 2, KEPT);
}

TEST_F(secret, punched)
{
	if (self->kcore < 0)
		SKIP(return, "No CONFIG_PROC_KCORE");

	/* Else that it is gone would mean nothing. */
	EXPECT_FRAMES(0, BLOCK_PAGES, KEPT);
	ASSERT_EQ(0, punch_err(self->fd, BLOCK, BLOCK));
	EXPECT_FRAMES(0, BLOCK_PAGES, GONE);
}

TEST_F(secret, closed)
{
	if (self->kcore < 0)
		SKIP(return, "No CONFIG_PROC_KCORE");

	EXPECT_FRAMES(0, BLOCK_PAGES, KEPT);
	ASSERT_EQ(0, close(self->fd));
	self->fd = -1;
	EXPECT_FRAMES(0, BLOCK_PAGES, GONE);
}

TEST_F(secret, partly_punched)
{
	if (self->kcore < 0)
		SKIP(return, "No CONFIG_PROC_KCORE");

	ASSERT_EQ(0, punch_err(self->fd, BLOCK + 100 * PAGE, 7 * PAGE));
	EXPECT_FRAMES(0, 100, KEPT);
	EXPECT_FRAMES(100, 7, GONE);
	EXPECT_FRAMES(107, BLOCK_PAGES - 107, KEPT);

	/* The first page is the one that stood for all. */
	ASSERT_EQ(0, punch_err(self->fd, BLOCK, PAGE));
	EXPECT_FRAMES(0, 1, GONE);
	EXPECT_FRAMES(1, 99, KEPT);
	ASSERT_EQ(0, punch_err(self->fd, 2 * BLOCK - PAGE, PAGE));
	EXPECT_FRAMES(BLOCK_PAGES - 1, 1, GONE);
	EXPECT_FRAMES(107, BLOCK_PAGES - 108, KEPT);

	ASSERT_EQ(0, close(self->fd));
	self->fd = -1;
	EXPECT_FRAMES(0, BLOCK_PAGES, GONE);
}

/*
 * Where memory for the split cannot be had the pages stay, but what they held does
 * not.  They go when they are asked to again.
 */
TEST_F(secret, partly_punched_without_split)
{
	int err;

	if (self->kcore < 0)
		SKIP(return, "No CONFIG_PROC_KCORE");
	if (!failslab_setup())
		SKIP(return, "No CONFIG_FAILSLAB, or no debugfs to set it up");

	failslab_begin(0);
	err = punch_err(self->fd, BLOCK + 100 * PAGE, 7 * PAGE);
	failslab_end();
	EXPECT_EQ(0, err);
	EXPECT_HELD(BLOCK)
		TH_LOG("the split did not fail, so this case showed nothing");
	EXPECT_FRAMES(0, 100, KEPT);
	EXPECT_FRAMES(100, 7, ZERO);
	EXPECT_FRAMES(107, BLOCK_PAGES - 107, KEPT);

	ASSERT_EQ(0, punch_err(self->fd, BLOCK + 100 * PAGE, 7 * PAGE));
	EXPECT_HELD(BLOCK - 7 * PAGE);
	EXPECT_FRAMES(0, 100, KEPT);
	EXPECT_FRAMES(107, BLOCK_PAGES - 107, KEPT);

	ASSERT_EQ(0, punch_err(self->fd, 0, 2 * BLOCK));
	EXPECT_HELD(0);
	EXPECT_FRAMES(0, BLOCK_PAGES, GONE);
}

/* The same where it is over two blocks, the second of which goes as a whole. */
TEST_F(secret, punched_across_without_split)
{
	int err;

	if (self->kcore < 0)
		SKIP(return, "No CONFIG_PROC_KCORE");
	if (!failslab_setup())
		SKIP(return, "No CONFIG_FAILSLAB, or no debugfs to set it up");

	ASSERT_EQ(0, allocate_err(self->fd, 0, BLOCK));
	failslab_begin(0);
	err = punch_err(self->fd, BLOCK - PAGE, BLOCK + PAGE);
	failslab_end();
	EXPECT_EQ(0, err);
	EXPECT_HELD(BLOCK)
		TH_LOG("the split did not fail, so this case showed nothing");
	EXPECT_FRAMES(0, BLOCK_PAGES, GONE);
}

/*
 * A CPU hands out the block that was freed there last, and does not look at it, if it has
 * kept it for itself; usually there is room for two or three.
 */
#define CPU_KEEPS	"percpu_pagelist_high_fraction"

static char cpu_keeps_before[16];

static void cpu_keeps_restore(void)
{
	dir_write("/proc/sys/vm", CPU_KEEPS, cpu_keeps_before);
}

static void have_freed_come_back(struct __test_metadata *_metadata)
{
	int fd = open("/proc/sys/vm/" CPU_KEEPS, O_RDONLY);

	ASSERT_LT(0, read(fd, cpu_keeps_before, sizeof(cpu_keeps_before) - 1));
	close(fd);
	/* However the case ends. */
	atexit(cpu_keeps_restore);
	dir_write("/proc/sys/vm", CPU_KEEPS, "8");
	stay_on_cpu();
}

/*
 * A page that has a memory error and is given up is nobody's, be it by itself or in a
 * block: neither of the others of its block, from which it was not split.
 */
TEST_F(secret, memory_error_without_split)
{
	const int bad = 123, behind = bad + 1;

	if (self->kcore < 0)
		SKIP(return, "No CONFIG_PROC_KCORE");
	if (!failslab_setup())
		SKIP(return, "No CONFIG_FAILSLAB, or no debugfs to set it up");

	have_freed_come_back(_metadata);

	/* Else that it does not would mean nothing. */
	ASSERT_EQ(0, punch_err(self->fd, BLOCK, BLOCK));
	ASSERT_EQ(BLOCK, pwrite(self->fd, self->secret, BLOCK, 0));
	EXPECT_FRAMES(0, BLOCK_PAGES, KEPT);

	memory_error_without_split(self->pfn + bad);
	ASSERT_EQ(0, punch_err(self->fd, 0, BLOCK));
	EXPECT_HELD(0);
	ASSERT_EQ(BLOCK, pwrite(self->fd, self->secret, BLOCK, 0));
	ASSERT_EQ(BLOCK, pwrite(self->fd, self->secret, BLOCK, BLOCK));
	EXPECT_FRAMES(0, bad, GONE);
	EXPECT_FRAMES(behind, BLOCK_PAGES - behind, GONE);
	cpu_keeps_restore();
}

TEST_HARNESS_MAIN
