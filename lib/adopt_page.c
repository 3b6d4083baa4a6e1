/* SPDX-License-Identifier: BSD-2-Clause */
#include "adoption.h"

#include <errno.h>

#include "base/hash.h"

#define LOST_TOLD 10u

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

	adopt_shape(a, h->was, adopt_then_of(a, h->was), &at, &backing, &offset);
	for (unsigned level = h->was->height; level > 0 && at != 0; level--) {
		const struct node *node = past_at(a, at, sizeof *node);

		at = node != NULL ? then_of(node->child[(index >> (LEAF_SHIFT * level)) &
							(LEAF_SLOTS - 1)])
				  : 0;
	}
	leaf = at != 0 ? past_at(a, at, sizeof *leaf) : NULL;
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
	return f < a->root->nstage && has_bit(a->frames, f) &&
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
		if (f->h != NULL && has_bit(f->h->there, f->index) &&
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
				 has_bit(a->frames, frame) &&
				 frame_claim(&a->rt->p.frames, frame)) {
				f->what = F_FRAME;
				f->frame = frame;
				return;
			}
		}
	}
	if (raw != NULL)
		f->what = raw->page->raw == PAGE_RAW_MARKED ? F_MARK : F_NOTHING;
	/*
	 * It was being discarded; or the program has discarded it itself. Or a guest has removed it where it was on its way: what leaves the file,
	 * or comes to it, is nowhere else for a moment, and there no more.
	 */
	else if (busy ? h->o->guest || all == NULL || all->page->frame == FRAME_NONE
		      : all != NULL && all->page->state == PAGE_MAPPED)
		f->what = F_MARK;
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
	pg = page_alloc(&p->pages, an, leaf, at, false);
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
	const struct anon *was = past_at(a, then, sizeof *was);
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
	/* What is in a guest's file is what it sees.  If it was not thought to be there it is not paid for yet: it is taken over, as what was there when it came. */
	if (word != SLOT_BASE && !seen && h->o->guest && has_bit(h->there, index))
		f = (struct found){ .what = anon_in_core(was) ? F_POOL : F_NOTHING,
				    .h = h,
				    .index = index };
	else if (word != SLOT_BASE && !seen)
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

int
adopt_pages(struct adoption *a, struct heir *h, uint64_t then, unsigned level, uint64_t base)
{
	const struct node *node;
	const struct leaf *leaf;
	int r = 0;

	if (then == 0 || base >= h->o->npages)
		return 0;
	if (level > 0) {
		node = past_at(a, then, sizeof *node);
		for (unsigned i = 0; node != NULL && i < LEAF_SLOTS && r == 0; i++)
			r = adopt_pages(a, h, then_of(node->child[i]), level - 1,
					base + ((uint64_t)i << (LEAF_SHIFT * level)));
		return node != NULL ? r : unsound(a, h, base, then, "has no node");
	}
	leaf = past_at(a, then, sizeof *leaf);
	if (leaf == NULL || leaf->base != base)
		return unsound(a, h, base, then, "has no leaf");
	for (unsigned i = 0; i < LEAF_SLOTS && r == 0; i++) {
		if (leaf->slot[i] != 0)
			r = base + i < h->o->npages ? adopt_slot(a, h, base + i, leaf->slot[i])
						    : -EINVAL;
	}
	return r;
}
