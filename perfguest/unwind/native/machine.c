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

enum pg_end pg_check_crossing(struct pg_machine *m, uint64_t sp_before)
{
	if (pg_copy_of(m, m->regs[PG_RSP]) == pg_copy_of(m, sp_before) || ++m->crossings > MAX_CROSSINGS)
		return PG_END_BAD;
	return 0;
}
