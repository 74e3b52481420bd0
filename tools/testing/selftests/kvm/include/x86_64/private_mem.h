/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the tests of private memory share.
 *
 * The guest talks to its test in registers only, so that its stack, and all
 * else that it needs, may live in memory that the test cannot read.
 */
#ifndef SELFTEST_KVM_PRIVATE_MEM_H
#define SELFTEST_KVM_PRIVATE_MEM_H

#include <linux/bits.h>
#include <linux/kvm_para.h>

#include "kvm_util.h"
#include "processor.h"

#define GUEST_CALL_PORT		0x2000

/* Where tests put the memory under test, guest physical and guest virtual. */
#define PRIVATE_MEM_GPA		0x100000000ull
#define PRIVATE_MEM_SLOT	10

struct guest_call {
	uint64_t nr;
	uint64_t args[3];
};

/*
 * A guest's call to the test: the number travels in RAX, the arguments in RDI,
 * RSI and RCX.
 */
static inline void guest_call(uint64_t nr, uint64_t arg0, uint64_t arg1, uint64_t arg2)
{
	asm volatile("outb %%al, %%dx"
		     : : "a" (nr), "d" (GUEST_CALL_PORT), "D" (arg0), "S" (arg1), "c" (arg2)
		     : "memory");
}

/*
 * Instructions for the guest, as bytes from code_name to code_name_end, to be put
 * into its memory.  They end with a call to the test.
 */
#define DEFINE_GUEST_CODE(name, insns)					\
	asm(".pushsection .rodata\n"					\
	    "code_" #name ":\n"						\
	    insns "\n"							\
	    "mov $" __stringify(GUEST_CALL_PORT) ", %edx\n"		\
	    "outb %al, %dx\n"						\
	    "code_" #name "_end:\n"					\
	    ".popsection\n");						\
	extern const uint8_t code_##name[], code_##name##_end[]

bool vcpu_is_guest_call(struct kvm_vcpu *vcpu);
bool vcpu_get_guest_call(struct kvm_vcpu *vcpu, struct guest_call *call);

/* Guest side: ask the VMM to make guest memory private or shared. */
uint64_t guest_map_gpa_range(uint64_t gpa, uint64_t size, bool private);

/*
 * One access by the guest, driven from outside: the vCPU is set to a few
 * instructions that make the access and then call the test.
 */
enum guest_access {
	GUEST_READ,	/* returns the u64 at gva */
	GUEST_READ_MMX,	/* the same, by an instruction that KVM does not emulate */
	GUEST_WRITE,	/* writes the u64 @val to gva */
	GUEST_EXEC,	/* jumps to gva, which holds guest_exec_code() */
	GUEST_FILL,	/* writes @nr times the u64 @val from gva on */
	GUEST_CHECK,	/* compares @nr u64 from gva on with @val, returns what is left */
	GUEST_STAMP,	/* writes @val, @val + 1, ... to the ends of @nr pages from gva on */
	GUEST_VERIFY,	/* compares @nr pages with what GUEST_STAMP wrote, returns what is left */
};

/* The instructions, for the guest's eyes only. */
extern char guest_access_read[], guest_access_read_mmx[], guest_access_write[];
extern char guest_access_exec[], guest_access_fill[], guest_access_check[];
extern char guest_access_stamp[], guest_access_verify[], guest_call_function[];

void vcpu_access_set(struct kvm_vcpu *vcpu, enum guest_access access, uint64_t gva,
		     uint64_t val, uint64_t nr);
int vcpu_access_run(struct kvm_vcpu *vcpu);
int __vcpu_access(struct kvm_vcpu *vcpu, enum guest_access access, uint64_t gva,
		  uint64_t val, uint64_t nr);
uint64_t vcpu_access(struct kvm_vcpu *vcpu, enum guest_access access, uint64_t gva,
		     uint64_t val, uint64_t nr);
uint64_t vcpu_access_result(struct kvm_vcpu *vcpu);

/* Code for GUEST_EXEC that returns @val: MOV $val, %EAX; OUT %AL, (%DX) */
static inline uint64_t guest_exec_code(uint32_t val)
{
	return 0xb8 | (uint64_t)val << 8 | 0xeeull << 40;
}

static inline uint64_t vcpu_read_u64(struct kvm_vcpu *vcpu, uint64_t gva)
{
	return vcpu_access(vcpu, GUEST_READ, gva, 0, 0);
}

static inline void vcpu_write_u64(struct kvm_vcpu *vcpu, uint64_t gva, uint64_t val)
{
	vcpu_access(vcpu, GUEST_WRITE, gva, val, 0);
}

static inline void vcpu_fill(struct kvm_vcpu *vcpu, uint64_t gva, uint64_t val, uint64_t size)
{
	vcpu_access(vcpu, GUEST_FILL, gva, val, size / 8);
}

/*
 * Sets the vCPU to call a function of the test's, with interrupts off, and then the
 * test.  vcpu_access_run() runs it, vcpu_access_result() is what it returned.
 */
void vcpu_call_set(struct kvm_vcpu *vcpu, uint64_t stack, void *function, uint64_t arg0,
		   uint64_t arg1, uint64_t arg2);

/*
 * Interrupts come in here only.  What the compiler keeps below the stack pointer
 * stays as it is.
 */
#define INTERRUPTIBLE(insns)	\
	"sub $128, %%rsp; sti; nop; " insns "; cli; add $128, %%rsp"

static inline void guest_take_interrupts(void)
{
	asm volatile(INTERRUPTIBLE("pause") : : : "memory", "cc");
}

/*
 * Why KVM does not offer guests to end interrupts in memory, or NULL: where the
 * hardware takes the EOI there is nothing to save.
 */
const char *lazy_eoi_missing(void);

/* An interrupt line of the VM's that is an event channel of Xen's, and what signals one. */
void vm_route_xen_event(struct kvm_vm *vm, uint32_t gsi, uint32_t port);
int vm_irqfd_create(struct kvm_vm *vm, uint32_t gsi);

/* The entry of the guest's page tables for @gva, at a level: PG_LEVEL_4K and so on. */
uint64_t *vm_page_table_entry(struct kvm_vm *vm, uint64_t gva, int level);

/* Makes of @page a VMCB of an L2 that is like the vCPU, but runs @rip. */
void vmcb_init(struct kvm_vcpu *vcpu, void *page, void *rip);

/* One of KVM's binary statistics of a vCPU. */
uint64_t vcpu_stat(struct kvm_vcpu *vcpu, const char *name);

/* Fails the test unless the guest reads @val, and nothing else, in the range. */
void vcpu_check(struct kvm_vcpu *vcpu, uint64_t gva, uint64_t val, uint64_t size);

/*
 * Many pages at once, and all different: the first and the last word of page i hold
 * @val + i.  Verifying fails the test unless the guest finds them so.
 */
void vcpu_stamp(struct kvm_vcpu *vcpu, uint64_t gva, uint64_t val, uint64_t nr_pages);
void vcpu_verify(struct kvm_vcpu *vcpu, uint64_t gva, uint64_t val, uint64_t nr_pages);

/* The outcome of KVM_RUN was a fault on the private page at @gpa. */
bool vcpu_is_private_fault(struct kvm_vcpu *vcpu, int ret, int err, uint64_t gpa);
void vcpu_assert_private_fault(struct kvm_vcpu *vcpu, int ret, int err, uint64_t gpa);

/* Any access to the page exits and says that it has a memory error. */
void vcpu_expect_poison(struct kvm_vcpu *vcpu, uint64_t gpa);

/* A write(2) to the private half must not be short. */
void guest_memfd_write(int fd, const void *data, size_t size, off_t offset);
void guest_memfd_punch(int fd, off_t offset, size_t size);
void guest_memfd_allocate(int fd, off_t offset, size_t size);

/* How much memory the file holds, in bytes. */
uint64_t guest_memfd_held(int fd);

/* Memory for the shared half. */
void *shared_mem_alloc(size_t size);

/* The same @offset behind a boundary of 2 MiB, until the process ends. */
void *shared_mem_alloc_at(size_t size, size_t offset);

/*
 * Empties memory of the process, and has whoever touches it wait until userspace
 * puts something there.  Opening fails where the kernel has no such thing.
 */
int userfaultfd_open(void);
void userfaultfd_empty(int uffd, void *start, size_t size);

struct kvm_vm *private_mem_vm_create(uint32_t nr_vcpus, uint64_t extra_pages,
				     void *guest_code, struct kvm_vcpu *vcpus[]);

/* Moves a memslot with all that it holds into private memory. */
void vm_mem_slot_make_private(struct kvm_vm *vm, uint32_t slot);

/* A VM of one vCPU and one memslot of private memory, mapped where it lies. */
struct private_mem {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	uint64_t gpa;
	uint64_t size;
	void *shared;
	int memfd;
};

void __private_mem_create(struct private_mem *mem, uint64_t gpa, uint64_t size,
			  uint64_t extra_pages, uint64_t memfd_flags);
void private_mem_create(struct private_mem *mem, uint64_t gpa, uint64_t size,
			uint64_t extra_pages);
void private_mem_free(struct private_mem *mem);

/* Deletes the memslot if @size is 0, or else adds it. */
void private_mem_set_slot(struct private_mem *mem, uint64_t size);

/*
 * A case of kselftest_harness.h that has for self what its helpers take: a member
 * of its fixture, which has the name of its type.
 */
#define TEST_F_MEMBER(fixture, name, type, timeout)			\
static void fixture##_test_##name(struct type *self);			\
TEST_F_TIMEOUT(fixture, name, timeout)					\
{									\
	this_case = _metadata;						\
	fixture##_test_##name(&self->type);				\
}									\
static void fixture##_test_##name(struct type *self)

/* A memory cgroup of the test's own. */
struct memcg {
	int limit_fd;
	char mnt[64];
	char dir[96];
};

void memcg_create(struct memcg *cg);
void memcg_destroy(struct memcg *cg);
void memcg_enter(struct memcg *cg);
void memcg_limit(struct memcg *cg, long bytes);
long memcg_usage(struct memcg *cg);

/*
 * The first page frame of what the file gets at @offset, as one folio: from @data, or
 * allocated if that is NULL.  The calling process has to be in the group.
 */
uint64_t memcg_take_and_find(struct memcg *cg, int memfd, off_t offset, const void *data,
			     size_t size);

/*
 * Reads page frames of the host that adjoin, through a descriptor of /proc/kcore; at
 * once, for to look where they are takes long.
 */
bool read_frames(int kcore, uint64_t pfn, int nr, void *buf);

/* Of each page frame: whether it is the first of a folio in a file, charged to the group. */
uint8_t *memcg_find_file_pages(struct memcg *cg, uint64_t *nr);

/*
 * Has the host suffer a memory error: @name is "corrupt-pfn", or "unpoison-pfn" to
 * put an end to it.  Returns an errno.
 */
int __memory_error(const char *name, uint64_t pfn);
void memory_error(const char *name, uint64_t pfn);

/* Gives back memory that is not zero, in pages of both sizes. */
void dirty_free_memory(size_t size);

/* A line of /proc/meminfo in bytes, one of /proc/vmstat. */
long meminfo_bytes(const char *name);
long vmstat_value(const char *name);

static inline bool host_has_huge_pages(void)
{
	return !access("/sys/kernel/mm/transparent_hugepage", F_OK);
}

/* Memory in files, other than shmem's, that is in huge pages. */
static inline long file_huge_bytes(void)
{
	return meminfo_bytes("FileHugePages");
}

/*
 * Makes slab allocations of the calling thread fail between begin and end, all but the
 * first ones, of @space bytes; setting it up returns false where the kernel cannot do
 * that.
 */
bool failslab_setup(void);
void failslab_begin(int space);
void failslab_end(void);

/* Keeps the calling thread, and what it starts, on the CPU that it is on. */
void stay_on_cpu(void);

/*
 * Has a page of a huge one suffer a memory error while that cannot be split, for which
 * failslab has to be set up.  What is not split cannot be unpoisoned.
 */
void memory_error_without_split(uint64_t pfn);

/*
 * Memory that is free but not in one piece: next to nothing of it is a free block of
 * 2 MiB, and what lies in between cannot be moved.
 */
struct fragments {
	int memfd;
};

bool memory_fragment(struct fragments *f, struct kvm_vm *vm);

/* The same, but what is free is in blocks, nearly all of which hold other things. */
bool memory_dirty(struct fragments *f);

void memory_unfragment(struct fragments *f);

/* Fails the test unless all of @val gets into the file @name in @dir. */
void dir_write(const char *dir, const char *name, const char *val);

/* As for a type of VM whose private memory the host cannot read; of all VMs, while set. */
bool set_private_mem_inaccessible(bool inaccessible);
#define NO_SWITCH	"the kernel has no private_mem_inaccessible"

/* Emulates every instruction behind this prefix, while the parameter is set. */
#define FORCED_EMULATION	"ud2; .ascii \"kvm\"; "
int forced_emulation_set(int val);

static inline bool private_mem_supported(void)
{
	return kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM);
}

#endif /* SELFTEST_KVM_PRIVATE_MEM_H */
