// SPDX-License-Identifier: GPL-2.0-only
/*
 * The sample VMM with an attacker in its process.
 *
 * Linked with the VMM, whose main() is vmm_main() here. Each VM gets a process
 * of its own, where one thread is the VMM and another one sits at the guest's
 * console. Once the guest has said where its secret is, that thread tries every
 * way that userspace has to reach it, from the VMM's own process and, forked off
 * for that, from another one. It knows all that the VMM knows, and has the VMM's
 * memory, descriptors and privileges.
 *
 * First the guest runs in ordinary memory, where every route has to find the
 * secret: it is the proof that the routes work. Then in private memory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/ptrace.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/aio_abi.h>
#include <linux/kvm.h>

#include "guest.h"

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

/* Seconds until a guest that has nothing more to say is given up. */
#define PATIENCE	180

#define LINE_SIZE	512

/* What is under attack: a page of the guest, and what leads there. */
struct target {
	bool private;
	int fd;				/* the file that is the guest's RAM */
	char *hva;			/* userspace_addr of its first page */
	unsigned long long gpa;		/* offset in both */
	pid_t pid;			/* of the VMM */
};

/*
 * A route fills the page and returns 0, or returns -errno. A page that belongs
 * to both processes when the route leads through another one.
 */
typedef int (*route_fn)(const struct target *t, char *page);

static int got_page(ssize_t n)
{
	return n == PAGE_SIZE ? 0 : n < 0 ? -errno : -ENODATA;
}

/*
 * Loads and stores: a mapping may turn out to have nothing behind it.
 */

static __thread sigjmp_buf no_memory;

static void on_fault(int sig)
{
	(void)sig;
	siglongjmp(no_memory, 1);
}

static int copy(char *to, const char *from)
{
	if (sigsetjmp(no_memory, 1))
		return -EFAULT;
	memcpy(to, from, PAGE_SIZE);
	return 0;
}

/*
 * The file.
 */

static int copy_mapped(int fd, unsigned long long offset, int flags, char *page)
{
	char *p = mmap(NULL, PAGE_SIZE, PROT_READ, flags, fd, offset);
	int ret;

	if (p == MAP_FAILED)
		return -errno;
	ret = copy(page, p);
	munmap(p, PAGE_SIZE);
	return ret;
}

static int route_mmap_shared(const struct target *t, char *page)
{
	return copy_mapped(t->fd, t->gpa, MAP_SHARED, page);
}

static int route_mmap_private(const struct target *t, char *page)
{
	return copy_mapped(t->fd, t->gpa, MAP_PRIVATE, page);
}

static int route_read(const struct target *t, char *page)
{
	if (lseek(t->fd, t->gpa, SEEK_SET) < 0)
		return -errno;
	return got_page(read(t->fd, page, PAGE_SIZE));
}

static int route_pread(const struct target *t, char *page)
{
	return got_page(pread(t->fd, page, PAGE_SIZE, t->gpa));
}

static int route_aio(const struct target *t, char *page)
{
	struct iocb iocb = {
		.aio_lio_opcode = IOCB_CMD_PREAD,
		.aio_fildes = t->fd,
		.aio_buf = (unsigned long)page,
		.aio_nbytes = PAGE_SIZE,
		.aio_offset = t->gpa,
	};
	struct iocb *iocbs[] = { &iocb };
	struct io_event event;
	aio_context_t ctx = 0;
	int ret;

	if (syscall(SYS_io_setup, 1, &ctx))
		return -errno;
	if (syscall(SYS_io_submit, ctx, 1, iocbs) != 1 ||
	    syscall(SYS_io_getevents, ctx, 1, 1, &event, NULL) != 1)
		ret = -errno;
	else
		ret = event.res < 0 ? event.res : got_page(event.res);
	syscall(SYS_io_destroy, ctx);
	return ret;
}

static int route_splice(const struct target *t, char *page)
{
	loff_t offset = t->gpa;
	int pipefd[2], ret;

	if (pipe(pipefd))
		return -errno;
	ret = got_page(splice(t->fd, &offset, pipefd[1], NULL, PAGE_SIZE, 0));
	if (!ret)
		ret = got_page(read(pipefd[0], page, PAGE_SIZE));
	close(pipefd[0]);
	close(pipefd[1]);
	return ret;
}

static int route_sendfile(const struct target *t, char *page)
{
	off_t offset = t->gpa;
	int pipefd[2], ret;

	if (pipe(pipefd))
		return -errno;
	ret = got_page(sendfile(pipefd[1], t->fd, &offset, PAGE_SIZE));
	if (!ret)
		ret = got_page(read(pipefd[0], page, PAGE_SIZE));
	close(pipefd[0]);
	close(pipefd[1]);
	return ret;
}

static int route_copy_file_range(const struct target *t, char *page)
{
	loff_t offset = t->gpa;
	int fd, ret;

	fd = memfd_create("loot", 0);
	if (fd < 0)
		return -errno;
	ret = got_page(copy_file_range(t->fd, &offset, fd, NULL, PAGE_SIZE, 0));
	if (!ret)
		ret = got_page(pread(fd, page, PAGE_SIZE, 0));
	close(fd);
	return ret;
}

static int route_reopen(const struct target *t, char *page)
{
	char path[64];
	int fd, ret;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", t->fd);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return -errno;
	ret = got_page(pread(fd, page, PAGE_SIZE, t->gpa));
	close(fd);
	return ret;
}

/*
 * The VMM's memory.
 */

static int route_load(const struct target *t, char *page)
{
	return copy(page, t->hva + t->gpa);
}

static int read_mem(const char *path, const struct target *t, char *page)
{
	int fd = open(path, O_RDONLY);
	int ret;

	if (fd < 0)
		return -errno;
	ret = got_page(pread(fd, page, PAGE_SIZE, (unsigned long)t->hva + t->gpa));
	close(fd);
	return ret;
}

static int route_self_mem(const struct target *t, char *page)
{
	return read_mem("/proc/self/mem", t, page);
}

/*
 * The same from another process.
 */

static int outside_mem(const struct target *t, char *page)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/mem", t->pid);
	return read_mem(path, t, page);
}

static int outside_process_vm_readv(const struct target *t, char *page)
{
	struct iovec here = { page, PAGE_SIZE };
	struct iovec there = { t->hva + t->gpa, PAGE_SIZE };

	return got_page(process_vm_readv(t->pid, &here, 1, &there, 1, 0));
}

static int outside_ptrace(const struct target *t, char *page)
{
	unsigned int i;
	int ret = 0;

	if (ptrace(PTRACE_ATTACH, t->pid, NULL, NULL))
		return -errno;
	if (waitpid(t->pid, NULL, __WALL) != t->pid)
		return -errno;
	for (i = 0; i < PAGE_SIZE && !ret; i += sizeof(long)) {
		errno = 0;
		*(long *)(page + i) = ptrace(PTRACE_PEEKDATA, t->pid,
					     t->hva + t->gpa + i, NULL);
		ret = -errno;
	}
	ptrace(PTRACE_DETACH, t->pid, NULL, NULL);
	return ret;
}

/* With a descriptor of its own for the same file. */
static int with_pidfd(const struct target *t, char *page, route_fn route)
{
	struct target mine = *t;
	int pidfd;

	pidfd = pidfd_open(t->pid, 0);
	if (pidfd < 0)
		return -errno;
	mine.fd = pidfd_getfd(pidfd, t->fd, 0);
	if (mine.fd < 0)
		return -errno;
	return route(&mine, page);
}

static int outside_getfd_read(const struct target *t, char *page)
{
	return with_pidfd(t, page, route_pread);
}

static int outside_getfd_mmap(const struct target *t, char *page)
{
	return with_pidfd(t, page, route_mmap_shared);
}

static int outside_reopen(const struct target *t, char *page)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", t->pid, t->fd);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return -errno;
	return got_page(pread(fd, page, PAGE_SIZE, t->gpa));
}

static int from_outside(const struct target *t, char *page, route_fn route)
{
	int status;
	pid_t pid;

	pid = fork();
	if (pid < 0)
		return -errno;
	if (!pid)
		_exit(-route(t, page));
	if (waitpid(pid, &status, 0) != pid)
		return -errno;
	return WIFEXITED(status) ? -WEXITSTATUS(status) : -EINTR;
}

/*
 * A second VM: the file as its memory, and a program in it that tells what is
 * there.
 */

#define CODE_GPA	0x1000
#define LOOT_GPA	0x10000
#define LOOT_PORT	0x10

static int add_code(int vm)
{
	static const unsigned char code[] = {
		0xf3, 0x6e,		/* rep outsb */
		0xf4,			/* hlt */
	};
	struct kvm_userspace_memory_region region = {
		.slot = 0,
		.guest_phys_addr = CODE_GPA,
		.memory_size = PAGE_SIZE,
	};
	char *p = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return -errno;
	memcpy(p, code, sizeof(code));
	region.userspace_addr = (unsigned long)p;
	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) ? -errno : 0;
}

static int bind_file(int vm, const struct target *t)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = 1,
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = LOOT_GPA,
		.memory_size = PAGE_SIZE,
		.userspace_addr = (unsigned long)t->hva + t->gpa,
		.guest_memfd = t->fd,
		.guest_memfd_offset = t->gpa,
	};
	struct kvm_memory_attributes attributes = {
		.address = LOOT_GPA,
		.size = PAGE_SIZE,
		.attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE,
	};

	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &region) ||
	    ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &attributes))
		return -errno;
	return 0;
}

static int map_file(int vm, const struct target *t)
{
	struct kvm_userspace_memory_region region = {
		.slot = 1,
		.guest_phys_addr = LOOT_GPA,
		.memory_size = PAGE_SIZE,
	};
	char *p = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
		       t->fd, t->gpa);

	if (p == MAP_FAILED)
		return -errno;
	region.userspace_addr = (unsigned long)p;
	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) ? -errno : 0;
}

static int run_code(int kvm, int vm, char *page)
{
	struct kvm_regs regs = {
		.rip = CODE_GPA, .rcx = PAGE_SIZE, .rdx = LOOT_PORT,
		.rflags = 0x2,
	};
	unsigned int done = 0, n;
	struct kvm_sregs sregs;
	struct kvm_run *run;
	int vcpu;

	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		return -errno;
	run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0),
		   PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED || ioctl(vcpu, KVM_GET_SREGS, &sregs))
		return -errno;
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	sregs.ds.base = LOOT_GPA;
	sregs.ds.selector = LOOT_GPA >> 4;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) || ioctl(vcpu, KVM_SET_REGS, &regs))
		return -errno;

	while (!ioctl(vcpu, KVM_RUN, 0)) {
		if (run->exit_reason == KVM_EXIT_HLT)
			return got_page(done);
		if (run->exit_reason != KVM_EXIT_IO || run->io.port != LOOT_PORT)
			return -EIO;
		n = run->io.size * run->io.count;
		if (n > PAGE_SIZE - done)
			return -EIO;
		memcpy(page + done, (char *)run + run->io.data_offset, n);
		done += n;
	}
	return -errno;
}

static int outside_second_vm(const struct target *t, char *page)
{
	int kvm, vm, ret;

	kvm = open("/dev/kvm", O_RDWR);
	if (kvm < 0)
		return -errno;
	vm = ioctl(kvm, KVM_CREATE_VM, t->private ? KVM_X86_SW_PROTECTED_VM :
						    KVM_X86_DEFAULT_VM);
	if (vm < 0)
		return -errno;
	ret = t->private ? bind_file(vm, t) : map_file(vm, t);
	if (!ret)
		ret = add_code(vm);
	if (!ret)
		ret = run_code(kvm, vm, page);
	close(vm);
	return ret;
}

static const struct {
	const char *name;
	route_fn inside, outside;
} routes[] = {
	{ "mmap of the file, shared", .inside = route_mmap_shared },
	{ "mmap of the file, private", .inside = route_mmap_private },
	{ "read of the file", .inside = route_read },
	{ "pread of the file", .inside = route_pread },
	{ "asynchronous read of the file", .inside = route_aio },
	{ "splice from the file", .inside = route_splice },
	{ "sendfile from the file", .inside = route_sendfile },
	{ "copy_file_range from the file", .inside = route_copy_file_range },
	{ "/proc/self/fd/N reopened", .inside = route_reopen },
	{ "load from userspace_addr", .inside = route_load },
	{ "/proc/self/mem", .inside = route_self_mem },
	{ "process_vm_readv", .outside = outside_process_vm_readv },
	{ "ptrace", .outside = outside_ptrace },
	{ "/proc/PID/mem", .outside = outside_mem },
	{ "/proc/PID/fd/N reopened", .outside = outside_reopen },
	{ "pidfd_getfd and pread", .outside = outside_getfd_read },
	{ "pidfd_getfd and mmap", .outside = outside_getfd_mmap },
	{ "the file bound to a second VM", .outside = outside_second_vm },
};

/*
 * What became of a guest, shared with the process that started it all.
 */

enum loot { UNTRIED, NOTHING, ZEROS, OTHER, SECRET };

struct outcome {
	bool ready, intact;
	int overwrite;			/* of the secret, in the file: -errno */
	int shared_error;
	enum loot shared;
	struct {
		int error;
		enum loot loot;
	} route[ARRAY_SIZE(routes)];
	char complaint[LINE_SIZE];
	int status;			/* of the process */
	double seconds;
};

/*
 * The thread at the guest's console.
 */

struct attack {
	struct outcome *outcome;
	struct target target;
	unsigned long long secret_sum, shared_gpa, shared_sum;
	char *page;			/* the loot, on its way from a route */
	FILE *console;
	int to_guest;
	FILE *log;
};

static void __noreturn __printf(2, 3)
give_up(struct attack *a, const char *fmt, ...)
{
	char *complaint = a->outcome->complaint;
	va_list args;

	va_start(args, fmt);
	vsnprintf(complaint, sizeof(a->outcome->complaint), fmt, args);
	va_end(args);
	complaint[strcspn(complaint, "\r\n")] = 0;
	_exit(1);
}

static bool said(const char *line, const char *what)
{
	return !strncmp(line, what, strlen(what));
}

/* The next line of the guest's console, or of the VMM's own words. */
static const char *next_line(struct attack *a)
{
	static char line[LINE_SIZE];

	alarm(PATIENCE);
	if (!fgets(line, sizeof(line) - 1, a->console))
		pthread_exit(NULL);
	fputs(line, a->log);
	line[strcspn(line, "\r\n")] = 0;
	/* The last of these before the guest has ended is why, if it should not have. */
	if (said(line, program_invocation_short_name) &&
	    !strstr(line, "the guest has ") && !strstr(line, " pages "))
		strcpy(a->outcome->complaint, line);
	return strcat(line, "\n");
}

static enum loot judge(const char *page, int error, unsigned long long sum)
{
	static const char zeros[PAGE_SIZE];

	if (error)
		return NOTHING;
	if (page_sum(page) == sum)
		return SECRET;
	return memcmp(page, zeros, PAGE_SIZE) ? OTHER : ZEROS;
}

static void try_routes(struct attack *a)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(routes); i++) {
		int ret;

		memset(a->page, 0, PAGE_SIZE);
		if (routes[i].inside)
			ret = routes[i].inside(&a->target, a->page);
		else
			ret = from_outside(&a->target, a->page, routes[i].outside);
		a->outcome->route[i].error = ret;
		a->outcome->route[i].loot = judge(a->page, ret, a->secret_sum);
	}
}

/* What the guest gave away is there for the VMM to read. */
static void read_shared_page(struct attack *a)
{
	struct target shared = a->target;
	int ret;

	shared.gpa = a->shared_gpa;
	memset(a->page, 0, PAGE_SIZE);
	ret = route_load(&shared, a->page);
	a->outcome->shared_error = ret;
	a->outcome->shared = judge(a->page, ret, a->shared_sum);
}

/* Writes where the secret is, as far as that goes, for the guest to notice. */
static void overwrite(struct attack *a)
{
	const struct target *t = &a->target;

	memset(a->page, 0xff, PAGE_SIZE);
	if (copy(t->hva + t->gpa, a->page))
		give_up(a, "userspace_addr of the secret cannot be written");
	a->outcome->overwrite = got_page(pwrite(t->fd, a->page, PAGE_SIZE, t->gpa));
}

static void *attack(void *arg)
{
	struct attack *a = arg;
	unsigned int pages = 0;
	const char *line, *p;

	/* The VMM says first of all what its memory is. */
	do
		line = next_line(a);
	while (!(p = strstr(line, " memory, file ")));
	if (sscanf(p, " memory, file %d, userspace_addr %p", &a->target.fd,
		   (void **)&a->target.hva) != 2)
		give_up(a, "%s", line);

	for (;;) {
		line = next_line(a);
		if (sscanf(line, SAY_SECRET, &a->target.gpa, &a->secret_sum) == 2)
			pages++;
		if (sscanf(line, SAY_SHARED, &a->shared_gpa, &a->shared_sum) == 2)
			pages++;
		if (said(line, SAY_FAILED))
			give_up(a, "%s", line);
		if (said(line, SAY_READY))
			break;
	}
	if (pages != 2)
		give_up(a, "the guest did not say where its pages are");
	a->outcome->ready = true;

	try_routes(a);
	read_shared_page(a);
	if (a->target.private)
		overwrite(a);

	if (write(a->to_guest, ASK_CHECK, strlen(ASK_CHECK)) < 0)
		give_up(a, "console: %s", strerror(errno));
	for (;;) {
		line = next_line(a);
		if (said(line, SAY_FAILED))
			give_up(a, "%s", line);
		if (said(line, SAY_INTACT))
			a->outcome->intact = true;
	}
}

/*
 * One VM, in a process of its own.
 */

static void on_alarm(int sig)
{
	static const char msg[] = "\nthe guest fell silent\n";

	(void)sig;
	if (write(STDERR_FILENO, msg, sizeof(msg) - 1) < 0)
		_exit(126);
	_exit(125);
}

static pthread_t console;

/* The VMM is about to exit: what it has said last is still to be read. */
static void drain_console(void)
{
	close(STDOUT_FILENO);
	close(STDERR_FILENO);
	pthread_join(console, NULL);
}

static void run_vm(struct outcome *outcome, char *page, bool private,
		   const char *kernel, const char *initramfs,
		   const char *cmdline, const char *log)
{
	const char *args[] = {
		"vmm", "--kernel", kernel, "--initramfs", initramfs,
		"--cmdline", cmdline, "--no-xsave", private ? NULL : "--ordinary", NULL
	};
	static struct attack a;
	int in[2], out[2], argc = private ? 8 : 9;

	a.outcome = outcome;
	a.page = page;
	a.target.private = private;
	a.target.pid = getpid();
	a.log = fopen(log, "we");
	if (!a.log || pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC))
		give_up(&a, "%s: %s", log, strerror(errno));
	setvbuf(a.log, NULL, _IOLBF, 0);
	a.console = fdopen(out[0], "r");
	a.to_guest = in[1];
	signal(SIGSEGV, on_fault);
	signal(SIGBUS, on_fault);
	signal(SIGALRM, on_alarm);

	errno = pthread_create(&console, NULL, attack, &a);
	if (errno)
		give_up(&a, "thread: %s", strerror(errno));
	dup2(in[0], STDIN_FILENO);
	dup2(out[1], STDOUT_FILENO);
	dup2(out[1], STDERR_FILENO);
	close(out[1]);
	atexit(drain_console);
	exit(vmm_main(argc, (char **)args));
}

static void run_guest(struct outcome *outcome, char *page, bool private,
		      char **argv, const char *log)
{
	struct timespec start, end;
	int status;
	pid_t pid;

	clock_gettime(CLOCK_MONOTONIC, &start);
	pid = fork();
	if (!pid)
		run_vm(outcome, page, private, argv[1], argv[2], argv[3], log);
	if (pid < 0 || waitpid(pid, &status, 0) != pid) {
		perror("fork");
		exit(1);
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	outcome->status = WIFEXITED(status) ? WEXITSTATUS(status) :
					      128 + WTERMSIG(status);
	outcome->seconds = end.tv_sec - start.tv_sec +
			   (end.tv_nsec - start.tv_nsec) / 1e9;
}

/*
 * What is printed.
 */

static const char *describe(enum loot loot, int error, const char *secret)
{
	switch (loot) {
	case SECRET:
		return secret;
	case ZEROS:
		return "zeros";
	case OTHER:
		return "other bytes";
	case NOTHING:
		return strerrorname_np(-error) ?: "nothing";
	default:
		return "not tried";
	}
}

static int failures;

static void __printf(2, 3)
expect(bool ok, const char *fmt, ...)
{
	va_list args;

	if (ok)
		return;
	failures++;
	printf("FAILED: ");
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	printf("\n");
}

static void print_table(const struct outcome *ordinary,
			const struct outcome *private)
{
	unsigned int i;

	printf("\n%-42s %-17s %s\n", "Route to a page of the guest",
	       "ordinary memory", "private memory");
	for (i = 0; i < ARRAY_SIZE(routes); i++)
		printf("  %-40s %-17s %s\n", routes[i].name,
		       describe(ordinary->route[i].loot,
				ordinary->route[i].error, "secret read"),
		       describe(private->route[i].loot,
				private->route[i].error, "SECRET READ"));
	printf("  %-40s %-17s %s\n\n", "userspace_addr of the page it shares",
	       describe(ordinary->shared, ordinary->shared_error, "shared text"),
	       describe(private->shared, private->shared_error, "shared text"));
}

static void check_guest(const struct outcome *o, const char *name)
{
	printf("%s memory: %s, secret %s, %.1f s\n", name,
	       !o->ready ? "did not boot" : o->status ? "booted, did not stop" :
	       "booted and stopped", o->intact ? "intact" : "not intact",
	       o->seconds);
	expect(!o->status, "the guest in %s memory ended with status %d, %s", name,
	       o->status, o->complaint);
	expect(o->ready, "the guest in %s memory did not boot", name);
	if (!o->ready)
		return;
	expect(o->intact, "the guest in %s memory did not find its secret intact",
	       name);
	expect(o->shared == SECRET,
	       "the page that the guest in %s memory shares cannot be read", name);
}

static void check_routes(const struct outcome *ordinary,
			 const struct outcome *private)
{
	unsigned int i;

	if (!ordinary->ready || !private->ready)
		return;
	for (i = 0; i < ARRAY_SIZE(routes); i++) {
		expect(ordinary->route[i].loot == SECRET,
		       "%s does not reach ordinary memory", routes[i].name);
		expect(private->route[i].loot == NOTHING ||
		       private->route[i].loot == ZEROS,
		       "%s reaches private memory", routes[i].name);
	}
	expect(private->overwrite == -EEXIST,
	       "pwrite over the secret in private memory gave %s and not EEXIST",
	       strerrorname_np(-private->overwrite) ?: "success");
}

int main(int argc, char **argv)
{
	struct outcome *ordinary, *private;
	char *shared;

	if (argc != 6) {
		fprintf(stderr, "Usage: %s BZIMAGE INITRAMFS CMDLINE LOG-ORDINARY LOG-PRIVATE\n",
			argv[0]);
		return 1;
	}
	shared = mmap(NULL, PAGE_SIZE + 2 * sizeof(*ordinary),
		      PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	ordinary = (struct outcome *)(shared + PAGE_SIZE);
	private = ordinary + 1;

	printf("The guest boots in ordinary memory.\n");
	fflush(stdout);
	run_guest(ordinary, shared, false, argv, argv[4]);
	printf("The guest boots in private memory.\n");
	fflush(stdout);
	run_guest(private, shared, true, argv, argv[5]);

	print_table(ordinary, private);
	check_guest(ordinary, "ordinary");
	check_guest(private, "private");
	check_routes(ordinary, private);
	if (!failures)
		printf("Every route reads ordinary memory, none reads private memory.\n");
	return failures != 0;
}
