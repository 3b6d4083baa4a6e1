/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * runmap.c: two-level bitmap of free items; see runmap.h.
 *
 *	any	| 1 0 1 1 ...		bit w: words[w] != 0
 *	full	| 0 0 1 0 ...		bit w: words[w] == ~0
 *	words	| ..1.11.. | ........ | 11111111 | 1....... | ...
 *
 * The search for a run among partly used words is bounded: to know that none of a quarter
 * million words (64 GiB of swap) holds 16 neighbours would cost a fragmented map a millisecond
 * for every cluster.  A shorter run costs its writer one more request.
 */
#include "base/runmap.h"

#include <errno.h>
#include <string.h>

#define WORD_BITS 64

static uint64_t
low_bits(size_t n)
{
	return n >= WORD_BITS ? ~(uint64_t)0 : ((uint64_t)1 << n) - 1;
}

static bool
bit_get(const uint64_t *map, size_t i)
{
	return map[i / WORD_BITS] >> i % WORD_BITS & 1;
}

static void
bit_set(uint64_t *map, size_t i, bool on)
{
	const uint64_t bit = (uint64_t)1 << i % WORD_BITS;

	if (on)
		map[i / WORD_BITS] |= bit;
	else
		map[i / WORD_BITS] &= ~bit;
}

/* One writer, who has the owner's lock; readers need none. */
static void
set_nfree(struct runmap *m, size_t n)
{
	atomic_store_explicit(&m->nfree, n, memory_order_relaxed);
}

/* Replace word w, with its summaries and the count of free items, of which there are `more` (modulo 2^64) then. */
static void
word_set(struct runmap *m, size_t w, uint64_t to, size_t more)
{
	uint64_t *word = (uint64_t *)m->words.base + w;
	const uint64_t was = *word;

	*word = to;
	set_nfree(m, runmap_nfree(m) + more);
	if ((was == 0) != (to == 0))
		bit_set(m->any.base, w, to != 0);
	if ((was == ~(uint64_t)0) == (to == ~(uint64_t)0))
		return;
	bit_set(m->full.base, w, to == ~(uint64_t)0);
	m->nfull += to == ~(uint64_t)0 ? 1 : SIZE_MAX;
}

/*
 * The first bit set in `map` and not in `minus` (may be NULL) at or after `from` and before
 * `end`; `end` if there is none.
 */
static size_t
scan(const uint64_t *map, const uint64_t *minus, size_t from, size_t end)
{
	uint64_t keep = ~low_bits(from % WORD_BITS);
	uint64_t x;

	for (size_t i = from / WORD_BITS; i * WORD_BITS < end; i++) {
		x = map[i] & keep;
		if (minus != NULL)
			x &= ~minus[i];
		if (x != 0)
			return MIN(i * WORD_BITS + (size_t)__builtin_ctzll(x), end);
		keep = ~(uint64_t)0;
	}
	return end;
}

/* The same from `from` round to where it began; n, the number of bits, if there is none. */
static size_t
scan_round(const uint64_t *map, const uint64_t *minus, size_t from, size_t n)
{
	size_t i = scan(map, minus, from, n);

	if (i < n)
		return i;
	i = scan(map, minus, 0, from);
	return i < from ? i : n;
}

/* Bits of x at which a run of at least `want` set bits starts. */
static uint64_t
run_starts(uint64_t x, size_t want)
{
	size_t step;

	for (size_t have = 1; have < want; have += step) {
		step = MIN(have, want - have);
		x &= x >> step;
	}
	return x;
}

/* The length of the longest run in x, at most `most`. */
static size_t
run_longest(uint64_t x, size_t most)
{
	size_t len = 0;

	for (; x != 0 && len < most; len++)
		x &= x >> 1;
	return len;
}

/* Take `len` neighbours of word w, at the lowest place that has them; returns the first. */
static size_t
take_from(struct runmap *m, size_t w, size_t len)
{
	const uint64_t x = ((const uint64_t *)m->words.base)[w];
	const uint64_t starts = run_starts(x, len);
	size_t at;

	assert(starts != 0);
	at = (size_t)__builtin_ctzll(starts);
	word_set(m, w, x & ~(low_bits(len) << at), -len);
	return w * WORD_BITS + at;
}

/* The word for one item: fill up a partly used one first.  Something is free. */
static size_t
find_single(struct runmap *m)
{
	const size_t n = m->n / WORD_BITS;
	size_t w = scan_round(m->any.base, m->full.base, m->single, n);

	if (w == n)
		w = scan_round(m->any.base, NULL, m->single, n);
	m->single = w;
	return w;
}

/* The word for a run, and in *len how much of it is to be had there.  Something is free. */
static size_t
find_run(const struct runmap *m, size_t want, size_t *len)
{
	const uint64_t *words = m->words.base;
	const size_t n = m->n / WORD_BITS;
	size_t w, longest, best = n, best_len = 0;

	*len = want;
	if (run_starts(words[m->cursor], want) != 0)
		return m->cursor;
	if (m->nfull != 0)
		return scan_round(m->full.base, NULL, m->cursor, n);
	w = m->cursor;
	for (size_t look = 0; look < RUNMAP_LOOK; look++) {
		w = scan_round(m->any.base, NULL, w, n);
		assert(w < n);
		/* Round again at a word already seen: no harm, and `look` ends it. */
		longest = run_longest(words[w], want);
		if (longest == want)
			return w;
		if (longest > best_len) {
			best = w;
			best_len = longest;
		}
		w = w + 1 == n ? 0 : w + 1;
	}
	*len = best_len;
	return best;
}

int
runmap_init(struct runmap *m, struct arena *arena, size_t max)
{
	const size_t nwords = max / WORD_BITS + (max % WORD_BITS != 0);
	const size_t nsums = nwords / WORD_BITS + (nwords % WORD_BITS != 0);
	int r;

	memset(m, 0, sizeof *m);
	r = wired_array_init(&m->words, arena, sizeof(uint64_t), nwords);
	if (r < 0)
		return r;
	r = wired_array_init(&m->any, arena, sizeof(uint64_t), nsums);
	if (r < 0)
		goto fini_words;
	r = wired_array_init(&m->full, arena, sizeof(uint64_t), nsums);
	if (r < 0)
		goto fini_any;
	return 0;
fini_any:
	wired_array_fini(&m->any);
fini_words:
	wired_array_fini(&m->words);
	return r;
}

void
runmap_fini(struct runmap *m)
{
	wired_array_fini(&m->full);
	wired_array_fini(&m->any);
	wired_array_fini(&m->words);
	set_nfree(m, 0);
	m->n = m->nfull = m->cursor = m->single = 0;
}

int
runmap_grow(struct runmap *m, size_t n, bool free)
{
	const size_t nwords = n / WORD_BITS;
	const size_t nsums = (nwords + WORD_BITS - 1) / WORD_BITS;

	assert(n % WORD_BITS == 0);
	if (wired_array_grow(&m->any, nsums) < 0 || wired_array_grow(&m->full, nsums) < 0 ||
	    wired_array_grow(&m->words, nwords) < 0)
		return -ENOMEM;
	/* New words are zero, so taken, and their summaries with them. */
	if (free)
		for (size_t w = m->n / WORD_BITS; w < nwords; w++)
			word_set(m, w, ~(uint64_t)0, WORD_BITS);
	m->n = MAX(m->n, n);
	return 0;
}

size_t
runmap_take(struct runmap *m, size_t want, size_t *first)
{
	size_t w, len = 1;

	assert(want >= 1 && want <= WORD_BITS);
	if (runmap_nfree(m) == 0)
		return 0;
	if (want == 1) {
		w = find_single(m);
	} else {
		w = find_run(m, want, &len);
		m->cursor = w;
	}
	*first = take_from(m, w, len);
	return len;
}

bool
runmap_claim(struct runmap *m, size_t i)
{
	const size_t w = i / WORD_BITS;

	if (i >= m->n || !runmap_is_free(m, i))
		return false;
	word_set(m, w, ((const uint64_t *)m->words.base)[w] & ~((uint64_t)1 << i % WORD_BITS),
		 -(size_t)1);
	return true;
}

void
runmap_give(struct runmap *m, size_t first, size_t n)
{
	uint64_t *words = m->words.base;
	size_t w, at, len;
	uint64_t mask;

	assert(first <= m->n && n <= m->n - first);
	for (; n != 0; first += len, n -= len) {
		w = first / WORD_BITS;
		at = first % WORD_BITS;
		len = MIN(n, WORD_BITS - at);
		mask = low_bits(len) << at;
		assert((words[w] & mask) == 0);
		word_set(m, w, words[w] | mask, len);
	}
}

bool
runmap_is_free(const struct runmap *m, size_t i)
{
	assert(i < m->n);
	return bit_get(m->words.base, i);
}

void
runmap_check(const struct runmap *m)
{
#ifndef NDEBUG
	const uint64_t *words = m->words.base;
	const size_t nwords = m->n / WORD_BITS;
	size_t nfree = 0, nfull = 0;

	assert(m->n % WORD_BITS == 0);
	assert(nwords == 0 || (m->cursor < nwords && m->single < nwords));
	for (size_t w = 0; w < nwords; w++) {
		nfree += (size_t)__builtin_popcountll(words[w]);
		nfull += words[w] == ~(uint64_t)0;
		assert(bit_get(m->any.base, w) == (words[w] != 0));
		assert(bit_get(m->full.base, w) == (words[w] == ~(uint64_t)0));
	}
	assert(nfree == runmap_nfree(m) && nfull == m->nfull);
#else
	(void)m;
#endif
}
