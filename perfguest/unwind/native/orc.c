// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * ORC entries made into rules.
 *
 * What changed since ee9f8fce9964 ("x86/unwind: Add the ORC unwinder")
 * (in v4.14), as the structure in asm/orc_types.h and the kernel's own
 * unwinder in arch/x86/kernel/unwind_orc.c tell:
 * - "x86/unwind/orc: Detect the end of the stack" (in v4.19, and in releases
 *   of v4.14 for long-term support): the bit "end". Before, an undefined
 *   sp_reg says both that nothing is known and that the stack ends.
 * - 87ccc826bf1c ("x86/unwind/orc: Change REG_SP_INDIRECT") (in v5.12): was
 *   *(SP + offset), is *SP + offset. BP_INDIRECT has stayed *(BP + offset).
 * - ffb1b4a41016 ("x86/unwind/orc: Add 'signal' field to ORC metadata")
 *   (in v6.3): entries say whether the caller was interrupted. Before, those
 *   with registers implied it.
 * - fb799447ae29 ("x86,objtool: Split UNWIND_HINT_EMPTY in two") (in v6.4):
 *   the types are undefined, end of stack, call, registers, partial registers.
 * - In v7.1 the registers got other numbers, and AX was added to them.
 */
#include "orc.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum {
	ORC_REG_UNDEFINED = 0,
	ORC_REG_PREV_SP = 1,
	ORC_REG_DX = 2,
	ORC_REG_DI = 3,
	ORC_REG_BP = 4,
	ORC_REG_SP = 5,
	ORC_REG_R10 = 6,
	ORC_REG_R13 = 7,
	ORC_REG_BP_INDIRECT = 8,
	ORC_REG_SP_INDIRECT = 9,
	ORC_REG_AX = 10,	/* of no number before v7.1 */
	ORC_REG_UNKNOWN = 15,
};

/* What the numbers of v7.1 were before. */
static const uint8_t renumbered[16] = {
	[0] = ORC_REG_UNDEFINED, [1] = ORC_REG_AX, [2] = ORC_REG_DX, [3] = ORC_REG_SP,
	[4] = ORC_REG_BP, [5] = ORC_REG_DI, [6] = ORC_REG_R10, [7] = ORC_REG_R13,
	[8] = ORC_REG_PREV_SP, [9] = ORC_REG_SP_INDIRECT, [10] = ORC_REG_BP_INDIRECT,
	[11 ... 15] = ORC_REG_UNKNOWN,
};

enum {
	ORC_TYPE_UNDEFINED = 0,
	ORC_TYPE_END_OF_STACK = 1,
	ORC_TYPE_CALL = 2,
	ORC_TYPE_REGS = 3,
	ORC_TYPE_REGS_PARTIAL = 4,
};

struct orc {
	int16_t sp_offset;
	int16_t bp_offset;
	unsigned int sp_reg;
	unsigned int bp_reg;
	unsigned int type;
	bool exact;
};

/* Entries of any layout, as the latest one says it. */
static struct orc decode(enum pg_orc_layout layout, const uint8_t *bytes)
{
	struct orc orc;
	uint16_t flags;
	bool end;

	memcpy(&orc.sp_offset, bytes, 2);
	memcpy(&orc.bp_offset, bytes + 2, 2);
	memcpy(&flags, bytes + 4, 2);
	orc.sp_reg = flags & 15;
	orc.bp_reg = flags >> 4 & 15;
	if (layout >= PG_ORC_V6) {
		orc.sp_reg = renumbered[orc.sp_reg];
		orc.bp_reg = renumbered[orc.bp_reg];
	}
	if (layout >= PG_ORC_V5) {
		orc.type = flags >> 8 & 7;
		orc.exact = flags >> 11 & 1;
		return orc;
	}
	orc.type = (flags >> 8 & 3) + ORC_TYPE_CALL;
	if (layout == PG_ORC_V4)
		orc.exact = flags >> 10 & 1;
	else
		orc.exact = orc.type != ORC_TYPE_CALL;
	end = layout == PG_ORC_V1 || flags >> (layout == PG_ORC_V4 ? 11 : 10) & 1;
	if (orc.sp_reg == ORC_REG_UNDEFINED)
		orc.type = end ? ORC_TYPE_END_OF_STACK : ORC_TYPE_UNDEFINED;
	return orc;
}

/* False for a register that cannot be a base. */
static bool set_cfa(struct pg_rule *rule, enum pg_orc_layout layout, const struct orc *orc)
{
	static const uint8_t bases[16] = {
		[ORC_REG_DX] = PG_RDX, [ORC_REG_DI] = PG_RDI, [ORC_REG_BP] = PG_RBP,
		[ORC_REG_SP] = PG_RSP, [ORC_REG_R10] = PG_R10, [ORC_REG_R13] = PG_R13,
		[ORC_REG_BP_INDIRECT] = PG_RBP, [ORC_REG_SP_INDIRECT] = PG_RSP,
		[ORC_REG_AX] = PG_RAX,
	};
	unsigned int last = layout >= PG_ORC_V6 ? ORC_REG_AX : ORC_REG_SP_INDIRECT;

	if (orc->sp_reg < ORC_REG_DX || orc->sp_reg > last)
		return false;
	rule->cfa_register = bases[orc->sp_reg];
	rule->cfa_offset = orc->sp_offset;
	rule->cfa_kind = PG_CFA_REGISTER;
	if (orc->sp_reg == ORC_REG_BP_INDIRECT)
		rule->cfa_kind = PG_CFA_DEREF_LAST;
	else if (orc->sp_reg == ORC_REG_SP_INDIRECT)
		rule->cfa_kind = layout < PG_ORC_V3 ? PG_CFA_DEREF_LAST : PG_CFA_DEREF_FIRST;
	return true;
}

/* ORC says nothing of them, and who is called may change most of them. */
#define FORGOTTEN_BY_CALLS	(((1u << PG_RIP) - 1) & ~(1u << PG_RSP | 1u << PG_RBP))

static void make_rule(enum pg_orc_layout layout, const struct orc *orc, struct pg_rule *rule)
{
	if (orc->type == ORC_TYPE_END_OF_STACK) {
		pg_rule_stop(rule, PG_END_THREAD_START);
		return;
	}
	if (orc->type < ORC_TYPE_CALL || orc->type > ORC_TYPE_REGS_PARTIAL ||
	    !set_cfa(rule, layout, orc)) {
		pg_rule_stop(rule, PG_END_NO_RULE);
		return;
	}
	rule->exact = orc->exact;
	rule->count = 0;
	rule->forgotten = 0;
	if (orc->type == ORC_TYPE_CALL) {
		rule->kind = PG_RULE_CALL;
		pg_rule_save(rule, PG_RIP, PG_SAVED_AT_CFA, -8, 0);
		rule->forgotten = FORGOTTEN_BY_CALLS;
	} else {
		rule->kind = orc->type == ORC_TYPE_REGS ? PG_RULE_REGS : PG_RULE_REGS_PARTIAL;
	}
	switch (orc->bp_reg) {
	case ORC_REG_UNDEFINED:
		break;
	case ORC_REG_PREV_SP:
		pg_rule_save(rule, PG_RBP, PG_SAVED_AT_CFA, orc->bp_offset, 0);
		break;
	case ORC_REG_BP:
		pg_rule_save(rule, PG_RBP, PG_SAVED_AT_BP, orc->bp_offset, 0);
		break;
	default:
		pg_rule_stop(rule, PG_END_NO_RULE);
	}
	rule->plain = pg_rule_is_plain(rule);
}

void pg_orc_rule(const struct pg_orc_table *table, uint64_t address, struct pg_rule *rule)
{
	size_t low = 0, high = table->count;
	struct orc orc;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (table->entries[middle].address <= address)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low) {
		pg_rule_stop(rule, table->count ? PG_END_NO_RULE : PG_END_NO_TABLE);
		return;
	}
	orc = decode(table->layout, table->entries[low - 1].bytes);
	make_rule(table->layout, &orc, rule);
}

static int compare(const void *a, const void *b)
{
	const struct pg_orc_entry *left = a, *right = b;

	if (left->address != right->address)
		return left->address < right->address ? -1 : 1;
	/* The end of one section is the start of another: that one holds. */
	return (left->bytes[4] & 15) - (right->bytes[4] & 15);
}

void pg_orc_sort(struct pg_orc_table *table)
{
	size_t i;

	for (i = 1; i < table->count; i++) {
		if (compare(&table->entries[i - 1], &table->entries[i]) > 0) {
			qsort(table->entries, table->count, sizeof(*table->entries), compare);
			return;
		}
	}
}
