/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * scene.h: a rig in a state of one's choice, and counters that must agree to the last one.
 *
 *	scene((struct rig_config){ .seed = 1 });
 *	va = rig_map(r, 8 * PAGE_SIZE);
 *	for (...) put_page(va + i * PAGE_SIZE, i);
 *	seen();					what was counted until here is as it is
 *	swap_out();
 *	expect(.pages_staged = 8, .pages_out = 8, .swap_writes = 1, .swap_write_bytes = 8 * PAGE_SIZE);
 *	over();
 *
 * expect() names every counter of up_stats that changed since the last look: one that is not named must not
 * have moved.  What pushes pages along is memory that we charge to the budget and do not use, so that
 * a test chooses what moves, and when.
 */
#ifndef UP_TESTS_SCENE_H
#define UP_TESTS_SCENE_H

#include "assertions.h"
#include <stdio.h>
#include <string.h>

#include "rig.h"

static struct rig *r;
static struct up_stats scene_seen;
static size_t scene_taken; /* bytes of budget that we sit on */

static inline void
seen(void)
{
	scene_seen = rig_stats(r);
}

static inline void
scene(struct rig_config cfg)
{
	r = rig_up(&cfg);
	scene_taken = 0;
	seen();
}

/* --- counters --- */

static inline void
expect_at(int line, const struct up_stats *want)
{
	static const char *const name[] = {
		"minor",
		"zero",
		"soft",
		"major",
		"wp",
		"fault_waits",
		"fault_retries",
		"fault_strays",
		"fault_sigbus",
		"rescues",
		"foreign_discards",
		"readahead_pages",
		"zero_ahead_pages",
		"pages_staged",
		"pages_out",
		"clean_skips",
		"zero_skips",
		"pages_pinned",
		"swap_reads",
		"swap_writes",
		"swap_read_bytes",
		"swap_write_bytes",
		"swap_read_errors",
		"swap_write_errors",
		"checksum_errors",
		"bad_slots",
	};
	const struct up_stats now = rig_stats(r);
	const uint64_t *a = &now.faults[0], *b = &scene_seen.faults[0], *w = &want->faults[0];
	char wrong[2000] = "";
	size_t at = 0;

	/* The counters are an array of words in front of the levels. */
	_Static_assert(offsetof(struct up_stats, limit) ==
			       sizeof name / sizeof name[0] * sizeof(uint64_t),
		       "a counter has been added: name it");
	for (size_t i = 0; i < ARRAY_SIZE(name); i++) {
		if (a[i] - b[i] != w[i])
			at += (size_t)snprintf(wrong + at, sizeof wrong - at,
					       "  %s: %llu, not %llu\n", name[i],
					       (unsigned long long)(a[i] - b[i]),
					       (unsigned long long)w[i]);
	}
	cr_assert(wrong[0] == '\0', "line %d: counters:\n%s", line, wrong);
	scene_seen = now;
}

#define expect(...) expect_at(__LINE__, &(struct up_stats){ __VA_ARGS__ })
#define ZEROS(n) .faults[UP_FAULT_ZERO] = (n)
#define SOFT(n) .faults[UP_FAULT_SOFT] = (n)
#define MAJOR(n) .faults[UP_FAULT_MAJOR] = (n)
#define MINOR(n) .faults[UP_FAULT_MINOR] = (n)
#define WP(n) .faults[UP_FAULT_WP] = (n)
#define READ(requests, pages) .swap_reads = (requests), .swap_read_bytes = (pages)*PAGE_SIZE
#define WROTE(requests, pages) .swap_writes = (requests), .swap_write_bytes = (pages)*PAGE_SIZE

/* --- where a page is --- */

enum where { NOWHERE, MAPPED, STAGED, CLEAN, LAUNDRY, SWAPPED, LOST };

static inline struct anon *
anon_at(uintptr_t va)
{
	const struct map_entry *e = map_lookup(&r->p->map, va);
	uint64_t index;
	struct leaf *l;

	cr_assert(e != NULL, "%#lx is not mapped", (unsigned long)va);
	index = e->offset + ((va - e->start) >> PAGE_SHIFT);
	l = object_leaf(e->object, index, NULL);
	if (l == NULL)
		return NULL;
	pthread_mutex_unlock(&l->lock);
	return leaf_anon(l, (unsigned)(index - l->base));
}

/* The page of what is in core at va, or NULL. */
static inline struct page *
page_of(uintptr_t va)
{
	const struct anon *an = anon_at(va);

	return an != NULL && anon_in_core(an) ? page_at(&r->p->pages, an->loc) : NULL;
}

static inline enum where
where(uintptr_t va)
{
	const struct anon *an = anon_at(va);
	const struct page *pg = page_of(va);

	if (an == NULL)
		return NOWHERE;
	if (pg == NULL)
		return an->kind == ANON_SWAP ? SWAPPED : LOST;
	switch ((enum page_state)atomic_load(&pg->state)) {
	case PAGE_MAPPED:
		return MAPPED;
	case PAGE_LAUNDRY:
		return LAUNDRY;
	default:
		cr_assert(eq(int, pg->state, PAGE_STAGED));
		return page_queue_locked(pg) == Q_CLEAN ? CLEAN : STAGED;
	}
}

static inline void
all_are_at(int line, uintptr_t va, size_t n, enum where want)
{
	for (size_t i = 0; i < n; i++)
		cr_assert(eq(int, where(va + i * PAGE_SIZE), want), "line %d: page %zu", line, i);
}
#define all_are(va, n, want) all_are_at(__LINE__, va, n, want)

/* The slot that holds the content of a page that is out. */
static inline slot_t
slot_of(uintptr_t va)
{
	cr_assert(eq(int, where(va), SWAPPED));
	return anon_at(va)->loc;
}

/* --- content: every byte of a page follows from a number --- */

static inline uint64_t
word_of(uint64_t number, unsigned i)
{
	return (number + 1) * 0x9e3779b97f4a7c15u + i;
}

static inline void
put_page(uintptr_t va, uint64_t number)
{
	uint64_t w[PAGE_SIZE / 8];

	for (unsigned i = 0; i < ARRAY_SIZE(w); i++)
		w[i] = word_of(number, i);
	cr_assert(eq(int, rig_touch(r, 0, va, true, w, 0, sizeof w), SIM_OK));
}

static inline bool
is_page(const uint64_t *w, uint64_t number)
{
	unsigned i = 0;

	while (i < PAGE_SIZE / 8 && w[i] == word_of(number, i))
		i++;
	return i == PAGE_SIZE / 8;
}

static inline void
check_page_at(int line, uintptr_t va, uint64_t number)
{
	uint64_t w[PAGE_SIZE / 8] = { 0 };

	cr_assert(eq(int, rig_touch(r, 0, va, false, w, 0, sizeof w), SIM_OK), "line %d: %#lx",
		  line, (unsigned long)va);
	cr_assert(is_page(w, number), "line %d: page at %#lx does not hold what was written", line,
		  (unsigned long)va);
}
#define check_page(va, number) check_page_at(__LINE__, va, number)

static inline void
check_zeros(uintptr_t va)
{
	uint64_t w[PAGE_SIZE / 8];

	memset(w, 0xff, sizeof w);
	cr_assert(eq(int, rig_touch(r, 0, va, false, w, 0, sizeof w), SIM_OK));
	for (unsigned i = 0; i < ARRAY_SIZE(w); i++)
		cr_assert(zero(u64, w[i]));
}

static inline void
put_pages(uintptr_t va, size_t n, uint64_t number)
{
	for (size_t i = 0; i < n; i++)
		put_page(va + i * PAGE_SIZE, number + i);
}

static inline void
check_pages_at(int line, uintptr_t va, size_t n, uint64_t number)
{
	for (size_t i = 0; i < n; i++)
		check_page_at(line, va + i * PAGE_SIZE, number + i);
}
#define check_pages(va, n, number) check_pages_at(__LINE__, va, n, number)

/* A region that is touched page by page: no run of zeros gets in the way of counting. */
static inline uintptr_t
map_random(size_t npages)
{
	const uintptr_t va = rig_map(r, npages * PAGE_SIZE);

	cr_assert(zero(int, up_advise(r->rt, (void *)va, npages * PAGE_SIZE, UP_ADVICE_RANDOM)));
	return va;
}

/* The same, with something in its first pages. */
static inline uintptr_t
map_written(size_t npages, size_t nwritten, uint64_t number)
{
	const uintptr_t va = map_random(npages);

	put_pages(va, nwritten, number);
	return va;
}

/* A new anonymous object, all of it mapped. */
static inline uintptr_t
map_new_object(size_t npages, struct up_object **o)
{
	void *p;

	cr_assert(zero(int, up_object_create_anon(r->rt, npages * PAGE_SIZE, 0, o)));
	cr_assert(zero(int, up_map(r->rt, NULL, npages * PAGE_SIZE, PROT_READ | PROT_WRITE,
				   UP_SHARED, *o, 0, &p)));
	return (uintptr_t)p;
}

static inline void
advise(uintptr_t va, size_t npages, enum up_advice advice)
{
	cr_assert(zero(int, up_advise(r->rt, (void *)va, npages * PAGE_SIZE, advice)));
}

static inline void
unmap(uintptr_t va, size_t npages)
{
	cr_assert(zero(int, up_unmap(r->rt, (void *)va, npages * PAGE_SIZE)));
}

static inline unsigned
residency(uintptr_t va)
{
	unsigned char vec = 0xff;

	cr_assert(zero(int, up_residency(r->rt, (void *)va, PAGE_SIZE, &vec)));
	return vec;
}

/* --- pressure --- */

/* Leave room for so many pages, give or take less than one. */
static inline void
squeeze(size_t leave)
{
	struct budget *b = &r->p->budget;
	const size_t room = b->limit - atomic_load(&b->used);

	cr_assert(ge(sz, room, leave * PAGE_SIZE));
	cr_assert(budget_charge(b, room - leave * PAGE_SIZE));
	scene_taken += room - leave * PAGE_SIZE;
}

static inline void
unsqueeze(void)
{
	budget_uncharge(&r->p->budget, scene_taken);
	scene_taken = 0;
}

static frame_t scene_held[65536]; /* frames that we sit on */
static size_t scene_nheld;

/* Sit on free frames, and on those of clean pages if `clean`.  => squeezed */
static inline void
hold_frames(bool clean)
{
	frame_t first;
	size_t n;

	while ((n = frame_take(&r->p->frames, CLUSTER_MAX, &first)) > 0) {
		for (size_t i = 0; i < n; i++)
			scene_held[scene_nheld++] = first + (frame_t)i;
	}
	while (clean && page_count(&r->p->pages, Q_CLEAN) > 0) {
		n = frames_obtain(r->p, CLUSTER_MAX, scene_held + scene_nheld);
		cr_assert(gt(sz, n, 0));
		scene_nheld += n;
	}
}

/* Not one page is to be had, but what pageout brings. */
static inline void
no_room(void)
{
	squeeze(0);
	hold_frames(true);
}

/* All that was taken is there again. */
static inline void
give_room(void)
{
	unsqueeze();
	frames_release(r->p, scene_held, (unsigned)scene_nheld);
	scene_nheld = 0;
}

/*
 * Pageout leaves the youngest few pages mapped.  A test wants to say which pages go: while it presses,
 * let pageout believe that there are so many younger ones.
 */
#define SCENE_YOUNGER 64

static inline void
press(void)
{
	squeeze(0);
	hold_frames(false);
	r->p->pages.policy.queue[PQ_MAIN].n += SCENE_YOUNGER;
}

static inline void
relax(void)
{
	r->p->pages.policy.queue[PQ_MAIN].n -= SCENE_YOUNGER;
	give_room();
	rig_step(r);
}

/* Out of the page table, at most CLUSTER_MAX neighbours, the oldest first; not further. */
static inline void
stage(void)
{
	press();
	rig_step(r);
	relax();
}

/* The same, and on their way to a disk that answers no write. */
static inline void
launder(void)
{
	sim_disk_hold(r->disk, SWAP_WRITE);
	press();
	rig_step(r);
	rig_step(r);
	relax();
}

/* A few pages: written, and still in memory. */
static inline void
clean(void)
{
	press();
	rig_step(r);
	rig_settle(r);
	relax();
	rig_settle(r);
}

/* Everything that can leaves memory. */
static inline void
swap_out(void)
{
	size_t before;

	press();
	do {
		before = scene_nheld;
		rig_step(r);
		rig_settle(r);
		hold_frames(true);
	} while (scene_nheld > before);
	relax();
	rig_settle(r);
}

/* --- a page that is lost --- */

static inline void
expect_sigbus(uintptr_t va)
{
	uint64_t w;

	cr_assert(eq(int, rig_touch(r, 0, va, false, &w, 0, 8), SIM_SIGBUS));
}

/* Page `at` can not be had: the others of `n` can, and it can be used again once it is discarded. */
static inline void
lives_on(uintptr_t va, unsigned n, unsigned at, uint64_t number)
{
	const uintptr_t bad = va + (uintptr_t)at * PAGE_SIZE;

	cr_assert(eq(int, where(bad), LOST));
	cr_assert(eq(uint, residency(bad), UP_PAGE_LOST));
	cr_assert(eq(u64, rig_stats(r).lost, PAGE_SIZE));
	expect_sigbus(bad);
	for (unsigned i = 0; i < n; i++) {
		if (i != at)
			check_page(va + (uintptr_t)i * PAGE_SIZE, number + i);
	}
	expect_sigbus(bad);
	seen();
	advise(bad, 1, UP_ADVICE_DONTNEED);
	cr_assert(zero(u64, rig_stats(r).lost));
	check_zeros(bad);
	expect(ZEROS(1));
	put_page(bad, 777);
	swap_out();
	check_page(bad, 777);
}

/* Serve one fault and do nothing else: pageout would change what there is. */
static inline void
serve_one(uintptr_t va)
{
	struct service *s = r->p->service[0];
	struct pmap_fault m;
	uint64_t w;

	cr_assert(eq(int, sim_touch(r->pm, 1, va, false, &w, 0, 8), SIM_FAULT));
	cr_assert(eq(uint, r->pm->ops->faults(r->pm, 0, &m, 1), 1));
	fault_handle(s, m.shard, m.va, m.write, m.wp, now_ns());
}

/* The end: everything is counted. */
static inline void
over(void)
{
	if (scene_taken != 0)
		unsqueeze();
	sim_disk_release(r->disk, SWAP_READ);
	sim_disk_release(r->disk, SWAP_WRITE);
	rig_settle(r);
	cr_assert(eq(int, sim_stranded(r->pm), -1), "a thread sleeps and nobody will wake it");
	pager_check(r->p);
	rig_down(r);
}

#endif
