// SPDX-License-Identifier: Apache-2.0
/* Linked with truth.c: called through its PLT. */
#include <stdint.h>

static volatile uint64_t library_sink;

unsigned long library_mix(unsigned long x)
{
	return x * 6364136223846793005UL + 1442695040888963407UL;
}

__attribute__((noipa)) void library_call(void (*function)(uint64_t x), uint64_t x)
{
	function(x);
	library_sink++;
}
