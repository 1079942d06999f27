// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Ways are followed cheapest first, by their instructions; a call counts as
 * many, so that of two ways the one is found that has none, which could be one
 * that never returns.
 */
#include <stddef.h>
#include <string.h>

#include "code_search.h"

#define MAX_VISITS	3	/* of one instruction */
#define MAX_CASES	64
#define MAX_REACH	(1 << 18)	/* bytes to a case of a switch */
#define CALL_COST	24

#define SYS_rt_sigreturn	15
#define SYS_exit		60
#define SYS_exit_group		231

/* What tells visits of a place apart: behind a call that never returns the stack is another. */
static uint32_t stack_of(const struct pg_code_state *state)
{
	const struct pg_value *sp = &state->regs[PG_RSP];

	if (sp->kind != PG_VALUE_REGISTER)
		return 0;
	return (uint32_t)sp->offsets[sp->depth] << 8 | (uint32_t)sp->base << 4 | (sp->depth + 1u);
}

/* False if all that comes was seen already. A loop may leave the stack another each time. */
static bool visit(struct pg_code_search *s, const struct pg_code_path *path)
{
	struct pg_code_visited now = { (uint32_t)path->place, stack_of(&path->state), true };
	uint32_t slot = now.place * 0x9e3779b1u >> (32 - PG_VISITED_BITS);
	unsigned int visits = 0;

	/* PG_MAX_INSNS is far below their number, so an empty one is found. */
	for (; s->visited[slot].used; slot = (slot + 1) & ((1 << PG_VISITED_BITS) - 1)) {
		if (s->visited[slot].place != now.place)
			continue;
		if (s->visited[slot].stack == now.stack || ++visits == MAX_VISITS)
			return false;
	}
	s->visited[slot] = now;
	return true;
}

static bool is_code(const struct pg_code_search *s, uint64_t place)
{
	return !s->text || place - s->text->offset < s->text->size;
}

/* Remembers a way to follow later; if there are too many, not the longest. */
static void add_path(struct pg_code_search *s, const struct pg_code_path *path, uint64_t place,
		     uint32_t cost)
{
	unsigned int at = 0, i;

	if (!is_code(s, place)) {
		s->uncertain = true;
		return;
	}
	cost += path->cost;
	if (s->path_count < PG_MAX_PATHS) {
		at = s->path_count++;
	} else {
		s->uncertain = true;
		for (i = 1; i < PG_MAX_PATHS; i++)
			if (s->costs[i] > s->costs[at])
				at = i;
		if (s->costs[at] <= cost)
			return;
	}
	s->costs[at] = cost;
	s->paths[at] = *path;
	s->paths[at].place = place;
	s->paths[at].cost = cost;
}

static bool take_path(struct pg_code_search *s, struct pg_code_path *path)
{
	unsigned int best = 0, i;

	if (!s->path_count)
		return false;
	for (i = 1; i < s->path_count; i++)
		if (s->costs[i] < s->costs[best])
			best = i;
	*path = s->paths[best];
	s->path_count--;
	s->costs[best] = s->costs[s->path_count];
	s->paths[best] = s->paths[s->path_count];
	return true;
}

/* What stands at vaddr: as much as is there, perhaps nothing. */
static void view_table(const struct pg_code_search *s, uint64_t vaddr, uint64_t size, struct pg_bytes *bytes)
{
	uint64_t offset;

	memset(bytes, 0, sizeof(*bytes));
	if (pg_vaddr_to_offset(s->binary, vaddr, &offset))
		pg_file_view_some(&s->binary->file, offset, size, bytes);
}

/* Ways through a switch: entries are 32 bits and relative to the table, or 64 bits. */
static void add_cases(struct pg_code_search *s, const struct pg_code_path *path, uint64_t table, bool relative)
{
	uint64_t size = relative ? 4 : 8, bias, target;
	uint32_t i, count = path->cases;
	struct pg_bytes bytes;

	/* Of whole addresses it is seen where they end. */
	if (!count && !relative) {
		count = MAX_CASES;
		s->uncertain = true;
	}
	if (!s->text || !count) {
		s->uncertain = true;
		return;
	}
	bias = s->text->vaddr - s->text->offset;
	if (relative)
		table += bias;
	view_table(s, table, count * size, &bytes);
	s->missing |= pg_bytes_left(&bytes) < count * size;
	for (i = 0; i < count && pg_bytes_left(&bytes) >= size; i++) {
		target = relative ? table + (uint64_t)(int64_t)(int32_t)pg_take_u32(&bytes) :
				    pg_take_u64(&bytes);
		if (!path->cases && target - bias - path->place + MAX_REACH > 2 * MAX_REACH)
			return;
		add_path(s, path, target - bias, 1);
		s->insns++;
	}
}

static void jump_indirect(struct pg_code_search *s, const struct pg_code_path *path, const struct pg_insn *insn)
{
	const struct pg_value *target = &path->state.regs[insn->rm];

	if (insn->mod == 3 && target->kind == PG_VALUE_CASE) {
		add_cases(s, path, (uint64_t)target->offsets[0], true);
	} else if (insn->mod == 3 && target->kind == PG_VALUE_ADDRESS) {
		add_cases(s, path, (uint64_t)target->offsets[0], false);
	} else if (insn->mod != 3 && insn->base == PG_NO_REGISTER && insn->scale == 8) {
		add_cases(s, path, (uint64_t)insn->displacement, false);
	} else if (insn->mod != 3 && insn->base == PG_RIP) {
		/* The PLT, to wherever. Until it is resolved, its head has pushed two words. */
		s->uncertain = true;
		pg_code_end_function(s, path, path->resolves ? 16 : 0, false);
	} else {
		/* A function that ends with another's call, or a way that cannot be followed. */
		s->uncertain = true;
		pg_code_end_function(s, path, 0, true);
	}
}

static void call(struct pg_code_path *path, const struct pg_insn *insn)
{
	static const struct pg_insn push = { .opcode = 0x6a };

	/* To the instruction behind it: code that asks where it is. */
	if (insn->opcode == 0xe8 && !insn->immediate)
		pg_code_apply(&path->state, &push, 0);
	else
		pg_code_call(&path->state, insn->opcode == 0xe8);
	path->cost += CALL_COST;
}

/* CMP with a constant, and then JA. */
static void note_comparison(struct pg_code_path *path, const struct pg_insn *insn)
{
	uint8_t opcode = insn->opcode;
	bool is_ja = (insn->map == PG_MAP_ONE && opcode == 0x77) ||
		     (insn->map == PG_MAP_0F && opcode == 0x87);
	bool is_cmp = insn->map == PG_MAP_ONE &&
		      (opcode == 0x3c || opcode == 0x3d ||
		       ((opcode == 0x80 || opcode == 0x81 || opcode == 0x83) && (insn->reg & 7) == 7));

	if (is_cmp && insn->immediate >= 0 && insn->immediate < MAX_CASES)
		path->cases = (uint32_t)insn->immediate + 1;
	else if (is_cmp || (!is_ja && (insn->map == PG_MAP_ONE ? (opcode & 0xf0) == 0x70 :
							   (opcode & 0xf0) == 0x80)))
		path->cases = 0;
}

enum { ON, AWAY };

/* An opcode of two bytes that does not simply go on. */
static int follow_0f(struct pg_code_search *s, struct pg_code_path *path, const struct pg_insn *insn, uint64_t next)
{
	const struct pg_value *number = &path->state.regs[PG_RAX];

	switch (insn->opcode) {
	case 0x05:
		if (s->wanted != PG_TO_THE_END)
			return ON;
		if (pg_is_constant(number, SYS_exit) || pg_is_constant(number, SYS_exit_group))
			return AWAY;
		if (!pg_is_constant(number, SYS_rt_sigreturn))
			return ON;
		pg_code_end_handler(s, path);
		return AWAY;
	case 0x80 ... 0x8f:
		add_path(s, path, next + (uint64_t)insn->immediate, 1);
		return ON;
	case 0x07:	/* SYSRET, UD2, SYSEXIT, RSM, UD1, UD0 */
	case 0x0b:
	case 0x35:
	case 0xaa:
	case 0xb9:
	case 0xff:
		return AWAY;
	}
	return ON;
}

/* An instruction that does not simply go on. *next: where it does. */
static int follow(struct pg_code_search *s, struct pg_code_path *path, const struct pg_insn *insn, uint64_t *next)
{
	if (insn->vector || insn->map > PG_MAP_0F)
		return ON;
	if (insn->map == PG_MAP_0F)
		return follow_0f(s, path, insn, *next);
	switch (insn->opcode) {
	case 0x70 ... 0x7f:
	case 0xe0 ... 0xe3:
		add_path(s, path, *next + (uint64_t)insn->immediate, 1);
		return ON;
	case 0xe9:
	case 0xeb:
		*next += (uint64_t)insn->immediate;
		return ON;
	case 0xc2:
	case 0xc3:
		pg_code_end_function(s, path, 0, false);
		return AWAY;
	case 0xff:
		if ((insn->reg & 7) == 4)
			jump_indirect(s, path, insn);
		return (insn->reg & 7) >= 3 && (insn->reg & 7) <= 5 ? AWAY : ON;
	case 0xca ... 0xcd:	/* RETF, INT, IRET, INT1, HLT */
	case 0xcf:
	case 0xf1:
	case 0xf4:
		return AWAY;
	}
	return ON;
}

/* False if the way ends here. */
static bool step(struct pg_code_search *s, struct pg_code_path *path)
{
	struct pg_bytes code;
	struct pg_insn insn;
	uint64_t next;

	if (path->place == s->wanted) {
		pg_code_arrive(s, &path->state);
		return false;
	}
	if (!is_code(s, path->place) || s->insns >= PG_MAX_INSNS) {
		s->uncertain = true;
		return false;
	}
	if (!visit(s, path))
		return false;
	s->insns++;
	pg_file_view_some(&s->binary->file, path->place, PG_MAX_INSN, &code);
	if (!pg_decode(code.at, pg_bytes_left(&code), &insn)) {
		s->missing |= pg_bytes_left(&code) < PG_MAX_INSN &&
			      path->place + pg_bytes_left(&code) < s->binary->file.size;
		s->uncertain = true;
		return false;
	}
	next = path->place + insn.length;
	path->cost++;
	if (follow(s, path, &insn, &next) == AWAY)
		return false;
	if (pg_is_call(&insn))
		call(path, &insn);
	else
		pg_code_apply(&path->state, &insn, path->place);
	note_comparison(path, &insn);
	path->resolves = insn.map == PG_MAP_ONE && insn.opcode == 0xff && insn.base == PG_RIP &&
			 (insn.reg & 7) == 6;
	path->place = next;
	return true;
}

void pg_code_search(struct pg_code_search *s, const struct pg_code_path *first)
{
	struct pg_code_path path = *first;

	if (s->binary->segment_count) {
		s->text = pg_text_segment(s->binary, path.place);
		if (!s->text)
			return;
	}
	do {
		while (!s->done && step(s, &path))
			;
	} while (!s->done && take_path(s, &path));
}
