/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Does a call end right here? The proof that a word is a return address. */
#ifndef PERFGUEST_UNWIND_CALL_H
#define PERFGUEST_UNWIND_CALL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PG_MAX_CALL	7

/* code: the size bytes before the address, at most PG_MAX_CALL of which matter. */
bool pg_call_ends(const uint8_t *code, size_t size);

#endif
