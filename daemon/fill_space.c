/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fill_space.c: an address space of a client: the states of its pages, its ranges, its beginning and end.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fill_record.h"
#include "fill_space.h"

#define LOW 0x5555555555555555u /* the lower bit of each */

/* --- states --- */

static unsigned
filled_in(uint64_t w)
{
	return (unsigned)__builtin_popcountll(w & LOW & ~(w >> 1));
}

/* Of so many pages at once.  How many more of them are FILLED now. */
static int64_t
state_set(struct space *sp, uint64_t first, uint64_t n, enum state s)
{
	const uint64_t end = first + n;
	int64_t more = 0;

	for (uint64_t at = first, next; at < end; at = next) {
		const unsigned lo = (unsigned)(at % STATES_A_WORD);
		_Atomic uint64_t *w = &sp->state[at / STATES_A_WORD];
		uint64_t old = atomic_load_explicit(w, memory_order_relaxed), mask, new;
		unsigned count;

		next = MIN(end, at - lo + STATES_A_WORD);
		count = (unsigned)(next - at);
		mask = (count == STATES_A_WORD ? ~UINT64_C(0) : (UINT64_C(1) << 2 * count) - 1)
		       << 2 * lo;
		do {
			new = (old & ~mask) | (mask & (LOW * (uint64_t)s));
		} while (!atomic_compare_exchange_weak_explicit(w, &old, new, memory_order_acq_rel,
								memory_order_relaxed));
		more += (int64_t)filled_in(new &mask) - (int64_t)filled_in(old & mask);
	}
	return more;
}

void
fspace_set(struct space *sp, const struct range *r, uint64_t start, uint64_t len, enum state s)
{
	const int64_t more =
		state_set(sp, range_page(r, start), len / r->r.page_size, s) * r->r.page_size;

	if (sp->linked)
		atomic_fetch_add_explicit(&sp->f->resident, (uint64_t)more, memory_order_relaxed);
}

/* The first MISSING page in [start, end), and how far from there on they are; 0: none. */
uint64_t
fspace_missing_run(const struct space *sp, const struct range *r, uint64_t start, uint64_t end,
		   uint64_t *at)
{
	const uint64_t last = range_page(r, end);
	uint64_t page = range_page(r, start), first;

	while (page < last) {
		if (page % STATES_A_WORD == 0 && page + STATES_A_WORD <= last) {
			const uint64_t w = atomic_load_explicit(&sp->state[page / STATES_A_WORD],
								memory_order_acquire);

			if (((w | w >> 1) & LOW) == LOW) {
				page += STATES_A_WORD;
				continue;
			}
		}
		if (fspace_state(sp, page) == MISSING)
			break;
		page++;
	}
	first = page;
	while (page < last && fspace_state(sp, page) == MISSING)
		page++;
	*at = r->r.start + (first - r->first) * r->r.page_size;
	return (page - first) * r->r.page_size;
}

uint64_t
fspace_missing(struct space *sp)
{
	uint64_t pages = 0, start;

	pthread_rwlock_rdlock(&sp->lock);
	for (size_t i = 0; i < sp->n; i++) {
		const struct range *r = &sp->range[i];
		const uint64_t end = r->r.start + r->r.len;
		uint64_t len;

		for (uint64_t at = r->r.start; at < end; at = start + len) {
			len = fspace_missing_run(sp, r, at, end, &start);
			if (len == 0)
				break;
			pages += len / r->r.page_size;
		}
	}
	pthread_rwlock_unlock(&sp->lock);
	return pages;
}

/* --- ranges --- */

/* The range of an address, or the first behind it, or n.  => read-locked, or the service thread */
size_t
fspace_find_from(const struct space *sp, uint64_t address)
{
	size_t lo = 0, hi = sp->n;

	while (lo < hi) {
		const size_t mid = (lo + hi) / 2;

		if (sp->range[mid].r.start + sp->range[mid].r.len <= address)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static bool
holds(const struct range *r, uint64_t address)
{
	return address >= r->r.start && address - r->r.start < r->r.len;
}

const struct range *
fspace_find(const struct space *sp, uint64_t address)
{
	const size_t i = fspace_find_from(sp, address);

	return i < sp->n && holds(&sp->range[i], address) ? &sp->range[i] : NULL;
}

const struct range *
fspace_find_again(struct space *sp, uint64_t address)
{
	if (sp->hit < sp->n && holds(&sp->range[sp->hit], address))
		return &sp->range[sp->hit];
	sp->hit = fspace_find_from(sp, address);
	return sp->hit < sp->n && holds(&sp->range[sp->hit], address) ? &sp->range[sp->hit] : NULL;
}

void
fspace_count_mapped(struct space *sp, int64_t more)
{
	if (sp->linked)
		atomic_fetch_add_explicit(&sp->f->mapped, (uint64_t)more, memory_order_relaxed);
}

bool
range_insert(struct space *sp, size_t at, const struct range *r)
{
	if (sp->n == sp->room) {
		const size_t room = MAX(2 * sp->room, (size_t)8);
		struct range *range;

		if (sp->n == FILL_RANGES_MAX)
			return false;
		range = realloc(sp->range, room * sizeof *range);
		if (range == NULL)
			return false;
		sp->range = range;
		sp->room = room;
	}
	memmove(sp->range + at + 1, sp->range + at, (sp->n - at) * sizeof *sp->range);
	sp->range[at] = *r;
	sp->n++;
	if (r->r.source != NULL)
		memfile_ref(r->r.source);
	return true;
}

void
range_drop(struct space *sp, size_t at)
{
	memfile_unref(sp->range[at].r.source);
	sp->n--;
	memmove(sp->range + at, sp->range + at + 1, (sp->n - at) * sizeof *sp->range);
}

static struct range
part(const struct range *r, uint64_t start, uint64_t end)
{
	struct range p = *r;

	p.r.start = start;
	p.r.len = end - start;
	p.r.offset += start - r->r.start;
	p.first += (start - r->r.start) / r->r.page_size;
	return p;
}

/* No range crosses `address` any more.  => write-locked */
bool
fspace_split(struct space *sp, uint64_t address)
{
	const size_t i = fspace_find_from(sp, address);
	struct range *r, tail;

	if (i == sp->n || sp->range[i].r.start >= address)
		return true;
	r = &sp->range[i];
	tail = part(r, address, r->r.start + r->r.len);
	if (!range_insert(sp, i + 1, &tail))
		return false;
	r = &sp->range[i];
	r->r.len = address - r->r.start;
	return true;
}

/* --- beginning and end --- */

/* Memory of so many bytes, at whose first use all is there.  NULL: none. */
void *
fill_memory(size_t len, int prot)
{
	void *p = mmap(NULL, len, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

int
fspace_make(struct fill *f, int uffd, unsigned flags, uint64_t pages, size_t ranges,
	    uint64_t number, struct space **out)
{
	pthread_rwlockattr_t attr;
	struct foreign_info info;
	struct space *sp;
	int r;

	*out = NULL;
	r = foreign_info(uffd, &info);
	if (r < 0)
		return r;
	if (pages > FILL_PAGES_MAX)
		return -E2BIG;
	sp = calloc(1, sizeof *sp);
	if (sp == NULL)
		return -ENOMEM;
	pthread_rwlockattr_init(&attr);
	/* Faults before what nobody waits for. */
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&sp->lock, &attr);
	pthread_rwlockattr_destroy(&attr);
	sp->f = f;
	sp->uffd = uffd;
	sp->flags = flags;
	sp->features = info.features;
	sp->protect = flags & FILL_TRACKED && info.features & UFFD_FEATURE_WP_ASYNC;
	sp->pages = pages;
	sp->rec_fd = -1;
	sp->number = number != 0 ? number : note_next(f);
	sp->parked = malloc(FILL_PARKED_MAX * sizeof *sp->parked);
	r = sp->parked == NULL ? -ENOMEM : record_make(sp, ranges);
	if (r < 0) {
		fspace_free(sp);
		return r;
	}
	*out = sp;
	return 0;
}

int
fspace_inherit(struct space *sp, const struct space *parent)
{
	for (uint64_t i = 0; i <= parent->pages / STATES_A_WORD; i++)
		atomic_store_explicit(&sp->state[i],
				      atomic_load_explicit(&parent->state[i], memory_order_relaxed),
				      memory_order_relaxed);
	for (size_t i = 0; i < parent->n; i++) {
		const struct range *r = &parent->range[i];

		if (!range_insert(sp, sp->n, r))
			return -ENOMEM;
		/* Not fspace_set(): nothing of it is counted yet. */
		if (r->r.wiped)
			state_set(sp, r->first, r->r.len / r->r.page_size, ZERO);
	}
	sp->broken = parent->broken;
	sp->kept = parent->kept;
	sp->tag = parent->tag;
	sp->brought = sp->child = true;
	return 0;
}

/* Its process is gone, or nobody has a use for it any more.  => write-locked */
void
fspace_close(struct space *sp)
{
	struct fill *f = sp->f;

	if (sp->uffd < 0)
		return;
	record_drop(sp);
	for (size_t i = 0; i < sp->n; i++) {
		const struct range *r = &sp->range[i];

		fspace_count_mapped(sp, -(int64_t)r->r.len);
		fspace_set(sp, r, r->r.start, r->r.len, MISSING);
		memfile_unref(r->r.source);
	}
	sp->n = 0;
	sp->nparked = 0;
	sp->wake_all = false;
	epoll_ctl(f->epoll, EPOLL_CTL_DEL, sp->uffd, NULL);
	close(sp->uffd);
	sp->uffd = -1;
}

/* => the service thread, no lock held */
void
fspace_gone(struct space *sp)
{
	struct fill *f = sp->f;

	if (sp->uffd < 0)
		return;
	pthread_rwlock_wrlock(&sp->lock);
	fspace_close(sp);
	pthread_rwlock_unlock(&sp->lock);
	if (atomic_fetch_sub(&f->living, 1) == 1)
		f->cfg.notify(f->cfg.ctx, FILL_GONE);
}

/* Not linked, its uffd not its own any more. */
void
fspace_free(struct space *sp)
{
	if (sp == NULL)
		return;
	for (size_t i = 0; i < sp->n; i++)
		memfile_unref(sp->range[i].r.source);
	record_free(sp);
	free(sp->range);
	free(sp->parked);
	pthread_rwlock_destroy(&sp->lock);
	free(sp);
}
