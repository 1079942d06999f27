/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * A cursor over bytes that nobody vouches for. A read beyond the end gives 0
 * and leaves the cursor broken, so that a parser may read on and ask once.
 */
#ifndef PERFGUEST_UNWIND_BYTES_H
#define PERFGUEST_UNWIND_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct pg_bytes {
	const uint8_t *at;
	const uint8_t *end;
	bool broken;
};

static inline size_t pg_bytes_left(const struct pg_bytes *b)
{
	return (size_t)(b->end - b->at);
}

static inline const uint8_t *pg_take(struct pg_bytes *b, uint64_t size)
{
	const uint8_t *at = b->at;

	if (size > pg_bytes_left(b)) {
		b->broken = true;
		b->at = b->end;
		return NULL;
	}
	b->at += size;
	return at;
}

#define PG_DEFINE_TAKE(name, type)				\
static inline type name(struct pg_bytes *b)			\
{								\
	const uint8_t *at = pg_take(b, sizeof(type));		\
	type value = 0;						\
								\
	if (at)							\
		memcpy(&value, at, sizeof(value));		\
	return value;						\
}

PG_DEFINE_TAKE(pg_take_u8, uint8_t)
PG_DEFINE_TAKE(pg_take_u16, uint16_t)
PG_DEFINE_TAKE(pg_take_u32, uint32_t)
PG_DEFINE_TAKE(pg_take_u64, uint64_t)

/* LEB128 of DWARF; bits beyond the 64th are dropped. */
static inline uint64_t pg_take_leb(struct pg_bytes *b, bool is_signed)
{
	uint64_t value = 0;
	unsigned int shift = 0;
	uint8_t byte;

	do {
		byte = pg_take_u8(b);
		if (shift < 64)
			value |= (uint64_t)(byte & 0x7f) << shift;
		shift += 7;
	} while (byte & 0x80);
	if (is_signed && (byte & 0x40) && shift < 64)
		value |= ~0ULL << shift;
	return value;
}

static inline uint64_t pg_take_uleb(struct pg_bytes *b)
{
	return pg_take_leb(b, false);
}

static inline int64_t pg_take_sleb(struct pg_bytes *b)
{
	return (int64_t)pg_take_leb(b, true);
}

#endif
