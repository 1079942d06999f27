// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
#include "file.h"

/* The run that holds the byte at offset. */
static const struct pg_run *find_run(const struct pg_file *file, uint64_t offset)
{
	size_t low = 0, high = file->run_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (file->runs[middle].offset <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low || offset - file->runs[low - 1].offset >= file->runs[low - 1].size)
		return NULL;
	return &file->runs[low - 1];
}

void pg_file_view_some(const struct pg_file *file, uint64_t offset, uint64_t size,
		       struct pg_bytes *bytes)
{
	const struct pg_run *run = find_run(file, offset);

	memset(bytes, 0, sizeof(*bytes));
	if (run) {
		uint64_t skip = offset - run->offset, left = run->size - skip;

		bytes->at = run->data + skip;
		bytes->end = bytes->at + (size < left ? size : left);
	}
}

enum pg_end pg_file_view(const struct pg_file *file, uint64_t offset, uint64_t size,
			 struct pg_bytes *bytes)
{
	if (offset > file->size || size > file->size - offset)
		return PG_END_NO_TABLE;
	pg_file_view_some(file, offset, size, bytes);
	return pg_bytes_left(bytes) == size ? 0 : PG_END_PAGES;
}
