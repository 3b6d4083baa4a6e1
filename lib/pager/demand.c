/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * demand.c: a caller that waits until a range is in the page table.
 *
 *	caller                         service of the range's shard
 *	demand_range() --- list, kick -->  demand_serve(), a part of each turn:
 *	sleeps                               seen      in the page table: on to the next page
 *	                                     not there fault_ask(), as if a thread had touched it
 *	                                     busy      look again when something completes, or in 1 ms
 *	wakes up <------- over -----------   the end of the range, or an error
 *
 * The caller never touches the memory itself.  An instruction, even one that writes without a change (an atomic
 * or of 0), raises SIGSEGV or SIGBUS where the call shall return an error.  A system call that touches (a futex
 * operation, MADV_POPULATE_READ and _WRITE) fails with EFAULT where this process may not have the faults of
 * system calls served.  And either would bring in one page after the other, where the disk can read many at a time.
 *
 * A page that is met in the page table is kept (policy_kept()): what has been seen leaves after everything that has not,
 * so a range that fits is all there in the end.
 */
#include <errno.h>

#include "foreign.h"
#include "pager/pager.h"

#define LOOKS 256		     /* looks in one turn, for all demands */
#define AHEAD_MAX (16 * CLUSTER_MAX) /* pages read ahead of what has been seen */

static bool
allowed(const struct map_entry *e, bool write)
{
	return (e->prot & (write ? PROT_WRITE : PROT_READ | PROT_WRITE)) != 0;
}

/* Pages in the page table, all busy: to the tail of a queue, and released. */
static void
seen(struct pager *p, struct anon *const an[], unsigned n, bool wire, unsigned shard, uintptr_t va)
{
	/* Not even a system call of a thread that serves itself may find one guarded. */
	for (unsigned i = 0; i < n; i++)
		lend_allow(p, page_at(&p->pages, an[i]->loc));
	pthread_mutex_lock(&p->pages.lock);
	for (unsigned i = 0; i < n; i++) {
		struct page *pg = page_at(&p->pages, an[i]->loc);

		const enum page_queue q =
			wire || page_queue_locked(pg) == Q_WIRED ? Q_WIRED : Q_ACTIVE;

		page_dequeue_locked(&p->pages, pg);
		/* Somebody has a use for it, even if it was cooled or is still on probation. */
		if (q == Q_WIRED)
			policy_touched(&p->pages.policy, an[i]->loc);
		else
			policy_kept(&p->pages.policy, an[i]->loc);
		page_enqueue_locked(&p->pages, pg, q, PAGE_MAPPED);
	}
	pthread_mutex_unlock(&p->pages.lock);
	for (unsigned i = 0; i < n; i++)
		page_unbusy(p, an[i], shard, va + (uintptr_t)i * PAGE_SIZE);
}

/*
 * Look at the page at d->va of a map and those behind it.  s: whose service it has to be; NULL: anybody's.
 *
 * => how many from there on are in the page table; if the first is not: 0, or -EBUSY somebody moves it,
 *    -ESTALE it is another service's, and the errors of demand_range().
 */
static int
look(struct pager *p, const struct service *s, struct map *m, const struct demand *d)
{
	struct anon *an[CLUSTER_MAX], *other = NULL; /* busy by us; `other` is not mapped */
	struct place place = { 0 };
	const struct map_entry *e;
	struct leaf *leaf;
	unsigned n = 0, at, most;
	uint64_t index;
	int r = 0;

	pthread_rwlock_rdlock(&p->map.lock);
	e = map_lookup(m, d->va);
	if (e == NULL)
		r = -ENOMEM;
	else if (!allowed(e, d->write))
		r = -EACCES;
	else if (s != NULL && e->shard != s->id)
		r = -ESTALE;
	else if ((p->frozen & ALL_FROZEN) || m->frozen)
		r = -EBUSY; /* as faults do, it waits: the page is about to be taken out */
	if (r < 0) {
		pthread_rwlock_unlock(&p->map.lock);
		return r;
	}
	index = e->offset + ((d->va - e->start) >> PAGE_SHIFT);
	place = entry_place(e, d->va);
	leaf = object_leaf(e->object, index, NULL);
	most = (unsigned)MIN((MIN(d->end, e->end) - d->va) >> PAGE_SHIFT, CLUSTER_MAX);
	pthread_rwlock_unlock(&p->map.lock);
	if (leaf == NULL)
		return 0;
	at = (unsigned)(index - leaf->base);
	for (most = MIN(most, LEAF_SLOTS - at); n < most && other == NULL; n++) {
		struct anon *a = leaf_anon(leaf, at + n);

		if (a == NULL)
			break;
		if (!anon_trybusy(a)) {
			r = -EBUSY;
			break;
		}
		an[n] = a;
		if (atomic_load_explicit(&a->kind, memory_order_relaxed) == ANON_LOST)
			r = -EIO;
		if (!anon_in_core(a) || page_at(&p->pages, a->loc)->state != PAGE_MAPPED) {
			other = a;
			break;
		}
	}
	pthread_mutex_unlock(&leaf->lock);
	if (n > 0)
		seen(p, an, n, d->wire, place.shard, place.va);
	if (other != NULL)
		page_unbusy(p, other, place.shard, place.va + (uintptr_t)n * PAGE_SIZE);
	return n > 0 ? (int)n : r;
}

/* Keep the disk busy with what will be looked at next, while there is room. */
static void
read_ahead(struct service *s, struct demand *d)
{
	const uintptr_t left = (d->end - d->va) >> PAGE_SHIFT;
	const uintptr_t stop = d->va + (MIN(left, AHEAD_MAX) << PAGE_SHIFT);

	d->ahead = MAX(d->ahead, d->va);
	for (unsigned i = 0; i < CLUSTER_MAX && d->ahead < stop; i++) {
		if (!requests_spare(s) || frames_available(s->p) < 2 * CLUSTER_MAX ||
		    !pagein_ahead(s, s->id, &d->ahead, stop, FOR_CALL))
			break;
	}
}

/* There was no room for the page at d->va.  0: wait; -EAGAIN: it has lasted too long. */
static int
no_room(struct pager *p, struct demand *d)
{
	const uint64_t now = now_ns();

	atomic_store_explicit(&p->pageout_on, true, memory_order_relaxed);
	if (d->short_since == 0)
		d->short_since = now;
	return now - d->short_since > p->fault_timeout ? -EAGAIN : 0;
}

/*
 * Somebody has the page at d->va, a pager of the program perhaps that never answers, and the caller keeps every other call
 * from the map: that may not go on for ever.  0: wait; -EAGAIN: it has lasted too long.
 */
static int
too_busy(struct pager *p, struct demand *d)
{
	const uint64_t now = now_ns();

	if (d->busy_since == 0)
		d->busy_since = now;
	return now - d->busy_since > p->fault_timeout ? -EAGAIN : 0;
}

/* Go on with one.  True when it is over, and d->result says how. */
static bool
go_on(struct service *s, struct demand *d, unsigned *looks)
{
	while (d->va < d->end) {
		int r;

		if (*looks == 0) {
			s->more = true;
			return false;
		}
		--*looks;
		read_ahead(s, d);
		r = look(s->p, s, &s->p->map, d);
		if (r > 0) {
			d->va += (uintptr_t)r << PAGE_SHIFT;
			d->short_since = d->busy_since = 0;
			continue;
		}
		if (r == 0) {
			r = fault_ask(s, d->va, d->write,
				      (unsigned)MIN((d->end - d->va) >> PAGE_SHIFT, CLUSTER_MAX));
			if (r == 0)
				continue;
			/* The caller holds map.change, and that has to come first. */
			if (r == -EAGAIN && d->wire && s->p->foreign != NULL &&
			    foreign_waiting(s->p->foreign))
				r = -ECANCELED;
			if (r == -EAGAIN)
				r = no_room(s->p, d);
		}
		if (r == -EBUSY) {
			d->short_since = 0;
			r = d->wire ? too_busy(s->p, d) : 0;
		}
		if (r == 0) {
			s->demand_waits = true;
			return false;
		}
		d->result = r;
		return true;
	}
	d->result = 0;
	return true;
}

void
demand_serve(struct service *s)
{
	unsigned looks = LOOKS;
	struct demand *d, **link;

	s->demand_waits = false;
	if (atomic_load_explicit(&s->ndemands, memory_order_relaxed) == 0)
		return;
	pthread_mutex_lock(&s->cmd_lock);
	for (link = &s->demands; (d = *link) != NULL;) {
		bool over;

		/* Callers only append: what is behind *link can not change but for that. */
		pthread_mutex_unlock(&s->cmd_lock);
		over = go_on(s, d, &looks);
		pthread_mutex_lock(&s->cmd_lock);
		if (!over) {
			link = &d->next;
			continue;
		}
		*link = d->next;
		atomic_fetch_sub(&s->ndemands, 1);
		d->over = true; /* the caller may return as soon as the lock is free */
		pthread_cond_broadcast(&s->demand_over);
	}
	pthread_mutex_unlock(&s->cmd_lock);
}

/* Nobody serves any more: who faults meanwhile and asks (worker.c) is told.  After this none is added. */
void
demand_end(struct service *s)
{
	pthread_mutex_lock(&s->cmd_lock);
	for (struct demand *d = s->demands; d != NULL;) {
		struct demand *next = d->next;

		d->result = -EAGAIN;
		d->over = true;
		d = next;
	}
	s->demands = NULL;
	atomic_store(&s->ndemands, 0);
	pthread_cond_broadcast(&s->demand_over);
	pthread_mutex_unlock(&s->cmd_lock);
}

static int
demand_of(struct pager *p, struct service *s, struct demand *d)
{
	struct demand **link;

	d->next = NULL;
	d->ahead = 0;
	d->short_since = d->busy_since = 0;
	d->over = false;
	pthread_mutex_lock(&s->cmd_lock);
	if (atomic_load_explicit(&s->stop, memory_order_relaxed)) {
		pthread_mutex_unlock(&s->cmd_lock);
		return -EAGAIN;
	}
	for (link = &s->demands; *link != NULL; link = &(*link)->next)
		;
	*link = d;
	atomic_fetch_add(&s->ndemands, 1);
	s->io->ops->kick(
		s->io); /* under the lock: until it has taken this one out, the service is there */
	pthread_mutex_unlock(&s->cmd_lock);
	if (p->idle != NULL) {
		while (!d->over)
			p->idle(p->idle_ctx);
		return d->result;
	}
	pthread_mutex_lock(&s->cmd_lock);
	while (!d->over)
		pthread_cond_wait(&s->demand_over, &s->cmd_lock);
	pthread_mutex_unlock(&s->cmd_lock);
	return d->result;
}

int
demand_range(struct pager *p, struct demand *d)
{
	int r;

	do {
		const struct map_entry *e;
		unsigned shard = 0;

		pthread_rwlock_rdlock(&p->map.lock);
		e = map_lookup(&p->map, d->va);
		if (e != NULL)
			shard = e->shard;
		pthread_rwlock_unlock(&p->map.lock);
		if (e == NULL)
			return -ENOMEM;
		r = demand_of(p, p->service[shard], d);
	} while (r == -ESTALE);
	return r;
}

int
demand_hold(struct pager *p, struct map *m, uintptr_t start, uintptr_t end)
{
	struct demand d = { .va = start, .end = end, .wire = true };

	while (d.va < d.end) {
		const int r = look(p, NULL, m, &d);

		if (r <= 0)
			return r == 0 || r == -EBUSY ? -EINPROGRESS : r;
		d.va += (uintptr_t)r << PAGE_SHIFT;
	}
	return 0;
}
