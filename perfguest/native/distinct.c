// SPDX-License-Identifier: Apache-2.0
#include "distinct.h"

#include <stdlib.h>
#include <sys/random.h>

#include "bytes.h"

#define BLOCK		32	/* rows hashed before the first of them is looked up: what memory takes overlaps */
#define SLOTS_AT_FIRST	1024
#define NO_KIND		(-1)

/* The upper half of the hash tells most kinds apart without a look at their rows. */
struct slot {
	uint32_t tag;
	int32_t kind;
};

struct table {
	struct slot *slots;
	size_t mask;
	uint64_t *hashes;	/* of each kind */
	/*
	 * By chance, other ones each time: the rows are what programs and guests
	 * made of their stacks, and known numbers would let them choose rows whose
	 * hashes are all equal.
	 */
	uint64_t secrets[2];
	size_t room;
	size_t kinds;
};

static inline uint64_t mix(uint64_t a, uint64_t b)
{
	unsigned __int128 product = (unsigned __int128)a * b;

	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t value_of(const struct pg_column *column, size_t row)
{
	const uint8_t *at = column->values + row * column->width;
	uint16_t quarter;

	switch (column->width) {
	case 8:
		return pg_word(at);
	case 4:
		return pg_half(at);
	case 2:
		memcpy(&quarter, at, sizeof(quarter));
		return quarter;
	}
	return *at;
}

static uint64_t hash_row(const struct table *table, const struct pg_rows *rows, size_t row)
{
	const uint64_t one = table->secrets[0], other = table->secrets[1];
	uint64_t hash = one;
	size_t i;

	for (i = 0; i < rows->column_count; i++)
		hash = mix(hash ^ other, value_of(&rows->columns[i], row) + one);
	if (rows->data) {
		const uint8_t *at = rows->data + rows->at[row];
		size_t left = (size_t)rows->length[row];
		uint64_t word = left;

		for (; left >= 16; left -= 16, at += 16)
			hash = mix(hash ^ pg_word(at), pg_word(at + 8) ^ other);
		if (left >= 8) {
			hash = mix(hash ^ pg_word(at), other);
			at += 8;
			left -= 8;
		}
		memcpy(&word, at, left);
		hash = mix(hash ^ word, one);
	}
	return mix(hash, other);
}

static bool equal_rows(const struct pg_rows *rows, size_t a, size_t b)
{
	size_t i;

	for (i = 0; i < rows->column_count; i++) {
		if (value_of(&rows->columns[i], a) != value_of(&rows->columns[i], b))
			return false;
	}
	if (!rows->data)
		return true;
	return rows->length[a] == rows->length[b] &&
	       !memcmp(rows->data + rows->at[a], rows->data + rows->at[b], (size_t)rows->length[a]);
}

static void place(struct table *table, uint64_t hash, int32_t kind)
{
	size_t at = hash & table->mask;

	while (table->slots[at].kind != NO_KIND)
		at = (at + 1) & table->mask;
	table->slots[at].tag = (uint32_t)(hash >> 32);
	table->slots[at].kind = kind;
}

static bool resize(struct table *table, size_t slots)
{
	struct slot *made = malloc(slots * sizeof(*made));
	size_t i;

	if (!made)
		return false;
	free(table->slots);
	table->slots = made;
	table->mask = slots - 1;
	for (i = 0; i < slots; i++)
		made[i].kind = NO_KIND;
	for (i = 0; i < table->kinds; i++)
		place(table, table->hashes[i], (int32_t)i);
	return true;
}

static bool add(struct table *table, uint64_t hash)
{
	if (table->kinds == table->room) {
		size_t room = 2 * table->room;
		uint64_t *hashes = realloc(table->hashes, room * sizeof(*hashes));

		if (!hashes)
			return false;
		table->hashes = hashes;
		table->room = room;
	}
	table->hashes[table->kinds++] = hash;
	if (2 * table->kinds > table->mask)
		return resize(table, 4 * (table->mask + 1));
	place(table, hash, (int32_t)(table->kinds - 1));
	return true;
}

static int32_t find(const struct table *table, const struct pg_rows *rows, size_t row, uint64_t hash,
		    const int64_t *first)
{
	size_t at = hash & table->mask;

	for (; table->slots[at].kind != NO_KIND; at = (at + 1) & table->mask) {
		int32_t kind = table->slots[at].kind;

		if (table->slots[at].tag == (uint32_t)(hash >> 32) &&
		    equal_rows(rows, row, (size_t)first[kind]))
			return kind;
	}
	return NO_KIND;
}

static bool number_block(struct table *table, const struct pg_rows *rows, size_t begin, size_t end,
			 int32_t *number, int64_t *first)
{
	uint64_t hashes[BLOCK];
	size_t i;

	for (i = begin; i < end; i++) {
		if (rows->data && i + BLOCK < rows->count)
			__builtin_prefetch(rows->data + rows->at[i + BLOCK]);
		hashes[i - begin] = hash_row(table, rows, i);
		__builtin_prefetch(&table->slots[hashes[i - begin] & table->mask]);
	}
	for (i = begin; i < end; i++) {
		int32_t kind = find(table, rows, i, hashes[i - begin], first);

		if (kind == NO_KIND) {
			kind = (int32_t)table->kinds;
			first[kind] = (int64_t)i;
			if (!add(table, hashes[i - begin]))
				return false;
		}
		number[i] = kind;
	}
	return true;
}

int64_t pg_distinct(const struct pg_rows *rows, int32_t *number, int64_t *first)
{
	struct table table = { .room = SLOTS_AT_FIRST };
	int64_t kinds = -1;
	size_t i;

	/* So few bytes come whole, or not at all where there is no such call. */
	if (getrandom(table.secrets, sizeof(table.secrets), 0) != (ssize_t)sizeof(table.secrets))
		return -1;
	table.secrets[0] |= 1;
	table.secrets[1] |= 1;
	table.hashes = malloc(table.room * sizeof(*table.hashes));
	if (!table.hashes || !resize(&table, SLOTS_AT_FIRST))
		goto out;
	for (i = 0; i < rows->count; i += BLOCK) {
		size_t end = rows->count - i < BLOCK ? rows->count : i + BLOCK;

		if (!number_block(&table, rows, i, end, number, first))
			goto out;
	}
	kinds = (int64_t)table.kinds;
out:
	free(table.slots);
	free(table.hashes);
	return kinds;
}
