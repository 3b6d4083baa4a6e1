/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * early.c: what streams want to be read before they come by (readahead.c says what that is).
 *
 *	thread that serves a fault          service of the entry
 *	go_ahead() --- wish, kick -------->  early_serve(), a part of each turn: reads of a cluster each, or of a page of a stride,
 *	                                     while requests and frames are to spare
 *
 * A wish is forgotten, and the stream faults, when there is no room for it and none to be expected, and when its source takes no more
 * requests: nobody waits for it, so nobody else may have to.
 */
#include "pager/pager.h"

void
early_wish(struct service *s, uintptr_t va, uintptr_t end, int step)
{
	struct early *e = &s->early;
	bool taken = true;

	pthread_mutex_lock(&s->cmd_lock);
	/* A stream that asks again before its last wish has come true. */
	for (unsigned i = 0; i < e->n; i++) {
		if (e->range[i].step != step)
			continue;
		if (step > 0 && e->range[i].end == va) {
			e->range[i].end = end;
			goto out;
		}
		if (step < 0 && e->range[i].va == end) {
			e->range[i].va = va;
			goto out;
		}
	}
	taken = e->n < CMD_MAX;
	if (taken) {
		e->range[e->n].va = va;
		e->range[e->n].end = end;
		e->range[e->n++].step = step;
	}
out:
	pthread_mutex_unlock(&s->cmd_lock);
	if (taken)
		s->io->ops->kick(s->io);
}

/* The first part of the oldest wish: up to a cluster, or one page of a stride.  False: there is none. */
static bool
next_part(struct service *s, uintptr_t *va, uintptr_t *end)
{
	struct early *e = &s->early;
	bool any;

	/* Who adds one kicks. */
	if (atomic_load_explicit(&e->n, memory_order_relaxed) == 0)
		return false;
	pthread_mutex_lock(&s->cmd_lock);
	any = e->n > 0;
	if (any) {
		const int step = e->range[0].step;
		const size_t most = (step == 1 || step == -1 ? CLUSTER_MAX : 1) * PAGE_SIZE;

		*va = e->range[0].va;
		*end = e->range[0].end;
		if (step > 0 && *end - *va > most)
			*end = *va + most;
		else if (step < 0 && *end - *va > most)
			*va = *end - most;
	}
	pthread_mutex_unlock(&s->cmd_lock);
	return any;
}

/* That part has been seen to. */
static void
go_on(struct service *s, uintptr_t va, uintptr_t end)
{
	struct early *e = &s->early;
	uintptr_t by;

	pthread_mutex_lock(&s->cmd_lock);
	assert(e->n > 0);
	by = e->range[0].step == 1 || e->range[0].step == -1
		     ? end - va
		     : (uintptr_t)(e->range[0].step < 0 ? -e->range[0].step : e->range[0].step)
			       << PAGE_SHIFT;
	by = MIN(by, e->range[0].end - e->range[0].va);
	if (e->range[0].step > 0)
		e->range[0].va += by;
	else
		e->range[0].end -= by;
	if (e->range[0].va == e->range[0].end) {
		e->n--;
		for (unsigned i = 0; i < e->n; i++)
			e->range[i] = e->range[i + 1];
	}
	pthread_mutex_unlock(&s->cmd_lock);
}

/* Reads that will end for certain: those that pagers of the program have may not. */
static unsigned
reads_own(const struct service *s)
{
	return s->nreads - MIN(s->nreads, s->nhanded - s->nhanded_out);
}

bool
early_serve(struct service *s)
{
	struct pager *p = s->p;
	uintptr_t va, end;

	s->early_waits = false;
	while (next_part(s, &va, &end)) {
		uintptr_t at = va;

		ahead_trim(s);
		while (at < end) {
			const bool room = frames_available(p) >= 2 * CLUSTER_MAX;

			if (room && requests_spare(s) &&
			    pagein_ahead(s, s->id, &at, end, FOR_STREAM))
				continue;
			/*
			 * Go on when there are frames, or a read completes.  If neither is to be expected, or it is the source that takes no
			 * more requests, the stream will fault.
			 */
			if ((room && requests_spare(s)) ||
			    (reads_own(s) == 0 && atomic_load(&p->laundering) == 0))
				break;
			s->early_waits = reads_own(s) == 0;
			return false;
		}
		go_on(s, va, end);
	}
	return true;
}
