/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_calls_sim.c: prefault, wire, dump and remap, one page and one counter at a time, over the simulated kernel.
 *
 * What the calls mean to a program with threads is in test_calls.c; each of their fallible calls fails in
 * test_failing.c.
 */
#include <errno.h>
#include <limits.h>
#include <signal.h>

#include "scene.h"

TestSuite(prefault, .timeout = 120);
TestSuite(wire, .timeout = 120);
TestSuite(wire_asserts, .timeout = 120);
TestSuite(dump, .timeout = 120);
TestSuite(remap, .timeout = 120);

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
	expect(ZEROS(2), .zero_ahead_pages = 98);
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
	va = map_written(640, 640, 100);
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
		s->ndemands = 1;
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
	va = map_written(50, 10, 100);
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

	for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
		scene((struct rig_config){ .seed = 1, .memory = 4 << 20, .policy = kind });
		va = map_random(32);
		other = map_random(32);
		put_pages(va, 32, 100);
		put_pages(other, 32, 200);
		seen();
		cr_assert(zero(int, prefault(va, 32, false)));
		expect(.limit = 0);
		press();
		r->p->pages.policy.queue[PQ_MAIN].n -= SCENE_YOUNGER; /* half of them go */
		rig_step(r);
		r->p->pages.policy.queue[PQ_MAIN].n += SCENE_YOUNGER;
		relax();
		all_are(va, 32, MAPPED);
		all_are(other, 32, STAGED);
		over();
	}
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

	for (unsigned kind = 0; kind < POLICY_KINDS; kind++) {
		scene((struct rig_config){ .seed = 1, .policy = kind });
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
}

/* Pages that come back again and again have earned rounds by the policy; what is asked for stays before them. */
Test(prefault, of_what_fits_is_all_there_whatever_is_in_use_beside_it)
{
	uintptr_t va, hot;
	size_t fits, n;

	for (unsigned i = 0; i < 8 * POLICY_KINDS; i++) {
		const unsigned kind = i % POLICY_KINDS;

		/* How pageout's batches fall depends on all that there is. */
		scene((struct rig_config){ .seed = 1,
					   .memory = (4 << 20) + i / POLICY_KINDS * (20 << 10),
					   .policy = kind });
		fits = frames_mappable(r->p);
		n = fits + fits / 2;
		hot = map_random(n);
		put_pages(hot, n, 3000);
		va = map_random(3 * fits);
		put_pages(va, 3 * fits, 1);
		for (unsigned round = 0; round < 12; round++) {
			const size_t first = round % 3 * fits;

			for (size_t k = 0; k < n; k += 1 + k % 3)
				check_page(hot + k * PAGE_SIZE, 3000 + (int)k);
			fits = MIN(fits, frames_mappable(r->p));
			cr_assert(zero(int, prefault(PAGE(first), fits, false)));
			all_are(PAGE(first), fits, MAPPED);
		}
		over();
	}
}

Test(prefault, of_a_lost_page_is_eio_and_raises_nothing)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(8, 8, 100);
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
	va = map_written(10, 8, 100);
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
	va = map_written(128, 128, 100);
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

/*
 * Wire
 */

static int
wire(uintptr_t va, size_t npages)
{
	return up_wire(r->rt, (void *)va, npages * PAGE_SIZE);
}

static int
unwire(uintptr_t va, size_t npages)
{
	return up_unwire(r->rt, (void *)va, npages * PAGE_SIZE);
}

static uint64_t
meta_promised(void)
{
	uint64_t max, used;

	resv_get(&r->p->resv_meta, &max, &used);
	return used;
}

#define WIRED(npages) cr_assert(eq(u64, rig_stats(r).wired, (npages)*PAGE_SIZE))

/* How often the page is wired. */
static unsigned
times(uintptr_t va)
{
	return map_lookup(&r->p->map, va)->wired;
}

/*
 * Twice the limit goes through memory.  With POLICY_SFIFO nothing is left of what was there before but for what is wired;
 * with the default what has been used may well be.
 */
static void
churn(void)
{
	const size_t n = 2 * r->cfg.memory / PAGE_SIZE;
	const uintptr_t other = map_random(n);

	put_pages(other, n, 5000);
	check_pages(other, n, 5000);
	unmap(other, n);
	rig_settle(r);
}

Test(wire, holds_pages_in_memory_against_all_comers)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .policy = POLICY_SFIFO });
	va = map_written(60, 20, 100);
	swap_out();
	put_pages(PAGE(20), 20, 120);
	cr_assert(zero(int, wire(PAGE(10), 40)));
	all_are(PAGE(10), 40, MAPPED);
	WIRED(40);
	cr_assert(eq(uint, residency(PAGE(10)), UP_PAGE_MAPPED | UP_PAGE_SWAPPED | UP_PAGE_WIRED));
	cr_assert(eq(uint, residency(PAGE(49)), UP_PAGE_MAPPED | UP_PAGE_WIRED));
	cr_assert(eq(uint, residency(PAGE(9)), UP_PAGE_SWAPPED));
	cr_assert(zero(uint, residency(PAGE(50))));
	pager_check(r->p);
	churn();
	all_are(PAGE(10), 40, MAPPED);
	all_are(va, 10, SWAPPED);
	seen();
	check_pages(PAGE(10), 30, 110);
	expect(.limit = 0); /* not one fault */

	cr_assert(zero(int, unwire(PAGE(10), 40)));
	WIRED(0);
	all_are(PAGE(10), 40, MAPPED);
	pager_check(r->p);
	churn();
	all_are(va, 40, SWAPPED);
	check_pages(va, 40, 100);
	over();
}

Test(wire, costs_pageout_not_a_look)
{
	uintptr_t va, other;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	va = map_random(300);
	cr_assert(zero(int, wire(va, 300)));
	cr_assert(zero(sz, page_count(&r->p->pages, Q_ACTIVE)));
	cr_assert(eq(sz, page_count(&r->p->pages, Q_WIRED), 300));
	other = map_random(64);
	put_pages(other, 64, 1);
	seen();
	stage(); /* one batch, and it is all of the others at once */
	all_are(other, 64, STAGED);
	expect(.pages_staged = 64);
	over();
}

Test(wire, calls_nest_and_work_on_any_part)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .policy = POLICY_SFIFO });
	va = map_random(60);
	cr_assert(zero(int, wire(va, 40)));
	cr_assert(zero(int, wire(PAGE(20), 40)));
	cr_assert(zero(int, wire(PAGE(30), 5)));
	WIRED(60);
	cr_assert(eq(uint, times(va), 1));
	cr_assert(eq(uint, times(PAGE(20)), 2));
	cr_assert(eq(uint, times(PAGE(34)), 3));
	cr_assert(eq(uint, times(PAGE(35)), 2));
	cr_assert(eq(uint, times(PAGE(59)), 1));
	cr_assert(zero(int, unwire(PAGE(10), 22)));
	WIRED(50); /* 10 .. 19 are not */
	pager_check(r->p);
	cr_assert(eq(int, unwire(PAGE(5), 10), -EINVAL)); /* all or nothing */
	cr_assert(rig_logged(r, "is not wired"));
	cr_assert(eq(uint, times(PAGE(5)), 1));
	WIRED(50);
	churn();
	all_are(va, 10, MAPPED);
	all_are(PAGE(10), 10, NOWHERE); /* nothing was ever written there */
	all_are(PAGE(20), 40, MAPPED);
	cr_assert(zero(int, unwire(PAGE(20), 40)));
	cr_assert(eq(uint, times(PAGE(20)), 0));
	cr_assert(eq(uint, times(PAGE(30)), 1));
	cr_assert(eq(uint, times(PAGE(33)), 2));
	cr_assert(eq(uint, times(PAGE(36)), 1));
	cr_assert(zero(uint, times(PAGE(40))));
	WIRED(20);
	over();
}

Test(wire, ends_with_the_mapping)
{
	uintptr_t va;
	uint64_t before;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(60);
	before = meta_promised();
	cr_assert(zero(int, wire(va, 60)));
	cr_assert(zero(int, wire(va, 60)));
	cr_assert(eq(u64, meta_promised(), before + 60 * PAGE_SIZE));
	unmap(PAGE(20), 10);
	WIRED(50);
	pager_check(r->p);
	unmap(va, 20);
	unmap(PAGE(30), 30);
	WIRED(0);
	cr_assert(zero(u64, meta_promised()));
	cr_assert(zero(sz, page_count(&r->p->pages, Q_WIRED)));
	va = map_random(60); /* and a runtime goes away with what is wired */
	cr_assert(zero(int, wire(va, 60)));
	over();
}

Test(wire, of_an_object_ends_with_the_mapping_and_not_with_the_content)
{
	struct up_object *o;
	uintptr_t va;
	void *p;

	scene((struct rig_config){ .seed = 1, .policy = POLICY_SFIFO });
	va = map_new_object(40, &o);
	put_pages(va, 40, 100);
	cr_assert(zero(int, wire(va, 40)));
	churn();
	all_are(va, 40, MAPPED);
	unmap(va, 40);
	WIRED(0);
	pager_check(r->p);
	cr_assert(zero(int, up_map(r->rt, NULL, 40 * PAGE_SIZE, RW, UP_SHARED, o, 0, &p)));
	va = (uintptr_t)p;
	check_pages(va, 40, 100);
	churn();
	all_are(va, 40, SWAPPED);
	check_pages(va, 40, 100);
	unmap(va, 40);
	up_object_unref(o);
	over();
}

Test(wire, takes_no_more_than_its_limit)
{
	uintptr_t va;
	size_t most;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20 });
	most = r->cfg.memory / 2 / PAGE_SIZE;
	va = map_random(most + 10);
	cr_assert(eq(int, wire(va, most + 1), -ENOMEM));
	cr_assert(rig_logged(r, "more than wire_limit 2097152"));
	all_are(va, most + 1, NOWHERE);
	cr_assert(zero(int, wire(va, 100)));
	cr_assert(zero(int, wire(va, most))); /* what is wired already counts once */
	WIRED(most);
	cr_assert(eq(int, wire(PAGE(most), 1), -ENOMEM));
	cr_assert(zero(int, unwire(PAGE(100), 1)));
	cr_assert(zero(int, wire(PAGE(most), 1)));
	WIRED(most);

	/* The pager lives on with the other half. */
	churn();
	all_are(va, 100, MAPPED);
	over();
}

Test(wire, and_metadata_are_promised_out_of_the_same_limit)
{
	struct up_object *o;
	uint64_t max, used, npages;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20, .swap_slots = 1 << 20 });
	va = map_random(200);
	cr_assert(zero(int, wire(va, 200)));
	resv_get(&r->p->resv_meta, &max, &used);
	npages = (max - used) / META_PER_LEAF * LEAF_SLOTS;
	cr_assert(eq(int, up_object_create_anon(r->rt, (npages + LEAF_SLOTS) * PAGE_SIZE, 0, &o),
		     -ENOMEM));
	cr_assert(zero(int,
		       up_object_create_anon(r->rt, (npages - 4 * LEAF_SLOTS) * PAGE_SIZE, 0, &o)));
	cr_assert(zero(int, wire(va, 200))); /* needs no more room */
	va = map_random(20);
	cr_assert(eq(int, wire(va, 20), -ENOMEM));
	cr_assert(rig_logged(r, "beside the metadata that is promised"));
	WIRED(200);
	cr_assert(zero(uint, times(va)));
	up_object_unref(o);
	cr_assert(zero(int, wire(va, 20)));
	WIRED(220);
	over();
}

Test(wire, of_a_lost_page_wires_nothing)
{
	uintptr_t va;
	uint64_t before;

	scene((struct rig_config){ .seed = 1, .policy = POLICY_SFIFO });
	va = map_written(40, 40, 100);
	swap_out();
	sim_disk_bad(r->disk, slot_of(PAGE(30)), SWAP_READ, true);
	cr_assert(zero(int, wire(PAGE(5), 10)));
	before = meta_promised();
	cr_assert(eq(int, wire(va, 40), -EIO));
	cr_assert(rig_logged(r, "up_wire: the page at"));
	WIRED(10);
	cr_assert(eq(u64, meta_promised(), before));
	pager_check(r->p);
	churn();
	all_are(PAGE(5), 10, MAPPED);
	all_are(va, 5, SWAPPED);
	check_pages(va, 30, 100);
	advise(PAGE(30), 1, UP_ADVICE_DONTNEED);
	cr_assert(zero(int, wire(va, 40)));
	WIRED(40);
	over();
}

/* The disk takes the last page of the range away between the first pass of the call and the second. */
static uintptr_t lose_va;

static void
lose_on_the_way(void *ctx)
{
	rig_step(ctx);
	if (page_count(&r->p->pages, Q_WIRED) > 0 && where(lose_va) == MAPPED) {
		struct anon *an = anon_at(lose_va);
		struct page *pg = page_of(lose_va);

		/* As range_free() would, if this call did not keep it out; then LOST. */
		cr_assert(anon_trybusy(an));
		cr_assert(zero(int, r->pm->ops->discard(r->pm, pg->shard, lose_va, 1)));
		release_content(r->p, an);
		an->loc = UINT32_MAX;
		atomic_store(&an->kind, ANON_LOST);
		atomic_fetch_add(&r->p->nlost, 1);
		page_unbusy(r->p, an, 0, lose_va);
	}
}

Test(wire, that_fails_half_way_is_undone)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 8 << 20, .policy = POLICY_SFIFO });
	va = map_written(1000, 1000, 100);
	cr_assert(zero(int, wire(PAGE(10), 10)));
	lose_va = PAGE(999);
	r->p->idle = lose_on_the_way;
	cr_assert(eq(int, wire(va, 1000), -EIO));
	r->p->idle = r->backend.idle;
	WIRED(10);
	cr_assert(eq(sz, page_count(&r->p->pages, Q_WIRED), 10));
	pager_check(r->p);
	cr_assert(eq(uint, times(PAGE(10)), 1));
	cr_assert(zero(uint, times(PAGE(20))));
	churn();
	all_are(PAGE(20), 979, SWAPPED);
	check_pages(va, 999, 100);
	over();
}

Test(wire, without_room_gives_up_in_time)
{
	uintptr_t va;
	frame_t f[CLUSTER_MAX];
	unsigned n;

	scene((struct rig_config){ .seed = 1, .fault_timeout_ms = 5 });
	va = map_written(10, 8, 100);
	swap_out();
	squeeze(0);
	n = frames_obtain(r->p, CLUSTER_MAX, f);
	cr_assert(eq(int, wire(va, 10), -EAGAIN));
	cr_assert(rig_logged(r, "up_wire: no room for the page"));
	WIRED(0);
	all_are(va, 8, SWAPPED);
	frames_release(r->p, f, n);
	unsqueeze();
	cr_assert(zero(int, wire(va, 10)));
	check_pages(va, 8, 100);
	over();
}

Test(wire, keeps_advice_from_taking_pages_away)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(64, 64, 100);
	cr_assert(zero(int, wire(PAGE(40), 8)));
	cr_assert(
		eq(int, up_advise(r->rt, (void *)va, 64 * PAGE_SIZE, UP_ADVICE_DONTNEED), -EINVAL));
	cr_assert(rig_logged(r, "is wired, and can not be discarded"));
	check_pages(va, 64, 100);
	advise(va, 40, UP_ADVICE_DONTNEED);
	advise(PAGE(30), 34, UP_ADVICE_COLD);
	WIRED(8);
	pager_check(r->p);
	churn();
	all_are(PAGE(40), 8, MAPPED);
	check_pages(PAGE(40), 24, 140);
	cr_assert(zero(int, unwire(PAGE(40), 8)));
	advise(PAGE(40), 8, UP_ADVICE_DONTNEED);
	check_zeros(PAGE(40));
	over();
}

Test(wire, of_what_nobody_may_touch_is_refused_but_it_may_become_that)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(20, 20, 100);
	cr_assert(zero(int, up_protect(r->rt, (void *)PAGE(10), PAGE_SIZE, PROT_NONE)));
	cr_assert(eq(int, wire(va, 20), -EACCES));
	cr_assert(rig_logged(r, "is not accessible"));
	WIRED(0);
	cr_assert(zero(int, wire(va, 10)));
	cr_assert(zero(int, up_protect(r->rt, (void *)va, 5 * PAGE_SIZE, PROT_NONE)));
	cr_assert(zero(int, up_protect(r->rt, (void *)PAGE(5), 5 * PAGE_SIZE, PROT_READ)));
	churn();
	all_are(va, 10, MAPPED);
	cr_assert(zero(int, up_protect(r->rt, (void *)va, 20 * PAGE_SIZE, RW)));
	check_pages(va, 20, 100);
	cr_assert(zero(int, unwire(va, 10)));
	WIRED(0);
	over();
}

Test(wire, says_what_is_wrong)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(20);
	unmap(PAGE(10), 1);
	cr_assert(eq(int, wire(va, 20), -ENOMEM));
	cr_assert(rig_logged(r, "up_wire: part of"));
	cr_assert(eq(int, unwire(va, 20), -ENOMEM));
	cr_assert(rig_logged(r, "up_unwire: part of"));
	cr_assert(eq(int, unwire(va, 5), -EINVAL));
	cr_assert(zero(int, wire(va, 5)));
	map_lookup(&r->p->map, va)->wired = UINT_MAX;
	cr_assert(eq(int, wire(PAGE(2), 1), -ENOMEM));
	cr_assert(rig_logged(r, "can not be wired once more"));
	map_lookup(&r->p->map, va)->wired = 1;
	cr_assert(zero(int, unwire(va, 5)));
	over();
}

Test(wire, notices_that_the_range_is_unmapped_while_it_comes)
{
	const uintptr_t va = slow_region(unmap_meanwhile);

	cr_assert(eq(int, wire(va, 128), -ENOMEM));
	cr_assert(rig_logged(r, "up_wire: the page at"));
	r->p->idle = r->backend.idle;
	WIRED(0);
	check_pages(va, 124, 100);
	over();
}

Test(wire_asserts, a_wired_page_in_an_entry_that_is_not_is_seen, .signal = SIGABRT)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(20);
	cr_assert(zero(int, wire(va, 10)));
	/* As many as there should be, and the wrong one. */
	map_lookup(&r->p->map, va)->wired = 0;
	map_lookup(&r->p->map, PAGE(10))->wired = 1;
	pager_check(r->p);
}

Test(wire_asserts, a_page_that_is_missing_from_a_wired_entry_is_seen, .signal = SIGABRT)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(20);
	cr_assert(zero(int, wire(va, 10)));
	map_lookup(&r->p->map, PAGE(10))->wired = 1;
	atomic_fetch_add(&r->p->nwired, 10);
	pager_check(r->p);
}

/*
 * Objects and the map
 */

static struct up_object_stats
info_of(struct up_object *o)
{
	struct up_object_stats info;

	memset(&info, 0xee, sizeof info);
	cr_assert(zero(int, up_object_info(o, &info, sizeof info)));
	return info;
}

Test(dump, an_object_says_where_its_pages_are)
{
	struct up_object *o, *other;
	struct up_object_stats info;
	uintptr_t va;
	void *p;

	scene((struct rig_config){ .seed = 1 });
	cr_assert(zero(int, up_object_create_anon(r->rt, 2000 * PAGE_SIZE, 0, &o)));
	cr_assert(zero(int, up_object_create_anon(r->rt, PAGE_SIZE, 0, &other)));
	info = info_of(o);
	cr_assert(eq(u64, info.id, 1));
	cr_assert(eq(u64, info_of(other).id, 2));
	cr_assert(eq(u64, info.size, 2000 * PAGE_SIZE));
	cr_assert(zero(u64, info.resident | info.swapped | info.lost));
	cr_assert(zero(int, strcmp(info.pager, "anonymous")));
	cr_assert(eq(u32, info.refs, 1));
	cr_assert(zero(u32, info.depth));

	/* In three leaves, in each state that there is. */
	cr_assert(zero(int, up_map(r->rt, NULL, 1900 * PAGE_SIZE, RW, UP_SHARED, o, 100 * PAGE_SIZE,
				   &p)));
	va = (uintptr_t)p;
	advise(va, 1900, UP_ADVICE_RANDOM);
	put_pages(PAGE(405), 20, 100);
	swap_out();
	sim_disk_bad(r->disk, slot_of(PAGE(407)), SWAP_READ, true);
	put_pages(PAGE(1890), 10, 200);
	launder();
	put_pages(va, 5, 300);
	cr_assert(eq(int, prefault(PAGE(407), 1, false), -EIO));
	all_are(PAGE(1890), 10, LAUNDRY);
	info = info_of(o);
	cr_assert(eq(u64, info.resident, 15 * PAGE_SIZE));
	cr_assert(eq(u64, info.swapped, 19 * PAGE_SIZE));
	cr_assert(eq(u64, info.lost, PAGE_SIZE));
	cr_assert(eq(u32, info.refs, 2));
	cr_assert(zero(int, up_protect(r->rt, (void *)PAGE(5), PAGE_SIZE, PROT_READ)));
	up_object_ref(o);
	cr_assert(eq(u32, info_of(o).refs, 5)); /* three ranges, two of ours */
	up_object_unref(o);
	sim_disk_release(r->disk, SWAP_WRITE);
	unmap(va, 1900);
	info = info_of(o);
	cr_assert(eq(u64, info.resident + info.swapped, 34 * PAGE_SIZE));
	cr_assert(eq(u32, info.refs, 1));
	up_object_unref(o);
	up_object_unref(other);
	cr_assert(zero(int, up_object_create_anon(r->rt, PAGE_SIZE, 0, &o)));
	cr_assert(eq(u64, info_of(o).id, 3)); /* a number is not used again */
	up_object_unref(o);
	over();
}

Test(dump, an_older_program_gets_the_fields_it_knows_and_a_newer_one_zeros)
{
	struct {
		struct up_object_stats info;
		uint64_t more;
	} big;
	struct up_object_stats info;
	struct up_object *o;

	scene((struct rig_config){ .seed = 1 });
	cr_assert(zero(int, up_object_create_anon(r->rt, PAGE_SIZE, 0, &o)));
	memset(&info, 0xee, sizeof info);
	cr_assert(zero(int, up_object_info(o, &info, 16)));
	cr_assert(eq(u64, info.size, PAGE_SIZE));
	cr_assert(eq(u64, info.resident, UINT64_C(0xeeeeeeeeeeeeeeee)));
	memset(&big, 0xee, sizeof big);
	cr_assert(zero(int, up_object_info(o, &big.info, sizeof big)));
	cr_assert(zero(u64, big.more));
	cr_assert(eq(u64, big.info.size, PAGE_SIZE));
	cr_assert(eq(int, up_object_info(o, NULL, 16), -EINVAL));
	cr_assert(rig_logged(r, "info is NULL"));
	cr_assert(eq(int, up_object_info(NULL, &info, sizeof info), -EINVAL));
	up_object_unref(o);
	over();
}

/* The dump without its first line. */
static const char *
dump(void)
{
	static char text[8192];
	FILE *f = fmemopen(text, sizeof text, "w");
	const char *end;

	cr_assert(f != NULL);
	cr_assert(zero(int, up_map_dump(r->rt, f)));
	fclose(f);
	cr_assert(eq(sz, strspn(text, "a"), 1));
	end = strchr(text, '\n');
	cr_assert(end != NULL);
	return end + 1;
}

/* True if some line is this, spaces aside; `want` without the range of addresses. */
static bool
dumped(uintptr_t start, size_t npages, const char *want)
{
	char range[64];
	const size_t n = (size_t)snprintf(range, sizeof range, "%lx-%lx ", (unsigned long)start,
					  (unsigned long)(start + npages * PAGE_SIZE));

	for (const char *line = dump(); *line != '\0'; line = strchr(line, '\n') + 1) {
		const char *a = line + n, *b = want;

		if (strncmp(line, range, n) != 0)
			continue;
		for (; *a != '\n' || *b != '\0';) {
			const size_t sa = strspn(a, " "), sb = strspn(b, " ");

			a += sa;
			b += sb;
			if (*a != *b && !(*a == '\n' && *b == '\0'))
				return false;
			a += *a != '\n';
			b += *b != '\0';
		}
		return true;
	}
	return false;
}

Test(dump, shows_the_map_and_what_is_behind_it)
{
	struct up_object *o;
	uintptr_t va, shared;
	void *p;

	scene((struct rig_config){ .seed = 1 });
	cr_assert(zero(sz, strlen(dump())));
	va = rig_map(r, 40 * PAGE_SIZE);
	cr_assert(dumped(va, 40, "rw-p 00000000 1 anonymous 40 0 0 0 1 0 -"));
	cr_assert(zero(int, up_object_create_anon(r->rt, 600 * PAGE_SIZE, 0, &o)));
	cr_assert(zero(int, up_map(r->rt, NULL, 100 * PAGE_SIZE, PROT_READ, UP_SHARED, o,
				   256 * PAGE_SIZE, &p)));
	shared = (uintptr_t)p;
	cr_assert(dumped(shared, 100, "r--s 00100000 2 anonymous 600 0 0 0 2 0 -"));

	advise(va, 40, UP_ADVICE_RANDOM);
	put_pages(va, 20, 100);
	swap_out();
	check_pages(va, 5, 100);
	cr_assert(dumped(va, 40, "rw-p 00000000 1 anonymous 40 5 15 0 1 0 -"));
	cr_assert(zero(int, up_protect(r->rt, (void *)PAGE(10), 10 * PAGE_SIZE, PROT_NONE)));
	cr_assert(zero(int, wire(PAGE(22), 2)));
	cr_assert(zero(int, wire(PAGE(22), 2)));
	unmap(PAGE(30), 10);
	cr_assert(dumped(va, 10, "rw-p 00000000 1 anonymous 40 7 15 0 5 0 -"));
	cr_assert(dumped(PAGE(10), 10, "---p 0000a000 1 anonymous 40 7 15 0 5 0 -"));
	cr_assert(dumped(PAGE(20), 2, "rw-p 00014000 1 anonymous 40 7 15 0 5 0 -"));
	cr_assert(dumped(PAGE(22), 2, "rw-p 00016000 1 anonymous 40 7 15 0 5 2 -"));
	cr_assert(dumped(PAGE(24), 6, "rw-p 00018000 1 anonymous 40 7 15 0 5 0 -"));
	cr_assert(not(dumped(PAGE(30), 10, "")));
	cr_assert(zero(int, up_protect(r->rt, (void *)va, 10 * PAGE_SIZE, PROT_WRITE)));
	cr_assert(dumped(va, 10, "rw-p 00000000 1 anonymous 40 7 15 0 5 0 -"));
	unmap(shared, 100);
	up_object_unref(o);
	over();
}

/* The whole dump, with single spaces and without the first line. */
static void
dump_is(const char *want)
{
	static char got[8192];
	size_t n = 0;

	for (const char *t = dump(); *t != '\0'; t++) {
		if (*t != ' ' || (n > 0 && got[n - 1] != ' ' && got[n - 1] != '\n'))
			got[n++] = *t;
	}
	got[n] = '\0';
	cr_assert(zero(int, strcmp(got, want)), "it is\n%s, not\n%s", got, want);
}

/* A line of dump_is(). */
static const char *
range_line(char line[128], uintptr_t va, size_t npages, const char *rest)
{
	snprintf(line, 128, "%lx-%lx %s\n", (unsigned long)va,
		 (unsigned long)(va + npages * PAGE_SIZE), rest);
	return line;
}

Test(dump, shows_what_lies_beneath_from_front_to_back)
{
	struct up_object *snap, *o;
	char a[128], b[128], want[1024];
	uintptr_t at;
	void *p, *q;

	scene((struct rig_config){ .seed = 1 });
	cr_assert(zero(int, up_object_create_named(r->rt, "base", 16 * PAGE_SIZE, 0, &o)));
	cr_assert(zero(int, up_map(r->rt, NULL, 16 * PAGE_SIZE, RW, UP_SHARED, o, 0, &p)));
	at = (uintptr_t)p;
	advise(at, 16, UP_ADVICE_RANDOM);
	put_pages(at, 8, 100);
	cr_assert(zero(int, up_object_snapshot(r->rt, o, &snap)));
	put_pages(at, 2, 200);
	cr_assert(zero(int, up_map(r->rt, NULL, 4 * PAGE_SIZE, PROT_READ, UP_PRIVATE, o,
				   4 * PAGE_SIZE, &q)));
	/* 3: what all have in common.  4: the private mapping.  5: what it was taken from. */
	snprintf(want, sizeof want, "%s%s%s%s%s%s",
		 range_line(a, at, 16, "rw-s 00000000 1 anonymous 16 0 0 0 3 0 - base"),
		 "over - 00000000 5 anonymous 16 2 0 0 2 - -\n",
		 "over - 00000000 3 anonymous 16 8 0 0 2 - -\n",
		 range_line(b, (uintptr_t)q, 4, "r--p 00000000 4 anonymous 4 0 0 0 1 0 -"),
		 "over - 00004000 5 anonymous 16 2 0 0 2 - -\n",
		 "over - 00004000 3 anonymous 16 8 0 0 2 - -\n");
	dump_is(want);
	unmap((uintptr_t)q, 4);
	up_object_unref(snap);
	/* Nobody else sees them: one object has them all. */
	dump_is(range_line(a, at, 16, "rw-s 00000000 1 anonymous 16 8 0 0 3 0 - base"));
	cr_assert(zero(int, up_object_remove(r->rt, "base")));
	up_object_unref(o);
	over();
}

Test(dump, shows_what_children_get_and_what_they_have)
{
	char a[128], b[128], c[128], d[128], want[1024];
	struct space *sp = NULL;
	struct pager *pg;
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	pg = &r->rt->p;
	va = rig_map(r, 8 * PAGE_SIZE);
	advise(va, 8, UP_ADVICE_RANDOM);
	put_pages(va, 2, 100);
	cr_assert(zero(int, up_inherit(r->rt, (void *)va, 4 * PAGE_SIZE, UP_INHERIT_COPY)));
	snprintf(want, sizeof want, "%s%s",
		 range_line(a, va, 4, "rw-p 00000000 1 anonymous 8 2 0 0 2 0 copy"),
		 range_line(b, va + 4 * PAGE_SIZE, 4, "rw-p 00004000 1 anonymous 8 2 0 0 2 0 -"));
	dump_is(want);

	pthread_mutex_lock(&pg->map.change);
	cr_assert(zero(int, space_fork(r->rt, &pg->map, -1, &sp)));
	cr_assert(ne(ptr, sp, NULL));
	chain_thaw(pg);
	pthread_mutex_unlock(&pg->map.change);
	snprintf(want, sizeof want, "%s%s%s%schild PID -\n%s%s",
		 range_line(a, va, 4, "rw-p 00000000 1 anonymous 8 0 0 0 2 0 copy"),
		 "over - 00000000 3 anonymous 8 2 0 0 2 - -\n",
		 range_line(b, va + 4 * PAGE_SIZE, 4, "rw-p 00004000 1 anonymous 8 0 0 0 2 0 -"),
		 "over - 00004000 3 anonymous 8 2 0 0 2 - -\n",
		 range_line(c, va, 4, "rw-p 00000000 2 anonymous 4 0 0 0 1 0 copy"),
		 "over - 00000000 3 anonymous 8 2 0 0 2 - -\n");
	dump_is(want);
	atomic_store(&sp->pid, 1234);
	cr_assert(ne(ptr, strstr(dump(), "\nchild PID 1234\n"), NULL));

	pthread_mutex_lock(&pg->map.change);
	space_end(pg, sp);
	pthread_mutex_unlock(&pg->map.change);
	snprintf(want, sizeof want, "%s%s",
		 range_line(a, va, 4, "rw-p 00000000 1 anonymous 8 2 0 0 2 0 copy"),
		 range_line(d, va + 4 * PAGE_SIZE, 4, "rw-p 00004000 1 anonymous 8 2 0 0 2 0 -"));
	dump_is(want);
	over();
}

Test(dump, says_what_is_wrong)
{
	FILE *full = fopen("/dev/full", "we");

	scene((struct rig_config){ .seed = 1 });
	cr_assert(eq(int, up_map_dump(NULL, stderr), -EINVAL));
	cr_assert(eq(int, up_map_dump(r->rt, NULL), -EINVAL));
	cr_assert(rig_logged(r, "out is NULL"));
	cr_assert(ne(ptr, full, NULL));
	cr_assert(eq(int, up_map_dump(r->rt, full), -EIO));
	fclose(full);
	over();
}

/*
 * Remap
 */

static int
remap_at(uintptr_t va, size_t from, size_t to, unsigned flags, uintptr_t *at)
{
	void *p = &p;
	const int ret = up_remap(r->rt, (void *)va, from * PAGE_SIZE, to * PAGE_SIZE, flags, &p);

	cr_assert(eq(int, ret == 0, p != NULL));
	*at = (uintptr_t)p;
	return ret;
}

/* It must succeed; where the range is then. */
static uintptr_t
remap(uintptr_t va, size_t from, size_t to, unsigned flags)
{
	uintptr_t at;

	cr_assert(zero(int, remap_at(va, from, to, flags, &at)), "%s", r->log[(r->nlog + 15) % 16]);
	pager_check(r->p);
	return at;
}

static int
remap_error(uintptr_t va, size_t from, size_t to, unsigned flags)
{
	uintptr_t at;

	return remap_at(va, from, to, flags, &at);
}

/* Something that is in the way behind the range. */
static void
block(uintptr_t va, size_t npages)
{
	void *q;

	cr_assert(zero(int, up_map(r->rt, (void *)PAGE(npages), PAGE_SIZE, RW,
				   UP_PRIVATE | UP_FIXED, NULL, 0, &q)));
}

static void
gone(uintptr_t va, size_t npages)
{
	uint64_t w = 0;

	for (size_t i = 0; i < npages; i++) {
		cr_assert(eq(int, sim_state(r->pm, PAGE(i)), SIM_UNMAPPED), "page %zu", i);
		cr_assert(eq(int, rig_touch(r, 3, PAGE(i), false, &w, 0, 8), SIM_SIGSEGV));
	}
}

Test(remap, shorter_unmaps_the_end)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(100, 100, 100);
	cr_assert(eq(uptr, remap(va, 100, 40, 0), va));
	gone(PAGE(40), 60);
	check_pages(va, 40, 100);
	cr_assert(eq(u64, rig_stats(r).mapped, 40 * PAGE_SIZE));
	cr_assert(eq(u64, rig_stats(r).reserve_used, 40 * PAGE_SIZE));
	cr_assert(eq(uptr, remap(va, 40, 40, 0), va)); /* as long as it is */
	/* Of a part: a hole is left. */
	cr_assert(eq(uptr, remap(PAGE(10), 20, 5, 0), PAGE(10)));
	gone(PAGE(15), 15);
	check_pages(va, 15, 100);
	check_pages(PAGE(30), 10, 130);
	over();
}

Test(remap, longer_stays_where_it_is_if_there_is_room)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = 8 << 20, .swap_slots = 1 << 18 });
	va = map_written(100, 100, 100);
	/* Into what was given back before, then from one leaf to a tree of two levels. */
	unmap(PAGE(60), 40);
	cr_assert(eq(uptr, remap(va, 60, 100, 0), va));
	cr_assert(eq(u64, rig_stats(r).reserve_used, 100 * PAGE_SIZE));
	check_pages(va, 60, 100);
	for (size_t i = 60; i < 100; i++)
		check_zeros(PAGE(i));
	put_pages(PAGE(60), 40, 160);
	swap_out();
	cr_assert(eq(uptr, remap(va, 100, 600, 0), va));
	cr_assert(eq(uptr, remap(va, 600, 150000, 0), va));
	cr_assert(eq(u64, rig_stats(r).mapped, 150000 * PAGE_SIZE));
	cr_assert(eq(u64, rig_stats(r).reserve_used, 150000 * PAGE_SIZE));
	cr_assert(eq(u64, rig_stats(r).entries, 1));
	cr_assert(eq(u64, rig_stats(r).objects, 1));
	cr_assert(eq(int, map_lookup(&r->p->map, va)->advice, UP_ADVICE_RANDOM));
	check_pages(va, 100, 100);
	put_page(PAGE(149999), 7);
	put_page(PAGE(511), 8);
	put_page(PAGE(512), 9);
	churn();
	check_pages(va, 100, 100);
	check_page(PAGE(149999), 7);
	check_page(PAGE(511), 8);
	check_page(PAGE(512), 9);
	check_zeros(PAGE(149998));
	unmap(va, 150000);
	cr_assert(zero(u64, meta_promised()));
	cr_assert(zero(u64, rig_stats(r).reserve_used));
	over();
}

Test(remap, growing_page_by_page_costs_what_growing_at_once_does)
{
	uintptr_t va, other;
	uint64_t meta;

	scene((struct rig_config){ .seed = 1 });
	other = map_random(1500);
	meta = meta_promised();
	unmap(other, 1500);
	va = map_random(1);
	for (size_t n = 1; n < 1500; n++)
		cr_assert(eq(uptr, remap(va, n, n + 1, 0), va));
	cr_assert(eq(u64, meta_promised(), meta));
	cr_assert(eq(u64, rig_stats(r).entries, 1));
	cr_assert(eq(u64, rig_stats(r).objects, 1));
	cr_assert(eq(u64, rig_stats(r).reserve_used, 1500 * PAGE_SIZE));
	over();
}

Test(remap, without_room_behind_it_stays_as_it_is_or_moves)
{
	uintptr_t va, to;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(20, 20, 100);
	block(va, 20);
	seen();
	cr_assert(eq(int, remap_error(va, 20, 21, 0), -ENOMEM));
	cr_assert(rig_logged(r, "UP_MAYMOVE is not set"));
	expect(.limit = 0);
	cr_assert(eq(u64, rig_stats(r).mapped, 21 * PAGE_SIZE));
	cr_assert(eq(u64, rig_stats(r).reserve_used, 21 * PAGE_SIZE));
	all_are(va, 20, MAPPED);
	to = remap(va, 20, 30, UP_MAYMOVE);
	cr_assert(ne(uptr, to, va));
	gone(va, 20);
	seen();
	check_pages(to, 20, 100);
	expect(SOFT(20));
	for (size_t i = 20; i < 30; i++)
		check_zeros(to + i * PAGE_SIZE);
	cr_assert(eq(u64, rig_stats(r).mapped, 31 * PAGE_SIZE));
	cr_assert(eq(u64, rig_stats(r).reserve_used, 31 * PAGE_SIZE));
	cr_assert(eq(u64, rig_stats(r).entries, 2));
	over();
}

static void
moves_every_page(uint64_t mask)
{
	uintptr_t va, to;
	uint64_t w;

	scene((struct rig_config){ .seed = 1, .memory = 4 << 20, .services = 2, .mask = mask });
	rig_map(r, PAGE_SIZE); /* so that ours is on the second service */
	va = map_written(60, 11, 100);
	swap_out();
	sim_disk_bad(r->disk, slot_of(PAGE(10)), SWAP_READ, true);
	cr_assert(eq(int, rig_touch(r, 0, PAGE(10), false, &w, 0, 8), SIM_SIGBUS));
	put_pages(PAGE(11), 10, 111);
	clean();
	put_pages(PAGE(21), 10, 121);
	launder();
	put_pages(PAGE(31), 10, 131);
	stage();
	put_pages(PAGE(41), 10, 141);
	block(va, 60);
	all_are(PAGE(10), 1, LOST);
	all_are(PAGE(21), 10, LAUNDRY);
	cr_assert(eq(int, up_protect(r->rt, (void *)PAGE(45), 3 * PAGE_SIZE, PROT_NONE), 0));
	cr_assert(eq(int, up_protect(r->rt, (void *)PAGE(48), 3 * PAGE_SIZE, PROT_READ), 0));

	cr_assert(zero(int, remap_at(va, 60, 70, UP_MAYMOVE, &to)));
	gone(va, 60);
	va = to;
	all_are(va, 10, SWAPPED);
	all_are(PAGE(21), 10, LAUNDRY);
	cr_assert(eq(int, rig_touch(r, 0, PAGE(45), false, &w, 0, 8), SIM_SIGSEGV));
	cr_assert(eq(int, rig_touch(r, 0, PAGE(48), true, &w, 0, 8), SIM_SIGSEGV));
	check_pages(PAGE(48), 3, 148);
	check_pages(PAGE(21), 5, 121); /* while their write is in flight */
	sim_disk_release(r->disk, SWAP_WRITE);
	rig_settle(r);
	cr_assert(eq(int, up_protect(r->rt, (void *)va, 70 * PAGE_SIZE, RW), 0));
	check_pages(va, 10, 100);
	cr_assert(eq(int, rig_touch(r, 0, PAGE(10), false, &w, 0, 8), SIM_SIGBUS));
	check_pages(PAGE(11), 40, 111);
	for (size_t i = 51; i < 70; i++)
		check_zeros(PAGE(i));
	advise(PAGE(10), 1, UP_ADVICE_DONTNEED);
	put_pages(PAGE(51), 19, 151);
	put_page(PAGE(10), 110);
	churn();
	check_pages(va, 70, 100);
	over();
}

Test(remap, moves_every_page_wherever_it_is)
{
	moves_every_page(0);
}

Test(remap, moves_every_page_wherever_it_is_on_a_kernel_that_copies)
{
	moves_every_page(UP_MASK_MOVE);
}

Test(remap, of_a_page_that_is_being_read_waits_for_it)
{
	uintptr_t va, to;
	uint64_t w = 0;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(20, 20, 100);
	swap_out();
	block(va, 20);
	cr_assert(eq(int, sim_touch(r->pm, 1, PAGE(5), false, &w, 0, 8), SIM_FAULT));
	rig_step(r);
	to = remap(va, 20, 21, UP_MAYMOVE);
	/* Its thread was too late, or it was not: the page is not there any more. */
	cr_assert(not(sim_waiting(r->pm, 1)));
	cr_assert(eq(int, sim_touch(r->pm, 1, PAGE(5), false, &w, 0, 8), SIM_SIGSEGV));
	check_pages(to, 20, 100);
	over();
}

Test(remap, wakes_who_waits_at_the_new_address)
{
	struct anon *an;
	uintptr_t va, to;
	uint64_t w = 0;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(20, 20, 100);
	stage();
	block(va, 20);
	to = remap(va, 20, 21, UP_MAYMOVE);
	/* Somebody moves the page while a thread faults on it: he knows it by its address. */
	an = anon_at(to);
	cr_assert(anon_trybusy(an));
	cr_assert(eq(int, sim_touch(r->pm, 1, to, false, &w, 0, 8), SIM_FAULT));
	rig_settle(r);
	cr_assert(sim_waiting(r->pm, 1));
	page_unbusy(r->p, an, page_of(to)->shard, page_of(to)->va);
	cr_assert(not(sim_waiting(r->pm, 1)));
	check_pages(to, 20, 100);
	over();
}

Test(remap, of_a_part_takes_new_pages_from_the_end_of_the_object)
{
	uintptr_t va, a, b;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(30, 30, 100);
	a = remap(PAGE(10), 10, 15, UP_MAYMOVE); /* the middle */
	gone(PAGE(10), 10);
	check_pages(va, 10, 100);
	check_pages(PAGE(20), 10, 120);
	check_pages(a, 10, 110);
	for (size_t i = 10; i < 15; i++)
		check_zeros(a + i * PAGE_SIZE);
	put_pages(a + 10 * PAGE_SIZE, 5, 500);
	cr_assert(eq(u64, rig_stats(r).objects, 1));
	cr_assert(eq(u64, rig_stats(r).entries, 4));
	cr_assert(eq(u64, rig_stats(r).reserve_used, 35 * PAGE_SIZE));

	/* Both ends of the object are in use now: what was the front grows too. */
	b = remap(va, 10, 12, UP_MAYMOVE);
	check_pages(b, 10, 100);
	check_zeros(b + 10 * PAGE_SIZE);
	put_pages(b + 10 * PAGE_SIZE, 2, 600);
	churn();
	check_pages(a, 10, 110);
	check_pages(a + 10 * PAGE_SIZE, 5, 500);
	check_pages(b, 10, 100);
	check_pages(b + 10 * PAGE_SIZE, 2, 600);
	check_pages(PAGE(20), 10, 120);
	unmap(a, 15);
	cr_assert(eq(u64, rig_stats(r).reserve_used, 22 * PAGE_SIZE));
	unmap(b, 12);
	unmap(PAGE(20), 10);
	cr_assert(zero(u64, rig_stats(r).reserve_used));
	cr_assert(zero(u64, meta_promised()));
	over();
}

Test(remap, moves_several_mappings_together)
{
	struct up_object *o;
	uintptr_t va, to;
	void *p;

	scene((struct rig_config){ .seed = 1, .services = 3 });
	va = map_random(40);
	unmap(PAGE(10), 30);
	cr_assert(zero(int, up_object_create_anon(r->rt, 20 * PAGE_SIZE, 0, &o)));
	cr_assert(zero(int, up_map(r->rt, (void *)PAGE(10), 10 * PAGE_SIZE, RW,
				   UP_SHARED | UP_FIXED, o, 5 * PAGE_SIZE, &p)));
	cr_assert(zero(int, up_map(r->rt, (void *)PAGE(20), 20 * PAGE_SIZE, RW,
				   UP_PRIVATE | UP_FIXED | UP_NORESERVE, NULL, 0, &p)));
	put_pages(va, 40, 100);
	block(va, 40);
	to = remap(va, 40, 50, UP_MAYMOVE);
	gone(va, 40);
	check_pages(to, 40, 100);
	put_pages(to + 40 * PAGE_SIZE, 10, 140);
	churn();
	check_pages(to, 50, 100);
	cr_assert(eq(u64, rig_stats(r).entries, 4));
	/* The object's part is still the object's. */
	unmap(to, 50);
	cr_assert(zero(int, up_map(r->rt, NULL, 20 * PAGE_SIZE, RW, UP_SHARED, o, 0, &p)));
	check_pages((uintptr_t)p + 5 * PAGE_SIZE, 10, 110);
	check_zeros((uintptr_t)p);
	unmap((uintptr_t)p, 20);
	up_object_unref(o);
	over();
}

Test(remap, of_an_object_shows_its_next_pages)
{
	struct up_object *o;
	uintptr_t va;
	void *p;

	scene((struct rig_config){ .seed = 1 });
	cr_assert(zero(int, up_object_create_anon(r->rt, 40 * PAGE_SIZE, 0, &o)));
	cr_assert(zero(int, up_map(r->rt, NULL, 40 * PAGE_SIZE, RW, UP_SHARED, o, 0, &p)));
	put_pages((uintptr_t)p, 40, 100);
	unmap((uintptr_t)p, 40);
	cr_assert(zero(int,
		       up_map(r->rt, NULL, 10 * PAGE_SIZE, RW, UP_SHARED, o, 10 * PAGE_SIZE, &p)));
	va = remap((uintptr_t)p, 10, 20, UP_MAYMOVE);
	check_pages(va, 20, 110);
	cr_assert(eq(int, remap_error(va, 20, 31, UP_MAYMOVE), -EINVAL));
	cr_assert(rig_logged(r, "the object ends after 10 more pages, not 11"));
	cr_assert(zero(int, up_map(r->rt, NULL, PAGE_SIZE, RW, UP_SHARED, o, 35 * PAGE_SIZE, &p)));
	cr_assert(eq(int, remap_error(va, 20, 30, UP_MAYMOVE), -EBUSY));
	cr_assert(rig_logged(r, "mapped already"));
	va = remap(va, 20, 25, UP_MAYMOVE);
	check_pages(va, 25, 110);
	check_page((uintptr_t)p, 135);
	block(va, 25);
	unmap((uintptr_t)p, 1);
	va = remap(va, 25, 30, UP_MAYMOVE);
	check_pages(va, 30, 110);
	unmap(va, 30);
	up_object_unref(o);
	over();
}

Test(remap, of_what_is_wired_makes_it_shorter_and_not_longer)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1 });
	va = map_written(20, 20, 100);
	cr_assert(zero(int, wire(PAGE(5), 10)));
	cr_assert(eq(int, remap_error(va, 20, 30, UP_MAYMOVE), -EBUSY));
	cr_assert(rig_logged(r, "is wired"));
	cr_assert(eq(uptr, remap(PAGE(15), 5, 8, 0), PAGE(15)));
	cr_assert(eq(uptr, remap(va, 23, 10, 0), va));
	WIRED(5);
	check_pages(va, 10, 100);
	over();
}

Test(remap, that_fails_has_changed_nothing)
{
	uintptr_t va;
	uint64_t meta;

	scene((struct rig_config){ .seed = 1, .swap_slots = 128 });
	va = map_written(100, 100, 100);
	swap_out();
	cr_assert(eq(int, remap_error(va, 100, 129, 0), -ENOSPC)); /* where it is */
	cr_assert(rig_logged(r, "up_remap: no swap space for 29 pages"));
	block(va, 100);
	meta = meta_promised();
	cr_assert(eq(int, remap_error(va, 100, 129, UP_MAYMOVE), -ENOSPC)); /* or elsewhere */
	cr_assert(eq(int, remap_error(va, 100, (size_t)1 << 36, UP_MAYMOVE), -ENOMEM));
	cr_assert(eq(u64, meta_promised(), meta));
	cr_assert(eq(u64, rig_stats(r).mapped, 101 * PAGE_SIZE));
	cr_assert(eq(u64, rig_stats(r).reserve_used, 101 * PAGE_SIZE));
	cr_assert(eq(u64, rig_stats(r).entries, 2));
	all_are(va, 100, SWAPPED);
	check_pages(va, 100, 100);
	pager_check(r->p);
	over();
}

Test(remap, says_what_is_wrong)
{
	uintptr_t va;
	void *p = &p;

	scene((struct rig_config){ .seed = 1 });
	va = map_random(20);
	cr_assert(eq(int, up_remap(NULL, (void *)va, PAGE_SIZE, PAGE_SIZE, 0, &p), -EINVAL));
	cr_assert(eq(ptr, p, NULL));
	cr_assert(eq(int, up_remap(r->rt, (void *)va, PAGE_SIZE, PAGE_SIZE, 0, NULL), -EINVAL));
	cr_assert(rig_logged(r, "new_addr is NULL"));
	cr_assert(eq(int, remap_error(va + 1, 1, 2, 0), -EINVAL));
	cr_assert(eq(int, remap_error(va, 0, 2, 0), -EINVAL));
	cr_assert(eq(int, remap_error(va, 2, 0, 0), -EINVAL));
	cr_assert(rig_logged(r, "up_remap: length 0"));
	cr_assert(eq(int, remap_error(va, 1, 2, 6), -EINVAL));
	cr_assert(rig_logged(r, "unknown flags 0x6"));
	unmap(PAGE(10), 1);
	cr_assert(eq(int, remap_error(va, 20, 30, UP_MAYMOVE), -ENOMEM));
	cr_assert(eq(int, remap_error(va, 20, 5, 0), -ENOMEM));
	cr_assert(rig_logged(r, "up_remap: part of"));
	cr_assert(eq(u64, rig_stats(r).mapped, 19 * PAGE_SIZE));
	over();
}
