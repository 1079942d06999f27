// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Code on stdin; for each byte of it a byte on stdout: the length of the instruction that begins there, 0 if none does. */
#include <stdio.h>
#include <stdlib.h>

#include "x86_decode.h"

int main(void)
{
	size_t size = 0, room = 1 << 16, got, i;
	uint8_t *code = malloc(room);

	while (code && (got = fread(code + size, 1, room - size, stdin)) > 0) {
		size += got;
		if (size == room)
			code = realloc(code, room *= 2);
	}
	if (!code)
		return 1;
	for (i = 0; i < size; i++) {
		struct pg_insn insn;

		putchar(pg_decode(code + i, size - i, &insn) ? insn.length : 0);
	}
	free(code);
	return fflush(stdout);
}
