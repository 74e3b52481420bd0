// SPDX-License-Identifier: GPL-2.0-only
/*
 * VMs with private memory come and go, and nothing is left of them.
 */
#define _GNU_SOURCE /* for fallocate() */
#include <dirent.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/bits.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "kvm_util.h"

#define PAGE		4096UL
#define NR_WARMUP	50
#define NR_CACHES	512
#define TOLERANCE	64	/* pages, and files */

struct cache {
	char name[64];
	long objects, size, per_slab;
};

struct usage {
	long pages;		/* not free */
	long files;
	int nr_caches;
	struct cache caches[NR_CACHES];
};

/*
 * The files that give memory back when written to.  They stay open: to open and
 * close them would leave traces in the caches that they are about to clean.
 */
static int shrinkers[NR_CACHES], nr_shrinkers;

static void open_shrinkers(void)
{
	char path[512];
	struct dirent *d;
	DIR *dir;

	dir = opendir("/sys/kernel/slab");
	TEST_ASSERT(dir, "open(/sys/kernel/slab) failed");
	while ((d = readdir(dir)) && nr_shrinkers < NR_CACHES) {
		if (d->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/sys/kernel/slab/%s/shrink", d->d_name);
		shrinkers[nr_shrinkers++] = open_path_or_exit(path, O_WRONLY);
	}
	closedir(dir);
}

static void give_memory_back(void)
{
	int fd = open_path_or_exit("/proc/sys/vm/drop_caches", O_WRONLY), i;

	TEST_ASSERT(write(fd, "3", 1) == 1, "drop_caches cannot be written");
	close(fd);
	for (i = 0; i < nr_shrinkers; i++)
		TEST_ASSERT(write(shrinkers[i], "1", 1) == 1, "A slab cannot be shrunk");
}

static void read_usage(struct usage *u)
{
	char line[512];
	FILE *f;

	memset(u, 0, sizeof(*u));
	give_memory_back();

	f = fopen("/proc/slabinfo", "r");
	TEST_ASSERT(f, "open(/proc/slabinfo) failed");
	while (fgets(line, sizeof(line), f) && u->nr_caches < NR_CACHES) {
		struct cache *c = &u->caches[u->nr_caches];
		long pages_per_slab, slabs;

		if (sscanf(line, "%63s %ld %*d %ld %ld %ld : %*s %*d %*d %*d : %*s %*d %ld",
			   c->name, &c->objects, &c->size, &c->per_slab, &pages_per_slab,
			   &slabs) != 6)
			continue;
		/*
		 * What vmalloc() frees is described by these until there is
		 * enough of it to be worth a flush of TLBs.
		 */
		if (!strcmp(c->name, "vmap_area"))
			u->pages -= slabs * pages_per_slab;
		else
			u->nr_caches++;
	}
	fclose(f);
	TEST_ASSERT(u->nr_caches, "/proc/slabinfo is empty");

	f = fopen("/proc/sys/fs/file-nr", "r");
	TEST_ASSERT(f && fscanf(f, "%ld", &u->files) == 1, "read(file-nr) failed");
	fclose(f);

	u->pages += host_pages_in_use();
}

/*
 * The last of what is freed is freed after grace periods, by workers: wait
 * until two readings in a row say the same.
 */
static void read_settled_usage(struct usage *u, struct usage *earlier)
{
	int i;

	read_usage(u);
	for (i = 0; i < 30; i++) {
		*earlier = *u;
		usleep(300000);
		read_usage(u);
		if (labs(u->pages - earlier->pages) < 4 && u->files == earlier->files)
			break;
	}
}

/*
 * One VM with some of everything: it halts by an instruction in private memory,
 * which is where a CPU begins after reset.
 */
static void vm_comes_and_goes(int nr)
{
	const uint64_t gpa = 0xfffff000, size = 16 * PAGE;
	char code[PAGE], *hva;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int fd, spare;

	memset(code, 0xf4, sizeof(code));
	hva = mmap(NULL, size + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(hva != MAP_FAILED && !munmap(hva + size, PAGE), "mmap() failed");

	vm = ____vm_create(VM_SHAPE(KVM_X86_SW_PROTECTED_VM), 0);
	vcpu = __vm_vcpu_add(vm, 0);
	fd = vm_create_guest_memfd(vm, size, 0);
	spare = vm_create_guest_memfd(vm, size, 0);
	TEST_ASSERT(pwrite(fd, code, PAGE, size - PAGE) == PAGE, "pwrite() failed");
	TEST_ASSERT(!fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 4 * PAGE), "fallocate() failed");
	/* Refused after the copy, and in the midst of it. */
	TEST_ASSERT(pwrite(fd, code, PAGE, 0) < 0 && errno == EEXIST, "pwrite() succeeded");
	TEST_ASSERT(pwrite(fd, hva + size - 100, PAGE, 5 * PAGE) < 0 && errno == EFAULT,
		    "pwrite() succeeded");

	vm_set_user_memory_region2(vm, 0, KVM_MEM_GUEST_MEMFD, gpa, PAGE, hva, fd, size - PAGE);
	vm_set_user_memory_region2(vm, 1, KVM_MEM_GUEST_MEMFD, 0, 4 * PAGE, hva, fd, 0);
	vm_set_user_memory_region2(vm, 2, KVM_MEM_GUEST_MEMFD, 8 * PAGE, size, hva, spare, 0);
	TEST_ASSERT(__vm_set_user_memory_region2(vm, 3, KVM_MEM_GUEST_MEMFD, 1UL << 32, PAGE,
						 hva, fd, 0) < 0, "bound twice");
	vm_mem_set_private(vm, gpa, PAGE);
	vm_mem_set_private(vm, 2 * PAGE, 20 * PAGE);
	vm_mem_set_private(vm, 1UL << 45, 1UL << 40);
	vm_mem_set_shared(vm, 3 * PAGE, PAGE);

	vcpu_run(vcpu);
	TEST_ASSERT(vcpu->run->exit_reason == KVM_EXIT_HLT, "exit_reason %u (%s)",
		    vcpu->run->exit_reason, exit_reason_str(vcpu->run->exit_reason));

	/* All ways to come to an end. */
	if (nr & 1)
		vm_set_user_memory_region2(vm, 1, 0, 0, 0, NULL, 0, 0);
	if (nr & 2)
		TEST_ASSERT(!fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, size),
			    "punch failed");
	if (nr & 4)
		close(fd);
	kvm_vm_free(vm);
	if (!(nr & 4))
		close(fd);
	close(spare);
	munmap(hva, size);
}

/* In a process of their own, so that none of it is this process's. */
static void vms_come_and_go(int nr)
{
	int status = -1, i;
	pid_t pid;

	pid = fork();
	if (!pid) {
		for (i = 0; i < nr; i++)
			vm_comes_and_goes(i);
		_exit(0);
	}
	TEST_ASSERT(waitpid(pid, &status, 0) == pid && WIFEXITED(status) &&
		    !WEXITSTATUS(status), "The VMs failed, status 0x%x", status);
}

static long old_objects(const struct usage *u, const char *name)
{
	int i;

	for (i = 0; i < u->nr_caches; i++)
		if (!strcmp(u->caches[i].name, name))
			return u->caches[i].objects;
	return 0;
}

/*
 * Prints the caches that have grown; returns by how many bytes all have.  The slab
 * that a CPU allocates from counts as used up, so what a cache has grown for sure
 * is less by as many objects.
 */
static long compare_caches(const struct usage *old, const struct usage *new,
			   long *most_objects)
{
	long bytes = 0, grown;
	int i;

	*most_objects = 0;
	for (i = 0; i < new->nr_caches; i++) {
		grown = new->caches[i].objects - old_objects(old, new->caches[i].name);
		bytes += grown * new->caches[i].size;
		*most_objects = max(*most_objects, grown - new->caches[i].per_slab);
		if (grown > 0)
			ksft_print_msg("%s: %ld objects of %ld bytes\n",
				       new->caches[i].name, grown, new->caches[i].size);
	}
	return bytes;
}

int main(int argc, char *argv[])
{
	long pages, files, bytes, objects;
	struct usage *before, *after, *scratch;
	int opt, nr = 1000, kept = 0;

	while ((opt = getopt(argc, argv, "hk:n:")) != -1) {
		switch (opt) {
		case 'k':
			kept = atoi(optarg);
			break;
		case 'n':
			nr = atoi(optarg);
			break;
		default:
			/*
			 * KASAN keeps the shadow of the addresses that vmalloc()
			 * had, two or three pages for a VM with its thread, and
			 * what was in a slab, until there is enough of it.
			 */
			printf("usage: %s [-n number of VMs] [-k pages and objects kept of each]\n",
			       argv[0]);
			return opt == 'h' ? 0 : 1;
		}
	}

	TEST_REQUIRE(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM));

	ksft_print_header();
	ksft_set_plan(4);

	/* In memory before anything is counted. */
	before = mmap(NULL, 3 * sizeof(*before), PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	TEST_ASSERT(before != MAP_FAILED, "mmap() failed");
	after = before + 1;
	scratch = before + 2;
	open_shrinkers();

	vms_come_and_go(NR_WARMUP);
	read_settled_usage(before, scratch);
	vms_come_and_go(nr);
	read_settled_usage(after, scratch);

	pages = after->pages - before->pages;
	files = after->files - before->files;
	bytes = compare_caches(before, after, &objects);

	ksft_print_msg("More than before: %ld pages, %ld files, %ld bytes of slab objects\n",
		       pages, files, bytes);
	ksft_test_result(pages <= TOLERANCE + nr * kept, "pages\n");
	ksft_test_result(files <= TOLERANCE, "files\n");
	ksft_test_result(bytes <= TOLERANCE * (long)PAGE, "slab_bytes\n");
	/* However small: one object of every tenth VM would show. */
	ksft_test_result(objects <= max(TOLERANCE, nr / 10) + nr * kept, "slab_objects\n");
	ksft_finished();
}
