/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * limit.c: another memory limit while the runtime runs.
 *
 *	 more    what is sized by the limit follows it, the budget last; who waits for room is woken
 *
 *	 less    promises -----> budget ------> frames, until the budget has no more than that ----> 0
 *	          | do not fit     | nothing new       | timeout
 *	          v                v                   v
 *	        as it was       is charged          as it was
 *
 * Addresses there are for the highest limit from the start: of the staging area, of the tables of pages and of the pool.  The limit itself is one
 * number, and pageout, read-ahead and the tier look at it anew each time.  So what is left to do is what was derived from it once: what can be
 * promised, how many of those that left are remembered, what the pool, the heaps and wired pages may have.
 *
 * Alternative: to let the budget go down by and by, as pages leave.  Then whoever faults would take what pageout has made free, and the end would be
 * anybody's guess.  With the new limit in force at once, nothing is charged until there is room below it: only frames that exist go round.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "client.h"
#include "remote.h"
#include "runtime.h"
#include "store.h"

/* Bytes that must be left for frames, whatever is promised. */
#define LEAST_FRAMES (FRAMES_MIN * PAGE_SIZE + METADATA_STEP)

size_t
limit_of_wired(const struct up_runtime *rt, size_t limit)
{
	return rt->wire_wanted != 0 ? (size_t)MIN(rt->wire_wanted, limit) : limit / 2;
}

/* What is there and can not be paged out, bytes.  => map.change is held */
static size_t
stays(struct up_runtime *rt)
{
	struct pager *p = &rt->p;

	return arena_bytes(&p->arena) + atomic_load(&p->overhead) +
	       (atomic_load(&p->nwired) << PAGE_SHIFT);
}

/* NULL, or what keeps the limit from being that low.  => map.change is held; the tier and what can be promised follow already if NULL */
static const char *
promises(struct up_runtime *rt, size_t limit)
{
	struct pager *p = &rt->p;
	const size_t budget = limit - p->pmap->headroom;

	if (stays(rt) + LEAST_FRAMES > budget)
		return "metadata and wired pages leave too little for pages";
	if (atomic_load(&p->nwired) > limit_of_wired(rt, limit) >> PAGE_SHIFT)
		return "more is wired";
	if (!clients_fit(rt, limit))
		return "clients were promised too much of it, or have it wired";
	if (!tier_resize(p, budget))
		return "the compressed tier keeps more for good";
	if (!resv_set(&p->resv_meta, pager_meta_max(p, budget))) {
		/* As it was; unless somebody has been promised that meanwhile: then the tier has fewer entries. */
		(void)tier_resize(p, rt->memory_limit - p->pmap->headroom);
		return "what is mapped was promised more metadata";
	}
	return NULL;
}

/*
 * All that follows from the limit follows this one.  0; -EBUSY and a log line: it is lower, and something that was promised would not fit.
 * => map.change is held.
 */
static int
follow(struct up_runtime *rt, size_t limit)
{
	struct pager *p = &rt->p;
	const size_t was = rt->memory_limit, budget = limit - p->pmap->headroom;
	const char *const why = limit < was ? promises(rt, limit) : NULL;

	if (why != NULL) {
		log_line(&p->log, UP_LOG_ERROR, "up_runtime_set_limit: %zu: %s", limit, why);
		return -EBUSY;
	}
	budget_set_limit(&p->budget, budget);
	rt->memory_limit = limit;
	rt->wire_limit = limit_of_wired(rt, limit);
	arena_sub_limit(&rt->heaps.arena, limit / 2);
	pages_resize(&p->pages, budget / PAGE_SIZE);
	if (limit >= was) {
		/* Tables may have come to be larger than they are counted with: then there is no more to promise than there was. */
		(void)resv_set(&p->resv_meta, pager_meta_max(p, budget));
		(void)tier_resize(p, budget);
	}
	return 0;
}

/* Wait until no more is used than the limit says.  0 or -ETIMEDOUT.  => no lock but limit_lock is held, signals are */
static int
page_out(struct pager *p, unsigned timeout_ms)
{
	const uint64_t end = now_ns() + (uint64_t)timeout_ms * 1000000;
	const struct timespec ms = { .tv_nsec = 1000000 };
	unsigned slept = 0;
	size_t used, limit;

	bounce_fit(p);
	while ((used = atomic_load(&p->budget.used)) > (limit = atomic_load(&p->budget.limit))) {
		if (now_ns() >= end || slept >= timeout_ms)
			return -ETIMEDOUT;
		bounce_fit(p);
		/* As long as there are many; then faults, and who makes more, come first. */
		if (frames_give_up(p, (used - limit + PAGE_SIZE - 1) >> PAGE_SHIFT) >= CLUSTER_MAX)
			continue;
		/* The pool, too, gives when there are hardly any frames left to take. */
		pager_starved(p, used - limit);
		services_press(p);
		if (p->idle != NULL)
			p->idle(p->idle_ctx);
		else
			clock_nanosleep(CLOCK_MONOTONIC, 0, &ms, NULL);
		slept++;
	}
	return 0;
}

/* What a successor is to begin with: all that is there must fit. */
static void
note(struct pager *p, size_t limit)
{
	if (p->store != NULL)
		p->store->root->limit = limit;
}

static int
set_limit(struct up_runtime *rt, size_t limit, unsigned timeout_ms)
{
	struct pager *p = &rt->p;
	const size_t was = rt->memory_limit;
	sigset_t old;
	int r;

	note(p, MAX(limit, was));
	change_begin(p, &old);
	r = follow(rt, limit);
	change_end(p, &old);
	if (r < 0) {
		note(p, was);
		return r;
	}
	signals_hold(&old);
	r = page_out(p, timeout_ms);
	signals_release(&old);
	if (r < 0) {
		log_line(&p->log, UP_LOG_ERROR,
			 "up_runtime_set_limit: %zu: %zu bytes are still in use; %zu as before",
			 limit, atomic_load(&p->budget.used), was);
		change_begin(p, &old);
		(void)follow(rt, was);
		change_end(p, &old);
	}
	note(p, rt->memory_limit);
	if (r == 0 && p->store != NULL) {
		p->store->root->own = store_own(rt);
		p->store->root->wanted = limit;
	}
	budget_forget_max(&p->budget);
	services_kick(p, NULL);
	return r;
}

void
runtime_raise_limit(struct up_runtime *rt, size_t limit)
{
	sigset_t old;

	change_begin(&rt->p, &old);
	(void)follow(rt, limit);
	change_end(&rt->p, &old);
}

int
up_runtime_set_limit(struct up_runtime *rt, size_t bytes, unsigned timeout_ms)
{
	const size_t limit = bytes & ~PAGE_MASK;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_lacks(rt, "up_runtime_set_limit");
	if (rt == NULL)
		return -EINVAL;
	r = check_process(rt, "up_runtime_set_limit");
	if (r < 0)
		return r;
	if (limit < UP_MEMORY_LIMIT_MIN)
		return bad(rt, "up_runtime_set_limit: %zu is below the minimum, %zu", bytes,
			   UP_MEMORY_LIMIT_MIN);
	if (limit > rt->memory_most)
		return bad(rt, "up_runtime_set_limit: %zu is above memory_limit_max, %zu", bytes,
			   rt->memory_most);
	pthread_mutex_lock(&rt->limit_lock);
	r = set_limit(rt, limit,
		      timeout_ms != 0 ? timeout_ms : (unsigned)(rt->p.fault_timeout / 1000000));
	pthread_mutex_unlock(&rt->limit_lock);
	return r;
}
