/* SPDX-License-Identifier: BSD-2-Clause */
#include <errno.h>

#include "vm/resv.h"

void
resv_init(struct resv *r, uint64_t max, int (*grow)(void *, uint64_t, uint64_t *), void *ctx)
{
	*r = (struct resv){ .max = max, .grow = grow, .ctx = ctx };
	pthread_mutex_init(&r->lock, NULL);
}

void
resv_fini(struct resv *r)
{
	assert(r->used == 0);
	pthread_mutex_destroy(&r->lock);
}

int
resv_take(struct resv *r, uint64_t n)
{
	int ret = 0;

	pthread_mutex_lock(&r->lock);
	if (n > UINT64_MAX - r->used) {
		ret = -ENOSPC;
	} else if (r->used + n > r->max) {
		ret = -ENOSPC;
		if (r->grow != NULL)
			ret = r->grow(r->ctx, r->used + n, &r->max);
		if (ret == 0 && r->used + n > r->max)
			ret = -ENOSPC;
	}
	if (ret == 0)
		r->used += n;
	pthread_mutex_unlock(&r->lock);
	return ret;
}

bool
resv_try(struct resv *r, uint64_t n)
{
	bool ok;

	pthread_mutex_lock(&r->lock);
	ok = n <= r->max && r->used <= r->max - n;
	if (ok)
		r->used += n;
	pthread_mutex_unlock(&r->lock);
	return ok;
}

void
resv_give(struct resv *r, uint64_t n)
{
	pthread_mutex_lock(&r->lock);
	assert(r->used >= n);
	r->used -= n;
	pthread_mutex_unlock(&r->lock);
}

bool
resv_set(struct resv *r, uint64_t max)
{
	bool ok;

	pthread_mutex_lock(&r->lock);
	ok = r->used <= max;
	if (ok)
		r->max = max;
	pthread_mutex_unlock(&r->lock);
	return ok;
}

void
resv_shrink(struct resv *r, uint64_t n)
{
	pthread_mutex_lock(&r->lock);
	r->max -= MIN(n, r->max);
	pthread_mutex_unlock(&r->lock);
}

void
resv_get(struct resv *r, uint64_t *max, uint64_t *used)
{
	pthread_mutex_lock(&r->lock);
	*max = r->max;
	*used = r->used;
	pthread_mutex_unlock(&r->lock);
}
