// SPDX-License-Identifier: GPL-2.0-only
/* The guest's running task, read at the moment of the sample. */
#include <linux/errno.h>
#include <linux/kernel.h>
#include <linux/string.h>

#include "perfguest.h"
#include "task.h"
#include "vcpu.h"

/* task_struct is some 10 KiB, with every option perhaps twice that. */
#define PG_MAX_TASK_OFFSET	SZ_64K
/* PID_MAX_LIMIT of 64-bit kernels. */
#define PG_MAX_GUEST_PID	(4 * 1024 * 1024)
/* With page-table isolation, a process's user table is the page behind its kernel table, which is at an even one. */
#define PG_CR3_USER_TABLE	BIT_ULL(12)

int pg_task_layout_parse(const char *text, struct pg_task_layout *layout)
{
	struct pg_task_layout l = { .told = true };
	char rest;

	memset(layout, 0, sizeof(*layout));
	if (!*skip_spaces(text))
		return 0;
	if (sscanf(text, "%lli %i %i %i %i %i %c", (long long *)&l.current_task, (int *)&l.pid,
		   (int *)&l.tgid, (int *)&l.comm, (int *)&l.start, (int *)&l.stack, &rest) != 6)
		return -EINVAL;
	if (max(max3(l.pid, l.tgid, l.comm), max(l.start, l.stack)) >= PG_MAX_TASK_OFFSET)
		return -EINVAL;
	*layout = l;
	return 0;
}

/*
 * The guest CPU's per-CPU base is in GS while its kernel runs and put aside
 * while a program does, except for the instructions around SWAPGS. A program
 * may set its own GS to anything, so that is asked last.
 */
static u64 pg_per_cpu_base(const struct pg_vcpu_state *state)
{
	u64 kernel = state->flags & PG_SAMPLE_GS ? state->gs_base : 0;
	u64 aside = state->flags & PG_SAMPLE_KERNEL_GS ? state->kernel_gs_base : 0;

	if (state->flags & PG_SAMPLE_USER)
		return aside >> 63 ? aside : 0;
	return kernel >> 63 ? kernel : aside;
}

static u64 pg_task_fill(struct pg_virt *virt, u64 task, const struct pg_task_layout *l,
			struct pg_sample *sample)
{
	char comm[sizeof(sample->task_comm)];
	u32 pid, tgid;
	u64 start, stack;

	if (pg_read_virt(virt, task + l->pid, &pid, sizeof(pid)) ||
	    pg_read_virt(virt, task + l->tgid, &tgid, sizeof(tgid)) ||
	    pg_read_virt(virt, task + l->start, &start, sizeof(start)) ||
	    pg_read_virt(virt, task + l->comm, comm, sizeof(comm)) ||
	    pg_read_virt(virt, task + l->stack, &stack, sizeof(stack)))
		return 0;
	if (pid > PG_MAX_GUEST_PID || tgid > PG_MAX_GUEST_PID)
		return 0;
	sample->task_pid = pid;
	sample->task_tgid = tgid;
	sample->task_start = start;
	strscpy_pad(sample->task_comm, comm, sizeof(sample->task_comm));
	sample->flags |= PG_SAMPLE_TASK;
	return stack;
}

u64 pg_task_read(const struct pg_virt *virt, const struct pg_vcpu_state *state,
		 const struct pg_task_layout *layout, struct pg_sample *sample)
{
	u64 base = pg_per_cpu_base(state), task;
	struct pg_virt kernel = *virt;

	if (!layout->told || !(base >> 63))
		return 0;
	if (pg_read_virt(&kernel, base + layout->current_task, &task, sizeof(task))) {
		struct pg_paging paging = virt->paging;

		if (!(paging.cr3 & PG_CR3_USER_TABLE))
			return 0;
		paging.cr3 &= ~PG_CR3_USER_TABLE;
		pg_virt_init(&kernel, &paging, &virt->phys);
		if (pg_read_virt(&kernel, base + layout->current_task, &task, sizeof(task)))
			return 0;
	}
	return task >> 63 ? pg_task_fill(&kernel, task, layout, sample) : 0;
}
