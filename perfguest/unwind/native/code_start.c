// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Code that is known by what it does: where programs, threads, goroutines and main() begin, where handlers of signals end. */
#include "code_search.h"
#include "code_start.h"

#define MAX_ENTRY	64	/* bytes of the code at an entry point */
#define MAX_INSNS	24	/* from there to the first call */
#define MAX_EXIT	4	/* that end a thread */
#define MAX_BEGIN	12	/* of a new thread, to its first call */
#define MAX_BEGIN_SIZE	32	/* in bytes */

#define SYS_exit	60

#define NOP			0x90
#define CALL_RELATIVE		0xe8
#define GOEXIT_SIZE		7
#define FUNCTION_ALIGNMENT	16

/* mov $15,%rax; syscall: what debuggers know the handler's return by, too. */
static const uint8_t sigreturn[PG_SIGRETURN_SIZE] = {
	0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05,
};

bool pg_code_is_sigreturn(const struct pg_binary *binary, uint64_t offset)
{
	struct pg_bytes code;

	pg_file_view_some(&binary->file, offset, PG_SIGRETURN_SIZE, &code);
	return pg_bytes_left(&code) == PG_SIGRETURN_SIZE && !memcmp(code.at, sigreturn, PG_SIGRETURN_SIZE);
}

/*
 * nop; call; nop (runtime.goexit): goroutines begin as if the first of these
 * had called them, so that what looks for their caller finds this.
 */
bool pg_code_ends_goroutine(const struct pg_binary *binary, uint64_t offset)
{
	struct pg_bytes code;

	if (offset % FUNCTION_ALIGNMENT != 1)
		return false;
	pg_file_view_some(&binary->file, offset - 1, GOEXIT_SIZE, &code);
	return pg_bytes_left(&code) == GOEXIT_SIZE && code.at[0] == NOP &&
	       code.at[1] == CALL_RELATIVE && code.at[GOEXIT_SIZE - 1] == NOP;
}

/*
 * Entry points begin with what nothing else does: clearing the outermost
 * frame's pointer as the ABI asks (System V ABI AMD64, 3.4.1), or taking the
 * stack pointer for an argument.
 */
enum pg_entry_kind pg_code_entry_kind(const struct pg_binary *binary, uint64_t offset)
{
	static const uint8_t endbr64[] = { 0xf3, 0x0f, 0x1e, 0xfa };
	static const uint8_t xor_ebp[] = { 0x31, 0xed }, xor_rbp[] = { 0x48, 0x31, 0xed };
	static const uint8_t mov_rsp_rdi[] = { 0x48, 0x89, 0xe7 };
	struct pg_bytes code;
	uint64_t entry;

	if (!pg_vaddr_to_offset(binary, binary->entry, &entry) || offset - entry >= MAX_ENTRY)
		return PG_ENTRY_NONE;
	pg_file_view_some(&binary->file, entry, 8, &code);
	if (pg_bytes_left(&code) < 8)
		return PG_ENTRY_NONE;
	if (!memcmp(code.at, endbr64, sizeof(endbr64)))
		code.at += sizeof(endbr64);
	if (!memcmp(code.at, mov_rsp_rdi, sizeof(mov_rsp_rdi)))
		return PG_ENTRY_LOADER;
	return !memcmp(code.at, xor_ebp, sizeof(xor_ebp)) || !memcmp(code.at, xor_rbp, sizeof(xor_rbp)) ?
		       PG_ENTRY_PROGRAM : PG_ENTRY_NONE;
}

/* Where the code goes on elsewhere for the first time, from offset on. False if it cannot be followed. */
static bool find_departure(const struct pg_binary *binary, struct pg_code_state *state,
			   uint64_t *offset, struct pg_insn *insn)
{
	struct pg_bytes code;
	int i;

	for (i = 0; i < MAX_INSNS; i++, *offset += insn->length) {
		pg_file_view_some(&binary->file, *offset, PG_MAX_INSN, &code);
		if (!pg_decode(code.at, pg_bytes_left(&code), insn))
			return false;
		if (pg_is_call(insn) || pg_is_jump(insn))
			return true;
		pg_code_apply(state, insn, *offset);
	}
	return false;
}

bool pg_code_follows_entry(const struct pg_binary *binary, uint64_t offset)
{
	struct pg_code_state state;
	struct pg_insn insn;
	uint64_t at;

	if (pg_code_entry_kind(binary, offset) != PG_ENTRY_PROGRAM ||
	    !pg_vaddr_to_offset(binary, binary->entry, &at))
		return false;
	pg_code_begin(&state);
	return find_departure(binary, &state, &at, &insn) && pg_is_call(&insn) &&
	       at + insn.length == offset;
}

bool pg_code_find_main(const struct pg_binary *binary, uint64_t *main)
{
	const struct pg_segment *text;
	struct pg_code_state state;
	struct pg_insn insn;
	uint64_t offset;
	int functions;

	if (!pg_vaddr_to_offset(binary, binary->entry, &offset))
		return false;
	text = pg_text_segment(binary, offset);
	pg_code_begin(&state);
	/* In musl's the one that the entry point calls, which is called with the stack's. */
	for (functions = 0; text && functions < 2; functions++) {
		const struct pg_value *first = &state.regs[PG_RDI];

		if (!find_departure(binary, &state, &offset, &insn))
			return false;
		*main = (uint64_t)first->offsets[0];
		if (first->kind == PG_VALUE_CONSTANT)
			*main -= text->vaddr - text->offset;
		if (first->kind == PG_VALUE_CONSTANT || first->kind == PG_VALUE_PLACE)
			return *main - text->offset < text->size;
		if (insn.opcode != CALL_RELATIVE)
			return false;
		offset += insn.length + (uint64_t)insn.immediate;
	}
	return false;
}

static bool is_syscall(const struct pg_insn *insn)
{
	return insn->map == PG_MAP_0F && !insn->vector && insn->opcode == 0x05;
}

bool pg_code_ends_thread(const struct pg_binary *binary, uint64_t offset)
{
	struct pg_code_state state;
	struct pg_bytes code;
	struct pg_insn insn;
	int i;

	pg_code_begin(&state);
	for (i = 0; i < MAX_EXIT; i++) {
		pg_file_view_some(&binary->file, offset, PG_MAX_INSN, &code);
		if (!pg_decode(code.at, pg_bytes_left(&code), &insn) || insn.vector)
			return false;
		if (is_syscall(&insn))
			return pg_is_constant(&state.regs[PG_RAX], SYS_exit);
		/* MOV and XOR alone. */
		if (insn.map != PG_MAP_ONE ||
		    !(insn.opcode == 0x89 || insn.opcode == 0x31 || (insn.opcode & 0xf0) == 0xb0))
			return false;
		pg_code_apply(&state, &insn, offset);
		offset += insn.length;
	}
	return false;
}

/* Jcc, by the flags that a test of 0 leaves: ZF and PF. */
static bool is_taken(const struct pg_insn *insn)
{
	const unsigned int conditions = 0x665a;
	bool is_short = insn->map == PG_MAP_ONE && (insn->opcode & 0xf0) == 0x70;
	bool is_near = insn->map == PG_MAP_0F && (insn->opcode & 0xf0) == 0x80;

	return !insn->vector && (is_short || is_near) && conditions >> (insn->opcode & 15) & 1;
}

/* From behind a system call that has given 0 over wanted to a call that is the thread's first. */
static bool leads_to_thread(const struct pg_binary *binary, uint64_t offset, uint64_t wanted)
{
	struct pg_bytes code;
	struct pg_insn insn;
	bool met = false;
	int i;

	for (i = 0; i < MAX_BEGIN; i++) {
		met |= offset == wanted;
		pg_file_view_some(&binary->file, offset, PG_MAX_INSN, &code);
		if (!pg_decode(code.at, pg_bytes_left(&code), &insn) || is_syscall(&insn))
			return false;
		offset += insn.length;
		if (pg_is_call(&insn))
			return met && pg_code_ends_thread(binary, offset);
		if (is_taken(&insn))
			offset += (uint64_t)insn.immediate;
		else if (pg_is_jump(&insn))
			return false;
	}
	return false;
}

bool pg_code_begins_thread(const struct pg_binary *binary, uint64_t offset)
{
	static const uint8_t syscall[] = { 0x0f, 0x05 };
	struct pg_bytes code;
	uint64_t behind;

	for (behind = 0; behind < MAX_BEGIN_SIZE && behind + sizeof(syscall) <= offset; behind++) {
		pg_file_view_some(&binary->file, offset - behind - sizeof(syscall), sizeof(syscall), &code);
		if (pg_bytes_left(&code) == sizeof(syscall) && !memcmp(code.at, syscall, sizeof(syscall)) &&
		    leads_to_thread(binary, offset - behind, offset))
			return true;
	}
	return false;
}
