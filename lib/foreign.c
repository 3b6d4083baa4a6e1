/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * foreign.c: munmap(), mremap() and madvise() that the program calls on regions itself.
 *
 *	program's thread       service of the shard            keeper, or the next call of the library
 *	munmap(part)
 *	  waits  ------------>  takes the message: from here
 *	  returns <-----------  on it stands in pmap's list,
 *	                        and nobody installs there
 *	                        foreign_call() --------------->  map.change: clip entries, free what they held
 *	                                                         event_done(); parked faults are tried again
 *
 * Service threads can not do it themselves: it takes map.change, waits for busy pages, and makes calls that wait for service
 * threads.  So there is one thread more, the keeper; and every call that takes map.change begins with the same work, so
 * that it finds the map as its caller left it.  That is also why no call touches memory of the program while it holds
 * map.change: a fault there may have to wait for the keeper.
 *
 * Order.  Events are acted upon in the order in which they were taken, which for the calls of one thread, and of threads that
 * wait for each other, is the order of the calls.  But the addresses of what has been unmapped are free before the message about
 * that is written: another thread may get them, and use them, while we still believe in what was there.  And a munmap() may be about
 * more than what was mapped.  So an UNMAP can come behind the beginning of what is mapped there next.  (Nothing else can: who
 * does something to that has seen it begin.)  Hence nothing begins before all that happened until then has been told:
 *
 *	up_map() and the like	the kernel has given the addresses; then wait until no event is waiting to be taken (settled()), and
 *				act upon all; only then is there an entry
 *	REMAP to a place	taken; then wait for the same, in all shards.  What is still in the way there has ended.  UNMAPs behind it in
 *				the list may be about the place before or after: the kernel knows whether there is a region now.
 *				If what was in the way may itself have been moved away, it can not be told which of the two
 *				went along: what both held is lost, loudly.
 *
 * The page tables are in nobody's hands meanwhile: as long as an event waits the kernel refuses to install or to move pages, and where
 * one stands pmap does.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>

#include "pager/source.h"
#include "runtime.h"

#define KEEPER_STACK ((size_t)256 << 10)
#define SETTLE_TRIES 5000 /* ms that a call waits for what the program did before to be told */
#define CLEAR_TRIES 20 /* the same, of one that can not work off what stands; it is tried again */
#define DRAIN_MS 10

static struct pmap *
pmap_of(const struct foreign *f)
{
	return f->p->pmap;
}

bool
foreign_waiting(struct foreign *f)
{
	struct pmap_event ev;

	return pmap_of(f)->ops->event(pmap_of(f), 0, &ev);
}

static bool
overlaps(uintptr_t a, uintptr_t aend, uintptr_t b, uintptr_t bend)
{
	return a < bend && b < aend;
}

/* --- ends of entries --- */

static bool
concerns(const struct map_entry *e, unsigned shard, uintptr_t start, uintptr_t end)
{
	return e->shard == shard && overlaps(e->start, e->end, start, end);
}

/* The entries of a range, clipped, out of the map.  False: no room to clip, now. */
static bool
take(struct pager *p, unsigned shard, uintptr_t start, uintptr_t end, struct map_entry **taken)
{
	struct map_entry *spare[2], **tail = taken, *e, *next;

	*taken = NULL;
	for (e = map_first_from(&p->map, start); e != NULL && e->start < end; e = e->next) {
		if (concerns(e, shard, start, end))
			break;
	}
	if (e == NULL || e->start >= end)
		return true;
	if (spare_alloc(p, &p->map, start, end, spare) < 0)
		return false;
	pthread_rwlock_wrlock(&p->map.lock);
	map_clip(&p->map, start, end, spare);
	for (e = map_first_from(&p->map, start); e != NULL && e->start < end; e = next) {
		next = e->next;
		if (!concerns(e, shard, start, end))
			continue;
		map_remove(&p->map, e);
		e->next = NULL;
		*tail = e;
		tail = &e->next;
	}
	pthread_rwlock_unlock(&p->map.lock);
	spare_free(p, spare);
	return true;
}

static void
report_lost(struct pager *p, const char *call, uintptr_t start, uintptr_t end)
{
	if (p->taken > 0)
		log_line(
			&p->log, UP_LOG_WARNING,
			"%s behind the library's back at %#lx-%#lx: %zu pages of a shared mapping were "
			"in the page table; what had changed in them is lost",
			call, (unsigned long)start, (unsigned long)end, p->taken);
	p->taken = 0;
}

/* Entries that the program has unmapped: let go of what they held. */
static void
bury(struct pager *p, const char *call, struct map_entry *taken)
{
	struct map_entry *e;

	while ((e = taken) != NULL) {
		const uintptr_t start = e->start, end = e->end;
		const bool named = e->object->source != NULL;

		taken = e->next;
		e->next = NULL;
		e->gone = true;
		p->taken = 0;
		p->losing = !named && atomic_load(&e->object->handles) > 0;
		p->taking = true;
		entry_destroy(p, e);
		p->taking = false;
		if (p->losing && p->taken > 0)
			log_line(
				&p->log, UP_LOG_ERROR,
				"%s behind the library's back at %#lx-%#lx: %zu pages of a shared object "
				"were in the page table, and are lost",
				call, (unsigned long)start, (unsigned long)end, p->taken);
		else if (named)
			report_lost(p, call, start, end);
		p->losing = false;
		p->taken = 0;
	}
}

/* False: not now. */
static bool
end_entries(struct pager *p, const char *call, unsigned shard, uintptr_t start, uintptr_t end)
{
	struct map_entry *taken;

	if (!take(p, shard, start, end, &taken))
		return false;
	bury(p, call, taken);
	return true;
}

/* --- madvise() --- */

/* Does madvise(MADV_DONTNEED) forget what is in memory, or only empty the page table?  Pools do not ask for events. */
static bool
discards(const struct map_entry *e)
{
	return e->object->pool == 0 && e->wired == 0;
}

/*
 * [start, end) of an entry reads as before it was touched.  The pages may still be in the page table, or go at any time.
 * False: no room to remember that.
 */
static bool
discard(struct pager *p, struct map_entry *e, uintptr_t start, uintptr_t end)
{
	const uint64_t first = e->offset + ((start - e->start) >> PAGE_SHIFT);
	const uint64_t n = (end - start) >> PAGE_SHIFT;
	int r;

	p->taken = 0;
	if (e->object->source != NULL) {
		r = range_give_back(p, e->object, first, n, start, e->shard, false);
		if (r < 0)
			log_line(&p->log, UP_LOG_ERROR,
				 "madvise() behind the library's back at %#lx: writing back to the "
				 "%s pager: %s; kept in memory",
				 (unsigned long)start, e->object->source->ops->name,
				 strerrorname_np(-r));
		report_lost(p, "madvise()", start, end);
	} else if (chain_hide(p, e->object, first, n) < 0) {
		return false;
	} else {
		range_free(p, e->object, first, n, start, e->shard, false);
	}
	if (atomic_load(&e->unrecorded))
		range_discard(p, e->shard, start, n);
	return true;
}

/* Old content must not come back, and there is no room to remember that for a part: no page of the range comes back any more. */
static bool
close_off(struct pager *p, const struct map_entry *e, uintptr_t start, uintptr_t end)
{
	const unsigned shard = e->shard;

	log_line(
		&p->log, UP_LOG_ERROR,
		"%#lx-%#lx can not be accessed any more: it was discarded by madvise(), and there is no "
		"room to remember that; SIGBUS",
		(unsigned long)start, (unsigned long)end);
	if (!end_entries(p, "madvise()", shard, start, end))
		return false;
	range_discard(p, shard, start, (end - start) >> PAGE_SHIFT);
	return true;
}

static bool
act_remove(struct pager *p, const struct pmap_event *ev)
{
	const uintptr_t end = ev->va + ev->len;
	struct map_entry *e = map_first_from(&p->map, ev->va), *next;

	/* What is wired keeps its pages: they are in the page table, or will be, with zeros, when they are touched next. */
	for (; e != NULL && e->start < end; e = next) {
		const uintptr_t from = MAX(e->start, ev->va), to = MIN(e->end, end);

		next = e->next;
		if (!concerns(e, ev->shard, ev->va, end) || !discards(e) || discard(p, e, from, to))
			continue;
		if (!close_off(p, e, from, to))
			return false;
		next = map_first_from(&p->map, to);
	}
	return true;
}

/* --- mremap() --- */

/* A part of an UNMAP, behind a REMAP, that is about what was there before that. */
struct stale {
	struct pmap_event ev;
	uintptr_t start, end;
};

enum then { THEN_NOTHING, THEN_FROM, THEN_TO };

/* What the first REMAP behind `after` to or from a page does; *end: it is the same up to there, at most.  *number: its. */
static enum then
moved_then(struct foreign *f, uint64_t after, unsigned shard, uintptr_t va, uintptr_t *end,
	   uint64_t *number)
{
	struct pmap *pm = pmap_of(f);
	struct pmap_event ev = { .number = after };
	enum then then = THEN_NOTHING;

	while (pm->ops->event(pm, ev.number, &ev)) {
		const uintptr_t edge[] = { ev.va, ev.va + ev.len, ev.to, ev.to + ev.len };

		if (ev.kind != PMAP_REMAP)
			continue;
		for (size_t i = 0; i < ARRAY_SIZE(edge); i++) {
			if (edge[i] > va)
				*end = MIN(*end, edge[i]);
		}
		if (then != THEN_NOTHING)
			continue;
		if (ev.shard == shard && va >= ev.va && va < ev.va + ev.len)
			then = THEN_FROM;
		else if (va >= ev.to && va < ev.to + ev.len)
			then = THEN_TO;
		*number = ev.number;
	}
	return then;
}

/* The number of the last event, or `after`. */
static uint64_t
newest(struct foreign *f, uint64_t after)
{
	struct pmap *pm = pmap_of(f);
	struct pmap_event ev = { .number = after };

	while (pm->ops->event(pm, ev.number, &ev))
		after = ev.number;
	return after;
}

/*
 * Is the UNMAP `ev` at page va about what was there before `remap`?  *end: up to where that is so.  1, 0, or -EAGAIN.
 * If the page was moved on after that, it had not ended.  If something else was moved there, it had, or is in its way.
 * Else the kernel tells what has become of it.
 */
static int
is_stale(struct foreign *f, const struct pmap_event *remap, const struct pmap_event *ev,
	 uintptr_t va, uintptr_t *end)
{
	struct pmap *pm = pmap_of(f);
	uint64_t number = 0, last = newest(f, remap->number);
	int r;

	switch (moved_then(f, remap->number, remap->shard, va, end, &number)) {
	case THEN_FROM:
		return ev->number < number;
	case THEN_TO:
		return 0;
	default:
		break;
	}
	r = pm->ops->registered(pm, remap->shard, va, (*end - va) >> PAGE_SHIFT);
	if (r == 0 && *end - va > PAGE_SIZE) {
		*end = va + PAGE_SIZE;
		r = pm->ops->registered(pm, remap->shard, va, 1);
	}
	/* If it is gone, and something has been told meanwhile: it may have been moved on. */
	return r == 0 && newest(f, last) != last ? -EAGAIN : r;
}

/* The first such part.  1, 0, or -EAGAIN. */
static int
find_stale(struct foreign *f, const struct pmap_event *remap, struct stale *st)
{
	struct pmap *pm = pmap_of(f);

	st->ev.number = remap->number;
	while (pm->ops->event(pm, st->ev.number, &st->ev)) {
		const uintptr_t stop = MIN(st->ev.va + st->ev.len, remap->to + remap->len);

		if (st->ev.kind != PMAP_UNMAP || st->ev.shard != remap->shard)
			continue;
		for (st->start = MAX(st->ev.va, remap->to); st->start < stop; st->start = st->end) {
			int r;

			st->end = stop;
			r = is_stale(f, remap, &st->ev, st->start, &st->end);
			if (r != 0)
				return r;
		}
	}
	return 0;
}

/* False: not now. */
static bool
forget_stale(struct foreign *f, const struct pmap_event *remap)
{
	struct pmap *pm = pmap_of(f);
	struct stale st;
	int r;

	while ((r = find_stale(f, remap, &st)) > 0) {
		if (!pm->ops->event_clip(pm, &st.ev, st.start, st.end))
			return false;
	}
	return r == 0;
}

/* What is still in our books where something has been moved to. */
static struct map_entry *
in_the_way(struct pager *p, const struct pmap_event *ev)
{
	struct map_entry *e = map_first_from(&p->map, ev->to);

	return e != NULL && e->start < ev->to + ev->len ? e : NULL;
}

/* May a REMAP behind this one have taken it away? */
static bool
moved_later(struct foreign *f, const struct pmap_event *remap, const struct map_entry *e)
{
	const uintptr_t start = MAX(e->start, remap->to), end = MIN(e->end, remap->to + remap->len);
	struct pmap *pm = pmap_of(f);
	struct pmap_event ev = *remap;

	while (pm->ops->event(pm, ev.number, &ev)) {
		if (ev.kind == PMAP_REMAP && ev.shard == e->shard &&
		    overlaps(ev.va, ev.va + ev.len, start, end))
			return true;
	}
	return false;
}

/* Who moved what can not be told: what was there goes, and what has been moved there.  Touching it is SIGBUS from now on. */
static bool
lose_moved(struct foreign *f, const struct pmap_event *ev)
{
	struct pager *p = f->p;
	struct map_entry *e;

	while ((e = in_the_way(p, ev)) != NULL) {
		if (!end_entries(p, "mremap()", e->shard, ev->to, ev->to + ev->len))
			return false;
	}
	if (!end_entries(p, "mremap()", ev->shard, ev->va, ev->va + ev->len))
		return false;
	log_line(
		&p->log, UP_LOG_ERROR,
		"mremap() behind the library's back to %#lx-%#lx, while other threads moved other regions "
		"from and to the same addresses: content lost, SIGBUS",
		(unsigned long)ev->to, (unsigned long)(ev->to + ev->len));
	range_discard(p, ev->shard, ev->to, ev->len >> PAGE_SHIFT);
	return true;
}

/* Everything that had happened when this event was taken is in the list, of all shards. */
static bool
all_settled(struct foreign *f, const struct pmap_event *ev)
{
	struct pmap *pm = pmap_of(f);

	for (unsigned i = 0; i < f->p->nservices; i++) {
		if (!pm->ops->settled(pm, i, ev->token))
			return false;
	}
	return true;
}

static bool
act_remap(struct foreign *f, const struct pmap_event *ev)
{
	struct pager *p = f->p;
	struct map_entry *taken, *e;
	uint64_t serial;
	int r;

	if (!all_settled(f, ev))
		return false;
	for (e = in_the_way(p, ev); e != NULL && e->start < ev->to + ev->len; e = e->next) {
		if (moved_later(f, ev, e))
			return lose_moved(f, ev);
	}
	if (!forget_stale(f, ev))
		return false;
	while ((e = in_the_way(p, ev)) != NULL) {
		if (!end_entries(p, "munmap()", e->shard, ev->to, ev->to + ev->len))
			return false;
	}
	if (!take(p, ev->shard, ev->va, ev->va + ev->len, &taken))
		return false;
	serial = ++p->next_serial;
	while ((e = taken) != NULL) {
		const uintptr_t from = e->start, to = ev->to + (from - ev->va);
		const size_t len = e->end - from;

		taken = e->next;
		e->next = NULL;
		range_readdress(p, e->object, e->offset, len >> PAGE_SHIFT, to, e->shard);
		e->start = to;
		e->end = to + len;
		e->serial = serial;
		pthread_rwlock_wrlock(&p->map.lock);
		r = map_insert(&p->map, e);
		pthread_rwlock_unlock(&p->map.lock);
		assert(r == 0); /* looked at above */
		(void)r;
	}
	return true;
}

static bool
act(struct foreign *f, const struct pmap_event *ev)
{
	switch (ev->kind) {
	case PMAP_REMOVE:
		return act_remove(f->p, ev);
	case PMAP_UNMAP:
		return end_entries(f->p, "munmap()", ev->shard, ev->va, ev->va + ev->len);
	default:
		return act_remap(f, ev);
	}
}

/* --- all of them --- */

bool
foreign_work(struct foreign *f)
{
	struct pager *p = f->p;
	struct pmap *pm = p->pmap;
	struct pmap_event ev;
	bool any = false, ok = true;

	f->acting = true;
	while (pm->ops->event(pm, 0, &ev)) {
		ok = act(f, &ev);
		if (!ok)
			break;
		any = true;
		pm->ops->event_done(pm, &ev);
		atomic_fetch_add_explicit(&f->events, 1, memory_order_relaxed);
		pm->ops->wake(pm, ev.shard, ev.va, ev.len >> PAGE_SHIFT);
		if (ev.kind == PMAP_REMAP)
			pm->ops->wake(pm, ev.shard, ev.to, ev.len >> PAGE_SHIFT);
	}
	f->acting = false;
	if (any)
		services_kick(p, NULL);
	return ok;
}

void
foreign_begin(struct foreign *f)
{
	struct pager *p = f->p;
	struct pmap_event ev = { 0 };
	uint64_t last;

	if (foreign_work(f))
		return;
	last = newest(f, 0);
	for (unsigned tries = 0; tries < SETTLE_TRIES; tries++) {
		pthread_mutex_unlock(&p->map.change);
		range_doze(p);
		pthread_mutex_lock(&p->map.change);
		if (foreign_work(f) || !p->pmap->ops->event(p->pmap, 0, &ev) || ev.number > last)
			return;
	}
	log_line(
		&p->log, UP_LOG_ERROR,
		"what the program has done to mappings is not known yet: it changes them too fast");
}

/* Is anything in our books where the kernel has just given us addresses? */
static bool
clear(struct foreign *f, uintptr_t va, size_t len)
{
	struct pager *p = f->p;
	const struct map_entry *e = map_first_from(&p->map, va);
	struct pmap_event ev = { 0 };

	if (e != NULL && e->start < va + len)
		return false;
	while (p->pmap->ops->event(p->pmap, ev.number, &ev)) {
		if (overlaps(ev.va, ev.va + ev.len, va, va + len) ||
		    (ev.kind == PMAP_REMAP && overlaps(ev.to, ev.to + ev.len, va, va + len)))
			return false;
	}
	return true;
}

int
foreign_clear(struct foreign *f, uintptr_t va, size_t len, unsigned shard)
{
	struct pmap *pm = pmap_of(f);
	const uint64_t token = pm->ops->token(pm);
	bool settled = pm->ops->settled(pm, shard, token);

	for (unsigned tries = 0; !settled && tries < CLEAR_TRIES; tries++) {
		range_doze(f->p);
		settled = pm->ops->settled(pm, shard, token);
	}
	return settled && clear(f, va, len) ? 0 : -EAGAIN;
}

int
foreign_settle(struct foreign *f, uintptr_t va, size_t len, unsigned shard)
{
	struct pmap *pm = pmap_of(f);
	const uint64_t token = pm->ops->token(pm);

	for (unsigned tries = 0; tries < SETTLE_TRIES; tries++) {
		const bool settled = pm->ops->settled(pm, shard, token);

		foreign_work(f);
		if (settled && clear(f, va, len))
			return 0;
		range_doze(f->p);
	}
	log_line(
		&f->p->log, UP_LOG_ERROR,
		"what was mapped at %#lx before has not been unmapped: the program changes its mappings "
		"too fast",
		(unsigned long)va);
	return -EAGAIN;
}

/* --- the keeper --- */

void
foreign_call(struct foreign *f)
{
	if (!atomic_exchange(&f->called, true))
		sem_post(&f->call);
}

static void
work_off(struct foreign *f)
{
	bool ok = false;

	while (!ok && !atomic_load(&f->draining) && !atomic_load(&f->stop)) {
		pthread_mutex_lock(&f->p->map.change);
		ok = foreign_work(f);
		pthread_mutex_unlock(&f->p->map.change);
		if (!ok)
			range_doze(f->p);
	}
}

static void *
keeper(void *arg)
{
	struct foreign *f = arg;

	while (!atomic_load(&f->stop)) {
		if (atomic_load(&f->draining)) {
			pmap_of(f)->ops->drain(pmap_of(f), DRAIN_MS);
			continue;
		}
		if (sem_wait(&f->call) < 0)
			continue;
		atomic_store(&f->called, false);
		work_off(f);
	}
	return NULL;
}

int
foreign_start(struct foreign *f, struct pager *p, bool thread)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int r = 0;

	f->p = p;
	sem_init(&f->call, 0, 0);
	if (!thread)
		return 0;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, KEEPER_STACK);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&f->keeper, &attr, keeper, f);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	f->keeping = r == 0;
	if (r == 0)
		pthread_setname_np(f->keeper, "uffd-pager-keep");
	else
		sem_destroy(&f->call);
	return -r;
}

void
foreign_drain(struct foreign *f)
{
	atomic_store(&f->draining, true);
	sem_post(&f->call);
}

void
foreign_fini(struct foreign *f)
{
	if (f->keeping) {
		atomic_store(&f->stop, true);
		sem_post(&f->call);
		pthread_join(f->keeper, NULL);
		f->keeping = false;
	}
	sem_destroy(&f->call);
}
