/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which rows are equal. A profile has few different stacks: whatever is made of
 * them is made of each kind once, so finding the kinds is what each sample costs.
 */
#ifndef PG_DISTINCT_H
#define PG_DISTINCT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PG_MOST_COLUMNS	32

struct pg_column {
	const uint8_t *values;
	size_t width;		/* bytes of each: 1, 2, 4 or 8 */
};

/* A row is a value of each column and, unless data is NULL, length[i] bytes at data + at[i]. */
struct pg_rows {
	size_t count;
	struct pg_column columns[PG_MOST_COLUMNS];
	size_t column_count;
	const uint8_t *data;
	const int64_t *at;
	const int64_t *length;
};

/*
 * Gives number[i], for each row the number of its kind, in the order in which
 * they first occur, and first[k], the first row of each kind. Both have room for
 * all rows, of which there are less than 2^31. Gives how many kinds there are,
 * -1 without memory, or without numbers by chance.
 */
int64_t pg_distinct(const struct pg_rows *rows, int32_t *number, int64_t *first);

#endif
