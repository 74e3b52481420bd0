// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests that know nothing of private memory, with all their memory private: see
 * private_mode.h.
 */
#define _GNU_SOURCE
#include <linux/falloc.h>
#include <linux/kernel.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include "kvm_util.h"
#include "private_mode.h"
#include "processor.h"

#define MODE_ENV	"KVM_SELFTESTS_PRIVATE"
#define REPORT_ENV	"KVM_SELFTESTS_PRIVATE_REPORT"
#define SHARED_ENV	"KVM_SELFTESTS_PRIVATE_SHARED"

/* Nothing that would work: no instruction, no entry of a page table, no address */
#define PATTERN		0x9a9a9a9a9a9a9a9aull

/* A test that must share more than this has little private memory left */
#define MAX_SHARED	256

/* Where the vCPU that fetches private memory has its code and its buffer */
#define FETCH_SLOT	30000
#define FETCH_GPA_MAX	0xe0000000ull
#define FETCH_PAGES	64
#define FETCH_PORT	0xf4

enum page_state {
	PAGE_OPEN,	/* the host's to fill, never seen by the guest */
	PAGE_LOADED,	/* private */
	PAGE_STALE,	/* private, the library's copy is newer */
	PAGE_REOPENED,	/* private, allocated since: the host's to fill again */
	PAGE_SHARED,	/* a test looks at it, or it is new or changes while a vCPU runs */
};

struct private_region {
	int fd;			/* of the memory that the library and the test see */
	char *copy;		/* how the library sees it */
	char *half;		/* userspace_addr */
	uint64_t nr_pages;
	uint64_t nr_private;	/* of a file that has been closed */
	uint8_t state[];
};

struct private_vm {
	struct kvm_vm *vm;
	struct private_vm *next;
	bool pending;		/* something is to be loaded */
	bool loaded;		/* and has been before */
	int nr_running;		/* how many vCPUs are in KVM_RUN */
};

/*
 * Tests call from many threads.  The lock protects the list of VMs, what is above of
 * each, the states of all pages, and the counts.  It is not held while a vCPU runs.
 */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct private_vm *vms;
static uint64_t nr_vms, nr_private, nr_shared;
static char **main_argv;
static pid_t main_pid;

/* Guest physical addresses, in the order in which it was seen that they must be shared */
static uint64_t shared_gpas[MAX_SHARED];
static int nr_shared_gpas;

__attribute__((constructor)) static void save_arguments(int argc, char **argv)
{
	main_argv = argv;
}

static bool is_listed(uint64_t gpa)
{
	int i;

	for (i = 0; i < nr_shared_gpas; i++) {
		if (shared_gpas[i] == gpa)
			return true;
	}
	return false;
}

static uint64_t page_gpa(struct userspace_mem_region *region, uint64_t page)
{
	return region->region.guest_phys_addr + page * PAGE_SIZE;
}

/* How many pages the file has */
static uint64_t count_private(struct userspace_mem_region *region)
{
	struct stat st;

	if (region->guest_memfd < 0)
		return region->private->nr_private;

	TEST_ASSERT(!fstat(region->guest_memfd, &st), "Cannot stat a guest_memfd, errno: %i",
		    errno);
	return st.st_blocks * 512 / PAGE_SIZE;
}

static void count_region(struct userspace_mem_region *region)
{
	struct private_region *p = region->private;
	uint64_t i;

	if (!p)
		return;

	nr_private += count_private(region);
	for (i = 0; i < p->nr_pages; i++)
		nr_shared += p->state[i] == PAGE_SHARED;
}

/* Returns the first page of the shared half that somebody wrote to, or -1. */
static int64_t find_written(struct userspace_mem_region *region)
{
	struct private_region *p = region->private;
	uint64_t i, j, *word;

	for (i = 0; p && i < p->nr_pages; i++) {
		if (p->state[i] == PAGE_OPEN || p->state[i] == PAGE_SHARED)
			continue;
		word = (uint64_t *)(p->half + i * PAGE_SIZE);
		for (j = 0; j < PAGE_SIZE / sizeof(*word); j++) {
			if (word[j] != PATTERN)
				return i;
		}
	}
	return -1;
}

static void assert_not_written(struct userspace_mem_region *region)
{
	int64_t page = find_written(region);

	TEST_ASSERT(page < 0,
		    "Expected the shared half of the private page at 0x%lx as it was, KVM wrote there",
		    page_gpa(region, page));
}

/* What there is to say in the end, also of VMs that the test did not free. */
static void report(int status, void *unused)
{
	const char *file = getenv(REPORT_ENV);
	struct userspace_mem_region *region;
	struct private_vm *v;
	bool written = false;
	FILE *stream = NULL;
	int64_t page;
	int i, ctr;

	/* A child has copies of what is its parent's. */
	if (getpid() != main_pid)
		return;

	for (v = vms; v; v = v->next) {
		hash_for_each(v->vm->regions.slot_hash, ctr, region, slot_node) {
			count_region(region);
			page = find_written(region);
			if (page < 0)
				continue;
			written = true;
			fprintf(stderr, "KVM wrote to the shared half of 0x%lx, which is private\n",
				page_gpa(region, page));
		}
	}

	if (nr_vms) {
		if (file)
			stream = fopen(file, "a");
		if (!stream)
			stream = stderr;
		fprintf(stream, "private: %lu shared: %lu vms: %lu\n", nr_private, nr_shared,
			nr_vms);
		for (i = 0; i < nr_shared_gpas; i++)
			fprintf(stream, "shared: 0x%lx\n", shared_gpas[i]);
		if (stream != stderr)
			fclose(stream);
	}
	if (written) {
		fflush(NULL);
		_exit(254);
	}
}

/* A page cannot be private, as @why says.  Start over, with that page shared. */
static void start_over(uint64_t gpa, const char *why)
{
	static char list[MAX_SHARED * 20];
	struct itimerval never = { };
	sigset_t none;
	size_t n = 0;
	int i;

	if (is_listed(gpa) || nr_shared_gpas == MAX_SHARED)
		return;

	shared_gpas[nr_shared_gpas++] = gpa;
	for (i = 0; i < nr_shared_gpas; i++)
		n += snprintf(list + n, sizeof(list) - n, "0x%lx,", shared_gpas[i]);
	setenv(SHARED_ENV, list, 1);
	fprintf(stderr, "private: %s 0x%lx, and starts over\n", why, gpa);

	/* As it was when the test began, as far as that matters. */
	setitimer(ITIMER_REAL, &never, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	syscall(__NR_close_range, 3, ~0U, 0);
	execv("/proc/self/exe", main_argv);
	_exit(254);
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
	struct userspace_mem_region *region;
	struct private_vm *v;
	int ctr;

	for (v = vms; v; v = v->next) {
		hash_for_each(v->vm->regions.slot_hash, ctr, region, slot_node) {
			uint64_t offset = (char *)info->si_addr - (char *)region->host_mem;

			if (!region->private ||
			    offset >= region->private->nr_pages * PAGE_SIZE)
				continue;
			/* Only the guest knows what the page has. */
			start_over(page_gpa(region, offset / PAGE_SIZE), "the test looks at");
		}
	}
	/* A fault like any other: have it again. */
	signal(sig, SIG_DFL);
}

static bool mode_is_on(void)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER };
	static bool known, on;
	char *value, *end;

	if (known)
		return on;

	known = true;
	value = getenv(MODE_ENV);
	on = value && strcmp(value, "") && strcmp(value, "0");
	if (!on)
		return false;

	value = getenv(SHARED_ENV) ? : "";
	for (; *value && nr_shared_gpas < MAX_SHARED; value = end + (*end == ',')) {
		shared_gpas[nr_shared_gpas] = strtoull(value, &end, 0);
		if (end == value)
			break;
		nr_shared_gpas++;
	}
	main_pid = getpid();
	sigaction(SIGSEGV, &action, NULL);
	on_exit(report, NULL);
	return true;
}

void private_mode_vm_init(struct kvm_vm *vm)
{
	/* A test that chooses a type knows what it does. */
	if (vm->type)
		return;

	pthread_mutex_lock(&lock);
	if (mode_is_on()) {
		vm->type = KVM_X86_SW_PROTECTED_VM;
		vm->private = calloc(1, sizeof(*vm->private));
		TEST_ASSERT(vm->private, "Insufficient Memory");
		vm->private->vm = vm;
		vm->private->next = vms;
		vms = vm->private;
		nr_vms++;
	}
	pthread_mutex_unlock(&lock);
}

void private_mode_vm_free(struct kvm_vm *vm)
{
	struct private_vm **link;

	if (!vm->private)
		return;

	pthread_mutex_lock(&lock);
	for (link = &vms; *link != vm->private; link = &(*link)->next)
		;
	*link = vm->private->next;
	pthread_mutex_unlock(&lock);
}

void private_mode_region_add(struct kvm_vm *vm, struct userspace_mem_region *region,
			     bool anonymous)
{
	size_t size = region->region.memory_size;
	uint64_t nr_pages = size / PAGE_SIZE;
	struct private_region *p;
	bool stays_shared;
	uint64_t page = 0;
	void *mem;

	if (!vm->private)
		return;
	/*
	 * Private memory is neither logged nor read-only.  What is shared anyway is as
	 * ever: a test may change the mapping and expect KVM to follow.
	 */
	while (page < nr_pages && is_listed(page_gpa(region, page)))
		page++;
	pthread_mutex_lock(&lock);
	stays_shared = region->region.flags || !anonymous || page == nr_pages;
	if (stays_shared)
		nr_shared += nr_pages;
	pthread_mutex_unlock(&lock);
	if (stays_shared)
		return;

	p = calloc(1, sizeof(*p) + nr_pages);
	TEST_ASSERT(p, "Insufficient Memory");
	p->nr_pages = nr_pages;
	p->fd = kvm_memfd_alloc(size, false);
	p->copy = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, p->fd, 0);
	p->half = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, p->fd, 0);
	mem = mmap(region->host_mem, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		   p->fd, 0);
	TEST_ASSERT(p->copy != MAP_FAILED && p->half != MAP_FAILED && mem != MAP_FAILED,
		    "Cannot map a region three times, errno: %i", errno);

	region->private = p;
	region->region.userspace_addr = (uintptr_t)p->half;
	region->region.flags |= KVM_MEM_GUEST_MEMFD;
	region->guest_memfd = vm_create_guest_memfd(vm, size, 0);

	pthread_mutex_lock(&lock);
	vm->private->pending = true;
	pthread_mutex_unlock(&lock);
}

void private_mode_region_delete(struct userspace_mem_region *region)
{
	struct private_region *p = region->private;

	if (!p)
		return;

	pthread_mutex_lock(&lock);
	count_region(region);
	pthread_mutex_unlock(&lock);
	assert_not_written(region);

	munmap(p->copy, p->nr_pages * PAGE_SIZE);
	munmap(p->half, p->nr_pages * PAGE_SIZE);
	close(p->fd);
	free(p);
	region->private = NULL;
}

void private_mode_pages_alloc(struct kvm_vm *vm, uint64_t gpa, uint64_t nr_pages)
{
	struct userspace_mem_region *region;
	uint64_t page, i;
	int ret, ctr;

	if (!vm->private)
		return;

	pthread_mutex_lock(&lock);
	hash_for_each(vm->regions.slot_hash, ctr, region, slot_node) {
		page = (gpa - region->region.guest_phys_addr) / PAGE_SIZE;
		if (!region->private || gpa < region->region.guest_phys_addr ||
		    page >= region->private->nr_pages)
			continue;
		for (i = page; i < page + nr_pages; i++) {
			if (region->private->state[i] != PAGE_LOADED)
				continue;
			region->private->state[i] = PAGE_REOPENED;
			ret = mprotect((char *)region->host_mem + i * PAGE_SIZE, PAGE_SIZE,
				       PROT_READ | PROT_WRITE);
			TEST_ASSERT(!ret, __KVM_SYSCALL_ERROR("mprotect()", ret));
			vm->private->pending = true;
		}
	}
	pthread_mutex_unlock(&lock);
}

void *private_mode_hva(struct userspace_mem_region *region, uint64_t gpa)
{
	if (!region->private)
		return NULL;

	return region->private->copy + (gpa - region->region.guest_phys_addr);
}

void private_mode_wrote(struct kvm_vm *vm, struct userspace_mem_region *region, uint64_t gpa)
{
	uint64_t page = (gpa - region->region.guest_phys_addr) / PAGE_SIZE;

	if (!region->private)
		return;

	pthread_mutex_lock(&lock);
	if (region->private->state[page] == PAGE_LOADED) {
		region->private->state[page] = PAGE_STALE;
		vm->private->pending = true;
	}
	pthread_mutex_unlock(&lock);
}

/* What is zero stays a hole of the file. */
static void load_page(struct userspace_mem_region *region, uint64_t page)
{
	static const char zero[PAGE_SIZE];
	const char *data = region->private->copy + page * PAGE_SIZE;
	ssize_t ret;

	if (!memcmp(data, zero, PAGE_SIZE))
		return;

	ret = pwrite(region->guest_memfd, data, PAGE_SIZE, page * PAGE_SIZE);
	TEST_ASSERT(ret == PAGE_SIZE, "Cannot load the page at 0x%lx, rc: %zd errno: %i (%s)",
		    page_gpa(region, page), ret, errno, strerror(errno));
}

/* Load those pages that have something; all of a file that nobody wrote to is holes. */
static void load_pages(struct userspace_mem_region *region, uint64_t page, uint64_t nr_pages)
{
	off_t at = page * PAGE_SIZE, end = (page + nr_pages) * PAGE_SIZE, hole;

	while (at < end) {
		at = lseek(region->private->fd, at, SEEK_DATA);
		if (at < 0 || at >= end)
			break;
		hole = min(lseek(region->private->fd, at, SEEK_HOLE), end);
		for (; at < hole; at += PAGE_SIZE)
			load_page(region, at / PAGE_SIZE);
	}
}

static void punch_pages(struct userspace_mem_region *region, uint64_t page, uint64_t nr_pages)
{
	int ret = fallocate(region->guest_memfd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
			    page * PAGE_SIZE, nr_pages * PAGE_SIZE);

	TEST_ASSERT(!ret, __KVM_SYSCALL_ERROR("fallocate()", ret));
}

/* Take the pages away from the test. */
static void hide_pages(struct userspace_mem_region *region, uint64_t page, uint64_t nr_pages)
{
	int ret = mprotect((char *)region->host_mem + page * PAGE_SIZE, nr_pages * PAGE_SIZE,
			   PROT_NONE);

	TEST_ASSERT(!ret, __KVM_SYSCALL_ERROR("mprotect()", ret));
}

static void make_private(struct kvm_vm *vm, struct userspace_mem_region *region,
			 uint64_t page, uint64_t nr_pages)
{
	char *half = region->private->half + page * PAGE_SIZE;
	uint64_t *word = (uint64_t *)half, i;
	void *mem;

	hide_pages(region, page, nr_pages);
	mem = mmap(half, nr_pages * PAGE_SIZE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	TEST_ASSERT(mem == half, __KVM_SYSCALL_ERROR("mmap()", -1));
	for (i = 0; i < nr_pages * PAGE_SIZE / sizeof(*word); i++)
		word[i] = PATTERN;

	vm_mem_set_private(vm, page_gpa(region, page), nr_pages * PAGE_SIZE);
}

/*
 * There is no way to change a page of the file but to punch it and write another one,
 * and in between a vCPU would meet an empty page table.  What the allocator has handed
 * out since, no vCPU knows of yet.
 */
static void assert_not_in_use(struct kvm_vm *vm, uint64_t gpa)
{
	if (!vm->private->nr_running)
		return;

	start_over(gpa, "beside a running vCPU the library changes");
	TEST_FAIL("Expected at most %d pages that cannot be private, 0x%lx is one more",
		  MAX_SHARED, gpa);
}

static void load_region(struct kvm_vm *vm, struct userspace_mem_region *region)
{
	struct private_region *p = region->private;
	uint64_t page, end;
	uint8_t state;

	/* A region that comes while a vCPU runs may be in use already. */
	for (page = 0; page < p->nr_pages; page++) {
		if (p->state[page] == PAGE_OPEN &&
		    (vm->private->nr_running || is_listed(page_gpa(region, page))))
			p->state[page] = PAGE_SHARED;
	}

	for (page = 0; page < p->nr_pages; page = end) {
		state = p->state[page];
		for (end = page + 1; end < p->nr_pages && p->state[end] == state; end++)
			;
		if (state == PAGE_LOADED || state == PAGE_SHARED)
			continue;

		if (state == PAGE_STALE)
			assert_not_in_use(vm, page_gpa(region, page));
		if (state == PAGE_OPEN)
			make_private(vm, region, page, end - page);
		else
			punch_pages(region, page, end - page);
		if (state == PAGE_REOPENED)
			hide_pages(region, page, end - page);
		load_pages(region, page, end - page);
		memset(p->state + page, PAGE_LOADED, end - page);
	}
}

static void load_pending(struct kvm_vm *vm)
{
	struct userspace_mem_region *region;
	int ctr;

	if (!vm->private->pending)
		return;

	hash_for_each(vm->regions.slot_hash, ctr, region, slot_node) {
		if (region->private)
			load_region(vm, region);
	}
	vm->private->loaded = true;
	vm->private->pending = false;
}

void private_mode_run(struct kvm_vm *vm)
{
	if (!vm->private)
		return;

	pthread_mutex_lock(&lock);
	load_pending(vm);
	vm->private->nr_running++;
	pthread_mutex_unlock(&lock);
}

void private_mode_ran(struct kvm_vm *vm)
{
	if (!vm->private)
		return;

	pthread_mutex_lock(&lock);
	vm->private->nr_running--;
	pthread_mutex_unlock(&lock);
}

/* 32 bits, no paging: from ESI to EDI, ECX times four bytes. */
extern char private_mode_fetch[], private_mode_fetch_end[];
asm(".pushsection .rodata\n"
	".code32\n"
	"private_mode_fetch:\n"
	"	cld\n"
	"	rep movsl\n"
	"	outb %al, $" __stringify(FETCH_PORT) "\n"
	"private_mode_fetch_end:\n"
	".code64\n"
	".popsection\n");

static struct kvm_vcpu *fetch_vcpu_add(struct kvm_vm *vm)
{
	struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };
	struct kvm_segment flat = {
		.limit = 0xffffffff, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1,
	};
	struct kvm_vcpu *vcpu;
	struct kvm_sregs sregs;
	uint32_t id = 0;

	list_for_each_entry(vcpu, &vm->vcpus, list)
		id = max(id, vcpu->id + 1);

	vcpu = __vm_vcpu_add(vm, id);
	vcpu_sregs_get(vcpu, &sregs);
	sregs.cr0 |= X86_CR0_PE;
	sregs.ds = flat;
	sregs.es = flat;
	sregs.ss = flat;
	flat.type = 11;
	sregs.cs = flat;
	vcpu_sregs_set(vcpu, &sregs);
	vcpu_mp_state_set(vcpu, &runnable);
	return vcpu;
}

static void fetch_pages(struct kvm_vcpu *vcpu, uint64_t gpa, uint64_t from, uint64_t nr_pages)
{
	struct kvm_regs regs = {
		.rip = gpa,
		.rflags = 2,
		.rsi = from,
		.rdi = gpa + PAGE_SIZE,
		.rcx = nr_pages * PAGE_SIZE / 4,
	};
	struct kvm_run *run = vcpu->run;
	int ret;

	vcpu_regs_set(vcpu, &regs);
	do {
		ret = __vcpu_run(vcpu);
	} while (ret == -1 && errno == EINTR);
	TEST_ASSERT(!ret && run->exit_reason == KVM_EXIT_IO && run->io.port == FETCH_PORT,
		    "Cannot fetch the private memory at 0x%lx, rc: %i errno: %i exit: %u (%s)",
		    from, ret, errno, run->exit_reason, exit_reason_str(run->exit_reason));
	vcpu_run_complete_io(vcpu);
}

void private_mode_release(struct kvm_vm *vm)
{
	size_t size = (1 + FETCH_PAGES) * PAGE_SIZE;
	struct userspace_mem_region *region;
	uint64_t gpa, page, end, last;
	struct kvm_vcpu *vcpu = NULL;
	struct private_region *p;
	char *mem;
	int ctr;

	if (!vm->private)
		return;

	/* Where a vCPU has run, there are no pages that are neither the host's nor the guest's. */
	pthread_mutex_lock(&lock);
	if (vm->private->loaded)
		load_pending(vm);
	pthread_mutex_unlock(&lock);

	mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(mem != MAP_FAILED, __KVM_SYSCALL_ERROR("mmap()", -1));
	memcpy(mem, private_mode_fetch, private_mode_fetch_end - private_mode_fetch);
	for (gpa = FETCH_GPA_MAX - size;
	     kvm_userspace_memory_region_find(vm, gpa, gpa + size - 1); gpa -= size)
		;

	hash_for_each(vm->regions.slot_hash, ctr, region, slot_node) {
		p = region->private;
		if (!p)
			continue;
		last = page_gpa(region, p->nr_pages) - 1;
		for (page = 0; page < p->nr_pages; page = end) {
			end = page + 1;
			if (p->state[page] != PAGE_LOADED)
				continue;
			while (end < p->nr_pages && end < page + FETCH_PAGES &&
			       p->state[end] == PAGE_LOADED)
				end++;
			if (!vcpu) {
				vm_set_user_memory_region(vm, FETCH_SLOT, 0, gpa, size, mem);
				vcpu = fetch_vcpu_add(vm);
			}
			TEST_ASSERT(last < FETCH_GPA_MAX,
				    "No way to fetch the private memory below 0x%lx", last);
			fetch_pages(vcpu, gpa, page_gpa(region, page), end - page);
			memcpy(p->copy + page * PAGE_SIZE, mem + PAGE_SIZE,
			       (end - page) * PAGE_SIZE);
		}
		assert_not_written(region);
		p->nr_private = count_private(region);
		close(region->guest_memfd);
		region->guest_memfd = -1;
	}
	munmap(mem, size);
}

void private_mode_restart_region(struct kvm_vm *vm, struct userspace_mem_region *region)
{
	if (region->private)
		region->guest_memfd = vm_create_guest_memfd(vm, region->region.memory_size, 0);
}

/* Ioctls that restore a vCPU's state read memory before it runs. */
void private_mode_restarted_region(struct kvm_vm *vm, struct userspace_mem_region *region)
{
	struct private_region *p = region->private;
	uint64_t page, end;

	for (page = 0; p && page < p->nr_pages; page = end) {
		end = page + 1;
		if (p->state[page] != PAGE_LOADED)
			continue;
		while (end < p->nr_pages && p->state[end] == PAGE_LOADED)
			end++;
		vm_mem_set_private(vm, page_gpa(region, page), (end - page) * PAGE_SIZE);
		load_pages(region, page, end - page);
	}
}
