// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a VMM learns when the guest touches private memory that is not there.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "kvm_harness.h"
#include "private_mem.h"

#define SLOT		PRIVATE_MEM_SLOT
#define GPA		PRIVATE_MEM_GPA
#define NR_PAGES	8
#define SIZE		(NR_PAGES * PAGE_SIZE)
#define TEST_PAGE	(GPA + 3 * PAGE_SIZE)

/* Mapped in the guest's page tables, but no memslot is there. */
#define NO_SLOT_GPA	(GPA + 0x40000000ull)

#define EXITS_TIMEOUT	120

FIXTURE(exits) {
	struct private_mem private_mem;
};

/* One private slot, every page of which the guest has touched. */
FIXTURE_SETUP(exits)
{
	struct private_mem *mem = &self->private_mem;
	uint64_t gpa;

	private_mem_create(mem, GPA, SIZE, 0x40000000ull / PAGE_SIZE);
	virt_map(mem->vm, NO_SLOT_GPA, NO_SLOT_GPA, NR_PAGES);
	for (gpa = GPA; gpa < GPA + SIZE; gpa += PAGE_SIZE)
		vcpu_write_u64(mem->vcpu, gpa, guest_exec_code(gpa >> PAGE_SHIFT));
}

FIXTURE_TEARDOWN(exits)
{
	private_mem_free(&self->private_mem);
}

#define TEST_EXITS(name)	TEST_F_MEMBER(exits, name, private_mem, EXITS_TIMEOUT)

/* Whatever the kind of the access, the same fault is reported. */
static void expect_private_faults(struct kvm_vcpu *vcpu, uint64_t gpa)
{
	enum guest_access access;
	uint64_t offset;
	int ret;

	for (access = GUEST_READ; access <= GUEST_EXEC; access++) {
		/* The address is that of the page, wherever in it the access lies. */
		for (offset = 0; offset < PAGE_SIZE; offset += PAGE_SIZE - 8) {
			ret = __vcpu_access(vcpu, access, gpa + offset, 0, 0);
			vcpu_assert_private_fault(vcpu, ret, errno, gpa);

			/* The guest made no progress, and so does the next try. */
			ret = vcpu_access_run(vcpu);
			vcpu_assert_private_fault(vcpu, ret, errno, gpa);
		}
	}
}

static void expect_mmio(struct kvm_vcpu *vcpu, uint64_t gpa)
{
	struct kvm_run *run = vcpu->run;
	int ret = __vcpu_access(vcpu, GUEST_WRITE, gpa, 0x1122334455667788ull, 0);

	TEST_ASSERT(!ret && run->exit_reason == KVM_EXIT_MMIO,
		    "Expected exit MMIO at 0x%lx, rc: %i errno: %i exit: %u (%s)", gpa, ret, errno,
		    run->exit_reason, exit_reason_str(run->exit_reason));
	TEST_ASSERT(run->mmio.phys_addr == gpa && run->mmio.len == 8 && run->mmio.is_write &&
		    *(uint64_t *)run->mmio.data == 0x1122334455667788ull,
		    "Expected an MMIO write of 8 bytes to 0x%lx, got %s of %u bytes at 0x%llx",
		    gpa, run->mmio.is_write ? "a write" : "a read", run->mmio.len,
		    run->mmio.phys_addr);

	ret = vcpu_access_run(vcpu);
	TEST_ASSERT(!ret && vcpu_is_guest_call(vcpu), "MMIO did not complete");
}

TEST_EXITS(slot_deleted)
{
	private_mem_set_slot(self, 0);
	expect_private_faults(self->vcpu, TEST_PAGE);

	/* Back comes the slot, and with it what was in it. */
	private_mem_set_slot(self, SIZE);
	vcpu_check(self->vcpu, TEST_PAGE, guest_exec_code(TEST_PAGE >> PAGE_SHIFT), 8);
	TEST_ASSERT(vcpu_access(self->vcpu, GUEST_EXEC, TEST_PAGE, 0, 0) == TEST_PAGE >> PAGE_SHIFT,
		    "Guest did not execute what it had written");
}

TEST_EXITS(file_closed)
{
	int fd = dup(self->memfd);

	/* It is the last reference that counts. */
	close(self->memfd);
	self->memfd = -1;
	vcpu_check(self->vcpu, TEST_PAGE, guest_exec_code(TEST_PAGE >> PAGE_SHIFT), 8);

	close(fd);
	expect_private_faults(self->vcpu, TEST_PAGE);

	/* The slot without its file still serves shared accesses. */
	vm_mem_set_shared(self->vm, TEST_PAGE, PAGE_SIZE);
	memset(self->shared + (TEST_PAGE - GPA), 0x5a, PAGE_SIZE);
	vcpu_check(self->vcpu, TEST_PAGE, 0x5a5a5a5a5a5a5a5aull, PAGE_SIZE);
	expect_private_faults(self->vcpu, TEST_PAGE + PAGE_SIZE);
}

TEST_EXITS(slot_without_file)
{
	void *shared = shared_mem_alloc(SIZE);

	vm_set_user_memory_region(self->vm, SLOT + 1, 0, NO_SLOT_GPA, SIZE, shared);
	memset(shared, 0x5a, SIZE);
	vcpu_check(self->vcpu, NO_SLOT_GPA, 0x5a5a5a5a5a5a5a5aull, SIZE);

	vm_mem_set_private(self->vm, NO_SLOT_GPA + PAGE_SIZE, PAGE_SIZE);
	expect_private_faults(self->vcpu, NO_SLOT_GPA + PAGE_SIZE);
	vcpu_check(self->vcpu, NO_SLOT_GPA, 0x5a5a5a5a5a5a5a5aull, PAGE_SIZE);
	vcpu_check(self->vcpu, NO_SLOT_GPA + 2 * PAGE_SIZE, 0x5a5a5a5a5a5a5a5aull, PAGE_SIZE);

	vm_mem_set_shared(self->vm, NO_SLOT_GPA + PAGE_SIZE, PAGE_SIZE);
	vcpu_check(self->vcpu, NO_SLOT_GPA, 0x5a5a5a5a5a5a5a5aull, SIZE);
}

TEST_EXITS(no_slot)
{
	vm_mem_set_private(self->vm, NO_SLOT_GPA, SIZE);
	expect_private_faults(self->vcpu, NO_SLOT_GPA);
}

TEST_EXITS(shared_no_slot_is_mmio)
{
	uint64_t gpa;

	for (gpa = NO_SLOT_GPA; gpa < NO_SLOT_GPA + 4 * PAGE_SIZE; gpa += PAGE_SIZE)
		expect_mmio(self->vcpu, gpa);

	/*
	 * What KVM remembers of MMIO pages, be it the last one or all of them,
	 * must not outlive a conversion.
	 */
	gpa -= PAGE_SIZE;
	vm_mem_set_private(self->vm, gpa, PAGE_SIZE);
	expect_private_faults(self->vcpu, gpa);

	vm_mem_set_private(self->vm, NO_SLOT_GPA, PAGE_SIZE);
	expect_private_faults(self->vcpu, NO_SLOT_GPA);
	expect_mmio(self->vcpu, NO_SLOT_GPA + PAGE_SIZE);
	expect_mmio(self->vcpu, NO_SLOT_GPA + 2 * PAGE_SIZE);

	vm_mem_set_shared(self->vm, NO_SLOT_GPA, 4 * PAGE_SIZE);
	for (gpa = NO_SLOT_GPA; gpa < NO_SLOT_GPA + 4 * PAGE_SIZE; gpa += PAGE_SIZE)
		expect_mmio(self->vcpu, gpa);
}

/* After a fault, an exit for another reason tells of that reason only. */
TEST_EXITS(nothing_stale)
{
	private_mem_set_slot(self, 0);
	expect_private_faults(self->vcpu, TEST_PAGE);
	private_mem_set_slot(self, SIZE);

	expect_mmio(self->vcpu, NO_SLOT_GPA);
	vcpu_check(self->vcpu, TEST_PAGE, guest_exec_code(TEST_PAGE >> PAGE_SHIFT), 8);
	TEST_ASSERT(self->vcpu->run->exit_reason == KVM_EXIT_IO, "Expected exit IO, got %u (%s)",
		    self->vcpu->run->exit_reason, exit_reason_str(self->vcpu->run->exit_reason));
}

/*
 * A vCPU that reads all the time, while the memory comes and goes.
 */
struct reader {
	struct kvm_vcpu *vcpu;
	pthread_t thread;
	atomic_bool stop;
	atomic_ulong nr_reads;
	atomic_ulong nr_faults;
};

static void *reader_fn(void *data)
{
	struct reader *r = data;
	uint64_t want = guest_exec_code(TEST_PAGE >> PAGE_SHIFT), seen;
	int ret;

	while (!atomic_load(&r->stop)) {
		ret = __vcpu_access(r->vcpu, GUEST_READ, TEST_PAGE, 0, 0);
		if (ret) {
			vcpu_assert_private_fault(r->vcpu, ret, errno, TEST_PAGE);
			atomic_fetch_add(&r->nr_faults, 1);
			continue;
		}
		seen = vcpu_access_result(r->vcpu);
		TEST_ASSERT(seen == want, "Guest expected 0x%lx at 0x%llx, read 0x%lx",
			    want, TEST_PAGE, seen);
		atomic_fetch_add(&r->nr_reads, 1);
	}
	return NULL;
}

static void wait_for_more(atomic_ulong *count)
{
	unsigned long old = atomic_load(count);

	while (atomic_load(count) < old + 2)
		sched_yield();
}

static void reader_start(struct reader *r, struct kvm_vcpu *vcpu)
{
	memset(r, 0, sizeof(*r));
	r->vcpu = vcpu;
	TEST_ASSERT(!pthread_create(&r->thread, NULL, reader_fn, r), "pthread_create() failed");
	wait_for_more(&r->nr_reads);
}

static void reader_stop(struct reader *r)
{
	atomic_store(&r->stop, true);
	pthread_join(r->thread, NULL);
}

TEST_EXITS(slot_deleted_while_running)
{
	unsigned long reads;
	struct reader r;
	int i;

	reader_start(&r, self->vcpu);
	for (i = 0; i < 100; i++) {
		private_mem_set_slot(self, 0);
		wait_for_more(&r.nr_faults);

		/* With the slot gone no read can succeed. */
		reads = atomic_load(&r.nr_reads);
		wait_for_more(&r.nr_faults);
		TEST_ASSERT(atomic_load(&r.nr_reads) == reads,
			    "Guest read private memory after its slot was deleted");

		private_mem_set_slot(self, SIZE);
		wait_for_more(&r.nr_reads);
	}
	reader_stop(&r);
}

TEST_EXITS(file_closed_while_running)
{
	uint64_t code = guest_exec_code(TEST_PAGE >> PAGE_SHIFT);
	uint8_t page[PAGE_SIZE] = {};
	unsigned long reads;
	struct reader r;
	int i;

	memcpy(page, &code, sizeof(code));

	reader_start(&r, self->vcpu);
	for (i = 0; i < 100; i++) {
		close(self->memfd);
		wait_for_more(&r.nr_faults);

		reads = atomic_load(&r.nr_reads);
		wait_for_more(&r.nr_faults);
		TEST_ASSERT(atomic_load(&r.nr_reads) == reads,
			    "Guest read private memory after its file was closed");

		/* Another file for the same place. */
		private_mem_set_slot(self, 0);
		self->memfd = vm_create_guest_memfd(self->vm, SIZE, 0);
		guest_memfd_write(self->memfd, page, PAGE_SIZE, TEST_PAGE - GPA);
		private_mem_set_slot(self, SIZE);
		wait_for_more(&r.nr_reads);
	}
	reader_stop(&r);
}

/*
 * Failures that are not about private or shared.
 */

#define BIG_PAGES	2048
#define BIG_SIZE	(BIG_PAGES * PAGE_SIZE)

TEST_EXITS(cgroup_limit)
{
	struct kvm_run *run = self->vcpu->run;
	uint64_t gpa = NO_SLOT_GPA + 0x1000000ull;
	void *shared = shared_mem_alloc(BIG_SIZE);
	struct memcg cg;
	uint64_t left;
	int fd, ret;

	virt_map(self->vm, gpa, gpa, BIG_PAGES);
	fd = vm_create_guest_memfd(self->vm, BIG_SIZE, 0);
	vm_set_user_memory_region2(self->vm, SLOT + 1, KVM_MEM_GUEST_MEMFD, gpa, BIG_SIZE,
				   shared, fd, 0);
	vm_mem_set_private(self->vm, gpa, BIG_SIZE);
	memcg_create(&cg);
	memcg_enter(&cg);

	/* Leaves the page tables, so that none is wanted at the limit. */
	vcpu_fill(self->vcpu, gpa, 2, BIG_SIZE);
	guest_memfd_punch(fd, 0, BIG_SIZE);

	/* A fault first, so that there is something that could be left over. */
	vm_mem_set_private(self->vm, NO_SLOT_GPA, PAGE_SIZE);
	ret = __vcpu_access(self->vcpu, GUEST_READ, NO_SLOT_GPA, 0, 0);
	vcpu_assert_private_fault(self->vcpu, ret, errno, NO_SLOT_GPA);

	/* Half of the memory may be had. */
	memcg_limit(&cg, memcg_usage(&cg) + BIG_SIZE / 2);
	ret = __vcpu_access(self->vcpu, GUEST_FILL, gpa, 1, BIG_SIZE / 8);
	TEST_ASSERT(ret == -1 && errno == ENOMEM, "Expected ENOMEM, rc: %i errno: %i exit: %u (%s)",
		    ret, errno, run->exit_reason, exit_reason_str(run->exit_reason));
	TEST_ASSERT(run->exit_reason != KVM_EXIT_MEMORY_FAULT,
		    "KVM_RUN failed with ENOMEM and left exit MEMORY_FAULT for 0x%llx behind",
		    run->memory_fault.gpa);

	/* The guest goes on where it was when memory can be had again. */
	memcg_limit(&cg, LONG_MAX);
	ret = vcpu_access_run(self->vcpu);
	TEST_ASSERT(!ret && vcpu_is_guest_call(self->vcpu),
		    "Guest did not go on, rc: %i errno: %i", ret, errno);
	left = vcpu_access(self->vcpu, GUEST_CHECK, gpa, 1, BIG_SIZE / 8);
	TEST_ASSERT(!left, "What the guest wrote is lost, from word %llu on", BIG_SIZE / 8 - left);

	vm_set_user_memory_region2(self->vm, SLOT + 1, KVM_MEM_GUEST_MEMFD, gpa, 0, shared, fd, 0);
	close(fd);
	munmap(shared, BIG_SIZE);
	memcg_destroy(&cg);
}

TEST_EXITS(hardware_error)
{
	const off_t offset = TEST_PAGE - GPA;
	uint8_t page[PAGE_SIZE] = {};
	struct memcg cg;
	uint64_t pfn, gpa;
	int ret;

	memcg_create(&cg);
	memcg_enter(&cg);
	pfn = memcg_take_and_find(&cg, self->memfd, offset, NULL, PAGE_SIZE);

	vcpu_fill(self->vcpu, TEST_PAGE, 0x1234, PAGE_SIZE);
	memory_error("corrupt-pfn", pfn);
	vcpu_expect_poison(self->vcpu, TEST_PAGE);

	/* That page and no other. */
	for (gpa = GPA; gpa < GPA + SIZE; gpa += PAGE_SIZE) {
		if (gpa != TEST_PAGE)
			vcpu_check(self->vcpu, gpa, guest_exec_code(gpa >> PAGE_SHIFT), 8);
	}

	/* It stays in the file: there is no hole that could be filled. */
	ret = pwrite(self->memfd, page, PAGE_SIZE, offset);
	TEST_ASSERT(ret == -1 && errno == EEXIST,
		    "Expected EEXIST from pwrite() to the poisoned page, rc: %i errno: %i",
		    ret, errno);
	ret = fallocate(self->memfd, FALLOC_FL_KEEP_SIZE, 0, SIZE);
	TEST_ASSERT(!ret, __KVM_SYSCALL_ERROR("fallocate()", ret));
	vcpu_expect_poison(self->vcpu, TEST_PAGE);

	/* Nor does the slot matter. */
	private_mem_set_slot(self, 0);
	private_mem_set_slot(self, SIZE);
	vcpu_expect_poison(self->vcpu, TEST_PAGE);

	/* A VMM that gives the page up gets another one. */
	guest_memfd_punch(self->memfd, offset, PAGE_SIZE);
	vcpu_check(self->vcpu, TEST_PAGE, 0, PAGE_SIZE);
	vcpu_fill(self->vcpu, TEST_PAGE, 0x4321, PAGE_SIZE);
	vcpu_check(self->vcpu, TEST_PAGE, 0x4321, PAGE_SIZE);

	memory_error("unpoison-pfn", pfn);
	memcg_destroy(&cg);
}

#define SOFT_OFFLINE	"/sys/devices/system/memory/soft_offline_page"

/*
 * A page that is about to fail is emptied: its contents are moved, or dropped if
 * they can be read again from a file.  Neither is possible here, and a mapping in
 * the guest holds no reference that would tell.
 */
TEST_F_TIMEOUT(exits, soft_offline, EXITS_TIMEOUT)
{
	struct private_mem *mem = &self->private_mem;
	const off_t offset = TEST_PAGE - GPA;
	uint8_t page[PAGE_SIZE] = {};
	uint64_t pfn, nr_frames;
	uint8_t *frames;
	struct memcg cg;
	char buf[32];
	int fd, ret;

	fd = open(SOFT_OFFLINE, O_WRONLY);
	if (fd < 0)
		SKIP(return, "No " SOFT_OFFLINE ", which takes CONFIG_MEMORY_HOTPLUG");

	memcg_create(&cg);
	memcg_enter(&cg);
	pfn = memcg_take_and_find(&cg, mem->memfd, offset, NULL, PAGE_SIZE);
	vcpu_fill(mem->vcpu, TEST_PAGE, 0x1234, PAGE_SIZE);

	snprintf(buf, sizeof(buf), "0x%llx", pfn * PAGE_SIZE);
	ret = write(fd, buf, strlen(buf));
	TEST_ASSERT(ret == -1 && errno == EBUSY,
		    "Expected EBUSY from taking a private page offline, rc: %i errno: %i",
		    ret, errno);
	close(fd);

	/* The file has the page still, in the same place, ... */
	ret = pwrite(mem->memfd, page, PAGE_SIZE, offset);
	TEST_ASSERT(ret == -1 && errno == EEXIST,
		    "Expected EEXIST from pwrite() to the page, rc: %i errno: %i", ret, errno);
	frames = memcg_find_file_pages(&cg, &nr_frames);
	TEST_ASSERT(frames[pfn], "Expected page frame 0x%lx to be the file's still", pfn);
	free(frames);

	/* ... for the guest as it is, and when it looks for it anew. */
	vcpu_check(mem->vcpu, TEST_PAGE, 0x1234, PAGE_SIZE);
	private_mem_set_slot(mem, 0);
	private_mem_set_slot(mem, SIZE);
	vcpu_check(mem->vcpu, TEST_PAGE, 0x1234, PAGE_SIZE);

	memcg_destroy(&cg);
}

TEST_HARNESS_MAIN
