// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
#include "fuzz_file.h"
#include "dwarf.h"

#include <elf.h>
#include <stdbool.h>

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

void make_file(struct input *in, uint8_t *file)
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
