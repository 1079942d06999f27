// SPDX-License-Identifier: Apache-2.0
#include "records.h"

#include <stdlib.h>

#include "bytes.h"

#define HEADER_BYTES	8
#define ROOM_AT_FIRST	4096

/* enum perf_user_event_type in tools/perf/util/event.h of the kernel's source. */
enum { FIRST_USER_TYPE = 64, TRACING_DATA = 66, AUXTRACE = 71, COMPRESSED = 81, COMPRESSED2 = 83 };

static bool grow(struct pg_records *records)
{
	size_t room = records->room ? 2 * records->room : ROOM_AT_FIRST;
	uint64_t *heads = realloc(records->heads, room * sizeof(*heads));
	int64_t *offsets;

	if (!heads)
		return false;
	records->heads = heads;
	offsets = realloc(records->offsets, room * sizeof(*offsets));
	if (!offsets)
		return false;
	records->offsets = offsets;
	records->room = room;
	return true;
}

/* Two kinds of record are followed by bytes that their header's size does not count. */
static uint64_t payload_behind(const uint8_t *record, uint32_t type, uint64_t size)
{
	if (type == AUXTRACE && size >= 16)
		return pg_word(record + 8);
	if (type == TRACING_DATA && size >= 12)
		return ((uint64_t)pg_half(record + 8) + 7) & ~7ULL;
	return 0;
}

bool pg_records_walk(struct pg_records *records, const uint8_t *data, uint64_t start, uint64_t end)
{
	uint64_t position = start;

	memset(records, 0, sizeof(*records));
	while (position <= end && end - position >= HEADER_BYTES) {
		uint64_t head = pg_word(data + position), size = head >> 48, following;
		uint32_t type = (uint32_t)head;

		if (size < HEADER_BYTES || size > end - position) {
			records->bad_size = true;
			break;
		}
		if (records->count == records->room && !grow(records))
			return false;
		records->heads[records->count] = head;
		records->offsets[records->count++] = (int64_t)position;
		following = position + size;
		if (type >= FIRST_USER_TYPE) {
			uint64_t payload = payload_behind(data + position, type, size);

			records->compressed |= type == COMPRESSED || type == COMPRESSED2;
			following = payload > UINT64_MAX - following ? UINT64_MAX : following + payload;
		}
		position = following;
	}
	records->position = position;
	return true;
}

void pg_records_free(struct pg_records *records)
{
	free(records->heads);
	free(records->offsets);
	memset(records, 0, sizeof(*records));
}
