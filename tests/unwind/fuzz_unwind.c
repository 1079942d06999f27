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
#include "code_search.h"
#include "fuzz_file.h"
#include "walk.h"

#define KERNEL_TEXT	0xffffffff81000000ULL
#define KERNEL_STACK	0xffffc90000100000ULL
#define USER_TEXT	0x0000555555554000ULL
#define USER_STACK	0x00007ffd12340000ULL
#define STACK_SIZE	1024
#define DEPTH		64

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
	struct pg_binary binary = { 0 }, kept = { 0 };
	struct pg_kernel kernel = { 0 };
	struct pg_run runs[4], kept_runs[4];
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
	make_binary(&in, &kept, file, file_size, kept_runs);
	if (pick(&in, 2))
		binary.kept = &kept;
	walk_samples(&in, &unwinder, USER_TEXT + text);
	pg_rule_cache_clear(&unwinder.cache);
	free_binary(&binary, runs);
	free_binary(&kept, kept_runs);
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
	size_t places[16], count = random64(&random_state) % 16, i;
	uint8_t before[16];

	for (i = 0; i < count; i++) {
		places[i] = random64(&random_state) % (random64(&random_state) & 1 ? 1024 : file_size);
		before[i] = file[places[i]];
		file[places[i]] = (uint8_t)random64(&random_state);
	}
	fuzz(data, size, file, file_size, random64(&random_state) % file_size);
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
		size_t size = 16384 + random64(&random_state) % 4096;
		uint8_t *bytes = malloc(size);

		for (i = 0; i < size; i++)
			bytes[i] = (uint8_t)(random64(&random_state) >> 24);
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
