/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * range.c: what user threads do to ranges of an object, while service threads work on.
 *
 * All of it goes leaf by leaf: make up to CLUSTER_MAX pages busy under the leaf lock, let the lock
 * go, act on them, release them.  A page that somebody else has busy is waited for, holding nothing but
 * map.change, which no service thread ever takes.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <time.h>

#include "pager/pager.h"

/* A page in motion: sleep until it has come to rest.  => leaf locked; unlocked on return. */
static void
wait_for(struct pager *p, struct leaf *leaf, struct anon *an)
{
	if (p->idle == NULL) {
		anon_wait(&p->waitqs, an, &leaf->lock);
		return;
	}
	pthread_mutex_unlock(&leaf->lock);
	p->idle(p->idle_ctx);
}

static void
doze(struct pager *p)
{
	const struct timespec ms = { .tv_nsec = 1000000 };

	if (p->idle != NULL)
		p->idle(p->idle_ctx);
	else
		clock_nanosleep(CLOCK_MONOTONIC, 0, &ms, NULL);
}

void
range_discard(struct pager *p, unsigned shard, uintptr_t va, uint64_t n)
{
	int r;

	for (unsigned tries = 0; (r = p->pmap->ops->discard(p->pmap, shard, va, n)) < 0; tries++) {
		if (r != -EAGAIN && tries == 1000) {
			log_line(&p->log, UP_LOG_ERROR, "discarding %llu pages at %#lx: error %d",
				 (unsigned long long)n, (unsigned long)va, -r);
			return;
		}
		doze(p);
	}
}

/* A run of busy anons in one leaf. */
struct batch {
	struct leaf *leaf;
	unsigned n;
	unsigned at[CLUSTER_MAX]; /* slots, ascending */
	struct anon *anon[CLUSTER_MAX];
};

/*
 * The next up to CLUSTER_MAX pages in [*first, end) that exist, all made busy; *first moves behind the
 * last one looked at.  False when there are no more.  Nothing is locked on return.
 */
static bool
next_batch(struct pager *p, struct object *o, uint64_t *first, uint64_t end, struct batch *b)
{
	while (*first < end) {
		struct leaf *leaf = object_next_leaf(o, *first);
		struct anon *blocker = NULL;
		unsigned at, stop;

		if (leaf == NULL)
			return false;
		if (leaf->base >= end) {
			pthread_mutex_unlock(&leaf->lock);
			return false;
		}
		*b = (struct batch){ .leaf = leaf };
		at = (unsigned)(MAX(*first, leaf->base) - leaf->base);
		stop = (unsigned)MIN(end - leaf->base, LEAF_SLOTS);
		for (; at < stop && b->n < CLUSTER_MAX; at++) {
			struct anon *an = leaf_anon(leaf, at);

			if (an == NULL)
				continue;
			if (!anon_trybusy(an)) {
				blocker = an;
				break;
			}
			b->at[b->n] = at;
			b->anon[b->n++] = an;
		}
		*first = leaf->base + at;
		if (b->n > 0) {
			pthread_mutex_unlock(&leaf->lock);
			return true;
		}
		if (blocker != NULL)
			wait_for(p, leaf, blocker);
		else
			pthread_mutex_unlock(&leaf->lock);
	}
	return false;
}

/* The page of an anon if it is in core and in its region, else NULL.  => busy */
static struct page *
mapped_page(struct pager *p, const struct anon *an)
{
	struct page *pg;

	if (atomic_load_explicit(&an->kind, memory_order_relaxed) != ANON_CORE)
		return NULL;
	pg = page_at(&p->pages, an->loc);
	return pg->state == PAGE_MAPPED ? pg : NULL;
}

/* Drop from the page table what is there of a batch: runs of mapped pages, and the marks of lost ones. */
static void
discard_batch(struct pager *p, const struct batch *b, uintptr_t base, unsigned shard)
{
	for (unsigned i = 0; i < b->n;) {
		unsigned j = i;

		while (j < b->n && b->at[j] == b->at[i] + (j - i) &&
		       (mapped_page(p, b->anon[j]) != NULL ||
			atomic_load_explicit(&b->anon[j]->kind, memory_order_relaxed) == ANON_LOST))
			j++;
		if (j > i)
			range_discard(p, shard, base + (uintptr_t)b->at[i] * PAGE_SIZE, j - i);
		i = MAX(j, i + 1);
	}
}

void
release_content(struct pager *p, struct anon *an)
{
	struct page *pg;
	enum page_state state;

	switch (atomic_load_explicit(&an->kind, memory_order_relaxed)) {
	case ANON_SWAP:
		swap_free(&p->swap, an->loc, 1);
		atomic_fetch_sub(&p->nswapped, 1);
		return;
	case ANON_LOST:
		atomic_fetch_sub(&p->nlost, 1);
		return;
	default:
		break;
	}
	pg = page_at(&p->pages, an->loc);
	pthread_mutex_lock(&p->pages.lock);
	state = pg->state;
	if (state == PAGE_LAUNDRY)
		pg->anon = NULL; /* frame and slot are the write's now */
	else
		page_dequeue_locked(&p->pages, pg);
	pthread_mutex_unlock(&p->pages.lock);
	if (state == PAGE_LAUNDRY)
		return;
	if (pg->slot != SLOT_NONE)
		swap_free(&p->swap, pg->slot, 1);
	if (state == PAGE_MAPPED)
		budget_uncharge(&p->budget, PAGE_SIZE);
	else
		frame_give(&p->frames, pg->frame, 1);
	page_free(&p->pages, pg);
}

void
range_free(struct pager *p, struct object *o, uint64_t first, uint64_t n, uintptr_t va,
	   unsigned shard)
{
	const uint64_t end = first + n;
	uint64_t at = first;
	size_t leaves;
	struct batch b;

	while (next_batch(p, o, &at, end, &b)) {
		const uintptr_t base = va != 0 ? va + ((b.leaf->base - first) << PAGE_SHIFT) : 0;

		if (va != 0)
			discard_batch(p, &b, base, shard);
		for (unsigned i = 0; i < b.n; i++) {
			release_content(p, b.anon[i]);
			leaf_forget(p, b.leaf, b.at[i]);
			anon_gone(p, b.anon[i], shard,
				  va != 0 ? base + (uintptr_t)b.at[i] * PAGE_SIZE : 0);
		}
	}
	leaves = object_prune(o, first, end);
	if (o->noreserve)
		resv_give(&p->resv_meta, leaves * META_PER_LEAF);
	services_kick(p, NULL);
}

/*
 * The kernel will not hand this page over: it is pinned.  Its region goes away, so what its bytes are now
 * is what the object keeps; I/O that still has it pinned ends in a page that nobody sees, as with munmap().
 */
static int
copy_out(struct pager *p, struct page *pg)
{
	frame_t f;
	int r;

	while (frames_obtain(p, 1, &f) == 0) {
		services_press(p);
		doze(p);
	}
	r = p->pmap->ops->read(p->pmap, pg->va, pmap_frame(p->pmap, f));
	if (r < 0) {
		frame_give(&p->frames, f, 1);
		return r;
	}
	range_discard(p, pg->shard, pg->va, 1);
	budget_uncharge(&p->budget, PAGE_SIZE);
	pg->frame = f;
	return 0;
}

/* => busy and MAPPED; on return it is STAGED, or, if the program had discarded it, gone. */
static bool
keep_page(struct pager *p, struct page *pg)
{
	unsigned tries = 0;
	frame_t hole;
	int r;

	pthread_mutex_lock(&p->pages.lock);
	page_dequeue_locked(&p->pages, pg);
	pthread_mutex_unlock(&p->pages.lock);
	for (;;) {
		size_t done = 0;

		while (hole_take(&p->frames, 1, &hole) == 0)
			doze(p);
		r = p->pmap->ops->remove(p->pmap, pg->shard, pg->va, hole, 1, &done);
		if (r == 0) {
			pg->frame = hole;
			break;
		}
		hole_give(&p->frames, hole, 1);
		if (r == -EBUSY || ++tries > 100)
			r = copy_out(p, pg);
		if (r == 0)
			break;
		if (r == -ENOENT)
			return false;
		if (tries > 1000) {
			log_line(&p->log, UP_LOG_ERROR,
				 "page at %#lx can not be kept: error %d, content lost",
				 (unsigned long)pg->va, -r);
			range_discard(p, pg->shard, pg->va, 1);
			return false;
		}
		doze(p);
	}
	pthread_mutex_lock(&p->pages.lock);
	page_enqueue_locked(&p->pages, pg, Q_INACTIVE, PAGE_STAGED);
	pthread_mutex_unlock(&p->pages.lock);
	return true;
}

/* Whoever moves the page next wakes who waits for it at its new address.  => busy, and in no region */
static void
readdress(struct pager *p, const struct anon *an, uintptr_t va, unsigned shard)
{
	struct page *pg;

	if (atomic_load_explicit(&an->kind, memory_order_relaxed) != ANON_CORE)
		return;
	pg = page_at(&p->pages, an->loc);
	pg->va = va;
	pg->shard = (uint8_t)shard;
}

void
range_keep(struct pager *p, struct object *o, uint64_t first, uint64_t n, uintptr_t va,
	   unsigned shard)
{
	const uint64_t end = first + n;
	uint64_t at = first;
	struct batch b;

	while (next_batch(p, o, &at, end, &b)) {
		for (unsigned i = 0; i < b.n; i++) {
			struct page *pg = mapped_page(p, b.anon[i]);

			if (pg != NULL && !keep_page(p, pg)) {
				if (pg->slot != SLOT_NONE)
					swap_free(&p->swap, pg->slot, 1);
				page_free(&p->pages, pg);
				budget_uncharge(&p->budget, PAGE_SIZE);
				leaf_forget(p, b.leaf, b.at[i]);
				anon_gone(p, b.anon[i], 0, 0);
				continue;
			}
			readdress(p, b.anon[i],
				  va == 0 ? 0
					  : va + ((b.leaf->base + b.at[i] - first) << PAGE_SHIFT),
				  shard);
			anon_unbusy(&p->waitqs,
				    b.anon[i]); /* the unmap that follows wakes the range */
		}
	}
}

void
range_cool(struct pager *p, struct object *o, uint64_t first, uint64_t n, uintptr_t va,
	   unsigned shard)
{
	const uint64_t end = first + n;
	uint64_t at = first;
	struct batch b;

	while (next_batch(p, o, &at, end, &b)) {
		/* From the back, so that the lowest address ends up first in line. */
		for (unsigned i = b.n; i-- > 0;) {
			struct page *pg = mapped_page(p, b.anon[i]);
			const uint64_t page = b.leaf->base + b.at[i] - first;

			if (pg != NULL) {
				pthread_mutex_lock(&p->pages.lock);
				if (pg->queue != Q_WIRED) {
					page_dequeue_locked(&p->pages, pg);
					page_enqueue_head_locked(&p->pages, pg, Q_ACTIVE,
								 PAGE_MAPPED);
				}
				pthread_mutex_unlock(&p->pages.lock);
			}
			page_unbusy(p, b.anon[i], shard, va + (page << PAGE_SHIFT));
		}
	}
}

void
range_unwire(struct pager *p, struct object *o, uint64_t first, uint64_t n, uintptr_t va,
	     unsigned shard)
{
	const uint64_t end = first + n;
	uint64_t at = first;
	struct batch b;

	while (next_batch(p, o, &at, end, &b)) {
		for (unsigned i = 0; i < b.n; i++) {
			struct page *pg = mapped_page(p, b.anon[i]);
			const uint64_t page = b.leaf->base + b.at[i] - first;

			if (pg != NULL) {
				pthread_mutex_lock(&p->pages.lock);
				if (pg->queue == Q_WIRED) {
					page_dequeue_locked(&p->pages, pg);
					page_enqueue_locked(&p->pages, pg, Q_ACTIVE, PAGE_MAPPED);
				}
				pthread_mutex_unlock(&p->pages.lock);
			}
			page_unbusy(p, b.anon[i], shard, va + (page << PAGE_SHIFT));
		}
	}
}

/* => busy */
static unsigned char
residency(struct pager *p, const struct anon *an)
{
	const struct page *pg;
	unsigned char bits;

	switch (atomic_load_explicit(&an->kind, memory_order_relaxed)) {
	case ANON_SWAP:
		return UP_PAGE_SWAPPED;
	case ANON_LOST:
		return UP_PAGE_LOST;
	default:
		break;
	}
	pg = page_at(&p->pages, an->loc);
	pthread_mutex_lock(&p->pages.lock);
	bits = pg->state == PAGE_MAPPED ? UP_PAGE_MAPPED : UP_PAGE_STAGED;
	if (pg->state != PAGE_LAUNDRY && pg->slot != SLOT_NONE)
		bits |= UP_PAGE_SWAPPED;
	if (pg->queue == Q_WIRED)
		bits |= UP_PAGE_WIRED;
	pthread_mutex_unlock(&p->pages.lock);
	return bits;
}

void
range_residency(struct pager *p, struct object *o, uint64_t first, uint64_t n, uintptr_t va,
		unsigned shard, unsigned char *vec)
{
	const uint64_t end = first + n;
	uint64_t at = first;
	struct batch b;

	memset(vec, 0, n);
	while (next_batch(p, o, &at, end, &b)) {
		const uint64_t base = b.leaf->base - first;
		unsigned char bits[CLUSTER_MAX];

		for (unsigned i = 0; i < b.n; i++) {
			bits[i] = residency(p, b.anon[i]);
			page_unbusy(p, b.anon[i], shard, va + ((base + b.at[i]) << PAGE_SHIFT));
		}
		/* Only now: the caller's vector may itself be paged memory, even of this range. */
		for (unsigned i = 0; i < b.n; i++)
			vec[base + b.at[i]] = bits[i];
	}
}

void
range_willneed(struct pager *p, unsigned shard, uintptr_t va, uintptr_t end)
{
	struct service *s = p->service[shard];

	pthread_mutex_lock(&s->cmd_lock);
	if (s->ncmd < CMD_MAX) {
		s->cmd[s->ncmd].va = va;
		s->cmd[s->ncmd].end = end;
		s->ncmd++;
	}
	pthread_mutex_unlock(&s->cmd_lock);
	s->io->ops->kick(s->io);
}
