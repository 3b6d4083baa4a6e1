/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fill.c: the threads that fill memory of another process.
 *
 *	service thread, for all the client's life	aide, for its first seconds (only with a working set)
 *	  waits (epoll): userfaultfds, the door		  brings what the record says, in the order of the file
 *	  reads all there is: events at once, then	  waits for the end of the window, or of the client
 *	  the faults					  writes a record of what was asked for
 *
 * A page, two bits:
 *
 *	          copy                    REMOVE
 *	MISSING --------> FILLED -----------------------> ZERO
 *	  |  |               ^----------- zeros ------------'  ^
 *	  |  '------------------------- REMOVE ----------------+
 *	  '-- can't be read --> LOST (SIGBUS) ---- REMOVE -----'
 *
 * A fault on a page that is FILLED is either the message of a second thread, and then the page is there; or the page has been thrown out
 * without a word, and then it reads as zeros, as it would without us.  Only a MISSING page ever gets what the file has.
 *
 * Order.  read() hands out faults before events, so all is read before any is served; a fault may then be of a mapping that has ended:
 * ENOENT.  The client goes on as soon as its event is read.  So it is read and acted upon with the space's lock held for writing, and
 * who copies looks at the state and copies with it held for reading: otherwise the aide could bring back what has been removed
 * between the two.  The service thread, the only one to write, need not take it to read.
 *
 * While an event waits the kernel answers EAGAIN: the fault is parked, and tried again after the next events or a moment later.  When there
 * is no room to park it, everything is woken a moment later, and who still misses a page asks again.  The same is done by a watchdog:
 * threads wait (fdinfo), and we know of none.
 *
 * Locks: f->lock, then a space's.  Keys: (c) constant, (f) f->lock, (l) the space's lock, (s) the service thread, (a) atomic.
 */
#include "fill.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/histogram.h"
#include "pmap/uffd_abi.h"

#define MSGS 64	   /* of one read */
#define FAULTS 256 /* read before any is served */
#define STACK ((size_t)256 << 10)
#define PARK_MS 1	      /* until parked faults are tried again */
#define WATCHDOG_MS 100	      /* without a fault, while threads wait */
#define SETTLE_TRIES 1000     /* ms that the end puts up with it */
#define AIDE_TRIES 200	      /* ms that the aide puts up with EAGAIN */
#define WARM_MIN (256u << 10) /* bytes that the aide reads at a time, at first */
#define WARM (2u << 20)	      /* and later */
#define ALONG \
	(64u << 10) /* bytes of the working set that a fault brings along while the aide is at it */
#define AHEAD (8u << 20) /* and asks the kernel for before */
#define GAP (64u << 10)	 /* pages in between that are read along, so that reads are large */
#define JOIN_PART \
	16 /* a record is joined with what it lacked if that is more than such a part of it */
#define STRIP 64

enum state { MISSING, FILLED, ZERO, LOST };
#define STATES_A_WORD 32
#define LOW 0x5555555555555555u /* the lower bit of each */

struct range {
	struct fill_range r;
	uint64_t first; /* its first page in the space's states */
};

struct fault {
	uint64_t address, flags, since;
};

struct space {
	struct fill *f;		 /* (c) */
	struct space *next;	 /* (f) to change, then by the service thread */
	pthread_rwlock_t lock;	 /* see above */
	int uffd;		 /* (l) -1: the process is gone */
	unsigned flags;		 /* (c) FILL_TRACKED... */
	uint64_t features;	 /* (c) of its userfaultfd */
	struct range *range;	 /* (l) by address */
	size_t n, room;		 /* (l) */
	size_t hit;		 /* (s) the last range that was looked for */
	_Atomic uint64_t *state; /* (c), (a) */
	uint64_t pages;		 /* (c) states that there are */
	atomic_bool protect;	 /* (a) copies are write-protected */
	bool broken;		 /* (s) what is where is not known any more */
	bool wake_all;		 /* (s) some faults could not be parked */
	bool brought;		 /* (f) the aide has been here */
	bool child;		 /* (c) of fork(): it goes while the others stay */
	struct fault *parked;	 /* (s) FILL_PARKED_MAX */
	size_t nparked;		 /* (s) */
	uint64_t drained;	 /* (s) nothing is missing below, once it is to be filled */
};

struct fill {
	struct fill_config cfg;
	char name[64];
	struct logger log;
	pthread_mutex_t lock;
	pthread_cond_t cond;	      /* the aide's */
	struct space *_Atomic spaces; /* (f) to change; ended ones too, until the end of all */
	struct space *born;	      /* (s) children that are not in the list yet */
	unsigned nspaces;	      /* (f) */
	int epoll, door, clock;	      /* (c) the door: an eventfd; a timerfd */
	pthread_t service, aide;
	bool has_aide;
	atomic_int threads;   /* (a) that are not at their end */
	atomic_bool stop;     /* (a) */
	_Atomic uint64_t end; /* (a) enum fill_end << 56 | when it ends at last, ns */
	atomic_uint living;   /* (a) spaces with a process */
	bool no_poison;	      /* (s) */
	void *bounce;	      /* (s) FILL_HUGE bytes, once it is needed */
	void *zeros;	      /* (s) the same, of zeros */
	bool busy;	      /* (s) something has been read since the last tick */
	bool ticking;	      /* (s) the watchdog's clock runs: threads may wait */
	uint64_t retried_at;  /* (s) when what was parked was tried last */
	unsigned enomem;      /* (s) */
	bool draining;	      /* (s) pages that nobody asks for are filled, too */

	/* What was asked for in the first seconds: a bit a page of the file. */
	_Atomic uint64_t *asked; /* (c), (a) */
	uint64_t record_until;	 /* (a) once it is set */
	atomic_bool recording;
	struct working_set ws;	/* (c) once `bringing` has been set */
	atomic_bool bringing;	/* the aide is at it */
	uint64_t along[FAULTS]; /* (s) faults whose neighbours are wanted */
	size_t nalong;		/* (s) */

	struct histogram *copied, *zeroed, *there; /* (a) latencies */
	_Atomic uint64_t mapped, resident, again, exists, deferred, prefetched, lost, wp, rescues;
	_Atomic uint64_t lost_told;
};

/* --- states --- */

static enum state
state_get(const struct space *sp, uint64_t page)
{
	return (enum state)(
		atomic_load_explicit(&sp->state[page / STATES_A_WORD], memory_order_acquire) >>
			2 * (page % STATES_A_WORD) &
		3);
}

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

static uint64_t
page_at(const struct range *r, uint64_t address)
{
	return r->first + (address - r->r.start) / r->r.page_size;
}

static void
set_pages(struct space *sp, const struct range *r, uint64_t start, uint64_t len, enum state s)
{
	const int64_t more =
		state_set(sp, page_at(r, start), len / r->r.page_size, s) * r->r.page_size;

	atomic_fetch_add_explicit(&sp->f->resident, (uint64_t)more, memory_order_relaxed);
}

/* The first MISSING page in [start, end), and how far from there on they are; 0: none. */
static uint64_t
missing_run(const struct space *sp, const struct range *r, uint64_t start, uint64_t end,
	    uint64_t *at)
{
	const uint64_t last = page_at(r, end);
	uint64_t page = page_at(r, start), first;

	while (page < last) {
		if (page % STATES_A_WORD == 0 && page + STATES_A_WORD <= last) {
			const uint64_t w = atomic_load_explicit(&sp->state[page / STATES_A_WORD],
								memory_order_acquire);

			if (((w | w >> 1) & LOW) == LOW) {
				page += STATES_A_WORD;
				continue;
			}
		}
		if (state_get(sp, page) == MISSING)
			break;
		page++;
	}
	first = page;
	while (page < last && state_get(sp, page) == MISSING)
		page++;
	*at = r->r.start + (first - r->first) * r->r.page_size;
	return (page - first) * r->r.page_size;
}

/* --- ranges --- */

/* The range of an address, or the first behind it, or n.  => read-locked, or the service thread */
static size_t
find_from(const struct space *sp, uint64_t address)
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

static const struct range *
find(const struct space *sp, uint64_t address)
{
	const size_t i = find_from(sp, address);

	return i < sp->n && holds(&sp->range[i], address) ? &sp->range[i] : NULL;
}

static const struct range *
find_again(struct space *sp, uint64_t address)
{
	if (sp->hit < sp->n && holds(&sp->range[sp->hit], address))
		return &sp->range[sp->hit];
	sp->hit = find_from(sp, address);
	return sp->hit < sp->n && holds(&sp->range[sp->hit], address) ? &sp->range[sp->hit] : NULL;
}

static void
count_mapped(struct fill *f, int64_t more)
{
	atomic_fetch_add_explicit(&f->mapped, (uint64_t)more, memory_order_relaxed);
}

static bool
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

static void
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
static bool
split(struct space *sp, uint64_t address)
{
	const size_t i = find_from(sp, address);
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

/* --- the end of a space --- */

/* Its process is gone, or nobody has a use for it any more.  => write-locked */
static void
space_close(struct space *sp)
{
	struct fill *f = sp->f;

	if (sp->uffd < 0)
		return;
	for (size_t i = 0; i < sp->n; i++) {
		const struct range *r = &sp->range[i];

		count_mapped(f, -(int64_t)r->r.len);
		set_pages(sp, r, r->r.start, r->r.len, MISSING);
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
static void
space_gone(struct space *sp)
{
	struct fill *f = sp->f;

	if (sp->uffd < 0)
		return;
	pthread_rwlock_wrlock(&sp->lock);
	space_close(sp);
	pthread_rwlock_unlock(&sp->lock);
	if (atomic_fetch_sub(&f->living, 1) == 1)
		f->cfg.notify(f->cfg.ctx, FILL_GONE);
}

/* Not linked, its uffd not its own any more. */
static void
space_free(struct space *sp)
{
	if (sp == NULL)
		return;
	for (size_t i = 0; i < sp->n; i++)
		memfile_unref(sp->range[i].r.source);
	if (sp->state != NULL)
		munmap((void *)(uintptr_t)sp->state,
		       round_up(sp->pages / STATES_A_WORD * 8 + 8, PAGE_SIZE));
	free(sp->range);
	free(sp->parked);
	pthread_rwlock_destroy(&sp->lock);
	free(sp);
}

/* --- one page --- */

enum outcome { DONE, WAS_THERE, AGAIN, GONE };

/* What is told the 1st, 2nd, 4th, 8th... time. */
static bool
power_of_two(uint64_t n)
{
	return (n & (n - 1)) == 0;
}

/* EAGAIN and whatever passes: later.  Anything else that can not be is told once in a while. */
static enum outcome
later(struct space *sp, int err)
{
	struct fill *f = sp->f;

	if (err == -ESRCH)
		return GONE;
	if (err == -EAGAIN)
		atomic_fetch_add_explicit(&f->again, 1, memory_order_relaxed);
	else if (power_of_two(++f->enomem))
		log_line(&f->log, UP_LOG_WARNING, "%s: no memory for its pages (%s), tried again",
			 f->name, strerror(-err));
	return AGAIN;
}

/* The page is there, or nothing is registered there: whoever waits looks again. */
static enum outcome
there(struct space *sp, uint64_t at, uint64_t len)
{
	atomic_fetch_add_explicit(&sp->f->exists, 1, memory_order_relaxed);
	foreign_wake(sp->uffd, at, len);
	return WAS_THERE;
}

/* Where the kernel has no UFFDIO_POISON: who touches the page gets the same signal, from us; it still misses the page. */
static void
signal_client(struct fill *f)
{
	if (f->cfg.pidfd < 0 || syscall(SYS_pidfd_send_signal, f->cfg.pidfd, SIGBUS, NULL, 0) < 0)
		log_line(
			&f->log, UP_LOG_ERROR,
			"%s: it can not be told that a page is lost; the thread that touched it waits for ever",
			f->name);
}

static enum outcome
lose(struct space *sp, const struct range *r, uint64_t at, uint64_t len, const char *why)
{
	struct fill *f = sp->f;
	int err = -ENOTTY;
	uint64_t done;

	if (!f->no_poison)
		err = foreign_poison(sp->uffd, at, len, &done);
	if (err == -EAGAIN || err == -ENOMEM || err == -ESRCH)
		return later(sp, err);
	if (err == -EEXIST || err == -ENOENT)
		return there(sp, at, len);
	if (r == NULL || state_get(sp, page_at(r, at)) != LOST) {
		const uint64_t n = atomic_fetch_add(&f->lost, 1) + 1;

		if (r != NULL)
			set_pages(sp, r, at, len, LOST);
		if (power_of_two(n))
			log_line(
				&f->log, UP_LOG_ERROR,
				"%s: page at %#llx (%s, offset %#llx) is lost: %s; SIGBUS there; %llu so far",
				f->name, (unsigned long long)at,
				r != NULL ? r->r.source->path : "in no region",
				r != NULL ? (unsigned long long)(r->r.offset + (at - r->r.start))
					  : 0ull,
				why, (unsigned long long)n);
	}
	if (err < 0) {
		f->no_poison = true;
		signal_client(f);
	}
	return DONE;
}

/* Memory of so many bytes, at whose first use all is there.  NULL: none. */
static void *
memory(size_t len, int prot)
{
	void *p = mmap(NULL, len, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* By us, or somebody was faster. */
static bool
is_there(int err)
{
	return err == 0 || err == -EEXIST;
}

/* What becomes of a fault whose page was to be installed, with that result. */
static enum outcome
installed(struct space *sp, const struct range *r, uint64_t at, uint64_t len, int err)
{
	switch (-err) {
	case 0:
		return DONE;
	case EEXIST:
	case ENOENT:
		return there(sp, at, len);
	case EAGAIN:
	case ENOMEM:
	case ENOSPC:
	case ESRCH:
		return later(sp, err);
	default:
		return lose(sp, r, at, len, strerror(-err));
	}
}

static enum outcome
put_zeros(struct space *sp, const struct range *r, uint64_t at, uint64_t len)
{
	struct fill *f = sp->f;
	uint64_t done;
	int err = -EINVAL;

	if (len == PAGE_SIZE)
		err = foreign_zero(sp->uffd, at, len, &done);
	/* Huge pages have no ZEROPAGE. */
	if (err == -EINVAL) {
		if (f->zeros == NULL && (f->zeros = memory(FILL_HUGE, PROT_READ)) == NULL)
			return AGAIN;
		err = foreign_copy(sp->uffd, at, f->zeros, len, false, &done);
	}
	if (r != NULL && is_there(err))
		set_pages(sp, r, at, len, FILLED);
	return installed(sp, r, at, len, err);
}

/* The mapping could not be read: is it the file, and what is there? */
static int
copy_by_hand(struct space *sp, const struct range *r, uint64_t at, uint64_t offset, uint64_t len,
	     const char **why)
{
	struct fill *f = sp->f;
	uint64_t done;
	int err;

	(void)r;
	*why = NULL;
	if (f->bounce == NULL && (f->bounce = memory(FILL_HUGE, PROT_READ | PROT_WRITE)) == NULL)
		return -ENOMEM;
	err = memfile_read(r->r.source, offset, f->bounce, len);
	if (err < 0) {
		*why = err == -ENODATA ? "the file has been cut short" : strerror(-err);
		return err;
	}
	return foreign_copy(sp->uffd, at, f->bounce, len, sp->protect, &done);
}

static void
was_asked_for(struct fill *f, const struct range *r, uint64_t offset)
{
	const uint64_t from = offset / WORKING_SET_PAGE,
		       to = (offset + r->r.page_size) / WORKING_SET_PAGE;

	if (r->r.source != f->cfg.working_set)
		return;
	for (uint64_t i = from; i < to; i++)
		atomic_fetch_or_explicit(&f->asked[i / 64], UINT64_C(1) << i % 64,
					 memory_order_relaxed);
}

static enum outcome
put_content(struct space *sp, const struct range *r, uint64_t at, uint64_t len)
{
	const uint64_t offset = r->r.offset + (at - r->r.start);
	struct memfile *s = r->r.source;
	const char *why = "the file has been cut short";
	uint64_t done;
	int err;

	if (offset + len > memfile_size_now(s))
		return lose(sp, r, at, len, why);
	err = foreign_copy(sp->uffd, at, s->map + offset, len, sp->protect, &done);
	if (err == -EINVAL && sp->protect) {
		/* It is not registered for that. */
		sp->protect = false;
		err = foreign_copy(sp->uffd, at, s->map + offset, len, false, &done);
	}
	if (err == -EFAULT) {
		err = copy_by_hand(sp, r, at, offset, len, &why);
		if (why != NULL)
			return lose(sp, r, at, len, why);
	}
	if (is_there(err)) {
		set_pages(sp, r, at, len, FILLED);
		if (atomic_load_explicit(&sp->f->recording, memory_order_relaxed))
			was_asked_for(sp->f, r, offset);
	}
	return installed(sp, r, at, len, err);
}

/* --- faults --- */

static enum outcome
serve(struct space *sp, const struct fault *fault)
{
	struct fill *f = sp->f;
	const struct range *r = find_again(sp, fault->address);
	const uint64_t size = r != NULL ? r->r.page_size : PAGE_SIZE;
	const uint64_t at = fault->address & ~(size - 1);
	struct histogram *h;
	enum outcome o;

	if (fault->flags & UFFD_PAGEFAULT_FLAG_WP) {
		const int err = foreign_unprotect(sp->uffd, at, size);

		atomic_fetch_add_explicit(&f->wp, 1, memory_order_relaxed);
		if (err == -EAGAIN || err == -ESRCH)
			return later(sp, err);
		if (err < 0)
			foreign_wake(sp->uffd, at, size);
		return DONE;
	}
	if (sp->broken)
		return lose(sp, r, at, size, "its mappings could not be followed");
	if (r == NULL) {
		if (!(sp->flags & FILL_OUTSIDE_ZERO))
			return lose(sp, NULL, at, size, "a fault where nothing was said to be");
		h = f->zeroed;
		o = put_zeros(sp, NULL, at, size);
	} else {
		switch (state_get(sp, page_at(r, at))) {
		case MISSING:
			h = f->copied;
			o = put_content(sp, r, at, size);
			if (o == DONE && atomic_load_explicit(&f->bringing, memory_order_acquire) &&
			    f->nalong < FAULTS)
				f->along[f->nalong++] = at;
			break;
		case LOST:
			return lose(sp, r, at, size, "");
		default:
			h = f->zeroed;
			o = put_zeros(sp, r, at, size);
			break;
		}
	}
	if (o == DONE || o == WAS_THERE)
		histogram_add(o == DONE ? h : f->there, now_ns() - fault->since);
	return o;
}

static void
park(struct space *sp, const struct fault *fault)
{
	atomic_fetch_add_explicit(&sp->f->deferred, 1, memory_order_relaxed);
	if (sp->nparked < FILL_PARKED_MAX)
		sp->parked[sp->nparked++] = *fault;
	else
		sp->wake_all = true;
}

static void
wake_space(struct space *sp)
{
	for (size_t i = 0; i < sp->n; i++)
		foreign_wake(sp->uffd, sp->range[i].r.start, sp->range[i].r.len);
}

/* Those that had to wait, once. */
static void
serve_parked(struct space *sp)
{
	const size_t n = sp->nparked;
	size_t kept = 0;

	for (size_t i = 0; i < n && sp->uffd >= 0; i++) {
		switch (serve(sp, &sp->parked[i])) {
		case DONE:
		case WAS_THERE:
			break;
		case AGAIN:
			sp->parked[kept++] = sp->parked[i];
			break;
		case GONE:
			space_gone(sp);
			return;
		}
	}
	sp->nparked = kept;
	if (sp->wake_all && kept == 0) {
		sp->wake_all = false;
		wake_space(sp);
	}
}

/* --- events --- */

/* Pages that only partly belong to it stay as they are: the kernel throws out whole ones. */
static void
on_remove(struct space *sp, uint64_t start, uint64_t end)
{
	for (size_t i = find_from(sp, start); i < sp->n && sp->range[i].r.start < end; i++) {
		const struct range *r = &sp->range[i];
		const uint64_t size = r->r.page_size;
		const uint64_t lo = MAX(start, r->r.start), hi = MIN(end, r->r.start + r->r.len);
		const uint64_t from = (lo + size - 1) & ~(size - 1), to = hi & ~(size - 1);

		if (from < to)
			set_pages(sp, r, from, to - from, ZERO);
	}
}

static void
on_unmap(struct space *sp, uint64_t start, uint64_t end)
{
	size_t i;

	/* Not split: nobody asks for what is not mapped, and what comes there next is not registered with this one. */
	if (!split(sp, start) || !split(sp, end))
		return;
	i = find_from(sp, start);
	while (i < sp->n && sp->range[i].r.start < end) {
		const struct range *r = &sp->range[i];

		count_mapped(sp->f, -(int64_t)r->r.len);
		set_pages(sp, r, r->r.start, r->r.len, MISSING);
		range_drop(sp, i);
	}
}

static void
on_remap(struct space *sp, uint64_t from, uint64_t to, uint64_t len)
{
	struct range *moved = NULL;
	size_t first, n = 0;

	if (from == to)
		return;
	if (!split(sp, from) || !split(sp, from + len))
		goto broken;
	first = find_from(sp, from);
	while (first + n < sp->n && sp->range[first + n].r.start < from + len)
		n++;
	if (n > 0) {
		moved = malloc(n * sizeof *moved);
		if (moved == NULL)
			goto broken;
		memcpy(moved, sp->range + first, n * sizeof *moved);
		sp->n -= n;
		memmove(sp->range + first, sp->range + first + n,
			(sp->n - first) * sizeof *sp->range);
	}
	/* What was there has been unmapped; that may not have been told yet, or not have been ours. */
	on_unmap(sp, to, to + len);
	for (size_t i = 0; i < n; i++) {
		moved[i].r.start += to - from;
		if (!range_insert(sp, find_from(sp, moved[i].r.start), &moved[i])) {
			free(moved);
			goto broken;
		}
		memfile_unref(moved[i].r.source); /* the one of where it was */
	}
	free(moved);
	return;
broken:
	sp->broken = true;
	log_line(
		&sp->f->log, UP_LOG_ERROR,
		"%s: no memory, or too many ranges, to follow its mremap(): SIGBUS where it has no pages yet",
		sp->f->name);
}

static int space_make(struct fill *f, int uffd, unsigned flags, uint64_t pages, struct space **out);
static int space_link(struct fill *f, struct space *sp);

static void
orphan(struct fill *f, int r)
{
	log_line(&f->log, UP_LOG_ERROR, "%s: its child can not be served: %s", f->name,
		 strerror(-r));
}

static void
on_fork(struct space *parent, int uffd)
{
	struct fill *f = parent->f;
	struct space *sp;
	int r;

	r = space_make(f, uffd, parent->flags, parent->pages, &sp);
	if (r < 0)
		goto fail;
	for (uint64_t i = 0; i <= parent->pages / STATES_A_WORD; i++)
		atomic_store_explicit(&sp->state[i],
				      atomic_load_explicit(&parent->state[i], memory_order_relaxed),
				      memory_order_relaxed);
	for (size_t i = 0; i < parent->n && r == 0; i++) {
		if (!range_insert(sp, sp->n, &parent->range[i]))
			r = -ENOMEM;
	}
	sp->broken = parent->broken;
	sp->brought = sp->child = true;
	if (r == 0) {
		/* Linked by link_born(): f->lock comes before the parent's, which is held. */
		sp->next = f->born;
		f->born = sp;
		return;
	}
	space_free(sp);
fail:
	/* Its userfaultfd is not closed: it would read zeros.  Its threads wait. */
	orphan(f, r);
}

static void
event(struct space *sp, const struct uffd_msg *m)
{
	switch (m->event) {
	case UFFD_EVENT_REMOVE:
		on_remove(sp, m->arg.remove.start, m->arg.remove.end);
		break;
	case UFFD_EVENT_UNMAP:
		on_unmap(sp, m->arg.remove.start, m->arg.remove.end);
		break;
	case UFFD_EVENT_REMAP:
		on_remap(sp, m->arg.remap.from, m->arg.remap.to, m->arg.remap.len);
		break;
	case UFFD_EVENT_FORK:
		on_fork(sp, (int)m->arg.fork.ufd);
		break;
	default:
		log_line(&sp->f->log, UP_LOG_WARNING, "%s: unknown event %u", sp->f->name,
			 m->event);
	}
}

/*
 * Read what there is, and act upon the events.  How many faults are in `fault`; *more: there may be more to read.  They are to be
 * read under the lock, as who waits for an event goes on as soon as it is read.
 */
static size_t
drain(struct space *sp, struct fault fault[FAULTS], bool *more)
{
	struct uffd_msg msg[MSGS];
	size_t n = 0;

	*more = false;
	pthread_rwlock_wrlock(&sp->lock);
	while (n <= FAULTS - MSGS) {
		const ssize_t len = read(sp->uffd, msg, sizeof msg);
		const size_t count = len > 0 ? (size_t)len / sizeof msg[0] : 0;
		const uint64_t now = now_ns();

		for (size_t i = 0; i < count; i++) {
			if (msg[i].event == UFFD_EVENT_PAGEFAULT)
				fault[n++] = (struct fault){ msg[i].arg.pagefault.address,
							     msg[i].arg.pagefault.flags, now };
			else
				event(sp, &msg[i]);
		}
		if (count > 0)
			sp->f->busy = true;
		if (count < MSGS)
			break;
		*more = n > FAULTS - MSGS;
	}
	pthread_rwlock_unlock(&sp->lock);
	return n;
}

static int bring(struct space *sp, uint64_t *at, uint64_t end);

/* The watchdog's clock. */
static void
tick(struct fill *f, bool run)
{
	const struct timespec period = { .tv_nsec = run ? WATCHDOG_MS * 1000000l : 0 };
	const struct itimerspec it = { period, period };

	f->ticking = run;
	timerfd_settime(f->clock, 0, &it, NULL);
}

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
static void
bring_along(struct space *sp)
{
	struct fill *f = sp->f;

	for (size_t i = 0; i < f->nalong && sp->uffd >= 0; i++) {
		const struct range *r = find_again(sp, f->along[i]);
		uint64_t at, len;

		if (r == NULL || r->r.page_size != PAGE_SIZE || r->r.source != f->cfg.working_set)
			continue;
		at = f->along[i] + PAGE_SIZE;
		len = follow(&f->ws, r->r.offset + (at - r->r.start));
		len = MIN(MIN(len, ALONG), r->r.start + r->r.len - at);
		len = in_memory(r->r.source, r->r.offset + (at - r->r.start), len);
		if (len > 0 && bring(sp, &at, at + len) < 0)
			break;
	}
	f->nalong = 0;
}

static void
attend(struct space *sp)
{
	struct fault fault[FAULTS];
	bool more;

	do {
		const size_t n = drain(sp, fault, &more);

		if (!sp->f->ticking)
			tick(sp->f, true);
		if (sp->nparked > 0)
			serve_parked(sp);
		for (size_t i = 0; i < n && sp->uffd >= 0; i++) {
			switch (serve(sp, &fault[i])) {
			case DONE:
			case WAS_THERE:
				break;
			case AGAIN:
				park(sp, &fault[i]);
				break;
			case GONE:
				space_gone(sp);
				break;
			}
		}
		if (sp->f->nalong > 0)
			bring_along(sp);
	} while (more && sp->uffd >= 0);
}

/* --- pages that nobody waits for --- */

/*
 * Up to FILL_RUN bytes of what is MISSING in [*at, end); *at says how far it got.  0: go on; -EAGAIN: later; -ENODATA: nothing is
 * there to fill any more; any other error: no use going on.
 */
static int
bring(struct space *sp, uint64_t *at, uint64_t end)
{
	const struct range *r;
	uint64_t start, len, done = 0, offset;
	int err = 0;

	pthread_rwlock_rdlock(&sp->lock);
	r = sp->uffd < 0 ? NULL : find(sp, *at);
	if (r == NULL) {
		const size_t i = sp->uffd < 0 ? sp->n : find_from(sp, *at);

		*at = i < sp->n ? MIN(end, sp->range[i].r.start) : end;
		goto out;
	}
	end = MIN(end, r->r.start + r->r.len);
	len = missing_run(sp, r, *at, end, &start);
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
		set_pages(sp, r, start, done, FILLED);
		atomic_fetch_add_explicit(&sp->f->prefetched, done / r->r.page_size,
					  memory_order_relaxed);
		*at = start + done;
		err = 0;
		goto out;
	}
	switch (-err) {
	case EEXIST:
		set_pages(sp, r, start, r->r.page_size, FILLED);
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

/* --- the end of the service --- */

static void
nap_ms(unsigned ms)
{
	const struct timespec ts = { .tv_nsec = (long)ms * 1000000 };

	nanosleep(&ts, NULL);
}

static uint64_t
space_missing(struct space *sp)
{
	uint64_t pages = 0, start;

	pthread_rwlock_rdlock(&sp->lock);
	for (size_t i = 0; i < sp->n; i++) {
		const struct range *r = &sp->range[i];
		const uint64_t end = r->r.start + r->r.len;
		uint64_t len;

		for (uint64_t at = r->r.start; at < end; at = start + len) {
			len = missing_run(sp, r, at, end, &start);
			if (len == 0)
				break;
			pages += len / r->r.page_size;
		}
	}
	pthread_rwlock_unlock(&sp->lock);
	return pages;
}

/* One run of any space.  False: nothing is missing, or it can't be had. */
static bool
fill_some(struct fill *f)
{
	for (struct space *sp = f->spaces; sp != NULL; sp = sp->next) {
		while (sp->uffd >= 0 && sp->n > 0) {
			const struct fill_range *last = &sp->range[sp->n - 1].r;
			const uint64_t before = atomic_load(&f->prefetched);
			int err;

			if (sp->drained >= last->start + last->len)
				break;
			err = bring(sp, &sp->drained, last->start + last->len);
			if (err == -EAGAIN || atomic_load(&f->prefetched) != before)
				return true;
			if (err == -ESRCH)
				space_gone(sp);
			else if (err < 0)
				return false;
		}
	}
	return false;
}

/*
 * Nobody will serve it any more: what is missing is SIGBUS, and the rest is left to the kernel, as ordinary memory: so that nobody waits for
 * us, and what is removed from now on is zeros.
 */
static void
settle(struct space *sp)
{
	struct fill *f = sp->f;
	struct fault fault[FAULTS];
	uint64_t pages = 0;
	unsigned tries = 0;
	bool more, all = !f->no_poison;

	for (size_t i = 0; i < sp->n && all; i++) {
		const struct range r = sp->range[i];
		const uint64_t size = r.r.page_size, end = r.r.start + r.r.len;
		uint64_t at = r.r.start, start, done, max = r.r.len;

		while (all && at < end) {
			uint64_t len = missing_run(sp, &r, at, end, &start);
			int err;

			if (len == 0)
				break;
			len = MIN(len, max);
			err = foreign_poison(sp->uffd, start, len, &done);
			pages += done / size;
			if (done == 0 && len > size && (err == -ENOENT || err == -EINVAL)) {
				/* It is not all of one mapping. */
				max = MAX(size, len / 2 & ~(size - 1));
				continue;
			}
			if (done == 0 && (err == -EEXIST || err == -ENOENT)) {
				done = size;
			} else if (done == 0 && err == -EAGAIN && tries++ < SETTLE_TRIES) {
				drain(sp, fault, &more);
				nap_ms(1);
			} else if (done == 0) {
				all = false;
			}
			set_pages(sp, &r, start, done, LOST);
			at = start + done;
		}
	}
	if (pages > 0) {
		atomic_fetch_add(&f->lost, pages);
		log_line(
			&f->log, UP_LOG_WARNING,
			"%s: nobody serves it any more: %llu pages that it did not have yet are SIGBUS",
			f->name, (unsigned long long)pages);
	}
	if (!all) {
		log_line(
			&f->log, UP_LOG_ERROR,
			"%s: nobody serves it any more, and its missing pages could not be poisoned: who touches one waits",
			f->name);
		return;
	}
	for (size_t i = 0; i < sp->n; i++)
		foreign_unregister(sp->uffd, sp->range[i].r.start, sp->range[i].r.len);
	drain(sp, fault, &more);
}

/* --- the service thread --- */

static bool
must_retry(const struct space *sp)
{
	return sp->nparked > 0 || sp->wake_all;
}

/* Threads wait, and we know of none: they look again. */
static void
watchdog(struct fill *f)
{
	bool waiting = false;

	for (struct space *sp = f->spaces; sp != NULL; sp = sp->next) {
		struct foreign_info info;

		if (sp->uffd < 0 || must_retry(sp) || foreign_info(sp->uffd, &info) < 0 ||
		    info.total == 0)
			continue;
		waiting = true;
		/* Those that we have not read yet will be told by epoll. */
		if (info.total > info.pending) {
			atomic_fetch_add(&f->rescues, 1);
			wake_space(sp);
		}
	}
	if (!waiting)
		tick(f, false);
}

static int
wait_ms(struct fill *f)
{
	if (f->draining)
		return 0;
	for (const struct space *sp = f->spaces; sp != NULL; sp = sp->next) {
		if (must_retry(sp))
			return PARK_MS;
	}
	/* No time-out, which would cost each fault a timer: there is the clock. */
	return -1;
}

/* Whoever had to wait, once a moment. */
static void
retry(struct fill *f)
{
	bool any = false;

	for (struct space *sp = f->spaces; sp != NULL && !any; sp = sp->next)
		any = sp->uffd >= 0 && must_retry(sp);
	if (!any || now_ns() - f->retried_at < PARK_MS * UINT64_C(1000000))
		return;
	for (struct space *sp = f->spaces; sp != NULL; sp = sp->next) {
		if (sp->uffd >= 0 && must_retry(sp))
			attend(sp);
	}
	f->retried_at = now_ns();
}

/*
 * Children whose process is gone.  There is no event for that; so it is looked at whenever there is a new one, and there are never more than live
 * at once.  The aide knows no children, and the loop holds f->lock.
 */
static void
reap(struct fill *f)
{
	struct space *sp, *next, *before = NULL;

	for (sp = f->spaces; sp != NULL; sp = next) {
		next = sp->next;
		if (!sp->child || (sp->uffd >= 0 && foreign_alive(sp->uffd))) {
			before = sp;
			continue;
		}
		space_gone(sp);
		pthread_mutex_lock(&f->lock);
		if (before == NULL && f->spaces == sp) {
			f->spaces = next;
		} else {
			/* The loop may have put others in front. */
			if (before == NULL)
				for (before = f->spaces; before->next != sp; before = before->next)
					;
			before->next = next;
		}
		f->nspaces--;
		pthread_mutex_unlock(&f->lock);
		space_free(sp);
	}
}

/* Children that drain() has found. */
static void
link_born(struct fill *f)
{
	struct space *sp;

	reap(f);
	while ((sp = f->born) != NULL) {
		int r;

		f->born = sp->next;
		sp->next = NULL;
		r = space_link(f, sp);
		if (r < 0) {
			orphan(f, r);
			settle(sp);
			close(sp->uffd);
			space_free(sp);
		}
	}
}

static void
at_the_end(struct fill *f)
{
	if (atomic_fetch_sub(&f->threads, 1) == 1)
		f->cfg.notify(f->cfg.ctx, FILL_STOPPED);
}

static void
finish(struct fill *f, enum fill_end how)
{
	if (f->born != NULL)
		link_born(f);
	for (struct space *sp = f->spaces; sp != NULL; sp = sp->next) {
		if (sp->uffd < 0)
			continue;
		if (how != FILL_END_DROP && foreign_alive(sp->uffd))
			settle(sp);
		pthread_rwlock_wrlock(&sp->lock);
		space_close(sp);
		pthread_rwlock_unlock(&sp->lock);
	}
}

static void *
service_main(void *arg)
{
	struct fill *f = arg;
	enum fill_end how = FILL_END_DROP;

	for (;;) {
		struct epoll_event ev[16];
		int n;

		if (f->born != NULL)
			link_born(f);
		n = epoll_wait(f->epoll, ev, ARRAY_SIZE(ev), wait_ms(f));

		for (int i = 0; i < n; i++) {
			uint64_t count;

			if (ev[i].data.ptr != NULL && ev[i].data.ptr != f) {
				struct space *sp = ev[i].data.ptr;

				if (sp->uffd >= 0)
					attend(sp);
				continue;
			}
			if (read(ev[i].data.ptr == f ? f->clock : f->door, &count, sizeof count) <
			    0)
				continue;
			if (ev[i].data.ptr != f)
				tick(f,
				     true); /* a space may have come whose messages somebody else has read */
			else if (f->busy)
				f->busy = false;
			else
				watchdog(f);
		}
		retry(f);

		if (atomic_load(&f->stop)) {
			const uint64_t end = atomic_load(&f->end);

			how = (enum fill_end)(end >> 56);
			f->draining = how == FILL_END_FILL;
			if (!f->draining || now_ns() >= (end & ((UINT64_C(1) << 56) - 1)) ||
			    !fill_some(f))
				break;
		}
	}
	finish(f, how);
	at_the_end(f);
	return NULL;
}

/* --- the aide --- */

static void
nap(struct fill *f, uint64_t until)
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
		const int err = bring(sp, &at, end);

		if (err == -EAGAIN && tries++ < AIDE_TRIES) {
			pthread_mutex_lock(&f->lock);
			nap(f, now_ns() + 1000000);
			pthread_mutex_unlock(&f->lock);
		} else if (err < 0) {
			return false;
		}
	}
	return !atomic_load(&f->stop);
}

struct reader {
	const struct memfile *s;
	const struct working_set *ws;
	size_t run;	 /* the next that has not been asked for */
	uint64_t ahead;	 /* bytes of the file up to where it has */
	uint64_t window; /* bytes that are read at a time: few at first, since somebody waits */
};

/* Ask for what is in the record up to AHEAD bytes from here, neighbours in one. */
static void
read_ahead(struct reader *rd, uint64_t offset)
{
	while (rd->run < rd->ws->n && rd->ahead < offset + AHEAD) {
		const struct working_set_run *r = &rd->ws->run[rd->run];
		uint64_t start = MAX(r->first * WORKING_SET_PAGE, rd->ahead);
		uint64_t end = (r->first + r->n) * WORKING_SET_PAGE;

		rd->run++;
		while (rd->run < rd->ws->n && end - start < AHEAD &&
		       rd->ws->run[rd->run].first * WORKING_SET_PAGE - end <= GAP) {
			end = (rd->ws->run[rd->run].first + rd->ws->run[rd->run].n) *
			      WORKING_SET_PAGE;
			rd->run++;
		}
		if (end > start) {
			memfile_will_need(rd->s, start, end - start);
			rd->ahead = end;
		}
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
static void
load_record(struct fill *f)
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

static void *
aide_main(void *arg)
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
		nap(f, f->record_until != 0 ? f->record_until : now_ns() + UINT64_C(3600000000000));
	}
	pthread_mutex_unlock(&f->lock);
	atomic_store(&f->recording, false);
	record(f);
	at_the_end(f);
	return NULL;
}

/* --- the loop's side --- */

static int
start(struct fill *f, pthread_t *t, void *(*fn)(void *), const char *name)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(t, &attr, fn, f);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	if (r == 0)
		pthread_setname_np(*t, name);
	return -r;
}

static int
init(struct fill *f)
{
	struct epoll_event ev = { .events = EPOLLIN };
	pthread_condattr_t attr;

	pthread_mutex_init(&f->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&f->cond, &attr);
	pthread_condattr_destroy(&attr);
	f->door = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	f->epoll = epoll_create1(EPOLL_CLOEXEC);
	f->clock = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (f->door < 0 || f->clock < 0 || f->epoll < 0 ||
	    epoll_ctl(f->epoll, EPOLL_CTL_ADD, f->door, &ev) < 0)
		return -errno;
	ev.data.ptr = f;
	if (epoll_ctl(f->epoll, EPOLL_CTL_ADD, f->clock, &ev) < 0)
		return -errno;
	f->copied = calloc(1, sizeof *f->copied);
	f->zeroed = calloc(1, sizeof *f->zeroed);
	f->there = calloc(1, sizeof *f->there);
	if (f->copied == NULL || f->zeroed == NULL || f->there == NULL)
		return -ENOMEM;
	if (f->cfg.working_set != NULL) {
		f->asked = calloc((size_t)(f->cfg.working_set->size / WORKING_SET_PAGE / 64 + 1),
				  sizeof *f->asked);
		if (f->asked == NULL)
			return -ENOMEM;
	}
	return 0;
}

static void
fini(struct fill *f)
{
	struct space *sp;

	while ((sp = f->born) != NULL) {
		f->born = sp->next;
		close(sp->uffd);
		space_free(sp);
	}
	while ((sp = f->spaces) != NULL) {
		f->spaces = sp->next;
		if (sp->uffd >= 0)
			close(sp->uffd);
		space_free(sp);
	}
	if (f->epoll >= 0)
		close(f->epoll);
	if (f->door >= 0)
		close(f->door);
	if (f->clock >= 0)
		close(f->clock);
	if (f->bounce != NULL)
		munmap(f->bounce, FILL_HUGE);
	if (f->zeros != NULL)
		munmap(f->zeros, FILL_HUGE);
	working_set_free(&f->ws);
	memfile_unref(f->cfg.working_set);
	pthread_mutex_destroy(&f->lock);
	pthread_cond_destroy(&f->cond);
	free(f->asked);
	free(f->copied);
	free(f->zeroed);
	free(f->there);
	free(f);
}

int
fill_create(struct fill **out, const struct fill_config *cfg)
{
	struct fill *f = calloc(1, sizeof *f);
	int r;

	*out = NULL;
	if (f == NULL)
		return -ENOMEM;
	f->cfg = *cfg;
	f->log = cfg->log;
	f->epoll = f->door = f->clock = -1;

	f->no_poison = cfg->call_mask & FILL_NO_POISON;
	snprintf(f->name, sizeof f->name, "%s", cfg->name);
	if (cfg->working_set != NULL)
		memfile_ref(cfg->working_set);
	r = init(f);
	if (r < 0)
		goto fail;
	if (cfg->working_set != NULL)
		load_record(f);
	atomic_store(&f->recording, cfg->working_set != NULL);
	atomic_store(&f->threads, cfg->working_set != NULL ? 2 : 1);
	r = start(f, &f->service, service_main, "fill");
	if (r < 0)
		goto fail;
	if (cfg->working_set != NULL) {
		r = start(f, &f->aide, aide_main, "fill-aide");
		if (r < 0) {
			log_line(&f->log, UP_LOG_WARNING, "%s: no thread for its working set: %s",
				 f->name, strerror(-r));
			atomic_store(&f->recording, false);
			atomic_fetch_sub(&f->threads, 1);
		} else {
			f->has_aide = true;
		}
	}
	*out = f;
	return 0;
fail:
	fini(f);
	return r;
}

static int
space_make(struct fill *f, int uffd, unsigned flags, uint64_t pages, struct space **out)
{
	pthread_rwlockattr_t attr;
	struct foreign_info info;
	struct space *sp;
	void *state;
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
	state = memory(round_up(pages / STATES_A_WORD * 8 + 8, PAGE_SIZE), PROT_READ | PROT_WRITE);
	sp->state = state;
	sp->parked = malloc(FILL_PARKED_MAX * sizeof *sp->parked);
	if (state == NULL || sp->parked == NULL) {
		space_free(sp);
		return -ENOMEM;
	}
	*out = sp;
	return 0;
}

/* It is served from now on.  The lock is not held. */
static int
space_link(struct fill *f, struct space *sp)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = sp };
	const int flags = fcntl(sp->uffd, F_GETFL);
	int64_t mapped = 0, filled = 0;
	int r = 0;

	/* Of one that blocks poll() says POLLERR only. */
	if (flags < 0 || fcntl(sp->uffd, F_SETFL, flags | O_NONBLOCK) < 0)
		return -errno;
	fcntl(sp->uffd, F_SETFD, FD_CLOEXEC);
	for (size_t i = 0; i < sp->n; i++)
		mapped += (int64_t)sp->range[i].r.len;
	for (size_t i = 0; i < sp->n; i++) {
		const struct range *rg = &sp->range[i];

		for (uint64_t p = 0; p < rg->r.len / rg->r.page_size; p++) {
			if (!sp->brought)
				break;
			if (state_get(sp, rg->first + p) == FILLED)
				filled += rg->r.page_size;
		}
	}
	pthread_mutex_lock(&f->lock);
	if (f->nspaces == FILL_SPACES_MAX)
		r = -E2BIG;
	else if (epoll_ctl(f->epoll, EPOLL_CTL_ADD, sp->uffd, &ev) < 0)
		r = -errno;
	if (r == 0) {
		f->nspaces++;
		sp->next = f->spaces;
		f->spaces = sp;
		atomic_fetch_add(&f->living, 1);
		count_mapped(f, mapped);
		atomic_fetch_add(&f->resident, (uint64_t)filled);
	}
	pthread_mutex_unlock(&f->lock);
	return r;
}

static int
by_start(const void *a, const void *b)
{
	const struct range *x = a, *y = b;

	return x->r.start < y->r.start ? -1 : x->r.start > y->r.start;
}

static bool
range_sound(const struct fill_range *r)
{
	const uint64_t size = r->page_size;

	return (size == PAGE_SIZE || size == FILL_HUGE) && r->len > 0 && r->len % size == 0 &&
	       r->start % size == 0 && r->start + r->len > r->start && r->source != NULL &&
	       r->offset % PAGE_SIZE == 0 && r->offset < r->source->size &&
	       r->len <= r->source->size - r->offset;
}

static void
open_door(struct fill *f)
{
	const uint64_t one = 1;

	if (write(f->door, &one, sizeof one) < 0)
		log_line(&f->log, UP_LOG_ERROR, "eventfd: %s", strerror(errno));
}

int
fill_add(struct fill *f, int uffd, const struct fill_range *range, size_t n, unsigned flags)
{
	struct space *sp;
	uint64_t pages = 0;
	int r;

	if (n == 0)
		return -EINVAL;
	if (n > FILL_RANGES_MAX / 2)
		return -E2BIG;
	for (size_t i = 0; i < n; i++) {
		if (!range_sound(&range[i]))
			return -EINVAL;
		if ((pages += range[i].len / range[i].page_size) > FILL_PAGES_MAX)
			return -E2BIG;
	}
	r = space_make(f, uffd, flags, pages, &sp);
	if (r < 0)
		return r;
	pages = 0;
	for (size_t i = 0; i < n && r == 0; i++) {
		const struct range rg = { range[i], pages };

		pages += range[i].len / range[i].page_size;
		r = range_insert(sp, sp->n, &rg) ? 0 : -ENOMEM;
	}
	qsort(sp->range, sp->n, sizeof *sp->range, by_start);
	for (size_t i = 1; i < sp->n && r == 0; i++) {
		if (sp->range[i].r.start - sp->range[i - 1].r.start < sp->range[i - 1].r.len)
			r = -EINVAL;
	}
	if (r == 0)
		r = space_link(f, sp);
	if (r < 0) {
		space_free(sp);
		return r;
	}
	open_door(f);
	pthread_mutex_lock(&f->lock);
	if (f->record_until == 0)
		f->record_until = now_ns() + f->cfg.record_ms * UINT64_C(1000000);
	pthread_cond_broadcast(&f->cond);
	pthread_mutex_unlock(&f->lock);
	return 0;
}

void
fill_stop(struct fill *f, enum fill_end how, unsigned ms)
{
	const uint64_t until = now_ns() + ms * UINT64_C(1000000);

	atomic_store(&f->end, (uint64_t)how << 56 | (until & ((UINT64_C(1) << 56) - 1)));
	pthread_mutex_lock(&f->lock);
	atomic_store(&f->stop, true);
	pthread_cond_broadcast(&f->cond);
	pthread_mutex_unlock(&f->lock);
	open_door(f);
}

void
fill_destroy(struct fill *f)
{
	if (f == NULL)
		return;
	if (!atomic_load(&f->stop))
		fill_stop(f, FILL_END_DROP, 0);
	pthread_join(f->service, NULL);
	if (f->has_aide)
		pthread_join(f->aide, NULL);
	fini(f);
}

bool
fill_alive(struct fill *f)
{
	bool alive = false;

	pthread_mutex_lock(&f->lock);
	for (struct space *sp = f->spaces; sp != NULL && !alive; sp = sp->next) {
		pthread_rwlock_rdlock(&sp->lock);
		alive = sp->uffd >= 0 && foreign_alive(sp->uffd);
		pthread_rwlock_unlock(&sp->lock);
	}
	pthread_mutex_unlock(&f->lock);
	return alive;
}

uint64_t
fill_missing(struct fill *f)
{
	uint64_t pages = 0;

	pthread_mutex_lock(&f->lock);
	for (struct space *sp = f->spaces; sp != NULL; sp = sp->next)
		pages += space_missing(sp);
	pthread_mutex_unlock(&f->lock);
	return pages;
}

void
fill_counts(struct fill *f, struct session_counts *c)
{
	struct histogram *const all[] = { f->copied, f->zeroed, f->there };
	struct up_latency l;

	*c = (struct session_counts){
		.mapped = atomic_load(&f->mapped),
		.resident = atomic_load(&f->resident),
		.again = atomic_load(&f->again),
		.exists = atomic_load(&f->exists),
		.deferred = atomic_load(&f->deferred),
		.prefetched = atomic_load(&f->prefetched),
		.lost = atomic_load(&f->lost),
	};
	histogram_sum(&all[0], 1, &l);
	c->faults[UP_FAULT_MAJOR] = l.count;
	histogram_sum(&all[1], 1, &l);
	c->faults[UP_FAULT_ZERO] = l.count;
	histogram_sum(&all[2], 1, &l);
	c->faults[UP_FAULT_MINOR] = l.count;
	c->faults[UP_FAULT_WP] = atomic_load(&f->wp);
	histogram_sum(all, ARRAY_SIZE(all), &l);
	c->p50_ns = l.p50;
	c->p99_ns = l.p99;
}

static json_t *
map_range(const struct space *sp, const struct range *r)
{
	const uint64_t pages = r->r.len / r->r.page_size;
	const unsigned parts = pages < STRIP ? (unsigned)pages : STRIP;
	char strip[STRIP + 1];
	uint64_t resident = 0;

	for (unsigned i = 0; i < parts; i++) {
		const uint64_t lo = pages * i / parts, hi = pages * (i + 1) / parts;
		uint64_t n = 0;

		for (uint64_t p = lo; p < hi; p++)
			n += state_get(sp, r->first + p) == FILLED;
		resident += n;
		/* hi > lo: there are no more parts than pages */
		strip[i] = (char)('0' + n * 9 / MAX(hi - lo, 1));
	}
	strip[parts] = '\0';
	return json_pack("{sIsIsIsIss}", "start", (json_int_t)r->r.start, "length",
			 (json_int_t)r->r.len, "page_size", (json_int_t)r->r.page_size, "resident",
			 (json_int_t)resident * r->r.page_size, "strip", strip);
}

json_t *
fill_map(struct fill *f)
{
	json_t *all = json_array();

	pthread_mutex_lock(&f->lock);
	for (struct space *sp = f->spaces; sp != NULL && all != NULL; sp = sp->next) {
		pthread_rwlock_rdlock(&sp->lock);
		for (size_t i = 0; i < sp->n; i++)
			json_array_append_new(all, map_range(sp, &sp->range[i]));
		pthread_rwlock_unlock(&sp->lock);
	}
	pthread_mutex_unlock(&f->lock);
	return all;
}
