// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
#include "machine.h"

/* NMI on a fault on an interrupt on a task is three. */
#define MAX_CROSSINGS	8

size_t pg_copy_of(const struct pg_machine *m, uint64_t sp)
{
	size_t i;

	for (i = 0; i < m->copy_count; i++)
		if (sp - m->copies[i].address <= m->copies[i].size)
			return i;
	return PG_NO_COPY;
}

bool pg_load(const struct pg_machine *m, uint64_t address, void *value, size_t size)
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

enum pg_end pg_check_progress(struct pg_machine *m, uint64_t sp_before)
{
	uint64_t sp = m->regs[PG_RSP];

	if (sp > sp_before)
		return 0;
	if (pg_copy_of(m, sp) == pg_copy_of(m, sp_before) || ++m->crossings > MAX_CROSSINGS)
		return PG_END_BAD;
	return 0;
}
