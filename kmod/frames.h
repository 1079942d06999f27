/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Chains of frame pointers, and the way from a Linux kernel's to the user's. */
#ifndef PERFGUEST_FRAMES_H
#define PERFGUEST_FRAMES_H

#include "entry.h"

struct pg_frames_in {
	__u64 ip;
	__u64 sp;
	__u64 bp;
	bool code64;	/* else 32-bit frames of two 4-byte words */
	bool kernel;
	__u64 max_span;	/* how far above sp a frame may lie, in bytes */
	/*
	 * Filled if the chain ends with PG_END_USER_ENTRY; may be NULL. Only
	 * kernels with frame pointers tell where they were entered; for others
	 * there is pg_find_user_regs().
	 */
	struct pg_user_regs *user;
};

__u32 pg_frames_walk(struct pg_virt *virt, const struct pg_frames_in *in,
		     __u64 *entries, __u32 max_entries, int *end);

#endif
