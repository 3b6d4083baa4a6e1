/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * watcher.h (private): the thread in a forked child, or in a program that is connected to a daemon, that outlives the pager.
 *
 *	WATCHING ---- the pager's process ends, or its end of the socket ----> ALONE
 *	sleeps								what is in memory stays, what is missing is SIGBUS
 *
 * It ends with the process, and keeps it from nothing: not from ending either.
 */
#ifndef UP_WATCHER_H
#define UP_WATCHER_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* A range that a child maps. */
struct region {
	uint64_t va, len, offset;
	int32_t prot;
	int32_t fd; /* of the pool; in a message: it comes beside, in order */
};

struct watched {
	int sock;		/* to the pager */
	int uffd;		/* with which the regions are registered */
	int pager;		/* a pidfd of its process */
	const atomic_size_t *n; /* both stay where they are; length 0: there is none any more */
	const struct region *r;
	const atomic_bool *
		over; /* the connection has been ended by us: then so does the thread.  NULL: never */
	int tid;      /* its own; 0 when it has ended */
	const _Atomic uint32_t *
		told; /* a futex: not 0 once the program has been told, which is waited for; NULL: it is not told */
};

/* Memory that it needs: pages of the caller's that stay. */
#define WATCHER_BYTES ((size_t)36 << 10)

/*
 * Start it.  It has copies of the three descriptors, in a table of its own, from when this returns on: the caller's may be closed.
 * Nothing is allocated and no lock is taken, so that it can be called after fork() beside other threads, whatever malloc() is.
 * => in a child, before it has other threads.  0 or -errno.
 */
int watcher_start(const struct watched *w, void *memory);
/* With `over` set and the connection shut down: it has ended on return, and `memory` is the caller's again. */
void watcher_wait(void *memory);

#endif
