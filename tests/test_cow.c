/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_cow.c: clones and snapshots over the simulated kernel: who sees what, what is copied, what is freed.
 */
#include <errno.h>

#include "scene.h"

TestSuite(cow, .timeout = 30);

static struct object *
object_at(uintptr_t va)
{
	const struct map_entry *e = map_lookup(&r->p->map, va);

	cr_assert(e != NULL);
	return e->object;
}

static uintptr_t
clone_of(uintptr_t va, size_t n)
{
	void *copy;

	cr_assert(eq(int, up_clone(r->rt, (void *)va, n * PAGE_SIZE, &copy), 0));
	return (uintptr_t)copy;
}

/* Pages that exist, wherever they are. */
static size_t
anons(void)
{
	return zone_count(&r->p->zones.anon);
}

static uint64_t
promised(void)
{
	uint64_t max, used;

	resv_get(&r->p->resv_swap, &max, &used);
	return used;
}

static uint64_t
promised_metadata(void)
{
	uint64_t max, used;

	resv_get(&r->p->resv_meta, &max, &used);
	return used;
}

/* --- what each side sees --- */

Test(cow, both_sides_see_what_was_and_then_their_own)
{
	uintptr_t a, b;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(8);
	put_pages(a, 6, 100); /* two were never touched */
	b = clone_of(a, 8);
	put_page(a + 1 * PAGE_SIZE, 201);
	put_page(b + 2 * PAGE_SIZE, 302);
	put_page(a + 6 * PAGE_SIZE, 206);
	put_page(b + 7 * PAGE_SIZE, 307);

	check_page(a, 100);
	check_page(b, 100);
	check_page(a + 1 * PAGE_SIZE, 201);
	check_page(b + 1 * PAGE_SIZE, 101);
	check_page(a + 2 * PAGE_SIZE, 102);
	check_page(b + 2 * PAGE_SIZE, 302);
	check_page(a + 6 * PAGE_SIZE, 206);
	check_zeros(b + 6 * PAGE_SIZE);
	check_zeros(a + 7 * PAGE_SIZE);
	check_page(b + 7 * PAGE_SIZE, 307);
	rig_down(r);
}

Test(cow, nothing_is_copied_by_the_clone_itself)
{
	uintptr_t a;
	size_t before;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(64);
	put_pages(a, 64, 0);
	seen();
	before = anons();
	clone_of(a, 64);
	expect(.pages_staged = 0);
	cr_assert(eq(sz, anons(), before));
	cr_assert(eq(u64, rig_stats(r).copies, 0));
	rig_down(r);
}

Test(cow, the_last_who_sees_a_page_takes_it_instead_of_copying)
{
	uintptr_t a, b;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(16);
	put_pages(a, 16, 0);
	b = clone_of(a, 16);
	for (size_t i = 0; i < 16; i++)
		put_page(a + i * PAGE_SIZE, 1000 + i);
	cr_assert(eq(u64, rig_stats(r).copies, 16));
	cr_assert(eq(sz, anons(), 32));
	check_pages(b, 16, 0);
	cr_assert(eq(u64, rig_stats(r).copies, 16), "nobody else sees these any more");
	cr_assert(eq(sz, anons(), 32));
	check_pages(a, 16, 1000);
	rig_down(r);
}

static const struct pmap_ops *simulated;
static struct object *going; /* NULL: it has gone */

/* Somebody lets go of a clone while we wait for a frame. */
static int
frame_new_meanwhile(struct pmap *pm, frame_t first, size_t n, size_t *done)
{
	struct object *b = going;
	sigset_t old;

	going = NULL;
	change_begin(r->p, &old);
	/* Whether something is seen by nobody any more has been looked at by then. */
	if (b != NULL)
		chain_dropped(r->p, b, 0, 0);
	change_end(r->p, &old);
	return simulated->frame_new(pm, first, n, done);
}

/*
 *	a --> B2 --> B <-- c		what d looks at is in B, and a sees it too: a copy
 *	d ----^				c goes, and B2 and B become one meanwhile: B2, which has few pages, gets all of B's
 */
Test(cow, what_is_copied_may_be_of_an_object_that_goes_meanwhile)
{
	static struct pmap_ops ops;
	uintptr_t a, c, d;
	frame_t spare;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(16);
	put_pages(a, 16, 7);
	c = clone_of(a, 16);
	put_page(a, 7); /* its own now */
	d = clone_of(a, 16);
	going = object_at(c)->backing;
	r->p->closing = true; /* so that nothing is joined yet */
	unmap(c, 16);
	r->p->closing = false;
	cr_assert(eq(uint, going->nshadows, 1));
	while (frame_take(&r->p->frames, 1, &spare) == 1)
		frames_drop(r->p, spare, 1);
	simulated = r->p->pmap->ops;
	ops = *simulated;
	ops.frame_new = frame_new_meanwhile;
	r->p->pmap->ops = &ops;
	check_page(d + 3 * PAGE_SIZE, 10);
	cr_assert(eq(ptr, going, NULL), "nothing went, so nothing was tested");
	r->p->pmap->ops = simulated;
	/* Believed to be of a source it would be forgotten as it goes, and not be what it was. */
	cr_assert(ne(uint, atomic_load(&anon_at(d + 3 * PAGE_SIZE)->kind), ANON_COPY));
	check_pages(d, 16, 7);
	check_pages(a, 16, 7);
	cr_assert(eq(ptr, object_at(a)->backing, object_at(d)->backing));
	cr_assert(eq(ptr, object_at(a)->backing->backing, NULL));
	rig_down(r);
}

Test(cow, what_is_in_swap_is_read_for_both)
{
	uintptr_t a, b;

	scene((struct rig_config){ .seed = 3 });
	a = map_random(32);
	put_pages(a, 32, 7);
	for (size_t i = 0; i < 32; i++)
		rig_push_out(r, a + i * PAGE_SIZE);
	b = clone_of(a, 32);
	check_pages(b, 32, 7);
	check_pages(a, 32, 7);
	put_pages(b, 32, 500);
	check_pages(a, 32, 7);
	check_pages(b, 32, 500);
	rig_down(r);
}

Test(cow, a_part_can_be_cloned_and_parts_of_different_protection)
{
	uintptr_t a, b;
	uint64_t w = 0;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(700); /* beyond a leaf */
	put_pages(a + 500 * PAGE_SIZE, 30, 40);
	cr_assert(zero(int,
		       up_protect(r->rt, (void *)(a + 510 * PAGE_SIZE), 5 * PAGE_SIZE, PROT_READ)));
	b = clone_of(a + 505 * PAGE_SIZE, 15);
	check_pages(b, 15, 45);
	cr_assert(eq(int, rig_touch(r, 0, b + 5 * PAGE_SIZE, true, &w, 0, 8), SIM_SIGSEGV));
	put_page(b, 900);
	check_pages(a + 500 * PAGE_SIZE, 30, 40);
	cr_assert(eq(int, object_at(b)->npages, 5), "a piece for each entry");
	rig_down(r);
}

Test(cow, pages_that_nobody_may_touch_are_cloned_with_their_content)
{
	uintptr_t a, b;

	scene((struct rig_config){ .seed = 1, .mask = UP_MASK_MOVE });
	a = map_random(4);
	put_pages(a, 4, 0);
	cr_assert(zero(int, up_protect(r->rt, (void *)a, 4 * PAGE_SIZE, PROT_NONE)));
	b = clone_of(a, 4);
	for (unsigned i = 0; i < 2; i++) {
		uint64_t w = 0;
		const uintptr_t va = i == 0 ? a : b;

		cr_assert(eq(int, rig_touch(r, 0, va, false, &w, 0, 8), SIM_SIGSEGV));
		cr_assert(zero(int, up_protect(r->rt, (void *)va, 4 * PAGE_SIZE,
					       PROT_READ | PROT_WRITE)));
		check_pages(va, 4, 0);
	}
	rig_down(r);
}

Test(cow, discarding_is_seen_on_one_side_only)
{
	uintptr_t a, b;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(8);
	put_pages(a, 8, 0);
	b = clone_of(a, 8);
	check_page(a, 0); /* one is its own already */
	cr_assert(zero(int, up_advise(r->rt, (void *)a, 4 * PAGE_SIZE, UP_ADVICE_DONTNEED)));
	for (size_t i = 0; i < 4; i++)
		check_zeros(a + i * PAGE_SIZE);
	check_pages(b, 8, 0);
	check_pages(a + 4 * PAGE_SIZE, 4, 4);
	rig_down(r);
}

/* A page of zeros is dropped at pageout: what it hid must stay hidden. */
Test(cow, zeros_written_over_a_shared_page_stay_zeros_after_pageout)
{
	static char zeros[PAGE_SIZE];
	uintptr_t a, b;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(4);
	put_pages(a, 4, 0);
	b = clone_of(a, 4);
	for (size_t i = 0; i < 4; i++)
		cr_assert(eq(int, rig_touch(r, 0, a + i * PAGE_SIZE, true, zeros, 0, PAGE_SIZE),
			     SIM_OK));
	for (size_t i = 0; i < 4; i++)
		rig_push_out(r, a + i * PAGE_SIZE);
	rig_settle(r);
	for (size_t i = 0; i < 4; i++)
		check_zeros(a + i * PAGE_SIZE);
	check_pages(b, 4, 0);
	cr_assert(gt(u64, rig_stats(r).zero_skips, 0), "none was dropped: nothing was tested");
	rig_down(r);
}

/* --- chains --- */

Test(cow, clones_of_clones_each_see_their_own_time)
{
	uintptr_t va[9];

	scene((struct rig_config){ .seed = 5, .memory = 4 << 20 });
	va[0] = map_random(40);
	put_pages(va[0], 40, 0);
	for (unsigned k = 1; k < 9; k++) {
		va[k] = clone_of(va[k - 1], 40);
		put_page(va[k] + k * PAGE_SIZE, 100 * k);
		put_page(va[k - 1] + 20 * PAGE_SIZE, 1000 * k);
	}
	for (unsigned k = 0; k < 9; k++) {
		for (unsigned i = 0; i < 40; i++) {
			uint64_t want = i;

			if (i >= 1 && i <= k)
				want = 100 * i;
			if (i == 20 && k < 8)
				want = 1000 * (k + 1);
			check_page(va[k] + i * PAGE_SIZE, want);
		}
	}
	/* Out of order, so that chains close in the middle as well as at their ends. */
	for (unsigned k = 0; k < 9; k += 2) {
		unmap(va[k], 40);
		if (k + 1 < 9)
			check_page(va[k + 1] + 39 * PAGE_SIZE, 39);
	}
	for (unsigned k = 1; k < 9; k += 2) {
		check_page(va[k] + k * PAGE_SIZE, 100 * k);
		check_page(va[k], 0);
	}
	unmap(va[1], 40);
	unmap(va[5], 40);
	unmap(va[7], 40);
	cr_assert(eq(uint, object_depth(object_at(va[3])), 0), "the last one stands alone");
	cr_assert(eq(sz, anons(), 40));
	check_page(va[3] + 3 * PAGE_SIZE, 300);
	rig_down(r);
}

Test(cow, a_thousand_rounds_leave_what_a_fresh_state_would_have)
{
	uint64_t swap, meta;
	uintptr_t a;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	a = map_random(600);
	put_pages(a, 600, 0);
	swap = promised();
	meta = promised_metadata();
	for (unsigned k = 0; k < 1000; k++) {
		const uintptr_t b = clone_of(a, 600);

		put_page(a + (k % 600) * PAGE_SIZE, k % 600 + 10000 * (k / 600 + 1));
		put_page(b + (k * 7 % 600) * PAGE_SIZE, 999);
		cr_assert(le(uint, object_depth(object_at(a)), 2));
		if (k % 2 == 1)
			check_page(a + 599 * PAGE_SIZE, k >= 599 ? 10599 : 599);
		unmap(b, 600);
		cr_assert(eq(uint, object_depth(object_at(a)), 0), "round %u", k);
		cr_assert(eq(sz, anons(), 600), "round %u", k);
	}
	for (unsigned i = 0; i < 600; i++)
		check_page(a + i * PAGE_SIZE, i + (i < 400 ? 20000 : 10000));
	cr_assert(eq(u64, promised(), swap));
	cr_assert(eq(u64, promised_metadata(), meta));
	cr_assert(eq(uint, r->p->objects != NULL && r->p->objects->next == NULL, 1));
	rig_down(r);
}

Test(cow, the_original_may_go_first_round_after_round)
{
	uintptr_t a;

	scene((struct rig_config){ .seed = 2, .memory = 4 << 20 });
	a = map_random(100);
	put_pages(a, 100, 0);
	for (unsigned k = 0; k < 300; k++) {
		const uintptr_t b = clone_of(a, 100);

		put_page(b + (k % 100) * PAGE_SIZE, k % 100 + 1000 * (k / 100 + 1));
		unmap(a, 100);
		a = b;
		cr_assert(le(uint, object_depth(object_at(a)), 1));
	}
	check_pages(a, 100, 3000);
	cr_assert(eq(sz, anons(), 100));
	rig_down(r);
}

Test(cow, cloning_again_without_a_write_does_not_deepen_the_chain)
{
	uintptr_t a;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	a = map_random(10);
	put_pages(a, 10, 0);
	for (unsigned k = 0; k < 20; k++)
		check_page(clone_of(a, 10), 0);
	cr_assert(eq(uint, object_depth(object_at(a)), 1));
	rig_down(r);
}

Test(cow, what_only_an_unmapped_part_saw_is_freed_at_once)
{
	uintptr_t a, b;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(20);
	put_pages(a, 20, 0);
	b = clone_of(a, 20);
	put_pages(a, 20, 100); /* b alone sees the old ones */
	cr_assert(eq(sz, anons(), 40));
	unmap(b + 5 * PAGE_SIZE, 10);
	cr_assert(eq(sz, anons(), 30));
	check_pages(b, 5, 0);
	check_pages(b + 15 * PAGE_SIZE, 5, 15);
	check_pages(a, 20, 100);
	rig_down(r);
}

/* --- promises --- */

Test(cow, a_clone_promises_as_much_as_a_region_and_gives_it_back)
{
	uintptr_t a, b;
	uint64_t before;
	void *p;

	scene((struct rig_config){ .seed = 1, .swap_slots = 256 });
	a = map_random(100);
	put_pages(a, 100, 0);
	before = promised();
	b = clone_of(a, 100);
	cr_assert(eq(u64, promised(), before + 100));
	cr_assert(eq(int, up_clone(r->rt, (void *)a, 100 * PAGE_SIZE, &p), -ENOSPC));
	cr_assert(rig_logged(r, "up_clone: no swap space for 100 pages"));
	cr_assert(eq(ptr, p, NULL));
	check_pages(b, 100, 0);
	unmap(b, 100);
	cr_assert(eq(u64, promised(), before));
	check_pages(a, 100, 0);
	rig_down(r);
}

/* Everything that was promised is used, on a swap with not a slot to spare. */
Test(cow, both_sides_can_be_written_to_in_full_when_the_swap_has_just_room)
{
	uintptr_t a, b;

	scene((struct rig_config){ .seed = 1, .swap_slots = 1536 });
	a = map_random(768);
	put_pages(a, 768, 0);
	b = clone_of(a, 768);
	put_pages(a, 768, 10000);
	put_pages(b, 768, 20000);
	check_pages(a, 768, 10000);
	check_pages(b, 768, 20000);
	cr_assert(eq(u64, rig_stats(r).fault_sigbus, 0));
	rig_down(r);
}

Test(cow, an_overcommitted_copy_that_finds_no_slot_is_SIGBUS_and_never_wrong)
{
	uintptr_t a, b;
	unsigned lost = 0;
	void *p;

	scene((struct rig_config){ .seed = 1, .swap_slots = 700 });
	cr_assert(zero(int, up_map(r->rt, NULL, 600 * PAGE_SIZE, PROT_READ | PROT_WRITE,
				   UP_PRIVATE | UP_NORESERVE, NULL, 0, &p)));
	a = (uintptr_t)p;
	put_pages(a, 600, 0);
	b = clone_of(a, 600);
	for (unsigned i = 0; i < 600; i++) {
		uint64_t w = 77;

		lost += rig_touch(r, 0, b + i * PAGE_SIZE, true, &w, 0, 8) == SIM_SIGBUS;
	}
	cr_assert(gt(uint, lost, 0));
	check_pages(a, 600, 0);
	rig_down(r);
}

Test(cow, lost_content_is_lost_for_whoever_sees_it)
{
	uintptr_t a, b;
	uint64_t w = 0;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(2);
	put_pages(a, 2, 0);
	rig_push_out(r, a);
	rig_settle(r);
	b = clone_of(a, 2);
	sim_fail_rate(&r->f, SIM_READ, -EIO, 1000);
	cr_assert(eq(int, rig_touch(r, 0, b, false, &w, 0, 8), SIM_SIGBUS));
	sim_fail_rate(&r->f, SIM_READ, -EIO, 0);
	cr_assert(eq(int, rig_touch(r, 0, a, false, &w, 0, 8), SIM_SIGBUS));
	check_page(a + PAGE_SIZE, 1);
	check_page(b + PAGE_SIZE, 1);
	cr_assert(zero(int, up_advise(r->rt, (void *)b, PAGE_SIZE, UP_ADVICE_DONTNEED)));
	check_zeros(b);
	rig_down(r);
}

/* --- objects --- */

Test(cow, a_snapshot_stays_what_the_object_was)
{
	struct up_object *obj, *snap, *later;
	void *p, *q, *s;
	uint64_t w = 0;

	scene((struct rig_config){ .seed = 1 });
	cr_assert(zero(int, up_object_create_anon(r->rt, 16 * PAGE_SIZE, 0, &obj)));
	cr_assert(zero(int, up_map(r->rt, NULL, 16 * PAGE_SIZE, PROT_READ | PROT_WRITE, UP_SHARED,
				   obj, 0, &p)));
	put_pages((uintptr_t)p, 16, 0);
	cr_assert(zero(int, up_object_snapshot(r->rt, obj, &snap)));
	put_pages((uintptr_t)p, 8, 100);
	cr_assert(zero(int, up_object_snapshot(r->rt, obj, &later)));
	put_pages((uintptr_t)p, 4, 200);

	cr_assert(eq(int,
		     up_map(r->rt, NULL, 16 * PAGE_SIZE, PROT_READ | PROT_WRITE, UP_SHARED, snap, 0,
			    &q),
		     -EACCES));
	cr_assert(
		zero(int, up_map(r->rt, NULL, 16 * PAGE_SIZE, PROT_READ, UP_SHARED, snap, 0, &q)));
	check_pages((uintptr_t)q, 16, 0);
	cr_assert(eq(int, rig_touch(r, 0, (uintptr_t)q, true, &w, 0, 8), SIM_SIGSEGV));
	cr_assert(eq(int, up_protect(r->rt, q, PAGE_SIZE, PROT_READ | PROT_WRITE), -EACCES));
	cr_assert(rig_logged(r, "the object can not be written to"));

	cr_assert(zero(int, up_map(r->rt, NULL, 16 * PAGE_SIZE, PROT_READ | PROT_WRITE, UP_PRIVATE,
				   later, 0, &s)));
	check_pages((uintptr_t)s, 8, 100);
	put_page((uintptr_t)s + PAGE_SIZE, 5000);
	check_page((uintptr_t)p + PAGE_SIZE, 201);
	check_pages((uintptr_t)p + 4 * PAGE_SIZE, 4, 104);
	up_object_unref(later);
	up_object_unref(snap);
	up_object_unref(obj);
	check_page((uintptr_t)s + PAGE_SIZE, 5000);
	check_pages((uintptr_t)q, 16, 0);
	rig_down(r);
}

Test(cow, a_name_keeps_an_object_until_it_is_removed)
{
	struct up_object *obj, *again, *none;
	char longest[UP_OBJECT_NAME_MAX + 2];
	void *p;

	scene((struct rig_config){ .seed = 1 });
	cr_assert(zero(int, up_object_create_named(r->rt, "table", 8 * PAGE_SIZE, 0, &obj)));
	cr_assert(
		eq(int, up_object_create_named(r->rt, "table", 8 * PAGE_SIZE, 0, &none), -EEXIST));
	cr_assert(eq(ptr, none, NULL));
	cr_assert(zero(int, up_map(r->rt, NULL, 8 * PAGE_SIZE, PROT_READ | PROT_WRITE, UP_SHARED,
				   obj, 0, &p)));
	put_pages((uintptr_t)p, 8, 0);
	unmap((uintptr_t)p, 8);
	up_object_unref(obj);
	cr_assert(eq(sz, anons(), 8), "nobody but the name has it");

	cr_assert(zero(int, up_object_open(r->rt, "table", &again)));
	cr_assert(eq(ptr, again, obj));
	cr_assert(
		zero(int, up_map(r->rt, NULL, 8 * PAGE_SIZE, PROT_READ, UP_SHARED, again, 0, &p)));
	check_pages((uintptr_t)p, 8, 0);
	cr_assert(zero(int, up_object_remove(r->rt, "table")));
	cr_assert(eq(int, up_object_remove(r->rt, "table"), -ENOENT));
	cr_assert(eq(int, up_object_open(r->rt, "table", &none), -ENOENT));
	cr_assert(rig_logged(r, "there is no \"table\""));
	check_pages((uintptr_t)p, 8, 0);
	/* The name is free for another. */
	cr_assert(zero(int, up_object_create_named(r->rt, "table", PAGE_SIZE, 0, &obj)));
	cr_assert(ne(ptr, again, obj));
	up_object_unref(obj);
	up_object_unref(again);
	unmap((uintptr_t)p, 8);
	cr_assert(zero(sz, anons()));

	memset(longest, 'x', sizeof longest - 1);
	longest[sizeof longest - 1] = '\0';
	cr_assert(eq(int, up_object_create_named(r->rt, longest, PAGE_SIZE, 0, &obj), -EINVAL));
	cr_assert(eq(int, up_object_create_named(r->rt, "", PAGE_SIZE, 0, &obj), -EINVAL));
	cr_assert(eq(int, up_object_create_named(r->rt, "odd", 100, 0, &obj), -EINVAL));
	cr_assert(zero(int, up_object_create_named(r->rt, longest + 1, PAGE_SIZE, 0, &obj)));
	/* Two names are left for the runtime's end to drop. */
	rig_down(r);
}

/* Whose a name is only a daemon asks: here that there is one, and that the mode is one. */
Test(cow, a_mode_is_checked_and_keeps_nobody_out_of_his_own_memory)
{
	struct up_object *obj, *again;
	struct up_object_stats info;

	scene((struct rig_config){ .seed = 1 });
	cr_assert(eq(int, up_object_create_mode(r->rt, "x", PAGE_SIZE, 0, 0700, &obj), -EINVAL));
	cr_assert(zero(int, up_object_create_mode(r->rt, "x", PAGE_SIZE, 0, 0, &obj)));
	cr_assert(zero(int, up_object_open(r->rt, "x", &again)));
	cr_assert(zero(int, up_object_info(again, &info, sizeof info)));
	cr_assert(eq(int, info.prot, PROT_READ | PROT_WRITE));
	cr_assert(zero(int, up_object_chmod(r->rt, "x", 0640)));
	cr_assert(eq(int, up_object_chmod(r->rt, "x", 01640), -EINVAL));
	cr_assert(eq(int, up_object_chmod(r->rt, "y", 0640), -ENOENT));
	cr_assert(zero(int, up_object_chown(r->rt, "x", (uid_t)-1, 1)));
	cr_assert(eq(int, up_object_chown(r->rt, "y", (uid_t)-1, 1), -ENOENT));
	cr_assert(eq(int, up_object_chown(r->rt, "", (uid_t)-1, 1), -EINVAL));
	cr_assert(eq(int, up_object_chmod(NULL, "x", 0640), -EINVAL));
	up_object_unref(again);
	cr_assert(zero(int, up_object_snapshot(r->rt, obj, &again)));
	cr_assert(zero(int, up_object_info(again, &info, sizeof info)));
	cr_assert(eq(int, info.prot, PROT_READ));
	up_object_unref(again);
	up_object_unref(obj);
	rig_down(r);
}

Test(cow, residency_tells_of_what_shows_through)
{
	unsigned char vec[3];
	uintptr_t a, b;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(3);
	put_pages(a, 2, 0);
	rig_push_out(r, a);
	rig_settle(r);
	b = clone_of(a, 3);
	cr_assert(zero(int, up_residency(r->rt, (void *)b, 3 * PAGE_SIZE, vec)));
	cr_assert(ne(uint, vec[0] & UP_PAGE_SWAPPED, 0));
	cr_assert(ne(uint, vec[1] & (UP_PAGE_STAGED | UP_PAGE_SWAPPED), 0));
	cr_assert(zero(uint, vec[2]));
	rig_down(r);
}

Test(cow, a_hole_can_not_be_cloned)
{
	uintptr_t a;
	void *p;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(8);
	unmap(a + 4 * PAGE_SIZE, 1);
	cr_assert(eq(int, up_clone(r->rt, (void *)a, 8 * PAGE_SIZE, &p), -ENOMEM));
	cr_assert(eq(int, up_clone(r->rt, (void *)a, 100, &p), -EINVAL));
	cr_assert(eq(int, up_clone(r->rt, (void *)a, 8 * PAGE_SIZE, NULL), -EINVAL));
	rig_down(r);
}

/* --- what only a hostile reader thinks of --- */

Test(cow, what_nobody_sees_is_freed_also_when_the_chain_closes)
{
	uintptr_t a, c, d;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(2);
	put_pages(a, 2, 0);
	c = clone_of(a, 2);
	put_page(a + PAGE_SIZE, 101);
	d = clone_of(a, 2);
	put_page(c, 300); /* a and d see the old one */
	put_page(a, 200); /* now d alone, through two objects */
	unmap(d, 2);
	cr_assert(eq(sz, anons(), 4), "two for a, two for c");
	check_page(c, 300);
	check_page(c + PAGE_SIZE, 1);
	check_page(a, 200);
	check_page(a + PAGE_SIZE, 101);
	rig_down(r);
}

Test(cow, what_nobody_sees_is_freed_when_a_chain_closes_in_the_middle)
{
	uintptr_t a, first, second;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(2);
	put_pages(a, 2, 0);
	first = clone_of(a, 2);
	put_page(a + PAGE_SIZE, 101);
	second = clone_of(a, 2);
	put_page(a, 200);
	put_page(second, 300); /* the old one: for the first clone only */
	unmap(first, 2);
	cr_assert(eq(sz, anons(), 3), "one for each of a and the second, one that both see");
	check_page(a, 200);
	check_page(second, 300);
	check_page(a + PAGE_SIZE, 101);
	check_page(second + PAGE_SIZE, 101);
	rig_down(r);
}

/* A region in many pieces is one object: what it had needs one backing object, not one a piece. */
Test(cow, a_region_in_pieces_costs_metadata_once)
{
	const size_t n = 8192, step = 512;
	uintptr_t a, b;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	a = map_random(n);
	put_pages(a, 4, 0);
	for (size_t i = step; i < n; i += 2 * step)
		cr_assert(zero(int, up_protect(r->rt, (void *)(a + i * PAGE_SIZE), step * PAGE_SIZE,
					       PROT_READ)));
	b = clone_of(a, n);
	check_pages(b, 4, 0);
	check_pages(a, 4, 0);
	rig_down(r);
}

/* However long a clone takes: what it kept waiting is served, not given up. */
Test(cow, a_fault_that_a_clone_kept_waiting_does_not_time_out)
{
	uintptr_t a;
	uint64_t w;

	scene((struct rig_config){ .seed = 1, .fault_timeout_ms = 5 });
	a = map_random(4);
	put_pages(a, 4, 0);
	clone_of(a, 4);
	chain_freeze(r->p);
	cr_assert(eq(int, sim_touch(r->pm, 1, a, false, &w, 0, 8), SIM_FAULT));
	rig_step(r);
	for (const uint64_t end = now_ns() + 10000000; now_ns() < end;)
		;
	chain_thaw(r->p);
	cr_assert(eq(int, rig_touch(r, 1, a, false, &w, 0, 8), SIM_OK));
	check_pages(a, 4, 0);
	cr_assert(zero(u64, rig_stats(r).fault_sigbus));
	rig_down(r);
}

Test(cow, discarding_a_lost_page_that_was_cloned_since_clears_it)
{
	uintptr_t a, b;
	uint64_t w = 0;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(2);
	put_pages(a, 2, 0);
	rig_push_out(r, a);
	rig_settle(r);
	sim_fail_rate(&r->f, SIM_READ, -EIO, 1000);
	cr_assert(eq(int, rig_touch(r, 0, a, false, &w, 0, 8), SIM_SIGBUS));
	sim_fail_rate(&r->f, SIM_READ, -EIO, 0);
	clone_of(a, 2);
	cr_assert(eq(int, rig_touch(r, 0, a, false, &w, 0, 8), SIM_SIGBUS));
	b = clone_of(a, 2);
	cr_assert(zero(int, up_advise(r->rt, (void *)a, PAGE_SIZE, UP_ADVICE_DONTNEED)));
	check_zeros(a);
	cr_assert(eq(int, rig_touch(r, 0, b, false, &w, 0, 8), SIM_SIGBUS));
	check_page(a + PAGE_SIZE, 1);
	check_page(b + PAGE_SIZE, 1);
	rig_down(r);
}

/* A reader comes between what a discard looks at and what it hides: afterwards the page is zeros all the same. */
Test(cow, a_reader_during_a_discard_does_not_keep_the_old_content)
{
	uintptr_t a, b;
	uint64_t w;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(8);
	put_pages(a, 8, 0);
	b = clone_of(a, 8);
	put_page(b + 5 * PAGE_SIZE, 500);
	swap_out();
	check_page(a, 0); /* in memory again, for b as well */
	sim_disk_delay(r->disk, 50);
	cr_assert(eq(int, sim_touch(r->pm, 1, b + 5 * PAGE_SIZE, false, &w, 0, 8), SIM_FAULT));
	rig_step(r);
	cr_assert(eq(int, sim_touch(r->pm, 2, b, false, &w, 0, 8), SIM_FAULT));
	cr_assert(zero(int, up_advise(r->rt, (void *)b, 8 * PAGE_SIZE, UP_ADVICE_DONTNEED)));
	for (size_t i = 0; i < 8; i++)
		check_zeros(b + i * PAGE_SIZE);
	check_pages(a, 8, 0);
	rig_down(r);
}

/* I/O into a pinned page goes on into the memory that it pinned, so that page can not be parted from its region. */
Test(cow, what_is_pinned_for_io_stays_where_it_is)
{
	uint64_t *memory;
	uintptr_t a;
	void *b;

	scene((struct rig_config){ .seed = 1 });
	a = map_random(4);
	put_pages(a, 4, 0);
	sim_pin(r->pm, a + PAGE_SIZE);
	memory = (uint64_t *)(uintptr_t)sim_peek(r->pm, a + PAGE_SIZE);
	cr_assert(eq(int, up_clone(r->rt, (void *)a, 4 * PAGE_SIZE, &b), -EBUSY));
	cr_assert(eq(ptr, b, NULL));
	cr_assert(rig_logged(r, "pinned"));
	cr_assert(eq(int, sim_state(r->pm, a + PAGE_SIZE), SIM_PRESENT));
	memory[7] = 4711; /* the I/O comes to its end */
	sim_unpin(r->pm, a + PAGE_SIZE);
	cr_assert(eq(u64, rig_get(r, a + PAGE_SIZE) != 0, 1));
	cr_assert(eq(u64, ((const uint64_t *)sim_peek(r->pm, a + PAGE_SIZE))[7], 4711));
	put_page(a + PAGE_SIZE, 1);
	cr_assert(zero(int, up_clone(r->rt, (void *)a, 4 * PAGE_SIZE, &b)));
	check_pages((uintptr_t)b, 4, 0);
	check_pages(a, 4, 0);
	rig_down(r);
}

/* Hiding costs metadata only where there is something to hide. */
Test(cow, discarding_a_sparse_clone_costs_next_to_nothing)
{
	const size_t n = (size_t)64 << 10; /* 128 leaves */
	uintptr_t a, b;
	uint64_t before;
	void *p;

	scene((struct rig_config){ .seed = 1 });
	cr_assert(zero(int, up_map(r->rt, NULL, n * PAGE_SIZE, PROT_READ | PROT_WRITE,
				   UP_PRIVATE | UP_NORESERVE, NULL, 0, &p)));
	a = (uintptr_t)p;
	put_page(a + 1000 * PAGE_SIZE, 1);
	b = clone_of(a, n);
	before = promised_metadata();
	cr_assert(zero(int, up_advise(r->rt, (void *)b, n * PAGE_SIZE, UP_ADVICE_DONTNEED)));
	cr_assert(le(u64, promised_metadata(), before + META_PER_LEAF));
	cr_assert(not(rig_logged(r, "no metadata left")));
	check_zeros(b + 1000 * PAGE_SIZE);
	check_page(a + 1000 * PAGE_SIZE, 1);
	rig_down(r);
}

/* Either the content is gone, or the call says that it is not. */
Test(cow, a_discard_without_metadata_to_remember_it_is_an_error)
{
	const size_t leaves = 40, n = leaves * LEAF_SLOTS;
	uintptr_t a, b;
	uint64_t max, used;
	void *p;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	cr_assert(zero(int, up_map(r->rt, NULL, n * PAGE_SIZE, PROT_READ | PROT_WRITE,
				   UP_PRIVATE | UP_NORESERVE, NULL, 0, &p)));
	a = (uintptr_t)p;
	for (size_t i = 0; i < leaves; i++)
		put_page(a + i * LEAF_SLOTS * PAGE_SIZE, i);
	b = clone_of(a, n);
	resv_get(&r->p->resv_meta, &max, &used);
	cr_assert(resv_try(&r->p->resv_meta, max - used - META_PER_LEAF * leaves / 2));
	cr_assert(eq(int, up_advise(r->rt, (void *)b, n * PAGE_SIZE, UP_ADVICE_DONTNEED), -ENOMEM));
	resv_give(&r->p->resv_meta, max - used - META_PER_LEAF * leaves / 2);
	cr_assert(zero(int, up_advise(r->rt, (void *)b, n * PAGE_SIZE, UP_ADVICE_DONTNEED)));
	for (size_t i = 0; i < leaves; i++) {
		check_zeros(b + i * LEAF_SLOTS * PAGE_SIZE);
		check_page(a + i * LEAF_SLOTS * PAGE_SIZE, i);
	}
	rig_down(r);
}

/* At the end nothing needs to be remembered any more. */
Test(cow, ending_a_runtime_with_clones_in_pieces_says_nothing)
{
	const size_t n = (size_t)64 << 10;
	uintptr_t a, b;
	void *p;

	scene((struct rig_config){ .seed = 1 });
	cr_assert(zero(int, up_map(r->rt, NULL, n * PAGE_SIZE, PROT_READ | PROT_WRITE,
				   UP_PRIVATE | UP_NORESERVE, NULL, 0, &p)));
	a = (uintptr_t)p;
	for (size_t i = 0; i < 128; i += 4)
		put_page(a + i * LEAF_SLOTS * PAGE_SIZE, i);
	b = clone_of(a, n);
	cr_assert(zero(int, up_protect(r->rt, (void *)b, n / 2 * PAGE_SIZE, PROT_READ)));
	cr_assert(zero(int, up_protect(r->rt, (void *)a, n / 2 * PAGE_SIZE, PROT_READ)));
	rig_settle(r);
	up_runtime_destroy(r->rt);
	r->rt = NULL;
	cr_assert(zero(uint, r->nlog), "%s", r->log[0]);
	rig_down(r);
}

/* --- depth --- */

struct deep {
	uintptr_t va;
	unsigned levels;
};

/* On a stack as small as that of a service thread, or smaller. */
static void *
deep_chain(void *arg)
{
	struct deep *d = arg;
	uintptr_t copy = 0;

	for (unsigned i = 0; i < d->levels; i++) {
		put_page(d->va + PAGE_SIZE, i); /* a level of its own */
		copy = clone_of(d->va, 2);
		check_page(
			copy,
			0); /* has its own from here on: who looks for others goes on to the next */
	}
	cr_assert(ge(uint, object_depth(object_at(d->va)), d->levels - 1));
	check_page(d->va, 0);
	check_page(copy + PAGE_SIZE, d->levels - 1);
	rig_down(r);
	return NULL;
}

Test(cow, thousands_of_snapshots_are_no_matter_of_the_stack)
{
	struct deep d = { .levels = 3000 };
	pthread_attr_t attr;
	pthread_t t;
	void *p;

	scene((struct rig_config){ .seed = 1, .memory = 256 << 20 });
	cr_assert(zero(int, up_map(r->rt, NULL, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE,
				   UP_PRIVATE | UP_NORESERVE, NULL, 0, &p)));
	d.va = (uintptr_t)p;
	put_pages(d.va, 2, 0);
	cr_assert(zero(int, pthread_attr_init(&attr)));
	cr_assert(zero(int, pthread_attr_setstacksize(&attr, (size_t)128 << 10)));
	cr_assert(zero(int, pthread_create(&t, &attr, deep_chain, &d)));
	cr_assert(zero(int, pthread_join(t, NULL)));
	pthread_attr_destroy(&attr);
}
