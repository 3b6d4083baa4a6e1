/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pmap.h (private): the one door to page tables.
 *
 * A pmap backend has regions (address ranges of the program, each registered with one shard)
 * and one staging area: numbered addresses of our own, each either a *frame* (a physical page
 * is there) or a *hole*.  Pages travel between the two:
 *
 *	            zero: a fresh zero page            enter: frame -> region, leaves a hole
 *	  (nothing) ---------------------> REGION PAGE <------------------------------ FRAME
 *	                                        |        ---------------------------->   ^
 *	                                        |        remove: region -> hole, leaves  |
 *	             discard                    |                a frame there           | frame_new
 *	  (nothing) <---------------------------+                                      HOLE
 *
 * enter and remove keep these semantics whether the kernel can move pages (UFFDIO_MOVE) or they
 * must be copied and the source dropped.  Single pages are copied also where it can (a frame that
 * direct I/O has just left, a read-only region).  What is copied exists twice for an instant: at
 * most CLUSTER_MAX pages of all callers together, which pmap->headroom accounts for.
 *
 * The caller holds the page *busy* for every page it names (anon.h): nobody else moves it, and
 * the region's VMA stays.  All functions may be called from any thread.  None blocks on a
 * fault.  Batched calls work front to back, set *done to the number of pages completed (valid on
 * every return), and return 0 if that is all of them, else the reason why page *done was not:
 *
 *	-EAGAIN   the kernel wants us to try again later (mm is changing, page locked)
 *	-EEXIST   enter, zero: a page is there already.  The caller wakes and goes on.  (zero of one
 *	          page is how the pager asks whether it is there.)
 *	-ENOENT   the region is gone; remove: no page is there
 *	-EBUSY    remove: the page is pinned for I/O and must stay
 *	-ENOMEM   the system (or its memory cgroup) has no page for us
 *
 * enter and zero wake the threads that wait on the pages they installed.  remove wakes nobody who
 * waits for a page that it took; it may have stopped writers for an instant, so that a fault
 * with `wp` set can be found for any page that was busy.  The wake at the end of busy answers it.
 *
 * Pools.  Memory that is mapped in several places, or in several processes, is a *pool*: a part of a file in
 * memory (memfd).  Each of its pages has one address that stays the same wherever it is mapped, in an alias of the
 * pool that nobody but the backend uses; by that and the shard PMAP_POOL the pager names it in zero,
 * enter, remove, read, discard, poison and wake.  A page of a pool is a REGION PAGE while it is in the file.  All that
 * map it see it then, each with a fault that the kernel settles without us; a thread that touches a page which
 * is not in the file faults at the address where it touched, and waits for us.
 *
 *	zero, enter	into the file; wakes whoever waits for the page, in all places
 *	remove		out of it, from all places or from none: first nobody can write any more, then it is copied,
 *			then it goes.  As for all that is copied, nobody can tell that it is pinned.
 *	read		never -ENOENT: where nothing is there are zeros
 *	discard, poison, wake	in all places; what was poisoned in a space stays so; wake also of a page whose pool is no more
 *			(and of an address whose space is no more)
 *
 * Places are made with pool_map() and go with unmap(), in whole or in part.  An operation that is under way when a place
 * comes or goes has it from beginning to end or not at all.
 *
 * Spaces.  A shard beyond those of this process is another address space, a forked child's, whose userfaultfd
 * came here.  Only pools are mapped there, at addresses that this side was told.  Until space_attach() and from
 * space_detach() on nobody runs there, and it is left out of everything.
 *
 * Lending.  To move a page takes its old address out of the page table, which every processor that runs this process
 * is told by an interrupt, one a call; a single page can also be lent:
 *
 *	lend	copies of frames enter, and the frames stay what they are.  Guarded, it can not be written until allow(): then it
 *		faults with `wp` (or PMAP_INTHREAD, as any fault does), and until then it is what the frame held.
 *	recall	guarded pages, wherever they lie, are copied into frames, and dropped by one call: one interrupt for all
 *
 * That a page is guarded is for the caller to know, and over with allow() and with anything else that takes the page away,
 * or tries to: remove may let it be written when it fails.
 *
 * Events.  A backend that was created with PMAP_TRACK hears of what the program itself does to regions: munmap() and all that
 * unmaps (PMAP_UNMAP), mremap() (PMAP_REMAP), madvise(MADV_DONTNEED) and its relatives (PMAP_REMOVE).  faults() takes these
 * messages too; from then on the call of the program goes on, and the event stands until event_done().  A REMOVE tells of
 * what is about to happen: the pages may go any time later, until the call returns to the program.  The others have happened.
 *
 *	zero, enter, poison	-EAGAIN where an event stands, or when one has not been taken yet.
 *	remove, read		-ESTALE where an UNMAP or a REMAP stands that took the page away; -EAGAIN when an event has not been
 *				taken yet; -ENOENT is final.  Nothing is copied: remove says -EBUSY of what can not be moved.
 *	discard			-EBUSY: the same, that page is still there.  Where nothing of ours is any more, nothing is done.
 *
 * Calls of the backend's own that have the kernel send such a message make an event too; it says nothing new.  unmap and drop
 * wait until that has been taken, so the thread that calls faults() may not call them.
 *
 * Pinned pages.  I/O that was started into a page of a region (O_DIRECT, registered io_uring
 * buffers) goes on into the same memory wherever that is mapped, so such a page must stay; the
 * kernel says so when it is asked to move it.  Nobody can tell for a page that has to be copied:
 * any without MOVE, and one that was pinned before it became read-only.  What such I/O stores
 * after the copy is lost.  (To store, I/O has to have the page writable, so none stores into one that is guarded.  What is
 * pinned to be read from goes on to read what was there when it was recalled.)  And the kernel counts pins only: what merely holds a reference
 * (vmsplice(), MSG_ZEROCOPY) keeps reading the memory of the page, which after remove is the
 * frame's; give that frame other content, and such a reader gets it.  To be safe from that, drop
 * the frame and make a new one.
 */
#ifndef UP_PMAP_H
#define UP_PMAP_H

#include <sys/types.h>

#include "base/base.h"

/* The shard of pages of pools. */
#define PMAP_POOL 255u
/* Shards of spaces are those in (PMAP_POOL, PMAP_POOL + SPACES_MAX]. */
#define SPACES_MAX 4096u

/* pmap_*_create(), beside UP_MASK_*: ask for events.  Also in pmap->features if there are. */
#define PMAP_TRACK (UINT64_C(1) << 63)

/*
 * The same: a thread of this process that touches what is not there, or may not be written now, is not put to sleep until somebody
 * serves it, but gets a signal (UFFD_FEATURE_SIGBUS) and serves itself.  So nobody ever waits in regions of this process's shards; in
 * spaces they do.  A system call that touches such a page fails.
 */
#define PMAP_INTHREAD (UINT64_C(1) << 62)

enum pmap_event_kind { PMAP_REMOVE, PMAP_UNMAP, PMAP_REMAP };

struct pmap_event {
	uint64_t number; /* ascending */
	uint64_t token;	 /* of when it was taken, see there */
	enum pmap_event_kind kind;
	unsigned shard;	  /* regions of this one only, whatever else is in the range */
	uintptr_t va, to; /* to: REMAP only */
	size_t len;	  /* bytes */
};

struct pmap_fault {
	uintptr_t va;	/* page aligned */
	unsigned shard; /* whose address that is: the one asked for, or a space */
	bool write;
	bool wp; /* the page is there but write-protected */
};

struct pmap;

struct pmap_ops {
	/*
	 * map: reserve and register [*va, *va + len); exactly at `hint` if `fixed` (-EEXIST if
	 * anything is there).  unmap: give the addresses back and wake whoever waits there.
	 * protect: as mprotect.  All three: user threads only.
	 */
	int (*map)(struct pmap *, uintptr_t hint, bool fixed, size_t len, int prot, unsigned shard,
		   uintptr_t *va);
	int (*unmap)(struct pmap *, uintptr_t va, size_t len, unsigned shard);
	/*
	 * Before an unmap, while nothing has changed yet: give the part a mapping of its own, so that
	 * taking it away needs nothing more.  -ENOMEM (vm.max_map_count): it can not be unmapped now.
	 */
	int (*split)(struct pmap *, unsigned shard, uintptr_t va, size_t len);
	int (*protect)(struct pmap *, uintptr_t va, size_t len, int prot);

	int (*zero)(struct pmap *, unsigned shard, uintptr_t va, size_t n, size_t *done);
	int (*enter)(struct pmap *, unsigned shard, uintptr_t va, frame_t frame, size_t n,
		     size_t *done);
	int (*remove)(struct pmap *, unsigned shard, uintptr_t va, frame_t hole, size_t n,
		      size_t *done);

	/* Copy the bytes of a page that is in its region, whatever its protection.  -ENOENT, -EIO. */
	int (*read)(struct pmap *, uintptr_t va, void *buf);

	/* Drop the pages of a region range: absent afterwards. */
	int (*discard)(struct pmap *, unsigned shard, uintptr_t va, size_t n);
	/*
	 * Make every touch of this absent page SIGBUS until discard or unmap.  Wakes, whatever it
	 * returns.  -EEXIST: a page is there, or it is poisoned already.  -ENOTSUP: no way found; not of a pool,
	 * for there are none then.
	 */
	int (*poison)(struct pmap *, unsigned shard, uintptr_t va);
	/* Wake threads that wait for a fault in the range; they fault again if nothing is there. */
	void (*wake)(struct pmap *, unsigned shard, uintptr_t va, size_t n);

	/* Holes become frames with undefined content; frames become holes. */
	int (*frame_new)(struct pmap *, frame_t first, size_t n, size_t *done);
	void (*frame_drop)(struct pmap *, frame_t first, size_t n);

	/* --- lending, of regions of this process only: with UP_MASK_VECTOR in features --- */

	/* The same, of frames that lie anywhere; at most CLUSTER_MAX. */
	void (*frames_drop)(struct pmap *, const frame_t f[], size_t n);
	/* n neighbours; the errors of enter. */
	int (*lend)(struct pmap *, unsigned shard, uintptr_t va, frame_t frame, size_t n,
		    bool guard, size_t *done);
	/* The page, if it is there, may be written, guarded or not.  Wakes who waits for that. */
	void (*allow)(struct pmap *, unsigned shard, uintptr_t va);
	/*
	 * Page va[i] into frame[i]; at most CLUSTER_MAX, batched as above.  -ENOENT, and -EBUSY: it is locked or can not be read, and stays.
	 * Frames of pages not done have undefined content.
	 */
	int (*recall)(struct pmap *, const uintptr_t va[], const frame_t frame[], size_t n,
		      size_t *done);

	/*
	 * Take up to `max` fault messages of a shard without blocking.  Returns how many; fewer than
	 * max means that the queue is empty.  Spaces made `near` that shard are looked at as well.
	 */
	unsigned (*faults)(struct pmap *, unsigned shard, struct pmap_fault *buf, unsigned max);

	/* --- pools and spaces: only with UP_MASK_SHARED in features; else NULL --- */

	/*
	 * pool_create: *pool is the address of its first page; apart: whoever is given its file sees nothing else.  pool_destroy: nothing maps it any more; pages that are
	 * still in it go.  User threads only; so are the next four.
	 */
	int (*pool_create)(struct pmap *, size_t npages, bool apart, uintptr_t *pool);
	void (*pool_destroy)(struct pmap *, uintptr_t pool);
	/*
	 * As map, of the pages of a pool from the one at address `page` on.  Of a space: it is only remembered that
	 * they are mapped there at `hint`; the process itself does it.
	 */
	int (*pool_map)(struct pmap *, uintptr_t page, uintptr_t hint, bool fixed, size_t len,
			int prot, unsigned shard, uintptr_t *va);
	/*
	 * In how many places of this process the page is in the page table; it is taken out of it there, not out of
	 * the pool, so that the next call tells where it has been touched in between.  Any thread.
	 */
	unsigned (*pool_referenced)(struct pmap *, uintptr_t page);
	/* Pages that the file of a pool has, whoever put them there; 0 if the file is not its own alone.  May be NULL. */
	size_t (*pool_pages)(struct pmap *, uintptr_t pool);
	/* Enter what is in the pool into the page table of one place.  Best effort; it may be in any space. */
	void (*pool_populate)(struct pmap *, unsigned shard, uintptr_t va, size_t len, bool write);

	/* A shard for a space, whose faults faults(near) hands out; without any places left, its end.  User threads. */
	int (*space_create)(struct pmap *, unsigned near, unsigned *shard);
	void (*space_destroy)(struct pmap *, unsigned shard);
	/*
	 * The process `pid` runs now; the userfaultfd is ours from here on, also on failure.  (Simulated: -1.)
	 * Any thread.
	 */
	int (*space_attach)(struct pmap *, unsigned shard, int fd, pid_t pid);
	/* The process is gone, or has nothing mapped any more. */
	void (*space_detach)(struct pmap *, unsigned shard);
	/*
	 * A page that is in its pool, and that the caller has busy, may be written at this address of a space.  Nobody but the process itself can
	 * have protected it; it would fault for ever.  NULL: can not be.
	 */
	void (*space_allow)(struct pmap *, unsigned shard, uintptr_t va);

	/* --- events: only with PMAP_TRACK in features; else NULL --- */

	/*
	 * The oldest event that stands and has a number above `after`; false: there is none.  With 0 it tells of all calls of the
	 * program that had ended before.  Any thread.
	 */
	bool (*event)(struct pmap *, uint64_t after, struct pmap_event *ev);
	void (*event_done)(struct pmap *, const struct pmap_event *ev);
	/* The same, of [va, end) of an UNMAP only; the rest keeps its place in the order.  False: there is no room for that, now. */
	bool (*event_clip)(struct pmap *, const struct pmap_event *ev, uintptr_t va, uintptr_t end);
	/*
	 * What time it is; and true if everything that was done to regions of this shard before then has been taken, and event()
	 * tells of it.  A region that is mapped where another one was can still be hit by that one's event until then.  Any thread.
	 */
	uint64_t (*token)(struct pmap *);
	bool (*settled)(struct pmap *, unsigned shard, uint64_t token);
	/* 1: n pages from va on are part of regions, 0: not all are.  -EAGAIN: an event has not been taken.  What waits there is woken. */
	int (*registered)(struct pmap *, unsigned shard, uintptr_t va, size_t n);
	/* As discard, whatever it takes: the caller was told to discard, and so nobody else may be about to unmap it.  User threads. */
	int (*drop)(struct pmap *, unsigned shard, uintptr_t va, size_t n);
	/* Take what there is of all shards, for that long; faults are forgotten.  When nobody calls faults() any more. */
	void (*drain)(struct pmap *, int timeout_ms);

	/* Release everything.  Regions must be unmapped and threads stopped. */
	void (*destroy)(struct pmap *);
};

/* A backend embeds this first. */
struct pmap {
	const struct pmap_ops *ops;
	char *stage; /* frame f is at stage + f * PAGE_SIZE; readable and writable while a frame */
	frame_t nstage; /* addresses in the staging area */
	unsigned
		nshards; /* of this process; spaces have others, below PMAP_POOL + 1 + 4096, never PMAP_POOL */
	size_t place_size; /* (c) what a record of a mapped part of a pool takes, or of a pool: bytes */
	struct zone
		*places; /* where they come from; the owner sets it before the first pool_create */
	size_t headroom; /* bytes that enter/remove may hold beyond what is accounted, in all */
	uint64_t features; /* UP_MASK_* found and used */
};

static inline void *
pmap_frame(const struct pmap *pm, frame_t f)
{
	assert(f < pm->nstage);
	return pm->stage + ((size_t)f << PAGE_SHIFT);
}

/*
 * The real one: userfaultfd on private anonymous memory (uffd.c).  `mask`: features not to use.
 * -EPERM, -ENOSYS with a log line that says the way out.
 */
int pmap_uffd_create(struct pmap **pm, frame_t nstage, unsigned nshards, uint64_t mask,
		     const struct logger *log);
/* The same with the staging area in a file in memory, of nstage + 1 pages, which is the caller's; what is in it are frames.  Pages are copied. */
int pmap_uffd_create_on(struct pmap **pm, int stage, frame_t nstage, unsigned nshards,
			uint64_t mask, const struct logger *log);
/* The descriptor of a shard, to poll. */
int pmap_uffd_fd(struct pmap *pm, unsigned shard);
/* One more to poll, readable while a space near that shard has faults; -1 without UP_MASK_SHARED. */
int pmap_uffd_more_fd(struct pmap *pm, unsigned shard);

/*
 * For fork.  The file of the pool that a page is in, ours, and where in it; -ENOENT: of none.
 * In the child, with its copy of the struct: a new userfaultfd of its own with all that pools need,
 * to register what it maps (MISSING and WP), or a negative errno.  Takes no lock.
 */
int pmap_uffd_pool_fd(struct pmap *pm, uintptr_t page, uint64_t *offset);
int pmap_uffd_child_open(const struct pmap *pm);
/*
 * For a successor.  A pool in a file that was one's before, with all that is in it; 0 or -errno, and the descriptor is the backend's.  The next
 * page of a pool from `page` on that is in its file, and how many follow it: false, none.
 */
int pmap_uffd_pool_adopt(struct pmap *pm, int fd, size_t npages, uintptr_t *pool);
bool pmap_uffd_pool_next(struct pmap *pm, uintptr_t *page, uintptr_t end, size_t *n);
/* UFFD_FEATURE_* for the same in a program that has none of this; and there, with that answer: a descriptor or a negative errno. */
uint64_t pmap_uffd_client_features(const struct pmap *pm);

/*
 * Guests: spaces of programs whose memory was a file of their own before they came.  Their pools are parts of such files, which are neither cut nor
 * grown, and out of which only pages are punched that have been taken out.
 *
 * adopt: a pool of the npages of `fd` (shared memory; it stays the caller's) from `offset` bytes on; goes by pool_destroy.
 * adopted: whether a part of that range of a file is in such a pool.
 * guest: as space_attach, of what the guest registered itself; it may tell of removals, for which `told` is an eventfd and `removed` a file (removal.h), the caller's.  -EOPNOTSUPP:
 * its writes can not be stopped (WP_ASYNC).  No fault is read before guest_serve.
 * guest_fd: a duplicate of its userfaultfd, the caller's; -1.
 * guard: writes to the range can be stopped from here on, however it was registered.
 * guest_leave: it is to go on without us; nothing is put in or taken out any more, and what is not in its files is SIGBUS, unless nothing ever was (`untouched`).
 * space_detach does the same.
 */
int pmap_uffd_adopt(struct pmap *pm, unsigned shard, int fd, uint64_t offset, size_t npages,
		    uintptr_t *pool);
bool pmap_uffd_adopted(struct pmap *pm, dev_t dev, ino_t ino, uint64_t offset, uint64_t len);
int pmap_uffd_guest(struct pmap *pm, unsigned shard, int fd, pid_t pid, int told, int removed);
int pmap_uffd_guest_fd(struct pmap *pm, unsigned shard);
int pmap_uffd_guest_serve(struct pmap *pm, unsigned shard);
void pmap_uffd_guest_leave(struct pmap *pm, unsigned shard, bool untouched);
int pmap_uffd_guard(struct pmap *pm, unsigned shard, uintptr_t va, size_t len);
/*
 * What the guest has removed: to have its records put right.  *over: that has been done a while ago, and what is in the file now is the guest's.  1; 0: there is
 * nothing, -EAGAIN: not yet.  One thread.
 */
int pmap_uffd_removal(struct pmap *pm, unsigned shard, uintptr_t *va, size_t *len, bool *over);
void pmap_uffd_removal_done(struct pmap *pm, unsigned shard, bool over);
/* The first of n pages from *page on that are in the file, and how many in a row; 0: none. */
size_t pmap_uffd_data(struct pmap *pm, uintptr_t *page, size_t n);
int pmap_uffd_client_open(uint64_t features, uint64_t mask, const struct logger *log);

#endif
