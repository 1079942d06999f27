// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Steps of the user's part by the code itself, where no table tells them: of a
 * guest that has just booted the code is in memory, as it runs, but few of the
 * tables are. What such a rule says is taken only if it leads to a word that
 * is proven to be a return address.
 */
#include "code_rule.h"
#include "code_search.h"
#include "code_start.h"
#include "walk_parts.h"

#define MAX_FRAME	1024	/* bytes of one that never returns */

#define OWNER		(1u << 31)	/* tells these rules from the tables' in the cache */

static const struct pg_rule_source no_source;

enum { OWNER_INTERRUPTED, OWNER_RETURNED, OWNER_SINCE };

/* A place in a file. */
struct place {
	struct pg_binary *binary;	/* NULL: not in one */
	uint32_t number;
	uint64_t offset;
};

static struct place find_place(const struct pg_walk *walk, uint64_t address)
{
	const struct pg_mapping *mapping = pg_find_code(walk, address);
	struct place place = { .binary = NULL };

	if (mapping && mapping->binary >= 0) {
		place.number = (uint32_t)mapping->binary;
		place.binary = walk->unwinder->binaries[place.number];
		place.offset = address - mapping->start + mapping->offset;
	}
	return place;
}

/* False if the rule is still to be made. */
static bool find_cached(const struct pg_walk *walk, const struct place *place, uint32_t kind,
			uint64_t key, struct pg_rule **rule)
{
	uint32_t owner = OWNER | place->number << 2 | kind;
	bool is_new;

	*rule = &pg_cached_rule(&walk->unwinder->cache, owner, key, &is_new)->rule;
	return !is_new && !((*rule)->kind == PG_RULE_STOP && (*rule)->end == PG_END_NONE);
}

/* If not, the rule is made when it is asked for again. */
static bool is_affordable(const struct pg_walk *walk, struct pg_rule *rule)
{
	if (walk->unwinder->search->credit >= PG_MAX_INSNS + PG_CODE_BASE)
		return true;
	pg_rule_stop(rule, PG_END_NONE);
	return false;
}

void pg_grant_code(struct pg_walk *walk)
{
	struct pg_code_search *search = walk->unwinder->search;

	if (search->credit < PG_CODE_CREDIT)
		search->credit += PG_CODE_GRANT;
}

static const struct pg_rule *code_rule(const struct pg_walk *walk, const struct place *place, bool exact)
{
	struct pg_rule *rule;

	if (!find_cached(walk, place, exact ? OWNER_INTERRUPTED : OWNER_RETURNED, place->offset, &rule) &&
	    is_affordable(walk, rule))
		pg_code_rule(walk->unwinder->search, place->binary, place->offset,
			     exact ? PG_CODE_INTERRUPTED : PG_CODE_RETURNED, rule);
	return rule;
}

/* Both are offsets within 4 GiB, or there is no rule. */
static const struct pg_rule *rule_since(const struct pg_walk *walk, const struct place *place,
					uint64_t entry)
{
	static const struct pg_rule none = { .kind = PG_RULE_STOP, .end = PG_END_NO_RULE };
	struct pg_rule *rule;

	if (entry > UINT32_MAX || place->offset > UINT32_MAX)
		return &none;
	if (!find_cached(walk, place, OWNER_SINCE, entry << 32 | place->offset, &rule) &&
	    is_affordable(walk, rule))
		pg_code_rule_since(walk->unwinder->search, place->binary, entry, place->offset, rule);
	return rule;
}

/* The function that the call before a place calls. False if it is not said there. */
static bool find_callee(const struct place *behind, uint64_t *entry)
{
	struct pg_bytes code;

	if (behind->offset < 5)
		return false;
	pg_file_view_some(&behind->binary->file, behind->offset - 5, 5, &code);
	if (pg_take_u8(&code) != 0xe8)
		return false;
	*entry = behind->offset + (uint64_t)(int64_t)(int32_t)pg_take_u32(&code);
	return !code.broken;
}

static bool is_return_address(const struct pg_walk *walk, uint64_t word)
{
	const struct pg_mapping *mapping = pg_find_code(walk, word);

	return mapping && pg_user_call_ends(walk, mapping, word) == PG_CALL;
}

/* Signals' handlers, and goroutines, return to where no call is. */
static bool is_made_return(const struct pg_walk *walk, uint64_t word)
{
	struct place place = find_place(walk, word);

	return place.binary && (pg_code_is_sigreturn(place.binary, place.offset) ||
				pg_code_ends_goroutine(place.binary, place.offset));
}

bool pg_is_goroutines_end(const struct pg_walk *walk, uint64_t word)
{
	struct place place = find_place(walk, word);

	return place.binary && pg_code_ends_goroutine(place.binary, place.offset);
}

/* Nothing called the code here: a program's first, a thread's, or a goroutine's. */
static bool is_outermost(const struct pg_walk *walk, const struct place *place, bool exact)
{
	const struct pg_machine *m = &walk->machine;
	const struct pg_rule *rule;

	if (!exact && (pg_code_follows_entry(place->binary, place->offset) ||
		       pg_code_ends_thread(place->binary, place->offset) ||
		       pg_code_ends_goroutine(place->binary, place->offset)))
		return true;
	if (exact && pg_knows(m, PG_RAX) && !m->regs[PG_RAX] &&
	    pg_code_begins_thread(place->binary, place->offset))
		return true;
	switch (pg_code_entry_kind(place->binary, place->offset)) {
	case PG_ENTRY_LOADER:
		return true;
	case PG_ENTRY_PROGRAM:
		/* Or is it another function behind it? */
		rule = code_rule(walk, place, exact);
		return rule->kind == PG_RULE_STOP && rule->end == PG_END_START;
	default:
		return false;
	}
}

/*
 * Where the frame pointer is set and not all is pushed yet, what would be read
 * below the stack pointer is still in its register.
 */
static void keep_unsaved(const struct pg_machine *from, struct pg_machine *to, const struct pg_rule *rule)
{
	uint64_t cfa = from->regs[PG_RBP] + (uint64_t)(int64_t)rule->cfa_offset;
	unsigned int i;

	if (rule->cfa_kind != PG_CFA_REGISTER || rule->cfa_register != PG_RBP)
		return;
	for (i = 0; i < rule->count; i++) {
		const struct pg_saved *saved = &rule->saved[i];

		if (saved->kind == PG_SAVED_AT_CFA && pg_knows(from, saved->reg) &&
		    cfa + (uint64_t)(int64_t)saved->offset < from->regs[PG_RSP])
			pg_set(to, saved->reg, from->regs[saved->reg]);
	}
}

static bool comes_to_code(const struct pg_walk *walk, uint64_t rip, bool exact)
{
	if (exact)
		return pg_find_code(walk, rip);
	return is_return_address(walk, rip) || is_made_return(walk, rip);
}

static bool apply(struct pg_walk *walk, const struct pg_rule *rule, struct pg_machine *next)
{
	uint16_t cs;

	*next = walk->machine;
	if (rule->kind == PG_RULE_STOP || pg_step(next, rule, &no_source, &cs))
		return false;
	keep_unsaved(&walk->machine, next, rule);
	return comes_to_code(walk, next->regs[PG_RIP], rule->exact);
}

/* In main(), which need not return: by what has happened since it was called. */
static bool step_from_main(struct pg_walk *walk, const struct place *place, struct pg_machine *next)
{
	uint64_t main;

	return pg_code_find_main(place->binary, &main) &&
	       apply(walk, rule_since(walk, place, main), next);
}

/*
 * From a function that never returns, such as those that call main() and a
 * thread's: up to a word behind a call of a function that leads here, with the
 * stack as it is, or to where nothing calls. Words that another function was
 * called by are old ones; one of which it cannot be told ends this.
 */
static bool step_from_endless(struct pg_walk *walk, const struct place *place, bool exact,
			      bool endless, struct pg_machine *next)
{
	uint64_t sp = walk->machine.regs[PG_RSP], at = exact ? pg_align_word(sp) : sp + 8, word, entry;

	for (; at - sp < MAX_FRAME && pg_load64(&walk->machine, at, &word); at += exact ? 8 : 16) {
		struct place caller;

		if (!is_return_address(walk, word))
			continue;
		caller = find_place(walk, word);
		if (pg_code_follows_entry(caller.binary, caller.offset) ||
		    (endless && is_outermost(walk, &caller, false))) {
			*next = walk->machine;
			next->known = 0;
			pg_set(next, PG_RIP, word);
			pg_set(next, PG_RSP, at + 8);
			return true;
		}
		if (caller.binary != place->binary || !find_callee(&caller, &entry))
			return false;
		if (apply(walk, rule_since(walk, place, entry), next) && next->regs[PG_RSP] == at + 8)
			return true;
	}
	return false;
}

/*
 * Where a call says what it called, and that is in the same file: does it lead
 * to RIP? *rule: what has happened since then, if it does.
 */
static bool leads_here(const struct pg_walk *walk, const struct place *place, uint64_t word,
		       const struct pg_rule **rule)
{
	struct place caller = find_place(walk, word);
	uint64_t entry;

	*rule = NULL;
	if (caller.binary != place->binary || !find_callee(&caller, &entry))
		return true;
	*rule = rule_since(walk, place, entry);
	return (*rule)->kind != PG_RULE_STOP || (*rule)->end != PG_END_START;
}

bool pg_could_have_called(const struct pg_walk *walk, uint64_t word)
{
	struct place place = find_place(walk, walk->machine.regs[PG_RIP]);
	const struct pg_rule *rule;

	return !place.binary || leads_here(walk, &place, word, &rule);
}

bool pg_is_proven(const struct pg_walk *walk, const struct pg_machine *next, bool exact)
{
	uint64_t rip = next->regs[PG_RIP];

	return comes_to_code(walk, rip, exact) && (exact || pg_could_have_called(walk, rip));
}

/*
 * What the code does from here on, and what it did since it was called, must be
 * of one frame. Frame pointers are right whatever was done.
 */
static bool is_confirmed(const struct pg_walk *walk, const struct place *place,
			 const struct pg_machine *next, bool by_sp)
{
	struct pg_machine other = walk->machine;
	const struct pg_rule *rule;
	uint16_t cs;

	if (!leads_here(walk, place, next->regs[PG_RIP], &rule))
		return false;
	if (!by_sp || !rule || rule->kind == PG_RULE_STOP || pg_step(&other, rule, &no_source, &cs))
		return true;
	return other.regs[PG_RSP] == next->regs[PG_RSP];
}

enum pg_by_code pg_step_by_code(struct pg_walk *walk, bool *exact)
{
	struct place place = find_place(walk, walk->machine.regs[PG_RIP]);
	const struct pg_rule *rule;
	struct pg_machine next;
	bool endless, exact_next, by_sp;

	if (!place.binary)
		return PG_BY_CODE_NOT;
	if (is_outermost(walk, &place, *exact))
		return PG_BY_CODE_OUTERMOST;
	rule = code_rule(walk, &place, *exact);
	endless = rule->kind == PG_RULE_STOP && rule->end == PG_END_START;
	by_sp = rule->cfa_register == PG_RSP;
	exact_next = rule->exact;
	if (apply(walk, rule, &next) && (exact_next || is_confirmed(walk, &place, &next, by_sp))) {
		*exact = exact_next;
	} else if (step_from_main(walk, &place, &next) ||
		   step_from_endless(walk, &place, *exact, endless, &next)) {
		*exact = false;
	} else {
		return PG_BY_CODE_NOT;
	}
	walk->machine = next;
	return PG_BY_CODE_STEP;
}
