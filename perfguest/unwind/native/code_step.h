/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What instructions do to the stack pointer and to the registers that a
 * function keeps for its caller, told in terms of what all registers were at
 * some point before: nothing is known of any value but where it came from.
 */
#ifndef PERFGUEST_UNWIND_CODE_STEP_H
#define PERFGUEST_UNWIND_CODE_STEP_H

#include "rule.h"
#include "x86_decode.h"

#define PG_VALUE_DEPTH	2

enum pg_value_kind {
	PG_VALUE_UNKNOWN,
	PG_VALUE_REGISTER,	/* made from what a register was */
	PG_VALUE_CONSTANT,	/* offsets[0] */
	PG_VALUE_PLACE,		/* of the file: offsets[0]. By LEA from RIP */
	PG_VALUE_ENTRY,		/* read from the table of 32-bit offsets at a place */
	PG_VALUE_CASE,		/* one of the places that such a table leads to */
	PG_VALUE_ADDRESS,	/* read from the table of 64-bit addresses at the address offsets[0] */
};

/* Of REGISTER: what it was, plus offsets[0]; depth times: the word there, plus the next offset. */
struct pg_value {
	uint8_t kind;		/* enum pg_value_kind */
	uint8_t base;		/* enum pg_register */
	uint8_t depth;
	bool weak;		/* if functions called by name have kept it, as they need not */
	int32_t offsets[PG_VALUE_DEPTH + 1];
};

/* A word that was written. Its address is one of depth 0. */
struct pg_stored {
	uint8_t base;
	int32_t offset;
	struct pg_value value;
};

#define PG_MAX_STORED	24

struct pg_code_state {
	struct pg_value regs[PG_RIP];
	struct pg_stored stored[PG_MAX_STORED];
	unsigned int stored_count;
	bool aligned;		/* by a call: */
	int32_t alignment;	/* RSP, from what it was, where it was a multiple of 16 */
};

void pg_code_begin(struct pg_code_state *state);

/* An instruction that goes on to the next one; place: its offset in the file. */
void pg_code_apply(struct pg_code_state *state, const struct pg_insn *insn, uint64_t place);

/* The word on top of the stack. */
struct pg_value pg_code_top(struct pg_code_state *state);

/* A function was called and has returned. by_name: assembler may have agreed with its own functions on more than the ABI. */
void pg_code_call(struct pg_code_state *state, bool by_name);

static inline bool pg_is_value_of(const struct pg_value *value, enum pg_register reg)
{
	return value->kind == PG_VALUE_REGISTER && value->base == reg && !value->depth;
}

static inline bool pg_is_constant(const struct pg_value *value, int32_t constant)
{
	return value->kind == PG_VALUE_CONSTANT && value->offsets[0] == constant;
}

#endif
