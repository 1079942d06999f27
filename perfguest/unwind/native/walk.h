/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Whole stacks: the kernel's part, then the user's. */
#ifndef PERFGUEST_UNWIND_WALK_H
#define PERFGUEST_UNWIND_WALK_H

#include "machine.h"
#include "unwinder.h"

/* How a frame was found from the one before it, towards the leaf. */
enum pg_how {
	PG_HOW_REGISTER,	/* the leaf, or exact registers out of pt_regs */
	PG_HOW_ORC,
	PG_HOW_CFI,
	PG_HOW_FP,		/* frame pointer */
	PG_HOW_SCAN,		/* the next word that follows a call: not proven */
	PG_HOW_RETURN,		/* the word at the top of the stack follows a call */
	PG_HOW_CODE,		/* what the code does from here until it returns */
	PG_HOW_KEPT,		/* .eh_frame as an earlier recording had it, and proven */

	PG_FRAME_RETURN = 16,	/* a return address: look up the byte before */
	PG_FRAME_USER = 32,
};

enum pg_mode {
	PG_MODE_KERNEL,
	PG_MODE_USER,
	PG_MODE_SKIP,
};

/* Frames, leaf first; room is for at least max_depth of them. */
struct pg_frames {
	uint64_t *address;
	uint8_t *how;
	uint64_t *sp;		/* the stack pointer there; NULL: not wanted */
	uint32_t count;
	uint32_t max_depth;
};

struct pg_sample {
	const uint64_t *regs;	/* PG_REGISTERS of them */
	uint8_t mode;
	int32_t kernel;		/* -1: not known */
	int32_t space;
	const struct pg_copy *copies;
	size_t copy_count;
};

struct pg_ends {
	uint8_t kernel;		/* enum pg_end */
	uint8_t user;
};

struct pg_ends pg_walk(struct pg_unwinder *unwinder, const struct pg_sample *sample,
		       struct pg_frames *frames);

/*
 * Without tables: each word of the copies from SP on that follows a call.
 * Finds whatever return addresses ever stood there.
 */
struct pg_ends pg_scan(struct pg_unwinder *unwinder, const struct pg_sample *sample,
		       struct pg_frames *frames);

#endif
