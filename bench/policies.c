/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * policies.c: the library with one replacement policy and another.
 *
 * The strings of the simulator (bench/policy), over a runtime: misses and soft faults are counts, which no noise of the machine
 * touches, and can be held against the model's; the time says what they cost.  Then the patterns.  A policy of the same
 * round sees the same string.
 *
 * Read-ahead is off unless --no-advice says that the library is told nothing: so that a miss is a page, as in the model.
 *
 * Alternative looked at: a variable of the environment that every runtime would heed.  Nobody but us has a use for it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "policy/refstring.h"

/* Four times the memory, as in the pattern rows; small, or phases of the strings would take minutes. */
#define STRING_PAGES ((uint32_t)16384)
#define STRING_MEMORY ((size_t)16 << 20)
#define STRING_ACCESSES ((size_t)131072)
#define STORE_EVERY 4 /* of so many accesses one stores */

static void
touch_all(unsigned char *base, const struct refstring *r)
{
	static bool there[STRING_PAGES];

	memset(there, 0, sizeof there);
	memset(bench.generation, 0, STRING_PAGES * sizeof *bench.generation);
	for (size_t i = 0; i < r->n; i++) {
		const size_t page = r->page[i];
		unsigned char *p = base + page * PAGE;

		if (!there[page]) {
			page_write(p, page);
			there[page] = true;
		} else if (i % STORE_EVERY == 0) {
			page_rewrite(base, page);
		} else {
			page_check_word(*(const volatile uint64_t *)(const void *)p, page);
		}
	}
}

static void
string_run(const char *policy, unsigned law)
{
	struct up_config cfg = { .memory_limit = STRING_MEMORY };
	struct up_runtime *rt = ours_open_with(&cfg, policy);
	unsigned char *base = ours_map(rt, STRING_PAGES);
	struct up_stats st = ours_stats(rt);
	struct refstring_config want = { .pages = STRING_PAGES,
					 .memory = (uint32_t)((st.limit - st.metadata) / PAGE),
					 .n = STRING_ACCESSES,
					 .seed = bench.round + 1 };
	const char *name = refstring_name(law);
	struct refstring r;
	uint64_t start, missed;
	double us;

	if (!refstring_make(&r, law, &want))
		job_fail("no memory for the string");
	if (bench.advice)
		ours_advise(rt, base, STRING_PAGES, UP_ADVICE_RANDOM);
	start = bench_now();
	touch_all(base, &r);
	us = (double)(bench_now() - start) / 1e3;
	st = ours_stats(rt);
	missed = st.faults[UP_FAULT_ZERO] + st.faults[UP_FAULT_MAJOR];
	job_value("us", us / (double)r.n, "%s.%s.us", policy, name);
	job_value("1", (double)missed / (double)r.n, "%s.%s.misses", policy, name);
	job_value("1", (double)st.faults[UP_FAULT_SOFT] / (double)r.n, "%s.%s.soft", policy, name);
	job_value("1", (double)st.swap_read_bytes / PAGE / (double)r.n, "%s.%s.read", policy, name);
	job_value("1", (double)st.swap_write_bytes / PAGE / (double)r.n, "%s.%s.written", policy,
		  name);
	if (st.used_max > STRING_MEMORY)
		job_fail("BUDGET BROKEN: used up to %llu bytes", (unsigned long long)st.used_max);
	refstring_free(&r);
	up_runtime_destroy(rt);
}

void
policy_strings(const void *arg)
{
	const char *policy = arg;
	const struct race race = { .who = policy, .threads = 1 };

	for (unsigned law = 0; refstring_name(law) != NULL; law++)
		string_run(policy, law);
	memset(bench.generation, 0, bench.scale.pages * sizeof *bench.generation);
	ours_patterns_with(policy, &race);
}
