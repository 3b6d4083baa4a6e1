/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * chain.c: shadows: what lies beneath a page, and who else sees it.
 *
 * Of each page of a family of objects there are never more copies than there are front objects that can
 * tell them apart: whoever copies a page up and is the last to see the old one takes that instead
 * (fault.c), and when a front object goes, or hides a part, what only it saw is freed.  So a promise of one swap slot a page
 * of each front object is enough for everything, backing objects included.
 *
 * When only one shadow is left of a backing object, the two are joined: the pages of the smaller one move to the tree
 * of the other.  1,000 clones made, written to and dropped leave an object without any chain.
 *
 * Alternative looked at: 4.4BSD's, in which pages of a backing object are mapped read-only into all that see it, and
 * collapse happens at a later fault.  Private memory of one place can not be mapped in a second one by userfaultfd, so
 * what is shared would have to be copied for reading as well, and the old mapping be watched for writes.  Here everybody
 * parts at the clone: a touch afterwards costs a soft fault and a copy, or, once the others have gone, nothing but
 * the soft fault.
 */
#include <errno.h>

#include "pager/pager.h"

enum beneath_what
chain_find(struct object *o, uint64_t index, bool hidden, struct beneath *b)
{
	while (o->backing != NULL) {
		struct leaf *leaf;
		struct anon *an;
		unsigned at;

		index += o->backing_offset;
		o = o->backing;
		if (hidden && o->source == NULL)
			continue;
		leaf = object_leaf(o, index, NULL);
		if (leaf == NULL)
			continue;
		at = (unsigned)(index - leaf->base);
		hidden |= leaf->slot[at] == SLOT_BASE;
		an = leaf_anon(leaf, at);
		if (an != NULL && anon_trybusy(an)) {
			*b = (struct beneath){
				.object = o, .index = index, .leaf = leaf, .at = at, .anon = an
			};
			pthread_mutex_unlock(&leaf->lock);
			return BENEATH_PAGE;
		}
		pthread_mutex_unlock(&leaf->lock);
		if (an != NULL) {
			*b = (struct beneath){ .object = o, .index = index };
			return BENEATH_BUSY;
		}
	}
	*b = (struct beneath){ .object = o, .index = index };
	return o->source != NULL ? BENEATH_SOURCE : BENEATH_ZEROS;
}

/* Without recursion: who keeps thousands of snapshots has a chain as deep, and a service thread's stack is small. */
bool
chain_seen(struct object *o, uint64_t index, const struct object *except)
{
	struct object *at = o, *s = o->shadows; /* of `at`, whose page `index` it is about */

	for (;;) {
		uint64_t i;

		while (s == NULL) {
			if (at == o)
				return false;
			s = at->sibling;
			index += at->backing_offset;
			at = at->backing;
		}
		i = index - s->backing_offset;
		if (s == except || index < s->backing_offset || i >= s->npages ||
		    object_has(s, i)) {
			s = s->sibling;
			continue;
		}
		if (s->shadows == NULL)
			return true;
		at = s;
		index = i;
		s = s->shadows;
	}
}

void
chain_freeze(struct pager *p)
{
	pthread_rwlock_wrlock(&p->map.lock);
	assert((p->frozen & ALL_FROZEN) == 0);
	p->frozen |= ALL_FROZEN;
	pthread_rwlock_unlock(&p->map.lock);
}

void
chain_thaw(struct pager *p)
{
	pthread_rwlock_wrlock(&p->map.lock);
	p->frozen &= ~ALL_FROZEN;
	atomic_store(&p->thawed, now_ns());
	pthread_rwlock_unlock(&p->map.lock);
	services_kick(p, NULL);
}

void
space_freeze(struct pager *p, struct space *sp)
{
	pthread_rwlock_wrlock(&p->map.lock);
	assert(!sp->map.frozen);
	sp->map.frozen = true;
	p->frozen++;
	pthread_rwlock_unlock(&p->map.lock);
}

void
space_thaw(struct pager *p, struct space *sp)
{
	pthread_rwlock_wrlock(&p->map.lock);
	assert(sp->map.frozen && (p->frozen & ~ALL_FROZEN) > 0);
	sp->map.frozen = false;
	p->frozen--;
	pthread_rwlock_unlock(&p->map.lock);
	/* They were dropped. */
	wake_space(p, sp);
}

void
chain_part(struct object *o, struct object *b)
{
	b->loose = o->loose = true;
	/* Before there are leaves that say so: a page of zeros that is dropped meanwhile must leave a mark. */
	b->named = o->named;
	atomic_store(&b->chained, atomic_load(&o->chained));
	atomic_store(&o->chained, true);
	relink_begin(o, NULL, b, 0, b, o->root, o->backing, o->backing_offset);
	object_take_tree(b, o);
	if (o->backing != NULL) {
		const uint64_t offset = o->backing_offset;

		object_shadow(b, object_unshadow(o), offset);
	}
	object_shadow(o, b, 0);
	relink_end(o);
}

/* --- letting go --- */

/* Free a busy anon and empty its slot.  => no leaf is locked */
static void
drop(struct pager *p, struct leaf *leaf, unsigned at, struct anon *an)
{
	const bool lost = atomic_load_explicit(&an->kind, memory_order_relaxed) == ANON_LOST;
	bool noreserve;

	anon_forget(an);
	release_content(p, an);
	pthread_mutex_lock(&leaf->lock);
	noreserve = leaf->noreserve;
	leaf_clear(leaf, at);
	pthread_mutex_unlock(&leaf->lock);
	anon_gone(p, an, 0, 0);
	if (noreserve && !lost)
		resv_give(&p->resv_swap, 1);
}

static void
prune(struct pager *p, struct object *o, uint64_t first, uint64_t end)
{
	const size_t leaves = object_prune(o, first, end);

	if (o->noreserve)
		resv_give(&p->resv_meta, leaves * META_PER_LEAF);
}

/* Free what nobody sees in [first, first + n) of `b` and of everything below it. */
static void
sweep(struct pager *p, struct object *b, uint64_t first, uint64_t n)
{
	for (; b != NULL && b->source == NULL; first += b->backing_offset, b = b->backing) {
		uint64_t at = first;
		struct batch batch;

		while (range_batch(p, b, &at, first + n, READS_CANCEL, &batch)) {
			for (unsigned i = 0; i < batch.n; i++) {
				if (chain_seen(b, batch.leaf->base + batch.at[i], NULL))
					page_unbusy(p, batch.anon[i], 0, 0);
				else
					drop(p, batch.leaf, batch.at[i], batch.anon[i]);
			}
		}
		prune(p, b, first, first + n);
	}
}

/* The leaf, if need be once pageout has made room for it.  NULL: there is none to be had. */
static struct leaf *
patient_leaf(struct pager *p, struct object *o, uint64_t index)
{
	bool denied = false;
	struct leaf *leaf;

	for (unsigned tries = 0; (leaf = leaf_for(p, o, index, &denied)) == NULL; tries++) {
		if (denied || p->closing || tries == 1000)
			return NULL;
		pager_starved(p, METADATA_STEP);
		services_press(p);
		range_doze(p);
	}
	return leaf;
}

/* The first page at or after `from` in whose leaf a backing object has something; UINT64_MAX: there is none. */
static uint64_t
next_beneath(struct object *o, uint64_t from)
{
	uint64_t next = UINT64_MAX, shift = 0;

	for (; o->backing != NULL && o->backing->source == NULL; o = o->backing) {
		struct leaf *leaf;

		shift += o->backing_offset;
		leaf = object_next_leaf(o->backing, from + shift);
		if (leaf == NULL)
			continue;
		next = MIN(next, MAX(leaf->base, from + shift) - shift);
		pthread_mutex_unlock(&leaf->lock);
	}
	return next;
}

/* A leaf wherever something shows through, marked if `mark`.  -ENOMEM: not everywhere. */
static int
hide_leaves(struct pager *p, struct object *o, uint64_t first, uint64_t end, bool mark)
{
	for (uint64_t at = first; (at = next_beneath(o, at)) < end;) {
		struct leaf *leaf = patient_leaf(p, o, at);
		uint64_t stop;

		if (leaf == NULL)
			return -ENOMEM;
		stop = MIN(end, leaf->base + LEAF_SLOTS);
		for (; at < stop; at++) {
			if (mark && leaf->slot[at - leaf->base] == 0)
				leaf_mark(leaf, (unsigned)(at - leaf->base));
		}
		pthread_mutex_unlock(&leaf->lock);
	}
	return 0;
}

int
chain_hide(struct pager *p, struct object *o, uint64_t first, uint64_t n)
{
	int r;

	/* Directly over its source there is nothing to hide. */
	if (!atomic_load(&o->chained) || p->closing)
		return 0;
	/* All the leaves first, so that nothing has changed if there is no room for them. */
	r = hide_leaves(p, o, first, first + n, false);
	if (r == 0)
		r = hide_leaves(p, o, first, first + n, true);
	else
		prune(p, o, first, first + n);
	if (r < 0)
		log_line(&p->log, UP_LOG_ERROR,
			 "no metadata left within the limit to forget pages of a clone");
	return r;
}

void
chain_hidden(struct pager *p, struct object *o, uint64_t first, uint64_t n)
{
	if (o->backing != NULL && !p->closing)
		sweep(p, o->backing, first + o->backing_offset, n);
}

void
chain_unmark(struct object *o, uint64_t first, uint64_t n)
{
	const uint64_t end = first + n;
	struct leaf *leaf;

	for (uint64_t at = first; at < end && (leaf = object_next_leaf(o, at)) != NULL;) {
		const uint64_t stop = MIN(end, leaf->base + LEAF_SLOTS);

		for (at = MAX(at, leaf->base); at < stop; at++) {
			if (leaf->slot[at - leaf->base] == SLOT_BASE)
				leaf_clear(leaf, (unsigned)(at - leaf->base));
		}
		pthread_mutex_unlock(&leaf->lock);
	}
}

/* --- joining --- */

/*
 * Move what is in one slot of `from` to slot `index` of `to`, which keeps what it has unless `replace`.
 * => frozen; leaf locked, its slot in use; unlocked on return.
 * => 0; -EAGAIN: it was busy, look again; -ENOMEM: nothing has changed.
 */
static int
move_slot(struct pager *p, struct leaf *leaf, unsigned at, struct object *to, uint64_t index,
	  bool replace)
{
	const bool inside = index < to->npages;
	struct anon *an = leaf_anon(leaf, at), *other = NULL;
	const uintptr_t word = leaf->slot[at];
	struct leaf *target = NULL;
	unsigned i = 0;
	bool keep = false;

	if (an != NULL && !anon_trybusy(an)) {
		range_wait(p, leaf, at);
		return -EAGAIN;
	}
	pthread_mutex_unlock(&leaf->lock);
	if (inside) {
		target = patient_leaf(p, to, index);
		if (target == NULL) {
			if (an != NULL)
				page_unbusy(p, an, 0, 0);
			return -ENOMEM;
		}
		i = (unsigned)(index - target->base);
		keep = target->slot[i] != 0 && !replace;
		other = keep ? NULL : leaf_anon(target, i);
		if (other != NULL && !anon_trybusy(other)) {
			if (an != NULL)
				page_unbusy(p, an, 0, 0);
			range_wait(p, target, i);
			return -EAGAIN;
		}
		if (other != NULL)
			leaf_clear(target, i);
		if (!keep && an != NULL) {
			leaf_set_anon(target, i, an);
			if (anon_in_core(an)) {
				struct page *pg = page_at(&p->pages, an->loc);

				pg->leaf = target;
				pg->index = (uint16_t)i;
			}
		} else if (!keep) {
			leaf_mark(target, i);
		}
		pthread_mutex_unlock(&target->lock);
	}
	if (other != NULL) {
		const bool lost =
			atomic_load_explicit(&other->kind, memory_order_relaxed) == ANON_LOST;

		release_content(p, other);
		anon_gone(p, other, 0, 0);
		if (to->noreserve && !lost)
			resv_give(&p->resv_swap, 1);
	}
	if (an != NULL && (keep || !inside)) {
		drop(p, leaf, at, an);
		return 0;
	}
	pthread_mutex_lock(&leaf->lock);
	assert(leaf->slot[at] == word);
	(void)word;
	leaf_clear(leaf, at);
	pthread_mutex_unlock(&leaf->lock);
	if (an != NULL)
		page_unbusy(p, an, 0, 0);
	return 0;
}

/* Move everything from one object's tree to the other's; `from` index i is `to` index i - offset. */
static int
merge(struct pager *p, struct object *from, struct object *to, uint64_t offset, bool replace)
{
	uint64_t at = 0;
	struct leaf *leaf;

	while ((leaf = object_next_leaf(from, at)) != NULL) {
		unsigned i = (unsigned)(MAX(at, leaf->base) - leaf->base);
		int r;

		while (i < LEAF_SLOTS && leaf->slot[i] == 0)
			i++;
		at = leaf->base + i;
		if (i == LEAF_SLOTS) {
			pthread_mutex_unlock(&leaf->lock);
			continue;
		}
		/* Below the window the difference wraps around, and is outside as well. */
		r = move_slot(p, leaf, i, to, at - offset, replace);
		if (r == -ENOMEM)
			return r;
	}
	prune(p, from, 0, from->npages);
	return 0;
}

/* Every leaf of `like` exists in `o` too, so that nothing can fail half-way.  Same size. */
static bool
has_leaves(struct pager *p, struct object *o, struct object *like)
{
	struct leaf *leaf;

	for (uint64_t at = 0; (leaf = object_next_leaf(like, at)) != NULL; at += LEAF_SLOTS) {
		at = leaf->base;
		pthread_mutex_unlock(&leaf->lock);
		leaf = patient_leaf(p, o, at);
		if (leaf == NULL)
			return false;
		pthread_mutex_unlock(&leaf->lock);
	}
	return true;
}

/*
 * The only shadow `o` of `b` and `b` become one; the smaller moves.  The pages of `o` may be in a region meanwhile, and
 * in the tree of a backing object, which is why nobody may fault.
 */
static bool
join(struct pager *p, struct object *b)
{
	struct object *o = b->shadows;
	const uint64_t offset = o->backing_offset;
	bool take;
	int r;

	assert(b->nshadows == 1 && atomic_load(&b->handles) == 0);
	chain_freeze(p);
	take = offset == 0 && o->npages == b->npages && object_count(o) < object_count(b) &&
	       has_leaves(p, b, o);
	r = take ? merge(p, o, b, 0, true) : merge(p, b, o, offset, false);
	assert(!take || r == 0);
	if (r == 0) {
		pthread_rwlock_wrlock(&p->map.lock);
		relink_begin(o, take ? b->root : o->root, b->backing, b->backing_offset + offset, b,
			     take ? NULL : b->root, NULL, 0);
		if (take)
			object_take_tree(o, b);
		object_unshadow(o);
		if (b->backing != NULL) {
			const uint64_t further = b->backing_offset;

			object_shadow(o, object_unshadow(b), further + offset);
		}
		relink_end(o);
		atomic_store(&o->chained, o->backing != NULL && o->backing->source == NULL);
		pthread_rwlock_unlock(&p->map.lock);
		/* Nothing is in between any more: no need to say so page by page. */
		if (!atomic_load(&o->chained)) {
			chain_unmark(o, 0, o->npages);
			prune(p, o, 0, o->npages);
		}
		object_unref(b);
	}
	chain_thaw(p);
	return r == 0;
}

void
chain_dropped(struct pager *p, struct object *b, uint64_t first, uint64_t n)
{
	if (p->closing || b->nshadows == 0 || b->source != NULL)
		return;
	/*
	 * To join is to let go of what the last shadow hides.  But what is further down, or hidden only from those above
	 * that shadow, has to be looked for.
	 */
	if (b->nshadows > 1 || b->backing != NULL || b->shadows->shadows != NULL)
		sweep(p, b, first, n);
	if (b->nshadows == 1 && !join(p, b))
		sweep(p, b, first, n);
}
