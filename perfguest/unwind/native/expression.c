// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The stack machine of DWARF, for what unwind tables make of it: procedure
 * linkage tables compute with RIP, OpenSSL's assembler finds its frame through
 * a saved pointer, a signal frame's registers stand in an ucontext. Operations
 * that name places (registers as such, pieces) or types have no use here.
 */
#include "expression.h"
#include "dwarf.h"

#define STACK_SIZE	64
#define MAX_STEPS	1000	/* expressions may branch backwards */

struct evaluation {
	struct pg_bytes code;
	const struct pg_expression *expression;
	const struct pg_machine *m;
	enum pg_end end;
	unsigned int depth;
	uint64_t stack[STACK_SIZE];
};

static void fail(struct evaluation *e, enum pg_end end)
{
	if (!e->end)
		e->end = end;
}

static void push(struct evaluation *e, uint64_t value)
{
	if (e->depth < STACK_SIZE)
		e->stack[e->depth++] = value;
	else
		fail(e, PG_END_EXPRESSION);
}

static uint64_t pop(struct evaluation *e)
{
	if (e->depth)
		return e->stack[--e->depth];
	fail(e, PG_END_EXPRESSION);
	return 0;
}

/* The entry so far below the top. */
static uint64_t peek(struct evaluation *e, unsigned int below)
{
	if (below < e->depth)
		return e->stack[e->depth - 1 - below];
	fail(e, PG_END_EXPRESSION);
	return 0;
}

static void push_register(struct evaluation *e, uint64_t number, int64_t offset)
{
	unsigned int reg;

	if (number >= PG_REGISTERS) {
		fail(e, PG_END_EXPRESSION);
		return;
	}
	reg = pg_dwarf_register(number);
	if (!pg_knows(e->m, reg))
		fail(e, pg_why_unknown(e->m, reg));
	push(e, e->m->regs[reg] + (uint64_t)offset);
}

static void dereference(struct evaluation *e, size_t size)
{
	uint64_t value = 0;

	if (!size || size > sizeof(value))
		fail(e, PG_END_EXPRESSION);
	else if (!pg_load(e->m, pop(e), &value, size))
		fail(e, PG_END_CUT);
	push(e, value);
}

static void rotate(struct evaluation *e)
{
	uint64_t first = pop(e), second = pop(e), third = pop(e);

	push(e, first);
	push(e, third);
	push(e, second);
}

static void jump(struct evaluation *e)
{
	const uint8_t *start = e->expression->code.at;
	int64_t distance = (int16_t)pg_take_u16(&e->code);

	if (distance < start - e->code.at || distance > e->code.end - e->code.at)
		fail(e, PG_END_EXPRESSION);
	else
		e->code.at += distance;
}

static uint64_t shift(uint8_t op, uint64_t value, uint64_t by)
{
	if (op == DW_OP_shra)
		return (uint64_t)((int64_t)value >> (by < 63 ? by : 63));
	if (by > 63)
		return 0;
	return op == DW_OP_shl ? value << by : value >> by;
}

static uint64_t divide(struct evaluation *e, uint8_t op, uint64_t a, uint64_t b)
{
	if (!b) {
		fail(e, PG_END_EXPRESSION);
		return 0;
	}
	if (op == DW_OP_mod)
		return a % b;
	/* The one quotient that does not fit. */
	if (b == ~0ULL)
		return -a;
	return (uint64_t)((int64_t)a / (int64_t)b);
}

static bool compare(uint8_t op, int64_t a, int64_t b)
{
	switch (op) {
	case DW_OP_eq:
		return a == b;
	case DW_OP_ge:
		return a >= b;
	case DW_OP_gt:
		return a > b;
	case DW_OP_le:
		return a <= b;
	case DW_OP_lt:
		return a < b;
	default:
		return a != b;
	}
}

static void two_operands(struct evaluation *e, uint8_t op)
{
	uint64_t b = pop(e), a = pop(e);

	switch (op) {
	case DW_OP_and:
		push(e, a & b);
		break;
	case DW_OP_or:
		push(e, a | b);
		break;
	case DW_OP_xor:
		push(e, a ^ b);
		break;
	case DW_OP_plus:
		push(e, a + b);
		break;
	case DW_OP_minus:
		push(e, a - b);
		break;
	case DW_OP_mul:
		push(e, a * b);
		break;
	case DW_OP_div:
	case DW_OP_mod:
		push(e, divide(e, op, a, b));
		break;
	case DW_OP_shl:
	case DW_OP_shr:
	case DW_OP_shra:
		push(e, shift(op, a, b));
		break;
	default:
		push(e, compare(op, (int64_t)a, (int64_t)b));
	}
}

/* Operations that put a number on the stack; false if it is none of them. */
static bool push_number(struct evaluation *e, uint8_t op)
{
	struct pg_bytes *code = &e->code;

	switch (op) {
	case DW_OP_addr:
		push(e, pg_take_u64(code) + e->expression->bias);
		return true;
	case DW_OP_const1u:
		push(e, pg_take_u8(code));
		return true;
	case DW_OP_const1s:
		push(e, (uint64_t)(int8_t)pg_take_u8(code));
		return true;
	case DW_OP_const2u:
		push(e, pg_take_u16(code));
		return true;
	case DW_OP_const2s:
		push(e, (uint64_t)(int16_t)pg_take_u16(code));
		return true;
	case DW_OP_const4u:
		push(e, pg_take_u32(code));
		return true;
	case DW_OP_const4s:
		push(e, (uint64_t)(int32_t)pg_take_u32(code));
		return true;
	case DW_OP_const8u:
	case DW_OP_const8s:
		push(e, pg_take_u64(code));
		return true;
	case DW_OP_constu:
		push(e, pg_take_uleb(code));
		return true;
	case DW_OP_consts:
		push(e, (uint64_t)pg_take_sleb(code));
		return true;
	case DW_OP_call_frame_cfa:
		if (e->expression->cfa)
			push(e, *e->expression->cfa);
		else
			fail(e, PG_END_EXPRESSION);
		return true;
	}
	if (op >= DW_OP_lit0 && op <= DW_OP_lit31)
		push(e, op - DW_OP_lit0);
	else if (op >= DW_OP_breg0 && op <= DW_OP_breg31)
		push_register(e, op - DW_OP_breg0, pg_take_sleb(code));
	else
		return false;
	return true;
}

static void operate(struct evaluation *e, uint8_t op)
{
	struct pg_bytes *code = &e->code;
	uint64_t a, b;

	switch (op) {
	case DW_OP_bregx:
		a = pg_take_uleb(code);
		push_register(e, a, pg_take_sleb(code));
		break;
	case DW_OP_deref:
		dereference(e, sizeof(uint64_t));
		break;
	case DW_OP_deref_size:
		dereference(e, pg_take_u8(code));
		break;
	case DW_OP_dup:
		push(e, peek(e, 0));
		break;
	case DW_OP_drop:
		pop(e);
		break;
	case DW_OP_over:
		push(e, peek(e, 1));
		break;
	case DW_OP_pick:
		push(e, peek(e, pg_take_u8(code)));
		break;
	case DW_OP_swap:
		a = pop(e);
		b = pop(e);
		push(e, a);
		push(e, b);
		break;
	case DW_OP_rot:
		rotate(e);
		break;
	case DW_OP_abs:
		a = pop(e);
		push(e, a >> 63 ? -a : a);
		break;
	case DW_OP_neg:
		push(e, -pop(e));
		break;
	case DW_OP_not:
		push(e, ~pop(e));
		break;
	case DW_OP_plus_uconst:
		a = pop(e);
		push(e, a + pg_take_uleb(code));
		break;
	case DW_OP_skip:
		jump(e);
		break;
	case DW_OP_bra:
		if (pop(e))
			jump(e);
		else
			pg_take_u16(code);
		break;
	case DW_OP_nop:
		break;
	case DW_OP_and:
	case DW_OP_div:
	case DW_OP_minus:
	case DW_OP_mod:
	case DW_OP_mul:
	case DW_OP_or:
	case DW_OP_plus:
	case DW_OP_shl:
	case DW_OP_shr:
	case DW_OP_shra:
	case DW_OP_xor:
	case DW_OP_eq:
	case DW_OP_ge:
	case DW_OP_gt:
	case DW_OP_le:
	case DW_OP_lt:
	case DW_OP_ne:
		two_operands(e, op);
		break;
	default:
		if (!push_number(e, op))
			fail(e, PG_END_EXPRESSION);
	}
}

enum pg_end pg_evaluate(const struct pg_expression *expression, const struct pg_machine *m,
			uint64_t *result)
{
	struct evaluation e = { .code = expression->code, .expression = expression, .m = m };
	unsigned int steps;

	if (expression->push_cfa)
		push(&e, *expression->cfa);
	for (steps = 0; pg_bytes_left(&e.code) && !e.end; steps++) {
		if (steps == MAX_STEPS)
			return PG_END_EXPRESSION;
		operate(&e, pg_take_u8(&e.code));
		if (e.code.broken)
			fail(&e, PG_END_EXPRESSION);
	}
	*result = pop(&e);
	return e.end;
}
