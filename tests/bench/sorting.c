// SPDX-License-Identifier: Apache-2.0
/* Sorts for argv[1] seconds: through the C library's qsort, some calls deep, without frame pointers. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define COUNT	20000
#define DEPTH	12

struct entry {
	char key[24];
};

static struct entry entries[COUNT];

static __attribute__((noinline)) int compare(const void *left, const void *right)
{
	return strcmp(((const struct entry *)left)->key, ((const struct entry *)right)->key);
}

static __attribute__((noinline)) unsigned int fill(uint64_t seed)
{
	unsigned int sum = 0;
	int i;

	for (i = 0; i < COUNT; i++) {
		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		sum += snprintf(entries[i].key, sizeof(entries[i].key), "%016llx", (unsigned long long)seed);
	}
	return sum;
}

static __attribute__((noinline)) unsigned int nest(int depth, uint64_t seed)
{
	unsigned int sum;

	if (depth)
		return nest(depth - 1, seed * 3 + depth) + 1;
	sum = fill(seed);
	qsort(entries, COUNT, sizeof(entries[0]), compare);
	return sum + entries[COUNT / 2].key[0];
}

int main(int argc, char **argv)
{
	time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 1);
	unsigned int sum = 0;

	while (time(NULL) < end)
		sum += nest(DEPTH, sum);
	return printf("%u\n", sum) < 0;
}
