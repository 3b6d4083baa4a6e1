/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fill_space.h (private to fill*.c): an address space of a client, and who does what to it.
 *
 * A page, two bits:
 *
 *	          copy                    REMOVE
 *	MISSING --------> FILLED -----------------------> ZERO
 *	  |  |               ^----------- zeros ------------'  ^
 *	  |  '------------------------- REMOVE ----------------+
 *	  '-- can't be read --> LOST (SIGBUS) ---- REMOVE -----'
 *
 * A fault on a page that is FILLED is either the message of a second thread, and then the page is there; or the page has been thrown out
 * without a word, and then it reads as zeros, as it would without us.  Only a MISSING page ever gets what the file has.
 *
 * Order.  read() hands out faults before events, so all is read before any is served; a fault may then be of a mapping that has ended:
 * ENOENT.  The client goes on as soon as its event is read.  So it is read and acted upon with the space's lock held for writing, and
 * who copies looks at the state and copies with it held for reading: otherwise the aide could bring back what has been removed
 * between the two.  The service thread, the only one to write, need not take it to read.
 *
 * While an event waits the kernel answers EAGAIN: the fault is parked, and tried again after the next events or a moment later.  When there
 * is no room to park it, everything is woken a moment later, and who still misses a page asks again.  The same is done by a watchdog:
 * threads wait (fdinfo), and we know of none.
 *
 * Locks: f->lock, then a space's.  Keys: (c) constant, (f) f->lock, (l) the space's lock, (s) the service thread, (a) atomic.
 */
#ifndef UP_DAEMON_FILL_SPACE_H
#define UP_DAEMON_FILL_SPACE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/histogram.h"
#include "fill.h"
#include "pmap/uffd_abi.h"

#define FAULTS 256 /* read before any is served */
#define MSGS 64	   /* of one read() */
#define STATES_A_WORD 32

enum state { MISSING, FILLED, ZERO, LOST };

struct range {
	struct fill_range r;
	uint64_t first; /* its first page in the space's states */
};

/* What mremap() has moved away is unmapped, and that is told later. */
#define UNMAPS_DUE 16

struct unmap_due {
	uint64_t start, end;
};

struct fault {
	uint64_t address, flags, since;
};

struct space {
	struct fill *f;	       /* (c) */
	struct space *next;    /* (f) to change, then by the service thread */
	pthread_rwlock_t lock; /* see above */
	int uffd;	       /* (l) -1: the process is gone */
	unsigned flags;	       /* (c) FILL_TRACKED... */
	uint64_t features;     /* (c) of its userfaultfd */
	struct range *range;   /* (l) by address */
	size_t n, room;	       /* (l) */
	size_t hit;	       /* (s) the last range that was looked for */
	struct record *rec;    /* (l), fill_record.h: what a successor needs of it */
	int rec_fd;	 /* (l) its file; -1: it is private memory, as there will be no successor */
	uint32_t tag;	 /* (c) fill_add()'s */
	uint64_t number; /* (c) unlike that of any other of the filler's, from 1 on */
	_Atomic uint64_t *state; /* (l), (a) in the record */
	uint64_t pages;		 /* (c) states that there are */
	unsigned nbatch;	 /* (l) messages of the batch in the record */
	bool linked;		 /* (l) it is in the list, and counted */
	atomic_bool protect;	 /* (a) copies are write-protected */
	bool broken;		 /* (l) what is where is not known any more */
	bool wake_all;		 /* (s) some faults could not be parked */
	bool brought;		 /* (f) the aide has been here */
	bool child;		 /* (c) of fork(): it goes while the others stay */
	unsigned users;		 /* (f) it is not freed: the mover is at it */
	uint64_t mover_at;	 /* the mover's */
	uint64_t
		rest_at; /* (s) who looks for what it has left behind begins there, and once more at 0 */
	atomic_bool moved; /* (a) the mover has done what it can */
	bool kept;	   /* (s) it has pages that can neither be had nor poisoned */
	struct unmap_due due[UNMAPS_DUE]; /* (s) the newest behind */
	unsigned ndue;			  /* (s) */
	struct fault *parked;		  /* (s) FILL_PARKED_MAX */
	size_t nparked;			  /* (s) */
	uint64_t drained; /* (s) nothing is missing below, once it is to be filled */
};

struct fill {
	struct fill_config cfg;
	char name[64];
	struct logger log;
	pthread_mutex_t lock;
	pthread_cond_t cond;	      /* the aide's, or the mover's */
	struct space *_Atomic spaces; /* (f) to change; ended ones too, until the end of all */
	struct space *born;	      /* (s) children that are not in the list yet */
	unsigned nspaces;	      /* (f) */
	int epoll, door, clock;	      /* (c) the door: an eventfd; a timerfd */
	pthread_t service, aide;
	struct pulse pulse;	/* the service's */
	struct fill *turns_too; /* of all that turn */
	bool has_aide;
	atomic_int threads;   /* (a) that are not at their end */
	atomic_bool stop;     /* (a) */
	_Atomic uint64_t end; /* (a) enum fill_end << 56 | when it ends at last, ns */
	atomic_uint living;   /* (a) spaces with a process, those in `born` included */
	atomic_uint nborn;    /* (a) */
	bool no_poison;	      /* (s) */
	void *bounce;	      /* (s) FILL_HUGE bytes, once it is needed */
	void *zeros;	      /* (s) the same, of zeros */
	bool busy;	      /* (s) something has been read since the last tick */
	bool ticking;	      /* (s) the watchdog's clock runs: threads may wait */
	uint64_t retried_at;  /* (s) when what was parked was tried last */
	unsigned enomem;      /* (s) */
	bool draining;	      /* (s) pages that nobody asks for are filled, too */
	bool rest_now,
		rest_later;   /* (s) a space is to be let go, and there is something left to do */
	atomic_bool transfer; /* (a) */
	_Atomic uint64_t demands; /* (a) faults that have brought content */

	/* What was asked for in the first seconds: a bit a page of the file. */
	_Atomic uint64_t *asked; /* (c), (a) */
	uint64_t record_until;	 /* (a) once it is set */
	atomic_bool recording;
	struct working_set ws;	/* (c) once `bringing` has been set */
	atomic_bool bringing;	/* the aide is at it */
	uint64_t along[FAULTS]; /* (s) faults whose neighbours are wanted */
	size_t nalong;		/* (s) */

	struct histogram *copied, *zeroed, *there; /* (a) latencies */
	_Atomic uint64_t mapped, resident, again, exists, deferred, prefetched, lost, wp, rescues;
	_Atomic uint64_t lost_told;

	/* For a successor; without cfg.keeper it is private memory. */
	struct fill_note *note;	    /* (c) */
	int note_fd;		    /* (c) */
	bool note_kept;		    /* the loop's */
	pthread_mutex_t files_lock; /* taken last */
	struct memfile *
		*file; /* (files_lock) that a record names, or has named: with a reference */
	size_t nfiles; /* (files_lock) */
	int pending;   /* the loop's: fill_pending() */
};

/* --- fill_space.c --- */

static inline enum state
fspace_state(const struct space *sp, uint64_t page)
{
	return (enum state)(
		atomic_load_explicit(&sp->state[page / STATES_A_WORD], memory_order_acquire) >>
			2 * (page % STATES_A_WORD) &
		3);
}

static inline uint64_t
range_page(const struct range *r, uint64_t address)
{
	return r->first + (address - r->r.start) / r->r.page_size;
}

void fspace_set(struct space *sp, const struct range *r, uint64_t start, uint64_t len,
		enum state s);

/* The first MISSING page in [start, end), and how far from there on they are; 0: none. */
uint64_t fspace_missing_run(const struct space *sp, const struct range *r, uint64_t start,
			    uint64_t end, uint64_t *at);

/* Pages that are MISSING.  No lock held. */
uint64_t fspace_missing(struct space *sp);

/* The range of an address, or the first behind it, or n.  => read-locked, or the service thread */
size_t fspace_find_from(const struct space *sp, uint64_t address);

/* The range of an address, or NULL.  The second one, for the service thread, begins where it was last. */
const struct range *fspace_find(const struct space *sp, uint64_t address);
const struct range *fspace_find_again(struct space *sp, uint64_t address);

void fspace_count_mapped(struct space *sp, int64_t more);

/* False: no memory, or too many.  => write-locked, or not linked yet */
bool range_insert(struct space *sp, size_t at, const struct range *r);
void range_drop(struct space *sp, size_t at);

/* No range crosses `address` any more.  => write-locked */
bool fspace_split(struct space *sp, uint64_t address);

/* Memory of so many bytes, at whose first use all is there.  NULL: none. */
void *fill_memory(size_t len, int prot);

/*
 * 0: uffd is the space's, which is in no list yet; otherwise it is the caller's.  ranges: that it will begin with; number: 0 for a new
 * one.
 */
int fspace_make(struct fill *f, int uffd, unsigned flags, uint64_t pages, size_t ranges,
		uint64_t number, struct space **out);

/* What a child has of its parent: the same, but where a child has zeros.  0 or -ENOMEM.  => both locked, or not linked yet */
int fspace_inherit(struct space *sp, const struct space *parent);

/* Both: 0, and uffd is the child's, which is in no list yet; otherwise it is the caller's. */
int fspace_child(const struct space *parent, int uffd, struct space **out);

/* Its process is gone, or nobody has a use for it any more.  => write-locked */
void fspace_close(struct space *sp);

/* The same, and who waits for that is told.  => the service thread, no lock held */
void fspace_gone(struct space *sp);

/* Not linked, its uffd not its own any more. */
void fspace_free(struct space *sp);

/* --- fill_fault.c --- */

/*
 * What the file has, or SIGBUS where it can't be read.  `asked`: a thread waits for it.  DONE: the page is neither MISSING any more, nor
 * does anybody wait.  => the service thread
 */
enum outcome { DONE, WAS_THERE, AGAIN, GONE };
enum outcome fspace_put_content(struct space *sp, const struct range *r, uint64_t at, uint64_t len,
				bool asked);

/* All that there is to read, and the faults among it.  => the service thread */
void fspace_attend(struct space *sp);
/* Whoever waits looks again. */
void fspace_wake(struct space *sp);

/* --- fill_event.c --- */

/*
 * Read what there is, and act upon the events.  How many faults are in `fault`; *more: there may be more to read.  => the service thread
 */
size_t fspace_drain(struct space *sp, struct fault fault[FAULTS], bool *more);

/* A child can not be served: told. */
void fill_tell_child(struct fill *f, int r);

/*
 * For fill_record.c, of a space that is in no list yet: what has been acted upon before (ranges only), and what was read and not acted
 * upon.
 */
void fspace_replay(struct space *sp, const struct uffd_msg *m);

/* --- fill_bring.c --- */

/*
 * Up to FILL_RUN bytes of what is MISSING in [*at, end); *at says how far it got.  0: go on; -EAGAIN: later; -ENODATA: nothing is
 * there to fill any more; any other error: no use going on.
 */
int fspace_bring(struct space *sp, uint64_t *at, uint64_t end);

/* One run of any space.  False: nothing is missing, or it can't be had.  => the service thread */
bool fill_some(struct fill *f);

/*
 * Nobody will serve it any more: what is missing is SIGBUS, and the rest is left to the kernel, as ordinary memory: so that nobody waits for
 * us, and what is removed from now on is zeros.  False: some could not be.  => the service thread
 */
bool fspace_settle(struct space *sp);

/* --- fill_aide.c --- */

/* What the faults that have been served are likely to be followed by: there the client is ahead of the aide.  => the service thread */
void fspace_bring_along(struct space *sp);

/* What is known of the working set, before there are threads: a fault may come before the aide has its turn. */
void fill_load_record(struct fill *f);
void *fill_aide_main(void *arg);

/* Until that time, or somebody says that there is something to do.  => f->lock is held */
void fill_nap(struct fill *f, uint64_t until);

/* --- fill_transfer.c --- */

void *fill_mover_main(void *arg);

/*
 * What the mover has left behind is filled, or lost, some pages at a time, and a space that misses nothing is let go.  => the service
 * thread; f->rest_now, f->rest_later: there is more to do
 */
void fill_rest(struct fill *f);

/* --- fill.c --- */

/* The watchdog's clock. */
void fill_tick(struct fill *f, bool run);

/* The service thread has something to do. */
void fill_knock(struct fill *f);

/* Told of a thread of ours, last of all. */
void fill_at_the_end(struct fill *f);

#endif
