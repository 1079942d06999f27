/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* ELF files that are half sound: tables, and code that they are of. */
#ifndef PERFGUEST_FUZZ_FILE_H
#define PERFGUEST_FUZZ_FILE_H

#include "fuzzing.h"

#define FILE_SIZE	8192
#define TEXT		4096	/* where code begins in the file, and its vaddr */
#define CODE		1024	/* bytes of it that are made of whole instructions */
#define EH_FRAME	1024
#define EH_FRAME_HDR	512

/* FILE_SIZE bytes. Offsets in it are its addresses. */
void make_file(struct input *in, uint8_t *file);

#endif
