// SPDX-License-Identifier: GPL-2.0-only
/*
 * What Intel's VMCS knows that struct kvm_vcpu does not, or not yet: KVM reads
 * RSP, RIP and the control registers out of it only when it needs them.
 *
 * The current VMCS is that of the vCPU whose thread is current, from the time it
 * was loaded on this CPU until it is put; VMREAD changes nothing.
 */
#include <linux/kvm_host.h>
#include <asm/asm.h>
#include <asm/vmx.h>

#include "compat.h"
#include "vcpu.h"

/* Access rights of a segment: SDM volume 3, 26.4.1. */
#define PG_AR_DPL_SHIFT		5
#define PG_AR_DPL_MASK		3
#define PG_AR_L			BIT(13)
#define PG_AR_DB		BIT(14)

/* False if there is no current VMCS, it lacks the field, or VMX is off. */
static bool pg_vmread(unsigned long field, u64 *value)
{
	unsigned long result = 0;
	bool failed = true;

	asm volatile("1: vmread %[field], %[result]\n\t"
		     "setna %[failed]\n\t"
		     "2:\n\t"
		     _ASM_EXTABLE(1b, 2b)
		     : [result] "+r" (result), [failed] "+q" (failed)
		     : [field] "r" (field)
		     : "cc");
	*value = result;
	return !failed;
}

u64 pg_vmx_ip(const struct kvm_vcpu *vcpu)
{
	u64 ip;

	if (!pg_vcpu_reg_available(vcpu, PG_VCPU_REG_RIP) && pg_vmread(GUEST_RIP, &ip))
		return ip;
	return pg_vcpu_rip(vcpu);
}

/* Bits that the guest changes unseen stand in the VMCS, the others in KVM. */
static bool pg_vmx_control_register(unsigned long field, u64 owned, u64 *value)
{
	u64 in_vmcs;

	if (!pg_vmread(field, &in_vmcs))
		return false;
	*value = (*value & ~owned) | (in_vmcs & owned);
	return true;
}

static void pg_vmx_read_cr3(struct kvm_vcpu *vcpu, struct pg_vcpu_state *state)
{
	u64 controls;

	if (pg_vcpu_reg_available(vcpu, PG_VCPU_REG_CR3)) {
		state->flags |= PG_SAMPLE_CR3;
		return;
	}
	if (!pg_vmread(CPU_BASED_VM_EXEC_CONTROL, &controls))
		return;
	/* While loads of CR3 exit, the VMCS holds KVM's own and arch.cr3 is right. */
	if (controls & CPU_BASED_CR3_LOAD_EXITING || pg_vmread(GUEST_CR3, &state->cr3))
		state->flags |= PG_SAMPLE_CR3;
}

void pg_vmx_read(struct kvm_vcpu *vcpu, struct pg_vcpu_state *state)
{
	const u64 syscall = EFER_LMA | EFER_SCE;
	u64 cs, ss;

	if (!pg_vcpu_reg_available(vcpu, VCPU_REGS_RSP) &&
	    !pg_vmread(GUEST_RSP, &state->regs[PG_RSP]))
		return;
	if (!pg_vmread(GUEST_RFLAGS, &state->rflags) ||
	    !pg_vmread(GUEST_CS_AR_BYTES, &cs) || !pg_vmread(GUEST_SS_AR_BYTES, &ss) ||
	    !pg_vmx_control_register(GUEST_CR0, vcpu->arch.cr0_guest_owned_bits, &state->cr0) ||
	    !pg_vmx_control_register(GUEST_CR4, vcpu->arch.cr4_guest_owned_bits, &state->cr4))
		return;
	state->flags |= PG_SAMPLE_REGS;
	/* Without unrestricted guests KVM runs real mode as virtual-8086 mode, with a DPL of 3. */
	if (state->cr0 & X86_CR0_PE && ss >> PG_AR_DPL_SHIFT & PG_AR_DPL_MASK)
		state->flags |= PG_SAMPLE_USER;
	if (state->flags & PG_SAMPLE_LONG_MODE && cs & PG_AR_L)
		state->flags |= PG_SAMPLE_CODE64;
	else if (cs & PG_AR_DB)
		state->flags |= PG_SAMPLE_CODE32;
	pg_vmx_read_cr3(vcpu, state);

	if (pg_vmread(GUEST_GS_BASE, &state->gs_base))
		state->flags |= PG_SAMPLE_GS;
	if (!pg_vmread(GUEST_TR_BASE, &state->tss))
		state->tss = 0;
	/* KVM leaves these in the CPU until the thread returns to user space or sleeps. */
	if (!pg_rdmsr_safe(MSR_KERNEL_GS_BASE, &state->kernel_gs_base))
		state->flags |= PG_SAMPLE_KERNEL_GS;
	/* This one too, but only while the guest can use it; else it is the host's. */
	if ((state->efer & syscall) != syscall || pg_rdmsr_safe(MSR_LSTAR, &state->lstar))
		state->lstar = 0;
}
