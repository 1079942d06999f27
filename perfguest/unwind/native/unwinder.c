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

const struct pg_rule *pg_kernel_rule(struct pg_unwinder *unwinder, uint32_t kernel,
				     uint64_t address)
{
	struct pg_cached_rule *cached;
	bool is_new;

	cached = pg_cached_rule(&unwinder->cache, kernel_owner(kernel), address, &is_new);
	if (is_new)
		pg_orc_rule(&unwinder->kernels[kernel]->orc, address, &cached->rule);
	return &cached->rule;
}

const struct pg_cached_rule *pg_user_rule(struct pg_unwinder *unwinder, uint32_t binary,
					  uint64_t vaddr)
{
	struct pg_cached_rule *cached;
	bool is_new;

	cached = pg_cached_rule(&unwinder->cache, binary_owner(binary), vaddr, &is_new);
	if (is_new)
		pg_binary_rule(unwinder->binaries[binary], vaddr, &cached->rule);
	return cached;
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
