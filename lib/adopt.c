/* SPDX-License-Identifier: BSD-2-Clause */
/* adopt.c: see adopt.h; the parts of it are in adoption.h. */
#include "adoption.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define PAGE_OUT_MS 2000u
#define MORE_MIN ((size_t)16 << 20)

/* --- the switch --- */

/* I/O of the predecessor may still be under way: what it reads into goes, and what it writes to is not used. */
static int
quarantine(struct adoption *a)
{
	struct pager *p = &a->rt->p;
	const struct page *page = past_at(a, a->root->pages, sizeof *page);

	for (size_t i = 0; i < a->nknown; i++) {
		if (page[i].state == PAGE_LAUNDRY && page[i].slot != SLOT_NONE &&
		    swap_claim(&p->swap, page[i].slot)) {
			swap_retire(&p->swap, page[i].slot);
			resv_shrink(&p->resv_swap, 1);
		}
	}
	for (size_t i = 0; i < a->root->nstage; i++) {
		if (has_bit(a->frames, i) && runmap_is_free(&p->frames.holes, i) &&
		    fallocate(p->store->stage, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      (off_t)i << PAGE_SHIFT, (off_t)PAGE_SIZE) < 0)
			return -errno;
	}
	return 0;
}

/* Its process runs there again, so to speak: it is stopped where it has to be.  => map.change is held, as for answer() */
static void
attach(struct adoption *a, struct returned *re)
{
	struct pager *p = &a->rt->p;

	space_link(p, re->sp);
	/* It has what its child is to map, or asks again: nothing may be stored before it has forked. */
	if (re->sp->coming != 0) {
		re->sp->thaw_at = now_ns() + (uint64_t)RETURN_MS * 1000000;
		re->sp->returned = true;
		space_freeze(p, re->sp);
	}
	if (re->guest) {
		if (!re->failed) {
			/* A copy stays here until then: the last one that is closed is what lets its pages be zeros. */
			const int uffd = fcntl(re->uffd, F_DUPFD_CLOEXEC, 0);

			re->failed = uffd < 0 || guest_resume(a->rt, re->sp, uffd, re->removed) < 0;
			if (re->failed)
				a->from->orphan(a->from->ctx, re->sp->id, re->uffd);
			else
				close(re->uffd);
		}
		if (re->removed >= 0)
			close(re->removed);
		/* Nothing of it is taken out before its keeper has ended it. */
		if (re->failed)
			pmap_uffd_guest_leave(p->pmap, re->sp->shard, true);
		re->sp->attached = !re->failed;
		return;
	}
	if (re->uffd >= 0 && !re->failed)
		re->failed = p->pmap->ops->space_attach(p->pmap, re->sp->shard, re->uffd,
							atomic_load(&re->sp->pid)) < 0;
	else if (re->uffd >= 0)
		close(re->uffd);
	re->sp->attached = re->uffd >= 0 && !re->failed;
}

static void
answer(struct adoption *a, struct returned *re)
{
	struct msg again = { .type = MSG_REGION, .status = -ERESTART };
	struct pager *p = &a->rt->p;
	struct space *sp = re->sp;
	struct client *c = sp->client;
	struct serve_info info;

	/* Faults that were read and not answered are raised again. */
	for (const struct map_entry *e = sp->map.first; sp->attached && e != NULL; e = e->next)
		p->pmap->ops->wake(p->pmap, e->shard, e->start, (e->end - e->start) >> PAGE_SHIFT);
	/* Also of one that is about to end, but if it is a guest nobody ends it. */
	if (c != NULL && !(re->guest && re->failed) && serve_info(a->rt, sp->id, &info) == 0)
		a->from->client(a->from->ctx, sp->id, &info,
				c->account->group != NULL ? c->account->group->name : "");
	if (re->failed && sp->sock < 0)
		keeper_end(p, sp);
	else if (re->failed)
		shutdown(sp->sock, SHUT_RDWR); /* its keeper hears that */
	if (re->failed)
		return;
	if (re->guest)
		return;
	/* What it has asked may have been taken out of the socket, or answered: nobody knows.  If its queue is full, that is in there. */
	(void)msg_send_by(sp->sock, &again, NULL, 0, 0);
	again.type = MSG_RETURN;
	if (c != NULL)
		(void)msg_send_by(sp->sock, &again, NULL, 0, 0);
}

/* What is in a pool's file and nobody's. */
static void
drop_unclaimed(struct adoption *a, const struct heir *h)
{
	struct pager *p = &a->rt->p;

	for (uint64_t i = 0; h->there != NULL && i < h->o->npages; i++) {
		if (h->there[i / 8] == 0) {
			i |= 7;
			continue;
		}
		if (has_bit(h->there, i))
			range_discard(p, PMAP_POOL, h->o->pool + (i << PAGE_SHIFT), 1);
	}
}

static void
release(struct adoption *a)
{
	struct pager *p = &a->rt->p;
	struct heir *h;
	struct returned *re;
	sigset_t signals;

	while ((h = a->heirs) != NULL) {
		a->heirs = h->next;
		change_begin(p, &signals);
		if (!h->handle)
			object_unref(h->o);
		change_end(p, &signals);
		if (h->handle)
			up_object_unref((struct up_object *)h->o);
		free(h->there);
		free(h);
	}
	while ((re = a->spaces) != NULL) {
		a->spaces = re->next;
		free(re);
	}
	for (size_t i = 0; i < a->accounts.room; i++)
		account_unref(a->accounts.slot[i].now);
	free(a->objects.slot);
	free(a->anons.slot);
	free(a->accounts.slot);
	free(a->pages.slot);
	free(a->known);
	free(a->frames);
	free(a->zpool.units);
}

static bool
is_unsound(const struct adoption *a, const struct object *o)
{
	for (; o != NULL; o = o->backing) {
		for (const struct heir *h = a->heirs; h != NULL; h = h->next) {
			if (h->unsound && h->o == o)
				return true;
		}
	}
	return false;
}

/* Whoever sees a page of an object of which nobody knows what it holds, or could ask for one. */
static void
fail_unsound(struct adoption *a)
{
	struct server *sv = a->rt->server;
	struct owner **link = &sv->owners, *owner;

	while ((owner = *link) != NULL) {
		if (!is_unsound(a, owner->object)) {
			link = &owner->next;
			continue;
		}
		log_line(&a->rt->p.log, UP_LOG_ERROR, "re-attach: the object \"%s\" is no more",
			 owner->name);
		*link = owner->next;
		up_object_remove(a->rt, owner->name);
		zone_free(&sv->owner_zone, owner);
	}
	for (struct returned *re = a->spaces; re != NULL; re = re->next) {
		const struct client *c = re->sp->client;
		const struct handle *held = c != NULL ? c->object.base : NULL;
		bool bad = false;

		for (const struct map_entry *e = re->sp->map.first; e != NULL && !bad; e = e->next)
			bad = is_unsound(a, e->object);
		for (size_t i = 0; held != NULL && i < c->object.n && !bad; i++)
			bad = is_unsound(a, atomic_load(&held[i].object));
		if (bad && !re->failed)
			adopt_failed(a, re, -EINVAL);
	}
}

/* Everything but the switch.  => nobody pages out, so that the predecessor's store is right until then */
static int
read_all(struct adoption *a)
{
	const struct store_root *root = a->root;
	struct up_runtime *rt = a->rt;
	uint64_t tree, backing, offset;
	bool sound = true;
	int r = past_pages(a);

	if (r == 0)
		r = past_frames(a);
	if (r == 0)
		r = past_zpool(a);
	if (r == 0)
		r = past_each(a, &rt->server->file_zone, root->file_zone, adopt_file);
	if (r == 0)
		r = past_each(a, &rt->server->owner_zone, root->owner_zone, adopt_owner);
	if (r == 0)
		r = past_each(a, &rt->p.space_zone, root->space_zone, adopt_space);
	for (struct heir *h = a->heirs; h != NULL && r == 0; h = h->next) {
		adopt_shape(a, h->was, adopt_then_of(a, h->was), &tree, &backing, &offset);
		r = adopt_pages(a, h, tree, h->was->height, 0);
		if (r == -EINVAL) {
			h->unsound = true;
			sound = false;
			r = 0;
		}
		if (r < 0)
			log_line(&rt->p.log, UP_LOG_ERROR, "re-attach: object %llu: %s",
				 (unsigned long long)h->was->id, strerrorname_np(-r));
	}
	if (r == 0 && !sound)
		fail_unsound(a);
	if (r == 0)
		r = quarantine(a);
	for (const struct heir *h = a->heirs; h != NULL && r == 0; h = h->next)
		if (!h->o->guest)
			drop_unclaimed(a, h);
	if (r == 0 && a->zpool.units != NULL)
		zpool_settle(&rt->p.tier.pool, &a->zpool);
	if (r == 0)
		adopt_wired(a);
	for (const struct returned *re = a->spaces; re != NULL && r == 0; re = re->next)
		r = re->guest ? guests_start(rt) : 0;
	adopt_forget_files(a);
	rt->p.next_object = MAX(rt->p.next_object, a->max_object);
	rt->p.next_serial = MAX(rt->p.next_serial, a->max_serial);
	return r;
}

static int
adopt(struct up_runtime *rt, int store, const struct store_root *root,
      const struct adopt_from *from)
{
	struct adoption a = { .rt = rt, .from = from, .fd = store, .root = root, .last = &a.heirs };
	struct pager *p = &rt->p;
	const uint64_t t0 = now_ns();
	sigset_t signals;
	void *base = mmap(NULL, root->len, PROT_READ, MAP_SHARED | MAP_NORESERVE, store, 0);
	size_t n = 0;
	int r;

	if (base == MAP_FAILED)
		return -errno;
	a.base = base;
	pthread_mutex_lock(&p->pageout_lock);
	p->unattached = true;
	r = read_all(&a);
	if (r == 0)
		store_complete(p->store, rt, root->wanted);
	munmap(base, root->len);
	if (r < 0) {
		p->unattached = false;
		pthread_mutex_unlock(&p->pageout_lock);
		return r;
	}
	/* Before anybody can ask for something new, whose name might be an old one. */
	from->settled(from->ctx);
	/* All of them before a page is taken out: who is not attached is not kept from writing to it. */
	change_begin(p, &signals);
	for (struct returned *re = a.spaces; re != NULL; re = re->next, n++)
		attach(&a, re);
	p->unattached = false;
	pthread_mutex_unlock(&p->pageout_lock);
	for (struct returned *re = a.spaces; re != NULL; re = re->next)
		answer(&a, re);
	change_end(p, &signals);
	keeper_kick(rt->forks);
	log_line(
		&p->log, a.lost > 0 ? UP_LOG_ERROR : UP_LOG_INFO,
		"re-attached %zu processes in %llu ms: pages in place %zu, staged %zu, compressed %zu, in swap %zu, "
		"on their way %zu, lost %zu",
		n, (unsigned long long)((now_ns() - t0) / 1000000), a.resident, a.staged,
		a.compressed, a.swapped, a.dropped, a.lost);
	release(&a);
	return 0;
}

/* --- a runtime that can be taken over --- */

struct foundation {
	struct backend backend;
	struct store *store;
	const struct adopt_from *from; /* NULL: there is no predecessor */
	frame_t nstage;		       /* that it had */
};

static int
create_pmap(void *ctx, struct pmap **pm, frame_t nstage, unsigned nshards, uint64_t mask,
	    const struct logger *log)
{
	const struct foundation *f = ctx;
	struct store *s = f->store;
	int r = 0;

	s->stage = f->from != NULL ? f->from->take(f->from->ctx, "stage")
				   : memfd_create("uffd-pager-stage", MFD_CLOEXEC);
	if (s->stage < 0)
		return f->from != NULL ? -EBADF : -errno;
	nstage = MAX(nstage, f->nstage);
	if (ftruncate(s->stage, (off_t)(nstage + 1) << PAGE_SHIFT) < 0)
		r = -errno;
	if (r == 0)
		r = pmap_uffd_create_on(pm, s->stage, nstage, nshards, mask, log);
	return r;
}

static int
open_swap(void *ctx, struct swap_area *s, struct arena *arena, const struct up_config *cfg,
	  const struct logger *log)
{
	const struct foundation *f = ctx;
	int fd, r;

	if (f->from == NULL)
		return swap_area_open_shared(s, arena, cfg->swap_path, cfg->swap_fd, cfg->swap_size,
					     cfg->feature_mask, false, log);
	fd = f->from->take(f->from->ctx, "swap");
	r = swap_area_open_shared(s, arena, fd >= 0 ? NULL : cfg->swap_path, fd, cfg->swap_size,
				  cfg->feature_mask, true, log);
	if (fd >= 0)
		close(fd);
	return r;
}

/* How many entries of its table the predecessor had, and who wrote them. */
static int
look_at_entries(struct tier_place *place, int fd, const struct store_root *root)
{
	const uint64_t at = root->entries - root->base, page = at & ~(uint64_t)PAGE_MASK;
	struct zpool_past past = { .entries = NULL };
	off_t end;
	size_t len;
	char *map;

	if (root->entries % 8 != 0 || at > root->len || root->nentries > ZREF_NONE)
		return -EINVAL;
	/* It grows at its end. */
	end = lseek(fd, (off_t)at, SEEK_HOLE);
	past.n = end > (off_t)at ? (size_t)(end - (off_t)at) / ZENTRY_BYTES : 0;
	past.n = MIN(past.n, root->nentries);
	if (past.n == 0)
		return 0;
	len = (size_t)(at - page) + past.n * ZENTRY_BYTES;
	map = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, (off_t)page);
	if (map == MAP_FAILED)
		return -errno;
	past.entries = map + (at - page);
	if (zpool_past_used(&past, &place->zstd) > 0)
		place->entries = past.n;
	munmap(map, len);
	return 0;
}

/*
 * Whether the predecessor has compressed pages: then there is a tier, whatever is configured now, and its pool is the predecessor's.  It is taken in any
 * case, since what is left is dropped by its name, which may be another pool's by then.
 */
static int
look_at_zpool(struct store *s, int store, const struct store_root *root,
	      const struct adopt_from *from)
{
	const int fd = from->take(from->ctx, "zpool");
	int r = root->entries != 0 ? look_at_entries(&s->zplace, store, root) : 0;

	if (r == 0 && s->zplace.entries > 0) {
		s->zpool = fd;
		return fd >= 0 ? 0 : -EBADF;
	}
	if (fd >= 0)
		close(fd);
	return r;
}

static size_t
more_at_most(size_t limit)
{
	return (limit / 16 + MORE_MIN) & ~PAGE_MASK;
}

/*
 * It may be configured to need more for itself: more threads, another codec, the tables of a compressed tier.  The predecessor's memory may be full to
 * the last page, and the programs write to what is mapped, attached or not: nothing can be taken from them before they are served.  So the budget is
 * larger by that until then.
 */
static void
make_room(struct up_runtime *rt, const struct store_root *root)
{
	const size_t own = store_own(rt), more = own > root->own ? own - root->own : 0;

	if (more > 0)
		runtime_raise_limit(rt, root->limit + MIN(round_up(more, PAGE_SIZE),
							  more_at_most(root->limit)));
}

/* They are served.  If that is not possible now, the limit stays, which is in the log, and the next one tries again. */
static void
end_room(struct up_runtime *rt, const struct up_config *cfg, const struct store_root *root)
{
	if (rt->memory_limit > root->wanted)
		(void)up_runtime_set_limit(rt, root->wanted, PAGE_OUT_MS);
	rt->memory_most = MAX((size_t)cfg->memory_limit_max, rt->memory_limit);
}

int
adopt_look(int store)
{
	struct store_root root;

	return past_look(store, &root);
}

int
adopt_create(struct up_runtime **rt, const struct up_config *cfg, struct store *s,
	     const struct adopt_from *from, void (*ended)(void *ctx, uint64_t id, bool guest),
	     void *ctx, bool *adopted)
{
	const struct logger log = { .fn = cfg->log, .ctx = cfg->log_ctx };
	/* The runtime refers to it as long as it is there, and there is one of each. */
	static struct foundation f;
	struct up_config as_it_was = *cfg;
	struct store_root root;
	int r = 0, store = from != NULL ? from->take(from->ctx, "store") : -1;

	*adopted = store >= 0;
	f = (struct foundation){ .backend = *runtime_backend(), .store = s };
	f.backend.ctx = &f;
	f.backend.memory = &store_ops;
	f.backend.pmap_create = create_pmap;
	f.backend.swap_open = open_swap;
	f.backend.store = s;
	if (*adopted) {
		r = past_look(store, &root);
		if (r == 0)
			r = look_at_zpool(s, store, &root, from);
		f.from = from;
		f.nstage = (frame_t)root.nstage;
		f.backend.hash_seed = root.hash_seed;
		/* What is in memory fits the limit that it had last, but for what this runtime needs more for itself. */
		as_it_was.memory_limit = root.limit;
		as_it_was.memory_limit_max =
			MAX(cfg->memory_limit_max, root.limit + more_at_most(root.limit));
	}
	if (r == 0)
		r = runtime_create(rt, &as_it_was, &f.backend);
	if (r == 0)
		r = serve_start(*rt, ended, ctx);
	if (r == 0 && *adopted)
		make_room(*rt, &root);
	if (r == 0 && *adopted)
		r = adopt(*rt, store, &root, from);
	else if (r == 0)
		store_complete(s, *rt, (*rt)->memory_limit);
	f.from = NULL;
	if (r == 0 && *adopted)
		end_room(*rt, cfg, &root);
	if (*adopted && r < 0)
		log_line(&log, UP_LOG_ERROR,
			 "what the last process has left can not be taken over: %s",
			 r == -EPROTO ? "it was another version of this program"
				      : strerrorname_np(-r));
	if (store >= 0)
		close(store);
	return r;
}
