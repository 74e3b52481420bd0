// SPDX-License-Identifier: GPL-2.0-only
/*
 * What private memory costs: conversions, a guest's first and later touches,
 * allocation, binding, and the kernel memory that remembers what is private;
 * where it applies beside the same work on ordinary memory.
 *
 * Each figure is a line "# NAME VALUE UNIT".  Times are those of CLOCK_MONOTONIC.
 * Where that counts instructions, as under QEMU's -icount, they are the instructions
 * of host and guest together, and two runs agree.
 *
 * The guest's own code and page tables lie in ordinary memory, so that KVM need not
 * be able to emulate instructions in private memory.
 */
#define _GNU_SOURCE /* for fallocate() */
#include <dirent.h>
#include <fcntl.h>
#include <float.h>
#include <fnmatch.h>
#include <getopt.h>
#include <linux/bits.h>
#include <linux/compiler.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <time.h>

#include "private_mem.h"

#define PAGE		4096UL
#define MIB		0x100000ul
#define BLOCK		(2 * MIB)
#define GPA		PRIVATE_MEM_GPA	/* of the memory under test; its GVA as well */
#define SLOT		PRIVATE_MEM_SLOT
#define MAX_ROUNDS	10
#define SLOT_ROUNDS	4
#define MAX_LIMITS	16
#define MEM_SIZE	(1024 * MIB)	/* where single pages are converted */
#define FIRST_STEP	1024UL

static uint64_t touch_size = 512 * MIB;
static uint64_t alloc_size = 256 * MIB;
static uint64_t max_range = 64 * 1024 * MIB;
static int nr_ops = 10000;
static int nr_slots;

/* Memory comes in kinds: who has it, and the size of the pages it is asked for. */
static struct kind {
	const char *name;
	unsigned int vm_type;
	bool private;
	uint64_t memfd_flags;
	int advice;
	bool wanted;
} kinds[] = {
	{ "private-4K", KVM_X86_SW_PROTECTED_VM, .private = true },
	{ "private-2M", KVM_X86_SW_PROTECTED_VM, .private = true,
	  .memfd_flags = KVM_GUEST_MEMFD_ALLOW_HUGEPAGE },
	{ "ordinary-4K", KVM_X86_DEFAULT_VM, .advice = MADV_NOHUGEPAGE },
	{ "ordinary-2M", KVM_X86_DEFAULT_VM, .advice = MADV_HUGEPAGE },
};

/* What is measured with one kind only is measured with this one. */
static const struct kind *const private_4k = &kinds[0];

static bool kind_available(const struct kind *kind)
{
	if (!kind->private)
		return kind->wanted && (kind->advice != MADV_HUGEPAGE || thp_configured());

	return kind->wanted && private_mem_supported() &&
	       !(kind->memfd_flags & ~(uint64_t)kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS));
}

/* The next that the host has and the user wants, of private ones or of all; or NULL. */
static const struct kind *next_kind(const struct kind *kind, bool private)
{
	for (kind = kind ? kind + 1 : kinds; kind < kinds + ARRAY_SIZE(kinds); kind++)
		if (kind_available(kind) && kind->private >= private)
			return kind;
	return NULL;
}

/* Figures that are known beforehand not to exceed something. */
static struct limit {
	char *figures;		/* a pattern, as for file names */
	double max, value;
	bool seen;
} limits[MAX_LIMITS];
static int nr_limits;
static int nr_figures;

static void __printf(3, 4) figure(double value, const char *unit, const char *fmt, ...)
{
	struct limit *limit;
	char name[64];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(name, sizeof(name), fmt, ap);
	va_end(ap);

	ksft_print_msg("%s %.10g %s\n", name, value, unit);
	nr_figures++;
	for (limit = limits; limit < limits + nr_limits; limit++) {
		if (fnmatch(limit->figures, name, 0))
			continue;
		limit->value = limit->seen ? max(limit->value, value) : value;
		limit->seen = true;
	}
}

static const char *size_name(uint64_t size)
{
	static const char * const units[] = { "", "K", "M", "G", "T" };
	static char name[32];
	int i;

	for (i = 0; i < ARRAY_SIZE(units) - 1 && size && !(size % 1024); i++)
		size /= 1024;
	snprintf(name, sizeof(name), "%lu%s", size, units[i]);
	return name;
}

static long now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return timespec_to_ns(ts);
}

/*
 * Each figure is the least of a few rounds: what disturbs one, and what only the
 * first one has to do, adds to it.  What takes a second is not repeated: a timer
 * tick more or less does not show in it.  After the last, round says how many.
 */
static int round;
static long measured;

static void begin_rounds(void)
{
	round = -1;
	measured = 0;
}

static bool another_round(void)
{
	return ++round < MAX_ROUNDS && measured < NSEC_PER_SEC;
}

/* The time since then, if it is less; and then is now. */
static void lap(double *least, long *then)
{
	long ns = now() - *then;

	if (ns < *least)
		*least = ns;
	measured += ns;
	*then = now();
}

/* What the guest is to do; its own copy is in its memory. */
static struct work {
	uint64_t gva, nr;
} work;

static void guest_main(void)
{
	uint64_t i;

	for (;;) {
		guest_call(0, 0, 0, 0);
		for (i = 0; i < READ_ONCE(work.nr); i++)
			WRITE_ONCE(*(uint64_t *)(READ_ONCE(work.gva) + i * PAGE), i);
	}
}

/* A VM of one vCPU, with one slot of memory under test. */
struct mem {
	const struct kind *kind;
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct work *work;
	uint64_t size;
	void *map, *hva;
	int memfd;
};

/* One KVM_RUN: the next one finishes the instruction of the guest's call. */
static void run_guest(struct mem *mem)
{
	vcpu_run(mem->vcpu);
	TEST_ASSERT(vcpu_is_guest_call(mem->vcpu), "Unexpected exit %u (%s)",
		    mem->vcpu->run->exit_reason, exit_reason_str(mem->vcpu->run->exit_reason));
}

/* The guest writes to each of these pages. */
static void touch(struct mem *mem, uint64_t offset, uint64_t nr)
{
	mem->work->gva = GPA + offset;
	mem->work->nr = nr;
	run_guest(mem);
}

/* Any amount of address space, aligned for huge pages. */
static void *reserve(struct mem *mem, uint64_t size)
{
	mem->map = mmap(NULL, size + BLOCK, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	TEST_ASSERT(mem->map != MAP_FAILED, __KVM_SYSCALL_ERROR("mmap()", -1));
	return align_ptr_up(mem->map, BLOCK);
}

static int set_slot(struct mem *mem, int slot, uint64_t gpa, uint64_t size, uint64_t offset)
{
	if (mem->memfd >= 0)
		return __vm_set_user_memory_region2(mem->vm, slot, KVM_MEM_GUEST_MEMFD, gpa, size,
						    mem->hva + offset, mem->memfd, offset);

	return __vm_set_user_memory_region(mem->vm, slot, 0, gpa, size, mem->hva + offset);
}

/*
 * None of it is allocated, all is shared.  The guest has page tables for the first
 * part of it, which it can touch, and has run: KVM, too, has page tables to look into.
 */
static void mem_create(struct mem *mem, const struct kind *kind, uint64_t size,
		       uint64_t to_touch)
{
	struct kvm_vcpu *vcpus[1];

	mem->kind = kind;
	mem->size = size;
	mem->memfd = -1;
	mem->hva = reserve(mem, size);
	mem->vm = __vm_create_with_vcpus(VM_SHAPE(kind->vm_type), 1, to_touch / PAGE,
					 guest_main, vcpus);
	mem->vcpu = vcpus[0];
	mem->work = addr_gva2hva(mem->vm, (uintptr_t)&work);
	if (to_touch)
		virt_map(mem->vm, GPA, GPA, to_touch / PAGE);

	if (kind->private)
		mem->memfd = vm_create_guest_memfd(mem->vm, size, kind->memfd_flags);
	else
		madvise(mem->hva, size, kind->advice);
	TEST_ASSERT(!set_slot(mem, SLOT, GPA, size, 0), "Slot of %lu bytes: errno %d", size, errno);
	run_guest(mem);
}

static void make_private(struct mem *mem)
{
	if (mem->kind->private)
		vm_mem_set_private(mem->vm, GPA, mem->size);
}

static void mem_free(struct mem *mem)
{
	if (mem->memfd >= 0)
		close(mem->memfd);
	kvm_vm_free(mem->vm);
	munmap(mem->map, mem->size + BLOCK);
}

/* Gives back what was touched or allocated. */
static void drop(struct mem *mem)
{
	if (mem->kind->private)
		guest_memfd_punch(mem->memfd, 0, mem->size);
	else
		TEST_ASSERT(!madvise(mem->hva, mem->size, MADV_DONTNEED),
			    __KVM_SYSCALL_ERROR("madvise()", -1));
}

static void allocate(struct mem *mem)
{
	TEST_ASSERT(!fallocate(mem->memfd, FALLOC_FL_KEEP_SIZE, 0, mem->size),
		    __KVM_SYSCALL_ERROR("fallocate()", -1));
}

static const uint64_t ranges[] = {
	2 * MIB, 64 * MIB, 1024 * MIB, 16 * 1024 * MIB, 64 * 1024 * MIB,
};

/* The next one that is not too large, or NULL. */
static const uint64_t *next_range(const uint64_t *range)
{
	range = range ? range + 1 : ranges;
	return range < ranges + ARRAY_SIZE(ranges) && *range <= max_range ? range : NULL;
}

static void measure_convert(void)
{
	double least[2] = { DBL_MAX, DBL_MAX }, most[2] = {};
	const uint64_t *range;
	struct mem mem;
	int i;
	long start;

	if (!kind_available(private_4k))
		return;

	for (range = next_range(NULL); range; range = next_range(range)) {
		double ns[2] = { DBL_MAX, DBL_MAX };

		mem_create(&mem, private_4k, *range, 0);
		for (begin_rounds(); another_round();) {
			start = now();
			vm_mem_set_private(mem.vm, GPA, *range);
			lap(&ns[1], &start);
			vm_mem_set_shared(mem.vm, GPA, *range);
			lap(&ns[0], &start);
		}
		mem_free(&mem);

		for (i = 0; i < 2; i++) {
			figure(ns[i], "ns", "convert.%s.%s", i ? "private" : "shared",
			       size_name(*range));
			least[i] = min(least[i], ns[i]);
			most[i] = max(most[i], ns[i]);
		}
	}
	figure(max(most[0] - least[0], most[1] - least[1]), "ns", "convert.spread");
}

/* A page in the midst of a block, as a guest has it that shares a buffer for DMA. */
#define FLIPPED_PAGE	(5 * PAGE)

static void measure_flip(void)
{
	const struct kind *kind;
	struct mem mem;
	int i;
	long start;

	for (kind = next_kind(NULL, true); kind; kind = next_kind(kind, true)) {
		double ns = DBL_MAX;

		mem_create(&mem, kind, MEM_SIZE, 0);
		make_private(&mem);
		for (begin_rounds(); another_round();) {
			start = now();
			for (i = 0; i < nr_ops; i++) {
				vm_mem_set_shared(mem.vm, GPA + FLIPPED_PAGE, PAGE);
				vm_mem_set_private(mem.vm, GPA + FLIPPED_PAGE, PAGE);
			}
			lap(&ns, &start);
		}
		mem_free(&mem);
		figure(ns / nr_ops, "ns", "flip.%s", kind->name);
	}
}

/* What a guest pays for DMA: it writes to the page while shared, and to the block then. */
static void measure_flip_used(void)
{
	const struct kind *kind;
	struct mem mem;
	int i;
	long start;

	for (kind = next_kind(NULL, true); kind; kind = next_kind(kind, true)) {
		double ns = DBL_MAX;

		mem_create(&mem, kind, MEM_SIZE, 2 * BLOCK);
		make_private(&mem);
		touch(&mem, 0, 2 * BLOCK / PAGE);
		if (kind->memfd_flags & KVM_GUEST_MEMFD_ALLOW_HUGEPAGE)
			TEST_ASSERT(vm_get_stat(mem.vm, "pages_2m") == 2,
				    "No huge pages can be had: end what uses memory");
		for (begin_rounds(); another_round();) {
			start = now();
			for (i = 0; i < nr_ops; i++) {
				vm_mem_set_shared(mem.vm, GPA + FLIPPED_PAGE, PAGE);
				touch(&mem, FLIPPED_PAGE, 1);
				vm_mem_set_private(mem.vm, GPA + FLIPPED_PAGE, PAGE);
				touch(&mem, FLIPPED_PAGE, 2);
			}
			lap(&ns, &start);
		}
		figure(ns / nr_ops, "ns", "flip_used.%s", kind->name);
		mem_free(&mem);
	}
}

/*
 * The files that take from each CPU the slab that it allocates from, which would
 * count as full.  They stay open: to open them makes objects.
 */
static int shrinkers[512], nr_shrinkers;

static void open_shrinkers(void)
{
	char path[320];
	struct dirent *d;
	DIR *dir;

	dir = opendir("/sys/kernel/slab");
	if (!dir)
		return;
	while ((d = readdir(dir)) && nr_shrinkers < ARRAY_SIZE(shrinkers)) {
		snprintf(path, sizeof(path), "/sys/kernel/slab/%s/shrink", d->d_name);
		shrinkers[nr_shrinkers] = open(path, O_WRONLY);
		if (shrinkers[nr_shrinkers] >= 0)
			nr_shrinkers++;
	}
	closedir(dir);
}

static long __slab_bytes(void)
{
	long objects, size, bytes = 0;
	char line[512];
	FILE *f;
	int i;

	for (i = 0; i < nr_shrinkers; i++)
		TEST_ASSERT(write(shrinkers[i], "1", 1) == 1, "A slab cannot be shrunk");

	f = fopen("/proc/slabinfo", "r");
	TEST_ASSERT(f, "open(/proc/slabinfo) failed");
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "%*s %ld %*d %ld", &objects, &size) == 2)
			bytes += objects * size;
	fclose(f);
	TEST_ASSERT(bytes, "/proc/slabinfo is empty");
	return bytes;
}

/*
 * What all slab objects of the host take, or 0 for who may not know.  The last of what
 * is freed is freed after grace periods: it is the same twice in a row then.
 */
static long slab_bytes(void)
{
	long bytes = 0, earlier;
	int i = 0;

	if (!nr_shrinkers)
		return 0;

	do {
		usleep(100000);
		earlier = bytes;
		bytes = __slab_bytes();
	} while (bytes != earlier && i++ < 20);
	return bytes;
}

static int compare(const void *a, const void *b)
{
	return *(const long *)a < *(const long *)b ? -1 : *(const long *)a > *(const long *)b;
}

/* What others take or give back meanwhile makes a round differ from most. */
static long median(long *bytes, int nr)
{
	qsort(bytes, nr, sizeof(*bytes), compare);
	return bytes[nr / 2];
}

static void measure_memory(void)
{
	long held[MAX_ROUNDS], kept[MAX_ROUNDS], before, start;
	double unused = DBL_MAX;
	const uint64_t *range;
	struct mem mem;

	if (!kind_available(private_4k) || !nr_shrinkers)
		return;

	for (range = next_range(NULL); range; range = next_range(range)) {
		mem_create(&mem, private_4k, *range, 0);
		for (begin_rounds(); another_round();) {
			before = slab_bytes();
			start = now();
			vm_mem_set_private(mem.vm, GPA, *range);
			lap(&unused, &start);
			held[round] = slab_bytes() - before;
			vm_mem_set_shared(mem.vm, GPA, *range);
			kept[round] = slab_bytes() - before;
		}
		mem_free(&mem);
		figure(median(held, round), "bytes", "memory.private.%s", size_name(*range));
		figure(median(kept, round), "bytes", "memory.shared.%s", size_name(*range));
	}
}

/*
 * The most that there is to remember: no two neighbours are alike.  It is also seen
 * how the cost of a conversion grows with the number of private ranges.
 */
static void measure_alternate(void)
{
	const uint64_t pages = min(max_range, MEM_SIZE) / PAGE / 2;
	double ns[32], total = 0, back = DBL_MAX;
	long held[MAX_ROUNDS], kept[MAX_ROUNDS], start, before;
	struct mem mem;
	int step;
	uint64_t i;

	if (!kind_available(private_4k))
		return;

	mem_create(&mem, private_4k, pages * 2 * PAGE, 0);
	for (step = 0; step < ARRAY_SIZE(ns); step++)
		ns[step] = DBL_MAX;

	for (begin_rounds(); another_round();) {
		before = slab_bytes();
		start = now();
		for (i = 0, step = 0; i < pages; step++) {
			for (; i < min(FIRST_STEP << step, pages); i++)
				vm_mem_set_private(mem.vm, GPA + i * 2 * PAGE, PAGE);
			lap(&ns[step], &start);
		}
		held[round] = slab_bytes() - before;
		start = now();
		vm_mem_set_shared(mem.vm, GPA, mem.size);
		lap(&back, &start);
		kept[round] = slab_bytes() - before;
	}
	mem_free(&mem);

	for (i = 0, step = 0; i < pages; i = min(FIRST_STEP << step, pages), step++) {
		figure(ns[step] / (min(FIRST_STEP << step, pages) - i), "ns",
		       "alternate.ranges.%lu", min(FIRST_STEP << step, pages));
		total += ns[step];
	}
	figure(total, "ns", "alternate.private");
	figure(back, "ns", "alternate.shared");
	if (nr_shrinkers) {
		figure(median(held, round), "bytes", "alternate.memory.private");
		figure(median(kept, round), "bytes", "alternate.memory.shared");
	}
}

/* Up to a block each, the same ones in each run. */
static void measure_random(void)
{
	const uint64_t size = min(max_range, MEM_SIZE);
	uint64_t offset, len;
	double ns = DBL_MAX;
	struct mem mem;
	int i;
	long start;

	if (!kind_available(private_4k))
		return;

	mem_create(&mem, private_4k, size, 0);
	for (begin_rounds(); another_round();) {
		make_private(&mem);
		srandom(1);
		start = now();
		for (i = 0; i < nr_ops; i++) {
			offset = random() % (size / PAGE) * PAGE;
			len = min(random() % (BLOCK / PAGE) * PAGE + PAGE, size - offset);
			vm_set_memory_attributes(mem.vm, GPA + offset, len,
						 random() & 1 ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0);
		}
		lap(&ns, &start);
	}
	mem_free(&mem);
	figure(ns / nr_ops, "ns", "random");
}

static void measure_touch(void)
{
	const struct kind *kind;
	struct mem mem;
	long start, huge = 0;

	for (kind = next_kind(NULL, false); kind; kind = next_kind(kind, false)) {
		double ns = DBL_MAX;

		mem_create(&mem, kind, touch_size, touch_size);
		make_private(&mem);
		for (begin_rounds(); another_round();) {
			start = now();
			touch(&mem, 0, touch_size / PAGE);
			lap(&ns, &start);
			huge = vm_get_stat(mem.vm, "pages_2m");
			drop(&mem);
		}
		mem_free(&mem);
		figure(ns / (touch_size / PAGE), "ns/page", "touch.%s", kind->name);
		figure(huge, "mappings", "touch.%s.huge", kind->name);
	}
}

/*
 * The memory is there, only KVM's mappings of it are not: of private memory because it
 * was shared and is private again, of other memory because its slot was deleted.
 */
static void measure_retouch(void)
{
	const struct kind *kind;
	struct mem mem;
	long start;

	for (kind = next_kind(NULL, false); kind; kind = next_kind(kind, false)) {
		double ns = DBL_MAX, unmap = DBL_MAX;

		mem_create(&mem, kind, touch_size, touch_size);
		make_private(&mem);
		touch(&mem, 0, touch_size / PAGE);
		for (begin_rounds(); another_round();) {
			start = now();
			if (kind->private)
				vm_mem_set_shared(mem.vm, GPA, touch_size);
			else
				set_slot(&mem, SLOT, GPA, 0, 0);
			lap(&unmap, &start);
			if (kind->private)
				vm_mem_set_private(mem.vm, GPA, touch_size);
			else
				set_slot(&mem, SLOT, GPA, touch_size, 0);
			start = now();
			touch(&mem, 0, touch_size / PAGE);
			lap(&ns, &start);
		}
		mem_free(&mem);
		figure(ns / (touch_size / PAGE), "ns/page", "retouch.%s", kind->name);
		figure(unmap, "ns", "retouch.%s.unmap", kind->name);
	}
}

static void measure_allocate(void)
{
	const struct kind *kind;
	struct mem mem;
	long start;

	for (kind = next_kind(NULL, true); kind; kind = next_kind(kind, true)) {
		double alloc = DBL_MAX, punch = DBL_MAX, punch_touched = DBL_MAX;

		mem_create(&mem, kind, alloc_size, alloc_size);
		make_private(&mem);
		for (begin_rounds(); another_round();) {
			start = now();
			allocate(&mem);
			lap(&alloc, &start);
			drop(&mem);
			lap(&punch, &start);
		}
		for (begin_rounds(); another_round();) {
			touch(&mem, 0, alloc_size / PAGE);
			start = now();
			drop(&mem);
			lap(&punch_touched, &start);
		}
		mem_free(&mem);
		figure(alloc, "ns", "allocate.%s", kind->name);
		figure(punch, "ns", "punch.%s", kind->name);
		figure(punch_touched, "ns", "punch.%s.touched", kind->name);
	}
}

/*
 * The CPU time of the caller: each update also waits for a grace period of SRCU, in
 * steps of 5 us whose number is now one and now the other, whatever the slot is.
 */
static long cpu_time(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return timespec_to_ns(ts);
}

/*
 * Of a page each, no two of which adjoin in the guest.  The first round also allocates
 * what the others find, the second still does some of that, and from then on rounds
 * differ by turns as KVM's two sets of memslots do: four have seen everything.
 */
static void measure_slots_of(const struct kind *kind, bool bound)
{
	const int nr = nr_slots ?: kvm_check_cap(KVM_CAP_NR_MEMSLOTS);
	struct mem mem = { .kind = kind, .memfd = -1, .size = nr * PAGE };
	double add = DBL_MAX, delete = DBL_MAX;
	long start, added;
	int i, j;

	mem.vm = ____vm_create(VM_SHAPE(kind->vm_type), 0);
	mem.hva = reserve(&mem, mem.size);
	if (bound)
		mem.memfd = vm_create_guest_memfd(mem.vm, mem.size, 0);

	for (j = 0; j < SLOT_ROUNDS; j++) {
		start = cpu_time();
		for (i = 0; i < nr; i++)
			TEST_ASSERT(!set_slot(&mem, i, GPA + i * 2 * PAGE, PAGE, i * PAGE),
				    "Slot %d: errno %d", i, errno);
		added = cpu_time();
		for (i = 0; i < nr; i++)
			TEST_ASSERT(!set_slot(&mem, i, 0, 0, 0), "Slot %d: errno %d", i, errno);
		delete = min(delete, (double)(cpu_time() - added));
		add = min(add, (double)(added - start));
	}
	mem_free(&mem);
	figure(add / nr, "ns/slot", "slots.%s.add%s", kind->name, bound ? ".bound" : "");
	figure(delete / nr, "ns/slot", "slots.%s.delete%s", kind->name, bound ? ".bound" : "");
}

static void measure_slots(void)
{
	const struct kind *kind;

	for (kind = next_kind(NULL, false); kind; kind = next_kind(kind, false)) {
		if (kind->memfd_flags || kind->advice == MADV_HUGEPAGE)
			continue;
		if (kind->private)
			measure_slots_of(kind, true);
		measure_slots_of(kind, false);
	}
}

static struct pattern {
	const char *name;
	void (*run)(void);	/* finds no figures where the host lacks what it is about */
	const char *what;
	bool wanted;
} patterns[] = {
	{ "convert", measure_convert,
	  "a range to shared and to private, nothing mapped" },
	{ "flip", measure_flip,
	  "one page to shared and back, nothing mapped" },
	{ "flip_used", measure_flip_used,
	  "the same, by a guest that uses the page and those around it" },
	{ "memory", measure_memory,
	  "kernel memory that one private range takes" },
	{ "alternate", measure_alternate,
	  "every other page of 1 GiB to private, and all to shared" },
	{ "random", measure_random,
	  "ranges of up to 2 MiB in 1 GiB" },
	{ "touch", measure_touch,
	  "the guest's first write to each page" },
	{ "retouch", measure_retouch,
	  "the same where only KVM's mapping is missing" },
	{ "allocate", measure_allocate,
	  "fallocate() of memory, and of holes" },
	{ "slots", measure_slots,
	  "as many slots as there can be, bound to a file and not" },
};

static void want_pattern(const char *name)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(patterns); i++) {
		if (strcmp(patterns[i].name, name))
			continue;
		patterns[i].wanted = true;
		return;
	}
	TEST_FAIL("There is no pattern %s", name);
}

static void want_kind(const char *name)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		if (strcmp(kinds[i].name, name))
			continue;
		kinds[i].wanted = true;
		return;
	}
	TEST_FAIL("There is no kind of memory %s", name);
}

/* Calls @want for each of the names, separated by commas. */
static void want_names(char *names, void (*want)(const char *name))
{
	char *name;

	for (name = strtok(names, ","); name; name = strtok(NULL, ","))
		want(name);
}

static void help(const char *name)
{
	int i;

	puts("");
	printf("usage: %s [-h] [-p patterns] [-k kinds] [-b memory] [-a memory]\n"
	       "          [-r range] [-n operations] [-s slots] [-m figure=max]...\n", name);
	printf(" -p: which patterns to measure, separated by commas. Default: all:\n");
	for (i = 0; i < ARRAY_SIZE(patterns); i++)
		printf("     %-10s %s\n", patterns[i].name, patterns[i].what);
	printf(" -k: which kinds of memory, separated by commas, a kind being whose memory\n"
	       "     it is and the size of its pages. Default: all that the host has of\n    ");
	for (i = 0; i < ARRAY_SIZE(kinds); i++)
		printf(" %s", kinds[i].name);
	printf("\n -b: how much memory the guest touches, e.g. 10M or 3G. Default: %s\n",
	       size_name(touch_size));
	printf(" -a: how much memory is allocated and punched. Default: %s\n",
	       size_name(alloc_size));
	printf(" -r: the largest range that is converted. Default: %s\n", size_name(max_range));
	printf(" -n: how many flips and random conversions. Default: %d\n", nr_ops);
	printf(" -s: how many slots. Default: as many as there can be\n");
	printf(" -m: fail unless this figure, or all that a pattern such as 'flip.*' names,\n"
	       "     is measured and no more than that\n");
	puts("");
}

static void add_limit(char *arg)
{
	char *max = strchr(arg, '=');

	TEST_ASSERT(max && nr_limits < MAX_LIMITS, "Expected figure=max, got %s", arg);
	*max++ = '\0';
	limits[nr_limits].figures = arg;
	limits[nr_limits++].max = atof(max);
}

static uint64_t parse_blocks(const char *size)
{
	uint64_t bytes = parse_size(size);

	TEST_ASSERT(bytes && !(bytes % BLOCK), "%s is not a multiple of 2M", size);
	return bytes;
}

int main(int argc, char *argv[])
{
	char *wanted_patterns = NULL, *wanted_kinds = NULL;
	int opt, i, plan = 0;

	while ((opt = getopt(argc, argv, "hp:k:b:a:r:n:s:m:")) != -1) {
		switch (opt) {
		case 'p':
			wanted_patterns = optarg;
			break;
		case 'k':
			wanted_kinds = optarg;
			break;
		case 'b':
			touch_size = parse_blocks(optarg);
			break;
		case 'a':
			alloc_size = parse_blocks(optarg);
			break;
		case 'r':
			max_range = parse_blocks(optarg);
			break;
		case 'n':
			nr_ops = atoi(optarg);
			break;
		case 's':
			nr_slots = atoi(optarg);
			break;
		case 'm':
			add_limit(optarg);
			break;
		default:
			help(argv[0]);
			return opt == 'h' ? 0 : 1;
		}
	}

	if (wanted_patterns)
		want_names(wanted_patterns, want_pattern);
	if (wanted_kinds)
		want_names(wanted_kinds, want_kind);
	for (i = 0; i < ARRAY_SIZE(kinds); i++)
		kinds[i].wanted |= !wanted_kinds;
	for (i = 0; i < ARRAY_SIZE(patterns); i++) {
		patterns[i].wanted |= !wanted_patterns;
		plan += patterns[i].wanted;
	}

	stay_on_cpu();
	open_shrinkers();
	ksft_print_header();
	ksft_set_plan(plan + nr_limits);

	for (i = 0; i < ARRAY_SIZE(patterns); i++) {
		int before = nr_figures;

		if (!patterns[i].wanted)
			continue;
		ksft_print_msg("%s: %s\n", patterns[i].name, patterns[i].what);
		patterns[i].run();
		if (nr_figures > before)
			ksft_test_result_pass("%s\n", patterns[i].name);
		else
			ksft_test_result_skip("%s: not on this host\n", patterns[i].name);
	}

	for (i = 0; i < nr_limits; i++) {
		if (nr_figures)
			ksft_test_result(limits[i].seen && limits[i].value <= limits[i].max,
					 "%s at most %.10g\n", limits[i].figures, limits[i].max);
		else
			ksft_test_result_skip("%s\n", limits[i].figures);
	}
	if (!nr_figures)
		exit(KSFT_SKIP);
	ksft_finished();
}
