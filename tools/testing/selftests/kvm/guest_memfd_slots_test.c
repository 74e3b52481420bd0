// SPDX-License-Identifier: GPL-2.0-only
/*
 * As many memslots as there can be, all bound to one file.
 */
#include <getopt.h>
#include <limits.h>
#include <linux/bits.h>
#include <sys/mman.h>
#include <time.h>

#include "kvm_util.h"

#define PAGE		4096UL
#define MAX_SLOTS	32764
#define ROUNDS		2

static char *hva;

static long cpu_time_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return timespec_to_ns(ts);
}

static struct kvm_vm *create_vm(void)
{
	return ____vm_create(VM_SHAPE(KVM_X86_SW_PROTECTED_VM), 0);
}

/* Binds one page of the file to a slot; no two slots adjoin in the guest. */
static int bind_page(struct kvm_vm *vm, int slot, int fd, unsigned long page)
{
	return __vm_set_user_memory_region2(vm, slot, KVM_MEM_GUEST_MEMFD, slot * 2 * PAGE,
					    PAGE, hva + slot * PAGE, fd, page * PAGE);
}

/*
 * The CPU time of binding nr slots, one page each, to one file.  The pages are
 * taken in an order of strides, so that no order of the slots is a lucky one.
 */
static long time_to_bind(int nr)
{
	const unsigned long stride = 7919;	/* coprime to nr: visits all pages */
	struct kvm_vm *vm = create_vm();
	int fd = vm_create_guest_memfd(vm, nr * PAGE, 0);
	long time;
	int i;

	time = cpu_time_ns();
	for (i = 0; i < nr; i++)
		TEST_ASSERT(!bind_page(vm, i, fd, i * stride % nr), "Slot %d: errno %d", i, errno);
	time = cpu_time_ns() - time;

	close(fd);
	kvm_vm_free(vm);
	return time;
}

/*
 * Binding a range must not look at all the others.  With a scan, twice the
 * slots cost four times as much; 2.2 leaves room for trees that get deeper.
 *
 * This counts work.  CPU time also counts cache misses, of which KVM's hash of
 * slot numbers alone makes enough to spoil the ratio on a busy machine: run it
 * where the clock counts instructions, as under QEMU's -icount.
 */
static void test_linear(void)
{
	long half = LONG_MAX, all = LONG_MAX;
	int i;

	/* The least of a few runs: whatever disturbs one only adds to it. */
	for (i = 0; i < ROUNDS; i++) {
		half = min(half, time_to_bind(MAX_SLOTS / 2));
		all = min(all, time_to_bind(MAX_SLOTS));
	}

	ksft_print_msg("%d slots: %ld us, %d slots: %ld us, ratio %.2f\n", MAX_SLOTS / 2,
		       half / 1000, MAX_SLOTS, all / 1000, (double)all / half);
	ksft_test_result(all <= half * 22 / 10, "linear\n");
}

/* With all of them bound, no page is free but the one that is left. */
static void test_all_are_bound(int nr)
{
	struct kvm_vm *vm = create_vm();
	int fd = vm_create_guest_memfd(vm, nr * PAGE, 0), i;
	bool ok = true;

	for (i = 1; i < nr; i++)
		TEST_ASSERT(!bind_page(vm, i, fd, i), "Slot %d: errno %d", i, errno);
	for (i = 1; i < nr; i += 101)
		ok = ok && bind_page(vm, 0, fd, i) && errno == EINVAL;
	ok = ok && !bind_page(vm, 0, fd, 0);
	ksft_test_result(ok, "all_are_bound\n");

	close(fd);
	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	int nr = MAX_SLOTS, opt;

	while ((opt = getopt(argc, argv, "hn:")) != -1) {
		switch (opt) {
		case 'n':
			nr = atoi(optarg);
			break;
		default:
			printf("usage: %s [-n number of slots, only whether all are bound]\n",
			       argv[0]);
			return opt == 'h' ? 0 : 1;
		}
	}

	TEST_REQUIRE(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM));
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_NR_MEMSLOTS) >= MAX_SLOTS);

	hva = mmap(NULL, MAX_SLOTS * PAGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	TEST_ASSERT(hva != MAP_FAILED, "mmap() failed");

	ksft_print_header();
	ksft_set_plan(1 + (nr == MAX_SLOTS));
	if (nr == MAX_SLOTS)
		test_linear();
	test_all_are_bound(nr);
	ksft_finished();
}
