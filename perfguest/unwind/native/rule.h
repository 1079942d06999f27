/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The one kind of rule that the walk knows: how the registers of a function's
 * caller follow from its own. ORC entries and rows of .eh_frame are both made
 * into it, once for each address that is met; then it is taken from a cache. So
 * is what the code itself tells where there are no tables.
 *
 * The CFA (canonical frame address) is what the stack pointer was before the
 * call. Most rules are "CFA = register + offset, and some registers were saved
 * at CFA + offset". A rule holds no pointers: a DWARF expression is a place in
 * the binary's file, and is evaluated where it lies.
 */
#ifndef PERFGUEST_UNWIND_RULE_H
#define PERFGUEST_UNWIND_RULE_H

#include <stdbool.h>
#include <stdint.h>

/* In the order in which the hardware numbers them, then RIP. */
enum pg_register {
	PG_RAX, PG_RCX, PG_RDX, PG_RBX, PG_RSP, PG_RBP, PG_RSI, PG_RDI,
	PG_R8, PG_R9, PG_R10, PG_R11, PG_R12, PG_R13, PG_R14, PG_R15,
	PG_RIP,
	PG_REGISTERS,
};

/* How a part of the walk ended. 0 in the walk itself: it goes on. */
enum pg_end {
	PG_END_NONE,		/* not walked */
	PG_END_USER_ENTRY,	/* the kernel was entered from user mode here */
	PG_END_THREAD_START,	/* ORC: nothing called this */
	PG_END_START,		/* user: nothing called this */
	PG_END_CUT,		/* a word that is needed is not in the copies */
	PG_END_NO_MAPPING,
	PG_END_NO_TABLE,	/* no file here, or one without tables */
	PG_END_NO_RULE,		/* the tables say nothing of this address */
	PG_END_PAGES,		/* the table's pages are not there */
	PG_END_BAD,		/* the stack goes down, not canonical, ... */
	PG_END_EXPRESSION,	/* a DWARF expression that is not understood */
	PG_END_DEPTH,
	PG_END_COMPAT,		/* a 32-bit program: not walked */
};

enum pg_rule_kind {
	PG_RULE_STOP,		/* the walk ends here: see end */
	PG_RULE_CALL,
	PG_RULE_REGS,		/* all of pt_regs stand at the CFA */
	PG_RULE_REGS_PARTIAL,	/* only its last five words: what iret takes */
};

enum pg_cfa_kind {
	PG_CFA_REGISTER,	/* register + offset */
	PG_CFA_DEREF_LAST,	/* *(register + offset) */
	PG_CFA_DEREF_FIRST,	/* *register + offset */
	PG_CFA_EXPRESSION,
	PG_CFA_DEREF_ADD,	/* *(register + offset) + size, which is signed then */
};

enum pg_saved_kind {
	PG_SAVED_AT_CFA,	/* *(CFA + offset) */
	PG_SAVED_IS_CFA,	/* CFA + offset */
	PG_SAVED_AT_BP,		/* *(RBP + offset) */
	PG_SAVED_IN_REGISTER,	/* register number offset */
	PG_SAVED_AT_EXPRESSION,	/* *expression */
	PG_SAVED_IS_EXPRESSION,
	PG_SAVED_AT_SP,		/* *(RSP + offset) */
};

struct pg_saved {
	uint8_t reg;		/* enum pg_register */
	uint8_t kind;		/* enum pg_saved_kind */
	uint16_t size;		/* of the expression, which is... */
	int32_t offset;		/* ...here in the file, as unsigned */
};

struct pg_rule {
	uint8_t kind;		/* enum pg_rule_kind */
	uint8_t end;		/* PG_RULE_STOP: enum pg_end */
	uint8_t exact : 1;	/* the caller was interrupted, it did not call */
	uint8_t plain : 1;	/* pg_rule_is_plain() */
	uint8_t kept : 1;	/* made from pages that the guest itself did not have */
	uint8_t cfa_kind;	/* enum pg_cfa_kind */
	uint8_t cfa_register;	/* enum pg_register */
	uint8_t count;		/* of saved[]; what is not there keeps its value */
	uint16_t cfa_size;	/* of the expression; its place is cfa_offset */
	int32_t cfa_offset;
	uint32_t forgotten;	/* bits of registers: unknown in the caller */
	struct pg_saved saved[PG_REGISTERS];
};

static inline void pg_rule_stop(struct pg_rule *rule, enum pg_end end)
{
	rule->kind = PG_RULE_STOP;
	rule->end = end;
}

/* Why it is none; 0 if it is one. */
static inline enum pg_end pg_rule_end(const struct pg_rule *rule)
{
	return rule->kind == PG_RULE_STOP ? (enum pg_end)rule->end : 0;
}

/*
 * Is it of the kind that nearly all are of: the CFA is a register and an offset,
 * and what was saved, the return address first, stands at the CFA?
 */
static inline bool pg_rule_is_plain(const struct pg_rule *rule)
{
	unsigned int i;

	if (rule->kind != PG_RULE_CALL || rule->cfa_kind != PG_CFA_REGISTER || !rule->count ||
	    rule->saved[0].reg != PG_RIP)
		return false;
	for (i = 0; i < rule->count; i++)
		if (rule->saved[i].kind != PG_SAVED_AT_CFA || rule->saved[i].reg == PG_RSP)
			return false;
	return true;
}

static inline void pg_rule_save(struct pg_rule *rule, enum pg_register reg,
				enum pg_saved_kind kind, int32_t offset, uint16_t size)
{
	rule->saved[rule->count++] = (struct pg_saved){
		.reg = reg, .kind = kind, .size = size, .offset = offset,
	};
}

#endif
