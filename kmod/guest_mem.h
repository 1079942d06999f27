/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef PERFGUEST_GUEST_MEM_H
#define PERFGUEST_GUEST_MEM_H

#include <linux/kvm_host.h>

#include "paging.h"

struct pg_vcpu_state;

/* A VM's memory while one sample is taken. */
struct pg_guest_mem {
	struct kvm *kvm;
	struct kvm_memslots *slots;
	const struct kvm_memory_slot *slot;	/* that was used last */
	int srcu_index;
	struct pg_virt virt;
};

/*
 * From begin to end the memslots stand still. The caller is the vCPU's thread,
 * with interrupts off and not in an NMI. What is read is never faulted in: a
 * page that the host has swapped out, or never gave, is PG_END_NOT_RESIDENT.
 */
void pg_guest_mem_begin(struct pg_guest_mem *mem, struct kvm *kvm,
			const struct pg_vcpu_state *state);
void pg_guest_mem_end(struct pg_guest_mem *mem);

#endif
