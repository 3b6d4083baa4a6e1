/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * foreign.h (private): what the program does to regions behind our back is put right (UP_TRACK_FOREIGN).
 */
#ifndef UP_FOREIGN_H
#define UP_FOREIGN_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct pager;

struct foreign {
	struct pager *p; /* (c) */
	pthread_t keeper;
	bool keeping; /* (c) it was started */
	atomic_bool stop;
	atomic_bool draining; /* no service takes messages any more */
	atomic_bool called;   /* since the keeper last looked */
	sem_t call;
	bool acting;		 /* (map.change) */
	_Atomic uint64_t events; /* acted upon, ever */
};

/* 0 or -errno.  `thread`: start the keeper; without it somebody else calls what does its work. */
int foreign_start(struct foreign *f, struct pager *p, bool thread);
/* The services have come to rest: the keeper takes messages instead, so that nobody waits for that. */
void foreign_drain(struct foreign *f);
/* The keeper ends.  => nothing is registered any more, or no service was ever started */
void foreign_fini(struct foreign *f);

/* Service threads: events may have been taken. */
void foreign_call(struct foreign *f);

/*
 * Act upon all that the program has done so far, to calls that have returned at least.  => map.change is held, and nobody has
 * a pointer to an entry, or to an object without a reference.
 * False: the oldest has to wait for something.
 */
bool foreign_work(struct foreign *f);

/* The same until that has been done, letting others have map.change in between.  Gives up when it takes too long. */
void foreign_begin(struct foreign *f);

/*
 * The kernel has just given us [va, va + len) for a region of `shard`.  0; -EAGAIN: something that happened there before is not
 * known yet, or not put right.  => map.change is held.
 */
int foreign_clear(struct foreign *f, uintptr_t va, size_t len, unsigned shard);
/* The same, but works and waits until it is.  => as foreign_work() */
int foreign_settle(struct foreign *f, uintptr_t va, size_t len, unsigned shard);

/* True if something is still to be acted upon. */
bool foreign_waiting(struct foreign *f);

#endif
