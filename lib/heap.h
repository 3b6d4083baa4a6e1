/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * heap.h (private): a heap in paged memory, and how its parts are guarded.
 *
 *	struct up_heap
 *	  pages   which pages of the region are free		(fitmap)
 *	  words   a word a page: what the page belongs to	(wired array)
 *	  bin[]   one for each size of small blocks: its spans with room
 *
 * Lock order: bin->lock > heap->lock > reservation, arena.  heaps.lock stands alone.
 * None of the three is held while content is discarded, and content itself is never touched
 * under a lock, or at all: only calloc() and realloc() do, without one.  Service threads take
 * none of them, so a thread may be stopped, while it holds one, by a handler that faults.
 *
 * Keys: (c) constant once created, (lock) the lock of the same struct, (a) atomic.
 */
#ifndef UP_HEAP_H
#define UP_HEAP_H

#include <stdatomic.h>

#include "base/fitmap.h"
#include "vm/zone.h"

#define HEAP_BINS 36
#define SPAN_BLOCKS 512 /* the most blocks in a span */

/* A run of pages cut into blocks of one size. */
struct span {
	struct span *next, *prev;	 /* (bin->lock) on bin->partial */
	uint32_t page;			 /* (c) the first */
	uint16_t npages;		 /* (c) */
	uint16_t nblocks;		 /* (c) */
	uint16_t nfree;			 /* (bin->lock) */
	uint16_t bin;			 /* (c) */
	uint64_t free[SPAN_BLOCKS / 64]; /* (bin->lock) a bit a block */
};

/* Spans and their blocks of one size. */
struct heap_bin {
	pthread_mutex_t lock;
	struct span *partial; /* (lock) those with blocks out and blocks free, the latest first */
	struct span *empty;   /* (lock) one without blocks out, kept, or NULL */
	size_t nblocks;	      /* (lock) handed out */
	size_t nspans;	      /* (lock) */
};

struct up_heap {
	struct up_runtime *rt;	     /* (c) NULL in a forked child, where this memory is wiped */
	struct up_heap *next, *prev; /* (heaps.lock) of the same runtime */
	struct wired_array mem;	     /* (c) what this struct lives in */
	char *base;		     /* (c) */
	size_t npages;		     /* (c) */
	pthread_mutex_t lock;
	pthread_cond_t given; /* pages were discarded: `discarding` has fallen */
	unsigned discarding;  /* (lock) threads that have pages which will be free in a moment */
	struct fitmap pages;  /* (lock) */
	struct wired_array words; /* (lock) to grow; _Atomic uint64_t, see heap.c */
	atomic_size_t nwords;	  /* (lock) to write, (a) to read: pages that have a word */
	uint64_t promised;	  /* (lock) bytes of metadata that are ours to use for the tables */
	size_t nlarge;		  /* (lock) large blocks handed out */
	size_t large_pages;	  /* (lock) theirs */
	struct heap_bin bin[HEAP_BINS];
};

/* The heaps of a runtime. */
struct heaps {
	pthread_mutex_t lock;
	struct up_heap *first; /* (lock) */
	struct arena
		arena; /* of all their metadata: a program with many small blocks leaves room for faults */
	struct zone spans;
};

struct pager;

/* Their metadata comes out of `arena`, at most `max` bytes.  0 or -ENOMEM. */
int heaps_init(struct heaps *hs, struct arena *arena, size_t max);
/* Free what the heaps that are left take of the metadata; their regions are somebody else's to unmap. */
void heaps_fini(struct heaps *hs, struct pager *p);

/* Assert that pages, words, spans and counts agree.  No other call on the heap may be in progress. */
void heap_check(struct up_heap *h);

#endif
