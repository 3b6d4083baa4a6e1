/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * calls.c: calls on ranges and objects beyond those that mapping needs: prefault, wire, dump.
 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>

#include "runtime.h"

/* --- prefault --- */

/* 0, or why the range can not be brought in. */
static int
check_prefault(struct up_runtime *rt, const char *call, uintptr_t start, uintptr_t end, bool write)
{
	struct pager *p = &rt->p;
	const size_t fits = frames_mappable(p);
	uintptr_t denied = 0;
	bool covered;

	pthread_rwlock_rdlock(&p->map.lock);
	covered = map_covers(&p->map, start, end);
	for (const struct map_entry *e = map_first_from(&p->map, start);
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

int
up_prefault(struct up_runtime *rt, void *addr, size_t length, int write)
{
	const uintptr_t start = (uintptr_t)addr, end = start + length;
	struct demand d = { .va = start, .end = end, .write = write != 0 };
	sigset_t old;
	int r;

	if (rt == NULL)
		return -EINVAL;
	r = check_process(rt, "up_prefault");
	if (r == 0)
		r = check_range(rt, "up_prefault", start, length);
	if (r < 0)
		return r;
	signals_hold(&old);
	r = check_prefault(rt, "up_prefault", start, end, d.write);
	if (r == 0)
		r = demand_failed(rt, "up_prefault", &d, demand_range(&rt->p, &d));
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

/* 0, or why the range can not be wired; *more: its pages that are not wired yet.  => map.change is held. */
static int
check_wire(struct up_runtime *rt, uintptr_t start, uintptr_t end, uint64_t *more)
{
	struct pager *p = &rt->p;
	const uint64_t now = atomic_load(&p->nwired), most = rt->wire_limit >> PAGE_SHIFT;
	int r;

	*more = 0;
	r = check_covered(rt, "up_wire", start, end);
	if (r < 0)
		return r;
	for (const struct map_entry *e = map_first_from(&p->map, start);
	     e != NULL && e->start < end; e = e->next) {
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

/* Pages of [start, end) whose entries are not wired are on ACTIVE again.  => map.change is held. */
static void
unwire_pages(struct pager *p, uintptr_t start, uintptr_t end)
{
	for (struct map_entry *e = map_first_from(&p->map, start); e != NULL && e->start < end;
	     e = e->next) {
		const uintptr_t from = MAX(start, e->start), to = MIN(end, e->end);

		if (e->wired == 0)
			range_unwire(p, e->object, e->offset + ((from - e->start) >> PAGE_SHIFT),
				     (to - from) >> PAGE_SHIFT, from, e->shard);
	}
}

/* => map.change is held, so nobody unmaps, protects or discards while the pages come. */
static int
wire(struct up_runtime *rt, uintptr_t start, uintptr_t end)
{
	struct demand d = { .va = start, .end = end, .wire = true };
	struct map_entry *spare[2];
	struct pager *p = &rt->p;
	uint64_t more;
	int r;

	r = check_wire(rt, start, end, &more);
	if (r < 0)
		return r;
	r = spare_alloc(p, start, end, spare);
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
	r = demand_failed(rt, "up_wire", &d, demand_range(p, &d));
	if (r < 0) {
		unwire_pages(p, start, end);
		wired_give(p, more);
		goto free_spare;
	}
	pthread_rwlock_wrlock(&p->map.lock);
	map_clip(&p->map, start, end, spare);
	for (struct map_entry *e = map_first_from(&p->map, start); e != NULL && e->start < end;
	     e = e->next)
		e->wired++;
	pthread_rwlock_unlock(&p->map.lock);
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

	if (rt == NULL)
		return -EINVAL;
	p = &rt->p;
	r = check_process(rt, "up_wire");
	if (r == 0)
		r = check_range(rt, "up_wire", start, length);
	if (r < 0)
		return r;

	change_begin(p, &old);
	r = check_wire(rt, start, end, &more);
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
	change_begin(p, &old);
	r = wire(rt, start, end);
	change_end(p, &old);
	return r;
}

int
up_unwire(struct up_runtime *rt, void *addr, size_t length)
{
	const uintptr_t start = (uintptr_t)addr, end = start + length;
	struct map_entry *spare[2], *e;
	struct pager *p;
	uint64_t less = 0;
	sigset_t old;
	int r;

	if (rt == NULL)
		return -EINVAL;
	p = &rt->p;
	r = check_process(rt, "up_unwire");
	if (r == 0)
		r = check_range(rt, "up_unwire", start, length);
	if (r < 0)
		return r;

	change_begin(p, &old);
	r = check_covered(rt, "up_unwire", start, end);
	for (e = map_first_from(&p->map, start); r == 0 && e != NULL && e->start < end;
	     e = e->next) {
		if (e->wired == 0)
			r = bad(rt, "up_unwire: the page at %#lx is not wired",
				(unsigned long)MAX(start, e->start));
	}
	if (r < 0)
		goto unlock;
	r = spare_alloc(p, start, end, spare);
	if (r < 0)
		goto unlock;
	pthread_rwlock_wrlock(&p->map.lock);
	map_clip(&p->map, start, end, spare);
	for (e = map_first_from(&p->map, start); e != NULL && e->start < end; e = e->next) {
		if (--e->wired == 0)
			less += (e->end - e->start) >> PAGE_SHIFT;
	}
	pthread_rwlock_unlock(&p->map.lock);
	unwire_pages(p, start, end);
	wired_give(p, less);
	spare_free(p, spare);
unlock:
	change_end(p, &old);
	return r;
}

/* --- objects and the map, for people --- */

/* => the caller has a reference, or map.change. */
static void
object_info(struct object *o, struct up_object_stats *info)
{
	uint64_t n[] = { [ANON_CORE] = 0, [ANON_SWAP] = 0, [ANON_LOST] = 0 };
	struct leaf *leaf;

	for (uint64_t at = 0; (leaf = object_next_leaf(o, at)) != NULL;) {
		for (unsigned i = 0; i < LEAF_SLOTS; i++) {
			const struct anon *an = leaf_anon(leaf, i);

			if (an != NULL)
				n[atomic_load_explicit(&an->kind, memory_order_relaxed)]++;
		}
		at = leaf->base + LEAF_SLOTS;
		pthread_mutex_unlock(&leaf->lock);
	}
	*info = (struct up_object_stats){
		.id = o->id,
		.size = o->npages << PAGE_SHIFT,
		.resident = n[ANON_CORE] << PAGE_SHIFT,
		.swapped = n[ANON_SWAP] << PAGE_SHIFT,
		.lost = n[ANON_LOST] << PAGE_SHIFT,
		.pager = "anonymous",
		.refs = atomic_load(&o->refs),
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
	if (o->owner == NULL)
		return -ECHILD; /* in a forked child, where this memory is wiped */
	rt = container_of((struct pager *)o->owner, struct up_runtime, p);
	r = check_process(rt, "up_object_info");
	if (r < 0)
		return r;
	if (info == NULL)
		return bad(rt, "up_object_info: info is NULL");
	signals_hold(&old);
	object_info(o, &full);
	signals_release(&old);
	/* As in up_stats_get(). */
	memset(info, 0, size);
	memcpy(info, &full, MIN(size, sizeof full));
	return 0;
}

struct dump_line {
	uintptr_t start, end;
	uint64_t offset;
	int prot;
	bool shared;
	unsigned wired;
	struct up_object_stats object;
};

/* The first range at or after `at`.  False if there is none.  What `line` says of the same object is not asked again. */
static bool
dump_next(struct pager *p, uintptr_t at, struct dump_line *line)
{
	struct map_entry *e;
	sigset_t old;

	change_begin(p, &old);
	e = map_first_from(&p->map, at);
	if (e != NULL) {
		line->start = e->start;
		line->end = e->end;
		line->offset = e->offset << PAGE_SHIFT;
		line->prot = e->prot;
		line->shared = (e->flags & UP_SHARED) != 0;
		line->wired = e->wired;
		if (line->object.id != e->object->id)
			object_info(e->object, &line->object);
	}
	change_end(p, &old);
	return e != NULL;
}

int
up_map_dump(struct up_runtime *rt, FILE *out)
{
	struct dump_line line = { .end = 0 };
	int r;

	if (rt == NULL)
		return -EINVAL;
	r = check_process(rt, "up_map_dump");
	if (r < 0)
		return r;
	if (out == NULL)
		return bad(rt, "up_map_dump: out is NULL");
	fprintf(out, "%-27s %-5s %-8s %6s %-10s %9s %9s %9s %5s %4s %5s\n", "address", "perms",
		"offset", "object", "pager", "pages", "resident", "swapped", "lost", "refs",
		"wired");
	while (dump_next(&rt->p, line.end, &line)) {
		const struct up_object_stats *o = &line.object;
		char range[40];

		snprintf(range, sizeof range, "%" PRIxPTR "-%" PRIxPTR, line.start, line.end);
		fprintf(out,
			"%-27s %c%c-%c  %08" PRIx64 " %6" PRIu64 " %-10s %9" PRIu64 " %9" PRIu64
			" %9" PRIu64 " %5" PRIu64 " %4" PRIu32 " %5u\n",
			range, line.prot == PROT_NONE ? '-' : 'r',
			(line.prot & PROT_WRITE) ? 'w' : '-', line.shared ? 's' : 'p', line.offset,
			o->id, o->pager, o->size >> PAGE_SHIFT, o->resident >> PAGE_SHIFT,
			o->swapped >> PAGE_SHIFT, o->lost >> PAGE_SHIFT, o->refs, line.wired);
	}
	return fflush(out) != 0 || ferror(out) ? -EIO : 0;
}
