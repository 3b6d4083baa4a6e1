/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * ghost.h (private): a bounded memory of which pages left, and how long ago.
 *
 * Time is counted in evictions.  The refault distance of a page is how many others were evicted between
 * its eviction and its return: with so many more frames it would never have left (J. Weiner, "Refault
 * distance-based file cache sizing", Linux 3.15, 2014; mm/workingset.c).
 *
 * One entry a frame, 4 bytes: a fingerprint of the page's key and a stamp, in buckets of GHOST_WAYS.
 * A new entry replaces the oldest of its bucket, so a page is remembered for about as many evictions
 * as there are entries.  Two keys may look the same (1 lookup in 8,000 finds somebody else's entry): a
 * ghost is a hint and nothing that has to be right.
 *
 * Alternative looked at: a stamp in the anon.  It would cost nothing for pages that are gone for good,
 * but an anon is 16 bytes and has none to spare, and a page in swap is far more common than a frame.
 *
 * No lock: the owner has one.  No allocation: the owner gives the memory.
 */
#ifndef UP_GHOST_H
#define UP_GHOST_H

#include "base/base.h"

#define GHOST_WAYS 8
#define GHOST_UNKNOWN UINT32_MAX

struct ghost {
	uint32_t *
		entry; /* (c) nbuckets * GHOST_WAYS of them, 0: empty; NULL: nothing is remembered */
	uint32_t nbuckets;
	unsigned shift; /* a stamp counts 1 << shift evictions */
	uint64_t clock; /* evictions so far */
};

/* What ghost_init() needs for `n` entries, bytes. */
size_t ghost_bytes(size_t n);

/* mem: ghost_bytes(n) of zeros, aligned to 4, the caller's for as long as `g` is used; NULL for none. */
void ghost_init(struct ghost *g, void *mem, size_t n);

/*
 * The memory is ghost_bytes(n) from here on, with zeros behind what it was.  What is remembered is in the wrong place then: forgotten, or once
 * in a while a wrong hint.
 */
void ghost_resize(struct ghost *g, size_t n);

/*
 * A page was evicted.  Any key will do that is the same when the page comes back, and that no other page
 * has meanwhile: its swap slot.
 */
void ghost_add(struct ghost *g, uint64_t key);

/* A page was evicted that need not be remembered, nor who had its key before. */
void ghost_forget(struct ghost *g, uint64_t key);

/*
 * A page came back: its refault distance, exact to one part in 4,096 of the entries, and it is forgotten.
 * GHOST_UNKNOWN if it was not there, or too long ago.
 */
uint32_t ghost_take(struct ghost *g, uint64_t key);

/* Assert that no key is there twice in a bucket.  Returns how many are there. */
size_t ghost_check(const struct ghost *g);

#endif
