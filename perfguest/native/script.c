// SPDX-License-Identifier: Apache-2.0
#include "script.h"

#define NUMBERS_ROOM	96	/* cpu, time and period with what stands between, and the empty line */
#define MOST_DIGITS	20

/* Right-justified in at least so many places. */
static char *put_decimal(char *out, int64_t value, int width, char fill)
{
	char digits[MOST_DIGITS + 1], *at = digits + sizeof(digits);
	uint64_t left = value < 0 ? -(uint64_t)value : (uint64_t)value;
	int size;

	do {
		*--at = (char)('0' + left % 10);
		left /= 10;
	} while (left);
	if (value < 0 && fill == '0') {
		*out++ = '-';
		width--;
	} else if (value < 0) {
		*--at = '-';
	}
	size = (int)(digits + sizeof(digits) - at);
	for (; width > size; width--)
		*out++ = fill;
	memcpy(out, at, (size_t)size);
	return out + size;
}

/* Of a time before zero the part behind the point counts up from the whole second below. */
static char *put_time(char *out, int64_t nanoseconds)
{
	int64_t second = nanoseconds / 1000000000, rest = nanoseconds % 1000000000;

	if (rest < 0) {
		second--;
		rest += 1000000000;
	}
	/* Twelve places in all. */
	out = put_decimal(out, second, 5, ' ');
	*out++ = '.';
	return put_decimal(out, rest / 1000, 6, '0');
}

static char *put_stack(char *out, const struct pg_script *script, size_t stack)
{
	int64_t item;

	for (item = script->stacks.start[stack]; item < script->stacks.start[stack + 1]; item++)
		out = pg_put_piece(out, &script->frames, (size_t)script->stacks.items[item]);
	*out++ = '\n';
	return out;
}

size_t pg_script_room(const struct pg_script *script)
{
	size_t room = 0, i;
	int64_t item;

	for (i = 0; i < script->count; i++) {
		const int64_t *start = &script->stacks.start[script->stack[i]];

		room += NUMBERS_ROOM + pg_piece_size(&script->threads, (size_t)script->thread[i]) +
			pg_piece_size(&script->events, (size_t)script->event[i]);
		for (item = start[0]; item < start[1]; item++)
			room += pg_piece_size(&script->frames, (size_t)script->stacks.items[item]);
	}
	return room;
}

size_t pg_script_write(const struct pg_script *script, char *out)
{
	char *begin = out;
	size_t i;

	for (i = 0; i < script->count; i++) {
		out = pg_put_piece(out, &script->threads, (size_t)script->thread[i]);
		if (script->cpu[i] >= 0) {
			*out++ = '[';
			out = put_decimal(out, script->cpu[i], 3, '0');
			*out++ = ']';
			*out++ = ' ';
		}
		out = put_time(out, script->time[i]);
		*out++ = ':';
		*out++ = ' ';
		out = put_decimal(out, script->period[i], 10, ' ');
		*out++ = ' ';
		out = pg_put_piece(out, &script->events, (size_t)script->event[i]);
		out = put_stack(out, script, (size_t)script->stack[i]);
	}
	return (size_t)(out - begin);
}
