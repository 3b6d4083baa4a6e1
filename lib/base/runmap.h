/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * runmap.h (private): which of n numbered items are free, and runs of free neighbours.
 *
 * Swap slots, staging frames and staging holes are all handed out by this one allocator.
 * Free items are set bits in 64-bit words.  Two summaries, one bit a word, say which words
 * have a free item at all and which are free throughout, so that finding a whole cluster
 * (64 items, aligned) or a single item is a scan of n / 4096 words at worst.  A cursor
 * moves forward (next-fit), so that clusters written one after the other lie one behind
 * the other; single items fill gaps and have a cursor of their own, so as not to pull it away.
 * A run never crosses a word: CLUSTER_MAX is 64 for that reason.
 *
 * Alternative looked at: FreeBSD's blist (radix tree of bitmaps).  It finds longer runs in
 * O(log n), which a cluster of 64 never needs.
 *
 * No lock: the owner has one, for all but runmap_nfree().  Memory: 1 bit an item plus 2/64, from a wired array each.
 */
#ifndef UP_RUNMAP_H
#define UP_RUNMAP_H

#include "base.h"
#include "vm/zone.h"

struct runmap {
	struct wired_array words; /* uint64_t, bit set = free */
	struct wired_array any;	  /* bit per word: has a free item */
	struct wired_array full;  /* bit per word: all 64 free */
	size_t n;		  /* items managed; a multiple of 64 */
	atomic_size_t nfree;	  /* runmap_nfree() */
	size_t nfull;		  /* words that are free throughout */
	size_t cursor;		  /* word where the next search for a run starts */
	size_t single;		  /* word where the next search for one item starts */
};

/* An empty map that may grow up to `max` items.  0 or -ENOMEM. */
int runmap_init(struct runmap *m, struct arena *arena, size_t max);
void runmap_fini(struct runmap *m);

/*
 * Manage items [m->n, n) too, n a multiple of 64; the new ones are free iff `free`.  0, or -ENOMEM
 * and no item is added (memory that was had is kept for the next try).
 */
int runmap_grow(struct runmap *m, size_t n, bool free);

/* Partly used words that a search for a run looks at before it is content with a shorter one. */
#define RUNMAP_LOOK 64

/*
 * Take up to `want` (1..64) free neighbours.  Returns how many, 0 iff no item is free.
 *
 * want == 1: from a partly used word if there is one, else from any.
 * want > 1: from the word of the last run if it still has room, else from the next word that is
 * free throughout.  When there is none, from the next word that holds a run of `want`;
 * when the first RUNMAP_LOOK words with anything free hold none, the longest run seen in them.
 */
size_t runmap_take(struct runmap *m, size_t want, size_t *first);

/* Take item i; false: it is taken, or there is none of that number. */
bool runmap_claim(struct runmap *m, size_t i);

/* Give back [first, first + n); may cross words.  Asserts that they were taken. */
void runmap_give(struct runmap *m, size_t first, size_t n);

/* How many items are free: exact with the owner's lock held; without, a moment's. */
static inline size_t
runmap_nfree(const struct runmap *m)
{
	return atomic_load_explicit(&m->nfree, memory_order_relaxed);
}

/* True if item i is free. */
bool runmap_is_free(const struct runmap *m, size_t i);

/* Assert that words, summaries and nfree agree. */
void runmap_check(const struct runmap *m);

#endif
