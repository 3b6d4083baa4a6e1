/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_fault.c: every way in which a fault ends, by content and by exact counters.
 *
 * Over the simulated kernel and disk, one step at a time; see scene.h for how a page gets where it is.
 */
#include <errno.h>

#include "scene.h"

TestSuite(fault, .timeout = 120);

#define PAGE(i) (va + (size_t)(i)*PAGE_SIZE)

/*
 * Nothing there: zeros
 */

Test(fault, a_first_touch_finds_zeros)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = rig_map(r, 4 * PAGE_SIZE);
	cr_assert(eq(int, where(va), NOWHERE));
	check_zeros(va);
	expect(ZEROS(1));
	all_are(va, 1, MAPPED);
	cr_assert(eq(int, where(PAGE(1)), NOWHERE));
	put_page(PAGE(2), 5);
	check_page(PAGE(2), 5);
	expect(ZEROS(1));
	cr_assert(eq(u64, rig_stats(r).resident, 2 * PAGE_SIZE));
	over();
}

Test(fault, a_stream_of_first_touches_doubles_its_window)
{
	/* What each fault brings: 1, 1 + 1, 3 + 4, ... up to a cluster; then the region ends. */
	static const struct {
		unsigned at, n;
	} want[] = { { 0, 1 }, { 1, 2 }, { 3, 4 }, { 7, 8 }, { 15, 16 }, { 31, 32 }, { 63, 37 } };
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = rig_map(r, 100 * PAGE_SIZE);
	for (unsigned i = 0; i < ARRAY_SIZE(want); i++) {
		for (unsigned k = 0; k < want[i].n; k++) {
			cr_assert(eq(int, where(PAGE(want[i].at + k)), k == 0 ? NOWHERE : MAPPED));
			check_zeros(PAGE(want[i].at + k));
		}
		expect(ZEROS(1), .zero_ahead_pages = want[i].n - 1);
	}
	cr_assert(eq(u64, rig_stats(r).resident, 100 * PAGE_SIZE));
	over();
}

Test(fault, a_stream_goes_on_across_leaves)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 8 << 20 });
	va = rig_map(r, 3 * LEAF_SLOTS * PAGE_SIZE);
	for (unsigned i = 0; i < LEAF_SLOTS; i++)
		check_zeros(PAGE(i));
	/* 0, 1, 3, 7, 15, 31, then 63 + 64 i to 447, then 511. */
	expect(ZEROS(6 + 7 + 1), .zero_ahead_pages = LEAF_SLOTS - 14);
	for (unsigned i = LEAF_SLOTS; i < 3 * LEAF_SLOTS; i++)
		check_zeros(PAGE(i));
	expect(ZEROS(2 * 8), .zero_ahead_pages = 2 * (LEAF_SLOTS - 8));
	over();
}

Test(fault, random_first_touches_never_run_ahead)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = rig_map(r, 200 * PAGE_SIZE);
	for (unsigned i = 0; i < 100; i++)
		check_zeros(PAGE(i * 37 % 100 * 2));
	expect(ZEROS(100));
	for (unsigned i = 100; i-- > 0;) /* backwards is no stream either */
		check_zeros(PAGE(i * 2 + 1));
	expect(ZEROS(100));
	over();
}

Test(fault, four_streams_each_have_their_window)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 8 << 20 });
	va = rig_map(r, 4 * LEAF_SLOTS * PAGE_SIZE);
	for (unsigned i = 0; i < 200; i++) {
		for (unsigned k = 0; k < 4; k++)
			check_zeros(PAGE(k * LEAF_SLOTS + i));
	}
	/* Each: 0, 1, 3, 7, 15, 31, 63, 127, 191 up to 254. */
	expect(ZEROS(4 * 9), .zero_ahead_pages = 4 * (255 - 9));
	over();
}

Test(fault, more_streams_than_are_remembered_are_random)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 8 << 20 });
	va = rig_map(r, (RA_STREAMS + 1) * LEAF_SLOTS * PAGE_SIZE);
	for (unsigned i = 0; i < 20; i++) {
		for (unsigned k = 0; k <= RA_STREAMS; k++)
			check_zeros(PAGE(k * LEAF_SLOTS + i));
	}
	expect(ZEROS(20 * (RA_STREAMS + 1)));
	over();
}

Test(fault, a_run_of_zeros_stops_where_there_is_something)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = rig_map(r, 100 * PAGE_SIZE);
	put_page(PAGE(5), 5);
	expect(ZEROS(1));
	for (unsigned i = 0; i < 5; i++)
		check_zeros(PAGE(i));
	expect(ZEROS(3), .zero_ahead_pages = 2); /* 0; 1, 2; 3, 4 and not 5, 6 */
	cr_assert(eq(int, where(PAGE(6)), NOWHERE));
	check_page(PAGE(5), 5);
	expect(.limit = 0);
	over();
}

Test(fault, a_run_of_zeros_takes_what_the_budget_has)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = rig_map(r, 32 * PAGE_SIZE);
	advise(va, 32, UP_ADVICE_SEQUENTIAL);
	put_page(PAGE(31), 1); /* metadata is there */
	seen();
	squeeze(20);
	serve_one(va);
	expect(ZEROS(1), .zero_ahead_pages = 19);
	all_are(va, 20, MAPPED);
	all_are(PAGE(20), 11, NOWHERE);
	unsqueeze();
	pager_check(r->p);
	over();
}

/*
 * In memory, but not in the page table: soft
 */

Test(fault, a_staged_page_is_moved_back)
{
	for (unsigned mode = 0; mode < 2; mode++) {
		uintptr_t va;

		scene((struct rig_config){ .seed = 1, .mask = mode ? UP_MASK_MOVE : 0 });
		va = map_written(8, 8, 100);
		seen();
		stage();
		expect(.pages_staged = 8);
		all_are(va, 8, STAGED);
		cr_assert(eq(u64, rig_stats(r).staged, 8 * PAGE_SIZE));
		check_pages(va, 8, 100);
		expect(SOFT(8));
		all_are(va, 8, MAPPED);
		cr_assert(zero(u64, rig_stats(r).staged));
		cr_assert(zero(sz, frames_nfree(&r->p->frames)), "the frames themselves went back");
		over();
	}
}

Test(fault, a_write_to_a_staged_page_is_not_lost)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(8, 8, 100);
	stage();
	put_pages(va, 8, 200);
	clean();
	put_pages(va, 8, 300); /* clean before, dirty now: what the slots hold is worth nothing */
	swap_out();
	all_are(va, 8, SWAPPED);
	check_pages(va, 8, 300);
	over();
}

Test(fault, a_clean_page_is_a_soft_fault_until_its_frame_is_wanted)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(8, 8, 100);
	seen();
	clean();
	expect(.pages_staged = 8, WROTE(1, 8));
	all_are(va, 8, CLEAN);
	check_pages(va, 8, 100);
	expect(SOFT(8));
	over();
}

/*
 * Being written: rescue
 */

Test(fault, a_page_being_written_is_rescued_by_a_copy)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(8, 8, 100);
	seen();
	launder();
	expect(.pages_staged = 8, WROTE(1, 8));
	all_are(va, 8, LAUNDRY);

	check_page(va, 100);
	put_page(PAGE(1), 201);
	expect(SOFT(2), .rescues = 2);
	all_are(va, 2, MAPPED);
	all_are(PAGE(2), 6, LAUNDRY);
	cr_assert(eq(sz, r->p->pages.count[PAGE_LAUNDRY], 8),
		  "orphans keep their frames until the write ends");
	cr_assert(eq(sz, r->p->swap.nused, 8));

	sim_disk_release(r->disk, SWAP_WRITE);
	rig_settle(r);
	expect(.limit = 0);
	cr_assert(zero(sz, r->p->pages.count[PAGE_LAUNDRY]));
	cr_assert(eq(sz, r->p->swap.nused, 6), "the orphans' slots are free");
	cr_assert(eq(sz, frames_nfree(&r->p->frames), 2), "and so are their frames");
	all_are(PAGE(2), 6, CLEAN);
	pager_check(r->p);
	check_page(va, 100);
	check_page(PAGE(1), 201);
	expect(.limit = 0);
	over();
}

Test(fault, a_rescued_page_can_be_written_again_before_the_first_write_ends)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(4, 4, 100);
	launder();
	put_pages(va, 4, 200);
	launder();
	all_are(va, 4, LAUNDRY);
	cr_assert(eq(sz, r->p->pages.count[PAGE_LAUNDRY], 8));
	sim_disk_release(r->disk, SWAP_WRITE);
	rig_settle(r);
	swap_out();
	cr_assert(eq(sz, r->p->swap.nused, 4));
	check_pages(va, 4, 200);
	over();
}

Test(fault, a_failed_write_of_an_orphan_retires_its_slot_and_harms_nobody)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(1);
	put_page(va, 1);
	sim_fail_nth(&r->f, 1, SIM_BIT(SIM_WRITE), -EIO);
	seen();
	launder();
	put_page(va, 2);
	expect(SOFT(1), .rescues = 1, .pages_staged = 1, WROTE(1, 1));
	sim_disk_release(r->disk, SWAP_WRITE);
	rig_settle(r);
	expect(.swap_write_errors = 1, .bad_slots = 1);
	check_page(va, 2);
	cr_assert(zero(sz, r->p->swap.nused));
	over();
}

Test(fault, without_a_frame_for_the_copy_a_rescue_waits_for_the_write)
{
	uint64_t w = 0;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(4, 4, 100);
	launder();
	squeeze(0);
	seen();
	cr_assert(eq(int, sim_touch(r->pm, 1, va, false, &w, 0, 8), SIM_FAULT));
	rig_step(r);
	cr_assert(eq(uint, r->p->service[0]->nparked, 1));
	cr_assert(gt(u64, rig_stats(r).fault_waits, scene_seen.fault_waits));
	all_are(va, 4, LAUNDRY);
	unsqueeze();
	sim_disk_release(r->disk, SWAP_WRITE);
	rig_settle(r);
	cr_assert(eq(int, sim_touch(r->pm, 1, va, false, &w, 0, 8), SIM_OK));
	cr_assert(eq(u64, w, word_of(100, 0)));
	cr_assert(
		eq(u64, rig_stats(r).faults[UP_FAULT_SOFT] - scene_seen.faults[UP_FAULT_SOFT], 1));
	over();
}

/*
 * In swap: major
 */

Test(fault, a_page_comes_back_from_swap_as_it_left)
{
	for (unsigned mode = 0; mode < 2; mode++) {
		uintptr_t va;

		scene((struct rig_config){ .seed = 1, .mask = mode ? UP_MASK_MOVE : 0 });
		va = map_written(64, 64, 100);
		seen();
		swap_out();
		expect(.pages_staged = 64, .pages_out = 64, WROTE(1, 64));
		all_are(va, 64, SWAPPED);
		cr_assert(eq(u64, rig_stats(r).swapped, 64 * PAGE_SIZE));
		cr_assert(zero(u64, rig_stats(r).resident + rig_stats(r).staged));
		check_pages(va, 64, 100);
		expect(MAJOR(64), READ(64, 64));
		all_are(va, 64, MAPPED);
		cr_assert(eq(sz, r->p->swap.nused, 64),
			  "a page read back keeps its slot while it is clean");
		over();
	}
}

Test(fault, a_stream_of_reads_doubles_its_window)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = rig_map(r, 64 * PAGE_SIZE);
	put_pages(va, 64, 100);
	swap_out();
	seen();
	for (unsigned i = 0, n = 1; i < 64; i += n, n *= 2) {
		check_pages(PAGE(i), MIN(n, 64 - i), 100 + i);
		rig_settle(r);
		expect(MAJOR(1), READ(1, MIN(n, 64 - i)), .readahead_pages = MIN(n, 64 - i) - 1);
	}
	over();
}

Test(fault, a_stream_of_reads_keeps_whole_clusters_across_leaves)
{
	const unsigned n = 3 * LEAF_SLOTS;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 8 << 20 });
	va = map_written(n, n, 100);
	swap_out();
	advise(va, n, UP_ADVICE_NORMAL);
	seen();
	check_pages(va, LEAF_SLOTS, 100);
	/* 0, 1, 3, 7, 15, 31, 63, 127, ... 447, 511 */
	expect(MAJOR(14), READ(14, LEAF_SLOTS), .readahead_pages = LEAF_SLOTS - 14);
	check_pages(PAGE(LEAF_SLOTS), 2 * LEAF_SLOTS, 100 + LEAF_SLOTS);
	expect(MAJOR(16), READ(16, 2 * LEAF_SLOTS), .readahead_pages = 2 * LEAF_SLOTS - 16);
	over();
}

Test(fault, random_reads_never_read_ahead)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = rig_map(r, 64 * PAGE_SIZE);
	put_pages(va, 64, 100);
	swap_out();
	seen();
	/* In the order of their bits reversed: no two are next to each other, and no three at the same distance. */
	for (unsigned i = 0; i < 32; i++) {
		const unsigned at =
			2 * ((i & 1) << 4 | (i & 2) << 2 | (i & 4) | (i & 8) >> 2 | i >> 4);

		check_page(PAGE(at), 100 + at);
	}
	expect(MAJOR(32), READ(32, 32));
	over();
}

Test(fault, four_streams_of_reads_at_once)
{
	const unsigned apart = 320; /* less, and they look like one with a stride */
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 8 << 20 });
	va = map_random(4 * apart);
	put_pages(va, 4 * apart, 100);
	swap_out();
	advise(va, 4 * apart, UP_ADVICE_NORMAL);
	seen();
	for (unsigned i = 0; i < 32; i++) {
		for (unsigned k = 0; k < 4; k++)
			check_page(PAGE(k * apart + i), 100 + k * apart + i);
	}
	rig_settle(r);
	/* Each: 0, 1, 3, 7, 15 up to 30, and 31 up to 62. */
	expect(MAJOR(4 * 6), READ(4 * 6, 4 * 63), .readahead_pages = 4 * (63 - 6));
	over();
}

Test(fault, what_lies_scattered_in_the_swap_is_read_in_many_requests_at_once)
{
	const unsigned most = NREADS * 2 / 3; /* the rest is for who really waits */
	uint64_t w;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(32);
	for (unsigned i = 0; i < 32; i += 2)
		put_page(PAGE(i), 100 + i);
	swap_out();
	for (unsigned i = 1; i < 32; i += 2)
		put_page(PAGE(i), 100 + i);
	swap_out();
	advise(va, 32, UP_ADVICE_SEQUENTIAL);
	sim_disk_hold(r->disk, SWAP_READ);
	seen();
	cr_assert(eq(int, sim_touch(r->pm, 1, va, false, &w, 0, 8), SIM_FAULT));
	rig_step(r);
	expect(READ(most, most));
	sim_disk_release(r->disk, SWAP_READ);
	rig_settle(r);
	expect(MAJOR(1), .readahead_pages = most - 1);
	check_pages(va, most, 100);
	expect(.limit = 0);
	check_page(PAGE(most), 100 + most);
	rig_settle(r);
	expect(MAJOR(1), READ(32 - most, 32 - most), .readahead_pages = 32 - most - 1);
	check_pages(va, 32, 100);
	over();
}

Test(fault, read_ahead_passes_by_what_is_in_memory)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(32, 32, 100);
	swap_out();
	check_page(PAGE(10), 110);
	advise(va, 32, UP_ADVICE_SEQUENTIAL);
	seen();
	check_page(PAGE(0), 100);
	rig_settle(r);
	expect(MAJOR(1), READ(2, 31), .readahead_pages = 30);
	check_pages(va, 32, 100);
	expect(.limit = 0);
	over();
}

Test(fault, read_ahead_takes_what_frames_there_are)
{
	frame_t f[CLUSTER_MAX];
	unsigned n;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(32, 32, 100);
	swap_out();
	advise(va, 32, UP_ADVICE_SEQUENTIAL);
	seen();
	squeeze(0);
	n = frames_obtain(r->p, CLUSTER_MAX, f);
	cr_assert(eq(uint, n, 32), "the frames that the pages left behind");
	frames_release(r->p, f, 5);
	serve_one(va);
	expect(READ(1, 5));
	unsqueeze();
	frames_release(r->p, f + 5, n - 5);
	rig_settle(r);
	expect(MAJOR(1), .readahead_pages = 4);
	all_are(va, 5, MAPPED);
	all_are(PAGE(5), 27, SWAPPED);
	check_pages(va, 32, 100);
	over();
}

Test(fault, more_reads_than_requests_wait_their_turn)
{
	enum { N = NREADS + 10 };
	uint64_t w;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(N, N, 100);
	swap_out();
	sim_disk_hold(r->disk, SWAP_READ);
	seen();
	for (unsigned t = 0; t < N; t++)
		cr_assert(eq(int, sim_touch(r->pm, t, PAGE(t), false, &w, 0, 8), SIM_FAULT));
	while (sim_queued(r->pm, 0) > 0)
		rig_step(r);
	cr_assert(eq(uint, r->p->service[0]->io->inflight, NREADS));
	cr_assert(eq(uint, r->p->service[0]->nparked, 10));
	sim_disk_release(r->disk, SWAP_READ);
	rig_settle(r);
	for (unsigned t = 0; t < N; t++) {
		cr_assert(eq(int, sim_touch(r->pm, t, PAGE(t), false, &w, 0, 8), SIM_OK));
		cr_assert(eq(u64, w, word_of(100 + t, 0)));
	}
	scene_seen.fault_waits = rig_stats(r).fault_waits; /* as often as they were tried */
	expect(MAJOR(N), READ(N, N));
	over();
}

/*
 * There already: minor
 */

Test(fault, a_message_that_comes_twice_is_minor)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(16);
	sim_messages(r->pm, 1000, 0, 0);
	put_pages(va, 16, 100);
	rig_settle(r);
	expect(ZEROS(16), MINOR(16));
	stage();
	expect(.pages_staged = 16);
	check_pages(va, 16, 100);
	rig_settle(r);
	expect(SOFT(16), MINOR(16));
	check_pages(va, 16, 100);
	expect(.limit = 0);
	over();
}

Test(fault, the_second_copy_of_a_message_does_not_start_a_second_read)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(16, 16, 100);
	swap_out();
	sim_messages(r->pm, 1000, 0, 0);
	seen();
	check_pages(va, 16, 100);
	rig_settle(r);
	expect(MAJOR(16), READ(16, 16), .fault_waits = 16); /* met the page busy */
	over();
}

Test(fault, a_message_read_late_does_no_harm)
{
	uint64_t late;
	uintptr_t va;

	scene((struct rig_config){ .seed = 3 });
	va = map_random(64);
	sim_messages(r->pm, 1000, 500, 20);
	put_pages(va, 64, 100);
	rig_settle(r);
	/* Where the copy comes first, waking the thread takes the original back. */
	late = rig_stats(r).faults[UP_FAULT_MINOR];
	cr_assert(gt(u64, late, 0));
	expect(ZEROS(64), MINOR(late));
	check_pages(va, 64, 100);
	over();
}

Test(fault, a_message_that_outlives_its_region_is_a_stray)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(4);
	sim_messages(r->pm, 1000, 0, 0);
	put_page(va, 1);
	rig_settle(r);
	sim_messages(r->pm, 1000, 0, 100); /* the copy comes much later */
	while (sim_queued(r->pm, 0) == 0) {
		put_page(PAGE(1), 1);
		stage();
		rig_settle(r);
		put_page(PAGE(1), 2);
	}
	unmap(va, 4);
	seen();
	rig_settle(r);
	expect(.fault_strays = 1);
	cr_assert(zero(uint, r->p->service[0]->nparked));
	cr_assert(zero(u64, rig_stats(r).resident));
	over();
}

/*
 * Discarded behind our back
 */

Test(fault, a_page_that_the_program_discarded_itself_is_zeros)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(8, 8, 100);
	seen();
	sim_discard_behind(r->pm, PAGE(2), 3);
	for (unsigned i = 2; i < 5; i++)
		check_zeros(PAGE(i));
	expect(MINOR(3), .foreign_discards = 3);
	check_pages(va, 2, 100);
	check_pages(PAGE(5), 3, 105);
	put_pages(PAGE(2), 3, 200);
	expect(.limit = 0);
	pager_check(r->p);
	cr_assert(eq(u64, rig_stats(r).resident, 8 * PAGE_SIZE));
	swap_out();
	check_pages(PAGE(2), 3, 200);
	over();
}

Test(fault, discarding_behind_our_back_what_has_a_copy_in_swap_is_zeros_too)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(8, 8, 100);
	swap_out();
	check_pages(va, 8, 100);
	sim_discard_behind(r->pm, va, 4);
	for (unsigned i = 0; i < 4; i++)
		check_zeros(PAGE(i));
	swap_out();
	for (unsigned i = 0; i < 4; i++)
		check_zeros(PAGE(i));
	check_pages(PAGE(4), 4, 104);
	cr_assert(eq(sz, r->p->swap.nused, 4));
	over();
}

/*
 * Busy
 */

Test(fault, a_second_thread_is_woken_with_the_first)
{
	uint64_t a = 0, b = 0;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(2);
	put_page(va, 100);
	swap_out();
	sim_disk_hold(r->disk, SWAP_READ);
	seen();
	cr_assert(eq(int, sim_touch(r->pm, 1, va, false, &a, 0, 8), SIM_FAULT));
	rig_step(r);
	expect(READ(1, 1));
	cr_assert(eq(int, sim_touch(r->pm, 2, va, false, &b, 8, 8), SIM_FAULT));
	rig_step(r);
	expect(.fault_waits = 1);
	cr_assert(zero(uint, r->p->service[0]->nparked), "dropped, not parked");
	cr_assert(sim_waiting(r->pm, 1) && sim_waiting(r->pm, 2));
	sim_disk_release(r->disk, SWAP_READ);
	rig_settle(r);
	cr_assert(eq(int, sim_touch(r->pm, 1, va, false, &a, 0, 8), SIM_OK));
	cr_assert(eq(int, sim_touch(r->pm, 2, va, false, &b, 8, 8), SIM_OK));
	cr_assert(eq(u64, a, word_of(100, 0)));
	cr_assert(eq(u64, b, word_of(100, 1)));
	expect(MAJOR(1));
	over();
}

Test(fault, a_thread_that_meets_a_page_being_read_ahead_is_woken)
{
	uint64_t w = 0;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(8, 8, 100);
	swap_out();
	advise(va, 8, UP_ADVICE_SEQUENTIAL);
	sim_disk_hold(r->disk, SWAP_READ);
	seen();
	cr_assert(eq(int, sim_touch(r->pm, 1, va, false, &w, 0, 8), SIM_FAULT));
	rig_step(r);
	cr_assert(eq(int, sim_touch(r->pm, 2, PAGE(7), false, &w, 0, 8), SIM_FAULT));
	rig_step(r);
	expect(READ(1, 8), .fault_waits = 1);
	sim_disk_release(r->disk, SWAP_READ);
	rig_settle(r);
	cr_assert(eq(int, sim_touch(r->pm, 2, PAGE(7), false, &w, 0, 8), SIM_OK));
	cr_assert(eq(u64, w, word_of(107, 0)));
	expect(MAJOR(1), .readahead_pages = 7);
	over();
}

Test(fault, two_services_serve_each_its_regions)
{
	uintptr_t va[2];

	scene((struct rig_config){ .seed = 1, .services = 2, .memory = 4 << 20 });
	va[0] = map_random(32);
	va[1] = map_random(32);
	put_pages(va[0], 32, 100);
	put_pages(va[1], 20, 200);
	expect(ZEROS(52));
	for (unsigned i = 0; i < 2; i++) {
		const unsigned shard = map_lookup(&r->p->map, va[i])->shard;

		cr_assert(eq(uint, shard, i));
		cr_assert(eq(u64, r->p->service[shard]->count[C_FAULT + UP_FAULT_ZERO],
			     i == 0 ? 32 : 20));
	}
	swap_out();
	check_pages(va[0], 32, 100);
	check_pages(va[1], 20, 200);
	cr_assert(eq(u64, r->p->service[0]->count[C_FAULT + UP_FAULT_MAJOR], 32));
	cr_assert(eq(u64, r->p->service[1]->count[C_FAULT + UP_FAULT_MAJOR], 20));
	over();
}

/*
 * No room, or not now: parked
 */

Test(fault, what_finds_no_room_is_parked_and_then_served)
{
	uint64_t w = 7;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(9, 8, 100);
	launder();
	squeeze(0);
	seen();
	cr_assert(eq(int, sim_touch(r->pm, 1, PAGE(8), false, &w, 0, 8), SIM_FAULT));
	rig_step(r);
	cr_assert(gt(u64, rig_stats(r).fault_waits, scene_seen.fault_waits));
	seen();
	rig_step(r);
	rig_step(r);
	expect(.limit = 0); /* two more looks, and still the same wait */
	cr_assert(eq(uint, r->p->service[0]->nparked, 1));
	cr_assert(sim_waiting(r->pm, 1));
	cr_assert(eq(int, where(PAGE(8)), NOWHERE), "nothing is left of a try");
	/* The first page that is written makes room. */
	sim_disk_release(r->disk, SWAP_WRITE);
	for (unsigned i = 0; i < 20 && r->p->service[0]->nparked > 0; i++)
		rig_step(r);
	cr_assert(zero(uint, r->p->service[0]->nparked));
	cr_assert(
		eq(u64, rig_stats(r).faults[UP_FAULT_ZERO] - scene_seen.faults[UP_FAULT_ZERO], 1));
	unsqueeze();
	cr_assert(eq(int, rig_touch(r, 1, PAGE(8), false, &w, 0, 8), SIM_OK));
	cr_assert(zero(u64, w));
	check_pages(va, 8, 100);
	over();
}

Test(fault, more_faults_than_can_be_parked_are_not_forgotten)
{
	enum { N = PARKED_MAX + 60 };
	uint64_t w;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(8 + N);
	put_page(PAGE(8 + N - 1), 1); /* metadata is there */
	advise(PAGE(8 + N - 1), 1, UP_ADVICE_DONTNEED);
	put_pages(va, 8, 100);
	launder();
	squeeze(0);
	seen();
	for (unsigned t = 0; t < N; t++)
		cr_assert(eq(int, sim_touch(r->pm, t, PAGE(8 + t), false, &w, 0, 8), SIM_FAULT));
	for (unsigned i = 0; i < 20; i++)
		rig_step(r);
	cr_assert(eq(uint, r->p->service[0]->nparked, PARKED_MAX));
	cr_assert(r->p->service[0]->parked_overflow);
	unsqueeze();
	sim_disk_release(r->disk, SWAP_WRITE);
	for (unsigned t = 0; t < N; t++)
		cr_assert(eq(int, rig_touch(r, t, PAGE(8 + t), false, &w, 0, 8), SIM_OK));
	rig_settle(r);
	cr_assert(not(r->p->service[0]->parked_overflow));
	scene_seen.fault_waits = rig_stats(r).fault_waits;
	expect(ZEROS(N));
	check_pages(va, 8, 100);
	over();
}

Test(fault, when_the_kernel_says_again_zeros_come_the_next_time)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(2);
	sim_fail_nth(&r->f, 1, SIM_BIT(SIM_ZERO), -EAGAIN);
	put_page(va, 1);
	cr_assert(sim_fail_disarm(&r->f));
	expect(ZEROS(1), .fault_retries = 1);
	check_page(va, 1);
	over();
}

Test(fault, when_the_kernel_has_no_page_zeros_come_from_a_frame_of_ours)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(2);
	sim_fail_nth(&r->f, 1, SIM_BIT(SIM_ZERO), -ENOMEM);
	check_zeros(va);
	cr_assert(sim_fail_disarm(&r->f));
	expect(ZEROS(1));
	put_page(va, 1);
	check_page(va, 1);
	over();
}

Test(fault, when_nobody_has_a_page_zeros_wait)
{
	uint64_t w = 7;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(2);
	put_page(PAGE(1), 1);
	sim_fail_rate(&r->f, SIM_ZERO, -ENOMEM, 1000);
	sim_fail_rate(&r->f, SIM_FRAME_NEW, -ENOMEM, 1000);
	seen();
	serve_one(va);
	expect(.fault_waits = 1);
	cr_assert(eq(uint, r->p->service[0]->nparked, 1));
	cr_assert(eq(int, where(va), NOWHERE));
	sim_fail_rate(&r->f, SIM_ZERO, -ENOMEM, 0);
	sim_fail_rate(&r->f, SIM_FRAME_NEW, -ENOMEM, 0);
	rig_step(r);
	expect(ZEROS(1));
	cr_assert(eq(int, rig_touch(r, 1, va, false, &w, 0, 8), SIM_OK));
	cr_assert(zero(u64, w));
	check_page(PAGE(1), 1);
	over();
}

Test(fault, zeros_that_are_there_already_are_taken_over)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(2);
	sim_fail_nth(&r->f, 1, SIM_BIT(SIM_ZERO), -EEXIST);
	put_page(va, 1);
	cr_assert(sim_fail_disarm(&r->f));
	expect(ZEROS(1));
	check_page(va, 1);
	pager_check(r->p);
	cr_assert(eq(sz, sim_resident_pages(r->pm), 1));
	over();
}

/* A run that the kernel stops somewhere: what is done counts, the rest is as if nothing had been tried. */
Test(fault, a_run_of_zeros_that_stops_half_way_is_cleaned_up)
{
	static const int errors[] = { -EAGAIN, -ENOMEM, -EEXIST };
	bool partial = false;

	for (unsigned seed = 0; seed < 24; seed++) {
		struct up_stats st;
		uintptr_t va;

		scene((struct rig_config){ .seed = seed });
		va = rig_map(r, 32 * PAGE_SIZE);
		advise(va, 32, UP_ADVICE_SEQUENTIAL);
		sim_fail_nth(&r->f, 1, SIM_BIT(SIM_ZERO), errors[seed % 3]);
		check_zeros(va);
		cr_assert(sim_fail_disarm(&r->f));
		rig_settle(r);
		pager_check(r->p);
		st = rig_stats(r);
		cr_assert(eq(u64, st.faults[UP_FAULT_ZERO], 1));
		cr_assert(eq(u64, st.resident, (1 + st.zero_ahead_pages) * PAGE_SIZE));
		cr_assert(eq(sz, sim_resident_pages(r->pm) * PAGE_SIZE,
			     st.resident + st.free_frames));
		partial |= st.zero_ahead_pages > 0 && st.zero_ahead_pages < 31;
		for (unsigned i = 0; i < 32; i++)
			check_zeros(PAGE(i));
		over();
	}
	cr_assert(partial, "no run stopped in the middle: the test has lost its point");
}

static void
soft_fails(int err)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(4, 4, 100);
	stage();
	seen();
	sim_fail_nth(&r->f, 1, SIM_BIT(SIM_ENTER), err);
	check_page(va, 100);
	cr_assert(sim_fail_disarm(&r->f));
	if (err == -EAGAIN)
		expect(SOFT(1), .fault_retries = 1);
	else if (err == -ENOMEM)
		expect(SOFT(1), .fault_waits = 1);
	else
		expect(SOFT(1));
	check_pages(va, 4, 100);
	rig_settle(r);
	pager_check(r->p);
	cr_assert(eq(sz, sim_resident_pages(r->pm), 4 + frames_nfree(&r->p->frames)));
	over();
}

Test(fault, when_the_kernel_says_again_a_staged_page_stays_staged)
{
	soft_fails(-EAGAIN);
}

Test(fault, when_the_kernel_has_no_page_a_staged_page_stays_staged)
{
	soft_fails(-ENOMEM);
}

Test(fault, a_staged_page_that_is_there_already_gives_up_its_frame)
{
	soft_fails(-EEXIST);
}

/* Its slot has what it was before: to believe that it is clean would lose what was stored since. */
Test(fault, a_changed_page_that_can_not_go_back_now_is_still_changed)
{
	const int errors[] = { -ENOMEM, -EAGAIN };

	for (unsigned i = 0; i < ARRAY_SIZE(errors); i++) {
		uintptr_t va;

		scene((struct rig_config){ .seed = 1 });
		va = map_written(4, 4, 100);
		clean();
		put_pages(va, 4, 200);
		stage();
		all_are(va, 4, STAGED);
		sim_fail_nth(&r->f, 1, SIM_BIT(SIM_ENTER), errors[i]);
		serve_one(va);
		cr_assert(sim_fail_disarm(&r->f));
		all_are(va, 4, STAGED);
		swap_out();
		check_pages(va, 4, 200);
		over();
	}
}

static void
major_fails(int err)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .mask = UP_MASK_VECTOR });
	va = map_written(4, 4, 100);
	swap_out();
	seen();
	sim_fail_nth(&r->f, 1, SIM_BIT(SIM_ENTER), err);
	check_page(va, 100);
	cr_assert(sim_fail_disarm(&r->f));
	/* What was read stays in memory: the second try is soft. */
	if (err == -EEXIST)
		expect(MAJOR(1), READ(1, 1));
	else
		expect(SOFT(1), READ(1, 1));
	check_pages(va, 4, 100);
	rig_settle(r);
	pager_check(r->p);
	cr_assert(eq(sz, sim_resident_pages(r->pm), 4 + frames_nfree(&r->p->frames)));
	cr_assert(eq(sz, r->p->swap.nused, err == -EEXIST ? 3 : 4),
		  "nobody knows what the other page holds");
	over();
}

Test(fault, what_was_read_and_can_not_be_entered_now_is_not_read_again)
{
	major_fails(-EAGAIN);
}

Test(fault, what_was_read_when_the_kernel_has_no_page_is_not_read_again)
{
	major_fails(-ENOMEM);
}

Test(fault, what_was_read_and_is_there_already_gives_up_its_frame)
{
	major_fails(-EEXIST);
}

Test(fault, a_cluster_that_is_entered_half_way_is_all_there_in_the_end)
{
	static const int errors[] = { -EAGAIN, -ENOMEM, -EEXIST };

	for (unsigned seed = 0; seed < 24; seed++) {
		uintptr_t va;

		scene((struct rig_config){ .seed = seed, .mask = seed & 1 ? UP_MASK_MOVE : 0 });
		va = map_written(32, 32, 100);
		swap_out();
		advise(va, 32, UP_ADVICE_SEQUENTIAL);
		seen();
		sim_fail_nth(&r->f, 2, SIM_BIT(SIM_ENTER), errors[seed % 3]); /* the neighbours' */
		check_page(va, 100);
		rig_settle(r);
		cr_assert(sim_fail_disarm(&r->f));
		expect(MAJOR(1), READ(1, 32), .readahead_pages = 31);
		pager_check(r->p);
		check_pages(va, 32, 100);
		cr_assert(eq(u64, rig_stats(r).swap_reads, scene_seen.swap_reads),
			  "it was all in memory");
		over();
	}
}

Test(fault, without_room_for_an_anon_or_a_leaf_a_fault_waits)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(2 * LEAF_SLOTS);
	atomic_store(&r->p->zones.leaf.fail_in, 1);
	put_page(va, 1);
	expect(ZEROS(1), .fault_waits = 1);
	atomic_store(&r->p->zones.anon.fail_in, 1);
	put_page(PAGE(1), 2);
	expect(ZEROS(1), .fault_waits = 1);
	atomic_store(&r->p->zones.node.fail_in, 1); /* the tree is there: not needed */
	put_page(PAGE(LEAF_SLOTS), 3);
	expect(ZEROS(1));
	atomic_store(&r->p->zones.node.fail_in, 0);
	check_pages(va, 2, 1);
	check_page(PAGE(LEAF_SLOTS), 3);
	over();
}

Test(fault, without_room_for_the_page_table_a_fault_waits)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(200);
	put_pages(va, 64, 100); /* the table grows by so many */
	cr_assert(eq(u32, r->p->pages.free, PAGE_NONE));
	while (r->p->pages.table.committed >= (r->p->pages.table.n + 64) * sizeof(struct page))
		put_page(PAGE(r->p->pages.table.n), 100 + r->p->pages.table.n);
	seen();
	r->fail_commit = 1;
	put_page(PAGE(199), 199);
	cr_assert(r->commit_failed);
	expect(ZEROS(1), .fault_waits = 1);
	check_page(PAGE(199), 199);
	check_pages(va, 64, 100);
	over();
}

/*
 * Lost
 */

Test(fault, a_read_error_loses_that_page_and_no_other)
{
	slot_t bad;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(16, 16, 100);
	swap_out();
	bad = slot_of(PAGE(5));
	sim_disk_bad(r->disk, bad, SWAP_READ, true);
	seen();
	expect_sigbus(PAGE(5));
	/* Once more before it is given up. */
	expect(.swap_reads = 2, .swap_read_bytes = PAGE_SIZE, .swap_read_errors = 2,
	       .fault_sigbus = 1, .bad_slots = 1);
	cr_assert(rig_logged(r, "read error 5, content lost"));
	lives_on(va, 16, 5, 100);
	cr_assert(not(runmap_is_free(&r->p->swap.slots, bad)), "a bad slot is not for use");
	over();
}

Test(fault, a_read_error_that_passes_costs_a_second_read)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(16, 16, 100);
	swap_out();
	seen();
	sim_fail_nth(&r->f, 1, SIM_BIT(SIM_READ), -EIO);
	check_page(PAGE(5), 105);
	cr_assert(sim_fail_disarm(&r->f));
	expect(MAJOR(1), .swap_reads = 2, .swap_read_bytes = PAGE_SIZE, .swap_read_errors = 1);
	check_pages(va, 16, 100);
	over();
}

Test(fault, a_read_error_of_what_nobody_waits_for_loses_nothing)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(16, 16, 100);
	swap_out();
	seen();
	sim_fail_nth(&r->f, 1, SIM_BIT(SIM_READ), -EIO);
	advise(va, 16, UP_ADVICE_WILLNEED);
	rig_settle(r);
	cr_assert(sim_fail_disarm(&r->f));
	expect(READ(1, 16), .swap_read_errors = 1);
	all_are(va, 16, SWAPPED);
	check_pages(va, 16, 100);
	over();
}

Test(fault, a_read_error_in_a_cluster_is_pinned_down)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(16, 16, 100);
	swap_out();
	advise(va, 16, UP_ADVICE_SEQUENTIAL);
	sim_disk_bad(r->disk, slot_of(PAGE(5)), SWAP_READ, true);
	seen();
	/* The cluster fails, the page asked for is read alone and is fine. */
	check_page(va, 100);
	rig_settle(r);
	expect(MAJOR(1), .swap_reads = 2, .swap_read_bytes = 16 * PAGE_SIZE, .swap_read_errors = 1);
	all_are(PAGE(1), 15, SWAPPED);
	/* The bad one asked for: the same, and it is not. */
	expect_sigbus(PAGE(5));
	expect(.swap_reads = 2, .swap_read_bytes = 11 * PAGE_SIZE, .swap_read_errors = 2,
	       .fault_sigbus = 1, .bad_slots = 1);
	advise(va, 16, UP_ADVICE_RANDOM);
	lives_on(va, 16, 5, 100);
	over();
}

static void
disk_lies(enum sim_lie how)
{
	uintptr_t va;
	slot_t bad;
	unsigned at = 0;

	scene((struct rig_config){ .seed = 1, .swap_slots = 64 });
	va = map_random(16);
	for (unsigned round = 0; round < 8; round++) { /* slots have a past */
		put_pages(va, 16, 1000 * round);
		swap_out();
	}
	while (!sim_disk_corrupt(r->disk, slot_of(PAGE(at)), how)) {
		at++;
		cr_assert(lt(uint, at, 16), "no slot could be damaged that way");
	}
	bad = slot_of(PAGE(at));
	seen();
	expect_sigbus(PAGE(at));
	expect(READ(1, 1), .checksum_errors = 1, .fault_sigbus = 1, .bad_slots = 1);
	cr_assert(rig_logged(r, "checksum mismatch, content lost"));
	lives_on(va, 16, at, 7000);
	for (unsigned round = 0; round < 8; round++) {
		put_pages(va, 16, 1000 * round);
		swap_out();
		for (unsigned i = 0; i < 16; i++)
			cr_assert(ne(u32, slot_of(PAGE(i)), bad));
	}
	over();
}

Test(fault, a_flipped_bit_is_noticed)
{
	disk_lies(SIM_FLIP);
}

Test(fault, an_old_version_is_noticed)
{
	disk_lies(SIM_STALE);
}

Test(fault, another_pages_content_is_noticed)
{
	disk_lies(SIM_OTHER);
}

Test(fault, of_a_cluster_only_the_damaged_pages_are_lost)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(16, 16, 100);
	swap_out();
	advise(va, 16, UP_ADVICE_SEQUENTIAL);
	cr_assert(sim_disk_corrupt(r->disk, slot_of(PAGE(3)), SIM_FLIP));
	cr_assert(sim_disk_corrupt(r->disk, slot_of(PAGE(9)), SIM_FLIP));
	seen();
	check_page(va, 100);
	rig_settle(r);
	/* Nobody has asked for the two yet: nobody is sent a signal. */
	expect(MAJOR(1), READ(1, 16), .readahead_pages = 15, .checksum_errors = 2, .bad_slots = 2);
	for (unsigned i = 0; i < 16; i++) {
		if (i == 3 || i == 9)
			expect_sigbus(PAGE(i));
		else
			check_page(PAGE(i), 100 + i);
	}
	expect(.fault_sigbus = 2);
	expect_sigbus(PAGE(3)); /* marked in the page table: no fault any more */
	expect(.limit = 0);
	over();
}

Test(fault, a_lost_page_of_an_object_is_lost_wherever_it_is_mapped)
{
	struct up_object *o;
	void *p;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_new_object(4, &o);
	advise(va, 4, UP_ADVICE_RANDOM);
	put_pages(va, 4, 100);
	swap_out();
	sim_disk_corrupt(r->disk, slot_of(PAGE(2)), SIM_FLIP);
	expect_sigbus(PAGE(2));
	unmap(va, 4);
	cr_assert(zero(int, up_map(r->rt, NULL, 4 * PAGE_SIZE, PROT_READ | PROT_WRITE, UP_SHARED, o,
				   0, &p)));
	va = (uintptr_t)p;
	seen();
	expect_sigbus(PAGE(2));
	expect(.fault_sigbus = 1);
	advise(va, 4, UP_ADVICE_RANDOM);
	lives_on(va, 4, 2, 100);
	up_object_unref(o);
	over();
}

Test(fault, a_mark_that_the_kernel_refuses_is_tried_again)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(2, 2, 100);
	swap_out();
	sim_disk_corrupt(r->disk, slot_of(va), SIM_FLIP);
	seen();
	sim_fail_nth(&r->f, 1, SIM_BIT(SIM_POISON), -EAGAIN);
	expect_sigbus(va); /* woken, it finds nothing and faults once more */
	cr_assert(sim_fail_disarm(&r->f));
	expect(READ(1, 1), .checksum_errors = 1, .bad_slots = 1, .fault_sigbus = 1);
	lives_on(va, 2, 0, 100);
	over();
}

/*
 * Time-out
 */

/* Steps until the thread is through; what happened to it. */
static enum sim_result
wait_for(unsigned thread, uintptr_t va, bool write)
{
	uint64_t w = 1;
	enum sim_result res = SIM_FAULT;

	for (unsigned i = 0; i < RIG_PATIENCE && res == SIM_FAULT; i++) {
		res = sim_touch(r->pm, thread, va, write, &w, 0, 8);
		rig_step(r);
	}
	return res;
}

Test(fault, what_can_not_be_served_in_time_is_sigbus)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .fault_timeout_ms = 5 });
	va = map_written(10, 8, 100);
	launder();
	squeeze(0);
	seen();
	cr_assert(eq(int, wait_for(1, PAGE(8), true), SIM_SIGBUS));
	scene_seen.fault_waits = rig_stats(r).fault_waits;
	expect(.fault_sigbus = 1);
	cr_assert(rig_logged(r, "not served for 5 ms"));

	/* Only that page: the others, and its neighbour, are as they were. */
	unsqueeze();
	sim_disk_release(r->disk, SWAP_WRITE);
	check_zeros(PAGE(9));
	lives_on(va, 8, 8, 100);
	over();
}

Test(fault, a_swapped_page_that_can_not_be_read_in_time_is_lost_and_its_slot_free)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .fault_timeout_ms = 5 });
	va = map_written(10, 8, 100);
	swap_out();
	no_room();
	cr_assert(eq(sz, r->p->swap.nused, 8));
	cr_assert(eq(int, wait_for(1, va, false), SIM_SIGBUS));
	cr_assert(eq(sz, r->p->swap.nused, 7));
	give_room();
	lives_on(va, 8, 0, 100);
	over();
}

Test(fault, a_fault_served_just_in_time_is_not_lost)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .fault_timeout_ms = 1000 });
	va = map_written(10, 8, 100);
	launder();
	squeeze(0);
	seen();
	cr_assert(eq(int, sim_touch(r->pm, 1, PAGE(8), true, &(uint64_t){ 1 }, 0, 8), SIM_FAULT));
	for (unsigned i = 0; i < 500; i++)
		rig_step(r);
	cr_assert(eq(uint, r->p->service[0]->nparked, 1));
	unsqueeze();
	sim_disk_release(r->disk, SWAP_WRITE);
	cr_assert(eq(int, wait_for(1, PAGE(8), true), SIM_OK));
	cr_assert(zero(u64, rig_stats(r).fault_sigbus));
	over();
}

/* The holder may be slow; its time is not the thread's. */
Test(fault, a_slow_read_is_not_a_time_out)
{
	struct up_object *o;
	uint64_t w = 0;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .fault_timeout_ms = 5 });
	va = map_new_object(4, &o);
	put_page(va, 100);
	swap_out();
	sim_disk_hold(r->disk, SWAP_READ);
	seen();
	for (unsigned t = 1; t <= 2; t++) {
		cr_assert(eq(int, sim_touch(r->pm, t, va, false, &w, 0, 8), SIM_FAULT));
		rig_step(r);
	}
	/* An object may be mapped elsewhere by the time the read ends: its waiters are parked, not dropped. */
	cr_assert(eq(uint, r->p->service[0]->nparked, 1));
	for (unsigned i = 0; i < 10000; i++)
		rig_step(r);
	cr_assert(sim_waiting(r->pm, 1) && sim_waiting(r->pm, 2));
	sim_disk_release(r->disk, SWAP_READ);
	rig_settle(r);
	for (unsigned t = 1; t <= 2; t++)
		cr_assert(eq(int, sim_touch(r->pm, t, va, false, &w, 0, 8), SIM_OK));
	cr_assert(eq(u64, w, word_of(100, 0)));
	cr_assert(zero(u64, rig_stats(r).fault_sigbus));
	up_object_unref(o);
	over();
}

/*
 * While the region goes away
 */

struct unmapper {
	uintptr_t touch; /* by thread 2, in the middle of it */
	unsigned calls;
};

/* Instead of sleeping: the unmapping thread waits for a page that is being read. */
static void
touch_meanwhile(void *ctx)
{
	struct unmapper *u = ctx;
	uint64_t w;

	cr_assert(eq(int, sim_touch(r->pm, 2, u->touch, false, &w, 0, 8), SIM_FAULT));
	if (++u->calls == 5)
		sim_disk_release(r->disk, SWAP_READ);
	rig_step(r);
}

Test(fault, a_touch_during_unmap_is_a_stray_and_ends_in_sigsegv)
{
	struct unmapper u = { 0 };
	uint64_t w = 0;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(4, 4, 100);
	swap_out();
	sim_disk_hold(r->disk, SWAP_READ);
	cr_assert(eq(int, sim_touch(r->pm, 1, va, false, &w, 0, 8), SIM_FAULT));
	rig_step(r);
	seen();
	u.touch = PAGE(3);
	r->p->idle = touch_meanwhile;
	r->p->idle_ctx = &u;
	unmap(va, 4);
	r->p->idle = r->backend.idle;
	r->p->idle_ctx = r;
	cr_assert(ge(uint, u.calls, 5), "unmap did not wait for the read");
	rig_settle(r);
	/* It was told to look again until the addresses were gone; nothing was filled in meanwhile. */
	cr_assert(ge(u64, rig_stats(r).fault_strays, 1));
	scene_seen.fault_strays = rig_stats(r).fault_strays;
	expect(MAJOR(1));
	cr_assert(not(sim_waiting(r->pm, 1) || sim_waiting(r->pm, 2)));
	cr_assert(eq(int, sim_touch(r->pm, 1, va, false, &w, 0, 8), SIM_SIGSEGV));
	cr_assert(eq(int, sim_touch(r->pm, 2, PAGE(3), false, &w, 0, 8), SIM_SIGSEGV));
	cr_assert(zero(u64, rig_stats(r).resident + rig_stats(r).swapped));
	cr_assert(zero(sz, r->p->swap.nused));
	over();
}

Test(fault, unmapping_what_is_being_written_leaves_it_to_the_write)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(8, 8, 100);
	launder();
	seen();
	unmap(va, 8);
	cr_assert(eq(sz, r->p->pages.count[PAGE_LAUNDRY], 8));
	cr_assert(zero(sz, zone_count(&r->p->zones.anon)));
	sim_disk_release(r->disk, SWAP_WRITE);
	rig_settle(r);
	expect(.limit = 0); /* orphans do not count as paged out */
	cr_assert(zero(sz, r->p->pages.count[PAGE_LAUNDRY]));
	cr_assert(zero(sz, r->p->swap.nused));
	cr_assert(eq(sz, frames_nfree(&r->p->frames), 8));
	over();
}

/*
 * Overcommitted
 */

static uintptr_t
map_noreserve(size_t npages)
{
	void *p;

	cr_assert(zero(int, up_map(r->rt, NULL, npages * PAGE_SIZE, PROT_READ | PROT_WRITE,
				   UP_PRIVATE | UP_NORESERVE, NULL, 0, &p)));
	advise((uintptr_t)p, npages, UP_ADVICE_RANDOM);
	return (uintptr_t)p;
}

Test(fault, a_page_for_which_there_is_no_swap_is_sigbus)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .swap_slots = 64 });
	va = map_noreserve(200);
	cr_assert(zero(u64, rig_stats(r).reserve_used));
	put_pages(va, 64, 100);
	expect(ZEROS(64));
	cr_assert(eq(u64, rig_stats(r).reserve_used, 64 * PAGE_SIZE));
	expect_sigbus(PAGE(64));
	expect(.fault_sigbus = 1);
	cr_assert(rig_logged(r, "overcommitted, and the swap is full"));
	check_pages(va, 64, 100);

	/* Room for two: the one that failed is still marked, a new one is not. */
	advise(va, 3, UP_ADVICE_DONTNEED);
	put_page(PAGE(65), 165);
	expect_sigbus(PAGE(64));
	advise(PAGE(64), 1, UP_ADVICE_DONTNEED);
	put_page(PAGE(64), 164);
	check_pages(PAGE(3), 63, 103);
	unmap(va, 200);
	cr_assert(zero(u64, rig_stats(r).reserve_used));
	over();
}

Test(fault, an_overcommitted_page_that_is_lost_gives_its_promise_back)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .swap_slots = 64 });
	va = map_noreserve(10);
	put_pages(va, 4, 100);
	swap_out();
	cr_assert(eq(u64, rig_stats(r).reserve_used, 4 * PAGE_SIZE));
	sim_disk_bad(r->disk, slot_of(PAGE(1)), SWAP_READ, true);
	expect_sigbus(PAGE(1));
	cr_assert(eq(u64, rig_stats(r).reserve_used, 3 * PAGE_SIZE));
	cr_assert(eq(u64, rig_stats(r).reserve_max, 63 * PAGE_SIZE));
	advise(PAGE(1), 1, UP_ADVICE_DONTNEED);
	cr_assert(eq(u64, rig_stats(r).reserve_used, 3 * PAGE_SIZE));
	put_page(PAGE(1), 101);
	cr_assert(eq(u64, rig_stats(r).reserve_used, 4 * PAGE_SIZE));
	check_pages(va, 4, 100);
	unmap(va, 10);
	cr_assert(zero(u64, rig_stats(r).reserve_used));
	over();
}

Test(fault, a_run_of_zeros_promises_no_more_than_there_is)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .swap_slots = 64 });
	va = map_noreserve(200);
	advise(va, 200, UP_ADVICE_SEQUENTIAL);
	put_pages(va, 50, 100);
	expect(ZEROS(1), .zero_ahead_pages = 63);
	cr_assert(eq(u64, rig_stats(r).reserve_used, 64 * PAGE_SIZE));
	put_pages(PAGE(50), 14, 150);
	expect_sigbus(PAGE(64));
	expect(.fault_sigbus = 1);
	check_pages(va, 64, 100);
	over();
}

/*
 * Advice
 */

Test(fault, advice_says_how_far_to_run_ahead)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = rig_map(r, 200 * PAGE_SIZE);
	advise(va, 64, UP_ADVICE_SEQUENTIAL);
	advise(PAGE(64), 64, UP_ADVICE_RANDOM);
	for (unsigned i = 0; i < 64; i++)
		check_zeros(PAGE(i));
	expect(ZEROS(1), .zero_ahead_pages = 63);
	for (unsigned i = 64; i < 128; i++)
		check_zeros(PAGE(i));
	expect(ZEROS(64));
	advise(PAGE(64), 64, UP_ADVICE_DONTNEED);
	advise(PAGE(64), 64, UP_ADVICE_NORMAL);
	for (unsigned i = 64; i < 128; i++)
		check_zeros(PAGE(i));
	/* Of one mind with the pages behind it again, it is one mapping with them. */
	expect(ZEROS(7), .zero_ahead_pages = 120);
	over();
}

Test(fault, sequential_advice_reads_a_cluster_at_once)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	va = map_written(192, 192, 100);
	swap_out();
	advise(va, 192, UP_ADVICE_SEQUENTIAL);
	seen();
	check_pages(va, 192, 100);
	expect(MAJOR(3), READ(3, 192), .readahead_pages = 189);
	over();
}

/* The table of pages is full, and to grow takes more than it has committed.  What was taken for that, to be freed. */
static size_t
fill_table(struct anon *an, struct page *taken[], size_t most)
{
	static struct leaf leaf;
	struct pages *ps = &r->p->pages;
	size_t n = 0;

	while (ps->free != PAGE_NONE ||
	       round_up((ps->table.n + 64) * ps->table.item, PAGE_SIZE) <= ps->table.committed) {
		cr_assert(lt(sz, n, most));
		taken[n] = page_alloc(ps, an, &leaf, 0, false);
		cr_assert(ne(ptr, taken[n++], NULL));
	}
	return n;
}

/* Pageout makes room for it, and the frames of a page-in have to leave that alone. */
Test(fault, a_cluster_does_not_take_the_room_that_its_table_needs)
{
	static struct page *taken[4096];
	static frame_t held[4096];
	unsigned nheld = 0;
	struct budget *b;
	size_t n, room;
	uint64_t word;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	va = map_written(192, 192, 100);
	swap_out();
	advise(va, 192, UP_ADVICE_SEQUENTIAL);
	b = &r->p->budget;
	n = fill_table(anon_at(va), taken, ARRAY_SIZE(taken));
	while (frame_take(&r->p->frames, 1, &held[nheld]) > 0)
		nheld++;
	room = b->limit - atomic_load(&b->used) - METADATA_STEP;
	cr_assert(budget_charge(b, room));
	atomic_store(&r->p->no_hurry, UINT64_MAX); /* for it does not get better */
	seen();
	cr_assert(eq(int, rig_try_touch(r, 0, va, false, &word, 0, sizeof word), SIM_FAULT));
	for (unsigned i = 0; i < 20 && rig_stats(r).swap_reads == scene_seen.swap_reads; i++)
		rig_step(r);
	cr_assert(gt(u64, rig_stats(r).swap_reads, scene_seen.swap_reads),
		  "it waits for the room that it takes itself");
	budget_uncharge(b, room);
	for (size_t i = 0; i < n; i++)
		page_free(&r->p->pages, taken[i]);
	frames_release(r->p, held, nheld);
	atomic_store(&r->p->no_hurry, 0);
	check_pages(va, 192, 100);
	over();
}

Test(fault, what_is_needed_soon_is_read_before_it_is_touched)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	va = map_written(192, 192, 100);
	swap_out();
	check_page(PAGE(100), 200);
	seen();
	advise(va, 192, UP_ADVICE_WILLNEED);
	rig_settle(r);
	/* 64, 36, then what is there is passed by, 27 to where the cluster was cut, and 64. */
	expect(READ(4, 191), .readahead_pages = 191);
	all_are(va, 192, MAPPED);
	check_pages(va, 192, 100);
	expect(.limit = 0);
	advise(va, 192, UP_ADVICE_WILLNEED);
	rig_settle(r);
	expect(.limit = 0);
	over();
}

Test(fault, what_is_needed_soon_is_read_whoever_looks_at_it_meanwhile)
{
	static const unsigned which[] = { 0, 16, 31 };
	struct anon *held[3];
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	va = map_written(32, 32, 100);
	swap_out();
	/* As up_residency() holds them, and is preempted: the first, one in the middle, the last. */
	for (unsigned i = 0; i < 3; i++) {
		held[i] = anon_at(PAGE(which[i]));
		cr_assert(anon_trybusy(held[i]));
	}
	seen();
	advise(va, 32, UP_ADVICE_WILLNEED);
	for (unsigned i = 0; i < 3; i++) {
		for (unsigned turn = 0; turn < 100; turn++)
			rig_step(r);
		cr_assert(eq(uint, r->p->service[0]->willneed.n, 1));
		page_unbusy(r->p, held[i], 0, 0);
	}
	rig_settle(r);
	cr_assert(zero(uint, r->p->service[0]->willneed.n));
	/* Pages 0 to 15, 16 to 30, and 31. */
	expect(READ(3, 32), .readahead_pages = 32);
	all_are(va, 32, MAPPED);
	check_pages(va, 32, 100);
	over();
}

Test(fault, what_is_needed_soon_and_was_never_written_costs_nothing)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_noreserve((size_t)1 << 28); /* a TiB */
	put_page(PAGE(1 << 20), 1);
	swap_out();
	seen();
	advise(va, (size_t)1 << 28, UP_ADVICE_WILLNEED);
	rig_settle(r);
	expect(READ(1, 1), .readahead_pages = 1);
	all_are(PAGE(1 << 20), 1, MAPPED);
	cr_assert(eq(sz, zone_count(&r->p->zones.leaf), 1));
	over();
}

Test(fault, advice_without_room_to_spare_is_forgotten)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(32, 32, 100);
	swap_out();
	seen();
	squeeze(CLUSTER_MAX - 32 - 1); /* and the 32 frames that the pages left */
	advise(va, 32, UP_ADVICE_WILLNEED);
	rig_settle(r);
	expect(.limit = 0);
	all_are(va, 32, SWAPPED);
	cr_assert(zero(uint, r->p->service[0]->willneed.n));
	unsqueeze();
	squeeze(CLUSTER_MAX - 32);
	advise(va, 32, UP_ADVICE_WILLNEED);
	rig_settle(r);
	expect(READ(1, 32), .readahead_pages = 32);
	over();
}

Test(fault, more_advice_than_is_remembered_is_forgotten)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(64, 64, 100);
	swap_out();
	seen();
	for (unsigned i = 0; i < CMD_MAX + 4; i++)
		advise(PAGE(2 * i), 1, UP_ADVICE_WILLNEED);
	rig_settle(r);
	expect(READ(CMD_MAX, CMD_MAX), .readahead_pages = CMD_MAX);
	over();
}

Test(fault, a_thread_that_meets_a_page_needed_soon_waits_for_that_read)
{
	uint64_t w = 0;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(8, 8, 100);
	swap_out();
	sim_disk_hold(r->disk, SWAP_READ);
	seen();
	advise(va, 8, UP_ADVICE_WILLNEED);
	rig_step(r);
	cr_assert(eq(int, sim_touch(r->pm, 1, va, false, &w, 0, 8), SIM_FAULT));
	rig_step(r);
	expect(READ(1, 8), .fault_waits = 1);
	sim_disk_release(r->disk, SWAP_READ);
	rig_settle(r);
	cr_assert(eq(int, sim_touch(r->pm, 1, va, false, &w, 0, 8), SIM_OK));
	cr_assert(eq(u64, w, word_of(100, 0)));
	expect(.readahead_pages = 8);
	over();
}

Test(fault, what_is_not_needed_any_more_is_zeros_wherever_it_is)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(25, 5, 100);
	swap_out();
	put_pages(PAGE(5), 5, 110);
	clean();
	put_pages(PAGE(10), 5, 120);
	launder();
	put_pages(PAGE(15), 5, 130);
	stage();
	put_pages(PAGE(20), 5, 140);
	all_are(va, 5, SWAPPED);
	all_are(PAGE(5), 5, CLEAN);
	all_are(PAGE(10), 5, LAUNDRY);
	all_are(PAGE(15), 5, STAGED);
	all_are(PAGE(20), 5, MAPPED);
	advise(va, 25, UP_ADVICE_DONTNEED);
	all_are(va, 25, NOWHERE);
	seen();
	sim_disk_release(r->disk, SWAP_WRITE);
	for (unsigned i = 0; i < 25; i++)
		check_zeros(PAGE(i));
	rig_settle(r);
	expect(ZEROS(25));
	cr_assert(zero(sz, r->p->swap.nused));
	cr_assert(eq(u64, rig_stats(r).reserve_used, 25 * PAGE_SIZE), "still promised");
	over();
}

/*
 * Residency
 */

Test(fault, residency_says_where_a_page_is)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(2);
	cr_assert(zero(uint, residency(va)));
	put_page(va, 1);
	cr_assert(eq(uint, residency(va), UP_PAGE_MAPPED));
	stage();
	cr_assert(eq(uint, residency(va), UP_PAGE_STAGED));
	launder();
	all_are(va, 1, LAUNDRY);
	cr_assert(eq(uint, residency(va), UP_PAGE_STAGED));
	sim_disk_release(r->disk, SWAP_WRITE);
	rig_settle(r);
	all_are(va, 1, CLEAN);
	cr_assert(eq(uint, residency(va), UP_PAGE_STAGED | UP_PAGE_SWAPPED));
	swap_out();
	cr_assert(eq(uint, residency(va), UP_PAGE_SWAPPED));
	check_page(va, 1);
	cr_assert(eq(uint, residency(va), UP_PAGE_MAPPED | UP_PAGE_SWAPPED));
	swap_out();
	sim_disk_corrupt(r->disk, slot_of(va), SIM_FLIP);
	expect_sigbus(va);
	cr_assert(eq(uint, residency(va), UP_PAGE_LOST));
	advise(va, 1, UP_ADVICE_DONTNEED);
	cr_assert(zero(uint, residency(va)));
	cr_assert(zero(uint, residency(PAGE(1))), "the neighbour was never there");
	over();
}

Test(fault, residency_of_a_range_is_a_byte_a_page_and_touches_nothing)
{
	static unsigned char vec[700];
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	va = map_random(2000);
	for (unsigned i = 0; i < 700; i += 7)
		put_page(PAGE(400 + i), i);
	seen();
	memset(vec, 0xff, sizeof vec);
	cr_assert(zero(int, up_residency(r->rt, (void *)PAGE(400), 700 * PAGE_SIZE, vec)));
	for (unsigned i = 0; i < 700; i++)
		cr_assert(eq(int, vec[i], i % 7 == 0 ? UP_PAGE_MAPPED : 0), "page %u", i);
	expect(.limit = 0);
	over();
}

/*
 * Objects
 */

static uintptr_t
map_object(struct up_object *o, size_t npages)
{
	void *p;

	cr_assert(zero(int, up_map(r->rt, NULL, npages * PAGE_SIZE, PROT_READ | PROT_WRITE,
				   UP_SHARED, o, 0, &p)));
	advise((uintptr_t)p, npages, UP_ADVICE_RANDOM);
	return (uintptr_t)p;
}

Test(fault, an_object_keeps_its_pages_from_one_mapping_to_the_next)
{
	for (unsigned mode = 0; mode < 2; mode++) {
		struct up_object *o;
		uintptr_t va;

		scene((struct rig_config){ .seed = 1, .mask = mode ? UP_MASK_MOVE : 0 });
		cr_assert(zero(int, up_object_create_anon(r->rt, 8 * PAGE_SIZE, 0, &o)));
		va = map_object(o, 8);
		put_pages(va, 8, 100);
		expect(ZEROS(8));

		unmap(va, 8); /* mapped until now */
		cr_assert(eq(u64, rig_stats(r).staged, 8 * PAGE_SIZE));
		va = map_object(o, 8);
		check_pages(va, 8, 100);
		expect(SOFT(8));

		stage();
		unmap(va, 8); /* staged */
		va = map_object(o, 8);
		all_are(va, 8, STAGED);
		check_pages(va, 8, 100);
		expect(SOFT(8), .pages_staged = 8);

		launder();
		unmap(va, 8); /* being written */
		va = map_object(o, 8);
		all_are(va, 8, LAUNDRY);
		check_pages(va, 4, 100);
		sim_disk_release(r->disk, SWAP_WRITE);
		rig_settle(r);
		check_pages(va, 8, 100);
		expect(SOFT(8), .rescues = 4, .pages_staged = 8, WROTE(1, 8));

		swap_out();
		expect(.pages_staged = 8, .pages_out = 8, .clean_skips = 4, WROTE(1, 4));
		unmap(va, 8); /* in swap */
		va = map_object(o, 8);
		all_are(va, 8, SWAPPED);
		check_pages(va, 8, 100);
		expect(MAJOR(8), READ(8, 8));

		unmap(va, 8);
		up_object_unref(o);
		cr_assert(zero(sz, zone_count(&r->p->zones.anon)));
		cr_assert(zero(sz, r->p->swap.nused));
		cr_assert(zero(u64, rig_stats(r).reserve_used));
		over();
	}
}

Test(fault, an_unmapped_object_is_paged_out_like_any_other)
{
	struct up_object *o;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	cr_assert(zero(int, up_object_create_anon(r->rt, 8 * PAGE_SIZE, 0, &o)));
	va = map_object(o, 8);
	put_pages(va, 8, 100);
	unmap(va, 8);
	seen();
	swap_out();
	expect(.pages_out = 8, WROTE(1, 8));
	va = map_object(o, 8);
	check_pages(va, 8, 100);
	expect(MAJOR(8), READ(8, 8));
	up_object_unref(o);
	over();
}

Test(fault, halves_of_an_object_in_two_regions_of_two_services)
{
	struct up_object *o;
	uintptr_t lower, upper;
	void *p;

	scene((struct rig_config){ .seed = 1, .services = 2, .memory = 4 << 20 });
	cr_assert(zero(int, up_object_create_anon(r->rt, 16 * PAGE_SIZE, 0, &o)));
	lower = map_object(o, 8);
	cr_assert(zero(int, up_map(r->rt, NULL, 8 * PAGE_SIZE, PROT_READ | PROT_WRITE, UP_SHARED, o,
				   8 * PAGE_SIZE, &p)));
	upper = (uintptr_t)p;
	cr_assert(ne(uint, map_lookup(&r->p->map, lower)->shard,
		     map_lookup(&r->p->map, upper)->shard));
	put_pages(lower, 8, 100);
	put_pages(upper, 8, 108);
	swap_out();
	check_pages(upper, 8, 108);
	unmap(lower, 8);
	unmap(upper, 8);
	lower = map_object(o, 16);
	check_pages(lower, 16, 100);
	up_object_unref(o);
	over();
}

Test(fault, a_pinned_page_of_an_object_keeps_its_bytes_when_unmapped)
{
	struct up_object *o;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	cr_assert(zero(int, up_object_create_anon(r->rt, 8 * PAGE_SIZE, 0, &o)));
	va = map_object(o, 8);
	put_pages(va, 8, 100);
	sim_pin(r->pm, PAGE(3));
	unmap(va, 8);
	va = map_object(o, 8);
	check_pages(va, 8, 100);
	up_object_unref(o);
	over();
}

/*
 * Write-protected for an instant: wp
 */

static uintptr_t copy_va;

/* A thread writes to a page while it is copied. */
static void
write_during_copy(void *ctx, uintptr_t va, size_t n)
{
	uint64_t w = 4711;

	(void)ctx;
	if (copy_va < va || copy_va >= va + n * PAGE_SIZE || sim_waiting(r->pm, 5))
		return;
	cr_assert(eq(int, sim_touch(r->pm, 5, copy_va, true, &w, 0, 8), SIM_FAULT));
}

Test(fault, a_write_stopped_by_a_copy_is_not_lost)
{
	uint64_t w = 4711;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .mask = UP_MASK_MOVE });
	va = map_written(8, 8, 100);
	copy_va = PAGE(3);
	sim_on_copy(r->pm, write_during_copy, NULL);
	seen();
	stage();
	sim_on_copy(r->pm, NULL, NULL);
	rig_settle(r);
	expect(.pages_staged = 8, WP(1));
	all_are(PAGE(3), 1, MAPPED);
	cr_assert(eq(int, sim_touch(r->pm, 5, PAGE(3), true, &w, 0, 8), SIM_OK));
	cr_assert(eq(u64, rig_get(r, PAGE(3)), 4711));
	for (unsigned i = 0; i < 8; i++) {
		if (i != 3)
			check_page(PAGE(i), 100 + i);
	}
	over();
}

Test(fault, a_write_fault_on_a_page_that_is_back_only_wakes)
{
	uint64_t w = 4711;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .mask = UP_MASK_MOVE });
	va = map_written(8, 8, 100);
	copy_va = PAGE(3);
	sim_on_copy(r->pm, write_during_copy, NULL);
	sim_messages(r->pm, 1000, 0, 0); /* the second copy finds it in place */
	seen();
	stage();
	sim_on_copy(r->pm, NULL, NULL);
	rig_settle(r);
	expect(.pages_staged = 8, WP(2));
	cr_assert(eq(int, sim_touch(r->pm, 5, PAGE(3), true, &w, 0, 8), SIM_OK));
	over();
}
