/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * object.h (private): pages under one identity.
 *
 * An object is an array of slots, one a page, in a radix tree: inner nodes of 512 pointers over
 * leaves of 512 slots (2 MiB of pages).  A part that was never touched has no nodes, so a sparse
 * object of a terabyte costs one struct.  A slot is one tagged word:
 *
 *	0            nothing: zeros
 *	ANON  | 1    an anonymous page, in core or not (anon.h)
 *
 * The leaf is the unit of locking; it is taken for the few instructions in which a slot is looked
 * up or changed, never across a system call.  What must stay put for longer is made busy.
 *
 * Alternative looked at: a hash of (object, index), as 4.4BSD and FreeBSD's early VM.  It has no
 * per-leaf cost, but neighbours are then found one by one, and read-ahead, pageout and unmap all
 * work on runs.
 *
 * Lock order: docs/architecture.md.  Here:
 *
 *	object->lock (read: walk the tree; write: link and unlink nodes)  >  leaf->lock
 *
 * Keys: (c) constant once created, (o) object->lock, (l) leaf->lock, (a) atomic.
 */
#ifndef UP_OBJECT_H
#define UP_OBJECT_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/base.h"
#include "vm/anon.h"
#include "vm/zone.h"

#define LEAF_SHIFT 9
#define LEAF_SLOTS (1u << LEAF_SHIFT)

struct object;

struct leaf {
	pthread_mutex_t lock;
	struct object *object;	    /* (c) while linked */
	uint64_t base;		    /* (c) while linked: index of slot 0 */
	unsigned nused;		    /* (l) slots that are not 0 */
	uintptr_t slot[LEAF_SLOTS]; /* (l) */
};

/* An inner node of the radix tree: only pointers. */
struct node {
	void *child[LEAF_SLOTS];
};

/* What objects are made of; one per runtime. */
struct object_zones {
	struct zone object, node, leaf, anon;
};

struct object {
	pthread_rwlock_t lock;
	struct object_zones *zones; /* (c) */
	_Atomic uint64_t npages;    /* (a) grows only; (o) for writing to change */
	unsigned height;	    /* (o) levels of inner nodes */
	void *root;		    /* (o) */
	atomic_uint refs;	    /* (a) map entries and handles */
	atomic_uint handles;	    /* (a) references held by the program */
	bool roams;		    /* (c) may be unmapped and mapped elsewhere with its pages */
	bool noreserve;		    /* (c) pages are promised when first touched, not when mapped */
	uint64_t reserved; /* pages promised when mapped (vm/resv.h); map->change guards it */
	void (*release)(struct object *); /* (c) called when refs drops to 0 */
	void *owner;			  /* (c) the runtime's, for release */
	uint64_t id;			  /* (c) for people: 1, 2, ... as they were created */
	struct object *next, *prev;	  /* the runtime's list of objects; its owner guards them */
};

void object_zones_init(struct object_zones *z, struct arena *a);
void object_zones_fini(struct object_zones *z);
/* Give cached empty slabs back. */
void object_zones_trim(struct object_zones *z);
void object_zones_check(struct object_zones *z);

/* One reference, the caller's.  NULL when the budget has no room. */
struct object *object_alloc(struct object_zones *z, uint64_t npages, enum zone_wait wait);
void object_ref(struct object *o);
/* The last one calls o->release, which empties the object and calls object_free(). */
void object_unref(struct object *o);
/* Every slot must be 0. */
void object_free(struct object *o);
/* Make it longer: new pages are empty, and others may use it meanwhile.  0, or -ENOMEM and it is as long as before. */
int object_grow(struct object *o, uint64_t npages, enum zone_wait wait);

/*
 * The leaf that holds slot `index`, locked.  NULL if it does not exist; with `created` it is made then,
 * NULL only if the budget has no room, and *created says whether this call made it.
 */
struct leaf *object_leaf(struct object *o, uint64_t index, bool *created);

/* The first leaf that holds slots at or after `from`, locked; NULL if there is none. */
struct leaf *object_next_leaf(struct object *o, uint64_t from);

/* Free the leaves in [first, end) that are empty, and nodes that become so.  Returns how many leaves. */
size_t object_prune(struct object *o, uint64_t first, uint64_t end);

/* Slots.  The leaf is locked. */
static inline struct anon *
leaf_anon(const struct leaf *l, unsigned i)
{
	assert(l->slot[i] == 0 || (l->slot[i] & 1));
	return (struct anon *)(l->slot[i] & ~(uintptr_t)1);
}

static inline void
leaf_set_anon(struct leaf *l, unsigned i, struct anon *an)
{
	assert(l->slot[i] == 0);
	l->slot[i] = (uintptr_t)an | 1;
	l->nused++;
}

static inline void
leaf_clear(struct leaf *l, unsigned i)
{
	assert(l->slot[i] != 0 && l->nused > 0);
	l->slot[i] = 0;
	l->nused--;
}

/* Assert the tree's shape and counts.  Nobody else may use the object. */
void object_check(struct object *o);

#endif
