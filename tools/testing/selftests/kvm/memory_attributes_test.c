// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_SET_MEMORY_ATTRIBUTES: what it refuses, and that the guest sees exactly
 * what was set, no matter what happens to memslots or to allocations.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>

#include "kvm_harness.h"
#include "private_mem.h"

#define PAGE		4096UL
#define PRIVATE		KVM_MEMORY_ATTRIBUTE_PRIVATE

FIXTURE(attributes) {
	struct kvm_vm *vm;	/* without a single memslot */
};

FIXTURE_SETUP(attributes)
{
	self->vm = create_protected_vm();
}

FIXTURE_TEARDOWN(attributes)
{
	kvm_vm_free(self->vm);
}

#define set_err(gpa, size, attributes) \
	err_of(__vm_set_memory_attributes(self->vm, gpa, size, attributes))

TEST_F(attributes, no_memslot)
{
	EXPECT_EQ(0, set_err(0, PAGE, PRIVATE));
	EXPECT_EQ(0, set_err(0, PAGE, 0));
	EXPECT_EQ(0, set_err(1UL << 40, 5 * PAGE, PRIVATE));
	EXPECT_EQ(0, set_err((1UL << 40) + PAGE, PAGE, 0));
}

/* Takes no longer than a page does, else the case runs out of time. */
TEST_F(attributes, all_addresses)
{
	EXPECT_EQ(0, set_err(0, -PAGE, PRIVATE));
	EXPECT_EQ(0, set_err(PAGE, 1UL << 51, 0));
	EXPECT_EQ(0, set_err(0, -PAGE, 0));
}

TEST_F(attributes, unaligned)
{
	static const struct {
		uint64_t gpa, size;
	} bad[] = {
		{ 1, PAGE }, { PAGE - 1, PAGE }, { PAGE + 512, PAGE },
		{ 0, 1 }, { 0, PAGE - 1 }, { 0, PAGE + 1 }, { PAGE, 512 },
		{ 1, PAGE - 1 }, { 512, 2 * PAGE - 512 },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(EINVAL, set_err(bad[i].gpa, bad[i].size, PRIVATE))
			TH_LOG("0x%lx bytes at 0x%lx", bad[i].size, bad[i].gpa);
		EXPECT_EQ(EINVAL, set_err(bad[i].gpa, bad[i].size, 0))
			TH_LOG("0x%lx bytes at 0x%lx", bad[i].size, bad[i].gpa);
	}
}

TEST_F(attributes, zero_size)
{
	EXPECT_EQ(EINVAL, set_err(0, 0, PRIVATE));
	EXPECT_EQ(EINVAL, set_err(0, 0, 0));
	EXPECT_EQ(EINVAL, set_err(PAGE, 0, PRIVATE));
}

TEST_F(attributes, wrap)
{
	EXPECT_EQ(EINVAL, set_err(-PAGE, 2 * PAGE, PRIVATE));
	EXPECT_EQ(EINVAL, set_err(2 * PAGE, -PAGE, PRIVATE));
	EXPECT_EQ(EINVAL, set_err(1UL << 63, (1UL << 63) + PAGE, PRIVATE));
	EXPECT_EQ(EINVAL, set_err(-PAGE, -PAGE, 0));
}

TEST_F(attributes, unknown)
{
	uint64_t known = vm_check_cap(self->vm, KVM_CAP_MEMORY_ATTRIBUTES);
	int i;

	EXPECT_EQ(PRIVATE, known);
	for (i = 0; i < 64; i++) {
		if (known & (1ULL << i))
			continue;
		EXPECT_EQ(EINVAL, set_err(0, PAGE, 1ULL << i))
			TH_LOG("attribute 1 << %d", i);
		EXPECT_EQ(EINVAL, set_err(0, PAGE, 1ULL << i | PRIVATE))
			TH_LOG("attribute 1 << %d with PRIVATE", i);
	}
}

TEST_F(attributes, flags)
{
	struct kvm_memory_attributes args = { .size = PAGE, .attributes = PRIVATE };
	int i;

	for (i = 0; i < 64; i++) {
		args.flags = 1ULL << i;
		EXPECT_EQ(EINVAL, err_of(__vm_ioctl(self->vm, KVM_SET_MEMORY_ATTRIBUTES, &args)))
			TH_LOG("flag 1 << %d", i);
	}
}

TEST_F(attributes, bad_pointer)
{
	struct kvm_memory_attributes *args = NULL;

	EXPECT_EQ(EFAULT, err_of(__vm_ioctl(self->vm, KVM_SET_MEMORY_ATTRIBUTES, args)));
}

/* A VM without private memory knows no attribute. */
TEST_F(attributes, default_vm)
{
	struct kvm_vm *vm = vm_create_barebones();

	EXPECT_EQ(0, vm_check_cap(vm, KVM_CAP_MEMORY_ATTRIBUTES));
	EXPECT_EQ(EINVAL, err_of(__vm_set_memory_attributes(vm, 0, PAGE, PRIVATE)));
	kvm_vm_free(vm);
}

/*
 * What attributes take up is charged to the memory cgroup of who sets them.
 * These lie so far apart that each one has tree nodes of its own.
 */
TEST_F(attributes, charged)
{
	const uint64_t nr = 4000, stride = 4096 * PAGE;
	struct memcg cg;
	uint64_t i;
	long before;

	memcg_create(&cg);
	memcg_enter(&cg);
	before = memcg_usage(&cg);
	for (i = 0; i < nr; i++)
		ASSERT_EQ(0, set_err(i * stride, PAGE, PRIVATE));
	EXPECT_LE(before + (2 << 20), memcg_usage(&cg));
	memcg_destroy(&cg);
}

/*
 * What the guest sees: a shared page can be read, a private one exits, as no
 * file stands behind it.
 */
#define SLOT		1
#define NR_PAGES	64
#define GPA		PRIVATE_MEM_GPA

FIXTURE(guest) {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	bool private[NR_PAGES];		/* what should be */
};

static void add_slot(struct kvm_vm *vm)
{
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, GPA, SLOT, NR_PAGES, 0);
}

FIXTURE_SETUP(guest)
{
	self->vm = private_mem_vm_create(1, NR_PAGES, NULL, &self->vcpu);
	add_slot(self->vm);
	virt_map(self->vm, GPA, GPA, NR_PAGES);
}

FIXTURE_TEARDOWN(guest)
{
	kvm_vm_free(self->vm);
}

/* Sets pages [page, page + nr) and notes what should be. */
static void set_pages(struct _test_data_guest *self, int page, int nr, bool private)
{
	vm_set_memory_attributes(self->vm, GPA + page * PAGE, nr * PAGE, private ? PRIVATE : 0);
	while (nr--)
		self->private[page++] = private;
}

static bool is_private(struct _test_data_guest *self, int page)
{
	uint64_t gpa = GPA + page * PAGE;
	int ret = __vcpu_access(self->vcpu, GUEST_READ, gpa, 0, 0), err = errno;

	if (!ret && vcpu_is_guest_call(self->vcpu))
		return false;
	vcpu_assert_private_fault(self->vcpu, ret, err, gpa);
	return true;
}

/* The guest sees what should be. */
static void check_pages(struct __test_metadata *_metadata, struct _test_data_guest *self)
{
	int i;

	for (i = 0; i < NR_PAGES; i++) {
		ASSERT_EQ(self->private[i], is_private(self, i))
			TH_LOG("page %d", i);
	}
}

TEST_F(guest, begins_shared)
{
	check_pages(_metadata, self);
}

TEST_F(guest, exactly_the_range)
{
	set_pages(self, 8, 8, true);
	check_pages(_metadata, self);
	set_pages(self, 10, 2, false);
	check_pages(_metadata, self);
	set_pages(self, 9, 4, true);
	check_pages(_metadata, self);
	set_pages(self, 0, NR_PAGES, true);
	check_pages(_metadata, self);
	set_pages(self, 0, NR_PAGES - 1, false);
	check_pages(_metadata, self);
}

TEST_F(guest, random)
{
	unsigned int seed = time(NULL);
	int i, page;

	TH_LOG("seed %u", seed);
	for (i = 0; i < 100; i++) {
		page = rand_r(&seed) % NR_PAGES;
		set_pages(self, page, 1 + rand_r(&seed) % (NR_PAGES - page), rand_r(&seed) & 1);
		check_pages(_metadata, self);
	}
}

TEST_F(guest, refused_changes_nothing)
{
	set_pages(self, 8, 8, true);
	EXPECT_EQ(EINVAL, set_err(GPA, NR_PAGES * PAGE + 1, PRIVATE));
	EXPECT_EQ(EINVAL, set_err(GPA, NR_PAGES * PAGE, PRIVATE | 1));
	EXPECT_EQ(EINVAL, set_err(GPA, NR_PAGES * PAGE, 1));
	EXPECT_EQ(EINVAL, set_err(GPA, -PAGE, 0));
	check_pages(_metadata, self);
}

TEST_F(guest, survives_its_slot)
{
	set_pages(self, 8, 8, true);
	vm_mem_region_delete(self->vm, SLOT);
	add_slot(self->vm);
	check_pages(_metadata, self);

	/* Also when they are set while there is no slot. */
	vm_mem_region_delete(self->vm, SLOT);
	set_pages(self, 12, 20, true);
	set_pages(self, 9, 1, false);
	add_slot(self->vm);
	check_pages(_metadata, self);
}

TEST_F(guest, survives_other_slots)
{
	set_pages(self, 8, 8, true);
	vm_mem_region_set_flags(self->vm, SLOT, KVM_MEM_LOG_DIRTY_PAGES);
	check_pages(_metadata, self);
	vm_mem_region_set_flags(self->vm, SLOT, 0);
	check_pages(_metadata, self);

	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS, GPA + NR_PAGES * PAGE,
				    SLOT + 1, NR_PAGES, 0);
	vm_mem_region_set_flags(self->vm, SLOT + 1, KVM_MEM_LOG_DIRTY_PAGES);
	check_pages(_metadata, self);
	vm_mem_region_delete(self->vm, SLOT + 1);
	check_pages(_metadata, self);
}

/*
 * What is set already costs no vCPU its mappings.  KVM counts those that it
 * has, and the last line shows that this count would tell.
 */
TEST_F(guest, same_again_keeps_mappings)
{
	uint64_t mapped;

	set_pages(self, 8, 8, true);
	check_pages(_metadata, self);
	mapped = vm_get_stat(self->vm, "pages_4k");
	ASSERT_LE(NR_PAGES - 8, mapped);

	set_pages(self, 0, 8, false);
	set_pages(self, 16, NR_PAGES - 16, false);
	set_pages(self, 0, 4, false);
	EXPECT_EQ(mapped, vm_get_stat(self->vm, "pages_4k"));

	set_pages(self, 0, 4, true);
	EXPECT_EQ(mapped - 4, vm_get_stat(self->vm, "pages_4k"));
}

/* Nor does what no vCPU has a mapping of cost any of them its TLB. */
TEST_F(guest, flushes_what_was_mapped)
{
	uint64_t flushes;

	ASSERT_FALSE(is_private(self, 8));
	ASSERT_FALSE(is_private(self, 9));

	/* Around what is mapped, then that itself, then what is mapped no more. */
	flushes = vm_get_stat(self->vm, "remote_tlb_flush_requests");
	set_pages(self, 0, 8, true);
	set_pages(self, 10, NR_PAGES - 10, true);
	EXPECT_EQ(flushes, vm_get_stat(self->vm, "remote_tlb_flush_requests"));
	set_pages(self, 0, NR_PAGES, true);
	EXPECT_EQ(flushes + 1, vm_get_stat(self->vm, "remote_tlb_flush_requests"));
	set_pages(self, 0, NR_PAGES, false);
	EXPECT_EQ(flushes + 1, vm_get_stat(self->vm, "remote_tlb_flush_requests"));
	check_pages(_metadata, self);
}

/* Like set_err(), but allocations fail after the first ones, of @space bytes. */
static int set_err_failing(struct __test_metadata *_metadata, struct _test_data_guest *self,
			   int space, uint64_t gpa, uint64_t size, uint64_t attributes)
{
	int err;

	failslab_begin(space);
	err = set_err(gpa, size, attributes);
	failslab_end();
	return err;
}

/*
 * Sets all from a page on, with memory for ever more allocations until it is
 * enough.  Returns how often it was not.
 */
static int set_with_failures(struct __test_metadata *_metadata, struct _test_data_guest *self,
			     int page, bool private)
{
	const uint64_t far = 1UL << 50;	/* where nothing has been set yet */
	int err, i, failed;

	for (failed = 0; ; failed++) {
		/* Less than any node of the tree, so that none is passed over. */
		err = set_err_failing(_metadata, self, failed * 256, GPA + page * PAGE, far,
				      private ? PRIVATE : 0);
		if (!err)
			break;
		ASSERT_EQ(ENOMEM, err)
			TH_LOG("with %d bytes", failed * 256);
		check_pages(_metadata, self);
		ASSERT_GT(1000, failed);
	}

	for (i = page; i < NR_PAGES; i++)
		self->private[i] = private;
	check_pages(_metadata, self);
	return failed;
}

/* All or nothing, whichever allocation fails. */
TEST_F(guest, enomem)
{
	int failed;

	if (!failslab_setup())
		SKIP(return, "No CONFIG_FAILSLAB, or no debugfs to set it up");

	/* From the midst of a run of each kind. */
	set_pages(self, 0, 4, true);
	set_pages(self, 20, 4, true);
	set_pages(self, 40, 1, true);
	failed = set_with_failures(_metadata, self, 2, false);
	failed += set_with_failures(_metadata, self, 30, true);
	failed += set_with_failures(_metadata, self, 40, false);
	EXPECT_LT(0, failed)
		TH_LOG("no allocation failed, so this case showed nothing");
}

/* What is set already is free. */
TEST_F(guest, same_again_allocates_nothing)
{
	if (!failslab_setup())
		SKIP(return, "No CONFIG_FAILSLAB, or no debugfs to set it up");

	set_pages(self, 8, 8, true);
	EXPECT_EQ(0, set_err_failing(_metadata, self, 0, GPA + 8 * PAGE, 8 * PAGE, PRIVATE));
	EXPECT_EQ(0, set_err_failing(_metadata, self, 0, GPA + 10 * PAGE, 2 * PAGE, PRIVATE));
	EXPECT_EQ(0, set_err_failing(_metadata, self, 0, GPA + 16 * PAGE, 1UL << 50, 0));
	EXPECT_EQ(0, set_err_failing(_metadata, self, 0, 0, GPA + 8 * PAGE, 0));
	check_pages(_metadata, self);
}

TEST_HARNESS_MAIN
