// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The user's part of a stack, by .eh_frame; by frame pointers in code that has
 * no tables (just-in-time compilers, programs built with frame pointers and
 * without tables).
 */
#include "walk_parts.h"
#include "call.h"

const struct pg_mapping *pg_find_code(const struct pg_walk *walk, uint64_t address)
{
	const struct pg_mapping *mapping;
	const struct pg_binary *binary;

	if (!walk->space || !pg_is_user_address(address))
		return NULL;
	mapping = pg_find_mapping(walk->space, address);
	if (!mapping || mapping->binary < 0)
		return mapping;
	binary = walk->unwinder->binaries[mapping->binary];
	if (binary->broken)
		return mapping;
	return pg_text_segment(binary, address - mapping->start + mapping->offset) ? mapping : NULL;
}

enum pg_proof pg_user_call_ends(const struct pg_walk *walk, const struct pg_mapping *mapping,
				uint64_t address)
{
	uint64_t offset = address - mapping->start + mapping->offset;
	struct pg_bytes code;

	if (mapping->binary < 0 || offset < PG_MAX_CALL)
		return PG_CANNOT_TELL;
	if (pg_file_view(&walk->unwinder->binaries[mapping->binary]->file, offset - PG_MAX_CALL,
			 PG_MAX_CALL, &code))
		return PG_CANNOT_TELL;
	return pg_call_ends(code.at, PG_MAX_CALL) ? PG_CALL : PG_NO_CALL;
}

/*
 * Code without a description that has pushed nothing: system calls that make a
 * thread (clone3), .init and .fini, thunks. Only what is proven to follow a
 * call is taken.
 */
static bool step_by_return(struct pg_walk *walk)
{
	struct pg_machine *m = &walk->machine;
	const struct pg_mapping *mapping;
	uint64_t word;

	if (!pg_load64(m, m->regs[PG_RSP], &word))
		return false;
	mapping = pg_find_code(walk, word);
	if (!mapping || pg_user_call_ends(walk, mapping, word) != PG_CALL)
		return false;
	pg_set(m, PG_RIP, word);
	pg_set(m, PG_RSP, m->regs[PG_RSP] + 8);
	return true;
}

static bool step_by_frame_pointer(struct pg_walk *walk)
{
	struct pg_machine *m = &walk->machine;
	uint64_t bp = m->regs[PG_RBP], caller_bp, word;
	const struct pg_mapping *mapping;

	if (!pg_knows(m, PG_RBP) || bp < m->regs[PG_RSP] || !pg_load64(m, bp, &caller_bp) ||
	    !pg_load64(m, bp + 8, &word))
		return false;
	mapping = pg_find_code(walk, word);
	if (!mapping || !pg_could_have_called(walk, word) ||
	    (pg_user_call_ends(walk, mapping, word) == PG_NO_CALL && !pg_is_goroutines_end(walk, word)))
		return false;
	pg_set(m, PG_RIP, word);
	pg_set(m, PG_RSP, bp + 16);
	pg_set(m, PG_RBP, caller_bp);
	return true;
}

/* What is known of the code at an address. */
struct place {
	const struct pg_rule *rule;
	struct pg_rule_source source;
};

/* Of an address that is met for the first time. */
static enum pg_end find_new_rule(const struct pg_walk *walk, uint64_t address, struct place *place)
{
	const struct pg_cached_rule *cached;
	const struct pg_mapping *mapping = NULL;
	const struct pg_segment *segment;
	struct pg_binary *binary;
	uint64_t offset, vaddr;

	if (pg_is_user_address(address))
		mapping = pg_find_mapping(walk->space, address);
	if (!mapping)
		return PG_END_NO_MAPPING;
	if (mapping->binary < 0)
		return PG_END_NO_TABLE;
	binary = walk->unwinder->binaries[mapping->binary];
	if (binary->broken && !(binary->broken == PG_END_PAGES && binary->kept))
		return binary->broken;
	offset = address - mapping->start + mapping->offset;
	segment = pg_text_segment(binary, offset);
	if (!segment)
		return PG_END_NO_TABLE;
	vaddr = offset - segment->offset + segment->vaddr;
	cached = pg_user_rule(walk->unwinder, (uint32_t)mapping->binary, vaddr);
	place->rule = &cached->rule;
	place->source.file = cached->rule.kept ? &binary->kept->file : &binary->file;
	place->source.bias = address - vaddr;
	pg_keep_site(&walk->unwinder->cache, (uint32_t)walk->sample->space, address, cached,
		     &place->source);
	return pg_rule_end(place->rule);
}

/* The rule at address. 0, or why there is none to be had. */
static enum pg_end find_rule(const struct pg_walk *walk, uint64_t address, struct place *place)
{
	if (!walk->space)
		return PG_END_NO_MAPPING;
	place->rule = pg_find_site(&walk->unwinder->cache, (uint32_t)walk->sample->space, address,
				   &place->source);
	return place->rule ? pg_rule_end(place->rule) : find_new_rule(walk, address, place);
}

/*
 * By a rule that is not the guest's own word: what it leads to must be proven
 * by what is.
 */
static bool step_by_kept(struct pg_walk *walk, const struct place *place, bool *exact)
{
	struct pg_machine next = walk->machine;
	bool exact_next = place->rule->exact;
	uint16_t cs;

	if (pg_step(&next, place->rule, &place->source, &cs) ||
	    !pg_is_proven(walk, &next, exact_next))
		return false;
	walk->machine = next;
	*exact = exact_next;
	return true;
}

/*
 * Programs that keep frame pointers begin with 0 in that register, as the ABI
 * asks of the outermost frame (System V ABI, 3.4.1, "Initial Stack and
 * Register State").
 */
static bool is_outermost(const struct pg_walk *walk, enum pg_end end, uint8_t how)
{
	const struct pg_machine *m = &walk->machine;

	return how == PG_HOW_FP && end == PG_END_NO_TABLE && pg_knows(m, PG_RBP) &&
	       !m->regs[PG_RBP];
}

/* 0 with an enum pg_how, or why there is no way on. */
static enum pg_end step_without_rule(struct pg_walk *walk, enum pg_end end, bool leaf, bool *exact,
				     uint8_t *how)
{
	if (end != PG_END_NO_TABLE && end != PG_END_NO_RULE && end != PG_END_PAGES)
		return end;
	switch (pg_step_by_code(walk, exact)) {
	case PG_BY_CODE_OUTERMOST:
		return PG_END_START;
	case PG_BY_CODE_STEP:
		*how = PG_HOW_CODE;
		return 0;
	case PG_BY_CODE_NOT:
		break;
	}
	*exact = false;
	if (end == PG_END_PAGES)
		return end;
	if (leaf && step_by_return(walk))
		*how = PG_HOW_RETURN;
	else if (step_by_frame_pointer(walk))
		*how = PG_HOW_FP;
	else
		return end;
	return 0;
}

/*
 * In a system call the program stands behind its syscall instruction, and where
 * that is a function's last one (signal handlers' return), behind the function.
 */
static enum pg_end find_leaf_rule(const struct pg_walk *walk, uint64_t address, struct place *place)
{
	enum pg_end end = find_rule(walk, address, place);

	if (end == PG_END_NO_RULE && walk->sample->mode == PG_MODE_KERNEL)
		end = find_rule(walk, address - 1, place);
	return end;
}

enum pg_end pg_walk_user(struct pg_walk *walk)
{
	struct pg_machine *m = &walk->machine;
	uint8_t how = PG_HOW_REGISTER;
	bool exact = true, leaf = true;
	uint16_t cs;

	if (!pg_emit(walk, m->regs[PG_RIP], how | PG_FRAME_USER))
		return PG_END_DEPTH;
	if (walk->compat)
		return PG_END_COMPAT;
	pg_grant_code(walk);
	for (;; leaf = false) {
		uint64_t sp = m->regs[PG_RSP];
		struct place place;
		enum pg_end end;

		if (leaf)
			end = find_leaf_rule(walk, m->regs[PG_RIP], &place);
		else
			end = find_rule(walk, m->regs[PG_RIP] - !exact, &place);
		if (!end && !place.rule->kept) {
			end = pg_step(m, place.rule, &place.source, &cs);
			exact = place.rule->exact;
			how = PG_HOW_CFI;
		} else if (!end && step_by_kept(walk, &place, &exact)) {
			how = PG_HOW_KEPT;
		} else if (is_outermost(walk, end, how)) {
			return PG_END_START;
		} else {
			end = step_without_rule(walk, end ? end : PG_END_PAGES, leaf, &exact, &how);
		}
		/* A leaf that has taken its return address off the stack (vfork) has no frame. */
		if (!end && !(leaf && m->regs[PG_RSP] == sp))
			end = pg_check_progress(m, sp);
		if (end)
			return end;
		if (!m->regs[PG_RIP])
			return PG_END_START;
		if (!pg_emit(walk, m->regs[PG_RIP],
			     how | PG_FRAME_USER | (exact ? 0 : PG_FRAME_RETURN)))
			return PG_END_DEPTH;
	}
}
