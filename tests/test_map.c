/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Tests of lib/vm/map.c: lookup, insert, remove, clip, and the checker.
 *
 * The map alone, with zones over plain heap.  Objects are not used, only counted: three static
 * ones, of which nothing but `refs` is ever touched.  rig_check() holds after every step: the
 * map is sound, and each object has as many references as entries point at it.  Small maps are
 * compared as text, in pages:
 *
 *	"2-6 a+0, 6-8 b+3"	[2, 6) is page 0 and on of object a, [6, 8) page 3 and on of b
 */
#include "assertions.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "heap_arena.h"
#include "vm/map.h"
#include "vm/object.h"

TestSuite(map, .timeout = 60);

/* ---- the rig ---- */

#define BASE ((uintptr_t)0x7f0000000000)

static struct heap_arena heap;
static struct map_zones zones;
static struct map map;
static struct object obj_a, obj_b, obj_c;

static uintptr_t
addr(size_t page)
{
	return BASE + (page << PAGE_SHIFT);
}

static unsigned
refs(const struct object *o)
{
	return atomic_load(&o->refs);
}

static char
name(const struct object *o)
{
	return o == &obj_a ? 'a' : o == &obj_b ? 'b' : o == &obj_c ? 'c' : '-';
}

static void
rig_up(void)
{
	heap_arena_init(&heap, 64 << 20, 64 << 20);
	map_zones_init(&zones, &heap.arena);
	map_init(&map, &zones);
}

static struct map_entry *
new_entry(size_t page, size_t npages, struct object *o, uint64_t offset)
{
	struct map_entry *e = map_entry_alloc(&map, ZONE_NOWAIT);

	cr_assert(ne(ptr, e, NULL), "the zone has room");
	e->start = addr(page);
	e->end = addr(page + npages);
	e->object = o;
	e->offset = offset;
	if (o != NULL)
		object_ref(o);
	return e;
}

/* Of an entry that is in no map. */
static void
drop_entry(struct map_entry *e)
{
	if (e->object != NULL)
		atomic_fetch_sub(&e->object->refs, 1);
	map_entry_free(&map, e);
}

static struct map_entry *
add(size_t page, size_t npages, struct object *o, uint64_t offset)
{
	struct map_entry *e = new_entry(page, npages, o, offset);

	cr_assert(eq(int, map_insert(&map, e), 0));
	return e;
}

static void
rig_down(void)
{
	while (map.first != NULL) {
		struct map_entry *e = map.first;

		map_remove(&map, e);
		drop_entry(e);
	}
	cr_assert(eq(uint, refs(&obj_a) + refs(&obj_b) + refs(&obj_c), 0));
	map_check(&map);
	map_fini(&map);
	map_zones_fini(&zones);
	heap_arena_fini(&heap);
}

static void
rig_check(void)
{
	unsigned a = 0, b = 0, c = 0;

	map_check(&map);
	for (const struct map_entry *e = map.first; e != NULL; e = e->next) {
		a += e->object == &obj_a;
		b += e->object == &obj_b;
		c += e->object == &obj_c;
	}
	cr_assert(eq(uint, refs(&obj_a), a));
	cr_assert(eq(uint, refs(&obj_b), b));
	cr_assert(eq(uint, refs(&obj_c), c));
}

static char *
map_text(void)
{
	static char text[512];
	size_t len = 0;

	text[0] = '\0';
	for (const struct map_entry *e = map.first; e != NULL; e = e->next) {
		len += (size_t)snprintf(text + len, sizeof text - len, "%s%zu-%zu %c+%" PRIu64,
					len == 0 ? "" : ", ", (e->start - BASE) >> PAGE_SHIFT,
					(e->end - BASE) >> PAGE_SHIFT, name(e->object), e->offset);
		cr_assert(lt(sz, len, sizeof text), "too many entries for text");
	}
	return text;
}

/* Clip with fresh spares; returns how many were used. */
static unsigned
clip(size_t start, size_t end)
{
	struct map_entry *spare[2] = { map_entry_alloc(&map, ZONE_NOWAIT),
				       map_entry_alloc(&map, ZONE_NOWAIT) };
	unsigned used;

	cr_assert(spare[0] != NULL && spare[1] != NULL);
	map_clip(&map, addr(start), addr(end), spare);
	used = (spare[0] == NULL) + (spare[1] == NULL);
	for (unsigned i = 0; i < 2; i++) {
		if (spare[i] != NULL)
			map_entry_free(&map, spare[i]);
	}
	return used;
}

static size_t
tree_nodes(const struct map_node *node)
{
	size_t n = 1;

	if (node == NULL)
		return 0;
	for (unsigned i = 0; node->level > 0 && i < node->n; i++)
		n += tree_nodes(node->child[i]);
	return n;
}

/* splitmix64 */
static uint64_t
random_next(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static size_t
random_below(uint64_t *state, size_t n)
{
	return (size_t)(random_next(state) % n);
}

/* ---- entries ---- */

Test(map, an_entry_starts_zeroed_even_when_it_is_a_used_one, .init = rig_up, .fini = rig_down)
{
	static const struct map_entry zero;
	struct map_entry *e[8];

	for (unsigned round = 0; round < 2; round++) {
		for (size_t i = 0; i < ARRAY_SIZE(e); i++) {
			e[i] = map_entry_alloc(&map, ZONE_WAIT);
			cr_assert(ne(ptr, e[i], NULL));
			cr_assert(eq(int, memcmp((char *)e[i], (const char *)&zero, sizeof zero),
				     0),
				  "round %u", round);
		}
		for (size_t i = 0; i < ARRAY_SIZE(e); i++) {
			memset(e[i], 0xa5, sizeof *e[i]);
			e[i]->linked = false;
			atomic_store(&e[i]->streams, NULL);
			map_entry_free(&map, e[i]);
		}
	}
	cr_assert(zero(sz, zone_count(&zones.entry)));
	cr_assert(eq(sz, zone_count(&zones.part), map.nspare));
}

Test(map, an_entry_without_room_is_null_and_the_next_one_is_there, .init = rig_up, .fini = rig_down)
{
	atomic_store(&zones.entry.fail_in, 1);
	cr_assert(eq(ptr, map_entry_alloc(&map, ZONE_NOWAIT), NULL));
	for (unsigned nth = 1; nth <= 2; nth++) {
		atomic_store(&zones.part.fail_in, nth);
		cr_assert(eq(ptr, map_entry_alloc(&map, ZONE_NOWAIT), NULL));
		cr_assert(zero(sz, zone_count(&zones.entry)));
	}
	add(0, 1, &obj_a, 0);
	rig_check();
}

/* ---- lookup ---- */

Test(map, an_empty_map_holds_nothing, .init = rig_up, .fini = rig_down)
{
	map_check(&map);
	cr_assert(eq(ptr, map_lookup(&map, addr(0)), NULL));
	cr_assert(eq(ptr, map_first_from(&map, 0), NULL));
	cr_assert(not(map_covers(&map, addr(0), addr(1))));
	cr_assert(eq(uint, clip(0, 1), 0));
	map_check(&map);
}

Test(map, lookup_finds_the_entry_from_its_first_byte_to_its_last, .init = rig_up, .fini = rig_down)
{
	struct map_entry *low = add(2, 4, &obj_a, 0), *high = add(8, 1, &obj_b, 0);

	rig_check();
	cr_assert(eq(ptr, map_lookup(&map, 0), NULL));
	cr_assert(eq(ptr, map_lookup(&map, addr(2) - 1), NULL));
	cr_assert(eq(ptr, map_lookup(&map, addr(2)), low));
	cr_assert(eq(ptr, map_lookup(&map, addr(4) + 123), low));
	cr_assert(eq(ptr, map_lookup(&map, addr(6) - 1), low));
	cr_assert(eq(ptr, map_lookup(&map, addr(6)), NULL));
	cr_assert(eq(ptr, map_lookup(&map, addr(8)), high));
	cr_assert(eq(ptr, map_lookup(&map, addr(9) - 1), high));
	cr_assert(eq(ptr, map_lookup(&map, addr(9)), NULL));
	cr_assert(eq(ptr, map_lookup(&map, UINTPTR_MAX), NULL));
}

Test(map, first_from_is_the_lowest_entry_that_ends_above_the_address, .init = rig_up,
     .fini = rig_down)
{
	struct map_entry *low = add(2, 4, &obj_a, 0), *mid = add(6, 1, &obj_b, 0),
			 *high = add(10, 2, &obj_c, 0);

	rig_check();
	cr_assert(eq(ptr, map_first_from(&map, 0), low));
	cr_assert(eq(ptr, map_first_from(&map, addr(2) - 1), low));
	cr_assert(eq(ptr, map_first_from(&map, addr(2)), low));
	cr_assert(eq(ptr, map_first_from(&map, addr(6) - 1), low));
	cr_assert(eq(ptr, map_first_from(&map, addr(6)), mid), "an end is outside");
	cr_assert(eq(ptr, map_first_from(&map, addr(7)), high), "a gap leads to what follows it");
	cr_assert(eq(ptr, map_first_from(&map, addr(12) - 1), high));
	cr_assert(eq(ptr, map_first_from(&map, addr(12)), NULL));

	cr_assert(eq(ptr, low->next, mid));
	cr_assert(eq(ptr, mid->next, high));
	cr_assert(eq(ptr, high->next, NULL));
}

Test(map, a_tree_of_100000_entries_has_five_levels_and_finds_each, .init = rig_up, .fini = rig_down)
{
	enum { N = 100000 };
	static uint32_t order[N];
	uint64_t seed = 100;

	/* Half of them from the bottom up, the others shuffled. */
	for (uint32_t i = 0; i < N; i++)
		order[i] = i;
	for (uint32_t i = N - 1; i > N / 2; i--) {
		const size_t j = N / 2 + random_below(&seed, i - N / 2 + 1);
		const uint32_t t = order[i];

		order[i] = order[j];
		order[j] = t;
	}
	for (size_t i = 0; i < N; i++)
		add((size_t)order[i] * 3, 1 + order[i] % 2, &obj_a, 0);
	rig_check();
	cr_assert(eq(sz, map.n, N));
	cr_assert(eq(u64, map.pages, (uint64_t)N * 3 / 2));
	cr_assert(eq(uint, map.levels, 5));
	for (size_t i = 0; i < (size_t)N * 3; i++) {
		const struct map_entry *e = map_lookup(&map, addr(i) + i % PAGE_SIZE);
		const bool there = i % 3 < 1 + i / 3 % 2;

		cr_assert(eq(int, e != NULL, there), "page %zu", i);
		if (there)
			cr_assert(eq(ulong, e->start, addr(i - i % 3)), "page %zu", i);
	}
}

Test(map, covers_is_true_only_without_a_gap, .init = rig_up, .fini = rig_down)
{
	/* 2..6 and 6..8 touch; 8..9 is a gap; 9..10 */
	static const struct {
		size_t start, end;
		bool covered;
	} want[] = {
		{ 2, 6, true },	  { 2, 8, true },   { 3, 5, true },    { 5, 7, true },
		{ 6, 8, true },	  { 9, 10, true },  { 1, 3, false },   { 1, 2, false },
		{ 2, 9, false },  { 7, 10, false }, { 8, 9, false },   { 8, 10, false },
		{ 9, 11, false }, { 0, 20, false }, { 10, 11, false },
	};

	add(9, 1, &obj_b, 0);
	add(2, 4, &obj_a, 0);
	add(6, 2, &obj_c, 7);
	rig_check();
	for (size_t i = 0; i < ARRAY_SIZE(want); i++) {
		cr_assert(eq(int, map_covers(&map, addr(want[i].start), addr(want[i].end)),
			     want[i].covered),
			  "[%zu, %zu)", want[i].start, want[i].end);
	}
}

/* ---- insert and remove ---- */

Test(map, inserting_over_an_entry_is_eexist_and_changes_nothing, .init = rig_up, .fini = rig_down)
{
	static const struct {
		size_t start, n;
	} over[] = {
		{ 4, 4 },				 /* the same */
		{ 5, 1 },				 /* inside */
		{ 4, 1 },  { 7, 1 }, { 3, 2 }, { 7, 2 }, /* over an edge */
		{ 3, 6 },				 /* around */
		{ 7, 4 },				 /* across the gap into the next one */
		{ 0, 40 },				 /* all */
	};
	char before[512];

	add(4, 4, &obj_a, 10);
	add(10, 4, &obj_b, 20);
	add(20, 1, &obj_c, 0);
	snprintf(before, sizeof before, "%s", map_text());

	for (size_t i = 0; i < ARRAY_SIZE(over); i++) {
		struct map_entry *e = new_entry(over[i].start, over[i].n, NULL, 3), copy;

		memcpy(&copy, e, sizeof copy);
		cr_assert(eq(int, map_insert(&map, e), -EEXIST), "case %zu", i);
		cr_assert(eq(int, memcmp((char *)&copy, (char *)e, sizeof copy), 0), "case %zu", i);
		cr_assert(eq(str, map_text(), before), "case %zu", i);
		cr_assert(eq(sz, map.n, 3));
		rig_check();
		drop_entry(e);
	}

	/* Touching is no overlap: the gap can be filled to the page. */
	add(8, 2, &obj_c, 0);
	add(3, 1, &obj_c, 0);
	rig_check();
	cr_assert(eq(str, map_text(), "3-4 c+0, 4-8 a+10, 8-10 c+0, 10-14 b+20, 20-21 c+0"));
}

Test(map, a_removed_entry_belongs_to_the_caller_and_can_be_put_back, .init = rig_up,
     .fini = rig_down)
{
	struct map_entry *e;

	add(0, 2, &obj_a, 0);
	e = add(2, 2, &obj_b, 5);
	add(4, 2, &obj_c, 0);

	map_remove(&map, e);
	cr_assert(eq(str, map_text(), "0-2 a+0, 4-6 c+0"));
	cr_assert(eq(u64, map.pages, 4));
	cr_assert(eq(uint, refs(&obj_b), 1), "the reference went with the entry");
	map_check(&map);

	e->start += PAGE_SIZE;
	cr_assert(eq(int, map_insert(&map, e), 0));
	cr_assert(eq(str, map_text(), "0-2 a+0, 3-4 b+5, 4-6 c+0"));
	rig_check();
}

static void
swap(unsigned *a, unsigned *b)
{
	const unsigned t = *a;

	*a = *b;
	*b = t;
}

/* Next permutation in lexical order; false after the last. */
static bool
permute(unsigned *p, unsigned n)
{
	unsigned i = n - 1, j = n - 1;

	while (i > 0 && p[i - 1] > p[i])
		i--;
	if (i == 0)
		return false;
	while (p[j] < p[i - 1])
		j--;
	swap(&p[i - 1], &p[j]);
	for (j = n - 1; i < j; i++, j--)
		swap(&p[i], &p[j]);
	return true;
}

Test(map, any_order_of_inserting_and_removing_keeps_the_tree_and_the_entries_in_place,
     .init = rig_up, .fini = rig_down)
{
	enum { N = 7 };
	unsigned in[N], out[N];
	struct map_entry *e[N];
	unsigned long trees = 0;

	/* All 5,040 orders in, each with another order out, which go through all of them too. */
	for (unsigned i = 0; i < N; i++) {
		in[i] = i;
		out[i] = (i * 3) % N;
	}
	do {
		for (unsigned i = 0; i < N; i++) {
			e[in[i]] = add(in[i] * 2, 1, NULL, in[i]);
			map_check(&map);
		}
		for (unsigned i = 0; i < N; i++) {
			map_remove(&map, e[out[i]]);
			map_check(&map);
			map_entry_free(&map, e[out[i]]);
			e[out[i]] = NULL;
			for (unsigned k = 0; k < N; k++)
				cr_assert(eq(ptr, map_lookup(&map, addr(k * 2)), e[k]));
		}
		if (!permute(out, N)) {
			for (unsigned i = 0; i < N; i++)
				out[i] = i;
		}
		trees++;
	} while (permute(in, N));
	cr_assert(eq(ulong, trees, 5040));
}

/* ---- clip ---- */

#define CHURN 4000

/* Entries of one page each at every other one: e[i] if there is one. */
static void
churn_check(struct map_entry *const e[])
{
	struct map_entry *next = NULL;
	size_t n = 0;

	map_check(&map);
	for (size_t i = CHURN; i-- > 0;) {
		n += e[i] != NULL;
		next = e[i] != NULL ? e[i] : next;
		cr_assert(eq(ptr, map_lookup(&map, addr(2 * i)), e[i]), "%zu", i);
		cr_assert(zero(ptr, map_lookup(&map, addr(2 * i + 1))), "%zu", i);
		cr_assert(eq(ptr, map_first_from(&map, addr(2 * i)), next));
	}
	cr_assert(eq(sz, map.n, n));
	/* Nodes that are joined when they can be are half full, nearly. */
	if (map.nloose == 0)
		cr_assert(le(sz, tree_nodes(map.root), 3 * n / MAP_FANOUT + map.levels));
}

static void
churn_toggle(struct map_entry *e[], size_t i)
{
	if (e[i] != NULL) {
		map_remove(&map, e[i]);
		map_entry_free(&map, e[i]);
		e[i] = NULL;
	} else {
		e[i] = add(2 * i, 1, NULL, 0);
	}
}

Test(map, a_tree_that_grows_and_shrinks_finds_all_and_keeps_its_nodes_full, .init = rig_up,
     .fini = rig_down)
{
	static struct map_entry *e[CHURN];
	uint64_t seed = 3;

	/* Upwards: as full as can be.  Downwards, and out again from either end. */
	for (unsigned way = 0; way < 4; way++) {
		for (size_t i = 0; i < CHURN; i++)
			churn_toggle(e, way % 2 == 0 ? i : CHURN - 1 - i);
		churn_check(e);
		if (way == 0)
			cr_assert(lt(sz, tree_nodes(map.root),
				     (size_t)CHURN / MAP_FANOUT * 11 / 10 + map.levels));
		for (size_t i = 0; i < CHURN; i++) {
			churn_toggle(e, way < 2 ? i : CHURN - 1 - i);
			if (i % 1000 == 999)
				churn_check(e);
		}
		cr_assert(zero(ptr, map.root));
	}
	/* To about this many, at random, and on. */
	for (unsigned phase = 0; phase < 12; phase++) {
		const size_t want = phase % 2 == 0 ? CHURN * 9 / 10 : phase % 4 == 1 ? 10 : 500;

		for (unsigned k = 0; map.n != want; k++) {
			const size_t i = random_below(&seed, CHURN);

			if ((e[i] == NULL) == (map.n < want) || (k < 20000 && k % 5 == 0))
				churn_toggle(e, i);
		}
		churn_check(e);
	}
}

Test(map, entries_without_a_place_in_the_tree_are_found_all_the_same, .init = rig_up,
     .fini = rig_down)
{
	static struct map_entry *e[CHURN], *ready[CHURN];
	uint64_t seed = 8;
	size_t loose = 0;

	for (unsigned round = 0; round < 4; round++) {
		size_t n = 0;

		/* Many at once have not what they need, and then there is no more memory. */
		for (size_t i = round; i < CHURN; i += 3) {
			if (e[i] == NULL)
				ready[i] = new_entry(2 * i, 1, NULL, 0);
		}
		for (size_t k = 0; k < CHURN; k++) {
			const size_t i = round == 0 ? k : random_below(&seed, CHURN);

			if (ready[i] == NULL)
				continue;
			atomic_store(&zones.part.fail_in, round % 2 == 0 || k % 2 == 0);
			cr_assert(zero(int, map_insert(&map, ready[i])));
			e[i] = ready[i];
			ready[i] = NULL;
			n++;
		}
		atomic_store(&zones.part.fail_in, 0);
		cr_assert(gt(sz, n, 0));
		for (size_t i = 0; i < CHURN; i++) {
			if (ready[i] != NULL)
				map_entry_free(&map, ready[i]);
			ready[i] = NULL;
		}
		loose += map.nloose;
		churn_check(e);
		for (unsigned k = 0; k < CHURN / 2; k++)
			churn_toggle(e, random_below(&seed, CHURN));
		churn_check(e);
	}
	cr_assert(gt(sz, loose, 100));
	for (size_t i = 0; i < CHURN; i++) {
		if (e[i] != NULL)
			churn_toggle(e, i);
	}
	cr_assert(zero(ptr, map.root));
	cr_assert(zero(sz, map.nloose));
}

Test(map, clipping_at_the_edges_of_entries_or_in_gaps_splits_nothing, .init = rig_up,
     .fini = rig_down)
{
	add(4, 4, &obj_a, 0);
	add(8, 2, &obj_b, 0);
	add(12, 2, &obj_c, 0);
	cr_assert(eq(uint, clip(4, 8), 0));
	cr_assert(eq(uint, clip(4, 14), 0));
	cr_assert(eq(uint, clip(0, 20), 0));
	cr_assert(eq(uint, clip(10, 11), 0));
	cr_assert(eq(uint, clip(2, 3), 0));
	cr_assert(eq(uint, clip(30, 40), 0));
	cr_assert(eq(str, map_text(), "4-8 a+0, 8-10 b+0, 12-14 c+0"));
	rig_check();
}

Test(map, clipping_at_one_edge_uses_one_spare, .init = rig_up, .fini = rig_down)
{
	add(4, 4, &obj_a, 100);
	cr_assert(eq(uint, clip(0, 6), 1), "the upper edge is inside");
	cr_assert(eq(str, map_text(), "4-6 a+100, 6-8 a+102"));
	rig_check();

	cr_assert(eq(uint, clip(7, 20), 1), "the lower edge is inside");
	cr_assert(eq(str, map_text(), "4-6 a+100, 6-7 a+102, 7-8 a+103"));
	cr_assert(eq(uint, refs(&obj_a), 3));
	rig_check();
}

Test(map, clipping_at_both_edges_splits_two_entries_and_leaves_those_between, .init = rig_up,
     .fini = rig_down)
{
	add(0, 4, &obj_a, 10);
	add(4, 2, &obj_b, 0);
	add(8, 4, &obj_c, 20);
	cr_assert(eq(uint, clip(1, 11), 2));
	cr_assert(eq(str, map_text(), "0-1 a+10, 1-4 a+11, 4-6 b+0, 8-11 c+20, 11-12 c+23"));
	rig_check();
	cr_assert(eq(uint, clip(1, 11), 0), "a second time there is nothing to do");
	rig_check();
}

Test(map, clipping_inside_one_entry_uses_both_spares, .init = rig_up, .fini = rig_down)
{
	add(10, 10, &obj_a, 1000);
	cr_assert(eq(uint, clip(13, 17), 2));
	cr_assert(eq(str, map_text(), "10-13 a+1000, 13-17 a+1003, 17-20 a+1007"));
	cr_assert(eq(uint, refs(&obj_a), 3));
	cr_assert(eq(u64, map.pages, 10));
	rig_check();
}

Test(map, an_extended_entry_is_found_as_far_as_it_reaches, .init = rig_up, .fini = rig_down)
{
	struct map_entry *low = add(2, 4, &obj_a, 0), *high = add(10, 2, &obj_b, 0);

	map_extend(&map, low, addr(9));
	rig_check();
	cr_assert(eq(str, map_text(), "2-9 a+0, 10-12 b+0"));
	cr_assert(eq(ptr, map_lookup(&map, addr(9) - 1), low));
	cr_assert(eq(ptr, map_lookup(&map, addr(9)), NULL));
	map_extend(&map, low, addr(10)); /* up to its neighbour */
	map_extend(&map, high, addr(20));
	rig_check();
	cr_assert(eq(ptr, map_lookup(&map, addr(9)), low));
	cr_assert(eq(ptr, map_lookup(&map, addr(19)), high));
	cr_assert(eq(u64, map.pages, 18));
}

/* Join with what is given back dropped; returns how many. */
static unsigned
join(size_t start, size_t end)
{
	struct map_entry *gone = map_join(&map, addr(start), addr(end)), *e;
	unsigned n = 0;

	for (; (e = gone) != NULL; n++) {
		gone = e->next;
		drop_entry(e);
	}
	rig_check();
	return n;
}

Test(map, halves_that_are_alike_again_are_joined, .init = rig_up, .fini = rig_down)
{
	struct map_entry *low = add(10, 30, &obj_a, 5), *e;

	clip(20, 25);
	cr_assert(eq(str, map_text(), "10-20 a+5, 20-25 a+15, 25-40 a+20"));
	cr_assert(eq(uint, join(20, 25), 2));
	cr_assert(eq(str, map_text(), "10-40 a+5"));
	cr_assert(eq(ptr, map.first, low), "the lower half stays");

	/* What says that a page is poisoned stays said. */
	clip(20, 25);
	e = map_lookup(&map, addr(22));
	atomic_store(&e->unrecorded, true);
	e->prot = PROT_READ;
	cr_assert(eq(uint, join(20, 25), 0));
	e->prot = low->prot;
	cr_assert(eq(uint, join(20, 25), 2));
	cr_assert(atomic_load(&low->unrecorded));

	/* Only what the range, or its edges, touch. */
	clip(15, 20);
	clip(30, 35);
	cr_assert(eq(uint, join(15, 20), 2));
	cr_assert(eq(str, map_text(), "10-30 a+5, 30-35 a+25, 35-40 a+30"));
}

Test(map, what_is_not_alike_is_not_joined, .init = rig_up, .fini = rig_down)
{
	struct map_entry *e[7];

	/* Other objects, a gap, a gap in the object; then each of what an entry is. */
	add(10, 5, &obj_a, 0);
	add(15, 5, &obj_b, 5);
	add(20, 5, &obj_b, 11);
	add(26, 5, &obj_b, 16);
	for (size_t i = 0; i < ARRAY_SIZE(e); i++)
		e[i] = add(40 + i, 1, &obj_c, i);
	e[0]->prot = PROT_READ;
	e[1]->advice = UP_ADVICE_RANDOM;
	e[2]->inherit = UP_INHERIT_COPY;
	e[3]->flags = UP_SHARED;
	map_wire(&map, e[4], 1);
	e[5]->shard = 1;
	e[6]->serial = 7;
	cr_assert(eq(uint, join(0, 100), 0));
	cr_assert(eq(sz, map.n, 11));
}

Test(map, an_entry_without_an_object_is_clipped_too, .init = rig_up, .fini = rig_down)
{
	add(0, 3, NULL, 0);
	cr_assert(eq(uint, clip(1, 2), 2));
	cr_assert(eq(str, map_text(), "0-1 -+0, 1-2 -+1, 2-3 -+2"));
	rig_check();
}

Test(map, the_upper_half_of_a_clip_keeps_what_the_entry_is_and_forgets_its_streams, .init = rig_up,
     .fini = rig_down)
{
	struct map_entry *low = add(0, 8, &obj_a, 0), *high;
	struct ra_streams *rs;

	low->prot = 5;
	low->advice = UP_ADVICE_SEQUENTIAL;
	low->flags = UP_PRIVATE;
	low->shard = 3;
	map_wire(&map, low, 7);
	cr_assert(zero(ptr, atomic_load(&low->streams)));
	rs = map_streams(&map, low);
	cr_assert(ne(ptr, rs, NULL));
	cr_assert(eq(ptr, map_streams(&map, low), rs));

	cr_assert(eq(uint, clip(4, 8), 1));
	rig_check();
	high = map_lookup(&map, addr(4));
	cr_assert(eq(ptr, map_lookup(&map, addr(3)), low), "the lower half is the old entry");
	cr_assert(eq(int, high->prot, 5));
	cr_assert(eq(int, (int)high->advice, UP_ADVICE_SEQUENTIAL));
	cr_assert(eq(uint, high->flags, UP_PRIVATE));
	cr_assert(eq(uint, high->shard, 3));
	cr_assert(eq(uint, high->wired, 7));
	cr_assert(eq(ptr, atomic_load(&low->streams), rs));
	cr_assert(zero(ptr, atomic_load(&high->streams)));
	atomic_store(&zones.part.fail_in, 1);
	cr_assert(zero(ptr, map_streams(&map, high)), "there is no memory");
	cr_assert(ne(ptr, map_streams(&map, high), NULL));
}

/* ---- the lock ---- */

static void *
write_lock_once(void *arg)
{
	struct map *m = arg;

	pthread_rwlock_wrlock(&m->lock);
	pthread_rwlock_unlock(&m->lock);
	return NULL;
}

/*
 *	here	rdlock ............ try again, until told EBUSY ...... unlock, join
 *	writer		wrlock, waits .................................. gets it
 */
Test(map, a_waiting_writer_goes_ahead_of_new_readers, .init = rig_up, .fini = rig_down)
{
	const uint64_t deadline = now_ns() + UINT64_C(20000000000);
	pthread_t writer;

	pthread_rwlock_rdlock(&map.lock);
	cr_assert(eq(int, pthread_create(&writer, NULL, write_lock_once, &map), 0));
	while (pthread_rwlock_tryrdlock(&map.lock) == 0) {
		pthread_rwlock_unlock(&map.lock);
		cr_assert(lt(u64, now_ns(), deadline), "readers overtake a waiting writer");
		sched_yield();
	}
	pthread_rwlock_unlock(&map.lock);
	pthread_join(writer, NULL);
}

/* ---- against an oracle ---- */

#define SPAN ((size_t)512) /* pages that the random test plays on */

/* One page: what it belongs to, and whether an entry begins there. */
struct model_page {
	struct object *object; /* NULL: unmapped */
	uint64_t offset;
	int prot;
	bool begins;
};

struct model {
	struct model_page page[SPAN + 1]; /* the last one stays unmapped */
	uint64_t seed, state;
	unsigned op;
};

#define model_assert(md, cond)                                                               \
	do {                                                                                 \
		if (!(cond))                                                                 \
			cr_fatal("seed %" PRIu64 ", operation %u: %s", (md)->seed, (md)->op, \
				 #cond);                                                     \
	} while (0)

static void
model_cut(struct model *md, size_t at, unsigned *cuts)
{
	struct model_page *p = &md->page[at];

	if (p->object != NULL && !p->begins) {
		p->begins = true;
		++*cuts;
	}
}

/* A page that is unmapped ends the entry before it, so what follows must begin by itself. */
static void
model_clear(struct model *md, size_t start, size_t end)
{
	memset(&md->page[start], 0, (end - start) * sizeof md->page[0]);
	model_assert(md, md->page[end].object == NULL || md->page[end].begins);
}

static size_t
model_entry_end(const struct model *md, size_t at)
{
	do {
		at++;
	} while (md->page[at].object != NULL && !md->page[at].begins);
	return at;
}

static void
model_compare(const struct model *md)
{
	const struct map_entry *e = map.first;
	size_t at = 0, n = 0;

	while (at < SPAN) {
		const struct model_page *p = &md->page[at];

		if (p->object == NULL) {
			at++;
			continue;
		}
		model_assert(md, e != NULL);
		model_assert(md, e->start == addr(at));
		at = model_entry_end(md, at);
		model_assert(md, e->end == addr(at));
		model_assert(md, e->object == p->object);
		model_assert(md, e->offset == p->offset);
		model_assert(md, e->prot == p->prot);
		e = e->next;
		n++;
	}
	model_assert(md, e == NULL);
	model_assert(md, map.n == n);
	model_assert(md, zone_count(&zones.entry) == n);
	model_assert(md, zone_count(&zones.part) == map.nspare + tree_nodes(map.root));
}

static void
model_ask(struct model *md)
{
	const size_t at = random_below(&md->state, SPAN);
	const size_t end = at + 1 + random_below(&md->state, MIN(SPAN - at, 24));
	const uintptr_t va = addr(at) + random_below(&md->state, PAGE_SIZE);
	const struct map_entry *e = map_lookup(&map, va);
	size_t first = at, gap = at;

	model_assert(md, (e != NULL) == (md->page[at].object != NULL));
	model_assert(md, e == NULL || (e->start <= va && va < e->end));

	while (first < SPAN && md->page[first].object == NULL)
		first++;
	e = map_first_from(&map, va);
	model_assert(md, (e != NULL) == (first < SPAN));
	model_assert(md, e == NULL || e == map_lookup(&map, addr(first)));

	while (gap < end && md->page[gap].object != NULL)
		gap++;
	model_assert(md, map_covers(&map, va, addr(end)) == (gap == end));
}

static void
model_insert(struct model *md)
{
	static struct object *const objects[] = { &obj_a, &obj_b, &obj_c };
	const size_t at = random_below(&md->state, SPAN);
	const size_t n = 1 + random_below(&md->state, MIN(SPAN - at, 24));
	struct object *o = objects[random_below(&md->state, ARRAY_SIZE(objects))];
	const uint64_t offset = random_below(&md->state, 1000000);
	struct map_entry *e = new_entry(at, n, o, offset);
	bool free = true;

	e->prot = (int)random_below(&md->state, 8);
	for (size_t i = at; i < at + n; i++)
		free &= md->page[i].object == NULL;
	if (!free) {
		model_assert(md, map_insert(&map, e) == -EEXIST);
		drop_entry(e);
		return;
	}
	model_assert(md, map_insert(&map, e) == 0);
	for (size_t i = 0; i < n; i++)
		md->page[at + i] = (struct model_page){ o, offset + i, e->prot, i == 0 };
}

/* Clip a range and, if `unmap`, remove what is in it. */
static void
model_clip(struct model *md, bool unmap)
{
	const size_t at = random_below(&md->state, SPAN);
	const size_t end = at + 1 + random_below(&md->state, MIN(SPAN - at, 32));
	unsigned cuts = 0;

	model_cut(md, at, &cuts);
	model_cut(md, end, &cuts);
	model_assert(md, clip(at, end) == cuts);
	if (!unmap)
		return;
	for (struct map_entry *e = map_first_from(&map, addr(at)), *next;
	     e != NULL && e->start < addr(end); e = next) {
		next = e->next;
		model_assert(md, e->start >= addr(at) && e->end <= addr(end));
		map_remove(&map, e);
		drop_entry(e);
	}
	model_clear(md, at, end);
}

static void
model_remove(struct model *md)
{
	struct map_entry *e = map_first_from(&map, addr(random_below(&md->state, SPAN)));
	size_t at;

	if (e == NULL)
		return;
	at = (e->start - BASE) >> PAGE_SHIFT;
	map_remove(&map, e);
	drop_entry(e);
	model_clear(md, at, model_entry_end(md, at));
}

static void
model_run(uint64_t seed)
{
	static struct model md;

	memset(&md, 0, sizeof md);
	md.seed = md.state = seed;
	for (md.op = 0; md.op < 20000; md.op++) {
		/* Now filling up, now emptying, so that maps of all sizes come by. */
		const size_t dice = random_below(&md.state, 100);
		const size_t inserts = md.op / 1000 % 2 == 0 ? 55 : 35;

		if (dice < inserts)
			model_insert(&md);
		else if (dice < inserts + 25)
			model_clip(&md, false);
		else if (dice < 90)
			model_remove(&md);
		else
			model_clip(&md, true);
		rig_check();
		model_compare(&md);
		model_ask(&md);
	}
	rig_down();
	rig_up();
}

Test(map, twenty_thousand_random_operations_agree_with_an_array_of_pages, .init = rig_up,
     .fini = rig_down)
{
	for (uint64_t seed = 1; seed <= 4; seed++)
		model_run(seed);
}

/* ---- the checker ---- */

/* Each takes a sound map of SOUND entries, in a tree of two levels, and spoils one thing. */
#define SOUND ((size_t)60)

static struct map_entry *
nth(size_t i)
{
	return map_lookup(&map, addr(i * 4));
}

static void
spoil_nothing(void)
{
}

static void
spoil_levels(void)
{
	map.levels++;
}

static void
spoil_level_of_a_leaf(void)
{
	map.root->child[1]->level = 1;
}

static void
spoil_order_of_keys(void)
{
	struct map_node *leaf = map.root->child[1];
	const uintptr_t key = leaf->key[1];

	leaf->key[1] = leaf->key[2];
	leaf->key[2] = key;
}

static void
spoil_order_of_children(void)
{
	struct map_node *child = map.root->child[1];

	map.root->child[1] = map.root->child[2];
	map.root->child[2] = child;
}

static void
spoil_key_of_a_leaf(void)
{
	map.root->child[1]->key[3] += PAGE_SIZE;
}

static void
spoil_bound_of_a_leaf(void)
{
	map.root->key[1] += PAGE_SIZE;
}

static void
spoil_leaf_lost_by_the_tree(void)
{
	map.root->n--;
}

static void
spoil_entry_lost_by_the_tree(void)
{
	map.root->child[0]->n--;
}

static void
spoil_empty_leaf(void)
{
	map.root->child[0]->n = 0;
}

static void
spoil_loop_in_the_tree(void)
{
	map.root->child[2] = map.root;
}

static void
spoil_loose(void)
{
	nth(5)->loose = true;
}

static void
spoil_nloose(void)
{
	map.nloose++;
}

static void
spoil_linked(void)
{
	nth(5)->linked = false;
}

static void
spoil_first(void)
{
	map.first = nth(1);
}

static void
spoil_next(void)
{
	nth(2)->next = nth(4);
}

static void
spoil_prev(void)
{
	nth(4)->prev = nth(2);
}

static void
spoil_loop_in_the_thread(void)
{
	nth(SOUND - 1)->next = nth(0);
}

static void
spoil_empty_map_with_a_first(void)
{
	map.root = NULL;
	map.n = 0;
	map.pages = 0;
}

static void
spoil_overlap(void)
{
	nth(2)->end += 3 * PAGE_SIZE;
	map.pages += 3;
}

static void
spoil_empty_entry(void)
{
	struct map_entry *e = nth(2);

	map.pages -= 2;
	e->end = e->start;
}

static void
spoil_alignment(void)
{
	nth(2)->start++;
	map.pages--; /* what [start + 1, end) rounds to */
}

static void
spoil_count(void)
{
	map.n++;
}

static void
spoil_pages(void)
{
	map.pages--;
}

/* The wait status of a child that spoils the map and checks it. */
static int
check_in_a_child(void (*spoil)(void))
{
	const struct rlimit no_core = { 0, 0 };
	pid_t pid;
	int status = 0;

	fflush(NULL);
	pid = fork();
	cr_assert(ge(int, pid, 0));
	if (pid == 0) {
		alarm(20);
		signal(SIGABRT, SIG_DFL);
		setrlimit(RLIMIT_CORE, &no_core);
		close(STDERR_FILENO);
		open("/dev/null", O_WRONLY);
		spoil();
		map_check(&map);
		_exit(0);
	}
	cr_assert(eq(int, waitpid(pid, &status, 0), pid));
	return status;
}

Test(map, the_checker_aborts_on_every_kind_of_damage, .init = rig_up, .fini = rig_down)
{
	static const struct {
		const char *name;
		void (*spoil)(void);
	} damage[] = {
		{ "levels", spoil_levels },
		{ "level of a leaf", spoil_level_of_a_leaf },
		{ "order of keys", spoil_order_of_keys },
		{ "order of children", spoil_order_of_children },
		{ "key of a leaf", spoil_key_of_a_leaf },
		{ "bound of a leaf", spoil_bound_of_a_leaf },
		{ "a leaf missing in the tree", spoil_leaf_lost_by_the_tree },
		{ "an entry missing in the tree", spoil_entry_lost_by_the_tree },
		{ "an empty leaf", spoil_empty_leaf },
		{ "a loop in the tree", spoil_loop_in_the_tree },
		{ "loose in the tree", spoil_loose },
		{ "count of loose ones", spoil_nloose },
		{ "linked", spoil_linked },
		{ "first", spoil_first },
		{ "next", spoil_next },
		{ "prev", spoil_prev },
		{ "a loop in the thread", spoil_loop_in_the_thread },
		{ "no root but a first", spoil_empty_map_with_a_first },
		{ "overlap", spoil_overlap },
		{ "empty entry", spoil_empty_entry },
		{ "alignment", spoil_alignment },
		{ "count", spoil_count },
		{ "pages", spoil_pages },
	};

#ifdef NDEBUG
	cr_skip("assertions are compiled out");
#endif
	for (size_t i = 0; i < SOUND; i++)
		add(i * 4, 2, &obj_a, i);
	rig_check();
	cr_assert(eq(uint, map.levels, 2));
	cr_assert(eq(int, check_in_a_child(spoil_nothing), 0), "a sound map passes");
	for (size_t i = 0; i < ARRAY_SIZE(damage); i++) {
		const int status = check_in_a_child(damage[i].spoil);
		const bool aborted = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;

		cr_assert(aborted, "%s: not noticed, status %#x", damage[i].name, status);
	}
}
