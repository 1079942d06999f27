/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef PERFGUEST_VMS_H
#define PERFGUEST_VMS_H

#include <linux/types.h>

struct pg_guest_mem;
struct pg_task_layout;

void pg_vms_reset(void);
unsigned int pg_vms_count(void);

/*
 * The VM's number in this session, 0 if there are too many. Writes a VM record
 * first if this is the VM's first sample, or its memslots or LSTAR (if it is
 * not 0) have changed. Gives what was told of the VM's tasks. Context as for
 * pg_guest_mem_begin().
 */
u32 pg_vms_note(struct pg_guest_mem *mem, u64 time, u64 lstar, struct pg_task_layout *tasks);

/* -ENOENT if no VM has this number in this session. */
int pg_vms_tell_tasks(u32 vm_id, const struct pg_task_layout *tasks);

#endif
