/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fitmap.c: address-ordered first fit over a bitmap; see fitmap.h.
 *
 * A search walks the free runs from the hint on: the next set bit, the next clear one after it.
 * 64 items are one step where a word is all of one kind, so a heap of 64 GiB is walked end to
 * end in 0.2 ms, and that only when a long run is wanted of a map full of short ones.
 */
#include "base/fitmap.h"

#include <errno.h>
#include <string.h>

#define WORD_BITS 64

/* Bits [at, at + n) of a word. */
static uint64_t
mask_of(size_t at, size_t n)
{
	return (n >= WORD_BITS ? ~(uint64_t)0 : ((uint64_t)1 << n) - 1) << at;
}

/* The first item at or after `from` and before `end` whose bit is `free`; `end` if there is none. */
static size_t
next_that_is(const struct fitmap *m, bool free, size_t from, size_t end)
{
	const uint64_t *words = m->words.base;
	const uint64_t flip = free ? 0 : ~(uint64_t)0;
	uint64_t keep = ~(uint64_t)0 << from % WORD_BITS;

	for (size_t w = from / WORD_BITS; w * WORD_BITS < end; w++) {
		const uint64_t x = (words[w] ^ flip) & keep;

		if (x != 0)
			return MIN(w * WORD_BITS + (size_t)__builtin_ctzll(x), end);
		keep = ~(uint64_t)0;
	}
	return end;
}

/* The start of the free run that ends before `end`; `end` if the item before it is taken. */
static size_t
run_start(const struct fitmap *m, size_t end)
{
	const uint64_t *words = m->words.base;

	while (end > 0) {
		const size_t w = (end - 1) / WORD_BITS, n = end - w * WORD_BITS;
		const uint64_t taken = ~words[w] & mask_of(0, n);

		if (taken != 0)
			return w * WORD_BITS + WORD_BITS - (size_t)__builtin_clzll(taken);
		end = w * WORD_BITS;
	}
	return 0;
}

/* The largest i with 2^i <= n. */
static unsigned
size_index(size_t n)
{
	return 63u - (unsigned)__builtin_clzll((unsigned long long)n);
}

static void
set_bits(struct fitmap *m, size_t first, size_t n, bool free)
{
	uint64_t *words = m->words.base;

	while (n > 0) {
		const size_t w = first / WORD_BITS, at = first % WORD_BITS;
		const size_t len = MIN(n, WORD_BITS - at);
		const uint64_t mask = mask_of(at, len);

		assert((words[w] & mask) == (free ? 0 : mask));
		(void)free;
		words[w] ^= mask;
		first += len;
		n -= len;
	}
}

int
fitmap_init(struct fitmap *m, struct arena *arena, size_t max)
{
	assert(max <= (size_t)1 << (FITMAP_SIZES - 1));
	memset(m, 0, sizeof *m);
	m->max = max;
	return wired_array_init(&m->words, arena, sizeof(uint64_t),
				round_up(max, WORD_BITS) / WORD_BITS);
}

void
fitmap_fini(struct fitmap *m)
{
	wired_array_fini(&m->words);
	m->max = m->top = m->nfree = 0;
}

bool
fitmap_find(struct fitmap *m, size_t n, size_t align, size_t skew, size_t *first)
{
	size_t start, end, at;

	assert(n > 0 && align > 0 && (align & (align - 1)) == 0);
	if (n > m->max)
		return false;
	end = MIN(m->from[size_index(n)], m->top);
	do {
		start = next_that_is(m, true, end, m->top);
		end = next_that_is(m, false, start, m->top);
		at = start + (-(start + skew) & (align - 1));
		/* The run that touches top goes on beyond it. */
	} while (end < m->top && at + n > end);
	if (at > m->max || n > m->max - at)
		return false;
	/* Whatever starts before is shorter than n. */
	if (align == 1)
		for (unsigned i = size_index(2 * n - 1); i < FITMAP_SIZES; i++)
			m->from[i] = MAX(m->from[i], at);
	*first = at;
	return true;
}

size_t
fitmap_room(const struct fitmap *m, size_t first)
{
	size_t end = first;

	if (first < m->top)
		end = next_that_is(m, false, first, m->top);
	return (end < m->top ? end : m->max) - first;
}

size_t
fitmap_bytes(size_t end)
{
	return round_up(round_up(end, WORD_BITS) / 8, PAGE_SIZE);
}

int
fitmap_reach(struct fitmap *m, size_t end)
{
	return wired_array_grow(&m->words, round_up(end, WORD_BITS) / WORD_BITS);
}

void
fitmap_take(struct fitmap *m, size_t first, size_t n)
{
	const size_t end = first + n;

	assert(n > 0 && end <= m->max && round_up(end, WORD_BITS) / WORD_BITS <= m->words.n);
	if (end > m->top) {
		/* Bits of their own for [top, end), free like all beyond. */
		set_bits(m, m->top, end - m->top, true);
		m->nfree += end - m->top;
		m->top = end;
	}
	set_bits(m, first, n, false);
	m->nfree -= n;
}

void
fitmap_give(struct fitmap *m, size_t first, size_t n)
{
	size_t start, end;

	assert(n > 0 && first + n <= m->top);
	set_bits(m, first, n, true);
	m->nfree += n;
	start = run_start(m, first);
	end = next_that_is(m, false, first, m->top);
	if (end == m->top)
		end = m->max;
	for (unsigned i = 0; i <= size_index(end - start); i++)
		m->from[i] = MIN(m->from[i], start);
}

bool
fitmap_is_free(const struct fitmap *m, size_t i)
{
	const uint64_t *words = m->words.base;

	assert(i < m->max);
	return i >= m->top || (words[i / WORD_BITS] >> i % WORD_BITS & 1) != 0;
}

void
fitmap_check(const struct fitmap *m)
{
#ifndef NDEBUG
	const uint64_t *words = m->words.base;
	size_t nfree = 0, start, end = 0;

	assert(m->top <= m->max && round_up(m->top, WORD_BITS) / WORD_BITS <= m->words.n);
	for (size_t w = 0; w < m->words.n; w++)
		nfree += (size_t)__builtin_popcountll(words[w]);
	assert(nfree == m->nfree);
	for (;;) {
		start = next_that_is(m, true, end, m->top);
		if (start == m->top)
			break;
		end = next_that_is(m, false, start, m->top);
		for (unsigned i = 0; i <= size_index(end - start); i++)
			assert(m->from[i] <= start);
	}
#else
	(void)m;
#endif
}
