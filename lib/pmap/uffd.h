/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * uffd.h (private): what uffd.c, regions and frames, and pool.c, pools and spaces, have of each other.
 *
 * Nobody else includes it: to the pager both are one backend, behind pmap.h.
 */
#ifndef UP_PMAP_UFFD_H
#define UP_PMAP_UFFD_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "pmap/pmap.h"
#include "pmap/uffd_abi.h"

/* Calls in a row that may end in EAGAIN without a page done before the caller hears of it. */
#define EAGAIN_MAX 3
/* The same of calls on a userfaultfd of another process; and of a guest that tells of removals, for which it may be this thread that is to read of one. */
#define FOREIGN_TRIES 1000
#define GUEST_TRIES 1

/* A way to open a userfaultfd. */
struct door {
	bool dev;	/* /dev/userfaultfd; else the system call */
	bool user_only; /* without faults from inside system calls */
};

struct span;
struct space;
struct track;

/* Pools, places and spaces.  Keys: (c) constant, (l) lock, (a) atomic. */
struct pools {
	pthread_rwlock_t lock;
	bool made;			 /* (c) the lock is, and there is shared memory */
	int file;			 /* (c) a memfd: all pools that are not apart */
	off_t size;			 /* (l) its size; what lies before it has been given out */
	struct span *root;		 /* (l) pools and places by address */
	uint64_t weights;		 /* (l) a random sequence, for the tree */
	atomic_uint npools;		 /* (l) to write, (a) to read */
	atomic_uint nattached;		 /* (l) to write, (a) to read: spaces with a descriptor */
	struct space *space[SPACES_MAX]; /* (l) by shard, from PMAP_POOL + 1 on */
	pthread_mutex_t poison;		 /* a leaf: what pools remember of poisoned pages */
	int *epoll;			 /* (c) one a shard of this process */
};

/* What uffd_region_map() maps: fd -1 is private anonymous memory, else that file, shared. */
struct backing {
	int fd;
	off_t offset;
};

struct uffd_pmap {
	struct pmap pmap;
	struct pmap_ops ops;	   /* (c) without those of pools, if there is no shared memory */
	struct door door;	   /* (c) how all of them were opened */
	uint64_t api;		   /* (c) UFFD_FEATURE_*: with what */
	int stage_fd;		   /* (c) */
	struct backing stage_file; /* (c) whose descriptor is not ours; or anonymous */
	int mem_fd;		   /* (c) /proc/self/mem, or -1 */
	int self_fd;		   /* (c) a pidfd of this process, or -1; with UP_MASK_VECTOR */
	int pagemap_fd;		   /* (c) /proc/self/pagemap, or -1 */
	int maps_fd;		   /* (c) /proc/self/maps, or -1; without UFFDIO_POISON only */
	int lost_fd;		   /* (c) empty file, or -1; without UFFDIO_POISON only */
	char *zeros;		   /* (c) CLUSTER_MAX pages, read-only */
	uintptr_t occupied;	   /* (c) address behind the frames where a page is, always */
	sem_t copies;
	pthread_mutex_t vmas;
	atomic_bool lost_mapped; /* lost_fd was mapped somewhere, once */
	struct pools pools;
	struct track *track; /* (c) NULL: no events are asked for */
	_Atomic uint64_t
		used; /* shards, by bits, that something of this process was ever registered with */
	int fd[];     /* (c) one a shard */
};

static inline struct uffd_pmap *
to_uffd(struct pmap *pm)
{
	return container_of(pm, struct uffd_pmap, pmap);
}

static inline bool
has(const struct uffd_pmap *u, uint64_t feature)
{
	return (u->pmap.features & feature) != 0;
}

static inline uintptr_t
frame_va(const struct uffd_pmap *u, frame_t f, size_t n)
{
	assert(n <= u->pmap.nstage && f <= u->pmap.nstage - n);
	(void)n;
	return (uintptr_t)u->pmap.stage + ((size_t)f << PAGE_SHIFT);
}

/* --- uffd.c --- */

/*
 * One call that installs pages, UFFDIO_COPY or UFFDIO_MOVE: returns pages done, above 0, or a
 * negative errno.
 */
typedef ssize_t install_fn(int fd, uintptr_t dst, uintptr_t src, size_t n);

install_fn uffd_copy, uffd_move;
/* See there. */
bool uffd_make_exclusive(uintptr_t va);
int uffd_install(install_fn *fn, int fd, uintptr_t dst, uintptr_t src, size_t n, size_t *done);
int uffd_install_zeros(struct uffd_pmap *u, int fd, uintptr_t dst, size_t n, size_t *done);

int uffd_frame_new(struct pmap *pm, frame_t first, size_t n, size_t *done);
void uffd_frame_drop(struct pmap *pm, frame_t first, size_t n);
int uffd_drop_pages(uintptr_t va, size_t n);

/* UFFDIO_WRITEPROTECT, `mode` being its.  0, -ENOENT, -ENOMEM; of another process -ESRCH: it is gone; -EAGAIN after `most` tries, 0: never. */
int uffd_write_protect(int fd, uintptr_t va, size_t n, uint64_t mode, unsigned most);
size_t uffd_copy_begin(struct uffd_pmap *u, size_t n);
void uffd_copy_end(struct uffd_pmap *u, size_t n);

/* A shard's descriptor, for something that is about to be registered with it. */
static inline int
uffd_for_region(struct uffd_pmap *u, unsigned shard)
{
	atomic_fetch_or(&u->used, UINT64_C(1) << shard);
	return u->fd[shard];
}
int uffd_register(int fd, uintptr_t va, size_t len, uint64_t mode);
int uffd_region_map(const struct backing *b, int fd, uintptr_t hint, bool fixed, size_t len,
		    int prot, uint64_t mode, uintptr_t *va);

/* Without UFFDIO_POISON: SIGBUS at one page, and what was there again.  As uffd_poison, uffd_discard. */
int uffd_lose(struct uffd_pmap *u, uintptr_t va);
int uffd_find_lost(struct uffd_pmap *u, const struct backing *b, int fd, uintptr_t va, size_t n);

/*
 * Up to `max` messages of one descriptor, as of that shard.  Anything but a fault is left out; removals go to `removals`, if it is not NULL, as long
 * as there is room.
 */
struct removals;
unsigned uffd_read_faults(int fd, unsigned shard, struct pmap_fault *buf, unsigned max,
			  struct removals *removals);

int uffd_open(const struct door *door, uint64_t features);

/* Operations of the table of that name, for track.c to wrap. */
int uffd_zero(struct pmap *pm, unsigned shard, uintptr_t va, size_t n, size_t *done);
int uffd_enter(struct pmap *pm, unsigned shard, uintptr_t va, frame_t frame, size_t n,
	       size_t *done);
int uffd_read(struct pmap *pm, uintptr_t va, void *buf);
int uffd_poison(struct pmap *pm, unsigned shard, uintptr_t va);

/* --- pool.c --- */

/* 0 or -errno.  pools_fini: also of what pools_init has left half-made, or never seen. */
int pools_init(struct uffd_pmap *u, const struct logger *log);
void pools_fini(struct uffd_pmap *u);

/* The shard PMAP_POOL of the operations of that name. */
int pool_zero(struct uffd_pmap *u, uintptr_t va, size_t n, size_t *done);
int pool_enter(struct uffd_pmap *u, uintptr_t va, frame_t frame, size_t n, size_t *done);
int pool_remove(struct uffd_pmap *u, uintptr_t va, frame_t hole, size_t n, size_t *done);
int pool_discard(struct uffd_pmap *u, uintptr_t va, size_t n);
int pool_poison(struct uffd_pmap *u, uintptr_t va);
void pool_wake(struct uffd_pmap *u, uintptr_t va, size_t n);
/* 1: va is no page of a pool. */
int pool_read(struct uffd_pmap *u, uintptr_t va, void *buf);

/* Shards of spaces, and addresses of this process where there may be places. */
void space_wake(struct uffd_pmap *u, unsigned shard, uintptr_t va, size_t n);
unsigned space_faults(struct uffd_pmap *u, unsigned near, struct pmap_fault *buf, unsigned max);
int places_split(struct uffd_pmap *u, unsigned shard, uintptr_t va, size_t len);
int places_unmap(struct uffd_pmap *u, uintptr_t va, size_t len, unsigned shard);

int pool_create(struct pmap *pm, size_t npages, bool apart, uintptr_t *pool);
void pool_destroy(struct pmap *pm, uintptr_t va);
int pool_map(struct pmap *pm, uintptr_t page, uintptr_t hint, bool fixed, size_t len, int prot,
	     unsigned shard, uintptr_t *va);
unsigned pool_referenced(struct pmap *pm, uintptr_t page);
size_t pool_pages(struct pmap *pm, uintptr_t va);
void pool_populate(struct pmap *pm, unsigned shard, uintptr_t va, size_t len, bool write);
int space_create(struct pmap *pm, unsigned near, unsigned *shard);
void space_destroy(struct pmap *pm, unsigned shard);
int space_attach(struct pmap *pm, unsigned shard, int fd, pid_t pid);
void space_detach(struct pmap *pm, unsigned shard);
void space_allow(struct pmap *pm, unsigned shard, uintptr_t va);

#endif
