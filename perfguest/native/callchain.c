// SPDX-License-Identifier: Apache-2.0
#include "callchain.h"

#include <stdbool.h>

#include "bytes.h"

/* enum perf_callchain_context in include/uapi/linux/perf_event.h. */
#define CONTEXT_MAX		((uint64_t)-4095)
#define CONTEXT_KERNEL		((uint64_t)-128)
#define CONTEXT_USER		((uint64_t)-512)
#define CONTEXT_GUEST_KERNEL	((uint64_t)-2176)
#define CONTEXT_GUEST_USER	((uint64_t)-2560)

/* What runs behind a marker; PG_NONE for a value up there that is none. */
static enum pg_mode meaning(uint64_t marker)
{
	switch (marker) {
	case CONTEXT_KERNEL:
		return PG_HOST_KERNEL;
	case CONTEXT_USER:
		return PG_HOST_USER;
	case CONTEXT_GUEST_KERNEL:
		return PG_GUEST_KERNEL;
	case CONTEXT_GUEST_USER:
		return PG_GUEST_USER;
	}
	return PG_NONE;
}

static size_t put(const struct pg_chain_frames *out, size_t frame, uint8_t mode, int64_t space,
		  uint64_t address, bool returns)
{
	out->mode[frame] = mode;
	/* The host has one kernel, so what tells processes apart counts for user frames only. */
	out->space[frame] = mode == PG_HOST_USER ? space : 0;
	out->address[frame] = address;
	out->returns[frame] = returns;
	return frame + 1;
}

static size_t one_chain(const struct pg_callchains *chains, size_t sample,
			const struct pg_chain_frames *out, size_t frame)
{
	const uint8_t *word = chains->data + chains->at[sample];
	const uint8_t *end = word + 8 * chains->length[sample];
	uint8_t mode = chains->mode[sample];
	/* What stands first, and first behind a marker, is where that mode was left or interrupted, no return address. */
	bool returns = false;
	size_t begin = frame;

	for (; word < end; word += 8) {
		uint64_t address = pg_word(word);

		if (address < CONTEXT_MAX) {
			frame = put(out, frame, mode, chains->space[sample], address, returns);
			returns = true;
			continue;
		}
		mode = meaning(address);
		returns = false;
		/* Junk that a frame pointer led to: nothing behind it is true either. */
		if (mode == PG_NONE)
			break;
	}
	if (frame == begin)
		frame = put(out, frame, chains->mode[sample], chains->space[sample], chains->ip[sample], false);
	return frame;
}

size_t pg_callchain_frames(const struct pg_callchains *chains, const struct pg_chain_frames *out)
{
	size_t frame = 0, i;

	out->start[0] = 0;
	for (i = 0; i < chains->count; i++) {
		if (i + 8 < chains->count)
			__builtin_prefetch(chains->data + chains->at[i + 8]);
		frame = one_chain(chains, i, out, frame);
		out->start[i + 1] = (int64_t)frame;
	}
	return frame;
}
