/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * zpool.c: entries, their queue, segments, cleaning.  zpool.h has the drawing.
 *
 * Functions expect `lock` to be held unless they say otherwise.
 */
#include "swap/zpool.h"

#include <errno.h>
#include <string.h>

#define UNIT ZPOOL_UNIT
#define PAGE_UNITS ((unsigned)(PAGE_SIZE / UNIT))
#define SEG_UNITS ((unsigned)(ZSEG_SIZE / UNIT))
#define SEG_NONE UINT32_MAX

enum kind { FREE, BYTES, SAME };

struct zentry {
	uint64_t owner;
	union {
		struct {
			zref_t prev, next; /* BYTES: in the queue; FREE: next alone */
		};
		uint64_t word; /* SAME */
	};
	union {
		struct {
			uint32_t seg; /* BYTES: where it is; off in units */
			unsigned off : 13;
			unsigned len : 12;
			unsigned kind : 2;
			unsigned codec : 2; /* BYTES: who wrote it */
			unsigned old : 1;   /* before `young` */
		};
		uint64_t place; /* to store all of it at once */
	};
};
_Static_assert(sizeof(struct zentry) == ZENTRY_BYTES, "an entry costs what zpool.h says");
_Static_assert(SEG_UNITS <= 1u << 13 && CODEC_MAX < 1u << 12, "they fit");

/* As it lies in a segment. */
struct zobj {
	zref_t ref; /* ZREF_NONE: a hole */
	union {
		uint32_t units; /* of a hole */
		char data[4];	/* and on */
	};
};

/* Where a hole is, in units from `base`. */
typedef uint64_t place_t;
#define PLACE_NONE UINT64_MAX

/* One that is long enough for this is in the list of its length. */
struct zhole {
	struct zobj obj;
	place_t prev, next;
};
#define HOLE_UNITS ((unsigned)(sizeof(struct zhole) / UNIT))

enum seg_state { HOLE, NEW, OPEN, CLOSED, SPARE, GONE };

struct zseg {
	uint32_t prev, next; /* CLOSED: in its list; GONE: next alone */
	uint16_t live;	     /* units of entries */
	uint16_t fill;	     /* units written */
	uint8_t npages;
	uint8_t state;
};
_Static_assert(ZPOOL_OPEN >= 2, "one of them may be growing, and then is not closed");
_Static_assert(sizeof(struct zseg) == 16, "a segment costs what zpool.h says");

static unsigned
units_of(size_t len)
{
	return (unsigned)((offsetof(struct zobj, data) + len + UNIT - 1) / UNIT);
}

/* Compilers that know how long these can be at most make `rep movs` of it, which takes 100 ns more to begin and to fetch what is in no cache. */
static void
copy(void *to, const void *from, size_t n)
{
	__asm__("" : "+r"(n));
	memcpy(to, from, n);
}

/* The most that what did not fit can have been: a CLOSED segment with more dead than that has dead entries. */
#define UNITS_MAX units_of(CODEC_MAX)

static struct zentry *
entry_at(const struct zpool *zp, zref_t ref)
{
	assert(ref < zp->nentries);
	return (struct zentry *)zp->entries.base + ref;
}

static struct zseg *
seg_at(const struct zpool *zp, uint32_t i)
{
	return (struct zseg *)zp->segs.base + i;
}

static char *
seg_addr(const struct zpool *zp, uint32_t i)
{
	return zp->base + i * ZSEG_SIZE;
}

static struct zobj *
obj_at(const struct zpool *zp, uint32_t seg, unsigned off)
{
	return (struct zobj *)(void *)(seg_addr(zp, seg) + (size_t)off * UNIT);
}

/* From here on its bytes, which are there already, are there. */
static void
entry_moved(struct zentry *e, uint32_t seg, unsigned off)
{
	struct zentry to = *e;

	to.seg = seg;
	to.off = off & (SEG_UNITS - 1);
	stores_in_order();
	__atomic_store_n(&e->place, to.place, __ATOMIC_RELAXED);
	stores_in_order();
}

/* --- holes --- */

static struct zhole *
hole_at(const struct zpool *zp, place_t at)
{
	return (struct zhole *)(void *)(zp->base + at * UNIT);
}

static unsigned
hole_list(unsigned units)
{
	return MIN(units, ZPOOL_HOLES - 1);
}

/* So much from here on is a hole; it may be found if it is worth it. */
static void
hole_put(struct zpool *zp, uint32_t seg, unsigned off, unsigned units)
{
	const place_t at = (place_t)seg * SEG_UNITS + off;
	struct zhole *h = hole_at(zp, at);
	const unsigned k = hole_list(units);

	h->obj = (struct zobj){ .ref = ZREF_NONE, .units = units };
	if (units < HOLE_UNITS)
		return;
	h->prev = PLACE_NONE;
	h->next = zp->hole[k];
	if (h->next != PLACE_NONE)
		hole_at(zp, h->next)->prev = at;
	zp->hole[k] = at;
	zp->holes[k / 64] |= UINT64_C(1) << k % 64;
}

/* It is not to be found any more. */
static void
hole_remove(struct zpool *zp, uint32_t seg, unsigned off)
{
	const struct zhole *h = hole_at(zp, (place_t)seg * SEG_UNITS + off);
	const unsigned k = hole_list(h->obj.units);

	if (h->obj.units < HOLE_UNITS)
		return;
	if (h->next != PLACE_NONE)
		hole_at(zp, h->next)->prev = h->prev;
	if (h->prev != PLACE_NONE)
		hole_at(zp, h->prev)->next = h->next;
	else
		zp->hole[k] = h->next;
	if (zp->hole[k] == PLACE_NONE)
		zp->holes[k / 64] &= ~(UINT64_C(1) << k % 64);
}

/* The shortest that is long enough, or PLACE_NONE. */
static place_t
hole_find(const struct zpool *zp, unsigned units)
{
	const unsigned k = hole_list(units);
	uint64_t bits = zp->holes[k / 64] & UINT64_MAX << k % 64;

	for (unsigned i = k / 64; i < sizeof zp->holes / sizeof zp->holes[0]; i++) {
		bits = i == k / 64 ? bits : zp->holes[i];
		if (bits != 0)
			return zp->hole[i * 64 + (unsigned)__builtin_ctzll(bits)];
	}
	return PLACE_NONE;
}

/* A segment's are not to be found any more: it is about to be nowhere, or to be cleaned. */
static void
holes_forget(struct zpool *zp, uint32_t seg)
{
	const struct zseg *s = seg_at(zp, seg);
	unsigned at = 0;

	while (at < s->fill) {
		const struct zobj *o = obj_at(zp, seg, at);

		if (o->ref == ZREF_NONE) {
			hole_remove(zp, seg, at);
			at += o->units;
		} else {
			at += units_of(entry_at(zp, o->ref)->len);
		}
	}
}

/* --- the queue: in order of arrival, the oldest quarter marked --- */

/* The mark is off by one entry at most: one was added, or one removed. */
static void
queue_balance(struct zpool *zp)
{
	const uint32_t want = zp->nqueue / 4;
	struct zentry *e;

	if (zp->nold < want) {
		e = entry_at(zp, zp->young);
		e->old = 1;
		zp->nold++;
		zp->young = e->next;
	} else if (zp->nold > want) {
		zp->young = zp->young == ZREF_NONE ? zp->youngest : entry_at(zp, zp->young)->prev;
		entry_at(zp, zp->young)->old = 0;
		zp->nold--;
	}
}

static void
queue_add(struct zpool *zp, zref_t ref)
{
	struct zentry *e = entry_at(zp, ref);

	e->old = 0;
	e->next = ZREF_NONE;
	e->prev = zp->youngest;
	if (e->prev != ZREF_NONE)
		entry_at(zp, e->prev)->next = ref;
	else
		zp->oldest = ref;
	zp->youngest = ref;
	if (zp->young == ZREF_NONE)
		zp->young = ref;
	zp->nqueue++;
	queue_balance(zp);
}

static void
queue_remove(struct zpool *zp, zref_t ref)
{
	const struct zentry *e = entry_at(zp, ref);

	if (zp->young == ref)
		zp->young = e->next;
	if (e->prev != ZREF_NONE)
		entry_at(zp, e->prev)->next = e->next;
	else
		zp->oldest = e->next;
	if (e->next != ZREF_NONE)
		entry_at(zp, e->next)->prev = e->prev;
	else
		zp->youngest = e->prev;
	zp->nqueue--;
	zp->nold -= e->old;
	queue_balance(zp);
}

/* --- segments --- */

static unsigned
seg_ready(const struct zseg *s)
{
	return s->npages * PAGE_UNITS - s->fill;
}

static unsigned
seg_dead(const struct zseg *s)
{
	return (s->state == OPEN ? s->fill : s->npages * PAGE_UNITS) - s->live;
}

static uint32_t *
seg_list(struct zpool *zp, const struct zseg *s)
{
	return &zp->list[seg_dead(s) * (ZPOOL_LISTS - 1) / SEG_UNITS];
}

/* An OPEN or CLOSED segment is changed between these two. */
static void
seg_leave(struct zpool *zp, uint32_t i)
{
	const struct zseg *s = seg_at(zp, i);

	zp->dead -= (size_t)seg_dead(s) * UNIT;
	if (s->state != CLOSED)
		return;
	if (s->next != SEG_NONE)
		seg_at(zp, s->next)->prev = s->prev;
	if (s->prev != SEG_NONE)
		seg_at(zp, s->prev)->next = s->next;
	else
		*seg_list(zp, s) = s->next;
}

static void
seg_enter(struct zpool *zp, uint32_t i)
{
	struct zseg *s = seg_at(zp, i);
	uint32_t *list;

	zp->dead += (size_t)seg_dead(s) * UNIT;
	if (s->state != CLOSED)
		return;
	list = seg_list(zp, s);
	s->prev = SEG_NONE;
	s->next = *list;
	if (s->next != SEG_NONE)
		seg_at(zp, s->next)->prev = i;
	*list = i;
}

/* A segment without entries that is nowhere. */
static void
seg_retire(struct zpool *zp, uint32_t i)
{
	struct zseg *s = seg_at(zp, i);

	assert(s->live == 0 && i != zp->growing);
	holes_forget(zp, i);
	s->fill = 0;
	if (zp->spare == SEG_NONE) {
		s->state = SPARE;
		zp->spare = i;
	} else {
		s->state = GONE;
		s->next = zp->gone;
		zp->gone = i;
	}
}

/* From OPEN or CLOSED to nowhere. */
static void
seg_take(struct zpool *zp, uint32_t i)
{
	seg_leave(zp, i);
	for (unsigned k = 0; k < ZPOOL_OPEN; k++)
		if (zp->open[k] == i)
			zp->open[k] = SEG_NONE;
}

static void
seg_close(struct zpool *zp, uint32_t i)
{
	struct zseg *s = seg_at(zp, i);

	seg_take(zp, i);
	if (s->live == 0) {
		seg_retire(zp, i);
		return;
	}
	/* What is left at its end is a hole like others. */
	if (seg_ready(s) > 0)
		hole_put(zp, i, s->fill, seg_ready(s));
	s->fill = (uint16_t)(s->npages * PAGE_UNITS);
	s->state = CLOSED;
	seg_enter(zp, i);
}

/* From nowhere to OPEN, in place of the fullest if need be. */
static void
seg_open(struct zpool *zp, uint32_t i)
{
	unsigned at = ZPOOL_OPEN;

	for (unsigned k = 0; k < ZPOOL_OPEN; k++) {
		if (zp->open[k] == SEG_NONE) {
			at = k;
			break;
		}
		if (zp->open[k] == zp->growing)
			continue;
		if (at == ZPOOL_OPEN ||
		    seg_at(zp, zp->open[k])->fill > seg_at(zp, zp->open[at])->fill)
			at = k;
	}
	if (zp->open[at] != SEG_NONE)
		seg_close(zp, zp->open[at]);
	zp->open[at] = i;
	seg_at(zp, i)->state = OPEN;
	seg_enter(zp, i);
}

/* The OPEN segment with the least room, but enough, or SEG_NONE. */
static uint32_t
seg_fitting(const struct zpool *zp, unsigned units)
{
	uint32_t best = SEG_NONE;

	for (unsigned k = 0; k < ZPOOL_OPEN; k++) {
		const uint32_t i = zp->open[k];

		if (i == SEG_NONE || seg_ready(seg_at(zp, i)) < units)
			continue;
		if (best == SEG_NONE || seg_ready(seg_at(zp, i)) < seg_ready(seg_at(zp, best)))
			best = i;
	}
	return best;
}

/* True if there is room for an entry without more memory. */
static bool
is_room(const struct zpool *zp, unsigned units)
{
	return hole_find(zp, units) != PLACE_NONE || seg_fitting(zp, units) != SEG_NONE;
}

/* Out of a hole, whose rest is one. */
static void
carve_hole(struct zpool *zp, place_t at, unsigned units, uint32_t *seg, unsigned *off)
{
	const unsigned has = hole_at(zp, at)->obj.units;
	struct zseg *s;

	assert(has >= units);
	*seg = (uint32_t)(at / SEG_UNITS);
	*off = (unsigned)(at % SEG_UNITS);
	hole_remove(zp, *seg, *off);
	if (has > units)
		hole_put(zp, *seg, *off + units, has - units);
	s = seg_at(zp, *seg);
	seg_leave(zp, *seg);
	s->live = (uint16_t)(s->live + units);
	seg_enter(zp, *seg);
	zp->live += (size_t)units * UNIT;
}

/* Room for an entry, which is live from now on; false if it takes more memory. */
static bool
carve(struct zpool *zp, unsigned units, uint32_t *seg, unsigned *off)
{
	const place_t hole = hole_find(zp, units);
	uint32_t i;
	struct zseg *s;

	if (hole != PLACE_NONE) {
		carve_hole(zp, hole, units, seg, off);
		return true;
	}
	i = seg_fitting(zp, units);
	if (i == SEG_NONE)
		return false;
	s = seg_at(zp, i);
	*seg = i;
	*off = s->fill;
	/* What is dead of an OPEN segment stays what it was. */
	s->fill = (uint16_t)(s->fill + units);
	s->live = (uint16_t)(s->live + units);
	zp->live += (size_t)units * UNIT;
	return true;
}

/* What an entry had in its segment is dead from now on. */
static void
bury(struct zpool *zp, const struct zentry *e)
{
	const unsigned units = units_of(e->len);
	struct zseg *s = seg_at(zp, e->seg);
	const unsigned next = e->off + units;
	unsigned more = 0;

	/* It joins the one behind it. */
	if (next < s->fill && obj_at(zp, e->seg, next)->ref == ZREF_NONE) {
		more = obj_at(zp, e->seg, next)->units;
		hole_remove(zp, e->seg, next);
	}
	hole_put(zp, e->seg, e->off, units + more);
	seg_leave(zp, e->seg);
	s->live = (uint16_t)(s->live - units);
	seg_enter(zp, e->seg);
	zp->live -= (size_t)units * UNIT;
	if (s->live != 0)
		return;
	/* Who extends it goes on to fill it, or comes back here. */
	seg_take(zp, e->seg);
	if (e->seg != zp->growing) {
		seg_retire(zp, e->seg);
	} else {
		holes_forget(zp, e->seg);
		s->fill = 0;
		seg_open(zp, e->seg);
	}
}

/* --- cleaning --- */

static bool
too_much_dead(const struct zpool *zp)
{
	return zp->dead > zp->pool / ZPOOL_DEAD + ZSEG_SIZE;
}

/* The segment with the most dead, to within a list's width, if that is at least so much. */
static uint32_t
worst(const struct zpool *zp, unsigned least)
{
	uint32_t best = SEG_NONE;

	for (unsigned k = ZPOOL_LISTS; k-- > 0 && best == SEG_NONE;)
		best = zp->list[k];
	for (unsigned k = 0; k < ZPOOL_OPEN; k++) {
		const uint32_t i = zp->open[k];

		if (i != SEG_NONE && i != zp->growing &&
		    (best == SEG_NONE || seg_dead(seg_at(zp, i)) > seg_dead(seg_at(zp, best))))
			best = i;
	}
	return best != SEG_NONE && seg_dead(seg_at(zp, best)) >= least ? best : SEG_NONE;
}

/* An entry goes towards the front of its segment. */
static void
slide(struct zpool *zp, zref_t ref, unsigned to)
{
	struct zentry *e = entry_at(zp, ref);
	const struct zobj *o = obj_at(zp, e->seg, e->off);
	const size_t size = (size_t)units_of(e->len) * UNIT;
	struct zslide *note = zp->slide;

	/* If it does not overlap itself it is where it was until it is moved. */
	if (note != NULL && (size_t)(e->off - to) * UNIT < size) {
		memcpy(note->obj, o, size);
		stores_in_order();
		note->ref = ref;
		stores_in_order();
	}
	memmove(obj_at(zp, e->seg, to), o, size);
	entry_moved(e, e->seg, to);
	if (note != NULL)
		note->ref = ZREF_NONE;
	stores_in_order();
}

/*
 * Clean the worst segment.
 * => false, and nothing was done, if less than `least` units are dead in each.
 * => true: so much is ready in an OPEN one, or there is a spare.
 */
static bool
clean(struct zpool *zp, unsigned least)
{
	const uint32_t i = worst(zp, least);
	unsigned at = 0, to = 0, off;
	struct zseg *s;

	if (i == SEG_NONE)
		return false;
	s = seg_at(zp, i);
	seg_take(zp, i);
	holes_forget(zp, i);
	while (at < s->fill) {
		struct zobj *o = obj_at(zp, i, at);
		struct zentry *e;
		unsigned units;
		uint32_t seg;

		if (o->ref == ZREF_NONE) {
			at += o->units;
			continue;
		}
		e = entry_at(zp, o->ref);
		units = units_of(e->len);
		if (carve(zp, units, &seg, &off)) {
			memcpy(obj_at(zp, seg, off), o, (size_t)units * UNIT);
			entry_moved(e, seg, off);
			s->live = (uint16_t)(s->live - units);
			zp->live -= (size_t)units * UNIT;
			zp->count.moved++;
		} else {
			if (to != at) {
				slide(zp, o->ref, to);
				zp->count.moved++;
			}
			to += units;
		}
		at += units;
	}
	s->fill = (uint16_t)to;
	if (to == 0)
		seg_retire(zp, i);
	else
		seg_open(zp, i);
	return true;
}

/* --- memory --- */

/* Give back what is GONE.  No lock is held, but grow_lock may be. */
static void
release_gone(struct zpool *zp)
{
	const struct arena *a = zp->arena;

	pthread_mutex_lock(&zp->lock);
	while (zp->gone != SEG_NONE) {
		const uint32_t i = zp->gone;
		struct zseg *s = seg_at(zp, i);
		const size_t bytes = s->npages * PAGE_SIZE;

		zp->gone = s->next;
		pthread_mutex_unlock(&zp->lock);
		a->ops->decommit(a->ctx, seg_addr(zp, i), bytes);
		budget_uncharge(a->budget, bytes);
		pthread_mutex_lock(&zp->lock);
		zp->pool -= bytes;
		s->npages = 0;
		s->state = HOLE;
		fitmap_give(&zp->map, i, 1);
	}
	pthread_mutex_unlock(&zp->lock);
}

static void
unlock_and_release(struct zpool *zp)
{
	const bool gone = zp->gone != SEG_NONE;

	pthread_mutex_unlock(&zp->lock);
	if (gone)
		release_gone(zp);
}

/*
 * More entries, a page of the table.
 * => grow_lock is held, and lock, which is dropped on the way.
 * => 0 or -ENOSPC.
 */
static int
grow_entries(struct zpool *zp)
{
	const size_t from = zp->nentries;
	size_t n = round_up((from + 1) * sizeof(struct zentry), PAGE_SIZE) / sizeof(struct zentry);
	int r;

	n = MIN(n, zp->max_entries);
	if (n <= from)
		return -ENOSPC;
	pthread_mutex_unlock(&zp->lock);
	r = wired_array_grow(&zp->entries, n);
	pthread_mutex_lock(&zp->lock);
	if (r < 0)
		return -ENOSPC;
	zp->nentries = (uint32_t)n;
	while (n-- > from) {
		struct zentry *e = entry_at(zp, (zref_t)n);

		e->kind = FREE;
		e->next = zp->free;
		zp->free = (zref_t)n;
	}
	return 0;
}

/*
 * A HOLE becomes NEW: nowhere, without memory.
 * => As grow_entries().  SEG_NONE: no more of them, or no memory for their table.
 */
static uint32_t
seg_new(struct zpool *zp)
{
	size_t i;
	int r;

	if (!fitmap_find(&zp->map, 1, 1, 0, &i))
		return SEG_NONE;
	/* Only with grow_lock is one taken: nobody else takes this one. */
	pthread_mutex_unlock(&zp->lock);
	r = wired_array_grow(&zp->segs, i + 1);
	pthread_mutex_lock(&zp->lock);
	if (r < 0 || fitmap_reach(&zp->map, i + 1) < 0)
		return SEG_NONE;
	fitmap_take(&zp->map, i, 1);
	*seg_at(zp, (uint32_t)i) = (struct zseg){ .state = NEW };
	return (uint32_t)i;
}

/* Memory behind a segment, `need` pages or up to `n`, but for the books.  No lock but grow_lock.  How many; 0: there is none. */
static unsigned
populate(struct zpool *zp, char *addr, unsigned need, unsigned n)
{
	const struct arena *a = zp->arena;

	if (!budget_charge(a->budget, n * PAGE_SIZE)) {
		if (n == need || !budget_charge(a->budget, need * PAGE_SIZE))
			return 0;
		n = need;
	}
	if (a->ops->commit(a->ctx, addr, n * PAGE_SIZE) == 0)
		return n;
	budget_uncharge(a->budget, n * PAGE_SIZE);
	return 0;
}

/*
 * Pages for so much more of a segment, NEW or OPEN.
 * => As grow_entries().
 */
static int
seg_extend(struct zpool *zp, uint32_t i, unsigned units)
{
	struct zseg *s = seg_at(zp, i);
	const unsigned need = (s->fill + units + PAGE_UNITS - 1) / PAGE_UNITS - s->npages;
	const size_t left = zp->limit > zp->pool ? (zp->limit - zp->pool) / PAGE_SIZE : 0;
	unsigned n = MIN(MAX(need, ZPOOL_STEP), (unsigned)ZSEG_PAGES - s->npages), got;

	n = (unsigned)MIN(n, left);
	if (n < need)
		return -ENOSPC;
	zp->growing = i;
	zp->pool += n * PAGE_SIZE;
	pthread_mutex_unlock(&zp->lock);
	got = populate(zp, seg_addr(zp, i) + s->npages * PAGE_SIZE, need, n);
	pthread_mutex_lock(&zp->lock);
	zp->growing = SEG_NONE;
	zp->pool -= (n - got) * PAGE_SIZE;
	zp->pool_max = MAX(zp->pool_max, zp->pool);
	/* What is dead of an OPEN segment stays what it was. */
	s->npages = (uint8_t)(s->npages + got);
	return got == 0 ? -ENOSPC : 0;
}

/* As grow_entries(). */
static int
grow_segs(struct zpool *zp, unsigned units)
{
	uint32_t i = SEG_NONE;

	for (unsigned k = 0; k < ZPOOL_OPEN && i == SEG_NONE; k++)
		if (zp->open[k] != SEG_NONE && SEG_UNITS - seg_at(zp, zp->open[k])->fill >= units)
			i = zp->open[k];
	if (i != SEG_NONE)
		return seg_extend(zp, i, units);
	i = zp->spare;
	if (i != SEG_NONE) {
		/* It may have to be extended: then that is what is done next. */
		zp->spare = SEG_NONE;
		seg_open(zp, i);
		return 0;
	}
	if (zp->pool + PAGE_SIZE > zp->limit)
		return -ENOSPC;
	i = seg_new(zp);
	if (i == SEG_NONE)
		return -ENOSPC;
	if (seg_extend(zp, i, units) < 0) {
		seg_at(zp, i)->state = HOLE;
		fitmap_give(&zp->map, i, 1);
		return -ENOSPC;
	}
	seg_open(zp, i);
	return 0;
}

/*
 * So many units ready in an OPEN segment.
 * => As grow_entries().
 */
static int
grow_room(struct zpool *zp, unsigned units)
{
	if (units == 0 || is_room(zp, units))
		return 0; /* somebody else was here meanwhile */
	if (too_much_dead(zp) && clean(zp, UNITS_MAX + 1))
		return 0;
	if (grow_segs(zp, units) == 0 || is_room(zp, units))
		return 0;
	return clean(zp, units) ? 0 : -ENOSPC;
}

/*
 * An entry and so many units are wanted, and are not there.
 *
 * => lock is held; it is dropped on the way.
 * => 0: look again.  -ENOSPC: there is nothing to be had.
 */
static int
make_room(struct zpool *zp, unsigned units)
{
	int r;

	pthread_mutex_unlock(&zp->lock);
	pthread_mutex_lock(&zp->grow_lock);
	pthread_mutex_lock(&zp->lock);
	r = zp->free == ZREF_NONE ? grow_entries(zp) : grow_room(zp, units);
	pthread_mutex_unlock(&zp->grow_lock);
	return r;
}

/* --- the pool --- */

int
zpool_init_at(struct zpool *zp, struct arena *arena, void *base, struct zslide *slide,
	      size_t max_bytes, size_t max_entries)
{
	const size_t nsegs = max_bytes / ZSEG_SIZE + (max_bytes % ZSEG_SIZE != 0);
	int r = -ENOMEM;

	*zp = (struct zpool){
		.arena = arena,
		.base = base,
		.lent = base != NULL,
		.slide = slide,
		.max = nsegs * ZSEG_SIZE,
		.limit = max_bytes,
		.max_entries = max_entries,
		.free = ZREF_NONE,
		.oldest = ZREF_NONE,
		.young = ZREF_NONE,
		.youngest = ZREF_NONE,
		.spare = SEG_NONE,
		.gone = SEG_NONE,
		.growing = SEG_NONE,
	};
	for (unsigned k = 0; k < ZPOOL_OPEN; k++)
		zp->open[k] = SEG_NONE;
	for (unsigned k = 0; k < ZPOOL_LISTS; k++)
		zp->list[k] = SEG_NONE;
	for (unsigned k = 0; k < ZPOOL_HOLES; k++)
		zp->hole[k] = PLACE_NONE;
	if (nsegs >= SEG_NONE || max_entries > ZREF_NONE)
		return -ENOMEM;
	if (wired_array_init(&zp->entries, arena, sizeof(struct zentry), max_entries) < 0)
		return -ENOMEM;
	if (wired_array_init(&zp->segs, arena, sizeof(struct zseg), nsegs) < 0)
		goto fini_entries;
	if (fitmap_init(&zp->map, arena, nsegs) < 0)
		goto fini_segs;
	if (slide != NULL)
		slide->ref = ZREF_NONE;
	if (nsegs != 0 && !zp->lent) {
		zp->base = arena->ops->reserve(arena->ctx, zp->max);
		if (zp->base == NULL)
			goto fini_map;
	}
	r = -mutex_init_brief(&zp->lock);
	if (r < 0)
		goto release;
	r = -pthread_mutex_init(&zp->grow_lock, NULL);
	if (r < 0)
		goto destroy_lock;
	return 0;
destroy_lock:
	pthread_mutex_destroy(&zp->lock);
release:
	if (zp->base != NULL && !zp->lent)
		arena->ops->release(arena->ctx, zp->base, zp->max);
fini_map:
	fitmap_fini(&zp->map);
fini_segs:
	wired_array_fini(&zp->segs);
fini_entries:
	wired_array_fini(&zp->entries);
	return r;
}

int
zpool_init(struct zpool *zp, struct arena *arena, size_t max_bytes, size_t max_entries)
{
	return zpool_init_at(zp, arena, NULL, NULL, max_bytes, max_entries);
}

void
zpool_fini(struct zpool *zp)
{
	const struct arena *a = zp->arena;

	assert(zp->gone == SEG_NONE && zp->growing == SEG_NONE);
	for (size_t i = 0; i < zp->segs.n; i++) {
		const size_t bytes = seg_at(zp, (uint32_t)i)->npages * PAGE_SIZE;

		if (bytes == 0)
			continue;
		a->ops->decommit(a->ctx, seg_addr(zp, (uint32_t)i), bytes);
		budget_uncharge(a->budget, bytes);
		zp->pool -= bytes;
	}
	assert(zp->pool == 0);
	if (zp->base != NULL && !zp->lent)
		a->ops->release(a->ctx, zp->base, zp->max);
	fitmap_fini(&zp->map);
	wired_array_fini(&zp->segs);
	wired_array_fini(&zp->entries);
	pthread_mutex_destroy(&zp->grow_lock);
	pthread_mutex_destroy(&zp->lock);
}

/* An entry of no kind yet. */
static struct zentry *
take_entry(struct zpool *zp, uint64_t owner, zref_t *ref)
{
	struct zentry *e = entry_at(zp, zp->free);

	*ref = zp->free;
	zp->free = e->next;
	e->owner = owner;
	return e;
}

int
zpool_put(struct zpool *zp, enum up_compression codec, const void *data, size_t len, uint64_t owner,
	  zref_t *ref)
{
	const unsigned units = units_of(len);
	struct zentry *e;
	struct zobj *o;
	unsigned off = 0;
	uint32_t seg = SEG_NONE;
	int r = 0;

	assert(len >= 1 && len <= CODEC_MAX);
	pthread_mutex_lock(&zp->lock);
	while (zp->free == ZREF_NONE || !carve(zp, units, &seg, &off)) {
		r = make_room(zp, units);
		if (r < 0) {
			zp->count.refused++;
			goto unlock;
		}
	}
	e = take_entry(zp, owner, ref);
	e->kind = BYTES;
	e->codec = (unsigned)codec & 3;
	e->seg = seg;
	e->off = off;
	e->len = (unsigned)len;
	o = obj_at(zp, seg, off);
	o->ref = *ref;
	copy((char *)o + offsetof(struct zobj, data), data, len);
	queue_add(zp, *ref);
	zp->bytes += len;
	zp->count.stored++;
unlock:
	unlock_and_release(zp);
	return r;
}

int
zpool_put_same(struct zpool *zp, uint64_t word, uint64_t owner, zref_t *ref)
{
	struct zentry *e;
	int r = 0;

	pthread_mutex_lock(&zp->lock);
	while (zp->free == ZREF_NONE) {
		r = make_room(zp, 0);
		if (r < 0) {
			zp->count.refused++;
			goto unlock;
		}
	}
	e = take_entry(zp, owner, ref);
	e->kind = SAME;
	e->word = word;
	zp->nsame++;
	zp->count.same++;
unlock:
	unlock_and_release(zp);
	return r;
}

int
zpool_store(struct zpool *zp, struct codec_state *st, const void *page, uint64_t owner, zref_t *ref)
{
	uint64_t word;
	size_t len;

	if (codec_same(page, &word))
		return zpool_put_same(zp, word, owner, ref);
	len = codec_compress(st, page);
	if (len != 0)
		return zpool_put(zp, st->kind, st->buf, len, owner, ref);
	pthread_mutex_lock(&zp->lock);
	zp->count.rejected++;
	pthread_mutex_unlock(&zp->lock);
	return -E2BIG;
}

int
zpool_get(struct zpool *zp, struct codec_state *st, zref_t ref, void *page, enum zpool_why why)
{
	enum up_compression codec = UP_COMPRESS_NONE;
	const struct zentry *e;
	uint64_t word = 0;
	size_t len = 0;
	bool same;

	pthread_mutex_lock(&zp->lock);
	e = entry_at(zp, ref);
	assert(e->kind != FREE);
	same = e->kind == SAME;
	if (same) {
		word = e->word;
	} else {
		len = e->len;
		codec = (enum up_compression)e->codec;
		copy(st->buf, obj_at(zp, e->seg, e->off)->data, len);
	}
	if (why == ZPOOL_HIT) {
		zp->count.hits++;
		zp->count.hits_old += !same && e->old;
	}
	pthread_mutex_unlock(&zp->lock);
	if (!same)
		return codec_decompress(st, codec, st->buf, len, page);
	codec_fill(page, word);
	return 0;
}

void
zpool_free(struct zpool *zp, zref_t ref)
{
	struct zentry *e;

	pthread_mutex_lock(&zp->lock);
	e = entry_at(zp, ref);
	assert(e->kind != FREE);
	if (e->kind == SAME) {
		zp->nsame--;
	} else {
		queue_remove(zp, ref);
		bury(zp, e);
		zp->bytes -= e->len;
	}
	e->kind = FREE;
	e->next = zp->free;
	zp->free = ref;
	if (too_much_dead(zp))
		(void)clean(zp, UNITS_MAX + 1);
	unlock_and_release(zp);
}

void
zpool_soon(const struct zpool *zp, zref_t ref)
{
	/* The table's address stays. */
	__builtin_prefetch((const char *)zp->entries.base + ref * sizeof(struct zentry));
}

uint64_t
zpool_owner(struct zpool *zp, zref_t ref)
{
	uint64_t owner;

	pthread_mutex_lock(&zp->lock);
	assert(entry_at(zp, ref)->kind != FREE);
	owner = entry_at(zp, ref)->owner;
	pthread_mutex_unlock(&zp->lock);
	return owner;
}

size_t
zpool_oldest(struct zpool *zp, size_t want, size_t look, zpool_claim_fn *claim, void *ctx)
{
	size_t n = 0;

	pthread_mutex_lock(&zp->lock);
	look = MIN(look, zp->nqueue);
	while (n < want && look-- > 0) {
		const zref_t ref = zp->oldest;

		queue_remove(zp, ref);
		queue_add(zp, ref);
		zp->count.offered++;
		if (claim(ctx, ref, entry_at(zp, ref)->owner))
			n++;
	}
	zp->count.claimed += n;
	pthread_mutex_unlock(&zp->lock);
	return n;
}

void
zpool_set_limit(struct zpool *zp, size_t bytes)
{
	pthread_mutex_lock(&zp->lock);
	zp->limit = MIN(bytes, zp->max);
	pthread_mutex_unlock(&zp->lock);
}

size_t
zpool_set_entries(struct zpool *zp, size_t n)
{
	/* Not while the table grows. */
	pthread_mutex_lock(&zp->grow_lock);
	pthread_mutex_lock(&zp->lock);
	n = zp->max_entries = MAX(MIN(n, zp->entries.max), zp->nentries);
	pthread_mutex_unlock(&zp->lock);
	pthread_mutex_unlock(&zp->grow_lock);
	return n;
}

size_t
zpool_excess(struct zpool *zp, size_t bytes)
{
	size_t need;

	pthread_mutex_lock(&zp->lock);
	need = zp->live + zp->live / (ZPOOL_DEAD - 1);
	pthread_mutex_unlock(&zp->lock);
	return need > bytes ? need - bytes : 0;
}

/*
 * Give back pages at the end of an OPEN segment that have nothing on them.
 * => grow_lock is held, and lock, which is dropped on the way.
 * => Bytes given back.
 */
static size_t
trim(struct zpool *zp)
{
	const struct arena *a = zp->arena;

	for (unsigned k = 0; k < ZPOOL_OPEN; k++) {
		const uint32_t i = zp->open[k];
		struct zseg *s;
		size_t bytes, keep;

		if (i == SEG_NONE)
			continue;
		s = seg_at(zp, i);
		keep = (s->fill + PAGE_UNITS - 1) / PAGE_UNITS;
		bytes = (s->npages - keep) * PAGE_SIZE;
		if (bytes == 0)
			continue;
		if (keep == 0) {
			/* Extended for somebody who went elsewhere. */
			seg_close(zp, i);
			return 0;
		}
		/* Whatever becomes of the segment meanwhile: these pages are not its any more, and it gets others with grow_lock only. */
		s->npages = (uint8_t)keep;
		pthread_mutex_unlock(&zp->lock);
		a->ops->decommit(a->ctx, seg_addr(zp, i) + keep * PAGE_SIZE, bytes);
		budget_uncharge(a->budget, bytes);
		pthread_mutex_lock(&zp->lock);
		zp->pool -= bytes;
		return bytes;
	}
	return 0;
}

/* The same of a segment that nobody needs. */
static size_t
drop_spare(struct zpool *zp)
{
	const uint32_t i = zp->spare;
	size_t bytes;

	if (i == SEG_NONE)
		return 0;
	bytes = seg_at(zp, i)->npages * PAGE_SIZE;
	zp->spare = SEG_NONE;
	seg_at(zp, i)->state = GONE;
	seg_at(zp, i)->next = zp->gone;
	zp->gone = i;
	pthread_mutex_unlock(&zp->lock);
	release_gone(zp);
	pthread_mutex_lock(&zp->lock);
	return bytes;
}

size_t
zpool_shrink(struct zpool *zp, size_t want)
{
	size_t done = 0, bytes;

	pthread_mutex_lock(&zp->grow_lock);
	pthread_mutex_lock(&zp->lock);
	while (done < want) {
		bytes = trim(zp);
		bytes += drop_spare(zp);
		done += bytes;
		if (bytes == 0 && !clean(zp, UNITS_MAX + 1))
			break;
	}
	unlock_and_release(zp);
	pthread_mutex_unlock(&zp->grow_lock);
	return done;
}

size_t
zpool_bytes(struct zpool *zp)
{
	return atomic_load_explicit(&zp->pool, memory_order_relaxed);
}

void
zpool_stats(struct zpool *zp, struct zpool_stats *st)
{
	/* For what the tables have. */
	pthread_mutex_lock(&zp->grow_lock);
	pthread_mutex_lock(&zp->lock);
	*st = (struct zpool_stats){
		.entries = (size_t)zp->nqueue + zp->nsame,
		.same = zp->nsame,
		.bytes = zp->bytes,
		.pool = zp->pool,
		.pool_max = zp->pool_max,
		.dead = zp->dead,
		.limit = zp->limit,
		.metadata = zp->entries.committed + zp->segs.committed + zp->map.words.committed,
		.count = zp->count,
	};
	pthread_mutex_unlock(&zp->lock);
	pthread_mutex_unlock(&zp->grow_lock);
}

/* --- what was --- */

static const struct zentry *
past_at(const struct zpool_past *past, zref_t ref)
{
	return ref < past->n ? (const struct zentry *)past->entries + ref : NULL;
}

size_t
zpool_past_units(const struct zpool *zp)
{
	return zp->max / UNIT / 8;
}

size_t
zpool_past_used(const struct zpool_past *past, bool *zstd)
{
	size_t n = 0;

	*zstd = false;
	for (size_t i = 0; i < past->n; i++) {
		const struct zentry *e = past_at(past, (zref_t)i);

		n += e->kind != FREE;
		*zstd |= e->kind == BYTES && e->codec == UP_COMPRESS_ZSTD;
	}
	return n;
}

zref_t
zpool_past_find(const struct zpool_past *past, zref_t likely, uint64_t owner, bool search)
{
	const struct zentry *e = past_at(past, likely);

	if (e != NULL && e->owner == owner && e->kind != FREE)
		return likely;
	for (size_t i = 0; search && i < past->n; i++) {
		e = past_at(past, (zref_t)i);
		if (e->owner == owner && e->kind != FREE)
			return (zref_t)i;
	}
	return ZREF_NONE;
}

int
zpool_recall(struct zpool *zp, size_t i, unsigned npages)
{
	int r = -EINVAL;

	pthread_mutex_lock(&zp->grow_lock);
	pthread_mutex_lock(&zp->lock);
	if (i < zp->max / ZSEG_SIZE && npages <= ZSEG_PAGES) {
		r = -ENOSPC;
		if (wired_array_grow(&zp->segs, i + 1) == 0 && fitmap_reach(&zp->map, i + 1) == 0 &&
		    budget_charge(zp->arena->budget, npages * PAGE_SIZE)) {
			fitmap_take(&zp->map, i, 1);
			*seg_at(zp, (uint32_t)i) =
				(struct zseg){ .state = NEW, .npages = (uint8_t)npages };
			zp->pool += npages * PAGE_SIZE;
			zp->pool_max = MAX(zp->pool_max, zp->pool);
			r = 0;
		}
	}
	pthread_mutex_unlock(&zp->lock);
	pthread_mutex_unlock(&zp->grow_lock);
	return r;
}

/* Units [at, at + n) of the pool are this entry's.  False: some of them are another's, and nothing has changed. */
static bool
claim_units(uint64_t *units, uint64_t at, unsigned n)
{
	const uint64_t end = at + n;

	for (uint64_t i = at; i < end; i++)
		if (units[i / 64] >> i % 64 & 1)
			return false;
	for (uint64_t i = at; i < end; i++)
		units[i / 64] |= UINT64_C(1) << i % 64;
	return true;
}

/* Where the bytes of an entry are, nowhere else and nobody else's; what was being moved is there again.  False: nowhere. */
static bool
claim_bytes(struct zpool *zp, struct zpool_past *past, zref_t then)
{
	const struct zentry *was = past_at(past, then);
	const unsigned units = units_of(was->len);
	struct zseg *s;

	if (was->len == 0 || was->len > CODEC_MAX || was->seg >= zp->segs.n)
		return false;
	s = seg_at(zp, was->seg);
	if (was->off + units > s->npages * PAGE_UNITS ||
	    !claim_units(past->units, (uint64_t)was->seg * SEG_UNITS + was->off, units))
		return false;
	/* Both where it was and where it was going to are its alone. */
	if (past->slide.ref == then)
		memcpy(obj_at(zp, was->seg, was->off), past->slide.obj, (size_t)units * UNIT);
	s->live = (uint16_t)(s->live + units);
	zp->live += (size_t)units * UNIT;
	return true;
}

int
zpool_claim(struct zpool *zp, struct zpool_past *past, zref_t then, uint64_t owner, zref_t *ref)
{
	const struct zentry *was = past_at(past, then);
	struct zentry *e;
	int r = 0;

	if (was == NULL || (was->kind != SAME && was->kind != BYTES))
		return -EINVAL;
	pthread_mutex_lock(&zp->lock);
	while (zp->free == ZREF_NONE && r == 0)
		r = make_room(zp, 0);
	if (r == 0 && was->kind == BYTES && !claim_bytes(zp, past, then))
		r = -EINVAL;
	if (r < 0)
		goto unlock;
	e = take_entry(zp, owner, ref);
	if (was->kind == SAME) {
		e->kind = SAME;
		e->word = was->word;
		zp->nsame++;
		goto unlock;
	}
	e->kind = BYTES;
	e->codec = was->codec;
	e->seg = was->seg;
	e->off = was->off;
	e->len = was->len;
	obj_at(zp, e->seg, e->off)->ref = *ref;
	queue_add(zp, *ref);
	zp->bytes += e->len;
unlock:
	pthread_mutex_unlock(&zp->lock);
	return r;
}

/* What lies between the entries of a segment are holes.  => it has entries */
static void
seg_settle(struct zpool *zp, const uint64_t *units, uint32_t i)
{
	struct zseg *s = seg_at(zp, i);
	const unsigned end = s->npages * PAGE_UNITS;
	unsigned at = 0;

	units += (size_t)i * SEG_UNITS / 64;
	while (at < end) {
		const unsigned from = at;

		while (at < end && (units[at / 64] >> at % 64 & 1) == 0)
			at++;
		if (at > from)
			hole_put(zp, i, from, at - from);
		if (at < end)
			at += units_of(entry_at(zp, obj_at(zp, i, at)->ref)->len);
	}
	s->fill = (uint16_t)end;
	s->state = CLOSED;
	seg_enter(zp, i);
}

void
zpool_settle(struct zpool *zp, const struct zpool_past *past)
{
	pthread_mutex_lock(&zp->lock);
	for (uint32_t i = 0; i < zp->segs.n; i++) {
		struct zseg *s = seg_at(zp, i);

		if (s->state != NEW)
			continue;
		if (s->live > 0) {
			seg_settle(zp, past->units, i);
		} else {
			s->state = GONE;
			s->next = zp->gone;
			zp->gone = i;
		}
	}
	unlock_and_release(zp);
}

/* --- check --- */

#ifndef NDEBUG
struct sums {
	size_t pages, live, dead, entries, bytes, holes;
	unsigned open, spare;
};

/* What is written in a segment, and what the entries say of it. */
static void
seg_check(const struct zpool *zp, uint32_t i, struct sums *sum)
{
	const struct zseg *s = seg_at(zp, i);
	unsigned live = 0, at = 0;

	assert(s->state != NEW && s->state != GONE); /* those are under way */
	assert((s->state == HOLE) == fitmap_is_free(&zp->map, i));
	assert((s->state == HOLE) == (s->npages == 0));
	assert(s->npages <= ZSEG_PAGES);
	if (s->state == HOLE)
		return;
	assert(s->fill <= s->npages * PAGE_UNITS);
	while (at < s->fill) {
		const struct zobj *o = obj_at(zp, i, at);
		const struct zentry *e;

		if (o->ref == ZREF_NONE) {
			assert(o->units > 0);
			sum->holes += o->units >= HOLE_UNITS;
			at += o->units;
			continue;
		}
		e = entry_at(zp, o->ref);
		assert(e->kind == BYTES && e->seg == i && e->off == at);
		assert(e->len >= 1 && e->len <= CODEC_MAX);
		sum->entries++;
		sum->bytes += e->len;
		live += units_of(e->len);
		at += units_of(e->len);
	}
	assert(at == s->fill && live == s->live);
	assert(s->state != SPARE || (zp->spare == i && s->fill == 0));
	assert(s->state != CLOSED || live > 0);
	sum->pages += s->npages;
	sum->live += live;
	sum->open += s->state == OPEN;
	sum->spare += s->state == SPARE;
	sum->dead += s->state == OPEN || s->state == CLOSED ? seg_dead(s) : 0;
}

static void
lists_check(struct zpool *zp, size_t closed)
{
	for (unsigned k = 0; k < ZPOOL_LISTS; k++) {
		uint32_t prev = SEG_NONE;

		for (uint32_t i = zp->list[k]; i != SEG_NONE; prev = i, i = seg_at(zp, i)->next) {
			assert(seg_at(zp, i)->state == CLOSED && seg_at(zp, i)->prev == prev);
			assert(seg_list(zp, seg_at(zp, i)) == &zp->list[k]);
			assert(closed > 0);
			closed--;
		}
	}
	assert(closed == 0);
}

/* All that are long enough are to be found, and only those. */
static void
holes_check(const struct zpool *zp, size_t holes)
{
	for (unsigned k = 0; k < ZPOOL_HOLES; k++) {
		place_t prev = PLACE_NONE;

		assert((zp->hole[k] != PLACE_NONE) == (zp->holes[k / 64] >> k % 64 & 1));
		for (place_t at = zp->hole[k]; at != PLACE_NONE;
		     prev = at, at = hole_at(zp, at)->next) {
			const struct zhole *h = hole_at(zp, at);
			const struct zseg *s = seg_at(zp, (uint32_t)(at / SEG_UNITS));

			assert(s->state == OPEN || s->state == CLOSED);
			assert(at % SEG_UNITS + h->obj.units <= s->fill);
			assert(h->obj.ref == ZREF_NONE && hole_list(h->obj.units) == k);
			assert(h->prev == prev && holes > 0);
			holes--;
		}
	}
	assert(holes == 0);
}

static void
queue_check(const struct zpool *zp)
{
	zref_t prev = ZREF_NONE;
	uint32_t n = 0;

	assert(zp->nold == zp->nqueue / 4);
	for (zref_t ref = zp->oldest; ref != ZREF_NONE; prev = ref, ref = entry_at(zp, ref)->next) {
		const struct zentry *e = entry_at(zp, ref);

		assert(e->kind == BYTES && e->prev == prev && n < zp->nqueue);
		assert(e->old == (n < zp->nold));
		assert(n != zp->nold || ref == zp->young);
		n++;
	}
	assert(n == zp->nqueue && prev == zp->youngest);
	assert(zp->nold < zp->nqueue || zp->young == ZREF_NONE);
}

static void
free_check(const struct zpool *zp)
{
	size_t nfree = 0, same = 0;

	for (zref_t ref = zp->free; ref != ZREF_NONE; ref = entry_at(zp, ref)->next) {
		assert(entry_at(zp, ref)->kind == FREE && nfree < zp->nentries);
		nfree++;
	}
	for (zref_t ref = 0; ref < zp->nentries; ref++)
		same += entry_at(zp, ref)->kind == SAME;
	assert(same == zp->nsame);
	assert(nfree + same + zp->nqueue == zp->nentries);
}
#endif

void
zpool_check(struct zpool *zp)
{
#ifndef NDEBUG
	struct sums sum = { 0 };
	size_t taken = 0;
	unsigned open = 0;

	pthread_mutex_lock(&zp->grow_lock);
	pthread_mutex_lock(&zp->lock);
	assert(zp->gone == SEG_NONE && zp->growing == SEG_NONE);
	for (uint32_t i = 0; i < zp->segs.n; i++) {
		seg_check(zp, i, &sum);
		taken += seg_at(zp, i)->state != HOLE;
	}
	for (unsigned k = 0; k < ZPOOL_OPEN; k++) {
		assert(zp->open[k] == SEG_NONE || seg_at(zp, zp->open[k])->state == OPEN);
		open += zp->open[k] != SEG_NONE;
	}
	assert(sum.open == open && sum.spare == (zp->spare != SEG_NONE));
	assert(taken == fitmap_taken(&zp->map));
	assert(sum.pages * PAGE_SIZE == zp->pool && zp->pool <= zp->pool_max);
	assert(sum.live * UNIT == zp->live && sum.dead * UNIT == zp->dead);
	assert(sum.entries == zp->nqueue && sum.bytes == zp->bytes);
	fitmap_check(&zp->map);
	lists_check(zp, taken - sum.open - sum.spare);
	holes_check(zp, sum.holes);
	queue_check(zp);
	free_check(zp);
	pthread_mutex_unlock(&zp->lock);
	pthread_mutex_unlock(&zp->grow_lock);
#else
	(void)zp;
#endif
}
