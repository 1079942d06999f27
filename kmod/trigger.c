// SPDX-License-Identifier: GPL-2.0-only
/*
 * When to sample.
 *
 * probe: a kprobe on the function that perf asks for the guest's IP; it fires
 * once for each of perf's samples that hit a guest. nmi: a second handler of
 * the NMIs of the PMU, which claims none of them.
 *
 * A hit in an NMI only notes the time and the IP. The guest is read in the
 * interrupt that irq_work raises on this CPU: KVM enables interrupts before it
 * can enter the guest again, so registers and stack still stand.
 */
#include <linux/irq_work.h>
#include <linux/kprobes.h>
#include <linux/percpu.h>
#include <linux/sched/clock.h>
#include <linux/timekeeping.h>
#include <asm/nmi.h>

#include "perfguest.h"
#include "compat.h"
#include "sample.h"
#include "stream.h"
#include "trigger.h"
#include "vcpu.h"

/* Events that overflow in one NMI each give a sample. */
#define PG_PENDING 16

struct pg_pending {
	struct pg_hit hits[PG_PENDING];
	unsigned int nr;	/* NMIs add, irq_work takes all */
	struct irq_work work;
};

static DEFINE_PER_CPU(struct pg_pending, pg_pending);

u64 pg_trigger_clock(void)
{
	return pg_settings.clock == PG_CLOCK_MONO ? ktime_get_mono_fast_ns() : local_clock();
}

static bool pg_pid_wanted(void)
{
	u32 i;

	for (i = 0; i < pg_settings.nr_pids; i++)
		if (pg_settings.pids[i] == current->tgid)
			return true;
	return !pg_settings.nr_pids;
}

static void pg_defer(const struct pg_hit *hit)
{
	struct pg_pending *pending = this_cpu_ptr(&pg_pending);

	if (pending->nr == PG_PENDING) {
		pg_stream_count_lost(PG_LOST_NESTED);
		return;
	}
	pending->hits[pending->nr++] = *hit;
	irq_work_queue(&pending->work);
}

static void pg_take_pending(struct irq_work *work)
{
	struct pg_pending *pending = container_of(work, struct pg_pending, work);
	unsigned int i = 0;

	/* An NMI may add behind what is there while this runs. */
	do {
		for (; i < READ_ONCE(pending->nr); i++)
			pg_sample_take(&pending->hits[i], true);
	} while (cmpxchg_local(&pending->nr, i, 0) != i);
}

static void pg_hit(struct kvm_vcpu *vcpu)
{
	struct pg_hit hit = { .vcpu = vcpu, .time = pg_trigger_clock() };
	unsigned long flags;

	hit.ip = pg_vcpu_ip(vcpu);
	hit.tgid = current->tgid;
	hit.tid = current->pid;
	hit.vcpu_id = vcpu->vcpu_id;
	pg_stream_count_taken();
	/* True in a breakpoint's handler too, which a probe's may be: deferring is right there as well. */
	if (in_nmi()) {
		pg_defer(&hit);
		return;
	}
	local_irq_save(flags);
	pg_sample_take(&hit, false);
	local_irq_restore(flags);
}

static int pg_probe_handler(struct kprobe *probe, struct pt_regs *regs)
{
	struct kvm_vcpu *vcpu;

	if (!pg_pid_wanted())
		return 0;
	vcpu = pg_vcpu_interrupted();
	if (likely(vcpu)) {
		pg_hit(vcpu);
	} else {
		pg_stream_count_taken();
		pg_stream_count_lost(PG_LOST_NO_VCPU);
	}
	return 0;
}

static int pg_nmi_handler(unsigned int type, struct pt_regs *regs)
{
	struct kvm_vcpu *vcpu;

	if (pg_pid_wanted()) {
		vcpu = pg_vcpu_interrupted();
		if (vcpu)
			pg_hit(vcpu);
	}
	return NMI_DONE;
}

static const char * const pg_get_ip_functions[] = { PG_GET_IP_FUNCTIONS };
static struct kprobe pg_probe;
static u64 pg_missed;

static int pg_probe_start(void)
{
	int i, ret = -ENOENT;

	for (i = 0; i < ARRAY_SIZE(pg_get_ip_functions) && ret; i++) {
		/* A probe that was registered once must be blank to be so again. */
		pg_probe = (struct kprobe){
			.symbol_name = pg_get_ip_functions[i],
			.pre_handler = pg_probe_handler,
		};
		ret = register_kprobe(&pg_probe);
	}
	if (ret)
		pg_probe.symbol_name = NULL;
	return ret;
}

bool pg_trigger_available(enum pg_trigger trigger)
{
	return trigger == PG_TRIGGER_NMI || IS_ENABLED(CONFIG_KPROBES);
}

int pg_trigger_start(enum pg_trigger trigger)
{
	int ret;

	pg_missed = 0;
	if (trigger == PG_TRIGGER_NMI)
		ret = register_nmi_handler(NMI_LOCAL, pg_nmi_handler, 0, "perfguest");
	else
		ret = pg_probe_start();
	return ret ? -EOPNOTSUPP : 0;
}

void pg_trigger_stop(enum pg_trigger trigger)
{
	int cpu;

	if (trigger == PG_TRIGGER_NMI) {
		unregister_nmi_handler(NMI_LOCAL, "perfguest");
	} else {
		unregister_kprobe(&pg_probe);
		pg_missed = pg_probe.nmissed;
	}
	for_each_possible_cpu(cpu)
		irq_work_sync(&per_cpu_ptr(&pg_pending, cpu)->work);
}

u64 pg_trigger_missed(void)
{
	return pg_missed;
}

const char *pg_trigger_function(void)
{
	return pg_probe.symbol_name ?: "none";
}

void pg_trigger_init(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		pg_init_hard_irq_work(&per_cpu_ptr(&pg_pending, cpu)->work, pg_take_pending);
}
