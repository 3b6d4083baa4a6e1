/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pager.h (private): the pager proper, where the layers meet.
 *
 *	service.c    a service thread: one loop over completions, faults, parked faults, pageout
 *	fault.c      a fault in four steps: entry, object and index, search, resolve
 *	readahead.c  streams: how many neighbours to bring along
 *	early.c      what streams want to be read before they come by
 *	lend.c       single pages, to regions and back
 *	pagein.c     swap -> frame -> region: read, verify, enter
 *	pageout.c    region -> frame -> swap: deactivate, launder, reclaim; where frames come from
 *	chain.c      shadows: what lies beneath a page, and who else sees it
 *	range.c      what user threads do to ranges: free, keep, cool, look
 *	demand.c     a caller that waits until a range is in the page table
 *	worker.c     a thread that serves its own fault
 *	tier.c       the compressed pool between frames and swap
 *	writeback.c  a caller that waits until a range is in its source
 *
 * Everything here runs unchanged over the simulated kernel: a test builds a struct pager with
 * the sim backends and calls service_step() itself instead of starting threads.
 *
 * Lock order, outermost first; a call further left only by try-lock:
 *
 *	map.change > map.lock > object.lock > leaf.lock > pages.lock > frames, swap, zone, arena locks
 *
 * and beside it: pageout_lock (try-lock only; taken with nothing held), service->cmd_lock, tier.lock, those of the compressed pool (zpool.h) and the
 * anon wait queues (all innermost).  BUSY of an anon is not a lock in this order: it is only ever tried, and
 * whoever waits for it (user threads in range.c) holds nothing but map.change.
 */
#ifndef UP_PAGER_H
#define UP_PAGER_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/base.h"
#include "base/histogram.h"
#include "base/pulse.h"
#include "base/trace.h"
#include "pager/tier.h"
#include "pmap/pmap.h"
#include "swap/swap.h"
#include "vm/frame.h"
#include "vm/map.h"
#include "vm/object.h"
#include "vm/page.h"
#include "vm/resv.h"

#define MAX_SERVICES UP_SERVICE_THREADS_MAX
#define FAULT_BATCH 32	  /* fault messages taken at a time */
#define PARKED_MAX 128	  /* faults that wait for room, per service */
#define NREADS 24	  /* page-in requests in flight, per service */
#define NWRITES 8	  /* pageout requests in flight, per service */
#define TRACE_EVENTS 1024 /* per service */
#define CMD_MAX 16	  /* ranges of a kind queued, per service */
#define ZIP_RUN_MAX 32	  /* pages unpacked for one fault, */
#define ZIP_BATCH_MAX 8	  /* and for one move to their region: those fit into a cache */
#define RUN_MAX 256	  /* pages mapped at once for one fault, 1 MiB */
#define RA_WINDOW_MAX 512 /* pages: 1 MiB that the stream is in, and the next */
#define WORKERS_MAX 64	  /* threads that serve their own faults at a time */

/* Metadata that a page out of core costs: its slot word, anon and bitmap bits, with slab slack. */
#define META_PER_PAGE 26
#define META_PER_LEAF ((uint64_t)META_PER_PAGE * LEAF_SLOTS)

/* The budget that is made free when an allocation of metadata failed. */
#define METADATA_STEP (2 * SLAB_SIZE)

/* Frames without which the pager can not be relied on to make progress. */
#define FRAMES_MIN 128

enum counter {
	C_FAULT, /* + enum up_fault_kind */
	C_WAIT = C_FAULT + UP_FAULT_KINDS,
	C_RETRY,
	C_STRAY,
	C_SIGBUS,
	C_RESCUE,
	C_FOREIGN,
	C_READAHEAD,
	C_AHEAD_HITS,
	C_ZEROAHEAD,
	C_STAGED,
	C_CLEAN,
	C_ZERO,
	C_PINNED,
	C_READS,
	C_WRITES,
	C_READ_BYTES,
	C_WRITE_BYTES,
	C_READ_ERRORS,
	C_WRITE_ERRORS,
	C_CHECKSUM,
	C_BAD_SLOTS,
	C_COPY,
	C_SOURCE_INS,
	C_SOURCE_OUTS,
	C_SOURCE_ERRORS,
	C_REFERENCED,
	C_ZIPPED,
	C_UNZIPPED,
	COUNTERS
};

struct service;
struct space;
struct worker;

/* What threads borrow that serve their own faults: worker.c. */
struct workers {
	bool on; /* (c) faults of this process are not ours to answer */
	pthread_mutex_t lock;
	uint64_t mask;			    /* (c) UP_MASK_* */
	atomic_bool stop;		    /* the runtime goes: faults are not served any more */
	atomic_uint n;			    /* (lock) to change; made */
	_Atomic uint64_t idle;		    /* bit i: nobody has worker[i] */
	struct worker *worker[WORKERS_MAX]; /* (lock); (c) once it is made */
	struct wired_array latency;	    /* (c) a histogram a kind, all workers' */
	atomic_uint waiting;		    /* for room */
	atomic_uint room; /* a futex: frames or budget have become free so often */
};

/* Of one space: its faults. */
struct space_tally {
	struct tally latency[UP_FAULT_KINDS];
	_Atomic uint64_t again;	   /* the kernel said EAGAIN */
	_Atomic uint64_t exists;   /* the page was there: EEXIST */
	_Atomic uint64_t deferred; /* put off: busy, no room, or its account was full */
	_Atomic uint64_t sigbus;   /* answered with that */
	_Atomic uint64_t since;	   /* ns; what there is of its shard from before was another's */
};

/* Buffers of a cluster each (bounce.c). */
struct bounce {
	atomic_uint
		there; /* a bit for each that is free, one that there are any, one that they are to go */
	atomic_size_t bytes;	/* charged for them; until all of it is, (lock) */
	atomic_bool wanted;	/* a request would have taken one */
	_Atomic uint64_t asked; /* when a service saw that last, ns */
	unsigned n;		/* (c) */
	unsigned pages;		/* (c) that a request has at least */
	size_t least;		/* (c) frames that there are to be room for */
	pthread_mutex_t lock;	/* never waited for */
	char *base; /* NULL: there are none.  (lock) to make them; who has one, or has all of them leaving, may read it */
	uint64_t again;	   /* (lock) not to be tried before that */
	uint64_t hopeless; /* (lock) ns to that, the next time */
};

struct pager {
	struct logger log;
	struct store *
		store; /* (c) all that is known lies in there (store.h); NULL: it ends with the process */
	struct budget budget;
	struct arena arena;
	struct object_zones zones;
	struct map_zones map_zones;
	struct map map;
	struct pages pages;
	struct frames frames;
	struct anon_waitqs waitqs;
	struct pmap *pmap;
	struct swap_area swap;
	struct polling polling; /* for reads of it */
	struct bounce bounce;	/* for large requests */
	struct resv resv_swap;	/* pages */
	struct resv resv_meta;	/* bytes */
	size_t meta_fixed; /* (c) metadata that there was before anything was promised, ghosts aside */
	struct object *objects; /* (map.change) all of them */
	struct tier tier;
	unsigned nheld; /* (pages.lock) requests of which pages may be taken: source_cancel() */
	uint64_t next_serial;	/* (map.change) */
	uint64_t next_object;	/* (map.change) the id of the last one */
	atomic_size_t overhead; /* stacks and rings of the threads, charged to the budget */

	uint64_t hash_seed;	 /* (c) random per runtime */
	uint64_t zero_hash;	 /* (c) of a page of zeros */
	uint64_t fault_timeout;	 /* (c) ns */
	enum policy_kind policy; /* (c) */

	atomic_size_t nswapped;	     /* anons of kind SWAP */
	atomic_size_t nlost;	     /* anons of kind LOST */
	atomic_size_t nwired;	     /* pages of wired entries; (map.change) to change */
	_Atomic uint64_t nwasted;    /* pages read ahead of a stream that did not come by */
	_Atomic uint64_t nreclaimed; /* pages that left memory with a copy in swap, ever */
	_Atomic uint64_t nexists;    /* pages that were to be installed, and were there */
	atomic_size_t laundering;    /* pages whose write is in flight */

	/* pageout */
	pthread_mutex_t pageout_lock; /* one thread chooses victims at a time */
	bool unattached; /* (pageout_lock) processes that a predecessor served can not be stopped yet (adopt.c) */
	unsigned stage_batch;	/* (pageout_lock) so many are chosen: fewer if they lie scattered */
	atomic_bool pageout_on; /* between the low and the high watermark */
	atomic_size_t
		starved; /* bytes of metadata that could not be had: give free frames back; 0: none */
	_Atomic uint64_t write_again;	/* after a failed write: not before this time */
	_Atomic uint64_t write_backoff; /* ns, doubling while writes fail */
	atomic_bool
		written; /* a write has succeeded since a slot was last retired for one that failed */
	_Atomic uint64_t
		no_hurry; /* until then nobody waits for more than one frame: it was in vain */
	_Atomic uint64_t
		short_until; /* the system has no memory: do not count on the budget's room; 0: it has */

	struct service *service[MAX_SERVICES];
	unsigned nservices; /* (c) */
	struct workers workers;
	unsigned next_shard;  /* (map.change) */
	struct space *spaces; /* (map.lock) of forked children and clients */
	/* The same by shard, from PMAP_POOL + 1 on; base NULL: there has been none yet.  Items are (map.lock), the rest (map.change). */
	struct wired_array space_at;
	size_t nspace_at; /* (map.lock) of its items */
	/* Some account is `over`: a thread that can wait is to take pages from it.  NULL: there are no accounts. */
	void (*over)(void *ctx);
	void *over_ctx;
	/* What faults of other processes came to, by shard from PMAP_POOL + 1 on; NULL: nobody wants to know. */
	_Atomic(struct space_tally *) tally;
	struct wired_array tallies; /* (map.change) to grow */
	struct zone space_zone;
	struct zone place_zone; /* what the pmap remembers of pools and where they are mapped */

	atomic_bool fenced; /* a lost page is PROT_NONE, for want of a better mark */
	unsigned
		frozen; /* (map.lock) faults wait: of ALL_FROZEN, chain_freeze(), and of so many spaces */
	_Atomic uint64_t thawed; /* ns, when that was over last */
	bool closing;		 /* (map.change) everything is being destroyed */

	/* UP_TRACK_FOREIGN (foreign.h) */
	struct foreign
		*foreign; /* (c) NULL: what the program does behind our back is not followed */
	bool losing;  /* (map.change) what is not in the page table has been lost, not discarded */
	bool taking;  /* (map.change) an entry goes that the program has unmapped */
	size_t taken; /* (map.change) pages that were to be kept, and were not in the page table */

	/* Tests: a worker's engine instead of one that blocks; NULL otherwise. */
	int (*worker_engine)(void *ctx, struct io_engine **e, struct pager *p);
	void *worker_ctx;
	_Atomic(struct source *) dead_sources; /* whose last reference a worker had */
	atomic_uint
		moving; /* calls under way that map or unmap: what is mapped may be in no entry */
	/* Single-threaded tests: called instead of sleeping when a user thread meets a busy page. */
	void (*idle)(void *ctx);
	void *idle_ctx;
};

enum request_kind { REQ_PAGEIN, REQ_PAGEOUT };

/* One I/O in flight, of swap or with a source, and the pages it is for.  Belongs to its service. */
struct request {
	struct swap_io io;
	struct request *next;
	struct service *service; /* (c) */
	char *bounce; /* the buffer that it goes through while it is under way; NULL: none */
	struct source *source; /* with which it is, a reference; NULL: swap */
	uint64_t index;	       /* of page[0] there */
	struct account *
		account; /* pagein: who is counted for it, a reference, with `counted` pages; NULL: nobody */
	uint64_t t0;	/* when its fault was read, ns */
	frame_t *frame; /* (c) [CLUSTER_MAX]; NULL: a read, or there is no pool */
	unsigned nlive; /* (pages.lock) pages that have not been taken */
	int status;	/* custom pagers: how it ended */
	enum request_kind kind;
	unsigned n;
	unsigned want;	/* pagein from a source: which page has a thread waiting */
	unsigned space; /* whose fault that was, a shard; 0: one of ours */
	uintptr_t addr; /* where, if it is another's */
	bool held;	/* (pages.lock) a pager of the program has it: its pages may be taken */
	bool started;	/* (pages.lock) and may be told that nobody wants it */
	atomic_bool cancelling; /* it is being told: the request stays until it has been */
	atomic_bool handed_out; /* custom pagers: up_request_complete() is still to come */
	bool demanded;		/* pagein from swap: page[0] has one */
	bool guard;		/* pagein from swap: and it only reads, as far as we know */
	bool early;   /* pagein for a stream: nobody has, and what it brings stays staged */
	bool retried; /* pagein: failed once already */
	bool back; /* written back from the compressed pool: no pages, but anons and these frames */
	uint8_t counted;
	union {
		struct page *page[CLUSTER_MAX];
		struct anon *anon[CLUSTER_MAX]; /* if back */
	};
};

/* A fault that waits for room, or for the kernel to settle. */
struct parked {
	uintptr_t va;
	unsigned space;	 /* whose address that is: a shard */
	uint64_t t0;	 /* first seen */
	uint64_t serial; /* of the mapping it was for; 0: there was none */
	bool write, wp;
	bool hurry; /* a worker's: a stream wants more frames than there are */
	unsigned
		busy; /* the same: so many pages have come back without a disk to wait for, and the next will be as soon */
};

/*
 * A caller that waits until every page of a range has been in the page table: it lies on that caller's stack.
 * While it is in a service's list, all but `next` and `over` belong to that service.
 */
struct demand {
	struct demand *next; /* (cmd_lock) */
	uintptr_t va, end;   /* what has not been seen in the page table yet */
	uintptr_t ahead;     /* reads have been started up to here */
	uint64_t
		short_since; /* there has been no room for the page at va since then, ns; 0: there was */
	uint64_t busy_since; /* the page at va has been in motion since then, ns; 0: it was not */
	bool write;	     /* the range must be writable */
	bool wire;	     /* what is seen goes to WIRED; the caller holds map.change */
	bool over;	     /* (cmd_lock) `result` says how, and the service has forgotten it */
	int result;
};

/* Ranges that callers leave to a service, oldest first; all (cmd_lock).  The service may look whether there are any without it: a kick follows. */
struct todo {
	atomic_uint n;
	uint16_t space[CMD_MAX]; /* whose addresses these are: shards */
	struct {
		uintptr_t va, end;
	} range[CMD_MAX];
};
_Static_assert(PMAP_POOL + SPACES_MAX <= UINT16_MAX, "a shard fits");

/* What streams want to be read, oldest first; all (cmd_lock). */
struct early {
	atomic_uint n; /* to change; the service looks without */
	struct {
		uintptr_t va, end;
		int step; /* as in struct ra_range */
	} range[CMD_MAX];
};

/*
 * A service thread's state; or a worker's, which is what a thread needs while it serves its own fault (worker.c): it has a smaller
 * share of everything, no shard, no descriptor, and does nothing for others but pageout.
 */
struct service {
	struct pager *p;
	bool worker;		/* (c) */
	unsigned id;		/* also its shard */
	struct wired_array mem; /* what this struct and its arrays live in */
	struct io_engine *io;
	struct codec_state *codec;    /* (c) NULL: there is no compressed tier */
	struct wired_array codec_mem; /* what that and the frames of its write-backs live in */
	pthread_t thread;
	atomic_bool stop;
	struct pulse pulse;

	_Atomic uint64_t count[COUNTERS];
	struct histogram *latency; /* (c) one a kind */
	struct trace trace;

	unsigned space;		/* whose fault it is at, a shard; 0: one of ours, or none */
	uintptr_t addr;		/* and where, if it is one */
	struct pmap_fault *msg; /* (c) FAULT_BATCH */
	struct parked *parked;	/* (c) PARKED_MAX */
	unsigned nparked;
	atomic_uint waiting;  /* nparked, for other threads to look at */
	bool parked_overflow; /* some faults were dropped: wake everything */
	uint64_t parked_look; /* when the parked were last tried, ns */
	bool more;	      /* the queue may hold more messages */
	bool events_stand;    /* the same: look again soon (UP_TRACK_FOREIGN) */

	struct request *free_reads, *free_writes;
	unsigned nreads;       /* in flight */
	struct request *reads; /* (c) NREADS */

	pthread_mutex_t cmd_lock;
	struct todo willneed, push; /* ranges to bring in; to write back */
	struct early early;
	bool push_waits;	   /* the first could not go on: look again soon */
	bool early_waits;	   /* the same */
	bool willneed_waits;	   /* the same */
	struct request *completed; /* (cmd_lock) by custom pagers, newest first */
	unsigned nhanded;	   /* requests that custom pagers have */
	unsigned nhanded_out;	   /* those of them that are page-outs */

	struct demand *demands;	    /* (cmd_lock) oldest first; only the service takes them out */
	atomic_uint ndemands;	    /* (cmd_lock) to change */
	pthread_cond_t demand_over; /* (cmd_lock) */
	bool demand_waits;	    /* one could not go on: look again soon */
};

static inline void
count(struct service *s, unsigned c, uint64_t n)
{
	/* One writer: the service thread.  A plain add that readers may look at. */
	atomic_store_explicit(&s->count[c],
			      atomic_load_explicit(&s->count[c], memory_order_relaxed) + n,
			      memory_order_relaxed);
}

/* All that count and trace: services first, then workers.  NULL: there are no more. */
struct service *worker_service(struct pager *p, unsigned i);
static inline struct service *
pager_server(struct pager *p, unsigned i)
{
	return i < p->nservices ? p->service[i] : worker_service(p, i - p->nservices);
}

/* By what name the pmap knows a page that is mapped at some address. */
struct place {
	uintptr_t va;
	unsigned shard;
};

/* => va is in the entry. */
static inline struct place
entry_place(const struct map_entry *e, uintptr_t va)
{
	const uintptr_t pool = e->object->pool;

	if (pool == 0)
		return (struct place){ va, e->shard };
	return (struct place){ pool + (e->offset << PAGE_SHIFT) + (va - e->start), PMAP_POOL };
}

/*
 * A page that this entry maps may be poisoned, and no anon says so.  In a pool that is so in all places that there were at
 * the time: the object knows.
 */
static inline atomic_bool *
entry_unrecorded(struct map_entry *e)
{
	return e->object->pool != 0 ? &e->object->unrecorded : &e->unrecorded;
}

/* A forked child's address space.  p->map's locks guard its map, too. */
struct space {
	struct space *next; /* (map.lock) */
	unsigned shard;	    /* (c) */
	struct map map;	    /* (map.lock) */
	uint64_t id; /* (c) younger ones have greater ones; no mapping has it as its serial */
	int sock;    /* (c) once linked: to the child or client; fork.c */
	atomic_bool attached; /* fork.c's keeper; others look */
	struct client *
		client; /* (c) once linked: of a program that is connected; NULL: of a forked child */
	struct account *
		account; /* (c) once linked: of the client, or of the one that it descends from; a reference.  NULL: none */
	uid_t uid;	/* (c) the same's */
	atomic_int pid; /* for people; 0: the child has not said yet that it is there */
	/* keeper: */
	uint64_t coming; /* its map is frozen, since it is about to fork that space; 0 */
	/* until that at most, now_ns(); of a client that is not attached: it is to say hello until then */
	uint64_t thaw_at;
	bool returned; /* it may have said that it has, to a predecessor */
	bool acked;    /* it has been told that it is served */
	/* a client is to be told that the pager ends in so many ms: those, and 1; 0: nothing */
	atomic_uint leave;
	bool later; /* it could not be told more: too many descriptors are on their way, whosever */
	bool telling;	 /* what it is to map: as many entries as `told`, so far */
	uint32_t serial; /* which it has asked with */
	size_t told;
	struct slow *slow; /* what is done for it piece by piece (slow.c); NULL */
};

/* The map of a space, ours or a child's; NULL: it is gone.  => map.lock */
static inline struct map *
space_map(struct pager *p, unsigned shard)
{
	const size_t i = shard - PMAP_POOL - 1;
	struct space *sp;

	if (shard < p->nservices)
		return &p->map;
	sp = i < p->nspace_at ? ((struct space **)p->space_at.base)[i] : NULL;
	return sp != NULL ? &sp->map : NULL;
}

/* Where a request's fault was, by the name that its process has for it. */
static inline uintptr_t
request_addr(const struct request *req, uintptr_t va)
{
	return req->space > PMAP_POOL ? req->addr : va;
}

/* True if faults there wait.  => map.lock */
#define ALL_FROZEN (1u << 31)
static inline bool
space_frozen(struct pager *p, unsigned shard)
{
	const struct map *m;

	if (p->frozen == 0)
		return false;
	m = space_map(p, shard);
	return (p->frozen & ALL_FROZEN) != 0 || (m != NULL && m->frozen);
}

/* The entry at an address of it; NULL: none.  => map.lock */
static inline struct map_entry *
space_lookup(struct pager *p, unsigned shard, uintptr_t va)
{
	struct map *m = space_map(p, shard);

	return m != NULL ? map_lookup(m, va) : NULL;
}

/* --- accounts, in pageout.c --- */

/* It may not have the pages of one more fault of each service. */
bool account_is_full(const struct pager *p, const struct account *a);
/* It, or a group that it is in, has a limit; and the same as above, of either.  NULL is fine. */
bool account_is_limited(const struct account *a);
bool account_turns_away(const struct pager *p, const struct account *a);
/* Others may not push out what it has. */
bool account_is_kept(const struct account *a);
/* Take pages out until it has so many, or nothing more can be taken: how many went.  => map.change is held */
size_t account_reduce(struct pager *p, struct account *a, size_t target);

/* --- fault.c --- */

/* Serve one fault read at t0: install the page, start I/O, park it, or drop it for the holder to wake. */
void fault_handle(struct service *s, unsigned space, uintptr_t va, bool write, bool wp,
		  uint64_t t0);
/* The page of a fault could not be put in place: the fault is still to be answered. */
void fault_again(struct service *s, unsigned shard, uintptr_t va, uint64_t t0);
/* Try the parked ones again; those older than the time-out become SIGBUS. */
void fault_unpark(struct service *s);
/* Whoever waits in a space faults anew.  => map.lock is not held */
void wake_space(struct pager *p, const struct space *sp);
/*
 * The same for a page that a call asks for, and up to n - 1 behind it; no thread waits at the address, so nothing
 * is parked and nothing is lost for want of room.
 * => 0: served, under way, or busy; look again.  -EBUSY: in motion, here or further down the chain: look again later.
 *    -EAGAIN: not now.  -ENOSPC: overcommitted, and nothing is left to promise.  -EIO: lost.
 */
int fault_ask(struct service *s, uintptr_t va, bool write, unsigned n);
/* The same for a stream, of what a source has: *got pages are under way, or need not be.  False: no room now. */
bool fault_early(struct service *s, uintptr_t va, unsigned n, unsigned *got);
/*
 * One attempt of a worker at its own fault.  The serial of *pk is 0 the first time.
 * => `e` is the entry, and map.lock is locked for reading; it is not on return.  NULL: it is not locked, and `e` has to be found.
 *
 *	SERVED	it is, or will be when the worker's I/O is done: touch it again
 *	BUSY	somebody has the page: anon_sleep() in *waitq, which has begun, then touch it again; -1: in a single-threaded test
 *	LATER	the kernel, or somebody's page, is in motion
 *	ROOM	no frame or no metadata: help to make some
 *	LOST	SIGBUS
 *	ASK	only a service can bring it in: fault_ask() it
 *	STRAY	nothing is mapped there
 */
enum fault_next {
	FAULT_SERVED,
	FAULT_BUSY,
	FAULT_LATER,
	FAULT_ROOM,
	FAULT_LOST,
	FAULT_ASK,
	FAULT_STRAY
};
enum fault_next fault_serve(struct service *s, struct parked *pk, struct map_entry *e, int *waitq);
/* True if that has gone on for too long, and the page is lost now. */
bool fault_time_out(struct service *s, const struct parked *pk);
/* A service that was asked had nothing to promise for it: true if the page is lost now. */
bool fault_full(struct service *s, const struct parked *pk);
/* A fault has been answered; va is where it was, in that space. */
void fault_answered(struct service *s, unsigned space, enum up_fault_kind kind, uintptr_t va,
		    uint64_t t0);
/*
 * Answer a fault of that space, at `addr` there, with SIGBUS.  => the page is LOST, or is about to be, and busy.
 * 0, or -EAGAIN: the kernel could not do it now, and the fault is still to be answered.
 */
int fault_sigbus(struct service *s, unsigned space, uintptr_t addr, unsigned shard, uintptr_t va);
/*
 * Put pages with frames into their regions: consecutive ones in one call.
 * => all are busy and in TRANSIT with va, shard and frame set.
 * => pages [0, *done) are MAPPED on ACTIVE, their frames are holes; the others unchanged.
 * => 0, or why page *done was not: -EAGAIN, -ENOENT, -ENOMEM.
 */
int enter_pages(struct pager *p, struct page *const pg[], unsigned n, unsigned *done);
/* A page in TRANSIT that was read into its frame and has no place in a region: to a staged queue.  Its slot, if any, has the same bytes. */
void page_stage(struct pager *p, struct page *pg);
/* What the policy remembers a page by while it is out: its slot, or its address if a source has it. */
static inline uint64_t
page_key(const struct page *pg)
{
	return pg->slot != SLOT_NONE ? pg->slot : pg->va | UINT64_C(1) << 63;
}

/* Release BUSY and wake whoever asked. */
void page_unbusy(struct pager *p, struct anon *an, unsigned shard, uintptr_t va);

/* The slot of a busy anon that is about to be freed: nothing may show through there that was hidden.  => leaf locked */
static inline void
leaf_empty(struct leaf *leaf, unsigned at)
{
	if (atomic_load_explicit(&leaf->object->chained, memory_order_relaxed))
		leaf_mark(leaf, at);
	else
		leaf_clear(leaf, at);
}

/* The slot of a busy anon that is about to be freed: empty it, and take back what was promised for it. */
void leaf_forget(struct pager *p, struct leaf *leaf, unsigned at);
/* Free a busy anon whose slot is empty already, and wake whoever asked. */
void anon_gone(struct pager *p, struct anon *an, unsigned shard, uintptr_t va);

/*
 * The leaf, made if need be.  The metadata of an object without a reservation is promised now, a leaf
 * at a time, lest it eat what was promised to others; *denied if that is not to be had.
 */
struct leaf *leaf_for(struct pager *p, struct object *o, uint64_t index, bool *denied);

/* --- chain.c: shadows --- */

/* What lies beneath a page. */
struct beneath {
	struct object *object;
	uint64_t index;
	struct leaf *leaf;
	unsigned at;
	struct anon *anon; /* busy, the finder's */
};

enum beneath_what { BENEATH_ZEROS, BENEATH_SOURCE, BENEATH_PAGE, BENEATH_BUSY };

/*
 * Look down the chain from page `index` of `o`, which has nothing there itself; `hidden`: but the mark SLOT_BASE.
 * => map locked, or map.change held.  Of a source, or what is busy, object and index are filled in, of a page everything.
 */
enum beneath_what chain_find(struct object *o, uint64_t index, bool hidden, struct beneath *b);
/*
 * True if a front object other than `except` sees page `index` of the backing object `o`.  => map locked, or map.change
 * held; no leaf locked.  It stays true or false while the caller has the page busy.
 */
bool chain_seen(struct object *o, uint64_t index, const struct object *except);
/*
 * Stop all faults, so that what is in regions can be taken out as of one instant, or chains can be turned round; let
 * them go on.  => map.change is held
 */
void chain_freeze(struct pager *p);
void chain_thaw(struct pager *p);
/* The same for the faults of one space, which is linked, until that or its end. */
void space_freeze(struct pager *p, struct space *sp);
void space_thaw(struct pager *p, struct space *sp);
/*
 * Part: what `o` has goes to `b`, an empty object of the same size, and `o` becomes its shadow.  The reference to `b`
 * passes to `o`.  => frozen, no page of `o` is in a region, map.lock held for writing
 */
void chain_part(struct object *o, struct object *b);
/*
 * [first, first + n) of a shadow hide what shows through there: zeros, but for its own pages.  => map.change is held
 * => 0, or -ENOMEM: no metadata to remember it
 */
int chain_hide(struct pager *p, struct object *o, uint64_t first, uint64_t n);
/* They are hidden: let go of what nobody else sees.  => map.change is held */
void chain_hidden(struct pager *p, struct object *o, uint64_t first, uint64_t n);
/* Forget the marks of a range. */
void chain_unmark(struct object *o, uint64_t first, uint64_t n);
/* A shadow of `b` that saw its [first, first + n) is gone: let go of what nobody sees; join with the last shadow. */
void chain_dropped(struct pager *p, struct object *b, uint64_t first, uint64_t n);

/* --- readahead.c --- */

/* How many pages from `index` on to bring in (>= 1, at most `max`).  *stream: for readahead_done(). */
unsigned readahead_window(struct pager *p, struct map_entry *e, uint64_t index, unsigned max,
			  struct ra_stream **stream);
/* The stream whose next fault is this one, of a page that is in memory or on its way; NULL: none. */
struct ra_stream *readahead_hit(struct pager *p, struct map_entry *e, uint64_t index);
/* `n` were brought in, the way that the stream goes. */
void readahead_done(struct ra_stream *stream, uint64_t index, unsigned n);
/* True if it is not all of the pages on its way that it wants. */
bool readahead_strided(const struct ra_stream *st);
/* How many pages it is worth to bring in at once. */
unsigned readahead_reach(const struct ra_stream *st);
bool readahead_back(const struct ra_stream *st);
/* True if it is time to ask for more: for the pages of *r.  They have been asked for from here on. */
struct ra_range {
	uint64_t first, end; /* object indices */
	int step;	     /* every so many of them; < 0: the last ones first */
};
bool readahead_more(const struct map_entry *e, struct ra_stream *st, struct ra_range *r);
/*
 * True if what a fault unpacks will have been used once when it leaves: a stream goes over more than memory holds, or
 * the program has said so.  Only while all that leaves is compressed: on the disk it is better to have in one place what has left in one go, and to write what
 * is dirty while a stream waits anyway.  stream: or NULL.  => map locked
 */
bool readahead_once(struct pager *p, const struct map_entry *e, const struct ra_stream *stream);
/* Of pages read ahead n have been used; n < 0: so many have not. */
void readahead_credit(struct object *o, int n);
/* The same of the object that a leaf of a busy page belongs to.  => no leaf locked */
void leaf_credit(struct leaf *leaf, int n);

/* Undo pages that were never installed: busy, in TRANSIT, with frame or without. */
void unmake(struct pager *p, struct page *const pg[], unsigned n);

/* --- source.c: named objects --- */

/*
 * Start to read the page of a fault, and n - 1 around it, from the object's source.
 * => pg[0 .. n) are busy, in TRANSIT, in their slots, without frames; pg[want] is the one that is waited for, pg[0] page `index`.  req
 *    is ours.  Returns how many are under way, the others are undone; 0: req is put back too.
 */
unsigned source_in(struct service *s, struct request *req, struct source *src, uint64_t index,
		   struct page *const pg[], unsigned n, unsigned want, uint64_t t0);
/*
 * Zeros where a source says that it has nothing.  => as above, and pg[0] is waited for.  Returns how many there are now, the others
 * are undone.  *err: why pg[0] is not in the page table, or 0.
 */
unsigned source_zeros(struct service *s, struct page *const pg[], unsigned n, int *err);
/*
 * Start to write dirty pages of a source's own object back.  => busy, in TRANSIT, with frames; neighbours.  Returns how many are
 * under way (from the front).  hash[]: of what the frames hold; NULL: it is to be taken.
 */
unsigned source_out(struct service *s, struct page *const pg[], const uint64_t hash[], unsigned n);
/* A custom pager that never completes its requests must not keep all of them from everyone else. */
bool source_may_start(const struct service *s, const struct source *src, bool write);
/* A request that has req->source is done. */
void source_done(struct service *s, struct request *req);
/* Those that custom pagers have completed. */
void source_completions(struct service *s);
/*
 * A busy page that a pager of the program is reading in: nobody wants it any more.  It is gone, as if it had never been asked for, and
 * the pager is told when all of its request are; its frame stays the request's until that is completed.
 * => leaf locked, its slot `at` holds a busy anon; unlocked if the page was taken.  May call the program.
 */
bool source_cancel(struct pager *p, struct leaf *leaf, unsigned at);
/* True if it could be. => the same; the leaf stays locked. */
bool source_reading(struct pager *p, const struct leaf *leaf, unsigned at);
/* All that pagers of the program read for this service; by the service, or nobody runs it any more. */
void source_abandon(struct service *s);
/*
 * One more reference; one less: who drops the last destroys it, a service too, which so runs a function of the program, as it does for
 * its requests.  => nothing is locked but map.change
 */
void source_ref(struct source *src);
void source_unref(struct source *src);
/* Destroy those whose last reference a worker had. */
void source_bury(struct pager *p);
/* Write one busy page back if it has changed; threads of the program. */
int source_write(struct pager *p, struct object *o, struct anon *an, uint64_t index);
/* For the next who asks whether all is safe to be told of. */
void source_failed(struct source *src, int error);
/* All is written: make it safe.  0, or the first error since it was last asked.  Takes as long as it takes: no lock is needed. */
int source_settle(struct source *src);
/* Ask the service of a shard to start writing what has changed in a range.  False: it has too much to do. */
bool source_push(struct pager *p, unsigned shard, uintptr_t va, uintptr_t end);
/* Go on with these. */
void source_commands(struct service *s);

/* --- pagein.c --- */

/*
 * Start reading a swapped page and up to `want` - 1 neighbours that lie behind it in the swap.
 * => leaf is locked, the anon in its slot `at` is SWAP and busy (ours); va and shard are its place.
 * => the leaf is unlocked on every return.  *got: pages under way.
 * => 0: pagein_done() finishes.  -ENOMEM: no room, nothing is busy any more.
 */
enum pagein_for {
	FOR_FAULT,  /* a thread waits for the page */
	FOR_LOAD,   /* the same, and it is not about to write */
	FOR_CALL,   /* nobody does, but it is to be in the page table */
	FOR_ADVICE, /* the same, and nobody comes back to what was passed by */
	FOR_STREAM, /* somebody may come by: it stays staged */
};
int pagein_start(struct service *s, struct leaf *leaf, unsigned at, uintptr_t va, unsigned shard,
		 unsigned want, enum pagein_for why, uint64_t t0, unsigned *got);
void pagein_done(struct service *s, struct request *req);
/*
 * The same from the compressed pool, at once: 0, and *got pages are in the page table, or staged if they have no va; -ENOMEM; or of the page at `at`
 * -EIO it is lost, and whoever waits has been told, -EAGAIN not now.
 * => map locked; the leaf is, too, and its anon ZIP and busy (ours); neither of these is on any return.  `back`: its neighbours in front of it are wanted, not those behind;
 *    so many are in the leaf
 */
int pagein_zip(struct service *s, struct leaf *leaf, unsigned at, uintptr_t va, unsigned shard,
	       unsigned want, bool back, enum pagein_for why, bool once, unsigned *got);
/*
 * Start reading what is out of memory at *va, or pass it by; *va: where to go on.  False: no room now.
 * FOR_CALL: what is in swap, but for what somebody holds; FOR_ADVICE: that, too, as soon as it is let go; FOR_STREAM: what a source has, too.
 */
bool pagein_ahead(struct service *s, unsigned space, uintptr_t *va, uintptr_t end,
		  enum pagein_for why);
/* Go on with what streams want, and then with will-need ranges, as far as there is room. */
void pagein_commands(struct service *s);
/* True if busy pages that were read for this are to stay staged: nobody has come by for one of them. */
bool pagein_stays(struct service *s, enum pagein_for why, struct page *const pg[], unsigned n);

/* --- bounce.c --- */

void bounce_init(struct bounce *b);
/* Nothing is under way. */
void bounce_fini(struct pager *p);
/* A request that is about to be submitted goes through a buffer, if it is large and there is one. */
void bounce_begin(struct pager *p, struct request *req);
/* It has come back: what it has read goes to its frames. */
void bounce_end(struct pager *p, struct request *req);
static inline bool
bounce_wanted(const struct pager *p)
{
	return atomic_load_explicit(&p->bounce.wanted, memory_order_relaxed);
}
/* Some were: make them if there is room.  By services, which may wait for the kernel's memory here; without any lock. */
void bounce_make(struct pager *p);
/*
 * Their memory goes back, or will as soon as the last one in use is not any more.  True: some did.  False: there are none, one is in use, or somebody is just
 * making them.  Never waits.
 */
bool bounce_shrink(struct pager *p);
/* The same if they are too large a part of memory now, or nobody wants what is charged so far. */
void bounce_fit(struct pager *p);
/* Bytes that they may still take. */
size_t bounce_to_come(struct pager *p);
void bounce_check(const struct pager *p);

/* --- early.c: for streams --- */

/* A stream wants these to be read; any thread.  If there are too many such wishes it is not done. */
void early_wish(struct service *s, uintptr_t va, uintptr_t end, int step);
/* Go on with wishes.  True if all of them have been asked for, or are forgotten. */
bool early_serve(struct service *s);

/* --- lend.c: single pages --- */

/* Whether single pages are lent to regions instead of moved, see pmap.h. */
static inline bool
lends(const struct pager *p)
{
	return (p->pmap->features & UP_MASK_VECTOR) != 0;
}
/*
 * Install a page that was read into its frame by lending it, if that can be done now; guarded if `guard` and nobody else has to hear
 * of a change.  => busy, in TRANSIT; MAPPED if true, as before if not
 */
bool lend_page(struct pager *p, struct page *pg, bool guard);
/* The same of neighbours, in frames that follow each other and are the caller's then, with the same content.  How many, from the front. */
unsigned lend_run(struct pager *p, struct page *const pg[], unsigned n, bool guard);
/* Whether a page of this object that comes alone, for a load, is to be guarded. */
bool lend_guarded(struct object *o);
/* Charge that much to the budget, if need be in exchange for free or clean frames.  False: neither is there. */
bool frames_trade(struct pager *p, size_t bytes);
/* A guarded page has been written to.  => busy */
void lend_written(struct page *pg);
/* A mapped page may be written.  => busy */
void lend_allow(struct pager *p, struct page *pg);
/*
 * Of pages that are to leave the page table, those that are guarded do, in frames that there are, in one call wherever they lie.  Returns how
 * many are left in pg[]; if there are no frames for them, they leave as others do.  => busy, in TRANSIT
 */
unsigned lend_recall(struct service *s, struct page *pg[], unsigned n);

/* --- pageout.c --- */

/* Take one step if free room is short.  True if another step now would do something. */
bool pageout_step(struct service *s);
void pageout_done(struct service *s, struct request *req);
/* A write to swap has ended: what that says of the medium. */
void pageout_written(struct service *s, const struct request *req, bool ok);
/* Slots for up to `want` pages: grows the file if it may. */
size_t swap_slots_take(struct pager *p, size_t want, slot_t *first);
/* A worker has taken frames: a service makes more, if few are left. */
void pageout_wake(struct pager *p);
/*
 * The same, earlier, by the worker itself: it would not wait for anything meanwhile, and each page that a service takes out stops it
 * for a TLB shootdown.
 */
void pageout_help(struct service *s);
/* The same, by a service beside it. */
void pageout_ask(struct pager *p);
/*
 * Up to `want` frames with undefined content, neighbours where possible: free ones, new ones while
 * the budget lasts, then those of clean staged pages.  Returns how many.
 */
unsigned frames_obtain(struct pager *p, unsigned want, frame_t f[]);
/* Give frames back, as free frames. */
void frames_release(struct pager *p, const frame_t f[], unsigned n);
/* After a failed write: how long to leave the disk, or a source, alone.  True if this begins a new pause. */
bool pageout_backoff(_Atomic uint64_t *write_again, _Atomic uint64_t *write_backoff);
/* All the frames that the limit leaves room for at present, wired pages aside. */
size_t frames_most(struct pager *p);
/* Frames that could be had at once. */
size_t frames_available(struct pager *p);
/* The system, or our memory cgroup, had no page for us although the budget has room. */
void pager_short(struct pager *p);
/* Room for metadata ran out: pageout turns frames into budget. */
void pager_starved(struct pager *p, size_t bytes);
/* Pages are to be read ahead of streams: those that have waited longest for theirs make room if there are many. */
void ahead_trim(struct service *s);
/* Turn free and clean frames into budget for metadata.  True if it did. */
bool frames_shrink(struct pager *p);
/* Give the memory of frames that are the caller's back, and their room in the budget; they lie side by side. */
void frames_drop(struct pager *p, frame_t first, size_t n);
/* The same of free and clean frames, but only half of what there is, since faults need some too; at most `most`.  Returns how many. */
size_t frames_give_up(struct pager *p, size_t most);
/* The same as frames_obtain(), but only of frames that are there: none is made. */
unsigned frames_there(struct pager *p, unsigned want, frame_t f[]);
/* Pages that can be in page tables together at present, pageout taking none of them out again at once. */
size_t frames_mappable(struct pager *p);

/* --- worker.c: threads that serve their own faults --- */

/* Before there are any, with p->workers.on set: the first of them.  0 or -ENOMEM. */
int workers_init(struct pager *p);
void workers_fini(struct pager *p);
/* The runtime goes: who is at it finishes, or gives up; those after him fault until nothing is mapped.  Then wait for the former. */
void workers_stop(struct pager *p);
void workers_wait(struct pager *p);
/* Frames or budget have become free. */
void workers_kick(struct pager *p);
/*
 * The calling thread has touched a page that it can not have: bring it in.  It takes no signal meanwhile and is not cancelled.
 *
 *	SERVED	 touch it again
 *	LOST	 the page is lost: SIGBUS
 *	NOT_OURS nothing is mapped there through this pager
 */
enum served { SERVED, SERVED_LOST, SERVED_NOT_OURS };
enum served worker_serve(struct pager *p, uintptr_t va, bool write);

/* --- range.c: user threads --- */

/* A run of busy anons in one leaf. */
struct batch {
	struct leaf *leaf;
	unsigned n;
	unsigned at[CLUSTER_MAX]; /* slots, ascending */
	struct anon *anon[CLUSTER_MAX];
};

/*
 * The next up to CLUSTER_MAX pages in [*first, end) that exist, all made busy; *first moves behind the
 * last one looked at.  False when there are no more.  Nothing is locked on return.  Nobody waits for what a pager
 * of the program is reading: it is cancelled, and does not exist; or is passed over.
 */
enum batch_reads { READS_CANCEL, READS_PASS };
bool range_batch(struct pager *p, struct object *o, uint64_t *first, uint64_t end,
		 enum batch_reads reads, struct batch *b);
/*
 * A page in motion: sleep until it may have come to rest; or cancel it, if a pager of the program reads it.
 * => leaf locked, its slot `at` holds a busy anon; unlocked on return.
 */
void range_wait(struct pager *p, struct leaf *leaf, unsigned at);
/* Sleep for a millisecond, in which something may happen. */
void range_doze(struct pager *p);
/*
 * Free the contents of object pages [first, first + n).  What shows through there from a backing object must be hidden
 * already, so that no fault can bring it back: chain_hide().  Waits for busy pages.
 * => map.change held, nothing else.  va: where page `first` is mapped (then mapped pages are
 *    discarded from there), or 0 if it is not.  gone: nobody will look at them any more.
 */
void range_free(struct pager *p, struct object *o, uint64_t first, uint64_t n, uintptr_t va,
		unsigned shard, bool gone);
/*
 * Take the mapped pages of a range out of their region and keep them staged.  If the region goes away, all of them, by
 * a copy if need be.  If it is `live`, what the kernel does not hand over stays where it is: 0, or why that was so for
 * one of them (-EBUSY: pinned for I/O, which goes on in the memory that it pinned); so does what is wired.
 * => map.change held; unless it is `live`, no entry maps the range any more.
 * to: where page `first` is mapped next, on `shard`; 0: nobody knows yet.
 */
int range_keep(struct pager *p, struct object *o, uint64_t first, uint64_t n, bool live,
	       uintptr_t to, unsigned shard);
/* Clear the marks out of a range of an entry that no anon speaks of.  => map.change held */
void range_unrecord(struct pager *p, struct map_entry *e, uintptr_t start, uintptr_t end);
/* Clear the marks of lost pages out of a range of the page table; who touches one is told anew. */
void range_unmark(struct pager *p, struct object *o, uint64_t first, uint64_t n, uintptr_t va,
		  unsigned shard);
/*
 * Of a shared mapping of a source: each page is taken out of its region, written back if it has changed and only then let go of, so
 * that no store is lost in between.  What can not be written is kept, staged, unless `force`.  0, or the first error.
 */
int range_give_back(struct pager *p, struct object *o, uint64_t first, uint64_t n, uintptr_t va,
		    unsigned shard, bool force);
/*
 * Of a private mapping of a source: let go of what is the same as it was read, here and in objects beneath.
 * => map.change held; none of it is wired.
 */
void range_refresh(struct pager *p, struct object *o, uint64_t first, uint64_t n);
/* The pages of a range have been moved, as they are, to where page `first` is at `to`.  => map.change held. */
void range_readdress(struct pager *p, struct object *o, uint64_t first, uint64_t n, uintptr_t to,
		     unsigned shard);
/* Make mapped pages of the range the next victims. */
void range_cool(struct pager *p, struct object *o, uint64_t first, uint64_t n, uintptr_t va,
		unsigned shard);
/* Wired pages of the range are like others again. */
void range_unwire(struct pager *p, struct object *o, uint64_t first, uint64_t n, uintptr_t va,
		  unsigned shard);
/* Let go of the content of a busy anon: slot, frame, page.  Its place in the page table is empty already. */
void release_content(struct pager *p, struct anon *an);
/* Drop what is in a range of the page table; waits until the kernel does it. */
void range_discard(struct pager *p, unsigned shard, uintptr_t va, uint64_t n);
/* UP_PAGE_* of each page. */
void range_residency(struct pager *p, struct object *o, uint64_t first, uint64_t n, uintptr_t va,
		     unsigned shard, unsigned char *vec);
/* How many of some pages are where. */
struct range_look {
	uint32_t mapped, staged, swapped, compressed, lost;
};
/*
 * The same as numbers, for pictures of ranges of any size: of one leaf of an entry's object, or of one that shows through there, at a time; what was never
 * touched costs nothing.  Page i of the entry counts in look[i * nlook / pages of the entry].  Only every `step`th page, a power of two, is looked at, and stands for as
 * many.  Nobody is waited for: what is in motion counts as staged.
 * => map.lock is held.  *depth and *at, 0 at first, say how far it has come.  False: that was all, or as deep as it looks.
 */
bool range_count(struct pager *p, const struct map_entry *e, unsigned *depth, uint64_t *at,
		 unsigned step, struct range_look look[], unsigned nlook);
/* Ask a service to bring a range of a space in. */
void range_willneed(struct pager *p, unsigned shard, uintptr_t va, uintptr_t end);

/* --- demand.c --- */

/*
 * Wait until every page of [d->va, d->end) has been in the page table.  d->write and d->wire are the caller's; the
 * rest is filled in here.  No signal may be taken meanwhile.
 * => no lock but map.change may be held.
 * => 0; or what became of the page at d->va: -ENOMEM not mapped, -EACCES not allowed, -EIO lost, -EAGAIN no room
 *    for it in p->fault_timeout, -ENOSPC overcommitted.
 */
int demand_range(struct pager *p, struct demand *d);
/*
 * The same for up_wire() without waiting, of any map: pages that are in the page table, or in the file of their pool, go to WIRED.
 * => map.change is held.  0: all of them; -EINPROGRESS: one is not there, or in motion, and those in front of it are to be unwired again by the
 *    caller; or the errors of demand_range().
 */
int demand_hold(struct pager *p, struct map *m, uintptr_t start, uintptr_t end);
/* A service's part: go on with what callers wait for. */
void demand_serve(struct service *s);
/* The same, when it has been stopped. */
void demand_end(struct service *s);

/* --- service.c --- */

/* Everything but threads and engines; the budget may come to be `most`.  p->pmap, p->swap and p->arena are set up. 0 or -errno. */
int pager_init(struct pager *p, size_t most);
void pager_fini(struct pager *p);
/* Metadata that can be promised with a budget of `limit`, bytes. */
uint64_t pager_meta_max(struct pager *p, size_t limit);
/* Memory for service `id`; its engine is still to be made.  NULL when the budget has no room. */
struct service *service_alloc(struct pager *p, unsigned id);
void service_free(struct service *s);
/*
 * One turn: take what completed, serve the faults that are there, try the parked, page out.
 * Waits at most timeout_ns for something to happen; without limit if that is < 0.
 */
void service_step(struct service *s, int64_t timeout_ns);
/* The thread's body: steps until s->stop. */
void service_run(struct service *s);
/* Frames or budget have become free: services with parked faults look again. */
void services_kick(struct pager *p, const struct service *except);
/* A caller waits for frames: start pageout, and get everyone going. */
void services_press(struct pager *p);
/* Leave a range to a service, and kick it.  False: there are too many already. */
bool todo_put(struct service *s, struct todo *t, unsigned space, uintptr_t va, uintptr_t end);
/* The oldest; false: there is none. */
bool todo_look(struct service *s, struct todo *t, unsigned *space, uintptr_t *va, uintptr_t *end);
static inline bool
todo_first(struct service *s, struct todo *t, unsigned *space, uintptr_t *va, uintptr_t *end)
{
	return atomic_load_explicit(&t->n, memory_order_relaxed) > 0 &&
	       todo_look(s, t, space, va, end);
}
/* It has been dealt with up to va; `over`: all of it. */
void todo_go_on(struct service *s, struct todo *t, uintptr_t va, bool over);
/* Requests that are done. */
void service_complete(struct service *s, struct swap_io *done);
/* For who makes a service or a worker. */
void requests_init(struct service *s, enum request_kind kind, struct request req[], unsigned n);
/* NULL when all of a kind are in flight. */
struct request *request_get(struct service *s, enum request_kind kind);
/* True if a read that nobody waits for may be started without keeping those that are waited for. */
bool requests_spare(const struct service *s);
/* Point the I/O at the frames of req->page[0 .. n). */
void request_fill(struct pager *p, struct request *req, enum swap_op op, slot_t first);
/* The same in these frames, whatever they are for. */
void request_fill_frames(struct pager *p, struct request *req, const frame_t f[], enum swap_op op,
			 slot_t first);
/* The same of an I/O that is nobody's request; its owner is the caller's to say. */
void swap_io_fill(struct pager *p, struct swap_io *io, const frame_t f[], unsigned n,
		  enum swap_op op, slot_t first);
/* The sum of a counter over all that serve. */
uint64_t pager_total(struct pager *p, unsigned c);
void request_submit(struct service *s, struct request *req);
/* A page-in is about to be started: its pages count for the account, which may be NULL, until request_put(). */
void request_count(struct request *req, struct account *a);
void request_put(struct service *s, struct request *req);

/* Assert every drawing in the library.  Nothing is in flight and nobody else uses the pager. */
void pager_check(struct pager *p);

#endif
