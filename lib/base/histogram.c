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
