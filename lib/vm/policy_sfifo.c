/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * policy_sfifo.c: segmented FIFO.
 *
 * R. Turner and H. Levy, "Segmented FIFO page replacement", SIGMETRICS 1981, for VMS, which had no
 * reference bits either; O. Babaoglu and W. Joy did the same for BSD on the VAX, "Converting a swap-based
 * system to do paging in an architecture lacking page-referenced bits", SOSP 1981.
 *
 *	textbook                                here
 *	primary FIFO of resident pages          MAPPED, in order of arrival (queue MAIN)
 *	secondary LRU of unmapped pages that    STAGED, then CLEAN, in order of leaving the primary.  Since a
 *	  are still in memory                   touch takes a page out of it, FIFO and LRU are the same here
 *	fault on a page of the secondary: back  soft fault: tail of MAIN
 *	  to the tail of the primary
 *
 * The larger the secondary, the closer to LRU, and the more soft faults.  How large is the mechanism's
 * business: it stages pages until enough are staged.
 *
 * With refault distance, a page that came back before as many others left as there are mapped would have
 * stayed if the queue had been twice as long: it goes round twice before it is staged.  Linux draws the same
 * line between its active and inactive lists (mm/workingset.c; J. Weiner, Linux 3.15, 2014), where
 * it has an accessed bit for the rest of the way.
 */
#include "vm/policy.h"

static void
sfifo_insert(struct policy *p, struct policy_node *nd)
{
	(void)p;
	nd->home = PQ_MAIN;
}

static void
sfifo_refault(struct policy *p, struct policy_node *nd, uint32_t distance)
{
	nd->home = PQ_MAIN;
	/* GHOST_UNKNOWN is farther than any. */
	if (p->ops->ghosts && distance <= policy_length(p, PQ_MAIN))
		nd->count = 1;
}

static void
sfifo_touched(struct policy *p, struct policy_node *nd)
{
	(void)p;
	nd->home = PQ_MAIN;
}

static bool
sfifo_remember(const struct policy *p, const struct policy_node *nd)
{
	(void)nd;
	return p->ops->ghosts;
}

static enum policy_queue
sfifo_choose(const struct policy *p)
{
	(void)p;
	return PQ_MAIN;
}

static bool
sfifo_spare(struct policy *p, struct policy_node *nd)
{
	(void)p;
	if (nd->count == 0)
		return false;
	nd->count--;
	return true;
}

const struct policy_ops policy_sfifo = {
	.name = "sfifo",
	.insert = sfifo_insert,
	.refault = sfifo_refault,
	.touched = sfifo_touched,
	.remember = sfifo_remember,
	.choose = sfifo_choose,
	.spare = sfifo_spare,
};

const struct policy_ops policy_sfifo_refault = {
	.name = "sfifo-refault",
	.ghosts = true,
	.insert = sfifo_insert,
	.refault = sfifo_refault,
	.touched = sfifo_touched,
	.remember = sfifo_remember,
	.choose = sfifo_choose,
	.spare = sfifo_spare,
};
