// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * A small function that returns a per-CPU variable, as kvm_get_running_vcpu()
 * does, has its offset in a load relative to GS. We decode from the first byte,
 * instruction by instruction, and know just those that compilers and the kernel
 * put before that load: endbr64 or what seals it, the ftrace call or the nop in
 * its place, a frame's set-up, the preempt count's increment and the stack
 * protector. Anything else ends the search, for after an unknown instruction
 * one would be guessing where the next begins.
 *
 * The stack protector's canary is loaded from GS too: from %gs:0x28, or since
 * Linux 6.15 from a variable like any other. Then the register goes to the
 * stack right away, by which it is told apart.
 */
#include "gs_scan.h"

#define CANARY_OFFSET		0x28
#define MAX_INSTRUCTION		15

#define OPCODE_2		0x0f

enum kind {
	KIND_UNKNOWN,
	KIND_TRUNCATED,
	KIND_PLAIN,		/* known, and of no interest */
	KIND_STOP,		/* leaves the function */
	KIND_GS_LOAD,		/* 64 bits from a fixed offset to a register */
	KIND_STACK_STORE,	/* a register to the stack */
};

struct instruction {
	enum kind kind;
	__u32 size;
	__u32 reg;		/* KIND_GS_LOAD, KIND_STACK_STORE */
	bool rip_relative;	/* KIND_GS_LOAD */
	__s32 displacement;	/* KIND_GS_LOAD */
};

struct cursor {
	const __u8 *code;
	__u32 len;
	__u32 pos;	/* beyond len: the bytes have ended */
};

static __u8 next(struct cursor *at)
{
	__u32 pos = at->pos++;

	return pos < at->len ? at->code[pos] : 0;
}

static __s32 next_32(struct cursor *at)
{
	__u32 value = next(at);

	value |= (__u32)next(at) << 8;
	value |= (__u32)next(at) << 16;
	value |= (__u32)next(at) << 24;
	return (__s32)value;
}

/* Steps over what a ModRM byte says that follows it. */
static void skip_operand(struct cursor *at, __u8 modrm)
{
	__u8 mod = modrm >> 6;
	__u8 base = modrm & 7;

	if (mod == 3)
		return;
	if (base == 4)
		base = next(at) & 7;
	if (mod == 1)
		at->pos += 1;
	else if (mod == 2 || base == 5)
		at->pos += 4;
}

/* Is the operand a fixed offset, relative to RIP or absolute? */
static bool fixed_operand(struct cursor *at, __u8 modrm,
			  struct instruction *found)
{
	found->rip_relative = (modrm & 0xc7) == 0x05;
	if (!found->rip_relative && ((modrm & 0xc7) != 0x04 || next(at) != 0x25))
		return false;
	found->displacement = next_32(at);
	return true;
}

/* Is the operand memory at RSP or RBP plus something, without an index? */
static bool stack_operand(struct cursor *at, __u8 modrm, __u8 rex)
{
	bool on_stack = (modrm & 7) == 5 && modrm >> 6;

	if ((modrm & 7) == 4)
		on_stack = at->pos < at->len && at->code[at->pos] == 0x24;
	skip_operand(at, modrm);
	return on_stack && modrm >> 6 != 3 && !(rex & 3);
}

static enum kind decode_gs(struct cursor *at, __u8 rex, __u8 opcode,
			   struct instruction *found)
{
	__u8 modrm = next(at);
	__u8 reg = modrm >> 3 & 7;

	if (!fixed_operand(at, modrm, found))
		return KIND_UNKNOWN;
	found->reg = reg | (rex & 4U) << 1;
	if (opcode == 0x8b && rex & 8)
		return KIND_GS_LOAD;
	if (opcode == 0xff && reg <= 1)		/* inc, dec */
		return KIND_PLAIN;
	return KIND_UNKNOWN;
}

/* Arithmetic with an immediate: of the stack pointer only. */
static enum kind decode_stack_adjust(struct cursor *at, __u8 opcode)
{
	__u8 modrm = next(at);

	at->pos += opcode == 0x83 ? 1 : 4;
	switch (modrm) {
	case 0xc4:	/* add */
	case 0xe4:	/* and */
	case 0xec:	/* sub */
		return KIND_PLAIN;
	}
	return KIND_UNKNOWN;
}

static enum kind decode_opcode(struct cursor *at, __u8 rex, __u8 opcode,
			       struct instruction *found)
{
	__u8 modrm;

	switch (opcode) {
	case 0x31:	/* xor */
	case 0x33:
	case 0x8b:	/* mov */
		return next(at) >> 6 == 3 ? KIND_PLAIN : KIND_UNKNOWN;
	case 0x50 ... 0x57:	/* push */
	case 0x90:
		return KIND_PLAIN;
	case 0x81:
	case 0x83:
		return decode_stack_adjust(at, opcode);
	case 0x89:	/* mov */
		modrm = next(at);
		if (modrm >> 6 == 3)
			return KIND_PLAIN;
		found->reg = (modrm >> 3 & 7U) | (rex & 4U) << 1;
		return stack_operand(at, modrm, rex) ? KIND_STACK_STORE :
						       KIND_UNKNOWN;
	case 0xc3:	/* ret */
	case 0xe9:	/* jmp, to the return thunk */
	case 0xeb:
		return KIND_STOP;
	case 0xe8:	/* call */
		at->pos += 4;
		return KIND_PLAIN;
	}
	return KIND_UNKNOWN;
}

/* What begins with 0f: nops of all lengths, with any 66 and 2e before them. */
static enum kind decode_nop(struct cursor *at)
{
	__u8 modrm;

	if (next(at) != 0x1f)
		return KIND_UNKNOWN;
	modrm = next(at);
	if (modrm >> 3 & 7)
		return KIND_UNKNOWN;
	skip_operand(at, modrm);
	return KIND_PLAIN;
}

/* What begins with f3: endbr64 only. */
static enum kind decode_endbr64(struct cursor *at)
{
	if (next(at) != OPCODE_2 || next(at) != 0x1e || next(at) != 0xfa)
		return KIND_UNKNOWN;
	return KIND_PLAIN;
}

static enum kind decode_any(struct cursor *at, struct instruction *found)
{
	bool gs = false, nop_prefix = false;
	__u8 rex = 0;
	__u8 byte;

	for (byte = next(at); at->pos < MAX_INSTRUCTION; byte = next(at)) {
		if (byte == 0x65)
			gs = true;
		else if (byte == 0x66 || byte == 0x2e)
			nop_prefix = true;
		else
			break;
	}
	if (nop_prefix) {
		if (gs)
			return KIND_UNKNOWN;
		if (byte == 0x90)
			return KIND_PLAIN;
		return byte == OPCODE_2 ? decode_nop(at) : KIND_UNKNOWN;
	}
	if (byte == 0xf3)
		return gs ? KIND_UNKNOWN : decode_endbr64(at);
	if (byte >> 4 == 4) {
		rex = byte;
		byte = next(at);
	}
	if (gs)
		return decode_gs(at, rex, byte, found);
	if (byte == OPCODE_2)
		return decode_nop(at);
	return decode_opcode(at, rex, byte, found);
}

static void decode(const __u8 *code, __u32 len, struct instruction *found)
{
	struct cursor at = { .code = code, .len = len };

	found->kind = decode_any(&at, found);
	found->size = at.pos;
	if (at.pos > len)
		found->kind = KIND_TRUNCATED;
	else if (at.pos > MAX_INSTRUCTION)
		found->kind = KIND_UNKNOWN;
}

/**
 * pg_scan_gs_offset() - find the per-CPU variable that a function reads first
 * @code: the function's machine code, from its first byte on
 * @len: bytes of it; the load and the instruction after it must be among them
 * @address: where that code runs, for addresses relative to RIP
 * @offset: on success, the variable's address relative to the GS base, in
 *	64-bit arithmetic
 *
 * Return: 0, or a negative PG_SCAN_*.
 */
int pg_scan_gs_offset(const __u8 *code, __u32 len, __u64 address,
		      __u64 *offset)
{
	struct instruction now, after;
	__u32 pos = 0;

	for (;;) {
		decode(code + pos, len - pos, &now);
		if (now.kind == KIND_UNKNOWN)
			return PG_SCAN_UNKNOWN;
		if (now.kind == KIND_TRUNCATED)
			return PG_SCAN_TRUNCATED;
		if (now.kind == KIND_STOP)
			return PG_SCAN_NOT_FOUND;
		pos += now.size;
		if (now.kind != KIND_GS_LOAD)
			continue;
		if (!now.rip_relative && now.displacement == CANARY_OFFSET)
			continue;
		decode(code + pos, len - pos, &after);
		if (after.kind == KIND_TRUNCATED)
			return PG_SCAN_TRUNCATED;
		if (after.kind == KIND_STACK_STORE && after.reg == now.reg)
			continue;
		*offset = (__u64)(__s64)now.displacement;
		if (now.rip_relative)
			*offset += address + pos;
		return 0;
	}
}
