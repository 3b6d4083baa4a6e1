/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * heap_arena.h: an arena over plain heap, for tests that need zones but no system memory.
 *
 *	struct heap_arena h;
 *
 *	heap_arena_init(&h, 64 << 20, 16 << 20);	budget limit, most bytes of slabs
 *	zone_init(&z, &h.arena, "thing", sizeof(struct thing), NULL, NULL);
 *	heap_arena_fail_commit(&h, 3);			the third commit from now says -ENOMEM
 *	...
 *	heap_arena_fini(&h);				aborts, with a message, on any leak
 *
 * Why heap and not the real sysmem_ops: memory that is not committed is filled with 0xdb, and
 * poisoned under AddressSanitizer, so a use of a slab that went back is seen at once; every
 * commit and decommit is checked against a map of pages; and any of them can be made to fail.
 * Address space costs heap here: keep `max` and the lengths of wired arrays below some GiB.
 */
#ifndef UP_TESTS_HEAP_ARENA_H
#define UP_TESTS_HEAP_ARENA_H

#include <pthread.h>

#include "vm/zone.h"

struct heap_range;

struct heap_arena {
	struct arena_ops ops; /* its ctx is this struct */
	struct budget budget;
	struct arena arena;

	/* What ops.reclaim calls; NULL: reclaim says -ENOMEM.  Set before threads use the arena. */
	int (*reclaim)(void *ctx, size_t bytes);
	void *reclaim_ctx;

	pthread_mutex_t lock;
	struct heap_range *ranges; /* (lock) what is reserved */
	size_t reserved;	   /* (lock) bytes */
	size_t committed;	   /* (lock) bytes */
	unsigned long ncommits;	   /* (lock) calls that succeeded */
	unsigned fail_in;	   /* (lock) fail the nth commit from now; 0: off */
	bool failed;		   /* (lock) it did */
};

void heap_arena_init(struct heap_arena *h, size_t limit, size_t max);
/* Runs arena_fini(); aborts if address space, memory or budget is still held. */
void heap_arena_fini(struct heap_arena *h);

/* Let the nth commit from now fail, once (1: the next one). */
void heap_arena_fail_commit(struct heap_arena *h, unsigned nth);
/* Take the order back.  True if it had been carried out. */
bool heap_arena_disarm(struct heap_arena *h);

#endif
