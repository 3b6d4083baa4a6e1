/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * cow.c: clones, snapshots and private mappings of objects.
 *
 * All three are one operation.  What an object has becomes a backing object, and the object itself and a new one
 * are shadows of it from then on:
 *
 *	before   entry --> O                     after   entry --> O (empty) --+
 *	                                                                       +--> B (all that O had)
 *	                                           new entry --> C (empty) ----+
 *
 * No byte is copied.  The pages that are in regions are taken out first, with all faults stopped: a thread that
 * touches one meanwhile waits, so nothing that is stored after what it misses can be in the copy, and the copy is what
 * memory was at one instant.
 */
#include <errno.h>
#include <string.h>

#include "cow.h"
#include "remote.h"

/* Pauses of 1, 2, 4 ... ms: half a second in all. */
#define FREEZE_TRIES 9

void
part_abandon(struct pager *p, struct part *part)
{
	if (part->from != NULL)
		part->from->parting = false;
	if (part->entry != NULL)
		entry_free(p, part->entry);
	if (part->under != NULL)
		object_unref(part->under);
	if (part->copy != NULL)
		object_unref(part->copy);
}

int
part_prepare(struct up_runtime *rt, const char *call, struct part *part)
{
	struct object *from = part->from;
	const struct map_entry *e;
	int r;

	if (from->source != NULL) {
		log_line(
			&rt->p.log, UP_LOG_ERROR,
			"%s: shared mappings of a named object can not be copied: others may write to it",
			call);
		return -ENOTSUP;
	}
	/* To part, its pages leave the page table, and what up_wire() promised is that they do not. */
	e = wired_entry(&rt->p, from, 0, from->npages);
	if (e != NULL) {
		log_line(&rt->p.log, UP_LOG_ERROR, "%s: pages of the object are wired, at %#lx",
			 call, (unsigned long)e->start);
		return -EBUSY;
	}
	/* Of each page there are at most as many copies as objects that can tell them apart: chain.c. */
	r = object_create(rt, call, part->n, part->n, from->noreserve, &part->copy);
	/* Pieces of one object part from it together. */
	if (r < 0 || from->parting)
		return r;
	r = object_create(rt, call, from->npages, 0, from->noreserve, &part->under);
	/* It gets the pages, and whoever has been promised them has them still. */
	if (r == 0 && from->account != NULL)
		object_pays(part->under, account_ref(from->account));
	from->parting = r == 0;
	return r;
}

/* Take every page of the object out of its regions.  => frozen */
static int
bring_out(struct pager *p, struct object *o)
{
	/* Should it come to nothing, there are staged pages without an address. */
	pthread_rwlock_wrlock(&p->map.lock);
	o->loose = true;
	pthread_rwlock_unlock(&p->map.lock);
	/* The marks of lost pages; those of a pool in all its places, children's too. */
	if (o->pool != 0)
		range_unmark(p, o, 0, o->npages, o->pool, PMAP_POOL);
	for (struct map_entry *e = map_first_from(&p->map, 0); o->pool == 0 && e != NULL;
	     e = e->next) {
		if (e->object == o)
			range_unmark(p, o, e->offset, (e->end - e->start) >> PAGE_SHIFT, e->start,
				     e->shard);
	}
	return range_keep(p, o, 0, o->npages, true, 0, 0);
}

/*
 * A page that is pinned for I/O has to stay until that has ended: its bytes go into the memory that was pinned, and the region
 * must have them.  The I/O itself may wait for a fault, so faults go on between attempts.
 */
int
parts_freeze(struct pager *p, const char *call, const struct part part[], size_t n)
{
	for (unsigned tries = 0;; tries++) {
		int r = 0;

		chain_freeze(p);
		for (size_t i = 0; i < n && r == 0; i++) {
			if (part[i].under != NULL)
				r = bring_out(p, part[i].from);
		}
		if (r == 0)
			return 0;
		chain_thaw(p);
		/* What the program does to regions itself comes first, and that takes map.change. */
		if (p->foreign != NULL && foreign_waiting(p->foreign))
			return -EAGAIN;
		if (tries == FREEZE_TRIES) {
			log_line(&p->log, UP_LOG_ERROR, "%s: a page can not be parted now: %s",
				 call,
				 r == -EBUSY ? "pinned for I/O, or locked" : strerrorname_np(-r));
			return r == -EBUSY ? r : -ENOMEM;
		}
		for (unsigned i = 0; i < 1u << tries; i++)
			range_doze(p);
	}
}

/* => frozen, map.lock held for writing */
static void
part_take(struct part *part)
{
	struct object *o = part->from;

	/* An object that has nothing of its own has nothing to hand down. */
	if (o->root != NULL && object_count(o) > 0) {
		assert(part->under != NULL);
		chain_part(o, part->under);
		part->under = NULL;
	}
	part->copy->loose = true;
	part->copy->named = o->named;
	if (o->backing != NULL) {
		object_ref(o->backing);
		object_shadow(part->copy, o->backing, o->backing_offset + part->first);
	}
}

void
parts_take(struct part part[], size_t n, struct map *map)
{
	for (size_t i = 0; i < n; i++) {
		if (part[i].from != NULL) {
			part[i].from->parting = false;
			part_take(&part[i]);
		}
		if (part[i].entry != NULL) {
			const int r = map_insert(map, part[i].entry);

			assert(r == 0); /* the addresses are free */
			(void)r;
		}
	}
}

void
parts_done(struct part part[], size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (part[i].under != NULL)
			object_unref(part[i].under);
	}
}

/* 0, or why everything is as before: the parts are still to be abandoned. */
static int
part_all(struct pager *p, const char *call, struct part part[], size_t n)
{
	const int r = parts_freeze(p, call, part, n);

	if (r < 0)
		return r;
	pthread_rwlock_wrlock(&p->map.lock);
	parts_take(part, n, &p->map);
	pthread_rwlock_unlock(&p->map.lock);
	chain_thaw(p);
	parts_done(part, n);
	return 0;
}

int
cow_shadow(struct up_runtime *rt, const char *call, struct object *from, uint64_t first, uint64_t n,
	   struct object **copy)
{
	struct part part = { .from = from, .first = first, .n = n };
	int r = part_prepare(rt, call, &part);

	if (r == 0)
		r = part_all(&rt->p, call, &part, 1);
	if (r < 0)
		part_abandon(&rt->p, &part);
	else
		*copy = part.copy;
	return r;
}

/* --- up_clone --- */

/* What malloc() gives could itself be paged, even be what is cloned. */
struct part *
parts_alloc(struct pager *p, struct wired_array *mem, size_t n)
{
	if (wired_array_init(mem, &p->arena, sizeof(struct part), n) < 0)
		return NULL;
	if (wired_array_grow_wait(mem, n) == 0)
		return mem->base;
	wired_array_fini(mem);
	return NULL;
}

/* One part for each entry of the range, which is covered.  Returns how many; 0: no memory. */
static size_t
parts_of(struct pager *p, uintptr_t start, uintptr_t end, struct wired_array *mem,
	 struct part **parts)
{
	struct map_entry *e;
	size_t n = 0, i = 0;

	for (e = map_first_from(&p->map, start); e != NULL && e->start < end; e = e->next)
		n++;
	*parts = parts_alloc(p, mem, n);
	if (*parts == NULL)
		return 0;
	for (e = map_first_from(&p->map, start); i < n; e = e->next, i++) {
		const uintptr_t from = MAX(start, e->start);

		(*parts)[i] = (struct part){
			.from = e->object,
			.first = e->offset + ((from - e->start) >> PAGE_SHIFT),
			.n = (MIN(end, e->end) - from) >> PAGE_SHIFT,
		};
	}
	return n;
}

/* Addresses and entries for the copies.  => everything else is prepared. */
static int
place(struct pager *p, uintptr_t start, size_t length, struct part part[], size_t n, uintptr_t *va)
{
	const struct map_entry *e = map_lookup(&p->map, start);
	const unsigned shard = p->next_shard++ % p->nservices;
	uintptr_t at;
	int r;

	for (size_t i = 0; i < n; i++) {
		part[i].entry = entry_alloc(p);
		if (part[i].entry == NULL) {
			log_line(&p->log, UP_LOG_ERROR,
				 "up_clone: no room for a map entry within the memory limit");
			return -ENOMEM;
		}
	}
	r = map_addresses(p, 0, false, length, e->prot, shard, va);
	if (r == -EAGAIN)
		return r;
	if (r < 0) {
		log_line(&p->log, UP_LOG_ERROR, "up_clone: mapping %zu bytes: %s", length,
			 strerrorname_np(-r));
		return r;
	}
	at = *va;
	for (size_t i = 0; i < n; i++, e = e->next) {
		struct map_entry *copy = part[i].entry;
		const size_t len = part[i].n << PAGE_SHIFT;

		copy->start = at;
		copy->end = at += len;
		copy->object = part[i].copy;
		copy->offset = 0;
		copy->prot = e->prot;
		copy->flags = UP_PRIVATE | (e->flags & UP_NORESERVE);
		copy->advice = e->advice;
		/* Memory of its own: there is nothing to share with a child. */
		copy->inherit = e->inherit == UP_INHERIT_SHARE ? UP_INHERIT_COPY : e->inherit;
		copy->shard = shard;
		copy->serial = ++p->next_serial;
		r = i == 0 ? 0 : p->pmap->ops->protect(p->pmap, copy->start, len, copy->prot);
		if (r < 0) {
			log_line(&p->log, UP_LOG_ERROR, "up_clone: protecting the copy: %s",
				 strerrorname_np(-r));
			p->pmap->ops->unmap(p->pmap, *va, length, shard);
			return r;
		}
	}
	/* The first piece's protection is what all of it was mapped with. */
	return 0;
}

/* => map.change is held.  -EAGAIN: the program is doing something to mappings itself; let it finish. */
static int
clone_locked(struct up_runtime *rt, uintptr_t start, uintptr_t end, uintptr_t *va)
{
	const size_t length = end - start;
	struct part *part = NULL;
	struct pager *p = &rt->p;
	struct wired_array mem;
	size_t n;
	int r;

	r = check_covered(rt, &rt->p.map, "up_clone", start, end);
	if (r < 0)
		return r;
	n = parts_of(p, start, end, &mem, &part);
	if (n == 0) {
		log_line(&p->log, UP_LOG_ERROR, "up_clone: out of memory");
		return -ENOMEM;
	}
	for (size_t i = 0; i < n && r == 0; i++)
		r = part_prepare(rt, "up_clone", &part[i]);
	if (r == 0)
		r = place(p, start, length, part, n, va);
	if (r == 0) {
		r = part_all(p, "up_clone", part, n);
		if (r < 0)
			p->pmap->ops->unmap(p->pmap, *va, length, part[0].entry->shard);
	}
	for (size_t i = 0; i < n && r < 0; i++)
		part_abandon(p, &part[i]);
	wired_array_fini(&mem);
	return r;
}

int
up_clone(struct up_runtime *rt, void *addr, size_t length, void **copy)
{
	const uintptr_t start = (uintptr_t)addr, end = start + length;
	struct pager *p;
	uintptr_t va = 0;
	sigset_t old;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_clone(rt, addr, length, copy);
	if (copy != NULL)
		*copy = NULL;
	r = check_call(rt, "up_clone", start, length);
	if (r < 0)
		return r;
	p = &rt->p;
	if (copy == NULL)
		return bad(rt, "up_clone: copy is NULL");

	for (unsigned tries = 0;; tries++) {
		move_begin(p, &old);
		r = clone_locked(rt, start, end, &va);
		move_end(p, &old);
		if (!change_again(p, r, tries))
			break;
	}
	if (r == 0)
		*copy = (void *)va;
	return r;
}

int
up_object_snapshot(struct up_runtime *rt, struct up_object *obj, struct up_object **snapshot)
{
	struct object *o = (struct object *)obj, *copy;
	sigset_t old;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_snapshot(rt, obj, snapshot);
	if (snapshot != NULL)
		*snapshot = NULL;
	if (rt == NULL)
		return -EINVAL;
	r = check_process(rt, "up_object_snapshot");
	if (r < 0)
		return r;
	if (o == NULL || snapshot == NULL)
		return bad(rt, "up_object_snapshot: an argument is NULL");
	if (o->owner != &rt->p)
		return bad(rt, "up_object_snapshot: the object belongs to another runtime");

	for (unsigned tries = 0;; tries++) {
		change_begin(&rt->p, &old);
		r = cow_shadow(rt, "up_object_snapshot", o, 0, o->npages, &copy);
		if (r == 0) {
			copy->readonly = copy->roams = true;
			atomic_store(&copy->handles, 1);
		}
		change_end(&rt->p, &old);
		if (!change_again(&rt->p, r, tries))
			break;
	}
	if (r == 0)
		*snapshot = (struct up_object *)copy;
	return r;
}
