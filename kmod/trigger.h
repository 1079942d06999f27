/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef PERFGUEST_TRIGGER_H
#define PERFGUEST_TRIGGER_H

#include <linux/types.h>

#include "perfguest.h"

void pg_trigger_init(void);

bool pg_trigger_available(enum pg_trigger trigger);
int pg_trigger_start(enum pg_trigger trigger);
void pg_trigger_stop(enum pg_trigger trigger);

/* Hits of the probe that the kernel skipped in the session that was stopped last. */
u64 pg_trigger_missed(void);

/* Which function was probed last, "none" before. */
const char *pg_trigger_function(void);

/* Nanoseconds of the clock chosen, which is perf's; NMI-safe. */
u64 pg_trigger_clock(void);

#endif
