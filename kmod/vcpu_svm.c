// SPDX-License-Identifier: GPL-2.0-only
/*
 * What AMD's VMCB knows that struct kvm_vcpu does not.
 *
 * The pointer to the VMCB is the first member of KVM's private struct vcpu_svm
 * behind the embedded struct kvm_vcpu. That this holds is checked at every
 * sample: the RIP saved there must be the one that KVM copied out of it.
 */
#include <linux/kvm_host.h>
#include <linux/uaccess.h>
#include <asm/svm.h>

#include "compat.h"
#include "vcpu.h"

static atomic64_t pg_vmcb_mismatches;

u64 pg_svm_mismatches(void)
{
	return atomic64_read(&pg_vmcb_mismatches);
}

void pg_svm_reset(void)
{
	atomic64_set(&pg_vmcb_mismatches, 0);
}

static const struct vmcb *pg_svm_vmcb(struct kvm_vcpu *vcpu)
{
	const struct vmcb *vmcb;
	u64 rip;

	if (get_kernel_nofault(vmcb, (const struct vmcb **)(vcpu + 1)))
		return NULL;
	if (!vmcb || !PAGE_ALIGNED(vmcb) || get_kernel_nofault(rip, &vmcb->save.rip))
		return NULL;
	return rip == pg_vcpu_rip(vcpu) ? vmcb : NULL;
}

void pg_svm_read(struct kvm_vcpu *vcpu, struct pg_vcpu_state *state)
{
	const struct vmcb *vmcb = pg_svm_vmcb(vcpu);
	u16 cs;

	if (!vmcb) {
		atomic64_inc(&pg_vmcb_mismatches);
		return;
	}
	/*
	 * With nested paging the guest loads CR3 unseen, and KVM brings arch.cr3 up
	 * to date only after this interrupt. With shadow paging the VMCB's CR3 is
	 * KVM's own, and arch.cr3 is right.
	 */
	if (pg_vmcb_nested_paging(vmcb))
		state->cr3 = vmcb->save.cr3;
	state->rflags = vmcb->save.rflags;
	state->gs_base = vmcb->save.gs.base;
	state->kernel_gs_base = vmcb->save.kernel_gs_base;
	state->lstar = vmcb->save.lstar;
	state->tss = vmcb->save.tr.base;
	if (vmcb->save.cpl)
		state->flags |= PG_SAMPLE_USER;
	cs = vmcb->save.cs.attrib;
	if (state->flags & PG_SAMPLE_LONG_MODE && cs & SVM_SELECTOR_L_MASK)
		state->flags |= PG_SAMPLE_CODE64;
	else if (cs & SVM_SELECTOR_DB_MASK)
		state->flags |= PG_SAMPLE_CODE32;
	state->flags |= PG_SAMPLE_REGS | PG_SAMPLE_CR3 | PG_SAMPLE_GS | PG_SAMPLE_KERNEL_GS;
}
