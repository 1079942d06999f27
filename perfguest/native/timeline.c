// SPDX-License-Identifier: Apache-2.0
#include "timeline.h"

#include <stdbool.h>

#define CACHED	1024	/* keys: those of a moment's queries are few */

struct range {
	int64_t key;
	size_t begin;
	size_t end;
	bool known;
};

/* The first row from begin to end whose value is larger, or not smaller. */
static size_t search(const int64_t *values, size_t begin, size_t end, int64_t wanted, bool larger)
{
	while (begin < end) {
		size_t middle = begin + (end - begin) / 2;

		if (values[middle] < wanted || (larger && values[middle] == wanted))
			begin = middle + 1;
		else
			end = middle;
	}
	return begin;
}

void pg_timeline_latest(const struct pg_timeline *timeline, const int64_t *key, const int64_t *time, size_t count,
			int64_t *found)
{
	struct range cache[CACHED] = { { 0 } };
	size_t i;

	for (i = 0; i < count; i++) {
		struct range *range = &cache[(uint64_t)key[i] % CACHED];
		size_t behind;

		if (!range->known || range->key != key[i]) {
			range->key = key[i];
			range->known = true;
			range->begin = search(timeline->key, 0, timeline->count, key[i], false);
			range->end = search(timeline->key, range->begin, timeline->count, key[i], true);
		}
		behind = search(timeline->time, range->begin, range->end, time[i], true);
		found[i] = behind > range->begin ? (int64_t)behind - 1 : -1;
	}
}
