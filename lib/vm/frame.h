/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * frame.h (private): bookkeeping of the staging area.
 *
 * The staging area is a range of numbered addresses, one page each.  What is at an address:
 *
 *	     hole_take                                    frame_give
 *	HOLE ---------> (caller's hole) --page moved in--> (caller's frame) ---------> FREE FRAME
 *	 ^ ^                  |                                ^    |                       |
 *	 | +---hole_give------+                                |    +--page moved out--+    |
 *	 |                                                     +------frame_take-------|----+
 *	 +-----------------------------hole_give---------------------------------------+
 *
 * A frame is a physical page and is charged to the budget; a hole costs nothing.  Both kinds are
 * handed out in runs of neighbours, since a run moves between here and a region in one call
 * and reaches the disk as one buffer.  Nothing here touches the addresses.
 */
#ifndef UP_FRAME_H
#define UP_FRAME_H

#include <pthread.h>

#include "base/runmap.h"

struct frames {
	pthread_mutex_t lock;
	struct runmap free;  /* (lock) frames without content */
	struct runmap holes; /* (lock) */
	uint32_t n;	     /* (c) addresses */
};

/* All holes.  n is rounded up to a multiple of 64.  0 or -ENOMEM. */
int frames_init(struct frames *f, struct arena *arena, uint32_t n);
/* Asserts that every address is a hole or a free frame. */
void frames_fini(struct frames *f);

/* Up to `want` (1..CLUSTER_MAX) neighbours; returns how many, 0 if there is none. */
size_t frame_take(struct frames *f, size_t want, frame_t *first);
void frame_give(struct frames *f, frame_t first, size_t n);
size_t hole_take(struct frames *f, size_t want, frame_t *first);
void hole_give(struct frames *f, frame_t first, size_t n);

/* Of a predecessor's staging area: it has content.  False: somebody has it, or there is none of that number. */
bool frame_claim(struct frames *f, frame_t frame);

/* Free frames, at this moment. */
static inline size_t
frames_nfree(const struct frames *f)
{
	return runmap_nfree(&f->free);
}
void frames_check(struct frames *f);

#endif
