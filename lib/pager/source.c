/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * source.c: pages of named objects: source -> frame -> region, and back.
 *
 * From source_in() to source_done() the anons are busy, as with a page-in from swap.  A write back differs from one to swap in that
 * it must be in order: what is written has one place, so a page whose write is in flight is not given to
 * the program as a copy (fault.c waits), and is not forgotten (range.c waits).
 */
#include <errno.h>
#include <string.h>

#include "base/hash.h"
#include "base/probe.h"
#include "pager/source.h"
#include "who.h"

/* --- references --- */

void
source_ref(struct source *src)
{
	atomic_fetch_add(&src->refs, 1);
}

void
source_unref(struct source *src)
{
	if (atomic_fetch_sub(&src->refs, 1) == 1)
		src->ops->destroy(src);
}

/* The request is over. */
static void
finish(struct service *s, struct request *req)
{
	struct source *src = req->source;

	req->source = NULL;
	request_put(s, req);
	if (!s->worker) {
		source_unref(src);
	} else if (atomic_fetch_sub(&src->refs, 1) == 1) {
		/* Destroying it frees memory: for a service to do. */
		src->next_dead = atomic_load(&s->p->dead_sources);
		while (!atomic_compare_exchange_weak(&s->p->dead_sources, &src->next_dead, src))
			;
	}
}

void
source_bury(struct pager *p)
{
	struct source *src = NULL, *next;

	if (atomic_load_explicit(&p->dead_sources, memory_order_relaxed) != NULL)
		src = atomic_exchange(&p->dead_sources, NULL);
	for (; src != NULL; src = next) {
		next = src->next_dead;
		src->ops->destroy(src);
	}
}

/* --- cancelling --- */

/*
 *	source_in --> held, pages in TRANSIT --page_in has returned--> started --completed--> in_done: not held, as ever
 *	                          |                                       |
 *	                          +--source_cancel: an orphan of the request, its slot empty, its anon gone
 *	                                              the last one: the pager is told, once it is started
 *
 * Who cancels and the service that owns the request meet under pages.lock: as long as the request is held the pages that are
 * not orphans are there for the taking; afterwards they are the service's, as those of any other request.
 */

/* The page of a held request that is for this slot, or NULL.  => leaf and pages.lock are held */
static struct page *
held_page(struct pager *p, const struct leaf *leaf, unsigned at, struct request **req)
{
	const struct anon *an = leaf_anon(leaf, at);

	for (unsigned i = 0; i < p->nservices && p->nheld > 0; i++) {
		for (unsigned k = 0; k < NREADS; k++) {
			*req = &p->service[i]->reads[k];
			for (unsigned n = 0; (*req)->held && n < (*req)->n; n++) {
				if ((*req)->page[n]->anon == an)
					return (*req)->page[n];
			}
		}
	}
	return NULL;
}

bool
source_reading(struct pager *p, const struct leaf *leaf, unsigned at)
{
	struct request *req;
	bool found;

	if (!leaf->named)
		return false;
	pthread_mutex_lock(&p->pages.lock);
	found = held_page(p, leaf, at, &req) != NULL;
	pthread_mutex_unlock(&p->pages.lock);
	return found;
}

/* => the request is marked as being cancelled, which keeps it; nothing is locked */
static void
tell(struct request *req)
{
	struct service *s = req->service;

	req->source->ops->cancel(req->source, req);
	/* It may have been completed meanwhile, and wait for us. */
	pthread_mutex_lock(&s->cmd_lock);
	atomic_store(&req->cancelling, false);
	s->io->ops->kick(s->io);
	pthread_mutex_unlock(&s->cmd_lock);
}

bool
source_cancel(struct pager *p, struct leaf *leaf, unsigned at)
{
	struct anon *an = leaf_anon(leaf, at);
	struct request *req = NULL;
	struct page *pg;
	bool last, noreserve;
	unsigned shard;
	uintptr_t va;

	if (!leaf->named)
		return false;
	pthread_mutex_lock(&p->pages.lock);
	pg = held_page(p, leaf, at, &req);
	if (pg == NULL) {
		pthread_mutex_unlock(&p->pages.lock);
		return false;
	}
	pg->anon = NULL;
	va = pg->va;
	shard = pg->shard;
	last = --req->nlive == 0 && req->started;
	if (last)
		atomic_store(&req->cancelling, true);
	pthread_mutex_unlock(&p->pages.lock);
	/* Its BUSY is ours now. */
	noreserve = leaf->noreserve;
	leaf_empty(leaf, at);
	pthread_mutex_unlock(&leaf->lock);
	if (noreserve)
		resv_give(&p->resv_swap, 1);
	anon_gone(p, an, shard, 0);
	/* Whoever the request was for asks for nothing more: he faults again, or there is nothing any more. */
	p->pmap->ops->wake(p->pmap, shard, va, 1);
	if (last)
		tell(req);
	return true;
}

void
source_abandon(struct service *s)
{
	struct pager *p = s->p;

	for (unsigned k = 0; k < NREADS; k++) {
		struct request *req = &s->reads[k];

		for (unsigned i = 0; req->held && i < req->n; i++) {
			struct page *pg = req->page[i];

			if (pg->anon == NULL)
				continue;
			pthread_mutex_lock(&pg->leaf->lock);
			source_cancel(p, pg->leaf, pg->index);
		}
	}
}

/* From here on its pages may be taken; who waits for one of them looks again. */
static void
hold(struct pager *p, struct request *req)
{
	uint32_t places = 0;

	pthread_mutex_lock(&p->pages.lock);
	req->held = true;
	req->started = false;
	req->nlive = req->n;
	p->nheld++;
	for (unsigned i = 0; i < req->n; i++)
		places |= anon_place(req->page[i]->anon);
	pthread_mutex_unlock(&p->pages.lock);
	anon_nudge(&p->waitqs, places);
}

/* The pager has it, and knows.  All of it may have been taken before that. */
static void
held(struct pager *p, struct request *req)
{
	bool unwanted;

	pthread_mutex_lock(&p->pages.lock);
	req->started = true;
	unwanted = req->nlive == 0;
	if (unwanted)
		atomic_store(&req->cancelling, true);
	pthread_mutex_unlock(&p->pages.lock);
	if (unwanted)
		tell(req);
}

void
source_let_go(struct pager *p, struct request *req)
{
	pthread_mutex_lock(&p->pages.lock);
	p->nheld -= req->held;
	req->held = false;
	pthread_mutex_unlock(&p->pages.lock);
}

/* --- page-in --- */

static void
start_in(struct service *s, struct request *req)
{
	const bool may_cancel = req->source->ops->cancel != NULL;
	struct source *src = req->source;
	int r;

	request_fill(s->p, req, SWAP_READ, 0);
	req->io.urgent = !req->early;
	count(s, C_SOURCE_INS, 1);
	PROBE3(source__read, req->page[0]->va, req->index, req->n);
	trace_add(&s->trace, req->t0, TRACE_SWAP_READ, req->page[0]->va, req->n);
	if (may_cancel)
		hold(s->p, req);
	r = src->ops->start(s, src, req, false);
	if (r < 0) {
		req->io.result = r;
		source_done(s, req);
	} else if (may_cancel) {
		held(s->p, req);
	}
}

bool
source_may_start(const struct service *s, const struct source *src, bool write)
{
	const unsigned most = write ? NWRITES * 3 / 4 : NREADS * 5 / 8;
	unsigned all, own;

	if (!src->ops->contiguous)
		return true;
	/* In the midst of what the program was doing it is not called. */
	if (s->worker)
		return false;
	all = write ? s->nhanded_out : s->nhanded - s->nhanded_out;
	own = write ? src->writes[s->id] : src->reads[s->id];
	/* Never more than there are left for others: of 15 the first who does not answer holds 8, the next 4, 2, 1. */
	return all + own < most;
}

unsigned
source_in(struct service *s, struct request *req, struct source *src, uint64_t index,
	  struct page *const pg[], unsigned n, unsigned want, uint64_t t0)
{
	struct pager *p = s->p;
	frame_t f[CLUSTER_MAX];
	unsigned nf = frames_obtain(p, n, f), first;

	if (src->ops->contiguous && nf > 1) {
		unsigned run = 1;

		while (run < nf && f[run] == f[0] + run)
			run++;
		frames_release(p, f + run, nf - run);
		nf = run;
	}
	/* If not all of them, those up to the one that is waited for, or that one and what is behind it. */
	first = nf > want ? 0 : want + 1 - MAX(nf, 1);
	unmake(p, pg, nf == 0 ? 0 : first);
	unmake(p, nf == 0 ? pg : pg + first + nf, nf == 0 ? n : n - first - nf);
	if (nf == 0) {
		request_put(s, req);
		return 0;
	}
	index += first;
	for (unsigned i = 0; i < nf; i++) {
		pg[first + i]->frame = f[i];
		req->page[i] = pg[first + i];
	}
	req->want = want - first;
	req->n = nf;
	request_count(req, pg[first]->leaf->object->account);
	req->retried = false;
	req->t0 = t0;
	req->space = s->space;
	req->addr = s->addr;
	source_ref(src);
	req->source = src;
	req->index = index;
	start_in(s, req);
	return nf;
}

/* The page that a request is for can not be had: who touches it is told, until it is discarded. */
static void
lost(struct service *s, const struct request *req, struct page *pg)
{
	struct pager *p = s->p;
	struct anon *an = pg->anon;
	const unsigned shard = pg->shard;
	const uintptr_t va = pg->va;
	bool again;

	if (pg->leaf->noreserve)
		resv_give(&p->resv_swap, 1);
	anon_set(an, ANON_LOST, UINT32_MAX);
	atomic_fetch_add(&p->nlost, 1);
	frame_give(&p->frames, pg->frame, 1);
	pg->frame = FRAME_NONE;
	page_free(&p->pages, pg);
	again = fault_sigbus(s, req->space, request_addr(req, va), shard, va) < 0;
	page_unbusy(p, an, shard, va);
	if (again)
		fault_again(s, shard, va, now_ns());
}

/*
 * Install busy pages in TRANSIT whose frames hold what the source has.  Returns the verdict on the first.
 * As install() of pagein.c.  lend: it is one page, and may be lent; guarded FOR_LOAD.
 */
static int
install(struct service *s, struct page *const pg[], unsigned n, enum pagein_for why, bool lend)
{
	const bool early = pagein_stays(s, why, pg, n);
	struct pager *p = s->p;
	unsigned done = 0;
	int r = 0;

	for (unsigned i = 0; i < n; i++) {
		struct anon *an = pg[i]->anon;

		an->hash = hash_page(p->hash_seed, pmap_frame(p->pmap, pg[i]->frame));
		atomic_store_explicit(&an->kind, ANON_COPY, memory_order_relaxed);
	}
	pthread_mutex_lock(&p->pages.lock);
	for (unsigned i = 0; i < n; i++) {
		policy_refault(&p->pages.policy, page_no(&p->pages, pg[i]), page_key(pg[i]),
			       why == FOR_FAULT || why == FOR_LOAD);
		if (early)
			page_enqueue_locked(&p->pages, pg[i], Q_AHEAD, PAGE_STAGED);
	}
	pthread_mutex_unlock(&p->pages.lock);
	if (lend)
		done = lend_page(p, pg[0], why == FOR_LOAD) ? 1 : 0;
	if (!early && done == 0)
		r = enter_pages(p, pg, n, &done);
	for (unsigned i = 0; i < n; i++) {
		struct anon *an = pg[i]->anon;
		const unsigned shard = pg[i]->shard;
		const uintptr_t va = pg[i]->va;

		if (!early && i >= done)
			page_stage(p, pg[i]);
		page_unbusy(p, an, shard, va);
	}
	return done > 0 ? 0 : r;
}

static void
count_error(struct service *s, uintptr_t va, int r)
{
	count(s, C_SOURCE_ERRORS, 1);
	trace_add(&s->trace, now_ns(), TRACE_SWAP_ERROR, va, (uint32_t)-r);
}

/* Why the page that it is for can not be had: an error, or 0, since it is past the end. */
static WHO_TELLS void
tell_failed(const struct request *req, int r)
{
	struct pager *p = req->service->p;
	struct who w;
	const char *const who = who_page(p, req->space, req->page[req->want], &w);

	if (r == 0)
		log_line_about(&p->log, &w.about, UP_LOG_ERROR,
			       "page at %s: past the end of the %s; SIGBUS", who,
			       req->source->ops->name);
	else
		log_line_about(&p->log, &w.about, UP_LOG_ERROR,
			       "page at %s: the %s pager failed with %s at offset %llu; SIGBUS",
			       who, req->source->ops->name, strerrorname_np(-r),
			       (unsigned long long)(req->index + req->want) << PAGE_SHIFT);
}

static void
in_done(struct service *s, struct request *req)
{
	struct pager *p = s->p;
	struct source *src = req->source;
	struct page *const waited = req->page[req->want];
	const size_t bytes = source_length(src, req->index, req->n);
	const size_t got = req->io.result == 0 ? MIN(req->io.done, bytes) : 0;
	const unsigned asked = req->n, shard = waited->shard;
	const uintptr_t va = waited->va;
	struct page *rest[CLUSTER_MAX]; /* that nobody waits for */
	unsigned n, nrest = 0, there = 0;
	bool demanded;
	int r = req->io.result;

	source_let_go(p, req);
	demanded = waited->anon != NULL && !req->early;
	if (r == 0 && got < bytes)
		r = src->ops->ended(src, req->index, bytes, got);
	n = r == 0 ? (unsigned)((got + PAGE_MASK) >> PAGE_SHIFT) : 0;
	if (got & PAGE_MASK)
		memset((char *)pmap_frame(p->pmap, req->page[n - 1]->frame) + (got & PAGE_MASK), 0,
		       PAGE_SIZE - (got & PAGE_MASK));
	for (unsigned i = 0; i < asked; i++) {
		struct page *pg = req->page[i];

		if (pg->anon == NULL) {
			frame_give(&p->frames, pg->frame, 1);
			page_free(&p->pages, pg);
		} else if (pg == waited && demanded) {
			there += i < n;
		} else if (i < n) {
			rest[nrest++] = pg;
		} else {
			unmake(p, &pg, 1);
		}
	}
	if (r < 0 && demanded && asked > 1 && !req->retried) {
		/* Of several only one may be bad: those that nobody waits for are left for later. */
		count_error(s, va, r);
		req->retried = true;
		req->index += req->want;
		req->page[0] = waited;
		req->want = 0;
		req->n = 1;
		start_in(s, req);
		return;
	}
	if (r < 0 && demanded) {
		count_error(s, va, r);
		tell_failed(req, r);
		lost(s, req, waited);
	} else if (demanded && there == 0) {
		tell_failed(req, 0);
		lost(s, req, waited);
	} else if (demanded &&
		   install(s, &waited, 1, req->guard ? FOR_LOAD : FOR_FAULT, asked == 1) == 0) {
		fault_answered(s, req->space, UP_FAULT_MAJOR, request_addr(req, va), req->t0);
	} else if (demanded) {
		fault_again(s, shard, va, req->t0);
	}
	if (nrest > 0)
		install(s, rest, nrest, req->early ? FOR_STREAM : FOR_CALL, false);
	count(s, C_READAHEAD, nrest);
	finish(s, req);
}

unsigned
source_zeros(struct service *s, struct page *const pg[], unsigned n, int *err)
{
	struct pager *p = s->p;
	frame_t f[CLUSTER_MAX];
	/* Those behind the first are a guess. */
	const unsigned most = frames_available(p) > 2 * CLUSTER_MAX ? n : 1;
	const unsigned nf = frames_obtain(p, most, f);

	unmake(p, pg + nf, n - nf);
	*err = -ENOMEM;
	if (nf == 0)
		return 0;
	for (unsigned i = 0; i < nf; i++) {
		pg[i]->frame = f[i];
		memset(pmap_frame(p->pmap, f[i]), 0, PAGE_SIZE);
	}
	*err = install(s, pg, 1, FOR_FAULT, false);
	if (nf > 1)
		install(s, pg + 1, nf - 1, FOR_CALL, false);
	return nf;
}

/* --- page-out --- */

/*
 * Its write has ended.  True if it was an orphan: the caller frees it.  *cut_off: the caller is to forget it, and has it busy
 * since before anybody else could take it; false if it is busy already, and will be tried again.
 */
static bool
written(struct pager *p, struct page *pg, bool ok, bool *cut_off)
{
	bool orphan;

	pthread_mutex_lock(&p->pages.lock);
	orphan = pg->anon == NULL;
	*cut_off = *cut_off && !orphan && anon_trybusy(pg->anon);
	if (!orphan) {
		page_set_state_locked(&p->pages, pg, PAGE_TRANSIT);
		pg->alone = !ok; /* it is not what its hash says */
		page_enqueue_locked(&p->pages, pg, ok ? Q_CLEAN : Q_INACTIVE, PAGE_STAGED);
	}
	pthread_mutex_unlock(&p->pages.lock);
	return orphan;
}

/* The source ends before this page now: its content goes with what was cut off, and a touch will be SIGBUS.  => busy */
static void
forget(struct pager *p, struct page *pg)
{
	struct leaf *leaf = pg->leaf;
	struct anon *an = pg->anon;
	const unsigned at = pg->index, shard = pg->shard;
	const uintptr_t va = pg->va;

	anon_forget(an);
	release_content(p, an);
	leaf_forget(p, leaf, at);
	anon_gone(p, an, shard, va);
}

static void
out_done(struct service *s, struct request *req)
{
	struct pager *p = s->p;
	struct source *src = req->source;
	const int r = req->io.result;
	int none = 0;

	/* Before its pages come to rest: what the source said of them while this was on its way is old. */
	atomic_fetch_add(&src->nwrites, 1);
	if (r == 0) {
		atomic_store_explicit(&src->write_backoff, 0, memory_order_relaxed);
	} else if (r != SOURCE_CUT_OFF) {
		count(s, C_SOURCE_ERRORS, 1);
		atomic_compare_exchange_strong(&src->error, &none, r);
		if (pageout_backoff(&src->write_again, &src->write_backoff))
			log_line(
				&p->log, UP_LOG_ERROR,
				"the %s pager failed to write %u pages at offset %llu: %s; kept in memory",
				src->ops->name, req->n,
				(unsigned long long)req->index << PAGE_SHIFT, strerrorname_np(-r));
	}
	for (unsigned i = 0; i < req->n; i++) {
		struct page *pg = req->page[i];
		bool cut_off = r == SOURCE_CUT_OFF && req->n == 1;

		if (written(p, pg, r == 0, &cut_off)) {
			frame_give(&p->frames, pg->frame, 1);
			page_free(&p->pages, pg);
		} else if (cut_off) {
			forget(p, pg);
		}
	}
	atomic_fetch_sub(&p->laundering, req->n);
	finish(s, req);
	services_kick(p, s);
}

unsigned
source_out(struct service *s, struct page *const pg[], const uint64_t hash[], unsigned n)
{
	struct pager *p = s->p;
	struct leaf *leaf = pg[0]->leaf;
	struct request *req;
	struct source *src;
	unsigned run = 1;
	int r;

	/* Busy pages keep their leaf, and that its object. */
	pthread_mutex_lock(&leaf->lock);
	src = leaf->object->source;
	pthread_mutex_unlock(&leaf->lock);
	if (atomic_load(&src->write_again) > 0 && now_ns() < atomic_load(&src->write_again))
		return 0;
	req = source_may_start(s, src, true) ? request_get(s, REQ_PAGEOUT) : NULL;
	if (req == NULL)
		return 0;
	source_ref(src);
	req->source = src;
	while (run < n && !pg[0]->alone && pg[run]->leaf == leaf &&
	       pg[run]->index == pg[0]->index + run &&
	       (!src->ops->contiguous || pg[run]->frame == pg[0]->frame + run))
		run++;
	req->index = leaf->base + pg[0]->index;
	req->n = run;
	req->t0 = now_ns();
	for (unsigned i = 0; i < run; i++) {
		req->page[i] = pg[i];
		pg[i]->anon->hash =
			hash != NULL ? hash[i]
				     : hash_page(p->hash_seed, pmap_frame(p->pmap, pg[i]->frame));
	}
	request_fill(p, req, SWAP_WRITE, 0);
	atomic_fetch_add(&p->laundering, run);
	atomic_fetch_add(&src->nwrites, 1);
	count(s, C_SOURCE_OUTS, 1);
	PROBE3(source__write, pg[0]->va, req->index, run);
	trace_add(&s->trace, req->t0, TRACE_SWAP_WRITE, pg[0]->va, run);
	for (unsigned i = 0; i < run; i++) {
		struct anon *an = pg[i]->anon;
		const unsigned shard = pg[i]->shard;
		const uintptr_t va = pg[i]->va;

		pthread_mutex_lock(&p->pages.lock);
		page_set_state_locked(&p->pages, pg[i], PAGE_LAUNDRY);
		pthread_mutex_unlock(&p->pages.lock);
		page_unbusy(p, an, shard, va);
	}
	r = src->ops->start(s, src, req, true);
	if (r < 0) {
		req->io.result = r;
		source_done(s, req);
	}
	return run;
}

/* The way that it took is closed: the same once more by another one.  True if it is under way. */
static bool
another_way(struct service *s, struct request *req)
{
	struct source *src = req->source;
	const bool write = req->kind == REQ_PAGEOUT;
	int r;

	if (req->io.result == 0 || src->ops->refused == NULL || !src->ops->refused(src, &req->io))
		return false;
	request_fill(s->p, req, write ? SWAP_WRITE : SWAP_READ, 0);
	req->io.urgent = !write && !req->early;
	r = src->ops->start(s, src, req, write);
	if (r < 0)
		req->io.result = r;
	return r == 0; /* and then it may be over already */
}

void
source_done(struct service *s, struct request *req)
{
	if (another_way(s, req))
		return;
	if (req->kind == REQ_PAGEIN)
		in_done(s, req);
	else
		out_done(s, req);
}

/* --- up_sync() --- */

int
source_look(struct pager *p, const struct page *pg, void *copy)
{
	int r = p->pmap->ops->read(p->pmap, pg->va, copy);

	/* While the program unmaps or moves something itself. */
	for (unsigned tries = 0; r == -EAGAIN && tries < 5000; tries++) {
		range_doze(p);
		r = p->pmap->ops->read(p->pmap, pg->va, copy);
	}
	return r;
}

int
source_write(struct pager *p, struct object *o, struct anon *an, uint64_t index)
{
	struct source *src = o->source;
	_Alignas(4096) char copy[PAGE_SIZE];
	struct page *pg;
	void *content = copy;
	uint64_t h;
	int r = 0;

	if (!anon_in_core(an))
		return 0;
	pg = page_at(&p->pages, an->loc);
	if (pg->same && !pg->alone)
		return 0;
	if (pg->state == PAGE_MAPPED)
		r = source_look(p, pg, copy);
	else
		content = pmap_frame(p->pmap, pg->frame);
	if (r < 0)
		return r == -ENOENT || r == -ESTALE ? 0 : r; /* the program has discarded it */
	h = hash_page(p->hash_seed, content);
	if (h == an->hash && !pg->alone)
		return 0;
	atomic_fetch_add(&src->nwrites, 1);
	r = src->ops->write(src, index, content, source_length(src, index, 1));
	atomic_fetch_add(&src->nwrites, 1);
	if (r == SOURCE_CUT_OFF)
		return 0; /* forgotten when it is thrown out, as with msync() */
	/* After a failure nobody knows what the source has. */
	pg->alone = r < 0;
	if (r == 0)
		an->hash = h;
	return r;
}

void
source_failed(struct source *src, int error)
{
	int none = 0;

	atomic_compare_exchange_strong(&src->error, &none, error);
}

int
source_settle(struct source *src)
{
	const int error = atomic_exchange(&src->error, 0);
	const int r = src->ops->flush != NULL ? src->ops->flush(src) : 0;

	return error != 0 ? error : r;
}

/* --- up_sync(), without waiting --- */

/*
 * A busy page that differs from what its source has: into TRANSIT, with a frame.  Else it is as before.
 * => 0: as said.  -ENOENT: nothing to write, or it can not be had (pinned).  -EAGAIN: not now.
 */
static int
take_changed(struct pager *p, struct page *pg)
{
	const enum page_state state = pg->state;
	char copy[PAGE_SIZE];
	const void *content = copy;
	frame_t hole;
	size_t done = 0;
	bool wired;
	int r = 0;

	if (pg->same && !pg->alone)
		return -ENOENT;
	if (state == PAGE_MAPPED)
		r = p->pmap->ops->read(p->pmap, pg->va, copy);
	else
		content = pmap_frame(p->pmap, pg->frame);
	if (r < 0 || (!pg->alone && hash_page(p->hash_seed, content) == pg->anon->hash))
		return -ENOENT;
	pthread_mutex_lock(&p->pages.lock);
	wired = page_queue_locked(pg) == Q_WIRED;
	if (!wired)
		page_dequeue_locked(&p->pages, pg);
	pthread_mutex_unlock(&p->pages.lock);
	if (wired)
		return -ENOENT;
	if (state == PAGE_STAGED)
		return 0;
	r = -EAGAIN;
	if (hole_take(&p->frames, 1, &hole) > 0) {
		pg->frame = hole; /* before: adopt.h */
		stores_in_order();
		r = p->pmap->ops->remove(p->pmap, pg->shard, pg->va, hole, 1, &done);
		if (r == 0)
			return 0;
		pg->frame = FRAME_NONE;
		hole_give(&p->frames, hole, 1);
	}
	page_enqueue(&p->pages, pg, Q_ACTIVE, PAGE_MAPPED);
	return r == -EAGAIN || r == -ENOMEM ? -EAGAIN : -ENOENT;
}

/* Start to write changed pages, all busy, in TRANSIT.  Returns how many, the others are staged. */
static unsigned
push_pages(struct service *s, struct page *const pg[], unsigned n)
{
	struct pager *p = s->p;
	unsigned out = 0, got;

	while (out < n && (got = source_out(s, pg + out, NULL, n - out)) > 0)
		out += got;
	for (unsigned i = out; i < n; i++) {
		struct anon *an = pg[i]->anon;
		const unsigned shard = pg[i]->shard;
		const uintptr_t va = pg[i]->va;

		page_enqueue(&p->pages, pg[i], Q_INACTIVE, PAGE_STAGED);
		page_unbusy(p, an, shard, va);
	}
	return out;
}

/* The pages at [*va, ...) of an entry that may have changed, busy; *va: where to go on.  => map locked.  *blocked: one is in motion. */
static unsigned
collect(struct pager *p, const struct map_entry *e, uintptr_t *va, uintptr_t end, struct page *pg[],
	uintptr_t addr[], bool *blocked)
{
	const uint64_t index = e->offset + ((*va - e->start) >> PAGE_SHIFT);
	const uint64_t stop = index + ((end - *va) >> PAGE_SHIFT);
	struct leaf *leaf = object_next_leaf(e->object, index);
	unsigned at, n = 0;

	*blocked = false;
	if (leaf == NULL || leaf->base >= stop) {
		if (leaf != NULL)
			pthread_mutex_unlock(&leaf->lock);
		*va = end;
		return 0;
	}
	at = (unsigned)(MAX(index, leaf->base) - leaf->base);
	for (; at < LEAF_SLOTS && leaf->base + at < stop && n < CLUSTER_MAX; at++) {
		struct anon *an = leaf_anon(leaf, at);

		if (an == NULL)
			continue;
		if (!anon_trybusy(an)) {
			if (source_reading(p, leaf, at))
				continue;
			*blocked = true;
			break;
		}
		if (anon_in_core(an) && page_at(&p->pages, an->loc)->state != PAGE_LAUNDRY) {
			addr[n] = e->start + ((leaf->base + at - e->offset) << PAGE_SHIFT);
			pg[n++] = page_at(&p->pages, an->loc);
			continue;
		}
		/* Under way already, or lost.  Who asks for one of these is parked. */
		page_unbusy(p, an, 0, 0);
	}
	*va = e->start + ((leaf->base + at - e->offset) << PAGE_SHIFT);
	pthread_mutex_unlock(&leaf->lock);
	return n;
}

/* A part of [*va, end).  False: go on later. */
static bool
push(struct service *s, uintptr_t *va, uintptr_t end)
{
	struct pager *p = s->p;
	struct page *pg[CLUSTER_MAX] = { NULL };
	uintptr_t addr[CLUSTER_MAX];
	struct map_entry *e;
	unsigned n = 0, changed = 0, out;
	uintptr_t again = 0;
	bool blocked = false;

	pthread_rwlock_rdlock(&p->map.lock);
	if (p->frozen & ALL_FROZEN) {
		pthread_rwlock_unlock(&p->map.lock);
		return false;
	}
	e = map_first_from(&p->map, *va);
	if (e == NULL || e->start >= end) {
		*va = end;
	} else {
		*va = MAX(*va, e->start);
		end = MIN(end, e->end);
		if (e->object->source != NULL)
			n = collect(p, e, va, end, pg, addr, &blocked);
		else
			*va = end;
	}
	pthread_rwlock_unlock(&p->map.lock);
	for (unsigned i = 0; i < n; i++) {
		struct anon *an = pg[i]->anon;
		const int r = again != 0 ? -EAGAIN : take_changed(p, pg[i]);

		if (r == 0) {
			addr[changed] = addr[i];
			pg[changed++] = pg[i];
			continue;
		}
		if (r == -EAGAIN && again == 0)
			again = addr[i];
		page_unbusy(p, an, pg[i]->shard, pg[i]->va);
	}
	out = push_pages(s, pg, changed);
	if (out < changed)
		again = addr[out];
	if (again != 0)
		*va = again;
	return again == 0 && !blocked;
}

void
source_commands(struct service *s)
{
	bool ok = true;

	s->push_waits = false;
	for (unsigned turns = 64; turns > 0 && ok; turns--) {
		uintptr_t va, end;
		unsigned space;

		if (!todo_first(s, &s->push, &space, &va, &end))
			return;
		ok = push(s, &va, end);
		todo_go_on(s, &s->push, va, va >= end && ok);
	}
	if (ok)
		s->more = true;
	else
		s->push_waits = true; /* what keeps us ends soon, or with a completion */
}

bool
source_push(struct pager *p, unsigned shard, uintptr_t va, uintptr_t end)
{
	struct service *s = p->service[shard];

	return todo_put(s, &s->push, shard, va, end);
}
