/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Instructions of x86-64: how long they are, and what they do to general registers. */
#ifndef PERFGUEST_UNWIND_X86_DECODE_H
#define PERFGUEST_UNWIND_X86_DECODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PG_MAX_INSN	15
#define PG_NO_REGISTER	0xff

/* Where the opcode is looked up. The numbers are those in VEX and EVEX. */
enum pg_opcode_map {
	PG_MAP_ONE,
	PG_MAP_0F,
	PG_MAP_0F38,
	PG_MAP_0F3A,
};

struct pg_insn {
	uint8_t length;
	uint8_t map;		/* enum pg_opcode_map, or one more of EVEX and XOP */
	uint8_t opcode;
	uint8_t width;		/* of the operands in bytes: 2, 4 or 8 */
	bool vector;		/* VEX, EVEX or XOP */
	bool segment;		/* memory is relative to FS or GS */
	uint8_t mod;		/* 3: rm is a register, else in memory */
	uint8_t reg;		/* enum pg_register, as are rm, base and index */
	uint8_t rm;
	uint8_t base;		/* PG_RIP: the address behind the instruction */
	uint8_t index;
	uint8_t scale;		/* of the index: 1, 2, 4 or 8 */
	uint16_t written;	/* bits of registers that it changes; RSP of push, pop, call and the like is not told */
	int32_t displacement;
	int64_t immediate;	/* of direct jumps and calls: from behind the instruction */
};

/* False: size bytes of code do not begin with a whole instruction that 64-bit mode has. */
bool pg_decode(const uint8_t *code, size_t size, struct pg_insn *insn);

#endif
