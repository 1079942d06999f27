// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* The last resort: words of the stacks that could be return addresses. */
#include "walk_parts.h"

static bool is_kernel_return(const struct pg_walk *walk, uint64_t word)
{
	return walk->kernel && pg_is_kernel_address(word) &&
	       pg_kernel_call_ends(walk->kernel, word);
}

static bool is_user_return(const struct pg_walk *walk, uint64_t word)
{
	const struct pg_mapping *mapping = pg_find_code(walk, word);

	return mapping && pg_user_call_ends(walk, mapping, word) == PG_CALL;
}

/* The words of one copy from an address on. False if there is no room for more. */
static bool scan_copy(struct pg_walk *walk, const struct pg_copy *copy, uint64_t from, bool user)
{
	uint64_t offset = pg_align_word(from) - copy->address, word;

	for (; offset < copy->size && copy->size - offset >= 8; offset += 8) {
		memcpy(&word, copy->data + offset, sizeof(word));
		if (!(user ? is_user_return(walk, word) : is_kernel_return(walk, word)))
			continue;
		if (!pg_emit(walk, word, PG_HOW_SCAN | PG_FRAME_RETURN | (user ? PG_FRAME_USER : 0)))
			return false;
	}
	return true;
}

/*
 * The stack that SP is on from there up, then others of the same half of the
 * address space whole: they were left for that one, where is not known.
 */
static enum pg_end scan_half(struct pg_walk *walk, bool user)
{
	const struct pg_machine *m = &walk->machine;
	size_t own = pg_copy_of(m, m->regs[PG_RSP]), i;

	if (!pg_emit(walk, m->regs[PG_RIP], user ? PG_FRAME_USER : 0))
		return PG_END_DEPTH;
	if (own != PG_NO_COPY && !scan_copy(walk, &m->copies[own], m->regs[PG_RSP], user))
		return PG_END_DEPTH;
	for (i = 0; i < m->copy_count; i++)
		if (i != own && pg_is_user_address(m->copies[i].address) == user &&
		    !scan_copy(walk, &m->copies[i], m->copies[i].address, user))
			return PG_END_DEPTH;
	return PG_END_CUT;
}

struct pg_ends pg_scan(struct pg_unwinder *unwinder, const struct pg_sample *sample,
		       struct pg_frames *frames)
{
	struct pg_ends ends = { PG_END_NONE, PG_END_NONE };
	struct pg_walk walk;

	pg_walk_init(&walk, unwinder, sample, frames);
	if (sample->mode == PG_MODE_USER) {
		ends.user = scan_half(&walk, true);
	} else if (sample->mode == PG_MODE_KERNEL) {
		ends.kernel = scan_half(&walk, false);
		if (pg_find_user_regs(&walk, false)) {
			if (ends.kernel == PG_END_CUT)
				ends.kernel = PG_END_USER_ENTRY;
			ends.user = walk.compat ? PG_END_COMPAT : scan_half(&walk, true);
		}
	}
	return ends;
}
