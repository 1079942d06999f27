/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Code that is known by what it does: where programs, threads, goroutines and main() begin, where handlers of signals end. */
#ifndef PERFGUEST_UNWIND_CODE_START_H
#define PERFGUEST_UNWIND_CODE_START_H

#include "binary.h"

#define PG_SIGRETURN_SIZE	9

/* Is it what returns from a signal's handler? */
bool pg_code_is_sigreturn(const struct pg_binary *binary, uint64_t offset);

/* Is it what the Go runtime has a goroutine's first function return to? */
bool pg_code_ends_goroutine(const struct pg_binary *binary, uint64_t offset);

enum pg_entry_kind {
	PG_ENTRY_NONE,		/* not the code at the file's entry point */
	PG_ENTRY_PROGRAM,
	PG_ENTRY_LOADER,	/* goes on to a program */
};

enum pg_entry_kind pg_code_entry_kind(const struct pg_binary *binary, uint64_t offset);

/* Does the code at offset do nothing but end the thread? So does what is behind a thread's first call. */
bool pg_code_ends_thread(const struct pg_binary *binary, uint64_t offset);

/*
 * Is it what a thread begins with that the system call just before it has made?
 * RAX is 0 there, which its maker does not get.
 */
bool pg_code_begins_thread(const struct pg_binary *binary, uint64_t offset);

/* Is it behind the first call in the code at a program's entry point? That does not return. */
bool pg_code_follows_entry(const struct pg_binary *binary, uint64_t offset);

/* Where main() is: the code at a program's entry point gives it as its first argument. */
bool pg_code_find_main(const struct pg_binary *binary, uint64_t *main);

#endif
