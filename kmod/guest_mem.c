// SPDX-License-Identifier: GPL-2.0-only
/* Guest physical -> host virtual -> bytes: never faulting, never sleeping, never writing. */
#include <linux/kvm_host.h>
#include <linux/mm.h>
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

/*
 * Through the page, not the address: what a VMM has mapped of a device that it
 * passes through (VFIO) has none to get, and reading that might do something,
 * wherever a guest has its page tables or its stack. perf_virt_to_phys() gets
 * pages in the same way, even in NMIs. The page may be out of the kernel's own
 * map, so reading it may fault.
 */
static bool pg_read_user_page(unsigned long hva, void *buf, u32 len)
{
	struct page *page;
	bool done;

	if (!get_user_page_fast_only(hva, 0, &page))
		return false;
	done = !copy_from_kernel_nofault(buf, page_address(page) + offset_in_page(hva), len);
	put_page(page);
	return done;
}

static int pg_guest_mem_read(void *ctx, __u64 gpa, void *buf, __u32 len)
{
	struct pg_guest_mem *mem = ctx;
	const struct kvm_memory_slot *slot;
	unsigned long hva;

	slot = pg_guest_mem_slot(mem, gpa_to_gfn(gpa));
	if (!slot || slot->flags & KVM_MEMSLOT_INVALID)
		return PG_END_NO_SLOT;
	hva = pg_memslot_hva(slot, gpa_to_gfn(gpa)) + offset_in_page(gpa);
	return pg_read_user_page(hva, buf, len) ? 0 : PG_END_NOT_RESIDENT;
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
