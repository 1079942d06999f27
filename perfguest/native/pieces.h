/* SPDX-License-Identifier: Apache-2.0 */
/* Pieces of text, and lists of numbers: what writers put together for each stack. */
#ifndef PG_PIECES_H
#define PG_PIECES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Piece i is text[end[i - 1]:end[i]], the first one begins with the text. */
struct pg_pieces {
	const char *text;
	const int64_t *end;
	size_t count;
};

/* List i is items[start[i]:start[i + 1]]. */
struct pg_lists {
	const int64_t *start;
	const int32_t *items;
	size_t count;
};

static inline int64_t pg_piece_begin(const struct pg_pieces *pieces, size_t i)
{
	return i ? pieces->end[i - 1] : 0;
}

static inline size_t pg_piece_size(const struct pg_pieces *pieces, size_t i)
{
	return (size_t)(pieces->end[i] - pg_piece_begin(pieces, i));
}

static inline char *pg_put_piece(char *out, const struct pg_pieces *pieces, size_t i)
{
	size_t size = pg_piece_size(pieces, i);

	memcpy(out, pieces->text + pg_piece_begin(pieces, i), size);
	return out + size;
}

#endif
