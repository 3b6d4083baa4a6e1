/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fill_bring.c: pages that nobody waits for, and the end of those that nobody will ever bring.
 */
#include <errno.h>
#include <time.h>

#include "fill_space.h"

#define SETTLE_TRIES 1000 /* ms that the end puts up with EAGAIN */

/*
 * Up to FILL_RUN bytes of what is MISSING in [*at, end); *at says how far it got.  0: go on; -EAGAIN: later; -ENODATA: nothing is
 * there to fill any more; any other error: no use going on.
 */
int
fspace_bring(struct space *sp, uint64_t *at, uint64_t end)
{
	const struct range *r;
	uint64_t start, len, done = 0, offset;
	int err = 0;

	pthread_rwlock_rdlock(&sp->lock);
	if (sp->broken) {
		*at = end;
		goto out;
	}
	r = sp->uffd < 0 ? NULL : fspace_find(sp, *at);
	if (r == NULL) {
		const size_t i = sp->uffd < 0 ? sp->n : fspace_find_from(sp, *at);

		*at = i < sp->n ? MIN(end, sp->range[i].r.start) : end;
		goto out;
	}
	end = MIN(end, r->r.start + r->r.len);
	len = fspace_missing_run(sp, r, *at, end, &start);
	if (len == 0) {
		*at = end;
		goto out;
	}
	if (len > FILL_RUN)
		len = MAX(FILL_RUN, (uint64_t)r->r.page_size);
	*at = start;
	offset = r->r.offset + (start - r->r.start);
	if (offset + len > memfile_size_now(r->r.source)) {
		/* Left to who asks for it. */
		*at = start + len;
		goto out;
	}
	for (;;) {
		err = foreign_copy(sp->uffd, start, r->r.source->map + offset, len, sp->protect,
				   &done);
		if (err == -EINVAL && sp->protect) {
			sp->protect = false;
			continue;
		}
		if (done > 0 || len == r->r.page_size ||
		    (err != -ENOENT && err != -EINVAL && err != -EFAULT))
			break;
		/* It is not all of one mapping, or not all of it can be read. */
		len = MAX((uint64_t)r->r.page_size, len / 2 & ~(uint64_t)(r->r.page_size - 1));
	}
	if (done > 0) {
		fspace_set(sp, r, start, done, FILLED);
		atomic_fetch_add_explicit(&sp->f->prefetched, done / r->r.page_size,
					  memory_order_relaxed);
		*at = start + done;
		err = 0;
		goto out;
	}
	switch (-err) {
	case EEXIST:
		fspace_set(sp, r, start, r->r.page_size, FILLED);
		foreign_wake(sp->uffd, start, r->r.page_size);
		/* fall through */
	case ENOENT:
	case EINVAL:
	case EFAULT:
		*at = start + r->r.page_size;
		err = 0;
		break;
	default:
		break;
	}
out:
	pthread_rwlock_unlock(&sp->lock);
	return err;
}

/* One run of any space.  False: nothing is missing, or it can't be had. */
bool
fill_some(struct fill *f)
{
	for (struct space *sp = f->spaces; sp != NULL; sp = sp->next) {
		while (sp->uffd >= 0 && sp->n > 0) {
			const struct fill_range *last = &sp->range[sp->n - 1].r;
			const uint64_t before = atomic_load(&f->prefetched);
			int err;

			if (sp->drained >= last->start + last->len)
				break;
			err = fspace_bring(sp, &sp->drained, last->start + last->len);
			if (err == -EAGAIN || atomic_load(&f->prefetched) != before)
				return true;
			if (err == -ESRCH)
				fspace_gone(sp);
			else if (err < 0)
				return false;
		}
	}
	return false;
}

static void
nap_ms(unsigned ms)
{
	const struct timespec ts = { .tv_nsec = (long)ms * 1000000 };

	nanosleep(&ts, NULL);
}

/*
 * One run that is MISSING.  How many bytes need not be looked at again, or -errno; *poisoned says how many pages are SIGBUS now.  *max:
 * of a call; it shrinks to what is of one mapping.
 */
static int64_t
poison_run(struct space *sp, const struct range *r, uint64_t start, uint64_t len, uint64_t *max,
	   uint64_t *poisoned)
{
	const uint64_t size = r->r.page_size;
	uint64_t done;
	int err;

	for (len = MIN(len, *max);; len = *max) {
		err = foreign_poison(sp->uffd, start, len, &done);
		/* Twice, as it may have been moved in the middle of the first call; then the second one says EAGAIN. */
		if (done == 0 && len == size && err == -ENOENT)
			err = foreign_poison(sp->uffd, start, len, &done);
		*poisoned += done / size;
		if (done > 0)
			return (int64_t)done;
		if (len == size || (err != -ENOENT && err != -EINVAL))
			break;
		*max = MAX(size, len / 2 & ~(size - 1));
	}
	return err == -EEXIST || err == -ENOENT ? (int64_t)size : err;
}

/* All of it, or up to where an event is to be read first (-EAGAIN), or it can't be done. */
static int
poison_missing(struct space *sp, uint64_t *poisoned)
{
	for (size_t i = 0; i < sp->n; i++) {
		const struct range *r = &sp->range[i];
		const uint64_t end = r->r.start + r->r.len;
		uint64_t max = r->r.len, start, len;

		while ((len = fspace_missing_run(sp, r, r->r.start, end, &start)) > 0) {
			const int64_t n = poison_run(sp, r, start, len, &max, poisoned);

			if (n < 0)
				return (int)n;
			fspace_set(sp, r, start, (uint64_t)n, LOST);
		}
	}
	return 0;
}

/*
 * Nobody will serve it any more: what is missing is SIGBUS, and the rest is left to the kernel, as ordinary memory: so that nobody waits for
 * us, and what is removed from now on is zeros.
 */
bool
fspace_settle(struct space *sp)
{
	struct fill *f = sp->f;
	struct fault fault[FAULTS];
	uint64_t pages = 0;
	unsigned tries = 0;
	bool more;
	int err = f->no_poison && (sp->kept || fspace_missing(sp) > 0) ? -ENOTTY : 0;

	/* After events from the beginning: what is missing may have been moved. */
	while (err == 0 && (err = poison_missing(sp, &pages)) == -EAGAIN &&
	       tries++ < SETTLE_TRIES) {
		fspace_drain(sp, fault, &more);
		nap_ms(1);
		err = 0;
	}
	/* What is known has been poisoned, but there may be more, elsewhere. */
	if (err == 0 && sp->broken && sp->flags & FILL_SOLE)
		err = -ENOMEM;
	if (pages > 0) {
		atomic_fetch_add(&f->lost, pages);
		log_line(
			&f->log, UP_LOG_WARNING,
			"%s: nobody serves it any more: %llu pages that it did not have yet are SIGBUS",
			f->name, (unsigned long long)pages);
	}
	if (err < 0) {
		log_line(
			&f->log, UP_LOG_ERROR,
			"%s: nobody serves it any more, and its missing pages could not be poisoned: who touches one waits, as long as somebody has its userfaultfd",
			f->name);
		return false;
	}
	for (size_t i = 0; i < sp->n; i++)
		foreign_unregister(sp->uffd, sp->range[i].r.start, sp->range[i].r.len);
	fspace_drain(sp, fault, &more);
	return true;
}
