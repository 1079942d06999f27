/* SPDX-License-Identifier: Apache-2.0 */
/* What was last said of a key before a moment. */
#ifndef PG_TIMELINE_H
#define PG_TIMELINE_H

#include <stddef.h>
#include <stdint.h>

/* Sorted by key, then by time. */
struct pg_timeline {
	const int64_t *key;
	const int64_t *time;
	size_t count;
};

/* Writes for each query the row of the last entry of its key with a time that is not later, -1 for none. */
void pg_timeline_latest(const struct pg_timeline *timeline, const int64_t *key, const int64_t *time, size_t count,
			int64_t *found);

#endif
