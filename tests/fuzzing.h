/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What fuzzers of pure C share: bytes that are used up, and numbers by chance. */
#ifndef PERFGUEST_FUZZING_H
#define PERFGUEST_FUZZING_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct input {
	const uint8_t *bytes;
	size_t size;
};

static inline void expect(int good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "fuzzing: %s\n", what);
	abort();
}

/* Behind the input's end there are zeros. */
static inline void take(struct input *in, void *to, size_t size)
{
	size_t got = size < in->size ? size : in->size;

	memset(to, 0, size);
	if (got)
		memcpy(to, in->bytes, got);
	in->bytes += got;
	in->size -= got;
}

static inline uint64_t take64(struct input *in)
{
	uint64_t value;

	take(in, &value, sizeof(value));
	return value;
}

static inline uint32_t pick(struct input *in, uint32_t below)
{
	uint16_t value;

	take(in, &value, sizeof(value));
	return value % below;
}

/* In memory of exactly that size. */
static inline void *copy_of(const void *bytes, size_t size)
{
	void *copy = malloc(size ? size : 1);

	if (size)
		memcpy(copy, bytes, size);
	return copy;
}

/* xorshift64: the same seed gives the same run anywhere. */
static inline uint64_t random64(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

#endif
