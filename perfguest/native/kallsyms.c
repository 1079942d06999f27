// SPDX-License-Identifier: Apache-2.0
#include "kallsyms.h"

#include <stdbool.h>
#include <string.h>

size_t pg_kallsyms_lines(const char *text, size_t size)
{
	const char *end = text + size;
	size_t lines = 0;

	while (text < end && (text = memchr(text, '\n', (size_t)(end - text)))) {
		lines++;
		text++;
	}
	return lines;
}

static int digit(char byte)
{
	if (byte >= '0' && byte <= '9')
		return byte - '0';
	if (byte >= 'a' && byte <= 'f')
		return byte - 'a' + 10;
	return byte >= 'A' && byte <= 'F' ? byte - 'A' + 10 : -1;
}

static bool read_address(const char *line, size_t width, uint64_t *address)
{
	uint64_t value = 0;
	size_t i;

	for (i = 0; i < width; i++) {
		int one = digit(line[i]);

		if (one < 0)
			return false;
		value = value << 4 | (uint64_t)one;
	}
	*address = value;
	return true;
}

size_t pg_kallsyms_read(const char *text, size_t size, size_t width, const struct pg_kallsyms *out)
{
	const char *line = text, *end = text + size, *newline, *tab;
	size_t lines = 0;

	for (; line < end && (newline = memchr(line, '\n', (size_t)(end - line))); line = newline + 1) {
		const char *name = line + width + 3;

		/* A space, the type, a space, and one character of a name at least. */
		if ((size_t)(newline - line) < width + 4 || !read_address(line, width, &out->address[lines]) ||
		    line[width] != ' ' || line[width + 2] != ' ')
			break;
		tab = memchr(name, '\t', (size_t)(newline - name));
		out->type[lines] = (uint8_t)line[width + 1];
		out->name[lines] = name - text;
		out->name_end[lines] = (tab ? tab : newline) - text;
		out->line_end[lines++] = newline - text;
	}
	return lines;
}
