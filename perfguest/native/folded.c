// SPDX-License-Identifier: Apache-2.0
#include "folded.h"

size_t pg_folded_size(const struct pg_lists *stacks, const struct pg_pieces *names)
{
	size_t size = 0, i;
	int64_t item;

	for (i = 0; i < stacks->count; i++) {
		for (item = stacks->start[i]; item < stacks->start[i + 1]; item++)
			size += pg_piece_size(names, (size_t)stacks->items[item]) + 1;
		size += stacks->start[i] == stacks->start[i + 1];
	}
	return size;
}

void pg_folded_write(const struct pg_lists *stacks, const struct pg_pieces *names, char *out)
{
	size_t i;
	int64_t item;

	for (i = 0; i < stacks->count; i++) {
		for (item = stacks->start[i + 1]; item-- > stacks->start[i];) {
			out = pg_put_piece(out, names, (size_t)stacks->items[item]);
			if (item > stacks->start[i])
				*out++ = ';';
		}
		*out++ = '\n';
	}
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
