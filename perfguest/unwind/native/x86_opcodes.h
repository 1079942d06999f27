/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Of opcodes without VEX and the like: what follows them, and what they change. For x86_decode.c alone. */
#ifndef PERFGUEST_UNWIND_X86_OPCODES_H
#define PERFGUEST_UNWIND_X86_OPCODES_H

#include <stdint.h>

enum {
	MODRM = 1 << 0,
	IMM8 = 1 << 1,
	IMMZ = 1 << 2,		/* 2 or 4 bytes */
	IMMV = 1 << 3,		/* 2, 4 or 8 */
	IMM16 = 1 << 4,
	REL = 1 << 5,		/* 4, whatever the prefixes */
	MOFFS = 1 << 6,		/* an address: 8, or 4 with its prefix */
	BYTE = 1 << 7,		/* a changed operand is a byte: AH to BH, too */
	BAD = 1 << 8,
	/* What changes. */
	W_RM = 1 << 9,
	W_REG = 1 << 10,
	W_OPCODE = 1 << 11,	/* the register in the opcode's last bits */
	W_AX = 1 << 12,
	W_DX = 1 << 13,
	W_STRING = 1 << 14,	/* RSI, RDI and, with its prefix, RCX */
};

#define ALU(op)					\
	[(op)] = MODRM | W_RM | BYTE,		\
	[(op) + 1] = MODRM | W_RM,		\
	[(op) + 2] = MODRM | W_REG | BYTE,	\
	[(op) + 3] = MODRM | W_REG,		\
	[(op) + 4] = IMM8 | W_AX,		\
	[(op) + 5] = IMMZ | W_AX,		\
	[(op) + 6 ... (op) + 7] = BAD

/* Prefixes and escapes do not come here: they are BAD. */
static const uint16_t one_byte[256] = {
	ALU(0x00), ALU(0x08), ALU(0x10), ALU(0x18), ALU(0x20), ALU(0x28), ALU(0x30),
	[0x38 ... 0x3b] = MODRM,		/* CMP */
	[0x3c] = IMM8,
	[0x3d] = IMMZ,
	[0x3e ... 0x4f] = BAD,
	[0x58 ... 0x5f] = W_OPCODE,		/* POP */
	[0x60 ... 0x62] = BAD,
	[0x63] = MODRM | W_REG,
	[0x64 ... 0x67] = BAD,
	[0x68] = IMMZ,
	[0x69] = MODRM | IMMZ | W_REG,
	[0x6a] = IMM8,
	[0x6b] = MODRM | IMM8 | W_REG,
	[0x6c ... 0x6f] = W_STRING,
	[0x70 ... 0x7f] = IMM8,			/* Jcc */
	[0x80] = MODRM | IMM8 | W_RM | BYTE,
	[0x81] = MODRM | IMMZ | W_RM,
	[0x82] = BAD,
	[0x83] = MODRM | IMM8 | W_RM,
	[0x84 ... 0x85] = MODRM,
	[0x86] = MODRM | W_RM | W_REG | BYTE,
	[0x87] = MODRM | W_RM | W_REG,
	[0x88] = MODRM | W_RM | BYTE,
	[0x89] = MODRM | W_RM,
	[0x8a] = MODRM | W_REG | BYTE,
	[0x8b] = MODRM | W_REG,
	[0x8c] = MODRM | W_RM,
	[0x8d] = MODRM | W_REG,
	[0x8e] = MODRM,
	[0x8f] = MODRM | W_RM,
	[0x90 ... 0x97] = W_OPCODE | W_AX,
	[0x98] = W_AX,
	[0x99] = W_DX,
	[0x9a] = BAD,
	[0x9f] = W_AX,
	[0xa0 ... 0xa1] = MOFFS | W_AX,
	[0xa2 ... 0xa3] = MOFFS,
	[0xa4 ... 0xa7] = W_STRING,
	[0xa8] = IMM8,
	[0xa9] = IMMZ,
	[0xaa ... 0xab] = W_STRING,
	[0xac ... 0xad] = W_STRING | W_AX,
	[0xae ... 0xaf] = W_STRING,
	[0xb0 ... 0xb7] = IMM8 | W_OPCODE | BYTE,
	[0xb8 ... 0xbf] = IMMV | W_OPCODE,
	[0xc0] = MODRM | IMM8 | W_RM | BYTE,
	[0xc1] = MODRM | IMM8 | W_RM,
	[0xc2] = IMM16,
	[0xc4 ... 0xc5] = BAD,
	[0xc6] = MODRM | IMM8 | W_RM | BYTE,
	[0xc7] = MODRM | IMMZ | W_RM,
	[0xc8] = IMM16 | IMM8,			/* ENTER */
	[0xca] = IMM16,
	[0xcd] = IMM8,
	[0xce] = BAD,
	[0xd0] = MODRM | W_RM | BYTE,
	[0xd1] = MODRM | W_RM,
	[0xd2] = MODRM | W_RM | BYTE,
	[0xd3] = MODRM | W_RM,
	[0xd4 ... 0xd6] = BAD,
	[0xd7] = W_AX,
	[0xd8 ... 0xde] = MODRM,
	[0xdf] = MODRM | W_AX,			/* FNSTSW AX */
	[0xe0 ... 0xe3] = IMM8 | W_STRING,	/* LOOP: RCX */
	[0xe4 ... 0xe5] = IMM8 | W_AX,
	[0xe6 ... 0xe7] = IMM8,
	[0xe8 ... 0xe9] = REL,
	[0xea] = BAD,
	[0xeb] = IMM8,
	[0xec ... 0xed] = W_AX,
	[0xf0] = BAD,
	[0xf2 ... 0xf3] = BAD,
	[0xf6] = MODRM | W_RM | BYTE,
	[0xf7] = MODRM | W_RM,
	[0xfe] = MODRM | W_RM | BYTE,
	[0xff] = MODRM | W_RM,
};

static const uint16_t two_byte[256] = {
	[0x00] = MODRM | W_RM,
	[0x01] = MODRM | W_RM | W_AX | W_DX | W_STRING,	/* SMSW, XGETBV, RDTSCP */
	[0x02 ... 0x03] = MODRM | W_REG,
	[0x04] = BAD,
	[0x05] = W_AX | W_STRING,		/* SYSCALL: RCX, and R11 */
	[0x0a] = BAD,
	[0x0c] = BAD,
	[0x0d] = MODRM,
	[0x0f] = MODRM | IMM8,
	[0x10 ... 0x1f] = MODRM,
	[0x20 ... 0x21] = MODRM | W_RM,
	[0x22 ... 0x23] = MODRM,
	[0x24 ... 0x27] = BAD,
	[0x28 ... 0x2b] = MODRM,
	[0x2c ... 0x2d] = MODRM | W_REG,
	[0x2e ... 0x2f] = MODRM,
	[0x31 ... 0x33] = W_AX | W_DX,
	[0x36] = BAD,
	[0x37] = W_AX,
	[0x38 ... 0x3f] = BAD,
	[0x40 ... 0x50] = MODRM | W_REG,	/* CMOVcc, MOVMSKPS */
	[0x51 ... 0x6f] = MODRM,
	[0x70 ... 0x73] = MODRM | IMM8,
	[0x74 ... 0x76] = MODRM,
	[0x78 ... 0x79] = MODRM,
	[0x7a ... 0x7b] = BAD,
	[0x7c ... 0x7d] = MODRM,
	[0x7e] = MODRM | W_RM,
	[0x7f] = MODRM,
	[0x80 ... 0x8f] = REL,			/* Jcc */
	[0x90 ... 0x9f] = MODRM | W_RM | BYTE,	/* SETcc */
	[0xa2] = W_AX | W_DX | W_STRING,	/* CPUID: and RBX */
	[0xa3] = MODRM,
	[0xa4] = MODRM | IMM8 | W_RM,
	[0xa5] = MODRM | W_RM,
	[0xa6 ... 0xa7] = MODRM | W_AX | W_STRING,
	[0xab] = MODRM | W_RM,
	[0xac] = MODRM | IMM8 | W_RM,
	[0xad] = MODRM | W_RM,
	[0xae] = MODRM | W_RM,			/* RDFSBASE */
	[0xaf] = MODRM | W_REG,
	[0xb0] = MODRM | W_RM | W_AX | BYTE,
	[0xb1] = MODRM | W_RM | W_AX,
	[0xb2] = MODRM | W_REG,
	[0xb3] = MODRM | W_RM,
	[0xb4 ... 0xb8] = MODRM | W_REG,
	[0xb9] = MODRM,
	[0xba] = MODRM | IMM8 | W_RM,
	[0xbb] = MODRM | W_RM,
	[0xbc ... 0xbf] = MODRM | W_REG,
	[0xc0] = MODRM | W_RM | W_REG | BYTE,
	[0xc1] = MODRM | W_RM | W_REG,
	[0xc2] = MODRM | IMM8,
	[0xc3] = MODRM,
	[0xc4] = MODRM | IMM8,
	[0xc5] = MODRM | IMM8 | W_REG,
	[0xc6] = MODRM | IMM8,
	[0xc7] = MODRM | W_RM | W_AX | W_DX,
	[0xc8 ... 0xcf] = W_OPCODE,
	[0xd0 ... 0xd6] = MODRM,
	[0xd7] = MODRM | W_REG,
	[0xd8 ... 0xff] = MODRM,
};

#endif
