/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fill_fault.c: faults, and what one page gets.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fill_record.h"
#include "fill_space.h"

/* --- one page --- */

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
lose(struct space *sp, const struct range *r, uint64_t at, uint64_t len, const char *why,
     bool asked)
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
	if (r == NULL || fspace_state(sp, range_page(r, at)) != LOST) {
		const uint64_t n = atomic_fetch_add(&f->lost, 1) + 1;

		if (r != NULL)
			fspace_set(sp, r, at, len, LOST);
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
		sp->kept = sp->rec->kept = true;
		if (asked)
			signal_client(f);
	}
	return DONE;
}

/* By us, or somebody was faster. */
static bool
is_there(int err)
{
	return err == 0 || err == -EEXIST;
}

/* What becomes of a fault whose page was to be installed, with that result. */
static enum outcome
installed(struct space *sp, const struct range *r, uint64_t at, uint64_t len, int err, bool asked)
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
		return lose(sp, r, at, len, strerror(-err), asked);
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
		if (f->zeros == NULL && (f->zeros = fill_memory(FILL_HUGE, PROT_READ)) == NULL)
			return AGAIN;
		err = foreign_copy(sp->uffd, at, f->zeros, len, false, &done);
	}
	if (r != NULL && is_there(err))
		fspace_set(sp, r, at, len, FILLED);
	return installed(sp, r, at, len, err, true);
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
	if (f->bounce == NULL &&
	    (f->bounce = fill_memory(FILL_HUGE, PROT_READ | PROT_WRITE)) == NULL)
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

enum outcome
fspace_put_content(struct space *sp, const struct range *r, uint64_t at, uint64_t len, bool asked)
{
	const uint64_t offset = r->r.offset + (at - r->r.start);
	struct memfile *s = r->r.source;
	const char *why = "the file has been cut short";
	uint64_t done;
	int err;

	if (offset + len > memfile_size_now(s))
		return lose(sp, r, at, len, why, asked);
	err = foreign_copy(sp->uffd, at, s->map + offset, len, sp->protect, &done);
	if (err == -EINVAL && sp->protect) {
		/* It is not registered for that. */
		sp->protect = false;
		err = foreign_copy(sp->uffd, at, s->map + offset, len, false, &done);
	}
	if (err == -EFAULT) {
		err = copy_by_hand(sp, r, at, offset, len, &why);
		if (why != NULL)
			return lose(sp, r, at, len, why, asked);
	}
	if (is_there(err)) {
		fspace_set(sp, r, at, len, FILLED);
		if (atomic_load_explicit(&sp->f->recording, memory_order_relaxed))
			was_asked_for(sp->f, r, offset);
	}
	return installed(sp, r, at, len, err, asked);
}

/* --- faults --- */

static enum outcome
fspace_serve(struct space *sp, const struct fault *fault)
{
	struct fill *f = sp->f;
	const struct range *r = fspace_find_again(sp, fault->address);
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
		return lose(sp, r, at, size, "its mappings could not be followed", true);
	if (r == NULL) {
		if (!(sp->flags & FILL_OUTSIDE_ZERO))
			return lose(sp, NULL, at, size, "a fault where nothing was said to be",
				    true);
		h = f->zeroed;
		o = put_zeros(sp, NULL, at, size);
	} else {
		switch (fspace_state(sp, range_page(r, at))) {
		case MISSING:
			h = f->copied;
			o = fspace_put_content(sp, r, at, size, true);
			atomic_fetch_add_explicit(&f->demands, 1, memory_order_relaxed);
			if (o == DONE && atomic_load_explicit(&f->bringing, memory_order_acquire) &&
			    f->nalong < FAULTS)
				f->along[f->nalong++] = at;
			break;
		case LOST:
			return lose(sp, r, at, size, "", true);
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
fspace_park(struct space *sp, const struct fault *fault)
{
	atomic_fetch_add_explicit(&sp->f->deferred, 1, memory_order_relaxed);
	if (sp->nparked < FILL_PARKED_MAX)
		sp->parked[sp->nparked++] = *fault;
	else
		sp->wake_all = true;
}

void
fspace_wake(struct space *sp)
{
	/* All there is, since somebody may wait where we have no range: how much that is depends on the machine. */
	for (unsigned bits = 57; bits >= 38; bits--)
		if (foreign_wake(sp->uffd, FOREIGN_LOWEST,
				 (UINT64_C(1) << bits) - 2 * FOREIGN_LOWEST) == 0)
			return;
}

/* Those that had to wait, once. */
static void
fspace_serve_parked(struct space *sp)
{
	const size_t n = sp->nparked;
	size_t kept = 0;

	for (size_t i = 0; i < n && sp->uffd >= 0; i++) {
		switch (fspace_serve(sp, &sp->parked[i])) {
		case DONE:
		case WAS_THERE:
			break;
		case AGAIN:
			sp->parked[kept++] = sp->parked[i];
			break;
		case GONE:
			fspace_gone(sp);
			return;
		}
	}
	sp->nparked = kept;
	if (sp->wake_all && kept == 0) {
		sp->wake_all = false;
		fspace_wake(sp);
	}
}

void
fspace_attend(struct space *sp)
{
	struct fault fault[FAULTS];
	bool more;

	do {
		const size_t n = fspace_drain(sp, fault, &more);

		pulse_answer(&sp->f->pulse);

		if (!sp->f->ticking)
			fill_tick(sp->f, true);
		if (sp->nparked > 0 || sp->wake_all)
			fspace_serve_parked(sp);
		for (size_t i = 0; i < n && sp->uffd >= 0; i++) {
			switch (fspace_serve(sp, &fault[i])) {
			case DONE:
			case WAS_THERE:
				break;
			case AGAIN:
				fspace_park(sp, &fault[i]);
				break;
			case GONE:
				fspace_gone(sp);
				break;
			}
		}
		if (sp->f->nalong > 0)
			fspace_bring_along(sp);
	} while (more && sp->uffd >= 0);
}
