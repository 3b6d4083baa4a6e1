/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fill_transfer.c: all that is missing is brought, and who misses nothing is let go.
 *
 *	mover, a thread					service thread
 *	  one space after the other, upwards:		  faults, as ever
 *	  reads a window of the file, copies it		  a space that the mover has been through:
 *	  64 KiB, twice as much each time, up to	    page by page what it has left behind (moved since, not to
 *	  4 MiB; after a fault 64 KiB again,		    be read, not registered), then its userfaultfd is closed
 *	  and a pause
 *
 * A window is read before the space's lock is taken, and copied in runs of FILL_RUN: so a fault waits for no more than one of those.
 *
 * That nothing is MISSING is not enough to let go: a page that is said not to be registered (ENOENT) may be one that mremap() moves at that
 * moment.  Only the service thread reads events, and until an event has been read every call says EAGAIN before it looks at addresses.  So
 * where two calls say ENOENT, and no event has been read between them, nothing has been moved during the first one.
 */
#include <errno.h>

#include "fill_space.h"

#define WINDOW_MIN ((uint64_t)64 << 10) /* bytes */
#define WINDOW_MAX ((uint64_t)4 << 20)
#define PAUSE_MIN \
	UINT64_C( \
		1000000) /* ns, after a window in which there was a fault; twice as much each time */
#define PAUSE_MAX \
	UINT64_C(16000000) /* so that who faults all the time gets 4 MiB a second of it at least */
#define REST 64 /* pages that the service thread looks after before it looks after faults again */

/* What the mover goes by. */
struct mover {
	struct fill *f;
	uint64_t window, pause, demands;
};

/* --- the mover --- */

/* f->lock is held. */
static void
rest_ns(struct fill *f, uint64_t ns)
{
	fill_nap(f, now_ns() + ns);
}

/* A space that is not done, which is not freed until it is let go by fspace_left().  f->lock is held. */
static struct space *
next_space(struct fill *f)
{
	struct space *sp = f->spaces;

	while (sp != NULL && atomic_load(&sp->moved))
		sp = sp->next;
	if (sp != NULL)
		sp->users++;
	return sp;
}

/* What is MISSING next, at most so much, and where it is: the source's reference is the caller's.  0: no more. */
static uint64_t
next_missing(struct space *sp, uint64_t max, uint64_t *at, struct memfile **source,
	     uint64_t *offset)
{
	uint64_t len = 0;

	pthread_rwlock_rdlock(&sp->lock);
	for (size_t i = fspace_find_from(sp, sp->mover_at); i < sp->n && len == 0; i++) {
		const struct range *r = &sp->range[i];
		const uint64_t from = MAX(sp->mover_at, r->r.start);

		len = fspace_missing_run(sp, r, from, r->r.start + r->r.len, at);
		if (len == 0)
			continue;
		len = MIN(len, MAX(max, (uint64_t)r->r.page_size));
		*source = memfile_ref(r->r.source);
		*offset = r->r.offset + (*at - r->r.start);
	}
	pthread_rwlock_unlock(&sp->lock);
	return len;
}

/* After a window: how large the next one is, and a pause. */
static void
adapt(struct mover *m)
{
	struct fill *f = m->f;
	const uint64_t demands = atomic_load_explicit(&f->demands, memory_order_relaxed);

	if (demands == m->demands) {
		m->window = MIN(2 * m->window, WINDOW_MAX);
		m->pause = PAUSE_MIN;
		return;
	}
	m->demands = demands;
	m->window = WINDOW_MIN;
	pthread_mutex_lock(&f->lock);
	if (!atomic_load(&f->stop))
		rest_ns(f, m->pause);
	pthread_mutex_unlock(&f->lock);
	m->pause = MIN(2 * m->pause, PAUSE_MAX);
}

/* One window.  False: there is no more, or it is gone. */
static bool
move_some(struct mover *m, struct space *sp)
{
	uint64_t at = 0, offset = 0, pause = PAUSE_MIN;
	struct memfile *source = NULL;
	const uint64_t len = next_missing(sp, m->window, &at, &source, &offset), end = at + len;

	if (len == 0)
		return false;
	memfile_warm(source, offset, len);
	memfile_unref(source);
	while (at < end && !atomic_load(&m->f->stop)) {
		const int err = fspace_bring(sp, &at, end);

		if (err == -ESRCH)
			return false;
		if (err == 0)
			continue;
		/* An event waits, or there is no memory: what does not pass is the service thread's. */
		pthread_mutex_lock(&m->f->lock);
		if (!atomic_load(&m->f->stop))
			rest_ns(m->f, pause);
		pthread_mutex_unlock(&m->f->lock);
		pause = MIN(2 * pause, PAUSE_MAX);
	}
	sp->mover_at = at;
	adapt(m);
	return true;
}

void *
fill_mover_main(void *arg)
{
	struct mover m = { .f = arg, .window = WINDOW_MIN, .pause = PAUSE_MIN };
	struct fill *f = arg;
	struct space *sp;

	pthread_mutex_lock(&f->lock);
	while (!atomic_load(&f->stop)) {
		sp = atomic_load(&f->transfer) ? next_space(f) : NULL;
		if (sp == NULL) {
			rest_ns(f, UINT64_C(3600000000000));
			continue;
		}
		pthread_mutex_unlock(&f->lock);
		if (!move_some(&m, sp)) {
			atomic_store(&sp->moved, true);
			fill_knock(f);
		}
		pthread_mutex_lock(&f->lock);
		sp->users--;
	}
	pthread_mutex_unlock(&f->lock);
	fill_at_the_end(f);
	return NULL;
}

/* --- the rest --- */

/* A page that is MISSING, or NULL.  => the service thread */
static const struct range *
some_missing(struct space *sp, uint64_t *at)
{
	for (;;) {
		const uint64_t from = sp->rest_at;

		for (size_t i = fspace_find_from(sp, from); i < sp->n; i++) {
			const struct range *r = &sp->range[i];

			if (fspace_missing_run(sp, r, MAX(from, r->r.start), r->r.start + r->r.len,
					       at) > 0) {
				sp->rest_at = *at;
				return r;
			}
		}
		sp->rest_at = 0;
		if (from == 0)
			return NULL;
	}
}

/* AGAIN: later; GONE: the process is; DONE: nothing is missing; WAS_THERE: there is more. */
static enum outcome
rest_of(struct space *sp)
{
	const struct range *r = NULL;
	uint64_t at;

	for (unsigned i = 0; i < REST && (r = some_missing(sp, &at)) != NULL; i++) {
		const uint64_t page = range_page(r, at);

		/* The second time it is certain that nothing is registered there. */
		for (unsigned tries = 0; tries < 2 && fspace_state(sp, page) == MISSING; tries++) {
			const enum outcome o = fspace_put_content(sp, r, at, r->r.page_size, false);

			if (o == AGAIN || o == GONE)
				return o;
		}
		if (fspace_state(sp, page) == MISSING)
			fspace_set(sp, r, at, r->r.page_size, LOST);
	}
	return r == NULL || some_missing(sp, &at) == NULL ? DONE : WAS_THERE;
}

void
fill_rest(struct fill *f)
{
	f->rest_now = f->rest_later = false;
	for (struct space *sp = f->spaces; sp != NULL; sp = sp->next) {
		/* Where nothing is known any more, each fault is SIGBUS: it stays. */
		if (sp->uffd < 0 || sp->broken || sp->kept || !atomic_load(&sp->moved))
			continue;
		switch (rest_of(sp)) {
		case AGAIN:
			f->rest_later = true;
			break;
		case WAS_THERE:
			f->rest_now = true;
			break;
		case DONE:
			/* Faults that wait are of pages that are there by now, or will be zeros. */
			if (!sp->kept)
				fspace_gone(sp);
			break;
		case GONE:
			fspace_gone(sp);
			break;
		}
	}
}
