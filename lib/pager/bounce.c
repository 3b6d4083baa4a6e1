/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * bounce.c: buffers in a large page, for I/O on many frames.
 *
 *	reading    disk ------> buffer --memcpy--> frames	once it has completed
 *	writing    frames --memcpy--> buffer ------> disk	before it is submitted
 *
 * Where UFFDIO_MOVE has been at work frames lie anywhere in memory, so 256 KiB are 64 segments, and a disk takes only so many
 * at a time: virtio without indirect descriptors some 250 for all that is under way.  In a large page they are one.  Measured with a bare
 * program (docs/benchmarks.md), us a page: read 3.4 and 1.6, written 2.1 and 1.4; a copy is 0.2 to 0.35.
 *
 *	             bounce_wanted                     bounce_make (a service)
 *	NONE --a request that is large enough--> WANTED -----------------------> THERE
 *	 ^                                          |  no room yet: later again    |
 *	 +---------- bounce_shrink: metadata needs the room, or the limit sinks ---+
 *
 * They are charged to the budget, and only there where there are so many frames that this is a small part of it.  Who finds none free does without.
 *
 * Rejected:
 *	registered buffers	gain nothing beside that (2.54 GiB/s read, 2.50)
 *	frames in large pages	lie scattered again after one fill
 *	twice as many		no difference beyond the noise
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "pager/pager.h"

/* Linux 6.1; older C library headers lack it, older kernels say EINVAL. */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define LARGE_PAGE ((size_t)2 << 20)
#define BUFFER_SIZE ((size_t)CLUSTER_MAX * PAGE_SIZE)
#define BUFFERS (LARGE_PAGE / BUFFER_SIZE)

/* Memory is to be so many times what the buffers take. */
#define PART 24

/* A request of fewer pages is as soon done without. */
#define PAGES_MIN 16

#define AGAIN_NS 100000000u	 /* there was no room for them */
#define HOPELESS_NS 10000000000u /* no large page was to be had */

static size_t
buffers_size(const struct bounce *b)
{
	return b->n * BUFFER_SIZE;
}

static unsigned
all(const struct bounce *b)
{
	return (1u << b->n) - 1;
}

void
bounce_init(struct bounce *b)
{
	(void)mutex_init_brief(&b->lock);
	b->n = BUFFERS;
	b->pages = PAGES_MIN;
	b->least = PART * BUFFERS * CLUSTER_MAX;
}

/* --- use --- */

static char *
take(struct bounce *b)
{
	unsigned there = atomic_load_explicit(&b->there, memory_order_relaxed);

	while (there != 0) {
		const unsigned i = (unsigned)__builtin_ctz(there);

		if (atomic_compare_exchange_weak_explicit(&b->there, &there, there & ~(1u << i),
							  memory_order_acquire,
							  memory_order_relaxed))
			return b->base + i * BUFFER_SIZE;
	}
	return NULL;
}

static void
give(struct bounce *b, const char *buffer)
{
	const unsigned i = (unsigned)((size_t)(buffer - b->base) / BUFFER_SIZE);

	atomic_fetch_or_explicit(&b->there, 1u << i, memory_order_release);
}

void
bounce_begin(struct pager *p, struct request *req)
{
	struct bounce *b = &p->bounce;
	struct swap_io *io = &req->io;
	char *to;

	assert(req->bounce == NULL);
	/* Where it goes through the page cache it is copied anyway. */
	if (io->n < p->bounce.pages || !(io->elsewhere ? io->direct : p->swap.odirect))
		return;
	req->bounce = to = take(b);
	if (to == NULL) {
		if (atomic_load_explicit(&b->bytes, memory_order_relaxed) < buffers_size(b))
			atomic_store_explicit(&b->wanted, true, memory_order_relaxed);
		return;
	}
	for (unsigned i = 0; io->op == SWAP_WRITE && i < io->niov; i++) {
		memcpy(to, io->iov[i].iov_base, io->iov[i].iov_len);
		to += io->iov[i].iov_len;
	}
	io->iov[0] =
		(struct iovec){ .iov_base = req->bounce, .iov_len = (size_t)io->n << PAGE_SHIFT };
	io->niov = 1;
}

void
bounce_end(struct pager *p, struct request *req)
{
	const struct swap_io *io = &req->io;
	size_t left = io->op == SWAP_READ && io->result == 0 ? io->done : 0;
	const char *from = req->bounce;

	if (from == NULL)
		return;
	for (unsigned i = 0; left > 0; i++) {
		const size_t len = MIN(left, PAGE_SIZE);

		memcpy(pmap_frame(p->pmap, req->page[i]->frame), from, len);
		from += len;
		left -= len;
	}
	give(&p->bounce, req->bounce);
	req->bounce = NULL;
}

/* --- coming and going --- */

/* Memory for them, in a large page if they fill one.  NULL: not to be had. */
static char *
buffers_map(size_t bytes)
{
	const size_t align = MAX(bytes, LARGE_PAGE);
	char *const raw = mmap(NULL, bytes + align, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *base;
	int r = 0;

	if (raw == MAP_FAILED)
		return NULL;
	base = raw + (align - (uintptr_t)raw % align) % align;
	if (base > raw)
		(void)munmap(raw, (size_t)(base - raw));
	if (base < raw + align)
		(void)munmap(base + bytes, (size_t)(raw + align - base));
	/* A child has nothing under way. */
	if (madvise(base, bytes, MADV_DONTFORK) < 0)
		r = -errno;
	/* EINVAL: a kernel without them, or before it could be asked whether that is one. */
	if (r == 0 && madvise(base, bytes, MADV_HUGEPAGE) < 0 && errno != EINVAL)
		r = -errno;
	for (size_t at = 0; r == 0 && at < bytes; at += PAGE_SIZE)
		*(volatile char *)(base + at) = 0;
	if (r == 0 && bytes % LARGE_PAGE == 0 && madvise(base, bytes, MADV_COLLAPSE) < 0 &&
	    errno != EINVAL)
		r = -errno;
	if (r == 0)
		return base;
	(void)munmap(base, bytes);
	return NULL;
}

/*
 * Room in the budget, also that of free frames.  What is missing comes the next time: where memory is small there are never so many at once.
 * True if that is all.  => locked
 */
static bool
make_room(struct pager *p, size_t bytes)
{
	struct bounce *b = &p->bounce;
	size_t left;

	while ((left = bytes - atomic_load(&b->bytes)) > 0) {
		size_t step = MIN(left, BUFFER_SIZE);

		while (step > 0 && !budget_charge(&p->budget, step))
			step = step / 2 & ~PAGE_MASK;
		atomic_fetch_add(&b->bytes, step);
		if (step == 0 && frames_give_up(p, MIN(left / PAGE_SIZE, CLUSTER_MAX)) == 0)
			return false;
	}
	return true;
}

/* => locked, and none is in use */
static void
charge_nothing(struct pager *p)
{
	budget_uncharge(&p->budget, atomic_exchange(&p->bounce.bytes, 0));
}

void
bounce_make(struct pager *p)
{
	struct bounce *b = &p->bounce;
	const size_t bytes = buffers_size(b);
	const uint64_t now = now_ns();

	if (pthread_mutex_trylock(&b->lock) != 0)
		return;
	atomic_store_explicit(&b->wanted, false, memory_order_relaxed);
	if (b->base != NULL || now < b->again || frames_most(p) < b->least ||
	    atomic_load(&p->starved) > 0)
		goto out;
	b->again = now + AGAIN_NS;
	if (!make_room(p, bytes))
		goto out;
	b->base = buffers_map(bytes);
	if (b->base == NULL) {
		charge_nothing(p);
		b->again = now + HOPELESS_NS;
		goto out;
	}
	b->again = 0;
	atomic_store_explicit(&b->there, all(b), memory_order_release);
out:
	pthread_mutex_unlock(&b->lock);
}

bool
bounce_shrink(struct pager *p)
{
	struct bounce *b = &p->bounce;
	unsigned there = all(b);
	bool gone = false;

	if (atomic_load_explicit(&b->bytes, memory_order_relaxed) == 0 ||
	    pthread_mutex_trylock(&b->lock) != 0)
		return false;
	if (b->base == NULL || atomic_compare_exchange_strong(&b->there, &there, 0)) {
		gone = atomic_load(&b->bytes) > 0;
		if (b->base != NULL)
			(void)munmap(b->base, buffers_size(b));
		b->base = NULL;
		charge_nothing(p);
	}
	pthread_mutex_unlock(&b->lock);
	return gone;
}

void
bounce_fit(struct pager *p)
{
	if (frames_most(p) < p->bounce.least)
		(void)bounce_shrink(p);
}

void
bounce_fini(struct pager *p)
{
	(void)bounce_shrink(p);
	assert(atomic_load(&p->bounce.bytes) == 0);
	pthread_mutex_destroy(&p->bounce.lock);
}
