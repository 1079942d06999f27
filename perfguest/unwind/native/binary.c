// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * ELF headers. Sections are not looked for: the section headers stand at the
 * end of a file and are seldom in a page cache. Program headers are in the
 * first page, and PT_GNU_EH_FRAME leads to the tables.
 */
#include "binary.h"
#include "dwarf.h"
#include "fde.h"

#include <elf.h>
#include <stdlib.h>

static bool overlaps(uint64_t start, uint64_t size, uint64_t at)
{
	return at - start < size;
}

const struct pg_segment *pg_text_segment(const struct pg_binary *binary, uint64_t offset)
{
	unsigned int i;

	for (i = 0; i < binary->segment_count; i++) {
		const struct pg_segment *segment = &binary->segments[i];

		if (segment->executable && overlaps(segment->offset, segment->size, offset))
			return segment;
	}
	return NULL;
}

bool pg_vaddr_to_offset(const struct pg_binary *binary, uint64_t vaddr, uint64_t *offset)
{
	unsigned int i;

	for (i = 0; i < binary->segment_count; i++) {
		const struct pg_segment *segment = &binary->segments[i];

		if (overlaps(segment->vaddr, segment->size, vaddr)) {
			*offset = vaddr - segment->vaddr + segment->offset;
			return true;
		}
	}
	return false;
}

bool pg_offset_to_vaddr(const struct pg_binary *binary, uint64_t offset, uint64_t *vaddr)
{
	unsigned int i;

	for (i = 0; i < binary->segment_count; i++) {
		const struct pg_segment *segment = &binary->segments[i];

		if (overlaps(segment->offset, segment->size, offset)) {
			*vaddr = offset - segment->offset + segment->vaddr;
			return true;
		}
	}
	return false;
}

static uint8_t encoded_width(uint8_t encoding)
{
	switch (encoding & DW_EH_PE_format) {
	case DW_EH_PE_udata2:
	case DW_EH_PE_sdata2:
		return 2;
	case DW_EH_PE_udata4:
	case DW_EH_PE_sdata4:
		return 4;
	case DW_EH_PE_absptr:
	case DW_EH_PE_udata8:
	case DW_EH_PE_sdata8:
		return 8;
	default:
		return 0;
	}
}

/*
 * Linux Standard Base, section 10.6.2. Without a table that can be searched
 * the header still tells where .eh_frame begins.
 */
static enum pg_end read_search_table(struct pg_binary *binary, const Elf64_Phdr *header)
{
	struct pg_search_table *table = &binary->table;
	uint64_t eh_frame = 0, count = 0, offset;
	uint8_t version, frame_encoding, count_encoding;
	const uint8_t *start;
	struct pg_bytes bytes;
	enum pg_end end;

	end = pg_file_view(&binary->file, header->p_offset,
			   header->p_filesz < 64 ? header->p_filesz : 64, &bytes);
	if (end)
		return end;
	start = bytes.at;
	version = pg_take_u8(&bytes);
	frame_encoding = pg_take_u8(&bytes);
	count_encoding = pg_take_u8(&bytes);
	table->encoding = pg_take_u8(&bytes);
	table->width = encoded_width(table->encoding);
	table->base = header->p_vaddr;
	if (version != 1 || !pg_take_encoded(&bytes, frame_encoding, header->p_vaddr + 4,
					     header->p_vaddr, &eh_frame))
		return PG_END_NO_TABLE;
	if (!binary->sections[PG_EH_FRAME].size && pg_vaddr_to_offset(binary, eh_frame, &offset)) {
		binary->sections[PG_EH_FRAME].offset = offset;
		binary->sections[PG_EH_FRAME].size = binary->file.size - offset;
	}
	if (!pg_take_encoded(&bytes, count_encoding, header->p_vaddr + (uint64_t)(bytes.at - start),
			     header->p_vaddr, &count) || bytes.broken || !table->width)
		return 0;
	table->offset = header->p_offset + (uint64_t)(bytes.at - start);
	table->vaddr = header->p_vaddr + (uint64_t)(bytes.at - start);
	table->count = count;
	/* The count is the file's word; the segment's size bounds it. */
	if (count > (header->p_filesz - (uint64_t)(bytes.at - start)) / (2u * table->width))
		table->count = 0;
	return 0;
}

static void add_segment(struct pg_binary *binary, const Elf64_Phdr *header)
{
	if (binary->segment_count == PG_MAX_SEGMENTS)
		return;
	binary->segments[binary->segment_count++] = (struct pg_segment){
		.offset = header->p_offset,
		.vaddr = header->p_vaddr,
		.size = header->p_filesz,
		.executable = header->p_flags & PF_X,
	};
}

static enum pg_end read_program_headers(struct pg_binary *binary)
{
	Elf64_Phdr header, eh_frame = { .p_type = PT_NULL };
	const uint8_t *at;
	struct pg_bytes bytes;
	enum pg_end end;
	Elf64_Ehdr elf;
	unsigned int i;

	end = pg_file_view(&binary->file, 0, sizeof(elf), &bytes);
	if (end)
		return end;
	memcpy(&elf, bytes.at, sizeof(elf));
	if (memcmp(elf.e_ident, ELFMAG, SELFMAG) || elf.e_ident[EI_CLASS] != ELFCLASS64 ||
	    elf.e_machine != EM_X86_64 || elf.e_phentsize != sizeof(header))
		return PG_END_NO_TABLE;
	binary->entry = elf.e_entry;
	end = pg_file_view(&binary->file, elf.e_phoff, (uint64_t)elf.e_phnum * sizeof(header), &bytes);
	if (end)
		return end;
	for (i = 0; i < elf.e_phnum; i++) {
		at = pg_take(&bytes, sizeof(header));
		memcpy(&header, at, sizeof(header));
		if (header.p_type == PT_LOAD)
			add_segment(binary, &header);
		else if (header.p_type == PT_GNU_EH_FRAME)
			eh_frame = header;
		else if (header.p_type == PT_INTERP)
			binary->has_interpreter = true;
	}
	return eh_frame.p_type == PT_NULL ? 0 : read_search_table(binary, &eh_frame);
}

void pg_binary_init(struct pg_binary *binary)
{
	unsigned int kind;

	for (kind = PG_EH_FRAME; kind <= PG_DEBUG_FRAME; kind++) {
		struct pg_section *section = &binary->sections[kind];

		if (section->offset > binary->file.size ||
		    section->size > binary->file.size - section->offset)
			section->size = 0;
	}
	binary->broken = read_program_headers(binary);
}

void pg_binary_deinit(struct pg_binary *binary)
{
	free(binary->index.places);
}
