/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * histogram.h (private): a log-linear histogram of durations, as HdrHistogram's: buckets
 * double, each split in 32 equal parts, so a value is known to 1 part in 32.  Any number of writers
 * (relaxed atomics, no lock) and of readers.
 */
#ifndef UP_HISTOGRAM_H
#define UP_HISTOGRAM_H

#include <stdatomic.h>

#include "base.h"

#define HIST_SUB 32		     /* parts of a power of two */
#define HIST_BUCKETS (38 * HIST_SUB) /* up to 2^42 ns = 73 minutes; more counts as that */

struct histogram {
	_Atomic uint64_t bucket[HIST_BUCKETS]; /* 32 bits would wrap within hours */
	_Atomic uint64_t max;
	_Atomic uint64_t sum; /* ns */
};

/* The same in 400 bytes, for each of many: two parts a doubling, from 1 us to 17 s; less counts as the first, more as the last. */
#define TALLY_SHIFT 10
#define TALLY_BUCKETS (24 * 2 + 2)
struct tally {
	_Atomic uint64_t bucket[TALLY_BUCKETS];
	_Atomic uint64_t sum; /* ns */
};

/* Cumulative, as monitoring wants it: how many took less than 1 << (TALLY_SHIFT + i) ns; and all. */
#define LATENCY_STEPS 25
struct latency_steps {
	uint64_t below[LATENCY_STEPS];
	uint64_t count, sum;
};

/* Any thread. */
void histogram_add(struct histogram *h, uint64_t ns);

void tally_add(struct tally *t, uint64_t ns);

/* Percentiles of the sum of `n` histograms; all zero when there are no values.  Any thread. */
void histogram_sum(struct histogram *const h[], unsigned n, struct up_latency *out);
/* The same in steps.  What is added meanwhile may be in `sum` and not in `count` yet; those below a step are never more than those below the next. */
void histogram_steps(struct histogram *const h[], unsigned n, struct latency_steps *out);
void tally_steps(const struct tally *t, struct latency_steps *out);
/* Those of both; those of `now` that were not there `before`, of the same histogram. */
void steps_add(struct latency_steps *to, const struct latency_steps *more);
void steps_since(struct latency_steps *now, const struct latency_steps *before);
/* Percentiles, taken to lie evenly between two steps, and the step that all are below for max; all zero when there are no values. */
void steps_sum(const struct latency_steps *s, struct up_latency *out);
/* How many there are, and percentiles, within a quarter of the true value where there are buckets for it; so is max. */
void tally_sum(const struct tally t[], unsigned n, struct up_latency *out);

#endif
