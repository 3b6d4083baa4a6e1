/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * patterns.c: the pages' contents, and four ways to go over them.
 *
 * A page is 4096 bytes cut out of a pool of random bytes at a place that depends on the page,
 * under a first word that no other page has: incompressible, never equal to another page, and
 * made by one memcpy(), so that the memory is measured and not a random number generator.
 *
 * fill, then sequential read, then random read, then random write, on the same pages, so that
 * each starts with what the one before left in memory:
 *
 *	fill          from nothing; most of it must leave again on the way
 *	seq_read      finds the last pages of the fill in memory, all dirty
 *	rand_read     finds clean pages
 *	rand_write    the pages just read are written first, outside the clock, or the first
 *	              memory-full of evictions would cost nothing and a short run be one of reads
 */
#include <string.h>

#include "bench.h"

#define FULL_CHECK 64 /* of so many pages one is compared in full, the rest by first word */
#define FINAL_SAMPLE 1024

const char *const pattern_name[PATTERNS] = { "fill", "seq_read", "rand_read", "rand_write" };

void
pool_init(void)
{
	uint64_t w;

	for (size_t i = 0; i < POOL_SIZE; i += sizeof w) {
		w = mix64(i);
		memcpy(bench.pool + i, &w, sizeof w);
	}
}

uint64_t
page_word(size_t page, uint32_t generation)
{
	return mix64(mix64((uint64_t)page << 24 ^ generation) + bench.round);
}

static const unsigned char *
page_body(size_t page)
{
	return bench.pool + page_word(page, 0) % ((POOL_SIZE - PAGE) / 8) * 8;
}

void
page_write(unsigned char *p, size_t page)
{
	uint64_t w = page_word(page, 0);

	memcpy(p + sizeof w, page_body(page), PAGE - sizeof w);
	memcpy(p, &w, sizeof w);
}

void
page_rewrite(unsigned char *base, size_t page)
{
	*(volatile uint64_t *)(void *)(base + page * PAGE) =
		page_word(page, ++bench.generation[page]);
}

void
page_check_word(uint64_t word, size_t page)
{
	if (word != page_word(page, bench.generation[page]))
		job_fail("WRONG DATA: page %zu has %#llx instead of %#llx", page,
			 (unsigned long long)word,
			 (unsigned long long)page_word(page, bench.generation[page]));
}

void
page_check_all(const unsigned char *p, size_t page)
{
	uint64_t w;

	memcpy(&w, p, sizeof w);
	page_check_word(w, page);
	if (memcmp(p + sizeof w, page_body(page), PAGE - sizeof w) != 0)
		job_fail("WRONG DATA: page %zu differs behind its first word", page);
}

static uint64_t
load_word(const unsigned char *base, size_t page)
{
	return *(const volatile uint64_t *)(const void *)(base + page * PAGE);
}

static double
us_each(uint64_t since, size_t n)
{
	return (double)(bench_now() - since) / 1e3 / (double)n;
}

static void
fill(const char *who, unsigned char *base, const struct pattern_ops *ops, void *ctx)
{
	uint64_t t;

	ops->advise(ctx, FILL);
	t = bench_now();
	for (size_t i = 0; i < bench.pages; i++)
		page_write(base + i * PAGE, i);
	if (ops->sync != NULL)
		ops->sync(ctx);
	job_value("us/page", us_each(t, bench.pages), "%s.fill", who);
}

static void
seq_read(const char *who, unsigned char *base, const struct pattern_ops *ops, void *ctx)
{
	uint64_t t;

	ops->advise(ctx, SEQ_READ);
	t = bench_now();
	for (size_t i = 0; i < bench.pages; i++) {
		page_check_word(load_word(base, i), i);
		if (i % FULL_CHECK == 0)
			page_check_all(base + i * PAGE, i);
	}
	job_value("us/page", us_each(t, bench.pages), "%s.seq_read", who);
}

static void
rand_read(const char *who, unsigned char *base, const struct pattern_ops *ops, void *ctx)
{
	uint64_t rng = bench.round, start, t, w;
	char prefix[48];
	size_t page;

	ops->advise(ctx, RAND_READ);
	start = bench_now();
	for (size_t i = 0; i < bench.rand_ops; i++) {
		page = rng_below(&rng, bench.pages);
		t = bench_now();
		w = load_word(base, page);
		bench.ns[i] = (uint32_t)(bench_now() - t);
		page_check_word(w, page);
		if (i % FULL_CHECK == 0)
			page_check_all(base + page * PAGE, page);
	}
	job_value("us/page", us_each(start, bench.rand_ops), "%s.rand_read", who);
	snprintf(prefix, sizeof prefix, "%s.rand_read", who);
	job_quantiles(prefix, bench.rand_ops);
}

/*
 * One word is stored, without a look before: a load would make two faults of it for some.  Half as
 * many as reads, since all that matters is in memory and dirty already.
 */
static void
rand_write(const char *who, unsigned char *base, const struct pattern_ops *ops, void *ctx)
{
	const size_t n = bench.rand_ops / 2;
	uint64_t rng, start, t;
	char prefix[48];
	size_t page;

	ops->advise(ctx, RAND_WRITE);
	rng = bench.round; /* the sequence of rand_read */
	for (size_t i = 0; i < bench.rand_ops; i++)
		page_rewrite(base, rng_below(&rng, bench.pages));

	rng = mix64(bench.round + 1);
	start = bench_now();
	for (size_t i = 0; i < n; i++) {
		page = rng_below(&rng, bench.pages);
		t = bench_now();
		page_rewrite(base, page);
		bench.ns[i] = (uint32_t)(bench_now() - t);
	}
	if (ops->sync != NULL)
		ops->sync(ctx);
	job_value("us/page", us_each(start, n), "%s.rand_write", who);
	snprintf(prefix, sizeof prefix, "%s.rand_write", who);
	job_quantiles(prefix, n);

	for (unsigned i = 0; i < FINAL_SAMPLE; i++) {
		page = rng_below(&rng, bench.pages);
		page_check_all(base + page * PAGE, page);
	}
}

void
patterns_run(const char *who, unsigned char *base, const struct pattern_ops *ops, void *ctx)
{
	fill(who, base, ops, ctx);
	seq_read(who, base, ops, ctx);
	rand_read(who, base, ops, ctx);
	rand_write(who, base, ops, ctx);
}
