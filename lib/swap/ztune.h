/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * ztune.h (private): how large the compressed pool should be.
 *
 * A byte belongs where it saves more time.  Both sides are asked what the bytes at their edge are worth, in ns saved a byte held, over the
 * same time:
 *
 *	the pool's last     hits on its oldest quarter           * (read - hit)  / bytes of that quarter
 *	the pool's next     reads of what went to disk lately     * (read - hit)  / bytes that would have kept it
 *	the frames' last    touches of staged pages              * hit           / bytes that are staged
 *
 * A staged page that is touched is a soft fault; in a frame less it would have been in the pool, and a hit.  So:
 *
 *	SHRINK  it can not pay: hits, and what would be hits if all bytes up to max were worth what the next ones are,
 *	        save less than compressing costs, by a quarter.  A stream of pages that nobody wants again.  As long as nothing
 *	        at all is asked for, as while a region is filled, nobody can tell
 *	GROW    its next bytes are worth more than the frames' last, by a quarter
 *	SHRINK  its last bytes are worth less than the frames' last, by a quarter
 *
 * A pool that does not use what it may is left alone, and so is one with fewer than ZTUNE_FEW events: who does not fault does
 * not care.
 *
 * After: P. Wilson, S. Kaplan, Y. Smaragdakis, "The Case for Compressed Caching in Virtual Memory Systems", USENIX 1999, who weigh
 * cost and benefit of every size, from a histogram of recency.  Here only the two edges are known, so
 * the size climbs step by step, and what lies beyond the next step is not seen.
 *
 * Counts fade: each interval halves what was before it, so that one odd interval decides little.  No lock: the owner has one.  No
 * clock, no floating point: the same counts, the same verdicts.
 */
#ifndef UP_ZTUNE_H
#define UP_ZTUNE_H

#include "base/base.h"

#define ZTUNE_STEPS 16 /* from min to max */
#define ZTUNE_FEW 16

/* What has happened in an interval.  Each at most 2^32. */
struct ztune_counts {
	uint64_t
		hits; /* page-ins that the pool served, and that would have been reads: not of pages of one word */
	uint64_t hits_old; /* of those, of its oldest quarter */
	uint64_t
		lost; /* reads of pages that were among the last `ghosts` that left memory for the disk */
	uint64_t soft;	 /* touches of staged pages */
	uint64_t stored; /* pages compressed, with success or without */
	uint64_t reads;	 /* pages read from disk */
};

/* How things are at its end. */
struct ztune_state {
	size_t pool;	   /* bytes that the pool has */
	size_t entries;	   /* pages in them */
	size_t ghosts;	   /* pages that `lost` looks back */
	size_t staged;	   /* bytes of frames that are staged */
	uint32_t hit_ns;   /* a page-in from the pool */
	uint32_t read_ns;  /* the same from disk */
	uint32_t store_ns; /* compress one */
};

enum ztune_verdict { ZTUNE_KEEP, ZTUNE_GROW, ZTUNE_SHRINK };

struct ztune {
	size_t min, max;	 /* bytes */
	size_t target;		 /* what zpool_set_limit() is to be told */
	struct ztune_counts sum; /* faded, in 256ths */
};

/*
 * start is brought between min and max.  min is not 0, for what is never stored is never missed: some 64 pages, say, to find out with.
 */
void ztune_init(struct ztune *t, size_t min, size_t max, size_t start);
/* The target stays as close to what it was as these allow; one that was at the top stays there. */
void ztune_resize(struct ztune *t, size_t min, size_t max);
/* An interval is over.  t->target is where it should be now; KEEP: where it was. */
enum ztune_verdict ztune_step(struct ztune *t, const struct ztune_counts *c,
			      const struct ztune_state *s);

#endif
