/* SPDX-License-Identifier: GPL-2.0-only */
/* Names and limits that all parts of the module share. */
#ifndef PERFGUEST_H
#define PERFGUEST_H

#include <linux/sizes.h>
#include <linux/types.h>

#include "perfguest_abi.h"

#ifdef pr_fmt
#undef pr_fmt
#endif
#define pr_fmt(fmt) "perfguest: " fmt

#define PG_MAX_CHAIN_DEPTH	1024
#define PG_MAX_KERNEL_STACK	SZ_16K
#define PG_MAX_USER_STACK	SZ_64K
#define PG_MAX_BUFFER_KB	(1024 * 1024)
#define PG_MAX_PIDS		64

enum pg_clock { PG_CLOCK_LOCAL, PG_CLOCK_MONO };

enum pg_trigger { PG_TRIGGER_PROBE, PG_TRIGGER_NMI, PG_NR_TRIGGERS };

enum pg_locator {
	PG_LOCATOR_PREEMPT,
	PG_LOCATOR_ACCESSOR,
	PG_LOCATOR_PERCPU,
	PG_LOCATOR_SCAN,
	PG_NR_LOCATORS,
	PG_LOCATOR_AUTO = PG_NR_LOCATORS,
};

/* Chosen through debugfs while sampling is off; constant while it is on. */
struct pg_settings {
	enum pg_trigger trigger;
	enum pg_locator locator;
	enum pg_clock clock;
	u32 kernel_stack;	/* bytes; 0: no copies */
	u32 user_stack;		/* bytes; 0: no copies */
	u32 chain_depth;	/* entries, of each chain; 0: no chains */
	u32 buffer_kb;		/* of each CPU's ring */
	u32 nr_pids;		/* 0: all VMs */
	pid_t pids[PG_MAX_PIDS];	/* VMM processes to sample */
};

extern struct pg_settings pg_settings;

#endif
