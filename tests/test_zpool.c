/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_zpool.c: the codecs (lib/swap/codec.c) and the pool (lib/swap/zpool.c), against pages that can be made again.
 */
#include "swap/zpool.h"

#include "assertions.h"
#include <errno.h>
#include <lz4.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <zstd.h>

#include "heap_arena.h"
#include "zpages.h"

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)

TestSuite(codec, .timeout = 60);
TestSuite(zpool, .timeout = 120);

static const enum up_compression codecs[] = { UP_COMPRESS_LZ4, UP_COMPRESS_ZSTD };

static struct heap_arena heap;
static struct zpool pool;
static struct codec_state *state;
static _Alignas(64) char page[PAGE_SIZE], back[PAGE_SIZE];

static struct codec_state *
new_state(enum up_compression kind)
{
	const size_t size = codec_state_size(kind, false);
	struct codec_state *st = codec_state_init(aligned_alloc(64, size), kind, false);

	cr_assert(st != NULL);
	return st;
}

static void
up(size_t budget, size_t max)
{
	heap_arena_init(&heap, budget, 0);
	cr_assert(zero(int, zpool_init(&pool, &heap.arena, max, 1 << 20)));
	state = new_state(UP_COMPRESS_LZ4);
}

static void
down(void)
{
	free(state);
	zpool_check(&pool);
	zpool_fini(&pool);
	heap_arena_fini(&heap);
}

static struct zpool_stats
stats(void)
{
	struct zpool_stats st;

	zpool_stats(&pool, &st);
	/* What it says it has is what is charged and what is there. */
	cr_assert(eq(sz, st.pool + arena_bytes(&heap.arena), atomic_load(&heap.budget.used)));
	cr_assert(eq(sz, heap.committed, atomic_load(&heap.budget.used)));
	cr_assert(le(sz, st.metadata, arena_bytes(&heap.arena)));
	return st;
}

/* What pages a test has in the pool. */
struct held {
	zref_t ref;
	enum zpage_kind kind;
	uint64_t seed;
};

static int
put(struct held *h, enum zpage_kind kind, uint64_t seed)
{
	h->kind = kind;
	h->seed = seed;
	h->ref = ZREF_NONE;
	zpage_fill(page, kind, seed);
	return zpool_store(&pool, state, page, seed, &h->ref);
}

static void
verify(const struct held *h)
{
	zpage_fill(page, h->kind, h->seed);
	memset(back, 0xee, sizeof back);
	cr_assert(zero(int, zpool_get(&pool, state, h->ref, back, ZPOOL_HIT)));
	cr_assert(zero(int, memcmp(page, back, PAGE_SIZE)), "kind %d, seed %llu", (int)h->kind,
		  (unsigned long long)h->seed);
	cr_assert(eq(u64, zpool_owner(&pool, h->ref), h->seed));
}

static void
drop(struct held *h)
{
	zpool_free(&pool, h->ref);
	h->ref = ZREF_NONE;
}

/* Of those that compress. */
static enum zpage_kind
some_kind(uint64_t *x)
{
	return (enum zpage_kind)(zpage_random(x) % ZPAGE_RANDOM);
}

/* --- codec --- */

Test(codec, every_page_comes_back_as_it_was_or_is_refused)
{
	for (unsigned c = 0; c < ARRAY_SIZE(codecs); c++) {
		struct codec_state *st = new_state(codecs[c]);

		for (uint64_t seed = 1; seed < 200; seed++) {
			for (unsigned kind = 0; kind < ZPAGE_KINDS; kind++) {
				size_t n;

				zpage_fill(page, kind, seed);
				n = codec_compress(st, page);
				cr_assert(eq(int, n == 0, kind == ZPAGE_RANDOM), "kind %u: %zu",
					  kind, n);
				if (n == 0)
					continue;
				cr_assert(le(sz, n, CODEC_MAX));
				memset(back, 0xee, sizeof back);
				cr_assert(zero(int,
					       codec_decompress(st, st->kind, st->buf, n, back)));
				cr_assert(zero(int, memcmp(page, back, PAGE_SIZE)));
			}
		}
		free(st);
	}
}

Test(codec, pages_of_every_compressibility_fit_or_are_refused_at_three_quarters)
{
	for (unsigned c = 0; c < ARRAY_SIZE(codecs); c++) {
		struct codec_state *st = new_state(codecs[c]);
		unsigned refused = 0;

		for (size_t random = 0; random <= PAGE_SIZE; random += 16) {
			size_t n;

			zpage_fill(page, ZPAGE_RANDOM, random + 1);
			memset(page + random, 0, PAGE_SIZE - random);
			n = codec_compress(st, page);
			/* The random part can not get shorter, and hardly anything is added. */
			if (random <= CODEC_MAX - 64 || random > CODEC_MAX)
				cr_assert(eq(int, n == 0, random > CODEC_MAX),
					  "%zu random bytes: %zu", random, n);
			refused += n == 0;
			if (n == 0)
				continue;
			cr_assert(ge(sz, n, random));
			cr_assert(zero(int, codec_decompress(st, st->kind, st->buf, n, back)));
			cr_assert(zero(int, memcmp(page, back, PAGE_SIZE)));
		}
		cr_assert(gt(uint, refused, 0));
		free(st);
	}
}

Test(codec, what_is_no_compressed_page_is_an_error)
{
	char *exact;

	for (unsigned c = 0; c < ARRAY_SIZE(codecs); c++) {
		struct codec_state *st = new_state(codecs[c]);
		unsigned caught = 0, tries = 0;
		uint64_t x = 77;

		zpage_fill(page, ZPAGE_TEXT, 3);
		cr_assert(eq(int, codec_decompress(st, st->kind, page, 0, back), -EBADMSG));
		cr_assert(eq(int, codec_decompress(st, st->kind, page, CODEC_MAX + 1, back),
			     -EBADMSG));
		for (uint64_t seed = 1; seed < 400; seed++) {
			const size_t n = (zpage_fill(page, seed % ZPAGE_RANDOM, seed),
					  codec_compress(st, page));
			size_t len = n;

			/* Of the length it has, so that AddressSanitizer sees who reads more; and shorter, longer, changed. */
			if (seed % 4 == 0)
				len = zpage_random(&x) % n + 1;
			else if (seed % 4 == 1)
				len = MIN(n + 1 + zpage_random(&x) % 64, CODEC_MAX);
			exact = calloc(1, len);
			memcpy(exact, st->buf, MIN(len, n));
			if (seed % 4 >= 2)
				for (unsigned i = 0; i < seed % 7 + 1; i++)
					exact[zpage_random(&x) % len] = (char)zpage_random(&x);
			/* A guard behind the page: nothing is written there. */
			char *to = malloc(PAGE_SIZE);

			tries++;
			caught += codec_decompress(st, st->kind, exact, len, to) == -EBADMSG;
			if (seed % 4 == 0 && len < n)
				cr_assert(eq(int, codec_decompress(st, st->kind, exact, len, to),
					     -EBADMSG));
			free(to);
			free(exact);
		}
		cr_assert(gt(uint, caught, tries / 3), "%u of %u", caught, tries);
		/* And it still works. */
		zpage_fill(page, ZPAGE_TEXT, 3);
		cr_assert(zero(int, codec_decompress(st, st->kind, st->buf,
						     codec_compress(st, page), back)));
		cr_assert(zero(int, memcmp(page, back, PAGE_SIZE)));
		free(st);
	}
}

Test(codec, a_page_of_another_length_is_an_error)
{
	/* 4,095 and 4,097 times 'x' as lz4 writes it: one literal, one match, five literals. */
	for (unsigned delta = 0; delta < 3; delta++) {
		unsigned char data[64] = { 0x1f, 'x', 1, 0 };
		size_t n = 4, left = PAGE_SIZE - 1 + delta - 1 - 5 - 19;
		struct codec_state *st = new_state(UP_COMPRESS_LZ4);

		for (; left >= 255; left -= 255)
			data[n++] = 255;
		data[n++] = (unsigned char)left;
		data[n++] = 0x50;
		memset(data + n, 'x', 5);
		n += 5;
		cr_assert(eq(int, codec_decompress(st, st->kind, data, n, back),
			     delta == 1 ? 0 : -EBADMSG),
			  "%u", delta);
		free(st);
	}
}

Test(codec, so_it_is_with_zstd)
{
	struct codec_state *st = new_state(UP_COMPRESS_ZSTD);
	size_t n;

	zpage_fill(page, ZPAGE_TEXT, 1);
	n = ZSTD_compress2(st->work, st->buf, sizeof st->buf, page, PAGE_SIZE / 2);
	cr_assert(not(ZSTD_isError(n)));
	cr_assert(eq(int, codec_decompress(st, st->kind, st->buf, n, back), -EBADMSG));
	n = codec_compress(st, page);
	cr_assert(zero(int, codec_decompress(st, st->kind, st->buf, n, back)));
	free(st);
}

Test(codec, what_another_one_wrote_is_read_if_it_was_told_so)
{
	struct codec_state *zstd = new_state(UP_COMPRESS_ZSTD), *lz4 = new_state(UP_COMPRESS_LZ4);
	struct codec_state *both =
		codec_state_init(aligned_alloc(64, codec_state_size(UP_COMPRESS_LZ4, true)),
				 UP_COMPRESS_LZ4, true);
	size_t n;

	cr_assert(both != NULL);
	zpage_fill(page, ZPAGE_TEXT, 1);
	n = codec_compress(zstd, page);
	cr_assert(zero(int, codec_decompress(both, UP_COMPRESS_ZSTD, zstd->buf, n, back)));
	cr_assert(zero(int, memcmp(page, back, PAGE_SIZE)));
	cr_assert(eq(int, codec_decompress(lz4, UP_COMPRESS_ZSTD, zstd->buf, n, back), -EBADMSG));
	cr_assert(eq(int, codec_decompress(both, UP_COMPRESS_NONE, zstd->buf, n, back), -EBADMSG));
	n = codec_compress(lz4, page);
	memset(back, 0, PAGE_SIZE);
	cr_assert(zero(int, codec_decompress(zstd, UP_COMPRESS_LZ4, lz4->buf, n, back)));
	cr_assert(zero(int, memcmp(page, back, PAGE_SIZE)));
	free(zstd);
	free(lz4);
	free(both);
}

Test(codec, more_than_the_pool_holds_is_an_error_though_it_is_a_page)
{
	struct codec_state *st = new_state(UP_COMPRESS_LZ4);
	static char data[2 * PAGE_SIZE];
	int n;

	zpage_fill(page, ZPAGE_RANDOM, 1);
	n = LZ4_compress_default(page, data, PAGE_SIZE, sizeof data);
	cr_assert(gt(int, n, CODEC_MAX));
	cr_assert(eq(int, codec_decompress(st, st->kind, data, (size_t)n, back), -EBADMSG));
	free(st);
}

Test(codec, a_page_of_one_word_is_seen_and_no_other)
{
	uint64_t word;

	for (uint64_t seed = 1; seed < 300; seed++) {
		uint64_t first;

		zpage_fill(page, ZPAGE_SAME, seed);
		memcpy(&first, page, sizeof first);
		cr_assert(codec_same(page, &word));
		cr_assert(eq(u64, word, first));
		memset(back, 0xee, sizeof back);
		codec_fill(back, word);
		cr_assert(zero(int, memcmp(page, back, PAGE_SIZE)));
		zpage_fill(page, ZPAGE_ALMOST, seed);
		cr_assert(not(codec_same(page, &word)));
	}
	for (size_t i = 0; i < PAGE_SIZE; i++) {
		memset(page, 0, sizeof page);
		page[i] = 1;
		cr_assert(not(codec_same(page, &word)), "byte %zu", i);
	}
	memset(page, 0, sizeof page);
	cr_assert(codec_same(page, &word));
	cr_assert(eq(u64, word, 0));
}

/* --- pool --- */

Test(zpool, pages_of_all_kinds_come_back)
{
	static struct held held[600];

	up(64 * MIB, 4 * MIB);
	for (unsigned c = 0; c < ARRAY_SIZE(codecs); c++) {
		free(state);
		state = new_state(codecs[c]);
		for (unsigned i = 0; i < ARRAY_SIZE(held); i++)
			cr_assert(eq(int, put(&held[i], i % ZPAGE_KINDS, i),
				     i % ZPAGE_KINDS == ZPAGE_RANDOM ? -E2BIG : 0));
		zpool_check(&pool);
		for (unsigned i = 0; i < ARRAY_SIZE(held); i++)
			if (held[i].ref != ZREF_NONE)
				verify(&held[i]);
		cr_assert(eq(sz, stats().entries, 500));
		cr_assert(eq(sz, stats().same, 100));
		cr_assert(eq(u64, stats().count.rejected, 100 * (c + 1)));
		for (unsigned i = 0; i < ARRAY_SIZE(held); i++)
			if (held[i].ref != ZREF_NONE)
				drop(&held[i]);
		zpool_check(&pool);
		cr_assert(eq(sz, stats().entries, 0));
		cr_assert(eq(sz, stats().bytes, 0));
	}
	down();
}

Test(zpool, pages_of_one_word_take_no_room)
{
	static struct held held[5000];

	up(64 * MIB, 0);
	for (unsigned i = 0; i < ARRAY_SIZE(held); i++)
		cr_assert(zero(int, put(&held[i], ZPAGE_SAME, i)));
	cr_assert(zero(sz, stats().pool));
	cr_assert(eq(sz, stats().same, ARRAY_SIZE(held)));
	cr_assert(le(sz, stats().metadata, 24 * ARRAY_SIZE(held) + PAGE_SIZE));
	for (unsigned i = 0; i < ARRAY_SIZE(held); i++) {
		verify(&held[i]);
		drop(&held[i]);
	}
	down();
}

Test(zpool, the_table_of_entries_ends_where_it_was_said_to)
{
	zref_t ref, last = ZREF_NONE;
	unsigned n = 0;

	heap_arena_init(&heap, 64 * MIB, 0);
	cr_assert(zero(int, zpool_init(&pool, &heap.arena, MIB, 1000)));
	state = new_state(UP_COMPRESS_LZ4);
	for (; zpool_put_same(&pool, n, n, &ref) == 0; n++)
		last = ref;
	cr_assert(eq(uint, n, 1000));
	cr_assert(eq(int, zpool_put(&pool, UP_COMPRESS_LZ4, page, 100, 1, &ref), -ENOSPC));
	zpool_free(&pool, last);
	cr_assert(zero(int, zpool_put(&pool, UP_COMPRESS_LZ4, page, 100, 1, &ref)));
	cr_assert(eq(u32, ref, last));
	down();
}

Test(zpool, full_it_refuses_and_goes_on_when_something_leaves)
{
	static struct held held[2000];
	unsigned n = 0, more = 0;

	up(64 * MIB, MIB);
	while (put(&held[n], ZPAGE_TEXT, n) == 0)
		cr_assert(lt(uint, ++n, ARRAY_SIZE(held)));
	cr_assert(le(sz, stats().pool, MIB));
	cr_assert(ge(sz, stats().bytes, MIB * 9 / 10), "%zu of %zu", stats().bytes, MIB);
	cr_assert(gt(u64, stats().count.refused, 0));
	cr_assert(gt(sz, zpool_excess(&pool, MIB), 0), "nobody would know that it is full");
	zpool_check(&pool);

	/* One here, one there: room for as many, less what may stay dead. */
	for (unsigned i = 0; i < n; i += 3)
		drop(&held[i]);
	zpool_check(&pool);
	for (unsigned i = 0; i < n; i += 3)
		more += put(&held[i], ZPAGE_TEXT, i) == 0;
	cr_assert(ge(uint, more, (n + 2) / 3 * 8 / 10), "%u of %u", more, n / 3);
	cr_assert(le(sz, stats().pool, MIB));
	for (unsigned i = 0; i < n; i++)
		if (held[i].ref != ZREF_NONE)
			verify(&held[i]);
	down();
}

Test(zpool, waste_of_what_is_put_is_a_tenth_at_most)
{
	static struct held held[4000];

	for (unsigned kind = 0; kind <= ZPAGE_KINDS; kind++) {
		struct zpool_stats st;
		uint64_t x = 5;

		if (kind == ZPAGE_RANDOM || kind == ZPAGE_SAME)
			continue;
		up(64 * MIB, 16 * MIB);
		for (unsigned i = 0; i < ARRAY_SIZE(held); i++)
			cr_assert(zero(int, put(&held[i],
						kind == ZPAGE_KINDS ? some_kind(&x) : kind, i)));
		st = stats();
		fprintf(stderr, "kind %u: %zu bytes a page, %.1f %% waste\n", kind,
			st.bytes / (st.entries - st.same), 100.0 * (st.pool - st.bytes) / st.pool);
		/* A page of one byte that is different is 40 bytes, of which the 8 are much. */
		if (kind != ZPAGE_ALMOST)
			cr_assert(le(sz, st.pool - st.bytes, st.pool / 10));
		down();
	}
}

/* The longest entries there are, of all lengths near that: what is lost at the end of segments. */
Test(zpool, waste_of_entries_of_any_length_is_a_tenth_at_most)
{
	static char data[CODEC_MAX];

	for (size_t len = CODEC_MAX; len > 200; len -= len / 37) {
		struct zpool_stats st;
		zref_t ref;

		up(64 * MIB, 4 * MIB);
		while (zpool_put(&pool, UP_COMPRESS_LZ4, data, len, 0, &ref) == 0)
			;
		st = stats();
		cr_assert(le(sz, st.pool - st.bytes, st.pool / 10), "%zu bytes: %.1f %%", len,
			  100.0 * (st.pool - st.bytes) / st.pool);
		down();
	}
}

Test(zpool, random_frees_leave_bounded_waste_and_shrink_the_rest)
{
	static struct held held[8000];
	struct zpool_stats st;
	size_t before, given;
	uint64_t x = 11;

	up(64 * MIB, 32 * MIB);
	for (unsigned i = 0; i < ARRAY_SIZE(held); i++)
		cr_assert(zero(int, put(&held[i], some_kind(&x), i)));
	before = stats().pool;
	for (unsigned i = 0; i < ARRAY_SIZE(held); i++)
		if (zpage_random(&x) % 10 != 0)
			drop(&held[i]);
	zpool_check(&pool);
	st = stats();
	cr_assert(lt(sz, st.pool, before / 5), "%zu of %zu left", st.pool, before);
	cr_assert(le(sz, st.dead, st.pool / ZPOOL_DEAD + ZSEG_SIZE));
	fprintf(stderr, "%zu KiB left of %zu for %zu KiB, %llu moved\n", st.pool / KIB,
		before / KIB, st.bytes / KIB, (unsigned long long)st.count.moved);

	given = zpool_shrink(&pool, SIZE_MAX);
	zpool_check(&pool);
	cr_assert(eq(sz, stats().pool, st.pool - given));
	cr_assert(le(sz, stats().pool - stats().bytes, stats().pool / 10 + 4 * PAGE_SIZE),
		  "%zu for %zu", stats().pool, stats().bytes);
	for (unsigned i = 0; i < ARRAY_SIZE(held); i++)
		if (held[i].ref != ZREF_NONE) {
			verify(&held[i]);
			drop(&held[i]);
		}
	zpool_shrink(&pool, SIZE_MAX);
	cr_assert(zero(sz, stats().pool));
	cr_assert(zero(sz, zpool_shrink(&pool, SIZE_MAX)));
	down();
}

Test(zpool, shrinks_by_what_is_asked)
{
	static struct held held[1000];
	size_t pool_was, given;

	up(64 * MIB, 4 * MIB);
	for (unsigned i = 0; i < ARRAY_SIZE(held); i++)
		cr_assert(zero(int, put(&held[i], ZPAGE_HALF, i)));
	/* Every ninth: not enough for cleaning on the way. */
	for (unsigned i = 0; i < ARRAY_SIZE(held); i += 9)
		drop(&held[i]);
	pool_was = stats().pool;
	given = zpool_shrink(&pool, PAGE_SIZE);
	cr_assert(ge(sz, given, PAGE_SIZE));
	cr_assert(le(sz, given, 2 * ZSEG_SIZE));
	cr_assert(eq(sz, stats().pool, pool_was - given));
	zpool_check(&pool);
	for (unsigned i = 0; i < ARRAY_SIZE(held); i++)
		if (held[i].ref != ZREF_NONE)
			verify(&held[i]);
	down();
}

Test(zpool, shrinking_gives_back_what_is_not_written_yet)
{
	struct held held;

	up(64 * MIB, 4 * MIB);
	cr_assert(zero(int, put(&held, ZPAGE_TEXT, 1)));
	cr_assert(eq(sz, stats().pool, ZPOOL_STEP * PAGE_SIZE));
	cr_assert(eq(sz, zpool_shrink(&pool, 1), (ZPOOL_STEP - 1) * PAGE_SIZE));
	verify(&held);
	zpool_check(&pool);
	cr_assert(eq(sz, stats().pool, PAGE_SIZE));
	cr_assert(zero(sz, zpool_shrink(&pool, SIZE_MAX)));
	down();
}

Test(zpool, one_page_that_goes_to_and_fro_costs_no_commit)
{
	unsigned long commits;
	struct held held;

	up(64 * MIB, 4 * MIB);
	cr_assert(zero(int, put(&held, ZPAGE_TEXT, 0)));
	commits = heap.ncommits;
	for (unsigned i = 1; i < 100; i++) {
		drop(&held);
		cr_assert(gt(sz, stats().pool, 0));
		cr_assert(zero(int, put(&held, ZPAGE_TEXT, i)));
	}
	cr_assert(eq(ulong, heap.ncommits, commits));
	down();
}

Test(zpool, leaving_in_order_of_arrival_moves_hardly_anything)
{
	static struct held held[1000];

	up(64 * MIB, 4 * MIB);
	for (unsigned i = 0; i < 20000; i++) {
		struct held *h = &held[i % ARRAY_SIZE(held)];

		if (i >= ARRAY_SIZE(held))
			drop(h);
		cr_assert(zero(int, put(h, ZPAGE_TEXT, i)));
	}
	cr_assert(lt(u64, stats().count.moved, 20000 / 20));
	cr_assert(le(sz, stats().pool - stats().bytes, stats().pool / 8));
	down();
}

/* A full pool whose pages leave in any order: what is dead, rounding and ends of segments together. */
Test(zpool, waste_of_a_pool_that_churns_is_a_fifteenth_at_most)
{
	static struct held held[4000];
	uint64_t x = 21;

	up(64 * MIB, 16 * MIB);
	for (unsigned i = 0; i < ARRAY_SIZE(held); i++)
		cr_assert(zero(int, put(&held[i], i % 3, i)));
	for (unsigned i = 0; i < 40000; i++) {
		const size_t k = zpage_random(&x) % ARRAY_SIZE(held);

		drop(&held[k]);
		cr_assert(zero(int, put(&held[k], i % 3, i)));
	}
	/* And the slack of one segment. */
	cr_assert(le(sz, stats().pool - stats().bytes, stats().pool / 15 + ZSEG_SIZE));
	cr_assert(lt(u64, stats().count.moved, 40000), "%llu moved",
		  (unsigned long long)stats().count.moved);
	fprintf(stderr, "churn: %.1f %% waste, %.1f moved a put\n",
		100.0 * (stats().pool - stats().bytes) / stats().pool,
		stats().count.moved / 40000.0);
	down();
}

Test(zpool, pages_that_compress_alike_fill_each_others_holes)
{
	static struct held held[1000];
	unsigned long commits;
	uint64_t x = 5;

	up(64 * MIB, 16 * MIB);
	memset(page, 'a', sizeof page);
	for (unsigned i = 0; i < ARRAY_SIZE(held); i++)
		cr_assert(
			zero(int, zpool_put(&pool, UP_COMPRESS_LZ4, page, 2000, i, &held[i].ref)));
	commits = heap.ncommits;
	for (unsigned i = 0; i < 10000; i++) {
		const size_t k = zpage_random(&x) % ARRAY_SIZE(held);

		zpool_free(&pool, held[k].ref);
		cr_assert(
			zero(int, zpool_put(&pool, UP_COMPRESS_LZ4, page, 2000, k, &held[k].ref)));
	}
	zpool_check(&pool);
	cr_assert(eq(ulong, heap.ncommits, commits));
	cr_assert(zero(u64, stats().count.moved));
	down();
}

Test(zpool, holes_side_by_side_hold_a_longer_entry)
{
	zref_t ref[8], longer;

	up(64 * MIB, 16 * MIB);
	memset(page, 'a', sizeof page);
	for (unsigned i = 0; i < ARRAY_SIZE(ref); i++)
		cr_assert(zero(int, zpool_put(&pool, UP_COMPRESS_LZ4, page, 1500, i, &ref[i])));
	/* The one behind goes first: they join. */
	zpool_free(&pool, ref[3]);
	zpool_check(&pool);
	zpool_free(&pool, ref[2]);
	zpool_check(&pool);
	cr_assert(zero(int, zpool_put(&pool, UP_COMPRESS_LZ4, page, 3000, 8, &longer)));
	zpool_check(&pool);
	cr_assert(lt(sz, stats().dead, 16));
	down();
}

Test(zpool, the_shortest_hole_that_is_long_enough_is_filled_and_its_rest_is_one)
{
	static const size_t len[] = { 1000, 100, 400, 100, 700, 100 };
	zref_t ref[ARRAY_SIZE(len)], a, b;

	up(64 * MIB, 16 * MIB);
	memset(page, 'a', sizeof page);
	for (unsigned i = 0; i < ARRAY_SIZE(len); i++)
		cr_assert(zero(int, zpool_put(&pool, UP_COMPRESS_LZ4, page, len[i], i, &ref[i])));
	zpool_free(&pool, ref[0]);
	zpool_free(&pool, ref[2]);
	zpool_free(&pool, ref[4]);
	cr_assert(zero(int, zpool_put(&pool, UP_COMPRESS_LZ4, page, 600, 6, &a)));
	zpool_check(&pool);
	/* 1000 and 400 are still there, and what is left of 700. */
	cr_assert(zero(int, zpool_put(&pool, UP_COMPRESS_LZ4, page, 1000, 7, &b)));
	cr_assert(zero(int, zpool_put(&pool, UP_COMPRESS_LZ4, page, 400, 8, &b)));
	cr_assert(zero(int, zpool_put(&pool, UP_COMPRESS_LZ4, page, 90, 9, &b)));
	zpool_check(&pool);
	cr_assert(lt(sz, stats().dead, 32));
	down();
}

/* Random puts, gets, frees, limits and shrinks, against what must be there. */
static void
run_oracle(uint64_t x, size_t budget, unsigned steps)
{
	static struct held held[3000];
	unsigned fullness = 50;
	size_t limit = 3 * MIB;

	for (unsigned i = 0; i < ARRAY_SIZE(held); i++)
		held[i].ref = ZREF_NONE;
	up(budget, limit);
	for (unsigned step = 0; step < steps; step++) {
		struct held *h = &held[zpage_random(&x) % ARRAY_SIZE(held)];
		const unsigned dice = zpage_random(&x) % 1000;

		if (step % 4096 == 0) {
			zpool_check(&pool);
			(void)stats();
			fullness = 20 + zpage_random(&x) % 80;
		}
		if (dice < 2) {
			limit = zpage_random(&x) % (4 * MIB);
			zpool_set_limit(&pool, limit);
			limit = MIN(limit, 3 * MIB);
		} else if (dice < 4) {
			zpool_shrink(&pool, zpage_random(&x) % (256 * KIB));
		} else if (h->ref == ZREF_NONE) {
			const size_t had = pool.pool;
			enum zpage_kind kind;
			int r;

			if (zpage_random(&x) % 100 >= fullness)
				continue;
			kind = some_kind(&x);
			r = put(h, kind, zpage_random(&x));
			cr_assert(r == 0 || r == -ENOSPC);
			cr_assert(le(sz, pool.pool, MAX(limit, had)));
			if (r == -ENOSPC)
				cr_assert(h->ref == ZREF_NONE);
		} else if (zpage_random(&x) % 100 >= fullness || dice < 500) {
			if (zpage_random(&x) % 4 == 0)
				verify(h);
			drop(h);
			cr_assert(le(sz, pool.dead, pool.pool / ZPOOL_DEAD + 2 * ZSEG_SIZE),
				  "step %u", step);
		}
		cr_assert(le(sz, atomic_load(&heap.budget.used), budget));
	}
	zpool_check(&pool);
	for (unsigned i = 0; i < ARRAY_SIZE(held); i++)
		if (held[i].ref != ZREF_NONE)
			verify(&held[i]);
	fprintf(stderr, "stored %llu same %llu refused %llu moved %llu, dead %zu of %zu\n",
		(unsigned long long)pool.count.stored, (unsigned long long)pool.count.same,
		(unsigned long long)pool.count.refused, (unsigned long long)pool.count.moved,
		pool.dead, pool.pool);
	down();
}

Test(zpool, random_operations_agree_with_the_oracle)
{
	run_oracle(1, 64 * MIB, 150000);
	run_oracle(2, 64 * MIB, 150000);
}

Test(zpool, so_they_do_when_the_budget_is_short)
{
	run_oracle(3, MIB, 150000);
	run_oracle(4, 100 * KIB, 50000);
}

/* --- order and claims --- */

struct claims {
	zref_t ref[64];
	uint64_t owner[64];
	unsigned n;
	uint64_t refuse; /* owners of this remainder by 3; 3: none */
};

static bool
claim(void *ctx, zref_t ref, uint64_t owner)
{
	struct claims *c = ctx;

	if (owner % 3 == c->refuse)
		return false;
	c->ref[c->n] = ref;
	c->owner[c->n++] = owner;
	return true;
}

Test(zpool, the_oldest_is_offered_first_and_then_is_the_youngest)
{
	struct claims c = { .refuse = 3 };
	struct held held[10];

	up(64 * MIB, MIB);
	for (unsigned i = 0; i < 10; i++)
		cr_assert(zero(int, put(&held[i], i == 4 ? ZPAGE_SAME : ZPAGE_TEXT, i)));
	cr_assert(eq(sz, zpool_oldest(&pool, 3, 64, claim, &c), 3));
	drop(&held[5]);
	zpool_check(&pool);
	cr_assert(eq(sz, zpool_oldest(&pool, 64, 64, claim, &c), 8));
	const uint64_t order[] = { 0, 1, 2, 3, 6, 7, 8, 9, 0, 1, 2 };
	for (unsigned i = 0; i < c.n; i++) {
		cr_assert(eq(u64, c.owner[i], order[i]), "place %u", i);
		cr_assert(eq(u32, c.ref[i], held[order[i]].ref));
		cr_assert(eq(u64, zpool_owner(&pool, c.ref[i]), order[i]));
	}
	down();
}

Test(zpool, what_can_not_be_claimed_does_not_stand_in_the_way)
{
	struct claims c = { .refuse = 0 };
	struct held held[12];

	up(64 * MIB, MIB);
	for (unsigned i = 0; i < 12; i++)
		cr_assert(zero(int, put(&held[i], ZPAGE_TEXT, i)));
	cr_assert(eq(sz, zpool_oldest(&pool, 4, 64, claim, &c), 4));
	cr_assert(eq(u64, c.owner[0], 1));
	cr_assert(eq(u64, c.owner[3], 5));
	/* It ends: by how many it looks at, and when it has seen all. */
	c.n = 0;
	cr_assert(eq(sz, zpool_oldest(&pool, 4, 2, claim, &c), 1));
	c.n = 0;
	cr_assert(eq(sz, zpool_oldest(&pool, 64, 64, claim, &c), 8));
	cr_assert(eq(u64, stats().count.claimed, 13));
	down();
}

Test(zpool, hits_of_the_oldest_quarter_are_counted_apart)
{
	static struct held held[100];
	uint64_t old = 0;

	up(64 * MIB, MIB);
	for (unsigned i = 0; i < 100; i++)
		cr_assert(zero(int, put(&held[i], ZPAGE_ALMOST, i)));
	for (unsigned i = 0; i < 100; i++) {
		verify(&held[i]);
		old += i < 25;
		cr_assert(eq(u64, stats().count.hits_old, old), "entry %u", i);
	}
	cr_assert(eq(u64, stats().count.hits, 100));
	cr_assert(zero(int, zpool_get(&pool, state, held[0].ref, back, ZPOOL_WRITE_BACK)));
	cr_assert(eq(u64, stats().count.hits, 100));
	/* Of what is left the oldest quarter is another one. */
	for (unsigned i = 0; i < 60; i++)
		drop(&held[i]);
	zpool_check(&pool);
	verify(&held[69]);
	cr_assert(eq(u64, stats().count.hits_old, 26));
	verify(&held[70]);
	cr_assert(eq(u64, stats().count.hits_old, 26));
	down();
}

/* --- what can go wrong --- */

Test(zpool, damaged_bytes_are_an_error_and_no_more)
{
	static struct held held[200];
	unsigned caught = 0;
	uint64_t x = 9;

	for (unsigned c = 0; c < ARRAY_SIZE(codecs); c++) {
		up(64 * MIB, MIB);
		free(state);
		state = new_state(codecs[c]);
		for (unsigned i = 0; i < 200; i++) {
			zref_t ref;
			size_t n;

			zpage_fill(page, ZPAGE_TEXT, i);
			n = codec_compress(state, page);
			for (unsigned k = 0; k < 20; k++)
				state->buf[zpage_random(&x) % n] = (char)zpage_random(&x);
			cr_assert(zero(int, zpool_put(&pool, state->kind, state->buf, n, i, &ref)));
			held[i].ref = ref;
		}
		for (unsigned i = 0; i < 200; i++) {
			const int r = zpool_get(&pool, state, held[i].ref, back, ZPOOL_HIT);

			cr_assert(r == 0 || r == -EBADMSG);
			caught += r != 0;
			zpool_free(&pool, held[i].ref);
		}
		cr_assert(gt(uint, caught, 100 * (c + 1)));
		down();
	}
}

/* Fail the 1st, 2nd, 3rd... commit in turn, until there is none left to fail. */
Test(zpool, a_put_that_gets_no_memory_changes_nothing_whichever_it_is)
{
	for (unsigned nth = 1, fired = 1; fired; nth++) {
		static struct held held[300];
		unsigned refused = 0;

		up(64 * MIB, MIB);
		heap_arena_fail_commit(&heap, nth);
		for (unsigned i = 0; i < ARRAY_SIZE(held); i++) {
			int r = put(&held[i], ZPAGE_TEXT, i);

			if (r != 0) {
				cr_assert(eq(int, r, -ENOSPC));
				refused++;
				zpool_check(&pool);
				(void)stats();
				cr_assert(zero(int, put(&held[i], ZPAGE_TEXT, i)),
					  "call %u: did not heal", nth);
			}
		}
		fired = heap_arena_disarm(&heap);
		cr_assert(eq(uint, refused, fired));
		for (unsigned i = 0; i < ARRAY_SIZE(held); i++)
			verify(&held[i]);
		down();
	}
}

/* Every amount of memory that it may have, from none. */
Test(zpool, in_any_budget_it_takes_what_there_is_and_no_more)
{
	size_t last = 0;

	for (size_t budget = 0; budget < 64 * PAGE_SIZE; budget += PAGE_SIZE) {
		static struct held held[1000];
		unsigned n = 0;

		up(budget, MIB);
		while (put(&held[n], ZPAGE_TEXT, n) == 0)
			n++;
		zpool_check(&pool);
		cr_assert(le(sz, atomic_load(&heap.budget.used), budget));
		/* The table, the segments, their bitmap; and it leaves no page over. */
		if (budget > 8 * PAGE_SIZE)
			cr_assert(ge(sz, stats().bytes, (budget - 4 * PAGE_SIZE) * 85 / 100),
				  "budget %zu: %zu", budget, stats().bytes);
		cr_assert(ge(uint, n, last));
		last = n;
		for (unsigned i = 0; i < n; i++)
			verify(&held[i]);
		down();
	}
}

Test(zpool, a_lower_limit_stops_puts_until_enough_has_left)
{
	static struct held held[1000];
	unsigned i = 0;

	up(64 * MIB, 4 * MIB);
	for (i = 0; i < 1000; i++)
		cr_assert(zero(int, put(&held[i], ZPAGE_HALF, i)));
	cr_assert(zero(sz, zpool_excess(&pool, 4 * MIB)));
	zpool_set_limit(&pool, MIB);
	cr_assert(gt(sz, zpool_excess(&pool, MIB), MIB));
	for (i = 0; zpool_excess(&pool, MIB) > 0; i++)
		drop(&held[i]);
	cr_assert(lt(uint, i, 600), "%u had to leave", i);
	zpool_shrink(&pool, SIZE_MAX);
	cr_assert(le(sz, stats().pool, MIB));
	cr_assert(zero(int, put(&held[0], ZPAGE_HALF, 0)));
	verify(&held[999]);
	/* And up again, but not beyond what was reserved. */
	zpool_set_limit(&pool, SIZE_MAX);
	cr_assert(eq(sz, stats().limit, 4 * MIB));
	down();
}

Test(zpool, can_not_be_had_with_more_entries_than_there_are_numbers)
{
	heap_arena_init(&heap, MIB, 0);
	cr_assert(eq(int, zpool_init(&pool, &heap.arena, MIB, (size_t)UINT32_MAX + 1), -ENOMEM));
	cr_assert(eq(int, zpool_init(&pool, &heap.arena, SIZE_MAX / 2, 1), -ENOMEM));
	heap_arena_fini(&heap);
}

Test(zpool, freeing_twice_is_a_broken_invariant, .signal = SIGABRT)
{
	struct held h;

	up(64 * MIB, MIB);
	cr_assert(zero(int, put(&h, ZPAGE_TEXT, 1)));
	zpool_free(&pool, h.ref);
	zpool_free(&pool, h.ref);
}

Test(zpool, has_no_more_entries_than_it_is_told_or_than_it_had)
{
	struct held h[1000];
	unsigned n;

	up(64 * MIB, MIB);
	cr_assert(eq(sz, zpool_set_entries(&pool, 200), 200));
	for (n = 0; n < 1000 && put(&h[n], ZPAGE_SAME, n) == 0; n++)
		;
	cr_assert(eq(uint, n, 200));
	/* The table does not shrink. */
	cr_assert(eq(sz, zpool_set_entries(&pool, 100), 200));
	drop(&h[--n]);
	cr_assert(zero(int, put(&h[n], ZPAGE_SAME, n)));
	cr_assert(eq(int, put(&h[n + 1], ZPAGE_SAME, n), -ENOSPC));
	cr_assert(eq(sz, zpool_set_entries(&pool, 300), 300));
	while (++n < 1000 && put(&h[n], ZPAGE_SAME, n) == 0)
		;
	cr_assert(eq(uint, n, 300));
	cr_assert(eq(sz, zpool_set_entries(&pool, SIZE_MAX), 1 << 20));
	down();
}

/* --- a pool whose process is no more --- */

static void *segments;
static struct zpool before; /* that was */
static struct zslide slide;
static struct zpool_past past;

static void
past_up(void)
{
	heap_arena_init(&heap, 64 * MIB, 0);
	segments = heap.arena.ops->reserve(heap.arena.ctx, MIB);
	cr_assert(zero(int, zpool_init_at(&pool, &heap.arena, segments, &slide, MIB, 1000)));
	state = codec_state_init(aligned_alloc(64, codec_state_size(UP_COMPRESS_LZ4, true)),
				 UP_COMPRESS_LZ4, true);
}

/* From here on `pool` is the next one, which knows the table only. */
static void
crash(void)
{
	before = pool;
	budget_uncharge(&heap.budget, before.pool);
	past = (struct zpool_past){ .entries = before.entries.base,
				    .n = before.nentries,
				    .slide = slide };
	cr_assert(zero(int, zpool_init_at(&pool, &heap.arena, segments, &slide, MIB, 1000)));
	past.units = calloc(1, zpool_past_units(&pool));
	for (size_t i = 0; i < before.segs.n; i++) {
		/* npages, in a struct zseg */
		const unsigned npages = ((const uint8_t *)before.segs.base)[i * 16 + 12];

		cr_assert(npages == 0 || zpool_recall(&pool, i, npages) == 0);
	}
}

static void
past_down(void)
{
	free(past.units);
	free(state);
	zpool_check(&pool);
	zpool_fini(&pool);
	before.segs.n = 0;
	before.pool = 0;
	zpool_fini(&before);
	heap.arena.ops->release(heap.arena.ctx, segments, MIB);
	heap_arena_fini(&heap);
}

Test(zpool, a_successor_has_what_it_claims_and_the_rest_is_free)
{
	static struct held h[400];
	unsigned n = 0;
	uint64_t x = 7;

	past_up();
	while (n < 400 && put(&h[n], some_kind(&x), n) == 0)
		n++;
	for (unsigned i = 0; i < n; i += 5)
		drop(&h[i]);
	crash();
	for (unsigned i = 0; i < n; i++) {
		if (h[i].ref == ZREF_NONE || i % 2 == 0)
			continue;
		cr_assert(eq(u32, zpool_past_find(&past, h[i].ref, i, false), h[i].ref));
		cr_assert(zero(int, zpool_claim(&pool, &past, h[i].ref, i, &h[i].ref)));
		verify(&h[i]);
	}
	zpool_settle(&pool, &past);
	zpool_check(&pool);
	for (unsigned i = 1; i < n; i += 2)
		if (h[i].ref != ZREF_NONE)
			verify(&h[i]);
	cr_assert(lt(sz, stats().dead, stats().pool));
	/* It is a pool like others. */
	for (unsigned i = 0; i < n; i++)
		if (h[i].ref == ZREF_NONE || i % 2 == 0)
			cr_assert(zero(int, put(&h[i], some_kind(&x), i)));
	for (unsigned i = 0; i < n; i++)
		verify(&h[i]);
	while (n-- > 0)
		drop(&h[n]);
	zpool_shrink(&pool, SIZE_MAX);
	cr_assert(eq(sz, stats().pool, 0));
	past_down();
}

Test(zpool, an_entry_is_found_by_whose_it_was)
{
	struct held a, b;

	past_up();
	cr_assert(zero(int, put(&a, ZPAGE_TEXT, 11)));
	cr_assert(zero(int, put(&b, ZPAGE_SAME, 12)));
	crash();
	cr_assert(eq(u32, zpool_past_find(&past, a.ref, 11, false), a.ref));
	cr_assert(eq(u32, zpool_past_find(&past, a.ref, 12, false), ZREF_NONE));
	cr_assert(eq(u32, zpool_past_find(&past, a.ref, 12, true), b.ref));
	cr_assert(eq(u32, zpool_past_find(&past, 12345, 11, true), a.ref));
	cr_assert(eq(u32, zpool_past_find(&past, a.ref, 13, true), ZREF_NONE));
	/* Once. */
	cr_assert(zero(int, zpool_claim(&pool, &past, a.ref, 21, &b.ref)));
	cr_assert(eq(u64, zpool_owner(&pool, b.ref), 21));
	cr_assert(eq(int, zpool_claim(&pool, &past, a.ref, 22, &b.ref), -EINVAL));
	zpool_settle(&pool, &past);
	past_down();
}

Test(zpool, what_was_being_slid_is_whole_again)
{
	struct held a;
	char *obj;

	past_up();
	cr_assert(zero(int, put(&a, ZPAGE_TEXT, 11)));
	/* The only one lies at the front. */
	obj = segments;
	memcpy(slide.obj, obj, sizeof slide.obj);
	slide.ref = a.ref;
	memset(obj + 4, 0x55, 100);
	crash();
	cr_assert(eq(u32, slide.ref, ZREF_NONE));
	cr_assert(zero(int, zpool_claim(&pool, &past, a.ref, 11, &a.ref)));
	verify(&a);
	zpool_settle(&pool, &past);
	past_down();
}

Test(zpool, a_table_of_anything_does_no_harm)
{
	static struct held h[400];
	uint64_t x = 5;

	for (unsigned round = 0; round < 60; round++) {
		unsigned char *table;
		unsigned n = 0, claimed = 0;

		past_up();
		while (n < 400 && put(&h[n], some_kind(&x), n) == 0)
			n++;
		crash();
		table = malloc(past.n * ZENTRY_BYTES);
		memcpy(table, past.entries, past.n * ZENTRY_BYTES);
		for (unsigned i = 0; i < 1u << round % 12; i++)
			table[zpage_random(&x) % (past.n * ZENTRY_BYTES)] ^=
				(unsigned char)(1u << zpage_random(&x) % 8);
		past.entries = table;
		if (round % 3 == 0) {
			past.slide.ref = (zref_t)(zpage_random(&x) % past.n);
			memset(past.slide.obj, 0x77, sizeof past.slide.obj);
		}
		for (unsigned i = 0; i < n; i++) {
			const zref_t ref = zpool_past_find(&past, h[i].ref, i, true);

			if (ref == ZREF_NONE || zpool_claim(&pool, &past, ref, i, &h[i].ref) < 0)
				continue;
			claimed++;
			(void)zpool_get(&pool, state, h[i].ref, back, ZPOOL_HIT);
		}
		cr_assert(gt(uint, claimed, 0));
		zpool_settle(&pool, &past);
		free(table);
		past_down();
	}
}
