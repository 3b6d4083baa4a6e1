/* SPDX-License-Identifier: BSD-2-Clause */
#include "pmap/events.h"

/* What is left of an event that was cut in two are two events: numbers in between are for those. */
#define NUMBER_STEP 4096

void
events_init(struct events *l)
{
	pthread_mutex_init(&l->lock, NULL);
	atomic_init(&l->n, 0);
	l->last = 0;
}

void
events_fini(struct events *l)
{
	pthread_mutex_destroy(&l->lock);
}

bool
events_add(struct events *l, struct pmap_event ev)
{
	bool room;

	pthread_mutex_lock(&l->lock);
	room = l->n < EVENTS_MAX;
	if (room) {
		ev.number = l->last += NUMBER_STEP;
		l->ev[l->n] = ev;
		atomic_fetch_add(&l->n, 1);
	}
	pthread_mutex_unlock(&l->lock);
	return room;
}

bool
events_next(struct events *l, uint64_t after, struct pmap_event *ev)
{
	bool found = false;

	if (atomic_load_explicit(&l->n, memory_order_acquire) == 0)
		return false;
	pthread_mutex_lock(&l->lock);
	for (unsigned i = 0; i < l->n && !found; i++) {
		found = l->ev[i].number > after;
		if (found)
			*ev = l->ev[i];
	}
	pthread_mutex_unlock(&l->lock);
	return found;
}

/* => locked */
static unsigned
find(struct events *l, uint64_t number)
{
	unsigned i = 0;

	while (i < l->n && l->ev[i].number != number)
		i++;
	assert(i < l->n);
	return i;
}

/* => locked */
static void
take_out(struct events *l, unsigned i)
{
	atomic_fetch_sub(&l->n, 1);
	for (; i < l->n; i++)
		l->ev[i] = l->ev[i + 1];
}

void
events_done(struct events *l, uint64_t number)
{
	pthread_mutex_lock(&l->lock);
	take_out(l, find(l, number));
	pthread_mutex_unlock(&l->lock);
}

/* A second event behind the one at `i`.  => locked.  False: there is no room. */
static bool
put_behind(struct events *l, unsigned i, struct pmap_event ev)
{
	const uint64_t next = i + 1 < l->n ? l->ev[i + 1].number : l->last + NUMBER_STEP;

	ev.number = l->ev[i].number + (next - l->ev[i].number) / 2;
	if (l->n == EVENTS_MAX || ev.number == l->ev[i].number)
		return false;
	for (unsigned k = l->n; k > i + 1; k--)
		l->ev[k] = l->ev[k - 1];
	l->ev[i + 1] = ev;
	l->last = MAX(l->last, ev.number);
	atomic_fetch_add(&l->n, 1);
	return true;
}

bool
events_clip(struct events *l, uint64_t number, uintptr_t va, uintptr_t end)
{
	struct pmap_event *ev, right;
	bool ok = true;
	unsigned i;

	pthread_mutex_lock(&l->lock);
	i = find(l, number);
	ev = &l->ev[i];
	assert(ev->kind == PMAP_UNMAP && va >= ev->va && end <= ev->va + ev->len && va < end);
	right = *ev;
	right.va = end;
	right.len = ev->va + ev->len - end;
	if (va == ev->va && right.len == 0)
		take_out(l, i);
	else if (va == ev->va)
		ev->va = right.va, ev->len = right.len;
	else if (right.len == 0 || (ok = put_behind(l, i, right)))
		ev->len = va - ev->va;
	pthread_mutex_unlock(&l->lock);
	return ok;
}

/*
 * How many of n pages lie in a range from `start` to `end`, or if the first does not: in front of it.
 * *in: which of the two.
 */
static size_t
overlap(uintptr_t start, size_t len, uintptr_t va, size_t n, bool *in)
{
	const uintptr_t end = start + len;

	*in = va >= start && va < end;
	if (*in)
		return MIN(n, (end - va) >> PAGE_SHIFT);
	return va < start ? MIN(n, (start - va) >> PAGE_SHIFT) : n;
}

size_t
events_clear(struct events *l, unsigned shard, uintptr_t va, size_t n)
{
	if (atomic_load_explicit(&l->n, memory_order_acquire) == 0)
		return n;
	pthread_mutex_lock(&l->lock);
	for (unsigned i = 0; i < l->n && n > 0; i++) {
		const struct pmap_event *ev = &l->ev[i];
		bool in, in_to = false;
		size_t k;

		if (ev->shard != shard)
			continue;
		k = overlap(ev->va, ev->len, va, n, &in);
		if (!in && ev->kind == PMAP_REMAP)
			k = MIN(k, overlap(ev->to, ev->len, va, n, &in_to));
		n = in || in_to ? 0 : k;
	}
	pthread_mutex_unlock(&l->lock);
	return n;
}

size_t
events_there(struct events *l, unsigned shard, uintptr_t va, size_t n, size_t *gone)
{
	*gone = 0;
	if (atomic_load_explicit(&l->n, memory_order_acquire) == 0)
		return n;
	pthread_mutex_lock(&l->lock);
	for (unsigned i = 0; i < l->n && *gone == 0; i++) {
		const struct pmap_event *ev = &l->ev[i];
		bool in;

		if (ev->shard != shard || ev->kind == PMAP_REMOVE)
			continue;
		n = overlap(ev->va, ev->len, va, n, &in);
		if (in)
			*gone = n;
	}
	pthread_mutex_unlock(&l->lock);
	return *gone > 0 ? 0 : n;
}
