/* SPDX-License-Identifier: BSD-2-Clause */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "pmap/events.h"
#include "pmap/track.h"

#define PAUSE_NS 1000000
/* Looks at a descriptor for an instant in which no event waits: they pass quickly, but others may follow. */
#define LOOKS 64

struct track_shard {
	int fd; /* (c) */
	pthread_rwlock_t gate;
	_Atomic uint64_t quiet;	 /* no event waited to be read at some time at or after this one */
	pthread_mutex_t landing; /* the two areas */
	uintptr_t land,
		trash; /* (c) CLUSTER_MAX pages each; land is the shard's, trash staging's */
};

struct track {
	struct events events;
	_Atomic uint64_t clock;
	unsigned n; /* (c) shards */
	struct track_shard shard[];
};

uint64_t
track_features(void)
{
	return UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP;
}

int
track_check(uint64_t found, uint64_t used, const struct logger *log)
{
	const uint64_t need = UP_MASK_MOVE | UP_MASK_POISON;

	if ((found & track_features()) == track_features() && (used & need) == need)
		return 0;
	log_line(log, UP_LOG_ERROR,
		 "UP_TRACK_FOREIGN: this needs UFFDIO_MOVE, Linux 6.8 or newer%s",
		 (found & UFFD_FEATURE_MOVE) ? ", and that it is not masked" : "");
	return -ENOSYS;
}

static struct track_shard *
shard_of(struct pmap *pm, unsigned shard)
{
	assert(shard < pm->nshards);
	return &to_uffd(pm)->track->shard[shard];
}

static struct events *
events_of(struct pmap *pm)
{
	return &to_uffd(pm)->track->events;
}

/* --- messages --- */

static void
event_taken(struct track *t, unsigned shard, const struct uffd_msg *m)
{
	struct pmap_event ev = { .shard = shard, .token = atomic_fetch_add(&t->clock, 1) + 1 };
	bool ok;

	switch (m->event) {
	case UFFD_EVENT_REMOVE:
	case UFFD_EVENT_UNMAP:
		ev.kind = m->event == UFFD_EVENT_UNMAP ? PMAP_UNMAP : PMAP_REMOVE;
		ev.va = (uintptr_t)m->arg.remove.start;
		ev.len = (size_t)(m->arg.remove.end - m->arg.remove.start);
		break;
	case UFFD_EVENT_REMAP:
		ev.kind = PMAP_REMAP;
		ev.va = (uintptr_t)m->arg.remap.from;
		ev.to = (uintptr_t)m->arg.remap.to;
		ev.len = (size_t)m->arg.remap.len;
		break;
	default:
		assert(!"no other event was asked for");
		return;
	}
	ok = events_add(&t->events, ev);
	assert(ok); /* there was room before it was read */
	(void)ok;
}

/*
 * Take messages, at most `max` of them faults, into buf.  Returns how many; *empty: there are no more, or not now.
 * With many events to be acted upon they are taken slowly.
 */
static unsigned
take(struct track *t, unsigned shard, struct pmap_fault *buf, unsigned max, bool *empty)
{
	struct track_shard *sh = &t->shard[shard];
	struct uffd_msg msg[16];
	const unsigned standing = atomic_load(&t->events.n);
	const struct timespec pause = { .tv_nsec = PAUSE_NS };
	size_t want = MIN(max, (unsigned)ARRAY_SIZE(msg));
	unsigned n = 0;
	ssize_t got;

	*empty = true;
	if (standing >= EVENTS_MANY) {
		clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
		want = 1;
	}
	/* Each shard may be about to add as many. */
	if (standing >= EVENTS_MAX - (unsigned)ARRAY_SIZE(msg) * (t->n + 1))
		return 0;
	pthread_rwlock_wrlock(&sh->gate);
	got = read(sh->fd, msg, want * sizeof msg[0]);
	for (size_t i = 0; got > 0 && i < (size_t)got / sizeof msg[0]; i++) {
		const uint64_t flags = msg[i].arg.pagefault.flags;

		if (msg[i].event != UFFD_EVENT_PAGEFAULT) {
			event_taken(t, shard, &msg[i]);
			continue;
		}
		buf[n++] = (struct pmap_fault){
			.va = (uintptr_t)msg[i].arg.pagefault.address & ~PAGE_MASK,
			.shard = shard,
			.write = (flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0,
			.wp = (flags & UFFD_PAGEFAULT_FLAG_WP) != 0,
		};
	}
	pthread_rwlock_unlock(&sh->gate);
	*empty = (got < (ssize_t)(want * sizeof msg[0]) && !(got < 0 && errno == EINTR)) ||
		 standing >= EVENTS_MANY;
	return n;
}

/* While events stand, more of them may be waiting than it took. */
static unsigned
tracked_faults(struct pmap *pm, unsigned shard, struct pmap_fault *buf, unsigned max)
{
	unsigned n = 0;
	bool empty = false;

	while (n < max && !empty)
		n += take(to_uffd(pm)->track, shard, buf + n, max - n, &empty);
	return n;
}

static void
tracked_drain(struct pmap *pm, int timeout_ms)
{
	struct track *t = to_uffd(pm)->track;
	struct pollfd fds[UP_SERVICE_THREADS_MAX];

	for (unsigned i = 0; i < t->n; i++)
		fds[i] = (struct pollfd){ .fd = t->shard[i].fd, .events = POLLIN };
	if (poll(fds, t->n, timeout_ms) <= 0)
		return;
	for (unsigned i = 0; i < t->n; i++) {
		struct pmap_fault buf[16];
		bool empty;

		if (fds[i].revents & POLLIN)
			take(t, i, buf, ARRAY_SIZE(buf), &empty);
	}
}

/*
 * --- what has been told ---
 *
 * The kernel refuses what is to install pages while an event waits; so when it did, at some time after `time`, none was waiting.
 */

static uint64_t
time_now(struct pmap *pm)
{
	return atomic_load(&to_uffd(pm)->track->clock);
}

static void
was_quiet(struct track_shard *sh, uint64_t time)
{
	uint64_t quiet = atomic_load_explicit(&sh->quiet, memory_order_relaxed);

	while (quiet < time && !atomic_compare_exchange_weak(&sh->quiet, &quiet, time))
		;
}

/* No event waits at this instant?  The kernel looks at that before it looks at the range, and there is none. */
static bool
quiet(const struct track_shard *sh)
{
	struct uffdio_writeprotect wp = { 0 };

	return !(ioctl(sh->fd, UFFDIO_WRITEPROTECT, &wp) < 0 && errno == EAGAIN);
}

/* UFFDIO_WRITEPROTECT, off, as soon as no event waits; -EAGAIN if that takes too long. */
static int
ask(struct pmap *pm, struct track_shard *sh, uintptr_t va, size_t n)
{
	struct uffdio_writeprotect wp = { .range = { .start = va, .len = n << PAGE_SHIFT } };
	uint64_t time = 0;
	int r = -EAGAIN;

	for (unsigned i = 0; i < LOOKS && r == -EAGAIN; i++) {
		if (i > 0)
			sched_yield();
		time = time_now(pm);
		r = ioctl(sh->fd, UFFDIO_WRITEPROTECT, &wp) < 0 ? -errno : 0;
	}
	if (r != -EAGAIN)
		was_quiet(sh, time);
	return r;
}

static uint64_t
tracked_token(struct pmap *pm)
{
	return atomic_fetch_add(&to_uffd(pm)->track->clock, 1) + 1;
}

static bool
tracked_settled(struct pmap *pm, unsigned shard, uint64_t token)
{
	struct track_shard *sh = shard_of(pm, shard);

	if (atomic_load(&sh->quiet) < token)
		ask(pm, sh, 0, 0);
	if (atomic_load(&sh->quiet) < token)
		return false;
	/* What has been read is in the list when the gate opens. */
	pthread_rwlock_rdlock(&sh->gate);
	pthread_rwlock_unlock(&sh->gate);
	return true;
}

static int
tracked_registered(struct pmap *pm, unsigned shard, uintptr_t va, size_t n)
{
	const int r = ask(pm, shard_of(pm, shard), va, n);

	return r == -EAGAIN ? r : r == 0;
}

static bool
tracked_event(struct pmap *pm, uint64_t after, struct pmap_event *ev)
{
	struct track *t = to_uffd(pm)->track;

	/* The call that a message is about may have ended: it is in the list when the gate opens. */
	for (unsigned i = 0; i < t->n && after == 0; i++) {
		pthread_rwlock_rdlock(&t->shard[i].gate);
		pthread_rwlock_unlock(&t->shard[i].gate);
	}
	return events_next(&t->events, after, ev);
}

static void
tracked_event_done(struct pmap *pm, const struct pmap_event *ev)
{
	events_done(events_of(pm), ev->number);
}

static bool
tracked_event_clip(struct pmap *pm, const struct pmap_event *ev, uintptr_t va, uintptr_t end)
{
	return events_clip(events_of(pm), ev->number, va, end);
}

/* --- into regions --- */

static int
tracked_zero(struct pmap *pm, unsigned shard, uintptr_t va, size_t n, size_t *done)
{
	struct track_shard *sh = shard_of(pm, shard);
	const uint64_t time = time_now(pm);
	size_t k;
	int r = 0;

	*done = 0;
	pthread_rwlock_rdlock(&sh->gate);
	k = events_clear(events_of(pm), shard, va, n);
	if (k > 0)
		r = uffd_zero(pm, shard, va, k, done);
	if (*done > 0)
		was_quiet(sh, time);
	pthread_rwlock_unlock(&sh->gate);
	return r == 0 && k < n ? -EAGAIN : r;
}

static int
tracked_enter(struct pmap *pm, unsigned shard, uintptr_t va, frame_t frame, size_t n, size_t *done)
{
	struct track_shard *sh = shard_of(pm, shard);
	const uint64_t time = time_now(pm);
	size_t k;
	int r = 0;

	*done = 0;
	pthread_rwlock_rdlock(&sh->gate);
	k = events_clear(events_of(pm), shard, va, n);
	if (k > 0)
		r = uffd_enter(pm, shard, va, frame, k, done);
	if (*done > 0)
		was_quiet(sh, time);
	pthread_rwlock_unlock(&sh->gate);
	return r == 0 && k < n ? -EAGAIN : r;
}

static int
tracked_poison(struct pmap *pm, unsigned shard, uintptr_t va)
{
	struct track_shard *sh = shard_of(pm, shard);
	int r = -EAGAIN;

	pthread_rwlock_rdlock(&sh->gate);
	if (events_clear(events_of(pm), shard, va, 1) > 0)
		r = uffd_poison(pm, shard, va);
	pthread_rwlock_unlock(&sh->gate);
	return r;
}

/* --- out of regions --- */

/*
 * UFFDIO_MOVE of pages to where nothing is: how many from the front, above 0, or why not the first.
 *
 * Linux 6.18 forgets to count a page if it had to look at it twice, and then finds it at its destination: EEXIST.  (And
 * where holes are allowed it looks for ever at a page that has become one.  So they are not.)
 */
static ssize_t
move_to_holes(int fd, uintptr_t dst, uintptr_t src, size_t n)
{
	size_t done = 0;

	while (done < n) {
		const size_t off = done << PAGE_SHIFT;
		const ssize_t k = uffd_move(fd, dst + off, src + off, n - done);

		if (k > 0 || k == -EEXIST)
			done += k > 0 ? (size_t)k : 1;
		else if (done == 0)
			return k;
		else
			break;
	}
	return (ssize_t)done;
}

/*
 * Pages of a region to the landing area: how many from the front, above 0; or -ESTALE: the first has been unmapped or moved,
 * and what UFFDIO_MOVE says.  => landing is locked
 */
static ssize_t
land(struct pmap *pm, unsigned shard, uintptr_t src, size_t n)
{
	struct track_shard *sh = shard_of(pm, shard);
	const uint64_t time = time_now(pm);
	ssize_t k = -ESTALE;
	size_t gone;

	pthread_rwlock_rdlock(&sh->gate);
	n = events_there(events_of(pm), shard, src, MIN(n, (size_t)CLUSTER_MAX), &gone);
	if (n > 0)
		k = move_to_holes(sh->fd, sh->land, src, n);
	/* It looks for the mapping first: that may be about to go, and the page with it, to where it is moved. */
	if (k == -ENOENT && !quiet(sh))
		k = -EAGAIN;
	if (k > 0)
		was_quiet(sh, time);
	pthread_rwlock_unlock(&sh->gate);
	return k;
}

/* On from there.  Nobody else has these pages: what the kernel objects to will pass.  => landing is locked */
static void
take_off(struct pmap *pm, unsigned shard, uintptr_t dst, size_t n)
{
	const uintptr_t src = shard_of(pm, shard)->land;
	size_t done = 0;

	while (done < n) {
		const size_t off = done << PAGE_SHIFT;
		const ssize_t k =
			move_to_holes(to_uffd(pm)->stage_fd, dst + off, src + off, n - done);

		if (k > 0)
			done += (size_t)k;
		else
			sched_yield();
	}
}

static ssize_t
move_out(struct pmap *pm, unsigned shard, uintptr_t dst, uintptr_t src, size_t n)
{
	struct track_shard *sh = shard_of(pm, shard);
	ssize_t k;

	pthread_mutex_lock(&sh->landing);
	k = land(pm, shard, src, n);
	if (k > 0)
		take_off(pm, shard, dst, (size_t)k);
	pthread_mutex_unlock(&sh->landing);
	return k;
}

/* The errors of UFFDIO_MOVE are explained at uffd_remove(). */
static int
tracked_remove(struct pmap *pm, unsigned shard, uintptr_t va, frame_t hole, size_t n, size_t *done)
{
	const uintptr_t dst = frame_va(to_uffd(pm), hole, n);
	size_t exclusive = SIZE_MAX, most = n;

	*done = 0;
	while (*done < n) {
		const size_t off = *done << PAGE_SHIFT, want = MIN(n - *done, most);
		const ssize_t k = move_out(pm, shard, dst + off, va + off, want);

		if (k > 0) {
			*done += (size_t)k;
			most = MIN(most * 2, n);
		} else if ((k == -ENOENT || k == -EINVAL) && want > 1) {
			most = 1;
		} else if (k == -EBUSY && exclusive != *done && uffd_make_exclusive(va + off)) {
			exclusive = *done;
		} else {
			return k == -EINVAL || k == -EFAULT ? -EBUSY : (int)k;
		}
	}
	return 0;
}

/* A poisoned page gets zeros, which can be moved. */
static int
unpoison(struct pmap *pm, unsigned shard, uintptr_t va)
{
	struct track_shard *sh = shard_of(pm, shard);
	ssize_t k = -ESTALE;
	size_t gone;

	pthread_rwlock_rdlock(&sh->gate);
	if (events_there(events_of(pm), shard, va, 1, &gone) > 0)
		k = uffd_copy(sh->fd, va, (uintptr_t)to_uffd(pm)->zeros, 1);
	pthread_rwlock_unlock(&sh->gate);
	return k > 0 ? 0 : (int)k;
}

/* Drop up to n pages from va on.  How many, or a negative errno. */
static ssize_t
discard_some(struct pmap *pm, unsigned shard, uintptr_t va, size_t n)
{
	struct track_shard *sh = shard_of(pm, shard);
	ssize_t k;

	pthread_mutex_lock(&sh->landing);
	k = land(pm, shard, va, n);
	if (k > 0) {
		take_off(pm, shard, sh->trash, (size_t)k);
		uffd_drop_pages(sh->trash, (size_t)k);
	}
	pthread_mutex_unlock(&sh->landing);
	return k;
}

static int
tracked_discard(struct pmap *pm, unsigned shard, uintptr_t va, size_t n)
{
	size_t most = CLUSTER_MAX;
	bool busy = false;

	while (n > 0) {
		const size_t want = MIN(n, most);
		ssize_t k = discard_some(pm, shard, va, want);
		size_t gone = 0;

		if (k < 0 && k != -ESTALE && k != -EAGAIN && want > 1) {
			most = 1; /* it spans mappings, or one of them is special */
			continue;
		}
		if (k == -EFAULT && unpoison(pm, shard, va) == 0)
			continue;
		if (k == -ESTALE && events_there(events_of(pm), shard, va, want, &gone) == 0)
			k = (ssize_t)gone; /* nothing of ours is there */
		if (k == -ENOENT)
			k = 1; /* nor is there now */
		if (k == -EBUSY || k == -EINVAL || k == -EFAULT) {
			busy = true;
			k = 1;
		}
		if (k == -ESTALE)
			continue; /* the event has been acted upon in between */
		if (k < 0)
			return (int)k;
		most = MIN(most * 2, (size_t)CLUSTER_MAX);
		va += (uintptr_t)k << PAGE_SHIFT;
		n -= (size_t)k;
	}
	return busy ? -EBUSY : 0;
}

static int
tracked_drop(struct pmap *pm, unsigned shard, uintptr_t va, size_t n)
{
	(void)pm;
	(void)shard;
	return uffd_drop_pages(va, n);
}

/*
 * The caller does not say of which shard the page is: no event of any may be about it, neither before nor after, and none may
 * wait to be read.
 */
static int
look(struct pmap *pm, uintptr_t va)
{
	const uint64_t token = tracked_token(pm);

	for (unsigned shard = 0; shard < pm->nshards; shard++) {
		size_t gone;

		if (!tracked_settled(pm, shard, token))
			return -EAGAIN;
		if (events_there(events_of(pm), shard, va, 1, &gone) == 0)
			return -ESTALE;
	}
	return 0;
}

static int
tracked_read(struct pmap *pm, uintptr_t va, void *buf)
{
	int r = look(pm, va), after;

	if (r < 0)
		return r;
	r = uffd_read(pm, va, buf);
	after = look(pm, va);
	return after < 0 ? after : r;
}

/* --- */

/* Addresses with nothing behind them, registered. */
static int
area(int fd, uintptr_t *va)
{
	const struct backing none = { .fd = -1 };

	return uffd_region_map(&none, fd, 0, false, (size_t)CLUSTER_MAX << PAGE_SHIFT,
			       PROT_READ | PROT_WRITE, UFFDIO_REGISTER_MODE_MISSING, va);
}

int
track_create(struct uffd_pmap *u)
{
	const unsigned n = u->pmap.nshards;
	struct track *t = calloc(1, sizeof *t + n * sizeof t->shard[0]);
	int r = 0;

	if (t == NULL)
		return -ENOMEM;
	assert(n <= UP_SERVICE_THREADS_MAX);
	u->track = t;
	t->n = n;
	events_init(&t->events);
	for (unsigned i = 0; i < n; i++) {
		t->shard[i].fd = u->fd[i];
		pthread_rwlock_init(&t->shard[i].gate, NULL);
		pthread_mutex_init(&t->shard[i].landing, NULL);
	}
	for (unsigned i = 0; i < n && r == 0; i++) {
		r = area(u->fd[i], &t->shard[i].land);
		if (r == 0)
			r = area(u->stage_fd, &t->shard[i].trash);
	}
	u->ops.zero = tracked_zero;
	u->ops.enter = tracked_enter;
	u->ops.poison = tracked_poison;
	u->ops.remove = tracked_remove;
	u->ops.discard = tracked_discard;
	u->ops.read = tracked_read;
	u->ops.faults = tracked_faults;
	u->ops.event = tracked_event;
	u->ops.event_done = tracked_event_done;
	u->ops.event_clip = tracked_event_clip;
	u->ops.token = tracked_token;
	u->ops.settled = tracked_settled;
	u->ops.registered = tracked_registered;
	u->ops.drop = tracked_drop;
	u->ops.drain = tracked_drain;
	return r;
}

static void
area_destroy(uintptr_t va)
{
	if (va != 0)
		munmap((void *)va, (size_t)CLUSTER_MAX << PAGE_SHIFT);
}

void
track_destroy(struct uffd_pmap *u)
{
	struct track *t = u->track;

	if (t == NULL)
		return;
	for (unsigned i = 0; i < t->n; i++) {
		area_destroy(t->shard[i].land);
		area_destroy(t->shard[i].trash);
		pthread_rwlock_destroy(&t->shard[i].gate);
		pthread_mutex_destroy(&t->shard[i].landing);
	}
	events_fini(&t->events);
	free(t);
	u->track = NULL;
}
