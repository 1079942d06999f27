/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chain of records in a perf.data file: each header says where the next one
 * is, so this is the one part of reading that goes step by step.
 */
#ifndef PG_RECORDS_H
#define PG_RECORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Headers as the file has them (u32 type, u16 misc, u16 size), and where they stand. */
struct pg_records {
	uint64_t *heads;
	int64_t *offsets;
	size_t count;
	size_t room;
	uint64_t position;	/* behind the last record; beyond the end if that says so */
	bool bad_size;		/* the record at the position cannot be */
	bool compressed;	/* among them are compressed ones */
};

/* Walks data[start:end]; end is at most the data's size. False: no memory. */
bool pg_records_walk(struct pg_records *records, const uint8_t *data, uint64_t start, uint64_t end);
void pg_records_free(struct pg_records *records);

#endif
