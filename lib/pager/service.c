/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * service.c: a service thread, and what all of them share.
 *
 * A service owns one shard: a userfaultfd on which some of the regions are registered, and one I/O
 * engine.  Everything that can happen to it, a fault, a finished read or write, a kick from another
 * thread, ends the same wait; nothing else in it ever sleeps, but for the kernel's memory when bounce.c makes its buffers.  Between waits it takes one turn:
 *
 *	completions  first, since they free frames and wake threads without further ado
 *	faults       all that are there, a batch at a time
 *	parked       those that could not be served before
 *	will-need    as far as there is room to spare
 *	demands      what calls wait for
 *	pageout      one step, if free room is short
 *
 * Once running, a service thread calls nothing in libc that takes a lock of libc's: fork() in another
 * thread holds those.
 */
#include <errno.h>

#include "base/hash.h"
#include "base/probe.h"
#include "foreign.h"
#include "pager/pager.h"

#define PARKED_NS 1000000 /* how long the parked wait before they are tried again */
#define FAULT_ROUNDS 4	  /* batches of faults in one turn */

struct request *
request_get(struct service *s, enum request_kind kind)
{
	struct request **list = kind == REQ_PAGEIN ? &s->free_reads : &s->free_writes;
	struct request *req = *list;

	if (req != NULL) {
		*list = req->next;
		s->nreads += kind == REQ_PAGEIN;
	}
	return req;
}

void
request_count(struct request *req, struct account *a)
{
	assert(req->account == NULL);
	req->counted = (uint8_t)req->n; /* CLUSTER_MAX at most */
	req->account = account_reading(a, req->n);
}

static void
request_free(struct service *s, struct request *req)
{
	struct request **list = req->kind == REQ_PAGEIN ? &s->free_reads : &s->free_writes;

	req->next = *list;
	*list = req;
}

void
request_put(struct service *s, struct request *req)
{
	s->nreads -= req->kind == REQ_PAGEIN;
	account_read(req->account, req->counted);
	req->account = NULL;
	request_free(s, req);
}

bool
requests_spare(const struct service *s)
{
	return s->free_reads != NULL && s->nreads < NREADS * 2 / 3;
}

void
request_fill(struct pager *p, struct request *req, enum swap_op op, slot_t first)
{
	frame_t f[CLUSTER_MAX];

	for (unsigned i = 0; i < req->n; i++)
		f[i] = req->page[i]->frame;
	request_fill_frames(p, req, f, op, first);
}

void
request_fill_frames(struct pager *p, struct request *req, const frame_t f[], enum swap_op op,
		    slot_t first)
{
	swap_io_fill(p, &req->io, f, req->n, op, first);
	req->io.owner = req;
}

void
swap_io_fill(struct pager *p, struct swap_io *io, const frame_t f[], unsigned n, enum swap_op op,
	     slot_t first)
{
	unsigned niov = 0;

	for (unsigned i = 0; i < n; i++) {
		if (i > 0 && f[i] == f[i - 1] + 1) {
			io->iov[niov - 1].iov_len += PAGE_SIZE;
			continue;
		}
		io->iov[niov].iov_base = pmap_frame(p->pmap, f[i]);
		io->iov[niov].iov_len = PAGE_SIZE;
		niov++;
	}
	io->elsewhere = io->direct = io->ends = io->urgent = false;
	io->op = op;
	io->slot = first;
	io->n = n;
	io->niov = niov;
}

void
request_submit(struct service *s, struct request *req)
{
	int r;

	bounce_begin(s->p, req);
	r = s->io->ops->submit(s->io, &req->io);

	/* The engine is as deep as there are requests. */
	assert(r == 0);
	(void)r;
}

void
requests_init(struct service *s, enum request_kind kind, struct request req[], unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		req[i].kind = kind;
		req[i].service = s;
		request_free(s, &req[i]);
	}
}

/* A service and what it has many of, in one piece. */
struct service_mem {
	struct service s;
	struct histogram latency[UP_FAULT_KINDS];
	struct trace_slot event[TRACE_EVENTS];
	struct pmap_fault msg[FAULT_BATCH];
	struct parked parked[PARKED_MAX];
	struct request read[NREADS], write[NWRITES];
};

struct service *
service_alloc(struct pager *p, unsigned id)
{
	struct service_mem *m;
	struct wired_array mem;
	struct service *s;

	if (wired_array_init(&mem, &p->arena, sizeof *m, 1) < 0)
		return NULL;
	if (wired_array_grow(&mem, 1) < 0) {
		wired_array_fini(&mem);
		return NULL;
	}
	m = mem.base;
	s = &m->s;
	s->mem = mem;
	s->p = p;
	s->id = id;
	s->latency = m->latency;
	s->msg = m->msg;
	s->parked = m->parked;
	s->reads = m->read;
	pthread_mutex_init(&s->cmd_lock, NULL);
	pthread_cond_init(&s->demand_over, NULL);
	trace_init(&s->trace, m->event, TRACE_EVENTS);
	requests_init(s, REQ_PAGEIN, m->read, NREADS);
	requests_init(s, REQ_PAGEOUT, m->write, NWRITES);
	if (tier_equip(s, m->write, NWRITES) < 0) {
		pthread_cond_destroy(&s->demand_over);
		pthread_mutex_destroy(&s->cmd_lock);
		wired_array_fini(&mem);
		return NULL;
	}
	p->service[id] = s;
	return s;
}

void
service_free(struct service *s)
{
	struct wired_array mem;

	if (s == NULL)
		return;
	mem = s->mem;
	s->p->service[s->id] = NULL;
	tier_strip(s);
	pthread_cond_destroy(&s->demand_over);
	pthread_mutex_destroy(&s->cmd_lock);
	wired_array_fini(&mem);
}

bool
todo_put(struct service *s, struct todo *t, unsigned space, uintptr_t va, uintptr_t end)
{
	bool taken;

	pthread_mutex_lock(&s->cmd_lock);
	taken = t->n < CMD_MAX;
	if (taken) {
		t->space[t->n] = (uint16_t)space;
		t->range[t->n].va = va;
		t->range[t->n++].end = end;
	}
	pthread_mutex_unlock(&s->cmd_lock);
	if (taken)
		s->io->ops->kick(s->io);
	return taken;
}

bool
todo_look(struct service *s, struct todo *t, unsigned *space, uintptr_t *va, uintptr_t *end)
{
	bool any;

	pthread_mutex_lock(&s->cmd_lock);
	any = t->n > 0;
	if (any) {
		*space = t->space[0];
		*va = t->range[0].va;
		*end = t->range[0].end;
	}
	pthread_mutex_unlock(&s->cmd_lock);
	return any;
}

/* Only the service takes ranges out, and callers only append: the first is still the one that it asked for. */
void
todo_go_on(struct service *s, struct todo *t, uintptr_t va, bool over)
{
	pthread_mutex_lock(&s->cmd_lock);
	assert(t->n > 0);
	t->range[0].va = va;
	if (over) {
		t->n--;
		for (unsigned i = 0; i < t->n; i++) {
			t->range[i] = t->range[i + 1];
			t->space[i] = t->space[i + 1];
		}
	}
	pthread_mutex_unlock(&s->cmd_lock);
}

void
services_kick(struct pager *p, const struct service *except)
{
	workers_kick(p);
	for (unsigned i = 0; i < p->nservices; i++) {
		struct service *s = p->service[i];

		if (s != NULL && s != except && s->io != NULL &&
		    atomic_load_explicit(&s->waiting, memory_order_relaxed) > 0)
			s->io->ops->kick(s->io);
	}
}

void
services_press(struct pager *p)
{
	atomic_store_explicit(&p->pageout_on, true, memory_order_relaxed);
	for (unsigned i = 0; i < p->nservices; i++) {
		if (p->service[i] != NULL && p->service[i]->io != NULL)
			p->service[i]->io->ops->kick(p->service[i]->io);
	}
}

static void
request_done(struct service *s, struct request *req)
{
	bounce_end(s->p, req);
	if (req->source != NULL) {
		source_done(s, req);
		return;
	}
	PROBE4(swap__done, req->kind == REQ_PAGEOUT, req->io.slot, req->n, req->io.result);
	if (req->kind == REQ_PAGEIN)
		pagein_done(s, req);
	else if (req->back)
		tier_written(s, req);
	else
		pageout_done(s, req);
}

/*
 * What streams want next goes to the disk before the rest of what has come from it is looked at, during which it would stand still; unless a thread waits for
 * some of that.
 */
static void
early_between(struct service *s, const struct swap_io *rest)
{
	for (; rest != NULL; rest = rest->next) {
		if (rest->urgent)
			return;
	}
	if (s->worker || atomic_load_explicit(&s->early.n, memory_order_relaxed) == 0 ||
	    atomic_load_explicit(&s->stop, memory_order_relaxed))
		return;
	(void)early_serve(s);
	s->io->ops->flush(s->io);
}

PROBE_ONCE void
service_complete(struct service *s, struct swap_io *done)
{
	while (done != NULL) {
		struct request *req = done->owner;

		done = done->next;
		request_done(s, req);
		if (done != NULL)
			early_between(s, done);
	}
}

/* True if there may be more. */
static bool
serve(struct service *s)
{
	for (unsigned round = 0; round < FAULT_ROUNDS; round++) {
		struct pmap *pm = s->p->pmap;
		const unsigned n = pm->ops->faults(pm, s->id, s->msg, FAULT_BATCH);
		const uint64_t t0 = n > 0 ? now_ns() : 0;

		s->events_stand = s->p->foreign != NULL && foreign_waiting(s->p->foreign);
		if (s->events_stand)
			foreign_call(s->p->foreign);
		for (unsigned i = 0; i < n; i++)
			fault_handle(s, s->msg[i].shard, s->msg[i].va, s->msg[i].write,
				     s->msg[i].wp, t0);
		if (n < FAULT_BATCH)
			return false;
	}
	return true;
}

void
service_step(struct service *s, int64_t timeout_ns)
{
	struct io_events ev;
	bool look;

	if (s->more)
		timeout_ns = 0;
	else if ((s->nparked > 0 || s->parked_overflow || s->demand_waits || s->push_waits ||
		  s->early_waits || s->willneed_waits || s->events_stand) &&
		 (timeout_ns < 0 || timeout_ns > PARKED_NS))
		timeout_ns = PARKED_NS;
	s->io->ops->wait(s->io, timeout_ns, &ev);
	pulse_answer(&s->pulse);

	look = ev.completed != NULL || ev.kicked;
	service_complete(s, ev.completed);
	if (s->nhanded > 0)
		source_completions(s);
	if (ev.readable || s->more || s->events_stand)
		s->more = serve(s);
	if (s->nparked > 0 || s->parked_overflow) {
		if (look || now_ns() - s->parked_look >= PARKED_NS)
			fault_unpark(s);
	}
	pagein_commands(s);
	source_commands(s);
	demand_serve(s);
	if (bounce_wanted(s->p))
		bounce_make(s->p);
	else
		bounce_fit(s->p);
	if (pageout_step(s))
		s->more = true;
	if (log_waits(&s->p->log))
		log_flush(&s->p->log);
	source_bury(s->p);
}

void
service_run(struct service *s)
{
	while (!atomic_load_explicit(&s->stop, memory_order_acquire))
		service_step(s, -1);
	demand_end(s);
	/* What is in flight belongs to us until it is done; what the program's pagers read nobody needs any more. */
	source_abandon(s);
	while (s->io->inflight > 0 || s->nhanded > 0) {
		struct io_events ev;

		s->io->ops->wait(s->io, -1, &ev);
		service_complete(s, ev.completed);
		if (s->nhanded > 0)
			source_completions(s);
	}
}

/* --- the pager --- */

uint64_t
pager_meta_max(struct pager *p, size_t limit)
{
	const struct wired_array *table = &p->pages.table;
	/* That of pages grows as they come, and stays. */
	const size_t fixed = p->meta_fixed + p->pages.ghosts.committed +
			     MAX(limit / PAGE_SIZE * sizeof(struct page), table->committed) +
			     FRAMES_MIN * PAGE_SIZE + 8 * SLAB_SIZE;

	return limit > fixed ? limit - fixed : 0;
}

int
pager_init(struct pager *p, size_t most)
{
	static const _Alignas(64) char zeros[PAGE_SIZE];
	size_t max_pages;
	int r;

	p->zero_hash = hash_page(p->hash_seed, zeros);
	object_zones_init(&p->zones, &p->arena);
	map_zones_init(&p->map_zones, &p->arena);
	map_init(&p->map, &p->map_zones);
	anon_waitqs_init(&p->waitqs);
	pthread_mutex_init(&p->pageout_lock, NULL);
	bounce_init(&p->bounce);
	p->stage_batch = CLUSTER_MAX;
	atomic_store(&p->written, true);

	/* Orphans and rescues aside, a page has a frame; so this many always suffice. */
	max_pages = most / PAGE_SIZE + ((size_t)MAX_SERVICES * NWRITES + WORKERS_MAX) * CLUSTER_MAX;
	r = pages_init(&p->pages, &p->arena, max_pages, p->budget.limit / PAGE_SIZE,
		       most / PAGE_SIZE, p->policy);
	if (r < 0)
		goto fini_map;
	r = frames_init(&p->frames, &p->arena, p->pmap->nstage);
	if (r < 0)
		goto fini_pages;

	/* What metadata may grow to: the limit less what is there now, the page table and a working set. */
	p->meta_fixed = arena_bytes(&p->arena) - p->pages.ghosts.committed;
	resv_init(&p->resv_meta, pager_meta_max(p, p->budget.limit), NULL, NULL);
	return 0;

fini_pages:
	pages_fini(&p->pages);
fini_map:
	bounce_fini(p);
	pthread_mutex_destroy(&p->pageout_lock);
	anon_waitqs_fini(&p->waitqs);
	map_fini(&p->map);
	map_zones_fini(&p->map_zones);
	object_zones_fini(&p->zones);
	return r;
}

void
pager_fini(struct pager *p)
{
	tier_fini(p);
	resv_give(&p->resv_meta, p->tallies.n * p->tallies.item);
	resv_fini(&p->resv_meta);
	frames_fini(&p->frames);
	pages_fini(&p->pages);
	bounce_fini(p);
	pthread_mutex_destroy(&p->pageout_lock);
	anon_waitqs_fini(&p->waitqs);
	map_fini(&p->map);
	if (p->space_at.base != NULL)
		wired_array_fini(&p->space_at);
	if (p->tallies.base != NULL)
		wired_array_fini(&p->tallies);
	map_zones_fini(&p->map_zones);
	object_zones_fini(&p->zones);
}

struct census {
	size_t core, swap, zip, lost;
};

static void
count_anons(struct pages *pages, struct object *o, struct census *c)
{
	uint64_t at = 0;
	struct leaf *leaf;

	(void)pages;
	while ((leaf = object_next_leaf(o, at)) != NULL) {
		for (unsigned i = 0; i < LEAF_SLOTS; i++) {
			const struct anon *an = leaf_anon(leaf, i);

			if (an == NULL)
				continue;
			assert(atomic_load(&an->bits) == 0);
			/* Nobody writes to what shows through, unless it is somebody's source. */
			assert(o->nshadows == 0 || o->source != NULL || !anon_in_core(an) ||
			       page_at(pages, an->loc)->state != PAGE_MAPPED);
			switch (atomic_load(&an->kind)) {
			case ANON_CORE:
			case ANON_COPY:
				c->core++;
				break;
			case ANON_SWAP:
				c->swap++;
				break;
			case ANON_ZIP:
				c->zip++;
				break;
			default:
				c->lost++;
				break;
			}
		}
		at = leaf->base + LEAF_SLOTS;
		pthread_mutex_unlock(&leaf->lock);
	}
}

/* True if a wired entry of the map maps the page. */
static bool
wires(const struct map *m, const struct page *pg)
{
	const uint64_t index = pg->leaf->base + pg->index;

	for (const struct map_entry *e = m->wired > 0 ? m->first : NULL; e != NULL; e = e->next) {
		if (e->wired > 0 && e->object == pg->leaf->object && e->offset <= index &&
		    index - e->offset < (e->end - e->start) >> PAGE_SHIFT)
			return true;
	}
	return false;
}

static bool
is_wired(const struct pager *p, const struct page *pg)
{
	bool is = wires(&p->map, pg);

	for (const struct space *sp = p->spaces; sp != NULL && !is; sp = sp->next)
		is = wires(&sp->map, pg);
	return is;
}

/* Every page of a wired entry is on WIRED, and no other.  In a pool it may be one of several entries. */
static void
check_wired(struct pager *p)
{
	size_t n = p->map.wired, wired = page_count(&p->pages, Q_WIRED);
	uint64_t foreign = 0;
	size_t loose = 0; /* wired pages of no wired entry */
	bool pools = false, others = false;

	for (const struct map_entry *e = map_first_from(&p->map, 0); e != NULL; e = e->next)
		pools |= e->wired > 0 && e->object->pool != 0;
	for (const struct space *sp = p->spaces; sp != NULL; sp = sp->next) {
		n += sp->map.wired;
		others |= sp->map.wired > 0;
	}
	assert(n == atomic_load(&p->nwired));
	/* A wired page of a named object that the program itself discards is forgotten until it is touched, and read anew. */
	for (unsigned i = 0; pager_server(p, i) != NULL; i++)
		foreign += atomic_load(&pager_server(p, i)->count[C_FOREIGN]);
	/* And what another process punches out of its pool itself is gone. */
	assert(foreign > 0 || n == wired || (pools && wired < n && wired > 0) ||
	       (others && wired < n));
	for (size_t i = 0; i < p->pages.table.n && wired > 0; i++) {
		const struct page *pg = page_at(&p->pages, (pageno_t)i);

		if (pg->state != PAGE_FREE && page_queue_locked(pg) == Q_WIRED)
			loose += !is_wired(p, pg);
	}
	assert(loose == 0);
	(void)loose;
	(void)n;
	(void)foreign;
	(void)pools;
	(void)others;
}

void
pager_check(struct pager *p)
{
	struct census c = { 0 };
	size_t staged, mapped, slots = 0, anons;

	assert(!p->frozen);
	map_check(&p->map);
	pages_check(&p->pages);
	frames_check(&p->frames);
	swap_area_check(&p->swap);
	object_zones_check(&p->zones);
	for (struct object *o = p->objects; o != NULL; o = o->next) {
		object_check(o);
		count_anons(&p->pages, o, &c);
	}

	/* At rest everything is in a queue, and every anon in core has exactly one page. */
	mapped = p->pages.count[PAGE_MAPPED];
	staged = p->pages.count[PAGE_STAGED];
	anons = zone_count(&p->zones.anon);
	assert(p->pages.count[PAGE_TRANSIT] == 0 && p->pages.count[PAGE_LAUNDRY] == 0);
	assert(atomic_load(&p->laundering) == 0);
	assert(c.core == mapped + staged);
	assert(c.swap == atomic_load(&p->nswapped));
	assert(c.lost == atomic_load(&p->nlost));
	assert(c.zip == (p->tier.kind != UP_COMPRESS_NONE ? atomic_load(&p->tier.nzipped) : 0));
	assert(c.core + c.swap + c.zip + c.lost == anons);
	if (p->tier.kind != UP_COMPRESS_NONE)
		zpool_check(&p->tier.pool);

	/* A slot is used by an anon in swap, or is the clean copy of a page in core. */
	for (size_t i = 0; i < p->pages.table.n; i++) {
		const struct page *pg = page_at(&p->pages, (pageno_t)i);

		if (pg->state == PAGE_FREE)
			continue;
		assert(pg->anon != NULL && pg->anon->loc == i);
		if (pg->slot != SLOT_NONE)
			slots++;
	}
	assert(p->swap.nused == c.swap + slots);
	check_wired(p);

	bounce_check(p);
	/* Every physical page is charged once. */
	assert(frames_nfree(&p->frames) + staged + runmap_nfree(&p->frames.holes) == p->frames.n);
	assert(atomic_load(&p->budget.used) ==
	       p->overhead + arena_bytes(&p->arena) + tier_bytes(p) + p->bounce.bytes +
		       ((frames_nfree(&p->frames) + staged + mapped) << PAGE_SHIFT));
	assert(atomic_load(&p->budget.used) <= p->budget.limit);
	(void)anons;
	(void)slots;
	(void)staged;
	(void)mapped;
}
