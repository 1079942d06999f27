/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * A file of which only some pages are there, as a guest's page cache has it.
 * What the file holds belongs to the guest: nothing in it is believed.
 */
#ifndef PERFGUEST_UNWIND_FILE_H
#define PERFGUEST_UNWIND_FILE_H

#include "bytes.h"
#include "rule.h"

struct pg_run {
	uint64_t offset;	/* in the file */
	const uint8_t *data;
	uint64_t size;
};

struct pg_file {
	uint64_t size;
	const struct pg_run *runs;	/* ascending, disjoint, never adjacent */
	size_t run_count;
};

/*
 * A cursor over size bytes at offset. 0, PG_END_PAGES if some are not there,
 * or PG_END_NO_TABLE if they lie outside the file.
 */
enum pg_end pg_file_view(const struct pg_file *file, uint64_t offset, uint64_t size,
			 struct pg_bytes *bytes);

/* As much as is there from offset on, at most size bytes; perhaps nothing. */
void pg_file_view_some(const struct pg_file *file, uint64_t offset, uint64_t size,
		       struct pg_bytes *bytes);

#endif
