// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Near calls of x86-64 (Intel SDM, volume 2, CALL and section 2.1): E8 with 32
 * bits, or FF with 2 in the middle of ModRM. Prefixes stand before and do not
 * matter.
 */
#include "call.h"

#define CALL_RELATIVE	0xe8
#define GROUP_5		0xff
#define GROUP_5_CALL	2

/*
 * Of FF, ModRM, and what ModRM says comes behind it; 0 if that is not in the
 * given bytes, two at least.
 */
static size_t group_5_size(const uint8_t *code, size_t given)
{
	uint8_t mode = code[1] >> 6, rm = code[1] & 7;
	size_t size = 2;

	if (mode == 3)
		return size;
	if (rm == 4 && given < 3)
		return 0;
	if (rm == 4) {
		/* A SIB byte; with base 5 and mode 0 a displacement follows. */
		size++;
		if (!mode && (code[2] & 7) == 5)
			size += 4;
	} else if (!mode && rm == 5) {
		size += 4;
	}
	if (mode == 1)
		size += 1;
	else if (mode == 2)
		size += 4;
	return size;
}

bool pg_call_ends(const uint8_t *code, size_t size)
{
	const uint8_t *end = code + size;
	size_t length;

	if (size >= 5 && end[-5] == CALL_RELATIVE)
		return true;
	for (length = 2; length <= PG_MAX_CALL && length <= size; length++) {
		const uint8_t *at = end - length;

		if (at[0] == GROUP_5 && (at[1] >> 3 & 7) == GROUP_5_CALL &&
		    group_5_size(at, length) == length)
			return true;
	}
	return false;
}
