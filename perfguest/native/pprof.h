/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two messages of pprof's profile.proto that a profile has many of, as they
 * stand in their Profile: tag, length, fields in ascending order, none of them
 * that is zero, as protobuf's own writer has it.
 */
#ifndef PG_PPROF_H
#define PG_PPROF_H

#include "pieces.h"

/* Location i has the id first_id + i. A function of 0: it has no line. */
struct pg_locations {
	size_t count;
	uint64_t first_id;
	const uint64_t *address;
	const int64_t *mapping;
	const int64_t *function;
};

/* Sample i has the stack and the labels of these numbers, and values[i * value_count ...]. */
struct pg_samples {
	size_t count;
	const int32_t *stack;
	const int32_t *label;
	const int64_t *values;
	size_t value_count;
	struct pg_lists stacks;		/* items: frames, whose locations are one higher */
	struct pg_pieces labels;	/* messages Sample with nothing but labels */
};

/* With out NULL the size alone is found. Gives the bytes. */
size_t pg_pprof_locations(const struct pg_locations *locations, uint8_t *out);
size_t pg_pprof_samples(const struct pg_samples *samples, uint8_t *out);

#endif
