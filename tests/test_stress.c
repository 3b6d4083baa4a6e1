/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_stress.c: threads on the real kernel: the mill of stress.c in several sizes, and the
 * interleavings that chance finds too seldom, one by one.
 *
 * Every thread has a post of the watch: whoever hangs ends the test with the state of all.
 */
#include "assertions.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "delivery.h"
#include "stress.h"

#define PAGE ((size_t)UP_PAGE_SIZE)
#define WORDS (PAGE / 8)
#define RW (PROT_READ | PROT_WRITE)
#define THREADS_MAX 8

TestSuite(stress, .timeout = STRESS_SANITIZED ? 280 : 120);

/* --- rig --- */

static struct watch watch;
static struct up_runtime *rt;
static atomic_bool stop;
static pthread_t thread[THREADS_MAX];
static unsigned nthreads;

static void
rig_up(size_t memory, unsigned services)
{
	const struct up_config cfg = { .memory_limit = memory,
				       .service_threads = services,
				       .delivery = test_delivery(),
				       .compression = test_compression() };
	const int r = up_runtime_create(&rt, &cfg);

	if (r == -EPERM || r == -ENOSYS)
		cr_skip_test("userfaultfd is not allowed here");
	cr_assert(eq(int, r, 0));
	touch_init();
	watch_start(&watch, rt, THREADS_MAX + 1, "this test");
}

/* The post of the test's own thread. */
static struct post *
main_post(void)
{
	return &watch.post[THREADS_MAX];
}

static void
rig_down(void)
{
	post_step(main_post(), "up_runtime_destroy", NULL, 0);
	up_runtime_destroy(rt);
	post_step(main_post(), NULL, NULL, 0);
	watch.rt = NULL;
	watch_stop(&watch);
}

static void
spawn(void *(*body)(void *), void *arg)
{
	cr_assert(lt(uint, nthreads, THREADS_MAX));
	cr_assert(eq(int, start_thread(&thread[nthreads++], body, arg), 0));
}

static void
join_all(void)
{
	post_step(main_post(), "waiting for the threads", NULL, 0);
	atomic_store(&stop, true);
	for (unsigned i = 0; i < nthreads; i++)
		pthread_join(thread[i], NULL);
	nthreads = 0;
	post_step(main_post(), NULL, NULL, 0);
}

static uint64_t
deadline(unsigned seconds)
{
	return stress_now() + seconds * UINT64_C(1000000000);
}

static char *
map_some(size_t npages)
{
	void *p;

	cr_assert(eq(int, up_map(rt, NULL, npages * PAGE, RW, UP_PRIVATE, NULL, 0, &p), 0));
	return p;
}

static uint64_t *
page_at(char *base, size_t i)
{
	return (uint64_t *)(base + i * PAGE);
}

/* Content that no other page has had. */
static void
fill(char *base, size_t from, size_t n, uint64_t salt)
{
	for (size_t i = from; i < from + n; i++) {
		uint64_t *p = page_at(base, i);

		for (size_t w = 0; w < WORDS; w++)
			p[w] = stress_mix(salt << 32 | i) + w;
	}
}

static bool
holds(const uint64_t *p, size_t i, uint64_t salt)
{
	for (size_t w = 0; w < WORDS; w++) {
		if (p[w] != stress_mix(salt << 32 | i) + w)
			return false;
	}
	return true;
}

static struct up_stats
stats(void)
{
	struct up_stats st;

	cr_assert(eq(int, up_stats_get(rt, &st, sizeof st), 0));
	return st;
}

/* --- the mill --- */

static void
mill(unsigned threads, unsigned services, size_t memory, uint64_t seed)
{
	const struct stress cfg = { .seconds = 3,
				    .threads = threads,
				    .services = services,
				    .memory = memory,
				    .seed = seed };
	struct stress_result res;

	rig_up(memory, services); /* skips where there is no userfaultfd */
	rig_down();
	stress_run(&cfg, &res);
	cr_assert(gt(u64, res.st.faults[UP_FAULT_MAJOR], 0));
	cr_assert(gt(u64, res.st.pages_out, 0));
	cr_assert(eq(u64, res.st.fault_sigbus, 0));
}

Test(stress, everything_at_once_with_one_service)
{
	mill(6, 1, UP_MEMORY_LIMIT_MIN, 11);
}

Test(stress, everything_at_once_with_two_services)
{
	mill(5, 2, (size_t)3 << 20, 12);
}

Test(stress, everything_at_once_with_four_services_in_the_least_memory)
{
	mill(8, 4, UP_MEMORY_LIMIT_MIN, 13);
}

Test(stress, everything_at_once_with_room_for_half)
{
	mill(4, 1, (size_t)12 << 20, 14);
}

/* --- the library's own callers --- */

static void *paged;
static size_t paged_pages;
static _Atomic uint64_t handled;

/* Touches paged memory, as handlers of programs that keep their heap there do. */
static void
on_signal(int sig)
{
	const size_t i = stress_mix(atomic_fetch_add(&handled, 1)) % paged_pages;

	(void)sig;
	atomic_fetch_add((_Atomic uint64_t *)page_at(paged, i), 1);
}

static void *
call_everything(void *arg)
{
	struct post *post = &watch.post[(uintptr_t)arg];
	unsigned char vec[64];
	struct up_stats st;
	void *p;

	while (!atomic_load(&stop)) {
		post_step(post, "calls under signals", NULL, 0);
		if (up_map(rt, NULL, 64 * PAGE, RW, UP_PRIVATE, NULL, 0, &p) != 0)
			continue;
		memset(p, 1, 20 * PAGE);
		up_advise(rt, p, 40 * PAGE, UP_ADVICE_COLD);
		up_protect(rt, p, 8 * PAGE, PROT_READ);
		up_residency(rt, p, 64 * PAGE, vec);
		up_advise(rt, p, 8 * PAGE, UP_ADVICE_DONTNEED);
		up_stats_get(rt, &st, sizeof st);
		up_unmap(rt, p, 64 * PAGE);
		/* What the handlers want is out of memory as often as can be. */
		up_advise(rt, paged, paged_pages * PAGE, UP_ADVICE_COLD);
	}
	post_step(post, NULL, NULL, 0);
	return NULL;
}

/*
 * A handler runs while its thread is inside a call, and waits for a page: were the call to hold a
 * lock that the pager needs to bring it in, both would wait for ever.
 */
Test(stress, a_signal_handler_may_touch_paged_memory_during_a_call)
{
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	const uint64_t end = deadline(3);
	uint64_t sum = 0;

	rig_up(UP_MEMORY_LIMIT_MIN, 1);
	sigaction(SIGUSR1, &sa, NULL);
	paged_pages = 400;
	paged = map_some(paged_pages);
	fill(paged, 0, paged_pages, 0);
	for (size_t i = 0; i < paged_pages; i++)
		*page_at(paged, i) = 0;
	for (uintptr_t i = 0; i < 2; i++)
		spawn(call_everything, (void *)i);
	while (stress_now() < end) {
		post_step(main_post(), "sending signals", NULL, 0);
		for (unsigned i = 0; i < nthreads; i++)
			pthread_kill(thread[i], SIGUSR1);
		sched_yield();
	}
	join_all();
	for (size_t i = 0; i < paged_pages; i++)
		sum += *page_at(paged, i);
	cr_assert(gt(u64, sum, 0));
	cr_assert(eq(u64, sum, atomic_load(&handled)));
	rig_down();
}

Test(stress, residency_may_be_written_into_the_pages_it_is_about)
{
	const size_t n = 600;
	unsigned char *vec;
	char *base;

	rig_up(UP_MEMORY_LIMIT_MIN, 1);
	base = map_some(n);
	for (unsigned round = 0; round < 30; round++) {
		fill(base, 0, n, round);
		/* The vector ends up in pages that have long left memory. */
		vec = (unsigned char *)page_at(base, round * 7 % 400);
		post_step(main_post(), "up_residency", vec, n);
		cr_assert(eq(int, up_residency(rt, base, n * PAGE, vec), 0));
		for (size_t i = 0; i < n; i++)
			cr_assert(ne(uint, vec[i], 0), "page %zu has content", i);
	}
	rig_down();
}

Test(stress, statistics_may_be_written_into_paged_memory)
{
	const size_t n = 600;
	struct up_stats *st;
	char *base;

	rig_up(UP_MEMORY_LIMIT_MIN, 1);
	base = map_some(n);
	fill(base, 0, n, 1);
	st = (struct up_stats *)page_at(base, 3);
	post_step(main_post(), "up_stats_get", st, 1);
	cr_assert(eq(int, up_stats_get(rt, st, sizeof *st), 0));
	cr_assert(gt(u64, st->pages_out, 0));
	rig_down();
}

/* --- more than fits anywhere --- */

#define CROWD 300

static char *crowd_base;
static atomic_uint crowd_ready;
static atomic_bool crowd_go;

static void *
crowd_member(void *arg)
{
	const size_t me = (uintptr_t)arg;

	atomic_fetch_add(&crowd_ready, 1);
	while (!atomic_load(&crowd_go))
		sched_yield();
	for (unsigned round = 0; round < 4; round++)
		fill(crowd_base, me * 8, 8, round);
	for (size_t i = 0; i < 8; i++) {
		if (!holds(page_at(crowd_base, me * 8 + i), me * 8 + i, 3))
			watch_fail(&watch, "page %zu of thread %zu is wrong", i, me);
	}
	return NULL;
}

/* More faults than the pager has places to park them: some are dropped and must come again. */
Test(stress, more_threads_than_parking_places_all_get_their_pages)
{
	pthread_t crowd[CROWD];
	pthread_attr_t attr;

	rig_up(UP_MEMORY_LIMIT_MIN, 1);
	crowd_base = map_some(CROWD * 8);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, (size_t)128 << 10);
	for (uintptr_t i = 0; i < CROWD; i++)
		cr_assert(eq(int, pthread_create(&crowd[i], &attr, crowd_member, (void *)i), 0));
	pthread_attr_destroy(&attr);
	while (atomic_load(&crowd_ready) < CROWD)
		sched_yield();
	atomic_store(&crowd_go, true);
	for (unsigned i = 0; i < CROWD; i++) {
		post_step(main_post(), "waiting for a thread of the crowd", NULL, i);
		pthread_join(crowd[i], NULL);
	}
	rig_down();
}

/* --- what goes away under those who use it --- */

static char *shared_base;
static size_t shared_pages;

static void *
touch_until_segv(void *arg)
{
	struct post *post = &watch.post[(uintptr_t)arg];
	uint64_t n = (uintptr_t)arg, v;

	for (;;) {
		n = stress_mix(n);
		post_step(post, "touching until it is gone", page_at(shared_base, n % shared_pages),
			  1);
		switch (touch_read(page_at(shared_base, n % shared_pages), &v)) {
		case 0:
			post_step(post, NULL, NULL, 0);
			return NULL;
		case -1:
			watch_fail(&watch, "SIGBUS, not SIGSEGV");
		default:
			break;
		}
	}
}

Test(stress, threads_that_touch_pages_while_the_runtime_is_destroyed_get_SIGSEGV)
{
	for (unsigned round = 0; round < 12; round++) {
		const uint64_t end = stress_now() + 30000000;

		rig_up(UP_MEMORY_LIMIT_MIN, 1 + round % 3);
		shared_pages = 900;
		shared_base = map_some(shared_pages);
		fill(shared_base, 0, shared_pages, round);
		for (uintptr_t i = 0; i < 4; i++)
			spawn(touch_until_segv, (void *)i);
		while (stress_now() < end)
			sched_yield();
		post_step(main_post(), "up_runtime_destroy under touches", NULL, 0);
		watch.rt = NULL;
		up_runtime_destroy(rt);
		post_step(main_post(), "waiting for SIGSEGV everywhere", NULL, 0);
		for (unsigned i = 0; i < nthreads; i++)
			pthread_join(thread[i], NULL);
		nthreads = 0;
		post_step(main_post(), NULL, NULL, 0);
		watch_stop(&watch);
	}
}

/* All that the pages of a region had is given back, whatever was under way with them. */
static void
until_nothing_is_left(void)
{
	const uint64_t end = deadline(STEP_SECONDS / 2);
	struct up_stats st;

	do {
		st = stats();
		cr_assert(stress_now() < end,
			  "%llu bytes resident, %llu staged, %llu swapped, %llu promised",
			  (unsigned long long)st.resident, (unsigned long long)st.staged,
			  (unsigned long long)st.swapped, (unsigned long long)st.reserve_used);
		sched_yield();
	} while (st.resident + st.staged + st.swapped + st.reserve_used + st.objects > 0);
}

Test(stress, unmapping_right_after_writing_leaves_neither_page_nor_slot)
{
	static const enum up_advice advice[] = { UP_ADVICE_COLD, UP_ADVICE_WILLNEED,
						 UP_ADVICE_SEQUENTIAL };
	const uint64_t end = deadline(3);

	rig_up(UP_MEMORY_LIMIT_MIN, 2);
	for (uint64_t round = 0; stress_now() < end; round++) {
		const size_t n = 300 + round % 500;
		char *base = map_some(n);

		post_step(main_post(), "fill, advise, unmap", base, n);
		fill(base, 0, n, round);
		cr_assert(eq(int, up_advise(rt, base, n * PAGE, advice[round % 3]), 0));
		/* Half first: the writes and reads under way straddle the cut. */
		cr_assert(eq(int, up_unmap(rt, base + n / 2 * PAGE, (n - n / 2) * PAGE), 0));
		if (round % 2)
			cr_assert(holds(page_at(base, n / 3), n / 3, round), "page %zu", n / 3);
		cr_assert(eq(int, up_unmap(rt, base, n / 2 * PAGE), 0));
		if (round % 8 == 0)
			until_nothing_is_left();
	}
	until_nothing_is_left();
	rig_down();
}

/* --- objects that wander --- */

static struct up_object *object;
static _Atomic uintptr_t object_at;
static atomic_uint moves;

static void *
follow(void *arg)
{
	struct post *post = &watch.post[(uintptr_t)arg];
	uint64_t n = (uintptr_t)arg, v;

	while (!atomic_load(&stop)) {
		const unsigned before = atomic_load(&moves);
		const uintptr_t at = atomic_load(&object_at);
		size_t i;
		int r;

		n = stress_mix(n);
		i = n % shared_pages;
		post_step(post, "following the object", (void *)(at + i * PAGE), 1);
		r = touch_read((void *)(at + i * PAGE), &v);
		/* Even, and the same before and after: it was mapped there all the time. */
		if (before % 2 == 1 || atomic_load(&moves) != before)
			continue;
		if (r != 1)
			watch_fail(&watch, "page %zu at %#lx: signal", i,
				   (unsigned long)(at + i * PAGE));
		if (v != stress_mix(UINT64_C(7) << 32 | i))
			watch_fail(&watch, "page %zu at %#lx holds %#lx", i,
				   (unsigned long)(at + i * PAGE), (unsigned long)v);
	}
	post_step(post, NULL, NULL, 0);
	return NULL;
}

Test(stress, an_object_keeps_its_pages_while_it_is_unmapped_under_faults)
{
	const uint64_t end = deadline(4);
	unsigned places = 0;
	char *room;
	void *p;

	rig_up(UP_MEMORY_LIMIT_MIN, 3);
	shared_pages = 700;
	/* Addresses that are free, for two places that overlap. */
	room = mmap(NULL, 2 * shared_pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cr_assert(ne(ptr, room, MAP_FAILED));
	cr_assert(eq(int, up_object_create_anon(rt, shared_pages * PAGE, 0, &object), 0));
	cr_assert(eq(int, up_map(rt, NULL, shared_pages * PAGE, RW, UP_SHARED, object, 0, &p), 0));
	fill(p, 0, shared_pages, 7);
	atomic_store(&object_at, (uintptr_t)p);
	for (uintptr_t i = 0; i < 4; i++)
		spawn(follow, (void *)i);
	munmap(room, 2 * shared_pages * PAGE);
	while (stress_now() < end) {
		/* Another address each time, for what remembers the old one to be wrong. */
		char *before = p,
		     *hint = room + (atomic_load(&moves) % 4) * (shared_pages / 2) * PAGE;

		post_step(main_post(), "moving the object", p, shared_pages);
		atomic_fetch_add(&moves, 1);
		/* In two cuts, the second of which meets pages that are staged already. */
		cr_assert(eq(int, up_unmap(rt, (char *)p + 200 * PAGE, 300 * PAGE), 0));
		cr_assert(eq(int, up_unmap(rt, p, shared_pages * PAGE), 0));
		cr_assert(eq(int,
			     up_map(rt, hint, shared_pages * PAGE, RW, UP_SHARED, object, 0, &p),
			     0));
		places += p != before;
		atomic_store(&object_at, (uintptr_t)p);
		atomic_fetch_add(&moves, 1);
		for (size_t i = 0; i < shared_pages; i += 1 + i % 7)
			cr_assert(holds(page_at(p, i), i, 7), "page %zu", i);
	}
	join_all();
	for (size_t i = 0; i < shared_pages; i++)
		cr_assert(holds(page_at(p, i), i, 7), "page %zu", i);
	cr_assert(eq(int, up_unmap(rt, p, shared_pages * PAGE), 0));
	up_object_unref(object);
	until_nothing_is_left();
	rig_down();
	cr_assert(gt(uint, places, 1));
}

/* --- discarding what others write --- */

#define CELLS 700

static _Atomic uint64_t written[CELLS]; /* the last value that was certainly stored */

/* Counts each page's word up, and fills the others to have them written out. */
static void *
count_up(void *arg)
{
	struct post *post = &watch.post[(uintptr_t)arg];
	uint64_t n = (uintptr_t)arg, value[CELLS] = { 0 };

	while (!atomic_load(&stop)) {
		const size_t i = stress_mix(++n) % (CELLS / 2) * 2 + (uintptr_t)arg;
		uint64_t *p = page_at(shared_base, i);

		post_step(post, "counting up", p, 1);
		__atomic_store_n(p, ++value[i], __ATOMIC_RELEASE);
		atomic_store(&written[i], value[i]);
	}
	post_step(post, NULL, NULL, 0);
	return NULL;
}

/*
 * What was stored before the discard began must not be seen after it: not out of swap, a staged
 * frame, or a write in flight.
 */
Test(stress, discarded_content_does_not_come_back_under_writers)
{
	const uint64_t end = deadline(4);
	uint64_t n = 99, discards = 0;

	rig_up(UP_MEMORY_LIMIT_MIN, 2);
	shared_pages = CELLS;
	shared_base = map_some(CELLS);
	for (uintptr_t i = 0; i < 2; i++)
		spawn(count_up, (void *)i);
	while (stress_now() < end) {
		uint64_t before[64];
		size_t first, len;

		n = stress_mix(n);
		first = n % CELLS;
		len = 1 + (n >> 32) % 64;
		len = len < CELLS - first ? len : CELLS - first;
		post_step(main_post(), "discarding", page_at(shared_base, first), len);
		if (n % 3 == 0)
			up_advise(rt, page_at(shared_base, first), len * PAGE,
				  n % 2 ? UP_ADVICE_WILLNEED : UP_ADVICE_COLD);
		for (size_t i = 0; i < len; i++)
			before[i] = atomic_load(&written[first + i]);
		cr_assert(eq(int,
			     up_advise(rt, page_at(shared_base, first), len * PAGE,
				       UP_ADVICE_DONTNEED),
			     0));
		for (size_t i = 0; i < len; i++) {
			const uint64_t v =
				__atomic_load_n(page_at(shared_base, first + i), __ATOMIC_ACQUIRE);

			cr_assert(
				v == 0 || v > before[i],
				"page %zu holds %llu; %llu had been stored before it was discarded",
				first + i, (unsigned long long)v, (unsigned long long)before[i]);
		}
		discards++;
	}
	join_all();
	cr_assert(gt(u64, discards, 100));
	rig_down();
}

/* --- nothing but read-ahead and cold pages --- */

static void *
verify_around(void *arg)
{
	struct post *post = &watch.post[(uintptr_t)arg];
	size_t i = (uintptr_t)arg * 100;

	while (!atomic_load(&stop)) {
		i = (i + 1) % shared_pages;
		post_step(post, "verifying", page_at(shared_base, i), 1);
		if (!holds(page_at(shared_base, i), i, 5))
			watch_fail(&watch, "page %zu at %p is wrong", i,
				   (void *)page_at(shared_base, i));
	}
	post_step(post, NULL, NULL, 0);
	return NULL;
}

Test(stress, advice_never_changes_what_streams_of_readers_see)
{
	static const enum up_advice advice[] = { UP_ADVICE_WILLNEED, UP_ADVICE_COLD,
						 UP_ADVICE_WILLNEED, UP_ADVICE_SEQUENTIAL,
						 UP_ADVICE_RANDOM,   UP_ADVICE_NORMAL };
	const uint64_t end = deadline(4);
	unsigned char vec[64];
	uint64_t n = 5;

	rig_up((size_t)3 << 20, 2);
	shared_pages = 2000;
	shared_base = map_some(shared_pages);
	fill(shared_base, 0, shared_pages, 5);
	for (uintptr_t i = 0; i < 4; i++)
		spawn(verify_around, (void *)i);
	while (stress_now() < end) {
		size_t first;

		n = stress_mix(n);
		first = n % (shared_pages - 64) / 16 * 16;
		post_step(main_post(), "advising", page_at(shared_base, first), 64);
		cr_assert(eq(int,
			     up_advise(rt, page_at(shared_base, first), 64 * PAGE, advice[n % 6]),
			     0));
		cr_assert(
			eq(int, up_residency(rt, page_at(shared_base, first), 64 * PAGE, vec), 0));
		for (unsigned i = 0; i < 64; i++)
			cr_assert(ne(uint, vec[i], 0), "page %zu has content", first + i);
	}
	join_all();
	cr_assert(gt(u64, stats().readahead_pages, 0));
	rig_down();
}

/* --- promises --- */

#define STRICT_PAGES 500
#define LOOSE_PAGES 900

static char *strict, *loose;

static void *
use_strict(void *arg)
{
	struct post *post = &watch.post[(uintptr_t)arg];
	uint64_t round = 0;

	for (; !atomic_load(&stop); round++) {
		post_step(post, "filling what was promised", strict, STRICT_PAGES);
		fill(strict, 0, STRICT_PAGES, round);
		post_step(post, "verifying what was promised", strict, STRICT_PAGES);
		for (size_t i = 0; i < STRICT_PAGES; i++) {
			if (!holds(page_at(strict, i), i, round))
				watch_fail(&watch, "page %zu of round %lu is wrong", i,
					   (unsigned long)round);
		}
	}
	post_step(post, NULL, NULL, 0);
	return NULL;
}

/* Takes what is left, and more: SIGBUS is the answer then. */
static void *
use_loose(void *arg)
{
	struct post *post = &watch.post[(uintptr_t)arg];
	uint64_t v, refused = 0;

	while (!atomic_load(&stop)) {
		for (size_t i = 0; i < LOOSE_PAGES; i++) {
			post_step(post, "overcommitting", page_at(loose, i), 1);
			if (touch_write(page_at(loose, i), stress_mix(i)) == -1)
				refused++;
			else if (touch_read(page_at(loose, i), &v) != 1 || v != stress_mix(i))
				watch_fail(&watch, "page %zu of the overcommitted region is wrong",
					   i);
		}
		/* Discarding gives back what was taken, and heals. */
		post_step(post, "discarding what is overcommitted", loose, LOOSE_PAGES);
		if (up_advise(rt, loose, LOOSE_PAGES * PAGE, UP_ADVICE_DONTNEED) != 0)
			watch_fail(&watch, "up_advise");
	}
	if (refused == 0)
		watch_fail(&watch, "nothing was refused: not a test of anything");
	post_step(post, NULL, NULL, 0);
	return NULL;
}

Test(stress, what_is_reserved_never_pays_for_what_is_overcommitted)
{
	const struct up_config cfg = { .memory_limit = UP_MEMORY_LIMIT_MIN,
				       .service_threads = 2,
				       .swap_size = (STRICT_PAGES + 300) * PAGE };
	const uint64_t end = deadline(4);
	void *p;
	int r;

	r = up_runtime_create(&rt, &cfg);
	if (r == -EPERM || r == -ENOSYS)
		cr_skip_test("userfaultfd is not allowed here");
	cr_assert(eq(int, r, 0));
	touch_init();
	watch_start(&watch, rt, THREADS_MAX + 1, "this test");
	strict = map_some(STRICT_PAGES);
	cr_assert(
		eq(int,
		   up_map(rt, NULL, LOOSE_PAGES * PAGE, RW, UP_PRIVATE | UP_NORESERVE, NULL, 0, &p),
		   0));
	loose = p;
	spawn(use_strict, (void *)0);
	spawn(use_loose, (void *)1);
	while (stress_now() < end) {
		const struct up_stats st = stats();

		post_step(main_post(), "looking at the reserve", NULL, 0);
		cr_assert(le(u64, st.reserve_used, st.reserve_max));
		cr_assert(le(u64, st.used_max, st.limit));
		sched_yield();
	}
	join_all();
	rig_down();
}

Test(stress, what_is_mapped_can_be_unmapped_when_no_metadata_is_left)
{
	/* The second kind promises no metadata for pages, and so takes the last of it. */
	static const unsigned kinds[] = { UP_PRIVATE, UP_PRIVATE | UP_NORESERVE };
	static void *piece[20000];
	unsigned n = 0;

	rig_up(UP_MEMORY_LIMIT_MIN, 1);
	for (unsigned k = 0; k < 2; k++) {
		int r = 0;

		while (n < 20000 && r == 0) {
			post_step(main_post(), "mapping until there is no room", NULL, n);
			r = up_map(rt, NULL, 3 * PAGE, RW, kinds[k], NULL, 0, &piece[n]);
			if (r == 0 && k == 0)
				fill(piece[n], 0, 3, n);
			n += r == 0;
		}
		cr_assert(eq(int, r, -ENOMEM), "%u mappings", n);
	}
	/* To cut one there is no room; to take it away none is needed. */
	for (unsigned i = 0; i < n; i++) {
		post_step(main_post(), "unmapping without room", piece[i], 3);
		cr_assert(eq(int, up_unmap(rt, piece[i], 3 * PAGE), 0), "mapping %u of %u", i, n);
	}
	until_nothing_is_left();
	rig_down();
}

/* --- a sparse giant --- */

#define GIANT ((size_t)1 << 40)
#define GIANT_THREADS 4
#define GIANT_TOUCHES 60

static char *giant;

/* Touch pages far apart in a share of the giant, verify, discard: nodes come and go. */
static void *
roam(void *arg)
{
	struct post *post = &watch.post[(uintptr_t)arg];
	const size_t share = GIANT / GIANT_THREADS;
	char *const base = giant + (uintptr_t)arg * share;
	uint64_t n = (uintptr_t)arg;

	while (!atomic_load(&stop)) {
		uint64_t *p[GIANT_TOUCHES];

		for (unsigned i = 0; i < GIANT_TOUCHES; i++) {
			n = stress_mix(n);
			p[i] = (uint64_t *)(base + n % (share / PAGE) * PAGE);
			post_step(post, "touching the giant", p[i], 1);
			p[i][i] = n;
			p[i][511] = i;
		}
		for (unsigned i = 0; i < GIANT_TOUCHES; i++) {
			if (p[i][511] != i || p[i][i] == 0)
				watch_fail(&watch, "the page at %p is wrong", (void *)p[i]);
		}
		post_step(post, "discarding a share of the giant", base, share / PAGE);
		if (up_advise(rt, base, share, UP_ADVICE_DONTNEED) != 0)
			watch_fail(&watch, "up_advise");
		if (p[0][0] != 0)
			watch_fail(&watch, "a discarded page is not zero");
	}
	post_step(post, NULL, NULL, 0);
	return NULL;
}

Test(stress, a_sparse_terabyte_is_pruned_while_others_grow_it)
{
	const uint64_t end = deadline(3);
	uint64_t before;
	void *p;

	rig_up((size_t)16 << 20, 2);
	before = stats().metadata;
	cr_assert(eq(int, up_map(rt, NULL, GIANT, RW, UP_PRIVATE | UP_NORESERVE, NULL, 0, &p), 0));
	giant = p;
	for (uintptr_t i = 0; i < GIANT_THREADS; i++)
		spawn(roam, (void *)i);
	while (stress_now() < end) {
		post_step(main_post(), "letting them roam", NULL, 0);
		cr_assert(eq(u64, stats().fault_sigbus, 0));
		sched_yield();
	}
	join_all();
	cr_assert(eq(int, up_unmap(rt, giant, GIANT), 0));
	until_nothing_is_left();
	/* The table of pages does not shrink: it stands for the frames, not for the giant. */
	cr_assert(le(u64, stats().metadata, before + ((size_t)1 << 20)));
	rig_down();
}

/* --- system calls on what goes away --- */

static void *
read_until_efault(void *arg)
{
	struct post *post = &watch.post[(uintptr_t)arg];
	const int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	uint64_t n = (uintptr_t)arg;

	for (;;) {
		ssize_t r;

		n = stress_mix(n);
		post_step(post, "read() until it is gone", page_at(shared_base, n % shared_pages),
			  3);
		r = read(zero, (char *)page_at(shared_base, n % shared_pages) + 100, 2 * PAGE);
		if (r < 0 && errno == EFAULT)
			break;
		/* At the last page, or at the edge of what is gone, the call comes back short. */
		if (r <= 0)
			watch_fail(&watch, "read: %zd, %s", r, strerror(errno));
	}
	close(zero);
	post_step(post, NULL, NULL, 0);
	return NULL;
}

Test(stress, a_system_call_on_pages_that_are_unmapped_under_it_is_EFAULT)
{
	for (unsigned round = 0; round < 20; round++) {
		const uint64_t end = stress_now() + 20000000;

		rig_up(UP_MEMORY_LIMIT_MIN, 1 + round % 2);
		if ((up_features(rt) & UP_MASK_KERNEL_FAULTS) == 0)
			cr_skip_test("faults from inside the kernel are not allowed here");
		shared_pages = 700;
		/* Three more: a read of the last page must not run into a neighbour. */
		shared_base = map_some(shared_pages + 3);
		fill(shared_base, 0, shared_pages, round);
		for (uintptr_t i = 0; i < 4; i++)
			spawn(read_until_efault, (void *)i);
		while (stress_now() < end)
			sched_yield();
		post_step(main_post(), "up_unmap under system calls", shared_base, shared_pages);
		cr_assert(eq(int, up_unmap(rt, shared_base, (shared_pages + 3) * PAGE), 0));
		join_all();
		until_nothing_is_left();
		rig_down();
	}
}

/* --- processes --- */

/* The exit status of a child, which has STEP_SECONDS. */
static int
outcome(pid_t pid)
{
	int status;

	post_step(main_post(), "waiting for a child", NULL, 0);
	while (waitpid(pid, &status, 0) < 0)
		cr_assert(eq(int, errno, EINTR));
	post_step(main_post(), NULL, NULL, 0);
	return status;
}

static void *
touch_for_ever(void *arg)
{
	uint64_t n = (uintptr_t)arg;

	for (;;) {
		n = stress_mix(n);
		*page_at(shared_base, n % shared_pages) = n;
	}
	return NULL;
}

Test(stress, a_process_may_exit_without_destroying_anything)
{
	for (unsigned round = 0; round < 10; round++) {
		pid_t pid;

		rig_up(UP_MEMORY_LIMIT_MIN, 1);
		rig_down();
		pid = fork();
		if (pid == 0) {
			const struct up_config cfg = { .memory_limit = UP_MEMORY_LIMIT_MIN };
			const struct timespec a_while = { .tv_nsec = 20000000 };
			pthread_t t;
			void *p;

			alarm(STEP_SECONDS);
			if (up_runtime_create(&rt, &cfg) != 0)
				_exit(2);
			shared_pages = 900;
			if (up_map(rt, NULL, shared_pages * PAGE, RW, UP_PRIVATE, NULL, 0, &p) != 0)
				_exit(3);
			shared_base = p;
			for (uintptr_t i = 0; i < 4; i++)
				pthread_create(&t, NULL, touch_for_ever, (void *)i);
			nanosleep(&a_while, NULL);
			_exit(7);
		}
		watch_start(&watch, NULL, THREADS_MAX + 1, "this test");
		cr_assert(eq(int, outcome(pid), 7 << 8));
		watch_stop(&watch);
	}
}

Test(stress, a_forked_child_may_have_a_runtime_of_its_own)
{
	char *base;

	rig_up(UP_MEMORY_LIMIT_MIN, 2);
	shared_pages = 900;
	base = map_some(shared_pages);
	shared_base = base;
	fill(base, 0, shared_pages, 5);
	spawn(verify_around, (void *)0);
	for (unsigned round = 0; round < 10; round++) {
		const pid_t pid = fork();

		if (pid == 0) {
			const struct up_config cfg = { .memory_limit = UP_MEMORY_LIMIT_MIN };
			struct up_runtime *mine;
			void *p;

			alarm(STEP_SECONDS);
			if (up_runtime_create(&mine, &cfg) != 0 ||
			    up_map(mine, NULL, 900 * PAGE, RW, UP_PRIVATE, NULL, 0, &p) != 0)
				_exit(2);
			fill(p, 0, 900, round);
			for (size_t i = 0; i < 900; i++) {
				if (!holds(page_at(p, i), i, round))
					_exit(3);
			}
			up_runtime_destroy(mine);
			up_runtime_destroy(rt); /* the parent's: does nothing */
			_exit(0);
		}
		cr_assert(eq(int, outcome(pid), 0), "round %u", round);
	}
	join_all();
	for (size_t i = 0; i < shared_pages; i++)
		cr_assert(holds(page_at(base, i), i, 5), "page %zu", i);
	rig_down();
}
