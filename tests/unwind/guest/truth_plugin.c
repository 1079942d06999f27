// SPDX-License-Identifier: Apache-2.0
/* Opened by truth.c while it runs. */
#include <stdint.h>

static volatile uint64_t plugin_sink;

__attribute__((noipa)) static void plugin_inner(void (*function)(uint64_t x), uint64_t x)
{
	char room[200];

	for (unsigned i = 0; i < sizeof(room); i++)
		((volatile char *)room)[i] = (char)x;
	function(x + (uint64_t)room[x % sizeof(room)]);
	plugin_sink++;
}

void plugin_run(void (*function)(uint64_t x), uint64_t x)
{
	plugin_inner(function, x);
	plugin_sink++;
}
