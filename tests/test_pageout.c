/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_pageout.c: which pages leave memory, in which order, at which price; and that the limit holds.
 *
 * Over the simulated kernel and disk, one step at a time; see scene.h.
 */
#include <errno.h>
#include <stdlib.h>

#include "scene.h"

TestSuite(pageout, .timeout = 120);

#define PAGE(i) (va + (size_t)(i)*PAGE_SIZE)

/* The sum over a range, for pages that may be anywhere. */
static size_t
how_many(uintptr_t va, size_t n, enum where want)
{
	size_t found = 0;

	for (size_t i = 0; i < n; i++)
		found += where(PAGE(i)) == want;
	return found;
}

/* As pageout.c has them. */
static size_t
high_watermark(void)
{
	const size_t frames = (r->p->budget.limit - arena_bytes(&r->p->arena)) >> PAGE_SHIFT;

	return MIN(MAX(frames / 16, 32), 2048);
}

static void
expect_levels(size_t resident, size_t staged, size_t swapped)
{
	const struct up_stats st = rig_stats(r);

	cr_assert(eq(u64, st.resident, resident * PAGE_SIZE));
	cr_assert(eq(u64, st.staged, staged * PAGE_SIZE));
	cr_assert(eq(u64, st.swapped, swapped * PAGE_SIZE));
}

/*
 * Order
 */

Test(pageout, takes_the_oldest_first)
{
	static const unsigned order[] = { 2, 0, 1 };
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	va = map_random(192);
	for (unsigned b = 0; b < 3; b++) {
		for (unsigned i = 0; i < 64; i++) /* within a cluster, any order */
			put_page(PAGE(order[b] * 64 + i * 37 % 64), i);
	}
	seen();
	for (unsigned b = 0; b < 3; b++) {
		sim_disk_hold(r->disk, SWAP_WRITE);
		stage();
		expect_at(__LINE__,
			  &(struct up_stats){ .pages_staged = 64,
					      .swap_writes = b == 2,
					      .swap_write_bytes = b == 2 ? 64 * PAGE_SIZE : 0 });
		for (unsigned i = 0; i < 3; i++)
			cr_assert(
				eq(sz, how_many(PAGE(order[i] * 64), 64, MAPPED), i <= b ? 0 : 64));
	}
	/* The first to be staged was the first to be written. */
	all_are(PAGE(2 * 64), 64, LAUNDRY);
	all_are(PAGE(0), 128, STAGED);
	over();
}

/* How many chances there are is the policy's business: here the plainest, which has one. */
Test(pageout, a_touch_while_staged_is_a_second_chance)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20, .policy = POLICY_SFIFO });
	va = map_written(192, 192, 100);
	stage();
	all_are(va, 64, STAGED);
	check_page(PAGE(5), 105); /* to the tail: behind the other 128 */
	seen();
	stage();
	all_are(PAGE(64), 64, STAGED);
	all_are(PAGE(5), 1, MAPPED);
	sim_disk_hold(r->disk, SWAP_WRITE);
	stage();
	cr_assert(zero(sz, how_many(PAGE(128), 64, MAPPED)));
	all_are(PAGE(5), 1, MAPPED);
	sim_disk_release(r->disk, SWAP_WRITE);
	swap_out();
	all_are(PAGE(5), 1, SWAPPED); /* a second chance, not a third */
	over();
}

Test(pageout, a_soft_fault_saves_a_page_from_the_disk)
{
	enum { HOT = 40, COLD = 8000 };
	uintptr_t hot, va;

	scene((struct rig_config){ .seed = 1, .memory = 8 << 20 });
	hot = map_random(HOT);
	va = map_random(COLD);
	put_pages(hot, HOT, 5000);
	for (unsigned i = 0; i < COLD; i++) {
		put_page(PAGE(i), i);
		check_page(hot + i % HOT * PAGE_SIZE, 5000 + i % HOT);
	}
	rig_settle(r);
	cr_assert(gt(u64, rig_stats(r).faults[UP_FAULT_SOFT], 0));
	cr_assert(zero(u64, rig_stats(r).swap_reads), "what is used stays in memory");
	cr_assert(ge(u64, rig_stats(r).pages_out, COLD - 2048));
	over();
}

Test(pageout, cold_pages_go_before_others)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	va = map_written(192, 192, 100);
	advise(PAGE(150), 10, UP_ADVICE_COLD);
	seen();
	stage();
	expect(.pages_staged = 64);
	all_are(PAGE(150), 10, STAGED);
	all_are(va, 54, STAGED);
	all_are(PAGE(54), 96, MAPPED);
	all_are(PAGE(160), 32, MAPPED);
	advise(PAGE(40), 20, UP_ADVICE_COLD); /* some are out already: nothing is to be done */
	advise(PAGE(180), 1, UP_ADVICE_COLD);
	stage();
	all_are(PAGE(54), 6, STAGED);
	all_are(PAGE(180), 1, STAGED);
	check_pages(va, 192, 100);
	over();
}

Test(pageout, scattered_pages_leave_a_few_at_a_time)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(64);
	for (unsigned i = 0; i < 64; i += 2)
		put_page(PAGE(i), 100 + i);
	seen();
	stage();
	expect(.pages_staged = 8);
	for (unsigned i = 0; i < 64; i += 2)
		all_are(PAGE(i), 1, i < 16 ? STAGED : MAPPED);
	stage();
	expect(.pages_staged = 8);
	for (unsigned i = 0; i < 64; i += 2)
		all_are(PAGE(i), 1, i < 32 ? STAGED : MAPPED);
	over();
}

Test(pageout, reclaims_the_oldest_clean_pages_and_no_more_than_a_few)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	va = map_written(41, 40, 100);
	clean();
	all_are(va, 40, CLEAN);
	seen();
	press();
	serve_one(PAGE(40));
	expect(ZEROS(1), .pages_out = 16);
	all_are(va, 16, SWAPPED);
	all_are(PAGE(16), 24, CLEAN);
	cr_assert(eq(sz, frames_nfree(&r->p->frames), 15));
	relax();
	check_pages(va, 40, 100);
	over();
}

/*
 * What is not written
 */

Test(pageout, what_was_only_read_is_not_written_again)
{
	for (unsigned mode = 0; mode < 2; mode++) {
		uintptr_t va;

		scene((struct rig_config){
			.seed = 1, .mask = mode ? UP_MASK_MOVE : 0, .memory = 4 << 20 });
		va = map_written(256, 256, 100);
		seen();
		swap_out();
		expect(.pages_staged = 256, .pages_out = 256, WROTE(4, 256));
		for (unsigned round = 0; round < 3; round++) {
			check_pages(va, 256, 100);
			expect(MAJOR(256), READ(256, 256));
			swap_out();
			expect(.pages_staged = 256, .pages_out = 256, .clean_skips = 256);
			cr_assert(eq(sz, r->p->swap.nused, 256));
		}
		over();
	}
}

Test(pageout, what_was_written_with_the_same_bytes_is_not_written_again)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(64, 64, 100);
	swap_out();
	put_pages(va, 64, 100);
	seen();
	swap_out();
	expect(.pages_staged = 64, .pages_out = 64, .clean_skips = 64);
	over();
}

Test(pageout, pages_of_zeros_cost_nothing)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(64);
	for (unsigned i = 0; i < 32; i++)
		check_zeros(PAGE(i));
	for (unsigned i = 32; i < 64; i++)
		rig_put(r, PAGE(i), 0);
	expect(ZEROS(64));
	swap_out();
	expect(.pages_staged = 64, .pages_out = 64, .zero_skips = 64);
	all_are(va, 64, NOWHERE);
	cr_assert(zero(sz, zone_count(&r->p->zones.anon)));
	expect_levels(0, 0, 0);
	for (unsigned i = 0; i < 64; i++)
		check_zeros(PAGE(i));
	expect(ZEROS(64));
	over();
}

Test(pageout, a_page_that_becomes_zeros_frees_its_slot)
{
	static const uint64_t zeros[PAGE_SIZE / 8];
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(64, 64, 100);
	swap_out();
	for (unsigned i = 0; i < 64; i += 2) {
		uint64_t w[ARRAY_SIZE(zeros)];

		memcpy(w, zeros, sizeof w);
		cr_assert(eq(int, rig_touch(r, 0, PAGE(i), true, w, 0, sizeof w), SIM_OK));
	}
	seen();
	swap_out();
	expect(.pages_staged = 32, .pages_out = 32, .zero_skips = 32);
	cr_assert(eq(sz, r->p->swap.nused, 32));
	for (unsigned i = 0; i < 64; i++) {
		if (i % 2 == 0)
			check_zeros(PAGE(i));
		else
			check_page(PAGE(i), 100 + i);
	}
	over();
}

Test(pageout, one_bit_in_a_page_is_not_zeros)
{
	unsigned char bit = 1;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(1);
	cr_assert(eq(int, rig_touch(r, 0, va, true, &bit, PAGE_SIZE - 1, 1), SIM_OK));
	seen();
	swap_out();
	expect(.pages_staged = 1, .pages_out = 1, WROTE(1, 1));
	bit = 0;
	cr_assert(eq(int, rig_touch(r, 0, va, false, &bit, PAGE_SIZE - 1, 1), SIM_OK));
	cr_assert(eq(int, bit, 1));
	over();
}

Test(pageout, a_changed_page_goes_to_another_slot_and_frees_the_old)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(64, 64, 100);
	swap_out();
	for (unsigned round = 1; round < 6; round++) {
		put_pages(va, 64, 1000 * round);
		cr_assert(eq(sz, r->p->swap.nused, 64));
		seen();
		swap_out();
		expect(.pages_staged = 64, .pages_out = 64, WROTE(1, 64));
		cr_assert(eq(sz, r->p->swap.nused, 64));
		swap_area_check(&r->p->swap);
	}
	check_pages(va, 64, 5000);
	over();
}

Test(pageout, of_a_mix_only_what_changed_is_written)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(64, 64, 100);
	swap_out();
	check_pages(va, 64, 100);
	put_pages(PAGE(10), 7, 210);
	seen();
	swap_out();
	expect(.pages_staged = 64, .pages_out = 64, .clean_skips = 57, WROTE(1, 7));
	check_pages(va, 10, 100);
	check_pages(PAGE(10), 7, 210);
	check_pages(PAGE(17), 47, 117);
	over();
}

/*
 * Clusters
 */

Test(pageout, a_sequential_fill_is_written_in_whole_clusters)
{
	enum { N = 4096 };
	struct sim_disk_stats disk;
	struct up_stats st;
	unsigned breaks = 0;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = rig_map(r, N * PAGE_SIZE);
	put_pages(va, N, 1);
	rig_settle(r);
	st = rig_stats(r);
	cr_assert(ge(u64, st.swap_write_bytes, (N - 448) * PAGE_SIZE));
	cr_assert(eq(u64, st.swap_writes, st.swap_write_bytes / PAGE_SIZE / CLUSTER_MAX));
	swap_out();
	st = rig_stats(r);
	sim_disk_stats(r->disk, &disk);
	cr_assert(eq(u64, st.swap_write_bytes, N * PAGE_SIZE), "each page once");
	cr_assert(eq(u64, st.swap_writes, N / CLUSTER_MAX));
	cr_assert(eq(u64, disk.writes, N / CLUSTER_MAX));
	cr_assert(eq(u64, disk.written_pages, N));
	for (unsigned i = 1; i < N; i++)
		breaks += slot_of(PAGE(i)) != slot_of(PAGE(i - 1)) + 1;
	cr_assert(lt(uint, breaks, N / CLUSTER_MAX), "neighbours lie side by side");
	check_pages(va, N, 1);
	over();
}

Test(pageout, what_is_being_written_counts_as_room_to_come)
{
	size_t laundering;

	scene((struct rig_config){ .seed = 1, .memory = 8 << 20 });
	map_written(1024, 1024, 1);
	sim_disk_hold(r->disk, SWAP_WRITE);
	press();
	for (unsigned i = 0; i < 200; i++)
		rig_step(r);
	laundering = r->p->laundering;
	cr_assert(ge(sz, laundering, high_watermark()));
	cr_assert(lt(sz, laundering, high_watermark() + CLUSTER_MAX));
	cr_assert(eq(uint, r->p->service[0]->io->inflight, laundering / CLUSTER_MAX),
		  "several at once");
	seen();
	for (unsigned i = 0; i < 50; i++)
		rig_step(r);
	expect(.limit = 0);
	relax();
	over();
}

static unsigned turns, turns_held;

/* The disk stands still for so many turns of who waits. */
static void
stand_still(void *ctx)
{
	if (++turns == turns_held)
		sim_disk_release(r->disk, SWAP_WRITE);
	rig_step(ctx);
}

Test(pageout, who_waits_for_metadata_waits_for_a_disk_that_stands_still)
{
	const size_t more = (size_t)32 * PAGE_SIZE;
	size_t bytes;

	/* More than is tried if nothing is under way; and for ever, so that it is given up. */
	for (unsigned round = 0; round < 2; round++) {
		scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
		map_written(256, 256, 1);
		sim_disk_hold(r->disk, SWAP_WRITE);
		press();
		for (unsigned i = 0; i < 200; i++)
			rig_step(r);
		cr_assert(ge(sz, r->p->laundering, 32));
		cr_assert(zero(sz, frames_nfree(&r->p->frames)));
		turns = 0;
		turns_held = round == 0 ? 5000 : 1000000;
		r->p->idle = stand_still;
		bytes = r->p->budget.limit - r->p->budget.used + more;
		cr_assert(eq(int, runtime_reclaim(r->p, bytes), round == 0 ? 0 : -ENOMEM));
		cr_assert(ge(uint, turns, 5000));
		sim_disk_release(r->disk, SWAP_WRITE);
		relax();
		over();
	}
}

/*
 * Disks that refuse
 */

Test(pageout, a_write_error_loses_nothing)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(64, 64, 100);
	seen();
	sim_fail_nth(&r->f, 1, SIM_BIT(SIM_WRITE), -EIO);
	swap_out();
	cr_assert(sim_fail_disarm(&r->f));
	/* The cluster, then each page on its own: this time all of them go. */
	expect(.pages_staged = 64, .pages_out = 64, .swap_writes = 1 + 64,
	       .swap_write_bytes = 128 * PAGE_SIZE, .swap_write_errors = 1);
	cr_assert(eq(sz, r->p->swap.nused, 64));
	cr_assert(rig_logged(r, "kept in memory"));
	check_pages(va, 64, 100);
	over();
}

Test(pageout, after_a_write_error_clusters_are_whole_again)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(64, 64, 100);
	sim_fail_nth(&r->f, 1, SIM_BIT(SIM_WRITE), -EIO);
	swap_out();
	put_pages(va, 64, 200);
	seen();
	swap_out();
	expect(.pages_staged = 64, .pages_out = 64, WROTE(1, 64));
	over();
}

Test(pageout, a_bad_slot_is_found_and_never_used_again)
{
	slot_t bad;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .swap_slots = 128 });
	va = map_written(64, 64, 100);
	swap_out();
	bad = slot_of(PAGE(10));
	put_pages(va, 64, 200);
	swap_out(); /* now in the other half */
	put_pages(va, 64, 300);
	sim_disk_bad(r->disk, bad, SWAP_WRITE, true);
	seen();
	swap_out();
	cr_assert(eq(u64, rig_stats(r).swap_write_errors - scene_seen.swap_write_errors, 2),
		  "once for the cluster, once for the slot");
	cr_assert(eq(u64, rig_stats(r).bad_slots, 1));
	cr_assert(eq(sz, r->p->swap.nbad, 1));
	all_are(va, 64, SWAPPED);
	for (unsigned round = 4; round < 12; round++) {
		put_pages(va, 64, 100 * round);
		seen();
		swap_out();
		cr_assert(eq(u64, rig_stats(r).swap_write_errors, scene_seen.swap_write_errors));
		for (unsigned i = 0; i < 64; i++)
			cr_assert(ne(u32, slot_of(PAGE(i)), bad));
	}
	check_pages(va, 64, 1100);
	over();
}

Test(pageout, when_bad_slots_leave_too_few_the_last_page_stays_in_memory)
{
	uintptr_t va;
	void *p;

	scene((struct rig_config){ .seed = 1, .swap_slots = 64 });
	va = map_written(64, 64, 100);
	sim_disk_bad(r->disk, 5, SWAP_WRITE, true);
	swap_out();
	cr_assert(eq(sz, how_many(va, 64, SWAPPED), 63));
	cr_assert(eq(sz, how_many(va, 64, STAGED), 1));
	cr_assert(eq(u64, rig_stats(r).reserve_max, 63 * PAGE_SIZE));
	cr_assert(eq(u64, rig_stats(r).reserve_used, 64 * PAGE_SIZE));
	cr_assert(zero(u64, rig_stats(r).reserve_free));
	cr_assert(eq(int, up_map(r->rt, NULL, PAGE_SIZE, PROT_READ, UP_PRIVATE, NULL, 0, &p),
		     -ENOSPC));

	/* Whatever slot becomes free is for it. */
	for (unsigned i = 0; i < 64; i++) {
		if (where(PAGE(i)) == SWAPPED) {
			advise(PAGE(i), 1, UP_ADVICE_DONTNEED);
			break;
		}
	}
	swap_out();
	cr_assert(eq(sz, how_many(va, 64, SWAPPED), 63));
	cr_assert(eq(sz, how_many(va, 64, NOWHERE), 1));
	for (unsigned i = 0; i < 64; i++) {
		if (where(PAGE(i)) != NOWHERE)
			check_page(PAGE(i), 100 + i);
	}
	over();
}

Test(pageout, a_full_disk_is_asked_less_and_less_often_and_heals)
{
	uint64_t backoff, last = 0;
	unsigned doublings = 0;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .honest_backoff = true });
	va = map_written(16, 16, 100);
	sim_fail_rate(&r->f, SIM_WRITE, -ENOSPC, 1000);
	press();
	for (unsigned i = 0; i < RIG_PATIENCE && doublings < 4; i++) {
		const uint64_t writes = rig_stats(r).swap_writes;
		const bool early = now_ns() + 1000 * 1000 < atomic_load(&r->p->write_again);

		rig_step(r);
		/* A step is a few looks at the clock, far less than a millisecond. */
		if (early)
			cr_assert(eq(u64, rig_stats(r).swap_writes, writes),
				  "asked during the pause");
		backoff = atomic_load(&r->p->write_backoff);
		if (last != 0 && backoff > last)
			doublings++;
		last = MAX(last, backoff);
	}
	cr_assert(eq(uint, doublings, 4), "the pause does not grow");
	cr_assert(ge(u64, last, 16 * 1000 * 1000));
	cr_assert(eq(sz, how_many(va, 16, STAGED) + how_many(va, 16, LAUNDRY), 16));
	cr_assert(zero(u64, rig_stats(r).bad_slots), "a full disk is not a bad one");
	cr_assert(gt(u64, rig_stats(r).swap_write_errors, 0));

	sim_fail_rate(&r->f, SIM_WRITE, -ENOSPC, 0);
	for (unsigned i = 0; i < RIG_PATIENCE && how_many(va, 16, CLEAN) < 16; i++)
		rig_step(r);
	all_are(va, 16, CLEAN);
	cr_assert(zero(u64, atomic_load(&r->p->write_backoff)));
	cr_assert(eq(sz, r->p->swap.nused, 16));
	relax();
	check_pages(va, 16, 100);
	over();
}

Test(pageout, a_disk_that_fails_now_and_then_costs_time_and_no_data)
{
	for (unsigned seed = 0; seed < 4; seed++) {
		enum { N = 1000 };
		uintptr_t va;

		scene((struct rig_config){ .seed = seed, .mask = seed & 1 ? UP_MASK_MOVE : 0 });
		va = map_random(N);
		sim_fail_rate(&r->f, SIM_WRITE, -EIO, 30);
		sim_fail_rate(&r->f, SIM_WRITE, -ENOSPC, 30);
		for (unsigned round = 0; round < 3; round++) {
			put_pages(va, N, 10000 * round);
			check_pages(va, N, 10000 * round);
		}
		cr_assert(gt(u64, rig_stats(r).swap_write_errors, 0));
		cr_assert(eq(u64, rig_stats(r).bad_slots, r->p->swap.nbad));
		cr_assert(zero(u64, rig_stats(r).fault_sigbus));
		over();
	}
}

/*
 * Pages that can not leave
 */

Test(pageout, a_pinned_page_stays_and_its_neighbours_go)
{
	for (unsigned mode = 0; mode < 2; mode++) {
		uintptr_t va;

		scene((struct rig_config){ .seed = 1, .mask = mode ? UP_MASK_MOVE : 0 });
		va = map_written(16, 16, 100);
		sim_pin(r->pm, PAGE(3));
		sim_pin(r->pm, PAGE(9));
		seen();
		stage();
		expect(.pages_staged = 14, .pages_pinned = 2);
		all_are(va, 3, STAGED);
		all_are(PAGE(3), 1, MAPPED);
		all_are(PAGE(4), 5, STAGED);
		all_are(PAGE(9), 1, MAPPED);
		all_are(PAGE(10), 6, STAGED);
		sim_unpin(r->pm, PAGE(3));
		stage();
		expect(.pages_staged = 1, .pages_pinned = 1);
		all_are(PAGE(3), 1, STAGED);
		all_are(PAGE(9), 1, MAPPED);
		check_pages(va, 16, 100);
		over();
	}
}

Test(pageout, memory_full_of_pinned_pages_still_serves)
{
	enum { PINNED = 300, N = 2000 };
	uintptr_t pinned, va;

	scene((struct rig_config){ .seed = 1 });
	pinned = map_random(PINNED);
	va = map_random(N);
	put_pages(pinned, PINNED, 5000);
	for (unsigned i = 0; i < PINNED; i++)
		sim_pin(r->pm, pinned + i * PAGE_SIZE);
	put_pages(va, N, 1);
	check_pages(va, N, 1);
	all_are(pinned, PINNED, MAPPED);
	cr_assert(gt(u64, rig_stats(r).pages_pinned, 0));
	cr_assert(zero(u64, rig_stats(r).fault_sigbus));
	check_pages(pinned, PINNED, 5000);
	over();
}

Test(pageout, a_page_that_the_kernel_keeps_for_now_is_tried_again)
{
	static const int errors[] = { -EAGAIN, -ENOMEM, -EBUSY };

	for (unsigned i = 0; i < ARRAY_SIZE(errors); i++) {
		uintptr_t va;

		scene((struct rig_config){ .seed = i });
		va = map_written(16, 16, 100);
		seen();
		sim_fail_nth(&r->f, 1, SIM_BIT(SIM_REMOVE), errors[i]);
		stage();
		cr_assert(sim_fail_disarm(&r->f));
		/* The page at which the run broke stays, the rest goes in a second call. */
		expect(.pages_staged = 15, .pages_pinned = errors[i] == -EBUSY);
		cr_assert(eq(sz, how_many(va, 16, MAPPED), 1));
		stage();
		cr_assert(zero(sz, how_many(va, 16, MAPPED)));
		check_pages(va, 16, 100);
		over();
	}
}

Test(pageout, a_page_discarded_behind_our_back_is_found_when_it_should_leave)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(16, 16, 100);
	swap_out();
	check_pages(va, 16, 100);
	sim_discard_behind(r->pm, PAGE(4), 2);
	seen();
	swap_out();
	expect(.pages_staged = 14, .pages_out = 14, .clean_skips = 14, .foreign_discards = 2);
	all_are(PAGE(4), 2, NOWHERE);
	cr_assert(eq(sz, r->p->swap.nused, 14));
	check_zeros(PAGE(4));
	check_pages(va, 4, 100);
	check_pages(PAGE(6), 10, 106);
	over();
}

/*
 * Lent pages: read alone, entered by copy, and guarded until somebody writes
 */

/* Swapped out, and each read alone.  => mapped and guarded, with content `number` and on */
static uintptr_t
lent(size_t n, uint64_t number)
{
	const uintptr_t va = map_random(n);

	put_pages(va, n, number);
	swap_out();
	check_pages(va, n, number);
	all_are(va, n, MAPPED);
	for (size_t i = 0; i < n; i++)
		cr_assert(eq(int, page_of(PAGE(i))->same, true));
	seen();
	return va;
}

/* As stage(), while there are frames for `n` pages. */
static void
stage_into(unsigned n)
{
	press();
	cr_assert(ge(sz, scene_nheld, n));
	scene_nheld -= n;
	frames_release(r->p, scene_held + scene_nheld, n);
	rig_step(r);
	relax();
}

Test(pageout, a_page_that_was_read_alone_leaves_its_frame_and_faults_once_when_written)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = lent(4, 100);
	put_pages(PAGE(1), 2, 200);
	expect(WP(2));
	put_pages(PAGE(1), 2, 300);
	check_page(va, 100);
	expect();
	cr_assert(eq(int, page_of(PAGE(1))->same, false));
	cr_assert(eq(int, page_of(PAGE(3))->same, true));
	swap_out();
	check_page(va, 100);
	check_pages(PAGE(1), 2, 300);
	check_page(PAGE(3), 103);
	over();
}

Test(pageout, a_page_that_is_read_for_a_store_is_not_guarded)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(1);
	put_page(va, 100);
	swap_out();
	seen();
	put_page(va, 200);
	expect(MAJOR(1), READ(1, 1));
	swap_out();
	check_page(va, 200);
	over();
}

Test(pageout, guarded_pages_leave_together_and_are_known_to_be_clean)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = lent(16, 100);
	put_page(PAGE(5), 205); /* dirty: moved */
	seen();
	stage_into(15);
	expect(.pages_staged = 16);
	all_are(va, 16, STAGED);
	for (unsigned i = 0; i < 16; i++)
		cr_assert(eq(int, page_of(PAGE(i))->same, i != 5));
	/* A touch brings one back as any other: written then, it is dirty. */
	put_page(PAGE(2), 202);
	expect(SOFT(1));
	cr_assert(eq(int, page_of(PAGE(2))->same, false));
	swap_out();
	expect(.pages_staged = 1, .pages_out = 16, .clean_skips = 14, WROTE(1, 2));
	for (unsigned i = 0; i < 16; i++)
		check_page(PAGE(i), (i == 2 || i == 5 ? 200 : 100) + i);
	over();
}

Test(pageout, guarded_pages_for_which_there_are_too_few_frames_are_moved)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = lent(8, 100);
	stage_into(3);
	expect(.pages_staged = 8);
	all_are(va, 8, STAGED);
	check_pages(va, 8, 100);
	put_pages(va, 8, 200);
	swap_out();
	check_pages(va, 8, 200);
	over();
}

Test(pageout, a_guarded_page_that_can_not_leave_now_can_be_written)
{
	static const int errors[] = { -EAGAIN, -ENOMEM, -EBUSY };

	for (unsigned i = 0; i < ARRAY_SIZE(errors); i++) {
		uintptr_t va;

		scene((struct rig_config){ .seed = 1 });
		va = lent(4, 100);
		sim_fail_rate(&r->f, SIM_REMOVE, errors[i], 1000);
		stage_into(4);
		sim_fail_rate(&r->f, SIM_REMOVE, errors[i], 0);
		check_pages(va, 4, 100);
		put_pages(va, 4, 200);
		pager_check(r->p);
		swap_out();
		check_pages(va, 4, 200);
		over();
	}
}

Test(pageout, a_guarded_page_that_is_discarded_behind_our_back_is_zeros)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = lent(4, 100);
	sim_discard_behind(r->pm, PAGE(0), 3);
	check_zeros(PAGE(0));
	put_page(PAGE(1), 200);
	put_page(PAGE(0), 300);
	stage_into(4);
	swap_out();
	check_page(PAGE(0), 300);
	check_page(PAGE(1), 200);
	check_zeros(PAGE(2));
	check_page(PAGE(3), 103);
	over();
}

Test(pageout, what_can_not_be_lent_is_moved)
{
	static const int errors[] = { -EAGAIN, -ENOMEM, -EEXIST };

	for (unsigned i = 0; i < ARRAY_SIZE(errors); i++) {
		uintptr_t va;

		scene((struct rig_config){ .seed = 1 });
		va = map_written(4, 4, 100);
		swap_out();
		seen();
		sim_fail_nth(&r->f, 1, SIM_BIT(SIM_ENTER), errors[i]);
		check_page(va, 100);
		cr_assert(sim_fail_disarm(&r->f));
		expect(MAJOR(1), READ(1, 1));
		cr_assert(eq(int, page_of(va)->same, false));
		put_page(va, 200);
		expect();
		check_pages(PAGE(1), 3, 101);
		over();
	}
}

Test(pageout, a_page_that_was_asked_for_is_not_guarded)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = lent(4, 100);
	cr_assert(zero(int, up_prefault(r->rt, (void *)va, 4 * PAGE_SIZE, 0)));
	seen();
	put_pages(va, 4, 200);
	expect();
	swap_out();
	check_pages(va, 4, 200);
	over();
}

/*
 * Moving and copying kernels
 */

static struct up_stats
mixed_load(uint64_t mask)
{
	enum { N = 1500 };
	static uint64_t number[N];
	struct up_stats st;
	uintptr_t va;

	scene((struct rig_config){ .seed = 9, .mask = mask });
	va = rig_map(r, N * PAGE_SIZE);
	for (unsigned i = 0; i < N; i++)
		put_page(PAGE(i), number[i] = i);
	for (unsigned i = 0; i < N; i += 3)
		put_page(PAGE(i * 7 % N), number[i * 7 % N] = 9000 + i);
	for (unsigned i = 0; i < N; i++)
		check_page(PAGE(i), number[i]);
	swap_out();
	st = rig_stats(r);
	over();
	return st;
}

Test(pageout, copying_gives_the_same_results_as_moving)
{
	const struct up_stats a = mixed_load(0), b = mixed_load(UP_MASK_MOVE);

	cr_assert(zero(int, memcmp(&a, &b, offsetof(struct up_stats, limit))));
	cr_assert(eq(u64, a.swapped, b.swapped));
}

/*
 * The limit
 */

static size_t max_before;

/* Memory as the kernel counts it, and ours: now, and at the worst moment since the last look. */
static void
check_limit(void)
{
	const size_t meta = arena_bytes(&r->p->arena), now = sim_resident_pages(r->pm) * PAGE_SIZE;
	const size_t max = sim_resident_pages_max(r->pm) * PAGE_SIZE;

	cr_assert(le(sz, now + meta, r->cfg.memory - r->pm->headroom),
		  "at rest the headroom is not used");
	if (max > max_before)
		cr_assert(le(sz, max + meta, r->cfg.memory),
			  "the limit was exceeded for an instant");
	max_before = max;
	cr_assert(le(u64, rig_stats(r).used_max, r->cfg.memory - r->pm->headroom));
}

static void
long_run(uint64_t seed)
{
	enum { REGIONS = 3, N = 900 };
	uintptr_t va[REGIONS] = { 0 };
	uint64_t *number = calloc((size_t)REGIONS * N, sizeof *number);

	scene((struct rig_config){ .seed = seed,
				   .mask = seed & 1 ? UP_MASK_MOVE : 0,
				   .services = 1 + seed % 2,
				   .memory = (2 + seed % 3) << 20 });
	max_before = 0;
	sim_fail_rate(&r->f, SIM_ENTER, -EEXIST, 5);
	sim_fail_rate(&r->f, SIM_ZERO, -EAGAIN, 5);
	sim_fail_rate(&r->f, SIM_REMOVE, -EBUSY, 5);
	for (unsigned i = 0; i < 4000; i++) {
		const unsigned k = (unsigned)sim_below(&r->f, REGIONS);
		unsigned at = (unsigned)sim_below(&r->f, N);

		if (va[k] == 0) {
			va[k] = rig_map(r, N * PAGE_SIZE);
			memset(number + (size_t)k * N, 0, N * sizeof *number);
		} else if (sim_below(&r->f, 2000) == 0) {
			unmap(va[k], N);
			va[k] = 0;
			check_limit();
			continue;
		}
		for (unsigned n = (unsigned)sim_below(&r->f, 12); n > 0 && at < N; n--, at++) {
			uint64_t *is = &number[(size_t)k * N + at];

			if (sim_below(&r->f, 2) == 0) {
				*is = i + 1;
				put_page(va[k] + at * PAGE_SIZE, *is);
			} else if (*is != 0) {
				check_page(va[k] + at * PAGE_SIZE, *is);
			} else {
				check_zeros(va[k] + at * PAGE_SIZE);
			}
		}
		check_limit();
	}
	free(number);
	over();
}

Test(pageout, the_limit_holds_at_every_moment_of_a_long_run)
{
	for (uint64_t seed = 0; seed < 6; seed++)
		long_run(seed);
}

Test(pageout, metadata_takes_memory_from_pages_and_gives_it_back)
{
	enum { N = 16384, SMALL = 300 };
	size_t meta, grown, after, resident;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(SMALL, SMALL, 1);
	meta = arena_bytes(&r->p->arena);
	unmap(va, SMALL);
	rig_settle(r);

	va = map_random(N);
	max_before = 0;
	for (unsigned i = 0; i < N; i++) {
		put_page(PAGE(i), i);
		if (i % 64 == 0)
			check_limit();
	}
	grown = arena_bytes(&r->p->arena);
	cr_assert(ge(sz, grown, meta + N * sizeof(struct anon)), "an anon a page, at least");
	for (unsigned i = 0; i < N; i += 100)
		check_page(PAGE(i), i);
	unmap(va, N);
	rig_settle(r);

	/* Each of five zones may keep a slab; the table of pages keeps its size. */
	after = arena_bytes(&r->p->arena);
	cr_assert(le(sz, after, meta + 5 * SLAB_SIZE + r->p->pages.table.committed));
	va = map_written(SMALL, SMALL, 1);
	resident = rig_stats(r).resident / PAGE_SIZE;
	cr_assert(ge(sz, resident, SMALL - 2 * CLUSTER_MAX), "the memory is for pages again");
	check_pages(va, SMALL, 1);
	over();
}

/*
 * Watermarks
 */

Test(pageout, starts_at_the_low_watermark_and_stops_at_the_high)
{
	size_t high, i = 0;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 16 << 20 });
	va = map_random(8192);
	high = high_watermark();
	cr_assert(gt(sz, high, 2 * CLUSTER_MAX), "else there is nothing to be seen");
	while (rig_stats(r).pages_staged == 0) {
		cr_assert(ge(sz, frames_available(r->p), high_watermark() / 2));
		put_page(PAGE(i), i);
		i++;
	}
	high = high_watermark();
	rig_settle(r);
	cr_assert(not(r->p->pageout_on));
	cr_assert(ge(sz, frames_available(r->p), high));
	cr_assert(lt(sz, frames_available(r->p), high + 2 * CLUSTER_MAX));
	seen();
	for (unsigned k = 0; k < 100; k++)
		rig_step(r);
	expect(.limit = 0);

	/* Between the two it does not start. */
	squeeze(0);
	unsqueeze();
	while (frames_available(r->p) > high / 2 + 2) {
		put_page(PAGE(i), i);
		i++;
	}
	rig_settle(r);
	cr_assert(eq(u64, rig_stats(r).pages_staged, scene_seen.pages_staged));
	for (unsigned k = 0; k < 4; k++, i++)
		put_page(PAGE(i), i);
	rig_settle(r);
	cr_assert(gt(u64, rig_stats(r).pages_staged, scene_seen.pages_staged));
	cr_assert(ge(sz, frames_available(r->p), high_watermark()));
	check_pages(va, i, 0);
	over();
}

/* Each takes a call of its own, of which a batch makes few. */
Test(pageout, of_pages_that_lie_scattered_few_are_chosen_at_a_time)
{
	const unsigned n = 256;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	va = map_random((size_t)4 * n);
	for (unsigned i = 0; i < n; i++)
		put_page(PAGE(2 * i), i);
	for (unsigned i = 0; i < n; i++)
		put_page(PAGE(2 * n + i), i);
	cr_assert(eq(uint, r->p->stage_batch, CLUSTER_MAX));
	squeeze(0);
	atomic_store(&r->p->pageout_on, true);
	rig_step(r);
	cr_assert(lt(uint, r->p->stage_batch, CLUSTER_MAX / 2));
	unsqueeze();
	/* Where they lie side by side, as many as ever. */
	swap_out();
	cr_assert(eq(uint, r->p->stage_batch, CLUSTER_MAX));
	for (unsigned i = 0; i < n; i++) {
		check_page(PAGE(2 * i), i);
		check_page(PAGE(2 * n + i), i);
	}
	over();
}

Test(pageout, does_nothing_while_there_is_room)
{
	scene((struct rig_config){ .seed = 1, .memory = 8 << 20 });
	map_written(1000, 1000, 1);
	for (unsigned i = 0; i < 100; i++)
		rig_step(r);
	expect(ZEROS(1000));
	expect_levels(1000, 0, 0);
	over();
}

/* STAGE_CALLS runs, each from its end: one more, for the oldest alone, would leave a page behind. */
Test(pageout, a_run_whose_end_is_the_oldest_leaves_in_one_call)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(64);
	for (int k = 7; k >= 0; k--) {
		put_page(PAGE(8 * k + 1), 100 + 8 * (uint64_t)k + 1);
		put_page(PAGE(8 * k), 100 + 8 * (uint64_t)k);
	}
	stage();
	for (unsigned k = 0; k < 8; k++) {
		all_are(PAGE(8 * k), 2, STAGED);
		check_pages(PAGE(8 * k), 2, 100 + 8 * k);
	}
	over();
}

/*
 * What the policy is told (what it makes of that is in test_policy.c)
 */

static enum policy_queue
queue_of(uintptr_t va)
{
	const struct page *pg = page_of(va);

	cr_assert(pg != NULL, "%#lx is not in memory", (unsigned long)va);
	return (enum policy_queue)pg->node.queue;
}

Test(pageout, the_policy_hears_of_soft_faults)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .policy = POLICY_S3FIFO });
	va = map_written(8, 8, 100);
	cr_assert(eq(int, queue_of(PAGE(3)), PQ_FRESH));
	stage();
	check_page(PAGE(3), 103);
	cr_assert(eq(int, queue_of(PAGE(3)), PQ_MAIN));
	all_are(PAGE(4), 4, STAGED);
	over();
}

Test(pageout, the_policy_hears_of_rescues)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .policy = POLICY_S3FIFO });
	va = map_written(8, 8, 100);
	launder();
	check_page(PAGE(3), 103);
	cr_assert(eq(int, queue_of(PAGE(3)), PQ_MAIN));
	over();
}

Test(pageout, the_policy_hears_of_pages_that_come_back_and_of_what_left_meanwhile)
{
	enum { N = 2000 };
	uintptr_t va, others;

	scene((struct rig_config){ .seed = 1, .policy = POLICY_S3FIFO });
	va = map_written(2, 2, 100);
	swap_out();
	cr_assert(eq(u64, r->p->pages.policy.ghost.clock, 2));
	check_page(PAGE(0), 100);
	cr_assert(eq(int, queue_of(PAGE(0)), PQ_MAIN), "back at once");
	others = map_random(N);
	put_pages(others, N, 1);
	swap_out();
	cr_assert(eq(u64, r->p->pages.policy.ghost.clock, N + 3));
	check_page(PAGE(1), 101);
	cr_assert(eq(int, queue_of(PAGE(1)), PQ_FRESH), "back after long");
	over();
}

Test(pageout, pages_that_are_read_ahead_are_new_to_the_policy)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .policy = POLICY_S3FIFO });
	va = rig_map(r, 16 * PAGE_SIZE);
	advise(va, 16, UP_ADVICE_SEQUENTIAL);
	put_pages(va, 16, 100);
	swap_out();
	check_page(PAGE(0), 100);
	rig_settle(r);
	cr_assert(eq(int, queue_of(PAGE(0)), PQ_MAIN), "somebody waited for it");
	all_are(PAGE(1), 7, MAPPED);
	for (unsigned i = 1; i < 8; i++)
		cr_assert(eq(int, queue_of(PAGE(i)), PQ_FRESH));
	over();
}

Test(pageout, the_policy_hears_of_cold_pages_and_of_pinned_ones)
{
	for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
		uintptr_t va;

		scene((struct rig_config){ .seed = 1, .policy = kind });
		va = map_written(16, 16, 100);
		advise(PAGE(3), 1, UP_ADVICE_COLD);
		advise(PAGE(9), 1, UP_ADVICE_COLD);
		cr_assert(eq(int, queue_of(PAGE(3)), PQ_COLD));
		sim_pin(r->pm, PAGE(3));
		stage();
		all_are(PAGE(9), 1, STAGED);
		all_are(PAGE(3), 1, MAPPED);
		/* In use, whatever was said: others go before it is tried again. */
		cr_assert(eq(int, queue_of(PAGE(3)), PQ_MAIN));
		sim_unpin(r->pm, PAGE(3));
		check_pages(va, 16, 100);
		over();
	}
}

/* What docs/benchmarks.md has figures for; and what the tests run over unless they say otherwise. */
Test(pageout, runtimes_use_s3fifo)
{
	cr_assert(eq(int, runtime_backend()->policy, POLICY_S3FIFO));
	scene((struct rig_config){ .seed = 1 });
	cr_assert(r->p->pages.policy.ops == &policy_s3fifo);
	over();
}

/* Faults of a loop over `n` pages that has been running for a while, a touch. */
static double
loop_misses(enum policy_kind kind, size_t n)
{
	uint64_t before;
	uintptr_t va;
	double misses;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20, .policy = kind });
	va = map_written(n, n, 1);
	for (unsigned round = 0; round < 5; round++)
		check_pages(va, n, 1);
	before = rig_stats(r).faults[UP_FAULT_MAJOR];
	for (unsigned round = 0; round < 5; round++)
		check_pages(va, n, 1);
	misses = (double)(rig_stats(r).faults[UP_FAULT_MAJOR] - before) / (5 * (double)n);
	over();
	return misses;
}

Test(pageout, a_loop_that_just_does_not_fit_has_hits_with_s3fifo_and_none_with_sfifo)
{
	cr_assert(epsilon_eq(dbl, loop_misses(POLICY_SFIFO, 1050), 1, 1e-9));
	cr_assert(lt(dbl, loop_misses(POLICY_S3FIFO, 1050), 0.8));
}

/*
 * Whole scenarios, to the last count
 */

Test(pageout, a_cyclic_load_misses_every_time_and_writes_once)
{
	enum { N = 2000 };
	uintptr_t va;

	for (unsigned mode = 0; mode < 2; mode++) {
		scene((struct rig_config){ .seed = 1, .mask = mode ? UP_MASK_MOVE : 0 });
		va = map_written(N, N, 1);
		swap_out();
		expect(ZEROS(N), .pages_staged = N, .pages_out = N, .swap_writes = (N + 63) / 64,
		       .swap_write_bytes = N * PAGE_SIZE);
		expect_levels(0, 0, N);
		for (unsigned round = 0; round < 2; round++) {
			check_pages(va, N, 1);
			swap_out();
			expect(MAJOR(N), READ(N, N), .pages_staged = N, .pages_out = N,
			       .clean_skips = N);
		}
		over();
	}
}

Test(pageout, a_load_that_never_writes_keeps_nothing)
{
	enum { N = 2000 };
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(N);
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < N; i++)
			check_zeros(PAGE(i));
		swap_out();
		expect(ZEROS(N), .pages_staged = N, .pages_out = N, .zero_skips = N);
		expect_levels(0, 0, 0);
	}
	cr_assert(zero(sz, r->p->swap.nused));
	over();
}

Test(pageout, every_page_that_left_can_be_accounted_for)
{
	enum { N = 1800 };
	struct up_stats st;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(N);
	for (unsigned i = 0; i < N; i++) { /* a third zeros, the rest written */
		if (i % 3 == 0)
			check_zeros(PAGE(i));
		else
			put_page(PAGE(i), i);
	}
	rig_settle(r);
	st = rig_stats(r);
	cr_assert(eq(u64, st.faults[UP_FAULT_ZERO], N));
	cr_assert(zero(u64, st.faults[UP_FAULT_MAJOR] + st.faults[UP_FAULT_SOFT]));
	cr_assert(eq(u64, st.pages_out, st.swapped / PAGE_SIZE + st.zero_skips));
	cr_assert(eq(u64, N, (st.resident + st.staged + st.swapped) / PAGE_SIZE + st.zero_skips));
	cr_assert(eq(u64, st.pages_staged, (st.staged + st.swapped) / PAGE_SIZE + st.zero_skips));
	swap_out();
	st = rig_stats(r);
	cr_assert(eq(u64, st.zero_skips, N / 3));
	cr_assert(eq(u64, st.swapped, N / 3 * 2 * PAGE_SIZE));
	cr_assert(eq(u64, st.swap_write_bytes, N / 3 * 2 * PAGE_SIZE));
	seen();
	for (unsigned i = 0; i < N; i++) {
		if (i % 3 == 0)
			check_zeros(PAGE(i));
		else
			check_page(PAGE(i), i);
	}
	swap_out();
	expect(ZEROS(N / 3), MAJOR(N / 3 * 2), READ(N / 3 * 2, N / 3 * 2), .pages_staged = N,
	       .pages_out = N, .clean_skips = N / 3 * 2, .zero_skips = N / 3);
	over();
}

Test(pageout, a_limit_that_can_not_be_reached_in_time_stays_what_it_was)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20, .memory_most = 6 << 20 });
	va = rig_map(r, 1000 * PAGE_SIZE);
	for (size_t i = 0; i < 700; i++)
		put_page(va + i * PAGE_SIZE, i);
	sim_fail_rate(&r->f, SIM_WRITE, -EIO, 1000);
	cr_assert(eq(int, up_runtime_set_limit(r->rt, 2 << 20, 100), -ETIMEDOUT));
	cr_assert(rig_logged(r, "bytes are still in use"));
	cr_assert(eq(u64, rig_stats(r).limit, 4 << 20));
	sim_fail_rate(&r->f, SIM_WRITE, -EIO, 0);
	for (size_t i = 0; i < 700; i++)
		check_page(va + i * PAGE_SIZE, i);
	cr_assert(zero(int, up_runtime_set_limit(r->rt, 2 << 20, 1000)));
	cr_assert(le(u64, rig_stats(r).used, 2 << 20));
	cr_assert(zero(int, up_runtime_set_limit(r->rt, 6 << 20, 1000)));
	for (size_t i = 0; i < 1000; i++)
		put_page(va + i * PAGE_SIZE, i + 1);
	cr_assert(gt(u64, rig_stats(r).resident, 900 * PAGE_SIZE));
	for (size_t i = 0; i < 1000; i++)
		check_page(va + i * PAGE_SIZE, i + 1);
	over();
}
