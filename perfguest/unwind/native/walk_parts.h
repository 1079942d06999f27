/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the files of the walk share. */
#ifndef PERFGUEST_UNWIND_WALK_PARTS_H
#define PERFGUEST_UNWIND_WALK_PARTS_H

#include "step.h"
#include "walk.h"

struct pg_walk {
	struct pg_unwinder *unwinder;
	const struct pg_sample *sample;
	const struct pg_kernel *kernel;	/* NULL: not known */
	const struct pg_space *space;	/* likewise */
	struct pg_machine machine;
	struct pg_frames *frames;
	bool compat;			/* the user part is 32-bit code */
};

void pg_walk_init(struct pg_walk *walk, struct pg_unwinder *unwinder,
		  const struct pg_sample *sample, struct pg_frames *frames);

/* False if there is no room for more. */
static inline bool pg_emit(struct pg_walk *walk, uint64_t address, uint8_t how)
{
	struct pg_frames *frames = walk->frames;

	if (frames->count >= frames->max_depth)
		return false;
	frames->address[frames->count] = address;
	if (frames->sp)
		frames->sp[frames->count] = walk->machine.regs[PG_RSP];
	frames->how[frames->count++] = how;
	return true;
}

/* The kernel's half of the address space, with 4 and 5 levels of page tables. */
static inline bool pg_is_kernel_address(uint64_t address)
{
	return address >= 0xff00000000000000ULL;
}

static inline bool pg_is_user_address(uint64_t address)
{
	return address < 0x0100000000000000ULL;
}

/* The first word at or above an address: compilers keep stacks aligned. */
static inline uint64_t pg_align_word(uint64_t address)
{
	return (address + 7) & ~7ULL;
}

/* With PG_END_USER_ENTRY the registers are the user's. */
enum pg_end pg_walk_kernel(struct pg_walk *walk);
enum pg_end pg_walk_user(struct pg_walk *walk);

/*
 * pt_regs at the top of a kernel stack (here: of the one that the walk has come
 * to); true if the registers are the user's.
 */
bool pg_find_user_regs(struct pg_walk *walk, bool here);

/*
 * In the first and last instructions of the kernel, which are ends to ORC: true
 * if the registers are the user's.
 */
bool pg_find_edge_regs(struct pg_walk *walk);

/* Sets walk->compat; false if no code runs with this code segment in user mode. */
bool pg_set_user_mode(struct pg_walk *walk, uint16_t cs);

/* The mapping of an address that could be code; NULL if none. */
const struct pg_mapping *pg_find_code(const struct pg_walk *walk, uint64_t address);

enum pg_proof {
	PG_NO_CALL,
	PG_CALL,
	PG_CANNOT_TELL,		/* no file, or the page is not there */
};

/* Does address, in that mapping, lie behind a call? */
enum pg_proof pg_user_call_ends(const struct pg_walk *walk, const struct pg_mapping *mapping,
				uint64_t address);

/* Is the word where the Go runtime has a goroutine's first function return to? */
bool pg_is_goroutines_end(const struct pg_walk *walk, uint64_t word);

/* False if the call before the word is of a function that does not lead to RIP. */
bool pg_could_have_called(const struct pg_walk *walk, uint64_t word);

/* Is what a step has come to a caller of the code at RIP? exact: or was that interrupted? */
bool pg_is_proven(const struct pg_walk *walk, const struct pg_machine *next, bool exact);

enum pg_by_code {
	PG_BY_CODE_NOT,
	PG_BY_CODE_STEP,
	PG_BY_CODE_OUTERMOST,	/* nothing called the code here */
};

/* Each sample may have some more code looked at. */
void pg_grant_code(struct pg_walk *walk);

/* One step by what the user's code at RIP does from here on. *exact: is RIP more than a return address? */
enum pg_by_code pg_step_by_code(struct pg_walk *walk, bool *exact);

#endif
