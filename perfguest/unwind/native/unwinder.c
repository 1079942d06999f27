// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
#include "unwinder.h"
#include "call.h"

static uint32_t kernel_owner(uint32_t kernel)
{
	return 2 * kernel + 2;
}

static uint32_t binary_owner(uint32_t binary)
{
	return 2 * binary + 1;
}

/*
 * Each address has one place in the cache, and a newcomer takes it: a profile
 * meets few addresses, and those again and again.
 */
struct pg_cached_rule *pg_cache_slot(struct pg_unwinder *unwinder, uint32_t owner, uint64_t address)
{
	uint64_t hash = (address ^ (uint64_t)owner << 40) * 0x9e3779b97f4a7c15ULL;

	return &unwinder->cache[hash >> (64 - PG_CACHE_BITS)];
}

const struct pg_rule *pg_kernel_rule(struct pg_unwinder *unwinder, uint32_t kernel,
				     uint64_t address)
{
	uint32_t owner = kernel_owner(kernel);
	struct pg_cached_rule *slot = pg_cache_slot(unwinder, owner, address);

	if (slot->owner != owner || slot->address != address) {
		slot->owner = owner;
		slot->address = address;
		pg_orc_rule(&unwinder->kernels[kernel]->orc, address, &slot->rule);
	}
	return &slot->rule;
}

const struct pg_rule *pg_user_rule(struct pg_unwinder *unwinder, uint32_t binary, uint64_t vaddr)
{
	uint32_t owner = binary_owner(binary);
	struct pg_cached_rule *slot = pg_cache_slot(unwinder, owner, vaddr);

	if (slot->owner != owner || slot->address != vaddr) {
		slot->owner = owner;
		slot->address = vaddr;
		pg_binary_rule(unwinder->binaries[binary], vaddr, &slot->rule);
	}
	return &slot->rule;
}

bool pg_kernel_call_ends(const struct pg_kernel *kernel, uint64_t address)
{
	size_t low = 0, high = kernel->text_count;
	const struct pg_text *text;
	uint64_t size;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (kernel->texts[middle].address < address)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low)
		return false;
	text = &kernel->texts[low - 1];
	size = address - text->address;
	if (size > text->size)
		return false;
	if (size <= PG_MAX_CALL)
		return pg_call_ends(text->code, size);
	return pg_call_ends(text->code + size - PG_MAX_CALL, PG_MAX_CALL);
}

const struct pg_mapping *pg_find_mapping(const struct pg_space *space, uint64_t address)
{
	size_t low = 0, high = space->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (space->mappings[middle].start <= address)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low || address >= space->mappings[low - 1].end)
		return NULL;
	return &space->mappings[low - 1];
}
