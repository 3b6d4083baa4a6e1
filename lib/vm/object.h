/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * object.h (private): pages under one identity.
 *
 * An object is an array of slots, one a page, in a radix tree: inner nodes of 512 pointers over
 * leaves of 512 slots (2 MiB of pages).  A part that was never touched has no nodes, so a sparse
 * object of a terabyte costs one struct.  A slot is one tagged word:
 *
 *	0            nothing: what the backing object has there; without one, what the source has; else zeros
 *	SLOT_BASE    what is at the end of the chain, the source's or zeros, whatever is in between
 *	ANON  | 1    a page, in core or not (anon.h): of its own, what it holds is nowhere else
 *	ANON  | 3    the same of a named identity: the object's source has it, or will have it
 *
 * Shadows.  An object may have a backing object that shows through wherever a slot is 0:
 *
 *	entry --> front object  (what was written since)          another entry --> front object
 *	               |   backing, + backing_offset                                   |
 *	               +------------------> backing object <---------------------------+
 *	                                    (what was there when they parted)
 *
 * Nobody writes to a backing object: no page of it is ever in a region, and whoever touches one gets a
 * copy in his front object, or, if he is the last who sees it, the page itself (pager/chain.c).  The shape of the
 * chains changes under map.change, with map.lock held for writing; a fault goes down them under map.lock.
 *
 * The leaf is the unit of locking; it is taken for the few instructions in which a slot is looked
 * up or changed, never across a system call.  What must stay put for longer is made busy.
 *
 * Alternative looked at: a hash of (object, index), as 4.4BSD and FreeBSD's early VM.  It has no
 * per-leaf cost, but neighbours are then found one by one, and read-ahead, pageout and unmap all
 * work on runs.
 *
 * A named object has a source: a file, a device, a pager of the program.  Its own pages, those of shared mappings, are
 * written back there; a private mapping is a shadow of it.
 *
 * Lock order: docs/architecture.md.  Here:
 *
 *	object->lock (read: walk the tree; write: link and unlink nodes)  >  leaf->lock
 *
 * of one object at a time, and one leaf at a time: leaves change objects, so there is no order between two.
 *
 * Keys: (c) constant once created, (o) object->lock, (l) leaf->lock, (m) map.lock, (a) atomic.
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
struct source; /* pager/source.h */

/* Low bits of a slot word. */
#define SLOT_ANON ((uintptr_t)1)  /* there is a page */
#define SLOT_NAMED ((uintptr_t)2) /* and it is a source's */

/* The mark of a slot through which no anonymous object shows, only what is at the end of the chain. */
#define SLOT_BASE ((uintptr_t)2)

struct leaf {
	pthread_mutex_t lock;
	struct object *object; /* (l) the tree may be handed on, see object_take_tree() */
	bool noreserve;	       /* (c) while linked: each page holds a promise of a swap slot */
	bool named;	       /* (c) while linked: there is a source at the end of the chain */
	bool sourced;	       /* (c) while linked: and it is the object's own */
	uint64_t base;	       /* (c) while linked: index of slot 0 */
	unsigned nused;	       /* (l) slots that are not 0 */
	uintptr_t slot[LEAF_SLOTS]; /* (l) */
};

/* An inner node of the radix tree: only pointers. */
struct node {
	void *child[LEAF_SLOTS];
};

/*
 * What becomes of objects whose trees and backing objects change hands, noted before the first step and until the last: for whoever
 * finds this memory after a crash in between (adopt.h).
 */
struct relink {
	unsigned n; /* 0: nothing changes now */
	struct {
		const struct object *object;
		void *root;
		struct object *backing;
		uint64_t offset;
	} to[2];
};

/* What objects are made of; one per runtime. */
struct object_zones {
	struct relink *relink; /* (c) NULL: nobody is going to look */
	struct zone object, node, leaf, anon, account;
};

/*
 * Who pays: memory that clients of a pager have in use, and what of it is theirs to keep.  A page counts from when it gets into a page
 * table, or the file of a pool, until it is taken out again.
 *
 * Keys: (p) pages.lock to change, (a) atomic, (m) map->change.
 */
struct account {
	atomic_uint refs;  /* (a) objects, and whoever has made it */
	struct zone *zone; /* (c) */
	char name[32];	   /* (c) of a group; else "" */
	struct account *_Atomic
		group; /* (p) to change, (a) to read: counts as well; NULL: none.  One that it was in stays, whoever looks there still */
	atomic_size_t mapped;	  /* (p) pages */
	atomic_size_t limit;	  /* (a) pages; 0: none */
	atomic_size_t minimum;	  /* (a) pages that others do not push out */
	atomic_size_t swap_limit; /* (a) pages of swap that it may be promised; 0: any */
	atomic_size_t promised;	  /* (m) to change: what its objects were promised as a whole */
	atomic_size_t touched; /* (a) and page by page, for those that were not; not of its group */
	atomic_bool over;      /* (a) somebody waits for it to have less */
	atomic_uint reads;     /* (a) pages that are being read in, as far as that is limited */
	atomic_uint reads_max; /* (a) of those, but for one that somebody waits for; 0: any */
	uint64_t object, index; /* (m) where to go on when it is to have less: object id and page */
	uint64_t again, pause;	/* (m) not before then, ns; and for how long the last time */
	size_t files;		/* (m) audit.c: pages that the files of its pools have */
	unsigned strikes;	/* (m) the same: how often in a row those were too many */
};

/* One reference, the caller's, who holds no lock.  NULL: no memory.  The group, or NULL, gets one more. */
struct account *account_create(struct object_zones *z, struct account *group);
struct account *account_ref(struct account *a);
/* NULL is fine. */
void account_unref(struct account *a);
/* Swap for so many pages more, or less, was promised to an object of it.  NULL is fine.  => map->change is held */
void account_promise(struct account *a, int64_t n);
/* True if it may be promised so much more; what its group may, only a call is held to.  NULL: yes. */
bool account_may_promise(const struct account *a, uint64_t n);
/* How many of `want` pages may be read in now: one in any case.  NULL: all. */
unsigned account_share(const struct account *a, unsigned want);
/* So many are being read in; account_read() follows.  NULL: nobody counts. */
struct account *account_reading(struct account *a, unsigned n);
void account_read(struct account *a, unsigned n);

struct object {
	pthread_rwlock_t lock;
	struct object_zones *zones; /* (c) */
	struct account *account;    /* (c) once it has pages: owns a reference; NULL: nobody's */
	_Atomic uint64_t npages;    /* (a) grows only; (o) for writing to change */
	unsigned height;	    /* (o) levels of inner nodes */
	void *root;		    /* (o) */
	atomic_uint refs;	    /* (a) map entries and handles */
	atomic_uint handles;	    /* (a) references held by the program */
	uintptr_t pool;		    /* (m) its pages are there while MAPPED; 0: in one region */
	atomic_bool unrecorded;	    /* (a) of one in a pool: as that of a map entry, in any place */
	bool roams;		    /* (c) may be unmapped and mapped elsewhere with its pages */
	bool apart; /* (c) its pool is for another process, which may see no other */
	bool guest; /* (c) its pool is a file of another process: pages may go from it by themselves, and are zeros then */
	bool loose; /* (m) its pages may be staged without an address to wake */
	bool noreserve;	   /* (c) pages are promised when first touched, not when mapped */
	bool readonly;	   /* (c) a snapshot */
	bool parting;	   /* map->change: a clone that is being made has it already (cow.c) */
	uint64_t reserved; /* pages promised when mapped (vm/resv.h); map->change guards it */
	void (*release)(struct object *); /* (c) called when refs drops to 0 */
	void *owner;			  /* (c) the runtime's, for release */
	uint64_t id;			  /* (c) for people: 1, 2, ... as they were created */

	struct object *backing;	 /* (m) owns a reference; NULL: zeros show through */
	uint64_t backing_offset; /* (m) of our page 0 in it, pages */
	struct object *shadows;	 /* (m) those whose backing we are, by ->sibling */
	struct object *sibling;	 /* (m) */
	unsigned nshadows;	 /* (m) */
	atomic_bool chained;	 /* (a) an anonymous object shows through, or has been */
	atomic_int
		ahead_credit; /* (a) pages read ahead that were used, less those that were not, weighed */
	atomic_int
		guard_credit; /* (a) guarded pages that were not written to, less those that were, weighed */
	struct source *source;	    /* (c) whose pages these are; NULL: anonymous */
	bool named;		    /* (c) there is a source at the end of the chain */
	char *name;		    /* map->change guards it; malloc()ed, NULL: none */
	struct object *next, *prev; /* the runtime's list of objects; its owner guards them */
};

void object_zones_init(struct object_zones *z, struct arena *a);
void object_zones_fini(struct object_zones *z);
/* Give cached empty slabs back. */
void object_zones_trim(struct object_zones *z);
void object_zones_check(struct object_zones *z);

/* One reference, the caller's.  NULL when the budget has no room. */
struct object *object_alloc(struct object_zones *z, uint64_t npages, enum zone_wait wait);
void object_ref(struct object *o);
/* From here on the account has it, whose reference is the object's; it has had none, and no pages.  => map->change is held */
void object_pays(struct object *o, struct account *a);
/* The last one calls o->release, which empties the object and calls object_free(). */
void object_unref(struct object *o);
/* The same, but leaves that to the caller: true if it was the last. */
bool object_drop(struct object *o);
/* Every slot must be 0. */
void object_free(struct object *o);
/* Make it longer: new pages are empty, and others may use it meanwhile.  0, or -ENOMEM and it is as long as before. */
int object_grow(struct object *o, uint64_t npages, enum zone_wait wait);

/*
 * The leaf that holds slot `index`, locked.  NULL if it does not exist; with `created` it is made then,
 * NULL only if the budget has no room, and *created says whether this call made it.
 */
struct leaf *object_leaf(struct object *o, uint64_t index, bool *created);

/* Has the object something of its own there, be it zeros? */
bool object_has(struct object *o, uint64_t index);

/* The first leaf that holds slots at or after `from`, locked; NULL if there is none. */
struct leaf *object_next_leaf(struct object *o, uint64_t from);

/* Free the leaves in [first, end) that are empty, and nodes that become so.  Returns how many leaves. */
size_t object_prune(struct object *o, uint64_t first, uint64_t end);

/*
 * Give the whole tree of `from` to `to`, which has none and the same size.  => map.change is held, and map.lock for
 * writing.  Pages in motion do not mind: their leaves stay.
 */
void object_take_tree(struct object *to, struct object *from);
/* Slots in use, marks included; a snapshot. */
uint64_t object_count(struct object *o);

/* See struct relink.  => map.lock is held for writing; relink_end() follows.  b NULL: one object only. */
void relink_begin(const struct object *a, void *a_root, struct object *a_backing, uint64_t a_offset,
		  const struct object *b, void *b_root, struct object *b_backing,
		  uint64_t b_offset);
void relink_end(const struct object *a);

/* Become a shadow of `backing`, whose reference passes to `o`; stop being one, and the reference is the caller's. */
void object_shadow(struct object *o, struct object *backing, uint64_t offset);
struct object *object_unshadow(struct object *o);
/* Backing objects below this one. */
unsigned object_depth(const struct object *o);

/* Slots.  The leaf is locked. */
static inline struct anon *
leaf_anon(const struct leaf *l, unsigned i)
{
	assert(l->slot[i] == 0 || l->slot[i] == SLOT_BASE || (l->slot[i] & SLOT_ANON));
	return (struct anon *)((l->slot[i] & SLOT_ANON) ? l->slot[i] & ~(SLOT_ANON | SLOT_NAMED)
							: 0);
}

static inline void
leaf_touched(const struct leaf *l, bool more)
{
	struct account *a = l->noreserve ? l->object->account : NULL;

	if (a != NULL)
		atomic_fetch_add_explicit(&a->touched, more ? 1 : SIZE_MAX, memory_order_relaxed);
}

static inline void
leaf_set_anon(struct leaf *l, unsigned i, struct anon *an)
{
	assert((l->slot[i] & SLOT_ANON) == 0);
	leaf_touched(l, true);
	if (l->slot[i] == 0)
		l->nused++;
	stores_in_order(); /* what an anon is, before it is somebody's */
	l->slot[i] = (uintptr_t)an | SLOT_ANON | (l->sourced ? SLOT_NAMED : 0);
}

static inline void
leaf_mark(struct leaf *l, unsigned i)
{
	if (l->slot[i] == 0)
		l->nused++;
	else if (l->slot[i] & SLOT_ANON)
		leaf_touched(l, false);
	l->slot[i] = SLOT_BASE;
}

static inline void
leaf_clear(struct leaf *l, unsigned i)
{
	assert(l->slot[i] != 0 && l->nused > 0);
	if (l->slot[i] & SLOT_ANON)
		leaf_touched(l, false);
	l->slot[i] = 0;
	l->nused--;
}

/* Assert the tree's shape and counts.  Nobody else may use the object. */
void object_check(struct object *o);

#endif
