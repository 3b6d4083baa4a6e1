/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * calls.c: calls on ranges beyond those that mapping needs: up_prefault.
 */
#include <string.h>

#include "runtime.h"

/* --- prefault --- */

/* 0, or why the range can not be brought in. */
static int
check_prefault(struct up_runtime *rt, const char *call, uintptr_t start, uintptr_t end, bool write)
{
	struct pager *p = &rt->p;
	const size_t fits = frames_mappable(p);
	uintptr_t denied = 0;
	bool covered;

	pthread_rwlock_rdlock(&p->map.lock);
	covered = map_covers(&p->map, start, end);
	for (const struct map_entry *e = map_first_from(&p->map, start);
	     e != NULL && e->start < end && denied == 0; e = e->next) {
		if ((e->prot & (write ? PROT_WRITE : PROT_READ | PROT_WRITE)) == 0)
			denied = MAX(e->start, start);
	}
	pthread_rwlock_unlock(&p->map.lock);
	if (!covered) {
		log_line(&p->log, UP_LOG_ERROR, "%s: part of %#lx-%#lx is not mapped", call,
			 (unsigned long)start, (unsigned long)end);
		return -ENOMEM;
	}
	if (denied != 0) {
		log_line(&p->log, UP_LOG_ERROR, "%s: the page at %#lx is not %s", call,
			 (unsigned long)denied, write ? "writable" : "accessible");
		return -EACCES;
	}
	if ((end - start) >> PAGE_SHIFT > fits) {
		log_line(
			&p->log, UP_LOG_ERROR,
			"%s: %zu pages are more than the %zu that memory_limit %zu has room for now",
			call, (size_t)((end - start) >> PAGE_SHIFT), fits, rt->memory_limit);
		return -ENOMEM;
	}
	return 0;
}

/* Why a demand ended at d->va, as a log line; returns its result. */
static int
demand_failed(struct up_runtime *rt, const char *call, const struct demand *d, int r)
{
	struct pager *p = &rt->p;
	const unsigned long va = (unsigned long)d->va;

	switch (r) {
	case 0:
		break;
	case -ENOMEM:
		log_line(&p->log, UP_LOG_ERROR, "%s: the page at %#lx is not mapped any more", call,
			 va);
		break;
	case -EACCES:
		log_line(&p->log, UP_LOG_ERROR, "%s: the page at %#lx is not %s any more", call, va,
			 d->write ? "writable" : "accessible");
		break;
	case -EIO:
		log_line(&p->log, UP_LOG_ERROR, "%s: the page at %#lx is lost", call, va);
		break;
	case -ENOSPC:
		log_line(&p->log, UP_LOG_ERROR,
			 "%s: the page at %#lx is overcommitted, and swap or limit are exhausted",
			 call, va);
		break;
	default:
		log_line(&p->log, UP_LOG_ERROR,
			 "%s: no room for the page at %#lx could be made in %u ms", call, va,
			 (unsigned)(p->fault_timeout / 1000000));
		break;
	}
	return r;
}

int
up_prefault(struct up_runtime *rt, void *addr, size_t length, int write)
{
	const uintptr_t start = (uintptr_t)addr, end = start + length;
	struct demand d = { .va = start, .end = end, .write = write != 0 };
	sigset_t old;
	int r;

	if (rt == NULL)
		return -EINVAL;
	r = check_process(rt, "up_prefault");
	if (r == 0)
		r = check_range(rt, "up_prefault", start, length);
	if (r < 0)
		return r;
	signals_hold(&old);
	r = check_prefault(rt, "up_prefault", start, end, d.write);
	if (r == 0)
		r = demand_failed(rt, "up_prefault", &d, demand_range(&rt->p, &d));
	signals_release(&old);
	return r;
}
