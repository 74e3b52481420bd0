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
 *	0x000a0000	the legacy VGA and BIOS hole, to 1 MiB
 *	pref_address	the kernel, 16 MiB unless configured otherwise
 *	top of RAM	the initramfs, below 3 GiB
 *	0xc0000000	a hole for devices, to 4 GiB; the rest of RAM goes above it
 *
 * With --ordinary the same guest runs the same way in memory that is not
 * private: the file is a memfd, and its mapping is the guest's RAM.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <asm/bootparam.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include <linux/serial_reg.h>

#define PAGE_SIZE	4096ULL
#define MIB		(1024ULL * 1024)
#define GIB		(1024 * MIB)

#define BOOT_AREA	0x10000ULL
#define VGA_HOLE	0xa0000ULL
#define VGA_HOLE_END	(1 * MIB)
#define DEVICE_HOLE	(3 * GIB)
#define DEVICE_HOLE_END	(4 * GIB)

/* What KVM wants for itself on VT-x lies in the hole for devices. */
#define IDENTITY_MAP	0xfffbc000ULL
#define TSS_ADDR	0xfffbd000UL

#define MIN_MEMORY_MIB	2
#define MAX_MEMORY_MIB	(512 * 1024)

/* Exit codes, besides 0 when the guest has reset itself. */
#define EXIT_VMM	1	/* what was asked for cannot be done */
#define EXIT_GUEST	2	/* the guest's processor has shut down */

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define PAGE_ALIGN(n)	(((n) + PAGE_SIZE - 1) & -PAGE_SIZE)

struct options {
	const char *kernel;
	const char *initramfs;
	const char *cmdline;
	__u64 memory;		/* bytes */
	bool ordinary;
	bool quiet;
};

/* A part of a file, and the guest physical address that it is loaded at. */
struct image {
	const char *path;
	int fd;
	__u64 offset;
	__u64 size;
	__u64 gpa;
};

struct range {
	__u64 start;
	__u64 end;
};

/* What the VMM hands to the kernel at its 64-bit entry point. */
struct boot_area {
	union {
		struct boot_params params;
		char params_page[PAGE_SIZE];
	};
	char cmdline[PAGE_SIZE];
	__u64 pml4[512];
	__u64 pdpt[512];
	__u64 pd[4][512];
	__u64 gdt[512];
};

#define BOOT_GPA(member)	(BOOT_AREA + offsetof(struct boot_area, member))

/* A 16550 on I/O port 0x3f8, interrupt 4. */
#define SERIAL_PORT	0x3f8
#define SERIAL_IRQ	4

struct serial {
	pthread_mutex_t lock;
	pthread_cond_t room;	/* rx has been emptied */
	__u8 ier, fcr, lcr, mcr, scr, dll, dlm;
	bool thre;		/* "transmitter empty" has not been told yet */
	bool irq;		/* level of the interrupt line */
	__u8 rx[16];
	unsigned int rx_len, rx_next;
};

struct vm {
	bool private;
	int fd;
	int ram_fd;
	char *shared;
	struct range ram[3];
	unsigned int nr_ram;
	__u64 entry;
	int vcpu_fd;
	struct kvm_run *run;
	struct serial serial;
	unsigned long explicit, implicit;	/* conversions */
	struct { __u64 gpa, flags; } fault;	/* the last, if nothing came after */
};

/*
 * The images. They are looked at before a VM is made, so that whoever gave a
 * wrong one hears about that and not about KVM.
 */

static void read_exactly(const struct image *image, void *buf, __u64 size,
			 __u64 offset)
{
	while (size) {
		ssize_t n = pread(image->fd, buf, size, offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			err(EXIT_VMM, "%s", image->path);
		if (n == 0)
			errx(EXIT_VMM, "%s: truncated", image->path);
		buf += n;
		size -= n;
		offset += n;
	}
}

static void open_image(struct image *image, const char *path)
{
	struct stat st;

	/* Without O_NONBLOCK a FIFO would not be told apart, but waited for. */
	image->path = path;
	image->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (image->fd < 0 || fstat(image->fd, &st))
		err(EXIT_VMM, "%s", path);
	if (!S_ISREG(st.st_mode))
		errx(EXIT_VMM, "%s: not a regular file", path);
	if (!st.st_size)
		errx(EXIT_VMM, "%s: empty", path);
	image->offset = 0;
	image->size = st.st_size;
}

/*
 * A bzImage is boot sectors, which a 64-bit boot does without except for the
 * header in them, and the kernel proper. See Documentation/x86/boot.rst.
 */
static void open_kernel(struct image *kernel, const char *path,
			struct setup_header *hdr)
{
	const __u64 start = offsetof(struct boot_params, hdr);
	__u64 file_size, hdr_size;

	open_image(kernel, path);
	file_size = kernel->size;
	if (file_size < start + sizeof(*hdr))
		errx(EXIT_VMM, "%s: too short for a bzImage", path);
	read_exactly(kernel, hdr, sizeof(*hdr), start);
	if (hdr->boot_flag != 0xaa55 || memcmp(&hdr->header, "HdrS", 4))
		errx(EXIT_VMM, "%s: not a bzImage", path);
	if (hdr->version < 0x20c || !(hdr->xloadflags & XLF_KERNEL_64))
		errx(EXIT_VMM, "%s: no 64-bit entry point", path);

	/* The header ends where its first jump leads, and code follows. */
	hdr_size = offsetof(struct setup_header, header) + (hdr->jump >> 8);
	if (hdr_size < sizeof(*hdr))
		memset((char *)hdr + hdr_size, 0, sizeof(*hdr) - hdr_size);

	kernel->offset = ((hdr->setup_sects ?: 4) + 1) * 512;
	kernel->size = hdr->syssize * 16ULL;
	kernel->gpa = hdr->pref_address;
	if (kernel->offset + kernel->size > file_size)
		errx(EXIT_VMM, "%s: truncated, %llu bytes of %llu", path,
		     file_size, kernel->offset + kernel->size);
	if (kernel->size > hdr->init_size || kernel->gpa % PAGE_SIZE ||
	    kernel->gpa < VGA_HOLE_END || kernel->gpa >= DEVICE_HOLE)
		errx(EXIT_VMM, "%s: makes no sense as a bzImage", path);
}

/* Finds the initramfs a place as high as the kernel and the holes allow. */
static void place_images(struct image *kernel, struct image *initramfs,
			 const struct setup_header *hdr,
			 const struct options *opts)
{
	__u64 kernel_end = kernel->gpa + PAGE_ALIGN(hdr->init_size);
	__u64 top = opts->memory < DEVICE_HOLE ? opts->memory : DEVICE_HOLE;

	if (kernel_end > top)
		errx(EXIT_VMM, "%s: needs %llu MiB of memory, there are %llu",
		     kernel->path, (kernel_end + MIB - 1) / MIB, top / MIB);
	if (!initramfs->path)
		return;
	if (top > hdr->initrd_addr_max)
		top = hdr->initrd_addr_max & -PAGE_SIZE;
	if (kernel_end > top || PAGE_ALIGN(initramfs->size) > top - kernel_end)
		errx(EXIT_VMM, "%s: does not fit into %llu MiB of memory beside the kernel",
		     initramfs->path, opts->memory / MIB);
	initramfs->gpa = top - PAGE_ALIGN(initramfs->size);
}

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
	if (opts->ordinary)
		return kvm;

	for (i = 0; i < ARRAY_SIZE(needed); i++) {
		int value = ioctl(kvm, KVM_CHECK_EXTENSION, needed[i].cap);

		if (value < 0 || (value & needed[i].value) != needed[i].value)
			errx(EXIT_VMM, "KVM on this host has no %s: only --ordinary works here",
			     needed[i].what);
	}
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

static void create_memory(struct vm *vm, __u64 memory)
{
	__u64 size = memory;
	unsigned int i;

	add_ram(vm, 0, VGA_HOLE);
	if (memory <= DEVICE_HOLE) {
		add_ram(vm, VGA_HOLE_END, memory);
	} else {
		size += DEVICE_HOLE_END - DEVICE_HOLE;
		add_ram(vm, VGA_HOLE_END, DEVICE_HOLE);
		add_ram(vm, DEVICE_HOLE_END, size);
	}

	if (vm->private) {
		struct kvm_create_guest_memfd create = { .size = size };

		vm->ram_fd = ioctl(vm->fd, KVM_CREATE_GUEST_MEMFD, &create);
		if (vm->ram_fd < 0)
			err(EXIT_VMM, "KVM_CREATE_GUEST_MEMFD");
	} else {
		vm->ram_fd = memfd_create("guest-ram", MFD_CLOEXEC);
		if (vm->ram_fd < 0 || ftruncate(vm->ram_fd, size))
			err(EXIT_VMM, "memfd of %llu MiB", size / MIB);
	}

	/*
	 * What the guest shares with a VMM is memory of the VMM's own: it has no
	 * page before either of them touches one.
	 */
	vm->shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_NORESERVE |
			  (vm->private ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED),
			  vm->private ? -1 : vm->ram_fd, 0);
	if (vm->shared == MAP_FAILED)
		err(EXIT_VMM, "mapping of %llu MiB", size / MIB);

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
 * Puts whole pages into RAM that nobody has touched yet. This is all that a VMM
 * can do to a guest_memfd's contents: a page that the file has already is EEXIST,
 * and a write that meets one is cut short before it.
 */
static void fill_ram(struct vm *vm, __u64 gpa, const void *pages, __u64 size)
{
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

static void load_image(struct vm *vm, const struct image *image)
{
	static char buf[MIB];
	__u64 done, n;

	for (done = 0; done < image->size; done += n) {
		n = image->size - done;
		if (n > sizeof(buf))
			n = sizeof(buf);
		read_exactly(image, buf, n, image->offset + done);
		memset(buf + n, 0, PAGE_ALIGN(n) - n);
		fill_ram(vm, image->gpa + done, buf, PAGE_ALIGN(n));
	}
}

static void load_boot_area(struct vm *vm, const struct setup_header *hdr,
			   const struct image *initramfs, const char *cmdline)
{
	static struct boot_area area;
	struct boot_params *params = &area.params;
	unsigned int i;

	params->hdr = *hdr;
	params->hdr.type_of_loader = 0xff;
	params->hdr.cmd_line_ptr = BOOT_GPA(cmdline);
	params->hdr.ramdisk_image = initramfs->gpa;
	params->hdr.ramdisk_size = initramfs->size;
	for (i = 0; i < vm->nr_ram; i++) {
		params->e820_table[i] = (struct boot_e820_entry) {
			.addr = vm->ram[i].start,
			.size = vm->ram[i].end - vm->ram[i].start,
			.type = 1,
		};
	}
	params->e820_entries = vm->nr_ram;
	strcpy(area.cmdline, cmdline);

	/* The first 4 GiB, each at its own address: 2 MiB pages, P, RW and PS. */
	area.pml4[0] = BOOT_GPA(pdpt) | 3;
	for (i = 0; i < 4; i++)
		area.pdpt[i] = BOOT_GPA(pd[i]) | 3;
	for (i = 0; i < 4 * 512; i++)
		area.pd[i / 512][i % 512] = i * 2 * MIB | 0x83;

	/* The boot protocol's selectors: 0x10 for code, 0x18 for data. */
	area.gdt[2] = 0x00af9b000000ffffULL;
	area.gdt[3] = 0x00cf93000000ffffULL;

	fill_ram(vm, BOOT_AREA, &area, sizeof(area));
}

/*
 * The processor.
 */

#define MAX_CPUID_ENTRIES	256

static void set_cpuid(struct vm *vm, int kvm)
{
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
			e->ebx &= 0x00ffffff;	/* APIC id 0 */
			e->ecx |= 1U << 31;	/* a hypervisor is there */
			break;
		case 0xb:
		case 0x1f:
			e->edx = 0;		/* x2APIC id 0 */
			break;
		case KVM_CPUID_FEATURES:
			/* This is how a guest learns that it may convert. */
			if (vm->private)
				e->eax |= 1 << KVM_FEATURE_MIGRATION_CONTROL;
			break;
		}
	}
	if (ioctl(vm->vcpu_fd, KVM_SET_CPUID2, cpuid))
		err(EXIT_VMM, "KVM_SET_CPUID2");
	free(cpuid);
}

/* In 64-bit mode at the kernel's entry point, with boot_params in RSI. */
static void set_registers(struct vm *vm)
{
	struct kvm_segment code = {
		.limit = 0xffffffff, .selector = 0x10, .type = 0xb,
		.present = 1, .s = 1, .l = 1, .g = 1,
	};
	struct kvm_segment data = {
		.limit = 0xffffffff, .selector = 0x18, .type = 0x3,
		.present = 1, .s = 1, .db = 1, .g = 1,
	};
	struct kvm_regs regs = {
		.rip = vm->entry,
		.rsi = BOOT_GPA(params),
		.rflags = 0x2,
	};
	struct kvm_sregs sregs;

	if (ioctl(vm->vcpu_fd, KVM_GET_SREGS, &sregs))
		err(EXIT_VMM, "KVM_GET_SREGS");
	sregs.cs = code;
	sregs.ds = data;
	sregs.es = data;
	sregs.fs = data;
	sregs.gs = data;
	sregs.ss = data;
	sregs.gdt.base = BOOT_GPA(gdt);
	sregs.gdt.limit = 4 * 8 - 1;
	sregs.cr3 = BOOT_GPA(pml4);
	sregs.cr4 = 1 << 5;			/* PAE */
	sregs.efer = 1 << 8 | 1 << 10;		/* LME, LMA */
	sregs.cr0 = 1U << 31 | 1 << 4 | 1;	/* PG, ET, PE */
	if (ioctl(vm->vcpu_fd, KVM_SET_SREGS, &sregs))
		err(EXIT_VMM, "KVM_SET_SREGS");
	if (ioctl(vm->vcpu_fd, KVM_SET_REGS, &regs))
		err(EXIT_VMM, "KVM_SET_REGS");
}

static void create_vcpu(struct vm *vm, int kvm)
{
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	vm->vcpu_fd = ioctl(vm->fd, KVM_CREATE_VCPU, 0);
	if (size < 0 || vm->vcpu_fd < 0)
		err(EXIT_VMM, "KVM_CREATE_VCPU");
	vm->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED,
		       vm->vcpu_fd, 0);
	if (vm->run == MAP_FAILED)
		err(EXIT_VMM, "struct kvm_run");
	set_cpuid(vm, kvm);
	set_registers(vm);
}

/*
 * The serial console: standard output, and standard input as far as there is
 * any. A terminal is left in the mode that it is in.
 */

static void serial_set_irq(struct vm *vm)
{
	struct serial *s = &vm->serial;
	bool level = (s->ier & UART_IER_RDI && s->rx_len) ||
		     (s->ier & UART_IER_THRI && s->thre);
	struct kvm_irq_level irq = { .irq = SERIAL_IRQ, .level = level };

	if (level == s->irq)
		return;
	s->irq = level;
	if (ioctl(vm->fd, KVM_IRQ_LINE, &irq))
		err(EXIT_VMM, "KVM_IRQ_LINE");
}

static __u8 serial_read_rx(struct serial *s)
{
	__u8 byte;

	if (!s->rx_len)
		return 0;
	byte = s->rx[s->rx_next++];
	if (s->rx_next == s->rx_len) {
		s->rx_len = 0;
		s->rx_next = 0;
		pthread_cond_signal(&s->room);
	}
	return byte;
}

static __u8 serial_read_iir(struct serial *s)
{
	__u8 fifo = s->fcr & UART_FCR_ENABLE_FIFO ? 0xc0 : 0;

	if (s->ier & UART_IER_RDI && s->rx_len)
		return fifo | UART_IIR_RDI;
	if (s->ier & UART_IER_THRI && s->thre) {
		s->thre = false;
		return fifo | UART_IIR_THRI;
	}
	return fifo | UART_IIR_NO_INT;
}

static __u8 serial_read(struct serial *s, unsigned int reg)
{
	bool dlab = s->lcr & UART_LCR_DLAB;

	switch (reg) {
	case UART_RX:
		return dlab ? s->dll : serial_read_rx(s);
	case UART_IER:
		return dlab ? s->dlm : s->ier;
	case UART_IIR:
		return serial_read_iir(s);
	case UART_LCR:
		return s->lcr;
	case UART_MCR:
		return s->mcr;
	case UART_LSR:
		return UART_LSR_TEMT | UART_LSR_THRE |
		       (s->rx_len ? UART_LSR_DR : 0);
	case UART_MSR:
		/* Drivers probe for a UART by its loop from MCR to MSR. */
		if (s->mcr & UART_MCR_LOOP)
			return (s->mcr & UART_MCR_RTS ? UART_MSR_CTS : 0) |
			       (s->mcr & UART_MCR_DTR ? UART_MSR_DSR : 0) |
			       (s->mcr & UART_MCR_OUT1 ? UART_MSR_RI : 0) |
			       (s->mcr & UART_MCR_OUT2 ? UART_MSR_DCD : 0);
		return UART_MSR_CTS | UART_MSR_DSR | UART_MSR_DCD;
	default:
		return s->scr;
	}
}

static void serial_transmit(struct vm *vm, __u8 byte)
{
	struct serial *s = &vm->serial;

	/* The line goes down and up again: the chip sees edges. */
	s->thre = false;
	serial_set_irq(vm);
	if (!(s->mcr & UART_MCR_LOOP) && write(STDOUT_FILENO, &byte, 1) < 0)
		err(EXIT_VMM, "console");
	s->thre = true;
}

static void serial_write(struct vm *vm, unsigned int reg, __u8 value)
{
	struct serial *s = &vm->serial;
	bool dlab = s->lcr & UART_LCR_DLAB;

	switch (reg) {
	case UART_TX:
		if (dlab)
			s->dll = value;
		else
			serial_transmit(vm, value);
		break;
	case UART_IER:
		if (dlab) {
			s->dlm = value;
			break;
		}
		if (value & ~s->ier & UART_IER_THRI)
			s->thre = true;
		s->ier = value & 0xf;
		break;
	case UART_FCR:
		s->fcr = value;
		break;
	case UART_LCR:
		s->lcr = value;
		break;
	case UART_MCR:
		s->mcr = value & 0x1f;
		break;
	case UART_SCR:
		s->scr = value;
		break;
	}
}

static void serial_access(struct vm *vm, bool is_write, unsigned int reg,
			  __u8 *value)
{
	pthread_mutex_lock(&vm->serial.lock);
	if (is_write)
		serial_write(vm, reg, *value);
	else
		*value = serial_read(&vm->serial, reg);
	serial_set_irq(vm);
	pthread_mutex_unlock(&vm->serial.lock);
}

static void *serial_input(void *arg)
{
	struct vm *vm = arg;
	struct serial *s = &vm->serial;
	__u8 buf[sizeof(s->rx)];
	ssize_t n;

	while ((n = read(STDIN_FILENO, buf, sizeof(buf))) > 0) {
		pthread_mutex_lock(&s->lock);
		while (s->rx_len)
			pthread_cond_wait(&s->room, &s->lock);
		memcpy(s->rx, buf, n);
		s->rx_len = n;
		serial_set_irq(vm);
		pthread_mutex_unlock(&s->lock);
	}
	return NULL;
}

static void start_serial(struct vm *vm)
{
	pthread_t thread;

	pthread_mutex_init(&vm->serial.lock, NULL);
	pthread_cond_init(&vm->serial.room, NULL);
	errno = pthread_create(&thread, NULL, serial_input, vm);
	if (errno)
		err(EXIT_VMM, "thread");
}

/*
 * Conversions between private and shared.
 */

/*
 * The kind is changed first: from then on the guest has no way to the half that
 * it gave up, and what that held can go.
 */
static bool convert(struct vm *vm, __u64 gpa, __u64 size, bool private)
{
	if (!is_ram(vm, gpa, size) || set_private(vm, gpa, size, private))
		return false;
	if (private)
		return !madvise(vm->shared + gpa, size, MADV_DONTNEED);
	return !fallocate(vm->ram_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			  gpa, size);
}

/* Explicit: the guest asks. It is told when it cannot have what it asks for. */
static void handle_hypercall(struct vm *vm)
{
	__u64 gpa = vm->run->hypercall.args[0];
	__u64 npages = vm->run->hypercall.args[1];
	__u64 attributes = vm->run->hypercall.args[2];

	if (vm->run->hypercall.nr != KVM_HC_MAP_GPA_RANGE) {
		vm->run->hypercall.ret = -KVM_ENOSYS;
	} else if (npages > (1ULL << 40) ||
		   !convert(vm, gpa, npages * PAGE_SIZE,
			    attributes & KVM_MAP_GPA_RANGE_ENCRYPTED)) {
		vm->run->hypercall.ret = -KVM_EINVAL;
	} else {
		vm->run->hypercall.ret = 0;
		vm->explicit++;
		vm->fault.gpa = -1;
	}
}

/*
 * Implicit: the guest has touched a page as what it is not, and KVM tells what
 * it took it for. The access is made again afterwards; when that gives the same
 * exit, converting is not what it takes.
 */
static void handle_memory_fault(struct vm *vm)
{
	__u64 gpa = vm->run->memory_fault.gpa;
	__u64 size = vm->run->memory_fault.size;
	__u64 flags = vm->run->memory_fault.flags;
	bool private = flags & KVM_MEMORY_EXIT_FLAG_PRIVATE;

	if ((vm->fault.gpa == gpa && vm->fault.flags == flags) ||
	    !convert(vm, gpa, size, private))
		errx(EXIT_VMM, "no %s memory at %#llx",
		     private ? "private" : "shared", gpa);
	vm->fault.gpa = gpa;
	vm->fault.flags = flags;
	vm->implicit++;
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

/* Returns whether the guest goes on. Ports without a device read as all ones. */
static bool handle_io(struct vm *vm)
{
	__u16 port = vm->run->io.port;
	bool is_write = vm->run->io.direction == KVM_EXIT_IO_OUT;
	__u8 *data = (__u8 *)vm->run + vm->run->io.data_offset;
	__u32 i;

	for (i = 0; i < vm->run->io.count; i++, data += vm->run->io.size) {
		if (port >= SERIAL_PORT && port < SERIAL_PORT + 8) {
			serial_access(vm, is_write, port - SERIAL_PORT, data);
		} else if (is_write) {
			if (is_reset(port, *data))
				return false;
		} else if (port == 0x64) {
			/* Ready for the command that resets the machine. */
			memset(data, 0, vm->run->io.size);
		} else {
			memset(data, 0xff, vm->run->io.size);
		}
	}
	return true;
}

static int run_guest(struct vm *vm)
{
	struct kvm_run *run = vm->run;

	for (;;) {
		if (!ioctl(vm->vcpu_fd, KVM_RUN, 0)) {
			switch (run->exit_reason) {
			case KVM_EXIT_IO:
				if (!handle_io(vm))
					return 0;
				break;
			case KVM_EXIT_MMIO:
				if (!run->mmio.is_write)
					memset(run->mmio.data, 0xff, run->mmio.len);
				break;
			case KVM_EXIT_HYPERCALL:
				handle_hypercall(vm);
				break;
			case KVM_EXIT_SHUTDOWN:
				warnx("the guest's processor has shut down (triple fault)");
				return EXIT_GUEST;
			case KVM_EXIT_HLT:
				return 0;
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
			handle_memory_fault(vm);
		} else if (errno != EINTR && errno != EAGAIN) {
			err(EXIT_VMM, "KVM_RUN");
		}
	}
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
		"  -o, --ordinary        memory that the host can read, as ever\n"
		"  -q, --quiet           nothing but the guest's console, and errors\n"
		"  -h, --help            this text\n"
		"\n"
		"The guest's serial console is standard input and output. The exit code is\n"
		"0 when the guest has reset itself, 1 when it could not be run, and 2 when\n"
		"its processor has shut down.\n", program_invocation_short_name);
}

static __u64 parse_memory(const char *arg)
{
	unsigned long mib;
	char *end;

	errno = 0;
	mib = strtoul(arg, &end, 10);
	if (errno || end == arg || *end || *arg == '-' ||
	    mib < MIN_MEMORY_MIB || mib > MAX_MEMORY_MIB)
		errx(EXIT_VMM, "memory is a number of MiB from %u to %u, not '%s'",
		     MIN_MEMORY_MIB, MAX_MEMORY_MIB, arg);
	return mib * MIB;
}

static void parse_options(struct options *opts, int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "kernel", required_argument, NULL, 'k' },
		{ "initramfs", required_argument, NULL, 'i' },
		{ "cmdline", required_argument, NULL, 'c' },
		{ "memory", required_argument, NULL, 'm' },
		{ "ordinary", no_argument, NULL, 'o' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int c;

	*opts = (struct options) {
		.cmdline = "console=ttyS0 reboot=k panic=-1",
		.memory = 256 * MIB,
	};
	opterr = 0;
	while ((c = getopt_long(argc, argv, ":k:i:c:m:oqh", longopts, NULL)) != -1) {
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
			opts->memory = parse_memory(optarg);
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
	struct image kernel = { 0 }, initramfs = { 0 };
	struct vm vm = { .fault.gpa = -1 };
	struct setup_header hdr;
	struct options opts;
	int kvm, status;

	parse_options(&opts, argc, argv);
	open_kernel(&kernel, opts.kernel, &hdr);
	if (opts.initramfs)
		open_image(&initramfs, opts.initramfs);
	place_images(&kernel, &initramfs, &hdr, &opts);
	if (strlen(opts.cmdline) > hdr.cmdline_size ||
	    strlen(opts.cmdline) >= PAGE_SIZE)
		errx(EXIT_VMM, "the command line is longer than the kernel takes");

	kvm = open_kvm(&opts);
	vm.private = !opts.ordinary;
	create_vm(&vm, kvm);
	create_memory(&vm, opts.memory);
	load_image(&vm, &kernel);
	if (opts.initramfs)
		load_image(&vm, &initramfs);
	load_boot_area(&vm, &hdr, &initramfs, opts.cmdline);
	vm.entry = kernel.gpa + 0x200;
	create_vcpu(&vm, kvm);
	start_serial(&vm);

	if (!opts.quiet)
		warnx("%llu MiB of %s memory, file %d, userspace_addr %p",
		      opts.memory / MIB, vm.private ? "private" : "ordinary",
		      vm.ram_fd, vm.shared);
	status = run_guest(&vm);
	if (!opts.quiet)
		warnx("the guest has stopped, %lu explicit and %lu implicit conversions",
		      vm.explicit, vm.implicit);
	return status;
}
