// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM's own access to private memory: instructions that it fetches, operands
 * that it reads and writes, and guest page tables that it walks.
 *
 * The whole guest is private, but for a page in the middle of its code and of
 * its data.  The other half of each page holds what would be believed if KVM
 * looked there: other instructions, other data, and page tables that translate
 * the same addresses to other pages.  No half but the guest's may change.
 *
 * All cases of that kind run in ordinary memory too, which shows that it is the
 * memory they test and not the emulator.
 *
 * Then the same accesses to private memory that is not there, or that KVM must not
 * access: they fail, and leave both halves alone.
 */
#define _GNU_SOURCE
#include <linux/falloc.h>

#include "kvm_harness.h"
#include "private_mem.h"
#include "svm_util.h"

#define SLOT		PRIVATE_MEM_SLOT
#define GPA		PRIVATE_MEM_GPA

#define EMULATION_TIMEOUT	120

/* The pages of a test.  C2 and D2 are shared. */
enum { C0, C1, C2, C3, D0, D1, D2, D3, STACK, NR_PAGES };

#define CODE_GVA	0x200000000ull
#define DATA_GVA	0x200010000ull
#define STACK_GVA	0x200020000ull
#define PT_GVA		0x200030000ull
#define MMIO_GVA	0x200040000ull
#define WALK_GVA	0x200200000ull	/* has a page table of its own */
#define STACK_TOP	(STACK_GVA + PAGE_SIZE)
#define MMIO_GPA	(GPA + 0x40000000ull)
#define IO_PORT		0x3000

/* In the half that is not the guest's, and where the wrong page tables lead. */
#define OTHER_HALF	0x5a
#define OTHER_PAGE	0xa5

/* A descriptor that nothing else uses. */
#define TEST_SELECTOR	0x20
#define TEST_BASE	0x12345000ull

struct guest {
	bool private;
	bool inaccessible;	/* or just a page of it is, which KVM must not access */
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct kvm_regs regs;

	/* What the guest's half and the other half of each page begin with. */
	uint8_t page[NR_PAGES][PAGE_SIZE];
	uint8_t decoy[NR_PAGES][PAGE_SIZE];
	bool hole[NR_PAGES];

	int memfd;
	uint8_t *shared;
	void *slot0_before;

	/* What the guest put out, and what it gets for its input. */
	uint8_t out[512];
	int out_len;
	uint8_t in[512];
	int in_len;
	int nr_halts;

	/* Where the code is that accesses what is out of reach. */
	uint64_t start;

	/* To come back from another mode. */
	struct kvm_sregs sregs;
};

static uint64_t page_gva(int page)
{
	if (page < D0)
		return CODE_GVA + page * PAGE_SIZE;
	if (page < STACK)
		return DATA_GVA + (page - D0) * PAGE_SIZE;
	return STACK_GVA;
}

/* No two pages adjoin in guest physical memory. */
static uint64_t page_gpa(int page)
{
	return GPA + 2 * page * PAGE_SIZE;
}

/* Where the page tables in the other half lead. */
static uint64_t other_gpa(int page)
{
	return page_gpa(page) + PAGE_SIZE;
}

#define SLOT_SIZE	(2 * NR_PAGES * PAGE_SIZE)

static bool page_is_private(struct guest *self, int page)
{
	return self->private && page != C2 && page != D2;
}

static int gva_to_page(uint64_t gva)
{
	if (gva >= STACK_GVA)
		return STACK;
	if (gva >= DATA_GVA)
		return D0 + (gva - DATA_GVA) / PAGE_SIZE;
	return C0 + (gva - CODE_GVA) / PAGE_SIZE;
}

/* Before commit(): what memory is to hold from gva on, across pages. */
static void stage(uint8_t half[NR_PAGES][PAGE_SIZE], uint64_t gva, const void *data, int len)
{
	const uint8_t *p = data;

	for (; len--; gva++)
		half[gva_to_page(gva)][gva % PAGE_SIZE] = *p++;
}

static void stage_u64(struct guest *self, uint64_t gva, uint64_t val)
{
	stage(self->page, gva, &val, sizeof(val));
}

/* Code from DEFINE_GUEST_CODE(name, instructions). */
#define stage_code(name, gva)	\
	stage(self->page, gva, code_##name, code_##name##_end - code_##name)
#define stage_decoy(name, gva)	\
	stage(self->decoy, gva, code_##name, code_##name##_end - code_##name)

static void guest_create(struct guest *self, uint32_t type, bool private)
{
	struct kvm_vm *vm;
	struct desc64 *desc;
	int i;

	/* The rest of a case that did not end by itself. */
	set_private_mem_inaccessible(false);

	self->private = private;

	/* Without an irqchip, HLT exits. */
	vm = ____vm_create(VM_SHAPE(type), 1024);
	kvm_vm_elf_load(vm, program_invocation_name);
	self->vm = vm;
	self->vcpu = vm_vcpu_add(vm, 0, NULL);

	self->shared = shared_mem_alloc(SLOT_SIZE);
	for (i = 0; i < NR_PAGES; i++)
		virt_pg_map(vm, page_gva(i), page_gpa(i));
	virt_pg_map(vm, MMIO_GVA, MMIO_GPA);

	desc = addr_gva2hva(vm, vm->gdt) + TEST_SELECTOR;
	desc->base0 = TEST_BASE & 0xffff;
	desc->base1 = (TEST_BASE >> 16) & 0xff;
	desc->base2 = TEST_BASE >> 24;
	desc->limit0 = 0xffff;
	desc->type = 2;
	desc->s = 1;
	desc->p = 1;
	desc->db = 1;

	memset(self->decoy, OTHER_HALF, sizeof(self->decoy));
	for (i = 0; i < sizeof(self->in); i++)
		self->in[i] = i * 7 + 1;
	self->regs.rflags = X86_EFLAGS_FIXED;
	self->regs.rsp = STACK_TOP;
	self->regs.rdx = IO_PORT;
}

/* All test pages are in one page table. */
static uint64_t *shared_pte(struct guest *self, int page)
{
	return vm_page_table_entry(self->vm, page_gva(page), PG_LEVEL_4K);
}

static uint64_t guest_pte_gva(struct guest *self, int page)
{
	return PT_GVA + ((page_gva(page) >> PAGE_SHIFT) & 0x1ff) * 8;
}

static void commit_ordinary(struct guest *self)
{
	int i;

	vm_set_user_memory_region(self->vm, SLOT, 0, GPA, SLOT_SIZE, self->shared);
	for (i = 0; i < NR_PAGES; i++)
		memcpy(self->shared + (page_gpa(i) - GPA), self->page[i], PAGE_SIZE);
}

static void commit_private(struct guest *self)
{
	struct userspace_mem_region *region = memslot2region(self->vm, 0);
	struct desc64 *desc = addr_gva2hva(self->vm, self->vm->gdt) + TEST_SELECTOR;
	uint8_t other[PAGE_SIZE];
	int i;

	memset(other, OTHER_PAGE, sizeof(other));
	self->memfd = vm_create_guest_memfd(self->vm, SLOT_SIZE, 0);
	vm_set_user_memory_region2(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SLOT_SIZE,
				   self->shared, self->memfd, 0);
	vm_mem_set_private(self->vm, GPA, SLOT_SIZE);

	for (i = 0; i < NR_PAGES; i++) {
		bool private = page_is_private(self, i);

		if (!private)
			vm_mem_set_shared(self->vm, page_gpa(i), PAGE_SIZE);
		if (!self->hole[i])
			guest_memfd_write(self->memfd, private ? self->page[i] : self->decoy[i],
					  PAGE_SIZE, page_gpa(i) - GPA);
		guest_memfd_write(self->memfd, other, PAGE_SIZE, other_gpa(i) - GPA);
		memcpy(self->shared + (page_gpa(i) - GPA),
		       private ? self->decoy[i] : self->page[i], PAGE_SIZE);
		memcpy(self->shared + (other_gpa(i) - GPA), other, PAGE_SIZE);
	}

	vm_mem_slot_make_private(self->vm, 0);

	for (i = 0; i < NR_PAGES; i++)
		*shared_pte(self, i) = other_gpa(i) | PTE_PRESENT_MASK | PTE_WRITABLE_MASK;
	desc->base0 = ~desc->base0;

	self->slot0_before = malloc(region->region.memory_size);
	memcpy(self->slot0_before, region->host_mem, region->region.memory_size);
}

/* Builds the guest's memory from what was staged. */
static void commit(struct guest *self)
{
	virt_pg_map(self->vm, PT_GVA,
		    addr_hva2gpa(self->vm, shared_pte(self, 0)) & PAGE_MASK);

	if (self->private)
		commit_private(self);
	else
		commit_ordinary(self);
}

/*
 * Runs the guest until it calls, serving its input and output; or until the
 * fault at fault_gpa, if that is not 0.
 */
static void run(struct guest *self, uint64_t fault_gpa)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_run *run = vcpu->run;
	struct kvm_regs regs;
	uint8_t *data;
	int ret, len;
	bool out;

	for (;;) {
		ret = _vcpu_run(vcpu);
		if (ret && fault_gpa) {
			vcpu_assert_private_fault(vcpu, ret, errno, fault_gpa);
			return;
		}
		TEST_ASSERT(!ret, "KVM_RUN failed, rc: %i errno: %i exit: %u (%s)", ret, errno,
			    run->exit_reason, exit_reason_str(run->exit_reason));

		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			if (run->io.port == GUEST_CALL_PORT)
				goto done;
			TEST_ASSERT(run->io.port == IO_PORT, "Unexpected I/O port 0x%x",
				    run->io.port);
			data = (uint8_t *)run + run->io.data_offset;
			len = run->io.size * run->io.count;
			out = run->io.direction == KVM_EXIT_IO_OUT;
			break;
		case KVM_EXIT_MMIO:
			TEST_ASSERT((run->mmio.phys_addr & PAGE_MASK) == MMIO_GPA,
				    "Unexpected MMIO at 0x%llx", run->mmio.phys_addr);
			data = run->mmio.data;
			len = run->mmio.len;
			out = run->mmio.is_write;
			break;
		case KVM_EXIT_HLT:
			self->nr_halts++;
			continue;
		default:
			vcpu_regs_get(vcpu, &regs);
			TEST_FAIL("Unexpected exit %u (%s) at RIP 0x%llx, code at 0x%llx",
				  run->exit_reason, exit_reason_str(run->exit_reason),
				  regs.rip, self->regs.rip);
		}

		if (out) {
			TEST_ASSERT(self->out_len + len <= sizeof(self->out), "Too much output");
			memcpy(self->out + self->out_len, data, len);
			self->out_len += len;
		} else {
			TEST_ASSERT(self->in_len + len <= sizeof(self->in), "Too much input");
			memcpy(data, self->in + self->in_len, len);
			self->in_len += len;
		}
	}

done:
	TEST_ASSERT(!fault_gpa, "Expected a fault at 0x%lx, the guest went on", fault_gpa);
	vcpu_run_complete_io(vcpu);
	vcpu_regs_get(vcpu, &self->regs);
}

static void exec_until_fault(struct guest *self, uint64_t gva, uint64_t fault_gpa)
{
	self->regs.rip = gva;
	vcpu_regs_set(self->vcpu, &self->regs);
	run(self, fault_gpa);
}

/* Runs code at gva until it calls. */
static void exec(struct guest *self, uint64_t gva)
{
	exec_until_fault(self, gva, 0);
}

static const char *whose(uint64_t val)
{
	switch (val & 0xff) {
	case OTHER_HALF:
		return " (from the wrong half)";
	case OTHER_PAGE:
		return " (translated by page tables in the wrong half)";
	default:
		return "";
	}
}

static void expect_output(struct guest *self, const void *want, int len)
{
	int i;

	TEST_ASSERT(self->out_len == len, "Expected %d bytes of output, got %d", len,
		    self->out_len);
	for (i = 0; i < len; i++)
		TEST_ASSERT(self->out[i] == ((uint8_t *)want)[i],
			    "Expected 0x%x at %d in the output, got 0x%x%s",
			    ((uint8_t *)want)[i], i, self->out[i], whose(self->out[i]));
}

static void expect_output_u64(struct guest *self, uint64_t want)
{
	expect_output(self, &want, sizeof(want));
}

/* As the guest sees it, without KVM's help. */
static void expect_u64(struct guest *self, uint64_t gva, uint64_t want)
{
	uint64_t seen = vcpu_read_u64(self->vcpu, gva);

	TEST_ASSERT(seen == want, "Expected 0x%lx at 0x%lx, guest read 0x%lx%s", want, gva, seen,
		    whose(seen));
}

static void expect_reg(uint64_t seen, uint64_t want)
{
	TEST_ASSERT(seen == want, "Expected 0x%lx in the register, got 0x%lx%s", want, seen,
		    whose(seen));
}

static uint64_t input_u64(struct guest *self, int at)
{
	uint64_t val;

	memcpy(&val, self->in + at, sizeof(val));
	return val;
}

/* Nothing but the guest's half may have changed. */
static void guest_free(struct guest *self)
{
	struct userspace_mem_region *region = memslot2region(self->vm, 0);
	uint64_t i, size = region->region.memory_size;
	int page;

	if (self->private) {
		for (i = 0; i < size; i += 8) {
			uint64_t was = *(uint64_t *)(self->slot0_before + i);
			uint64_t is = *(uint64_t *)(region->host_mem + i);

			TEST_ASSERT(was == is,
				    "KVM changed the shared half of 0x%lx from 0x%lx to 0x%lx",
				    i, was, is);
		}

		for (page = 0; page < NR_PAGES; page++) {
			if (page_is_private(self, page)) {
				TEST_ASSERT(!memcmp(self->shared + (page_gpa(page) - GPA),
						    self->decoy[page], PAGE_SIZE),
					    "KVM changed the shared half of page %d", page);
			} else if (page == D2) {
				vm_mem_set_private(self->vm, page_gpa(page), PAGE_SIZE);
				vcpu_check(self->vcpu, page_gva(page),
					   OTHER_HALF * 0x0101010101010101ull, PAGE_SIZE);
			}
		}
		close(self->memfd);
		free(self->slot0_before);
	}

	kvm_vm_free(self->vm);
	munmap(self->shared, SLOT_SIZE);
}

FIXTURE(emulation) {
	struct guest guest;
};

FIXTURE_VARIANT(emulation) {
	bool private;
};

FIXTURE_VARIANT_ADD(emulation, ordinary_memory) {
	.private = false,
};

FIXTURE_VARIANT_ADD(emulation, private_memory) {
	.private = true,
};

FIXTURE_SETUP(emulation)
{
	guest_create(&self->guest,
		     variant->private ? KVM_X86_SW_PROTECTED_VM : KVM_X86_DEFAULT_VM,
		     variant->private);
}

FIXTURE_TEARDOWN(emulation)
{
	guest_free(&self->guest);
}

/* What makes sense with private memory only. */
FIXTURE(private_emulation) {
	struct guest guest;
};

FIXTURE_SETUP(private_emulation)
{
	guest_create(&self->guest, KVM_X86_SW_PROTECTED_VM, true);
}

FIXTURE_TEARDOWN(private_emulation)
{
	guest_free(&self->guest);
}

#define TEST_EMULATION(name)	TEST_F_MEMBER(emulation, name, guest, EMULATION_TIMEOUT)
#define TEST_PRIVATE_EMULATION(name)	\
	TEST_F_MEMBER(private_emulation, name, guest, EMULATION_TIMEOUT)

/*
 * An operand of eight bytes, or two of four, within a page and across each kind
 * of border.
 */
static const uint64_t operands[] = {
	DATA_GVA + 0x100,
	DATA_GVA + 1 * PAGE_SIZE - 6,		/* private, private */
	DATA_GVA + 2 * PAGE_SIZE - 6,		/* private, shared */
	DATA_GVA + 3 * PAGE_SIZE - 6,		/* shared, private */
	DATA_GVA + 2 * PAGE_SIZE + 0x100,	/* shared */
};

static uint64_t value(int i)
{
	return 0x1122334455667700ull + 0x1111 * i;
}

static void stage_operands(struct guest *self)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(operands); i++)
		stage_u64(self, operands[i], value(i));
}

/* Code from DEFINE_GUEST_CODE() at CODE_GVA, and an operand at each place. */
#define commit_with_operands(name)		\
do {						\
	stage_code(name, CODE_GVA);		\
	stage_operands(self);			\
	commit(self);				\
} while (0)

/* Runs that code with RDI and RCX. */
static void exec_rdi_rcx(struct guest *self, uint64_t rdi, uint64_t rcx)
{
	self->regs.rdi = rdi;
	self->regs.rcx = rcx;
	exec(self, CODE_GVA);
}

/*
 * Fetch.
 */

DEFINE_GUEST_CODE(store_rcx, "mov %rcx, (%rdi)");
DEFINE_GUEST_CODE(store_rbx, "mov %rbx, (%rdi)");

static void set_store_regs(struct guest *self)
{
	self->regs.rdi = MMIO_GVA;
	self->regs.rcx = 0x1111111111111111ull;
	self->regs.rbx = 0x2222222222222222ull;
}

TEST_EMULATION(fetch)
{
	stage_code(store_rcx, CODE_GVA);
	stage_decoy(store_rbx, CODE_GVA);
	commit(self);

	set_store_regs(self);
	exec(self, CODE_GVA);
	expect_output_u64(self, 0x1111111111111111ull);
}

/* The prefix is in one page, the opcode and what follows in the next. */
TEST_EMULATION(fetch_across_pages)
{
	uint64_t gva;
	int i;

	for (i = 1; i <= 3; i++) {
		gva = CODE_GVA + i * PAGE_SIZE - 1;
		stage_code(store_rcx, gva);
		stage_decoy(store_rbx, gva);
	}
	commit(self);

	for (i = 1; i <= 3; i++) {
		self->out_len = 0;
		set_store_regs(self);
		exec(self, CODE_GVA + i * PAGE_SIZE - 1);
		expect_output_u64(self, 0x1111111111111111ull);
	}
}

/* What skips an instruction must know how long it is. */
DEFINE_GUEST_CODE(skip_cpuid, "cpuid; inc %r8; inc %r8; inc %r8");
DEFINE_GUEST_CODE(skip_rdmsr, "mov $0xc0000080, %ecx; rdmsr; inc %r8; inc %r8; inc %r8");
DEFINE_GUEST_CODE(skip_vmmcall, "mov $0x7fff, %eax; vmmcall; inc %r8; inc %r8; inc %r8");
DEFINE_GUEST_CODE(skip_vmcall, "mov $0x7fff, %eax; vmcall; inc %r8; inc %r8; inc %r8");
DEFINE_GUEST_CODE(skip_hlt, "hlt; inc %r8; inc %r8; inc %r8");
DEFINE_GUEST_CODE(skip_nothing, "inc %r8; inc %r8; inc %r8");

/* One instruction that is longer than any of those. */
static const uint8_t long_insn[] = { 0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00 };

static void check_skip(struct guest *self, const uint8_t *code, const uint8_t *end, int offset)
{
	stage(self->page, CODE_GVA, code, end - code);
	stage(self->decoy, CODE_GVA, code, end - code);
	stage(self->decoy, CODE_GVA + offset, long_insn, sizeof(long_insn));
	commit(self);

	self->regs.r8 = 0;
	exec(self, CODE_GVA);
	TEST_ASSERT(self->regs.r8 == 3, "Expected 3 instructions after the skipped one, ran %llu",
		    self->regs.r8);
}

TEST_EMULATION(skip_cpuid)
{
	check_skip(self, code_skip_cpuid, code_skip_cpuid_end, 0);
}

TEST_EMULATION(skip_rdmsr)
{
	check_skip(self, code_skip_rdmsr, code_skip_rdmsr_end, 5);
}

TEST_EMULATION(skip_hypercall)
{
	if (is_amd_cpu())
		check_skip(self, code_skip_vmmcall, code_skip_vmmcall_end, 5);
	else
		check_skip(self, code_skip_vmcall, code_skip_vmcall_end, 5);
	expect_reg(self->regs.rax, -KVM_ENOSYS);
}

TEST_EMULATION(skip_hlt)
{
	check_skip(self, code_skip_hlt, code_skip_hlt_end, 0);
	TEST_ASSERT(self->nr_halts == 1, "Expected one exit HLT, got %d", self->nr_halts);
}

/* The other vendor's hypercall: KVM writes the right one into the code. */
static void check_patch(struct guest *self, const uint8_t *code, const uint8_t *end)
{
	uint64_t was, want;

	stage(self->page, CODE_GVA, code, end - code);
	stage(self->decoy, CODE_GVA, code, end - code);
	commit(self);

	was = vcpu_read_u64(self->vcpu, CODE_GVA + 5);
	want = (was & ~0xffffffull) | (is_amd_cpu() ? 0xd9010f : 0xc1010f);
	TEST_ASSERT(was != want, "The code to be patched is patched");

	self->regs.r8 = 0;
	exec(self, CODE_GVA);
	expect_reg(self->regs.rax, -KVM_ENOSYS);
	expect_reg(self->regs.r8, 3);
	expect_u64(self, CODE_GVA + 5, want);
}

TEST_EMULATION(patch_hypercall)
{
	if (is_amd_cpu())
		check_patch(self, code_skip_vmcall, code_skip_vmcall_end);
	else
		check_patch(self, code_skip_vmmcall, code_skip_vmmcall_end);
}

/*
 * Guest page tables.
 */

DEFINE_GUEST_CODE(outsb, "cld; outsb");
DEFINE_GUEST_CODE(insb, "cld; insb");
DEFINE_GUEST_CODE(outsl, "cld; outsl; outsl");
DEFINE_GUEST_CODE(insl, "cld; insl; insl");
DEFINE_GUEST_CODE(rep_outsb, "cld; rep outsb");
DEFINE_GUEST_CODE(rep_insb, "cld; rep insb");

static void exec_outsb(struct guest *self, uint64_t gva)
{
	self->regs.rsi = gva;
	self->regs.rdx = IO_PORT;
	exec(self, CODE_GVA);
}

static void expect_accessed_dirty(struct guest *self, int page, bool accessed, bool dirty)
{
	uint64_t pte = vcpu_read_u64(self->vcpu, guest_pte_gva(self, page));
	uint64_t want = page_gpa(page) | PTE_PRESENT_MASK | PTE_WRITABLE_MASK |
			(accessed ? PTE_ACCESSED_MASK : 0) | (dirty ? PTE_DIRTY_MASK : 0);

	TEST_ASSERT(pte == want, "Expected guest PTE 0x%lx for page %d, found 0x%lx", want, page,
		    pte);
}

/* String output reads memory that only KVM has looked at. */
TEST_EMULATION(walk_sets_accessed)
{
	self->page[D0][0] = 0x77;
	stage_code(outsb, CODE_GVA);
	commit(self);
	expect_accessed_dirty(self, D0, false, false);

	exec_outsb(self, page_gva(D0));
	expect_output(self, "\x77", 1);
	expect_accessed_dirty(self, D0, true, false);
	expect_accessed_dirty(self, D1, false, false);
}

TEST_EMULATION(walk_sets_dirty)
{
	stage_code(insb, CODE_GVA);
	commit(self);
	expect_accessed_dirty(self, D0, false, false);

	self->regs.rdi = page_gva(D0);
	exec(self, CODE_GVA);
	expect_accessed_dirty(self, D0, true, true);
	expect_accessed_dirty(self, D1, false, false);
	expect_u64(self, page_gva(D0), self->in[0]);
}

/* A translation that the guest changes in its private page table. */
TEST_EMULATION(walk_follows_guest)
{
	self->page[D0][0] = 0x11;
	self->page[D1][0] = 0x22;
	stage_code(outsb, CODE_GVA);
	commit(self);

	exec_outsb(self, page_gva(D0));
	expect_output(self, "\x11", 1);

	vcpu_write_u64(self->vcpu, guest_pte_gva(self, D0),
		       page_gpa(D1) | PTE_PRESENT_MASK | PTE_WRITABLE_MASK);
	exec_outsb(self, page_gva(D0));
	expect_output(self, "\x11\x22", 2);
}

/*
 * String I/O.
 */

TEST_EMULATION(string_out)
{
	int i;

	commit_with_operands(outsl);
	for (i = 0; i < ARRAY_SIZE(operands); i++) {
		self->out_len = 0;
		self->regs.rsi = operands[i];
		self->regs.rdx = IO_PORT;
		exec(self, CODE_GVA);
		expect_output_u64(self, value(i));
	}
}

TEST_EMULATION(string_in)
{
	int i;

	commit_with_operands(insl);
	for (i = 0; i < ARRAY_SIZE(operands); i++) {
		self->regs.rdi = operands[i];
		self->regs.rdx = IO_PORT;
		exec(self, CODE_GVA);
		expect_u64(self, operands[i], input_u64(self, i * 8));
	}
}

/* 64 bytes, half of them in the next page. */
TEST_EMULATION(repeated_string_out)
{
	uint8_t want[64];
	int i;

	for (i = 0; i < 64; i++)
		want[i] = 0x80 ^ i;
	stage_code(rep_outsb, CODE_GVA);
	for (i = 1; i <= 3; i++)
		stage(self->page, page_gva(D0 + i) - 32, want, 64);
	commit(self);

	for (i = 1; i <= 3; i++) {
		self->out_len = 0;
		self->regs.rsi = page_gva(D0 + i) - 32;
		self->regs.rcx = 64;
		self->regs.rdx = IO_PORT;
		exec(self, CODE_GVA);
		expect_output(self, want, 64);
	}
}

TEST_EMULATION(repeated_string_in)
{
	int i, j;

	stage_code(rep_insb, CODE_GVA);
	commit(self);

	for (i = 1; i <= 3; i++) {
		self->regs.rdi = page_gva(D0 + i) - 32;
		self->regs.rcx = 64;
		self->regs.rdx = IO_PORT;
		exec(self, CODE_GVA);
		for (j = 0; j < 64; j += 8)
			expect_u64(self, page_gva(D0 + i) - 32 + j,
				   input_u64(self, (i - 1) * 64 + j));
	}
}

/*
 * MMIO, with the other operand in memory.
 */

DEFINE_GUEST_CODE(movs, "cld; movsl; mov %r9, %rdi; movsl");
DEFINE_GUEST_CODE(movs_in, "cld; movsl; mov %r9, %rsi; movsl");
DEFINE_GUEST_CODE(push_mmio, "pushq (%rdi)");
DEFINE_GUEST_CODE(pop_mmio, "popq (%rdi)");
DEFINE_GUEST_CODE(call_mmio, "callq *(%rdi)");
DEFINE_GUEST_CODE(nothing, "");

TEST_EMULATION(mmio_from_memory)
{
	int i;

	commit_with_operands(movs);
	for (i = 0; i < ARRAY_SIZE(operands); i++) {
		self->out_len = 0;
		self->regs.rsi = operands[i];
		self->regs.rdi = MMIO_GVA;
		self->regs.r9 = MMIO_GVA;
		exec(self, CODE_GVA);
		expect_output_u64(self, value(i));
	}
}

TEST_EMULATION(mmio_to_memory)
{
	int i;

	commit_with_operands(movs_in);
	for (i = 0; i < ARRAY_SIZE(operands); i++) {
		self->regs.rsi = MMIO_GVA;
		self->regs.r9 = MMIO_GVA;
		self->regs.rdi = operands[i];
		exec(self, CODE_GVA);
		expect_u64(self, operands[i], input_u64(self, i * 8));
	}
}

TEST_EMULATION(mmio_push)
{
	stage_code(push_mmio, CODE_GVA);
	commit(self);

	self->regs.rdi = MMIO_GVA;
	exec(self, CODE_GVA);
	expect_reg(self->regs.rsp, STACK_TOP - 8);
	expect_u64(self, STACK_TOP - 8, input_u64(self, 0));
}

TEST_EMULATION(mmio_pop)
{
	stage_u64(self, STACK_TOP - 8, value(1));
	stage_code(pop_mmio, CODE_GVA);
	commit(self);

	self->regs.rsp = STACK_TOP - 8;
	self->regs.rdi = MMIO_GVA;
	exec(self, CODE_GVA);
	expect_reg(self->regs.rsp, STACK_TOP);
	expect_output_u64(self, value(1));
}

/* The function's address comes from a device, the return address goes to memory. */
TEST_EMULATION(mmio_call)
{
	uint64_t function = page_gva(C1);

	memcpy(self->in, &function, sizeof(function));
	stage_code(call_mmio, CODE_GVA);
	stage_code(nothing, function);
	commit(self);

	self->regs.rdi = MMIO_GVA;
	exec(self, CODE_GVA);
	TEST_ASSERT((self->regs.rip & PAGE_MASK) == function, "Expected RIP in 0x%lx, is 0x%llx",
		    function, self->regs.rip);
	expect_u64(self, STACK_TOP - 8, CODE_GVA + 2);
}

/*
 * Memory that changes under KVM.
 */

TEST_PRIVATE_EMULATION(follows_conversion)
{
	self->page[D0][0] = 0x11;
	stage_code(outsb, CODE_GVA);
	commit(self);

	exec_outsb(self, page_gva(D0));
	vm_mem_set_shared(self->vm, page_gpa(D0), PAGE_SIZE);
	exec_outsb(self, page_gva(D0));
	vm_mem_set_private(self->vm, page_gpa(D0), PAGE_SIZE);
	exec_outsb(self, page_gva(D0));
	expect_output(self, "\x11\x5a\x11", 3);
}

TEST_PRIVATE_EMULATION(follows_punch)
{
	self->page[D0][0] = 0x11;
	self->page[D1][0] = 0x22;
	stage_code(outsb, CODE_GVA);
	commit(self);

	exec_outsb(self, page_gva(D0));
	guest_memfd_punch(self->memfd, page_gpa(D0) - GPA, PAGE_SIZE);
	exec_outsb(self, page_gva(D0));
	exec_outsb(self, page_gva(D1));
	expect_output(self, "\x11\x00\x22", 3);
}

/* KVM is the first to touch the page. */
TEST_PRIVATE_EMULATION(allocates_for_read)
{
	self->hole[D0] = true;
	stage_code(outsb, CODE_GVA);
	commit(self);

	exec_outsb(self, page_gva(D0) + 0x100);
	expect_output(self, "\x00", 1);
	vcpu_check(self->vcpu, page_gva(D0), 0, PAGE_SIZE);
}

TEST_PRIVATE_EMULATION(allocates_for_write)
{
	self->hole[D0] = true;
	stage_code(insl, CODE_GVA);
	commit(self);

	self->regs.rdi = page_gva(D0) + 0x100;
	exec(self, CODE_GVA);
	expect_u64(self, page_gva(D0) + 0x100, input_u64(self, 0));
	vcpu_check(self->vcpu, page_gva(D0), 0, 0x100);
	vcpu_check(self->vcpu, page_gva(D0) + 0x108, 0, PAGE_SIZE - 0x108);
}

/*
 * Instructions that a processor does by itself, forced through the emulator.
 */

#define PREFIX_SIZE	5

DEFINE_GUEST_CODE(load, FORCED_EMULATION "mov (%rdi), %rax; mov %rax, %r8");
DEFINE_GUEST_CODE(store, FORCED_EMULATION "mov %rcx, (%rdi)");
DEFINE_GUEST_CODE(add, FORCED_EMULATION "add %rcx, (%rdi)");
DEFINE_GUEST_CODE(push, FORCED_EMULATION "push %rcx");
DEFINE_GUEST_CODE(pop, FORCED_EMULATION "pop %rcx");
DEFINE_GUEST_CODE(xchg, FORCED_EMULATION "xchg %rcx, (%rdi)");
DEFINE_GUEST_CODE(lock_or, FORCED_EMULATION "lock orq %rcx, (%rdi)");
DEFINE_GUEST_CODE(lock_xadd, FORCED_EMULATION "lock xadd %rcx, (%rdi)");
DEFINE_GUEST_CODE(lock_cmpxchg,
		  FORCED_EMULATION "lock cmpxchg %rcx, (%rdi); setz %r8b; mov %rax, %r9");
DEFINE_GUEST_CODE(lock_cmpxchg8b,
		  FORCED_EMULATION "lock cmpxchg8b (%rdi); setz %r8b; mov %rax, %r9");
DEFINE_GUEST_CODE(sgdt, FORCED_EMULATION "sgdt (%rdi)");
DEFINE_GUEST_CODE(lgdt, FORCED_EMULATION "lgdt (%rdi)");
DEFINE_GUEST_CODE(load_fs, FORCED_EMULATION "mov %ecx, %fs");

TEST_EMULATION(load)
{
	int i;

	commit_with_operands(load);
	for (i = 0; i < ARRAY_SIZE(operands); i++) {
		exec_rdi_rcx(self, operands[i], 0);
		expect_reg(self->regs.r8, value(i));
	}
}

TEST_EMULATION(store)
{
	int i;

	commit_with_operands(store);
	for (i = 0; i < ARRAY_SIZE(operands); i++) {
		exec_rdi_rcx(self, operands[i], ~value(i));
		expect_u64(self, operands[i], ~value(i));
	}
}

TEST_EMULATION(read_modify_write)
{
	int i;

	commit_with_operands(add);
	for (i = 0; i < ARRAY_SIZE(operands); i++) {
		exec_rdi_rcx(self, operands[i], 0x0101010101010101ull);
		expect_u64(self, operands[i], value(i) + 0x0101010101010101ull);
	}
}

TEST_EMULATION(push_pop)
{
	stage_u64(self, STACK_TOP - 8, value(1));
	stage_code(pop, CODE_GVA);
	stage_code(push, page_gva(C1));
	commit(self);

	self->regs.rsp = STACK_TOP - 8;
	exec(self, CODE_GVA);
	expect_reg(self->regs.rcx, value(1));
	expect_reg(self->regs.rsp, STACK_TOP);

	self->regs.rcx = value(2);
	exec(self, page_gva(C1));
	expect_u64(self, STACK_TOP - 8, value(2));
}

TEST_EMULATION(xchg)
{
	int i;

	commit_with_operands(xchg);
	for (i = 0; i < ARRAY_SIZE(operands); i++) {
		exec_rdi_rcx(self, operands[i], ~value(i));
		expect_reg(self->regs.rcx, value(i));
		expect_u64(self, operands[i], ~value(i));
	}
}

TEST_EMULATION(lock_or)
{
	int i;

	commit_with_operands(lock_or);
	for (i = 0; i < ARRAY_SIZE(operands); i++) {
		exec_rdi_rcx(self, operands[i], 0x80);
		expect_u64(self, operands[i], value(i) | 0x80);
	}
}

TEST_EMULATION(lock_xadd)
{
	int i;

	commit_with_operands(lock_xadd);
	for (i = 0; i < ARRAY_SIZE(operands); i++) {
		exec_rdi_rcx(self, operands[i], 5);
		expect_reg(self->regs.rcx, value(i));
		expect_u64(self, operands[i], value(i) + 5);
	}
}

/* For CMPXCHG, and for CMPXCHG8B with halves in two registers. */
static void exec_cmpxchg(struct guest *self, uint64_t gva, uint64_t old, uint64_t new)
{
	self->regs.rax = old;
	self->regs.rdx = old >> 32;
	self->regs.rbx = new;
	self->regs.r8 = 2;
	exec_rdi_rcx(self, gva, new);
}

/* Once with the value that is there and once with that of the wrong half. */
static void check_cmpxchg(struct guest *self)
{
	const uint64_t wrong = OTHER_HALF * 0x0101010101010101ull;
	uint64_t gva, old, new;
	int i;

	for (i = 0; i < ARRAY_SIZE(operands); i++) {
		gva = operands[i];
		old = value(i);
		new = ~value(i);

		exec_cmpxchg(self, gva, wrong, new);
		TEST_ASSERT(self->regs.r8 == 0, "Compared 0x%lx at 0x%lx with 0x%lx as equal",
			    old, gva, wrong);
		expect_u64(self, gva, old);

		exec_cmpxchg(self, gva, old, new);
		TEST_ASSERT(self->regs.r8 == 1, "Expected 0x%lx at 0x%lx, compared with 0x%llx%s",
			    old, gva, self->regs.r9, whose(self->regs.r9));
	}
}

TEST_EMULATION(lock_cmpxchg)
{
	int i;

	commit_with_operands(lock_cmpxchg);
	check_cmpxchg(self);
	for (i = 0; i < ARRAY_SIZE(operands); i++)
		expect_u64(self, operands[i], ~value(i));
}

TEST_EMULATION(lock_cmpxchg8b)
{
	uint64_t new;
	int i;

	commit_with_operands(lock_cmpxchg8b);
	check_cmpxchg(self);
	for (i = 0; i < ARRAY_SIZE(operands); i++) {
		/* From EBX and ECX, which hold the same. */
		new = (uint32_t)~value(i);
		expect_u64(self, operands[i], new << 32 | new);
	}
}

/* Descriptor tables and their registers go another way than other operands. */
TEST_EMULATION(store_gdtr)
{
	int i;

	stage_code(sgdt, CODE_GVA);
	commit(self);

	for (i = 0; i < ARRAY_SIZE(operands); i++) {
		exec_rdi_rcx(self, operands[i] - 2, 0);
		expect_u64(self, operands[i], self->vm->gdt);
	}
}

TEST_EMULATION(load_gdtr)
{
	struct kvm_sregs sregs;
	int i;

	stage_code(lgdt, CODE_GVA);
	for (i = 0; i < ARRAY_SIZE(operands); i++)
		stage_u64(self, operands[i], value(i) >> 20);	/* a canonical address */
	commit(self);

	for (i = 0; i < ARRAY_SIZE(operands); i++) {
		exec_rdi_rcx(self, operands[i] - 2, 0);
		vcpu_sregs_get(self->vcpu, &sregs);
		expect_reg(sregs.gdt.base, value(i) >> 20);
	}
}

TEST_EMULATION(load_segment)
{
	uint64_t gva = self->vm->gdt + TEST_SELECTOR, was;
	struct kvm_sregs sregs;

	stage_code(load_fs, CODE_GVA);
	commit(self);

	was = vcpu_read_u64(self->vcpu, gva);
	self->regs.rcx = TEST_SELECTOR;
	exec(self, CODE_GVA);
	vcpu_sregs_get(self->vcpu, &sregs);
	expect_reg(sregs.fs.selector, TEST_SELECTOR);
	expect_reg(sregs.fs.base, TEST_BASE);

	/* KVM marks the descriptor as accessed, as a processor does. */
	expect_u64(self, gva, was | 1ull << 40);
}

/* The walk for a forced access sets both bits, and in the guest's table. */
TEST_EMULATION(forced_access_sets_dirty)
{
	stage_code(store, CODE_GVA);
	commit(self);
	expect_accessed_dirty(self, D1, false, false);

	self->regs.rdi = page_gva(D1);
	exec(self, CODE_GVA);
	expect_accessed_dirty(self, D1, true, true);
	expect_accessed_dirty(self, D0, false, false);
}

/*
 * What KVM wants to read or write is private and out of reach: the VMM is told, and
 * when that has changed the instruction is executed again.  Either the page is not
 * there, or KVM must not access it, as for types of VMs whose memory the host cannot
 * read.  KVM could not even fetch an instruction of a guest that is all private then,
 * so the rest of that one is shared.
 */

FIXTURE(fault) {
	struct guest guest;
};

FIXTURE_VARIANT(fault) {
	bool inaccessible;
};

FIXTURE_VARIANT_ADD(fault, missing) {
	.inaccessible = false,
};

FIXTURE_VARIANT_ADD(fault, inaccessible) {
	.inaccessible = true,
};

FIXTURE_SETUP(fault)
{
	if (variant->inaccessible && !set_private_mem_inaccessible(false))
		SETUP_SKIP(NO_SWITCH);

	guest_create(&self->guest, KVM_X86_SW_PROTECTED_VM, !variant->inaccessible);
	self->guest.inaccessible = variant->inaccessible;
}

FIXTURE_TEARDOWN(fault)
{
	guest_free(&self->guest);
}

#define TEST_FAULT(name)	TEST_F_MEMBER(fault, name, guest, EMULATION_TIMEOUT)

/* A private page with a memslot of its own, and its shared half. */
struct target {
	uint64_t gva;
	uint64_t gpa;
	uint64_t page[PAGE_SIZE / 8];	/* begins with what is not zero */
	uint8_t *shared;
};

#define TARGET_SLOT	(SLOT + 1)

/* Nothing of either half may be in what the VMM sees of the vCPU. */
static void expect_untold(struct guest *self, struct target *target)
{
	static const uint32_t other = OTHER_HALF * 0x01010101;
	void *run = self->vcpu->run;
	size_t size = (KVM_PIO_PAGE_OFFSET + 1) * PAGE_SIZE;

	TEST_ASSERT(!memmem(run, size, target->page, 4),
		    "Expected nothing of the private page in kvm_run");
	TEST_ASSERT(!memmem(run, size, &other, sizeof(other)),
		    "Expected nothing of the wrong half in kvm_run");
}

static void expect_fault(struct guest *self, struct target *target)
{
	bool prefix = (self->start & PAGE_MASK) != target->gva;
	struct kvm_regs before = self->regs, after;
	struct kvm_sregs was, is;
	int ret;

	vcpu_sregs_get(self->vcpu, &was);
	exec_until_fault(self, self->start, target->gpa);

	/* The prefix or CLD is behind it, and nothing else has happened. */
	vcpu_regs_get(self->vcpu, &after);
	TEST_ASSERT(after.rip >= self->start + prefix && after.rip <= self->start + 5,
		    "Expected RIP not to go beyond the first instruction, is 0x%llx", after.rip);
	before.rip = after.rip;
	ret = memcmp(&before, &after, sizeof(before));
	TEST_ASSERT(!ret, "Expected registers as before the fault, RSP is 0x%llx, RCX is 0x%llx",
		    after.rsp, after.rcx);
	vcpu_sregs_get(self->vcpu, &is);
	TEST_ASSERT(is.gdt.base == was.gdt.base && is.fs.selector == was.fs.selector,
		    "Expected GDTR 0x%llx and FS 0x%x as before the fault, got 0x%llx and 0x%x",
		    was.gdt.base, was.fs.selector, is.gdt.base, is.fs.selector);
	TEST_ASSERT(!self->out_len, "The guest put out %d bytes of what is not there",
		    self->out_len);
	expect_untold(self, target);
}

static void target_create(struct guest *self, struct target *target, const void *data, int len)
{
	memcpy(target->page, data, len);
	target->shared = shared_mem_alloc(PAGE_SIZE);
	memset(target->shared, OTHER_HALF, PAGE_SIZE);

	commit(self);
	vm_mem_set_private(self->vm, target->gpa, PAGE_SIZE);
}

static void target_bind(struct guest *self, struct target *target)
{
	int fd = vm_create_guest_memfd(self->vm, PAGE_SIZE, 0);

	guest_memfd_write(fd, target->page, PAGE_SIZE, 0);
	vm_set_user_memory_region2(self->vm, TARGET_SLOT, KVM_MEM_GUEST_MEMFD, target->gpa,
				   PAGE_SIZE, target->shared, fd, 0);
}

/* KVM must not access the page, which the guest sees as it was. */
static void check_inaccessible(struct guest *self, struct target *target,
			       void (*in_vain)(struct guest *self, struct target *target))
{
	struct kvm_regs regs;
	int i;

	set_private_mem_inaccessible(true);
	in_vain(self, target);

	vcpu_regs_get(self->vcpu, &regs);
	for (i = 0; target->page[i]; i++)
		expect_u64(self, target->gva + i * 8, target->page[i]);
	vcpu_check(self->vcpu, target->gva + i * 8, 0, PAGE_SIZE - i * 8);
	vcpu_regs_set(self->vcpu, &regs);
	set_private_mem_inaccessible(false);
}

static void expect_shared_unchanged(struct target *target)
{
	int i;

	for (i = 0; i < PAGE_SIZE; i++)
		TEST_ASSERT(target->shared[i] == OTHER_HALF, "KVM changed the shared half");
}

/* The code at start needs the page at MMIO_GPA, which begins with data. */
static void check_fault_at(struct guest *self, uint64_t start, const void *data, int len)
{
	struct target target = {
		.gva = MMIO_GVA,
		.gpa = MMIO_GPA,
	};

	self->start = start;
	target_create(self, &target, data, len);
	if (!self->inaccessible) {
		/* Neither a memslot nor a file, and so no MMIO either. */
		expect_fault(self, &target);

		/* A memslot without a file: the shared half is not what is wanted. */
		vm_set_user_memory_region(self->vm, TARGET_SLOT, 0, MMIO_GPA, PAGE_SIZE,
					  target.shared);
		expect_fault(self, &target);
		vm_set_user_memory_region(self->vm, TARGET_SLOT, 0, MMIO_GPA, 0,
					  target.shared);
	}

	target_bind(self, &target);
	if (self->inaccessible)
		check_inaccessible(self, &target, expect_fault);
	run(self, 0);
	expect_shared_unchanged(&target);
}

static void check_fault(struct guest *self)
{
	const uint64_t val = value(1);

	check_fault_at(self, CODE_GVA, &val, sizeof(val));
}

TEST_FAULT(load)
{
	stage_code(load, CODE_GVA);
	self->regs.rdi = MMIO_GVA;
	check_fault(self);
	expect_reg(self->regs.r8, value(1));
}

TEST_FAULT(store)
{
	stage_code(store, CODE_GVA);
	self->regs.rdi = MMIO_GVA;
	self->regs.rcx = value(2);
	check_fault(self);
	expect_u64(self, MMIO_GVA, value(2));
}

TEST_FAULT(read_modify_write)
{
	stage_code(add, CODE_GVA);
	self->regs.rdi = MMIO_GVA;
	self->regs.rcx = 5;
	check_fault(self);
	expect_u64(self, MMIO_GVA, value(1) + 5);
}

/* Begins in D0 and ends in what is out of reach: nothing of it may happen twice. */
static void check_fault_across(struct guest *self)
{
	const uint64_t val = value(1);

	virt_pg_map(self->vm, MMIO_GVA - PAGE_SIZE, page_gpa(D0));
	stage(self->page, page_gva(D1) - 4, &val, 4);
	self->regs.rdi = MMIO_GVA - 4;
	self->regs.rcx = 5;
	check_fault_at(self, CODE_GVA, (uint8_t *)&val + 4, 4);
	expect_u64(self, MMIO_GVA - 4, val + 5);
}

TEST_FAULT(read_modify_write_across_pages)
{
	stage_code(add, CODE_GVA);
	check_fault_across(self);
}

TEST_FAULT(lock_xadd_across_pages)
{
	stage_code(lock_xadd, CODE_GVA);
	check_fault_across(self);
	expect_reg(self->regs.rcx, value(1));
}

TEST_FAULT(xchg)
{
	stage_code(xchg, CODE_GVA);
	self->regs.rdi = MMIO_GVA;
	self->regs.rcx = value(2);
	check_fault(self);
	expect_reg(self->regs.rcx, value(1));
	expect_u64(self, MMIO_GVA, value(2));
}

TEST_FAULT(lock_or)
{
	stage_code(lock_or, CODE_GVA);
	self->regs.rdi = MMIO_GVA;
	self->regs.rcx = 0x80;
	check_fault(self);
	expect_u64(self, MMIO_GVA, value(1) | 0x80);
}

TEST_FAULT(lock_xadd)
{
	stage_code(lock_xadd, CODE_GVA);
	self->regs.rdi = MMIO_GVA;
	self->regs.rcx = 5;
	check_fault(self);
	expect_reg(self->regs.rcx, value(1));
	expect_u64(self, MMIO_GVA, value(1) + 5);
}

static void set_cmpxchg_regs(struct guest *self)
{
	self->regs.rdi = MMIO_GVA;
	self->regs.rax = value(1);
	self->regs.rdx = value(1) >> 32;
	self->regs.rbx = value(2);
	self->regs.rcx = value(2);
	self->regs.r8 = 2;
}

/* It neither succeeds nor fails. */
TEST_FAULT(lock_cmpxchg)
{
	stage_code(lock_cmpxchg, CODE_GVA);
	set_cmpxchg_regs(self);
	check_fault(self);
	expect_reg(self->regs.r8, 1);
	expect_u64(self, MMIO_GVA, value(2));
}

TEST_FAULT(lock_cmpxchg8b)
{
	uint64_t new = (uint32_t)value(2);

	stage_code(lock_cmpxchg8b, CODE_GVA);
	set_cmpxchg_regs(self);
	check_fault(self);
	expect_reg(self->regs.r8, 1);
	expect_u64(self, MMIO_GVA, new << 32 | new);
}

TEST_FAULT(pop)
{
	stage_code(pop, CODE_GVA);
	self->regs.rsp = MMIO_GVA;
	check_fault(self);
	expect_reg(self->regs.rsp, MMIO_GVA + 8);
	expect_reg(self->regs.rcx, value(1));
}

TEST_FAULT(push)
{
	stage_code(push, CODE_GVA);
	self->regs.rsp = MMIO_GVA + 8;
	self->regs.rcx = value(2);
	check_fault(self);
	expect_reg(self->regs.rsp, MMIO_GVA);
	expect_u64(self, MMIO_GVA, value(2));
}

TEST_FAULT(string_out)
{
	stage_code(outsl, CODE_GVA);
	self->regs.rsi = MMIO_GVA;
	check_fault(self);
	expect_output_u64(self, value(1));
}

/* The device is asked again by each try, and the last answer counts. */
TEST_FAULT(string_in)
{
	stage_code(insl, CODE_GVA);
	self->regs.rdi = MMIO_GVA;
	check_fault(self);
	TEST_ASSERT(self->in_len >= 8, "Expected input of 8 bytes, the guest took %d",
		    self->in_len);
	expect_u64(self, MMIO_GVA, input_u64(self, self->in_len - 8));
}

TEST_FAULT(store_gdtr)
{
	stage_code(sgdt, CODE_GVA);
	self->regs.rdi = MMIO_GVA;
	check_fault(self);
	expect_u64(self, MMIO_GVA + 2, self->vm->gdt);
}

TEST_FAULT(load_gdtr)
{
	const uint64_t base = value(1) >> 20;	/* a canonical address */
	uint64_t gdtr[2] = { 0xffff | base << 16, base >> 48 };
	struct kvm_sregs sregs;

	stage_code(lgdt, CODE_GVA);
	self->regs.rdi = MMIO_GVA;
	check_fault_at(self, CODE_GVA, gdtr, sizeof(gdtr));
	vcpu_sregs_get(self->vcpu, &sregs);
	expect_reg(sregs.gdt.base, base);
}

/* The descriptor is the first word of the page. */
TEST_FAULT(load_segment)
{
	struct kvm_sregs sregs;
	uint64_t desc;

	memcpy(&desc, addr_gva2hva(self->vm, self->vm->gdt) + TEST_SELECTOR, sizeof(desc));
	vcpu_sregs_get(self->vcpu, &sregs);
	sregs.gdt.base = MMIO_GVA - TEST_SELECTOR;
	vcpu_sregs_set(self->vcpu, &sregs);

	stage_code(load_fs, CODE_GVA);
	self->regs.rcx = TEST_SELECTOR;
	check_fault_at(self, CODE_GVA, &desc, sizeof(desc));
	vcpu_sregs_get(self->vcpu, &sregs);
	expect_reg(sregs.fs.base, TEST_BASE);
	expect_u64(self, MMIO_GVA, desc | 1ull << 40);
}

/* The prefix is the end of C1, the instruction the beginning of what is out of reach. */
TEST_FAULT(fetch)
{
	virt_pg_map(self->vm, MMIO_GVA - PAGE_SIZE, page_gpa(C1));
	stage(self->page, page_gva(C2) - PREFIX_SIZE, code_load, PREFIX_SIZE);
	stage_u64(self, page_gva(D1), value(1));
	self->regs.rdi = page_gva(D1);
	check_fault_at(self, MMIO_GVA - PREFIX_SIZE, code_load + PREFIX_SIZE,
		       code_load_end - code_load - PREFIX_SIZE);
	expect_reg(self->regs.r8, value(1));
}

/*
 * The same for the guest's page tables: that one of them is not there is not the
 * guest's fault, and no page fault.
 */

#define WALK_PTE	(page_gpa(D0) | PTE_PRESENT_MASK | PTE_WRITABLE_MASK)

/* Moves the page table of WALK_GVA to MMIO_GPA, to translate WALK_GVA to D0. */
static void check_walk_fault(struct guest *self, uint64_t start)
{
	const uint64_t pte = WALK_PTE;

	virt_pg_map(self->vm, WALK_GVA, page_gpa(D0));
	*vm_page_table_entry(self->vm, WALK_GVA, PG_LEVEL_2M) = MMIO_GPA | PTE_PRESENT_MASK |
						     PTE_WRITABLE_MASK;
	check_fault_at(self, start, &pte, sizeof(pte));
}

TEST_FAULT(walk_for_load)
{
	stage_u64(self, page_gva(D0), value(1));
	stage_code(load, CODE_GVA);
	self->regs.rdi = WALK_GVA;
	check_walk_fault(self, CODE_GVA);
	expect_reg(self->regs.r8, value(1));
	expect_u64(self, MMIO_GVA, WALK_PTE | PTE_ACCESSED_MASK);
}

TEST_FAULT(walk_for_store)
{
	stage_code(store, CODE_GVA);
	self->regs.rdi = WALK_GVA;
	self->regs.rcx = value(2);
	check_walk_fault(self, CODE_GVA);
	expect_u64(self, page_gva(D0), value(2));
	expect_u64(self, MMIO_GVA, WALK_PTE | PTE_ACCESSED_MASK | PTE_DIRTY_MASK);
}

TEST_FAULT(walk_for_read_modify_write)
{
	stage_u64(self, page_gva(D0), value(1));
	stage_code(add, CODE_GVA);
	self->regs.rdi = WALK_GVA;
	self->regs.rcx = 5;
	check_walk_fault(self, CODE_GVA);
	expect_u64(self, page_gva(D0), value(1) + 5);
}

TEST_FAULT(walk_for_lock_xadd)
{
	stage_u64(self, page_gva(D0), value(1));
	stage_code(lock_xadd, CODE_GVA);
	self->regs.rdi = WALK_GVA;
	self->regs.rcx = 5;
	check_walk_fault(self, CODE_GVA);
	expect_reg(self->regs.rcx, value(1));
	expect_u64(self, page_gva(D0), value(1) + 5);
}

TEST_FAULT(walk_for_string_out)
{
	stage_u64(self, page_gva(D0), value(1));
	stage_code(outsl, CODE_GVA);
	self->regs.rsi = WALK_GVA;
	check_walk_fault(self, CODE_GVA);
	expect_output_u64(self, value(1));
}

TEST_FAULT(walk_for_string_in)
{
	stage_code(insl, CODE_GVA);
	self->regs.rdi = WALK_GVA;
	check_walk_fault(self, CODE_GVA);
	expect_u64(self, page_gva(D0), input_u64(self, self->in_len - 8));
}

TEST_FAULT(walk_for_load_gdtr)
{
	struct kvm_sregs sregs;

	stage_u64(self, page_gva(D0) + 2, value(1) >> 20);	/* a canonical address */
	stage_code(lgdt, CODE_GVA);
	self->regs.rdi = WALK_GVA;
	check_walk_fault(self, CODE_GVA);
	vcpu_sregs_get(self->vcpu, &sregs);
	expect_reg(sregs.gdt.base, value(1) >> 20);
}

TEST_FAULT(walk_for_store_gdtr)
{
	stage_code(sgdt, CODE_GVA);
	self->regs.rdi = WALK_GVA;
	check_walk_fault(self, CODE_GVA);
	expect_u64(self, page_gva(D0) + 2, self->vm->gdt);
}

/* The prefix is the end of C1, and the instruction the beginning of D0. */
TEST_FAULT(walk_for_fetch)
{
	virt_pg_map(self->vm, WALK_GVA - PAGE_SIZE, page_gpa(C1));
	stage(self->page, page_gva(C2) - PREFIX_SIZE, code_load, PREFIX_SIZE);
	stage(self->page, page_gva(D0), code_load + PREFIX_SIZE,
	      code_load_end - code_load - PREFIX_SIZE);
	stage_u64(self, page_gva(D1), value(1));
	self->regs.rdi = page_gva(D1);
	check_walk_fault(self, WALK_GVA - PREFIX_SIZE);
	expect_reg(self->regs.r8, value(1));
}

static void l2_code(void)
{
	asm volatile("vmmcall");
}

static void l1_code(struct svm_test_data *svm)
{
	struct vmcb *vmcb = svm->vmcb;
	unsigned long stack[64];

	generic_svm_setup(svm, l2_code, &stack[ARRAY_SIZE(stack)]);
	vmcb->control.nested_ctl = SVM_NESTED_CTL_NP_ENABLE;
	vmcb->control.nested_cr3 = GPA;
	run_guest(vmcb, svm->vmcb_gpa);
	guest_call(vmcb->control.exit_code, vmcb->control.exit_info_2, 0, 0);
}

/* An instruction that KVM does not emulate writes to the nested page table. */
static void l1_write(uint64_t gva)
{
	asm volatile("fld1; fsts (%0)" : : "r" (gva) : "memory");
}

#define FLOAT_ONE	0x3f800000

#define NESTED_TABLES	3
#define NESTED_SIZE	(NESTED_TABLES * PAGE_SIZE)

/* A hypervisor in shared memory, with its nested page tables in private memory. */
struct nested {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	uint64_t stack;
	uint8_t *shared;
	int fd;
	uint64_t table[NESTED_TABLES][PAGE_SIZE / 8];
};

static void nested_create(struct nested *self)
{
	const uint64_t flags = PTE_PRESENT_MASK | PTE_WRITABLE_MASK | PTE_USER_MASK;
	struct kvm_regs regs;
	vm_vaddr_t svm;
	int i;

	set_private_mem_inaccessible(false);

	self->vm = private_mem_vm_create(1, 0, l1_code, &self->vcpu);
	vcpu_alloc_svm(self->vm, &svm);
	vcpu_args_set(self->vcpu, 1, svm);
	vcpu_regs_get(self->vcpu, &regs);
	self->stack = regs.rsp;
	virt_map(self->vm, GPA, GPA, NESTED_SIZE / PAGE_SIZE);

	/* The first GiB, one to one. */
	self->table[0][0] = (GPA + PAGE_SIZE) | flags;
	self->table[1][0] = (GPA + 2 * PAGE_SIZE) | flags;
	for (i = 0; i < ARRAY_SIZE(self->table[2]); i++)
		self->table[2][i] = (uint64_t)i << PG_LEVEL_SHIFT(PG_LEVEL_2M) | flags |
				    PTE_LARGE_MASK;
	self->fd = vm_create_guest_memfd(self->vm, NESTED_SIZE, 0);
	guest_memfd_write(self->fd, self->table, NESTED_SIZE, 0);

	self->shared = shared_mem_alloc(NESTED_SIZE);
	memset(self->shared, OTHER_HALF, NESTED_SIZE);
	vm_mem_set_private(self->vm, GPA, NESTED_SIZE);
}

static void nested_bind(struct nested *self)
{
	vm_set_user_memory_region2(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, NESTED_SIZE,
				   self->shared, self->fd, 0);
}

static void nested_expect_l2_ran(struct nested *self)
{
	struct guest_call call = {};

	vcpu_run(self->vcpu);
	TEST_ASSERT(vcpu_get_guest_call(self->vcpu, &call) && call.nr == SVM_EXIT_VMMCALL,
		    "Expected exit VMMCALL of L2, got 0x%lx, address 0x%lx", call.nr,
		    call.args[0]);
	vcpu_run_complete_io(self->vcpu);
}

/* The start of the first table, and an entry in it that is not used. */
static void nested_expect_table(struct nested *self, uint64_t first, uint64_t unused)
{
	uint64_t seen[2] = {
		vcpu_read_u64(self->vcpu, GPA),
		vcpu_read_u64(self->vcpu, GPA + PAGE_SIZE - 8),
	};

	TEST_ASSERT(seen[0] == first && seen[1] == unused,
		    "Expected 0x%lx and 0x%lx in the nested page table, found 0x%lx and 0x%lx",
		    first, unused, seen[0], seen[1]);
}

static void nested_free(struct nested *self)
{
	int i;

	for (i = 0; i < NESTED_SIZE; i++)
		TEST_ASSERT(self->shared[i] == OTHER_HALF, "KVM changed the shared half");
	close(self->fd);
	kvm_vm_free(self->vm);
	munmap(self->shared, NESTED_SIZE);
}

static void nested_expect_fault_twice(struct nested *self)
{
	int i, ret;

	for (i = 0; i < 2; i++) {
		ret = _vcpu_run(self->vcpu);
		vcpu_assert_private_fault(self->vcpu, ret, errno, GPA);
	}
}

FIXTURE(nested_fault) {
	struct nested nested;
};

FIXTURE_SETUP(nested_fault)
{
	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SETUP_SKIP("KVM has no nested SVM");
	nested_create(&self->nested);
}

FIXTURE_TEARDOWN(nested_fault)
{
	nested_free(&self->nested);
}

#define TEST_NESTED_FAULT(name)	TEST_F_MEMBER(nested_fault, name, nested, EMULATION_TIMEOUT)

/* Nested page tables are walked by KVM alone. */
TEST_NESTED_FAULT(walk_missing)
{
	vm_set_user_memory_region(self->vm, SLOT, 0, GPA, NESTED_SIZE, self->shared);
	nested_expect_fault_twice(self);
	vm_set_user_memory_region(self->vm, SLOT, 0, GPA, 0, self->shared);
	nested_bind(self);
	nested_expect_l2_ran(self);
}

TEST_F_TIMEOUT(nested_fault, walk_inaccessible, EMULATION_TIMEOUT)
{
	struct nested *nested = &self->nested;

	if (!set_private_mem_inaccessible(true))
		SKIP(return, NO_SWITCH);
	nested_bind(nested);
	nested_expect_fault_twice(nested);
	set_private_mem_inaccessible(false);
	nested_expect_l2_ran(nested);
	nested_expect_table(nested, nested->table[0][0] | PTE_ACCESSED_MASK, 0);
}

static void expect_emulation_failure(struct kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	int ret = _vcpu_run(vcpu);

	TEST_ASSERT(!ret && run->exit_reason == KVM_EXIT_INTERNAL_ERROR &&
		    run->emulation_failure.suberror == KVM_INTERNAL_ERROR_EMULATION,
		    "Expected the emulation to fail, rc: %i errno: %i exit: %u (%s)", ret, errno,
		    run->exit_reason, exit_reason_str(run->exit_reason));
}

/* An instruction that KVM can neither emulate nor give back to the guest. */
TEST_F_TIMEOUT(nested_fault, write_inaccessible, EMULATION_TIMEOUT)
{
	struct nested *nested = &self->nested;
	struct kvm_vcpu *vcpu = nested->vcpu;
	struct kvm_vcpu_events events;
	struct kvm_regs regs;
	uint64_t first;

	nested_bind(nested);
	nested_expect_l2_ran(nested);
	if (!set_private_mem_inaccessible(true))
		SKIP(return, NO_SWITCH);

	first = nested->table[0][0] | PTE_ACCESSED_MASK;
	vcpu_call_set(vcpu, nested->stack, l1_write, GPA + PAGE_SIZE - 8, 0, 0);
	expect_emulation_failure(vcpu);

	/* Not the exception that the guest would get. */
	vcpu_events_get(vcpu, &events);
	memset(&events.exception, 0, sizeof(events.exception));
	vcpu_events_set(vcpu, &events);
	vcpu_regs_get(vcpu, &regs);
	nested_expect_table(nested, first, 0);

	set_private_mem_inaccessible(false);
	vcpu_regs_set(vcpu, &regs);
	TEST_ASSERT(!vcpu_access_run(vcpu) && vcpu_is_guest_call(vcpu),
		    "Expected the guest to go on, exit: %u (%s)", vcpu->run->exit_reason,
		    exit_reason_str(vcpu->run->exit_reason));
	nested_expect_table(nested, first, FLOAT_ONE);
}

/*
 * What ends another way where KVM must not access a page.
 */

FIXTURE(inaccessible) {
	struct guest guest;
};

FIXTURE_SETUP(inaccessible)
{
	if (!set_private_mem_inaccessible(false))
		SETUP_SKIP(NO_SWITCH);

	guest_create(&self->guest, KVM_X86_SW_PROTECTED_VM, false);
	self->guest.inaccessible = true;
}

FIXTURE_TEARDOWN(inaccessible)
{
	guest_free(&self->guest);
}

#define TEST_INACCESSIBLE(name)	TEST_F_MEMBER(inaccessible, name, guest, EMULATION_TIMEOUT)

/* All of the code is out of reach, and KVM writes nothing into it. */
TEST_INACCESSIBLE(patch_hypercall)
{
	const uint8_t *code = is_amd_cpu() ? code_skip_vmcall : code_skip_vmmcall;
	const uint8_t *end = is_amd_cpu() ? code_skip_vmcall_end : code_skip_vmmcall_end;

	self->regs.rax = 0x7fff;
	check_fault_at(self, MMIO_GVA + 5, code, end - code);
	expect_reg(self->regs.rax, -KVM_ENOSYS);
	expect_reg(self->regs.r8, 3);
}

static void expect_failed_skip(struct guest *self, struct target *target)
{
	self->regs.rip = self->start;
	vcpu_regs_set(self->vcpu, &self->regs);
	expect_emulation_failure(self->vcpu);
	expect_untold(self, target);
}

/* It has been executed by then, and cannot start again. */
TEST_F_TIMEOUT(inaccessible, skip, EMULATION_TIMEOUT)
{
	struct guest *guest = &self->guest;
	struct target target = {
		.gva = MMIO_GVA,
		.gpa = MMIO_GPA,
	};

	if (!is_amd_cpu() || kvm_cpu_has(X86_FEATURE_NRIPS))
		SKIP(return, "the processor says where the next instruction is");

	guest->start = MMIO_GVA;
	target_create(guest, &target, code_skip_cpuid,
		      code_skip_cpuid_end - code_skip_cpuid);
	target_bind(guest, &target);
	check_inaccessible(guest, &target, expect_failed_skip);
	exec(guest, guest->start);
	expect_reg(guest->regs.r8, 3);
	expect_shared_unchanged(&target);
}

/* SMBASE has 32 bits, and so has CR3 with PAE paging. */
#define LOW_GPA		0xc0000000ull
#define LOW_GVA		(MMIO_GVA + PAGE_SIZE)

/* The state of the vCPU is in the last page of these, which the target takes. */
#define SMRAM_SLOT	(TARGET_SLOT + 1)
#define SMRAM_SIZE	0x10000
#define SMBASE		(LOW_GPA + PAGE_SIZE - SMRAM_SIZE)
#define SMM_HANDLER	0x8000

TEST_INACCESSIBLE(rsm)
{
	static const uint8_t handler[] = {
		0xba, GUEST_CALL_PORT & 0xff, GUEST_CALL_PORT >> 8,	/* mov $port, %dx */
		0xee,							/* outb %al, %dx */
		0x0f, 0xaa,						/* rsm */
	};
	struct target target = {
		.gva = LOW_GVA,
		.gpa = LOW_GPA,
	};
	int i, ret;

	TEST_ASSERT(kvm_has_cap(KVM_CAP_X86_SMM), "Expected SMM");
	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS, SMBASE, SMRAM_SLOT,
				    SMRAM_SIZE / PAGE_SIZE - 1, 0);
	memcpy(addr_gpa2hva(self->vm, SMBASE + SMM_HANDLER), handler, sizeof(handler));
	stage_code(nothing, CODE_GVA);
	target_create(self, &target, "", 0);
	target_bind(self, &target);
	vcpu_set_msr(self->vcpu, MSR_IA32_SMBASE, SMBASE);

	vcpu_ioctl(self->vcpu, KVM_SMI, NULL);
	exec(self, CODE_GVA);
	expect_reg(self->regs.rip, SMM_HANDLER + 4);

	set_private_mem_inaccessible(true);
	for (i = 0; i < 2; i++) {
		ret = _vcpu_run(self->vcpu);
		vcpu_assert_private_fault(self->vcpu, ret, errno, LOW_GPA);
	}
	set_private_mem_inaccessible(false);

	run(self, 0);
	TEST_ASSERT((self->regs.rip & PAGE_MASK) == CODE_GVA,
		    "Expected RSM to go back to 0x%llx, RIP is 0x%llx", CODE_GVA,
		    self->regs.rip);
	expect_shared_unchanged(&target);
}

DEFINE_GUEST_CODE(load_eax, FORCED_EMULATION "mov (%rdi), %eax");

/* A page fault that finds no IDT. */
static void expect_no_pdptrs(struct guest *self, struct target *target)
{
	struct kvm_run *run = self->vcpu->run;
	int ret;

	vcpu_regs_set(self->vcpu, &self->regs);
	ret = _vcpu_run(self->vcpu);
	TEST_ASSERT(!ret && run->exit_reason == KVM_EXIT_SHUTDOWN,
		    "Expected exit SHUTDOWN, rc: %i errno: %i exit: %u (%s)", ret, errno,
		    run->exit_reason, exit_reason_str(run->exit_reason));
	expect_untold(self, target);

	vcpu_sregs_set(self->vcpu, &self->sregs);
}

/* Those that KVM has read before are no substitute, the guest may have others now. */
TEST_INACCESSIBLE(pdptrs)
{
	struct target target = {
		.gva = LOW_GVA,
		.gpa = LOW_GPA,
	};
	struct kvm_sregs pae;
	struct kvm_regs regs;
	uint64_t pdpte, *pd;
	int i;

	if (!is_amd_cpu())
		CASE_SKIP("VT-x has the PDPTRs in the VMCS");

	self->start = vm_alloc_page_table(self->vm);
	memcpy(addr_gpa2hva(self->vm, self->start), code_load_eax,
	       code_load_eax_end - code_load_eax);

	/* The first GiB, one to one. */
	pdpte = vm_alloc_page_table(self->vm) | PTE_PRESENT_MASK;
	pd = addr_gpa2hva(self->vm, pdpte & PAGE_MASK);
	for (i = 0; i < PAGE_SIZE / 8; i++)
		pd[i] = (uint64_t)i << PG_LEVEL_SHIFT(PG_LEVEL_2M) | PTE_PRESENT_MASK |
			PTE_WRITABLE_MASK | PTE_LARGE_MASK;
	virt_pg_map(self->vm, LOW_GVA, LOW_GPA);
	target_create(self, &target, &pdpte, sizeof(pdpte));
	target_bind(self, &target);

	vcpu_sregs_get(self->vcpu, &self->sregs);
	pae = self->sregs;
	pae.cr3 = LOW_GPA;
	pae.efer &= ~(EFER_LME | EFER_LMA);
	pae.cs.l = 0;
	pae.cs.db = 1;

	self->regs.rip = self->start;
	self->regs.rdi = self->start;
	regs = self->regs;
	vcpu_sregs_set(self->vcpu, &pae);
	exec(self, self->start);

	/* QEMU's processor marks the entry as accessed, where that bit is reserved. */
	vcpu_sregs_set(self->vcpu, &self->sregs);
	target.page[0] = vcpu_read_u64(self->vcpu, LOW_GVA);

	self->regs = regs;
	vcpu_sregs_set(self->vcpu, &pae);
	check_inaccessible(self, &target, expect_no_pdptrs);

	vcpu_write_u64(self->vcpu, LOW_GVA, pdpte);
	self->regs = regs;
	vcpu_sregs_set(self->vcpu, &pae);
	exec(self, self->start);
	expect_shared_unchanged(&target);
}

/*
 * What KVM reads of the guest is not for the VMM, which could have it read
 * anything: it chooses the registers.
 */

static void expect_no_translation(struct guest *self, uint64_t gva)
{
	struct kvm_translation tr = { .linear_address = gva };
	int ret = __vcpu_ioctl(self->vcpu, KVM_TRANSLATE, &tr);

	TEST_ASSERT(ret == -1 && errno == EINVAL,
		    "Expected EINVAL from KVM_TRANSLATE, rc: %i errno: %i", ret, errno);
	TEST_ASSERT(!tr.physical_address, "KVM_TRANSLATE failed, and told of 0x%llx",
		    tr.physical_address);
}

TEST_EMULATION(translate)
{
	struct kvm_translation tr = { .linear_address = page_gva(D0) + 0x123 };
	int ret;

	commit(self);
	if (self->private) {
		expect_no_translation(self, tr.linear_address);
	} else {
		ret = __vcpu_ioctl(self->vcpu, KVM_TRANSLATE, &tr);
		TEST_ASSERT(!ret && tr.valid && tr.physical_address == page_gpa(D0) + 0x123,
			    "Expected 0x%lx from KVM_TRANSLATE, rc: %i errno: %i valid: %u address: 0x%llx",
			    page_gpa(D0) + 0x123, ret, errno, tr.valid, tr.physical_address);
	}
}

/* Even of an address whose page table KVM must not read. */
TEST_F_TIMEOUT(private_emulation, translate_inaccessible, EMULATION_TIMEOUT)
{
	commit(&self->guest);
	if (!set_private_mem_inaccessible(true))
		SKIP(return, NO_SWITCH);
	expect_no_translation(&self->guest, page_gva(D0));
	set_private_mem_inaccessible(false);
}

/* With PAE paging, CR3 makes KVM read four words from wherever it points. */
TEST_EMULATION(pdptrs)
{
	struct kvm_sregs2 sregs2 = {};
	struct kvm_sregs before, pae;
	uint64_t *pdpt;
	int i;

	vcpu_sregs_get(self->vcpu, &before);
	pae = before;
	pae.cr3 = vm_alloc_page_table(self->vm);
	pae.efer &= ~(EFER_LME | EFER_LMA);
	pae.cs.l = 0;
	pae.cs.db = 1;
	pdpt = addr_gpa2hva(self->vm, pae.cr3);
	for (i = 0; i < 4; i++)
		pdpt[i] = page_gpa(i) | PTE_PRESENT_MASK;
	commit(self);

	vcpu_sregs_set(self->vcpu, &pae);
	vcpu_ioctl(self->vcpu, KVM_GET_SREGS2, &sregs2);
	TEST_ASSERT(sregs2.cr3 == pae.cr3, "Expected CR3 0x%llx, got 0x%llx", pae.cr3, sregs2.cr3);
	TEST_ASSERT(sregs2.flags == (self->private ? 0 : KVM_SREGS2_FLAGS_PDPTRS_VALID),
		    "Expected %s PDPTRs from KVM_GET_SREGS2, got flags 0x%llx",
		    self->private ? "no" : "valid", sregs2.flags);
	for (i = 0; i < 4; i++)
		TEST_ASSERT(sregs2.pdptrs[i] == (self->private ? 0 : pdpt[i]),
			    "Expected PDPTR %d to be 0x%lx, got 0x%llx", i,
			    self->private ? 0 : pdpt[i], sregs2.pdptrs[i]);

	vcpu_sregs_set(self->vcpu, &before);
}

/* The emulator has no x87 instruction. */
DEFINE_GUEST_CODE(flds, "flds 0x12345678(%rdi)");

TEST_EMULATION(failed_emulation)
{
	struct kvm_run *run = self->vcpu->run;
	bool told;

	stage_code(flds, CODE_GVA);
	commit(self);

	self->regs.rip = CODE_GVA;
	self->regs.rdi = MMIO_GVA - 0x12345678;
	vcpu_regs_set(self->vcpu, &self->regs);
	expect_emulation_failure(self->vcpu);

	told = run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES;
	TEST_ASSERT(told == !self->private, "Expected the exit %s the instruction, flags 0x%llx",
		    self->private ? "without" : "with", run->emulation_failure.flags);

	/* Anywhere in what the VMM sees of the vCPU. */
	told = memmem(run, PAGE_SIZE, code_flds, 6);
	TEST_ASSERT(told == !self->private, "Expected the instruction's bytes %s kvm_run",
		    self->private ? "not in" : "in");
}

int main(int argc, char **argv)
{
	TEST_ASSERT(forced_emulation_set(1) >= 0, "KVM has no forced emulation");

	return test_harness_run(argc, argv);
}
