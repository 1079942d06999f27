// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * That a function returns with the stack as it found it, but for the return
 * address, is what makes a rule of the way to its end. That the stack is a
 * multiple of 16 at each call tells ways that are none: behind a call that
 * never returns stands another function.
 */
#include "code_rule.h"
#include "code_search.h"
#include "code_start.h"

/* struct rt_sigframe behind its return address (arch/x86/include/asm/sigframe.h): uc_mcontext. */
#define SIGCONTEXT	40

static bool set_cfa(struct pg_rule *rule, const struct pg_value *sp)
{
	int32_t last = sp->offsets[sp->depth];

	if (sp->kind != PG_VALUE_REGISTER || sp->depth > 1)
		return false;
	rule->cfa_register = sp->base;
	rule->cfa_offset = sp->offsets[0];
	if (!sp->depth) {
		rule->cfa_kind = PG_CFA_REGISTER;
		rule->cfa_offset += 8;
	} else if (last == -8) {
		rule->cfa_kind = PG_CFA_DEREF_LAST;
	} else if (last + 8 == (int16_t)(last + 8)) {
		rule->cfa_kind = PG_CFA_DEREF_ADD;
		rule->cfa_size = (uint16_t)(last + 8);
	} else {
		return false;
	}
	return true;
}

/* Was the value read through the stack pointer's own, but for the last offset? */
static bool is_read_through(const struct pg_value *value, const struct pg_value *sp)
{
	unsigned int i;

	if (value->base != sp->base || value->depth != sp->depth + 1 || value->offsets[value->depth])
		return false;
	for (i = 0; i < sp->depth; i++)
		if (value->offsets[i] != sp->offsets[i])
			return false;
	return true;
}

/* How a register of the caller's follows. False if not at all. */
static bool set_saved(struct pg_rule *rule, enum pg_register reg, const struct pg_value *value,
		      const struct pg_value *sp)
{
	int32_t offset;

	if (value->kind != PG_VALUE_REGISTER)
		return false;
	if (is_read_through(value, sp)) {
		offset = value->offsets[sp->depth] - sp->offsets[sp->depth] - 8;
		pg_rule_save(rule, reg, PG_SAVED_AT_CFA, offset, 0);
	} else if (!value->depth && !value->offsets[0]) {
		if (value->base != reg)
			pg_rule_save(rule, reg, PG_SAVED_IN_REGISTER, value->base, 0);
	} else if (value->depth == 1 && !value->offsets[1] && value->base == PG_RBP) {
		pg_rule_save(rule, reg, PG_SAVED_AT_BP, value->offsets[0], 0);
	} else if (value->depth == 1 && !value->offsets[1] && value->base == PG_RSP) {
		pg_rule_save(rule, reg, PG_SAVED_AT_SP, value->offsets[0], 0);
	} else {
		return false;
	}
	return true;
}

static const uint8_t kept[] = { PG_RBX, PG_RBP, PG_R12, PG_R13, PG_R14, PG_R15 };

static void begin_rule(struct pg_rule *rule)
{
	memset(rule, 0, sizeof(*rule));
	rule->kind = PG_RULE_CALL;
}

static bool is_aligned(const struct pg_code_state *state, const struct pg_value *sp)
{
	if (!state->aligned || !pg_is_value_of(sp, PG_RSP))
		return true;
	return ((sp->offsets[0] - state->alignment) & 15) == 8;
}

void pg_code_end_function(struct pg_code_search *s, const struct pg_code_path *path, int32_t popped,
			  bool doubtful)
{
	struct pg_code_state state = path->state;
	struct pg_value *sp = &state.regs[PG_RSP], caller;
	struct pg_rule rule;
	size_t i;

	if (s->wanted != PG_TO_THE_END)
		return;
	begin_rule(&rule);
	sp->offsets[sp->depth] += popped;
	caller = pg_code_top(&state);
	/* A return address that was taken off and put back (vfork) is still in its register. */
	if (!set_cfa(&rule, sp) || !set_saved(&rule, PG_RIP, &caller, sp) ||
	    (caller.depth && pg_is_value_of(sp, PG_RSP) && sp->offsets[0] < 0)) {
		s->uncertain = true;
		return;
	}
	doubtful |= sp->weak || !is_aligned(&state, sp);
	for (i = 0; i < sizeof(kept); i++) {
		doubtful |= state.regs[kept[i]].weak;
		if (set_saved(&rule, kept[i], &state.regs[kept[i]], sp))
			continue;
		rule.forgotten |= 1u << kept[i];
		doubtful = true;
	}
	if (!doubtful || !s->found)
		*s->rule = rule;
	s->found = true;
	s->done |= !doubtful;
}

void pg_code_end_handler(struct pg_code_search *s, const struct pg_code_path *path)
{
	static const uint8_t order[] = {
		PG_R8, PG_R9, PG_R10, PG_R11, PG_R12, PG_R13, PG_R14, PG_R15, PG_RDI, PG_RSI,
		PG_RBP, PG_RBX, PG_RDX, PG_RAX, PG_RCX, PG_RSP, PG_RIP,
	};
	const struct pg_value *sp = &path->state.regs[PG_RSP];
	size_t i;

	if (s->wanted != PG_TO_THE_END || !pg_is_value_of(sp, PG_RSP))
		return;
	begin_rule(s->rule);
	s->rule->exact = true;
	s->rule->cfa_kind = PG_CFA_REGISTER;
	s->rule->cfa_register = PG_RSP;
	s->rule->cfa_offset = sp->offsets[0];
	for (i = 0; i < sizeof(order); i++)
		pg_rule_save(s->rule, order[i], PG_SAVED_AT_CFA, SIGCONTEXT + 8 * (int32_t)i, 0);
	s->found = s->done = true;
}

void pg_code_arrive(struct pg_code_search *s, const struct pg_code_state *state)
{
	enum pg_register base = pg_is_value_of(&state->regs[PG_RSP], PG_RSP) ? PG_RSP : PG_RBP;
	const struct pg_value *frame = &state->regs[base];
	size_t i;
	unsigned int j;

	/* Another way may tell more. */
	if (!pg_is_value_of(frame, PG_RSP)) {
		s->uncertain = true;
		return;
	}
	begin_rule(s->rule);
	s->found = s->done = true;
	s->rule->cfa_kind = PG_CFA_REGISTER;
	s->rule->cfa_register = (uint8_t)base;
	s->rule->cfa_offset = 8 - frame->offsets[0];
	pg_rule_save(s->rule, PG_RIP, PG_SAVED_AT_CFA, -8, 0);
	for (i = 0; i < sizeof(kept); i++) {
		const struct pg_value *now = &state->regs[kept[i]];
		bool saved = pg_is_value_of(now, kept[i]) && !now->offsets[0];

		for (j = 0; j < state->stored_count && !saved; j++) {
			const struct pg_stored *stored = &state->stored[j];

			saved = stored->base == PG_RSP && pg_is_value_of(&stored->value, kept[i]) &&
				!stored->value.offsets[0];
			if (saved)
				pg_rule_save(s->rule, kept[i], PG_SAVED_AT_CFA, stored->offset - 8, 0);
		}
		if (!saved)
			s->rule->forgotten |= 1u << kept[i];
	}
}

static void search(struct pg_code_search *s, const struct pg_binary *binary,
		   const struct pg_code_path *first, uint64_t wanted, struct pg_rule *rule)
{
	/* Paths are set when they are counted. */
	memset(s, 0, offsetof(struct pg_code_search, paths));
	s->binary = binary;
	s->wanted = wanted;
	s->rule = rule;
	pg_code_search(s, first);
	s->credit -= s->credit < s->insns + PG_CODE_BASE ? s->credit : s->insns + PG_CODE_BASE;
	if (!s->found)
		pg_rule_stop(rule, s->missing ? PG_END_PAGES :
				   s->uncertain ? PG_END_NO_RULE : PG_END_START);
}

/* The lazy PLT's head has two instructions: PUSH and JMP, both of words at RIP. */
static bool is_behind_push(const struct pg_binary *binary, uint64_t offset)
{
	struct pg_bytes code;

	if (offset < 6)
		return false;
	pg_file_view_some(&binary->file, offset - 6, 2, &code);
	return pg_take_u8(&code) == 0xff && pg_take_u8(&code) == 0x35;
}

void pg_code_rule(struct pg_code_search *s, const struct pg_binary *binary, uint64_t offset,
		  enum pg_code_at at, struct pg_rule *rule)
{
	struct pg_code_path first = { .place = offset };

	pg_code_begin(&first.state);
	if (at == PG_CODE_RETURNED) {
		pg_code_call(&first.state, false);
	} else {
		first.resolves = is_behind_push(binary, offset);
		/* The kernel has not done yet what it was asked for. */
		if (offset >= PG_SIGRETURN_SIZE &&
		    pg_code_is_sigreturn(binary, offset - PG_SIGRETURN_SIZE))
			first.place -= PG_SIGRETURN_SIZE;
	}
	search(s, binary, &first, PG_TO_THE_END, rule);
}

void pg_code_rule_since(struct pg_code_search *s, const struct pg_binary *binary, uint64_t entry,
			uint64_t offset, struct pg_rule *rule)
{
	struct pg_code_path first = { .place = entry };

	pg_code_begin(&first.state);
	search(s, binary, &first, offset, rule);
}
