/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_object.c: the nouns of lib/vm one by one: object, anon, page, frame, resv.
 *
 * Over heap, without a pager: what the pager does with them is in test_fault.c and test_pageout.c.
 */
#include "assertions.h"
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "heap_arena.h"
#include "vm/anon.h"
#include "vm/frame.h"
#include "vm/object.h"
#include "vm/page.h"
#include "vm/resv.h"

#define DEADLINE 30 /* s */
#define TIB_PAGES ((uint64_t)1 << (40 - PAGE_SHIFT))

static struct heap_arena heap;
static struct object_zones zones;
static struct anon_waitqs waitqs;

static void
up(void)
{
	heap_arena_init(&heap, 64 << 20, 32 << 20);
	object_zones_init(&zones, &heap.arena);
	anon_waitqs_init(&waitqs);
}

static void
down(void)
{
	object_zones_check(&zones);
	anon_waitqs_fini(&waitqs);
	object_zones_fini(&zones);
	heap_arena_fini(&heap);
}

/* pthread_join() that does not wait for ever on a lost wake-up. */
static void
join(pthread_t t, const char *who)
{
	struct timespec deadline;

	clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += DEADLINE;
	cr_assert(zero(int, pthread_timedjoin_np(t, NULL, &deadline)), "%s is stuck", who);
}

static void
start(pthread_t *t, void *(*fn)(void *), void *arg)
{
	cr_assert(zero(int, pthread_create(t, NULL, fn, arg)));
}

/* True once cond() says so; false after the deadline. */
static bool
until(bool (*cond)(void *), void *arg)
{
	const uint64_t end = now_ns() + (uint64_t)DEADLINE * 1000000000u;

	while (!cond(arg)) {
		if (now_ns() > end)
			return false;
		sched_yield();
	}
	return true;
}

/*
 * Objects
 */

TestSuite(object, .init = up, .fini = down, .timeout = 120);

static unsigned releases;

static void
release(struct object *o)
{
	releases++;
	object_free(o);
}

static struct object *
new_object(uint64_t npages)
{
	struct object *o = object_alloc(&zones, npages, ZONE_NOWAIT);

	cr_assert(o != NULL);
	o->release = release;
	return o;
}

static void
expect_nodes(size_t nodes, size_t leaves)
{
	cr_assert(eq(sz, zone_count(&zones.node), nodes));
	cr_assert(eq(sz, zone_count(&zones.leaf), leaves));
}

/* Put an anon, or take it away again. */
static void
set(struct object *o, uint64_t index)
{
	bool created = false;
	struct leaf *l = object_leaf(o, index, &created);
	struct anon *an = anon_alloc(&zones.anon);

	cr_assert(l != NULL && an != NULL);
	leaf_set_anon(l, (unsigned)(index - l->base), an);
	pthread_mutex_unlock(&l->lock);
	anon_unbusy(&waitqs, an);
}

static void
clear(struct object *o, uint64_t index)
{
	struct leaf *l = object_leaf(o, index, NULL);
	struct anon *an;
	bool wanted;

	cr_assert(l != NULL, "no leaf for %lu", (unsigned long)index);
	an = leaf_anon(l, (unsigned)(index - l->base));
	cr_assert(an != NULL && anon_trybusy(an));
	leaf_clear(l, (unsigned)(index - l->base));
	pthread_mutex_unlock(&l->lock);
	cr_assert(anon_free(&waitqs, &zones.anon, an, &wanted));
}

Test(object, its_height_is_the_least_that_reaches_every_page)
{
	static const struct {
		uint64_t npages;
		unsigned height;
	} want[] = {
		{ 1, 0 },
		{ 512, 0 },
		{ 513, 1 },
		{ 512 * 512, 1 },
		{ 512 * 512 + 1, 2 },
		{ UINT64_C(512) * 512 * 512, 2 },
		{ UINT64_C(512) * 512 * 512 + 1, 3 },
		{ TIB_PAGES, 3 },
		{ (uint64_t)1 << 52, 5 },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(want); i++) {
		const uint64_t last = want[i].npages - 1;
		struct object *o = new_object(want[i].npages);

		cr_assert(eq(uint, o->height, want[i].height), "%lu pages",
			  (unsigned long)want[i].npages);
		set(o, last);
		expect_nodes(want[i].height, 1);
		object_check(o);
		clear(o, last);
		cr_assert(eq(sz, object_prune(o, last, last + 1), 1));
		object_unref(o);
	}
}

Test(object, a_sparse_terabyte_costs_one_struct)
{
	struct object *o = new_object(TIB_PAGES);

	expect_nodes(0, 0);
	cr_assert(eq(sz, zone_count(&zones.object), 1));
	cr_assert(object_leaf(o, TIB_PAGES / 2, NULL) == NULL);
	cr_assert(object_next_leaf(o, 0) == NULL);
	cr_assert(zero(sz, object_prune(o, 0, TIB_PAGES)));
	expect_nodes(0, 0);
	object_unref(o);
}

Test(object, a_page_in_a_sparse_terabyte_costs_one_path)
{
	struct object *o = new_object(TIB_PAGES);

	set(o, TIB_PAGES - 1);
	expect_nodes(3, 1);
	set(o, TIB_PAGES - LEAF_SLOTS); /* the same leaf */
	expect_nodes(3, 1);
	set(o, TIB_PAGES - LEAF_SLOTS - 1); /* its neighbour */
	expect_nodes(3, 2);
	set(o, 0); /* nothing in common but the root */
	expect_nodes(5, 3);
	object_check(o);
	clear(o, 0);
	clear(o, TIB_PAGES - 1);
	clear(o, TIB_PAGES - LEAF_SLOTS);
	clear(o, TIB_PAGES - LEAF_SLOTS - 1);
	cr_assert(eq(sz, object_prune(o, 0, TIB_PAGES), 3));
	expect_nodes(0, 0);
	object_unref(o);
}

Test(object, a_leaf_comes_locked_and_says_who_made_it)
{
	struct object *o = new_object(4096);
	bool created = false;
	struct leaf *l, *again;

	cr_assert(object_leaf(o, 1000, NULL) == NULL);
	l = object_leaf(o, 1000, &created);
	cr_assert(l != NULL && created);
	cr_assert(l->object == o);
	cr_assert(eq(u64, l->base, 512));
	cr_assert(zero(uint, l->nused));
	for (unsigned i = 0; i < LEAF_SLOTS; i++)
		cr_assert(leaf_anon(l, i) == NULL);
	cr_assert(eq(int, pthread_mutex_trylock(&l->lock), EBUSY));
	pthread_mutex_unlock(&l->lock);

	created = false;
	again = object_leaf(o, 1023, &created);
	cr_assert(again == l && !created);
	pthread_mutex_unlock(&l->lock);
	again = object_next_leaf(o, 0);
	cr_assert(again == l);
	cr_assert(eq(int, pthread_mutex_trylock(&l->lock), EBUSY));
	pthread_mutex_unlock(&l->lock);
	cr_assert(eq(sz, object_prune(o, 0, 4096), 1));
	object_unref(o);
}

Test(object, a_leaf_made_again_is_empty)
{
	struct object *o = new_object(1);

	set(o, 0);
	clear(o, 0);
	cr_assert(eq(sz, object_prune(o, 0, 1), 1));
	cr_assert(object_leaf(o, 0, NULL) == NULL);
	set(o, 0); /* asserts that the slot is 0 */
	clear(o, 0);
	cr_assert(eq(sz, object_prune(o, 0, 1), 1));
	object_unref(o);
}

Test(object, a_walk_meets_every_leaf_in_order)
{
	static const uint64_t at[] = { 0,
				       513,
				       512 * 511 + 3,
				       512 * 512,
				       512 * 512 * 5 + 512 * 7,
				       UINT64_C(512) * 512 * 512 - 1,
				       UINT64_C(512) * 512 * 512 + 9 };
	struct object *o = new_object(TIB_PAGES);
	uint64_t from = 0;
	struct leaf *l;

	for (unsigned i = ARRAY_SIZE(at); i-- > 0;)
		set(o, at[i]);
	for (unsigned i = 0; i < ARRAY_SIZE(at); i++) {
		l = object_next_leaf(o, from);
		cr_assert(l != NULL, "the walk ends before %lu", (unsigned long)at[i]);
		cr_assert(eq(u64, l->base, at[i] & ~(uint64_t)(LEAF_SLOTS - 1)));
		from = l->base + LEAF_SLOTS;
		pthread_mutex_unlock(&l->lock);
		/* From inside a leaf: that leaf. */
		l = object_next_leaf(o, at[i]);
		cr_assert(l != NULL && l->base <= at[i] && at[i] < l->base + LEAF_SLOTS);
		pthread_mutex_unlock(&l->lock);
	}
	cr_assert(object_next_leaf(o, from) == NULL);
	cr_assert(object_next_leaf(o, TIB_PAGES) == NULL);
	cr_assert(object_next_leaf(o, UINT64_MAX) == NULL);
	for (unsigned i = 0; i < ARRAY_SIZE(at); i++)
		clear(o, at[i]);
	cr_assert(eq(sz, object_prune(o, 0, TIB_PAGES), ARRAY_SIZE(at)));
	object_unref(o);
}

Test(object, pruning_spares_what_is_used_and_what_is_outside_the_range)
{
	const uint64_t leaf = LEAF_SLOTS;
	struct object *o = new_object(8 * leaf);
	bool created;

	for (unsigned i = 0; i < 8; i++)
		pthread_mutex_unlock(&object_leaf(o, i * leaf, &created)->lock);
	set(o, 3 * leaf + 5);
	expect_nodes(1, 8);
	cr_assert(eq(sz, object_prune(o, 2 * leaf, 5 * leaf), 2)); /* 2 and 4, not 3 */
	expect_nodes(1, 6);
	cr_assert(zero(sz, object_prune(o, 2 * leaf, 5 * leaf)));
	cr_assert(eq(sz, object_prune(o, 0, 1), 1)); /* a range that only touches it */
	cr_assert(object_leaf(o, 0, NULL) == NULL);
	cr_assert(eq(sz, object_prune(o, 0, 8 * leaf), 4));
	expect_nodes(1, 1);
	object_check(o);
	clear(o, 3 * leaf + 5);
	cr_assert(eq(sz, object_prune(o, 3 * leaf, 4 * leaf), 1));
	expect_nodes(0, 0);
	cr_assert(o->root == NULL);
	object_unref(o);
}

Test(object, running_out_of_room_on_the_way_down_leaves_nothing_for_good)
{
	struct object *o = new_object(TIB_PAGES);

	for (unsigned nth = 1; nth <= 3; nth++) {
		bool created = false;

		atomic_store(&zones.node.fail_in, nth);
		cr_assert(object_leaf(o, 12345678, &created) == NULL);
		cr_assert(not(created));
		expect_nodes(nth - 1, 0);
		object_check(o);
		cr_assert(zero(sz, object_prune(o, 0, TIB_PAGES)), "there was no leaf");
		expect_nodes(0, 0);
	}
	atomic_store(&zones.leaf.fail_in, 1);
	cr_assert(object_leaf(o, 12345678, &(bool){ false }) == NULL);
	expect_nodes(3, 0);
	/* What was made of the path serves the next try. */
	set(o, 12345678);
	expect_nodes(3, 1);
	clear(o, 12345678);
	cr_assert(eq(sz, object_prune(o, 0, TIB_PAGES), 1));
	object_unref(o);
}

Test(object, a_longer_one_is_as_high_as_it_must_be_and_keeps_what_it_had)
{
	static const struct {
		uint64_t npages;
		unsigned height;
	} want[] = {
		{ 2, 0 },	  { 512, 0 },		{ 513, 1 },
		{ 512 * 512, 1 }, { 512 * 512 + 1, 2 }, { (uint64_t)1 << 52, 5 },
	};
	struct object *full = new_object(1), *empty = new_object(1);
	uint64_t at = 0;

	set(full, 0);
	for (unsigned i = 0; i < ARRAY_SIZE(want); i++) {
		const uint64_t last = want[i].npages - 1;
		struct leaf *l;

		cr_assert(zero(int, object_grow(empty, want[i].npages, ZONE_NOWAIT)));
		cr_assert(eq(uint, empty->height, want[i].height));
		cr_assert(eq(ptr, empty->root, NULL));
		cr_assert(zero(int, object_grow(full, want[i].npages, ZONE_NOWAIT)));
		cr_assert(eq(uint, full->height, want[i].height));
		cr_assert(eq(u64, full->npages, want[i].npages));
		object_check(full);
		l = object_leaf(full, 0, NULL);
		cr_assert(l != NULL && leaf_anon(l, 0) != NULL);
		pthread_mutex_unlock(&l->lock);
		/* Old and new pages are found in order. */
		set(full, last);
		object_check(full);
		l = object_next_leaf(full, (last & ~(uint64_t)(LEAF_SLOTS - 1)));
		cr_assert(l != NULL && leaf_anon(l, (unsigned)(last - l->base)) != NULL);
		pthread_mutex_unlock(&l->lock);
		clear(full, last);
		object_prune(full, MAX(at, 1), want[i].npages);
		at = last;
	}
	clear(full, 0);
	object_prune(full, 0, full->npages);
	expect_nodes(0, 0);
	object_unref(full);
	object_unref(empty);
}

Test(object, without_room_for_a_level_it_is_as_long_as_before)
{
	struct object *o = new_object(512);

	set(o, 511);
	for (unsigned nth = 1; nth <= 2; nth++) {
		atomic_store(&zones.node.fail_in, nth);
		cr_assert(eq(int, object_grow(o, 512 * 512 + 1, ZONE_NOWAIT), -ENOMEM));
		cr_assert(eq(u64, o->npages, 512));
		object_check(o);
	}
	cr_assert(zero(int, object_grow(o, 512 * 512 + 1, ZONE_NOWAIT)));
	cr_assert(eq(uint, o->height, 2));
	set(o, 512 * 512);
	object_check(o);
	clear(o, 512 * 512);
	clear(o, 511);
	cr_assert(eq(sz, object_prune(o, 0, o->npages), 2));
	expect_nodes(0, 0);
	object_unref(o);
}

Test(object, without_room_there_is_no_object)
{
	atomic_store(&zones.object.fail_in, 1);
	cr_assert(object_alloc(&zones, 1, ZONE_NOWAIT) == NULL);
	cr_assert(zero(sz, zone_count(&zones.object)));
}

Test(object, the_last_reference_releases_it)
{
	struct object *o = new_object(1);

	releases = 0;
	object_ref(o);
	object_ref(o);
	object_unref(o);
	object_unref(o);
	cr_assert(zero(uint, releases));
	object_unref(o);
	cr_assert(eq(uint, releases, 1));
	cr_assert(zero(sz, zone_count(&zones.object)));
}

Test(object, random_slots_agree_with_a_bitmap)
{
	enum { NPAGES = 100000 };
	static bool there[NPAGES];
	struct object *o = new_object(NPAGES);
	uint64_t seed = 88172645463325252u;
	size_t n = 0, found = 0;
	uint64_t at = 0;
	struct leaf *l;

	for (unsigned i = 0; i < 20000; i++) {
		uint64_t index;

		seed ^= seed << 13;
		seed ^= seed >> 7;
		seed ^= seed << 17;
		index = seed % NPAGES;
		if (there[index])
			clear(o, index);
		else
			set(o, index);
		there[index] = !there[index];
		n = there[index] ? n + 1 : n - 1;
		if (i % 1000 == 0) {
			object_prune(o, index, MIN(index + 20000, (uint64_t)NPAGES));
			object_check(o);
		}
	}
	cr_assert(eq(sz, zone_count(&zones.anon), n));
	while ((l = object_next_leaf(o, at)) != NULL) {
		for (unsigned i = 0; i < LEAF_SLOTS && l->base + i < NPAGES; i++) {
			cr_assert(eq(int, leaf_anon(l, i) != NULL, there[l->base + i]));
			found += there[l->base + i];
		}
		at = l->base + LEAF_SLOTS;
		pthread_mutex_unlock(&l->lock);
	}
	cr_assert(eq(sz, found, n));
	for (uint64_t i = 0; i < NPAGES; i++) {
		if (there[i])
			clear(o, i);
	}
	object_prune(o, 0, NPAGES);
	expect_nodes(0, 0);
	object_unref(o);
}

/* Threads that meet in the same leaves. */
struct maker {
	struct object *o;
	atomic_uint *made; /* by leaf */
	unsigned first;
};

#define MAKER_LEAVES 300u

static void *
make_leaves(void *arg)
{
	struct maker *m = arg;

	for (unsigned i = 0; i < MAKER_LEAVES; i++) {
		const unsigned n = (m->first + i) % MAKER_LEAVES;
		bool created = false;
		struct leaf *l = object_leaf(m->o, (uint64_t)n * LEAF_SLOTS, &created);

		if (l == NULL)
			abort();
		l->nused++; /* (l): two at once would lose one */
		pthread_mutex_unlock(&l->lock);
		if (created)
			atomic_fetch_add(&m->made[n], 1);
	}
	return NULL;
}

Test(object, of_threads_that_race_for_a_leaf_one_makes_it)
{
	static atomic_uint made[MAKER_LEAVES];
	struct object *o = new_object((uint64_t)MAKER_LEAVES * LEAF_SLOTS);
	struct maker m[4];
	pthread_t t[4];

	for (unsigned i = 0; i < 4; i++) {
		m[i] = (struct maker){ o, made, i % 2 * 150 };
		start(&t[i], make_leaves, &m[i]);
	}
	for (unsigned i = 0; i < 4; i++)
		join(t[i], "a thread that makes leaves");
	for (unsigned n = 0; n < MAKER_LEAVES; n++) {
		struct leaf *l = object_leaf(o, (uint64_t)n * LEAF_SLOTS, NULL);

		cr_assert(eq(uint, made[n], 1), "leaf %u", n);
		cr_assert(eq(uint, l->nused, 4), "leaf %u", n);
		l->nused = 0;
		pthread_mutex_unlock(&l->lock);
	}
	cr_assert(eq(sz, object_prune(o, 0, o->npages), MAKER_LEAVES));
	object_unref(o);
}

#ifndef NDEBUG
/* Broken invariants are noticed: each of these dies in its process. */
TestSuite(object_asserts, .init = up, .timeout = 120);

Test(object_asserts, a_slot_is_not_filled_twice, .signal = SIGABRT)
{
	struct object *o = new_object(1);

	set(o, 0);
	set(o, 0);
}

Test(object_asserts, an_empty_slot_is_not_cleared, .signal = SIGABRT)
{
	struct object *o = new_object(1);

	leaf_clear(object_leaf(o, 0, &(bool){ false }), 0);
}

Test(object_asserts, an_object_with_leaves_is_not_freed, .signal = SIGABRT)
{
	struct object *o = new_object(1);

	set(o, 0);
	object_unref(o);
}

Test(object_asserts, an_index_is_inside, .signal = SIGABRT)
{
	object_leaf(new_object(10), 10, &(bool){ false });
}

Test(object_asserts, a_wrong_count_in_a_leaf_is_seen, .signal = SIGABRT)
{
	struct object *o = new_object(1);
	struct leaf *l;

	set(o, 0);
	l = object_leaf(o, 0, NULL);
	l->nused = 2;
	pthread_mutex_unlock(&l->lock);
	object_check(o);
}

Test(object_asserts, a_page_behind_the_end_is_seen, .signal = SIGABRT)
{
	struct object *o = new_object(10);

	set(o, 9);
	o->npages = 9;
	object_check(o);
}

Test(object_asserts, a_leaf_in_the_wrong_place_is_seen, .signal = SIGABRT)
{
	struct object *o = new_object(2000);
	struct node *root;

	set(o, 600);
	root = o->root;
	root->child[2] = root->child[1];
	root->child[1] = NULL;
	object_check(o);
}

Test(object_asserts, more_handles_than_references_are_seen, .signal = SIGABRT)
{
	struct object *o = new_object(1);

	atomic_store(&o->handles, 2);
	object_check(o);
}
#endif

/*
 * Anons
 */

TestSuite(anon, .init = up, .fini = down, .timeout = 120);

static struct anon *
new_anon(void)
{
	struct anon *an = anon_alloc(&zones.anon);

	cr_assert(an != NULL);
	return an;
}

static void
free_anon(struct anon *an)
{
	bool wanted;

	cr_assert(anon_free(&waitqs, &zones.anon, an, &wanted));
	cr_assert(not(wanted));
}

Test(anon, is_as_small_as_promised)
{
	cr_assert(eq(sz, sizeof(struct anon), 16));
	cr_assert(eq(sz, zones.anon.item_size, 16));
}

Test(anon, is_born_busy_in_core_with_one_reference)
{
	struct anon *an = new_anon();

	cr_assert(eq(int, an->bits, ANON_BUSY));
	cr_assert(eq(int, an->kind, ANON_CORE));
	cr_assert(eq(int, an->refs, 1));
	cr_assert(eq(u32, an->loc, UINT32_MAX));
	cr_assert(zero(u64, an->hash));
	free_anon(an);
	cr_assert(zero(sz, zone_count(&zones.anon)));
}

Test(anon, of_a_freed_one_nothing_is_inherited)
{
	struct anon *an = new_anon();

	an->hash = 5;
	an->loc = 7;
	atomic_store(&an->kind, ANON_LOST);
	free_anon(an);
	an = new_anon(); /* the same bytes: a zone reuses the lowest */
	cr_assert(eq(int, an->kind, ANON_CORE));
	cr_assert(eq(u32, an->loc, UINT32_MAX));
	cr_assert(zero(u64, an->hash));
	free_anon(an);
}

Test(anon, without_room_there_is_none)
{
	atomic_store(&zones.anon.fail_in, 1);
	cr_assert(anon_alloc(&zones.anon) == NULL);
}

Test(anon, has_one_holder)
{
	struct anon *an = new_anon();

	cr_assert(not(anon_trybusy(an)));
	cr_assert(not(anon_unbusy(&waitqs, an)));
	cr_assert(anon_trybusy(an));
	cr_assert(not(anon_trybusy(an)));
	free_anon(an);
}

Test(anon, is_wanted_only_while_somebody_holds_it)
{
	struct anon *an = new_anon();

	cr_assert(not(zero(uint, anon_want(an))));
	cr_assert(not(zero(uint, anon_want(an)))); /* asking twice is asking */
	cr_assert(not(anon_trybusy(an)));
	cr_assert(anon_unbusy(&waitqs, an));
	cr_assert(zero(int, an->bits));
	cr_assert(zero(uint, anon_want(an)));
	cr_assert(anon_trybusy(an));
	cr_assert(not(anon_unbusy(&waitqs, an)), "the wish of an earlier holder's time is over");
	cr_assert(anon_trybusy(an));
	free_anon(an);
}

Test(anon, freeing_one_of_two_references_only_lets_it_go)
{
	struct anon *an = new_anon();
	bool wanted = true;

	atomic_store(&an->refs, 2);
	cr_assert(not(anon_free(&waitqs, &zones.anon, an, &wanted)));
	cr_assert(not(wanted));
	cr_assert(eq(int, an->refs, 1));
	cr_assert(zero(int, an->bits));
	cr_assert(eq(sz, zone_count(&zones.anon), 1));

	cr_assert(anon_trybusy(an));
	cr_assert(not(zero(uint, anon_want(an))));
	cr_assert(anon_free(&waitqs, &zones.anon, an, &wanted));
	cr_assert(wanted, "whoever asked is to be told");
	cr_assert(zero(sz, zone_count(&zones.anon)));
}

Test(anon, freeing_one_of_two_references_tells_who_asked)
{
	struct anon *an = new_anon();
	bool wanted = false;

	atomic_store(&an->refs, 2);
	cr_assert(not(zero(uint, anon_want(an))));
	cr_assert(not(anon_free(&waitqs, &zones.anon, an, &wanted)));
	cr_assert(wanted);
	cr_assert(anon_trybusy(an));
	free_anon(an);
}

Test(anon, nobody_waits_for_what_is_not_busy)
{
	pthread_mutex_t leaf = PTHREAD_MUTEX_INITIALIZER;
	struct anon *an = new_anon();

	anon_unbusy(&waitqs, an);
	pthread_mutex_lock(&leaf);
	anon_wait(&waitqs, an, &leaf);
	cr_assert(zero(int, pthread_mutex_trylock(&leaf)), "the leaf is to be unlocked");
	cr_assert(zero(int, an->bits));
	cr_assert(anon_trybusy(an));
	free_anon(an);
}

struct sleeper {
	pthread_mutex_t leaf;
	struct anon *_Atomic an; /* (leaf) NULL: gone */
	atomic_uint woken;
};

/* As range.c does it: look, sleep, look again. */
static void *
sleep_until_free(void *arg)
{
	struct sleeper *s = arg;

	for (;;) {
		struct anon *an;

		pthread_mutex_lock(&s->leaf);
		an = s->an;
		if (an == NULL || anon_trybusy(an)) {
			pthread_mutex_unlock(&s->leaf);
			if (an != NULL)
				anon_unbusy(&waitqs, an);
			atomic_fetch_add(&s->woken, 1);
			return NULL;
		}
		anon_wait(&waitqs, an, &s->leaf);
	}
}

static bool
is_wanted(void *arg)
{
	struct anon *an = arg;

	return (atomic_load(&an->bits) & ANON_WANTED) != 0;
}

Test(anon, letting_go_wakes_all_who_sleep)
{
	struct sleeper s = { .leaf = PTHREAD_MUTEX_INITIALIZER };
	struct anon *an = new_anon();
	pthread_t t[3];

	s.an = an;
	for (unsigned i = 0; i < 3; i++)
		start(&t[i], sleep_until_free, &s);
	cr_assert(until(is_wanted, an), "nobody asked");
	cr_assert(zero(uint, s.woken), "somebody went past a busy anon");
	cr_assert(anon_unbusy(&waitqs, an));
	for (unsigned i = 0; i < 3; i++)
		join(t[i], "a sleeper");
	cr_assert(eq(uint, s.woken, 3));
	cr_assert(anon_trybusy(an));
	free_anon(an);
}

Test(anon, freeing_wakes_who_sleeps)
{
	struct sleeper s = { .leaf = PTHREAD_MUTEX_INITIALIZER };
	struct anon *an = new_anon();
	bool wanted = false;
	pthread_t t;

	s.an = an;
	start(&t, sleep_until_free, &s);
	cr_assert(until(is_wanted, an), "nobody asked");
	pthread_mutex_lock(&s.leaf); /* the slot is emptied under the lock, then the anon goes */
	s.an = NULL;
	pthread_mutex_unlock(&s.leaf);
	cr_assert(anon_free(&waitqs, &zones.anon, an, &wanted));
	cr_assert(wanted);
	join(t, "the sleeper");
	cr_assert(eq(uint, s.woken, 1));
}

struct crowd {
	pthread_mutex_t leaf;
	struct anon *an;
	unsigned long inside; /* guarded by BUSY alone */
};

#define CROWD_ROUNDS 20000u

static void *
take_turns(void *arg)
{
	struct crowd *c = arg;

	for (unsigned i = 0; i < CROWD_ROUNDS;) {
		pthread_mutex_lock(&c->leaf);
		if (!anon_trybusy(c->an)) {
			anon_wait(&waitqs, c->an, &c->leaf);
			continue;
		}
		pthread_mutex_unlock(&c->leaf);
		c->inside++;
		if (i % 64 == 0)
			sched_yield(); /* let others run into it */
		anon_unbusy(&waitqs, c->an);
		i++;
	}
	return NULL;
}

Test(anon, busy_excludes_and_no_wake_up_is_lost)
{
	struct crowd c = { .leaf = PTHREAD_MUTEX_INITIALIZER, .an = new_anon() };
	pthread_t t[4];

	anon_unbusy(&waitqs, c.an);
	for (unsigned i = 0; i < 4; i++)
		start(&t[i], take_turns, &c);
	for (unsigned i = 0; i < 4; i++)
		join(t[i], "one of the crowd");
	cr_assert(eq(ulong, c.inside, 4ul * CROWD_ROUNDS));
	cr_assert(zero(int, c.an->bits));
	cr_assert(anon_trybusy(c.an));
	free_anon(c.an);
}

#ifndef NDEBUG
TestSuite(anon_asserts, .init = up, .timeout = 120);

Test(anon_asserts, only_a_holder_lets_go, .signal = SIGABRT)
{
	struct anon *an = new_anon();

	anon_unbusy(&waitqs, an);
	anon_unbusy(&waitqs, an);
}

Test(anon_asserts, only_a_holder_frees, .signal = SIGABRT)
{
	struct anon *an = new_anon();
	bool wanted;

	anon_unbusy(&waitqs, an);
	anon_free(&waitqs, &zones.anon, an, &wanted);
}
#endif

/*
 * Pages
 */

static struct pages pages;
static struct anon *some_anon;
static struct leaf *some_leaf;
static struct object some_object; /* of that leaf: only its account is looked at */

#define NPAGES 200u

static void
pages_up(void)
{
	up();
	cr_assert(zero(int, pages_init(&pages, &heap.arena, NPAGES, NPAGES, NPAGES, POLICY_SFIFO)));
	some_anon = new_anon();
	some_leaf = zone_alloc(&zones.leaf, ZONE_NOWAIT);
	cr_assert(some_leaf != NULL);
	some_leaf->object = &some_object;
	some_object.account = NULL;
}

static void
pages_down(void)
{
	pages_check(&pages);
	pages_fini(&pages);
	zone_free(&zones.leaf, some_leaf);
	free_anon(some_anon);
	down();
}

TestSuite(page, .init = pages_up, .fini = pages_down, .timeout = 120);

static struct page *
new_page(void)
{
	struct page *pg = page_alloc(&pages, some_anon, some_leaf, 3, false);

	cr_assert(pg != NULL);
	return pg;
}

/* Put a page in TRANSIT where it belongs on that queue. */
static void
enqueue(struct page *pg, enum page_queue q)
{
	const bool mapped = q == Q_ACTIVE || q == Q_WIRED;

	pg->frame = mapped ? FRAME_NONE : 1;
	pg->slot = q == Q_CLEAN || q == Q_AHEAD ? 1 : UINT32_MAX;
	page_enqueue(&pages, pg, q, mapped ? PAGE_MAPPED : PAGE_STAGED);
}

static void
dequeue(struct page *pg)
{
	pthread_mutex_lock(&pages.lock);
	page_dequeue_locked(&pages, pg);
	pthread_mutex_unlock(&pages.lock);
}

static void
expect_queue(enum page_queue q, unsigned n, struct page *const want[])
{
	const enum policy_queue of[] = { PQ_MAIN, PQ_STAGED, PQ_CLEAN, PQ_AHEAD, PQ_WIRED };
	pageno_t no = pages.policy.queue[of[q]].head;

	cr_assert(eq(sz, page_count(&pages, q), n));
	for (unsigned i = 0; i < n; i++) {
		cr_assert(eq(u32, no, page_no(&pages, want[i])), "place %u in queue %d", i, (int)q);
		no = page_at(&pages, no)->node.next;
	}
	cr_assert(eq(u32, no, PAGE_NONE));
}

Test(page, is_born_in_transit_and_blank)
{
	struct page *pg = new_page();

	cr_assert(eq(int, pg->state, PAGE_TRANSIT));
	cr_assert(eq(int, page_queue_locked(pg), Q_NONE));
	cr_assert(pg->anon == some_anon && pg->leaf == some_leaf);
	cr_assert(eq(int, pg->index, 3));
	cr_assert(eq(u32, pg->frame, FRAME_NONE));
	cr_assert(eq(u32, pg->slot, UINT32_MAX));
	cr_assert(zero(uptr, pg->va));
	cr_assert(not(pg->alone));
	cr_assert(eq(sz, pages.count[PAGE_TRANSIT], 1));
	page_free(&pages, pg);
	cr_assert(zero(sz, pages.count[PAGE_TRANSIT]));
}

Test(page, of_a_freed_one_nothing_is_inherited)
{
	struct page *pg = new_page(), *again;

	pg->va = 4096;
	pg->shard = 3;
	pg->alone = true;
	enqueue(pg, Q_CLEAN);
	dequeue(pg);
	page_free(&pages, pg);
	again = new_page();
	cr_assert(again == pg);
	cr_assert(zero(uptr, pg->va));
	cr_assert(zero(int, pg->shard));
	cr_assert(not(pg->alone));
	cr_assert(eq(u32, pg->slot, UINT32_MAX));
	cr_assert(eq(u32, pg->frame, FRAME_NONE));
	page_free(&pages, again);
}

Test(page, there_are_as_many_as_promised_and_no_more)
{
	struct page *pg[NPAGES];

	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < NPAGES; i++) {
			pg[i] = new_page();
			cr_assert(eq(u32, page_no(&pages, page_at(&pages, page_no(&pages, pg[i]))),
				     page_no(&pages, pg[i])));
		}
		cr_assert(page_alloc(&pages, some_anon, some_leaf, 0, false) == NULL);
		cr_assert(eq(sz, pages.count[PAGE_TRANSIT], NPAGES));
		pages_check(&pages);
		for (unsigned i = 0; i < NPAGES; i++)
			page_free(&pages, pg[i]);
		cr_assert(eq(sz, pages.count[PAGE_FREE], NPAGES));
	}
}

Test(page, without_room_for_the_table_there_is_none)
{
	struct page *pg;

	cr_assert(zero(sz, pages.table.n), "the table starts empty");
	heap_arena_fail_commit(&heap, 1);
	cr_assert(page_alloc(&pages, some_anon, some_leaf, 0, false) == NULL);
	cr_assert(heap_arena_disarm(&heap));
	cr_assert(zero(sz, pages.table.n));
	pages_check(&pages);
	pg = new_page();
	page_free(&pages, pg);
}

Test(page, a_queue_gives_back_in_order)
{
	struct page *pg[4];

	for (unsigned q = 0; q < Q_COUNT; q++) {
		for (unsigned i = 0; i < 4; i++) {
			pg[i] = new_page();
			enqueue(pg[i], q);
		}
		expect_queue(q, 4, pg);
		pages_check(&pages);
		for (unsigned i = 0; i < 4; i++) {
			expect_queue(q, 4 - i, pg + i);
			dequeue(pg[i]);
			cr_assert(eq(int, pg[i]->state, PAGE_TRANSIT));
			cr_assert(eq(int, page_queue_locked(pg[i]), Q_NONE));
			page_free(&pages, pg[i]);
		}
		expect_queue(q, 0, NULL);
	}
}

Test(page, leaves_the_middle_and_the_end_of_a_queue)
{
	struct page *pg[4];

	for (unsigned i = 0; i < 4; i++) {
		pg[i] = new_page();
		enqueue(pg[i], Q_INACTIVE);
	}
	dequeue(pg[1]);
	expect_queue(Q_INACTIVE, 3, (struct page *[]){ pg[0], pg[2], pg[3] });
	dequeue(pg[3]);
	expect_queue(Q_INACTIVE, 2, (struct page *[]){ pg[0], pg[2] });
	enqueue(pg[1], Q_INACTIVE);
	expect_queue(Q_INACTIVE, 3, (struct page *[]){ pg[0], pg[2], pg[1] });
	pages_check(&pages);
	dequeue(pg[0]);
	dequeue(pg[1]);
	dequeue(pg[2]);
	for (unsigned i = 0; i < 4; i++)
		page_free(&pages, pg[i]);
}

Test(page, can_jump_the_queue)
{
	struct page *pg[3];

	for (unsigned i = 0; i < 3; i++) {
		pg[i] = new_page();
		pthread_mutex_lock(&pages.lock);
		page_enqueue_head_locked(&pages, pg[i], Q_ACTIVE, PAGE_MAPPED);
		pthread_mutex_unlock(&pages.lock);
	}
	expect_queue(Q_ACTIVE, 3, (struct page *[]){ pg[2], pg[1], pg[0] });
	pages_check(&pages);
	for (unsigned i = 0; i < 3; i++) {
		dequeue(pg[i]);
		page_free(&pages, pg[i]);
	}
}

Test(page, states_are_counted_all_the_way_round)
{
	struct page *pg = new_page();

	enqueue(pg, Q_ACTIVE);
	cr_assert(eq(sz, pages.count[PAGE_MAPPED], 1));
	dequeue(pg);
	enqueue(pg, Q_INACTIVE);
	cr_assert(zero(sz, pages.count[PAGE_MAPPED]));
	cr_assert(eq(sz, pages.count[PAGE_STAGED], 1));
	dequeue(pg);
	pthread_mutex_lock(&pages.lock);
	page_set_state_locked(&pages, pg, PAGE_LAUNDRY);
	pthread_mutex_unlock(&pages.lock);
	cr_assert(eq(sz, pages.count[PAGE_LAUNDRY], 1));
	cr_assert(zero(sz, pages.count[PAGE_TRANSIT] + pages.count[PAGE_STAGED]));
	pages_check(&pages);
	pg->anon = NULL; /* an orphan is freed from LAUNDRY */
	page_free(&pages, pg);
	cr_assert(zero(sz, pages.count[PAGE_LAUNDRY]));
}

Test(page, random_queues_agree_with_a_model)
{
	enum { N = 150 };
	struct page *pg[N], *model[Q_COUNT][N];
	unsigned n[Q_COUNT] = { 0 }, on[N];
	uint64_t seed = 7;

	for (unsigned i = 0; i < N; i++) {
		pg[i] = new_page();
		on[i] = Q_NONE;
	}
	for (unsigned step = 0; step < 5000; step++) {
		unsigned i, q;

		seed = seed * 6364136223846793005u + 1442695040888963407u;
		i = (unsigned)(seed >> 33) % N;
		q = (unsigned)(seed >> 20) % Q_COUNT;
		if (on[i] != Q_NONE) {
			const unsigned old = on[i];
			unsigned at = 0;

			dequeue(pg[i]);
			while (model[old][at] != pg[i])
				at++;
			memmove(&model[old][at], &model[old][at + 1],
				(--n[old] - at) * sizeof(model[0][0]));
			on[i] = Q_NONE;
		} else {
			enqueue(pg[i], q);
			model[q][n[q]++] = pg[i];
			on[i] = q;
		}
		if (step % 100 == 0) {
			pages_check(&pages);
			for (unsigned k = 0; k < Q_COUNT; k++)
				expect_queue(k, n[k], model[k]);
		}
	}
	for (unsigned i = 0; i < N; i++) {
		if (on[i] != Q_NONE)
			dequeue(pg[i]);
		page_free(&pages, pg[i]);
	}
}

#ifndef NDEBUG
/* Arrows that are not in the drawing. */
TestSuite(page_asserts, .init = pages_up, .timeout = 120);

Test(page_asserts, a_page_is_on_one_queue, .signal = SIGABRT)
{
	struct page *pg = new_page();

	enqueue(pg, Q_ACTIVE);
	enqueue(pg, Q_INACTIVE);
}

Test(page_asserts, a_page_on_no_queue_does_not_leave_one, .signal = SIGABRT)
{
	dequeue(new_page());
}

Test(page_asserts, a_mapped_page_is_not_on_a_staged_queue, .signal = SIGABRT)
{
	page_enqueue(&pages, new_page(), Q_INACTIVE, PAGE_MAPPED);
}

Test(page_asserts, a_staged_page_has_a_frame, .signal = SIGABRT)
{
	page_enqueue(&pages, new_page(), Q_INACTIVE, PAGE_STAGED);
}

Test(page_asserts, a_mapped_page_has_none, .signal = SIGABRT)
{
	struct page *pg = new_page();

	pg->frame = 1;
	page_enqueue(&pages, pg, Q_ACTIVE, PAGE_MAPPED);
}

Test(page_asserts, a_clean_page_has_a_slot, .signal = SIGABRT)
{
	struct page *pg = new_page();

	pg->frame = 1;
	page_enqueue(&pages, pg, Q_CLEAN, PAGE_STAGED);
}

Test(page_asserts, a_page_in_a_queue_is_not_freed, .signal = SIGABRT)
{
	struct page *pg = new_page();

	enqueue(pg, Q_INACTIVE);
	page_free(&pages, pg);
}

Test(page_asserts, a_page_being_written_is_not_freed, .signal = SIGABRT)
{
	struct page *pg = new_page();

	pthread_mutex_lock(&pages.lock);
	page_set_state_locked(&pages, pg, PAGE_LAUNDRY);
	pthread_mutex_unlock(&pages.lock);
	page_free(&pages, pg);
}

Test(page_asserts, an_orphan_is_on_no_queue, .signal = SIGABRT)
{
	struct page *pg = new_page();

	pg->anon = NULL;
	enqueue(pg, Q_INACTIVE);
}

Test(page_asserts, a_page_left_over_is_seen, .signal = SIGABRT)
{
	new_page();
	pages_fini(&pages);
}

Test(page_asserts, a_wrong_count_is_seen, .signal = SIGABRT)
{
	new_page();
	pages.count[PAGE_TRANSIT]++;
	pages.count[PAGE_FREE]--;
	pages_check(&pages);
}

Test(page_asserts, a_page_in_no_queue_that_should_be_in_one_is_seen, .signal = SIGABRT)
{
	struct page *pg = new_page();

	pthread_mutex_lock(&pages.lock);
	page_set_state_locked(&pages, pg, PAGE_MAPPED);
	pthread_mutex_unlock(&pages.lock);
	pages_check(&pages);
}
#endif

/*
 * Frames
 */

static struct frames frames;

static void
frames_up(void)
{
	up();
	cr_assert(zero(int, frames_init(&frames, &heap.arena, 200)));
}

static void
frames_down(void)
{
	frames_check(&frames);
	frames_fini(&frames);
	down();
}

TestSuite(frame, .init = frames_up, .fini = frames_down, .timeout = 120);

Test(frame, there_are_only_holes_at_first)
{
	frame_t f;

	cr_assert(eq(u32, frames.n, 256), "rounded up to a word");
	cr_assert(zero(sz, frames_nfree(&frames)));
	cr_assert(zero(sz, frame_take(&frames, 1, &f)));
	cr_assert(eq(sz, frames.holes.nfree, 256));
}

Test(frame, a_hole_becomes_a_frame_and_a_hole_again)
{
	frame_t hole, f;

	cr_assert(eq(sz, hole_take(&frames, 10, &hole), 10));
	cr_assert(eq(sz, frames.holes.nfree, 246));
	frame_give(&frames, hole, 10); /* pages were moved in, and are not needed any more */
	cr_assert(eq(sz, frames_nfree(&frames), 10));
	frames_check(&frames);
	cr_assert(eq(sz, frame_take(&frames, 10, &f), 10));
	cr_assert(eq(u32, f, hole));
	cr_assert(zero(sz, frames_nfree(&frames)));
	hole_give(&frames, f, 10);
	cr_assert(eq(sz, frames.holes.nfree, 256));
}

Test(frame, runs_are_neighbours_and_never_overlap)
{
	bool taken[256] = { false };
	frame_t f;
	size_t n;

	for (size_t left = 256; left > 0; left -= n) {
		n = hole_take(&frames, 64, &f);
		cr_assert(eq(sz, n, 64), "the area is empty: each run can be whole");
		for (size_t i = 0; i < n; i++) {
			cr_assert(lt(sz, f + i, 256));
			cr_assert(not(taken[f + i]));
			taken[f + i] = true;
		}
	}
	cr_assert(zero(sz, hole_take(&frames, 1, &f)));
	hole_give(&frames, 0, 256); /* in one piece, across words */
}

Test(frame, a_short_run_is_better_than_none)
{
	frame_t f;

	while (hole_take(&frames, 64, &f) > 0)
		;
	frame_give(&frames, 100, 3);
	frame_give(&frames, 200, 1);
	cr_assert(eq(sz, frame_take(&frames, 64, &f), 3));
	cr_assert(eq(u32, f, 100));
	cr_assert(eq(sz, frame_take(&frames, 64, &f), 1));
	cr_assert(eq(u32, f, 200));
	cr_assert(zero(sz, frame_take(&frames, 64, &f)));
	hole_give(&frames, 0, 256);
}

Test(frame, giving_nothing_is_nothing)
{
	frame_give(&frames, 0, 0);
	hole_give(&frames, 0, 0);
	cr_assert(zero(sz, frames_nfree(&frames)));
}

Test(frame, without_room_for_the_maps_nothing_is_left)
{
	struct frames f;
	bool failed = true;

	for (unsigned nth = 1; failed; nth++) {
		const size_t before = arena_bytes(&heap.arena);
		int r;

		heap_arena_fail_commit(&heap, nth);
		r = frames_init(&f, &heap.arena, 100000);
		failed = heap_arena_disarm(&heap);
		cr_assert(eq(int, r, failed ? -ENOMEM : 0));
		if (!failed)
			frames_fini(&f);
		cr_assert(eq(sz, arena_bytes(&heap.arena), before));
		cr_assert(lt(uint, nth, 1000), "there is no end to it");
	}
}

#ifndef NDEBUG
TestSuite(frame_asserts, .init = frames_up, .timeout = 120);

Test(frame_asserts, a_frame_in_nobodys_hands_is_seen, .signal = SIGABRT)
{
	frame_t f;

	hole_take(&frames, 1, &f);
	frames_fini(&frames);
}

Test(frame_asserts, an_address_is_not_a_hole_and_a_frame, .signal = SIGABRT)
{
	frame_t f;

	hole_take(&frames, 1, &f);
	frame_give(&frames, f, 1);
	hole_give(&frames, f, 1);
	frames_check(&frames);
}

Test(frame_asserts, what_is_free_is_not_given, .signal = SIGABRT)
{
	hole_give(&frames, 5, 1);
}
#endif

/*
 * Reservation
 */

static struct {
	unsigned calls;
	uint64_t need; /* what the last call asked for */
	uint64_t to;   /* what it grows to; 0: as asked */
	int error;
} growth;

static int
grow(void *ctx, uint64_t need, uint64_t *max)
{
	cr_assert(ctx == &growth);
	growth.calls++;
	growth.need = need;
	if (growth.error != 0)
		return growth.error;
	*max = growth.to != 0 ? growth.to : need;
	return 0;
}

static void
expect_resv(struct resv *r, uint64_t max, uint64_t used)
{
	uint64_t m, u;

	resv_get(r, &m, &u);
	cr_assert(eq(u64, m, max));
	cr_assert(eq(u64, u, used));
}

TestSuite(resv, .timeout = 120);

Test(resv, nothing_is_promised_twice)
{
	struct resv r;

	resv_init(&r, 100, NULL, NULL);
	cr_assert(zero(int, resv_take(&r, 60)));
	cr_assert(eq(int, resv_take(&r, 41), -ENOSPC));
	expect_resv(&r, 100, 60);
	cr_assert(zero(int, resv_take(&r, 40)));
	cr_assert(eq(int, resv_take(&r, 1), -ENOSPC));
	cr_assert(zero(int, resv_take(&r, 0)));
	resv_give(&r, 1);
	cr_assert(zero(int, resv_take(&r, 1)));
	resv_give(&r, 100);
	resv_fini(&r);
}

Test(resv, more_than_there_are_numbers_is_refused)
{
	struct resv r;

	resv_init(&r, UINT64_MAX, NULL, NULL);
	cr_assert(zero(int, resv_take(&r, 10)));
	cr_assert(eq(int, resv_take(&r, UINT64_MAX - 9), -ENOSPC));
	cr_assert(zero(int, resv_take(&r, UINT64_MAX - 10)));
	resv_give(&r, UINT64_MAX);
	resv_fini(&r);
}

Test(resv, growth_is_asked_for_the_sum_and_only_when_needed)
{
	struct resv r;

	memset(&growth, 0, sizeof growth);
	resv_init(&r, 0, grow, &growth);
	cr_assert(zero(int, resv_take(&r, 0)));
	cr_assert(zero(uint, growth.calls));
	cr_assert(zero(int, resv_take(&r, 10)));
	cr_assert(eq(uint, growth.calls, 1));
	cr_assert(eq(u64, growth.need, 10));
	growth.to = 100;
	cr_assert(zero(int, resv_take(&r, 5)));
	cr_assert(eq(u64, growth.need, 15));
	expect_resv(&r, 100, 15);
	cr_assert(zero(int, resv_take(&r, 85)));
	cr_assert(eq(uint, growth.calls, 2));
	resv_give(&r, 100);
	resv_fini(&r);
}

Test(resv, growth_that_fails_or_falls_short_promises_nothing)
{
	struct resv r;

	memset(&growth, 0, sizeof growth);
	resv_init(&r, 10, grow, &growth);
	growth.error = -ENOMEM;
	cr_assert(eq(int, resv_take(&r, 11), -ENOMEM));
	expect_resv(&r, 10, 0);
	growth.error = 0;
	growth.to = 12;
	cr_assert(eq(int, resv_take(&r, 13), -ENOSPC));
	expect_resv(&r, 12, 0); /* what it did grow is kept */
	resv_fini(&r);
}

Test(resv, what_is_gone_can_leave_more_promised_than_there_is)
{
	struct resv r;

	resv_init(&r, 10, NULL, NULL);
	cr_assert(zero(int, resv_take(&r, 10)));
	resv_shrink(&r, 3);
	expect_resv(&r, 7, 10);
	cr_assert(eq(int, resv_take(&r, 1), -ENOSPC));
	resv_give(&r, 3);
	cr_assert(eq(int, resv_take(&r, 1), -ENOSPC));
	resv_give(&r, 1);
	cr_assert(zero(int, resv_take(&r, 1)));
	resv_shrink(&r, 100); /* never below nothing */
	expect_resv(&r, 0, 7);
	resv_give(&r, 7);
	resv_fini(&r);
}

static void *
take_and_give(void *arg)
{
	struct resv *r = arg;

	for (unsigned i = 0; i < 20000; i++) {
		uint64_t max, used;

		if (resv_take(r, 3) < 0)
			continue;
		resv_get(r, &max, &used);
		if (used > max || used < 3)
			abort();
		resv_give(r, 3);
	}
	return NULL;
}

Test(resv, threads_never_get_more_than_there_is)
{
	struct resv r;
	pthread_t t[4];

	resv_init(&r, 7, NULL, NULL);
	for (unsigned i = 0; i < 4; i++)
		start(&t[i], take_and_give, &r);
	for (unsigned i = 0; i < 4; i++)
		join(t[i], "a thread that takes and gives");
	expect_resv(&r, 7, 0);
	resv_fini(&r);
}

#ifndef NDEBUG
TestSuite(resv_asserts, .timeout = 120);

Test(resv_asserts, a_promise_left_over_is_seen, .signal = SIGABRT)
{
	struct resv r;

	resv_init(&r, 1, NULL, NULL);
	resv_take(&r, 1);
	resv_fini(&r);
}

Test(resv_asserts, what_was_not_promised_is_not_given_back, .signal = SIGABRT)
{
	struct resv r;

	resv_init(&r, 1, NULL, NULL);
	resv_give(&r, 1);
}
#endif
Test(page, what_is_mapped_counts_for_the_account_and_its_group)
{
	struct account *group = account_create(&zones, NULL);
	struct account *a = account_create(&zones, group);
	struct page *pg;

	some_object.account = a;
	pg = page_alloc(&pages, some_anon, some_leaf, 3, false);
	cr_assert(eq(sz, atomic_load(&a->mapped), 0));
	page_enqueue(&pages, pg, Q_ACTIVE, PAGE_MAPPED);
	cr_assert(eq(sz, atomic_load(&a->mapped), 1));
	cr_assert(eq(sz, atomic_load(&group->mapped), 1));
	pthread_mutex_lock(&pages.lock);
	page_dequeue_locked(&pages, pg);
	pthread_mutex_unlock(&pages.lock);
	cr_assert(eq(sz, atomic_load(&a->mapped), 0));
	cr_assert(eq(sz, atomic_load(&group->mapped), 0));
	page_free(&pages, pg);
	some_object.account = NULL;
	account_unref(group);
	account_unref(a);
}
