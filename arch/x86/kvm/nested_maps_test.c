// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit test of what an invalidation asks of vCPUs that keep mappings while L2 runs.
 *
 * Only VT-x has such mappings. So that the request for them is seen to be made on any
 * processor, this is a VM with one vCPU and no memory, which never runs.
 */

#include <kunit/test.h>
#include <linux/kvm_host.h>

struct context {
	struct kvm *kvm;
	struct kvm_vcpu *vcpu;
	bool has_srcu;
};

static void invalidate(struct kvm *kvm)
{
	kvm_gfns_invalidate_begin(kvm, 0, 1, KVM_GFNS_ALL, true);
	kvm_gfns_invalidate_end(kvm);
}

static void reloaded(struct kunit *test)
{
	struct context *c = test->priv;

	c->kvm->arch.has_nested_maps = true;
	invalidate(c->kvm);
	KUNIT_EXPECT_TRUE(test, kvm_test_request(KVM_REQ_RELOAD_NESTED_MAPS, c->vcpu));
}

static void nothing_to_reload(struct kunit *test)
{
	struct context *c = test->priv;

	invalidate(c->kvm);
	KUNIT_EXPECT_FALSE(test, kvm_request_pending(c->vcpu));
}

static int init_context(struct kunit *test)
{
	struct context *c = kunit_kzalloc(test, sizeof(*c), GFP_KERNEL);
	int i;

	if (!c)
		return -ENOMEM;
	test->priv = c;

	/* What requests need is allocated when KVM finds a processor for it. */
	if (!kvm_x86_ops.hardware_enable)
		kunit_skip(test, "KVM does not work on this processor");

	c->kvm = kunit_kzalloc(test, sizeof(*c->kvm), GFP_KERNEL);
	c->vcpu = kunit_kzalloc(test, sizeof(*c->vcpu), GFP_KERNEL);
	if (!c->kvm || !c->vcpu)
		return -ENOMEM;

	c->kvm->arch.vm_type = KVM_X86_SW_PROTECTED_VM;
	rwlock_init(&c->kvm->mmu_lock);
	spin_lock_init(&c->kvm->gpc_lock);
	INIT_LIST_HEAD(&c->kvm->gpc_list);
	for (i = 0; i < KVM_ADDRESS_SPACE_NUM; i++)
		rcu_assign_pointer(c->kvm->memslots[i], &c->kvm->__memslots[i][0]);
	if (init_srcu_struct(&c->kvm->srcu))
		return -ENOMEM;
	c->has_srcu = true;

	c->vcpu->kvm = c->kvm;
	c->vcpu->cpu = -1;
	xa_init(&c->kvm->vcpu_array);
	atomic_set(&c->kvm->online_vcpus, 1);
	return xa_insert(&c->kvm->vcpu_array, 0, c->vcpu, GFP_KERNEL);
}

static void exit_context(struct kunit *test)
{
	struct context *c = test->priv;

	if (!c || !c->has_srcu)
		return;
	xa_destroy(&c->kvm->vcpu_array);
	cleanup_srcu_struct(&c->kvm->srcu);
}

static struct kunit_case nested_maps_cases[] = {
	KUNIT_CASE(reloaded),
	KUNIT_CASE(nothing_to_reload),
	{}
};

static struct kunit_suite nested_maps_suite = {
	.name = "kvm_nested_maps",
	.init = init_context,
	.exit = exit_context,
	.test_cases = nested_maps_cases,
};

kunit_test_suite(nested_maps_suite);
