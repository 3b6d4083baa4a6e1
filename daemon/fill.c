/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fill.c: the threads that fill memory of another process.
 *
 *	service thread, for all the client's life	aide, for its first seconds (only with a working set)
 *	  waits (epoll): userfaultfds, the door		  brings what the record says, in the order of the file
 *	  reads all there is: events at once, then	  waits for the end of the window, or of the client
 *	  the faults					  writes a record of what was asked for
 *	  lets go of spaces that miss nothing		mover, in its place (fill_transfer()): brings all
 *
 * What they do it to is in fill_space.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "fill_record.h"
#include "fill_space.h"

#define STACK ((size_t)256 << 10)
#define PARK_MS 1	/* until parked faults are tried again */
#define WATCHDOG_MS 100 /* without a fault, while threads wait */
#define STRIP 64

/* --- the service thread --- */

/* The watchdog's clock. */
void
fill_tick(struct fill *f, bool run)
{
	const struct timespec period = { .tv_nsec = run ? WATCHDOG_MS * 1000000l : 0 };
	const struct itimerspec it = { period, period };

	f->ticking = run;
	timerfd_settime(f->clock, 0, &it, NULL);
}

static bool
fspace_must_retry(const struct space *sp)
{
	return sp->nparked > 0 || sp->wake_all;
}

/* Threads wait, and we know of none: they look again. */
static void
watchdog(struct fill *f)
{
	bool waiting = false;

	for (struct space *sp = f->spaces; sp != NULL; sp = sp->next) {
		struct foreign_info info;

		if (sp->uffd < 0 || fspace_must_retry(sp) || foreign_info(sp->uffd, &info) < 0 ||
		    info.total == 0)
			continue;
		waiting = true;
		/* Those that we have not read yet will be told by epoll. */
		if (info.total > info.pending) {
			atomic_fetch_add(&f->rescues, 1);
			fspace_wake(sp);
		}
	}
	if (!waiting)
		fill_tick(f, false);
}

static int
wait_ms(struct fill *f)
{
	if (f->draining || f->rest_now)
		return 0;
	if (f->rest_later)
		return PARK_MS;
	for (const struct space *sp = f->spaces; sp != NULL; sp = sp->next) {
		if (fspace_must_retry(sp))
			return PARK_MS;
	}
	/* No time-out, which would cost each fault a timer: there is the clock. */
	return -1;
}

/* Whoever had to wait, once a moment. */
static void
retry(struct fill *f)
{
	bool any = false;

	for (struct space *sp = f->spaces; sp != NULL && !any; sp = sp->next)
		any = sp->uffd >= 0 && fspace_must_retry(sp);
	if (!any || now_ns() - f->retried_at < PARK_MS * UINT64_C(1000000))
		return;
	for (struct space *sp = f->spaces; sp != NULL; sp = sp->next) {
		if (sp->uffd >= 0 && fspace_must_retry(sp))
			fspace_attend(sp);
	}
	f->retried_at = now_ns();
}

/* It is served from now on.  The lock is not held. */
static int
fspace_link(struct fill *f, struct space *sp)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = sp };
	const int flags = fcntl(sp->uffd, F_GETFL);
	int64_t mapped = 0, filled = 0;
	uint64_t lost = 0;
	int r = 0;

	/* Of one that blocks poll() says POLLERR only. */
	if (flags < 0 || fcntl(sp->uffd, F_SETFL, flags | O_NONBLOCK) < 0)
		return -errno;
	fcntl(sp->uffd, F_SETFD, FD_CLOEXEC);
	for (size_t i = 0; i < sp->n; i++)
		mapped += (int64_t)sp->range[i].r.len;
	for (size_t i = 0; i < sp->n; i++) {
		const struct range *rg = &sp->range[i];

		for (uint64_t p = 0; p < rg->r.len / rg->r.page_size; p++) {
			if (!sp->brought)
				break;
			if (fspace_state(sp, rg->first + p) == FILLED)
				filled += rg->r.page_size;
			else if (fspace_state(sp, rg->first + p) == LOST && !sp->child)
				lost++;
		}
	}
	pthread_mutex_lock(&f->lock);
	if (f->nspaces == FILL_SPACES_MAX)
		r = -E2BIG;
	else if (epoll_ctl(f->epoll, EPOLL_CTL_ADD, sp->uffd, &ev) < 0)
		r = -errno;
	if (r == 0) {
		f->nspaces++;
		sp->next = f->spaces;
		f->spaces = sp;
		/* A child lives since it was told of. */
		if (!sp->child)
			atomic_fetch_add(&f->living, 1);
		sp->linked = true;
		fspace_count_mapped(sp, mapped);
		atomic_fetch_add(&f->resident, (uint64_t)filled);
		atomic_fetch_add(&f->lost, lost);
		pthread_cond_broadcast(&f->cond);
	}
	pthread_mutex_unlock(&f->lock);
	return r;
}

/*
 * Children whose process is gone.  There is no event for that; so it is looked at whenever there is a new one, and there are never more than live
 * at once, but for those that the mover is at.  The aide knows no children, and the loop holds f->lock.
 */
static void
reap(struct fill *f)
{
	struct space *sp, *next, *before = NULL;

	for (sp = f->spaces; sp != NULL; sp = next) {
		next = sp->next;
		if (!sp->child || (sp->uffd >= 0 && foreign_alive(sp->uffd))) {
			before = sp;
			continue;
		}
		fspace_gone(sp);
		pthread_mutex_lock(&f->lock);
		/* Only from here on the mover does not take it up. */
		if (sp->users > 0) {
			pthread_mutex_unlock(&f->lock);
			before = sp;
			continue;
		}
		if (before == NULL && f->spaces == sp) {
			f->spaces = next;
		} else {
			/* The loop may have put others in front. */
			if (before == NULL)
				for (before = f->spaces; before->next != sp; before = before->next)
					;
			before->next = next;
		}
		f->nspaces--;
		pthread_mutex_unlock(&f->lock);
		fspace_free(sp);
	}
}

/* Children that fspace_drain() has found. */
static void
link_born(struct fill *f)
{
	struct space *sp;

	reap(f);
	while ((sp = f->born) != NULL) {
		int r;

		f->born = sp->next;
		sp->next = NULL;
		r = fspace_link(f, sp);
		if (r < 0) {
			fill_tell_child(f, r);
			/* If not, it stays open, or kept, and who touches a page waits. */
			if (fspace_settle(sp)) {
				record_drop(sp);
				close(sp->uffd);
			}
			fspace_free(sp);
			if (atomic_fetch_sub(&f->living, 1) == 1)
				f->cfg.notify(f->cfg.ctx, FILL_GONE);
		}
		atomic_fetch_sub(&f->nborn, 1);
	}
}

void
fill_at_the_end(struct fill *f)
{
	if (atomic_fetch_sub(&f->threads, 1) == 1)
		f->cfg.notify(f->cfg.ctx, FILL_STOPPED);
}

static void
finish(struct fill *f, enum fill_end how)
{
	/* To settle one may tell of a child. */
	do {
		if (f->born != NULL)
			link_born(f);
		for (struct space *sp = f->spaces; sp != NULL; sp = sp->next) {
			if (sp->uffd < 0)
				continue;
			/* Better to wait than to read zeros. */
			if (how != FILL_END_DROP && foreign_alive(sp->uffd) && !fspace_settle(sp) &&
			    sp->flags & FILL_SOLE)
				fill_orphan(f, sp->uffd);
			pthread_rwlock_wrlock(&sp->lock);
			fspace_close(sp);
			pthread_rwlock_unlock(&sp->lock);
		}
	} while (f->born != NULL);
}

/* Those whose service threads are to turn. */
static struct {
	pthread_mutex_t lock;
	struct fill *first;
} turning = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void
begin_turning(struct fill *f)
{
	pthread_mutex_lock(&turning.lock);
	f->turns_too = turning.first;
	turning.first = f;
	pthread_mutex_unlock(&turning.lock);
}

static void
end_turning(struct fill *f)
{
	struct fill **link = &turning.first;

	pthread_mutex_lock(&turning.lock);
	while (*link != f)
		link = &(*link)->turns_too;
	*link = f->turns_too;
	pthread_mutex_unlock(&turning.lock);
}

void
fill_ask(void)
{
	const uint64_t one = 1;

	pthread_mutex_lock(&turning.lock);
	for (struct fill *f = turning.first; f != NULL; f = f->turns_too)
		if (pulse_ask(&f->pulse) && write(f->door, &one, sizeof one) < 0)
			assert(errno == EAGAIN);
	pthread_mutex_unlock(&turning.lock);
}

bool
fill_any(bool (*is)(const struct pulse *pulse))
{
	const struct fill *f;

	pthread_mutex_lock(&turning.lock);
	for (f = turning.first; f != NULL && !is(&f->pulse); f = f->turns_too)
		;
	pthread_mutex_unlock(&turning.lock);
	return f != NULL;
}

static void *
service_main(void *arg)
{
	struct fill *f = arg;
	enum fill_end how = FILL_END_DROP;

	begin_turning(f);
	for (;;) {
		struct epoll_event ev[16];
		int n;

		pulse_answer(&f->pulse);

		if (f->born != NULL)
			link_born(f);
		n = epoll_wait(f->epoll, ev, ARRAY_SIZE(ev), wait_ms(f));

		for (int i = 0; i < n; i++) {
			uint64_t count;

			if (ev[i].data.ptr != NULL && ev[i].data.ptr != f) {
				struct space *sp = ev[i].data.ptr;

				if (sp->uffd >= 0)
					fspace_attend(sp);
				continue;
			}
			if (read(ev[i].data.ptr == f ? f->clock : f->door, &count, sizeof count) <
			    0)
				continue;
			if (ev[i].data.ptr != f)
				fill_tick(
					f,
					true); /* a space may have come whose messages somebody else has read */
			else if (f->busy)
				f->busy = false;
			else
				watchdog(f);
		}
		retry(f);
		fill_rest(f);

		if (atomic_load(&f->stop)) {
			const uint64_t end = atomic_load(&f->end);

			how = (enum fill_end)(end >> 56);
			f->draining = how == FILL_END_FILL;
			if (!f->draining || now_ns() >= (end & ((UINT64_C(1) << 56) - 1)) ||
			    !fill_some(f))
				break;
		}
	}
	end_turning(f);
	finish(f, how);
	fill_at_the_end(f);
	return NULL;
}

/* --- the loop's side --- */

static int
start(struct fill *f, pthread_t *t, void *(*fn)(void *), const char *name)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(t, &attr, fn, f);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	if (r == 0)
		pthread_setname_np(*t, name);
	return -r;
}

static int
init(struct fill *f)
{
	struct epoll_event ev = { .events = EPOLLIN };
	pthread_condattr_t attr;

	pthread_mutex_init(&f->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&f->cond, &attr);
	pthread_condattr_destroy(&attr);
	f->door = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (note_make(f) < 0)
		return -ENOMEM;
	f->epoll = epoll_create1(EPOLL_CLOEXEC);
	f->clock = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (f->door < 0 || f->clock < 0 || f->epoll < 0 ||
	    epoll_ctl(f->epoll, EPOLL_CTL_ADD, f->door, &ev) < 0)
		return -errno;
	ev.data.ptr = f;
	if (epoll_ctl(f->epoll, EPOLL_CTL_ADD, f->clock, &ev) < 0)
		return -errno;
	f->copied = calloc(1, sizeof *f->copied);
	f->zeroed = calloc(1, sizeof *f->zeroed);
	f->there = calloc(1, sizeof *f->there);
	if (f->copied == NULL || f->zeroed == NULL || f->there == NULL)
		return -ENOMEM;
	if (f->cfg.working_set != NULL) {
		f->asked = calloc((size_t)(f->cfg.working_set->size / WORKING_SET_PAGE / 64 + 1),
				  sizeof *f->asked);
		if (f->asked == NULL)
			return -ENOMEM;
	}
	return 0;
}

static void
fini(struct fill *f)
{
	struct space *sp;

	while ((sp = f->born) != NULL) {
		f->born = sp->next;
		record_drop(sp);
		close(sp->uffd);
		fspace_free(sp);
	}
	while ((sp = f->spaces) != NULL) {
		f->spaces = sp->next;
		if (sp->uffd >= 0) {
			record_drop(sp);
			close(sp->uffd);
		}
		fspace_free(sp);
	}
	if (f->pending >= 0)
		close(f->pending);
	note_free(f);
	if (f->epoll >= 0)
		close(f->epoll);
	if (f->door >= 0)
		close(f->door);
	if (f->clock >= 0)
		close(f->clock);
	if (f->bounce != NULL)
		munmap(f->bounce, FILL_HUGE);
	if (f->zeros != NULL)
		munmap(f->zeros, FILL_HUGE);
	working_set_free(&f->ws);
	memfile_unref(f->cfg.working_set);
	pthread_mutex_destroy(&f->lock);
	pthread_cond_destroy(&f->cond);
	free(f->asked);
	free(f->copied);
	free(f->zeroed);
	free(f->there);
	free(f);
}

static void
stop(struct fill *f)
{
	pthread_mutex_lock(&f->lock);
	atomic_store(&f->stop, true);
	pthread_cond_broadcast(&f->cond);
	pthread_mutex_unlock(&f->lock);
}

int
fill_create(struct fill **out, const struct fill_config *cfg)
{
	struct fill *f = calloc(1, sizeof *f);
	int r;

	*out = NULL;
	if (f == NULL)
		return -ENOMEM;
	f->cfg = *cfg;
	f->log = cfg->log;
	f->epoll = f->door = f->clock = f->note_fd = f->pending = -1;
	f->cfg.id = note_id(cfg->id);
	f->no_poison = cfg->call_mask & FILL_NO_POISON;
	snprintf(f->name, sizeof f->name, "%s", cfg->name);
	if (cfg->working_set != NULL)
		memfile_ref(cfg->working_set);
	r = init(f);
	if (r < 0)
		goto fail;
	if (cfg->working_set != NULL)
		fill_load_record(f);
	atomic_store(&f->recording, cfg->working_set != NULL);
	atomic_store(&f->threads, cfg->working_set != NULL || cfg->transfer ? 2 : 1);
	if (cfg->working_set != NULL || cfg->transfer) {
		r = start(f, &f->aide, cfg->transfer ? fill_mover_main : fill_aide_main,
			  "fill-aide");
		if (r < 0 && cfg->transfer)
			goto fail;
		if (r < 0) {
			log_line(&f->log, UP_LOG_WARNING, "%s: no thread for its working set: %s",
				 f->name, strerror(-r));
			atomic_store(&f->recording, false);
			atomic_fetch_sub(&f->threads, 1);
		} else {
			f->has_aide = true;
		}
	}
	r = start(f, &f->service, service_main, "fill");
	if (r < 0) {
		stop(f);
		if (f->has_aide)
			pthread_join(f->aide, NULL);
		goto fail;
	}
	*out = f;
	return 0;
fail:
	fini(f);
	return r;
}

static int
by_start(const void *a, const void *b)
{
	const struct range *x = a, *y = b;

	return x->r.start < y->r.start ? -1 : x->r.start > y->r.start;
}

static bool
range_sound(const struct fill_range *r)
{
	const uint64_t size = r->page_size;

	return (size == PAGE_SIZE || size == FILL_HUGE) && r->len > 0 && r->len % size == 0 &&
	       r->start % size == 0 && r->start + r->len > r->start && r->source != NULL &&
	       r->offset % PAGE_SIZE == 0 && r->offset < r->source->size &&
	       r->len <= r->source->size - r->offset;
}

void
fill_knock(struct fill *f)
{
	const uint64_t one = 1;

	if (write(f->door, &one, sizeof one) < 0)
		log_line(&f->log, UP_LOG_ERROR, "eventfd: %s", strerror(errno));
}

int
fill_add(struct fill *f, int uffd, const struct fill_range *range, size_t n, unsigned flags,
	 uint32_t tag)
{
	struct space *sp;
	uint64_t pages = 0;
	int r;

	if (n == 0 && !(flags & FILL_OUTSIDE_ZERO))
		return -EINVAL;
	if (n > FILL_RANGES_MAX / 2)
		return -E2BIG;
	for (size_t i = 0; i < n; i++) {
		if (!range_sound(&range[i]))
			return -EINVAL;
		if ((pages += range[i].len / range[i].page_size) > FILL_PAGES_MAX)
			return -E2BIG;
	}
	r = fspace_make(f, uffd, flags, pages, n, 0, &sp);
	if (r < 0)
		return r;
	sp->tag = tag;
	pages = 0;
	for (size_t i = 0; i < n && r == 0; i++) {
		const struct range rg = { range[i], pages };

		pages += range[i].len / range[i].page_size;
		r = range_insert(sp, sp->n, &rg) ? 0 : -ENOMEM;
	}
	if (sp->n > 0)
		qsort(sp->range, sp->n, sizeof *sp->range, by_start);
	for (size_t i = 1; i < sp->n && r == 0; i++) {
		if (sp->range[i].r.start - sp->range[i - 1].r.start < sp->range[i - 1].r.len)
			r = -EINVAL;
	}
	if (r == 0) {
		note_keep(f);
		record_commit(sp);
		r = fspace_link(f, sp);
	}
	if (r < 0) {
		record_drop(sp);
		fspace_free(sp);
		return r;
	}
	fill_knock(f);
	pthread_mutex_lock(&f->lock);
	if (f->record_until == 0)
		f->record_until = now_ns() + f->cfg.record_ms * UINT64_C(1000000);
	pthread_cond_broadcast(&f->cond);
	pthread_mutex_unlock(&f->lock);
	return 0;
}

int
fill_pending(struct fill *f)
{
	const int fd = f->pending;

	f->pending = -1;
	return fd;
}

void
fill_pending_done(struct fill *f)
{
	if (!f->note->about.pending_kept)
		return;
	f->note->about.pending_kept = false;
	keeper_drop(f->cfg.keeper, "fill", f->cfg.id, "pending");
}

bool
fill_has(struct fill *f, uint32_t tag)
{
	const struct space *sp;

	pthread_mutex_lock(&f->lock);
	for (sp = f->spaces; sp != NULL && sp->tag != tag; sp = sp->next)
		;
	pthread_mutex_unlock(&f->lock);
	return sp != NULL;
}

void
fill_keep(struct fill *f)
{
	note_keep(f);
}

struct fill_about *
fill_about(struct fill *f)
{
	return &f->note->about;
}

unsigned
fill_resume(struct fill *f, const struct fill_heir *h)
{
	struct space *all, *sp;
	unsigned n = 0;

	assert(f->cfg.id == h->id);
	note_again(f, h);
	all = fspaces_again(f, h);
	note_keep(f);
	while ((sp = all) != NULL) {
		int r;

		all = sp->next;
		sp->next = NULL;
		/* Faults that have been read are nobody's. */
		sp->wake_all = true;
		record_commit(sp);
		if (sp->child)
			atomic_fetch_add(&f->living, 1);
		r = fspace_link(f, sp);
		if (r < 0) {
			log_line(&f->log, UP_LOG_ERROR, "%s: it can not be served, and waits: %s",
				 f->name, strerror(-r));
			if (sp->child)
				atomic_fetch_sub(&f->living, 1);
			close(sp->uffd);
			fspace_free(sp);
			continue;
		}
		n++;
	}
	fill_knock(f);
	return n;
}

void
fill_transfer(struct fill *f)
{
	pthread_mutex_lock(&f->lock);
	atomic_store(&f->transfer, true);
	pthread_cond_broadcast(&f->cond);
	pthread_mutex_unlock(&f->lock);
}

void
fill_stop(struct fill *f, enum fill_end how, unsigned ms)
{
	const uint64_t until = now_ns() + ms * UINT64_C(1000000);

	atomic_store(&f->end, (uint64_t)how << 56 | (until & ((UINT64_C(1) << 56) - 1)));
	stop(f);
	fill_knock(f);
}

void
fill_destroy(struct fill *f)
{
	if (f == NULL)
		return;
	if (!atomic_load(&f->stop))
		fill_stop(f, FILL_END_DROP, 0);
	pthread_join(f->service, NULL);
	if (f->has_aide)
		pthread_join(f->aide, NULL);
	fini(f);
}

bool
fill_alive(struct fill *f)
{
	bool alive = atomic_load(&f->nborn) > 0;

	pthread_mutex_lock(&f->lock);
	for (struct space *sp = f->spaces; sp != NULL && !alive; sp = sp->next) {
		pthread_rwlock_rdlock(&sp->lock);
		alive = sp->uffd >= 0 && foreign_alive(sp->uffd);
		pthread_rwlock_unlock(&sp->lock);
	}
	pthread_mutex_unlock(&f->lock);
	return alive;
}

uint64_t
fill_missing(struct fill *f)
{
	uint64_t pages = 0;

	pthread_mutex_lock(&f->lock);
	for (struct space *sp = f->spaces; sp != NULL; sp = sp->next)
		pages += fspace_missing(sp);
	pthread_mutex_unlock(&f->lock);
	return pages;
}

/* NULL: it has no such faults, or nobody knows how long they take. */
static struct histogram *
latency_of(struct fill *f, enum up_fault_kind kind)
{
	return kind == UP_FAULT_MAJOR	? f->copied
	       : kind == UP_FAULT_ZERO	? f->zeroed
	       : kind == UP_FAULT_MINOR ? f->there
					: NULL;
}

void
fill_latency(struct fill *f, enum up_fault_kind kind, struct latency_steps *steps)
{
	struct histogram *const h = latency_of(f, kind);

	histogram_steps(&h, h != NULL, steps);
}

void
fill_counts(struct fill *f, struct session_counts *c)
{
	struct histogram *const all[] = { f->copied, f->zeroed, f->there };
	struct up_latency l;

	*c = (struct session_counts){
		.mapped = atomic_load(&f->mapped),
		.resident = atomic_load(&f->resident),
		.again = atomic_load(&f->again),
		.exists = atomic_load(&f->exists),
		.deferred = atomic_load(&f->deferred),
		.prefetched = atomic_load(&f->prefetched),
		.lost = atomic_load(&f->lost),
	};
	for (unsigned k = 0; k < UP_FAULT_KINDS; k++) {
		struct histogram *const h = latency_of(f, k);

		if (h != NULL)
			histogram_sum(&h, 1, &c->latency[k]);
		c->faults[k] = c->latency[k].count;
	}
	c->faults[UP_FAULT_WP] = atomic_load(&f->wp);
	histogram_sum(all, ARRAY_SIZE(all), &l);
	c->p50_ns = l.p50;
	c->p99_ns = l.p99;
}

static json_t *
map_range(const struct space *sp, const struct range *r)
{
	const uint64_t pages = r->r.len / r->r.page_size;
	const unsigned parts = pages < STRIP ? (unsigned)pages : STRIP;
	char strip[STRIP + 1];
	uint64_t resident = 0;

	for (unsigned i = 0; i < parts; i++) {
		const uint64_t lo = pages * i / parts, hi = pages * (i + 1) / parts;
		uint64_t n = 0;

		for (uint64_t p = lo; p < hi; p++)
			n += fspace_state(sp, r->first + p) == FILLED;
		resident += n;
		/* hi > lo: there are no more parts than pages */
		strip[i] = (char)('0' + n * 9 / MAX(hi - lo, 1));
	}
	strip[parts] = '\0';
	return json_pack("{sIsIsIsIss}", "start", (json_int_t)r->r.start, "length",
			 (json_int_t)r->r.len, "page_size", (json_int_t)r->r.page_size, "resident",
			 (json_int_t)resident * r->r.page_size, "strip", strip);
}

json_t *
fill_map(struct fill *f)
{
	json_t *all = json_array();

	pthread_mutex_lock(&f->lock);
	for (struct space *sp = f->spaces; sp != NULL && all != NULL; sp = sp->next) {
		pthread_rwlock_rdlock(&sp->lock);
		for (size_t i = 0; i < sp->n; i++)
			json_array_append_new(all, map_range(sp, &sp->range[i]));
		pthread_rwlock_unlock(&sp->lock);
	}
	pthread_mutex_unlock(&f->lock);
	return all;
}
