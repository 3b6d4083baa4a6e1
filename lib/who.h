/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * who.h (private): whose a page is, and where he has it, for log lines.
 *
 *	0x7f0000001000                                               ours
 *	0x7f0000001000 of client NAME, process PID                   a client's, or
 *	0x7f0000001000 of client NAME, its forked process PID        a child's of its
 *	0x7f0000001000 of forked process PID                         a child's of ours, or of a client that has gone
 *	offset 0x1000 of object 12                                   nobody maps it at present
 *
 * The pager knows the pages of others by addresses of pools, which say nothing to anybody.
 */
#ifndef UP_WHO_H
#define UP_WHO_H

#include "pager/pager.h"

/* Who makes one has it on its stack: not to be a part of what is done at every fault. */
#define WHO_TELLS __attribute__((noinline, cold))

struct who {
	char text[160];
	struct log_about about; /* whom log_line_about() is told; pid 0: nobody */
};

/* Whose child it is, or the client itself; NULL: a child of ours, or of one that has gone.  => map.lock is held */
struct client;
const struct client *space_client(const struct pager *p, const struct space *sp);
/* An address of ours, or of another space: a shard, as in struct service.  The text is in *w.  => map.lock is not held */
const char *who_at(struct pager *p, unsigned space, uintptr_t va, struct who *w);
/*
 * A page, at `va` if that is an address of ours.  Of other processes the one whose fault it is, `space`; if that is nobody's, the first one
 * that maps it.  It walks maps.  => busy; map.lock is not held
 */
const char *who_page(struct pager *p, unsigned space, const struct page *pg, struct who *w);
/* The same of a slot.  => map.lock is held */
const char *who_slot(struct pager *p, unsigned space, struct leaf *leaf, unsigned at, uintptr_t va,
		     unsigned shard, struct who *w);

#endif
