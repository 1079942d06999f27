/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Finds the per-CPU variable that a small function reads, in its machine code. */
#ifndef PERFGUEST_GS_SCAN_H
#define PERFGUEST_GS_SCAN_H

#include "pure.h"

/* Why no per-CPU load was found. */
#define PG_SCAN_NOT_FOUND	(-1)	/* the function ended without one */
#define PG_SCAN_UNKNOWN		(-2)	/* an instruction that is not expected here */
#define PG_SCAN_TRUNCATED	(-3)	/* the bytes ended first */

int pg_scan_gs_offset(const __u8 *code, __u32 len, __u64 address,
		      __u64 *offset);

#endif
