/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * worker.c: a thread that serves its own fault (UP_DELIVER_INLINE).
 *
 *	          worker_serve()
 *	             |
 *	             v        SERVED, LOST, STRAY
 *	  +----> fault_serve() -------------------> the handler returns, and the instruction is done again
 *	  |          |                                      ^
 *	  |        BUSY  sleep until the holder lets go ----+
 *	  |          |
 *	  +-- I/O ---+ reads of its own, polled for, and then what a service does when a read is done
 *	  +- LATER --+ sleep a little
 *	  +-- ROOM --+ a step of pageout, with its writes; if there is none to take, sleep until somebody has made room
 *	  +--- ASK --+ let a service bring it in
 *
 * It runs where the program was interrupted, in a signal handler: it calls nothing of libc that allocates or takes a lock which the
 * program may hold, and nothing of the program's.  Its memory is a worker's, borrowed for one look at a fault, so threads
 * come and go as they like.  Locks of ours it may take: no thread touches paged memory, or a signal, while it holds one.
 *
 *	           get()                               put(): at rest, what it has logged is passed on
 *	  IDLE ------------> one thread's: fault_serve(), its I/O, pageout -----------------------------> IDLE
 *	  (its bit is set)   (its bit is clear; workers_wait() waits for all bits)
 *
 * Nothing is owed to a page after the handler has returned.  If it is not there then (thrown out again, a read that failed, somebody
 * else's turn), the thread faults once more.
 *
 * What nobody waits for is not done here: services read ahead for advice and clean pages in the background.
 *
 * While its read is under way it makes room for the next, and then polls for it (swap/polling.h): so each worker has an io_uring, a descriptor and
 * two pages.  Where that is not to be had preadv() does it, which is one system call, too.
 */
#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/probe.h"
#include "pager/pager.h"

#define WORKERS_FIRST 2 /* made with the runtime, so that there always is one */
#define WORKER_EVENTS 32
#define NAP_MIN 20000u /* ns */
#define NAP_MAX 1000000u

struct worker {
	struct service s;
	union {
		struct io_uring_engine ring;
		struct io_blocking blocking;
	} io;
	struct trace_slot event[WORKER_EVENTS];
	struct request read, write;
};

#define META_PER_WORKER round_up(sizeof(struct worker), PAGE_SIZE)
#define META_LATENCY round_up(UP_FAULT_KINDS * sizeof(struct histogram), PAGE_SIZE)

struct service *
worker_service(struct pager *p, unsigned i)
{
	return i < atomic_load_explicit(&p->workers.n, memory_order_acquire)
		       ? &p->workers.worker[i]->s
		       : NULL;
}

/* What one takes of the budget for as long as the runtime lives. */
static uint64_t
meta_per_worker(const struct pager *p)
{
	return META_PER_WORKER + tier_share(p, 1);
}

/* One more, which is the caller's.  => lock held.  NULL: the budget has no room, or there are enough. */
static struct worker *
make(struct pager *p)
{
	struct workers *ws = &p->workers;
	const unsigned n = atomic_load(&ws->n);
	struct wired_array mem;
	struct worker *w;

	/* It stays: out of what is promised to others it may not come. */
	if (n == WORKERS_MAX || !resv_try(&p->resv_meta, meta_per_worker(p)))
		return NULL;
	if (wired_array_init(&mem, &p->arena, sizeof *w, 1) < 0)
		goto give;
	if (wired_array_grow(&mem, 1) < 0) {
		wired_array_fini(&mem);
		goto give;
	}
	w = mem.base;
	w->s.mem = mem;
	w->s.p = p;
	w->s.worker = true;
	w->s.latency = ws->latency.base;
	w->s.reads = &w->read;
	pthread_mutex_init(&w->s.cmd_lock, NULL);
	trace_init(&w->s.trace, w->event, WORKER_EVENTS);
	requests_init(&w->s, REQ_PAGEIN, &w->read, 1);
	requests_init(&w->s, REQ_PAGEOUT, &w->write, 1);
	if (io_engine_uring_init(&w->io.ring, &p->swap, 2, ws->mask, &p->polling) == 0) {
		w->s.io = &w->io.ring.engine;
	} else {
		io_engine_blocking_init(&w->io.blocking, &p->swap, 2);
		w->s.io = &w->io.blocking.engine;
	}
	if (tier_equip(&w->s, &w->write, 1) < 0)
		goto fini;
	if (p->worker_engine != NULL && p->worker_engine(p->worker_ctx, &w->s.io, p) < 0)
		goto fini;
	w->s.id = n;
	ws->worker[n] = w;
	atomic_store_explicit(&ws->n, n + 1, memory_order_release);
	return w;

fini:
	w->io.ring.engine.ops->destroy(&w->io.ring.engine);
	tier_strip(&w->s);
	wired_array_fini(&mem);
give:
	resv_give(&p->resv_meta, meta_per_worker(p));
	return NULL;
}

static void
put(struct pager *p, const struct worker *w)
{
	const uint64_t bit = UINT64_C(1) << w->s.id;
	uint64_t idle;

	/* As it was borrowed. */
	assert(w->s.io->inflight == 0 && w->s.nparked == 0 && w->s.nreads == 0 &&
	       w->s.nhanded == 0 && w->s.free_reads != NULL && w->s.free_writes != NULL);
	idle = atomic_fetch_or(&p->workers.idle, bit);
	assert((idle & bit) == 0);
	(void)idle;
}

/* The same; a service passes on what the thread had to say.  Services are there for as long as somebody has a worker. */
static void
put_back(struct pager *p, const struct worker *w)
{
	if (log_waits(&p->log))
		p->service[0]->io->ops->kick(p->service[0]->io);
	put(p, w);
}

int
workers_init(struct pager *p)
{
	struct workers *ws = &p->workers;

	if (!resv_try(&p->resv_meta, META_LATENCY))
		return -ENOMEM;
	pthread_mutex_init(&ws->lock, NULL);
	if (wired_array_init(&ws->latency, &p->arena, sizeof(struct histogram), UP_FAULT_KINDS) <
	    0) {
		pthread_mutex_destroy(&ws->lock);
		resv_give(&p->resv_meta, META_LATENCY);
		return -ENOMEM;
	}
	if (wired_array_grow(&ws->latency, UP_FAULT_KINDS) < 0)
		goto fini;
	for (unsigned i = 0; i < WORKERS_FIRST; i++) {
		const struct worker *w = make(p);

		if (w == NULL)
			goto fini;
		put(p, w);
	}
	return 0;

fini:
	workers_fini(p);
	return -ENOMEM;
}

void
workers_fini(struct pager *p)
{
	struct workers *ws = &p->workers;
	const unsigned n = atomic_exchange(&ws->n, 0);

	for (unsigned i = 0; i < n; i++) {
		struct worker *w = ws->worker[i];
		struct wired_array mem = w->s.mem;

		assert(w->s.io->inflight == 0);
		w->s.io->ops->destroy(w->s.io);
		pthread_mutex_destroy(&w->s.cmd_lock);
		tier_strip(&w->s);
		wired_array_fini(&mem);
		resv_give(&p->resv_meta, meta_per_worker(p));
	}
	atomic_store(&ws->idle, 0);
	wired_array_fini(&ws->latency);
	resv_give(&p->resv_meta, META_LATENCY);
	pthread_mutex_destroy(&ws->lock);
}

static void
nap(struct pager *p, uint64_t ns)
{
	const struct timespec ts = { .tv_nsec = (long)ns };

	if (p->idle != NULL)
		p->idle(p->idle_ctx);
	else
		syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &ts, NULL);
}

static bool
stopped(struct pager *p)
{
	return atomic_load(&p->workers.stop);
}

/* One that nobody has; NULL: there is none, or the runtime goes.  Never waits. */
static struct worker *
get_idle(struct pager *p)
{
	struct workers *ws = &p->workers;
	uint64_t idle = atomic_load(&ws->idle);

	while (idle != 0) {
		const uint64_t bit = idle & -idle;
		struct worker *w;

		if (!atomic_compare_exchange_weak(&ws->idle, &idle, idle & ~bit))
			continue;
		w = ws->worker[__builtin_ctzll(bit)];
		/* Who has one has not seen `stop`, and is waited for. */
		if (!stopped(p))
			return w;
		put(p, w);
		return NULL;
	}
	return NULL;
}

/* NULL: the runtime goes. */
static struct worker *
get(struct pager *p)
{
	struct workers *ws = &p->workers;

	while (!stopped(p)) {
		struct worker *w = get_idle(p);

		if (w != NULL)
			return w;
		pthread_mutex_lock(&ws->lock);
		w = stopped(p) ? NULL : make(p);
		pthread_mutex_unlock(&ws->lock);
		if (w != NULL)
			return w;
		if (!stopped(p))
			nap(p, NAP_MIN);
	}
	return NULL;
}

/* The I/O that it has started. */
static void
run(struct service *s)
{
	while (s->io->inflight > 0) {
		struct io_events ev;

		s->io->ops->wait(s->io, -1, &ev);
		service_complete(s, ev.completed);
		if (ev.completed == NULL) /* of a simulated disk */
			nap(s->p, 0);
	}
}

void
workers_kick(struct pager *p)
{
	struct workers *ws = &p->workers;

	if (atomic_load(&ws->waiting) == 0)
		return;
	atomic_fetch_add(&ws->room, 1);
	syscall(SYS_futex, &ws->room, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

void
workers_stop(struct pager *p)
{
	struct workers *ws = &p->workers;

	if (!ws->on)
		return;
	/* From here on none is made. */
	pthread_mutex_lock(&ws->lock);
	atomic_store(&ws->stop, true);
	pthread_mutex_unlock(&ws->lock);
	workers_kick(p);
}

void
workers_wait(struct pager *p)
{
	struct workers *ws = &p->workers;

	while (ws->on &&
	       (unsigned)__builtin_popcountll(atomic_load(&ws->idle)) < atomic_load(&ws->n))
		nap(p, NAP_MAX);
}

/*
 * There was no room, and `room` was the futex's value before.  What a stream wants at once is best left to services, which have many writes in
 * flight.
 */
static void
make_room(struct service *s, unsigned room, bool hurry)
{
	const struct timespec most = { .tv_nsec = NAP_MAX };
	struct pager *p = s->p;
	bool stepped = false;

	if (!hurry) {
		/* As a service does for which faults wait. */
		s->nparked = 1;
		stepped = pageout_step(s);
		s->nparked = 0;
		run(s);
	}
	if (stepped)
		return;
	services_press(p);
	if (p->idle != NULL) {
		p->idle(p->idle_ctx);
		return;
	}
	/* It keeps its worker: nothing of what makes room needs one, and all of them would only wait for the same. */
	atomic_fetch_add(&p->workers.waiting, 1);
	syscall(SYS_futex, &p->workers.room, FUTEX_WAIT_PRIVATE, room, &most, NULL, 0);
	atomic_fetch_sub(&p->workers.waiting, 1);
}

/* True if that is all: a service has brought it in, or it is not to be had.  *full: for want of a promise; false too: look again. */
static bool
ask_service(struct pager *p, const struct parked *pk, enum served *served, bool *full)
{
	struct demand d = { .va = pk->va, .end = pk->va + PAGE_SIZE };

	switch (demand_range(p, &d)) {
	case 0:
	case -EACCES: /* protected meanwhile: SIGSEGV */
		return true;
	case -ENOMEM:
		*served = SERVED_NOT_OURS;
		return true;
	case -ENOSPC:
		*full = true;
		return false;
	default:
		/* Lost, or no room: the next look tells. */
		return false;
	}
}

/* True if it is mapped through this pager. */
static bool
ours(struct pager *p, uintptr_t va)
{
	bool is;

	pthread_rwlock_rdlock(&p->map.lock);
	is = map_lookup(&p->map, va) != NULL;
	pthread_rwlock_unlock(&p->map.lock);
	return is;
}

/*
 * One look, with a worker, and what of it can be done at once.  The caller has none while it waits for anything: what it waits for
 * may need one.  `e`: as fault_serve() has it.
 */
static enum fault_next
attempt(struct pager *p, struct worker *w, struct parked *pk, struct map_entry *e, unsigned room,
	int *waitq)
{
	const enum fault_next next = fault_serve(&w->s, pk, e, waitq);

	/* The wait queue is locked, and innermost: nothing may be locked inside. */
	if (next == FAULT_BUSY)
		return next;
	if (next == FAULT_ROOM)
		make_room(&w->s, room, pk->hurry);
	if (p->idle == NULL && pk->busy) {
		/* While its read is under way. */
		w->s.io->ops->flush(w->s.io);
		/* Of a single page a service would only interrupt this thread; a stream it can keep pace with. */
		if (pk->busy == 1)
			pageout_help(&w->s);
		else
			pageout_ask(p);
	}
	run(&w->s);
	if (p->idle == NULL)
		pageout_wake(p);
	return next;
}

/* True if it is over, and *served says how. */
static bool
give_up(struct pager *p, const struct parked *pk, bool full, enum served *served)
{
	struct worker *w = get(p);
	bool lost;

	if (w == NULL) {
		*served = SERVED;
		return true;
	}
	lost = full ? fault_full(&w->s, pk) : fault_time_out(&w->s, pk);
	put_back(p, w);
	if (lost)
		*served = SERVED_LOST;
	return lost;
}

enum served
worker_serve(struct pager *p, uintptr_t va, bool write)
{
	struct parked pk = { .va = va, .t0 = now_ns(), .write = write };
	enum served served = SERVED;
	uint64_t ns = NAP_MIN;
	struct map_entry *e;
	bool over = false;

	/* Nobody waits for a worker who is not to be served here: looked up before, and not again if one is to be had at once. */
	pthread_rwlock_rdlock(&p->map.lock);
	e = map_lookup(&p->map, va);
	if (e == NULL) {
		pthread_rwlock_unlock(&p->map.lock);
		return SERVED_NOT_OURS;
	}
	PROBE2(fault__inline, va, write);
	while (!over) {
		const unsigned room = atomic_load(&p->workers.room);
		struct worker *w = get_idle(p);
		enum fault_next next;
		bool full = false;
		int waitq = -1;

		if (w == NULL) {
			if (e != NULL)
				pthread_rwlock_unlock(&p->map.lock);
			e = NULL;
			w = get(p);
		}
		if (w == NULL) {
			/* The runtime goes: whoever touches its regions faults until they are unmapped, and then gets SIGSEGV. */
			nap(p, NAP_MAX);
			return ours(p, va) ? SERVED : SERVED_NOT_OURS;
		}
		next = attempt(p, w, &pk, e, room, &waitq);
		e = NULL;
		if (next == FAULT_BUSY)
			put(p, w);
		else
			put_back(p, w);
		switch (next) {
		case FAULT_SERVED:
			return SERVED;
		case FAULT_LOST:
			return SERVED_LOST;
		case FAULT_STRAY:
			return SERVED_NOT_OURS;
		case FAULT_BUSY:
			if (waitq >= 0)
				anon_sleep(&p->waitqs, waitq);
			else
				nap(p, 0);
			return SERVED;
		case FAULT_ROOM:
			break;
		case FAULT_LATER:
			nap(p, ns);
			ns = MIN(ns * 2, NAP_MAX);
			break;
		case FAULT_ASK:
			over = ask_service(p, &pk, &served, &full);
			if (!over && !full)
				nap(p, NAP_MIN);
			break;
		}
		over = over || give_up(p, &pk, full, &served);
		if (!over && full)
			nap(p, NAP_MAX);
	}
	return served;
}
