/* SPDX-License-Identifier: BSD-2-Clause */
#include <errno.h>
#include <string.h>

#include "vm/object.h"

static void
leaf_ctor(void *item)
{
	struct leaf *l = item;

	pthread_mutex_init(&l->lock, NULL);
}

static void
leaf_dtor(void *item)
{
	struct leaf *l = item;

	pthread_mutex_destroy(&l->lock);
}

static void
object_ctor(void *item)
{
	struct object *o = item;

	pthread_rwlock_init(&o->lock, NULL);
}

static void
object_dtor(void *item)
{
	struct object *o = item;

	pthread_rwlock_destroy(&o->lock);
}

void
object_zones_init(struct object_zones *z, struct arena *a)
{
	z->relink = NULL;
	zone_init(&z->object, a, "object", sizeof(struct object), object_ctor, object_dtor);
	zone_init(&z->node, a, "node", sizeof(struct node), NULL, NULL);
	zone_init(&z->leaf, a, "leaf", sizeof(struct leaf), leaf_ctor, leaf_dtor);
	zone_init(&z->anon, a, "anon", sizeof(struct anon), NULL, NULL);
	zone_init(&z->account, a, "account", sizeof(struct account), NULL, NULL);
}

void
object_zones_fini(struct object_zones *z)
{
	zone_fini(&z->account);
	zone_fini(&z->anon);
	zone_fini(&z->leaf);
	zone_fini(&z->node);
	zone_fini(&z->object);
}

void
object_zones_trim(struct object_zones *z)
{
	zone_trim(&z->account);
	zone_trim(&z->anon);
	zone_trim(&z->leaf);
	zone_trim(&z->node);
	zone_trim(&z->object);
}

void
object_zones_check(struct object_zones *z)
{
	zone_check(&z->account);
	zone_check(&z->anon);
	zone_check(&z->leaf);
	zone_check(&z->node);
	zone_check(&z->object);
}

struct object *
object_alloc(struct object_zones *z, uint64_t npages, enum zone_wait wait)
{
	struct object *o = zone_alloc(&z->object, wait);

	assert(npages > 0);
	if (o == NULL)
		return NULL;
	o->zones = z;
	o->npages = npages;
	o->height = 0;
	for (uint64_t n = (npages - 1) >> LEAF_SHIFT; n > 0; n >>= LEAF_SHIFT)
		o->height++;
	o->root = NULL;
	atomic_store(&o->refs, 1);
	atomic_store(&o->handles, 0);
	o->pool = 0;
	atomic_store(&o->unrecorded, false);
	o->account = NULL;
	o->roams = o->loose = o->apart = false;
	o->noreserve = o->readonly = o->parting = false;
	o->reserved = 0;
	o->release = NULL;
	o->owner = NULL;
	o->id = 0;
	o->next = o->prev = NULL;
	o->name = NULL;
	o->backing = o->shadows = o->sibling = NULL;
	o->backing_offset = 0;
	o->nshadows = 0;
	atomic_store(&o->chained, false);
	o->source = NULL;
	o->named = false;
	return o;
}

void
object_ref(struct object *o)
{
	atomic_fetch_add_explicit(&o->refs, 1, memory_order_relaxed);
}

bool
object_drop(struct object *o)
{
	return atomic_fetch_sub_explicit(&o->refs, 1, memory_order_acq_rel) == 1;
}

void
object_unref(struct object *o)
{
	if (object_drop(o))
		o->release(o);
}

void
object_free(struct object *o)
{
	assert(o->root == NULL && atomic_load(&o->refs) == 0);
	assert(o->backing == NULL && o->shadows == NULL && o->name == NULL);
	account_unref(o->account);
	zone_free(&o->zones->object, o);
}

struct account *
account_create(struct object_zones *z, struct account *group)
{
	struct account *a = zone_alloc(&z->account, ZONE_WAIT);

	if (a == NULL)
		return NULL;
	memset(a, 0, sizeof *a);
	atomic_init(&a->refs, 1);
	a->zone = &z->account;
	a->group = group != NULL ? account_ref(group) : NULL;
	return a;
}

struct account *
account_ref(struct account *a)
{
	atomic_fetch_add(&a->refs, 1);
	return a;
}

void
account_unref(struct account *a)
{
	if (a == NULL || atomic_fetch_sub(&a->refs, 1) > 1)
		return;
	assert(atomic_load(&a->mapped) == 0);
	assert(atomic_load(&a->promised) == 0 && atomic_load(&a->touched) == 0);
	account_unref(a->group);
	zone_free(a->zone, a);
}

void
account_promise(struct account *a, int64_t n)
{
	for (; a != NULL; a = a->group) {
		assert(n >= 0 || atomic_load(&a->promised) >= (size_t)-n);
		atomic_fetch_add(&a->promised, (size_t)n);
	}
}

bool
account_may_promise(const struct account *a, uint64_t n)
{
	const size_t limit =
		a != NULL ? atomic_load_explicit(&a->swap_limit, memory_order_relaxed) : 0;

	return limit == 0 ||
	       atomic_load_explicit(&a->promised, memory_order_relaxed) +
			       atomic_load_explicit(&a->touched, memory_order_relaxed) + n <=
		       limit;
}

void
object_pays(struct object *o, struct account *a)
{
	assert(o->account == NULL);
	o->account = a;
	account_promise(a, (int64_t)o->reserved);
}

unsigned
account_share(const struct account *a, unsigned want)
{
	for (; a != NULL && want > 1; a = a->group) {
		const unsigned most = atomic_load_explicit(&a->reads_max, memory_order_relaxed);
		const unsigned now = atomic_load_explicit(&a->reads, memory_order_relaxed);

		if (most != 0)
			want = MIN(want, MAX(most - MIN(most, now), 1u));
	}
	return want;
}

struct account *
account_reading(struct account *a, unsigned n)
{
	if (a == NULL || atomic_load_explicit(&a->reads_max, memory_order_relaxed) == 0)
		return NULL;
	atomic_fetch_add_explicit(&a->reads, n, memory_order_relaxed);
	return account_ref(a);
}

void
account_read(struct account *a, unsigned n)
{
	if (a == NULL)
		return;
	atomic_fetch_sub_explicit(&a->reads, n, memory_order_relaxed);
	account_unref(a);
}

int
object_grow(struct object *o, uint64_t npages, enum zone_wait wait)
{
	struct node *n = NULL;
	bool lacking;

	assert(npages >= o->npages);
	for (;;) {
		pthread_rwlock_wrlock(&o->lock);
		lacking = (npages - 1) >> LEAF_SHIFT >> (LEAF_SHIFT * o->height) != 0;
		if (!lacking)
			o->npages = npages;
		if (lacking && o->root == NULL) {
			o->height++;
		} else if (lacking && n != NULL) {
			/* One level more: what was there is the first child of the new root. */
			memset(n, 0, sizeof *n);
			n->child[0] = o->root;
			o->root = n;
			o->height++;
			n = NULL;
		}
		pthread_rwlock_unlock(&o->lock);
		if (!lacking)
			break;
		/* No lock is held: the allocation may wait. */
		if (n == NULL && (n = zone_alloc(&o->zones->node, wait)) == NULL)
			return -ENOMEM;
	}
	zone_free(&o->zones->node, n);
	return 0;
}

/* Which child of a node `level` above the leaves leads to `index`. */
static inline unsigned
child_of(uint64_t index, unsigned level)
{
	return (index >> (LEAF_SHIFT * level)) & (LEAF_SLOTS - 1);
}

/* => o->lock is held either way. */
static struct leaf *
lookup_locked(const struct object *o, uint64_t index)
{
	void *at = o->root;

	for (unsigned level = o->height; level > 0 && at != NULL; level--)
		at = ((struct node *)at)->child[child_of(index, level)];
	return at;
}

/* => o->lock is held for writing.  A node left without children by a failure is pruned later. */
static struct leaf *
create_locked(struct object *o, uint64_t index, bool *created)
{
	void **link = &o->root;
	struct leaf *l;

	for (unsigned level = o->height; level > 0; level--) {
		if (*link == NULL) {
			struct node *n = zone_alloc(&o->zones->node, ZONE_NOWAIT);

			if (n == NULL)
				return NULL;
			memset(n, 0, sizeof *n);
			stores_in_order();
			*link = n;
		}
		link = &((struct node *)*link)->child[child_of(index, level)];
	}
	if (*link != NULL)
		return *link;
	l = zone_alloc(&o->zones->leaf, ZONE_NOWAIT);
	if (l == NULL)
		return NULL;
	l->object = o;
	l->noreserve = o->noreserve && o->source == NULL;
	l->named = o->named;
	l->sourced = o->source != NULL;
	l->base = index & ~(uint64_t)(LEAF_SLOTS - 1);
	l->nused = 0;
	memset(l->slot, 0, sizeof l->slot);
	stores_in_order();
	*link = l;
	*created = true;
	return l;
}

struct leaf *
object_leaf(struct object *o, uint64_t index, bool *created)
{
	struct leaf *l;

	assert(index < o->npages);
	pthread_rwlock_rdlock(&o->lock);
	l = lookup_locked(o, index);
	if (l == NULL && created != NULL) {
		pthread_rwlock_unlock(&o->lock);
		pthread_rwlock_wrlock(&o->lock);
		l = create_locked(o, index, created);
	}
	if (l != NULL) {
		/* The lock waits for its own line first. */
		__builtin_prefetch(&l->slot[index % LEAF_SLOTS]);
		pthread_mutex_lock(&l->lock);
	}
	pthread_rwlock_unlock(&o->lock);
	return l;
}

bool
object_has(struct object *o, uint64_t index)
{
	struct leaf *l = object_leaf(o, index, NULL);
	bool has;

	if (l == NULL)
		return false;
	has = l->slot[index - l->base] != 0;
	pthread_mutex_unlock(&l->lock);
	return has;
}

/* The first leaf at or after `index` below `at`, a node `level` above the leaves. */
static struct leaf *
first_from(void *at, unsigned level, uint64_t index)
{
	struct leaf *l = NULL;

	if (at == NULL || level == 0)
		return at;
	for (unsigned c = child_of(index, level); c < LEAF_SLOTS && l == NULL; c++) {
		l = first_from(((struct node *)at)->child[c], level - 1, index);
		index = 0; /* later children are taken from their start */
	}
	return l;
}

struct leaf *
object_next_leaf(struct object *o, uint64_t from)
{
	struct leaf *l;

	if (from >= o->npages)
		return NULL;
	pthread_rwlock_rdlock(&o->lock);
	l = first_from(o->root, o->height, from & ~(uint64_t)(LEAF_SLOTS - 1));
	if (l != NULL)
		pthread_mutex_lock(&l->lock);
	pthread_rwlock_unlock(&o->lock);
	return l;
}

/*
 * Prune below *link, a node `level` above the leaves that covers indices from `base`.
 * => o->lock is held for writing, so nobody is between finding a leaf and locking it.
 */
static size_t
prune(struct object *o, void **link, unsigned level, uint64_t base, uint64_t first, uint64_t end)
{
	const uint64_t span = (uint64_t)1 << (LEAF_SHIFT * level);
	size_t freed = 0;
	bool empty = true;

	if (*link == NULL)
		return 0;
	if (level == 0) {
		struct leaf *l = *link;

		pthread_mutex_lock(&l->lock);
		empty = l->nused == 0;
		pthread_mutex_unlock(&l->lock);
		if (empty) {
			*link = NULL;
			stores_in_order();
			zone_free(&o->zones->leaf, l);
		}
		return empty;
	}
	for (unsigned c = 0; c < LEAF_SLOTS; c++) {
		struct node *n = *link;
		const uint64_t at = base + c * span;

		if (at < end && at + span > first)
			freed += prune(o, &n->child[c], level - 1, at, first, end);
		if (n->child[c] != NULL)
			empty = false;
	}
	if (empty) {
		void *gone = *link;

		*link = NULL;
		stores_in_order();
		zone_free(&o->zones->node, gone);
	}
	return freed;
}

size_t
object_prune(struct object *o, uint64_t first, uint64_t end)
{
	size_t freed;

	pthread_rwlock_wrlock(&o->lock);
	freed = prune(o, &o->root, o->height, 0, first, end);
	pthread_rwlock_unlock(&o->lock);
	return freed;
}

static void
check(struct object *o, void *at, unsigned level, uint64_t base)
{
	const uint64_t span = (uint64_t)1 << (LEAF_SHIFT * level);

	if (at == NULL)
		return;
	if (level == 0) {
		struct leaf *l = at;
		unsigned used = 0;

		assert(l->object == o && l->base == base && base < o->npages);
		assert(l->noreserve == (o->noreserve && o->source == NULL));
		assert(l->named == o->named && l->sourced == (o->source != NULL));
		for (unsigned i = 0; i < LEAF_SLOTS; i++) {
			if (l->slot[i] == 0)
				continue;
			assert(base + i < o->npages);
			assert(l->slot[i] == SLOT_BASE || atomic_load(&leaf_anon(l, i)->refs) > 0);
			assert(l->slot[i] == SLOT_BASE ||
			       l->sourced == ((l->slot[i] & SLOT_NAMED) != 0));
			used++;
		}
		assert(used == l->nused);
		(void)used;
		return;
	}
	for (unsigned c = 0; c < LEAF_SLOTS; c++)
		check(o, ((struct node *)at)->child[c], level - 1, base + c * span);
}

/* Hand every leaf below `at`, `level` above the leaves, to another object. */
static void
hand_on(void *at, unsigned level, struct object *to)
{
	if (at == NULL)
		return;
	if (level == 0) {
		struct leaf *l = at;

		pthread_mutex_lock(&l->lock);
		for (unsigned i = 0;
		     i < LEAF_SLOTS && l->noreserve && l->object->account != to->account; i++) {
			const bool is = (l->slot[i] & SLOT_ANON) != 0;

			if (is && l->object->account != NULL)
				atomic_fetch_sub(&l->object->account->touched, 1);
			if (is && to->account != NULL)
				atomic_fetch_add(&to->account->touched, 1);
		}
		l->object = to;
		pthread_mutex_unlock(&l->lock);
		return;
	}
	for (unsigned c = 0; c < LEAF_SLOTS; c++)
		hand_on(((struct node *)at)->child[c], level - 1, to);
}

void
object_take_tree(struct object *to, struct object *from)
{
	void *root;

	assert(to->root == NULL && to->npages == from->npages && to->noreserve == from->noreserve);
	assert(to->height == from->height); /* that of the length, also after object_grow() */
	assert(to->named == from->named && to->source == NULL && from->source == NULL);
	/* One lock after the other: nobody is on his way down either tree, and there is no order between objects. */
	pthread_rwlock_wrlock(&from->lock);
	root = from->root;
	from->root = NULL;
	pthread_rwlock_unlock(&from->lock);
	hand_on(root, from->height, to);
	pthread_rwlock_wrlock(&to->lock);
	to->root = root;
	pthread_rwlock_unlock(&to->lock);
}

void
relink_begin(const struct object *a, void *a_root, struct object *a_backing, uint64_t a_offset,
	     const struct object *b, void *b_root, struct object *b_backing, uint64_t b_offset)
{
	struct relink *re = a->zones->relink;

	if (re == NULL)
		return;
	assert(re->n == 0);
	re->to[0].object = a;
	re->to[0].root = a_root;
	re->to[0].backing = a_backing;
	re->to[0].offset = a_offset;
	re->to[1].object = b;
	re->to[1].root = b_root;
	re->to[1].backing = b_backing;
	re->to[1].offset = b_offset;
	stores_in_order();
	re->n = b != NULL ? 2 : 1;
	stores_in_order();
}

void
relink_end(const struct object *a)
{
	stores_in_order();
	if (a->zones->relink != NULL)
		a->zones->relink->n = 0;
}

static uint64_t
count_below(void *at, unsigned level)
{
	uint64_t n = 0;

	if (at == NULL)
		return 0;
	if (level == 0) {
		struct leaf *l = at;

		pthread_mutex_lock(&l->lock);
		n = l->nused;
		pthread_mutex_unlock(&l->lock);
		return n;
	}
	for (unsigned c = 0; c < LEAF_SLOTS; c++)
		n += count_below(((struct node *)at)->child[c], level - 1);
	return n;
}

uint64_t
object_count(struct object *o)
{
	uint64_t n;

	pthread_rwlock_rdlock(&o->lock);
	n = count_below(o->root, o->height);
	pthread_rwlock_unlock(&o->lock);
	return n;
}

void
object_shadow(struct object *o, struct object *backing, uint64_t offset)
{
	assert(o->backing == NULL && offset + o->npages <= backing->npages);
	o->backing = backing;
	o->backing_offset = offset;
	o->sibling = backing->shadows;
	backing->shadows = o;
	backing->nshadows++;
	if (backing->source == NULL)
		atomic_store(&o->chained, true);
}

struct object *
object_unshadow(struct object *o)
{
	struct object *b = o->backing, **link = &b->shadows;

	while (*link != o)
		link = &(*link)->sibling;
	*link = o->sibling;
	b->nshadows--;
	o->backing = o->sibling = NULL;
	o->backing_offset = 0;
	return b;
}

unsigned
object_depth(const struct object *o)
{
	unsigned n = 0;

	for (; o->backing != NULL; o = o->backing)
		n++;
	return n;
}

void
object_check(struct object *o)
{
	unsigned n = 0;

	for (const struct object *s = o->shadows; s != NULL; s = s->sibling, n++)
		assert(s->backing == o && s->backing_offset + s->npages <= o->npages);
	assert(n == o->nshadows);
	(void)n;
	pthread_rwlock_rdlock(&o->lock);
	assert(atomic_load(&o->refs) >= atomic_load(&o->handles) + o->nshadows);
	check(o, o->root, o->height, 0);
	pthread_rwlock_unlock(&o->lock);
}
