/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every difference between kernels, and nowhere else. What the preprocessor
 * cannot see, Kbuild looks for in the kernel's headers: PG_HAS_*. No version
 * decides anything but whether the kernel is too old.
 */
#ifndef PERFGUEST_COMPAT_H
#define PERFGUEST_COMPAT_H

#include <linux/irq_work.h>
#include <linux/kvm_host.h>
#include <linux/percpu.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <asm/msr.h>
#include <asm/svm.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 10, 0)
#error "perfguest needs Linux 5.10 or later on the host"
#endif

#if !IS_ENABLED(CONFIG_X86_64)
#error "perfguest runs on x86-64 hosts"
#endif

/*
 * Linux kernel commit 6fe22abacd40 ("x86/msr: Rename 'rdmsrl_safe()' to
 * 'rdmsrq_safe()'") (in v6.16).
 */
static inline int pg_rdmsr_safe(u32 msr, u64 *value)
{
#ifdef PG_HAS_RDMSRQ_SAFE
	return rdmsrq_safe(msr, value);
#else
	return rdmsrl_safe(msr, value);
#endif
}

/*
 * Work that runs in hard interrupts, also on PREEMPT_RT. Linux kernel commit
 * 7a9f50a05843 ("irq_work: Cleanup") (in v5.11).
 */
static inline void pg_init_hard_irq_work(struct irq_work *work, void (*func)(struct irq_work *))
{
#ifdef IRQ_WORK_INIT_HARD
	*work = IRQ_WORK_INIT_HARD(func);
#else
	init_irq_work(work, func);
	atomic_set(&work->flags, IRQ_WORK_HARD_IRQ);
#endif
}

/*
 * The functions through which perf asks KVM for the guest's IP, newest first.
 * Linux kernel commit e1bfc24577cc ("KVM: Move x86's perf guest info callbacks
 * to generic KVM") (in v5.17).
 */
#define PG_GET_IP_FUNCTIONS "kvm_guest_get_ip", "kvm_get_guest_ip"

/*
 * Whether this vCPU has just left the guest for the interrupt that is being
 * handled. Before the member there was, the per-CPU variable current_vcpu was
 * set for as long and at no other time. Linux kernel commit 73cd107b9685 ("KVM:
 * x86: Drop current_vcpu for kvm_running_vcpu + kvm_arch_vcpu variable") (in
 * v5.17).
 */
#ifdef PG_HAS_HANDLING_INTR
#define PG_NEEDS_CURRENT_VCPU false

static inline bool pg_vcpu_handling_intr(const struct kvm_vcpu *vcpu,
					 struct kvm_vcpu * __percpu *current_vcpu)
{
	return READ_ONCE(vcpu->arch.handling_intr_from_guest);
}
#else
#define PG_NEEDS_CURRENT_VCPU true

static inline bool pg_vcpu_handling_intr(const struct kvm_vcpu *vcpu,
					 struct kvm_vcpu * __percpu *current_vcpu)
{
	return this_cpu_read(*current_vcpu) == vcpu;
}
#endif

/* RIP was one of regs[] until 7.2 at the latest, and its name like theirs. */
static inline u64 pg_vcpu_rip(const struct kvm_vcpu *vcpu)
{
#ifdef PG_HAS_ARCH_RIP
	return vcpu->arch.rip;
#else
	return vcpu->arch.regs[VCPU_REGS_RIP];
#endif
}

#ifdef PG_HAS_ARCH_RIP
#define PG_VCPU_REG_RIP VCPU_REG_RIP
#define PG_VCPU_REG_CR3 VCPU_REG_CR3
#else
#define PG_VCPU_REG_RIP VCPU_REGS_RIP
#define PG_VCPU_REG_CR3 VCPU_EXREG_CR3
#endif

/* Whether the register stands in struct kvm_vcpu: regs_avail is a u32 or, with arch.rip, a bitmap. */
static inline bool pg_vcpu_reg_available(const struct kvm_vcpu *vcpu, enum kvm_reg reg)
{
	return test_bit(reg, (const unsigned long *)&vcpu->arch.regs_avail);
}

/*
 * The guest's registers are hidden from KVM too. Before the member there was,
 * KVM ran no such guests. Linux kernel commit add5e2f04541 ("KVM: SVM: Add
 * support for the SEV-ES VMSA") (in v5.11).
 */
static inline bool pg_vcpu_protected(const struct kvm_vcpu *vcpu)
{
#ifdef PG_HAS_STATE_PROTECTED
	return vcpu->arch.guest_state_protected;
#else
	return false;
#endif
}

static inline bool pg_vcpu_in_smm(const struct kvm_vcpu *vcpu)
{
#ifdef HF_SMM_MASK
	return vcpu->arch.hflags & HF_SMM_MASK;
#else
	return false;
#endif
}

/* A guest of the guest runs. The flag has moved to another bit, not yet away. */
static inline bool pg_vcpu_nested(const struct kvm_vcpu *vcpu)
{
#ifdef HF_GUEST_MASK
	return vcpu->arch.hflags & HF_GUEST_MASK;
#else
	return vcpu->stat.guest_mode;
#endif
}

/* Nested paging is on. The field and its bits have other names by 7.2. */
static inline bool pg_vmcb_nested_paging(const struct vmcb *vmcb)
{
#ifdef SVM_MISC_ENABLE_NP
	return vmcb->control.misc_ctl & SVM_MISC_ENABLE_NP;
#else
	return vmcb->control.nested_ctl & SVM_NESTED_CTL_NP_ENABLE;
#endif
}

/*
 * pg_for_each_memslot(): all memslots of address space 0, in no order. Needs
 * kvm->srcu, as pg_search_memslots() does, which is read-only: KVM's own searches
 * remember what they have found.
 *
 * Linux kernel commit a54d806688fe ("KVM: Keep memslots in tree-based structures
 * instead of array-based ones") (in v5.17). The array is sorted, the highest
 * first.
 */
#ifdef PG_HAS_MEMSLOT_TREES
#define pg_for_each_memslot(slot, bkt, slots) kvm_for_each_memslot(slot, bkt, slots)

static inline const struct kvm_memory_slot *
pg_search_memslots(struct kvm_memslots *slots, gfn_t gfn)
{
	return search_memslots(slots, gfn, false);
}
#else
#define pg_for_each_memslot(slot, bkt, slots)				\
	for ((bkt) = 0, (slot) = (slots)->memslots;			\
	     (bkt) < (slots)->used_slots; (bkt)++, (slot)++)

static inline const struct kvm_memory_slot *
pg_search_memslots(struct kvm_memslots *slots, gfn_t gfn)
{
	int first = 0, behind = slots->used_slots;

	/* All before first begin above gfn, those from behind on do not. */
	while (first < behind) {
		int middle = first + (behind - first) / 2;

		if (slots->memslots[middle].base_gfn > gfn)
			first = middle + 1;
		else
			behind = middle;
	}
	if (first == slots->used_slots ||
	    gfn - slots->memslots[first].base_gfn >= slots->memslots[first].npages)
		return NULL;
	return &slots->memslots[first];
}
#endif

/* Takes a const memslot in some kernels only. */
static inline unsigned long pg_memslot_hva(const struct kvm_memory_slot *slot, gfn_t gfn)
{
	return __gfn_to_hva_memslot((struct kvm_memory_slot *)slot, gfn);
}

#endif
