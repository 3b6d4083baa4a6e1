/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_worker.c: threads that serve their own faults, over the simulated kernel: what a worker does when a fault is not simply served.
 *
 * rig_try_touch() is one handler of SIGBUS, from the touch to the instruction that is done again.  What happens while such
 * a thread waits is in the pager's idle hook: rig_step() unless a test puts something else there.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>

#include "scene.h"

TestSuite(worker, .timeout = 60);

#define PAGE(i) (va + (size_t)(i)*PAGE_SIZE)
#define LOOKS_MAX 100000u /* whoever has waited so often will wait for ever */

static void
inline_scene(struct rig_config cfg)
{
	cfg.seed = 1;
	cfg.delivery = UP_DELIVER_INLINE;
	scene(cfg);
}

/* A touch, and what it finds when the handler has returned. */
static enum sim_result
touch(uintptr_t va, bool write)
{
	uint64_t w = 1;

	return rig_try_touch(r, 0, va, write, &w, 0, sizeof w);
}

static uint64_t
counted_by(bool workers, enum counter c)
{
	const struct service *s;
	uint64_t n = 0;

	for (unsigned i = 0; (s = pager_server(r->p, i)) != NULL; i++)
		n += s->worker == workers ? atomic_load(&s->count[c]) : 0;
	return n;
}

/* Nobody has a worker: all that were made are where they were borrowed from. */
static void
workers_are_back(void)
{
	const struct workers *ws = &r->p->workers;

	cr_assert(eq(uint, (unsigned)__builtin_popcountll(atomic_load(&ws->idle)),
		     atomic_load(&ws->n)));
}

/* --- what happens while somebody waits --- */

static unsigned waits, act_at;
static void (*act)(void), (*act_after)(void);

/* The services go on, and at the act_at-th time something happens before, or after. */
static void
stand_by(void *ctx)
{
	const bool now = ++waits == act_at;

	if (now && act != NULL)
		act();
	cr_assert(lt(uint, waits, LOOKS_MAX), "it waits for ever");
	rig_step(ctx);
	if (now && act_after != NULL)
		act_after();
}

/* Nobody but the thread itself does anything. */
static void
alone(void *ctx)
{
	(void)ctx;
	waits++;
	cr_assert(lt(uint, waits, LOOKS_MAX), "it waits for ever");
}

static void
meanwhile(unsigned at, void (*fn)(void))
{
	waits = 0;
	act_at = at;
	act = fn;
	act_after = NULL;
	r->p->idle = stand_by;
}

static void
as_usual(void)
{
	r->p->idle = r->backend.idle;
}

/* --- room --- */

Test(worker, without_room_a_thread_pages_out_itself)
{
	uintptr_t va;
	size_t mapped;

	inline_scene((struct rig_config){ 0 });
	sim_disk_delay(r->disk, 0);
	va = map_written(300, 200, 100);
	no_room();
	seen();
	r->p->idle = alone;
	waits = 0;
	mapped = r->p->pages.count[PAGE_MAPPED];
	for (unsigned i = 0; i < 80; i++)
		cr_assert(eq(int, touch(PAGE(200 + i), true), SIM_OK), "page %u", i);
	as_usual();
	/* More than one batch, all of it by those who needed it. */
	cr_assert(ge(u64, counted_by(true, C_STAGED), 80));
	cr_assert(ge(u64, counted_by(true, C_WRITES), 1));
	cr_assert(zero(u64, counted_by(false, C_STAGED)));
	cr_assert(zero(u64, counted_by(false, C_WRITES)));
	cr_assert(le(sz, r->p->pages.count[PAGE_MAPPED], mapped));
	workers_are_back();
	give_room();
	check_pages(va, 200, 100);
	over();
}

Test(worker, a_thread_without_room_goes_on_when_somebody_makes_some)
{
	uintptr_t va;

	inline_scene((struct rig_config){ .fault_timeout_ms = 1000 });
	va = map_written(9, 8, 100);
	launder();
	no_room();
	seen();
	meanwhile(10, give_room);
	cr_assert(eq(int, touch(PAGE(8), false), SIM_OK));
	as_usual();
	cr_assert(ge(uint, waits, 10));
	expect(ZEROS(1), .fault_waits = 1); /* however often it has looked */
	workers_are_back();
	over();
}

Test(worker, what_can_not_be_served_in_time_is_sigbus)
{
	uintptr_t va;

	inline_scene((struct rig_config){ .fault_timeout_ms = 5 });
	va = map_written(10, 8, 100);
	launder();
	no_room();
	seen();
	meanwhile(0, NULL);
	cr_assert(eq(int, worker_serve(r->p, PAGE(8), true), SERVED_LOST));
	as_usual();
	expect(.fault_sigbus = 1, .fault_waits = 1);
	cr_assert(rig_logged(r, "not served for 5 ms"));
	workers_are_back();

	/* Only that page. */
	give_room();
	sim_disk_release(r->disk, SWAP_WRITE);
	check_zeros(PAGE(9));
	lives_on(va, 8, 8, 100);
	over();
}

Test(worker, a_swapped_page_that_can_not_be_read_in_time_is_lost_and_its_slot_free)
{
	uintptr_t va;

	inline_scene((struct rig_config){ .fault_timeout_ms = 5 });
	va = map_written(10, 8, 100);
	swap_out();
	no_room();
	cr_assert(eq(sz, r->p->swap.nused, 8));
	meanwhile(0, NULL);
	cr_assert(eq(int, touch(va, false), SIM_SIGBUS));
	as_usual();
	cr_assert(eq(sz, r->p->swap.nused, 7));
	give_room();
	lives_on(va, 8, 0, 100);
	over();
}

Test(worker, when_the_kernel_says_again_a_thread_looks_again)
{
	uintptr_t va;

	inline_scene((struct rig_config){ 0 });
	va = map_random(4);
	sim_fail_nth(&r->f, 1, SIM_BIT(SIM_ZERO), -EAGAIN);
	cr_assert(eq(int, touch(va, true), SIM_OK));
	cr_assert(sim_fail_disarm(&r->f));
	expect(ZEROS(1), .fault_retries = 1);
	over();
}

Test(worker, without_metadata_a_thread_looks_again)
{
	uintptr_t va;

	inline_scene((struct rig_config){ 0 });
	va = map_random(2 * LEAF_SLOTS);
	atomic_store(&r->p->zones.leaf.fail_in, 1);
	cr_assert(eq(int, touch(va, true), SIM_OK));
	expect(ZEROS(1), .fault_waits = 1);
	atomic_store(&r->p->zones.anon.fail_in, 1);
	cr_assert(eq(int, touch(PAGE(1), true), SIM_OK));
	expect(ZEROS(1), .fault_waits = 1);
	over();
}

/* --- a page that somebody else has --- */

static void
release_reads(void)
{
	sim_disk_release(r->disk, SWAP_READ);
}

/* In a single-threaded test nobody sleeps: the thread touches again. */
Test(worker, a_thread_that_meets_a_page_being_read_touches_again)
{
	uintptr_t va;

	inline_scene((struct rig_config){ 0 });
	va = map_written(4, 4, 100);
	swap_out();
	sim_disk_hold(r->disk, SWAP_READ);
	advise(va, 4, UP_ADVICE_WILLNEED);
	rig_step(r);
	cr_assert(gt(uint, r->p->service[0]->nreads, 0));
	seen();
	cr_assert(eq(int, touch(PAGE(2), false), SIM_FAULT));
	expect(.fault_waits = 1);
	cr_assert(zero(u64, counted_by(true, C_READS)), "it must not be read twice");
	release_reads();
	check_pages(va, 4, 100);
	cr_assert(zero(u64, rig_stats(r).faults[UP_FAULT_MAJOR]));
	over();
}

Test(worker, a_busy_page_of_an_object_is_looked_at_until_it_is_not)
{
	struct up_object *o;
	uintptr_t va;

	inline_scene((struct rig_config){ .fault_timeout_ms = 1000 });
	va = map_new_object(4, &o);
	put_pages(va, 4, 100);
	swap_out();
	sim_disk_hold(r->disk, SWAP_READ);
	advise(va, 4, UP_ADVICE_WILLNEED);
	rig_step(r);
	seen();
	meanwhile(20, release_reads);
	cr_assert(eq(int, touch(PAGE(2), false), SIM_OK));
	as_usual();
	cr_assert(ge(uint, waits, 20));
	cr_assert(eq(u64, rig_stats(r).fault_waits - scene_seen.fault_waits, 1));
	check_pages(va, 4, 100);
	unmap(va, 4);
	up_object_unref(o);
	over();
}

struct sleeper {
	uintptr_t va;
	enum served served;
	atomic_bool over;
};

static void *
sleep_in_a_fault(void *ctx)
{
	struct sleeper *sl = ctx;

	sl->served = worker_serve(r->p, sl->va, false);
	atomic_store(&sl->over, true);
	return NULL;
}

Test(worker, a_thread_that_meets_a_busy_page_sleeps_until_it_is_let_go)
{
	struct sleeper sl = { 0 };
	struct anon *an;
	pthread_mutex_t *lock;
	pthread_t thread;
	uintptr_t va;

	inline_scene((struct rig_config){ 0 });
	va = map_written(4, 4, 100);
	stage();
	sl.va = va;
	an = anon_at(va);
	cr_assert(anon_trybusy(an));
	r->p->idle = NULL;
	cr_assert(zero(int, pthread_create(&thread, NULL, sleep_in_a_fault, &sl)));
	while ((atomic_load(&an->bits) & ANON_WANTED) == 0)
		sched_yield();
	/* It has the lock of its sleeping place from before it says so until it sleeps. */
	lock = &r->p->waitqs.q[__builtin_ctz(anon_place(an))].lock;
	pthread_mutex_lock(lock);
	cr_assert(not(atomic_load(&sl.over)));
	pthread_mutex_unlock(lock);
	workers_are_back(); /* what it waits for may need one */
	cr_assert(anon_unbusy(&r->p->waitqs, an));
	cr_assert(zero(int, pthread_join(thread, NULL)));
	as_usual();
	cr_assert(eq(int, sl.served, SERVED));
	check_pages(va, 4, 100);
	over();
}

/* --- what only a service can do: pages of custom pagers --- */

static unsigned nin;

static int
page_in(void *ctx, struct up_request *req)
{
	uint64_t *w = up_request_buffer(req);

	(void)ctx;
	nin++;
	for (size_t i = 0; i < up_request_length(req) / 8; i++)
		w[i] = word_of((up_request_offset(req) + i * 8) / PAGE_SIZE,
			       (unsigned)(i % (PAGE_SIZE / 8)));
	up_request_complete(req, 0);
	return 0;
}

static const struct up_pager_ops computed = { .size = sizeof computed, .page_in = page_in };

static uintptr_t custom_va; /* for what happens meanwhile */
static struct up_object *custom;

/* A private mapping of 16 pages that are computed. */
static uintptr_t
map_custom(unsigned flags)
{
	void *p;

	nin = 0;
	cr_assert(zero(int,
		       up_object_create_custom(r->rt, 16 * PAGE_SIZE, &computed, NULL, &custom)));
	cr_assert(zero(int, up_map(r->rt, NULL, 16 * PAGE_SIZE, PROT_READ | PROT_WRITE,
				   UP_PRIVATE | flags, custom, 0, &p)));
	custom_va = (uintptr_t)p;
	advise(custom_va, 16, UP_ADVICE_RANDOM);
	return custom_va;
}

/* A region that has promised itself all of the swap. */
static uintptr_t
fill_swap(size_t npages)
{
	uintptr_t va;
	void *p;

	cr_assert(zero(int, up_map(r->rt, NULL, npages * PAGE_SIZE, PROT_READ | PROT_WRITE,
				   UP_PRIVATE | UP_NORESERVE, NULL, 0, &p)));
	va = (uintptr_t)p;
	advise(va, npages, UP_ADVICE_RANDOM);
	put_pages(va, npages, 100);
	return va;
}

Test(worker, a_page_of_a_custom_pager_is_asked_for)
{
	uintptr_t va;

	inline_scene((struct rig_config){ 0 });
	va = map_custom(0);
	cr_assert(eq(int, touch(PAGE(3), false), SIM_OK));
	cr_assert(eq(uint, nin, 1));
	check_page(PAGE(3), 3);
	check_pages(va, 16, 0);
	workers_are_back();
	up_object_unref(custom);
	over();
}

Test(worker, an_overcommitted_page_that_a_service_has_no_swap_for_is_sigbus)
{
	uintptr_t va, other;

	inline_scene((struct rig_config){ .swap_slots = 64 });
	va = map_custom(UP_NORESERVE);
	check_page(va, 0); /* the leaf is there: a worker could not even look without */
	other = fill_swap(63);
	seen();
	meanwhile(0, NULL);
	cr_assert(eq(int, worker_serve(r->p, PAGE(5), false), SERVED_LOST));
	as_usual();
	expect(.fault_sigbus = 1);
	cr_assert(eq(uint, nin, 1), "what is read has to go somewhere");
	cr_assert(rig_logged(r, "overcommitted, and the swap is full"));
	cr_assert(eq(int, where(PAGE(5)), LOST));
	cr_assert(eq(u64, rig_stats(r).reserve_used, 64 * PAGE_SIZE));

	advise(other, 2, UP_ADVICE_DONTNEED);
	check_page(PAGE(6), 6);
	cr_assert(eq(int, touch(PAGE(5), false), SIM_SIGBUS));
	advise(PAGE(5), 1, UP_ADVICE_DONTNEED);
	check_page(PAGE(5), 5);
	check_pages(other + 2 * PAGE_SIZE, 61, 102);
	up_object_unref(custom);
	over();
}

Test(worker, to_lose_a_page_for_want_of_swap_waits_for_metadata)
{
	uintptr_t va;

	inline_scene((struct rig_config){ .swap_slots = 64 });
	va = map_custom(UP_NORESERVE);
	check_page(va, 0);
	fill_swap(63);
	seen();
	meanwhile(0, NULL);
	atomic_store(&r->p->zones.anon.fail_in, 1); /* the one that is to say LOST */
	cr_assert(eq(int, worker_serve(r->p, PAGE(5), false), SERVED_LOST));
	as_usual();
	cr_assert(zero(uint, atomic_load(&r->p->zones.anon.fail_in)));
	expect(.fault_sigbus = 1);
	cr_assert(eq(int, where(PAGE(5)), LOST));
	cr_assert(eq(u64, rig_stats(r).lost, PAGE_SIZE));
	workers_are_back();
	up_object_unref(custom);
	over();
}

static uintptr_t swap_filler;

static void
discard_some(void)
{
	advise(swap_filler, 1, UP_ADVICE_DONTNEED);
}

Test(worker, an_overcommitted_page_that_is_lost_in_time_gives_its_promise_back)
{
	uintptr_t va;

	inline_scene((struct rig_config){ .fault_timeout_ms = 5 });
	va = fill_swap(8);
	swap_out();
	no_room();
	cr_assert(eq(u64, rig_stats(r).reserve_used, 8 * PAGE_SIZE));
	meanwhile(0, NULL);
	cr_assert(eq(int, touch(va, false), SIM_SIGBUS));
	as_usual();
	cr_assert(eq(u64, rig_stats(r).reserve_used, 7 * PAGE_SIZE));
	give_room();
	check_pages(PAGE(1), 7, 101);
	unmap(va, 8);
	cr_assert(zero(u64, rig_stats(r).reserve_used));
	over();
}

Test(worker, an_overcommitted_page_is_not_lost_if_there_is_swap_by_then)
{
	uintptr_t va;

	inline_scene((struct rig_config){ .swap_slots = 64 });
	va = map_custom(UP_NORESERVE);
	check_page(va, 0);
	swap_filler = fill_swap(63);
	/* The service has to be asked first: at its first turn there is room again. */
	meanwhile(1, discard_some);
	cr_assert(eq(int, touch(PAGE(5), false), SIM_OK));
	as_usual();
	check_page(PAGE(5), 5);
	cr_assert(zero(u64, rig_stats(r).fault_sigbus));
	up_object_unref(custom);
	over();
}

Test(worker, without_metadata_promised_an_overcommitted_page_is_sigbus)
{
	uint64_t max, used;
	uintptr_t va;

	inline_scene((struct rig_config){ 0 });
	va = map_custom(UP_NORESERVE);
	resv_get(&r->p->resv_meta, &max, &used);
	cr_assert(resv_try(&r->p->resv_meta, max - used));
	seen();
	cr_assert(eq(int, worker_serve(r->p, PAGE(5), false), SERVED_LOST));
	expect(.fault_sigbus = 1);
	cr_assert(rig_logged(r, "no metadata left within the limit"));
	cr_assert(eq(int, touch(PAGE(5), false), SIM_SIGBUS));
	resv_give(&r->p->resv_meta, max - used);
	/* No anon says so: the entry does.  Its other pages can be had, and it itself once it is discarded. */
	check_page(PAGE(6), 6);
	advise(PAGE(5), 1, UP_ADVICE_DONTNEED);
	check_page(PAGE(5), 5);
	up_object_unref(custom);
	over();
}

/* Somebody else asks, and gets it; and it is on its way out again. */
static void
bring_in_and_stage(void)
{
	discard_some();
	check_page(custom_va + 5 * PAGE_SIZE, 5);
	advise(custom_va + 5 * PAGE_SIZE, 1, UP_ADVICE_COLD);
	stage();
	cr_assert(eq(int, where(custom_va + 5 * PAGE_SIZE), STAGED));
}

Test(worker, an_overcommitted_page_that_somebody_else_has_brought_in_is_not_lost)
{
	uintptr_t va;

	inline_scene((struct rig_config){ .swap_slots = 64 });
	va = map_custom(UP_NORESERVE);
	check_page(va, 0);
	swap_filler = fill_swap(63);
	meanwhile(1, NULL);
	act_after = bring_in_and_stage; /* the service has said no by then */
	cr_assert(eq(int, worker_serve(r->p, PAGE(5), false), SERVED));
	as_usual();
	cr_assert(zero(u64, rig_stats(r).fault_sigbus));
	check_page(PAGE(5), 5);
	up_object_unref(custom);
	over();
}

static void
protect_all(void)
{
	cr_assert(zero(int, up_protect(r->rt, (void *)custom_va, 16 * PAGE_SIZE, PROT_NONE)));
}

static void
unmap_all(void)
{
	unmap(custom_va, 16);
}

Test(worker, what_is_protected_while_a_service_is_asked_is_sigsegv)
{
	uintptr_t va;

	inline_scene((struct rig_config){ 0 });
	va = map_custom(0);
	meanwhile(1, protect_all);
	cr_assert(eq(int, touch(PAGE(5), false), SIM_SIGSEGV));
	as_usual();
	cr_assert(zero(uint, nin));
	cr_assert(zero(u64, rig_stats(r).fault_sigbus));
	workers_are_back();
	cr_assert(zero(int, up_protect(r->rt, (void *)va, 16 * PAGE_SIZE, PROT_READ)));
	check_page(PAGE(5), 5);
	up_object_unref(custom);
	over();
}

Test(worker, what_is_unmapped_while_a_service_is_asked_is_not_ours)
{
	uintptr_t va;

	inline_scene((struct rig_config){ 0 });
	va = map_custom(0);
	meanwhile(1, unmap_all);
	cr_assert(eq(int, worker_serve(r->p, PAGE(5), false), SERVED_NOT_OURS));
	as_usual();
	cr_assert(zero(uint, nin));
	cr_assert(eq(int, worker_serve(r->p, PAGE(5), false), SERVED_NOT_OURS));
	workers_are_back();
	up_object_unref(custom);
	over();
}

/* --- the end --- */

static void
stop_workers(void)
{
	workers_stop(r->p);
}

Test(worker, a_thread_that_waits_for_room_gives_up_when_the_runtime_goes)
{
	uintptr_t va;

	inline_scene((struct rig_config){ .fault_timeout_ms = 1000 });
	va = map_written(10, 8, 100);
	launder();
	no_room();
	meanwhile(10, stop_workers);
	/* It is still mapped: whoever touches it comes again until it is not. */
	cr_assert(eq(int, worker_serve(r->p, PAGE(8), true), SERVED));
	as_usual();
	cr_assert(lt(uint, waits, 20));
	cr_assert(eq(int, where(PAGE(8)), NOWHERE));
	cr_assert(zero(u64, rig_stats(r).fault_sigbus));
	workers_are_back();
	workers_wait(r->p); /* returns at once */
	give_room();
	over();
}

Test(worker, a_thread_that_asks_gives_up_when_the_runtime_goes)
{
	uintptr_t va;

	inline_scene((struct rig_config){ .swap_slots = 64 });
	va = map_custom(UP_NORESERVE);
	check_page(va, 0);
	fill_swap(63);
	meanwhile(1, stop_workers);
	cr_assert(eq(int, worker_serve(r->p, PAGE(5), false), SERVED));
	as_usual();
	cr_assert(zero(u64, rig_stats(r).fault_sigbus));
	cr_assert(eq(int, where(PAGE(5)), NOWHERE));
	workers_are_back();
	up_object_unref(custom);
	over();
}

Test(worker, who_touches_when_the_runtime_goes_waits_for_its_end)
{
	uintptr_t va;

	inline_scene((struct rig_config){ 0 });
	va = map_custom(0);
	stop_workers();
	meanwhile(0, NULL);
	cr_assert(eq(int, worker_serve(r->p, PAGE(5), false), SERVED));
	cr_assert(eq(uint, waits, 1));
	meanwhile(1, unmap_all);
	cr_assert(eq(int, worker_serve(r->p, PAGE(5), false), SERVED_NOT_OURS));
	as_usual();
	cr_assert(zero(uint, nin));
	up_object_unref(custom);
	over();
}

/* --- the disk --- */

/* Page `at` of `n` can not be had, the others can. */
static void
only_lost(uintptr_t va, unsigned n, unsigned at, uint64_t number)
{
	cr_assert(eq(int, where(PAGE(at)), LOST));
	cr_assert(eq(u64, rig_stats(r).lost, PAGE_SIZE));
	for (unsigned i = 0; i < n; i++) {
		if (i != at)
			check_page(PAGE(i), number + i);
	}
	cr_assert(eq(int, touch(PAGE(at), true), SIM_SIGBUS));
	advise(PAGE(at), 1, UP_ADVICE_DONTNEED);
	cr_assert(zero(u64, rig_stats(r).lost));
	check_zeros(PAGE(at));
	workers_are_back();
}

Test(worker, a_read_error_loses_that_page_and_no_other)
{
	uintptr_t va;
	slot_t bad;

	inline_scene((struct rig_config){ 0 });
	va = map_written(16, 16, 100);
	swap_out();
	bad = slot_of(PAGE(5));
	sim_disk_bad(r->disk, bad, SWAP_READ, true);
	seen();
	cr_assert(eq(int, touch(PAGE(5), false), SIM_SIGBUS));
	/* Once more before it is given up. */
	expect(.swap_reads = 2, .swap_read_bytes = PAGE_SIZE, .swap_read_errors = 2,
	       .fault_sigbus = 1, .bad_slots = 1);
	cr_assert(eq(u64, counted_by(true, C_READ_ERRORS), 2));
	cr_assert(rig_logged(r, "read error 5, content lost"));
	only_lost(va, 16, 5, 100);
	cr_assert(not(runmap_is_free(&r->p->swap.slots, bad)), "a bad slot is not for use");
	over();
}

Test(worker, a_read_error_that_passes_costs_a_second_read)
{
	uintptr_t va;

	inline_scene((struct rig_config){ 0 });
	va = map_written(4, 4, 100);
	swap_out();
	seen();
	sim_fail_nth(&r->f, 1, SIM_BIT(SIM_READ), -EIO);
	cr_assert(eq(int, touch(va, false), SIM_OK));
	cr_assert(sim_fail_disarm(&r->f));
	expect(MAJOR(1), .swap_reads = 2, .swap_read_bytes = PAGE_SIZE, .swap_read_errors = 1);
	check_pages(va, 4, 100);
	over();
}

Test(worker, a_checksum_error_loses_that_page_and_no_other)
{
	uintptr_t va;

	inline_scene((struct rig_config){ 0 });
	va = map_written(16, 16, 100);
	swap_out();
	cr_assert(sim_disk_corrupt(r->disk, slot_of(PAGE(5)), SIM_FLIP));
	seen();
	cr_assert(eq(int, touch(PAGE(5), false), SIM_SIGBUS));
	expect(READ(1, 1), .checksum_errors = 1, .fault_sigbus = 1, .bad_slots = 1);
	cr_assert(rig_logged(r, "checksum mismatch, content lost"));
	only_lost(va, 16, 5, 100);
	over();
}
