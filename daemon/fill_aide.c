/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fill_aide.c: what is known of the working set is brought, and what was asked for is recorded.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "fill_space.h"

#define AIDE_TRIES 200	      /* ms that the aide puts up with EAGAIN */
#define WARM_MIN (256u << 10) /* bytes that the aide reads at a time, at first */
#define WARM (2u << 20)	      /* and later */
#define ALONG \
	(64u << 10) /* bytes of the working set that a fault brings along while the aide is at it */
#define AHEAD (8u << 20) /* and asks the kernel for before */
#define GAP (8u << 10)	 /* pages in between that are read along: a read more takes as long */
#define JOIN_PART \
	16 /* a record is joined with what it lacked if that is more than such a part of it */

/* --- along with a fault --- */

/* How many bytes of the working set follow this one of the file. */
static uint64_t
follow(const struct working_set *ws, uint64_t offset)
{
	const uint64_t page = offset / WORKING_SET_PAGE;
	size_t lo = 0, hi = ws->n;

	while (lo < hi) {
		const size_t mid = (lo + hi) / 2;

		if (ws->run[mid].first + ws->run[mid].n <= page)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo == ws->n || ws->run[lo].first > page)
		return 0;
	return (ws->run[lo].first + ws->run[lo].n - page) * WORKING_SET_PAGE;
}

/* As much of it as need not be waited for. */
static uint64_t
in_memory(const struct memfile *s, uint64_t offset, uint64_t len)
{
	unsigned char there[ALONG / PAGE_SIZE];
	uint64_t n = 0;

	if (len == 0 || mincore(s->map + offset, len, there) < 0)
		return 0;
	while (n < len / PAGE_SIZE && there[n] & 1)
		n++;
	return n * PAGE_SIZE;
}

/* What the faults that have been served are likely to be followed by: there the client is ahead of the aide. */
void
fspace_bring_along(struct space *sp)
{
	struct fill *f = sp->f;

	for (size_t i = 0; i < f->nalong && sp->uffd >= 0; i++) {
		const struct range *r = fspace_find_again(sp, f->along[i]);
		uint64_t at, len;

		if (r == NULL || r->r.page_size != PAGE_SIZE || r->r.source != f->cfg.working_set)
			continue;
		at = f->along[i] + PAGE_SIZE;
		len = follow(&f->ws, r->r.offset + (at - r->r.start));
		len = MIN(MIN(len, ALONG), r->r.start + r->r.len - at);
		len = in_memory(r->r.source, r->r.offset + (at - r->r.start), len);
		if (len > 0 && fspace_bring(sp, &at, at + len) < 0)
			break;
	}
	f->nalong = 0;
}

/* --- the aide --- */

void
fill_nap(struct fill *f, uint64_t until)
{
	const struct timespec ts = {
		.tv_sec = (time_t)(until / 1000000000),
		.tv_nsec = (long)(until % 1000000000),
	};

	pthread_cond_timedwait(&f->cond, &f->lock, &ts);
}

static bool
bring_all(struct space *sp, uint64_t at, uint64_t end)
{
	struct fill *f = sp->f;
	unsigned tries = 0;

	while (at < end && !atomic_load(&f->stop)) {
		const int err = fspace_bring(sp, &at, end);

		if (err == -EAGAIN && tries++ < AIDE_TRIES) {
			pthread_mutex_lock(&f->lock);
			fill_nap(f, now_ns() + 1000000);
			pthread_mutex_unlock(&f->lock);
		} else if (err < 0) {
			return false;
		}
	}
	return !atomic_load(&f->stop);
}

struct reader {
	struct memfile *s;
	const struct working_set *ws;
	size_t run;	 /* the next that has not been asked for */
	uint64_t ahead;	 /* bytes of the file up to where it has */
	uint64_t window; /* bytes that are read at a time: few at first, since somebody waits */
};

/* Bytes of the file behind a run. */
static uint64_t
end_of(const struct working_set_run *r)
{
	return (r->first + r->n) * WORKING_SET_PAGE;
}

/* Ask for what is in the record up to AHEAD bytes from here, neighbours in one. */
static void
read_ahead(struct reader *rd, uint64_t offset)
{
	const struct working_set_run *const run = rd->ws->run;
	const uint64_t limit = offset + AHEAD;

	while (rd->run < rd->ws->n && rd->ahead < limit) {
		const uint64_t start = MAX(run[rd->run].first * WORKING_SET_PAGE, rd->ahead);
		size_t i = rd->run;

		if (start >= limit)
			break;
		while (i + 1 < rd->ws->n &&
		       run[i + 1].first * WORKING_SET_PAGE <= MIN(end_of(&run[i]) + GAP, limit))
			i++;
		if (MIN(end_of(&run[i]), limit) > start) {
			rd->ahead = MIN(end_of(&run[i]), limit);
			memfile_will_need(rd->s, start, rd->ahead - start);
		}
		rd->run = end_of(&run[i]) <= limit ? i + 1 : i;
	}
}

static int
by_offset(const void *a, const void *b)
{
	const struct range *x = a, *y = b;

	return x->r.offset < y->r.offset ? -1 : x->r.offset > y->r.offset;
}

/* What the record says, as far as it is in this range. */
static bool
prefetch_range(struct space *sp, const struct range *r, const struct working_set *ws,
	       struct reader *rd)
{
	const uint64_t size = r->r.page_size, end = r->r.offset + r->r.len;

	for (size_t i = 0; i < ws->n; i++) {
		uint64_t lo = ws->run[i].first * WORKING_SET_PAGE;
		uint64_t hi = lo + ws->run[i].n * WORKING_SET_PAGE;

		if (lo >= end)
			break;
		if (hi <= r->r.offset)
			continue;
		/* From here on bytes of the range, in whole pages. */
		lo = (MAX(lo, r->r.offset) - r->r.offset) & ~(size - 1);
		hi = (MIN(hi, end) - r->r.offset + size - 1) & ~(size - 1);
		for (uint64_t at = lo, next; at < hi; at = next) {
			next = MIN(hi, at + MAX(rd->window, size));
			read_ahead(rd, r->r.offset + at);
			memfile_warm(rd->s, r->r.offset + at, next - at);
			if (!bring_all(sp, r->r.start + at, r->r.start + next))
				return false;
			rd->window = MIN(2 * rd->window, (uint64_t)WARM);
		}
	}
	return true;
}

static void
prefetch(struct space *sp, const struct working_set *ws)
{
	struct reader rd = { .s = sp->f->cfg.working_set, .ws = ws, .window = WARM_MIN };
	struct range *range = NULL;
	size_t n = 0;

	memfile_known(rd.s, true);
	pthread_rwlock_rdlock(&sp->lock);
	if (sp->n > 0 && (range = malloc(sp->n * sizeof *range)) != NULL) {
		for (size_t i = 0; i < sp->n; i++) {
			if (sp->range[i].r.source == rd.s)
				range[n++] = sp->range[i];
		}
	}
	pthread_rwlock_unlock(&sp->lock);
	if (n > 0)
		qsort(range, n, sizeof *range, by_offset);
	for (size_t i = 0; i < n && prefetch_range(sp, &range[i], ws, &rd); i++)
		;
	free(range);
	memfile_known(rd.s, false);
}

/* A space that the aide has not been to; the lock is held. */
static struct space *
next_space(struct fill *f)
{
	struct space *sp = f->spaces;

	while (sp != NULL && sp->brought)
		sp = sp->next;
	if (sp != NULL)
		sp->brought = true;
	return sp;
}

static void
record(struct fill *f)
{
	struct memfile *s = f->cfg.working_set;
	struct working_set was, asked, all = { 0 };
	int r;

	pthread_mutex_lock(&s->ws_lock);
	working_set_load(s->ws_path, &s->id, &was);
	r = working_set_make(&asked, f->asked, s->size / WORKING_SET_PAGE, NULL);
	if (r < 0 || asked.pages == 0 || asked.pages * JOIN_PART <= was.pages)
		goto out;
	r = working_set_make(&all, f->asked, s->size / WORKING_SET_PAGE, &was);
	if (r == 0 && all.pages > was.pages) {
		r = working_set_save(s->ws_path, &s->id, &all);
		if (r == 0)
			log_line(&f->log, UP_LOG_INFO,
				 "%s: working set of %s: %llu pages (%llu were known)", f->name,
				 s->path, (unsigned long long)all.pages,
				 (unsigned long long)was.pages);
	}
out:
	if (r < 0)
		log_line(&f->log, UP_LOG_WARNING, "%s: working set not recorded: %s: %s", f->name,
			 s->ws_path, strerror(-r));
	pthread_mutex_unlock(&s->ws_lock);
	working_set_free(&was);
	working_set_free(&asked);
	working_set_free(&all);
}

/*
 * What is known of the working set, before there are threads: a fault may come before the aide has its turn.  No lock: records are
 * replaced as a whole.
 */
void
fill_load_record(struct fill *f)
{
	struct memfile *s = f->cfg.working_set;
	const int r = working_set_load(s->ws_path, &s->id, &f->ws);

	if (r < 0 && r != -ENOENT)
		log_line(&f->log, UP_LOG_WARNING, "%s: %s is not used: %s", f->name, s->ws_path,
			 r == -ESTALE	 ? "the snapshot is not the one that it was made of"
			 : r == -EBADMSG ? "it is broken"
			 : r == -ENOTSUP ? "it is of another version"
					 : strerror(-r));
	atomic_store(&f->bringing, f->ws.n > 0);
}

void *
fill_aide_main(void *arg)
{
	struct fill *f = arg;
	struct space *sp;

	pthread_mutex_lock(&f->lock);
	while (!atomic_load(&f->stop)) {
		sp = next_space(f);
		if (sp != NULL) {
			pthread_mutex_unlock(&f->lock);
			if (f->ws.n > 0) {
				atomic_store_explicit(&f->bringing, true, memory_order_release);
				prefetch(sp, &f->ws);
				atomic_store_explicit(&f->bringing, false, memory_order_release);
			}
			pthread_mutex_lock(&f->lock);
			continue;
		}
		if (f->record_until != 0 && now_ns() >= f->record_until)
			break;
		fill_nap(f, f->record_until != 0 ? f->record_until
						 : now_ns() + UINT64_C(3600000000000));
	}
	pthread_mutex_unlock(&f->lock);
	atomic_store(&f->recording, false);
	record(f);
	fill_at_the_end(f);
	return NULL;
}
