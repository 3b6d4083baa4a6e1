/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * real.h: a runtime over the real kernel, for tests: its start, its numbers, its log (logged.h).  rig.h is its sibling over the simulated one.
 */
#ifndef UP_TESTS_REAL_H
#define UP_TESTS_REAL_H

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <time.h>

#include "logged.h"
#include "uffd_pager.h"

/* Skips the test where the kernel does not allow it.  The log is the caller's: collect(), if it has no other wish. */
static inline struct up_runtime *
real_start(const struct up_config *cfg)
{
	struct up_runtime *rt;
	const int r = up_runtime_create(&rt, cfg);

	if (r == -EPERM || r == -ENOSYS)
		cr_skip_test("no userfaultfd or io_uring here: %s", logged);
	cr_assert(r == 0, "create: %s: %s", strerrorname_np(-r), logged);
	return rt;
}

static inline struct up_stats
real_stats(struct up_runtime *rt)
{
	struct up_stats st;

	cr_assert(up_stats_get(rt, &st, sizeof st) == 0);
	return st;
}

/* Monotonic. */
static inline double
seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

#endif
