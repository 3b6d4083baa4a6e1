/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pool.c: shared memory behind userfaultfd, mapped in several places and several processes.
 *
 * Pools are parts of a file in memory (memfd), one for all of them: a descriptor each would be as many as there are children times
 * what they inherit.  Who has the descriptor can map all of the file, so one that is for a process which may not see the others' has a
 * file of its own (`apart`), and can not change its length.  What is in the file is what is in the pool:
 *
 *	          UFFDIO_COPY, staging's descriptor
 *	frame  ---------------------------------------> alias --.
 *	                                                         file <-- places (shards' descriptors), and
 *	hole   <--------------------------------------- pread --'         places of spaces (theirs)
 *	          then fallocate(PUNCH_HOLE)
 *
 * The alias is our own mapping of all of it, registered so that COPY accepts it as a destination (EEXIST where a page
 * is), and inaccessible.  A page that gets into the file is seen at all places by a plain fault of the
 * kernel; one that is punched out is gone from all of them.
 *
 * Places are registered MISSING and WP.  Out of the file goes a page only while nobody can write it: protected at
 * every place, also where the page table has nothing yet (the kernel leaves markers).  The markers
 * outlive the page: without allowing again, the next fault there would come with WP set.
 *
 * Rejected: UFFDIO_CONTINUE on places registered MINOR, which would tell us of each place that comes to see a page. It
 * is a message and a wake-up a place for what the kernel does alone in a microsecond; and who has
 * seen a page is told by the page tables when we ask, pool_referenced().
 *
 * Who is where: pools, by their alias, and places, by space and address, are spans of one tree (a treap: it needs no
 * rotations to be right and no more than an item a span).  A pool lists its places, in no order:
 * almost always each of them has the page.
 *
 *	lock	read by an operation from beginning to end, so that it has all places or none of those that come and
 *		go; written by whoever makes them come and go, munmap() included: what was still
 *		mapped and no longer known could be written behind the back of a remove().
 *		Then copies (uffd.c).  Nothing that is done under it waits for a fault.
 *	poison	a leaf
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pmap/removal.h"
#include "pmap/uffd.h"
#include "vm/zone.h"

#define POOL_NAME "uffd-pager-pool"
#define SHMEM_HUGE "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

/* What a process that is served must not have asked to be told of; nor of removals, but for guests. */
#define EVENTS_REFUSED \
	(UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_UNMAP)

/* Of this process; all others are shards of spaces. */
#define OURS 0u

/* Addresses [start, end) of one space. */
struct span {
	struct span *child[2];
	uint64_t weight; /* of no span above its parent's */
	uintptr_t start, end;
	unsigned space; /* OURS, or a shard */
	bool is_pool;	/* an alias */
};

struct pool {
	struct span span; /* first */
	int file;	  /* (c) */
	bool apart;	  /* (c) the file is its own */
	unsigned guest;	  /* (c) the file is a guest's, of that shard; 0: ours */
	bool left;	  /* its guest goes on without us: nothing is done to the file any more */
	off_t base;	  /* (c) of its first page in the file */
	struct place *places;
	size_t poison_from, poison_to; /* (poison) outside of it no page is poisoned */
};

struct place {
	struct span span; /* first */
	struct pool *pool;
	size_t first; /* page of the pool at span.start */
	unsigned shard;
	struct place *prev, *next;
};

static void guest_leave(struct uffd_pmap *u, unsigned shard, bool untouched);
static unsigned guest_faults(struct uffd_pmap *u, unsigned shard, struct pmap_fault *buf,
			     unsigned max);

struct space {
	unsigned near;
	int fd;			   /* -1: nobody runs there */
	int pidfd;		   /* without UFFDIO_POISON; or -1 */
	struct removals *removals; /* of one that tells of them; NULL */
};

/* --- the tree --- */

/* Is s before the address? */
static bool
before(const struct span *s, unsigned space, uintptr_t va)
{
	return s->space != space ? s->space < space : s->start < va;
}

/* The first span of that space that ends above va, or NULL. */
static struct span *
span_above(const struct pools *p, unsigned space, uintptr_t va)
{
	struct span *s = p->root, *found = NULL;

	/* No two overlap, so they end in the order in which they start. */
	while (s != NULL) {
		if (s->space == space ? s->end > va : s->space > space) {
			found = s;
			s = s->child[0];
		} else {
			s = s->child[1];
		}
	}
	return found != NULL && found->space == space ? found : NULL;
}

static struct span *
span_at(const struct pools *p, unsigned space, uintptr_t va)
{
	struct span *s = span_above(p, space, va);

	return s != NULL && s->start <= va ? s : NULL;
}

static void
span_insert(struct pools *p, struct span *s)
{
	struct span **link = &p->root, **lo = &s->child[0], **hi = &s->child[1], *t;
	uint64_t z = p->weights += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	s->weight = z ^ (z >> 31);
	while ((t = *link) != NULL && t->weight >= s->weight)
		link = &t->child[before(t, s->space, s->start)];
	*link = s;
	while (t != NULL) {
		if (before(t, s->space, s->start)) {
			*lo = t;
			lo = &t->child[1];
			t = *lo;
		} else {
			*hi = t;
			hi = &t->child[0];
			t = *hi;
		}
	}
	*lo = *hi = NULL;
}

static void
span_remove(struct pools *p, struct span *s)
{
	struct span **link = &p->root, *a = s->child[0], *b = s->child[1];

	while (*link != s)
		link = &(*link)->child[before(*link, s->space, s->start)];
	while (a != NULL && b != NULL) {
		if (a->weight >= b->weight) {
			*link = a;
			link = &a->child[1];
			a = *link;
		} else {
			*link = b;
			link = &b->child[0];
			b = *link;
		}
	}
	*link = a != NULL ? a : b;
}

/* --- records --- */

static void *
record_new(struct uffd_pmap *u)
{
	assert(u->pmap.places != NULL);
	return zone_alloc(u->pmap.places, ZONE_WAIT);
}

static void
record_free(struct uffd_pmap *u, void *record)
{
	zone_free(u->pmap.places, record);
}

/* The pool that has a page at this address of an alias, or NULL. */
static struct pool *
pool_at(const struct uffd_pmap *u, uintptr_t va)
{
	struct span *s = span_at(&u->pools, OURS, va);

	return s != NULL && s->is_pool ? (struct pool *)s : NULL;
}

static struct space *
space_of(const struct uffd_pmap *u, unsigned shard)
{
	assert(shard > PMAP_POOL && shard - PMAP_POOL <= SPACES_MAX);
	return u->pools.space[shard - PMAP_POOL - 1];
}

/* What a place was registered with, or -1: nobody runs there. */
static int
place_fd(const struct uffd_pmap *u, const struct place *pl)
{
	const struct space *sp;

	if (pl->span.space == OURS)
		return u->fd[pl->shard];
	sp = space_of(u, pl->shard);
	return sp != NULL ? sp->fd : -1;
}

static void
place_insert(struct uffd_pmap *u, struct place *pl)
{
	struct pool *pool = pl->pool;

	span_insert(&u->pools, &pl->span);
	pl->prev = NULL;
	pl->next = pool->places;
	if (pl->next != NULL)
		pl->next->prev = pl;
	pool->places = pl;
}

static void
place_remove(struct uffd_pmap *u, struct place *pl)
{
	span_remove(&u->pools, &pl->span);
	if (pl->next != NULL)
		pl->next->prev = pl->prev;
	if (pl->prev != NULL)
		pl->prev->next = pl->next;
	else
		pl->pool->places = pl->next;
}

/* Pages of a pool, at one place. */
struct part {
	const struct place *place;
	int fd;
	uintptr_t va;
	size_t first, n; /* pages of the pool */
};

/* What of pages [first, first + n) is at a place.  False: nothing, or nobody runs there. */
static bool
part_of(const struct uffd_pmap *u, const struct place *pl, size_t first, size_t n,
	struct part *part)
{
	const size_t end = pl->first + ((pl->span.end - pl->span.start) >> PAGE_SHIFT);
	const size_t from = MAX(first, pl->first), to = MIN(first + n, end);

	if (from >= to)
		return false;
	*part = (struct part){
		.place = pl,
		.fd = place_fd(u, pl),
		.va = pl->span.start + ((from - pl->first) << PAGE_SHIFT),
		.first = from,
		.n = to - from,
	};
	return part->fd >= 0;
}

/* Do it at every place, until it fails. */
static int
each_part(struct uffd_pmap *u, const struct pool *pool, size_t first, size_t n,
	  int (*fn)(struct uffd_pmap *, const struct part *))
{
	int r = 0;

	for (struct place *pl = pool->places; pl != NULL && r == 0; pl = pl->next) {
		struct part part;

		if (part_of(u, pl, first, n, &part))
			r = fn(u, &part);
	}
	return r;
}

/* --- what is done at a place --- */

/* How often to try what the kernel refuses while a process waits for a message to be read. */
static unsigned
tries_of(const struct space *sp)
{
	return sp != NULL && sp->removals != NULL ? GUEST_TRIES : FOREIGN_TRIES;
}

/*
 * Set or take away write-protection.  Addresses that are mapped no longer, or whose process is gone, have nobody
 * who writes there.
 *
 * => 0, or -EAGAIN: it may not be everywhere.
 */
static int
part_protect(const struct uffd_pmap *u, const struct part *part, uint64_t mode)
{
	const unsigned most =
		part->place->span.space == OURS ? 0 : tries_of(space_of(u, part->place->shard));
	int r = uffd_write_protect(part->fd, part->va, part->n, mode, most);

	for (size_t i = 0; i < part->n && r == -ENOENT && part->n > 1; i++) {
		const int one =
			uffd_write_protect(part->fd, part->va + (i << PAGE_SHIFT), 1, mode, most);

		if (one < 0 && one != -ENOENT)
			r = one;
	}
	/* EINVAL: the userfaultfd of another process, that has registered nothing: it was never initialised. */
	return r == 0 || r == -ENOENT || r == -ESRCH ||
			       (r == -EINVAL && part->place->span.space != OURS)
		       ? 0
		       : -EAGAIN;
}

static int
stop_writers(struct uffd_pmap *u, const struct part *part)
{
	return part_protect(u, part, UFFDIO_WRITEPROTECT_MODE_WP);
}

/* Everybody writes again; who waits for that is awake. */
static int
allow_writers(struct uffd_pmap *u, const struct part *part)
{
	part_protect(u, part, 0);
	return 0;
}

/* The same where the page is gone: who waits goes on waiting, for the page. */
static int
clear_markers(struct uffd_pmap *u, const struct part *part)
{
	part_protect(u, part, UFFDIO_WRITEPROTECT_MODE_DONTWAKE);
	return 0;
}

static int
wake_part(struct uffd_pmap *u, const struct part *part)
{
	struct uffdio_range range = { .start = part->va, .len = part->n << PAGE_SHIFT };

	(void)u;
	ioctl(part->fd, UFFDIO_WAKE, &range);
	return 0;
}

/* --- operations on pages of pools --- */

/* Pages from va on that are in one pool, n at most.  => the lock is held. */
static struct pool *
pool_run(const struct uffd_pmap *u, uintptr_t va, size_t *n, size_t *first)
{
	struct pool *pool = pool_at(u, va);

	*first = 0;
	assert(pool != NULL); /* the caller holds its pages busy */
	if (pool == NULL)
		return NULL;
	*first = (va - pool->span.start) >> PAGE_SHIFT;
	*n = MIN(*n, (pool->span.end - va) >> PAGE_SHIFT);
	return pool;
}

/*
 * Whether nothing may be put into the file there, or if `out` taken out of it: its guest goes on without us, or has just removed it.
 * => the lock is held.
 */
static bool
held_back(const struct uffd_pmap *u, const struct pool *pool, size_t first, size_t n, bool out)
{
	const struct space *sp;

	if (pool->guest == 0)
		return false;
	sp = space_of(u, pool->guest);
	if (pool->left || sp == NULL)
		return true;
	for (const struct place *pl = pool->places; pl != NULL && sp->removals != NULL;
	     pl = pl->next) {
		struct part part;

		if (part_of(u, pl, first, n, &part) &&
		    removals_forbid(sp->removals, part.va, part.va + (part.n << PAGE_SHIFT), out,
				    now_ns()))
			return true;
	}
	return false;
}

/* Of page i of a pool in the file. */
static off_t
offset_of(const struct pool *pool, size_t i)
{
	return pool->base + (off_t)(i << PAGE_SHIFT);
}

static int
punch(const struct pool *pool, size_t first, size_t n)
{
	if (pool->left)
		return 0;
	while (fallocate(pool->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			 offset_of(pool, first), (off_t)(n << PAGE_SHIFT)) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

int
pool_zero(struct uffd_pmap *u, uintptr_t va, size_t n, size_t *done)
{
	int r = 0;

	*done = 0;
	pthread_rwlock_rdlock(&u->pools.lock);
	while (r == 0 && *done < n) {
		const uintptr_t at = va + (*done << PAGE_SHIFT);
		size_t run = n - *done, first, k;
		struct pool *pool = pool_run(u, at, &run, &first);

		if (pool == NULL) {
			r = -ENOENT;
			break;
		}
		if (held_back(u, pool, first, run, false)) {
			r = -EAGAIN;
			break;
		}
		r = uffd_install_zeros(u, u->stage_fd, at, run, &k);
		if (k > 0)
			each_part(u, pool, first, k, wake_part);
		*done += k;
	}
	pthread_rwlock_unlock(&u->pools.lock);
	return r;
}

int
pool_enter(struct uffd_pmap *u, uintptr_t va, frame_t frame, size_t n, size_t *done)
{
	int r = 0;

	*done = 0;
	pthread_rwlock_rdlock(&u->pools.lock);
	while (r == 0 && *done < n) {
		const uintptr_t at = va + (*done << PAGE_SHIFT);
		size_t run = n - *done, first, k;
		struct pool *pool = pool_run(u, at, &run, &first);

		if (pool == NULL) {
			r = -ENOENT;
			break;
		}
		if (held_back(u, pool, first, run, false)) {
			r = -EAGAIN;
			break;
		}
		run = uffd_copy_begin(u, run);
		r = uffd_install(uffd_copy, u->stage_fd, at,
				 frame_va(u, frame + (frame_t)*done, run), run, &k);
		uffd_frame_drop(&u->pmap, frame + (frame_t)*done, k);
		uffd_copy_end(u, run);
		if (k > 0)
			each_part(u, pool, first, k, wake_part);
		*done += k;
	}
	pthread_rwlock_unlock(&u->pools.lock);
	return r;
}

/* pread() of whole pages; where nothing is, zeros.  0 or -EIO. */
static int
file_read(const struct pool *pool, size_t first, size_t n, char *buf)
{
	const size_t len = n << PAGE_SHIFT;
	size_t got = 0;

	while (got < len) {
		const ssize_t k = pread(pool->file, buf + got, len - got,
					offset_of(pool, first) + (off_t)got);

		if (k < 0 && errno == EINTR)
			continue;
		if (k <= 0)
			return -EIO;
		got += (size_t)k;
	}
	return 0;
}

/*
 * Copy pages that nobody can write now into holes.  0, or why page *done was not: -EBUSY, its memory has failed.
 */
static int
copy_out(struct uffd_pmap *u, const struct pool *pool, size_t first, frame_t hole, size_t n,
	 size_t *done)
{
	size_t made, good = 0;
	int r = uffd_frame_new(&u->pmap, hole, n, &made);

	if (made > 0 && file_read(pool, first, made, pmap_frame(&u->pmap, hole)) == 0)
		good = made;
	else /* which page is it? */
		while (good < made && file_read(pool, first + good, 1,
						pmap_frame(&u->pmap, hole + (frame_t)good)) == 0)
			good++;
	if (good < made) {
		uffd_frame_drop(&u->pmap, hole + (frame_t)good, made - good);
		r = -EBUSY;
	}
	*done = good;
	return r;
}

/*
 * remove of the first pages of a run in one pool, as many as may be copied now.
 *
 *	stop writers	at all places: what is copied is what is dropped
 *	copy		file -> holes
 *	punch		those copied; from here on they are in the frames only
 *	clear markers	of those; allow writing those not copied: nothing has happened to them
 */
static int
take_out(struct uffd_pmap *u, const struct pool *pool, size_t first, frame_t hole, size_t n,
	 size_t *done)
{
	int r;

	n = uffd_copy_begin(u, n);
	*done = 0;
	r = each_part(u, pool, first, n, stop_writers);
	if (r == 0)
		r = copy_out(u, pool, first, hole, n, done);
	if (*done > 0 && punch(pool, first, *done) < 0) {
		uffd_frame_drop(&u->pmap, hole, *done);
		*done = 0;
		r = -EAGAIN;
	}
	uffd_copy_end(u, n);
	if (*done > 0)
		each_part(u, pool, first, *done, clear_markers);
	if (*done < n)
		each_part(u, pool, first + *done, n - *done, allow_writers);
	return r;
}

int
pool_remove(struct uffd_pmap *u, uintptr_t va, frame_t hole, size_t n, size_t *done)
{
	int r = 0;

	*done = 0;
	pthread_rwlock_rdlock(&u->pools.lock);
	while (r == 0 && *done < n) {
		size_t run = n - *done, first, k;
		struct pool *pool = pool_run(u, va + (*done << PAGE_SHIFT), &run, &first);

		if (pool == NULL) {
			r = -ENOENT;
			break;
		}
		if (held_back(u, pool, first, run, true)) {
			r = -EAGAIN;
			break;
		}
		r = take_out(u, pool, first, hole + (frame_t)*done, run, &k);
		*done += k;
	}
	pthread_rwlock_unlock(&u->pools.lock);
	return r;
}

int
pool_read(struct uffd_pmap *u, uintptr_t va, void *buf)
{
	struct pool *pool;
	int r = 1;

	if (atomic_load(&u->pools.npools) == 0)
		return r;
	pthread_rwlock_rdlock(&u->pools.lock);
	pool = pool_at(u, va);
	if (pool != NULL)
		r = file_read(pool, (va - pool->span.start) >> PAGE_SHIFT, 1, buf);
	pthread_rwlock_unlock(&u->pools.lock);
	return r;
}

void
pool_wake(struct uffd_pmap *u, uintptr_t va, size_t n)
{
	size_t run, first;

	pthread_rwlock_rdlock(&u->pools.lock);
	for (; n > 0; n -= run, va += run << PAGE_SHIFT) {
		struct pool *pool = pool_at(u, va);

		/* Who lets go of the last page of an object may come after the object: nobody waits there. */
		if (pool == NULL)
			break;
		run = n;
		pool_run(u, va, &run, &first);
		each_part(u, pool, first, run, wake_part);
	}
	pthread_rwlock_unlock(&u->pools.lock);
}

/* --- poison --- */

static bool
in_file(const struct pool *pool, size_t i)
{
	return lseek(pool->file, offset_of(pool, i), SEEK_DATA) == offset_of(pool, i);
}

/*
 * Make one page of one place SIGBUS.  A process whose page tables we can not reach, for want of UFFDIO_POISON, is
 * sent the signal, whether it waits for that page or not: it would fault there for ever.
 *
 * => 0, -EEXIST: it is already.  -ENOENT, -ESRCH: nobody is there.
 */
static int
part_poison(struct uffd_pmap *u, const struct part *part)
{
	struct uffdio_poison p = { .range = { .start = part->va, .len = PAGE_SIZE } };
	const struct space *sp;
	unsigned again = 0;
	int r;

	if (has(u, UP_MASK_POISON)) {
		do {
			r = ioctl(part->fd, UFFDIO_POISON, &p) < 0 ? -errno : 0;
		} while (r == -EAGAIN && ++again < EAGAIN_MAX);
		return r;
	}
	if (part->place->span.space == OURS)
		return uffd_lose(u, part->va);
	sp = space_of(u, part->place->shard);
	if (sp->pidfd < 0)
		return -ENOTSUP;
	return syscall(SYS_pidfd_send_signal, sp->pidfd, SIGBUS, NULL, 0) < 0 ? -errno : 0;
}

/* => the lock is held for reading. */
static int
poison_locked(struct uffd_pmap *u, struct pool *pool, size_t i)
{
	struct pools *p = &u->pools;
	bool poisoned = false, already = false;
	int err = 0;

	if (in_file(pool, i))
		return -EEXIST;
	pthread_mutex_lock(&p->poison);
	if (pool->poison_from == pool->poison_to)
		pool->poison_from = pool->poison_to = i;
	pool->poison_from = MIN(pool->poison_from, i);
	pool->poison_to = MAX(pool->poison_to, i + 1);
	pthread_mutex_unlock(&p->poison);
	for (struct place *pl = pool->places; pl != NULL; pl = pl->next) {
		struct part part;
		int r;

		if (!part_of(u, pl, i, 1, &part))
			continue;
		r = part_poison(u, &part);
		wake_part(u, &part);
		if (r == 0)
			poisoned = true;
		else if (r == -EEXIST)
			already = true;
		else if (r != -ENOENT && r != -ESRCH)
			err = r;
	}
	if (err == 0 && already && !poisoned)
		err = -EEXIST;
	return err;
}

int
pool_poison(struct uffd_pmap *u, uintptr_t va)
{
	struct pool *pool;
	size_t n = 1, i;
	int r = -ENOENT;

	pthread_rwlock_rdlock(&u->pools.lock);
	pool = pool_run(u, va, &n, &i);
	if (pool != NULL) {
		r = poison_locked(u, pool, i);
		each_part(u, pool, i, 1, wake_part);
	}
	pthread_rwlock_unlock(&u->pools.lock);
	return r;
}

/*
 * Absent pages at one place are so in its page table too; what was lost in another process stays lost there.
 *
 * MADV_DONTNEED of another process is refused, and punching keeps markers.  Only a page that is installed there would take one
 * away, and then go from the file like any other: for an instant a thread there could read zeros.
 */
static int
part_heal(struct uffd_pmap *u, const struct pool *pool, const struct part *part)
{
	const struct backing file = { pool->file, offset_of(pool, part->first) };

	if (part->place->span.space == OURS) {
		int r = uffd_drop_pages(part->va, part->n);
		if (r == 0 && atomic_load(&u->lost_mapped))
			r = uffd_find_lost(u, &file, part->fd, part->va, part->n);
		return r == -ENOENT ? 0 : r;
	}
	return 0;
}

/* => the lock is held for reading; nothing of the pages is in the file. */
static int
heal(struct uffd_pmap *u, struct pool *pool, size_t first, size_t n)
{
	struct pools *p = &u->pools;
	size_t from, to;
	int r = 0;

	pthread_mutex_lock(&p->poison);
	from = MAX(first, pool->poison_from);
	to = MIN(first + n, pool->poison_to);
	pthread_mutex_unlock(&p->poison);
	if (from >= to)
		return 0;
	for (struct place *pl = pool->places; pl != NULL && r == 0; pl = pl->next) {
		struct part part;

		if (part_of(u, pl, from, to - from, &part))
			r = part_heal(u, pool, &part);
	}
	if (r == 0 && atomic_load(&u->lost_mapped))
		r = punch(pool, from, to - from); /* what came before it was registered */
	pthread_mutex_lock(&p->poison);
	/* The caller's pages are busy: what was poisoned meanwhile is outside. */
	if (r == 0 && first <= pool->poison_from && pool->poison_to <= first + n)
		pool->poison_from = pool->poison_to = 0;
	pthread_mutex_unlock(&p->poison);
	return r;
}

int
pool_discard(struct uffd_pmap *u, uintptr_t va, size_t n)
{
	size_t run, first;
	int r = 0;

	pthread_rwlock_rdlock(&u->pools.lock);
	for (; n > 0 && r == 0; n -= run, va += run << PAGE_SHIFT) {
		struct pool *pool;

		run = n;
		pool = pool_run(u, va, &run, &first);
		if (pool == NULL) {
			r = -ENOENT;
			break;
		}
		r = punch(pool, first, run);
		if (r == 0)
			r = heal(u, pool, first, run);
	}
	pthread_rwlock_unlock(&u->pools.lock);
	return r;
}

/* --- pools and places come and go --- */

/*
 * A part of the file that no pool has had, `len` bytes at the offset returned, or -errno.  Parts are not used again: an offset
 * has 63 bits, and the file's size costs nothing.
 */
static off_t
file_extend(struct uffd_pmap *u, size_t len)
{
	struct pools *p = &u->pools;
	off_t at;

	pthread_rwlock_wrlock(&p->lock);
	at = p->size;
	if (__builtin_add_overflow(at, (off_t)len, &p->size)) {
		p->size = at;
		at = -ENOSPC;
	} else if (ftruncate(p->file, p->size) < 0) {
		p->size = at;
		at = -errno;
	}
	pthread_rwlock_unlock(&p->lock);
	return at;
}

/* A file of that length for one pool, which who has it can not change.  Its descriptor or -errno. */
static int
file_apart(size_t len)
{
	const int fd = memfd_create(POOL_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int r;

	if (fd < 0)
		return -errno;
	if (len <= INT64_MAX && ftruncate(fd, (off_t)len) == 0 &&
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
		return fd;
	r = len <= INT64_MAX ? -errno : -ENOSPC;
	close(fd);
	return r;
}

/* A pool in its part of a file, which is closed on failure if it is `apart`. */
static int
pool_make(struct uffd_pmap *u, struct backing file, size_t npages, bool apart, unsigned guest,
	  uintptr_t *pool)
{
	struct pool *p = record_new(u);
	int r = -ENOMEM;

	if (p == NULL)
		goto close_file;
	/*
	 * Inaccessible: COPY does not mind, and a program that touches addresses which it has unmapped may find that
	 * the alias has them now.
	 */
	r = uffd_region_map(&file, u->stage_fd, 0, false, npages << PAGE_SHIFT, PROT_NONE,
			    UFFDIO_REGISTER_MODE_MISSING, pool);
	if (r < 0)
		goto free_record;
	*p = (struct pool){
		.span = { .start = *pool, .end = *pool + (npages << PAGE_SHIFT), .is_pool = true },
		.file = file.fd,
		.apart = apart,
		.guest = guest,
		.base = file.offset,
	};
	pthread_rwlock_wrlock(&u->pools.lock);
	span_insert(&u->pools, &p->span);
	atomic_fetch_add(&u->pools.npools, 1);
	pthread_rwlock_unlock(&u->pools.lock);
	return 0;
free_record:
	record_free(u, p);
close_file:
	if (apart)
		close(file.fd);
	return r;
}

int
pool_create(struct pmap *pm, size_t npages, bool apart, uintptr_t *pool)
{
	struct uffd_pmap *u = to_uffd(pm);
	struct backing file = { .fd = u->pools.file };
	int r;

	if (apart)
		file.fd = r = file_apart(npages << PAGE_SHIFT);
	else
		r = (file.offset = file_extend(u, npages << PAGE_SHIFT)) < 0 ? (int)file.offset : 0;
	return r < 0 ? r : pool_make(u, file, npages, apart, 0, pool);
}

int
pmap_uffd_pool_adopt(struct pmap *pm, int fd, size_t npages, uintptr_t *pool)
{
	const struct backing file = { .fd = fd };
	struct stat st;

	if (fstat(fd, &st) < 0 || st.st_size < 0 ||
	    (uint64_t)st.st_size != (uint64_t)npages << PAGE_SHIFT) {
		close(fd);
		return -EINVAL;
	}
	return pool_make(to_uffd(pm), file, npages, true, 0, pool);
}

bool
pmap_uffd_pool_next(struct pmap *pm, uintptr_t *page, uintptr_t end, size_t *n)
{
	uint64_t offset;
	const int fd = pmap_uffd_pool_fd(pm, *page, &offset);
	off_t data, hole, stop;

	if (fd < 0)
		return false;
	stop = (off_t)(offset + (end - *page));
	data = lseek(fd, (off_t)offset, SEEK_DATA);
	if (data < 0 || data >= stop)
		return false;
	hole = lseek(fd, data, SEEK_HOLE);
	*page += (uintptr_t)(data - (off_t)offset);
	*n = (size_t)(MIN(hole, stop) - data) >> PAGE_SHIFT;
	return true;
}

void
pool_destroy(struct pmap *pm, uintptr_t va)
{
	struct uffd_pmap *u = to_uffd(pm);
	struct pool *pool;

	pthread_rwlock_wrlock(&u->pools.lock);
	pool = pool_at(u, va);
	assert(pool != NULL && pool->span.start == va && pool->places == NULL);
	span_remove(&u->pools, &pool->span);
	atomic_fetch_sub(&u->pools.npools, 1);
	pthread_rwlock_unlock(&u->pools.lock);
	/* A child that has not gone yet may still hold the file; it shall not hold the memory.  A guest's is its own. */
	if (pool->guest == 0)
		punch(pool, 0, (pool->span.end - pool->span.start) >> PAGE_SHIFT);
	munmap((void *)pool->span.start, pool->span.end - pool->span.start);
	if (pool->apart)
		close(pool->file);
	record_free(u, pool);
}

size_t
pool_pages(struct pmap *pm, uintptr_t va)
{
	struct uffd_pmap *u = to_uffd(pm);
	struct stat st = { .st_blocks = 0 };
	const struct pool *pool;

	pthread_rwlock_rdlock(&u->pools.lock);
	pool = pool_at(u, va);
	/* A guest's file has other things in it. */
	if (pool != NULL && pool->apart && pool->guest == 0 && fstat(pool->file, &st) < 0)
		st.st_blocks = 0;
	pthread_rwlock_unlock(&u->pools.lock);
	return (size_t)st.st_blocks / (PAGE_SIZE / 512);
}

int
pool_map(struct pmap *pm, uintptr_t page, uintptr_t hint, bool fixed, size_t len, int prot,
	 unsigned shard, uintptr_t *va)
{
	struct uffd_pmap *u = to_uffd(pm);
	const bool ours = shard < PMAP_POOL;
	struct place *pl = record_new(u);
	struct backing file;
	struct pool *pool;
	size_t first;
	int r = 0;

	if (pl == NULL)
		return -ENOMEM;
	pthread_rwlock_rdlock(&u->pools.lock);
	pool = pool_at(u, page);
	assert(pool != NULL && len <= pool->span.end - page);
	assert(ours || space_of(u, shard) != NULL);
	first = (page - pool->span.start) >> PAGE_SHIFT;
	file = (struct backing){ pool->file, offset_of(pool, first) };
	pthread_rwlock_unlock(&u->pools.lock);

	if (prot & PROT_WRITE)
		prot |= PROT_READ;
	*va = hint;
	/* Nobody can touch it yet: an operation that runs just now does not have it. */
	if (ours)
		r = uffd_region_map(&file, uffd_for_region(u, shard), hint, fixed, len, PROT_NONE,
				    UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP, va);
	if (r < 0) {
		record_free(u, pl);
		return r;
	}
	*pl = (struct place){
		.span = { .start = *va, .end = *va + len, .space = ours ? OURS : shard },
		.pool = pool,
		.first = first,
		.shard = shard,
	};
	pthread_rwlock_wrlock(&u->pools.lock);
	place_insert(u, pl);
	pthread_rwlock_unlock(&u->pools.lock);
	if (ours && mprotect((void *)*va, len, prot) < 0) {
		r = -errno;
		places_unmap(u, *va, len, shard);
	}
	return r;
}

/*
 * Make an address an edge of the place that it is in, if any.
 *
 * => 0 or -ENOMEM.  => the lock is not held.
 */
static int
place_split(struct uffd_pmap *u, unsigned space, uintptr_t va)
{
	struct place *pl, *upper;
	struct span *s;

	pthread_rwlock_rdlock(&u->pools.lock);
	s = span_at(&u->pools, space, va);
	pthread_rwlock_unlock(&u->pools.lock);
	if (s == NULL || s->start == va || s->is_pool)
		return 0;
	upper = record_new(u);
	if (upper == NULL)
		return -ENOMEM;

	pthread_rwlock_wrlock(&u->pools.lock);
	s = span_at(&u->pools, space, va);
	if (s != NULL && s->start != va && !s->is_pool) {
		pl = (struct place *)s;
		*upper = *pl;
		upper->span.start = va;
		upper->first += (va - s->start) >> PAGE_SHIFT;
		s->end = va;
		place_insert(u, upper);
		upper = NULL;
	}
	pthread_rwlock_unlock(&u->pools.lock);
	if (upper != NULL)
		record_free(u, upper);
	return 0;
}

static int
places_cut(struct uffd_pmap *u, unsigned space, uintptr_t va, size_t len)
{
	const int r = place_split(u, space, va);

	return r < 0 ? r : place_split(u, space, va + len);
}

int
places_split(struct uffd_pmap *u, unsigned shard, uintptr_t va, size_t len)
{
	if (atomic_load(&u->pools.npools) == 0)
		return 0;
	return places_cut(u, shard < PMAP_POOL ? OURS : shard, va, len);
}

/*
 * unmap, of a range in which there may be places.  => nobody is woken.
 *
 * Without the page table, which is most of the work, munmap() under the lock is short.
 */
int
places_unmap(struct uffd_pmap *u, uintptr_t va, size_t len, unsigned shard)
{
	const unsigned space = shard < PMAP_POOL ? OURS : shard;
	struct span *s, *gone = NULL;
	int r = 0;

	if (space == OURS && atomic_load(&u->pools.npools) == 0)
		return munmap((void *)va, len) < 0 ? -errno : 0;
	r = places_cut(u, space, va, len);
	if (r < 0)
		return r;
	if (space == OURS) {
		bool any, all;

		pthread_rwlock_rdlock(&u->pools.lock);
		s = span_above(&u->pools, OURS, va);
		any = s != NULL && s->start < va + len;
		all = any && s->start == va && s->end == va + len;
		pthread_rwlock_unlock(&u->pools.lock);
		if (!any)
			return munmap((void *)va, len) < 0 ? -errno : 0;
		if (all)
			madvise((void *)va, len, MADV_DONTNEED);
	}
	pthread_rwlock_wrlock(&u->pools.lock);
	if (space == OURS && munmap((void *)va, len) < 0)
		r = -errno;
	while (r == 0 && (s = span_above(&u->pools, space, va)) != NULL && s->start < va + len) {
		assert(!s->is_pool);
		place_remove(u, (struct place *)s);
		s->child[0] = gone;
		gone = s;
	}
	pthread_rwlock_unlock(&u->pools.lock);
	while ((s = gone) != NULL) {
		gone = s->child[0];
		record_free(u, s);
	}
	return r;
}

/* A marker, of poison say, would count as there to pages_there(). */
static bool
in_page_table(const struct uffd_pmap *u, uintptr_t va)
{
	const off_t at = (off_t)(va >> PAGE_SHIFT) * (off_t)sizeof(uint64_t);
	uint64_t entry = 0;

	return pread(u->pagemap_fd, &entry, sizeof entry, at) == (ssize_t)sizeof entry &&
	       (entry >> 63) != 0;
}

unsigned
pool_referenced(struct pmap *pm, uintptr_t page)
{
	struct uffd_pmap *u = to_uffd(pm);
	struct pool *pool;
	size_t n = 1, i;
	unsigned count = 0;

	pthread_rwlock_rdlock(&u->pools.lock);
	pool = pool_run(u, page, &n, &i);
	for (struct place *pl = pool != NULL ? pool->places : NULL; pl != NULL; pl = pl->next) {
		struct part part;

		if (pl->span.space != OURS || !part_of(u, pl, i, 1, &part) ||
		    !in_page_table(u, part.va))
			continue;
		count++;
		uffd_drop_pages(part.va, 1);
	}
	pthread_rwlock_unlock(&u->pools.lock);
	return count;
}

/*
 * Only what is in the file: a page that is not would be a fault, and this thread would wait for it.
 * The lock is not held meanwhile, in case one goes in between; the caller keeps the place.
 */
void
pool_populate(struct pmap *pm, unsigned shard, uintptr_t va, size_t len, bool write)
{
	struct uffd_pmap *u = to_uffd(pm);
	off_t at, hole, end;
	uintptr_t base;
	struct span *s;
	int fd = -1;

	if (shard >= PMAP_POOL)
		return;
	pthread_rwlock_rdlock(&u->pools.lock);
	s = span_at(&u->pools, OURS, va);
	if (s != NULL && !s->is_pool) {
		const struct place *pl = (struct place *)s;

		fd = pl->pool->file;
		at = offset_of(pl->pool, pl->first) + (off_t)(va - s->start);
		end = at + (off_t)MIN(len, s->end - va);
		base = va - (uintptr_t)at;
	}
	pthread_rwlock_unlock(&u->pools.lock);
	if (fd < 0)
		return;
	for (; at < end; at = hole) {
		at = lseek(fd, at, SEEK_DATA);
		if (at < 0 || at >= end)
			break;
		hole = lseek(fd, at, SEEK_HOLE);
		if (hole <= at)
			break;
		hole = MIN(hole, end);
		madvise((void *)(base + (uintptr_t)at), (size_t)(hole - at),
			write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
	}
}

/* What its process has asked for; false: it is no userfaultfd.  Without /proc nobody can tell: none. */
static bool
uffd_features(int fd, unsigned *features)
{
	static const char is[] = "anon_inode:[userfaultfd]";
	char proc[sizeof "/proc/self/fdinfo/" + 11], text[512];
	const char *api;
	ssize_t n;
	int info;

	*features = 0;
	snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
	n = readlink(proc, text, sizeof text);
	if (n < 0)
		return errno == ENOENT;
	if (n != (ssize_t)sizeof is - 1 || memcmp(text, is, sizeof is - 1) != 0)
		return false;
	snprintf(proc, sizeof proc, "/proc/self/fdinfo/%d", fd);
	info = open(proc, O_RDONLY | O_CLOEXEC);
	n = info >= 0 ? read(info, text, sizeof text - 1) : -1;
	if (info >= 0)
		close(info);
	if (n < 0)
		return false;
	text[n] = '\0';
	/* "API:\taa:features of it:all features" */
	api = strstr(text, "API:");
	return api != NULL && sscanf(api, "API: %*x:%x", features) == 1;
}

/* --- spaces --- */

int
space_create(struct pmap *pm, unsigned near, unsigned *shard)
{
	struct uffd_pmap *u = to_uffd(pm);
	struct space *sp = record_new(u);
	unsigned i = 0;

	assert(near < pm->nshards);
	if (sp == NULL)
		return -ENOMEM;
	*sp = (struct space){ .near = near, .fd = -1, .pidfd = -1 };
	pthread_rwlock_wrlock(&u->pools.lock);
	while (i < SPACES_MAX && u->pools.space[i] != NULL)
		i++;
	if (i < SPACES_MAX)
		u->pools.space[i] = sp;
	pthread_rwlock_unlock(&u->pools.lock);
	if (i == SPACES_MAX) {
		record_free(u, sp);
		return -ENOMEM;
	}
	*shard = PMAP_POOL + 1 + i;
	return 0;
}

void
space_destroy(struct pmap *pm, unsigned shard)
{
	struct uffd_pmap *u = to_uffd(pm);
	struct space *sp;

	space_detach(pm, shard);
	pthread_rwlock_wrlock(&u->pools.lock);
	sp = space_of(u, shard);
	assert(span_above(&u->pools, shard, 0) == NULL);
	u->pools.space[shard - PMAP_POOL - 1] = NULL;
	pthread_rwlock_unlock(&u->pools.lock);
	record_free(u, sp);
}

/*
 * What comes from another process may be anything.  One that tells of events will not do either: as long as one of them waits to be read the
 * kernel refuses to protect, whoever protects tries again, and that may be who was to read it.  (Of a guest, who protects gives up before long.)
 */
static bool
can_serve(int fd, unsigned refused)
{
	unsigned features;

	return uffd_features(fd, &features) && (features & refused) == 0;
}

/* Its faults are read from here on.  => the lock is held for writing */
static int
listen_to(struct uffd_pmap *u, const struct space *sp, int fd, unsigned shard)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.u32 = shard };

	return epoll_ctl(u->pools.epoll[sp->near], EPOLL_CTL_ADD, fd, &ev) < 0 ? -errno : 0;
}

/* `removals` is the space's from here on, as fd is.  `quiet`: listen_to() is the caller's. */
static int
attach(struct uffd_pmap *u, unsigned shard, int fd, pid_t pid, unsigned refused,
       struct removals *removals, bool quiet)
{
	const int flags = fcntl(fd, F_GETFL);
	struct space *sp;
	int pidfd = -1, r = 0;

	/* One that blocks is never readable to poll(). */
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		r = -errno;
	if (r == 0 && !can_serve(fd, refused))
		r = -EPERM;
	if (r == 0 && !has(u, UP_MASK_POISON) && (pidfd = (int)syscall(SYS_pidfd_open, pid, 0)) < 0)
		r = -errno; /* it could not be told of a lost page */
	pthread_rwlock_wrlock(&u->pools.lock);
	sp = space_of(u, shard);
	assert(sp != NULL && sp->fd < 0);
	if (r == 0 && !quiet)
		r = listen_to(u, sp, fd, shard);
	if (r == 0) {
		sp->fd = fd;
		sp->pidfd = pidfd;
		sp->removals = removals;
		atomic_fetch_add(&u->pools.nattached, 1);
	}
	pthread_rwlock_unlock(&u->pools.lock);
	if (r < 0) {
		removals_close(removals);
		close(fd);
		if (pidfd >= 0)
			close(pidfd);
	}
	return r;
}

int
space_attach(struct pmap *pm, unsigned shard, int fd, pid_t pid)
{
	return attach(to_uffd(pm), shard, fd, pid, UFFD_FEATURE_EVENT_REMOVE | EVENTS_REFUSED, NULL,
		      false);
}

void
space_detach(struct pmap *pm, unsigned shard)
{
	struct uffd_pmap *u = to_uffd(pm);
	struct removals *removals;
	struct space *sp;
	int fd, pidfd;

	guest_leave(u, shard, false);
	pthread_rwlock_wrlock(&u->pools.lock);
	sp = space_of(u, shard);
	assert(sp != NULL);
	fd = sp->fd;
	pidfd = sp->pidfd;
	removals = sp->removals;
	sp->fd = sp->pidfd = -1;
	sp->removals = NULL;
	if (fd >= 0) {
		/* Closing would not do it, if that process has it too. */
		epoll_ctl(u->pools.epoll[sp->near], EPOLL_CTL_DEL, fd, NULL);
		atomic_fetch_sub(&u->pools.nattached, 1);
	}
	pthread_rwlock_unlock(&u->pools.lock);
	removals_close(removals);
	if (fd >= 0)
		close(fd);
	if (pidfd >= 0)
		close(pidfd);
}

void
space_allow(struct pmap *pm, unsigned shard, uintptr_t va)
{
	struct uffd_pmap *u = to_uffd(pm);
	const struct space *sp;

	pthread_rwlock_rdlock(&u->pools.lock);
	sp = space_of(u, shard);
	if (sp != NULL && sp->fd >= 0)
		(void)uffd_write_protect(sp->fd, va, 1, 0, tries_of(sp)); /* which wakes */
	pthread_rwlock_unlock(&u->pools.lock);
}

/* => the lock is held; NULL is fine */
static void
wake_locked(const struct space *sp, uintptr_t va, size_t len)
{
	struct uffdio_range range = { .start = va, .len = len };

	if (sp != NULL && sp->fd >= 0)
		ioctl(sp->fd, UFFDIO_WAKE, &range);
}

void
space_wake(struct uffd_pmap *u, unsigned shard, uintptr_t va, size_t n)
{
	pthread_rwlock_rdlock(&u->pools.lock);
	wake_locked(space_of(u, shard), va, n << PAGE_SHIFT);
	pthread_rwlock_unlock(&u->pools.lock);
}

/*
 * It is ready, and will be for ever, with an error: it has been made to block, or is not initialised.  What a process does to its own is
 * its own affair, but no reason for us never to sleep.
 */
static void
put_right(int epoll, int fd)
{
	const int flags = fcntl(fd, F_GETFL);
	struct pollfd pf = { .fd = fd, .events = POLLIN };

	if (flags >= 0 && !(flags & O_NONBLOCK))
		fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	if (poll(&pf, 1, 0) > 0 && (pf.revents & (POLLERR | POLLHUP)))
		epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
}

#define TURN 16 /* spaces */

/* A turn of those that are ready, up to `max` messages; *left: not everybody has had his turn, or not all that he has been read. */
static unsigned
space_turn(struct uffd_pmap *u, unsigned near, struct pmap_fault *buf, unsigned max, bool *left)
{
	const unsigned want = MIN(max, (unsigned)TURN);
	unsigned telling[TURN], ntelling = 0, n = 0;
	struct epoll_event ev[TURN];
	int got;

	pthread_rwlock_rdlock(&u->pools.lock);
	got = epoll_wait(u->pools.epoll[near], ev, (int)want, 0);
	*left = got == (int)want;
	for (int i = 0; i < got && n < max; i++) {
		const unsigned most = MAX(1, (max - n) / (unsigned)(got - i));
		const struct space *sp = space_of(u, ev[i].data.u32);
		unsigned k;

		if (sp == NULL || sp->fd < 0)
			continue;
		if (ev[i].events & (EPOLLERR | EPOLLHUP))
			put_right(u->pools.epoll[near], sp->fd);
		if (sp->removals != NULL) {
			telling[ntelling++] = ev[i].data.u32;
			continue;
		}
		k = uffd_read_faults(sp->fd, ev[i].data.u32, buf + n, most, NULL);
		*left |= k == most;
		n += k;
	}
	pthread_rwlock_unlock(&u->pools.lock);
	for (unsigned i = 0; i < ntelling && n < max; i++) {
		const unsigned most = MAX(1, (max - n) / (ntelling - i));
		const unsigned k = guest_faults(u, telling[i], buf + n, most);

		*left |= k == most;
		n += k;
	}
	return n;
}

/*
 * The messages of spaces near a shard.  epoll hands out those that are ready in turn, and each gives a few at a time.  An error is always "ready" and gives
 * nothing; so nothing may come of a turn, but not of so many that everybody has had one.
 *
 * => fewer than max: there are no more.
 */
unsigned
space_faults(struct uffd_pmap *u, unsigned near, struct pmap_fault *buf, unsigned max)
{
	const unsigned turns = atomic_load(&u->pools.nattached) / TURN + 2;
	unsigned n = 0, idle = 0;
	bool left = true;

	while (left && n < max && idle < turns) {
		const unsigned k = space_turn(u, near, buf + n, max - n, &left);

		idle = k > 0 ? 0 : idle + 1;
		n += k;
	}
	return n;
}

/* --- guests: programs whose memory was a file of their own before they came --- */

/*
 * Messages of a guest that tells of removals.  Whoever removes goes on as soon as that has been read: nobody may be half-way into or out of
 * one of its pools then.
 */
static unsigned
guest_faults(struct uffd_pmap *u, unsigned shard, struct pmap_fault *buf, unsigned max)
{
	const struct space *sp;
	unsigned n = 0;

	pthread_rwlock_wrlock(&u->pools.lock);
	sp = space_of(u, shard);
	if (sp != NULL && sp->fd >= 0 && sp->removals != NULL)
		n = uffd_read_faults(sp->fd, shard, buf, max, sp->removals);
	pthread_rwlock_unlock(&u->pools.lock);
	return n;
}

int
pmap_uffd_adopt(struct pmap *pm, unsigned shard, int fd, uint64_t offset, size_t npages,
		uintptr_t *pool)
{
	const struct backing file = { .fd = fcntl(fd, F_DUPFD_CLOEXEC, 0),
				      .offset = (off_t)offset };

	return file.fd < 0 ? -errno : pool_make(to_uffd(pm), file, npages, true, shard, pool);
}

int
pmap_uffd_guest(struct pmap *pm, unsigned shard, int fd, pid_t pid, int told, int removed)
{
	struct removals *removals = NULL;
	unsigned features;
	int r = 0;

	if (!uffd_features(fd, &features))
		r = -EPERM;
	else if (features & UFFD_FEATURE_WP_ASYNC)
		r = -EOPNOTSUPP;
	else if (features & UFFD_FEATURE_EVENT_REMOVE)
		r = removals_open(removed, told, &removals);
	if (r < 0) {
		close(fd);
		return r;
	}
	return attach(to_uffd(pm), shard, fd, pid, EVENTS_REFUSED, removals, true);
}

int
pmap_uffd_guest_serve(struct pmap *pm, unsigned shard)
{
	struct uffd_pmap *u = to_uffd(pm);
	const struct space *sp;
	int r;

	pthread_rwlock_wrlock(&u->pools.lock);
	sp = space_of(u, shard);
	r = listen_to(u, sp, sp->fd, shard);
	pthread_rwlock_unlock(&u->pools.lock);
	return r;
}

int
pmap_uffd_guest_fd(struct pmap *pm, unsigned shard)
{
	struct uffd_pmap *u = to_uffd(pm);
	const struct space *sp;
	int fd = -1;

	pthread_rwlock_rdlock(&u->pools.lock);
	sp = space_of(u, shard);
	if (sp != NULL && sp->fd >= 0)
		fd = fcntl(sp->fd, F_DUPFD_CLOEXEC, 0);
	pthread_rwlock_unlock(&u->pools.lock);
	return fd;
}

bool
pmap_uffd_adopted(struct pmap *pm, dev_t dev, ino_t ino, uint64_t offset, uint64_t len)
{
	struct uffd_pmap *u = to_uffd(pm);
	bool found = false;
	struct span *s;

	pthread_rwlock_rdlock(&u->pools.lock);
	for (uintptr_t va = 0; !found && (s = span_above(&u->pools, OURS, va)) != NULL;
	     va = s->end) {
		const struct pool *pool = (struct pool *)s;
		struct stat st;

		found = s->is_pool && pool->guest != 0 && fstat(pool->file, &st) == 0 &&
			st.st_dev == dev && st.st_ino == ino &&
			(uint64_t)pool->base < offset + len &&
			offset < (uint64_t)pool->base + (s->end - s->start);
	}
	pthread_rwlock_unlock(&u->pools.lock);
	return found;
}

int
pmap_uffd_guard(struct pmap *pm, unsigned shard, uintptr_t va, size_t len)
{
	struct uffdio_register reg = {
		.range = { .start = va, .len = len },
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
	};
	struct uffd_pmap *u = to_uffd(pm);
	const struct space *sp;
	int r = -ESRCH;

	pthread_rwlock_rdlock(&u->pools.lock);
	sp = space_of(u, shard);
	/* Again, if it was registered without: who has the descriptor may do that, in whatever process it is. */
	if (sp != NULL && sp->fd >= 0)
		r = ioctl(sp->fd, UFFDIO_REGISTER, &reg) < 0 ? -errno : 0;
	pthread_rwlock_unlock(&u->pools.lock);
	return r;
}

int
pmap_uffd_removal(struct pmap *pm, unsigned shard, uintptr_t *va, size_t *len, bool *over)
{
	struct uffd_pmap *u = to_uffd(pm);
	const struct space *sp;
	struct removal next = { 0 };
	int r = 0;

	pthread_rwlock_rdlock(&u->pools.lock);
	sp = space_of(u, shard);
	if (sp != NULL && sp->removals != NULL)
		r = removals_next(sp->removals, now_ns(), &next, over);
	pthread_rwlock_unlock(&u->pools.lock);
	if (r > 0) {
		*va = next.start;
		*len = next.end - next.start;
	}
	return r;
}

void
pmap_uffd_removal_done(struct pmap *pm, unsigned shard, bool over)
{
	struct uffd_pmap *u = to_uffd(pm);
	const struct space *sp;

	pthread_rwlock_wrlock(&u->pools.lock);
	sp = space_of(u, shard);
	if (sp != NULL && sp->removals != NULL)
		removals_done(sp->removals, over);
	pthread_rwlock_unlock(&u->pools.lock);
}

size_t
pmap_uffd_data(struct pmap *pm, uintptr_t *page, size_t n)
{
	struct uffd_pmap *u = to_uffd(pm);
	struct pool *pool;
	size_t first, there = 0;
	off_t data, hole;

	pthread_rwlock_rdlock(&u->pools.lock);
	pool = pool_run(u, *page, &n, &first);
	if (pool != NULL) {
		const off_t end = offset_of(pool, first + n);

		data = lseek(pool->file, offset_of(pool, first), SEEK_DATA);
		hole = data >= 0 && data < end ? lseek(pool->file, data, SEEK_HOLE) : -1;
		if (hole > data) {
			*page += (uintptr_t)(data - offset_of(pool, first));
			there = (size_t)(MIN(hole, end) - data) >> PAGE_SHIFT;
		}
	}
	pthread_rwlock_unlock(&u->pools.lock);
	return there;
}

/*
 * What is missing at one place is SIGBUS, page by page where it has to be.
 *
 * => 0; -ESRCH: nobody is there any more; other errors: it can not be done.
 */
static int
poison_run(struct uffd_pmap *u, const struct place *pl, size_t first, size_t n)
{
	unsigned again = 0;
	struct part part;

	while (n > 0 && part_of(u, pl, first, n, &part)) {
		struct uffdio_poison p = { .range = { .start = part.va,
						      .len = part.n << PAGE_SHIFT } };
		struct pmap_fault msg[16];
		size_t done = 0;

		if (ioctl(part.fd, UFFDIO_POISON, &p) == 0)
			done = part.n;
		else if (p.updated > 0)
			done = (size_t)p.updated >> PAGE_SHIFT;
		else if (errno == EEXIST)
			done = 1;
		else if (errno != EAGAIN || ++again == FOREIGN_TRIES)
			return -errno;
		/* It waits for a message to be read, and whoever else reads them waits for us.  All of them fault anew at the end. */
		else
			uffd_read_faults(part.fd, pl->shard, msg, ARRAY_SIZE(msg), NULL);
		n -= MIN(n, part.first + done - first);
		first = part.first + done;
	}
	return 0;
}

/* The holes of a place.  As poison_run(). */
static int
poison_holes(struct uffd_pmap *u, const struct place *pl)
{
	const struct pool *pool = pl->pool;
	const off_t end =
		offset_of(pool, pl->first + ((pl->span.end - pl->span.start) >> PAGE_SHIFT));
	int r = 0;

	for (off_t hole, data = offset_of(pool, pl->first); r == 0 && data < end;) {
		hole = lseek(pool->file, data, SEEK_HOLE);
		if (hole < 0 || hole >= end)
			break;
		data = lseek(pool->file, hole, SEEK_DATA);
		if (data < 0 || data > end)
			data = end;
		r = poison_run(u, pl, (size_t)(hole - pool->base) >> PAGE_SHIFT,
			       (size_t)(data - hole) >> PAGE_SHIFT);
	}
	return r;
}

/* Nobody in the process waits for a message to be read any more, and none will be sent. */
static void
let_go(const struct space *sp, unsigned shard)
{
	struct pmap_fault msg[16];

	for (unsigned tries = 0; sp->fd >= 0 && tries < FOREIGN_TRIES; tries++) {
		struct uffdio_poison none = { .mode = 0 };

		uffd_read_faults(sp->fd, shard, msg, ARRAY_SIZE(msg), NULL);
		/* That comes first, before what is wrong with the range. */
		if (ioctl(sp->fd, UFFDIO_POISON, &none) == 0 || errno != EAGAIN)
			return;
		sched_yield();
	}
}

/*
 * A guest goes on without us, or is gone: what is in its file stays, what is not is SIGBUS, never zeros.  From the moment on at which its pools are
 * `left` nothing gets in or out.
 */
static void
guest_leave(struct uffd_pmap *u, unsigned shard, bool untouched)
{
	struct span *s;
	bool any = false;

	pthread_rwlock_wrlock(&u->pools.lock);
	for (uintptr_t va = 0; (s = span_above(&u->pools, shard, va)) != NULL; va = s->end) {
		struct pool *pool = ((struct place *)s)->pool;

		any |= pool->guest == shard && !pool->left;
		pool->left |= pool->guest == shard;
	}
	pthread_rwlock_unlock(&u->pools.lock);
	if (!any || untouched)
		return;
	pthread_rwlock_rdlock(&u->pools.lock);
	for (uintptr_t va = 0; (s = span_above(&u->pools, shard, va)) != NULL; va = s->end) {
		const struct place *pl = (struct place *)s;
		struct uffdio_range range = { .start = s->start, .len = s->end - s->start };
		const int fd = place_fd(u, pl), r = fd >= 0 ? poison_holes(u, pl) : -ESRCH;

		if (r == -ESRCH)
			break;
		/* If that can not be, who touches it waits for somebody else: better than zeros. */
		if (r == 0)
			ioctl(fd, UFFDIO_UNREGISTER, &range);
	}
	let_go(space_of(u, shard), shard);
	/* Who faulted meanwhile may be left behind otherwise. */
	for (uintptr_t va = 0; (s = span_above(&u->pools, shard, va)) != NULL; va = s->end)
		wake_locked(space_of(u, shard), s->start, s->end - s->start);
	pthread_rwlock_unlock(&u->pools.lock);
}

void
pmap_uffd_guest_leave(struct pmap *pm, unsigned shard, bool untouched)
{
	guest_leave(to_uffd(pm), shard, untouched);
}

/* --- set-up --- */

/* Files in memory with huge pages: the kernel could make one of what we count page by page. */
static void
warn_of_huge_pages(const struct logger *log)
{
	const int fd = open(SHMEM_HUGE, O_RDONLY | O_CLOEXEC);
	char line[128];
	ssize_t got;

	if (fd < 0)
		return;
	got = read(fd, line, sizeof line - 1);
	close(fd);
	if (got <= 0)
		return;
	line[got] = '\0';
	if (strstr(line, "[always]") || strstr(line, "[within_size]") || strstr(line, "[force]"))
		log_line(
			log, UP_LOG_WARNING,
			"files in memory may have huge pages here, so shared memory may take more than it "
			"should: write \"advise\" or \"never\" to " SHMEM_HUGE);
}

int
pools_init(struct uffd_pmap *u, const struct logger *log)
{
	struct pools *p = &u->pools;
	pthread_rwlockattr_t attr;

	warn_of_huge_pages(log);
	u->pmap.place_size =
		MAX(MAX(sizeof(struct pool), sizeof(struct place)), sizeof(struct space));
	p->epoll = malloc(u->pmap.nshards * sizeof p->epoll[0]);
	if (p->epoll == NULL)
		return -ENOMEM;
	/* Readers come all the time; who maps or forks shall not wait for a gap between them. */
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&p->lock, &attr);
	pthread_rwlockattr_destroy(&attr);
	pthread_mutex_init(&p->poison, NULL);
	p->made = true;
	for (unsigned i = 0; i < u->pmap.nshards; i++)
		p->epoll[i] = -1;
	p->file = memfd_create(POOL_NAME, MFD_CLOEXEC);
	if (p->file < 0)
		return -errno;
	for (unsigned i = 0; i < u->pmap.nshards; i++)
		if ((p->epoll[i] = epoll_create1(EPOLL_CLOEXEC)) < 0)
			return -errno;
	return 0;
}

void
pools_fini(struct uffd_pmap *u)
{
	struct pools *p = &u->pools;

	if (!p->made)
		return;
	assert(p->root == NULL && atomic_load(&p->nattached) == 0);
	for (unsigned i = 0; i < u->pmap.nshards; i++)
		if (p->epoll[i] >= 0)
			close(p->epoll[i]);
	free(p->epoll);
	if (p->file >= 0)
		close(p->file);
	pthread_mutex_destroy(&p->poison);
	pthread_rwlock_destroy(&p->lock);
}

int
pmap_uffd_more_fd(struct pmap *pm, unsigned shard)
{
	assert(shard < pm->nshards);
	return has(to_uffd(pm), UP_MASK_SHARED) ? to_uffd(pm)->pools.epoll[shard] : -1;
}

int
pmap_uffd_pool_fd(struct pmap *pm, uintptr_t page, uint64_t *offset)
{
	struct uffd_pmap *u = to_uffd(pm);
	struct pool *pool;
	int fd = -ENOENT;

	if (atomic_load(&u->pools.npools) == 0)
		return fd;
	pthread_rwlock_rdlock(&u->pools.lock);
	pool = pool_at(u, page);
	if (pool != NULL) {
		fd = pool->file;
		*offset = (uint64_t)pool->base + (page - pool->span.start);
	}
	pthread_rwlock_unlock(&u->pools.lock);
	return fd;
}

int
pmap_uffd_child_open(const struct pmap *pm)
{
	/* It is first. */
	const struct uffd_pmap *u = (const struct uffd_pmap *)pm;

	return uffd_open(&u->door, pmap_uffd_client_features(pm));
}

uint64_t
pmap_uffd_client_features(const struct pmap *pm)
{
	return ((const struct uffd_pmap *)pm)->api & ~(uint64_t)UFFD_FEATURE_MOVE;
}
