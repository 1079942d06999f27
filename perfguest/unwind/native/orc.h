/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* ORC, the Linux kernel's unwind tables on x86-64 (asm/orc_types.h). */
#ifndef PERFGUEST_UNWIND_ORC_H
#define PERFGUEST_UNWIND_ORC_H

#include <stddef.h>

#include "rule.h"

/*
 * An entry has always been 6 bytes: two offsets, then 16 bits whose meaning
 * changed. The numbers are ours.
 */
enum pg_orc_layout {
	PG_ORC_V1 = 1,	/* v4.14: sp_reg:4 bp_reg:4 type:2 */
	PG_ORC_V2,	/* v4.19: end:1 behind type */
	PG_ORC_V3,	/* v5.12: SP_INDIRECT adds its offset after the load */
	PG_ORC_V4,	/* v6.3: signal:1 between type and end */
	PG_ORC_V5,	/* v6.4: type:3 with undefined and end in it, signal:1 */
	PG_ORC_V6,	/* v7.1: other numbers for registers, AX among them */
	PG_ORC_LAST = PG_ORC_V6,
};

#define PG_ORC_ENTRY_SIZE	6

struct pg_orc_entry {
	uint64_t address;	/* the entry holds from here to the next one */
	uint8_t bytes[PG_ORC_ENTRY_SIZE];
};

/* Tables of a kernel and its modules as one, ascending. */
struct pg_orc_table {
	enum pg_orc_layout layout;
	struct pg_orc_entry *entries;
	size_t count;
};

/* Sorts the entries if they are not; of equal addresses the last one holds. */
void pg_orc_sort(struct pg_orc_table *table);

void pg_orc_rule(const struct pg_orc_table *table, uint64_t address, struct pg_rule *rule);

#endif
