/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_fitmap.c: first fit against a plain array of bool that is searched from its beginning.
 */
#include "base/fitmap.h"

#include "assertions.h"
#include <string.h>

#include "heap_arena.h"

TestSuite(fitmap, .timeout = 55);

static struct heap_arena heap;
static struct fitmap map;

static void
up(size_t max)
{
	heap_arena_init(&heap, 64 << 20, 0);
	cr_assert(zero(int, fitmap_init(&map, &heap.arena, max)));
}

static void
down(void)
{
	fitmap_check(&map);
	fitmap_fini(&map);
	heap_arena_fini(&heap);
}

/* Find and take n items; fails the test unless they were had. */
static size_t
take(size_t n, size_t align, size_t skew)
{
	size_t first = SIZE_MAX;

	cr_assert(fitmap_find(&map, n, align, skew, &first));
	cr_assert(zero(int, fitmap_reach(&map, first + n)));
	fitmap_take(&map, first, n);
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

/* --- the oracle --- */

#define ORACLE_MAX ((size_t)3000)
static bool taken[ORACLE_MAX];

static bool
all_free(size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++)
		if (taken[i])
			return false;
	return true;
}

static size_t
oracle_find(size_t max, size_t n, size_t align, size_t skew)
{
	for (size_t first = 0; first + n <= max; first++)
		if ((first + skew) % align == 0 && all_free(first, n))
			return first;
	return SIZE_MAX;
}

static size_t
oracle_room(size_t max, size_t first)
{
	size_t end = first;

	while (end < max && !taken[end])
		end++;
	return end - first;
}

/* Random takes and gives, of parts too; each find must say what the oracle says. */
static void
run_oracle(uint64_t seed, size_t max, unsigned ops)
{
	size_t count = 0;

	memset(taken, 0, sizeof taken);
	up(max);
	for (unsigned op = 0; op < ops; op++) {
		const size_t n = 1 + rnd(&seed) % (rnd(&seed) % 4 == 0 ? 200 : 9);
		const size_t align = (size_t)1 << (rnd(&seed) % 3 == 0 ? rnd(&seed) % 8 : 0);
		const size_t skew = rnd(&seed) % 1000, at = rnd(&seed) % max;
		size_t first = SIZE_MAX;

		if (rnd(&seed) % 100 < 55) {
			const size_t want = oracle_find(max, n, align, skew);

			cr_assert(eq(int, fitmap_find(&map, n, align, skew, &first),
				     want != SIZE_MAX));
			cr_assert(eq(sz, first, want));
			if (want == SIZE_MAX)
				continue;
			cr_assert(zero(int, fitmap_reach(&map, first + n)));
			fitmap_take(&map, first, n);
			memset(taken + first, true, n);
			count += n;
		} else if (taken[at]) {
			size_t len = 1;

			while (len < n && at + len < max && taken[at + len])
				len++;
			fitmap_give(&map, at, len);
			memset(taken + at, false, len);
			count -= len;
		} else {
			cr_assert(eq(sz, fitmap_room(&map, at), oracle_room(max, at)));
		}
		cr_assert(eq(sz, fitmap_taken(&map), count));
		if (op % 64 == 0)
			fitmap_check(&map);
	}
	for (size_t i = 0; i < max; i++)
		cr_assert(eq(int, fitmap_is_free(&map, i), !taken[i]));
	down();
}

Test(fitmap, finds_the_lowest_fit_as_a_search_from_the_beginning_does)
{
	static const size_t max[] = { 1, 63, 64, 65, 500, 1024, ORACLE_MAX };

	for (size_t i = 0; i < ARRAY_SIZE(max); i++)
		for (uint64_t seed = 1; seed <= 6; seed++)
			run_oracle(seed * 0x9e3779b97f4a7c15, max[i], 4000);
}

/* --- edges --- */

Test(fitmap, what_is_never_needed_costs_nothing)
{
	up((size_t)1 << 32);
	cr_assert(eq(sz, take(3, 1, 0), 0));
	cr_assert(eq(sz, fitmap_room(&map, 3), ((size_t)1 << 32) - 3));
	cr_assert(eq(sz, map.words.committed, PAGE_SIZE));
	down();
}

Test(fitmap, the_last_items_are_to_be_had_and_none_beyond)
{
	size_t first;

	up(130);
	cr_assert(eq(sz, take(128, 1, 0), 0));
	cr_assert(not(fitmap_find(&map, 3, 1, 0, &first)));
	cr_assert(not(fitmap_find(&map, 131, 1, 0, &first)));
	cr_assert(not(fitmap_find(&map, 1, 4, 1, &first)),
		  "128 + 1 is no multiple of 4, 131 is too far");
	cr_assert(eq(sz, take(2, 1, 0), 128));
	cr_assert(not(fitmap_find(&map, 1, 1, 0, &first)));
	fitmap_give(&map, 0, 130);
	cr_assert(eq(sz, take(130, 1, 0), 0));
	down();
}

Test(fitmap, a_run_at_the_end_goes_on_beyond_what_was_ever_taken)
{
	up(1000);
	cr_assert(eq(sz, take(10, 1, 0), 0));
	cr_assert(eq(sz, take(10, 1, 0), 10));
	fitmap_give(&map, 15, 5);
	cr_assert(eq(sz, take(500, 1, 0), 15));
	cr_assert(eq(sz, fitmap_taken(&map), 515));
	down();
}

Test(fitmap, what_alignment_skips_is_free_for_others)
{
	up(1000);
	cr_assert(eq(sz, take(1, 1, 5), 0));
	cr_assert(eq(sz, take(8, 64, 5), 59));
	cr_assert(eq(sz, take(58, 1, 5), 1));
	cr_assert(eq(sz, take(1, 1, 5), 67));
	down();
}

/* Freeing must bring the hint of every length back that fits what was joined. */
Test(fitmap, neighbours_that_are_freed_join)
{
	up(4096);
	for (size_t i = 0; i < 2048; i++)
		cr_assert(eq(sz, take(1, 1, 0), i));
	for (size_t i = 1; i < 2048; i += 2)
		fitmap_give(&map, i, 1);
	cr_assert(eq(sz, take(2, 1, 0), 2047), "the last one and what lies behind");
	fitmap_give(&map, 100, 1);
	cr_assert(eq(sz, take(3, 1, 0), 99));
	for (size_t i = 200; i < 300; i += 2)
		fitmap_give(&map, i, 1);
	cr_assert(eq(sz, take(101, 1, 0), 199));
	down();
}

Test(fitmap, without_memory_for_its_bits_nothing_is_taken)
{
	size_t first;

	up((size_t)1 << 20);
	cr_assert(eq(sz, take(100, 1, 0), 0));
	cr_assert(fitmap_find(&map, 1 << 18, 1, 0, &first));
	heap_arena_fail_commit(&heap, 1);
	cr_assert(lt(int, fitmap_reach(&map, first + (1 << 18)), 0));
	cr_assert(heap_arena_disarm(&heap));
	cr_assert(eq(sz, fitmap_taken(&map), 100));
	fitmap_check(&map);
	cr_assert(eq(sz, take(1 << 18, 1, 0), 100));
	down();
}
