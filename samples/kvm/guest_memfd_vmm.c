// SPDX-License-Identifier: GPL-2.0-only
/*
 * A small VMM that boots Linux in memory that the VMM itself cannot read.
 *
 * All of the guest's RAM is one guest_memfd, and all of it starts out private.
 * The kernel, its initramfs and what the boot protocol wants beside them are
 * put there with pwrite(2), which fills pages that the file does not have yet
 * and can neither overwrite nor read back any that it has. From then on the
 * VMM sees what the guest shares with it, and nothing else.
 *
 * Three numbers are the same for every byte of RAM: the guest physical address,
 * the offset in the file, and the offset in the mapping that holds what is
 * shared. Holes in the guest's physical memory are thus holes in both, which
 * cost nothing, and huge pages line up.
 *
 *	0x00010000	struct boot_area: what the boot protocol asks for
 *	0x000a0000	the legacy VGA hole
 *	0x000e0000	the ACPI tables, and zeros where a PC has its BIOS: Linux looks
 *			for more tables there, byte by byte, which as a hole takes long
 *	0x00100000	high memory
 *	pref_address	the kernel, 16 MiB unless configured otherwise
 *	top of RAM	the initramfs, below 3 GiB
 *	0xc0000000	a hole for devices, to 4 GiB; the rest of RAM goes above it
 *
 * With --ordinary the same guest runs the same way in memory that is not
 * private: the file is a memfd, and its mapping is the guest's RAM.
 *
 * This file has the VM, its memory and its processors; linux.c has the kernel and
 * the boot protocol, acpi.c what the kernel learns about the machine from, serial.c
 * the console, and stats.c what KVM has counted.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <stdnoreturn.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/kvm_para.h>

#include "vmm.h"

/* What KVM wants for itself on VT-x lies in the hole for devices. */
#define IDENTITY_MAP	0xfffbc000ULL
#define TSS_ADDR	0xfffbd000UL

#define HUGE_PAGE_SIZE	(2 * MIB)

#define MIN_MEMORY_MIB	2
#define MAX_MEMORY_MIB	(512 * 1024)

/*
 * The VM and its memory.
 */

static int open_kvm(const struct options *opts)
{
	static const struct {
		int cap;
		int value;	/* bits that must be there */
		const char *what;
	} needed[] = {
		{ KVM_CAP_GUEST_MEMFD, 1, "guest_memfd" },
		{ KVM_CAP_USER_MEMORY2, 1, "KVM_SET_USER_MEMORY_REGION2" },
		{ KVM_CAP_MEMORY_ATTRIBUTES, KVM_MEMORY_ATTRIBUTE_PRIVATE,
		  "private memory" },
		{ KVM_CAP_MEMORY_FAULT_INFO, 1, "KVM_EXIT_MEMORY_FAULT" },
		{ KVM_CAP_VM_TYPES, 1 << KVM_X86_SW_PROTECTED_VM,
		  "software-protected VMs" },
		{ KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE,
		  "KVM_HC_MAP_GPA_RANGE" },
	};
	unsigned int i;
	int kvm;

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		err(EXIT_VMM, "/dev/kvm");
	if (ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		errx(EXIT_VMM, "/dev/kvm: not a KVM that I know");
	i = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
	if (opts->cpus > i)
		errx(EXIT_VMM, "KVM on this host has %u processors for a guest, not %u",
		     i, opts->cpus);
	if (opts->ordinary)
		return kvm;

	for (i = 0; i < ARRAY_SIZE(needed); i++) {
		int value = ioctl(kvm, KVM_CHECK_EXTENSION, needed[i].cap);

		if (value < 0 || (value & needed[i].value) != needed[i].value)
			errx(EXIT_VMM, "KVM on this host has no %s: only --ordinary works here",
			     needed[i].what);
	}
	if (opts->huge_pages &&
	    !(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_FLAGS) &
	      KVM_GUEST_MEMFD_ALLOW_HUGEPAGE))
		errx(EXIT_VMM, "KVM on this host has no huge pages for private memory");
	return kvm;
}

static void add_ram(struct vm *vm, __u64 start, __u64 end)
{
	vm->ram[vm->nr_ram++] = (struct range) { start, end };
}

static bool is_ram(const struct vm *vm, __u64 gpa, __u64 size)
{
	unsigned int i;

	for (i = 0; i < vm->nr_ram; i++) {
		const struct range *r = &vm->ram[i];

		if (gpa >= r->start && gpa < r->end && size <= r->end - gpa)
			return true;
	}
	return false;
}

static int set_private(struct vm *vm, __u64 gpa, __u64 size, bool private)
{
	struct kvm_memory_attributes attributes = {
		.address = gpa,
		.size = size,
		.attributes = private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
	};

	return ioctl(vm->fd, KVM_SET_MEMORY_ATTRIBUTES, &attributes);
}

static void add_slot(struct vm *vm, unsigned int slot, const struct range *r)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = slot,
		.guest_phys_addr = r->start,
		.memory_size = r->end - r->start,
		.userspace_addr = (unsigned long)vm->shared + r->start,
	};
	/* The first version of the ioctl takes a prefix of the second's. */
	unsigned long cmd = KVM_SET_USER_MEMORY_REGION;

	if (vm->private) {
		region.flags = KVM_MEM_GUEST_MEMFD;
		region.guest_memfd = vm->ram_fd;
		region.guest_memfd_offset = r->start;
		cmd = KVM_SET_USER_MEMORY_REGION2;
	}
	if (ioctl(vm->fd, cmd, &region))
		err(EXIT_VMM, "memory slot at %#llx", r->start);
	if (vm->private && set_private(vm, r->start, r->end - r->start, true))
		err(EXIT_VMM, "KVM_SET_MEMORY_ATTRIBUTES");
}

/*
 * What the guest shares with a VMM is memory of the VMM's own: it has no page
 * before either of them touches one. It begins where a huge page can.
 */
static void map_memory(struct vm *vm, __u64 size)
{
	int flags = MAP_FIXED | MAP_NORESERVE;
	char *p;

	p = mmap(NULL, size + HUGE_PAGE_SIZE, PROT_NONE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p != MAP_FAILED) {
		p += -(unsigned long)p % HUGE_PAGE_SIZE;
		flags |= vm->private ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
		p = mmap(p, size, PROT_READ | PROT_WRITE, flags,
			 vm->private ? -1 : vm->ram_fd, 0);
	}
	if (p == MAP_FAILED)
		err(EXIT_VMM, "mapping of %llu MiB", size / MIB);
	vm->shared = p;
	if (!vm->private && vm->opts.huge_pages && madvise(p, size, MADV_HUGEPAGE))
		err(EXIT_VMM, "huge pages");
}

static void create_memory(struct vm *vm, __u64 memory)
{
	__u64 size = memory;
	unsigned int i;

	add_ram(vm, 0, VGA_HOLE);
	if (memory <= DEVICE_HOLE) {
		add_ram(vm, BIOS_AREA, memory);
	} else {
		size += DEVICE_HOLE_END - DEVICE_HOLE;
		add_ram(vm, BIOS_AREA, DEVICE_HOLE);
		add_ram(vm, DEVICE_HOLE_END, size);
	}

	if (vm->private) {
		struct kvm_create_guest_memfd create = {
			.size = size,
			.flags = vm->opts.huge_pages ? KVM_GUEST_MEMFD_ALLOW_HUGEPAGE : 0,
		};

		vm->ram_fd = ioctl(vm->fd, KVM_CREATE_GUEST_MEMFD, &create);
		if (vm->ram_fd < 0)
			err(EXIT_VMM, "KVM_CREATE_GUEST_MEMFD");
	} else {
		vm->ram_fd = memfd_create("guest-ram", MFD_CLOEXEC);
		if (vm->ram_fd < 0 || ftruncate(vm->ram_fd, size))
			err(EXIT_VMM, "memfd of %llu MiB", size / MIB);
	}

	map_memory(vm, size);
	for (i = 0; i < vm->nr_ram; i++)
		add_slot(vm, i, &vm->ram[i]);
}

static void create_vm(struct vm *vm, int kvm)
{
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
	struct kvm_enable_cap hypercall = {
		.cap = KVM_CAP_EXIT_HYPERCALL,
		.args[0] = 1 << KVM_HC_MAP_GPA_RANGE,
	};
	__u64 identity_map = IDENTITY_MAP;

	vm->fd = ioctl(kvm, KVM_CREATE_VM, vm->private ?
		       KVM_X86_SW_PROTECTED_VM : KVM_X86_DEFAULT_VM);
	if (vm->fd < 0)
		err(EXIT_VMM, "KVM_CREATE_VM");
	vm->stats_fd = open_stats(vm->fd);
	if (ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map))
		err(EXIT_VMM, "KVM_SET_IDENTITY_MAP_ADDR");
	if (ioctl(vm->fd, KVM_SET_TSS_ADDR, TSS_ADDR))
		err(EXIT_VMM, "KVM_SET_TSS_ADDR");
	if (ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0))
		err(EXIT_VMM, "KVM_CREATE_IRQCHIP");
	if (ioctl(vm->fd, KVM_CREATE_PIT2, &pit))
		err(EXIT_VMM, "KVM_CREATE_PIT2");
	if (vm->private && ioctl(vm->fd, KVM_ENABLE_CAP, &hypercall))
		err(EXIT_VMM, "KVM_CAP_EXIT_HYPERCALL");
}

/*
 * This is all that a VMM can do to a guest_memfd's contents: a page that the file
 * has already is EEXIST, and a write that meets one is cut short before it.
 */
void fill_ram(struct vm *vm, __u64 gpa, const void *pages, __u64 size)
{
	if (!vm->private) {
		memcpy(vm->shared + gpa, pages, size);
		return;
	}
	while (size) {
		ssize_t n = pwrite(vm->ram_fd, pages, size, gpa);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			err(EXIT_VMM, "RAM at %#llx", gpa);
		pages += n;
		size -= n;
		gpa += n;
	}
}

/*
 * The processor.
 */

#define MAX_CPUID_ENTRIES	256

/* What a processor has no use for unless XSAVE switches its state. */
static void hide_xsave(struct kvm_cpuid_entry2 *e)
{
	switch (e->function) {
	case 1:
		/* XSAVE, OSXSAVE, AVX, F16C, FMA */
		e->ecx &= ~(1U << 26 | 1U << 27 | 1U << 28 | 1U << 29 | 1U << 12);
		break;
	case 7:
		if (e->index == 0) {
			/* AVX2; AVX-512 F, DQ, IFMA, PF, ER, CD, BW, VL */
			e->ebx &= ~(1U << 5 | 1U << 16 | 1U << 17 | 1U << 21 |
				    7U << 26 | 3U << 30);
			/* AVX-512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ; PKU, VAES, VPCLMULQDQ */
			e->ecx &= ~(1U << 1 | 1U << 6 | 1U << 11 | 1U << 12 | 1U << 14 |
				    1U << 3 | 1U << 9 | 1U << 10);
			/* AVX-512 4VNNIW, 4FMAPS, VP2INTERSECT, FP16; AMX */
			e->edx &= ~(1U << 2 | 1U << 3 | 1U << 8 | 1U << 23 |
				    1U << 22 | 3U << 24);
		} else {
			e->eax &= ~(1U << 4 | 1U << 5);	/* AVX-VNNI, AVX-512 BF16 */
		}
		break;
	case 0xd:
		e->eax = 0;
		e->ebx = 0;
		e->ecx = 0;
		e->edx = 0;
		break;
	case 0x80000001:
		e->ecx &= ~(1U << 11 | 1U << 16);	/* XOP, FMA4 */
		break;
	}
}

static void set_cpuid(struct vcpu *vcpu, int kvm)
{
	struct vm *vm = vcpu->vm;
	struct kvm_cpuid2 *cpuid;
	unsigned int i;

	cpuid = calloc(1, sizeof(*cpuid) +
		       MAX_CPUID_ENTRIES * sizeof(cpuid->entries[0]));
	if (!cpuid)
		err(EXIT_VMM, "CPUID");
	cpuid->nent = MAX_CPUID_ENTRIES;
	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid))
		err(EXIT_VMM, "KVM_GET_SUPPORTED_CPUID");

	for (i = 0; i < cpuid->nent; i++) {
		struct kvm_cpuid_entry2 *e = &cpuid->entries[i];

		switch (e->function) {
		case 1:
			e->ebx = (e->ebx & 0x00ffffff) | vcpu->id << 24;
			e->ecx |= 1U << 31;	/* a hypervisor is there */
			/* What KVM has with an APIC of its own, and does not list. */
			if (ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0)
				e->ecx |= 1U << 24;
			break;
		case 0xb:
		case 0x1f:
			e->edx = vcpu->id;	/* of its x2APIC */
			break;
		case KVM_CPUID_FEATURES:
			/* This is how a guest learns that it may convert. */
			if (vm->private)
				e->eax |= 1 << KVM_FEATURE_MIGRATION_CONTROL;
			break;
		}
		if (!vm->opts.xsave)
			hide_xsave(e);
	}
	if (ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid))
		err(EXIT_VMM, "KVM_SET_CPUID2");
	free(cpuid);
}

/* All but the first wait for it to wake them up, as KVM's APICs have it. */
static void create_vcpu(struct vm *vm, unsigned int id, int kvm)
{
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct vcpu *vcpu = &vm->vcpus[id];

	vcpu->vm = vm;
	vcpu->id = id;
	vcpu->fault.gpa = -1;
	vcpu->fd = ioctl(vm->fd, KVM_CREATE_VCPU, id);
	if (size < 0 || vcpu->fd < 0)
		err(EXIT_VMM, "KVM_CREATE_VCPU");
	vcpu->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED,
			 vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED)
		err(EXIT_VMM, "struct kvm_run");
	vcpu->stats_fd = open_stats(vcpu->fd);
	set_cpuid(vcpu, kvm);
}

/*
 * Conversions between private and shared.
 */

/*
 * The kind is changed first: from then on the guest has no way to the half that
 * it gave up, and what that held can go.
 */
static bool change_kind(struct vm *vm, __u64 gpa, __u64 size, bool private)
{
	if (!is_ram(vm, gpa, size) || set_private(vm, gpa, size, private))
		return false;
	if (private)
		return !madvise(vm->shared + gpa, size, MADV_DONTNEED);
	return !fallocate(vm->ram_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			  gpa, size);
}

/* One after the other, or what goes might be the half that has just come into use. */
static bool convert(struct vm *vm, __u64 gpa, __u64 size, bool private)
{
	bool done;

	pthread_mutex_lock(&vm->convert_lock);
	done = change_kind(vm, gpa, size, private);
	pthread_mutex_unlock(&vm->convert_lock);
	return done;
}

/* Explicit: the guest asks. It is told when it cannot have what it asks for. */
static void handle_hypercall(struct vcpu *vcpu)
{
	struct vm *vm = vcpu->vm;
	__u64 gpa = vcpu->run->hypercall.args[0];
	__u64 npages = vcpu->run->hypercall.args[1];
	__u64 attributes = vcpu->run->hypercall.args[2];

	if (vcpu->run->hypercall.nr != KVM_HC_MAP_GPA_RANGE) {
		vcpu->run->hypercall.ret = -KVM_ENOSYS;
	} else if (npages > (1ULL << 40) ||
		   !convert(vm, gpa, npages * PAGE_SIZE,
			    attributes & KVM_MAP_GPA_RANGE_ENCRYPTED)) {
		vcpu->run->hypercall.ret = -KVM_EINVAL;
	} else {
		vcpu->run->hypercall.ret = 0;
		__atomic_fetch_add(&vm->explicit, 1, __ATOMIC_RELAXED);
		vcpu->fault.gpa = -1;
	}
}

/*
 * Implicit: the guest has touched a page as what it is not, and KVM tells what
 * it took it for. The access is made again afterwards; when that gives the same
 * exit, converting is not what it takes.
 */
static void handle_memory_fault(struct vcpu *vcpu)
{
	struct vm *vm = vcpu->vm;
	__u64 gpa = vcpu->run->memory_fault.gpa;
	__u64 size = vcpu->run->memory_fault.size;
	__u64 flags = vcpu->run->memory_fault.flags;
	bool private = flags & KVM_MEMORY_EXIT_FLAG_PRIVATE;

	if ((vcpu->fault.gpa == gpa && vcpu->fault.flags == flags) ||
	    !convert(vm, gpa, size, private))
		errx(EXIT_VMM, "no %s memory at %#llx",
		     private ? "private" : "shared", gpa);
	vcpu->fault.gpa = gpa;
	vcpu->fault.flags = flags;
	__atomic_fetch_add(&vm->implicit, 1, __ATOMIC_RELAXED);
}

/*
 * The guest runs.
 */

/* Resets the machine: by the keyboard controller, or as PCI chipsets do. */
static bool is_reset(__u16 port, __u8 value)
{
	return (port == 0x64 && value == 0xfe) ||
	       (port == 0xcf9 && value & 0x4);
}

/* The first processor that ends the guest ends the VMM. */
static noreturn void stop(struct vm *vm, const char *how, int status)
{
	pthread_mutex_lock(&vm->stop_lock);
	if (!vm->opts.quiet) {
		warnx("the guest has %s, %lu explicit and %lu implicit conversions", how,
		      vm->explicit, vm->implicit);
		print_stats(vm);
	}
	exit(status);
}

static void write_port(struct vm *vm, __u16 port, const __u8 *data, __u32 size)
{
	__u16 value = size == 1 ? *data : data[0] | data[1] << 8;

	if (is_acpi_port(port) && acpi_write(vm, port, value) == ACPI_POWER_OFF)
		stop(vm, "powered itself off", 0);
	if (is_reset(port, *data))
		stop(vm, "reset itself", 0);
}

/* Ports without a device read as all ones. */
static void read_port(struct vm *vm, __u16 port, __u8 *data, __u32 size)
{
	__u16 value;

	memset(data, 0xff, size);
	if (is_acpi_port(port)) {
		value = acpi_read(vm, port);
		memcpy(data, &value, size < sizeof(value) ? size : sizeof(value));
	} else if (port == 0x64) {
		/* Ready for the command that resets the machine. */
		memset(data, 0, size);
	}
}

static void handle_io(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	bool is_write = run->io.direction == KVM_EXIT_IO_OUT;
	__u8 *data = (__u8 *)run + run->io.data_offset;
	__u16 port = run->io.port;
	__u32 i;

	for (i = 0; i < run->io.count; i++, data += run->io.size) {
		if (port >= SERIAL_PORT && port < SERIAL_PORT + 8)
			serial_access(vcpu->vm, is_write, port - SERIAL_PORT, data);
		else if (is_write)
			write_port(vcpu->vm, port, data, run->io.size);
		else
			read_port(vcpu->vm, port, data, run->io.size);
	}
}

static void *run_vcpu(void *arg)
{
	struct vcpu *vcpu = arg;
	struct kvm_run *run = vcpu->run;

	for (;;) {
		if (!ioctl(vcpu->fd, KVM_RUN, 0)) {
			switch (run->exit_reason) {
			case KVM_EXIT_IO:
				handle_io(vcpu);
				break;
			case KVM_EXIT_MMIO:
				if (!run->mmio.is_write)
					memset(run->mmio.data, 0xff, run->mmio.len);
				break;
			case KVM_EXIT_HYPERCALL:
				handle_hypercall(vcpu);
				break;
			case KVM_EXIT_SHUTDOWN:
				warnx("the guest's processor has shut down (triple fault)");
				stop(vcpu->vm, "crashed", EXIT_GUEST);
			case KVM_EXIT_FAIL_ENTRY:
				errx(EXIT_VMM, "the processor does not enter the guest: %#llx",
				     run->fail_entry.hardware_entry_failure_reason);
			case KVM_EXIT_INTERNAL_ERROR:
				errx(EXIT_VMM, "KVM gave up on the guest: suberror %u",
				     run->internal.suberror);
			default:
				errx(EXIT_VMM, "unknown exit %u", run->exit_reason);
			}
		} else if (errno == EFAULT &&
			   run->exit_reason == KVM_EXIT_MEMORY_FAULT) {
			handle_memory_fault(vcpu);
		} else if (errno != EINTR && errno != EAGAIN) {
			err(EXIT_VMM, "KVM_RUN");
		}
	}
}

/* A thread for each processor, this one for the first. */
static noreturn void run_guest(struct vm *vm)
{
	unsigned int i;
	pthread_t thread;

	for (i = 1; i < vm->opts.cpus; i++) {
		errno = pthread_create(&thread, NULL, run_vcpu, &vm->vcpus[i]);
		if (errno)
			err(EXIT_VMM, "thread");
	}
	run_vcpu(&vm->vcpus[0]);
	__builtin_unreachable();
}

/*
 * The command line.
 */

static void usage(FILE *f)
{
	fprintf(f,
		"Usage: %s --kernel BZIMAGE [OPTION...]\n"
		"Boots Linux in memory that belongs to the guest alone.\n"
		"\n"
		"  -k, --kernel FILE     bzImage with a 64-bit entry point\n"
		"  -i, --initramfs FILE  initramfs for it\n"
		"  -c, --cmdline TEXT    its command line (console=ttyS0 reboot=k panic=-1)\n"
		"  -m, --memory MIB      the guest's memory in MiB (256)\n"
		"  -p, --cpus N          its processors (1)\n"
		"  -H, --huge-pages      memory of 2 MiB pages, as far as the host has them\n"
		"  -x, --no-xsave        processors without XSAVE and what needs it: for hosts\n"
		"                        that are emulated, where it may not work in guests\n"
		"  -o, --ordinary        memory that the host can read, as ever\n"
		"  -q, --quiet           nothing but the guest's console, and errors\n"
		"  -h, --help            this text\n"
		"\n"
		"The guest's serial console is standard input and output. The exit code is\n"
		"0 when the guest has powered itself off or reset itself, 1 when it could not be run, and 2 when\n"
		"its processor has shut down.\n", program_invocation_short_name);
}

static unsigned long parse_number(const char *arg, const char *what, unsigned long min,
				  unsigned long max)
{
	unsigned long n;
	char *end;

	errno = 0;
	n = strtoul(arg, &end, 10);
	if (errno || end == arg || *end || *arg == '-' || n < min || n > max)
		errx(EXIT_VMM, "%s from %lu to %lu, not '%s'", what, min, max, arg);
	return n;
}

static void parse_options(struct options *opts, int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "kernel", required_argument, NULL, 'k' },
		{ "initramfs", required_argument, NULL, 'i' },
		{ "cmdline", required_argument, NULL, 'c' },
		{ "memory", required_argument, NULL, 'm' },
		{ "cpus", required_argument, NULL, 'p' },
		{ "huge-pages", no_argument, NULL, 'H' },
		{ "no-xsave", no_argument, NULL, 'x' },
		{ "ordinary", no_argument, NULL, 'o' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int c;

	*opts = (struct options) {
		.cmdline = "console=ttyS0 reboot=k panic=-1",
		.memory = 256 * MIB,
		.cpus = 1,
		.xsave = true,
	};
	opterr = 0;
	while ((c = getopt_long(argc, argv, ":k:i:c:m:p:Hxoqh", longopts, NULL)) != -1) {
		switch (c) {
		case 'k':
			opts->kernel = optarg;
			break;
		case 'i':
			opts->initramfs = optarg;
			break;
		case 'c':
			opts->cmdline = optarg;
			break;
		case 'm':
			opts->memory = MIB * parse_number(optarg, "memory is a number of MiB",
							  MIN_MEMORY_MIB, MAX_MEMORY_MIB);
			break;
		case 'p':
			opts->cpus = parse_number(optarg, "the processors are a number",
						  1, MAX_CPUS);
			break;
		case 'H':
			opts->huge_pages = true;
			break;
		case 'x':
			opts->xsave = false;
			break;
		case 'o':
			opts->ordinary = true;
			break;
		case 'q':
			opts->quiet = true;
			break;
		case 'h':
			usage(stdout);
			exit(0);
		case ':':
			errx(EXIT_VMM, "%s wants an argument, see --help",
			     argv[optind - 1]);
		default:
			errx(EXIT_VMM, "%s is not an option, see --help",
			     argv[optind - 1]);
		}
	}
	if (optind < argc)
		errx(EXIT_VMM, "%s is not an option, see --help", argv[optind]);
	if (!opts->kernel)
		errx(EXIT_VMM, "a kernel is needed, see --help");
}

int main(int argc, char **argv)
{
	static struct linux_images images;
	static struct vm vm = {
		.convert_lock = PTHREAD_MUTEX_INITIALIZER,
		.stop_lock = PTHREAD_MUTEX_INITIALIZER,
	};
	unsigned int i;
	int kvm;

	parse_options(&vm.opts, argc, argv);
	open_linux(&images, &vm.opts);

	kvm = open_kvm(&vm.opts);
	vm.private = !vm.opts.ordinary;
	create_vm(&vm, kvm);
	create_memory(&vm, vm.opts.memory);
	load_linux(&vm, &images);
	load_acpi(&vm);
	for (i = 0; i < vm.opts.cpus; i++)
		create_vcpu(&vm, i, kvm);
	start_linux(&vm.vcpus[0], &images);
	start_serial(&vm);

	if (!vm.opts.quiet)
		warnx("%llu MiB of %s memory, file %d, userspace_addr %p",
		      vm.opts.memory / MIB, vm.private ? "private" : "ordinary",
		      vm.ram_fd, vm.shared);
	run_guest(&vm);
}
