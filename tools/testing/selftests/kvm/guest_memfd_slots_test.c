// SPDX-License-Identifier: GPL-2.0-only
/*
 * As many memslots as there can be, all bound to one file.
 */
#include <limits.h>
#include <sys/mman.h>
#include <time.h>

#include "kvm_harness.h"

#define PAGE	4096UL

/*
 * Binding a range must not look at all the others.  With a scan, twice the
 * slots cost four times as much; 2.2 leaves room for trees that get deeper.
 *
 * This counts work.  CPU time also counts cache misses, of which KVM's hash of
 * slot numbers alone makes enough to spoil the ratio on a busy machine: run it
 * where the clock counts instructions, as under QEMU's -icount.
 */
#define NR_SLOTS	32764
#define ROUNDS		2

FIXTURE(slots) {
	char *hva;
};

FIXTURE_SETUP(slots)
{
	self->hva = mmap(NULL, NR_SLOTS * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, self->hva);
	ASSERT_LE(NR_SLOTS, kvm_check_cap(KVM_CAP_NR_MEMSLOTS));
}

FIXTURE_TEARDOWN(slots)
{
}

static long cpu_time_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return timespec_to_ns(ts);
}

/*
 * The CPU time of binding nr slots, one page each, to one file.  The pages are
 * taken in an order of strides, so that no order of the slots is a lucky one.
 */
static long time_to_bind(struct _test_data_slots *self, int nr)
{
	const unsigned long stride = 7919;	/* coprime to nr: visits all pages */
	struct kvm_vm *vm = create_protected_vm();
	int fd = vm_create_guest_memfd(vm, nr * PAGE, 0);
	unsigned long page;
	long time;
	int i;

	time = cpu_time_ns();
	for (i = 0; i < nr; i++) {
		page = i * stride % nr;
		vm_set_user_memory_region2(vm, i, KVM_MEM_GUEST_MEMFD, i * 2 * PAGE, PAGE,
					   self->hva + i * PAGE, fd, page * PAGE);
	}
	time = cpu_time_ns() - time;

	close(fd);
	kvm_vm_free(vm);
	return time;
}

TEST_F_TIMEOUT(slots, linear, 300)
{
	long half = LONG_MAX, all = LONG_MAX;
	int i;

	/* The least of a few runs: whatever disturbs one only adds to it. */
	for (i = 0; i < ROUNDS; i++) {
		half = min(half, time_to_bind(self, NR_SLOTS / 2));
		all = min(all, time_to_bind(self, NR_SLOTS));
	}

	TH_LOG("%d slots: %ld us, %d slots: %ld us, ratio %.2f", NR_SLOTS / 2, half / 1000,
	       NR_SLOTS, all / 1000, (double)all / half);
	EXPECT_GE(half * 22 / 10, all);
}

/* All of them bound at once, and the file full: no slot has lost its range. */
TEST_F_TIMEOUT(slots, all_are_bound, 300)
{
	struct kvm_vm *vm = create_protected_vm();
	int fd = vm_create_guest_memfd(vm, NR_SLOTS * PAGE, 0), i;

	for (i = 1; i < NR_SLOTS; i++)
		vm_set_user_memory_region2(vm, i, KVM_MEM_GUEST_MEMFD, i * 2 * PAGE, PAGE,
					   self->hva + i * PAGE, fd, i * PAGE);
	for (i = 1; i < NR_SLOTS; i += 101) {
		EXPECT_EQ(EINVAL, err_of(__vm_set_user_memory_region2(vm, 0, KVM_MEM_GUEST_MEMFD,
								      0, PAGE, self->hva, fd,
								      i * PAGE)));
	}
	EXPECT_EQ(0, err_of(__vm_set_user_memory_region2(vm, 0, KVM_MEM_GUEST_MEMFD, 0, PAGE,
							 self->hva, fd, 0)));
	close(fd);
	kvm_vm_free(vm);
}

TEST_HARNESS_MAIN
