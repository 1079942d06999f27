/* SPDX-License-Identifier: Apache-2.0 */
/* Lines of ADDRESS TYPE NAME, as /proc/kallsyms has them, some with a tab and the module behind. */
#ifndef PG_KALLSYMS_H
#define PG_KALLSYMS_H

#include <stddef.h>
#include <stdint.h>

/* Columns by line, with room for all of them. Offsets are of the text. */
struct pg_kallsyms {
	uint64_t *address;
	uint8_t *type;
	int64_t *name;
	int64_t *name_end;	/* where the tab is, or the line's end */
	int64_t *line_end;
};

/* Lines end at newlines only: a hostile name may hold anything else. What stands behind the last newline is no line. */
size_t pg_kallsyms_lines(const char *text, size_t size);
/* width: digits of an address. Gives how many lines are as they should be before one that is not. */
size_t pg_kallsyms_read(const char *text, size_t size, size_t width, const struct pg_kallsyms *out);

#endif
