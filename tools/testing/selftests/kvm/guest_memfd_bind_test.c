// SPDX-License-Identifier: GPL-2.0-only
/*
 * Binding ranges of a guest_memfd to memslots, and who keeps whom alive.
 */
#define _GNU_SOURCE /* for fallocate() */
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "kvm_harness.h"

#define PAGE		4096UL
#define NR_PAGES	16
#define FILE_SIZE	(NR_PAGES * PAGE)
#define GPA		0x100000UL
#define OTHER_GPA	0x40000000UL

FIXTURE(bind) {
	struct kvm_vm *vm;
	int fd;
	char *hva;
};

FIXTURE_SETUP(bind)
{
	self->vm = create_protected_vm();
	self->fd = vm_create_guest_memfd(self->vm, FILE_SIZE, 0);
	self->hva = mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->hva);
}

FIXTURE_TEARDOWN(bind)
{
	close(self->fd);
	kvm_vm_free(self->vm);
}

/* The errno of binding pages [page, page + nr) to a slot, or 0. */
static int bind_err(struct _test_data_bind *self, uint32_t slot, uint64_t gpa,
		    uint64_t page, uint64_t nr)
{
	return err_of(__vm_set_user_memory_region2(self->vm, slot, KVM_MEM_GUEST_MEMFD,
						   gpa, nr * PAGE, self->hva,
						   self->fd, page * PAGE));
}

/* The same of any file at any offset, as slot 0 at GPA. */
static int bind_file_err(struct _test_data_bind *self, int fd, uint64_t offset,
			 uint64_t size)
{
	return err_of(__vm_set_user_memory_region2(self->vm, 0, KVM_MEM_GUEST_MEMFD,
						   GPA, size, self->hva, fd, offset));
}

static int delete_err(struct _test_data_bind *self, uint32_t slot)
{
	return err_of(__vm_set_user_memory_region2(self->vm, slot, 0, 0, 0, NULL, 0, 0));
}

/*
 * Whether nothing is bound to pages [page, page + nr).  Takes a slot and an
 * address that no case uses.
 */
static bool is_free(struct __test_metadata *_metadata, struct _test_data_bind *self,
		    uint64_t page, uint64_t nr)
{
	int err = bind_err(self, 1000, 1UL << 35, page, nr);

	if (err) {
		EXPECT_EQ(EINVAL, err);
		return false;
	}

	EXPECT_EQ(0, delete_err(self, 1000));
	return true;
}

TEST_F(bind, whole_file)
{
	EXPECT_EQ(0, bind_err(self, 0, GPA, 0, NR_PAGES));
}

TEST_F(bind, pieces)
{
	EXPECT_EQ(0, bind_err(self, 0, GPA, 4, 4));
	EXPECT_EQ(0, bind_err(self, 1, GPA + 4 * PAGE, 8, 8))
		TH_LOG("what follows in the file follows in the guest");
	EXPECT_EQ(0, bind_err(self, 2, OTHER_GPA, 3, 1))
		TH_LOG("what comes before in the file lies elsewhere in the guest");
	EXPECT_EQ(0, bind_err(self, 3, 0, 0, 3));
}

TEST_F(bind, two_files)
{
	int other = vm_create_guest_memfd(self->vm, FILE_SIZE, 0);

	EXPECT_EQ(0, bind_err(self, 0, GPA, 0, NR_PAGES));
	EXPECT_EQ(0, err_of(__vm_set_user_memory_region2(self->vm, 1, KVM_MEM_GUEST_MEMFD,
							 OTHER_GPA, FILE_SIZE, self->hva,
							 other, 0)));
}

/* Any number of descriptors are one file. */
TEST_F(bind, duplicated_descriptor)
{
	int fd = dup(self->fd);

	EXPECT_EQ(0, bind_err(self, 0, GPA, 0, 4));
	EXPECT_EQ(EINVAL, err_of(__vm_set_user_memory_region2(self->vm, 1, KVM_MEM_GUEST_MEMFD,
							      OTHER_GPA, PAGE, self->hva,
							      fd, 0)));
	EXPECT_EQ(0, err_of(__vm_set_user_memory_region2(self->vm, 1, KVM_MEM_GUEST_MEMFD,
							 OTHER_GPA, PAGE, self->hva,
							 fd, 4 * PAGE)));
}

/* Whatever else is wrong, guest addresses that overlap are EEXIST. */
TEST_F(bind, overlap_is_first)
{
	struct kvm_vm *other = create_protected_vm();
	int foreign = vm_create_guest_memfd(other, FILE_SIZE, 0);
	const struct {
		const char *what;
		int fd;
		uint64_t offset;
	} files[] = {
		{ "a good one", self->fd, 8 * PAGE },
		{ "no descriptor", -1, 0 },
		{ "not a guest_memfd", self->vm->fd, 0 },
		{ "another VM's", foreign, 0 },
		{ "unaligned offset", self->fd, 1 },
		{ "beyond the end", self->fd, FILE_SIZE },
		{ "a bound range", self->fd, 0 },
	};
	const struct {
		uint64_t gpa, size;
	} ranges[] = {
		{ GPA, 4 * PAGE }, { GPA, PAGE }, { GPA + 3 * PAGE, 2 * PAGE },
		{ GPA - PAGE, 2 * PAGE }, { GPA - PAGE, 6 * PAGE },
	};
	int i, j;

	ASSERT_EQ(0, bind_err(self, 0, GPA, 0, 4));
	for (i = 0; i < ARRAY_SIZE(files); i++) {
		for (j = 0; j < ARRAY_SIZE(ranges); j++) {
			EXPECT_EQ(EEXIST,
				  err_of(__vm_set_user_memory_region2(self->vm, 1,
								      KVM_MEM_GUEST_MEMFD,
								      ranges[j].gpa,
								      ranges[j].size,
								      self->hva, files[i].fd,
								      files[i].offset)))
				TH_LOG("%s, range %d", files[i].what, j);
		}
	}

	/* And what was refused has bound nothing. */
	EXPECT_TRUE(is_free(_metadata, self, 4, NR_PAGES - 4));
	kvm_vm_free(other);
}

TEST_F(bind, overlap_of_ordinary_slots)
{
	vm_set_user_memory_region(self->vm, 0, 0, GPA, 4 * PAGE, self->hva);
	EXPECT_EQ(EEXIST, bind_err(self, 1, GPA, 0, 4));
	EXPECT_TRUE(is_free(_metadata, self, 0, NR_PAGES));

	ASSERT_EQ(0, bind_err(self, 2, OTHER_GPA, 0, 4));
	EXPECT_EQ(EEXIST, err_of(__vm_set_user_memory_region(self->vm, 3, 0, OTHER_GPA,
							     PAGE, self->hva)));
}

TEST_F(bind, no_descriptor)
{
	int closed = dup(self->fd);

	ASSERT_EQ(0, close(closed));
	EXPECT_EQ(EBADF, bind_file_err(self, -1, 0, PAGE));
	EXPECT_EQ(EBADF, bind_file_err(self, closed, 0, PAGE));
	EXPECT_EQ(EBADF, bind_file_err(self, INT_MAX, 0, PAGE));
	EXPECT_EQ(EBADF, bind_file_err(self, -1, 1, PAGE))
		TH_LOG("asked before the offset");
}

TEST_F(bind, not_a_guest_memfd)
{
	int memfd = memfd_create("ordinary", 0), path = open("/proc/self/exe", O_PATH);
	struct kvm_vcpu *vcpu = __vm_vcpu_add(self->vm, 0);

	ASSERT_EQ(0, ftruncate(memfd, FILE_SIZE));
	EXPECT_EQ(EINVAL, bind_file_err(self, memfd, 0, PAGE));
	EXPECT_EQ(EINVAL, bind_file_err(self, self->vm->fd, 0, PAGE));
	EXPECT_EQ(EINVAL, bind_file_err(self, self->vm->kvm_fd, 0, PAGE));
	EXPECT_EQ(EINVAL, bind_file_err(self, vcpu->fd, 0, PAGE));
	EXPECT_EQ(EBADF, bind_file_err(self, path, 0, PAGE));
}

TEST_F(bind, other_vm)
{
	struct kvm_vm *protected = create_protected_vm(), *ordinary = vm_create_barebones();

	EXPECT_EQ(EINVAL, bind_file_err(self, vm_create_guest_memfd(protected, FILE_SIZE, 0),
					0, PAGE));
	EXPECT_EQ(EINVAL, bind_file_err(self, vm_create_guest_memfd(ordinary, FILE_SIZE, 0),
					0, PAGE));
	EXPECT_EQ(EINVAL, err_of(__vm_set_user_memory_region2(protected, 0, KVM_MEM_GUEST_MEMFD,
							      GPA, PAGE, self->hva,
							      self->fd, 0)));
	kvm_vm_free(protected);
	kvm_vm_free(ordinary);
}

TEST_F(bind, unaligned_offset)
{
	static const uint64_t offsets[] = {
		1, 512, PAGE - 1, PAGE + 1, 2 * PAGE + 2048, FILE_SIZE - 1,
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(offsets); i++) {
		EXPECT_EQ(EINVAL, bind_file_err(self, self->fd, offsets[i], PAGE))
			TH_LOG("offset 0x%lx", offsets[i]);
	}
}

TEST_F(bind, beyond_the_end)
{
	static const struct {
		uint64_t offset, size;
	} ranges[] = {
		{ FILE_SIZE, PAGE }, { FILE_SIZE - PAGE, 2 * PAGE },
		{ 0, FILE_SIZE + PAGE }, { PAGE, FILE_SIZE },
		{ FILE_SIZE + PAGE, PAGE }, { 1ULL << 40, PAGE },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		EXPECT_EQ(EINVAL, bind_file_err(self, self->fd, ranges[i].offset, ranges[i].size))
			TH_LOG("0x%lx at 0x%lx", ranges[i].size, ranges[i].offset);
	}
}

/* An end that wraps around must not look as if it lay inside the file. */
TEST_F(bind, offset_overflow)
{
	static const struct {
		uint64_t offset, size;
	} ranges[] = {
		{ -PAGE, PAGE }, { -PAGE, 2 * PAGE }, { -4 * PAGE, 8 * PAGE },
		{ 1ULL << 63, PAGE }, { (1ULL << 63) - PAGE, PAGE },
		{ (1ULL << 63) - PAGE, 2 * PAGE }, { -PAGE, FILE_SIZE },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		EXPECT_EQ(EINVAL, bind_file_err(self, self->fd, ranges[i].offset, ranges[i].size))
			TH_LOG("0x%lx at 0x%lx", ranges[i].size, ranges[i].offset);
	}
}

TEST_F(bind, already_bound)
{
	static const struct {
		int page, nr, err;
	} ranges[] = {
		{ 4, 4, EINVAL }, { 4, 1, EINVAL }, { 7, 1, EINVAL }, { 5, 2, EINVAL },
		{ 3, 2, EINVAL }, { 7, 2, EINVAL }, { 3, 6, EINVAL }, { 0, 16, EINVAL },
		{ 0, 5, EINVAL }, { 7, 9, EINVAL },
		{ 3, 1, 0 }, { 8, 1, 0 }, { 0, 4, 0 }, { 8, 8, 0 },
	};
	int i;

	ASSERT_EQ(0, bind_err(self, 0, GPA, 4, 4));
	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		EXPECT_EQ(ranges[i].err, bind_err(self, 1, OTHER_GPA, ranges[i].page, ranges[i].nr))
			TH_LOG("%d pages from page %d", ranges[i].nr, ranges[i].page);
		EXPECT_EQ(ranges[i].err, delete_err(self, 1));
	}
}

TEST_F(bind, readonly)
{
	EXPECT_EQ(EINVAL, err_of(__vm_set_user_memory_region2(self->vm, 0,
							      KVM_MEM_GUEST_MEMFD |
							      KVM_MEM_READONLY,
							      GPA, PAGE, self->hva,
							      self->fd, 0)));
	EXPECT_TRUE(is_free(_metadata, self, 0, NR_PAGES));
}

TEST_F(bind, log_dirty_pages)
{
	EXPECT_EQ(EINVAL, err_of(__vm_set_user_memory_region2(self->vm, 0,
							      KVM_MEM_GUEST_MEMFD |
							      KVM_MEM_LOG_DIRTY_PAGES,
							      GPA, PAGE, self->hva,
							      self->fd, 0)));
	EXPECT_TRUE(is_free(_metadata, self, 0, NR_PAGES));
}

TEST_F(bind, unknown_flags)
{
	int i;

	for (i = 3; i < 32; i++) {
		EXPECT_EQ(EINVAL, err_of(__vm_set_user_memory_region2(self->vm, 0,
								      KVM_MEM_GUEST_MEMFD |
								      1U << i,
								      GPA, PAGE, self->hva,
								      self->fd, 0)))
			TH_LOG("flag 1 << %d", i);
	}
}

/* Flags that nobody knows come before all else, be it addresses or the file. */
TEST_F(bind, unknown_flags_are_first)
{
	int i;

	ASSERT_EQ(0, bind_err(self, 0, GPA, 0, 4));
	for (i = 3; i < 32; i++) {
		uint32_t flags = KVM_MEM_GUEST_MEMFD | 1U << i;

		EXPECT_EQ(EINVAL, err_of(__vm_set_user_memory_region2(self->vm, 1, flags, GPA,
								      PAGE, self->hva,
								      self->fd, 8 * PAGE)))
			TH_LOG("flag 1 << %d, addresses that overlap", i);
		EXPECT_EQ(EINVAL, err_of(__vm_set_user_memory_region2(self->vm, 1, flags,
								      OTHER_GPA, PAGE,
								      self->hva, -1, 0)))
			TH_LOG("flag 1 << %d, no descriptor", i);
	}
}

TEST_F(bind, address_space_1)
{
	EXPECT_EQ(EINVAL, bind_err(self, 1 << 16, GPA, 0, 1));
	EXPECT_EQ(EINVAL, bind_err(self, 1 << 16 | 5, GPA, 0, 1));
	/* A VM with private memory has no second address space at all. */
	EXPECT_EQ(EINVAL, err_of(__vm_set_user_memory_region(self->vm, 1 << 16, 0, GPA,
							     PAGE, self->hva)));
	EXPECT_TRUE(is_free(_metadata, self, 0, NR_PAGES));
}

TEST_F(bind, default_vm)
{
	struct kvm_vm *vm = vm_create_barebones();
	int fd = vm_create_guest_memfd(vm, FILE_SIZE, 0);

	EXPECT_EQ(EINVAL, err_of(__vm_set_user_memory_region2(vm, 0, KVM_MEM_GUEST_MEMFD,
							      GPA, PAGE, self->hva, fd, 0)));
	kvm_vm_free(vm);
}

TEST_F(bind, old_ioctl)
{
	EXPECT_EQ(EINVAL, err_of(__vm_set_user_memory_region(self->vm, 0, KVM_MEM_GUEST_MEMFD,
							     GPA, PAGE, self->hva)));
}

/* The shared half is checked as in any other slot. */
TEST_F(bind, userspace_addr)
{
	const unsigned long bad[] = {
		(unsigned long)self->hva + 1, (unsigned long)self->hva + 2048,
		1UL << 63, -PAGE,
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(EINVAL, err_of(__vm_set_user_memory_region2(self->vm, 0,
								      KVM_MEM_GUEST_MEMFD,
								      GPA, PAGE,
								      (void *)bad[i],
								      self->fd, 0)))
			TH_LOG("userspace_addr 0x%lx", bad[i]);
	}
}

TEST_F(bind, guest_range)
{
	EXPECT_EQ(EINVAL, bind_err(self, 0, GPA + 1, 0, 1));
	EXPECT_EQ(EINVAL, bind_file_err(self, self->fd, 0, PAGE + 1));
	EXPECT_EQ(EINVAL, bind_file_err(self, self->fd, 0, 100));
	EXPECT_EQ(EINVAL, bind_err(self, 0, -PAGE, 0, 2))
		TH_LOG("wraps around");
	EXPECT_TRUE(is_free(_metadata, self, 0, NR_PAGES));
}

/* A bound slot can be deleted and nothing else. */
TEST_F(bind, move)
{
	ASSERT_EQ(0, bind_err(self, 0, GPA, 0, 4));
	EXPECT_EQ(EINVAL, bind_err(self, 0, OTHER_GPA, 0, 4));
	EXPECT_EQ(EINVAL, bind_err(self, 0, GPA + PAGE, 0, 4));
	EXPECT_EQ(EINVAL, err_of(__vm_set_user_memory_region(self->vm, 0, 0, OTHER_GPA,
							     4 * PAGE, self->hva)));
	EXPECT_FALSE(is_free(_metadata, self, 0, 1));
}

TEST_F(bind, change_flags)
{
	static const uint32_t flags[] = {
		0, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY,
		KVM_MEM_GUEST_MEMFD | KVM_MEM_LOG_DIRTY_PAGES,
		KVM_MEM_GUEST_MEMFD | KVM_MEM_READONLY,
	};
	int i;

	ASSERT_EQ(0, bind_err(self, 0, GPA, 0, 4));
	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		EXPECT_EQ(EINVAL, err_of(__vm_set_user_memory_region2(self->vm, 0, flags[i],
								      GPA, 4 * PAGE, self->hva,
								      self->fd, 0)))
			TH_LOG("flags 0x%x", flags[i]);
	}
	EXPECT_EQ(EINVAL, err_of(__vm_set_user_memory_region(self->vm, 0,
							     KVM_MEM_LOG_DIRTY_PAGES, GPA,
							     4 * PAGE, self->hva)));
	EXPECT_FALSE(is_free(_metadata, self, 0, 1));

	/* Nor does an ordinary slot become a bound one. */
	vm_set_user_memory_region(self->vm, 1, 0, OTHER_GPA, PAGE, self->hva);
	EXPECT_EQ(EINVAL, bind_err(self, 1, OTHER_GPA, 8, 1));
	EXPECT_TRUE(is_free(_metadata, self, 8, 1));
}

/* Nor can it be set to what it is, which an ordinary slot can. */
TEST_F(bind, same_again)
{
	ASSERT_EQ(0, bind_err(self, 0, GPA, 0, 4));
	EXPECT_EQ(EINVAL, bind_err(self, 0, GPA, 0, 4));
	EXPECT_FALSE(is_free(_metadata, self, 0, 4));
	EXPECT_EQ(0, delete_err(self, 0));
	EXPECT_TRUE(is_free(_metadata, self, 0, 4));

	vm_set_user_memory_region(self->vm, 1, 0, OTHER_GPA, PAGE, self->hva);
	EXPECT_EQ(0, err_of(__vm_set_user_memory_region2(self->vm, 1, 0, OTHER_GPA, PAGE,
							 self->hva, -1, 0)));
}

TEST_F(bind, change_binding)
{
	ASSERT_EQ(0, bind_err(self, 0, GPA, 0, 4));
	EXPECT_EQ(EINVAL, bind_err(self, 0, GPA, 4, 4))
		TH_LOG("offset");
	EXPECT_EQ(EINVAL, bind_err(self, 0, GPA, 0, 5))
		TH_LOG("size");
	EXPECT_EQ(EINVAL, err_of(__vm_set_user_memory_region2(self->vm, 0, KVM_MEM_GUEST_MEMFD,
							      GPA, 4 * PAGE, self->hva,
							      vm_create_guest_memfd(self->vm,
										    FILE_SIZE, 0),
							      0)))
		TH_LOG("file");
	EXPECT_EQ(EINVAL, err_of(__vm_set_user_memory_region2(self->vm, 0, KVM_MEM_GUEST_MEMFD,
							      GPA, 4 * PAGE, self->hva + PAGE,
							      self->fd, 0)))
		TH_LOG("userspace_addr");
	EXPECT_FALSE(is_free(_metadata, self, 3, 1));
	EXPECT_TRUE(is_free(_metadata, self, 4, 4));
}

TEST_F(bind, delete)
{
	int i;

	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, bind_err(self, 0, GPA, 0, 4));
		EXPECT_FALSE(is_free(_metadata, self, 0, 4));
		EXPECT_EQ(0, delete_err(self, 0));
		EXPECT_TRUE(is_free(_metadata, self, 0, 4));
	}

	/* With the flags and the file still in the argument, ... */
	ASSERT_EQ(0, bind_err(self, 0, GPA, 0, 4));
	EXPECT_EQ(0, bind_err(self, 0, GPA, 0, 0));
	EXPECT_TRUE(is_free(_metadata, self, 0, 4));

	/* ... and by the ioctl that knows neither. */
	ASSERT_EQ(0, bind_err(self, 0, GPA, 0, 4));
	EXPECT_EQ(0, err_of(__vm_set_user_memory_region(self->vm, 0, 0, 0, 0, NULL)));
	EXPECT_TRUE(is_free(_metadata, self, 0, 4));

	EXPECT_EQ(0, bind_err(self, 7, OTHER_GPA, 0, NR_PAGES));
}

TEST_F(bind, delete_after_close)
{
	ASSERT_EQ(0, bind_err(self, 0, GPA, 0, 4));
	ASSERT_EQ(0, bind_err(self, 1, OTHER_GPA, 4, 4));
	ASSERT_EQ(0, close(self->fd));
	EXPECT_EQ(0, delete_err(self, 0));

	/* The slot is what it was, also if there is nothing behind it. */
	EXPECT_EQ(EEXIST, err_of(__vm_set_user_memory_region(self->vm, 2, 0, OTHER_GPA, PAGE,
							     self->hva)));
	self->fd = vm_create_guest_memfd(self->vm, FILE_SIZE, 0);
	EXPECT_EQ(EINVAL, bind_err(self, 1, OTHER_GPA, 4, 4));
	EXPECT_EQ(0, delete_err(self, 1));
	EXPECT_EQ(0, bind_err(self, 1, OTHER_GPA, 4, 4));
}

/*
 * A VM has a folder in debugfs as long as it exists.
 */
static bool vm_exists(struct __test_metadata *_metadata, pid_t pid, int vm_fd)
{
	char path[64];

	EXPECT_EQ(0, access("/sys/kernel/debug/kvm", R_OK))
		TH_LOG("debugfs must be mounted at /sys/kernel/debug");
	snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%d-%d", pid, vm_fd);
	return !access(path, F_OK);
}

TEST_F(bind, file_holds_vm)
{
	char buf[PAGE] = "";
	int vm_fd = self->vm->fd, other = vm_create_guest_memfd(self->vm, PAGE, 0);

	ASSERT_TRUE(vm_exists(_metadata, getpid(), vm_fd));
	ASSERT_EQ(0, bind_err(self, 0, GPA, 0, 4));
	ASSERT_EQ(0, close(vm_fd));
	EXPECT_TRUE(vm_exists(_metadata, getpid(), vm_fd));

	/* And is as good as before. */
	EXPECT_EQ(PAGE, pwrite(self->fd, buf, PAGE, 0));
	EXPECT_EQ(0, err_of(fallocate(self->fd, FALLOC_FL_KEEP_SIZE, PAGE, 2 * PAGE)));
	EXPECT_EQ(0, err_of(fallocate(self->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
				      0, 2 * PAGE)));

	ASSERT_EQ(0, close(self->fd));
	EXPECT_TRUE(vm_exists(_metadata, getpid(), vm_fd))
		TH_LOG("there is another file");
	ASSERT_EQ(0, close(other));
	EXPECT_FALSE(vm_exists(_metadata, getpid(), vm_fd));

	/* The fixture wants something to close. */
	self->vm->fd = dup(self->vm->kvm_fd);
}

TEST_F(bind, vm_outlives_file)
{
	ASSERT_EQ(0, bind_err(self, 0, GPA, 0, 4));
	ASSERT_EQ(0, close(self->fd));
	EXPECT_TRUE(vm_exists(_metadata, getpid(), self->vm->fd));
	ASSERT_EQ(0, close(self->vm->fd));
	EXPECT_FALSE(vm_exists(_metadata, getpid(), self->vm->fd));

	self->vm->fd = dup(self->vm->kvm_fd);
}

/*
 * Without KVM_MEM_GUEST_MEMFD the new ioctl is the old one, for any VM.
 */
FIXTURE(region2) {
	struct kvm_vm *vm;
	char *hva;
};

FIXTURE_VARIANT(region2) {
	unsigned int type;
};

FIXTURE_VARIANT_ADD(region2, default_vm) {
	.type = KVM_X86_DEFAULT_VM,
};

FIXTURE_VARIANT_ADD(region2, protected_vm) {
	.type = KVM_X86_SW_PROTECTED_VM,
};

FIXTURE_SETUP(region2)
{
	self->vm = ____vm_create(VM_SHAPE(variant->type), 0);
	self->hva = mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->hva);
}

FIXTURE_TEARDOWN(region2)
{
	kvm_vm_free(self->vm);
}

/* What it says of a file means nothing without the flag. */
static int region2_err(struct _test_data_region2 *self, uint32_t slot, uint32_t flags,
		       uint64_t gpa, uint64_t size, void *hva)
{
	return err_of(__vm_set_user_memory_region2(self->vm, slot, flags, gpa, size,
						   hva, -1, -1));
}

TEST_F(region2, life_of_a_slot)
{
	EXPECT_EQ(0, region2_err(self, 0, 0, GPA, FILE_SIZE, self->hva));
	EXPECT_EQ(0, region2_err(self, 0, 0, OTHER_GPA, FILE_SIZE, self->hva))
		TH_LOG("move");
	EXPECT_EQ(0, region2_err(self, 0, KVM_MEM_LOG_DIRTY_PAGES, OTHER_GPA, FILE_SIZE, self->hva))
		TH_LOG("re-flag");
	EXPECT_EQ(0, region2_err(self, 0, 0, 0, 0, NULL))
		TH_LOG("delete");
	EXPECT_EQ(0, region2_err(self, 0, KVM_MEM_READONLY, OTHER_GPA, FILE_SIZE, self->hva))
		TH_LOG("add again");
}

TEST_F(region2, errors)
{
	ASSERT_EQ(0, region2_err(self, 0, 0, GPA, FILE_SIZE, self->hva));

	EXPECT_EQ(EEXIST, region2_err(self, 1, 0, GPA + PAGE, PAGE, self->hva));
	EXPECT_EQ(EINVAL, region2_err(self, 1, 0, OTHER_GPA + 1, PAGE, self->hva));
	EXPECT_EQ(EINVAL, region2_err(self, 1, 0, OTHER_GPA, PAGE + 1, self->hva));
	EXPECT_EQ(EINVAL, region2_err(self, 1, 0, OTHER_GPA, PAGE, self->hva + 1));
	EXPECT_EQ(EINVAL, region2_err(self, 1, 0, -PAGE, 2 * PAGE, self->hva));
	EXPECT_EQ(EINVAL, region2_err(self, 1, 1 << 3, OTHER_GPA, PAGE, self->hva));
	EXPECT_EQ(EINVAL, region2_err(self, 1, 1U << 31, OTHER_GPA, PAGE, self->hva));
	EXPECT_EQ(EINVAL, region2_err(self, 0, 0, GPA, PAGE, self->hva))
		TH_LOG("resize");
	EXPECT_EQ(EINVAL, region2_err(self, 32767, 0, OTHER_GPA, PAGE, self->hva))
		TH_LOG("no such slot");
	EXPECT_EQ(EINVAL, region2_err(self, 1, 0, 0, 0, NULL))
		TH_LOG("delete what is not there");
}

TEST_F(region2, bad_pointer)
{
	struct kvm_userspace_memory_region2 *region = NULL;

	EXPECT_EQ(EFAULT, err_of(__vm_ioctl(self->vm, KVM_SET_USER_MEMORY_REGION2, region)));
}

TEST_F(region2, mixes_with_the_old_one)
{
	ASSERT_EQ(0, region2_err(self, 0, 0, GPA, FILE_SIZE, self->hva));
	EXPECT_EQ(EEXIST, err_of(__vm_set_user_memory_region(self->vm, 1, 0, GPA, PAGE,
							     self->hva)));
	EXPECT_EQ(0, err_of(__vm_set_user_memory_region(self->vm, 0, KVM_MEM_LOG_DIRTY_PAGES,
							GPA, FILE_SIZE, self->hva)));
	EXPECT_EQ(0, err_of(__vm_set_user_memory_region(self->vm, 0, 0, 0, 0, NULL)));
	EXPECT_EQ(0, err_of(__vm_set_user_memory_region(self->vm, 0, 0, GPA, FILE_SIZE,
							self->hva)));
	EXPECT_EQ(0, region2_err(self, 0, 0, 0, 0, NULL));
}

TEST_HARNESS_MAIN
