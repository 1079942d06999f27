/* SPDX-License-Identifier: Apache-2.0 */
/* Folded stacks: the names of each stack's frames in one line. */
#ifndef PG_FOLDED_H
#define PG_FOLDED_H

#include "pieces.h"

/* Bytes that all lines take. All items are numbers of pieces. */
size_t pg_folded_size(const struct pg_lists *stacks, const struct pg_pieces *names);
/* Writes a line for each stack, its last item first, parted by ';', ending with a newline. */
void pg_folded_write(const struct pg_lists *stacks, const struct pg_pieces *names, char *out);

#define PG_HEX_ROOM	18

/* As 0x12ab, with as many digits as it takes; gives the end. */
char *pg_put_hex(char *out, uint64_t value);

#endif
