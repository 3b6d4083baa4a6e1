/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_zone.c: budget, arena, zones and wired arrays over heap; the system's memory at the end.
 */
#include "vm/zone.h"

#include "assertions.h"
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "heap_arena.h"
#include "sysmem.h"

/* Per suite: a time-out of a single test makes Criterion 2.4 leak. */
TestSuite(arena, .timeout = 60);
TestSuite(budget, .timeout = 60);
TestSuite(sysmem, .timeout = 60);
TestSuite(wired_array, .timeout = 60);
TestSuite(zone, .timeout = 60);

static struct heap_arena heap;
static struct zone zone;

static void
up(void)
{
	heap_arena_init(&heap, 64 << 20, 32 << 20);
}

static void
down(void)
{
	heap_arena_fini(&heap);
}

static size_t
used(void)
{
	return atomic_load(&heap.budget.used);
}

static size_t
used_max(void)
{
	return atomic_load(&heap.budget.used_max);
}

static uint64_t
rnd(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static bool
all_bytes(const void *p, unsigned value, size_t len)
{
	const unsigned char *c = p;

	while (len > 0 && *c == value) {
		c++;
		len--;
	}
	return len == 0;
}

/* pthread_join() that does not wait for ever on a deadlock. */
static void
join(pthread_t t, const char *who)
{
	struct timespec deadline;

	clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += 30;
	cr_assert(zero(int, pthread_timedjoin_np(t, NULL, &deadline)), "%s is stuck", who);
}

static void
start(pthread_t *t, void *(*fn)(void *), void *arg)
{
	cr_assert(zero(int, pthread_create(t, NULL, fn, arg)));
}

/*
 * Budget
 */

Test(budget, a_charge_that_does_not_fit_changes_nothing)
{
	struct budget b;

	budget_init(&b, 10000);
	cr_assert(budget_charge(&b, 6000));
	cr_assert(not(budget_charge(&b, 4001)));
	cr_assert(not(budget_charge(&b, SIZE_MAX)));
	cr_assert(eq(sz, b.used, 6000));
	cr_assert(eq(sz, b.used_max, 6000));
	cr_assert(budget_charge(&b, 4000));
	budget_uncharge(&b, 10000);
	cr_assert(zero(sz, b.used));
	cr_assert(eq(sz, b.used_max, 10000));
}

#define CHARGERS 4
#define CHARGES 20000

static void *
charge_up(void *arg)
{
	struct budget *b = arg;

	for (unsigned i = 0; i < CHARGES; i++)
		if (!budget_charge(b, 3))
			return (void *)"refused";
	return NULL;
}

static void *
charge_down(void *arg)
{
	for (unsigned i = 0; i < CHARGES; i++)
		budget_uncharge(arg, 3);
	return NULL;
}

Test(budget, its_highest_level_is_exact_under_concurrency)
{
	const size_t all = (size_t)CHARGERS * CHARGES * 3;
	pthread_t t[CHARGERS];
	struct budget b;

	/* The limit is what all of them need together: no charge may be refused. */
	budget_init(&b, all);
	for (unsigned i = 0; i < CHARGERS; i++)
		start(&t[i], charge_up, &b);
	for (unsigned i = 0; i < CHARGERS; i++)
		join(t[i], "a charger");
	cr_assert(eq(sz, b.used, all));
	cr_assert(eq(sz, b.used_max, all));
	cr_assert(not(budget_charge(&b, 1)));
	for (unsigned i = 0; i < CHARGERS; i++)
		start(&t[i], charge_down, &b);
	for (unsigned i = 0; i < CHARGERS; i++)
		join(t[i], "an uncharger");
	cr_assert(zero(sz, b.used));
	cr_assert(eq(sz, b.used_max, all));
}

struct crowd {
	struct budget b;
	atomic_size_t sum;
};

/* Each thread holds at most 2 of the 5 units; some charges must be refused on the way. */
static void *
crowd_member(void *arg)
{
	struct crowd *c = arg;

	for (unsigned i = 0; i < CHARGES; i++) {
		if (!budget_charge(&c->b, 2))
			continue;
		if (atomic_fetch_add(&c->sum, 2) + 2 > 5)
			return (void *)"over";
		sched_yield();
		atomic_fetch_sub(&c->sum, 2);
		budget_uncharge(&c->b, 2);
	}
	return NULL;
}

Test(budget, the_limit_holds_under_concurrency)
{
	pthread_t t[CHARGERS];
	struct crowd c = { 0 };
	void *over[CHARGERS];

	budget_init(&c.b, 5);
	for (unsigned i = 0; i < CHARGERS; i++)
		start(&t[i], crowd_member, &c);
	for (unsigned i = 0; i < CHARGERS; i++) {
		cr_assert(zero(int, pthread_join(t[i], &over[i])));
		cr_assert(zero(ptr, over[i]), "more than the limit was held at once");
	}
	cr_assert(zero(sz, c.b.used));
	cr_assert(le(sz, c.b.used_max, 4));
}

/*
 * Zone
 */

Test(zone, items_are_distinct_aligned_and_writable_in_full, .init = up, .fini = down)
{
	static const size_t sizes[] = { 1, 16, 24, 48, 64, 100, 512, 4096, 5000, SLAB_SIZE / 4 };
	enum { N = 300 };
	unsigned char *item[N];

	for (size_t k = 0; k < ARRAY_SIZE(sizes); k++) {
		zone_init(&zone, &heap.arena, "any size", sizes[k], NULL, NULL);
		for (unsigned i = 0; i < N; i++) {
			item[i] = zone_alloc(&zone, ZONE_NOWAIT);
			cr_assert(not(zero(ptr, item[i])));
			cr_assert(zero(sz, (uintptr_t)item[i] % (sizes[k] % 64 == 0 ? 64 : 16)));
			cr_assert(all_bytes(item[i], 0, sizes[k]), "a fresh item is not zero");
			memset(item[i], (int)(i % 251) + 1, sizes[k]);
		}
		zone_check(&zone);
		cr_assert(eq(sz, zone_count(&zone), N));
		for (unsigned i = 0; i < N; i++) {
			cr_assert(all_bytes(item[i], i % 251 + 1, sizes[k]));
			zone_free(&zone, item[i]);
		}
		zone_check(&zone);
		zone_fini(&zone);
		cr_assert(zero(sz, used()));
	}
}

Test(zone, an_item_of_16_bytes_costs_at_most_16_point_2, .init = up, .fini = down)
{
	static void *item[2100 * 64];
	size_t n = 0;

	zone_init(&zone, &heap.arena, "anon", 16, NULL, NULL);
	while (zone.nslabs < 64 || zone.partial != NULL) {
		item[n] = zone_alloc(&zone, ZONE_NOWAIT);
		cr_assert(not(zero(ptr, item[n])));
		n++;
	}
	cr_assert(ge(sz, n * 16 * 100, 64 * SLAB_SIZE * 99), "payload under 99 %%");
	cr_assert(le(sz, arena_bytes(&heap.arena) * 10, n * 162));
	while (n > 0)
		zone_free(&zone, item[--n]);
	zone_fini(&zone);
}

Test(zone, freeing_null_does_nothing, .init = up, .fini = down)
{
	zone_init(&zone, &heap.arena, "none", 16, NULL, NULL);
	zone_free(&zone, NULL);
	cr_assert(zero(sz, zone_count(&zone)));
	zone_fini(&zone);
}

static unsigned nctor, ndtor;

struct built {
	pthread_mutex_t lock;
	unsigned magic;
	unsigned uses;
	char rest[900];
};

static void
built_ctor(void *item)
{
	struct built *b = item;

	cr_assert(all_bytes(item, 0, sizeof *b), "not zero before the constructor");
	pthread_mutex_init(&b->lock, NULL);
	b->magic = 0xb0117;
	nctor++;
}

static void
built_dtor(void *item)
{
	struct built *b = item;

	cr_assert(eq(uint, b->magic, 0xb0117));
	pthread_mutex_destroy(&b->lock);
	b->magic = 0;
	ndtor++;
}

Test(zone, a_constructor_runs_once_and_a_free_item_keeps_its_state, .init = up, .fini = down)
{
	struct built *b, *first;

	zone_init(&zone, &heap.arena, "built", sizeof *b, built_ctor, built_dtor);
	first = zone_alloc(&zone, ZONE_NOWAIT);
	for (unsigned i = 0; i < 1000; i++) {
		b = zone_alloc(&zone, ZONE_NOWAIT);
		cr_assert(eq(uint, b->magic, 0xb0117));
		cr_assert(eq(uint, b->uses, i), "another item, or rebuilt");
		b->uses++;
		cr_assert(zero(int, pthread_mutex_lock(&b->lock)));
		pthread_mutex_unlock(&b->lock);
		zone_free(&zone, b);
	}
	cr_assert(eq(uint, nctor, 2));
	cr_assert(zero(uint, ndtor));
	zone_free(&zone, first);
	zone_fini(&zone);
	cr_assert(eq(uint, ndtor, 2), "each constructed item is destructed, and no other");
}

Test(zone, only_items_handed_out_are_constructed, .init = up, .fini = down)
{
	enum { N = 100 };
	void *item[N];

	zone_init(&zone, &heap.arena, "built", sizeof(struct built), built_ctor, built_dtor);
	for (unsigned round = 0; round < 3; round++) {
		nctor = ndtor = 0;
		for (unsigned i = 0; i < N; i++)
			item[i] = zone_alloc(&zone, ZONE_NOWAIT);
		for (unsigned i = 0; i < N; i++)
			zone_free(&zone, item[i]);
		zone_trim(&zone);
		cr_assert(eq(uint, nctor, N));
		cr_assert(eq(uint, ndtor, N));
	}
	zone_fini(&zone);
}

Test(zone, a_freed_slab_goes_back_to_the_arena, .init = up, .fini = down)
{
	enum { N = 3 * 40 }; /* more than 3 slabs of 900 bytes an item */
	void *item[N];

	zone_init(&zone, &heap.arena, "big", 900, NULL, NULL);
	for (unsigned i = 0; i < N; i++)
		item[i] = zone_alloc(&zone, ZONE_NOWAIT);
	cr_assert(eq(sz, zone.nslabs, 4));
	cr_assert(eq(sz, used(), 4 * SLAB_SIZE + PAGE_SIZE));
	cr_assert(eq(sz, heap.committed, used()));
	cr_assert(eq(sz, arena_bytes(&heap.arena), used()));
	for (unsigned i = 0; i < N; i++)
		zone_free(&zone, item[i]);

	/* One empty slab is kept, with the page of the arena's bitmap. */
	cr_assert(eq(sz, zone.nslabs, 1));
	cr_assert(eq(sz, used(), SLAB_SIZE + PAGE_SIZE));
	cr_assert(eq(sz, heap.committed, used()));
	zone_check(&zone);
	zone_trim(&zone);
	cr_assert(zero(sz, zone.nslabs));
	cr_assert(zero(sz, used()));
	cr_assert(zero(sz, heap.committed));
	cr_assert(eq(sz, used_max(), 4 * SLAB_SIZE + PAGE_SIZE));
	zone_trim(&zone);
	zone_fini(&zone);
}

Test(zone, an_item_that_goes_to_and_fro_commits_nothing, .init = up, .fini = down)
{
	unsigned long before;

	zone_init(&zone, &heap.arena, "alone", 64, NULL, NULL);
	zone_free(&zone, zone_alloc(&zone, ZONE_NOWAIT));
	before = heap.ncommits;
	for (unsigned i = 0; i < 100; i++)
		zone_free(&zone, zone_alloc(&zone, ZONE_NOWAIT));
	cr_assert(eq(ulong, heap.ncommits, before));
	zone_fini(&zone);
}

Test(zone, slabs_are_reused_lowest_address_first, .init = up, .fini = down)
{
	enum { N = 200 }; /* slabs of 3 items */
	char *item[3 * N];

	zone_init(&zone, &heap.arena, "large", SLAB_SIZE / 4, NULL, NULL);
	for (unsigned i = 0; i < 3 * N; i++)
		item[i] = zone_alloc(&zone, ZONE_NOWAIT);
	cr_assert(eq(sz, heap.arena.top, N));
	/* Free the slabs 150, 70 and 7: the first of them stays with the zone as its empty one. */
	for (unsigned i = 0; i < 3; i++) {
		zone_free(&zone, item[3 * 150 + i]);
		zone_free(&zone, item[3 * 70 + i]);
		zone_free(&zone, item[3 * 7 + i]);
	}
	zone_trim(&zone);
	cr_assert(eq(sz, heap.arena.nfree, 3));
	for (unsigned i = 0; i < 3; i++)
		item[3 * 7 + i] = zone_alloc(&zone, ZONE_NOWAIT);
	cr_assert(eq(sz, (size_t)(item[3 * 7] - heap.arena.base) / SLAB_SIZE, 7));
	item[3 * 70] = zone_alloc(&zone, ZONE_NOWAIT);
	cr_assert(eq(sz, (size_t)(item[3 * 70] - heap.arena.base) / SLAB_SIZE, 70));
	/* A search that had got as far as 70 goes back for 7. */
	for (unsigned i = 0; i < 3; i++)
		zone_free(&zone, item[3 * 7 + i]);
	zone_trim(&zone);
	for (unsigned i = 1; i < 3; i++)
		item[3 * 70 + i] = zone_alloc(&zone, ZONE_NOWAIT);
	for (unsigned i = 0; i < 3; i++)
		item[3 * 7 + i] = zone_alloc(&zone, ZONE_NOWAIT);
	cr_assert(eq(sz, (size_t)(item[3 * 7] - heap.arena.base) / SLAB_SIZE, 7));
	cr_assert(eq(sz, heap.arena.top, N));
	zone_check(&zone);
	for (unsigned i = 0; i < 3 * N; i++)
		if (i / 3 != 150)
			zone_free(&zone, item[i]);
	zone_fini(&zone);
	cr_assert(zero(sz, heap.arena.top));
}

Test(zone, a_full_budget_means_null_and_nothing_changes)
{
	enum { N = 2 * 3 };
	void *item[N];

	heap_arena_init(&heap, 2 * SLAB_SIZE + PAGE_SIZE, 32 << 20);
	zone_init(&zone, &heap.arena, "large", SLAB_SIZE / 4, NULL, NULL);
	for (unsigned i = 0; i < N; i++)
		cr_assert(not(zero(ptr, item[i] = zone_alloc(&zone, ZONE_NOWAIT))));
	cr_assert(eq(sz, used(), heap.budget.limit));
	for (unsigned i = 0; i < 3; i++) {
		cr_assert(zero(ptr, zone_alloc(&zone, ZONE_NOWAIT)));
		cr_assert(eq(sz, used(), heap.budget.limit));
		cr_assert(eq(sz, heap.committed, used()));
		cr_assert(eq(sz, zone_count(&zone), N));
		zone_check(&zone);
	}
	zone_free(&zone, item[4]);
	cr_assert(eq(ptr, zone_alloc(&zone, ZONE_NOWAIT), item[4]));
	for (unsigned i = 0; i < N; i++)
		zone_free(&zone, item[i]);
	zone_fini(&zone);
	down();
}

Test(zone, a_budget_without_room_for_the_first_slab_and_its_bitmap_stays_untouched)
{
	heap_arena_init(&heap, SLAB_SIZE + PAGE_SIZE - 1, 32 << 20);
	zone_init(&zone, &heap.arena, "none", 16, NULL, NULL);
	cr_assert(zero(ptr, zone_alloc(&zone, ZONE_NOWAIT)));
	cr_assert(zero(ptr, zone_alloc(&zone, ZONE_WAIT)));
	cr_assert(zero(sz, used()));
	zone_fini(&zone);
	down();
}

Test(zone, an_arena_out_of_addresses_means_null_without_a_reclaim)
{
	void *item[3];

	heap_arena_init(&heap, 64 << 20, SLAB_SIZE);
	zone_init(&zone, &heap.arena, "large", SLAB_SIZE / 4, NULL, NULL);
	for (unsigned i = 0; i < 3; i++)
		item[i] = zone_alloc(&zone, ZONE_NOWAIT);
	cr_assert(zero(ptr, zone_alloc(&zone, ZONE_NOWAIT)));
	cr_assert(zero(ptr, zone_alloc(&zone, ZONE_WAIT)));
	for (unsigned i = 0; i < 3; i++)
		zone_free(&zone, item[i]);
	zone_fini(&zone);
	down();
}

struct reclaimer {
	size_t ballast; /* budget that reclaim can give back */
	size_t asked;
	unsigned calls;
	unsigned vain; /* so many calls give nothing, but say there is hope */
};

static int
reclaim(void *ctx, size_t bytes)
{
	struct reclaimer *r = ctx;

	/* Both take the locks that must not be held here. */
	zone_check(&zone);
	zone_trim(&zone);

	r->calls++;
	r->asked = bytes;
	if (r->vain > 0) {
		r->vain--;
		return 0;
	}
	if (r->ballast == 0)
		return -ENOMEM;
	budget_uncharge(&heap.budget, r->ballast);
	r->ballast = 0;
	return 0;
}

Test(zone, a_budget_above_a_new_limit_grants_nothing_until_it_is_below)
{
	struct budget b;

	budget_init(&b, 10 * PAGE_SIZE);
	cr_assert(budget_charge(&b, 8 * PAGE_SIZE));
	budget_set_limit(&b, 6 * PAGE_SIZE);
	cr_assert(not(budget_charge(&b, 1)));
	budget_uncharge(&b, 2 * PAGE_SIZE);
	cr_assert(not(budget_charge(&b, 1)));
	budget_uncharge(&b, PAGE_SIZE);
	cr_assert(budget_charge(&b, PAGE_SIZE));
	cr_assert(not(budget_charge(&b, 1)));
	cr_assert(eq(sz, atomic_load(&b.used_max), 8 * PAGE_SIZE));
	budget_forget_max(&b);
	cr_assert(eq(sz, atomic_load(&b.used_max), 6 * PAGE_SIZE));
	budget_set_limit(&b, 20 * PAGE_SIZE);
	cr_assert(budget_charge(&b, 14 * PAGE_SIZE));
	budget_uncharge(&b, 20 * PAGE_SIZE);
}

Test(zone, a_sub_arena_has_no_more_than_its_limit_and_its_parent_counts_it)
{
	struct arena sub, subsub;
	struct zone z, inner, other;
	struct wired_array w;
	void *item[8];
	unsigned n = 0;

	heap_arena_init(&heap, 64 << 20, 32 << 20);
	cr_assert(eq(int, arena_sub_init(&sub, &heap.arena, 3 * SLAB_SIZE), 0));
	cr_assert(eq(int, arena_sub_init(&subsub, &sub, SLAB_SIZE + PAGE_SIZE), 0));
	zone_init(&z, &sub, "sub", SLAB_SIZE / 4, NULL, NULL);
	zone_init(&inner, &subsub, "inner", SLAB_SIZE / 4, NULL, NULL);
	zone_init(&other, &heap.arena, "other", 64, NULL, NULL);

	/* Three items a slab; a page is the sub-arena's own bitmap, so it has two slabs of the three. */
	while ((item[n] = zone_alloc(&z, ZONE_WAIT)) != NULL)
		n++;
	cr_assert(eq(uint, n, 6));
	cr_assert(eq(sz, arena_bytes(&sub), 2 * SLAB_SIZE + PAGE_SIZE));
	cr_assert(eq(sz, arena_bytes(&heap.arena), arena_bytes(&sub)));
	cr_assert(eq(sz, atomic_load(&heap.budget.used), arena_bytes(&sub)));
	/* The parent, and who is beside it, have room. */
	item[6] = zone_alloc(&other, ZONE_NOWAIT);
	cr_assert(ne(ptr, item[6], NULL));
	cr_assert(eq(int, wired_array_init(&w, &sub, 1, 8 * PAGE_SIZE), 0));
	cr_assert(eq(int, wired_array_grow(&w, 8 * PAGE_SIZE), -ENOMEM));
	cr_assert(eq(int, wired_array_grow(&w, 7 * PAGE_SIZE), 0));

	/* A sub-arena's sub-arena has what both allow. */
	cr_assert(eq(ptr, zone_alloc(&inner, ZONE_NOWAIT), NULL));
	cr_assert(eq(sz, arena_bytes(&subsub), 0));
	wired_array_fini(&w);
	for (unsigned i = 3; i < 6; i++)
		zone_free(&z, item[i]);
	zone_trim(&z);
	item[3] = zone_alloc(&inner, ZONE_NOWAIT);
	cr_assert(ne(ptr, item[3], NULL));
	cr_assert(eq(sz, arena_bytes(&subsub), SLAB_SIZE + PAGE_SIZE));
	cr_assert(eq(sz, arena_bytes(&sub), 2 * SLAB_SIZE + 2 * PAGE_SIZE));
	zone_free(&inner, item[3]);
	zone_free(&other, item[6]);
	for (unsigned i = 0; i < 3; i++)
		zone_free(&z, item[i]);
	zone_fini(&inner);
	zone_fini(&z);
	zone_fini(&other);
	arena_fini(&subsub);
	arena_fini(&sub);
	cr_assert(eq(sz, arena_bytes(&heap.arena), 0));
	heap_arena_fini(&heap);
}

Test(zone, a_waiting_allocation_reclaims_and_tries_again)
{
	struct reclaimer r = { .ballast = SLAB_SIZE + PAGE_SIZE, .vain = 3 };
	void *item;

	heap_arena_init(&heap, SLAB_SIZE + PAGE_SIZE, 32 << 20);
	heap.reclaim = reclaim;
	heap.reclaim_ctx = &r;
	cr_assert(budget_charge(&heap.budget, r.ballast));
	zone_init(&zone, &heap.arena, "patient", 16, NULL, NULL);

	cr_assert(zero(ptr, zone_alloc(&zone, ZONE_NOWAIT)));
	cr_assert(zero(uint, r.calls), "ZONE_NOWAIT reclaimed");
	item = zone_alloc(&zone, ZONE_WAIT);
	cr_assert(not(zero(ptr, item)));
	cr_assert(eq(uint, r.calls, 4));
	cr_assert(ge(sz, r.asked, SLAB_SIZE));
	zone_free(&zone, item);
	zone_fini(&zone);
	down();
}

Test(zone, a_waiting_allocation_gives_up_when_reclaim_sees_no_hope)
{
	struct reclaimer r = { .vain = 2 };

	heap_arena_init(&heap, SLAB_SIZE, 32 << 20);
	heap.reclaim = reclaim;
	heap.reclaim_ctx = &r;
	zone_init(&zone, &heap.arena, "patient", 16, NULL, NULL);
	cr_assert(zero(ptr, zone_alloc(&zone, ZONE_WAIT)));
	cr_assert(eq(uint, r.calls, 3));
	cr_assert(zero(sz, used()));
	zone_fini(&zone);
	down();
}

Test(zone, a_failing_commit_is_not_reclaimed_for_ever)
{
	struct reclaimer r = { .vain = UINT32_MAX };

	up();
	heap.reclaim = reclaim;
	heap.reclaim_ctx = &r;
	zone_init(&zone, &heap.arena, "patient", 16, NULL, NULL);
	heap_arena_fail_commit(&heap, 1);
	cr_assert(zero(ptr, zone_alloc(&zone, ZONE_WAIT)));
	cr_assert(heap_arena_disarm(&heap));
	cr_assert(zero(uint, r.calls), "paging out does not help a system without memory");
	zone_fini(&zone);
	down();
}

static int
reclaim_by_freeing_an_item(void *ctx, size_t bytes)
{
	void **item = ctx;

	(void)bytes;
	if (*item == NULL)
		return -ENOMEM;
	zone_free(&zone, *item);
	*item = NULL;
	return 0;
}

Test(zone, an_item_freed_during_reclaim_is_enough)
{
	void *item[3], *spare, *got;

	heap_arena_init(&heap, SLAB_SIZE + PAGE_SIZE, 32 << 20);
	zone_init(&zone, &heap.arena, "large", SLAB_SIZE / 4, NULL, NULL);
	for (unsigned i = 0; i < 3; i++)
		item[i] = zone_alloc(&zone, ZONE_NOWAIT);
	spare = item[1];
	heap.reclaim = reclaim_by_freeing_an_item;
	heap.reclaim_ctx = &item[1];
	got = zone_alloc(&zone, ZONE_WAIT);
	cr_assert(eq(ptr, got, spare));
	cr_assert(zero(ptr, zone_alloc(&zone, ZONE_WAIT)));
	zone_free(&zone, got);
	zone_free(&zone, item[0]);
	zone_free(&zone, item[2]);
	zone_fini(&zone);
	down();
}

Test(zone, the_nth_allocation_fails_once_when_told_so, .init = up, .fini = down)
{
	void *item[5];

	zone_init(&zone, &heap.arena, "told", 16, NULL, NULL);
	atomic_store(&zone.fail_in, 3);
	for (unsigned i = 0; i < 5; i++) {
		item[i] = zone_alloc(&zone, i % 2 ? ZONE_WAIT : ZONE_NOWAIT);
		cr_assert(eq(int, item[i] == NULL, i == 2));
	}
	for (unsigned i = 0; i < 5; i++)
		zone_free(&zone, item[i]);
	zone_fini(&zone);
}

/*
 * Fail the 1st, 2nd, 3rd ... commit in turn, until there is none left to fail: two zones and
 * an array, several slabs and steps each.
 */
Test(zone, nothing_leaks_and_all_heals_whichever_commit_fails)
{
	enum { N = 30 };
	struct wired_array array;
	struct zone other;
	void *small[N], *large[N];
	unsigned nth = 0, nulls;
	size_t before;
	bool fired;
	int r;

	do {
		up();
		zone_init(&zone, &heap.arena, "small", 3000, NULL, NULL);
		zone_init(&other, &heap.arena, "large", SLAB_SIZE / 4, NULL, NULL);
		cr_assert(zero(int, wired_array_init(&array, &heap.arena, 24, 100000)));
		nulls = 0;
		heap_arena_fail_commit(&heap, ++nth);
		for (unsigned i = 0; i < N; i++) {
			before = used();
			small[i] = zone_alloc(&zone, ZONE_NOWAIT);
			nulls += small[i] == NULL;
			cr_assert(small[i] != NULL || used() == before);
			before = used();
			large[i] = zone_alloc(&other, ZONE_NOWAIT);
			nulls += large[i] == NULL;
			cr_assert(large[i] != NULL || used() == before);
		}
		before = used();
		r = wired_array_grow(&array, 10000);
		if (r < 0) {
			cr_assert(eq(int, r, -ENOMEM));
			cr_assert(eq(sz, used(), before));
			cr_assert(zero(sz, array.n));
			nulls++;
			cr_assert(zero(int, wired_array_grow(&array, 10000)), "did not heal");
		}
		fired = heap_arena_disarm(&heap);
		cr_assert(eq(uint, nulls, fired), "commit %u", nth);
		zone_check(&zone);
		zone_check(&other);
		cr_assert(eq(sz, heap.committed, used()));
		cr_assert(eq(sz, arena_bytes(&heap.arena), used()));
		for (unsigned i = 0; i < N; i++) {
			zone_free(&zone, small[i]);
			zone_free(&other, large[i]);
		}
		zone_fini(&zone);
		zone_fini(&other);
		wired_array_fini(&array);
		down();
	} while (fired);
	/* 1 page of bitmap, 3 and 10 slabs, and 8 steps of the array. */
	cr_assert(eq(uint, nth, 1 + 3 + 10 + 8 + 1));
}

/*
 * Threads allocate and free; half of the items are freed by another thread, which gets them
 * through the exchange.
 */
#define STRESS_THREADS 4
#define STRESS_HELD 400
#define STRESS_NS 500000000u

struct stress_item {
	uint64_t seal; /* of the address: nobody else writes while it is out */
	uint64_t fill[20];
};

static _Atomic(struct stress_item *) exchange[16];
static atomic_uint stress_nulls;
static atomic_size_t stress_ops;

static void
seal(struct stress_item *it, uint64_t tag)
{
	it->seal = (uintptr_t)it ^ tag;
	for (unsigned i = 0; i < ARRAY_SIZE(it->fill); i++)
		it->fill[i] = tag + i;
}

static void
unseal(struct stress_item *it)
{
	const uint64_t tag = it->seal ^ (uintptr_t)it;

	for (unsigned i = 0; i < ARRAY_SIZE(it->fill); i++) {
		if (it->fill[i] != tag + i) {
			fprintf(stderr, "item %p was written while it was out\n", (void *)it);
			abort();
		}
	}
	zone_free(&zone, it);
}

static void *
stress(void *arg)
{
	struct stress_item *held[STRESS_HELD] = { NULL };
	uint64_t seed = (uintptr_t)arg * 0x9e3779b97f4a7c15u;
	const uint64_t end = now_ns() + STRESS_NS;
	struct stress_item *it;
	unsigned i;

	while (now_ns() < end) {
		for (unsigned n = 0; n < 100; n++) {
			i = rnd(&seed) % STRESS_HELD;
			it = held[i];
			held[i] = NULL;
			if (it == NULL) {
				it = zone_alloc(&zone, ZONE_NOWAIT);
				if (it == NULL) {
					atomic_fetch_add(&stress_nulls, 1);
					continue;
				}
				seal(it, rnd(&seed));
				held[i] = it;
			} else if (rnd(&seed) % 2) {
				it = atomic_exchange(&exchange[rnd(&seed) % 16], it);
				if (it != NULL)
					unseal(it);
			} else {
				unseal(it);
			}
			/* Now and then all at once, so that slabs come and go. */
			if (rnd(&seed) % 2000 == 0) {
				for (i = 0; i < STRESS_HELD; i++) {
					if (held[i] != NULL)
						unseal(held[i]);
					held[i] = NULL;
				}
				zone_trim(&zone);
			}
		}
		atomic_fetch_add(&stress_ops, 100);
		zone_check(&zone);
		if (arena_bytes(&heap.arena) > heap.budget.limit)
			abort();
	}
	for (i = 0; i < STRESS_HELD; i++)
		if (held[i] != NULL)
			unseal(held[i]);
	return NULL;
}

Test(zone, many_threads_never_share_an_item_and_the_budget_holds)
{
	pthread_t t[STRESS_THREADS];

	/* Room for about half of what the threads would like to hold. */
	heap_arena_init(&heap, 3 * SLAB_SIZE + PAGE_SIZE, 32 << 20);
	zone_init(&zone, &heap.arena, "stress", sizeof(struct stress_item), NULL, NULL);
	for (uintptr_t i = 0; i < STRESS_THREADS; i++)
		start(&t[i], stress, (void *)(i + 1));
	for (unsigned i = 0; i < STRESS_THREADS; i++)
		join(t[i], "a stress thread");
	for (unsigned i = 0; i < ARRAY_SIZE(exchange); i++)
		if (exchange[i] != NULL)
			unseal(exchange[i]);
	zone_check(&zone);
	cr_assert(zero(sz, zone_count(&zone)));
	cr_assert(le(sz, used_max(), heap.budget.limit));
	cr_assert(gt(sz, atomic_load(&stress_ops), 1000u));
	cr_assert(gt(uint, atomic_load(&stress_nulls), 0), "the budget was never full");
	zone_fini(&zone);
	down();
}

/* All threads at once on a zone without a slab, and a budget for one slab only. */
static void *
stampede(void *arg)
{
	void **got = arg;

	*got = zone_alloc(&zone, ZONE_NOWAIT);
	return NULL;
}

Test(zone, threads_that_find_it_empty_together_make_no_more_slabs_than_fit)
{
	for (unsigned round = 0; round < 200; round++) {
		void *got[STRESS_THREADS] = { NULL };
		pthread_t t[STRESS_THREADS];
		unsigned n = 0;

		heap_arena_init(&heap, SLAB_SIZE + PAGE_SIZE, 32 << 20);
		zone_init(&zone, &heap.arena, "stampede", 64, NULL, NULL);
		for (unsigned i = 0; i < STRESS_THREADS; i++)
			start(&t[i], stampede, &got[i]);
		for (unsigned i = 0; i < STRESS_THREADS; i++)
			join(t[i], "a stampeding thread");
		for (unsigned i = 0; i < STRESS_THREADS; i++)
			n += got[i] != NULL;
		/* Whoever lost the race for the budget before the slab was linked has none. */
		cr_assert(ge(uint, n, 1));
		cr_assert(eq(sz, zone_count(&zone), n));
		cr_assert(eq(sz, used(), SLAB_SIZE + PAGE_SIZE));
		for (unsigned i = 0; i < STRESS_THREADS; i++)
			zone_free(&zone, got[i]);
		zone_fini(&zone);
		down();
	}
}

#ifndef NDEBUG
Test(zone, an_item_never_freed_is_caught, .init = up, .signal = SIGABRT)
{
	zone_init(&zone, &heap.arena, "leaky", 16, NULL, NULL);
	zone_alloc(&zone, ZONE_NOWAIT);
	zone_fini(&zone);
}

Test(zone, an_item_freed_twice_is_caught, .init = up, .signal = SIGABRT)
{
	void *item[2];

	zone_init(&zone, &heap.arena, "twice", 16, NULL, NULL);
	item[0] = zone_alloc(&zone, ZONE_NOWAIT);
	item[1] = zone_alloc(&zone, ZONE_NOWAIT);
	zone_free(&zone, item[0]);
	zone_free(&zone, item[0]);
}

Test(zone, an_item_freed_to_another_zone_is_caught, .init = up, .signal = SIGABRT)
{
	struct zone other;

	zone_init(&zone, &heap.arena, "mine", 16, NULL, NULL);
	zone_init(&other, &heap.arena, "other", 16, NULL, NULL);
	zone_free(&other, zone_alloc(&zone, ZONE_NOWAIT));
}

Test(zone, a_pointer_into_an_item_is_not_the_item, .init = up, .signal = SIGABRT)
{
	zone_init(&zone, &heap.arena, "inner", 64, NULL, NULL);
	zone_free(&zone, (char *)zone_alloc(&zone, ZONE_NOWAIT) + 16);
}

Test(arena, a_zone_that_still_has_a_slab_is_caught, .init = up, .signal = SIGABRT)
{
	zone_init(&zone, &heap.arena, "left", 16, NULL, NULL);
	zone_free(&zone, zone_alloc(&zone, ZONE_NOWAIT));
	arena_fini(&heap.arena);
}

Test(arena, a_wired_array_left_behind_is_caught, .init = up, .signal = SIGABRT)
{
	static struct wired_array array;

	cr_assert(zero(int, wired_array_init(&array, &heap.arena, 8, 8)));
	cr_assert(zero(int, wired_array_grow(&array, 1)));
	arena_fini(&heap.arena);
}
#endif

/*
 * Wired arrays
 */

Test(wired_array, it_grows_in_place_with_zeros_and_keeps_what_was_there, .init = up, .fini = down)
{
	enum { MAX = 50000 };
	struct wired_array a;
	void *base;
	size_t done = 0;

	cr_assert(zero(int, wired_array_init(&a, &heap.arena, sizeof(uint64_t), MAX)));
	cr_assert(zero(sz, used()), "an empty array costs no memory");
	base = a.base;
	for (size_t n = 1; n <= MAX; n = n * 3 + 1) {
		uint64_t *v = a.base;

		cr_assert(zero(int, wired_array_grow(&a, n)));
		cr_assert(eq(ptr, a.base, base));
		cr_assert(eq(sz, a.n, n));
		for (size_t i = 0; i < done; i++)
			cr_assert(eq(u64, v[i], i + 1));
		for (; done < n; done++) {
			cr_assert(zero(u64, v[done]));
			v[done] = done + 1;
		}
		cr_assert(eq(sz, a.committed, round_up(n * 8, PAGE_SIZE)));
		cr_assert(eq(sz, used(), a.committed));
		cr_assert(eq(sz, arena_bytes(&heap.arena), a.committed));
	}
	/* Never shrinks. */
	cr_assert(zero(int, wired_array_grow(&a, 1)));
	cr_assert(eq(sz, a.n, done));
	wired_array_fini(&a);
	cr_assert(zero(sz, used()));
}

Test(wired_array, growing_past_its_maximum_is_refused, .init = up, .fini = down)
{
	struct wired_array a;

	cr_assert(zero(int, wired_array_init(&a, &heap.arena, 8, 100)));
	cr_assert(eq(int, wired_array_grow(&a, 101), -ENOMEM));
	cr_assert(zero(sz, used()));
	cr_assert(zero(int, wired_array_grow(&a, 100)));
	wired_array_fini(&a);
}

Test(wired_array, a_size_that_overflows_is_refused, .init = up, .fini = down)
{
	struct wired_array a;

	cr_assert(eq(int, wired_array_init(&a, &heap.arena, 16, SIZE_MAX / 8), -ENOMEM));
	wired_array_fini(&a);
}

Test(wired_array, an_array_for_nothing_is_fine, .init = up, .fini = down)
{
	struct wired_array a;

	cr_assert(zero(int, wired_array_init(&a, &heap.arena, 16, 0)));
	cr_assert(zero(int, wired_array_grow(&a, 0)));
	cr_assert(eq(int, wired_array_grow(&a, 1), -ENOMEM));
	wired_array_fini(&a);
}

Test(wired_array, a_full_budget_changes_nothing)
{
	struct wired_array a;

	heap_arena_init(&heap, 10 * PAGE_SIZE, 0);
	cr_assert(zero(int, wired_array_init(&a, &heap.arena, PAGE_SIZE, 100)));
	cr_assert(zero(int, wired_array_grow(&a, 4)));
	memset(a.base, 0x5a, 4 * PAGE_SIZE);
	cr_assert(eq(int, wired_array_grow(&a, 11), -ENOMEM));
	cr_assert(eq(sz, a.n, 4));
	cr_assert(eq(sz, used(), 4 * PAGE_SIZE));
	cr_assert(eq(sz, heap.committed, 4 * PAGE_SIZE));
	cr_assert(all_bytes(a.base, 0x5a, 4 * PAGE_SIZE));
	cr_assert(zero(int, wired_array_grow(&a, 10)));
	cr_assert(all_bytes((char *)a.base + 4 * PAGE_SIZE, 0, 6 * PAGE_SIZE));
	wired_array_fini(&a);
	down();
}

Test(wired_array, it_commits_in_steps_of_at_most_a_slab, .init = up, .fini = down)
{
	struct wired_array a;

	cr_assert(zero(int, wired_array_init(&a, &heap.arena, 1, 10 * SLAB_SIZE)));
	cr_assert(zero(int, wired_array_grow(&a, 5 * SLAB_SIZE + 1)));
	cr_assert(eq(ulong, heap.ncommits, 6));
	cr_assert(eq(sz, heap.committed, 5 * SLAB_SIZE + PAGE_SIZE));
	wired_array_fini(&a);
}

/*
 * The system's memory
 */

/* True if the kernel can read this byte: neither unmapped nor protected. */
static bool
readable(const void *addr)
{
	int fd[2];
	long r;

	cr_assert(zero(int, pipe(fd)));
	/* Not write(), whose wrapper a sanitizer would make look at the byte first. */
	r = syscall(SYS_write, fd[1], addr, 1);
	close(fd[0]);
	close(fd[1]);
	return r == 1;
}

static size_t
resident(void *addr, size_t len)
{
	unsigned char vec[64];
	size_t n = 0;

	cr_assert(le(sz, len / PAGE_SIZE, sizeof vec));
	cr_assert(zero(int, mincore(addr, len, vec)));
	for (size_t i = 0; i < len / PAGE_SIZE; i++)
		n += vec[i] & 1;
	return n;
}

/* What we have locked, as the kernel counts it against RLIMIT_MEMLOCK. */
static unsigned long
locked_kib(void)
{
	FILE *f = fopen("/proc/self/status", "r");
	unsigned long kib = ULONG_MAX;
	char line[256];

	cr_assert(not(zero(ptr, f)));
	while (fgets(line, sizeof line, f) != NULL)
		if (sscanf(line, "VmLck: %lu kB", &kib) == 1)
			break;
	fclose(f);
	cr_assert(lt(ulong, kib, ULONG_MAX), "no VmLck line");
	return kib;
}

static void
memory_comes_and_goes(void)
{
	const unsigned long locked = locked_kib();
	const size_t len = 4 * SLAB_SIZE;
	unsigned char *p = sysmem_ops.reserve(NULL, len);
	unsigned char *q;
	void *squatter;

	cr_assert(not(zero(ptr, p)));
	cr_assert(zero(sz, (uintptr_t)p % SLAB_SIZE));
	cr_assert(not(readable(p)));
	q = p + SLAB_SIZE;
	for (unsigned round = 0; round < 3; round++) {
		cr_assert(zero(int, sysmem_ops.commit(NULL, q, SLAB_SIZE)));
		cr_assert(eq(sz, resident(q, SLAB_SIZE), SLAB_SIZE / PAGE_SIZE));
		cr_assert(not(readable(q - 1)));
		cr_assert(not(readable(q + SLAB_SIZE)));
		cr_assert(all_bytes(q, 0, SLAB_SIZE), "committed memory is not zero");
		memset(q, 0xff, SLAB_SIZE);
		sysmem_ops.decommit(NULL, q, SLAB_SIZE);
		cr_assert(zero(sz, resident(q, SLAB_SIZE)));
		cr_assert(not(readable(q)));
		cr_assert(eq(ulong, locked_kib(), locked));
	}
	/* The addresses are still ours. */
	squatter =
		mmap(p, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	cr_assert(eq(ptr, squatter, MAP_FAILED));
	sysmem_ops.release(NULL, p, len);
	cr_assert(not(readable(q)));
}

Test(sysmem, memory_is_resident_from_commit_to_decommit_and_comes_back_zero)
{
	memory_comes_and_goes();
}

Test(sysmem, memory_that_may_not_be_locked_is_resident_all_the_same)
{
	const struct rlimit none = { 0, 0 };
	const bool root = geteuid() == 0;

	cr_assert(zero(int, setrlimit(RLIMIT_MEMLOCK, &none)));
	/* Root needs no limit; as somebody else the lock is refused. */
	if (root)
		cr_assert(zero(int, seteuid(65534)));
	/* Not mlock(), which sanitizers turn into nothing. */
	cr_assert(not(zero(long, syscall(SYS_mlock, &none, sizeof none))));
	memory_comes_and_goes();
	if (root)
		cr_assert(zero(int, seteuid(0)));
	/* Changing identity took it away; the leak checker attaches to us when we exit. */
	cr_assert(zero(int, prctl(PR_SET_DUMPABLE, 1)));
}

Test(sysmem, a_forked_child_finds_it_wiped)
{
	unsigned char *p = sysmem_ops.reserve(NULL, SLAB_SIZE);
	int status;
	pid_t pid;

	cr_assert(zero(int, sysmem_ops.commit(NULL, p, SLAB_SIZE)));
	cr_assert(readable(p));
	memset(p, 0x5a, SLAB_SIZE);
	pid = fork();
	if (pid == 0)
		_exit(p[0] != 0 || memcmp(p, p + 1, SLAB_SIZE - 1) != 0);
	cr_assert(eq(int, waitpid(pid, &status, 0), pid));
	cr_assert(zero(int, status), "the child sees what was there");
	cr_assert(eq(int, p[0], 0x5a));
	sysmem_ops.release(NULL, p, SLAB_SIZE);
}

Test(sysmem, more_addresses_than_there_are_is_an_error)
{
	struct wired_array array;
	struct budget b;
	struct arena a;

	budget_init(&b, 1 << 20);
	cr_assert(eq(int, arena_init(&a, &sysmem_ops, NULL, &b, (size_t)1 << 60), -ENOMEM));
	cr_assert(eq(int, arena_init(&a, &sysmem_ops, NULL, &b, SIZE_MAX), -ENOMEM));
	cr_assert(zero(int, arena_init(&a, &sysmem_ops, NULL, &b, 1 << 20)));
	cr_assert(eq(int, wired_array_init(&array, &a, 8, (size_t)1 << 57), -ENOMEM));
	wired_array_fini(&array);
	arena_fini(&a);
	cr_assert(zero(sz, b.used));
}

/* Adjacent VMAs that do not merge would use up vm.max_map_count. */
static unsigned
count_vmas(const void *base, size_t len)
{
	const uintptr_t from = (uintptr_t)base, to = from + len;
	FILE *f = fopen("/proc/self/maps", "r");
	unsigned long start, end;
	char line[512];
	unsigned n = 0;

	cr_assert(not(zero(ptr, f)));
	while (fgets(line, sizeof line, f) != NULL)
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && start < to && end > from)
			n++;
	fclose(f);
	return n;
}

Test(sysmem, a_zone_lives_in_it_and_what_it_gives_back_is_one_vma_again)
{
	enum { N = 3 * 256 }; /* slabs of 3 items */
	const size_t max = 32 << 20;
	static void *item[N];
	struct budget b;
	struct arena a;

	budget_init(&b, 16 << 20);
	cr_assert(zero(int, arena_init(&a, &sysmem_ops, NULL, &b, max)));
	zone_init(&zone, &a, "real", SLAB_SIZE / 4, NULL, NULL);
	for (unsigned i = 0; i < N; i++) {
		item[i] = zone_alloc(&zone, ZONE_NOWAIT);
		cr_assert(not(zero(ptr, item[i])));
		memset(item[i], 0xee, SLAB_SIZE / 4);
	}
	/* Locked or not, in use or not: a few pieces, not one a slab. */
	cr_assert(le(uint, count_vmas(a.base, max), 4));
	for (unsigned i = 0; i < N; i++)
		zone_free(&zone, item[i]);
	zone_fini(&zone);
	cr_assert(zero(sz, b.used));
	cr_assert(le(uint, count_vmas(a.base, max), 4));
	arena_fini(&a);
}
