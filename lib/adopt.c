/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * adopt.c: see adopt.h.
 *
 * `then` are addresses of the process that was; they are looked up in a mapping of its store (old()), and never believed: a
 * pointer that leads out of it is no pointer.
 */
#include "adopt.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/hash.h"
#include "client.h"
#include "pager/source.h"

#define ENTRIES_MAX ((size_t)1 << 24)
#define DEPTH_MAX 4096u
#define LOST_TOLD 10u
#define PAGE_OUT_MS 2000u
#define MORE_MIN ((size_t)16 << 20)

/* From an address then to whatever it is now. */
struct table {
	struct {
		uint64_t then;
		void *now;
	} * slot;
	size_t n, room; /* a power of two; at most half full */
};

/* A page of the predecessor, by its anon. */
struct known {
	const struct page *page; /* in the old store */
	struct known *next;	 /* of the same anon */
	pageno_t no;
};

/* An object that there is again. */
struct heir {
	struct heir *next;
	struct object *o; /* one reference */
	const struct object *was;
	uint64_t pool_then; /* 0: none */
	uint8_t *there;	    /* a bit a page: it is in the pool's file, and nobody's yet */
	bool handle;	    /* the reference is one of the program's */
};

/* A space that is there again. */
struct returned {
	struct returned *next;
	struct space *sp;
	const struct space *was;
	int uffd;
	bool failed; /* it is to end */
};

struct adoption {
	struct up_runtime *rt;
	const struct adopt_from *from;
	const struct store_root *root;
	const char *base; /* the old store, */
	int fd;		  /* and its descriptor */
	struct table objects, anons, accounts, pages;
	struct known *known;
	size_t nknown;
	struct heir *heirs, **last; /* what is mapped comes before what is beneath it */
	struct returned *spaces;
	uint8_t *frames; /* a bit a frame: it has content then */
	uint64_t max_object, max_serial;
	struct zpool_past zpool; /* no units: there is none */
	size_t resident, staged, compressed, swapped, lost, dropped;
};

/* --- small things --- */

static bool
bit(const uint8_t *map, size_t i)
{
	return (map[i / 8] >> i % 8 & 1) != 0;
}

static void
set_bit(uint8_t *map, size_t i, bool to)
{
	const uint8_t mask = (uint8_t)(1u << i % 8);

	map[i / 8] = (uint8_t)(to ? map[i / 8] | mask : map[i / 8] & ~mask);
}

static size_t
hash_of(uint64_t then)
{
	return (size_t)((then >> 4) * UINT64_C(0x9e3779b97f4a7c15) >> 20);
}

static void *
table_get(const struct table *t, uint64_t then)
{
	for (size_t i = t->room > 0 ? hash_of(then) & (t->room - 1) : 0;
	     t->room > 0 && t->slot[i].then != 0; i = (i + 1) & (t->room - 1)) {
		if (t->slot[i].then == then)
			return t->slot[i].now;
	}
	return NULL;
}

static int
table_put(struct table *t, uint64_t then, void *now)
{
	size_t i;

	if (2 * (t->n + 1) > t->room) {
		struct table more = { .room = MAX(t->room * 2, (size_t)1024) };

		more.slot = calloc(more.room, sizeof more.slot[0]);
		if (more.slot == NULL)
			return -ENOMEM;
		for (i = 0; i < t->room; i++) {
			if (t->slot[i].then != 0)
				table_put(&more, t->slot[i].then, t->slot[i].now);
		}
		free(t->slot);
		*t = more;
	}
	for (i = hash_of(then) & (t->room - 1); t->slot[i].then != 0 && t->slot[i].then != then;)
		i = (i + 1) & (t->room - 1);
	t->n += t->slot[i].then == 0;
	t->slot[i].then = then;
	t->slot[i].now = now;
	return 0;
}

/* What was at an address; NULL: it is none, or not aligned. */
static const void *
old(const struct adoption *a, uint64_t then, size_t size)
{
	if (then < a->root->base || then % 8 != 0 || then - a->root->base > a->root->len - size)
		return NULL;
	return a->base + (then - a->root->base);
}

static uint64_t
then_of(const void *p)
{
	return (uint64_t)(uintptr_t)p;
}

/* --- reading --- */

static int
look(int store, struct store_root *root)
{
	if (pread(store, root, sizeof *root, 0) != (ssize_t)sizeof *root ||
	    memcmp(root->magic, STORE_MAGIC, sizeof root->magic) != 0 || !root->complete)
		return -EINVAL;
	return root->version == STORE_VERSION && root->sizes == store_sizes() ? 0 : -EPROTO;
}

/* All pages that are somebody's, by their anons. */
static int
find_pages(struct adoption *a)
{
	const struct page *page = old(a, a->root->pages, a->root->npages * sizeof(struct page));
	const off_t from = (off_t)(a->root->pages - a->root->base);
	const int fd = a->fd;
	off_t end = lseek(fd, from, SEEK_HOLE);
	size_t n;
	int r = 0;

	if (page == NULL)
		return -EINVAL;
	/* The table grows at its end. */
	n = end > from ? (size_t)(end - from) / sizeof(struct page) : 0;
	n = MIN(n, a->root->npages);
	a->nknown = n;
	a->known = calloc(MAX(n, 1), sizeof a->known[0]);
	if (a->known == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < n && r == 0; i++) {
		struct known *k = &a->known[i];

		if (page[i].state == PAGE_FREE || page[i].anon == NULL)
			continue;
		k->page = &page[i];
		k->no = (pageno_t)i;
		k->next = table_get(&a->pages, then_of(page[i].anon));
		r = table_put(&a->pages, then_of(page[i].anon), k);
	}
	return r;
}

/* Which frames have content. */
static int
find_frames(struct adoption *a)
{
	const int fd = a->rt->p.store->stage;
	const off_t end = (off_t)(a->root->nstage << PAGE_SHIFT);
	off_t at = 0, hole;

	a->frames = calloc(1, a->root->nstage / 8 + 1);
	if (a->frames == NULL)
		return -ENOMEM;
	while ((at = lseek(fd, at, SEEK_DATA)) >= 0 && at < end) {
		hole = lseek(fd, at, SEEK_HOLE);
		if (hole <= at)
			return -EIO;
		for (; at < MIN(hole, end); at += (off_t)PAGE_SIZE)
			set_bit(a->frames, (size_t)at >> PAGE_SHIFT, true);
	}
	return 0;
}

/* The pool's memory is this one's already, as it is; what its table says is read with the anons. */
static int
find_zpool(struct adoption *a)
{
	struct pager *p = &a->rt->p;
	const int fd = p->store->zpool;
	const off_t end = (off_t)p->store->zlen;
	off_t at = 0, data, hole;

	if (p->store->zplace.entries == 0)
		return 0;
	a->zpool.n = p->store->zplace.entries;
	a->zpool.entries = old(a, a->root->entries, a->zpool.n * ZENTRY_BYTES);
	a->zpool.slide = a->root->slide;
	a->zpool.units = calloc(1, zpool_past_units(&p->tier.pool));
	if (a->zpool.entries == NULL || a->zpool.units == NULL)
		return a->zpool.entries == NULL ? -EINVAL : -ENOMEM;
	for (; at < end && (data = lseek(fd, at, SEEK_DATA)) >= 0; at += (off_t)ZSEG_SIZE) {
		char *const seg = p->tier.pool.base + data / (off_t)ZSEG_SIZE * (off_t)ZSEG_SIZE;
		int r = 0;

		at = seg - p->tier.pool.base;
		hole = lseek(fd, at, SEEK_HOLE);
		/* A segment has its pages at its front: others are not in use yet, or not any more. */
		hole = MIN(MAX(hole, at), at + (off_t)ZSEG_SIZE);
		if (hole > at)
			r = store_zpool_has(seg, (size_t)(hole - at));
		if (r == 0 && hole > at)
			r = zpool_recall(&p->tier.pool, (size_t)at / ZSEG_SIZE,
					 (unsigned)((size_t)(hole - at) / PAGE_SIZE));
		if (r == 0 && hole < at + (off_t)ZSEG_SIZE &&
		    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, hole,
			      at + (off_t)ZSEG_SIZE - hole) < 0)
			r = -errno;
		if (r < 0)
			return r;
	}
	return 0;
}

/* Call fn for each item of a zone of the predecessor. */
static int
each_item(struct adoption *a, const struct zone *like, uint64_t zone_then,
	  int (*fn)(struct adoption *a, const void *item))
{
	const void **item = malloc(SLAB_ITEMS_MAX * sizeof item[0]);
	const int fd = a->fd;
	const off_t from = (off_t)(a->root->arena - a->root->base);
	off_t at = from;
	int r = item == NULL ? -ENOMEM : 0;

	while (r == 0 && (at = lseek(fd, at, SEEK_DATA)) >= 0 &&
	       at - from < (off_t)a->root->arena_len) {
		size_t n;

		at -= at % (off_t)SLAB_SIZE;
		n = zone_find_items(like, a->base + at, zone_then, item, SLAB_ITEMS_MAX);
		for (size_t i = 0; i < n && r == 0; i++)
			r = fn(a, item[i]);
		at += (off_t)SLAB_SIZE;
	}
	free(item);
	return r;
}

/* --- accounts --- */

/* The account of one then; NULL: it had none.  A reference of the table's. */
static int
adopt_account(struct adoption *a, uint64_t then, struct account **now)
{
	const struct account *was = then != 0 ? old(a, then, sizeof *was) : NULL;
	const struct account *group;
	char name[sizeof was->name] = "";
	int r;

	*now = NULL;
	if (was == NULL)
		return then != 0 ? -EINVAL : 0;
	*now = table_get(&a->accounts, then);
	if (*now != NULL)
		return 0;
	group = was->group != NULL ? old(a, then_of(was->group), sizeof *group) : NULL;
	if (group != NULL)
		snprintf(name, sizeof name, "%.*s", (int)sizeof name - 1, group->name);
	*now = server_account(a->rt, name, was->limit, was->minimum);
	if (*now == NULL)
		return -ENOMEM;
	atomic_store(&(*now)->reads_max, atomic_load(&was->reads_max));
	r = table_put(&a->accounts, then, *now);
	if (r < 0)
		account_unref(*now);
	return r;
}

/* --- objects --- */

/* Its tree and what is beneath it, as they were to become if that was under way. */
static void
shape(const struct adoption *a, const struct object *was, uint64_t then, uint64_t *root,
      uint64_t *backing, uint64_t *offset)
{
	const struct relink *re = &a->root->relink;

	*root = then_of(was->root);
	*backing = then_of(was->backing);
	*offset = was->backing_offset;
	for (unsigned i = 0; i < MIN(re->n, 2u); i++) {
		if (then_of(re->to[i].object) == then) {
			*root = then_of(re->to[i].root);
			*backing = then_of(re->to[i].backing);
			*offset = re->to[i].offset;
		}
	}
}

static uint64_t
then_of_object(const struct adoption *a, const struct object *was)
{
	return a->root->base + (uint64_t)((const char *)was - a->base);
}

static int
take(const struct adoption *a, const char *kind, uint64_t id, const char *part)
{
	char name[STORE_NAME_MAX];

	store_name(name, kind, id, part);
	return a->from->take(a->from->ctx, name);
}

/* One with a source, opened anew.  Its record has its address then until it has it now. */
static int
object_of_file(struct adoption *a, const struct object *was, uint64_t then, struct object **out)
{
	struct served_file *f = a->rt->server->files;
	struct up_object *obj = NULL;
	int fd, r;

	while (f != NULL && then_of(f->object) != then)
		f = f->next;
	fd = f != NULL ? take(a, "file", was->id, NULL) : -1;
	if (fd < 0)
		return -EBADF;
	r = f->op == CALL_CREATE_FILE
		    ? up_object_create_file(a->rt, fd, f->offset, f->length, f->flags, &obj)
		    : up_object_create_device(a->rt, fd, f->flags, &obj);
	close(fd);
	*out = (struct object *)obj;
	/* Not before it is kept: what goes takes its record with it. */
	if (r == 0 && (*out)->npages == was->npages)
		f->object = *out;
	return r;
}

static int
adopt_pool(struct adoption *a, struct heir *h)
{
	struct pager *p = &a->rt->p;
	const uint64_t npages = h->o->npages;
	uintptr_t pool, page;
	size_t n;
	int fd, r;

	fd = h->was->apart ? take(a, "object", h->was->id, NULL) : -1;
	if (fd < 0)
		return -EBADF;
	h->there = calloc(1, npages / 8 + 1);
	if (h->there == NULL) {
		close(fd);
		return -ENOMEM;
	}
	r = pmap_uffd_pool_adopt(p->pmap, fd, npages, &pool);
	if (r < 0)
		return r;
	h->o->pool = pool;
	h->pool_then = h->was->pool;
	for (page = pool; pmap_uffd_pool_next(p->pmap, &page, pool + (npages << PAGE_SHIFT), &n);) {
		for (; n > 0; n--, page += PAGE_SIZE)
			set_bit(h->there, (page - pool) >> PAGE_SHIFT, true);
		if (page == pool + (npages << PAGE_SHIFT))
			break;
	}
	return 0;
}

/* => map.change is not held */
static int
adopt_object(struct adoption *a, uint64_t then, struct object **out, unsigned depth)
{
	const struct object *was = old(a, then, sizeof *was);
	struct pager *p = &a->rt->p;
	uint64_t root, backing, offset;
	struct account *account = NULL;
	struct object *b = NULL;
	struct heir *h = table_get(&a->objects, then);
	sigset_t signals;
	int r;

	*out = h != NULL ? h->o : NULL;
	if (h != NULL)
		return 0;
	if (was == NULL || was->npages == 0 || was->npages > UINT64_C(1) << 52 || depth > DEPTH_MAX)
		return -EINVAL;
	h = calloc(1, sizeof *h);
	if (h == NULL)
		return -ENOMEM;
	h->was = was;
	h->handle = was->source != NULL;
	if (h->handle) {
		r = object_of_file(a, was, then, &h->o);
		if (r == 0 && h->o->npages != was->npages) {
			log_line(&p->log, UP_LOG_ERROR, "re-attach: a file has changed its length");
			up_object_unref((struct up_object *)h->o);
			r = -EINVAL;
		}
	} else {
		change_begin(p, &signals);
		r = object_create(a->rt, "re-attach", was->npages, was->reserved, was->noreserve,
				  &h->o);
		change_end(p, &signals);
	}
	if (r < 0) {
		free(h);
		return r;
	}
	/* From here on it is in the list, and goes with it. */
	*a->last = h;
	a->last = &h->next;
	h->o->id = was->id;
	h->o->readonly = was->readonly;
	h->o->roams = was->roams;
	h->o->apart = was->apart;
	h->o->loose = true;
	h->o->named |= was->named;
	atomic_store(&h->o->unrecorded, atomic_load(&was->unrecorded));
	a->max_object = MAX(a->max_object, was->id);
	r = table_put(&a->objects, then, h);
	if (r == 0)
		r = adopt_account(a, then_of(was->account), &account);
	if (r == 0 && account != NULL)
		h->o->account = account_ref(account);
	if (r == 0 && was->pool != 0)
		r = adopt_pool(a, h);
	shape(a, was, then, &root, &backing, &offset);
	if (r == 0 && backing != 0)
		r = adopt_object(a, backing, &b, depth + 1);
	if (r == 0 && b != NULL) {
		if (offset > b->npages || h->o->npages > b->npages - offset)
			return -EINVAL;
		object_ref(b);
		pthread_rwlock_wrlock(&p->map.lock);
		object_shadow(h->o, b, offset);
		atomic_store(&h->o->chained, atomic_load(&was->chained) || b->source == NULL);
		pthread_rwlock_unlock(&p->map.lock);
	}
	*out = h->o;
	return r;
}

/* --- pages --- */

/* The page of a pool then, as it is now; NULL: of none. */
static struct heir *
heir_of(struct adoption *a, struct heir *likely, uint64_t va, uint64_t *index)
{
	struct heir *h = likely;

	for (struct heir *next = a->heirs; h != NULL; h = next, next = h != NULL ? h->next : NULL) {
		if (h->pool_then != 0 && va >= h->pool_then &&
		    va - h->pool_then < h->o->npages << PAGE_SHIFT) {
			*index = (va - h->pool_then) >> PAGE_SHIFT;
			return h;
		}
	}
	return NULL;
}

/* Whether an object had nothing of its own there. */
static bool
was_empty(const struct adoption *a, const struct heir *h, uint64_t index)
{
	uint64_t at, backing, offset;
	const struct leaf *leaf;

	shape(a, h->was, then_of_object(a, h->was), &at, &backing, &offset);
	for (unsigned level = h->was->height; level > 0 && at != 0; level--) {
		const struct node *node = old(a, at, sizeof *node);

		at = node != NULL ? then_of(node->child[(index >> (LEAF_SHIFT * level)) &
							(LEAF_SLOTS - 1)])
				  : 0;
	}
	leaf = at != 0 ? old(a, at, sizeof *leaf) : NULL;
	return leaf == NULL || leaf->slot[index & (LEAF_SLOTS - 1)] == 0;
}

/* What became of a page. */
struct found {
	enum { F_NOTHING, F_MARK, F_POOL, F_FRAME, F_ZIP, F_SWAP, F_LOST } what;
	struct heir *h; /* F_POOL: which page */
	uint64_t index;
	frame_t frame;
	slot_t slot;
	zref_t ref; /* F_ZIP: then */
};

static bool
hashes_to(const struct adoption *a, frame_t f, uint64_t hash)
{
	return f < a->root->nstage && bit(a->frames, f) &&
	       hash_page(a->root->hash_seed, pmap_frame(a->rt->p.pmap, f)) == hash;
}

/* The drawing in adopt.h. */
static void
find(struct adoption *a, struct heir *h, uint64_t index, const struct anon *was, uint64_t then,
     struct found *f)
{
	const uint8_t kind = atomic_load_explicit(&was->kind, memory_order_relaxed);
	const uint8_t bits = atomic_load_explicit(&was->bits, memory_order_relaxed);
	const bool busy = (bits & ANON_BUSY) != 0;
	const struct known *all = table_get(&a->pages, then);
	const struct known *raw = NULL;

	*f = (struct found){ .what = F_LOST };
	if (kind == ANON_LOST || kind >= ANON_KINDS)
		return;
	if (bits & ANON_GOING) {
		f->what = F_MARK;
		return;
	}
	if (kind == ANON_ZIP) {
		/* It may be the number of its page or slot already. */
		f->ref = zpool_past_find(&a->zpool, was->loc, then, busy);
		f->what = f->ref != ZREF_NONE ? F_ZIP : F_LOST;
		return;
	}
	if (kind == ANON_SWAP && !busy) {
		f->what = F_SWAP;
		f->slot = was->loc;
		return;
	}
	for (const struct known *k = all; k != NULL; k = k->next) {
		const struct page *pg = k->page;
		const uint8_t state = atomic_load_explicit(&pg->state, memory_order_relaxed);

		/*
		 * What is staged, or being written, may have an address that another page has by now; unless it is on its way
		 * back, which is busy.
		 */
		if (pg->va == 0 || pg->shard != PMAP_POOL ||
		    (state != PAGE_MAPPED && state != PAGE_TRANSIT &&
		     !(busy && state == PAGE_STAGED)))
			continue;
		f->h = heir_of(a, h, pg->va, &f->index);
		if (f->h != NULL && bit(f->h->there, f->index) &&
		    ((f->h == h && f->index == index) || was_empty(a, f->h, f->index))) {
			f->what = F_POOL;
			return;
		}
	}
	if (kind == ANON_SWAP) {
		f->what = F_SWAP;
		f->slot = was->loc;
		for (const struct known *k = all; k != NULL; k = k->next) {
			/* It may be the number of the page already. */
			if (k->no == was->loc && hashes_to(a, k->page->frame, was->hash) &&
			    frame_claim(&a->rt->p.frames, k->page->frame)) {
				f->what = F_FRAME;
				f->frame = k->page->frame;
			}
		}
		return;
	}
	/* The one that the anon names, else any: after a rescue there are two for a moment. */
	for (int any = 0; any < 2; any++) {
		for (const struct known *k = all; k != NULL; k = k->next) {
			const frame_t frame = k->page->frame;

			if (k->page->raw != PAGE_RAW_NOT)
				raw = k;
			else if ((any || k->no == was->loc) && frame < a->root->nstage &&
				 bit(a->frames, frame) && frame_claim(&a->rt->p.frames, frame)) {
				f->what = F_FRAME;
				f->frame = frame;
				return;
			}
		}
	}
	if (raw != NULL)
		f->what = raw->page->raw == PAGE_RAW_MARKED ? F_MARK : F_NOTHING;
	else if (busy && (all == NULL || all->page->frame == FRAME_NONE))
		f->what = F_MARK; /* it was being discarded */
	else if (!busy && all != NULL && all->page->state == PAGE_MAPPED)
		f->what = F_MARK; /* the program has discarded it itself */
}

/* For whoever has to find out why. */
static void
tell_lost(const struct adoption *a, const struct heir *h, uint64_t index, const struct anon *was,
	  uint64_t then)
{
	const struct known *k = table_get(&a->pages, then);

	if (a->lost >= LOST_TOLD)
		return;
	log_line(
		&a->rt->p.log, UP_LOG_ERROR,
		"re-attach: page %llu of object %llu is lost: kind %u, bits %u, %u, known as %s page, "
		"state %u, frame %u, slot %u, raw %u",
		(unsigned long long)index, (unsigned long long)h->was->id, atomic_load(&was->kind),
		atomic_load(&was->bits), was->loc, k != NULL ? "a" : "no",
		k != NULL ? atomic_load(&k->page->state) : 0u, k != NULL ? k->page->frame : 0u,
		k != NULL ? k->page->slot : 0u, k != NULL ? k->page->raw : 0u);
}

/* A page in memory: charged, and on the queue that it belongs on. */
static int
put_page(struct pager *p, struct anon *an, struct leaf *leaf, unsigned at, const struct found *f)
{
	struct page *pg;

	if (!budget_charge(&p->budget, PAGE_SIZE))
		return -ENOMEM;
	pg = page_alloc(&p->pages, an, leaf, at);
	if (pg == NULL) {
		budget_uncharge(&p->budget, PAGE_SIZE);
		return -ENOMEM;
	}
	an->loc = page_no(&p->pages, pg);
	pg->shard = PMAP_POOL;
	/* A source may have been about to get it, and its hash said so already: it is written once more in any case. */
	pg->alone = leaf->sourced && !leaf->object->readonly;
	if (f->what == F_POOL) {
		pg->va = f->h->o->pool + (f->index << PAGE_SHIFT);
		page_enqueue(&p->pages, pg, Q_ACTIVE, PAGE_MAPPED);
	} else {
		pg->frame = f->frame;
		page_enqueue(&p->pages, pg, Q_INACTIVE, PAGE_STAGED);
	}
	return 0;
}

/* => the leaf is locked, its slot empty.  < 0: nothing has changed */
static int
put_anon(struct adoption *a, struct heir *h, struct leaf *leaf, uint64_t index,
	 const struct anon *was, uint64_t then, struct found *f, struct anon **out)
{
	const unsigned at = (unsigned)(index - leaf->base);
	struct pager *p = &a->rt->p;
	struct anon *an = anon_alloc(&p->zones.anon);
	int r = 0;

	if (an == NULL)
		return -ENOMEM;
	leaf_set_anon(leaf, at, an);
	if (f->what == F_SWAP && !swap_claim(&p->swap, f->slot))
		f->what = F_LOST;
	if (f->what == F_ZIP) {
		r = zpool_claim(&p->tier.pool, &a->zpool, f->ref, (uintptr_t)an, &an->loc);
		if (r == -EINVAL)
			f->what = F_LOST;
		r = r == -EINVAL ? 0 : r;
	}
	an->hash = was->hash;
	switch (f->what) {
	case F_ZIP:
		if (r < 0)
			break;
		atomic_store(&an->kind, ANON_ZIP);
		atomic_fetch_add(&p->tier.nzipped, 1);
		a->compressed++;
		break;
	case F_SWAP:
		an->loc = f->slot;
		atomic_store(&an->kind, ANON_SWAP);
		atomic_fetch_add(&p->nswapped, 1);
		a->swapped++;
		break;
	case F_POOL:
	case F_FRAME:
		if (atomic_load(&was->kind) == ANON_COPY)
			atomic_store(&an->kind, ANON_COPY);
		r = put_page(p, an, leaf, at, f);
		if (f->what == F_POOL)
			set_bit(f->h->there, f->index, false);
		a->resident += f->what == F_POOL;
		a->staged += f->what == F_FRAME;
		break;
	default:
		if (atomic_load(&was->kind) != ANON_LOST)
			tell_lost(a, h, index, was, then);
		atomic_store(&an->kind, ANON_LOST);
		atomic_fetch_add(&p->nlost, 1);
		a->lost += atomic_load(&was->kind) != ANON_LOST;
		break;
	}
	/* What was not promised when it was mapped was when it was touched; a lost page needs no slot. */
	if (r == 0 && leaf->noreserve && f->what != F_LOST)
		r = resv_take(&p->resv_swap, 1);
	*out = an;
	page_unbusy(p, an, 0, 0);
	return r;
}

static int
unsound(const struct adoption *a, const struct heir *h, uint64_t index, uint64_t word,
	const char *what)
{
	log_line(&a->rt->p.log, UP_LOG_ERROR, "re-attach: page %llu of object %llu %s: %#llx",
		 (unsigned long long)index, (unsigned long long)h->was->id, what,
		 (unsigned long long)word);
	return -EINVAL;
}

static int
adopt_slot(struct adoption *a, struct heir *h, uint64_t index, uint64_t word)
{
	const uint64_t then = word & ~(uint64_t)(SLOT_ANON | SLOT_NAMED);
	const struct anon *was = old(a, then, sizeof *was);
	struct pager *p = &a->rt->p;
	struct anon *an = NULL;
	struct found f = { .what = F_MARK };
	bool denied = false, shared, seen;
	struct leaf *leaf;
	unsigned at;
	int r = 0;

	if (word != SLOT_BASE && (was == NULL || (word & SLOT_ANON) == 0))
		return unsound(a, h, index, word, "is none");
	shared = word != SLOT_BASE && atomic_load(&was->refs) > 1;
	seen = word != SLOT_BASE && (an = table_get(&a->anons, then)) != NULL;
	/* One that was on its way from an object to the one in front of it. */
	if (seen && !shared)
		return 0;
	if (word != SLOT_BASE && !seen)
		find(a, h, index, was, then, &f);
	/* Objects were being joined: it is in the one in front, and is left with it. */
	if (f.what == F_POOL) {
		h = f.h;
		index = f.index;
	}
	/* A mark hides what is beneath. */
	if (f.what == F_MARK && !seen && h->was->backing == NULL && !h->o->named)
		f.what = F_NOTHING;
	a->dropped += f.what == F_NOTHING || (f.what == F_MARK && word != SLOT_BASE && !seen);
	if (f.what == F_NOTHING)
		return 0;
	leaf = leaf_for(p, h->o, index, &denied);
	if (leaf == NULL)
		return -ENOMEM;
	at = (unsigned)(index - leaf->base);
	if (leaf->slot[at] != 0) {
		r = unsound(a, h, index, word, "is another one");
	} else if (seen) {
		atomic_fetch_add(&an->refs, 1);
		leaf_set_anon(leaf, at, an);
		if (leaf->noreserve && atomic_load(&an->kind) != ANON_LOST)
			r = resv_take(&p->resv_swap, 1);
	} else if (f.what == F_MARK) {
		leaf_mark(leaf, at);
	} else {
		r = put_anon(a, h, leaf, index, was, then, &f, &an);
	}
	pthread_mutex_unlock(&leaf->lock);
	if (r == 0 && an != NULL && !seen && (shared || (atomic_load(&was->bits) & ANON_BUSY) != 0))
		r = table_put(&a->anons, then, an);
	return r;
}

static int
adopt_tree(struct adoption *a, struct heir *h, uint64_t then, unsigned level, uint64_t base)
{
	const struct node *node;
	const struct leaf *leaf;
	int r = 0;

	if (then == 0 || base >= h->o->npages)
		return 0;
	if (level > 0) {
		node = old(a, then, sizeof *node);
		for (unsigned i = 0; node != NULL && i < LEAF_SLOTS && r == 0; i++)
			r = adopt_tree(a, h, then_of(node->child[i]), level - 1,
				       base + ((uint64_t)i << (LEAF_SHIFT * level)));
		return node != NULL ? r : unsound(a, h, base, then, "has no node");
	}
	leaf = old(a, then, sizeof *leaf);
	if (leaf == NULL || leaf->base != base)
		return unsound(a, h, base, then, "has no leaf");
	for (unsigned i = 0; i < LEAF_SLOTS && r == 0; i++) {
		if (leaf->slot[i] != 0)
			r = base + i < h->o->npages ? adopt_slot(a, h, base + i, leaf->slot[i])
						    : -EINVAL;
	}
	return r;
}

/* --- clients --- */

static void
tell_unwired(const struct adoption *a, const struct returned *re, uintptr_t start, uintptr_t end,
	     const char *why)
{
	log_line(&a->rt->p.log, UP_LOG_WARNING,
		 "process %d: what it had wired at %#lx-%#lx is not wired any more: %s",
		 atomic_load(&re->was->pid), (unsigned long)start, (unsigned long)end, why);
}

/* How often it is wired: its pages are counted from here on, and held once they are there (hold_wired()). */
static unsigned
wired_count(const struct adoption *a, const struct returned *re, const struct map_entry *was,
	    uint64_t npages)
{
	const struct client *c = re->sp->client;
	const unsigned n = c != NULL ? wire_noted(&c->wiring, was) : 0;

	if (n == 0 || wired_take(&a->rt->p, npages))
		return n;
	tell_unwired(a, re, was->start, was->end, "there is no room for that");
	return 0;
}

static int
adopt_entry(struct adoption *a, struct returned *re, const struct map_entry *was, uintptr_t *floor)
{
	const uintptr_t next =
		was->next != NULL && old(a, then_of(was->next), sizeof *was) != NULL
			? ((const struct map_entry *)old(a, then_of(was->next), sizeof *was))->start
			: UINTPTR_MAX;
	const uintptr_t start = was->start, end = MIN(was->end, next);
	struct pager *p = &a->rt->p;
	struct map_entry *e;
	struct object *o;
	sigset_t signals;
	int r = adopt_object(a, then_of(was->object), &o, 0);

	if (r < 0)
		return r;
	if (start >= end || start < *floor || ((start | end) & PAGE_MASK) != 0 || o->pool == 0 ||
	    was->offset > o->npages || (end - start) >> PAGE_SHIFT > o->npages - was->offset)
		return -EINVAL;
	*floor = end;
	change_begin(p, &signals);
	e = entry_alloc(p);
	if (e != NULL) {
		object_ref(o);
		e->start = start;
		e->end = end;
		e->object = o;
		e->offset = was->offset;
		e->prot = was->prot;
		e->advice = was->advice;
		e->inherit = was->inherit;
		e->flags = was->flags;
		e->shard = re->sp->shard;
		e->serial = was->serial;
		e->wired = wired_count(a, re, was, (end - start) >> PAGE_SHIFT);
		a->max_serial = MAX(a->max_serial, was->serial);
		r = space_place(p, "re-attach", e);
		if (r < 0) {
			if (e->wired > 0)
				wired_give(p, (end - start) >> PAGE_SHIFT);
			object_unref(o);
			entry_free(p, e);
		}
	}
	if (e != NULL && r == 0) {
		pthread_rwlock_wrlock(&p->map.lock);
		r = map_insert(&re->sp->map, e);
		assert(r == 0);
		pthread_rwlock_unlock(&p->map.lock);
	}
	change_end(p, &signals);
	return e != NULL ? r : -ENOMEM;
}

static int
adopt_handles(struct adoption *a, struct client *c, const struct client *was)
{
	const uint64_t *table;
	int r;

	if (was->object.n > was->object.max || was->object.n > c->object.max)
		return -EINVAL;
	if (was->object.n == 0)
		return 0;
	table = old(a, then_of(was->object.base), was->object.n * sizeof table[0]);
	if (table == NULL)
		return -EINVAL;
	r = wired_array_grow_wait(&c->object, was->object.n);
	for (size_t i = 0; i < was->object.n && r == 0; i++) {
		struct object *o;

		if (table[i] == 0)
			continue;
		r = adopt_object(a, table[i], &o, 0);
		if (r < 0)
			break;
		((struct object **)c->object.base)[i] =
			(struct object *)up_object_ref((struct up_object *)o);
		c->nheld++;
	}
	return r;
}

static int
adopt_client(struct adoption *a, struct returned *re)
{
	const struct client *was = old(a, then_of(re->was->client), sizeof *was);
	struct account *account;
	struct client *c;
	int r;

	if (was == NULL)
		return -EINVAL;
	r = adopt_account(a, then_of(was->account), &account);
	if (r < 0 || account == NULL)
		return r < 0 ? r : -EINVAL;
	c = client_alloc(a->rt, &was->limits);
	if (c == NULL)
		return -ENOMEM;
	c->account = account_ref(account);
	c->pid = was->pid;
	c->uid = was->uid;
	c->gid = was->gid;
	memcpy(c->name, was->name, sizeof c->name);
	c->name[sizeof c->name - 1] = '\0';
	c->connected = true;
	c->wiring = was->wiring;
	re->sp->client = c;
	return adopt_handles(a, c, was);
}

/* All but to run there. */
static int
adopt_space(struct adoption *a, const void *item)
{
	const struct space *was = item;
	const struct client *client;
	struct pager *p = &a->rt->p;
	struct account *account = NULL;
	struct returned *re;
	const struct map_entry *e;
	uintptr_t floor = 0;
	uint64_t at;
	sigset_t signals;
	size_t n = 0;
	int sock, r;

	a->max_serial = MAX(a->max_serial, was->id);
	/* A child that has been forked, or will be in a moment, comes; a client that has not come yet tries again. */
	if (!was->attached && was->client != NULL)
		return 0;
	/* A guest's file is its own, and says whose it was (guest.h): it waits, or connects again. */
	if (was->client != NULL &&
	    (client = old(a, then_of(was->client), sizeof *client)) != NULL &&
	    client->guest != NULL)
		return 0;
	sock = take(a, "space", was->id, "sock");
	if (!was->attached && sock < 0)
		return 0;
	re = calloc(1, sizeof *re);
	if (re == NULL) {
		if (sock >= 0)
			close(sock);
		return -ENOMEM;
	}
	re->was = was;
	re->uffd = was->attached ? take(a, "space", was->id, "uffd") : -1;
	change_begin(p, &signals);
	re->sp = space_make(p);
	change_end(p, &signals);
	if (re->sp == NULL) {
		if (re->uffd >= 0)
			close(re->uffd);
		if (sock >= 0)
			close(sock);
		free(re);
		return -ENOMEM;
	}
	re->next = a->spaces;
	a->spaces = re;
	re->sp->id = was->id;
	re->sp->uid = was->uid;
	re->sp->sock = sock;
	atomic_store(&re->sp->pid, atomic_load(&was->pid));
	r = sock >= 0 && (re->uffd >= 0 || !was->attached) ? 0 : -EBADF;
	if (r == 0)
		r = adopt_account(a, then_of(was->account), &account);
	if (account != NULL)
		re->sp->account = account_ref(account);
	if (r == 0 && was->client != NULL)
		r = adopt_client(a, re);
	for (at = then_of(was->map.first); r == 0 && at != 0; at = then_of(e->next)) {
		e = old(a, at, sizeof *e);
		r = e == NULL || ++n > ENTRIES_MAX ? -EINVAL : adopt_entry(a, re, e, &floor);
	}
	/* What was under way is done now. */
	if (re->sp->client != NULL && re->sp->client->wiring.doing != 0) {
		re->sp->client->wiring.done = re->sp->client->wiring.doing;
		re->sp->client->wiring.doing = 0;
	}
	if (r < 0) {
		re->failed = true;
		log_line(&p->log, UP_LOG_ERROR,
			 "process %d can not be re-attached: %s; what it misses is SIGBUS",
			 atomic_load(&was->pid), strerrorname_np(-r));
	}
	return r == -ENOMEM ? r : 0;
}

static int
adopt_file(struct adoption *a, const void *item)
{
	const struct served_file *was = item;
	struct server *sv = a->rt->server;
	struct served_file *f;

	if (was->object == NULL)
		return 0;
	f = zone_alloc(&sv->file_zone, ZONE_WAIT);
	if (f == NULL)
		return -ENOMEM;
	*f = *was;
	f->next = sv->files;
	sv->files = f;
	return 0;
}

static int
adopt_owner(struct adoption *a, const void *item)
{
	const struct owner *was = item;
	struct server *sv = a->rt->server;
	struct owner *o;
	struct object *object;
	int r;

	if (was->object == NULL || memchr(was->name, '\0', sizeof was->name) == NULL)
		return 0;
	r = adopt_object(a, then_of(was->object), &object, 0);
	if (r < 0 || object->name != NULL)
		return r == -ENOMEM ? r : 0;
	o = zone_alloc(&sv->owner_zone, ZONE_WAIT);
	if (o == NULL || (object->name = strdup(was->name)) == NULL) {
		zone_free(&sv->owner_zone, o);
		return -ENOMEM;
	}
	up_object_ref((struct up_object *)object); /* as the name is a handle */
	*o = *was;
	o->object = object;
	o->next = sv->owners;
	sv->owners = o;
	return 0;
}

/* Records of files that nobody has any more. */
static void
forget_files(struct adoption *a)
{
	struct server *sv = a->rt->server;
	struct served_file **link = &sv->files, *f;

	while ((f = *link) != NULL) {
		bool found = false;

		for (const struct heir *h = a->heirs; h != NULL && !found; h = h->next)
			found = f->object == h->o;
		if (found) {
			link = &f->next;
		} else {
			*link = f->next;
			zone_free(&sv->file_zone, f);
		}
	}
}

/* --- the switch --- */

/* All pages are where they are: those that were wired are again. */
static void
hold_wired(struct adoption *a)
{
	struct pager *p = &a->rt->p;
	sigset_t signals;

	change_begin(p, &signals);
	for (const struct returned *re = a->spaces; re != NULL; re = re->next) {
		for (struct map_entry *e = re->sp->map.first; e != NULL; e = e->next) {
			if (e->wired > 0 && !rewire_entry(p, &re->sp->map, e))
				tell_unwired(a, re, e->start, e->end, "not all of it is in memory");
		}
	}
	change_end(p, &signals);
}

/* I/O of the predecessor may still be under way: what it reads into goes, and what it writes to is not used. */
static int
quarantine(struct adoption *a)
{
	struct pager *p = &a->rt->p;
	const struct page *page = old(a, a->root->pages, sizeof *page);

	for (size_t i = 0; i < a->nknown; i++) {
		if (page[i].state == PAGE_LAUNDRY && page[i].slot != SLOT_NONE &&
		    swap_claim(&p->swap, page[i].slot)) {
			swap_retire(&p->swap, page[i].slot);
			resv_shrink(&p->resv_swap, 1);
		}
	}
	for (size_t i = 0; i < a->root->nstage; i++) {
		if (bit(a->frames, i) && runmap_is_free(&p->frames.holes, i) &&
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
	/* Also of one that is about to end. */
	if (c != NULL && serve_info(a->rt, sp->id, &info) == 0)
		a->from->client(a->from->ctx, sp->id, &info,
				c->account->group != NULL ? c->account->group->name : "");
	if (re->failed) {
		shutdown(sp->sock, SHUT_RDWR); /* its keeper hears that */
		return;
	}
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
		if (bit(h->there, i))
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

/* Everything but the switch.  => nobody pages out, so that the predecessor's store is right until then */
static int
read_all(struct adoption *a)
{
	const struct store_root *root = a->root;
	struct up_runtime *rt = a->rt;
	uint64_t tree, backing, offset;
	int r = find_pages(a);

	if (r == 0)
		r = find_frames(a);
	if (r == 0)
		r = find_zpool(a);
	if (r == 0)
		r = each_item(a, &rt->server->file_zone, root->file_zone, adopt_file);
	if (r == 0)
		r = each_item(a, &rt->server->owner_zone, root->owner_zone, adopt_owner);
	if (r == 0)
		r = each_item(a, &rt->p.space_zone, root->space_zone, adopt_space);
	for (struct heir *h = a->heirs; h != NULL && r == 0; h = h->next) {
		shape(a, h->was, then_of_object(a, h->was), &tree, &backing, &offset);
		r = adopt_tree(a, h, tree, h->was->height, 0);
		if (r < 0)
			log_line(&rt->p.log, UP_LOG_ERROR, "re-attach: object %llu: %s",
				 (unsigned long long)h->was->id, strerrorname_np(-r));
	}
	if (r == 0)
		r = quarantine(a);
	for (const struct heir *h = a->heirs; h != NULL && r == 0; h = h->next)
		drop_unclaimed(a, h);
	if (r == 0 && a->zpool.units != NULL)
		zpool_settle(&rt->p.tier.pool, &a->zpool);
	if (r == 0)
		hold_wired(a);
	forget_files(a);
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
		return swap_area_open(s, arena, cfg->swap_path, cfg->swap_fd, cfg->swap_size,
				      cfg->feature_mask, log);
	fd = f->from->take(f->from->ctx, "swap");
	r = swap_area_reopen(s, arena, fd >= 0 ? NULL : cfg->swap_path, fd, cfg->swap_size,
			     cfg->feature_mask, log);
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
		r = look(store, &root);
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
