/* SPDX-License-Identifier: Apache-2.0 */
/* Folded stacks: a line for each different path of names, and how often it was seen. */
#ifndef PG_FOLDED_H
#define PG_FOLDED_H

#include <stdbool.h>

#include "pieces.h"

#define PG_HEX_ROOM	18

/*
 * Path i: root[i] if that is not negative, then the items of the list stack[i]
 * from the last to the first; numbers of pieces, none of which is empty or holds a ';'.
 */
struct pg_paths {
	const int32_t *stack;
	const int32_t *root;
	const int64_t *total;
	size_t count;
	struct pg_lists stacks;
	struct pg_pieces names;
};

/* Bytes that suffice for all lines. */
size_t pg_folded_room(const struct pg_paths *paths);
/*
 * Writes the lines in ascending order, ROOT;...;LEAF TOTAL; paths that read the
 * same are one. Gives the end, NULL without memory.
 */
char *pg_folded_write(const struct pg_paths *paths, char *out);

/* As 0x12ab, with as many digits as it takes; gives the end. */
char *pg_put_hex(char *out, uint64_t value);

#endif
