// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
#include "step.h"
#include "expression.h"

/* In the order of struct pt_regs; behind them orig_ax and what iret takes. */
static const uint8_t pt_regs_order[] = {
	PG_R15, PG_R14, PG_R13, PG_R12, PG_RBP, PG_RBX, PG_R11, PG_R10,
	PG_R9, PG_R8, PG_RAX, PG_RCX, PG_RDX, PG_RSI, PG_RDI,
};

/*
 * On the way back to user mode registers are popped one after the other, and
 * the stack is copied from its pointer on: what lies below it is in the
 * registers again.
 */
bool pg_load_pt_regs(struct pg_machine *m, uint64_t address, struct pg_iret_frame *frame)
{
	uint64_t regs[sizeof(pt_regs_order)], sp = m->regs[PG_RSP];
	size_t i;

	if (!pg_load(m, address + PG_PT_REGS_IP, frame, sizeof(*frame)))
		return false;
	for (i = 0; i < sizeof(pt_regs_order); i++) {
		uint64_t at = address + 8 * i;

		if (pg_load64(m, at, &regs[i]))
			continue;
		if (sp - at > PG_PT_REGS_SIZE || at == sp || !pg_knows(m, pt_regs_order[i]))
			return false;
		regs[i] = m->regs[pt_regs_order[i]];
	}
	for (i = 0; i < sizeof(pt_regs_order); i++)
		m->regs[pt_regs_order[i]] = regs[i];
	m->regs[PG_RIP] = frame->ip;
	m->regs[PG_RSP] = frame->sp;
	m->known = PG_ALL_REGISTERS;
	m->cut = 0;
	return true;
}

static enum pg_end evaluate(const struct pg_machine *m, const struct pg_rule_source *source,
			    int32_t place, uint16_t size, const uint64_t *cfa, uint64_t *value)
{
	struct pg_expression expression = {
		.bias = source->bias, .cfa = cfa, .push_cfa = cfa,
	};
	enum pg_end end;

	end = pg_file_view(source->file, (uint32_t)place, size, &expression.code);
	return end ? end : pg_evaluate(&expression, m, value);
}

static enum pg_end find_cfa(const struct pg_machine *m, const struct pg_rule *rule,
			    const struct pg_rule_source *source, uint64_t *cfa)
{
	uint64_t base, offset = (uint64_t)(int64_t)rule->cfa_offset;

	if (rule->cfa_kind == PG_CFA_EXPRESSION)
		return evaluate(m, source, rule->cfa_offset, rule->cfa_size, NULL, cfa);
	if (!pg_knows(m, rule->cfa_register))
		return pg_why_unknown(m, rule->cfa_register);
	base = m->regs[rule->cfa_register];
	switch (rule->cfa_kind) {
	case PG_CFA_DEREF_LAST:
		return pg_load64(m, base + offset, cfa) ? 0 : PG_END_CUT;
	case PG_CFA_DEREF_FIRST:
		if (!pg_load64(m, base, &base))
			return PG_END_CUT;
		break;
	case PG_CFA_DEREF_ADD:
		if (!pg_load64(m, base + offset, &base))
			return PG_END_CUT;
		offset = (uint64_t)(int64_t)(int16_t)rule->cfa_size;
		break;
	}
	*cfa = base + offset;
	return 0;
}

static enum pg_end find_saved(const struct pg_machine *m, const struct pg_saved *saved,
			      const struct pg_rule_source *source, uint64_t cfa, uint64_t *value)
{
	uint64_t offset = (uint64_t)(int64_t)saved->offset;
	enum pg_end end;

	switch (saved->kind) {
	case PG_SAVED_AT_CFA:
		return pg_load64(m, cfa + offset, value) ? 0 : PG_END_CUT;
	case PG_SAVED_IS_CFA:
		*value = cfa + offset;
		return 0;
	case PG_SAVED_AT_BP:
		if (!pg_knows(m, PG_RBP))
			return pg_why_unknown(m, PG_RBP);
		return pg_load64(m, m->regs[PG_RBP] + offset, value) ? 0 : PG_END_CUT;
	case PG_SAVED_AT_SP:
		if (!pg_knows(m, PG_RSP))
			return pg_why_unknown(m, PG_RSP);
		return pg_load64(m, m->regs[PG_RSP] + offset, value) ? 0 : PG_END_CUT;
	case PG_SAVED_IN_REGISTER:
		if (!pg_knows(m, (unsigned int)saved->offset))
			return pg_why_unknown(m, (unsigned int)saved->offset);
		*value = m->regs[saved->offset];
		return 0;
	}
	end = evaluate(m, source, saved->offset, saved->size, &cfa, value);
	if (!end && saved->kind == PG_SAVED_AT_EXPRESSION && !pg_load64(m, *value, value))
		return PG_END_CUT;
	return end;
}

/*
 * Without its caller's address a step is none; any other register may be
 * unknown for as long as nobody asks for it.
 */
static enum pg_end restore_saved(const struct pg_machine *from, struct pg_machine *to,
				 const struct pg_rule *rule, const struct pg_rule_source *source,
				 uint64_t cfa)
{
	unsigned int i;

	for (i = 0; i < rule->count; i++) {
		const struct pg_saved *saved = &rule->saved[i];
		uint64_t value;
		enum pg_end end = find_saved(from, saved, source, cfa, &value);

		if (!end)
			pg_set(to, saved->reg, value);
		else if (saved->reg == PG_RIP || saved->reg == PG_RSP)
			return end;
		else
			pg_forget(to, saved->reg, end == PG_END_CUT);
	}
	return 0;
}

/* By a plain rule. Of the old registers the CFA is all that it needs. */
static enum pg_end step_plainly(struct pg_machine *m, const struct pg_rule *rule, uint64_t cfa)
{
	uint64_t value;
	unsigned int i;

	if (!pg_load64(m, cfa + (uint64_t)(int64_t)rule->saved[0].offset, &value))
		return PG_END_CUT;
	m->known &= ~rule->forgotten;
	m->cut &= ~rule->forgotten;
	pg_set(m, PG_RIP, value);
	pg_set(m, PG_RSP, cfa);
	for (i = 1; i < rule->count; i++) {
		const struct pg_saved *saved = &rule->saved[i];

		if (pg_load64(m, cfa + (uint64_t)(int64_t)saved->offset, &value))
			pg_set(m, saved->reg, value);
		else
			pg_forget(m, saved->reg, true);
	}
	return 0;
}

enum pg_end pg_step(struct pg_machine *m, const struct pg_rule *rule,
		    const struct pg_rule_source *source, uint16_t *cs)
{
	struct pg_iret_frame frame;
	struct pg_machine next;
	enum pg_end end;
	uint64_t cfa;

	end = find_cfa(m, rule, source, &cfa);
	if (end)
		return end;
	if (rule->plain)
		return step_plainly(m, rule, cfa);
	next = *m;
	next.known &= ~rule->forgotten;
	next.cut &= ~rule->forgotten;
	switch (rule->kind) {
	case PG_RULE_CALL:
		pg_set(&next, PG_RSP, cfa);
		break;
	case PG_RULE_REGS:
		if (!pg_load_pt_regs(&next, cfa, &frame))
			return PG_END_CUT;
		*cs = (uint16_t)frame.cs;
		break;
	case PG_RULE_REGS_PARTIAL:
		/* Entry code has not touched the other registers yet, or has put them back. */
		if (!pg_load(m, cfa, &frame, sizeof(frame)))
			return PG_END_CUT;
		pg_set(&next, PG_RIP, frame.ip);
		pg_set(&next, PG_RSP, frame.sp);
		*cs = (uint16_t)frame.cs;
		break;
	}
	end = restore_saved(m, &next, rule, source, cfa);
	if (!end)
		*m = next;
	return end;
}
