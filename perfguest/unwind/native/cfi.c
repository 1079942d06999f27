// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Call frame instructions (DWARF 5, section 6.4.2), the little program of a CIE
 * and an FDE. It makes a table: one row of rules for each range of addresses.
 * We run it up to the row that is asked for, and only when an address is met
 * for the first time.
 */
#include "cfi.h"
#include "dwarf.h"

#define MAX_REMEMBERED	8

enum cell_kind {
	CELL_SAME,		/* or nothing said, which comes to that */
	CELL_UNDEFINED,
	CELL_SAVED,
};

struct cell {
	uint8_t kind;
	uint8_t saved;		/* enum pg_saved_kind */
	uint16_t size;
	int32_t offset;
};

/* A row of the table; registers as DWARF numbers them. */
struct row {
	uint8_t cfa_kind;
	uint8_t cfa_register;
	uint16_t cfa_size;
	int32_t cfa_offset;
	struct cell cells[PG_REGISTERS];
};

struct program {
	struct pg_bytes code;
	uint64_t code_offset;	/* of the program's start, in the file */
	const uint8_t *start;
	const struct pg_fde *fde;
	uint64_t address;	/* where the row begins that is being made */
	uint64_t wanted;
	struct row row;
	struct row initial;	/* what the CIE's program made */
	struct row remembered[MAX_REMEMBERED];
	unsigned int remembered_count;
	enum pg_end end;
};

static void fail(struct program *p)
{
	p->end = PG_END_NO_RULE;
}

/* A number that a rule has room for. */
static int32_t narrow(struct program *p, int64_t value)
{
	if (value != (int32_t)value)
		fail(p);
	return (int32_t)value;
}

static int32_t factored(struct program *p, int64_t value)
{
	return narrow(p, (int64_t)((uint64_t)value * (uint64_t)p->fde->cie.data_factor));
}

/* Vector registers and the like have rules, too: those go nowhere. */
static void set_cell(struct program *p, uint64_t number, struct cell cell)
{
	if (number < PG_REGISTERS)
		p->row.cells[number] = cell;
}

static void save(struct program *p, uint64_t number, enum pg_saved_kind kind, int32_t offset)
{
	set_cell(p, number, (struct cell){ .kind = CELL_SAVED, .saved = kind, .offset = offset });
}

static void restore(struct program *p, uint64_t number)
{
	if (number < PG_REGISTERS)
		p->row.cells[number] = p->initial.cells[number];
}

/* The place of an expression in the file. */
static void take_expression(struct program *p, uint16_t *size, int32_t *offset)
{
	uint64_t length = pg_take_uleb(&p->code);
	uint64_t place = p->code_offset + (uint64_t)(p->code.at - p->start);

	pg_take(&p->code, length);
	if (length > UINT16_MAX || place > UINT32_MAX)
		p->end = PG_END_EXPRESSION;
	*size = (uint16_t)length;
	*offset = (int32_t)(uint32_t)place;
}

static void save_by_expression(struct program *p, enum pg_saved_kind kind)
{
	struct cell cell = { .kind = CELL_SAVED, .saved = kind };
	uint64_t number = pg_take_uleb(&p->code);

	take_expression(p, &cell.size, &cell.offset);
	set_cell(p, number, cell);
}

static void save_in_register(struct program *p)
{
	uint64_t number = pg_take_uleb(&p->code), source = pg_take_uleb(&p->code);

	if (source < PG_REGISTERS)
		save(p, number, PG_SAVED_IN_REGISTER, pg_dwarf_register(source));
	else
		set_cell(p, number, (struct cell){ .kind = CELL_UNDEFINED });
}

static void set_cfa_register(struct program *p, uint64_t number)
{
	if (number >= PG_RIP) {
		fail(p);
		return;
	}
	p->row.cfa_kind = PG_CFA_REGISTER;
	p->row.cfa_register = pg_dwarf_register(number);
}

/* False if op is none of those that define the CFA. */
static bool define_cfa(struct program *p, uint8_t op)
{
	struct pg_bytes *code = &p->code;
	uint64_t number;

	switch (op) {
	case DW_CFA_def_cfa:
		number = pg_take_uleb(code);
		p->row.cfa_offset = narrow(p, (int64_t)pg_take_uleb(code));
		set_cfa_register(p, number);
		return true;
	case DW_CFA_def_cfa_sf:
		number = pg_take_uleb(code);
		p->row.cfa_offset = factored(p, pg_take_sleb(code));
		set_cfa_register(p, number);
		return true;
	case DW_CFA_def_cfa_register:
		if (p->row.cfa_kind != PG_CFA_REGISTER)
			fail(p);
		set_cfa_register(p, pg_take_uleb(code));
		return true;
	case DW_CFA_def_cfa_offset:
	case DW_CFA_def_cfa_offset_sf:
		if (p->row.cfa_kind != PG_CFA_REGISTER)
			fail(p);
		if (op == DW_CFA_def_cfa_offset)
			p->row.cfa_offset = narrow(p, (int64_t)pg_take_uleb(code));
		else
			p->row.cfa_offset = factored(p, pg_take_sleb(code));
		return true;
	case DW_CFA_def_cfa_expression:
		p->row.cfa_kind = PG_CFA_EXPRESSION;
		take_expression(p, &p->row.cfa_size, &p->row.cfa_offset);
		return true;
	}
	return false;
}

/* False if op is none of those that save a register. */
static bool define_register(struct program *p, uint8_t op)
{
	struct pg_bytes *code = &p->code;
	uint64_t number;

	switch (op) {
	case DW_CFA_offset_extended:
	case DW_CFA_offset_extended_sf:
	case DW_CFA_val_offset:
	case DW_CFA_val_offset_sf:
	case DW_CFA_GNU_negative_offset_extended:
		number = pg_take_uleb(code);
		if (op == DW_CFA_offset_extended)
			save(p, number, PG_SAVED_AT_CFA, factored(p, (int64_t)pg_take_uleb(code)));
		else if (op == DW_CFA_offset_extended_sf)
			save(p, number, PG_SAVED_AT_CFA, factored(p, pg_take_sleb(code)));
		else if (op == DW_CFA_val_offset)
			save(p, number, PG_SAVED_IS_CFA, factored(p, (int64_t)pg_take_uleb(code)));
		else if (op == DW_CFA_val_offset_sf)
			save(p, number, PG_SAVED_IS_CFA, factored(p, pg_take_sleb(code)));
		else
			save(p, number, PG_SAVED_AT_CFA, factored(p, -pg_take_sleb(code)));
		return true;
	case DW_CFA_undefined:
		set_cell(p, pg_take_uleb(code), (struct cell){ .kind = CELL_UNDEFINED });
		return true;
	case DW_CFA_same_value:
		set_cell(p, pg_take_uleb(code), (struct cell){ .kind = CELL_SAME });
		return true;
	case DW_CFA_register:
		save_in_register(p);
		return true;
	case DW_CFA_restore_extended:
		restore(p, pg_take_uleb(code));
		return true;
	case DW_CFA_expression:
		save_by_expression(p, PG_SAVED_AT_EXPRESSION);
		return true;
	case DW_CFA_val_expression:
		save_by_expression(p, PG_SAVED_IS_EXPRESSION);
		return true;
	}
	return false;
}

static void set_location(struct program *p)
{
	uint64_t place = p->code_offset + (uint64_t)(p->code.at - p->start);

	if (!pg_take_encoded(&p->code, p->fde->cie.encoding, place + p->fde->bias, 0, &p->address))
		fail(p);
}

/* False if op is none of those that begin another row. */
static bool advance(struct program *p, uint8_t op)
{
	uint64_t delta;

	switch (op) {
	case DW_CFA_set_loc:
		set_location(p);
		return true;
	case DW_CFA_advance_loc1:
		delta = pg_take_u8(&p->code);
		break;
	case DW_CFA_advance_loc2:
		delta = pg_take_u16(&p->code);
		break;
	case DW_CFA_advance_loc4:
		delta = pg_take_u32(&p->code);
		break;
	case DW_CFA_MIPS_advance_loc8:
		delta = pg_take_u64(&p->code);
		break;
	default:
		return false;
	}
	p->address += delta * p->fde->cie.code_factor;
	return true;
}

static void remember(struct program *p)
{
	if (p->remembered_count < MAX_REMEMBERED)
		p->remembered[p->remembered_count++] = p->row;
	else
		fail(p);
}

static void recall(struct program *p)
{
	if (p->remembered_count)
		p->row = p->remembered[--p->remembered_count];
	else
		fail(p);
}

static void run_instruction(struct program *p)
{
	uint8_t op = pg_take_u8(&p->code), operand = op & 0x3f;

	switch (op & 0xc0) {
	case DW_CFA_advance_loc:
		p->address += operand * p->fde->cie.code_factor;
		return;
	case DW_CFA_offset:
		save(p, operand, PG_SAVED_AT_CFA, factored(p, (int64_t)pg_take_uleb(&p->code)));
		return;
	case DW_CFA_restore:
		restore(p, operand);
		return;
	}
	switch (op) {
	case DW_CFA_nop:
		return;
	case DW_CFA_remember_state:
		remember(p);
		return;
	case DW_CFA_restore_state:
		recall(p);
		return;
	case DW_CFA_GNU_args_size:
		pg_take_uleb(&p->code);
		return;
	}
	if (!advance(p, op) && !define_cfa(p, op) && !define_register(p, op))
		fail(p);
}

/* Up to the end, or to where the row behind the one that is wanted begins. */
static void run(struct program *p, const struct pg_bytes *code, uint64_t code_offset)
{
	p->code = *code;
	p->start = code->at;
	p->code_offset = code_offset;
	while (!p->end && pg_bytes_left(&p->code)) {
		run_instruction(p);
		if (p->code.broken)
			fail(p);
		if (p->address > p->wanted)
			return;
	}
}

static void make_rule(const struct program *p, struct pg_rule *rule)
{
	unsigned int number;

	rule->kind = PG_RULE_CALL;
	rule->exact = p->fde->cie.signal;
	rule->cfa_kind = p->row.cfa_kind;
	rule->cfa_register = p->row.cfa_register;
	rule->cfa_size = p->row.cfa_size;
	rule->cfa_offset = p->row.cfa_offset;
	rule->count = 0;
	rule->forgotten = 0;
	/* The return address first: it is the last in DWARF's order, too. */
	for (number = PG_REGISTERS; number--;) {
		const struct cell *cell = &p->row.cells[number];
		enum pg_register reg = pg_dwarf_register(number);

		if (cell->kind == CELL_SAVED)
			pg_rule_save(rule, reg, cell->saved, cell->offset, cell->size);
		else if (cell->kind == CELL_UNDEFINED)
			rule->forgotten |= 1u << reg;
	}
	rule->plain = pg_rule_is_plain(rule);
}

void pg_cfi_rule(const struct pg_fde *fde, uint64_t vaddr, struct pg_rule *rule)
{
	static const struct row no_row = { .cfa_kind = PG_CFA_REGISTER, .cfa_register = PG_REGISTERS };
	const struct cell *caller;
	struct program p;

	/* Not all of it: what is remembered is much, and seldom used. */
	p.fde = fde;
	p.address = fde->start;
	p.wanted = vaddr;
	p.row = no_row;
	p.initial = no_row;
	p.remembered_count = 0;
	p.end = 0;
	run(&p, &fde->cie.program, fde->cie.program_offset);
	p.initial = p.row;
	p.address = fde->start;
	run(&p, &fde->program, fde->program_offset);
	caller = &p.row.cells[PG_RIP];
	if (!p.end && p.row.cfa_kind == PG_CFA_REGISTER && p.row.cfa_register == PG_REGISTERS)
		fail(&p);
	if (p.end)
		pg_rule_stop(rule, p.end);
	else if (caller->kind != CELL_SAVED)
		pg_rule_stop(rule, PG_END_START);
	else
		make_rule(&p, rule);
}
