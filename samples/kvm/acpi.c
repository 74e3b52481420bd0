// SPDX-License-Identifier: GPL-2.0-only
/*
 * The least of ACPI that Linux starts its processors, routes its interrupts and
 * powers itself off with:
 *
 *	RSDP, which boot_params leads to
 *	XSDT, which lists the rest
 *	FADT	the registers below, and what a PC has that is not here
 *	MADT	the processors' APICs, and the IO-APIC with its interrupts
 *	DSDT	the value that means "off"
 *	FACS	empty, for a lock with firmware that there is none of
 *
 * They share one page of RAM, as private as the rest: who wants to read them is
 * the guest. The numbers of the interrupts are those of KVM's default routing, the
 * ISA's on both the 8259s and the IO-APIC.
 */
#include <assert.h>
#include <stddef.h>
#include <string.h>

#include "vmm.h"

/*
 * The registers: a block for fixed events, of which none ever comes, and one for
 * control. The firmware has nothing to hand over: ACPI is on from the beginning.
 */
#define PM1_STATUS	0x600
#define PM1_ENABLE	0x602
#define PM1_CONTROL	0x604
#define PM1_END		0x606

#define PM1_SCI_EN	BIT(0)
#define PM1_SLP_TYP(v)	((v) >> 10 & 7)
#define PM1_SLP_EN	BIT(13)

#define SLP_TYP_S5	5

#define SCI_IRQ		9

/* The layouts are the specification's, without any padding. */
#pragma pack(push, 1)

struct acpi_rsdp {
	char signature[8];
	__u8 checksum;
	char oem_id[6];
	__u8 revision;
	__u32 rsdt;
	__u32 length;
	__u64 xsdt;
	__u8 extended_checksum;
	__u8 reserved[3];
};

struct acpi_header {
	char signature[4];
	__u32 length;
	__u8 revision;
	__u8 checksum;
	char oem_id[6];
	char oem_table_id[8];
	__u32 oem_revision;
	char creator_id[4];
	__u32 creator_revision;
};

struct acpi_address {
	__u8 space;		/* 1: I/O ports */
	__u8 bits;
	__u8 offset;
	__u8 access;		/* 1: bytes */
	__u64 address;
};

struct acpi_fadt {
	struct acpi_header header;
	__u32 facs;
	__u32 dsdt;
	__u8 reserved;
	__u8 profile;
	__u16 sci_irq;
	__u32 smi_command;
	__u8 smi_values[4];
	__u32 pm1a_event, pm1b_event;
	__u32 pm1a_control, pm1b_control;
	__u32 pm2_control, pm_timer, gpe0, gpe1;
	__u8 pm1_event_length, pm1_control_length, pm2_control_length;
	__u8 pm_timer_length, gpe0_length, gpe1_length, gpe1_base;
	__u8 cstate_control;
	__u16 c2_latency, c3_latency;
	__u16 flush_size, flush_stride;
	__u8 duty_offset, duty_width;
	__u8 day_alarm, month_alarm, century;
	__u16 boot_flags;
	__u8 reserved2;
	__u32 flags;
	struct acpi_address reset_register;
	__u8 reset_value;
	__u16 arm_boot_flags;
	__u8 minor_revision;
	__u64 x_facs, x_dsdt;
	struct acpi_address x_blocks[8];
	struct acpi_address sleep_control, sleep_status;
	__u64 hypervisor;
};

#define FADT_BOOT_NO_VGA	BIT(2)	/* and no bit 1: no keyboard */
#define FADT_BOOT_NO_RTC	BIT(5)

#define FADT_WBINVD		BIT(0)
#define FADT_C1			BIT(2)	/* HLT */
#define FADT_NO_POWER_BUTTON	BIT(4)
#define FADT_NO_SLEEP_BUTTON	BIT(5)
#define FADT_NO_RTC_WAKE	BIT(6)
#define FADT_RESET_REGISTER	BIT(10)

struct acpi_facs {
	char signature[4];
	__u32 length;
	__u32 hardware_signature;
	__u32 waking_vector;
	__u32 global_lock;
	__u32 flags;
	__u64 x_waking_vector;
	__u8 version;
	__u8 reserved[31];
};

struct madt_local_apic {
	__u8 type, length;
	__u8 processor;
	__u8 apic_id;
	__u32 enabled;
};

struct madt_io_apic {
	__u8 type, length;
	__u8 apic_id;
	__u8 reserved;
	__u32 address;
	__u32 first_irq;
};

struct madt_override {
	__u8 type, length;
	__u8 bus;
	__u8 isa_irq;
	__u32 irq;
	__u16 flags;
};

struct madt_nmi {
	__u8 type, length;
	__u8 processor;
	__u16 flags;
	__u8 lint;
};

struct acpi_madt {
	struct acpi_header header;
	__u32 local_apic;
	__u32 flags;		/* 1: there are 8259s as well */
	struct madt_io_apic io_apic;
	struct madt_override sci;
	struct madt_nmi nmi;
	/* The table's length tells how many of these there are. */
	struct madt_local_apic local_apics[MAX_CPUS];
};

/* Name (_S5, Package () { 5, 5, 0, 0 }) */
static const __u8 aml[] = {
	0x08, '_', 'S', '5', '_',
	0x12, 0x08, 0x04, 0x0a, SLP_TYP_S5, 0x0a, SLP_TYP_S5, 0x00, 0x00,
};

struct acpi_tables {
	struct acpi_rsdp rsdp;
	__u8 pad[28];
	struct acpi_facs facs;	/* on a boundary of 64 bytes */
	struct {
		struct acpi_header header;
		__u64 tables[2];
	} xsdt;
	struct acpi_fadt fadt;
	struct {
		struct acpi_header header;
		__u8 aml[sizeof(aml)];
	} dsdt;
	struct acpi_madt madt;
};

#pragma pack(pop)

static_assert(offsetof(struct acpi_tables, facs) % 64 == 0, "FACS");
static_assert(sizeof(struct acpi_fadt) == 276, "FADT");
static_assert(sizeof(struct acpi_tables) <= PAGE_SIZE, "ACPI tables");

#define ACPI_GPA(member)	(ACPI_TABLES + offsetof(struct acpi_tables, member))

/* What makes the sum of all bytes zero. */
static __u8 checksum(const void *table, size_t size)
{
	const __u8 *p = table;
	__u8 sum = 0;

	while (size--)
		sum -= *p++;
	return sum;
}

static void finish_table(struct acpi_header *header, const char *signature,
			 __u8 revision, size_t length)
{
	memcpy(header->signature, signature, sizeof(header->signature));
	header->length = length;
	header->revision = revision;
	memcpy(header->oem_id, "LINUX ", sizeof(header->oem_id));
	memcpy(header->oem_table_id, "GMEMVMM ", sizeof(header->oem_table_id));
	header->oem_revision = 1;
	memcpy(header->creator_id, "GMEM", sizeof(header->creator_id));
	header->creator_revision = 1;
	header->checksum = checksum(header, length);
}

static void make_fadt(struct acpi_fadt *fadt)
{
	fadt->facs = ACPI_GPA(facs);
	fadt->dsdt = ACPI_GPA(dsdt);
	fadt->x_dsdt = ACPI_GPA(dsdt);
	fadt->sci_irq = SCI_IRQ;
	fadt->pm1a_event = PM1_STATUS;
	fadt->pm1_event_length = PM1_CONTROL - PM1_STATUS;
	fadt->pm1a_control = PM1_CONTROL;
	fadt->pm1_control_length = PM1_END - PM1_CONTROL;
	fadt->c2_latency = 0xffff;		/* neither of these states */
	fadt->c3_latency = 0xffff;
	fadt->boot_flags = FADT_BOOT_NO_VGA | FADT_BOOT_NO_RTC;
	fadt->flags = FADT_WBINVD | FADT_C1 | FADT_NO_POWER_BUTTON |
		      FADT_NO_SLEEP_BUTTON | FADT_NO_RTC_WAKE | FADT_RESET_REGISTER;
	fadt->reset_register = (struct acpi_address) { 1, 8, 0, 1, 0xcf9 };
	fadt->reset_value = 6;
	finish_table(&fadt->header, "FACP", 6, sizeof(*fadt));
}

static void make_madt(struct acpi_madt *madt, unsigned int cpus)
{
	unsigned int i;

	madt->local_apic = 0xfee00000;
	madt->flags = 1;
	madt->io_apic = (struct madt_io_apic) { 1, sizeof(madt->io_apic), 0, 0, 0xfec00000, 0 };
	/* Level-triggered, which an ISA interrupt is not unless one says so. */
	madt->sci = (struct madt_override) { 2, sizeof(madt->sci), 0, SCI_IRQ, SCI_IRQ, 0xd };
	madt->nmi = (struct madt_nmi) { 4, sizeof(madt->nmi), 0xff, 0, 1 };
	for (i = 0; i < cpus; i++)
		madt->local_apics[i] = (struct madt_local_apic) { 0, 8, i, i, 1 };
	finish_table(&madt->header, "APIC", 4,
		     offsetof(struct acpi_madt, local_apics[cpus]));
}

void load_acpi(struct vm *vm)
{
	static union {
		struct acpi_tables tables;
		char page[PAGE_SIZE];
	} acpi;
	struct acpi_tables *t = &acpi.tables;

	memcpy(t->rsdp.signature, "RSD PTR ", sizeof(t->rsdp.signature));
	memcpy(t->rsdp.oem_id, "LINUX ", sizeof(t->rsdp.oem_id));
	t->rsdp.revision = 2;
	t->rsdp.length = sizeof(t->rsdp);
	t->rsdp.xsdt = ACPI_GPA(xsdt);
	t->rsdp.checksum = checksum(&t->rsdp, offsetof(struct acpi_rsdp, length));
	t->rsdp.extended_checksum = checksum(&t->rsdp, sizeof(t->rsdp));

	memcpy(t->facs.signature, "FACS", sizeof(t->facs.signature));
	t->facs.length = sizeof(t->facs);
	t->facs.version = 2;

	t->xsdt.tables[0] = ACPI_GPA(fadt);
	t->xsdt.tables[1] = ACPI_GPA(madt);
	finish_table(&t->xsdt.header, "XSDT", 1, sizeof(t->xsdt));

	memcpy(t->dsdt.aml, aml, sizeof(aml));
	finish_table(&t->dsdt.header, "DSDT", 2, sizeof(t->dsdt));

	make_fadt(&t->fadt);
	make_madt(&t->madt, vm->opts.cpus);
	fill_ram(vm, ACPI_TABLES, &acpi, sizeof(acpi));
}

bool is_acpi_port(__u16 port)
{
	return port >= PM1_STATUS && port < PM1_END;
}

enum acpi_request acpi_write(struct vm *vm, __u16 port, __u16 value)
{
	if (port == PM1_ENABLE)
		vm->pm1_enable = value;
	if (port == PM1_CONTROL && value & PM1_SLP_EN && PM1_SLP_TYP(value) == SLP_TYP_S5)
		return ACPI_POWER_OFF;
	return ACPI_NOTHING;
}

__u16 acpi_read(struct vm *vm, __u16 port)
{
	switch (port) {
	case PM1_ENABLE:
		return vm->pm1_enable;
	case PM1_CONTROL:
		return PM1_SCI_EN;
	default:
		return 0;
	}
}
