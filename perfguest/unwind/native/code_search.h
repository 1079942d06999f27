/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* All ways that code can go on. */
#ifndef PERFGUEST_UNWIND_CODE_SEARCH_H
#define PERFGUEST_UNWIND_CODE_SEARCH_H

#include "binary.h"
#include "code_step.h"

#define PG_MAX_INSNS	4000
#define PG_MAX_PATHS	256
#define PG_VISITED_BITS	13

/*
 * What is looked at is the guest's to choose, and so is how long that takes.
 * All that a guest runs is far less than this; who makes stacks of other calls
 * for each sample is not followed any more.
 */
#define PG_CODE_CREDIT	(1 << 23)	/* instructions at first */
#define PG_CODE_GRANT	(1 << 11)	/* more for each sample */
#define PG_CODE_BASE	64		/* for each search, however short */

struct pg_code_path {
	uint64_t place;		/* offset in the file */
	uint32_t cost;
	uint32_t cases;		/* of the switch that a comparison has just bounded */
	bool resolves;		/* the last instruction is the first one of a lazy PLT's head */
	struct pg_code_state state;
};

struct pg_code_visited {
	uint32_t place;
	uint32_t stack;
	bool used;
};

#define PG_TO_THE_END	(~0ULL)

struct pg_code_search {
	const struct pg_binary *binary;
	const struct pg_segment *text;	/* NULL: headers are missing */
	uint64_t wanted;		/* a place, or PG_TO_THE_END of the function */
	struct pg_rule *rule;		/* the best so far */
	bool found;
	bool done;
	bool missing;			/* pages */
	bool uncertain;			/* not all ways were followed to their end */
	unsigned int insns;		/* that were looked at, and cases of switches */
	unsigned int path_count;
	struct pg_code_visited visited[1 << PG_VISITED_BITS];
	uint32_t costs[PG_MAX_PATHS];
	struct pg_code_path paths[PG_MAX_PATHS];	/* not cleared, as all that follows */
	uint64_t credit;		/* instructions that may yet be looked at */
};

/* Follows all ways from first on; what ends one is told to the functions below. */
void pg_code_search(struct pg_code_search *s, const struct pg_code_path *first);

/* The function returns, or another one does for it, with the return address popped bytes up. */
void pg_code_end_function(struct pg_code_search *s, const struct pg_code_path *path, int32_t popped,
			  bool doubtful);

/* The handler of a signal has returned: all registers stand on the stack. */
void pg_code_end_handler(struct pg_code_search *s, const struct pg_code_path *path);

/* The wanted place: with registers in terms of what they were when the function was called. */
void pg_code_arrive(struct pg_code_search *s, const struct pg_code_state *state);

static inline bool pg_is_call(const struct pg_insn *insn)
{
	return insn->map == PG_MAP_ONE && !insn->vector &&
	       (insn->opcode == 0xe8 || (insn->opcode == 0xff && (insn->reg & 7) == 2));
}

/* Without a condition. */
static inline bool pg_is_jump(const struct pg_insn *insn)
{
	return insn->map == PG_MAP_ONE && !insn->vector &&
	       (insn->opcode == 0xe9 || insn->opcode == 0xeb ||
		(insn->opcode == 0xff && (insn->reg & 7) == 4));
}

#endif
