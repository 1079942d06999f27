// SPDX-License-Identifier: Apache-2.0
#include "pprof.h"

#include <stdbool.h>

/* Field number << 3 | wire type: 0 a number, 2 bytes of a length that stands before them. */
enum {
	PROFILE_SAMPLE = 2 << 3 | 2,
	PROFILE_LOCATION = 4 << 3 | 2,
	SAMPLE_LOCATION_ID = 1 << 3 | 2,
	SAMPLE_VALUE = 2 << 3 | 2,
	LOCATION_ID = 1 << 3,
	LOCATION_MAPPING_ID = 2 << 3,
	LOCATION_ADDRESS = 3 << 3,
	LOCATION_LINE = 4 << 3 | 2,
	LINE_FUNCTION_ID = 1 << 3,
};

static inline size_t varint_size(uint64_t value)
{
	return (size_t)(63 - __builtin_clzll(value | 1)) / 7 + 1;
}

static inline uint8_t *put_varint(uint8_t *out, uint64_t value)
{
	for (; value >= 128; value >>= 7)
		*out++ = (uint8_t)(value | 128);
	*out++ = (uint8_t)value;
	return out;
}

static inline size_t number_size(uint64_t value)
{
	return value ? 1 + varint_size(value) : 0;
}

static inline uint8_t *put_number(uint8_t *out, uint8_t tag, uint64_t value)
{
	if (!value)
		return out;
	*out++ = tag;
	return put_varint(out, value);
}

static inline uint8_t *put_head(uint8_t *out, uint8_t tag, size_t size)
{
	*out++ = tag;
	return put_varint(out, size);
}

size_t pg_pprof_locations(const struct pg_locations *locations, uint8_t *out)
{
	size_t total = 0, i;

	for (i = 0; i < locations->count; i++) {
		uint64_t id = locations->first_id + i, mapping = (uint64_t)locations->mapping[i];
		uint64_t function = (uint64_t)locations->function[i];
		size_t line = number_size(function);
		size_t size = number_size(id) + number_size(mapping) + number_size(locations->address[i]) +
			      (function ? 2 + line : 0);

		total += 1 + varint_size(size) + size;
		if (!out)
			continue;
		out = put_head(out, PROFILE_LOCATION, size);
		out = put_number(out, LOCATION_ID, id);
		out = put_number(out, LOCATION_MAPPING_ID, mapping);
		out = put_number(out, LOCATION_ADDRESS, locations->address[i]);
		if (function)
			out = put_number(put_head(out, LOCATION_LINE, line), LINE_FUNCTION_ID, function);
	}
	return total;
}

size_t pg_pprof_samples(const struct pg_samples *samples, uint8_t *out)
{
	size_t total = 0, i, k;

	for (i = 0; i < samples->count; i++) {
		const int64_t *start = &samples->stacks.start[samples->stack[i]];
		const int64_t *values = samples->values + i * samples->value_count;
		size_t ids = 0, numbers = 0, size;
		int64_t item;

		for (item = start[0]; item < start[1]; item++)
			ids += varint_size((uint64_t)samples->stacks.items[item] + 1);
		for (k = 0; k < samples->value_count; k++)
			numbers += varint_size((uint64_t)values[k]);
		size = (ids ? 1 + varint_size(ids) + ids : 0) + (numbers ? 1 + varint_size(numbers) + numbers : 0) +
		       pg_piece_size(&samples->labels, (size_t)samples->label[i]);
		total += 1 + varint_size(size) + size;
		if (!out)
			continue;
		out = put_head(out, PROFILE_SAMPLE, size);
		if (ids)
			out = put_head(out, SAMPLE_LOCATION_ID, ids);
		for (item = start[0]; item < start[1]; item++)
			out = put_varint(out, (uint64_t)samples->stacks.items[item] + 1);
		if (numbers)
			out = put_head(out, SAMPLE_VALUE, numbers);
		for (k = 0; k < samples->value_count; k++)
			out = put_varint(out, (uint64_t)values[k]);
		out = (uint8_t *)pg_put_piece((char *)out, &samples->labels, (size_t)samples->label[i]);
	}
	return total;
}
