// SPDX-License-Identifier: Apache-2.0
/*
 * Drives what is done in C for each record, sample and stack with bytes that
 * mean whatever they happen to: chains of records, callchains, rows, mappings,
 * lines of kallsyms, lists of pieces. Each piece stands in memory of exactly its
 * size. Built with AddressSanitizer and UndefinedBehaviorSanitizer, it shows that
 * nothing leaves its buffers; and what a plain loop finds as well is compared.
 *
 *     fuzz_native SEED ROUNDS
 */
#include "bytes.h"
#include "callchain.h"
#include "distinct.h"
#include "folded.h"
#include "fuzzing.h"
#include "kallsyms.h"
#include "mappings.h"
#include "pprof.h"
#include "records.h"
#include "script.h"
#include "timeline.h"

#define MOST	200

static uint64_t state;

static uint64_t any(void)
{
	return random64(&state);
}

static size_t below(size_t most)
{
	return most ? any() % most : 0;
}

static void *made(size_t size)
{
	void *memory = malloc(size ? size : 1);

	expect(memory != NULL, "no memory");
	return memory;
}

/* Of whole words: some are markers of callchains, some lengths of records, some anything. */
static uint64_t word(void)
{
	switch (below(6)) {
	case 0:
		return -(uint64_t)below(4200);
	case 1:
		return below(40) << 48 | below(100);
	case 2:
		return (uint64_t)(8 * below(5)) << 48 | (const uint64_t[]){ 9, 66, 71, 81 }[below(4)];
	case 3:
		return below(3);
	}
	return any() >> below(64);
}

static uint8_t *words(size_t count)
{
	uint8_t *data = made(8 * count);
	size_t i;

	for (i = 0; i < count; i++) {
		uint64_t one = word();

		memcpy(data + 8 * i, &one, 8);
	}
	return data;
}

static void fuzz_records(void)
{
	size_t size = 8 * below(MOST), end = size ? below(size + 1) : 0, start = below(end + 2), i;
	uint8_t *data = words(size / 8);
	struct pg_records records;
	uint64_t position = start;

	expect(pg_records_walk(&records, data, start, end), "no memory for records");
	for (i = 0; i < records.count; i++) {
		uint64_t record = pg_word(data + records.offsets[i]) >> 48;

		expect((uint64_t)records.offsets[i] >= position, "records overlap");
		expect(record >= 8 && (uint64_t)records.offsets[i] + record <= end, "a record leaves the data");
		position = (uint64_t)records.offsets[i] + record;
	}
	expect(records.position >= position, "the end lies before a record's");
	pg_records_free(&records);
	free(data);
}

static void fuzz_callchains(void)
{
	size_t count = below(10), size = below(MOST), room = 0, i, frames;
	uint8_t *data = words(size), *mode = made(count);
	int64_t *at = made(8 * count), *length = made(8 * count), *space = made(8 * count);
	uint64_t *ip = made(8 * count);
	struct pg_chain_frames out;

	for (i = 0; i < count; i++) {
		length[i] = (int64_t)below(size + 1);
		at[i] = (int64_t)below(8 * (size - (size_t)length[i]) + 1);
		ip[i] = word();
		mode[i] = (uint8_t)below(5);
		space[i] = (int64_t)word();
		room += length[i] ? (size_t)length[i] : 1;
	}
	out = (struct pg_chain_frames){ made(8 * (count + 1)), made(room), made(8 * room), made(8 * room), made(room) };
	frames = pg_callchain_frames(&(struct pg_callchains){ count, data, at, length, ip, mode, space }, &out);
	expect(frames <= room && out.start[count] == (int64_t)frames, "more frames than words");
	for (i = 0; i < count; i++)
		expect(out.start[i] < out.start[i + 1] && !out.returns[out.start[i]], "a sample without frames");
	free(out.start);
	free(out.mode);
	free(out.space);
	free(out.address);
	free(out.returns);
	free(data);
	free(mode);
	free(at);
	free(length);
	free(space);
	free(ip);
}

static int same_row(const struct pg_rows *rows, size_t a, size_t b)
{
	size_t i, width;

	for (i = 0; i < rows->column_count; i++) {
		width = rows->columns[i].width;
		if (memcmp(rows->columns[i].values + a * width, rows->columns[i].values + b * width, width))
			return 0;
	}
	return !rows->data || (rows->length[a] == rows->length[b] &&
			       !memcmp(rows->data + rows->at[a], rows->data + rows->at[b], (size_t)rows->length[a]));
}

static void fuzz_distinct(void)
{
	size_t count = below(below(8) ? 40 : 4000), size = below(40), i, k;
	struct pg_rows rows = { .count = count, .column_count = below(4) };
	int64_t *at = made(8 * count), *length = made(8 * count), *first = made(8 * count), kinds;
	int32_t *number = made(4 * count);
	uint8_t *data = made(size);

	for (i = 0; i < size; i++)
		data[i] = (uint8_t)below(2);
	for (i = 0; i < rows.column_count; i++) {
		struct pg_column *column = &rows.columns[i];
		uint8_t *values;

		column->width = 1u << below(4);
		column->values = values = made(count * column->width);
		for (k = 0; k < count * column->width; k++)
			values[k] = (uint8_t)(below(3) ? 0 : below(2));
	}
	if (below(2)) {
		rows.data = data;
		rows.at = at;
		rows.length = length;
		for (i = 0; i < count; i++) {
			length[i] = (int64_t)below(size + 1);
			at[i] = (int64_t)below(size - (size_t)length[i] + 1);
		}
	}
	kinds = pg_distinct(&rows, number, first);
	expect(kinds >= 0 && (size_t)kinds <= count, "kinds");
	for (i = 0; i < count; i++) {
		expect(number[i] >= 0 && number[i] < kinds, "a number that no kind has");
		expect(same_row(&rows, i, (size_t)first[number[i]]), "a row is not of its kind");
	}
	for (i = 0; i < (size_t)kinds; i++) {
		expect(number[first[i]] == (int32_t)i && (!i || first[i] > first[i - 1]), "the first of a kind");
		expect(i < 1 || !same_row(&rows, (size_t)first[i], (size_t)first[below(i)]), "two kinds are equal");
	}
	for (i = 0; i < rows.column_count; i++)
		free((void *)rows.columns[i].values);
	free(at);
	free(length);
	free(first);
	free(number);
	free(data);
}

static void fuzz_kallsyms(void)
{
	static const char bytes[] = "0123456789abcdefABCDEFtT \t\n[]x";
	size_t size = below(400), width = below(2) ? 8 : 16, i, lines, good;
	char *text = made(size);
	struct pg_kallsyms out;

	for (i = 0; i < size; i++)
		text[i] = below(20) ? bytes[below(sizeof(bytes) - 1)] : (char)any();
	for (i = 0; i + width + 8 < size && below(10); i += width + 8) {
		memset(text + i, "0af"[below(3)], width);
		memcpy(text + i + width, " T nam\tm", 8);
		text[i + width + 4 + below(4)] = '\n';
	}
	lines = pg_kallsyms_lines(text, size);
	out = (struct pg_kallsyms){ made(8 * lines), made(lines), made(8 * lines), made(8 * lines), made(8 * lines) };
	good = pg_kallsyms_read(text, size, width, &out);
	expect(good <= lines, "more lines than there are");
	for (i = 0; i < good; i++) {
		expect(out.name[i] < out.line_end[i] && out.name[i] <= out.name_end[i] && out.name_end[i] <= out.line_end[i],
		       "a name that ends before it begins");
		expect((size_t)out.line_end[i] < size && text[out.line_end[i]] == '\n', "a line without an end");
	}
	free(out.address);
	free(out.type);
	free(out.name);
	free(out.name_end);
	free(out.line_end);
	free(text);
}

static int ascending(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void fuzz_mappings(void)
{
	size_t mappings = below(20), addresses = below(40), i, k;
	uint64_t *start = made(8 * mappings), *end = made(8 * mappings), *address = made(8 * addresses);
	int64_t *time = made(8 * mappings), *name = made(8 * mappings), *when = made(8 * addresses), *found = made(8 * addresses);

	for (i = 0; i < mappings; i++) {
		start[i] = below(4) ? below(100) : any();
		end[i] = below(4) ? start[i] + below(50) : any();
		time[i] = (int64_t)below(10);
		name[i] = (int64_t)i;
	}
	for (i = 0; i < addresses; i++) {
		/* Times and keys as well, below. */
		address[i] = below(4) ? below(150) : any() >> 1;
		when[i] = (int64_t)below(10);
		found[i] = -1;
	}
	qsort(address, addresses, sizeof(*address), ascending);
	pg_find_mappings(&(struct pg_mappings){ start, end, time, mappings },
			 &(struct pg_addresses){ address, when, addresses }, name, found);
	for (i = 0; i < addresses; i++) {
		int64_t wanted = -1;

		for (k = 0; k < mappings; k++) {
			if (start[k] <= address[i] && address[i] < end[k] && time[k] <= when[i])
				wanted = (int64_t)k;
		}
		expect(found[i] == wanted, "another mapping");
	}
	pg_timeline_latest(&(struct pg_timeline){ (int64_t *)address, (int64_t *)address, addresses }, when, when, addresses,
			   found);
	for (i = 0; i < addresses; i++)
		expect(found[i] < (int64_t)addresses && (found[i] < 0 || (int64_t)address[found[i]] == when[i]), "another key");
	free(start);
	free(end);
	free(address);
	free(time);
	free(name);
	free(when);
	free(found);
}

static void make_pieces(struct pg_pieces *pieces)
{
	size_t size = 6 + below(60), i;
	char *text = made(size);
	int64_t *end;

	pieces->count = 1 + below(6);
	pieces->end = end = made(8 * pieces->count);
	pieces->text = text;
	for (i = 0; i < size; i++)
		text[i] = "ab :<"[below(5)];
	/* None is empty. */
	for (i = 0; i < pieces->count; i++) {
		size_t begin = i ? (size_t)end[i - 1] : 0;

		end[i] = (int64_t)(begin + 1 + below(size - begin - (pieces->count - 1 - i)));
	}
}

static void make_lists(struct pg_lists *lists, size_t most)
{
	size_t items = below(30), i;
	int64_t *start;
	int32_t *item;

	lists->count = 1 + below(6);
	lists->start = start = made(8 * (lists->count + 1));
	lists->items = item = made(4 * items);
	start[0] = (int64_t)below(items + 1);
	for (i = 0; i < lists->count; i++)
		start[i + 1] = start[i] + (int64_t)below(items - (size_t)start[i] + 1);
	for (i = 0; i < items; i++)
		item[i] = (int32_t)below(most);
}

static int32_t *numbers(size_t count, size_t most, int least)
{
	int32_t *made_numbers = made(4 * count);
	size_t i;

	for (i = 0; i < count; i++)
		made_numbers[i] = (int32_t)below(most + (size_t)-least) + least;
	return made_numbers;
}

static int64_t *values(size_t count)
{
	int64_t *made_values = made(8 * count);
	size_t i;

	for (i = 0; i < count; i++)
		made_values[i] = (int64_t)(any() >> below(64));
	return made_values;
}

/* Each line is larger than the one before, as bytes. */
static void check_lines(const char *text, const char *end)
{
	const char *before = NULL;
	size_t before_size = 0;

	while (text < end) {
		const char *newline = memchr(text, '\n', (size_t)(end - text)), *space;
		size_t size;
		int order;

		expect(newline != NULL, "a line without an end");
		for (space = newline; *space != ' '; space--)
			expect(space > text, "a line without a number");
		size = (size_t)(space - text);
		order = before ? memcmp(before, text, before_size < size ? before_size : size) : -1;
		expect(order < 0 || (!order && before_size < size), "lines are not in order");
		before = text;
		before_size = size;
		text = newline + 1;
	}
}

static void fuzz_writers(void)
{
	struct pg_pieces pieces;
	struct pg_lists lists;
	size_t count = below(30), room, size;
	int32_t *stack, *root, *piece;
	int64_t *first, *second;
	char *out, *end;

	make_pieces(&pieces);
	make_lists(&lists, pieces.count);
	stack = numbers(count, lists.count, 0);
	root = numbers(count, pieces.count, -1);
	piece = numbers(count, pieces.count, 0);
	first = values(3 * count);
	second = values(count);

	struct pg_paths paths = { stack, root, first, count, lists, pieces };

	room = pg_folded_room(&paths);
	out = made(room);
	end = pg_folded_write(&paths, out);
	expect(end && (size_t)(end - out) <= room, "folded: more than there was room for");
	check_lines(out, end);
	free(out);

	struct pg_script script = { count, piece, stack, first, second, piece, stack, pieces, pieces, pieces, lists };

	out = made(pg_script_room(&script));
	expect(pg_script_write(&script, out) <= pg_script_room(&script), "script: more than there was room for");
	free(out);

	struct pg_samples samples = { count, stack, piece, first, 3, lists, pieces };

	size = pg_pprof_samples(&samples, NULL);
	out = made(size);
	expect(pg_pprof_samples(&samples, (uint8_t *)out) == size, "samples: another size");
	free(out);

	struct pg_locations locations = { count, 1 + below(1000), (uint64_t *)first, second, first };

	size = pg_pprof_locations(&locations, NULL);
	out = made(size);
	expect(pg_pprof_locations(&locations, (uint8_t *)out) == size, "locations: another size");
	free(out);
	free((void *)pieces.text);
	free((void *)pieces.end);
	free((void *)lists.start);
	free((void *)lists.items);
	free(stack);
	free(root);
	free(piece);
	free(first);
	free(second);
}

int main(int argc, char **argv)
{
	long rounds = argc > 2 ? atol(argv[2]) : 1000;

	state = (argc > 1 ? strtoull(argv[1], NULL, 10) : 0) | 1;
	while (rounds--) {
		fuzz_records();
		fuzz_callchains();
		fuzz_distinct();
		fuzz_kallsyms();
		fuzz_mappings();
		fuzz_writers();
	}
	return 0;
}
