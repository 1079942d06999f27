/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Registers and copies of stacks: what a step reads and changes. */
#ifndef PERFGUEST_UNWIND_MACHINE_H
#define PERFGUEST_UNWIND_MACHINE_H

#include <stdbool.h>
#include <stddef.h>

#include "file.h"
#include "rule.h"

struct pg_copy {
	uint64_t address;
	const uint8_t *data;
	uint64_t size;
};

#define PG_ALL_REGISTERS	((1u << PG_REGISTERS) - 1)

struct pg_machine {
	const struct pg_copy *copies;
	size_t copy_count;
	uint64_t regs[PG_REGISTERS];
	uint32_t known;		/* a bit for each register */
	uint32_t cut;		/* unknown for want of a word in the copies */
	uint32_t crossings;	/* from one stack to another that lies lower */
};

#define PG_NO_COPY	SIZE_MAX

/* The copy of the stack that sp is on; its end is the empty stack. */
size_t pg_copy_of(const struct pg_machine *m, uint64_t sp);

static inline bool pg_load(const struct pg_machine *m, uint64_t address, void *value, size_t size)
{
	size_t i;

	for (i = 0; i < m->copy_count; i++) {
		const struct pg_copy *copy = &m->copies[i];
		uint64_t offset = address - copy->address;

		if (offset < copy->size && copy->size - offset >= size) {
			memcpy(value, copy->data + offset, size);
			return true;
		}
	}
	return false;
}

static inline bool pg_load64(const struct pg_machine *m, uint64_t address, uint64_t *value)
{
	return pg_load(m, address, value, sizeof(*value));
}

static inline bool pg_knows(const struct pg_machine *m, unsigned int reg)
{
	return m->known >> reg & 1;
}

static inline void pg_set(struct pg_machine *m, unsigned int reg, uint64_t value)
{
	m->regs[reg] = value;
	m->known |= 1u << reg;
	m->cut &= ~(1u << reg);
}

static inline void pg_forget(struct pg_machine *m, unsigned int reg, bool cut)
{
	m->known &= ~(1u << reg);
	m->cut = (m->cut & ~(1u << reg)) | (uint32_t)cut << reg;
}

/* Why the walk ends where this register is needed and unknown. */
static inline enum pg_end pg_why_unknown(const struct pg_machine *m, unsigned int reg)
{
	return m->cut >> reg & 1 ? PG_END_CUT : PG_END_NO_RULE;
}

/* Where the stack has not gone up. */
enum pg_end pg_check_crossing(struct pg_machine *m, uint64_t sp_before);

/*
 * After a step: did the stack go up? It may go down when another stack begins,
 * but not again and again. 0 or PG_END_BAD.
 */
static inline enum pg_end pg_check_progress(struct pg_machine *m, uint64_t sp_before)
{
	return m->regs[PG_RSP] > sp_before ? 0 : pg_check_crossing(m, sp_before);
}

#endif
