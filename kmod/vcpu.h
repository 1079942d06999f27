/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef PERFGUEST_VCPU_H
#define PERFGUEST_VCPU_H

#include <linux/types.h>

#include "perfguest.h"

struct kvm_vcpu;
struct seq_file;

/* What a vCPU was doing when it left the guest. */
struct pg_vcpu_state {
	u64 flags;		/* PG_SAMPLE_* */
	u64 ip;
	u64 regs[PG_NR_REGS];
	u64 rflags;
	u64 cr0;
	u64 cr3;
	u64 cr4;
	u64 efer;
	u64 gs_base;
	u64 kernel_gs_base;
	u64 lstar;		/* 0: not readable */
	u64 tss;		/* base of the task state segment; 0: not readable */
	u8 maxphyaddr;
};

/* Finds the ways to the running vCPU. Sleeps. -ENODEV if KVM is not there. */
int pg_vcpu_attach(enum pg_locator locator);
void pg_vcpu_detach(void);

bool pg_locator_available(enum pg_locator locator);
const char *pg_locator_name(enum pg_locator locator);
void pg_vcpu_show_stats(struct seq_file *seq);

/*
 * The vCPU that runs on this CPU and has just left the guest for the interrupt
 * that is being handled; NULL if this interrupt did not hit a guest. NMI-safe.
 */
struct kvm_vcpu *pg_vcpu_interrupted(void);

/* The same without the condition: the vCPU whose thread is current. NMI-safe. */
struct kvm_vcpu *pg_vcpu_current(void);

/* As perf has it. NMI-safe. */
u64 pg_vcpu_ip(const struct kvm_vcpu *vcpu);

/* On the vCPU's CPU, in its thread, before it enters the guest again. */
void pg_vcpu_read(struct kvm_vcpu *vcpu, struct pg_vcpu_state *state);

/* The vendors' parts of pg_vcpu_read(). */
void pg_svm_read(struct kvm_vcpu *vcpu, struct pg_vcpu_state *state);
void pg_vmx_read(struct kvm_vcpu *vcpu, struct pg_vcpu_state *state);
u64 pg_vmx_ip(const struct kvm_vcpu *vcpu);
u64 pg_svm_mismatches(void);
void pg_svm_reset(void);

#endif
