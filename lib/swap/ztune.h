/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * ztune.h (private): how large the compressed pool should be.
 *
 * A byte belongs where it saves more time.  Both sides are asked what their last bytes are worth, in ns saved for each byte held, over the
 * same interval:
 *
 *	the pool, if smaller    hits on its oldest quarter          * (read - hit)  / bytes of that quarter
 *	the pool, if larger     reads of what it wrote back lately  * (read - hit)  / bytes that would have kept them
 *	the frames              soft faults: touches of what is staged, which is what would be in the pool if it had those frames
 *	                                                            * hit           / bytes that are staged
 *
 * It grows by a step when its next bytes are worth more than the frames' last, by a margin; it shrinks when its last bytes are worth less, by a margin. Whatever
 * these say, it shrinks while it costs more than it saves: hits * (read - hit) < stored * store (a stream of pages that nobody wants again).
 *
 * After: P. Wilson, S. Kaplan, Y. Smaragdakis, "The Case for Compressed Caching in Virtual Memory Systems", USENIX 1999, who decide by
 * cost and benefit of each size, from a histogram of recency.  Where they count all sizes at once we only have the two edges, so
 * this climbs step by step; what lies beyond the next step it can not see.
 *
 * Counts are sums that fade: each interval halves what was before, so that one odd interval decides little.  No lock: the owner has one.  No
 * clock, no floating point: the same counts, the same decision.
 */
#ifndef UP_ZTUNE_H
#define UP_ZTUNE_H

#include "base/base.h"

#define ZTUNE_STEPS 16 /* from min to max */
#define ZTUNE_FEW 16   /* events; with fewer there is nothing to decide by */
#define ZTUNE_MARGIN 4 /* a quarter more, or a quarter less */

/* What has happened since the last time. */
struct ztune_counts {
	uint64_t hits;	   /* page-ins that the pool served */
	uint64_t hits_old; /* of those, of its oldest quarter */
	uint64_t
		lost; /* pages read from swap that the pool had written back within the last `ghosts` write-backs */
	uint64_t
		soft; /* staged pages that were touched, and so did not need to come from anywhere */
	uint64_t stored;      /* pages compressed, successfully or not */
	uint64_t write_backs; /* pages that left it for swap */
};

/* How things are now. */
struct ztune_state {
	size_t pool;	   /* bytes that it has */
	size_t entries;	   /* pages in them */
	size_t ghosts;	   /* how far back `lost` looks, in pages */
	size_t staged;	   /* bytes of frames that are staged */
	uint32_t hit_ns;   /* decompress and map */
	uint32_t read_ns;  /* the same from disk */
	uint32_t store_ns; /* compress, or try to */
};

enum ztune_verdict { ZTUNE_KEEP, ZTUNE_GROW, ZTUNE_SHRINK };

struct ztune {
	size_t min, max;	 /* (c) bytes */
	size_t target;		 /* what zpool_set_limit() is to be told */
	struct ztune_counts sum; /* faded, times 2^ZTUNE_FRACTION */
};

void ztune_init(struct ztune *t, size_t min, size_t max, size_t start);
/* An interval is over: what now?  t->target has been moved already. */
enum ztune_verdict ztune_step(struct ztune *t, const struct ztune_counts *c,
			      const struct ztune_state *s);

#endif
