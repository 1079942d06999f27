// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The kernel's part of a stack, by ORC. Where ORC says nothing (retpoline
 * thunks, trampolines of ftrace, kprobes and BPF, BPF's own code) one step is
 * made by other means, the best proven first, and ORC goes on from there.
 */
#include "walk_parts.h"

#define STUFFING_REACH		16		/* bytes of code from the first call to behind the second */

static bool is_return_address(const struct pg_walk *walk, uint64_t word)
{
	return pg_is_kernel_address(word) && pg_kernel_call_ends(walk->kernel, word);
}

static bool step_by_return(struct pg_walk *walk)
{
	struct pg_machine *m = &walk->machine;
	uint64_t word;

	if (!pg_load64(m, m->regs[PG_RSP], &word) || !is_return_address(walk, word))
		return false;
	pg_set(m, PG_RIP, word);
	pg_set(m, PG_RSP, m->regs[PG_RSP] + 8);
	return true;
}

static bool step_by_frame_pointer(struct pg_walk *walk)
{
	struct pg_machine *m = &walk->machine;
	uint64_t bp = m->regs[PG_RBP], caller_bp, word;

	if (!pg_knows(m, PG_RBP) || bp < m->regs[PG_RSP] || !pg_load64(m, bp, &caller_bp) ||
	    !pg_load64(m, bp + 8, &word) || !is_return_address(walk, word))
		return false;
	pg_set(m, PG_RIP, word);
	pg_set(m, PG_RSP, bp + 16);
	pg_set(m, PG_RBP, caller_bp);
	return true;
}

static bool step_by_scan(struct pg_walk *walk)
{
	struct pg_machine *m = &walk->machine;
	uint64_t at, word;

	/* Ends with the copy: one word behind it cannot be loaded. */
	for (at = pg_align_word(m->regs[PG_RSP]); pg_load64(m, at, &word); at += 8) {
		if (!is_return_address(walk, word))
			continue;
		pg_set(m, PG_RIP, word);
		pg_set(m, PG_RSP, at + 8);
		return true;
	}
	return false;
}

/*
 * 0 if there is no way on, else an enum pg_how. Retpolines' thunks are ends of
 * stacks to ORC (UNWIND_HINT_EMPTY), but they are called: behind a real end no
 * return address stands on the stack.
 */
static uint8_t step_without_rule(struct pg_walk *walk, enum pg_end end)
{
	uint8_t how = 0;

	if (step_by_return(walk))
		how = PG_HOW_RETURN;
	else if (end != PG_END_NO_RULE)
		how = 0;
	else if (step_by_frame_pointer(walk))
		how = PG_HOW_FP;
	else if (step_by_scan(walk))
		how = PG_HOW_SCAN;
	return how;
}

/*
 * While a task switch fills the processor's return stack buffer (asm/nospec-branch.h,
 * FILL_RETURN_BUFFER), each of up to two calls there has left a word on the
 * stack: its own return address, right before IP. ORC does not count them, so
 * the caller is not where it says.
 */
static void skip_stuffing(struct pg_walk *walk, const struct pg_rule *rule)
{
	struct pg_machine *m = &walk->machine;
	uint64_t sp = m->regs[PG_RSP], word;
	int i;

	if (rule->kind != PG_RULE_CALL || rule->cfa_kind != PG_CFA_REGISTER ||
	    rule->cfa_register != PG_RSP)
		return;
	if (pg_load64(m, sp + rule->cfa_offset - 8, &word) && is_return_address(walk, word))
		return;
	for (i = 0; i < 2; i++, sp += 8)
		if (!pg_load64(m, sp, &word) || m->regs[PG_RIP] - word - 1 >= STUFFING_REACH ||
		    !is_return_address(walk, word))
			break;
	pg_set(m, PG_RSP, sp);
}

enum pg_end pg_walk_kernel(struct pg_walk *walk)
{
	static const struct pg_rule_source no_source;
	struct pg_machine *m = &walk->machine;
	bool exact = true, leaf = true;
	uint8_t how = PG_HOW_REGISTER;

	for (;; leaf = false) {
		uint64_t sp = m->regs[PG_RSP], ip = m->regs[PG_RIP];
		const struct pg_rule *rule;
		enum pg_end end;
		uint16_t cs = 0;

		if (!pg_is_kernel_address(ip) && !leaf)
			return PG_END_BAD;
		if (!pg_emit(walk, ip, exact ? how : how | PG_FRAME_RETURN))
			return PG_END_DEPTH;
		if (!walk->kernel)
			return PG_END_NO_TABLE;
		rule = pg_kernel_rule(walk->unwinder, (uint32_t)walk->sample->kernel, ip - !exact);
		if (rule->kind == PG_RULE_STOP) {
			how = step_without_rule(walk, rule->end);
			if (!how && leaf && rule->end == PG_END_THREAD_START &&
			    pg_find_edge_regs(walk))
				return PG_END_USER_ENTRY;
			if (!how)
				return rule->end;
			exact = false;
			continue;
		}
		if (leaf)
			skip_stuffing(walk, rule);
		end = pg_step(m, rule, &no_source, &cs);
		if (end)
			return end;
		if (pg_set_user_mode(walk, cs))
			return PG_END_USER_ENTRY;
		exact = rule->exact;
		how = rule->kind == PG_RULE_CALL ? PG_HOW_ORC : PG_HOW_REGISTER;
		end = pg_check_progress(m, sp);
		if (end)
			return end;
	}
}
