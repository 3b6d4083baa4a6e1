/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * polling.h (private): when a thread that waits for a page from the disk looks for it again and again, instead of going to sleep.
 *
 * A CPU with nothing to run halts, and on a virtual machine it takes the host to wake it up: 10 to 20 us of the 60 to 80 that a
 * random read of 4 KiB took here (docs/benchmarks.md, io.wake).  Who looks has them for the price of the CPU, which nobody else
 * wants then.  Whether somebody does shows in the looks: a look takes less than a microsecond, so after a gap of GAP_NS
 * somebody else has been on the CPU (or the host had something better to do).
 *
 *	         polling_begin()           the read is done: penalty halved
 *	  wait ---------------------> look ---------------------------------> done
 *	   |  more waits than CPUs     |  gap, or nothing for limit_ns: penalty doubled; so many waits
 *	   |  serving a penalty        v  from now on do not poll
 *	   +------------------------> sleep ---------------------------------> done
 *
 * After the hybrid polling of the Linux block layer (Documentation/block/stat.rst, queue/io_poll_delay) without its sleep before the
 * polls: here that sleep ends late by as much as what it was to avoid.
 */
#ifndef UP_POLLING_H
#define UP_POLLING_H

#include "base/base.h"

/* One for all engines of a pager; any thread. */
struct polling {
	uint64_t limit_ns;   /* (c) longest, 0: never */
	unsigned ncpus;	     /* (c) that this process may use */
	atomic_uint waiting; /* waits for reads under way, asleep or not */
	atomic_uint skip;    /* the next so many waits sleep at once */
	atomic_uint penalty; /* what `skip` was the last time */
};

/* limit_us 0: never. */
void polling_init(struct polling *pl, uint64_t limit_us);

/* A wait for a read begins.  => true: poll.  In any case polling_end() is to follow. */
bool polling_begin(struct polling *pl);

/* The looks of one wait. */
struct polling_turn {
	uint64_t start, last;
};
void polling_start(struct polling_turn *t);
/* After a look that found nothing.  False: go to sleep. */
bool polling_again(struct polling *pl, struct polling_turn *t);
/* After one that found something. */
void polling_found(struct polling *pl);

void polling_end(struct polling *pl);

#endif
