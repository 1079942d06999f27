/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the pure C files share. They compile into the module and, in user
 * space, into tests: no kernel header but <linux/types.h>, no allocation, no
 * recursion, bounded loops and little stack, for they run in hard interrupts.
 * Errors are positive enum pg_end values; 0 is success.
 */
#ifndef PERFGUEST_PURE_H
#define PERFGUEST_PURE_H

#include <linux/types.h>
#ifdef __KERNEL__
#include <linux/stddef.h>
#else
#include <stdbool.h>
#include <stddef.h>
#endif

#define PG_PAGE_SIZE	4096ULL

/*
 * Reads guest-physical memory; 0, or an enum pg_end that says why not. One
 * call never crosses a 4 KiB page.
 */
typedef int (*pg_read_phys_fn)(void *ctx, __u64 gpa, void *buf, __u32 len);

struct pg_phys {
	pg_read_phys_fn read;
	void *ctx;
};

#endif
