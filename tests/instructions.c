/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * instructions.c: faults of each kind, one after the other, for check_instructions.py to count under callgrind.
 *
 *	set the scene (not counted) --> fault, by a simulated thread --> serve it (counted) --> is it there?
 *
 * A run of faults ends in a dump whose name says of what and of how many: "soft service 256".  Delivered
 *
 *	service		the turn of a service that has one message, and all that a turn looks at
 *	batch		the same of one with 16 messages
 *	inline		worker_serve()
 *
 * and for a major fault also the turn in which its read is done.  Nothing else may happen meanwhile: no read-ahead, no pageout, no
 * leaf made; the counters are looked at to be sure.
 */
#include <stdio.h>
#include <stdlib.h>
#include <valgrind/callgrind.h>

#include "rig.h"

#define ROUNDS 8 /* of 16 faults */
#define BATCH 16u
#define TURNS_MAX 16 /* to serve one, or a batch */

static struct rig *r;
static struct pager *p;
static uintptr_t page[BATCH]; /* of this round, neighbours in an order that is no stream */

static void __attribute__((noreturn)) fail(const char *what)
{
	fprintf(stderr, "instructions: %s\n", what);
	abort();
}

/* --- what is counted --- */

static void __attribute__((noinline)) turn(void)
{
	CALLGRIND_TOGGLE_COLLECT;
	service_step(p->service[0], 0);
	CALLGRIND_TOGGLE_COLLECT;
}

static void __attribute__((noinline)) serve_own(uintptr_t va, bool write)
{
	enum served served;

	CALLGRIND_TOGGLE_COLLECT;
	served = worker_serve(p, va, write);
	CALLGRIND_TOGGLE_COLLECT;
	if (served != SERVED)
		fail("a worker did not serve");
}

/* --- scenes --- */

/* As in scene.h: let pageout believe that it has to, and that there are younger ones than all that there are. */
static size_t
press(void)
{
	struct budget *b = &p->budget;
	const size_t room = b->limit - atomic_load(&b->used);

	if (!budget_charge(b, room))
		fail("the budget is not what it was");
	p->pages.policy.queue[PQ_MAIN].n += 64;
	return room;
}

static void
relax(size_t room)
{
	p->pages.policy.queue[PQ_MAIN].n -= 64;
	budget_uncharge(&p->budget, room);
}

static void
fill(void)
{
	for (unsigned i = 0; i < BATCH; i++)
		rig_put(r, page[i], page[i]);
}

static void
stage(void)
{
	const size_t room = press();

	rig_step(r);
	relax(room);
}

static void
swap_out(void)
{
	static frame_t f[4096];
	const size_t room = press();
	unsigned n = 0, got;

	for (unsigned i = 0; i < 8; i++) {
		rig_step(r);
		rig_settle(r);
	}
	/* Those that are clean now stay until somebody needs their frames. */
	while (n < ARRAY_SIZE(f) && (got = frames_obtain(p, 1, f + n)) > 0)
		n += got;
	relax(room);
	frames_release(p, f, n);
	rig_settle(r);
}

/* The threads that write while their pages are copied. */
static unsigned nwriters, writers;

static void
write_during_copy(void *ctx, uintptr_t va, size_t n)
{
	uint64_t word = 1;

	(void)ctx;
	(void)n;
	for (unsigned i = 0; i < BATCH && nwriters < writers; i++) {
		if (page[i] >= va && page[i] < va + n * PAGE_SIZE)
			sim_touch(r->pm, nwriters++, page[i], true, &word, 0, sizeof word);
	}
}

/* --- faults --- */

enum kind { ZERO, SOFT, MAJOR, WP, KINDS };
enum delivery { SERVICE, BATCHED, INLINE, DELIVERIES };

static const char *const kind_name[] = { "zero", "soft", "major", "write-protect" };
static const char *const delivery_name[] = { "service", "batch", "inline" };
static const enum up_fault_kind counter[] = { UP_FAULT_ZERO, UP_FAULT_SOFT, UP_FAULT_MAJOR,
					      UP_FAULT_WP };

static void
prepare(enum kind k, unsigned n)
{
	switch (k) {
	case ZERO:
		return;
	case SOFT:
		fill();
		stage();
		return;
	case MAJOR:
		fill();
		swap_out();
		return;
	default:
		fill();
		nwriters = 0;
		writers = n;
		sim_on_copy(r->pm, write_during_copy, NULL);
		stage();
		sim_on_copy(r->pm, NULL, NULL);
		return;
	}
}

static bool
waiting(unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		if (sim_waiting(r->pm, i))
			return true;
	}
	return false;
}

/* Pages [at, at + n) of the round. */
static void
faults(enum kind k, enum delivery d, unsigned at, unsigned n)
{
	uint64_t word = 0;

	for (unsigned i = 0; i < n && k != WP; i++) {
		if (sim_touch(r->pm, i, page[at + i], false, &word, 0, sizeof word) != SIM_FAULT)
			fail("a page is there already");
	}
	if (d == INLINE) {
		serve_own(page[at], false);
		return;
	}
	for (unsigned i = 0; i < TURNS_MAX && waiting(n); i++)
		turn();
	if (waiting(n))
		fail("a fault is not served");
}

static void
run(enum kind k, enum delivery d)
{
	const unsigned n = d == BATCHED ? BATCH : 1;
	const size_t length = (size_t)ROUNDS * LEAF_SLOTS * PAGE_SIZE;
	struct up_stats before, after;
	uintptr_t region;
	unsigned served = 0;
	char name[64];

	r = rig_up(&(struct rig_config){
		.memory = (size_t)64 << 20,
		.seed = 1,
		.delivery = d == INLINE ? UP_DELIVER_INLINE : UP_DELIVER_SERVICE,
		.mask = k == WP ? UP_MASK_MOVE : 0,
	});
	p = r->p;
	sim_disk_delay(r->disk, 0);
	region = rig_map(r, length);
	/* No stream is to be seen in the order of the touches. */
	if (up_advise(r->rt, (void *)region, length, UP_ADVICE_RANDOM) != 0)
		fail("no advice is taken");
	for (unsigned round = 0; round < ROUNDS; round++) {
		const uintptr_t leaf = region + (uintptr_t)round * LEAF_SLOTS * PAGE_SIZE;

		rig_put(r, leaf, 1);
		for (unsigned i = 0; i < BATCH; i++)
			page[i] = leaf + (uintptr_t)(64 + i * 5 % BATCH) * PAGE_SIZE;
		/* With one write-protected page a turn, it is another each time. */
		for (unsigned at = 0; at < BATCH; at += n) {
			if (at == 0 || k == WP) {
				prepare(k, n);
				before = rig_stats(r);
			}
			faults(k, d, at, n);
			served += n;
			after = rig_stats(r);
			if (after.faults[counter[k]] - before.faults[counter[k]] !=
			    (k == WP ? n : at + n))
				fail("a fault was of another kind");
		}
		if (after.pages_staged != before.pages_staged ||
		    after.readahead_pages != before.readahead_pages ||
		    after.zero_ahead_pages != before.zero_ahead_pages)
			fail("more was done than asked for");
	}
	snprintf(name, sizeof name, "%s %s %u", kind_name[k], delivery_name[d], served);
	CALLGRIND_DUMP_STATS_AT(name);
	rig_down(r);
}

/* A program has threads, and locks cost more in one that has. */
static void *
other(void *lock)
{
	pthread_mutex_lock(lock);
	return NULL;
}

int
main(void)
{
	pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	pthread_t thread;

	pthread_mutex_lock(&lock);
	if (pthread_create(&thread, NULL, other, &lock) != 0)
		fail("no thread");
	for (unsigned k = 0; k < KINDS; k++) {
		for (unsigned d = 0; d < DELIVERIES; d++) {
			/* A thread that serves itself waits for the copy, and finds the page out: a soft fault. */
			if (k != WP || d != INLINE)
				run((enum kind)k, (enum delivery)d);
		}
	}
	pthread_mutex_unlock(&lock);
	pthread_join(thread, NULL);
	return 0;
}
