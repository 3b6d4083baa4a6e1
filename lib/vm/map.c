/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * map.c: which object serves which addresses.
 *
 * Second from the top on the fault path: every fault looks its address up here, and only
 * up_map() and its kin change anything.  So the tree is tuned for looking up:
 *
 *	m->root --> [ 8..9 )                      in order:  m->first
 *	            /      \                                     |
 *	      [ 2..6 )    [ 12..20 )              [0..2) <-> [2..6) <-> [8..9) <-> [12..20)
 *	      /
 *	  [ 0..2 )                                both through the same entries, by next and prev
 *
 * An AVL tree, because it is the flattest binary one: 1.44 log2(n) deep at worst, against
 * 2 log2(n) for red-black, which saves rotations that we do not count.  A B-tree would miss
 * the cache less, but its nodes are allocated on the side: map_clip() could then fail in the
 * middle of an unmap, where here one spare entry is all that a split needs.  A splay tree
 * writes as it looks up, which readers that share a lock cannot.
 *
 * The thread makes a walk over a range one pointer a step, and it also says where a new
 * entry hangs: between two neighbours in order there is exactly one free place in the tree.
 */
#include <errno.h>
#include <string.h>

#include "vm/map.h"
#include "vm/object.h"

/* ---- the tree ---- */

static int
height(const struct map_entry *e)
{
	return e == NULL ? 0 : e->height;
}

/* Put `new` (or nothing) where `old` hangs. */
static void
tree_replace(struct map *m, struct map_entry *old, struct map_entry *new)
{
	struct map_entry *parent = old->parent;

	if (parent == NULL)
		m->root = new;
	else if (parent->left == old)
		parent->left = new;
	else
		parent->right = new;
	if (new != NULL)
		new->parent = parent;
}

static void
set_left(struct map_entry *e, struct map_entry *child)
{
	e->left = child;
	if (child != NULL)
		child->parent = e;
}

static void
set_right(struct map_entry *e, struct map_entry *child)
{
	e->right = child;
	if (child != NULL)
		child->parent = e;
}

static void
set_height(struct map_entry *e)
{
	e->height = 1 + MAX(height(e->left), height(e->right));
}

/* The left child comes up, `e` goes down to its right.  Returns the new top. */
static struct map_entry *
rotate_right(struct map *m, struct map_entry *e)
{
	struct map_entry *top = e->left;

	tree_replace(m, e, top);
	set_left(e, top->right);
	set_right(top, e);
	set_height(e);
	set_height(top);
	return top;
}

static struct map_entry *
rotate_left(struct map *m, struct map_entry *e)
{
	struct map_entry *top = e->right;

	tree_replace(m, e, top);
	set_right(e, top->left);
	set_left(top, e);
	set_height(e);
	set_height(top);
	return top;
}

/* One level: e's subtrees are right, and differ by 2 at most.  Returns what is now on top. */
static struct map_entry *
tree_balance_one(struct map *m, struct map_entry *e)
{
	const int lean = height(e->left) - height(e->right);

	if (lean > 1) {
		if (height(e->left->left) < height(e->left->right))
			rotate_left(m, e->left);
		return rotate_right(m, e);
	}
	if (lean < -1) {
		if (height(e->right->right) < height(e->right->left))
			rotate_right(m, e->right);
		return rotate_left(m, e);
	}
	set_height(e);
	return e;
}

/* From the lowest entry whose subtrees changed, upwards until a height comes out as it was. */
static void
tree_balance(struct map *m, struct map_entry *e)
{
	for (; e != NULL; e = e->parent) {
		const int before = e->height;

		e = tree_balance_one(m, e);
		if (e->height == before)
			break;
	}
}

/*
 * Hang `e` between its neighbours in order, either of which may be NULL.  Of two neighbours
 * one is an ancestor of the other, so one of them has no child on the side that faces the gap.
 */
static void
tree_insert(struct map *m, struct map_entry *e, struct map_entry *prev, struct map_entry *next)
{
	e->left = e->right = e->parent = NULL;
	e->height = 1;
	if (prev != NULL && prev->right == NULL) {
		set_right(prev, e);
	} else if (next != NULL) {
		assert(next->left == NULL);
		set_left(next, e);
	} else {
		assert(m->root == NULL);
		m->root = e;
	}
	tree_balance(m, e->parent);
}

static void
tree_remove(struct map *m, struct map_entry *e)
{
	struct map_entry *next = e->next; /* with a right subtree: its leftmost */
	struct map_entry *changed;

	if (e->left == NULL || e->right == NULL) {
		changed = e->parent;
		tree_replace(m, e, e->left != NULL ? e->left : e->right);
	} else {
		/* Others hold pointers to entries: `next` itself moves up, not what is in it. */
		assert(next != NULL && next->left == NULL);
		changed = next->parent == e ? next : next->parent;
		tree_replace(m, next, next->right);
		set_left(next, e->left);
		set_right(next, e->right);
		next->height = e->height;
		tree_replace(m, e, next);
	}
	tree_balance(m, changed);
}

/* ---- entries ---- */

static uint64_t
entry_pages(const struct map_entry *e)
{
	return (e->end - e->start) >> PAGE_SHIFT;
}

static void
entry_link(struct map *m, struct map_entry *e, struct map_entry *prev, struct map_entry *next)
{
	assert(prev == NULL || prev->end <= e->start);
	assert(next == NULL || e->end <= next->start);

	tree_insert(m, e, prev, next);
	e->prev = prev;
	e->next = next;
	if (prev != NULL)
		prev->next = e;
	else
		m->first = e;
	if (next != NULL)
		next->prev = e;
	m->n++;
	m->pages += entry_pages(e);
}

struct map_entry *
map_entry_alloc(struct map *m, enum zone_wait wait)
{
	struct map_entry *e = zone_alloc(m->entries, wait);

	if (e != NULL)
		memset(e, 0, sizeof *e); /* the atomics too: nobody else knows it yet */
	return e;
}

void
map_entry_free(struct map *m, struct map_entry *e)
{
	assert(e == NULL || e->height == 0); /* 0: in no map */
	zone_free(m->entries, e);
}

/* ---- the map ---- */

void
map_init(struct map *m, struct zone *entries)
{
	pthread_rwlockattr_t attr;

	memset(m, 0, sizeof *m);
	m->entries = entries;
	pthread_mutex_init(&m->change, NULL);
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&m->lock, &attr);
	pthread_rwlockattr_destroy(&attr);
}

void
map_fini(struct map *m)
{
	assert(m->root == NULL && m->first == NULL && m->n == 0 && m->pages == 0);
	pthread_rwlock_destroy(&m->lock);
	pthread_mutex_destroy(&m->change);
}

struct map_entry *
map_first_from(struct map *m, uintptr_t va)
{
	struct map_entry *e = m->root, *best = NULL;

	while (e != NULL) {
		if (e->end <= va) {
			e = e->right;
			continue;
		}
		best = e;
		if (e->start <= va)
			break; /* holds va: none below it can */
		e = e->left;
	}
	return best;
}

struct map_entry *
map_lookup(struct map *m, uintptr_t va)
{
	struct map_entry *e = map_first_from(m, va);

	return e != NULL && e->start <= va ? e : NULL;
}

bool
map_covers(struct map *m, uintptr_t start, uintptr_t end)
{
	struct map_entry *e;

	assert(start < end);
	for (e = map_first_from(m, start); e != NULL && e->start <= start; e = e->next) {
		if (e->end >= end)
			return true;
		start = e->end;
	}
	return false;
}

int
map_insert(struct map *m, struct map_entry *e)
{
	struct map_entry *at = m->root, *prev = NULL, *next = NULL;

	assert(e->start < e->end && ((e->start | e->end) & PAGE_MASK) == 0);
	assert(e->height == 0);

	while (at != NULL) {
		if (e->end <= at->start) {
			next = at;
			at = at->left;
		} else if (e->start >= at->end) {
			prev = at;
			at = at->right;
		} else {
			return -EEXIST;
		}
	}
	entry_link(m, e, prev, next);
	return 0;
}

void
map_remove(struct map *m, struct map_entry *e)
{
	assert(e->height > 0 && m->n > 0);

	tree_remove(m, e);
	if (e->prev != NULL)
		e->prev->next = e->next;
	else
		m->first = e->next;
	if (e->next != NULL)
		e->next->prev = e->prev;
	m->n--;
	m->pages -= entry_pages(e);
	e->left = e->right = e->parent = e->next = e->prev = NULL;
	e->height = 0;
}

void
map_extend(struct map *m, struct map_entry *e, uintptr_t end)
{
	assert(e->height > 0 && end > e->end && (end & PAGE_MASK) == 0);
	assert(e->next == NULL || end <= e->next->start);

	m->pages += (end - e->end) >> PAGE_SHIFT;
	e->end = end; /* the order of entries is as it was */
}

/* If an entry straddles `at`, cut it there: *spare becomes its upper half. */
static void
clip_at(struct map *m, uintptr_t at, struct map_entry **spare)
{
	struct map_entry *e = map_lookup(m, at), *upper;

	if (e == NULL || e->start == at)
		return;
	upper = *spare;
	*spare = NULL;
	assert(upper != NULL && upper->height == 0);

	upper->start = at;
	upper->end = e->end;
	upper->object = e->object;
	upper->offset = e->offset + ((at - e->start) >> PAGE_SHIFT);
	upper->prot = e->prot;
	upper->advice = e->advice;
	upper->inherit = e->inherit;
	upper->flags = e->flags;
	upper->wired = e->wired;
	upper->shard = e->shard;
	upper->serial = e->serial;
	atomic_store_explicit(&upper->unrecorded, atomic_load(&e->unrecorded),
			      memory_order_relaxed);
	if (upper->object != NULL)
		object_ref(upper->object);

	e->end = at;
	m->pages -= entry_pages(upper); /* which linking it adds again */
	entry_link(m, upper, e, e->next);
}

void
map_clip(struct map *m, uintptr_t start, uintptr_t end, struct map_entry *spare[2])
{
	assert(start < end && ((start | end) & PAGE_MASK) == 0);
	clip_at(m, start, &spare[0]);
	clip_at(m, end, &spare[1]);
}

/* True if the upper neighbour of `e` could be a part of it. */
static bool
alike(const struct map_entry *e, const struct map_entry *upper)
{
	return e->end == upper->start && e->object == upper->object &&
	       e->offset + entry_pages(e) == upper->offset && e->prot == upper->prot &&
	       e->advice == upper->advice && e->inherit == upper->inherit &&
	       e->flags == upper->flags && e->wired == upper->wired && e->shard == upper->shard &&
	       e->serial == upper->serial && e->gone == upper->gone;
}

struct map_entry *
map_join(struct map *m, uintptr_t start, uintptr_t end)
{
	struct map_entry *e = map_first_from(m, start - 1), *gone = NULL;

	if (e == NULL)
		return NULL;
	while (e->next != NULL && e->next->start <= end) {
		struct map_entry *upper = e->next;

		if (!alike(e, upper)) {
			e = upper;
			continue;
		}
		map_remove(m, upper);
		if (atomic_load(&upper->unrecorded))
			atomic_store(&e->unrecorded, true);
		map_extend(m, e, upper->end);
		upper->next = gone;
		gone = upper;
	}
	return gone;
}

/* ---- the checker ---- */

#ifndef NDEBUG

/* How far the thread has been followed; the tree, walked in order, must agree at each step. */
struct check {
	const struct map_entry *prev, *at;
	size_t n;
	uint64_t pages;
};

/* Ends even in a tree that loops: heights are positive and fall with every step down. */
static void
check_subtree(struct check *c, const struct map_entry *e, const struct map_entry *parent)
{
	const int left = height(e->left), right = height(e->right);

	assert(e->parent == parent);
	assert(left >= 0 && right >= 0 && e->height == 1 + MAX(left, right));
	assert(left - right <= 1 && right - left <= 1);

	if (e->left != NULL)
		check_subtree(c, e->left, e);

	assert(c->at == e);
	assert(e->prev == c->prev);
	assert(e->start < e->end && ((e->start | e->end) & PAGE_MASK) == 0);
	assert(e->prev == NULL || e->prev->end <= e->start);
	c->n++;
	c->pages += entry_pages(e);
	c->prev = e;
	c->at = e->next;

	if (e->right != NULL)
		check_subtree(c, e->right, e);
}

#endif

void
map_check(struct map *m)
{
#ifndef NDEBUG
	struct check c = { .at = m->first };

	if (m->root != NULL)
		check_subtree(&c, m->root, NULL);
	assert(c.at == NULL);
	assert(c.n == m->n);
	assert(c.pages == m->pages);
#else
	(void)m;
#endif
}
