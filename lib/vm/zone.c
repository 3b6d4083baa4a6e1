/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * zone.c: the budget, the arena and its slabs, zones, wired arrays.
 *
 *	arena->base                                           (address space, reserved once)
 *	| slab | slab |  -   | slab |  -   |  never used ...
 *	    |                    ^ decommitted; bit set in arena->free
 *	    v
 *	| struct slab | map: bit set = free | item | item | ... | not carved yet |
 *	                                                        ^ ncarved
 *
 * The life of a slab:
 *
 *	             slab_create           zone_pick: last free item
 *	(address) ---------------> PARTIAL -------------------------> FULL
 *	    ^                       |  ^   <-------------------------
 *	    | slab_destroy:         |  |            zone_free
 *	    | zone_trim, or         |  |
 *	    | there is an   zone_free  | zone_pick: no partial one
 *	    | empty one:    last one   |
 *	    |               comes back |
 *	    |                       v  |
 *	    +---------------------- EMPTY (at most one a zone)
 *
 * The free list of a zone is a bitmap in the slab header, because a constructed item keeps its
 * state while it is free: a list threaded through the items would overwrite it.  An array of
 * indices would do too, but costs 2 bytes an item where the bitmap costs 1 bit, and an anon
 * is 16 bytes.  Items are carved, and constructed, one by one as they are first needed: making
 * a slab costs no loop over 2,000 items.
 *
 * The free list of the arena can not lie in the free slabs either, since they have no memory.
 * It is a bitmap of its own, a wired array that comes with the first slab and goes with the
 * last.  Lowest address first, so that memory in use stays together and the number of VMAs
 * that the kernel keeps for us low.
 *
 * The alternative, per-thread caches of items (illumos magazines): an uncontended mutex costs
 * 15 ns, a fault 4 us at best, and items in magazines are charged but idle.
 */
#include "vm/zone.h"

#include <errno.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define ZONE_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ZONE_ASAN 1
#endif
#endif

#ifdef ZONE_ASAN
#include <sanitizer/asan_interface.h>
#define poison(addr, len) ASAN_POISON_MEMORY_REGION(addr, len)
#define unpoison(addr, len) ASAN_UNPOISON_MEMORY_REGION(addr, len)
#else
#define poison(addr, len) ((void)(addr), (void)(len))
#define unpoison(addr, len) ((void)(addr), (void)(len))
#endif

#define ITEM_ALIGN 16
#define CACHE_LINE 64

/* At the front of each slab.  Guarded by the lock of its zone. */
struct slab {
	struct zone *zone;
	struct slab *next, *prev; /* on zone->partial or zone->full */
	uint16_t ncarved;	  /* items [0, ncarved) were handed out once */
	uint16_t nfree;		  /* of those, how many are free now */
	uint16_t hint;		  /* no bit is set in words before this one */
	uint64_t map[];		  /* a bit an item: carved and free */
};

/*
 * Budget
 */

void
budget_init(struct budget *b, size_t limit)
{
	atomic_init(&b->limit, limit);
	atomic_init(&b->used, 0);
	atomic_init(&b->used_max, 0);
}

void
budget_set_limit(struct budget *b, size_t limit)
{
	atomic_store(&b->limit, limit);
}

void
budget_forget_max(struct budget *b)
{
	atomic_store(&b->used_max, atomic_load(&b->used));
}

bool
budget_charge(struct budget *b, size_t bytes)
{
	size_t used = atomic_load_explicit(&b->used, memory_order_relaxed);
	size_t max, limit;

	do {
		limit = atomic_load_explicit(&b->limit, memory_order_relaxed);
		if (used > limit || bytes > limit - used)
			return false;
	} while (!atomic_compare_exchange_weak(&b->used, &used, used + bytes));
	used += bytes;
	/* It may have become lower meanwhile: who lowered it has seen this charge, or is seen here. */
	if (used > atomic_load(&b->limit)) {
		atomic_fetch_sub(&b->used, bytes);
		return false;
	}

	/* Each level that `used` ever had is offered here, by whoever brought it about. */
	max = atomic_load_explicit(&b->used_max, memory_order_relaxed);
	while (used > max && !atomic_compare_exchange_weak(&b->used_max, &max, used))
		;
	return true;
}

void
budget_uncharge(struct budget *b, size_t bytes)
{
	const size_t used = atomic_fetch_sub(&b->used, bytes);

	assert(used >= bytes);
	(void)used;
}

static void
arena_uncount(struct arena *a, size_t bytes)
{
	const size_t was = atomic_fetch_sub_explicit(&a->committed, bytes, memory_order_relaxed);

	assert(was >= bytes);
	(void)was;
}

/* 0; -EAGAIN: no room in the budget; -ENOMEM: a sub-arena has all that it may. */
static int
arena_charge(struct arena *a, size_t bytes)
{
	size_t used = atomic_load_explicit(&a->committed, memory_order_relaxed);
	int r;

	if (a->parent == NULL) {
		if (!budget_charge(a->budget, bytes))
			return -EAGAIN;
		atomic_fetch_add_explicit(&a->committed, bytes, memory_order_relaxed);
		return 0;
	}
	do {
		const size_t limit = atomic_load_explicit(&a->limit, memory_order_relaxed);

		if (used > limit || bytes > limit - used)
			return -ENOMEM;
	} while (!atomic_compare_exchange_weak(&a->committed, &used, used + bytes));
	r = arena_charge(a->parent, bytes);
	if (r < 0)
		arena_uncount(a, bytes);
	return r;
}

static void
arena_uncharge(struct arena *a, size_t bytes)
{
	for (struct arena *of = a; of != NULL; of = of->parent)
		arena_uncount(of, bytes);
	budget_uncharge(a->budget, bytes);
}

/*
 * Wired arrays
 */

/*
 * array_grow: wired_array_grow() that tells one shortage from the other.
 *
 * => 0.  Nothing has changed if -EAGAIN: no room in the budget; -ENOMEM: past `max`, a sub-arena
 *    has all that it may, or the system has no memory.
 */
static int
array_grow(struct wired_array *w, size_t n)
{
	struct arena *a = w->arena;
	size_t end, step, at = w->committed;
	int r;

	if (n <= w->n)
		return 0;
	if (n > w->max)
		return -ENOMEM;
	end = round_up(n * w->item, PAGE_SIZE);
	r = end > at ? arena_charge(a, end - at) : 0;
	if (r < 0)
		return r;
	for (; at < end; at += step) {
		step = MIN(end - at, SLAB_SIZE);
		r = a->ops->commit(a->ctx, (char *)w->base + at, step);
		if (r < 0)
			goto decommit;
	}
	/* Never shrinking, nothing was written past item w->n: those are still zero. */
	w->committed = end;
	w->n = n;
	return 0;
decommit:
	if (at > w->committed)
		a->ops->decommit(a->ctx, (char *)w->base + w->committed, at - w->committed);
	arena_uncharge(a, end - w->committed);
	return r;
}

/* Give back all memory of `w`, but not its addresses. */
static void
array_empty(struct wired_array *w)
{
	struct arena *a = w->arena;

	if (w->committed != 0) {
		a->ops->decommit(a->ctx, w->base, w->committed);
		arena_uncharge(a, w->committed);
	}
	w->committed = 0;
	w->n = 0;
}

static size_t
array_reserved(const struct wired_array *w)
{
	return round_up(w->item * w->max, PAGE_SIZE);
}

int
wired_array_init(struct wired_array *w, struct arena *a, size_t item, size_t max)
{
	assert(item != 0);
	memset(w, 0, sizeof *w);
	w->arena = a;
	w->item = item;
	w->max = max;
	if (max == 0)
		return 0;
	if (max > (SIZE_MAX - PAGE_SIZE) / item)
		return -ENOMEM;
	w->base = a->ops->reserve(a->ctx, array_reserved(w));
	return w->base == NULL ? -ENOMEM : 0;
}

void
wired_array_fini(struct wired_array *w)
{
	array_empty(w);
	if (w->base != NULL)
		w->arena->ops->release(w->arena->ctx, w->base, array_reserved(w));
	w->base = NULL;
	w->max = 0;
}

int
wired_array_grow(struct wired_array *w, size_t n)
{
	return array_grow(w, n) == 0 ? 0 : -ENOMEM;
}

int
wired_array_grow_wait(struct wired_array *w, size_t n)
{
	struct arena *a = w->arena;
	int r;

	/* What was made free somebody else may have taken. */
	while ((r = array_grow(w, n)) == -EAGAIN && a->ops->reclaim != NULL &&
	       a->ops->reclaim(a->ctx, round_up(n * w->item, PAGE_SIZE) - w->committed) == 0)
		;
	return r == 0 ? 0 : -ENOMEM;
}

/*
 * Arena
 */

int
arena_init(struct arena *a, const struct arena_ops *ops, void *ctx, struct budget *b, size_t max)
{
	int r;

	memset(a, 0, sizeof *a);
	a->ops = ops;
	a->ctx = ctx;
	a->budget = b;
	a->nslabs = max / SLAB_SIZE + (max % SLAB_SIZE != 0);
	if (a->nslabs != 0) {
		a->base = a->nslabs > SIZE_MAX / SLAB_SIZE
				  ? NULL
				  : ops->reserve(ctx, a->nslabs * SLAB_SIZE);
		if (a->base == NULL)
			return -ENOMEM;
		assert((uintptr_t)a->base % SLAB_SIZE == 0);
	}
	r = wired_array_init(&a->free, a, sizeof(uint64_t), round_up(a->nslabs, 64) / 64);
	if (r < 0)
		goto release;
	r = -pthread_mutex_init(&a->lock, NULL);
	if (r < 0)
		goto fini_free;
	return 0;
fini_free:
	wired_array_fini(&a->free);
release:
	if (a->nslabs != 0)
		ops->release(ctx, a->base, a->nslabs * SLAB_SIZE);
	return r;
}

int
arena_sub_init(struct arena *a, struct arena *parent, size_t max)
{
	const int r = arena_init(a, parent->ops, parent->ctx, parent->budget, max);

	a->parent = parent;
	arena_sub_limit(a, max);
	return r;
}

void
arena_sub_limit(struct arena *a, size_t limit)
{
	atomic_store(&a->limit, limit);
}

void
arena_fini(struct arena *a)
{
	assert(a->top == 0); /* else a zone still has slabs */
	wired_array_fini(&a->free);
	assert(atomic_load(&a->committed) == 0); /* else a wired array was forgotten */
	if (a->nslabs != 0)
		a->ops->release(a->ctx, a->base, a->nslabs * SLAB_SIZE);
	pthread_mutex_destroy(&a->lock);
}

size_t
arena_bytes(struct arena *a)
{
	return atomic_load_explicit(&a->committed, memory_order_relaxed);
}

/*
 * arena_take: the address of a slab that nobody uses; no memory is behind it yet.
 *
 * => 0; -EAGAIN: the budget has no room for another page of `free`; -ENOMEM: no addresses
 *    left, or no memory for `free`.
 */
static int
arena_take(struct arena *a, char **slab)
{
	int r = 0;

	pthread_mutex_lock(&a->lock);
	if (a->nfree != 0) {
		uint64_t *words = a->free.base;
		size_t w = a->hint;

		while (words[w] == 0)
			w++;
		*slab = a->base + (w * 64 + (size_t)__builtin_ctzll(words[w])) * SLAB_SIZE;
		words[w] &= words[w] - 1;
		a->hint = w;
		a->nfree--;
	} else if (a->top < a->nslabs) {
		r = array_grow(&a->free, a->top / 64 + 1);
		if (r == 0)
			*slab = a->base + a->top++ * SLAB_SIZE;
	} else {
		r = -ENOMEM;
	}
	pthread_mutex_unlock(&a->lock);
	return r;
}

/* Take the address back; its memory is gone already. */
static void
arena_give(struct arena *a, const char *slab)
{
	const size_t n = (size_t)(slab - a->base) / SLAB_SIZE;
	uint64_t *words = a->free.base;

	pthread_mutex_lock(&a->lock);
	assert(n < a->top && (words[n / 64] >> n % 64 & 1) == 0);
	words[n / 64] |= (uint64_t)1 << n % 64;
	a->hint = MIN(a->hint, n / 64);
	a->nfree++;
	if (a->nfree == a->top) {
		array_empty(&a->free);
		a->top = a->nfree = a->hint = 0;
	}
	pthread_mutex_unlock(&a->lock);
}

/*
 * Slabs
 */

static void *
slab_item(const struct slab *s, unsigned i)
{
	/* Through an integer, since the slab is const to those who only look. */
	return (void *)((uintptr_t)s + s->zone->slab_first + i * s->zone->item_size);
}

/*
 * slab_create: a slab without items, on no list.
 *
 * => No lock is held: committing may take as long as a system call takes.
 * => 0; nothing has changed if -EAGAIN: no room in the budget; -ENOMEM: no addresses, a sub-arena
 *    has all that it may, or the system has no memory.
 */
static int
slab_create(struct zone *z, struct slab **slab)
{
	struct arena *a = z->arena;
	struct slab *s;
	char *addr = NULL;
	int r;

	/* Charged before the address is taken: slab_destroy() gives back the other way round. */
	r = arena_charge(a, SLAB_SIZE);
	if (r < 0)
		return r;
	r = arena_take(a, &addr);
	if (r < 0)
		goto uncharge;
	r = a->ops->commit(a->ctx, addr, SLAB_SIZE);
	if (r < 0)
		goto give;
	s = (struct slab *)(void *)addr;
	s->zone = z;
	poison(addr + z->slab_first, SLAB_SIZE - z->slab_first);
	*slab = s;
	return 0;
give:
	arena_give(a, addr);
uncharge:
	arena_uncharge(a, SLAB_SIZE);
	return r;
}

/* Destruct the items of `s` and give it back.  It is on no list and has none out.  NULL is fine. */
static void
slab_destroy(struct slab *s)
{
	struct zone *z;
	struct arena *a;

	if (s == NULL)
		return;
	z = s->zone;
	a = z->arena;
	assert(s->nfree == s->ncarved);
	unpoison((char *)s + z->slab_first, SLAB_SIZE - z->slab_first);
	if (z->dtor != NULL)
		for (unsigned i = 0; i < s->ncarved; i++)
			z->dtor(slab_item(s, i));
	a->ops->decommit(a->ctx, s, SLAB_SIZE);
	arena_give(a, (const char *)s);
	arena_uncharge(a, SLAB_SIZE);
}

static void
slab_link(struct slab **list, struct slab *s)
{
	s->prev = NULL;
	s->next = *list;
	if (s->next != NULL)
		s->next->prev = s;
	*list = s;
}

static void
slab_unlink(struct slab **list, struct slab *s)
{
	if (s->next != NULL)
		s->next->prev = s->prev;
	if (s->prev != NULL)
		s->prev->next = s->next;
	else
		*list = s->next;
}

static unsigned
slab_out(const struct slab *s)
{
	return (unsigned)s->ncarved - s->nfree;
}

/* Take an item from a slab that has one; *fresh if it was never constructed. */
static void *
slab_take(struct slab *s, bool *fresh)
{
	unsigned w, bit;

	if (s->nfree == 0) {
		assert(s->ncarved < s->zone->slab_items);
		*fresh = true;
		return slab_item(s, s->ncarved++);
	}
	for (w = s->hint; s->map[w] == 0; w++)
		;
	bit = (unsigned)__builtin_ctzll(s->map[w]);
	s->map[w] &= s->map[w] - 1;
	s->hint = (uint16_t)w;
	s->nfree--;
	*fresh = false;
	return slab_item(s, w * 64 + bit);
}

static void
slab_put(struct slab *s, const void *item)
{
	const unsigned off = (unsigned)((const char *)item - (const char *)s) - s->zone->slab_first;
	const unsigned i = off / (unsigned)s->zone->item_size;

	assert(i * s->zone->item_size == off);			       /* the start of an item */
	assert(i < s->ncarved && (s->map[i / 64] >> i % 64 & 1) == 0); /* and not free yet */
	s->map[i / 64] |= (uint64_t)1 << i % 64;
	s->hint = (uint16_t)MIN(s->hint, i / 64);
	s->nfree++;
}

/*
 * Zone
 */

static unsigned
first_item(size_t item_size, unsigned n)
{
	const size_t align = item_size % CACHE_LINE == 0 ? CACHE_LINE : ITEM_ALIGN;

	return (unsigned)round_up(sizeof(struct slab) + round_up(n, 64) / 8, align);
}

void
zone_init(struct zone *z, struct arena *a, const char *name, size_t item_size, void (*ctor)(void *),
	  void (*dtor)(void *))
{
	unsigned n;

	assert(item_size != 0 && item_size <= SLAB_SIZE / 4);
	memset(z, 0, sizeof *z);
	z->arena = a;
	z->name = name;
	z->item_size = round_up(item_size, ITEM_ALIGN);
	z->ctor = ctor;
	z->dtor = dtor;
	pthread_mutex_init(&z->lock, NULL);
	atomic_init(&z->nitems, 0);
	atomic_init(&z->fail_in, 0);

	n = SLAB_SIZE / z->item_size;
	while (first_item(z->item_size, n) + n * z->item_size > SLAB_SIZE)
		n--;
	z->slab_items = n;
	z->slab_first = first_item(z->item_size, n);
}

void
zone_fini(struct zone *z)
{
	assert(atomic_load(&z->nitems) == 0);
	zone_trim(z);
	assert(z->partial == NULL && z->full == NULL && z->nslabs == 0);
	pthread_mutex_destroy(&z->lock);
}

/* zone_pick: an item out of the slabs there are, or NULL.  z->lock is held. */
static void *
zone_pick(struct zone *z, bool *fresh)
{
	struct slab *s = z->partial;
	void *item;

	if (s == NULL) {
		s = z->empty;
		if (s == NULL)
			return NULL;
		z->empty = NULL;
		slab_link(&z->partial, s);
	}
	item = slab_take(s, fresh);
	if (slab_out(s) == z->slab_items) {
		slab_unlink(&z->partial, s);
		slab_link(&z->full, s);
	}
	atomic_fetch_add_explicit(&z->nitems, 1, memory_order_relaxed);
	return item;
}

/*
 * zone_grow: an item out of a new slab.
 *
 * => z->lock is held; it is dropped on the way, so somebody may have freed an item or made
 *    a slab meanwhile: one more look before giving up, and two slabs at once do no harm.
 * => Returns an item, or NULL and *why, as slab_create() said it.
 */
static void *
zone_grow(struct zone *z, bool *fresh, int *why)
{
	struct slab *s;

	pthread_mutex_unlock(&z->lock);
	*why = slab_create(z, &s);
	pthread_mutex_lock(&z->lock);
	if (*why == 0) {
		slab_link(&z->partial, s);
		z->nslabs++;
	}
	return zone_pick(z, fresh);
}

/* True if a test wants this allocation to fail. */
static bool
zone_told_to_fail(struct zone *z)
{
	unsigned n = atomic_load_explicit(&z->fail_in, memory_order_relaxed);

	while (n != 0)
		if (atomic_compare_exchange_weak(&z->fail_in, &n, n - 1))
			return n == 1;
	return false;
}

void *
zone_alloc(struct zone *z, enum zone_wait wait)
{
	struct arena *a = z->arena;
	bool fresh;
	void *item;
	int why;

	if (zone_told_to_fail(z))
		return NULL;
	pthread_mutex_lock(&z->lock);
	item = zone_pick(z, &fresh);
	while (item == NULL) {
		item = zone_grow(z, &fresh, &why);
		if (item != NULL)
			break;
		/* Only a full budget can be helped by paging out. */
		if (wait == ZONE_NOWAIT || why != -EAGAIN || a->ops->reclaim == NULL)
			break;
		pthread_mutex_unlock(&z->lock);
		/* The page more is for the arena's bitmap, should this slab be the one to need it. */
		why = a->ops->reclaim(a->ctx, SLAB_SIZE + PAGE_SIZE);
		pthread_mutex_lock(&z->lock);
		item = zone_pick(z, &fresh);
		if (why < 0)
			break;
	}
	pthread_mutex_unlock(&z->lock);
	if (item == NULL)
		return NULL;
	unpoison(item, z->item_size);
	if (fresh && z->ctor != NULL)
		z->ctor(item);
	return item;
}

void
zone_free(struct zone *z, void *item)
{
	struct slab *s = (struct slab *)((uintptr_t)item & ~(SLAB_SIZE - 1));
	struct slab *surplus = NULL;
	bool was_full;

	if (item == NULL)
		return;
	assert(s->zone == z);
	poison(item, z->item_size);
	pthread_mutex_lock(&z->lock);
	was_full = slab_out(s) == z->slab_items;
	slab_put(s, item);
	atomic_fetch_sub_explicit(&z->nitems, 1, memory_order_relaxed);
	if (was_full) {
		slab_unlink(&z->full, s);
		slab_link(&z->partial, s);
	}
	if (slab_out(s) == 0) {
		slab_unlink(&z->partial, s);
		if (z->empty == NULL) {
			z->empty = s;
		} else {
			surplus = s;
			z->nslabs--;
		}
	}
	pthread_mutex_unlock(&z->lock);
	slab_destroy(surplus);
}

void
zone_trim(struct zone *z)
{
	struct slab *s;

	pthread_mutex_lock(&z->lock);
	s = z->empty;
	z->empty = NULL;
	if (s != NULL)
		z->nslabs--;
	pthread_mutex_unlock(&z->lock);
	slab_destroy(s);
}

size_t
zone_count(struct zone *z)
{
	return atomic_load_explicit(&z->nitems, memory_order_relaxed);
}

#ifndef NDEBUG
static void
slab_check(const struct slab *s, const struct zone *z)
{
	unsigned nfree = 0;

	assert((uintptr_t)s % SLAB_SIZE == 0 && s->zone == z);
	assert(s->nfree <= s->ncarved && s->ncarved <= z->slab_items);
	for (unsigned w = 0; w < (z->slab_items + 63) / 64; w++) {
		assert(w >= s->hint || s->map[w] == 0);
		nfree += (unsigned)__builtin_popcountll(s->map[w]);
	}
	assert(nfree == s->nfree);
	for (unsigned i = s->ncarved; i < z->slab_items; i++)
		assert((s->map[i / 64] >> i % 64 & 1) == 0);
}
#endif

void
zone_check(struct zone *z)
{
#ifndef NDEBUG
	const struct slab *s, *prev;
	size_t nslabs = 0, nitems = 0;

	pthread_mutex_lock(&z->lock);
	for (prev = NULL, s = z->partial; s != NULL; prev = s, s = s->next, nslabs++) {
		slab_check(s, z);
		assert(s->prev == prev);
		assert(slab_out(s) > 0 && slab_out(s) < z->slab_items);
		nitems += slab_out(s);
	}
	for (prev = NULL, s = z->full; s != NULL; prev = s, s = s->next, nslabs++) {
		slab_check(s, z);
		assert(s->prev == prev);
		assert(slab_out(s) == z->slab_items);
		nitems += slab_out(s);
	}
	if (z->empty != NULL) {
		slab_check(z->empty, z);
		assert(slab_out(z->empty) == 0);
		nslabs++;
	}
	assert(nslabs == z->nslabs);
	assert(nitems == atomic_load(&z->nitems));
	pthread_mutex_unlock(&z->lock);
#else
	(void)z;
#endif
}

size_t
zone_find_items(const struct zone *like, const void *slab, uint64_t zone_then, const void *item[],
		size_t max)
{
	const struct slab *const s = slab;
	size_t n = 0;

	if ((uint64_t)(uintptr_t)s->zone != zone_then || s->ncarved > like->slab_items)
		return 0;
	for (unsigned i = 0; i < s->ncarved && n < max; i++) {
		if ((s->map[i / 64] >> i % 64 & 1) == 0)
			item[n++] =
				(const char *)slab + like->slab_first + (size_t)i * like->item_size;
	}
	return n;
}
