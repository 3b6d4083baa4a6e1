/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * resv.h (private): promises made at map time and kept at fault time.
 *
 * Strict accounting, as SunOS's anon_resv: a region is mapped only if every one of its pages
 * could be modified and thrown out, so running out is an error of up_map(), never of a fault.
 * Two things are promised: swap slots and, since it comes out of the same limit as the frames,
 * the metadata that the pages will need out of core.  `grow` may raise the maximum on
 * demand (a swap file that grows).
 */
#ifndef UP_RESV_H
#define UP_RESV_H

#include <pthread.h>

#include "base/base.h"

struct resv {
	pthread_mutex_t lock;
	uint64_t max;  /* (lock) what can be promised */
	uint64_t used; /* (lock) what is */
	/* (c) Make max at least `need`: 0 and *max updated, or -errno.  May be NULL.  Called with the lock. */
	int (*grow)(void *ctx, uint64_t need, uint64_t *max);
	void *ctx;
};

void resv_init(struct resv *r, uint64_t max, int (*grow)(void *, uint64_t, uint64_t *), void *ctx);
/* Asserts that nothing is promised any more. */
void resv_fini(struct resv *r);

/* 0, or -ENOSPC (or grow's error) and nothing changed. */
int resv_take(struct resv *r, uint64_t n);
/* The same without growing: true, or false and nothing changed.  Never takes long. */
bool resv_try(struct resv *r, uint64_t n);
void resv_give(struct resv *r, uint64_t n);

/* From here on so much can be promised: true; or it is less than what is, and nothing changed. */
bool resv_set(struct resv *r, uint64_t max);
/* Something promised is gone for good (a bad slot); used may exceed max afterwards. */
void resv_shrink(struct resv *r, uint64_t n);

void resv_get(struct resv *r, uint64_t *max, uint64_t *used);

#endif
