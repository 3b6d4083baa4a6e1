/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * swap.h (private): swap space: one file or block device, its slots, and I/O on it.
 *
 *	area.c    opens and grows the file, hands out slots in contiguous runs
 *	uring.c   the I/O engine of a thread, on an io_uring
 *	blocking.c  that of a thread that serves its own faults, where it has none
 *	polling.c   when an engine looks rather than sleeps
 *	io.c      what all engines do about a request that came part of the way
 *	(tests)   a simulated disk behind the same ops
 *
 * A slot is one page of swap space.  Slots are chosen at pageout, never at allocation, so a
 * cluster of pages that leave together is contiguous whatever their addresses.
 *
 *	FREE --swap_alloc--> USED --swap_free--> FREE
 *	                      +----swap_retire--> BAD (for good: the medium refused it)
 */
#ifndef UP_SWAP_H
#define UP_SWAP_H

#include <liburing.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>

#include "base/base.h"
#include "base/runmap.h"
#include "swap/polling.h"

typedef uint32_t slot_t;
#define SLOT_NONE UINT32_MAX

/*
 * Slots are handed out of it; any thread, also while it grows.
 *
 * Lock order: grow_lock > lock > the arena's.  Space is allocated on disk under grow_lock alone,
 * so whoever needs a slot meanwhile does not wait for it.
 * Keys: (c) constant once open, (lock) written under lock; an atomic is read without it too.
 */
struct swap_area {
	int fd;		 /* (c) our own descriptor */
	bool odirect;	 /* (c) */
	bool fixed;	 /* (c) the size was given, or it is a device: never grows */
	bool unreserved; /* (c) the file system has no fallocate(): space is not certain */
	bool truncate;	 /* (c) a file that others can see: to be left behind empty */
	bool locked;	 /* (c) flock()ed, and the lock is ours to drop */
	bool shared;	 /* (c) every io_uring holds it */
	const struct logger *log;
	pthread_mutex_t grow_lock;
	pthread_mutex_t lock;
	struct runmap slots;  /* (lock) */
	atomic_size_t nslots; /* (lock, and grow_lock) slots that exist: free, used and bad */
	atomic_size_t nused;  /* (lock) */
	atomic_size_t nbad;   /* (lock) */
};

/*
 * Open as up_config says (path, else fd if > 0, else an unlinked temporary file).  `mask`:
 * UP_MASK_ODIRECT.  size 0 of a file: starts empty and grows.  Logs where it is and whether
 * O_DIRECT works.
 * Swap on tmpfs or ramfs would defeat the limit: for the default file such a directory is passed
 * over, for a path or fd it is a warning.
 *
 * A file given by path or fd is locked with flock(), truncated now, and empty again after close.
 * From the fd another description of the same file is opened where /proc allows it: flags,
 * position and locks of the caller's stay as they are.
 *
 * 0, -EINVAL (not a file or block device; size not representable), -ENOSPC, -EBUSY (a device that
 * is mounted or held by somebody, a file locked by somebody), or what open() said.  `log` is kept.
 * After a failure nothing is left, not even a file that was created, and close does nothing.
 */
int swap_area_open(struct swap_area *s, struct arena *arena, const char *path, int fd,
		   uint64_t size, uint64_t mask, const struct logger *log);
/*
 * The same of a process that is followed by another when it is killed.  What is under way then goes on, into files as well as into swap: so every
 * io_uring holds the area, and this waits for those of the last one: 1 s, or 5 s with `kept`, as -EBUSY takes that much longer.
 * `kept`: with all that the last process has left there: swap_claim() says which slots are used.  A file by its path, or if it has none by a descriptor.
 */
int swap_area_open_shared(struct swap_area *s, struct arena *arena, const char *path, int fd,
			  uint64_t size, uint64_t mask, bool kept, const struct logger *log);
/* A slot that was used.  False: it is in use again already, or there is none of that number. */
bool swap_claim(struct swap_area *s, slot_t slot);
/* True if nobody could open it again by a name. */
bool swap_area_nameless(const struct swap_area *s);
/* Every slot is forgotten.  Not while anybody uses the area. */
void swap_area_close(struct swap_area *s);

/*
 * Grow so that at least `nslots` exist (space allocated on disk where the file system can).
 * 0, -ENOSPC (also: fixed size), -ENOMEM: nothing has changed.  May take a while: no lock held by
 * the caller but the outer one.
 */
int swap_area_grow(struct swap_area *s, size_t nslots);

/* The most slots that this area can have: its fixed size, or what the file system has free now. */
size_t swap_area_max(struct swap_area *s);

/* Up to `want` (1..CLUSTER_MAX) neighbouring slots.  Returns how many, 0 if none.  Never grows. */
size_t swap_alloc(struct swap_area *s, size_t want, slot_t *first);
void swap_free(struct swap_area *s, slot_t first, size_t n);
/* A used slot that is not to be used again. */
void swap_retire(struct swap_area *s, slot_t slot);
/* Assert that the counts agree with the map. */
void swap_area_check(struct swap_area *s);

enum swap_op { SWAP_READ, SWAP_WRITE };

/* One request: neighbouring slots from or to memory.  The engine's from submit until reaped. */
struct swap_io {
	/* filled in by the caller */
	enum swap_op op;
	slot_t slot;
	unsigned n;		       /* slots [slot, slot + n), 1..CLUSTER_MAX */
	unsigned niov;		       /* iov[0 .. niov) cover exactly n pages, in slot order */
	struct iovec iov[CLUSTER_MAX]; /* page aligned, whole pages; the engine changes it */
	bool elsewhere;		       /* not the swap area: `fd` at `offset`, slot means nothing */
	bool direct;	 /* if elsewhere: past the page cache, nobody has to block for it */
	bool ends;	 /* reading: it may end early, at the end of a file */
	bool urgent;	 /* a thread waits for it, and nothing else */
	int fd;		 /* if elsewhere; the engine does not keep it */
	uint64_t offset; /* if elsewhere, bytes */
	void *owner;	 /* the caller's */

	/* valid once reaped */
	int result;  /* 0 or -errno */
	size_t done; /* bytes; less than all only if it ends */

	/* engine */
	unsigned stalls; /* attempts in a row that moved no whole page */
	unsigned era;	 /* in which it departed */
	struct swap_io *next;
};

/* What io_engine wait() found. */
struct io_events {
	struct swap_io *completed; /* list by ->next, in order of completion */
	bool readable;		   /* the watched descriptor may have news: read it empty */
	bool kicked;		   /* somebody called kick() */
};

struct io_engine;

/* One engine belongs to one thread; only kick() may be called from another. */
struct io_engine_ops {
	/*
	 * Queue a request; it starts at the next wait() at the latest.  0, or -EBUSY: queue full.
	 * Short transfers are continued inside, EINTR and EAGAIN repeated; a read or write that
	 * ends early for good (end of file) is -EIO.
	 */
	int (*submit)(struct io_engine *, struct swap_io *);
	/* Start what is queued now. */
	void (*flush)(struct io_engine *);
	/*
	 * Start what is queued and wait until something happened, or timeout_ns passed (0: only
	 * look; < 0: no limit).  Fills *ev; empty on time-out.
	 */
	void (*wait)(struct io_engine *, int64_t timeout_ns, struct io_events *ev);
	/* Make the owner's wait() return.  Any thread; never blocks. */
	void (*kick)(struct io_engine *);
	/* All requests must have been reaped. */
	void (*destroy)(struct io_engine *);
};

struct io_engine {
	const struct io_engine_ops *ops;
	unsigned depth;	   /* requests that may be in flight */
	unsigned inflight; /* submitted, not reaped */
};

/* For engines.  A request as it is submitted. */
void swap_io_begin(struct swap_io *io);
/* An engine has it from here on, and until it is completed. */
void swap_io_depart(struct swap_io *io);
void swap_io_return(struct swap_io *io);
/* Of all engines of this process: whether something that departed before the last call of this has not returned yet.  By one thread. */
bool swap_io_lingers(void);
/* Where in its file what is left of it begins. */
static inline uint64_t
swap_io_offset(const struct swap_io *io)
{
	return (io->elsewhere ? io->offset : (uint64_t)io->slot << PAGE_SHIFT) + io->done;
}
/*
 * One attempt at what is left of it has moved `res` bytes, or is an error.
 * => true: the request is finished, io->result is set.
 * => false: some of it is left to do.
 */
bool swap_io_step(struct swap_io *io, int res);

/* One attempt by preadv() or pwritev() at what is left of it.  Bytes or -errno, for swap_io_step(); swap_fd: the swap area's. */
int swap_io_transfer(const struct swap_io *io, int swap_fd);

/* By preadv() and pwritev(), in wait(), which so blocks in any case.  Needs no descriptor, and no memory but this; nothing to undo. */
struct io_blocking {
	struct io_engine engine;
	int fd; /* the swap area's */
	struct swap_io *first, **last;
};
void io_engine_blocking_init(struct io_blocking *b, const struct swap_area *area, unsigned depth);

/*
 * io_uring.  Call from the thread that will use it.  watch_fd, watch_too: polled for reading (-1: none).
 * mask: UP_MASK_RING_FLAGS.  -EPERM/-ENOSYS with a log line that says the way out.
 */
int io_engine_uring_create(struct io_engine **e, const struct swap_area *area, int watch_fd,
			   int watch_too, unsigned depth, uint64_t mask, const struct logger *log);

/* A poll that lives in the ring. */
struct ring_poll {
	int fd;
	unsigned tag;
	bool armed;
};

/* Keys: (c) constant once created, (t) the owner thread, (a) atomic, any thread. */
struct io_uring_engine {
	struct io_engine engine;  /* (t) first: callers hold this */
	struct io_uring ring;	  /* (t) */
	struct polling *polling;  /* (c) lent; NULL otherwise */
	unsigned urgent;	  /* (t) in flight */
	int fd;			  /* (c) the swap area's; not ours to close */
	bool lent;		  /* (c) of several threads in turn, in memory that is not ours */
	bool holds;		  /* (c) the area */
	bool plain_rw;		  /* (c) READ and WRITE exist, not only their vectored forms */
	bool multishot;		  /* (t) until the kernel refuses it */
	struct ring_poll watch;	  /* (t) fd -1: nothing to watch */
	struct ring_poll too;	  /* (t) the same */
	struct ring_poll kick;	  /* (t) the eventfd; -1 if lent */
	atomic_bool kick_pending; /* (a) written to the eventfd, not yet reported */
	struct swap_io *aside, **aside_last; /* (t) lent: what is done by preadv() */
};

/*
 * The same for threads that serve their own faults: it belongs to one at a time, whichever, is never kicked, watches nothing, and polls for requests that
 * are urgent as `pl`, which it keeps, says.  No malloc(), no log line: to be called also in a signal handler.  Requests that go elsewhere, and not direct, are done in wait(), as a blocking engine does.
 * 0 or -errno; -EOPNOTSUPP: nothing is gained by it here (before Linux 5.19, an area in the page cache, no polling).
 */
int io_engine_uring_init(struct io_uring_engine *u, const struct swap_area *area, unsigned depth,
			 uint64_t mask, struct polling *pl);

#endif
