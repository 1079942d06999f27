// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Where the kernel was entered: the user's registers. */
#include "walk_parts.h"

#define STACK_SIZE		16384ULL	/* of a task; stacks are aligned to it */
#define FRED_PADDING		16		/* above pt_regs, in kernels since v6.9 */
#define ENTRY_STACK_END		4096ULL		/* the processor's own is at a page's end */

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

/*
 * Between the processor's syscall instruction and the first push, and on the
 * way out, the stack is still or again the user's, and the processor keeps the
 * user's address in RCX.
 */
static bool find_regs_on_users_stack(struct pg_walk *walk)
{
	struct pg_machine *m = &walk->machine;

	if (!m->regs[PG_RSP] || !pg_is_user_address(m->regs[PG_RSP]) ||
	    !m->regs[PG_RCX] || !pg_is_user_address(m->regs[PG_RCX]))
		return false;
	pg_set(m, PG_RIP, m->regs[PG_RCX]);
	walk->compat = false;
	return true;
}

/* pt_regs as far as a system call has pushed them: SS and RSP, then RFLAGS, CS and RIP, and on. */
static bool find_regs_being_pushed(struct pg_walk *walk)
{
	struct pg_machine *m = &walk->machine;
	uint64_t top = (m->regs[PG_RSP] + STACK_SIZE - 1) & ~(STACK_SIZE - 1), padding;

	for (padding = 0; padding <= FRED_PADDING; padding += FRED_PADDING) {
		uint64_t at = top - padding - PG_PT_REGS_SIZE;
		struct pg_iret_frame frame;

		if (m->regs[PG_RSP] <= at || m->regs[PG_RSP] > top - padding - 16 ||
		    !pg_load(m, top - padding - 16, &frame.sp, 16))
			continue;
		frame.cs = USER_CS;
		frame.flags = m->regs[PG_R11];
		frame.ip = m->regs[PG_RCX];
		pg_load(m, at + PG_PT_REGS_IP, &frame, sizeof(frame));
		if (!is_user_entry(&frame))
			continue;
		if (!pg_load_pt_regs(m, at, &frame)) {
			pg_set(m, PG_RIP, frame.ip);
			pg_set(m, PG_RSP, frame.sp);
		}
		return pg_set_user_mode(walk, (uint16_t)frame.cs);
	}
	return false;
}

/* What is pushed and is no general register. */
enum { SS = PG_REGISTERS, ANY };

static bool is_word_of(uint64_t word, uint8_t what, const struct pg_machine *m)
{
	if (what == SS)
		return word == USER_DS;
	return what == ANY || word == m->regs[what];
}

/* Are the words from a stack's top down to RSP those of another machine's registers? */
static bool is_pushed(const struct pg_machine *m, uint64_t top, const struct pg_machine *other,
		      const uint8_t *order, size_t count)
{
	uint64_t word;
	size_t i;

	if (top - m->regs[PG_RSP] > 8 * count)
		return false;
	for (i = 0; i < (top - m->regs[PG_RSP]) / 8; i++)
		if (!pg_load64(m, top - 8 * (i + 1), &word) || !is_word_of(word, order[i], other))
			return false;
	return true;
}

/*
 * On the way out, where user mode has page tables of its own: what the last
 * instructions need is copied from pt_regs to a stack of the processor's.
 * pt_regs are still there, and all other registers are the user's again.
 */
static bool find_regs_left_behind(struct pg_walk *walk)
{
	static const uint8_t for_iret[] = { SS, PG_RSP, ANY, ANY, PG_RIP, PG_RDI, PG_RAX };
	static const uint8_t for_sysret[] = { PG_RSP, PG_RDI, PG_RAX };
	static const uint8_t again[] = { PG_RBX, PG_RBP, PG_R12, PG_R13, PG_R14, PG_R15 };
	const struct pg_machine now = walk->machine;
	uint64_t top = (now.regs[PG_RSP] + ENTRY_STACK_END - 1) & ~(ENTRY_STACK_END - 1);
	struct pg_machine *user = &walk->machine;
	bool same = pg_find_user_regs(walk, false);
	size_t i;

	for (i = 0; i < sizeof(again); i++)
		same = same && user->regs[again[i]] == now.regs[again[i]];
	same = same && (is_pushed(&now, top, user, for_iret, sizeof(for_iret)) ||
			is_pushed(&now, top, user, for_sysret, sizeof(for_sysret)));
	if (!same)
		walk->machine = now;
	return same;
}

bool pg_find_edge_regs(struct pg_walk *walk)
{
	return find_regs_on_users_stack(walk) || find_regs_being_pushed(walk) ||
	       find_regs_left_behind(walk);
}
