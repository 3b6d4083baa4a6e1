/* SPDX-License-Identifier: BSD-2-Clause */
#include "vm/ghost.h"

/*
 * An entry: fingerprint (16 bits, never 0) and stamp (16 bits).  The stamp wraps after 16 times as many
 * evictions as there are entries.  By then a bucket has been written to 128 times on average, and an
 * entry lives for GHOST_WAYS of those: an old one does not live to look young.
 */
#define STAMP_BITS 16
#define STAMP_MASK ((UINT32_C(1) << STAMP_BITS) - 1)
#define RESOLUTION 4096

size_t
ghost_bytes(size_t n)
{
	return round_up(MAX(n, 1), GHOST_WAYS) * sizeof(uint32_t);
}

void
ghost_resize(struct ghost *g, size_t n)
{
	g->nbuckets = (uint32_t)(round_up(MAX(n, 1), GHOST_WAYS) / GHOST_WAYS);
	g->shift = 0;
	while ((n >> g->shift) > RESOLUTION)
		g->shift++;
}

void
ghost_init(struct ghost *g, void *mem, size_t n)
{
	*g = (struct ghost){ .entry = mem };
	ghost_resize(g, n);
}

/* splitmix64's finaliser: keys are addresses or small numbers, and buckets want all bits. */
static inline uint64_t
mix(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

static inline uint32_t *
bucket(const struct ghost *g, uint64_t hash)
{
	return g->entry + ((hash >> 32) * g->nbuckets >> 32) * GHOST_WAYS;
}

static inline uint32_t
fingerprint(uint64_t hash)
{
	const uint32_t f = hash & 0xffff;

	return (f != 0 ? f : 1) << STAMP_BITS;
}

/* In units of the stamp. */
static inline uint32_t
age(const struct ghost *g, uint32_t entry)
{
	return ((uint32_t)(g->clock >> g->shift) - entry) & STAMP_MASK;
}

static uint32_t *
find(const struct ghost *g, uint64_t hash)
{
	uint32_t *b = bucket(g, hash);

	for (unsigned i = 0; i < GHOST_WAYS; i++)
		if ((b[i] & ~STAMP_MASK) == fingerprint(hash))
			return &b[i];
	return NULL;
}

void
ghost_add(struct ghost *g, uint64_t key)
{
	const uint64_t hash = mix(key);
	uint32_t *b, *e;

	g->clock++;
	if (g->entry == NULL)
		return;
	b = bucket(g, hash);
	e = find(g, hash);
	for (unsigned i = 0; e == NULL && i < GHOST_WAYS; i++)
		if (b[i] == 0)
			e = &b[i];
	if (e == NULL) {
		e = b;
		for (unsigned i = 1; i < GHOST_WAYS; i++)
			if (age(g, b[i]) > age(g, *e))
				e = &b[i];
	}
	*e = fingerprint(hash) | ((uint32_t)(g->clock >> g->shift) & STAMP_MASK);
}

void
ghost_forget(struct ghost *g, uint64_t key)
{
	(void)ghost_take(g, key);
	g->clock++;
}

uint32_t
ghost_take(struct ghost *g, uint64_t key)
{
	uint32_t *e = g->entry != NULL ? find(g, mix(key)) : NULL;
	uint32_t units;

	if (e == NULL)
		return GHOST_UNKNOWN;
	units = age(g, *e);
	*e = 0;
	return units << g->shift;
}

size_t
ghost_check(const struct ghost *g)
{
	size_t n = 0;

	for (size_t b = 0; g->entry != NULL && b < g->nbuckets; b++) {
		const uint32_t *e = g->entry + b * GHOST_WAYS;

		for (unsigned i = 0; i < GHOST_WAYS; i++) {
			n += e[i] != 0;
			for (unsigned j = 0; j < i; j++)
				assert(e[i] == 0 || ((e[i] ^ e[j]) & ~STAMP_MASK) != 0);
		}
	}
	return n;
}
