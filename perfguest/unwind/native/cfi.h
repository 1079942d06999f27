/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* From an FDE and an address to a rule. */
#ifndef PERFGUEST_UNWIND_CFI_H
#define PERFGUEST_UNWIND_CFI_H

#include "fde.h"

/* The rule at vaddr, which lies in the FDE. */
void pg_cfi_rule(const struct pg_fde *fde, uint64_t vaddr, struct pg_rule *rule);

#endif
