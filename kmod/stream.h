/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef PERFGUEST_STREAM_H
#define PERFGUEST_STREAM_H

#include <linux/fs.h>
#include <linux/types.h>

#include "perfguest_abi.h"

/* What became of this CPU's samples: taken = written + all of lost. */
struct pg_counts {
	u64 taken;
	u64 written;
	u64 lost[PG_LOST_NR];
};

void pg_stream_init(struct dentry *dir);
void pg_stream_exit(void);

/* A new session: counts begin at 0 and what the last one left is gone. */
void pg_stream_reset(void);
unsigned int pg_stream_readers(void);
/* The bytes of the smallest ring there is or would be made now. */
u64 pg_stream_smallest(void);
void pg_stream_counts(int cpu, struct pg_counts *counts);

/*
 * Producers run on the CPU that they write for, with interrupts off and not in
 * an NMI, from before pg_stream_reserve() until after pg_stream_commit(), which
 * takes back what was reserved over the size used. Counting is NMI-safe.
 */
void pg_stream_count_taken(void);
void pg_stream_count_lost(enum pg_lost_reason reason);
/* For what pg_stream_reserve() refused: no room, or no reader. */
void pg_stream_count_no_room(void);
void *pg_stream_reserve(u32 size);
void pg_stream_commit(u32 size, bool is_sample);

#endif
