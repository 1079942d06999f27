// SPDX-License-Identifier: GPL-2.0-only
/* The session: what is chosen through debugfs, and when sampling is on. */
#include <linux/cpumask.h>
#include <linux/debugfs.h>
#include <linux/mutex.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "perfguest.h"
#include "control.h"
#include "sample.h"
#include "stream.h"
#include "task.h"
#include "trigger.h"
#include "vcpu.h"
#include "vms.h"

struct pg_settings pg_settings = {
	.trigger = PG_TRIGGER_PROBE,
	.locator = PG_LOCATOR_AUTO,
	.clock = PG_CLOCK_LOCAL,
	.chain_depth = 127,
	.buffer_kb = 4096,
};

static DEFINE_MUTEX(pg_session_lock);
static bool pg_enabled;

static int pg_session_start(void)
{
	int ret;

	lockdep_assert_held(&pg_session_lock);
	if (pg_enabled)
		return -EBUSY;
	if (!pg_stream_readers())
		return -ENOTCONN;
	/* Less than that, and a single sample could find no room in an empty ring. */
	if (2ULL * pg_sample_prepare() > pg_stream_smallest())
		return -EMSGSIZE;
	ret = pg_vcpu_attach(pg_settings.locator);
	if (ret)
		return ret;
	pg_stream_reset();
	pg_vms_reset();
	ret = pg_trigger_start(pg_settings.trigger);
	if (ret) {
		pg_vcpu_detach();
		return ret;
	}
	pg_enabled = true;
	return 0;
}

static void pg_session_stop(void)
{
	lockdep_assert_held(&pg_session_lock);
	if (!pg_enabled)
		return;
	pg_trigger_stop(pg_settings.trigger);
	pg_vcpu_detach();
	pg_enabled = false;
}

void pg_control_no_readers(void)
{
	mutex_lock(&pg_session_lock);
	/* Another reader may have come in the meantime, for a session of its own. */
	if (!pg_stream_readers())
		pg_session_stop();
	mutex_unlock(&pg_session_lock);
}

static int pg_enable_get(void *unused, u64 *value)
{
	*value = READ_ONCE(pg_enabled);
	return 0;
}

static int pg_enable_set(void *unused, u64 value)
{
	int ret = 0;

	if (value > 1)
		return -EINVAL;
	mutex_lock(&pg_session_lock);
	if (value)
		ret = pg_session_start();
	else
		pg_session_stop();
	mutex_unlock(&pg_session_lock);
	return ret;
}
DEFINE_DEBUGFS_ATTRIBUTE(pg_enable_fops, pg_enable_get, pg_enable_set, "%llu\n");

/* A number that is chosen. */
struct pg_number {
	const char *name;
	u32 *value;
	u32 min;
	u32 max;
};

static const struct pg_number pg_numbers[] = {
	{ "kernel_stack", &pg_settings.kernel_stack, 0, PG_MAX_KERNEL_STACK },
	{ "user_stack", &pg_settings.user_stack, 0, PG_MAX_USER_STACK },
	{ "chain_depth", &pg_settings.chain_depth, 0, PG_MAX_CHAIN_DEPTH },
	{ "buffer_kb", &pg_settings.buffer_kb, 64, PG_MAX_BUFFER_KB },
};

static int pg_number_get(void *data, u64 *value)
{
	const struct pg_number *number = data;

	*value = READ_ONCE(*number->value);
	return 0;
}

static int pg_number_set(void *data, u64 value)
{
	const struct pg_number *number = data;
	int ret = 0;

	if (value < number->min || value > number->max)
		return -EINVAL;
	mutex_lock(&pg_session_lock);
	if (pg_enabled)
		ret = -EBUSY;
	else
		WRITE_ONCE(*number->value, value);
	mutex_unlock(&pg_session_lock);
	return ret;
}
DEFINE_DEBUGFS_ATTRIBUTE(pg_number_fops, pg_number_get, pg_number_set, "%llu\n");

/* One of several words that is chosen; the file shows it in brackets. */
struct pg_choice {
	const char *file;
	unsigned int nr;
	const char *(*name)(unsigned int option);
	bool (*available)(unsigned int option);
	unsigned int (*get)(void);
	void (*set)(unsigned int option);
};

static const char *pg_trigger_name(unsigned int option)
{
	return option == PG_TRIGGER_NMI ? "nmi" : "probe";
}

static bool pg_trigger_option(unsigned int option)
{
	return pg_trigger_available(option);
}

static unsigned int pg_trigger_get(void)
{
	return pg_settings.trigger;
}

static void pg_trigger_set(unsigned int option)
{
	pg_settings.trigger = option;
}

static const char *pg_locator_option_name(unsigned int option)
{
	return pg_locator_name(option);
}

static unsigned int pg_locator_get(void)
{
	return pg_settings.locator;
}

static void pg_locator_set(unsigned int option)
{
	pg_settings.locator = option;
}

static const char *pg_clock_name(unsigned int option)
{
	return option == PG_CLOCK_MONO ? "mono" : "local";
}

static unsigned int pg_clock_get(void)
{
	return pg_settings.clock;
}

static void pg_clock_set(unsigned int option)
{
	pg_settings.clock = option;
}

/* Which locators there are depends on KVM, which may be loaded later: enable tells. */
static bool pg_any_option(unsigned int option)
{
	return true;
}

static const struct pg_choice pg_choices[] = {
	{ "trigger", PG_NR_TRIGGERS, pg_trigger_name, pg_trigger_option,
	  pg_trigger_get, pg_trigger_set },
	{ "locator", PG_NR_LOCATORS + 1, pg_locator_option_name, pg_any_option,
	  pg_locator_get, pg_locator_set },
	{ "clock", 2, pg_clock_name, pg_any_option, pg_clock_get, pg_clock_set },
};

static int pg_choice_show(struct seq_file *seq, void *unused)
{
	const struct pg_choice *choice = seq->private;
	unsigned int i;

	for (i = 0; i < choice->nr; i++)
		if (choice->available(i))
			seq_printf(seq, i == choice->get() ? "[%s] " : "%s ", choice->name(i));
	seq_putc(seq, '\n');
	return 0;
}

static int pg_choice_open(struct inode *inode, struct file *file)
{
	return single_open(file, pg_choice_show, inode->i_private);
}

static ssize_t pg_choice_write(struct file *file, const char __user *from, size_t count,
			       loff_t *pos)
{
	const struct pg_choice *choice = ((struct seq_file *)file->private_data)->private;
	ssize_t ret = -EINVAL;
	char word[16] = {};
	unsigned int i;

	if (count >= sizeof(word))
		return -EINVAL;
	if (copy_from_user(word, from, count))
		return -EFAULT;
	mutex_lock(&pg_session_lock);
	if (pg_enabled)
		ret = -EBUSY;
	for (i = 0; i < choice->nr && ret == -EINVAL; i++) {
		if (choice->available(i) && sysfs_streq(word, choice->name(i))) {
			choice->set(i);
			ret = count;
		}
	}
	mutex_unlock(&pg_session_lock);
	return ret;
}

static const struct file_operations pg_choice_fops = {
	.owner = THIS_MODULE,
	.open = pg_choice_open,
	.read = seq_read,
	.write = pg_choice_write,
	.llseek = seq_lseek,
	.release = single_release,
};

static int pg_pids_show(struct seq_file *seq, void *unused)
{
	u32 i;

	mutex_lock(&pg_session_lock);
	for (i = 0; i < pg_settings.nr_pids; i++)
		seq_printf(seq, "%d%c", pg_settings.pids[i],
			   i + 1 < pg_settings.nr_pids ? ' ' : '\n');
	mutex_unlock(&pg_session_lock);
	return 0;
}

static int pg_pids_open(struct inode *inode, struct file *file)
{
	return single_open(file, pg_pids_show, NULL);
}

static int pg_pids_parse(char *text, pid_t *pids, u32 *nr)
{
	char *word;

	*nr = 0;
	while ((word = strsep(&text, " \n"))) {
		if (!*word)
			continue;
		if (*nr == PG_MAX_PIDS)
			return -E2BIG;
		if (kstrtoint(word, 10, &pids[*nr]) || pids[*nr] <= 0)
			return -EINVAL;
		++*nr;
	}
	return 0;
}

static ssize_t pg_pids_write(struct file *file, const char __user *from, size_t count, loff_t *pos)
{
	pid_t pids[PG_MAX_PIDS];
	ssize_t ret;
	char *text;
	u32 nr;

	if (count >= PAGE_SIZE)
		return -EINVAL;
	text = memdup_user_nul(from, count);
	if (IS_ERR(text))
		return PTR_ERR(text);
	ret = pg_pids_parse(text, pids, &nr);
	kfree(text);
	if (ret)
		return ret;
	mutex_lock(&pg_session_lock);
	if (pg_enabled) {
		ret = -EBUSY;
	} else {
		memcpy(pg_settings.pids, pids, nr * sizeof(*pids));
		pg_settings.nr_pids = nr;
		ret = count;
	}
	mutex_unlock(&pg_session_lock);
	return ret;
}

static const struct file_operations pg_pids_fops = {
	.owner = THIS_MODULE,
	.open = pg_pids_open,
	.read = seq_read,
	.write = pg_pids_write,
	.llseek = seq_lseek,
	.release = single_release,
};

/* "VM_ID CURRENT PID TGID COMM START STACK": see struct pg_task_layout. VM_ID alone forgets. */
static ssize_t pg_tasks_write(struct file *file, const char __user *from, size_t count,
			      loff_t *pos)
{
	struct pg_task_layout layout;
	char text[160] = {}, *rest;
	unsigned int vm_id;
	int ret;

	if (count >= sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, from, count))
		return -EFAULT;
	rest = strim(text);
	if (kstrtouint(strsep(&rest, " "), 0, &vm_id))
		return -EINVAL;
	ret = pg_task_layout_parse(rest ?: "", &layout);
	if (ret)
		return ret;
	return pg_vms_tell_tasks(vm_id, &layout) ?: count;
}

static const struct file_operations pg_tasks_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = pg_tasks_write,
};

static int pg_stats_show(struct seq_file *seq, void *unused)
{
	struct pg_counts counts;
	struct pg_cost cost;
	int cpu;

	mutex_lock(&pg_session_lock);
	seq_printf(seq, "enabled %d\n", pg_enabled);
	seq_printf(seq, "trigger %s\n", pg_trigger_name(pg_settings.trigger));
	seq_printf(seq, "function %s\n", pg_trigger_function());
	pg_vcpu_show_stats(seq);
	seq_printf(seq, "vms %u\n", pg_vms_count());
	seq_printf(seq, "missed %llu\n", pg_trigger_missed());
	for_each_possible_cpu(cpu) {
		pg_stream_counts(cpu, &counts);
		pg_sample_cost(cpu, &cost);
		seq_printf(seq,
			   "cpu%d taken %llu written %llu full %llu nested %llu no_reader %llu no_vcpu %llu",
			   cpu, counts.taken, counts.written, counts.lost[PG_LOST_FULL],
			   counts.lost[PG_LOST_NESTED], counts.lost[PG_LOST_NO_READER],
			   counts.lost[PG_LOST_NO_VCPU]);
		seq_printf(seq, " ns %llu longest_ns %llu\n", cost.total, cost.longest);
	}
	mutex_unlock(&pg_session_lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(pg_stats);

void pg_control_init(struct dentry *dir)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(pg_numbers); i++)
		debugfs_create_file(pg_numbers[i].name, 0600, dir, (void *)&pg_numbers[i],
				    &pg_number_fops);
	for (i = 0; i < ARRAY_SIZE(pg_choices); i++)
		debugfs_create_file(pg_choices[i].file, 0600, dir, (void *)&pg_choices[i],
				    &pg_choice_fops);
	debugfs_create_file("pids", 0600, dir, NULL, &pg_pids_fops);
	debugfs_create_file("tasks", 0200, dir, NULL, &pg_tasks_fops);
	debugfs_create_file("stats", 0400, dir, NULL, &pg_stats_fops);
	debugfs_create_file("enable", 0600, dir, NULL, &pg_enable_fops);
}
