// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel and its initramfs, and what the 64-bit boot protocol wants beside
 * them: see Documentation/x86/boot.rst.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm.h"

#define HUGE_PAGE_SIZE	(2 * MIB)

/* Types of memory in the map that the kernel gets. */
#define E820_RAM	1
#define E820_ACPI	3

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
	image->room = PAGE_ALIGN(image->size);
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
	kernel->room = PAGE_ALIGN(hdr->init_size);
	kernel->gpa = hdr->pref_address;
	if (kernel->offset + kernel->size > file_size)
		errx(EXIT_VMM, "%s: truncated, %llu bytes of %llu", path,
		     file_size, kernel->offset + kernel->size);
	if (kernel->size > hdr->init_size || kernel->gpa % PAGE_SIZE ||
	    kernel->gpa < HIGH_MEMORY || kernel->gpa >= DEVICE_HOLE)
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
	/* What begins with a huge page is loaded into huge pages. */
	if (opts->huge_pages && (initramfs->gpa & -HUGE_PAGE_SIZE) >= kernel_end) {
		initramfs->gpa &= -HUGE_PAGE_SIZE;
		initramfs->room = top - initramfs->gpa;
	}
}

void open_linux(struct linux_images *images, const struct options *opts)
{
	open_kernel(&images->kernel, opts->kernel, &images->hdr);
	if (opts->initramfs)
		open_image(&images->initramfs, opts->initramfs);
	place_images(&images->kernel, &images->initramfs, &images->hdr, opts);
	if (strlen(opts->cmdline) > images->hdr.cmdline_size ||
	    strlen(opts->cmdline) >= PAGE_SIZE)
		errx(EXIT_VMM, "the command line is longer than the kernel takes");
}

/*
 * In pieces that end where a huge page does: a whole one is filled at once. The
 * last is filled up with zeros, as far as what is behind belongs to the image.
 */
static void load_image(struct vm *vm, const struct image *image)
{
	__u64 piece = vm->opts.huge_pages ? HUGE_PAGE_SIZE : PAGE_SIZE;
	static char buf[HUGE_PAGE_SIZE];
	__u64 done, n, filled;

	for (done = 0; done < image->size; done += n) {
		n = HUGE_PAGE_SIZE - (image->gpa + done) % HUGE_PAGE_SIZE;
		if (n > image->size - done)
			n = image->size - done;
		filled = n + -(image->gpa + done + n) % piece;
		if (filled > image->room - done)
			filled = image->room - done;
		read_exactly(image, buf, n, image->offset + done);
		memset(buf + n, 0, filled - n);
		fill_ram(vm, image->gpa + done, buf, filled);
	}
}

static void add_e820(struct boot_params *params, __u64 start, __u64 end, __u32 type)
{
	params->e820_table[params->e820_entries++] = (struct boot_e820_entry) {
		.addr = start,
		.size = end - start,
		.type = type,
	};
}

static void load_boot_area(struct vm *vm, const struct linux_images *images)
{
	static struct boot_area area;
	struct boot_params *params = &area.params;
	unsigned int i;

	params->hdr = images->hdr;
	params->hdr.type_of_loader = 0xff;
	params->hdr.cmd_line_ptr = BOOT_GPA(cmdline);
	params->hdr.ramdisk_image = images->initramfs.gpa;
	params->hdr.ramdisk_size = images->initramfs.size;
	params->acpi_rsdp_addr = ACPI_TABLES;
	/* The second range of RAM is no RAM for the kernel where a PC has its BIOS. */
	add_e820(params, vm->ram[0].start, vm->ram[0].end, E820_RAM);
	add_e820(params, ACPI_TABLES, ACPI_TABLES + PAGE_SIZE, E820_ACPI);
	add_e820(params, HIGH_MEMORY, vm->ram[1].end, E820_RAM);
	for (i = 2; i < vm->nr_ram; i++)
		add_e820(params, vm->ram[i].start, vm->ram[i].end, E820_RAM);
	strcpy(area.cmdline, vm->opts.cmdline);

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

void load_linux(struct vm *vm, const struct linux_images *images)
{
	load_image(vm, &images->kernel);
	if (images->initramfs.path)
		load_image(vm, &images->initramfs);
	load_boot_area(vm, images);
}

/* In 64-bit mode at the kernel's entry point, with boot_params in RSI. */
void start_linux(struct vcpu *vcpu, const struct linux_images *images)
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
		.rip = images->kernel.gpa + 0x200,
		.rsi = BOOT_GPA(params),
		.rflags = 0x2,
	};
	struct kvm_sregs sregs;

	if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs))
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
	if (ioctl(vcpu->fd, KVM_SET_SREGS, &sregs))
		err(EXIT_VMM, "KVM_SET_SREGS");
	if (ioctl(vcpu->fd, KVM_SET_REGS, &regs))
		err(EXIT_VMM, "KVM_SET_REGS");
}
