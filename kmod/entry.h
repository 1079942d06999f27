/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What a Linux kernel saves of what it interrupts. */
#ifndef PERFGUEST_ENTRY_H
#define PERFGUEST_ENTRY_H

#include "paging.h"
#include "perfguest_abi.h"

/* What the processor pushes, lowest address first. */
struct pg_pushed {
	__u64 ip;
	__u64 cs;
	__u64 flags;
	__u64 sp;
	__u64 ss;
};

#define PG_PT_REGS_GENERAL	16

/* struct pt_regs: arch/x86/include/asm/ptrace.h. */
struct pg_pt_regs {
	__u64 general[PG_PT_REGS_GENERAL];	/* r15 to di, and orig_ax */
	struct pg_pushed pushed;
};

bool pg_is_high_half(const struct pg_virt *virt, __u64 address);
bool pg_is_user_entry(const struct pg_virt *virt, const struct pg_pushed *pushed);
bool pg_is_kernel_entry(const struct pg_virt *virt, const struct pg_pushed *pushed);
void pg_give_user_regs(const struct pg_pt_regs *regs, struct pg_user_regs *out);
int pg_read_user_regs(struct pg_virt *virt, __u64 top, __u64 sp, const __u64 *live,
		      struct pg_user_regs *out);
int pg_find_user_regs(struct pg_virt *virt, __u64 sp, const __u64 *live,
		      struct pg_user_regs *out);

#endif
