/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* A rule where no table tells one: made from the code. */
#ifndef PERFGUEST_UNWIND_CODE_RULE_H
#define PERFGUEST_UNWIND_CODE_RULE_H

#include "binary.h"
#include "rule.h"

struct pg_code_search;	/* room to work in */

enum pg_code_at {
	PG_CODE_INTERRUPTED,	/* anywhere in a function */
	PG_CODE_RETURNED,	/* behind a call: the stack is aligned */
};

/*
 * What the code at offset of the file does until it returns. Without a rule
 * rule->end is PG_END_START if it is certain that it never does, PG_END_PAGES
 * if pages are missing, else PG_END_NO_RULE.
 */
void pg_code_rule(struct pg_code_search *s, const struct pg_binary *binary, uint64_t offset,
		  enum pg_code_at at, struct pg_rule *rule);

/*
 * What has happened at offset since the function at entry was called. No rule
 * if no way leads from there to here.
 */
void pg_code_rule_since(struct pg_code_search *s, const struct pg_binary *binary, uint64_t entry,
			uint64_t offset, struct pg_rule *rule);

#endif
