/* SPDX-License-Identifier: BSD-2-Clause */
#include "vm/frame.h"

int
frames_init(struct frames *f, struct arena *arena, uint32_t n)
{
	int r;

	f->n = (uint32_t)round_up(n, 64);
	r = runmap_init(&f->free, arena, f->n);
	if (r < 0)
		return r;
	r = runmap_init(&f->holes, arena, f->n);
	if (r < 0)
		goto fini_free;
	r = runmap_grow(&f->free, f->n, false);
	if (r < 0)
		goto fini_holes;
	r = runmap_grow(&f->holes, f->n, true);
	if (r < 0)
		goto fini_holes;
	(void)mutex_init_brief(&f->lock);
	return 0;

fini_holes:
	runmap_fini(&f->holes);
fini_free:
	runmap_fini(&f->free);
	return r;
}

void
frames_fini(struct frames *f)
{
	assert(runmap_nfree(&f->free) + runmap_nfree(&f->holes) == f->n);
	runmap_fini(&f->holes);
	runmap_fini(&f->free);
	pthread_mutex_destroy(&f->lock);
}

static size_t
take(struct frames *f, struct runmap *m, size_t want, frame_t *first)
{
	size_t at = 0, n;

	pthread_mutex_lock(&f->lock);
	n = runmap_take(m, want, &at);
	pthread_mutex_unlock(&f->lock);
	*first = (frame_t)at;
	return n;
}

static void
give(struct frames *f, struct runmap *m, frame_t first, size_t n)
{
	if (n == 0)
		return;
	pthread_mutex_lock(&f->lock);
	runmap_give(m, first, n);
	pthread_mutex_unlock(&f->lock);
}

size_t
frame_take(struct frames *f, size_t want, frame_t *first)
{
	return take(f, &f->free, want, first);
}

void
frame_give(struct frames *f, frame_t first, size_t n)
{
	give(f, &f->free, first, n);
}

size_t
hole_take(struct frames *f, size_t want, frame_t *first)
{
	return take(f, &f->holes, want, first);
}

void
hole_give(struct frames *f, frame_t first, size_t n)
{
	give(f, &f->holes, first, n);
}

bool
frame_claim(struct frames *f, frame_t frame)
{
	bool was;

	pthread_mutex_lock(&f->lock);
	was = runmap_claim(&f->holes, frame);
	pthread_mutex_unlock(&f->lock);
	return was;
}

void
frames_check(struct frames *f)
{
	pthread_mutex_lock(&f->lock);
	runmap_check(&f->free);
	runmap_check(&f->holes);
	for (size_t i = 0; i < f->n; i++)
		assert(!(runmap_is_free(&f->free, i) && runmap_is_free(&f->holes, i)));
	pthread_mutex_unlock(&f->lock);
}
