/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_events.c: the list of what the program did to regions itself, and what foreign.c makes of it, over the simulated kernel,
 * which knows nothing of events: the test says what happened, and in which order it is heard of.
 */
#include "assertions.h"

#include "pmap/events.h"
#include "rig.h"

#define P PAGE_SIZE

static struct events list;
static struct pmap_ops ops; /* the simulated kernel's, with events */
static const struct pmap_ops *sim;
static int there;    /* what registered() says */
static bool settled; /* what settled() says */

TestSuite(events, .timeout = 60);

static struct pmap_event
event(enum pmap_event_kind kind, uintptr_t va, size_t npages, uintptr_t to)
{
	return (struct pmap_event){ .kind = kind, .va = va, .len = npages * P, .to = to };
}

Test(events, what_is_left_of_one_keeps_its_place)
{
	struct pmap_event ev;
	size_t gone;

	events_init(&list);
	cr_assert(events_add(&list, event(PMAP_UNMAP, 16 * P, 16, 0)));
	cr_assert(events_add(&list, event(PMAP_REMOVE, 64 * P, 1, 0)));
	cr_assert(events_next(&list, 0, &ev));
	cr_assert(events_clip(&list, ev.number, 20 * P, 24 * P));
	cr_assert(eq(sz, events_clear(&list, 0, 10 * P, 20), 6));
	cr_assert(eq(sz, events_clear(&list, 0, 20 * P, 20), 4));
	cr_assert(eq(sz, events_clear(&list, 1, 16 * P, 20), 20));
	cr_assert(eq(sz, events_there(&list, 0, 64 * P, 1, &gone), 1));
	cr_assert(eq(sz, events_there(&list, 0, 18 * P, 9, &gone), 0));
	cr_assert(eq(sz, gone, 2));
	cr_assert(events_next(&list, ev.number, &ev) && ev.kind == PMAP_UNMAP && ev.va == 24 * P);
	cr_assert(events_clip(&list, ev.number, 24 * P, 32 * P));
	cr_assert(events_next(&list, 0, &ev) && ev.va == 16 * P && ev.len == 4 * P);
	events_done(&list, ev.number);
	cr_assert(events_next(&list, 0, &ev) && ev.kind == PMAP_REMOVE);
	events_done(&list, ev.number);
	cr_assert(events_next(&list, 0, &ev) == false);
	events_fini(&list);
}

static bool
op_event(struct pmap *pm, uint64_t after, struct pmap_event *ev)
{
	(void)pm;
	return events_next(&list, after, ev);
}

static void
op_done(struct pmap *pm, const struct pmap_event *ev)
{
	(void)pm;
	events_done(&list, ev->number);
}

static bool
op_clip(struct pmap *pm, const struct pmap_event *ev, uintptr_t va, uintptr_t end)
{
	(void)pm;
	return events_clip(&list, ev->number, va, end);
}

static uint64_t
op_token(struct pmap *pm)
{
	(void)pm;
	return 0;
}

static bool
op_settled(struct pmap *pm, unsigned shard, uint64_t token)
{
	(void)pm;
	(void)shard;
	(void)token;
	return settled;
}

static int
op_registered(struct pmap *pm, unsigned shard, uintptr_t va, size_t n)
{
	(void)pm;
	(void)shard;
	(void)va;
	(void)n;
	return there;
}

static void
op_drain(struct pmap *pm, int timeout_ms)
{
	(void)pm;
	(void)timeout_ms;
}

static int
op_zero(struct pmap *pm, unsigned shard, uintptr_t va, size_t n, size_t *done)
{
	const size_t k = events_clear(&list, shard, va, n);
	int r = 0;

	*done = 0;
	if (k > 0)
		r = sim->zero(pm, shard, va, k, done);
	return r == 0 && k < n ? -EAGAIN : r;
}

static int
op_enter(struct pmap *pm, unsigned shard, uintptr_t va, frame_t frame, size_t n, size_t *done)
{
	const size_t k = events_clear(&list, shard, va, n);
	int r = 0;

	*done = 0;
	if (k > 0)
		r = sim->enter(pm, shard, va, frame, k, done);
	return r == 0 && k < n ? -EAGAIN : r;
}

static struct rig *
up(void)
{
	struct rig *r = rig_up(&(struct rig_config){ .seed = 11 });

	events_init(&list);
	there = 0;
	settled = true;
	sim = r->pm->ops;
	ops = *sim;
	ops.event = op_event;
	ops.event_done = op_done;
	ops.event_clip = op_clip;
	ops.token = op_token;
	ops.settled = op_settled;
	ops.registered = op_registered;
	ops.drop = sim->discard;
	ops.drain = op_drain;
	ops.zero = op_zero;
	ops.enter = op_enter;
	r->pm->ops = &ops;
	cr_assert(foreign_start(&r->rt->foreign, r->p, false) == 0);
	r->p->foreign = &r->rt->foreign;
	return r;
}

/* As every call that changes mappings begins; true if nothing stands any more. */
static bool
work(struct rig *r)
{
	bool ok;

	pthread_mutex_lock(&r->p->map.change);
	ok = foreign_work(&r->rt->foreign);
	pthread_mutex_unlock(&r->p->map.change);
	return ok;
}

static void
hear(struct pmap_event ev)
{
	cr_assert(events_add(&list, ev));
}

static void
munmap_behind(struct rig *r, uintptr_t va, size_t n)
{
	sim_discard_behind(r->pm, va, n);
	cr_assert(sim->unmap(r->pm, va, n * P, 0) == 0);
}

static size_t
mapped(struct rig *r)
{
	return (size_t)r->p->map.pages;
}

/* Eight times what there is room for: pages in every state. */
#define MANY 4096

static uintptr_t
filled(struct rig *r)
{
	const uintptr_t p = (uintptr_t)rig_map(r, MANY * P);

	for (size_t i = 0; i < MANY; i++)
		rig_put(r, p + i * P, i + 1);
	return p;
}

Test(events, what_is_discarded_is_zeros_whatever_state_it_was_in)
{
	struct rig *r = up();
	const uintptr_t p = filled(r);

	for (size_t i = 0; i < MANY; i += 3) {
		/* Some pages go when the event is heard of, others have gone by the time it is acted upon. */
		if (i % 2 == 0)
			sim_discard_behind(r->pm, p + i * P, 1);
		hear(event(PMAP_REMOVE, p + i * P, 1, 0));
		if (i % 64 == 0)
			cr_assert(work(r));
	}
	cr_assert(work(r));
	for (size_t i = 0; i < MANY; i++)
		cr_assert(eq(u64, rig_get(r, p + i * P), i % 3 == 0 ? 0 : i + 1));
	rig_down(r);
	events_fini(&list);
}

Test(events, what_is_unmapped_is_freed_whatever_state_it_was_in)
{
	struct rig *r = up();
	const uintptr_t p = filled(r);

	for (size_t i = 0; i < MANY; i += 128) {
		munmap_behind(r, p + i * P, 64);
		hear(event(PMAP_UNMAP, p + i * P, 64, 0));
	}
	cr_assert(work(r));
	cr_assert(eq(sz, mapped(r), MANY / 2));
	for (size_t i = 0; i < MANY; i++) {
		if (i % 128 >= 64)
			cr_assert(eq(u64, rig_get(r, p + i * P), i + 1));
	}
	rig_down(r);
	events_fini(&list);
}

/* A region of `n` pages that nobody has touched, moved by the program to where `to` was. */
static uintptr_t
move(struct rig *r, uintptr_t from, size_t n, uintptr_t to)
{
	uintptr_t at;

	cr_assert(sim->unmap(r->pm, from, n * P, 0) == 0);
	cr_assert(sim->map(r->pm, to, to != 0, n * P, PROT_READ | PROT_WRITE, 0, &at) == 0);
	hear(event(PMAP_REMAP, from, n, at));
	return at;
}

Test(events, an_unmap_heard_of_after_a_move_is_about_what_was_there_before)
{
	struct rig *r = up();
	const uintptr_t x = (uintptr_t)rig_map(r, 64 * P), o = (uintptr_t)rig_map(r, 64 * P);
	const struct object *moved = map_lookup(&r->p->map, x)->object;

	munmap_behind(r, o, 64);
	cr_assert(move(r, x, 64, o) == o);
	/* Until the other's end has been told, nobody knows. */
	settled = false;
	cr_assert(work(r) == false);
	hear(event(PMAP_UNMAP, x, 64, 0)); /* of where it was */
	hear(event(PMAP_UNMAP, o, 64, 0)); /* late */
	settled = true;
	there = 1;
	cr_assert(work(r));
	cr_assert(eq(sz, mapped(r), 64));
	cr_assert(map_lookup(&r->p->map, o)->object == moved);
	/* The next is about what is there now. */
	munmap_behind(r, o, 64);
	hear(event(PMAP_UNMAP, o, 64, 0));
	cr_assert(work(r));
	cr_assert(eq(sz, mapped(r), 0));
	rig_down(r);
	events_fini(&list);
}

Test(events, what_was_moved_and_unmapped_before_anybody_looked_is_gone)
{
	struct rig *r = up();
	const uintptr_t x = (uintptr_t)rig_map(r, 64 * P), at = move(r, x, 64, 0);

	hear(event(PMAP_UNMAP, x, 64, 0));
	munmap_behind(r, at, 64);
	hear(event(PMAP_UNMAP, at, 64, 0));
	cr_assert(work(r));
	cr_assert(eq(sz, mapped(r), 0));
	rig_down(r);
	events_fini(&list);
}

Test(events, who_moved_away_can_not_be_told_so_both_are_lost)
{
	struct rig *r = up();
	const uintptr_t x = (uintptr_t)rig_map(r, 64 * P), o = (uintptr_t)rig_map(r, 64 * P);
	uintptr_t away;

	munmap_behind(r, o, 64);
	cr_assert(move(r, x, 64, o) == o);
	away = move(r, o, 64, 0);
	hear(event(PMAP_UNMAP, o, 64, 0));
	cr_assert(work(r));
	cr_assert(eq(sz, mapped(r), 0));
	cr_assert(sim->unmap(r->pm, away, 64 * P, 0) == 0);
	rig_down(r);
	events_fini(&list);
}
