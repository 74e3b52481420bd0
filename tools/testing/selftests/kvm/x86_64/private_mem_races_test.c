// SPDX-License-Identifier: GPL-2.0-only
/*
 * Conversions, punches and slot deletions under the feet of running vCPUs.
 *
 * The test takes a page through a sequence of states and gives each its own
 * contents, made from the state's number.  It publishes the number of the state
 * that it is about to enter, makes the change, and then publishes that the
 * change is complete.  vCPUs read the page all the while: what they get must be
 * the contents of a state between the last one completed before the read and the
 * last one begun after it.  Anything older is stale, anything else is from the
 * wrong half, from another page, or from nobody's page.
 *
 * The other pages of the block never change, and must never seem to.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#include "test_util.h"
#include "kvm_util.h"
#include "processor.h"
#include "private_mem.h"
#include "svm_util.h"

/* The harness has its own. */
#undef ASSERT_EQ
#include "kselftest_harness.h"

#define SLOT		PRIVATE_MEM_SLOT
#define GPA		PRIVATE_MEM_GPA
#define BLOCK_SIZE	PG_SIZE_2M
#define BLOCK_PAGES	512
#define SIZE		(2 * BLOCK_SIZE)

/* The page that changes, in the middle of its block. */
#define PAGE		200
#define PAGE_GPA	(GPA + PAGE * PAGE_SIZE)

#define MAX_VCPUS	4
#define RACES_TIMEOUT	600

static int nr_vcpus = 2;
static int duration_ms = 2000;

enum { CALL_STALE = 1, CALL_NEIGHBOUR, CALL_OWN, CALL_DONE };

/*
 * Shared between the test and its guest, in a page of their own.
 *
 * Each state is a kind of the page and a number; the number is in the contents.
 */
struct control {
	uint64_t begun;
	uint64_t done;
	uint64_t stop;
	uint64_t nr_reads[MAX_VCPUS];
};

#define CONTROL_GVA	(GPA + 0x40000000ull)

#define MAGIC		0x5ca1ab1e00000000ull

static uint64_t contents(uint64_t state)
{
	return MAGIC | state;
}

/* Where the private half stays as it is; the page is private in even states then. */
#define KEPT	0x4b1d4b1d4b1d4b1dull

static uint64_t neighbour_contents(uint64_t gpa)
{
	return ~gpa;
}

/*
 * The guest.
 */

/*
 * The three reads are made in this order, by the compiler as by the processor.
 * Zeroes are what a page holds between its punch and the next write to it.
 */
static void guest_read_page(struct control *c, uint64_t *page, bool zero_in_flight)
{
	uint64_t done = READ_ONCE(c->done), val, begun;

	val = READ_ONCE(*page);
	begun = READ_ONCE(c->begun);

	if (val >= contents(done) && val <= contents(begun))
		return;
	if (val == KEPT && (begun != done || !(done & 1)))
		return;
	if (zero_in_flight && !val && begun != done)
		return;
	guest_call(CALL_STALE, val, done, begun);
}

static void guest_read_neighbours(uint64_t gpa, uint64_t pages)
{
	uint64_t end = gpa + pages * PAGE_SIZE;

	for (; gpa < end; gpa += PAGE_SIZE) {
		uint64_t val = READ_ONCE(*(uint64_t *)gpa);

		if (val != neighbour_contents(gpa))
			guest_call(CALL_NEIGHBOUR, gpa, neighbour_contents(gpa), val);
	}
}

/* Half of the vCPUs stay with the page, half read all of its neighbourhood. */
static void guest_reader(uint64_t index, uint64_t zero_in_flight)
{
	struct control *c = (void *)CONTROL_GVA;

	while (!READ_ONCE(c->stop)) {
		if (index & 1) {
			guest_read_neighbours(PAGE_GPA - 8 * PAGE_SIZE, 8);
			guest_read_page(c, (uint64_t *)PAGE_GPA, zero_in_flight);
			guest_read_neighbours(PAGE_GPA + PAGE_SIZE, 8);
		} else {
			guest_read_page(c, (uint64_t *)PAGE_GPA, zero_in_flight);
			guest_read_page(c, (uint64_t *)(PAGE_GPA + PAGE_SIZE - 8), zero_in_flight);
		}
		WRITE_ONCE(c->nr_reads[index], c->nr_reads[index] + 1);
	}

	/* Not even now may any of them have changed. */
	guest_read_neighbours(GPA, PAGE);
	guest_read_neighbours(PAGE_GPA + PAGE_SIZE, BLOCK_PAGES - PAGE - 1);
	guest_call(CALL_DONE, 0, 0, 0);
}

/* Writes to the page; which half that ends up in is the test's to judge. */
static void guest_writer(uint64_t index, uint64_t unused)
{
	struct control *c = (void *)CONTROL_GVA;
	uint64_t *words = (void *)PAGE_GPA;
	uint64_t i;

	for (i = 1; !READ_ONCE(c->stop); i++) {
		WRITE_ONCE(words[i % 512], i);
		if (index & 1)
			guest_read_neighbours(PAGE_GPA + PAGE_SIZE, 4);
		WRITE_ONCE(c->nr_reads[index], i);
	}
	guest_call(CALL_DONE, 0, 0, 0);
}

/*
 * Each vCPU converts a page of its own, next to those of the others, and knows
 * at each moment what the page holds.
 */
static void guest_converter(uint64_t index, uint64_t unused)
{
	struct control *c = (void *)CONTROL_GVA;
	uint64_t gpa = PAGE_GPA + index * PAGE_SIZE;
	uint64_t *word = (void *)(gpa + 8 * index);
	uint64_t i, half[2] = { 0, 0 }, private, val;

	WRITE_ONCE(*word, 0);
	for (i = 1; !READ_ONCE(c->stop); i++) {
		private = i & 1;
		if (guest_map_gpa_range(gpa, PAGE_SIZE, private))
			guest_call(CALL_OWN, gpa, -1, -1);

		val = READ_ONCE(*word);
		if (val != half[private])
			guest_call(CALL_OWN, gpa, half[private], val);

		half[private] = i << 8 | index << 1 | private;
		WRITE_ONCE(*word, half[private]);
		val = READ_ONCE(*word);
		if (val != half[private])
			guest_call(CALL_OWN, gpa, half[private], val);
		WRITE_ONCE(c->nr_reads[index], i);
	}
	guest_call(CALL_DONE, 0, 0, 0);
}

/*
 * Guests that have KVM write to the page, each vCPU to a place of its own, and
 * count how often it has.
 */
#define KVM_WRITES_AT(index)	(PAGE_GPA + (index) * 512)

#define DEFINE_KVM_WRITER(name, prepare, write)					\
static void guest_kvm_##name(uint64_t index, uint64_t unused)			\
{										\
	struct control *c = (void *)CONTROL_GVA;				\
	uint64_t at = KVM_WRITES_AT(index), i;					\
										\
	prepare;								\
	for (i = 1; !READ_ONCE(c->stop); i++) {					\
		write;								\
		WRITE_ONCE(c->nr_reads[index], i);				\
	}									\
	guest_call(CALL_DONE, 0, 0, 0);						\
}

DEFINE_KVM_WRITER(clock, (void)0, wrmsr(MSR_KVM_SYSTEM_TIME_NEW, at | KVM_MSR_ENABLED));
DEFINE_KVM_WRITER(wall_clock, (void)0, wrmsr(MSR_KVM_WALL_CLOCK_NEW, at));
DEFINE_KVM_WRITER(steal_time, (void)0, wrmsr(MSR_KVM_STEAL_TIME, at | KVM_MSR_ENABLED));
DEFINE_KVM_WRITER(string_in, (void)0,
		  asm volatile("insb" : "+D" (at) : "d" (GUEST_CALL_PORT) : "memory");
		  at = KVM_WRITES_AT(index));
DEFINE_KVM_WRITER(store, (void)0,
		  asm volatile(FORCED_EMULATION "mov %0, (%1)"
			       : : "r" (i), "r" (at) : "memory"));
DEFINE_KVM_WRITER(locked, (void)0,
		  asm volatile(FORCED_EMULATION "lock addq $1, (%0)"
			       : : "r" (at) : "memory", "cc"));
DEFINE_KVM_WRITER(vmsave, wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SVME),
		  asm volatile("vmsave %%rax" : : "a" (PAGE_GPA) : "memory"));

/*
 * The VMM.
 */

struct test {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[MAX_VCPUS];
	pthread_t threads[MAX_VCPUS];
	struct control *control;
	int memfd;
	bool huge;		/* the file is in huge pages, and has all of them */
	uint8_t *shared;
	/* Faults are part of the test. */
	bool may_fault;
	atomic_ulong nr_faults;
};

static void handle_hypercall(struct test *t, struct kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	bool private = run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED;

	vm_set_memory_attributes(t->vm, run->hypercall.args[0],
				 run->hypercall.args[1] * PAGE_SIZE,
				 private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0);
	run->hypercall.ret = 0;
}

struct vcpu_arg {
	struct test *t;
	struct kvm_vcpu *vcpu;
};

static struct vcpu_arg vcpu_args[MAX_VCPUS];

static void *vcpu_worker(void *data)
{
	struct vcpu_arg *arg = data;
	struct test *t = arg->t;
	struct kvm_vcpu *vcpu = arg->vcpu;
	struct kvm_run *run = vcpu->run;
	struct guest_call call;

	for (;;) {
		int ret = _vcpu_run(vcpu);

		if (ret) {
			uint64_t gpa = run->memory_fault.gpa;

			TEST_ASSERT(t->may_fault, "KVM_RUN failed, rc: %i errno: %i exit: %u (%s)",
				    ret, errno, run->exit_reason,
				    exit_reason_str(run->exit_reason));
			vcpu_assert_private_fault(vcpu, ret, errno, gpa);
			TEST_ASSERT(gpa >= GPA && gpa < GPA + SIZE, "Fault at 0x%lx", gpa);
			atomic_fetch_add(&t->nr_faults, 1);
			continue;
		}

		if (run->exit_reason == KVM_EXIT_HYPERCALL) {
			handle_hypercall(t, vcpu);
			continue;
		}

		/* INS gets whatever there is. */
		if (run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_IN)
			continue;

		TEST_ASSERT(vcpu_get_guest_call(vcpu, &call), "Unexpected exit %u (%s)",
			    run->exit_reason, exit_reason_str(run->exit_reason));
		switch (call.nr) {
		case CALL_DONE:
			return NULL;
		case CALL_STALE:
			TEST_FAIL("vCPU %u: expected 0x%lx to 0x%lx, by the state, read 0x%lx",
				  vcpu->id, contents(call.args[1]), contents(call.args[2]),
				  call.args[0]);
		case CALL_NEIGHBOUR:
			TEST_FAIL("vCPU %u: expected 0x%lx at 0x%lx, as ever, read 0x%lx",
				  vcpu->id, call.args[1], call.args[0], call.args[2]);
		case CALL_OWN:
			TEST_FAIL("vCPU %u: expected 0x%lx at 0x%lx, its own page, read 0x%lx",
				  vcpu->id, call.args[1], call.args[0], call.args[2]);
		default:
			TEST_FAIL("Unknown guest call %lu", call.nr);
		}
	}
}

/* Fills a page with what it is to hold, but for the words in the middle. */
static void fill_page(void *page, uint64_t val)
{
	uint64_t *p = page;
	int i;

	for (i = 0; i < PAGE_SIZE / 8; i++)
		p[i] = val;
}

static void slot_set(struct test *t, uint64_t size)
{
	vm_set_user_memory_region2(t->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, size, t->shared,
				   t->memfd, 0);
}

/*
 * Two blocks of shared memory that can be mapped huge, and a file behind them
 * that is twice as large.  In the half given by private, each page but the one
 * that changes holds its neighbour_contents(), and in the other half OTHER.
 */
#define OTHER	0x0bad0bad0bad0badull

/* Each block at once, or it would be in small pages. */
static void fill_huge_file(struct test *t)
{
	uint8_t *block = shared_mem_alloc(BLOCK_SIZE);
	int i, j;

	t->memfd = vm_create_guest_memfd(t->vm, SIZE, KVM_GUEST_MEMFD_ALLOW_HUGEPAGE);
	for (i = 0; i < SIZE / BLOCK_SIZE; i++) {
		for (j = 0; j < BLOCK_PAGES; j++)
			fill_page(block + j * PAGE_SIZE,
				  neighbour_contents(GPA + i * BLOCK_SIZE + j * PAGE_SIZE));
		if (!i)
			fill_page(block + PAGE * PAGE_SIZE, KEPT);
		guest_memfd_write(t->memfd, block, BLOCK_SIZE, i * BLOCK_SIZE);
	}
	munmap(block, BLOCK_SIZE);
}

static void test_create(struct test *t, void *guest_code, uint64_t arg, bool private)
{
	uint8_t page[PAGE_SIZE];
	void *control;
	int i;

	t->vm = private_mem_vm_create(nr_vcpus, 0x40000000ull / PAGE_SIZE, guest_code, t->vcpus);
	if (t->huge)
		fill_huge_file(t);
	else
		t->memfd = vm_create_guest_memfd(t->vm, 2 * SIZE, 0);

	t->shared = align_ptr_up(shared_mem_alloc(SIZE + BLOCK_SIZE), BLOCK_SIZE);
	madvise(t->shared, SIZE, MADV_HUGEPAGE);
	for (i = 0; i < SIZE / PAGE_SIZE; i++) {
		uint64_t val = neighbour_contents(GPA + i * PAGE_SIZE);

		fill_page(t->shared + i * PAGE_SIZE, private ? OTHER : val);
		if (i == PAGE || t->huge)
			continue;
		fill_page(page, private ? val : OTHER);
		guest_memfd_write(t->memfd, page, PAGE_SIZE, i * PAGE_SIZE);
	}
	slot_set(t, SIZE);
	if (private)
		vm_mem_set_private(t->vm, GPA, SIZE);
	virt_map(t->vm, GPA, GPA, SIZE / PAGE_SIZE);

	control = shared_mem_alloc(PAGE_SIZE);
	vm_set_user_memory_region(t->vm, SLOT + 1, 0, CONTROL_GVA, PAGE_SIZE, control);
	virt_map(t->vm, CONTROL_GVA, CONTROL_GVA, 1);
	t->control = control;

	for (i = 0; i < nr_vcpus; i++)
		vcpu_args_set(t->vcpus[i], 2, (uint64_t)i, arg);
}

/* Each vCPU has read at least once more, so that it has met the state there is. */
static void wait_for_vcpus(struct test *t)
{
	uint64_t old[MAX_VCPUS];
	int i;

	for (i = 0; i < nr_vcpus; i++)
		old[i] = READ_ONCE(t->control->nr_reads[i]);
	for (i = 0; i < nr_vcpus; i++) {
		while (READ_ONCE(t->control->nr_reads[i]) < old[i] + 2)
			sched_yield();
	}
}

static void test_start(struct test *t)
{
	int i;

	for (i = 0; i < nr_vcpus; i++) {
		vcpu_args[i].t = t;
		vcpu_args[i].vcpu = t->vcpus[i];
		TEST_ASSERT(!pthread_create(&t->threads[i], NULL, vcpu_worker, &vcpu_args[i]),
			    "pthread_create() failed");
	}
	wait_for_vcpus(t);
}

static void test_stop(struct test *t)
{
	int i;

	WRITE_ONCE(t->control->stop, 1);
	for (i = 0; i < nr_vcpus; i++)
		pthread_join(t->threads[i], NULL);
}

struct rounds {
	struct timespec start;
	unsigned long nr;
};

static bool next_round(struct rounds *rounds)
{
	if (!rounds->nr)
		clock_gettime(CLOCK_MONOTONIC, &rounds->start);

	return rounds->nr++ < 4 ||
	       timespec_to_ns(timespec_elapsed(rounds->start)) < duration_ms * 1000000ll;
}

static void state_begin(struct test *t, uint64_t state)
{
	atomic_thread_fence(memory_order_seq_cst);
	WRITE_ONCE(t->control->begun, state);
	atomic_thread_fence(memory_order_seq_cst);
}

static void state_done(struct test *t, uint64_t state)
{
	atomic_thread_fence(memory_order_seq_cst);
	WRITE_ONCE(t->control->done, state);
	atomic_thread_fence(memory_order_seq_cst);
}

/* Now and then all vCPUs get to see a state; most often they must be quick. */
static void linger(struct test *t, unsigned long round)
{
	if (!(round % 4))
		wait_for_vcpus(t);
}

static void write_private(struct test *t, uint64_t val)
{
	uint8_t page[PAGE_SIZE];

	fill_page(page, val);
	guest_memfd_write(t->memfd, page, PAGE_SIZE, PAGE * PAGE_SIZE);
}

/*
 * Take the page away and give another one.  A vCPU may be quicker, and get an empty
 * page: with a conversion before this, by a fault that was under way then.  It maps
 * nothing any more, but may still allocate.
 */
static void replace_private(struct test *t, uint64_t val)
{
	uint8_t page[PAGE_SIZE];
	ssize_t ret;

	fill_page(page, val);
	do {
		guest_memfd_punch(t->memfd, PAGE * PAGE_SIZE, PAGE_SIZE);
		ret = pwrite(t->memfd, page, PAGE_SIZE, PAGE * PAGE_SIZE);
		TEST_ASSERT(ret == PAGE_SIZE || (ret == -1 && errno == EEXIST),
			    "Expected EEXIST at most, rc: %zd errno: %i", ret, errno);
	} while (ret != PAGE_SIZE);
}

FIXTURE(races) {
	struct test t;
	bool skipped;
};

FIXTURE_SETUP(races) { }

FIXTURE_TEARDOWN(races)
{
	if (self->skipped)
		return;

	TEST_ASSERT(self->t.nr_faults || !self->t.may_fault, "No vCPU has ever met a fault");
	slot_set(&self->t, 0);
	close(self->t.memfd);
	kvm_vm_free(self->t.vm);
}

/* Has all vCPUs see a block that is private as a whole. */
static void expect_huge(struct test *t)
{
	wait_for_vcpus(t);
	TEST_ASSERT(vm_get_stat(t->vm, "pages_2m") == 1,
		    "Expected the block that is read to be mapped huge, %lu are",
		    vm_get_stat(t->vm, "pages_2m"));
}

/*
 * From shared to private and back, in a block that is else shared and so is
 * mapped huge whenever all of it is.  The half that is not in use gets its next
 * contents meanwhile; for the private one this takes a punch.
 */
static void convert(struct test *t, bool block_is_private)
{
	uint64_t state = 0, *shared = (uint64_t *)(t->shared + PAGE * PAGE_SIZE);
	struct rounds rounds = {};

	/* State 0: like the rest of its block. */
	if (block_is_private && !t->huge)
		write_private(t, contents(state));
	else if (!block_is_private)
		fill_page(shared, contents(state));
	test_start(t);

	while (next_round(&rounds)) {
		bool to_private = block_is_private ^ !(state & 1);

		state++;
		if (to_private && !t->huge)
			replace_private(t, contents(state));
		else if (!to_private)
			fill_page(shared, contents(state));

		state_begin(t, state);
		vm_set_memory_attributes(t->vm, PAGE_GPA, PAGE_SIZE,
					 to_private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0);
		state_done(t, state);
		linger(t, rounds.nr);
		if (t->huge && to_private && !(rounds.nr % 8))
			expect_huge(t);
	}
	test_stop(t);
}

TEST_F_TIMEOUT(races, convert_in_shared_block, RACES_TIMEOUT)
{
	test_create(&self->t, guest_reader, false, false);
	convert(&self->t, false);
}

TEST_F_TIMEOUT(races, convert_in_private_block, RACES_TIMEOUT)
{
	test_create(&self->t, guest_reader, false, true);
	convert(&self->t, true);
}

/* The block is mapped huge whenever the page is private. */
TEST_F_TIMEOUT(races, convert_in_huge_block, RACES_TIMEOUT)
{
	self->t.huge = true;
	test_create(&self->t, guest_reader, false, true);
	convert(&self->t, true);
}

/* The page stays private; its memory is taken away and replaced. */
TEST_F_TIMEOUT(races, punch, RACES_TIMEOUT)
{
	struct test *t = &self->t;
	struct rounds rounds = {};
	uint64_t state = 0;

	test_create(t, guest_reader, true, true);
	write_private(t, contents(state));
	test_start(t);

	while (next_round(&rounds)) {
		state_begin(t, ++state);
		replace_private(t, contents(state));
		state_done(t, state);
		linger(t, rounds.nr);
	}
	test_stop(t);
}

/* With the slot gone nobody reads; back it comes with another page in its place. */
TEST_F_TIMEOUT(races, slot_deletion, RACES_TIMEOUT)
{
	struct test *t = &self->t;
	struct rounds rounds = {};
	unsigned long faults;
	uint64_t state = 0;

	test_create(t, guest_reader, false, true);
	t->may_fault = true;
	write_private(t, contents(state));
	test_start(t);

	while (next_round(&rounds)) {
		state_begin(t, ++state);
		slot_set(t, 0);
		guest_memfd_punch(t->memfd, PAGE * PAGE_SIZE, PAGE_SIZE);
		write_private(t, contents(state));
		state_done(t, state);
		if (!(rounds.nr % 4)) {
			faults = atomic_load(&t->nr_faults);
			while (atomic_load(&t->nr_faults) < faults + 2)
				sched_yield();
		}
		slot_set(t, SIZE);
		linger(t, rounds.nr);
	}
	test_stop(t);
}

/* What was mapped huge is so again when the slot is back. */
TEST_F_TIMEOUT(races, slot_deletion_of_huge_blocks, RACES_TIMEOUT)
{
	struct test *t = &self->t;
	struct rounds rounds = {};
	unsigned long faults;

	t->huge = true;
	test_create(t, guest_reader, false, true);
	t->may_fault = true;
	test_start(t);

	while (next_round(&rounds)) {
		slot_set(t, 0);
		if (!(rounds.nr % 4)) {
			faults = atomic_load(&t->nr_faults);
			while (atomic_load(&t->nr_faults) < faults + 2)
				sched_yield();
		}
		slot_set(t, SIZE);
		if (!(rounds.nr % 8))
			expect_huge(t);
	}
	test_stop(t);
}

/* The same for a slot that lies in the same block as the one that is in use. */
TEST_F_TIMEOUT(races, neighbour_slot_deletion, RACES_TIMEOUT)
{
	struct test *t = &self->t;
	uint64_t split = 300 * PAGE_SIZE;
	struct rounds rounds = {};

	test_create(t, guest_reader, true, true);
	write_private(t, contents(0));
	slot_set(t, 0);
	vm_set_user_memory_region2(t->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, split, t->shared,
				   t->memfd, 0);
	vm_set_user_memory_region2(t->vm, SLOT + 2, KVM_MEM_GUEST_MEMFD, GPA + split,
				   SIZE - split, t->shared + split, t->memfd, split);
	test_start(t);

	while (next_round(&rounds)) {
		vm_set_user_memory_region2(t->vm, SLOT + 2, KVM_MEM_GUEST_MEMFD, GPA + split, 0,
					   t->shared + split, t->memfd, split);
		linger(t, rounds.nr);
		vm_set_user_memory_region2(t->vm, SLOT + 2, KVM_MEM_GUEST_MEMFD, GPA + split,
					   SIZE - split, t->shared + split, t->memfd, split);
		linger(t, rounds.nr);
	}
	test_stop(t);
}

/* Once the conversion is complete no write gets to the half that was left. */
static void check_writes(struct test *t)
{
	uint64_t *shared = (uint64_t *)(t->shared + PAGE * PAGE_SIZE);
	struct rounds rounds = {};
	int j;

	test_start(t);
	while (next_round(&rounds)) {
		vm_mem_set_private(t->vm, PAGE_GPA, PAGE_SIZE);
		fill_page(shared, contents(rounds.nr));
		linger(t, rounds.nr);
		for (j = 0; j < PAGE_SIZE / 8; j++)
			TEST_ASSERT(shared[j] == contents(rounds.nr),
				    "Expected 0x%lx in the shared half of a private page, found 0x%lx",
				    contents(rounds.nr), shared[j]);
		vm_mem_set_shared(t->vm, PAGE_GPA, PAGE_SIZE);
		linger(t, rounds.nr);
	}
	test_stop(t);
}

TEST_F_TIMEOUT(races, writes_in_shared_block, RACES_TIMEOUT)
{
	test_create(&self->t, guest_writer, 0, false);
	check_writes(&self->t);
}

TEST_F_TIMEOUT(races, writes_in_private_block, RACES_TIMEOUT)
{
	test_create(&self->t, guest_writer, 0, true);
	check_writes(&self->t);
}

TEST_F_TIMEOUT(races, writes_in_huge_block, RACES_TIMEOUT)
{
	self->t.huge = true;
	test_create(&self->t, guest_writer, 0, true);
	check_writes(&self->t);
}

/* Punches the page, and sees that nobody writes to what was freed. */
static void punch_and_check(struct test *t, unsigned long round)
{
	uint8_t *p;
	int j;

	guest_memfd_punch(t->memfd, PAGE * PAGE_SIZE, PAGE_SIZE);

	/* The page is anybody's now: take what was just freed. */
	p = mmap(NULL, 64 * PAGE_SIZE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	TEST_ASSERT(p != MAP_FAILED, __KVM_SYSCALL_ERROR("mmap()", -1));
	linger(t, round);
	for (j = 0; j < 64 * PAGE_SIZE; j++)
		TEST_ASSERT(!p[j], "The guest wrote to a page that it had no more");
	munmap(p, 64 * PAGE_SIZE);
}

/* A write to memory that is punched is lost, but never ends up elsewhere. */
TEST_F_TIMEOUT(races, writes_to_punched, RACES_TIMEOUT)
{
	struct test *t = &self->t;
	struct rounds rounds = {};

	test_create(t, guest_writer, 0, true);
	test_start(t);
	while (next_round(&rounds))
		punch_and_check(t, rounds.nr);
	test_stop(t);
}

/*
 * The same for what KVM writes on behalf of the guest.  A write that was under way
 * when the page was converted may still reach the half that it was meant for; when
 * each vCPU has moved on there is none.
 */
static void check_kvm_writes(struct test *t, void *guest_code)
{
	uint64_t *shared;
	struct rounds rounds = {};
	int j;

	test_create(t, guest_code, 0, true);
	shared = (uint64_t *)(t->shared + PAGE * PAGE_SIZE);
	test_start(t);
	while (next_round(&rounds)) {
		vm_mem_set_shared(t->vm, PAGE_GPA, PAGE_SIZE);
		linger(t, rounds.nr);
		vm_mem_set_private(t->vm, PAGE_GPA, PAGE_SIZE);
		wait_for_vcpus(t);
		fill_page(shared, contents(rounds.nr));
		wait_for_vcpus(t);
		punch_and_check(t, rounds.nr);
		for (j = 0; j < PAGE_SIZE / 8; j++)
			TEST_ASSERT(shared[j] == contents(rounds.nr),
				    "Expected 0x%lx in the shared half of a private page, found 0x%lx",
				    contents(rounds.nr), shared[j]);
	}
	test_stop(t);
}

TEST_F_TIMEOUT(races, kvm_writes_clock, RACES_TIMEOUT)
{
	check_kvm_writes(&self->t, guest_kvm_clock);
}

TEST_F_TIMEOUT(races, kvm_writes_wall_clock, RACES_TIMEOUT)
{
	check_kvm_writes(&self->t, guest_kvm_wall_clock);
}

TEST_F_TIMEOUT(races, kvm_writes_steal_time, RACES_TIMEOUT)
{
	check_kvm_writes(&self->t, guest_kvm_steal_time);
}

TEST_F_TIMEOUT(races, kvm_writes_string_in, RACES_TIMEOUT)
{
	check_kvm_writes(&self->t, guest_kvm_string_in);
}

static void check_emulated_writes(struct test *t, void *guest_code)
{
	int before = forced_emulation_set(1);

	TEST_ASSERT(before >= 0, "KVM has no forced emulation");
	check_kvm_writes(t, guest_code);
	forced_emulation_set(before);
}

TEST_F_TIMEOUT(races, kvm_writes_store, RACES_TIMEOUT)
{
	check_emulated_writes(&self->t, guest_kvm_store);
}

TEST_F_TIMEOUT(races, kvm_writes_locked, RACES_TIMEOUT)
{
	check_emulated_writes(&self->t, guest_kvm_locked);
}

TEST_F_TIMEOUT(races, kvm_writes_vmsave, RACES_TIMEOUT)
{
	self->skipped = !kvm_cpu_has(X86_FEATURE_SVM);
	if (self->skipped)
		SKIP(return, "No SVM");

	check_kvm_writes(&self->t, guest_kvm_vmsave);
}

/* Guests convert pages side by side. */
TEST_F_TIMEOUT(races, converters_side_by_side, RACES_TIMEOUT)
{
	struct test *t = &self->t;
	struct rounds rounds = {};

	test_create(t, guest_converter, 0, false);
	guest_memfd_punch(t->memfd, PAGE * PAGE_SIZE, MAX_VCPUS * PAGE_SIZE);
	test_start(t);
	while (next_round(&rounds))
		wait_for_vcpus(t);
	test_stop(t);
}

static void help(const char *name)
{
	printf("usage: %s [-h] [-n vcpus] [-t milliseconds]\n"
	       " -n: vCPUs, 1 to %d (default 2)\n"
	       " -t: duration of each case (default %d)\n",
	       name, MAX_VCPUS, duration_ms);
	exit(0);
}

int main(int argc, char **argv)
{
	int opt;

	while ((opt = getopt(argc, argv, "hn:t:")) != -1) {
		switch (opt) {
		case 'n':
			nr_vcpus = atoi(optarg);
			TEST_ASSERT(nr_vcpus >= 1 && nr_vcpus <= MAX_VCPUS,
				    "Expected 1 to %d vCPUs, got '%s'", MAX_VCPUS, optarg);
			break;
		case 't':
			duration_ms = atoi(optarg);
			TEST_ASSERT(duration_ms > 0, "Expected a duration, got '%s'", optarg);
			break;
		default:
			help(argv[0]);
		}
	}

	TEST_REQUIRE(private_mem_supported());

	return test_harness_run(argc, argv);
}
