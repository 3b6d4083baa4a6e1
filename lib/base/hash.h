/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * hash.h (private): the identity of a page's content.
 *
 * XXH3, 64 bits, seeded at random per runtime, so that nobody can prepare two pages that collide.  It
 * is what proves a page unchanged since it was written, and what a page read back must match.
 */
#ifndef UP_HASH_H
#define UP_HASH_H

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base.h"

static inline uint64_t
hash_page(uint64_t seed, const void *page)
{
	return XXH3_64bits_withSeed(page, PAGE_SIZE, seed);
}

static inline bool
page_is_zero(const void *page)
{
	const char *p = page;

	/* The first 16 bytes are zero, and each byte equals the one 16 before it. */
	return *(const uint64_t *)page == 0 && ((const uint64_t *)page)[1] == 0 &&
	       memcmp(p, p + 16, PAGE_SIZE - 16) == 0;
}

#endif
