/* SPDX-License-Identifier: BSD-2-Clause */
/* timely.h: for tests that say how long something may take. */
#ifndef UP_TESTS_TIMELY_H
#define UP_TESTS_TIMELY_H

#include <sched.h>

/*
 * From here on this test and what it starts have a CPU when they want one, if that is permitted.  Linux 6.18 leaves threads that are ready
 * to run, whosever they are, without one for up to eight seconds beside tests that spin, each in a session (autogroup) of its own: a
 * program that sleeps for 50 ms and does nothing else sees the same.
 */
static inline void
at_once(void)
{
	sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){ .sched_priority = 1 });
}

#endif
