// SPDX-License-Identifier: GPL-2.0-only
/* Guest physical -> host virtual -> bytes: never faulting, never sleeping, never writing. */
#include <linux/kvm_host.h>
#include <linux/srcu.h>
#include <linux/uaccess.h>

#include "perfguest.h"
#include "compat.h"
#include "guest_mem.h"
#include "vcpu.h"

static const struct kvm_memory_slot *pg_guest_mem_slot(struct pg_guest_mem *mem, gfn_t gfn)
{
	const struct kvm_memory_slot *slot = mem->slot;

	if (!slot || gfn < slot->base_gfn || gfn - slot->base_gfn >= slot->npages) {
		slot = pg_search_memslots(mem->slots, gfn);
		mem->slot = slot;
	}
	return slot;
}

static int pg_guest_mem_read(void *ctx, __u64 gpa, void *buf, __u32 len)
{
	struct pg_guest_mem *mem = ctx;
	const struct kvm_memory_slot *slot;
	unsigned long hva;

	slot = pg_guest_mem_slot(mem, gpa_to_gfn(gpa));
	if (!slot || slot->flags & KVM_MEMSLOT_INVALID)
		return PG_END_NO_SLOT;
	hva = __gfn_to_hva_memslot(slot, gpa_to_gfn(gpa)) + offset_in_page(gpa);
	if (copy_from_user_nofault(buf, (const void __user *)hva, len))
		return PG_END_NOT_RESIDENT;
	return 0;
}

void pg_guest_mem_begin(struct pg_guest_mem *mem, struct kvm *kvm,
			const struct pg_vcpu_state *state)
{
	const struct pg_paging paging = {
		.cr0 = state->cr0,
		.cr3 = state->cr3,
		.cr4 = state->cr4,
		.efer = state->efer,
		.maxphyaddr = state->maxphyaddr,
	};
	const struct pg_phys phys = { .read = pg_guest_mem_read, .ctx = mem };

	mem->kvm = kvm;
	mem->slot = NULL;
	/* KVM does not hold it here: it lets go of it around the guest. */
	mem->srcu_index = srcu_read_lock(&kvm->srcu);
	mem->slots = kvm_memslots(kvm);
	pg_virt_init(&mem->virt, &paging, &phys);
}

void pg_guest_mem_end(struct pg_guest_mem *mem)
{
	srcu_read_unlock(&mem->kvm->srcu, mem->srcu_index);
}
