/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * space.c: what a forked child has of our memory.
 *
 *	our map      entry --> O                  entry --> O --+
 *	                                 fork                   +--> B (all that O had)
 *	child's map                               entry --> C --+
 *	                                                    `-- in a pool, which the child maps
 *
 * A copy is made as up_clone() makes one; it is mapped somewhere else, that is all.  Private memory of another process can be
 * filled by a userfaultfd, but nobody outside can take a page out of it again.  So the child's memory is not what
 * fork() would have given it, and no page of it comes from there: it is a pool of its own, that only the child maps, and whose pages
 * pageout takes as it takes others.  That is how the limit holds for parent and children together.
 *
 * Alternative looked at: UFFD_FEATURE_EVENT_FORK, where the child keeps what was in the page table, shared with us copy-on-write by
 * the kernel, and its userfaultfd comes with the event.  It needs a capability; what the kernel copies when either writes is
 * memory that no budget knows of; in the child no page could ever be thrown out; and on our side a page that was shared
 * once is refused by UFFDIO_MOVE until it is written.
 */
#include <errno.h>
#include <string.h>

#include "cow.h"
#include "remote.h"

#define META_PER_SPACE (sizeof(struct space) + sizeof(struct space) / 8)

/* --- up_inherit() --- */

/* 0, or why an entry can not be inherited like that. */
static int
check_inherit(struct up_runtime *rt, const struct map_entry *e, enum up_inherit how)
{
	struct pager *p = &rt->p;
	const char *why = NULL;

	if (how == UP_INHERIT_NONE)
		return 0;
	if (p->pmap->ops->pool_create == NULL)
		why = "children need write-protection of shared memory (Linux 5.19)";
	else if (how == UP_INHERIT_SHARE && e->object->pool == 0)
		why = "only what is mapped UP_SHARED | UP_MULTI can be shared with a child";
	else if (how == UP_INHERIT_COPY && e->object->source != NULL)
		why = "a shared mapping of a named object can not be copied: others may write to it";
	if (why == NULL)
		return 0;
	log_line(&p->log, UP_LOG_ERROR, "up_inherit: %#lx: %s", (unsigned long)e->start, why);
	return -ENOTSUP;
}

static void
set_inherit(struct map_entry *e, void *to)
{
	e->inherit = *(enum up_inherit *)to;
}

int
up_inherit(struct up_runtime *rt, void *addr, size_t length, enum up_inherit inherit)
{
	const uintptr_t start = (uintptr_t)addr, end = start + length;
	struct map_entry *spare[2], *e;
	struct pager *p;
	sigset_t old;
	int r;

	r = check_call(rt, "up_inherit", start, length);
	if (r < 0)
		return r;
	if (rt->remote != NULL)
		return remote_inherit(rt, addr, length, inherit);
	p = &rt->p;
	if ((unsigned)inherit > UP_INHERIT_SHARE)
		return bad(rt, "up_inherit: unknown value %d", (int)inherit);
	if (inherit != UP_INHERIT_NONE && rt->backend->idle == NULL)
		r = forks_start(rt);
	if (r < 0)
		return r;

	change_begin(p, &old);
	r = check_covered(rt, &rt->p.map, "up_inherit", start, end);
	for (e = map_first_from(&p->map, start); r == 0 && e != NULL && e->start < end; e = e->next)
		r = check_inherit(rt, e, inherit);
	if (r == 0)
		r = spare_alloc(p, &p->map, start, end, spare);
	if (r == 0)
		entries_set(p, &p->map, start, end, spare, set_inherit, &inherit);
	change_end(p, &old);
	return r;
}

/* --- fork --- */

/* The next entry that is inherited, from `e` on. */
static struct map_entry *
inherited(struct map_entry *e)
{
	while (e != NULL && e->inherit == UP_INHERIT_NONE)
		e = e->next;
	return e;
}

/* An object for what the child gets of an entry, and its entry.  On failure part_abandon() is the caller's. */
static int
prepare(struct up_runtime *rt, const struct map_entry *e, unsigned shard, struct part *part)
{
	struct pager *p = &rt->p;
	struct map_entry *copy;
	int r = 0;

	part->first = e->offset;
	part->n = (e->end - e->start) >> PAGE_SHIFT;
	if (e->inherit == UP_INHERIT_COPY) {
		part->from = e->object;
		r = part_prepare(rt, "fork", part);
		if (r == 0)
			object_copy_client(part->copy, e->object);
		if (r == 0)
			r = object_pool(rt, "fork", part->copy);
	} else {
		object_ref(e->object);
		part->copy = e->object;
	}
	if (r < 0)
		return r;
	part->entry = copy = entry_alloc(p);
	if (copy == NULL) {
		log_line(&p->log, UP_LOG_ERROR,
			 "fork: no room for a map entry within the memory limit");
		return -ENOMEM;
	}
	copy->start = e->start;
	copy->end = e->end;
	copy->object = part->copy;
	copy->offset = part->from != NULL ? 0 : e->offset;
	copy->prot = e->prot;
	copy->flags = e->flags;
	copy->advice = e->advice;
	copy->inherit = e->inherit;
	copy->shard = shard;
	copy->serial = ++p->next_serial;
	return 0;
}

int
space_place(struct pager *p, const char *call, const struct map_entry *e)
{
	const struct place at = entry_place(e, e->start);
	uintptr_t va;
	int r;

	assert(at.shard == PMAP_POOL);
	r = p->pmap->ops->pool_map(p->pmap, at.va, e->start, true, e->end - e->start, e->prot,
				   e->shard, &va);
	if (r < 0)
		log_line(&p->log, UP_LOG_ERROR, "%s: mapping %zu bytes in another process: %s",
			 call, (size_t)(e->end - e->start), strerrorname_np(-r));
	return r;
}

/* Room for what is counted of so many spaces.  It stays, so it is promised for good.  => map.change is held */
static int
tallies_reach(struct pager *p, size_t n)
{
	struct wired_array *t = &p->tallies;
	int r;

	if (n <= t->n)
		return 0;
	if (!resv_try(&p->resv_meta, (n - t->n) * t->item))
		return -ENOMEM;
	n -= t->n;
	r = wired_array_grow_wait(t, t->n + n);
	if (r < 0)
		resv_give(&p->resv_meta, n * t->item);
	return r;
}

int
space_tallies(struct pager *p)
{
	struct wired_array *t = &p->tallies;
	int r = 0;

	if (t->base == NULL)
		r = wired_array_init(t, &p->arena, sizeof(struct space_tally), SPACES_MAX);
	if (r == 0)
		r = tallies_reach(p, MAX(p->space_at.n, (size_t)1));
	if (r == 0)
		atomic_store_explicit(&p->tally, t->base, memory_order_release);
	return r;
}

/* Make the table of spaces reach to `i`.  => map.change is held */
static int
table_reach(struct pager *p, size_t i)
{
	struct wired_array *t = &p->space_at;
	int r = 0;

	if (t->base == NULL)
		r = wired_array_init(t, &p->arena, sizeof(struct space *), SPACES_MAX);
	if (r == 0 && i >= t->n)
		r = wired_array_grow_wait(t, i + 1);
	if (r == 0 && atomic_load(&p->tally) != NULL)
		r = tallies_reach(p, i + 1);
	if (r == 0) {
		pthread_rwlock_wrlock(&p->map.lock);
		p->nspace_at = t->n;
		pthread_rwlock_unlock(&p->map.lock);
	}
	return r;
}

/* Whose it was is gone; what is counted for him yet is lost on his successor. */
static void
tally_reset(struct space_tally *t)
{
	for (unsigned k = 0; k < UP_FAULT_KINDS; k++) {
		for (unsigned i = 0; i < TALLY_BUCKETS; i++)
			atomic_store(&t->latency[k].bucket[i], 0);
		atomic_store(&t->latency[k].sum, 0);
	}
	atomic_store(&t->again, 0);
	atomic_store(&t->exists, 0);
	atomic_store(&t->deferred, 0);
	atomic_store(&t->sigbus, 0);
	atomic_store(&t->since, now_ns());
}

struct space *
space_make(struct pager *p)
{
	struct space *sp;
	int r;

	if (!resv_try(&p->resv_meta, META_PER_SPACE))
		return NULL;
	sp = zone_alloc(&p->space_zone, ZONE_WAIT);
	if (sp == NULL) {
		resv_give(&p->resv_meta, META_PER_SPACE);
		return NULL;
	}
	memset(sp, 0, sizeof *sp);
	r = p->pmap->ops->space_create(p->pmap, p->next_shard++ % p->nservices, &sp->shard);
	if (r < 0) {
		zone_free(&p->space_zone, sp);
		resv_give(&p->resv_meta, META_PER_SPACE);
		return NULL;
	}
	if (table_reach(p, sp->shard - PMAP_POOL - 1) < 0) {
		p->pmap->ops->space_destroy(p->pmap, sp->shard);
		zone_free(&p->space_zone, sp);
		resv_give(&p->resv_meta, META_PER_SPACE);
		return NULL;
	}
	map_init(&sp->map, &p->map_zones);
	sp->id = ++p->next_serial;
	if (atomic_load(&p->tally) != NULL)
		tally_reset(atomic_load(&p->tally) + (sp->shard - PMAP_POOL - 1));
	return sp;
}

/* => map.lock is held for writing */
static void
link_locked(struct pager *p, struct space *sp)
{
	sp->next = p->spaces;
	p->spaces = sp;
	((struct space **)p->space_at.base)[sp->shard - PMAP_POOL - 1] = sp;
}

void
space_link(struct pager *p, struct space *sp)
{
	pthread_rwlock_wrlock(&p->map.lock);
	link_locked(p, sp);
	pthread_rwlock_unlock(&p->map.lock);
}

/* => it has no entries any more. */
static void
space_free(struct pager *p, struct space *sp)
{
	p->pmap->ops->space_destroy(p->pmap, sp->shard);
	map_fini(&sp->map);
	account_unref(sp->account);
	zone_free(&p->space_zone, sp);
	resv_give(&p->resv_meta, META_PER_SPACE);
}

int
space_fork(struct up_runtime *rt, struct map *map, int sock, struct space **out)
{
	struct pager *p = &rt->p;
	struct part *part = NULL;
	struct wired_array mem;
	struct map_entry *e;
	struct space *sp;
	size_t n = 0, placed = 0;
	int r = 0;

	*out = NULL;
	for (e = inherited(map->first); e != NULL; e = inherited(e->next))
		n++;
	if (n == 0)
		return 0;
	sp = space_make(p);
	if (sp != NULL)
		part = parts_alloc(p, &mem, n);
	if (part == NULL) {
		log_line(&p->log, UP_LOG_ERROR, "fork: no room for another address space");
		if (sp != NULL)
			space_free(p, sp);
		return -ENOMEM;
	}
	e = inherited(map->first);
	for (size_t i = 0; i < n && r == 0; i++, e = inherited(e->next))
		r = prepare(rt, e, sp->shard, &part[i]);
	while (placed < n && r == 0) {
		r = space_place(p, "fork", part[placed].entry);
		placed += r == 0;
	}
	if (r == 0)
		r = parts_freeze(p, "fork", part, n);
	if (r < 0) {
		while (placed-- > 0)
			p->pmap->ops->unmap(p->pmap, part[placed].entry->start,
					    part[placed].n << PAGE_SHIFT, sp->shard);
		for (size_t i = 0; i < n; i++)
			part_abandon(p, &part[i]);
		wired_array_fini(&mem);
		space_free(p, sp);
		return r;
	}
	sp->sock = sock;
	pthread_rwlock_wrlock(&p->map.lock);
	parts_take(part, n, &sp->map);
	link_locked(p, sp);
	pthread_rwlock_unlock(&p->map.lock);
	parts_done(part, n);
	wired_array_fini(&mem);
	*out = sp;
	return 0;
}

void
space_end(struct pager *p, struct space *sp)
{
	struct map_entry *gone = NULL, *e;
	struct space **link;

	pthread_rwlock_wrlock(&p->map.lock);
	for (link = &p->spaces; *link != sp; link = &(*link)->next)
		;
	*link = sp->next;
	((struct space **)p->space_at.base)[sp->shard - PMAP_POOL - 1] = NULL;
	p->frozen -= sp->map.frozen;
	while ((e = sp->map.first) != NULL) {
		map_remove(&sp->map, e);
		e->next = gone;
		gone = e;
	}
	pthread_rwlock_unlock(&p->map.lock);
	while ((e = gone) != NULL) {
		gone = e->next;
		entry_destroy(p, e);
	}
	space_free(p, sp);
}
