/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * removal.h (private): what another process has said that it removes (UFFD_EVENT_REMOVE), until nothing old can come back.
 *
 *	heard from its userfaultfd --> NEW --records put right--> HELD --a second--> looked at once more, forgotten
 *
 *	NEW	nothing is put into the file there, or taken out of it: what would be put in is old
 *	HELD	nothing is taken out
 *
 * The message comes before the kernel removes: who reads it lets the call go on, and the pages go any time later.  A page that was taken out in
 * between would be old content that nobody removes any more.  When the call has ended is told to nobody; HELD is long for what the kernel
 * has left to do.  What is still there after it was not removed (madvise(MADV_DONTNEED) of shared memory removes nothing), or is new.
 *
 * The kernel says it once.  So all of it is in a file (memfd), into which messages are read, and a successor of a process that was killed goes on with that: what is in the
 * ring changes by one store each time, and a message that was read and not acted upon is still where it was read to.
 *
 * Guarded by the pools' lock: written by whoever reads the message, with nobody in an operation.
 */
#ifndef UP_REMOVAL_H
#define UP_REMOVAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "pmap/uffd_abi.h"

#define REMOVALS_MAX 1024u
#define REMOVALS_HEARD 16u /* messages read at a time */
#define REMOVAL_HOLD_NS UINT64_C(1000000000)

struct removal {
	uintptr_t start, end;
	uint64_t when; /* now_ns() */
};

/* What lies in the file. */
struct removals_kept {
	uint32_t size; /* of this struct, as the version */
	_Atomic uint64_t
		state; /* where in the ring is the oldest, how many are HELD, how many NEW: 16 bits each */
	struct removal ring[REMOVALS_MAX];     /* oldest first: HELD ones, then NEW ones */
	struct uffd_msg heard[REMOVALS_HEARD]; /* event 0: none, or acted upon */
};

/* Of one space. */
struct removals {
	int told; /* (c) eventfd: there is a NEW one; the reader's, who closes it */
	struct removals_kept *kept;
};

/* A file for them, in which there are none.  Its descriptor or -errno. */
int removals_file(void);
/* Of such a file, which may be a predecessor's; the descriptor stays the caller's.  0, -ENOMEM, or -EINVAL: it is none. */
int removals_open(int fd, int told, struct removals **out);
void removals_close(struct removals *r); /* or NULL */
/* Whether `n` more can be remembered; if not, they are to stay where they are. */
bool removals_room(const struct removals *r, unsigned n);
/* Messages have been read into r->kept->heard: those that are removals are added. */
void removals_hear(struct removals *r, uint64_t now);
void removals_add(struct removals *r, uintptr_t start, uintptr_t end, uint64_t now);
/* Whether something in [start, end) may not be put in, or if `out` taken out. */
bool removals_forbid(const struct removals *r, uintptr_t start, uintptr_t end, bool out,
		     uint64_t now);
/* The next to do something about, *over: for the last time.  1; 0: there is none, -EAGAIN: not yet. */
int removals_next(const struct removals *r, uint64_t now, struct removal *next, bool *over);
/* That is done. */
void removals_done(struct removals *r, bool over);

#endif
