/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_streams.c: reading ahead of streams that have grown up, over the simulated kernel: what is asked for and when, what
 * stays staged until the stream comes by, and what becomes of what it never comes to.
 */
#include "scene.h"

#define PAGE(i) (va + (size_t)(i)*PAGE_SIZE)
#define MEMORY (17u << 20) /* with which windows go up to 128 pages */
#define WINDOW 128
#define N LEAF_SLOTS

/* N pages, all in swap, in clusters. */
static uintptr_t
all_out(enum up_advice advice)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = MEMORY });
	va = map_written(N, N, 100);
	swap_out();
	advise(va, N, advice);
	seen();
	return va;
}

static size_t
ahead(void)
{
	return page_count(&r->p->pages, Q_AHEAD);
}

static uint64_t
hits(void)
{
	return rig_stats(r).readahead_hits;
}

Test(streams, what_is_ahead_is_asked_for_and_stays_staged_until_the_stream_comes_by)
{
	const uintptr_t va = all_out(UP_ADVICE_SEQUENTIAL);

	check_page(PAGE(0), 100);
	rig_settle(r);
	/* One cluster along with the page, and a window behind it. */
	expect(MAJOR(1), READ(3, CLUSTER_MAX + WINDOW),
	       .readahead_pages = CLUSTER_MAX + WINDOW - 1);
	all_are(PAGE(0), CLUSTER_MAX, MAPPED);
	all_are(PAGE(CLUSTER_MAX), WINDOW, STAGED);
	all_are(PAGE(CLUSTER_MAX + WINDOW), N - CLUSTER_MAX - WINDOW, SWAPPED);
	cr_assert(eq(sz, ahead(), WINDOW));
	check_pages(PAGE(0), CLUSTER_MAX, 100);
	expect(.limit = 0);

	/* One soft fault maps all that is there, and asks for as much again. */
	check_page(PAGE(CLUSTER_MAX), 100 + CLUSTER_MAX);
	rig_settle(r);
	expect(SOFT(1), READ(2, WINDOW), .readahead_pages = WINDOW);
	all_are(PAGE(0), CLUSTER_MAX + WINDOW, MAPPED);
	cr_assert(eq(u64, hits(), WINDOW));
	check_pages(va, N, 100);
	cr_assert(eq(sz, ahead(), 0));
	cr_assert(zero(u64, rig_stats(r).readahead_waste));
	cr_assert(eq(u64, hits(), N - CLUSTER_MAX));
	cr_assert(eq(u64, rig_stats(r).swap_read_bytes - scene_seen.swap_read_bytes,
		     (N - CLUSTER_MAX - 2 * WINDOW) * PAGE_SIZE));
	over();
}

Test(streams, a_stream_grows_up_without_advice)
{
	const uintptr_t va = all_out(UP_ADVICE_NORMAL);
	struct up_stats st;

	check_pages(va, N, 100);
	st = rig_stats(r);
	/* 0, 1, 3, 7, 15, 31, 63 wait for their reads; from 127 on the window is larger than a cluster. */
	cr_assert(eq(u64, st.faults[UP_FAULT_MAJOR] - scene_seen.faults[UP_FAULT_MAJOR], 8));
	cr_assert(eq(u64, st.readahead_hits, N - 127 - CLUSTER_MAX));
	cr_assert(eq(u64, st.swap_read_bytes - scene_seen.swap_read_bytes, N * PAGE_SIZE));
	cr_assert(zero(u64, st.readahead_waste));
	over();
}

Test(streams, who_waits_for_what_is_on_its_way_has_it_when_it_is_there)
{
	const uintptr_t va = all_out(UP_ADVICE_SEQUENTIAL);
	uint64_t w;

	sim_disk_hold(r->disk, SWAP_READ);
	cr_assert(eq(int, sim_touch(r->pm, 1, PAGE(0), false, &w, 0, 8), SIM_FAULT));
	rig_step(r);
	expect(READ(3, CLUSTER_MAX + WINDOW));
	/* It is ahead of the disk, and asks for nothing that has been asked for. */
	cr_assert(eq(int, sim_touch(r->pm, 2, PAGE(CLUSTER_MAX), false, &w, 0, 8), SIM_FAULT));
	rig_step(r);
	expect(.fault_waits = 1);
	sim_disk_release(r->disk, SWAP_READ);
	rig_settle(r);
	cr_assert(eq(int, sim_touch(r->pm, 2, PAGE(CLUSTER_MAX), false, &w, 0, 8), SIM_OK));
	all_are(PAGE(0), 2 * CLUSTER_MAX, MAPPED);
	all_are(PAGE(2 * CLUSTER_MAX), CLUSTER_MAX, STAGED);
	expect(MAJOR(1), .readahead_pages = CLUSTER_MAX + WINDOW - 1);
	check_pages(va, N, 100);
	over();
}

Test(streams, backwards_is_a_stream)
{
	const uintptr_t va = all_out(UP_ADVICE_NORMAL);
	struct up_stats st;

	for (unsigned i = N; i-- > 0;)
		check_page(PAGE(i), 100 + i);
	rig_settle(r);
	st = rig_stats(r);
	/* The third says so; what it and the next ones ask for is there before they are. */
	cr_assert(eq(u64, st.faults[UP_FAULT_MAJOR] - scene_seen.faults[UP_FAULT_MAJOR], 3));
	cr_assert(eq(u64, st.readahead_hits, N - 3));
	cr_assert(eq(u64, st.swap_read_bytes - scene_seen.swap_read_bytes, N * PAGE_SIZE));
	cr_assert(lt(u64, st.swap_reads - scene_seen.swap_reads, 24));
	cr_assert(zero(sz, ahead()));
	over();
}

Test(streams, a_stride_is_one_and_reads_nothing_in_between)
{
	const int strides[] = { 10, -10, 2, -3 };

	for (unsigned k = 0; k < ARRAY_SIZE(strides); k++) {
		const uintptr_t va = all_out(UP_ADVICE_NORMAL);
		const int step = strides[k];
		struct up_stats st;
		unsigned n = 0;

		for (int i = step > 0 ? 0 : N - 1; i >= 0 && i < (int)N; i += step, n++)
			check_page(PAGE(i), 100 + (unsigned)i);
		rig_settle(r);
		st = rig_stats(r);
		cr_assert(eq(u64, st.faults[UP_FAULT_MAJOR] - scene_seen.faults[UP_FAULT_MAJOR], 3),
			  "stride %d", step);
		cr_assert(eq(u64, st.readahead_hits, n - 3), "stride %d", step);
		cr_assert(eq(u64, st.swap_read_bytes - scene_seen.swap_read_bytes, n * PAGE_SIZE),
			  "stride %d", step);
		over();
	}
}

Test(streams, advice_of_randomness_ends_it)
{
	const uintptr_t va = all_out(UP_ADVICE_RANDOM);

	check_pages(va, N, 100);
	expect(MAJOR(N), READ(N, N));
	over();
}

Test(streams, what_nobody_came_to_makes_windows_small)
{
	const uintptr_t va = all_out(UP_ADVICE_SEQUENTIAL);
	struct object *o = map_lookup(&r->p->map, va)->object;

	/* The first page of a stream that is not one. */
	check_page(PAGE(0), 100);
	rig_settle(r);
	cr_assert(eq(sz, ahead(), WINDOW));
	swap_out();
	squeeze(0);
	while (ahead() > 0) {
		frame_t f;

		cr_assert(eq(uint, frames_obtain(r->p, 1, &f), 1));
		scene_held[scene_nheld++] = f;
	}
	give_room();
	cr_assert(eq(u64, rig_stats(r).readahead_waste, WINDOW));
	cr_assert(lt(int, o->ahead_credit, 0));
	swap_out();
	seen();
	check_page(PAGE(400), 500);
	rig_settle(r);
	cr_assert(zero(sz, ahead()));
	cr_assert(eq(u64, rig_stats(r).readahead_waste, WINDOW));
	/* Those that are streams earn them back. */
	advise(va, N, UP_ADVICE_NORMAL);
	check_pages(va, N, 100);
	swap_out();
	check_pages(va, N, 100);
	swap_out();
	cr_assert(ge(int, o->ahead_credit, 0));
	over();
}

Test(streams, what_waits_for_its_stream_goes_last_but_it_goes)
{
	const uintptr_t va = all_out(UP_ADVICE_SEQUENTIAL);
	frame_t f;

	check_page(PAGE(0), 100);
	rig_settle(r);
	cr_assert(eq(sz, ahead(), WINDOW));
	no_room();
	cr_assert(eq(sz, ahead(), WINDOW));
	cr_assert(eq(uint, frames_obtain(r->p, 1, &f), 1));
	cr_assert(lt(sz, ahead(), WINDOW));
	frames_release(r->p, &f, 1);
	give_room();
	check_pages(va, N, 100);
	over();
}

Test(streams, discarded_while_it_waits_for_its_stream)
{
	const uintptr_t va = all_out(UP_ADVICE_SEQUENTIAL);

	check_page(PAGE(0), 100);
	rig_settle(r);
	advise(PAGE(CLUSTER_MAX), 10, UP_ADVICE_DONTNEED);
	cr_assert(eq(sz, ahead(), WINDOW - 10));
	for (unsigned i = 0; i < 10; i++)
		check_zeros(PAGE(CLUSTER_MAX + i));
	check_pages(PAGE(CLUSTER_MAX + 10), N - CLUSTER_MAX - 10, 100 + CLUSTER_MAX + 10);
	unmap(va, N);
	cr_assert(zero(sz, ahead()));
	over();
}

Test(streams, a_bad_page_ahead_is_told_to_who_touches_it)
{
	const uintptr_t va = all_out(UP_ADVICE_SEQUENTIAL);

	sim_disk_bad(r->disk, slot_of(PAGE(100)), SWAP_READ, true);
	for (unsigned i = 0; i < N; i++) {
		uint64_t w;

		if (i == 100)
			cr_assert(eq(int, rig_touch(r, 0, PAGE(i), false, &w, 0, 8), SIM_SIGBUS));
		else
			check_page(PAGE(i), 100 + i);
	}
	cr_assert(eq(u64, rig_stats(r).fault_sigbus, 1));
	over();
}

Test(streams, first_touches_wait_for_a_run_while_writes_are_under_way)
{
	const unsigned n = 2 * MEMORY / PAGE_SIZE;
	uintptr_t va;
	uint64_t w;
	unsigned i = 0;

	scene((struct rig_config){ .seed = 1, .memory = MEMORY });
	va = rig_map(r, n * PAGE_SIZE);
	advise(va, n, UP_ADVICE_SEQUENTIAL);
	sim_disk_hold(r->disk, SWAP_WRITE);
	for (; i < n; i++) {
		w = i + 1;
		if (sim_touch(r->pm, 1, PAGE(i), true, &w, 0, 8) == SIM_OK)
			continue;
		for (unsigned k = 0; k < 20; k++)
			rig_step(r);
		if (sim_touch(r->pm, 1, PAGE(i), true, &w, 0, 8) != SIM_OK)
			break;
	}
	/* Some frames are left, and it does not take them one by one. */
	cr_assert(lt(uint, i, n));
	cr_assert(gt(sz, frames_available(r->p), 0));
	cr_assert(gt(sz, r->p->laundering, 0));
	sim_disk_release(r->disk, SWAP_WRITE);
	rig_settle(r);
	for (i = 0; i < n; i++)
		cr_assert(eq(int, rig_touch(r, 0, PAGE(i), true, &(uint64_t){ i + 1 }, 0, 8),
			     SIM_OK));
	/* A window at a time, to the end. */
	cr_assert(lt(u64, rig_stats(r).faults[UP_FAULT_ZERO], n / CLUSTER_MAX + 8));
	over();
}

/* --- between two completions --- */

/* Two reads have come together, the second of which a thread may wait for, and a stream wants more.  How many reads there are when these have been seen to. */
static unsigned
reads_between(bool urgent, bool stop)
{
	const uintptr_t va = all_out(UP_ADVICE_NORMAL);
	struct service *s = r->p->service[0];
	struct swap_io *first = NULL;
	struct io_events ev;
	unsigned n;

	advise(PAGE(0), CLUSTER_MAX, UP_ADVICE_WILLNEED);
	advise(PAGE(CLUSTER_MAX), CLUSTER_MAX, UP_ADVICE_WILLNEED);
	sim_disk_hold(r->disk, SWAP_READ);
	for (unsigned i = 0; i < 8; i++)
		rig_step(r);
	cr_assert(eq(uint, s->nreads, 2));
	sim_disk_release(r->disk, SWAP_READ);
	for (struct swap_io **last = &first; s->io->inflight > 0;) {
		s->io->ops->wait(s->io, 0, &ev);
		for (*last = ev.completed; *last != NULL; last = &(*last)->next)
			;
	}
	first->next->urgent = urgent;
	early_wish(s, PAGE(4 * CLUSTER_MAX), PAGE(5 * CLUSTER_MAX), 1);
	atomic_store(&s->stop, stop);
	service_complete(s, first);
	n = s->nreads;
	atomic_store(&s->stop, false);
	rig_settle(r);
	check_pages(va, N, 100);
	over();
	return n;
}

Test(streams, what_they_want_next_is_read_before_all_that_came_is_looked_at)
{
	cr_assert(eq(uint, reads_between(false, false), 1));
}

Test(streams, who_waits_for_a_read_that_has_come_is_first)
{
	cr_assert(zero(uint, reads_between(true, false)));
}

Test(streams, a_service_that_ends_starts_no_read)
{
	cr_assert(zero(uint, reads_between(false, true)));
}
