/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every difference between kernels, and nowhere else. A test for a version
 * stands only where the preprocessor cannot see the thing itself.
 */
#ifndef PERFGUEST_COMPAT_H
#define PERFGUEST_COMPAT_H

#include <linux/kvm_host.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <asm/msr.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 17, 0)
#error "perfguest needs Linux 5.17 or later on the host"
#endif

#if !IS_ENABLED(CONFIG_X86_64)
#error "perfguest runs on x86-64 hosts"
#endif

/*
 * Linux kernel commit 12f53ce6d1d2 ("x86/msr: Rename 'rdmsrl_safe()' to
 * 'rdmsrq_safe()'") (in v6.16).
 */
static inline int pg_rdmsr_safe(u32 msr, u64 *value)
{
#ifdef rdmsrq_safe
	return rdmsrq_safe(msr, value);
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0)
	return rdmsrq_safe(msr, value);
#else
	return rdmsrl_safe(msr, value);
#endif
}

/*
 * The functions through which perf asks KVM for the guest's IP, newest first.
 * Linux kernel commit e1bfc24577cc ("KVM: Move x86's perf guest info callbacks
 * to generic KVM") (in v5.18).
 */
#define PG_GET_IP_FUNCTIONS "kvm_guest_get_ip", "kvm_get_guest_ip"

static inline bool pg_vcpu_handling_intr(const struct kvm_vcpu *vcpu)
{
	return READ_ONCE(vcpu->arch.handling_intr_from_guest);
}

static inline u64 pg_vcpu_rip(const struct kvm_vcpu *vcpu)
{
	return vcpu->arch.regs[VCPU_REGS_RIP];
}

static inline bool pg_vcpu_in_smm(const struct kvm_vcpu *vcpu)
{
#ifdef HF_SMM_MASK
	return vcpu->arch.hflags & HF_SMM_MASK;
#else
	return false;
#endif
}

/* A guest of the guest runs. */
static inline bool pg_vcpu_nested(const struct kvm_vcpu *vcpu)
{
	return vcpu->stat.guest_mode;
}

/* All memslots of address space 0, in no order. Needs kvm->srcu. */
#define pg_for_each_memslot(slot, bkt, slots) kvm_for_each_memslot(slot, bkt, slots)

/* Read-only, unlike __gfn_to_memslot(), which remembers what it found. */
static inline const struct kvm_memory_slot *
pg_search_memslots(struct kvm_memslots *slots, gfn_t gfn)
{
	return search_memslots(slots, gfn, false);
}

#endif
