/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * readahead.c: streams in an entry, and how far to read ahead of each.
 *
 * A stream is the index at which its next fault is expected, and the step from one to the next.  A fault there is a hit and
 * doubles the window; one elsewhere replaces the oldest stream with a window of one, so random access never reads ahead.
 * Several streams in one entry (threads, merges) each keep their own.
 *
 *	forward    a hit at `next`, or a little behind it: what was passed over is passed over
 *	backward   a fault at i, one at i - 1, and the third at i - 2
 *	strided    the same with more than a page between them
 *
 *	            fault                      window
 *	  ----------- i ------------------------->|
 *	  in memory   |== in memory ==|.. asked ..|
 *	              |               |           |
 *	              next            what is     ahead
 *	                              staged
 *
 * A forward stream begins with what comes along with the page at fault, up to a cluster in one read that the thread waits
 * for.  With more than that it flows: reads are started ahead of it, a cluster each, that nobody waits for, and what they
 * bring stays staged (AHEAD) until the stream comes by.  A soft fault then maps as much as is there, in one move, and is
 * the moment to ask for more.  So the stream faults a few times in a window and waits for the disk only if it is faster.  A backward or
 * strided stream flows as soon as it is one.
 *
 * What is used is known, since it has to be faulted in: pages that leave AHEAD unused make their object's windows smaller
 * (struct object's ahead_credit), hits larger again.
 *
 * The fields are read and written without a lock: a lost update costs one read too small or too large.
 */
#include <stdlib.h>

#include "pager/pager.h"

#define MEMORY_SHARE \
	32 /* a window takes no more than this part of memory, if that is more than a cluster */
#define STRIDE_MAX 256
#define STRIDED_WINDOW 16 /* each page is a read of its own */
#define OLDEST_EACH 5
#define CREDIT_MAX 4096
#define AHEAD_ALL INT64_MAX /* a backward stream has asked for all there is */
#define WASTE_WEIGHT 4	    /* a page read for nothing costs more than one read a little later */

/* The most that a stream of this object reads ahead. */
static unsigned
window_max(struct pager *p, const struct object *o)
{
	const size_t share = p->budget.limit / PAGE_SIZE / MEMORY_SHARE;

	if (atomic_load_explicit(&o->ahead_credit, memory_order_relaxed) < 0)
		return CLUSTER_MAX / 4;
	return (unsigned)MIN(MAX(share / CLUSTER_MAX, 1) * CLUSTER_MAX, RA_WINDOW_MAX);
}

void
readahead_credit(struct object *o, int n)
{
	int credit = atomic_load_explicit(&o->ahead_credit, memory_order_relaxed);

	credit += n >= 0 ? n : n * WASTE_WEIGHT;
	credit = MAX(MIN(credit, CREDIT_MAX), -CREDIT_MAX);
	atomic_store_explicit(&o->ahead_credit, credit, memory_order_relaxed);
}

void
leaf_credit(struct leaf *leaf, int n)
{
	/* A leaf keeps no object: chains are joined, and the one beneath goes.  Whoever has it busy is in no hurry to be counted. */
	if (pthread_mutex_trylock(&leaf->lock) != 0)
		return;
	readahead_credit(leaf->object, n);
	pthread_mutex_unlock(&leaf->lock);
}

static int
step_of(const struct ra_stream *st)
{
	const int step = atomic_load_explicit(&st->step, memory_order_relaxed);

	return step != 0 ? step : 1;
}

/* True if a fault at `index` is where the stream goes. */
static bool
follows(const struct ra_stream *st, uint64_t index)
{
	const uint64_t next = atomic_load_explicit(&st->next, memory_order_relaxed);
	const int64_t window = atomic_load_explicit(&st->window, memory_order_relaxed);
	const int64_t passed = (int64_t)(index - next);
	const int step = step_of(st);

	/* What it passes over was in memory when it came to that. */
	return next != 0 && passed % step == 0 && passed / step >= 0 &&
	       passed / step < MAX(window, 1);
}

static struct ra_stream *
stream_at(struct map_entry *e, uint64_t index)
{
	struct ra_streams *rs = atomic_load_explicit(&e->streams, memory_order_acquire);

	for (unsigned i = 0; rs != NULL && i < RA_STREAMS; i++) {
		if (follows(&rs->stream[i], index))
			return &rs->stream[i];
	}
	return NULL;
}

/*
 * How far it is to this fault from the nearest other that is no stream yet; 0: none is near.  *third: that one was as far from another.
 * The others stay what they are: streams side by side look like this, too.
 */
static int
turn_to(struct ra_streams *rs, uint64_t index, bool *third)
{
	int64_t nearest = STRIDE_MAX + 1;

	*third = false;
	for (unsigned i = 0; i < RA_STREAMS; i++) {
		struct ra_stream *st = &rs->stream[i];
		const int64_t step =
			(int64_t)(index - atomic_load_explicit(&st->at, memory_order_relaxed));

		if (atomic_load_explicit(&st->next, memory_order_relaxed) == 0 ||
		    atomic_load_explicit(&st->step, memory_order_relaxed) != 0 ||
		    llabs(step) > STRIDE_MAX || step == 0)
			continue;
		if (atomic_load_explicit(&st->turn, memory_order_relaxed) == step) {
			*third = true;
			return (int)step;
		}
		if (llabs(step) < llabs(nearest))
			nearest = step;
	}
	return nearest <= STRIDE_MAX ? (int)nearest : 0;
}

/* The stream has come by: it reads further ahead. */
static void
widen(struct pager *p, struct map_entry *e, struct ra_stream *st)
{
	const unsigned max = window_max(p, e->object);
	const unsigned most = readahead_strided(st) ? MIN(max, STRIDED_WINDOW) : max;
	unsigned w = atomic_load_explicit(&st->window, memory_order_relaxed);

	readahead_credit(e->object, (int)MIN(w, CLUSTER_MAX));
	w = e->advice == UP_ADVICE_SEQUENTIAL ? most : MIN(w * 2, most);
	atomic_store_explicit(&st->window, (uint16_t)MAX(w, 1), memory_order_relaxed);
	if (atomic_load_explicit(&st->step, memory_order_relaxed) == 0)
		atomic_store_explicit(&st->step, 1, memory_order_relaxed);
}

bool
readahead_strided(const struct ra_stream *st)
{
	const int step = step_of(st);

	return step != 1 && step != -1;
}

struct ra_stream *
readahead_hit(struct pager *p, struct map_entry *e, uint64_t index)
{
	struct ra_stream *st;

	if (e->advice == UP_ADVICE_RANDOM)
		return NULL;
	st = stream_at(e, index);
	if (st != NULL)
		widen(p, e, st);
	return st;
}

/*
 * The one to forget for a new one: the oldest that is none yet, so that random faults between those of streams do not push these out; now and
 * then the oldest, whatever it is.
 */
static struct ra_stream *
least_stream(struct ra_streams *rs)
{
	const unsigned hand = atomic_fetch_add_explicit(&rs->hand, 1, memory_order_relaxed);

	for (unsigned i = 0; i < RA_STREAMS && hand % OLDEST_EACH != 0; i++) {
		struct ra_stream *st = &rs->stream[(hand + i) % RA_STREAMS];

		if (atomic_load_explicit(&st->step, memory_order_relaxed) == 0)
			return st;
	}
	return &rs->stream[hand % RA_STREAMS];
}

unsigned
readahead_window(struct pager *p, struct map_entry *e, uint64_t index, unsigned max,
		 struct ra_stream **stream)
{
	const bool told = e->advice == UP_ADVICE_SEQUENTIAL;
	struct ra_streams *rs;
	struct ra_stream *st;
	bool third;
	int turn;

	*stream = NULL;
	if (e->advice == UP_ADVICE_RANDOM)
		return 1;
	st = stream_at(e, index);
	if (st != NULL) {
		widen(p, e, st);
		*stream = st;
		return step_of(st) == 1
			       ? MIN(atomic_load_explicit(&st->window, memory_order_relaxed), max)
			       : 1;
	}
	rs = map_streams(&p->map, e);
	if (rs == NULL)
		return 1;
	turn = turn_to(rs, index, &third);
	st = least_stream(rs);
	atomic_store_explicit(&st->step, (int16_t)(third ? turn : 0), memory_order_relaxed);
	atomic_store_explicit(&st->turn, (int16_t)turn, memory_order_relaxed);
	atomic_store_explicit(&st->ahead, index, memory_order_relaxed);
	atomic_store_explicit(&st->window, (uint16_t)(told ? window_max(p, e->object) : 1),
			      memory_order_relaxed);
	*stream = st;
	if (third)
		widen(p, e, st);
	return told && !third ? max : 1;
}

unsigned
readahead_reach(const struct ra_stream *st)
{
	return MAX(atomic_load_explicit(&st->window, memory_order_relaxed), 1);
}

bool
readahead_back(const struct ra_stream *st)
{
	return step_of(st) == -1;
}

bool
readahead_once(struct pager *p, const struct map_entry *e, const struct ra_stream *stream)
{
	if (!tier_suffices(p))
		return false;
	if (e->advice == UP_ADVICE_SEQUENTIAL)
		return true;
	if (e->object->npages <= frames_most(p))
		return false;
	return stream != NULL && readahead_reach(stream) >= CLUSTER_MAX;
}

void
readahead_done(struct ra_stream *st, uint64_t index, unsigned n)
{
	uint64_t next, ahead;
	int step;

	if (st == NULL)
		return;
	step = step_of(st);
	next = index + (uint64_t)((int64_t)n * step);
	ahead = atomic_load_explicit(&st->ahead, memory_order_relaxed);
	/* Who has overtaken what was asked for asks from here on. */
	if (step > 0 ? ahead < next : ahead > next && ahead != AHEAD_ALL)
		atomic_store_explicit(&st->ahead, next, memory_order_relaxed);
	atomic_store_explicit(&st->at, index, memory_order_relaxed);
	atomic_store_explicit(&st->next, (int64_t)next > 0 ? next : 0, memory_order_relaxed);
}

bool
readahead_more(const struct map_entry *e, struct ra_stream *st, struct ra_range *r)
{
	const int64_t first = (int64_t)e->offset;
	const int64_t end = first + (int64_t)((e->end - e->start) >> PAGE_SHIFT);
	const int64_t next = (int64_t)atomic_load_explicit(&st->next, memory_order_relaxed);
	const int64_t ahead = (int64_t)atomic_load_explicit(&st->ahead, memory_order_relaxed);
	const int64_t window = atomic_load_explicit(&st->window, memory_order_relaxed);
	const int step = step_of(st);
	const int64_t want = next + window * step;

	/* A forward stream that has not grown up takes what it needs along with the page at fault. */
	if (next == 0 || (step == 1 ? window <= CLUSTER_MAX : window < 2))
		return false;
	/* The end of the entry, or what was halved meanwhile. */
	if (ahead < first || ahead >= end ||
	    (want - ahead) / step < MAX(MIN(window / 2, CLUSTER_MAX), 1))
		return false;
	r->step = step;
	r->first = (uint64_t)(step > 0 ? ahead : MAX(want + 1, first));
	r->end = (uint64_t)(step > 0 ? MIN(want, end) : ahead + 1);
	atomic_store_explicit(&st->ahead, want < first ? AHEAD_ALL : (uint64_t)want,
			      memory_order_relaxed);
	return true;
}
