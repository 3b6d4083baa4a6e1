/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * lend.c: pages that are read one by one, to regions and back.
 *
 *	   lend_page, lend_run: copied, and the frame stays free
 *	TRANSIT -------------------------------------------------> MAPPED, and `same` if guarded: write-protected since it was read
 *	                                                            |  |
 *	        STAGED, still `same` <--- lend_recall --------------+  +---- a store, lend_allow ----> MAPPED, like others
 *	        (copied into a frame, 64 dropped in one call)
 *
 * A MOVE takes the page out of where it was, which is a TLB shootdown for each: twice a page that is touched at random, once in and once
 * out.  A copy in is none, and dropping 64 copies is one.  And what was guarded all the time is certainly what its slot has, so it need
 * not be hashed when it leaves.
 */
#include "pager/pager.h"

#define GUARD_WEIGHT 16
#define GUARD_CREDIT 256

/*
 * Frames for room in the budget: what is lent (pmap.h) needs room, and leaves a frame over.  A batch at a time, since to drop one costs as
 * much as all.  True if it did.
 */
static bool
trade(struct pager *p)
{
	frame_t f[CLUSTER_MAX];
	const unsigned n = frames_there(p, CLUSTER_MAX, f);

	if (n < CLUSTER_MAX / 4) {
		frames_release(p, f, n);
		return false;
	}
	p->pmap->ops->frames_drop(p->pmap, f, n);
	for (unsigned i = 0; i < n; i++)
		hole_give(&p->frames, f[i], 1);
	budget_uncharge(&p->budget, n * PAGE_SIZE);
	return true;
}

bool
frames_trade(struct pager *p, size_t bytes)
{
	return budget_charge(&p->budget, bytes) || (trade(p) && budget_charge(&p->budget, bytes));
}

unsigned
lend_run(struct pager *p, struct page *const pg[], unsigned n, bool guard)
{
	size_t done;

	/* It takes room in the budget, for which metadata may be waiting. */
	if (!lends(p) || pg[0]->va == 0 || pg[0]->shard >= p->pmap->nshards ||
	    atomic_load(&p->starved) > 0)
		return 0;
	/* Of a source's own pages, or of nobody's: what a private mapping makes of one is for its leaf to know. */
	guard = guard && pg[0]->leaf->named == pg[0]->leaf->sourced;
	if (!frames_trade(p, n * PAGE_SIZE))
		return 0;
	p->pmap->ops->lend(p->pmap, pg[0]->shard, pg[0]->va, pg[0]->frame, n, guard, &done);
	budget_uncharge(&p->budget, (n - done) * PAGE_SIZE);
	pthread_mutex_lock(&p->pages.lock);
	for (size_t i = 0; i < done; i++) {
		pg[i]->frame = FRAME_NONE;
		pg[i]->same = guard;
		page_enqueue_locked(&p->pages, pg[i], Q_ACTIVE, PAGE_MAPPED);
	}
	pthread_mutex_unlock(&p->pages.lock);
	return (unsigned)done;
}

bool
lend_page(struct pager *p, struct page *pg, bool guard)
{
	const frame_t frame = pg->frame;

	if (lend_run(p, &pg, 1, guard) == 0)
		return false;
	frame_give(&p->frames, frame, 1);
	return true;
}

/*
 * A page of this object comes alone, for a load.  To guard it spares its hash and a TLB shootdown when it leaves; a store costs a fault more, which is worth
 * many of those.  So objects that are written to after they were read are guarded seldom.
 */
bool
lend_guarded(struct object *o)
{
	if (atomic_load_explicit(&o->guard_credit, memory_order_relaxed) >= 0)
		return true;
	atomic_fetch_add_explicit(&o->guard_credit, 1, memory_order_relaxed);
	return false;
}

static void
credit(struct leaf *leaf, bool written)
{
	int c;

	/* As in leaf_credit(). */
	if (pthread_mutex_trylock(&leaf->lock) != 0)
		return;
	c = atomic_load_explicit(&leaf->object->guard_credit, memory_order_relaxed);
	c = written ? MAX(c - GUARD_WEIGHT, -GUARD_CREDIT) : MIN(c + 1, GUARD_CREDIT);
	atomic_store_explicit(&leaf->object->guard_credit, c, memory_order_relaxed);
	pthread_mutex_unlock(&leaf->lock);
}

void
lend_written(struct page *pg)
{
	credit(pg->leaf, true);
}

void
lend_allow(struct pager *p, struct page *pg)
{
	if (pg->same)
		p->pmap->ops->allow(p->pmap, pg->shard, pg->va);
	pg->same = false;
}

unsigned
lend_recall(struct service *s, struct page *pg[], unsigned n)
{
	struct pager *p = s->p;
	struct page *lent[CLUSTER_MAX];
	uintptr_t va[CLUSTER_MAX];
	frame_t f[CLUSTER_MAX];
	unsigned nlent = 0, nf, left = 0;
	size_t done = 0;

	for (unsigned i = 0; i < n; i++)
		nlent += pg[i]->same;
	nf = nlent > 0 ? frames_there(p, nlent, f) : 0;
	if (nf == 0)
		return n;
	nlent = 0;
	for (unsigned i = 0; i < n; i++) {
		if (pg[i]->same && nlent < nf) {
			va[nlent] = pg[i]->va;
			lent[nlent++] = pg[i];
		} else {
			pg[left++] = pg[i];
		}
	}
	p->pmap->ops->recall(p->pmap, va, f, nlent, &done);
	assert(done <= nlent);
	frames_release(p, f + done, (unsigned)(nf - done));
	budget_uncharge(&p->budget, done * PAGE_SIZE);
	pthread_mutex_lock(&p->pages.lock);
	for (unsigned i = 0; i < done; i++) {
		lent[i]->frame = f[i];
		page_enqueue_locked(&p->pages, lent[i], Q_INACTIVE, PAGE_STAGED);
	}
	pthread_mutex_unlock(&p->pages.lock);
	for (size_t i = 0; i < done; i++) {
		credit(lent[i]->leaf, false);
		page_unbusy(p, lent[i]->anon, lent[i]->shard, lent[i]->va);
	}
	for (size_t i = done; i < nlent; i++)
		pg[left++] = lent[i];
	count(s, C_STAGED, done);
	return left;
}
