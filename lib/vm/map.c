/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * map.c: which object serves which addresses.
 *
 * Second from the top on the fault path: every fault looks its address up here, and only
 * up_map() and its kin change anything.  So the tree is tuned for looking up:
 *
 *	m->root --> | 0 | 8 |             key: nothing below child i starts before it
 *	             /     \
 *	     | 0 | 2 |     | 8 | 12 |     level 0: starts of entries
 *	       |   |         |    |
 *	    [0..2) [2..6) [8..9) [12..20)   and both ways through them, by next and prev, from m->first
 *
 * A B+ tree (Bayer and McCreight, Acta Informatica 1, 1972; Comer, "The Ubiquitous B-Tree", 1979): of 100,000 entries a lookup
 * reads five nodes, of which one or two are not in the cache, and then the one line of the entry that a fault needs.  (An AVL
 * tree was here before.  It read the lines of 17 entries, and a fault among so many took 1.4 times as long as one
 * among few.)  Nodes are joined with a neighbour whenever both fit into one.
 *
 * map_clip() can not fail, so there are always some to spare: map_entry_alloc()
 * sees to it that each entry that is not in the map yet has what it may need.  Should two threads that hold such entries
 * run out of them all the same, an entry goes without a place in the tree (`loose`): it is found by following the thread from
 * its predecessor.
 */
#include <errno.h>
#include <string.h>

#include "vm/map.h"
#include "vm/object.h"

#define LEVELS_MAX 16

/* The way to a leaf: node[l] is of level l, and at[l] is where it goes on. */
struct path {
	struct map_node *node[LEVELS_MAX];
	unsigned at[LEVELS_MAX];
	bool before; /* at[0] is 0, and that entry starts above */
};

/* ---- nodes ---- */

/* What two entries may need, which is as many as one call inserts: a node each level, and a root. */
static unsigned
nodes_wanted(const struct map *m)
{
	return 2 * (m->levels + 1);
}

/* True if there are as many as there should be. */
static bool
nodes_reserve(struct map *m, enum zone_wait wait)
{
	for (;;) {
		struct map_node *node;
		bool enough;

		pthread_mutex_lock(&m->node_lock);
		enough = m->nspare >= nodes_wanted(m);
		pthread_mutex_unlock(&m->node_lock);
		if (enough)
			return true;
		node = zone_alloc(&m->zones->part, wait);
		if (node == NULL)
			return false;
		pthread_mutex_lock(&m->node_lock);
		node->child[0] = m->spare;
		m->spare = node;
		m->nspare++;
		pthread_mutex_unlock(&m->node_lock);
	}
}

static struct map_node *
node_take(struct map *m, unsigned level)
{
	struct map_node *node;

	pthread_mutex_lock(&m->node_lock);
	node = m->spare;
	if (node != NULL) {
		m->spare = node->child[0];
		m->nspare--;
	}
	pthread_mutex_unlock(&m->node_lock);
	if (node == NULL)
		node = zone_alloc(&m->zones->part, ZONE_NOWAIT);
	if (node != NULL) {
		node->n = 0;
		node->level = level;
	}
	return node;
}

static void
node_give(struct map *m, struct map_node *node)
{
	pthread_mutex_lock(&m->node_lock);
	if (m->nspare < nodes_wanted(m)) {
		node->child[0] = m->spare;
		m->spare = node;
		m->nspare++;
		node = NULL;
	}
	pthread_mutex_unlock(&m->node_lock);
	zone_free(&m->zones->part, node);
}

static void
set_root(struct map *m, struct map_node *root)
{
	pthread_mutex_lock(&m->node_lock);
	m->root = root;
	m->levels = root != NULL ? root->level + 1 : 0;
	pthread_mutex_unlock(&m->node_lock);
}

/* All of it at once: searching it would wait for one line after the other. */
static void
node_prefetch(const struct map_node *node)
{
	for (size_t at = 0; at < sizeof *node; at += 64)
		__builtin_prefetch((const char *)node + at);
}

/* The last of the keys that is not above; 0 if all are. */
static unsigned
node_find(const struct map_node *node, uintptr_t key)
{
	const uintptr_t *base = node->key;

	/* Without a branch that depends on a key: those are as good as random. */
	for (unsigned n = node->n; n > 1;) {
		const unsigned half = n / 2;

		base = base[half] <= key ? base + half : base;
		n -= half;
	}
	return (unsigned)(base - node->key);
}

static void
node_insert(struct map_node *node, unsigned at, uintptr_t key, void *child)
{
	assert(node->n < MAP_FANOUT && at <= node->n);
	memmove(&node->key[at + 1], &node->key[at], (node->n - at) * sizeof node->key[0]);
	memmove(&node->child[at + 1], &node->child[at], (node->n - at) * sizeof node->child[0]);
	node->key[at] = key;
	node->child[at] = child;
	node->n++;
}

static void
node_remove(struct map_node *node, unsigned at)
{
	node->n--;
	memmove(&node->key[at], &node->key[at + 1], (node->n - at) * sizeof node->key[0]);
	memmove(&node->child[at], &node->child[at + 1], (node->n - at) * sizeof node->child[0]);
}

/* The children from `from` on go behind those of `to`. */
static void
node_move(struct map_node *to, struct map_node *node, unsigned from)
{
	const unsigned n = node->n - from;

	assert(to->n + n <= MAP_FANOUT && to->level == node->level);
	memcpy(&to->key[to->n], &node->key[from], n * sizeof node->key[0]);
	memcpy(&to->child[to->n], &node->child[from], n * sizeof node->child[0]);
	to->n += n;
	node->n = from;
}

/* ---- the tree ---- */

/* => there is a root */
static void
tree_find(const struct map *m, uintptr_t key, struct path *way)
{
	struct map_node *node = m->root;

	assert(node->level + 1 == m->levels);
	for (;;) {
		const unsigned at = node_find(node, key);

		assert(node->level < LEVELS_MAX);
		way->node[node->level] = node;
		way->at[node->level] = at;
		if (node->level == 0)
			break;
		assert(node->child[at]->level + 1 == node->level);
		node = node->child[at];
	}
	way->before = way->at[0] == 0 && way->node[0]->key[0] > key;
}

/* False: there is no memory for it. */
static bool
tree_insert(struct map *m, struct map_entry *e)
{
	struct map_node *fresh[LEVELS_MAX];
	unsigned nfresh = 0, used = 0, full = 0;
	uintptr_t key = e->start;
	void *child = e;
	struct path way;

	if (m->root == NULL) {
		struct map_node *root = node_take(m, 0);

		if (root == NULL)
			return false;
		node_insert(root, 0, key, child);
		set_root(m, root);
		return true;
	}
	tree_find(m, key, &way);
	while (full < m->levels && way.node[full]->n == MAP_FANOUT)
		full++;
	for (const unsigned need = full + (full == m->levels); nfresh < need; nfresh++) {
		fresh[nfresh] = node_take(m, nfresh);
		if (fresh[nfresh] == NULL) {
			while (nfresh > 0)
				node_give(m, fresh[--nfresh]);
			return false;
		}
	}
	for (unsigned l = 0;; l++) {
		struct map_node *node, *upper;
		unsigned at;

		if (l == m->levels) {
			struct map_node *root, *old = m->root;

			assert(used < nfresh);
			root = fresh[used++];
			/* Its first key may be anything: nothing is below it. */
			node_insert(root, 0, old->key[0], old);
			node_insert(root, 1, key, child);
			set_root(m, root);
			break;
		}
		node = way.node[l];
		at = l == 0 && way.before ? 0 : way.at[l] + 1;
		if (node->n < MAP_FANOUT) {
			node_insert(node, at, key, child);
			break;
		}
		/* At its end a node stays full: who maps upwards has full ones. */
		assert(used < nfresh);
		upper = fresh[used++];
		node_move(upper, node, at == MAP_FANOUT ? MAP_FANOUT : MAP_FANOUT / 2);
		if (upper->n == 0 || at > node->n)
			node_insert(upper, at - node->n, key, child);
		else
			node_insert(node, at, key, child);
		key = upper->key[0];
		child = upper;
	}
	assert(used == nfresh);
	return true;
}

static void
tree_remove(struct map *m, struct map_entry *e)
{
	struct map_node *root;
	struct path way;

	tree_find(m, e->start, &way);
	assert(way.node[0]->entry[way.at[0]] == e);
	node_remove(way.node[0], way.at[0]);
	for (unsigned l = 0; l + 1 < m->levels; l++) {
		struct map_node *node = way.node[l], *up = way.node[l + 1];
		const unsigned at = way.at[l + 1];

		if (at > 0 && up->child[at - 1]->n + node->n <= MAP_FANOUT) {
			node_move(up->child[at - 1], node, 0);
			node_remove(up, at);
			node_give(m, node);
		} else if (at + 1 < up->n && node->n + up->child[at + 1]->n <= MAP_FANOUT) {
			struct map_node *next = up->child[at + 1];

			node_move(node, next, 0);
			node_remove(up, at + 1);
			node_give(m, next);
		} else if (node->n == 0) {
			/* An only child. */
			node_remove(up, at);
			node_give(m, node);
		} else {
			break;
		}
	}
	for (root = m->root; root != NULL && (root->n == 0 || (root->level > 0 && root->n == 1));
	     root = m->root) {
		set_root(m, root->n == 0 ? NULL : root->child[0]);
		node_give(m, root);
	}
}

/* The last entry that starts at `va` or before, or NULL. */
static struct map_entry *
last_from(const struct map *m, uintptr_t va)
{
	struct map_node *node = m->root;
	struct map_entry *e;
	unsigned at = 0;

	if (node != NULL) {
		while (at = node_find(node, va), node->level > 0) {
			node = node->child[at];
			node_prefetch(node);
		}
		e = node->entry[at];
		if (e->start > va)
			e = e->prev;
	} else {
		e = m->first;
	}
	if (m->nloose > 0) {
		while (e != NULL && e->start > va)
			e = e->prev;
		if (e == NULL && m->first != NULL && m->first->start <= va)
			e = m->first;
		while (e != NULL && e->next != NULL && e->next->start <= va)
			e = e->next;
	}
	return e;
}

/* ---- entries ---- */

static uint64_t
entry_pages(const struct map_entry *e)
{
	return (e->end - e->start) >> PAGE_SHIFT;
}

/* More is mapped by one entry, or less. */
static void
count_pages(struct map *m, const struct map_entry *e, uint64_t n, bool more)
{
	m->pages += more ? n : -n;
	if (e->wired > 0)
		m->wired += more ? n : -n;
}

static void
entry_link(struct map *m, struct map_entry *e, struct map_entry *prev, struct map_entry *next)
{
	assert(next == NULL || e->end <= next->start);

	e->prev = prev;
	e->next = next;
	e->linked = true;
	e->loose = !tree_insert(m, e);
	m->nloose += e->loose;
	stores_in_order();
	if (prev != NULL)
		prev->next = e;
	else
		m->first = e;
	if (next != NULL)
		next->prev = e;
	m->n++;
	count_pages(m, e, entry_pages(e), true);
}

struct map_entry *
map_entry_alloc(struct map *m, enum zone_wait wait)
{
	struct map_entry *e = zone_alloc(&m->zones->entry, wait);

	if (e != NULL && !nodes_reserve(m, wait)) {
		zone_free(&m->zones->entry, e);
		e = NULL;
	}
	if (e != NULL)
		memset(e, 0, sizeof *e); /* the atomics too: nobody else knows it yet */
	return e;
}

struct ra_streams *
map_streams(struct map *m, struct map_entry *e)
{
	struct ra_streams *rs = atomic_load_explicit(&e->streams, memory_order_acquire);
	struct ra_streams *there = NULL;

	if (rs != NULL)
		return rs;
	rs = zone_alloc(&m->zones->part, ZONE_NOWAIT);
	if (rs == NULL)
		return NULL;
	memset(rs, 0, sizeof *rs);
	if (atomic_compare_exchange_strong(&e->streams, &there, rs))
		return rs;
	zone_free(&m->zones->part, rs);
	return there;
}

void
map_entry_free(struct map *m, struct map_entry *e)
{
	assert(e == NULL || !e->linked);
	if (e != NULL)
		zone_free(&m->zones->part, atomic_load(&e->streams));
	zone_free(&m->zones->entry, e);
}

/* ---- the map ---- */

void
map_zones_init(struct map_zones *z, struct arena *a)
{
	zone_init(&z->entry, a, "entry", sizeof(struct map_entry), NULL, NULL);
	zone_init(&z->part, a, "map part", MAP_PART_BYTES, NULL, NULL);
}

void
map_zones_fini(struct map_zones *z)
{
	zone_fini(&z->part);
	zone_fini(&z->entry);
}

void
map_init(struct map *m, struct map_zones *zones)
{
	pthread_rwlockattr_t attr;

	memset(m, 0, sizeof *m);
	m->zones = zones;
	pthread_mutex_init(&m->change, NULL);
	pthread_mutex_init(&m->node_lock, NULL);
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&m->lock, &attr);
	pthread_rwlockattr_destroy(&attr);
}

void
map_fini(struct map *m)
{
	assert(m->root == NULL && m->first == NULL && m->n == 0 && m->pages == 0 && m->wired == 0 &&
	       m->nloose == 0);
	while (m->spare != NULL) {
		struct map_node *node = m->spare;

		m->spare = node->child[0];
		zone_free(&m->zones->part, node);
	}
	pthread_mutex_destroy(&m->node_lock);
	pthread_rwlock_destroy(&m->lock);
	pthread_mutex_destroy(&m->change);
}

struct map_entry *
map_lookup(struct map *m, uintptr_t va)
{
	struct map_entry *e = last_from(m, va);

	return e != NULL && e->end > va ? e : NULL;
}

struct map_entry *
map_first_from(struct map *m, uintptr_t va)
{
	struct map_entry *e = last_from(m, va);

	if (e != NULL && e->end > va)
		return e;
	return e != NULL ? e->next : m->first;
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
	struct map_entry *prev = last_from(m, e->start);
	struct map_entry *next = prev != NULL ? prev->next : m->first;

	assert(e->start < e->end && ((e->start | e->end) & PAGE_MASK) == 0);
	assert(!e->linked);
	/* Whoever looks from outside (adopt.h) finds it by the thread, whole. */
	if ((prev != NULL && prev->end > e->start) || (next != NULL && next->start < e->end))
		return -EEXIST;
	entry_link(m, e, prev, next);
	return 0;
}

void
map_remove(struct map *m, struct map_entry *e)
{
	assert(e->linked && m->n > 0);

	if (!e->loose)
		tree_remove(m, e);
	m->nloose -= e->loose;
	if (e->prev != NULL)
		e->prev->next = e->next;
	else
		m->first = e->next;
	if (e->next != NULL)
		e->next->prev = e->prev;
	m->n--;
	count_pages(m, e, entry_pages(e), false);
	e->next = e->prev = NULL;
	e->linked = e->loose = false;
}

void
map_wire(struct map *m, struct map_entry *e, unsigned wired)
{
	assert(e->linked);
	if (e->wired > 0)
		m->wired -= entry_pages(e);
	e->wired = wired;
	if (e->wired > 0)
		m->wired += entry_pages(e);
}

void
map_extend(struct map *m, struct map_entry *e, uintptr_t end)
{
	assert(e->linked && end > e->end && (end & PAGE_MASK) == 0);
	assert(e->next == NULL || end <= e->next->start);

	count_pages(m, e, (end - e->end) >> PAGE_SHIFT, true);
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
	assert(upper != NULL && !upper->linked);

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

	count_pages(m, upper, entry_pages(upper), false); /* which linking it adds again */
	/* In this order there is never an address that is in none: adopt.h. */
	entry_link(m, upper, e, e->next);
	stores_in_order();
	e->end = at;
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
		if (atomic_load(&upper->unrecorded))
			atomic_store(&e->unrecorded, true);
		count_pages(m, e, entry_pages(upper), true);
		e->end = upper->end; /* as in clip_at() */
		stores_in_order();
		map_remove(m, upper);
		upper->next = gone;
		gone = upper;
	}
	return gone;
}

/* ---- the checker ---- */

#ifndef NDEBUG

/* The entries of the tree in order; the thread has the same, and loose ones between them. */
struct check {
	const struct map_entry *at;
	size_t n;
};

/* All keys are in [low, high], but for the first of the lowest nodes, which may be above or below what is there. */
static void
check_node(struct check *c, const struct map_node *node, unsigned level, uintptr_t low,
	   uintptr_t high)
{
	assert(node->level == level && node->n > 0 && node->n <= MAP_FANOUT);
	for (unsigned i = 0; i < node->n; i++) {
		const uintptr_t from = i == 0 ? low : node->key[i];
		const uintptr_t to = i + 1 < node->n ? node->key[i + 1] - 1 : high;

		assert(i < 2 || node->key[i - 1] < node->key[i]);
		assert(from >= low && to <= high && from <= to);
		if (level > 0) {
			check_node(c, node->child[i], level - 1, from, to);
			continue;
		}
		while (c->at != NULL && c->at->loose)
			c->at = c->at->next;
		assert(c->at != NULL && c->at == node->entry[i]);
		assert(c->at->start == node->key[i]);
		assert(c->at->start >= from && c->at->start <= to);
		c->at = c->at->next;
		c->n++;
	}
}

#endif

void
map_check(struct map *m)
{
#ifndef NDEBUG
	struct check c = { .at = m->first };
	const struct map_entry *prev = NULL;
	size_t n = 0, nloose = 0;
	uint64_t pages = 0, wired = 0;

	for (const struct map_entry *e = m->first; e != NULL; prev = e, e = e->next) {
		assert(e->linked && e->prev == prev);
		assert(e->start < e->end && ((e->start | e->end) & PAGE_MASK) == 0);
		assert(prev == NULL || prev->end <= e->start);
		n++;
		nloose += e->loose;
		pages += entry_pages(e);
		wired += e->wired > 0 ? entry_pages(e) : 0;
	}
	assert(n == m->n && nloose == m->nloose && pages == m->pages && wired == m->wired);
	if (m->root != NULL) {
		assert(m->levels == m->root->level + 1);
		check_node(&c, m->root, m->root->level, 0, UINTPTR_MAX);
	}
	assert(c.n + nloose == n);
#else
	(void)m;
#endif
}
