/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_sim.c: the simulated kernel and disk do what the other tests rely on.
 *
 * Every trap that a sim sets for the pager is sprung here once, by hand.  The broken contracts
 * end in abort(): they run in a child process whose last words are compared, since "it died" alone
 * would also pass when it died of something else.
 */
#include "assertions.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "heap_arena.h"
#include "pmap/sim.h"
#include "swap/sim.h"

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif

#define RW (PROT_READ | PROT_WRITE)
#define NPAGES 200u
#define NFRAMES 96u

TestSuite(sim, .timeout = 60);

/* A region of NPAGES on shard 0, a disk, an engine that watches shard 0. */
static struct sim_faults faults;
static struct pmap *pm;
static struct sim_disk *disk;
static struct io_engine *engine;
static uintptr_t va;

static void
rig_make(uint64_t seed, uint64_t mask)
{
	struct sim_engine_hooks hooks = { .readable = sim_readable,
					  .pin = sim_io_pin,
					  .unpin = sim_io_unpin };

	sim_faults_init(&faults, seed);
	cr_assert(eq(int, pmap_sim_create(&pm, NFRAMES, 2, mask, &faults), 0));
	cr_assert(eq(int, sim_disk_create(&disk, &faults), 0));
	hooks.ctx = pm;
	cr_assert(eq(int, io_engine_sim_create(&engine, disk, 8, &hooks), 0));
	cr_assert(eq(int, pm->ops->map(pm, 0, false, NPAGES * PAGE_SIZE, RW, 0, &va), 0));
}

static void
rig_unmake(void)
{
	cr_assert(eq(int, pm->ops->unmap(pm, va, NPAGES * PAGE_SIZE, 0), 0));
	engine->ops->destroy(engine);
	sim_disk_destroy(disk);
	pm->ops->destroy(pm);
}

static void
rig_up(void)
{
	rig_make(1, 0);
}

static uintptr_t
page(unsigned i)
{
	return va + i * PAGE_SIZE;
}

static enum sim_result
put(unsigned thread, unsigned i, uint64_t value)
{
	return sim_touch(pm, thread, page(i), true, &value, 8, sizeof(value));
}

static enum sim_result
get(unsigned thread, unsigned i, uint64_t *value)
{
	return sim_touch(pm, thread, page(i), false, value, 8, sizeof(*value));
}

/* Pages [i, i + n) present, page k holding the value k. */
static void
fill(unsigned i, unsigned n)
{
	size_t done;

	cr_assert(eq(int, pm->ops->zero(pm, 0, page(i), n, &done), 0));
	for (unsigned k = i; k < i + n; k++)
		cr_assert(eq(int, put(0, k, k), SIM_OK));
}

static void
new_frames(frame_t first, size_t n)
{
	size_t done;

	cr_assert(eq(int, pm->ops->frame_new(pm, first, n, &done), 0));
	cr_assert(eq(sz, done, n));
}

static void
io_init(struct swap_io *io, enum swap_op op, slot_t slot, frame_t frame, unsigned n)
{
	*io = (struct swap_io){ .op = op, .slot = slot, .n = n, .niov = n };
	for (unsigned i = 0; i < n; i++)
		io->iov[i] = (struct iovec){ pmap_frame(pm, frame + i), PAGE_SIZE };
}

/* Wait until `want` requests are reaped; they are left in `io->next` order from the result. */
static struct swap_io *
reap(unsigned want)
{
	struct swap_io *all = NULL, **last = &all;
	struct io_events ev;

	for (unsigned step = 0; want > 0; step++) {
		cr_assert(lt(uint, step, 1000), "%u requests never came back", want);
		engine->ops->wait(engine, 0, &ev);
		for (*last = ev.completed; *last != NULL; last = &(*last)->next, want--)
			cr_assert(gt(uint, want, 0), "more requests came back than were sent");
	}
	return all;
}

/* One request, start to end. */
static int
disk_do(enum swap_op op, slot_t slot, frame_t frame, unsigned n)
{
	struct swap_io io;

	io_init(&io, op, slot, frame, n);
	cr_assert(eq(int, engine->ops->submit(engine, &io), 0));
	cr_assert(eq(ptr, reap(1), &io));
	return io.result;
}

/* Run `fn` in a child: it must abort and its stderr contain `words`. */
static void
dies_saying(void (*fn)(void), const char *words)
{
	char said[4096] = "";
	size_t n = 0;
	int out[2], status;
	bool aborted;
	pid_t pid;

	cr_assert(eq(int, pipe(out), 0));
	pid = fork();
	cr_assert(ge(int, pid, 0));
	if (pid == 0) {
		dup2(out[1], STDERR_FILENO);
		close(out[0]);
		close(out[1]);
		fn();
		_exit(0);
	}
	close(out[1]);
	for (;;) {
		struct pollfd p = { .fd = out[0], .events = POLLIN };
		ssize_t r;

		if (poll(&p, 1, 30000) != 1) {
			kill(pid, SIGKILL);
			cr_fatal("no death within 30 s, waiting for \"%s\"", words);
		}
		r = read(out[0], said + n, sizeof(said) - 1 - n);
		if (r <= 0)
			break;
		n += (size_t)r;
	}
	close(out[0]);
	cr_assert(eq(int, waitpid(pid, &status, 0), pid));
	aborted = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
	cr_assert(aborted && strstr(said, words) != NULL,
		  "status %#x, wanted an abort saying \"%s\", got \"%s\"", status, words, said);
}

/* Threads, messages, wake-ups. */

Test(sim, a_missing_page_sends_one_message_and_the_thread_sleeps, .init = rig_up,
     .fini = rig_unmake)
{
	struct pmap_fault buf[4];
	uint64_t value = 77;
	size_t done;

	cr_assert(eq(int, get(3, 5, &value), SIM_FAULT));
	cr_assert(eq(int, get(3, 5, &value), SIM_FAULT));
	cr_assert(sim_waiting(pm, 3));
	cr_assert(eq(uint, pm->ops->faults(pm, 1, buf, 4), 0));
	cr_assert(eq(uint, pm->ops->faults(pm, 0, buf, 4), 1));
	cr_assert(eq(ulong, buf[0].va, page(5)));
	cr_assert(not(buf[0].write));
	cr_assert(not(buf[0].wp));

	cr_assert(eq(int, pm->ops->zero(pm, 0, page(5), 1, &done), 0));
	cr_assert(not(sim_waiting(pm, 3)));
	cr_assert(eq(u64, value, 77), "a touch that failed copied something");
	cr_assert(eq(int, get(3, 5, &value), SIM_OK));
	cr_assert(eq(u64, value, 0));
}

Test(sim, a_woken_thread_must_fault_again_if_nothing_is_there, .init = rig_up, .fini = rig_unmake)
{
	struct pmap_fault buf[4];

	put(0, 1, 1);
	cr_assert(eq(uint, pm->ops->faults(pm, 0, buf, 4), 1));
	pm->ops->wake(pm, 0, page(1), 1);
	cr_assert(not(sim_waiting(pm, 0)));
	cr_assert(eq(int, put(0, 1, 1), SIM_FAULT));
	cr_assert(eq(uint, pm->ops->faults(pm, 0, buf, 4), 1));
	cr_assert(buf[0].write);
}

Test(sim, a_wake_reaches_only_its_range_and_its_shard, .init = rig_up, .fini = rig_unmake)
{
	put(0, 9, 1);
	put(1, 10, 1);
	put(2, 11, 1);
	pm->ops->wake(pm, 1, page(0), NPAGES);
	cr_assert(sim_waiting(pm, 0) && sim_waiting(pm, 1) && sim_waiting(pm, 2));
	pm->ops->wake(pm, 0, page(10), 1);
	cr_assert(sim_waiting(pm, 0) && !sim_waiting(pm, 1) && sim_waiting(pm, 2));
}

Test(sim, a_lost_wake_up_shows_as_a_stranded_thread, .init = rig_up, .fini = rig_unmake)
{
	struct pmap_fault buf[4];
	uint64_t value;
	size_t done;

	cr_assert(eq(int, get(7, 0, &value), SIM_FAULT));
	cr_assert(eq(int, sim_stranded(pm), -1), "its message can still be read");
	pm->ops->faults(pm, 0, buf, 4);
	cr_assert(eq(int, sim_stranded(pm), 7));

	/* The page arrives and goes again unseen: nothing wakes on a late EEXIST. */
	sim_fail_nth(&faults, 1, SIM_BIT(SIM_ZERO), -EEXIST);
	cr_assert(eq(int, pm->ops->zero(pm, 0, page(0), 1, &done), -EEXIST));
	cr_assert(eq(int, sim_stranded(pm), 7));
	cr_assert(eq(int, get(7, 0, &value), SIM_FAULT), "asleep, though the page is there");
	pm->ops->wake(pm, 0, page(0), 1);
	cr_assert(eq(int, sim_stranded(pm), -1));
	cr_assert(eq(int, get(7, 0, &value), SIM_OK));
}

Test(sim, a_woken_threads_unread_message_vanishes_but_its_copy_stays, .init = rig_up,
     .fini = rig_unmake)
{
	struct pmap_fault buf[4];

	put(0, 0, 1);
	pm->ops->wake(pm, 0, page(0), 1);
	cr_assert(eq(uint, pm->ops->faults(pm, 0, buf, 4), 0));

	sim_messages(pm, 1000, 0, 0);
	put(0, 0, 1);
	cr_assert(eq(sz, sim_queued(pm, 0), 2));
	fill(0, 1);
	cr_assert(eq(uint, pm->ops->faults(pm, 0, buf, 4), 1), "a stale message should be left");
	cr_assert(eq(ulong, buf[0].va, page(0)));
}

Test(sim, messages_can_come_out_of_order_and_none_is_lost, .init = rig_up, .fini = rig_unmake)
{
	struct pmap_fault buf[64];
	uint64_t seen = 0;
	unsigned swaps = 0;

	sim_messages(pm, 0, 1000, 0);
	for (unsigned t = 0; t < 64; t++)
		put(t, t, 1);
	cr_assert(eq(uint, pm->ops->faults(pm, 0, buf, 64), 64));
	for (unsigned i = 0; i < 64; i++) {
		seen |= UINT64_C(1) << (buf[i].va - va) / PAGE_SIZE;
		swaps += i > 0 && buf[i].va < buf[i - 1].va;
	}
	cr_assert(eq(u64, seen, UINT64_MAX));
	cr_assert(gt(uint, swaps, 10));
}

Test(sim, a_delayed_message_shows_up_after_some_looks, .init = rig_up, .fini = rig_unmake)
{
	struct pmap_fault buf[64];
	unsigned got = 0, late = 0;

	sim_messages(pm, 0, 0, 5);
	for (unsigned t = 0; t < 64; t++)
		put(t, t, 1);
	for (unsigned look = 0; look <= 5; look++) {
		const unsigned n = pm->ops->faults(pm, 0, buf, 64);

		got += n;
		late += look > 0 ? n : 0;
	}
	cr_assert(eq(uint, got, 64));
	cr_assert(gt(uint, late, 20));

	/* Asking whether there is something counts as a look. */
	put(100, 100, 1);
	for (unsigned look = 0; !sim_readable(pm, 0); look++)
		cr_assert(lt(uint, look, 5), "the message never became visible");
	cr_assert(eq(uint, pm->ops->faults(pm, 0, buf, 64), 1));
}

/* Pages and regions. */

Test(sim, a_page_keeps_its_bytes_through_remove_and_enter, .init = rig_up, .fini = rig_unmake)
{
	uint64_t value;
	size_t done;

	fill(0, 80);
	cr_assert(eq(int, pm->ops->remove(pm, 0, page(0), 10, 80, &done), 0));
	cr_assert(eq(sz, done, 80));
	for (unsigned i = 0; i < 80; i++) {
		memcpy(&value, (char *)pmap_frame(pm, 10 + i) + 8, sizeof(value));
		cr_assert(eq(u64, value, i));
		cr_assert(eq(int, sim_state(pm, page(i)), SIM_ABSENT));
		cr_assert(sim_is_frame(pm, 10 + i));
	}
	/* To another place, as a move of identity would. */
	put(9, 100, 0);
	cr_assert(eq(int, pm->ops->enter(pm, 0, page(100), 10, 80, &done), 0));
	cr_assert(not(sim_waiting(pm, 9)));
	for (unsigned i = 0; i < 80; i++) {
		cr_assert(eq(int, get(0, 100 + i, &value), SIM_OK));
		cr_assert(eq(u64, value, i));
		cr_assert(not(sim_is_frame(pm, 10 + i)));
	}
}

Test(sim, poison_is_sigbus_until_discarded, .init = rig_up, .fini = rig_unmake)
{
	cr_assert(eq(int, put(0, 4, 1), SIM_FAULT));
	cr_assert(eq(int, pm->ops->poison(pm, 0, page(4)), 0));
	cr_assert(not(sim_waiting(pm, 0)));
	cr_assert(eq(int, put(0, 4, 1), SIM_SIGBUS));
	cr_assert(eq(int, put(2, 3, 1), SIM_FAULT));
	cr_assert(eq(int, sim_state(pm, page(4)), SIM_POISONED));
	cr_assert(eq(int, pm->ops->poison(pm, 0, page(4)), -EEXIST));
	cr_assert(eq(int, pm->ops->poison(pm, 0, page(NPAGES)), -ENOENT));
	cr_assert(eq(sz, sim_resident_pages(pm), 0));
	cr_assert(eq(int, pm->ops->discard(pm, 0, page(4), 1), 0));

	/* One that fails wakes too. */
	cr_assert(eq(int, put(1, 4, 1), SIM_FAULT));
	sim_fail_nth(&faults, 1, SIM_BIT(SIM_POISON), -ENOTSUP);
	cr_assert(eq(int, pm->ops->poison(pm, 0, page(4)), -ENOTSUP));
	cr_assert(not(sim_waiting(pm, 1)));
	cr_assert(eq(int, sim_state(pm, page(4)), SIM_ABSENT));
	fill(4, 1);
	cr_assert(eq(int, pm->ops->poison(pm, 0, page(4)), -EEXIST));
	cr_assert(eq(int, sim_state(pm, page(4)), SIM_PRESENT));
}

Test(sim, protection_is_per_page_and_only_the_page_s_own, .init = rig_up, .fini = rig_unmake)
{
	uint64_t value;

	fill(0, 3);
	cr_assert(eq(int, pm->ops->protect(pm, page(1), PAGE_SIZE, PROT_READ), 0));
	cr_assert(eq(int, put(0, 0, 9), SIM_OK));
	cr_assert(eq(int, put(0, 1, 9), SIM_SIGSEGV));
	cr_assert(eq(int, get(0, 1, &value), SIM_OK));
	cr_assert(eq(u64, value, 1));
	cr_assert(eq(int, put(0, 2, 9), SIM_OK));
	cr_assert(eq(int, pm->ops->protect(pm, page(1), PAGE_SIZE, PROT_NONE), 0));
	cr_assert(eq(int, get(0, 1, &value), SIM_SIGSEGV));
	cr_assert(eq(int, pm->ops->protect(pm, page(NPAGES), PAGE_SIZE, RW), -ENOMEM));
}

Test(sim, unmap_takes_the_pages_wakes_the_sleepers_and_leaves_the_rest, .init = rig_up,
     .fini = rig_unmake)
{
	uintptr_t again;
	uint64_t value;
	size_t done;

	fill(0, 6);
	cr_assert(eq(int, put(1, 10, 1), SIM_FAULT));
	cr_assert(eq(int, pm->ops->unmap(pm, page(2), 10 * PAGE_SIZE, 0), 0));
	cr_assert(eq(int, put(1, 10, 1), SIM_SIGSEGV));
	cr_assert(eq(int, get(0, 1, &value), SIM_OK));
	cr_assert(eq(u64, value, 1));
	cr_assert(eq(int, sim_state(pm, page(2)), SIM_UNMAPPED));
	cr_assert(eq(sz, sim_resident_pages(pm), 2));
	cr_assert(eq(int, pm->ops->zero(pm, 0, page(1) + PAGE_SIZE, 1, &done), -ENOENT));
	cr_assert(eq(sz, done, 0));

	/* The hole can be had again, by name, with nothing of the old in it. */
	cr_assert(eq(int, pm->ops->map(pm, page(1), true, PAGE_SIZE, RW, 1, &again), -EEXIST));
	cr_assert(eq(int, pm->ops->map(pm, page(2), true, 10 * PAGE_SIZE, RW, 0, &again), 0));
	cr_assert(eq(ulong, again, page(2)));
	cr_assert(eq(int, get(0, 2, &value), SIM_FAULT));
}

Test(sim, a_sparse_terabyte_costs_nothing, .init = rig_up, .fini = rig_unmake)
{
	const size_t len = (size_t)1 << 40;
	uintptr_t big;
	size_t done;

	cr_assert(eq(int, pm->ops->map(pm, 0, false, len, RW, 1, &big), 0));
	cr_assert(eq(int, pm->ops->zero(pm, 1, big + len - PAGE_SIZE, 1, &done), 0));
	cr_assert(eq(int, pm->ops->discard(pm, 1, big, len >> PAGE_SHIFT), 0));
	cr_assert(eq(sz, sim_resident_pages(pm), 0));
	cr_assert(eq(int, pm->ops->unmap(pm, big, len, 1), 0));
	cr_assert(eq(int, pm->ops->map(pm, big, true, (size_t)1 << 50, RW, 1, &big), -ENOMEM));
}

Test(sim, a_pinned_page_stays_and_those_before_it_go, .init = rig_up, .fini = rig_unmake)
{
	size_t done;

	fill(0, 8);
	sim_pin(pm, page(5));
	cr_assert(eq(int, pm->ops->remove(pm, 0, page(0), 0, 8, &done), -EBUSY));
	cr_assert(eq(sz, done, 5));
	cr_assert(eq(int, sim_state(pm, page(5)), SIM_PRESENT));
	cr_assert(not(sim_is_frame(pm, 5)));
	sim_unpin(pm, page(5));
	cr_assert(eq(int, pm->ops->remove(pm, 0, page(5), 5, 3, &done), 0));
}

Test(sim, a_page_discarded_behind_our_back_is_not_there_to_remove, .init = rig_up,
     .fini = rig_unmake)
{
	size_t done;

	fill(0, 4);
	sim_discard_behind(pm, page(2), 1);
	cr_assert(eq(int, pm->ops->remove(pm, 0, page(0), 0, 4, &done), -ENOENT));
	cr_assert(eq(sz, done, 2));
	cr_assert(eq(sz, sim_resident_pages(pm), 3));
}

Test(sim, the_kernels_own_count_sees_every_page_and_the_copies_of_an_old_kernel)
{
	for (int old = 0; old < 2; old++) {
		size_t done, max;

		rig_make(1, old ? UP_MASK_MOVE : 0);
		cr_assert(eq(sz, pm->headroom, CLUSTER_MAX * PAGE_SIZE));
		cr_assert(eq(int, (pm->features & UP_MASK_MOVE) == 0, old));
		new_frames(0, 80);
		cr_assert(eq(int, pm->ops->enter(pm, 0, page(0), 0, 80, &done), 0));
		cr_assert(eq(sz, sim_resident_pages(pm), 80));
		cr_assert(eq(sz, sim_resident_pages_max(pm), old ? 80 + CLUSTER_MAX : 80));

		new_frames(90, 3);
		cr_assert(eq(int, pm->ops->remove(pm, 0, page(0), 0, 80, &done), 0));
		cr_assert(eq(sz, sim_resident_pages(pm), 83));
		max = sim_resident_pages_max(pm);
		cr_assert(eq(sz, max, old ? 83 + CLUSTER_MAX : 83));

		pm->ops->frame_drop(pm, 0, 80);
		pm->ops->frame_drop(pm, 90, 3);
		cr_assert(eq(sz, sim_resident_pages(pm), 0));
		cr_assert(eq(sz, sim_resident_pages_max(pm), max));
		rig_unmake();
	}
}

Test(sim, what_a_move_refuses_is_copied_one_page_at_a_time, .init = rig_up, .fini = rig_unmake)
{
	size_t done;

	/* Straight from the disk. */
	new_frames(0, 8);
	cr_assert(eq(int, disk_do(SWAP_READ, 0, 0, 4), 0));
	cr_assert(eq(int, pm->ops->enter(pm, 0, page(4), 4, 4, &done), 0));
	cr_assert(eq(sz, sim_resident_pages_max(pm), 8));
	cr_assert(eq(int, pm->ops->enter(pm, 0, page(0), 0, 4, &done), 0));
	cr_assert(eq(sz, sim_resident_pages_max(pm), 9));

	/* Out of a read-only region; 9 pages, so that the copy makes a new maximum. */
	fill(8, 1);
	cr_assert(eq(int, pm->ops->remove(pm, 0, page(0), 0, 8, &done), 0));
	cr_assert(eq(sz, sim_resident_pages_max(pm), 9));
	cr_assert(eq(int, pm->ops->protect(pm, page(8), PAGE_SIZE, PROT_READ), 0));
	cr_assert(eq(int, pm->ops->remove(pm, 0, page(8), 8, 1, &done), 0));
	cr_assert(eq(sz, sim_resident_pages_max(pm), 10));
	cr_assert(eq(sz, sim_resident_pages(pm), 9));
}

static void
write_while_copied(void *ctx, uintptr_t at, size_t n)
{
	uint64_t value = 1234;

	cr_assert(eq(ulong, at, page(0)));
	cr_assert(eq(sz, n, 4));
	cr_assert(eq(int, sim_touch(pm, 1, page(2), false, &value, 8, 8), SIM_OK));
	cr_assert(eq(u64, value, 2));
	cr_assert(eq(int, put(2, 2, 1234), SIM_FAULT));
	*(bool *)ctx = true;
}

Test(sim, a_write_in_the_middle_of_a_copying_remove_is_a_write_protect_fault)
{
	struct pmap_fault buf[4];
	bool called = false;
	uint64_t value;
	size_t done;

	rig_make(1, UP_MASK_MOVE);
	sim_on_copy(pm, write_while_copied, &called);
	fill(0, 4);
	cr_assert(eq(int, pm->ops->remove(pm, 0, page(0), 0, 4, &done), 0));
	cr_assert(called);
	cr_assert(eq(uint, pm->ops->faults(pm, 0, buf, 4), 1));
	cr_assert(buf[0].wp && buf[0].write && buf[0].va == page(2));
	memcpy(&value, (char *)pmap_frame(pm, 2) + 8, sizeof(value));
	cr_assert(eq(u64, value, 2));
	rig_unmake();
}

/* Pools and spaces: two places in this process, `pair`, and one in another, at the address of the first. */

static struct heap_arena heap;
static struct zone records;
static uintptr_t pool, pair[2];
static unsigned space;

static void
pool_up(void)
{
	uintptr_t got;

	rig_make(1, 0);
	heap_arena_init(&heap, 64 << 20, 16 << 20);
	zone_init(&records, &heap.arena, "place", pm->place_size, NULL, NULL);
	pm->places = &records;
	cr_assert(eq(int, pm->ops->pool_create(pm, 100, false, &pool), 0));
	for (unsigned i = 0; i < 2; i++)
		cr_assert(
			eq(int,
			   pm->ops->pool_map(pm, pool, 0, false, 100 * PAGE_SIZE, RW, i, &pair[i]),
			   0));
	cr_assert(eq(int, pm->ops->space_create(pm, 1, &space), 0));
	cr_assert(eq(int,
		     pm->ops->pool_map(pm, pool, pair[0], true, 100 * PAGE_SIZE, RW, space, &got),
		     0));
	cr_assert(eq(int, pm->ops->space_attach(pm, space, -1, 1), 0));
}

static void
pool_down(void)
{
	cr_assert(eq(int, pm->ops->unmap(pm, pair[0], 100 * PAGE_SIZE, space), 0));
	pm->ops->space_destroy(pm, space);
	for (unsigned i = 0; i < 2; i++)
		cr_assert(eq(int, pm->ops->unmap(pm, pair[i], 100 * PAGE_SIZE, i), 0));
	pm->ops->pool_destroy(pm, pool);
	cr_assert(eq(sz, zone_count(&records), 0));
	rig_unmake();
	zone_fini(&records);
	heap_arena_fini(&heap);
}

static uintptr_t
pool_page(size_t i)
{
	return pool + i * PAGE_SIZE;
}

/* Who: 0 and 1, the places here; 2, the other process. */
static enum sim_result
pool_touch(unsigned who, size_t i, bool write, uint64_t *value)
{
	if (who == 2)
		return sim_touch_in(pm, space, 12, pair[0] + i * PAGE_SIZE, write, value, 8, 8);
	return sim_touch(pm, 10 + who, pair[who] + i * PAGE_SIZE, write, value, 8, 8);
}

static void
pool_fill(size_t i, size_t n)
{
	size_t done;

	cr_assert(eq(int, pm->ops->zero(pm, PMAP_POOL, pool_page(i), n, &done), 0));
	for (uint64_t k = i; k < i + n; k++)
		cr_assert(eq(int, pool_touch(0, k, true, &k), SIM_OK));
}

Test(sim, without_shared_memory_there_are_no_pools)
{
	rig_make(1, UP_MASK_SHARED);
	cr_assert(eq(u64, pm->features & UP_MASK_SHARED, 0));
	cr_assert(pm->ops->pool_create == NULL && pm->ops->space_attach == NULL);
	rig_unmake();
}

Test(sim, a_pool_page_is_one_wherever_it_is_mapped, .init = pool_up, .fini = pool_down)
{
	const size_t before = sim_resident_pages(pm);
	uint64_t value;
	size_t done;

	pool_fill(0, 80);
	cr_assert(eq(sz, sim_resident_pages(pm), before + 80));
	for (unsigned who = 0; who < 3; who++) {
		cr_assert(eq(int, pool_touch(who, 70, false, &value), SIM_OK));
		cr_assert(eq(u64, value, 70 + who));
		value++;
		cr_assert(eq(int, pool_touch(who, 70, true, &value), SIM_OK));
	}
	cr_assert(eq(int, sim_state(pm, pair[1] + 70 * PAGE_SIZE), SIM_PRESENT));
	cr_assert(eq(u64, ((const uint64_t *)sim_peek(pm, pair[1] + 70 * PAGE_SIZE))[1], 73));
	cr_assert(eq(int, pm->ops->remove(pm, PMAP_POOL, pool, 0, 80, &done), 0));
	cr_assert(eq(sz, sim_resident_pages(pm), before + 80));
	cr_assert(le(sz, sim_resident_pages_max(pm), before + 80 + pm->headroom / PAGE_SIZE));
	cr_assert(eq(u64, ((uint64_t *)pmap_frame(pm, 70))[1], 73));
	cr_assert(eq(int, sim_state(pm, pair[1] + 70 * PAGE_SIZE), SIM_ABSENT));
	cr_assert(eq(int, pm->ops->enter(pm, PMAP_POOL, pool, 0, 80, &done), 0));
	cr_assert(eq(int, pool_touch(2, 70, false, &value), SIM_OK));
	cr_assert(eq(u64, value, 73));
}

Test(sim, a_fault_in_a_space_comes_to_the_shard_it_is_near, .init = pool_up, .fini = pool_down)
{
	struct pmap_fault buf[4];
	uint64_t value = 0;
	size_t done;

	for (unsigned who = 0; who < 3; who++)
		cr_assert(eq(int, pool_touch(who, 5, who == 1, &value), SIM_FAULT));
	cr_assert(eq(uint, pm->ops->faults(pm, 0, buf, 4), 1));
	cr_assert(buf[0].shard == 0 && buf[0].va == pair[0] + 5 * PAGE_SIZE && !buf[0].write);
	cr_assert(eq(uint, pm->ops->faults(pm, 1, buf, 4), 2));
	cr_assert(buf[0].shard == 1 && buf[0].va == pair[1] + 5 * PAGE_SIZE && buf[0].write);
	cr_assert(buf[1].shard == space && buf[1].va == pair[0] + 5 * PAGE_SIZE);
	/* The same address here and there. */
	pm->ops->wake(pm, space, pair[0] + 5 * PAGE_SIZE, 1);
	cr_assert(sim_waiting(pm, 10) && sim_waiting(pm, 11) && sim_waiting(pm, 12) == 0);
	cr_assert(eq(int, pool_touch(2, 5, false, &value), SIM_FAULT));
	cr_assert(eq(int, sim_stranded(pm), 10));
	pm->ops->wake(pm, PMAP_POOL, pool_page(0), 100);
	for (unsigned who = 0; who < 3; who++) {
		cr_assert(eq(int, sim_waiting(pm, 10 + who), 0));
		cr_assert(eq(int, pool_touch(who, 5, false, &value), SIM_FAULT));
	}
	cr_assert(eq(int, pm->ops->zero(pm, PMAP_POOL, pool_page(4), 1, &done), 0));
	cr_assert(sim_waiting(pm, 12));
	cr_assert(eq(int, pm->ops->zero(pm, PMAP_POOL, pool_page(5), 1, &done), 0));
	for (unsigned who = 0; who < 3; who++)
		cr_assert(eq(int, pool_touch(who, 5, false, &value), SIM_OK));
}

static void
write_everywhere_while_copied(void *ctx, uintptr_t at, size_t n)
{
	uint64_t value = 99;

	cr_assert(eq(sz, at, pool_page(2)));
	cr_assert(eq(sz, n, 3));
	for (unsigned who = 0; who < 3; who++) {
		cr_assert(eq(int, pool_touch(who, 3, false, &value), SIM_OK));
		cr_assert(eq(u64, value, 3));
		cr_assert(eq(int, pool_touch(who, 4, true, &value), SIM_FAULT));
	}
	*(bool *)ctx = true;
}

Test(sim, nobody_writes_a_pool_page_while_it_is_copied, .init = pool_up, .fini = pool_down)
{
	struct pmap_fault buf[4];
	bool called = false;
	size_t done;

	pool_fill(2, 3);
	sim_on_copy(pm, write_everywhere_while_copied, &called);
	cr_assert(eq(int, pm->ops->remove(pm, PMAP_POOL, pool_page(2), 0, 3, &done), 0));
	cr_assert(called);
	cr_assert(eq(uint, pm->ops->faults(pm, 0, buf, 4), 1));
	cr_assert(buf[0].wp && buf[0].write);
	cr_assert(eq(uint, pm->ops->faults(pm, 1, buf, 4), 2));
	cr_assert(buf[0].wp && buf[1].wp);
	pm->ops->wake(pm, PMAP_POOL, pool_page(4), 1);
}

Test(sim, poison_of_a_pool_page_is_in_all_places_and_discard_takes_it_from_all, .init = pool_up,
     .fini = pool_down)
{
	uint64_t value = 0;

	cr_assert(eq(int, pool_touch(2, 7, false, &value), SIM_FAULT));
	cr_assert(eq(int, pm->ops->poison(pm, PMAP_POOL, pool_page(7)), 0));
	for (unsigned who = 0; who < 3; who++)
		cr_assert(eq(int, pool_touch(who, 7, false, &value), SIM_SIGBUS));
	cr_assert(eq(int, sim_state(pm, pair[0] + 7 * PAGE_SIZE), SIM_POISONED));
	cr_assert(eq(int, pm->ops->poison(pm, PMAP_POOL, pool_page(7)), -EEXIST));
	/* Who drops the marks of its own page table asks again. */
	sim_discard_behind(pm, pair[0] + 7 * PAGE_SIZE, 1);
	cr_assert(eq(int, pool_touch(0, 7, false, &value), SIM_FAULT));
	cr_assert(eq(int, pm->ops->poison(pm, PMAP_POOL, pool_page(7)), 0));
	cr_assert(eq(int, pm->ops->discard(pm, PMAP_POOL, pool_page(0), 100), 0));
	pool_fill(7, 1);
	for (unsigned who = 0; who < 3; who++)
		cr_assert(eq(int, pool_touch(who, 7, false, &value), SIM_OK));
	cr_assert(eq(int, pm->ops->poison(pm, PMAP_POOL, pool_page(7)), -EEXIST));
	sim_discard_behind(pm, pair[0] + 7 * PAGE_SIZE, 1);
	cr_assert(eq(int, pool_touch(0, 7, false, &value), SIM_OK));
	cr_assert(eq(u64, value, 7));
}

Test(sim, read_of_a_pool_gives_zeros_where_nothing_is, .init = pool_up, .fini = pool_down)
{
	uint64_t buf[PAGE_SIZE / 8];

	pool_fill(1, 1);
	cr_assert(eq(int, pm->ops->read(pm, pool_page(1), buf), 0));
	cr_assert(eq(u64, buf[1], 1));
	cr_assert(eq(int, pm->ops->read(pm, pool_page(2), buf), 0));
	cr_assert(eq(u64, buf[1], 0));
}

Test(sim, referenced_counts_the_places_of_this_process_that_saw_the_page, .init = pool_up,
     .fini = pool_down)
{
	uint64_t value;
	size_t done;

	pool_fill(0, 2);
	cr_assert(eq(uint, pm->ops->pool_referenced(pm, pool_page(0)), 1));
	cr_assert(eq(uint, pm->ops->pool_referenced(pm, pool_page(0)), 0));
	for (unsigned who = 0; who < 3; who++)
		cr_assert(eq(int, pool_touch(who, 0, false, &value), SIM_OK));
	cr_assert(eq(uint, pm->ops->pool_referenced(pm, pool_page(0)), 2));
	pm->ops->pool_populate(pm, 1, pair[1], 100 * PAGE_SIZE, false);
	cr_assert(eq(uint, pm->ops->pool_referenced(pm, pool_page(0)), 1));
	cr_assert(eq(uint, pm->ops->pool_referenced(pm, pool_page(1)), 2));
	cr_assert(eq(uint, pm->ops->pool_referenced(pm, pool_page(2)), 0));
	/* What left the pool left the page tables. */
	cr_assert(eq(int, pool_touch(1, 0, false, &value), SIM_OK));
	cr_assert(eq(int, pm->ops->remove(pm, PMAP_POOL, pool, 0, 1, &done), 0));
	cr_assert(eq(int, pm->ops->enter(pm, PMAP_POOL, pool, 0, 1, &done), 0));
	cr_assert(eq(uint, pm->ops->pool_referenced(pm, pool_page(0)), 0));
}

Test(sim, a_part_of_a_place_goes_and_the_pool_keeps_its_pages, .init = pool_up, .fini = pool_down)
{
	uint64_t value;
	uintptr_t got;
	size_t count;

	pool_fill(0, 30);
	cr_assert(eq(int, pm->ops->split(pm, 0, pair[1] + 10 * PAGE_SIZE, 10 * PAGE_SIZE), 0));
	count = zone_count(&records);
	atomic_store(&records.fail_in, 1);
	cr_assert(eq(int, pm->ops->unmap(pm, pair[1] + 10 * PAGE_SIZE, 10 * PAGE_SIZE, 1), 0));
	cr_assert(eq(int, pm->ops->unmap(pm, pair[0] + 10 * PAGE_SIZE, PAGE_SIZE, space), -ENOMEM));
	atomic_store(&records.fail_in, 0);
	cr_assert(eq(sz, zone_count(&records), count - 1));
	cr_assert(eq(int, pool_touch(1, 9, false, &value), SIM_OK));
	cr_assert(eq(int, pool_touch(1, 10, false, &value), SIM_SIGSEGV));
	cr_assert(eq(int, pool_touch(1, 20, false, &value), SIM_OK));
	cr_assert(eq(u64, value, 20));
	cr_assert(eq(int, pool_touch(0, 10, false, &value), SIM_OK));
	cr_assert(eq(int, pm->ops->unmap(pm, pair[0] + 10 * PAGE_SIZE, PAGE_SIZE, space), 0));
	cr_assert(eq(int, pool_touch(2, 10, false, &value), SIM_SIGSEGV));
	cr_assert(eq(int, pool_touch(2, 11, false, &value), SIM_OK));
	cr_assert(eq(u64, value, 11));
	/* As it was, for whoever cleans up. */
	cr_assert(eq(int,
		     pm->ops->pool_map(pm, pool_page(10), pair[1] + 10 * PAGE_SIZE, true,
				       10 * PAGE_SIZE, PROT_READ, 1, &got),
		     0));
	cr_assert(eq(int, pool_touch(1, 10, false, &value), SIM_OK));
	cr_assert(eq(int, pool_touch(1, 10, true, &value), SIM_SIGSEGV));
}

Test(sim, a_detached_space_forgets_who_slept_there, .init = pool_up, .fini = pool_down)
{
	struct pmap_fault buf[4];
	uint64_t value = 0;

	sim_messages(pm, 1000, 0, 0);
	cr_assert(eq(int, pool_touch(2, 5, false, &value), SIM_FAULT));
	cr_assert(eq(sz, sim_queued(pm, 1), 2));
	pm->ops->space_detach(pm, space);
	cr_assert(eq(int, sim_waiting(pm, 12), 0));
	cr_assert(eq(uint, pm->ops->faults(pm, 1, buf, 4), 0));
	/* Nobody is poisoned there. */
	cr_assert(eq(int, pm->ops->poison(pm, PMAP_POOL, pool_page(3)), 0));
	cr_assert(eq(int, pm->ops->space_attach(pm, space, -1, 1), 0));
	cr_assert(eq(int, pool_touch(2, 3, false, &value), SIM_FAULT));
	cr_assert(eq(int, pm->ops->poison(pm, PMAP_POOL, pool_page(3)), 0));
	cr_assert(eq(int, pool_touch(2, 3, false, &value), SIM_SIGBUS));
}

Test(sim, a_failing_batch_of_a_pool_can_go_on, .init = pool_up, .fini = pool_down)
{
	static const int errs[] = { -EAGAIN, -ENOMEM, -EBUSY };

	for (unsigned round = 0; round < 60; round++) {
		size_t done = 0, k;
		uint64_t value;
		int r;

		pool_fill(0, 32);
		sim_fail_nth(&faults, 1, SIM_BIT(SIM_REMOVE), errs[round % 3]);
		r = pm->ops->remove(pm, PMAP_POOL, pool, 0, 32, &done);
		cr_assert(eq(int, r, round % 3 == 1 ? -ENOMEM : -EAGAIN));
		cr_assert(eq(int,
			     pm->ops->remove(pm, PMAP_POOL, pool_page(done), (frame_t)done,
					     32 - done, &k),
			     0));
		sim_fail_nth(&faults, 1, SIM_BIT(SIM_ENTER), -EEXIST);
		cr_assert(eq(int, pm->ops->enter(pm, PMAP_POOL, pool, 0, 32, &done), -EEXIST));
		pm->ops->frame_drop(pm, (frame_t)done, 1);
		done++;
		if (done < 32)
			cr_assert(eq(int,
				     pm->ops->enter(pm, PMAP_POOL, pool_page(done), (frame_t)done,
						    32 - done, &k),
				     0));
		for (unsigned i = 0; i < 32; i++) {
			cr_assert(eq(int, pool_touch(i % 3, i, false, &value), SIM_OK));
			cr_assert(eq(u64, value, i));
		}
		sim_fail_nth(&faults, 1, SIM_BIT(SIM_DISCARD), -EAGAIN);
		cr_assert(eq(int, pm->ops->discard(pm, PMAP_POOL, pool, 32), -EAGAIN));
		cr_assert(eq(int, pm->ops->discard(pm, PMAP_POOL, pool, 32), 0));
	}
	sim_fail_disarm(&faults);
}

static void
name_a_pool_page_by_its_place(void)
{
	size_t done;

	pool_fill(0, 1);
	pm->ops->remove(pm, 0, pair[0], 0, 1, &done);
}

static void
remove_what_is_not_in_the_pool(void)
{
	size_t done;

	pm->ops->remove(pm, PMAP_POOL, pool, 0, 1, &done);
}

static void
install_over_poison(void)
{
	size_t done;

	pm->ops->poison(pm, PMAP_POOL, pool);
	pm->ops->zero(pm, PMAP_POOL, pool, 1, &done);
}

static void
destroy_a_mapped_pool(void)
{
	pm->ops->pool_destroy(pm, pool);
}

static void
destroy_a_mapped_space(void)
{
	pm->ops->space_destroy(pm, space);
}

static void
run_where_nobody_is(void)
{
	uint64_t value;

	pm->ops->space_detach(pm, space);
	pool_touch(2, 0, false, &value);
}

static void
attach_twice(void)
{
	pm->ops->space_attach(pm, space, -1, 1);
}

Test(sim, a_broken_contract_of_pools_is_an_abort, .init = pool_up, .fini = pool_down)
{
	dies_saying(name_a_pool_page_by_its_place, "is a pool's, to be named by its address there");
	dies_saying(remove_what_is_not_in_the_pool, "is not in its pool");
	dies_saying(install_over_poison, "is poisoned");
	dies_saying(destroy_a_mapped_pool, "is still mapped at");
	dies_saying(destroy_a_mapped_space, "has places left");
	dies_saying(run_where_nobody_is, "nobody runs in space 256");
	dies_saying(attach_twice, "is attached already");
}

/* Failures. */

Test(sim, a_failing_batch_completes_a_prefix_and_can_go_on, .init = rig_up, .fini = rig_unmake)
{
	bool in_the_middle = false;

	for (unsigned round = 0; round < 50; round++) {
		size_t done, rest;
		uint64_t value;
		int r;

		fill(0, 32);
		sim_fail_nth(&faults, 1, SIM_BIT(SIM_REMOVE), -EAGAIN);
		cr_assert(eq(int, pm->ops->remove(pm, 0, page(0), 0, 32, &done), -EAGAIN));
		cr_assert(lt(sz, done, 32));
		cr_assert(sim_fail_disarm(&faults));
		in_the_middle |= done > 0;
		for (unsigned i = 0; i < 32; i++) {
			cr_assert(eq(int, sim_is_frame(pm, i), i < done));
			cr_assert(eq(int, sim_state(pm, page(i)),
				     i < done ? SIM_ABSENT : SIM_PRESENT));
		}
		rest = 32 - done;
		r = pm->ops->remove(pm, 0, page((unsigned)done), (frame_t)done, rest, &done);
		cr_assert(eq(int, r, 0));
		cr_assert(eq(sz, done, rest));

		sim_fail_nth(&faults, 1, SIM_BIT(SIM_ENTER), -ENOMEM);
		cr_assert(eq(int, pm->ops->enter(pm, 0, page(0), 0, 32, &done), -ENOMEM));
		rest = 32 - done;
		r = pm->ops->enter(pm, 0, page((unsigned)done), (frame_t)done, rest, &done);
		cr_assert(eq(int, r, 0));
		for (unsigned i = 0; i < 32; i++) {
			cr_assert(eq(int, get(0, i, &value), SIM_OK));
			cr_assert(eq(u64, value, i));
		}
		cr_assert(eq(int, pm->ops->discard(pm, 0, page(0), 32), 0));
	}
	cr_assert(in_the_middle);
}

Test(sim, a_late_eexist_leaves_the_right_page_and_the_frame, .init = rig_up, .fini = rig_unmake)
{
	uint64_t value;
	size_t done, n;

	fill(0, 8);
	cr_assert(eq(int, pm->ops->remove(pm, 0, page(0), 0, 8, &done), 0));
	sim_fail_nth(&faults, 1, SIM_BIT(SIM_ENTER), -EEXIST);
	cr_assert(eq(int, pm->ops->enter(pm, 0, page(0), 0, 8, &n), -EEXIST));
	cr_assert(sim_is_frame(pm, (frame_t)n));
	cr_assert(eq(int, get(0, (unsigned)n, &value), SIM_OK));
	cr_assert(eq(u64, value, n));
	cr_assert(eq(sz, sim_resident_pages(pm), 9), "the page and the frame are both there");

	/* Whoever insists is told so again. */
	cr_assert(eq(int, pm->ops->enter(pm, 0, page((unsigned)n), (frame_t)n, 1, &done), -EEXIST));
	cr_assert(eq(sz, done, 0));
	pm->ops->frame_drop(pm, (frame_t)n, 1);
	cr_assert(eq(sz, sim_resident_pages(pm), 8));
}

Test(sim, the_nth_failure_is_counted_over_page_tables_and_disk, .init = rig_up, .fini = rig_unmake)
{
	size_t done;

	for (unsigned nth = 1; nth <= 4; nth++) {
		unsigned failed = 0;

		sim_fail_nth(&faults, nth, 0, 0);
		if (pm->ops->frame_new(pm, 0, 1, &done) != 0) {
			failed = 1;
			new_frames(0, 1); /* it fails once */
		}
		if (disk_do(SWAP_WRITE, 3, 0, 1) != 0)
			failed = 2;
		if (disk_do(SWAP_READ, 3, 0, 1) != 0)
			failed = 3;
		cr_assert(eq(uint, failed, nth < 4 ? nth : 0));
		cr_assert(eq(int, sim_fail_disarm(&faults), nth < 4));
		pm->ops->frame_drop(pm, 0, 1);
	}
	cr_assert(eq(u64, faults.injected[SIM_FRAME_NEW], 1));
	cr_assert(eq(u64, faults.injected[SIM_WRITE], 1));
	cr_assert(eq(u64, faults.injected[SIM_READ], 1));
}

Test(sim, a_rate_fails_about_that_often_and_only_that_call, .init = rig_up, .fini = rig_unmake)
{
	unsigned failed = 0;
	size_t done;

	sim_fail_rate(&faults, SIM_FRAME_NEW, -ENOMEM, 250);
	for (unsigned i = 0; i < 1000; i++) {
		const int r = pm->ops->frame_new(pm, 0, 1, &done);

		cr_assert(r == 0 || r == -ENOMEM);
		failed += r != 0;
		if (r == 0)
			pm->ops->frame_drop(pm, 0, 1);
	}
	cr_assert(failed > 150 && failed < 350, "%u of 1000", failed);
	fill(0, 10);
	sim_fail_rate(&faults, SIM_FRAME_NEW, -ENOMEM, 0);
	for (unsigned i = 0; i < 50; i++)
		new_frames(i, 1);
}

/* Broken contracts. */

static void
enter_from_a_hole(void)
{
	size_t done;

	pm->ops->enter(pm, 0, page(0), 0, 1, &done);
}

static void
remove_into_a_frame(void)
{
	size_t done;

	new_frames(1, 1);
	fill(0, 2);
	pm->ops->remove(pm, 0, page(0), 0, 2, &done);
}

static void
install_twice(void)
{
	size_t done;

	fill(0, 1);
	new_frames(0, 1);
	pm->ops->enter(pm, 0, page(0), 0, 1, &done);
}

static void
drop_a_hole(void)
{
	pm->ops->frame_drop(pm, 0, 1);
}

static void
use_the_wrong_shard(void)
{
	size_t done;

	pm->ops->zero(pm, 1, page(0), 1, &done);
}

static void
leave_a_region(void)
{
	pm->ops->destroy(pm);
}

static void
enter_under_write(void)
{
	struct swap_io io;
	size_t done;

	new_frames(0, 1);
	io_init(&io, SWAP_WRITE, 0, 0, 1);
	engine->ops->submit(engine, &io);
	pm->ops->enter(pm, 0, page(0), 0, 1, &done);
}

static void
drop_under_read(void)
{
	struct swap_io io;

	new_frames(0, 1);
	io_init(&io, SWAP_READ, 0, 0, 1);
	engine->ops->submit(engine, &io);
	pm->ops->frame_drop(pm, 0, 1);
}

static void
read_into_a_hole(void)
{
	struct swap_io io;

	io_init(&io, SWAP_READ, 0, 0, 1);
	engine->ops->submit(engine, &io);
}

static void
write_a_slot_twice_at_once(void)
{
	struct swap_io io[2];

	new_frames(0, 4);
	io_init(&io[0], SWAP_WRITE, 10, 0, 2);
	io_init(&io[1], SWAP_WRITE, 11, 2, 2);
	engine->ops->submit(engine, &io[0]);
	engine->ops->submit(engine, &io[1]);
}

static void
describe_too_few_pages(void)
{
	struct swap_io io;

	new_frames(0, 2);
	io_init(&io, SWAP_WRITE, 0, 0, 2);
	io.niov = 1;
	engine->ops->submit(engine, &io);
}

static void
leave_a_request(void)
{
	struct swap_io io;

	new_frames(0, 1);
	io_init(&io, SWAP_READ, 0, 0, 1);
	engine->ops->submit(engine, &io);
	engine->ops->destroy(engine);
}

Test(sim, a_broken_contract_is_an_abort_that_says_which, .init = rig_up, .fini = rig_unmake)
{
	dies_saying(enter_from_a_hole, "sim: enter: 0 is a hole, not a frame");
	dies_saying(remove_into_a_frame, "sim: remove: 1 is a frame, not a hole");
	dies_saying(install_twice, "is there already");
	dies_saying(drop_a_hole, "sim: frame_drop: 0 is a hole, not a frame");
	dies_saying(use_the_wrong_shard, "is served by shard 0, not 1");
	dies_saying(leave_a_region, "is still mapped");
	dies_saying(enter_under_write, "sim: enter: frame 0 is under I/O");
	dies_saying(drop_under_read, "sim: frame_drop: frame 0 is under I/O");
	dies_saying(read_into_a_hole, "sim: I/O: 0 is a hole, not a frame");
	dies_saying(write_a_slot_twice_at_once, "write of slots 11 + 2 while a write of 10 + 2");
	dies_saying(describe_too_few_pages, "iovecs for 1 pages, not 2");
	dies_saying(leave_a_request, "destroyed with 1 requests in flight");
}

#ifdef WITH_ASAN
static void
read_a_hole(void)
{
	volatile char *p = pmap_frame(pm, 3);

	if (p[100] == 0) /* dies here; _exit tells if not */
		_exit(1);
}

static void
die_by_asan(void)
{
	/* The report ends the process with exit(), where abort() is wanted. */
	pid_t pid = fork();
	int status = 0;

	if (pid == 0)
		read_a_hole();
	waitpid(pid, &status, 0);
	if (status != 0)
		abort();
}
#endif

static void
write_a_hole(void)
{
	*((volatile char *)pmap_frame(pm, 3) + 100) = 1;
	new_frames(3, 1);
}

Test(sim, a_stale_use_of_a_frame_is_seen, .init = rig_up, .fini = rig_unmake)
{
	unsigned char *p = pmap_frame(pm, 3);

	new_frames(3, 1);
	cr_assert(eq(u8, p[100], 0xa5), "a new frame holds garbage, not zeros");
	memset(p, 0, PAGE_SIZE);
	pm->ops->frame_drop(pm, 3, 1);
#ifdef WITH_ASAN
	dies_saying(die_by_asan, "use-after-poison");
	(void)write_a_hole;
#else
	cr_assert(eq(u8, p[100], 0xdb), "a hole holds garbage");
	dies_saying(write_a_hole, "frame 3 was written to while it was a hole");
#endif
}

/* The disk. */

Test(sim, the_disk_gives_back_what_it_was_given_in_any_order, .init = rig_up, .fini = rig_unmake)
{
	struct swap_io io[8];
	struct swap_io *done;
	unsigned swaps[2] = { 0 }, k = 0;

	new_frames(0, 64);
	for (unsigned round = 0; round < 20; round++) {
		/* Out of order both ways: by delay, and of those due at the same time. */
		sim_disk_delay(disk, round < 10 ? 0 : 5);
		for (unsigned i = 0; i < 8; i++) {
			for (unsigned f = 0; f < 8; f++)
				memset(pmap_frame(pm, i * 8 + f), (int)(round + i * 8 + f),
				       PAGE_SIZE);
			io_init(&io[i], SWAP_WRITE, 100 + i * 8, i * 8, 8);
			cr_assert(eq(int, engine->ops->submit(engine, &io[i]), 0));
		}
		engine->ops->flush(engine);
		k = 0;
		for (done = reap(8); done != NULL; done = done->next) {
			cr_assert(eq(int, done->result, 0));
			cr_assert(eq(sz, done->done, 8 * PAGE_SIZE));
			swaps[round / 10] += done != &io[k++];
		}
		cr_assert(eq(int, disk_do(SWAP_READ, 100, 0, 64), 0));
		for (unsigned f = 0; f < 64; f++) {
			const unsigned char *p = pmap_frame(pm, f);

			cr_assert(eq(u8, p[0], (uint8_t)(round + f)));
			cr_assert(eq(int, memcmp(p, p + 1, PAGE_SIZE - 1), 0));
		}
	}
	cr_assert(gt(uint, swaps[0], 20), "what was due together came in order");
	cr_assert(gt(uint, swaps[1], 20), "completions were in order");
}

Test(sim, a_slot_never_written_does_not_read_as_zeros, .init = rig_up, .fini = rig_unmake)
{
	const unsigned char *p = pmap_frame(pm, 0);

	new_frames(0, 1);
	cr_assert(sim_disk_peek(disk, 5) == NULL);
	cr_assert(eq(int, disk_do(SWAP_READ, 5, 0, 1), 0));
	cr_assert(ne(u8, p[0], 0));
}

Test(sim, a_full_queue_is_ebusy, .init = rig_up, .fini = rig_unmake)
{
	struct swap_io io[9];

	new_frames(0, 9);
	for (unsigned i = 0; i < 9; i++) {
		io_init(&io[i], SWAP_READ, i, i, 1);
		cr_assert(eq(int, engine->ops->submit(engine, &io[i]), i < 8 ? 0 : -EBUSY));
	}
	cr_assert(eq(uint, engine->inflight, 8));
	reap(8);
	cr_assert(eq(uint, engine->inflight, 0));
}

Test(sim, a_bad_sector_fails_its_cluster_every_time_and_alone, .init = rig_up, .fini = rig_unmake)
{
	struct sim_disk_stats st;

	new_frames(0, 8);
	memset(pmap_frame(pm, 0), 1, 8 * PAGE_SIZE);
	sim_disk_bad(disk, 13, SWAP_WRITE, true);
	for (int i = 0; i < 3; i++)
		cr_assert(eq(int, disk_do(SWAP_WRITE, 10, 0, 8), -EIO));
	cr_assert(sim_disk_peek(disk, 13) == NULL);
	cr_assert(eq(int, disk_do(SWAP_WRITE, 10, 0, 3), 0));
	cr_assert(eq(int, disk_do(SWAP_WRITE, 14, 4, 4), 0));
	sim_disk_bad(disk, 13, SWAP_WRITE, false);
	cr_assert(eq(int, disk_do(SWAP_WRITE, 13, 0, 1), 0));

	sim_disk_bad(disk, 13, SWAP_READ, true);
	cr_assert(eq(int, disk_do(SWAP_READ, 13, 0, 1), -EIO));
	cr_assert(ne(u8, *(unsigned char *)pmap_frame(pm, 0), 1), "a failed read delivered");
	cr_assert(eq(int, disk_do(SWAP_READ, 12, 0, 1), 0));
	sim_disk_stats(disk, &st);
	cr_assert(eq(u64, st.errors, 4));
	cr_assert(eq(u64, st.written_pages, 8));
	cr_assert(eq(u64, st.lies, 0));
}

Test(sim, an_injected_write_error_may_store_a_part, .init = rig_up, .fini = rig_unmake)
{
	unsigned stored = 0;

	new_frames(0, 8);
	sim_fail_rate(&faults, SIM_WRITE, -ENOSPC, 1000);
	for (slot_t slot = 0; slot < 160; slot += 8)
		cr_assert(eq(int, disk_do(SWAP_WRITE, slot, 0, 8), -ENOSPC));
	for (slot_t slot = 0; slot < 160; slot++)
		stored += sim_disk_peek(disk, slot) != NULL;
	cr_assert(stored > 0 && stored <= 20 * 7, "%u pages stored", stored);
}

Test(sim, a_lie_changes_the_bytes_and_not_the_result, .init = rig_up, .fini = rig_unmake)
{
	unsigned char *a = pmap_frame(pm, 0), *b = pmap_frame(pm, 1);
	struct sim_disk_stats st;
	unsigned bits = 0;

	new_frames(0, 2);
	cr_assert(not(sim_disk_corrupt(disk, 0, SIM_FLIP)));
	memset(a, 0x11, PAGE_SIZE);
	cr_assert(eq(int, disk_do(SWAP_WRITE, 0, 0, 1), 0));
	cr_assert(not(sim_disk_corrupt(disk, 0, SIM_STALE)), "there is no older content");
	cr_assert(not(sim_disk_corrupt(disk, 0, SIM_OTHER)), "there is no other slot");

	cr_assert(sim_disk_corrupt(disk, 0, SIM_FLIP));
	cr_assert(eq(int, disk_do(SWAP_READ, 0, 1, 1), 0));
	for (size_t i = 0; i < PAGE_SIZE; i++)
		bits += (unsigned)__builtin_popcount(a[i] ^ b[i]);
	cr_assert(eq(uint, bits, 1));

	memset(a, 0x22, PAGE_SIZE);
	cr_assert(eq(int, disk_do(SWAP_WRITE, 1, 0, 1), 0));
	memset(a, 0x33, PAGE_SIZE);
	cr_assert(eq(int, disk_do(SWAP_WRITE, 1, 0, 1), 0));
	cr_assert(sim_disk_corrupt(disk, 1, SIM_STALE));
	cr_assert(eq(int, disk_do(SWAP_READ, 1, 1, 1), 0));
	cr_assert(eq(u8, b[7], 0x22));

	memset(a, 0x44, PAGE_SIZE);
	cr_assert(eq(int, disk_do(SWAP_WRITE, 0, 0, 1), 0));
	cr_assert(sim_disk_corrupt(disk, 0, SIM_OTHER));
	cr_assert(eq(int, disk_do(SWAP_READ, 0, 1, 1), 0));
	cr_assert(eq(u8, b[7], 0x22));
	sim_disk_stats(disk, &st);
	cr_assert(eq(u64, st.lies, 3));
	cr_assert(eq(u64, st.errors, 0));
}

Test(sim, a_lost_write_is_acknowledged_and_not_stored, .init = rig_up, .fini = rig_unmake)
{
	unsigned char *a = pmap_frame(pm, 0);
	struct sim_disk_stats st;

	new_frames(0, 1);
	memset(a, 0x11, PAGE_SIZE);
	cr_assert(eq(int, disk_do(SWAP_WRITE, 0, 0, 1), 0));
	sim_disk_lie(disk, SIM_STALE, 1000);
	cr_assert(eq(int, disk_do(SWAP_WRITE, 0, 0, 1), 0));
	sim_disk_stats(disk, &st);
	cr_assert(eq(u64, st.lies, 0), "the same bytes again are no loss");
	memset(a, 0x22, PAGE_SIZE);
	cr_assert(eq(int, disk_do(SWAP_WRITE, 0, 0, 1), 0));
	sim_disk_lie(disk, SIM_STALE, 0);
	cr_assert(eq(int, disk_do(SWAP_READ, 0, 0, 1), 0));
	cr_assert(eq(u8, a[0], 0x11));
	sim_disk_stats(disk, &st);
	cr_assert(eq(u64, st.lies, 1));
}

Test(sim, held_requests_come_back_only_when_released, .init = rig_up, .fini = rig_unmake)
{
	struct swap_io w, r;
	struct io_events ev;
	size_t done;

	new_frames(0, 2);
	sim_disk_hold(disk, SWAP_WRITE);
	io_init(&w, SWAP_WRITE, 0, 0, 1);
	io_init(&r, SWAP_READ, 9, 1, 1);
	cr_assert(eq(int, engine->ops->submit(engine, &w), 0));
	cr_assert(eq(int, engine->ops->submit(engine, &r), 0));
	cr_assert(eq(ptr, reap(1), &r));
	for (int i = 0; i < 50; i++) {
		engine->ops->wait(engine, -1, &ev);
		cr_assert(ev.completed == NULL);
	}
	cr_assert(sim_disk_peek(disk, 0) == NULL);
	sim_disk_release(disk, SWAP_WRITE);
	engine->ops->wait(engine, -1, &ev);
	cr_assert(eq(ptr, ev.completed, &w));
	cr_assert(sim_disk_peek(disk, 0) != NULL);
	cr_assert(eq(int, pm->ops->enter(pm, 0, page(0), 0, 1, &done), 0),
		  "the frame is free again");
}

Test(sim, wait_says_what_happened_and_never_hangs, .init = rig_up, .fini = rig_unmake)
{
	struct pmap_fault buf[4];
	struct io_events ev;
	struct swap_io io;

	engine->ops->wait(engine, -1, &ev);
	cr_assert(ev.completed == NULL && !ev.kicked && !ev.readable);
	engine->ops->kick(engine);
	engine->ops->wait(engine, -1, &ev);
	cr_assert(ev.kicked && !ev.readable);
	engine->ops->wait(engine, 0, &ev);
	cr_assert(not(ev.kicked));

	put(0, 0, 1);
	engine->ops->wait(engine, -1, &ev);
	cr_assert(ev.readable);
	engine->ops->wait(engine, -1, &ev);
	cr_assert(ev.readable, "nobody has read the message yet");
	pm->ops->faults(pm, 0, buf, 4);

	new_frames(0, 1);
	sim_disk_delay(disk, 100);
	io_init(&io, SWAP_READ, 0, 0, 1);
	cr_assert(eq(int, engine->ops->submit(engine, &io), 0));
	engine->ops->wait(engine, -1, &ev);
	cr_assert(eq(ptr, ev.completed, &io), "no limit: waits as long as it takes");
	cr_assert(not(ev.readable));
}

Test(sim, two_engines_share_a_disk_and_reap_their_own, .init = rig_up, .fini = rig_unmake)
{
	struct io_engine *other;
	struct io_events ev;
	struct swap_io a, b;

	cr_assert(eq(int, io_engine_sim_create(&other, disk, 8, NULL), 0));
	new_frames(0, 2);
	io_init(&a, SWAP_READ, 0, 0, 1);
	io_init(&b, SWAP_READ, 0, 1, 1);
	cr_assert(eq(int, engine->ops->submit(engine, &a), 0));
	cr_assert(eq(int, other->ops->submit(other, &b), 0));
	/* Let `a` be due, so that the other engine could take it by mistake. */
	sim_disk_hold(disk, SWAP_READ);
	for (int i = 0; i < 10; i++)
		engine->ops->wait(engine, 0, &ev);
	sim_disk_release(disk, SWAP_READ);
	other->ops->wait(other, -1, &ev);
	cr_assert(ev.completed == &b && b.next == NULL);
	cr_assert(eq(uint, engine->inflight, 1));
	cr_assert(eq(ptr, reap(1), &a));
	other->ops->destroy(other);
}

Test(sim, bytes_travel_at_some_moment_between_submit_and_reaping)
{
	unsigned late_write = 0, early_read = 0;

	for (uint64_t seed = 0; seed < 200; seed++) {
		struct swap_io io;
		struct io_events ev;
		unsigned char *p;
		const unsigned char *now;

		rig_make(seed, 0);
		p = pmap_frame(pm, 0);
		new_frames(0, 1);
		memset(p, 1, PAGE_SIZE);
		io_init(&io, SWAP_WRITE, 0, 0, 1);
		cr_assert(eq(int, engine->ops->submit(engine, &io), 0));
		engine->ops->flush(engine);
		memset(p, 2, PAGE_SIZE); /* too early */
		reap(1);
		now = sim_disk_peek(disk, 0);
		cr_assert(now[0] == 1 || now[0] == 2);
		late_write += now[0] == 2;

		memset(p, 9, PAGE_SIZE);
		io_init(&io, SWAP_READ, 0, 0, 1);
		cr_assert(eq(int, engine->ops->submit(engine, &io), 0));
		cr_assert(ne(u8, p[0], 9), "what was there before must not pass for data");
		engine->ops->wait(engine, 0, &ev);
		early_read += p[0] != now[0]; /* too early, unless it was reaped */
		if (ev.completed == NULL)
			reap(1);
		cr_assert(eq(u8, p[0], now[0]));
		rig_unmake();
	}
	cr_assert(late_write > 20 && late_write < 180, "%u of 200", late_write);
	cr_assert(early_read > 20 && early_read < 180, "%u of 200", early_read);
}

/*
 * Both together: the least pager that there can be, one page at a time, beside a plain array.
 * It shows that the sims can be driven to the end with everything failing at once, and is what
 * the test of determinism repeats.
 */
struct naive {
	uint64_t oracle[NPAGES];
	slot_t slot[NPAGES];  /* content is on disk, or SLOT_NONE */
	bool touched[NPAGES]; /* not all zeros */
	unsigned nresident, hand;
	uint64_t history; /* hash of what happened */
};

#define NAIVE_MAX 24  /* pages in core */
#define NAIVE_FRAME 0 /* the only frame it uses */

/* Call again while the kernel says so. */
#define INSIST(r, call, again)                                                  \
	do {                                                                    \
		unsigned tries_ = 0;                                            \
		do                                                              \
			(r) = (call);                                           \
		while ((again) && ++tries_ < 1000);                             \
		cr_assert(lt(uint, tries_, 1000), "%s: never succeeds", #call); \
	} while (0)

static void
naive_evict(struct naive *nv)
{
	size_t done;
	int r = -EBUSY;

	while (r != 0) {
		do
			nv->hand = (nv->hand + 1) % NPAGES;
		while (sim_state(pm, page(nv->hand)) != SIM_PRESENT);
		INSIST(r, pm->ops->remove(pm, 0, page(nv->hand), NAIVE_FRAME, 1, &done),
		       r == -EAGAIN || r == -ENOMEM);
	}
	INSIST(r, disk_do(SWAP_WRITE, nv->hand, NAIVE_FRAME, 1), r != 0);
	nv->slot[nv->hand] = nv->hand;
	nv->nresident--;
	pm->ops->frame_drop(pm, NAIVE_FRAME, 1);
}

static void
naive_serve(struct naive *nv, unsigned i)
{
	size_t done;
	int r;

	if (sim_state(pm, page(i)) == SIM_PRESENT) {
		pm->ops->wake(pm, 0, page(i), 1);
		return;
	}
	if (nv->nresident == NAIVE_MAX)
		naive_evict(nv);
	nv->nresident++;
	if (nv->slot[i] == SLOT_NONE) {
		INSIST(r, pm->ops->zero(pm, 0, page(i), 1, &done), r == -EAGAIN || r == -ENOMEM);
	} else {
		INSIST(r, pm->ops->frame_new(pm, NAIVE_FRAME, 1, &done), r != 0);
		INSIST(r, disk_do(SWAP_READ, nv->slot[i], NAIVE_FRAME, 1), r != 0);
		INSIST(r, pm->ops->enter(pm, 0, page(i), NAIVE_FRAME, 1, &done),
		       r == -EAGAIN || r == -ENOMEM);
		if (r == -EEXIST)
			pm->ops->frame_drop(pm, NAIVE_FRAME, 1);
	}
	cr_assert(r == 0 || r == -EEXIST, "page %u: %d", i, r);
	if (r == -EEXIST)
		pm->ops->wake(pm, 0, page(i), 1);
}

static void
naive_touch(struct naive *nv, unsigned thread, unsigned i, bool write)
{
	struct pmap_fault buf[8];
	uint64_t value = sim_below(&faults, UINT64_MAX);
	enum sim_result r = SIM_FAULT;

	for (unsigned tries = 0; r != SIM_OK; tries++) {
		cr_assert(lt(uint, tries, 1000), "thread %u never got page %u", thread, i);
		r = write ? put(thread, i, value) : get(thread, i, &value);
		if (r == SIM_OK)
			break;
		cr_assert(eq(int, r, SIM_FAULT));
		for (unsigned k = 0, n = pm->ops->faults(pm, 0, buf, 8); k < n; k++) {
			nv->history = nv->history * 31 + buf[k].va;
			naive_serve(nv, (unsigned)((buf[k].va - va) / PAGE_SIZE));
		}
		cr_assert(eq(int, sim_stranded(pm), -1));
	}
	if (write)
		nv->oracle[i] = value;
	cr_assert(eq(u64, value, nv->oracle[i]), "page %u", i);
	nv->history = nv->history * 31 + value;
}

static uint64_t
naive_run(uint64_t seed, uint64_t mask, unsigned ops)
{
	struct naive nv = { .nresident = 0 };
	uint64_t injected = 0;

	rig_make(seed, mask);
	memset(nv.slot, 0xff, sizeof(nv.slot));
	sim_messages(pm, 200, 300, 3);
	sim_fail_rate(&faults, SIM_ZERO, -EAGAIN, 100);
	sim_fail_rate(&faults, SIM_ZERO, -EEXIST, 100);
	sim_fail_rate(&faults, SIM_ENTER, -EAGAIN, 100);
	sim_fail_rate(&faults, SIM_ENTER, -EEXIST, 100);
	sim_fail_rate(&faults, SIM_REMOVE, -EBUSY, 100);
	sim_fail_rate(&faults, SIM_REMOVE, -ENOMEM, 100);
	sim_fail_rate(&faults, SIM_FRAME_NEW, -ENOMEM, 100);
	sim_fail_rate(&faults, SIM_READ, -EIO, 100);
	sim_fail_rate(&faults, SIM_WRITE, -EIO, 100);
	for (unsigned i = 0; i < ops; i++)
		naive_touch(&nv, i % 8, (unsigned)sim_below(&faults, NPAGES),
			    sim_chance(&faults, 500));
	for (unsigned op = 0; op < SIM_NOPS; op++)
		injected += faults.injected[op];
	cr_assert(gt(u64, injected, ops / 20), "hardly anything failed");
	/* One more for the frame beside a late EEXIST, or one copy on an old kernel. */
	cr_assert(le(sz, sim_resident_pages_max(pm), NAIVE_MAX + 1));
	rig_unmake();
	return nv.history;
}

Test(sim, a_naive_pager_keeps_every_byte_while_everything_fails)
{
	for (uint64_t seed = 0; seed < 10; seed++)
		naive_run(seed, seed % 2 ? UP_MASK_MOVE : 0, 3000);
}

Test(sim, the_same_seed_tells_the_same_story)
{
	const uint64_t first = naive_run(42, 0, 2000);

	cr_assert(eq(u64, naive_run(42, 0, 2000), first));
	cr_assert(ne(u64, naive_run(43, 0, 2000), first));
}
