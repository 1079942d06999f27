// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which vCPU was running, and its registers.
 *
 * KVM has exported its accessor from 5.6 on, and since 6.18 for its own modules:
 * __symbol_get() still finds it. Its entry keeps its ENDBR there (it is not in
 * kvm.ko's .ibt_endbr_seal in Debian's 6.12, 6.18 and 7.3), as that of a function
 * that is not exported need not. So there are several ways to the vCPU, and none
 * calls a function that is not exported. All that are there are asked for each
 * sample and must agree: the first that gives a vCPU whose VM belongs to the
 * current process is believed, a difference is counted.
 */
#include <linux/kprobes.h>
#include <linux/kvm_host.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/seq_file.h>
#include <linux/uaccess.h>

#include "perfguest.h"
#include "compat.h"
#include "gs_scan.h"
#include "vcpu.h"

/* How much of a function the scanner sees; the accessor is about 60 bytes long. */
#define PG_SCAN_BYTES 64

/* How far a probe's address may lie behind the function's: ENDBR and the like. */
#define PG_ENTRY_SLACK 16

typedef struct kvm_vcpu *(*pg_accessor_fn)(void);

static struct {
	enum pg_locator chosen;
	unsigned long available;	/* bit per locator */
	pg_accessor_fn accessor;
	struct kvm_vcpu * __percpu *percpu;
	struct kvm_vcpu * __percpu *scanned;
	unsigned long sched_in;		/* kvm_sched_in, or a little behind it; 0: not known */
	bool is_vmx;
} pg_kvm;

static atomic64_t pg_disagreements;
static atomic64_t pg_found[PG_NR_LOCATORS];

static const char * const pg_locator_names[] = {
	[PG_LOCATOR_PREEMPT] = "preempt",
	[PG_LOCATOR_ACCESSOR] = "accessor",
	[PG_LOCATOR_PERCPU] = "percpu",
	[PG_LOCATOR_SCAN] = "scan",
	[PG_LOCATOR_AUTO] = "auto",
};

const char *pg_locator_name(enum pg_locator locator)
{
	return pg_locator_names[locator];
}

bool pg_locator_available(enum pg_locator locator)
{
	return locator == PG_LOCATOR_AUTO || pg_kvm.available & BIT(locator);
}

/* kallsyms_lookup_name() is not exported; a kprobe that is never armed resolves a name too. */
static unsigned long pg_function_address(const char *name)
{
	struct kprobe probe = { .symbol_name = name, .flags = KPROBE_FLAG_DISABLED };
	unsigned long address;

	if (register_kprobe(&probe))
		return 0;
	address = (unsigned long)probe.addr;
	unregister_kprobe(&probe);
	return address;
}

static struct kvm_vcpu *pg_locate_preempt(void)
{
#ifdef CONFIG_PREEMPT_NOTIFIERS
	struct preempt_notifier *notifier;

	/* Only current changes its list, and adds to its front: an NMI sees it whole. */
	hlist_for_each_entry(notifier, &current->preempt_notifiers, link) {
		unsigned long sched_in = (unsigned long)notifier->ops->sched_in;

		if (pg_kvm.sched_in - sched_in <= PG_ENTRY_SLACK)
			return container_of(notifier, struct kvm_vcpu, preempt_notifier);
	}
#endif
	return NULL;
}

static struct kvm_vcpu *pg_locate_percpu(struct kvm_vcpu * __percpu *variable)
{
	struct kvm_vcpu *vcpu;

	/* A scanned offset may be wrong, and KVM may be unloaded behind it. */
	return get_kernel_nofault(vcpu, this_cpu_ptr(variable)) ? NULL : vcpu;
}

static struct kvm_vcpu *pg_locate(enum pg_locator locator)
{
	switch (locator) {
	case PG_LOCATOR_PREEMPT:
		return pg_locate_preempt();
	case PG_LOCATOR_ACCESSOR:
		return pg_kvm.accessor();
	case PG_LOCATOR_PERCPU:
		return pg_locate_percpu(pg_kvm.percpu);
	case PG_LOCATOR_SCAN:
		return pg_locate_percpu(pg_kvm.scanned);
	default:
		return NULL;
	}
}

/* Whether what a locator gave is a vCPU of this process, without trusting it. */
static bool pg_vcpu_plausible(struct kvm_vcpu *vcpu)
{
	struct mm_struct *mm;
	struct kvm *kvm;

	if (get_kernel_nofault(kvm, &vcpu->kvm) || get_kernel_nofault(mm, &kvm->mm))
		return false;
	return mm && mm == current->mm;
}

struct kvm_vcpu *pg_vcpu_current(void)
{
	struct kvm_vcpu *result = NULL;
	enum pg_locator locator;
	bool differ = false;

	for (locator = 0; locator < PG_NR_LOCATORS; locator++) {
		struct kvm_vcpu *vcpu;

		if (!(pg_kvm.available & BIT(locator)))
			continue;
		vcpu = pg_locate(locator);
		if (vcpu && !pg_vcpu_plausible(vcpu))
			vcpu = NULL;
		if (vcpu)
			atomic64_inc(&pg_found[locator]);
		if (pg_kvm.chosen == locator || (pg_kvm.chosen == PG_LOCATOR_AUTO && !result)) {
			differ |= result && vcpu != result;
			result = vcpu;
		} else if (vcpu && result && vcpu != result) {
			differ = true;
		}
	}
	if (unlikely(differ))
		atomic64_inc(&pg_disagreements);
	return result;
}

struct kvm_vcpu *pg_vcpu_interrupted(void)
{
	struct kvm_vcpu *vcpu = pg_vcpu_current();

	return vcpu && pg_vcpu_handling_intr(vcpu, pg_kvm.percpu) ? vcpu : NULL;
}

u64 pg_vcpu_ip(const struct kvm_vcpu *vcpu)
{
	if (pg_vcpu_protected(vcpu))
		return 0;
	return pg_kvm.is_vmx ? pg_vmx_ip(vcpu) : pg_vcpu_rip(vcpu);
}

void pg_vcpu_read(struct kvm_vcpu *vcpu, struct pg_vcpu_state *state)
{
	int i;

	memset(state, 0, sizeof(*state));
	state->ip = pg_vcpu_ip(vcpu);
	if (pg_vcpu_in_smm(vcpu))
		state->flags |= PG_SAMPLE_SMM;
	if (pg_vcpu_nested(vcpu))
		state->flags |= PG_SAMPLE_NESTED;
	if (pg_vcpu_protected(vcpu)) {
		state->flags |= PG_SAMPLE_PROTECTED;
		return;
	}
	for (i = 0; i < PG_NR_REGS; i++)
		state->regs[i] = vcpu->arch.regs[i];
	state->cr0 = vcpu->arch.cr0;
	state->cr3 = vcpu->arch.cr3;
	state->cr4 = vcpu->arch.cr4;
	state->efer = vcpu->arch.efer;
	state->maxphyaddr = vcpu->arch.maxphyaddr;
	if (state->efer & EFER_LMA)
		state->flags |= PG_SAMPLE_LONG_MODE;
	if (pg_kvm.is_vmx)
		pg_vmx_read(vcpu, state);
	else
		pg_svm_read(vcpu, state);
}

static void pg_attach_scan(void)
{
	unsigned long address = pg_function_address("kvm_get_running_vcpu");
	u8 code[PG_SCAN_BYTES];
	u64 offset;

	if (!address || copy_from_kernel_nofault(code, (void *)address, sizeof(code)))
		return;
	if (pg_scan_gs_offset(code, sizeof(code), address, &offset))
		return;
	pg_kvm.scanned = (struct kvm_vcpu * __percpu *)(uintptr_t)offset;
	pg_kvm.available |= BIT(PG_LOCATOR_SCAN);
}

static void pg_check_this_cpu(void *unused)
{
	pg_vcpu_current();
}

static void pg_reset_counts(void)
{
	int i;

	atomic64_set(&pg_disagreements, 0);
	for (i = 0; i < PG_NR_LOCATORS; i++)
		atomic64_set(&pg_found[i], 0);
}

/* Where a vCPU's thread is interrupted for this, all locators must name that vCPU. */
static void pg_cross_check(void)
{
	on_each_cpu(pg_check_this_cpu, NULL, 1);
	if (atomic64_read(&pg_disagreements) && pg_kvm.available & BIT(PG_LOCATOR_SCAN)) {
		pr_warn("the per-CPU variable found in KVM's code is another one: not used\n");
		pg_kvm.available &= ~BIT(PG_LOCATOR_SCAN);
	}
	pg_reset_counts();
}

int pg_vcpu_attach(enum pg_locator locator)
{
	memset(&pg_kvm, 0, sizeof(pg_kvm));
	pg_kvm.chosen = locator;
	pg_kvm.is_vmx = boot_cpu_has(X86_FEATURE_VMX);
	pg_reset_counts();
	pg_svm_reset();

	pg_kvm.sched_in = pg_function_address("kvm_sched_in");
	if (IS_ENABLED(CONFIG_PREEMPT_NOTIFIERS) && pg_kvm.sched_in)
		pg_kvm.available |= BIT(PG_LOCATOR_PREEMPT);

	pg_kvm.accessor = (pg_accessor_fn)__symbol_get("kvm_get_running_vcpu");
	if (pg_kvm.accessor)
		pg_kvm.available |= BIT(PG_LOCATOR_ACCESSOR);

	pg_kvm.percpu = (struct kvm_vcpu * __percpu *)__symbol_get("current_vcpu");
	if (pg_kvm.percpu)
		pg_kvm.available |= BIT(PG_LOCATOR_PERCPU);

	pg_attach_scan();
	pg_cross_check();

	if (!pg_kvm.available || (PG_NEEDS_CURRENT_VCPU && !pg_kvm.percpu)) {
		pg_vcpu_detach();
		return -ENODEV;
	}
	if (!pg_locator_available(locator)) {
		pg_vcpu_detach();
		return -EOPNOTSUPP;
	}
	return 0;
}

void pg_vcpu_detach(void)
{
	if (pg_kvm.accessor)
		__symbol_put("kvm_get_running_vcpu");
	if (pg_kvm.percpu)
		__symbol_put("current_vcpu");
	pg_kvm.accessor = NULL;
	pg_kvm.percpu = NULL;
	pg_kvm.available = 0;
}

void pg_vcpu_show_stats(struct seq_file *seq)
{
	enum pg_locator locator;

	seq_printf(seq, "locator %s\n", pg_locator_names[pg_kvm.chosen]);
	seq_puts(seq, "locators");
	for (locator = 0; locator < PG_NR_LOCATORS; locator++)
		if (pg_kvm.available & BIT(locator))
			seq_printf(seq, " %s", pg_locator_names[locator]);
	seq_putc(seq, '\n');
	for (locator = 0; locator < PG_NR_LOCATORS; locator++)
		seq_printf(seq, "found_%s %lld\n", pg_locator_names[locator],
			   atomic64_read(&pg_found[locator]));
	seq_printf(seq, "disagreements %lld\n", atomic64_read(&pg_disagreements));
	seq_printf(seq, "vmcb_mismatches %llu\n", pg_svm_mismatches());
}
