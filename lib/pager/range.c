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

#include "base/hash.h"
#include "foreign.h"
#include "pager/pager.h"

#define COUNT_DEPTH 16 /* objects of a chain that pictures show */
#define LIVE_TRIES 3   /* ms that a clone waits for one page with everybody else waiting */

void
range_wait(struct pager *p, struct leaf *leaf, unsigned at)
{
	struct anon *an = leaf_anon(leaf, at);
	/* Before the look: a page may become one that can be cancelled while we are about to sleep. */
	const unsigned ticket = anon_ticket(&p->waitqs, an);

	if (source_cancel(p, leaf, at))
		return;
	if (p->idle == NULL) {
		anon_wait_since(&p->waitqs, an, &leaf->lock, ticket);
		return;
	}
	pthread_mutex_unlock(&leaf->lock);
	p->idle(p->idle_ctx);
}

void
range_doze(struct pager *p)
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

	if (p->taking) /* the program has unmapped it, and it may be anybody's */
		return;
	for (unsigned tries = 0; (r = p->pmap->ops->discard(p->pmap, shard, va, n)) < 0; tries++) {
		if (r == -EBUSY && p->foreign != NULL) {
			/* What can not be moved out goes by itself if it is the program that discards. */
			if (!p->foreign->acting)
				p->pmap->ops->drop(p->pmap, shard, va, n);
			return;
		}
		if (r != -EAGAIN && tries == 1000) {
			log_line(&p->log, UP_LOG_ERROR, "discarding %llu pages at %#lx: error %d",
				 (unsigned long long)n, (unsigned long)va, -r);
			return;
		}
		range_doze(p);
	}
}

/*
 * Is its write still under way?  Asked with the lock that the end of a write holds: who sees it half ended might not see that
 * it has failed, and forget a page that nobody else has.  => busy and in core
 */
static bool
being_written(struct pager *p, const struct anon *an)
{
	const struct page *pg = page_at(&p->pages, an->loc);
	bool writing;

	pthread_mutex_lock(&p->pages.lock);
	writing = pg->state == PAGE_LAUNDRY;
	pthread_mutex_unlock(&p->pages.lock);
	return writing;
}

bool
range_batch(struct pager *p, struct object *o, uint64_t *first, uint64_t end,
	    enum batch_reads reads, struct batch *b)
{
	while (*first < end) {
		struct leaf *leaf = object_next_leaf(o, *first);
		bool blocked = false, writing = false;
		unsigned ticket = 0;
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
				ticket = anon_ticket(&p->waitqs, an);
				if (reads == READS_PASS && source_reading(p, leaf, at))
					continue;
				blocked = true;
				break;
			}
			/* What is on its way back to its source has to arrive first. */
			if (leaf->sourced && anon_in_core(an) && being_written(p, an)) {
				anon_unbusy(&p->waitqs, an);
				writing = true;
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
		if (blocked && reads == READS_CANCEL) {
			range_wait(p, leaf, at);
			continue;
		}
		if (blocked && p->idle == NULL) {
			anon_wait_since(&p->waitqs, leaf_anon(leaf, at), &leaf->lock, ticket);
			continue;
		}
		pthread_mutex_unlock(&leaf->lock);
		if (writing || blocked)
			range_doze(p);
	}
	return false;
}

/* The page of an anon if it is in core and in its region, else NULL.  => busy */
static struct page *
mapped_page(struct pager *p, const struct anon *an)
{
	struct page *pg;

	if (!anon_in_core(an))
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
	case ANON_ZIP:
		zpool_free(&p->tier.pool, an->loc);
		atomic_fetch_sub(&p->tier.nzipped, 1);
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
	   unsigned shard, bool gone)
{
	const uint64_t end = first + n;
	uint64_t at = first;
	size_t leaves;
	struct batch b;

	while (range_batch(p, o, &at, end, READS_CANCEL, &b)) {
		const uintptr_t base = va != 0 ? va + ((b.leaf->base - first) << PAGE_SHIFT) : 0;

		if (va != 0)
			discard_batch(p, &b, base, shard);
		for (unsigned i = 0; i < b.n; i++) {
			anon_forget(b.anon[i]);
			release_content(p, b.anon[i]);
			leaf_forget(p, b.leaf, b.at[i]);
			anon_gone(p, b.anon[i], shard,
				  va != 0 ? base + (uintptr_t)b.at[i] * PAGE_SIZE : 0);
		}
	}
	if (gone)
		chain_unmark(o, first, n);
	else
		chain_hidden(p, o, first, n);
	leaves = object_prune(o, first, end);
	if (o->noreserve)
		resv_give(&p->resv_meta, leaves * META_PER_LEAF);
	services_kick(p, NULL);
}

void
range_unmark(struct pager *p, struct object *o, uint64_t first, uint64_t n, uintptr_t va,
	     unsigned shard)
{
	const uint64_t end = first + n;
	uint64_t at = first;
	struct batch b;

	while (atomic_load(&p->nlost) > 0 && range_batch(p, o, &at, end, READS_CANCEL, &b)) {
		for (unsigned i = 0; i < b.n; i++) {
			const uintptr_t page =
				va + ((b.leaf->base + b.at[i] - first) << PAGE_SHIFT);

			if (atomic_load_explicit(&b.anon[i]->kind, memory_order_relaxed) ==
			    ANON_LOST)
				range_discard(p, shard, page, 1);
			page_unbusy(p, b.anon[i], shard, page);
		}
	}
}

/* => the page is a pool's.  0; -EAGAIN: look again. */
static int
unrecord_page(struct pager *p, struct object *o, uint64_t index)
{
	struct leaf *leaf;
	int r = 0;

	/* Without a leaf: with the map locked for writing nobody makes one meanwhile. */
	pthread_rwlock_wrlock(&p->map.lock);
	leaf = object_leaf(o, index, NULL);
	if (leaf == NULL || leaf_anon(leaf, (unsigned)(index - leaf->base)) == NULL)
		r = p->pmap->ops->discard(p->pmap, PMAP_POOL, o->pool + (index << PAGE_SHIFT), 1);
	if (leaf != NULL)
		pthread_mutex_unlock(&leaf->lock);
	pthread_rwlock_unlock(&p->map.lock);
	return r == -EAGAIN ? r : 0;
}

void
range_unrecord(struct pager *p, struct map_entry *e, uintptr_t start, uintptr_t end)
{
	uint64_t at = e->offset + ((start - e->start) >> PAGE_SHIFT);
	const uint64_t stop = at + ((end - start) >> PAGE_SHIFT);

	if (!atomic_load(entry_unrecorded(e)))
		return;
	if (e->object->pool == 0) {
		range_discard(p, e->shard, start, stop - at);
		return;
	}
	/* One by one, and none that is there: it may be touched and written to in another place. */
	for (; at < stop; at++) {
		while (unrecord_page(p, e->object, at) == -EAGAIN)
			range_doze(p);
	}
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
		range_doze(p);
	}
	r = p->pmap->ops->read(p->pmap, pg->va, pmap_frame(p->pmap, f));
	if (r < 0) {
		frame_give(&p->frames, f, 1);
		return r;
	}
	pg->frame = f;
	stores_in_order();
	/* It goes with its region; an event about it would be about what has been copied. */
	if (p->foreign == NULL)
		range_discard(p, pg->shard, pg->va, 1);
	budget_uncharge(&p->budget, PAGE_SIZE);
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
	if (p->taking)
		return false;
	for (;;) {
		size_t done = 0;

		while (hole_take(&p->frames, 1, &hole) == 0)
			range_doze(p);
		pg->same = false;
		pg->frame = hole; /* before: adopt.h */
		stores_in_order();
		r = p->pmap->ops->remove(p->pmap, pg->shard, pg->va, hole, 1, &done);
		if (r == 0)
			break;
		pg->frame = FRAME_NONE;
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
		range_doze(p);
	}
	pthread_mutex_lock(&p->pages.lock);
	page_enqueue_locked(&p->pages, pg, Q_INACTIVE, PAGE_STAGED);
	pthread_mutex_unlock(&p->pages.lock);
	return true;
}

/*
 * The same of a region that lives on.  A short while, for I/O to end; not longer, since faults wait meanwhile, and the
 * I/O may wait for one.  => 0: STAGED.  -ENOENT: the program had discarded it, free it.  Else it is MAPPED as before.
 */
static int
keep_live(struct pager *p, struct page *pg)
{
	frame_t hole;
	int r;

	pthread_mutex_lock(&p->pages.lock);
	page_dequeue_locked(&p->pages, pg);
	pthread_mutex_unlock(&p->pages.lock);
	for (unsigned tries = 0;; tries++) {
		size_t done = 0;

		r = -EAGAIN;
		if (hole_take(&p->frames, 1, &hole) > 0) {
			pg->same = false;
			pg->frame = hole; /* before: adopt.h */
			stores_in_order();
			r = p->pmap->ops->remove(p->pmap, pg->shard, pg->va, hole, 1, &done);
			if (r < 0) {
				pg->frame = FRAME_NONE;
				hole_give(&p->frames, hole, 1);
			}
		}
		if (r == 0 || r == -ENOENT || tries == LIVE_TRIES)
			break;
		range_doze(p);
	}
	if (r == -ENOENT)
		return r;
	if (r == 0)
		pg->va = 0;
	pthread_mutex_lock(&p->pages.lock);
	if (r == 0)
		page_enqueue_locked(&p->pages, pg, Q_INACTIVE, PAGE_STAGED);
	else
		page_enqueue_locked(&p->pages, pg, Q_ACTIVE, PAGE_MAPPED);
	pthread_mutex_unlock(&p->pages.lock);
	return r;
}

/*
 * Take pages that lie side by side out in one call.  => busy and MAPPED.  Returns how many from the front are STAGED;
 * the next one is a case for keep_page().
 */
static unsigned
keep_run(struct pager *p, struct page *const pg[], unsigned n)
{
	frame_t hole;
	size_t nhole, done = 0;

	nhole = p->taking ? 0 : hole_take(&p->frames, n, &hole);
	if (nhole == 0)
		return 0;
	for (unsigned i = 0; i < nhole; i++) {
		pg[i]->same = false;
		pg[i]->frame = hole + i; /* before: adopt.h */
	}
	stores_in_order();
	p->pmap->ops->remove(p->pmap, pg[0]->shard, pg[0]->va, hole, nhole, &done);
	for (unsigned i = (unsigned)done; i < nhole; i++)
		pg[i]->frame = FRAME_NONE;
	hole_give(&p->frames, hole + (frame_t)done, nhole - done);
	pthread_mutex_lock(&p->pages.lock);
	for (unsigned i = 0; i < done; i++) {
		page_dequeue_locked(&p->pages, pg[i]);
		pg[i]->va = 0;
		page_enqueue_locked(&p->pages, pg[i], Q_INACTIVE, PAGE_STAGED);
	}
	pthread_mutex_unlock(&p->pages.lock);
	return (unsigned)done;
}

/* The mapped pages of a batch that lie side by side, from the `i`th on. */
static unsigned
run_of(struct pager *p, const struct batch *b, unsigned i, struct page *pg[])
{
	unsigned n = 0;

	for (; i + n < b->n; n++) {
		pg[n] = mapped_page(p, b->anon[i + n]);
		if (pg[n] == NULL || pg[n]->shard != pg[0]->shard ||
		    pg[n]->va != pg[0]->va + (uintptr_t)n * PAGE_SIZE)
			break;
	}
	return n;
}

/* How many of a run come before the first one that is wired. */
static unsigned
before_wired(struct pager *p, struct page *const pg[], unsigned run)
{
	unsigned n = 0;

	/* It changes with map.change held only. */
	if (atomic_load_explicit(&p->nwired, memory_order_relaxed) == 0)
		return run;
	pthread_mutex_lock(&p->pages.lock);
	while (n < run && page_queue_locked(pg[n]) != Q_WIRED)
		n++;
	pthread_mutex_unlock(&p->pages.lock);
	return n;
}

/* A busy page that nobody had to take out: the program had discarded it, or, if we are `losing`, it was taken from us. */
static void
keep_nothing(struct pager *p, const struct batch *b, unsigned i, struct page *pg)
{
	struct anon *an = b->anon[i];

	if (pg->slot != SLOT_NONE)
		swap_free(&p->swap, pg->slot, 1);
	page_free(&p->pages, pg);
	budget_uncharge(&p->budget, PAGE_SIZE);
	p->taken++;
	if (p->losing) {
		if (b->leaf->noreserve)
			resv_give(&p->resv_swap, 1);
		anon_set(an, ANON_LOST, UINT32_MAX);
		atomic_fetch_add(&p->nlost, 1);
		page_unbusy(p, an, 0, 0);
		return;
	}
	leaf_forget(p, b->leaf, b->at[i]);
	anon_gone(p, b->anon[i], 0, 0);
}

/*
 * Take the mapped pages of a batch out of their region.  They stay busy; those that the program had discarded are gone, and
 * NULL in b->anon[].
 */
static void
keep_batch(struct pager *p, struct batch *b)
{
	for (unsigned i = 0; i < b->n;) {
		struct page *pg[CLUSTER_MAX];
		const unsigned run = run_of(p, b, i, pg), kept = run > 1 ? keep_run(p, pg, run) : 0;

		i += kept;
		if (kept > 0)
			continue;
		if (run > 0 && !keep_page(p, pg[0])) {
			keep_nothing(p, b, i, pg[0]);
			b->anon[i] = NULL;
		}
		i++;
	}
}

/* Whoever moves the page next wakes who waits for it at its new address.  => busy, and in no region */
static void
readdress(struct pager *p, const struct anon *an, uintptr_t va, unsigned shard)
{
	struct page *pg;

	if (!anon_in_core(an))
		return;
	pg = page_at(&p->pages, an->loc);
	pg->va = va;
	pg->shard = (uint8_t)shard;
}

/* Where the `i`th page of a batch will be, if page `first` of the object will be at `to`. */
static uintptr_t
new_va(const struct batch *b, unsigned i, uint64_t first, uintptr_t to)
{
	return to + ((b->leaf->base + b->at[i] - first) << PAGE_SHIFT);
}

void
range_readdress(struct pager *p, struct object *o, uint64_t first, uint64_t n, uintptr_t to,
		unsigned shard)
{
	uint64_t at = first;
	struct batch b;

	while (range_batch(p, o, &at, first + n, READS_CANCEL, &b)) {
		for (unsigned i = 0; i < b.n; i++) {
			readdress(p, b.anon[i], new_va(&b, i, first, to), shard);
			page_unbusy(p, b.anon[i], shard, new_va(&b, i, first, to));
		}
	}
}

int
range_keep(struct pager *p, struct object *o, uint64_t first, uint64_t n, bool live, uintptr_t to,
	   unsigned shard)
{
	const uint64_t end = first + n;
	uint64_t at = first;
	struct batch b;
	int failed = 0;

	while (range_batch(p, o, &at, end, READS_CANCEL, &b)) {
		for (unsigned i = 0; i < b.n;) {
			struct page *pg[CLUSTER_MAX];
			const unsigned all = run_of(p, &b, i, pg),
				       run = live ? before_wired(p, pg, all) : all,
				       kept = run > 1 ? keep_run(p, pg, run) : 0;
			/* One that stays mapped may have stopped a writer, who is to be woken. */
			const unsigned old_shard = all > 0 ? pg[0]->shard : 0;
			const uintptr_t old_va = all > 0 ? pg[0]->va : 0;
			int r = 0;

			/* Whoever waits there is woken by the unmap that follows, or is parked; of what stays where it is (account_reduce()) nobody else wakes him. */
			for (unsigned k = 0; k < kept; k++, i++) {
				const uintptr_t at_va = to != 0 ? new_va(&b, i, first, to) : 0;

				if (to != 0)
					readdress(p, b.anon[i], at_va, shard);
				if (anon_unbusy(&p->waitqs, b.anon[i]) && live && to != 0)
					p->pmap->ops->wake(p->pmap, shard, at_va, 1);
			}
			if (kept > 0)
				continue;
			/* Once one has failed it will all be done again: no need to wait for others. */
			if (run > 0 && live && failed == 0)
				r = keep_live(p, pg[0]);
			else if (run > 0 && !live)
				r = keep_page(p, pg[0]) ? 0 : -ENOENT;
			if (r == -ENOENT) {
				keep_nothing(p, &b, i, pg[0]);
			} else {
				const uintptr_t at_va = to != 0 ? new_va(&b, i, first, to) : 0;

				if (to != 0)
					readdress(p, b.anon[i], at_va, shard);
				if (live && to != 0) /* also of what was not mapped */
					page_unbusy(p, b.anon[i], shard, at_va);
				else
					page_unbusy(p, b.anon[i], old_shard, old_va);
			}
			if (r < 0 && r != -ENOENT)
				failed = r;
			i++;
		}
	}
	return failed;
}

int
range_give_back(struct pager *p, struct object *o, uint64_t first, uint64_t n, uintptr_t va,
		unsigned shard, bool force)
{
	const uint64_t end = first + n;
	uint64_t at = first;
	struct batch b;
	size_t leaves;
	int error = 0;

	while (range_batch(p, o, &at, end, READS_CANCEL, &b)) {
		const uintptr_t base = va + ((b.leaf->base - first) << PAGE_SHIFT);

		keep_batch(p, &b);
		for (unsigned i = 0; i < b.n; i++) {
			const uintptr_t page = base + (uintptr_t)b.at[i] * PAGE_SIZE;
			int r;

			if (b.anon[i] == NULL)
				continue;
			r = source_write(p, o, b.anon[i], b.leaf->base + b.at[i]);
			if (error == 0)
				error = r;
			if (r < 0 && !force) {
				page_unbusy(p, b.anon[i], shard, page);
				continue;
			}
			/* The mark of a lost one is still in the page table. */
			if (!anon_in_core(b.anon[i]))
				range_discard(p, shard, page, 1);
			anon_forget(b.anon[i]);
			release_content(p, b.anon[i]);
			leaf_forget(p, b.leaf, b.at[i]);
			anon_gone(p, b.anon[i], shard, page);
		}
	}
	leaves = object_prune(o, first, end);
	if (o->noreserve)
		resv_give(&p->resv_meta, leaves * META_PER_LEAF);
	services_kick(p, NULL);
	return error;
}

/* Let go of a busy page if it is what was read of its source.  False: it stays as it is. */
static bool
refresh(struct pager *p, const struct batch *b, unsigned i)
{
	struct anon *an = b->anon[i];
	char copy[PAGE_SIZE];
	struct page *pg;
	uintptr_t va;
	unsigned shard;
	int r = 0;

	if (atomic_load_explicit(&an->kind, memory_order_relaxed) != ANON_COPY)
		return false;
	pg = page_at(&p->pages, an->loc);
	va = pg->va;
	shard = pg->shard;
	if (pg->state == PAGE_MAPPED) {
		/* What has changed need not leave the page table. */
		r = p->pmap->ops->read(p->pmap, va, copy);
		if (r == 0 && hash_page(p->hash_seed, copy) != an->hash)
			return false;
		r = keep_live(p, pg);
	}
	if (r == -ENOENT) {
		keep_nothing(p, b, i, pg);
		return true;
	}
	if (r < 0 || hash_page(p->hash_seed, pmap_frame(p->pmap, pg->frame)) != an->hash) {
		page_unbusy(p, an, shard, va);
		return true;
	}
	anon_forget(an);
	release_content(p, an);
	leaf_forget(p, b->leaf, b->at[i]);
	anon_gone(p, an, shard, va);
	return true;
}

void
range_refresh(struct pager *p, struct object *o, uint64_t first, uint64_t n)
{
	for (; o != NULL && o->source == NULL; first += o->backing_offset, o = o->backing) {
		uint64_t at = first;
		struct batch b;

		while (range_batch(p, o, &at, first + n, READS_CANCEL, &b)) {
			for (unsigned i = 0; i < b.n; i++) {
				if (!refresh(p, &b, i))
					page_unbusy(p, b.anon[i], 0, 0);
			}
		}
	}
	services_kick(p, NULL);
}

void
range_cool(struct pager *p, struct object *o, uint64_t first, uint64_t n, uintptr_t va,
	   unsigned shard)
{
	const uint64_t end = first + n;
	uint64_t at = first;
	struct batch b;

	while (range_batch(p, o, &at, end, READS_PASS, &b)) {
		/* From the back, so that the lowest address ends up first in line. */
		for (unsigned i = b.n; i-- > 0;) {
			struct page *pg = mapped_page(p, b.anon[i]);
			const uint64_t page = b.leaf->base + b.at[i] - first;

			if (pg != NULL) {
				pthread_mutex_lock(&p->pages.lock);
				if (page_queue_locked(pg) != Q_WIRED) {
					page_dequeue_locked(&p->pages, pg);
					policy_cool(&p->pages.policy, page_no(&p->pages, pg));
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

	while (range_batch(p, o, &at, end, READS_PASS, &b)) {
		for (unsigned i = 0; i < b.n; i++) {
			struct page *pg = mapped_page(p, b.anon[i]);
			const uint64_t page = b.leaf->base + b.at[i] - first;

			if (pg != NULL) {
				pthread_mutex_lock(&p->pages.lock);
				if (page_queue_locked(pg) == Q_WIRED) {
					page_dequeue_locked(&p->pages, pg);
					page_enqueue_locked(&p->pages, pg, Q_ACTIVE, PAGE_MAPPED);
				}
				pthread_mutex_unlock(&p->pages.lock);
			}
			page_unbusy(p, b.anon[i], shard, va + (page << PAGE_SHIFT));
		}
	}
}

/* Of a page that is in no frame; else 0. */
static uint8_t
residency_out(const struct anon *an)
{
	switch (atomic_load_explicit(&an->kind, memory_order_relaxed)) {
	case ANON_SWAP:
		return UP_PAGE_SWAPPED;
	case ANON_ZIP:
		return UP_PAGE_COMPRESSED;
	case ANON_LOST:
		return UP_PAGE_LOST;
	default:
		return 0;
	}
}

/* => busy */
static unsigned char
residency(struct pager *p, const struct anon *an)
{
	const struct page *pg;
	unsigned char bits;

	bits = residency_out(an);
	if (bits != 0)
		return bits;
	pg = page_at(&p->pages, an->loc);
	pthread_mutex_lock(&p->pages.lock);
	bits = pg->state == PAGE_MAPPED ? UP_PAGE_MAPPED : UP_PAGE_STAGED;
	if (pg->state != PAGE_LAUNDRY && pg->slot != SLOT_NONE)
		bits |= UP_PAGE_SWAPPED;
	if (page_queue_locked(pg) == Q_WIRED)
		bits |= UP_PAGE_WIRED;
	pthread_mutex_unlock(&p->pages.lock);
	return bits;
}

/* What shows through from a backing object where a page has nothing of its own. */
static void
residency_beneath(struct pager *p, struct object *o, uint64_t index, unsigned char *vec)
{
	struct beneath b;
	enum beneath_what what;

	while ((what = chain_find(o, index, false, &b)) == BENEATH_BUSY) {
		struct leaf *leaf = object_leaf(b.object, b.index, NULL);
		bool reading = false;

		if (leaf != NULL) {
			const unsigned at = (unsigned)(b.index - leaf->base);

			reading = leaf_anon(leaf, at) != NULL && source_reading(p, leaf, at);
			pthread_mutex_unlock(&leaf->lock);
		}
		if (reading)
			return;
		range_doze(p);
	}
	if (what == BENEATH_PAGE) {
		*vec = residency(p, b.anon);
		/* Mapped, even wired, it is somewhere else: here it is a soft fault away. */
		if (*vec & UP_PAGE_MAPPED)
			*vec = (unsigned char)((*vec & ~(UP_PAGE_MAPPED | UP_PAGE_WIRED)) |
					       UP_PAGE_STAGED);
		page_unbusy(p, b.anon, 0, 0);
	}
}

void
range_residency(struct pager *p, struct object *o, uint64_t first, uint64_t n, uintptr_t va,
		unsigned shard, unsigned char *vec)
{
	const uint64_t end = first + n;
	uint64_t at = first;
	struct batch b;

	memset(vec, 0, n);
	for (uint64_t i = 0; i < n && o->backing != NULL; i++) {
		if (!object_has(o, first + i))
			residency_beneath(p, o, first + i, &vec[i]);
	}
	while (range_batch(p, o, &at, end, READS_PASS, &b)) {
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

/*
 * Where a page is, without waiting.  => its leaf is locked, so that nobody who comes by it can meet it busy, and want it
 */
static uint8_t
peek(struct pager *p, struct anon *an)
{
	const uint8_t out = residency_out(an);
	uint8_t bits = UP_PAGE_STAGED;

	if (out != 0 || !anon_trybusy(an))
		return out != 0 ? out : bits;
	if (anon_in_core(an) && page_at(&p->pages, an->loc)->state == PAGE_MAPPED)
		bits = UP_PAGE_MAPPED;
	anon_unbusy(&p->waitqs, an);
	return bits;
}

static void
count_page(struct range_look *l, uint8_t where, bool beneath, unsigned n)
{
	l->mapped += where == UP_PAGE_MAPPED && !beneath ? n : 0;
	/* Mapped it is somewhere else then. */
	l->staged += where == UP_PAGE_STAGED || (where == UP_PAGE_MAPPED && beneath) ? n : 0;
	l->swapped += where == UP_PAGE_SWAPPED ? n : 0;
	l->compressed += where == UP_PAGE_COMPRESSED ? n : 0;
	l->lost += where == UP_PAGE_LOST ? n : 0;
}

/* Something in front of it hides page `index` of the entry's object from those `depth` below. */
static bool
is_hidden(struct object *o, uint64_t index, unsigned depth)
{
	for (; depth > 0; depth--) {
		if (object_has(o, index))
			return true;
		index += o->backing_offset;
		o = o->backing;
	}
	return false;
}

bool
range_count(struct pager *p, const struct map_entry *e, unsigned *depth, uint64_t *at,
	    unsigned step, struct range_look look[], unsigned nlook)
{
	const uint64_t n = (e->end - e->start) >> PAGE_SHIFT;
	uint8_t where[LEAF_SLOTS] = { 0 };
	struct object *o = e->object;
	uint64_t first = e->offset, base, end;
	struct leaf *leaf;

	for (unsigned i = 0; i < *depth && o != NULL; i++) {
		first += o->backing_offset;
		o = o->backing;
	}
	if (o == NULL || *depth == COUNT_DEPTH)
		return false;
	leaf = object_next_leaf(o, first + *at);
	if (leaf == NULL || leaf->base >= first + n) {
		if (leaf != NULL)
			pthread_mutex_unlock(&leaf->lock);
		++*depth;
		*at = 0;
		return true;
	}
	base = leaf->base;
	*at = MAX(base, first + *at) - first;
	end = MIN(base + LEAF_SLOTS, first + n) - first;
	for (uint64_t i = round_up(*at, step); i < end; i += step) {
		struct anon *an = leaf_anon(leaf, (unsigned)(first + i - base));

		if (an != NULL)
			where[first + i - base] = peek(p, an);
	}
	pthread_mutex_unlock(&leaf->lock);
	for (uint64_t i = round_up(*at, step); i < end; i += step) {
		const uint8_t bits = where[first + i - base];

		if (bits != 0 && !is_hidden(e->object, e->offset + i, *depth))
			count_page(&look[i * nlook / n], bits, *depth > 0, step);
	}
	*at = end;
	return true;
}

void
range_willneed(struct pager *p, unsigned shard, uintptr_t va, uintptr_t end)
{
	/* Who serves the faults of other processes takes turns: any of them will do. */
	struct service *s = p->service[shard % p->nservices];

	/* One too many is advice not taken. */
	todo_put(s, &s->willneed, shard, va, end);
}
