// SPDX-License-Identifier: GPL-2.0-only
/*
 * Conversions, punches and slot deletions under the feet of running vCPUs.
 *
 * The test takes a page through a sequence of states and gives each its own
 * contents, made from the state's number.  It publishes the number of the state
 * that it is about to enter, makes the change, and then publishes that the
 * change is complete.  vCPUs read the page all the while: what they get must be
 * the contents of a state between the last one completed before the read and the
 * last one begun after it.  Anything older is stale, anything else is from the
 * wrong half, from another page, or from nobody's page.
 *
 * The other pages of the block never change, and must never seem to.
 *
 * In the cases kvm_* it is KVM that uses the page for the vCPUs.  Nothing that it
 * writes gets into a half that has gone out of use, or into a page that was punched,
 * and nothing that it reads is from the wrong half, which has what would be believed.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <time.h>

#include "test_util.h"
#include "kvm_util.h"
#include "processor.h"
#include "apic.h"
#include "hyperv.h"
#include "private_mem.h"
#include "svm_util.h"

/* The harness has its own. */
#undef ASSERT_EQ
#include "kselftest_harness.h"

#define SLOT		PRIVATE_MEM_SLOT
#define GPA		PRIVATE_MEM_GPA
#define BLOCK_SIZE	PG_SIZE_2M
#define BLOCK_PAGES	512
#define SIZE		(2 * BLOCK_SIZE)

/* The page that changes, in the middle of its block. */
#define PAGE		200
#define PAGE_GPA	(GPA + PAGE * PAGE_SIZE)

#define MAX_VCPUS	4
#define RACES_TIMEOUT	600

/* In seconds.  What takes milliseconds has stopped if it takes this long. */
#define TOO_LONG	60

static int nr_vcpus = 2;
static int duration_ms = 2000;
static int kvm_duration_ms = 500;

enum { CALL_STALE = 1, CALL_NEIGHBOUR, CALL_OWN, CALL_HALF, CALL_DONE };

/*
 * Shared between the test and its guest, in a page of their own.
 *
 * Each state is a kind of the page and a number; the number is in the contents.
 */
struct control {
	uint64_t begun;
	uint64_t done;
	uint64_t stop;
	uint64_t nr_reads[MAX_VCPUS];
};

#define CONTROL_GVA	(GPA + 0x40000000ull)

/* What else a guest needs in memory that does not change, from there on. */
enum {
	CONTROL, RIGHT_DATA, WRONG_DATA, HSAVE, MSRPM_1,
	NPT_PML4, NPT_PDPT, NPT_PD, NPT_PD_LOW,
	VMCB, NEXT_VMCB = VMCB + MAX_VCPUS, NR_CONTROL_PAGES,
};

#define CONTROL_PAGE(nr)	(CONTROL_GVA + (nr) * PAGE_SIZE)

/* Addresses of a guest whose page table is the page that changes. */
#define WALK_GVA	(GPA + 0x80000000ull)

/* The same for a guest of the guest's. */
#define NPT_GVA		(GPA + 0xc0000000ull)

/* Shared pages of the host that are absent, some for each vCPU. */
#define ABSENT_GVA	(GPA + 0x100000000ull)
#define NR_ABSENT	16

#define MAGIC		0x5ca1ab1e00000000ull

static uint64_t contents(uint64_t state)
{
	return MAGIC | state;
}

/* Where the private half stays as it is; the page is private in even states then. */
#define KEPT	0x4b1d4b1d4b1d4b1dull

static uint64_t neighbour_contents(uint64_t gpa)
{
	return ~gpa;
}

/*
 * The guest.
 */

/*
 * The three reads are made in this order, by the compiler as by the processor.
 * Zeroes are what a page holds between its punch and the next write to it.
 */
static void guest_read_page(struct control *c, uint64_t *page, bool zero_in_flight)
{
	uint64_t done = READ_ONCE(c->done), val, begun;

	val = READ_ONCE(*page);
	begun = READ_ONCE(c->begun);

	if (val >= contents(done) && val <= contents(begun))
		return;
	if (val == KEPT && (begun != done || !(done & 1)))
		return;
	if (zero_in_flight && !val && begun != done)
		return;
	guest_call(CALL_STALE, val, done, begun);
}

static void guest_read_neighbours(uint64_t gpa, uint64_t pages)
{
	uint64_t end = gpa + pages * PAGE_SIZE;

	for (; gpa < end; gpa += PAGE_SIZE) {
		uint64_t val = READ_ONCE(*(uint64_t *)gpa);

		if (val != neighbour_contents(gpa))
			guest_call(CALL_NEIGHBOUR, gpa, neighbour_contents(gpa), val);
	}
}

/* Half of the vCPUs stay with the page, half read all of its neighbourhood. */
static void guest_reader(uint64_t index, uint64_t zero_in_flight)
{
	struct control *c = (void *)CONTROL_GVA;

	while (!READ_ONCE(c->stop)) {
		if (index & 1) {
			guest_read_neighbours(PAGE_GPA - 8 * PAGE_SIZE, 8);
			guest_read_page(c, (uint64_t *)PAGE_GPA, zero_in_flight);
			guest_read_neighbours(PAGE_GPA + PAGE_SIZE, 8);
		} else {
			guest_read_page(c, (uint64_t *)PAGE_GPA, zero_in_flight);
			guest_read_page(c, (uint64_t *)(PAGE_GPA + PAGE_SIZE - 8), zero_in_flight);
		}
		WRITE_ONCE(c->nr_reads[index], c->nr_reads[index] + 1);
	}

	/* Not even now may any of them have changed. */
	guest_read_neighbours(GPA, PAGE);
	guest_read_neighbours(PAGE_GPA + PAGE_SIZE, BLOCK_PAGES - PAGE - 1);
	guest_call(CALL_DONE, 0, 0, 0);
}

/* Writes to the page; which half that ends up in is the test's to judge. */
static void guest_writer(uint64_t index, uint64_t unused)
{
	struct control *c = (void *)CONTROL_GVA;
	uint64_t *words = (void *)PAGE_GPA;
	uint64_t i;

	for (i = 1; !READ_ONCE(c->stop); i++) {
		WRITE_ONCE(words[i % 512], i);
		if (index & 1)
			guest_read_neighbours(PAGE_GPA + PAGE_SIZE, 4);
		WRITE_ONCE(c->nr_reads[index], i);
	}
	guest_call(CALL_DONE, 0, 0, 0);
}

/*
 * Each vCPU converts a page of its own, next to those of the others, and knows
 * at each moment what the page holds.
 */
static void guest_converter(uint64_t index, uint64_t unused)
{
	struct control *c = (void *)CONTROL_GVA;
	uint64_t gpa = PAGE_GPA + index * PAGE_SIZE;
	uint64_t *word = (void *)(gpa + 8 * index);
	uint64_t i, half[2] = { 0, 0 }, private, val;

	WRITE_ONCE(*word, 0);
	for (i = 1; !READ_ONCE(c->stop); i++) {
		private = i & 1;
		if (guest_map_gpa_range(gpa, PAGE_SIZE, private))
			guest_call(CALL_OWN, gpa, -1, -1);

		val = READ_ONCE(*word);
		if (val != half[private])
			guest_call(CALL_OWN, gpa, half[private], val);

		half[private] = i << 8 | index << 1 | private;
		WRITE_ONCE(*word, half[private]);
		val = READ_ONCE(*word);
		if (val != half[private])
			guest_call(CALL_OWN, gpa, half[private], val);
		WRITE_ONCE(c->nr_reads[index], i);
	}
	guest_call(CALL_DONE, 0, 0, 0);
}

/*
 * Guests that have KVM use the page, each vCPU at a place of its own, and count
 * how often it has.
 */
#define KVM_WRITES_AT(index)	(PAGE_GPA + (index) * 512)

#define DEFINE_KVM_WRITER(name, prepare, write)					\
static void guest_kvm_##name(uint64_t index, uint64_t unused)			\
{										\
	struct control *c = (void *)CONTROL_GVA;				\
	uint64_t at = KVM_WRITES_AT(index), i;					\
										\
	prepare;								\
	for (i = 1; !READ_ONCE(c->stop); i++) {					\
		write;								\
		WRITE_ONCE(c->nr_reads[index], i);				\
	}									\
	guest_call(CALL_DONE, 0, 0, 0);						\
}

/* A port of the VMM's, who may have KVM do something in turn. */
#define VMM_PORT	0x60

static void guest_visit_vmm(void)
{
	asm volatile("outb %%al, %0" : : "i" (VMM_PORT) : "memory");
}

/* The guest names the page now and then, and else KVM has it at hand. */
static void guest_name_or_visit(uint64_t i, uint32_t msr, uint64_t at)
{
	if (i & 1)
		wrmsr(msr, at | KVM_MSR_ENABLED);
	else
		guest_visit_vmm();
}

DEFINE_KVM_WRITER(clock, (void)0, guest_name_or_visit(i, MSR_KVM_SYSTEM_TIME_NEW, at));
DEFINE_KVM_WRITER(wall_clock, (void)0, wrmsr(MSR_KVM_WALL_CLOCK_NEW, at));
DEFINE_KVM_WRITER(steal_time, (void)0, guest_name_or_visit(i, MSR_KVM_STEAL_TIME, at));
DEFINE_KVM_WRITER(string_in, (void)0,
		  asm volatile("insb" : "+D" (at) : "d" (GUEST_CALL_PORT) : "memory");
		  at = KVM_WRITES_AT(index));
DEFINE_KVM_WRITER(store, (void)0,
		  asm volatile(FORCED_EMULATION "mov %0, (%1)"
			       : : "r" (i), "r" (at) : "memory"));
DEFINE_KVM_WRITER(locked, (void)0,
		  asm volatile(FORCED_EMULATION "lock addq $1, (%0)"
			       : : "r" (at) : "memory", "cc"));

static void guest_vmsave(void)
{
	asm volatile("vmsave %%rax" : : "a" (PAGE_GPA) : "memory");
}

DEFINE_KVM_WRITER(vmsave, (void)at, guest_vmsave());

/*
 * The end of an interrupt.  The guest makes one more, by the register, for the page
 * may be another one by the time that KVM looks for the bit.
 */
#define EOI_VECTOR	0x40

static uint64_t guest_eoi_at[MAX_VCPUS];

static void guest_eoi_handler(struct ex_regs *regs)
{
	uint32_t *eoi = (uint32_t *)guest_eoi_at[x2apic_read_reg(APIC_ID)];
	bool set;

	asm volatile("btrl $0, %0" : "+m" (*eoi), "=@ccc" (set));
	if (!set)
		x2apic_write_reg(APIC_EOI, 0);
}

static void guest_eoi_set(uint64_t index, uint64_t at)
{
	x2apic_enable();
	guest_eoi_at[index] = at;
}

static void guest_interrupt_self(void)
{
	x2apic_write_reg(APIC_EOI, 0);
	x2apic_write_reg(APIC_ICR, APIC_DEST_SELF | APIC_INT_ASSERT | APIC_DM_FIXED | EOI_VECTOR);
	guest_take_interrupts();
}

DEFINE_KVM_WRITER(eoi,
		  guest_eoi_set(index, at); wrmsr(MSR_KVM_PV_EOI_EN, at | KVM_MSR_ENABLED),
		  guest_interrupt_self());

/*
 * Asynchronous page faults.  The guest waits for a page to be there, but not for
 * long: that it is might have been said in the other half.
 */
#define APF_VECTOR	0x50

static void guest_fault_handler(struct ex_regs *regs)
{
	struct kvm_vcpu_pv_apf_data *apf = (void *)KVM_WRITES_AT(x2apic_read_reg(APIC_ID));
	int i;

	WRITE_ONCE(apf->flags, 0);
	for (i = 0; i < 10; i++)
		guest_take_interrupts();
}

static void guest_ready_handler(struct ex_regs *regs)
{
	struct kvm_vcpu_pv_apf_data *apf = (void *)KVM_WRITES_AT(x2apic_read_reg(APIC_ID));

	WRITE_ONCE(apf->token, 0);
	wrmsr(MSR_KVM_ASYNC_PF_ACK, 1);
	x2apic_write_reg(APIC_EOI, 0);
}

static void guest_apf_set(uint64_t at)
{
	x2apic_enable();
	wrmsr(MSR_KVM_ASYNC_PF_INT, APF_VECTOR);
	wrmsr(MSR_KVM_ASYNC_PF_EN, at | KVM_ASYNC_PF_ENABLED | KVM_ASYNC_PF_SEND_ALWAYS |
	      KVM_ASYNC_PF_DELIVERY_AS_INT);
}

static void guest_touch_absent(uint64_t index, uint64_t at, uint64_t i)
{
	struct kvm_vcpu_pv_apf_data *apf = (void *)at;
	uint64_t gva = ABSENT_GVA + (index * NR_ABSENT + i % NR_ABSENT) * PAGE_SIZE;

	/* KVM waits with the next until it sees that the guest has taken the last. */
	WRITE_ONCE(apf->flags, 0);
	WRITE_ONCE(apf->token, 0);
	wrmsr(MSR_KVM_ASYNC_PF_ACK, 1);
	asm volatile(INTERRUPTIBLE("mov (%0), %%rax") : : "r" (gva) : "memory", "cc", "rax");
}

DEFINE_KVM_WRITER(async_pf, guest_apf_set(at), guest_touch_absent(index, at, i));

/*
 * Xen.  What the vCPU's pages have is written when it is loaded; events are sent by
 * the guest or the test, and taken by the guest.
 */
#define XEN_PORT		24
#define XEN_SEND_PORT		100
#define XEN_GSI			32
#define XEN_PENDING		(PAGE_GPA + 0x800)
#define XEN_EVENT_CHANNEL_OP	32
#define XEN_SEND		4

static uint64_t guest_hypercall(uint64_t rax, uint64_t rcx, uint64_t rdx, uint64_t rdi,
				uint64_t rsi)
{
	asm volatile("vmcall" : "+a" (rax) : "c" (rcx), "d" (rdx), "D" (rdi), "S" (rsi)
		     : "memory");
	return rax;
}

static void guest_take_event(uint64_t index, uint64_t at)
{
	asm volatile("lock btrq %1, %0"
		     : "+m" (*(uint64_t *)XEN_PENDING) : "r" (XEN_PORT + index) : "cc");
	WRITE_ONCE(((uint64_t *)at)[0], 0);
	WRITE_ONCE(((uint64_t *)at)[1], 0);
}

static void guest_send_event(uint64_t index)
{
	uint32_t port = XEN_SEND_PORT + index;

	guest_hypercall(XEN_EVENT_CHANNEL_OP, 0, 0, XEN_SEND, (uint64_t)&port);
}

DEFINE_KVM_WRITER(xen_vcpu, (void)at, guest_visit_vmm());
DEFINE_KVM_WRITER(xen_event, (void)0, guest_take_event(index, at); guest_send_event(index));
DEFINE_KVM_WRITER(xen_irqfd, (void)0, guest_take_event(index, at));

/*
 * Hyper-V.
 */
#define HV_OS_ID		0x5a
#define HV_SINT(index)		(2 + (index))
#define HV_SINT_AT(index)	(PAGE_GPA + HV_SINT(index) * 256)
#define HV_SIGNAL_EVENT		0x5d
#define HV_INVALID_INPUT	3

static void guest_hv_set_timer(uint64_t index)
{
	x2apic_enable();
	wrmsr(HV_X64_MSR_SCONTROL, 1);
	wrmsr(HV_X64_MSR_SINT0 + HV_SINT(index), 0x90);
	wrmsr(HV_X64_MSR_SIMP, PAGE_GPA | 1);
	wrmsr(HV_X64_MSR_STIMER0_CONFIG, HV_SINT(index) << 16 | 1 << 3);
}

static void guest_hv_expire_timer(uint64_t index)
{
	WRITE_ONCE(*(uint64_t *)HV_SINT_AT(index), 0);
	wrmsr(HV_X64_MSR_EOM, 0);
	wrmsr(HV_X64_MSR_STIMER0_COUNT, 1);
}

DEFINE_KVM_WRITER(hv_tsc, (void)at, wrmsr(HV_X64_MSR_REFERENCE_TSC, PAGE_GPA | 1));
DEFINE_KVM_WRITER(hv_hypercall_page, wrmsr(HV_X64_MSR_GUEST_OS_ID, HV_OS_ID); (void)at,
		  wrmsr(HV_X64_MSR_HYPERCALL, PAGE_GPA | 1));
DEFINE_KVM_WRITER(hv_assist, (void)at, wrmsr(HV_X64_MSR_VP_ASSIST_PAGE, PAGE_GPA | 1));
DEFINE_KVM_WRITER(hv_eoi, guest_eoi_set(index, PAGE_GPA); (void)at;
		  wrmsr(HV_X64_MSR_VP_ASSIST_PAGE, PAGE_GPA | 1), guest_interrupt_self());
DEFINE_KVM_WRITER(hv_message, guest_hv_set_timer(index); (void)at,
		  guest_hv_expire_timer(index));

/*
 * What KVM reads from the page comes from the half that the guest has.  The shared
 * one holds in all states what would be believed, and the private one nothing, or
 * what the guest wrote there.
 */
static void guest_judge(struct control *c, uint64_t done, bool from_shared, bool judge_shared)
{
	uint64_t begun = READ_ONCE(c->begun);

	if (begun != done || (done & 1 && !judge_shared))
		return;
	if (from_shared != (done & 1))
		guest_call(CALL_HALF, done, 0, 0);
}

#define DEFINE_KVM_READER(name, prepare, from_shared, judge_shared)		\
static void guest_kvm_##name(uint64_t index, uint64_t unused)			\
{										\
	struct control *c = (void *)CONTROL_GVA;				\
	uint64_t at = KVM_WRITES_AT(index), i, done;				\
										\
	prepare;								\
	for (i = 1; !READ_ONCE(c->stop); i++) {					\
		done = READ_ONCE(c->done);					\
		guest_judge(c, done, from_shared, judge_shared);		\
		WRITE_ONCE(c->nr_reads[index], i);				\
	}									\
	guest_call(CALL_DONE, 0, 0, 0);						\
}

static uint64_t guest_read_operand(uint64_t at)
{
	uint64_t val;

	asm volatile(FORCED_EMULATION "mov (%1), %0" : "=r" (val) : "r" (at) : "memory");
	return val;
}

/*
 * An instruction whose operand is the first word of the page: a return that leaves
 * so many bytes of the stack behind.  Nothing in the page is executed.
 */
#define FETCH_GVA	(PAGE_GPA - 6)

static void guest_put_return(void)
{
	static const uint8_t code[] = { 0x0f, 0x0b, 'k', 'v', 'm', 0xc2 };
	int i;

	for (i = 0; i < sizeof(code); i++)
		WRITE_ONCE(((uint8_t *)FETCH_GVA)[i], code[i]);
}

static uint64_t guest_fetch(void)
{
	uint64_t left;

	asm volatile("sub $128, %%rsp\n"
		     "mov %%rsp, %%r12\n"
		     "lea 1f(%%rip), %%rax\n"
		     "push %%rax\n"
		     "jmp *%1\n"
		     "1: mov %%rsp, %0\n"
		     "mov %%r12, %%rsp\n"
		     "sub %%r12, %0\n"
		     "add $128, %%rsp"
		     : "=&r" (left) : "r" (FETCH_GVA) : "rax", "r12", "memory", "cc");
	return left;
}

/* What page tables in the page lead to, with nothing said about what KVM has done. */
#define RIGHT		0x600d
#define WRONG		0xbad
#define ENTRY		(PTE_PRESENT_MASK | PTE_WRITABLE_MASK | PTE_USER_MASK)

#define ENTRY_OF(index)	((index) * 64)

static void guest_put_entry(uint64_t index)
{
	WRITE_ONCE(((uint64_t *)PAGE_GPA)[ENTRY_OF(index)], CONTROL_PAGE(RIGHT_DATA) | ENTRY);
}

/* Behind an instruction that faults, the guest goes on. */
static void guest_skip_fault(struct ex_regs *regs)
{
	regs->rip = regs->r11;
}

static uint64_t guest_walk(uint64_t index)
{
	uint64_t gva = WALK_GVA + ENTRY_OF(index) * PAGE_SIZE, val = 0;

	guest_put_entry(index);
	asm volatile("lea 1f(%%rip), %%r11\n"
		     FORCED_EMULATION "mov (%1), %0\n"
		     "1: lea 2f(%%rip), %%r11\n"
		     FORCED_EMULATION "mov %0, 8(%1)\n"
		     "2:" : "+r" (val) : "r" (gva) : "r11", "memory");
	return val;
}

static bool guest_hv_signal(uint64_t at)
{
	return guest_hypercall(0, HV_SIGNAL_EVENT, at, 0, 0) == HV_INVALID_INPUT;
}

DEFINE_KVM_READER(operand, (void)0, guest_read_operand(at), true);
DEFINE_KVM_READER(instruction, guest_put_return(); (void)at, guest_fetch(), true);
DEFINE_KVM_READER(page_table, (void)at, guest_walk(index) == WRONG, false);
DEFINE_KVM_READER(hv_input, wrmsr(HV_X64_MSR_GUEST_OS_ID, HV_OS_ID), guest_hv_signal(at), true);

/*
 * A hypervisor.  Its guest says in RBX whether it is the right one, and that it got to
 * the end.
 */
#define L2(name, insns, val)							\
	asm(".pushsection .text\n" #name ":" insns				\
	    "; mov $" __stringify(val) ", %ebx; vmmcall\n.popsection\n")

L2(l2_right, "", RIGHT);
L2(l2_wrong, "", WRONG);
L2(l2_msr, "mov $" __stringify(MSR_LSTAR) ", %ecx; rdmsr", RIGHT);
L2(l2_port, "outb %al, $" __stringify(VMM_PORT), RIGHT);
extern char l2_right[], l2_wrong[], l2_msr[], l2_port[], l2_read[];
asm(".pushsection .text\nl2_read: mov (%rdi), %rbx; vmmcall\n.popsection\n");

static uint64_t guest_vmrun(uint64_t vmcb, uint64_t rdi)
{
	uint64_t rbx = 0;

	asm volatile("vmrun %%rax; stgi" : "+b" (rbx), "+D" (rdi) : "a" (vmcb)
		     : "rcx", "rdx", "cc", "memory");
	return rbx;
}

static uint64_t guest_vmrun_own(uint64_t index, char *rip, uint64_t rdi)
{
	struct vmcb *vmcb = (void *)CONTROL_PAGE(VMCB + index);

	WRITE_ONCE(vmcb->save.rip, (uint64_t)rip);
	return guest_vmrun((uint64_t)vmcb, rdi);
}

/*
 * One vCPU puts its VMCB into the page, and runs it; the others save there what VMRUN
 * does not load.  What is lost of the VMCB in between is its first part, and it is none.
 */
static uint64_t guest_vmrun_page(uint64_t index)
{
	uint64_t from = CONTROL_PAGE(VMCB), to = PAGE_GPA, nr = PAGE_SIZE;

	if (index) {
		guest_vmsave();
		return 0;
	}
	asm volatile("rep movsb" : "+S" (from), "+D" (to), "+c" (nr) : : "memory");
	return guest_vmrun(PAGE_GPA, 0);
}

static uint64_t guest_vmrun_npt(uint64_t index)
{
	guest_put_entry(index);
	return guest_vmrun_own(index, l2_read, NPT_GVA + ENTRY_OF(index) * PAGE_SIZE);
}

DEFINE_KVM_READER(vmcb, (void)at, guest_vmrun_page(index) == WRONG, false);
DEFINE_KVM_READER(npt, (void)at, guest_vmrun_npt(index) == WRONG, false);
DEFINE_KVM_READER(msr_map, (void)at, guest_vmrun_own(index, l2_msr, 0) != RIGHT, true);
DEFINE_KVM_READER(io_map, (void)at, guest_vmrun_own(index, l2_port, 0) != RIGHT, true);

/*
 * The VMM.
 */

struct test {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[MAX_VCPUS];
	pthread_t threads[MAX_VCPUS];
	struct control *control;
	int memfd;
	bool huge;		/* the file is in huge pages, and has all of them */
	int nr_huge;
	uint8_t *shared;
	/* Makes what the shared half of the page is to hold, if not contents(). */
	void (*fill)(struct test *t, void *page, uint64_t nr);
	/* What the guest wants of the VMM when it visits it. */
	void (*visited)(struct test *t);
	/* What serves the guest, or disturbs it, beside the vCPUs. */
	pthread_t helper;
	int fd;
	uint8_t *absent;
	/* Faults are part of the test. */
	bool may_fault;
	atomic_ulong nr_faults;
};

static void handle_hypercall(struct test *t, struct kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	bool private = run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED;

	vm_set_memory_attributes(t->vm, run->hypercall.args[0],
				 run->hypercall.args[1] * PAGE_SIZE,
				 private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0);
	run->hypercall.ret = 0;
}

struct vcpu_arg {
	struct test *t;
	struct kvm_vcpu *vcpu;
};

static struct vcpu_arg vcpu_args[MAX_VCPUS];

static void *vcpu_worker(void *data)
{
	struct vcpu_arg *arg = data;
	struct test *t = arg->t;
	struct kvm_vcpu *vcpu = arg->vcpu;
	struct kvm_run *run = vcpu->run;
	struct guest_call call;

	for (;;) {
		int ret = _vcpu_run(vcpu);

		if (ret) {
			uint64_t gpa = run->memory_fault.gpa;

			TEST_ASSERT(t->may_fault, "KVM_RUN failed, rc: %i errno: %i exit: %u (%s)",
				    ret, errno, run->exit_reason,
				    exit_reason_str(run->exit_reason));
			vcpu_assert_private_fault(vcpu, ret, errno, gpa);
			TEST_ASSERT(gpa >= GPA && gpa < GPA + SIZE, "Fault at 0x%lx", gpa);
			atomic_fetch_add(&t->nr_faults, 1);
			continue;
		}

		if (run->exit_reason == KVM_EXIT_HYPERCALL) {
			handle_hypercall(t, vcpu);
			continue;
		}

		/* INS gets whatever there is. */
		if (run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_IN)
			continue;
		if (run->exit_reason == KVM_EXIT_IO && run->io.port == VMM_PORT) {
			if (t->visited)
				t->visited(t);
			continue;
		}

		/* Of some MSRs userspace is told. */
		if (run->exit_reason == KVM_EXIT_HYPERV)
			continue;

		TEST_ASSERT(vcpu_get_guest_call(vcpu, &call), "Unexpected exit %u (%s)",
			    run->exit_reason, exit_reason_str(run->exit_reason));
		switch (call.nr) {
		case CALL_DONE:
			return NULL;
		case CALL_STALE:
			TEST_FAIL("vCPU %u: expected 0x%lx to 0x%lx, by the state, read 0x%lx",
				  vcpu->id, contents(call.args[1]), contents(call.args[2]),
				  call.args[0]);
		case CALL_NEIGHBOUR:
			TEST_FAIL("vCPU %u: expected 0x%lx at 0x%lx, as ever, read 0x%lx",
				  vcpu->id, call.args[1], call.args[0], call.args[2]);
		case CALL_OWN:
			TEST_FAIL("vCPU %u: expected 0x%lx at 0x%lx, its own page, read 0x%lx",
				  vcpu->id, call.args[1], call.args[0], call.args[2]);
		case CALL_HALF:
			TEST_FAIL("vCPU %u: expected KVM to read the %s half, in state %lu",
				  vcpu->id, call.args[0] & 1 ? "shared" : "private", call.args[0]);
		default:
			TEST_FAIL("Unknown guest call %lu", call.nr);
		}
	}
}

/* Fills a page with what it is to hold, but for the words in the middle. */
static void fill_page(void *page, uint64_t val)
{
	uint64_t *p = page;
	int i;

	for (i = 0; i < PAGE_SIZE / 8; i++)
		p[i] = val;
}

static void slot_set(struct test *t, uint64_t size)
{
	vm_set_user_memory_region2(t->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, size, t->shared,
				   t->memfd, 0);
}

/*
 * Two blocks of shared memory that can be mapped huge, and a file behind them
 * that is twice as large.  In the half given by private, each page but the one
 * that changes holds its neighbour_contents(), and in the other half OTHER.
 */
#define OTHER	0x0bad0bad0bad0badull

#define NR_BLOCKS	(SIZE / BLOCK_SIZE)
#define HUGE_TRIES	10

/* Each block at once, or it would be in small pages. */
static void fill_block(struct test *t, int block, uint8_t *data)
{
	int i;

	for (i = 0; i < BLOCK_PAGES; i++)
		fill_page(data + i * PAGE_SIZE,
			  neighbour_contents(GPA + block * BLOCK_SIZE + i * PAGE_SIZE));
	if (!block)
		fill_page(data + PAGE * PAGE_SIZE, KEPT);
	guest_memfd_write(t->memfd, data, BLOCK_SIZE, block * BLOCK_SIZE);
}

/*
 * KVM takes what 2 MiB the host has in one piece, and makes none.  Returns how many of
 * the blocks are huge, whatever has been done for that.
 */
static int fill_huge_file(struct test *t)
{
	uint8_t *data = shared_mem_alloc(BLOCK_SIZE);
	int block, try, nr = 0;
	long before;

	t->memfd = vm_create_guest_memfd(t->vm, SIZE, KVM_GUEST_MEMFD_ALLOW_HUGEPAGE);
	for (block = 0; block < NR_BLOCKS; block++) {
		for (try = 0; try < HUGE_TRIES; try++) {
			before = file_huge_bytes();
			fill_block(t, block, data);
			if (file_huge_bytes() >= before + (long)BLOCK_SIZE) {
				nr++;
				break;
			}
			guest_memfd_punch(t->memfd, block * BLOCK_SIZE, BLOCK_SIZE);
			if (!access("/proc/sys/vm/compact_memory", W_OK))
				dir_write("/proc/sys/vm", "compact_memory", "1");
		}
	}
	munmap(data, BLOCK_SIZE);
	return nr;
}

static void test_create(struct test *t, void *guest_code, uint64_t arg, bool private)
{
	uint8_t page[PAGE_SIZE];
	void *control;
	int i;

	t->vm = private_mem_vm_create(nr_vcpus, 0x40000000ull / PAGE_SIZE, guest_code, t->vcpus);
	if (t->huge)
		t->nr_huge = fill_huge_file(t);
	else
		t->memfd = vm_create_guest_memfd(t->vm, 2 * SIZE, 0);

	t->shared = align_ptr_up(shared_mem_alloc(SIZE + BLOCK_SIZE), BLOCK_SIZE);
	madvise(t->shared, SIZE, MADV_HUGEPAGE);
	for (i = 0; i < SIZE / PAGE_SIZE; i++) {
		uint64_t val = neighbour_contents(GPA + i * PAGE_SIZE);

		fill_page(t->shared + i * PAGE_SIZE, private ? OTHER : val);
		if (i == PAGE || t->huge)
			continue;
		fill_page(page, private ? val : OTHER);
		guest_memfd_write(t->memfd, page, PAGE_SIZE, i * PAGE_SIZE);
	}
	slot_set(t, SIZE);
	if (private)
		vm_mem_set_private(t->vm, GPA, SIZE);
	virt_map(t->vm, GPA, GPA, SIZE / PAGE_SIZE);

	control = shared_mem_alloc(NR_CONTROL_PAGES * PAGE_SIZE);
	vm_set_user_memory_region(t->vm, SLOT + 1, 0, CONTROL_GVA, NR_CONTROL_PAGES * PAGE_SIZE,
				  control);
	virt_map(t->vm, CONTROL_GVA, CONTROL_GVA, NR_CONTROL_PAGES);
	t->control = control;

	for (i = 0; i < nr_vcpus; i++)
		vcpu_args_set(t->vcpus[i], 2, (uint64_t)i, arg);
}

/* Each vCPU has read at least once more, so that it has met the state there is. */
static void wait_for_vcpus(struct test *t)
{
	uint64_t old[MAX_VCPUS];
	struct timespec start;
	int i;

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (i = 0; i < nr_vcpus; i++)
		old[i] = READ_ONCE(t->control->nr_reads[i]);
	for (i = 0; i < nr_vcpus; i++) {
		while (READ_ONCE(t->control->nr_reads[i]) < old[i] + 2) {
			sched_yield();
			TEST_ASSERT(timespec_elapsed(start).tv_sec < TOO_LONG,
				    "vCPU %d has come no further for %d s", i, TOO_LONG);
		}
	}
}

/* The vCPUs have met @nr more faults. */
static void wait_for_faults(struct test *t, unsigned long nr)
{
	unsigned long faults = atomic_load(&t->nr_faults);
	struct timespec start;

	clock_gettime(CLOCK_MONOTONIC, &start);
	while (atomic_load(&t->nr_faults) < faults + nr) {
		sched_yield();
		TEST_ASSERT(timespec_elapsed(start).tv_sec < TOO_LONG,
			    "Expected %lu more faults after %lu, the vCPUs met %lu in %d s",
			    nr, faults, atomic_load(&t->nr_faults) - faults, TOO_LONG);
	}
}

static void test_start(struct test *t)
{
	int i;

	for (i = 0; i < nr_vcpus; i++) {
		vcpu_args[i].t = t;
		vcpu_args[i].vcpu = t->vcpus[i];
		TEST_ASSERT(!pthread_create(&t->threads[i], NULL, vcpu_worker, &vcpu_args[i]),
			    "pthread_create() failed");
	}
	wait_for_vcpus(t);
}

static void test_stop(struct test *t)
{
	int i;

	WRITE_ONCE(t->control->stop, 1);
	for (i = 0; i < nr_vcpus; i++)
		pthread_join(t->threads[i], NULL);
}

struct rounds {
	struct timespec start;
	unsigned long nr;
	int ms;
};

static bool next_round(struct rounds *rounds)
{
	if (!rounds->nr)
		clock_gettime(CLOCK_MONOTONIC, &rounds->start);

	return rounds->nr++ < 4 ||
	       timespec_to_ns(timespec_elapsed(rounds->start)) <
	       (rounds->ms ?: duration_ms) * 1000000ll;
}

static void state_begin(struct test *t, uint64_t state)
{
	atomic_thread_fence(memory_order_seq_cst);
	WRITE_ONCE(t->control->begun, state);
	atomic_thread_fence(memory_order_seq_cst);
}

static void state_done(struct test *t, uint64_t state)
{
	atomic_thread_fence(memory_order_seq_cst);
	WRITE_ONCE(t->control->done, state);
	atomic_thread_fence(memory_order_seq_cst);
}

/* Now and then all vCPUs get to see a state; most often they must be quick. */
static void linger(struct test *t, unsigned long round)
{
	if (!(round % 4))
		wait_for_vcpus(t);
}

static void write_private(struct test *t, uint64_t val)
{
	uint8_t page[PAGE_SIZE];

	fill_page(page, val);
	guest_memfd_write(t->memfd, page, PAGE_SIZE, PAGE * PAGE_SIZE);
}

/*
 * Take the page away and give another one.  A vCPU may be quicker, and get an empty
 * page: with a conversion before this, by a fault that was under way then.  It maps
 * nothing any more, but may still allocate.
 */
static void replace_private(struct test *t, uint64_t val)
{
	uint8_t page[PAGE_SIZE];
	ssize_t ret;

	fill_page(page, val);
	do {
		guest_memfd_punch(t->memfd, PAGE * PAGE_SIZE, PAGE_SIZE);
		ret = pwrite(t->memfd, page, PAGE_SIZE, PAGE * PAGE_SIZE);
		TEST_ASSERT(ret == PAGE_SIZE || (ret == -1 && errno == EEXIST),
			    "Expected EEXIST at most, rc: %zd errno: %i", ret, errno);
	} while (ret != PAGE_SIZE);
}

FIXTURE(races) {
	struct test t;
	bool skipped;
};

FIXTURE_SETUP(races) { }

FIXTURE_TEARDOWN(races)
{
	if (self->skipped)
		return;

	TEST_ASSERT(self->t.nr_faults || !self->t.may_fault, "No vCPU has ever met a fault");
	slot_set(&self->t, 0);
	close(self->t.memfd);
	kvm_vm_free(self->t.vm);
}

/* Returns why there is nothing to be seen, if the host has no huge pages after all that. */
static const char *test_create_huge(struct test *t, void *guest)
{
	static char why[80];

	t->huge = true;
	test_create(t, guest, false, true);
	if (t->nr_huge == NR_BLOCKS)
		return NULL;

	snprintf(why, sizeof(why), "The host gave %d of %d huge pages, in %d tries for each",
		 t->nr_huge, NR_BLOCKS, HUGE_TRIES);
	return why;
}

/* Has all vCPUs see a block that is private as a whole, and has a huge page. */
static void expect_huge(struct test *t)
{
	wait_for_vcpus(t);
	TEST_ASSERT(vm_get_stat(t->vm, "pages_2m") == 1,
		    "Expected the block that is read to be mapped huge, %lu are",
		    vm_get_stat(t->vm, "pages_2m"));
}

/*
 * From shared to private and back, in a block that is else shared and so is
 * mapped huge whenever all of it is.  The half that is not in use gets its next
 * contents meanwhile; for the private one this takes a punch.
 */
static void convert(struct test *t, bool block_is_private)
{
	uint64_t state = 0, *shared = (uint64_t *)(t->shared + PAGE * PAGE_SIZE);
	struct rounds rounds = {};

	/* State 0: like the rest of its block. */
	if (block_is_private && !t->huge)
		write_private(t, contents(state));
	else if (!block_is_private)
		fill_page(shared, contents(state));
	test_start(t);

	while (next_round(&rounds)) {
		bool to_private = block_is_private ^ !(state & 1);

		state++;
		if (to_private && !t->huge)
			replace_private(t, contents(state));
		else if (!to_private)
			fill_page(shared, contents(state));

		state_begin(t, state);
		vm_set_memory_attributes(t->vm, PAGE_GPA, PAGE_SIZE,
					 to_private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0);
		state_done(t, state);
		linger(t, rounds.nr);
		if (t->huge && to_private && !(rounds.nr % 8))
			expect_huge(t);
	}
	test_stop(t);
}

TEST_F_TIMEOUT(races, convert_in_shared_block, RACES_TIMEOUT)
{
	test_create(&self->t, guest_reader, false, false);
	convert(&self->t, false);
}

TEST_F_TIMEOUT(races, convert_in_private_block, RACES_TIMEOUT)
{
	test_create(&self->t, guest_reader, false, true);
	convert(&self->t, true);
}

/* The block is mapped huge whenever the page is private. */
TEST_F_TIMEOUT(races, convert_in_huge_block, RACES_TIMEOUT)
{
	const char *why = test_create_huge(&self->t, guest_reader);

	self->skipped = why;
	if (why)
		SKIP(return, "%s", why);
	convert(&self->t, true);
}

/* The page stays private; its memory is taken away and replaced. */
TEST_F_TIMEOUT(races, punch, RACES_TIMEOUT)
{
	struct test *t = &self->t;
	struct rounds rounds = {};
	uint64_t state = 0;

	test_create(t, guest_reader, true, true);
	write_private(t, contents(state));
	test_start(t);

	while (next_round(&rounds)) {
		state_begin(t, ++state);
		replace_private(t, contents(state));
		state_done(t, state);
		linger(t, rounds.nr);
	}
	test_stop(t);
}

/* With the slot gone nobody reads; back it comes with another page in its place. */
TEST_F_TIMEOUT(races, slot_deletion, RACES_TIMEOUT)
{
	struct test *t = &self->t;
	struct rounds rounds = {};
	uint64_t state = 0;

	test_create(t, guest_reader, false, true);
	t->may_fault = true;
	write_private(t, contents(state));
	test_start(t);

	while (next_round(&rounds)) {
		state_begin(t, ++state);
		slot_set(t, 0);
		guest_memfd_punch(t->memfd, PAGE * PAGE_SIZE, PAGE_SIZE);
		write_private(t, contents(state));
		state_done(t, state);
		if (!(rounds.nr % 4))
			wait_for_faults(t, 2);
		slot_set(t, SIZE);
		linger(t, rounds.nr);
	}
	test_stop(t);
}

/* What was mapped huge is so again when the slot is back. */
TEST_F_TIMEOUT(races, slot_deletion_of_huge_blocks, RACES_TIMEOUT)
{
	struct test *t = &self->t;
	struct rounds rounds = {};
	const char *why = test_create_huge(t, guest_reader);

	self->skipped = why;
	if (why)
		SKIP(return, "%s", why);
	t->may_fault = true;
	test_start(t);

	while (next_round(&rounds)) {
		slot_set(t, 0);
		if (!(rounds.nr % 4))
			wait_for_faults(t, 2);
		slot_set(t, SIZE);
		if (!(rounds.nr % 8))
			expect_huge(t);
	}
	test_stop(t);
}

/* The same for a slot that lies in the same block as the one that is in use. */
TEST_F_TIMEOUT(races, neighbour_slot_deletion, RACES_TIMEOUT)
{
	struct test *t = &self->t;
	uint64_t split = 300 * PAGE_SIZE;
	struct rounds rounds = {};

	test_create(t, guest_reader, true, true);
	write_private(t, contents(0));
	slot_set(t, 0);
	vm_set_user_memory_region2(t->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, split, t->shared,
				   t->memfd, 0);
	vm_set_user_memory_region2(t->vm, SLOT + 2, KVM_MEM_GUEST_MEMFD, GPA + split,
				   SIZE - split, t->shared + split, t->memfd, split);
	test_start(t);

	while (next_round(&rounds)) {
		vm_set_user_memory_region2(t->vm, SLOT + 2, KVM_MEM_GUEST_MEMFD, GPA + split, 0,
					   t->shared + split, t->memfd, split);
		linger(t, rounds.nr);
		vm_set_user_memory_region2(t->vm, SLOT + 2, KVM_MEM_GUEST_MEMFD, GPA + split,
					   SIZE - split, t->shared + split, t->memfd, split);
		linger(t, rounds.nr);
	}
	test_stop(t);
}

/* Punches the page, and sees that nobody writes to what was freed. */
static void punch_and_check(struct test *t, unsigned long round)
{
	uint8_t *p;
	int j;

	guest_memfd_punch(t->memfd, PAGE * PAGE_SIZE, PAGE_SIZE);

	/* The page is anybody's now: take what was just freed. */
	p = mmap(NULL, 64 * PAGE_SIZE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	TEST_ASSERT(p != MAP_FAILED, __KVM_SYSCALL_ERROR("mmap()", -1));
	linger(t, round);
	for (j = 0; j < 64 * PAGE_SIZE; j++)
		TEST_ASSERT(!p[j], "The guest wrote to a page that it had no more");
	munmap(p, 64 * PAGE_SIZE);
}

static void remap_page(struct test *t, int fd, off_t offset)
{
	void *page = t->shared + PAGE * PAGE_SIZE;

	TEST_ASSERT(mmap(page, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
			 offset) == page, __KVM_SYSCALL_ERROR("mmap()", -1));
}

static void fill_shared(struct test *t, uint64_t nr)
{
	void *page = t->shared + PAGE * PAGE_SIZE;

	if (t->fill)
		t->fill(t, page, nr);
	else
		fill_page(page, contents(nr));
}

static void check_shared(struct test *t, const uint64_t *want)
{
	uint64_t *shared = (uint64_t *)(t->shared + PAGE * PAGE_SIZE);
	int i;

	for (i = 0; i < PAGE_SIZE / 8; i++)
		TEST_ASSERT(shared[i] == want[i],
			    "Expected 0x%lx at 0x%lx of the shared half of a private page, found 0x%lx",
			    want[i], i * 8ul, shared[i]);
}

enum who {
	BY_GUEST,	/* The writes are the guest's own */
	BY_KVM,		/* KVM's, which looks up the page for each of them */
	BY_KVM_HELD,	/* The same, but it has hold of the page in between */
};

/*
 * Once the page has been converted no write gets to the half that was left.  One that
 * KVM makes on behalf of the guest may have been under way, and still reach what it
 * was meant for; when each vCPU has moved on there is none.
 */
static void check_writes(struct test *t, enum who who)
{
	struct rounds rounds = { .ms = who == BY_GUEST ? 0 : kvm_duration_ms };
	uint64_t want[PAGE_SIZE / 8], state = 0;

	fill_shared(t, 0);
	test_start(t);
	while (next_round(&rounds)) {
		state_begin(t, ++state);
		vm_mem_set_shared(t->vm, PAGE_GPA, PAGE_SIZE);
		state_done(t, state);
		linger(t, rounds.nr);

		state_begin(t, ++state);
		vm_mem_set_private(t->vm, PAGE_GPA, PAGE_SIZE);
		state_done(t, state);
		if (who == BY_KVM)
			wait_for_vcpus(t);
		fill_shared(t, rounds.nr);
		memcpy(want, t->shared + PAGE * PAGE_SIZE, PAGE_SIZE);
		if (who == BY_GUEST) {
			linger(t, rounds.nr);
		} else {
			wait_for_vcpus(t);
			punch_and_check(t, rounds.nr);
		}
		check_shared(t, want);
	}
	test_stop(t);
}

TEST_F_TIMEOUT(races, writes_in_shared_block, RACES_TIMEOUT)
{
	test_create(&self->t, guest_writer, 0, false);
	check_writes(&self->t, BY_GUEST);
}

TEST_F_TIMEOUT(races, writes_in_private_block, RACES_TIMEOUT)
{
	test_create(&self->t, guest_writer, 0, true);
	check_writes(&self->t, BY_GUEST);
}

TEST_F_TIMEOUT(races, writes_in_huge_block, RACES_TIMEOUT)
{
	const char *why = test_create_huge(&self->t, guest_writer);

	self->skipped = why;
	if (why)
		SKIP(return, "%s", why);
	check_writes(&self->t, BY_GUEST);
}

/* A write to memory that is punched is lost, but never ends up elsewhere. */
TEST_F_TIMEOUT(races, writes_to_punched, RACES_TIMEOUT)
{
	struct test *t = &self->t;
	struct rounds rounds = {};

	test_create(t, guest_writer, 0, true);
	test_start(t);
	while (next_round(&rounds))
		punch_and_check(t, rounds.nr);
	test_stop(t);
}

/*
 * The same for what KVM does on behalf of the guest.
 */
struct kvm_race {
	void *guest;
	enum who who;
	void (*prepare)(struct test *t);
	void (*fill)(struct test *t, void *page, uint64_t nr);
	bool emulated;
};

static void check_kvm(struct test *t, const struct kvm_race *race)
{
	int i, before = 0;

	if (race->emulated) {
		before = forced_emulation_set(1);
		TEST_ASSERT(before >= 0, "KVM has no forced emulation");
	}

	test_create(t, race->guest, 0, true);
	vm_init_descriptor_tables(t->vm);
	for (i = 0; i < nr_vcpus; i++)
		vcpu_init_descriptor_tables(t->vcpus[i]);
	t->fill = race->fill;
	if (race->prepare)
		race->prepare(t);

	check_writes(t, race->who ?: BY_KVM);
	if (t->helper)
		pthread_join(t->helper, NULL);
	if (race->emulated)
		forced_emulation_set(before);
}

#define TEST_KVM_IF(name, missing, ...)						\
static const struct kvm_race race_##name = { __VA_ARGS__ };			\
TEST_F_TIMEOUT(races, kvm_##name, RACES_TIMEOUT)				\
{										\
	const char *why = missing;						\
										\
	self->skipped = why;							\
	if (why)								\
		SKIP(return, "%s", why);					\
	check_kvm(&self->t, &race_##name);					\
}

#define TEST_KVM(name, ...)	TEST_KVM_IF(name, NULL, __VA_ARGS__)

/* All vCPUs are to update their clocks. */
static void set_clock(struct test *t)
{
	struct kvm_clock_data data = {};

	vm_ioctl(t->vm, KVM_SET_CLOCK, &data);
}

static void prepare_clock(struct test *t)
{
	t->visited = set_clock;
}

TEST_KVM(writes_clock, .guest = guest_kvm_clock, .who = BY_KVM_HELD, .prepare = prepare_clock)
TEST_KVM(writes_wall_clock, .guest = guest_kvm_wall_clock)
TEST_KVM(writes_steal_time, .guest = guest_kvm_steal_time, .who = BY_KVM_HELD)
TEST_KVM(writes_string_in, .guest = guest_kvm_string_in)
TEST_KVM(writes_store, .guest = guest_kvm_store, .emulated = true)
TEST_KVM(writes_locked, .guest = guest_kvm_locked, .emulated = true)
TEST_KVM(reads_operand, .guest = guest_kvm_operand, .emulated = true)

/* Never zero, which is what the private half has. */
static void fill_operand(struct test *t, void *page, uint64_t nr)
{
	fill_page(page, contents(nr) | 0x8000);
}

TEST_KVM(reads_instruction, .guest = guest_kvm_instruction, .fill = fill_operand,
	 .emulated = true)

/* Entries that nobody has used yet. */
static void fill_entries(struct test *t, void *page, uint64_t nr)
{
	fill_page(page, CONTROL_PAGE(WRONG_DATA) | ENTRY | (nr & 0x7ff) << 52);
}

static void *control_page(struct test *t, int nr)
{
	return (void *)t->control + nr * PAGE_SIZE;
}

static void prepare_data(struct test *t)
{
	*(uint64_t *)control_page(t, RIGHT_DATA) = RIGHT;
	*(uint64_t *)control_page(t, WRONG_DATA) = WRONG;
}

static void prepare_page_table(struct test *t)
{
	prepare_data(t);
	vm_install_exception_handler(t->vm, PF_VECTOR, guest_skip_fault);
	virt_pg_map(t->vm, WALK_GVA, GPA);
	*vm_page_table_entry(t->vm, WALK_GVA, PG_LEVEL_2M) =
		PAGE_GPA | PTE_PRESENT_MASK | PTE_WRITABLE_MASK;
}

TEST_KVM(walks_page_table, .guest = guest_kvm_page_table, .prepare = prepare_page_table,
	 .fill = fill_entries, .emulated = true)

static void prepare_eoi(struct test *t)
{
	vm_install_exception_handler(t->vm, EOI_VECTOR, guest_eoi_handler);
}

TEST_KVM_IF(writes_eoi, lazy_eoi_missing(), .guest = guest_kvm_eoi, .prepare = prepare_eoi)

/* Has each page there when KVM asks for it, and another one of the same vCPU gone. */
static void *serve_absent(void *data)
{
	struct test *t = data;
	struct uffdio_zeropage zero = { .range.len = PAGE_SIZE };
	struct pollfd pollfd = { .fd = t->fd, .events = POLLIN };
	struct uffd_msg msg;
	uint64_t page, gone;

	while (!READ_ONCE(t->control->stop) || poll(&pollfd, 1, 100) > 0) {
		if (read(t->fd, &msg, sizeof(msg)) != sizeof(msg)) {
			poll(&pollfd, 1, 1);
			continue;
		}
		zero.range.start = msg.arg.pagefault.address & PAGE_MASK;
		ioctl(t->fd, UFFDIO_ZEROPAGE, &zero);

		page = (zero.range.start - (uintptr_t)t->absent) / PAGE_SIZE;
		gone = page / NR_ABSENT * NR_ABSENT + (page + NR_ABSENT / 2) % NR_ABSENT;
		madvise(t->absent + gone * PAGE_SIZE, PAGE_SIZE, MADV_DONTNEED);
	}
	return NULL;
}

static const char *async_pf_missing(void)
{
	int fd = userfaultfd_open();

	if (fd < 0)
		return "No userfaultfd";
	close(fd);
	return NULL;
}

static void prepare_async_pf(struct test *t)
{
	const uint64_t nr = nr_vcpus * NR_ABSENT, size = nr * PAGE_SIZE;

	vm_install_exception_handler(t->vm, PF_VECTOR, guest_fault_handler);
	vm_install_exception_handler(t->vm, APF_VECTOR, guest_ready_handler);

	t->fd = userfaultfd_open();
	t->absent = shared_mem_alloc(size);
	userfaultfd_empty(t->fd, t->absent, size);
	vm_set_user_memory_region(t->vm, SLOT + 2, 0, ABSENT_GVA, size, t->absent);
	virt_map(t->vm, ABSENT_GVA, ABSENT_GVA, nr);
	TEST_ASSERT(!pthread_create(&t->helper, NULL, serve_absent, t),
		    "pthread_create() failed");
}

TEST_KVM_IF(writes_async_pf, async_pf_missing(), .guest = guest_kvm_async_pf,
	    .prepare = prepare_async_pf)

static const char *xen_missing(void)
{
	const int caps = KVM_XEN_HVM_CONFIG_SHARED_INFO | KVM_XEN_HVM_CONFIG_RUNSTATE |
			 KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND;

	return (kvm_check_cap(KVM_CAP_XEN_HVM) & caps) == caps ? NULL : "No Xen";
}

static void prepare_xen(struct test *t)
{
	struct kvm_xen_hvm_config config = {
		.flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND,
		.msr = 0x40000200,
	};
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_LONG_MODE, .u.long_mode = 1,
	};

	vm_ioctl(t->vm, KVM_XEN_HVM_CONFIG, &config);
	vm_ioctl(t->vm, KVM_XEN_HVM_SET_ATTR, &attr);
}

static void prepare_xen_vcpus(struct test *t, int type)
{
	struct kvm_xen_vcpu_attr attr = { .type = type };
	int i;

	for (i = 0; i < nr_vcpus; i++) {
		attr.u.gpa = KVM_WRITES_AT(i);
		vcpu_ioctl(t->vcpus[i], KVM_XEN_VCPU_SET_ATTR, &attr);
	}
}

static void prepare_xen_time(struct test *t)
{
	prepare_xen(t);
	prepare_clock(t);
	prepare_xen_vcpus(t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO);
}

static void prepare_xen_runstate(struct test *t)
{
	prepare_xen(t);
	prepare_xen_vcpus(t, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR);
}

/* The guest's ports for sending lead to its own. */
static void prepare_xen_events(struct test *t)
{
	struct kvm_xen_hvm_attr shinfo = {
		.type = KVM_XEN_ATTR_TYPE_SHARED_INFO,
		.u.shared_info.gfn = PAGE_GPA / PAGE_SIZE,
	};
	struct kvm_xen_hvm_attr send = {
		.type = KVM_XEN_ATTR_TYPE_EVTCHN,
		.u.evtchn.type = 2,
		.u.evtchn.deliver.port.priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
	};
	int i;

	prepare_xen(t);
	prepare_xen_vcpus(t, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO);
	vm_ioctl(t->vm, KVM_XEN_HVM_SET_ATTR, &shinfo);
	for (i = 0; i < nr_vcpus; i++) {
		send.u.evtchn.send_port = XEN_SEND_PORT + i;
		send.u.evtchn.deliver.port.port = XEN_PORT + i;
		send.u.evtchn.deliver.port.vcpu = i;
		vm_ioctl(t->vm, KVM_XEN_HVM_SET_ATTR, &send);
	}
}

/* In atomic context, where KVM has the page at hand, and else by a workqueue. */
static void *signal_irqfd(void *data)
{
	struct test *t = data;

	while (!READ_ONCE(t->control->stop)) {
		TEST_ASSERT(!eventfd_write(t->fd, 1), "Cannot signal the irqfd");
		sched_yield();
	}
	return NULL;
}

static void prepare_xen_irqfd(struct test *t)
{
	prepare_xen_events(t);
	vm_route_xen_event(t->vm, XEN_GSI, XEN_PORT);
	t->fd = vm_irqfd_create(t->vm, XEN_GSI);
	TEST_ASSERT(!pthread_create(&t->helper, NULL, signal_irqfd, t),
		    "pthread_create() failed");
}

/* No event is pending or masked, no message waits for the guest. */
static void fill_free(struct test *t, void *page, uint64_t nr)
{
	fill_page(page, nr << 32);
}

TEST_KVM_IF(writes_xen_time, xen_missing(), .guest = guest_kvm_xen_vcpu, .who = BY_KVM_HELD,
	    .prepare = prepare_xen_time)
TEST_KVM_IF(writes_xen_runstate, xen_missing(), .guest = guest_kvm_xen_vcpu,
	    .who = BY_KVM_HELD, .prepare = prepare_xen_runstate)
TEST_KVM_IF(writes_xen_event, xen_missing(), .guest = guest_kvm_xen_event, .who = BY_KVM_HELD,
	    .prepare = prepare_xen_events, .fill = fill_free)
TEST_KVM_IF(writes_xen_irqfd, xen_missing(), .guest = guest_kvm_xen_irqfd, .who = BY_KVM_HELD,
	    .prepare = prepare_xen_irqfd, .fill = fill_free)

static void prepare_hv(struct test *t)
{
	int i;

	for (i = 0; i < nr_vcpus; i++) {
		vcpu_set_hv_cpuid(t->vcpus[i]);
		vcpu_enable_cap(t->vcpus[i], KVM_CAP_HYPERV_SYNIC2, 0);
	}
	prepare_eoi(t);
}

TEST_KVM(writes_hv_tsc, .guest = guest_kvm_hv_tsc, .prepare = prepare_hv)
TEST_KVM(writes_hv_hypercall_page, .guest = guest_kvm_hv_hypercall_page, .prepare = prepare_hv)
TEST_KVM(writes_hv_assist, .guest = guest_kvm_hv_assist, .prepare = prepare_hv)
TEST_KVM_IF(writes_hv_eoi, lazy_eoi_missing(), .guest = guest_kvm_hv_eoi, .prepare = prepare_hv)
TEST_KVM(writes_hv_message, .guest = guest_kvm_hv_message, .prepare = prepare_hv,
	 .fill = fill_free)

/* No number of a connection has this bit. */
static void fill_connection(struct test *t, void *page, uint64_t nr)
{
	fill_page(page, BIT(30) | (nr & 0xffffff));
}

TEST_KVM(reads_hv_input, .guest = guest_kvm_hv_input, .prepare = prepare_hv,
	 .fill = fill_connection)

static const char *svm_missing(void)
{
	return kvm_cpu_has(X86_FEATURE_SVM) ? NULL : "No SVM";
}

static void prepare_svm(struct test *t)
{
	struct kvm_sregs sregs;
	struct vmcb *vmcb;
	int i;

	for (i = 0; i < nr_vcpus; i++) {
		vcpu_sregs_get(t->vcpus[i], &sregs);
		sregs.efer |= EFER_SVME;
		vcpu_sregs_set(t->vcpus[i], &sregs);
		vcpu_set_msr(t->vcpus[i], MSR_VM_HSAVE_PA, CONTROL_PAGE(HSAVE));

		vmcb = control_page(t, VMCB + i);
		vmcb_init(t->vcpus[i], vmcb, l2_right);
		/* KVM may find one part of a VMCB, and the rest punched. */
		vmcb->control.intercept |= BIT_ULL(INTERCEPT_SHUTDOWN);
		vmcb->control.msrpm_base_pa = PAGE_GPA;
		vmcb->control.iopm_base_pa = PAGE_GPA;
	}
}

static void fill_vmcb(struct test *t, void *page, uint64_t nr)
{
	struct vmcb *vmcb = page;

	memcpy(page, control_page(t, VMCB), PAGE_SIZE);
	vmcb->save.rip = (uintptr_t)l2_wrong;
	((uint64_t *)page)[PAGE_SIZE / 8 - 1] = nr;
}

static void prepare_map(struct test *t, int intercept)
{
	struct vmcb *vmcb;
	int i;

	prepare_svm(t);
	for (i = 0; i < nr_vcpus; i++) {
		vmcb = control_page(t, VMCB + i);
		vmcb->control.intercept |= BIT_ULL(intercept);
	}
}

static void prepare_msr_map(struct test *t)
{
	prepare_map(t, INTERCEPT_MSR_PROT);
}

static void prepare_io_map(struct test *t)
{
	prepare_map(t, INTERCEPT_IOIO_PROT);
}

/* All is intercepted of what L2 does. */
static void fill_map(struct test *t, void *page, uint64_t nr)
{
	fill_page(page, ~0ull >> 8 | nr << 56);
}

/* Page tables for L2, of which the last one of some of its memory is in the page. */
static void prepare_npt(struct test *t)
{
	uint64_t *pd_low = control_page(t, NPT_PD_LOW), *pdpt = control_page(t, NPT_PDPT);
	struct vmcb *vmcb;
	int i;

	prepare_svm(t);
	prepare_data(t);
	for (i = 0; i < nr_vcpus; i++) {
		vmcb = control_page(t, VMCB + i);
		vmcb->control.nested_ctl = SVM_NESTED_CTL_NP_ENABLE;
		vmcb->control.nested_cr3 = CONTROL_PAGE(NPT_PML4);
		vmcb->control.tlb_ctl = TLB_CONTROL_FLUSH_ALL_ASID;
	}
	for (i = 0; i < 512; i++)
		pd_low[i] = i * PG_SIZE_2M | ENTRY | PTE_LARGE_MASK;
	*(uint64_t *)control_page(t, NPT_PML4) = CONTROL_PAGE(NPT_PDPT) | ENTRY;
	*(uint64_t *)control_page(t, NPT_PD) = PAGE_GPA | ENTRY;
	pdpt[0] = CONTROL_PAGE(NPT_PD_LOW) | ENTRY;
	pdpt[NPT_GVA >> 30] = CONTROL_PAGE(NPT_PD) | ENTRY;
	virt_map(t->vm, NPT_GVA, NPT_GVA, 512);
}

TEST_KVM_IF(writes_vmsave, svm_missing(), .guest = guest_kvm_vmsave, .prepare = prepare_svm)
TEST_KVM_IF(maps_vmcb, svm_missing(), .guest = guest_kvm_vmcb, .prepare = prepare_svm,
	    .fill = fill_vmcb)
TEST_KVM_IF(reads_msr_map, svm_missing(), .guest = guest_kvm_msr_map,
	    .prepare = prepare_msr_map, .fill = fill_map)
TEST_KVM_IF(reads_io_map, svm_missing(), .guest = guest_kvm_io_map,
	    .prepare = prepare_io_map, .fill = fill_map)
TEST_KVM_IF(walks_npt, svm_missing(), .guest = guest_kvm_npt, .prepare = prepare_npt,
	    .fill = fill_entries)

/*
 * The shared half is what userspace_addr maps, also when another page takes the place
 * there of the one that KVM has at hand.  Two such changes in a row meet KVM while it
 * looks up the page that the first one brings.
 */
TEST_F_TIMEOUT(races, kvm_writes_remapped, RACES_TIMEOUT)
{
	struct rounds rounds = { .ms = kvm_duration_ms };
	struct test *t = &self->t;
	uint64_t *pages, *page;
	int fd, i;

	fd = kvm_memfd_alloc(2 * PAGE_SIZE, false);
	pages = mmap(NULL, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	TEST_ASSERT(pages != MAP_FAILED, __KVM_SYSCALL_ERROR("mmap()", -1));

	test_create(t, guest_kvm_steal_time, 0, false);
	remap_page(t, fd, 0);
	test_start(t);
	while (next_round(&rounds)) {
		remap_page(t, fd, PAGE_SIZE);
		usleep(rounds.nr % 16 * 20);
		remap_page(t, fd, 0);

		/* As for a conversion: what was under way ends, and then there is none. */
		wait_for_vcpus(t);
		page = pages + PAGE_SIZE / 8;
		fill_page(page, contents(rounds.nr));
		wait_for_vcpus(t);
		for (i = 0; i < PAGE_SIZE / 8; i++)
			TEST_ASSERT(page[i] == contents(rounds.nr),
				    "Expected 0x%lx at 0x%lx of a page that is mapped no longer, found 0x%lx",
				    contents(rounds.nr), i * 8ul, page[i]);
	}
	test_stop(t);
}

/* Guests convert pages side by side. */
TEST_F_TIMEOUT(races, converters_side_by_side, RACES_TIMEOUT)
{
	struct test *t = &self->t;
	struct rounds rounds = {};

	test_create(t, guest_converter, 0, false);
	guest_memfd_punch(t->memfd, PAGE * PAGE_SIZE, MAX_VCPUS * PAGE_SIZE);
	test_start(t);
	while (next_round(&rounds))
		wait_for_vcpus(t);
	test_stop(t);
}

static void help(const char *name)
{
	printf("usage: %s [-h] [-n vcpus] [-t milliseconds]\n"
	       " -n: vCPUs, 1 to %d (default 2)\n"
	       " -t: duration of each case (default %d, and %d of what KVM does)\n",
	       name, MAX_VCPUS, duration_ms, kvm_duration_ms);
	exit(0);
}

int main(int argc, char **argv)
{
	int opt;

	while ((opt = getopt(argc, argv, "hn:t:")) != -1) {
		switch (opt) {
		case 'n':
			nr_vcpus = atoi(optarg);
			TEST_ASSERT(nr_vcpus >= 1 && nr_vcpus <= MAX_VCPUS,
				    "Expected 1 to %d vCPUs, got '%s'", MAX_VCPUS, optarg);
			break;
		case 't':
			duration_ms = atoi(optarg);
			kvm_duration_ms = duration_ms;
			TEST_ASSERT(duration_ms > 0, "Expected a duration, got '%s'", optarg);
			break;
		default:
			help(argv[0]);
		}
	}

	TEST_REQUIRE(private_mem_supported());

	return test_harness_run(argc, argv);
}
