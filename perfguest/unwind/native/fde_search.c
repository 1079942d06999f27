// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * From an address to its FDE: by the search table in .eh_frame_hdr, of which a
 * look-up touches a few pages, or by an index made of the whole section where
 * there is no such table (.debug_frame, some static programs).
 */
#include "binary.h"
#include "cfi.h"
#include "dwarf.h"

#include <stdlib.h>

/* One half of a pair in the table. */
static enum pg_end read_half(const struct pg_binary *binary, uint64_t half, uint64_t *value)
{
	const struct pg_search_table *table = &binary->table;
	uint64_t skip = half * table->width;
	struct pg_bytes bytes;
	enum pg_end end;

	end = pg_file_view(&binary->file, table->offset + skip, table->width, &bytes);
	if (end)
		return end == PG_END_PAGES ? end : PG_END_NO_RULE;
	if (!pg_take_encoded(&bytes, table->encoding, table->vaddr + skip, table->base, value))
		return PG_END_NO_RULE;
	return 0;
}

/* The last FDE in the table that begins at or before vaddr. */
static enum pg_end search_table(const struct pg_binary *binary, uint64_t vaddr, uint64_t *offset)
{
	uint64_t low = 0, high = binary->table.count, value;
	enum pg_end end;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		end = read_half(binary, 2 * middle, &value);
		if (end)
			return end;
		if (value <= vaddr)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low)
		return PG_END_NO_RULE;
	end = read_half(binary, 2 * low - 1, &value);
	if (end)
		return end;
	return pg_vaddr_to_offset(binary, value, offset) ? 0 : PG_END_NO_RULE;
}

static bool add_place(struct pg_fde_index *index, const struct pg_fde_place *place)
{
	if (index->count == index->room) {
		size_t room = index->room ? 2 * index->room : 256;
		struct pg_fde_place *places = realloc(index->places, room * sizeof(*places));

		if (!places)
			return false;
		index->places = places;
		index->room = room;
	}
	index->places[index->count++] = *place;
	return true;
}

/* Entries follow one another, so a page that is not there hides all behind it. */
static void index_section(struct pg_binary *binary, enum pg_section_kind kind)
{
	const struct pg_section *section = &binary->sections[kind];
	uint64_t offset = section->offset, end = offset + section->size;
	struct pg_fde fde;

	while (offset < end) {
		struct pg_fde_place place = { .offset = offset, .kind = kind };
		enum pg_end bad = pg_parse_fde(binary, kind, offset, &fde);

		if (bad == PG_END_PAGES)
			binary->index.incomplete = true;
		if (fde.next_offset <= offset || (fde.is_end && kind == PG_EH_FRAME))
			return;
		place.start = fde.start;
		place.size = fde.size;
		if (!bad && fde.size && !fde.is_cie && !add_place(&binary->index, &place))
			return;
		offset = fde.next_offset;
	}
}

static int compare_places(const void *a, const void *b)
{
	const struct pg_fde_place *left = a, *right = b;

	return (left->start > right->start) - (left->start < right->start);
}

static void make_index(struct pg_binary *binary)
{
	struct pg_fde_index *index = &binary->index;

	index->made = true;
	index_section(binary, PG_EH_FRAME);
	index_section(binary, PG_DEBUG_FRAME);
	if (index->count)
		qsort(index->places, index->count, sizeof(*index->places), compare_places);
}

static enum pg_end search_index(const struct pg_fde_index *index, uint64_t vaddr,
				const struct pg_fde_place **place)
{
	size_t low = 0, high = index->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (index->places[middle].start <= vaddr)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low || vaddr - index->places[low - 1].start >= index->places[low - 1].size)
		return index->incomplete ? PG_END_PAGES : PG_END_NO_RULE;
	*place = &index->places[low - 1];
	return 0;
}

static enum pg_end find_fde(struct pg_binary *binary, uint64_t vaddr, struct pg_fde *fde)
{
	const struct pg_fde_place *place;
	uint64_t offset;
	enum pg_end end;

	if (binary->broken)
		return binary->broken;
	if (binary->table.count) {
		end = search_table(binary, vaddr, &offset);
		return end ? end : pg_parse_fde(binary, PG_EH_FRAME, offset, fde);
	}
	if (!binary->index.made)
		make_index(binary);
	if (!binary->index.count && !binary->index.incomplete)
		return PG_END_NO_TABLE;
	end = search_index(&binary->index, vaddr, &place);
	return end ? end : pg_parse_fde(binary, place->kind, place->offset, fde);
}

static void make_rule(struct pg_binary *binary, uint64_t vaddr, struct pg_rule *rule)
{
	struct pg_fde fde;
	enum pg_end end = find_fde(binary, vaddr, &fde);

	if (!end && (fde.is_cie || fde.is_end || vaddr - fde.start >= fde.size))
		end = PG_END_NO_RULE;
	if (end)
		pg_rule_stop(rule, end);
	else
		pg_cfi_rule(&fde, vaddr, rule);
}

void pg_binary_rule(struct pg_binary *binary, uint64_t vaddr, struct pg_rule *rule)
{
	make_rule(binary, vaddr, rule);
	rule->kept = false;
	if (!binary->kept || pg_rule_end(rule) != PG_END_PAGES)
		return;
	make_rule(binary->kept, vaddr, rule);
	rule->kept = true;
	/* An end that the guest does not say itself is none. */
	if (rule->kind == PG_RULE_STOP)
		pg_rule_stop(rule, PG_END_PAGES);
}
