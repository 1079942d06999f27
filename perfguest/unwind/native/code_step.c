// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
#include <string.h>

#include "code_step.h"

/* What a call does not keep (System V ABI AMD64, 3.2.1). */
static const uint8_t scratch[] = {
	PG_RAX, PG_RCX, PG_RDX, PG_RSI, PG_RDI, PG_R8, PG_R9, PG_R10, PG_R11,
};

static const struct pg_value unknown;

void pg_code_begin(struct pg_code_state *state)
{
	unsigned int reg;

	memset(state, 0, sizeof(*state));
	for (reg = 0; reg < PG_RIP; reg++) {
		state->regs[reg].kind = PG_VALUE_REGISTER;
		state->regs[reg].base = (uint8_t)reg;
	}
}

/* So far from where it was no stack is; and what is added to an offset does not overflow. */
#define MAX_OFFSET	(1 << 28)

static struct pg_value add(struct pg_value value, int64_t change)
{
	int64_t sum = (int64_t)value.offsets[value.depth] + change;

	if (value.kind == PG_VALUE_UNKNOWN || value.kind >= PG_VALUE_ENTRY ||
	    change != (int32_t)change || sum > MAX_OFFSET || sum < -MAX_OFFSET)
		return unknown;
	value.offsets[value.depth] = (int32_t)sum;
	return value;
}

static bool is_stack_address(const struct pg_value *address)
{
	return address->kind == PG_VALUE_REGISTER && !address->depth;
}

static struct pg_stored *find_stored(struct pg_code_state *state, const struct pg_value *address)
{
	unsigned int i;

	for (i = 0; i < state->stored_count; i++) {
		struct pg_stored *stored = &state->stored[i];

		if (stored->base == address->base && stored->offset == address->offsets[0])
			return stored;
	}
	return NULL;
}

static void store(struct pg_code_state *state, const struct pg_value *address,
		  const struct pg_value *value)
{
	struct pg_stored *stored;

	if (!is_stack_address(address))
		return;
	stored = find_stored(state, address);
	if (!stored) {
		if (state->stored_count == PG_MAX_STORED)
			return;
		stored = &state->stored[state->stored_count++];
	}
	*stored = (struct pg_stored){ address->base, address->offsets[0], *value };
}

static struct pg_value load(struct pg_code_state *state, const struct pg_value *address)
{
	const struct pg_stored *stored;
	struct pg_value value = *address;

	if (address->kind != PG_VALUE_REGISTER)
		return unknown;
	if (!address->depth) {
		stored = find_stored(state, address);
		if (stored)
			return stored->value;
	}
	if (address->depth == PG_VALUE_DEPTH)
		return unknown;
	value.depth++;
	return value;
}

/* What was pushed and is off the stack again is not asked for any more. */
static void forget_below(struct pg_code_state *state)
{
	const struct pg_value *sp = &state->regs[PG_RSP];
	unsigned int i = 0;

	if (!is_stack_address(sp))
		return;
	while (i < state->stored_count) {
		const struct pg_stored *stored = &state->stored[i];

		if (stored->base == sp->base && stored->offset < sp->offsets[0])
			state->stored[i] = state->stored[--state->stored_count];
		else
			i++;
	}
}

static void push(struct pg_code_state *state, struct pg_value value)
{
	state->regs[PG_RSP] = add(state->regs[PG_RSP], -8);
	store(state, &state->regs[PG_RSP], &value);
}

static struct pg_value pop(struct pg_code_state *state)
{
	struct pg_value value = load(state, &state->regs[PG_RSP]);

	state->regs[PG_RSP] = add(state->regs[PG_RSP], 8);
	forget_below(state);
	return value;
}

struct pg_value pg_code_top(struct pg_code_state *state)
{
	return load(state, &state->regs[PG_RSP]);
}

void pg_code_call(struct pg_code_state *state, bool by_name)
{
	const struct pg_value *sp = &state->regs[PG_RSP];
	size_t i;

	for (i = 0; i < sizeof(scratch); i++) {
		struct pg_value *value = &state->regs[scratch[i]];

		if (by_name && value->kind == PG_VALUE_REGISTER)
			value->weak = true;
		else
			*value = unknown;
	}
	if (!state->aligned && pg_is_value_of(sp, PG_RSP)) {
		state->aligned = true;
		state->alignment = sp->offsets[0];
	}
}

/* What the operand in memory stands at. */
static struct pg_value address_of(const struct pg_code_state *state, const struct pg_insn *insn,
				  uint64_t place)
{
	uint64_t target = place + insn->length + (uint64_t)(int64_t)insn->displacement;

	if (insn->segment || insn->index != PG_NO_REGISTER || insn->base == PG_NO_REGISTER)
		return unknown;
	if (insn->base != PG_RIP)
		return add(state->regs[insn->base], insn->displacement);
	if (target > INT32_MAX)
		return unknown;
	return (struct pg_value){ .kind = PG_VALUE_PLACE, .offsets = { (int32_t)target } };
}

static struct pg_value constant(int64_t value)
{
	if (value != (int32_t)value)
		return unknown;
	return (struct pg_value){ .kind = PG_VALUE_CONSTANT, .offsets = { (int32_t)value } };
}

/* MOVSXD of a table's entry: what compilers make of a switch in code that can lie anywhere. */
static struct pg_value load_entry(const struct pg_code_state *state, const struct pg_insn *insn)
{
	struct pg_value value = unknown;

	if (insn->mod != 3 && insn->base < PG_RIP && insn->index != PG_NO_REGISTER &&
	    insn->scale == 4 && !insn->displacement)
		value = state->regs[insn->base];
	if (value.kind != PG_VALUE_PLACE)
		return unknown;
	value.kind = PG_VALUE_ENTRY;
	return value;
}

static struct pg_value add_registers(const struct pg_value *a, const struct pg_value *b)
{
	struct pg_value value = *a;

	if (a->offsets[0] != b->offsets[0] || a->kind + b->kind != PG_VALUE_PLACE + PG_VALUE_ENTRY ||
	    (a->kind != PG_VALUE_PLACE && b->kind != PG_VALUE_PLACE))
		return unknown;
	value.kind = PG_VALUE_CASE;
	return value;
}

static void move(struct pg_code_state *state, uint8_t to, struct pg_value value)
{
	state->regs[to] = value;
	if (to == PG_RSP)
		forget_below(state);
}

/* MOV to and from memory, and between registers: 8 bytes wide. */
static void apply_mov(struct pg_code_state *state, const struct pg_insn *insn, uint64_t place)
{
	bool to_rm = insn->opcode == 0x89;
	struct pg_value address;

	if (insn->mod == 3) {
		move(state, to_rm ? insn->rm : insn->reg, state->regs[to_rm ? insn->reg : insn->rm]);
		return;
	}
	address = address_of(state, insn, place);
	if (!to_rm && insn->base == PG_NO_REGISTER && insn->scale == 8 && !insn->segment)
		move(state, insn->reg, (struct pg_value){ .kind = PG_VALUE_ADDRESS,
							  .offsets = { insn->displacement } });
	else if (!to_rm)
		move(state, insn->reg, load(state, &address));
	else if (state->regs[insn->reg].kind == PG_VALUE_REGISTER ||
		 (is_stack_address(&address) && find_stored(state, &address)))
		store(state, &address, &state->regs[insn->reg]);
}

/* True if what the register gets is known. Operands of 8 bytes. */
static bool apply_wide(struct pg_code_state *state, const struct pg_insn *insn, uint64_t place)
{
	unsigned int operation = insn->reg & 7;

	switch (insn->opcode) {
	case 0x89:
	case 0x8b:
		apply_mov(state, insn, place);
		return true;
	case 0x8d:
		move(state, insn->reg, address_of(state, insn, place));
		return true;
	case 0x63:
		move(state, insn->reg, load_entry(state, insn));
		return true;
	case 0x01:
	case 0x03:
		if (insn->mod != 3)
			return false;
		move(state, insn->opcode == 0x01 ? insn->rm : insn->reg,
		     add_registers(&state->regs[insn->rm], &state->regs[insn->reg]));
		return true;
	case 0x81:
	case 0x83:
		if (insn->mod != 3 || (operation != 0 && operation != 5))
			return false;
		move(state, insn->rm, add(state->regs[insn->rm],
					  operation ? -insn->immediate : insn->immediate));
		return true;
	}
	return false;
}

/* MOV to AL, CL, DL, BL, or to the lowest byte of R8 to R11, of a register that has nothing above it. */
static bool apply_low_byte(struct pg_code_state *state, const struct pg_insn *insn)
{
	struct pg_value *value = &state->regs[insn->rm];

	if ((insn->opcode & 0xfc) != 0xb0 || value->kind != PG_VALUE_CONSTANT || value->offsets[0] >> 8)
		return false;
	*value = constant((uint8_t)insn->immediate);
	return true;
}

static bool apply_constant(struct pg_code_state *state, const struct pg_insn *insn)
{
	if (apply_low_byte(state, insn))
		return true;
	if (insn->width != 4 && insn->width != 8)
		return false;
	if ((insn->opcode & 0xf8) == 0xb8 || (insn->opcode == 0xc7 && insn->mod == 3 && !(insn->reg & 7)))
		move(state, insn->rm, constant(insn->immediate));
	else if ((insn->opcode == 0x31 || insn->opcode == 0x33) && insn->mod == 3 &&
		 insn->rm == insn->reg)
		move(state, insn->rm, constant(0));
	else if (insn->opcode == 0x89 && insn->mod == 3 && insn->width == 4 &&
		 state->regs[insn->reg].kind == PG_VALUE_CONSTANT)
		move(state, insn->rm, state->regs[insn->reg]);
	else
		return false;
	return true;
}

static bool apply_stack(struct pg_code_state *state, const struct pg_insn *insn)
{
	switch (insn->opcode) {
	case 0x50 ... 0x57:
		push(state, state->regs[insn->rm]);
		return true;
	case 0x58 ... 0x5f:
		move(state, insn->rm, pop(state));
		return true;
	case 0x68:
	case 0x6a:
	case 0x9c:
		push(state, unknown);
		return true;
	case 0x8f:
		if (insn->mod == 3)
			move(state, insn->rm, pop(state));
		else
			pop(state);
		return true;
	case 0x9d:
		pop(state);
		return true;
	case 0xc8:
		state->regs[PG_RSP] = unknown;
		state->regs[PG_RBP] = unknown;
		return true;
	case 0xc9:
		move(state, PG_RSP, state->regs[PG_RBP]);
		state->regs[PG_RBP] = pop(state);
		return true;
	case 0xff:
		if ((insn->reg & 7) != 6)
			return false;
		push(state, insn->mod == 3 ? state->regs[insn->rm] : unknown);
		return true;
	}
	return false;
}

void pg_code_apply(struct pg_code_state *state, const struct pg_insn *insn, uint64_t place)
{
	unsigned int reg;

	if (insn->map == PG_MAP_ONE && !insn->vector &&
	    (apply_stack(state, insn) || apply_constant(state, insn) ||
	     (insn->width == 8 && apply_wide(state, insn, place))))
		return;
	if (insn->map == PG_MAP_0F && !insn->vector) {
		if (insn->opcode == 0xa0 || insn->opcode == 0xa8)
			push(state, unknown);
		else if (insn->opcode == 0xa1 || insn->opcode == 0xa9)
			pop(state);
	}
	for (reg = 0; reg < PG_RIP; reg++)
		if (insn->written >> reg & 1)
			state->regs[reg] = unknown;
}
