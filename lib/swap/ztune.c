/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * ztune.c: see ztune.h.
 *
 * Values are compared as fractions, a / b against c / d, in 128 bits: counts are below 2^42 here, prices below 2^32, sizes below
 * 2^48.
 */
#include "swap/ztune.h"

#define ZTUNE_ONE 256 /* so that a count of one fades in eight intervals, not at once */

typedef unsigned __int128 wide;

/* Time saved for each byte held. */
struct worth {
	uint64_t times;
	uint32_t ns;
	size_t bytes;
};

/* True if a is worth more than b by a quarter. */
static bool
worth_more(struct worth a, struct worth b)
{
	return (wide)a.times * a.ns * MAX(b.bytes, 1) * 4 >
	       (wide)b.times * b.ns * MAX(a.bytes, 1) * 5;
}

static void
fade(uint64_t *sum, uint64_t n)
{
	*sum = *sum / 2 + MIN(n, UINT32_MAX) * ZTUNE_ONE;
}

void
ztune_init(struct ztune *t, size_t min, size_t max, size_t start)
{
	assert(min <= max);
	*t = (struct ztune){ .min = min, .max = max, .target = MAX(min, MIN(max, start)) };
}

void
ztune_resize(struct ztune *t, size_t min, size_t max)
{
	assert(min <= max);
	t->target = t->target == t->max ? max : MAX(min, MIN(max, t->target));
	t->min = min;
	t->max = max;
}

static enum ztune_verdict
verdict(const struct ztune *t, const struct ztune_state *s)
{
	const uint32_t saved = s->read_ns > s->hit_ns ? s->read_ns - s->hit_ns : 0;
	const struct worth last = { t->sum.hits_old, saved, s->pool / 4 };
	const struct worth next = { t->sum.lost, saved,
				    s->entries > 0 ? s->pool / s->entries * s->ghosts
						   : s->ghosts * PAGE_SIZE };
	const struct worth frames = { t->sum.soft, s->hit_ns, s->staged };
	const size_t left = t->max > s->pool ? t->max - s->pool : 0;
	const wide more = (wide)t->sum.lost * left / MAX(next.bytes, 1);
	const struct worth saves = { t->sum.hits + (uint64_t)MIN(more, (wide)1 << 42), saved, 1 };
	const struct worth costs = { t->sum.stored, s->store_ns, 1 };

	if (t->sum.hits + t->sum.lost + t->sum.soft + t->sum.stored < ZTUNE_FEW * ZTUNE_ONE)
		return ZTUNE_KEEP;
	/* It has what it needs, or has not come to use what it may. */
	if (s->pool < t->target - t->target / 8)
		return ZTUNE_KEEP;
	if (t->sum.hits + t->sum.lost + t->sum.reads >= ZTUNE_FEW * ZTUNE_ONE &&
	    worth_more(costs, saves))
		return ZTUNE_SHRINK;
	if (worth_more(next, frames))
		return ZTUNE_GROW;
	if (worth_more(frames, last))
		return ZTUNE_SHRINK;
	return ZTUNE_KEEP;
}

enum ztune_verdict
ztune_step(struct ztune *t, const struct ztune_counts *c, const struct ztune_state *s)
{
	const size_t step = MAX((t->max - t->min) / ZTUNE_STEPS, 1);
	const size_t was = t->target;

	fade(&t->sum.hits, c->hits);
	fade(&t->sum.hits_old, c->hits_old);
	fade(&t->sum.lost, c->lost);
	fade(&t->sum.soft, c->soft);
	fade(&t->sum.stored, c->stored);
	fade(&t->sum.reads, c->reads);
	switch (verdict(t, s)) {
	case ZTUNE_GROW:
		t->target += MIN(step, t->max - t->target);
		break;
	case ZTUNE_SHRINK:
		t->target -= MIN(step, t->target - t->min);
		break;
	case ZTUNE_KEEP:
		break;
	}
	return t->target > was ? ZTUNE_GROW : t->target < was ? ZTUNE_SHRINK : ZTUNE_KEEP;
}
