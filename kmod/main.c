// SPDX-License-Identifier: GPL-2.0-only
/* perfguest: takes the stacks of KVM guests at perf's samples. */
#include <linux/debugfs.h>
#include <linux/module.h>

#include "perfguest.h"
#include "control.h"
#include "format.h"
#include "stream.h"
#include "trigger.h"
#include "vcpu.h"

static struct dentry *pg_dir;

/* Whether this host's KVM can be looked into, said at once and not first when sampling starts. */
static void pg_try_locators(void)
{
	int ret = pg_vcpu_attach(PG_LOCATOR_AUTO);
	enum pg_locator locator;

	if (ret) {
		pr_info("KVM is not loaded, or has no way to its vCPUs that is known: %d\n", ret);
		return;
	}
	for (locator = 0; locator < PG_NR_LOCATORS; locator++)
		if (pg_locator_available(locator))
			pr_info("locator available: %s\n", pg_locator_name(locator));
	pg_vcpu_detach();
}

static int __init pg_init(void)
{
	pg_dir = debugfs_create_dir("perfguest", NULL);
	if (IS_ERR(pg_dir))
		return PTR_ERR(pg_dir);
	pg_trigger_init();
	pg_format_init(pg_dir);
	pg_stream_init(pg_dir);
	pg_control_init(pg_dir);
	pg_try_locators();
	return 0;
}

static void __exit pg_exit(void)
{
	/* Open files hold the module, and sampling ends with the last of them. */
	debugfs_remove_recursive(pg_dir);
	pg_stream_exit();
}

module_init(pg_init);
module_exit(pg_exit);

MODULE_AUTHOR("The perfguest authors");
MODULE_DESCRIPTION("Stacks of KVM guests at perf's samples");
MODULE_LICENSE("GPL");
MODULE_VERSION("0.1.0");
