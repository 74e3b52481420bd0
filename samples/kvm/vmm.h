/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of the VMM share. guest_memfd_vmm.c tells how the guest's memory
 * is laid out.
 */
#ifndef SAMPLES_KVM_VMM_H
#define SAMPLES_KVM_VMM_H

#include <pthread.h>
#include <stdbool.h>

#include <asm/bootparam.h>
#include <linux/kvm.h>

#define PAGE_SIZE	4096ULL
#define MIB		(1024ULL * 1024)
#define GIB		(1024 * MIB)

#define BOOT_AREA	0x10000ULL
#define VGA_HOLE	0xa0000ULL
#define BIOS_AREA	0xe0000ULL
#define ACPI_TABLES	BIOS_AREA	/* one page */
#define HIGH_MEMORY	(1 * MIB)
#define DEVICE_HOLE	(3 * GIB)
#define DEVICE_HOLE_END	(4 * GIB)

#define MAX_CPUS	64		/* as many as the ACPI tables have room for */

/* Exit codes, besides 0 when the guest has powered itself off or reset itself. */
#define EXIT_VMM	1	/* what was asked for cannot be done */
#define EXIT_GUEST	2	/* the guest's processor has shut down */

#define BIT(n)		(1U << (n))
#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define PAGE_ALIGN(n)	(((n) + PAGE_SIZE - 1) & -PAGE_SIZE)

struct options {
	const char *kernel;
	const char *initramfs;
	const char *cmdline;
	__u64 memory;		/* bytes */
	unsigned int cpus;
	bool huge_pages;
	bool xsave;
	bool ordinary;
	bool quiet;
};

struct range {
	__u64 start;
	__u64 end;
};

struct serial {
	pthread_mutex_t lock;
	pthread_cond_t room;	/* rx has been emptied */
	__u8 ier, fcr, lcr, mcr, scr, dll, dlm;
	bool thre;		/* "transmitter empty" has not been told yet */
	bool irq;		/* level of the interrupt line */
	__u8 rx[16];
	unsigned int rx_len, rx_next;
};

struct vm;

struct vcpu {
	struct vm *vm;
	unsigned int id;	/* of its APIC, too */
	int fd;
	int stats_fd;
	struct kvm_run *run;
	struct { __u64 gpa, flags; } fault;	/* the last, if nothing came after */
};

struct vm {
	struct options opts;
	bool private;
	int fd;
	int stats_fd;
	int ram_fd;
	char *shared;
	struct range ram[3];
	unsigned int nr_ram;
	struct vcpu vcpus[MAX_CPUS];
	struct serial serial;
	__u16 pm1_enable;
	pthread_mutex_t convert_lock;
	unsigned long explicit, implicit;	/* conversions */
	pthread_mutex_t stop_lock;
};

/* guest_memfd_vmm.c */

/* Puts whole pages into RAM that nobody has touched yet. */
void fill_ram(struct vm *vm, __u64 gpa, const void *pages, __u64 size);

/* linux.c: the kernel, its initramfs, and what the boot protocol wants. */

/* A part of a file, and the guest physical address that it is loaded at. */
struct image {
	const char *path;
	int fd;
	__u64 offset;
	__u64 size;
	__u64 gpa;
	__u64 room;		/* bytes of RAM from there that are its own */
};

struct linux_images {
	struct image kernel;
	struct image initramfs;	/* without a path where there is none */
	struct setup_header hdr;
};

/* Looks at what the options name. Whoever gave a wrong one hears about that first. */
void open_linux(struct linux_images *images, const struct options *opts);
void load_linux(struct vm *vm, const struct linux_images *images);
/* Lets the vCPU begin at the kernel's 64-bit entry point. */
void start_linux(struct vcpu *vcpu, const struct linux_images *images);

/* acpi.c: the tables, and the registers that they name. */

enum acpi_request { ACPI_NOTHING, ACPI_POWER_OFF };

void load_acpi(struct vm *vm);
bool is_acpi_port(__u16 port);
enum acpi_request acpi_write(struct vm *vm, __u16 port, __u16 value);
__u16 acpi_read(struct vm *vm, __u16 port);

/* serial.c: a 16550 at I/O port 0x3f8, interrupt 4. */

#define SERIAL_PORT	0x3f8

void start_serial(struct vm *vm);
void serial_access(struct vm *vm, bool is_write, unsigned int reg, __u8 *value);

/* stats.c: what KVM and the kernel have counted. */

/* For a VM or a vCPU. */
int open_stats(int kvm_fd);
void print_stats(const struct vm *vm);

#endif
