/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * calls.c: calls on ranges and objects beyond those that mapping needs: prefault, wire, remap.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "pager/source.h"
#include "remote.h"
#include "runtime.h"

/* --- prefault --- */

int
check_prefault(struct up_runtime *rt, struct map *m, const char *call, uintptr_t start,
	       uintptr_t end, bool write)
{
	struct pager *p = &rt->p;
	const size_t fits = frames_mappable(p);
	uintptr_t denied = 0;
	bool covered;

	pthread_rwlock_rdlock(&p->map.lock);
	covered = map_covers(m, start, end);
	for (const struct map_entry *e = map_first_from(m, start);
	     e != NULL && e->start < end && denied == 0; e = e->next) {
		if ((e->prot & (write ? PROT_WRITE : PROT_READ | PROT_WRITE)) == 0)
			denied = MAX(e->start, start);
	}
	pthread_rwlock_unlock(&p->map.lock);
	if (!covered) {
		log_line(&p->log, UP_LOG_ERROR, "%s: part of %#lx-%#lx is not mapped", call,
			 (unsigned long)start, (unsigned long)end);
		return -ENOMEM;
	}
	if (denied != 0) {
		log_line(&p->log, UP_LOG_ERROR, "%s: the page at %#lx is not %s", call,
			 (unsigned long)denied, write ? "writable" : "accessible");
		return -EACCES;
	}
	if ((end - start) >> PAGE_SHIFT > fits) {
		log_line(
			&p->log, UP_LOG_ERROR,
			"%s: %zu pages are more than the %zu that memory_limit %zu has room for now",
			call, (size_t)((end - start) >> PAGE_SHIFT), fits, rt->memory_limit);
		return -ENOMEM;
	}
	return 0;
}

/* Why a demand ended at d->va, as a log line; returns its result. */
static int
demand_failed(struct up_runtime *rt, const char *call, const struct demand *d, int r)
{
	struct pager *p = &rt->p;
	const unsigned long va = (unsigned long)d->va;

	switch (r) {
	case 0:
	case -ECANCELED: /* tried again */
		break;
	case -ENOMEM:
		log_line(&p->log, UP_LOG_ERROR, "%s: the page at %#lx is not mapped any more", call,
			 va);
		break;
	case -EACCES:
		log_line(&p->log, UP_LOG_ERROR, "%s: the page at %#lx is not %s any more", call, va,
			 d->write ? "writable" : "accessible");
		break;
	case -EIO:
		log_line(&p->log, UP_LOG_ERROR, "%s: the page at %#lx is lost", call, va);
		break;
	case -ENOSPC:
		log_line(&p->log, UP_LOG_ERROR,
			 "%s: the page at %#lx is overcommitted, and swap or limit are exhausted",
			 call, va);
		break;
	default:
		log_line(&p->log, UP_LOG_ERROR,
			 "%s: no room for the page at %#lx could be made in %u ms", call, va,
			 (unsigned)(p->fault_timeout / 1000000));
		break;
	}
	return r;
}

/*
 * What is in a pool is a fault of the kernel's own away from the page table of one that maps it: spare the caller that as
 * well.  No lock is held meanwhile, since a page may have gone again, and a thread that waits for it needs them.
 */
static void
populate(struct pager *p, uintptr_t start, uintptr_t end, bool write)
{
	while (start < end && p->pmap->ops->pool_populate != NULL) {
		const struct map_entry *e;
		uintptr_t to = end;
		unsigned shard = 0;
		bool pooled = false;

		pthread_rwlock_rdlock(&p->map.lock);
		e = map_first_from(&p->map, start);
		if (e != NULL && e->start < end) {
			start = MAX(start, e->start);
			to = MIN(end, e->end);
			pooled = e->object->pool != 0;
			shard = e->shard;
			write &= (e->prot & PROT_WRITE) != 0;
		}
		pthread_rwlock_unlock(&p->map.lock);
		if (pooled)
			p->pmap->ops->pool_populate(p->pmap, shard, start, to - start, write);
		start = to;
	}
}

int
up_prefault(struct up_runtime *rt, void *addr, size_t length, int write)
{
	const uintptr_t start = (uintptr_t)addr, end = start + length;
	struct demand d = { .va = start, .end = end, .write = write != 0 };
	sigset_t old;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_prefault(rt, addr, length, write);
	r = check_call(rt, "up_prefault", start, length);
	if (r < 0)
		return r;
	signals_hold(&old);
	r = check_prefault(rt, &rt->p.map, "up_prefault", start, end, d.write);
	if (r == 0)
		r = demand_failed(rt, "up_prefault", &d, demand_range(&rt->p, &d));
	if (r == 0)
		populate(&rt->p, start, end, d.write);
	signals_release(&old);
	return r;
}

/* --- wire --- */

bool
wired_take(struct pager *p, uint64_t n)
{
	if (!resv_try(&p->resv_meta, n << PAGE_SHIFT))
		return false;
	atomic_fetch_add(&p->nwired, n);
	return true;
}

void
wired_give(struct pager *p, uint64_t n)
{
	assert(atomic_load(&p->nwired) >= n);
	atomic_fetch_sub(&p->nwired, n);
	resv_give(&p->resv_meta, n << PAGE_SHIFT);
}

int
check_wire(struct up_runtime *rt, struct map *m, uintptr_t start, uintptr_t end, uint64_t *more)
{
	struct pager *p = &rt->p;
	const uint64_t now = atomic_load(&p->nwired), most = rt->wire_limit >> PAGE_SHIFT;
	int r;

	*more = 0;
	r = check_covered(rt, m, "up_wire", start, end);
	if (r < 0)
		return r;
	for (const struct map_entry *e = map_first_from(m, start); e != NULL && e->start < end;
	     e = e->next) {
		const uintptr_t from = MAX(start, e->start), to = MIN(end, e->end);

		if (e->prot == PROT_NONE) {
			log_line(&p->log, UP_LOG_ERROR,
				 "up_wire: the page at %#lx is not accessible",
				 (unsigned long)from);
			return -EACCES;
		}
		if (e->wired == UINT_MAX) {
			log_line(&p->log, UP_LOG_ERROR,
				 "up_wire: the page at %#lx can not be wired once more",
				 (unsigned long)from);
			return -ENOMEM;
		}
		if (e->wired == 0)
			*more += (to - from) >> PAGE_SHIFT;
	}
	if (now + *more > most) {
		log_line(&p->log, UP_LOG_ERROR,
			 "up_wire: %llu pages and %llu that are wired are more than wire_limit %zu",
			 (unsigned long long)*more, (unsigned long long)now, rt->wire_limit);
		return -ENOMEM;
	}
	return 0;
}

/* Of [from, to) of an entry that does not wire them: pages that no other wires are on ACTIVE again. */
static void
unwire_part(struct pager *p, const struct map_entry *e, uintptr_t from, uintptr_t to)
{
	uint64_t at = e->offset + ((from - e->start) >> PAGE_SHIFT), n = 0;
	const uint64_t end = at + ((to - from) >> PAGE_SHIFT);

	if (e->object->pool == 0) {
		range_unwire(p, e->object, at, end - at, from, e->shard);
		return;
	}
	for (; object_unreached(p, e->object, &at, end, true, &n); at += n) {
		const struct place place =
			entry_place(e, e->start + ((at - e->offset) << PAGE_SHIFT));

		range_unwire(p, e->object, at, n, place.va, place.shard);
	}
}

void
wired_leave(struct pager *p, const struct map_entry *e)
{
	unwire_part(p, e, e->start, e->end);
}

/* Pages of [start, end) whose entries are not wired are on ACTIVE again.  => map.change is held. */
static void
unwire_pages(struct pager *p, struct map *m, uintptr_t start, uintptr_t end)
{
	for (struct map_entry *e = map_first_from(m, start); e != NULL && e->start < end;
	     e = e->next) {
		if (e->wired == 0)
			unwire_part(p, e, MAX(start, e->start), MIN(end, e->end));
	}
}

/* Counts that change, one entry after the other. */
struct wiring {
	struct map *map;
	struct wire_note *note; /* NULL: a successor does not have to know */
	uint64_t less;		/* pages that are not wired any more */
};

/* An entry is about to be wired so often.  In one store, and before the entry is: adopt.h. */
static void
note_down(struct wire_note *note, const struct map_entry *e, unsigned to)
{
	const unsigned next = note->which ^ 1;

	note->slot[next].at = e->start;
	note->slot[next].to = to;
	stores_in_order();
	note->which = next;
	stores_in_order();
	note->doing = note->token;
	stores_in_order();
}

static void
set_count(struct wiring *w, struct map_entry *e, unsigned to)
{
	if (w->note != NULL)
		note_down(w->note, e, to);
	map_wire(w->map, e, to);
	stores_in_order();
}

static void
set_wired(struct map_entry *e, void *wiring)
{
	set_count(wiring, e, e->wired + 1);
}

static void
set_unwired(struct map_entry *e, void *wiring)
{
	struct wiring *w = wiring;

	if (e->wired == 1)
		w->less += (e->end - e->start) >> PAGE_SHIFT;
	set_count(w, e, e->wired - 1);
}

static void
note_begin(struct wire_note *note, uint64_t token, uintptr_t start, uintptr_t end, bool more)
{
	if (note == NULL)
		return;
	note->start = start;
	note->end = end;
	note->more = more;
	note->token = token;
	stores_in_order();
}

static void
note_end(struct wire_note *note)
{
	if (note == NULL)
		return;
	stores_in_order();
	note->done = note->token;
	stores_in_order();
	note->doing = 0;
}

unsigned
wire_noted(const struct wire_note *note, const struct map_entry *e)
{
	const uintptr_t at = note->slot[note->which & 1].at;

	if (note->doing == 0 || note->doing == note->done || e->start < note->start ||
	    e->start >= note->end || e->start < at)
		return e->wired;
	if (e->start == at)
		return note->slot[note->which & 1].to;
	if (note->more)
		return MIN(e->wired, UINT_MAX - 1) + 1;
	return MAX(e->wired, 1u) - 1;
}

bool
rewire_entry(struct pager *p, struct map *m, struct map_entry *e)
{
	const uint64_t n = (e->end - e->start) >> PAGE_SHIFT;

	if (demand_hold(p, m, e->start, e->end) == 0)
		return true;
	pthread_rwlock_wrlock(&p->map.lock);
	map_wire(m, e, 0);
	pthread_rwlock_unlock(&p->map.lock);
	unwire_part(p, e, e->start, e->end);
	wired_give(p, n);
	return false;
}

/* => map.change is held, so nobody unmaps, protects or discards while the pages come. */
static int
bring(struct up_runtime *rt, struct map *m, uintptr_t start, uintptr_t end)
{
	struct demand d = { .va = start, .end = end, .wire = true };

	/* Nobody waits for pages of another process here. */
	return m == &rt->p.map ? demand_failed(rt, "up_wire", &d, demand_range(&rt->p, &d))
			       : demand_hold(&rt->p, m, start, end);
}

int
wire_entries(struct up_runtime *rt, struct map *m, uintptr_t start, uintptr_t end,
	     struct wire_note *note, uint64_t token)
{
	struct wiring w = { .map = m, .note = note };
	struct map_entry *spare[2];
	struct pager *p = &rt->p;
	uint64_t more;
	int r;

	r = check_wire(rt, m, start, end, &more);
	if (r < 0)
		return r;
	r = spare_alloc(p, m, start, end, spare);
	if (r < 0)
		return r;
	if (!wired_take(p, more)) {
		log_line(
			&p->log, UP_LOG_ERROR,
			"up_wire: %llu pages do not fit memory_limit %zu beside the metadata that is "
			"promised to regions",
			(unsigned long long)more, rt->memory_limit);
		r = -ENOMEM;
		goto free_spare;
	}
	r = bring(rt, m, start, end);
	if (r < 0) {
		unwire_pages(p, m, start, end);
		wired_give(p, more);
		goto free_spare;
	}
	note_begin(note, token, start, end, true);
	entries_set(p, m, start, end, spare, set_wired, &w);
	note_end(note);
	return 0;
free_spare:
	spare_free(p, spare);
	return r;
}

int
up_wire(struct up_runtime *rt, void *addr, size_t length)
{
	const uintptr_t start = (uintptr_t)addr, end = start + length;
	struct demand d = { .va = start, .end = end };
	struct pager *p;
	uint64_t more;
	sigset_t old;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_wire(rt, addr, length);
	r = check_call(rt, "up_wire", start, length);
	if (r < 0)
		return r;
	p = &rt->p;

	change_begin(p, &old);
	r = check_wire(rt, &p->map, start, end, &more);
	change_end(p, &old);
	if (r < 0)
		return r;
	/* Most of the waiting, while others may change mappings. */
	if (more > 0) {
		signals_hold(&old);
		r = demand_failed(rt, "up_wire", &d, demand_range(p, &d));
		signals_release(&old);
		if (r < 0)
			return r;
	}
	do {
		/* Whatever stood in the way is done with by change_begin(). */
		change_begin(p, &old);
		r = wire_entries(rt, &p->map, start, end, NULL, 0);
		change_end(p, &old);
	} while (r == -ECANCELED);
	if (r == 0)
		populate(p, start, end, true);
	return r;
}

int
unwire_entries(struct up_runtime *rt, struct map *m, uintptr_t start, uintptr_t end,
	       struct wire_note *note, uint64_t token)
{
	struct wiring w = { .map = m, .note = note };
	struct map_entry *spare[2], *e;
	struct pager *p = &rt->p;
	int r;

	r = check_covered(rt, m, "up_unwire", start, end);
	for (e = map_first_from(m, start); r == 0 && e != NULL && e->start < end; e = e->next) {
		if (e->wired == 0)
			r = bad(rt, "up_unwire: the page at %#lx is not wired",
				(unsigned long)MAX(start, e->start));
	}
	if (r == 0)
		r = spare_alloc(p, m, start, end, spare);
	if (r < 0)
		return r;
	note_begin(note, token, start, end, false);
	entries_set(p, m, start, end, spare, set_unwired, &w);
	note_end(note);
	unwire_pages(p, m, start, end);
	wired_give(p, w.less);
	return 0;
}

int
up_unwire(struct up_runtime *rt, void *addr, size_t length)
{
	const uintptr_t start = (uintptr_t)addr;
	sigset_t old;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_unwire(rt, addr, length);
	r = check_call(rt, "up_unwire", start, length);
	if (r < 0)
		return r;
	change_begin(&rt->p, &old);
	r = unwire_entries(rt, &rt->p.map, start, start + length, NULL, 0);
	change_end(&rt->p, &old);
	return r;
}

/* --- objects, for people --- */

/* => the caller has a reference, or map.change. */
void
object_info(struct pager *p, struct object *o, struct up_object_stats *info)
{
	uint64_t n[ANON_KINDS] = { 0 };
	struct leaf *leaf;
	unsigned depth;

	for (uint64_t at = 0; (leaf = object_next_leaf(o, at)) != NULL;) {
		for (unsigned i = 0; i < LEAF_SLOTS; i++) {
			const struct anon *an = leaf_anon(leaf, i);

			if (an != NULL)
				n[atomic_load_explicit(&an->kind, memory_order_relaxed)]++;
		}
		at = leaf->base + LEAF_SLOTS;
		pthread_mutex_unlock(&leaf->lock);
	}
	pthread_rwlock_rdlock(&p->map.lock);
	depth = object_depth(o);
	pthread_rwlock_unlock(&p->map.lock);
	*info = (struct up_object_stats){
		.id = o->id,
		.size = o->npages << PAGE_SHIFT,
		.resident = (n[ANON_CORE] + n[ANON_COPY]) << PAGE_SHIFT,
		.swapped = (n[ANON_SWAP] + n[ANON_ZIP]) << PAGE_SHIFT,
		.lost = n[ANON_LOST] << PAGE_SHIFT,
		.pager = o->source != NULL ? o->source->ops->name : "anonymous",
		.refs = atomic_load(&o->refs),
		.depth = depth,
		.prot = PROT_READ | (o->readonly ? 0 : PROT_WRITE),
	};
}

int
up_object_info(struct up_object *obj, struct up_object_stats *info, size_t size)
{
	struct object *o = (struct object *)obj;
	struct up_object_stats full;
	struct up_runtime *rt;
	sigset_t old;
	int r;

	if (o == NULL)
		return -EINVAL;
	if (object_is_remote(obj)) {
		r = info == NULL ? -EINVAL : remote_info(obj, &full);
		if (r < 0)
			return r;
		memset(info, 0, size);
		memcpy(info, &full, MIN(size, sizeof full));
		return 0;
	}
	if (o->owner == NULL)
		return -ECHILD; /* in a forked child, where this memory is wiped */
	rt = container_of((struct pager *)o->owner, struct up_runtime, p);
	r = check_process(rt, "up_object_info");
	if (r < 0)
		return r;
	if (info == NULL)
		return bad(rt, "up_object_info: info is NULL");
	signals_hold(&old);
	object_info(&rt->p, o, &full);
	signals_release(&old);
	/* As in up_stats_get(). */
	memset(info, 0, size);
	memcpy(info, &full, MIN(size, sizeof full));
	return 0;
}

/* --- remap --- */

/* The pages by which a range grows. */
struct growth {
	uint64_t n;		 /* how many */
	uint64_t first;		 /* the first one's index in the object of the last entry */
	struct map_entry *entry; /* for them; NULL: the last entry gets longer */
};

/*
 * Where they come from.  => map.change is held; `last` holds the page in front of `end`.
 * => 0, and g->entry goes back with entry_free() unless it is used; or -errno and a log line.
 */
static int
growth_plan(struct up_runtime *rt, const struct map_entry *last, uintptr_t end, uint64_t n,
	    struct growth *g)
{
	struct pager *p = &rt->p;
	const struct object *o = last->object;
	const uint64_t next = last->offset + ((end - last->start) >> PAGE_SHIFT);

	*g = (struct growth){ .n = n, .first = next };
	/*
	 * A private range grows by its object.  In a chain, that is a window on what is beneath, or what is beneath others
	 * and as long as they are: new pages would be those of somebody else, or there would be none to shadow.
	 */
	if ((last->flags & UP_PRIVATE) && (o->backing != NULL || o->nshadows > 0)) {
		log_line(
			&p->log, UP_LOG_ERROR,
			"up_remap: the page at %#lx is of a clone or a private mapping of an object, which can not grow",
			(unsigned long)(end - PAGE_SIZE));
		return -ENOTSUP;
	}
	if ((last->flags & UP_SHARED) && (next > o->npages || n > o->npages - next))
		return bad(rt, "up_remap: the object ends after %llu more pages, not %llu",
			   (unsigned long long)(o->npages - next), (unsigned long long)n);
	if (o->pool != 0 || !object_is_mapped(p, o, next, n))
		return 0;
	if (last->flags & UP_SHARED) {
		log_line(&p->log, UP_LOG_ERROR,
			 "up_remap: the next pages of the object are mapped already");
		return -EBUSY;
	}
	g->first = o->npages;
	g->entry = entry_alloc(p);
	if (g->entry == NULL) {
		log_line(&p->log, UP_LOG_ERROR,
			 "up_remap: no room for a map entry within the memory limit");
		return -ENOMEM;
	}
	return 0;
}

/* Their promises: the last thing that can fail. */
static int
growth_promise(struct up_runtime *rt, const struct map_entry *last, const struct growth *g)
{
	if (last->flags & UP_SHARED)
		return 0; /* the object has them */
	return object_extend(rt, "up_remap", last->object, g->first + g->n, g->n);
}

/* Put them into the map behind `last`.  => map.lock is write-locked */
static void
growth_link(struct pager *p, struct map_entry *last, struct growth *g)
{
	struct map_entry *e = g->entry;
	int r;

	if (e == NULL) {
		map_extend(&p->map, last, last->end + (g->n << PAGE_SHIFT));
		return;
	}
	e->start = last->end;
	e->end = last->end + (g->n << PAGE_SHIFT);
	e->object = last->object;
	object_ref(e->object);
	e->offset = g->first;
	e->prot = last->prot;
	e->advice = last->advice;
	e->inherit = last->inherit;
	e->flags = last->flags;
	e->shard = last->shard;
	e->serial = last->serial;
	r = map_insert(&p->map, e);
	assert(r == 0); /* the kernel gave us free addresses */
	(void)r;
	g->entry = NULL;
}

/* Addresses for pages of an object from `first` on, in its pool if it has one. */
static int
region_for(struct pager *p, const struct object *o, uint64_t first, uintptr_t hint, bool fixed,
	   size_t len, int prot, unsigned shard, uintptr_t *at)
{
	if (o->pool != 0)
		return p->pmap->ops->pool_map(p->pmap, o->pool + (first << PAGE_SHIFT), hint, fixed,
					      len, prot, shard, at);
	return map_addresses(p, hint, fixed, len, prot, shard, at);
}

/* 0; -EEXIST: there is no room behind the range; or another errno and a log line.  => map.change is held. */
static int
grow_in_place(struct up_runtime *rt, struct map_entry *last, uintptr_t end, struct growth *g)
{
	struct pager *p = &rt->p;
	const size_t len = g->n << PAGE_SHIFT;
	uintptr_t at;
	int r;

	if (last->end != end || end + len < end)
		return -EEXIST;
	r = region_for(p, last->object, g->first, end, true, len, last->prot, last->shard, &at);
	if (r < 0)
		return r == -EAGAIN ? r : -EEXIST;
	r = growth_promise(rt, last, g);
	if (r < 0) {
		p->pmap->ops->unmap(p->pmap, end, len, last->shard);
		return r;
	}
	pthread_rwlock_wrlock(&p->map.lock);
	growth_link(p, last, g);
	pthread_rwlock_unlock(&p->map.lock);
	return 0;
}

/*
 * Addresses of [at, at + len), which are reserved, for pages of an object from `first` on.  *hole: on failure they are not ours
 * any more.
 */
static int
move_part(struct pager *p, const struct map_entry *e, uint64_t first, uintptr_t at, size_t len,
	  const struct map_entry *last, size_t *hole)
{
	int r;

	if (e->object->pool == 0)
		return e->prot == last->prot ? 0 : p->pmap->ops->protect(p->pmap, at, len, e->prot);
	r = p->pmap->ops->unmap(p->pmap, at, len, last->shard);
	if (r < 0)
		return r;
	/* Should somebody else's mmap() be as fast as this, it is no room, and what is there is his. */
	r = region_for(p, e->object, first, at, true, len, e->prot, last->shard, &at);
	if (r < 0)
		*hole = len;
	return r;
}

/* New addresses for the range and its growth, each part as its entry has it.  => map.change is held. */
static int
move_reserve(struct up_runtime *rt, uintptr_t start, uintptr_t end, const struct map_entry *last,
	     const struct growth *g, uintptr_t *to)
{
	struct pager *p = &rt->p;
	const size_t grown = g->n << PAGE_SHIFT, len = end - start + grown;
	size_t part = 0, hole = 0;
	uintptr_t at;
	int r;

	r = map_addresses(p, 0, false, len, last->prot, last->shard, to);
	if (r == -EAGAIN)
		return r;
	if (r < 0) {
		log_line(&p->log, UP_LOG_ERROR, "up_remap: mapping %zu bytes: %s", len,
			 strerrorname_np(-r));
		return r;
	}
	at = *to;
	for (const struct map_entry *e = map_first_from(&p->map, start);
	     r == 0 && e != NULL && e->start < end; e = e->next) {
		const uintptr_t from = MAX(start, e->start);

		at += part;
		part = MIN(end, e->end) - from;
		r = move_part(p, e, e->offset + ((from - e->start) >> PAGE_SHIFT), at, part, last,
			      &hole);
	}
	if (r == 0) {
		at += part;
		r = move_part(p, last, g->first, at, grown, last, &hole);
	}
	if (r < 0) {
		log_line(&p->log, UP_LOG_ERROR, "up_remap: taking the new addresses: %s",
			 strerrorname_np(-r));
		/* What is in front of the hole, and behind it. */
		if (hole == 0)
			at = *to + len;
		if (at > *to)
			p->pmap->ops->unmap(p->pmap, *to, at - *to, last->shard);
		if (at + hole < *to + len)
			p->pmap->ops->unmap(p->pmap, at + hole, *to + len - at - hole, last->shard);
		return r == -EEXIST ? -ENOMEM : r;
	}
	return 0;
}

/* The entries of the range, clipped, out of the map: no fault finds them any more. */
static struct map_entry *
move_take(struct pager *p, uintptr_t start, uintptr_t end, struct map_entry *spare[2])
{
	struct map_entry *taken = NULL, **tail = &taken, *e;

	pthread_rwlock_wrlock(&p->map.lock);
	map_clip(&p->map, start, end, spare);
	while ((e = map_first_from(&p->map, start)) != NULL && e->start < end) {
		map_remove(&p->map, e);
		*tail = e;
		tail = &e->next;
	}
	pthread_rwlock_unlock(&p->map.lock);
	return taken;
}

/* An entry that is in no map goes to `to`, on another shard perhaps. */
static void
move_entry(struct pager *p, struct map_entry *e, uintptr_t to, unsigned shard, uint64_t serial)
{
	const size_t len = e->end - e->start;

	/* As in entry_destroy().  Pages of a pool do not mind where they are mapped. */
	if (e->prot == PROT_NONE && e->object->pool == 0)
		p->pmap->ops->protect(p->pmap, e->start, len, PROT_READ);
	if (e->object->pool == 0)
		range_keep(p, e->object, e->offset, len >> PAGE_SHIFT, false, to, shard);
	entry_unmap(p, e);
	e->start = to;
	e->end = to + len;
	e->shard = shard;
	e->serial = serial;
	atomic_store(&e->unrecorded, false); /* that mark went with the old addresses */
}

/* Elsewhere, with what it grows by.  => map.change is held. */
static int
move(struct up_runtime *rt, uintptr_t start, uintptr_t end, const struct map_entry *last,
     struct growth *g, uintptr_t *to)
{
	struct map_entry *spare[2], *taken, *e, *next, *tail = NULL;
	const unsigned shard = last->shard;
	struct pager *p = &rt->p;
	uint64_t serial;
	int r;

	r = spare_alloc(p, &p->map, start, end, spare);
	if (r < 0)
		return r;
	r = split_vmas(p, &p->map, "up_remap", start, end);
	if (r == 0)
		r = move_reserve(rt, start, end, last, g, to);
	if (r < 0)
		goto free_spare;
	r = growth_promise(rt, last, g);
	if (r < 0) {
		p->pmap->ops->unmap(p->pmap, *to, end - start + (g->n << PAGE_SHIFT), shard);
		goto free_spare;
	}

	serial = ++p->next_serial;
	taken = move_take(p, start, end, spare);
	for (e = taken; e != NULL; e = e->next)
		move_entry(p, e, *to + (e->start - start), shard, serial);
	pthread_rwlock_wrlock(&p->map.lock);
	for (e = taken; e != NULL; e = next) {
		next = e->next;
		e->next = NULL;
		r = map_insert(&p->map, e);
		assert(r == 0); /* the kernel gave us free addresses */
		tail = e;
	}
	assert(tail != NULL);
	growth_link(p, tail, g);
	pthread_rwlock_unlock(&p->map.lock);
free_spare:
	spare_free(p, spare);
	return r;
}

/* => map.change is held, and the range is mapped. */
static int
grow(struct up_runtime *rt, uintptr_t start, uintptr_t end, uint64_t n, unsigned flags,
     uintptr_t *to)
{
	struct pager *p = &rt->p;
	struct map_entry *last = map_lookup(&p->map, end - PAGE_SIZE);
	struct growth g;
	int r;

	for (const struct map_entry *e = map_first_from(&p->map, start);
	     e != NULL && e->start < end; e = e->next) {
		if (e->wired == 0)
			continue;
		log_line(&p->log, UP_LOG_ERROR, "up_remap: the page at %#lx is wired",
			 (unsigned long)MAX(start, e->start));
		return -EBUSY;
	}
	r = growth_plan(rt, last, end, n, &g);
	if (r < 0)
		return r;
	*to = start;
	r = grow_in_place(rt, last, end, &g);
	if (r == -EEXIST && (flags & UP_MAYMOVE)) {
		r = move(rt, start, end, last, &g, to);
	} else if (r == -EEXIST) {
		log_line(&p->log, UP_LOG_ERROR,
			 "up_remap: no room behind %#lx for %llu pages, and UP_MAYMOVE is not set",
			 (unsigned long)end, (unsigned long long)n);
		r = -ENOMEM;
	}
	if (g.entry != NULL)
		entry_free(p, g.entry);
	return r;
}

/* => map.change is held.  -EAGAIN: the program is doing something to mappings itself; let it finish. */
static int
remap_locked(struct up_runtime *rt, uintptr_t start, uintptr_t end, size_t old_length,
	     size_t new_length, unsigned flags, uintptr_t *to)
{
	int r = check_covered(rt, &rt->p.map, "up_remap", start, end);

	if (r == 0 && new_length < old_length)
		r = unmap_range(&rt->p, &rt->p.map, "up_remap", start + new_length, end);
	else if (r == 0 && new_length > old_length)
		r = grow(rt, start, end, (new_length - old_length) >> PAGE_SHIFT, flags, to);
	return r;
}

int
up_remap(struct up_runtime *rt, void *addr, size_t old_length, size_t new_length, unsigned flags,
	 void **new_addr)
{
	const uintptr_t start = (uintptr_t)addr, end = start + old_length;
	uintptr_t to = start;
	struct pager *p;
	sigset_t old;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_lacks(rt, "up_remap");
	if (new_addr != NULL)
		*new_addr = NULL;
	if (rt == NULL)
		return -EINVAL;
	p = &rt->p;
	r = check_process(rt, "up_remap");
	if (r == 0)
		r = check_range(rt, "up_remap", start, old_length);
	if (r == 0)
		r = check_range(rt, "up_remap", 0, new_length);
	if (r < 0)
		return r;
	if (new_addr == NULL)
		return bad(rt, "up_remap: new_addr is NULL");
	if (flags & ~UP_MAYMOVE)
		return bad(rt, "up_remap: unknown flags %#x", flags & ~UP_MAYMOVE);

	for (unsigned tries = 0;; tries++) {
		move_begin(p, &old);
		r = remap_locked(rt, start, end, old_length, new_length, flags, &to);
		move_end(p, &old);
		if (!change_again(p, r, tries))
			break;
	}
	if (r == 0)
		*new_addr = (void *)to;
	return r;
}
