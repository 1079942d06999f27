// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The kernel's part of a stack, by ORC. Where ORC says nothing (retpoline
 * thunks, trampolines of ftrace, kprobes and BPF, BPF's own code) one step is
 * made by other means, the best proven first, and ORC goes on from there.
 */
#include "walk_parts.h"

#define STACK_SIZE		16384ULL	/* of a task; stacks are aligned to it */
#define FRED_PADDING		16		/* above pt_regs, in kernels since v6.9 */

#define STUFFING_REACH		16		/* bytes of code from the first call to behind the second */

#define USER32_CS		0x23
#define USER_DS			0x2b
#define USER_CS			0x33
#define XEN_USER_CS		0xe033
#define SELECTOR_RPL		3

#define FLAGS_ONE		(1ULL << 1)
#define FLAGS_IF		(1ULL << 9)
#define FLAGS_ZERO		(~0x3fffffULL | 1ULL << 15 | 1ULL << 5 | 1ULL << 3)

bool pg_set_user_mode(struct pg_walk *walk, uint16_t cs)
{
	walk->compat = cs != USER_CS && cs != XEN_USER_CS;
	return (cs & SELECTOR_RPL) == SELECTOR_RPL;
}

static bool is_user_entry(const struct pg_iret_frame *frame)
{
	uint16_t cs = (uint16_t)frame->cs, ss = (uint16_t)frame->ss;

	return (cs == USER_CS || cs == USER32_CS) && ss == USER_DS &&
	       (frame->flags & (FLAGS_ONE | FLAGS_IF | FLAGS_ZERO)) == (FLAGS_ONE | FLAGS_IF) &&
	       frame->ip && pg_is_user_address(frame->ip) && pg_is_user_address(frame->sp);
}

bool pg_find_user_regs(struct pg_walk *walk, bool here)
{
	size_t i = walk->machine.copy_count;
	uint64_t padding;

	while (i--) {
		const struct pg_copy *copy = &walk->machine.copies[i];
		uint64_t top = copy->address + copy->size;

		if (!pg_is_kernel_address(copy->address) || top % STACK_SIZE)
			continue;
		if (here && i != pg_copy_of(&walk->machine, walk->machine.regs[PG_RSP]))
			continue;
		for (padding = 0; padding <= FRED_PADDING; padding += FRED_PADDING) {
			uint64_t at = top - padding - PG_PT_REGS_SIZE;
			struct pg_iret_frame frame;

			if (!pg_load(&walk->machine, at + PG_PT_REGS_IP, &frame, sizeof(frame)) ||
			    !is_user_entry(&frame))
				continue;
			if (!pg_load_pt_regs(&walk->machine, at, &frame))
				continue;
			return pg_set_user_mode(walk, (uint16_t)frame.cs);
		}
	}
	return false;
}

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

/*
 * Between the processor's syscall instruction and the first push, and on the
 * way out, the stack is still or again the user's, and the processor keeps the
 * user's address in RCX: ORC calls it an end, and it is one of the kernel.
 */
static bool is_syscall_edge(const struct pg_walk *walk, bool leaf)
{
	const uint64_t *regs = walk->machine.regs;

	return leaf && regs[PG_RSP] && pg_is_user_address(regs[PG_RSP]) &&
	       regs[PG_RCX] && pg_is_user_address(regs[PG_RCX]);
}

static enum pg_end stop(struct pg_walk *walk, enum pg_end end, bool leaf)
{
	if (end != PG_END_THREAD_START || !is_syscall_edge(walk, leaf))
		return end;
	pg_set(&walk->machine, PG_RIP, walk->machine.regs[PG_RCX]);
	walk->compat = false;
	return PG_END_USER_ENTRY;
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
			if (!how)
				return stop(walk, rule->end, leaf);
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
