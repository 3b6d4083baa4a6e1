/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pagein.c: swap -> frame -> region.
 *
 * A page-in is for a run of neighbours whose slots follow each other: one read.  Pages that left
 * together have such slots, so a stream reads back in the clusters in which it was written.  From
 * pagein_start() to pagein_done() the anons stay busy and keep their slots: whatever goes wrong, the
 * content is still where it was.
 *
 * Nothing that comes back is trusted: each page must hash to what was kept when it left.
 */
#include <errno.h>

#include "base/hash.h"
#include "base/probe.h"
#include "pager/pager.h"
#include "who.h"

/* The address of the page `i` behind the one at `va`, if that has one. */
static uintptr_t
va_behind(uintptr_t va, int i)
{
	return va != 0 ? va + (uintptr_t)((intptr_t)i * (intptr_t)PAGE_SIZE) : 0;
}

/* Release anons made busy for a page-in that does not take place. */
static void
let_go(struct pager *p, struct anon *const an[], unsigned from, unsigned n, unsigned shard,
       uintptr_t va, int step)
{
	for (unsigned i = from; i < n; i++)
		page_unbusy(p, an[i], shard, va_behind(va, (int)i * step));
}

/*
 * Make the neighbours behind `at` busy while they are out in the same way: in slots that follow on, or in the compressed pool.  Returns
 * how many in all.  step: 1, or -1 for those in front of it. => leaf locked
 */
static unsigned
collect(struct pager *p, struct leaf *leaf, unsigned at, unsigned want, unsigned shard,
	uintptr_t va, int step, struct anon *an[])
{
	const uint8_t kind = atomic_load_explicit(&an[0]->kind, memory_order_relaxed);
	unsigned n = 1;

	for (; n < want; n++) {
		struct anon *next = leaf_anon(leaf, (unsigned)((int)at + (int)n * step));

		if (next == NULL ||
		    atomic_load_explicit(&next->kind, memory_order_relaxed) != kind ||
		    !anon_trybusy(next))
			break;
		if (atomic_load_explicit(&next->kind, memory_order_relaxed) != kind ||
		    (kind == ANON_SWAP && next->loc != an[0]->loc + n)) {
			page_unbusy(p, next, shard, va_behind(va, (int)n * step));
			break;
		}
		an[n] = next;
	}
	return n;
}

int
pagein_start(struct service *s, struct leaf *leaf, unsigned at, uintptr_t va, unsigned shard,
	     unsigned want, enum pagein_for why, uint64_t t0, unsigned *got)
{
	struct pager *p = s->p;
	struct anon *an[CLUSTER_MAX] = { NULL };
	frame_t f[CLUSTER_MAX];
	struct account *const account = leaf->object->account;
	struct request *req;
	unsigned n, nf, npages = 0;
	slot_t slot;

	*got = 0;
	want = account_share(account, want);
	an[0] = leaf_anon(leaf, at);
	n = collect(p, leaf, at, MIN(want, CLUSTER_MAX), shard, va, 1, an);
	pthread_mutex_unlock(&leaf->lock);

	req = request_get(s, REQ_PAGEIN);
	if (req == NULL)
		goto none;
	nf = frames_obtain(p, n, f);
	let_go(p, an, nf, n, shard, va, 1);
	n = nf;
	if (n == 0)
		goto put;

	slot = an[0]->loc;
	for (unsigned i = 0; i < n; i++)
		tier_missed(p, an[i], n == 1);
	for (; npages < n; npages++) {
		struct page *pg = page_alloc(&p->pages, an[npages], leaf, at + npages, false);

		/*
		 * They have taken the room that it needs, and would the next time: it is worth more than the last of them.  With the pages
		 * before the frames the table would grow for those that get none, too, and never be smaller again.
		 */
		if (pg == NULL && npages == 0 && n > 1) {
			frames_drop(p, f[--n], 1);
			let_go(p, an, n, n + 1, shard, va, 1);
			pg = page_alloc(&p->pages, an[0], leaf, at, false);
		}
		if (pg == NULL)
			break;
		pg->va = va_behind(va, (int)npages);
		pg->shard = (uint8_t)shard;
		pg->frame = f[npages];
		pg->slot = slot + npages;
		req->page[npages] = pg;
	}
	if (npages < n) {
		pager_starved(p, METADATA_STEP);
		frames_release(p, f + npages, n - npages);
		let_go(p, an, npages, n, shard, va, 1);
		n = npages;
		if (n == 0)
			goto put;
	}

	req->n = n;
	request_count(req, account);
	req->source = NULL;
	req->demanded = why == FOR_FAULT || why == FOR_LOAD;
	req->guard = why == FOR_LOAD;
	req->early = why == FOR_STREAM;
	req->retried = false;
	req->t0 = t0;
	req->space = s->space;
	req->addr = s->addr;
	request_fill(p, req, SWAP_READ, slot);
	req->io.urgent = req->demanded;
	count(s, C_READS, 1);
	count(s, C_READ_BYTES, n * PAGE_SIZE);
	PROBE3(swap__read, va, slot, n);
	trace_add2(&s->trace, t0, TRACE_SWAP_READ, request_addr(req, va), n,
		   req->space > PMAP_POOL ? (uint16_t)req->space : 0);
	request_submit(s, req);
	*got = n;
	return 0;

put:
	request_put(s, req);
	n = 0;
none:
	let_go(p, an, 0, n, shard, va, 1);
	return -ENOMEM;
}

/* The content of a page is gone for good, and whoever waits for it, whose request that is, is told.  Its slot is not used again. */
static void
lost(struct service *s, const struct request *req, struct page *pg, bool waited_for)
{
	struct pager *p = s->p;
	struct anon *an = pg->anon;
	const unsigned shard = pg->shard;
	const uintptr_t va = pg->va;
	bool again = false;

	swap_retire(&p->swap, pg->slot);
	resv_shrink(&p->resv_swap, 1);
	if (pg->leaf->noreserve)
		resv_give(&p->resv_swap, 1);
	count(s, C_BAD_SLOTS, 1);
	anon_set(an, ANON_LOST, UINT32_MAX);
	atomic_fetch_sub(&p->nswapped, 1);
	atomic_fetch_add(&p->nlost, 1);
	frame_give(&p->frames, pg->frame, 1);
	page_free(&p->pages, pg);
	if (waited_for && va != 0)
		again = fault_sigbus(s, req->space, request_addr(req, va), shard, va) < 0;
	page_unbusy(p, an, shard, va);
	if (again)
		fault_again(s, shard, va, now_ns());
}

/* Not lost, but not now: the anon stays in swap. */
static void
give_up(struct pager *p, struct page *pg)
{
	struct anon *an = pg->anon;
	const unsigned shard = pg->shard;
	const uintptr_t va = pg->va;

	frame_give(&p->frames, pg->frame, 1);
	page_free(&p->pages, pg);
	page_unbusy(p, an, shard, va);
}

static WHO_TELLS void
tell_damaged(struct service *s, unsigned space, const struct page *pg)
{
	struct pager *p = s->p;
	struct who w;

	count(s, C_CHECKSUM, 1);
	trace_add(&s->trace, now_ns(), TRACE_CHECKSUM, pg->va, pg->slot);
	log_line_about(&p->log, &w.about, UP_LOG_ERROR,
		       "page at %s, swap slot %u: checksum mismatch, content lost",
		       who_page(p, space, pg, &w), pg->slot);
}

/* True if the frame holds what was written. */
static bool
verify(struct service *s, unsigned space, const struct page *pg)
{
	struct pager *p = s->p;

	if (hash_page(p->hash_seed, pmap_frame(p->pmap, pg->frame)) == pg->anon->hash)
		return true;
	tell_damaged(s, space, pg);
	return false;
}

bool
pagein_stays(struct service *s, enum pagein_for why, struct page *const pg[], unsigned n)
{
	unsigned i = 0;

	if (why != FOR_STREAM)
		return false;
	while (i < n &&
	       (atomic_load_explicit(&pg[i]->anon->bits, memory_order_relaxed) & ANON_WANTED) == 0)
		i++;
	if (i < n) {
		/* The stream is faster than the disk. */
		count(s, C_AHEAD_HITS, n);
		leaf_credit(pg[0]->leaf, (int)n);
	}
	return i == n;
}

/* One that comes alone will leave alone. */
enum lend { LEND_NOT, LEND, LEND_GUARDED };

static enum lend
how_to_lend(const struct request *req)
{
	if (req->n > 1)
		return LEND_NOT;
	return req->guard ? LEND_GUARDED : LEND;
}

/* Verified pages are in core from here on. */
static void
in_core(struct pager *p, struct page *const pg[], unsigned n, enum pagein_for why, bool early)
{
	for (unsigned i = 0; i < n; i++) {
		struct anon *an = pg[i]->anon;

		anon_set(an, ANON_CORE, page_no(&p->pages, pg[i]));
		atomic_fetch_sub(&p->nswapped, 1);
	}
	pthread_mutex_lock(&p->pages.lock);
	for (unsigned i = 0; i < n; i++) {
		policy_refault(&p->pages.policy, page_no(&p->pages, pg[i]), page_key(pg[i]),
			       why == FOR_FAULT);
		if (early)
			page_enqueue_locked(&p->pages, pg[i], Q_AHEAD, PAGE_STAGED);
	}
	pthread_mutex_unlock(&p->pages.lock);
}

/*
 * Pages in core, the first `done` of which are mapped: all of them are, or staged.  Returns the verdict on pg[0].
 * A page that the kernel does not take now stays in core, staged and clean: its next fault is soft; and so do
 * those of a backing object, which have no address, and those that a stream has not come to yet.
 */
static int
settle(struct pager *p, struct page *const pg[], unsigned n, unsigned done, bool early)
{
	int r = 0;

	if (done == 0 && !early && pg[0]->va != 0)
		r = enter_pages(p, pg, n, &done);
	for (unsigned i = 0; i < n; i++) {
		struct anon *an = pg[i]->anon;
		const unsigned shard = pg[i]->shard;
		const uintptr_t va = pg[i]->va;

		if (!early && i >= done)
			page_stage(p, pg[i]);
		page_unbusy(p, an, shard, va);
	}
	return done > 0 ? 0 : r; /* also if none has an address */
}

/* Install verified pages of one request: pg[0 .. n), busy, in TRANSIT.  Returns the verdict on pg[0]. */
static int
install(struct service *s, struct page *const pg[], unsigned n, enum pagein_for why, enum lend lend)
{
	struct pager *p = s->p;
	const bool early = pagein_stays(s, why, pg, n);

	in_core(p, pg, n, why, early);
	return settle(p, pg, n,
		      lend != LEND_NOT && lend_page(p, pg[0], lend == LEND_GUARDED) ? 1 : 0, early);
}

/* --- from the compressed pool --- */

/* What was put into the pool does not come back.  => busy, ZIP, map locked */
static WHO_TELLS void
lost_zip(struct service *s, struct anon *an, struct leaf *leaf, unsigned at, uintptr_t va,
	 unsigned shard)
{
	const zref_t ref = an->loc;
	struct pager *p = s->p;
	struct who w;

	count(s, C_CHECKSUM, 1);
	trace_add(&s->trace, now_ns(), TRACE_CHECKSUM, va, an->loc);
	log_line_about(&p->log, &w.about, UP_LOG_ERROR,
		       "page at %s: damaged in the compressed pool, content lost",
		       who_slot(p, s->space, leaf, at, va, shard, &w));
	anon_set(an, ANON_LOST, UINT32_MAX);
	tier_free(p, an, ref);
	atomic_fetch_add(&p->nlost, 1);
	if (leaf->noreserve)
		resv_give(&p->resv_swap, 1);
}

/* The page of a busy anon, unpacked into a frame; its entry is to go once it is in core.  NULL: *r, -ENOMEM or -EIO, and nothing has happened. */
static struct page *
unpack(struct service *s, struct anon *an, struct leaf *leaf, unsigned at, frame_t f, bool once,
       int *r)
{
	struct pager *p = s->p;
	void *content = pmap_frame(p->pmap, f);
	struct page *pg = page_alloc(&p->pages, an, leaf, at, once);

	*r = -ENOMEM;
	if (pg == NULL) {
		pager_starved(p, METADATA_STEP);
		return NULL;
	}
	if (zpool_get(&p->tier.pool, s->codec, an->loc, content, ZPOOL_HIT) < 0 ||
	    hash_page(p->hash_seed, content) != an->hash) {
		page_free(&p->pages, pg);
		*r = -EIO;
		return NULL;
	}
	atomic_fetch_add(&p->nswapped, 1); /* in_core() takes it for one from there */
	pg->frame = f;
	*r = 0;
	return pg;
}

/* Frames that follow each other, up to `want`. */
static unsigned
frames_beside(struct pager *p, unsigned want, frame_t *first)
{
	const size_t n = frame_take(&p->frames, want, first);

	return n > 0 ? (unsigned)n : frames_obtain(p, 1, first);
}

/*
 * Unpacked pages run[0 .. n), by address, in frames that follow each other; `alone`: it is one, and somebody waits for it.  ref[0 .. n): their entries.  How
 * many were lent, from the front: their frames are the caller's.  *r: the verdict.
 */
static unsigned
unpacked(struct pager *p, struct page *const run[], const zref_t ref[], unsigned n, bool alone,
	 int *r)
{
	unsigned lent;

	in_core(p, run, n, alone ? FOR_FAULT : FOR_CALL, false);
	for (unsigned i = 0; i < n; i++)
		tier_free(p, run[i]->anon, ref[i]);
	lent = lend_run(p, run, n, false);
	*r = settle(p, run, n, lent, false);
	return lent;
}

/*
 * A few frames do for all of a run, as long as they are lent each time: they stay in the cache, and to enter frames that lie anywhere would be an interrupt for
 * each to whoever else runs.
 */
int
pagein_zip(struct service *s, struct leaf *leaf, unsigned at, uintptr_t va, unsigned shard,
	   unsigned want, bool back, enum pagein_for why, bool once, unsigned *got)
{
	struct pager *p = s->p;
	struct anon *an[ZIP_RUN_MAX] = { NULL };
	const int step = back ? -1 : 1;
	frame_t f = FRAME_NONE;
	unsigned n, nf = 0, i = 0;
	int r = 0, first = 0;

	assert(why != FOR_STREAM);
	an[0] = leaf_anon(leaf, at);
	zpool_soon(&p->tier.pool, an[0]->loc);
	n = collect(p, leaf, at, MIN(want, ZIP_RUN_MAX), shard, va, step, an);
	pthread_mutex_unlock(&leaf->lock);
	while (i < n && r == 0) {
		struct page *pg[ZIP_BATCH_MAX];
		zref_t ref[ZIP_BATCH_MAX];
		unsigned k = 0, lent, from;
		int verdict;

		if (nf == 0)
			nf = frames_beside(p, MIN(n - i, ZIP_BATCH_MAX), &f);
		if (nf == 0)
			r = -ENOMEM;
		/* From the page at fault on, so from the end if that is the last. */
		for (; k < MIN(nf, n - i) && r == 0; k++) {
			const int off = (int)(i + k) * step;
			const unsigned to = back ? nf - 1 - k : k;
			const unsigned slot = back ? ZIP_BATCH_MAX - 1 - k : k;
			struct page *each;

			ref[slot] = an[i + k]->loc;
			each = unpack(s, an[i + k], leaf, (unsigned)((int)at + off), f + to, once,
				      &r);

			if (each == NULL)
				break;
			each->va = va_behind(va, off);
			each->shard = (uint8_t)shard;
			pg[slot] = each;
		}
		if (k == 0)
			break;
		from = back ? ZIP_BATCH_MAX - k : 0;
		lent = unpacked(p, pg + from, ref + from, k, n == 1 && why == FOR_FAULT, &verdict);
		if (i == 0)
			first = verdict;
		i += k;
		if (lent == k)
			continue;
		/* Those of the others are theirs. */
		for (unsigned j = 0; j < nf; j++) {
			const unsigned begin = back ? nf - k : 0;

			if (j < begin + lent || j >= begin + k)
				frame_give(&p->frames, f + j, 1);
		}
		nf = 0;
	}
	if (nf > 0)
		frame_give(&p->frames, f, nf);
	if (i == 0 && r == -EIO) {
		lost_zip(s, an[0], leaf, at, va, shard);
		if (why == FOR_FAULT && va != 0 &&
		    fault_sigbus(s, s->space, s->space > PMAP_POOL ? s->addr : va, shard, va) < 0)
			r = -EAGAIN;
	}
	let_go(p, an, i, n, shard, va, step);
	*got = i;
	if (i == 0)
		return r;
	count(s, C_UNZIPPED, i);
	if (n == 1)
		tier_earned(p);
	else
		tier_serves_run(p);
	return first;
}

static WHO_TELLS void
read_failed(struct service *s, struct request *req)
{
	struct pager *p = s->p;
	struct page *first = req->page[0];
	struct who w;

	count(s, C_READ_ERRORS, 1);
	trace_add(&s->trace, now_ns(), TRACE_SWAP_ERROR, first->va, (uint32_t)-req->io.result);
	/* Of a cluster only one page may be bad: those that nobody waits for are left for later. */
	for (unsigned i = 1; i < req->n; i++)
		give_up(p, req->page[i]);
	/* Nobody needs it yet: whoever does will find out for himself. */
	if (!req->demanded) {
		give_up(p, first);
		request_put(s, req);
		return;
	}
	if (!req->retried) {
		req->retried = true;
		req->n = 1;
		request_fill(p, req, SWAP_READ, first->slot);
		count(s, C_READS, 1);
		PROBE2(swap__retry, first->va, first->slot);
		request_submit(s, req);
		return;
	}
	log_line_about(&p->log, &w.about, UP_LOG_ERROR,
		       "page at %s, swap slot %u: read error %d, content lost",
		       who_page(p, req->space, first, &w), first->slot, -req->io.result);
	lost(s, req, first, true);
	request_put(s, req);
}

void
pagein_done(struct service *s, struct request *req)
{
	struct page *good[CLUSTER_MAX];
	const uintptr_t va0 = req->page[0]->va;
	const unsigned shard0 = req->page[0]->shard;
	unsigned ngood = 0;

	if (req->io.result < 0) {
		read_failed(s, req);
		return;
	}
	for (unsigned i = 0; i < req->n; i++) {
		struct page *pg = req->page[i];

		if (verify(s, req->space, pg))
			good[ngood++] = pg;
		else
			lost(s, req, pg, i == 0 && req->demanded);
		/* Somebody waits for the first: it goes in before the others are even verified. */
		if (i == 0 && ngood == 1 && req->demanded) {
			const int r = install(s, good, 1, FOR_FAULT, how_to_lend(req));

			/* Who waits for one without an address is parked, and looks again in this turn. */
			if (r < 0)
				fault_again(s, shard0, va0, req->t0);
			else if (va0 != 0)
				fault_answered(s, req->space, UP_FAULT_MAJOR,
					       request_addr(req, va0), req->t0);
			ngood = 0;
		}
	}
	if (ngood > 0)
		install(s, good, ngood, req->early ? FOR_STREAM : FOR_CALL, LEND_NOT);
	count(s, C_READAHEAD, req->n - (req->demanded ? 1 : 0));
	request_put(s, req);
}

/* True if the entry shows what a source has, and not what the program has made of it.  => map locked */
static bool
of_source(const struct map_entry *e, uint64_t index)
{
	const struct object *o = e->object;
	const bool sourced =
		o->source != NULL || (o->backing != NULL && o->backing->source != NULL);

	return sourced && !object_has(e->object, index);
}

/* A stream unpacks what is compressed as it comes by: that is soon done, and who does it earlier has it in memory twice as long. */
static bool
out_of_memory(const struct anon *an, enum pagein_for why)
{
	const uint8_t kind = atomic_load_explicit(&an->kind, memory_order_relaxed);

	return kind == ANON_SWAP || (kind == ANON_ZIP && why != FOR_STREAM);
}

bool
pagein_ahead(struct service *s, unsigned space, uintptr_t *va, uintptr_t end, enum pagein_for why)
{
	struct pager *p = s->p;
	struct map *m;
	struct map_entry *e;
	struct place place;
	struct leaf *leaf;
	struct anon *an;
	uint64_t index;
	unsigned at, got = 1;
	bool ok = true;

	pthread_rwlock_rdlock(&p->map.lock);
	m = space_map(p, space);
	e = m != NULL ? map_first_from(m, *va) : NULL;
	if (e == NULL || e->start >= end || space_frozen(p, space)) {
		pthread_rwlock_unlock(&p->map.lock);
		*va = end;
		return true;
	}
	*va = MAX(*va, e->start);
	end = MIN(end, e->end);
	/* A page may be poisoned where nothing says so: only a fault looks after that.  And whose account is full gets no more on advice. */
	if (atomic_load(entry_unrecorded(e)) || account_turns_away(p, e->object->account)) {
		pthread_rwlock_unlock(&p->map.lock);
		*va = end;
		return true;
	}
	/* What is on its way is not counted yet: one read at a time. */
	if (s->nreads > 0 && account_is_limited(e->object->account)) {
		pthread_rwlock_unlock(&p->map.lock);
		return false;
	}
	index = e->offset + ((*va - e->start) >> PAGE_SHIFT);
	place = entry_place(e, *va);
	if (why == FOR_STREAM && of_source(e, index)) {
		const size_t left = MIN((end - *va) >> PAGE_SHIFT, LEAF_SLOTS - index % LEAF_SLOTS);

		pthread_rwlock_unlock(&p->map.lock);
		ok = fault_early(s, *va, (unsigned)MIN(left, CLUSTER_MAX), &got);
		if (ok)
			*va += (uintptr_t)got * PAGE_SIZE;
		return ok;
	}
	leaf = object_next_leaf(e->object, index);
	if (leaf == NULL || leaf->base > index) {
		/* Nothing was ever written here: skip to where something was. */
		const uint64_t skip = leaf != NULL ? leaf->base - index : e->object->npages - index;

		if (leaf != NULL)
			pthread_mutex_unlock(&leaf->lock);
		pthread_rwlock_unlock(&p->map.lock);
		*va = skip < (end - *va) >> PAGE_SHIFT ? *va + (skip << PAGE_SHIFT) : end;
		return true;
	}
	at = (unsigned)(index - leaf->base);
	an = leaf_anon(leaf, at);
	if (an == NULL || !out_of_memory(an, why)) {
		pthread_mutex_unlock(&leaf->lock);
	} else if (!anon_trybusy(an)) {
		/* It is on its way, or somebody only looks at it, up_residency() perhaps. */
		pthread_mutex_unlock(&leaf->lock);
		ok = why != FOR_ADVICE;
	} else {
		const size_t left = (end - *va) >> PAGE_SHIFT;

		if (atomic_load_explicit(&an->kind, memory_order_relaxed) == ANON_ZIP) {
			ok = pagein_zip(s, leaf, at, place.va, place.shard,
					(unsigned)MIN(left, LEAF_SLOTS - at), false, FOR_CALL,
					false, &got) != -ENOMEM;
			got = MAX(got, 1);
		} else if (atomic_load_explicit(&an->kind, memory_order_relaxed) == ANON_SWAP) {
			ok = pagein_start(s, leaf, at, place.va, place.shard,
					  (unsigned)MIN(left, MIN(LEAF_SLOTS - at, CLUSTER_MAX)),
					  why, now_ns(), &got) == 0;
		} else {
			pthread_mutex_unlock(&leaf->lock);
			page_unbusy(p, an, place.shard, place.va);
		}
	}
	pthread_rwlock_unlock(&p->map.lock);
	if (ok)
		*va += (uintptr_t)got * PAGE_SIZE;
	return ok;
}

void
pagein_commands(struct service *s)
{
	struct pager *p = s->p;

	s->willneed_waits = false;
	/* What threads are about to want goes before advice. */
	if (!early_serve(s))
		return;
	for (unsigned budget = 256; budget > 0; budget--) {
		uintptr_t va, end;
		unsigned space;

		if (!todo_first(s, &s->willneed, &space, &va, &end))
			return;
		/* Advice must not push others out: it takes free room only, and is forgotten when there is none. */
		if (frames_available(p) < CLUSTER_MAX)
			va = end;
		else if (!requests_spare(s) || !pagein_ahead(s, space, &va, end, FOR_ADVICE)) {
			/* What keeps us ends soon, or with a completion. */
			s->willneed_waits = true;
			return;
		}
		todo_go_on(s, &s->willneed, va, va >= end);
	}
	s->more = true;
}
