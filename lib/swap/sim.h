/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * sim.h (private, tests only): a disk that exists only in this file, behind io_engine_ops.
 *
 * One disk, any number of engines on it (one a service thread, as with io_uring).  Slots are
 * whatever numbers the caller uses; a swap_area hands them out, its file stays untouched.
 *
 *	submit ---> queued --flush, wait--> in flight --wait() x delay--> reaped
 *	   |                                  |   ^
 *	 frames pinned                 each page is copied from or to memory
 *	 nth failure counted           ("DMA") at a moment of its own
 *
 * Since pages are copied late, whoever changes or recycles a buffer before the request was
 * reaped writes the wrong bytes to disk, and a reader who looks too early sees garbage.
 *
 * Not emulated: time.  wait() never sleeps; a time-out is over at once.
 *
 * Failing requests come from sim_faults (SIM_READ, SIM_WRITE), which pmap/sim.h declares so that
 * one counter runs over both simulations.  This file uses nothing else of pmap.
 */
#ifndef UP_SWAP_SIM_H
#define UP_SWAP_SIM_H

#include "pmap/sim.h"
#include "swap/swap.h"

struct sim_disk;

/* `f` must outlive it.  0 or -ENOMEM.  destroy: after its engines; NULL is fine. */
int sim_disk_create(struct sim_disk **d, struct sim_faults *f);
void sim_disk_destroy(struct sim_disk *d);

/* What an engine asks the simulated kernel; any may be NULL.  pmap/sim.h has all three. */
struct sim_engine_hooks {
	void *ctx;
	unsigned shard;
	bool (*readable)(void *ctx, unsigned shard); /* are there fault messages? */
	void (*pin)(void *ctx, void *page);	     /* submitted: one call for each page */
	void (*unpin)(void *ctx, void *page);	     /* reaped */
};

/*
 * An engine; `hooks` is copied, NULL for none.  0 or -ENOMEM.
 *
 * wait() with timeout < 0 goes on until something happened, and returns with nothing only when
 * nothing can: none in flight (or all held), not readable, not kicked.  With timeout >= 0 it takes
 * one step.  When a request is reaped its iovec has been used up, as after a short transfer.
 *
 * Aborts: iovecs that are not whole pages or not n of them; a write submitted while another
 * write to one of its slots is in flight; destroy() with requests in flight.
 */
int io_engine_sim_create(struct io_engine **e, struct sim_disk *d, unsigned depth,
			 const struct sim_engine_hooks *hooks);

/* A request takes 1 to max + 1 calls of wait(), drawn at submit.  The default max is 3. */
void sim_disk_delay(struct sim_disk *d, unsigned max);

/* Reap nothing of this kind until released; what is due by then comes at the next wait(). */
void sim_disk_hold(struct sim_disk *d, enum swap_op op);
void sim_disk_release(struct sim_disk *d, enum swap_op op);

/* A bad sector: this operation on it is -EIO, until told otherwise. */
void sim_disk_bad(struct sim_disk *d, slot_t slot, enum swap_op op, bool bad);

/* Ways in which disks lie. */
enum sim_lie {
	SIM_FLIP,  /* one bit is wrong */
	SIM_STALE, /* what the slot held before; of a write: acknowledged, never stored */
	SIM_OTHER, /* another slot's content */
	SIM_NLIES
};

/*
 * Damage what is stored now.  False if there is nothing to do it with: nothing stored, or (STALE,
 * OTHER) no different content to be found.
 */
bool sim_disk_corrupt(struct sim_disk *d, slot_t slot, enum sim_lie how);

/* Damage slots as they are written, each with this probability. */
void sim_disk_lie(struct sim_disk *d, enum sim_lie how, unsigned permille);

/* A slot's stored content until the next write, or NULL if it was never written. */
const void *sim_disk_peek(struct sim_disk *d, slot_t slot);

struct sim_disk_stats {
	uint64_t reads, writes;		    /* requests reaped */
	uint64_t read_pages, written_pages; /* of those that succeeded */
	uint64_t errors;		    /* requests that failed */
	uint64_t lies;			    /* slots that hold other bytes than were written */
};

void sim_disk_stats(struct sim_disk *d, struct sim_disk_stats *st);

#endif
