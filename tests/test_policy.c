/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_policy.c: replacement policies one signal at a time, and all of it at random against a plain model
 * that keeps each queue as an array and each eviction for ever.
 */
#include "vm/policy.h"

#include "assertions.h"
#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* Per suite: a time-out of a single test makes Criterion 2.4 leak. */
TestSuite(policy, .timeout = 60);
TestSuite(ghost, .timeout = 60);

static uint64_t
rnd(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* --- ghosts --- */

static struct ghost ghost;

static void
ghost_up(size_t n)
{
	ghost_init(&ghost, calloc(1, ghost_bytes(n)), n);
}

static void
ghost_down(void)
{
	ghost_check(&ghost);
	free(ghost.entry);
}

Test(ghost, the_distance_is_how_many_others_left_meanwhile)
{
	ghost_up(1000);
	for (uint64_t key = 0; key < 500; key++)
		ghost_add(&ghost, key);
	cr_assert(eq(u32, ghost_take(&ghost, 499), 0));
	cr_assert(eq(u32, ghost_take(&ghost, 498), 1));
	cr_assert(eq(u32, ghost_take(&ghost, 400), 99));
	ghost_down();
}

Test(ghost, one_that_has_grown_remembers_more_from_then_on)
{
	unsigned known = 0;

	ghost_init(&ghost, calloc(1, ghost_bytes(8000)), 1000);
	for (uint64_t key = 0; key < 1000; key++)
		ghost_add(&ghost, key);
	ghost_resize(&ghost, 8000);
	for (uint64_t key = 1000; key < 5000; key++)
		ghost_add(&ghost, key);
	for (uint64_t key = 1000; key < 5000; key++)
		known += ghost_take(&ghost, key) != GHOST_UNKNOWN;
	cr_assert(gt(uint, known, 3900), "%u of 4000", known);
	ghost_down();
}

Test(ghost, who_has_come_back_is_forgotten)
{
	ghost_up(1000);
	ghost_add(&ghost, 7);
	cr_assert(eq(u32, ghost_take(&ghost, 7), 0));
	cr_assert(eq(u32, ghost_take(&ghost, 7), GHOST_UNKNOWN));
	cr_assert(zero(sz, ghost_check(&ghost)));
	ghost_down();
}

Test(ghost, who_never_left_is_unknown)
{
	ghost_up(1000);
	cr_assert(eq(u32, ghost_take(&ghost, 0), GHOST_UNKNOWN));
	ghost_add(&ghost, 1);
	cr_assert(eq(u32, ghost_take(&ghost, 0), GHOST_UNKNOWN));
	ghost_down();
}

Test(ghost, leaving_again_counts_from_then)
{
	ghost_up(1000);
	ghost_add(&ghost, 1);
	for (uint64_t key = 100; key < 150; key++)
		ghost_add(&ghost, key);
	ghost_add(&ghost, 1);
	cr_assert(eq(sz, ghost_check(&ghost), 51));
	cr_assert(eq(u32, ghost_take(&ghost, 1), 0));
	ghost_down();
}

Test(ghost, memory_is_four_bytes_an_entry_and_never_more_entries_than_that)
{
	cr_assert(eq(sz, ghost_bytes(1 << 20), (size_t)4 << 20));
	cr_assert(eq(sz, ghost_bytes(1), 4 * GHOST_WAYS));
	ghost_up(1000);
	for (uint64_t key = 0; key < 20000; key++)
		ghost_add(&ghost, key);
	cr_assert(le(sz, ghost_check(&ghost), ghost_bytes(1000) / 4));
	ghost_down();
}

Test(ghost, the_latest_are_kept_and_the_oldest_given_up)
{
	enum { N = 8192, ALL = 10 * N };
	unsigned recent = 0, old = 0;

	ghost_up(N);
	for (uint64_t key = 0; key < ALL; key++)
		ghost_add(&ghost, key);
	for (uint64_t key = ALL - N / 4; key < ALL; key++)
		recent += ghost_take(&ghost, key) != GHOST_UNKNOWN;
	for (uint64_t key = 0; key < ALL - 4 * N; key++)
		old += ghost_take(&ghost, key) != GHOST_UNKNOWN;
	cr_assert(ge(uint, recent, N / 4 * 99 / 100));
	/* Somebody else's fingerprint, at most. */
	cr_assert(le(uint, old, N / 100));
	ghost_down();
}

Test(ghost, distances_of_a_large_memory_are_exact_to_one_part_in_4096)
{
	enum { N = 1 << 20 };
	unsigned known = 0;

	ghost_up(N);
	for (uint64_t key = 0; key < N; key++)
		ghost_add(&ghost, key);
	for (uint64_t key = N - N / 4; key < N; key += 1000) {
		const uint32_t d = ghost_take(&ghost, key), exactly = (uint32_t)(N - 1 - key);

		if (d == GHOST_UNKNOWN)
			continue;
		known++;
		cr_assert(le(u32, d > exactly ? d - exactly : exactly - d, N / 4096));
	}
	cr_assert(ge(uint, known, N / 4 / 1000 * 99 / 100));
	ghost_down();
}

/* The stamp wraps after 16 times as many evictions as there are entries. */
Test(ghost, nobody_comes_back_young_after_the_stamp_has_wrapped)
{
	enum { N = 4096, WRAP = 1 << 16 };
	unsigned young = 0;

	ghost_up(N);
	for (uint64_t key = 0; key < N; key++)
		ghost_add(&ghost, key);
	for (uint64_t key = N; key < N + WRAP; key++)
		ghost_add(&ghost, key);
	for (uint64_t key = 0; key < N; key++)
		young += ghost_take(&ghost, key) != GHOST_UNKNOWN;
	cr_assert(le(uint, young, N / 1000));
	ghost_down();
}

Test(ghost, without_memory_nothing_is_remembered)
{
	ghost_init(&ghost, NULL, 1000);
	ghost_add(&ghost, 1);
	cr_assert(eq(u32, ghost_take(&ghost, 1), GHOST_UNKNOWN));
	cr_assert(zero(sz, ghost_check(&ghost)));
}

/* --- policies --- */

#define PAGES 256
#define ONCE_MIN 8

/* Nodes are part of something larger, as in struct page. */
static struct thing {
	char before[20];
	struct policy_node node;
	char behind[16];
} thing[PAGES];

static struct policy policy;
static void *ghosts;

static void
up(enum policy_kind kind, size_t frames)
{
	memset(thing, 0, sizeof thing);
	ghosts = calloc(1, policy_ghost_bytes(kind, frames) + 1);
	policy_init(&policy, &(struct policy_config){ .kind = kind,
						      .nodes = &thing[0].node,
						      .stride = sizeof thing[0],
						      .frames = frames,
						      .once_min = ONCE_MIN,
						      .ghost = ghosts });
}

static void
down(void)
{
	policy_check(&policy);
	free(ghosts);
}

static void
arrive(pageno_t no)
{
	policy_insert(&policy, no);
	policy_put(&policy, no, POLICY_MAPPED);
}

static void
come_back(pageno_t no, uint64_t key)
{
	policy_refault(&policy, no, key, true);
	policy_put(&policy, no, POLICY_MAPPED);
}

static void
touch(pageno_t no)
{
	policy_take(&policy, no);
	policy_touched(&policy, no);
	policy_put(&policy, no, POLICY_MAPPED);
}

static bool
anyone(void *ctx, pageno_t no)
{
	(void)ctx;
	(void)no;
	return true;
}

/* The next one from a place, on no queue; PAGE_NONE: there is none. */
static pageno_t
victim(enum policy_place from)
{
	pageno_t no = PAGE_NONE;

	return policy_victims(&policy, from, 1, anyone, NULL, &no) == 1 ? no : PAGE_NONE;
}

/* Stage the next mapped page. */
static pageno_t
stage(void)
{
	const pageno_t no = victim(POLICY_MAPPED);

	if (no != PAGE_NONE)
		policy_put(&policy, no, POLICY_STAGED);
	return no;
}

static void
evict(pageno_t no, uint64_t key)
{
	policy_take(&policy, no);
	policy_evicted(&policy, no, key);
	policy_removed(&policy, no);
}

Test(policy, a_page_costs_10_bytes_and_4_for_its_ghost)
{
	cr_assert(eq(sz, sizeof(struct policy_node), 10));
	cr_assert(zero(sz, policy_ghost_bytes(POLICY_SFIFO, 1 << 20)));
	cr_assert(eq(sz, policy_ghost_bytes(POLICY_SFIFO_REFAULT, 1 << 20), (size_t)4 << 20));
	cr_assert(eq(sz, policy_ghost_bytes(POLICY_S3FIFO, 1 << 20), (size_t)4 << 20));
}

Test(policy, without_news_pages_leave_in_the_order_in_which_they_came)
{
	for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
		up(kind, PAGES);
		for (pageno_t no = 0; no < 100; no++)
			arrive(no);
		for (pageno_t no = 0; no < 100; no++)
			cr_assert(eq(u32, stage(), no));
		cr_assert(eq(u32, stage(), PAGE_NONE));
		for (pageno_t no = 0; no < 100; no++) {
			cr_assert(eq(u32, victim(POLICY_STAGED), no));
			policy_put(&policy, no, POLICY_CLEAN);
		}
		for (pageno_t no = 0; no < 100; no++) {
			cr_assert(eq(u32, victim(POLICY_CLEAN), no));
			policy_evicted(&policy, no, no);
			policy_removed(&policy, no);
		}
		down();
	}
}

Test(policy, a_victim_that_is_put_back_is_the_next_again)
{
	for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
		for (enum policy_place at = POLICY_MAPPED; at < POLICY_WIRED; at++) {
			pageno_t no;

			up(kind, PAGES);
			for (no = 0; no < 10; no++) {
				policy_insert(&policy, no);
				policy_put(&policy, no, at);
			}
			no = victim(at);
			cr_assert(zero(u32, no));
			policy_put_back(&policy, no, at);
			cr_assert(zero(u32, victim(at)));
			cr_assert(eq(u32, victim(at), 1));
			policy_removed(&policy, 0);
			policy_removed(&policy, 1);
			cr_assert(eq(sz, policy_count(&policy, at), 8));
			down();
		}
	}
}

Test(policy, a_page_that_was_touched_while_staged_outlives_those_that_were_not)
{
	for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
		up(kind, PAGES);
		for (pageno_t no = 0; no < 20; no++)
			arrive(no);
		for (unsigned i = 0; i < 10; i++)
			stage();
		touch(3);
		/* S3-FIFO keeps a tenth of what is new: two pages. */
		for (unsigned i = 0; i < 8; i++)
			cr_assert(ne(u32, stage(), 3));
		down();
	}
}

Test(policy, cooled_pages_go_before_all_others_in_the_order_in_which_they_were_cooled)
{
	for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
		up(kind, PAGES);
		for (pageno_t no = 0; no < 20; no++)
			arrive(no);
		for (pageno_t no = 15; no > 10; no--) {
			policy_take(&policy, no);
			policy_cool(&policy, no);
			policy_put(&policy, no, POLICY_MAPPED);
		}
		for (pageno_t no = 15; no > 10; no--)
			cr_assert(eq(u32, stage(), no));
		/* A touch makes it as good as any. */
		touch(15);
		cr_assert(zero(u32, stage()));
		down();
	}
}

static bool
odd(void *ctx, pageno_t no)
{
	++*(unsigned *)ctx;
	return no % 2 != 0;
}

Test(policy, busy_pages_stay_where_they_are)
{
	for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
		pageno_t got[8];
		unsigned asked = 0;

		up(kind, PAGES);
		for (pageno_t no = 0; no < 20; no++)
			arrive(no);
		cr_assert(eq(uint, policy_victims(&policy, POLICY_MAPPED, 8, odd, &asked, got), 8));
		for (unsigned i = 0; i < 8; i++) {
			cr_assert(eq(u32, got[i], 2 * i + 1));
			policy_put(&policy, got[i], POLICY_STAGED);
		}
		for (pageno_t no = 0; no < 16; no += 2)
			cr_assert(eq(u32, stage(), no));
		down();
	}
}

static bool
nobody(void *ctx, pageno_t no)
{
	(void)no;
	++*(unsigned *)ctx;
	return false;
}

Test(policy, after_four_busy_pages_a_victim_the_search_is_given_up)
{
	for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
		pageno_t got[8];
		unsigned asked = 0;

		up(kind, PAGES);
		for (pageno_t no = 0; no < 200; no++)
			arrive(no);
		cr_assert(
			zero(uint, policy_victims(&policy, POLICY_MAPPED, 8, nobody, &asked, got)));
		cr_assert(eq(uint, asked, 32));
		cr_assert(
			zero(uint, policy_victims(&policy, POLICY_CLEAN, 8, nobody, &asked, got)));
		cr_assert(eq(uint, asked, 32));
		down();
	}
}

Test(policy, a_page_that_is_read_ahead_begins_as_new_and_is_no_ghost_any_more)
{
	for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
		struct policy_node as_new;

		up(kind, PAGES);
		arrive(0);
		as_new = *policy_node(&policy, 0);
		evict(0, 4711);
		policy_refault(&policy, 0, 4711, false);
		cr_assert(eq(uint, policy_node(&policy, 0)->home, as_new.home));
		cr_assert(eq(uint, policy_node(&policy, 0)->count, as_new.count));
		cr_assert(eq(u32, policy_refault(&policy, 0, 4711, true), GHOST_UNKNOWN));
		policy_removed(&policy, 0);
		down();
	}
}

Test(policy, what_is_wired_is_no_victim_and_is_as_it_was_afterwards)
{
	for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
		pageno_t no;

		up(kind, PAGES);
		for (no = 0; no < 10; no++) {
			policy_insert(&policy, no);
			policy_put(&policy, no, no % 2 ? POLICY_WIRED : POLICY_MAPPED);
		}
		cr_assert(eq(sz, policy_count(&policy, POLICY_WIRED), 5));
		cr_assert(eq(sz, policy_count(&policy, POLICY_MAPPED), 5));
		for (no = 0; no < 10; no += 2)
			cr_assert(eq(u32, victim(POLICY_MAPPED), no));
		for (no = 1; no < 10; no += 2) {
			policy_take(&policy, no);
			policy_put(&policy, no, POLICY_MAPPED);
		}
		for (no = 1; no < 10; no += 2)
			cr_assert(eq(u32, victim(POLICY_MAPPED), no));
		for (no = 0; no < 10; no++)
			policy_removed(&policy, no);
		down();
	}
}

Test(policy, a_copy_is_as_good_as_the_page_it_was_made_from)
{
	for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
		up(kind, PAGES);
		policy_insert(&policy, 0);
		policy_put(&policy, 0, POLICY_STAGED);
		touch(0);
		policy_take(&policy, 0);
		policy_insert(&policy, 1);
		policy_inherit(&policy, 1, 0);
		policy_removed(&policy, 0);
		policy_put(&policy, 1, POLICY_MAPPED);
		cr_assert(eq(uint, policy_node(&policy, 1)->queue, PQ_MAIN));
		cr_assert(eq(uint, policy_node(&policy, 1)->count, kind == POLICY_S3FIFO ? 2 : 0));
		down();
	}
}

/* Slots are used again. */
Test(policy, a_page_that_is_not_remembered_takes_its_predecessors_ghost_along)
{
	up(POLICY_S3FIFO, PAGES);
	arrive(0);
	evict(0, 4711);
	policy_insert(&policy, 1);
	policy_put(&policy, 1, POLICY_STAGED);
	touch(1);
	evict(1, 4711);
	cr_assert(eq(u32, policy_refault(&policy, 1, 4711, true), GHOST_UNKNOWN));
	policy_removed(&policy, 1);
	down();
}

Test(policy, discarding_leaves_no_ghost)
{
	up(POLICY_S3FIFO, PAGES);
	arrive(0);
	policy_take(&policy, 0);
	policy_removed(&policy, 0);
	cr_assert(zero(sz, ghost_check(&policy.ghost)));
	down();
}

Test(policy, what_was_cooled_leaves_no_ghost)
{
	for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
		up(kind, PAGES);
		policy_insert(&policy, 0);
		policy_cool(&policy, 0);
		policy_put(&policy, 0, POLICY_MAPPED);
		cr_assert(zero(u32, stage()));
		evict(0, 0);
		cr_assert(eq(u32, policy_refault(&policy, 0, 0, true), GHOST_UNKNOWN));
		policy_removed(&policy, 0);
		down();
	}
}

/* Segmented FIFO with refault distance. */

Test(policy, sfifo_lets_a_page_that_came_back_soon_go_round_twice)
{
	up(POLICY_SFIFO_REFAULT, PAGES);
	for (pageno_t no = 0; no < 10; no++)
		arrive(no);
	cr_assert(zero(u32, stage()));
	evict(0, 0);
	come_back(0, 0);
	for (pageno_t no = 1; no < 10; no++)
		cr_assert(eq(u32, stage(), no));
	for (pageno_t no = 10; no < 15; no++)
		arrive(no);
	for (pageno_t no = 10; no < 15; no++)
		cr_assert(eq(u32, stage(), no));
	cr_assert(zero(u32, stage()));
	cr_assert(eq(u64, policy.spared, 1));
	down();
}

Test(policy, sfifo_lets_a_page_that_came_back_late_go_round_once)
{
	up(POLICY_SFIFO_REFAULT, PAGES);
	for (pageno_t no = 0; no < 20; no++)
		arrive(no);
	for (pageno_t no = 0; no < 15; no++) {
		stage();
		evict(no, no);
	}
	/* Five are mapped, and 14 others have left since it did. */
	come_back(0, 0);
	for (pageno_t no = 15; no < 20; no++)
		cr_assert(eq(u32, stage(), no));
	arrive(1);
	cr_assert(zero(u32, stage()));
	cr_assert(zero(u64, policy.spared));
	down();
}

/* S3-FIFO. */

/* Pages [first, first + n) that were missed soon after they had left. */
static void
make_main(pageno_t first, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		policy_insert(&policy, first + i);
		policy_evicted(&policy, first + i, first + i);
		policy_removed(&policy, first + i);
		come_back(first + i, first + i);
		cr_assert(eq(uint, policy_node(&policy, first + i)->queue, PQ_MAIN));
	}
}

Test(policy, s3fifo_takes_new_pages_first_while_they_are_more_than_a_tenth)
{
	up(POLICY_S3FIFO, PAGES);
	make_main(0, 90);
	for (pageno_t no = 100; no < 130; no++)
		arrive(no);
	/* 120 in memory, staged ones too: at most 12 are to stay fresh. */
	for (pageno_t no = 100; no < 118; no++)
		cr_assert(eq(u32, stage(), no));
	for (pageno_t no = 0; no < 10; no++)
		cr_assert(eq(u32, stage(), no));
	down();
}

Test(policy, s3fifo_keeps_what_was_used_through_a_scan)
{
	up(POLICY_S3FIFO, PAGES);
	make_main(0, 80);
	for (pageno_t no = 80; no < 100; no++)
		arrive(no);
	/* Each new page needs a frame: the oldest that nobody used gives its own. */
	for (uint64_t key = 0; key < 5000; key++) {
		const pageno_t no = stage();

		cr_assert(ge(u32, no, 80));
		evict(no, key);
		arrive(no);
	}
	down();
}

Test(policy, s3fifo_trusts_a_page_that_came_back_soon)
{
	up(POLICY_S3FIFO, PAGES);
	for (pageno_t no = 0; no < 20; no++)
		arrive(no);
	cr_assert(zero(u32, stage()));
	evict(0, 0);
	come_back(0, 0);
	cr_assert(eq(uint, policy_node(&policy, 0)->queue, PQ_MAIN));
	down();
}

/* A ghost may outlive as many evictions as there are frames, if few others fell into its bucket. */
Test(policy, s3fifo_does_not_trust_a_page_that_came_back_late)
{
	enum { FRAMES = 512, OUT = 3 * FRAMES };
	unsigned late = 0, soon = 0;

	up(POLICY_S3FIFO, FRAMES);
	for (uint64_t key = 0; key < OUT; key++) {
		arrive(0);
		evict(0, key);
	}
	for (uint64_t key = 0; key < OUT; key++) {
		const uint32_t distance = policy_refault(&policy, 0, key, true);
		const unsigned home = policy_node(&policy, 0)->home;

		cr_assert(eq(uint, home, distance <= FRAMES ? PQ_MAIN : PQ_FRESH));
		late += distance > FRAMES && distance != GHOST_UNKNOWN;
		soon += distance <= FRAMES;
	}
	cr_assert(gt(uint, late, 0u));
	cr_assert(gt(uint, soon, 0u));
	policy_removed(&policy, 0);
	down();
}

Test(policy, s3fifo_does_not_remember_what_left_from_the_main_queue)
{
	up(POLICY_S3FIFO, PAGES);
	make_main(0, 20);
	cr_assert(zero(u32, stage()));
	evict(0, 0);
	cr_assert(eq(u64, policy.ghost.clock, 21));
	come_back(0, 0);
	cr_assert(eq(uint, policy_node(&policy, 0)->queue, PQ_FRESH));
	down();
}

Test(policy, s3fifo_does_not_look_each_time_at_a_page_that_is_always_in_use)
{
	unsigned looked = 0;

	up(POLICY_S3FIFO, PAGES);
	make_main(0, 10);
	/* Page 5 is touched whenever it is staged; the others come back without. */
	for (unsigned round = 0; round < 300; round++) {
		const pageno_t no = stage();

		if (no == 5) {
			looked++;
			touch(5);
		} else {
			policy_take(&policy, no);
			policy_put(&policy, no, POLICY_MAPPED);
		}
	}
	/* The others are looked at each time round, page 5 every third. */
	cr_assert(ge(uint, looked, 9u));
	cr_assert(le(uint, looked, 12u));
	down();
}

/* All have rounds to their credit: still a victim is found, in a bounded time. */
Test(policy, there_is_a_victim_even_if_all_deserve_to_stay)
{
	up(POLICY_S3FIFO, PAGES);
	make_main(0, 200);
	for (unsigned round = 0; round < 3; round++) {
		for (pageno_t no = 0; no < 200; no++) {
			policy_take(&policy, no);
			policy_touched(&policy, no);
			policy_put(&policy, no, POLICY_MAPPED);
		}
	}
	for (unsigned i = 0; i < 200; i++) {
		const uint64_t before = policy.spared;

		cr_assert(ne(u32, stage(), PAGE_NONE));
		cr_assert(le(u64, policy.spared - before, 4));
	}
	down();
}

/* --- what is kept --- */

static void
keep(pageno_t no)
{
	policy_take(&policy, no);
	policy_kept(&policy, no);
	policy_put(&policy, no, POLICY_MAPPED);
}

/* However often it was used, and wherever it waits. */
Test(policy, what_is_kept_leaves_after_all_that_was_there)
{
	for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
		up(kind, PAGES);
		for (pageno_t no = 0; no < 200; no++)
			arrive(no);
		for (unsigned round = 0; round < 2; round++)
			for (pageno_t no = 0; no < 120; no++)
				touch(no);
		for (pageno_t no = 50; no < 90; no++)
			keep(no);
		for (unsigned i = 0; i < 160; i++) {
			const pageno_t no = stage();

			cr_assert(no < 50 || (no >= 90 && no < 200), "victim %u is page %u", i, no);
		}
		for (pageno_t no = 50; no < 90; no++)
			cr_assert(eq(u32, stage(), no));
		down();
	}
}

Test(policy, what_is_kept_later_leaves_later)
{
	for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
		up(kind, PAGES);
		for (pageno_t no = 0; no < 120; no++)
			arrive(no);
		for (pageno_t no = 0; no < 40; no++)
			keep(no);
		for (unsigned i = 0; i < 30; i++)
			cr_assert(ge(u32, stage(), 40));
		for (pageno_t no = 20; no > 0; no--) /* some of them once more */
			keep(no);
		for (unsigned i = 0; i < 70; i++) {
			const pageno_t no = stage();

			cr_assert(no == 0 || no > 20, "victim %u is page %u", i, no);
		}
		for (pageno_t no = 20; no > 0; no--)
			cr_assert(eq(u32, stage(), no));
		down();
	}
}

/* Else memory would be full of what was wanted once. */
Test(policy, what_was_kept_is_like_others_a_turn_or_two_later)
{
	for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
		up(kind, PAGES);
		for (pageno_t no = 0; no < 100; no++)
			arrive(no);
		for (pageno_t no = 0; no < 50; no++)
			keep(no);
		/* The others make room for each other, for a turn that began with the first. */
		for (unsigned i = 0; i < 100; i++) {
			const pageno_t no = stage();

			cr_assert(ge(u32, no, 50));
			evict(no, 1000 + i);
			arrive(no);
		}
		cr_assert(eq(sz, policy.queue[PQ_KEPT].n, 50));
		for (unsigned i = 0; i < 51; i++) {
			const pageno_t no = stage();

			evict(no, 2000 + i);
			arrive(no);
		}
		cr_assert(zero(sz, policy.queue[PQ_KEPT].n));
		down();
	}
}

/* --- streams --- */

#define MEMORY 96

/* A stream goes over [first, first + n) so many times in memory for MEMORY pages; returns how many pages of the last time were missed. */
static unsigned
go_over(pageno_t first, unsigned n, unsigned rounds)
{
	unsigned missed = 0;

	for (unsigned i = 0; i < n * rounds; i++) {
		const pageno_t no = first + i % n;

		if (i % n == 0)
			missed = 0;
		if (policy_node(&policy, no)->queue != PQ_NONE)
			continue;
		missed++;
		while (policy_count(&policy, POLICY_MAPPED) >= MEMORY) {
			const pageno_t out = stage();

			evict(out, out);
		}
		policy_insert(&policy, no);
		policy_once(&policy, no);
		come_back(no, no);
	}
	return missed;
}

Test(policy, of_a_loop_over_more_than_memory_a_part_stays)
{
	for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
		up(kind, MEMORY);
		go_over(0, 2 * MEMORY, 4);
		for (unsigned i = 0; i < 8; i++) {
			const unsigned missed = go_over(0, 2 * MEMORY, 1);

			/* Without a memory of what has left, all that it can go by is the order: half of it, at best. */
			cr_assert(le(uint, missed, 2 * MEMORY * 7 / 10), "policy %u: %u of %u",
				  kind, missed, 2 * MEMORY);
		}
		down();
	}
}

Test(policy, what_a_stream_has_left_makes_room_for_another_that_fits)
{
	for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
		unsigned last;

		/* So small that each page comes back soon: at once, where that is known. */
		up(kind, MEMORY);
		go_over(0, 2 * MEMORY, 8);
		last = go_over(2 * MEMORY, 32, 4);
		if (kind != POLICY_SFIFO)
			cr_assert(le(uint, last, 32 / 4), "policy %u: %u of 32", kind, last);
		down();
		/* Else by and by. */
		up(kind, MEMORY);
		go_over(0, 2 * MEMORY, 8);
		cr_assert(eq(uint, go_over(2 * MEMORY, 60, 1), 60));
		last = go_over(2 * MEMORY, 60, 32);
		cr_assert(le(uint, last, 60 / 4), "policy %u: %u of 60 after 32 times", kind, last);
		down();
	}
}

Test(policy, a_stream_pushes_out_little_but_itself)
{
	unsigned there = 0;

	up(POLICY_S3FIFO, MEMORY);
	for (pageno_t no = 0; no < 64; no++)
		arrive(no);
	go_over(64, PAGES - 64, 1);
	for (pageno_t no = 0; no < 64; no++)
		there += policy_node(&policy, no)->queue != PQ_NONE;
	cr_assert(ge(uint, there, 48), "%u of 64", there);
	down();
}

/* --- everything at random --- */

#define KEYS 1024

/* The same in the plainest way: arrays, and no ghost is ever dropped. */
static struct {
	enum policy_kind kind;
	pageno_t list[PQ_COUNT][PAGES];
	size_t n[PQ_COUNT];
	uint8_t home[PAGES], count[PAGES];
	uint64_t since[PAGES]; /* on KEPT: the turn */
	uint64_t turn, turn_left;
	uint64_t left[KEYS]; /* the number of the key's eviction, from 1; 0: it is not out */
	uint64_t clock;
	unsigned requests; /* for mapped victims */
} model;

static size_t
model_mapped(void)
{
	return model.n[PQ_COLD] + model.n[PQ_ONCE] + model.n[PQ_FRESH] + model.n[PQ_MAIN] +
	       model.n[PQ_KEPT];
}

static size_t
model_all(void)
{
	return model_mapped() + model.n[PQ_STAGED] + model.n[PQ_CLEAN] + model.n[PQ_AHEAD];
}

static void
model_add(pageno_t no, enum policy_place place, bool head)
{
	const enum policy_queue q = place == POLICY_STAGED  ? PQ_STAGED
				    : place == POLICY_CLEAN ? PQ_CLEAN
				    : place == POLICY_AHEAD ? PQ_AHEAD
				    : place == POLICY_WIRED ? PQ_WIRED
							    : (enum policy_queue)model.home[no];
	pageno_t *list = model.list[q];
	const size_t n = model.n[q]++;

	model.since[no] = head && n > 0 ? model.since[list[0]] : model.turn;
	if (head)
		memmove(list + 1, list, n * sizeof list[0]);
	list[head ? 0 : n] = no;
}

static size_t
model_once_share(void)
{
	return MAX(model_all() / 16, ONCE_MIN);
}

static void
model_remove(enum policy_queue q, size_t at)
{
	pageno_t *list = model.list[q];

	model.n[q]--;
	memmove(list + at, list + at + 1, (model.n[q] - at) * sizeof list[0]);
}

static void
model_take(pageno_t no)
{
	for (enum policy_queue q = PQ_NONE; q < PQ_COUNT; q++)
		for (size_t i = 0; i < model.n[q]; i++)
			if (model.list[q][i] == no) {
				model_remove(q, i);
				return;
			}
	cr_assert(false, "page %u is on no queue", no);
}

static void
model_new(pageno_t no)
{
	model.home[no] = model.kind == POLICY_S3FIFO ? PQ_FRESH : PQ_MAIN;
	model.count[no] = 0;
}

static uint32_t
model_refault(pageno_t no, unsigned key, bool demanded)
{
	const uint64_t left = model.kind == POLICY_SFIFO ? 0 : model.left[key];
	const uint32_t distance = left == 0 ? GHOST_UNKNOWN : (uint32_t)(model.clock - left);

	model.left[key] = 0;
	if (model.home[no] == PQ_ONCE && (left == 0 || distance > model_all() / 2))
		return distance;
	model_new(no);
	if (!demanded || left == 0)
		return distance;
	if (model.kind == POLICY_S3FIFO) { /* any distance is below the 4,096 frames */
		model.home[no] = PQ_MAIN;
		model.count[no] = 1;
	}
	if (model.kind == POLICY_SFIFO_REFAULT && distance <= model.n[PQ_MAIN])
		model.count[no] = 1;
	return distance;
}

/* To the tail; if it is ONCE that has too much then, its oldest is like others. */
static void
model_put(pageno_t no, enum policy_place place)
{
	const pageno_t oldest = model.list[PQ_ONCE][0];
	const size_t before = model.n[PQ_ONCE];

	model_add(no, place, false);
	if (model.n[PQ_ONCE] > before && model.n[PQ_ONCE] > 2 * model_once_share()) {
		model_remove(PQ_ONCE, 0);
		model_new(oldest);
		model.list[model.home[oldest]][model.n[model.home[oldest]]++] = oldest;
	}
}

static void
model_touched(pageno_t no)
{
	model.home[no] = PQ_MAIN;
	if (model.kind == POLICY_S3FIFO)
		model.count[no] = MIN(model.count[no] + 2, 3);
}

static void
model_evicted(pageno_t no, unsigned key)
{
	const bool remembered = model.home[no] == PQ_FRESH || model.home[no] == PQ_ONCE ||
				(model.home[no] != PQ_COLD && model.kind == POLICY_SFIFO_REFAULT);

	model.clock++;
	model.left[key] = remembered ? model.clock : 0;
}

/* Which are busy at the moment. */
static uint64_t busy_seed;

static bool
not_busy(void *ctx, pageno_t no)
{
	uint64_t x = busy_seed + no * UINT64_C(0x9e3779b97f4a7c15);

	(void)ctx;
	return rnd(&x) % 8 != 0;
}

/* A victim was found elsewhere while pages were kept: one of those from two turns ago is like others now. */
static void
model_kept_age(size_t at[])
{
	const pageno_t no = model.list[PQ_KEPT][0];

	if (model.turn_left > 0) {
		model.turn_left--;
	} else if (model.since[no] + 2 > model.turn) {
		model.turn++;
		model.turn_left = model_mapped();
	}
	if (model.since[no] + 2 > model.turn)
		return;
	model_remove(PQ_KEPT, 0);
	at[PQ_KEPT] -= at[PQ_KEPT] > 0;
	model.home[no] = PQ_MAIN;
	model.list[PQ_MAIN][model.n[PQ_MAIN]++] = no;
}

static unsigned
model_victims(enum policy_place from, unsigned max, pageno_t out[])
{
	size_t at[PQ_COUNT] = { 0 };
	unsigned n = 0, refused = 0, spared = 0;
	bool once = false;

	if (from == POLICY_MAPPED) {
		once = model.n[PQ_ONCE] > model_once_share();
		if (model.requests++ % 16 == 0)
			once = !once;
	}
	while (n < max && refused < 4 * max) {
		enum policy_queue q = from == POLICY_STAGED  ? PQ_STAGED
				      : from == POLICY_CLEAN ? PQ_CLEAN
				      : from == POLICY_AHEAD ? PQ_AHEAD
							     : PQ_COLD;
		pageno_t no;

		if (q == PQ_COLD && at[q] == model.n[q]) {
			const bool fresh =
				model.kind == POLICY_S3FIFO && model.n[PQ_FRESH] > model_all() / 10;

			q = once && at[PQ_ONCE] < model.n[PQ_ONCE] ? PQ_ONCE
			    : fresh				   ? PQ_FRESH
								   : PQ_MAIN;
			if (at[q] == model.n[q])
				q = fresh ? PQ_MAIN : PQ_FRESH;
			if (at[q] == model.n[q])
				q = PQ_ONCE;
			if (at[q] == model.n[q])
				q = PQ_KEPT;
		}
		if (at[q] == model.n[q])
			break;
		no = model.list[q][at[q]];
		if (from == POLICY_MAPPED && spared < 4 * max &&
		    model.count[no] > (model.kind == POLICY_S3FIFO)) {
			model.count[no]--;
			model_remove(q, at[q]);
			model.list[q][model.n[q]++] = no;
			spared++;
		} else if (!not_busy(NULL, no)) {
			refused++;
			at[q]++;
		} else {
			model_remove(q, at[q]);
			out[n++] = no;
			if ((q == PQ_ONCE || q == PQ_FRESH || q == PQ_MAIN) && model.n[PQ_KEPT] > 0)
				model_kept_age(at);
		}
	}
	return n;
}

static void
compare(unsigned op)
{
	policy_check(&policy);
	for (enum policy_queue q = PQ_NONE; q < PQ_COUNT; q++) {
		pageno_t no = policy.queue[q].head;

		cr_assert(eq(sz, policy.queue[q].n, model.n[q]), "op %u", op);
		for (size_t i = 0; i < model.n[q]; i++) {
			cr_assert(eq(u32, no, model.list[q][i]), "op %u: queue %u at %zu", op, q,
				  i);
			cr_assert(eq(uint, policy_node(&policy, no)->home, model.home[no]));
			if (q != PQ_KEPT) /* there it is policy_check()'s */
				cr_assert(
					eq(uint, policy_node(&policy, no)->count, model.count[no]));
			no = policy_node(&policy, no)->next;
		}
	}
}

/* Victims go on, back to the head, to the tail, out or away. */
static void
dispose(pageno_t no, enum policy_place from, uint64_t *seed, bool used[])
{
	const unsigned key = (unsigned)(rnd(seed) % KEYS);
	const bool last = from == POLICY_CLEAN || from == POLICY_AHEAD;
	const enum policy_place on = last ? from : from + 1;

	switch (rnd(seed) % 8) {
	case 0:
		policy_put_back(&policy, no, from);
		model_add(no, from, true);
		break;
	case 1:
		policy_put(&policy, no, from);
		model_put(no, from);
		break;
	case 2:
		policy_removed(&policy, no);
		used[no] = false;
		break;
	default:
		if (last) {
			policy_evicted(&policy, no, key);
			policy_removed(&policy, no);
			model_evicted(no, key);
			used[no] = false;
		} else {
			policy_put(&policy, no, on);
			model_put(no, on);
		}
		break;
	}
}

static void
run_model(enum policy_kind kind, uint64_t seed)
{
	bool used[PAGES] = { false };

	memset(&model, 0, sizeof model);
	model.kind = kind;
	/* So many ghosts that none has to go, of pages that are few beside them. */
	up(kind, 4096);
	for (unsigned op = 0; op < 4000; op++) {
		const pageno_t no = (pageno_t)(rnd(&seed) % PAGES);
		const enum policy_place place = (enum policy_place)(rnd(&seed) % POLICY_PLACES);
		const unsigned key = (unsigned)(rnd(&seed) % KEYS), dice = rnd(&seed) % 16;

		if (!used[no]) {
			const enum policy_place to = dice == 0 ? place : POLICY_MAPPED;

			policy_insert(&policy, no);
			model_new(no);
			if (rnd(&seed) % 2 == 0) {
				policy_once(&policy, no);
				model.home[no] = PQ_ONCE;
			}
			if (dice >= 10) {
				cr_assert(eq(u32, policy_refault(&policy, no, key, dice < 15),
					     model_refault(no, key, dice < 15)),
					  "op %u", op);
			}
			used[no] = true;
			policy_put(&policy, no, to);
			model_put(no, to);
		} else if (dice < 6) {
			const unsigned max = 1 + (unsigned)(rnd(&seed) % 16);
			const enum policy_place from =
				place == POLICY_WIRED ? POLICY_MAPPED : place;
			pageno_t got[16], want[16];
			unsigned n;

			busy_seed = rnd(&seed);
			n = policy_victims(&policy, from, max, not_busy, NULL, got);
			cr_assert(eq(uint, n, model_victims(from, max, want)), "op %u", op);
			for (unsigned i = 0; i < n; i++)
				cr_assert(eq(u32, got[i], want[i]), "op %u: victim %u", op, i);
			for (unsigned i = 0; i < n; i++)
				dispose(got[i], from, &seed, used);
		} else if (dice < 13) {
			policy_take(&policy, no);
			model_take(no);
			if (place == POLICY_WIRED) {
				policy_kept(&policy, no);
				model.home[no] = PQ_KEPT;
				model.count[no] = 0;
			} else {
				policy_touched(&policy, no);
				model_touched(no);
			}
			policy_put(&policy, no, POLICY_MAPPED);
			model_add(no, POLICY_MAPPED, false);
		} else if (dice < 14) {
			policy_take(&policy, no);
			model_take(no);
			policy_cool(&policy, no);
			model.home[no] = PQ_COLD;
			model.count[no] = 0;
			policy_put(&policy, no, POLICY_MAPPED);
			model_add(no, POLICY_MAPPED, false);
		} else if (dice < 15) {
			policy_take(&policy, no);
			model_take(no);
			policy_removed(&policy, no);
			used[no] = false;
		} else {
			policy_take(&policy, no);
			model_take(no);
			policy_evicted(&policy, no, key);
			policy_removed(&policy, no);
			model_evicted(no, key);
			used[no] = false;
		}
		compare(op);
	}
	down();
}

Test(policy, random_signals_and_moves_agree_with_a_plain_model)
{
	for (unsigned kind = 0; kind < POLICY_KINDS; kind++)
		for (uint64_t seed = 1; seed <= 10; seed++)
			run_model(kind, seed * 0x9e3779b97f4a7c15u);
}

#ifndef NDEBUG
Test(policy, putting_a_page_that_has_left_is_caught, .signal = SIGABRT)
{
	up(POLICY_SFIFO, PAGES);
	arrive(1);
	evict(1, 1);
	policy_put(&policy, 1, POLICY_STAGED);
}

Test(policy, putting_a_page_on_two_queues_is_caught, .signal = SIGABRT)
{
	up(POLICY_SFIFO, PAGES);
	arrive(1);
	policy_put(&policy, 1, POLICY_STAGED);
}
#endif
