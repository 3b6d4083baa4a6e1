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
 *	       bounce_begin: none          bounce_make: room, a part at a time
 *	NONE ---------------------> wanted ------------> GATHERING ------------> THERE <--take, give--> (a request's)
 *	 ^                                                   |                     |
 *	 |  <-------------- bounce_shrink -------------------+       bounce_shrink |
 *	 |                                                                         v
 *	 +---------- whoever gives the last one back, or finds all there ------ LEAVING: none is taken any more
 *
 * In GATHERING bytes are charged and there is no memory yet.  They are there only where there are so many frames that they are a small part: else, and
 * when metadata needs room, they leave.  That can be at any time, so all of that is bits of one word, with one for each buffer that is free: one
 * atomic operation says who is the one to unmap them.  Who finds none free does without.
 *
 * Before Linux 6.1 nobody can say whether it is a large page that was had; without one the copy is for nothing.
 *
 * Rejected:
 *	registered buffers	gain nothing beside that (2.54 GiB/s read, 2.50)
 *	frames in large pages	lie scattered again after one fill
 *	twice as many		no difference beyond the noise
 *	to take all room at once	pages read ahead would go for it, and the next faults would find none
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

/* No large page was to be had: to look for one may take the kernel a while, and services wait for it.  Twice as long each time. */
#define HOPELESS_MIN UINT64_C(10000000000)
#define HOPELESS_MAX UINT64_C(3600000000000)

/* What is charged of what nobody has asked for since goes back. */
#define FORGOTTEN_NS UINT64_C(1000000000)
/* Of what is available a part in each go. */
#define SHARE 4

/* Beside the bits of those that are free. */
#define THERE (1u << 30)
#define LEAVING (1u << 31)

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

/* True if they are a small part of what there is for pages and them. */
static bool
fit(struct pager *p)
{
	return frames_most(p) + atomic_load(&p->bounce.bytes) / PAGE_SIZE >= p->bounce.least;
}

/* --- leaving --- */

/* True if all are back, and their memory too now.  Any thread, also in a signal handler. */
static bool
leave(struct pager *p)
{
	struct bounce *b = &p->bounce;
	const size_t bytes = buffers_size(b);
	unsigned there = THERE | LEAVING | all(b);

	if (!atomic_compare_exchange_strong(&b->there, &there, 0))
		return false;
	/* From here on they are this thread's: none is free, and until `bytes` is 0 none is made. */
	assert(atomic_load(&b->bytes) == bytes);
	if (munmap(b->base, bytes) < 0)
		(void)madvise(b->base, bytes, MADV_DONTNEED);
	b->base = NULL;
	atomic_store(&b->bytes, 0);
	budget_uncharge(&p->budget, bytes);
	return true;
}

/* What is charged and not there.  => locked */
static bool
give_up(struct pager *p)
{
	const size_t bytes = atomic_exchange(&p->bounce.bytes, 0);

	budget_uncharge(&p->budget, bytes);
	return bytes > 0;
}

bool
bounce_shrink(struct pager *p)
{
	struct bounce *b = &p->bounce;
	bool gone = false;

	/* Who has it locked makes them, and looks afterwards whether they fit. */
	if (atomic_load(&b->bytes) == 0 || pthread_mutex_trylock(&b->lock) != 0)
		return false;
	if (atomic_load(&b->bytes) < buffers_size(b)) {
		gone = give_up(p);
	} else {
		unsigned there = atomic_load(&b->there);

		/* They may be gone by now. */
		while ((there & THERE) != 0 && (there & LEAVING) == 0 &&
		       !atomic_compare_exchange_weak(&b->there, &there, there | LEAVING))
			;
		gone = leave(p);
	}
	pthread_mutex_unlock(&b->lock);
	return gone;
}

void
bounce_fit(struct pager *p)
{
	const struct bounce *b = &p->bounce;
	const size_t bytes = atomic_load_explicit(&b->bytes, memory_order_relaxed);

	if (bytes > 0 &&
	    (!fit(p) ||
	     (bytes < buffers_size(b) &&
	      now_ns() - atomic_load_explicit(&b->asked, memory_order_relaxed) > FORGOTTEN_NS)))
		(void)bounce_shrink(p);
}

/* --- use --- */

static char *
take(struct bounce *b)
{
	unsigned there = atomic_load_explicit(&b->there, memory_order_relaxed);

	while ((there & all(b)) != 0 && (there & LEAVING) == 0) {
		const unsigned i = (unsigned)__builtin_ctz(there);

		if (atomic_compare_exchange_weak(&b->there, &there, there & ~(1u << i)))
			return b->base + i * BUFFER_SIZE;
	}
	return NULL;
}

static void
give(struct pager *p, const char *buffer)
{
	struct bounce *b = &p->bounce;
	const unsigned bit = 1u << ((size_t)(buffer - b->base) / BUFFER_SIZE);
	const unsigned were = atomic_fetch_or(&b->there, bit);

	assert((were & bit) == 0);
	if (were & LEAVING)
		(void)leave(p);
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
	give(p, req->bounce);
	req->bounce = NULL;
}

/* --- coming --- */

/* True if the kernel says whether a range is large pages, and it is not. */
static bool
is_small(char *base, size_t bytes)
{
	/* Of nothing, any advice that it knows is good. */
	return bytes % LARGE_PAGE == 0 && madvise(base, 0, MADV_COLLAPSE) == 0 &&
	       madvise(base, bytes, MADV_COLLAPSE) < 0;
}

/* Memory for them, in a large page if they fill one.  NULL: not to be had. */
static char *
buffers_map(size_t bytes)
{
	const size_t align = MAX(bytes, LARGE_PAGE);
	/* Not accessible yet: else mlockall(MCL_FUTURE) would have all of it there, in small pages. */
	char *const raw = mmap(NULL, bytes + align, PROT_NONE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *base;

	if (raw == MAP_FAILED)
		return NULL;
	base = raw + (align - (uintptr_t)raw % align) % align;
	if (base > raw)
		(void)munmap(raw, (size_t)(base - raw));
	if (base < raw + align)
		(void)munmap(base + bytes, (size_t)(raw + align - base));
	/* A child has nothing under way. */
	if (madvise(base, bytes, MADV_DONTFORK) < 0 || madvise(base, bytes, MADV_HUGEPAGE) < 0 ||
	    mprotect(base, bytes, PROT_READ | PROT_WRITE) < 0)
		goto unmap;
	for (size_t at = 0; at < bytes; at += PAGE_SIZE)
		*(volatile char *)(base + at) = 0;
	if (!is_small(base, bytes))
		return base;
unmap:
	(void)munmap(base, bytes);
	return NULL;
}

/*
 * Some room in the budget, also that of free frames: who faults meanwhile needs some, too.  What is missing comes the next time.  True if that was all.
 * => locked
 */
static bool
gather(struct pager *p, size_t bytes)
{
	struct bounce *b = &p->bounce;
	const size_t share = frames_available(p) / SHARE * PAGE_SIZE;
	size_t left = bytes - atomic_load(&b->bytes), go = MIN(left, share);

	while (go > 0) {
		size_t step = MIN(go, BUFFER_SIZE);

		while (step > 0 && !budget_charge(&p->budget, step))
			step = step / 2 & ~PAGE_MASK;
		atomic_fetch_add(&b->bytes, step);
		left -= step;
		go -= step;
		if (step == 0 && frames_give_up(p, MIN(go / PAGE_SIZE, CLUSTER_MAX)) == 0)
			break;
	}
	return left == 0;
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
	atomic_store_explicit(&b->asked, now, memory_order_relaxed);
	if (atomic_load(&b->bytes) == bytes || now < b->again || !fit(p) ||
	    atomic_load(&p->starved) > 0 || !gather(p, bytes))
		goto out;
	b->base = buffers_map(bytes);
	if (b->base != NULL) {
		b->hopeless = 0;
		atomic_store(&b->there, THERE | all(b));
	} else {
		(void)give_up(p);
		b->hopeless = MIN(MAX(b->hopeless * 2, HOPELESS_MIN), HOPELESS_MAX);
		b->again = now + b->hopeless;
	}
out:
	pthread_mutex_unlock(&b->lock);
	/* The limit may have been lowered meanwhile, by somebody who found it locked. */
	bounce_fit(p);
}

/* --- the whole --- */

size_t
bounce_to_come(struct pager *p)
{
	const struct bounce *b = &p->bounce;

	return fit(p) ? buffers_size(b) - atomic_load(&b->bytes) : 0;
}

void
bounce_check(const struct pager *p)
{
	const struct bounce *b = &p->bounce;

	/* At rest: none is in use, so none is leaving. */
	assert(atomic_load(&b->there) == (b->base != NULL ? THERE | all(b) : 0));
	assert(b->base == NULL || atomic_load(&b->bytes) == buffers_size(b));
	assert(b->base != NULL || atomic_load(&b->bytes) < buffers_size(b));
	(void)b;
}

void
bounce_fini(struct pager *p)
{
	(void)bounce_shrink(p);
	assert(atomic_load(&p->bounce.bytes) == 0);
	pthread_mutex_destroy(&p->bounce.lock);
}
