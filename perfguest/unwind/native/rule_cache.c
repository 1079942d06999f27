// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
#include "rule_cache.h"

#include <stdlib.h>

#define FIRST_BITS	9
#define LAST_BITS	15
#define MAX_RULES	(1u << LAST_BITS)

/* At least half of it is empty. */
static size_t index_size(const struct pg_rule_cache *cache)
{
	return (size_t)2 << cache->bits;
}

static size_t site_count(const struct pg_rule_cache *cache)
{
	return (size_t)1 << (cache->bits + PG_SITE_BITS);
}

static size_t index_start(const struct pg_rule_cache *cache, uint32_t owner, uint64_t address)
{
	return pg_rule_hash(owner, address) >> (64 - cache->bits - 1);
}

bool pg_rule_cache_init(struct pg_rule_cache *cache)
{
	cache->count = 0;
	cache->bits = FIRST_BITS;
	cache->rules = calloc(MAX_RULES, sizeof(*cache->rules));
	cache->index = calloc(index_size(cache), sizeof(*cache->index));
	cache->sites = calloc(site_count(cache), sizeof(*cache->sites));
	return cache->rules && cache->index && cache->sites;
}

void pg_rule_cache_deinit(struct pg_rule_cache *cache)
{
	free(cache->rules);
	free(cache->index);
	free(cache->sites);
}

void pg_rule_cache_clear(struct pg_rule_cache *cache)
{
	cache->count = 0;
	memset(cache->index, 0, index_size(cache) * sizeof(*cache->index));
	memset(cache->sites, 0, site_count(cache) * sizeof(*cache->sites));
}

/* The place in the index of a rule, or of the one that is to be made. */
static uint16_t *look_up(const struct pg_rule_cache *cache, uint32_t owner, uint64_t address)
{
	size_t at = index_start(cache, owner, address);

	for (; cache->index[at]; at = (at + 1) % index_size(cache)) {
		const struct pg_cached_rule *cached = &cache->rules[cache->index[at] - 1];

		if (cached->address == address && cached->owner == owner)
			break;
	}
	return &cache->index[at];
}

/* Twice the room. Sites are found again when they are asked for. */
static bool grow(struct pg_rule_cache *cache)
{
	struct pg_rule_cache grown = *cache;
	uint32_t i;

	if (cache->bits == LAST_BITS)
		return false;
	grown.bits++;
	grown.index = calloc(index_size(&grown), sizeof(*grown.index));
	grown.sites = calloc(site_count(&grown), sizeof(*grown.sites));
	if (!grown.index || !grown.sites) {
		free(grown.index);
		free(grown.sites);
		return false;
	}
	for (i = 0; i < grown.count; i++)
		*look_up(&grown, grown.rules[i].owner, grown.rules[i].address) = (uint16_t)(i + 1);
	free(cache->index);
	free(cache->sites);
	*cache = grown;
	return true;
}

struct pg_cached_rule *pg_cached_rule(struct pg_rule_cache *cache, uint32_t owner, uint64_t address,
				      bool *is_new)
{
	uint16_t *place = look_up(cache, owner, address);
	struct pg_cached_rule *cached;

	*is_new = !*place;
	if (*place)
		return &cache->rules[*place - 1];
	if (cache->count == 1u << cache->bits) {
		if (!grow(cache))
			pg_rule_cache_clear(cache);
		place = look_up(cache, owner, address);
	}
	cached = &cache->rules[cache->count++];
	*place = (uint16_t)cache->count;
	cached->address = address;
	cached->owner = owner;
	return cached;
}

void pg_keep_site(struct pg_rule_cache *cache, uint32_t space, uint64_t address,
		  const struct pg_cached_rule *rule, const struct pg_rule_source *source)
{
	*pg_site_of(cache, space + 1, address) = (struct pg_site){
		.address = address, .owner = space + 1,
		.rule = (uint32_t)(rule - cache->rules), .source = *source,
	};
}
