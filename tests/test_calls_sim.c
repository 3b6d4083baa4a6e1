/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_calls_sim.c: prefault, one page and one counter at a time, over the simulated kernel.
 *
 * What the calls mean to a program with threads is in test_calls.c; each of their fallible calls fails in
 * test_failing.c.
 */
#include <errno.h>

#include "scene.h"

TestSuite(prefault, .timeout = 120);

#define RW (PROT_READ | PROT_WRITE)
#define PAGE(i) (va + (size_t)(i)*PAGE_SIZE)

static int
prefault(uintptr_t va, size_t npages, bool write)
{
	return up_prefault(r->rt, (void *)va, npages * PAGE_SIZE, write);
}

/* No message of a fault was sent, let alone read. */
static void
nobody_faulted(uintptr_t va, size_t npages)
{
	for (unsigned i = 0; i < r->p->nservices; i++)
		cr_assert(zero(sz, sim_queued(r->pm, i)));
	for (size_t i = 0; i < npages; i++)
		cr_assert(eq(int, sim_state(r->pm, PAGE(i)), SIM_PRESENT), "page %zu", i);
}

/*
 * Prefault
 */

Test(prefault, of_what_was_never_touched_is_zeros)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(100); /* even where nothing may be guessed */
	cr_assert(zero(int, prefault(va, 100, true)));
	all_are(va, 100, MAPPED);
	nobody_faulted(va, 100);
	expect(ZEROS(4), .zero_ahead_pages = 96);
	for (size_t i = 0; i < 100; i++)
		check_zeros(PAGE(i));
	expect(.limit = 0); /* not one fault */
	over();
}

Test(prefault, of_the_middle_leaves_the_rest_alone)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = rig_map(r, 100 * PAGE_SIZE);
	cr_assert(zero(int, prefault(PAGE(40), 20, false)));
	all_are(va, 40, NOWHERE);
	all_are(PAGE(40), 20, MAPPED);
	all_are(PAGE(60), 40, NOWHERE);
	over();
}

Test(prefault, reads_many_clusters_at_once)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 8 << 20 });
	va = map_random(640);
	put_pages(va, 640, 100);
	swap_out();
	seen();
	sim_disk_hold(r->disk, SWAP_READ);
	r->p->idle = NULL; /* nothing below may wait */
	{
		struct demand d = { .va = va, .end = PAGE(640) };
		struct service *s = r->p->service[0];

		d.write = false;
		pthread_mutex_lock(&s->cmd_lock);
		s->demands = &d;
		pthread_mutex_unlock(&s->cmd_lock);
		for (unsigned i = 0; i < 8; i++)
			rig_step(r);
		cr_assert(not(d.over));
		cr_assert(ge(uint, s->nreads, 8), "%u reads in flight", s->nreads);
		sim_disk_release(r->disk, SWAP_READ);
		for (unsigned i = 0; i < 1000 && !d.over; i++)
			rig_step(r);
		cr_assert(d.over);
		cr_assert(zero(int, d.result));
		cr_assert(eq(ptr, s->demands, NULL));
	}
	r->p->idle = r->backend.idle;
	rig_settle(r);
	all_are(va, 640, MAPPED);
	cr_assert(eq(u64, rig_stats(r).swap_read_bytes - scene_seen.swap_read_bytes,
		     640 * PAGE_SIZE));
	cr_assert(le(u64, rig_stats(r).swap_reads - scene_seen.swap_reads, 12));
	check_pages(va, 640, 100);
	over();
}

Test(prefault, finds_every_page_wherever_it_is)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	va = map_random(50);
	put_pages(va, 10, 100);
	swap_out();
	put_pages(PAGE(10), 10, 110);
	clean();
	put_pages(PAGE(20), 10, 120);
	launder();
	put_pages(PAGE(30), 5, 130);
	stage();
	put_pages(PAGE(35), 5, 135);
	all_are(va, 10, SWAPPED);
	all_are(PAGE(10), 10, CLEAN);
	all_are(PAGE(20), 10, LAUNDRY);
	all_are(PAGE(30), 5, STAGED);
	all_are(PAGE(35), 5, MAPPED);
	all_are(PAGE(40), 10, NOWHERE);
	seen();
	cr_assert(zero(int, prefault(va, 50, true)));
	all_are(va, 50, MAPPED);
	nobody_faulted(va, 50);
	cr_assert(eq(u64, rig_stats(r).rescues - scene_seen.rescues, 10));
	check_pages(va, 40, 100);
	for (size_t i = 40; i < 50; i++)
		check_zeros(PAGE(i));
	over();
}

Test(prefault, of_what_is_there_makes_it_the_youngest)
{
	uintptr_t va, other;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	va = map_random(32);
	other = map_random(32);
	put_pages(va, 32, 100);
	put_pages(other, 32, 200);
	seen();
	cr_assert(zero(int, prefault(va, 32, false)));
	expect(.limit = 0);
	press();
	r->p->pages.queue[Q_ACTIVE].n -= SCENE_YOUNGER; /* half of them go */
	rig_step(r);
	r->p->pages.queue[Q_ACTIVE].n += SCENE_YOUNGER;
	relax();
	all_are(va, 32, MAPPED);
	all_are(other, 32, STAGED);
	over();
}

Test(prefault, crosses_regions_of_several_services)
{
	void *q;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20, .services = 3 });
	va = rig_map(r, 90 * PAGE_SIZE);
	unmap(PAGE(30), 60);
	for (size_t i = 30; i < 90; i += 30)
		cr_assert(zero(int, up_map(r->rt, (void *)PAGE(i), 30 * PAGE_SIZE, RW,
					   UP_PRIVATE | UP_FIXED, NULL, 0, &q)));
	cr_assert(ne(uint, map_lookup(&r->p->map, va)->shard,
		     map_lookup(&r->p->map, PAGE(30))->shard));
	cr_assert(zero(int, prefault(va, 90, true)));
	all_are(va, 90, MAPPED);
	put_pages(va, 90, 100);
	swap_out();
	all_are(va, 90, SWAPPED);
	cr_assert(zero(int, prefault(PAGE(20), 60, true)));
	all_are(PAGE(20), 60, MAPPED);
	all_are(va, 20, SWAPPED);
	check_pages(va, 90, 100);
	over();
}

Test(prefault, says_what_it_can_not_bring_in)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = rig_map(r, 40 * PAGE_SIZE);
	cr_assert(zero(int, up_protect(r->rt, (void *)PAGE(10), 10 * PAGE_SIZE, PROT_READ)));
	cr_assert(zero(int, up_protect(r->rt, (void *)PAGE(20), 10 * PAGE_SIZE, PROT_NONE)));
	unmap(PAGE(35), 1);

	cr_assert(eq(int, prefault(va, 20, true), -EACCES));
	cr_assert(rig_logged(r, "is not writable"));
	cr_assert(eq(int, prefault(va, 30, false), -EACCES));
	cr_assert(rig_logged(r, "is not accessible"));
	cr_assert(eq(int, prefault(PAGE(30), 10, false), -ENOMEM));
	cr_assert(rig_logged(r, "is not mapped"));
	all_are(va, 35, NOWHERE);
	all_are(PAGE(36), 4, NOWHERE);
	cr_assert(zero(int, prefault(va, 20, false)));
	all_are(va, 20, MAPPED);
	over();
}

Test(prefault, of_more_than_fits_is_refused_and_of_what_fits_is_all_there)
{
	uintptr_t va;
	size_t fits;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(2048);
	for (size_t i = 0; i < 2048; i++)
		put_page(PAGE(i), i);
	fits = frames_mappable(r->p);
	seen();
	cr_assert(eq(int, prefault(va, fits + 1, false), -ENOMEM));
	cr_assert(rig_logged(r, "has room for now"));
	expect(.limit = 0);
	for (size_t first = 0; first + fits <= 2048; first += fits) {
		cr_assert(zero(int, prefault(PAGE(first), fits, true)));
		all_are(PAGE(first), fits, MAPPED);
		check_pages(PAGE(first), fits, first);
	}
	over();
}

Test(prefault, of_a_lost_page_is_eio_and_raises_nothing)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(8);
	put_pages(va, 8, 100);
	swap_out();
	sim_disk_bad(r->disk, slot_of(PAGE(3)), SWAP_READ, true);
	cr_assert(eq(int, prefault(va, 8, false), -EIO));
	cr_assert(rig_logged(r, "is lost"));
	all_are(PAGE(3), 1, LOST);
	all_are(va, 3, MAPPED);
	seen();
	cr_assert(eq(int, prefault(PAGE(3), 1, false), -EIO)); /* known now: it is not even tried */
	expect(.limit = 0);
	advise(PAGE(3), 1, UP_ADVICE_DONTNEED);
	cr_assert(zero(int, prefault(va, 8, false)));
	all_are(va, 8, MAPPED);
	check_pages(va, 3, 100);
	check_zeros(PAGE(3));
	check_pages(PAGE(4), 4, 104);
	over();
}

Test(prefault, without_room_gives_up_in_time_and_loses_nothing)
{
	uintptr_t va;
	frame_t f[CLUSTER_MAX];
	unsigned n;

	scene((struct rig_config){ .seed = 1, .fault_timeout_ms = 5 });
	va = map_random(10);
	put_pages(va, 8, 100);
	swap_out();
	squeeze(0);
	n = frames_obtain(r->p, CLUSTER_MAX, f);
	seen();
	cr_assert(eq(int, prefault(va, 10, false), -EAGAIN));
	cr_assert(rig_logged(r, "no room for the page at"));
	cr_assert(rig_logged(r, "in 5 ms"));
	all_are(va, 8, SWAPPED);
	all_are(PAGE(8), 2, NOWHERE);
	cr_assert(zero(u64, rig_stats(r).lost));
	cr_assert(eq(u64, rig_stats(r).fault_sigbus, scene_seen.fault_sigbus));
	frames_release(r->p, f, n);
	unsqueeze();
	cr_assert(zero(int, prefault(va, 10, false)));
	all_are(va, 10, MAPPED);
	check_pages(va, 8, 100);
	over();
}

Test(prefault, of_overcommitted_pages_without_swap_loses_nothing)
{
	void *p;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .swap_slots = 64 });
	cr_assert(zero(int, up_map(r->rt, NULL, 100 * PAGE_SIZE, RW, UP_PRIVATE | UP_NORESERVE,
				   NULL, 0, &p)));
	va = (uintptr_t)p;
	cr_assert(eq(int, prefault(va, 100, true), -ENOSPC));
	cr_assert(rig_logged(r, "overcommitted"));
	all_are(va, 64, MAPPED);
	all_are(PAGE(64), 36, NOWHERE);
	cr_assert(zero(u64, rig_stats(r).fault_sigbus));
	cr_assert(zero(u64, rig_stats(r).lost));
	advise(va, 36, UP_ADVICE_DONTNEED);
	put_pages(PAGE(64), 36, 164); /* no mark was left in the page table */
	check_pages(PAGE(64), 36, 164);
	over();
}

/* What "another thread" does while the call waits; nothing could, if it held map.change. */
static uintptr_t meanwhile_va;
static unsigned meanwhile_done;

static void
unmap_meanwhile(void *ctx)
{
	if (meanwhile_done++ == 3)
		cr_assert(zero(int, up_unmap(r->rt, (void *)meanwhile_va, 4 * PAGE_SIZE)));
	rig_step(ctx);
}

static void
protect_meanwhile(void *ctx)
{
	if (meanwhile_done++ == 3)
		cr_assert(zero(int,
			       up_protect(r->rt, (void *)meanwhile_va, 4 * PAGE_SIZE, PROT_READ)));
	rig_step(ctx);
}

static uintptr_t
slow_region(void (*idle)(void *))
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(128);
	put_pages(va, 128, 100);
	swap_out();
	squeeze(40); /* it takes several turns */
	meanwhile_va = PAGE(124);
	meanwhile_done = 0;
	r->p->idle = idle;
	return va;
}

Test(prefault, notices_that_the_range_is_unmapped_meanwhile)
{
	const uintptr_t va = slow_region(unmap_meanwhile);

	cr_assert(eq(int, prefault(va, 128, true), -ENOMEM));
	cr_assert(rig_logged(r, "is not mapped any more"));
	r->p->idle = r->backend.idle;
	check_pages(va, 124, 100);
	over();
}

Test(prefault, notices_that_the_range_is_protected_meanwhile)
{
	const uintptr_t va = slow_region(protect_meanwhile);

	cr_assert(eq(int, prefault(va, 128, true), -EACCES));
	cr_assert(rig_logged(r, "is not writable any more"));
	r->p->idle = r->backend.idle;
	check_pages(va, 128, 100);
	over();
}
