/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * policy_s3fifo.c: S3-FIFO over soft faults.
 *
 * J. Yang, Y. Zhang, Z. Qiu, Y. Yue and K. V. Rashmi, "FIFO queues are all you need for cache eviction",
 * SOSP 2023.  Most pages of a skewed or scanning program are used once in a memory's worth of time, so
 * new ones wait in a small FIFO, and only those used again there, or missed soon after, enter the main one.
 *
 *	textbook                                here
 *	small FIFO S, a tenth of the memory     FRESH: mapped.  Its end is the staged pages, which it shares
 *	                                          with M: a page is looked at there and nowhere before
 *	main FIFO M, nine tenths                MAIN: mapped, with the same end
 *	hit: freq = min(freq + 1, 3)            a soft fault: min(freq + 2, 3), for it stands for all the hits
 *	                                          on the page while it was mapped, which are unseen
 *	S evicts: freq > 1 goes to M, else out  a soft fault sends to MAIN at once.  One is enough: the burst of
 *	  with a ghost                            touches around the first fault, which freq > 1 is there to
 *	                                          discount, falls into the time when the page was mapped
 *	M evicts: freq > 0 goes round with      oldest of MAIN: with freq > 1 it goes round with freq - 1 and
 *	  freq - 1, else out                      stays mapped, since to look at it would cost a soft fault that
 *	                                          we can foresee; with less it is staged, and leaves
 *	                                          unless it is touched there
 *	evict from S if it is larger than a     the same, of pages in memory, when mapped victims are asked for
 *	  tenth, else from M
 *	ghost FIFO G of pages that S evicted,   a page that FRESH evicted and that comes back with a refault
 *	  as long as M; a miss found there        distance of no more than the memory has frames goes to MAIN,
 *	  goes to M, else to S                    with freq 1: that miss is a hit that came too late
 *
 * Pages that left from MAIN are not remembered.  It would gain 1 per cent where use is skewed; but in a loop
 * over a little more than memory all pages would then push each other out of MAIN, whereas so those
 * that are in it stay, and are hit (bench/policy: 0.43 misses an access instead of 0.91).
 *
 * Alternative looked at: SIEVE (Y. Zhang, J. Yang, Y. Yue, Y. Vigfusson and K. V. Rashmi, NSDI 2024), one
 * queue and a hand.  Its hand tells used pages from unused ones by a bit that costs nothing to read; ours
 * has to stage each page that it passes, and clean pages would lie scattered over the queue.
 */
#include "vm/policy.h"

#define COUNT_MAX 3
/* What one soft fault counts for. */
#define COUNT_SOFT 2
/* FRESH is to be at most this part of memory. */
#define FRESH_PART 10

static void
s3_insert(struct policy *p, struct policy_node *nd)
{
	(void)p;
	nd->home = PQ_FRESH;
}

static void
s3_refault(struct policy *p, struct policy_node *nd, uint32_t distance)
{
	/* GHOST_UNKNOWN is farther than any. */
	if (distance > p->frames) {
		nd->home = PQ_FRESH;
		return;
	}
	nd->home = PQ_MAIN;
	nd->count = 1;
}

static void
s3_touched(struct policy *p, struct policy_node *nd)
{
	(void)p;
	nd->home = PQ_MAIN;
	nd->count = MIN(nd->count + COUNT_SOFT, COUNT_MAX);
}

static bool
s3_remember(const struct policy *p, const struct policy_node *nd)
{
	(void)p;
	return nd->home == PQ_FRESH;
}

static enum policy_queue
s3_choose(const struct policy *p)
{
	return policy_length(p, PQ_FRESH) > policy_in_memory(p) / FRESH_PART ? PQ_FRESH : PQ_MAIN;
}

static bool
s3_spare(struct policy *p, struct policy_node *nd)
{
	(void)p;
	if (nd->queue != PQ_MAIN || nd->count < 2)
		return false;
	nd->count--;
	return true;
}

const struct policy_ops policy_s3fifo = {
	.name = "s3fifo",
	.ghosts = true,
	.insert = s3_insert,
	.refault = s3_refault,
	.touched = s3_touched,
	.remember = s3_remember,
	.choose = s3_choose,
	.spare = s3_spare,
};
