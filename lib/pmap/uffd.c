/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * uffd.c: the page tables of this process, through userfaultfd on private anonymous memory.
 *
 * One descriptor a shard, with which regions are registered, and one more for staging alone:
 *
 *	                   UFFDIO_MOVE on the shard's descriptor
 *	  region page  <------------------------------------------  frame
 *	  (shard's)    ------------------------------------------>  (staging's)
 *	                   UFFDIO_MOVE on the staging descriptor
 *
 * MOVE asks that its destination be registered with the descriptor it is called on, and nothing
 * of its source.  With staging on a descriptor of its own no message about it can ever
 * stand in a queue of faults, and two directions of traffic do not meet in one context.
 *
 * MOVE wants both sides to be writable and the page to be exclusively ours and unpinned.  Where it
 * is missing or refuses, the page is copied and its source dropped; for remove, under
 * write-protection, see copy_out().  The alternative, always copying, costs twenty times as
 * much per page of a cluster and cannot see that a page is pinned for I/O.
 *
 * Once created, nothing here calls what can hold a lock of libc (malloc, stdio), since a thread
 * that forks may hold it while it waits for us: memory is on the stack, files are opened at
 * creation, and text of /proc is parsed by hand.
 *
 * Locks, both leaves and held for a few system calls, none of which waits for a fault:
 *
 *	vmas	mprotect() against replacing a VMA by one with the protection that it has
 *	copies	tickets for pages that may exist twice, see COPY_CHUNK
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "pmap/removal.h"
#include "pmap/track.h"
#include "pmap/uffd.h"

/*
 * What exists twice while it is copied is bounded by tickets of COPY_CHUNK pages, one cluster in
 * all, so pmap->headroom does not depend on how many threads call.  A call takes all tickets that
 * are free and waits for one at most: alone it copies whole clusters, a third cheaper per page than
 * chunks, and several callers proceed side by side.
 */
#define COPY_CHUNK 16
#define COPY_TICKETS (CLUSTER_MAX / COPY_CHUNK)

/* Name of the empty file whose pages are lost; as /proc/self/maps shows it. */
#define LOST_NAME "uffd-pager-lost"

#define WAY_OUT                                                                                 \
	"run as root, or set sysctl vm.unprivileged_userfaultfd=1, or allow this user to open " \
	"/dev/userfaultfd (Linux 6.1), or give it CAP_SYS_PTRACE; "                             \
	"in a container the seccomp profile must allow userfaultfd"

/*
 * A call that stopped half way says EAGAIN whatever the reason, and how far it came; one that did
 * nothing says why in errno, and in the field either the same (Linux 6.15) or nothing.
 */
static ssize_t
install_result(int err, int64_t bytes)
{
	if (err == EAGAIN && bytes > 0)
		return (ssize_t)((size_t)bytes >> PAGE_SHIFT);
	return -err;
}

ssize_t
uffd_copy(int fd, uintptr_t dst, uintptr_t src, size_t n)
{
	struct uffdio_copy c = { .dst = dst, .src = src, .len = n << PAGE_SHIFT };

	if (ioctl(fd, UFFDIO_COPY, &c) == 0)
		return (ssize_t)n;
	return install_result(errno, c.copy);
}

ssize_t
uffd_move(int fd, uintptr_t dst, uintptr_t src, size_t n)
{
	struct uffdio_move m = { .dst = dst, .src = src, .len = n << PAGE_SHIFT };

	if (ioctl(fd, UFFDIO_MOVE, &m) == 0)
		return (ssize_t)n;
	return install_result(errno, m.move);
}

/*
 * Install n pages, front to back.
 *
 * => 0: all.  Else the reason why page *done was not; -EAGAIN: after EAGAIN_MAX attempts at it.
 *
 * A range that spans VMAs is ENOENT to COPY and EINVAL to MOVE, for none of its pages'
 * fault: neighbouring regions, or madvise() of a part, make such ranges.  So these two are believed
 * of a single page only, and then the calls grow again.
 */
int
uffd_install(install_fn *fn, int fd, uintptr_t dst, uintptr_t src, size_t n, size_t *done)
{
	size_t most = n;
	unsigned again = 0;

	*done = 0;
	while (*done < n) {
		const size_t off = *done << PAGE_SHIFT, want = MIN(n - *done, most);
		const ssize_t k = fn(fd, dst + off, src + off, want);

		if (k > 0) {
			*done += (size_t)k;
			most = MIN(most * 2, n);
			again = 0;
		} else if ((k == -ENOENT || k == -EINVAL) && want > 1) {
			most = 1;
		} else if (k != -EAGAIN || ++again == EAGAIN_MAX) {
			return (int)k;
		}
	}
	return 0;
}

/*
 * Install n zeroed pages.  Copied, never UFFDIO_ZEROPAGE: that maps the kernel's one page of zeros,
 * and the first write to it allocates a page that nobody has accounted for.
 */
int
uffd_install_zeros(struct uffd_pmap *u, int fd, uintptr_t dst, size_t n, size_t *done)
{
	int r = 0;

	*done = 0;
	while (r == 0 && *done < n) {
		size_t k;

		r = uffd_install(uffd_copy, fd, dst + (*done << PAGE_SHIFT), (uintptr_t)u->zeros,
				 MIN(n - *done, (size_t)CLUSTER_MAX), &k);
		*done += k;
	}
	return r;
}

/* Make a range absent, also where the program has locked it into memory. */
int
uffd_drop_pages(uintptr_t va, size_t n)
{
	if (madvise((void *)va, n << PAGE_SHIFT, MADV_DONTNEED) == 0)
		return 0;
	if (errno == EINVAL && madvise((void *)va, n << PAGE_SHIFT, MADV_DONTNEED_LOCKED) == 0)
		return 0;
	return errno == ENOMEM ? -ENOENT : -errno;
}

void
uffd_frame_drop(struct pmap *pm, frame_t first, size_t n)
{
	struct uffd_pmap *u = to_uffd(pm);
	int r = 0;

	if (n > 0 && u->stage_file.fd >= 0)
		r = fallocate(u->stage_file.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      (off_t)first << PAGE_SHIFT, (off_t)(n << PAGE_SHIFT));
	else if (n > 0)
		r = uffd_drop_pages(frame_va(u, first, n), n);
	assert(r == 0);
	(void)r;
}

int
uffd_frame_new(struct pmap *pm, frame_t first, size_t n, size_t *done)
{
	struct uffd_pmap *u = to_uffd(pm);
	const int r = uffd_install_zeros(u, u->stage_fd, frame_va(u, first, n), n, done);

	assert(r != -EEXIST); /* it was no hole */
	return r;
}

/* Make runs of pages that lie anywhere absent, with one flush of the TLB (Linux 6.16).  How many pages, from the front. */
static size_t
drop_vector(const struct uffd_pmap *u, const struct iovec page[], size_t n)
{
	const ssize_t bytes = syscall(SYS_process_madvise, u->self_fd, page, n, MADV_DONTNEED, 0u);

	return bytes > 0 ? (size_t)bytes >> PAGE_SHIFT : 0;
}

static void
uffd_frames_drop(struct pmap *pm, const frame_t f[], size_t n)
{
	struct iovec run[CLUSTER_MAX];
	size_t nruns = 0;

	assert(n <= CLUSTER_MAX);
	/* Those that follow each other are half the price in one piece. */
	for (size_t i = 0; i < n; i++) {
		if (i > 0 && f[i] == f[i - 1] + 1)
			run[nruns - 1].iov_len += PAGE_SIZE;
		else
			run[nruns++] = (struct iovec){ pmap_frame(pm, f[i]), PAGE_SIZE };
	}
	for (size_t done = drop_vector(to_uffd(pm), run, nruns); done < n; done++)
		uffd_frame_drop(pm, f[done], 1);
}

static int
uffd_lend(struct pmap *pm, unsigned shard, uintptr_t va, frame_t frame, size_t n, bool guard,
	  size_t *done)
{
	struct uffd_pmap *u = to_uffd(pm);
	size_t at = 0;
	int r = 0;

	assert(shard < pm->nshards);
	while (at < n && r == 0) {
		struct uffdio_copy c = {
			.dst = va + (at << PAGE_SHIFT),
			.src = frame_va(u, frame, n) + (at << PAGE_SHIFT),
			.len = (n - at) << PAGE_SHIFT,
			.mode = guard ? UFFDIO_COPY_MODE_WP : 0,
		};

		/* What stopped it before the end is told when it is what is in front. */
		if (ioctl(u->fd[shard], UFFDIO_COPY, &c) < 0 && c.copy <= 0)
			r = -errno;
		else
			at += (size_t)c.copy >> PAGE_SHIFT;
	}
	*done = at;
	return r;
}

static void
uffd_wake(struct pmap *pm, unsigned shard, uintptr_t va, size_t n)
{
	struct uffdio_range range = { .start = va, .len = n << PAGE_SHIFT };

	if (shard == PMAP_POOL)
		pool_wake(to_uffd(pm), va, n);
	else if (shard > PMAP_POOL)
		space_wake(to_uffd(pm), shard, va, n);
	else if (!has(to_uffd(pm), PMAP_INTHREAD))
		ioctl(to_uffd(pm)->fd[shard], UFFDIO_WAKE, &range);
}

int
uffd_write_protect(int fd, uintptr_t va, size_t n, uint64_t mode, unsigned most)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = va, .len = n << PAGE_SHIFT },
		.mode = mode,
	};

	unsigned tries = 0;

	/*
	 * EAGAIN: an event about this mm waits to be read.  That can not be, as we enable none.
	 * Repeated all the same: a page that stayed protected would be stuck for good.  What another process has enabled is its own
	 * affair, and so is a page of its own that is stuck.
	 */
	while (ioctl(fd, UFFDIO_WRITEPROTECT, &wp) < 0) {
		if (errno != EAGAIN || (most != 0 && ++tries == most))
			return -errno;
		sched_yield();
	}
	return 0;
}

/* Removing the protection wakes.  0, or -ENOENT: not all of it is registered memory. */
static int
write_protect(int fd, uintptr_t va, size_t n, bool on)
{
	return uffd_write_protect(fd, va, n, on ? UFFDIO_WRITEPROTECT_MODE_WP : 0, 0);
}

/* Whatever of the range is still there is writable again, and who waited for that is awake. */
static void
write_allow(int fd, uintptr_t va, size_t n)
{
	if (write_protect(fd, va, n, false) == 0)
		return;
	for (size_t i = 0; i < n; i++)
		write_protect(fd, va + (i << PAGE_SHIFT), 1, false);
}

/*
 * How many pages from va on are there, in memory or in the kernel's own swap; n if nobody
 * can tell.  Not mincore(): it calls a page in the kernel's swap absent, and we would believe
 * that the program threw it away.
 */
static size_t
pages_there(const struct uffd_pmap *u, uintptr_t va, size_t n)
{
	uint64_t entry[CLUSTER_MAX];
	size_t i;

	assert(n <= CLUSTER_MAX);
	if (u->pagemap_fd < 0 || pread(u->pagemap_fd, entry, n * sizeof entry[0],
				       (off_t)(va >> PAGE_SHIFT) * (off_t)sizeof entry[0]) !=
					 (ssize_t)(n * sizeof entry[0]))
		return n;
	for (i = 0; i < n; i++)
		if ((entry[i] >> 62) == 0) /* neither present nor swapped */
			break;
	return i;
}

/* Wait until at least a chunk may exist twice.  Returns how many of the n pages now may. */
size_t
uffd_copy_begin(struct uffd_pmap *u, size_t n)
{
	size_t may = COPY_CHUNK;

	while (sem_wait(&u->copies) < 0)
		assert(errno == EINTR);
	while (may < n && sem_trywait(&u->copies) == 0)
		may += COPY_CHUNK;
	return MIN(n, may);
}

/* => n is what uffd_copy_begin() returned. */
void
uffd_copy_end(struct uffd_pmap *u, size_t n)
{
	for (size_t i = 0; i < n; i += COPY_CHUNK)
		sem_post(&u->copies);
}

int
uffd_zero(struct pmap *pm, unsigned shard, uintptr_t va, size_t n, size_t *done)
{
	struct uffd_pmap *u = to_uffd(pm);

	if (shard == PMAP_POOL)
		return pool_zero(u, va, n, done);
	return uffd_install_zeros(u, u->fd[shard], va, n, done);
}

/* enter, without MOVE, of as many pages as may be copied now; 0 if it was all of those. */
static int
copy_in(struct uffd_pmap *u, unsigned shard, uintptr_t va, frame_t frame, size_t n, size_t *done)
{
	int r;

	n = uffd_copy_begin(u, n);
	r = uffd_install(uffd_copy, u->fd[shard], va, frame_va(u, frame, n), n, done);
	uffd_frame_drop(&u->pmap, frame, *done);
	uffd_copy_end(u, n);
	return r;
}

int
uffd_enter(struct pmap *pm, unsigned shard, uintptr_t va, frame_t frame, size_t n, size_t *done)
{
	struct uffd_pmap *u = to_uffd(pm);
	const uintptr_t src = frame_va(u, frame, n);
	int r = 0;

	if (shard == PMAP_POOL)
		return pool_enter(u, va, frame, n, done);
	*done = 0;
	while (r == 0 && *done < n) {
		const size_t off = *done << PAGE_SHIFT;
		size_t k = 0, most;

		r = -EINVAL;
		if (has(u, UP_MASK_MOVE))
			r = uffd_install(uffd_move, u->fd[shard], va + off, src + off, n - *done,
					 &k);
		*done += k;
		/*
		 * EBUSY: direct I/O into the frame has ended, and the kernel still holds it.
		 * EINVAL: the region is not writable, or locked.
		 */
		if (r == -EBUSY || r == -EINVAL) {
			most = r == -EBUSY ? 1 : n - *done;
			r = copy_in(u, shard, va + (*done << PAGE_SHIFT), frame + (frame_t)*done,
				    most, &k);
			*done += k;
		}
	}
	return r;
}

/*
 * Any attribute that differs makes the kernel split; this one has no effect on a mapping that is about to go,
 * and is harmless (the part is left out of core dumps) should the caller think better of it.
 */
static int
uffd_split(struct pmap *pm, unsigned shard, uintptr_t va, size_t len)
{
	const int r = places_split(to_uffd(pm), shard, va, len);

	if (r < 0 || shard >= PMAP_POOL)
		return r;
	return madvise((void *)va, len, MADV_DONTDUMP) < 0 ? -errno : 0;
}

/*
 * /proc/self/mem looks through protections, and on a missing page it fails rather than wait for a
 * fault to be served, by us.
 */
int
uffd_read(struct pmap *pm, uintptr_t va, void *buf)
{
	struct uffd_pmap *u = to_uffd(pm);
	const int r = pool_read(u, va, buf);

	if (r <= 0)
		return r;
	if (u->mem_fd < 0)
		return -EIO;
	if (pread(u->mem_fd, buf, PAGE_SIZE, (off_t)va) == (ssize_t)PAGE_SIZE)
		return 0;
	return pages_there(u, va, 1) == 0 ? -ENOENT : -EIO;
}

/*
 * Copy a page that we may not read (PROT_NONE) into a hole.
 *
 * => -ENOENT: it is not there.  -EBUSY: it is, and can not be read.  The hole is one again.
 */
static int
read_out(struct uffd_pmap *u, uintptr_t va, frame_t hole)
{
	size_t done;
	int r;

	r = uffd_frame_new(&u->pmap, hole, 1, &done);
	if (r < 0)
		return r;
	r = uffd_read(&u->pmap, va, pmap_frame(&u->pmap, hole));
	if (r < 0)
		uffd_frame_drop(&u->pmap, hole, 1);
	return r == -EIO ? -EBUSY : r;
}

/*
 * Copy pages that nobody can write now into holes.
 *
 * That the pages are there is the caller's promise.  It is looked up nevertheless: UFFDIO_COPY from
 * one that the program has discarded behind our back would wait for us in the kernel.
 */
static int
read_protected(struct uffd_pmap *u, uintptr_t va, frame_t hole, size_t n, size_t *done)
{
	int r = 0;

	*done = 0;
	while (r == 0 && *done < n) {
		const uintptr_t src = va + (*done << PAGE_SHIFT);
		const frame_t dst = hole + (frame_t)*done;
		const size_t there = pages_there(u, src, n - *done);
		size_t k;

		if (there == 0)
			return -ENOENT;
		r = uffd_install(uffd_copy, u->stage_fd, frame_va(u, dst, there), src, there, &k);
		assert(r != -EEXIST); /* it was no hole */
		*done += k;
		if (r == -EFAULT) {
			r = read_out(u, src + (k << PAGE_SHIFT), dst + (frame_t)k);
			*done += r == 0;
		}
	}
	return r;
}

/* Make the first pages of a range absent; returns how many.  Stops at one that is mlock()ed. */
static size_t
drop_unlocked(uintptr_t va, size_t n)
{
	size_t i;

	if (n == 0 || madvise((void *)va, n << PAGE_SHIFT, MADV_DONTNEED) == 0)
		return n;
	/* Nothing says where it stopped.  Nobody refills what went: the pages are busy. */
	for (i = 0; i < n; i++)
		if (madvise((void *)(va + (i << PAGE_SHIFT)), PAGE_SIZE, MADV_DONTNEED) < 0)
			break;
	return i;
}

/*
 * How many pages from va on MOVE refuses for what their VMA is: not writable, or locked.
 *
 * Asked one by one, as neighbours may lie in different VMAs, by a MOVE to an address where a page
 * is: EINVAL, or EEXIST if it would have gone ahead.
 */
static size_t
pages_unmovable(const struct uffd_pmap *u, uintptr_t va, size_t n)
{
	size_t i;

	if (!has(u, UP_MASK_MOVE))
		return n;
	for (i = 0; i < n; i++)
		if (uffd_move(u->stage_fd, u->occupied, va + (i << PAGE_SHIFT), 1) != -EINVAL)
			break;
	return i;
}

/*
 * remove, without MOVE, of the first pages that MOVE does not take, as many as may be copied now;
 * 0 if that was all of those.
 *
 *	write-protect	from here on, writers wait: what is copied is what is dropped
 *	copy		region -> holes
 *	drop		those copied; they are in the frames only
 *	allow writing	those not moved: nothing has happened to them
 *
 * The first step also if the region is read-only, and before pages_unmovable(): another thread may
 * be changing that just now, and a page that can be written can be pinned, which only MOVE sees.
 * Whoever ran into the protection of a page that went is woken by the caller, with all others
 * that wait for that page.
 */
static int
copy_out(struct uffd_pmap *u, unsigned shard, uintptr_t va, frame_t hole, size_t n, size_t *done)
{
	const int fd = u->fd[shard];
	const size_t may = uffd_copy_begin(u, n);
	size_t copied = 0;
	int r;

	n = may;
	r = write_protect(fd, va, n, true);
	if (r == -ENOENT && n > 1) {
		/* Before 5.19 also: the range spans VMAs.  That a page is gone must be certain. */
		write_allow(fd, va, n);
		n = 1;
		r = write_protect(fd, va, n, true);
	}
	if (r == 0)
		r = read_protected(u, va, hole, pages_unmovable(u, va, n), &copied);
	*done = drop_unlocked(va, copied);
	if (*done < copied) {
		uffd_frame_drop(&u->pmap, hole + (frame_t)*done, copied - *done);
		r = -EBUSY;
	}
	uffd_copy_end(u, may);
	if (*done < n)
		write_allow(fd, va + (*done << PAGE_SHIFT), n - *done);
	return r;
}

/* By way of /proc/self/mem, which fails where a touch of ours would wait for us, should the program have discarded the page. */
static int
uffd_recall(struct pmap *pm, const uintptr_t va[], const frame_t frame[], size_t n, size_t *done)
{
	struct uffd_pmap *u = to_uffd(pm);
	struct iovec page[CLUSTER_MAX];
	size_t copied = 0;
	int r = 0;

	assert(n <= CLUSTER_MAX);
	for (; copied < n; copied++) {
		r = uffd_read(pm, va[copied], pmap_frame(pm, frame[copied]));
		if (r < 0)
			break;
		page[copied] = (struct iovec){ (void *)va[copied], PAGE_SIZE };
	}
	*done = copied > 0 ? drop_vector(u, page, copied) : 0;
	if (*done < copied) /* locked */
		r = -EBUSY;
	return r == -EIO ? -EBUSY : r;
}

static void
uffd_allow(struct pmap *pm, unsigned shard, uintptr_t va)
{
	write_allow(to_uffd(pm)->fd[shard], va, 1);
}

/*
 * A page that a fork has shared stays "not exclusive" even when the child is gone, and MOVE
 * refuses it, until it is written.  So write it, atomically and without changing it.
 *
 * => True if the page is certainly writable and ours alone.
 *
 * The kernel does the write, as the second half of FUTEX_WAKE_OP: *word |= 0.  An instruction of
 * ours would do as well, but should the page be missing or protected after all, the system call
 * fails with EFAULT where the instruction would wait for a fault to be served, by us, or raise
 * SIGSEGV.  The comparison, old < -2048, is rarely true and then wakes a waiter for nothing.
 */
bool
uffd_make_exclusive(uintptr_t va)
{
	uint32_t nobody = 0;

	return syscall(SYS_futex, &nobody, FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG, 0, NULL, (void *)va,
		       (unsigned)FUTEX_OP(FUTEX_OP_OR, 0, FUTEX_OP_CMP_LT, 0x800)) >= 0;
}

/*
 * Which errors of MOVE mean what:
 *
 *	EBUSY	not exclusive, or pinned for I/O.  Pinned pages are exclusive, so what EBUSY says
 *		of a page just made exclusive is that it is pinned: it stays.
 *	EINVAL	one side is not writable, or locked into memory.
 *	EFAULT	the memory under the page has failed: it stays, and the kernel raises SIGBUS.
 */
static int
uffd_remove(struct pmap *pm, unsigned shard, uintptr_t va, frame_t hole, size_t n, size_t *done)
{
	struct uffd_pmap *u = to_uffd(pm);
	size_t exclusive = SIZE_MAX; /* the page that was made so last */
	int r = 0;

	if (shard == PMAP_POOL)
		return pool_remove(u, va, hole, n, done);
	*done = 0;
	while (*done < n) {
		const size_t off = *done;
		const uintptr_t src = va + (off << PAGE_SHIFT), dst = frame_va(u, hole, n);
		size_t k = 0;

		r = -EINVAL;
		if (has(u, UP_MASK_MOVE))
			r = uffd_install(uffd_move, u->stage_fd, dst + (off << PAGE_SHIFT), src,
					 n - off, &k);
		*done += k;
		/* Linux 6.18 forgets to count a page if it had to look at it twice, and then finds it where it has moved it. */
		if (r == -EEXIST &&
		    (u->pagemap_fd < 0 || pages_there(u, va + (*done << PAGE_SHIFT), 1) == 0)) {
			++*done;
			r = 0;
			continue;
		}
		if (r == -EBUSY && exclusive != *done &&
		    uffd_make_exclusive(va + (*done << PAGE_SHIFT))) {
			exclusive = *done;
			continue;
		}
		if (r == -EINVAL) {
			r = copy_out(u, shard, va + (*done << PAGE_SHIFT), hole + (frame_t)*done,
				     n - *done, &k);
			*done += k;
			if (r == 0 && k == 0) /* became movable meanwhile */
				r = -EAGAIN;
		}
		if (r < 0)
			break;
	}
	assert(r != -EEXIST); /* it was no hole */
	return r == -EFAULT ? -EBUSY : r;
}

/* What a region's VMA has besides its protection.  mlockall(MCL_FUTURE) may have locked it. */
int
uffd_register(int fd, uintptr_t va, size_t len, uint64_t mode)
{
	struct uffdio_register reg = { .range = { .start = va, .len = len }, .mode = mode };

	munlock((void *)va, len);
	/* EINVAL: this kernel has no huge pages. */
	if (madvise((void *)va, len, MADV_NOHUGEPAGE) < 0 && errno != EINVAL)
		return -errno;
	if (madvise((void *)va, len, MADV_DONTFORK) < 0)
		return -errno;
	if (ioctl(fd, UFFDIO_REGISTER, &reg) < 0)
		return -errno;
	return 0;
}

static const struct backing anonymous = { .fd = -1 };

static int
backing_flags(const struct backing *b)
{
	return MAP_NORESERVE | (b->fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
}

/* Registered before it is accessible, so no page can get in unseen. */
int
uffd_region_map(const struct backing *b, int fd, uintptr_t hint, bool fixed, size_t len, int prot,
		uint64_t mode, uintptr_t *va)
{
	void *p = mmap((void *)hint, len, PROT_NONE,
		       backing_flags(b) | (fixed ? MAP_FIXED_NOREPLACE : 0), b->fd, b->offset);
	int r;

	if (p == MAP_FAILED)
		return -errno;
	r = uffd_register(fd, (uintptr_t)p, len, mode);
	if (r == 0 && mprotect(p, len, prot) < 0)
		r = -errno;
	if (r < 0)
		munmap(p, len);
	else
		*va = (uintptr_t)p;
	return r;
}

static int
uffd_map(struct pmap *pm, uintptr_t hint, bool fixed, size_t len, int prot, unsigned shard,
	 uintptr_t *va)
{
	if (prot & PROT_WRITE)
		prot |= PROT_READ;
	return uffd_region_map(&anonymous, uffd_for_region(to_uffd(pm), shard), hint, fixed, len,
			       prot, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP, va);
}

static int
uffd_unmap(struct pmap *pm, uintptr_t va, size_t len, unsigned shard)
{
	const int r = places_unmap(to_uffd(pm), va, len, shard);

	if (r == 0)
		uffd_wake(pm, shard, va, len >> PAGE_SHIFT);
	return r;
}

static int
uffd_protect(struct pmap *pm, uintptr_t va, size_t len, int prot)
{
	struct uffd_pmap *u = to_uffd(pm);
	int r = 0;

	if (prot & PROT_WRITE)
		prot |= PROT_READ;
	pthread_mutex_lock(&u->vmas);
	if (mprotect((void *)va, len, prot) < 0)
		r = -errno;
	pthread_mutex_unlock(&u->vmas);
	return r;
}

/*
 * Losing a page where the kernel has no UFFDIO_POISON (before 6.6): an empty file is mapped over
 * it, any touch of which is SIGBUS.  That is a VMA of its own and has to have the protection
 * of the one it replaces, and the other way round; /proc/self/maps knows it.
 */
struct vma {
	uintptr_t start, end;
	int prot;
	bool lost; /* of lost_fd */
};

static const char *
parse_hex(const char *s, uintptr_t *v)
{
	for (*v = 0;; s++) {
		if (*s >= '0' && *s <= '9')
			*v = *v << 4 | (uintptr_t)(*s - '0');
		else if (*s >= 'a' && *s <= 'f')
			*v = *v << 4 | (uintptr_t)(*s - 'a' + 10);
		else
			return s;
	}
}

/* "7f0000000000-7f0000001000 rw-p 00000000 00:01 1234     /memfd:name (deleted)" */
static bool
parse_vma(const char *line, struct vma *v)
{
	const char *s = parse_hex(line, &v->start);

	if (*s != '-')
		return false;
	s = parse_hex(s + 1, &v->end);
	if (strlen(s) < 5)
		return false;
	v->prot = (s[1] == 'r' ? PROT_READ : 0) | (s[2] == 'w' ? PROT_WRITE : 0) |
		  (s[3] == 'x' ? PROT_EXEC : 0);
	v->lost = strstr(s, "/memfd:" LOST_NAME) != NULL;
	return true;
}

/*
 * The first VMA that overlaps [start, end), of lost pages only if `lost`.
 *
 * => u->vmas is held.  0, -ENOENT, or -EIO if it cannot be told.
 */
static int
vma_find(struct uffd_pmap *u, uintptr_t start, uintptr_t end, bool lost, struct vma *v)
{
	char buf[1024], line[128] = ""; /* of longer lines the rest is a path, not ours */
	size_t len = 0;
	off_t pos = 0;

	for (;;) {
		const ssize_t got = pread(u->maps_fd, buf, sizeof buf, pos);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got < 0 ? -EIO : -ENOENT;
		pos += got;
		for (ssize_t i = 0; i < got; i++) {
			if (buf[i] != '\n') {
				if (len < sizeof line - 1)
					line[len++] = buf[i];
				continue;
			}
			line[len] = '\0';
			len = 0;
			if (!parse_vma(line, v) || v->end <= start)
				continue;
			if (v->start >= end)
				return -ENOENT;
			if (v->lost || !lost)
				return 0;
		}
	}
}

static int
lost_map(struct uffd_pmap *u, uintptr_t va, int prot)
{
	if (mmap((void *)va, PAGE_SIZE, prot, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, u->lost_fd,
		 0) == MAP_FAILED)
		return -errno;
	madvise((void *)va, PAGE_SIZE, MADV_DONTFORK);
	atomic_store(&u->lost_mapped, true);
	return 0;
}

/* => u->vmas is held. */
static int
lose_locked(struct uffd_pmap *u, uintptr_t va)
{
	struct vma v;
	int r;

	r = vma_find(u, va, va + PAGE_SIZE, false, &v);
	if (r < 0)
		return r;
	if (v.lost || (u->pagemap_fd >= 0 && pages_there(u, va, 1) > 0))
		return -EEXIST;
	return lost_map(u, va, v.prot);
}

int
uffd_lose(struct uffd_pmap *u, uintptr_t va)
{
	int r;

	if (u->maps_fd < 0 || u->lost_fd < 0)
		return -ENOTSUP;
	pthread_mutex_lock(&u->vmas);
	r = lose_locked(u, va);
	pthread_mutex_unlock(&u->vmas);
	return r;
}

int
uffd_poison(struct pmap *pm, unsigned shard, uintptr_t va)
{
	struct uffd_pmap *u = to_uffd(pm);
	struct uffdio_poison p = { .range = { .start = va, .len = PAGE_SIZE } };
	unsigned again = 0;
	int r;

	if (shard == PMAP_POOL)
		return pool_poison(u, va);
	if (has(u, UP_MASK_POISON)) {
		do {
			r = ioctl(u->fd[shard], UFFDIO_POISON, &p) < 0 ? -errno : 0;
		} while (r == -EAGAIN && ++again < EAGAIN_MAX);
	} else {
		r = uffd_lose(u, va);
	}
	uffd_wake(pm, shard, va, 1);
	return r;
}

/*
 * Put registered memory where a lost page is.  A thread that touches it before it is registered
 * gets a page that nobody knows of, and that the last step drops: to that thread the discard
 * came right after its access.  (Mapping it inaccessible first would kill the thread; and
 * a mapping made elsewhere would lose its registration in mremap().)
 *
 * => u->vmas is held.  On failure the page is lost as before.
 */
static int
lost_unmap(struct uffd_pmap *u, const struct backing *b, int fd, uintptr_t va, int prot)
{
	int r;

	if (mmap((void *)va, PAGE_SIZE, prot, backing_flags(b) | MAP_FIXED, b->fd, b->offset) ==
	    MAP_FAILED)
		return -errno;
	r = uffd_register(fd, va, PAGE_SIZE,
			  UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
	if (r == 0)
		r = uffd_drop_pages(va, 1);
	if (r < 0)
		lost_map(u, va, prot);
	return r;
}

/* => of a file, b->offset is that of va, and what has got into it meanwhile is for the caller to drop. */
int
uffd_find_lost(struct uffd_pmap *u, const struct backing *b, int fd, uintptr_t va, size_t n)
{
	const uintptr_t start = va, end = va + (n << PAGE_SHIFT);
	struct vma v;
	int r;

	pthread_mutex_lock(&u->vmas);
	while ((r = vma_find(u, va, end, true, &v)) == 0) {
		const struct backing at = { b->fd, b->offset + (off_t)(v.start - start) };

		/* One page each: they all map offset 0, so neighbours do not merge. */
		assert(v.end - v.start == PAGE_SIZE);
		r = lost_unmap(u, &at, fd, v.start, v.prot);
		if (r < 0)
			break;
		va = v.end;
	}
	pthread_mutex_unlock(&u->vmas);
	return r == -ENOENT ? 0 : r;
}

static int
uffd_discard(struct pmap *pm, unsigned shard, uintptr_t va, size_t n)
{
	struct uffd_pmap *u = to_uffd(pm);
	int r;

	if (shard == PMAP_POOL)
		return pool_discard(u, va, n);
	r = uffd_drop_pages(va, n); /* takes UFFDIO_POISON's markers along */
	/* Reading maps takes as long as there are VMAs; whether all is registered is one call. */
	if (r == 0 && atomic_load(&u->lost_mapped) &&
	    write_protect(u->fd[shard], va, n, false) == -ENOENT)
		r = uffd_find_lost(u, &anonymous, u->fd[shard], va, n);
	return r;
}

/*
 * A description that another process has as well: it can make it block, and read what poll() has promised us, at any moment.  Whoever
 * waited there would wait for ever, and serve nobody.
 */
static ssize_t
read_foreign(int fd, void *buf, size_t len)
{
	struct iovec iov = { .iov_base = buf, .iov_len = len };
	ssize_t got = preadv2(fd, &iov, 1, -1, RWF_NOWAIT);
	int flags;

	if (got >= 0 || errno != EOPNOTSUPP)
		return got;
	/* Before Linux 6.10 there is no better way. */
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || (!(flags & O_NONBLOCK) && fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0))
		return -1;
	return read(fd, buf, len);
}

unsigned
uffd_read_faults(int fd, unsigned shard, struct pmap_fault *buf, unsigned max,
		 struct removals *removals)
{
	struct uffd_msg here[REMOVALS_HEARD];
	struct uffd_msg *const msg = removals != NULL ? removals->kept->heard : here;
	unsigned n = 0;

	while (n < max && (removals == NULL || removals_room(removals, REMOVALS_HEARD))) {
		const size_t want = MIN(max - n, REMOVALS_HEARD) * sizeof msg[0];
		const ssize_t got =
			shard > PMAP_POOL ? read_foreign(fd, msg, want) : read(fd, msg, want);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		for (size_t i = 0; i < (size_t)got / sizeof msg[0]; i++) {
			const uint64_t flags = msg[i].arg.pagefault.flags;

			/* We ask for no event; what another process opened may have. */
			assert(shard > PMAP_POOL || msg[i].event == UFFD_EVENT_PAGEFAULT);
			if (msg[i].event != UFFD_EVENT_PAGEFAULT)
				continue;
			buf[n++] = (struct pmap_fault){
				.va = (uintptr_t)msg[i].arg.pagefault.address & ~PAGE_MASK,
				.shard = shard,
				.write = (flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0,
				.wp = (flags & UFFD_PAGEFAULT_FLAG_WP) != 0,
			};
		}
		if (removals != NULL)
			removals_hear(removals, now_ns());
		if ((size_t)got < want)
			break;
	}
	return n;
}

/* A quarter of the room is kept for spaces: faults of our own that never end do not starve theirs. */
static unsigned
uffd_faults(struct pmap *pm, unsigned shard, struct pmap_fault *buf, unsigned max)
{
	struct uffd_pmap *u = to_uffd(pm);
	const bool spaces = atomic_load(&u->pools.nattached) > 0;
	const unsigned most = spaces ? max - max / 4 : max;
	unsigned n = 0;
	bool more = false;

	/* A daemon's faults are all of others. */
	if (atomic_load(&u->used) >> shard & 1) {
		n = uffd_read_faults(u->fd[shard], shard, buf, most, NULL);
		more = n == most;
	}
	if (spaces) {
		n += space_faults(u, shard, buf + n, max - n);
		if (more)
			n += uffd_read_faults(u->fd[shard], shard, buf + n, max - n, NULL);
	}
	return n;
}

static void
close_if_open(int fd)
{
	if (fd >= 0)
		close(fd);
}

/* Also of a half-made one. */
static void
uffd_destroy(struct pmap *pm)
{
	struct uffd_pmap *u;

	if (pm == NULL)
		return;
	u = to_uffd(pm);
	if (pm->stage != NULL)
		munmap(pm->stage, ((size_t)pm->nstage + 1) << PAGE_SHIFT);
	if (u->zeros != NULL)
		munmap(u->zeros, CLUSTER_MAX * PAGE_SIZE);
	for (unsigned i = 0; i < pm->nshards; i++)
		close_if_open(u->fd[i]);
	pools_fini(u);
	close_if_open(u->stage_fd);
	track_destroy(u);
	close_if_open(u->mem_fd);
	close_if_open(u->self_fd);
	close_if_open(u->pagemap_fd);
	close_if_open(u->maps_fd);
	close_if_open(u->lost_fd);
	sem_destroy(&u->copies);
	pthread_mutex_destroy(&u->vmas);
	free(u);
}

static const struct pmap_ops uffd_ops = {
	.map = uffd_map,
	.unmap = uffd_unmap,
	.split = uffd_split,
	.protect = uffd_protect,
	.zero = uffd_zero,
	.enter = uffd_enter,
	.remove = uffd_remove,
	.read = uffd_read,
	.discard = uffd_discard,
	.poison = uffd_poison,
	.wake = uffd_wake,
	.frame_new = uffd_frame_new,
	.frame_drop = uffd_frame_drop,
	.frames_drop = uffd_frames_drop,
	.lend = uffd_lend,
	.allow = uffd_allow,
	.recall = uffd_recall,
	.faults = uffd_faults,
	.pool_create = pool_create,
	.pool_destroy = pool_destroy,
	.pool_map = pool_map,
	.pool_referenced = pool_referenced,
	.pool_pages = pool_pages,
	.pool_populate = pool_populate,
	.space_create = space_create,
	.space_destroy = space_destroy,
	.space_attach = space_attach,
	.space_detach = space_detach,
	.space_allow = space_allow,
	.destroy = uffd_destroy,
};

static int
door_open(const struct door *door)
{
	const int flags = O_CLOEXEC | O_NONBLOCK | (door->user_only ? UFFD_USER_MODE_ONLY : 0);
	int dev, fd;

	if (!door->dev) {
		fd = (int)syscall(SYS_userfaultfd, flags);
		return fd < 0 ? -errno : fd;
	}
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0)
		return -errno;
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, flags);
	if (fd < 0)
		fd = -errno;
	close(dev);
	return fd;
}

/*
 * Try the doors, best first, and ask what is behind.  The descriptor that is asked is not the one
 * that is used: the first UFFDIO_API settles what an instance can do.
 */
static int
door_find(struct door *door, uint64_t *features, uint64_t mask, const struct logger *log)
{
	static const struct door doors[] = {
		{ true, false }, { false, false }, { true, true }, { false, true }
	};
	struct uffdio_api api = { .api = UFFD_API };
	bool denied = false;
	int fd = -ENOSYS, r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(doors) && fd < 0; i++) {
		*door = doors[i];
		if ((door->dev && (mask & UP_MASK_DEV_UFFD)) ||
		    (!door->user_only && (mask & UP_MASK_KERNEL_FAULTS)))
			continue;
		fd = door_open(door);
		denied |= fd == -EPERM || fd == -EACCES;
	}
	if (fd < 0 && denied) {
		log_line(log, UP_LOG_ERROR, "userfaultfd is not allowed here: " WAY_OUT);
		return -EPERM;
	}
	if (fd == -ENOSYS || fd == -EINVAL || fd == -ENOENT) {
		log_line(log, UP_LOG_ERROR,
			 "this kernel has no userfaultfd: Linux 5.10 or newer with "
			 "CONFIG_USERFAULTFD is needed (5.11 without faults of system calls)");
		return -ENOSYS;
	}
	if (fd < 0) {
		log_line(log, UP_LOG_ERROR, "cannot open a userfaultfd: %s", strerror(-fd));
		return fd;
	}
	if (ioctl(fd, UFFDIO_API, &api) < 0)
		r = -errno;
	close(fd);
	if (r < 0 || !(api.features & UFFD_FEATURE_PAGEFAULT_FLAG_WP)) {
		log_line(log, UP_LOG_ERROR,
			 "userfaultfd of this kernel can not write-protect: Linux 5.10 or newer on "
			 "x86-64 or arm64 is needed");
		return -ENOSYS;
	}
	if ((mask & PMAP_INTHREAD) && !(api.features & UFFD_FEATURE_SIGBUS)) {
		log_line(log, UP_LOG_ERROR,
			 "userfaultfd of this kernel has no UFFD_FEATURE_SIGBUS (Linux 4.14): "
			 "UP_DELIVER_INLINE is not to be had");
		return -ENOSYS;
	}
	*features = api.features;
	if (door->user_only && !(mask & (UP_MASK_KERNEL_FAULTS | PMAP_INTHREAD)))
		log_line(log, UP_LOG_WARNING,
			 "a system call that touches a page that is not in memory will fail with "
			 "EFAULT; to have it served: " WAY_OUT);
	return 0;
}

int
uffd_open(const struct door *door, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	const int fd = door_open(door);

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api) < 0) {
		const int r = -errno;

		close(fd);
		return r;
	}
	return fd;
}

int
pmap_uffd_client_open(uint64_t features, uint64_t mask, const struct logger *log)
{
	struct door door = { 0 };
	uint64_t found;
	int r = door_find(&door, &found, mask, log);

	if (r < 0)
		return r;
	r = uffd_open(&door, features);
	if (r < 0)
		log_line(log, UP_LOG_ERROR, "userfaultfd with features %#llx: %s",
			 (unsigned long long)features, strerrorname_np(-r));
	return r;
}

/* Write-protection of anonymous memory came with 5.7 and lost writes until 5.10. */
static int
check_release(const struct utsname *un, const struct logger *log)
{
	unsigned major = 0, minor = 0;

	if (sscanf(un->release, "%u.%u", &major, &minor) == 2 &&
	    (major < 5 || (major == 5 && minor < 10))) {
		log_line(log, UP_LOG_ERROR, "Linux %s is too old: 5.10 or newer is needed",
			 un->release);
		return -ENOSYS;
	}
	return 0;
}

static uint64_t
features_used(const struct door *door, uint64_t found, uint64_t mask)
{
	uint64_t use = 0;

	if (found & UFFD_FEATURE_MOVE)
		use |= UP_MASK_MOVE;
	/* Discarding would make events, and nothing may be copied out where there are. */
	if (!(mask & PMAP_TRACK))
		use |= UP_MASK_VECTOR;
	if (found & UFFD_FEATURE_POISON)
		use |= UP_MASK_POISON;
	if (found & UFFD_FEATURE_WP_HUGETLBFS_SHMEM)
		use |= UP_MASK_SHARED;
	if (door->dev)
		use |= UP_MASK_DEV_UFFD;
	if (!door->user_only && !(mask & PMAP_INTHREAD))
		use |= UP_MASK_KERNEL_FAULTS;
	return (use & ~mask) | (mask & (PMAP_TRACK | PMAP_INTHREAD));
}

static uint64_t
features_asked(const struct uffd_pmap *u)
{
	uint64_t api = UFFD_FEATURE_PAGEFAULT_FLAG_WP;

	if (has(u, UP_MASK_MOVE))
		api |= UFFD_FEATURE_MOVE;
	if (has(u, UP_MASK_POISON))
		api |= UFFD_FEATURE_POISON;
	if (has(u, UP_MASK_SHARED))
		api |= UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
	return api;
}

/* Whether a call drops pages all over.  => staging is mapped, all holes */
static void
probe_vector(struct uffd_pmap *u)
{
	const struct iovec hole = { u->pmap.stage, PAGE_SIZE };

	if (!has(u, UP_MASK_VECTOR))
		return;
	u->self_fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (u->self_fd < 0 || u->mem_fd < 0 || drop_vector(u, &hole, 1) == 0)
		u->pmap.features &= ~(uint64_t)UP_MASK_VECTOR;
}

/* Descriptors and address space; what was opened on failure, uffd_destroy() closes. */
static int
uffd_set_up(struct uffd_pmap *u, const struct logger *log)
{
	struct uffdio_zeropage zero = { .range = { .len = PAGE_SIZE } };
	uintptr_t stage = 0;
	void *zeros;
	int r;

	/* Of regions alone: staging needs no events, and whoever touches what is not there in it has a bug. */
	const uint64_t regions = u->api | (has(u, PMAP_TRACK) ? track_features() : 0) |
				 (has(u, PMAP_INTHREAD) ? UFFD_FEATURE_SIGBUS : 0);

	for (unsigned i = 0; i < u->pmap.nshards; i++)
		if ((u->fd[i] = uffd_open(&u->door, regions)) < 0)
			return u->fd[i];
	if ((u->stage_fd = uffd_open(&u->door, u->api)) < 0)
		return u->stage_fd;
	u->mem_fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	u->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (u->mem_fd < 0 || u->pagemap_fd < 0)
		log_line(log, UP_LOG_WARNING,
			 "cannot read /proc/self/mem or pagemap: pages of PROT_NONE regions will "
			 "stay in memory");
	if (!has(u, UP_MASK_POISON)) {
		u->maps_fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
		u->lost_fd = memfd_create(LOST_NAME, MFD_CLOEXEC);
		if (u->maps_fd < 0 || u->lost_fd < 0)
			log_line(log, UP_LOG_WARNING,
				 "no UFFDIO_POISON, and no /proc/self/maps or memfd: a thread that "
				 "touches an unreadable page can not be told; no shared memory");
		/* In several places there is nothing that would stand in for it. */
		if (u->maps_fd < 0 || u->lost_fd < 0)
			u->pmap.features &= ~(uint64_t)UP_MASK_SHARED;
	}
	if (has(u, UP_MASK_SHARED) && (r = pools_init(u, log)) < 0)
		return r;

	zeros = mmap(NULL, CLUSTER_MAX * PAGE_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (zeros == MAP_FAILED)
		return -errno;
	u->zeros = zeros;
	r = uffd_region_map(&u->stage_file, u->stage_fd, 0, false,
			    ((size_t)u->pmap.nstage + 1) << PAGE_SHIFT, PROT_READ | PROT_WRITE,
			    UFFDIO_REGISTER_MODE_MISSING, &stage);
	if (r < 0)
		return r;
	u->pmap.stage = (char *)stage;
	probe_vector(u);
	/* The kernel's page of zeros will do here: it is never written, and costs no memory. */
	u->occupied = stage + ((size_t)u->pmap.nstage << PAGE_SHIFT);
	zero.range.start = u->occupied;
	if (ioctl(u->stage_fd, UFFDIO_ZEROPAGE, &zero) < 0 &&
	    (errno != EEXIST || u->stage_file.fd < 0))
		return -errno;
	return has(u, PMAP_TRACK) ? track_create(u) : 0;
}

static void
ops_without_pools(struct pmap_ops *ops)
{
	ops->pool_create = NULL;
	ops->pool_destroy = NULL;
	ops->pool_map = NULL;
	ops->pool_referenced = NULL;
	ops->pool_populate = NULL;
	ops->space_create = NULL;
	ops->space_destroy = NULL;
	ops->space_attach = NULL;
	ops->space_detach = NULL;
	ops->space_allow = NULL;
}

int
pmap_uffd_create(struct pmap **pm, frame_t nstage, unsigned nshards, uint64_t mask,
		 const struct logger *log)
{
	return pmap_uffd_create_on(pm, anonymous.fd, nstage, nshards, mask, log);
}

int
pmap_uffd_create_on(struct pmap **pm, int stage, frame_t nstage, unsigned nshards, uint64_t mask,
		    const struct logger *log)
{
	struct uffd_pmap *u;
	struct utsname un;
	struct door door = { 0 };
	uint64_t found = 0;
	int r;

	*pm = NULL;
	/* Neither moves what is in files, nor drops it. */
	if (stage >= 0)
		mask |= UP_MASK_MOVE | UP_MASK_VECTOR;
	assert(nstage > 0 && nshards > 0 && nshards < PMAP_POOL);
	if (uname(&un) < 0)
		return -errno;
	r = check_release(&un, log);
	if (r == 0)
		r = door_find(&door, &found, mask, log);
	if (r == 0 && (mask & PMAP_TRACK))
		r = track_check(found, features_used(&door, found, mask), log);
	if (r < 0)
		return r;
	u = calloc(1, sizeof *u + nshards * sizeof u->fd[0]);
	if (u == NULL)
		return -ENOMEM;
	u->ops = uffd_ops;
	u->pmap.ops = &u->ops;
	u->door = door;
	u->stage_file = (struct backing){ .fd = stage };
	u->pmap.nstage = nstage;
	u->pmap.nshards = nshards;
	u->pmap.headroom = CLUSTER_MAX * PAGE_SIZE;
	u->pmap.features = features_used(&door, found, mask);
	u->api = features_asked(u);
	u->stage_fd = u->mem_fd = u->self_fd = u->pagemap_fd = u->maps_fd = u->lost_fd = -1;
	for (unsigned i = 0; i < nshards; i++)
		u->fd[i] = -1;
	sem_init(&u->copies, 0, COPY_TICKETS);
	pthread_mutex_init(&u->vmas, NULL);

	r = uffd_set_up(u, log);
	if (r < 0) {
		log_line(log, UP_LOG_ERROR, "cannot set up userfaultfd: %s", strerror(-r));
		uffd_destroy(&u->pmap);
		return r;
	}
	log_line(log, UP_LOG_INFO,
		 "Linux %s, userfaultfd by %s%s; pages are %s; lost pages by %s; "
		 "shared memory: %s",
		 un.release, door.dev ? "/dev/userfaultfd" : "system call",
		 door.user_only ? " (user mode only)" : "",
		 has(u, UP_MASK_MOVE) ? "moved" : "copied",
		 has(u, UP_MASK_POISON) ? "UFFDIO_POISON" : "an empty file",
		 has(u, UP_MASK_SHARED) ? "yes" : "no");
	if (!has(u, UP_MASK_SHARED))
		ops_without_pools(&u->ops);
	*pm = &u->pmap;
	return 0;
}

int
pmap_uffd_fd(struct pmap *pm, unsigned shard)
{
	assert(shard < pm->nshards);
	return to_uffd(pm)->fd[shard];
}
