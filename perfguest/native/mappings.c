// SPDX-License-Identifier: Apache-2.0
#include "mappings.h"

/* The first address that is not below. */
static size_t place_of(const struct pg_addresses *addresses, uint64_t wanted)
{
	size_t low = 0, high = addresses->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (addresses->address[middle] < wanted)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

void pg_find_mappings(const struct pg_mappings *mappings, const struct pg_addresses *addresses, const int64_t *name,
		      int64_t *found)
{
	size_t i, at;

	for (i = 0; i < mappings->count; i++) {
		for (at = place_of(addresses, mappings->start[i]);
		     at < addresses->count && addresses->address[at] < mappings->end[i]; at++) {
			if (addresses->time[at] >= mappings->time[i])
				found[at] = name[i];
		}
	}
}
