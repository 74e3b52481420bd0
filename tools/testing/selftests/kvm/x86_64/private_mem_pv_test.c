// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual features: the guest names a page to KVM, and KVM reads and writes
 * there by itself from then on.  Where the page is private, that is private
 * memory, for as long as the page is.
 *
 * Each feature is a struct of a few functions, and each rule one case that is run
 * with all of them.  The half of the page that the guest does not see holds what
 * would be believed if KVM looked there, and may not change.
 *
 * There are two vCPUs: one has the feature, the other looks at the page, so that
 * looking has no effect.
 */
#define _GNU_SOURCE
#include <asm/pvclock.h>
#include <linux/falloc.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <time.h>

#include "apic.h"
#include "kvm_harness.h"
#include "private_mem.h"

#define SLOT		PRIVATE_MEM_SLOT
#define GPA		PRIVATE_MEM_GPA
#define NR_PAGES	4
#define SIZE		(NR_PAGES * PAGE_SIZE)

/* Where the guest tells KVM to look, and what is compared before and behind it. */
#define AT		(GPA + 0x340)
#define AROUND		64
#define AROUND_WORDS	(3 * AROUND / sizeof(uint64_t))

/* Pages of the host that can be absent, and an address with nothing behind it. */
#define ABSENT_SLOT	(SLOT + 1)
#define ABSENT_GPA	(GPA + 0x100000)
#define NR_ABSENT	64
#define ABSENT_SIZE	(NR_ABSENT * PAGE_SIZE)
#define NOWHERE		(GPA + 0x200000)

#define EOI_VECTOR	0x40
#define APF_VECTOR	0x50

/* Makes an even version, and flags that have all bits in question. */
#define DECOY		0x5a

/* In seconds.  What takes milliseconds has stopped if it takes this long. */
#define TOO_LONG	60

struct pv;

struct feature {
	/* Why this machine has none; else NULL. */
	const char *(*missing)(struct pv *self);
	/* The guest names the page. */
	void (*arm)(struct pv *self);
	/* The guest puts there what it starts from, other values in each round. */
	void (*seed)(struct pv *self);
	/* KVM has to do with the page, perhaps without success. */
	void (*use)(struct pv *self);
	/* What the guest finds, after success. */
	void (*check)(struct pv *self);
	/* Whether the guest is told that KVM cannot reach what it names. */
	bool refuses;
	/* Whether KVM has hold of the page, which a conversion takes away. */
	bool held;
};

struct pv {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct kvm_vcpu *eye;
	uint64_t stack;
	bool private;
	int memfd;
	uint8_t *shared;
	uint8_t before[SIZE];

	uint64_t at;
	int round;
	/* KVM_RUN may end with a fault, for the page may be out of reach. */
	bool gone;
	/* The exception, or errno, that naming the page gave. */
	uint64_t refused;

	/* What use() leaves for check(). */
	uint64_t seen[4];

	uint8_t *absent;
	int nr_absent;
	int uffd;
	bool use_ended;
};

/* The test's view of one of the guest's variables. */
#define guest_view(self, var)	((typeof(var) *)addr_gva2hva((self)->vm, (vm_vaddr_t)&(var)))

static uint64_t guest_nothing(void)
{
	return 0;
}

static uint64_t guest_wrmsr(uint64_t msr, uint64_t val)
{
	return wrmsr_safe(msr, val);
}

/*
 * Runs the vCPU that has the feature.  Where the page may be gone, the guest may
 * run into that.
 */
static uint64_t call(struct pv *self, void *function, uint64_t arg0, uint64_t arg1)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	int ret;

	vcpu_call_set(vcpu, self->stack, function, arg0, arg1, 0);
	ret = vcpu_access_run(vcpu);
	if (!ret && vcpu_is_guest_call(vcpu))
		return vcpu_access_result(vcpu);

	TEST_ASSERT(self->gone, "The guest did not get to the end, rc: %i errno: %i exit: %u (%s)",
		    ret, errno, vcpu->run->exit_reason, exit_reason_str(vcpu->run->exit_reason));
	if (!ret && vcpu->run->exit_reason == KVM_EXIT_MMIO) {
		vcpu_run_complete_io(vcpu);
		return 0;
	}
	vcpu_assert_private_fault(vcpu, ret, errno, self->at);
	return 0;
}

static void enter(struct pv *self)
{
	call(self, guest_nothing, 0, 0);
}

static void arm_msr(struct pv *self, uint64_t msr, uint64_t val)
{
	self->refused = call(self, guest_wrmsr, msr, val);
}

/* The guest's memory at @at, as it sees it. */
static void look(struct pv *self, uint64_t at, void *data, size_t size)
{
	uint64_t val;
	int i;

	for (i = 0; i < size; i += sizeof(val)) {
		val = vcpu_read_u64(self->eye, at + i);
		memcpy(data + i, &val, sizeof(val));
	}
}

static void put(struct pv *self, const void *data, size_t size)
{
	uint64_t val;
	int i;

	for (i = 0; i < size; i += sizeof(val)) {
		memcpy(&val, data + i, sizeof(val));
		vcpu_write_u64(self->eye, self->at + i, val);
	}
}

static void put_u64(struct pv *self, uint64_t val)
{
	put(self, &val, sizeof(val));
}

static uint64_t look_u64(struct pv *self)
{
	uint64_t val;

	look(self, self->at, &val, sizeof(val));
	return val;
}

/* Version numbers of each round are other ones, and even. */
static uint32_t first_version(struct pv *self)
{
	return self->round * 10000;
}

static void check_version(struct pv *self, uint32_t version)
{
	TEST_ASSERT(version > first_version(self) && version < first_version(self) + 10000 &&
		    !(version & 1), "Expected an even version a little over %u, got %u",
		    first_version(self), version);
}

/*
 * kvmclock.
 */

static void arm_clock(struct pv *self)
{
	arm_msr(self, MSR_KVM_SYSTEM_TIME_NEW, self->at | KVM_MSR_ENABLED);
}

static void arm_old_clock(struct pv *self)
{
	arm_msr(self, MSR_KVM_SYSTEM_TIME, self->at | KVM_MSR_ENABLED);
}

static void seed_clock(struct pv *self)
{
	struct pvclock_vcpu_time_info clock = { .version = first_version(self) };

	put(self, &clock, sizeof(clock));
}

static uint64_t clock_set_to(int round)
{
	return round * 1000 * NSEC_PER_SEC;
}

/* All vCPUs are to update their clocks when they run. */
static void set_clock(struct pv *self, int round)
{
	struct kvm_clock_data data = { .clock = clock_set_to(round) };

	vm_ioctl(self->vm, KVM_SET_CLOCK, &data);
}

static void use_clock(struct pv *self)
{
	set_clock(self, self->round);
	enter(self);
}

static void check_clock(struct pv *self)
{
	struct pvclock_vcpu_time_info clock;

	look(self, self->at, &clock, sizeof(clock));
	check_version(self, clock.version);
	TEST_ASSERT(clock.system_time >= clock_set_to(self->round) &&
		    clock.system_time < clock_set_to(self->round + 1),
		    "Expected a time a little over %lu, got %lu", clock_set_to(self->round),
		    clock.system_time);
	TEST_ASSERT(clock.tsc_to_system_mul,
		    "Expected a clock, got no multiplier");
	TEST_ASSERT(!(clock.flags & PVCLOCK_GUEST_STOPPED),
		    "Nobody said that the guest was stopped, got flags 0x%x", clock.flags);
}

static uint8_t clock_flags(struct pv *self)
{
	struct pvclock_vcpu_time_info clock;

	look(self, self->at, &clock, sizeof(clock));
	return clock.flags;
}

/* KVM says that the guest was stopped until the guest takes the flag away. */
static void use_stopped(struct pv *self)
{
	struct pvclock_vcpu_time_info clock = { .version = first_version(self) };

	__vcpu_ioctl(self->vcpu, KVM_KVMCLOCK_CTRL, NULL);
	use_clock(self);
	if (self->gone)
		return;

	self->seen[0] = clock_flags(self);
	use_clock(self);
	self->seen[1] = clock_flags(self);
	put(self, &clock, sizeof(clock));
	use_clock(self);
}

static void check_stopped(struct pv *self)
{
	TEST_ASSERT(self->seen[0] & PVCLOCK_GUEST_STOPPED,
		    "Expected flags that say the guest was stopped, got 0x%lx", self->seen[0]);
	TEST_ASSERT(self->seen[1] & PVCLOCK_GUEST_STOPPED,
		    "Expected the flag to stay until the guest takes it away, got 0x%lx",
		    self->seen[1]);
	check_clock(self);
}

/*
 * Wall clock, which is written once when the guest asks for it.
 */

struct wall_clock {
	struct pvclock_wall_clock wc;
	uint32_t pad;
};

static void seed_wall_clock(struct pv *self)
{
	struct wall_clock wall = { .wc.version = first_version(self) };

	put(self, &wall, sizeof(wall));
}

static void use_wall_clock(struct pv *self)
{
	arm_msr(self, MSR_KVM_WALL_CLOCK_NEW, self->at);
}

static void use_old_wall_clock(struct pv *self)
{
	arm_msr(self, MSR_KVM_WALL_CLOCK, self->at);
}

static void check_wall_clock_values(struct pv *self, struct pvclock_wall_clock *wc)
{
	time_t now = time(NULL);

	TEST_ASSERT(wc->version == first_version(self) + 2, "Expected version %u, got %u",
		    first_version(self) + 2, wc->version);
	TEST_ASSERT(wc->sec <= now && wc->sec > now - 86400 && wc->nsec < NSEC_PER_SEC,
		    "Expected a time in the 24 hours before %lu, got %u s %u ns", now, wc->sec,
		    wc->nsec);
}

static void check_wall_clock(struct pv *self)
{
	struct wall_clock wall;

	look(self, self->at, &wall, sizeof(wall));
	check_wall_clock_values(self, &wall.wc);
	TEST_ASSERT(!wall.pad, "KVM wrote 0x%x behind the wall clock", wall.pad);
}

/*
 * Steal time.
 */

static void arm_steal_time(struct pv *self)
{
	arm_msr(self, MSR_KVM_STEAL_TIME, self->at | KVM_MSR_ENABLED);
}

static uint64_t first_steal(struct pv *self)
{
	return (uint64_t)self->round << 50;
}

static void seed_steal_time(struct pv *self)
{
	struct kvm_steal_time st = {
		.version = first_version(self),
		.steal = first_steal(self),
		.preempted = KVM_VCPU_PREEMPTED,
	};

	put(self, &st, sizeof(st));
}

static void check_steal_time(struct pv *self)
{
	struct kvm_steal_time st;

	look(self, self->at, &st, sizeof(st));
	check_version(self, st.version);
	TEST_ASSERT(st.steal >= first_steal(self) && st.steal < first_steal(self) + (1ull << 50),
		    "Expected a little more than 0x%lx, got 0x%llx", first_steal(self), st.steal);
	TEST_ASSERT(!st.preempted, "The vCPU ran, and is said to be preempted: 0x%x",
		    st.preempted);
	TEST_ASSERT(!st.flags, "Expected no flags, got 0x%x", st.flags);
}

#define NR_FLUSHES	20

static void seed_preempted(struct pv *self, uint8_t preempted)
{
	struct kvm_steal_time st = { .version = first_version(self), .preempted = preempted };

	put(self, &st, sizeof(st));
}

static uint64_t flushes(struct pv *self, uint8_t preempted)
{
	uint64_t before = vcpu_stat(self->vcpu, "tlb_flush");
	int i;

	for (i = 0; i < NR_FLUSHES; i++) {
		if (!self->gone)
			seed_preempted(self, preempted);
		enter(self);
	}
	return vcpu_stat(self->vcpu, "tlb_flush") - before;
}

/* What another vCPU wants of one that is preempted. */
static void use_steal_flush(struct pv *self)
{
	self->seen[0] = flushes(self, KVM_VCPU_PREEMPTED | KVM_VCPU_FLUSH_TLB);
	self->seen[1] = flushes(self, KVM_VCPU_PREEMPTED);
}

static void check_steal_flush(struct pv *self)
{
	struct kvm_steal_time st;

	TEST_ASSERT(self->seen[0] >= NR_FLUSHES, "Asked for %d flushes of the TLB, got %lu",
		    NR_FLUSHES, self->seen[0]);
	TEST_ASSERT(self->seen[1] < NR_FLUSHES, "Asked for no flush of the TLB, got %lu",
		    self->seen[1]);
	look(self, self->at, &st, sizeof(st));
	TEST_ASSERT(!st.preempted, "The vCPU ran, and has this to do still: 0x%x", st.preempted);
}

/*
 * End of interrupt.
 */

#define MAX_INTERRUPTS	50

struct guest_eoi {
	uint32_t nr;
	uint32_t word;
	bool keep;
};

static struct guest_eoi guest_eoi;

/*
 * The guest clears the bit, which stands for the EOI; or leaves it, for none. KVM may
 * take the bit back until then: what counts is what there was to clear.
 */
static void guest_eoi_handler(struct ex_regs *regs)
{
	uint32_t *pv_eoi = (uint32_t *)AT;
	bool set;

	guest_eoi.nr++;
	guest_eoi.word = READ_ONCE(*pv_eoi);
	if (guest_eoi.keep && guest_eoi.word)
		return;

	asm volatile("btrl %2, %0" : "+m" (*pv_eoi), "=@ccc" (set) : "i" (KVM_PV_EOI_BIT));
	if (!set) {
		guest_eoi.word = 0;
		x2apic_write_reg(APIC_EOI, 0);
	}
}

static uint64_t guest_interrupt_self(uint64_t vector)
{
	x2apic_write_reg(APIC_ICR, APIC_DEST_SELF | APIC_INT_ASSERT | APIC_DM_FIXED | vector);
	guest_take_interrupts();
	return 0;
}

/* The ends of all interrupts that are still in service. */
static uint64_t guest_end_interrupts(void)
{
	int i;

	for (i = 0; i < 4; i++) {
		x2apic_write_reg(APIC_EOI, 0);
		guest_take_interrupts();
	}
	return 0;
}

static uint64_t guest_enable_apic(void)
{
	x2apic_enable();
	return 0;
}

static void arm_eoi(struct pv *self)
{
	vm_install_exception_handler(self->vm, EOI_VECTOR, guest_eoi_handler);
	call(self, guest_enable_apic, 0, 0);
	arm_msr(self, MSR_KVM_PV_EOI_EN, self->at | KVM_MSR_ENABLED);
}

static void seed_eoi(struct pv *self)
{
	call(self, guest_end_interrupts, 0, 0);
	put_u64(self, 0);
}

static bool eoi_in_service(struct pv *self)
{
	struct kvm_lapic_state lapic;
	uint32_t isr;

	vcpu_ioctl(self->vcpu, KVM_GET_LAPIC, &lapic);
	memcpy(&isr, lapic.regs + 0x100 + EOI_VECTOR / 32 * 0x10, sizeof(isr));
	return isr & BIT(EOI_VECTOR % 32);
}

/*
 * KVM offers the bit for as long as the guest runs.  Where something takes the vCPU
 * out before the guest has looked, there is an ordinary interrupt.
 */
static uint64_t interrupt(struct pv *self, bool keep)
{
	struct guest_eoi *eoi = guest_view(self, guest_eoi);
	int i;

	memset(eoi, 0, sizeof(*eoi));
	eoi->keep = keep;
	for (i = 0; i < (self->gone ? 2 : MAX_INTERRUPTS) && !eoi->word; i++)
		call(self, guest_interrupt_self, EOI_VECTOR, 0);
	return eoi->word;
}

static void use_eoi(struct pv *self)
{
	self->seen[0] = interrupt(self, false);
	self->seen[1] = eoi_in_service(self);
	self->seen[2] = interrupt(self, true);
	self->seen[3] = eoi_in_service(self);
}

static void check_eoi(struct pv *self)
{
	TEST_ASSERT(self->seen[0] == KVM_PV_EOI_ENABLED,
		    "Expected 1 in the interrupt, the guest found 0x%lx", self->seen[0]);
	TEST_ASSERT(!self->seen[1], "The guest cleared the bit, KVM saw no EOI");
	TEST_ASSERT(self->seen[2] == KVM_PV_EOI_ENABLED,
		    "Expected 1 in the second interrupt, the guest found 0x%lx", self->seen[2]);
	TEST_ASSERT(self->seen[3], "The guest left the bit alone, KVM saw an EOI");
	TEST_ASSERT(!look_u64(self), "Expected 0 behind the interrupt, got 0x%lx",
		    look_u64(self));
}

/*
 * Asynchronous page faults.  The page that is absent is a shared one; what KVM has
 * to say about it goes to the page under test.
 */

struct guest_apf {
	uint32_t flags;
	uint32_t token;
	uint32_t ready;
	bool stop;
};

static struct guest_apf guest_apf;

static void guest_fault_handler(struct ex_regs *regs)
{
	struct kvm_vcpu_pv_apf_data *apf = (void *)AT;
	uint64_t cr2;

	asm volatile("mov %%cr2, %0" : "=r" (cr2));
	guest_apf.flags = READ_ONCE(apf->flags);
	guest_apf.token = cr2;
	WRITE_ONCE(apf->flags, 0);

	/* Until the page is there, or the test has waited enough. */
	while (!READ_ONCE(guest_apf.ready) && !READ_ONCE(guest_apf.stop))
		guest_take_interrupts();
}

static void guest_ready_handler(struct ex_regs *regs)
{
	struct kvm_vcpu_pv_apf_data *apf = (void *)AT;
	uint32_t token = READ_ONCE(apf->token);

	WRITE_ONCE(apf->token, 0);
	wrmsr(MSR_KVM_ASYNC_PF_ACK, 1);
	x2apic_write_reg(APIC_EOI, 0);

	/* All bits wake up whoever waits, when the feature is enabled. */
	if (token && ~token)
		WRITE_ONCE(guest_apf.ready, token);
}

static uint64_t guest_touch(uint64_t gva)
{
	asm volatile(INTERRUPTIBLE("mov (%0), %%rax") : : "r" (gva) : "memory", "cc", "rax");
	return 0;
}

/* Takes what is still to come from earlier. */
static uint64_t guest_take_all_ready(void)
{
	struct kvm_vcpu_pv_apf_data *apf = (void *)AT;
	int i;

	for (i = 0; i < 8; i++) {
		WRITE_ONCE(apf->flags, 0);
		WRITE_ONCE(apf->token, 0);
		wrmsr(MSR_KVM_ASYNC_PF_ACK, 1);
		guest_take_interrupts();
	}
	return 0;
}

static const char *apf_missing(struct pv *self)
{
	self->uffd = userfaultfd_open();
	return self->uffd < 0 ? "no userfaultfd" : NULL;
}

static void absent_create(struct pv *self)
{
	if (self->absent)
		return;

	self->absent = shared_mem_alloc(ABSENT_SIZE);
	userfaultfd_empty(self->uffd, self->absent, ABSENT_SIZE);
	vm_set_user_memory_region(self->vm, ABSENT_SLOT, 0, ABSENT_GPA, ABSENT_SIZE,
				  self->absent);
	virt_map(self->vm, ABSENT_GPA, ABSENT_GPA, NR_ABSENT);
}

static void arm_apf(struct pv *self)
{
	absent_create(self);
	vm_install_exception_handler(self->vm, PF_VECTOR, guest_fault_handler);
	vm_install_exception_handler(self->vm, APF_VECTOR, guest_ready_handler);
	call(self, guest_enable_apic, 0, 0);
	call(self, guest_wrmsr, MSR_KVM_ASYNC_PF_INT, APF_VECTOR);
	arm_msr(self, MSR_KVM_ASYNC_PF_EN, self->at | KVM_ASYNC_PF_ENABLED |
		KVM_ASYNC_PF_SEND_ALWAYS | KVM_ASYNC_PF_DELIVERY_AS_INT);
}

static void seed_apf(struct pv *self)
{
	call(self, guest_take_all_ready, 0, 0);
	put_u64(self, 0);
}

/* Has the page there when KVM asks for it, and sees how the guest takes it. */
static void *serve_absent(void *data)
{
	struct pv *self = data;
	struct guest_apf *apf = guest_view(self, guest_apf);
	struct uffdio_zeropage zero = { .range.len = PAGE_SIZE };
	struct pollfd pollfd = { .fd = self->uffd, .events = POLLIN };
	struct uffd_msg msg;
	int ms;

	while (poll(&pollfd, 1, 1) < 1)
		if (READ_ONCE(self->use_ended))
			return NULL;
	TEST_ASSERT(read(self->uffd, &msg, sizeof(msg)) == sizeof(msg) &&
		    msg.event == UFFD_EVENT_PAGEFAULT, "Expected a fault on the absent page");
	zero.range.start = msg.arg.pagefault.address & PAGE_MASK;
	TEST_ASSERT(!ioctl(self->uffd, UFFDIO_ZEROPAGE, &zero),
		    "UFFDIO_ZEROPAGE failed, errno: %i", errno);

	for (ms = self->gone ? 20 : 5000; ms && !READ_ONCE(self->use_ended); ms--)
		usleep(1000);
	WRITE_ONCE(apf->stop, true);
	return NULL;
}

static void use_apf(struct pv *self)
{
	struct guest_apf *apf = guest_view(self, guest_apf);
	uint64_t offset = self->nr_absent++ % NR_ABSENT * PAGE_SIZE;
	pthread_t thread;

	if (self->gone)
		call(self, guest_take_all_ready, 0, 0);

	/* Not the last one: KVM may still wait until it can tell that it is ready. */
	memset(apf, 0, sizeof(*apf));
	self->use_ended = false;
	madvise(self->absent + offset, PAGE_SIZE, MADV_DONTNEED);
	pthread_create(&thread, NULL, serve_absent, self);
	call(self, guest_touch, ABSENT_GPA + offset, 0);
	WRITE_ONCE(self->use_ended, true);
	pthread_join(thread, NULL);
}

static void check_apf(struct pv *self)
{
	struct guest_apf *apf = guest_view(self, guest_apf);

	TEST_ASSERT(apf->token, "Expected the guest to be told that a page is not present");
	TEST_ASSERT(apf->flags == KVM_PV_REASON_PAGE_NOT_PRESENT,
		    "Expected flags that say a page is not present, the guest found 0x%x",
		    apf->flags);
	TEST_ASSERT(apf->ready == apf->token,
		    "Expected token 0x%x when the page was ready, the guest found 0x%x",
		    apf->token, apf->ready);
	TEST_ASSERT(!look_u64(self), "The guest took all, now there is 0x%lx", look_u64(self));
}

/*
 * The clocks of the host and the guest at the same moment.
 */

static uint64_t pair_clocks(struct pv *self, uint64_t at)
{
	vcpu_call_set(self->vcpu, self->stack, kvm_hypercall, KVM_HC_CLOCK_PAIRING, at,
		      KVM_CLOCK_PAIRING_WALLCLOCK);
	TEST_ASSERT(!vcpu_access_run(self->vcpu) && vcpu_is_guest_call(self->vcpu),
		    "The hypercall did not complete");
	return vcpu_access_result(self->vcpu);
}

static const char *pairing_missing(struct pv *self)
{
	return pair_clocks(self, NOWHERE) == (uint64_t)-KVM_EOPNOTSUPP ?
		"the host's clock is not its TSC" : NULL;
}

static void arm_pairing(struct pv *self)
{
	self->refused = -pair_clocks(self, self->at);
}

static void seed_pairing(struct pv *self)
{
	struct kvm_clock_pairing pairing;

	memset(&pairing, self->round, sizeof(pairing));
	put(self, &pairing, sizeof(pairing));
}

static void use_pairing(struct pv *self)
{
	self->seen[0] = pair_clocks(self, self->at);
}

static void check_pairing(struct pv *self)
{
	struct kvm_clock_pairing pairing;
	struct timespec now;

	/* Unlike time(), which may be a tick behind. */
	clock_gettime(CLOCK_REALTIME, &now);
	TEST_ASSERT(!self->seen[0], "The hypercall failed: %ld", self->seen[0]);
	look(self, self->at, &pairing, sizeof(pairing));
	TEST_ASSERT(pairing.sec <= now.tv_sec && pairing.sec > now.tv_sec - 3600 &&
		    pairing.nsec < NSEC_PER_SEC && !pairing.flags,
		    "Expected a time in the hour before %lu, got %lld s %lld ns flags 0x%x",
		    now.tv_sec, pairing.sec, pairing.nsec, pairing.flags);
}

/*
 * The priority of interrupts, which a guest sets in memory.
 */

static void arm_vapic(struct pv *self)
{
	struct kvm_vapic_addr va = { .vapic_addr = self->at };

	call(self, guest_enable_apic, 0, 0);
	self->refused = __vcpu_ioctl(self->vcpu, KVM_SET_VAPIC_ADDR, &va) ? errno : 0;
}

static uint8_t tpr_of_guest(struct pv *self)
{
	return 0x10 * self->round;
}

static uint8_t tpr_of_vmm(struct pv *self)
{
	return 0x80 + 0x10 * self->round;
}

static uint64_t guest_write_u32(uint64_t gva, uint64_t val)
{
	WRITE_ONCE(*(uint32_t *)gva, val);
	return 0;
}

static uint64_t guest_read_u32(uint64_t gva)
{
	return READ_ONCE(*(uint32_t *)gva);
}

static void seed_vapic(struct pv *self)
{
	put_u64(self, 0);
}

static void use_vapic(struct pv *self)
{
	struct kvm_lapic_state lapic;

	call(self, guest_write_u32, self->at, tpr_of_guest(self));
	vcpu_ioctl(self->vcpu, KVM_GET_LAPIC, &lapic);
	self->seen[0] = (uint8_t)lapic.regs[APIC_TASKPRI];

	lapic.regs[APIC_TASKPRI] = tpr_of_vmm(self);
	vcpu_ioctl(self->vcpu, KVM_SET_LAPIC, &lapic);
	self->seen[1] = call(self, guest_read_u32, self->at, 0);
}

static void check_vapic(struct pv *self)
{
	TEST_ASSERT(self->seen[0] == tpr_of_guest(self),
		    "The guest set the priority to 0x%x, it is 0x%lx", tpr_of_guest(self),
		    self->seen[0]);
	TEST_ASSERT(self->seen[1] == tpr_of_vmm(self),
		    "The VMM set the priority to 0x%x, the guest found 0x%lx", tpr_of_vmm(self),
		    self->seen[1]);
}

static const char *nothing_missing(struct pv *self)
{
	return NULL;
}

static void arm_nothing(struct pv *self)
{
}

static const char *eoi_missing(struct pv *self)
{
	return lazy_eoi_missing();
}

FIXTURE(pv) {
	struct pv pv;
};

FIXTURE_VARIANT(pv) {
	struct feature f;
};

FIXTURE_VARIANT_ADD(pv, kvmclock) {
	.f = { nothing_missing, arm_clock, seed_clock, use_clock,
	       check_clock, .held = true },
};

FIXTURE_VARIANT_ADD(pv, kvmclock_old) {
	.f = { nothing_missing, arm_old_clock, seed_clock, use_clock,
	       check_clock, .held = true },
};

FIXTURE_VARIANT_ADD(pv, stopped_flag) {
	.f = { nothing_missing, arm_clock, seed_clock, use_stopped,
	       check_stopped, .held = true },
};

FIXTURE_VARIANT_ADD(pv, wall_clock) {
	.f = { nothing_missing, arm_nothing, seed_wall_clock, use_wall_clock,
	       check_wall_clock },
};

FIXTURE_VARIANT_ADD(pv, wall_clock_old) {
	.f = { nothing_missing, arm_nothing, seed_wall_clock, use_old_wall_clock,
	       check_wall_clock },
};

FIXTURE_VARIANT_ADD(pv, steal_time) {
	.f = { nothing_missing, arm_steal_time, seed_steal_time, enter,
	       check_steal_time, .held = true },
};

FIXTURE_VARIANT_ADD(pv, steal_flush) {
	.f = { nothing_missing, arm_steal_time, seed_steal_time, use_steal_flush,
	       check_steal_flush, .held = true },
};

FIXTURE_VARIANT_ADD(pv, eoi) {
	.f = { eoi_missing, arm_eoi, seed_eoi, use_eoi,
	       check_eoi, .refuses = true },
};

FIXTURE_VARIANT_ADD(pv, async_pf) {
	.f = { apf_missing, arm_apf, seed_apf, use_apf,
	       check_apf, .refuses = true },
};

FIXTURE_VARIANT_ADD(pv, clock_pairing) {
	.f = { pairing_missing, arm_pairing, seed_pairing, use_pairing,
	       check_pairing, .refuses = true },
};

FIXTURE_VARIANT_ADD(pv, vapic) {
	.f = { nothing_missing, arm_vapic, seed_vapic, use_vapic,
	       check_vapic, .refuses = true },
};

static void too_long(int sig)
{
	static const char msg[] = "What takes milliseconds does not end\n";

	if (write(STDERR_FILENO, msg, sizeof(msg) - 1))
		_exit(KSFT_FAIL);
}

static void set_slot(struct pv *self, uint64_t size)
{
	vm_set_user_memory_region2(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, size, self->shared,
				   self->memfd, 0);
}

static void pv_create(struct pv *self, bool private)
{
	struct kvm_vcpu *vcpus[2];
	struct kvm_regs regs;
	int i;

	/* The rest of a case that did not end by itself. */
	set_private_mem_inaccessible(false);

	signal(SIGALRM, too_long);
	alarm(TOO_LONG);

	memset(self, 0, sizeof(*self));
	self->private = private;
	self->at = AT;
	self->vm = __vm_create_with_vcpus(VM_SHAPE(private ? KVM_X86_SW_PROTECTED_VM :
						   KVM_X86_DEFAULT_VM),
					  ARRAY_SIZE(vcpus), NR_PAGES + NR_ABSENT, NULL, vcpus);
	self->vcpu = vcpus[0];
	self->eye = vcpus[1];
	vcpu_regs_get(self->vcpu, &regs);
	self->stack = regs.rsp;

	vm_init_descriptor_tables(self->vm);
	for (i = 0; i < ARRAY_SIZE(vcpus); i++)
		vcpu_init_descriptor_tables(vcpus[i]);

	self->shared = shared_mem_alloc(SIZE);
	virt_map(self->vm, GPA, GPA, NR_PAGES);
	if (private) {
		self->memfd = vm_create_guest_memfd(self->vm, SIZE, 0);
		set_slot(self, SIZE);
		vm_mem_set_private(self->vm, GPA, SIZE);
		memset(self->shared, DECOY, SIZE);
	} else {
		self->memfd = -1;
		vm_set_user_memory_region(self->vm, SLOT, 0, GPA, SIZE, self->shared);
	}
	memcpy(self->before, self->shared, SIZE);
}

static void pv_free(struct pv *self)
{
	if (self->memfd >= 0)
		close(self->memfd);
	kvm_vm_free(self->vm);
	munmap(self->shared, SIZE);
	if (self->absent)
		munmap(self->absent, ABSENT_SIZE);
	if (self->uffd > 0)
		close(self->uffd);
}

/* Since it went out of use. */
static void check_shared_half(struct pv *self)
{
	int i;

	for (i = 0; i < SIZE; i++)
		TEST_ASSERT(self->shared[i] == self->before[i],
			    "KVM wrote 0x%02x to the shared half of a private page, at 0x%x of it",
			    self->shared[i], i);
}

static void convert(struct pv *self, bool to_private)
{
	vm_set_memory_attributes(self->vm, GPA, PAGE_SIZE,
				 to_private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0);
	if (to_private)
		memcpy(self->before, self->shared, SIZE);
}

/* KVM does what the feature is for, in the half of the page that the guest sees. */
static void round_of(struct pv *self, const struct feature *f)
{
	self->round++;
	f->seed(self);
	f->use(self);
	f->check(self);
}

/* Nothing comes of it, and nothing goes wrong. */
static void use_in_vain(struct pv *self, const struct feature *f)
{
	bool gone = self->gone;
	int i;

	self->gone = true;
	for (i = 0; i < 3; i++)
		f->use(self);
	self->gone = gone;
}

#define TEST_PV(name)								\
static void pv_##name##_of(struct pv *self, const struct feature *f);		\
TEST_F(pv, name)								\
{										\
	const struct feature *f = &variant->f;					\
	const char *missing = f->missing(&self->pv);				\
										\
	if (missing)								\
		SKIP(return, "%s", missing);					\
	pv_##name##_of(&self->pv, f);						\
}										\
static void pv_##name##_of(struct pv *self, const struct feature *f)

FIXTURE_SETUP(pv)
{
	pv_create(&self->pv, true);
}

FIXTURE_TEARDOWN(pv)
{
	pv_free(&self->pv);
}

static void become_ordinary(struct pv *self, const struct feature *f)
{
	pv_free(self);
	pv_create(self, false);
	TEST_ASSERT(!f->missing(self), "What was there is missing now");
}

/* That it is the memory that the other cases test. */
TEST_PV(in_ordinary_memory)
{
	become_ordinary(self, f);
	f->arm(self);
	TEST_ASSERT(!self->refused, "The guest's page was refused: %lu", self->refused);
	round_of(self, f);
	round_of(self, f);
}

TEST_PV(in_private_memory)
{
	f->arm(self);
	TEST_ASSERT(!self->refused, "The guest's page was refused: %lu", self->refused);
	round_of(self, f);
	round_of(self, f);
	check_shared_half(self);
}

TEST_PV(in_shared_page)
{
	convert(self, false);
	f->arm(self);
	TEST_ASSERT(!self->refused, "The guest's page was refused: %lu", self->refused);
	round_of(self, f);
	round_of(self, f);
	TEST_ASSERT(!guest_memfd_held(self->memfd),
		    "KVM used private memory for a shared page, the file has 0x%lx bytes",
		    guest_memfd_held(self->memfd));
}

/* The page is converted, and back; the guest does not name it anew. */
TEST_PV(converted)
{
	uint64_t private[AROUND_WORDS], now[AROUND_WORDS];

	f->arm(self);
	round_of(self, f);
	check_shared_half(self);
	look(self, AT - AROUND, private, sizeof(private));

	convert(self, false);
	round_of(self, f);

	convert(self, true);
	look(self, AT - AROUND, now, sizeof(now));
	TEST_ASSERT(!memcmp(private, now, sizeof(now)),
		    "KVM wrote to the private half of a shared page");
	round_of(self, f);
	check_shared_half(self);
}

/* What KVM writes comes to be in the page that the guest sees next. */
TEST_PV(punched)
{
	uint64_t other = 0;
	int i;

	f->arm(self);
	for (i = 0; i < 3; i++) {
		round_of(self, f);
		guest_memfd_punch(self->memfd, 0, PAGE_SIZE);

		/* Likely to be the page that was just given back. */
		if (!i)
			vcpu_write_u64(self->eye, AT + PAGE_SIZE, 0);
	}
	use_in_vain(self, f);
	round_of(self, f);
	look(self, AT + PAGE_SIZE, &other, sizeof(other));
	TEST_ASSERT(!other, "KVM wrote 0x%lx to a page that was not named to it", other);
	check_shared_half(self);
}

TEST_PV(slot_deleted)
{
	f->arm(self);
	round_of(self, f);

	set_slot(self, 0);
	use_in_vain(self, f);
	set_slot(self, SIZE);
	round_of(self, f);
	check_shared_half(self);
}

/* At the same address of the VMM's, but another file. */
TEST_PV(file_replaced)
{
	int before = self->memfd;

	f->arm(self);
	round_of(self, f);

	set_slot(self, 0);
	self->memfd = vm_create_guest_memfd(self->vm, SIZE, 0);
	set_slot(self, SIZE);
	close(before);
	round_of(self, f);
	check_shared_half(self);
}

TEST_PV(file_closed)
{
	int ret;

	f->arm(self);
	round_of(self, f);

	close(self->memfd);
	self->memfd = -1;
	use_in_vain(self, f);
	ret = __vcpu_access(self->eye, GUEST_READ, AT, 0, 0);
	vcpu_assert_private_fault(self->eye, ret, errno, AT);
	check_shared_half(self);
}

/* A guest that names an address with nothing behind it gets the same answer in any VM. */
static void name_nowhere(struct pv *self, const struct feature *f)
{
	self->at = NOWHERE;
	self->gone = true;
	f->arm(self);
	TEST_ASSERT(!!self->refused == f->refuses, "Expected the address %s, got %lu",
		    f->refuses ? "to be refused" : "not to be refused", self->refused);
}

TEST_PV(nothing_there)
{
	name_nowhere(self, f);
	become_ordinary(self, f);
	name_nowhere(self, f);
}

/* A type of VM whose private memory KVM cannot reach.  The guest still can. */
static void without_access(struct pv *self, const struct feature *f)
{
	uint64_t data[AROUND_WORDS];
	int i;

	guest_memfd_allocate(self->memfd, 0, SIZE);
	self->gone = true;
	f->arm(self);
	use_in_vain(self, f);

	look(self, AT - AROUND, data, sizeof(data));
	for (i = 0; i < ARRAY_SIZE(data); i++)
		TEST_ASSERT(!data[i], "KVM wrote 0x%lx to what it must not access", data[i]);
	check_shared_half(self);
}

TEST_F(pv, inaccessible)
{
	const struct feature *f = &variant->f;
	const char *missing = f->missing(&self->pv);

	if (missing)
		SKIP(return, "%s", missing);
	if (!set_private_mem_inaccessible(true))
		SKIP(return, NO_SWITCH);
	without_access(&self->pv, f);
	set_private_mem_inaccessible(false);
}

#define NR_CONVERSIONS	40

struct converter {
	struct pv *self;
	const struct feature *f;
	uint32_t nr_uses;
	bool done;
};

static void wait_for_use(struct converter *c)
{
	uint32_t nr = READ_ONCE(c->nr_uses);

	/* One that began before may be ending. */
	while (READ_ONCE(c->nr_uses) - nr < 2)
		usleep(100);
}

static void *convert_in_use(void *data)
{
	struct converter *c = data;
	int i;

	for (i = 0; i < NR_CONVERSIONS; i++) {
		convert(c->self, false);
		if (i & 1)
			wait_for_use(c);
		convert(c->self, true);
		if (!c->f->held)
			wait_for_use(c);
		memset(c->self->shared, i ^ DECOY, SIZE);
		memcpy(c->self->before, c->self->shared, SIZE);
		wait_for_use(c);
		check_shared_half(c->self);
	}
	WRITE_ONCE(c->done, true);
	return NULL;
}

/*
 * Once a conversion has returned, KVM has left the half that went out of use; what
 * it does not hold but looks up each time, when it has ended what it was doing.
 */
TEST_PV(converted_in_use)
{
	struct converter c = { .self = self, .f = f };
	pthread_t thread;

	f->arm(self);
	self->round++;
	self->gone = true;
	pthread_create(&thread, NULL, convert_in_use, &c);
	while (!READ_ONCE(c.done)) {
		f->use(self);
		WRITE_ONCE(c.nr_uses, c.nr_uses + 1);
	}
	pthread_join(thread, NULL);
	self->gone = false;

	round_of(self, f);
	check_shared_half(self);
}

/*
 * What is special to one feature.
 */

FIXTURE(page) {
	struct pv pv;
};

FIXTURE_SETUP(page)
{
	pv_create(&self->pv, true);
}

FIXTURE_TEARDOWN(page)
{
	pv_free(&self->pv);
}

#define TEST_PAGE(name)	TEST_F_MEMBER(page, name, pv, TEST_TIMEOUT_DEFAULT)

struct guest_loop {
	uint64_t time;
	uint64_t nr;
	bool preempted;
	bool stop;
};

static struct guest_loop guest_loop;

/* Runs one of the guest's loops until it is told to stop. */
static void *run_loop(void *data)
{
	struct pv *self = data;

	TEST_ASSERT(!vcpu_access_run(self->vcpu) && vcpu_is_guest_call(self->vcpu),
		    "The guest did not get to the end of its loop, exit: %u (%s)",
		    self->vcpu->run->exit_reason, exit_reason_str(self->vcpu->run->exit_reason));
	return NULL;
}

static void loop_start(struct pv *self, void *function, pthread_t *thread,
		       const pthread_attr_t *attr)
{
	vcpu_call_set(self->vcpu, self->stack, function, self->at, 0, 0);
	TEST_ASSERT(!pthread_create(thread, attr, run_loop, self), "pthread_create() failed");
}

static void loop_stop(struct pv *self, pthread_t thread)
{
	WRITE_ONCE(guest_view(self, guest_loop)->stop, true);
	pthread_join(thread, NULL);
}

static uint64_t guest_read_clock(uint64_t gva)
{
	struct pvclock_vcpu_time_info *clock = (void *)gva;
	uint32_t version;
	uint64_t time;

	while (!READ_ONCE(guest_loop.stop)) {
		version = READ_ONCE(clock->version);
		time = READ_ONCE(clock->system_time);
		if (!(version & 1) && version == READ_ONCE(clock->version))
			WRITE_ONCE(guest_loop.time, time);
		WRITE_ONCE(guest_loop.nr, guest_loop.nr + 1);
	}
	return 0;
}

/*
 * Time goes on in whatever half the guest sees, and KVM leaves the other one when
 * the conversion has returned.
 */
TEST_PAGE(clock_read_while_converted)
{
	struct guest_loop *loop = guest_view(self, guest_loop);
	pthread_t thread;
	int round, i;

	arm_clock(self);
	loop_start(self, guest_read_clock, &thread, NULL);
	for (round = 1; round < 60; round++) {
		bool to_private = !(round & 1);

		convert(self, to_private);
		if (to_private) {
			memset(self->shared, round ^ DECOY, SIZE);
			memcpy(self->before, self->shared, SIZE);
		}
		set_clock(self, round);
		for (i = 0; READ_ONCE(loop->time) < clock_set_to(round); i++) {
			TEST_ASSERT(i < TOO_LONG / 2 * 1000,
				    "The guest's time stands still at %lu, %s since conversion %d",
				    READ_ONCE(loop->time), to_private ? "private" : "shared",
				    round);
			usleep(1000);
		}
		if (to_private)
			check_shared_half(self);
	}
	loop_stop(self, thread);
}

/*
 * The page that comes instead of another has a clock without anybody asking for an
 * update.
 */
TEST_PAGE(clock_comes_along)
{
	struct pvclock_vcpu_time_info clock;
	int i;

	arm_clock(self);
	set_clock(self, 1);
	enter(self);
	for (i = 0; i < 3; i++) {
		switch (i) {
		case 0:
			memset(self->shared, 0, SIZE);
			convert(self, false);
			break;
		case 1:
			guest_memfd_punch(self->memfd, 0, PAGE_SIZE);
			convert(self, true);
			break;
		case 2:
			guest_memfd_punch(self->memfd, 0, PAGE_SIZE);
			break;
		}
		enter(self);
		look(self, self->at, &clock, sizeof(clock));
		TEST_ASSERT(clock.version && !(clock.version & 1) &&
			    clock.system_time >= clock_set_to(1) && clock.tsc_to_system_mul,
			    "Expected a clock in page %d, got version %u time %lu multiplier %u",
			    i, clock.version, clock.system_time, clock.tsc_to_system_mul);
	}
}

/*
 * A vCPU that is scheduled out: a thread of higher priority keeps its CPU while the
 * other vCPU looks.
 */
struct hog {
	sem_t begin;
	sem_t begun;
	bool end;
	bool quit;
	pthread_t thread;
};

static void *hog_main(void *data)
{
	struct hog *hog = data;

	for (;;) {
		sem_wait(&hog->begin);
		if (hog->quit)
			return NULL;
		sem_post(&hog->begun);
		while (!READ_ONCE(hog->end))
			;
	}
}

static void hog_begin(struct hog *hog)
{
	WRITE_ONCE(hog->end, false);
	sem_post(&hog->begin);
	sem_wait(&hog->begun);
}

static void hog_end(struct hog *hog)
{
	WRITE_ONCE(hog->end, true);
}

static void attr_on_cpu(pthread_attr_t *attr, int cpu)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	pthread_attr_init(attr);
	pthread_attr_setaffinity_np(attr, sizeof(cpus), &cpus);
}

/* The calling thread takes one CPU that it may run on, the guest another one. */
static void preempt_start(struct pv *self, struct hog *hog, void *function, pthread_t *thread)
{
	struct sched_param param = { .sched_priority = 1 };
	pthread_attr_t attr;
	cpu_set_t cpus;
	int cpu;

	stay_on_cpu();
	sched_getaffinity(getppid(), sizeof(cpus), &cpus);
	for (cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &cpus) && cpu != sched_getcpu())
			break;
	TEST_ASSERT(cpu < CPU_SETSIZE, "Two CPUs are needed");

	attr_on_cpu(&attr, cpu);
	arm_steal_time(self);
	loop_start(self, function, thread, &attr);

	memset(hog, 0, sizeof(*hog));
	sem_init(&hog->begin, 0, 0);
	sem_init(&hog->begun, 0, 0);
	pthread_attr_setinheritsched(&attr, PTHREAD_EXPLICIT_SCHED);
	pthread_attr_setschedpolicy(&attr, SCHED_FIFO);
	pthread_attr_setschedparam(&attr, &param);
	TEST_ASSERT(!pthread_create(&hog->thread, &attr, hog_main, hog),
		    "No thread with SCHED_FIFO");
}

static void preempt_stop(struct pv *self, struct hog *hog, pthread_t thread)
{
	loop_stop(self, thread);
	hog->quit = true;
	sem_post(&hog->begin);
	pthread_join(hog->thread, NULL);
}

/* It never sees itself preempted. */
static uint64_t guest_spin(uint64_t gva)
{
	struct kvm_steal_time *st = (void *)gva;

	while (!READ_ONCE(guest_loop.stop)) {
		if (READ_ONCE(st->preempted) & KVM_VCPU_PREEMPTED)
			guest_loop.preempted = true;
		WRITE_ONCE(guest_loop.nr, guest_loop.nr + 1);
	}
	return 0;
}

/* Without a look at the page. */
static uint64_t guest_spin_blind(uint64_t gva)
{
	while (!READ_ONCE(guest_loop.stop))
		WRITE_ONCE(guest_loop.nr, guest_loop.nr + 1);
	return 0;
}

static void wait_for_loop(struct pv *self)
{
	struct guest_loop *loop = guest_view(self, guest_loop);
	uint64_t nr = READ_ONCE(loop->nr);

	while (READ_ONCE(loop->nr) == nr)
		usleep(100);
}

#define MAX_PREEMPTIONS	200

static uint8_t preempted(struct pv *self)
{
	struct kvm_steal_time st;

	look(self, self->at, &st, sizeof(st));
	return st.preempted;
}

/* Where KVM cannot sleep, it marks the page that the guest sees at that moment. */
static void check_preempted(struct pv *self)
{
	pthread_t thread;
	struct hog hog;
	int i, nr = 0;

	preempt_start(self, &hog, guest_spin, &thread);
	for (i = 0; i < MAX_PREEMPTIONS && nr < 5; i++) {
		wait_for_loop(self);
		hog_begin(&hog);
		nr += !!(preempted(self) & KVM_VCPU_PREEMPTED);
		hog_end(&hog);
	}
	wait_for_loop(self);
	preempt_stop(self, &hog, thread);
	TEST_ASSERT(nr == 5, "Of %d times that the vCPU was preempted, %d were marked", i, nr);
	TEST_ASSERT(!guest_view(self, guest_loop)->preempted,
		    "The vCPU ran, and found itself preempted");
}

TEST_PAGE(preempted_in_private_memory)
{
	check_preempted(self);
	check_shared_half(self);
}

TEST_PAGE(preempted_in_shared_page)
{
	convert(self, false);
	check_preempted(self);
	TEST_ASSERT(!guest_memfd_held(self->memfd), "KVM used private memory for a shared page");
}

/* A conversion while the vCPU is out, and while it is in. */
TEST_PAGE(preempted_while_converted)
{
	pthread_t thread;
	struct hog hog;
	int i;

	preempt_start(self, &hog, guest_spin_blind, &thread);
	for (i = 0; i < MAX_PREEMPTIONS; i++) {
		bool to_private = i & 1, out = i & 2;

		wait_for_loop(self);
		if (out)
			hog_begin(&hog);
		convert(self, to_private);
		if (to_private) {
			memset(self->shared, i ^ DECOY, SIZE);
			memcpy(self->before, self->shared, SIZE);
		}
		if (!out)
			hog_begin(&hog);
		hog_end(&hog);
		wait_for_loop(self);
		if (to_private)
			check_shared_half(self);
	}
	preempt_stop(self, &hog, thread);
}

/* A hole where KVM cannot allocate a page.  The one that comes later is used. */
TEST_PAGE(preempted_while_punched)
{
	struct kvm_steal_time st;
	pthread_t thread;
	struct hog hog;
	int i;

	preempt_start(self, &hog, guest_spin_blind, &thread);
	for (i = 0; i < MAX_PREEMPTIONS; i++) {
		bool out = i & 1;

		wait_for_loop(self);
		if (out)
			hog_begin(&hog);
		guest_memfd_punch(self->memfd, 0, PAGE_SIZE);
		if (!out)
			hog_begin(&hog);
		hog_end(&hog);
	}
	wait_for_loop(self);
	preempt_stop(self, &hog, thread);

	enter(self);
	look(self, self->at, &st, sizeof(st));
	TEST_ASSERT(st.version && !(st.version & 1),
		    "Expected steal time in the new page, got version %u", st.version);
	check_shared_half(self);
}

#define NR_WALL_RACES	500

struct wall_race {
	struct pv *self;
	pthread_barrier_t barrier;
};

static void *convert_at_barriers(void *data)
{
	struct wall_race *race = data;
	int i;

	for (i = 0; i < NR_WALL_RACES; i++) {
		pthread_barrier_wait(&race->barrier);
		convert(race->self, i & 1);
		pthread_barrier_wait(&race->barrier);
	}
	return NULL;
}

static void spin_ns(int64_t ns)
{
	struct timespec start;

	clock_gettime(CLOCK_MONOTONIC, &start);
	while (timespec_to_ns(timespec_elapsed(start)) < ns)
		;
}

/*
 * The half that the guest sees in the end has all of the clock, or nothing of it if
 * the conversion came last.  What came last says when to write in the next race, so
 * that the two meet.
 */
TEST_PAGE(wall_clock_while_converted)
{
	struct wall_race race = { .self = self };
	int64_t delay[2] = { 50000, 50000 };
	struct wall_clock wall;
	pthread_t thread;
	int i;

	memset(self->shared, 0, SIZE);
	pthread_barrier_init(&race.barrier, NULL, 2);
	pthread_create(&thread, NULL, convert_at_barriers, &race);
	for (i = 0; i < NR_WALL_RACES; i++) {
		if (i & 1)
			guest_memfd_punch(self->memfd, 0, PAGE_SIZE);
		else
			memset(self->shared, 0, PAGE_SIZE);

		pthread_barrier_wait(&race.barrier);
		spin_ns(delay[i & 1]);
		vcpu_set_msr(self->vcpu, MSR_KVM_WALL_CLOCK_NEW, self->at);
		pthread_barrier_wait(&race.barrier);

		look(self, self->at, &wall, sizeof(wall));
		TEST_ASSERT(!(wall.wc.version & 1) && !wall.wc.version == !wall.wc.sec,
			    "KVM did not write all of the clock here, version %u, %u s",
			    wall.wc.version, wall.wc.sec);
		delay[i & 1] += wall.wc.version ? -2000 : 2000;
	}
	pthread_join(thread, NULL);
}

/* One word in a private page, two in a shared one; and the other way round. */
TEST_PAGE(wall_clock_across_halves)
{
	uint64_t at = GPA + PAGE_SIZE - 4, first, second;
	struct pvclock_wall_clock wc;
	int i;

	for (i = 0; i < 2; i++) {
		self->round = 1;
		vm_set_memory_attributes(self->vm, GPA, PAGE_SIZE,
					 i ? 0 : KVM_MEMORY_ATTRIBUTE_PRIVATE);
		vm_set_memory_attributes(self->vm, GPA + PAGE_SIZE, PAGE_SIZE,
					 i ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0);
		vcpu_write_u64(self->eye, at - 4, (uint64_t)first_version(self) << 32);
		vcpu_write_u64(self->eye, at + 4, 0);
		memcpy(self->before, self->shared, SIZE);
		TEST_ASSERT(!call(self, guest_wrmsr, MSR_KVM_WALL_CLOCK_NEW, at),
			    "The guest's address was refused");

		look(self, at - 4, &first, sizeof(first));
		look(self, at + 4, &second, sizeof(second));
		wc.version = first >> 32;
		wc.sec = second;
		wc.nsec = second >> 32;
		check_wall_clock_values(self, &wc);

		/* Of the shared half, only what the guest sees. */
		memcpy(self->before + (i ? 0 : PAGE_SIZE), self->shared + (i ? 0 : PAGE_SIZE),
		       PAGE_SIZE);
		check_shared_half(self);
	}
}

static void *write_wall_clock(void *arg)
{
	struct pv *self = arg;

	vcpu_set_msr(self->vcpu, MSR_KVM_WALL_CLOCK_NEW, self->at);
	return NULL;
}

/*
 * The page with the version and the seconds goes, and comes back empty, between the
 * two: while KVM waits for the page with the rest.  It is as private as before.
 */
TEST_PAGE(wall_clock_punched_midway)
{
	void *rest = self->shared + PAGE_SIZE;
	struct uffdio_zeropage zero = {
		.range = { .start = (uintptr_t)rest, .len = PAGE_SIZE },
	};
	struct pollfd pollfd = { .events = POLLIN };
	uint32_t version, sec;
	pthread_t thread;
	uint64_t seen;

	self->uffd = userfaultfd_open();
	self->at = GPA + PAGE_SIZE - sizeof(seen);
	vm_mem_set_shared(self->vm, GPA + PAGE_SIZE, PAGE_SIZE);
	userfaultfd_empty(self->uffd, rest, PAGE_SIZE);

	pollfd.fd = self->uffd;
	pthread_create(&thread, NULL, write_wall_clock, self);
	TEST_ASSERT(poll(&pollfd, 1, 10000) == 1, "Expected KVM to write the second page");
	guest_memfd_punch(self->memfd, 0, PAGE_SIZE);
	TEST_ASSERT(!ioctl(self->uffd, UFFDIO_ZEROPAGE, &zero),
		    "UFFDIO_ZEROPAGE failed, errno: %i", errno);
	pthread_join(thread, NULL);

	look(self, self->at, &seen, sizeof(seen));
	version = seen;
	sec = seen >> 32;
	TEST_ASSERT(version && !(version & 1) && sec,
		    "Expected all of the clock in the page that is there now, version %u, %u s",
		    version, sec);
}

/*
 * A guest whose page for tokens is gone hears of nothing, but gets its memory: each
 * time that the host takes it away.
 */
TEST_PAGE(absent_again_without_token)
{
	const char *missing = apf_missing(self);
	int i;

	TEST_ASSERT(!missing, "%s", missing);
	arm_apf(self);
	call(self, guest_take_all_ready, 0, 0);
	close(self->memfd);
	self->memfd = -1;
	self->gone = true;
	for (i = 0; i < 3; i++) {
		self->nr_absent = 0;
		use_apf(self);
		TEST_ASSERT(vcpu_is_guest_call(self->vcpu),
			    "Expected the guest to get its memory and not to hear of it");
	}
}

static void guest_eoi_waits(struct ex_regs *regs)
{
	guest_eoi.nr++;
	while (!READ_ONCE(guest_eoi.keep))
		;
}

static void *delete_slot_in_interrupt(void *data)
{
	struct pv *self = data;
	struct guest_eoi *eoi = guest_view(self, guest_eoi);

	while (!READ_ONCE(eoi->nr))
		usleep(10);
	set_slot(self, 0);
	WRITE_ONCE(eoi->keep, true);
	return NULL;
}

/*
 * The page goes while the guest could say in it that the interrupt has ended.  KVM
 * takes it for ended, but not the next one, of which the guest has said nothing.
 */
TEST_PAGE(eoi_pending_without_page)
{
	struct guest_eoi *eoi = guest_view(self, guest_eoi);
	const char *missing = eoi_missing(self);
	pthread_t thread;
	int i;

	if (missing)
		CASE_SKIP("%s", missing);

	arm_eoi(self);
	vm_install_exception_handler(self->vm, EOI_VECTOR, guest_eoi_waits);
	for (i = 0; i < MAX_INTERRUPTS; i++) {
		/* So that nothing in the handler is new to KVM, which would be an exit. */
		eoi->keep = true;
		call(self, guest_interrupt_self, EOI_VECTOR, 0);
		call(self, guest_end_interrupts, 0, 0);

		memset(eoi, 0, sizeof(*eoi));
		pthread_create(&thread, NULL, delete_slot_in_interrupt, self);
		call(self, guest_interrupt_self, EOI_VECTOR, 0);
		pthread_join(thread, NULL);
		if (!eoi_in_service(self))
			break;
		call(self, guest_end_interrupts, 0, 0);
		set_slot(self, SIZE);
	}
	TEST_ASSERT(i < MAX_INTERRUPTS, "Expected an interrupt to have ended with its page");

	vm_install_exception_handler(self->vm, EOI_VECTOR, guest_eoi_handler);
	self->gone = true;
	call(self, guest_interrupt_self, EOI_VECTOR, 0);
	TEST_ASSERT(!vcpu_is_guest_call(self->vcpu), "Expected the guest to miss its page");
	TEST_ASSERT(eoi_in_service(self), "Ended an interrupt that the guest serves");
}

static void guest_fault_calls(struct ex_regs *regs)
{
	/* The page is absent.  It is ready, and nobody has been there again. */
	guest_call(0, 0, 0, 0);
	guest_call(0, 0, 0, 0);
}

/*
 * KVM maps a page that it waited for before the guest asks again.  One that is
 * private by then the guest has not asked for, and userspace may have to fill it.
 */
TEST_PAGE(private_when_ready)
{
	struct uffdio_zeropage zero = { .range.len = PAGE_SIZE };
	int memfd = vm_create_guest_memfd(self->vm, ABSENT_SIZE, 0);
	const char *missing = apf_missing(self);
	struct pollfd pollfd = { .fd = self->uffd, .events = POLLIN };
	struct uffd_msg msg;

	TEST_ASSERT(!missing, "%s", missing);
	self->absent = shared_mem_alloc(ABSENT_SIZE);
	userfaultfd_empty(self->uffd, self->absent, ABSENT_SIZE);
	vm_set_user_memory_region2(self->vm, ABSENT_SLOT, KVM_MEM_GUEST_MEMFD, ABSENT_GPA,
				   ABSENT_SIZE, self->absent, memfd, 0);
	virt_map(self->vm, ABSENT_GPA, ABSENT_GPA, NR_ABSENT);
	arm_apf(self);
	vm_install_exception_handler(self->vm, PF_VECTOR, guest_fault_calls);

	call(self, guest_touch, ABSENT_GPA, 0);
	TEST_ASSERT(poll(&pollfd, 1, 5000) == 1 &&
		    read(self->uffd, &msg, sizeof(msg)) == sizeof(msg),
		    "Expected a fault on the absent page");
	vm_mem_set_private(self->vm, ABSENT_GPA, PAGE_SIZE);
	zero.range.start = (uintptr_t)self->absent;
	TEST_ASSERT(!ioctl(self->uffd, UFFDIO_ZEROPAGE, &zero),
		    "UFFDIO_ZEROPAGE failed, errno: %i", errno);

	/* Whoever has waited for the page in the kernel tells the vCPU now. */
	usleep(200000);
	TEST_ASSERT(!vcpu_access_run(self->vcpu) && vcpu_is_guest_call(self->vcpu),
		    "Expected the guest to go on");
	TEST_ASSERT(!guest_memfd_held(memfd),
		    "Expected no page that nobody has touched, the file has 0x%lx bytes",
		    guest_memfd_held(memfd));
	close(memfd);
}

/* What userspace gets is the address that the guest named. */
TEST_PAGE(msrs_are_addresses)
{
	static const struct {
		uint32_t msr;
		uint64_t flags;
	} msrs[] = {
		{ MSR_KVM_SYSTEM_TIME_NEW, KVM_MSR_ENABLED },
		{ MSR_KVM_WALL_CLOCK_NEW, 0 },
		{ MSR_KVM_STEAL_TIME, KVM_MSR_ENABLED },
		{ MSR_KVM_PV_EOI_EN, KVM_MSR_ENABLED },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(msrs); i++) {
		uint64_t val = self->at | msrs[i].flags;

		arm_msr(self, msrs[i].msr, val);
		TEST_ASSERT(vcpu_get_msr(self->vcpu, msrs[i].msr) == val,
			    "Expected MSR 0x%x to be 0x%lx, got 0x%lx", msrs[i].msr, val,
			    vcpu_get_msr(self->vcpu, msrs[i].msr));
	}
}

TEST_HARNESS_MAIN
