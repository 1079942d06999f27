/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* An ELF file: where its segments lie, and where its unwind tables are. */
#ifndef PERFGUEST_UNWIND_BINARY_H
#define PERFGUEST_UNWIND_BINARY_H

#include <stdbool.h>

#include "file.h"

#define PG_MAX_SEGMENTS	16

struct pg_segment {
	uint64_t offset;
	uint64_t vaddr;
	uint64_t size;		/* in the file */
	bool executable;
};

enum pg_section_kind {
	PG_EH_FRAME,
	PG_DEBUG_FRAME,
};

struct pg_section {
	uint64_t offset;
	uint64_t size;		/* 0: there is none */
};

/* .eh_frame_hdr */
struct pg_search_table {
	uint64_t offset;	/* of its first pair */
	uint64_t vaddr;		/* likewise */
	uint64_t base;		/* vaddr of the header, to which datarel refers */
	uint64_t count;		/* 0: there is none that can be searched */
	uint8_t encoding;
	uint8_t width;		/* of half a pair */
};

struct pg_fde_place {
	uint64_t start;		/* vaddr */
	uint64_t size;
	uint64_t offset;	/* of the FDE */
	enum pg_section_kind kind;
};

/* The FDEs of sections without a search table, made when first asked for. */
struct pg_fde_index {
	struct pg_fde_place *places;
	size_t count;
	size_t room;
	bool made;
	bool incomplete;	/* for want of pages */
};

struct pg_binary {
	struct pg_file file;
	enum pg_end broken;	/* why it tells nothing; 0: it does */
	struct pg_segment segments[PG_MAX_SEGMENTS];
	unsigned int segment_count;
	uint64_t entry;
	bool has_interpreter;
	struct pg_section sections[2];	/* by enum pg_section_kind */
	struct pg_search_table table;
	struct pg_fde_index index;
	struct pg_binary *kept;		/* with more pages, of an earlier recording; NULL: none */
};

/* Reads headers; file and sections are set already. */
void pg_binary_init(struct pg_binary *binary);
void pg_binary_deinit(struct pg_binary *binary);

/* The executable segment that holds this byte of the file; NULL if none. */
const struct pg_segment *pg_text_segment(const struct pg_binary *binary, uint64_t offset);

bool pg_vaddr_to_offset(const struct pg_binary *binary, uint64_t vaddr, uint64_t *offset);
bool pg_offset_to_vaddr(const struct pg_binary *binary, uint64_t offset, uint64_t *vaddr);

/*
 * The rule at vaddr; where pages are missing, the one of binary->kept, which is
 * marked so. Not const: it may make the index.
 */
void pg_binary_rule(struct pg_binary *binary, uint64_t vaddr, struct pg_rule *rule);

#endif
