/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * zone.h (private): the pager's own memory: wired, typed, counted against the limit.
 *
 *	budget   one number per runtime: bytes in use, of frames and of metadata alike
 *	arena    reserved address space, committed (and wired) slab by slab
 *	sub-arena  an arena with a limit of its own within another's: what some part of the library may take at most
 *	zone     items of one type, out of slabs of one arena
 *	wired_array  a table indexed by number that grows in place
 *
 * The fault path allocates from zones only: never malloc, which may hold a lock across
 * fork() and is not wired.  A slab is SLAB_SIZE bytes, aligned to its size, so that the
 * slab of an item is found by masking its address; a slab whose last item is freed goes
 * back to the arena, is decommitted and uncharged, so metadata shrinks again.
 *
 * This layer makes no system call: the arena's ops do (sysmem.c; plain heap in tests).
 *
 * Locks: zone->lock, then arena->lock; nothing else is taken inside, and neither is held
 * while memory is committed, decommitted or reclaimed, nor in a constructor or destructor
 * (except that the arena may commit a page of its own bitmap under arena->lock).
 *
 * Keys: (c) constant once created, (lock) the lock of the same struct, (a) atomic.
 */
#ifndef UP_ZONE_H
#define UP_ZONE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/base.h"

#define SLAB_SIZE ((size_t)32 << 10)

/* The memory limit.  Every frame and every byte of metadata is charged before it exists. */
struct budget {
	atomic_size_t limit; /* one thread at a time changes it */
	atomic_size_t used;
	atomic_size_t used_max; /* highest `used` since the limit last changed */
};

void budget_init(struct budget *b, size_t limit);
/*
 * From here on this is the limit.  What is above it stays: once `used` has been seen at or below it, it never is above it again.
 */
void budget_set_limit(struct budget *b, size_t limit);
/* Statistics begin anew. */
void budget_forget_max(struct budget *b);
/* True and counted, or false and nothing happened. */
bool budget_charge(struct budget *b, size_t bytes);
void budget_uncharge(struct budget *b, size_t bytes);

/* The system's memory, as an arena needs it.  All sizes are multiples of the page size. */
struct arena_ops {
	/* Address space without memory, aligned to SLAB_SIZE; NULL if there is none. */
	void *(*reserve)(void *ctx, size_t len);
	void (*release)(void *ctx, void *addr, size_t len);
	/* Zeroed, resident memory in a reserved range.  0 or -ENOMEM. */
	int (*commit)(void *ctx, void *addr, size_t len);
	void (*decommit)(void *ctx, void *addr, size_t len);
	/*
	 * Blocking allocations only: ask for `bytes` of budget to be made free and wait.  0: try
	 * again; -ENOMEM: it is hopeless.  Called without any zone lock held.  May be NULL.
	 */
	int (*reclaim)(void *ctx, size_t bytes);
};

struct arena;

/* A table of `max` items of `item` bytes at a fixed address, committed from the front. */
struct wired_array {
	struct arena *arena;
	void *base;
	size_t item;
	size_t max;
	size_t n;	  /* items usable */
	size_t committed; /* bytes */
};

struct arena {
	const struct arena_ops *ops; /* (c) */
	void *ctx;		     /* (c) */
	struct budget *budget;	     /* (c) */
	struct arena *parent;	     /* (c) NULL: it is no sub-arena */
	atomic_size_t limit;	     /* (a) of a sub-arena: bytes */
	pthread_mutex_t lock;
	char *base;		 /* (c) slabs [0, nslabs) from here */
	size_t nslabs;		 /* (c) reserved */
	size_t top;		 /* (lock) slabs [0, top) have a bit in `free` */
	struct wired_array free; /* (lock) uint64_t, bit set = slab is free */
	size_t nfree;		 /* (lock) set bits */
	size_t hint;		 /* (lock) no bit is set in words before this one */
	atomic_size_t
		committed; /* (a) bytes charged: slabs, wired arrays, `free`; those of sub-arenas too */
};

/* Reserve room for `max` bytes of slabs.  0 or -ENOMEM. */
int arena_init(struct arena *a, const struct arena_ops *ops, void *ctx, struct budget *b,
	       size_t max);
/*
 * The same out of `parent`, at most `max` bytes of it, or what arena_sub_limit() says later; what is above that stays.  Allocations
 * beyond it fail at once: nothing can be reclaimed for them.  It goes before its parent does.
 */
int arena_sub_init(struct arena *a, struct arena *parent, size_t max);
void arena_sub_limit(struct arena *a, size_t limit);
/* Asserts that everything was given back. */
void arena_fini(struct arena *a);
/* Bytes charged at present. */
size_t arena_bytes(struct arena *a);

enum zone_wait {
	ZONE_NOWAIT, /* NULL when the budget has no room */
	ZONE_WAIT,   /* lets the arena reclaim first; the caller holds no lock */
};

struct slab;

struct zone {
	struct arena *arena;	  /* (c) */
	const char *name;	  /* (c) */
	size_t item_size;	  /* (c) rounded up to 16 */
	unsigned slab_first;	  /* (c) offset of the first item in a slab */
	unsigned slab_items;	  /* (c) items in a slab */
	void (*ctor)(void *item); /* (c) run when an item is carved from a slab, or NULL */
	void (*dtor)(void *item); /* (c) run when the slab goes back, or NULL */
	pthread_mutex_t lock;
	struct slab *partial; /* (lock) slabs with items out and a free item */
	struct slab *full;    /* (lock) slabs without a free item */
	struct slab *empty;   /* (lock) one slab without items out, kept, or NULL */
	size_t nslabs;	      /* (lock) on the two lists, and `empty` */
	atomic_size_t nitems; /* (lock) to write, (a) to read: items handed out */
	/* Tests: fail the nth allocation from now (1 = next); 0 = off. */
	atomic_uint fail_in;
};

/*
 * With a constructor, items keep their constructed state between free and alloc (a mutex
 * stays initialised): the free list lives in the slab header, not in the items.  The bytes
 * of a fresh item are zero before ctor runs.  item_size is at most SLAB_SIZE / 4.  Items are
 * aligned to 16, and to 64 when their size is a multiple of 64.  A freed item is not to be
 * touched (its slab may be gone); AddressSanitizer builds poison it.
 */
void zone_init(struct zone *z, struct arena *a, const char *name, size_t item_size,
	       void (*ctor)(void *), void (*dtor)(void *));
/* Asserts that every item was freed. */
void zone_fini(struct zone *z);
/*
 * An item, or NULL: the budget has no room (with ZONE_WAIT: and reclaim sees no hope), the
 * arena's address space is used up, or the system has no memory.  Contents are what the last
 * user left, or zero and constructed.
 */
void *zone_alloc(struct zone *z, enum zone_wait wait);
/* NULL is fine. */
void zone_free(struct zone *z, void *item);
/* A zone keeps one empty slab, so that an item going to and fro costs no commit; give it back. */
void zone_trim(struct zone *z);
size_t zone_count(struct zone *z);
/*
 * For a successor: the items that were out of a slab of the same zone in a process that is no more, whose zone was at that address there.  At most
 * `max` of them into item[]; 0: it is no such slab.  SLAB_SIZE bytes from `slab` on can be read, whatever they are.
 */
size_t zone_find_items(const struct zone *like, const void *slab, uint64_t zone_then,
		       const void *item[], size_t max);
#define SLAB_ITEMS_MAX (SLAB_SIZE / 16)
/* Assert that slabs, free counts and nitems agree. */
void zone_check(struct zone *z);

/*
 * Reserves address space only; 0 or -ENOMEM.  Growing is serialised by the owner; items that
 * are usable never move, so readers of those need no lock.
 */
int wired_array_init(struct wired_array *w, struct arena *a, size_t item, size_t max);
void wired_array_fini(struct wired_array *w);
/* Make items [0, n) usable, new ones zeroed; never shrinks.  0, or -ENOMEM and nothing changed. */
int wired_array_grow(struct wired_array *w, size_t n);
/* The same, but lets the arena reclaim first; the caller holds no lock. */
int wired_array_grow_wait(struct wired_array *w, size_t n);

#endif
