// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the tests of private memory share: a guest that is driven from outside,
 * one access at a time, and VMs whose memory is private.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <linux/falloc.h>
#include <linux/kernel-page-flags.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "private_mem.h"
#include "svm_util.h"

#define FORCED_EMULATION_PARAM	"/sys/module/kvm/parameters/force_emulation_prefix"
#define INACCESSIBLE_PARAM	"/sys/module/kvm/parameters/private_mem_inaccessible"

/*
 * The accesses.  None of them needs a stack, so that nothing else in the guest
 * is touched.  RDX holds the port, RDI the address, RAX the value, RCX the count.
 */
asm(".pushsection .text\n"
	"guest_access_read:\n"
	"	mov (%rdi), %rax\n"
	"	outb %al, %dx\n"
	"guest_access_read_mmx:\n"
	"	pxor %mm0, %mm0\n"
	"	paddd (%rdi), %mm0\n"
	"	movq %mm0, %rax\n"
	"	outb %al, %dx\n"
	"guest_access_write:\n"
	"	mov %rax, (%rdi)\n"
	"	outb %al, %dx\n"
	"guest_access_exec:\n"
	"	jmp *%rdi\n"
	"guest_access_fill:\n"
	"	cld\n"
	"	rep stosq\n"
	"	outb %al, %dx\n"
	"guest_access_check:\n"
	"	cld\n"
	"	repe scasq\n"
	"	mov $0, %eax\n"
	"	je 1f\n"
	"	lea 1(%rcx), %rax\n"
	"1:	outb %al, %dx\n"
	"guest_access_stamp:\n"
	"	mov %rax, (%rdi)\n"
	"	mov %rax, 0xff8(%rdi)\n"
	"	inc %rax\n"
	"	add $0x1000, %rdi\n"
	"	dec %rcx\n"
	"	jnz guest_access_stamp\n"
	"	outb %al, %dx\n"
	"guest_access_verify:\n"
	"	cmp %rax, (%rdi)\n"
	"	jne 1f\n"
	"	cmp %rax, 0xff8(%rdi)\n"
	"	jne 1f\n"
	"	inc %rax\n"
	"	add $0x1000, %rdi\n"
	"	dec %rcx\n"
	"	jnz guest_access_verify\n"
	"1:	mov %rcx, %rax\n"
	"	outb %al, %dx\n"
	"guest_call_function:\n"
	"	call *%rax\n"
	"	mov $" __stringify(GUEST_CALL_PORT) ", %edx\n"
	"	outb %al, %dx\n"
	".popsection\n");

static char * const guest_access_code[] = {
	[GUEST_READ]	= guest_access_read,
	[GUEST_READ_MMX] = guest_access_read_mmx,
	[GUEST_WRITE]	= guest_access_write,
	[GUEST_EXEC]	= guest_access_exec,
	[GUEST_FILL]	= guest_access_fill,
	[GUEST_CHECK]	= guest_access_check,
	[GUEST_STAMP]	= guest_access_stamp,
	[GUEST_VERIFY]	= guest_access_verify,
};

bool vcpu_is_guest_call(struct kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	return run->exit_reason == KVM_EXIT_IO && run->io.port == GUEST_CALL_PORT &&
	       run->io.direction == KVM_EXIT_IO_OUT;
}

/*
 * Take a guest's call.  Returns false where the vCPU stopped for something else.
 */
bool vcpu_get_guest_call(struct kvm_vcpu *vcpu, struct guest_call *call)
{
	struct kvm_regs regs;

	if (!vcpu_is_guest_call(vcpu))
		return false;

	vcpu_regs_get(vcpu, &regs);
	call->nr = regs.rax;
	call->args[0] = regs.rdi;
	call->args[1] = regs.rsi;
	call->args[2] = regs.rcx;

	vcpu_run_complete_io(vcpu);
	return true;
}

uint64_t guest_map_gpa_range(uint64_t gpa, uint64_t size, bool private)
{
	uint64_t attrs = KVM_MAP_GPA_RANGE_PAGE_SZ_4K;

	attrs |= private ? KVM_MAP_GPA_RANGE_ENCRYPTED : KVM_MAP_GPA_RANGE_DECRYPTED;
	return kvm_hypercall(KVM_HC_MAP_GPA_RANGE, gpa, size >> PAGE_SHIFT, attrs, 0);
}

void vcpu_access_set(struct kvm_vcpu *vcpu, enum guest_access access, uint64_t gva,
		     uint64_t val, uint64_t nr)
{
	struct kvm_regs regs;

	vcpu_regs_get(vcpu, &regs);
	regs.rip = (uintptr_t)guest_access_code[access];
	regs.rflags = X86_EFLAGS_FIXED;
	regs.rax = val;
	regs.rcx = nr;
	regs.rdx = GUEST_CALL_PORT;
	regs.rdi = gva;
	vcpu_regs_set(vcpu, &regs);
}

/* Returns what KVM_RUN returned.  May be called again where that was an error. */
int vcpu_access_run(struct kvm_vcpu *vcpu)
{
	int ret = _vcpu_run(vcpu);

	/* The call's exit needs to be finished before the next access. */
	if (!ret && vcpu_is_guest_call(vcpu)) {
		vcpu_run_complete_io(vcpu);
		vcpu->run->exit_reason = KVM_EXIT_IO;
	}
	return ret;
}

int __vcpu_access(struct kvm_vcpu *vcpu, enum guest_access access, uint64_t gva,
		  uint64_t val, uint64_t nr)
{
	vcpu_access_set(vcpu, access, gva, val, nr);
	return vcpu_access_run(vcpu);
}

uint64_t vcpu_access_result(struct kvm_vcpu *vcpu)
{
	struct kvm_regs regs;

	vcpu_regs_get(vcpu, &regs);
	return regs.rax;
}

uint64_t vcpu_access(struct kvm_vcpu *vcpu, enum guest_access access, uint64_t gva,
		     uint64_t val, uint64_t nr)
{
	int ret = __vcpu_access(vcpu, access, gva, val, nr);

	TEST_ASSERT(!ret && vcpu_is_guest_call(vcpu),
		    "Guest access %d at 0x%lx did not complete, rc: %i errno: %i exit: %u (%s)",
		    access, gva, ret, errno, vcpu->run->exit_reason,
		    exit_reason_str(vcpu->run->exit_reason));
	return vcpu_access_result(vcpu);
}

void vcpu_call_set(struct kvm_vcpu *vcpu, uint64_t stack, void *function, uint64_t arg0,
		   uint64_t arg1, uint64_t arg2)
{
	struct kvm_regs regs;

	vcpu_regs_get(vcpu, &regs);
	regs.rip = (uintptr_t)guest_call_function;
	regs.rflags = X86_EFLAGS_FIXED;
	regs.rax = (uintptr_t)function;
	regs.rsp = stack & ~15ull;
	regs.rdi = arg0;
	regs.rsi = arg1;
	regs.rdx = arg2;
	vcpu_regs_set(vcpu, &regs);
}

const char *lazy_eoi_missing(void)
{
	return (is_intel_cpu() && get_kvm_intel_param_bool("enable_apicv")) ||
	       (is_amd_cpu() && get_kvm_amd_param_bool("avic")) ?
		"the processor handles the end of an interrupt itself" : NULL;
}

void vm_route_xen_event(struct kvm_vm *vm, uint32_t gsi, uint32_t port)
{
	struct {
		struct kvm_irq_routing info;
		struct kvm_irq_routing_entry entry;
	} routes = {
		.info.nr = 1,
		.entry.gsi = gsi,
		.entry.type = KVM_IRQ_ROUTING_XEN_EVTCHN,
		.entry.u.xen_evtchn.port = port,
		.entry.u.xen_evtchn.priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
	};

	vm_ioctl(vm, KVM_SET_GSI_ROUTING, &routes.info);
}

int vm_irqfd_create(struct kvm_vm *vm, uint32_t gsi)
{
	struct kvm_irqfd irqfd = { .fd = eventfd(0, 0), .gsi = gsi };

	vm_ioctl(vm, KVM_IRQFD, &irqfd);
	return irqfd.fd;
}

uint64_t *vm_page_table_entry(struct kvm_vm *vm, uint64_t gva, int level)
{
	uint64_t *entry = &vm->pgd;
	int i;

	for (i = PG_LEVEL_512G; i >= level; i--) {
		entry = addr_gpa2hva(vm, *entry & PHYSICAL_PAGE_MASK);
		entry += (gva >> PG_LEVEL_SHIFT(i)) & 0x1ff;
	}
	return entry;
}

static void vmcb_set_seg_from(struct vmcb_seg *to, struct kvm_segment *from)
{
	to->selector = from->selector;
	to->base = from->base;
	to->limit = from->limit;
	to->attrib = from->type | from->s << SVM_SELECTOR_S_SHIFT |
		     from->dpl << SVM_SELECTOR_DPL_SHIFT |
		     from->present << SVM_SELECTOR_P_SHIFT |
		     from->avl << SVM_SELECTOR_AVL_SHIFT | from->l << SVM_SELECTOR_L_SHIFT |
		     from->db << SVM_SELECTOR_DB_SHIFT | from->g << SVM_SELECTOR_G_SHIFT;
}

void vmcb_init(struct kvm_vcpu *vcpu, void *page, void *rip)
{
	struct vmcb *vmcb = page;
	struct vmcb_save_area *save = &vmcb->save;
	struct kvm_sregs sregs;

	vcpu_sregs_get(vcpu, &sregs);
	memset(page, 0, PAGE_SIZE);

	vmcb_set_seg_from(&save->es, &sregs.es);
	vmcb_set_seg_from(&save->cs, &sregs.cs);
	vmcb_set_seg_from(&save->ss, &sregs.ss);
	vmcb_set_seg_from(&save->ds, &sregs.ds);
	vmcb_set_seg_from(&save->fs, &sregs.fs);
	vmcb_set_seg_from(&save->gs, &sregs.gs);
	vmcb_set_seg_from(&save->ldtr, &sregs.ldt);
	vmcb_set_seg_from(&save->tr, &sregs.tr);
	save->gdtr.base = sregs.gdt.base;
	save->gdtr.limit = sregs.gdt.limit;
	save->idtr.base = sregs.idt.base;
	save->idtr.limit = sregs.idt.limit;
	save->efer = sregs.efer;
	save->cr0 = sregs.cr0;
	save->cr3 = sregs.cr3;
	save->cr4 = sregs.cr4;
	save->dr6 = 0xffff0ff0;
	save->dr7 = 0x400;
	save->rflags = X86_EFLAGS_FIXED;
	save->rip = (uintptr_t)rip;
	save->g_pat = 0x0007040600070406ull;

	vmcb->control.asid = 1;
	vmcb->control.intercept = BIT_ULL(INTERCEPT_VMRUN) | BIT_ULL(INTERCEPT_VMMCALL);
}

uint64_t vcpu_stat(struct kvm_vcpu *vcpu, const char *name)
{
	struct kvm_stats_header header;
	struct kvm_stats_desc *descs, *desc;
	uint64_t val = 0;
	int fd;

	fd = vcpu_get_stats_fd(vcpu);
	read_stats_header(fd, &header);
	descs = read_stats_descriptors(fd, &header);
	desc = find_stats_descriptor(descs, name, &header);
	TEST_ASSERT(desc, "A vCPU has no statistic '%s'", name);
	read_stat_data(fd, &header, desc, &val, 1);
	free(descs);
	close(fd);
	return val;
}

void vcpu_check(struct kvm_vcpu *vcpu, uint64_t gva, uint64_t val, uint64_t size)
{
	uint64_t nr = size / 8, left, seen;

	left = vcpu_access(vcpu, GUEST_CHECK, gva, val, nr);
	if (!left)
		return;

	gva += (nr - left) * 8;
	seen = vcpu_read_u64(vcpu, gva);
	TEST_FAIL("Guest expected 0x%lx at 0x%lx, read 0x%lx", val, gva, seen);
}

void vcpu_stamp(struct kvm_vcpu *vcpu, uint64_t gva, uint64_t val, uint64_t nr_pages)
{
	if (nr_pages)
		vcpu_access(vcpu, GUEST_STAMP, gva, val, nr_pages);
}

void vcpu_verify(struct kvm_vcpu *vcpu, uint64_t gva, uint64_t val, uint64_t nr_pages)
{
	uint64_t left = 0, page;

	if (nr_pages)
		left = vcpu_access(vcpu, GUEST_VERIFY, gva, val, nr_pages);
	if (!left)
		return;

	page = nr_pages - left;
	gva += page * PAGE_SIZE;
	TEST_FAIL("Guest expected 0x%lx at both ends of the page at 0x%lx, read 0x%lx and 0x%lx",
		  val + page, gva, vcpu_read_u64(vcpu, gva),
		  vcpu_read_u64(vcpu, gva + PAGE_SIZE - 8));
}

bool vcpu_is_private_fault(struct kvm_vcpu *vcpu, int ret, int err, uint64_t gpa)
{
	struct kvm_run *run = vcpu->run;

	return ret == -1 && err == EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
	       run->memory_fault.flags == KVM_MEMORY_EXIT_FLAG_PRIVATE &&
	       run->memory_fault.gpa == (gpa & PAGE_MASK) &&
	       run->memory_fault.size == PAGE_SIZE;
}

void vcpu_assert_private_fault(struct kvm_vcpu *vcpu, int ret, int err, uint64_t gpa)
{
	struct kvm_run *run = vcpu->run;

	TEST_ASSERT(ret == -1 && err == EFAULT,
		    "Expected EFAULT from KVM_RUN, rc: %i errno: %i exit: %u (%s)",
		    ret, err, run->exit_reason, exit_reason_str(run->exit_reason));
	TEST_ASSERT(run->exit_reason == KVM_EXIT_MEMORY_FAULT,
		    "Expected exit MEMORY_FAULT, got %u (%s)",
		    run->exit_reason, exit_reason_str(run->exit_reason));
	TEST_ASSERT(vcpu_is_private_fault(vcpu, ret, err, gpa),
		    "Expected memory_fault flags 0x%llx gpa 0x%llx size 0x%llx, got flags 0x%llx gpa 0x%llx size 0x%llx",
		    KVM_MEMORY_EXIT_FLAG_PRIVATE, gpa & PAGE_MASK, PAGE_SIZE,
		    run->memory_fault.flags, run->memory_fault.gpa, run->memory_fault.size);
}

void vcpu_expect_poison(struct kvm_vcpu *vcpu, uint64_t gpa)
{
	struct kvm_run *run = vcpu->run;
	enum guest_access access;
	int ret;

	for (access = GUEST_READ; access <= GUEST_EXEC; access++) {
		ret = __vcpu_access(vcpu, access, gpa, 0, 0);
		TEST_ASSERT(ret == -1 && errno == EHWPOISON,
			    "Expected EHWPOISON at 0x%lx, rc: %i errno: %i exit: %u (%s)", gpa,
			    ret, errno, run->exit_reason, exit_reason_str(run->exit_reason));
		TEST_ASSERT(run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
			    run->memory_fault.flags == KVM_MEMORY_EXIT_FLAG_PRIVATE &&
			    run->memory_fault.gpa == gpa && run->memory_fault.size == PAGE_SIZE,
			    "Expected memory_fault flags 0x%llx gpa 0x%lx size 0x%llx, got exit %u flags 0x%llx gpa 0x%llx size 0x%llx",
			    KVM_MEMORY_EXIT_FLAG_PRIVATE, gpa, PAGE_SIZE, run->exit_reason,
			    run->memory_fault.flags, run->memory_fault.gpa,
			    run->memory_fault.size);
	}
}

void guest_memfd_write(int fd, const void *data, size_t size, off_t offset)
{
	ssize_t ret = pwrite(fd, data, size, offset);

	TEST_ASSERT(ret == size, "Cannot write %zu bytes at 0x%lx, rc: %zd errno: %i (%s)",
		    size, offset, ret, errno, strerror(errno));
}

void guest_memfd_punch(int fd, off_t offset, size_t size)
{
	int ret = fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, size);

	TEST_ASSERT(!ret, __KVM_SYSCALL_ERROR("fallocate(PUNCH_HOLE)", ret));
}

void guest_memfd_allocate(int fd, off_t offset, size_t size)
{
	int ret = fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, size);

	TEST_ASSERT(!ret, __KVM_SYSCALL_ERROR("fallocate()", ret));
}

uint64_t guest_memfd_held(int fd)
{
	struct stat st;
	int ret = fstat(fd, &st);

	TEST_ASSERT(!ret, __KVM_SYSCALL_ERROR("fstat()", ret));
	return st.st_blocks * 512;
}

void *shared_mem_alloc(size_t size)
{
	void *mem = mmap(NULL, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	TEST_ASSERT(mem != MAP_FAILED, __KVM_SYSCALL_ERROR("mmap()", -1));
	return mem;
}

void *shared_mem_alloc_at(size_t size, size_t offset)
{
	uintptr_t mem = (uintptr_t)shared_mem_alloc(size + 2 * PG_SIZE_2M);

	return (void *)((mem + PG_SIZE_2M - 1) / PG_SIZE_2M * PG_SIZE_2M + offset);
}

/*
 * A software-protected VM with guest_code on each vCPU.  Its own memory, in
 * slot 0, is shared; vm_mem_slot_make_private() changes that.
 */
struct kvm_vm *private_mem_vm_create(uint32_t nr_vcpus, uint64_t extra_pages,
				     void *guest_code, struct kvm_vcpu *vcpus[])
{
	struct kvm_regs regs;
	struct kvm_vm *vm;
	int i;

	vm = __vm_create_with_vcpus(VM_SHAPE(KVM_X86_SW_PROTECTED_VM), nr_vcpus,
				    extra_pages, guest_code, vcpus);
	vm_enable_cap(vm, KVM_CAP_EXIT_HYPERCALL, BIT(KVM_HC_MAP_GPA_RANGE));

	/* The compiler counts on the alignment that a call leaves behind. */
	for (i = 0; i < nr_vcpus; i++) {
		vcpu_regs_get(vcpus[i], &regs);
		regs.rsp -= 8;
		vcpu_regs_set(vcpus[i], &regs);
	}
	return vm;
}

/*
 * The shared half keeps its contents, guest page tables included, so that the
 * library can still translate guest addresses.  They are a snapshot: what the
 * guest does from here on cannot be seen in them.
 */
void vm_mem_slot_make_private(struct kvm_vm *vm, uint32_t slot)
{
	struct userspace_mem_region *region = memslot2region(vm, slot);
	uint64_t size = region->region.memory_size;
	uint64_t gpa = region->region.guest_phys_addr;

	vm_set_user_memory_region(vm, slot, region->region.flags, gpa, 0, region->host_mem);

	region->guest_memfd = vm_create_guest_memfd(vm, size, 0);
	region->guest_memfd_offset = 0;
	region->region.flags |= KVM_MEM_GUEST_MEMFD;
	guest_memfd_write(region->guest_memfd, region->host_mem, size, 0);

	vm_set_user_memory_region2(vm, slot, region->region.flags, gpa, size, region->host_mem,
				   region->guest_memfd, 0);
	vm_mem_set_private(vm, gpa, size);
}

void private_mem_set_slot(struct private_mem *mem, uint64_t size)
{
	vm_set_user_memory_region2(mem->vm, PRIVATE_MEM_SLOT, KVM_MEM_GUEST_MEMFD, mem->gpa,
				   size, mem->shared, mem->memfd, 0);
}

void __private_mem_create(struct private_mem *mem, uint64_t gpa, uint64_t size,
			  uint64_t extra_pages, uint64_t memfd_flags)
{
	mem->gpa = gpa;
	mem->size = size;
	mem->vm = private_mem_vm_create(1, extra_pages, NULL, &mem->vcpu);
	mem->memfd = vm_create_guest_memfd(mem->vm, size, memfd_flags);
	mem->shared = shared_mem_alloc(size);
	virt_map(mem->vm, gpa, gpa, size / PAGE_SIZE);

	private_mem_set_slot(mem, size);
	vm_mem_set_private(mem->vm, gpa, size);
}

void private_mem_create(struct private_mem *mem, uint64_t gpa, uint64_t size,
			uint64_t extra_pages)
{
	__private_mem_create(mem, gpa, size, extra_pages, 0);
}

/* A test that has closed the file leaves -1 in its place. */
void private_mem_free(struct private_mem *mem)
{
	if (mem->memfd >= 0)
		close(mem->memfd);
	kvm_vm_free(mem->vm);
	munmap(mem->shared, mem->size);
}

int userfaultfd_open(void)
{
	return syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
}

void userfaultfd_empty(int uffd, void *start, size_t size)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)start, .len = size },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	TEST_ASSERT(!madvise(start, size, MADV_DONTNEED) && !ioctl(uffd, UFFDIO_API, &api) &&
		    !ioctl(uffd, UFFDIO_REGISTER, &reg), "userfaultfd failed, errno: %i", errno);
}

void dir_write(const char *dir, const char *name, const char *val)
{
	char path[256];
	int fd, len = strlen(val);

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_WRONLY);
	TEST_ASSERT(fd >= 0, "Cannot open %s, errno: %i (%s)", path, errno, strerror(errno));
	TEST_ASSERT(write(fd, val, len) == len, "Cannot write '%s' to %s, errno: %i (%s)",
		    val, path, errno, strerror(errno));
	close(fd);
}

void memcg_create(struct memcg *cg)
{
	char path[128];

	snprintf(cg->mnt, sizeof(cg->mnt), "/tmp/private_mem.XXXXXX");
	TEST_ASSERT(mkdtemp(cg->mnt), "Cannot make %s, errno: %i (%s)", cg->mnt,
		    errno, strerror(errno));
	TEST_ASSERT(!mount("none", cg->mnt, "cgroup2", 0, NULL),
		    "Cannot mount cgroup2, errno: %i (%s)", errno, strerror(errno));
	dir_write(cg->mnt, "cgroup.subtree_control", "+memory");

	snprintf(cg->dir, sizeof(cg->dir), "%s/private_mem.%d", cg->mnt, getpid());
	TEST_ASSERT(!mkdir(cg->dir, 0700), "Cannot make %s, errno: %i (%s)", cg->dir,
		    errno, strerror(errno));

	/* Opened now, for open() may fail where the limit is reached. */
	snprintf(path, sizeof(path), "%s/memory.max", cg->dir);
	cg->limit_fd = open(path, O_WRONLY);
	TEST_ASSERT(cg->limit_fd >= 0, "Cannot open %s, errno: %i (%s)", path,
		    errno, strerror(errno));
}

/*
 * Moves the calling process into the group.  With nobody in it that could be
 * killed, a call fails that wants more memory than there is.
 */
void memcg_enter(struct memcg *cg)
{
	dir_write("/proc/self", "oom_score_adj", "-1000");
	dir_write(cg->dir, "cgroup.procs", "0");
}

/* LONG_MAX is no limit. */
void memcg_limit(struct memcg *cg, long bytes)
{
	char buf[32];
	int len = snprintf(buf, sizeof(buf), "%ld", bytes);

	TEST_ASSERT(pwrite(cg->limit_fd, buf, len, 0) == len,
		    "Cannot set the limit of %s to %s, errno: %i (%s)", cg->dir, buf,
		    errno, strerror(errno));
}

/* In bytes. */
long memcg_usage(struct memcg *cg)
{
	char path[128], buf[32] = "";
	int fd;

	snprintf(path, sizeof(path), "%s/memory.current", cg->dir);
	fd = open(path, O_RDONLY);
	TEST_ASSERT(fd >= 0 && read(fd, buf, sizeof(buf) - 1) > 0, "Cannot read %s", path);
	close(fd);
	return atol(buf);
}

/* Moves the calling process out of the group; what is still charged moves up. */
void memcg_destroy(struct memcg *cg)
{
	dir_write(cg->mnt, "cgroup.procs", "0");
	close(cg->limit_fd);
	TEST_ASSERT(!rmdir(cg->dir), "Cannot remove %s, errno: %i (%s)", cg->dir,
		    errno, strerror(errno));
	umount2(cg->mnt, MNT_DETACH);
	rmdir(cg->mnt);
}

/*
 * Nothing tells where the pages of a guest_memfd are.  But they are charged to
 * the cgroup of the process that allocates them, and /proc/kpagecgroup says
 * which page frames those are: what is new after fallocate(), and is none of the
 * process's own, is the page.  It counts a folio by its first page, which is aligned:
 * to look there only saves most of the time, of which each entry takes much.
 */
static uint8_t *find_folios(struct memcg *cg, int align, uint64_t *nr)
{
	const uint64_t others = BIT(KPF_ANON) | BIT(KPF_MMAP) | BIT(KPF_SLAB) | BIT(KPF_BUDDY) |
				BIT(KPF_PGTABLE) | BIT(KPF_HWPOISON);
	static uint64_t inos[1 << 14];
	const int step = align > 1 ? align : ARRAY_SIZE(inos);
	const int nr_inos = align > 1 ? 1 : step;
	uint64_t flags, first, pfn = 0;
	uint8_t *found = NULL;
	int cgroups, fd, i;
	struct stat st;
	ssize_t ret;

	TEST_ASSERT(!stat(cg->dir, &st), "Cannot stat %s", cg->dir);
	cgroups = open_path_or_exit("/proc/kpagecgroup", O_RDONLY);
	fd = open_path_or_exit("/proc/kpageflags", O_RDONLY);

	for (first = 0; ; first += step) {
		ret = pread(cgroups, inos, nr_inos * sizeof(*inos), first * sizeof(*inos));
		if (ret <= 0)
			break;
		found = realloc(found, first + step);
		TEST_ASSERT(found, "Insufficient memory");
		memset(found + first, false, step);
		for (i = 0; i < ret / (int)sizeof(*inos); i++) {
			pfn = first + i;
			if (inos[i] != st.st_ino)
				continue;
			TEST_ASSERT(pread(fd, &flags, sizeof(flags), pfn * sizeof(flags)) ==
				    sizeof(flags), "Cannot read the flags of page 0x%lx", pfn);
			found[pfn] = !(flags & others);
		}
	}
	TEST_ASSERT(!ret, __KVM_SYSCALL_ERROR("pread(kpagecgroup)", (int)ret));
	close(cgroups);
	close(fd);

	*nr = first;
	return found;
}

uint8_t *memcg_find_file_pages(struct memcg *cg, uint64_t *nr)
{
	return find_folios(cg, 1, nr);
}

/*
 * The only one that the cgroup has more than before.  Others can come in between,
 * of the program itself as it is read in from its file; then the memory is given
 * back and taken anew.
 */
uint64_t memcg_take_and_find(struct memcg *cg, int memfd, off_t offset, const void *data,
			     size_t size)
{
	uint64_t pfn, nr_frames, found = 0, nr = 0;
	uint8_t *before, *after;
	int i;

	for (i = 0; i < 5 && nr != 1; i++) {
		guest_memfd_punch(memfd, offset, size);
		before = find_folios(cg, size / PAGE_SIZE, &nr_frames);
		if (data)
			guest_memfd_write(memfd, data, size, offset);
		else
			guest_memfd_allocate(memfd, offset, size);
		after = find_folios(cg, size / PAGE_SIZE, &nr_frames);

		for (nr = 0, pfn = 0; pfn < nr_frames; pfn++) {
			if (after[pfn] && !before[pfn]) {
				found = pfn;
				nr++;
			}
		}
		free(before);
		free(after);
	}
	TEST_ASSERT(nr == 1, "Expected one folio more in %s, found %lu", cg->dir, nr);

	return found;
}

bool read_frames(int kcore, uint64_t pfn, int nr, void *buf)
{
	uint64_t addr = pfn * PAGE_SIZE, from;
	Elf64_Phdr phdr;
	Elf64_Ehdr ehdr;
	int i;

	if (pread(kcore, &ehdr, sizeof(ehdr), 0) != sizeof(ehdr))
		return false;

	for (i = 0; i < ehdr.e_phnum; i++) {
		if (pread(kcore, &phdr, sizeof(phdr), ehdr.e_phoff + i * sizeof(phdr)) !=
		    sizeof(phdr))
			return false;
		from = addr - phdr.p_paddr;
		if (phdr.p_type == PT_LOAD && addr >= phdr.p_paddr && from < phdr.p_memsz)
			return pread(kcore, buf, nr * PAGE_SIZE, phdr.p_offset + from) ==
			       nr * PAGE_SIZE;
	}
	return false;
}

/* Fails where it is mounted already. */
static void debugfs_mount(void)
{
	mount("none", "/sys/kernel/debug", "debugfs", 0, NULL);
}

int __memory_error(const char *name, uint64_t pfn)
{
	char path[64], buf[32];
	int fd, len, err;

	debugfs_mount();
	snprintf(path, sizeof(path), "/sys/kernel/debug/hwpoison/%s", name);
	len = snprintf(buf, sizeof(buf), "%lu", pfn);
	fd = open_path_or_exit(path, O_WRONLY);
	err = write(fd, buf, len) == len ? 0 : errno;
	close(fd);
	return err;
}

void memory_error(const char *name, uint64_t pfn)
{
	int err = __memory_error(name, pfn);

	TEST_ASSERT(!err, "%s of page frame 0x%lx failed, errno: %i (%s)", name, pfn,
		    err, strerror(err));
}

/* Huge pages are for the asking, so the other half gets small ones. */
void dirty_free_memory(size_t size)
{
	uint8_t *mem = shared_mem_alloc(size);

	madvise(mem, size / 2, MADV_HUGEPAGE);
	madvise(mem + size / 2, size / 2, MADV_NOHUGEPAGE);
	memset(mem, 0xdd, size);
	munmap(mem, size);
}

/* The number behind @name and a separator, in a file with a name in each line. */
static long named_value(const char *path, const char *name)
{
	size_t len = strlen(name);
	char line[128];
	long val = -1;
	FILE *f;

	f = fopen(path, "r");
	TEST_ASSERT(f, "Cannot open %s", path);
	while (val < 0 && fgets(line, sizeof(line), f))
		if (!strncmp(line, name, len) && (line[len] == ':' || line[len] == ' '))
			val = atol(line + len + 1);
	fclose(f);
	TEST_ASSERT(val >= 0, "No %s in %s", name, path);
	return val;
}

long meminfo_bytes(const char *name)
{
	return named_value("/proc/meminfo", name) << 10;
}

long vmstat_value(const char *name)
{
	return named_value("/proc/vmstat", name);
}

#define FAILSLAB	"/sys/kernel/debug/failslab"

static int make_it_fail;

/*
 * Open from the start: to open a file is to allocate.  Only a thread that asks for
 * it is hit, so the rest can stay as it is set up here.
 */
bool failslab_setup(void)
{
	debugfs_mount();
	make_it_fail = open("/proc/thread-self/make-it-fail", O_RDWR);
	if (make_it_fail < 0 || access(FAILSLAB "/probability", W_OK))
		return false;

	dir_write(FAILSLAB, "task-filter", "Y");
	dir_write(FAILSLAB, "ignore-gfp-wait", "N");
	dir_write(FAILSLAB, "verbose", "0");
	dir_write(FAILSLAB, "interval", "1");
	dir_write(FAILSLAB, "times", "1000000");
	dir_write(FAILSLAB, "probability", "100");
	return true;
}

static void failslab_set(const char *val)
{
	TEST_ASSERT(pwrite(make_it_fail, val, 1, 0) == 1, "Cannot write make-it-fail");
}

void failslab_begin(int space)
{
	char buf[16];

	snprintf(buf, sizeof(buf), "%d", space);
	dir_write(FAILSLAB, "space", buf);
	failslab_set("1");
}

void failslab_end(void)
{
	failslab_set("0");
}

void stay_on_cpu(void)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(sched_getcpu(), &cpus);
	TEST_ASSERT(!sched_setaffinity(0, sizeof(cpus), &cpus), "sched_setaffinity() failed");
}

void memory_error_without_split(uint64_t pfn)
{
	long huge = file_huge_bytes();
	char buf[32];
	int fd, ret;

	fd = open_path_or_exit("/sys/kernel/debug/hwpoison/corrupt-pfn", O_WRONLY);
	snprintf(buf, sizeof(buf), "%lu", pfn);
	failslab_begin(0);
	ret = write(fd, buf, strlen(buf));
	failslab_end();
	TEST_ASSERT(ret > 0, "The page cannot be taken from its users, errno: %i (%s)",
		    errno, strerror(errno));
	TEST_ASSERT(file_huge_bytes() == huge, "The block was split, so this case showed nothing");
	close(fd);
}

/* Free blocks of 2 MiB; those of the DMA zone are for nobody but its users. */
static long free_blocks(void)
{
	long nr[11] = {}, blocks = 0;
	char line[256], *p;
	FILE *f;
	int i;

	f = fopen("/proc/buddyinfo", "r");
	TEST_ASSERT(f, "Cannot open /proc/buddyinfo");
	while (fgets(line, sizeof(line), f)) {
		p = strstr(line, "zone");
		if (!p || !strncmp(p + 4 + strspn(p + 4, " "), "DMA ", 4))
			continue;
		p += 4 + strspn(p + 4, " ");
		p += strcspn(p, " ");
		for (i = 0; i < ARRAY_SIZE(nr); i++)
			nr[i] = strtol(p, &p, 10);
		blocks += nr[9] + 2 * nr[10];
	}
	fclose(f);
	return blocks;
}

#define NR_HUGEPAGES	"nr_hugepages"
#define SYSCTL_VM	"/proc/sys/vm"

static long nr_hugepages(void)
{
	return named_value("/proc/meminfo", "HugePages_Total");
}

static void set_nr_hugepages(long nr)
{
	char buf[32];

	snprintf(buf, sizeof(buf), "%ld", nr);
	dir_write(SYSCTL_VM, NR_HUGEPAGES, buf);
}

/* However the test ends, the next one wants its memory. */
static long nr_hugepages_before = -1;

static void give_back_most_of_memory(void)
{
	if (nr_hugepages_before >= 0)
		set_nr_hugepages(nr_hugepages_before);
	nr_hugepages_before = -1;
}

/* Most of the memory goes to hugetlb, which takes no time. */
static bool take_most_of_memory(struct fragments *f, long left)
{
	long blocks = free_blocks();

	if (access(SYSCTL_VM "/" NR_HUGEPAGES, W_OK))
		return false;

	f->memfd = -1;
	nr_hugepages_before = nr_hugepages();
	atexit(give_back_most_of_memory);
	if (blocks > left)
		set_nr_hugepages(nr_hugepages_before + blocks - left);
	return true;
}

#define BLOCKS_LEFT	64

/* The rest goes to a file of small pages, which cannot be moved; one in 16 is kept. */
bool memory_fragment(struct fragments *f, struct kvm_vm *vm)
{
	const size_t size = BLOCKS_LEFT * 3 / 4 * PG_SIZE_2M;
	const off_t stride = 16 * PAGE_SIZE;
	long blocks;
	off_t offset;
	int i;

	if (!take_most_of_memory(f, BLOCKS_LEFT))
		return false;

	f->memfd = vm_create_guest_memfd(vm, size, 0);
	guest_memfd_allocate(f->memfd, 0, size);
	for (offset = 0; offset < size; offset += stride)
		guest_memfd_punch(f->memfd, offset + PAGE_SIZE, stride - PAGE_SIZE);

	/* What remains of large blocks. */
	for (i = 0; i < 5 && (blocks = free_blocks()); i++)
		set_nr_hugepages(nr_hugepages() + blocks);
	return true;
}

/*
 * By pipes: what they hold cannot be moved, and the allocator keeps blocks of such
 * memory apart from those that processes have.
 */
bool memory_dirty(struct fragments *f)
{
	const size_t size = 1 << 20;
	int pipes[2 * (BLOCKS_LEFT - 8)][2], i;
	char *data = malloc(size);

	if (!take_most_of_memory(f, BLOCKS_LEFT))
		return false;

	TEST_ASSERT(data, "Insufficient memory");
	memset(data, 0xdd, size);
	for (i = 0; i < ARRAY_SIZE(pipes); i++) {
		int *p = pipes[i];

		TEST_ASSERT(!pipe(p) && fcntl(p[1], F_SETPIPE_SZ, size) == size &&
			    write(p[1], data, size) == size, __KVM_SYSCALL_ERROR("pipe()", -1));
	}
	for (i = 0; i < ARRAY_SIZE(pipes); i++) {
		close(pipes[i][0]);
		close(pipes[i][1]);
	}
	free(data);
	return true;
}

void memory_unfragment(struct fragments *f)
{
	give_back_most_of_memory();
	if (f->memfd >= 0)
		close(f->memfd);
}

static int forced_emulation_before;
static pid_t forced_emulation_pid;

static void restore_forced_emulation(void)
{
	if (getpid() == forced_emulation_pid)
		forced_emulation_set(forced_emulation_before);
}

/*
 * However the process that does this first ends by itself, the parameter is again what
 * it was; where cases of their own processes fail, those that follow still find it.
 *
 * Returns the former value, or -1 where KVM cannot be told to emulate.
 */
int forced_emulation_set(int val)
{
	char buf[16] = "";
	int fd, len;

	fd = open(FORCED_EMULATION_PARAM, O_RDWR);
	if (fd < 0)
		return -1;

	TEST_ASSERT(read(fd, buf, sizeof(buf) - 1) > 0, "Cannot read " FORCED_EMULATION_PARAM);
	len = snprintf(NULL, 0, "%d", val);
	if (forced_emulation_pid != getpid()) {
		forced_emulation_pid = getpid();
		forced_emulation_before = atoi(buf);
		atexit(restore_forced_emulation);
	}
	TEST_ASSERT(dprintf(fd, "%d", val) == len, "Cannot write " FORCED_EMULATION_PARAM);
	close(fd);

	return atoi(buf);
}

static void restore_private_mem_accessible(void)
{
	set_private_mem_inaccessible(false);
}

/*
 * However the process ends by itself, private memory is accessible again.  Returns
 * false where the kernel is not built for it.
 */
bool set_private_mem_inaccessible(bool inaccessible)
{
	static bool registered;
	int fd;

	fd = open(INACCESSIBLE_PARAM, O_WRONLY);
	if (fd < 0)
		return false;

	if (!registered)
		atexit(restore_private_mem_accessible);
	registered = true;
	TEST_ASSERT(write(fd, inaccessible ? "Y" : "N", 1) == 1,
		    "Cannot write " INACCESSIBLE_PARAM);
	close(fd);
	return true;
}
