/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * events.h (private): what the program did to regions itself, and the pager has not acted upon yet.
 *
 * The kernel tells of munmap(), mremap() and madvise(MADV_DONTNEED) while the caller waits; once the message has been taken
 * the call goes on, and what is known about the range is wrong until somebody has put it right.  Until then the event is in
 * this list, oldest first, and a backend looks there before it touches a region:
 *
 *	installing (enter, zero, poison)	nowhere in the range of an event: -EAGAIN
 *	taking out, looking (remove, read)	not where an UNMAP or a REMAP took the page away
 *
 * So the one who puts things right may take its time, and nobody else needs to know.  The list has one lock, a leaf.
 */
#ifndef UP_PMAP_EVENTS_H
#define UP_PMAP_EVENTS_H

#include <pthread.h>
#include <stdatomic.h>

#include "pmap/pmap.h"

/*
 * So many events are kept; with more than EVENTS_MANY they are taken one in a millisecond, so that the program waits for us.
 * Not longer: who is to act upon them may itself wait for one that comes behind.
 */
#define EVENTS_MAX 4096
#define EVENTS_MANY 1024

struct events {
	pthread_mutex_t lock;
	atomic_uint n;			  /* (lock) to change */
	uint64_t last;			  /* (lock) number of the newest one ever */
	struct pmap_event ev[EVENTS_MAX]; /* (lock) oldest first */
};

void events_init(struct events *l);
void events_fini(struct events *l);

/* Add one, and number it.  False: there is no room. */
bool events_add(struct events *l, struct pmap_event ev);
/* The oldest with a number above `after`; false: there is none. */
bool events_next(struct events *l, uint64_t after, struct pmap_event *ev);
/* It has been acted upon. */
void events_done(struct events *l, uint64_t number);
/* The same, of [va, end) of it only; what is left keeps its place in the order.  False: there is no room. */
bool events_clip(struct events *l, uint64_t number, uintptr_t va, uintptr_t end);

/* How many of n pages from va on no event is about. */
size_t events_clear(struct events *l, unsigned shard, uintptr_t va, size_t n);
/*
 * How many of n pages from va on have neither been unmapped nor moved away.  0: the first has, and so have *gone pages from it on.
 */
size_t events_there(struct events *l, unsigned shard, uintptr_t va, size_t n, size_t *gone);

#endif
