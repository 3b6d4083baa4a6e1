/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * sim.h (private, tests only): page tables that exist only in this file, behind pmap_ops.
 *
 * The kernel's half of paging as a data structure: regions at made-up addresses, one record a
 * page, fault messages, sleeping threads.  What the real kernel does rarely (EAGAIN in the
 * middle of a batch, a late EEXIST, messages twice or out of order) happens here on demand and
 * the same way again for the same seed.  What a caller must never do (enter from a hole, install
 * twice, drop a frame under I/O) is an abort with a line on stderr that begins with "sim:".
 *
 * Not emulated: time (nothing sleeps), huge pages.  One thread drives it all, other processes too.
 *
 *	struct sim_faults f;			struct sim_disk *d;
 *	struct pmap *pm;			struct io_engine *e;
 *
 *	sim_faults_init(&f, seed);		d = sim_disk_create(&f);
 *	pmap_sim_create(&pm, 256, 1, 0, &f);	io_engine_sim_create(&e, d, 16, &hooks);
 *
 * with hooks = { pm, 0, sim_readable, sim_io_pin, sim_io_unpin }; see swap/sim.h.
 */
#ifndef UP_PMAP_SIM_H
#define UP_PMAP_SIM_H

#include "pmap/pmap.h"

/*
 * The failing calls, shared by every simulated device of one test, so that "the third fallible
 * call" is counted over page tables and disk alike and one seed decides everything.
 */
enum sim_op {
	SIM_MAP,       /* -ENOMEM; pool_create, pool_map, space_create and space_attach too */
	SIM_UNMAP,     /* split, before an unmap: -ENOMEM, nothing changed */
	SIM_PROTECT,   /* -ENOMEM, nothing changed */
	SIM_ZERO,      /* -EAGAIN, -ENOMEM, -EEXIST; a prefix is done */
	SIM_ENTER,     /* the same */
	SIM_REMOVE,    /* -EAGAIN, -ENOMEM, -EBUSY; a prefix is done */
	SIM_DISCARD,   /* -EAGAIN; a prefix may be gone, doing it again is harmless */
	SIM_POISON,    /* -EAGAIN, -ENOMEM, -ENOTSUP */
	SIM_FRAME_NEW, /* -EAGAIN, -ENOMEM; a prefix is done */
	SIM_READ,      /* -EIO, as the request's result; counted when it is submitted */
	SIM_WRITE,     /* -EIO, -ENOSPC; the same */
	SIM_NOPS
};
#define SIM_BIT(op) (1u << (op))
#define SIM_NERRS 3 /* errors per operation, at most */

struct sim_faults {
	uint64_t rng;
	unsigned countdown; /* fallible calls until one fails; 0: off */
	unsigned nth_ops;   /* SIM_BITs that count; 0: all */
	int nth_err;	    /* what it returns; 0: any that suits, seeded */
	bool fired;
	unsigned rate[SIM_NOPS][SIM_NERRS]; /* per mille */
	uint64_t injected[SIM_NOPS];	    /* how often an operation was made to fail */
};

/* No failures; everything random follows from `seed`. */
void sim_faults_init(struct sim_faults *f, uint64_t seed);

/* Fail `op` with `err` (one of its own, above) in `permille` of 1000 calls; 0 stops that. */
void sim_fail_rate(struct sim_faults *f, enum sim_op op, int err, unsigned permille);

/*
 * Fail one call: the nth from now (1 = next) among those in `ops` (SIM_BITs; 0: all) that can
 * return `err` (0: with any error that suits).  Disarm says whether it happened; a sweep over
 * nth = 1, 2, ... is over when it did not.  Rates are another matter and stay.
 */
void sim_fail_nth(struct sim_faults *f, unsigned nth, unsigned ops, int err);
bool sim_fail_disarm(struct sim_faults *f);

/* The generator, for tests too: a number in [0, n), n > 0. */
uint64_t sim_below(struct sim_faults *f, uint64_t n);
/* True in `permille` of 1000 calls; draws nothing if that is 0. */
bool sim_chance(struct sim_faults *f, unsigned permille);

/* For the devices: count a call of `op`; 0, or the error it shall return. */
int sim_inject(struct sim_faults *f, enum sim_op op);
/* For the devices: the contract is broken. */
void sim_die(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));

/*
 * A simulated kernel.  `mask` with UP_MASK_MOVE: pages are copied, so that up to CLUSTER_MAX are
 * there twice for an instant.  Otherwise they move, but one that has just been read from disk
 * or leaves a read-only region is copied all the same.  sim_resident_pages_max() sees the
 * copies; pm->headroom is for them.  `f` must outlive the kernel.  0 or -ENOMEM.
 *
 * Injected -EEXIST: page *done is there afterwards, with zeros (zero) or the right content
 * (enter), nobody is woken and, for enter, the frame stays a frame: a page more is resident,
 * until the caller drops the frame, than it has accounted for.  Installing over it again says
 * -EEXIST again; enter over any other page that is there is an abort, zero is -EEXIST (and a way to
 * ask whether a page is there).
 *
 * Pools and spaces are there unless `mask` has UP_MASK_SHARED; pm->places has to be set, as of the real
 * one.  Their pages are always copied, never moved, and -EBUSY of remove is not injected into them.  A page of
 * a pool is resident once, wherever it is mapped.  To name it by the address of a place is an abort;
 * so is to remove one that is not there, or to install over poison at any place.
 *
 * destroy() aborts when a region is still mapped, a space left, or a frame is under I/O; frames
 * may be left.
 */
int pmap_sim_create(struct pmap **pm, frame_t nstage, unsigned nshards, uint64_t mask,
		    struct sim_faults *f);

/* Simulated program threads are numbers in [0, SIM_THREADS). */
#define SIM_THREADS 256

enum sim_result {
	SIM_OK,
	SIM_FAULT,   /* the thread sleeps */
	SIM_SIGBUS,  /* poisoned */
	SIM_SIGSEGV, /* no region, or not allowed */
};

/*
 * What a program thread does: copy `len` bytes from (write: to) offset `off` of the page at `va`.
 * Nothing is copied unless SIM_OK.  SIM_FAULT: a message went to the region's shard and the
 * thread sleeps until wake, enter, zero, poison or unmap of that page; then touch again.  While
 * it sleeps, touching again changes nothing and says SIM_FAULT, even if the page is there by
 * now: that is how a lost wake-up looks.
 */
enum sim_result sim_touch(struct pmap *pm, unsigned thread, uintptr_t va, bool write, void *buf,
			  size_t off, size_t len);

/*
 * The same in a space, at an address of that process; it must be attached.  The message goes to the shard that
 * the space is near.  detach forgets who sleeps there, and their messages, copies too.
 */
enum sim_result sim_touch_in(struct pmap *pm, unsigned shard, unsigned thread, uintptr_t va,
			     bool write, void *buf, size_t off, size_t len);

/* True if the thread sleeps, its message read or not. */
bool sim_waiting(struct pmap *pm, unsigned thread);

/*
 * A thread that sleeps with no message left to be read, or -1.  When the pager has nothing more
 * to do, that is a lost wake-up.
 */
int sim_stranded(struct pmap *pm);

/*
 * How messages behave from now on.  dup, per mille: a message comes twice (the thread took a
 * signal and faulted again); the second copy stays in the queue when the thread is woken, so it
 * may be read long after the fault was served, or after unmap.  reorder, per mille: the next
 * message read is any.  delay: a message is invisible for up to so many looks, a look being a
 * call of faults() or sim_readable() on its shard.
 */
void sim_messages(struct pmap *pm, unsigned dup, unsigned reorder, unsigned delay);

/* Messages in a shard's queue, those still invisible included. */
size_t sim_queued(struct pmap *pm, unsigned shard);

/*
 * What the program does behind the library's back: madvise(MADV_DONTNEED).  Wakes nobody.  Pages of pools stay where
 * they are; only poison goes.
 */
void sim_discard_behind(struct pmap *pm, uintptr_t va, size_t n);

/* The page is pinned (its own O_DIRECT read, say): remove is -EBUSY.  Nests; gone with the page. */
void sim_pin(struct pmap *pm, uintptr_t va);
void sim_unpin(struct pmap *pm, uintptr_t va);

/*
 * Copying kernels, and pools on all (`va` is the page's address in the pool): called in the middle of remove(), when the pages [va, va + n) are copied
 * and write-protected but not yet dropped.  Reads pass; a write faults with .wp set.  NULL: off.
 */
void sim_on_copy(struct pmap *pm, void (*fn)(void *ctx, uintptr_t va, size_t n), void *ctx);

/* Memory as the kernel counts it: region pages and frames.  The maximum is since creation. */
size_t sim_resident_pages(struct pmap *pm);
size_t sim_resident_pages_max(struct pmap *pm);

enum sim_state { SIM_UNMAPPED, SIM_ABSENT, SIM_PRESENT, SIM_POISONED };

/* Look without touching, at regions and places of this process.  peek: the page's bytes until it goes, or NULL. */
enum sim_state sim_state(struct pmap *pm, uintptr_t va);
const void *sim_peek(struct pmap *pm, uintptr_t va);
bool sim_is_frame(struct pmap *pm, frame_t f);

/*
 * Hooks for a simulated disk, `pm` being a struct pmap *.  While a frame is pinned, enter and
 * frame_drop of it abort: UFFDIO_MOVE would say EBUSY, and the pager must never try.  Pages
 * outside the staging area are none of our business; a hole is an abort.
 */
bool sim_readable(void *pm, unsigned shard);
void sim_io_pin(void *pm, void *page);
void sim_io_unpin(void *pm, void *page);

#endif
