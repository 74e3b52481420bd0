// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the tests of Xen's and Hyper-V's pages share: see private_mem_hv.h.
 */
#include "private_mem_hv.h"

#define CALL_TEST	"	mov $" __stringify(GUEST_CALL_PORT) ", %edx\n"	\
			"	outb %al, %dx\n"

asm(".pushsection .text\n"
	"guest_hv_wrmsr:\n"
	"	wrmsr\n"
	CALL_TEST
	"guest_hv_rdmsr:\n"
	"	rdmsr\n"
	"	shl $32, %rdx\n"
	"	or %rdx, %rax\n"
	CALL_TEST
	"guest_hv_vmcall:\n"
	"	vmcall\n"
	CALL_TEST
	"guest_hv_vmmcall:\n"
	"	vmmcall\n"
	CALL_TEST
	"guest_hv_call:\n"
	"	call *%r11\n"
	CALL_TEST
	"guest_hv_interrupts:\n"
	"	sti\n"
	"	mov $1000, %ecx\n"
	"1:	pause\n"
	"	loop 1b\n"
	"	cli\n"
	CALL_TEST
	".popsection\n");

static char *insn_code(enum hv_insn insn)
{
	switch (insn) {
	case HV_WRMSR:
		return guest_hv_wrmsr;
	case HV_RDMSR:
		return guest_hv_rdmsr;
	case HV_HYPERCALL:
		return is_amd_cpu() ? guest_hv_vmmcall : guest_hv_vmcall;
	case HV_CALL:
		return guest_hv_call;
	default:
		return guest_hv_interrupts;
	}
}

void hv_vm_create(struct hv_vm *hv)
{
	private_mem_create(&hv->mem, HV_GPA, HV_SIZE, 64);

	hv->decoy = malloc(HV_SIZE);
	TEST_ASSERT(hv->decoy, "Insufficient memory");
	hv_decoy_fill(hv, HV_GPA, HV_DECOY, HV_SIZE);

	vm_init_descriptor_tables(hv->mem.vm);
	vcpu_init_descriptor_tables(hv->mem.vcpu);
}

void hv_vm_free(struct hv_vm *hv)
{
	private_mem_free(&hv->mem);
	free(hv->decoy);
}

void hv_decoy_fill(struct hv_vm *hv, uint64_t gpa, uint8_t val, size_t size)
{
	memset(hv_shared(hv, gpa), val, size);
	memset(hv->decoy + (gpa - HV_GPA), val, size);
}

void hv_decoy_u64(struct hv_vm *hv, uint64_t gpa, uint64_t val)
{
	memcpy(hv_shared(hv, gpa), &val, sizeof(val));
	memcpy(hv->decoy + (gpa - HV_GPA), &val, sizeof(val));
}

static void check_decoy(struct hv_vm *hv, uint64_t from, uint64_t to)
{
	uint8_t *shared = hv->mem.shared;
	uint64_t i;

	for (i = from - HV_GPA; i < to - HV_GPA; i++)
		TEST_ASSERT(shared[i] == hv->decoy[i],
			    "Wrote 0x%x to byte 0x%lx of the half that the guest does not see",
			    shared[i], i);
}

void hv_check_decoy(struct hv_vm *hv)
{
	check_decoy(hv, HV_GPA, HV_GPA + HV_SIZE);
}

void hv_check_decoy_but(struct hv_vm *hv, uint64_t gpa)
{
	check_decoy(hv, HV_GPA, hv_page(gpa));
	check_decoy(hv, hv_page(gpa) + PAGE_SIZE, HV_GPA + HV_SIZE);
}

uint64_t hv_run(struct hv_vm *hv, enum hv_insn insn, struct kvm_regs *in)
{
	struct kvm_vcpu *vcpu = hv->mem.vcpu;
	struct kvm_regs regs;

	vcpu_regs_get(vcpu, &regs);
	in->rip = (uintptr_t)insn_code(insn);
	in->rsp = regs.rsp;
	in->rflags = X86_EFLAGS_FIXED;
	vcpu_regs_set(vcpu, in);

	/* Hyper-V tells userspace of some MSRs. */
	do {
		vcpu_run(vcpu);
	} while (vcpu->run->exit_reason == KVM_EXIT_HYPERV);
	TEST_ASSERT(vcpu_is_guest_call(vcpu), "Expected the guest's call, got exit reason %u (%s)",
		    vcpu->run->exit_reason, exit_reason_str(vcpu->run->exit_reason));
	vcpu_run_complete_io(vcpu);

	vcpu_regs_get(vcpu, in);
	return in->rax;
}

void hv_wrmsr(struct hv_vm *hv, uint32_t msr, uint64_t val)
{
	struct kvm_regs regs = { .rcx = msr, .rax = (uint32_t)val, .rdx = val >> 32 };

	hv_run(hv, HV_WRMSR, &regs);
}

uint64_t hv_rdmsr(struct hv_vm *hv, uint32_t msr)
{
	struct kvm_regs regs = { .rcx = msr };

	return hv_run(hv, HV_RDMSR, &regs);
}

static uint8_t *interrupt_ack;
static uint64_t nr_interrupts;

static void guest_interrupt(struct ex_regs *regs)
{
	nr_interrupts++;
	if (interrupt_ack)
		*interrupt_ack = 0;
}

void hv_expect_interrupts(struct hv_vm *hv, int vector, uint8_t *ack)
{
	vm_install_exception_handler(hv->mem.vm, vector, guest_interrupt);
	interrupt_ack = ack;
	sync_global_to_guest(hv->mem.vm, interrupt_ack);
}

uint64_t hv_interrupts(struct hv_vm *hv)
{
	struct kvm_regs regs = {};

	hv_run(hv, HV_INTERRUPTS, &regs);
	sync_global_from_guest(hv->mem.vm, nr_interrupts);
	return nr_interrupts;
}
