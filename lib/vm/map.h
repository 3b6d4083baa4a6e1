/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * map.h (private): which object serves which addresses of one space.
 *
 * Entries are disjoint, ordered by address, in a B+ tree (lookup O(log n)), and
 * threaded with next/prev.  An operation on a sub-range first clips: the entries at its
 * edges are split, each half keeping its own object offset and a reference to the object.  What one
 * up_map() made is one entry again once the halves are alike; what two of them made never is.
 *
 * Locks: map->lock (read: look up; write: change) is taken by the caller.  Service threads take it
 * for reading and never wait for anything inside; whoever has it for writing makes no system
 * call and waits for nothing, or a fault that must be served first would be stuck behind it.
 * A waiting writer goes ahead of new readers (map_init sets that up: under a steady load of
 * faults it would otherwise never get in), so a reader must not take map->lock a second time.
 * map->change is the outer one: it serialises calls that change VMAs, including their system
 * calls and waits; service threads never take it.
 *
 * Lock order of the whole library: docs/architecture.md and page.h.
 */
#ifndef UP_MAP_H
#define UP_MAP_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/base.h"
#include "vm/zone.h"

struct object;

/* Access streams seen in an entry (pager/readahead.c); racy on purpose, a wrong guess costs a read. */
struct ra_stream {
	_Atomic uint64_t at;   /* object index of its last fault, */
	_Atomic uint64_t next; /* and of the next one expected; 0: unused */
	_Atomic uint64_t
		ahead; /* what lies before this, from next on, is in memory or has been asked for */
	_Atomic uint16_t window; /* pages to have before the stream comes by */
	_Atomic int16_t
		step; /* pages from one to the next: 1, -1 or a stride; 0: one fault is none yet */
	_Atomic int16_t
		turn; /* of one fault: the step to it from another one; 0: there is none near */
};
#define RA_STREAMS 6
struct ra_streams {
	struct ra_stream stream[RA_STREAMS];
	atomic_uint hand; /* the one to replace next */
};

/* What a fault reads comes first, in one cache line. */
struct map_entry {
	/* (map->lock) for writing to change, for reading to read */
	_Alignas(64) uintptr_t start; /* page aligned, */
	uintptr_t end;		      /* also, start < end */
	struct object *object;	      /* owns a reference */
	uint64_t offset;	      /* of start in the object, pages */
	int prot;
	enum up_advice advice; /* NORMAL, SEQUENTIAL or RANDOM */
	unsigned shard;	       /* which uffd its VMA is registered with */
	unsigned flags;	       /* UP_PRIVATE or UP_SHARED, UP_NORESERVE */
	uint64_t serial;       /* of the up_map() that made it; halves of a split keep it */
	_Atomic(struct ra_streams *) streams; /* map_streams() */

	/* thread, in order; (map->lock) too, changed in map.c only */
	struct map_entry *next, *prev;

	enum up_inherit inherit; /* what a forked child gets of it */
	unsigned wired; /* how often: not 0, and every page is in the page table, on WIRED */
	atomic_bool unrecorded; /* a page is poisoned, and no anon says so */
	bool gone; /* in no map: the program has unmapped it itself, and the addresses may be anybody's */
	bool linked; /* in a map */
	bool loose;  /* not in its tree: there was no memory for a node */
};

/* Of the tree: map.c. */
#define MAP_FANOUT 15
struct map_node {
	unsigned n;	/* > 0 */
	unsigned level; /* 0: its children are entries */
	uintptr_t key[MAP_FANOUT];
	union {
		struct map_node *child[MAP_FANOUT];
		struct map_entry *entry[MAP_FANOUT];
	};
};

/* What maps are made of. */
struct map_zones {
	struct zone entry; /* struct map_entry */
	struct zone
		part; /* nodes and streams; of about one size, so that a small runtime has one slab of them */
};
/* What an entry takes at most: its part of the nodes, no two neighbours of which fit into one, and streams. */
#define MAP_ENTRY_BYTES (sizeof(struct map_entry) + MAP_PART_BYTES / 4 + MAP_PART_BYTES)
#define MAP_PART_BYTES ((size_t)256)
_Static_assert(sizeof(struct map_node) <= MAP_PART_BYTES, "");
_Static_assert(sizeof(struct ra_streams) <= MAP_PART_BYTES, "");

void map_zones_init(struct map_zones *z, struct arena *a);
/* Asserts that all was freed. */
void map_zones_fini(struct map_zones *z);

struct map {
	pthread_mutex_t change; /* outermost: one VMA-changing call at a time */
	pthread_rwlock_t lock;
	struct map_zones *zones; /* (c) */
	struct map_node *root;	 /* (lock) NULL: the tree is empty */
	struct map_entry *first; /* (lock) lowest address */
	size_t n;		 /* (lock) entries */
	size_t nloose;		 /* (lock) of those, not in the tree */
	uint64_t pages;		 /* (lock) sum of their lengths */
	uint64_t wired;		 /* (lock) of those that are wired */
	bool frozen;		 /* (lock) of a space: its faults wait, space_freeze() */
	pthread_mutex_t node_lock;
	unsigned levels;	/* (lock) and (node_lock) to change, either to read */
	unsigned nspare;	/* (node_lock) */
	struct map_node *spare; /* (node_lock) list by child[0] */
};

void map_init(struct map *m, struct map_zones *zones);
/* Asserts that it is empty. */
void map_fini(struct map *m);

/* A zeroed entry for map_insert(); NULL when the budget has no room.  No lock held if ZONE_WAIT. */
struct map_entry *map_entry_alloc(struct map *m, enum zone_wait wait);
/*
 * Its streams, made if it has none yet; NULL: there is no memory for them.  Read-locked.  They go with the entry.
 */
struct ra_streams *map_streams(struct map *m, struct map_entry *e);
/* Of an entry that is in no map; its object reference is the caller's to drop first. */
void map_entry_free(struct map *m, struct map_entry *e);

/* The entry that holds va, or NULL.  Read-locked. */
struct map_entry *map_lookup(struct map *m, uintptr_t va);
/* The lowest entry with end > va, or NULL.  Read-locked.  Go on with e->next. */
struct map_entry *map_first_from(struct map *m, uintptr_t va);
/* True if entries cover [start, end) without a gap.  Read-locked. */
bool map_covers(struct map *m, uintptr_t start, uintptr_t end);

/*
 * Link `e` (start, end, object and so on filled in).  0, or -EEXIST if it would overlap: nothing
 * is changed, and `e` is still the caller's.  Write-locked.
 */
int map_insert(struct map *m, struct map_entry *e);
/* Unlink; the caller owns it and its object reference from here.  Write-locked. */
void map_remove(struct map *m, struct map_entry *e);

/* From here on it is wired so often.  Write-locked. */
void map_wire(struct map *m, struct map_entry *e, unsigned wired);

/* Make `e` longer, to `end`, where no entry is.  Write-locked. */
void map_extend(struct map *m, struct map_entry *e, uintptr_t end);

/*
 * Split the entries that straddle `start` or `end`, so that every entry lies fully inside or
 * outside.  spare[2] are entries from map_entry_alloc(); those used are set to NULL.  Each split
 * takes an object reference (object_ref(); an entry without an object needs none).  The lower
 * half keeps its identity and its access streams; the upper half is a spare, with none.
 * Write-locked; cannot fail.
 */
void map_clip(struct map *m, uintptr_t start, uintptr_t end, struct map_entry *spare[2]);

/*
 * Put the halves of splits in [start, end), and at its edges, together again that are alike by now.  Returns the entries that are in no
 * map any more, linked by next: theirs and their objects' references, none of which is the last, are the caller's to drop.
 * Write-locked.
 */
struct map_entry *map_join(struct map *m, uintptr_t start, uintptr_t end);

/* Assert order, disjointness, tree balance and heights, thread links, n and pages.  Read-locked. */
void map_check(struct map *m);

#endif
