/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Guest virtual to guest physical addresses, and reads through them. */
#ifndef PERFGUEST_PAGING_H
#define PERFGUEST_PAGING_H

#include "pure.h"

/* The registers that choose the paging mode and where its tables are. */
struct pg_paging {
	__u64 cr0;
	__u64 cr3;
	__u64 cr4;
	__u64 efer;
	__u8 maxphyaddr;	/* the guest's CPUID 0x80000008; 0: not known */
};

#define PG_KEPT_PAGES	8

/* A page of 4 KiB, or so much of a larger one. */
struct pg_kept_page {
	__u64 gva;	/* plus 1; 0: none yet */
	__u64 gpa;
};

/* A guest's address space, with pages that were translated, each where its number says. */
struct pg_virt {
	struct pg_paging paging;
	struct pg_phys phys;
	struct pg_kept_page kept[PG_KEPT_PAGES];
};

bool pg_is_canonical(const struct pg_paging *paging, __u64 gva);
__u64 pg_low_half_end(const struct pg_paging *paging);
int pg_translate(const struct pg_paging *paging, const struct pg_phys *phys,
		 __u64 gva, __u64 *gpa, __u64 *page_size);

void pg_virt_init(struct pg_virt *virt, const struct pg_paging *paging,
		  const struct pg_phys *phys);
int pg_read_virt(struct pg_virt *virt, __u64 gva, void *buf, __u32 len);
__u32 pg_read_virt_some(struct pg_virt *virt, __u64 gva, void *buf, __u32 len,
			int *end);

#endif
