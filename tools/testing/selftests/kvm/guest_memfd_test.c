// SPDX-License-Identifier: GPL-2.0-only
/*
 * The file that KVM_CREATE_GUEST_MEMFD returns: how it is made, and what its
 * owner can do with it and cannot.
 */
#define _GNU_SOURCE /* for fallocate(), splice() and their like */
#include <fcntl.h>
#include <limits.h>
#include <linux/aio_abi.h>
#include <linux/falloc.h>
#include <linux/io_uring.h>
#include <linux/kernel-page-flags.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "kvm_harness.h"
#include "private_mem.h"

#define PAGE		4096UL
#define NR_PAGES	16
#define FILE_SIZE	(NR_PAGES * PAGE)

#define ALLOCATE	FALLOC_FL_KEEP_SIZE
#define PUNCH		(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)

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

TEST_F(create, size)
{
	static const uint64_t bad[] = {
		0, 1, PAGE - 1, PAGE + 1, -PAGE, 1ULL << 63, UINT64_MAX,
	};
	static const uint64_t good[] = {
		PAGE, 3 * PAGE, 1ULL << 40, LLONG_MAX & ~(PAGE - 1),
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(EINVAL, err_of(__vm_create_guest_memfd(self->vm, bad[i], 0)))
			TH_LOG("size 0x%lx", bad[i]);
	}

	for (i = 0; i < ARRAY_SIZE(good); i++) {
		EXPECT_EQ(0, err_of(__vm_create_guest_memfd(self->vm, good[i], 0)))
			TH_LOG("size 0x%lx", good[i]);
	}
}

/* The size suits any flag, so that a flag alone makes the difference. */
TEST_F(create, flags)
{
	uint64_t known = vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_FLAGS);
	int i;

	EXPECT_EQ(KVM_GUEST_MEMFD_ALLOW_HUGEPAGE, known);
	for (i = 0; i < 64; i++) {
		EXPECT_EQ(known & (1ULL << i) ? 0 : EINVAL,
			  err_of(__vm_create_guest_memfd(self->vm, 1 << 30, 1ULL << i)))
			TH_LOG("flag 1 << %d", i);
	}
	EXPECT_EQ(EINVAL, err_of(__vm_create_guest_memfd(self->vm, 1 << 30, -1ULL)));
}

TEST_F(create, reserved)
{
	int i;

	for (i = 0; i < 6; i++) {
		struct kvm_create_guest_memfd args = { .size = PAGE };

		args.reserved[i] = 1;
		EXPECT_EQ(EINVAL, err_of(__vm_ioctl(self->vm, KVM_CREATE_GUEST_MEMFD, &args)))
			TH_LOG("reserved[%d]", i);
		args.reserved[i] = 1ULL << 63;
		EXPECT_EQ(EINVAL, err_of(__vm_ioctl(self->vm, KVM_CREATE_GUEST_MEMFD, &args)))
			TH_LOG("reserved[%d]", i);
	}
}

TEST_F(create, bad_pointer)
{
	struct kvm_create_guest_memfd *args = NULL;

	EXPECT_EQ(EFAULT, err_of(__vm_ioctl(self->vm, KVM_CREATE_GUEST_MEMFD, args)));
}

TEST_F(create, default_vm)
{
	struct kvm_vm *vm = vm_create_barebones();
	char buf[PAGE] = "";
	int fd = __vm_create_guest_memfd(vm, FILE_SIZE, 0);

	ASSERT_LE(0, fd);
	EXPECT_EQ(0, err_of(fallocate(fd, ALLOCATE, 0, PAGE)));
	EXPECT_EQ(PAGE, pwrite(fd, buf, PAGE, PAGE));
	close(fd);
	kvm_vm_free(vm);
}

TEST_F(create, own_inode)
{
	int a = vm_create_guest_memfd(self->vm, PAGE, 0);
	int b = vm_create_guest_memfd(self->vm, PAGE, 0);
	struct stat st_a, st_b, st_vm;

	ASSERT_EQ(0, fstat(a, &st_a));
	ASSERT_EQ(0, fstat(b, &st_b));
	ASSERT_EQ(0, fstat(self->vm->fd, &st_vm));
	EXPECT_NE(st_a.st_ino, st_b.st_ino);
	EXPECT_NE(st_a.st_ino, st_vm.st_ino);
	EXPECT_NE(st_b.st_ino, st_vm.st_ino);
}

TEST_F(create, stat)
{
	struct stat st;
	int fd;

	fd = vm_create_guest_memfd(self->vm, FILE_SIZE, 0);
	ASSERT_EQ(0, fstat(fd, &st));
	EXPECT_EQ(FILE_SIZE, st.st_size);
	EXPECT_EQ(PAGE, st.st_blksize);

	fd = vm_create_guest_memfd(self->vm, 1ULL << 40, 0);
	ASSERT_EQ(0, fstat(fd, &st));
	EXPECT_EQ(1ULL << 40, st.st_size);
	EXPECT_EQ(PAGE, st.st_blksize);
}

/*
 * A file whose first page has contents and whose others are holes.
 */
FIXTURE(file) {
	struct kvm_vm *vm;
	int fd;
	char *buf;	/* one byte value per page, FILE_SIZE bytes */
	int memfd;	/* an ordinary file of the same contents */
	int pipe[2];
};

FIXTURE_SETUP(file)
{
	int i;

	self->vm = create_protected_vm();
	self->fd = vm_create_guest_memfd(self->vm, FILE_SIZE, 0);

	self->buf = mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->buf);
	for (i = 0; i < NR_PAGES; i++)
		memset(self->buf + i * PAGE, 'a' + i, PAGE);

	ASSERT_EQ(PAGE, pwrite(self->fd, self->buf, PAGE, 0));

	self->memfd = memfd_create("source", 0);
	ASSERT_LE(0, self->memfd);
	ASSERT_EQ(FILE_SIZE, write(self->memfd, self->buf, FILE_SIZE));
	ASSERT_EQ(0, pipe(self->pipe));
}

FIXTURE_TEARDOWN(file)
{
	close(self->fd);
	kvm_vm_free(self->vm);
}

/* Whether the file has no page there; a hole is a hole again afterwards. */
static bool is_hole(struct __test_metadata *_metadata, int fd, unsigned long page)
{
	char buf[PAGE] = "";
	ssize_t ret = pwrite(fd, buf, PAGE, page * PAGE);

	if (ret < 0) {
		EXPECT_EQ(EEXIST, errno);
		return false;
	}

	EXPECT_EQ(PAGE, ret);
	EXPECT_EQ(0, err_of(fallocate(fd, PUNCH, page * PAGE, PAGE)));
	return true;
}

TEST_F(file, mmap)
{
	static const int prot[] = {
		PROT_NONE, PROT_READ, PROT_WRITE, PROT_READ | PROT_WRITE,
	};
	static const int flags[] = { MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE };
	int i, j;

	for (i = 0; i < ARRAY_SIZE(prot); i++) {
		for (j = 0; j < ARRAY_SIZE(flags); j++) {
			EXPECT_EQ(ENODEV, err_of((long)mmap(NULL, PAGE, prot[i],
							    flags[j], self->fd, 0)))
				TH_LOG("prot %d flags %d", prot[i], flags[j]);
		}
	}
}

TEST_F(file, read)
{
	char buf[PAGE], zero[PAGE];
	struct iovec iov = { buf, PAGE };

	memset(buf, 0, PAGE);
	memset(zero, 0, PAGE);
	EXPECT_EQ(-1, read(self->fd, buf, PAGE));
	EXPECT_EQ(-1, read(self->fd, buf, 1));
	EXPECT_EQ(-1, pread(self->fd, buf, PAGE, 0));
	EXPECT_EQ(-1, readv(self->fd, &iov, 1));
	EXPECT_EQ(-1, preadv(self->fd, &iov, 1, 0));
	EXPECT_EQ(-1, preadv2(self->fd, &iov, 1, 0, 0));
	EXPECT_EQ(0, memcmp(buf, zero, PAGE));
}

/* Nothing must have got into the pipe or beyond the end of the memfd. */
#define EXPECT_NOTHING_OUT()						\
do {									\
	struct pollfd pfd = { .fd = self->pipe[0], .events = POLLIN };	\
	struct stat st;							\
									\
	EXPECT_EQ(0, poll(&pfd, 1, 0));					\
	EXPECT_EQ(0, fstat(self->memfd, &st));				\
	EXPECT_EQ(FILE_SIZE, st.st_size);				\
} while (0)

TEST_F(file, splice_from)
{
	loff_t off = 0;

	EXPECT_EQ(-1, splice(self->fd, &off, self->pipe[1], NULL, PAGE, 0));
	EXPECT_EQ(-1, splice(self->fd, NULL, self->pipe[1], NULL, PAGE, 0));
	EXPECT_NOTHING_OUT();
}

TEST_F(file, sendfile_from)
{
	off_t off = 0;

	EXPECT_EQ(-1, sendfile(self->pipe[1], self->fd, &off, PAGE));
	EXPECT_EQ(-1, sendfile(self->memfd, self->fd, &off, PAGE));
	EXPECT_EQ(-1, sendfile(self->memfd, self->fd, NULL, PAGE));
	EXPECT_NOTHING_OUT();
}

TEST_F(file, copy_file_range)
{
	int other = vm_create_guest_memfd(self->vm, FILE_SIZE, 0);
	loff_t in = 0, out = FILE_SIZE, zero = 0;

	EXPECT_EQ(-1, copy_file_range(self->fd, &in, self->memfd, &out, PAGE, 0));
	EXPECT_NOTHING_OUT();

	EXPECT_EQ(-1, copy_file_range(self->fd, &in, other, &zero, PAGE, 0));
	EXPECT_EQ(-1, copy_file_range(self->memfd, &in, other, &zero, PAGE, 0));
	EXPECT_TRUE(is_hole(_metadata, other, 0));
}

/* pwrite() and its kin are the only way in. */
TEST_F(file, splice_to)
{
	loff_t off = 0;

	/* Make room where the file's position is: EEXIST must not be the reason. */
	ASSERT_EQ(0, err_of(fallocate(self->fd, PUNCH, 0, PAGE)));
	ASSERT_EQ(PAGE, write(self->pipe[1], self->buf, PAGE));
	EXPECT_EQ(-1, splice(self->pipe[0], NULL, self->fd, &off, PAGE, 0));
	EXPECT_EQ(-1, splice(self->pipe[0], NULL, self->fd, NULL, PAGE, 0));
	EXPECT_TRUE(is_hole(_metadata, self->fd, 0));
}

TEST_F(file, sendfile_to)
{
	off_t off = 0;

	/* Make room where the file's position is: EEXIST must not be the reason. */
	ASSERT_EQ(0, err_of(fallocate(self->fd, PUNCH, 0, PAGE)));
	EXPECT_EQ(-1, sendfile(self->fd, self->memfd, &off, PAGE));
	EXPECT_TRUE(is_hole(_metadata, self->fd, 0));
}

TEST_F(file, ftruncate)
{
	static const off_t sizes[] = {
		0, 1, PAGE, FILE_SIZE - PAGE, FILE_SIZE, FILE_SIZE + PAGE, LLONG_MAX,
	};
	struct stat st;
	int i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		EXPECT_EQ(EINVAL, err_of(ftruncate(self->fd, sizes[i])))
			TH_LOG("size 0x%lx", sizes[i]);
	}

	EXPECT_EQ(0, fstat(self->fd, &st));
	EXPECT_EQ(FILE_SIZE, st.st_size);
	EXPECT_FALSE(is_hole(_metadata, self->fd, 0));
}

TEST_F(file, setattr)
{
	struct timespec times[2] = { { 1, 0 }, { 2, 0 } };
	struct stat before, after;
	char path[64];

	ASSERT_EQ(0, fstat(self->fd, &before));

	EXPECT_EQ(EINVAL, err_of(fchmod(self->fd, 0777)));
	EXPECT_EQ(EINVAL, err_of(fchmod(self->fd, before.st_mode & 07777)));
	EXPECT_EQ(EINVAL, err_of(fchown(self->fd, 1, -1)));
	EXPECT_EQ(EINVAL, err_of(fchown(self->fd, -1, 1)));
	EXPECT_EQ(EINVAL, err_of(fchown(self->fd, 0, 0)));
	EXPECT_EQ(EINVAL, err_of(futimens(self->fd, NULL)));
	EXPECT_EQ(EINVAL, err_of(futimens(self->fd, times)));

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->fd);
	EXPECT_EQ(EINVAL, err_of(chmod(path, 0777)));
	EXPECT_EQ(EINVAL, err_of(chown(path, 1, 1)));
	EXPECT_EQ(EINVAL, err_of(truncate(path, 0)));

	ASSERT_EQ(0, fstat(self->fd, &after));
	EXPECT_EQ(before.st_mode, after.st_mode);
	EXPECT_EQ(before.st_uid, after.st_uid);
	EXPECT_EQ(before.st_gid, after.st_gid);
	EXPECT_EQ(before.st_mtime, after.st_mtime);
	EXPECT_EQ(before.st_size, after.st_size);
}

/* A path needs no module to stay, so it must not need the module's functions. */
TEST_F(file, path_after_close)
{
	char path[64];
	struct stat st;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->fd);
	fd = open(path, O_PATH);
	ASSERT_LE(0, fd);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	EXPECT_EQ(EINVAL, err_of(chmod(path, 0700)));

	ASSERT_EQ(0, close(self->fd));
	self->fd = -1;
	EXPECT_EQ(0, chmod(path, 0700))
		TH_LOG("KVM answers for a file that is closed");
	EXPECT_EQ(0, fstat(fd, &st));
	EXPECT_EQ(0, st.st_blocks);
	close(fd);
}

/* A second open file would be a view of the memory that no VM answers for. */
TEST_F(file, reopen)
{
	static const int flags[] = { O_RDONLY, O_WRONLY, O_RDWR };
	char path[64];
	int i;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->fd);
	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		EXPECT_EQ(-1, open(path, flags[i]))
			TH_LOG("flags %d", flags[i]);
	}
}

TEST_F(file, exec)
{
	char *argv[2] = { "guest_memfd" }, *envp[1] = {};
	char script[PAGE] = "#!/bin/false\n";
	char path[64];

	ASSERT_EQ(PAGE, pwrite(self->fd, script, PAGE, PAGE));
	ASSERT_EQ(0, err_of(fallocate(self->fd, PUNCH, 0, PAGE)));
	ASSERT_EQ(PAGE, pwrite(self->fd, script, PAGE, 0));

	EXPECT_EQ(EACCES, err_of(syscall(SYS_execveat, self->fd, "", argv, envp,
					 AT_EMPTY_PATH)));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->fd);
	EXPECT_EQ(EACCES, err_of(execve(path, argv, envp)));
}

TEST_F(file, fallocate_keep_size)
{
	EXPECT_EQ(EOPNOTSUPP, err_of(fallocate(self->fd, 0, PAGE, PAGE)));
	EXPECT_EQ(EOPNOTSUPP, err_of(fallocate(self->fd, FALLOC_FL_PUNCH_HOLE, 0, PAGE)));
	EXPECT_EQ(EOPNOTSUPP, err_of(fallocate(self->fd, 0, FILE_SIZE, PAGE)));
	EXPECT_TRUE(is_hole(_metadata, self->fd, 1));
	EXPECT_FALSE(is_hole(_metadata, self->fd, 0));
}

TEST_F(file, fallocate_other_modes)
{
	static const int modes[] = {
		FALLOC_FL_ZERO_RANGE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE,
		FALLOC_FL_UNSHARE_RANGE, FALLOC_FL_UNSHARE_RANGE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_NO_HIDE_STALE | FALLOC_FL_KEEP_SIZE,
		PUNCH | FALLOC_FL_NO_HIDE_STALE, PUNCH | FALLOC_FL_ZERO_RANGE,
		1 << 30,
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		EXPECT_EQ(EOPNOTSUPP, err_of(fallocate(self->fd, modes[i], 0, PAGE)))
			TH_LOG("mode 0x%x", modes[i]);
	}
	EXPECT_FALSE(is_hole(_metadata, self->fd, 0));
}

TEST_F(file, fallocate_unaligned)
{
	static const struct { off_t offset, len; } bad[] = {
		{ 1, PAGE }, { PAGE - 1, PAGE }, { PAGE + 512, PAGE },
		{ PAGE, 1 }, { PAGE, PAGE - 1 }, { PAGE, PAGE + 1 },
		{ 1, PAGE - 1 }, { PAGE + 1, 2 * PAGE - 1 }, { 0, 0 },
		{ FILE_SIZE - 1, PAGE }, { FILE_SIZE + 1, PAGE },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(EINVAL, err_of(fallocate(self->fd, ALLOCATE,
						   bad[i].offset, bad[i].len)))
			TH_LOG("allocate 0x%lx at 0x%lx", bad[i].len, bad[i].offset);
		EXPECT_EQ(EINVAL, err_of(fallocate(self->fd, PUNCH,
						   bad[i].offset, bad[i].len)))
			TH_LOG("punch 0x%lx at 0x%lx", bad[i].len, bad[i].offset);
	}
	EXPECT_FALSE(is_hole(_metadata, self->fd, 0));
	EXPECT_TRUE(is_hole(_metadata, self->fd, 1));
}

TEST_F(file, fallocate_allocate)
{
	struct stat st;
	int i;

	EXPECT_EQ(0, err_of(fallocate(self->fd, ALLOCATE, 2 * PAGE, 3 * PAGE)));
	for (i = 1; i < NR_PAGES; i++) {
		EXPECT_EQ(i < 2 || i > 4, is_hole(_metadata, self->fd, i))
			TH_LOG("page %d", i);
	}

	/* What is there stays. */
	EXPECT_EQ(0, err_of(fallocate(self->fd, ALLOCATE, 0, FILE_SIZE)));
	EXPECT_EQ(0, err_of(fallocate(self->fd, ALLOCATE, 0, FILE_SIZE)));
	for (i = 0; i < NR_PAGES; i++) {
		EXPECT_FALSE(is_hole(_metadata, self->fd, i))
			TH_LOG("page %d", i);
	}

	EXPECT_EQ(0, fstat(self->fd, &st));
	EXPECT_EQ(FILE_SIZE, st.st_size);
}

TEST_F(file, fallocate_allocate_past_end)
{
	EXPECT_EQ(EINVAL, err_of(fallocate(self->fd, ALLOCATE, FILE_SIZE, PAGE)));
	EXPECT_EQ(EINVAL, err_of(fallocate(self->fd, ALLOCATE, 1ULL << 40, PAGE)));
	EXPECT_EQ(EINVAL, err_of(fallocate(self->fd, ALLOCATE, 0, FILE_SIZE + PAGE)));
	EXPECT_EQ(EINVAL, err_of(fallocate(self->fd, ALLOCATE, FILE_SIZE - PAGE, 2 * PAGE)));
	EXPECT_TRUE(is_hole(_metadata, self->fd, NR_PAGES - 1));
}

TEST_F(file, fallocate_punch)
{
	int i;

	ASSERT_EQ(0, err_of(fallocate(self->fd, ALLOCATE, 0, FILE_SIZE)));
	EXPECT_EQ(0, err_of(fallocate(self->fd, PUNCH, 5 * PAGE, 2 * PAGE)));
	for (i = 0; i < NR_PAGES; i++) {
		EXPECT_EQ(i == 5 || i == 6, is_hole(_metadata, self->fd, i))
			TH_LOG("page %d", i);
	}

	/* A hole can be punched again. */
	EXPECT_EQ(0, err_of(fallocate(self->fd, PUNCH, 5 * PAGE, 2 * PAGE)));
	EXPECT_EQ(0, err_of(fallocate(self->fd, PUNCH, 0, FILE_SIZE)));
	for (i = 0; i < NR_PAGES; i++) {
		EXPECT_TRUE(is_hole(_metadata, self->fd, i))
			TH_LOG("page %d", i);
	}
}

TEST_F(file, fallocate_punch_past_end)
{
	int i;

	ASSERT_EQ(0, err_of(fallocate(self->fd, ALLOCATE, 0, FILE_SIZE)));
	EXPECT_EQ(0, err_of(fallocate(self->fd, PUNCH, FILE_SIZE, PAGE)));
	EXPECT_EQ(0, err_of(fallocate(self->fd, PUNCH, FILE_SIZE + 5 * PAGE, FILE_SIZE)));
	EXPECT_EQ(0, err_of(fallocate(self->fd, PUNCH, 1ULL << 40, 1ULL << 40)));
	for (i = 0; i < NR_PAGES; i++) {
		EXPECT_FALSE(is_hole(_metadata, self->fd, i))
			TH_LOG("page %d", i);
	}

	/* The part inside the file is punched as ever. */
	EXPECT_EQ(0, err_of(fallocate(self->fd, PUNCH, FILE_SIZE - PAGE, 1ULL << 40)));
	EXPECT_TRUE(is_hole(_metadata, self->fd, NR_PAGES - 1));
	EXPECT_FALSE(is_hole(_metadata, self->fd, NR_PAGES - 2));
}

TEST_F(file, pwrite_fills_holes)
{
	int i;

	EXPECT_EQ(FILE_SIZE - PAGE, pwrite(self->fd, self->buf, FILE_SIZE - PAGE, PAGE));
	for (i = 0; i < NR_PAGES; i++) {
		EXPECT_FALSE(is_hole(_metadata, self->fd, i))
			TH_LOG("page %d", i);
	}
}

TEST_F(file, pwrite_unaligned)
{
	static const struct { off_t offset; size_t len; } bad[] = {
		{ PAGE, 1 }, { PAGE, PAGE - 1 }, { PAGE, PAGE + 1 },
		{ PAGE + 1, PAGE }, { 2 * PAGE - 1, PAGE }, { PAGE + 512, 512 },
		{ PAGE + 1, PAGE - 1 }, { FILE_SIZE - 1, 1 },
		/* Alignment is asked first, also where the file has a page. */
		{ 0, 1 }, { 1, PAGE },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(EINVAL, err_of(pwrite(self->fd, self->buf, bad[i].len,
						bad[i].offset)))
			TH_LOG("0x%lx bytes at 0x%lx", bad[i].len, bad[i].offset);
	}

	EXPECT_EQ(0, pwrite(self->fd, self->buf, 0, PAGE));
	for (i = 1; i < NR_PAGES; i++) {
		EXPECT_TRUE(is_hole(_metadata, self->fd, i))
			TH_LOG("page %d", i);
	}
}

/* The rule is about the file; the source may lie anywhere. */
TEST_F(file, pwrite_unaligned_source)
{
	EXPECT_EQ(2 * PAGE, pwrite(self->fd, self->buf + 123, 2 * PAGE, PAGE));
	EXPECT_FALSE(is_hole(_metadata, self->fd, 1));
	EXPECT_FALSE(is_hole(_metadata, self->fd, 2));
	EXPECT_TRUE(is_hole(_metadata, self->fd, 3));
}

TEST_F(file, pwrite_past_end)
{
	EXPECT_EQ(EINVAL, err_of(pwrite(self->fd, self->buf, PAGE, FILE_SIZE)));
	EXPECT_EQ(EINVAL, err_of(pwrite(self->fd, self->buf, PAGE, 1ULL << 40)));
	EXPECT_EQ(EINVAL, err_of(pwrite(self->fd, self->buf, 2 * PAGE, FILE_SIZE - PAGE)));
	EXPECT_EQ(EINVAL, err_of(pwrite(self->fd, self->buf, PAGE, LLONG_MAX & ~(PAGE - 1))));
	EXPECT_TRUE(is_hole(_metadata, self->fd, NR_PAGES - 1));
}

TEST_F(file, pwrite_exists)
{
	EXPECT_EQ(EEXIST, err_of(pwrite(self->fd, self->buf, PAGE, 0)))
		TH_LOG("a page that was written");
	EXPECT_EQ(EEXIST, err_of(pwrite(self->fd, self->buf, FILE_SIZE, 0)))
		TH_LOG("the first of many");
	EXPECT_TRUE(is_hole(_metadata, self->fd, 1));

	ASSERT_EQ(0, err_of(fallocate(self->fd, ALLOCATE, PAGE, PAGE)));
	EXPECT_EQ(EEXIST, err_of(pwrite(self->fd, self->buf, PAGE, PAGE)))
		TH_LOG("a page that was allocated");
}

TEST_F(file, pwrite_short)
{
	ASSERT_EQ(0, err_of(fallocate(self->fd, ALLOCATE, 5 * PAGE, PAGE)));

	EXPECT_EQ(4 * PAGE, pwrite(self->fd, self->buf, 8 * PAGE, PAGE));
	EXPECT_FALSE(is_hole(_metadata, self->fd, 4));
	EXPECT_TRUE(is_hole(_metadata, self->fd, 6));
	EXPECT_EQ(EEXIST, err_of(pwrite(self->fd, self->buf, 8 * PAGE, 5 * PAGE)));
	EXPECT_EQ(PAGE, pwrite(self->fd, self->buf, PAGE, 6 * PAGE));
}

TEST_F(file, pwrite_after_punch)
{
	int i;

	for (i = 0; i < 3; i++) {
		EXPECT_EQ(EEXIST, err_of(pwrite(self->fd, self->buf, PAGE, 0)));
		EXPECT_EQ(0, err_of(fallocate(self->fd, PUNCH, 0, PAGE)));
		EXPECT_EQ(PAGE, pwrite(self->fd, self->buf, PAGE, 0));
	}
}

TEST_F(file, write_position)
{
	int fd = vm_create_guest_memfd(self->vm, 6 * PAGE, 0);

	ASSERT_EQ(0, err_of(fallocate(fd, ALLOCATE, 4 * PAGE, PAGE)));

	EXPECT_EQ(PAGE, write(fd, self->buf, PAGE));
	EXPECT_FALSE(is_hole(_metadata, fd, 0));
	EXPECT_TRUE(is_hole(_metadata, fd, 1));

	EXPECT_EQ(2 * PAGE, write(fd, self->buf, 2 * PAGE));
	EXPECT_FALSE(is_hole(_metadata, fd, 2));
	EXPECT_TRUE(is_hole(_metadata, fd, 3));

	EXPECT_EQ(PAGE, write(fd, self->buf, 3 * PAGE))
		TH_LOG("stops before the page that is there");
	EXPECT_EQ(EEXIST, err_of(write(fd, self->buf, PAGE)));
	EXPECT_EQ(EINVAL, err_of(write(fd, self->buf, 512)));

	ASSERT_EQ(0, err_of(fallocate(fd, PUNCH, 4 * PAGE, PAGE)));
	EXPECT_EQ(2 * PAGE, write(fd, self->buf, 2 * PAGE));
	EXPECT_EQ(EINVAL, err_of(write(fd, self->buf, PAGE)))
		TH_LOG("the position is the end");
}

TEST_F(file, pwritev)
{
	struct iovec aligned[] = {
		{ self->buf, PAGE }, { self->buf + 5 * PAGE, 2 * PAGE },
	};
	struct iovec pieces[] = {
		{ self->buf + 1, 1000 }, { self->buf, 96 }, { self->buf + 77, 3000 },
		{ self->buf, PAGE },
	};
	struct iovec uneven[] = { { self->buf, PAGE }, { self->buf, 100 } };

	EXPECT_EQ(3 * PAGE, pwritev(self->fd, aligned, 2, PAGE));
	EXPECT_TRUE(is_hole(_metadata, self->fd, 4));
	EXPECT_EQ(2 * PAGE, pwritev(self->fd, pieces, 4, 4 * PAGE))
		TH_LOG("only the whole must be aligned");
	EXPECT_TRUE(is_hole(_metadata, self->fd, 6));
	EXPECT_EQ(EINVAL, err_of(pwritev(self->fd, uneven, 2, 6 * PAGE)));
	EXPECT_TRUE(is_hole(_metadata, self->fd, 6));
	EXPECT_EQ(EEXIST, err_of(pwritev(self->fd, aligned, 2, 3 * PAGE)));
	EXPECT_EQ(EINVAL, err_of(pwritev(self->fd, aligned, 2, FILE_SIZE - PAGE)));
}

/* Appending writes go to the end, and beyond it is nothing. */
TEST_F(file, append)
{
	ASSERT_EQ(0, fcntl(self->fd, F_SETFL, O_APPEND));
	EXPECT_EQ(EINVAL, err_of(write(self->fd, self->buf, PAGE)));
	EXPECT_EQ(EINVAL, err_of(pwrite(self->fd, self->buf, PAGE, PAGE)));

	ASSERT_EQ(0, fcntl(self->fd, F_SETFL, 0));
	EXPECT_TRUE(is_hole(_metadata, self->fd, 1));
}

/* A page that could not be copied in full never gets into the file. */
TEST_F(file, source_fault)
{
	char *end = self->buf + FILE_SIZE - 2 * PAGE;
	int i;

	ASSERT_EQ(0, munmap(end, 2 * PAGE));

	EXPECT_EQ(EFAULT, err_of(pwrite(self->fd, end, PAGE, PAGE)));
	EXPECT_EQ(EFAULT, err_of(pwrite(self->fd, end, 4 * PAGE, PAGE)));
	EXPECT_EQ(EFAULT, err_of(pwrite(self->fd, end - 100, PAGE, PAGE)));
	EXPECT_EQ(EFAULT, err_of(pwrite(self->fd, end - PAGE + 1, PAGE, PAGE)));
	EXPECT_TRUE(is_hole(_metadata, self->fd, 1));

	EXPECT_EQ(2 * PAGE, pwrite(self->fd, end - 2 * PAGE - 100, 4 * PAGE, PAGE));
	EXPECT_FALSE(is_hole(_metadata, self->fd, 1));
	EXPECT_FALSE(is_hole(_metadata, self->fd, 2));
	for (i = 3; i < NR_PAGES; i++) {
		EXPECT_TRUE(is_hole(_metadata, self->fd, i))
			TH_LOG("page %d", i);
	}
}

/* One asynchronous write by io_submit(); returns its result. */
static long aio_pwrite(struct __test_metadata *_metadata, int fd, void *buf,
		       size_t len, off_t offset)
{
	struct iocb cb = {
		.aio_lio_opcode = IOCB_CMD_PWRITE,
		.aio_fildes = fd,
		.aio_buf = (uintptr_t)buf,
		.aio_nbytes = len,
		.aio_offset = offset,
	}, *cbs[] = { &cb };
	struct io_event event = {};
	aio_context_t ctx = 0;

	EXPECT_EQ(0, err_of(syscall(SYS_io_setup, 1, &ctx)));
	EXPECT_EQ(1, syscall(SYS_io_submit, ctx, 1, cbs));
	EXPECT_EQ(1, syscall(SYS_io_getevents, ctx, 1, 1, &event, NULL));
	EXPECT_EQ(0, err_of(syscall(SYS_io_destroy, ctx)));
	return event.res;
}

/* The same by io_uring. */
static long uring_pwrite(struct __test_metadata *_metadata, int fd, void *buf,
			 size_t len, off_t offset)
{
	struct io_uring_params p = {};
	int ring = syscall(SYS_io_uring_setup, 1, &p);
	size_t size = p.sq_off.array + p.sq_entries * sizeof(__u32);
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
	char *rings;
	long res;

	EXPECT_LE(0, ring);
	EXPECT_TRUE(p.features & IORING_FEAT_SINGLE_MMAP);
	size = max(size, (size_t)p.cq_off.cqes + p.cq_entries * sizeof(*cqe));
	rings = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	sqe = mmap(NULL, p.sq_entries * sizeof(*sqe), PROT_READ | PROT_WRITE,
		   MAP_SHARED, ring, IORING_OFF_SQES);
	ASSERT_NE(MAP_FAILED, rings);
	ASSERT_NE(MAP_FAILED, sqe);

	*sqe = (struct io_uring_sqe){
		.opcode = IORING_OP_WRITE,
		.fd = fd,
		.addr = (uintptr_t)buf,
		.len = len,
		.off = offset,
	};
	*(__u32 *)(rings + p.sq_off.array) = 0;
	__atomic_store_n((__u32 *)(rings + p.sq_off.tail), 1, __ATOMIC_RELEASE);
	EXPECT_EQ(1, syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0));
	EXPECT_EQ(1, __atomic_load_n((__u32 *)(rings + p.cq_off.tail), __ATOMIC_ACQUIRE));
	cqe = (struct io_uring_cqe *)(rings + p.cq_off.cqes);
	res = cqe->res;

	munmap(rings, size);
	munmap(sqe, p.sq_entries * sizeof(*sqe));
	close(ring);
	return res;
}

typedef long (*async_pwrite)(struct __test_metadata *_metadata, int fd, void *buf,
			     size_t len, off_t offset);

static void check_async(struct __test_metadata *_metadata, struct _test_data_file *self,
			async_pwrite write)
{
	EXPECT_EQ(2 * PAGE, write(_metadata, self->fd, self->buf, 2 * PAGE, PAGE));
	EXPECT_FALSE(is_hole(_metadata, self->fd, 1));
	EXPECT_FALSE(is_hole(_metadata, self->fd, 2));
	EXPECT_TRUE(is_hole(_metadata, self->fd, 3));
	EXPECT_EQ(-EEXIST, write(_metadata, self->fd, self->buf, PAGE, 2 * PAGE));
	EXPECT_EQ(-EINVAL, write(_metadata, self->fd, self->buf, 100, 3 * PAGE));
	EXPECT_EQ(-EINVAL, write(_metadata, self->fd, self->buf, PAGE, 3 * PAGE + 1));
	EXPECT_EQ(-EINVAL, write(_metadata, self->fd, self->buf, PAGE, FILE_SIZE));
	EXPECT_EQ(-EFAULT, write(_metadata, self->fd, NULL, PAGE, 3 * PAGE));
	EXPECT_TRUE(is_hole(_metadata, self->fd, 3));
	ASSERT_EQ(0, err_of(fallocate(self->fd, ALLOCATE, 5 * PAGE, PAGE)));
	EXPECT_EQ(2 * PAGE, write(_metadata, self->fd, self->buf, 4 * PAGE, 3 * PAGE));
}

TEST_F(file, aio)
{
	check_async(_metadata, self, aio_pwrite);
}

TEST_F(file, io_uring)
{
	check_async(_metadata, self, uring_pwrite);
}

struct writer {
	pthread_t thread;
	int fd;
	char *buf;
	long pages;	/* how many this one filled */
	int err;	/* the last errno but EEXIST */
};

static void *race_to_fill(void *arg)
{
	struct writer *w = arg;
	off_t off = 0;

	while (off < FILE_SIZE) {
		ssize_t ret = pwrite(w->fd, w->buf, FILE_SIZE - off, off);

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

/* Whoever comes first has the page, and nobody after. */
TEST_F(file, racing_writers)
{
	struct writer w[4] = {};
	int round, i;
	long pages;

	for (round = 0; round < 100; round++) {
		ASSERT_EQ(0, err_of(fallocate(self->fd, PUNCH, 0, FILE_SIZE)));
		for (i = 0; i < ARRAY_SIZE(w); i++) {
			w[i] = (struct writer){ .fd = self->fd, .buf = self->buf };
			ASSERT_EQ(0, pthread_create(&w[i].thread, NULL, race_to_fill, &w[i]));
		}
		for (pages = i = 0; i < ARRAY_SIZE(w); i++) {
			ASSERT_EQ(0, pthread_join(w[i].thread, NULL));
			EXPECT_EQ(0, w[i].err);
			pages += w[i].pages;
		}
		ASSERT_EQ(NR_PAGES, pages);
	}
}

static void *write_first_page(void *arg)
{
	struct writer *w = arg;
	ssize_t ret = pwrite(w->fd, w->buf, PAGE, 0);

	w->pages = ret < 0 ? 0 : ret / PAGE;
	w->err = err_of(ret);
	return NULL;
}

/*
 * A source may take for ever, here because userfaultfd serves it.  No other
 * user of the file waits for it, of the same page either, and who was first
 * to put a page there is decided when the copy is complete.
 */
TEST_F(file, slow_source)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_copy copy = { .src = (uintptr_t)self->buf, .len = PAGE };
	struct writer w = { .fd = self->fd };
	struct uffd_msg msg;
	int uffd;

	uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	ASSERT_LE(0, uffd);
	ASSERT_EQ(0, err_of(ioctl(uffd, UFFDIO_API, &api)));
	w.buf = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, w.buf);
	reg.range.start = (uintptr_t)w.buf;
	reg.range.len = PAGE;
	ASSERT_EQ(0, err_of(ioctl(uffd, UFFDIO_REGISTER, &reg)));
	ASSERT_EQ(0, err_of(fallocate(self->fd, PUNCH, 0, PAGE)));

	ASSERT_EQ(0, pthread_create(&w.thread, NULL, write_first_page, &w));
	ASSERT_EQ(sizeof(msg), read(uffd, &msg, sizeof(msg)));
	ASSERT_EQ(UFFD_EVENT_PAGEFAULT, msg.event);

	/* The writer is in the middle of its copy; none of this may wait for it. */
	EXPECT_EQ(PAGE, pwrite(self->fd, self->buf, PAGE, PAGE));
	EXPECT_EQ(0, err_of(fallocate(self->fd, PUNCH, 0, FILE_SIZE)));
	EXPECT_EQ(0, err_of(fallocate(self->fd, ALLOCATE, 0, PAGE)));
	vm_set_user_memory_region2(self->vm, 0, KVM_MEM_GUEST_MEMFD, 0, FILE_SIZE,
				   self->buf, self->fd, 0);

	copy.dst = (uintptr_t)w.buf;
	ASSERT_EQ(0, err_of(ioctl(uffd, UFFDIO_COPY, &copy)));
	ASSERT_EQ(0, pthread_join(w.thread, NULL));
	EXPECT_EQ(EEXIST, w.err);

	EXPECT_EQ(0, err_of(fallocate(self->fd, PUNCH, 0, PAGE)));
	write_first_page(&w);
	EXPECT_EQ(1, w.pages);
}

/*
 * What becomes of the memory.  The file is big beside what the kernel keeps in
 * its per-CPU batches, so that the system's counters show it.
 */
#define BIG	(32UL << 20)
#define SLACK	(2UL << 20)

FIXTURE(memory) {
	struct kvm_vm *vm;
	int fd;
};

FIXTURE_SETUP(memory)
{
	self->vm = create_protected_vm();
	self->fd = vm_create_guest_memfd(self->vm, BIG, 0);
}

FIXTURE_TEARDOWN(memory)
{
	kvm_vm_free(self->vm);
}

TEST_F(memory, unevictable)
{
	long before = meminfo_bytes("Unevictable");

	ASSERT_EQ(0, err_of(fallocate(self->fd, ALLOCATE, 0, BIG)));
	EXPECT_LE(before + BIG - SLACK, meminfo_bytes("Unevictable"));
	ASSERT_EQ(0, err_of(fallocate(self->fd, PUNCH, 0, BIG)));
	EXPECT_GE(before + SLACK, meminfo_bytes("Unevictable"));
}

TEST_F(memory, unevictable_written)
{
	char *src = mmap(NULL, BIG, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long before = meminfo_bytes("Unevictable");

	ASSERT_NE(MAP_FAILED, src);
	ASSERT_EQ(BIG, pwrite(self->fd, src, BIG, 0));
	EXPECT_LE(before + BIG - SLACK, meminfo_bytes("Unevictable"));
}

/* Which page frames of the host are unevictable, one byte each. */
static char *unevictable_frames(long *nr)
{
	uint64_t flags[8192];
	char *frames = NULL;
	ssize_t ret;
	int fd, i;

	*nr = 0;
	fd = open_path_or_exit("/proc/kpageflags", O_RDONLY);
	while ((ret = read(fd, flags, sizeof(flags))) > 0) {
		frames = realloc(frames, *nr + ret / 8);
		TEST_ASSERT(frames, "Insufficient Memory");
		for (i = 0; i < ret / 8; i++)
			frames[(*nr)++] = flags[i] >> KPF_UNEVICTABLE & 1;
	}
	close(fd);
	return frames;
}

/* In which page frame of the host each page at @mem is. */
static uint64_t *frames_behind(const char *mem, long nr)
{
	uint64_t *frames = calloc(nr, sizeof(*frames));
	int fd = open_path_or_exit("/proc/self/pagemap", O_RDONLY);

	TEST_ASSERT(frames, "Insufficient Memory");
	TEST_ASSERT(pread(fd, frames, nr * sizeof(*frames), (uintptr_t)mem / PAGE * 8) ==
		    nr * sizeof(*frames), "Cannot read where memory is");
	close(fd);
	return frames;
}

/* How many pages compaction moves of ordinary memory that has every other page, of @size. */
static long compact_ordinary(size_t size)
{
	char *mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = open_path_or_exit("/proc/sys/vm/compact_memory", O_WRONLY);
	uint64_t *before, *after;
	long i, moved = 0;

	TEST_ASSERT(mem != MAP_FAILED, "Insufficient Memory");
	madvise(mem, size, MADV_NOHUGEPAGE);
	memset(mem, 1, size);
	for (i = 0; i < size; i += 2 * PAGE)
		madvise(mem + i, PAGE, MADV_DONTNEED);

	before = frames_behind(mem, size / PAGE);
	TEST_ASSERT(write(fd, "1", 1) == 1, "Cannot compact memory, errno: %i", errno);
	after = frames_behind(mem, size / PAGE);
	for (i = 0; i < size / PAGE; i++)
		moved += before[i] != after[i];
	free(before);
	free(after);
	close(fd);
	return moved;
}

/*
 * Compaction leaves the pages where they are.  It has every reason to move them,
 * and does move ordinary memory that is in the same state: from the lower end of the
 * host's memory to the upper, so that some of it has to be allocated below the middle.
 */
TEST_F_TIMEOUT(memory, not_compacted, 300)
{
	long nr, nr_frames, i, migrated = 0, moved = 0, stayed = 0;
	char *before, *frames, *after;
	size_t size;

	before = unevictable_frames(&nr);
	ASSERT_EQ(0, err_of(fallocate(self->fd, ALLOCATE, 0, BIG)));
	for (i = 0; i < BIG; i += 2 * PAGE)
		ASSERT_EQ(0, err_of(fallocate(self->fd, PUNCH, i, PAGE)));

	frames = unevictable_frames(&nr_frames);
	ASSERT_EQ(nr, nr_frames);
	for (size = BIG; !migrated && size < meminfo_bytes("MemFree") / 2; size *= 2)
		migrated = compact_ordinary(size);
	EXPECT_LT(0, migrated)
		TH_LOG("no ordinary page was moved, so this case showed nothing");
	after = unevictable_frames(&nr_frames);
	ASSERT_EQ(nr, nr_frames);

	for (i = 0; i < nr; i++) {
		if (before[i] || !frames[i])
			continue;
		if (after[i])
			stayed++;
		else
			moved++;
	}
	EXPECT_EQ(0, moved);
	EXPECT_LE(BIG / PAGE / 2 - SLACK / PAGE, stayed);
}

TEST_F(memory, freed_by_punch)
{
	long before;

	ASSERT_EQ(0, err_of(fallocate(self->fd, ALLOCATE, 0, BIG)));
	before = host_pages_in_use();
	ASSERT_EQ(0, err_of(fallocate(self->fd, PUNCH, 0, BIG)));
	EXPECT_GE(before - (long)((BIG - SLACK) / PAGE), host_pages_in_use());
}

/* The slot does not hold the file. */
TEST_F(memory, freed_by_close_of_bound_file)
{
	char *hva = mmap(NULL, BIG, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	long before;

	ASSERT_NE(MAP_FAILED, hva);
	vm_set_user_memory_region2(self->vm, 0, KVM_MEM_GUEST_MEMFD, 0, BIG, hva, self->fd, 0);
	ASSERT_EQ(0, err_of(fallocate(self->fd, ALLOCATE, 0, BIG)));
	before = host_pages_in_use();
	ASSERT_EQ(0, close(self->fd));
	EXPECT_GE(before - (long)((BIG - SLACK) / PAGE), host_pages_in_use());
}

/* Fill with what is not written down in this process before. */
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

static bool file_contains(const char *path, const char *what, size_t len)
{
	bool found = false;
	struct stat st;
	char *map;
	int fd;

	fd = open(path, O_RDONLY);
	TEST_ASSERT(fd >= 0 && !fstat(fd, &st) && st.st_size, "No core at %s", path);
	map = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	TEST_ASSERT(map != MAP_FAILED, "mmap(%s) failed", path);
	found = memmem(map, st.st_size, what, len);
	munmap(map, st.st_size);
	close(fd);
	return found;
}

/*
 * A process dumps core whose VM has one secret in private memory and another
 * in ordinary memory: the second is in the core, else the first proves nothing.
 */
TEST_F(memory, core_dump)
{
	const char *setting = "/proc/sys/kernel/core_pattern";
	char dir[] = "/tmp/guest_memfd_core.XXXXXX", path[64], old[128] = "";
	struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	char secret[PAGE], *shared;
	int fd, status;
	pid_t pid;

	ASSERT_NE(NULL, mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/core", dir);
	fd = open(setting, O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_LT(0, read(fd, old, sizeof(old) - 1));
	ASSERT_EQ(strlen(path), pwrite(fd, path, strlen(path), 0));

	pid = fork();
	if (!pid) {
		shared = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		fill_with_secret(shared, 2 * PAGE);
		/* The second page's stay, the first page's are in the file only. */
		if (pwrite(self->fd, shared, PAGE, 0) != PAGE)
			_exit(1);
		memset(shared, 0, PAGE);
		setrlimit(RLIMIT_CORE, &unlimited);
		raise(SIGSEGV);
		_exit(1);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(strlen(old), pwrite(fd, old, strlen(old), 0));
	close(fd);
	ASSERT_TRUE(WIFSIGNALED(status) && WCOREDUMP(status));

	shared = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, shared);
	fill_with_secret(shared, 2 * PAGE);
	memcpy(secret, shared + PAGE, PAGE);
	EXPECT_TRUE(file_contains(path, secret, 64));
	memcpy(secret, shared, PAGE);
	EXPECT_FALSE(file_contains(path, secret, 64));

	unlink(path);
	rmdir(dir);
}

/*
 * The pages are charged to the memory cgroup of whoever has them allocated.
 */
#define LIMIT	(8L << 20)

FIXTURE(cgroup) {
	struct kvm_vm *vm;
	int fd;
	struct memcg cg;
};

FIXTURE_SETUP(cgroup)
{
	self->vm = create_protected_vm();
	self->fd = vm_create_guest_memfd(self->vm, BIG, 0);
	memcg_create(&self->cg);
}

FIXTURE_TEARDOWN(cgroup)
{
	EXPECT_EQ(0, close(self->fd));
	kvm_vm_free(self->vm);
	memcg_destroy(&self->cg);
}

/* The errno that a process inside the group gets from fallocate(). */
static int fallocate_in_cgroup(struct __test_metadata *_metadata, struct memcg *cg,
			       int fd, off_t offset, off_t len)
{
	int status;
	pid_t pid;

	pid = fork();
	if (!pid) {
		memcg_enter(cg);
		_exit(err_of(fallocate(fd, ALLOCATE, offset, len)));
	}
	EXPECT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFEXITED(status));
	EXPECT_GT(254, WEXITSTATUS(status));
	return WEXITSTATUS(status);
}

/* What writing does until it fails: how far it got is left in *written. */
static int pwrite_in_cgroup(struct __test_metadata *_metadata, struct memcg *cg,
			    int fd, const char *src, size_t len, off_t *written)
{
	ssize_t ret;
	int status;
	pid_t pid;

	pid = fork();
	if (!pid) {
		/* It stays at the limit, and must have all that it needs till its end. */
		if (mlockall(MCL_CURRENT))
			_exit(255);
		memcg_enter(cg);
		while ((ret = pwrite(fd, src, len, *written)) > 0)
			*written += ret;
		_exit(err_of(ret));
	}
	EXPECT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFEXITED(status));
	EXPECT_GT(254, WEXITSTATUS(status));
	return WEXITSTATUS(status);
}

TEST_F(cgroup, charged_to_who_allocates)
{
	ASSERT_EQ(0, err_of(fallocate(self->fd, ALLOCATE, 0, BIG / 2)));
	EXPECT_GT(SLACK, memcg_usage(&self->cg));

	EXPECT_EQ(0, fallocate_in_cgroup(_metadata, &self->cg, self->fd, 0, BIG));
	EXPECT_LE(BIG / 2, memcg_usage(&self->cg));
	EXPECT_GE(BIG / 2 + SLACK, memcg_usage(&self->cg));

	ASSERT_EQ(0, err_of(fallocate(self->fd, PUNCH, 0, BIG)));
	EXPECT_GT(SLACK, memcg_usage(&self->cg));
}

TEST_F(cgroup, limit)
{
	char *src = mmap(NULL, BIG, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT_NE(MAP_FAILED, src);
	memcg_limit(&self->cg, LIMIT);
	EXPECT_EQ(ENOMEM, fallocate_in_cgroup(_metadata, &self->cg, self->fd, 0, BIG));

	/* Nothing of it is left: all are holes, and the charge is gone. */
	EXPECT_GT(SLACK, memcg_usage(&self->cg));
	EXPECT_EQ(BIG, pwrite(self->fd, src, BIG, 0));
}

/* What the file had before is not the failed call's to take back. */
TEST_F(cgroup, limit_keeps_what_was_there)
{
	char buf[PAGE] = "";
	int i;

	ASSERT_EQ(0, err_of(fallocate(self->fd, ALLOCATE, 2 * PAGE, 3 * PAGE)));
	ASSERT_EQ(PAGE, pwrite(self->fd, buf, PAGE, 7 * PAGE));
	memcg_limit(&self->cg, LIMIT);
	EXPECT_EQ(ENOMEM, fallocate_in_cgroup(_metadata, &self->cg, self->fd, 0, BIG));

	for (i = 0; i < 10; i++) {
		EXPECT_EQ(i < 2 || i == 5 || i == 6 || i > 7, is_hole(_metadata, self->fd, i))
			TH_LOG("page %d", i);
	}
}

/* A write keeps what it has got, and what is in excess fails. */
TEST_F(cgroup, limit_of_pwrite)
{
	off_t *written = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *src = mmap(NULL, SLACK, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	ASSERT_NE(MAP_FAILED, written);
	ASSERT_NE(MAP_FAILED, src);
	*written = 0;
	memcg_limit(&self->cg, LIMIT);
	EXPECT_EQ(ENOMEM, pwrite_in_cgroup(_metadata, &self->cg, self->fd, src, SLACK, written));

	/* It is the writer's memory that was charged. */
	EXPECT_LE(LIMIT - (long)SLACK, *written);
	EXPECT_GE(LIMIT, *written);
	EXPECT_LE(*written, memcg_usage(&self->cg));
	EXPECT_FALSE(is_hole(_metadata, self->fd, *written / PAGE - 1));
	EXPECT_TRUE(is_hole(_metadata, self->fd, *written / PAGE));
}

TEST_HARNESS_MAIN
