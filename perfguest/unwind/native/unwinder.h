/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* All tables that a walk may need, and the cache of rules made from them. */
#ifndef PERFGUEST_UNWIND_UNWINDER_H
#define PERFGUEST_UNWIND_UNWINDER_H

#include "binary.h"
#include "orc.h"
#include "rule_cache.h"

struct pg_code_search;

struct pg_text {
	uint64_t address;
	const uint8_t *code;
	uint64_t size;
};

struct pg_kernel {
	struct pg_orc_table orc;
	struct pg_text *texts;		/* ascending */
	size_t text_count;
};

struct pg_mapping {
	uint64_t start;
	uint64_t end;
	uint64_t offset;	/* in the file, of start */
	int32_t binary;		/* -1: none */
};

struct pg_space {
	struct pg_mapping *mappings;	/* ascending, disjoint */
	size_t count;
};

struct pg_unwinder {
	struct pg_kernel **kernels;
	size_t kernel_count;
	struct pg_binary **binaries;
	size_t binary_count;
	struct pg_space **spaces;
	size_t space_count;
	struct pg_rule_cache cache;
	struct pg_code_search *search;	/* of code_search.h */
};

/* The pointer is good until the next rule is asked for. */
const struct pg_rule *pg_kernel_rule(struct pg_unwinder *unwinder, uint32_t kernel,
				     uint64_t address);
const struct pg_cached_rule *pg_user_rule(struct pg_unwinder *unwinder, uint32_t binary,
					  uint64_t vaddr);

/* Does address lie behind a call in the kernel's known text? */
bool pg_kernel_call_ends(const struct pg_kernel *kernel, uint64_t address);

const struct pg_mapping *pg_find_mapping(const struct pg_space *space, uint64_t address);

#endif
