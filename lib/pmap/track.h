/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * track.h (private): uffd.c with userfaultfd's events about regions: taken, and what may be done meanwhile.
 *
 * munmap() gives addresses to whoever asks next, and that can be long before we have heard of it.  So an operation has to be
 * certain that what is at an address is ours still:
 *
 *	UFFDIO_COPY, _MOVE, _POISON	are refused (EAGAIN) on a descriptor from before one of its ranges changes until the
 *					event about that has been read
 *	the list of events		has what has been read.  The gate of a shard is held for reading from the look at the list
 *					until the call is over; who reads events holds it for writing.
 *
 * Neither is so of UFFDIO_MOVE on the descriptor of staging, which takes whatever is at the source address, nor of
 * madvise().  So a page leaves its region in two steps:
 *
 *	region  --UFFDIO_MOVE on the shard's descriptor-->  landing  --on staging's-->  staging, or the trash
 *
 * What the kernel does not move (a page that is pinned, one in read-only or locked memory) stays where it is.  That, and
 * what a lost page would need without UFFDIO_POISON, is why tracking wants both of these features, and writable regions.
 *
 * Locks: landing > gate (for reading) > events.lock.  A reader closes the gate with nothing held.
 */
#ifndef UP_PMAP_TRACK_H
#define UP_PMAP_TRACK_H

#include "pmap/uffd.h"

/* 0, or -ENOSYS and a log line: no events here. */
int track_check(uint64_t found, uint64_t used, const struct logger *log);
/* What the userfaultfd of a shard must be asked for: UFFD_FEATURE_EVENT_*. */
uint64_t track_features(void);

/* => the descriptors are open.  0 or -errno; also half-made it is track_destroy()ed. */
int track_create(struct uffd_pmap *u);
/* => all descriptors are closed: what is unmapped now tells nobody.  Nothing is there: fine. */
void track_destroy(struct uffd_pmap *u);

#endif
