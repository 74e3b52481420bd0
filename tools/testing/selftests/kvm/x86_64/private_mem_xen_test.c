// SPDX-License-Identifier: GPL-2.0-only
/*
 * The pages that a Xen guest shares with its hypervisor, in private memory: shared
 * info with the wall clock and the event channels, vcpu_info, time, runstate, the
 * hypercall page and what hypercalls take from memory.
 *
 * KVM keeps the pfn of most of them.  The other half of each page holds what would
 * be believed: event channels that are masked or pending, hypercalls with other
 * arguments.  It must not change either.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <time.h>

#include "apic.h"
#include "kvm_harness.h"
#include "private_mem_hv.h"

#define XEN_TIMEOUT	120

#define HYPERCALL_MSR	0x40000200

/* The pages, and where in them things are. */
#define SHINFO_GPA	(HV_GPA + 1 * PAGE_SIZE)
#define VCPU_INFO_GPA	(HV_GPA + 2 * PAGE_SIZE + 0x40)
#define TIME_GPA	(HV_GPA + 3 * PAGE_SIZE + 0x20)
#define RUNSTATE_GPA	(HV_GPA + 4 * PAGE_SIZE + 0x10)
#define CODE_GPA	(HV_GPA + 5 * PAGE_SIZE)
#define ARGS_GPA	(HV_GPA + 6 * PAGE_SIZE + 0x100)
#define PORTS_GPA	(HV_GPA + 7 * PAGE_SIZE + 0x80)
#define BORDER_GPA	(HV_GPA + 9 * PAGE_SIZE - 16)
#define KVMCLOCK_GPA	(HV_GPA + 10 * PAGE_SIZE + 0x40)

#define PENDING_GPA	(SHINFO_GPA + 0x800)
#define MASK_GPA	(SHINFO_GPA + 0xa00)
#define WC_GPA		(SHINFO_GPA + 0xc00)

#define UPCALL_PENDING_GPA	VCPU_INFO_GPA
#define PENDING_SEL_GPA		(VCPU_INFO_GPA + 8)
#define VCPU_TIME_GPA		(VCPU_INFO_GPA + 32)

/* In struct pvclock_vcpu_time_info. */
#define TIME_MUL	24
#define TIME_FLAGS	29
#define GUEST_STOPPED	2

/* In struct vcpu_runstate_info. */
#define RUNSTATE_ENTRY	8
#define RUNNING		0
#define RUNNABLE	1

#define PORT		15
#define OTHER_PORT	66
#define SEND_PORT	127
#define DECOY_PORT	126
#define TIMER_PORT	13
#define GSI		32
#define UPCALL_VECTOR	0x80

#define HCALL_XEN_VERSION	17
#define HCALL_VCPU_OP		24
#define HCALL_SCHED_OP		29
#define HCALL_EVENT_CHANNEL_OP	32
#define SET_SINGLESHOT_TIMER	8
#define SCHEDOP_POLL		3
#define EVTCHNOP_SEND		4
#define EVTCHN_INTERDOMAIN	2

#define PRIO	KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL

FIXTURE(xen) {
	struct hv_vm hv_vm;
};

static void set_config(struct hv_vm *hv, uint32_t flags)
{
	struct kvm_xen_hvm_config config = { .flags = flags, .msr = HYPERCALL_MSR };

	vm_ioctl(hv->mem.vm, KVM_XEN_HVM_CONFIG, &config);
}

FIXTURE_SETUP(xen)
{
	struct hv_vm *hv = &self->hv_vm;
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_LONG_MODE, .u.long_mode = 1,
	};
	const int caps = KVM_XEN_HVM_CONFIG_SHARED_INFO | KVM_XEN_HVM_CONFIG_RUNSTATE |
			 KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND;

	TEST_REQUIRE((kvm_check_cap(KVM_CAP_XEN_HVM) & caps) == caps);

	hv_vm_create(hv);
	set_config(hv, KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND);
	vm_ioctl(hv->mem.vm, KVM_XEN_HVM_SET_ATTR, &attr);
}

FIXTURE_TEARDOWN(xen)
{
	hv_vm_free(&self->hv_vm);
}

#define TEST_XEN(name)	TEST_F_MEMBER(xen, name, hv_vm, XEN_TIMEOUT)

static int __set_shinfo(struct hv_vm *hv, uint64_t gpa)
{
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_SHARED_INFO,
		.u.shared_info.gfn = gpa >> PAGE_SHIFT,
	};

	return __vm_ioctl(hv->mem.vm, KVM_XEN_HVM_SET_ATTR, &attr);
}

static void set_shinfo(struct hv_vm *hv)
{
	TEST_ASSERT(!__set_shinfo(hv, SHINFO_GPA), "Shared info was refused, errno: %i (%s)",
		    errno, strerror(errno));
}

static int __set_page(struct hv_vm *hv, int type, uint64_t gpa)
{
	struct kvm_xen_vcpu_attr attr = { .type = type, .u.gpa = gpa };

	return __vcpu_ioctl(hv->mem.vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);
}

static void set_page(struct hv_vm *hv, int type, uint64_t gpa)
{
	TEST_ASSERT(!__set_page(hv, type, gpa), "Page of type %i was refused, errno: %i (%s)",
		    type, errno, strerror(errno));
}

static void set_vcpu_info(struct hv_vm *hv)
{
	set_page(hv, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, VCPU_INFO_GPA);
}

/*
 * The other half says that nothing can happen any more: each event is pending, and
 * the vCPU knows.
 */
static void set_events(struct hv_vm *hv)
{
	int i;

	for (i = 0; i < 64; i++) {
		hv_decoy_u64(hv, PENDING_GPA + i * 8, ~0ull);
		hv_decoy_u64(hv, MASK_GPA + i * 8, 0);
	}
	hv_decoy_u64(hv, UPCALL_PENDING_GPA, 1);
	hv_decoy_u64(hv, PENDING_SEL_GPA, ~0ull);
	set_vcpu_info(hv);
	set_shinfo(hv);
}

static int __send_event(struct hv_vm *hv, int port)
{
	struct kvm_irq_routing_xen_evtchn event = { .port = port, .priority = PRIO };

	return __vm_ioctl(hv->mem.vm, KVM_XEN_HVM_EVTCHN_SEND, &event);
}

static void send_event(struct hv_vm *hv, int port)
{
	TEST_ASSERT(!__send_event(hv, port), "Event %i was not sent, errno: %i (%s)", port,
		    errno, strerror(errno));
}

/* Events in the page that the guest has, and whether the vCPU is told of them. */
static void check_events(struct hv_vm *hv, uint64_t pending0, uint64_t pending1, uint64_t sel)
{
	uint64_t seen[4];

	seen[0] = hv_seen_u64(hv, PENDING_GPA);
	seen[1] = hv_seen_u64(hv, PENDING_GPA + 8);
	seen[2] = hv_seen_u64(hv, PENDING_SEL_GPA);
	seen[3] = hv_seen_u8(hv, UPCALL_PENDING_GPA);
	TEST_ASSERT(seen[0] == pending0 && seen[1] == pending1,
		    "Expected events 0x%lx 0x%lx to be pending, the guest sees 0x%lx 0x%lx",
		    pending0, pending1, seen[0], seen[1]);
	TEST_ASSERT(seen[2] == sel && seen[3] == !!sel,
		    "Expected the selector 0x%lx and an upcall if it is not 0, the guest sees 0x%lx and upcall %lu",
		    sel, seen[2], seen[3]);
}

TEST_XEN(wall_clock)
{
	uint32_t version, sec;

	hv_write_u64(self, WC_GPA, 10);
	hv_decoy_u64(self, WC_GPA, 1000);
	set_shinfo(self);

	version = hv_seen_u32(self, WC_GPA);
	sec = hv_seen_u32(self, WC_GPA + 4);
	TEST_ASSERT(version == 12, "Expected version 12 after the guest's 10, got %u", version);
	TEST_ASSERT(sec > 1000000, "Expected the time when the VM was born, got %u s", sec);
	hv_check_decoy(self);
}

TEST_XEN(wall_clock_after_conversion)
{
	uint64_t *shared = hv_shared(self, WC_GPA);

	set_shinfo(self);
	hv_write_u64(self, WC_GPA, 20);

	hv_make_shared(self, SHINFO_GPA);
	hv_decoy_u64(self, WC_GPA, 30);
	set_shinfo(self);
	TEST_ASSERT((uint32_t)*shared == 32 && *shared >> 32,
		    "Expected version 32 and a time in the shared page, got 0x%lx", *shared);

	hv_make_private(self, SHINFO_GPA);
	TEST_ASSERT(hv_seen_u64(self, WC_GPA) == 20,
		    "Wrote 0x%lx to the private page while it was not the guest's",
		    hv_seen_u64(self, WC_GPA));
	set_shinfo(self);
	TEST_ASSERT(hv_seen_u32(self, WC_GPA) == 22, "Expected version 22, got %u",
		    hv_seen_u32(self, WC_GPA));
}

/* A clock of the guest, which vCPU time was written to. */
static uint32_t check_time(struct hv_vm *hv, uint64_t gpa)
{
	uint32_t version = hv_seen_u32(hv, gpa);
	uint8_t flags = hv_seen_u8(hv, gpa + TIME_FLAGS);

	TEST_ASSERT(version && !(version & 1) && version < 1000,
		    "Expected a version of KVM's, the guest sees %u", version);
	TEST_ASSERT(hv_seen_u32(hv, gpa + TIME_MUL), "Expected a factor, the guest sees 0");
	TEST_ASSERT(!(flags & GUEST_STOPPED),
		    "Took the flag that the guest was stopped from the other half");
	return version;
}

static void decoy_time(struct hv_vm *hv, uint64_t gpa)
{
	hv_decoy_u64(hv, gpa, 1000);
	hv_decoy_u64(hv, gpa + TIME_MUL, (uint64_t)GUEST_STOPPED << (TIME_FLAGS - TIME_MUL) * 8);
}

TEST_XEN(vcpu_info_time)
{
	decoy_time(self, VCPU_TIME_GPA);
	set_vcpu_info(self);
	check_time(self, VCPU_TIME_GPA);
	hv_check_decoy(self);
}

TEST_XEN(time)
{
	decoy_time(self, TIME_GPA);
	set_page(self, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, TIME_GPA);
	check_time(self, TIME_GPA);
	hv_check_decoy(self);
}

/* The page that comes in place of another has no clock yet, and gets one. */
TEST_XEN(time_after_conversion)
{
	uint32_t *shared = hv_shared(self, TIME_GPA);
	uint32_t before;

	set_page(self, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, TIME_GPA);
	before = check_time(self, TIME_GPA);

	hv_make_shared(self, TIME_GPA);
	hv_decoy_fill(self, TIME_GPA, 0, 32);
	hv_seen_u64(self, HV_GPA);
	TEST_ASSERT(*shared && !(*shared & 1) && shared[TIME_MUL / 4],
		    "Expected the shared page to have the time, its version is %u", *shared);

	hv_make_private(self, TIME_GPA);
	*shared = 1000;
	TEST_ASSERT(check_time(self, TIME_GPA) > before,
		    "Expected the private page to have the time anew");
	TEST_ASSERT(*shared == 1000, "Wrote the time to the shared half of a private page");
}

/* That the guest was stopped is said where it was asked for, and nowhere else. */
TEST_XEN(guest_stopped)
{
	const uint64_t clocks[] = { KVMCLOCK_GPA, VCPU_TIME_GPA, TIME_GPA };
	struct kvm_vcpu *vcpu = self->mem.vcpu;
	bool stopped;
	int i;

	set_vcpu_info(self);
	set_page(self, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, TIME_GPA);
	vcpu_set_msr(vcpu, MSR_KVM_SYSTEM_TIME_NEW, KVMCLOCK_GPA | KVM_MSR_ENABLED);
	check_time(self, KVMCLOCK_GPA);
	vcpu_ioctl(vcpu, KVM_KVMCLOCK_CTRL, NULL);

	for (i = 0; i < ARRAY_SIZE(clocks); i++) {
		stopped = hv_seen_u8(self, clocks[i] + TIME_FLAGS) & GUEST_STOPPED;
		TEST_ASSERT(stopped == !i, "Expected the flag in %s at 0x%lx to be %d",
			    i ? "Xen's clock" : "kvmclock", clocks[i], !i);
	}
}

TEST_XEN(time_after_punch)
{
	set_page(self, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, TIME_GPA);
	check_time(self, TIME_GPA);
	hv_punch(self, TIME_GPA);
	check_time(self, TIME_GPA);
	hv_check_decoy(self);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static void fill_runstate(struct hv_vm *hv)
{
	vcpu_fill(hv->mem.vcpu, RUNSTATE_GPA, ~0ull, 48);
}

TEST_XEN(runstate)
{
	uint64_t entry;

	fill_runstate(self);
	set_page(self, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, RUNSTATE_GPA);

	entry = hv_seen_u64(self, RUNSTATE_GPA + RUNSTATE_ENTRY);
	TEST_ASSERT(hv_seen_u32(self, RUNSTATE_GPA) == RUNNING,
		    "Expected a vCPU that looks to be running, the guest sees state %u",
		    hv_seen_u32(self, RUNSTATE_GPA));
	TEST_ASSERT(entry && entry >> 63 == 0, "Expected a time of entry, the guest sees 0x%lx",
		    entry);
	hv_check_decoy(self);
}

TEST_XEN(runstate_after_conversion)
{
	uint32_t *shared = hv_shared(self, RUNSTATE_GPA);

	set_page(self, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, RUNSTATE_GPA);
	hv_seen_u64(self, HV_GPA);
	fill_runstate(self);
	hv_make_shared(self, RUNSTATE_GPA);
	hv_seen_u64(self, HV_GPA);
	TEST_ASSERT(*shared == RUNNING, "Expected the state in the shared page, it has 0x%x",
		    *shared);
	hv_check_decoy_but(self, RUNSTATE_GPA);

	*shared = HV_DECOY;
	hv_make_private(self, RUNSTATE_GPA);
	TEST_ASSERT(hv_seen_u32(self, RUNSTATE_GPA) == RUNNING,
		    "Expected the state in the private page");
	TEST_ASSERT(*shared == HV_DECOY, "Wrote the state to the shared half of a private page");
}

/* KVM has no two caches for it: such a structure is refused, and not half used. */
TEST_XEN(runstate_across_pages)
{
	struct kvm_xen_vcpu_attr attr = { .type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR };
	uint8_t *page0 = addr_gpa2hva(self->mem.vm, 0), before[PAGE_SIZE];
	uint64_t half;

	memcpy(before, page0, PAGE_SIZE);
	for (half = 0; half < 3; half++) {
		if (half)
			hv_make_shared(self, BORDER_GPA);
		if (half == 2) {
			hv_make_private(self, BORDER_GPA);
			hv_make_shared(self, BORDER_GPA + PAGE_SIZE);
		}
		TEST_ASSERT(__set_page(self, attr.type, BORDER_GPA) && errno == EINVAL,
			    "Expected EINVAL for what lies across two pages");
		hv_seen_u64(self, HV_GPA);
		hv_check_decoy(self);
		TEST_ASSERT(!memcmp(before, page0, PAGE_SIZE), "Wrote the state to page 0");
		TEST_ASSERT(__vcpu_ioctl(self->mem.vcpu, KVM_XEN_VCPU_GET_ATTR, &attr) &&
			    errno == ENOENT, "What was refused is registered at 0x%llx",
			    attr.u.gpa);
	}
}

/* What is refused because there is no page is not kept for when there is one. */
TEST_XEN(refused_is_not_kept)
{
	struct kvm_xen_vcpu_attr attr = { .type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO };
	uint64_t gpa = HV_GPA + HV_SIZE;

	TEST_ASSERT(__set_page(self, attr.type, gpa) && errno == EFAULT,
		    "Expected EFAULT where there is no memory");
	vcpu_ioctl(self->mem.vcpu, KVM_XEN_VCPU_GET_ATTR, &attr);
	TEST_ASSERT(attr.u.gpa == ~0ull, "What was refused is registered at 0x%llx", attr.u.gpa);
}

struct spinner {
	struct hv_vm *hv;
	struct kvm_vcpu *vcpu;
	pthread_t thread;
};

static void *spin(void *arg)
{
	struct spinner *s = arg;

	vcpu_run(s->vcpu);
	return NULL;
}

extern char guest_spin[], guest_wait[];
asm(".pushsection .text\n"
	"guest_spin:\n"
	"	pause\n"
	"	cmpl $0, (%rdi)\n"
	"	je guest_spin\n"
	"	outb %al, %dx\n"
	/* Waits until there is EAX at ESI, and gives up after RCX times. */
	"guest_wait:\n"
	"	pause\n"
	"	cmp %eax, (%rsi)\n"
	"	je 1f\n"
	"	loop guest_wait\n"
	"1:	outb %al, %dx\n"
	".popsection\n");

/*
 * Two vCPUs share a processor: when one runs, the other is not running, which KVM
 * writes where it cannot sleep.
 */
TEST_XEN(runstate_of_preempted)
{
	struct kvm_vm *vm = self->mem.vm;
	struct spinner s = { .hv = self, .vcpu = vm_vcpu_add(vm, 1, NULL) };
	uint64_t stop = vm_vaddr_alloc_page(vm);
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, .u.gpa = RUNSTATE_GPA,
	};
	struct kvm_regs regs;

	hv_decoy_u64(self, RUNSTATE_GPA, RUNNABLE);
	vcpu_ioctl(s.vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);
	stay_on_cpu();

	vcpu_regs_get(s.vcpu, &regs);
	regs.rip = (uintptr_t)guest_spin;
	regs.rdi = stop;
	regs.rdx = GUEST_CALL_PORT;
	vcpu_regs_set(s.vcpu, &regs);
	pthread_create(&s.thread, NULL, spin, &s);
	usleep(100000);

	vcpu_regs_get(self->mem.vcpu, &regs);
	regs.rip = (uintptr_t)guest_wait;
	regs.rax = RUNNABLE;
	regs.rsi = RUNSTATE_GPA;
	regs.rcx = 100000000;
	regs.rdx = GUEST_CALL_PORT;
	vcpu_regs_set(self->mem.vcpu, &regs);
	vcpu_access_run(self->mem.vcpu);
	vcpu_regs_get(self->mem.vcpu, &regs);

	*(uint32_t *)addr_gva2hva(vm, stop) = 1;
	pthread_join(s.thread, NULL);
	TEST_ASSERT(regs.rcx, "Expected to see that the other vCPU is not running");
	hv_check_decoy(self);
}

TEST_XEN(event)
{
	set_events(self);
	send_event(self, PORT);
	check_events(self, BIT(PORT), 0, 1);
	send_event(self, OTHER_PORT);
	check_events(self, BIT(PORT), BIT(OTHER_PORT - 64), 3);
	hv_check_decoy(self);
}

static int set_irqfd(struct hv_vm *hv)
{
	vm_route_xen_event(hv->mem.vm, GSI, PORT);
	return vm_irqfd_create(hv->mem.vm, GSI);
}

/* By a workqueue it takes a while. */
static void signal_irqfd(struct hv_vm *hv, int fd)
{
	int tries = 1000;

	TEST_ASSERT(!eventfd_write(fd, 1), "Cannot signal the irqfd");
	while (!hv_seen_u64(hv, PENDING_SEL_GPA) && --tries)
		usleep(1000);
	check_events(hv, BIT(PORT), 0, 1);
}

/* The waitqueue of the eventfd is entered with a lock held, and with a valid cache. */
TEST_XEN(event_atomic)
{
	set_events(self);
	signal_irqfd(self, set_irqfd(self));
	hv_check_decoy(self);
}

/* Nobody has the page in hand, and where it is atomic nobody can get it. */
TEST_XEN(event_irqfd_after_conversion)
{
	int fd;

	set_events(self);
	fd = set_irqfd(self);
	hv_make_shared(self, SHINFO_GPA);
	hv_make_private(self, SHINFO_GPA);
	signal_irqfd(self, fd);
	hv_check_decoy(self);
}

TEST_XEN(event_after_conversion)
{
	uint64_t *pending = hv_shared(self, PENDING_GPA);

	set_events(self);
	send_event(self, PORT);

	hv_make_shared(self, SHINFO_GPA);
	*pending = 0;
	send_event(self, OTHER_PORT);
	TEST_ASSERT(pending[0] == 0 && pending[1] == ~0ull, "Expected 0 and all, got 0x%lx 0x%lx",
		    pending[0], pending[1]);
	send_event(self, PORT + 1);
	TEST_ASSERT(pending[0] == BIT(PORT + 1), "Expected event %u in the shared page, got 0x%lx",
		    PORT + 1, pending[0]);

	hv_make_private(self, SHINFO_GPA);
	check_events(self, BIT(PORT), 0, 1);
	pending[0] = ~0ull;
	send_event(self, PORT + 2);
	check_events(self, BIT(PORT) | BIT(PORT + 2), 0, 1);
	hv_check_decoy(self);
}

/* The event waits in KVM until the vCPU can get at the page, the one that it has then. */
TEST_XEN(event_waits_for_vcpu_info)
{
	uint64_t *info = hv_shared(self, VCPU_INFO_GPA);

	set_events(self);
	hv_make_shared(self, VCPU_INFO_GPA);
	info[0] = 0;
	info[1] = 0;
	send_event(self, PORT);
	check_events(self, BIT(PORT), 0, 1);
	TEST_ASSERT(info[0] == 1 && info[1] == 1, "Expected the event in the shared vcpu_info");

	info[0] = ~0ull;
	info[1] = ~0ull;
	hv_make_private(self, VCPU_INFO_GPA);
	check_events(self, BIT(PORT), 0, 0);
	send_event(self, OTHER_PORT);
	check_events(self, BIT(PORT), BIT(OTHER_PORT - 64), 2);
	TEST_ASSERT(info[0] == ~0ull && info[1] == ~0ull,
		    "Wrote to the shared half of a private vcpu_info");
}

TEST_XEN(event_after_punch)
{
	set_events(self);
	send_event(self, PORT);
	hv_punch(self, SHINFO_GPA);
	hv_punch(self, VCPU_INFO_GPA);
	send_event(self, OTHER_PORT);
	check_events(self, 0, BIT(OTHER_PORT - 64), 2);
	hv_check_decoy(self);
}

TEST_XEN(event_after_slot_deletion)
{
	set_events(self);
	private_mem_set_slot(&self->mem, 0);
	TEST_ASSERT(__send_event(self, PORT) && errno == EFAULT,
		    "Expected EFAULT for an event without a page");
	private_mem_set_slot(&self->mem, HV_SIZE);
	check_events(self, 0, 0, 0);
	send_event(self, PORT);
	check_events(self, BIT(PORT), 0, 1);
	hv_check_decoy(self);
}

TEST_XEN(event_after_close)
{
	set_events(self);
	send_event(self, PORT);
	close(self->mem.memfd);
	self->mem.memfd = -1;
	TEST_ASSERT(__send_event(self, OTHER_PORT) && errno == EFAULT,
		    "Expected EFAULT for an event without a page");
	hv_check_decoy(self);
}

/*
 * Where an event goes does not tell userspace what was in a private page, which can be
 * any: @nr is 0 for a port that was neither pending nor masked, 1 for pending, 2 for
 * masked.
 */
static const char * const port_was[] = { "new", "pending", "masked" };

static void set_port(struct hv_vm *hv, int nr)
{
	hv_write_u64(hv, PENDING_GPA, nr == 1 ? BIT(PORT) : 0);
	hv_write_u64(hv, MASK_GPA, nr == 2 ? BIT(PORT) : 0);
}

TEST_XEN(line_status_tells_nothing)
{
	struct kvm_irq_level line;
	int i;

	set_events(self);
	vm_route_xen_event(self->mem.vm, GSI, PORT);
	for (i = 0; i < ARRAY_SIZE(port_was); i++) {
		set_port(self, i);
		line = (struct kvm_irq_level) { .irq = GSI, .level = 1 };
		vm_ioctl(self->mem.vm, KVM_IRQ_LINE_STATUS, &line);
		TEST_ASSERT(line.status == 1, "Status of an event that is %s: %i, expected 1",
			    port_was[i], line.status);
	}
	hv_check_decoy(self);
}

TEST_XEN(vcpu_info_tells_nothing)
{
	uint64_t *info = hv_shared(self, VCPU_INFO_GPA);
	int i;

	set_events(self);
	hv_make_shared(self, VCPU_INFO_GPA);
	for (i = 0; i < ARRAY_SIZE(port_was); i++) {
		set_port(self, i);
		info[0] = 0;
		info[1] = 0;
		send_event(self, PORT);
		TEST_ASSERT(info[0] == 1 && info[1] == 1,
			    "An event that is %s does not show in the shared vcpu_info",
			    port_was[i]);
	}
	hv_check_decoy_but(self, VCPU_INFO_GPA);
}

TEST_XEN(upcall_vector_tells_nothing)
{
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, .u.vector = UPCALL_VECTOR,
	};
	uint64_t *pending = hv_shared(self, PENDING_GPA);
	struct kvm_lapic_state lapic;
	uint32_t *irr = (void *)lapic.regs + APIC_IRR + UPCALL_VECTOR / 32 * 0x10;
	int i;

	set_events(self);
	vcpu_ioctl(self->mem.vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);
	hv_make_shared(self, SHINFO_GPA);
	memset(hv_shared(self, SHINFO_GPA), 0, PAGE_SIZE);
	for (i = 0; i < 2; i++) {
		hv_write_u64(self, PENDING_SEL_GPA, i);
		*pending = 0;
		vcpu_ioctl(self->mem.vcpu, KVM_GET_LAPIC, &lapic);
		*(uint32_t *)(lapic.regs + APIC_SPIV) |= APIC_SPIV_APIC_ENABLED;
		*irr = 0;
		vcpu_ioctl(self->mem.vcpu, KVM_SET_LAPIC, &lapic);

		send_event(self, PORT);
		vcpu_ioctl(self->mem.vcpu, KVM_GET_LAPIC, &lapic);
		TEST_ASSERT(*irr & BIT(UPCALL_VECTOR % 32),
			    "Expected the vector for an event where others %s",
			    i ? "are pending" : "are not");
	}
	hv_check_decoy_but(self, SHINFO_GPA);
}

/* The guest has what is in a page that both can see: the event waits for no upcall. */
TEST_XEN(event_of_shared_page)
{
	uint64_t *info = hv_shared(self, VCPU_INFO_GPA);
	uint64_t *pending = hv_shared(self, PENDING_GPA);
	uint64_t *mask = hv_shared(self, MASK_GPA);
	int i;

	set_events(self);
	hv_make_shared(self, VCPU_INFO_GPA);
	hv_make_shared(self, SHINFO_GPA);
	for (i = 0; i < ARRAY_SIZE(port_was); i++) {
		*pending = i == 1 ? BIT(PORT) : 0;
		*mask = i == 2 ? BIT(PORT) : 0;
		info[0] = 0;
		info[1] = 0;
		send_event(self, PORT);
		/* It waits for the vCPU where KVM does not have its page at hand. */
		hv_seen_u64(self, PENDING_SEL_GPA);
		TEST_ASSERT(*pending == BIT(PORT), "Expected the event to be pending");
		TEST_ASSERT(info[0] == !i && info[1] == !i, "Expected %s upcall for what is %s",
			    i ? "no" : "an", port_was[i]);
	}
}

static void set_upcall(struct hv_vm *hv)
{
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, .u.vector = UPCALL_VECTOR,
	};

	hv_expect_interrupts(hv, UPCALL_VECTOR, (void *)UPCALL_PENDING_GPA);
	vm_ioctl(hv->mem.vm, KVM_XEN_HVM_SET_ATTR, &attr);
}

TEST_XEN(upcall)
{
	uint64_t nr;

	hv_decoy_u64(self, UPCALL_PENDING_GPA, 0);
	set_vcpu_info(self);
	hv_write_u64(self, UPCALL_PENDING_GPA, 1);
	set_upcall(self);
	nr = hv_interrupts(self);
	TEST_ASSERT(nr == 1, "Expected one upcall, got %lu", nr);
	hv_check_decoy(self);
}

TEST_XEN(no_upcall)
{
	uint64_t nr;

	hv_decoy_u64(self, UPCALL_PENDING_GPA, 1);
	set_vcpu_info(self);
	set_upcall(self);
	nr = hv_interrupts(self);
	TEST_ASSERT(!nr, "Took the upcall of the other half, %lu times", nr);
	hv_check_decoy(self);
}

TEST_XEN(hypercall_page)
{
	struct kvm_xen_hvm_attr version = {
		.type = KVM_XEN_ATTR_TYPE_XEN_VERSION, .u.xen_version = 0x4000d,
	};
	struct kvm_regs regs = { .r11 = CODE_GPA + HCALL_XEN_VERSION * 32 };
	uint64_t seen;

	vm_ioctl(self->mem.vm, KVM_XEN_HVM_SET_ATTR, &version);
	hv_wrmsr(self, HYPERCALL_MSR, CODE_GPA);
	hv_check_decoy(self);

	seen = hv_seen_u64(self, CODE_GPA + 127 * 32);
	TEST_ASSERT((seen & 0xffffffffff) == (0xb8 | 127 << 8),
		    "Expected MOV $127, %%EAX for the last hypercall, the guest sees 0x%lx", seen);

	regs.rax = HCALL_XEN_VERSION;
	seen = hv_run(self, HV_CALL, &regs);
	TEST_ASSERT(seen == 0x4000d, "Expected version 0x4000d of Xen, got 0x%lx", seen);
}

TEST_XEN(hypercall_page_of_vmm)
{
	uint64_t *blob = shared_mem_alloc(PAGE_SIZE);
	struct kvm_xen_hvm_config config = {
		.msr = HYPERCALL_MSR, .blob_addr_64 = (uintptr_t)blob, .blob_size_64 = 1,
	};

	memset(blob, 0xcd, PAGE_SIZE);
	vm_ioctl(self->mem.vm, KVM_XEN_HVM_CONFIG, &config);
	hv_wrmsr(self, HYPERCALL_MSR, CODE_GPA);
	vcpu_check(self->mem.vcpu, CODE_GPA, *blob, PAGE_SIZE);
	hv_check_decoy(self);
}

static void set_send(struct hv_vm *hv, int from, int to)
{
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_EVTCHN,
		.u.evtchn.send_port = from,
		.u.evtchn.type = EVTCHN_INTERDOMAIN,
		.u.evtchn.deliver.port.port = to,
		.u.evtchn.deliver.port.priority = PRIO,
	};

	vm_ioctl(hv->mem.vm, KVM_XEN_HVM_SET_ATTR, &attr);
}

static int64_t hypercall(struct hv_vm *hv, uint64_t nr, uint64_t arg0, uint64_t arg1,
			 uint64_t arg2)
{
	struct kvm_regs regs = { .rax = nr, .rdi = arg0, .rsi = arg1, .rdx = arg2 };

	return hv_run(hv, HV_HYPERCALL, &regs);
}

TEST_XEN(hypercall_send)
{
	int64_t ret;

	set_events(self);
	set_send(self, SEND_PORT, PORT);
	set_send(self, DECOY_PORT, OTHER_PORT);
	hv_write_u64(self, ARGS_GPA, SEND_PORT);
	hv_decoy_u64(self, ARGS_GPA, DECOY_PORT);

	ret = hypercall(self, HCALL_EVENT_CHANNEL_OP, EVTCHNOP_SEND, ARGS_GPA, 0);
	TEST_ASSERT(!ret, "Expected the event to be sent, got %li", ret);
	check_events(self, BIT(PORT), 0, 1);
	hv_check_decoy(self);
}

/* Nothing is pending in the other half, nor are there such ports. */
TEST_XEN(hypercall_poll)
{
	const uint64_t timeout = 20000000000ull;
	uint64_t start;
	int64_t ret;

	set_events(self);
	hv_decoy_fill(self, PENDING_GPA, 0, 64);
	hv_write_u64(self, PENDING_GPA + 8, BIT(OTHER_PORT - 64));
	hv_write_u64(self, ARGS_GPA, PORTS_GPA);
	hv_write_u64(self, ARGS_GPA + 8, 2);
	hv_write_u64(self, ARGS_GPA + 16, timeout);
	hv_write_u64(self, PORTS_GPA, PORT | (uint64_t)OTHER_PORT << 32);
	hv_decoy_u64(self, ARGS_GPA + 8, 1000);

	start = now_ns();
	ret = hypercall(self, HCALL_SCHED_OP, SCHEDOP_POLL, ARGS_GPA, 0);
	TEST_ASSERT(!ret, "Expected an event to be pending, got %li", ret);
	TEST_ASSERT(now_ns() - start < timeout / 2, "Did not see that an event is pending");
	hv_check_decoy(self);
}

static void *poll_port(void *arg)
{
	return (void *)hypercall(arg, HCALL_SCHED_OP, SCHEDOP_POLL, ARGS_GPA, 0);
}

/* An event that is masked wakes who waits for it; in the other half it is there already. */
TEST_XEN(hypercall_poll_woken)
{
	const uint64_t timeout = 60000000000ull;
	uint64_t start = now_ns();
	pthread_t thread;
	void *ret;

	hv_write_u64(self, MASK_GPA, BIT(PORT));
	set_events(self);
	hv_write_u64(self, ARGS_GPA, PORTS_GPA);
	hv_write_u64(self, ARGS_GPA + 8, 1);
	hv_write_u64(self, ARGS_GPA + 16, timeout);
	hv_write_u64(self, PORTS_GPA, PORT);

	pthread_create(&thread, NULL, poll_port, self);
	usleep(500000);
	send_event(self, PORT);
	pthread_join(thread, &ret);

	TEST_ASSERT(!ret, "Expected to have waited for the event, got %li", (long)ret);
	TEST_ASSERT(now_ns() - start < timeout / 2, "Waited in vain for the event");
	hv_check_decoy(self);
}

TEST_XEN(hypercall_timer)
{
	struct kvm_xen_vcpu_attr timer = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_TIMER,
		.u.timer.port = TIMER_PORT, .u.timer.priority = PRIO,
	};
	int64_t ret;

	vcpu_ioctl(self->mem.vcpu, KVM_XEN_VCPU_SET_ATTR, &timer);

	/* In the past, which must not be; in the other half it may. */
	hv_write_u64(self, ARGS_GPA, 1);
	hv_write_u64(self, ARGS_GPA + 8, 1);
	hv_decoy_u64(self, ARGS_GPA, 1000000000000000ull);
	hv_decoy_u64(self, ARGS_GPA + 8, 0);
	ret = hypercall(self, HCALL_VCPU_OP, SET_SINGLESHOT_TIMER, 0, ARGS_GPA);
	TEST_ASSERT(ret == -ETIME, "Expected -ETIME, got %li", ret);

	/* And the event of one that may. */
	set_events(self);
	hv_write_u64(self, ARGS_GPA + 8, 0);
	ret = hypercall(self, HCALL_VCPU_OP, SET_SINGLESHOT_TIMER, 0, ARGS_GPA);
	TEST_ASSERT(!ret, "Expected the timer to be set, got %li", ret);
	check_events(self, BIT(TIMER_PORT), 0, 1);
	hv_check_decoy(self);
}

/* Memory that the host's kernel cannot read: it does not look elsewhere. */
TEST_XEN(inaccessible)
{
	static const int types[] = {
		KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO,
		KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR,
	};
	int64_t ret;
	int i;

	if (!set_private_mem_inaccessible(true))
		CASE_SKIP(NO_SWITCH);

	TEST_ASSERT(__set_shinfo(self, SHINFO_GPA) && errno == EFAULT, "Expected EFAULT");
	for (i = 0; i < ARRAY_SIZE(types); i++)
		TEST_ASSERT(__set_page(self, types[i], VCPU_INFO_GPA) && errno == EFAULT,
			    "Expected EFAULT for page type %i", types[i]);
	TEST_ASSERT(!_vcpu_set_msr(self->mem.vcpu, HYPERCALL_MSR, CODE_GPA),
		    "Expected the MSR to be refused");
	ret = hypercall(self, HCALL_EVENT_CHANNEL_OP, EVTCHNOP_SEND, ARGS_GPA, 0);
	TEST_ASSERT(ret == -EFAULT, "Expected -EFAULT for the hypercall, got %li", ret);
	hv_check_decoy(self);

	set_private_mem_inaccessible(false);
	check_events(self, 0, 0, 0);
	vcpu_check(self->mem.vcpu, CODE_GPA, 0, PAGE_SIZE);
}

/* What KVM had before is not good for ever. */
TEST_XEN(inaccessible_event)
{
	set_events(self);
	if (!set_private_mem_inaccessible(true))
		CASE_SKIP(NO_SWITCH);

	hv_make_shared(self, SHINFO_GPA);
	hv_make_private(self, SHINFO_GPA);
	TEST_ASSERT(__send_event(self, PORT) && errno == EFAULT,
		    "Expected EFAULT for an event in memory that cannot be read");
	hv_check_decoy(self);
	set_private_mem_inaccessible(false);
	check_events(self, 0, 0, 0);
	send_event(self, PORT);
	check_events(self, BIT(PORT), 0, 1);
}

TEST_HARNESS_MAIN
