/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * slow.c: what is done for a client piece by piece.  See slow.h.
 */
#include <errno.h>
#include <stdlib.h>

#include "client.h"
#include "pager/source.h"

#define PIECE_NS 20000000u /* others wait for that, and for the writes that are under way then */
#define TELL_NS 2000000000u
#define FLUSH_STACK ((size_t)64 << 10)
#define FLUSH_OVERHEAD ((size_t)32 << 10) /* charged to the limit: touched stack */

struct flush {
	struct forks *forks;
	struct source *source;
	pthread_t thread;
	int result;
	atomic_bool done;
	bool wanted; /* (keeper) somebody waits for the result */
};

struct slow {
	uint32_t serial;
	struct call call;
	struct syncing sync;
	struct flush *flush; /* of what sync wants flushed; NULL: still to be begun */
	uint64_t told;
};

uint32_t
slow_op(const struct slow *s)
{
	return s->call.op;
}

uint32_t
slow_serial(const struct slow *s)
{
	return s->serial;
}

bool
slow_tells(struct slow *s)
{
	const uint64_t now = now_ns();

	if (now - s->told < TELL_NS)
		return false;
	s->told = now;
	return true;
}

void
slow_init(struct up_runtime *rt, struct server *sv)
{
	zone_init(&sv->slow_zone, &rt->p.arena, "slow", sizeof(struct slow), NULL, NULL);
}

/* --- flushes --- */

static void *
flush_it(void *arg)
{
	struct flush *fl = arg;

	fl->result = source_settle(fl->source);
	/* Should it be the last reference, to close a file may take as long. */
	source_unref(fl->source);
	atomic_store(&fl->done, true);
	keeper_kick(fl->forks);
	return NULL;
}

/* Signals are blocked, as in all threads of the keeper's. */
static int
start_thread(struct flush *fl)
{
	pthread_attr_t attr;
	int r;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, FLUSH_STACK);
	r = pthread_create(&fl->thread, &attr, flush_it, fl);
	pthread_attr_destroy(&attr);
	if (r == 0)
		pthread_setname_np(fl->thread, "uffd-flush");
	return -r;
}

/* False: there are as many as there may be, or no room for one, and both ends.  Where the system has no thread it is done here. */
static bool
flush_begin(struct forks *f, struct slow *s)
{
	struct pager *p = &f->rt->p;
	struct server *sv = f->rt->server;
	struct flush *fl;

	if (sv->nflushes == FLUSHES)
		return false;
	fl = calloc(1, sizeof *fl);
	if (fl == NULL || !frames_trade(p, FLUSH_OVERHEAD)) {
		free(fl);
		services_press(p);
		return false;
	}
	fl->forks = f;
	fl->source = s->sync.flush;
	fl->wanted = true;
	source_ref(fl->source);
	if (start_thread(fl) == 0) {
		atomic_fetch_add(&p->overhead, FLUSH_OVERHEAD);
		sv->flush[sv->nflushes++] = fl;
		s->flush = fl;
		return true;
	}
	source_unref(fl->source);
	budget_uncharge(&p->budget, FLUSH_OVERHEAD);
	free(fl);
	sync_flushed(f->rt, &s->sync, source_settle(s->sync.flush));
	return true;
}

void
slow_reap(struct up_runtime *rt, bool all)
{
	struct server *sv = rt->server;
	struct pager *p = &rt->p;
	unsigned n = 0;

	if (sv == NULL)
		return;
	for (unsigned i = 0; i < sv->nflushes; i++) {
		struct flush *fl = sv->flush[i];

		if (!all && (fl->wanted || !atomic_load(&fl->done))) {
			sv->flush[n++] = fl;
			continue;
		}
		pthread_join(fl->thread, NULL);
		free(fl);
		atomic_fetch_sub(&p->overhead, FLUSH_OVERHEAD);
		budget_uncharge(&p->budget, FLUSH_OVERHEAD);
	}
	sv->nflushes = n;
}

/* --- pieces --- */

/* What is under way is nobody's any more. */
static void
let_go(struct slow *s)
{
	if (s->flush != NULL)
		s->flush->wanted = false;
	s->flush = NULL;
	if (s->sync.flush != NULL)
		source_unref(s->sync.flush);
	s->sync.flush = NULL;
}

int
slow_begin(struct up_runtime *rt, struct space *sp, const struct call *q, uint32_t serial)
{
	struct slow *s = sp->slow;

	if (s != NULL)
		let_go(s);
	else
		s = zone_alloc(&rt->server->slow_zone, ZONE_WAIT);
	if (s == NULL)
		return -ENOMEM;
	*s = (struct slow){ .serial = serial, .call = *q, .told = now_ns() };
	s->sync.at = q->addr;
	s->sync.end = q->addr + q->length;
	s->sync.flags = q->flags;
	if (q->op != CALL_SYNC) {
		/*
		 * What has been written to files goes there first: once it is mapped no more, a successor would not know of it.  What fails is
		 * tried again, and told, as it is unmapped.
		 */
		s->sync.flags = UP_SYNC_ASYNC;
		s->sync.gaps = true;
	}
	sp->slow = s;
	return 0;
}

enum slow_state
slow_piece(struct forks *f, struct space *sp, int *result)
{
	struct up_runtime *rt = f->rt;
	struct slow *s = sp->slow;
	sigset_t old;
	int r = 1;

	if (s->flush != NULL) {
		if (!atomic_load(&s->flush->done))
			return SLOW_KICKED;
		s->flush->wanted = false;
		sync_flushed(rt, &s->sync, s->flush->result);
		s->flush = NULL;
	}
	if (s->sync.flush == NULL) {
		change_begin(&rt->p, &old);
		r = sync_some(rt, &sp->map, &s->sync, now_ns() + PIECE_NS);
		if (r <= 0 && s->call.op == CALL_UNMAP)
			r = client_unmap(rt, sp, &s->call);
		change_end(&rt->p, &old);
	}
	if (s->sync.flush != NULL) {
		if (!flush_begin(f, s))
			return SLOW_LATER;
		return s->flush != NULL ? SLOW_KICKED : SLOW_MORE;
	}
	*result = r;
	return r > 0 ? SLOW_MORE : SLOW_OVER;
}

void
slow_done(struct up_runtime *rt, struct space *sp)
{
	if (sp->slow == NULL)
		return;
	let_go(sp->slow);
	zone_free(&rt->server->slow_zone, sp->slow);
	sp->slow = NULL;
}
