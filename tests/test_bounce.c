/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_bounce.c: large requests go through buffers, over the simulated kernel and disk: when there are such buffers, what is in them,
 * and when they go.
 */
#include <errno.h>
#include <pthread.h>

#include "scene.h"

#define PAGE(i) (va + (size_t)(i)*PAGE_SIZE)
#define MEMORY (8u << 20)
#define BUFFER ((size_t)CLUSTER_MAX * PAGE_SIZE)
#define N (4 * CLUSTER_MAX)

static struct bounce *
b(void)
{
	return &r->p->bounce;
}

static unsigned
in_use(void)
{
	const unsigned all = b()->bytes > 0 ? (1u << b()->n) - 1 : 0;

	return (unsigned)__builtin_popcount(all & ~b()->there);
}

/* While everything was being pushed out there was no room for them; now somebody asks again. */
static void
ask(void)
{
	for (unsigned i = 0; i < 32; i++) {
		atomic_store(&b()->wanted, true);
		rig_step(r);
	}
}

/* Pages with content, all in swap, and buffers, if there are to be any. */
static uintptr_t
set(struct rig_config cfg, size_t n)
{
	uintptr_t va;

	cfg.seed = 1;
	if (cfg.memory == 0)
		cfg.memory = MEMORY;
	scene(cfg);
	va = map_written(n, n, 100);
	swap_out();
	if (cfg.buffers > 0) {
		ask();
		cr_assert(eq(sz, b()->bytes, cfg.buffers * BUFFER));
	}
	seen();
	return va;
}

Test(bounce, buffers_are_made_when_they_would_be_used_and_are_charged)
{
	uintptr_t va;

	scene((struct rig_config){ .seed = 1, .memory = MEMORY, .buffers = 2 });
	va = map_written(2 * MEMORY / PAGE_SIZE, MEMORY / PAGE_SIZE / 2, 100);
	rig_settle(r);
	cr_assert(zero(sz, b()->bytes));
	/* What does not fit is written in large requests. */
	for (size_t i = MEMORY / PAGE_SIZE / 2; i < MEMORY / PAGE_SIZE / 2 * 3; i += N) {
		put_pages(PAGE(i), N, 100 + i);
		rig_settle(r);
	}
	cr_assert(eq(sz, b()->bytes, 2 * BUFFER));
	cr_assert(zero(uint, in_use()));
	pager_check(r->p); /* the budget is what there is */
	check_pages(va, MEMORY / PAGE_SIZE / 2 * 3, 100);
	pager_check(r->p);
	over();
}

Test(bounce, there_are_none_through_the_page_cache_nor_in_little_memory)
{
	set((struct rig_config){ 0 }, N);
	cr_assert(zero(sz, b()->bytes));
	cr_assert(not(b()->wanted));
	over();

	scene((struct rig_config){ .seed = 1, .memory = MEMORY, .buffers = 2 });
	b()->least = MEMORY / PAGE_SIZE;
	(void)map_written(N, N, 100);
	swap_out();
	ask();
	cr_assert(zero(sz, b()->bytes));
	over();
}

Test(bounce, what_is_read_through_one_gets_to_its_pages)
{
	const uintptr_t va = set((struct rig_config){ .buffers = 2 }, N);
	uint64_t w;

	advise(va, N, UP_ADVICE_SEQUENTIAL);
	sim_disk_hold(r->disk, SWAP_READ);
	cr_assert(eq(int, sim_touch(r->pm, 1, PAGE(0), false, &w, 0, 8), SIM_FAULT));
	rig_step(r);
	rig_step(r);
	cr_assert(ge(uint, in_use(), 1));
	sim_disk_release(r->disk, SWAP_READ);
	rig_settle(r);
	cr_assert(zero(uint, in_use()));
	check_pages(va, N, 100);
	over();
}

/* Reads of the first so many pages, and the disk answers none. */
static void
start_reads(uintptr_t va, size_t n)
{
	sim_disk_hold(r->disk, SWAP_READ);
	advise(va, n, UP_ADVICE_WILLNEED);
	for (unsigned i = 0; i < 8; i++)
		rig_step(r);
	cr_assert(eq(uint, in_use(), 1));
}

static void
end_reads(void)
{
	sim_disk_release(r->disk, SWAP_READ);
	rig_settle(r);
}

Test(bounce, more_requests_than_buffers)
{
	const uintptr_t va = set((struct rig_config){ .buffers = 1 }, N);

	start_reads(va, N);
	cr_assert(ge(uint, r->p->service[0]->nreads, 2));
	end_reads();
	check_pages(va, N, 100);
	over();
}

Test(bounce, what_is_written_is_what_it_was_when_the_write_began)
{
	const uintptr_t va = set((struct rig_config){ .buffers = 2 }, N);

	check_pages(va, CLUSTER_MAX, 100);
	put_pages(va, CLUSTER_MAX, 300);
	launder();
	cr_assert(ge(uint, in_use(), 1));
	/* The program changes them while they are written. */
	put_pages(va, CLUSTER_MAX, 500);
	sim_disk_release(r->disk, SWAP_WRITE);
	rig_settle(r);
	cr_assert(zero(uint, in_use()));
	check_pages(va, CLUSTER_MAX, 500);
	swap_out();
	check_pages(va, CLUSTER_MAX, 500);
	check_pages(PAGE(CLUSTER_MAX), N - CLUSTER_MAX, 100 + CLUSTER_MAX);
	over();
}

Test(bounce, a_read_that_fails_leaves_nothing_behind)
{
	const uintptr_t va = set((struct rig_config){ .buffers = 2 }, N);

	/* Of a cluster one slot can not be read: the others can, and who asks for that one is told. */
	sim_disk_bad(r->disk, slot_of(PAGE(5)), SWAP_READ, true);
	advise(va, N, UP_ADVICE_SEQUENTIAL);
	check_page(PAGE(0), 100);
	rig_settle(r);
	cr_assert(zero(uint, in_use()));
	for (unsigned i = 0; i < N; i++) {
		if (i != 5)
			check_page(PAGE(i), 100 + i);
	}
	expect_sigbus(PAGE(5));
	cr_assert(zero(uint, in_use()));
	over();
}

Test(bounce, a_write_that_fails_is_done_again)
{
	const uintptr_t va = set((struct rig_config){ .buffers = 2 }, N);

	check_pages(va, N, 100);
	put_pages(va, N, 300);
	sim_fail_rate(&r->f, SIM_WRITE, -EIO, 300);
	for (unsigned i = 0; i < 3; i++)
		swap_out();
	sim_fail_rate(&r->f, SIM_WRITE, -EIO, 0);
	cr_assert(gt(u64, rig_stats(r).swap_write_errors, 0));
	cr_assert(zero(uint, in_use()));
	check_pages(va, N, 300);
	over();
}

Test(bounce, damage_is_found)
{
	const uintptr_t va = set((struct rig_config){ .buffers = 2 }, N);

	cr_assert(sim_disk_corrupt(r->disk, slot_of(PAGE(3)), SIM_FLIP));
	advise(va, N, UP_ADVICE_SEQUENTIAL);
	check_page(PAGE(0), 100);
	rig_settle(r);
	cr_assert(eq(u64, rig_stats(r).checksum_errors, 1));
	lives_on(va, N, 3, 100);
	over();
}

Test(bounce, they_go_when_the_limit_sinks_and_none_is_in_use)
{
	const uintptr_t va = set((struct rig_config){ .buffers = 2 }, N);
	const size_t used = r->p->budget.used;

	b()->least = MEMORY / PAGE_SIZE / 2;
	cr_assert(zero(int, up_runtime_set_limit(r->rt, MEMORY / 4, 1000)));
	cr_assert(zero(sz, b()->bytes));
	cr_assert(le(sz, r->p->budget.used, used - 2 * BUFFER));
	/* And are not made again. */
	check_pages(va, N, 100);
	put_pages(va, N, 300);
	swap_out();
	ask();
	cr_assert(zero(sz, b()->bytes));
	/* Until there is room. */
	cr_assert(zero(int, up_runtime_set_limit(r->rt, MEMORY, 1000)));
	check_pages(va, N, 300);
	put_pages(va, N, 500);
	swap_out();
	ask();
	cr_assert(eq(sz, b()->bytes, 2 * BUFFER));
	check_pages(va, N, 500);
	over();
}

Test(bounce, they_leave_when_the_last_in_use_is_back_and_are_taken_by_nobody_meanwhile)
{
	const uintptr_t va = set((struct rig_config){ .buffers = 2 }, N);
	const size_t used = r->p->budget.used;

	start_reads(va, CLUSTER_MAX);
	for (unsigned i = 0; i < 2; i++) {
		cr_assert(not(bounce_shrink(r->p)));
		cr_assert(eq(sz, b()->bytes, 2 * BUFFER));
	}
	advise(PAGE(CLUSTER_MAX), CLUSTER_MAX, UP_ADVICE_WILLNEED);
	for (unsigned i = 0; i < 8; i++)
		rig_step(r);
	cr_assert(eq(uint, r->p->service[0]->nreads, 2));
	cr_assert(eq(uint, in_use(), 1));
	end_reads();
	cr_assert(zero(sz, b()->bytes));
	cr_assert(zero(uint, b()->there));
	cr_assert(le(sz, r->p->budget.used, used + 2 * CLUSTER_MAX * PAGE_SIZE - 2 * BUFFER));
	check_pages(va, N, 100);
	ask();
	cr_assert(eq(sz, b()->bytes, 2 * BUFFER));
	over();
}

Test(bounce, a_limit_that_sinks_while_one_is_in_use)
{
	const uintptr_t va = set((struct rig_config){ .buffers = 2 }, N);

	b()->least = MEMORY / PAGE_SIZE / 2;
	start_reads(va, CLUSTER_MAX);
	cr_assert(zero(int, up_runtime_set_limit(r->rt, MEMORY / 4, 1000)));
	cr_assert(eq(sz, b()->bytes, 2 * BUFFER));
	end_reads();
	cr_assert(zero(sz, b()->bytes));
	check_pages(va, N, 100);
	over();
}

Test(bounce, they_make_room_for_what_is_wired)
{
	const uintptr_t va = set((struct rig_config){ .buffers = 2 }, N);

	b()->least = frames_most(r->p) - N / 2;
	cr_assert(zero(int, up_wire(r->rt, (void *)va, N / 4 * PAGE_SIZE)));
	rig_step(r);
	cr_assert(eq(sz, b()->bytes, 2 * BUFFER));
	/* What they take themselves does not count. */
	cr_assert(zero(int, up_wire(r->rt, (void *)PAGE(N / 4), 3 * N / 4 * PAGE_SIZE)));
	cr_assert(eq(sz, b()->bytes, 2 * BUFFER));
	b()->least += 2 * BUFFER / PAGE_SIZE;
	rig_step(r);
	cr_assert(zero(sz, b()->bytes));
	check_pages(va, N, 100);
	cr_assert(zero(int, up_unwire(r->rt, (void *)va, N * PAGE_SIZE)));
	over();
}

Test(bounce, room_is_gathered_and_goes_back_when_nobody_asks_any_more)
{
	const uintptr_t va = set((struct rig_config){ .buffers = 2 }, N);
	size_t part;

	cr_assert(bounce_shrink(r->p));
	squeeze(CLUSTER_MAX);
	hold_frames(true);
	atomic_store(&b()->wanted, true);
	rig_step(r);
	part = b()->bytes;
	cr_assert(part > 0 && part <= BUFFER / 4, "%zu", part);
	cr_assert(zero(ptr, b()->base));
	rig_step(r);
	cr_assert(eq(sz, b()->bytes, part));
	rig_later(2000000000);
	rig_step(r);
	cr_assert(zero(sz, b()->bytes));
	give_room();
	/* The same when there is not memory enough any more. */
	squeeze(CLUSTER_MAX);
	hold_frames(true);
	atomic_store(&b()->wanted, true);
	rig_step(r);
	cr_assert(gt(sz, b()->bytes, 0));
	b()->least = MEMORY / PAGE_SIZE;
	rig_step(r);
	cr_assert(zero(sz, b()->bytes));
	give_room();
	check_pages(va, N, 100);
	over();
}

Test(bounce, what_prefault_promises_leaves_room_for_them)
{
	size_t fits;

	scene((struct rig_config){ .seed = 1, .memory = MEMORY, .buffers = 2 });
	fits = frames_mappable(r->p);
	ask();
	cr_assert(eq(sz, b()->bytes, 2 * BUFFER));
	cr_assert(le(sz, fits, frames_mappable(r->p) + 16)); /* what depends on it, too */
	over();
}

Test(bounce, metadata_comes_first)
{
	const uintptr_t va = set((struct rig_config){ .buffers = 2 }, N);
	const size_t most = frames_most(r->p), used = r->p->budget.used;

	b()->least = most / 2;
	/* As if so much were wired that what is left is for faults. */
	atomic_fetch_add(&r->p->nwired, most - FRAMES_MIN);
	cr_assert(frames_shrink(r->p));
	cr_assert(zero(sz, b()->bytes));
	cr_assert(le(sz, r->p->budget.used, used - 2 * BUFFER));
	ask();
	cr_assert(zero(sz, b()->bytes));
	atomic_fetch_sub(&r->p->nwired, most - FRAMES_MIN);
	check_pages(va, N, 100);
	over();
}

/* --- in earnest: real threads, while they come and go --- */

static atomic_bool hammer_stop;
static atomic_uint hammered[4]; /* how often a thread has had one */

/* Writes through a buffer, if there is one, in which nobody else's bytes may be. */
static void *
hammer(void *arg)
{
	static char page[4][16][PAGE_SIZE];
	const unsigned me = (unsigned)(uintptr_t)arg;

	for (unsigned turn = 0; !atomic_load(&hammer_stop); turn++) {
		struct request req = { .io = { .op = SWAP_WRITE, .n = 16, .niov = 1 } };
		const char mark = (char)(me * 64 + turn % 64);

		memset(page[me], mark, sizeof page[me]);
		req.io.iov[0] = (struct iovec){ .iov_base = page[me], .iov_len = sizeof page[me] };
		bounce_begin(r->p, &req);
		if (req.bounce == NULL)
			continue;
		atomic_fetch_add(&hammered[me], 1);
		for (size_t i = 0; i < sizeof page[me]; i += 512)
			cr_assert(eq(chr, ((char *)req.io.iov[0].iov_base)[i], mark));
		bounce_end(r->p, &req);
	}
	return NULL;
}

Test(bounce, they_come_and_go_under_threads_that_use_them)
{
	pthread_t t[4];
	unsigned gone = 0;
	uint64_t end;

	(void)set((struct rig_config){ .buffers = 2 }, N);
	test_clock = NULL; /* of one thread */
	end = now_ns() + UINT64_C(30000000000);
	atomic_store(&hammer_stop, false);
	for (unsigned i = 0; i < ARRAY_SIZE(t); i++)
		cr_assert(zero(int, pthread_create(&t[i], NULL, hammer, (void *)(uintptr_t)i)));
	for (bool enough = false; !enough;) {
		cr_assert(lt(u64, now_ns(), end), "gone %u times, used %u, %u, %u, %u", gone,
			  hammered[0], hammered[1], hammered[2], hammered[3]);
		enough = gone >= 100;
		for (unsigned i = 0; i < ARRAY_SIZE(t); i++)
			enough = enough && atomic_load(&hammered[i]) >= 100;
		bounce_make(r->p);
		if (now_ns() % 4 == 0) {
			while (atomic_load(&b()->bytes) == 2 * BUFFER)
				(void)bounce_shrink(r->p);
			cr_assert(zero(uint, atomic_load(&b()->there)));
			gone++;
		}
	}
	atomic_store(&hammer_stop, true);
	for (unsigned i = 0; i < ARRAY_SIZE(t); i++)
		cr_assert(zero(int, pthread_join(t[i], NULL)));
	bounce_check(r->p);
	over();
}
