// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shares one page with the host for as long as the module is loaded, and has a
 * text in it. A guest in ordinary memory has nothing to do for that.
 */
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/kvm_para.h>
#include <linux/module.h>
#include <linux/string.h>
#include <asm/processor.h>

static char *text = "";
module_param(text, charp, 0444);
MODULE_PARM_DESC(text, "what the page holds");

static unsigned long gpa;
module_param(gpa, ulong, 0444);
MODULE_PARM_DESC(gpa, "where the page is");

static char *page;

static int set_private(bool private)
{
	unsigned long attributes = private ? KVM_MAP_GPA_RANGE_ENCRYPTED :
					     KVM_MAP_GPA_RANGE_DECRYPTED;

	if (!(cpuid_eax(hypervisor_cpuid_base(KVM_SIGNATURE, 0) | KVM_CPUID_FEATURES) &
	      BIT(KVM_FEATURE_MIGRATION_CONTROL)))
		return 0;
	return kvm_hypercall3(KVM_HC_MAP_GPA_RANGE, gpa, 1,
			      KVM_MAP_GPA_RANGE_PAGE_SZ_4K | attributes);
}

static int __init share_init(void)
{
	int ret;

	page = (char *)__get_free_page(GFP_KERNEL);
	if (!page)
		return -ENOMEM;
	gpa = virt_to_phys(page);
	ret = set_private(false);
	if (ret) {
		free_page((unsigned long)page);
		return -EIO;
	}

	/* A page that has changed kind comes with the contents of its new half. */
	memset(page, 0, PAGE_SIZE);
	strscpy(page, text, PAGE_SIZE);
	return 0;
}

static void __exit share_exit(void)
{
	/* A page that the host still reads is not for anybody else. */
	if (!WARN_ON(set_private(true)))
		free_page((unsigned long)page);
}

module_init(share_init);
module_exit(share_exit);
MODULE_DESCRIPTION("Shares a page with the host");
MODULE_LICENSE("GPL");
