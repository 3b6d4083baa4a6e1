/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * histogram.c: where a fault's latency is filed, and percentiles of what was filed.
 *
 *	value	0 .. 31		32 .. 63	64 .. 127	128 .. 255	...
 *	bucket	each its own	each its own	2 wide		4 wide		...
 *
 * Alternative: the HdrHistogram library.  Its counts are not atomic, so a reader would need
 * the writer's lock, and it allocates; what is left of it without both is this file.
 */
#include "base/histogram.h"

#include <string.h>

#define SUB_BITS 5
_Static_assert(HIST_SUB == 1 << SUB_BITS, "a power of two is split by its next SUB_BITS bits");

static unsigned
bucket_of(uint64_t ns)
{
	unsigned e, i;

	if (ns < HIST_SUB)
		return (unsigned)ns;
	e = 63 - (unsigned)__builtin_clzll(ns);
	i = (e - SUB_BITS + 1) * HIST_SUB + (unsigned)(ns >> (e - SUB_BITS) & (HIST_SUB - 1));
	return MIN(i, HIST_BUCKETS - 1u);
}

/* The middle of bucket i: at most 1/64 from anything in it. */
static uint64_t
bucket_value(unsigned i)
{
	unsigned shift;

	if (i < HIST_SUB)
		return i;
	shift = i / HIST_SUB - 1;
	return ((uint64_t)(HIST_SUB + i % HIST_SUB) << shift) + ((uint64_t)1 << shift) / 2;
}

void
histogram_add(struct histogram *h, uint64_t ns)
{
	uint64_t max = atomic_load_explicit(&h->max, memory_order_relaxed);

	atomic_fetch_add_explicit(&h->bucket[bucket_of(ns)], 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&h->sum, ns, memory_order_relaxed);
	while (ns > max && !atomic_compare_exchange_weak_explicit(
				   &h->max, &max, ns, memory_order_relaxed, memory_order_relaxed))
		;
}

static uint64_t
bucket_sum(struct histogram *const h[], unsigned n, unsigned i)
{
	uint64_t sum = 0;

	for (unsigned k = 0; k < n; k++)
		sum += atomic_load_explicit(&h[k]->bucket[i], memory_order_relaxed);
	return sum;
}

void
histogram_sum(struct histogram *const h[], unsigned n, struct up_latency *out)
{
	static const uint64_t permille[] = { 500, 990, 999 };
	uint64_t *const result[] = { &out->p50, &out->p99, &out->p999 };
	uint64_t seen = 0, rank;
	unsigned k, next = 0;

	memset(out, 0, sizeof *out);
	for (unsigned i = 0; i < HIST_BUCKETS; i++)
		out->count += bucket_sum(h, n, i);
	for (k = 0; k < n; k++)
		out->max = MAX(out->max, atomic_load_explicit(&h[k]->max, memory_order_relaxed));
	if (out->count == 0)
		return;

	/*
	 * A writer may add between the two passes: then `seen` reaches a rank early and the
	 * answer is that of a moment later, still in order and still at most max.
	 */
	for (unsigned i = 0; i < HIST_BUCKETS && next < ARRAY_SIZE(permille); i++) {
		seen += bucket_sum(h, n, i);
		for (; next < ARRAY_SIZE(permille); next++) {
			rank = (out->count * permille[next] + 999) / 1000;
			if (seen < rank)
				break;
			*result[next] = MIN(bucket_value(i), out->max);
		}
	}
}

void
histogram_steps(struct histogram *const h[], unsigned n, struct latency_steps *out)
{
	memset(out, 0, sizeof *out);
	for (unsigned i = 0, step = 0; i < HIST_BUCKETS; i++) {
		/* Its value is in the middle: those of a bucket are all below a power of two, or none. */
		while (step < LATENCY_STEPS && bucket_value(i) >> (TALLY_SHIFT + step) != 0)
			out->below[step++] = out->count;
		out->count += bucket_sum(h, n, i);
	}
	for (unsigned k = 0; k < n; k++)
		out->sum += atomic_load_explicit(&h[k]->sum, memory_order_relaxed);
}

/*
 *	value	less	1 .. 1.5  .. 2	.. 3	.. 4	...	.. 2^24	more	times 1024 ns
 *	bucket	0	1	  2	3	4	...	48	49
 */
void
tally_add(struct tally *t, uint64_t ns)
{
	const uint64_t v = ns >> (TALLY_SHIFT - 1);
	unsigned i = 0;

	if (v >= 2) {
		const unsigned e = 63 - (unsigned)__builtin_clzll(v);

		i = MIN((e - 1) * 2 + (unsigned)(v >> (e - 1) & 1) + 1, TALLY_BUCKETS - 1u);
	}
	atomic_fetch_add_explicit(&t->bucket[i], 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&t->sum, ns, memory_order_relaxed);
}

/* The middle of bucket i. */
static uint64_t
tally_value(unsigned i)
{
	const uint64_t half = UINT64_C(1) << (TALLY_SHIFT - 1);

	if (i == 0)
		return half;
	i--;
	/* From 2 or 3 quarters of the next power of two on, a quarter of it long. */
	return ((2 + i % 2) * half + half / 2) << i / 2;
}

void
tally_steps(const struct tally *t, struct latency_steps *out)
{
	*out = (struct latency_steps){ .sum = atomic_load_explicit(&t->sum, memory_order_relaxed) };
	for (unsigned i = 0; i < TALLY_BUCKETS; i++) {
		out->count += atomic_load_explicit(&t->bucket[i], memory_order_relaxed);
		if (i % 2 == 0)
			out->below[i / 2] = out->count;
	}
}

void
steps_add(struct latency_steps *to, const struct latency_steps *more)
{
	for (unsigned i = 0; i < LATENCY_STEPS; i++)
		to->below[i] += more->below[i];
	to->count += more->count;
	to->sum += more->sum;
}

void
steps_since(struct latency_steps *now, const struct latency_steps *before)
{
	for (unsigned i = 0; i < LATENCY_STEPS; i++)
		now->below[i] -= before->below[i];
	now->count -= before->count;
	now->sum -= before->sum;
}

/* What so many of them took less than, about. */
static uint64_t
steps_value(const struct latency_steps *s, uint64_t rank)
{
	uint64_t under = 0, before;

	for (unsigned i = 0; i < LATENCY_STEPS; i++, under = before) {
		const uint64_t to = UINT64_C(1) << (TALLY_SHIFT + i), from = i > 0 ? to / 2 : 0;

		before = s->below[i];
		if (before >= rank)
			return from + (uint64_t)((double)(to - from) * (double)(rank - under) /
						 (double)(before - under));
	}
	return UINT64_C(1) << (TALLY_SHIFT + LATENCY_STEPS);
}

void
steps_sum(const struct latency_steps *s, struct up_latency *out)
{
	memset(out, 0, sizeof *out);
	if (s->count == 0)
		return;
	out->count = s->count;
	out->p50 = steps_value(s, (s->count * 500 + 999) / 1000);
	out->p99 = steps_value(s, (s->count * 990 + 999) / 1000);
	out->p999 = steps_value(s, (s->count * 999 + 999) / 1000);
	out->max = steps_value(s, s->count);
}

void
tally_sum(const struct tally t[], unsigned n, struct up_latency *out)
{
	static const uint64_t permille[] = { 500, 990, 999, 1000 };
	uint64_t *const result[] = { &out->p50, &out->p99, &out->p999, &out->max };
	uint64_t bucket[TALLY_BUCKETS] = { 0 }, seen = 0;
	unsigned next = 0;

	memset(out, 0, sizeof *out);
	for (unsigned i = 0; i < TALLY_BUCKETS; i++) {
		for (unsigned k = 0; k < n; k++)
			bucket[i] += atomic_load_explicit(&t[k].bucket[i], memory_order_relaxed);
		out->count += bucket[i];
	}
	for (unsigned i = 0; i < TALLY_BUCKETS && out->count > 0; i++) {
		seen += bucket[i];
		while (next < ARRAY_SIZE(permille) &&
		       seen >= (out->count * permille[next] + 999) / 1000)
			*result[next++] = tally_value(i);
	}
}
