/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_histogram.c: percentiles against sorting, which is exact.
 */
#include "base/histogram.h"

#include "assertions.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static struct histogram hist[3];

static uint64_t
rnd(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static int
by_value(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* The smallest value that `permille` of the n sorted values do not exceed. */
static uint64_t
exact(const uint64_t *v, uint64_t n, uint64_t permille)
{
	return v[(n * permille + 999) / 1000 - 1];
}

static void
assert_close(uint64_t got, uint64_t want, const char *what)
{
	const uint64_t off = got > want ? got - want : want - got;

	cr_assert(le(u64, off, want / 32), "%s: %llu, exactly %llu", what, (unsigned long long)got,
		  (unsigned long long)want);
}

Test(histogram, percentiles_are_within_one_part_in_32_of_the_exact_ones)
{
	enum { N = 20000 };
	static uint64_t v[N];
	struct histogram *const all[] = { &hist[0], &hist[1], &hist[2] };
	struct up_latency l;

	for (unsigned bits = 1; bits <= 41; bits++) {
		uint64_t seed = 0x9e3779b97f4a7c15u + bits;

		memset(hist, 0, sizeof hist);
		for (unsigned i = 0; i < N; i++) {
			/* Any magnitude below 2^bits is as likely as another. */
			v[i] = rnd(&seed) >> (64 - 1 - rnd(&seed) % bits);
			histogram_add(all[i % 3], v[i]);
		}
		qsort(v, N, sizeof v[0], by_value);
		histogram_sum(all, 3, &l);
		cr_assert(eq(u64, l.count, N));
		cr_assert(eq(u64, l.max, v[N - 1]));
		assert_close(l.p50, exact(v, N, 500), "p50");
		assert_close(l.p99, exact(v, N, 990), "p99");
		assert_close(l.p999, exact(v, N, 999), "p99.9");
	}
}

Test(histogram, any_single_value_is_known_to_one_part_in_32)
{
	struct histogram *const one[] = { &hist[0] };
	struct up_latency l;

	for (unsigned bit = 0; bit < 42; bit++) {
		for (int d = -1; d <= 1; d++) {
			const uint64_t v = ((uint64_t)1 << bit) + (uint64_t)d;

			memset(hist, 0, sizeof hist);
			histogram_add(one[0], v);
			/* A larger one, or p50 would be corrected by the exact maximum. */
			histogram_add(one[0], (uint64_t)1 << 43);
			histogram_sum(one, 1, &l);
			assert_close(l.p50, v, "p50 of one value");
		}
	}
}

Test(histogram, values_below_64_ns_are_exact)
{
	struct histogram *const one[] = { &hist[0] };
	struct up_latency l;

	for (uint64_t v = 0; v < 64; v++) {
		memset(hist, 0, sizeof hist);
		histogram_add(one[0], v);
		histogram_add(one[0], 1000);
		histogram_sum(one, 1, &l);
		cr_assert(eq(u64, l.p50, v));
	}
}

Test(histogram, an_empty_one_is_all_zero)
{
	struct histogram *const one[] = { &hist[0] };
	struct up_latency l = { 1, 1, 1, 1, 1 };

	histogram_sum(one, 1, &l);
	cr_assert(zero(u64, l.count | l.p50 | l.p99 | l.p999 | l.max));
	l.count = 1;
	histogram_sum(NULL, 0, &l);
	cr_assert(zero(u64, l.count));
}

Test(histogram, a_value_past_the_end_is_counted_and_its_maximum_kept)
{
	struct histogram *const one[] = { &hist[0] };
	struct up_latency l;

	histogram_add(one[0], UINT64_MAX);
	histogram_sum(one, 1, &l);
	cr_assert(eq(u64, l.count, 1));
	cr_assert(eq(u64, l.max, UINT64_MAX));
	cr_assert(ge(u64, l.p50, (uint64_t)1 << 41));
	cr_assert(lt(u64, l.p50, (uint64_t)1 << 42));
}

#define LIVE_VALUES 2000000

static void *
live_writer(void *arg)
{
	uint64_t seed = 7;

	for (unsigned i = 0; i < LIVE_VALUES; i++)
		histogram_add(arg, rnd(&seed) >> (20 + i % 40));
	return NULL;
}

Test(histogram, a_reader_beside_the_writer_sees_ordered_percentiles_and_counts_that_only_rise,
     .timeout = 20)
{
	struct histogram *const one[] = { &hist[0] };
	struct up_latency l;
	uint64_t last = 0;
	pthread_t t;

	cr_assert(zero(int, pthread_create(&t, NULL, live_writer, one[0])));
	while (last < LIVE_VALUES) {
		histogram_sum(one, 1, &l);
		cr_assert(ge(u64, l.count, last));
		cr_assert(l.p50 <= l.p99 && l.p99 <= l.p999 && l.p999 <= l.max);
		last = l.count;
	}
	cr_assert(eq(u64, last, LIVE_VALUES));
	cr_assert(zero(int, pthread_join(t, NULL)));
}

/* Below 2^bits, of any magnitude. */
static uint64_t
duration(uint64_t *seed, unsigned bits)
{
	const uint64_t v = rnd(seed);

	return v >> (64 - 1 - rnd(seed) % bits);
}

Test(histogram, steps_are_exact_at_powers_of_two)
{
	static struct tally tally;
	struct histogram *const all[] = { &hist[0] };
	uint64_t want[LATENCY_STEPS] = { 0 }, sum = 0, seed = 7;
	struct latency_steps of_hist, of_tally;
	const unsigned n = 100000;

	for (unsigned i = 0; i < n; i++) {
		/* The edges, and all between. */
		const uint64_t at = UINT64_C(1) << (TALLY_SHIFT + i % LATENCY_STEPS);
		const uint64_t ns = i % 4 == 0	 ? at - 1
				    : i % 4 == 1 ? at
				    : i % 4 == 2 ? at + at / 2 - 1
						 : duration(&seed, 40);

		histogram_add(&hist[0], ns);
		tally_add(&tally, ns);
		sum += ns;
		for (unsigned s = 0; s < LATENCY_STEPS; s++)
			want[s] += ns < UINT64_C(1) << (TALLY_SHIFT + s);
	}
	histogram_steps(all, 1, &of_hist);
	tally_steps(&tally, &of_tally);
	for (unsigned s = 0; s < LATENCY_STEPS; s++) {
		cr_assert(eq(u64, of_hist.below[s], want[s]), "step %u", s);
		cr_assert(eq(u64, of_tally.below[s], want[s]), "step %u", s);
	}
	cr_assert(eq(u64, of_hist.count, n));
	cr_assert(eq(u64, of_tally.count, n));
	cr_assert(eq(u64, of_hist.sum, sum));
	cr_assert(eq(u64, of_tally.sum, sum));
}

/* Of steps there is no more than a doubling; what came in between two looks is what is looked at. */
Test(histogram, steps_tell_percentiles_of_what_came_since_the_last_look)
{
	static struct tally tally;
	struct latency_steps before, now, sum = { .count = 0 };
	struct up_latency l;

	tally_steps(&tally, &before);
	steps_sum(&before, &l);
	cr_assert(all(zero(u64, l.count), zero(u64, l.p50), zero(u64, l.max)));
	for (unsigned i = 0; i < 1000; i++)
		tally_add(&tally, 900000000);
	tally_steps(&tally, &before);
	for (unsigned i = 0; i < 100; i++)
		tally_add(&tally, i < 98 ? 3000 : 100000);
	tally_steps(&tally, &now);
	steps_since(&now, &before);
	steps_sum(&now, &l);
	cr_assert(eq(u64, l.count, 100));
	cr_assert(all(ge(u64, l.p50, 2048), le(u64, l.p50, 4096)), "%lu", (unsigned long)l.p50);
	cr_assert(all(ge(u64, l.p99, 65536), le(u64, l.p99, 131072)), "%lu", (unsigned long)l.p99);
	cr_assert(all(le(u64, l.p99, l.max), le(u64, l.max, 131072)));
	steps_add(&sum, &before);
	steps_add(&sum, &now);
	steps_sum(&sum, &l);
	cr_assert(eq(u64, l.count, 1100));
	cr_assert(ge(u64, l.p50, 450000000), "%lu", (unsigned long)l.p50);
	/* More than any step is still a number. */
	tally_add(&tally, UINT64_MAX / 2);
	tally_steps(&tally, &now);
	steps_sum(&now, &l);
	cr_assert(ge(u64, l.max, (uint64_t)1 << (TALLY_SHIFT + LATENCY_STEPS - 1)));
}

Test(histogram, a_tally_knows_percentiles_within_a_quarter)
{
	enum { N = 20000 };
	static struct tally tally[2];
	static uint64_t v[N];
	struct up_latency l;
	uint64_t seed = 11;

	tally_sum(tally, 2, &l);
	cr_assert(eq(u64, l.count, 0));
	cr_assert(eq(u64, l.p50, 0));
	for (unsigned i = 0; i < N; i++) {
		v[i] = MIN(MAX(duration(&seed, 34), 1024u), (UINT64_C(1) << 34) - 1);
		tally_add(&tally[i % 2], v[i]);
	}
	qsort(v, N, sizeof v[0], by_value);
	tally_sum(tally, 2, &l);
	cr_assert(eq(u64, l.count, N));
	cr_assert(le(u64, llabs((long long)(l.p50 - exact(v, N, 500))), exact(v, N, 500) / 4));
	cr_assert(le(u64, llabs((long long)(l.p99 - exact(v, N, 990))), exact(v, N, 990) / 4));
	cr_assert(le(u64, llabs((long long)(l.p999 - exact(v, N, 999))), exact(v, N, 999) / 4));
	cr_assert(le(u64, llabs((long long)(l.max - v[N - 1])), v[N - 1] / 4));
}
