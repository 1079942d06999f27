/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef PERFGUEST_SAMPLE_H
#define PERFGUEST_SAMPLE_H

#include <linux/types.h>

struct kvm_vcpu;

/* What is known at the moment of the hit, before the guest is read. */
struct pg_hit {
	struct kvm_vcpu *vcpu;
	u64 time;
	u64 ip;
	pid_t tgid;
	pid_t tid;
	u32 vcpu_id;
};

/* For the settings of the session that begins. The most that one sample takes, in bytes. */
u32 pg_sample_prepare(void);

/* What the samples of a session took on one CPU, in nanoseconds. */
struct pg_cost {
	u64 total;
	u64 longest;
};

void pg_sample_cost(int cpu, struct pg_cost *cost);

/*
 * Takes the sample and writes it, or counts it as lost. On the CPU of the hit,
 * in the vCPU's thread, interrupts off, not in an NMI. With deferred, the hit
 * was in an NMI before: the vCPU must still be where it was.
 */
void pg_sample_take(const struct pg_hit *hit, bool deferred);

#endif
