/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_heap.c: the heap on the real kernel, in a few MiB, against an oracle.
 *
 * The oracle is a table of the blocks handed out.  Each is filled with a pattern of its own, edge to edge, up to
 * its usable size, and checked before it is resized or freed: two blocks that overlap, a block that lost
 * its content, and a page that came back other than it left all show as a wrong byte.  heap_check() compares
 * the heap's books with one another on the way.  What is said about memory is read from up_stats.
 *
 * The last part needs each allocation of metadata to fail in turn, and runs on the simulated kernel.
 */
#include "assertions.h"
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "delivery.h"
#include "rig.h"

#define MiB ((size_t)1 << 20)
#define KiB ((size_t)1 << 10)
#define PAGE ((size_t)UP_PAGE_SIZE)
#define SMALL (16 * KiB) /* the largest block that shares a span */
#define DEADLINE 30	 /* seconds */

TestSuite(heap, .timeout = 110);

/* --- set-up --- */

static struct up_runtime *rt;
static struct up_heap *heap;
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static char last_line[512]; /* of the log */
static unsigned nlines;

static void
collect(void *ctx, enum up_log_level level, const char *line)
{
	(void)ctx;
	if (level != UP_LOG_ERROR)
		return;
	pthread_mutex_lock(&log_lock);
	snprintf(last_line, sizeof last_line, "%s", line);
	nlines++;
	pthread_mutex_unlock(&log_lock);
}

static uint64_t without; /* UP_MASK_* for start() */

static void
start(size_t limit)
{
	const struct up_config cfg = { .memory_limit = limit,
				       .service_threads = 2,
				       .feature_mask = without,
				       .delivery = test_delivery(),
				       .compression = test_compression(),
				       .log = collect };
	const int r = up_runtime_create(&rt, &cfg);

	if (r == -EPERM || r == -ENOSYS)
		cr_skip_test("no userfaultfd or io_uring here: %s", last_line);
	cr_assert(r == 0, "create: %s: %s", strerrorname_np(-r), last_line);
}

static struct up_heap *
heap_of(size_t size, unsigned flags)
{
	struct up_heap *h;
	const int r = up_heap_create(rt, size, flags, &h);

	cr_assert(r == 0, "up_heap_create: %s: %s", strerrorname_np(-r), last_line);
	return h;
}

static void
up(size_t limit, size_t size)
{
	start(limit);
	heap = heap_of(size, 0);
}

static void
down(void)
{
	heap_check(heap);
	up_heap_destroy(heap);
	up_runtime_destroy(rt);
}

static struct up_stats
stats(void)
{
	struct up_stats st;

	cr_assert(zero(int, up_stats_get(rt, &st, sizeof st)));
	return st;
}

static struct up_heap_stats
heap_stats(struct up_heap *h)
{
	struct up_heap_stats st;

	cr_assert(zero(int, up_heap_stats_get(h, &st, sizeof st)));
	return st;
}

static uint64_t
rnd(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static double
seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* No page has content any more; a frame whose write was under way when its page went is still counted until that ends. */
static void
await_no_content(void)
{
	const double until = seconds() + DEADLINE;

	for (;;) {
		const struct up_stats st = stats();

		if (st.swapped + st.resident + st.staged == 0)
			return;
		cr_assert(seconds() < until, "left: %zu in swap, %zu resident, %zu staged",
			  (size_t)st.swapped, (size_t)st.resident, (size_t)st.staged);
		sched_yield();
	}
}

/* --- the oracle --- */

struct block {
	unsigned char *p; /* NULL: none */
	size_t asked, size;
	uint64_t salt;
};

static unsigned char
byte_of(uint64_t salt, size_t i)
{
	return (unsigned char)((salt + i) * UINT64_C(0x9e3779b97f4a7c15) >> 56);
}

static void
fill(const struct block *b, size_t from)
{
	for (size_t i = from; i < b->size; i++)
		b->p[i] = byte_of(b->salt, i);
}

/* The first wrong byte of the first `n`, or n. */
static size_t
wrong(const struct block *b, size_t n)
{
	size_t i = 0;

	while (i < n && b->p[i] == byte_of(b->salt, i))
		i++;
	return i;
}

static void
check(const struct block *b, size_t n)
{
	const size_t i = wrong(b, n);

	cr_assert(i == n, "byte %zu of a block of %zu, %zu asked, at %p", i, b->size, b->asked,
		  (void *)b->p);
}

/* What every block must be, whoever made it. */
static void
adopt(struct block *b, void *p, size_t asked, size_t align, uint64_t salt)
{
	const struct up_heap_stats st = heap_stats(heap);

	*b = (struct block){ p, asked, up_malloc_usable_size(heap, p), salt };
	cr_assert(ge(sz, b->size, asked));
	cr_assert(ge(sz, b->size, 16));
	cr_assert(zero(sz, (uintptr_t)p % MAX(align, asked > SMALL ? PAGE : 16)));
	cr_assert(le(sz, (size_t)((char *)p - (char *)st.base), st.size - b->size));
}

static void
drop(struct block *b)
{
	check(b, b->size);
	cr_assert(zero(int, up_free(heap, b->p)), "%s", last_line);
	b->p = NULL;
}

/* Sizes as programs ask for them: mostly small, a few large. */
static size_t
some_size(uint64_t *seed)
{
	const uint64_t dice = rnd(seed) % 100;

	if (dice < 60)
		return rnd(seed) % 256;
	if (dice < 85)
		return rnd(seed) % (4 * KiB);
	if (dice < 97)
		return rnd(seed) % (24 * KiB);
	return rnd(seed) % (300 * KiB);
}

/* --- blocks --- */

Test(heap, every_size_is_served_without_wasting_more_than_a_quarter)
{
	struct block b;

	up(4 * MiB, 16 * MiB);
	for (size_t n = 0; n <= SMALL + 3 * PAGE; n += n < 2 * KiB ? 1 : 61) {
		adopt(&b, up_malloc(heap, n), n, 1, n);
		cr_assert(b.size - n <= MAX(n / 4, 16), "%zu bytes for %zu", b.size, n);
		fill(&b, 0);
		drop(&b);
	}
	cr_assert(zero(u64, heap_stats(heap).blocks));
	cr_assert(zero(u64, heap_stats(heap).allocated));
	down();
}

/* Blocks of mixed sizes until they take `most` bytes or there are `max`; returns how many. */
static size_t
make_blocks(struct block *b, size_t max, size_t most, uint64_t *seed)
{
	size_t n = 0;

	for (size_t sum = 0; n < max && sum < most; n++) {
		const size_t size = some_size(seed);
		void *p = up_malloc(heap, size);

		cr_assert(p != NULL, "%s", last_line);
		adopt(&b[n], p, size, 1, rnd(seed));
		fill(&b[n], 0);
		sum += b[n].size;
	}
	return n;
}

static uint64_t
sum_of(const struct block *b, size_t n)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += b[i].p != NULL ? b[i].size : 0;
	return sum;
}

/* Free them in any order. */
static void
drop_all(struct block *b, size_t n, uint64_t *seed)
{
	for (; n > 0; n--) {
		const size_t i = rnd(seed) % n;

		if (b[i].p != NULL)
			drop(&b[i]);
		b[i] = b[n - 1];
	}
}

Test(heap, blocks_keep_apart_and_keep_their_content_in_an_eighth_of_their_memory)
{
	enum { N = 8000 };
	struct block *b = calloc(N, sizeof *b);
	uint64_t seed = 11;
	size_t n;

	up(3 * MiB, 32 * MiB);
	n = make_blocks(b, N, 24 * MiB, &seed);
	cr_assert(ge(u64, sum_of(b, n), 24 * MiB));
	heap_check(heap);
	cr_assert(eq(u64, heap_stats(heap).allocated, sum_of(b, n)));
	cr_assert(eq(u64, heap_stats(heap).blocks, n));
	cr_assert(ge(u64, heap_stats(heap).active, sum_of(b, n)));
	cr_assert(gt(u64, stats().swap_write_bytes, 16 * MiB), "it was not paged at all");
	drop_all(b, n, &seed);
	cr_assert(zero(u64, heap_stats(heap).blocks));
	cr_assert(le(u64, stats().used_max, 3 * MiB));
	free(b);
	down();
}

/* All that is left, a page at a time: with blocks of a page, spans shrink to one. */
static size_t
fill_up(struct block *b, size_t max)
{
	size_t n = 0;
	void *p;

	while ((p = up_malloc(heap, PAGE)) != NULL) {
		cr_assert(lt(sz, n, max));
		adopt(&b[n], p, PAGE, PAGE, n);
		fill(&b[n++], 0);
	}
	cr_assert(eq(int, errno, ENOMEM));
	cr_assert(eq(u64, heap_stats(heap).active, heap_stats(heap).size), "pages were lost");
	return n;
}

Test(heap, an_aligned_block_is_aligned_and_what_was_skipped_is_used)
{
	struct block *b = calloc(16 * MiB / PAGE, sizeof *b);
	uint64_t seed = 5;
	size_t n = 0;

	up(4 * MiB, 16 * MiB);
	for (size_t align = 1; align <= MiB; align *= 2) {
		for (unsigned k = 0; k < 2; k++, n++) {
			const size_t size = k == 0 ? 1 : rnd(&seed) % (60 * KiB);

			adopt(&b[n], up_memalign(heap, align, size), size, align, align + k);
			fill(&b[n], 0);
		}
	}
	heap_check(heap);
	n += fill_up(b + n, 16 * MiB / PAGE - n);
	drop_all(b, n, &seed);
	free(b);
	down();
}

Test(heap, what_calloc_returns_is_zero_whatever_was_there)
{
	static const size_t sizes[] = { 1, 16, 100, 4 * KiB, 5000, SMALL, SMALL + 1, 300 * KiB };
	struct block dirty;
	unsigned char *p;

	up(4 * MiB, 4 * MiB);
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		for (unsigned k = 0; k < 20; k++) {
			adopt(&dirty, up_malloc(heap, sizes[i]), sizes[i], 1, k);
			fill(&dirty, 0);
			drop(&dirty);
			p = up_calloc(heap, k + 1, sizes[i] / (k + 1));
			cr_assert(p != NULL);
			for (size_t at = 0; at < (k + 1) * (sizes[i] / (k + 1)); at++)
				cr_assert(p[at] == 0, "size %zu: byte %zu", sizes[i], at);
			cr_assert(zero(int, up_free(heap, p)));
		}
	}
	errno = 0;
	cr_assert(zero(ptr, up_calloc(heap, SIZE_MAX / 2, 3)), "the product wraps around");
	cr_assert(eq(int, errno, ENOMEM));
	down();
}

/* --- realloc --- */

Test(heap, realloc_keeps_what_fits)
{
	struct block b[40] = { 0 };
	uint64_t seed = 21;

	up(2 * MiB, 16 * MiB);
	for (unsigned turn = 0; turn < 3000; turn++) {
		struct block *x = &b[rnd(&seed) % ARRAY_SIZE(b)];
		const size_t size =
			rnd(&seed) % 4 == 0 ? rnd(&seed) % (400 * KiB) : some_size(&seed);
		const struct block was = *x;
		void *p = up_realloc(heap, x->p, size);

		cr_assert(p != NULL, "%s", last_line);
		adopt(x, p, size, 1, was.p != NULL ? was.salt : rnd(&seed));
		check(x, was.p == NULL ? 0 : MIN(was.size, size));
		fill(x, 0);
	}
	heap_check(heap);
	cr_assert(eq(u64, heap_stats(heap).allocated, sum_of(b, ARRAY_SIZE(b))));
	drop_all(b, ARRAY_SIZE(b), &seed);
	down();
}

Test(heap, a_large_block_grows_where_it_is_if_there_is_room_and_gives_its_tail_back)
{
	struct block b;
	unsigned char *behind;

	up(4 * MiB, 4 * MiB);
	adopt(&b, up_malloc(heap, MiB), MiB, 1, 1);
	fill(&b, 0);
	cr_assert(eq(ptr, up_realloc(heap, b.p, 3 * MiB), b.p));
	cr_assert(eq(u64, heap_stats(heap).active, 3 * MiB));
	check(&b, MiB);
	b.size = 3 * MiB;
	fill(&b, 0);
	cr_assert(eq(ptr, up_realloc(heap, b.p, 100 * KiB), b.p));
	cr_assert(eq(u64, heap_stats(heap).active, 100 * KiB));
	check(&b, 100 * KiB);

	behind = up_calloc(heap, 1, MiB);
	cr_assert(eq(ptr, behind, b.p + 100 * KiB));
	for (size_t i = 0; i < MiB; i++)
		cr_assert(behind[i] == 0, "the tail was not discarded: byte %zu", i);
	cr_assert(ne(ptr, up_realloc(heap, b.p, 200 * KiB), b.p));
	down();
}

Test(heap, a_block_grows_over_spans_that_were_only_kept)
{
	struct block b;
	void *p;

	up(4 * MiB, 2 * MiB);
	adopt(&b, up_malloc(heap, MiB), MiB, 1, 2);
	fill(&b, 0);
	p = up_malloc(heap, 16);
	cr_assert(p != NULL && up_free(heap, p) == 0);
	cr_assert(gt(u64, heap_stats(heap).active, MiB), "the span is kept");
	cr_assert(eq(ptr, up_realloc(heap, b.p, 2 * MiB), b.p), "%s", last_line);
	check(&b, MiB);
	down();
}

Test(heap, a_realloc_that_fails_leaves_the_block_alone)
{
	struct block b;

	up(4 * MiB, 2 * MiB);
	adopt(&b, up_malloc(heap, MiB), MiB, 1, 3);
	fill(&b, 0);
	cr_assert(ne(ptr, up_malloc(heap, MiB), NULL), "now it is full");
	errno = 0;
	cr_assert(zero(ptr, up_realloc(heap, b.p, MiB + 1)));
	cr_assert(eq(int, errno, ENOMEM));
	cr_assert(zero(ptr, up_realloc(heap, b.p, SIZE_MAX)));
	check(&b, b.size);
	cr_assert(eq(ptr, up_realloc(heap, b.p, MiB), b.p));
	b.size = 2 * PAGE;
	cr_assert(ne(ptr, b.p = up_realloc(heap, b.p, b.size), NULL), "smaller is never refused");
	check(&b, b.size);
	down();
}

/* --- everything at once --- */

static void
random_calls(void)
{
	enum { N = 3000, TURNS = 30000 };
	struct block *b = calloc(N, sizeof *b);
	uint64_t seed = 77;
	size_t refused = 0;

	up(2 * MiB, 12 * MiB);
	for (unsigned turn = 0; turn < TURNS; turn++) {
		struct block *x = &b[rnd(&seed) % N];
		const size_t size = some_size(&seed);
		const size_t align = (size_t)1 << rnd(&seed) % 15;
		const struct block was = *x;
		const unsigned dice = rnd(&seed) % 100;
		void *p;

		if (x->p != NULL && dice < 60) {
			drop(x);
			continue;
		}
		if (x->p != NULL) {
			check(x, x->size);
			p = up_realloc(heap, x->p, size);
		} else if (dice < 50) {
			p = up_malloc(heap, size);
		} else if (dice < 75) {
			p = up_calloc(heap, 1, size);
		} else {
			p = up_memalign(heap, align, size);
		}
		if (p == NULL) {
			cr_assert(eq(int, errno, ENOMEM));
			refused++;
			continue;
		}
		adopt(x, p, size, x->p == NULL && dice >= 75 ? align : 1, rnd(&seed));
		if (was.p != NULL) {
			x->salt = was.salt;
			check(x, MIN(was.size, size));
		} else if (dice >= 50 && dice < 75) {
			for (size_t i = 0; i < size; i++)
				cr_assert(x->p[i] == 0, "calloc: byte %zu of %zu", i, size);
		}
		fill(x, 0);
		if (turn % 5000 == 0) {
			heap_check(heap);
			cr_assert(eq(u64, heap_stats(heap).allocated, sum_of(b, N)));
		}
	}
	cr_assert(gt(sz, refused, 0), "the heap was never full: not what was meant");
	drop_all(b, N, &seed);
	free(b);
	cr_assert(ne(ptr, up_malloc(heap, 12 * MiB), NULL), "all is free, and in one piece");
	down();
}

Test(heap, random_calls_agree_with_the_oracle)
{
	random_calls();
}

Test(heap, random_calls_agree_on_kernels_that_can_do_less)
{
	without = UP_MASK_MOVE;
	random_calls();
	without = UP_MASK_ALL & ~UP_MASK_KERNEL_FAULTS;
	random_calls();
}

/* --- running out --- */

Test(heap, a_full_heap_refuses_and_is_whole_again_when_all_is_freed)
{
	enum { N = 8 * MiB / PAGE + 3000 };
	struct block *b = calloc(N, sizeof *b);
	unsigned char *p;
	uint64_t seed = 9;
	size_t n;

	up(2 * MiB, 8 * MiB);
	for (unsigned round = 0; round < 2; round++) {
		n = make_blocks(b, 3000, 6 * MiB, &seed);
		n += fill_up(b + n, N - n);
		for (size_t i = 0; i < n; i++)
			check(&b[i], b[i].size);
		drop_all(b, n, &seed);

		p = up_calloc(heap, 1, 8 * MiB);
		cr_assert(p != NULL, "%s", last_line);
		for (size_t i = 0; i < 8 * MiB; i += 64)
			cr_assert(p[i] == 0);
		cr_assert(zero(ptr, up_malloc(heap, 1)));
		cr_assert(strstr(last_line, "up_malloc: no room for 1 bytes") != NULL, "%s",
			  last_line);
		cr_assert(zero(int, up_free(heap, p)));
	}
	cr_assert(zero(ptr, up_malloc(heap, 8 * MiB + 1)));
	cr_assert(zero(ptr, up_malloc(heap, SIZE_MAX)));
	cr_assert(zero(ptr, up_memalign(heap, (size_t)1 << 63, 1)));
	cr_assert(eq(int, errno, ENOMEM));
	free(b);
	down();
}

Test(heap, without_room_for_metadata_a_block_is_refused)
{
	unsigned char *p;

	start(2 * MiB);
	heap = heap_of((size_t)1 << 40, UP_NORESERVE);
	p = up_malloc(heap, 16 * MiB);
	cr_assert(p != NULL, "%s", last_line);
	p[5] = 1;
	errno = 0;
	/* Its words alone would be twice the limit. */
	cr_assert(zero(ptr, up_malloc(heap, (size_t)2 << 30)));
	cr_assert(eq(int, errno, ENOMEM));
	cr_assert(strstr(last_line, "memory_limit is full") != NULL, "%s", last_line);
	cr_assert(eq(int, p[5], 1));
	cr_assert(ne(ptr, up_malloc(heap, MiB), NULL), "what fits is still to be had");
	cr_assert(zero(int, up_free(heap, p)));
	down();
}

/* --- giving back --- */

Test(heap, what_is_freed_is_discarded_from_memory_and_from_swap)
{
	enum { N = 8000 };
	struct block *b = calloc(N, sizeof *b);
	unsigned char *vec;
	struct up_heap_stats hs;
	uint64_t seed = 4;
	size_t n, left = 0;

	up(3 * MiB, 32 * MiB);
	n = make_blocks(b, N, 20 * MiB, &seed);
	cr_assert(gt(u64, stats().swapped, 10 * MiB));
	drop_all(b, n, &seed);
	hs = heap_stats(heap);
	cr_assert(le(u64, hs.active, 36 * 64 * KiB), "one span a size is kept, no more");
	vec = malloc(hs.size / PAGE);
	cr_assert(zero(int, up_residency(rt, hs.base, hs.size, vec)));
	for (size_t i = 0; i < hs.size / PAGE; i++)
		left += vec[i] != 0;
	cr_assert(le(u64, left * PAGE, hs.active));

	/* A block of the whole heap needs the kept ones too. */
	b[0].p = up_malloc(heap, 32 * MiB);
	cr_assert(b[0].p != NULL, "%s", last_line);
	cr_assert(zero(int, up_free(heap, b[0].p)));
	cr_assert(zero(u64, heap_stats(heap).active));
	await_no_content();
	free(vec);
	free(b);
	down();
}

Test(heap, a_block_in_swap_is_freed_without_being_read)
{
	enum { N = 2000 };
	struct block *b = calloc(N, sizeof *b);
	uint64_t reads;

	up(2 * MiB, 32 * MiB);
	for (size_t i = 0; i < N; i++) {
		adopt(&b[i], up_malloc(heap, 8 * KiB), 8 * KiB, 1, i);
		fill(&b[i], 0);
	}
	reads = stats().swap_reads;
	for (size_t i = 0; i < N; i++)
		cr_assert(zero(int, up_free(heap, b[i].p)));
	/* One that a fill was waiting for may be counted late. */
	cr_assert(le(u64, stats().swap_reads, reads + 2));
	cr_assert(zero(u64, heap_stats(heap).blocks));
	free(b);
	down();
}

Test(heap, a_block_at_the_edge_of_a_span_goes_to_and_fro_without_discarding)
{
	const double until = seconds() + DEADLINE;
	uint64_t zero_fills;
	void *p;

	up(2 * MiB, 2 * MiB);
	p = up_calloc(heap, 1, 1000);
	cr_assert(p != NULL);
	/* The service counts the fault after it has woken us. */
	while ((zero_fills = stats().faults[UP_FAULT_ZERO]) == 0)
		cr_assert(lt(dbl, seconds(), until));
	for (unsigned i = 0; i < 1000; i++) {
		cr_assert(zero(int, up_free(heap, p)));
		cr_assert(eq(ptr, up_calloc(heap, 1, 1000), p));
	}
	cr_assert(eq(u64, stats().faults[UP_FAULT_ZERO], zero_fills));
	down();
}

/* --- what is no block --- */

static void
must_refuse(const void *p, const char *what)
{
	const struct up_heap_stats before = heap_stats(heap);
	struct up_heap_stats after;
	const unsigned lines = nlines;

	cr_assert(eq(int, up_free(heap, (void *)(uintptr_t)p), -EINVAL), "%s", what);
	cr_assert(eq(u32, nlines, lines + 1), "%s: not a word in the log", what);
	cr_assert(zero(sz, up_malloc_usable_size(heap, p)), "%s", what);
	errno = 0;
	cr_assert(zero(ptr, up_realloc(heap, (void *)(uintptr_t)p, 100)), "%s", what);
	cr_assert(eq(int, errno, EINVAL), "%s", what);
	after = heap_stats(heap);
	cr_assert(memcmp(&before, &after, sizeof after) == 0, "%s", what);
	heap_check(heap);
}

Test(heap, a_pointer_that_is_no_block_is_refused_and_changes_nothing)
{
	struct up_heap *other;
	char *small, *large, *end, *page;
	int local;

	up(4 * MiB, 4 * MiB);
	other = heap_of(MiB, 0);
	must_refuse(&local, "before there are any");
	small = up_malloc(heap, 100);
	page = up_malloc(heap, PAGE);
	large = up_malloc(heap, 200 * KiB);
	end = (char *)heap_stats(heap).base + heap_stats(heap).size;
	must_refuse(&local, "a local variable");
	must_refuse(small + 16, "inside a block");
	must_refuse(small + 112, "a block that is free");
	must_refuse(small + 1, "unaligned");
	must_refuse(page + 8 * KiB, "free, page-sized");
	must_refuse(large + PAGE, "inside a large block");
	must_refuse(large + 16, "inside a large block's first page");
	must_refuse(end - PAGE, "a page never used");
	must_refuse(end, "the end of the region");
	must_refuse((char *)heap_stats(heap).base - 1, "before the region");
	must_refuse(up_malloc(other, 100), "another heap's");

	cr_assert(zero(int, up_free(heap, small)));
	must_refuse(small, "freed twice");
	cr_assert(zero(int, up_free(heap, page)));
	must_refuse(page, "freed twice, page-sized");
	cr_assert(zero(int, up_free(heap, large)));
	must_refuse(large, "freed twice, large");
	cr_assert(zero(int, up_free(heap, NULL)));
	cr_assert(zero(sz, up_malloc_usable_size(heap, NULL)));
	up_heap_destroy(other);
	down();
}

/* The largest region that can be mapped with its promises, but for a few pages. */
static size_t
max_strict(void)
{
	size_t size = 0;

	for (size_t step = 4096 * MiB; step >= 64 * KiB; step /= 2) {
		void *p;

		if (up_map(rt, NULL, size + step, PROT_READ, UP_PRIVATE, NULL, 0, &p) < 0)
			continue;
		cr_assert(zero(int, up_unmap(rt, p, size + step)));
		size += step;
	}
	return size;
}

Test(heap, bad_arguments_are_refused_with_a_line_in_the_log)
{
	static const struct {
		size_t size;
		unsigned flags;
		int want;
		const char *why;
	} bad[] = {
		{ 0, 0, -EINVAL, "positive multiple" },
		{ PAGE + 1, 0, -EINVAL, "positive multiple" },
		{ (size_t)17 << 40, UP_NORESERVE, -EINVAL, "above 16 TiB" },
		{ MiB, UP_PRIVATE, -EINVAL, "unknown flags" },
		{ MiB, UP_FIXED, -EINVAL, "unknown flags" },
		{ (size_t)1 << 40, 0, -ENOMEM, "does not fit the memory limit" },
	};
	struct up_heap_stats st;
	struct up_heap *h;
	uint64_t metadata;
	size_t most;

	start(2 * MiB);
	most = max_strict();
	metadata = stats().metadata;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		h = (struct up_heap *)&st;
		cr_assert(eq(int, up_heap_create(rt, bad[i].size, bad[i].flags, &h), bad[i].want));
		cr_assert(zero(ptr, h));
		cr_assert(strstr(last_line, bad[i].why) != NULL, "%s", last_line);
	}
	/* The same where the region fits, and its words do not. */
	cr_assert(eq(int, up_heap_create(rt, most, 0, &h), -ENOMEM));
	cr_assert(zero(ptr, h));
	cr_assert(strstr(last_line, "no room for the heap's tables") != NULL, "%s", last_line);
	cr_assert(eq(int, up_heap_create(rt, MiB, 0, NULL), -EINVAL));
	cr_assert(eq(int, up_heap_create(NULL, MiB, 0, &h), -EINVAL));
	cr_assert(zero(u64, stats().mapped));
	cr_assert(eq(u64, stats().metadata, metadata));

	heap = heap_of(PAGE, 0);
	cr_assert(zero(ptr, up_memalign(heap, 0, 1)));
	cr_assert(zero(ptr, up_memalign(heap, 24, 1)));
	cr_assert(eq(int, errno, EINVAL));
	cr_assert(strstr(last_line, "power of two") != NULL);
	cr_assert(zero(ptr, up_malloc(NULL, 1)));
	cr_assert(eq(int, errno, EINVAL));
	cr_assert(eq(int, up_free(NULL, &st), -EINVAL));
	cr_assert(eq(int, up_heap_stats_get(heap, NULL, sizeof st), -EINVAL));
	cr_assert(eq(int, up_heap_stats_get(NULL, &st, sizeof st), -EINVAL));
	up_heap_destroy(NULL);

	/* A program that knows one field gets one; one that knows more than we do gets zeros. */
	memset(&st, 0xff, sizeof st);
	cr_assert(zero(int, up_heap_stats_get(heap, &st, sizeof st.base)));
	cr_assert(eq(u64, st.size, UINT64_MAX));
	cr_assert(ne(ptr, up_malloc(heap, 1), NULL), "a heap of one page is one");
	down();
}

/* --- several heaps, the ends of their lives --- */

Test(heap, heaps_die_with_their_blocks_and_leave_no_metadata)
{
	struct up_heap *h[5];
	struct up_stats before, after;
	uint64_t seed = 1;

	start(4 * MiB);
	/* The first heap leaves an empty slab behind, as zones do. */
	heap = heap_of(MiB, 0);
	cr_assert(ne(ptr, up_malloc(heap, 1), NULL));
	up_heap_destroy(heap);
	before = stats();
	for (unsigned i = 0; i < 5; i++)
		h[i] = heap_of(4 * MiB, i % 2 ? UP_NORESERVE : 0);
	for (unsigned k = 0; k < 2000; k++) {
		const unsigned i = rnd(&seed) % 5;
		const size_t size = some_size(&seed);
		char *p = up_malloc(h[i], size);

		cr_assert(p != NULL || errno == ENOMEM);
		if (p != NULL)
			memset(p, 1, up_malloc_usable_size(h[i], p));
	}
	for (unsigned i = 0; i < 5; i++)
		heap_check(h[i]);
	for (unsigned i = 0; i < 5; i++)
		up_heap_destroy(h[(i + 2) % 5]);
	after = stats();
	cr_assert(eq(u64, after.mapped, before.mapped));
	cr_assert(eq(u64, after.entries, before.entries));
	cr_assert(eq(u64, after.reserve_used, before.reserve_used));
	await_no_content();
	up_runtime_destroy(rt);
}

Test(heap, a_runtime_takes_its_heaps_with_it)
{
	uint64_t seed = 3;

	start(3 * MiB);
	for (unsigned i = 0; i < 3; i++) {
		heap = heap_of(8 * MiB, 0);
		for (unsigned k = 0; k < 300; k++) {
			const size_t size = some_size(&seed);
			char *p = up_malloc(heap, size);

			cr_assert(p != NULL);
			memset(p, 1, size);
		}
	}
	up_runtime_destroy(rt); /* asserts that nothing is charged or promised any more */
}

static int
use_in_child(char *block)
{
	struct up_heap_stats st;
	struct up_heap *h;

	alarm(DEADLINE);
	errno = 0;
	if (up_malloc(heap, 10) != NULL || errno != ECHILD)
		return 1;
	errno = 0;
	if (up_calloc(heap, 1, 10) != NULL || errno != ECHILD)
		return 2;
	errno = 0;
	if (up_realloc(heap, block, 10000) != NULL || errno != ECHILD)
		return 3;
	errno = 0;
	if (up_memalign(heap, 64, 10) != NULL || errno != ECHILD)
		return 4;
	if (up_free(heap, block) != -ECHILD)
		return 5;
	if (up_malloc_usable_size(heap, block) != 0)
		return 6;
	if (up_heap_stats_get(heap, &st, sizeof st) != -ECHILD)
		return 7;
	if (up_heap_create(rt, MiB, 0, &h) != -ECHILD || h != NULL)
		return 8;
	up_heap_destroy(heap);
	up_runtime_destroy(rt);
	return 0;
}

Test(heap, a_forked_child_has_no_heap_and_does_no_harm_to_the_parents)
{
	struct block b;
	int status;
	pid_t pid;

	up(3 * MiB, 8 * MiB);
	adopt(&b, up_malloc(heap, 5 * MiB), 5 * MiB, 1, 8);
	fill(&b, 0);
	pid = fork();
	if (pid == 0)
		_exit(use_in_child((char *)b.p));
	cr_assert(eq(int, waitpid(pid, &status, 0), pid));
	cr_assert(status == 0, "wait status %#x", (unsigned)status);
	drop(&b);
	down();
}

/* A clone of the region is a snapshot of all blocks; what is freed afterwards is zero here and stays there. */
Test(heap, a_clone_of_the_region_keeps_what_is_freed)
{
	enum { N = 2000 };
	struct block *b = calloc(N, sizeof *b), *then = calloc(N, sizeof *b);
	const size_t size = 8 * MiB;
	uint64_t seed = 6;
	unsigned char *p;
	void *base, *copy;
	size_t n;

	up(3 * MiB, size);
	n = make_blocks(b, N, 5 * MiB, &seed);
	base = heap_stats(heap).base;
	cr_assert(eq(int, up_clone(rt, base, size, &copy), 0), "%s", last_line);
	for (size_t i = 0; i < n; i++) {
		then[i] = b[i];
		then[i].p = (unsigned char *)copy + (b[i].p - (unsigned char *)base);
	}
	drop_all(b, n, &seed);
	p = up_calloc(heap, 1, size);
	cr_assert(p != NULL, "%s", last_line);
	for (size_t i = 0; i < size; i++)
		cr_assert(p[i] == 0, "byte %zu came back", i);
	memset(p, 0x55, size);
	for (size_t i = 0; i < n; i++)
		check(&then[i], then[i].size);
	cr_assert(eq(int, up_unmap(rt, copy, size), 0));
	cr_assert(eq(int, up_free(heap, p), 0));
	cr_assert(zero(u64, heap_stats(heap).active));
	free(then);
	free(b);
	down();
}

/* --- threads, signals --- */

/*
 * Each thread makes blocks and puts them where another may find them: what it finds there it checks and
 * frees, so most blocks are freed by a thread that did not make them.
 */
#define BOXES 1500u
static struct block *_Atomic box[BOXES];
static atomic_uint nwrong, nmade;

static void
drop_in_thread(struct block *b)
{
	if (b == NULL)
		return;
	if (wrong(b, b->size) != b->size || up_free(heap, b->p) != 0)
		atomic_fetch_add(&nwrong, 1);
	free(b);
}

static void *
trade(void *arg)
{
	uint64_t seed = (uintptr_t)arg;

	for (unsigned i = 0; i < 12000; i++) {
		const size_t size = some_size(&seed);
		struct block *b = malloc(sizeof *b);

		b->asked = size;
		b->salt = rnd(&seed);
		b->p = rnd(&seed) % 2 ? up_malloc(heap, size) : up_realloc(heap, NULL, size);
		if (b->p == NULL) {
			free(b);
			drop_in_thread(atomic_exchange(&box[rnd(&seed) % BOXES], NULL));
			continue;
		}
		atomic_fetch_add(&nmade, 1);
		b->size = up_malloc_usable_size(heap, b->p);
		if (b->size < size)
			atomic_fetch_add(&nwrong, 1);
		fill(b, 0);
		drop_in_thread(atomic_exchange(&box[rnd(&seed) % BOXES], b));
	}
	return NULL;
}

Test(heap, threads_free_what_others_made)
{
	pthread_t thread[4];
	struct timespec until;

	up(3 * MiB, 8 * MiB);
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 90;
	for (size_t i = 0; i < ARRAY_SIZE(thread); i++)
		cr_assert(
			zero(int, pthread_create(&thread[i], NULL, trade, (void *)(i * 977 + 1))));
	for (size_t i = 0; i < ARRAY_SIZE(thread); i++)
		cr_assert(zero(int, pthread_timedjoin_np(thread[i], NULL, &until)));
	for (size_t i = 0; i < BOXES; i++)
		drop_in_thread(box[i]);
	cr_assert(zero(u32, nwrong));
	cr_assert(gt(u32, nmade, 10000));
	cr_assert(zero(u64, heap_stats(heap).blocks));
	cr_assert(le(u64, stats().used_max, 3 * MiB));
	down();
}

/*
 * All pages of a tiny heap are in a span that is kept empty; two threads want other sizes at once, for which
 * there is room.  One gives the span back; the other must not be told meanwhile that the heap is full.
 */
static pthread_barrier_t barrier;

static void *
want_one(void *arg)
{
	const size_t size = (uintptr_t)arg;

	for (unsigned i = 0; i < 4000; i++) {
		void *p;

		pthread_barrier_wait(&barrier); /* main has made the span empty */
		p = up_malloc(heap, size);
		if (p == NULL || up_free(heap, p) != 0)
			atomic_fetch_add(&nwrong, 1);
		pthread_barrier_wait(&barrier);
	}
	return NULL;
}

Test(heap, pages_on_their_way_back_are_not_missed)
{
	pthread_t thread[2];
	void *p;

	up(2 * MiB, 64 * KiB);
	cr_assert(zero(int, pthread_barrier_init(&barrier, NULL, 3)));
	for (size_t i = 0; i < 2; i++)
		cr_assert(zero(int,
			       pthread_create(&thread[i], NULL, want_one, (void *)((i + 1) * 16))));
	for (unsigned i = 0; i < 4000; i++) {
		p = up_malloc(heap, 64 * KiB);
		cr_assert(p != NULL, "%s", last_line);
		cr_assert(zero(int, up_free(heap, p)));
		p = up_malloc(heap, SMALL);
		cr_assert(p != NULL && up_free(heap, p) == 0);
		cr_assert(eq(u64, heap_stats(heap).active, 64 * KiB));
		pthread_barrier_wait(&barrier);
		pthread_barrier_wait(&barrier);
	}
	for (size_t i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	pthread_barrier_destroy(&barrier);
	cr_assert(zero(u32, nwrong), "%u of 8000: %s", nwrong, last_line);
	down();
}

/* Two threads free each block at the same time, so its span or its pages go while the loser looks at them. */
static void *_Atomic victim;
static atomic_uint nfreed;

static void *
free_victims(void *arg)
{
	(void)arg;
	for (unsigned i = 0; i < 4000; i++) {
		pthread_barrier_wait(&barrier);
		atomic_fetch_add(&nfreed, up_free(heap, victim) == 0);
		pthread_barrier_wait(&barrier);
	}
	return NULL;
}

Test(heap, a_block_freed_by_two_threads_at_once_is_freed_by_one)
{
	pthread_t thread[2];
	void *filler[4];

	up(2 * MiB, MiB);
	cr_assert(zero(int, pthread_barrier_init(&barrier, NULL, 3)));
	for (size_t i = 0; i < 2; i++)
		cr_assert(zero(int, pthread_create(&thread[i], NULL, free_victims, NULL)));
	for (unsigned i = 0; i < 4000; i++) {
		const size_t size = i % 2 ? SMALL : 3 * SMALL;

		/* Four fill a span, which is kept when they are freed: the victim's is the one to go. */
		for (size_t k = 0; k < 4; k++)
			filler[k] = up_malloc(heap, SMALL);
		victim = up_malloc(heap, size);
		cr_assert(victim != NULL, "%s", last_line);
		for (size_t k = 0; k < 4; k++)
			cr_assert(zero(int, up_free(heap, filler[k])));
		pthread_barrier_wait(&barrier);
		pthread_barrier_wait(&barrier);
		cr_assert(eq(u32, nfreed, i + 1));
	}
	for (size_t i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	pthread_barrier_destroy(&barrier);
	cr_assert(zero(u64, heap_stats(heap).blocks));
	down();
}

static unsigned char *volatile touched;
static volatile size_t touched_len;
static volatile sig_atomic_t nsignals;

static void
touch_on_signal(int sig)
{
	static size_t at;

	(void)sig;
	at = (at + 37 * PAGE) % touched_len;
	touched[at]++;
	nsignals++;
}

Test(heap, a_handler_may_touch_blocks_while_its_thread_allocates)
{
	const struct itimerval often = { { 0, 300 }, { 0, 300 } }, never = { { 0, 0 }, { 0, 0 } };
	struct sigaction sa = { .sa_handler = touch_on_signal, .sa_flags = SA_RESTART };
	struct block b[256] = { 0 };
	const double until = seconds() + DEADLINE;
	uint64_t seed = 8;

	up(2 * MiB, 16 * MiB);
	touched_len = 6 * MiB;
	touched = up_calloc(heap, 1, touched_len);
	cr_assert(touched != NULL);
	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	for (unsigned turn = 0; turn < 4000 || nsignals < 500; turn++) {
		struct block *x = &b[rnd(&seed) % ARRAY_SIZE(b)];
		const size_t size = some_size(&seed);

		if (x->p != NULL)
			drop(x);
		adopt(x, up_malloc(heap, size), size, 1, turn);
		fill(x, 0);
		cr_assert(lt(dbl, seconds(), until), "%d signals", (int)nsignals);
	}
	setitimer(ITIMER_REAL, &never, NULL);
	drop_all(b, ARRAY_SIZE(b), &seed);
	cr_assert(zero(int, up_free(heap, touched)));
	down();
}

/* --- metadata that can not be had, on the simulated kernel --- */

/* What a heap goes through; every call works, or is refused and has changed nothing. */
static unsigned
live(struct rig *r)
{
	void *p[200] = { 0 };
	struct up_heap *h = NULL;
	unsigned refused = 0;
	uint64_t seed = 2;
	int e;

	e = up_heap_create(r->rt, 256 * MiB, UP_NORESERVE, &h);
	cr_assert(e == 0 || e == -ENOMEM, "%s", strerrorname_np(-e));
	if (e < 0)
		return 1;
	for (unsigned i = 0; i < 600; i++) {
		const unsigned k = rnd(&seed) % ARRAY_SIZE(p);
		const size_t size = i % 150 == 149 ? 40 * MiB : some_size(&seed);

		if (p[k] != NULL) {
			cr_assert(zero(int, up_free(h, p[k])));
			p[k] = NULL;
			continue;
		}
		p[k] = up_malloc(h, size);
		cr_assert(p[k] != NULL || errno == ENOMEM);
		refused += p[k] == NULL;
	}
	heap_check(h);
	up_heap_destroy(h);
	return refused;
}

/* The memory of the rig, with a look at the caller's signals. */
static struct arena_ops rig_memory;
static unsigned nheld, nunheld;

static void
look_at_signals(void)
{
	sigset_t set;

	pthread_sigmask(SIG_BLOCK, NULL, &set);
	if (sigismember(&set, SIGALRM))
		nheld++;
	else
		nunheld++;
}

static int
commit_and_look(void *ctx, void *addr, size_t len)
{
	look_at_signals();
	return rig_memory.commit(ctx, addr, len);
}

static void
decommit_and_look(void *ctx, void *addr, size_t len)
{
	look_at_signals();
	rig_memory.decommit(ctx, addr, len);
}

/* A handler that touched paged memory there would wait for a service, and that for the arena. */
Test(heap, no_handler_runs_while_metadata_is_had_or_given_back)
{
	struct rig *r = rig_up(&(struct rig_config){ .memory = 4 * MiB, .seed = 1 });
	struct up_heap *h;
	void *p[4000];

	rig_memory = r->memory;
	r->memory.commit = commit_and_look;
	r->memory.decommit = decommit_and_look;
	cr_assert(zero(u32, live(r)));
	/* Spans enough for several slabs, and all of them freed one by one. */
	cr_assert(zero(int, up_heap_create(r->rt, 64 * MiB, UP_NORESERVE, &h)));
	for (size_t i = 0; i < ARRAY_SIZE(p); i++)
		cr_assert(ne(ptr, p[i] = up_malloc(h, SMALL), NULL));
	for (size_t i = 0; i < ARRAY_SIZE(p); i++)
		cr_assert(zero(int, up_free(h, p[i])));
	up_heap_destroy(h);
	r->memory = rig_memory;
	cr_assert(gt(u32, nheld, 10));
	cr_assert(zero(u32, nunheld));
	rig_down(r);
}

Test(heap, whichever_allocation_of_metadata_fails_nothing_leaks_and_the_next_call_works)
{
	struct rig *r = rig_up(&(struct rig_config){ .memory = 4 * MiB, .seed = 1 });
	uint64_t max, promised, after;
	unsigned failed = 0, refused = 0;

	/* Commits of memory: of the struct, the tables, slabs. */
	resv_get(&r->p->resv_meta, &max, &promised);
	for (unsigned nth = 1;; nth++) {
		bool fired;

		zone_trim(&r->rt->heaps.spans);
		r->commit_failed = false;
		r->fail_commit = nth;
		refused += live(r);
		fired = r->commit_failed;
		r->fail_commit = 0;
		resv_get(&r->p->resv_meta, &max, &after);
		cr_assert(eq(u64, after, promised), "commit %u", nth);
		cr_assert(zero(sz, zone_count(&r->rt->heaps.spans)));
		if (!fired)
			break;
		failed++;
		cr_assert(lt(u32, nth, 200), "a sweep without end");
	}
	cr_assert(ge(u32, failed, 4));
	cr_assert(gt(u32, refused, 0));
	cr_assert(zero(u32, live(r)));

	/* Spans. */
	failed = 0;
	for (unsigned nth = 1;; nth++) {
		atomic_store(&r->rt->heaps.spans.fail_in, nth);
		cr_assert(le(u32, live(r), 1));
		if (atomic_exchange(&r->rt->heaps.spans.fail_in, 0) != 0)
			break;
		failed++;
		cr_assert(lt(u32, nth, 1000), "a sweep without end");
	}
	cr_assert(ge(u32, failed, 20));
	resv_get(&r->p->resv_meta, &max, &after);
	cr_assert(eq(u64, after, promised));
	rig_down(r);
}
