/* SPDX-License-Identifier: Apache-2.0 */
/* Which mapping of a process an address lay in. */
#ifndef PG_MAPPINGS_H
#define PG_MAPPINGS_H

#include <stddef.h>
#include <stdint.h>

/* Mappings, in the order in which they were made: a later one hides what it covers of the earlier ones. */
struct pg_mappings {
	const uint64_t *start;
	const uint64_t *end;
	const int64_t *time;
	size_t count;
};

/* Ascending addresses, each at a time. */
struct pg_addresses {
	const uint64_t *address;
	const int64_t *time;
	size_t count;
};

/* Writes the name of each address's mapping where there is one. name: one for each mapping. */
void pg_find_mappings(const struct pg_mappings *mappings, const struct pg_addresses *addresses, const int64_t *name,
		      int64_t *found);

#endif
