/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef PERFGUEST_TASK_H
#define PERFGUEST_TASK_H

#include <linux/types.h>

#include "paging.h"

struct pg_sample;
struct pg_vcpu_state;

/*
 * Where a guest's kernel keeps its running task. User space finds it out from
 * the guest's type information and tells it; nothing of it is trusted.
 */
struct pg_task_layout {
	bool told;
	u64 current_task;	/* plus the per-CPU base: where the pointer to the task is */
	/* Offsets in the guest's struct task_struct. */
	u32 pid;
	u32 tgid;
	u32 comm;
	u32 start;
	u32 stack;
};

/*
 * Parses "CURRENT PID TGID COMM START STACK", or nothing to forget. -EINVAL for
 * what cannot be such.
 */
int pg_task_layout_parse(const char *text, struct pg_task_layout *layout);

/*
 * Fills the task's fields of the sample and sets PG_SAMPLE_TASK if all of them
 * can be read. Gives the lowest address of the task's kernel stack, or 0.
 */
u64 pg_task_read(const struct pg_virt *virt, const struct pg_vcpu_state *state,
		 const struct pg_task_layout *layout, struct pg_sample *sample);

#endif
