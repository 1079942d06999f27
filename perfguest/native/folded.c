// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "folded.h"

#include <stdlib.h>

#define TOTAL_ROOM	22	/* a space, a sign, digits and a newline */

static inline size_t length_of(const struct pg_paths *paths, size_t path)
{
	const int64_t *start = &paths->stacks.start[paths->stack[path]];

	return (size_t)(start[1] - start[0]) + (paths->root[path] >= 0);
}

/* From the root on. */
static inline size_t name_at(const struct pg_paths *paths, size_t path, size_t depth)
{
	bool rooted = paths->root[path] >= 0;

	if (rooted && !depth)
		return (size_t)paths->root[path];
	return (size_t)paths->stacks.items[paths->stacks.start[paths->stack[path] + 1] - 1 - (int64_t)(depth - rooted)];
}

/* What stands behind a name orders as well: a line's end comes before all, then comes what is below ';', then ';'. */
static int compare_names(const struct pg_pieces *names, size_t a, bool a_is_last, size_t b, bool b_is_last)
{
	const char *text_a = names->text + pg_piece_begin(names, a), *text_b = names->text + pg_piece_begin(names, b);
	size_t size_a = pg_piece_size(names, a), size_b = pg_piece_size(names, b);
	int order = memcmp(text_a, text_b, size_a < size_b ? size_a : size_b);
	int next_a, next_b;

	if (order)
		return order;
	next_a = size_a > size_b ? (unsigned char)text_a[size_b] : a_is_last ? -1 : ';';
	next_b = size_b > size_a ? (unsigned char)text_b[size_a] : b_is_last ? -1 : ';';
	return next_a - next_b;
}

static int compare_paths(const void *left, const void *right, void *context)
{
	const struct pg_paths *paths = context;
	size_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
	size_t length_a = length_of(paths, a), length_b = length_of(paths, b), depth;

	for (depth = 0; depth < length_a && depth < length_b; depth++) {
		size_t name_a = name_at(paths, a, depth), name_b = name_at(paths, b, depth);
		bool a_is_last = depth + 1 == length_a, b_is_last = depth + 1 == length_b;
		int order = 0;

		if (name_a != name_b || a_is_last != b_is_last)
			order = compare_names(&paths->names, name_a, a_is_last, name_b, b_is_last);
		if (order)
			return order;
	}
	return (length_a > length_b) - (length_a < length_b);
}

size_t pg_folded_room(const struct pg_paths *paths)
{
	size_t room = 0, i, depth;

	for (i = 0; i < paths->count; i++) {
		room += TOTAL_ROOM;
		for (depth = 0; depth < length_of(paths, i); depth++)
			room += pg_piece_size(&paths->names, name_at(paths, i, depth)) + 1;
	}
	return room;
}

static char *put_total(char *out, int64_t total)
{
	uint64_t left = total < 0 ? -(uint64_t)total : (uint64_t)total;
	char digits[20], *at = digits + sizeof(digits);

	*out++ = ' ';
	if (total < 0)
		*out++ = '-';
	do {
		*--at = (char)('0' + left % 10);
		left /= 10;
	} while (left);
	memcpy(out, at, (size_t)(digits + sizeof(digits) - at));
	out += digits + sizeof(digits) - at;
	*out++ = '\n';
	return out;
}

static char *put_path(char *out, const struct pg_paths *paths, size_t path)
{
	size_t length = length_of(paths, path), depth;

	for (depth = 0; depth < length; depth++) {
		if (depth)
			*out++ = ';';
		out = pg_put_piece(out, &paths->names, name_at(paths, path, depth));
	}
	return out;
}

char *pg_folded_write(const struct pg_paths *paths, char *out)
{
	uint32_t *order = malloc((paths->count + 1) * sizeof(*order));
	size_t i, next;

	if (!order)
		return NULL;
	for (i = 0; i < paths->count; i++)
		order[i] = (uint32_t)i;
	qsort_r(order, paths->count, sizeof(*order), compare_paths, (void *)paths);
	for (i = 0; i < paths->count; i = next) {
		uint64_t total = (uint64_t)paths->total[order[i]];

		for (next = i + 1; next < paths->count && !compare_paths(&order[i], &order[next], (void *)paths); next++)
			total += (uint64_t)paths->total[order[next]];
		out = put_total(put_path(out, paths, order[i]), (int64_t)total);
	}
	free(order);
	return out;
}

char *pg_put_hex(char *out, uint64_t value)
{
	int digits = (63 - __builtin_clzll(value | 1)) / 4 + 1;

	*out++ = '0';
	*out++ = 'x';
	while (digits--)
		*out++ = "0123456789abcdef"[value >> 4 * digits & 15];
	return out;
}
