/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * heap_arena.c: see heap_arena.h.
 *
 * Errors abort() rather than fail a Criterion assertion: the ops run inside the code under
 * test, on any thread and with its locks held, where a longjmp out would end in a deadlock.
 */
#include "heap_arena.h"

#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define HEAP_ARENA_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HEAP_ARENA_ASAN 1
#endif
#endif

#ifdef HEAP_ARENA_ASAN
#include <sanitizer/asan_interface.h>
#define poison(addr, len) ASAN_POISON_MEMORY_REGION(addr, len)
#define unpoison(addr, len) ASAN_UNPOISON_MEMORY_REGION(addr, len)
#else
#define poison(addr, len) ((void)(addr), (void)(len))
#define unpoison(addr, len) ((void)(addr), (void)(len))
#endif

#define DEAD 0xdb

/* One reservation; in_core[] has a byte for each of its pages. */
struct heap_range {
	struct heap_range *next;
	char *addr;
	size_t len;
	unsigned char in_core[];
};

static void
die(const char *what, size_t n)
{
	fprintf(stderr, "heap_arena: %s (%zu bytes)\n", what, n);
	abort();
}

/* The reservation that holds [addr, addr + len); h->lock is held. */
static struct heap_range *
range_of(struct heap_arena *h, const char *addr, size_t len)
{
	struct heap_range *r;

	if (len == 0 || len % PAGE_SIZE != 0 || (uintptr_t)addr % PAGE_SIZE != 0)
		die("a range that is not whole pages", len);
	for (r = h->ranges; r != NULL; r = r->next) {
		if (addr >= r->addr && addr < r->addr + r->len) {
			if (len > (size_t)(r->addr + r->len - addr))
				die("a range that runs over its reservation", len);
			return r;
		}
	}
	die("a range that was never reserved", len);
	return NULL;
}

/* Turn the pages of [addr, addr + len) from !in_core to in_core; h->lock is held. */
static void
range_set(struct heap_range *r, const char *addr, size_t len, bool in_core)
{
	const size_t first = (size_t)(addr - r->addr) / PAGE_SIZE;

	for (size_t i = first; i < first + len / PAGE_SIZE; i++) {
		if (r->in_core[i] == in_core)
			die(in_core ? "committed twice" : "decommitted, but not committed", len);
		r->in_core[i] = in_core;
	}
}

static void *
heap_reserve(void *ctx, size_t len)
{
	struct heap_arena *h = ctx;
	struct heap_range *r;

	if (len == 0 || len % PAGE_SIZE != 0)
		die("a reservation that is not whole pages", len);
	r = calloc(1, sizeof *r + len / PAGE_SIZE);
	if (r == NULL)
		return NULL;
	r->len = len;
	r->addr = aligned_alloc(SLAB_SIZE, round_up(len, SLAB_SIZE));
	if (r->addr == NULL) {
		free(r);
		return NULL;
	}
	poison(r->addr, round_up(len, SLAB_SIZE));
	pthread_mutex_lock(&h->lock);
	r->next = h->ranges;
	h->ranges = r;
	h->reserved += len;
	pthread_mutex_unlock(&h->lock);
	return r->addr;
}

static void
heap_release(void *ctx, void *addr, size_t len)
{
	struct heap_arena *h = ctx;
	struct heap_range *r, **link;

	pthread_mutex_lock(&h->lock);
	r = range_of(h, addr, len);
	if (r->addr != addr || r->len != len)
		die("part of a reservation released", len);
	for (size_t i = 0; i < len / PAGE_SIZE; i++)
		if (r->in_core[i])
			die("released while memory is committed in it", len);
	for (link = &h->ranges; *link != r; link = &(*link)->next)
		;
	*link = r->next;
	h->reserved -= len;
	pthread_mutex_unlock(&h->lock);
	unpoison(r->addr, round_up(len, SLAB_SIZE));
	free(r->addr);
	free(r);
}

static int
heap_commit(void *ctx, void *addr, size_t len)
{
	struct heap_arena *h = ctx;
	struct heap_range *r;

	pthread_mutex_lock(&h->lock);
	r = range_of(h, addr, len);
	if (h->fail_in != 0 && --h->fail_in == 0) {
		h->failed = true;
		pthread_mutex_unlock(&h->lock);
		return -ENOMEM;
	}
	range_set(r, addr, len, true);
	h->committed += len;
	h->ncommits++;
	pthread_mutex_unlock(&h->lock);
	unpoison(addr, len);
	memset(addr, 0, len);
	return 0;
}

static void
heap_decommit(void *ctx, void *addr, size_t len)
{
	struct heap_arena *h = ctx;
	struct heap_range *r;

	memset(addr, DEAD, len);
	poison(addr, len);
	pthread_mutex_lock(&h->lock);
	r = range_of(h, addr, len);
	range_set(r, addr, len, false);
	h->committed -= len;
	pthread_mutex_unlock(&h->lock);
}

static int
heap_reclaim(void *ctx, size_t bytes)
{
	struct heap_arena *h = ctx;

	return h->reclaim == NULL ? -ENOMEM : h->reclaim(h->reclaim_ctx, bytes);
}

void
heap_arena_init(struct heap_arena *h, size_t limit, size_t max)
{
	/* Reservations are large and must stay untouched: no filling by MALLOC_PERTURB_. */
	mallopt(M_PERTURB, 0);

	memset(h, 0, sizeof *h);
	pthread_mutex_init(&h->lock, NULL);
	h->ops = (struct arena_ops){
		.reserve = heap_reserve,
		.release = heap_release,
		.commit = heap_commit,
		.decommit = heap_decommit,
		.reclaim = heap_reclaim,
	};
	budget_init(&h->budget, limit);
	if (arena_init(&h->arena, &h->ops, h, &h->budget, max) != 0)
		die("no heap for an arena", max);
}

void
heap_arena_fini(struct heap_arena *h)
{
	arena_fini(&h->arena);
	if (h->committed != 0)
		die("memory still committed", h->committed);
	if (h->reserved != 0)
		die("address space still reserved", h->reserved);
	if (atomic_load(&h->budget.used) != 0)
		die("budget still charged", atomic_load(&h->budget.used));
	pthread_mutex_destroy(&h->lock);
}

void
heap_arena_fail_commit(struct heap_arena *h, unsigned nth)
{
	pthread_mutex_lock(&h->lock);
	h->fail_in = nth;
	h->failed = false;
	pthread_mutex_unlock(&h->lock);
}

bool
heap_arena_disarm(struct heap_arena *h)
{
	bool failed;

	pthread_mutex_lock(&h->lock);
	failed = h->failed;
	h->fail_in = 0;
	h->failed = false;
	pthread_mutex_unlock(&h->lock);
	return failed;
}
