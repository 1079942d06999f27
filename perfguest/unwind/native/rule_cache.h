/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Rules that were made, so that an address that is met again costs one look: a
 * profile meets few addresses, and those again and again.
 *
 * A rule belongs to a kernel or a binary and an address in it, so that all
 * processes share those of a library. What is asked for in user code is an
 * address of a process: sites lead from there to the rule without looking for
 * the mapping first. Rules lie one behind the other in the order in which they
 * were met, and what leads to them grows with them: few pages are touched, and
 * the hot ones stand together. When there is no room for another rule, all are
 * forgotten.
 */
#ifndef PERFGUEST_UNWIND_RULE_CACHE_H
#define PERFGUEST_UNWIND_RULE_CACHE_H

#include <stdbool.h>

#include "file.h"
#include "rule.h"

#define PG_SITE_BITS	1	/* twice as many as rules, of which a process may share some */

struct pg_cached_rule {
	uint64_t address;
	uint32_t owner;
	struct pg_rule rule;
};

/* Where the expressions of a rule stand, and where their file is mapped. */
struct pg_rule_source {
	const struct pg_file *file;	/* NULL for ORC, which has none */
	uint64_t bias;
};

struct pg_site {
	uint64_t address;
	uint32_t owner;		/* 0: empty */
	uint32_t rule;		/* its place in rules[] */
	struct pg_rule_source source;
};

struct pg_rule_cache {
	struct pg_cached_rule *rules;
	uint32_t count;
	unsigned int bits;		/* 1 << bits rules find room in what follows */
	uint16_t *index;		/* by hash; a rule's place + 1, 0: empty */
	struct pg_site *sites;		/* each where its hash says */
};

/* False if there is no memory. */
bool pg_rule_cache_init(struct pg_rule_cache *cache);
void pg_rule_cache_deinit(struct pg_rule_cache *cache);

/* Forgets all rules and sites. */
void pg_rule_cache_clear(struct pg_rule_cache *cache);

/* The rule at an address, which is still to be made if *is_new. Good until the next call. */
struct pg_cached_rule *pg_cached_rule(struct pg_rule_cache *cache, uint32_t owner, uint64_t address,
				      bool *is_new);

static inline uint64_t pg_rule_hash(uint32_t owner, uint64_t address)
{
	return (address ^ (uint64_t)owner << 40) * 0x9e3779b97f4a7c15ULL;
}

static inline struct pg_site *pg_site_of(const struct pg_rule_cache *cache, uint32_t owner,
					 uint64_t address)
{
	return &cache->sites[pg_rule_hash(owner, address) >> (64 - cache->bits - PG_SITE_BITS)];
}

/* The rule at an address of a space, if it was met before; NULL if not. */
static inline const struct pg_rule *pg_find_site(const struct pg_rule_cache *cache, uint32_t space,
						 uint64_t address, struct pg_rule_source *source)
{
	const struct pg_site *site = pg_site_of(cache, space + 1, address);

	if (site->owner != space + 1 || site->address != address)
		return NULL;
	*source = site->source;
	return &cache->rules[site->rule].rule;
}

/* Has the next pg_find_site() find the rule, which pg_cached_rule() has just given. */
void pg_keep_site(struct pg_rule_cache *cache, uint32_t space, uint64_t address,
		  const struct pg_cached_rule *rule, const struct pg_rule_source *source);

#endif
