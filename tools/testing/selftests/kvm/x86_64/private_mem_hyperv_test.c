// SPDX-License-Identifier: GPL-2.0-only
/*
 * The pages that a Hyper-V guest shares with its hypervisor, in private memory: the
 * hypercall page, VP assist with its lazy EOI, the reference TSC, SynIC's messages
 * and event flags, and what hypercalls take from memory.
 *
 * The other half of each page holds what would be believed: a message slot that is
 * in use, hypercalls with other arguments.  It must not change either.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/eventfd.h>

#include "apic.h"
#include "hyperv.h"
#include "kvm_harness.h"
#include "private_mem_hv.h"

#define HYPERV_TIMEOUT	120

/* The pages. */
#define CODE_GPA	(HV_GPA + 1 * PAGE_SIZE)
#define ASSIST_GPA	(HV_GPA + 2 * PAGE_SIZE)
#define TSC_GPA		(HV_GPA + 3 * PAGE_SIZE)
#define MSG_GPA		(HV_GPA + 4 * PAGE_SIZE)
#define EVENTS_GPA	(HV_GPA + 5 * PAGE_SIZE)
#define ARGS_GPA	(HV_GPA + 6 * PAGE_SIZE + 0x100)
#define BORDER_GPA	(HV_GPA + 9 * PAGE_SIZE)

#define ENABLE		1
#define OS_ID		0x5a

/* In struct ms_hyperv_tsc_page. */
#define TSC_SCALE	8
#define TSC_OFFSET	16
#define SCALE		0x1111
#define SECRET		0x123456789abcdefull

/* The message of timer 0 goes to this source. */
#define SINT		2
#define SINT_GPA	(MSG_GPA + SINT * 256)
#define TIMER_EXPIRED	0x80000010u
#define MSG_PENDING	BIT_ULL(40)
#define TIMER_CONFIG	(SINT << 16 | 1 << 3)

#define SINT_VECTOR	0x90
#define IPI_VECTOR	0x91
#define MSI_VECTOR	0x92

#define SIGNAL_EVENT		0x5d
#define SEND_IPI		0x0b
#define SEND_IPI_EX		0x15
#define FLUSH_SPACE_EX		0x13
#define ONE_BANK		BIT(17)
#define INVALID_INPUT		3
#define INVALID_ALIGNMENT	4
#define CONNECTION		3
#define DECOY_CONNECTION	4

#define X2APIC_BASE	0xfee00d00ull
#define X2APIC_SPIV	0x80f

FIXTURE(hyperv) {
	struct hv_vm hv_vm;
};

/* With an APIC that takes interrupts, which go by MSRs. */
FIXTURE_SETUP(hyperv)
{
	struct hv_vm *hv = &self->hv_vm;

	hv_vm_create(hv);
	vcpu_set_hv_cpuid(hv->mem.vcpu);
	vcpu_enable_cap(hv->mem.vcpu, KVM_CAP_HYPERV_SYNIC2, 0);
	hv_wrmsr(hv, HV_X64_MSR_GUEST_OS_ID, OS_ID);
	hv_wrmsr(hv, MSR_IA32_APICBASE, X2APIC_BASE);
	hv_wrmsr(hv, X2APIC_SPIV, 0x1ff);
}

FIXTURE_TEARDOWN(hyperv)
{
	hv_vm_free(&self->hv_vm);
}

#define TEST_HYPERV(name)	TEST_F_MEMBER(hyperv, name, hv_vm, HYPERV_TIMEOUT)

static uint64_t hypercall(struct hv_vm *hv, uint64_t control, uint64_t input)
{
	struct kvm_regs regs = { .rcx = control, .rdx = input };

	return hv_run(hv, HV_HYPERCALL, &regs);
}

TEST_HYPERV(hypercall_page)
{
	struct kvm_regs regs = { .r11 = CODE_GPA, .rcx = SIGNAL_EVENT, .rdx = ARGS_GPA + 1 };
	uint32_t code = is_amd_cpu() ? 0xc3d9010f : 0xc3c1010f;
	uint64_t ret;

	hv_wrmsr(self, HV_X64_MSR_HYPERCALL, CODE_GPA | ENABLE);
	TEST_ASSERT(hv_seen_u32(self, CODE_GPA) == code,
		    "Expected a hypercall, the guest sees 0x%x", hv_seen_u32(self, CODE_GPA));
	ret = hv_run(self, HV_CALL, &regs);
	TEST_ASSERT(ret == INVALID_ALIGNMENT, "Expected the hypercall's error %i, got 0x%lx",
		    INVALID_ALIGNMENT, ret);
	hv_check_decoy(self);
}

TEST_HYPERV(assist_page)
{
	uint64_t seen;

	hv_write_u64(self, ASSIST_GPA, ~0ull);
	hv_wrmsr(self, HV_X64_MSR_VP_ASSIST_PAGE, ASSIST_GPA | ENABLE);
	seen = hv_seen_u64(self, ASSIST_GPA);
	TEST_ASSERT(seen == ~0ull << 32,
		    "Expected the first word, and only it, to be cleared, the guest sees 0x%lx",
		    seen);
	hv_check_decoy(self);
}

TEST_HYPERV(assist_page_after_conversion)
{
	uint32_t *shared = hv_shared(self, ASSIST_GPA);

	hv_write_u64(self, ASSIST_GPA, ~0ull);
	hv_make_shared(self, ASSIST_GPA);
	hv_wrmsr(self, HV_X64_MSR_VP_ASSIST_PAGE, ASSIST_GPA | ENABLE);
	TEST_ASSERT(!shared[0] && shared[1] == 0x01010101 * HV_DECOY,
		    "Expected the first word of the shared page to be cleared, and only it");
	hv_make_private(self, ASSIST_GPA);
	TEST_ASSERT(hv_seen_u64(self, ASSIST_GPA) == ~0ull,
		    "Wrote to the private page while it was not the guest's");
}

static void send_msi(struct hv_vm *hv)
{
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = MSI_VECTOR };

	TEST_ASSERT(__vm_ioctl(hv->mem.vm, KVM_SIGNAL_MSI, &msi) == 1,
		    "The interrupt was not taken, errno: %i (%s)", errno, strerror(errno));
}

/*
 * KVM says in a bit that no EOI is needed, anew each time that the test runs the vCPU,
 * and takes it back when the vCPU exits before the guest has looked: for a page fault,
 * or a tick of the host.
 */
#define EOI_TRIES	100

/* In the registers of the local APIC: what is in service. */
#define APIC_ISR	0x100

static void take_interrupt(struct hv_vm *hv, uint64_t count)
{
	uint64_t nr;
	int i;

	if (lazy_eoi_missing())
		CASE_SKIP("%s", lazy_eoi_missing());

	send_msi(hv);
	nr = hv_interrupts(hv);
	TEST_ASSERT(nr == count, "Expected interrupt %lu, got %lu", count, nr);

	for (i = 0; i < EOI_TRIES; i++) {
		if (hv_seen_u32(hv, ASSIST_GPA) & 1)
			return;
	}
	TEST_FAIL("The guest does not see that it needs no EOI");
}

static bool in_service(struct hv_vm *hv)
{
	struct kvm_lapic_state lapic;
	uint32_t isr;

	vcpu_ioctl(hv->mem.vcpu, KVM_GET_LAPIC, &lapic);
	memcpy(&isr, lapic.regs + APIC_ISR + MSI_VECTOR / 32 * 0x10, sizeof(isr));
	return isr & BIT(MSI_VECTOR % 32);
}

/* The guest clears it, which is the EOI. */
static void end_interrupt(struct hv_vm *hv)
{
	int i;

	TEST_ASSERT(in_service(hv), "Took an EOI that the guest has not made");
	for (i = 0; i < EOI_TRIES; i++) {
		hv_write_u64(hv, ASSIST_GPA, 0);
		if (!in_service(hv))
			return;
	}
	TEST_FAIL("The guest cleared the bit, KVM saw no EOI");
}

/* Only then comes the next interrupt. */
static void check_lazy_eoi(struct hv_vm *hv, uint64_t first)
{
	take_interrupt(hv, first);
	end_interrupt(hv);
	take_interrupt(hv, first + 1);
	end_interrupt(hv);
}

static void set_assist(struct hv_vm *hv)
{
	hv_expect_interrupts(hv, MSI_VECTOR, NULL);
	hv_wrmsr(hv, HV_X64_MSR_VP_ASSIST_PAGE, ASSIST_GPA | ENABLE);
}

TEST_HYPERV(lazy_eoi)
{
	set_assist(self);
	check_lazy_eoi(self, 1);
	hv_check_decoy(self);
}

/* In the other half the bit is clear. */
TEST_HYPERV(lazy_eoi_not_made)
{
	uint64_t nr;

	hv_decoy_fill(self, ASSIST_GPA, 0, PAGE_SIZE);
	set_assist(self);
	take_interrupt(self, 1);
	send_msi(self);
	nr = hv_interrupts(self);
	TEST_ASSERT(nr == 1, "Took an EOI that the guest has not made");
	hv_check_decoy(self);
}

TEST_HYPERV(lazy_eoi_after_conversion)
{
	uint32_t *shared = hv_shared(self, ASSIST_GPA);

	set_assist(self);
	hv_make_shared(self, ASSIST_GPA);
	*shared = 0;
	check_lazy_eoi(self, 1);
	hv_check_decoy_but(self, ASSIST_GPA);

	hv_make_private(self, ASSIST_GPA);
	*shared = HV_DECOY;
	hv_write_u64(self, ASSIST_GPA, 0);
	check_lazy_eoi(self, 3);
	TEST_ASSERT(*shared == HV_DECOY, "Wrote to the shared half of a private page");
}

TEST_HYPERV(lazy_eoi_after_punch)
{
	set_assist(self);
	check_lazy_eoi(self, 1);
	hv_punch(self, ASSIST_GPA);
	check_lazy_eoi(self, 3);
	hv_check_decoy(self);
}

/* The sequence number after the one before, or 0 if there is no stable TSC. */
static void check_tsc(uint32_t seq, uint64_t scale, uint32_t before)
{
	char name[16] = "";
	FILE *f = fopen("/sys/devices/system/clocksource/clocksource0/current_clocksource", "r");

	TEST_ASSERT(f && fgets(name, sizeof(name), f), "Cannot read the clock source");
	fclose(f);

	if (strcmp(name, "tsc\n"))
		TEST_ASSERT(!seq, "Expected no sequence number without a stable TSC, got %u", seq);
	else
		TEST_ASSERT(seq == before + 1 && scale != SCALE,
			    "Expected sequence number %u and a scale, got %u and 0x%lx",
			    before + 1, seq, scale);
}

static void set_tsc(struct hv_vm *hv)
{
	hv_wrmsr(hv, HV_X64_MSR_REFERENCE_TSC, TSC_GPA | ENABLE);
}

static void check_private_tsc(struct hv_vm *hv, uint32_t before)
{
	check_tsc(hv_seen_u32(hv, TSC_GPA), hv_seen_u64(hv, TSC_GPA + TSC_SCALE), before);
}

TEST_HYPERV(tsc_page)
{
	hv_write_u64(self, TSC_GPA, 5);
	hv_write_u64(self, TSC_GPA + TSC_SCALE, SCALE);
	hv_decoy_u64(self, TSC_GPA, 7);
	set_tsc(self);
	check_private_tsc(self, 5);
	hv_check_decoy(self);
}

TEST_HYPERV(tsc_page_after_conversion)
{
	uint32_t *shared = hv_shared(self, TSC_GPA);
	uint64_t *scale = hv_shared(self, TSC_GPA + TSC_SCALE);

	hv_write_u64(self, TSC_GPA, 5);
	hv_write_u64(self, TSC_GPA + TSC_SCALE, SCALE);
	hv_make_shared(self, TSC_GPA);
	*shared = 9;
	*scale = SCALE;
	set_tsc(self);
	hv_seen_u64(self, HV_GPA);
	check_tsc(*shared, *scale, 9);
	hv_check_decoy_but(self, TSC_GPA);

	*shared = 20;
	hv_make_private(self, TSC_GPA);
	TEST_ASSERT(hv_seen_u32(self, TSC_GPA) == 5 &&
		    hv_seen_u64(self, TSC_GPA + TSC_SCALE) == SCALE,
		    "Wrote to the private page while it was not the guest's");
	set_tsc(self);
	check_private_tsc(self, 5);
	TEST_ASSERT(*shared == 20, "Wrote to the shared half of a private page");
}

TEST_HYPERV(tsc_page_after_punch)
{
	hv_write_u64(self, TSC_GPA, 5);
	set_tsc(self);
	hv_punch(self, TSC_GPA);
	set_tsc(self);
	check_private_tsc(self, 0);
	hv_check_decoy(self);
}

/*
 * A TSC page from before a migration says what time it is, and so the counter that
 * userspace can read tells what is in the page.
 */
static uint64_t counter_of_page(struct hv_vm *hv)
{
	hv_write_u64(hv, TSC_GPA, 5);
	hv_write_u64(hv, TSC_GPA + TSC_SCALE, 0);
	hv_write_u64(hv, TSC_GPA + TSC_OFFSET, SECRET);

	vcpu_set_msr(hv->mem.vcpu, HV_X64_MSR_TSC_EMULATION_CONTROL, 1);
	vcpu_set_msr(hv->mem.vcpu, HV_X64_MSR_REFERENCE_TSC, TSC_GPA | ENABLE);
	hv_seen_u64(hv, HV_GPA);
	return vcpu_get_msr(hv->mem.vcpu, HV_X64_MSR_TIME_REF_COUNT);
}

TEST_HYPERV(tsc_page_not_told)
{
	TEST_ASSERT(counter_of_page(self) != SECRET,
		    "An MSR tells userspace what is in a private page");
	hv_check_decoy(self);
}

TEST_HYPERV(tsc_page_shared_believed)
{
	hv_make_shared(self, TSC_GPA);
	TEST_ASSERT(counter_of_page(self) == SECRET,
		    "Expected the counter to follow the shared page");
}

static void set_synic(struct hv_vm *hv)
{
	hv_wrmsr(hv, HV_X64_MSR_SCONTROL, ENABLE);
	hv_wrmsr(hv, HV_X64_MSR_SINT0 + SINT, SINT_VECTOR);
	hv_wrmsr(hv, HV_X64_MSR_SIMP, MSG_GPA | ENABLE);
	hv_wrmsr(hv, HV_X64_MSR_STIMER0_CONFIG, TIMER_CONFIG);
}

/* It expires at once; then the vCPU delivers the message. */
static void run_timer(struct hv_vm *hv)
{
	int tries = 20;

	hv_wrmsr(hv, HV_X64_MSR_STIMER0_COUNT, 1);
	while (tries--) {
		hv_seen_u64(hv, HV_GPA);
		usleep(1000);
	}
}

static void check_message(struct hv_vm *hv)
{
	TEST_ASSERT(hv_seen_u32(hv, SINT_GPA) == TIMER_EXPIRED,
		    "Expected the message of a timer, the guest sees type 0x%x",
		    hv_seen_u32(hv, SINT_GPA));
}

/* The other half is full. */
TEST_HYPERV(message)
{
	set_synic(self);
	run_timer(self);
	check_message(self);
	hv_check_decoy(self);
}

/* The guest has not taken the last message, though the other half is empty. */
TEST_HYPERV(message_waits)
{
	uint64_t seen;

	hv_decoy_fill(self, MSG_GPA, 0, PAGE_SIZE);
	set_synic(self);
	hv_write_u64(self, SINT_GPA, 1);
	run_timer(self);
	seen = hv_seen_u64(self, SINT_GPA);
	TEST_ASSERT(seen == (1 | MSG_PENDING),
		    "Expected a note that a message waits, the guest sees 0x%lx",
		    seen);
	hv_write_u64(self, SINT_GPA, 0);
	hv_wrmsr(self, HV_X64_MSR_EOM, 0);
	hv_seen_u64(self, HV_GPA);
	check_message(self);
	hv_check_decoy(self);
}

TEST_HYPERV(message_after_conversion)
{
	uint32_t *shared = hv_shared(self, SINT_GPA);

	set_synic(self);
	hv_make_shared(self, MSG_GPA);
	*shared = 0;
	run_timer(self);
	TEST_ASSERT(*shared == TIMER_EXPIRED,
		    "Expected a message in the shared page, got type 0x%x",
		    *shared);
	hv_check_decoy_but(self, MSG_GPA);

	hv_make_private(self, MSG_GPA);
	TEST_ASSERT(!hv_seen_u64(self, SINT_GPA),
		    "Wrote to the private page while it was not the guest's");
	*shared = HV_DECOY;
	run_timer(self);
	check_message(self);
	TEST_ASSERT(*shared == HV_DECOY, "Wrote to the shared half of a private page");
}

TEST_HYPERV(message_after_punch)
{
	set_synic(self);
	run_timer(self);
	hv_punch(self, MSG_GPA);
	TEST_ASSERT(!hv_seen_u64(self, SINT_GPA), "A punched page is not zero");
	run_timer(self);
	check_message(self);
	hv_check_decoy(self);
}

/* Guests of old get their pages cleared when they enable them. */
TEST_HYPERV(synic_clears_pages)
{
	vcpu_enable_cap(self->mem.vcpu, KVM_CAP_HYPERV_SYNIC, 0);
	vcpu_fill(self->mem.vcpu, MSG_GPA, ~0ull, PAGE_SIZE);
	vcpu_fill(self->mem.vcpu, EVENTS_GPA, ~0ull, PAGE_SIZE);
	hv_wrmsr(self, HV_X64_MSR_SIMP, MSG_GPA | ENABLE);
	hv_wrmsr(self, HV_X64_MSR_SIEFP, EVENTS_GPA | ENABLE);
	vcpu_check(self->mem.vcpu, MSG_GPA, 0, PAGE_SIZE);
	vcpu_check(self->mem.vcpu, EVENTS_GPA, 0, PAGE_SIZE);
	hv_check_decoy(self);
}

static int set_connection(struct hv_vm *hv, uint32_t id)
{
	struct kvm_hyperv_eventfd connection = { .conn_id = id, .fd = eventfd(0, EFD_NONBLOCK) };

	vm_ioctl(hv->mem.vm, KVM_HYPERV_EVENTFD, &connection);
	return connection.fd;
}

TEST_HYPERV(hypercall_signal)
{
	int fd = set_connection(self, CONNECTION), decoy = set_connection(self, DECOY_CONNECTION);
	uint64_t ret, nr;

	hv_write_u64(self, ARGS_GPA, CONNECTION);
	hv_decoy_u64(self, ARGS_GPA, DECOY_CONNECTION);
	ret = hypercall(self, SIGNAL_EVENT, ARGS_GPA);
	TEST_ASSERT(!ret, "Expected the event to be signalled, got 0x%lx", ret);
	TEST_ASSERT(eventfd_read(decoy, &nr), "Signalled what the other half names");
	TEST_ASSERT(!eventfd_read(fd, &nr) && nr == 1, "Expected one event, errno: %i", errno);
	hv_check_decoy(self);
}

static void check_ipi(struct hv_vm *hv, uint64_t ret)
{
	uint64_t nr;

	TEST_ASSERT(!ret, "Expected the IPI to be sent, got 0x%lx", ret);
	nr = hv_interrupts(hv);
	TEST_ASSERT(nr == 1, "Expected an interrupt, got %lu", nr);
	hv_check_decoy(hv);
}

/* No such vectors, no such vCPUs in the other half. */
TEST_HYPERV(hypercall_ipi)
{
	hv_expect_interrupts(self, IPI_VECTOR, NULL);
	hv_write_u64(self, ARGS_GPA, IPI_VECTOR);
	hv_write_u64(self, ARGS_GPA + 8, 1);
	hv_decoy_u64(self, ARGS_GPA, 1);
	hv_decoy_u64(self, ARGS_GPA + 8, 0);
	check_ipi(self, hypercall(self, SEND_IPI, ARGS_GPA));
}

/* The set of vCPUs begins behind a border of pages, with one of them shared. */
TEST_HYPERV(hypercall_sparse_set)
{
	uint64_t args = BORDER_GPA - 24;
	int i;

	hv_expect_interrupts(self, IPI_VECTOR, NULL);
	for (i = 0; i < 2; i++) {
		hv_write_u64(self, args, IPI_VECTOR);
		hv_write_u64(self, args + 8, 0);
		hv_write_u64(self, args + 16, 1);
		hv_write_u64(self, BORDER_GPA, 1);
		if (i)
			break;
		hv_make_shared(self, args);
		hv_decoy_u64(self, args, IPI_VECTOR);
		hv_decoy_u64(self, args + 8, 0);
		hv_decoy_u64(self, args + 16, 1);
		hv_decoy_u64(self, BORDER_GPA, 0);
		check_ipi(self, hypercall(self, SEND_IPI_EX | ONE_BANK, args));
		hv_wrmsr(self, 0x80b, 0);
		hv_make_private(self, args);
		hv_decoy_u64(self, args, 1);
	}
	TEST_ASSERT(!hypercall(self, SEND_IPI_EX | ONE_BANK, args), "Expected the IPI to be sent");
	TEST_ASSERT(hv_interrupts(self) == 2, "Expected another interrupt");
	hv_check_decoy(self);
}

TEST_HYPERV(hypercall_flush)
{
	uint64_t ret;

	hv_write_u64(self, ARGS_GPA + 24, 1);
	hv_write_u64(self, ARGS_GPA + 32, 1);
	hv_decoy_u64(self, ARGS_GPA + 24, 3);
	ret = hypercall(self, FLUSH_SPACE_EX | ONE_BANK, ARGS_GPA);
	TEST_ASSERT(!ret, "Expected the flush to be done, got 0x%lx", ret);
	hv_check_decoy(self);
}

/* Where there is no private page, nothing comes from the other half in its place. */
static void check_out_of_reach(struct hv_vm *hv)
{
	struct kvm_vcpu *vcpu = hv->mem.vcpu;
	struct kvm_regs regs = {};
	uint64_t ret;

	TEST_ASSERT(!_vcpu_set_msr(vcpu, HV_X64_MSR_HYPERCALL, CODE_GPA | ENABLE),
		    "Expected the hypercall page to be refused");
	TEST_ASSERT(!_vcpu_set_msr(vcpu, HV_X64_MSR_VP_ASSIST_PAGE, ASSIST_GPA | ENABLE),
		    "Expected the VP assist page to be refused");

	set_tsc(hv);
	hv_wrmsr(hv, HV_X64_MSR_STIMER0_COUNT, 1);
	send_msi(hv);
	hv_run(hv, HV_INTERRUPTS, &regs);

	ret = hypercall(hv, SIGNAL_EVENT, ARGS_GPA);
	TEST_ASSERT(ret == INVALID_ALIGNMENT,
		    "Expected error %i, got 0x%lx", INVALID_ALIGNMENT, ret);
	ret = hypercall(hv, SEND_IPI, ARGS_GPA);
	TEST_ASSERT(ret == INVALID_INPUT, "Expected error %i, got 0x%lx", INVALID_INPUT, ret);
	hv_check_decoy(hv);
}

/* Everything is set up, and the other half of the messages is empty. */
static void set_all(struct hv_vm *hv)
{
	set_connection(hv, DECOY_CONNECTION);
	hv_decoy_u64(hv, ARGS_GPA, DECOY_CONNECTION);
	hv_decoy_fill(hv, MSG_GPA, 0, PAGE_SIZE);
	hv_decoy_fill(hv, TSC_GPA, 0, PAGE_SIZE);
	set_synic(hv);
	set_assist(hv);
	set_tsc(hv);
}

TEST_HYPERV(close)
{
	set_all(self);
	close(self->mem.memfd);
	self->mem.memfd = -1;
	check_out_of_reach(self);
}

TEST_HYPERV(slot_deletion)
{
	set_all(self);
	private_mem_set_slot(&self->mem, 0);
	check_out_of_reach(self);
	private_mem_set_slot(&self->mem, HV_SIZE);
	hv_expect_interrupts(self, MSI_VECTOR, NULL);
	run_timer(self);
	check_message(self);
}

TEST_HYPERV(inaccessible)
{
	set_all(self);
	if (!set_private_mem_inaccessible(true))
		CASE_SKIP(NO_SWITCH);
	check_out_of_reach(self);
	set_private_mem_inaccessible(false);
	TEST_ASSERT(!hv_seen_u64(self, CODE_GPA) && !hv_seen_u64(self, ARGS_GPA),
		    "Wrote to memory that cannot be reached");
}

TEST_HARNESS_MAIN
