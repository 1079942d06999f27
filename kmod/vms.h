/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef PERFGUEST_VMS_H
#define PERFGUEST_VMS_H

#include <linux/types.h>

struct pg_guest_mem;

void pg_vms_reset(void);
unsigned int pg_vms_count(void);

/*
 * The VM's number in this session, 0 if there are too many. Writes a VM record
 * first if this is the VM's first sample, or its memslots or LSTAR (if it is
 * not 0) have changed. Context as for pg_guest_mem_begin().
 */
u32 pg_vms_note(struct pg_guest_mem *mem, u64 time, u64 lstar);

#endif
