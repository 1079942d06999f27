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

/* A guest's address space, with the page that was translated last. */
struct pg_virt {
	struct pg_paging paging;
	struct pg_phys phys;
	__u64 page_gva;
	__u64 page_gpa;
	__u64 page_size;	/* 0: no page yet */
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
