/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * heap.c: malloc() and its family in a region of paged memory.
 *
 * Blocks are paged, what is known about them is not: it is wired, counted against the limit like all
 * metadata, and lies apart.  So neither allocating nor freeing touches a block; a block in swap is freed
 * without being read, and what a program writes past its end never reaches our lists.
 *
 *	region   | span of 16s | span of 320s      | large block        |   | large ...
 *	pages      0     0       0     0     0       0     0     0        1    0		fitmap, 1 = free
 *	words      span  span    span  span  span    n=3   0     0        0    n=...
 *
 * Up to 16 KiB, sizes are rounded up to one of 36, four to a doubling; blocks of one size share
 * spans of up to 16 pages and 512 blocks.  Above, a block is a run of whole pages.
 * A run of pages has this life:
 *
 *	         pages_take              (span_grow, large_alloc)
 *	FREE  -----------------> TAKEN
 *	  ^  reads as zeros       |
 *	  |                       | the last block of a span, a large block or its tail is freed
 *	  |   pages_give          v
 *	  +---------------- DISCARDED    no word, no bit: nobody's while up_advise() runs
 *
 * The arrow back always goes through UP_ADVICE_DONTNEED.  Dead pages therefore are never written to
 * swap, and a free page is known to be zero: calloc() of a large block touches nothing.  Each
 * bin keeps one empty span, so that a block going to and fro at the edge of one costs no system calls.
 *
 * Why not an allocator that exists.  jemalloc 5.3 with extent hooks, as Debian 12 has it:
 *
 *   - a gigabyte of 64-byte blocks took 36 MiB of metadata (here 5), which the memory limit can not count: most
 *     came through the hooks, that is out of the paged region, the rest from its arena 0;
 *   - libjemalloc.so, linked, takes the program's malloc() and operator new over; opened with dlopen() it is
 *     refused ("cannot allocate memory in static TLS block"); a namespace of dlmopen() has a second
 *     libc, whose thread-specific keys are those of the first; and libjemalloc_pic.a defines malloc() for
 *     whoever links libuffd-pager.a.
 *
 * mimalloc keeps headers and free lists in the memory that it manages, and calls madvise() on it, which a
 * region forbids.  With those, and with boundary tags (TLSF, dlmalloc's mspaces), each free() may fault, and
 * one stray write corrupts other blocks silently.
 *
 * No caches of blocks per thread: a lock costs less than 50 ns, the cheapest fault 30 times that, and blocks in
 * caches hold pages.
 */
#include "heap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "remote.h"
#include "runtime.h"

#define SMALL_MAX ((size_t)16 << 10)
#define SPAN_PAGES 16
#define HEAP_PAGES_MAX ((uint64_t)UINT32_MAX)
/* Words, and the promise for them, come a page of them at a time. */
#define WORDS_STEP (PAGE_SIZE / sizeof(uint64_t))

/* As META_PER_ENTRY in runtime.c. */
#define META_PER_SPAN (sizeof(struct span) + sizeof(struct span) / 8)
#define META_PER_HEAP (round_up(sizeof(struct up_heap), PAGE_SIZE))

/*
 * The word of a page: its kind in the top byte.
 *
 *	0			not ours to free: no block starts here
 *	1 + bin, struct span *	every page of a span
 *	255, pages		the first page of a large block
 *
 * Only who has taken a page, and under its bin's or the heap's lock, changes its word.  Who frees reads it
 * without a lock, to know which lock to take, and once more under it: so that a second free() of
 * the same block is found out even while others use what was there.
 */
#define KIND_SHIFT 56
#define KIND_LARGE 255u

static uint64_t
span_word(const struct span *s)
{
	assert((uintptr_t)s >> KIND_SHIFT == 0);
	return (uint64_t)(s->bin + 1u) << KIND_SHIFT | (uintptr_t)s;
}

static uint64_t
large_word(size_t npages)
{
	return (uint64_t)KIND_LARGE << KIND_SHIFT | npages;
}

static unsigned
word_kind(uint64_t word)
{
	return (unsigned)(word >> KIND_SHIFT);
}

static uint64_t
word_value(uint64_t word)
{
	return word & (((uint64_t)1 << KIND_SHIFT) - 1);
}

static _Atomic uint64_t *
word_at(const struct up_heap *h, size_t page)
{
	return (_Atomic uint64_t *)h->words.base + page;
}

static uint64_t
word_get(const struct up_heap *h, size_t page)
{
	return atomic_load_explicit(word_at(h, page), memory_order_acquire);
}

static void
word_set(const struct up_heap *h, size_t page, size_t n, uint64_t word)
{
	for (size_t i = page; i < page + n; i++)
		atomic_store_explicit(word_at(h, i), word, memory_order_release);
}

/*
 * Sizes
 */

/* Eight sizes up to 128, 16 apart; then four to each doubling. */
static unsigned
bin_of(size_t n)
{
	unsigned log;

	assert(n <= SMALL_MAX);
	if (n <= 128)
		return n == 0 ? 0 : (unsigned)(n - 1) / 16; /* realloc() asks for 0 */
	log = 31u - (unsigned)__builtin_clz((unsigned)(n - 1));
	return 8 + (log - 7) * 4 + ((unsigned)(n - 1) >> (log - 2) & 3);
}

static size_t
bin_size(unsigned bin)
{
	if (bin < 8)
		return ((size_t)bin + 1) * 16;
	return (5 + (size_t)(bin - 8) % 4) << ((bin - 8) / 4 + 5);
}

/* As many pages as its blocks fill, within what a span may have. */
static size_t
bin_pages(unsigned bin)
{
	size_t n = SPAN_PAGES;

	while (n * PAGE_SIZE / bin_size(bin) > SPAN_BLOCKS)
		n /= 2;
	return n;
}

static size_t
pages_of(size_t n)
{
	return (n >> PAGE_SHIFT) + ((n & PAGE_MASK) != 0);
}

/*
 * Why there is no block
 */

enum verdict {
	GOT_IT = 0,
	HEAP_FULL,  /* no run of pages is long enough */
	LIMIT_FULL, /* no metadata to be had within the memory limit */
};

/* NULL, with a line in the log and errno; the caller returns it. */
static void *
refuse(struct up_heap *h, const char *call, size_t n, enum verdict why)
{
	log_line(&h->rt->p.log, UP_LOG_ERROR,
		 why == HEAP_FULL
			 ? "%s: no room for %zu bytes in a heap of %zu"
			 : "%s: no metadata for %zu bytes in a heap of %zu: memory_limit is full",
		 call, n, h->npages << PAGE_SHIFT);
	errno = ENOMEM;
	return NULL;
}

/* False, and errno, if the heap is none that this process may use. */
static bool
usable(const struct up_heap *h)
{
	if (h != NULL && h->rt != NULL)
		return true;
	errno = h == NULL ? EINVAL : ECHILD;
	return false;
}

/*
 * Pages
 */

static uint64_t
meta_of(size_t npages)
{
	return round_up(npages * sizeof(uint64_t), PAGE_SIZE) + fitmap_bytes(npages);
}

/* What the tables take now. */
static uint64_t
tables_bytes(const struct up_heap *h)
{
	return h->words.committed + h->pages.words.committed;
}

/* A program that is connected to a daemon has nothing else there that could go. */
static int
make_room(struct up_heap *h, uint64_t bytes)
{
	return h->rt->remote != NULL ? -ENOMEM : runtime_reclaim(&h->rt->p, bytes);
}

/* Words and bits for pages [0, end), grown within the budget.  => h->lock is held, and signals are. */
static int
tables_grow(struct up_heap *h, size_t end)
{
	struct pager *p = &h->rt->p;
	const uint64_t need = meta_of(end), more = need > h->promised ? need - h->promised : 0;

	if (!resv_try(&p->resv_meta, more))
		return -ENOMEM;
	for (unsigned tries = 0;
	     fitmap_reach(&h->pages, end) < 0 || wired_array_grow(&h->words, end) < 0; tries++) {
		if (tries == 3 || make_room(h, need - tables_bytes(h)) < 0) {
			resv_give(&p->resv_meta, more);
			return -ENOMEM;
		}
	}
	h->promised += more;
	atomic_store_explicit(&h->nwords, end, memory_order_release);
	return 0;
}

/* => h->lock is held. */
static int
tables_reach(struct up_heap *h, size_t end)
{
	sigset_t old;
	int r;

	if (end <= atomic_load_explicit(&h->nwords, memory_order_relaxed))
		return 0;
	signals_hold(&old);
	r = tables_grow(h, MIN(round_up(end, WORDS_STEP), h->npages));
	signals_release(&old);
	return r;
}

/*
 * Take n pages, the first at an address that is a multiple of `align` pages.  They have no word yet.
 * Pages that somebody is discarding are waited for before the heap is called full.
 */
static enum verdict
pages_take(struct up_heap *h, size_t n, size_t align, size_t *first)
{
	const size_t skew = (uintptr_t)h->base >> PAGE_SHIFT;
	enum verdict v = GOT_IT;

	pthread_mutex_lock(&h->lock);
	while (v == GOT_IT && !fitmap_find(&h->pages, n, align, skew, first)) {
		if (h->discarding == 0)
			v = HEAP_FULL;
		else
			pthread_cond_wait(&h->given, &h->lock);
	}
	if (v == GOT_IT && tables_reach(h, *first + n) < 0)
		v = LIMIT_FULL;
	if (v == GOT_IT)
		fitmap_take(&h->pages, *first, n);
	pthread_mutex_unlock(&h->lock);
	return v;
}

/* Pages that nobody has touched since they were taken. */
static void
pages_give(struct up_heap *h, size_t first, size_t n)
{
	pthread_mutex_lock(&h->lock);
	fitmap_give(&h->pages, first, n);
	pthread_mutex_unlock(&h->lock);
}

/* Take the word of pages in use away; who does must go on to pages_discard(), once for each call. */
static void
pages_disown_locked(struct up_heap *h, size_t first, size_t n)
{
	word_set(h, first, n, 0);
	h->discarding++;
}

/* The same for a span's pages.  => Its bin's lock is held. */
static void
pages_disown(struct up_heap *h, size_t first, size_t n)
{
	pthread_mutex_lock(&h->lock);
	pages_disown_locked(h, first, n);
	pthread_mutex_unlock(&h->lock);
}

/*
 * Pages that were in use become free.  If they can't be discarded, since the program has unmapped them
 * behind our back, they are not handed out again either: they would not be zero.
 */
static void
pages_discard(struct up_heap *h, size_t first, size_t n)
{
	const int r = up_advise(h->rt, h->base + (first << PAGE_SHIFT), n << PAGE_SHIFT,
				UP_ADVICE_DONTNEED);

	pthread_mutex_lock(&h->lock);
	if (r == 0)
		fitmap_give(&h->pages, first, n);
	assert(h->discarding > 0);
	h->discarding--;
	pthread_cond_broadcast(&h->given);
	pthread_mutex_unlock(&h->lock);
}

/*
 * Spans
 */

static struct span *
span_alloc(struct up_runtime *rt)
{
	struct span *s = NULL;
	sigset_t old;

	signals_hold(&old);
	if (resv_try(&rt->p.resv_meta, META_PER_SPAN)) {
		s = zone_alloc(&rt->heaps.spans, ZONE_WAIT);
		if (s == NULL)
			resv_give(&rt->p.resv_meta, META_PER_SPAN);
	}
	signals_release(&old);
	return s;
}

static void
span_free(struct up_runtime *rt, struct span *s)
{
	sigset_t old;

	signals_hold(&old);
	zone_free(&rt->heaps.spans, s);
	resv_give(&rt->p.resv_meta, META_PER_SPAN);
	signals_release(&old);
}

static void
span_link(struct heap_bin *b, struct span *s)
{
	s->prev = NULL;
	s->next = b->partial;
	if (s->next != NULL)
		s->next->prev = s;
	b->partial = s;
}

static void
span_unlink(struct heap_bin *b, struct span *s)
{
	if (s->next != NULL)
		s->next->prev = s->prev;
	if (s->prev != NULL)
		s->prev->next = s->next;
	else
		b->partial = s->next;
}

static void
span_init(struct span *s, unsigned bin, size_t page, size_t npages)
{
	const size_t n = MIN(npages * PAGE_SIZE / bin_size(bin), SPAN_BLOCKS);

	*s = (struct span){
		.page = (uint32_t)page,
		.npages = (uint16_t)npages,
		.nblocks = (uint16_t)n,
		.nfree = (uint16_t)n,
		.bin = (uint16_t)bin,
	};
	for (size_t i = 0; i < n; i++)
		s->free[i / 64] |= (uint64_t)1 << i % 64;
}

/* A span that is in no bin, and whose pages are disowned. */
static void
span_release(struct up_heap *h, struct span *s)
{
	pages_discard(h, s->page, s->npages);
	span_free(h->rt, s);
}

/*
 * A new span for a bin.  A heap that has no run of the usual length left takes what there is, as long
 * as one block fits: the last of its pages are of use as well.
 */
static enum verdict
span_create(struct up_heap *h, unsigned bin, struct span **out)
{
	enum verdict v = HEAP_FULL;
	struct span *s;
	size_t n, page;

	for (n = bin_pages(bin); n * PAGE_SIZE >= bin_size(bin); n /= 2) {
		v = pages_take(h, n, 1, &page);
		if (v != HEAP_FULL)
			break;
	}
	if (v != GOT_IT)
		return v;
	s = span_alloc(h->rt);
	if (s == NULL) {
		pages_give(h, page, n);
		return LIMIT_FULL;
	}
	span_init(s, bin, page, n);
	*out = s;
	return GOT_IT;
}

/*
 * Give back the empty spans that bins keep.  Whoever found the heap full looks again after this, whether there
 * were any or not: another thread may just have done the same.
 */
static void
heap_trim(struct up_heap *h)
{
	for (unsigned i = 0; i < HEAP_BINS; i++) {
		struct heap_bin *b = &h->bin[i];
		struct span *s;

		pthread_mutex_lock(&b->lock);
		s = b->empty;
		b->empty = NULL;
		if (s != NULL) {
			pages_disown(h, s->page, s->npages);
			b->nspans--;
		}
		pthread_mutex_unlock(&b->lock);
		if (s != NULL)
			span_release(h, s);
	}
}

/*
 * Small blocks
 */

/* The lowest free block of a bin, or NULL.  => b->lock is held. */
static void *
bin_take(struct up_heap *h, struct heap_bin *b)
{
	struct span *s = b->partial;
	size_t w = 0;
	unsigned bit;

	if (s == NULL) {
		s = b->empty;
		if (s == NULL)
			return NULL;
		b->empty = NULL;
		span_link(b, s);
	}
	while (s->free[w] == 0)
		w++;
	bit = (unsigned)__builtin_ctzll(s->free[w]);
	s->free[w] &= s->free[w] - 1;
	if (--s->nfree == 0)
		span_unlink(b, s);
	b->nblocks++;
	return h->base + ((size_t)s->page << PAGE_SHIFT) + (w * 64 + bit) * bin_size(s->bin);
}

static enum verdict
small_alloc(struct up_heap *h, unsigned bin, void **out)
{
	struct heap_bin *b = &h->bin[bin];
	enum verdict v = GOT_IT;
	bool trimmed = false;

	pthread_mutex_lock(&b->lock);
	while ((*out = bin_take(h, b)) == NULL) {
		struct span *s;

		pthread_mutex_unlock(&b->lock);
		v = span_create(h, bin, &s);
		if (v == HEAP_FULL && !trimmed) {
			trimmed = true;
			heap_trim(h);
			v = span_create(h, bin, &s);
		}
		pthread_mutex_lock(&b->lock);
		if (v != GOT_IT) {
			/* Others may have freed one meanwhile. */
			*out = bin_take(h, b);
			break;
		}
		word_set(h, s->page, s->npages, span_word(s));
		b->nspans++;
		span_link(b, s);
	}
	pthread_mutex_unlock(&b->lock);
	return *out != NULL ? GOT_IT : v;
}

/*
 * The span and the number of the block at byte `off`, if one that is handed out starts there.
 * => The lock of the word's bin is held.
 */
static struct span *
small_find(const struct up_heap *h, uint64_t word, size_t off, unsigned *block)
{
	struct span *s = (struct span *)(uintptr_t)word_value(word);
	const size_t size = bin_size(word_kind(word) - 1);
	size_t in;

	if (word_get(h, off >> PAGE_SHIFT) != word)
		return NULL;
	in = off - ((size_t)s->page << PAGE_SHIFT);
	*block = (unsigned)in / (unsigned)size;
	if (*block * size != in || *block >= s->nblocks ||
	    (s->free[*block / 64] >> *block % 64 & 1) != 0)
		return NULL;
	return s;
}

static bool
small_free(struct up_heap *h, uint64_t word, size_t off)
{
	struct heap_bin *b = &h->bin[word_kind(word) - 1];
	struct span *s, *surplus = NULL;
	unsigned block;

	pthread_mutex_lock(&b->lock);
	s = small_find(h, word, off, &block);
	if (s == NULL) {
		pthread_mutex_unlock(&b->lock);
		return false;
	}
	s->free[block / 64] |= (uint64_t)1 << block % 64;
	b->nblocks--;
	if (s->nfree++ == 0)
		span_link(b, s);
	if (s->nfree == s->nblocks) {
		span_unlink(b, s);
		if (b->empty == NULL) {
			b->empty = s;
		} else {
			surplus = s;
			pages_disown(h, s->page, s->npages);
			b->nspans--;
		}
	}
	pthread_mutex_unlock(&b->lock);
	if (surplus != NULL)
		span_release(h, surplus);
	return true;
}

/*
 * Large blocks
 */

static enum verdict
large_alloc(struct up_heap *h, size_t npages, size_t align, void **out)
{
	enum verdict v;
	size_t first;

	*out = NULL;
	v = pages_take(h, npages, align, &first);
	if (v == HEAP_FULL) {
		heap_trim(h);
		v = pages_take(h, npages, align, &first);
	}
	if (v != GOT_IT)
		return v;
	pthread_mutex_lock(&h->lock);
	word_set(h, first, 1, large_word(npages));
	h->nlarge++;
	h->large_pages += npages;
	pthread_mutex_unlock(&h->lock);
	*out = h->base + (first << PAGE_SHIFT);
	return GOT_IT;
}

/*
 * Pages of the large block at byte `off`, or 0 if none starts there.
 * => h->lock is held, or the caller knows that it has the block.
 */
static size_t
large_find(const struct up_heap *h, size_t off)
{
	const uint64_t word = word_get(h, off >> PAGE_SHIFT);

	return word_kind(word) == KIND_LARGE && (off & PAGE_MASK) == 0 ? word_value(word) : 0;
}

static bool
large_free(struct up_heap *h, size_t off)
{
	const size_t first = off >> PAGE_SHIFT;
	size_t n;

	pthread_mutex_lock(&h->lock);
	n = large_find(h, off);
	if (n != 0) {
		pages_disown_locked(h, first, 1);
		h->nlarge--;
		h->large_pages -= n;
	}
	pthread_mutex_unlock(&h->lock);
	if (n != 0)
		pages_discard(h, first, n);
	return n != 0;
}

/* Let the block have `want` pages without moving it; false if what lies behind it is taken. */
static bool
large_resize(struct up_heap *h, size_t off, size_t want)
{
	const size_t first = off >> PAGE_SHIFT;
	size_t have, end;
	bool ok = true;

	pthread_mutex_lock(&h->lock);
	have = large_find(h, off);
	end = first + have;
	if (want > have) {
		ok = end < h->npages && fitmap_room(&h->pages, end) >= want - have &&
		     tables_reach(h, first + want) == 0;
		if (ok)
			fitmap_take(&h->pages, end, want - have);
	}
	if (ok) {
		word_set(h, first, 1, large_word(want));
		h->large_pages += want;
		h->large_pages -= have;
		h->discarding += want < have;
	}
	pthread_mutex_unlock(&h->lock);
	if (want < have)
		pages_discard(h, first + want, have - want);
	return ok;
}

/*
 * Blocks of any size
 */

/* *zero: the block is known to be. */
static enum verdict
block_alloc(struct up_heap *h, size_t align, size_t n, void **out, bool *zero)
{
	*zero = false;
	*out = NULL;
	if (n > h->npages << PAGE_SHIFT)
		return HEAP_FULL;
	n = MAX(n, 1); /* rounded up to `align`, as any other */
	/* Spans start at pages, and a bin whose size is a multiple of `align` is the first that fits. */
	if (align <= PAGE_SIZE && round_up(n, align) <= SMALL_MAX)
		return small_alloc(h, bin_of(round_up(n, align)), out);
	*zero = true;
	return large_alloc(h, pages_of(n), MAX(align >> PAGE_SHIFT, 1), out);
}

/* The word of the page where `ptr` points, and its place in the region; 0 if no block can be there. */
static uint64_t
block_word(const struct up_heap *h, const void *ptr, size_t *off)
{
	*off = (uintptr_t)ptr - (uintptr_t)h->base;
	if (*off >> PAGE_SHIFT >= atomic_load_explicit(&h->nwords, memory_order_acquire))
		return 0;
	return word_get(h, *off >> PAGE_SHIFT);
}

/* Usable bytes of the block at `ptr`; 0 if there is none. */
static size_t
block_size(struct up_heap *h, const void *ptr)
{
	size_t off, n = 0;
	const uint64_t word = block_word(h, ptr, &off);
	const unsigned kind = word_kind(word);
	unsigned block;

	if (kind == KIND_LARGE)
		return large_find(h, off) << PAGE_SHIFT;
	if (kind == 0)
		return 0;
	pthread_mutex_lock(&h->bin[kind - 1].lock);
	if (small_find(h, word, off, &block) != NULL)
		n = bin_size(kind - 1);
	pthread_mutex_unlock(&h->bin[kind - 1].lock);
	return n;
}

static bool
block_free(struct up_heap *h, const void *ptr)
{
	size_t off;
	const uint64_t word = block_word(h, ptr, &off);

	switch (word_kind(word)) {
	case 0:
		return false;
	case KIND_LARGE:
		return large_free(h, off);
	default:
		return small_free(h, word, off);
	}
}

static int
no_block(struct up_heap *h, const char *call, const void *ptr)
{
	log_line(&h->rt->p.log, UP_LOG_ERROR,
		 "%s: %p is no block of this heap, or has been freed already", call, ptr);
	return -EINVAL;
}

/*
 * The calls
 */

void *
up_malloc(struct up_heap *h, size_t n)
{
	enum verdict v;
	void *ptr;
	bool zero;

	if (!usable(h))
		return NULL;
	v = block_alloc(h, 1, n, &ptr, &zero);
	return v == GOT_IT ? ptr : refuse(h, "up_malloc", n, v);
}

void *
up_calloc(struct up_heap *h, size_t count, size_t size)
{
	enum verdict v;
	void *ptr;
	bool zero;
	size_t n;

	if (!usable(h))
		return NULL;
	if (__builtin_mul_overflow(count, size, &n))
		return refuse(h, "up_calloc", SIZE_MAX, HEAP_FULL);
	v = block_alloc(h, 1, n, &ptr, &zero);
	if (v != GOT_IT)
		return refuse(h, "up_calloc", n, v);
	return zero ? ptr : memset(ptr, 0, n);
}

void *
up_memalign(struct up_heap *h, size_t alignment, size_t n)
{
	enum verdict v;
	void *ptr;
	bool zero;

	if (!usable(h))
		return NULL;
	if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
		log_line(&h->rt->p.log, UP_LOG_ERROR,
			 "up_memalign: alignment %zu is not a power of two", alignment);
		errno = EINVAL;
		return NULL;
	}
	v = block_alloc(h, alignment, n, &ptr, &zero);
	return v == GOT_IT ? ptr : refuse(h, "up_memalign", n, v);
}

void *
up_realloc(struct up_heap *h, void *ptr, size_t n)
{
	enum verdict v;
	size_t have, off;
	void *to;
	bool zero;

	if (!usable(h))
		return NULL;
	if (ptr == NULL) {
		v = block_alloc(h, 1, n, &to, &zero);
		return v == GOT_IT ? to : refuse(h, "up_realloc", n, v);
	}
	have = block_size(h, ptr);
	if (have == 0) {
		errno = -no_block(h, "up_realloc", ptr);
		return NULL;
	}
	if (n > h->npages << PAGE_SHIFT)
		return refuse(h, "up_realloc", n, HEAP_FULL);
	off = (uintptr_t)ptr - (uintptr_t)h->base;
	if (have <= SMALL_MAX ? n <= SMALL_MAX && bin_size(bin_of(n)) == have
			      : n > SMALL_MAX && large_resize(h, off, pages_of(n)))
		return ptr;
	v = block_alloc(h, 1, n, &to, &zero);
	if (v != GOT_IT) {
		/* A full heap has given back the spans that it kept: one may have been behind the block. */
		if (n <= have || (have > SMALL_MAX && large_resize(h, off, pages_of(n))))
			return ptr;
		return refuse(h, "up_realloc", n, v);
	}
	memcpy(to, ptr, MIN(n, have));
	block_free(h, ptr);
	return to;
}

int
up_free(struct up_heap *h, void *ptr)
{
	if (ptr == NULL)
		return 0;
	if (h == NULL)
		return -EINVAL;
	if (h->rt == NULL)
		return -ECHILD;
	return block_free(h, ptr) ? 0 : no_block(h, "up_free", ptr);
}

size_t
up_malloc_usable_size(struct up_heap *h, const void *ptr)
{
	return h != NULL && h->rt != NULL && ptr != NULL ? block_size(h, ptr) : 0;
}

int
up_heap_stats_get(struct up_heap *h, struct up_heap_stats *st, size_t size)
{
	struct up_heap_stats now;

	if (h == NULL || st == NULL)
		return -EINVAL;
	if (h->rt == NULL)
		return -ECHILD;
	now = (struct up_heap_stats){
		.base = h->base,
		.size = h->npages << PAGE_SHIFT,
		.metadata = META_PER_HEAP,
	};
	for (unsigned i = 0; i < HEAP_BINS; i++) {
		struct heap_bin *b = &h->bin[i];

		pthread_mutex_lock(&b->lock);
		now.blocks += b->nblocks;
		now.allocated += b->nblocks * bin_size(i);
		now.metadata += b->nspans * sizeof(struct span);
		pthread_mutex_unlock(&b->lock);
	}
	pthread_mutex_lock(&h->lock);
	now.blocks += h->nlarge;
	now.allocated += h->large_pages << PAGE_SHIFT;
	now.active = fitmap_taken(&h->pages) << PAGE_SHIFT;
	now.metadata += tables_bytes(h);
	pthread_mutex_unlock(&h->lock);
	memset(st, 0, size);
	memcpy(st, &now, MIN(size, sizeof now));
	return 0;
}

/*
 * The life of a heap
 */

/*
 * The struct; and the tables, empty, with `promised` bytes for them, so that a region whose pages are reserved
 * has its words too.  => Signals are held.
 */
static struct up_heap *
heap_alloc(struct up_runtime *rt, size_t npages, uint64_t promised)
{
	struct arena *arena = &rt->heaps.arena;
	struct pager *p = &rt->p;
	struct wired_array mem;
	struct up_heap *h;

	if (!resv_try(&p->resv_meta, META_PER_HEAP + promised))
		return NULL;
	if (wired_array_init(&mem, arena, sizeof *h, 1) < 0)
		goto give;
	if (wired_array_grow_wait(&mem, 1) < 0)
		goto fini_mem;
	h = mem.base;
	h->mem = mem;
	h->npages = npages;
	h->promised = promised;
	if (fitmap_init(&h->pages, arena, npages) < 0)
		goto fini_mem;
	if (wired_array_init(&h->words, arena, sizeof(uint64_t), npages) < 0)
		goto fini_pages;
	pthread_mutex_init(&h->lock, NULL);
	pthread_cond_init(&h->given, NULL);
	for (unsigned i = 0; i < HEAP_BINS; i++)
		pthread_mutex_init(&h->bin[i].lock, NULL);
	return h;
fini_pages:
	fitmap_fini(&h->pages);
fini_mem:
	wired_array_fini(&mem);
give:
	resv_give(&p->resv_meta, META_PER_HEAP + promised);
	return NULL;
}

/* Free spans, tables and the struct.  => It is on no list; signals are held. */
static void
heap_free(struct up_heap *h, struct heaps *hs, struct pager *p)
{
	const size_t nwords = atomic_load(&h->nwords);
	struct wired_array mem = h->mem;
	size_t nspans = 0;

	for (size_t page = 0; page < nwords;) {
		const uint64_t word = word_get(h, page);
		struct span *s = (struct span *)(uintptr_t)word_value(word);

		if (word_kind(word) == 0) {
			page++;
		} else if (word_kind(word) == KIND_LARGE) {
			page += word_value(word);
		} else {
			page += s->npages;
			nspans++;
			zone_free(&hs->spans, s);
		}
	}
	resv_give(&p->resv_meta, h->promised + META_PER_HEAP + nspans * META_PER_SPAN);
	for (unsigned i = 0; i < HEAP_BINS; i++)
		pthread_mutex_destroy(&h->bin[i].lock);
	pthread_cond_destroy(&h->given);
	pthread_mutex_destroy(&h->lock);
	wired_array_fini(&h->words);
	fitmap_fini(&h->pages);
	wired_array_fini(&mem);
}

static int
check_create(struct up_runtime *rt, size_t size, unsigned flags)
{
	const char *what = NULL;

	if (size == 0 || (size & PAGE_MASK))
		what = "is not a positive multiple of the page size";
	else if (size >> PAGE_SHIFT > HEAP_PAGES_MAX)
		what = "is above 16 TiB";
	if (what != NULL)
		log_line(&rt->p.log, UP_LOG_ERROR, "up_heap_create: size %zu %s", size, what);
	else if (flags & ~UP_NORESERVE)
		log_line(&rt->p.log, UP_LOG_ERROR, "up_heap_create: unknown flags %#x",
			 flags & ~UP_NORESERVE);
	else
		return 0;
	return -EINVAL;
}

int
up_heap_create(struct up_runtime *rt, size_t size, unsigned flags, struct up_heap **out)
{
	struct up_heap *h;
	sigset_t old;
	void *base;
	int r;

	if (out != NULL)
		*out = NULL;
	if (rt == NULL)
		return -EINVAL;
	r = check_process(rt, "up_heap_create");
	if (r < 0)
		return r;
	if (out == NULL) {
		log_line(&rt->p.log, UP_LOG_ERROR, "up_heap_create: heap is NULL");
		return -EINVAL;
	}
	r = check_create(rt, size, flags);
	if (r == 0)
		r = up_map(rt, NULL, size, PROT_READ | PROT_WRITE, UP_PRIVATE | flags, NULL, 0,
			   &base);
	if (r < 0)
		return r;

	signals_hold(&old);
	h = heap_alloc(rt, size >> PAGE_SHIFT,
		       rt->overcommit || (flags & UP_NORESERVE) ? 0 : meta_of(size >> PAGE_SHIFT));
	if (h != NULL) {
		h->rt = rt;
		h->base = base;
		pthread_mutex_lock(&rt->heaps.lock);
		h->next = rt->heaps.first;
		if (h->next != NULL)
			h->next->prev = h;
		rt->heaps.first = h;
		pthread_mutex_unlock(&rt->heaps.lock);
	}
	signals_release(&old);
	if (h == NULL) {
		log_line(&rt->p.log, UP_LOG_ERROR,
			 "up_heap_create: no room for the heap's tables within the memory limit");
		up_unmap(rt, base, size);
		return -ENOMEM;
	}
	*out = h;
	return 0;
}

void
up_heap_destroy(struct up_heap *h)
{
	struct up_runtime *rt;
	sigset_t old;

	if (h == NULL || h->rt == NULL)
		return;
	rt = h->rt;
#ifndef NDEBUG
	heap_check(h);
#endif
	/* First: from here on nothing of it is in anybody's reach. */
	up_unmap(rt, h->base, h->npages << PAGE_SHIFT);
	signals_hold(&old);
	pthread_mutex_lock(&rt->heaps.lock);
	if (h->next != NULL)
		h->next->prev = h->prev;
	if (h->prev != NULL)
		h->prev->next = h->next;
	else
		rt->heaps.first = h->next;
	pthread_mutex_unlock(&rt->heaps.lock);
	heap_free(h, &rt->heaps, &rt->p);
	zone_trim(&rt->heaps.spans);
	signals_release(&old);
}

int
heaps_init(struct heaps *hs, struct arena *arena, size_t max)
{
	const int r = arena_sub_init(&hs->arena, arena, max);

	if (r < 0)
		return r;
	hs->first = NULL;
	pthread_mutex_init(&hs->lock, NULL);
	zone_init(&hs->spans, &hs->arena, "span", sizeof(struct span), NULL, NULL);
	return 0;
}

void
heaps_fini(struct heaps *hs, struct pager *p)
{
	struct up_heap *h;

	while ((h = hs->first) != NULL) {
		hs->first = h->next;
#ifndef NDEBUG
		heap_check(h);
#endif
		heap_free(h, hs, p);
	}
	zone_fini(&hs->spans);
	arena_fini(&hs->arena);
	pthread_mutex_destroy(&hs->lock);
}

#ifndef NDEBUG
/* What a span's own numbers must be; returns its blocks that are handed out. */
static size_t
span_check(const struct up_heap *h, const struct span *s)
{
	size_t nfree = 0;

	assert(s->bin < HEAP_BINS && s->npages >= 1 && s->npages <= SPAN_PAGES);
	assert(s->nblocks >= 1 && s->nblocks * bin_size(s->bin) <= s->npages * PAGE_SIZE);
	for (size_t i = 0; i < s->npages; i++)
		assert(word_get(h, s->page + i) == span_word(s));
	for (size_t i = 0; i < SPAN_BLOCKS; i++) {
		const bool free = (s->free[i / 64] >> i % 64 & 1) != 0;

		assert(!free || i < s->nblocks);
		nfree += free;
	}
	assert(nfree == s->nfree);
	return s->nblocks - nfree;
}

/* The lists of a bin; returns how many spans with something free are on them. */
static size_t
bin_check(const struct up_heap *h, unsigned bin)
{
	const struct heap_bin *b = &h->bin[bin];
	const struct span *prev = NULL;
	size_t n = 0;

	for (const struct span *s = b->partial; s != NULL; prev = s, s = s->next, n++) {
		assert(s->prev == prev && s->bin == bin);
		assert(s->nfree > 0 && s->nfree < s->nblocks);
	}
	if (b->empty != NULL) {
		assert(b->empty->bin == bin && b->empty->nfree == b->empty->nblocks);
		n++;
	}
	return n;
}
#endif

void
heap_check(struct up_heap *h)
{
#ifndef NDEBUG
	size_t nspans[HEAP_BINS] = { 0 }, roomy[HEAP_BINS] = { 0 }, nblocks[HEAP_BINS] = { 0 };
	size_t nlarge = 0, large_pages = 0, taken = 0;
	const size_t nwords = atomic_load(&h->nwords);

	fitmap_check(&h->pages);
	assert(h->discarding == 0);
	assert(h->pages.top <= nwords && nwords <= h->words.n);
	for (size_t page = 0; page < nwords;) {
		const uint64_t word = word_get(h, page);
		const struct span *s = (const struct span *)(uintptr_t)word_value(word);
		size_t n = 1;

		if (word_kind(word) == KIND_LARGE) {
			n = word_value(word);
			nlarge++;
			large_pages += n;
			for (size_t i = 1; i < n; i++)
				assert(word_get(h, page + i) == 0);
		} else if (word_kind(word) != 0) {
			n = s->npages;
			assert(s->page == page);
			nspans[s->bin]++;
			roomy[s->bin] += s->nfree > 0;
			nblocks[s->bin] += span_check(h, s);
		}
		for (size_t i = page; i < page + n; i++)
			assert(word_kind(word) == 0 || !fitmap_is_free(&h->pages, i));
		taken += word_kind(word) != 0 ? n : 0;
		page += n;
	}
	/* Pages without a word can be taken only if they could not be discarded. */
	assert(taken <= fitmap_taken(&h->pages));
	assert(nlarge == h->nlarge && large_pages == h->large_pages);
	for (unsigned i = 0; i < HEAP_BINS; i++) {
		assert(nspans[i] == h->bin[i].nspans && nblocks[i] == h->bin[i].nblocks);
		assert(bin_check(h, i) == roomy[i]);
	}
#else
	(void)h;
#endif
}
