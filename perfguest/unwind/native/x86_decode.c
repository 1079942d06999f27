// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Intel SDM, volume 2, chapter 2 (formats) and appendix A (opcode maps); AMD64
 * APM, volume 3, for XOP and 3DNow!. What an instruction computes is not looked
 * at: only which general registers are not afterwards what they were before.
 * Where that hangs on more than the opcode tells, rather too many are named.
 */
#include "x86_decode.h"
#include "bytes.h"
#include "rule.h"
#include "x86_opcodes.h"

enum { REX_B = 1, REX_X = 2, REX_R = 4, REX_W = 8, REX = 0x40 };

struct decoder {
	struct pg_bytes bytes;
	struct pg_insn *insn;
	uint8_t rex;
	uint8_t repeat;		/* the last of F2 and F3 */
	bool operand_prefix;
	bool address_prefix;
	bool evex;
	uint8_t third;		/* VEX: the register besides reg and rm */
	uint16_t flags;
};

static uint8_t extended(const struct decoder *d, uint8_t low, uint8_t rex_bit)
{
	return (uint8_t)(low | (d->rex & rex_bit ? 8 : 0));
}

/* Gives the opcode behind legacy prefixes and REX, which counts only right before it. */
static uint8_t take_prefixes(struct decoder *d)
{
	for (;;) {
		uint8_t byte = pg_take_u8(&d->bytes);

		switch (byte) {
		case 0x26:
		case 0x2e:
		case 0x36:
		case 0x3e:
		case 0xf0:
			break;
		case 0x64:
		case 0x65:
			d->insn->segment = true;
			break;
		case 0x66:
			d->operand_prefix = true;
			break;
		case 0x67:
			d->address_prefix = true;
			break;
		case 0xf2:
		case 0xf3:
			d->repeat = byte;
			break;
		case 0x40 ... 0x4f:
			d->rex = byte;
			continue;
		default:
			return byte;
		}
		if (d->bytes.broken)
			return 0;
		d->rex = 0;
	}
}

/* The prefixes that VEX and EVEX carry within: pp. */
static void take_implied(struct decoder *d, uint8_t byte)
{
	static const uint8_t repeat[4] = { 0, 0, 0xf3, 0xf2 };

	d->repeat = repeat[byte & 3];
	d->operand_prefix = (byte & 3) == 1;
	d->third = ~byte >> 3 & 15;
}

static void take_vex(struct decoder *d, uint8_t first)
{
	uint8_t byte = pg_take_u8(&d->bytes);

	d->insn->vector = true;
	d->insn->map = PG_MAP_0F;
	d->rex = (uint8_t)(~byte >> 5 & (first == 0xc5 ? REX_R : REX_R | REX_X | REX_B));
	if (first != 0xc5) {
		d->insn->map = byte & (first == 0x62 ? 7 : 31);
		byte = pg_take_u8(&d->bytes);
		d->rex |= byte & 0x80 ? REX_W : 0;
	}
	take_implied(d, byte);
	d->evex = first == 0x62;
	if (d->evex)
		pg_take_u8(&d->bytes);
	d->insn->opcode = pg_take_u8(&d->bytes);
}

static bool is_xop(const struct decoder *d)
{
	return pg_bytes_left(&d->bytes) && (d->bytes.at[0] & 31) >= 8;
}

static void take_opcode(struct decoder *d)
{
	struct pg_insn *insn = d->insn;

	insn->opcode = take_prefixes(d);
	if (insn->opcode == 0xc4 || insn->opcode == 0xc5 || insn->opcode == 0x62 ||
	    (insn->opcode == 0x8f && is_xop(d))) {
		take_vex(d, insn->opcode);
	} else if (insn->opcode == 0x0f) {
		insn->map = PG_MAP_0F;
		insn->opcode = pg_take_u8(&d->bytes);
		if (insn->opcode == 0x38 || insn->opcode == 0x3a) {
			insn->map = insn->opcode == 0x38 ? PG_MAP_0F38 : PG_MAP_0F3A;
			insn->opcode = pg_take_u8(&d->bytes);
		}
	}
}

/* Vector instructions that give a general register. */
static uint16_t vector_writes(const struct decoder *d)
{
	uint8_t opcode = d->insn->opcode;

	if (d->insn->map == PG_MAP_0F) {
		if (opcode == 0x7e)
			return d->repeat ? 0 : W_RM;
		if (opcode == 0x50 || opcode == 0xd7 || opcode == 0xc5 || opcode == 0x93)
			return W_REG;
		if (d->repeat && (opcode == 0x2c || opcode == 0x2d || opcode == 0x78 || opcode == 0x79))
			return W_REG;
	} else if (d->insn->map == PG_MAP_0F38) {
		return opcode >= 0xf0 && opcode <= 0xf7 ? W_REG : 0;
	} else if (d->insn->map == PG_MAP_0F3A) {
		if (opcode >= 0x14 && opcode <= 0x17)
			return W_RM;
		if (opcode == 0x61 || opcode == 0x63)
			return W_STRING;
		return opcode == 0xf0 ? W_REG : 0;
	}
	return 0;
}

static uint16_t vector_flags(const struct decoder *d)
{
	uint8_t opcode = d->insn->opcode;

	switch (d->insn->map) {
	case PG_MAP_0F:
		if (opcode == 0x77 && !d->evex)
			return 0;
		return (uint16_t)(MODRM | (two_byte[opcode] & IMM8) | vector_writes(d));
	case PG_MAP_0F38:
	case 5:
	case 6:
	case 9:
		return MODRM | vector_writes(d);
	case PG_MAP_0F3A:
	case 8:
		return MODRM | IMM8 | vector_writes(d);
	case 10:
		return MODRM | IMMZ;
	default:
		return BAD;
	}
}

static uint16_t find_flags(const struct decoder *d)
{
	const struct pg_insn *insn = d->insn;

	if (insn->vector)
		return vector_flags(d);
	switch (insn->map) {
	case PG_MAP_ONE:
		/* NOP, PAUSE. */
		return insn->opcode == 0x90 && !(d->rex & REX_B) ? 0 : one_byte[insn->opcode];
	case PG_MAP_0F:
		/* MOVQ between vectors; conversions to MMX. */
		if ((insn->opcode == 0x7e && d->repeat) ||
		    ((insn->opcode == 0x2c || insn->opcode == 0x2d) && !d->repeat))
			return MODRM;
		/* EXTRQ, INSERTQ. */
		if (insn->opcode == 0x78 && (d->operand_prefix || d->repeat))
			return MODRM | IMM16;
		return two_byte[insn->opcode];
	case PG_MAP_0F38:
		return MODRM | vector_writes(d);
	default:
		return MODRM | IMM8 | vector_writes(d);
	}
}

static int32_t take_displacement(struct decoder *d, size_t size)
{
	if (size == 1)
		return (int8_t)pg_take_u8(&d->bytes);
	return size ? (int32_t)pg_take_u32(&d->bytes) : 0;
}

static void take_modrm(struct decoder *d)
{
	struct pg_insn *insn = d->insn;
	uint8_t byte = pg_take_u8(&d->bytes), low = byte & 7;
	size_t size;

	insn->mod = byte >> 6;
	/* Of control and debug registers a general one moves, whatever mod says. */
	if (insn->map == PG_MAP_0F && !insn->vector && insn->opcode >= 0x20 && insn->opcode <= 0x23)
		insn->mod = 3;
	insn->reg = extended(d, byte >> 3 & 7, REX_R);
	insn->rm = extended(d, low, REX_B);
	if (insn->mod == 3)
		return;
	size = insn->mod == 1 ? 1 : insn->mod == 2 ? 4 : 0;
	insn->base = insn->rm;
	if (low == 4) {
		uint8_t sib = pg_take_u8(&d->bytes);

		insn->base = extended(d, sib & 7, REX_B);
		insn->index = extended(d, sib >> 3 & 7, REX_X);
		insn->scale = (uint8_t)(1 << (sib >> 6));
		if (insn->index == PG_RSP)
			insn->index = PG_NO_REGISTER;
		if (!insn->mod && (sib & 7) == 5) {
			insn->base = PG_NO_REGISTER;
			size = 4;
		}
	} else if (!insn->mod && low == 5) {
		insn->base = PG_RIP;
		size = 4;
	}
	insn->displacement = take_displacement(d, size);
}

/* Opcodes whose middle bits of ModRM say which instruction it is. */
static void refine(struct decoder *d)
{
	struct pg_insn *insn = d->insn;
	uint8_t which = insn->reg & 7;

	if (insn->vector)
		return;
	if (insn->map == PG_MAP_0F) {
		if (insn->opcode == 0xba && which == 4)		/* BT */
			d->flags &= ~W_RM;
		return;
	}
	if (insn->map != PG_MAP_ONE)
		return;
	switch (insn->opcode) {
	case 0x80:
	case 0x81:
	case 0x83:
		if (which == 7)					/* CMP */
			d->flags &= ~W_RM;
		break;
	case 0xf6:
	case 0xf7:
		if (which < 2)					/* TEST */
			d->flags |= insn->opcode == 0xf6 ? IMM8 : IMMZ;
		if (which < 2 || which >= 4)
			d->flags &= ~W_RM;
		if (which >= 4)					/* MUL, DIV */
			d->flags |= W_AX | W_DX;
		break;
	case 0xc7:
		if (which == 7 && insn->mod == 3)		/* XBEGIN */
			d->flags |= W_AX;
		break;
	case 0xfe:
	case 0xff:
		if (which >= 2)
			d->flags &= ~W_RM;
		if (which == 7 || (insn->opcode == 0xfe && which >= 2))
			d->flags |= BAD;
		break;
	}
}

static void take_immediate(struct decoder *d)
{
	struct pg_insn *insn = d->insn;
	struct pg_bytes *bytes = &d->bytes;
	bool is_short = d->operand_prefix && !(d->rex & REX_W);

	if (d->flags & IMM16)
		insn->immediate = pg_take_u16(bytes);
	if (d->flags & IMM8)
		insn->immediate = (int8_t)pg_take_u8(bytes);
	if (d->flags & REL)
		insn->immediate = (int32_t)pg_take_u32(bytes);
	if (d->flags & MOFFS)
		insn->immediate = (int64_t)(d->address_prefix ? pg_take_u32(bytes) : pg_take_u64(bytes));
	if (d->flags & IMMV && d->rex & REX_W)
		insn->immediate = (int64_t)pg_take_u64(bytes);
	else if (d->flags & (IMMV | IMMZ))
		insn->immediate = is_short ? (int16_t)pg_take_u16(bytes) : (int32_t)pg_take_u32(bytes);
}

static uint16_t bit_of(const struct decoder *d, uint8_t reg)
{
	/* Without REX the upper bytes of the first four registers stand there. */
	if (d->flags & BYTE && !d->rex && reg >= 4)
		reg -= 4;
	return (uint16_t)(1u << reg);
}

static void find_written(struct decoder *d)
{
	struct pg_insn *insn = d->insn;
	uint16_t written = 0;

	if (d->flags & W_RM && insn->mod == 3)
		written |= bit_of(d, insn->rm);
	if (d->flags & W_REG)
		written |= bit_of(d, insn->reg);
	if (d->flags & W_OPCODE)
		written |= bit_of(d, extended(d, insn->opcode & 7, REX_B));
	if (d->flags & W_AX)
		written |= 1u << PG_RAX;
	if (d->flags & W_DX)
		written |= 1u << PG_RDX;
	if (d->flags & W_STRING)
		written |= 1u << PG_RSI | 1u << PG_RDI | 1u << PG_RCX;
	if (insn->map == PG_MAP_0F && !insn->vector && insn->opcode == 0x05)
		written = 1u << PG_RAX | 1u << PG_RCX | 1u << PG_R11;
	if (insn->map == PG_MAP_0F && !insn->vector && insn->opcode == 0xa2)
		written = 1u << PG_RAX | 1u << PG_RBX | 1u << PG_RCX | 1u << PG_RDX;
	if (insn->map == PG_MAP_0F38 && insn->vector && (insn->opcode == 0xf3 || insn->opcode == 0xf6))
		written |= 1u << d->third;
	insn->written = written;
}

bool pg_decode(const uint8_t *code, size_t size, struct pg_insn *insn)
{
	struct decoder d = {
		.bytes = { .at = code, .end = code + (size < PG_MAX_INSN ? size : PG_MAX_INSN) },
		.insn = insn,
	};

	memset(insn, 0, sizeof(*insn));
	insn->base = PG_NO_REGISTER;
	insn->index = PG_NO_REGISTER;
	take_opcode(&d);
	d.flags = find_flags(&d);
	if (d.flags & MODRM) {
		take_modrm(&d);
		refine(&d);
	} else if (d.flags & W_OPCODE || (insn->map == PG_MAP_ONE && (insn->opcode & 0xf8) == 0x50)) {
		insn->rm = extended(&d, insn->opcode & 7, REX_B);
		insn->mod = 3;
	}
	take_immediate(&d);
	if (d.bytes.broken || d.flags & BAD)
		return false;
	find_written(&d);
	insn->width = d.rex & REX_W ? 8 : d.operand_prefix ? 2 : 4;
	insn->length = (uint8_t)(d.bytes.at - code);
	return true;
}
