/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fitmap.h (private): which of n items are free, and the lowest run of them that is long enough.
 *
 * The pages of a heap are handed out by this.  A run may have any length and any alignment, and the lowest
 * place that has room is the one that is taken, always: what is in use stays together at low
 * numbers, what is freed joins its neighbours by itself, and the far end is never touched
 * unless it is needed.
 *
 *	words    1101 0001 1111 0000 1011 | no bits yet, all free
 *	         0                       top                     max
 *
 * Bits exist for items below top only, so a map of a terabyte costs nothing before it is used.
 * from[i] says where a search for 2^i items or more may begin: freeing a run lowers those of its
 * length, finding one raises those of the lengths asked for.  A heap that hands out spans of
 * a few sizes so finds one in a few steps, and the worst case is a scan of top / 64 words.
 *
 * Alternatives: base/runmap.h, whose runs are at most 64 and anywhere, as swap slots like them;
 * trees of free runs by length and by place, which need memory to free something.
 *
 * No lock: the owner has one.  Memory: a bit an item below top, from a wired array.
 */
#ifndef UP_FITMAP_H
#define UP_FITMAP_H

#include "base.h"
#include "vm/zone.h"

#define FITMAP_SIZES 33 /* runs of 2^0 .. 2^32 items */

struct fitmap {
	struct wired_array words;  /* uint64_t, bit set = free; zero from top on */
	size_t max;		   /* items there are; at most 2^32 */
	size_t top;		   /* items that have a bit; those beyond are free */
	size_t nfree;		   /* of those below top */
	size_t from[FITMAP_SIZES]; /* no free run of 2^i items or more starts before from[i] */
};

/* All of `max` items are free.  0 or -ENOMEM. */
int fitmap_init(struct fitmap *m, struct arena *arena, size_t max);
void fitmap_fini(struct fitmap *m);

/*
 * The lowest `first` so that [first, first + n) is free and first + skew is a multiple of `align`, a
 * power of two; false if there is none.  Nothing is taken yet.
 */
bool fitmap_find(struct fitmap *m, size_t n, size_t align, size_t skew, size_t *first);

/* How many items are free from `first` on, up to the next one that is not. */
size_t fitmap_room(const struct fitmap *m, size_t first);

/* Bytes of memory that the bits of items [0, end) take. */
size_t fitmap_bytes(size_t end);
/* Have memory for the bits of items [0, end).  0, or -ENOMEM and nothing changed. */
int fitmap_reach(struct fitmap *m, size_t end);

/* Take [first, first + n), all free and within reach. */
void fitmap_take(struct fitmap *m, size_t first, size_t n);
/* Give back [first, first + n), all taken; parts of what was taken at once are fine. */
void fitmap_give(struct fitmap *m, size_t first, size_t n);

/* True if item i is free. */
bool fitmap_is_free(const struct fitmap *m, size_t i);

/* Items that are taken. */
static inline size_t
fitmap_taken(const struct fitmap *m)
{
	return m->top - m->nfree;
}

/* Assert that bits, counts and hints agree. */
void fitmap_check(const struct fitmap *m);

#endif
