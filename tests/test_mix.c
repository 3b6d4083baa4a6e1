/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_mix.c: prefault, wire, remap and info, of clones, snapshots and named objects, over the simulated kernel.
 */
#include <errno.h>
#include <stdlib.h>

#include "scene.h"

TestSuite(mix, .timeout = 120);

#define RW (PROT_READ | PROT_WRITE)
#define PAGE(va, i) ((va) + (size_t)(i)*PAGE_SIZE)
#define STORE 64

/* --- a named object: the first pages are there, the others fail --- */

static uint64_t *store;
static size_t store_pages; /* that can be read */
static unsigned nout;

static int
page_in(void *ctx, struct up_request *req)
{
	const uint64_t at = up_request_offset(req);
	const size_t n = up_request_length(req);

	(void)ctx;
	if (at + n > store_pages * PAGE_SIZE)
		return -EIO;
	memcpy(up_request_buffer(req), (char *)store + at, n);
	up_request_complete(req, 0);
	return 0;
}

static int
page_out(void *ctx, struct up_request *req)
{
	(void)ctx;
	nout++;
	memcpy((char *)store + up_request_offset(req), up_request_buffer(req),
	       up_request_length(req));
	up_request_complete(req, 0);
	return 0;
}

static struct up_object *
custom(void)
{
	static const struct up_pager_ops ops = { .size = sizeof ops,
						 .page_in = page_in,
						 .page_out = page_out };
	struct up_object *obj;

	store = calloc(STORE, PAGE_SIZE);
	cr_assert(store != NULL);
	store_pages = STORE;
	for (size_t i = 0; i < STORE; i++) {
		for (unsigned k = 0; k < PAGE_SIZE / 8; k++)
			store[i * PAGE_SIZE / 8 + k] = word_of(i, k);
	}
	cr_assert(zero(int, up_object_create_custom(r->rt, (uint64_t)STORE * PAGE_SIZE, &ops, NULL,
						    &obj)));
	return obj;
}

/* --- calls that succeed --- */

static uintptr_t
map_object(struct up_object *obj, size_t first, size_t npages, unsigned flags)
{
	void *p;

	cr_assert(zero(int, up_map(r->rt, NULL, npages * PAGE_SIZE, RW, flags, obj,
				   first * PAGE_SIZE, &p)));
	return (uintptr_t)p;
}

static uintptr_t
clone_of(uintptr_t va, size_t n)
{
	void *copy;

	cr_assert(zero(int, up_clone(r->rt, (void *)va, n * PAGE_SIZE, &copy)));
	return (uintptr_t)copy;
}

static int
prefault(uintptr_t va, size_t n, bool write)
{
	return up_prefault(r->rt, (void *)va, n * PAGE_SIZE, write);
}

static int
wire(uintptr_t va, size_t n)
{
	return up_wire(r->rt, (void *)va, n * PAGE_SIZE);
}

static int
unwire(uintptr_t va, size_t n)
{
	return up_unwire(r->rt, (void *)va, n * PAGE_SIZE);
}

static int
remap(uintptr_t *va, size_t old, size_t new)
{
	void *p;
	const int err =
		up_remap(r->rt, (void *)*va, old * PAGE_SIZE, new *PAGE_SIZE, UP_MAYMOVE, &p);

	if (err == 0)
		*va = (uintptr_t)p;
	return err;
}

static struct up_object_stats
info_of(struct up_object *obj)
{
	struct up_object_stats info;

	cr_assert(zero(int, up_object_info(obj, &info, sizeof info)));
	return info;
}

/* Wired and there, whatever pageout would like. */
static void
still_wired(uintptr_t va, size_t n)
{
	swap_out();
	all_are(va, n, MAPPED);
	for (size_t i = 0; i < n; i++) {
		cr_assert(ne(uint, residency(PAGE(va, i)) & UP_PAGE_WIRED, 0), "page %zu", i);
		cr_assert(eq(int, sim_state(r->pm, PAGE(va, i)), SIM_PRESENT), "page %zu", i);
	}
}

/* Put the pages where they are before they are needed: beneath, here and there. */
static void
scatter(uintptr_t va, size_t n)
{
	put_pages(va, n / 2, 100);
	swap_out();
	put_pages(PAGE(va, n / 2), n - n / 2, 100 + n / 2);
}

/* --- clones --- */

Test(mix, prefault_of_a_clone_copies_what_it_shares_from_memory_and_from_swap)
{
	uintptr_t a, b;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	a = map_random(48);
	scatter(a, 40); /* the last were never touched */
	b = clone_of(a, 48);
	cr_assert(zero(int, prefault(b, 48, true)));
	all_are(b, 48, MAPPED);
	cr_assert(eq(u64, rig_stats(r).copies, 40));
	seen();
	check_pages(b, 40, 100);
	check_zeros(PAGE(b, 47));
	expect(.limit = 0); /* not one fault */
	put_pages(b, 48, 500);
	check_pages(a, 40, 100);
	check_zeros(PAGE(a, 47));
	cr_assert(eq(u64, rig_stats(r).copies, 40), "the last who sees a page takes it");
	check_pages(b, 48, 500);
	over();
}

Test(mix, prefault_of_the_only_one_left_takes_the_pages_over)
{
	uintptr_t a, b, c;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	a = map_random(40);
	scatter(a, 40);
	b = clone_of(a, 40);
	c = clone_of(b, 40);
	put_pages(a, 40, 300);
	put_pages(c, 40, 400);
	{
		const uint64_t copies = rig_stats(r).copies;

		cr_assert(zero(int, prefault(b, 40, true)));
		cr_assert(eq(u64, rig_stats(r).copies, copies));
	}
	all_are(b, 40, MAPPED);
	check_pages(b, 40, 100);
	check_pages(a, 40, 300);
	check_pages(c, 40, 400);
	over();
}

Test(mix, a_page_beneath_that_is_lost_is_EIO_and_lost_to_nobody_who_has_his_own)
{
	uintptr_t a, b;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	a = map_random(4);
	put_pages(a, 4, 100);
	swap_out();
	b = clone_of(a, 4);
	put_page(a, 200);
	sim_fail_rate(&r->f, SIM_READ, -EIO, 1000);
	cr_assert(eq(int, prefault(b, 4, false), -EIO));
	cr_assert(rig_logged(r, "is lost"));
	sim_fail_rate(&r->f, SIM_READ, -EIO, 0);
	check_page(a, 200);
	rig_down(r);
}

Test(mix, a_wired_clone_stays_and_its_original_goes)
{
	uintptr_t a, b;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	a = map_random(40);
	scatter(a, 40);
	b = clone_of(a, 40);
	cr_assert(zero(int, wire(b, 40)));
	put_pages(a, 40, 200);
	still_wired(b, 40);
	all_are(a, 40, SWAPPED);
	seen();
	check_pages(b, 40, 100);
	expect(.limit = 0);
	/* The original goes: what remains is joined with what lies beneath, and no page moves. */
	unmap(a, 40);
	still_wired(b, 40);
	cr_assert(zero(uint, object_depth(map_lookup(&r->p->map, b)->object)));
	check_pages(b, 40, 100);
	pager_check(r->p);
	cr_assert(zero(int, unwire(b, 40)));
	swap_out();
	all_are(b, 40, SWAPPED);
	check_pages(b, 40, 100);
	over();
}

Test(mix, unmapping_a_wired_clone_unwires_it)
{
	uintptr_t a, b;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(32);
	put_pages(a, 32, 100);
	b = clone_of(a, 32);
	cr_assert(zero(int, wire(b, 32)));
	unmap(PAGE(b, 8), 8);
	cr_assert(eq(u64, rig_stats(r).wired, 24 * PAGE_SIZE));
	pager_check(r->p);
	unmap(b, 32);
	cr_assert(zero(u64, rig_stats(r).wired));
	check_pages(a, 32, 100);
	over();
}

Test(mix, of_a_wired_object_there_is_no_clone_snapshot_or_private_mapping)
{
	struct up_object *obj, *snap;
	uintptr_t a, s;
	void *p;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(32);
	put_pages(a, 32, 100);
	cr_assert(zero(int, wire(PAGE(a, 10), 1)));
	/* The range itself is not wired, but its object's pages would all be taken out. */
	cr_assert(eq(int, up_clone(r->rt, (void *)a, 4 * PAGE_SIZE, &p), -EBUSY));
	cr_assert(eq(ptr, p, NULL));
	cr_assert(rig_logged(r, "up_clone: pages of the object are wired"));
	pager_check(r->p);
	still_wired(PAGE(a, 10), 1);

	cr_assert(zero(int, up_object_create_anon(r->rt, 32 * PAGE_SIZE, 0, &obj)));
	s = map_object(obj, 0, 32, UP_SHARED);
	put_pages(s, 32, 200);
	cr_assert(zero(int, wire(s, 32)));
	cr_assert(eq(int, up_object_snapshot(r->rt, obj, &snap), -EBUSY));
	cr_assert(rig_logged(r, "up_object_snapshot: pages of the object are wired"));
	cr_assert(eq(int, up_map(r->rt, NULL, 4 * PAGE_SIZE, RW, UP_PRIVATE, obj, 0, &p), -EBUSY));
	cr_assert(rig_logged(r, "up_map: pages of the object are wired"));
	still_wired(s, 32);

	/* Once nothing is wired any more they succeed, and what comes of it is not wired. */
	cr_assert(zero(int, unwire(s, 32)));
	cr_assert(zero(int, unwire(PAGE(a, 10), 1)));
	cr_assert(zero(int, up_object_snapshot(r->rt, obj, &snap)));
	put_pages(s, 32, 300);
	cr_assert(
		zero(int, up_map(r->rt, NULL, 32 * PAGE_SIZE, PROT_READ, UP_SHARED, snap, 0, &p)));
	cr_assert(zero(int, wire((uintptr_t)p, 32)));
	still_wired((uintptr_t)p, 32);
	check_pages((uintptr_t)p, 32, 200);
	cr_assert(zero(u64, rig_stats(r).wired - 32 * PAGE_SIZE));
	check_pages(clone_of(a, 32), 32, 100);
	up_object_unref(obj);
	up_object_unref(snap);
	over();
}

Test(mix, several_ranges_of_which_one_is_wired_are_left_as_they_were)
{
	uintptr_t a, b;
	void *p;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(16);
	put_pages(a, 16, 100);
	b = clone_of(a,
		     16); /* in three entries, each with an object of its own once it is cloned */
	cr_assert(zero(int, up_protect(r->rt, (void *)PAGE(b, 4), 4 * PAGE_SIZE, PROT_READ)));
	b = clone_of(b, 16);
	cr_assert(zero(int, wire(PAGE(b, 12), 2)));
	cr_assert(eq(int, up_clone(r->rt, (void *)b, 16 * PAGE_SIZE, &p), -EBUSY));
	pager_check(r->p);
	check_pages(b, 16, 100);
	cr_assert(zero(int, up_clone(r->rt, (void *)b, 8 * PAGE_SIZE, &p)));
	check_pages((uintptr_t)p, 8, 100);
	still_wired(PAGE(b, 12), 2);
	over();
}

Test(mix, DONTNEED_of_a_wired_clone_is_EINVAL_and_changes_nothing)
{
	uintptr_t a, b;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(8);
	put_pages(a, 8, 100);
	b = clone_of(a, 8);
	cr_assert(zero(int, wire(PAGE(b, 7), 1)));
	cr_assert(eq(int, up_advise(r->rt, (void *)b, 8 * PAGE_SIZE, UP_ADVICE_DONTNEED), -EINVAL));
	check_pages(b, 8, 100);
	cr_assert(zero(int, unwire(PAGE(b, 7), 1)));
	advise(b, 8, UP_ADVICE_DONTNEED);
	/* What is hidden now is zeros, also for a prefault. */
	cr_assert(zero(int, prefault(b, 8, true)));
	for (size_t i = 0; i < 8; i++)
		check_zeros(PAGE(b, i));
	check_pages(a, 8, 100);
	over();
}

/* --- named objects --- */

Test(mix, prefault_reads_a_named_object_and_stops_where_it_ends)
{
	struct up_object *obj;
	uintptr_t s, p;

	scene((struct rig_config){ .seed = 1 });
	obj = custom();
	s = map_object(obj, 0, 32, UP_SHARED);
	p = map_object(obj, 0, STORE, UP_PRIVATE);
	cr_assert(zero(int, prefault(s, 32, true)));
	all_are(s, 32, MAPPED);
	seen();
	check_pages(s, 32, 0);
	expect(.limit = 0);
	store_pages = 48;
	cr_assert(eq(int, prefault(p, STORE, false), -EIO));
	cr_assert(rig_logged(r, "is lost"));
	check_pages(p, 48, 0);
	/* What follows was not asked for any more, and can be had once it is there. */
	store_pages = STORE;
	advise(PAGE(p, 48), STORE - 48, UP_ADVICE_DONTNEED);
	cr_assert(zero(int, prefault(p, STORE, true)));
	check_pages(p, STORE, 0);
	/* Private is private. */
	put_pages(p, STORE, 700);
	cr_assert(zero(int, prefault(s, 32, false)));
	check_pages(s, 32, 0);
	up_object_unref(obj);
	rig_down(r);
	free(store);
}

Test(mix, wired_pages_of_a_named_object_stay_and_are_written_back_by_sync)
{
	struct up_object *obj;
	uintptr_t s, p;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	obj = custom();
	s = map_object(obj, 0, 32, UP_SHARED);
	put_pages(s, 32, 1000);
	cr_assert(zero(int, wire(s, 32)));
	still_wired(s, 32);
	nout = 0;
	cr_assert(zero(int, up_sync(r->rt, (void *)s, 32 * PAGE_SIZE, 0)));
	cr_assert(gt(uint, nout, 0));
	for (size_t i = 0; i < 32; i++)
		cr_assert(is_page(store + i * PAGE_SIZE / 8, 1000 + i), "page %zu", i);
	put_page(s, 2000);
	nout = 0;
	cr_assert(zero(int, up_sync(r->rt, (void *)s, 32 * PAGE_SIZE, 0)));
	cr_assert(eq(uint, nout, 1));
	still_wired(s, 32);
	cr_assert(
		eq(int, up_advise(r->rt, (void *)s, 32 * PAGE_SIZE, UP_ADVICE_DONTNEED), -EINVAL));

	/* A private mapping takes nothing out of the page table, so it is not refused; wired, it is its own. */
	p = map_object(obj, 0, 32, UP_PRIVATE);
	cr_assert(eq(uint, residency(p), UP_PAGE_STAGED), "in memory, and not mapped here");
	cr_assert(zero(int, wire(p, 32)));
	still_wired(p, 32);
	still_wired(s, 32);
	check_page(p, 2000);
	put_page(s, 2001);
	check_page(p, 2000);
	pager_check(r->p);
	unmap(s, 32);
	cr_assert(is_page(store, 2001), "unmapping wrote it back");
	cr_assert(eq(u64, rig_stats(r).wired, 32 * PAGE_SIZE));
	check_pages(PAGE(p, 1), 31, 1001);
	up_object_unref(obj);
	rig_down(r);
	free(store);
}

Test(mix, a_wired_page_of_a_named_object_that_the_program_discards_is_read_again)
{
	struct up_object *obj;
	uintptr_t s;

	scene((struct rig_config){ .seed = 1 });
	obj = custom();
	s = map_object(obj, 0, 8, UP_SHARED);
	cr_assert(zero(int, wire(s, 8)));
	sim_discard_behind(r->pm, s, 1);
	check_pages(s, 8, 0);
	cr_assert(zero(int, unwire(s, 8)));
	up_object_unref(obj);
	rig_down(r);
	free(store);
}

/* --- remap --- */

Test(mix, a_clone_and_what_it_was_cloned_from_do_not_grow_until_they_have_parted)
{
	uintptr_t a, b;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(600); /* more than a leaf */
	put_pages(a, 600, 100);
	b = clone_of(a, 600);
	cr_assert(eq(int, remap(&a, 600, 700), -ENOTSUP));
	cr_assert(rig_logged(r, "can not grow"));
	cr_assert(eq(int, remap(&b, 600, 700), -ENOTSUP));
	/* Shorter is no problem. */
	cr_assert(zero(int, remap(&b, 600, 500)));
	check_pages(b, 500, 100);
	unmap(b, 500);
	cr_assert(zero(int, remap(&a, 600, 1200)));
	check_pages(a, 600, 100);
	check_zeros(PAGE(a, 1199));
	/* And what has grown can be cloned. */
	b = clone_of(a, 1200);
	put_pages(PAGE(a, 1100), 100, 900);
	check_pages(b, 600, 100);
	check_zeros(PAGE(b, 1150));
	unmap(a, 1200);
	check_pages(b, 600, 100);
	cr_assert(zero(int, remap(&b, 1200, 1300)));
	check_zeros(PAGE(b, 1299));
	over();
}

/* A range with something mapped right behind it. */
static uintptr_t
hemmed_in(struct up_object *obj, size_t npages)
{
	const uintptr_t va = map_object(obj, 0, npages, UP_SHARED);
	void *p;

	cr_assert(zero(int, up_map(r->rt, (void *)PAGE(va, npages), PAGE_SIZE, RW,
				   UP_PRIVATE | UP_FIXED, NULL, 0, &p)));
	return va;
}

Test(mix, a_shared_range_of_a_chain_moves_with_what_shows_through)
{
	struct up_object *obj, *snap;
	uintptr_t s, old;
	void *p;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	cr_assert(zero(int, up_object_create_anon(r->rt, 64 * PAGE_SIZE, 0, &obj)));
	s = old = hemmed_in(obj, 32);
	scatter(s, 32);
	cr_assert(zero(int, up_object_snapshot(r->rt, obj, &snap)));
	put_pages(s, 8, 500);
	cr_assert(zero(int, remap(&s, 32, 64)));
	cr_assert(ne(uptr, s, old));
	check_pages(s, 8, 500);
	check_pages(PAGE(s, 8), 24, 108);
	check_zeros(PAGE(s, 63));
	put_pages(s, 64, 800);
	cr_assert(
		zero(int, up_map(r->rt, NULL, 64 * PAGE_SIZE, PROT_READ, UP_SHARED, snap, 0, &p)));
	check_pages((uintptr_t)p, 32, 100);
	check_pages(s, 64, 800);
	up_object_unref(obj);
	up_object_unref(snap);
	over();
}

Test(mix, a_range_of_a_named_object_moves_with_what_was_changed)
{
	struct up_object *obj;
	uintptr_t s, old;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	obj = custom();
	s = old = hemmed_in(obj, 16);
	put_pages(s, 8, 500);
	check_page(PAGE(s, 8), 8);
	cr_assert(zero(int, remap(&s, 16, 32)));
	cr_assert(ne(uptr, s, old));
	check_pages(s, 8, 500);
	check_pages(PAGE(s, 8), 24, 8);
	cr_assert(zero(int, up_sync(r->rt, (void *)s, 32 * PAGE_SIZE, 0)));
	for (size_t i = 0; i < 8; i++)
		cr_assert(is_page(store + i * PAGE_SIZE / 8, 500 + i), "page %zu", i);
	/* The source does not get longer, and neither does a private mapping of it. */
	cr_assert(eq(int, remap(&s, 32, STORE + 1), -EINVAL));
	s = map_object(obj, 0, 8, UP_PRIVATE);
	cr_assert(eq(int, remap(&s, 8, 16), -ENOTSUP));
	up_object_unref(obj);
	rig_down(r);
	free(store);
}

/* --- what is said of them --- */

Test(mix, info_and_dump_know_chains_sources_and_names)
{
	struct up_object *obj, *src, *snap;
	static char text[8192];
	uintptr_t s, m;
	FILE *f;

	scene((struct rig_config){ .seed = 1 });
	cr_assert(zero(int, up_object_create_named(r->rt, "table", 16 * PAGE_SIZE, 0, &obj)));
	s = map_object(obj, 0, 16, UP_SHARED);
	put_pages(s, 16, 100);
	cr_assert(zero(uint, info_of(obj).depth));
	cr_assert(eq(u64, info_of(obj).resident, 16 * PAGE_SIZE));
	cr_assert(zero(int, up_object_snapshot(r->rt, obj, &snap)));
	cr_assert(eq(uint, info_of(obj).depth, 1));
	cr_assert(eq(uint, info_of(snap).depth, 1));
	cr_assert(zero(u64, info_of(obj).resident), "they are the backing object's");
	put_pages(s, 4, 200);
	cr_assert(eq(u64, info_of(obj).resident, 4 * PAGE_SIZE));
	cr_assert(strcmp(info_of(snap).pager, "anonymous") == 0);

	src = custom();
	m = map_object(src, 0, 16, UP_SHARED);
	check_pages(m, 16, 0);
	cr_assert(strcmp(info_of(src).pager, "custom") == 0);
	cr_assert(ge(u64, info_of(src).resident, 16 * PAGE_SIZE), "kind COPY is in memory too");

	f = fmemopen(text, sizeof text, "w");
	cr_assert(f != NULL);
	cr_assert(zero(int, up_map_dump(r->rt, f)));
	fclose(f);
	cr_assert(strstr(text, " table\n") != NULL, "%s", text);
	cr_assert(strstr(text, " custom ") != NULL, "%s", text);
	up_object_unref(obj);
	up_object_unref(snap);
	up_object_unref(src);
	rig_down(r);
	free(store);
}
