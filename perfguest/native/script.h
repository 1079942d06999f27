/* SPDX-License-Identifier: Apache-2.0 */
/* Samples as `perf script` prints them. */
#ifndef PG_SCRIPT_H
#define PG_SCRIPT_H

#include "pieces.h"

/*
 * Of each sample: THREAD[CPU] SECONDS.MICROSECONDS: PERIOD EVENT, the lines of
 * its stack's frames, an empty line. thread, event and stack are numbers of
 * pieces and of a list; the pieces hold what stands around the numbers.
 */
struct pg_script {
	size_t count;
	const int32_t *thread;
	const int32_t *cpu;
	const int64_t *time;	/* nanoseconds */
	const int64_t *period;
	const int32_t *event;
	const int32_t *stack;
	struct pg_pieces threads;
	struct pg_pieces events;
	struct pg_pieces frames;
	struct pg_lists stacks;
};

/* At least so many bytes are needed. */
size_t pg_script_room(const struct pg_script *script);
/* Gives the bytes written. */
size_t pg_script_write(const struct pg_script *script, char *out);

#endif
