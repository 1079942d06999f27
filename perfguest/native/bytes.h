/* SPDX-License-Identifier: Apache-2.0 */
/* Little-endian words at any offset. */
#ifndef PG_NATIVE_BYTES_H
#define PG_NATIVE_BYTES_H

#include <stdint.h>
#include <string.h>

static inline uint64_t pg_word(const uint8_t *at)
{
	uint64_t word;

	memcpy(&word, at, sizeof(word));
	return word;
}

static inline uint32_t pg_half(const uint8_t *at)
{
	uint32_t word;

	memcpy(&word, at, sizeof(word));
	return word;
}

#endif
