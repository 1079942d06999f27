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

static int compare_paths(const struct pg_paths *paths, size_t a, size_t b)
{
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

/*
 * What mostly decides: which root, and the beginning of the name behind it. To
 * look for that in the paths at each comparison would take several times as long.
 */
struct entry {
	uint64_t beginning[2];
	uint32_t root;		/* its place among the roots */
	uint32_t path;
};

/* A root is a name twice as high, and one more where nothing is behind it. */
static uint32_t root_of(const struct pg_paths *paths, size_t path)
{
	size_t length = length_of(paths, path);

	return length ? 2 * (uint32_t)name_at(paths, path, 0) + (length == 1) : UINT32_MAX;
}

static int compare_roots(const void *left, const void *right, void *context)
{
	const struct pg_paths *paths = context;
	uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

	return compare_names(&paths->names, a / 2, a & 1, b / 2, b & 1);
}

static int compare_entries(const void *left, const void *right, void *context)
{
	const struct entry *a = left, *b = right;

	if (a->root != b->root)
		return a->root < b->root ? -1 : 1;
	if (a->beginning[0] != b->beginning[0])
		return a->beginning[0] < b->beginning[0] ? -1 : 1;
	if (a->beginning[1] != b->beginning[1])
		return a->beginning[1] < b->beginning[1] ? -1 : 1;
	return compare_paths(context, a->path, b->path);
}

/* Big-endian, so that numbers order as the bytes do. Behind a name comes what orders it, then nothing is known. */
static void put_beginning(const struct pg_paths *paths, struct entry *entry)
{
	size_t length = length_of(paths, entry->path), name, size, i;
	unsigned char bytes[16] = { 0 };

	entry->beginning[0] = entry->beginning[1] = 0;
	if (length < 2)
		return;
	name = name_at(paths, entry->path, 1);
	size = pg_piece_size(&paths->names, name);
	memcpy(bytes, paths->names.text + pg_piece_begin(&paths->names, name), size < 16 ? size : 16);
	if (size < 16 && length > 2)
		bytes[size] = ';';
	for (i = 0; i < 16; i++)
		entry->beginning[i / 8] = entry->beginning[i / 8] << 8 | bytes[i];
}

/* Gives each path its root's place; roots that read the same have the same. places: room for two of each name. */
static void place_roots(const struct pg_paths *paths, struct entry *entries, uint32_t *places, uint32_t *roots)
{
	size_t count = 0, i;
	uint32_t place = 1;

	for (i = 0; i < paths->count; i++) {
		uint32_t root = root_of(paths, i);

		if (root != UINT32_MAX && !places[root]) {
			places[root] = 1;
			roots[count++] = root;
		}
	}
	qsort_r(roots, count, sizeof(*roots), compare_roots, (void *)paths);
	for (i = 0; i < count; i++) {
		place += i && compare_roots(&roots[i - 1], &roots[i], (void *)paths);
		places[roots[i]] = place;
	}
	for (i = 0; i < paths->count; i++) {
		uint32_t root = root_of(paths, i);

		entries[i].path = (uint32_t)i;
		entries[i].root = root == UINT32_MAX ? 0 : places[root];
		put_beginning(paths, &entries[i]);
	}
}

static struct entry *sorted_paths(const struct pg_paths *paths)
{
	struct entry *entries = malloc((paths->count + 1) * sizeof(*entries));
	uint32_t *places = calloc(2 * paths->names.count + 1, sizeof(*places));
	uint32_t *roots = malloc((2 * paths->names.count + 1) * sizeof(*roots));

	if (entries && places && roots) {
		place_roots(paths, entries, places, roots);
		qsort_r(entries, paths->count, sizeof(*entries), compare_entries, (void *)paths);
	} else {
		free(entries);
		entries = NULL;
	}
	free(places);
	free(roots);
	return entries;
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
	struct entry *entries = sorted_paths(paths);
	size_t i, next;

	if (!entries)
		return NULL;
	for (i = 0; i < paths->count; i = next) {
		uint64_t total = (uint64_t)paths->total[entries[i].path];

		for (next = i + 1; next < paths->count && !compare_entries(&entries[i], &entries[next], (void *)paths); next++)
			total += (uint64_t)paths->total[entries[next].path];
		out = put_total(put_path(out, paths, entries[i].path), (int64_t)total);
	}
	free(entries);
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
