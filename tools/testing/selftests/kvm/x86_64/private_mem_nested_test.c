// SPDX-License-Identifier: GPL-2.0-only
/*
 * A hypervisor in private memory: the control structures that it keeps for its
 * own guest, L2, and the page tables and the memory that it gives to it.
 *
 * The shared half of each structure holds one that would be believed, and with
 * which L2 would do something else.  No shared half may change.
 *
 * L1 is driven from outside, an instruction at a time; its code is in memory that
 * is shared, and so is L2's.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>

#include "kvm_harness.h"
#include "private_mem.h"
#include "svm_util.h"
#include "vmx.h"

/* Below 4 GiB, for system management mode. */
#define GPA		0x40000000ull
#define NR_PAGES	32
#define NR_PLAIN	64
#define PLAIN_SLOT	(PRIVATE_MEM_SLOT + 1)

/*
 * The pages of the memslot.  It starts with what SMM saves: the handler, 7 pages before
 * that, is in another one.
 */
enum {
	SMM_STATE, VMCB, MSRPM, MSRPM_1, IOPM, IOPM_1, IOPM_2, HSAVE,
	NPT_PML4, NPT_PDPT, NPT_PDPT_LOW, NPT_PD, NPT_PT,
	OTHER_PDPT, OTHER_PD, OTHER_PT,
	DATA, OTHER, SCRATCH,
	GROUP = NR_PAGES - 8,	/* 8 pages, aligned: KVM looks at their PTEs together */
};

/* Those before it, in a memslot without a file.  What is not named is for SMRAM. */
enum {
	PLAIN_COPY = -NR_PLAIN,
	PLAIN_VMCB = PLAIN_COPY + NR_PAGES,
	PLAIN_HSAVE,
	PLAIN_SMM_STATE = -9,
};

#define PAGE_GPA(page)	(GPA + (page) * PAGE_SIZE)
#define OFF(field)	offsetof(struct vmcb, field)

/* What L2 says in RAX, by the code that the right VMCB names and by the other. */
#define RIGHT		0x600d
#define WRONG		0xbad

#define OTHER_HALF	0x5a

/* A port that L1 does not intercept, so that the test hears from L2. */
#define L2_PORT		0x60
#define SMM_PORT	0x61

/* Where SMM starts, from SMBASE, and the page of what it saves: the last 512 bytes. */
#define SMM_HANDLER	0x8000
#define SMM_SAVED	0xf000
#define SMM_SAVED_RIP	0xf78	/* in that page */

#define VMCB_SECRET	0x736563726574ull

/*
 * L1 and L2 have general purpose registers in common, but for RAX and RSP.  L1 calls
 * the test by a port that it intercepts for nobody.
 */
#define DEFINE_CODE(name, insns)					\
	asm(".pushsection .text\n" #name ":\n" insns "\n.popsection\n");	\
	extern char name[]

#define L1_CALL		"mov $" __stringify(GUEST_CALL_PORT) ", %edx; outb %al, %dx"
#define OUT(port)	"outb %al, $" __stringify(port) ";"
#define MOV_EAX(val)	"mov $" __stringify(val) ", %eax;"
#define RDMSR(msr)	"mov $" __stringify(msr) ", %ecx; rdmsr;"

DEFINE_CODE(l1_vmrun, "vmrun %rax; stgi;" L1_CALL);
DEFINE_CODE(l1_vmload, "vmload %rax;" L1_CALL);
DEFINE_CODE(l1_vmsave, "vmsave %rax;" L1_CALL);
DEFINE_CODE(l1_wrong, MOV_EAX(WRONG) L1_CALL);
DEFINE_CODE(l1_stop, OUT(L2_PORT) L1_CALL);
DEFINE_CODE(l1_copy, "cld; rep movsq;" L1_CALL);

DEFINE_CODE(l2_right, MOV_EAX(RIGHT) "vmmcall");
DEFINE_CODE(l2_wrong, MOV_EAX(WRONG) "vmmcall");
DEFINE_CODE(l2_read, "mov (%rdi), %rax; vmmcall");
DEFINE_CODE(l2_write, "mov %rsi, (%rdi); vmmcall");
DEFINE_CODE(l2_call, OUT(L2_PORT) MOV_EAX(RIGHT) "vmmcall");
DEFINE_CODE(l2_msrs, RDMSR(MSR_CSTAR) RDMSR(MSR_LSTAR) "vmmcall");
DEFINE_CODE(l2_ports, OUT(L2_PORT) OUT(SMM_PORT) "vmmcall");
DEFINE_CODE(l2_msr, OUT(L2_PORT) RDMSR(MSR_IA32_APICBASE) MOV_EAX(RIGHT) "vmmcall");
DEFINE_CODE(l2_ud, OUT(L2_PORT) "ud2");
DEFINE_CODE(l2_read_write, "mov (%rdi), %rax;" OUT(L2_PORT)
	    "movl $" __stringify(WRONG) ", (%rdi);" MOV_EAX(RIGHT) "vmmcall");
DEFINE_CODE(l2_read_group, "mov (%rdi), %rbx; xor %eax, %eax; mov $8, %ecx;"
	    "1: or (%rsi), %rax; add $4096, %rsi; dec %ecx; jnz 1b; vmmcall");

struct nested;

/* How private memory gets out of KVM's reach, and back. */
struct way {
	void (*lose)(struct nested *self);
	void (*regain)(struct nested *self);
};

struct nested {
	struct private_mem mem;
	struct kvm_vcpu *vcpu;
	struct kvm_vcpu *eye;	/* looks at private memory, whatever the other does */
	struct way way;
	int vmcb;		/* the page of L1's VMCB */
	uint8_t *plain;
	uint8_t *before;	/* what the shared half had */
	uint8_t *private;	/* and the private one, when it got out of reach */
};

/* An L2 that is like L1, but runs @rip, and the permission maps of the memslot. */
static void l2_vmcb_init(struct nested *self, void *page, void *rip)
{
	struct vmcb *vmcb = page;

	vmcb_init(self->vcpu, page, rip);
	vmcb->control.msrpm_base_pa = PAGE_GPA(MSRPM);
	vmcb->control.iopm_base_pa = PAGE_GPA(IOPM);
}

/* What the guest has in a page that is a hole yet, and what is in the other half. */
static void stage(struct nested *self, int page, const void *private, const void *shared)
{
	guest_memfd_write(self->mem.memfd, private, PAGE_SIZE, page * PAGE_SIZE);
	memcpy(self->mem.shared + page * PAGE_SIZE, shared, PAGE_SIZE);
	memcpy(self->before + page * PAGE_SIZE, shared, PAGE_SIZE);
}

static void *plain_page(struct nested *self, int page)
{
	return self->plain + (page + NR_PLAIN) * PAGE_SIZE;
}

static void stage_vmcb(struct nested *self, struct vmcb *vmcb)
{
	static uint8_t wrong[4096];

	if (self->vmcb != VMCB) {
		memcpy(plain_page(self, self->vmcb), vmcb, PAGE_SIZE);
		return;
	}
	l2_vmcb_init(self, wrong, l2_wrong);
	stage(self, VMCB, vmcb, wrong);
}

static void nested_setup(struct nested *self)
{
	struct kvm_sregs sregs;

	/* The rest of a case that did not end by itself. */
	set_private_mem_inaccessible(false);

	private_mem_create(&self->mem, GPA, NR_PAGES * PAGE_SIZE, 2 * NR_PLAIN);
	vm_userspace_mem_region_add(self->mem.vm, VM_MEM_SRC_ANONYMOUS, PAGE_GPA(-NR_PLAIN),
				    PLAIN_SLOT, NR_PLAIN, 0);
	virt_map(self->mem.vm, PAGE_GPA(-NR_PLAIN), PAGE_GPA(-NR_PLAIN), NR_PLAIN);
	self->plain = addr_gpa2hva(self->mem.vm, PAGE_GPA(-NR_PLAIN));
	self->vcpu = self->mem.vcpu;
	self->vmcb = VMCB;
	self->before = malloc(self->mem.size);
	self->private = malloc(self->mem.size);
	TEST_ASSERT(self->before && self->private, "Insufficient memory");
	memset(self->mem.shared, OTHER_HALF, self->mem.size);
	memset(self->before, OTHER_HALF, self->mem.size);

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		return;

	vcpu_sregs_get(self->vcpu, &sregs);
	sregs.efer |= EFER_SVME;
	vcpu_sregs_set(self->vcpu, &sregs);
	vcpu_set_msr(self->vcpu, MSR_VM_HSAVE_PA, PAGE_GPA(HSAVE));
}

static void nested_free(struct nested *self)
{
	set_private_mem_inaccessible(false);
	free(self->before);
	free(self->private);
	if (self->mem.vm)
		private_mem_free(&self->mem);
}

static void l1_set(struct nested *self, char *insn)
{
	struct kvm_regs regs;

	vcpu_regs_get(self->vcpu, &regs);
	regs.rip = (uintptr_t)insn;
	regs.rflags = X86_EFLAGS_FIXED;
	regs.rax = PAGE_GPA(self->vmcb);
	regs.rdx = GUEST_CALL_PORT;
	regs.rdi = PAGE_GPA(DATA);
	regs.rsi = RIGHT;
	regs.rbx = 0;
	vcpu_regs_set(self->vcpu, &regs);
}

static void expect_l1_call(struct nested *self, int ret)
{
	struct kvm_run *run = self->vcpu->run;

	TEST_ASSERT(!ret && vcpu_is_guest_call(self->vcpu),
		    "Expected a call by L1, rc: %i errno: %i exit: %u (%s)", ret, errno,
		    run->exit_reason, exit_reason_str(run->exit_reason));
	TEST_ASSERT(vcpu_access_result(self->vcpu) == PAGE_GPA(self->vmcb),
		    "Expected L1 to go on behind its instruction, RAX is 0x%lx",
		    vcpu_access_result(self->vcpu));
}

static void l1_run(struct nested *self, char *insn)
{
	l1_set(self, insn);
	expect_l1_call(self, vcpu_access_run(self->vcpu));
}

static void *l1_thread(void *arg)
{
	struct nested *self = arg;

	expect_l1_call(self, vcpu_access_run(self->vcpu));
	return NULL;
}

static void run_to_exit(struct nested *self, uint32_t reason)
{
	struct kvm_run *run = self->vcpu->run;
	int ret = _vcpu_run(self->vcpu);

	TEST_ASSERT(!ret && run->exit_reason == reason,
		    "Expected exit %u (%s), rc: %i errno: %i exit: %u (%s)", reason,
		    exit_reason_str(reason), ret, errno, run->exit_reason,
		    exit_reason_str(run->exit_reason));
}

/* Has the guest stop in the middle of its code, in the hands of the test. */
static void run_to_port(struct nested *self, int port)
{
	struct kvm_run *run = self->vcpu->run;
	int ret = _vcpu_run(self->vcpu);

	TEST_ASSERT(!ret && run->exit_reason == KVM_EXIT_IO && run->io.port == port,
		    "Expected the guest at port 0x%x, rc: %i errno: %i exit: %u (%s) port 0x%x",
		    port, ret, errno, run->exit_reason, exit_reason_str(run->exit_reason),
		    run->exit_reason == KVM_EXIT_IO ? run->io.port : 0);
	vcpu_run_complete_io(self->vcpu);
}

static void l2_run_to_call(struct nested *self)
{
	l1_set(self, l1_vmrun);
	run_to_port(self, L2_PORT);
}

static void start_l1(struct nested *self)
{
	l1_set(self, l1_stop);
	run_to_port(self, L2_PORT);
}

static void start_l2(struct nested *self, struct vmcb *vmcb, char *rip)
{
	vmcb->save.rip = (uintptr_t)rip;
	stage_vmcb(self, vmcb);
	l2_run_to_call(self);
}

static uint64_t read_page(struct nested *self, int page, int offset)
{
	return vcpu_read_u64(self->vcpu, PAGE_GPA(page) + offset);
}

static void expect_exit_code(struct nested *self, uint64_t code)
{
	uint64_t seen = read_page(self, self->vmcb, OFF(control.exit_code));

	TEST_ASSERT(seen == code, "Expected L1 to see exit 0x%lx in its VMCB, got 0x%lx",
		    code, seen);
}

static void expect_rax(struct nested *self, uint64_t rax)
{
	uint64_t seen = read_page(self, self->vmcb, OFF(save.rax));

	TEST_ASSERT(seen == rax, "Expected 0x%lx in RAX of L1's VMCB, got 0x%lx", rax, seen);
}

static void expect_shared_untouched(struct nested *self)
{
	int i;

	for (i = 0; i < NR_PAGES; i++)
		TEST_ASSERT(!memcmp(self->mem.shared + i * PAGE_SIZE,
				    self->before + i * PAGE_SIZE, PAGE_SIZE),
			    "Expected the shared half of page %d as it was", i);
}

/* The right L2 ran, and told the right L1. */
static void expect_right(struct nested *self)
{
	expect_exit_code(self, SVM_EXIT_VMMCALL);
	expect_rax(self, RIGHT);
	expect_shared_untouched(self);
}

FIXTURE(svm) {
	struct nested nested;
};

FIXTURE_SETUP(svm)
{
	nested_setup(&self->nested);
}

FIXTURE_TEARDOWN(svm)
{
	nested_free(&self->nested);
}

#define TEST_NESTED(fixture, name, timeout)				\
static void fixture##_test_##name(struct nested *self, struct vmcb *vmcb); \
TEST_F_TIMEOUT(fixture, name, timeout)					\
{									\
	static uint8_t page[4096];					\
									\
	if (!kvm_cpu_has(X86_FEATURE_SVM))				\
		SKIP(return, "No SVM");					\
	this_case = _metadata;						\
	l2_vmcb_init(&self->nested, page, l2_right);			\
	fixture##_test_##name(&self->nested, (struct vmcb *)page);	\
}									\
static void fixture##_test_##name(struct nested *self, struct vmcb *vmcb)

#define TEST_SVM(name)		TEST_NESTED(svm, name, 120)

TEST_SVM(vmcb)
{
	stage_vmcb(self, vmcb);
	l1_run(self, l1_vmrun);
	expect_right(self);
}

/* What is not there yet is zero, and no VMCB.  L1 learns that from the same page. */
TEST_SVM(vmcb_in_hole)
{
	static uint8_t wrong[4096];

	l2_vmcb_init(self, wrong, l2_wrong);
	memcpy(self->mem.shared + VMCB * PAGE_SIZE, wrong, PAGE_SIZE);
	memcpy(self->before + VMCB * PAGE_SIZE, wrong, PAGE_SIZE);

	l1_run(self, l1_vmrun);
	expect_exit_code(self, -1ull);
	expect_shared_untouched(self);
}

/* Two bits for each MSR; those from 0xc0000000 on begin at 0x800. */
static void msrpm_intercept(uint8_t *msrpm, uint32_t msr)
{
	int bit = 0x800 * 8 + (msr - 0xc0000000) * 2;

	msrpm[bit / 8] |= 3 << bit % 8;
}

TEST_SVM(msr_permission_map)
{
	static uint8_t right[4096], wrong[4096];
	struct kvm_regs regs;

	msrpm_intercept(right, MSR_LSTAR);
	msrpm_intercept(wrong, MSR_CSTAR);
	stage(self, MSRPM, right, wrong);
	memset(right, 0, sizeof(right));
	stage(self, MSRPM_1, right, right);

	vmcb->control.intercept |= BIT_ULL(INTERCEPT_MSR_PROT);
	vmcb->save.rip = (uintptr_t)l2_msrs;
	stage_vmcb(self, vmcb);

	l1_run(self, l1_vmrun);
	vcpu_regs_get(self->vcpu, &regs);
	expect_exit_code(self, SVM_EXIT_MSR);
	TEST_ASSERT((uint32_t)regs.rcx == MSR_LSTAR,
		    "Expected an exit of L2 for MSR 0x%x, got one for 0x%llx", MSR_LSTAR, regs.rcx);
	expect_shared_untouched(self);
}

static void expect_ioio(struct nested *self, int port)
{
	uint64_t info;

	expect_l1_call(self, vcpu_access_run(self->vcpu));
	expect_exit_code(self, SVM_EXIT_IOIO);
	info = read_page(self, self->vmcb, OFF(control.exit_info_1));
	TEST_ASSERT((info >> 16 & 0xffff) == port,
		    "Expected an exit of L2 for port 0x%x, EXITINFO1 is 0x%lx", port, info);
}

TEST_SVM(io_permission_map)
{
	static uint8_t right[4096], wrong[4096], none[4096];

	right[SMM_PORT / 8] |= BIT(SMM_PORT % 8);
	wrong[L2_PORT / 8] |= BIT(L2_PORT % 8);
	stage(self, IOPM, right, wrong);
	stage(self, IOPM_1, none, none);
	stage(self, IOPM_2, none, none);

	vmcb->control.intercept |= BIT_ULL(INTERCEPT_IOIO_PROT);

	/* One port is not L1's business, the other is. */
	start_l2(self, vmcb, l2_ports);
	expect_ioio(self, SMM_PORT);
	expect_shared_untouched(self);
}

#define NPT_PRESENT		BIT_ULL(0)
#define NPT_WRITABLE		BIT_ULL(1)
#define NPT_USER		BIT_ULL(2)
#define NPT_ACCESSED		BIT_ULL(5)
#define NPT_DIRTY		BIT_ULL(6)
#define NPT_LARGE		BIT_ULL(7)
#define NPT_ENTRY		(NPT_PRESENT | NPT_WRITABLE | NPT_USER)

#define NPT_TO(page)	(PAGE_GPA(page) | NPT_ENTRY)

/* The entry of each level that leads to the page DATA: the memslot starts at 1 GiB. */
enum { IN_PML4 = 0, IN_PDPT = GPA >> 30, IN_PD = 0, IN_PT = DATA };

static uint64_t npt[5][512], other_npt[5][512];	/* [4] maps the first GiB */

static const struct {
	int page;
	int index;
	uint64_t *table;
	uint64_t *other;
	uint64_t other_entry;	/* leads to the page OTHER */
} npt_levels[] = {
	{ NPT_PT, IN_PT, npt[0], other_npt[0], NPT_TO(OTHER) },
	{ NPT_PD, IN_PD, npt[1], other_npt[1], NPT_TO(OTHER_PT) },
	{ NPT_PDPT, IN_PDPT, npt[2], other_npt[2], NPT_TO(OTHER_PD) },
	{ NPT_PML4, IN_PML4, npt[3], other_npt[3], NPT_TO(OTHER_PDPT) },
};

/*
 * Nested page tables in private memory that map all memory where it is.  Where the
 * walk of one level, if any, goes to the shared half, DATA is mapped to OTHER.
 */
static void stage_npt(struct nested *self, struct vmcb *vmcb, int level)
{
	static uint64_t page[512];
	int i;

	for (i = 0; i < NR_PAGES; i++)
		npt[0][i] = NPT_TO(i);
	npt[1][IN_PD] = NPT_TO(NPT_PT);
	npt[2][0] = NPT_TO(NPT_PDPT_LOW);
	npt[2][IN_PDPT] = NPT_TO(NPT_PD);
	npt[3][IN_PML4] = NPT_TO(NPT_PDPT);
	for (i = 0; i < 512; i++)
		npt[4][i] = (uint64_t)i << 21 | NPT_ENTRY | NPT_LARGE;
	stage(self, NPT_PDPT_LOW, npt[4], npt[4]);

	for (i = 0; i < ARRAY_SIZE(npt_levels); i++) {
		memcpy(npt_levels[i].other, npt_levels[i].table, PAGE_SIZE);
		if (i == level)
			npt_levels[i].other[npt_levels[i].index] = npt_levels[i].other_entry;
		stage(self, npt_levels[i].page, npt_levels[i].table, npt_levels[i].other);
	}

	/* Where the other entries lead, the memory is the guest's as well. */
	memcpy(page, npt[0], PAGE_SIZE);
	page[IN_PT] = NPT_TO(OTHER);
	stage(self, OTHER_PT, page, page);
	memset(page, 0, PAGE_SIZE);
	page[IN_PD] = NPT_TO(OTHER_PT);
	stage(self, OTHER_PD, page, page);
	memset(page, 0, PAGE_SIZE);
	page[0] = NPT_TO(NPT_PDPT_LOW);
	page[IN_PDPT] = NPT_TO(OTHER_PD);
	stage(self, OTHER_PDPT, page, page);

	memset(page, 0, PAGE_SIZE);
	page[0] = RIGHT;
	stage(self, DATA, page, self->before + DATA * PAGE_SIZE);
	page[0] = WRONG;
	stage(self, OTHER, page, self->before + OTHER * PAGE_SIZE);

	vmcb->control.nested_ctl = SVM_NESTED_CTL_NP_ENABLE;
	vmcb->control.nested_cr3 = PAGE_GPA(NPT_PML4);
	vmcb->save.rip = (uintptr_t)l2_read;
	stage_vmcb(self, vmcb);
}

static void npt_level(struct nested *self, struct vmcb *vmcb, int level)
{
	stage_npt(self, vmcb, level);
	l1_run(self, l1_vmrun);
	expect_right(self);
}

TEST_SVM(npt_pt)
{
	npt_level(self, vmcb, 0);
}

TEST_SVM(npt_pd)
{
	npt_level(self, vmcb, 1);
}

TEST_SVM(npt_pdpt)
{
	npt_level(self, vmcb, 2);
}

TEST_SVM(npt_pml4)
{
	npt_level(self, vmcb, 3);
}

TEST_SVM(npt_accessed_dirty)
{
	uint64_t entry, bits;
	int i;

	stage_npt(self, vmcb, -1);
	l1_run(self, l1_vmrun);
	expect_right(self);

	for (i = 0; i < ARRAY_SIZE(npt_levels); i++) {
		entry = read_page(self, npt_levels[i].page, npt_levels[i].index * 8);
		bits = entry & (NPT_ACCESSED | NPT_DIRTY);
		TEST_ASSERT(bits == NPT_ACCESSED,
			    "Expected level %d accessed and not dirty, got 0x%lx", i + 1, entry);
	}

	/* L2 writes to the same page. */
	vcpu_write_u64(self->vcpu, PAGE_GPA(VMCB) + OFF(save.rip), (uintptr_t)l2_write);
	vcpu_write_u64(self->vcpu, PAGE_GPA(DATA), 0);
	l1_run(self, l1_vmrun);
	expect_exit_code(self, SVM_EXIT_VMMCALL);
	TEST_ASSERT(read_page(self, DATA, 0) == RIGHT, "Expected L1 to see what L2 wrote");
	entry = read_page(self, NPT_PT, IN_PT * 8);
	TEST_ASSERT(entry & NPT_DIRTY, "Expected the entry dirty, got 0x%lx", entry);
	expect_shared_untouched(self);
}

/* A table that is not there yet is an empty one, and the fault is L1's. */
TEST_SVM(npt_in_hole)
{
	uint64_t gpa;

	stage_npt(self, vmcb, -1);
	vcpu_write_u64(self->vcpu, PAGE_GPA(NPT_PD) + IN_PD * 8, NPT_TO(SCRATCH));
	memcpy(self->mem.shared + SCRATCH * PAGE_SIZE, npt[0], PAGE_SIZE);
	memcpy(self->before + SCRATCH * PAGE_SIZE, npt[0], PAGE_SIZE);

	l1_run(self, l1_vmrun);
	expect_exit_code(self, SVM_EXIT_NPF);
	gpa = read_page(self, VMCB, OFF(control.exit_info_2));
	TEST_ASSERT(gpa == PAGE_GPA(DATA), "Expected a nested page fault at 0x%llx, got 0x%lx",
		    PAGE_GPA(DATA), gpa);

	vcpu_write_u64(self->vcpu, PAGE_GPA(SCRATCH) + IN_PT * 8, NPT_TO(DATA));
	l1_run(self, l1_vmrun);
	expect_right(self);
}

/*
 * A fault in one page of the group has KVM map those beside it, which must not be from
 * the wrong half.  Each page has a byte of a word for itself, where L2 reads a 1 in the
 * private half and a 2 in the shared one; the bits of @private say which it shall be.
 */
static void group_convert(struct nested *self, uint8_t private)
{
	int i;

	for (i = 0; i < 8; i++) {
		if (private & BIT(i))
			vm_mem_set_private(self->mem.vm, PAGE_GPA(GROUP + i), PAGE_SIZE);
		else
			vm_mem_set_shared(self->mem.vm, PAGE_GPA(GROUP + i), PAGE_SIZE);
	}
}

static void group_stage(struct nested *self)
{
	uint64_t private[512] = {}, shared[512] = {};
	int i;

	for (i = 0; i < 8; i++) {
		private[0] = 1ull << i * 8;
		shared[0] = 2ull << i * 8;
		stage(self, GROUP + i, private, shared);
	}
}

static void group_check(struct nested *self, uint8_t private, int first)
{
	struct kvm_regs regs;
	uint64_t want = 0;
	int i;

	for (i = 0; i < 8; i++)
		want |= (private & BIT(i) ? 1ull : 2ull) << i * 8;

	/* What is mapped goes with a conversion. */
	group_convert(self, 0xff);
	group_convert(self, 0);
	group_convert(self, private);

	vcpu_write_u64(self->vcpu, PAGE_GPA(VMCB) + OFF(save.rip), (uintptr_t)l2_read_group);
	l1_set(self, l1_vmrun);
	vcpu_regs_get(self->vcpu, &regs);
	regs.rdi = PAGE_GPA(GROUP + first);
	regs.rsi = PAGE_GPA(GROUP);
	vcpu_regs_set(self->vcpu, &regs);
	expect_l1_call(self, vcpu_access_run(self->vcpu));
	expect_exit_code(self, SVM_EXIT_VMMCALL);
	TEST_ASSERT(read_page(self, VMCB, OFF(save.rax)) == want,
		    "Expected L2 to read 0x%lx where pages 0x%x are private and it starts with %d, got 0x%lx",
		    want, private, first, read_page(self, VMCB, OFF(save.rax)));
}

static void group_check_all(struct nested *self)
{
	static const uint8_t patterns[] = { 0x00, 0xff, 0x55, 0xaa, 0x0f, 0xf0, 0x01, 0x80, 0x10 };
	int i, first;

	for (i = 0; i < ARRAY_SIZE(patterns); i++)
		for (first = 0; first < 8; first++)
			group_check(self, patterns[i], first);
	expect_shared_untouched(self);
}

/* By L1's entries beside the one of the fault, which KVM takes if they are accessed. */
TEST_SVM(npt_prefetch)
{
	int i;

	group_stage(self);
	stage_npt(self, vmcb, -1);
	for (i = GROUP; i < NR_PAGES; i++)
		vcpu_write_u64(self->vcpu, PAGE_GPA(NPT_PT) + i * 8, NPT_TO(i) | NPT_ACCESSED);
	group_check_all(self);
}

/* By one entry of L1's for all of them. */
TEST_SVM(npt_prefetch_large)
{
	group_stage(self);
	stage_npt(self, vmcb, -1);
	vcpu_write_u64(self->vcpu, PAGE_GPA(NPT_PD) + IN_PD * 8, NPT_TO(0) | NPT_LARGE);
	group_check_all(self);
}

/* The entries beside the one of the fault are those of the private half as well. */
TEST_SVM(npt_prefetch_entries)
{
	uint64_t *before = (uint64_t *)(self->before + NPT_PT * PAGE_SIZE), entry;
	int i, first;

	group_stage(self);
	stage_npt(self, vmcb, -1);
	vm_mem_set_shared(self->mem.vm, PAGE_GPA(OTHER), PAGE_SIZE);
	for (first = 0; first < 8; first++) {
		for (i = 0; i < 8; i++) {
			entry = NPT_TO(GROUP + i) | NPT_ACCESSED;
			vcpu_write_u64(self->vcpu, PAGE_GPA(NPT_PT) + (GROUP + i) * 8, entry);
			before[GROUP + i] = i == first ? entry : NPT_TO(OTHER) | NPT_ACCESSED;
		}
		memcpy(self->mem.shared + NPT_PT * PAGE_SIZE, before, PAGE_SIZE);
		group_check(self, 0, first);
	}
	expect_shared_untouched(self);
}

/* VMLOAD takes the private half, VMSAVE fills it. */
TEST_SVM(vmload)
{
	struct vmcb wrong = *vmcb;
	struct kvm_sregs sregs;
	static uint8_t page[4096];

	vmcb->save.fs.base = RIGHT;
	wrong.save.fs.base = WRONG;
	memcpy(page, &wrong, sizeof(wrong));
	stage(self, VMCB, vmcb, page);

	l1_run(self, l1_vmload);
	vcpu_sregs_get(self->vcpu, &sregs);
	TEST_ASSERT(sregs.fs.base == RIGHT, "Expected VMLOAD to load 0x%x, got 0x%llx", RIGHT,
		    sregs.fs.base);
	expect_shared_untouched(self);
}

TEST_SVM(vmsave)
{
	uint64_t seen;

	stage_vmcb(self, vmcb);
	vcpu_set_msr(self->vcpu, MSR_KERNEL_GS_BASE, RIGHT);
	l1_run(self, l1_vmsave);
	seen = read_page(self, VMCB, OFF(save.kernel_gs_base));
	TEST_ASSERT(seen == RIGHT, "Expected VMSAVE to save 0x%x, got 0x%lx", RIGHT, seen);
	expect_shared_untouched(self);
}

static struct kvm_nested_state *nested_state_get(struct nested *self)
{
	struct kvm_nested_state *state = calloc(1, 65536);

	TEST_ASSERT(state, "Insufficient memory");
	state->size = 65536;
	vcpu_nested_state_get(self->vcpu, state);
	return state;
}

/*
 * The file goes when VMRUN has got its VMCB and reads the map, which fails.  There
 * is no L2 then that could wait for the VMCB, but an L1 behind its VMRUN.
 */
TEST_SVM(file_closed_while_vmrun_fails)
{
	struct pollfd pollfd = { .events = POLLIN };
	struct kvm_nested_state *state;
	pthread_t thread;

	vmcb->control.intercept |= BIT_ULL(INTERCEPT_MSR_PROT);
	stage_vmcb(self, vmcb);
	vm_mem_set_shared(self->mem.vm, PAGE_GPA(MSRPM), 2 * PAGE_SIZE);
	pollfd.fd = userfaultfd_open();
	userfaultfd_empty(pollfd.fd, self->mem.shared + MSRPM * PAGE_SIZE, PAGE_SIZE);

	l1_set(self, l1_vmrun);
	pthread_create(&thread, NULL, l1_thread, self);
	TEST_ASSERT(poll(&pollfd, 1, 10000) == 1, "Expected VMRUN to read the permission map");
	close(self->mem.memfd);
	munmap(self->mem.shared + MSRPM * PAGE_SIZE, PAGE_SIZE);
	close(pollfd.fd);
	pthread_join(thread, NULL);

	state = nested_state_get(self);
	TEST_ASSERT(!(state->flags & KVM_STATE_NESTED_GUEST_MODE),
		    "Expected L1 to run after a VMRUN that failed");
	free(state);
	self->mem.memfd = -1;
}

/* L2's own memory: a page of each kind, and one that changes while L2 runs. */
TEST_SVM(l2_memory_shared)
{
	stage_npt(self, vmcb, -1);
	vm_mem_set_shared(self->mem.vm, PAGE_GPA(DATA), PAGE_SIZE);
	*(uint64_t *)(self->mem.shared + DATA * PAGE_SIZE) = 0x5a5a;
	l1_run(self, l1_vmrun);
	expect_exit_code(self, SVM_EXIT_VMMCALL);
	expect_rax(self, 0x5a5a);

	/* L2 runs when its page becomes private again. */
	vcpu_write_u64(self->vcpu, PAGE_GPA(VMCB) + OFF(save.rip), (uintptr_t)l2_call);
	l2_run_to_call(self);
	vm_mem_set_private(self->mem.vm, PAGE_GPA(DATA), PAGE_SIZE);
	expect_l1_call(self, vcpu_access_run(self->vcpu));
	vcpu_write_u64(self->vcpu, PAGE_GPA(VMCB) + OFF(save.rip), (uintptr_t)l2_read);
	l1_run(self, l1_vmrun);
	expect_rax(self, RIGHT);
}

/* L2's exit goes to the half that L1 sees by then. */
TEST_SVM(vmcb_converted_while_l2_runs)
{
	struct vmcb *shared = self->mem.shared + VMCB * PAGE_SIZE;

	start_l2(self, vmcb, l2_call);
	vm_mem_set_shared(self->mem.vm, PAGE_GPA(VMCB), PAGE_SIZE);
	expect_l1_call(self, vcpu_access_run(self->vcpu));
	TEST_ASSERT(shared->control.exit_code == SVM_EXIT_VMMCALL && shared->save.rax == RIGHT,
		    "Expected the exit in the half that is the guest's now");
	expect_exit_code(self, SVM_EXIT_VMMCALL);

	vm_mem_set_private(self->mem.vm, PAGE_GPA(VMCB), PAGE_SIZE);
	expect_rax(self, 0);
}

TEST_SVM(vmcb_punched_while_l2_runs)
{
	start_l2(self, vmcb, l2_call);
	guest_memfd_punch(self->mem.memfd, VMCB * PAGE_SIZE, PAGE_SIZE);
	expect_l1_call(self, vcpu_access_run(self->vcpu));
	expect_right(self);
	TEST_ASSERT(!read_page(self, VMCB, OFF(control.intercept)),
		    "Expected a page that was zero before L2's exit");
}

static void inject_smi(struct nested *self)
{
	struct kvm_vcpu_events events;

	vcpu_events_get(self->vcpu, &events);
	events.smi.pending = 1;
	events.flags |= KVM_VCPUEVENT_VALID_SMM;
	vcpu_events_set(self->vcpu, &events);
}

static void set_smram(struct nested *self, uint64_t smbase, void *handler)
{
	static const uint8_t code[] = {
		0xe6, SMM_PORT,		/* out %al, $SMM_PORT */
		0x0f, 0xaa,		/* rsm */
	};

	TEST_ASSERT(kvm_has_cap(KVM_CAP_X86_SMM), "Expected SMM");
	memcpy(handler, code, sizeof(code));
	vcpu_set_msr(self->vcpu, MSR_IA32_SMBASE, smbase);
}

/* What SMM saves is in the page @state, and by @offset off its place at the end of it. */
static void set_smram_state(struct nested *self, int state, int offset)
{
	uint64_t smbase = PAGE_GPA(state) - SMM_SAVED + offset;

	set_smram(self, smbase, plain_page(self, -NR_PLAIN) + smbase + SMM_HANDLER -
		  PAGE_GPA(-NR_PLAIN));
}

static void enter_smm(struct nested *self)
{
	inject_smi(self);
	run_to_port(self, SMM_PORT);
}

/* L1's state is in the save area while SMM interrupts L2. */
TEST_SVM(host_save_area)
{
	static uint8_t wrong[4096], zero[4096];
	struct kvm_sregs sregs;
	uint64_t seen;

	set_smram_state(self, PLAIN_SMM_STATE, 0);
	l2_vmcb_init(self, wrong, l1_wrong);
	stage(self, HSAVE, zero, wrong);
	vcpu_sregs_get(self->vcpu, &sregs);

	start_l2(self, vmcb, l2_call);
	enter_smm(self);
	expect_l1_call(self, vcpu_access_run(self->vcpu));
	expect_right(self);
	seen = read_page(self, HSAVE, OFF(save.cr3));
	TEST_ASSERT(seen == sregs.cr3, "Expected L1's CR3 in its save area, got 0x%lx", seen);
}

/* What SMM saves of an L1 that is about to do something else. */
static void make_smm_decoy(struct nested *self, void *decoy)
{
	set_smram_state(self, PLAIN_SMM_STATE, 0);
	start_l1(self);
	enter_smm(self);
	expect_l1_call(self, vcpu_access_run(self->vcpu));

	memcpy(decoy, plain_page(self, PLAIN_SMM_STATE), PAGE_SIZE);
	*(uint64_t *)(decoy + SMM_SAVED_RIP) = (uintptr_t)l1_wrong;
}

static void stage_smm_state(struct nested *self, int offset)
{
	static uint8_t decoy[4096], zero[4096];

	make_smm_decoy(self, decoy);
	memmove(decoy, decoy - offset, PAGE_SIZE + offset);
	stage(self, SMM_STATE, zero, decoy);
	set_smram_state(self, SMM_STATE, offset);
}

/* SMRAM has its handler and what it saves in private memory. */
TEST_SVM(smm)
{
	const int handler = GROUP, state = GROUP + (SMM_SAVED - SMM_HANDLER) / PAGE_SIZE;
	static uint8_t right[4096], wrong[4096], decoy[4096], zero[4096];
	uint64_t seen;

	make_smm_decoy(self, decoy);
	stage(self, state, zero, decoy);
	set_smram(self, PAGE_GPA(state) - SMM_SAVED, right);
	memcpy(wrong, right, PAGE_SIZE);
	wrong[1] = L2_PORT;
	stage(self, handler, right, wrong);

	start_l1(self);
	enter_smm(self);
	expect_shared_untouched(self);
	expect_l1_call(self, vcpu_access_run(self->vcpu));
	expect_shared_untouched(self);
	seen = read_page(self, state, SMM_SAVED_RIP);
	TEST_ASSERT(seen > (uintptr_t)l1_stop && seen < (uintptr_t)l1_stop + 8,
		    "Expected where L1 was in what SMM saved, got 0x%lx", seen);
}

/*
 * What is not there any more is zero, and so is what RSM loads.  Where that leads to
 * nothing waits for the vCPU, so it does not get beyond RSM.
 */
static void rsm_punched(struct nested *self, int page)
{
	struct kvm_guest_debug debug = {
		.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP,
	};

	enter_smm(self);
	guest_memfd_punch(self->mem.memfd, page * PAGE_SIZE, PAGE_SIZE);
	vcpu_guest_debug_set(self->vcpu, &debug);
	run_to_exit(self, KVM_EXIT_DEBUG);
	expect_shared_untouched(self);
}

TEST_SVM(rsm_state_punched)
{
	struct kvm_regs regs;

	stage_smm_state(self, 0);
	start_l1(self);
	rsm_punched(self, SMM_STATE);
	vcpu_regs_get(self->vcpu, &regs);
	TEST_ASSERT(!regs.rip, "Expected RSM to go to 0, got 0x%llx", regs.rip);
}

TEST_SVM(rsm_vmcb_punched)
{
	struct kvm_nested_state *state;
	struct vmcb *seen;

	set_smram_state(self, PLAIN_SMM_STATE, 0);
	start_l2(self, vmcb, l2_call);
	rsm_punched(self, VMCB);
	state = nested_state_get(self);
	seen = (struct vmcb *)state->data.svm;
	TEST_ASSERT((state->flags & KVM_STATE_NESTED_GUEST_MODE) && !seen->control.intercept,
		    "Expected an L2 without intercepts, got flags 0x%x, intercepts 0x%lx",
		    state->flags, seen->control.intercept);
	free(state);
}

TEST_SVM(rsm_save_area_punched)
{
	static uint8_t wrong[4096], zero[4096];
	struct kvm_nested_state *state;
	struct vmcb *seen;

	set_smram_state(self, PLAIN_SMM_STATE, 0);
	l2_vmcb_init(self, wrong, l1_wrong);
	stage(self, HSAVE, zero, wrong);
	start_l2(self, vmcb, l2_call);
	rsm_punched(self, HSAVE);
	state = nested_state_get(self);
	seen = (struct vmcb *)state->data.svm;
	TEST_ASSERT((state->flags & KVM_STATE_NESTED_GUEST_MODE) && !seen->save.cr3,
		    "Expected 0 in L1's CR3, got flags 0x%x, 0x%lx", state->flags,
		    (unsigned long)seen->save.cr3);
	free(state);
}

static void expect_no_secret(struct kvm_nested_state *state)
{
	uint64_t word;
	int i;

	for (i = 0; i + sizeof(word) <= state->size; i++) {
		memcpy(&word, (uint8_t *)state + i, sizeof(word));
		TEST_ASSERT(word != VMCB_SECRET,
			    "Expected nothing of the page in the nested state, found it at %d", i);
	}
}

/* What the processor has of the VMCB while L2 runs, and not the page. */
TEST_SVM(nested_state_round_trip)
{
	struct kvm_nested_state *state, *again;
	const uint64_t secret = VMCB_SECRET;

	/* In a field that is reserved, and behind all fields. */
	memcpy(vmcb->control.reserved_1, &secret, sizeof(secret));
	memcpy((void *)vmcb + 0x800, &secret, sizeof(secret));
	start_l2(self, vmcb, l2_call);

	state = nested_state_get(self);
	TEST_ASSERT(state->flags & KVM_STATE_NESTED_GUEST_MODE &&
		    state->hdr.svm.vmcb_pa == PAGE_GPA(VMCB),
		    "Expected the state of L2, got flags 0x%x", state->flags);
	expect_no_secret(state);

	vcpu_nested_state_set(self->vcpu, state);
	again = nested_state_get(self);
	TEST_ASSERT(again->size == state->size && !memcmp(again, state, state->size),
		    "Expected to read the state that was set");

	expect_l1_call(self, vcpu_access_run(self->vcpu));
	expect_right(self);
	TEST_ASSERT(read_page(self, VMCB, 0x800) == VMCB_SECRET,
		    "Expected the rest of the VMCB as L1 left it");
}

/* Whatever addresses userspace puts into the state, it learns nothing of what is there. */
TEST_SVM(nested_state_of_userspace)
{
	struct kvm_nested_state *state, *again;
	struct vmcb *ctl;
	uint64_t seen;

	vmcb->control.intercept |= BIT_ULL(INTERCEPT_MSR_PROT);
	vmcb->save.rip = (uintptr_t)l2_call;
	stage(self, MSRPM, self->before + DATA * PAGE_SIZE, self->before + MSRPM * PAGE_SIZE);
	stage_vmcb(self, vmcb);
	vcpu_fill(self->vcpu, PAGE_GPA(DATA), VMCB_SECRET, 2 * PAGE_SIZE);
	l2_run_to_call(self);

	state = nested_state_get(self);
	ctl = (struct vmcb *)state->data.svm;
	state->hdr.svm.vmcb_pa = PAGE_GPA(DATA);
	ctl->control.msrpm_base_pa = PAGE_GPA(DATA);
	ctl->control.iopm_base_pa = PAGE_GPA(DATA);
	vcpu_nested_state_set(self->vcpu, state);

	again = nested_state_get(self);
	TEST_ASSERT(!memcmp(again, state, state->size), "Expected to read the state that was set");
	expect_no_secret(again);

	/* Now KVM uses them, to run L2 and for its exit. */
	expect_l1_call(self, vcpu_access_run(self->vcpu));
	expect_no_secret(nested_state_get(self));
	seen = read_page(self, DATA, OFF(control.exit_code));
	TEST_ASSERT(seen == SVM_EXIT_VMMCALL, "Expected L2's exit in that page, got 0x%lx", seen);
	expect_shared_untouched(self);
}

static void close_file(struct nested *self)
{
	close(self->mem.memfd);
	self->mem.memfd = -1;
}

static void delete_slot(struct nested *self)
{
	private_mem_set_slot(&self->mem, 0);
}

static void add_slot(struct nested *self)
{
	private_mem_set_slot(&self->mem, self->mem.size);
}

static void take_new_file(struct nested *self)
{
	delete_slot(self);
	self->mem.memfd = vm_create_guest_memfd(self->mem.vm, self->mem.size, 0);
	guest_memfd_write(self->mem.memfd, self->private, self->mem.size, 0);
	add_slot(self);
}

static void forbid(struct nested *self)
{
	set_private_mem_inaccessible(true);
}

static void permit(struct nested *self)
{
	set_private_mem_inaccessible(false);
}

/*
 * What KVM cannot reach it leaves alone, and takes nothing in its place.  For a type of
 * VM that says so, the page is there, but not for KVM.
 */
FIXTURE(reach) {
	struct nested nested;
};

FIXTURE_VARIANT(reach) {
	struct way way;
};

FIXTURE_VARIANT_ADD(reach, slot_deleted) {
	.way = { delete_slot, add_slot },
};

FIXTURE_VARIANT_ADD(reach, file_closed) {
	.way = { close_file, take_new_file },
};

FIXTURE_VARIANT_ADD(reach, inaccessible) {
	.way = { forbid, permit },
};

FIXTURE_SETUP(reach)
{
	if (variant->way.lose == forbid && !set_private_mem_inaccessible(false))
		SETUP_SKIP(NO_SWITCH);

	nested_setup(&self->nested);
	self->nested.eye = vm_vcpu_add(self->nested.mem.vm, 1, NULL);
	self->nested.way = variant->way;
}

FIXTURE_TEARDOWN(reach)
{
	nested_free(&self->nested);
}

/* Where L2 goes on regardless it does not end, and there are many of these. */
#define TEST_REACH(name)	TEST_NESTED(reach, name, 30)

/* What the guest has in private memory.  Its other vCPU need not be asked. */
static void look(struct nested *self, void *private)
{
	struct kvm_regs regs;
	int ret;

	vcpu_regs_get(self->eye, &regs);
	regs.rip = (uintptr_t)l1_copy;
	regs.rflags = X86_EFLAGS_FIXED;
	regs.rsi = PAGE_GPA(0);
	regs.rdi = PAGE_GPA(PLAIN_COPY);
	regs.rcx = self->mem.size / sizeof(uint64_t);
	vcpu_regs_set(self->eye, &regs);

	ret = vcpu_access_run(self->eye);
	TEST_ASSERT(!ret && vcpu_is_guest_call(self->eye),
		    "Expected a copy of private memory, rc: %i errno: %i exit: %u (%s)", ret, errno,
		    self->eye->run->exit_reason, exit_reason_str(self->eye->run->exit_reason));
	memcpy(private, plain_page(self, PLAIN_COPY), self->mem.size);
}

static void lose(struct nested *self)
{
	look(self, self->private);
	self->way.lose(self);
}

static void regain(struct nested *self)
{
	static uint8_t now[NR_PAGES * 4096];
	int i;

	self->way.regain(self);
	look(self, now);
	for (i = 0; i < NR_PAGES; i++)
		TEST_ASSERT(!memcmp(now + i * PAGE_SIZE, self->private + i * PAGE_SIZE, PAGE_SIZE),
			    "Expected the private half of page %d as it was", i);
	expect_shared_untouched(self);
}

static void expect_private_fault_twice(struct nested *self, int page)
{
	int i, ret;

	for (i = 0; i < 2; i++) {
		ret = vcpu_access_run(self->vcpu);
		vcpu_assert_private_fault(self->vcpu, ret, errno, PAGE_GPA(page));
	}
}

/* What the vCPU is about to do waits for the page, and goes on with it. */
static void wait_for_page(struct nested *self, int page)
{
	lose(self);
	expect_private_fault_twice(self, page);
	regain(self);
	expect_l1_call(self, vcpu_access_run(self->vcpu));
	expect_shared_untouched(self);
}

TEST_REACH(vmrun)
{
	stage_vmcb(self, vmcb);
	l1_set(self, l1_vmrun);
	wait_for_page(self, VMCB);
	expect_right(self);
}

TEST_REACH(vmload)
{
	struct kvm_sregs sregs;

	vmcb->save.fs.base = RIGHT;
	stage_vmcb(self, vmcb);
	l1_set(self, l1_vmload);
	wait_for_page(self, VMCB);
	vcpu_sregs_get(self->vcpu, &sregs);
	TEST_ASSERT(sregs.fs.base == RIGHT, "Expected VMLOAD to load 0x%x, got 0x%llx", RIGHT,
		    sregs.fs.base);
}

TEST_REACH(vmsave)
{
	stage_vmcb(self, vmcb);
	vcpu_set_msr(self->vcpu, MSR_KERNEL_GS_BASE, RIGHT);
	l1_set(self, l1_vmsave);
	wait_for_page(self, VMCB);
	TEST_ASSERT(read_page(self, VMCB, OFF(save.kernel_gs_base)) == RIGHT,
		    "Expected VMSAVE to have saved what there was");
}

/* L2 stays where it is until L1 can be told. */
TEST_REACH(l2_exit)
{
	start_l2(self, vmcb, l2_call);
	wait_for_page(self, VMCB);
	expect_right(self);
}

/* It does so once for each place, and is tainted from the first time on. */
static bool kernel_has_warned(void)
{
	const long warned = BIT(9);
	char buf[32] = "";
	int fd;

	fd = open_path_or_exit("/proc/sys/kernel/tainted", O_RDONLY);
	TEST_ASSERT(read(fd, buf, sizeof(buf) - 1) > 0, "Cannot read /proc/sys/kernel/tainted");
	close(fd);
	return atol(buf) & warned;
}

/* An exception that is L1's waits for it, and KVM does not wonder. */
TEST_REACH(l2_exception)
{
	if (kernel_has_warned())
		CASE_SKIP("the kernel has warned before, and may not do so again");

	vmcb->control.intercept_exceptions = BIT(UD_VECTOR);
	start_l2(self, vmcb, l2_ud);
	wait_for_page(self, VMCB);
	expect_exit_code(self, SVM_EXIT_EXCP_BASE + UD_VECTOR);
	TEST_ASSERT(!kernel_has_warned(), "Expected no warning of the kernel");
}

/* L2's end is not forgotten while L1 cannot be told. */
TEST_REACH(l2_triple_fault)
{
	struct kvm_vcpu_events events;

	vm_enable_cap(self->mem.vm, KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1);
	vmcb->control.intercept |= BIT_ULL(INTERCEPT_SHUTDOWN);
	start_l2(self, vmcb, l2_call);

	vcpu_events_get(self->vcpu, &events);
	events.triple_fault.pending = 1;
	events.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
	vcpu_events_set(self->vcpu, &events);
	wait_for_page(self, VMCB);
	expect_exit_code(self, SVM_EXIT_SHUTDOWN);
}

/* Permission maps that permit everything, in both halves, for what L1 intercepts by them. */
static void stage_permission_maps(struct nested *self, struct vmcb *vmcb, int intercept)
{
	static const uint8_t none[4096];
	int page;

	self->vmcb = PLAIN_VMCB;
	vmcb->control.intercept |= BIT_ULL(intercept);
	for (page = MSRPM; page <= IOPM_2; page++)
		stage(self, page, none, none);
}

/* The map is merged once, on entry: there the entry fails, as by the base. */
TEST_REACH(msr_permission_map)
{
	stage_permission_maps(self, vmcb, INTERCEPT_MSR_PROT);
	stage_vmcb(self, vmcb);

	lose(self);
	l1_run(self, l1_vmrun);
	expect_exit_code(self, -1ull);
	regain(self);
	l1_run(self, l1_vmrun);
	expect_right(self);
}

/* An MSR that KVM intercepts itself: without the map, L1 may have wanted that too. */
TEST_REACH(msr_access)
{
	stage_permission_maps(self, vmcb, INTERCEPT_MSR_PROT);
	start_l2(self, vmcb, l2_msr);
	expect_l1_call(self, vcpu_access_run(self->vcpu));
	expect_right(self);

	start_l2(self, vmcb, l2_msr);
	lose(self);
	expect_l1_call(self, vcpu_access_run(self->vcpu));
	expect_exit_code(self, SVM_EXIT_MSR);
	regain(self);
}

/* Nothing of an L2 that userspace has set runs before its map has been merged. */
TEST_REACH(msr_permission_map_of_state)
{
	struct kvm_nested_state *state;
	int i;

	stage_permission_maps(self, vmcb, INTERCEPT_MSR_PROT);
	start_l2(self, vmcb, l2_call);
	state = nested_state_get(self);

	lose(self);
	vcpu_nested_state_set(self->vcpu, state);
	for (i = 0; i < 2; i++)
		run_to_exit(self, KVM_EXIT_INTERNAL_ERROR);
	regain(self);
	expect_l1_call(self, vcpu_access_run(self->vcpu));
	expect_right(self);
	free(state);
}

TEST_REACH(io_permission_map)
{
	stage_permission_maps(self, vmcb, INTERCEPT_IOIO_PROT);
	start_l2(self, vmcb, l2_ports);

	lose(self);
	expect_ioio(self, SMM_PORT);
	regain(self);
}

TEST_REACH(npt)
{
	self->vmcb = PLAIN_VMCB;
	stage_npt(self, vmcb, -1);
	l1_set(self, l1_vmrun);
	wait_for_page(self, NPT_PML4);
	expect_right(self);
}

/* L2 has read the page, and its write does not get past the entry that is not dirty. */
TEST_REACH(npt_dirty)
{
	uint64_t entry;

	self->vmcb = PLAIN_VMCB;
	stage_npt(self, vmcb, -1);
	start_l2(self, vmcb, l2_read_write);
	wait_for_page(self, NPT_PML4);
	expect_right(self);
	entry = read_page(self, NPT_PT, IN_PT * 8);
	TEST_ASSERT(entry & NPT_DIRTY, "Expected the entry dirty in the end, got 0x%lx", entry);
	TEST_ASSERT(read_page(self, DATA, 0) == WRONG, "Expected L1 to see what L2 wrote");
}

/* An SMI cannot wait, and without what it saves there is no way back: the VM is dead. */
static void expect_dead_of_smi(struct nested *self)
{
	int ret;

	lose(self);
	inject_smi(self);
	ret = _vcpu_run(self->vcpu);
	TEST_ASSERT(ret == -1 && errno == EIO, "Expected EIO, rc: %i errno: %i exit: %u (%s)", ret,
		    errno, self->vcpu->run->exit_reason,
		    exit_reason_str(self->vcpu->run->exit_reason));
	expect_shared_untouched(self);

	/* It does not even give back its memslots, until the process ends. */
	self->mem.vm = NULL;
}

TEST_REACH(smi_vmcb)
{
	set_smram_state(self, PLAIN_SMM_STATE, 0);
	vcpu_set_msr(self->vcpu, MSR_VM_HSAVE_PA, PAGE_GPA(PLAIN_HSAVE));
	start_l2(self, vmcb, l2_call);
	expect_dead_of_smi(self);
}

TEST_REACH(smi_save_area)
{
	set_smram_state(self, PLAIN_SMM_STATE, 0);
	self->vmcb = PLAIN_VMCB;
	start_l2(self, vmcb, l2_call);
	expect_dead_of_smi(self);
}

TEST_REACH(smi_state)
{
	set_smram_state(self, SMM_STATE, 0);
	start_l1(self);
	expect_dead_of_smi(self);
}

/* RSM starts again when its page is back, also if it is the second of two. */
static void rsm_state(struct nested *self, int offset)
{
	stage_smm_state(self, offset);
	start_l1(self);
	enter_smm(self);
	wait_for_page(self, SMM_STATE);
}

TEST_REACH(rsm_state)
{
	rsm_state(self, 0);
}

TEST_REACH(rsm_state_second_page)
{
	rsm_state(self, -0xf00);
}

/* Nor does RSM get to an L2 without its VMCB, or without what L1 had: a shutdown. */
static void expect_rsm_shutdown(struct nested *self, struct vmcb *vmcb)
{
	set_smram_state(self, PLAIN_SMM_STATE, 0);
	start_l2(self, vmcb, l2_call);
	enter_smm(self);

	lose(self);
	run_to_exit(self, KVM_EXIT_SHUTDOWN);
	regain(self);
}

TEST_REACH(rsm_vmcb)
{
	vcpu_set_msr(self->vcpu, MSR_VM_HSAVE_PA, PAGE_GPA(PLAIN_HSAVE));
	expect_rsm_shutdown(self, vmcb);
}

TEST_REACH(rsm_save_area)
{
	static uint8_t wrong[4096], zero[4096];

	l2_vmcb_init(self, wrong, l1_wrong);
	stage(self, HSAVE, zero, wrong);
	self->vmcb = PLAIN_VMCB;
	expect_rsm_shutdown(self, vmcb);
}

/*
 * What KVM writes to a page that has left the file meanwhile is nobody's, and not
 * there for the next owner of the page.
 */
FIXTURE(punched) {
	struct nested nested;
	struct memcg cg;
	int kcore;
};

FIXTURE_SETUP(punched)
{
	memcg_create(&self->cg);
	memcg_enter(&self->cg);
	nested_setup(&self->nested);
	self->kcore = open("/proc/kcore", O_RDONLY);
}

FIXTURE_TEARDOWN(punched)
{
	close(self->kcore);
	nested_free(&self->nested);
	memcg_destroy(&self->cg);
}

/* Nothing but luck has the two meet, unless VMSAVE is slow. */
TEST_F_TIMEOUT(punched, vmsave, 300)
{
	struct nested *nested = &self->nested;
	static uint64_t frame[4096 / 8];
	static uint8_t page[4096];
	pthread_t thread;
	uint64_t pfn;
	int i, round;

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "No SVM");
	if (self->kcore < 0)
		SKIP(return, "No CONFIG_PROC_KCORE");

	l2_vmcb_init(nested, page, l2_right);
	vcpu_set_msr(nested->vcpu, MSR_KERNEL_GS_BASE, VMCB_SECRET);
	for (round = 0; round < 3; round++) {
		pfn = memcg_take_and_find(&self->cg, nested->mem.memfd, VMCB * PAGE_SIZE, page,
					  PAGE_SIZE);
		l1_set(nested, l1_vmsave);
		pthread_create(&thread, NULL, l1_thread, nested);
		usleep(50000);
		guest_memfd_punch(nested->mem.memfd, VMCB * PAGE_SIZE, PAGE_SIZE);
		pthread_join(thread, NULL);

		ASSERT_TRUE(read_frames(self->kcore, pfn, 1, frame));
		for (i = 0; i < ARRAY_SIZE(frame); i++)
			ASSERT_NE(VMCB_SECRET, frame[i])
				TH_LOG("found at %d in page frame 0x%lx", i * 8, pfn);
	}
}

/*
 * The whole guest is private, and L1 sets itself up with what the other tests use.
 * Its VMCB, bitmaps, stack and page tables are where the test cannot see them.
 */
enum { CALL_DONE = 1, CALL_L2, CALL_L2_AGAIN };

static void l2_code(void)
{
	guest_call(CALL_L2, 0, 0, 0);
	asm volatile("vmmcall" : : : "memory");
}

#define L2_STACK_SIZE	64

static void l1_code_svm(struct svm_test_data *svm)
{
	unsigned long stack[L2_STACK_SIZE];

	generic_svm_setup(svm, l2_code, &stack[L2_STACK_SIZE - 1]);
	svm->vmcb->control.intercept |= BIT_ULL(INTERCEPT_MSR_PROT);
	run_guest(svm->vmcb, svm->vmcb_gpa);
	guest_call(CALL_DONE, svm->vmcb->control.exit_code, 0, 0);
}

static void expect_guest_call(struct kvm_vcpu *vcpu, uint64_t nr, uint64_t arg0)
{
	struct kvm_run *run = vcpu->run;
	struct guest_call call = {};
	int ret = _vcpu_run(vcpu);

	TEST_ASSERT(!ret && vcpu_get_guest_call(vcpu, &call) && call.nr == nr &&
		    call.args[0] == arg0,
		    "Expected call %lu with 0x%lx, rc: %i errno: %i exit: %u (%s) call %lu with 0x%lx",
		    nr, arg0, ret, errno, run->exit_reason, exit_reason_str(run->exit_reason),
		    call.nr, call.args[0]);
}

static void make_all_private(struct kvm_vm *vm)
{
	struct userspace_mem_region *region = memslot2region(vm, 0);

	vm_mem_slot_make_private(vm, 0);
	memset(region->host_mem, OTHER_HALF, region->region.memory_size);
}

TEST(svm_all_private)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	vm_vaddr_t gva;

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "No SVM");

	vm = private_mem_vm_create(1, 64, l1_code_svm, &vcpu);
	vcpu_alloc_svm(vm, &gva);
	vcpu_args_set(vcpu, 1, gva);
	make_all_private(vm);

	expect_guest_call(vcpu, CALL_L2, 0);
	expect_guest_call(vcpu, CALL_DONE, SVM_EXIT_VMMCALL);
	kvm_vm_free(vm);
}

/* The same with VT-x, where vmcs12, bitmaps and a virtual-APIC page are private. */
#define VIRTUAL_APIC	PAGE_GPA(0)

static void l2_code_vmx(void)
{
	asm volatile("mov %0, %%cr8" : : "r" (3ul));
	guest_call(CALL_L2, 0, 0, 0);
	asm volatile("mov %0, %%cr8" : : "r" (5ul));
	guest_call(CALL_L2_AGAIN, 0, 0, 0);
	vmcall();
}

static void l1_code_vmx(struct vmx_pages *vmx)
{
	unsigned long stack[L2_STACK_SIZE];
	uint32_t control;

	if (!prepare_for_vmx_operation(vmx) || !load_vmcs(vmx))
		guest_call(CALL_DONE, -1ul, 0, 0);
	prepare_vmcs(vmx, l2_code_vmx, &stack[L2_STACK_SIZE - 1]);

	control = vmreadz(CPU_BASED_VM_EXEC_CONTROL);
	control |= CPU_BASED_TPR_SHADOW | CPU_BASED_USE_MSR_BITMAPS;
	control &= ~(CPU_BASED_CR8_LOAD_EXITING | CPU_BASED_CR8_STORE_EXITING);
	vmwrite(CPU_BASED_VM_EXEC_CONTROL, control);
	vmwrite(VIRTUAL_APIC_PAGE_ADDR, VIRTUAL_APIC);
	vmwrite(TPR_THRESHOLD, 0);

	if (vmlaunch())
		guest_call(CALL_DONE, -2ul, 0, 0);
	guest_call(CALL_DONE, vmreadz(VM_EXIT_REASON), 0, 0);
}

FIXTURE(vmx) {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	uint8_t *shared;
	int memfd;
};

FIXTURE_SETUP(vmx)
{
	vm_vaddr_t gva;

	if (!kvm_cpu_has(X86_FEATURE_VMX))
		return;

	self->vm = private_mem_vm_create(1, 64, l1_code_vmx, &self->vcpu);
	vcpu_alloc_vmx(self->vm, &gva);
	vcpu_args_set(self->vcpu, 1, gva);
	make_all_private(self->vm);

	self->memfd = vm_create_guest_memfd(self->vm, PAGE_SIZE, 0);
	self->shared = shared_mem_alloc(PAGE_SIZE);
	memset(self->shared, OTHER_HALF, PAGE_SIZE);
	vm_set_user_memory_region2(self->vm, PRIVATE_MEM_SLOT, KVM_MEM_GUEST_MEMFD, VIRTUAL_APIC,
				   PAGE_SIZE, self->shared, self->memfd, 0);
	vm_mem_set_private(self->vm, VIRTUAL_APIC, PAGE_SIZE);
}

FIXTURE_TEARDOWN(vmx)
{
	if (self->vm)
		kvm_vm_free(self->vm);
}

TEST_F(vmx, all_private)
{
	if (!kvm_cpu_has(X86_FEATURE_VMX))
		SKIP(return, "No VT-x");

	expect_guest_call(self->vcpu, CALL_L2, 0);
	expect_guest_call(self->vcpu, CALL_L2_AGAIN, 0);
	expect_guest_call(self->vcpu, CALL_DONE, EXIT_REASON_VMCALL);
	ASSERT_EQ(OTHER_HALF, self->shared[0x80]);
}

/* The processor must not write the TPR to the page that is not L1's any more. */
TEST_F(vmx, virtual_apic_converted)
{
	if (!kvm_cpu_has(X86_FEATURE_VMX))
		SKIP(return, "No VT-x");

	expect_guest_call(self->vcpu, CALL_L2, 0);
	ASSERT_EQ(OTHER_HALF, self->shared[0x80]);
	vm_mem_set_shared(self->vm, VIRTUAL_APIC, PAGE_SIZE);
	expect_guest_call(self->vcpu, CALL_L2_AGAIN, 0);
	ASSERT_EQ(5 << 4, self->shared[0x80]);
	vm_mem_set_private(self->vm, VIRTUAL_APIC, PAGE_SIZE);
	expect_guest_call(self->vcpu, CALL_DONE, EXIT_REASON_VMCALL);
}

/* L2 does not run before the page is back. */
TEST_F(vmx, virtual_apic_out_of_reach)
{
	int ret;

	if (!kvm_cpu_has(X86_FEATURE_VMX))
		SKIP(return, "No VT-x");

	expect_guest_call(self->vcpu, CALL_L2, 0);
	close(self->memfd);
	ret = _vcpu_run(self->vcpu);
	vcpu_assert_private_fault(self->vcpu, ret, errno, VIRTUAL_APIC);
	vm_mem_set_shared(self->vm, VIRTUAL_APIC, PAGE_SIZE);
	expect_guest_call(self->vcpu, CALL_L2_AGAIN, 0);
	ASSERT_EQ(5 << 4, self->shared[0x80]);
	expect_guest_call(self->vcpu, CALL_DONE, EXIT_REASON_VMCALL);
}

/* An enlightened VMCS would be at an address of userspace's choice. */
TEST_F(vmx, evmcs_refused)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_HYPERV_ENLIGHTENED_VMCS,
	};
	uint16_t version;

	if (!kvm_cpu_has(X86_FEATURE_VMX))
		SKIP(return, "No VT-x");

	ASSERT_EQ(0, vm_check_cap(self->vm, cap.cap));
	cap.args[0] = (uintptr_t)&version;
	ASSERT_EQ(EINVAL, err_of(__vcpu_ioctl(self->vcpu, KVM_ENABLE_CAP, &cap)));
}

TEST_HARNESS_MAIN
