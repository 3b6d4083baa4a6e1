/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * clone.c: what a clone costs, and what a thousand of them leave behind.
 *
 * A clone takes every page out of the region, so the touches after it are soft faults, with a copy as long as
 * the clone is there.  Once it has been dropped they should cost what they did after the very first
 * one: that is the ratio, of medians in one process, with nothing else changed but the rounds in between.
 */
#include <string.h>

#include "bench.h"

#define CLONED ((size_t)16384) /* pages: 64 MiB */
#define CLONE_ROUNDS 1000

static unsigned char *
clone_of(struct up_runtime *rt, unsigned char *p)
{
	void *copy;
	const int r = up_clone(rt, p, CLONED * PAGE, &copy);

	if (r < 0)
		job_fail("up_clone: %s%s", strerror(-r), ours_log());
	return copy;
}

static void
drop(struct up_runtime *rt, unsigned char *copy)
{
	const int r = up_unmap(rt, copy, CLONED * PAGE);

	if (r < 0)
		job_fail("up_unmap: %s%s", strerror(-r), ours_log());
}

/* Touch every page; what that cost for some of them, under `prefix`. */
static void
touch_all(unsigned char *p, const uint32_t *order, const char *prefix)
{
	latency_measure(p, order, bench.touches, false, prefix);
	for (size_t i = 0; i < CLONED; i++)
		page_check_all(p + i * PAGE, i);
}

static struct up_stats
stats_of(struct up_runtime *rt)
{
	struct up_stats st;
	const int r = up_stats_get(rt, &st, sizeof st);

	if (r < 0)
		job_fail("up_stats_get: %s%s", strerror(-r), ours_log());
	return st;
}

void
clone_cost(const void *arg)
{
	/* Inline: a touch that a service thread serves takes 7 or 90 us, as the scheduler places the two. */
	struct up_config cfg = { .memory_limit = CLONED * PAGE * 4, .delivery = UP_DELIVER_INLINE };
	struct up_runtime *rt = ours_open(&cfg);
	uint32_t *order = random_order(CLONED);
	uint64_t rng = 1, t, rounds;
	unsigned char *p, *copy;
	struct up_stats st;
	void *q;
	int r;

	(void)arg;
	r = up_map(rt, NULL, CLONED * PAGE, PROT_READ | PROT_WRITE, UP_PRIVATE, NULL, 0, &q);
	if (r < 0)
		job_fail("up_map: %s%s", strerror(-r), ours_log());
	p = q;
	for (size_t i = 0; i < CLONED; i++)
		page_write(p + i * PAGE, i);
	if (stats_of(rt).resident < CLONED * PAGE / 100 * 99)
		job_fail("the region is not in memory");

	t = bench_now();
	copy = clone_of(rt, p);
	t = bench_now() - t;
	job_value("us", (double)t / 1e3, "clone.call");
	job_value("ns", (double)t / CLONED, "clone.call_page");
	touch_all(copy, order, "clone.copy");
	t = bench_now();
	drop(rt, copy);
	job_value("us", (double)(bench_now() - t) / 1e3, "clone.drop");
	touch_all(p, order, "clone.before");

	/* In each round one page differs afterwards on either side. */
	rounds = bench_now();
	for (unsigned i = 0; i < CLONE_ROUNDS; i++) {
		const size_t mine = rng_below(&rng, CLONED);

		copy = clone_of(rt, p);
		page_write(copy + rng_below(&rng, CLONED) * PAGE, 0);
		page_write(p + mine * PAGE, mine);
		drop(rt, copy);
	}
	rounds = bench_now() - rounds;
	job_value("us", (double)rounds / 1e3 / CLONE_ROUNDS, "clone.round");
	st = stats_of(rt);
	job_value("objects", (double)st.objects, "clone.objects");
	if (st.objects != 1)
		job_fail("%llu objects are left of one", (unsigned long long)st.objects);

	/* All in regions, then all out of them once more: as it was before. */
	for (size_t i = 0; i < CLONED; i++)
		page_check_all(p + i * PAGE, i);
	drop(rt, clone_of(rt, p));
	touch_all(p, order, "clone.after");
	up_runtime_destroy(rt);
}
