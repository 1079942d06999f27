/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* DWARF expressions in unwind tables (DWARF 5, section 2.5 and 6.4.2). */
#ifndef PERFGUEST_UNWIND_EXPRESSION_H
#define PERFGUEST_UNWIND_EXPRESSION_H

#include "bytes.h"
#include "machine.h"

struct pg_expression {
	struct pg_bytes code;
	uint64_t bias;		/* what DW_OP_addr wants added */
	const uint64_t *cfa;	/* NULL in the CFA's own expression */
	bool push_cfa;		/* rules for registers begin with it on the stack */
};

/* 0, PG_END_EXPRESSION, or why something it needs is unknown. */
enum pg_end pg_evaluate(const struct pg_expression *expression, const struct pg_machine *m,
			uint64_t *result);

#endif
