/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_multi.c: objects mapped in several places, and what forked children have of our memory, over the simulated kernel.
 *
 *	obj   0 1 2 3 4 5 6 7            a, b, c: places of ours
 *	a     |-------------|            kid: an address space that was forked from ours, or from another child's
 *	b         |-----|
 */
#include <errno.h>

#include "scene.h"

#define RW (PROT_READ | PROT_WRITE)
#define MULTI (UP_SHARED | UP_MULTI)
#define NPAGES 8u

TestSuite(multi, .timeout = 30);

static struct up_object *obj;

static struct up_object *
anon_object(size_t npages, unsigned flags)
{
	struct up_object *o;

	cr_assert(zero(int, up_object_create_anon(r->rt, npages * PAGE_SIZE, flags, &o)));
	return o;
}

static int
try_map(struct up_object *o, size_t first, size_t npages, int prot, unsigned flags, uintptr_t *va)
{
	void *p;
	const int ret =
		up_map(r->rt, NULL, npages * PAGE_SIZE, prot, flags, o, first * PAGE_SIZE, &p);

	*va = (uintptr_t)p;
	return ret;
}

/* Page by page: no run of zeros gets in the way of counting. */
static uintptr_t
map_part(struct up_object *o, size_t first, size_t npages, int prot)
{
	uintptr_t va;

	cr_assert(zero(int, try_map(o, first, npages, prot, MULTI, &va)));
	advise(va, npages, UP_ADVICE_RANDOM);
	return va;
}

static void
start(struct rig_config cfg)
{
	scene(cfg);
	obj = anon_object(NPAGES, 0);
}

static void
finish(void)
{
	up_object_unref(obj);
	over();
}

static uint64_t
promised(struct resv *resv)
{
	uint64_t max, used;

	resv_get(resv, &max, &used);
	return used;
}

static size_t
anons(void)
{
	return zone_count(&r->p->zones.anon);
}

/* --- several places --- */

Test(multi, what_is_written_in_one_place_is_seen_in_all)
{
	uintptr_t a, b, c;

	start((struct rig_config){ .seed = 1 });
	a = map_part(obj, 0, 8, RW);
	b = map_part(obj, 2, 3, RW);
	c = map_part(obj, 0, 8, PROT_READ);
	put_page(a + 2 * PAGE_SIZE, 100);
	check_page(b, 100);
	put_page(b + PAGE_SIZE, 101);
	check_page(a + 3 * PAGE_SIZE, 101);
	check_pages(c + 2 * PAGE_SIZE, 2, 100);
	check_zeros(c);
	cr_assert(eq(sz, anons(), 3));
	cr_assert(eq(u64, rig_stats(r).resident, 3 * PAGE_SIZE));
	unmap(a, 8);
	unmap(b, 3);
	unmap(c, 8);
	finish();
}

Test(multi, three_places_cost_one_write_and_one_read)
{
	uintptr_t va[3];

	start((struct rig_config){ .seed = 1 });
	for (unsigned i = 0; i < 3; i++)
		va[i] = map_part(obj, 0, 4, RW);
	put_pages(va[0], 4, 10);
	check_pages(va[1], 4, 10);
	check_pages(va[2], 4, 10);
	expect(ZEROS(4));
	/* Each is passed over once, as it was touched; then it goes, from all places. */
	press();
	rig_step(r);
	cr_assert(eq(u64, rig_stats(r).referenced, 4));
	relax();
	swap_out();
	expect(.pages_staged = 4, .pages_out = 4, WROTE(1, 4));
	for (unsigned i = 0; i < 3; i++)
		cr_assert(eq(int, sim_state(r->pm, va[i]), SIM_ABSENT));
	all_are(va[2], 4, SWAPPED);
	check_page(va[1], 10);
	expect(MAJOR(1), READ(1, 1));
	/* The others have it too, by a fault of the kernel's own. */
	check_page(va[0], 10);
	check_page(va[2], 10);
	expect();
	for (unsigned i = 0; i < 3; i++)
		unmap(va[i], 4);
	finish();
}

Test(multi, a_page_that_was_touched_in_one_of_two_places_stays)
{
	uintptr_t a, b;

	start((struct rig_config){ .seed = 1 });
	a = map_part(obj, 0, 4, RW);
	b = map_part(obj, 0, 4, RW);
	put_pages(a, 4, 10);
	/* The look that all survive, and that takes them out of the page tables. */
	press();
	rig_step(r);
	relax();
	cr_assert(eq(u64, rig_stats(r).referenced, 4));
	all_are(a, 4, MAPPED);
	check_page(b + PAGE_SIZE, 11);
	seen();
	press();
	rig_step(r);
	relax();
	expect(.pages_staged = 3);
	cr_assert(eq(u64, rig_stats(r).referenced, 5));
	cr_assert(eq(int, where(a), STAGED));
	cr_assert(eq(int, where(a + PAGE_SIZE), MAPPED));
	cr_assert(eq(int, where(b + 2 * PAGE_SIZE), STAGED));
	cr_assert(eq(int, where(b + 3 * PAGE_SIZE), STAGED));
	/* Not touched again: now it goes too. */
	press();
	rig_step(r);
	relax();
	cr_assert(eq(int, where(a + PAGE_SIZE), STAGED));
	cr_assert(eq(u64, rig_stats(r).referenced, 5));
	check_pages(b, 4, 10);
	unmap(a, 4);
	unmap(b, 4);
	finish();
}

Test(multi, a_page_leaves_all_places_or_none)
{
	uintptr_t a, b;

	/* The only calls that can fail here are those that take pages out. */
	for (unsigned nth = 1; nth <= 3; nth++) {
		start((struct rig_config){ .seed = nth });
		a = map_part(obj, 0, 4, RW);
		b = map_part(obj, 0, 4, RW);
		put_pages(a, 4, 10);
		check_pages(b, 4, 10);
		press();
		rig_step(r);
		relax();
		sim_fail_nth(&r->f, nth, SIM_BIT(SIM_REMOVE), -EAGAIN);
		press();
		for (unsigned i = 0; i < 4; i++) {
			rig_step(r);
			for (size_t k = 0; k < 4; k++) {
				const enum sim_state in_a = sim_state(r->pm, a + k * PAGE_SIZE);

				cr_assert(eq(int, in_a, sim_state(r->pm, b + k * PAGE_SIZE)));
				cr_assert(eq(int, in_a == SIM_PRESENT,
					     where(a + k * PAGE_SIZE) == MAPPED));
			}
		}
		sim_fail_disarm(&r->f);
		relax();
		check_pages(b, 4, 10);
		check_pages(a, 4, 10);
		unmap(a, 4);
		unmap(b, 4);
		finish();
	}
}

static uintptr_t written_at;
static unsigned nwritten;

/* In the middle of a page's removal: whoever writes in another place must wait. */
static void
write_meanwhile(void *ctx, uintptr_t va, size_t n)
{
	uint64_t w = 77;

	(void)ctx;
	(void)va;
	(void)n;
	if (nwritten++ == 0)
		cr_assert(eq(int, sim_touch(r->pm, 9, written_at, true, &w, 0, 8), SIM_FAULT));
}

Test(multi, a_write_in_another_place_while_a_page_leaves_is_not_lost)
{
	uint64_t w = 77;
	uintptr_t a, b;

	start((struct rig_config){ .seed = 1 });
	a = map_part(obj, 0, 1, RW);
	b = map_part(obj, 0, 1, RW);
	put_page(a, 10);
	press();
	rig_step(r);
	relax();
	written_at = b;
	sim_on_copy(r->pm, write_meanwhile, NULL);
	stage();
	sim_on_copy(r->pm, NULL, NULL);
	cr_assert(eq(uint, nwritten, 1));
	cr_assert(eq(int, rig_touch(r, 9, b, true, &w, 0, 8), SIM_OK));
	cr_assert(eq(u64, rig_get(r, a), 77));
	unmap(a, 1);
	unmap(b, 1);
	finish();
}

Test(multi, unmapping_one_place_leaves_the_other)
{
	uintptr_t a, b;

	start((struct rig_config){ .seed = 1 });
	a = map_part(obj, 0, 8, RW);
	b = map_part(obj, 2, 4, RW);
	put_pages(a, 8, 10);
	unmap(a + 3 * PAGE_SIZE, 2);
	check_pages(b, 4, 12);
	check_page(a + 5 * PAGE_SIZE, 15);
	put_page(b + PAGE_SIZE, 50);
	unmap(a, 3);
	unmap(a + 5 * PAGE_SIZE, 3);
	check_page(b + PAGE_SIZE, 50);
	unmap(b, 4);
	/* The object has them all. */
	a = map_part(obj, 0, 8, RW);
	check_pages(a, 3, 10);
	check_page(a + 3 * PAGE_SIZE, 50);
	check_pages(a + 4 * PAGE_SIZE, 4, 14);
	unmap(a, 8);
	finish();
}

Test(multi, what_nobody_can_reach_any_more_is_freed)
{
	uintptr_t a, b;

	scene((struct rig_config){ .seed = 1 });
	obj = anon_object(NPAGES, 0);
	a = map_part(obj, 0, 8, RW);
	b = map_part(obj, 2, 4, RW);
	put_pages(a, 8, 10);
	up_object_unref(obj);
	cr_assert(eq(sz, anons(), 8));
	unmap(a, 4);
	cr_assert(eq(sz, anons(), 6));
	check_pages(b, 4, 12);
	unmap(b, 4);
	cr_assert(eq(sz, anons(), 4));
	check_pages(a + 4 * PAGE_SIZE, 4, 14);
	unmap(a + 4 * PAGE_SIZE, 4);
	cr_assert(eq(sz, anons(), 0));
	cr_assert(eq(u64, rig_stats(r).objects, 0));
	over();
}

/* One kind at a time, also where the other pages are free. */
Test(multi, an_object_is_mapped_in_one_place_a_page_or_in_several)
{
	uintptr_t a, b;

	start((struct rig_config){ .seed = 1 });
	a = map_part(obj, 0, 2, RW);
	put_pages(a, 2, 10);
	cr_assert(eq(int, try_map(obj, 0, 1, RW, UP_SHARED, &b), -EBUSY));
	cr_assert(eq(int, try_map(obj, 4, 1, RW, UP_SHARED, &b), -EBUSY));
	check_pages(a, 2, 10);
	unmap(a, 2);
	/* Back, and there again, with what was written. */
	cr_assert(zero(int, try_map(obj, 0, 2, RW, UP_SHARED, &a)));
	check_pages(a, 2, 10);
	cr_assert(eq(int, try_map(obj, 4, 1, RW, MULTI, &b), -EBUSY));
	cr_assert(eq(int, try_map(obj, 1, 1, RW, UP_SHARED, &b), -EBUSY));
	cr_assert(zero(int, try_map(obj, 4, 1, RW, UP_SHARED, &b)));
	put_page(a, 20);
	unmap(a, 2);
	unmap(b, 1);
	a = map_part(obj, 0, 2, RW);
	check_page(a, 20);
	check_page(a + PAGE_SIZE, 11);
	unmap(a, 2);
	finish();
}

Test(multi, a_kernel_without_it_says_so)
{
	uintptr_t va;

	start((struct rig_config){ .seed = 1, .mask = UP_MASK_SHARED });
	cr_assert(eq(int, try_map(obj, 0, 2, RW, MULTI, &va), -ENOTSUP));
	cr_assert(zero(int, try_map(obj, 0, 2, RW, UP_SHARED, &va)));
	cr_assert(eq(int, up_inherit(r->rt, (void *)va, PAGE_SIZE, UP_INHERIT_COPY), -ENOTSUP));
	cr_assert(zero(int, up_inherit(r->rt, (void *)va, PAGE_SIZE, UP_INHERIT_NONE)));
	unmap(va, 2);
	finish();
}

Test(multi, protection_is_of_the_place)
{
	uint64_t w = 1;
	uintptr_t a, b;

	start((struct rig_config){ .seed = 1 });
	a = map_part(obj, 0, 2, RW);
	b = map_part(obj, 0, 2, PROT_READ);
	put_pages(a, 2, 10);
	check_pages(b, 2, 10);
	cr_assert(eq(int, rig_touch(r, 1, b, true, &w, 0, 8), SIM_SIGSEGV));
	cr_assert(zero(int, up_protect(r->rt, (void *)a, PAGE_SIZE, PROT_NONE)));
	cr_assert(eq(int, rig_touch(r, 1, a, false, &w, 0, 8), SIM_SIGSEGV));
	check_page(b, 10);
	swap_out();
	swap_out();
	check_pages(b, 2, 10);
	put_page(a + PAGE_SIZE, 30);
	check_page(b + PAGE_SIZE, 30);
	unmap(a, 2);
	unmap(b, 2);
	finish();
}

Test(multi, discarding_in_one_place_discards_in_all)
{
	uintptr_t a, b;

	start((struct rig_config){ .seed = 1 });
	a = map_part(obj, 0, 4, RW);
	b = map_part(obj, 0, 4, RW);
	put_pages(a, 4, 10);
	advise(b + PAGE_SIZE, 2, UP_ADVICE_DONTNEED);
	check_page(a, 10);
	check_zeros(a + PAGE_SIZE);
	check_zeros(a + 2 * PAGE_SIZE);
	check_page(a + 3 * PAGE_SIZE, 13);
	unmap(a, 4);
	unmap(b, 4);
	finish();
}

Test(multi, a_page_that_is_wired_in_one_place_is_held_for_all)
{
	const size_t len = 2 * PAGE_SIZE;
	uintptr_t a, b;

	start((struct rig_config){ .seed = 1 });
	a = map_part(obj, 0, 4, RW);
	b = map_part(obj, 0, 4, RW);
	put_pages(a, 4, 10);
	cr_assert(zero(int, up_wire(r->rt, (void *)a, len)));
	cr_assert(zero(int, up_wire(r->rt, (void *)(b + PAGE_SIZE), len)));
	/* Only where it is mapped otherwise: it would leave a hole here. */
	cr_assert(eq(int, up_advise(r->rt, (void *)b, PAGE_SIZE, UP_ADVICE_DONTNEED), -EINVAL));
	cr_assert(zero(int, up_advise(r->rt, (void *)(b + 3 * PAGE_SIZE), PAGE_SIZE,
				      UP_ADVICE_DONTNEED)));
	swap_out();
	swap_out();
	all_are(a, 3, MAPPED);
	pager_check(r->p);
	/* What one lets go of is still the other's. */
	cr_assert(zero(int, up_unwire(r->rt, (void *)a, len)));
	swap_out();
	swap_out();
	cr_assert(eq(int, where(a), SWAPPED));
	all_are(a + PAGE_SIZE, 2, MAPPED);
	pager_check(r->p);
	/* And gone with its place. */
	unmap(b, 4);
	cr_assert(zero(u64, rig_stats(r).wired));
	swap_out();
	swap_out();
	all_are(a, 3, SWAPPED);
	check_pages(a, 3, 10);
	unmap(a, 4);
	finish();
}

Test(multi, a_range_grows_where_its_next_pages_are_mapped_too)
{
	uintptr_t a, b;
	void *p;

	start((struct rig_config){ .seed = 1 });
	a = map_part(obj, 0, 8, RW);
	b = map_part(obj, 2, 2, RW);
	put_pages(a, 8, 10);
	cr_assert(zero(int,
		       up_remap(r->rt, (void *)b, 2 * PAGE_SIZE, 6 * PAGE_SIZE, UP_MAYMOVE, &p)));
	b = (uintptr_t)p;
	check_pages(b, 6, 12);
	cr_assert(eq(int, up_remap(r->rt, (void *)b, 6 * PAGE_SIZE, 7 * PAGE_SIZE, UP_MAYMOVE, &p),
		     -EINVAL));
	put_page(b + 5 * PAGE_SIZE, 70);
	check_page(a + 7 * PAGE_SIZE, 70);
	cr_assert(zero(int, up_remap(r->rt, (void *)b, 6 * PAGE_SIZE, PAGE_SIZE, 0, &p)));
	check_page(b, 12);
	check_page(a + 7 * PAGE_SIZE, 70);
	unmap(a, 8);
	unmap(b, 1);
	finish();
}

/* Out of the way of what lies behind it; the pages stay in the page table meanwhile. */
Test(multi, a_range_that_moves_takes_nothing_out)
{
	uintptr_t a, b, wall;
	void *p;

	start((struct rig_config){ .seed = 1 });
	a = map_part(obj, 0, 4, RW);
	b = map_part(obj, 0, 8, RW);
	cr_assert(zero(int, up_map(r->rt, (void *)(a + 4 * PAGE_SIZE), PAGE_SIZE, RW, UP_PRIVATE,
				   NULL, 0, &p)));
	wall = (uintptr_t)p;
	put_pages(a, 4, 10);
	cr_assert(zero(int, up_protect(r->rt, (void *)(a + PAGE_SIZE), PAGE_SIZE, PROT_READ)));
	seen();
	cr_assert(zero(int,
		       up_remap(r->rt, (void *)a, 4 * PAGE_SIZE, 8 * PAGE_SIZE, UP_MAYMOVE, &p)));
	a = (uintptr_t)p;
	check_pages(a, 4, 10);
	check_pages(b, 4, 10);
	expect();
	put_page(b + 7 * PAGE_SIZE, 17);
	check_page(a + 7 * PAGE_SIZE, 17);
	cr_assert(eq(int, map_lookup(&r->p->map, a + PAGE_SIZE)->prot, PROT_READ));
	unmap(a, 8);
	unmap(b, 8);
	unmap(wall, 1);
	finish();
}

Test(multi, a_clone_is_what_all_places_were)
{
	uintptr_t a, b, copy;
	void *p;

	start((struct rig_config){ .seed = 1 });
	a = map_part(obj, 0, 4, RW);
	b = map_part(obj, 0, 4, RW);
	put_pages(a, 4, 10);
	cr_assert(zero(int, up_clone(r->rt, (void *)b, 4 * PAGE_SIZE, &p)));
	copy = (uintptr_t)p;
	put_page(a, 50);
	put_page(copy + PAGE_SIZE, 60);
	check_page(b, 50);
	check_page(copy, 10);
	check_page(b + PAGE_SIZE, 11);
	check_pages(copy + 2 * PAGE_SIZE, 2, 12);
	check_pages(b + 2 * PAGE_SIZE, 2, 12);
	unmap(a, 4);
	unmap(copy, 4);
	unmap(b, 4);
	finish();
}

Test(multi, private_mappings_and_snapshots_of_it_are_as_of_one_instant)
{
	struct up_object *snap;
	uintptr_t a, b, private, s1, s2;

	start((struct rig_config){ .seed = 1 });
	a = map_part(obj, 0, 4, RW);
	b = map_part(obj, 0, 4, RW);
	put_pages(a, 4, 10);
	cr_assert(zero(int, try_map(obj, 1, 2, RW, UP_PRIVATE, &private)));
	cr_assert(zero(int, up_object_snapshot(r->rt, obj, &snap)));
	put_pages(b, 4, 20);
	s1 = map_part(snap, 0, 4, PROT_READ);
	s2 = map_part(snap, 2, 2, PROT_READ);
	check_pages(private, 2, 11);
	check_pages(s1, 4, 10);
	check_pages(s2, 2, 12);
	check_pages(a, 4, 20);
	unmap(a, 4);
	unmap(s1, 4);
	check_pages(s2, 2, 12);
	unmap(s2, 2);
	unmap(private, 2);
	unmap(b, 4);
	up_object_unref(snap);
	finish();
}

Test(multi, statistics_tell_the_parts_of_what_is_resident)
{
	uintptr_t a, b, private;

	start((struct rig_config){ .seed = 1 });
	a = map_part(obj, 0, 4, RW);
	b = map_part(obj, 0, 4, RW);
	private = map_random(2);
	put_pages(a, 4, 10);
	check_pages(b, 4, 10);
	put_pages(private, 2, 1);
	cr_assert(eq(u64, rig_stats(r).mapped, 10 * PAGE_SIZE));
	cr_assert(eq(u64, rig_stats(r).mapped_anon, 6 * PAGE_SIZE));
	cr_assert(eq(u64, rig_stats(r).mapped_named, 0));
	unmap(a, 4);
	unmap(b, 4);
	/* Still there, and nobody's. */
	cr_assert(eq(u64, rig_stats(r).mapped_anon, 6 * PAGE_SIZE));
	up_object_unref(obj);
	cr_assert(eq(u64, rig_stats(r).mapped_anon, 2 * PAGE_SIZE));
	unmap(private, 2);
	over();
}

/* --- named objects --- */

static uint64_t store[NPAGES][PAGE_SIZE / 8];
static unsigned nin, nout;
static int out_error;

static int
page_in(void *ctx, struct up_request *req)
{
	(void)ctx;
	nin++;
	memcpy(up_request_buffer(req), (char *)store + up_request_offset(req),
	       up_request_length(req));
	up_request_complete(req, 0);
	return 0;
}

/* One that fails has half done its work. */
static int
page_out(void *ctx, struct up_request *req)
{
	(void)ctx;
	nout++;
	memcpy((char *)store + up_request_offset(req), up_request_buffer(req),
	       up_request_length(req));
	up_request_complete(req, out_error);
	return 0;
}

static void
start_named(void)
{
	static const struct up_pager_ops ops = { .size = sizeof ops,
						 .page_in = page_in,
						 .page_out = page_out };

	scene((struct rig_config){ .seed = 1 });
	for (size_t i = 0; i < NPAGES; i++) {
		for (unsigned k = 0; k < PAGE_SIZE / 8; k++)
			store[i][k] = word_of(i, k);
	}
	nin = nout = 0;
	out_error = 0;
	cr_assert(zero(int, up_object_create_custom(r->rt, NPAGES * PAGE_SIZE, &ops, NULL, &obj)));
}

Test(multi, a_named_page_is_read_once_for_all_places)
{
	uintptr_t a, b;

	start_named();
	a = map_part(obj, 0, 8, RW);
	b = map_part(obj, 0, 8, PROT_READ);
	check_pages(a, 8, 0);
	check_pages(b, 8, 0);
	cr_assert(eq(uint, nin, 8));
	cr_assert(eq(u64, rig_stats(r).mapped_named, 8 * PAGE_SIZE));
	cr_assert(eq(u64, rig_stats(r).mapped_anon, 0));
	put_page(a, 70);
	check_page(b, 70);
	cr_assert(zero(int, up_sync(r->rt, (void *)b, 8 * PAGE_SIZE, UP_SYNC_WAIT)));
	cr_assert(is_page(store[0], 70));
	cr_assert(eq(uint, nout, 1));
	unmap(a, 8);
	cr_assert(eq(uint, nout, 1));
	check_page(b, 70);
	cr_assert(eq(uint, nin, 8));
	unmap(b, 8);
	finish();
}

Test(multi, a_named_page_goes_back_with_each_place_and_leaves_with_the_last)
{
	uintptr_t a, b;

	start_named();
	a = map_part(obj, 0, 4, RW);
	b = map_part(obj, 2, 4, RW);
	put_pages(a, 4, 50);
	unmap(a, 4);
	cr_assert(eq(uint, nout, 4));
	cr_assert(is_page(store[2], 52));
	cr_assert(eq(sz, anons(), 2));
	put_page(b, 60);
	unmap(b, 4);
	cr_assert(is_page(store[2], 60));
	cr_assert(eq(sz, anons(), 0));
	finish();
}

Test(multi, what_can_not_be_written_back_is_kept_where_else_it_is_mapped)
{
	uintptr_t a, b;

	start_named();
	a = map_part(obj, 0, 2, RW);
	b = map_part(obj, 0, 1, RW);
	put_page(a, 50);
	out_error = -EIO;
	unmap(a, 2);
	check_page(b, 50);
	cr_assert(eq(int, up_sync(r->rt, (void *)b, PAGE_SIZE, UP_SYNC_WAIT), -EIO));
	out_error = 0;
	cr_assert(zero(int, up_sync(r->rt, (void *)b, PAGE_SIZE, UP_SYNC_WAIT)));
	cr_assert(is_page(store[0], 50));
	unmap(b, 1);
	finish();
}

/* The write failed, but what it was to replace may be gone: who puts that back has changed the page. */
Test(multi, after_a_failed_write_the_old_content_is_a_change)
{
	uintptr_t va;

	start_named();
	va = map_part(obj, 0, 1, RW);
	check_page(va, 0);
	put_page(va, 50);
	out_error = -EIO;
	cr_assert(eq(int, up_sync(r->rt, (void *)va, PAGE_SIZE, UP_SYNC_WAIT), -EIO));
	cr_assert(is_page(store[0], 50));
	put_page(va, 0);
	out_error = 0;
	cr_assert(zero(int, up_sync(r->rt, (void *)va, PAGE_SIZE, UP_SYNC_WAIT)));
	cr_assert(is_page(store[0], 0));
	unmap(va, 1);
	finish();
}

Test(multi, what_is_wired_in_another_place_is_not_invalidated)
{
	uintptr_t a, b;

	start_named();
	a = map_part(obj, 0, 2, RW);
	b = map_part(obj, 0, 2, RW);
	cr_assert(zero(int, up_wire(r->rt, (void *)a, PAGE_SIZE)));
	cr_assert(eq(int, up_sync(r->rt, (void *)b, 2 * PAGE_SIZE, UP_SYNC_INVALIDATE), -EBUSY));
	cr_assert(eq(int, up_advise(r->rt, (void *)b, PAGE_SIZE, UP_ADVICE_DONTNEED), -EINVAL));
	cr_assert(
		zero(int, up_sync(r->rt, (void *)(b + PAGE_SIZE), PAGE_SIZE, UP_SYNC_INVALIDATE)));
	cr_assert(eq(int, where(a), MAPPED));
	unmap(a, 2);
	unmap(b, 2);
	finish();
}

/* --- children --- */

static struct space *
try_fork(struct map *parent, int *ret)
{
	struct space *sp;
	sigset_t old;

	change_begin(r->p, &old);
	*ret = space_fork(r->rt, parent, -1, &sp);
	if (sp != NULL)
		chain_thaw(r->p);
	change_end(r->p, &old);
	return sp;
}

static struct space *
fork_from(struct map *parent)
{
	int ret;
	struct space *sp = try_fork(parent, &ret);

	cr_assert(zero(int, ret));
	cr_assert(sp != NULL);
	cr_assert(zero(int, r->pm->ops->space_attach(r->pm, sp->shard, -1, 0)));
	return sp;
}

static void
end(struct space *sp)
{
	sigset_t old;

	change_begin(r->p, &old);
	r->pm->ops->space_detach(r->pm, sp->shard);
	space_end(r->p, sp);
	change_end(r->p, &old);
}

static enum sim_result
kid_touch(struct space *sp, unsigned thread, uintptr_t va, bool write, uint64_t *w, size_t len)
{
	for (unsigned i = 0; i < 1000; i++) {
		const enum sim_result res =
			sim_touch_in(r->pm, sp->shard, thread, va, write, w, 0, len);

		if (res != SIM_FAULT)
			return res;
		rig_step(r);
	}
	cr_assert(false, "a child's fault at %#lx is not served", (unsigned long)va);
	return SIM_FAULT;
}

static void
kid_put(struct space *sp, uintptr_t va, uint64_t number)
{
	uint64_t w[PAGE_SIZE / 8];

	for (unsigned i = 0; i < ARRAY_SIZE(w); i++)
		w[i] = word_of(number, i);
	cr_assert(eq(int, kid_touch(sp, 20, va, true, w, sizeof w), SIM_OK));
}

static void
kid_check_at(int line, struct space *sp, uintptr_t va, uint64_t number)
{
	uint64_t w[PAGE_SIZE / 8] = { 0 };

	cr_assert(eq(int, kid_touch(sp, 20, va, false, w, sizeof w), SIM_OK), "line %d", line);
	cr_assert(is_page(w, number), "line %d: page at %#lx of the child is another", line,
		  (unsigned long)va);
}
#define kid_check(sp, va, number) kid_check_at(__LINE__, sp, va, number)

static void
inherit(uintptr_t va, size_t npages, enum up_inherit how)
{
	cr_assert(zero(int, up_inherit(r->rt, (void *)va, npages * PAGE_SIZE, how)));
}

Test(multi, a_child_has_a_copy_as_of_the_fork)
{
	struct space *kid;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(8, 8, 10);
	inherit(va, 8, UP_INHERIT_COPY);
	kid = fork_from(&r->p->map);
	put_page(va, 50);
	kid_put(kid, va + PAGE_SIZE, 60);
	kid_check(kid, va, 10);
	kid_check(kid, va + PAGE_SIZE, 60);
	kid_check(kid, va + 2 * PAGE_SIZE, 12);
	check_page(va, 50);
	check_pages(va + PAGE_SIZE, 7, 11);
	end(kid);
	check_page(va, 50);
	check_pages(va + PAGE_SIZE, 7, 11);
	unmap(va, 8);
	over();
}

Test(multi, a_child_that_ends_leaves_nothing)
{
	struct space *kid;
	struct up_stats before, after;
	uint64_t meta, swap;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(8, 8, 10);
	inherit(va, 8, UP_INHERIT_COPY);
	before = rig_stats(r);
	meta = promised(&r->p->resv_meta);
	swap = promised(&r->p->resv_swap);
	for (unsigned i = 0; i < 20; i++) {
		kid = fork_from(&r->p->map);
		cr_assert(eq(u64, promised(&r->p->resv_swap), swap + 8));
		for (size_t k = 0; k < 8; k += 2)
			kid_put(kid, va + k * PAGE_SIZE, 100 + k);
		put_page(va + i % 8 * PAGE_SIZE, 10 + i % 8);
		end(kid);
	}
	after = rig_stats(r);
	cr_assert(eq(u64, promised(&r->p->resv_meta), meta));
	cr_assert(eq(u64, promised(&r->p->resv_swap), swap));
	cr_assert(eq(u64, after.objects, before.objects));
	cr_assert(eq(sz, anons(), 8));
	cr_assert(eq(uint, object_depth(map_lookup(&r->p->map, va)->object), 0));
	check_pages(va, 8, 10);
	unmap(va, 8);
	over();
}

Test(multi, a_grandchild_has_a_copy_of_the_childs)
{
	struct space *kid, *grandkid;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(4, 4, 10);
	inherit(va, 4, UP_INHERIT_COPY);
	kid = fork_from(&r->p->map);
	kid_put(kid, va, 50);
	grandkid = fork_from(&kid->map);
	kid_put(kid, va, 51);
	put_page(va + PAGE_SIZE, 61);
	kid_check(grandkid, va, 50);
	kid_check(grandkid, va + PAGE_SIZE, 11);
	/* The one in between goes first. */
	end(kid);
	kid_check(grandkid, va, 50);
	kid_check(grandkid, va + 2 * PAGE_SIZE, 12);
	check_page(va, 10);
	end(grandkid);
	check_page(va + PAGE_SIZE, 61);
	unmap(va, 4);
	over();
}

Test(multi, what_is_shared_with_a_child_is_the_same_memory)
{
	struct space *kid, *grandkid;
	uintptr_t a, b;

	start((struct rig_config){ .seed = 1 });
	a = map_part(obj, 0, 4, RW);
	b = map_part(obj, 2, 4, RW);
	inherit(a, 4, UP_INHERIT_SHARE);
	put_pages(a, 4, 10);
	kid = fork_from(&r->p->map);
	kid_put(kid, a + 2 * PAGE_SIZE, 50);
	check_page(b, 50);
	put_page(b, 60);
	grandkid = fork_from(&kid->map);
	kid_check(grandkid, a + 2 * PAGE_SIZE, 60);
	unmap(a, 4);
	unmap(b, 4);
	/* Theirs, as long as one of them is there. */
	end(kid);
	kid_put(grandkid, a, 70);
	swap_out();
	swap_out();
	kid_check(grandkid, a, 70);
	end(grandkid);
	a = map_part(obj, 0, 4, RW);
	check_page(a, 70);
	unmap(a, 4);
	finish();
}

/* Nobody of us maps it any more, nobody holds it: what the child sees stays until it ends. */
Test(multi, a_childs_share_outlives_ours)
{
	struct space *kid;
	uintptr_t a;

	scene((struct rig_config){ .seed = 1 });
	obj = anon_object(NPAGES, 0);
	a = map_part(obj, 0, 8, RW);
	up_object_unref(obj);
	put_pages(a, 8, 10);
	inherit(a, 3, UP_INHERIT_SHARE);
	kid = fork_from(&r->p->map);
	unmap(a, 8);
	cr_assert(eq(sz, anons(), 3));
	kid_check(kid, a + 2 * PAGE_SIZE, 12);
	end(kid);
	cr_assert(eq(sz, anons(), 0));
	cr_assert(zero(u64, rig_stats(r).objects));
	over();
}

Test(multi, a_child_has_what_it_was_to_have_and_nothing_else)
{
	struct space *kid;
	uintptr_t a, private;
	uint64_t w;

	start((struct rig_config){ .seed = 1 });
	a = map_part(obj, 0, 6, RW);
	private = map_random(4);
	put_pages(a, 6, 10);
	put_pages(private, 4, 20);
	cr_assert(
		eq(int, up_inherit(r->rt, (void *)private, PAGE_SIZE, UP_INHERIT_SHARE), -ENOTSUP));
	cr_assert(eq(int, up_inherit(r->rt, (void *)a, 100 * PAGE_SIZE, UP_INHERIT_COPY), -ENOMEM));
	inherit(a, 2, UP_INHERIT_SHARE);
	inherit(a + 2 * PAGE_SIZE, 2, UP_INHERIT_COPY);
	inherit(private + PAGE_SIZE, 2, UP_INHERIT_COPY);
	inherit(private + 2 * PAGE_SIZE, 1, UP_INHERIT_NONE);
	cr_assert(zero(int, up_protect(r->rt, (void *)(a + PAGE_SIZE), PAGE_SIZE, PROT_READ)));
	kid = fork_from(&r->p->map);
	put_pages(a, 1, 50);
	put_pages(a + 2 * PAGE_SIZE, 2, 52);
	kid_check(kid, a, 50);
	kid_check(kid, a + PAGE_SIZE, 11);
	kid_check(kid, a + 2 * PAGE_SIZE, 12);
	kid_check(kid, a + 3 * PAGE_SIZE, 13);
	kid_check(kid, private + PAGE_SIZE, 21);
	cr_assert(eq(int, kid_touch(kid, 20, a + PAGE_SIZE, true, &w, 8), SIM_SIGSEGV));
	cr_assert(eq(int, kid_touch(kid, 20, a + 4 * PAGE_SIZE, false, &w, 8), SIM_SIGSEGV));
	cr_assert(eq(int, kid_touch(kid, 20, private, false, &w, 8), SIM_SIGSEGV));
	cr_assert(eq(int, kid_touch(kid, 20, private + 2 * PAGE_SIZE, false, &w, 8), SIM_SIGSEGV));
	end(kid);
	unmap(a, 6);
	unmap(private, 4);
	finish();
}

Test(multi, nothing_inherited_is_no_space)
{
	uintptr_t va;
	int ret;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(4);
	cr_assert(try_fork(&r->p->map, &ret) == NULL);
	cr_assert(zero(int, ret));
	unmap(va, 4);
	over();
}

/* Shared with children is the memory, not what was copied from it. */
Test(multi, a_clone_of_what_children_share_is_copied_to_them)
{
	struct space *kid;
	uintptr_t a, copy;
	void *p;

	start((struct rig_config){ .seed = 1 });
	a = map_part(obj, 0, 4, RW);
	put_pages(a, 4, 10);
	inherit(a, 4, UP_INHERIT_SHARE);
	cr_assert(zero(int, up_clone(r->rt, (void *)a, 4 * PAGE_SIZE, &p)));
	copy = (uintptr_t)p;
	kid = fork_from(&r->p->map);
	put_page(a, 50);
	put_page(copy, 60);
	kid_check(kid, a, 50);
	kid_check(kid, copy, 10);
	end(kid);
	unmap(a, 4);
	unmap(copy, 4);
	finish();
}

Test(multi, while_it_is_forked_nothing_that_is_copied_can_be_written)
{
	uint64_t w = 99;
	struct space *kid;
	uintptr_t va;
	sigset_t old;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(2, 2, 10);
	inherit(va, 2, UP_INHERIT_COPY);
	change_begin(r->p, &old);
	cr_assert(zero(int, space_fork(r->rt, &r->p->map, -1, &kid)));
	cr_assert(eq(int, sim_touch(r->pm, 3, va, true, &w, 0, 8), SIM_FAULT));
	for (unsigned i = 0; i < 50; i++)
		rig_step(r);
	cr_assert(eq(int, sim_touch(r->pm, 3, va, true, &w, 0, 8), SIM_FAULT));
	chain_thaw(r->p);
	change_end(r->p, &old);
	cr_assert(zero(int, r->pm->ops->space_attach(r->pm, kid->shard, -1, 0)));
	cr_assert(eq(int, rig_touch(r, 3, va, true, &w, 0, 8), SIM_OK));
	cr_assert(eq(u64, rig_get(r, va), 99));
	kid_check(kid, va, 10);
	end(kid);
	unmap(va, 2);
	over();
}

Test(multi, a_fork_is_refused_what_is_wired)
{
	struct space *kid;
	uintptr_t va;
	int ret;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(4, 4, 10);
	inherit(va, 2, UP_INHERIT_COPY);
	cr_assert(zero(int, up_wire(r->rt, (void *)(va + 3 * PAGE_SIZE), PAGE_SIZE)));
	cr_assert(try_fork(&r->p->map, &ret) == NULL);
	cr_assert(eq(int, ret, -EBUSY));
	cr_assert(zero(int, up_unwire(r->rt, (void *)(va + 3 * PAGE_SIZE), PAGE_SIZE)));
	kid = fork_from(&r->p->map);
	kid_check(kid, va, 10);
	end(kid);
	unmap(va, 4);
	over();
}

/* Who forks itself: only its own faults wait, and cost nobody anything meanwhile. */
Test(multi, a_space_that_is_frozen_is_served_when_that_is_over)
{
	struct space *kid, *other;
	uint64_t w = 77;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(4, 4, 10);
	inherit(va, 4, UP_INHERIT_COPY);
	kid = fork_from(&r->p->map);
	other = fork_from(&r->p->map);
	/* One that has been read is frozen out, too. */
	cr_assert(eq(int, sim_touch_in(r->pm, kid->shard, 22, va, true, &w, 0, 8), SIM_FAULT));
	space_freeze(r->p, kid);
	cr_assert(eq(int, sim_touch_in(r->pm, kid->shard, 23, va + PAGE_SIZE, false, &w, 0, 8),
		     SIM_FAULT));
	range_willneed(r->p, kid->shard, va, va + 4 * PAGE_SIZE);
	for (unsigned i = 0; i < 50; i++)
		rig_step(r);
	cr_assert(eq(int, sim_touch_in(r->pm, kid->shard, 22, va, true, &w, 0, 8), SIM_FAULT));
	cr_assert(eq(uint, r->p->service[0]->nparked, 0));
	check_pages(va, 4, 10);
	kid_check(other, va, 10);
	/* A clone freezes all for a moment. */
	chain_freeze(r->p);
	chain_thaw(r->p);
	for (unsigned i = 0; i < 50; i++)
		rig_step(r);
	cr_assert(eq(int, sim_touch_in(r->pm, kid->shard, 22, va, true, &w, 0, 8), SIM_FAULT));
	space_thaw(r->p, kid);
	cr_assert(eq(int, kid_touch(kid, 22, va, true, &w, 8), SIM_OK));
	cr_assert(eq(int, kid_touch(kid, 23, va + PAGE_SIZE, false, &w, 8), SIM_OK));
	/* One that ends meanwhile does not leave others frozen. */
	space_freeze(r->p, other);
	end(other);
	cr_assert(eq(uint, r->p->frozen, 0));
	kid_check(kid, va + PAGE_SIZE, 11);
	end(kid);
	unmap(va, 4);
	over();
}

/* Its fault waits while the child ends: what was parked must not trip over that. */
Test(multi, a_fault_of_a_child_that_has_ended_is_forgotten)
{
	struct space *kid;
	uintptr_t va;
	uint64_t w;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(2, 2, 10);
	inherit(va, 2, UP_INHERIT_COPY);
	kid = fork_from(&r->p->map);
	cr_assert(eq(int, sim_touch_in(r->pm, kid->shard, 20, va, false, &w, 0, 8), SIM_FAULT));
	chain_freeze(r->p);
	rig_step(r);
	cr_assert(eq(uint, r->p->service[0]->nparked, 1));
	chain_thaw(r->p);
	end(kid);
	rig_settle(r);
	cr_assert(eq(uint, r->p->service[0]->nparked, 0));
	check_pages(va, 2, 10);
	unmap(va, 2);
	over();
}

Test(multi, the_memory_of_a_child_is_paged_like_ours)
{
	struct space *kid;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(4, 4, 10);
	inherit(va, 4, UP_INHERIT_COPY);
	kid = fork_from(&r->p->map);
	for (size_t i = 0; i < 4; i++)
		kid_put(kid, va + i * PAGE_SIZE, 50 + i);
	seen();
	/* We are told of no touch in another process: it is no reason to stay. */
	swap_out();
	cr_assert(zero(u64, rig_stats(r).referenced));
	cr_assert(zero(u64, rig_stats(r).resident));
	for (size_t i = 0; i < 4; i++)
		kid_check(kid, va + i * PAGE_SIZE, 50 + i);
	check_pages(va, 4, 10);
	end(kid);
	unmap(va, 4);
	over();
}

Test(multi, a_lost_page_is_lost_in_all_places_until_it_is_discarded)
{
	struct space *kid;
	uintptr_t a, b;
	uint64_t w;

	start((struct rig_config){ .seed = 1 });
	a = map_part(obj, 0, 2, RW);
	b = map_part(obj, 0, 2, RW);
	inherit(a, 2, UP_INHERIT_SHARE);
	put_pages(a, 2, 10);
	kid = fork_from(&r->p->map);
	swap_out();
	swap_out();
	cr_assert(eq(int, where(a), SWAPPED));
	sim_fail_rate(&r->f, SIM_READ, -EIO, 1000);
	cr_assert(eq(int, rig_touch(r, 1, a, false, &w, 0, 8), SIM_SIGBUS));
	sim_fail_rate(&r->f, SIM_READ, -EIO, 0);
	cr_assert(eq(int, rig_touch(r, 1, b, false, &w, 0, 8), SIM_SIGBUS));
	cr_assert(eq(int, kid_touch(kid, 20, a, false, &w, 8), SIM_SIGBUS));
	/* A place that is new has no mark yet. */
	unmap(b, 2);
	b = map_part(obj, 0, 2, RW);
	cr_assert(eq(int, rig_touch(r, 1, b, false, &w, 0, 8), SIM_SIGBUS));
	advise(b, 1, UP_ADVICE_DONTNEED);
	check_zeros(a);
	check_zeros(b);
	end(kid);
	unmap(a, 2);
	unmap(b, 2);
	finish();
}
