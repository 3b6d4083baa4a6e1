/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * removal.h (private): what another process has said that it removes (UFFD_EVENT_REMOVE), until nothing old can come back.
 *
 *	read from its userfaultfd --> NEW --records put right--> HELD --a second--> looked at once more, forgotten
 *
 *	NEW	nothing is put into the file there, or taken out of it: what would be put in is old
 *	HELD	nothing is taken out
 *
 * The message comes before the kernel removes: who reads it lets the call go on, and the pages go any time later.  A page that was taken out in
 * between would be old content that nobody removes any more.  When the call has ended is told to nobody; HELD is long for what the kernel
 * has left to do.  What is still there after it was not removed (madvise(MADV_DONTNEED) of shared memory removes nothing), or is new.
 *
 * Guarded by the pools' lock: written by whoever reads the message, with nobody in an operation.
 */
#ifndef UP_REMOVAL_H
#define UP_REMOVAL_H

#include <stdbool.h>
#include <stdint.h>

#define REMOVALS_MAX 1024u
#define REMOVAL_HOLD_NS UINT64_C(1000000000)

struct removal {
	uintptr_t start, end;
	uint64_t when; /* now_ns() */
};

/* Of one space.  Oldest first: HELD ones, then NEW ones. */
struct removals {
	int told; /* (c) eventfd: there is a NEW one; the reader's, who closes it */
	unsigned first, nheld, nnew;
	struct removal ring[REMOVALS_MAX];
};

/* NULL: no memory. */
struct removals *removals_create(int told);
void removals_destroy(struct removals *r);
/* Whether `n` more can be remembered; if not, they are to stay where they are. */
bool removals_room(const struct removals *r, unsigned n);
void removals_add(struct removals *r, uintptr_t start, uintptr_t end, uint64_t now);
/* Whether something in [start, end) may not be put in, or if `out` taken out. */
bool removals_forbid(const struct removals *r, uintptr_t start, uintptr_t end, bool out,
		     uint64_t now);
/* The next to do something about, *over: for the last time.  1; 0: there is none, -EAGAIN: not yet. */
int removals_next(const struct removals *r, uint64_t now, struct removal *next, bool *over);
/* That is done. */
void removals_done(struct removals *r, bool over);

#endif
