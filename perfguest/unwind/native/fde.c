// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The entries of .eh_frame and .debug_frame (DWARF 5, section 6.4; Linux
 * Standard Base Core 5.0, section 10.6, for .eh_frame). An FDE tells of one
 * function, with what many have in common in a CIE. Both carry a little program
 * that makes a table: cfi.c runs it.
 */
#include "fde.h"
#include "dwarf.h"

#define LENGTH_64	0xffffffffu
#define DEBUG_FRAME_CIE	0xffffffffu
#define MAX_AUGMENTATION	16

bool pg_take_encoded(struct pg_bytes *bytes, uint8_t encoding, uint64_t vaddr, uint64_t data,
		     uint64_t *value)
{
	switch (encoding & DW_EH_PE_format) {
	case DW_EH_PE_absptr:
	case DW_EH_PE_udata8:
	case DW_EH_PE_sdata8:
		*value = pg_take_u64(bytes);
		break;
	case DW_EH_PE_uleb128:
		*value = pg_take_uleb(bytes);
		break;
	case DW_EH_PE_sleb128:
		*value = (uint64_t)pg_take_sleb(bytes);
		break;
	case DW_EH_PE_udata2:
		*value = pg_take_u16(bytes);
		break;
	case DW_EH_PE_sdata2:
		*value = (uint64_t)(int16_t)pg_take_u16(bytes);
		break;
	case DW_EH_PE_udata4:
		*value = pg_take_u32(bytes);
		break;
	case DW_EH_PE_sdata4:
		*value = (uint64_t)(int32_t)pg_take_u32(bytes);
		break;
	default:
		return false;
	}
	/* Also what DW_EH_PE_omit consists of. */
	if (encoding & DW_EH_PE_indirect)
		return false;
	switch (encoding & DW_EH_PE_base) {
	case 0:
		return true;
	case DW_EH_PE_pcrel:
		*value += vaddr;
		return true;
	case DW_EH_PE_datarel:
		*value += data;
		return true;
	default:
		return false;
	}
}

/* What stands at the head of CIEs and FDEs alike. */
struct entry {
	uint64_t offset;	/* in the file, of the field behind the length */
	struct pg_bytes bytes;	/* from there on */
	bool is_64;
};

/* An entry of no length ends .eh_frame: then nothing is in bytes. */
static enum pg_end view_entry(const struct pg_binary *binary, uint64_t offset, struct entry *entry)
{
	struct pg_bytes head;
	uint64_t length;
	enum pg_end end;

	end = pg_file_view(&binary->file, offset, sizeof(uint32_t), &head);
	if (end)
		return end;
	length = pg_take_u32(&head);
	entry->is_64 = length == LENGTH_64;
	entry->offset = offset + sizeof(uint32_t);
	if (entry->is_64) {
		end = pg_file_view(&binary->file, entry->offset, sizeof(uint64_t), &head);
		if (end)
			return end;
		length = pg_take_u64(&head);
		entry->offset += sizeof(uint64_t);
	}
	return pg_file_view(&binary->file, entry->offset, length, &entry->bytes);
}

static uint64_t take_id(struct entry *entry)
{
	return entry->is_64 ? pg_take_u64(&entry->bytes) : pg_take_u32(&entry->bytes);
}

static bool is_cie_id(enum pg_section_kind kind, bool is_64, uint64_t id)
{
	if (kind == PG_EH_FRAME)
		return !id;
	return id == (is_64 ? ~0ULL : DEBUG_FRAME_CIE);
}

/* What the letters say, and the data behind 'z' that some of them want. */
static bool parse_augmentation(struct pg_bytes *bytes, const char *letters, struct pg_cie *cie)
{
	struct pg_bytes data;
	uint64_t size, ignored;

	if (*letters != 'z')
		return !*letters;
	cie->augmented = true;
	size = pg_take_uleb(bytes);
	data.at = pg_take(bytes, size);
	if (!data.at)
		return false;
	data.end = data.at + size;
	data.broken = false;
	while (*++letters) {
		switch (*letters) {
		case 'R':
			cie->encoding = pg_take_u8(&data);
			break;
		case 'P':
			/* Only to get behind it: neither its base nor indirection matter. */
			if (!pg_take_encoded(&data, pg_take_u8(&data) & DW_EH_PE_format, 0, 0,
					     &ignored))
				return false;
			break;
		case 'L':
			pg_take_u8(&data);
			break;
		case 'S':
			cie->signal = true;
			break;
		default:
			/* What else there is has its data behind all that we want. */
			return !data.broken;
		}
	}
	return !data.broken;
}

static bool take_letters(struct pg_bytes *bytes, char letters[MAX_AUGMENTATION])
{
	unsigned int i;

	for (i = 0; i < MAX_AUGMENTATION; i++) {
		letters[i] = (char)pg_take_u8(bytes);
		if (!letters[i])
			return !bytes->broken;
	}
	return false;
}

static enum pg_end parse_cie(const struct pg_binary *binary, enum pg_section_kind kind,
			     uint64_t offset, struct pg_cie *cie)
{
	char letters[MAX_AUGMENTATION];
	struct pg_bytes *bytes;
	const uint8_t *start;
	struct entry entry;
	enum pg_end end;
	uint64_t return_register;
	uint8_t version;

	end = view_entry(binary, offset, &entry);
	if (end)
		return end == PG_END_PAGES ? end : PG_END_NO_RULE;
	bytes = &entry.bytes;
	start = bytes->at;
	if (!is_cie_id(kind, entry.is_64, take_id(&entry)))
		return PG_END_NO_RULE;
	memset(cie, 0, sizeof(*cie));
	version = pg_take_u8(bytes);
	if ((version != 1 && version != 3 && version != 4) || !take_letters(bytes, letters))
		return PG_END_NO_RULE;
	if (version == 4 && (pg_take_u8(bytes) != 8 || pg_take_u8(bytes)))
		return PG_END_NO_RULE;	/* another address size, or segments */
	if (letters[0] == 'e' && letters[1] == 'h') {
		/* A pointer that GCC 2 put there. */
		pg_take_u64(bytes);
		memmove(letters, letters + 2, sizeof(letters) - 2);
	}
	cie->code_factor = pg_take_uleb(bytes);
	cie->data_factor = pg_take_sleb(bytes);
	return_register = version == 1 ? pg_take_u8(bytes) : pg_take_uleb(bytes);
	if (!parse_augmentation(bytes, letters, cie) || bytes->broken ||
	    return_register != PG_RIP)
		return PG_END_NO_RULE;
	cie->program = *bytes;
	cie->program_offset = entry.offset + (uint64_t)(bytes->at - start);
	return 0;
}

/* Where the FDE with this id, which stands at id_offset, says its CIE is. */
static uint64_t cie_offset(const struct pg_binary *binary, enum pg_section_kind kind,
			   uint64_t id_offset, uint64_t id)
{
	if (kind == PG_EH_FRAME)
		return id_offset - id;
	return binary->sections[kind].offset + id;
}

static enum pg_end parse_range(const struct pg_binary *binary, const struct entry *entry,
			       const uint8_t *start, struct pg_bytes *bytes, struct pg_fde *fde)
{
	uint64_t at = entry->offset + (uint64_t)(bytes->at - start), vaddr = 0;
	uint8_t encoding = fde->cie.encoding;

	if ((encoding & DW_EH_PE_base) == DW_EH_PE_pcrel &&
	    !pg_offset_to_vaddr(binary, at, &vaddr))
		return PG_END_NO_RULE;
	fde->bias = vaddr - at;
	if (!pg_take_encoded(bytes, encoding, vaddr, binary->table.base, &fde->start) ||
	    !pg_take_encoded(bytes, encoding & DW_EH_PE_format, 0, 0, &fde->size))
		return PG_END_NO_RULE;
	if (fde->cie.augmented)
		pg_take(bytes, pg_take_uleb(bytes));
	return bytes->broken ? PG_END_NO_RULE : 0;
}

enum pg_end pg_parse_fde(const struct pg_binary *binary, enum pg_section_kind kind,
			 uint64_t offset, struct pg_fde *fde)
{
	const uint8_t *start;
	struct entry entry;
	enum pg_end end;
	uint64_t id;

	memset(fde, 0, sizeof(*fde));
	end = view_entry(binary, offset, &entry);
	if (end)
		return end == PG_END_PAGES ? end : PG_END_NO_RULE;
	start = entry.bytes.at;
	fde->next_offset = entry.offset + pg_bytes_left(&entry.bytes);
	fde->is_end = fde->next_offset == entry.offset;
	if (fde->is_end)
		return 0;
	id = take_id(&entry);
	if (entry.bytes.broken)
		return PG_END_NO_RULE;
	fde->is_cie = is_cie_id(kind, entry.is_64, id);
	if (fde->is_cie)
		return 0;
	end = parse_cie(binary, kind, cie_offset(binary, kind, entry.offset, id), &fde->cie);
	if (!end)
		end = parse_range(binary, &entry, start, &entry.bytes, fde);
	if (end)
		return end;
	fde->program = entry.bytes;
	fde->program_offset = entry.offset + (uint64_t)(entry.bytes.at - start);
	return 0;
}
