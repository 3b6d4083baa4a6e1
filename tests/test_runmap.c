/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_runmap.c: the map of free items against a plain array of bool.
 */
#include "base/runmap.h"

#include "assertions.h"
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "heap_arena.h"

/* Per suite: a time-out of a single test makes Criterion 2.4 leak. */
TestSuite(runmap, .timeout = 60);

static struct heap_arena heap;
static struct runmap map;

static void
up(size_t max)
{
	heap_arena_init(&heap, 16 << 20, 0);
	cr_assert(zero(int, runmap_init(&map, &heap.arena, max)));
}

static void
down(void)
{
	runmap_check(&map);
	runmap_fini(&map);
	heap_arena_fini(&heap);
}

/* Take and say where; fails the test unless all of `want` was had. */
static size_t
take(size_t want)
{
	size_t first = SIZE_MAX;

	cr_assert(eq(sz, runmap_take(&map, want, &first), want));
	return first;
}

static uint64_t
rnd(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/*
 * The oracle: free_[i] says whether item i is free.
 */

#define ORACLE_MAX ((size_t)64 * 300)
static bool free_[ORACLE_MAX];

static size_t
oracle_nfree(size_t n)
{
	size_t nfree = 0;

	for (size_t i = 0; i < n; i++)
		nfree += free_[i];
	return nfree;
}

/* The longest run of free items that lies in one word, at most `most`. */
static size_t
oracle_longest(size_t n, size_t most)
{
	size_t best = 0, len = 0;

	for (size_t i = 0; i < n; i++) {
		if (i % 64 == 0)
			len = 0;
		len = free_[i] ? len + 1 : 0;
		best = MAX(best, len);
	}
	return MIN(best, most);
}

/*
 * Random takes, gives and growth.  While the map has at most RUNMAP_LOOK words, take must
 * find the longest run there is, up to what is wanted.
 */
static void
run_oracle(uint64_t seed, size_t words, unsigned ops, unsigned fullness)
{
	size_t n = 0, first, len, want, expect;

	memset(free_, 0, sizeof free_);
	up(words * 64);
	for (unsigned op = 0; op < ops; op++) {
		const unsigned dice = rnd(&seed) % 100;

		if (n == 0 || (dice < 2 && n < words * 64)) {
			const size_t more = (1 + rnd(&seed) % 5) * 64;
			const size_t to = MIN(n + more, words * 64);
			const bool as = rnd(&seed) % 4 != 0;

			cr_assert(zero(int, runmap_grow(&map, to, as)));
			for (; n < to; n++)
				free_[n] = as;
		} else if (dice < fullness) {
			want = rnd(&seed) % 3 == 0 ? 1 : rnd(&seed) % 64 + 1;
			expect = oracle_longest(n, want);
			first = SIZE_MAX;
			len = runmap_take(&map, want, &first);
			cr_assert(le(sz, len, want));
			cr_assert(eq(int, len == 0, expect == 0), "seed op %u", op);
			if (n / 64 <= RUNMAP_LOOK)
				cr_assert(eq(sz, len, expect), "op %u wanted %zu", op, want);
			if (len == 0)
				continue;
			cr_assert(eq(sz, first / 64, (first + len - 1) / 64));
			for (size_t i = first; i < first + len; i++) {
				cr_assert(free_[i], "op %u: item %zu handed out twice", op, i);
				free_[i] = false;
			}
		} else {
			/* A stretch of taken items, wherever it begins, across words too. */
			first = rnd(&seed) % n;
			want = rnd(&seed) % 150 + 1;
			for (len = 0; len < want && first + len < n && !free_[first + len]; len++)
				free_[first + len] = true;
			runmap_give(&map, first, len);
		}
		cr_assert(eq(sz, map.nfree, oracle_nfree(n)));
		if (op % 16 == 0) {
			runmap_check(&map);
			for (size_t i = 0; i < n; i++)
				cr_assert(eq(int, runmap_is_free(&map, i), free_[i]));
		}
	}
	down();
}

Test(runmap, random_operations_agree_with_a_plain_array)
{
	for (uint64_t seed = 1; seed <= 20; seed++)
		run_oracle(seed * 0x9e3779b97f4a7c15u, 40, 1500, 40 + (unsigned)seed);
}

Test(runmap, a_large_fragmented_map_never_hands_out_an_item_twice)
{
	for (uint64_t seed = 1; seed <= 3; seed++)
		run_oracle(seed * 0xd1342543de82ef95u, 300, 1500, 50 + 10 * (unsigned)seed);
}

Test(runmap, a_new_map_has_nothing_to_give)
{
	size_t first = 5;

	up(640);
	cr_assert(zero(sz, runmap_take(&map, 1, &first)));
	cr_assert(zero(sz, runmap_take(&map, 64, &first)));
	cr_assert(eq(sz, first, 5));
	down();
}

Test(runmap, clusters_lie_one_behind_the_other)
{
	up(6400);
	cr_assert(zero(int, runmap_grow(&map, 6400, true)));
	for (size_t i = 0; i < 100; i++)
		cr_assert(eq(sz, take(64), i * 64));
	cr_assert(zero(sz, map.nfree));
	down();
}

Test(runmap, runs_shorter_than_a_word_lie_one_behind_the_other_too)
{
	up(6400);
	cr_assert(zero(int, runmap_grow(&map, 6400, true)));
	for (size_t i = 0; i < 400; i++)
		cr_assert(eq(sz, take(16), i * 16));
	down();
}

Test(runmap, next_fit_goes_past_what_was_freed_behind_it_and_comes_round)
{
	up(640);
	cr_assert(zero(int, runmap_grow(&map, 640, true)));
	for (size_t i = 0; i < 5; i++)
		cr_assert(eq(sz, take(64), i * 64));
	runmap_give(&map, 0, 128);
	for (size_t i = 5; i < 10; i++)
		cr_assert(eq(sz, take(64), i * 64));
	cr_assert(eq(sz, take(64), 0));
	cr_assert(eq(sz, take(64), 64));
	down();
}

Test(runmap, a_cluster_prefers_a_whole_word_to_the_gaps_in_others)
{
	up(256);
	cr_assert(zero(int, runmap_grow(&map, 256, true)));
	for (size_t i = 0; i < 4; i++)
		take(64);
	/* The search goes round, and meets 40 free items in each of two words before a whole one. */
	runmap_give(&map, 0, 40);
	runmap_give(&map, 64, 40);
	runmap_give(&map, 128, 64);
	cr_assert(eq(sz, take(32), 128));
	down();
}

Test(runmap, a_single_item_fills_a_gap_before_it_breaks_a_whole_word)
{
	up(640);
	cr_assert(zero(int, runmap_grow(&map, 640, true)));
	take(64);
	take(64);
	runmap_give(&map, 100, 2);
	cr_assert(eq(sz, take(1), 100));
	cr_assert(eq(sz, take(1), 101));
	cr_assert(eq(sz, take(1) / 64, 2));
	down();
}

Test(runmap, single_items_do_not_pull_the_clusters_away)
{
	up(640);
	cr_assert(zero(int, runmap_grow(&map, 640, true)));
	take(64);
	take(64);
	take(64);
	/* A gap for the single item, and behind it a whole word that the clusters have passed. */
	runmap_give(&map, 10, 2);
	runmap_give(&map, 64, 64);
	cr_assert(eq(sz, take(1), 10));
	cr_assert(eq(sz, take(64), 192));
	down();
}

Test(runmap, when_no_run_is_long_enough_the_longest_one_is_taken)
{
	up(256);
	cr_assert(zero(int, runmap_grow(&map, 256, false)));
	runmap_give(&map, 3, 2);
	runmap_give(&map, 70, 7);
	runmap_give(&map, 80, 4);
	runmap_give(&map, 250, 6);

	size_t first = 0;

	cr_assert(eq(sz, runmap_take(&map, 9, &first), 7));
	cr_assert(eq(sz, first, 70));
	cr_assert(eq(sz, take(6), 250));
	cr_assert(eq(sz, take(3), 80));
	down();
}

Test(runmap, a_run_never_crosses_a_word)
{
	size_t first = 0;

	up(128);
	cr_assert(zero(int, runmap_grow(&map, 128, false)));
	runmap_give(&map, 50, 30);
	cr_assert(eq(sz, runmap_take(&map, 30, &first), 16));
	cr_assert(eq(sz, first, 64));
	cr_assert(eq(sz, take(14), 50));
	down();
}

Test(runmap, growing_past_the_maximum_is_refused_and_adds_nothing)
{
	up(128);
	cr_assert(zero(int, runmap_grow(&map, 128, true)));
	cr_assert(eq(int, runmap_grow(&map, 1 << 20, true), -ENOMEM));
	cr_assert(eq(sz, map.n, 128));
	cr_assert(eq(sz, map.nfree, 128));
	down();
}

/* Fail the 1st, 2nd, 3rd ... commit in turn, until there is none left to fail. */
Test(runmap, growing_adds_nothing_and_leaks_nothing_whichever_commit_fails)
{
	const size_t n = (size_t)64 << 15; /* 256 KiB of words: several commits */
	unsigned nth = 0;
	bool fired;
	int r;

	do {
		up(n);
		cr_assert(zero(int, runmap_grow(&map, 64, true)));
		take(64);
		heap_arena_fail_commit(&heap, ++nth);
		r = runmap_grow(&map, n, true);
		fired = heap_arena_disarm(&heap);
		cr_assert(eq(int, r, fired ? -ENOMEM : 0));
		if (fired) {
			cr_assert(eq(sz, map.n, 64));
			cr_assert(zero(sz, map.nfree));
			runmap_check(&map);
			cr_assert(zero(int, runmap_grow(&map, n, true)), "did not heal");
		}
		cr_assert(eq(sz, map.nfree, n - 64));
		cr_assert(eq(sz, take(64), 64));
		down();
	} while (fired);
	cr_assert(gt(uint, nth, 5u));
}

#ifndef NDEBUG
Test(runmap, giving_back_a_free_item_is_caught, .signal = SIGABRT)
{
	up(128);
	cr_assert(zero(int, runmap_grow(&map, 128, true)));
	take(64);
	runmap_give(&map, 63, 2);
}
#endif

Test(runmap, one_item_can_be_claimed_once)
{
	up(256);
	cr_assert(zero(int, runmap_grow(&map, 128, true)));
	cr_assert(runmap_claim(&map, 77));
	cr_assert(not(runmap_claim(&map, 77)));
	cr_assert(not(runmap_claim(&map, 128)));
	cr_assert(eq(sz, map.nfree, 127));
	runmap_check(&map);
	runmap_give(&map, 77, 1);
	cr_assert(runmap_claim(&map, 77));
	down();
}
