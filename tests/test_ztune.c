/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_ztune.c: which size the compressed pool is given, by counts made up and by a model of memory that answers back.
 */
#include "swap/ztune.h"

#include "assertions.h"

#define MIB ((size_t)1 << 20)

TestSuite(ztune, .timeout = 30);

/* 64 MiB may be between 1 and 33, in steps of 2; a pool of three pages in one, full. */
static struct ztune tune;
static struct ztune_state now;

static void
pool_is(size_t bytes)
{
	now.pool = bytes;
	now.entries = bytes * 3 / PAGE_SIZE;
}

static void
up(size_t start)
{
	ztune_init(&tune, MIB, 33 * MIB, start);
	now = (struct ztune_state){
		.ghosts = 1000,
		.staged = 4 * MIB,
		.hit_ns = 8000,
		.read_ns = 90000,
		.store_ns = 4000,
	};
	pool_is(tune.target);
}

static enum ztune_verdict
step(uint64_t hits, uint64_t hits_old, uint64_t lost, uint64_t soft, uint64_t stored)
{
	/* What is stored has been read. */
	const struct ztune_counts c = { hits, hits_old, lost, soft, stored, stored };

	return ztune_step(&tune, &c, &now);
}

Test(ztune, starts_between_its_bounds)
{
	ztune_init(&tune, MIB, 2 * MIB, 0);
	cr_assert(eq(sz, tune.target, MIB));
	ztune_init(&tune, MIB, 2 * MIB, 5 * MIB);
	cr_assert(eq(sz, tune.target, 2 * MIB));
}

Test(ztune, other_bounds_leave_the_target_where_it_was_but_for_the_top)
{
	ztune_init(&tune, MIB, 33 * MIB, 33 * MIB);
	ztune_resize(&tune, MIB, 65 * MIB);
	cr_assert(eq(sz, tune.target, 65 * MIB));
	ztune_init(&tune, MIB, 33 * MIB, 16 * MIB);
	ztune_resize(&tune, MIB, 65 * MIB);
	cr_assert(eq(sz, tune.target, 16 * MIB));
	ztune_resize(&tune, MIB, 8 * MIB);
	cr_assert(eq(sz, tune.target, 8 * MIB));
	ztune_init(&tune, MIB, 33 * MIB, MIB);
	ztune_resize(&tune, 2 * MIB, 33 * MIB);
	cr_assert(eq(sz, tune.target, 2 * MIB));
}

Test(ztune, with_hardly_an_event_nothing_changes)
{
	up(16 * MIB);
	for (unsigned i = 0; i < 100; i++)
		cr_assert(eq(int, step(0, 0, i % 2, i % 4, 2), ZTUNE_KEEP));
	cr_assert(eq(sz, tune.target, 16 * MIB));
}

Test(ztune, grows_while_what_it_wrote_back_is_wanted_again)
{
	up(MIB);
	for (unsigned i = 0; i < ZTUNE_STEPS; i++) {
		cr_assert(eq(int, step(100, 30, 100, 10, 300), ZTUNE_GROW));
		cr_assert(eq(sz, tune.target, MIB + (i + 1) * 2 * MIB));
		pool_is(tune.target);
	}
	cr_assert(eq(int, step(100, 30, 100, 10, 300), ZTUNE_KEEP));
	cr_assert(eq(sz, tune.target, 33 * MIB));
}

Test(ztune, shrinks_to_the_least_under_a_stream)
{
	up(32 * MIB);
	for (unsigned i = 0; i < 20; i++) {
		(void)step(3, 1, 3, 0, 10000);
		pool_is(tune.target);
	}
	cr_assert(eq(sz, tune.target, MIB));
	/* With hits that pay for the stores it grows. */
	up(31 * MIB);
	cr_assert(eq(int, step(1000, 10, 3, 0, 10000), ZTUNE_GROW));
}

Test(ztune, while_nothing_is_asked_for_nobody_can_tell)
{
	const struct ztune_counts fill = { .stored = 10000 };

	up(32 * MIB);
	for (unsigned i = 0; i < 20; i++)
		cr_assert(eq(int, ztune_step(&tune, &fill, &now), ZTUNE_KEEP));
	cr_assert(eq(sz, tune.target, 32 * MIB));
}

Test(ztune, shrinks_when_frames_are_wanted_more)
{
	up(16 * MIB);
	/* Its oldest 4 MiB: 100 hits of 82 us.  As many staged bytes: 2,000 of 8 us. */
	cr_assert(eq(int, step(1000, 100, 0, 2000, 1000), ZTUNE_SHRINK));
	cr_assert(eq(sz, tune.target, 14 * MIB));
	up(16 * MIB);
	cr_assert(eq(int, step(1000, 100, 0, 500, 1000), ZTUNE_KEEP));
}

Test(ztune, within_the_margin_it_stays)
{
	/* 100 * 82 = 8,200 against soft * 8: even at 1,025; a quarter more is 1,281. */
	up(16 * MIB);
	cr_assert(eq(int, step(1000, 100, 0, 1025, 1000), ZTUNE_KEEP));
	up(16 * MIB);
	cr_assert(eq(int, step(1000, 100, 0, 1270, 1000), ZTUNE_KEEP));
	up(16 * MIB);
	cr_assert(eq(int, step(1000, 100, 0, 1290, 1000), ZTUNE_SHRINK));
}

Test(ztune, one_that_is_not_full_is_left_alone)
{
	up(16 * MIB);
	now.pool = 13 * MIB;
	cr_assert(eq(int, step(1000, 300, 1000, 0, 1000), ZTUNE_KEEP));
	cr_assert(eq(int, step(0, 0, 0, 10000, 10000), ZTUNE_KEEP));
}

Test(ztune, a_disk_as_fast_as_the_pool_makes_it_shrink)
{
	up(16 * MIB);
	now.read_ns = now.hit_ns - 1;
	cr_assert(eq(int, step(1000, 300, 1000, 0, 1000), ZTUNE_SHRINK));
}

Test(ztune, an_odd_interval_is_soon_forgotten)
{
	unsigned grown = 0;

	up(8 * MIB);
	for (unsigned i = 0; i < 50; i++)
		(void)step(100, 60, 0, 100, 100);
	cr_assert(eq(sz, tune.target, 8 * MIB));
	for (unsigned i = 0; i < 20; i++) {
		grown += step(100, 60, i == 0 ? 500 : 0, 100, 100) == ZTUNE_GROW;
		pool_is(tune.target);
	}
	cr_assert(gt(uint, grown, 0));
	cr_assert(le(uint, grown, 6));
}

Test(ztune, no_count_or_size_overflows)
{
	ztune_init(&tune, 1, (size_t)1 << 47, (size_t)1 << 46);
	now = (struct ztune_state){ (size_t)1 << 47, 1 << 20,	 1 << 20, (size_t)1 << 47,
				    UINT32_MAX / 2,  UINT32_MAX, 1 };
	for (unsigned i = 0; i < 100; i++)
		(void)step(UINT64_MAX, UINT64_MAX, UINT64_MAX, 0, UINT64_MAX);
	cr_assert(eq(sz, tune.target, (size_t)1 << 47));
	for (unsigned i = 0; i < 100; i++)
		(void)step(0, 0, 0, UINT64_MAX, UINT64_MAX);
	cr_assert(eq(sz, tune.target, 1));
}

/*
 * A memory of `total` bytes, an eighth of the frames staged, and pages touched at random: `often` of 100 touches go to
 * `hot` pages, the rest to `cold` ones.  What is hot is in the frames first, then in the pool, then on disk, so all that
 * is known is how many of each are where.
 */
struct model {
	size_t total, hot, cold;
	unsigned often, ratio; /* pages of the pool in one page */
};

/* Touches of pages of rank [from, to), of 1,000,000. */
static uint64_t
touches(const struct model *m, size_t from, size_t to)
{
	const size_t all = m->hot + m->cold;
	const size_t hot = MIN(to, m->hot) - MIN(from, m->hot);
	const size_t cold = MIN(MAX(to, m->hot), all) - MIN(MAX(from, m->hot), all);

	return (hot * 10000 * m->often) / m->hot +
	       (cold * 10000 * (100 - m->often)) / MAX(m->cold, 1);
}

/* What the million touches cost beyond memory, with a pool of so many bytes, us; and what they are counted as. */
static uint64_t
model_run(const struct model *m, size_t pool, struct ztune_counts *c)
{
	/* It takes what it may, or what everything needs to be in memory. */
	const size_t all = m->hot + m->cold, over = all * PAGE_SIZE - m->total;
	const size_t used = MIN(pool, over / (m->ratio - 1) + PAGE_SIZE);
	const size_t frames = (m->total - used) / PAGE_SIZE;
	const size_t in_pool = MIN(used * m->ratio / PAGE_SIZE, all - frames);
	const uint64_t hits = touches(m, frames, frames + in_pool),
		       reads = touches(m, frames + in_pool, all);

	*c = (struct ztune_counts){
		.hits = hits,
		.hits_old = touches(m, frames + in_pool - in_pool / 4, frames + in_pool),
		.lost = touches(m, frames + in_pool, frames + in_pool + now.ghosts),
		.soft = touches(m, frames - frames / 8, frames),
		.stored = hits + reads,
		.reads = reads,
	};
	now.pool = used;
	now.entries = in_pool;
	now.staged = frames / 8 * PAGE_SIZE;
	return (hits * now.hit_ns + reads * now.read_ns + c->stored * now.store_ns) / 1000;
}

/* Where it comes to rest costs little more than the best size there is, whatever it starts from. */
static void
finds(const struct model *m, unsigned percent)
{
	uint64_t best = UINT64_MAX;
	struct ztune_counts c;
	size_t at = 0;

	up(MIB);
	for (size_t pool = MIB; pool <= 33 * MIB; pool += 2 * MIB) {
		const uint64_t cost = model_run(m, pool, &c);

		if (cost < best)
			at = pool;
		best = MIN(best, cost);
	}
	for (size_t start = MIB; start <= 33 * MIB; start += 8 * MIB) {
		uint64_t cost = 0;

		up(start);
		for (unsigned i = 0; i < 200; i++) {
			(void)model_run(m, tune.target, &c);
			(void)ztune_step(&tune, &c, &now);
		}
		cost = model_run(m, tune.target, &c);
		cr_assert(le(u64, cost, best + best * percent / 100),
			  "from %zu MiB it ends at %zu: %llu; best is %zu: %llu", start / MIB,
			  tune.target / MIB, (unsigned long long)cost, at / MIB,
			  (unsigned long long)best);
	}
}

Test(ztune, a_working_set_that_fits_compressed_gets_the_pool)
{
	/* 64 MiB of memory, 100 MiB of pages. */
	finds(&(struct model){ 64 * MIB, 25600, 0, 100, 3 }, 10);
}

Test(ztune, a_working_set_far_too_large_gets_the_pool)
{
	finds(&(struct model){ 64 * MIB, 100000, 0, 100, 3 }, 10);
}

Test(ztune, a_working_set_that_fits_keeps_its_frames)
{
	/* 60 MiB that are all that matters, and 1,000 MiB that are looked at now and then. */
	finds(&(struct model){ 64 * MIB, 15360, 256000, 99, 3 }, 10);
}

Test(ztune, a_hot_part_in_frames_and_a_warm_one_in_the_pool)
{
	finds(&(struct model){ 64 * MIB, 10240, 15000, 70, 3 }, 10);
}
