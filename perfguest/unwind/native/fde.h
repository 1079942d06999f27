/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Entries of .eh_frame and .debug_frame. */
#ifndef PERFGUEST_UNWIND_FDE_H
#define PERFGUEST_UNWIND_FDE_H

#include "binary.h"

struct pg_cie {
	uint64_t code_factor;
	int64_t data_factor;
	uint8_t encoding;		/* of the addresses in its FDEs */
	bool augmented;			/* 'z': FDEs have augmentation data */
	bool signal;			/* 'S' */
	uint64_t program_offset;	/* in the file */
	struct pg_bytes program;
};

struct pg_fde {
	uint64_t next_offset;	/* of the entry behind it, in the file */
	bool is_cie;		/* or the section's end: nothing else is set */
	bool is_end;
	uint64_t start;		/* vaddr */
	uint64_t size;
	uint64_t bias;		/* vaddr of a byte of the section, minus its offset */
	struct pg_cie cie;
	uint64_t program_offset;
	struct pg_bytes program;
};

/*
 * The entry at offset of the file. 0, PG_END_PAGES, or PG_END_NO_RULE if it is
 * not sound.
 */
enum pg_end pg_parse_fde(const struct pg_binary *binary, enum pg_section_kind kind,
			 uint64_t offset, struct pg_fde *fde);

/*
 * A pointer as DWARF encodes it. vaddr is that of the cursor, data that of
 * .eh_frame_hdr. False if the encoding is not one that can be read.
 */
bool pg_take_encoded(struct pg_bytes *bytes, uint8_t encoding, uint64_t vaddr, uint64_t data,
		     uint64_t *value);

#endif
