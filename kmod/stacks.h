/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Which stacks a Linux kernel was on, and for which user program it ran. */
#ifndef PERFGUEST_STACKS_H
#define PERFGUEST_STACKS_H

#include "entry.h"

struct pg_stacks_in {
	const __u64 *regs;	/* the processor's, by enum pg_reg */
	__u64 ip;
	__u64 lstar;		/* where system calls enter the kernel; 0: not known */
	__u64 tss;		/* base of the task state segment; 0: not known */
	__u64 task_stack;	/* the lowest address of the running task's stack; 0: not known */
};

/* An exception's stack, an interrupt's, and a task's. */
#define PG_MAX_STACKS	3

struct pg_stack {
	__u64 sp;
	__u64 top;	/* above sp; modulo 2^64 */
};

struct pg_stacks {
	__u32 nr;	/* 0 while the stack pointer is the user's */
	struct pg_stack stack[PG_MAX_STACKS];	/* from the processor's own to what was interrupted */
	bool has_user;
	struct pg_user_regs user;	/* if has_user */
};

void pg_find_stacks(struct pg_virt *virt, const struct pg_stacks_in *in, struct pg_stacks *out);

#endif
