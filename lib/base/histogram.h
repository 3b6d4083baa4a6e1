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
};

/* Any thread. */
void histogram_add(struct histogram *h, uint64_t ns);

/* Percentiles of the sum of `n` histograms; all zero when there are no values.  Any thread. */
void histogram_sum(struct histogram *const h[], unsigned n, struct up_latency *out);

#endif
