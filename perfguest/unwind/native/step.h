/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* One step: from a function's registers to its caller's. */
#ifndef PERFGUEST_UNWIND_STEP_H
#define PERFGUEST_UNWIND_STEP_H

#include "machine.h"
#include "rule_cache.h"

/*
 * Applies a rule that is not PG_RULE_STOP. 0, or why it cannot be applied; then
 * the registers are as before. Of PG_RULE_REGS and PG_RULE_REGS_PARTIAL, *cs is
 * the code segment of what was interrupted.
 */
enum pg_end pg_step(struct pg_machine *m, const struct pg_rule *rule,
		    const struct pg_rule_source *source, uint16_t *cs);

/* struct pt_regs of x86-64 (asm/ptrace.h), as the processor and entry code leave it. */
#define PG_PT_REGS_SIZE		168
#define PG_PT_REGS_IP		128

struct pg_iret_frame {
	uint64_t ip;
	uint64_t cs;	/* FRED keeps other things above its 16 bits, */
	uint64_t flags;
	uint64_t sp;
	uint64_t ss;	/* and here, too */
};

/* All registers out of pt_regs; false if it is not in the copies, but for what was popped off already. */
bool pg_load_pt_regs(struct pg_machine *m, uint64_t address, struct pg_iret_frame *frame);

#endif
