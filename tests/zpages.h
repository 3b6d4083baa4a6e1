/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * zpages.h: pages to compress, each from a seed, so that what comes back can be told to be right.
 */
#ifndef UP_TESTS_ZPAGES_H
#define UP_TESTS_ZPAGES_H

#include <string.h>

#include "base/base.h"

enum zpage_kind {
	ZPAGE_TEXT,	/* words */
	ZPAGE_HALF,	/* half of it random, half zero: 2 KiB and little more */
	ZPAGE_POINTERS, /* structures: pointers that are near each other, small numbers */
	ZPAGE_SAME,	/* one word */
	ZPAGE_ALMOST,	/* one byte different */
	ZPAGE_RANDOM,
	ZPAGE_KINDS,
};

static inline uint64_t
zpage_random(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

static inline void
zpage_text(char *p, uint64_t *x)
{
	static const char *const words[] = {
		"page",	 "fault", "swap",   "memory", "region", "a",	 "the", "of",
		"which", "has",	  "object", "kernel", "thread", "limit", "is",	"not",
	};
	size_t at = 0;

	while (at < PAGE_SIZE) {
		const uint64_t r = zpage_random(x);
		const char *w = words[r % ARRAY_SIZE(words)];
		const size_t n = MIN(strlen(w), PAGE_SIZE - at);

		memcpy(p + at, w, n);
		at += n;
		for (unsigned i = 0; i < (r >> 8) % 5 && at < PAGE_SIZE; i++)
			p[at++] = (char)('a' + (r >> (16 + 5 * i)) % 26);
		if (at < PAGE_SIZE)
			p[at++] = ' ';
	}
}

static inline void
zpage_fill(void *page, enum zpage_kind kind, uint64_t seed)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15u + 1, *p = page;
	const size_t n = PAGE_SIZE / sizeof *p;
	const uint64_t first = zpage_random(&x);

	switch (kind) {
	case ZPAGE_TEXT:
		zpage_text(page, &x);
		break;
	case ZPAGE_POINTERS:
		for (size_t i = 0; i < n; i++)
			p[i] = i % 4 < 2 ? 0x7f0000000000u + (first & 0xfff00000) +
						   zpage_random(&x) % 4096 * 16
					 : zpage_random(&x) % (i % 4 == 2 ? 100 : 2);
		break;
	case ZPAGE_SAME:
	case ZPAGE_ALMOST:
		for (size_t i = 0; i < n; i++)
			p[i] = first;
		if (kind == ZPAGE_ALMOST)
			((unsigned char *)page)[zpage_random(&x) % PAGE_SIZE] ^= 0x5a;
		break;
	default:
		for (size_t i = 0; i < n; i++)
			p[i] = kind == ZPAGE_RANDOM || i < n / 2 ? zpage_random(&x) : 0;
		break;
	}
}

#endif
