// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
#include "walk_parts.h"

void pg_walk_init(struct pg_walk *walk, struct pg_unwinder *unwinder,
		  const struct pg_sample *sample, struct pg_frames *frames)
{
	struct pg_machine *m = &walk->machine;

	memset(walk, 0, sizeof(*walk));
	walk->unwinder = unwinder;
	walk->sample = sample;
	walk->frames = frames;
	if (sample->kernel >= 0)
		walk->kernel = unwinder->kernels[sample->kernel];
	if (sample->space >= 0)
		walk->space = unwinder->spaces[sample->space];
	m->copies = sample->copies;
	m->copy_count = sample->copy_count;
	memcpy(m->regs, sample->regs, sizeof(m->regs));
	m->known = PG_ALL_REGISTERS;
}

struct pg_ends pg_walk(struct pg_unwinder *unwinder, const struct pg_sample *sample,
		       struct pg_frames *frames)
{
	struct pg_ends ends = { PG_END_NONE, PG_END_NONE };
	struct pg_walk walk;

	pg_walk_init(&walk, unwinder, sample, frames);
	if (sample->mode == PG_MODE_USER) {
		ends.user = pg_walk_user(&walk);
	} else if (sample->mode == PG_MODE_KERNEL) {
		ends.kernel = pg_walk_kernel(&walk);
		/* A thread that has not been in user mode yet begins like one of the kernel's. */
		if (ends.kernel == PG_END_USER_ENTRY ||
		    pg_find_user_regs(&walk, ends.kernel == PG_END_THREAD_START))
			ends.user = pg_walk_user(&walk);
	}
	return ends;
}
