/* SPDX-License-Identifier: Apache-2.0 */
/* perf's callchains, whose markers say where the addresses behind them ran, into frames. */
#ifndef PG_CALLCHAIN_H
#define PG_CALLCHAIN_H

#include <stddef.h>
#include <stdint.h>

/* perfguest.profile.Mode */
enum pg_mode { PG_NONE, PG_HOST_KERNEL, PG_HOST_USER, PG_GUEST_KERNEL, PG_GUEST_USER };

/* Of the samples: length[i] words at data + at[i], all of them within the data. */
struct pg_callchains {
	size_t count;
	const uint8_t *data;
	const int64_t *at;
	const int64_t *length;
	const uint64_t *ip;
	const uint8_t *mode;
	const int64_t *space;
};

/* Columns of frames, with room for as many as there are words, one at least for each sample; start has one more than there are samples. */
struct pg_chain_frames {
	int64_t *start;
	uint8_t *mode;
	int64_t *space;
	uint64_t *address;
	uint8_t *returns;
};

/* Gives the number of frames. */
size_t pg_callchain_frames(const struct pg_callchains *chains, const struct pg_chain_frames *out);

#endif
