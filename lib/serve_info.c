/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * serve_info.c: what there is to be seen of clients: see serve.h.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"
#include "pager/source.h"
#include "who.h"

#define LOST_NS 20000000u /* how long what is lost is looked for */

const struct space_tally *
client_tally(const struct pager *p, const struct space *sp)
{
	return atomic_load(&p->tally) + (sp->shard - PMAP_POOL - 1);
}

/* Pages that its own objects have.  => map.lock is held */
static uint64_t
written(const struct space *sp)
{
	const struct object *before = NULL;
	uint64_t n = 0;

	for (const struct map_entry *e = sp->map.first; e != NULL; e = e->next) {
		/* Pieces of one object lie side by side, as a rule. */
		if (e->object != before && e->object->account != NULL &&
		    e->object->account == sp->account)
			n += object_count(e->object);
		before = e->object;
	}
	return n;
}

uint64_t
client_swapped(const struct space *sp, uint64_t resident)
{
	const uint64_t bytes = written(sp) << PAGE_SHIFT;

	return bytes - MIN(bytes, resident);
}

uint64_t
client_lost(struct pager *p, struct space *sp)
{
	const uint64_t until = now_ns() + LOST_NS;
	struct range_look look = { .lost = 0 };
	uint64_t serial = 0, at = 0, n = 0;
	unsigned depth = 0;
	uintptr_t va = 0;

	if (atomic_load(&p->nlost) == 0)
		return 0;
	/* A leaf at a time, as serve_look(). */
	for (const struct map_entry *e;;) {
		pthread_rwlock_rdlock(&p->map.lock);
		e = map_first_from(&sp->map, va);
		if (e != NULL && e->serial != serial) {
			serial = e->serial;
			depth = 0;
			at = 0;
		}
		if (e != NULL && !range_count(p, e, &depth, &at, 1, &look, 1)) {
			va = e->end;
			serial = 0;
		}
		pthread_rwlock_unlock(&p->map.lock);
		n += look.lost;
		look.lost = 0;
		if (e == NULL || now_ns() > until)
			return n << PAGE_SHIFT;
	}
}

static void
serve_tally(const struct space_tally *t, struct serve_info *info)
{
	for (unsigned k = 0; k < UP_FAULT_KINDS; k++) {
		tally_sum(&t->latency[k], 1, &info->latency[k]);
		info->faults[k] = info->latency[k].count;
	}
	tally_sum(t->latency, UP_FAULT_KINDS, &info->all);
	info->again = atomic_load(&t->again);
	info->exists = atomic_load(&t->exists);
	info->deferred = atomic_load(&t->deferred);
	info->sigbus = atomic_load(&t->sigbus);
}

int
serve_info(struct up_runtime *rt, uint64_t id, struct serve_info *info)
{
	struct pager *p = &rt->p;
	const struct space *sp;

	pthread_rwlock_rdlock(&p->map.lock);
	sp = client_find(p, id);
	if (sp != NULL) {
		const struct client *c = sp->client;

		*info = (struct serve_info){
			.id = id,
			.pid = c->pid,
			.uid = c->uid,
			.gid = c->gid,
			.guest = c->guest != NULL,
			.tag = c->tag,
			.attached = sp->attached,
			.mapped = sp->map.pages << PAGE_SHIFT,
			.regions = sp->map.n,
			.objects = c->nheld,
			.resident = atomic_load(&c->account->mapped) << PAGE_SHIFT,
			.limit = atomic_load(&c->account->limit) << PAGE_SHIFT,
			.minimum = atomic_load(&c->account->minimum) << PAGE_SHIFT,
			.wired = sp->map.wired << PAGE_SHIFT,
			.swap = atomic_load(&c->account->swap_limit) << PAGE_SHIFT,
			.promised = (atomic_load(&c->account->promised) +
				     atomic_load(&c->account->touched))
				    << PAGE_SHIFT,
		};
		info->swapped = client_swapped(sp, info->resident);
		memcpy(info->name, c->name, sizeof info->name);
		serve_tally(client_tally(p, sp), info);
	}
	pthread_rwlock_unlock(&p->map.lock);
	return sp != NULL ? 0 : -ENOENT;
}

int
serve_ranges(struct up_runtime *rt, uint64_t id, uintptr_t from, struct serve_range range[],
	     size_t n)
{
	struct pager *p = &rt->p;
	struct space *sp;
	size_t i = 0;

	pthread_rwlock_rdlock(&p->map.lock);
	sp = client_find(p, id);
	for (const struct map_entry *e = sp != NULL ? map_first_from(&sp->map, from) : NULL;
	     e != NULL && i < n; e = e->next, i++)
		range[i] = (struct serve_range){
			.start = e->start,
			.length = e->end - e->start,
			.object = e->object->id,
			.offset = e->offset << PAGE_SHIFT,
			.depth = object_depth(e->object),
			.pager = e->object->source != NULL ? e->object->source->ops->name
							   : "anonymous",
			.serial = e->serial,
			.wired = e->wired,
			.prot = e->prot,
			.shared = (e->flags & UP_SHARED) != 0,
		};
	pthread_rwlock_unlock(&p->map.lock);
	return sp != NULL ? (int)i : -ENOENT;
}

int
serve_look(struct up_runtime *rt, uint64_t id, const struct serve_range *range, unsigned step,
	   uint64_t until, struct range_look look[], unsigned nlook)
{
	struct pager *p = &rt->p;
	unsigned depth = 0;
	uint64_t at = 0;
	bool more;

	/* A leaf at a time: who waits to change the map keeps all others waiting. */
	do {
		const struct map_entry *e;
		struct space *sp;

		pthread_rwlock_rdlock(&p->map.lock);
		sp = client_find(p, id);
		e = sp != NULL ? map_lookup(&sp->map, range->start) : NULL;
		if (e == NULL || e->start != range->start || e->serial != range->serial) {
			pthread_rwlock_unlock(&p->map.lock);
			return -ENOENT;
		}
		more = range_count(p, e, &depth, &at, step, look, nlook);
		pthread_rwlock_unlock(&p->map.lock);
	} while (more && (until == 0 || now_ns() < until));
	return more;
}

/* => map.lock is held */
static bool
has_object(const struct space *sp, const struct object *o)
{
	const struct client *c = sp->client;
	const struct handle *h = c != NULL ? c->object.base : NULL;
	const size_t n = c != NULL ? atomic_load(&c->nhandles) : 0;

	for (size_t i = 0; i < n; i++) {
		if (atomic_load(&h[i].object) == o)
			return true;
	}
	for (const struct map_entry *e = sp->map.first; e != NULL; e = e->next) {
		if (e->object == o)
			return true;
	}
	return false;
}

/* => the object has a reference of the caller's */
static void
count_name(struct pager *p, struct object *o, uint64_t until, struct serve_name *info)
{
	const struct map_entry all = { .end = o->npages << PAGE_SHIFT, .object = o };
	struct range_look look = { .mapped = 0 };
	unsigned depth = 0;
	uint64_t at = 0;

	pthread_rwlock_rdlock(&p->map.lock);
	for (const struct space *sp = p->spaces; sp != NULL; sp = sp->next)
		info->clients += has_object(sp, o);
	pthread_rwlock_unlock(&p->map.lock);
	/* A leaf at a time, as in serve_look(). */
	do {
		pthread_rwlock_rdlock(&p->map.lock);
		info->partly = range_count(p, &all, &depth, &at, 1, &look, 1);
		pthread_rwlock_unlock(&p->map.lock);
	} while (info->partly && now_ns() < until);
	info->resident = ((uint64_t)look.mapped + look.staged + look.compressed) << PAGE_SHIFT;
	info->swapped = (uint64_t)look.swapped << PAGE_SHIFT;
	info->lost = (uint64_t)look.lost << PAGE_SHIFT;
}

int
serve_name(struct up_runtime *rt, uint64_t until, struct serve_name *info)
{
	struct server *sv = rt->server;
	const struct owner *next = NULL;
	const uint64_t after = info->id;
	struct object *object = NULL;

	if (sv == NULL)
		return -ENOENT;
	pthread_mutex_lock(&sv->lock);
	for (const struct owner *o = sv->owners; o != NULL; o = o->next) {
		if (o->object != NULL && o->object->id > after &&
		    (next == NULL || o->object->id < next->object->id))
			next = o;
	}
	if (next != NULL) {
		/* The name has one, and is not taken away before its owner says so here. */
		object = next->object;
		up_object_ref((struct up_object *)object);
		*info = (struct serve_name){
			.id = object->id,
			.uid = next->uid,
			.gid = next->gid,
			.mode = next->mode,
			.size = object->npages << PAGE_SHIFT,
		};
		memcpy(info->name, next->name, sizeof info->name);
	}
	pthread_mutex_unlock(&sv->lock);
	if (object == NULL)
		return -ENOENT;
	count_name(&rt->p, object, until, info);
	up_object_unref((struct up_object *)object);
	return 0;
}

int
serve_latency(struct up_runtime *rt, uint64_t id, enum up_fault_kind kind,
	      struct latency_steps *steps)
{
	struct pager *p = &rt->p;
	const struct space *sp;

	pthread_rwlock_rdlock(&p->map.lock);
	sp = client_find(p, id);
	if (sp != NULL)
		tally_steps(&client_tally(p, sp)->latency[kind], steps);
	pthread_rwlock_unlock(&p->map.lock);
	return sp != NULL ? 0 : -ENOENT;
}

/* --- events --- */

struct tracing {
	struct pager *p;
	pid_t pid;
	struct serve_event *ev; /* of n, the last ones that there were: number i is in ev[i % n] */
	size_t n, seen;
};

/* Whose fault it was, if he is still there; NULL.  => map.lock is held */
static const struct space *
space_of_event(const struct pager *p, const struct trace_event *of)
{
	const size_t i = of->arg2 - PMAP_POOL - 1u;
	const struct space_tally *tally = atomic_load(&p->tally);

	return of->arg2 > PMAP_POOL && tally != NULL && i < p->nspace_at &&
			       of->time_ns >= atomic_load(&tally[i].since)
		       ? ((struct space **)p->space_at.base)[i]
		       : NULL;
}

static void
whose(struct pager *p, const struct trace_event *of, struct serve_event *ev)
{
	const struct client *c = NULL;
	const struct space *sp;

	pthread_rwlock_rdlock(&p->map.lock);
	sp = space_of_event(p, of);
	if (sp != NULL)
		c = space_client(p, sp);
	ev->pid = c != NULL ? c->pid : 0;
	ev->child = sp != NULL && sp->client == NULL ? atomic_load(&sp->pid) : 0;
	pthread_rwlock_unlock(&p->map.lock);
}

static bool
take_event(void *ctx, const struct trace_event *of)
{
	struct tracing *const t = ctx;
	struct serve_event ev = { .time_ns = of->time_ns,
				  .kind = trace_kind_name(of->kind),
				  .at = of->va,
				  .arg = of->arg };

	whose(t->p, of, &ev);
	if (t->pid == 0 || t->pid == ev.pid)
		t->ev[t->seen++ % t->n] = ev;
	return true;
}

/* The rings there are. */
static unsigned
rings_of(struct pager *p, struct trace *rings[MAX_SERVICES + WORKERS_MAX])
{
	unsigned n = 0;

	for (; pager_server(p, n) != NULL; n++)
		rings[n] = &pager_server(p, n)->trace;
	return n;
}

int
serve_trace(struct up_runtime *rt, pid_t pid, struct serve_event ev[], size_t n)
{
	struct tracing t = { .p = &rt->p, .pid = pid, .n = n };
	struct trace *rings[MAX_SERVICES + WORKERS_MAX];
	const unsigned nrings = rings_of(&rt->p, rings);
	size_t first;

	t.ev = calloc(MAX(n, 1), sizeof *t.ev);
	if (t.ev == NULL)
		return -ENOMEM;
	if (n > 0 && trace_merge(rings, nrings, take_event, &t) < 0) {
		free(t.ev);
		return -ENOMEM;
	}
	first = t.seen > n ? t.seen - n : 0;
	for (size_t i = first; i < t.seen; i++)
		ev[i - first] = t.ev[i % n];
	free(t.ev);
	return (int)(t.seen - first);
}

struct paging {
	struct pager *p;
	const struct space *sp;
	struct trace_page *page;
	uint64_t after, skip; /* not what is older; nor so many of that very time */
	uint32_t n;
	bool more;
};

static bool
page_event(void *ctx, const struct trace_event *of)
{
	struct paging *const pg = ctx;
	const struct space *sp;
	bool its;

	if (of->time_ns < pg->after || of->time_ns > pg->page->until)
		return true;
	pthread_rwlock_rdlock(&pg->p->map.lock);
	sp = space_of_event(pg->p, of);
	its = sp != NULL && space_client(pg->p, sp) == pg->sp->client;
	pthread_rwlock_unlock(&pg->p->map.lock);
	if (!its)
		return true;
	if (of->time_ns == pg->after && pg->skip > 0) {
		pg->skip--;
		return true;
	}
	if (pg->n == sizeof pg->page->event / sizeof pg->page->event[0]) {
		pg->more = true;
		return false;
	}
	pg->page->event[pg->n] = *of;
	if (sp == pg->sp)
		pg->page->event[pg->n].arg2 = 0;
	pg->n++;
	return true;
}

int
client_trace(struct up_runtime *rt, const struct space *sp, const struct call *q,
	     struct msg *answer)
{
	struct trace_page page = { .until = q->addr != 0 ? q->addr : now_ns() };
	struct trace *rings[MAX_SERVICES + WORKERS_MAX];
	const unsigned nrings = rings_of(&rt->p, rings);
	struct paging pg = {
		.p = &rt->p, .sp = sp, .page = &page, .after = q->offset, .skip = q->length
	};
	const int r = trace_merge(rings, nrings, page_event, &pg);

	static_assert(sizeof page <= MSG_BYTES, "a page of events fits a message");
	answer->n = pg.n;
	answer->left = pg.more;
	memcpy(answer->bytes, &page, sizeof page);
	return r;
}

void
serve_ask(struct up_runtime *rt)
{
	struct forks *const f = rt->forks;

	if (f != NULL && pulse_ask(&f->pulse))
		keeper_kick(f);
	for (unsigned i = 0; i < rt->p.nservices; i++) {
		struct service *s = rt->p.service[i];

		if (pulse_ask(&s->pulse))
			s->io->ops->kick(s->io);
	}
}

bool
serve_thread(struct up_runtime *rt, unsigned i, struct serve_thread *t)
{
	struct forks *const f = rt->forks;

	if (i < rt->p.nservices)
		*t = (struct serve_thread){ "a service thread", &rt->p.service[i]->pulse, false };
	else if (i == rt->p.nservices && f != NULL)
		*t = (struct serve_thread){ "the keeper", &f->pulse, true };
	else
		return false;
	return true;
}
