/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fault.c: what to do about one missing page.
 *
 *	1  address -> map entry             not there: it is being unmapped; try again shortly
 *	2  entry -> object, index, leaf
 *	3  look: what does the leaf's slot say?
 *	4  resolve by what was found, and wake:
 *
 *	   nothing      fault_beneath  copy what shows through from a backing object, or take it over
 *	                fault_zero     zero-fill, with a run of neighbours if this is a stream
 *	   CORE  STAGED fault_soft     move the frame back
 *	         LAUNDRY fault_rescue  copy it: the frame is the write's until that has ended
 *	         MAPPED fault_mapped   somebody was faster, or the program discarded it itself
 *	   SWAP         pagein_start   read; pagein_done() answers
 *	   LOST         SIGBUS
 *
 * Each step ends in one verdict, and one switch says what becomes of the fault.  A fault never sleeps:
 * what can not be had now is parked in the service and tried again, or, if the page is busy, dropped,
 * since whoever holds it wakes the address afterwards and the thread faults once more.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/probe.h"
#include "foreign.h"
#include "pager/source.h"
#include "who.h"

#define HURRY_NS 5000000      /* a stream waits that long for as many frames as it wants, */
#define PATIENT_NS 1000000000 /* and so long while writes are under way; */
#define NO_HURRY_NS 100000000 /* not again so soon if that was in vain */

enum verdict {
	V_DONE,	      /* answered */
	V_IO,	      /* a read is under way */
	V_BUSY,	      /* dropped: the holder of the page wakes the thread */
	V_BUSY_LOOSE, /* the holder may know the page by another address: park */
	V_ROOM,	      /* no frame or no metadata: park */
	V_REPEAT,     /* the holder of the page has just let go: start over */
	V_HINT,	      /* the source has been asked: start over */
	V_AGAIN,      /* the kernel said so: park */
	V_GROW,	      /* overcommitted: the swap must grow first, with no lock held */
	V_FULL,	      /* overcommitted and nothing left, but only a call asked: nothing is lost */
	V_FROZEN,     /* its space is about to fork: dropped, space_thaw() wakes it */
	V_QUOTA, /* its client has as much as it may: dropped, whoever takes some of it wakes the thread */
	V_STRAY, /* no entry: park, it is about to be unmapped */
	V_ASK, /* a worker only: a pager of the program has to be called, which only services do */
	V_SIGBUS, /* lost */
};

struct fault {
	struct service *s;
	struct pager *p;
	uintptr_t addr; /* where it was touched, */
	unsigned space; /* and in whose address space: a shard of ours, or a child's */
	bool write, wp;
	bool grown;	/* the swap has been asked to grow */
	bool asked;	/* by fault_ask(): no thread waits at the address */
	bool early;	/* the same, by fault_early(): for a stream */
	int waitq;	/* V_BUSY of a worker: where to sleep, from anon_sleep_begin() */
	unsigned ahead; /* pages from here on that are asked for; 0: guess */
	unsigned got;	/* early: pages that are under way */
	unsigned back;	/* pages unpacked for it */
	bool hurry;	/* V_ROOM: there is some, but not as much as a stream wants */
	uint64_t t0;
	uint64_t serial;	 /* of the entry found; 0: none */
	struct map_entry *known; /* step 1 has been done, and map.lock is locked */
	struct {
		const struct source *of; /* NULL: it has not been asked */
		uint64_t index, nwrites; /* about which page, and before which write */
		int has;
		uint64_t before, after;
	} hint; /* what it said, see struct source_ops */

	/* steps 1 and 2; (map.lock) */
	struct map_entry *entry;
	struct object *object;
	uint64_t index;
	uintptr_t va;	   /* by what name the pmap knows the page, */
	unsigned shard;	   /* see entry_place() */
	struct leaf *leaf; /* locked */
	unsigned at;	   /* slot in leaf */
	unsigned run_max;  /* pages from here to the end of entry or leaf */
};

/* What it begins with.  The rest is found on the way: nobody clears two cache lines in vain. */
static inline void
fault_begin(struct fault *f, struct service *s, unsigned space, uintptr_t addr, bool write,
	    uint64_t t0)
{
	f->s = s;
	f->p = s->p;
	f->addr = addr;
	f->space = space;
	f->write = write;
	f->wp = f->grown = f->asked = f->early = false;
	f->waitq = 0;
	f->ahead = f->got = f->back = 0;
	f->hurry = false;
	f->t0 = t0;
	f->known = NULL;
	f->hint.of = NULL;
}

/* Of a process that is not ours: what is counted of its faults.  NULL: nothing. */
static struct space_tally *
tally_of(struct pager *p, unsigned space)
{
	struct space_tally *t;

	if (space <= PMAP_POOL)
		return NULL;
	t = atomic_load_explicit(&p->tally, memory_order_acquire);
	return t != NULL ? t + (space - PMAP_POOL - 1) : NULL;
}

static void
tally_again(struct pager *p, unsigned space)
{
	struct space_tally *t = tally_of(p, space);

	if (t != NULL)
		atomic_fetch_add_explicit(&t->again, 1, memory_order_relaxed);
}

static void
tally_deferred(struct pager *p, unsigned space)
{
	struct space_tally *t = tally_of(p, space);

	if (t != NULL)
		atomic_fetch_add_explicit(&t->deferred, 1, memory_order_relaxed);
}

static void
tally_sigbus(struct pager *p, unsigned space)
{
	struct space_tally *t = tally_of(p, space);

	if (t != NULL)
		atomic_fetch_add_explicit(&t->sigbus, 1, memory_order_relaxed);
}

/* What is of other processes only: ours are not to pay for it. */
static __attribute__((noinline)) void
answered_to(struct service *s, struct space_tally *tally, unsigned space, enum up_fault_kind kind,
	    uintptr_t va, uint64_t now, uint64_t ns)
{
	tally_add(&tally->latency[kind], ns);
	trace_add2(&s->trace, now, (enum trace_kind)(TRACE_FAULT_MINOR + kind), va, 1,
		   (uint16_t)space);
}

PROBE_ONCE void
fault_answered(struct service *s, unsigned space, enum up_fault_kind kind, uintptr_t va,
	       uint64_t t0)
{
	const uint64_t now = now_ns();
	const uint64_t ns = now > t0 ? now - t0 : 0;
	struct space_tally *tally = tally_of(s->p, space);

	count(s, C_FAULT + kind, 1);
	histogram_add(&s->latency[kind], ns);
	PROBE3(fault__end, va, kind, ns);
	if (tally != NULL)
		answered_to(s, tally, space, kind, va, now, ns);
	else
		trace_add(&s->trace, now, (enum trace_kind)(TRACE_FAULT_MINOR + kind), va, 1);
}

/* The same of other ends, at an address of that space. */
static void
trace_fault(struct service *s, unsigned space, enum trace_kind kind, uintptr_t va, uint64_t at,
	    uint32_t arg)
{
	trace_add2(&s->trace, at, kind, va, arg, space > PMAP_POOL ? (uint16_t)space : 0);
}

int
fault_sigbus(struct service *s, unsigned space, uintptr_t addr, unsigned shard, uintptr_t va)
{
	struct pager *p = s->p;
	const int r = p->pmap->ops->poison(p->pmap, shard, va);

	if (r == -EAGAIN || r == -ENOMEM)
		return -EAGAIN;
	if (r == -ENOTSUP) {
		/* No way to SIGBUS on this kernel: SIGSEGV is better than a thread that waits for ever. */
		atomic_store(&p->fenced, true);
		p->pmap->ops->protect(p->pmap, va, PAGE_SIZE, PROT_NONE);
		p->pmap->ops->wake(p->pmap, shard, va, 1);
	}
	count(s, C_SIGBUS, 1);
	tally_sigbus(p, space);
	PROBE1(fault__sigbus, addr);
	trace_fault(s, space, TRACE_FAULT_SIGBUS, addr, now_ns(), 0);
	return 0;
}

/* The fault at a LOST, busy page: answered, or to be tried again. */
static enum verdict
verdict_lost(struct fault *f, struct anon *an)
{
	const int r = fault_sigbus(f->s, f->space, f->addr, f->shard, f->va);

	page_unbusy(f->p, an, f->shard, f->va);
	return r == 0 ? V_SIGBUS : V_AGAIN;
}

void
page_unbusy(struct pager *p, struct anon *an, unsigned shard, uintptr_t va)
{
	if (anon_unbusy(&p->waitqs, an) && va != 0)
		p->pmap->ops->wake(p->pmap, shard, va, 1);
}

void
page_stage(struct pager *p, struct page *pg)
{
	page_enqueue(&p->pages, pg, pg->slot != SLOT_NONE ? Q_CLEAN : Q_INACTIVE, PAGE_STAGED);
}

/* Pages from pg[0] on whose frames and addresses both follow each other. */
static unsigned
contiguous(struct page *const pg[], unsigned n)
{
	unsigned i = 1;

	while (i < n && pg[i]->frame == pg[0]->frame + i &&
	       pg[i]->va == pg[0]->va + (uintptr_t)i * PAGE_SIZE && pg[i]->shard == pg[0]->shard)
		i++;
	return i;
}

static void
mapped(struct pager *p, struct page *const pg[], unsigned n)
{
	pthread_mutex_lock(&p->pages.lock);
	for (unsigned i = 0; i < n; i++) {
		pg[i]->frame = FRAME_NONE;
		pg[i]->same = false;
		page_enqueue_locked(&p->pages, pg[i], Q_ACTIVE, PAGE_MAPPED);
	}
	pthread_mutex_unlock(&p->pages.lock);
}

/*
 * What is there is what the program sees and may have written to: it wins.  Our frame goes, and its charge stands for the page that
 * we had not counted.  => busy, in TRANSIT; MAPPED on return
 */
static void
enter_exists(struct pager *p, struct page *pg)
{
	p->pmap->ops->frame_drop(p->pmap, pg->frame, 1);
	hole_give(&p->frames, pg->frame, 1);
	if (pg->slot != SLOT_NONE) {
		swap_free(&p->swap, pg->slot, 1);
		pg->slot = SLOT_NONE;
	}
	mapped(p, &pg, 1);
	p->pmap->ops->wake(p->pmap, pg->shard, pg->va, 1);
	atomic_fetch_add_explicit(&p->nexists, 1, memory_order_relaxed);
}

int
enter_pages(struct pager *p, struct page *const pg[], unsigned n, unsigned *done)
{
	unsigned i = 0;

	while (i < n) {
		const unsigned run = contiguous(pg + i, n - i);
		const frame_t first = pg[i]->frame;
		size_t got = 0;
		int r = p->pmap->ops->enter(p->pmap, pg[i]->shard, pg[i]->va, first, run, &got);

		hole_give(&p->frames, first, got);
		mapped(p, pg + i, (unsigned)got);
		i += (unsigned)got;
		if (r == -EEXIST) {
			enter_exists(p, pg[i]);
			i++;
		} else if (r < 0) {
			*done = i;
			return r;
		}
	}
	*done = n;
	return 0;
}

void
leaf_forget(struct pager *p, struct leaf *leaf, unsigned at)
{
	bool noreserve, lost;

	/* Once its slots are empty, leaf and object may go: no touch after that. */
	pthread_mutex_lock(&leaf->lock);
	noreserve = leaf->noreserve;
	lost = atomic_load_explicit(&leaf_anon(leaf, at)->kind, memory_order_relaxed) == ANON_LOST;
	leaf_empty(leaf, at);
	pthread_mutex_unlock(&leaf->lock);
	if (noreserve && !lost) /* a lost page needs no slot: its promise went when it was lost */
		resv_give(&p->resv_swap, 1);
}

void
anon_gone(struct pager *p, struct anon *an, unsigned shard, uintptr_t va)
{
	bool wanted;

	anon_free(&p->waitqs, &p->zones.anon, an, &wanted);
	if (wanted && va != 0)
		p->pmap->ops->wake(p->pmap, shard, va, 1);
}

void
unmake(struct pager *p, struct page *const pg[], unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		struct anon *an = pg[i]->anon;
		const uintptr_t va = pg[i]->va;
		const unsigned shard = pg[i]->shard;

		leaf_forget(p, pg[i]->leaf, pg[i]->index);
		if (pg[i]->frame != FRAME_NONE)
			frame_give(&p->frames, pg[i]->frame, 1);
		page_free(&p->pages, pg[i]);
		anon_gone(p, an, shard, va);
	}
}

/* Charge up to n pages; returns how many. */
static unsigned
charge_pages(struct pager *p, unsigned n)
{
	while (n > 0 && !budget_charge(&p->budget, n * PAGE_SIZE))
		n /= 2;
	return n;
}

/*
 * Install zeros for busy pages in TRANSIT: fresh from the kernel while the budget lasts, then out of
 * recycled frames.  Returns how many from the front are MAPPED; *err says why not more.
 */
static unsigned
zero_install(struct pager *p, struct page *const pg[], unsigned n, int *err)
{
	const struct pmap_ops *ops = p->pmap->ops;
	bool fresh = true;
	unsigned i = 0;

	*err = 0;
	while (i < n) {
		const unsigned got = fresh ? charge_pages(p, n - i) : 0;
		frame_t f[CLUSTER_MAX];
		unsigned nf, done;

		if (got > 0) {
			size_t k = 0;
			int r = ops->zero(p->pmap, pg[i]->shard, pg[i]->va, got, &k);

			if (r == -EEXIST) {
				/* As in enter_pages(): it is the program's page; count it. */
				ops->wake(p->pmap, pg[i + k]->shard, pg[i + k]->va, 1);
				atomic_fetch_add_explicit(&p->nexists, 1, memory_order_relaxed);
				k++;
				r = 0;
			}
			if (k < got)
				budget_uncharge(&p->budget, (got - k) * PAGE_SIZE);
			mapped(p, pg + i, (unsigned)k);
			i += (unsigned)k;
			if (r == -ENOMEM && frames_nfree(&p->frames) == 0)
				pager_short(p);
			if (r == -ENOMEM && fresh) {
				fresh = false; /* the kernel has none: recycle */
				continue;
			}
			if (r < 0) {
				*err = r;
				return i;
			}
			continue;
		}
		/* Neighbours are a guess: they may take only frames that are to be had in plenty. */
		nf = i == 0 ? 1 : 0;
		if (frames_available(p) > 2 * CLUSTER_MAX)
			nf = MIN(n - i, CLUSTER_MAX);
		nf = nf > 0 ? frames_obtain(p, nf, f) : 0;
		if (nf == 0) {
			*err = -ENOMEM;
			return i;
		}
		for (unsigned k = 0; k < nf; k++) {
			assert(pg[i + k] != NULL);
			memset(pmap_frame(p->pmap, f[k]), 0, PAGE_SIZE);
			pg[i + k]->frame = f[k];
		}
		*err = enter_pages(p, pg + i, nf, &done);
		i += done;
		if (*err < 0)
			return i; /* unmake() gives the other frames back */
	}
	return i;
}

/* How many pages from the one at fault on to bring in, at most `max`.  *stream: for readahead_done(). */
static unsigned
window(struct fault *f, unsigned max, struct ra_stream **stream)
{
	/* A neighbour may be poisoned where no anon says so. */
	max = atomic_load(entry_unrecorded(f->entry)) ? 1 : MIN(max, f->run_max);
	*stream = NULL;
	if (f->ahead > 0)
		max = MIN(f->ahead, max);
	else
		max = readahead_window(f->p, f->entry, f->index, max, stream);
	if (max > 1)
		tier_serves_run(f->p);
	return max;
}

/* The stream has come by: what it wants next is read while it goes on.  => map locked, no wait queue */
static void
go_ahead(struct fault *f, struct ra_stream *stream)
{
	const struct map_entry *e = f->entry;
	const uintptr_t base = e->start - (uintptr_t)(e->offset << PAGE_SHIFT);
	struct pager *p = f->p;
	struct ra_range r;

	/* A child's space is served at its faults only. */
	if (stream != NULL && f->space < p->nservices && readahead_more(e, stream, &r))
		early_wish(p->service[e->shard], base + (r.first << PAGE_SHIFT),
			   base + (r.end << PAGE_SHIFT), r.step);
}

/*
 * A stream is to have `want` pages at once, and there are few frames: to wait until pageout has made as many is better than to go on
 * page by page.  If it does not, so be it, for some time.  => a run of more than TOO_FAST
 */
#define TOO_FAST (CLUSTER_MAX / 2)
static bool
too_fast(struct fault *f, unsigned want)
{
	struct pager *p = f->p;
	uint64_t now;

	if (f->asked || frames_available(p) >= want + (size_t)2 * CLUSTER_MAX)
		return false;
	now = now_ns();
	if (now < atomic_load_explicit(&p->no_hurry, memory_order_relaxed))
		return false;
	f->hurry = now - f->t0 < (atomic_load(&p->laundering) > 0 ? PATIENT_NS : HURRY_NS);
	if (f->hurry)
		return true;
	atomic_store_explicit(&p->no_hurry, now + NO_HURRY_NS, memory_order_relaxed);
	return false;
}

/*
 * The page gets an anon that says LOST, so that everyone agrees with the mark in the page table until the page
 * is discarded.  => leaf locked, its slot empty.  NULL: no room for that; else busy.
 */
static struct anon *
lost_anon(struct pager *p, struct leaf *leaf, unsigned at)
{
	struct anon *an = anon_alloc(&p->zones.anon);

	if (an == NULL)
		return NULL;
	atomic_store_explicit(&an->kind, ANON_LOST, memory_order_relaxed);
	leaf_set_anon(leaf, at, an);
	atomic_fetch_add(&p->nlost, 1);
	return an;
}

static WHO_TELLS enum verdict
overcommitted(struct fault *f, struct anon *lost)
{
	struct who w;

	log_line_about(
		&f->p->log, &w.about, UP_LOG_ERROR,
		"fault at %s: overcommitted, and the swap is full, or what its client may have of it; SIGBUS",
		who_at(f->p, f->space, f->addr, &w));
	return verdict_lost(f, lost);
}

/* What was not promised when it was mapped: of what there is, and of what its client may have. */
static bool
promise_page(struct pager *p, const struct object *o)
{
	return account_may_promise(o->account, 1) && resv_try(&p->resv_swap, 1);
}

/* => leaf and map are locked; both are unlocked on return. */
static enum verdict
fault_zero(struct fault *f)
{
	struct pager *p = f->p;
	struct ra_stream *stream;
	/* A service wakes somebody else for each run, a worker only returns. */
	const unsigned most = f->s->worker ? CLUSTER_MAX : RUN_MAX;
	struct page *pg[RUN_MAX];
	unsigned want, n, done;
	struct anon *lost = NULL;
	bool full = false;
	int err;

	/* Of a neighbour in a shadow we do not know what shows through there. */
	want = window(f, f->object->backing != NULL ? 1 : most, &stream);
	if (want > TOO_FAST && too_fast(f, want)) {
		readahead_done(stream, f->index, 0);
		pthread_mutex_unlock(&f->leaf->lock);
		pthread_rwlock_unlock(&p->map.lock);
		return V_ROOM;
	}
	for (n = 0; n < want && leaf_anon(f->leaf, f->at + n) == NULL; n++) {
		struct anon *an;

		/* What was not promised when it was mapped must be had now. */
		if (f->object->noreserve && !promise_page(p, f->object)) {
			full = true;
			break;
		}
		an = anon_alloc(&p->zones.anon);
		pg[n] = an != NULL ? page_alloc(&p->pages, an, f->leaf, f->at + n, false) : NULL;
		if (pg[n] == NULL) {
			if (an != NULL)
				anon_gone(p, an, f->shard, 0);
			if (f->object->noreserve)
				resv_give(&p->resv_swap, 1);
			break;
		}
		pg[n]->va = f->va + (uintptr_t)n * PAGE_SIZE;
		pg[n]->shard = (uint8_t)f->shard;
		an->loc = page_no(&p->pages, pg[n]);
		leaf_set_anon(f->leaf, f->at + n, an);
	}
	readahead_done(stream, f->index, n);
	if (n == 0 && full && f->grown && !f->asked)
		lost = lost_anon(p, f->leaf, f->at);
	pthread_mutex_unlock(&f->leaf->lock);
	pthread_rwlock_unlock(&p->map.lock);
	if (lost != NULL)
		return overcommitted(f, lost);
	if (n == 0 && full && !f->grown)
		return V_GROW;
	if (n == 0 && full && f->asked)
		return V_FULL;
	if (n == 0) {
		pager_starved(p, METADATA_STEP);
		return V_ROOM;
	}

	done = zero_install(p, pg, n, &err);
	for (unsigned i = 0; i < done; i++)
		page_unbusy(p, pg[i]->anon, f->shard, pg[i]->va);
	if (done < n)
		unmake(p, pg + done, n - done);
	if (done == 0)
		return err == -ENOMEM ? V_ROOM : V_AGAIN;
	count(f->s, C_ZEROAHEAD, done - 1);
	fault_answered(f->s, f->space, UP_FAULT_ZERO, f->addr, f->t0);
	return V_DONE;
}

/* The same of a named object, where zeros would be wrong: if the page is not there, it is read again. */
static enum verdict
fault_mapped_named(struct fault *f, struct anon *an)
{
	struct pager *p = f->p;
	struct page *pg = page_at(&p->pages, an->loc);
	struct leaf *leaf = pg->leaf;
	const unsigned at = pg->index;
	char page[PAGE_SIZE];
	const int r = p->pmap->ops->read(p->pmap, f->va, page);

	if (r == -EAGAIN || r == -ESTALE) {
		page_unbusy(p, an, f->shard, f->va);
		return V_AGAIN;
	}
	if (r == -ENOENT) {
		anon_forget(an);
		release_content(p, an);
		leaf_forget(p, leaf, at);
		anon_gone(p, an, f->shard, f->va);
		count(f->s, C_FOREIGN, 1);
		return V_REPEAT;
	}
	/* What the fault is for is not always known: it may be guarded. */
	if (lends(p) && f->shard < p->pmap->nshards)
		p->pmap->ops->allow(p->pmap, f->shard, f->va);
	else
		p->pmap->ops->wake(p->pmap, f->shard, f->va, 1);
	pg->same = false;
	page_unbusy(p, an, f->shard, f->va);
	fault_answered(f->s, f->space, UP_FAULT_MINOR, f->addr, f->t0);
	return V_DONE;
}

/* What is missing to whoever touched it is there. */
static void
fault_exists(struct fault *f)
{
	struct space_tally *t = tally_of(f->p, f->space);

	atomic_fetch_add_explicit(&f->p->nexists, 1, memory_order_relaxed);
	if (t != NULL)
		atomic_fetch_add_explicit(&t->exists, 1, memory_order_relaxed);
}

/*
 * The page is believed to be in its region.  Either somebody was faster, or the program discarded it
 * with its own madvise(), which means zeros: trying to install zeros tells which.
 * => the anon is busy; released on return.
 */
static enum verdict
fault_mapped(struct fault *f, struct anon *an)
{
	struct pager *p = f->p;
	struct page *pg = page_at(&p->pages, an->loc);
	/* What it is for is not always known.  If it is about a page that has gone, the next touch tells. */
	const bool wp = f->wp || (f->write && pg->same);
	size_t done = 0;
	int r = -EEXIST;

	if (wp && pg->same)
		lend_written(pg);
	if (!wp && pg->leaf->named && !f->object->guest)
		return fault_mapped_named(f, an);
	if (!wp) {
		r = p->pmap->ops->zero(p->pmap, f->shard, f->va, 1, &done);
		if (r == -EEXIST)
			fault_exists(f);
	}
	if (r == -EEXIST && lends(p) && f->shard < p->pmap->nshards)
		/* Guarded; or it was, and somebody has tried in vain to take it out. */
		p->pmap->ops->allow(p->pmap, f->shard, f->va);
	else if (r == -EEXIST)
		p->pmap->ops->wake(p->pmap, f->shard, f->va, 1);
	if (f->wp && f->space > PMAP_POOL && p->pmap->ops->space_allow != NULL)
		p->pmap->ops->space_allow(p->pmap, f->space, f->addr);
	if (r == 0 || r == -EEXIST)
		pg->same = false;
	page_unbusy(p, an, f->shard, f->va);
	if (r < 0 && r != -EEXIST)
		return V_AGAIN;
	if (r == 0)
		count(f->s, C_FOREIGN, 1);
	fault_answered(f->s, f->space, wp ? UP_FAULT_WP : UP_FAULT_MINOR, f->addr, f->t0);
	return V_DONE;
}

/*
 * Move a staged frame back.
 * => the anon is busy, its page in TRANSIT with a frame; the anon is released on return.
 */
static enum verdict
fault_soft(struct fault *f, struct anon *an, struct page *pg)
{
	struct pager *p = f->p;
	unsigned done;
	int r;

	pg->va = f->va;
	pg->shard = (uint8_t)f->shard;
	r = enter_pages(p, &pg, 1, &done);
	/* Its slot may have older bytes, also if it was on CLEAN a moment ago: only its hash tells. */
	if (r < 0)
		page_enqueue(&p->pages, pg, Q_INACTIVE, PAGE_STAGED);
	page_unbusy(p, an, f->shard, f->va);
	if (r < 0)
		return r == -ENOMEM ? V_ROOM : V_AGAIN;
	fault_answered(f->s, f->space, f->wp ? UP_FAULT_WP : UP_FAULT_SOFT, f->addr, f->t0);
	return V_DONE;
}

/*
 * The frame is being written to swap, and pinned by that unless it goes through a buffer: give the program a copy and leave the frame to
 * the write, as an orphan.
 * => the anon is busy, `pg` was LAUNDRY when looked at; the anon is released on return.
 */
static enum verdict
fault_rescue(struct fault *f, struct anon *an, struct page *pg)
{
	struct pager *p = f->p;
	struct page *copy;
	frame_t frame;

	copy = page_alloc(&p->pages, an, pg->leaf, pg->index, false);
	if (copy == NULL) {
		pager_starved(p, METADATA_STEP);
		page_unbusy(p, an, f->shard, f->va);
		return V_ROOM;
	}
	if (frames_obtain(p, 1, &frame) == 0) {
		page_free(&p->pages, copy);
		page_unbusy(p, an, f->shard, f->va);
		return V_ROOM;
	}
	/* Nobody takes the old frame away: it is the write's, and then this busy anon's. */
	memcpy(pmap_frame(p->pmap, frame), pmap_frame(p->pmap, pg->frame), PAGE_SIZE);
	/* The write that it is rescued from may fail, and its hash is that of what is written. */
	copy->alone = pg->leaf->sourced;
	stores_in_order();
	copy->frame = frame;

	pthread_mutex_lock(&p->pages.lock);
	if (pg->state == PAGE_LAUNDRY) {
		pg->anon = NULL;
		an->loc = page_no(&p->pages, copy);
		policy_inherit(&p->pages.policy, an->loc, page_no(&p->pages, pg));
		policy_touched(&p->pages.policy, an->loc);
		pthread_mutex_unlock(&p->pages.lock);
		count(f->s, C_RESCUE, 1);
		trace_fault(f->s, f->space, TRACE_RESCUE, f->addr, f->t0, 0);
		return fault_soft(f, an, copy);
	}
	/* The write ended meanwhile: the frame itself can go back. */
	page_dequeue_locked(&p->pages, pg);
	policy_touched(&p->pages.policy, page_no(&p->pages, pg));
	pthread_mutex_unlock(&p->pages.lock);
	copy->frame = FRAME_NONE;
	frame_give(&p->frames, frame, 1);
	page_free(&p->pages, copy);
	return fault_soft(f, an, pg);
}

/* True if the page `k` places from the one at fault is staged; it is busy then, and ours.  => leaf locked */
static bool
staged_at(struct fault *f, int k, struct page **pg)
{
	struct pager *p = f->p;
	struct anon *an = leaf_anon(f->leaf, (unsigned)((int)f->at + k));

	if (an == NULL || !anon_in_core(an) || !anon_trybusy(an))
		return false;
	*pg = anon_in_core(an) ? page_at(&p->pages, an->loc) : NULL;
	if (*pg != NULL && atomic_load_explicit(&(*pg)->state, memory_order_relaxed) == PAGE_STAGED)
		return true;
	page_unbusy(p, an, f->shard, f->va + (uintptr_t)((intptr_t)k * (intptr_t)PAGE_SIZE));
	return false;
}

/*
 * Off their queues: they are about to be mapped.  One that was read ahead is used for the first time; others have been before.
 * Neighbours of the one that was touched say nothing.
 */
static unsigned
unstage(struct pager *p, struct page *const pg[], unsigned n, unsigned touched)
{
	unsigned hits = 0;

	pthread_mutex_lock(&p->pages.lock);
	for (unsigned i = 0; i < n; i++) {
		const bool ahead = page_queue_locked(pg[i]) == Q_AHEAD;

		page_dequeue_locked(&p->pages, pg[i]);
		if (ahead)
			hits++;
		else if (i == touched)
			policy_touched(&p->pages.policy, page_no(&p->pages, pg[i]));
	}
	pthread_mutex_unlock(&p->pages.lock);
	return hits;
}

/*
 * One page alone is busy on its queue until it is in its region, so that this is locked once.  Not so a run: who needs a frame would meet nothing but busy
 * pages.
 * => the anon is busy, its page STAGED; the anon is released on return.
 */
static enum verdict
fault_staged_alone(struct fault *f, struct anon *an, struct page *pg)
{
	struct pager *p = f->p;
	const frame_t frame = pg->frame;
	size_t got = 0;
	bool ahead;
	int r;

	pg->va = f->va;
	pg->shard = (uint8_t)f->shard;
	policy_prefetch(&p->pages.policy, page_no(&p->pages, pg));
	r = p->pmap->ops->enter(p->pmap, pg->shard, pg->va, frame, 1, &got);
	if (r < 0) {
		/* It is there already, or has to wait. */
		ahead = unstage(p, &pg, 1, 0) > 0;
		if (r == -EEXIST)
			enter_exists(p, pg);
		else
			page_enqueue(&p->pages, pg, Q_INACTIVE, PAGE_STAGED);
	} else {
		hole_give(&p->frames, frame, 1);
		pthread_mutex_lock(&p->pages.lock);
		pg->frame = FRAME_NONE;
		pg->same = false;
		ahead = page_use_locked(&p->pages, pg);
		pthread_mutex_unlock(&p->pages.lock);
	}
	if (ahead) {
		count(f->s, C_AHEAD_HITS, 1);
		leaf_credit(pg->leaf, 1);
	}
	page_unbusy(p, an, f->shard, f->va);
	if (r < 0 && r != -EEXIST)
		return r == -ENOMEM ? V_ROOM : V_AGAIN;
	fault_answered(f->s, f->space, f->wp ? UP_FAULT_WP : UP_FAULT_SOFT, f->addr, f->t0);
	return V_DONE;
}

/* How many pages there are from the one at fault back to the beginning of entry or leaf. */
static unsigned
pages_in_front(const struct fault *f)
{
	return MIN(f->at, (unsigned)MIN((f->addr - f->entry->start) >> PAGE_SHIFT, LEAF_SLOTS));
}

/*
 * The page is staged.  If a stream comes by, what is staged further on its way is mapped in the same move.
 * => the anon is busy, map and leaf are locked; all are released.
 */
static enum verdict
fault_staged(struct fault *f, struct anon *an)
{
	struct pager *p = f->p;
	struct page *run[2 * RUN_MAX], **pg = run + RUN_MAX;
	unsigned most = f->s->worker ? CLUSTER_MAX : RUN_MAX, n = 1, touched = 0, done, hits;
	struct ra_stream *stream = NULL;
	bool back = false;
	int r;

	if (f->ahead > 0)
		most = MIN(f->ahead, CLUSTER_MAX);
	else if (!f->wp && readahead_window(p, f->entry, f->index, 2, &stream) == 1 &&
		 stream != NULL && !readahead_back(stream))
		most = 1; /* the first fault of one, perhaps */
	if ((stream == NULL && f->ahead == 0) || (stream != NULL && readahead_strided(stream)) ||
	    atomic_load(entry_unrecorded(f->entry)))
		most = 1;
	back = stream != NULL && readahead_back(stream);
	most = MIN(most, back ? pages_in_front(f) + 1 : f->run_max);
	*pg = page_at(&p->pages, an->loc);
	while (n < most && staged_at(f, back ? -(int)n : (int)n, back ? pg - 1 : &pg[n])) {
		pg -= back;
		n++;
	}
	if (stream != NULL) {
		readahead_done(stream, f->index, n);
		go_ahead(f, stream);
	}
	pthread_mutex_unlock(&f->leaf->lock);
	if (n == 1) {
		pthread_rwlock_unlock(&p->map.lock);
		return fault_staged_alone(f, an, *pg);
	}
	touched = back ? n - 1 : 0;
	hits = unstage(p, pg, n, touched);
	if (hits > 0) {
		count(f->s, C_AHEAD_HITS, hits);
		readahead_credit(f->object, (int)hits);
	}
	pthread_rwlock_unlock(&p->map.lock);

	for (unsigned i = 0; i < n; i++) {
		pg[i]->va = f->va +
			    (uintptr_t)(((intptr_t)i - (intptr_t)touched) * (intptr_t)PAGE_SIZE);
		pg[i]->shard = (uint8_t)f->shard;
	}
	r = enter_pages(p, pg, n, &done);
	for (unsigned i = 0; i < n; i++) {
		struct anon *each = pg[i]->anon;
		const uintptr_t va = pg[i]->va;

		/* Its slot may have older bytes, also if it was on CLEAN a moment ago: only its hash tells. */
		if (i >= done)
			page_enqueue(&p->pages, pg[i], Q_INACTIVE, PAGE_STAGED);
		page_unbusy(p, each, f->shard, va);
	}
	if (done <= touched)
		return r == -ENOMEM ? V_ROOM : V_AGAIN;
	fault_answered(f->s, f->space, f->wp ? UP_FAULT_WP : UP_FAULT_SOFT, f->addr, f->t0);
	return V_DONE;
}

/* => the anon is busy and in core; released on return. */
static enum verdict
fault_core(struct fault *f, struct anon *an)
{
	struct pager *p = f->p;
	struct page *pg = page_at(&p->pages, an->loc);
	enum page_state state;

	pthread_mutex_lock(&p->pages.lock);
	state = pg->state;
	assert(pg->anon == an);
	if (state == PAGE_STAGED) { /* its write has just ended */
		page_dequeue_locked(&p->pages, pg);
		policy_touched(&p->pages.policy, an->loc);
	}
	pthread_mutex_unlock(&p->pages.lock);

	switch (state) {
	case PAGE_MAPPED:
		return fault_mapped(f, an);
	case PAGE_STAGED:
		return fault_soft(f, an, pg);
	case PAGE_LAUNDRY:
		if (pg->leaf->sourced) {
			/* A copy could be changed and written back before this write ends.  That may take its time. */
			f->t0 = now_ns();
			page_unbusy(p, an, f->shard, f->va);
			return V_BUSY_LOOSE;
		}
		return fault_rescue(f, an, pg);
	default:
		assert(!"a page that is not busy is MAPPED, STAGED or LAUNDRY");
		return V_SIGBUS;
	}
}

/*
 * The demanded page's run ended before the window did: its neighbours lie elsewhere in the swap.  Read them
 * too, each run a request of its own and all in flight together.  Returns how far the window was looked at.
 * => map locked; the leaf is unlocked, and stays, since a page of it is busy in a read of this thread.
 */
static unsigned
read_on(struct fault *f, unsigned got, unsigned want)
{
	struct pager *p = f->p;

	while (got < want && requests_spare(f->s) && frames_available(p) > 2 * CLUSTER_MAX) {
		const uintptr_t va = f->va + (uintptr_t)got * PAGE_SIZE;
		struct anon *an;
		unsigned n = 1;

		pthread_mutex_lock(&f->leaf->lock);
		an = leaf_anon(f->leaf, f->at + got);
		if (an == NULL ||
		    atomic_load_explicit(&an->kind, memory_order_relaxed) != ANON_SWAP ||
		    !anon_trybusy(an)) {
			pthread_mutex_unlock(&f->leaf->lock);
		} else if (atomic_load_explicit(&an->kind, memory_order_relaxed) != ANON_SWAP) {
			pthread_mutex_unlock(&f->leaf->lock);
			page_unbusy(p, an, f->shard, va);
		} else if (pagein_start(f->s, f->leaf, f->at + got, va, f->shard, want - got,
					FOR_CALL, f->t0, &n) < 0) {
			break;
		}
		got += n;
	}
	return got;
}

/* => the anon is busy and in swap, map and leaf are locked; all are released or handed on. */
static enum verdict
fault_swap(struct fault *f)
{
	struct pager *p = f->p;
	struct ra_stream *stream;
	unsigned want, got;
	int r;

	want = window(f, CLUSTER_MAX, &stream);
	if (want > TOO_FAST && too_fast(f, want)) {
		struct anon *an = leaf_anon(f->leaf, f->at);

		readahead_done(stream, f->index, 0);
		pthread_mutex_unlock(&f->leaf->lock);
		pthread_rwlock_unlock(&p->map.lock);
		page_unbusy(p, an, f->shard, f->va);
		return V_ROOM;
	}
	r = pagein_start(f->s, f->leaf, f->at, f->va, f->shard, want,
			 f->write || f->asked || want > 1 || !lend_guarded(f->object) ? FOR_FAULT
										      : FOR_LOAD,
			 f->t0, &got);
	if (r == 0 && stream != NULL) {
		readahead_done(stream, f->index, read_on(f, got, want));
		go_ahead(f, stream);
	}
	pthread_rwlock_unlock(&p->map.lock);
	return r == 0 ? V_IO : V_ROOM;
}

/* => the anon is busy and in the compressed pool, map and leaf are locked; all are released. */
static enum verdict
fault_zip(struct fault *f)
{
	struct pager *p = f->p;
	struct ra_stream *stream;
	unsigned want, got;
	bool back;
	int r;

	want = window(f, ZIP_RUN_MAX, &stream);
	back = stream != NULL && readahead_back(stream) && !atomic_load(entry_unrecorded(f->entry));
	if (back)
		want = MIN(readahead_reach(stream), pages_in_front(f) + 1);
	r = pagein_zip(f->s, f->leaf, f->at, f->va, f->shard, want, back, FOR_FAULT,
		       readahead_once(f->p, f->entry, stream), &got);
	if (r == 0 && stream != NULL) {
		readahead_done(stream, f->index, got);
		go_ahead(f, stream);
	}
	pthread_rwlock_unlock(&p->map.lock);
	if (r == -EIO)
		return V_SIGBUS;
	if (r < 0)
		return r == -ENOMEM ? V_ROOM : V_AGAIN;
	f->back = got;
	fault_answered(f->s, f->space, UP_FAULT_SOFT, f->addr, f->t0);
	return V_DONE;
}

struct leaf *
leaf_for(struct pager *p, struct object *o, uint64_t index, bool *denied)
{
	struct leaf *leaf = object_leaf(o, index, NULL);
	bool created = false;

	*denied = false;
	if (leaf != NULL)
		return leaf;
	if (o->noreserve && !resv_try(&p->resv_meta, META_PER_LEAF)) {
		*denied = true;
		return NULL;
	}
	leaf = object_leaf(o, index, &created);
	if (o->noreserve && !created)
		resv_give(&p->resv_meta, META_PER_LEAF);
	return leaf;
}

/* => the anon is busy, map and leaf are locked; all are released or handed on. */
static enum verdict
fault_anon(struct fault *f, struct anon *an)
{
	struct pager *p = f->p;

	switch (atomic_load_explicit(&an->kind, memory_order_relaxed)) {
	case ANON_SWAP:
		return fault_swap(f);
	case ANON_ZIP:
		return fault_zip(f);
	default:
		break;
	}
	if (anon_in_core(an) && atomic_load_explicit(&page_at(&p->pages, an->loc)->state,
						     memory_order_relaxed) == PAGE_STAGED)
		return fault_staged(f, an);

	/* BUSY keeps the anon and the VMA; no lock is needed from here. */
	pthread_mutex_unlock(&f->leaf->lock);
	pthread_rwlock_unlock(&p->map.lock);
	if (anon_in_core(an))
		return fault_core(f, an);
	return verdict_lost(f, an);
}

/* A promise and an anon for a page that has none yet.  => leaf locked.  NULL: *full, the promise is refused. */
static struct anon *
promised_anon(struct fault *f, bool *full)
{
	struct anon *an;

	*full = f->object->noreserve && !promise_page(f->p, f->object);
	if (*full)
		return NULL;
	an = anon_alloc(&f->p->zones.anon);
	if (an == NULL && f->object->noreserve)
		resv_give(&f->p->resv_swap, 1);
	return an;
}

/* What shows through is nobody else's: it moves up into our object, wherever its content is. */
static enum verdict
take_over(struct fault *f, const struct beneath *b)
{
	struct pager *p = f->p;

	/* For a moment it is in both places; it is busy, so nobody does anything about it. */
	leaf_set_anon(f->leaf, f->at, b->anon);
	pthread_mutex_unlock(&f->leaf->lock);
	pthread_mutex_lock(&b->leaf->lock);
	leaf_clear(b->leaf, b->at);
	pthread_mutex_unlock(&b->leaf->lock);
	pthread_mutex_lock(&f->leaf->lock);
	if (anon_in_core(b->anon)) {
		struct page *pg = page_at(&p->pages, b->anon->loc);

		pg->leaf = f->leaf;
		pg->index = (uint16_t)f->at;
	}
	return fault_anon(f, b->anon);
}

/* The content of a page beneath: its frame stays while it is busy, also if it is being written. */
static int
copy_content(struct pager *p, const struct page *from, void *to)
{
	if (from->state == PAGE_MAPPED) /* of a named object that is mapped shared */
		return p->pmap->ops->read(p->pmap, from->va, to);
	memcpy(to, pmap_frame(p->pmap, from->frame), PAGE_SIZE);
	return 0;
}

/*
 * Others see it too: we get a copy.  => map and leaf locked, the page beneath is busy and in core; all are released.
 */
static enum verdict
copy_up(struct fault *f, const struct beneath *b)
{
	struct pager *p = f->p;
	const struct page *from = page_at(&p->pages, b->anon->loc);
	struct page *pg = NULL;
	struct anon *an;
	const bool marked = f->leaf->slot[f->at] != 0;
	/* Once the map is unlocked the object may be joined with its last shadow, which takes the page along, busy as it is. */
	const bool sourced = b->object->source != NULL;
	frame_t frame;
	unsigned done;
	bool full;
	int r = -ENOMEM;

	an = promised_anon(f, &full);
	if (an != NULL) {
		pg = page_alloc(&p->pages, an, f->leaf, f->at, false);
		if (pg == NULL) {
			anon_gone(p, an, f->shard, 0);
			if (f->object->noreserve)
				resv_give(&p->resv_swap, 1);
		}
	}
	if (pg == NULL && full && f->grown && !f->asked) {
		an = lost_anon(p, f->leaf, f->at);
		pthread_mutex_unlock(&f->leaf->lock);
		pthread_rwlock_unlock(&p->map.lock);
		page_unbusy(p, b->anon, f->shard, 0);
		if (an == NULL)
			pager_starved(p, METADATA_STEP);
		return an != NULL ? overcommitted(f, an) : V_ROOM;
	}
	if (pg == NULL) {
		pthread_mutex_unlock(&f->leaf->lock);
		pthread_rwlock_unlock(&p->map.lock);
		page_unbusy(p, b->anon, f->shard, 0);
		if (full)
			return f->grown ? V_FULL : V_GROW;
		pager_starved(p, METADATA_STEP);
		return V_ROOM;
	}
	pg->va = f->va;
	pg->shard = (uint8_t)f->shard;
	an->loc = page_no(&p->pages, pg);
	leaf_set_anon(f->leaf, f->at, an);
	pthread_mutex_unlock(&f->leaf->lock);
	pthread_rwlock_unlock(&p->map.lock);

	if (frames_obtain(p, 1, &frame) > 0) {
		pg->frame = frame;
		r = copy_content(p, from, pmap_frame(p->pmap, frame));
		if (r == 0 && sourced) {
			/* As if it had been read of the source, which gets it before that page goes. */
			an->hash = hash_page(p->hash_seed, pmap_frame(p->pmap, frame));
			atomic_store_explicit(&an->kind, ANON_COPY, memory_order_relaxed);
		}
		if (r == 0)
			r = enter_pages(p, &pg, 1, &done);
	}
	if (r < 0) {
		/*
		 * As if nothing had been: what is beneath shows through again.  It stays busy until then: somebody
		 * who looked meanwhile would believe that we have our own, and take over what we need.
		 */
		const bool noreserve = f->object->noreserve;

		pthread_mutex_lock(&f->leaf->lock);
		if (marked)
			leaf_mark(f->leaf, f->at);
		else
			leaf_clear(f->leaf, f->at);
		pthread_mutex_unlock(&f->leaf->lock);
		page_unbusy(p, b->anon, f->shard, 0);
		if (noreserve)
			resv_give(&p->resv_swap, 1);
		if (pg->frame != FRAME_NONE)
			frame_give(&p->frames, pg->frame, 1);
		page_free(&p->pages, pg);
		anon_gone(p, an, f->shard, f->va);
		return r == -ENOMEM ? V_ROOM : V_AGAIN;
	}
	page_unbusy(p, b->anon, f->shard, 0);
	page_unbusy(p, an, f->shard, f->va);
	count(f->s, C_COPY, 1);
	fault_answered(f->s, f->space, UP_FAULT_SOFT, f->addr, f->t0);
	return V_DONE;
}

/* What shows through is in swap and others see it too: bring it in, as a page of the backing object. */
static enum verdict
read_beneath(struct fault *f, const struct beneath *b)
{
	struct pager *p = f->p;
	struct ra_stream *stream;
	unsigned want, got;
	int r;

	want = window(f, LEAF_SLOTS - b->at, &stream);
	pthread_mutex_lock(&b->leaf->lock);
	r = pagein_start(f->s, b->leaf, b->at, 0, f->shard, want, FOR_FAULT, f->t0, &got);
	if (r == 0)
		readahead_done(stream, f->index, got);
	pthread_rwlock_unlock(&p->map.lock);
	return r == 0 ? V_BUSY_LOOSE : V_ROOM;
}

/* The same from the compressed pool, which is done at once. */
static enum verdict
unzip_beneath(struct fault *f, const struct beneath *b)
{
	struct pager *p = f->p;
	unsigned got;
	int r;

	pthread_mutex_lock(&b->leaf->lock);
	r = pagein_zip(f->s, b->leaf, b->at, 0, f->shard, 1, false, FOR_FAULT, false, &got);
	pthread_rwlock_unlock(&p->map.lock);
	return r == -ENOMEM ? V_ROOM : V_REPEAT;
}

/*
 * Ask the source whether it has the page, with nothing locked.  What it says, of neighbours too, holds until a write to it begins or
 * ends.  => map and leaf are locked; both are unlocked on return.
 */
static enum verdict
ask_source(struct fault *f, struct source *src, uint64_t index)
{
	struct pager *p = f->p;

	f->hint.of = src;
	f->hint.index = index;
	f->hint.nwrites = atomic_load(&src->nwrites);
	source_ref(src);
	pthread_mutex_unlock(&f->leaf->lock);
	pthread_rwlock_unlock(&p->map.lock);
	f->hint.has = src->ops->has(src, index, &f->hint.before, &f->hint.after);
	source_unref(src);
	return V_HINT;
}

/* The source can not say, or says that it can not: lost.  => as fault_source() */
static WHO_TELLS enum verdict
refused_by_source(struct fault *f, const struct source *src, uint64_t index)
{
	struct pager *p = f->p;
	struct anon *an = lost_anon(p, f->leaf, f->at);
	struct who w;

	pthread_mutex_unlock(&f->leaf->lock);
	pthread_rwlock_unlock(&p->map.lock);
	if (an == NULL) {
		pager_starved(p, METADATA_STEP);
		return V_ROOM;
	}
	count(f->s, C_SOURCE_ERRORS, 1);
	log_line_about(&p->log, &w.about, UP_LOG_ERROR,
		       "page at %s: the %s pager failed with %s at offset %llu; SIGBUS",
		       who_at(p, f->space, f->addr, &w), src->ops->name,
		       strerrorname_np(-f->hint.has), (unsigned long long)index << PAGE_SHIFT);
	return verdict_lost(f, an);
}

/* A page for the slot `k` places from the one at fault, or NULL; *full: since its promise is refused. */
static struct page *
source_page(struct fault *f, int k, bool promise, bool *full)
{
	struct pager *p = f->p;
	const unsigned at = (unsigned)((int)f->at + k);
	struct anon *an;
	struct page *pg;

	*full = promise && !promise_page(p, f->object);
	an = *full ? NULL : anon_alloc(&p->zones.anon);
	pg = an != NULL ? page_alloc(&p->pages, an, f->leaf, at, false) : NULL;
	if (pg == NULL) {
		if (an != NULL)
			anon_gone(p, an, f->shard, 0);
		if (promise && !*full)
			resv_give(&p->resv_swap, 1);
		return NULL;
	}
	pg->va = f->va + (uintptr_t)((intptr_t)k * (intptr_t)PAGE_SIZE);
	pg->shard = (uint8_t)f->shard;
	an->loc = page_no(&p->pages, pg);
	leaf_set_anon(f->leaf, at, an);
	return pg;
}

/* How far around the page at fault to read, or to fill with zeros: *before pages in front of it; returns how many from it on. */
static unsigned
source_window(struct fault *f, const struct object *src, uint64_t index, bool hinted,
	      unsigned *before, struct ra_stream **stream)
{
	const struct map_entry *e = f->entry;
	/* Neighbours only where nothing lies between them and the source. */
	const bool near = f->object == src || f->object->backing == src;
	uint64_t most = near ? MIN(f->run_max, CLUSTER_MAX) : 1, in_front;

	*before = 0;
	*stream = NULL;
	most = MIN(most, src->npages - index);
	if (!hinted)
		return window(f, (unsigned)most, stream);
	most = MIN(most - 1, f->hint.after) + 1;
	/* The source knows better than our guess; but who asks for a range, or for nothing else, knows best. */
	if (f->hint.has == 0 || f->ahead > 0 || e->advice == UP_ADVICE_RANDOM ||
	    atomic_load(entry_unrecorded(f->entry)))
		return window(f, (unsigned)most, stream);
	in_front = near ? MIN(MIN(f->at, index), (f->addr - e->start) >> PAGE_SHIFT) : 0;
	in_front = MIN(in_front, f->hint.before);
	*before = (unsigned)MIN(in_front, CLUSTER_MAX - MIN(most, CLUSTER_MAX / 2));
	return (unsigned)MIN(most, CLUSTER_MAX - *before);
}

/*
 * What shows through is the source's: read it, and pages around it.  Those of a private mapping become its own at once.
 * => map and leaf are locked; both are unlocked on return.
 */
static enum verdict
fault_source(struct fault *f, struct object *src, uint64_t index)
{
	struct pager *p = f->p;
	struct source *source = src->source;
	const bool own = f->object == src, promise = f->object->noreserve && !own;
	/* The one at fault is page[CLUSTER_MAX]. */
	struct page *page[2 * CLUSTER_MAX] = { NULL }, **const pg = page + CLUSTER_MAX;
	struct request *req = NULL;
	struct ra_stream *stream;
	bool full = false, ignored;
	unsigned want, before, n, b;
	int err;

	if (f->s->worker && source->ops->contiguous) {
		pthread_mutex_unlock(&f->leaf->lock);
		pthread_rwlock_unlock(&p->map.lock);
		return V_ASK;
	}
	if (source->asks && (f->hint.of != source || f->hint.index != index ||
			     f->hint.nwrites != atomic_load(&source->nwrites)))
		return ask_source(f, source, index);
	if (source->asks && f->early && f->hint.has <= 0) {
		/* Who touches it is told; nothing has to be read. */
		pthread_mutex_unlock(&f->leaf->lock);
		pthread_rwlock_unlock(&p->map.lock);
		return V_DONE;
	}
	if (source->asks && f->hint.has < 0)
		return refused_by_source(f, source, index);
	if (!source->asks || f->hint.has > 0) {
		req = source_may_start(f->s, source, false) ? request_get(f->s, REQ_PAGEIN) : NULL;
		if (req == NULL) {
			pthread_mutex_unlock(&f->leaf->lock);
			pthread_rwlock_unlock(&p->map.lock);
			return V_ROOM;
		}
	}
	want = source_window(f, src, index, source->asks, &before, &stream);
	if (account_share(f->object->account, want + before) < want + before) {
		before = 0;
		want = account_share(f->object->account, want);
	}
	for (n = 0; n < want; n++) {
		if (n > 0 &&
		    (f->leaf->slot[f->at + n] != 0 || (!own && object_has(src, index + n))))
			break;
		pg[n] = source_page(f, (int)n, promise, n == 0 ? &full : &ignored);
		if (pg[n] == NULL)
			break;
	}
	for (b = 0; b < before && n > 0; b++) {
		if (f->leaf->slot[f->at - b - 1] != 0 || (!own && object_has(src, index - b - 1)))
			break;
		page[CLUSTER_MAX - b - 1] = source_page(f, -(int)(b + 1), promise, &ignored);
		if (page[CLUSTER_MAX - b - 1] == NULL)
			break;
	}
	if (stream != NULL) {
		readahead_done(stream, f->index, n);
		if (req != NULL)
			go_ahead(f, stream);
	}
	if (n == 0) {
		struct anon *an =
			full && f->grown && !f->asked ? lost_anon(p, f->leaf, f->at) : NULL;

		pthread_mutex_unlock(&f->leaf->lock);
		pthread_rwlock_unlock(&p->map.lock);
		if (req != NULL)
			request_put(f->s, req);
		if (an != NULL)
			return overcommitted(f, an);
		if (full && !f->grown)
			return V_GROW;
		if (full && f->asked)
			return V_FULL;
		pager_starved(p, METADATA_STEP);
		return V_ROOM;
	}
	pthread_mutex_unlock(&f->leaf->lock);
	if (req != NULL) {
		pthread_rwlock_unlock(&p->map.lock);
		req->early = f->early;
		req->guard = own && n + b == 1 && !f->early && !f->asked && !f->write &&
			     lend_guarded(f->object);
		n = source_in(f->s, req, source, index - b, pg - b, n + b, b, f->t0);
		f->got = n > b ? n - b : 0;
		return n > 0 ? V_IO : V_ROOM;
	}
	pthread_rwlock_unlock(&p->map.lock);
	n = source_zeros(f->s, pg, n, &err);
	if (err < 0)
		return err == -ENOMEM ? V_ROOM : V_AGAIN;
	count(f->s, C_ZEROAHEAD, n - 1);
	fault_answered(f->s, f->space, UP_FAULT_ZERO, f->addr, f->t0);
	return V_DONE;
}

/*
 * Nothing in the object itself.  => map and leaf are locked; both are unlocked on return.
 *
 * The leaf is let go while we look down the chain and at our siblings: one of them may look at us.  That there is nothing
 * in our slot does not change meanwhile but by a call that hides or discards it; and what we see stays in its place as
 * long as we see it.
 */
static enum verdict
fault_beneath(struct fault *f)
{
	struct pager *p = f->p;
	enum beneath_what what;
	const bool hidden = f->leaf->slot[f->at] == SLOT_BASE;
	struct beneath b;
	struct anon *lost;
	bool seen = false, denied;

	pthread_mutex_unlock(&f->leaf->lock);
	what = chain_find(f->object, f->index, hidden, &b);
	if (what == BENEATH_BUSY) {
		pthread_rwlock_unlock(&p->map.lock);
		return V_BUSY_LOOSE;
	}
	if (what == BENEATH_PAGE)
		seen = b.object->source != NULL || chain_seen(b.object, b.index, f->object);
	if (seen && atomic_load_explicit(&b.anon->kind, memory_order_relaxed) == ANON_SWAP)
		return read_beneath(f, &b);
	if (seen && atomic_load_explicit(&b.anon->kind, memory_order_relaxed) == ANON_ZIP)
		return unzip_beneath(f, &b);
	f->leaf = leaf_for(p, f->object, f->index, &denied);
	if (f->leaf == NULL || leaf_anon(f->leaf, f->at) != NULL ||
	    (f->leaf->slot[f->at] == SLOT_BASE) != hidden) {
		const bool repeat = f->leaf != NULL;

		if (repeat)
			pthread_mutex_unlock(&f->leaf->lock);
		pthread_rwlock_unlock(&p->map.lock);
		if (what == BENEATH_PAGE)
			page_unbusy(p, b.anon, f->shard, 0);
		if (!repeat)
			pager_starved(p, METADATA_STEP);
		return repeat ? V_REPEAT : V_ROOM;
	}
	if (what == BENEATH_ZEROS)
		return fault_zero(f);
	if (what == BENEATH_SOURCE)
		return fault_source(f, b.object, b.index);
	if (!seen)
		return take_over(f, &b);
	if (anon_in_core(b.anon))
		return copy_up(f, &b);
	/* Lost: for each who sees it. */
	lost = lost_anon(p, f->leaf, f->at);
	pthread_mutex_unlock(&f->leaf->lock);
	pthread_rwlock_unlock(&p->map.lock);
	page_unbusy(p, b.anon, f->shard, 0);
	if (lost == NULL) {
		pager_starved(p, METADATA_STEP);
		return V_ROOM;
	}
	return verdict_lost(f, lost);
}

/*
 * The page may be poisoned for want of metadata, which there is now: nothing was lost.  Who touches it does not come here, but
 * a message that came twice does, who asks for it, and who touches it in a place of a pool that was made later.
 * => map and leaf are locked, and nothing is there.  False: not now.
 */
static inline bool
unrecord(struct fault *f)
{
	struct pager *p = f->p;

	if (!atomic_load(entry_unrecorded(f->entry)))
		return true;
	return p->pmap->ops->discard(p->pmap, f->shard, f->va, 1) == 0;
}

/* True if it is about to be brought in: also what came up from a backing object that is no more.  => busy */
static bool
is_out(struct pager *p, const struct anon *an)
{
	if (anon_in_core(an))
		return page_at(&p->pages, an->loc)->state != PAGE_MAPPED;
	return atomic_load_explicit(&an->kind, memory_order_relaxed) != ANON_LOST;
}

/* => map and leaf are locked; both are unlocked on return. */
static enum verdict
met_busy(struct fault *f, struct anon *an)
{
	struct pager *p = f->p;
	bool loose = f->object->loose;
	struct ra_stream *stream = NULL;
	bool asked;
	int q = -1;

	/* A stream that has caught up with what is read for it. */
	if (!f->asked && !f->wp)
		stream = readahead_hit(p, f->entry, f->index);
	if (stream != NULL) {
		readahead_done(stream, f->index, 0);
		go_ahead(f, stream);
	}
	/* A page of a source's own is released by its anon, address or not; a thread of ours needs no wake-up by address. */
	if (f->s->worker && (!loose || f->object->source != NULL) && p->idle == NULL) {
		q = anon_sleep_begin(&p->waitqs, an);
		asked = q >= 0;
		loose = false;
	} else {
		const uint8_t bits = anon_want(an);

		asked = bits != 0;
		loose |= (bits & ANON_LOOSE) != 0;
	}
	pthread_mutex_unlock(&f->leaf->lock);
	pthread_rwlock_unlock(&p->map.lock);
	if (!asked)
		return V_REPEAT;
	if (loose)
		return V_BUSY_LOOSE;
	f->waitq = q;
	return V_BUSY;
}

/* True, and somebody is told, if the account may not have more. */
static bool
over_quota(struct pager *p, struct account *a)
{
	for (; a != NULL; a = a->group) {
		if (account_is_full(p, a)) {
			atomic_store(&a->over, true);
			return true;
		}
	}
	return false;
}

static void
p_over(struct pager *p)
{
	if (p->over != NULL)
		p->over(p->over_ctx);
}

static WHO_TELLS void
no_metadata(const struct fault *f)
{
	struct who w;

	log_line_about(&f->p->log, &w.about, UP_LOG_ERROR,
		       "fault at %s: overcommitted, and no metadata left within the limit; SIGBUS",
		       who_at(f->p, f->space, f->addr, &w));
}

/* Steps 1 to 4. */
static enum verdict
fault_resolve(struct fault *f)
{
	struct pager *p = f->p;
	struct map_entry *e = f->known;
	struct place place;
	struct anon *an;
	bool denied;

	f->known = NULL;
	if (e == NULL) {
		pthread_rwlock_rdlock(&p->map.lock);
		e = space_lookup(p, f->space, f->addr);
	}
	if (e == NULL) {
		pthread_rwlock_unlock(&p->map.lock);
		return V_STRAY;
	}
	f->entry = e;
	f->serial = e->serial;
	f->object = e->object;
	f->index = e->offset + ((f->addr - e->start) >> PAGE_SHIFT);
	place = entry_place(e, f->addr);
	f->va = place.va;
	f->shard = place.shard;
	if (space_frozen(p, f->space)) {
		const bool all = (p->frozen & ALL_FROZEN) != 0;

		pthread_rwlock_unlock(&p->map.lock);
		return all ? V_AGAIN : V_FROZEN;
	}
	if (f->object->account != NULL && !f->wp && over_quota(p, f->object->account)) {
		pthread_rwlock_unlock(&p->map.lock);
		return V_QUOTA;
	}
	f->leaf = object_leaf(f->object, f->index, NULL);
	if (f->leaf == NULL)
		f->leaf = leaf_for(p, f->object, f->index, &denied);
	if (f->leaf == NULL) {
		int r = -EAGAIN;

		/* Not even the metadata to remember it: the entry does, and may not change till it is done. */
		if (denied && !f->asked) {
			atomic_store(entry_unrecorded(e), true);
			r = fault_sigbus(f->s, f->space, f->addr, f->shard, f->va);
		}
		pthread_rwlock_unlock(&p->map.lock);
		if (denied && f->asked)
			return V_FULL;
		if (denied) {
			no_metadata(f);
			return r == 0 ? V_SIGBUS : V_AGAIN;
		}
		pager_starved(p, METADATA_STEP);
		return V_ROOM;
	}
	f->at = (unsigned)(f->index - f->leaf->base);
	f->run_max = (unsigned)MIN((e->end - f->addr) >> PAGE_SHIFT, LEAF_SLOTS - f->at);

	an = leaf_anon(f->leaf, f->at);
	if (an == NULL && !unrecord(f)) {
		pthread_mutex_unlock(&f->leaf->lock);
		pthread_rwlock_unlock(&p->map.lock);
		return V_AGAIN;
	}
	if (an == NULL && f->object->source != NULL)
		return fault_source(f, f->object, f->index);
	if (an == NULL)
		return f->object->backing != NULL ? fault_beneath(f) : fault_zero(f);
	if (!anon_trybusy(an))
		return met_busy(f, an);
	if (is_out(p, an) && !unrecord(f)) {
		pthread_mutex_unlock(&f->leaf->lock);
		pthread_rwlock_unlock(&p->map.lock);
		page_unbusy(p, an, f->shard, f->va);
		return V_AGAIN;
	}
	return fault_anon(f, an);
}

static void
park(struct service *s, const struct fault *f)
{
	/*
	 * One place an address: its wake-up is for all who wait there.  A thread with a signal pending that
	 * faults inside a system call comes again and again until the page is there.
	 */
	for (unsigned i = 0; i < s->nparked; i++) {
		struct parked *pk = &s->parked[i];

		if (pk->va == f->addr && pk->space == f->space && pk->serial == f->serial) {
			pk->write |= f->write;
			pk->wp &= f->wp;
			return;
		}
	}
	if (s->nparked == PARKED_MAX) {
		s->parked_overflow = true;
		return;
	}
	s->parked[s->nparked++] = (struct parked){
		.va = f->addr,
		.space = f->space,
		.t0 = f->t0,
		.serial = f->serial,
		.write = f->write,
		.wp = f->wp,
	};
	atomic_store_explicit(&s->waiting, s->nparked, memory_order_relaxed);
}

/* The steps, again and again until their verdict is another than that. */
static enum verdict
resolve(struct fault *f)
{
	for (;;) {
		enum verdict v;

		f->serial = 0;
		v = fault_resolve(f);
		if (v == V_GROW && !f->grown) {
			/* What grows is kept: the next look finds it. */
			f->grown = true;
			if (resv_take(&f->p->resv_swap, 1) == 0)
				resv_give(&f->p->resv_swap, 1);
			continue;
		}
		if (v == V_HINT)
			continue;
		if (v != V_REPEAT)
			return v;
		count(f->s, C_RETRY, 1);
	}
}

static void
handle(struct service *s, unsigned space, uintptr_t va, bool write, bool wp, uint64_t t0,
       bool first)
{
	struct fault f;
	enum verdict v;

	fault_begin(&f, s, space, va, write, t0);
	f.wp = wp;
	s->space = space;
	s->addr = va;
	v = resolve(&f);
	s->space = 0;
	switch (v) {
	case V_REPEAT:
	case V_HINT:
	case V_GROW:
	case V_FULL:
	case V_DONE:
	case V_SIGBUS:
	case V_IO:
		break;
	case V_BUSY:
	case V_FROZEN:
		count(s, C_WAIT, 1);
		tally_deferred(s->p, space);
		trace_fault(s, space, TRACE_FAULT_WAIT, va, t0, 0);
		break;
	case V_BUSY_LOOSE:
	case V_ROOM:
		count(s, C_WAIT, first); /* however often it is tried again */
		if (first)
			tally_deferred(s->p, space);
		trace_fault(s, space, TRACE_FAULT_WAIT, va, t0, 1);
		park(s, &f);
		break;
	case V_AGAIN:
		count(s, C_RETRY, 1);
		tally_again(s->p, space);
		trace_fault(s, space, TRACE_FAULT_RETRY, va, t0, 0);
		park(s, &f);
		break;
	case V_QUOTA:
		/* Not parked: what is makes room at others' cost.  Whoever reduces the account wakes all that it has. */
		count(s, C_WAIT, 1);
		tally_deferred(s->p, space);
		trace_fault(s, space, TRACE_FAULT_WAIT, va, t0, 2);
		p_over(s->p);
		break;
	case V_STRAY:
		/* Unmapping wakes the range at its end; should it not come to that, we look again. */
		count(s, C_STRAY, 1);
		park(s, &f);
		break;
	case V_ASK:
		assert(!"a service does not ask");
		break;
	}
}

PROBE_ONCE void
fault_handle(struct service *s, unsigned space, uintptr_t va, bool write, bool wp, uint64_t t0)
{
	PROBE3(fault__start, va, write, s->id);
	handle(s, space, va, write, wp, t0, true);
}

void
fault_again(struct service *s, unsigned shard, uintptr_t va, uint64_t t0)
{
	/* Whoever serves itself faults anew.  Of a page of a pool we do not know who waits where: all of them fault anew. */
	if (s->worker)
		return;
	if (shard == PMAP_POOL)
		s->p->pmap->ops->wake(s->p->pmap, shard, va, 1);
	else
		fault_handle(s, shard, va, false, false, t0);
}

enum fault_next
fault_serve(struct service *s, struct parked *pk, struct map_entry *e, int *waitq)
{
	const bool first = pk->serial == 0;
	struct fault f;
	enum verdict v;

	fault_begin(&f, s, pk->space, pk->va, pk->write, pk->t0);
	f.known = e;
	v = resolve(&f);
	pk->serial = f.serial;
	pk->hurry = f.hurry;
	pk->busy = f.back;
	pk->t0 = f.t0; /* it may wait for something that takes its time */
	switch (v) {
	case V_DONE:
	case V_IO:
		return FAULT_SERVED;
	case V_BUSY:
		count(s, C_WAIT, 1);
		trace_add(&s->trace, pk->t0, TRACE_FAULT_WAIT, pk->va, 0);
		*waitq = f.waitq;
		return FAULT_BUSY;
	case V_SIGBUS:
		return FAULT_LOST;
	case V_BUSY_LOOSE:
		count(s, C_WAIT, first);
		return FAULT_LATER;
	case V_ROOM:
		count(s, C_WAIT, first);
		trace_add(&s->trace, pk->t0, TRACE_FAULT_WAIT, pk->va, 1);
		return FAULT_ROOM;
	case V_AGAIN:
		count(s, C_RETRY, 1);
		trace_add(&s->trace, pk->t0, TRACE_FAULT_RETRY, pk->va, 0);
		return FAULT_LATER;
	case V_QUOTA:
		p_over(s->p);
		return FAULT_LATER;
	case V_ASK:
		return FAULT_ASK;
	case V_STRAY:
		return FAULT_STRAY;
	default:
		assert(!"no verdict on a worker's own fault");
		return FAULT_LATER;
	}
}

int
fault_ask(struct service *s, uintptr_t va, bool write, unsigned n)
{
	struct fault f;

	fault_begin(&f, s, s->id, va, write, now_ns());
	f.asked = true;
	f.ahead = n;
	switch (resolve(&f)) {
	case V_ROOM:
	case V_AGAIN:
	case V_QUOTA:
		return -EAGAIN;
	case V_BUSY_LOOSE:
		/* Busy further down the chain perhaps, where looking at the page itself does not tell. */
		return -EBUSY;
	case V_FULL:
		return -ENOSPC;
	case V_SIGBUS:
		return -EIO;
	default:
		return 0;
	}
}

bool
fault_early(struct service *s, uintptr_t va, unsigned n, unsigned *got)
{
	struct fault f;
	enum verdict v;

	fault_begin(&f, s, s->id, va, false, now_ns());
	f.asked = f.early = true;
	f.ahead = n;
	v = resolve(&f);
	*got = MAX(f.got, 1);
	return v != V_ROOM && v != V_AGAIN && v != V_QUOTA;
}

static void
wake_space_locked(struct pager *p, const struct space *sp)
{
	for (const struct map_entry *e = sp->map.first; e != NULL; e = e->next)
		p->pmap->ops->wake(p->pmap, e->shard, e->start, (e->end - e->start) >> PAGE_SHIFT);
}

void
wake_space(struct pager *p, const struct space *sp)
{
	pthread_rwlock_rdlock(&p->map.lock);
	wake_space_locked(p, sp);
	pthread_rwlock_unlock(&p->map.lock);
}

/* Faults were dropped for want of a place to park them: everyone faults again. */
static void
wake_all(struct service *s)
{
	struct pager *p = s->p;

	pthread_rwlock_rdlock(&p->map.lock);
	for (struct map_entry *e = map_first_from(&p->map, 0); e != NULL; e = e->next) {
		if (e->shard == s->id)
			p->pmap->ops->wake(p->pmap, e->shard, e->start,
					   (e->end - e->start) >> PAGE_SHIFT);
	}
	for (const struct space *sp = p->spaces; sp != NULL; sp = sp->next)
		wake_space_locked(p, sp);
	pthread_rwlock_unlock(&p->map.lock);
}

/*
 * The anon of an address, made LOST if there is none; NULL if it is busy, or there is no room for one; *told: in which case whoever waits has been told, if
 * there never was anything.
 */
static struct anon *
anon_to_lose(struct service *s, const struct parked *pk, struct leaf **leaf, struct place *place,
	     bool *told)
{
	struct pager *p = s->p;
	struct map_entry *e;
	struct anon *an = NULL;
	uint64_t index;
	unsigned at;
	bool denied;

	*leaf = NULL;
	*told = false;
	pthread_rwlock_rdlock(&p->map.lock);
	e = space_lookup(p, pk->space, pk->va);
	if (e != NULL && !space_frozen(p, pk->space)) {
		index = e->offset + ((pk->va - e->start) >> PAGE_SHIFT);
		*place = entry_place(e, pk->va);
		*leaf = leaf_for(p, e->object, index, &denied);
		if (*leaf != NULL) {
			at = (unsigned)(index - (*leaf)->base);
			an = leaf_anon(*leaf, at);
			if (an == NULL)
				an = lost_anon(p, *leaf, at);
			else if (!anon_trybusy(an))
				an = NULL;
			pthread_mutex_unlock(&(*leaf)->lock);
		} else {
			/* Not even the metadata to remember it: there is nothing there, and the entry does. */
			atomic_store(entry_unrecorded(e), true);
			*told = fault_sigbus(s, pk->space, pk->va, place->shard, place->va) == 0;
		}
	}
	pthread_rwlock_unlock(&p->map.lock);
	return an;
}

/* True if what the fault was for is still mapped there. */
static bool
same_mapping(struct pager *p, const struct parked *pk, bool *any)
{
	const struct map_entry *e;
	bool same;

	pthread_rwlock_rdlock(&p->map.lock);
	e = space_lookup(p, pk->space, pk->va);
	*any = e != NULL;
	same = e != NULL && e->serial == pk->serial;
	pthread_rwlock_unlock(&p->map.lock);
	return same;
}

/* True if it has waited too long.  How long a clone has kept everybody waiting does not count. */
static bool
too_long(struct pager *p, const struct parked *pk, uint64_t now)
{
	const uint64_t since = MAX(pk->t0, atomic_load(&p->thawed));

	return now > since && now - since > p->fault_timeout;
}

/*
 * Nobody can serve a fault: its page is lost, whatever it held; or, if `empty`, only if there has never been anything.
 * False if that can not be done, now.
 */
static WHO_TELLS bool
lose(struct service *s, const struct parked *pk, bool empty, const char *why)
{
	struct pager *p = s->p;
	struct place place = { 0 };
	struct leaf *leaf;
	bool told;
	struct anon *an = anon_to_lose(s, pk, &leaf, &place, &told);
	struct who w;
	int r;

	if (told)
		log_line_about(&p->log, &w.about, UP_LOG_ERROR, "fault at %s%s",
			       who_at(p, pk->space, pk->va, &w), why);
	if (an == NULL)
		return told;
	if (anon_in_core(an) && page_at(&p->pages, an->loc)->state == PAGE_MAPPED) {
		/* It came back after all. */
		p->pmap->ops->wake(p->pmap, place.shard, place.va, 1);
		page_unbusy(p, an, place.shard, place.va);
		return true;
	}
	if (empty && atomic_load_explicit(&an->kind, memory_order_relaxed) != ANON_LOST) {
		/* Somebody has brought it in: for what there is nothing has to be promised. */
		page_unbusy(p, an, place.shard, place.va);
		return false;
	}
	if (leaf->sourced && anon_in_core(an) &&
	    page_at(&p->pages, an->loc)->state == PAGE_LAUNDRY) {
		/* It is on its way to its source: nothing is lost, and none older may be read before it is there. */
		page_unbusy(p, an, place.shard, place.va);
		return false;
	}
	if (atomic_load_explicit(&an->kind, memory_order_relaxed) != ANON_LOST) {
		release_content(p, an);
		if (leaf->noreserve)
			resv_give(&p->resv_swap, 1);
		anon_set(an, ANON_LOST, UINT32_MAX);
		atomic_fetch_add(&p->nlost, 1);
	}
	log_line_about(&p->log, &w.about, UP_LOG_ERROR, "fault at %s%s",
		       who_at(p, pk->space, pk->va, &w), why);
	r = fault_sigbus(s, pk->space, pk->va, place.shard, place.va);
	page_unbusy(p, an, place.shard, place.va);
	return r == 0;
}

/*
 * Nothing is mapped where a thread waits, and no call of ours or the program's is under way that would explain it: the program
 * has made a region longer itself.  True if it was told.
 */
static bool
told_stray(struct service *s, uintptr_t va)
{
	struct pager *p = s->p;
	bool stray;

	/* The only time that a service thread takes this lock, and it never waits for it. */
	if (p->foreign == NULL || pthread_mutex_trylock(&p->map.change) != 0)
		return false;
	stray = p->pmap->ops->settled(p->pmap, s->id, p->pmap->ops->token(p->pmap)) &&
		!foreign_waiting(p->foreign) && map_lookup(&p->map, va) == NULL &&
		fault_sigbus(s, s->id, va, s->id, va) == 0;
	pthread_mutex_unlock(&p->map.change);
	return stray;
}

/* A fault has waited too long. */
static bool
time_out(struct service *s, const struct parked *pk, uint64_t now)
{
	char why[128];

	snprintf(why, sizeof why,
		 " not served for %u ms: no frame could be freed; SIGBUS, content lost",
		 (unsigned)((now - pk->t0) / 1000000));
	return lose(s, pk, false, why);
}

bool
fault_full(struct service *s, const struct parked *pk)
{
	bool any;

	if (!same_mapping(s->p, pk, &any))
		return false;
	if (lose(s, pk, true, ": overcommitted, and the swap is full; SIGBUS"))
		return true;
	pager_starved(s->p, METADATA_STEP); /* to remember that takes some, too */
	return false;
}

bool
fault_time_out(struct service *s, const struct parked *pk)
{
	const uint64_t now = now_ns();
	bool any;

	return too_long(s->p, pk, now) && same_mapping(s->p, pk, &any) && time_out(s, pk, now);
}

void
fault_unpark(struct service *s)
{
	struct pager *p = s->p;
	const unsigned n = s->nparked;
	const uint64_t now = now_ns();

	/* Those that must wait on are parked again, in front of what has not been tried yet. */
	s->nparked = 0;
	for (unsigned i = 0; i < n; i++) {
		const struct parked pk = s->parked[i];
		bool any;
		const bool same = same_mapping(p, &pk, &any);

		if (!any && pk.space < p->nservices && told_stray(s, pk.va))
			continue;
		if (!same) {
			/* Unmapped, or another mapping by now: whoever waits there faults anew. */
			p->pmap->ops->wake(p->pmap, pk.space, pk.va, 1);
		} else if (!too_long(p, &pk, now) || !time_out(s, &pk, now)) {
			handle(s, pk.space, pk.va, pk.write, pk.wp, pk.t0, false);
		}
	}
	atomic_store_explicit(&s->waiting, s->nparked, memory_order_relaxed);
	if (s->parked_overflow && s->nparked < PARKED_MAX / 2) {
		s->parked_overflow = false;
		wake_all(s);
	}
	s->parked_look = now;
}
