/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_failing.c: every operation, with each of its fallible calls failing in turn.
 *
 *	for nth = 1, 2, 3 ...:  a fresh scene --> fail the nth call --> operate --> account --> again
 *
 * What can fail comes from several sources: the calls of the simulated kernel and disk, the commits of memory
 * for metadata, and the allocations of each zone.  A sweep over one source is over when nothing
 * failed any more.  After a failure
 *
 *	- a call that reported it has changed nothing: counts and promises are what they were;
 *	- a fault did not notice: kernel and memory have recovered by the time it is tried again;
 *	- the same operation then succeeds, the contents are right, and all counts go back to zero.
 *
 * One injected failure of the disk may cost one page, and that must show as SIGBUS, never as other bytes.
 * Random failures at a rate (test_random.c) meet more combinations, but never say that nothing was left out.
 */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "rig.h"

#define RW (PROT_READ | PROT_WRITE)
#define NPAGES 96u
#define NTH_MAX 5000u /* a sweep that is not over by then never will be */
#define SEEDS 2u      /* which error a call returns, and how far it got, is drawn */

TestSuite(failing, .timeout = 220);

enum failing {
	FAIL_CALL,
	FAIL_COMMIT,
	FAIL_ENTRY,
	FAIL_PART,
	FAIL_OBJECT,
	FAIL_NODE,
	FAIL_LEAF,
	FAIL_ANON,
	FAIL_SPACE,
	FAIL_PLACE,
	SOURCES
};

static const char *const source_name[SOURCES] = {
	"call", "commit", "map entry", "map part", "object",
	"node", "leaf",	  "anon",      "space",	   "place",
};
#define FROM(s) (1u << (s))

struct scene {
	struct rig *r;
	uintptr_t va;		  /* a region of NPAGES, or 0 */
	uint64_t word[NPAGES];	  /* the first word of each page */
	bool gone[NPAGES];	  /* unmapped */
	struct up_object *object; /* what is mapped there, or NULL */
	uintptr_t more;		  /* a second region, of the operation's own */
	size_t nmore;		  /* its pages */
	struct space *kid;	  /* a child that was forked */
	uint64_t serial;
	struct up_stats before;
	uint64_t meta_before;
	size_t slots_before;
};

struct operation {
	const char *name;
	unsigned must; /* sources (FROM) that it draws on, so must have failed */
	void (*prepare)(struct scene *);
	/* 0; -errno of the call; -EIO: the touch was SIGBUS. */
	int (*run)(struct scene *);
	/* After it succeeded; NULL: the contents of the region are checked anyway. */
	void (*check)(struct scene *);
	bool is_call; /* a failure is reported, and has changed nothing */
};

static char where[256]; /* which step of which sweep this is, for messages */

#define must(cond, ...) cr_assert(cond, __VA_ARGS__)

static uint64_t
meta_promised(struct rig *r)
{
	uint64_t max, used;

	resv_get(&r->p->resv_meta, &max, &used);
	return used;
}

static uintptr_t
page(const struct scene *s, size_t i)
{
	return s->va + i * PAGE_SIZE;
}

static unsigned char
resident(const struct scene *s, size_t i)
{
	unsigned char bits = 0xff;
	const int r = up_residency(s->r->rt, (void *)page(s, i), PAGE_SIZE, &bits);

	must(r == 0, "%s: up_residency: %d", where, r);
	return bits;
}

/* What the pager has for a page of the region; FREE if nothing is in core. */
static enum page_state
state_of(const struct scene *s, size_t i)
{
	struct pager *p = s->r->p;
	struct map_entry *e = map_lookup(&p->map, page(s, i));
	const uint64_t index = e->offset + ((page(s, i) - e->start) >> PAGE_SHIFT);
	struct leaf *leaf = object_leaf(e->object, index, NULL);
	enum page_state state = PAGE_FREE;
	struct anon *an;

	if (leaf == NULL)
		return state;
	an = leaf_anon(leaf, (unsigned)(index - leaf->base));
	if (an != NULL && atomic_load(&an->kind) == ANON_CORE)
		state = page_at(&p->pages, an->loc)->state;
	pthread_mutex_unlock(&leaf->lock);
	return state;
}

static void
fill(struct scene *s, size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++) {
		s->word[i] = 0xfeed0000 + ++s->serial;
		rig_put(s->r, page(s, i), s->word[i]);
	}
}

static void
check_contents(struct scene *s)
{
	for (size_t i = 0; s->va != 0 && i < NPAGES; i++) {
		uint64_t got;

		if (s->gone[i])
			continue;
		got = rig_get(s->r, page(s, i));
		must(got == s->word[i], "%s: page %zu holds %#lx, not %#lx", where, i,
		     (unsigned long)got, (unsigned long)s->word[i]);
	}
}

/* --- the source of failures --- */

static struct zone *
zone_of(struct rig *r, enum failing src)
{
	switch (src) {
	case FAIL_ENTRY:
		return &r->p->map_zones.entry;
	case FAIL_PART:
		return &r->p->map_zones.part;
	case FAIL_OBJECT:
		return &r->p->zones.object;
	case FAIL_NODE:
		return &r->p->zones.node;
	case FAIL_LEAF:
		return &r->p->zones.leaf;
	case FAIL_SPACE:
		return &r->p->space_zone;
	case FAIL_PLACE:
		return &r->p->place_zone;
	default:
		return &r->p->zones.anon;
	}
}

static void
arm(struct rig *r, enum failing src, unsigned nth)
{
	switch (src) {
	case FAIL_CALL:
		sim_fail_nth(&r->f, nth, 0, 0);
		break;
	case FAIL_COMMIT:
		r->commit_failed = false;
		r->fail_commit = nth;
		break;
	default:
		atomic_store(&zone_of(r, src)->fail_in, nth);
		break;
	}
}

/* True if it happened. */
static bool
disarm(struct rig *r, enum failing src)
{
	bool fired;

	switch (src) {
	case FAIL_CALL:
		return sim_fail_disarm(&r->f);
	case FAIL_COMMIT:
		r->fail_commit = 0;
		return r->commit_failed;
	default:
		fired = atomic_load(&zone_of(r, src)->fail_in) == 0;
		atomic_store(&zone_of(r, src)->fail_in, 0);
		return fired;
	}
}

/* --- the sweep --- */

static void
note_levels(struct scene *s)
{
	s->before = rig_stats(s->r);
	s->meta_before = meta_promised(s->r);
	s->slots_before = s->r->p->swap.nused;
}

/* A call that failed has changed nothing. */
static void
check_unchanged(struct scene *s)
{
	const struct up_stats now = rig_stats(s->r), *was = &s->before;

	must(now.mapped == was->mapped, "%s: mapped went from %lu to %lu", where, was->mapped,
	     now.mapped);
	must(now.entries == was->entries, "%s: %lu entries became %lu", where, was->entries,
	     now.entries);
	must(now.objects == was->objects, "%s: %lu objects became %lu", where, was->objects,
	     now.objects);
	must(now.reserve_used == was->reserve_used, "%s: swap promised went from %lu to %lu", where,
	     was->reserve_used, now.reserve_used);
	must(meta_promised(s->r) == s->meta_before, "%s: metadata promised went from %lu to %lu",
	     where, s->meta_before, meta_promised(s->r));
	must(now.resident + now.staged + now.swapped == was->resident + was->staged + was->swapped,
	     "%s: pages came or went", where);
	must(now.lost == was->lost, "%s: a page was lost", where);
}

/* What a lost page gives: SIGSEGV only where the kernel has no mark for SIGBUS. */
static bool
is_signal(const struct scene *s, enum sim_result res)
{
	return res == SIM_SIGBUS || (res == SIM_SIGSEGV && s->r->f.injected[SIM_POISON] > 0);
}

/* One page may be lost to a failed read: loudly, and it comes back as zeros when it is discarded. */
static void
repair_lost(struct scene *s)
{
	unsigned lost = 0;

	for (size_t i = 0; s->va != 0 && i < NPAGES; i++) {
		uint64_t word;

		if (s->gone[i] || resident(s, i) != UP_PAGE_LOST)
			continue;
		lost++;
		must(is_signal(s, rig_touch(s->r, 1, page(s, i), false, &word, 0, sizeof word)),
		     "%s: page %zu is lost and can be read", where, i);
		must(up_advise(s->r->rt, (void *)page(s, i), PAGE_SIZE, UP_ADVICE_DONTNEED) == 0,
		     "%s: discarding a lost page failed", where);
		s->word[i] = 0;
	}
	must(lost <= s->r->f.injected[SIM_READ], "%s: %u pages lost, %lu reads failed", where, lost,
	     s->r->f.injected[SIM_READ]);
	must(rig_stats(s->r).lost == 0, "%s: the count of lost pages does not go back", where);
}

static void
end_kid(struct scene *s)
{
	sigset_t old;

	change_begin(s->r->p, &old);
	s->r->pm->ops->space_detach(s->r->pm, s->kid->shard);
	space_end(s->r->p, s->kid);
	change_end(s->r->p, &old);
	s->kid = NULL;
}

static void
tear_down(struct scene *s)
{
	struct up_stats st;
	uint64_t word;

	if (s->kid != NULL)
		end_kid(s);
	for (size_t i = 0; s->va != 0 && i < NPAGES; i++) {
		if (!s->gone[i])
			must(up_unmap(s->r->rt, (void *)page(s, i), PAGE_SIZE) == 0,
			     "%s: the last unmap failed", where);
	}
	if (s->more != 0)
		must(up_unmap(s->r->rt, (void *)s->more, s->nmore * PAGE_SIZE) == 0,
		     "%s: the last unmap failed", where);
	up_object_unref(s->object);
	rig_settle(s->r);
	pager_check(s->r->p);
	st = rig_stats(s->r);
	must(st.mapped == 0 && st.entries == 0 && st.objects == 0, "%s: mappings are left", where);
	must(st.resident + st.staged + st.swapped + st.lost == 0, "%s: pages are left", where);
	must(st.reserve_used == 0 && meta_promised(s->r) == 0, "%s: promises are left", where);
	must(s->r->p->swap.nused == 0, "%s: swap slots are left", where);
	for (enum failing src = FAIL_ENTRY; src < SOURCES; src++)
		must(zone_count(zone_of(s->r, src)) == (src == FAIL_PART ? s->r->p->map.nspare : 0),
		     "%s: items of the %s zone are left", where, source_name[src]);

	/* And it still works. */
	s->va = rig_map(s->r, PAGE_SIZE);
	rig_put(s->r, s->va, 1);
	word = rig_get(s->r, s->va);
	must(word == 1, "%s: does not work afterwards", where);
	rig_down(s->r);
}

/* One turn; true if something failed. */
static bool
turn(const struct operation *op, enum failing src, unsigned nth, uint64_t mask, uint64_t seed)
{
	const struct rig_config cfg = { .mask = mask,
					.seed = seed * 1000 + nth,
					.swap_slots = 4096 };
	struct scene s = { .r = rig_up(&cfg) };
	bool fired;
	int r;

	snprintf(where, sizeof where, "%s, %s %u fails%s, seed %lu", op->name, source_name[src],
		 nth, mask ? ", without MOVE" : "", seed);
	op->prepare(&s);
	rig_settle(s.r);
	note_levels(&s);

	arm(s.r, src, nth);
	r = op->run(&s);
	if (r == 0 || !op->is_call)
		rig_settle(s.r);
	fired = disarm(s.r, src);
	must(fired || r == 0, "%s: nothing failed, yet the result is %d", where, r);
	sim_disk_release(s.r->disk, SWAP_WRITE);
	rig_settle(s.r);
	pager_check(s.r->p);

	if (r < 0 && op->is_call) {
		check_unchanged(&s);
		must(s.r->nlog > 0, "%s: nothing was said about it", where);
		check_contents(&s);
	} else if (r < 0) {
		must(r == -EIO && s.r->f.injected[SIM_READ] > 0, "%s: result %d", where, r);
	}
	repair_lost(&s);
	if (r < 0) {
		r = op->run(&s);
		must(r == 0, "%s: does not heal: %d", where, r);
		rig_settle(s.r);
	}
	if (op->check != NULL)
		op->check(&s);
	check_contents(&s);
	rig_settle(s.r);
	tear_down(&s);
	return fired;
}

/* `step`: of long operations, which do the same over and over, every so manieth failure will do. */
static void
sweep_by(const struct operation *op, unsigned step)
{
	static const uint64_t masks[] = { 0, UP_MASK_MOVE };
	unsigned seen = 0;

	for (uint64_t seed = 1; seed <= SEEDS; seed++) {
		for (unsigned m = 0; m < ARRAY_SIZE(masks); m++) {
			for (enum failing src = 0; src < SOURCES; src++) {
				unsigned nth = 1;

				while (turn(op, src, nth, masks[m], seed)) {
					seen |= FROM(src);
					/* The first few all, and then others for each seed and mask. */
					nth += step == 1 || nth < step ? 1 : step + (seed + m) % 2;
					must(nth < NTH_MAX, "%s: no end to it", where);
				}
			}
		}
	}
	must((seen & op->must) == op->must,
	     "%s: of %#x only %#x ever failed: the sweep shows nothing", op->name, op->must, seen);
}

static void
sweep(const struct operation *op)
{
	sweep_by(op, 1);
}

/* --- scenes --- */

static void
empty_scene(struct scene *s)
{
	(void)s;
}

static void
new_region(struct scene *s)
{
	s->va = rig_map(s->r, NPAGES * PAGE_SIZE);
}

/* Half of its pages written, the others never touched. */
static void
half_written(struct scene *s)
{
	new_region(s);
	fill(s, 0, NPAGES / 2);
}

/* The same, and all of it in swap but the last few written pages. */
static void
half_swapped(struct scene *s)
{
	half_written(s);
	rig_push_out(s->r, page(s, 0));
	for (size_t i = NPAGES / 2 - 8; i < NPAGES / 2; i++)
		fill(s, i, 1);
}

/* Page 0 is in swap: its neighbours too, so that there is something to read ahead. */
static void
swapped_page(struct scene *s)
{
	half_swapped(s);
	must((resident(s, 0) & (UP_PAGE_MAPPED | UP_PAGE_STAGED)) == 0,
	     "%s: page 0 is still in memory", where);
}

static void
lone_swapped_page(struct scene *s)
{
	new_region(s);
	fill(s, 0, 1);
	rig_push_out(s->r, page(s, 0));
}

/* Write pages of another region until page 0 of ours is in `state`. */
static void
drive_to(struct scene *s, enum page_state state)
{
	const size_t most = 2 * s->r->cfg.memory / PAGE_SIZE;
	const uintptr_t other = rig_map(s->r, most * PAGE_SIZE);

	must(up_advise(s->r->rt, (void *)s->va, NPAGES / 2 * PAGE_SIZE, UP_ADVICE_COLD) == 0,
	     "COLD");
	for (size_t i = 0; i < most && state_of(s, 0) != state; i++)
		rig_put(s->r, other + i * PAGE_SIZE, i + 1);
	must(state_of(s, 0) == state, "%s: page 0 never came to state %d", where, (int)state);
	if (state != PAGE_LAUNDRY) {
		must(up_unmap(s->r->rt, (void *)other, most * PAGE_SIZE) == 0, "unmap");
		rig_settle(s->r);
	} else {
		/* Unmapping settles the writes; keep what is needed, and it goes at the end. */
		must(up_unmap(s->r->rt, (void *)(other + NPAGES * PAGE_SIZE),
			      (most - NPAGES) * PAGE_SIZE) == 0,
		     "unmap");
		s->more = other;
		s->nmore = NPAGES;
	}
	must(state_of(s, 0) == state, "%s: page 0 did not stay in state %d", where, (int)state);
}

static void
staged_page(struct scene *s)
{
	half_written(s);
	drive_to(s, PAGE_STAGED);
}

static void
held_write(struct scene *s)
{
	half_written(s);
	sim_disk_hold(s->r->disk, SWAP_WRITE);
	drive_to(s, PAGE_LAUNDRY);
}

static void
new_object(struct scene *s)
{
	must(up_object_create_anon(s->r->rt, NPAGES * PAGE_SIZE, 0, &s->object) == 0, "object");
}

static int
map_object(struct scene *s)
{
	void *p;
	const int r = up_map(s->r->rt, NULL, NPAGES * PAGE_SIZE, RW, UP_SHARED, s->object, 0, &p);

	if (r < 0)
		must(p == NULL, "%s: up_map failed and returned an address", where);
	else
		s->va = (uintptr_t)p;
	return r;
}

static void
mapped_object(struct scene *s)
{
	new_object(s);
	must(map_object(s) == 0, "map object");
	fill(s, 0, NPAGES / 2);
	rig_push_out(s->r, page(s, 0));
	for (size_t i = NPAGES / 2 - 8; i < NPAGES / 2; i++)
		fill(s, i, 1);
}

/* --- operations --- */

static int
touch(struct scene *s, size_t i, bool write)
{
	uint64_t word = write ? ++s->serial : 0;
	const enum sim_result res = rig_touch(s->r, 0, page(s, i), write, &word, 0, sizeof word);

	must(res == SIM_OK || res == SIM_SIGBUS, "%s: the touch ended with %d", where, (int)res);
	if (res == SIM_SIGBUS)
		return -EIO;
	must(write || word == s->word[i], "%s: read %#lx, not %#lx", where, (unsigned long)word,
	     (unsigned long)s->word[i]);
	if (write)
		s->word[i] = word;
	return 0;
}

static int
write_page_0(struct scene *s)
{
	return touch(s, 0, true);
}

static int
read_page_0(struct scene *s)
{
	return touch(s, 0, false);
}

static int
write_all(struct scene *s)
{
	for (size_t i = 0; i < NPAGES; i++) {
		const int r = touch(s, i, true);

		if (r < 0)
			return r;
	}
	return 0;
}

static int
read_all(struct scene *s)
{
	for (size_t i = 0; i < NPAGES; i++) {
		const int r = touch(s, i, false);

		if (r < 0)
			return r;
	}
	return 0;
}

Test(failing, touching_a_new_page)
{
	const struct operation op = {
		"touch a new page",
		FROM(FAIL_CALL) | FROM(FAIL_PART) | FROM(FAIL_COMMIT) | FROM(FAIL_LEAF) |
			FROM(FAIL_ANON),
		new_region,
		write_page_0,
		NULL,
		false,
	};

	sweep(&op);
}

Test(failing, touching_a_run_of_new_pages)
{
	const struct operation op = {
		"touch new pages in a row",
		FROM(FAIL_CALL) | FROM(FAIL_PART) | FROM(FAIL_COMMIT) | FROM(FAIL_ANON),
		new_region,
		write_all,
		NULL,
		false,
	};

	sweep(&op);
}

Test(failing, touching_a_swapped_page)
{
	const struct operation op = {
		"touch a swapped page",
		FROM(FAIL_CALL),
		lone_swapped_page,
		read_page_0,
		NULL,
		false,
	};

	sweep(&op);
}

Test(failing, reading_swapped_pages_back_in_clusters)
{
	const struct operation op = {
		"read swapped pages in a row", FROM(FAIL_CALL), swapped_page, read_all, NULL, false,
	};

	sweep(&op);
}

static void
check_soft(struct scene *s)
{
	must(rig_stats(s->r).faults[UP_FAULT_SOFT] > 0, "%s: no soft fault", where);
}

Test(failing, touching_a_staged_page)
{
	const struct operation op = {
		"touch a staged page", FROM(FAIL_CALL), staged_page, read_page_0, check_soft, false,
	};

	sweep(&op);
}

static void
check_rescued(struct scene *s)
{
	must(rig_stats(s->r).rescues > 0, "%s: no rescue", where);
}

/* The rig waits for the held write: only the touch is the operation. */
static int
rescue_page_0(struct scene *s)
{
	const int r = write_page_0(s);

	sim_disk_release(s->r->disk, SWAP_WRITE);
	return r;
}

/* held_write() leaves a write in flight, so this one can not settle before it begins. */
Test(failing, touching_a_page_that_is_being_written)
{
	static const uint64_t masks[] = { 0, UP_MASK_MOVE };
	bool any = false;

	for (uint64_t seed = 1; seed <= SEEDS; seed++) {
		for (unsigned m = 0; m < ARRAY_SIZE(masks); m++) {
			for (enum failing src = 0; src < SOURCES; src++) {
				bool fired = true;

				for (unsigned nth = 1; fired; nth++) {
					const struct rig_config cfg = { .mask = masks[m],
									.seed = seed * 1000 + nth,
									.swap_slots = 4096 };
					struct scene s = { .r = rig_up(&cfg) };

					snprintf(where, sizeof where,
						 "rescue, %s %u fails%s, seed %lu",
						 source_name[src], nth,
						 masks[m] ? ", without MOVE" : "", seed);
					held_write(&s);
					arm(s.r, src, nth);
					must(rescue_page_0(&s) == 0, "%s: SIGBUS", where);
					rig_settle(s.r);
					fired = disarm(s.r, src);
					any |= fired;
					must(nth < NTH_MAX, "%s: no end to it", where);
					check_rescued(&s);
					pager_check(s.r->p);
					check_contents(&s);
					tear_down(&s);
				}
			}
		}
	}
	must(any, "nothing ever failed");
}

/* More pages than memory: everything that pageout calls. */
static void
big_region(struct scene *s)
{
	half_written(s);
	s->nmore = s->r->cfg.memory / PAGE_SIZE;
	s->more = rig_map(s->r, s->nmore * PAGE_SIZE);
}

static int
thrash(struct scene *s)
{
	unsigned lost = 0;

	for (size_t i = 0; i < s->nmore; i++)
		rig_put(s->r, s->more + i * PAGE_SIZE, 7000 + i);
	for (size_t i = 0; i < s->nmore; i++) {
		const uintptr_t va = s->more + i * PAGE_SIZE;
		uint64_t word = 0;
		const enum sim_result res = rig_touch(s->r, 0, va, false, &word, 0, sizeof word);

		must(res == SIM_OK || (res == SIM_SIGBUS && ++lost <= s->r->f.injected[SIM_READ]),
		     "%s: the touch ended with %d", where, (int)res);
		if (res == SIM_SIGBUS)
			must(up_advise(s->r->rt, (void *)va, PAGE_SIZE, UP_ADVICE_DONTNEED) == 0,
			     "%s: discarding a lost page failed", where);
		else
			must(word == 7000 + i, "%s: page %zu holds %#lx", where, i,
			     (unsigned long)word);
	}
	return 0;
}

Test(failing, paging_more_than_fits_in_memory)
{
	const struct operation op = {
		"page out and in",
		FROM(FAIL_CALL) | FROM(FAIL_COMMIT) | FROM(FAIL_ANON),
		big_region,
		thrash,
		NULL,
		false,
	};

	sweep_by(&op, 12);
}

static void
lost_page(struct scene *s)
{
	lone_swapped_page(s);
	for (slot_t slot = 0; slot < 4096; slot++)
		sim_disk_bad(s->r->disk, slot, SWAP_READ, true);
}

/* SIGBUS, whichever call fails: never zeros, and nobody sleeps on. */
static int
touch_lost(struct scene *s)
{
	uint64_t word = 0;

	must(is_signal(s, rig_touch(s->r, 0, page(s, 0), false, &word, 0, sizeof word)),
	     "%s: a page that can not be read was given out", where);
	must(resident(s, 0) == UP_PAGE_LOST, "%s: not lost", where);
	s->r->f.injected[SIM_READ]++; /* the one that the bad disk has failed */
	return 0;
}

Test(failing, touching_a_page_that_is_lost)
{
	const struct operation op = {
		"touch a lost page", FROM(FAIL_CALL), lost_page, touch_lost, NULL, false,
	};

	sweep(&op);
}

static int
map_more(struct scene *s)
{
	void *p;
	const int r = up_map(s->r->rt, NULL, NPAGES * PAGE_SIZE, RW, UP_PRIVATE, NULL, 0, &p);

	must(r == 0 || p == NULL, "%s: up_map failed and returned an address", where);
	if (r == 0)
		s->more = (uintptr_t)p;
	s->nmore = NPAGES;
	return r;
}

static void
check_more(struct scene *s)
{
	for (size_t i = 0; i < NPAGES; i += 7) {
		rig_put(s->r, s->more + i * PAGE_SIZE, 50 + i);
		must(rig_get(s->r, s->more + i * PAGE_SIZE) == 50 + i, "%s: page %zu", where, i);
	}
}

Test(failing, mapping)
{
	const struct operation op = {
		"map",
		FROM(FAIL_CALL) | FROM(FAIL_PART) | FROM(FAIL_ENTRY) | FROM(FAIL_OBJECT),
		half_written,
		map_more,
		check_more,
		true,
	};

	sweep(&op);
}

/* --- copies --- */

static uint64_t copied[NPAGES]; /* what the copy must hold */

static int
clone_it(struct scene *s)
{
	void *p;
	const int r = up_clone(s->r->rt, (void *)s->va, NPAGES * PAGE_SIZE, &p);

	must((r == 0) == (p != NULL), "%s: up_clone returned %d and %p", where, r, p);
	memcpy(copied, s->word, sizeof copied);
	s->more = (uintptr_t)p;
	s->nmore = NPAGES;
	return r;
}

/* A page of the copy may be lost where the same page of the original is: the read failed for both. */
static void
check_copy(struct scene *s)
{
	unsigned lost = 0;

	for (size_t i = 0; i < NPAGES; i++) {
		uint64_t word = ~copied[i];
		const enum sim_result res =
			rig_touch(s->r, 0, s->more + i * PAGE_SIZE, false, &word, 0, sizeof word);

		must(res == SIM_OK || (res == SIM_SIGBUS && ++lost <= s->r->f.injected[SIM_READ]),
		     "%s: the touch of page %zu of the copy ended with %d", where, i, (int)res);
		must(res != SIM_OK || word == copied[i],
		     "%s: page %zu of the copy holds %#lx, not %#lx", where, i, (unsigned long)word,
		     (unsigned long)copied[i]);
	}
}

Test(failing, cloning)
{
	const struct operation op = {
		"clone",      FROM(FAIL_CALL) | FROM(FAIL_ENTRY) | FROM(FAIL_OBJECT),
		half_swapped, clone_it,
		check_copy,   true,
	};

	sweep(&op);
}

static void
cloned(struct scene *s)
{
	half_swapped(s);
	clone_it(s);
}

/* Pages of both sides, written and read, in memory and in swap. */
static int
use_both(struct scene *s)
{
	for (size_t i = 0; i < NPAGES; i += 3) {
		uint64_t word = 0x5eed0000 + i;
		const uintptr_t va = i % 2 ? s->more + i * PAGE_SIZE : page(s, i);
		const enum sim_result res = rig_touch(s->r, 0, va, true, &word, 0, sizeof word);

		must(res == SIM_OK || (res == SIM_SIGBUS && s->r->f.injected[SIM_READ] > 0),
		     "%s: the touch of page %zu ended with %d", where, i, (int)res);
		if (res != SIM_OK)
			continue;
		if (i % 2)
			copied[i] = word;
		else
			s->word[i] = word;
	}
	return 0;
}

Test(failing, writing_to_both_sides_of_a_clone)
{
	const struct operation op = {
		"write to clone and original",
		FROM(FAIL_CALL) | FROM(FAIL_LEAF) | FROM(FAIL_ANON),
		cloned,
		use_both,
		check_copy,
		false,
	};

	sweep(&op);
}

/* Both sides have pages of their own: joining moves some, and lets go of others. */
static void
cloned_and_used(struct scene *s)
{
	cloned(s);
	use_both(s);
}

static int
drop_copy(struct scene *s)
{
	const int r = up_unmap(s->r->rt, (void *)s->more, s->nmore * PAGE_SIZE);

	if (r == 0)
		s->more = 0;
	return r;
}

Test(failing, unmapping_a_clone)
{
	const struct operation op = {
		"unmap the clone", FROM(FAIL_CALL), cloned_and_used, drop_copy, NULL, true,
	};

	sweep(&op);
}

static int
forget_copied(struct scene *s)
{
	const int r = up_advise(s->r->rt, (void *)(s->more + 3 * PAGE_SIZE), 20 * PAGE_SIZE,
				UP_ADVICE_DONTNEED);

	if (r == 0)
		memset(copied + 3, 0, 20 * sizeof copied[0]);
	return r;
}

Test(failing, discarding_a_part_of_a_clone)
{
	const struct operation op = {
		"discard in the clone", 0, cloned, forget_copied, check_copy, true,
	};

	sweep(&op);
}

/* The very first, so that every zone has to commit memory. */
Test(failing, mapping_the_first_region)
{
	const struct operation op = {
		"map the first",
		FROM(FAIL_CALL) | FROM(FAIL_COMMIT) | FROM(FAIL_ENTRY) | FROM(FAIL_OBJECT),
		empty_scene,
		map_more,
		check_more,
		true,
	};

	sweep(&op);
}

static int
unmap(struct scene *s, size_t first, size_t n)
{
	const int r = up_unmap(s->r->rt, (void *)page(s, first), n * PAGE_SIZE);

	for (size_t i = first; r == 0 && i < first + n; i++)
		s->gone[i] = true;
	return r;
}

static int
unmap_whole(struct scene *s)
{
	return unmap(s, 0, NPAGES);
}

static int
unmap_part(struct scene *s)
{
	return unmap(s, NPAGES / 4, NPAGES / 2);
}

static void
check_unmapped(struct scene *s)
{
	for (size_t i = 0; i < NPAGES; i++) {
		const enum sim_state st = sim_state(s->r->pm, page(s, i));

		must((st == SIM_UNMAPPED) == s->gone[i],
		     "%s: page %zu is in state %d of the kernel's", where, i, (int)st);
	}
}

Test(failing, unmapping_a_whole_region)
{
	const struct operation op = {
		"unmap all", FROM(FAIL_CALL), half_swapped, unmap_whole, check_unmapped, true,
	};

	sweep(&op);
}

Test(failing, unmapping_a_part)
{
	const struct operation op = {
		"unmap a part", FROM(FAIL_CALL) | FROM(FAIL_ENTRY),
		half_swapped,	unmap_part,
		check_unmapped, true,
	};

	sweep(&op);
}

static int
protect_part(struct scene *s)
{
	return up_protect(s->r->rt, (void *)page(s, NPAGES / 4), NPAGES / 2 * PAGE_SIZE, PROT_READ);
}

static void
check_protected(struct scene *s)
{
	uint64_t word = 1;

	must(rig_touch(s->r, 0, page(s, NPAGES / 4), true, &word, 0, sizeof word) == SIM_SIGSEGV,
	     "%s: a read-only page was written", where);
	fill(s, 0, NPAGES / 4);
}

Test(failing, protecting_a_part)
{
	const struct operation op = {
		"protect",	 FROM(FAIL_CALL) | FROM(FAIL_ENTRY),
		half_swapped,	 protect_part,
		check_protected, true,
	};

	sweep(&op);
}

static int
advise_part(struct scene *s, enum up_advice advice)
{
	return up_advise(s->r->rt, (void *)page(s, NPAGES / 4), NPAGES / 2 * PAGE_SIZE, advice);
}

static int
advise_normal(struct scene *s)
{
	return advise_part(s, UP_ADVICE_NORMAL);
}

static int
advise_sequential(struct scene *s)
{
	return advise_part(s, UP_ADVICE_SEQUENTIAL);
}

static int
advise_random(struct scene *s)
{
	return advise_part(s, UP_ADVICE_RANDOM);
}

static void
check_advice(struct scene *s, enum up_advice advice)
{
	const struct map_entry *e = map_lookup(&s->r->p->map, page(s, NPAGES / 2));

	/* A part of the mapping; but what it had before leaves it in one piece. */
	must(e->advice == advice &&
		     e->start == page(s, advice == UP_ADVICE_NORMAL ? 0 : NPAGES / 4),
	     "%s: the advice was not kept", where);
}

static void
check_normal(struct scene *s)
{
	check_advice(s, UP_ADVICE_NORMAL);
}

static void
check_sequential(struct scene *s)
{
	check_advice(s, UP_ADVICE_SEQUENTIAL);
}

static void
check_random(struct scene *s)
{
	check_advice(s, UP_ADVICE_RANDOM);
}

Test(failing, advising_normal)
{
	const struct operation op = {
		"advise NORMAL", FROM(FAIL_ENTRY), half_swapped, advise_normal, check_normal, true,
	};

	sweep(&op);
}

Test(failing, advising_sequential)
{
	const struct operation op = {
		"advise SEQUENTIAL", FROM(FAIL_ENTRY), half_swapped,
		advise_sequential,   check_sequential, true,
	};

	sweep(&op);
}

Test(failing, advising_random)
{
	const struct operation op = {
		"advise RANDOM", FROM(FAIL_ENTRY), half_swapped, advise_random, check_random, true,
	};

	sweep(&op);
}

static int
advise_willneed(struct scene *s)
{
	const int r = up_advise(s->r->rt, (void *)s->va, NPAGES * PAGE_SIZE, UP_ADVICE_WILLNEED);

	rig_settle(s->r);
	return r;
}

Test(failing, advising_willneed)
{
	const struct operation op = {
		"advise WILLNEED", FROM(FAIL_CALL), half_swapped, advise_willneed, NULL, false,
	};

	sweep(&op);
}

static int
advise_dontneed(struct scene *s)
{
	const int r = advise_part(s, UP_ADVICE_DONTNEED);

	if (r == 0)
		memset(s->word + NPAGES / 4, 0, NPAGES / 2 * sizeof s->word[0]);
	return r;
}

Test(failing, advising_dontneed)
{
	const struct operation op = {
		"advise DONTNEED", FROM(FAIL_CALL), half_swapped, advise_dontneed, NULL, true,
	};

	sweep(&op);
}

static int
advise_cold(struct scene *s)
{
	return up_advise(s->r->rt, (void *)s->va, NPAGES * PAGE_SIZE, UP_ADVICE_COLD);
}

Test(failing, advising_cold)
{
	const struct operation op = { "advise COLD", 0, half_swapped, advise_cold, NULL, true };

	sweep(&op);
}

static int
prefault(struct scene *s)
{
	const int r = up_prefault(s->r->rt, (void *)s->va, NPAGES * PAGE_SIZE, 1);

	for (size_t i = 0; r == 0 && i < NPAGES; i++)
		must(resident(s, i) & UP_PAGE_MAPPED, "%s: page %zu is not there", where, i);
	return r;
}

Test(failing, prefaulting)
{
	const struct operation op = {
		"prefault", FROM(FAIL_CALL) | FROM(FAIL_ANON), half_swapped, prefault, NULL, false,
	};

	sweep(&op);
}

/* What it brought in may stay; all else is as it was, if it fails. */
static int
wire(struct scene *s)
{
	const uint64_t meta = meta_promised(s->r), entries = rig_stats(s->r).entries;
	const int r = up_wire(s->r->rt, (void *)page(s, NPAGES / 4), NPAGES / 2 * PAGE_SIZE);

	for (size_t i = NPAGES / 4; r == 0 && i < NPAGES / 4 * 3; i++)
		must(resident(s, i) & UP_PAGE_WIRED, "%s: page %zu is not wired", where, i);
	if (r < 0) {
		must(s->r->nlog > 0, "%s: nothing was said about it", where);
		must(rig_stats(s->r).wired == 0, "%s: pages are wired", where);
		must(meta_promised(s->r) == meta, "%s: promises are left", where);
		must(rig_stats(s->r).entries == entries, "%s: the entry was split", where);
	}
	return r;
}

/* No room for an entry is a failure; a page that can not be read is the only other one. */
static int
wire_or_lose(struct scene *s)
{
	const int r = wire(s);

	must(r == 0 || r == -EIO || r == -ENOMEM, "%s: up_wire: %d", where, r);
	return r == -ENOMEM ? wire(s) : r;
}

Test(failing, wiring_a_part)
{
	const struct operation op = {
		"wire",	      FROM(FAIL_CALL) | FROM(FAIL_ANON) | FROM(FAIL_ENTRY),
		half_swapped, wire_or_lose,
		NULL,	      false,
	};

	sweep(&op);
}

static void
wired(struct scene *s)
{
	half_swapped(s);
	must(up_wire(s->r->rt, (void *)s->va, NPAGES * PAGE_SIZE) == 0, "wire");
}

static int
unwire(struct scene *s)
{
	const int r = up_unwire(s->r->rt, (void *)page(s, NPAGES / 4), NPAGES / 2 * PAGE_SIZE);

	must(rig_stats(s->r).wired == (r == 0 ? NPAGES / 2 : NPAGES) * PAGE_SIZE,
	     "%s: %lu bytes are wired", where, rig_stats(s->r).wired);
	return r;
}

Test(failing, unwiring_a_part)
{
	const struct operation op = {
		"unwire", FROM(FAIL_ENTRY), wired, unwire, NULL, true,
	};

	sweep(&op);
}

/* Longer by a third, at its end or elsewhere; the new pages are the operation's own to unmap. */
static int
remap(struct scene *s)
{
	void *p;
	const int r = up_remap(s->r->rt, (void *)s->va, NPAGES * PAGE_SIZE,
			       NPAGES / 3 * 4 * PAGE_SIZE, UP_MAYMOVE, &p);

	must((p != NULL) == (r == 0), "%s: up_remap returned %d and %p", where, r, p);
	if (r == 0) {
		s->va = (uintptr_t)p;
		s->more = page(s, NPAGES);
		s->nmore = NPAGES / 3;
	}
	return r;
}

static void
check_remap(struct scene *s)
{
	for (size_t i = 0; i < s->nmore; i++) {
		const uint64_t got = rig_get(s->r, s->more + i * PAGE_SIZE);

		must(got == 0, "%s: new page %zu holds %#lx", where, i, (unsigned long)got);
	}
}

static uintptr_t blocker; /* what is in the way behind the region, or 0 */

/* With something behind it, so that it has to move, and of two regions and three protections. */
static void
hemmed_in(struct scene *s)
{
	void *p;

	half_swapped(s);
	blocker = page(s, NPAGES);
	must(up_unmap(s->r->rt, (void *)page(s, NPAGES - 9), 9 * PAGE_SIZE) == 0, "unmap");
	for (unsigned i = 0; i < 2; i++)
		must(up_map(s->r->rt, (void *)page(s, NPAGES - 9 + 9 * i), 9 * PAGE_SIZE, RW,
			    UP_PRIVATE | UP_FIXED, NULL, 0, &p) == 0,
		     "map");
	must(up_protect(s->r->rt, (void *)s->va, 8 * PAGE_SIZE, PROT_READ) == 0, "protect");
}

static void
check_moved(struct scene *s)
{
	must(up_unmap(s->r->rt, (void *)blocker, 9 * PAGE_SIZE) == 0, "%s: unmap", where);
	check_remap(s);
}

Test(failing, growing)
{
	const struct operation op = {
		"remap", FROM(FAIL_CALL), half_swapped, remap, check_remap, true,
	};

	sweep(&op);
}

Test(failing, growing_elsewhere)
{
	const struct operation op = {
		"remap of two regions", FROM(FAIL_CALL), hemmed_in, remap, check_moved, true,
	};

	sweep(&op);
}

static int
look(struct scene *s)
{
	unsigned char vec[NPAGES];
	int r;

	memset(vec, 0xff, sizeof vec);
	r = up_residency(s->r->rt, (void *)s->va, sizeof vec * PAGE_SIZE, vec);
	for (size_t i = 0; r == 0 && i < NPAGES; i++)
		must((vec[i] == 0) == (s->word[i] == 0), "%s: page %zu: bits %#x", where, i,
		     vec[i]);
	return r;
}

Test(failing, looking_at_residency)
{
	const struct operation op = { "residency", 0, half_swapped, look, NULL, true };

	sweep(&op);
}

static int
create_object(struct scene *s)
{
	struct up_object *o = NULL;
	const int r = up_object_create_anon(s->r->rt, NPAGES * PAGE_SIZE, 0, &o);

	must((r == 0) == (o != NULL), "%s: result %d, object %p", where, r, (void *)o);
	s->object = o;
	return r;
}

Test(failing, creating_an_object)
{
	const struct operation op = {
		"create object",
		FROM(FAIL_OBJECT) | FROM(FAIL_COMMIT),
		empty_scene,
		create_object,
		NULL,
		true,
	};

	sweep(&op);
}

static void
check_object_mapped(struct scene *s)
{
	fill(s, 0, NPAGES);
}

Test(failing, mapping_an_object)
{
	const struct operation op = {
		"map object",	     FROM(FAIL_CALL) | FROM(FAIL_PART) | FROM(FAIL_ENTRY),
		new_object,	     map_object,
		check_object_mapped, true,
	};

	sweep(&op);
}

/* What was written is in the object, wherever it is mapped next. */
static void
check_object_kept(struct scene *s)
{
	check_unmapped(s);
	memset(s->gone, 0, sizeof s->gone);
	must(map_object(s) == 0, "%s: can not be mapped again", where);
}

static void
check_part_of_object_kept(struct scene *s)
{
	check_unmapped(s);
	must(unmap(s, 0, NPAGES) == 0, "%s: the rest can not be unmapped", where);
	memset(s->gone, 0, sizeof s->gone);
	must(map_object(s) == 0, "%s: can not be mapped again", where);
}

Test(failing, unmapping_an_object)
{
	const struct operation op = {
		"unmap object", FROM(FAIL_CALL),   mapped_object,
		unmap_whole,	check_object_kept, true,
	};

	sweep(&op);
}

Test(failing, unmapping_a_part_of_an_object)
{
	const struct operation op = {
		"unmap part of object",
		FROM(FAIL_CALL) | FROM(FAIL_ENTRY),
		mapped_object,
		unmap_part,
		check_part_of_object_kept,
		true,
	};

	sweep(&op);
}

static void
unmapped_object(struct scene *s)
{
	mapped_object(s);
	must(unmap(s, 0, NPAGES) == 0, "unmap");
}

static int
drop_object(struct scene *s)
{
	up_object_unref(s->object);
	s->object = NULL;
	return 0;
}

static void
check_object_gone(struct scene *s)
{
	const struct up_stats st = rig_stats(s->r);

	must(st.objects == 0 && st.resident + st.staged + st.swapped == 0, "%s: something is left",
	     where);
	must(s->r->p->swap.nused == 0, "%s: slots are left", where);
}

Test(failing, dropping_an_object)
{
	const struct operation op = { "unref object",	 0,    unmapped_object, drop_object,
				      check_object_gone, false };

	sweep(&op);
}

/* --- several places, and children --- */

static int
map_again(struct scene *s)
{
	void *p;
	const int r = up_map(s->r->rt, NULL, NPAGES * PAGE_SIZE, RW, UP_SHARED | UP_MULTI,
			     s->object, 0, &p);

	if (r == 0 && s->va == 0)
		s->va = (uintptr_t)p;
	else if (r == 0) {
		s->more = (uintptr_t)p;
		s->nmore = NPAGES;
	}
	return r;
}

static void
multi_object(struct scene *s)
{
	new_object(s);
	must(map_again(s) == 0, "map object");
	fill(s, 0, NPAGES / 2);
	rig_push_out(s->r, page(s, 0));
	for (size_t i = NPAGES / 2 - 8; i < NPAGES / 2; i++)
		fill(s, i, 1);
}

static void
two_places(struct scene *s)
{
	multi_object(s);
	must(map_again(s) == 0, "map object again");
}

/* What is written in one is seen in the other. */
static void
check_places(struct scene *s)
{
	for (size_t i = 0; i < s->nmore; i++) {
		if (s->gone[i])
			continue;
		must(rig_get(s->r, s->more + i * PAGE_SIZE) == s->word[i],
		     "%s: page %zu is another in the second place", where, i);
	}
	if (s->nmore > 0 && !s->gone[3]) {
		s->word[3] = ++s->serial;
		rig_put(s->r, s->more + 3 * PAGE_SIZE, s->word[3]);
	}
}

Test(failing, mapping_an_object_for_several_places)
{
	const struct operation op = {
		"map UP_MULTI",
		FROM(FAIL_CALL) | FROM(FAIL_PART) | FROM(FAIL_ENTRY) | FROM(FAIL_PLACE),
		new_object,
		map_again,
		NULL,
		true,
	};

	sweep(&op);
}

Test(failing, mapping_an_object_in_a_second_place)
{
	const struct operation op = {
		"map again",  FROM(FAIL_CALL) | FROM(FAIL_ENTRY) | FROM(FAIL_PLACE),
		multi_object, map_again,
		check_places, true,
	};

	sweep(&op);
}

/* An object that was in a pool is mapped in one place a page. */
static void
pooled_and_unmapped(struct scene *s)
{
	multi_object(s);
	must(up_unmap(s->r->rt, (void *)s->va, NPAGES * PAGE_SIZE) == 0, "unmap");
	s->va = 0;
}

static int
map_plain(struct scene *s)
{
	void *p;
	const int r = up_map(s->r->rt, NULL, NPAGES * PAGE_SIZE, RW, UP_SHARED, s->object, 0, &p);

	if (r == 0)
		s->va = (uintptr_t)p;
	return r;
}

Test(failing, mapping_an_object_in_one_place_again)
{
	const struct operation op = {
		"map plain",
		FROM(FAIL_CALL) | FROM(FAIL_ENTRY),
		pooled_and_unmapped,
		map_plain,
		NULL,
		true,
	};

	sweep(&op);
}

/* A page that nobody has touched, one in swap, and one that was. */
static int
touch_in_second_place(struct scene *s)
{
	static const size_t pages[] = { 0, NPAGES / 2 - 1, NPAGES - 1 };
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(pages); i++) {
		uint64_t word = 0;
		const enum sim_result res = rig_touch(s->r, 0, s->more + pages[i] * PAGE_SIZE,
						      false, &word, 0, sizeof word);

		if (res == SIM_SIGBUS)
			r = -EIO;
		else
			must(res == SIM_OK && word == s->word[pages[i]],
			     "%s: page %zu: touch %d, %#lx", where, pages[i], (int)res,
			     (unsigned long)word);
	}
	return r;
}

Test(failing, faults_in_a_pool)
{
	const struct operation op = {
		"touch in a pool", FROM(FAIL_CALL) | FROM(FAIL_ANON),
		two_places,	   touch_in_second_place,
		check_places,	   false,
	};

	sweep(&op);
}

static int
unmap_second_part(struct scene *s)
{
	return up_unmap(s->r->rt, (void *)(s->more + 8 * PAGE_SIZE), 8 * PAGE_SIZE);
}

static void
check_second_part(struct scene *s)
{
	must(up_unmap(s->r->rt, (void *)(s->more + 16 * PAGE_SIZE), (NPAGES - 16) * PAGE_SIZE) == 0,
	     "unmap");
	s->nmore = 8;
	check_places(s);
}

Test(failing, unmapping_a_part_of_one_place)
{
	const struct operation op = {
		"unmap part of a place",
		FROM(FAIL_CALL) | FROM(FAIL_ENTRY) | FROM(FAIL_PLACE),
		two_places,
		unmap_second_part,
		check_second_part,
		true,
	};

	sweep(&op);
}

static uintptr_t wall;

/* Another part of the object, with something behind it: to grow it has to move. */
static void
place_before_a_wall(struct scene *s)
{
	void *p;

	multi_object(s);
	s->nmore = NPAGES / 2;
	must(up_map(s->r->rt, NULL, s->nmore * PAGE_SIZE, RW, UP_SHARED | UP_MULTI, s->object, 0,
		    &p) == 0,
	     "map");
	s->more = (uintptr_t)p;
	wall = s->more + s->nmore * PAGE_SIZE;
	must(up_map(s->r->rt, (void *)wall, PAGE_SIZE, RW, UP_SHARED | UP_MULTI | UP_FIXED,
		    s->object, 0, &p) == 0,
	     "map");
	/* Of two entries, so that the second may fail where the first has not. */
	must(up_protect(s->r->rt, (void *)s->more, 2 * PAGE_SIZE, PROT_READ) == 0, "protect");
}

static int
grow_place(struct scene *s)
{
	void *p;
	const int r = up_remap(s->r->rt, (void *)s->more, s->nmore * PAGE_SIZE, NPAGES * PAGE_SIZE,
			       UP_MAYMOVE, &p);

	if (r < 0)
		return r;
	s->more = (uintptr_t)p;
	s->nmore = NPAGES;
	return 0;
}

static void
check_grown_place(struct scene *s)
{
	check_places(s);
	must(up_unmap(s->r->rt, (void *)wall, PAGE_SIZE) == 0, "unmap");
}

Test(failing, growing_a_place_that_has_to_move)
{
	const struct operation op = {
		"remap a place",     FROM(FAIL_CALL) | FROM(FAIL_PLACE),
		place_before_a_wall, grow_place,
		check_grown_place,   true,
	};

	sweep(&op);
}

static int
inherit_part(struct scene *s)
{
	return up_inherit(s->r->rt, (void *)page(s, 8), 8 * PAGE_SIZE, UP_INHERIT_SHARE);
}

Test(failing, saying_what_children_inherit)
{
	const struct operation op = { "inherit", FROM(FAIL_ENTRY), multi_object, inherit_part, NULL,
				      true };

	sweep(&op);
}

/* Shared in front, private behind it: both are inherited. */
static void
parent(struct scene *s)
{
	multi_object(s);
	s->nmore = 8;
	s->more = rig_map(s->r, s->nmore * PAGE_SIZE);
	for (size_t i = 0; i < s->nmore; i++)
		rig_put(s->r, s->more + i * PAGE_SIZE, 500 + i);
	must(up_inherit(s->r->rt, (void *)page(s, 0), 8 * PAGE_SIZE, UP_INHERIT_SHARE) == 0,
	     "inherit");
	must(up_inherit(s->r->rt, (void *)page(s, 8), (NPAGES - 8) * PAGE_SIZE, UP_INHERIT_COPY) ==
		     0,
	     "inherit");
	must(up_inherit(s->r->rt, (void *)s->more, s->nmore * PAGE_SIZE, UP_INHERIT_COPY) == 0,
	     "inherit");
}

static int
fork_kid(struct scene *s)
{
	sigset_t old;
	int r;

	change_begin(s->r->p, &old);
	r = space_fork(s->r->rt, &s->r->p->map, -1, &s->kid);
	must((r == 0) == (s->kid != NULL), "%s: result %d, and a space or none", where, r);
	if (s->kid != NULL)
		chain_thaw(s->r->p);
	change_end(s->r->p, &old);
	return r;
}

static uint64_t
kid_get(struct scene *s, uintptr_t va)
{
	uint64_t word = 0;
	enum sim_result res = SIM_FAULT;

	for (unsigned i = 0; i < 10000 && res == SIM_FAULT; i++) {
		res = sim_touch_in(s->r->pm, s->kid->shard, 40, va, false, &word, 0, sizeof word);
		if (res == SIM_FAULT)
			rig_step(s->r);
	}
	must(res == SIM_OK, "%s: a child's touch of %#lx ends with %d", where, (unsigned long)va,
	     (int)res);
	return word;
}

static void
check_kid(struct scene *s)
{
	must(s->r->pm->ops->space_attach(s->r->pm, s->kid->shard, -1, 0) == 0, "%s: attach", where);
	for (size_t i = 0; i < s->nmore; i++)
		rig_put(s->r, s->more + i * PAGE_SIZE, 600 + i);
	for (size_t i = 0; i < s->nmore; i++)
		must(kid_get(s, s->more + i * PAGE_SIZE) == 500 + i, "%s: copy of page %zu", where,
		     i);
	for (size_t i = 0; i < NPAGES; i++)
		must(kid_get(s, page(s, i)) == s->word[i], "%s: child's page %zu", where, i);
}

Test(failing, forking)
{
	const struct operation op = {
		"fork",
		FROM(FAIL_CALL) | FROM(FAIL_ENTRY) | FROM(FAIL_OBJECT) | FROM(FAIL_SPACE) |
			FROM(FAIL_PLACE),
		parent,
		fork_kid,
		check_kid,
		true,
	};

	sweep(&op);
}

/* --- create and destroy --- */

static unsigned
open_files(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	must(d != NULL, "no /proc/self/fd");
	while (readdir(d) != NULL)
		n++;
	closedir(d);
	return n;
}

static void
creating_with(struct rig_config cfg)
{
	unsigned nth = 0;
	bool failed = true;

	while (failed) {
		struct rig *r = rig_prepare(&cfg);
		const unsigned files = open_files();
		uintptr_t va;

		r->fail_commit = ++nth;
		failed = rig_create(r) < 0;
		must(failed == r->commit_failed, "commit %u: failed %d, create %d", nth,
		     r->commit_failed, failed);
		r->fail_commit = 0;
		if (failed) {
			must(r->rt == NULL, "commit %u: a failed create returned a runtime", nth);
			must(r->nlog > 0, "commit %u: nothing was said about it", nth);
			must(open_files() == files, "commit %u: a descriptor is left", nth);
			must(r->reserved == 0, "commit %u: address space is left", nth);
			must(rig_create(r) == 0, "commit %u: does not heal", nth);
		}
		va = rig_map(r, PAGE_SIZE);
		rig_put(r, va, nth);
		must(rig_get(r, va) == nth, "commit %u: does not work", nth);
		rig_down(r);
		must(nth < NTH_MAX, "no end to it");
	}
	must(nth > 5, "create commits only %u times: not what it was", nth);
}

Test(failing, creating_a_runtime)
{
	for (unsigned policy = 0; policy < POLICY_KINDS; policy++)
		creating_with((struct rig_config){ .services = 2, .policy = policy });
}

Test(failing, creating_a_runtime_whose_threads_serve_themselves)
{
	creating_with((struct rig_config){
		.services = 2, .policy = POLICY_S3FIFO, .delivery = UP_DELIVER_INLINE });
}

Test(failing, creating_a_runtime_with_a_compressed_tier)
{
	const enum up_compression kinds[] = { UP_COMPRESS_LZ4, UP_COMPRESS_ZSTD };

	for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++)
		creating_with((struct rig_config){
			.services = 2, .memory = 16 << 20, .compression = kinds[k] });
}

/* What a kernel refuses for a moment only; that munmap() of a whole VMA is refused is not known. */
Test(failing, destroying_a_runtime)
{
	static const int errors[] = { -EAGAIN };
	bool any = false;

	for (unsigned k = 0; k < ARRAY_SIZE(errors); k++) {
		bool fired = true;

		for (unsigned nth = 1; fired; nth++) {
			struct scene s = { .r = rig_up(&(struct rig_config){
						   .seed = nth, .swap_slots = 4096 }) };

			snprintf(where, sizeof where, "destroy, call %u fails", nth);
			mapped_object(&s);
			s.nmore = NPAGES;
			s.more = rig_map(s.r, s.nmore * PAGE_SIZE);
			check_more(&s);
			rig_settle(s.r);
			sim_fail_nth(&s.r->f, nth, 0, errors[k]);
			/* Its checkers count everything back to zero; the simulation aborts on what is left. */
			up_runtime_destroy(s.r->rt);
			s.r->rt = NULL;
			fired = sim_fail_disarm(&s.r->f);
			any |= fired;
			rig_down(s.r);
			must(nth < NTH_MAX, "%s: no end to it", where);
		}
	}
	must(any, "nothing ever failed");
}
