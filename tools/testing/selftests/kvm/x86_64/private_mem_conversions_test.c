// SPDX-License-Identifier: GPL-2.0-only
/*
 * Conversions between private and shared guest memory.
 *
 * Each VM has somewhat more than 2 MiB of memory for it, divided among memslots,
 * and the slots among vCPUs, which so convert pages of the same block.  A vCPU has
 * a slice of each slot.  Pages carry a value made from VM, page, generation and
 * half, so that stale data, another page's data and the wrong half's data are told
 * apart.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>

#include "test_util.h"
#include "kvm_util.h"
#include "processor.h"
#include "private_mem.h"

/* The harness has its own. */
#undef ASSERT_EQ
#include "kselftest_harness.h"

#define MAX_VCPUS	4
#define MAX_SLOTS	8
#define MAX_VMS		2

#define VM_PAGES	544
#define SLOT_STRIDE	0x1000000ull

#define CONVERT_TIMEOUT	600

/* How the VMM treats the half that a conversion leaves behind. */
enum { KEEP, PUNCH };

/* What the guest does. */
enum { EXPLICIT, IMPLICIT, REFUSED };

enum {
	CALL_DONE = 1,
	CALL_FAIL,		/* address, value expected, value read */
	CALL_FAIL_HYPERCALL,	/* address, result expected, result */
	CALL_CHECK_SHARED,	/* address, size, generation (0: zeroes) */
	CALL_FILL_SHARED,	/* address, size, generation */
};

#define REFUSAL		1234

static struct {
	int nr_vcpus;
	int nr_slots;
	int nr_vms;
} shape = { 1, 1, 1 };

struct test_vm {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[MAX_VCPUS];
	int id;
	int mode;
	bool punch;
	bool bind_on_fault;

	int memfd;
	void *shared[MAX_SLOTS];
	bool bound[MAX_SLOTS];
	pthread_mutex_t bind_lock;
	atomic_ulong nr_faults;
};

struct vcpu_thread {
	struct test_vm *tvm;
	struct kvm_vcpu *vcpu;
	pthread_t thread;
};

static uint64_t pattern(int vm, uint64_t gpa, int gen, bool private)
{
	return (uint64_t)(vm + 1) << 56 | (gpa & PAGE_MASK) | gen << 1 | private;
}

/*
 * The guest.  GPA and GVA are the same.
 */

struct slice {
	int vm;
	uint64_t gpa;
	uint64_t size;
};

static void guest_fill(int vm, uint64_t gpa, uint64_t size, int gen, bool private)
{
	uint64_t *p = (uint64_t *)gpa, *end = (uint64_t *)(gpa + size);

	for (; p < end; p++)
		WRITE_ONCE(*p, pattern(vm, (uint64_t)p, gen, private));
}

static void guest_expect(int vm, uint64_t gpa, uint64_t size, int gen, bool private)
{
	uint64_t *p = (uint64_t *)gpa, *end = (uint64_t *)(gpa + size);

	for (; p < end; p++) {
		uint64_t want = gen ? pattern(vm, (uint64_t)p, gen, private) : 0;
		uint64_t seen = READ_ONCE(*p);

		if (seen != want)
			guest_call(CALL_FAIL, (uint64_t)p, want, seen);
	}
}

static void guest_expect_around(struct slice *slice, uint64_t gpa, uint64_t size, int gen)
{
	uint64_t end = slice->gpa + slice->size;

	guest_expect(slice->vm, slice->gpa, gpa - slice->gpa, gen, false);
	guest_expect(slice->vm, gpa + size, end - gpa - size, gen, false);
}

static void guest_convert(uint64_t gpa, uint64_t size, bool private, uint64_t want)
{
	uint64_t ret = guest_map_gpa_range(gpa, size, private);

	if (ret != want)
		guest_call(CALL_FAIL_HYPERCALL, gpa, want, ret);
}

static void guest_convert_explicit(struct slice *slice, uint64_t gpa, uint64_t size, bool punch)
{
	int vm = slice->vm;

	guest_fill(vm, slice->gpa, slice->size, 1, false);
	guest_call(CALL_CHECK_SHARED, slice->gpa, slice->size, 1);

	/* The private half is another memory: empty, and nobody else's. */
	guest_convert(gpa, size, true, 0);
	guest_expect(vm, gpa, size, 0, true);
	guest_expect_around(slice, gpa, size, 1);
	guest_fill(vm, gpa, size, 2, true);
	guest_expect(vm, gpa, size, 2, true);
	guest_expect_around(slice, gpa, size, 1);
	guest_call(CALL_CHECK_SHARED, gpa, size, punch ? 0 : 1);
	guest_call(CALL_FILL_SHARED, gpa, size, 3);
	guest_expect(vm, gpa, size, 2, true);

	/* To what is private already: nothing happens. */
	guest_convert(gpa, PAGE_SIZE, true, 0);
	guest_expect(vm, gpa, size, 2, true);
	if (punch)
		guest_call(CALL_FILL_SHARED, gpa, size, 3);

	guest_convert(gpa, size, false, 0);
	guest_expect(vm, gpa, size, 3, false);
	guest_fill(vm, gpa, size, 4, false);
	guest_call(CALL_CHECK_SHARED, gpa, size, 4);

	/* Back again: what was not punched is still there. */
	guest_convert(gpa, size, true, 0);
	guest_expect(vm, gpa, size, punch ? 0 : 2, true);
	guest_expect_around(slice, gpa, size, 1);
	memset((void *)gpa, 0, size);
	guest_expect(vm, gpa, size, 0, true);

	guest_convert(gpa, size, false, 0);
	guest_expect(vm, gpa, size, punch ? 0 : 4, false);
}

static void guest_explicit(struct slice *slice, bool punch)
{
	uint64_t gpa = slice->gpa, size = slice->size;

	guest_convert_explicit(slice, gpa, PAGE_SIZE, punch);
	guest_convert_explicit(slice, gpa + 7 * PAGE_SIZE, 3 * PAGE_SIZE, punch);
	guest_convert_explicit(slice, gpa + size - PAGE_SIZE, PAGE_SIZE, punch);
	guest_convert_explicit(slice, gpa + PAGE_SIZE, size - 2 * PAGE_SIZE, punch);
	guest_convert_explicit(slice, gpa, size, punch);
}

/* All pages are private; what that leads to is the VMM's decision. */
static void guest_implicit(struct slice *slice, bool private)
{
	uint64_t gpa, end = slice->gpa + slice->size;
	int vm = slice->vm;

	/* The first touch is a write for odd pages and a read for even ones. */
	for (gpa = slice->gpa; gpa < end; gpa += PAGE_SIZE) {
		if (!(gpa & PAGE_SIZE))
			guest_expect(vm, gpa, PAGE_SIZE, 0, private);
		guest_fill(vm, gpa, PAGE_SIZE, 1, private);
	}

	guest_expect(vm, slice->gpa, slice->size, 1, private);
	guest_call(CALL_CHECK_SHARED, slice->gpa, slice->size, private ? 0 : 1);
	guest_call(CALL_FILL_SHARED, slice->gpa, slice->size, 2);
	guest_expect(vm, slice->gpa, slice->size, private ? 1 : 2, private);
}

static void guest_refused(struct slice *slice)
{
	int vm = slice->vm;

	guest_fill(vm, slice->gpa, slice->size, 1, false);
	guest_convert(slice->gpa, slice->size, true, REFUSAL);
	guest_expect(vm, slice->gpa, slice->size, 1, false);
	guest_call(CALL_CHECK_SHARED, slice->gpa, slice->size, 1);

	/* KVM does not bother the VMM with these. */
	guest_convert(slice->gpa + 8, PAGE_SIZE, true, -KVM_EINVAL);
	guest_convert(slice->gpa, 0, true, -KVM_EINVAL);
	guest_expect(vm, slice->gpa, slice->size, 1, false);
}

static void guest_code(uint64_t vm, uint64_t mode, uint64_t arg, uint64_t gpa, uint64_t size,
		       uint64_t nr_slots)
{
	struct slice slice = { .vm = vm, .gpa = gpa, .size = size };

	for (; nr_slots--; slice.gpa += SLOT_STRIDE) {
		switch (mode) {
		case EXPLICIT:
			guest_explicit(&slice, arg);
			break;
		case IMPLICIT:
			guest_implicit(&slice, arg);
			break;
		case REFUSED:
			guest_refused(&slice);
			break;
		}
	}

	guest_call(CALL_DONE, 0, 0, 0);
}

/*
 * The VMM.
 */

static uint64_t slot_gpa(int slot)
{
	return PRIVATE_MEM_GPA + slot * SLOT_STRIDE;
}

static uint64_t slice_size(void)
{
	return VM_PAGES / (shape.nr_slots * shape.nr_vcpus) * PAGE_SIZE;
}

static uint64_t slot_size(void)
{
	return shape.nr_vcpus * slice_size();
}

/* The slots lie in the file in the opposite order. */
static uint64_t slot_offset(int slot)
{
	return (shape.nr_slots - 1 - slot) * slot_size();
}

static int gpa_to_slot(struct test_vm *tvm, uint64_t gpa, uint64_t size)
{
	int slot = (gpa - PRIVATE_MEM_GPA) / SLOT_STRIDE;

	TEST_ASSERT(gpa >= PRIVATE_MEM_GPA && slot < shape.nr_slots &&
		    gpa + size <= slot_gpa(slot) + slot_size(),
		    "VM %d: guest asked for 0x%lx bytes at 0x%lx, which is in none of its slots",
		    tvm->id, size, gpa);
	return slot;
}

static uint64_t *shared_half(struct test_vm *tvm, uint64_t gpa, uint64_t size)
{
	int slot = gpa_to_slot(tvm, gpa, size);

	return tvm->shared[slot] + gpa - slot_gpa(slot);
}

static void slot_set(struct test_vm *tvm, int slot, uint64_t size, bool bound)
{
	vm_set_user_memory_region2(tvm->vm, PRIVATE_MEM_SLOT + slot,
				   bound ? KVM_MEM_GUEST_MEMFD : 0,
				   slot_gpa(slot), size, tvm->shared[slot],
				   bound ? tvm->memfd : 0,
				   bound ? slot_offset(slot) : 0);
	tvm->bound[slot] = bound && size;
}

static void check_shared(struct test_vm *tvm, uint64_t gpa, uint64_t size, int gen)
{
	uint64_t *p = shared_half(tvm, gpa, size), want;
	uint64_t i;

	for (i = 0; i < size / 8; i++) {
		want = gen ? pattern(tvm->id, gpa + i * 8, gen, false) : 0;
		TEST_ASSERT(p[i] == want,
			    "VM %d: expected 0x%lx in the shared half of 0x%lx, found 0x%lx",
			    tvm->id, want, gpa + i * 8, p[i]);
	}
}

static void fill_shared(struct test_vm *tvm, uint64_t gpa, uint64_t size, int gen)
{
	uint64_t *p = shared_half(tvm, gpa, size);
	uint64_t i;

	for (i = 0; i < size / 8; i++)
		p[i] = pattern(tvm->id, gpa + i * 8, gen, false);
}

static void handle_hypercall(struct test_vm *tvm, struct kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	uint64_t gpa = run->hypercall.args[0];
	uint64_t size = run->hypercall.args[1] * PAGE_SIZE;
	bool private = run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED;
	int slot = gpa_to_slot(tvm, gpa, size);
	int ret;

	TEST_ASSERT(run->hypercall.nr == KVM_HC_MAP_GPA_RANGE,
		    "Expected hypercall %d, got %llu", KVM_HC_MAP_GPA_RANGE, run->hypercall.nr);

	if (tvm->mode == REFUSED) {
		run->hypercall.ret = REFUSAL;
		return;
	}

	vm_set_memory_attributes(tvm->vm, gpa, size, private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0);
	run->hypercall.ret = 0;

	if (!tvm->punch)
		return;

	if (private) {
		ret = madvise(shared_half(tvm, gpa, size), size, MADV_DONTNEED);
		TEST_ASSERT(!ret, __KVM_SYSCALL_ERROR("madvise()", ret));
	} else {
		guest_memfd_punch(tvm->memfd, slot_offset(slot) + gpa - slot_gpa(slot), size);
	}
}

static void handle_fault(struct test_vm *tvm, struct kvm_vcpu *vcpu, int err)
{
	uint64_t gpa = vcpu->run->memory_fault.gpa;
	int slot = gpa_to_slot(tvm, gpa, PAGE_SIZE);

	TEST_ASSERT(tvm->mode == IMPLICIT, "VM %d: unexpected fault at 0x%lx", tvm->id, gpa);
	vcpu_assert_private_fault(vcpu, -1, err, gpa);
	atomic_fetch_add(&tvm->nr_faults, 1);

	if (!tvm->bind_on_fault) {
		vm_mem_set_shared(tvm->vm, gpa, PAGE_SIZE);
		return;
	}

	/* Others may fault while the slot is away; for them it suffices to retry. */
	pthread_mutex_lock(&tvm->bind_lock);
	if (!tvm->bound[slot]) {
		slot_set(tvm, slot, 0, false);
		slot_set(tvm, slot, slot_size(), true);
	}
	pthread_mutex_unlock(&tvm->bind_lock);
}

static void *vcpu_worker(void *data)
{
	struct vcpu_thread *t = data;
	struct test_vm *tvm = t->tvm;
	struct kvm_vcpu *vcpu = t->vcpu;
	struct guest_call call;

	for (;;) {
		int ret = _vcpu_run(vcpu);

		if (ret) {
			TEST_ASSERT(vcpu->run->exit_reason == KVM_EXIT_MEMORY_FAULT,
				    KVM_IOCTL_ERROR(KVM_RUN, ret));
			handle_fault(tvm, vcpu, errno);
			continue;
		}

		if (vcpu->run->exit_reason == KVM_EXIT_HYPERCALL) {
			handle_hypercall(tvm, vcpu);
			continue;
		}

		TEST_ASSERT(vcpu_get_guest_call(vcpu, &call), "Unexpected exit %u (%s)",
			    vcpu->run->exit_reason, exit_reason_str(vcpu->run->exit_reason));
		switch (call.nr) {
		case CALL_DONE:
			return NULL;
		case CALL_FAIL:
			TEST_FAIL("VM %d vCPU %u: expected 0x%lx at 0x%lx, read 0x%lx", tvm->id,
				  vcpu->id, call.args[1], call.args[0], call.args[2]);
		case CALL_FAIL_HYPERCALL:
			TEST_FAIL("VM %d vCPU %u: expected %ld from converting 0x%lx, got %ld",
				  tvm->id, vcpu->id, call.args[1], call.args[0], call.args[2]);
		case CALL_CHECK_SHARED:
			check_shared(tvm, call.args[0], call.args[1], call.args[2]);
			break;
		case CALL_FILL_SHARED:
			fill_shared(tvm, call.args[0], call.args[1], call.args[2]);
			break;
		default:
			TEST_FAIL("Unknown guest call %lu", call.nr);
		}
	}
}

static void test_vm_create(struct test_vm *tvm, int id, int mode, uint64_t arg)
{
	uint64_t data_pages = shape.nr_slots * SLOT_STRIDE / PAGE_SIZE;
	int i;

	tvm->id = id;
	tvm->mode = mode;
	tvm->punch = mode == EXPLICIT && arg == PUNCH;
	tvm->bind_on_fault = mode == IMPLICIT && arg;
	pthread_mutex_init(&tvm->bind_lock, NULL);

	tvm->vm = private_mem_vm_create(shape.nr_vcpus, data_pages, guest_code, tvm->vcpus);
	tvm->memfd = vm_create_guest_memfd(tvm->vm, shape.nr_slots * slot_size(), 0);

	for (i = 0; i < shape.nr_slots; i++) {
		tvm->shared[i] = shared_mem_alloc(slot_size());
		slot_set(tvm, i, slot_size(), mode != IMPLICIT);
		if (mode == IMPLICIT)
			vm_mem_set_private(tvm->vm, slot_gpa(i), slot_size());
		virt_map(tvm->vm, slot_gpa(i), slot_gpa(i), slot_size() / PAGE_SIZE);
	}

	for (i = 0; i < shape.nr_vcpus; i++)
		vcpu_args_set(tvm->vcpus[i], 6, (uint64_t)id, (uint64_t)mode, arg,
			      PRIVATE_MEM_GPA + i * slice_size(), slice_size(),
			      (uint64_t)shape.nr_slots);
}

static void test_vm_free(struct test_vm *tvm)
{
	int i;

	for (i = 0; i < shape.nr_slots; i++) {
		slot_set(tvm, i, 0, tvm->bound[i]);
		munmap(tvm->shared[i], slot_size());
	}
	close(tvm->memfd);
	kvm_vm_free(tvm->vm);
}

/* Runs the guest in all its vCPUs, and in as many VMs as were asked for. */
static void run_vms(int mode, uint64_t arg, bool private_guest, struct test_vm *tvms)
{
	struct vcpu_thread threads[MAX_VMS][MAX_VCPUS];
	int i, j;

	memset(tvms, 0, sizeof(*tvms) * MAX_VMS);

	for (i = 0; i < shape.nr_vms; i++) {
		test_vm_create(&tvms[i], i, mode, arg);
		if (private_guest)
			vm_mem_slot_make_private(tvms[i].vm, 0);
	}

	for (i = 0; i < shape.nr_vms; i++) {
		for (j = 0; j < shape.nr_vcpus; j++) {
			threads[i][j].tvm = &tvms[i];
			threads[i][j].vcpu = tvms[i].vcpus[j];
			pthread_create(&threads[i][j].thread, NULL, vcpu_worker, &threads[i][j]);
		}
	}

	for (i = 0; i < shape.nr_vms; i++) {
		for (j = 0; j < shape.nr_vcpus; j++)
			pthread_join(threads[i][j].thread, NULL);
	}

	for (i = 0; i < shape.nr_vms; i++)
		test_vm_free(&tvms[i]);
}

FIXTURE(conversions) {
	struct test_vm vms[MAX_VMS];
};

FIXTURE_SETUP(conversions) { }

FIXTURE_TEARDOWN(conversions) { }

/* By hypercall; the VMM leaves both halves alone. */
TEST_F_TIMEOUT(conversions, explicit_keep, CONVERT_TIMEOUT)
{
	run_vms(EXPLICIT, KEEP, false, self->vms);
}

/* By hypercall; the VMM gives back the memory that is not in use. */
TEST_F_TIMEOUT(conversions, explicit_punch, CONVERT_TIMEOUT)
{
	run_vms(EXPLICIT, PUNCH, false, self->vms);
}

/* The same with the guest's code, stacks and page tables in private memory. */
TEST_F_TIMEOUT(conversions, explicit_private_guest, CONVERT_TIMEOUT)
{
	run_vms(EXPLICIT, KEEP, true, self->vms);
}

/* A private access to a slot without a file; the VMM makes the page shared. */
TEST_F_TIMEOUT(conversions, implicit_to_shared, CONVERT_TIMEOUT)
{
	uint64_t pages = shape.nr_slots * slot_size() / PAGE_SIZE;
	int i;

	run_vms(IMPLICIT, false, false, self->vms);

	for (i = 0; i < shape.nr_vms; i++)
		TEST_ASSERT(self->vms[i].nr_faults == pages,
			    "VM %d: expected one fault for each of %lu pages, got %lu",
			    i, pages, self->vms[i].nr_faults);
}

/* A private access to a slot without a file; the VMM brings the file. */
TEST_F_TIMEOUT(conversions, implicit_to_private, CONVERT_TIMEOUT)
{
	int i;

	run_vms(IMPLICIT, true, false, self->vms);

	for (i = 0; i < shape.nr_vms; i++)
		TEST_ASSERT(self->vms[i].nr_faults >= shape.nr_slots,
			    "VM %d: expected a fault for each of %d slots, got %lu",
			    i, shape.nr_slots, self->vms[i].nr_faults);
}

/* A conversion that the VMM or KVM refuses changes nothing. */
TEST_F_TIMEOUT(conversions, refused, CONVERT_TIMEOUT)
{
	run_vms(REFUSED, 0, false, self->vms);
}

static void help(const char *name)
{
	printf("usage: %s [-h] [-n vcpus] [-s slots] [-v vms]\n"
	       " -n: vCPUs of each VM, 1 to %d (default 1)\n"
	       " -s: memslots of each VM, 1 to %d (default 1)\n"
	       " -v: VMs at once, 1 to %d (default 1)\n",
	       name, MAX_VCPUS, MAX_SLOTS, MAX_VMS);
	exit(0);
}

static int parse_count(const char *arg, int max)
{
	int n = atoi(arg);

	TEST_ASSERT(n >= 1 && n <= max, "Expected 1 to %d, got '%s'", max, arg);
	return n;
}

int main(int argc, char **argv)
{
	int opt;

	while ((opt = getopt(argc, argv, "hn:s:v:")) != -1) {
		switch (opt) {
		case 'n':
			shape.nr_vcpus = parse_count(optarg, MAX_VCPUS);
			break;
		case 's':
			shape.nr_slots = parse_count(optarg, MAX_SLOTS);
			break;
		case 'v':
			shape.nr_vms = parse_count(optarg, MAX_VMS);
			break;
		default:
			help(argv[0]);
		}
	}

	TEST_REQUIRE(private_mem_supported());

	return test_harness_run(argc, argv);
}
