/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * sim.c: the simulated kernel's page tables; sim.h says what it is for.
 *
 * Regions are a sorted array, split at edges as the kernel splits VMAs.  A page has a record,
 * with its content, only while it is present or poisoned, in a hash by page number: a sparse
 * region of 1 TiB is one array element.
 *
 *	                zero, enter                  poison
 *	    PRESENT <---------------- (no record) ------------> POISONED
 *	       |       remove, discard     ^         discard        |
 *	       +---------------------------+------------------------+
 *
 * A pool is a region of the shard PMAP_POOL: the alias.  Its pages are records at their addresses there, once
 * however many places map them.  A place is an entry in a list, and in this process a region
 * too; what a page table has of its own is a record at the address of the place: poison, or that the
 * page was seen there.  Records of spaces have the shard above the address, since processes have the same ones.
 *
 * The staging area is real memory, since callers and the disk use frames by pointer.  A hole is
 * full of HOLE_BYTE: a stale read sees garbage, a stale write is found when the hole becomes a
 * frame again, and with AddressSanitizer both are caught in the act.
 *
 * Rejected: real mappings with PROT_NONE and a SIGSEGV handler.  They would let tests use plain
 * pointers, but a fault would then be a signal in the middle of an expression, two threads
 * could not be asleep at once in a single-threaded test, and a run could not be repeated.
 *
 * Memory comes from malloc: this never runs beside a real fault.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pmap/sim.h"
#include "vm/zone.h"

#if defined(__SANITIZE_ADDRESS__)
#define SIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIM_ASAN 1
#endif
#endif
#ifdef SIM_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

#define FIRST_VA ((uintptr_t)0x100000000000)
#define LAST_VA ((uintptr_t)0x7ffffffff000)
#define SPACE_SHIFT 48	/* of a key: the shard, if it is a space's; addresses end below */
#define HOLE_BYTE 0xdb	/* what was there is gone */
#define FRESH_BYTE 0xa5 /* frame_new: content undefined */

#define require(cond, ...)                    \
	do {                                  \
		if (!(cond))                  \
			sim_die(__VA_ARGS__); \
	} while (0)

struct region {
	uintptr_t start, end;
	int prot;
	unsigned shard;
	bool is_place; /* its pages are a pool's */
};

/* A part of a pool, mapped. */
struct place {
	unsigned shard;
	uintptr_t start, end;
	uintptr_t page; /* in the alias, of start */
	int prot;	/* of a space; else the region's counts */
	void *record;	/* from pm->places */
};

struct pool {
	uintptr_t start;
	void *record;
};

struct space {
	bool attached;
	unsigned near;
	void *record; /* NULL: there is no such space */
};

struct sim_page {
	struct sim_page *next; /* hash chain */
	uintptr_t va;
	bool poisoned;
	bool seen; /* only that: the content is elsewhere */
	bool late; /* installed by an injected -EEXIST */
	bool wp;   /* in the middle of a copying remove, or guarded */
	unsigned pins;
	unsigned char data[PAGE_SIZE];
};

struct message {
	struct pmap_fault fault;
	unsigned thread;
	bool ghost;	/* second copy: stays when the thread is woken */
	unsigned delay; /* looks until it is visible */
};

struct shard {
	struct message *msg; /* oldest first */
	size_t n, room;
};

struct thread {
	bool asleep;
	uintptr_t va;
	unsigned shard;
};

struct sim_pmap {
	struct pmap pmap;
	struct sim_faults *f;
	bool copies; /* no MOVE */

	struct region *region; /* by address */
	size_t nregion, region_room;
	uintptr_t next_va; /* nothing was ever mapped from here up without being asked for */
	uintptr_t hole_va; /* last range unmapped, a good place for the next */
	size_t hole_len;

	struct place *place; /* in no order */
	size_t nplace, place_room;
	struct pool *pool;
	size_t npool, pool_room;
	struct space *space; /* shard PMAP_POOL + 1 is the first */
	size_t nspace, space_room;

	struct sim_page **bucket; /* 1 << bits chains */
	unsigned bits;
	size_t npages; /* records */

	bool *is_frame; /* per staging address */
	unsigned *io;	/* requests in flight on it */
	bool *had_io;	/* since it became a frame; such a page is copied, not moved */
	size_t resident, resident_max; /* present pages and frames */

	struct shard *shard;
	unsigned dup, reorder, delay;
	struct thread thread[SIM_THREADS];

	void (*on_copy)(void *ctx, uintptr_t va, size_t n);
	void *on_copy_ctx;
};

/* Failures. */

/* What each operation may return, as pmap.h and swap.h say. */
static const int may_fail[SIM_NOPS][SIM_NERRS] = {
	[SIM_MAP] = { -ENOMEM },
	[SIM_UNMAP] = { -ENOMEM },
	[SIM_PROTECT] = { -ENOMEM },
	[SIM_ZERO] = { -EAGAIN, -ENOMEM, -EEXIST },
	[SIM_ENTER] = { -EAGAIN, -ENOMEM, -EEXIST },
	[SIM_REMOVE] = { -EAGAIN, -ENOMEM, -EBUSY },
	[SIM_DISCARD] = { -EAGAIN },
	[SIM_POISON] = { -EAGAIN, -ENOMEM, -ENOTSUP },
	[SIM_FRAME_NEW] = { -EAGAIN, -ENOMEM },
	[SIM_READ] = { -EIO },
	[SIM_WRITE] = { -EIO, -ENOSPC },
};

void
sim_die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fputs("sim: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	fflush(stderr);
	va_end(ap);
	abort();
}

void
sim_faults_init(struct sim_faults *f, uint64_t seed)
{
	*f = (struct sim_faults){ .rng = seed };
}

/* splitmix64 (Steele, Lea, Flood 2014): any seed is a good one, 0 too. */
uint64_t
sim_below(struct sim_faults *f, uint64_t n)
{
	uint64_t z = f->rng += UINT64_C(0x9e3779b97f4a7c15);

	require(n > 0, "sim_below(0)");
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return (z ^ (z >> 31)) % n;
}

bool
sim_chance(struct sim_faults *f, unsigned permille)
{
	return permille > 0 && sim_below(f, 1000) < permille;
}

/* Index of `err` among the errors of `op`, or -1. */
static int
err_index(enum sim_op op, int err)
{
	for (int i = 0; i < SIM_NERRS && may_fail[op][i] != 0; i++)
		if (may_fail[op][i] == err)
			return i;
	return -1;
}

void
sim_fail_rate(struct sim_faults *f, enum sim_op op, int err, unsigned permille)
{
	const int i = err_index(op, err);

	require(i >= 0, "operation %d never fails with %d", (int)op, err);
	f->rate[op][i] = permille;
}

void
sim_fail_nth(struct sim_faults *f, unsigned nth, unsigned ops, int err)
{
	f->countdown = nth;
	f->nth_ops = ops == 0 ? ~0u : ops;
	f->nth_err = err;
	f->fired = false;
}

bool
sim_fail_disarm(struct sim_faults *f)
{
	const bool fired = f->fired;

	f->countdown = 0;
	f->fired = false;
	return fired;
}

static int
inject_nth(struct sim_faults *f, enum sim_op op)
{
	unsigned n = 0;

	if (f->countdown == 0 || !(f->nth_ops & SIM_BIT(op)))
		return 0;
	if (f->nth_err != 0 && err_index(op, f->nth_err) < 0)
		return 0;
	if (--f->countdown > 0)
		return 0;
	f->fired = true;
	if (f->nth_err != 0)
		return f->nth_err;
	while (n < SIM_NERRS && may_fail[op][n] != 0)
		n++;
	return may_fail[op][sim_below(f, n)];
}

int
sim_inject(struct sim_faults *f, enum sim_op op)
{
	int err = inject_nth(f, op);

	for (int i = 0; i < SIM_NERRS && err == 0; i++)
		if (sim_chance(f, f->rate[op][i]))
			err = may_fail[op][i];
	if (err != 0)
		f->injected[op]++;
	return err;
}

/* Memory that can not fail: a test machine without any is not what we test. */

static void *
must_alloc(void *p)
{
	require(p != NULL, "the test itself is out of memory");
	return p;
}

/* Room for one more element; *room counts elements. */
static void *
must_grow(void *array, size_t n, size_t *room, size_t item)
{
	if (n < *room)
		return array;
	*room = *room == 0 ? 16 : 2 * *room;
	return must_alloc(realloc(array, *room * item));
}

/* Page records. */

static struct sim_pmap *
to_sim(struct pmap *pm)
{
	return container_of(pm, struct sim_pmap, pmap);
}

static void
count_resident(struct sim_pmap *s, size_t more)
{
	s->resident += more;
	s->resident_max = MAX(s->resident_max, s->resident);
}

static struct sim_page **
page_chain(struct sim_pmap *s, uintptr_t va)
{
	const uint64_t h = (uint64_t)(va >> PAGE_SHIFT) * UINT64_C(0x9e3779b97f4a7c15);

	return &s->bucket[h >> (64 - s->bits)];
}

static struct sim_page *
page_find(struct sim_pmap *s, uintptr_t va)
{
	struct sim_page *p = *page_chain(s, va);

	while (p != NULL && p->va != va)
		p = p->next;
	return p;
}

static void
page_rehash(struct sim_pmap *s)
{
	struct sim_page **old = s->bucket;
	const size_t n = (size_t)1 << s->bits;

	s->bits++;
	s->bucket = must_alloc(calloc(2 * n, sizeof(*s->bucket)));
	for (size_t i = 0; i < n; i++) {
		for (struct sim_page *p = old[i], *next; p != NULL; p = next) {
			struct sim_page **chain = page_chain(s, p->va);

			next = p->next;
			p->next = *chain;
			*chain = p;
		}
	}
	free(old);
}

/* A record where there is none; content undefined. */
static struct sim_page *
page_new(struct sim_pmap *s, uintptr_t va, bool poisoned)
{
	struct sim_page **chain, *p = must_alloc(malloc(sizeof(*p)));

	if (s->npages >= (size_t)2 << s->bits)
		page_rehash(s);
	chain = page_chain(s, va);
	p->next = *chain;
	p->va = va;
	p->poisoned = poisoned;
	p->seen = p->late = p->wp = false;
	p->pins = 0;
	*chain = p;
	s->npages++;
	if (!poisoned)
		count_resident(s, 1);
	return p;
}

static void
page_unlink(struct sim_pmap *s, struct sim_page **link)
{
	struct sim_page *p = *link;

	*link = p->next;
	s->npages--;
	if (!p->poisoned && !p->seen)
		s->resident--;
	free(p);
}

static void
page_drop(struct sim_pmap *s, uintptr_t va)
{
	struct sim_page **link = page_chain(s, va);

	while (*link != NULL && (*link)->va != va)
		link = &(*link)->next;
	if (*link != NULL)
		page_unlink(s, link);
}

/* Drop n pages from va; walks whichever is shorter, the range or the table. */
static void
page_drop_range(struct sim_pmap *s, uintptr_t va, size_t n)
{
	if (n <= (size_t)1 << s->bits) {
		for (size_t i = 0; i < n; i++)
			page_drop(s, va + (i << PAGE_SHIFT));
		return;
	}
	for (size_t i = 0; i < (size_t)1 << s->bits; i++) {
		for (struct sim_page **link = &s->bucket[i]; *link != NULL;) {
			if ((*link)->va >= va && ((*link)->va - va) >> PAGE_SHIFT < n)
				page_unlink(s, link);
			else
				link = &(*link)->next;
		}
	}
}

/* Regions. */

/* Index of the first region that ends above va. */
static size_t
region_above(const struct sim_pmap *s, uintptr_t va)
{
	size_t lo = 0, hi = s->nregion;

	while (lo < hi) {
		const size_t mid = lo + (hi - lo) / 2;

		if (s->region[mid].end > va)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

static struct region *
region_find(const struct sim_pmap *s, uintptr_t va)
{
	const size_t i = region_above(s, va);

	return i < s->nregion && s->region[i].start <= va ? &s->region[i] : NULL;
}

static bool
region_overlaps(const struct sim_pmap *s, uintptr_t start, uintptr_t end)
{
	const size_t i = region_above(s, start);

	return i < s->nregion && s->region[i].start < end;
}

/* True if regions cover [start, end) without a gap. */
static bool
region_covers(const struct sim_pmap *s, uintptr_t start, uintptr_t end)
{
	for (size_t i = region_above(s, start); start < end; i++) {
		if (i == s->nregion || s->region[i].start > start)
			return false;
		start = s->region[i].end;
	}
	return true;
}

static void
region_insert(struct sim_pmap *s, struct region r)
{
	const size_t i = region_above(s, r.start);

	s->region = must_grow(s->region, s->nregion, &s->region_room, sizeof(r));
	memmove(&s->region[i + 1], &s->region[i], (s->nregion - i) * sizeof(r));
	s->region[i] = r;
	s->nregion++;
}

/* Make `va` an edge. */
static void
region_split(struct sim_pmap *s, uintptr_t va)
{
	struct region *r = region_find(s, va), upper;

	if (r == NULL || r->start == va)
		return;
	upper = *r;
	upper.start = va;
	r->end = va;
	region_insert(s, upper);
}

/* Places. */

static bool
is_space(unsigned shard)
{
	return shard > PMAP_POOL;
}

static bool
has_pools(const struct sim_pmap *s)
{
	return (s->pmap.features & UP_MASK_SHARED) != 0;
}

static struct space *
space_find(const struct sim_pmap *s, unsigned shard)
{
	const size_t i = (size_t)shard - PMAP_POOL - 1;

	return is_space(shard) && i < s->nspace && s->space[i].record != NULL ? &s->space[i] : NULL;
}

static bool
same_space(unsigned a, unsigned b)
{
	return a == b || (!is_space(a) && !is_space(b));
}

/* Where the record of an address is: of a space, away from ours. */
static uintptr_t
key_of(unsigned shard, uintptr_t va)
{
	return is_space(shard) ? (uintptr_t)(shard - PMAP_POOL) << SPACE_SHIFT | va : va;
}

/* The place that has the address, or NULL. */
static struct place *
place_find(const struct sim_pmap *s, unsigned shard, uintptr_t va)
{
	for (size_t i = 0; i < s->nplace; i++) {
		struct place *pl = &s->place[i];

		if (same_space(pl->shard, shard) && pl->start <= va && va < pl->end)
			return pl;
	}
	return NULL;
}

static void
place_insert(struct sim_pmap *s, struct place pl)
{
	s->place = must_grow(s->place, s->nplace, &s->place_room, sizeof(pl));
	s->place[s->nplace++] = pl;
}

/* What of the pages [page, page + n) of a pool a place has: how many, from *va on. */
static size_t
place_part(const struct place *pl, uintptr_t page, size_t n, uintptr_t *va)
{
	const uintptr_t from = MAX(page, pl->page);
	const uintptr_t to = MIN(page + (n << PAGE_SHIFT), pl->page + (pl->end - pl->start));

	if (from >= to)
		return 0;
	*va = pl->start + (from - pl->page);
	return (to - from) >> PAGE_SHIFT;
}

/* Make an address an edge of the place that it is in.  0 or -ENOMEM. */
static int
place_split(struct sim_pmap *s, unsigned shard, uintptr_t va)
{
	struct place *pl = place_find(s, shard, va), upper;

	if (pl == NULL || pl->start == va)
		return 0;
	upper = *pl;
	upper.record = zone_alloc(s->pmap.places, ZONE_WAIT);
	if (upper.record == NULL)
		return -ENOMEM;
	upper.page += va - upper.start;
	upper.start = va;
	pl->end = va;
	place_insert(s, upper);
	return 0;
}

/* => edges are where they have to be. */
static void
places_remove(struct sim_pmap *s, unsigned shard, uintptr_t va, size_t len)
{
	for (size_t i = s->nplace; i-- > 0;) {
		struct place *pl = &s->place[i];

		if (!same_space(pl->shard, shard) || pl->start < va || pl->end > va + len)
			continue;
		zone_free(s->pmap.places, pl->record);
		*pl = s->place[--s->nplace];
	}
}

/* Pages of a pool go: out of all page tables too.  Poison stays, unless it shall be taken along. */
static void
places_forget(struct sim_pmap *s, uintptr_t page, size_t n, bool poison)
{
	for (size_t i = 0; i < s->nplace; i++) {
		const struct place *pl = &s->place[i];
		uintptr_t va = 0;
		const size_t k = place_part(pl, page, n, &va);

		for (size_t j = 0; j < k; j++) {
			const uintptr_t key = key_of(pl->shard, va + (j << PAGE_SHIFT));
			const struct sim_page *p = page_find(s, key);

			if (p != NULL && (p->seen || poison))
				page_drop(s, key);
		}
	}
}

/* Is the page of a pool poisoned at some place? */
static bool
places_poisoned(struct sim_pmap *s, uintptr_t page)
{
	for (size_t i = 0; i < s->nplace; i++) {
		uintptr_t va = 0;
		const struct sim_page *p;

		if (place_part(&s->place[i], page, 1, &va) == 0)
			continue;
		p = page_find(s, key_of(s->place[i].shard, va));
		if (p != NULL && p->poisoned)
			return true;
	}
	return false;
}

/* The page is in the page table of a place. */
static void
place_see(struct sim_pmap *s, const struct place *pl, uintptr_t va)
{
	const uintptr_t key = key_of(pl->shard, va);

	if (page_find(s, key) != NULL)
		return;
	page_new(s, key, true)->poisoned = false; /* takes no memory */
	page_find(s, key)->seen = true;
}

/* Common to every call on a range: whole pages, in the address space. */
static void
check_range(const char *op, uintptr_t va, size_t n)
{
	require((va & PAGE_MASK) == 0, "%s: address %#lx is no page", op, (unsigned long)va);
	require(n > 0, "%s: no pages", op);
	require(va <= LAST_VA && n <= (LAST_VA - va) >> PAGE_SHIFT,
		"%s: %#lx + %zu pages is outside the address space", op, (unsigned long)va, n);
}

static void
check_shard(const struct sim_pmap *s, const char *op, unsigned shard)
{
	require(shard < s->pmap.nshards, "%s: there is no shard %u", op, shard);
}

/* The same of calls that take pages of pools. */
static void
check_shard_or_pool(const struct sim_pmap *s, const char *op, unsigned shard)
{
	if (shard != PMAP_POOL || !has_pools(s))
		check_shard(s, op, shard);
}

/* The same of calls that take addresses of spaces. */
static void
check_shard_or_space(const struct sim_pmap *s, const char *op, unsigned shard)
{
	if (is_space(shard))
		require(space_find(s, shard) != NULL, "%s: there is no space %u", op, shard);
	else
		check_shard(s, op, shard);
}

static void
check_region(const char *op, const struct region *r, unsigned shard)
{
	require(r->shard == shard, "%s: region %#lx is served by shard %u, not %u", op,
		(unsigned long)r->start, r->shard, shard);
}

/* Fault messages and who waits for an answer. */

static void
message_drop(struct shard *sh, size_t i)
{
	memmove(&sh->msg[i], &sh->msg[i + 1], (--sh->n - i) * sizeof(sh->msg[0]));
}

/* Where messages about addresses of a shard go. */
static struct shard *
queue_of(const struct sim_pmap *s, unsigned shard)
{
	return &s->shard[is_space(shard) ? space_find(s, shard)->near : shard];
}

static void
message_send(struct sim_pmap *s, unsigned shard, struct message m)
{
	struct shard *sh = queue_of(s, shard);

	m.delay = (unsigned)sim_below(s->f, s->delay + 1u);
	sh->msg = must_grow(sh->msg, sh->n, &sh->room, sizeof(m));
	sh->msg[sh->n++] = m;
}

/* A thread meets a page that is not there for it. */
static enum sim_result
thread_sleep(struct sim_pmap *s, unsigned thread, unsigned shard, struct pmap_fault fault)
{
	struct message m = { .fault = fault, .thread = thread };

	m.fault.shard = shard;
	s->thread[thread] = (struct thread){ .asleep = true, .va = fault.va, .shard = shard };
	message_send(s, shard, m);
	if (sim_chance(s->f, s->dup)) {
		m.ghost = true;
		message_send(s, shard, m);
	}
	return SIM_FAULT;
}

/* The kernel takes a woken thread off the queue: a message not read by then never will be. */
static void
wake_addresses(struct sim_pmap *s, unsigned shard, uintptr_t va, size_t n)
{
	struct shard *sh;

	if (is_space(shard) && space_find(s, shard) == NULL)
		return;
	sh = queue_of(s, shard);
	for (unsigned t = 0; t < SIM_THREADS; t++) {
		struct thread *th = &s->thread[t];

		if (!th->asleep || th->shard != shard || th->va < va ||
		    (th->va - va) >> PAGE_SHIFT >= n)
			continue;
		th->asleep = false;
		for (size_t i = sh->n; i-- > 0;)
			if (sh->msg[i].thread == t && !sh->msg[i].ghost)
				message_drop(sh, i);
	}
}

/* The same; pages of a pool at all places. */
static void
wake_range(struct sim_pmap *s, unsigned shard, uintptr_t va, size_t n)
{
	if (shard != PMAP_POOL) {
		wake_addresses(s, shard, va, n);
		return;
	}
	for (size_t i = 0; i < s->nplace; i++) {
		uintptr_t at = 0;
		const size_t k = place_part(&s->place[i], va, n, &at);

		if (k > 0)
			wake_addresses(s, s->place[i].shard, at, k);
	}
}

/* One look at the queue has been taken: what is on its way comes closer. */
static void
message_age(struct shard *sh)
{
	for (size_t i = 0; i < sh->n; i++)
		if (sh->msg[i].delay > 0)
			sh->msg[i].delay--;
}

/* The next visible message, or one at random, or sh->n. */
static size_t
message_pick(struct sim_pmap *s, struct shard *sh)
{
	size_t first = sh->n, visible = 0, k;

	for (size_t i = sh->n; i-- > 0;) {
		if (sh->msg[i].delay == 0) {
			first = i;
			visible++;
		}
	}
	if (visible < 2 || !sim_chance(s->f, s->reorder))
		return first;
	k = sim_below(s->f, visible);
	for (size_t i = first;; i++)
		if (sh->msg[i].delay == 0 && k-- == 0)
			return i;
}

/* The staging area. */

static void
hole_make(struct sim_pmap *s, frame_t f)
{
	char *p = pmap_frame(&s->pmap, f);

	s->is_frame[f] = false;
	s->resident--;
	memset(p, HOLE_BYTE, PAGE_SIZE);
	ASAN_POISON_MEMORY_REGION(p, PAGE_SIZE);
}

static void *
frame_make(struct sim_pmap *s, const char *op, frame_t f)
{
	unsigned char *p = pmap_frame(&s->pmap, f);

	require(!s->is_frame[f], "%s: %u is a frame, not a hole", op, f);
	ASAN_UNPOISON_MEMORY_REGION(p, PAGE_SIZE);
	require(p[0] == HOLE_BYTE && memcmp(p, p + 1, PAGE_SIZE - 1) == 0,
		"%s: frame %u was written to while it was a hole", op, f);
	s->is_frame[f] = true;
	s->had_io[f] = false;
	count_resident(s, 1);
	return p;
}

static void
check_stage(const struct sim_pmap *s, const char *op, frame_t first, size_t n)
{
	require(n > 0 && first < s->pmap.nstage && n <= s->pmap.nstage - first,
		"%s: frames %u + %zu are outside the staging area", op, first, n);
}

static void
check_frame(const struct sim_pmap *s, const char *op, frame_t f)
{
	require(s->is_frame[f], "%s: %u is a hole, not a frame", op, f);
	require(s->io[f] == 0, "%s: frame %u is under I/O", op, f);
}

/* pmap_ops. */

/* Choose addresses for a mapping.  0, -ENOMEM or -EEXIST. */
static int
pick_address(struct sim_pmap *s, uintptr_t hint, bool fixed, size_t len, uintptr_t *va)
{
	uintptr_t at = hint;

	require((hint & PAGE_MASK) == 0 && (len & PAGE_MASK) == 0 && len > 0,
		"map: %#lx + %zu is not whole pages", (unsigned long)hint, len);
	require(!fixed || hint != 0, "map: fixed at address 0");
	/* The program chose these: outside the address space is an error, not a broken contract. */
	if (len > LAST_VA - FIRST_VA || (fixed && at > LAST_VA - len))
		return -ENOMEM;
	if (fixed && region_overlaps(s, at, at + len))
		return -EEXIST;
	if (!fixed && (at == 0 || at > LAST_VA - len || region_overlaps(s, at, at + len))) {
		/* Kernels reuse addresses; whoever remembers too long must meet that. */
		at = s->hole_va;
		if (len > s->hole_len || region_overlaps(s, at, at + len) || sim_below(s->f, 2)) {
			at = s->next_va;
			while (region_overlaps(s, at, at + len))
				at = s->region[region_above(s, at)].end;
			if (at > LAST_VA - len)
				return -ENOMEM;
			/* Neighbours with and without a gap. */
			s->next_va = at + len + (sim_below(s->f, 3) << PAGE_SHIFT);
		}
	}
	*va = at;
	return 0;
}

static int
op_map(struct pmap *pm, uintptr_t hint, bool fixed, size_t len, int prot, unsigned shard,
       uintptr_t *va)
{
	struct sim_pmap *s = to_sim(pm);
	int err;

	check_shard(s, "map", shard);
	err = sim_inject(s->f, SIM_MAP);
	if (err == 0)
		err = pick_address(s, hint, fixed, len, va);
	if (err == 0)
		region_insert(s, (struct region){ .start = *va,
						  .end = *va + len,
						  .prot = prot,
						  .shard = shard });
	return err;
}

static int
unmap_in_space(struct sim_pmap *s, uintptr_t va, size_t len, unsigned shard)
{
	require(space_find(s, shard) != NULL, "unmap: there is no space %u", shard);
	if (place_split(s, shard, va) < 0 || place_split(s, shard, va + len) < 0)
		return -ENOMEM;
	page_drop_range(s, key_of(shard, va), len >> PAGE_SHIFT);
	places_remove(s, shard, va, len);
	wake_addresses(s, shard, va, len >> PAGE_SHIFT);
	return 0;
}

static int
op_unmap(struct pmap *pm, uintptr_t va, size_t len, unsigned shard)
{
	struct sim_pmap *s = to_sim(pm);
	size_t i, j;

	check_range("unmap", va, len >> PAGE_SHIFT);
	if (is_space(shard))
		return unmap_in_space(s, va, len, shard);
	check_shard(s, "unmap", shard);
	require((len & PAGE_MASK) == 0, "unmap: length %zu is not whole pages", len);
	require(region_covers(s, va, va + len), "unmap: part of %#lx + %zu is not mapped",
		(unsigned long)va, len);
	for (i = region_above(s, va); i < s->nregion && s->region[i].start < va + len; i++)
		check_region("unmap", &s->region[i], shard);

	if (place_split(s, shard, va) < 0 || place_split(s, shard, va + len) < 0)
		return -ENOMEM;
	places_remove(s, shard, va, len);
	region_split(s, va);
	region_split(s, va + len);
	i = region_above(s, va);
	j = region_above(s, va + len - 1) + 1;
	memmove(&s->region[i], &s->region[j], (s->nregion - j) * sizeof(s->region[0]));
	s->nregion -= j - i;
	page_drop_range(s, va, len >> PAGE_SHIFT);
	wake_range(s, shard, va, len >> PAGE_SHIFT);
	s->hole_va = va;
	s->hole_len = len;
	return 0;
}

static int
op_protect(struct pmap *pm, uintptr_t va, size_t len, int prot)
{
	struct sim_pmap *s = to_sim(pm);
	int err;

	check_range("protect", va, len >> PAGE_SHIFT);
	require((len & PAGE_MASK) == 0, "protect: length %zu is not whole pages", len);
	if (!region_covers(s, va, va + len))
		return -ENOMEM;
	require(region_find(s, va)->shard != PMAP_POOL, "protect: %#lx is the alias of a pool",
		(unsigned long)va);
	err = sim_inject(s->f, SIM_PROTECT);
	if (err != 0)
		return err;
	region_split(s, va);
	region_split(s, va + len);
	for (size_t i = region_above(s, va); i < s->nregion && s->region[i].start < va + len; i++)
		s->region[i].prot = prot;
	return 0;
}

/* May a page be installed at va?  0, -ENOENT, or -EEXIST: zero of a page that is there, or we said so before. */
static int
check_install(struct sim_pmap *s, const char *op, unsigned shard, uintptr_t va)
{
	const struct region *r = region_find(s, va);
	const struct sim_page *p = page_find(s, va);

	if (r == NULL)
		return -ENOENT;
	check_region(op, r, shard);
	require(!r->is_place, "%s: page %#lx is a pool's, to be named by its address there", op,
		(unsigned long)va);
	require(shard != PMAP_POOL || !places_poisoned(s, va), "%s: page %#lx is poisoned", op,
		(unsigned long)va);
	if (p == NULL)
		return 0;
	require(!p->poisoned, "%s: page %#lx is poisoned", op, (unsigned long)va);
	/* zero is also how the pager asks whether a page is there. */
	require(p->late || strcmp(op, "zero") == 0, "%s: page %#lx is there already", op,
		(unsigned long)va);
	return -EEXIST;
}

/* How many of n pages a batched call completes before it fails with `err`. */
static size_t
partial(struct sim_pmap *s, int err, size_t n)
{
	return err == 0 ? n : sim_below(s->f, n);
}

static int
op_zero(struct pmap *pm, unsigned shard, uintptr_t va, size_t n, size_t *done)
{
	struct sim_pmap *s = to_sim(pm);
	struct sim_page *p;
	size_t stop;
	int err, r;

	check_range("zero", va, n);
	check_shard_or_pool(s, "zero", shard);
	err = sim_inject(s->f, SIM_ZERO);
	stop = partial(s, err, n);
	for (*done = 0; *done < n; ++*done, va += PAGE_SIZE) {
		r = check_install(s, "zero", shard, va);
		if (r != 0)
			return r;
		if (*done == stop && err != -EEXIST)
			return err;
		p = page_new(s, va, false);
		memset(p->data, 0, PAGE_SIZE);
		if (*done == stop) {
			p->late = true;
			return err;
		}
		wake_range(s, shard, va, 1);
	}
	return 0;
}

/* n pages are there twice for an instant. */
static void
count_copies(struct sim_pmap *s, size_t n)
{
	count_resident(s, n);
	s->resident -= n;
}

static int
op_enter(struct pmap *pm, unsigned shard, uintptr_t va, frame_t frame, size_t n, size_t *done)
{
	struct sim_pmap *s = to_sim(pm);
	unsigned char data[PAGE_SIZE];
	size_t stop;
	int err, r;

	check_range("enter", va, n);
	check_shard_or_pool(s, "enter", shard);
	check_stage(s, "enter", frame, n);
	err = sim_inject(s->f, SIM_ENTER);
	stop = partial(s, err, n);
	for (*done = 0; *done < n; ++*done, va += PAGE_SIZE, frame++) {
		check_frame(s, "enter", frame);
		r = check_install(s, "enter", shard, va);
		if (r != 0)
			return r;
		if (*done == stop && err == -EEXIST) {
			struct sim_page *p = page_new(s, va, false);

			memcpy(p->data, pmap_frame(pm, frame), PAGE_SIZE);
			p->late = true;
		}
		if (*done == stop)
			return err;
		if ((s->copies || shard == PMAP_POOL) && *done % CLUSTER_MAX == 0)
			count_copies(s, MIN(stop - *done, CLUSTER_MAX));
		else if (!s->copies && shard != PMAP_POOL && s->had_io[frame])
			count_copies(s, 1);
		/* Hole first: a move never has both. */
		memcpy(data, pmap_frame(pm, frame), PAGE_SIZE);
		hole_make(s, frame);
		memcpy(page_new(s, va, false)->data, data, PAGE_SIZE);
		wake_range(s, shard, va, 1);
	}
	return 0;
}

/* May the page at va leave?  0, -ENOENT or -EBUSY. */
static int
check_remove(struct sim_pmap *s, unsigned shard, uintptr_t va)
{
	const struct region *r = region_find(s, va);
	const struct sim_page *p = page_find(s, va);

	if (r == NULL)
		return -ENOENT;
	check_region("remove", r, shard);
	require(!r->is_place, "remove: page %#lx is a pool's, to be named by its address there",
		(unsigned long)va);
	/* The kernel would give zeros for it. */
	require(p != NULL || shard != PMAP_POOL, "remove: page %#lx is not in its pool",
		(unsigned long)va);
	if (p == NULL)
		return -ENOENT;
	require(!p->poisoned, "remove: page %#lx is poisoned", (unsigned long)va);
	return p->pins > 0 ? -EBUSY : 0;
}

static void
move_out(struct sim_pmap *s, uintptr_t va, frame_t hole)
{
	unsigned char data[PAGE_SIZE];

	memcpy(data, page_find(s, va)->data, PAGE_SIZE);
	page_drop(s, va);
	memcpy(frame_make(s, "remove", hole), data, PAGE_SIZE);
}

static void
copy_out(struct sim_pmap *s, unsigned shard, uintptr_t va, frame_t hole, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		struct sim_page *p = page_find(s, va + (i << PAGE_SHIFT));

		p->wp = true;
		memcpy(frame_make(s, "remove", hole + (frame_t)i), p->data, PAGE_SIZE);
	}
	if (s->on_copy != NULL)
		s->on_copy(s->on_copy_ctx, va, n);
	if (shard == PMAP_POOL)
		places_forget(s, va, n, false);
	page_drop_range(s, va, n);
}

static int
op_remove(struct pmap *pm, unsigned shard, uintptr_t va, frame_t hole, size_t n, size_t *done)
{
	struct sim_pmap *s = to_sim(pm);
	const bool copies = s->copies || shard == PMAP_POOL;
	size_t stop;
	int err, r = 0;

	check_range("remove", va, n);
	check_shard_or_pool(s, "remove", shard);
	check_stage(s, "remove", hole, n);
	err = sim_inject(s->f, SIM_REMOVE);
	if (err == -EBUSY && shard == PMAP_POOL) /* nobody can tell */
		err = -EAGAIN;
	stop = partial(s, err, n);
	*done = 0;
	while (*done < stop && r == 0) {
		const size_t most = copies ? MIN(stop - *done, CLUSTER_MAX) : 1;
		const uintptr_t at = va + (*done << PAGE_SHIFT);
		size_t run = 0;

		while (run < most && r == 0) {
			r = check_remove(s, shard, at + (run << PAGE_SHIFT));
			if (r == 0)
				run++;
		}
		if (run > 0 && (copies || !(region_find(s, at)->prot & PROT_WRITE)))
			copy_out(s, shard, at, hole + (frame_t)*done, run);
		else if (run > 0)
			move_out(s, at, hole + (frame_t)*done);
		*done += run;
	}
	return r != 0 ? r : err;
}

static int
op_discard(struct pmap *pm, unsigned shard, uintptr_t va, size_t n)
{
	struct sim_pmap *s = to_sim(pm);
	int err;

	check_range("discard", va, n);
	check_shard_or_pool(s, "discard", shard);
	if (!region_covers(s, va, va + (n << PAGE_SHIFT)))
		return -ENOENT;
	for (size_t i = region_above(s, va);
	     i < s->nregion && s->region[i].start < va + (n << PAGE_SHIFT); i++)
		check_region("discard", &s->region[i], shard);
	err = sim_inject(s->f, SIM_DISCARD);
	n = partial(s, err, n);
	if (shard == PMAP_POOL)
		places_forget(s, va, n, true);
	page_drop_range(s, va, n);
	return err;
}

/* => of places, at all that somebody can touch.  0, or -EEXIST: all of them are already. */
static int
poison_places(struct sim_pmap *s, uintptr_t page)
{
	bool poisoned = false, already = false;

	for (size_t i = 0; i < s->nplace; i++) {
		const struct place *pl = &s->place[i];
		uintptr_t va = 0;

		if (place_part(pl, page, 1, &va) == 0 ||
		    (is_space(pl->shard) && !space_find(s, pl->shard)->attached))
			continue;
		if (page_find(s, key_of(pl->shard, va)) != NULL) {
			already = true;
		} else {
			page_new(s, key_of(pl->shard, va), true);
			poisoned = true;
		}
	}
	return already && !poisoned ? -EEXIST : 0;
}

/* Wakes in any case: if the page is not to be had, the thread shall find out for itself. */
static int
op_poison(struct pmap *pm, unsigned shard, uintptr_t va)
{
	struct sim_pmap *s = to_sim(pm);
	const struct region *r;
	int err;

	check_range("poison", va, 1);
	check_shard_or_pool(s, "poison", shard);
	wake_range(s, shard, va, 1);
	r = region_find(s, va);
	if (r == NULL)
		return -ENOENT;
	check_region("poison", r, shard);
	err = sim_inject(s->f, SIM_POISON);
	if (err == -ENOTSUP && shard == PMAP_POOL) /* then there would be none */
		err = -EAGAIN;
	if (err != 0)
		return err;
	if (page_find(s, va) != NULL)
		return -EEXIST;
	if (shard == PMAP_POOL)
		return poison_places(s, va);
	require(!r->is_place, "poison: page %#lx is a pool's, to be named by its address there",
		(unsigned long)va);
	page_new(s, va, true);
	return 0;
}

/* No region needed and any shard will do: UFFDIO_WAKE looks only at who sleeps. */
static void
op_wake(struct pmap *pm, unsigned shard, uintptr_t va, size_t n)
{
	struct sim_pmap *s = to_sim(pm);

	check_range("wake", va, n);
	/* Of a space that is no more, too: what was parked for it outlives it. */
	if (!has_pools(s) || shard < PMAP_POOL)
		check_shard(s, "wake", shard);
	wake_range(s, shard, va, n);
}

static int
op_frame_new(struct pmap *pm, frame_t first, size_t n, size_t *done)
{
	struct sim_pmap *s = to_sim(pm);
	size_t stop;
	int err;

	check_stage(s, "frame_new", first, n);
	err = sim_inject(s->f, SIM_FRAME_NEW);
	stop = partial(s, err, n);
	for (*done = 0; *done < stop; ++*done)
		memset(frame_make(s, "frame_new", first + (frame_t)*done), FRESH_BYTE, PAGE_SIZE);
	return err;
}

static void
op_frame_drop(struct pmap *pm, frame_t first, size_t n)
{
	struct sim_pmap *s = to_sim(pm);

	check_stage(s, "frame_drop", first, n);
	for (size_t i = 0; i < n; i++) {
		check_frame(s, "frame_drop", first + (frame_t)i);
		hole_make(s, first + (frame_t)i);
	}
}

static void
op_frames_drop(struct pmap *pm, const frame_t f[], size_t n)
{
	require(n <= CLUSTER_MAX, "frames_drop: %zu frames", n);
	for (size_t i = 0; i < n; i++)
		op_frame_drop(pm, f[i], 1);
}

static int
lend_one(struct pmap *pm, unsigned shard, uintptr_t va, frame_t frame, bool guard)
{
	struct sim_pmap *s = to_sim(pm);
	struct sim_page *p;
	int err, r;

	check_stage(s, "lend", frame, 1);
	check_frame(s, "lend", frame);
	err = sim_inject(s->f, SIM_ENTER);
	r = check_install(s, "lend", shard, va);
	if (r != 0 || (err != 0 && err != -EEXIST))
		return r != 0 ? r : err;
	p = page_new(s, va, false);
	memcpy(p->data, pmap_frame(pm, frame), PAGE_SIZE);
	p->late = err != 0;
	p->wp = guard && err == 0;
	if (err == 0)
		wake_range(s, shard, va, 1);
	return err;
}

static int
op_lend(struct pmap *pm, unsigned shard, uintptr_t va, frame_t frame, size_t n, bool guard,
	size_t *done)
{
	int r = 0;

	check_range("lend", va, n);
	check_shard(to_sim(pm), "lend", shard);
	for (*done = 0; *done < n && r == 0; *done += r == 0)
		r = lend_one(pm, shard, va + (*done << PAGE_SHIFT), frame + (frame_t)*done, guard);
	return r;
}

static void
op_allow(struct pmap *pm, unsigned shard, uintptr_t va)
{
	struct sim_pmap *s = to_sim(pm);
	struct sim_page *p;

	check_range("allow", va, 1);
	check_shard(s, "allow", shard);
	p = page_find(s, va);
	if (p != NULL)
		p->wp = false;
	wake_range(s, shard, va, 1);
}

/* What is pinned is writable there; here it may be guarded, and must stay all the same. */
static int
op_recall(struct pmap *pm, const uintptr_t va[], const frame_t frame[], size_t n, size_t *done)
{
	struct sim_pmap *s = to_sim(pm);
	const int err = sim_inject(s->f, SIM_REMOVE);
	const size_t stop = partial(s, err, n);

	require(n <= CLUSTER_MAX, "recall: %zu pages", n);
	for (*done = 0; *done < stop; ++*done) {
		const struct region *r = region_find(s, va[*done]);
		const struct sim_page *p = page_find(s, va[*done]);

		check_frame(s, "recall", frame[*done]);
		require(r != NULL && r->shard != PMAP_POOL && !r->is_place,
			"recall: %#lx is in no private region", (unsigned long)va[*done]);
		if (p == NULL)
			return -ENOENT;
		require(!p->poisoned && p->wp, "recall: page %#lx is not guarded",
			(unsigned long)va[*done]);
		if (p->pins > 0)
			return -EBUSY;
		memcpy(pmap_frame(pm, frame[*done]), p->data, PAGE_SIZE);
		page_drop(s, va[*done]);
	}
	return err;
}

static unsigned
op_faults(struct pmap *pm, unsigned shard, struct pmap_fault *buf, unsigned max)
{
	struct sim_pmap *s = to_sim(pm);
	struct shard *sh;
	unsigned n = 0;
	size_t i;

	check_shard(s, "faults", shard);
	for (sh = &s->shard[shard]; n < max; n++) {
		i = message_pick(s, sh);
		if (i == sh->n)
			break;
		buf[n] = sh->msg[i].fault;
		message_drop(sh, i);
	}
	message_age(sh);
	return n;
}

/* Also of one that was never finished. */
static void
op_destroy(struct pmap *pm)
{
	struct sim_pmap *s = to_sim(pm);

	for (unsigned i = 0; i < s->nspace; i++)
		require(s->space[i].record == NULL, "destroy: space %u is left", PMAP_POOL + 1 + i);
	require(s->nregion == 0, "destroy: region %#lx is still mapped",
		(unsigned long)s->region[0].start);
	for (frame_t f = 0; s->io != NULL && f < pm->nstage; f++)
		require(s->io[f] == 0, "destroy: frame %u is under I/O", f);
	for (unsigned i = 0; s->shard != NULL && i < pm->nshards; i++)
		free(s->shard[i].msg);
	if (pm->stage != NULL)
		ASAN_UNPOISON_MEMORY_REGION(pm->stage, (size_t)pm->nstage << PAGE_SHIFT);
	free(pm->stage);
	free(s->shard);
	free(s->had_io);
	free(s->io);
	free(s->is_frame);
	free(s->bucket);
	free(s->region);
	free(s->place);
	free(s->pool);
	free(s->space);
	free(s);
}

static int
op_split(struct pmap *pm, unsigned shard, uintptr_t va, size_t len)
{
	struct sim_pmap *s = to_sim(pm);
	int err;

	require(shard >= PMAP_POOL || region_covers(s, va, va + len),
		"split: part of %#lx + %zu is not mapped", (unsigned long)va, len);
	err = sim_inject(s->f, SIM_UNMAP);
	if (err != 0)
		return err;
	if (place_split(s, 0, va) < 0 || place_split(s, 0, va + len) < 0)
		return -ENOMEM;
	region_split(s, va);
	region_split(s, va + len);
	return 0;
}

static int
op_read(struct pmap *pm, uintptr_t va, void *buf)
{
	struct sim_pmap *s = to_sim(pm);
	const struct region *r = region_find(s, va);
	const struct sim_page *p = page_find(s, va);

	require(r == NULL || !r->is_place,
		"read: page %#lx is a pool's, to be named by its address there", (unsigned long)va);
	if (p == NULL && r != NULL && r->shard == PMAP_POOL) {
		memset(buf, 0, PAGE_SIZE);
		return 0;
	}
	if (p == NULL || p->poisoned)
		return -ENOENT;
	memcpy(buf, p->data, PAGE_SIZE);
	return 0;
}

/* pmap_ops: pools and spaces. */

static void *
record_new(struct sim_pmap *s)
{
	require(s->pmap.places != NULL, "nobody has said where records come from");
	return zone_alloc(s->pmap.places, ZONE_WAIT);
}

static struct pool *
pool_find(const struct sim_pmap *s, const char *op, uintptr_t start)
{
	for (size_t i = 0; i < s->npool; i++)
		if (s->pool[i].start == start)
			return &s->pool[i];
	sim_die("%s: %#lx is no pool", op, (unsigned long)start);
}

static int
op_pool_create(struct pmap *pm, size_t npages, bool apart, uintptr_t *pool)
{
	struct sim_pmap *s = to_sim(pm);
	const size_t len = npages << PAGE_SHIFT;
	void *record;
	int err = sim_inject(s->f, SIM_MAP);

	(void)apart;

	if (err != 0)
		return err;
	record = record_new(s);
	if (record == NULL)
		return -ENOMEM;
	err = pick_address(s, 0, false, len, pool);
	if (err != 0) {
		zone_free(pm->places, record);
		return err;
	}
	region_insert(s, (struct region){ .start = *pool, .end = *pool + len, .shard = PMAP_POOL });
	s->pool = must_grow(s->pool, s->npool, &s->pool_room, sizeof(s->pool[0]));
	s->pool[s->npool++] = (struct pool){ *pool, record };
	return 0;
}

static void
op_pool_destroy(struct pmap *pm, uintptr_t start)
{
	struct sim_pmap *s = to_sim(pm);
	struct pool *p = pool_find(s, "pool_destroy", start);
	struct region *r = region_find(s, start);
	const size_t i = (size_t)(r - s->region), n = (r->end - r->start) >> PAGE_SHIFT;

	for (size_t k = 0; k < s->nplace; k++) {
		uintptr_t va = 0;

		require(place_part(&s->place[k], start, n, &va) == 0,
			"pool_destroy: pool %#lx is still mapped at %#lx", (unsigned long)start,
			(unsigned long)va);
	}
	page_drop_range(s, start, n);
	memmove(r, r + 1, (--s->nregion - i) * sizeof(*r));
	zone_free(pm->places, p->record);
	*p = s->pool[--s->npool];
}

static int
op_pool_map(struct pmap *pm, uintptr_t page, uintptr_t hint, bool fixed, size_t len, int prot,
	    unsigned shard, uintptr_t *va)
{
	struct sim_pmap *s = to_sim(pm);
	const struct region *alias = region_find(s, page);
	struct place pl = { .shard = shard, .page = page, .prot = prot };
	int err;

	check_shard_or_space(s, "pool_map", shard);
	check_range("pool_map", page, len >> PAGE_SHIFT);
	require(alias != NULL && alias->shard == PMAP_POOL && len <= alias->end - page,
		"pool_map: %#lx + %zu are not in a pool", (unsigned long)page, len);
	err = sim_inject(s->f, SIM_MAP);
	if (err != 0)
		return err;
	pl.record = record_new(s);
	if (pl.record == NULL)
		return -ENOMEM;
	pl.start = hint;
	if (is_space(shard))
		for (size_t i = 0; i < s->nplace; i++)
			require(s->place[i].shard != shard || s->place[i].end <= hint ||
					s->place[i].start >= hint + len,
				"pool_map: something is at %#lx in space %u already",
				(unsigned long)hint, shard);
	else
		err = pick_address(s, hint, fixed, len, &pl.start);
	if (err != 0) {
		zone_free(pm->places, pl.record);
		return err;
	}
	pl.end = pl.start + len;
	if (!is_space(shard))
		region_insert(s, (struct region){ .start = pl.start,
						  .end = pl.end,
						  .prot = prot,
						  .shard = shard,
						  .is_place = true });
	place_insert(s, pl);
	*va = pl.start;
	return 0;
}

static unsigned
op_pool_referenced(struct pmap *pm, uintptr_t page)
{
	struct sim_pmap *s = to_sim(pm);
	unsigned count = 0;

	check_range("pool_referenced", page, 1);
	for (size_t i = 0; i < s->nplace; i++) {
		const struct sim_page *p;
		uintptr_t va = 0;

		if (is_space(s->place[i].shard) || place_part(&s->place[i], page, 1, &va) == 0)
			continue;
		p = page_find(s, va);
		if (p != NULL && p->seen) {
			page_drop(s, va);
			count++;
		}
	}
	return count;
}

static void
op_pool_populate(struct pmap *pm, unsigned shard, uintptr_t va, size_t len, bool write)
{
	struct sim_pmap *s = to_sim(pm);

	(void)write;
	if (is_space(shard))
		return;
	for (size_t off = 0; off < len; off += PAGE_SIZE) {
		const struct place *pl = place_find(s, shard, va + off);

		if (pl != NULL && page_find(s, pl->page + (va + off - pl->start)) != NULL)
			place_see(s, pl, va + off);
	}
}

static int
op_space_create(struct pmap *pm, unsigned near, unsigned *shard)
{
	struct sim_pmap *s = to_sim(pm);
	void *record;
	size_t i = 0;
	int err;

	check_shard(s, "space_create", near);
	err = sim_inject(s->f, SIM_MAP);
	if (err != 0)
		return err;
	while (i < s->nspace && s->space[i].record != NULL)
		i++;
	if (i == SPACES_MAX || (record = record_new(s)) == NULL)
		return -ENOMEM;
	if (i == s->nspace) {
		s->space = must_grow(s->space, i, &s->space_room, sizeof(s->space[0]));
		s->nspace++;
	}
	s->space[i] = (struct space){ .near = near, .record = record };
	*shard = PMAP_POOL + 1 + (unsigned)i;
	return 0;
}

/* Who slept there is gone, and with it what has been asked. */
static void
op_space_detach(struct pmap *pm, unsigned shard)
{
	struct sim_pmap *s = to_sim(pm);
	struct space *sp = space_find(s, shard);
	struct shard *sh;

	require(sp != NULL, "space_detach: there is no space %u", shard);
	sp->attached = false;
	for (unsigned t = 0; t < SIM_THREADS; t++)
		if (s->thread[t].asleep && s->thread[t].shard == shard)
			s->thread[t].asleep = false;
	sh = queue_of(s, shard);
	for (size_t i = sh->n; i-- > 0;)
		if (sh->msg[i].fault.shard == shard)
			message_drop(sh, i);
}

static void
op_space_destroy(struct pmap *pm, unsigned shard)
{
	struct sim_pmap *s = to_sim(pm);
	struct space *sp;

	op_space_detach(pm, shard);
	for (size_t i = 0; i < s->nplace; i++)
		require(s->place[i].shard != shard, "space_destroy: space %u has places left",
			shard);
	sp = space_find(s, shard);
	zone_free(pm->places, sp->record);
	sp->record = NULL;
}

static int
op_space_attach(struct pmap *pm, unsigned shard, int fd, pid_t pid)
{
	struct sim_pmap *s = to_sim(pm);
	struct space *sp = space_find(s, shard);
	int err;

	(void)fd;
	(void)pid;
	require(sp != NULL, "space_attach: there is no space %u", shard);
	require(!sp->attached, "space_attach: space %u is attached already", shard);
	err = sim_inject(s->f, SIM_MAP);
	sp->attached = err == 0;
	return err;
}

static const struct pmap_ops sim_ops = {
	.map = op_map,
	.unmap = op_unmap,
	.split = op_split,
	.protect = op_protect,
	.zero = op_zero,
	.enter = op_enter,
	.remove = op_remove,
	.read = op_read,
	.discard = op_discard,
	.poison = op_poison,
	.wake = op_wake,
	.frame_new = op_frame_new,
	.frame_drop = op_frame_drop,
	.frames_drop = op_frames_drop,
	.lend = op_lend,
	.allow = op_allow,
	.recall = op_recall,
	.faults = op_faults,
	.pool_create = op_pool_create,
	.pool_destroy = op_pool_destroy,
	.pool_map = op_pool_map,
	.pool_referenced = op_pool_referenced,
	.pool_populate = op_pool_populate,
	.space_create = op_space_create,
	.space_destroy = op_space_destroy,
	.space_attach = op_space_attach,
	.space_detach = op_space_detach,
	.destroy = op_destroy,
};

/* The same of a kernel without shared memory. */
static const struct pmap_ops sim_ops_private = {
	.map = op_map,
	.unmap = op_unmap,
	.split = op_split,
	.protect = op_protect,
	.zero = op_zero,
	.enter = op_enter,
	.remove = op_remove,
	.read = op_read,
	.discard = op_discard,
	.poison = op_poison,
	.wake = op_wake,
	.frame_new = op_frame_new,
	.frame_drop = op_frame_drop,
	.frames_drop = op_frames_drop,
	.lend = op_lend,
	.allow = op_allow,
	.recall = op_recall,
	.faults = op_faults,
	.destroy = op_destroy,
};

int
pmap_sim_create(struct pmap **pm, frame_t nstage, unsigned nshards, uint64_t mask,
		struct sim_faults *f)
{
	const size_t bytes = (size_t)nstage << PAGE_SHIFT;
	struct sim_pmap *s;

	*pm = NULL;
	require(nstage > 0 && nstage < FRAME_NONE && nshards > 0, "create: no frames or no shards");
	s = calloc(1, sizeof(*s));
	if (s == NULL)
		return -ENOMEM;
	s->f = f;
	s->next_va = FIRST_VA;
	s->bits = 8;
	s->copies = (mask & UP_MASK_MOVE) != 0;
	s->pmap.ops = mask & UP_MASK_SHARED ? &sim_ops_private : &sim_ops;
	s->pmap.place_size = 64;
	s->pmap.nstage = nstage;
	s->pmap.nshards = nshards;
	s->pmap.headroom = CLUSTER_MAX * PAGE_SIZE;
	s->pmap.features = ~mask & (UP_MASK_MOVE | UP_MASK_POISON | UP_MASK_DEV_UFFD |
				    UP_MASK_KERNEL_FAULTS | UP_MASK_SHARED | UP_MASK_VECTOR);
	s->pmap.features |= mask & PMAP_INTHREAD;
	s->pmap.stage = aligned_alloc(PAGE_SIZE, bytes);
	s->is_frame = calloc(nstage, sizeof(s->is_frame[0]));
	s->io = calloc(nstage, sizeof(s->io[0]));
	s->had_io = calloc(nstage, sizeof(s->had_io[0]));
	s->shard = calloc(nshards, sizeof(s->shard[0]));
	s->bucket = calloc((size_t)1 << s->bits, sizeof(s->bucket[0]));
	if (s->pmap.stage == NULL || s->is_frame == NULL || s->io == NULL || s->had_io == NULL ||
	    s->shard == NULL || s->bucket == NULL) {
		op_destroy(&s->pmap);
		return -ENOMEM;
	}
	memset(s->pmap.stage, HOLE_BYTE, bytes);
	ASAN_POISON_MEMORY_REGION(s->pmap.stage, bytes);
	*pm = &s->pmap;
	return 0;
}

/* The program's side. */

static enum sim_result
touch(struct sim_pmap *s, unsigned shard, int prot, const struct place *pl, unsigned thread,
      uintptr_t va, bool write, void *buf, size_t off, size_t len)
{
	const int need = write ? PROT_WRITE : PROT_READ | PROT_WRITE;
	struct pmap_fault fault = { .va = va, .write = write };
	const struct sim_page *mine = page_find(s, key_of(shard, va));
	struct sim_page *p;

	if ((prot & need) == 0)
		return SIM_SIGSEGV;
	if (mine != NULL && mine->poisoned)
		return SIM_SIGBUS;
	p = page_find(s, pl != NULL ? pl->page + (va - pl->start) : va);
	if ((p == NULL || (write && p->wp)) && shard < s->pmap.nshards &&
	    (s->pmap.features & PMAP_INTHREAD))
		return SIM_FAULT; /* it is for the thread to serve */
	if (p == NULL)
		return thread_sleep(s, thread, shard, fault);
	if (write && p->wp) {
		fault.wp = true;
		return thread_sleep(s, thread, shard, fault);
	}
	if (pl != NULL)
		place_see(s, pl, va);
	if (write && len > 0)
		memcpy(p->data + off, buf, len);
	else if (len > 0)
		memcpy(buf, p->data + off, len);
	return SIM_OK;
}

/* True if the thread sleeps. */
static bool
check_touch(const struct sim_pmap *s, unsigned thread, uintptr_t va, size_t off, size_t len)
{
	check_range("touch", va, 1);
	require(thread < SIM_THREADS, "touch: thread %u", thread);
	require(off <= PAGE_SIZE && len <= PAGE_SIZE - off, "touch: %zu + %zu is no page", off,
		len);
	require(!s->thread[thread].asleep || s->thread[thread].va == va,
		"touch: thread %u sleeps at %#lx", thread, (unsigned long)s->thread[thread].va);
	return s->thread[thread].asleep;
}

enum sim_result
sim_touch(struct pmap *pm, unsigned thread, uintptr_t va, bool write, void *buf, size_t off,
	  size_t len)
{
	struct sim_pmap *s = to_sim(pm);
	const struct region *r;

	if (check_touch(s, thread, va, off, len))
		return SIM_FAULT;
	r = region_find(s, va);
	if (r == NULL || r->shard == PMAP_POOL)
		return SIM_SIGSEGV;
	return touch(s, r->shard, r->prot, r->is_place ? place_find(s, 0, va) : NULL, thread, va,
		     write, buf, off, len);
}

enum sim_result
sim_touch_in(struct pmap *pm, unsigned shard, unsigned thread, uintptr_t va, bool write, void *buf,
	     size_t off, size_t len)
{
	struct sim_pmap *s = to_sim(pm);
	const struct space *sp = space_find(s, shard);
	const struct place *pl;

	require(sp != NULL && sp->attached, "touch: nobody runs in space %u", shard);
	if (check_touch(s, thread, va, off, len))
		return SIM_FAULT;
	pl = place_find(s, shard, va);
	if (pl == NULL)
		return SIM_SIGSEGV;
	return touch(s, shard, pl->prot, pl, thread, va, write, buf, off, len);
}

bool
sim_waiting(struct pmap *pm, unsigned thread)
{
	require(thread < SIM_THREADS, "waiting: thread %u", thread);
	return to_sim(pm)->thread[thread].asleep;
}

int
sim_stranded(struct pmap *pm)
{
	const struct sim_pmap *s = to_sim(pm);

	for (unsigned t = 0; t < SIM_THREADS; t++) {
		const struct thread *th = &s->thread[t];
		const struct shard *sh;
		size_t i = 0;

		if (!th->asleep)
			continue;
		sh = queue_of(s, th->shard);
		while (i < sh->n && (sh->msg[i].thread != t || sh->msg[i].fault.va != th->va))
			i++;
		if (i == sh->n)
			return (int)t;
	}
	return -1;
}

void
sim_messages(struct pmap *pm, unsigned dup, unsigned reorder, unsigned delay)
{
	struct sim_pmap *s = to_sim(pm);

	s->dup = dup;
	s->reorder = reorder;
	s->delay = delay;
}

size_t
sim_queued(struct pmap *pm, unsigned shard)
{
	check_shard(to_sim(pm), "queued", shard);
	return to_sim(pm)->shard[shard].n;
}

void
sim_discard_behind(struct pmap *pm, uintptr_t va, size_t n)
{
	check_range("discard_behind", va, n);
	page_drop_range(to_sim(pm), va, n);
}

void
sim_pin(struct pmap *pm, uintptr_t va)
{
	struct sim_page *p = page_find(to_sim(pm), va);

	require(p != NULL && !p->poisoned, "pin: no page at %#lx", (unsigned long)va);
	p->pins++;
}

void
sim_unpin(struct pmap *pm, uintptr_t va)
{
	struct sim_page *p = page_find(to_sim(pm), va);

	if (p != NULL && p->pins > 0)
		p->pins--;
}

void
sim_on_copy(struct pmap *pm, void (*fn)(void *ctx, uintptr_t va, size_t n), void *ctx)
{
	struct sim_pmap *s = to_sim(pm);

	require(fn == NULL || s->copies || has_pools(s), "on_copy: this kernel moves");
	s->on_copy = fn;
	s->on_copy_ctx = ctx;
}

size_t
sim_resident_pages(struct pmap *pm)
{
	return to_sim(pm)->resident;
}

size_t
sim_resident_pages_max(struct pmap *pm)
{
	return to_sim(pm)->resident_max;
}

/* The page that an address of this process shows, or NULL. */
static struct sim_page *
content_find(struct sim_pmap *s, uintptr_t va)
{
	const struct place *pl = place_find(s, 0, va);

	return page_find(s, pl != NULL ? pl->page + (va - pl->start) : va);
}

enum sim_state
sim_state(struct pmap *pm, uintptr_t va)
{
	struct sim_pmap *s = to_sim(pm);
	const struct sim_page *p = page_find(s, va);
	const struct region *r = region_find(s, va);

	if (r == NULL)
		return SIM_UNMAPPED;
	if (r->is_place && (p == NULL || !p->poisoned))
		p = content_find(s, va);
	if (p == NULL)
		return SIM_ABSENT;
	return p->poisoned ? SIM_POISONED : SIM_PRESENT;
}

const void *
sim_peek(struct pmap *pm, uintptr_t va)
{
	const struct sim_page *p = content_find(to_sim(pm), va);

	return p != NULL && !p->poisoned ? p->data : NULL;
}

bool
sim_is_frame(struct pmap *pm, frame_t f)
{
	check_stage(to_sim(pm), "is_frame", f, 1);
	return to_sim(pm)->is_frame[f];
}

/* The disk's side. */

bool
sim_readable(void *pm, unsigned shard)
{
	struct sim_pmap *s = to_sim(pm);
	struct shard *sh;
	bool visible = false;

	check_shard(s, "readable", shard);
	sh = &s->shard[shard];
	for (size_t i = 0; i < sh->n && !visible; i++)
		visible = sh->msg[i].delay == 0;
	message_age(sh);
	return visible;
}

/* The frame that holds `page`, or FRAME_NONE if that is not staging memory. */
static frame_t
frame_of(const struct sim_pmap *s, const void *page)
{
	const uintptr_t at = (uintptr_t)page - (uintptr_t)s->pmap.stage;

	return at < (uintptr_t)s->pmap.nstage << PAGE_SHIFT ? (frame_t)(at >> PAGE_SHIFT)
							    : FRAME_NONE;
}

void
sim_io_pin(void *pm, void *page)
{
	struct sim_pmap *s = to_sim(pm);
	const frame_t f = frame_of(s, page);

	if (f == FRAME_NONE)
		return;
	require(s->is_frame[f], "I/O: %u is a hole, not a frame", f);
	s->io[f]++;
	s->had_io[f] = true;
}

void
sim_io_unpin(void *pm, void *page)
{
	struct sim_pmap *s = to_sim(pm);
	const frame_t f = frame_of(s, page);

	if (f == FRAME_NONE)
		return;
	require(s->io[f] > 0, "I/O: frame %u is not under I/O", f);
	s->io[f]--;
}
