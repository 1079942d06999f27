// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Drives the unwinder with tables and stacks that mean whatever they happen to:
 * ORC entries, an ELF file with call frame information that is half sound, a
 * stack full of addresses that fit one another. Each piece stands in memory of
 * exactly its size. Built with AddressSanitizer and UndefinedBehaviorSanitizer,
 * it shows that nothing is read outside of it and that every walk ends. With
 * -DPG_LIBFUZZER it is a target for libFuzzer, else a program:
 *
 *     fuzz_unwind SEED ROUNDS [FILE]	FILE: a real ELF file, some bytes of which change
 */
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>

#include "code_search.h"
#include "dwarf.h"
#include "walk.h"

#define KERNEL_TEXT	0xffffffff81000000ULL
#define KERNEL_STACK	0xffffc90000100000ULL
#define USER_TEXT	0x0000555555554000ULL
#define USER_STACK	0x00007ffd12340000ULL
#define STACK_SIZE	1024
#define DEPTH		64
#define FILE_SIZE	8192
#define TEXT		4096	/* where code begins in the file, and its vaddr */
#define CODE		1024	/* bytes of it that are made of whole instructions */
#define EH_FRAME	1024
#define EH_FRAME_HDR	512

struct input {
	const uint8_t *bytes;
	size_t size;
};

static void expect(int good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "fuzz_unwind: %s\n", what);
	abort();
}

static void take(struct input *in, void *to, size_t size)
{
	size_t got = size < in->size ? size : in->size;

	memset(to, 0, size);
	memcpy(to, in->bytes, got);
	in->bytes += got;
	in->size -= got;
}

static uint64_t take64(struct input *in)
{
	uint64_t value;

	take(in, &value, sizeof(value));
	return value;
}

static uint32_t pick(struct input *in, uint32_t below)
{
	uint16_t value;

	take(in, &value, sizeof(value));
	return value % below;
}

static void *copy_of(const void *bytes, size_t size)
{
	void *copy = malloc(size ? size : 1);

	if (size)
		memcpy(copy, bytes, size);
	return copy;
}

/* Addresses of text, of the stacks, and some that overflow. */
static uint64_t take_word(struct input *in)
{
	switch (pick(in, 12)) {
	case 0:
		return take64(in);
	case 1:
		return ~0ULL - pick(in, 64);
	case 2:
		return pick(in, 256);
	case 3:
	case 4:
		return KERNEL_TEXT + pick(in, 512);
	case 5:
		return USER_TEXT + TEXT + pick(in, 4096);
	case 6:
		return USER_TEXT + TEXT + pick(in, CODE);
	case 7:
	case 8:
		return KERNEL_STACK + 8 * pick(in, STACK_SIZE / 8 + 4);
	case 9:
	case 10:
		return USER_STACK + 8 * pick(in, STACK_SIZE / 8 + 4);
	default:
		/* CS and SS of saved registers, flags. */
		return (const uint64_t[]){ 0x33, 0x2b, 0x202, 0x23, 0x10, 0x18 }[pick(in, 6)];
	}
}

static void make_kernel(struct input *in, struct pg_kernel *kernel)
{
	struct pg_orc_entry entries[64];
	uint8_t code[512];
	uint32_t i;

	kernel->orc.layout = PG_ORC_V1 + pick(in, PG_ORC_LAST);
	kernel->orc.count = pick(in, 64);
	for (i = 0; i < kernel->orc.count; i++) {
		int16_t offsets[2] = { 8 * (int16_t)pick(in, 24) - 16, -8 * (int16_t)pick(in, 8) };
		uint16_t flags = (uint16_t)take64(in);

		if (pick(in, 4))	/* mostly calls */
			flags = kernel->orc.layout == PG_ORC_V6 ? 0x283 : kernel->orc.layout == PG_ORC_V5 ? 0x215 : 0x15;
		memcpy(entries[i].bytes, offsets, 4);
		memcpy(entries[i].bytes + 4, &flags, 2);
		entries[i].address = KERNEL_TEXT + pick(in, 512);
	}
	kernel->orc.entries = copy_of(entries, kernel->orc.count * sizeof(entries[0]));
	pg_orc_sort(&kernel->orc);
	for (i = 0; i < sizeof(code); i++)
		code[i] = (const uint8_t[]){ 0xe8, 0xff, 0xd0, 0x14, 0x25, 0x90 }[pick(in, 6)];
	kernel->text_count = 1;
	kernel->texts = malloc(sizeof(*kernel->texts));
	kernel->texts->address = KERNEL_TEXT;
	kernel->texts->size = 1 + pick(in, sizeof(code));
	kernel->texts->code = copy_of(code, kernel->texts->size);
}

static void free_kernel(struct pg_kernel *kernel)
{
	free((void *)kernel->texts->code);
	free(kernel->texts);
	free(kernel->orc.entries);
}

struct writer {
	uint8_t *at;
	uint8_t *end;
};

static void put(struct writer *w, const void *bytes, size_t size)
{
	if ((size_t)(w->end - w->at) < size)
		return;
	memcpy(w->at, bytes, size);
	w->at += size;
}

static void put8(struct writer *w, uint8_t byte)
{
	put(w, &byte, 1);
}

static void put32(struct writer *w, uint32_t word)
{
	put(w, &word, 4);
}

/* Instructions whose operands are mostly small, as sound ones' are. */
static void put_program(struct input *in, struct writer *w)
{
	static const uint8_t expression[] = {
		DW_OP_breg0 + 7, 8, DW_OP_breg0 + 16, 0, DW_OP_lit0 + 15, DW_OP_and, DW_OP_deref,
		DW_OP_plus, DW_OP_dup, DW_OP_swap, DW_OP_over, DW_OP_rot, DW_OP_pick, 1, DW_OP_bra,
		0xfd, 0xff, DW_OP_skip, 2, 0, DW_OP_div, DW_OP_shl, DW_OP_lit0 + 3, DW_OP_addr,
	};
	uint32_t count = pick(in, 12), i, j;

	for (i = 0; i < count; i++) {
		uint8_t op = (uint8_t)pick(in, 0x30);

		if (!pick(in, 3))
			op = (uint8_t)(0x40 * (1 + pick(in, 3)) + pick(in, 18));
		put8(w, op);
		if (op == DW_CFA_def_cfa_expression || op == DW_CFA_expression ||
		    op == DW_CFA_val_expression) {
			uint8_t size = (uint8_t)pick(in, 16);

			if (op != DW_CFA_def_cfa_expression)
				put8(w, (uint8_t)pick(in, 17));
			put8(w, size);
			for (j = 0; j < size; j++)
				put8(w, pick(in, 4) ? expression[pick(in, sizeof(expression))] :
							(uint8_t)pick(in, 256));
			continue;
		}
		put8(w, (uint8_t)pick(in, pick(in, 8) ? 18 : 256));
		if (op == DW_CFA_def_cfa)
			put8(w, (uint8_t)(8 * pick(in, 8)));
	}
}

/* The length goes in when the entry is whole. */
static uint8_t *begin_entry(struct writer *w)
{
	uint8_t *at = w->at;

	put32(w, 0);
	return at;
}

static void end_entry(struct input *in, struct writer *w, uint8_t *at)
{
	uint32_t length = (uint32_t)(w->at - at) - 4;

	if (!pick(in, 64))
		length = (uint32_t)take64(in);
	if (w->end - at >= 4)
		memcpy(at, &length, 4);
}

static void put_cie(struct input *in, struct writer *w)
{
	static const char *letters[] = { "zR", "zRS", "zPLR", "", "zX", "eh" };
	const char *augmentation = letters[pick(in, 16) < 10 ? 0 : pick(in, 6)];
	uint8_t *at = begin_entry(w);

	put32(w, 0);
	put8(w, (uint8_t)(pick(in, 16) ? 1 : pick(in, 6)));
	put(w, augmentation, strlen(augmentation) + 1);
	put8(w, 1);
	put8(w, 0x78);	/* -8 */
	put8(w, (uint8_t)(pick(in, 16) ? 16 : pick(in, 32)));
	put8(w, (uint8_t)(pick(in, 16) ? 1 : pick(in, 256)));
	put8(w, (uint8_t)(pick(in, 16) ? 0x1b : pick(in, 256)));
	put(w, "\x0c\x07\x08\x90\x01", 5);
	put_program(in, w);
	end_entry(in, w, at);
}

static void put_fde(struct input *in, struct writer *w, const uint8_t *file, uint32_t start)
{
	uint8_t *at = begin_entry(w);
	uint32_t vaddr = (uint32_t)(w->at - file);

	put32(w, vaddr - EH_FRAME);
	put32(w, start - (vaddr + 4));
	put32(w, 1 + pick(in, 256));
	put8(w, 0);
	put_program(in, w);
	end_entry(in, w, at);
}

/* Instructions that move the stack or go elsewhere, whose operands are mostly small. */
static void put_code(struct input *in, struct writer *w)
{
	static const struct {
		uint8_t bytes[20], size, operands;
	} menu[] = {
		{ { 0x50 }, 1, 0 }, { { 0x53 }, 1, 0 }, { { 0x5b }, 1, 0 }, { { 0x5d }, 1, 0 },
		{ { 0x41, 0x5c }, 2, 0 }, { { 0xc9 }, 1, 0 }, { { 0xc3 }, 1, 0 }, { { 0xc2 }, 1, 2 },
		{ { 0x48, 0x83, 0xec }, 3, 1 }, { { 0x48, 0x83, 0xc4 }, 3, 1 },
		{ { 0x48, 0x81, 0xec }, 3, 4 }, { { 0x48, 0x89, 0xe5 }, 3, 0 },
		{ { 0x48, 0x8d, 0x65 }, 3, 1 }, { { 0x48, 0x8b, 0x5c, 0x24 }, 4, 1 },
		{ { 0x48, 0x89, 0x5c, 0x24 }, 4, 1 }, { { 0x48, 0x8b, 0x24, 0x24 }, 4, 0 },
		{ { 0x49, 0x8d, 0x62 }, 3, 1 }, { { 0xe8 }, 1, 4 }, { { 0xe9 }, 1, 4 }, { { 0xeb }, 1, 1 },
		{ { 0x74 }, 1, 1 }, { { 0x0f, 0x85 }, 2, 4 }, { { 0xff, 0xe0 }, 2, 0 }, { { 0xff, 0xd0 }, 2, 0 },
		{ { 0xff, 0x25 }, 2, 4 }, { { 0xff, 0x24, 0xc5 }, 3, 4 }, { { 0x48, 0x8d, 0x15 }, 3, 4 },
		{ { 0xe8 }, 1, 4 }, { { 0xe8 }, 1, 4 }, { { 0xe8, 0, 0, 0, 0 }, 5, 0 }, { { 0xe8, 0x80, 0xff, 0xff, 0xff }, 5, 0 },
		{ { 0xb8 }, 1, 4 }, { { 0x0f, 0x05 }, 2, 0 }, { { 0xf4 }, 1, 0 }, { { 0x0f, 0x0b }, 2, 0 },
		/* Switches, of both kinds. */
		{ { 0x83, 0xff, 0x07, 0x77, 0x20, 0x48, 0x8d, 0x15, 0x10, 0, 0, 0, 0x48, 0x63, 0x04, 0x82, 0x48, 0x01, 0xd0, 0xff }, 20, 1 },
		{ { 0x83, 0xff, 0x07, 0x77, 0x20, 0xff, 0x24, 0xc5, 0, 0x10, 0, 0 }, 12, 0 },
		/* The head of a PLT, the end of a handler, of a thread. */
		{ { 0xff, 0x35, 0x10, 0, 0, 0, 0xff, 0x25, 0x10, 0, 0, 0 }, 12, 0 },
		{ { 0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05 }, 9, 0 },
		{ { 0xff, 0xd2, 0x48, 0x89, 0xc7, 0xb8, 0x3c, 0, 0, 0, 0x0f, 0x05 }, 12, 0 },
	};
	uint32_t i;
	bool wide;

	while (w->at < w->end) {
		uint32_t which = pick(in, sizeof(menu) / sizeof(menu[0]));

		/* When the input is at its end all would be the first one. */
		if (!in->size)
			which = (uint32_t)(w->end - w->at) % (sizeof(menu) / sizeof(menu[0]));
		put(w, menu[which].bytes, menu[which].size);
		wide = !pick(in, 8);
		for (i = 0; i < menu[which].operands; i++)
			put8(w, i == 0 ? (uint8_t)pick(in, 256) : i == 1 || wide ? (uint8_t)(64 * pick(in, 4) + 63) : 0);
		if (w->end - w->at < 16)
			put8(w, 0x90);
	}
}

/* An ELF file whose offsets are its addresses. */
static void make_file(struct input *in, uint8_t *file)
{
	Elf64_Ehdr elf = {
		.e_ident = { ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64 },
		.e_machine = EM_X86_64, .e_phoff = sizeof(elf), .e_phnum = 2,
		.e_phentsize = sizeof(Elf64_Phdr), .e_entry = TEXT + pick(in, 4096),
	};
	Elf64_Phdr headers[2] = {
		{ .p_type = PT_LOAD, .p_flags = PF_X, .p_filesz = FILE_SIZE },
		{ .p_type = pick(in, 4) ? PT_GNU_EH_FRAME : PT_INTERP, .p_offset = EH_FRAME_HDR,
		  .p_vaddr = EH_FRAME_HDR, .p_filesz = 8 * 17 },
	};
	struct writer hdr = { file + EH_FRAME_HDR, file + EH_FRAME };
	struct writer frames = { file + EH_FRAME, file + TEXT - 4 };
	struct writer code = { file + TEXT, file + TEXT + CODE };
	uint32_t count = 1 + pick(in, 16), i, start = TEXT;

	memset(file, 0, FILE_SIZE);
	memcpy(file, &elf, sizeof(elf));
	memcpy(file + sizeof(elf), headers, sizeof(headers));
	put(&hdr, "\x01\x1b\x03", 3);
	put8(&hdr, (uint8_t)(pick(in, 16) ? 0x3b : pick(in, 256)));
	put32(&hdr, EH_FRAME - EH_FRAME_HDR - 4);
	put32(&hdr, pick(in, 32) ? count : (uint32_t)take64(in));
	put_cie(in, &frames);
	for (i = 0; i < count; i++) {
		put32(&hdr, start - EH_FRAME_HDR);
		put32(&hdr, (uint32_t)(frames.at - file) - EH_FRAME_HDR);
		put_fde(in, &frames, file, start);
		start += pick(in, 256);
	}
	for (i = TEXT; i < FILE_SIZE; i++)
		file[i] = (uint8_t)((const uint8_t[]){ 0xe8, 0xff, 0xd0, 0x90 }[i * 7 / 5 % 4]);
	if (pick(in, 4))
		put_code(in, &code);
	if (pick(in, 2) && elf.e_entry < FILE_SIZE - 8)
		memcpy(file + elf.e_entry, pick(in, 2) ? "\x31\xed\xff\xd0\xf4" : "\x48\x89\xe7\xff\xd0", 5);
	for (i = pick(in, 4); i; i--)
		file[pick(in, TEXT)] = (uint8_t)pick(in, 256);
}

/* Cuts the file into runs, leaving some out. */
static void make_binary(struct input *in, struct pg_binary *binary, const uint8_t *file,
			size_t size, struct pg_run runs[4])
{
	size_t at = 0, count = 0;

	while (at < size && count < 4) {
		size_t part = pick(in, 8) ? size - at : 1 + take64(in) % (size - at);

		runs[count++] = (struct pg_run){ at, copy_of(file + at, part), part };
		at += part + 1 + pick(in, 64);
	}
	binary->file = (struct pg_file){ size, runs, count };
	if (!pick(in, 4))
		binary->sections[pick(in, 2)] = (struct pg_section){ EH_FRAME, take64(in) % TEXT };
	pg_binary_init(binary);
}

static void free_binary(struct pg_binary *binary, struct pg_run *runs)
{
	size_t i;

	for (i = 0; i < binary->file.run_count; i++)
		free((void *)runs[i].data);
	pg_binary_deinit(binary);
}

static void make_copies(struct input *in, struct pg_copy copies[2])
{
	static const uint64_t addresses[2] = { KERNEL_STACK, USER_STACK };
	uint64_t words[STACK_SIZE / 8];
	uint32_t i, j;

	for (i = 0; i < 2; i++) {
		for (j = 0; j < STACK_SIZE / 8; j++)
			words[j] = take_word(in);
		copies[i].size = pick(in, 4) ? STACK_SIZE : pick(in, STACK_SIZE);
		copies[i].address = addresses[i];
		if (!pick(in, 2))	/* so that pt_regs are sought at its end */
			copies[i].address += 0x4000 - copies[i].size;
		copies[i].data = copy_of(words, copies[i].size);
	}
}

static void check(struct pg_ends ends, const struct pg_frames *frames)
{
	expect(frames->count <= frames->max_depth, "more frames than there is room for");
	expect(ends.kernel <= PG_END_COMPAT && ends.user <= PG_END_COMPAT, "no such end");
	expect(frames->count || frames->max_depth == 0, "not even the leaf");
}

static void walk_samples(struct input *in, struct pg_unwinder *unwinder, uint64_t user_text)
{
	uint64_t regs[PG_REGISTERS], *address;
	struct pg_copy copies[2];
	uint32_t i, round;
	uint8_t *how;

	for (round = 0; round < 4; round++) {
		uint32_t depth = 1 + pick(in, DEPTH);
		struct pg_sample sample = {
			.regs = regs, .mode = (uint8_t)pick(in, 2),
			.kernel = pick(in, 8) ? 0 : -1, .space = pick(in, 8) ? 0 : -1,
			.copies = copies, .copy_count = pick(in, 8) ? 2 : pick(in, 2),
		};
		struct pg_frames frames = { .max_depth = depth };

		make_copies(in, copies);
		for (i = 0; i < PG_REGISTERS; i++)
			regs[i] = take_word(in);
		if (pick(in, 8)) {
			regs[PG_RIP] = sample.mode ? user_text + take64(in) % (pick(in, 2) ? 4096 : CODE) :
						     KERNEL_TEXT + pick(in, 512);
			regs[PG_RSP] = copies[sample.mode].address + 8 * pick(in, 32);
		}
		frames.address = address = malloc(depth * sizeof(*address));
		frames.how = how = malloc(depth);
		check(pg_walk(unwinder, &sample, &frames), &frames);
		frames.count = 0;
		check(pg_scan(unwinder, &sample, &frames), &frames);
		free(address);
		free(how);
		free((void *)copies[0].data);
		free((void *)copies[1].data);
	}
}

/* Instructions, in memory that ends where it may. */
static void decode(struct input *in)
{
	uint32_t i;

	for (i = 0; i < 64; i++) {
		size_t size = pick(in, PG_MAX_INSN + 2);
		uint8_t bytes[PG_MAX_INSN + 2], *code;
		struct pg_insn insn;

		take(in, bytes, size);
		/* Escapes and prefixes are seldom else. */
		if (size && pick(in, 2))
			bytes[0] = (const uint8_t[]){ 0x0f, 0x62, 0xc4, 0xc5, 0x66, 0x48 }[pick(in, 6)];
		code = copy_of(bytes, size);
		if (pg_decode(code, size, &insn))
			expect(insn.length && insn.length <= size, "longer than the code");
		free(code);
	}
}

static void fuzz(const uint8_t *data, size_t size, const uint8_t *file, size_t file_size,
		 uint64_t text)
{
	struct input in = { data, size };
	struct pg_mapping mappings[2] = {
		{ USER_TEXT, USER_TEXT + file_size, 0, 0 },
		{ USER_STACK, USER_STACK + STACK_SIZE, 0, -1 },
	};
	struct pg_space space = { mappings, 2 };
	struct pg_binary binary = { 0 };
	struct pg_kernel kernel = { 0 };
	struct pg_run runs[4];
	struct pg_kernel *kernels[1] = { &kernel };
	struct pg_binary *binaries[1] = { &binary };
	struct pg_space *spaces[1] = { &space };
	static struct pg_code_search search;
	static struct pg_unwinder unwinder;

	if (!unwinder.cache.rules)
		expect(pg_rule_cache_init(&unwinder.cache), "no memory for the cache of rules");
	unwinder.kernels = kernels;
	unwinder.binaries = binaries;
	unwinder.spaces = spaces;
	unwinder.kernel_count = unwinder.binary_count = unwinder.space_count = 1;
	unwinder.search = &search;

	decode(&in);
	make_kernel(&in, &kernel);
	make_binary(&in, &binary, file, file_size, runs);
	walk_samples(&in, &unwinder, USER_TEXT + text);
	pg_rule_cache_clear(&unwinder.cache);
	free_binary(&binary, runs);
	free_kernel(&kernel);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	uint8_t file[FILE_SIZE];

	make_file(&in, file);
	fuzz(in.bytes, in.size, file, sizeof(file), TEXT);
	return 0;
}

#ifndef PG_LIBFUZZER
static uint64_t random_state;

/* xorshift64: the same seed gives the same run anywhere. */
static uint64_t random64(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static uint8_t *read_whole(const char *path, size_t *size)
{
	FILE *file = fopen(path, "rb");
	uint8_t *bytes;

	expect(file && !fseek(file, 0, SEEK_END), "the file cannot be read");
	*size = (size_t)ftell(file);
	rewind(file);
	bytes = malloc(*size);
	expect(fread(bytes, 1, *size, file) == *size, "the file cannot be read");
	fclose(file);
	return bytes;
}

/* Changes some bytes of the headers or anywhere, and changes them back. */
static void fuzz_real_file(const uint8_t *data, size_t size, uint8_t *file, size_t file_size)
{
	size_t places[16], count = random64() % 16, i;
	uint8_t before[16];

	for (i = 0; i < count; i++) {
		places[i] = random64() % (random64() & 1 ? 1024 : file_size);
		before[i] = file[places[i]];
		file[places[i]] = (uint8_t)random64();
	}
	fuzz(data, size, file, file_size, random64() % file_size);
	while (i--)
		file[places[i]] = before[i];
}

int main(int argc, char **argv)
{
	size_t file_size = 0, i;
	uint8_t *file = NULL;
	long rounds;

	expect(argc == 3 || argc == 4, "usage: fuzz_unwind SEED ROUNDS [FILE]");
	random_state = strtoull(argv[1], NULL, 0) | 1;
	if (argc == 4)
		file = read_whole(argv[3], &file_size);
	for (rounds = strtol(argv[2], NULL, 0); rounds; rounds--) {
		size_t size = 16384 + random64() % 4096;
		uint8_t *bytes = malloc(size);

		for (i = 0; i < size; i++)
			bytes[i] = (uint8_t)(random64() >> 24);
		if (file)
			fuzz_real_file(bytes, size, file, file_size);
		else
			LLVMFuzzerTestOneInput(bytes, size);
		free(bytes);
	}
	free(file);
	return 0;
}
#endif
