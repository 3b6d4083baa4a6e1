/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * page.h (private): content in core, and the queues that replacement works on.
 *
 * A struct page exists while the content of an anon is in memory: in a region (MAPPED), or in a
 * frame of the staging area.  Every arrow is taken by the holder of the anon's BUSY bit, except the
 * two of a finished write, which only need the queue lock.
 *
 *	                   fault_zero
 *	        +-------------------------------+        pageout_deactivate
 *	        |                               v       (MOVE out of the region)
 *	   +---------+   pagein_install     +--------+ ----------------------------> +--------+
 *	   | TRANSIT | -------------------> | MAPPED |                               | STAGED |
 *	   +---------+                      +--------+ <---------------------------- +--------+
 *	     ^     ^                         queue:            fault_soft             queue INACTIVE, or
 *	     |     |                         ACTIVE           (MOVE back)             CLEAN if page->slot
 *	  page_alloc                            ^                                     holds the same
 *	(pagein, zero,                          | fault_rescue: a copy; the page        |         ^
 *	  rescue)                               | being written becomes an orphan       |         | pageout_done
 *	                                        |                                       |         | (queue CLEAN;
 *	                                   +---------+ <--------------------------------+         |  a failed write:
 *	                                   | LAUNDRY | ----------------------------------------->-+  INACTIVE)
 *	                                   +---------+          pageout_launder (write starts)
 *
 *	TRANSIT, read for a stream --page_stage--> STAGED on AHEAD (clean, and nobody has come by yet)
 *	AHEAD --fault_soft--> MAPPED                        AHEAD --ahead_trim--> CLEAN, or --reclaim in need
 *	CLEAN --reclaim--> page freed, anon is SWAP         INACTIVE, all zeros --launder--> page and anon freed
 *	INACTIVE --tier_store--> page freed, anon is ZIP (its content in the compressed pool, tier.c)
 *	any but LAUNDRY --discard, unmap--> freed           LAUNDRY --discard, unmap, rescue--> orphan, freed by pageout_done
 *
 * An orphan (LAUNDRY, anon NULL) owns its frame and slot until the write that reads the frame ends.
 *
 * A single page may be lent (lend.c): MAPPED by a copy, its frame given up at once.  If the lent page is guarded as well, `same` says that
 * nobody has written to it, and stays set when it is recalled to INACTIVE: it needs no hash to be CLEAN.
 *
 * In which order pages leave a queue is the policy's business (policy.h), which has several for ACTIVE; a
 * touch while staged is a soft fault, sends the page back to ACTIVE, and the policy is told.  MAPPED pages
 * that up_wire() holds in memory are on WIRED instead of ACTIVE, where replacement never looks.
 *
 * Keys: (q) pages->lock, (b) holder of anon BUSY.  While LAUNDRY, slot and frame belong to the write:
 * (q) only.  pages->lock is innermost but for the frames, slots and zones.
 */
#ifndef UP_PAGE_H
#define UP_PAGE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/base.h"
#include "vm/object.h"
#include "vm/policy.h"

enum page_state { PAGE_FREE, PAGE_TRANSIT, PAGE_MAPPED, PAGE_STAGED, PAGE_LAUNDRY, PAGE_STATES };

/* The places of policy.h by the names that replacement has had since Mach. */
enum page_queue {
	Q_ACTIVE = POLICY_MAPPED,
	Q_INACTIVE = POLICY_STAGED,
	Q_CLEAN = POLICY_CLEAN,
	Q_AHEAD = POLICY_AHEAD,
	Q_WIRED = POLICY_WIRED,
	Q_COUNT,
	Q_NONE = Q_COUNT
};

struct page {
	struct anon *anon; /* (q) NULL: orphan */
	struct leaf *leaf; /* (b) where the anon's slot is */
	uintptr_t va;	   /* (b) the page's address in its region; 0: in none */
	frame_t frame;	   /* (b) where it is staged, or FRAME_NONE */
	uint32_t slot;	   /* (b) swap slot with the same bytes (or getting them), or UINT32_MAX */
	struct policy_node node; /* (q) its queue; .next: free list */
	uint16_t index;		 /* (b) in the leaf */
	uint8_t shard;		 /* (b) of the region */
	/* (q) and (b) to change, either to read.  Atomic, since a finished write only has (q). */
	_Atomic uint8_t state;
	bool alone : 1; /* (b) its cluster could not be written: write it on its own */
	bool same : 1; /* (b) certainly what its slot or its source has: lent and guarded (pmap.h), or recalled since */
	uint8_t raw : 2; /* (b) PAGE_RAW_*: it has not been in place yet, and nobody has seen it */
};
/* What the slot was before, and is again if this comes to nothing: empty, marked. */
enum { PAGE_RAW_NOT, PAGE_RAW_EMPTY, PAGE_RAW_MARKED };
_Static_assert(sizeof(struct page) == 48, "docs/architecture.md says so");

struct pages {
	pthread_mutex_t lock;
	struct wired_array table;  /* of struct page; address constant */
	pageno_t free;		   /* (q) list by ->node.next */
	struct policy policy;	   /* (q) */
	struct wired_array ghosts; /* (q) the policy's, uint32_t */
	size_t count[PAGE_STATES]; /* (q) pages in each state */
	size_t mapped_named;	   /* (q) those of MAPPED that are what a source has, or had */
};

/* Room for `max` pages, of which `frames` are in memory at most, or up to `most` if it is resized.  0 or -ENOMEM. */
int pages_init(struct pages *ps, struct arena *arena, size_t max, size_t frames, size_t most,
	       enum policy_kind kind);
/* From here on `frames` are.  One thread at a time.  If the budget has no room, fewer of those that left are remembered than could be. */
void pages_resize(struct pages *ps, size_t frames);
/* Asserts that every page was freed. */
void pages_fini(struct pages *ps);

static inline struct page *
page_at(const struct pages *ps, pageno_t no)
{
	assert(no < ps->table.max); /* .n grows under the queue lock, which callers need not hold */
	return (struct page *)ps->table.base + no;
}

static inline pageno_t
page_no(const struct pages *ps, const struct page *pg)
{
	return (pageno_t)(pg - (const struct page *)ps->table.base);
}

/* The queue that a page is on. => the queue lock is held */
static inline enum page_queue
page_queue_locked(const struct page *pg)
{
	switch ((enum policy_queue)pg->node.queue) {
	case PQ_COLD:
	case PQ_ONCE:
	case PQ_FRESH:
	case PQ_MAIN:
	case PQ_KEPT:
		return Q_ACTIVE;
	case PQ_STAGED:
		return Q_INACTIVE;
	case PQ_CLEAN:
		return Q_CLEAN;
	case PQ_AHEAD:
		return Q_AHEAD;
	case PQ_WIRED:
		return Q_WIRED;
	default:
		return Q_NONE;
	}
}

/* Pages on a queue: exact with the queue lock held; without, a moment's. */
static inline size_t
page_count(const struct pages *ps, enum page_queue q)
{
	return policy_count(&ps->policy, (enum policy_place)q);
}

/* A page in TRANSIT for a busy anon; NULL when the budget has no room. */
struct page *page_alloc(struct pages *ps, struct anon *an, struct leaf *leaf, unsigned index,
			bool once);
/* From TRANSIT, or an orphan; on no queue.  Evicted: the same of a page in TRANSIT, which the policy may remember by `key`. */
void page_free(struct pages *ps, struct page *pg);
void page_evicted(struct pages *ps, struct page *pg, uint64_t key);

/* With the queue lock held: */
void page_enqueue_locked(struct pages *ps, struct page *pg, enum page_queue q,
			 enum page_state state);
void page_enqueue_head_locked(struct pages *ps, struct page *pg, enum page_queue q,
			      enum page_state state);
/* Off its queue; state becomes TRANSIT. */
void page_dequeue_locked(struct pages *ps, struct page *pg);
void page_set_state_locked(struct pages *ps, struct page *pg, enum page_state state);
/* What an account has counts for another group from here on, NULL for none, whose reference is the account's now; that to the one before is the caller's.  => map->change is held */
void page_account_move(struct pages *ps, struct account *a, struct account *group);
/*
 * A page that was touched while it was STAGED, busy and on its queue all the time, is in its region: to ACTIVE.  True if it was read ahead and this is
 * its first use.
 */
bool page_use_locked(struct pages *ps, struct page *pg);

/* Without: the same, one page. */
void page_enqueue(struct pages *ps, struct page *pg, enum page_queue q, enum page_state state);

/*
 * Up to `max` pages that should leave a queue next, whose anons were not busy and are now.
 * => the queue lock is held
 * => they are in TRANSIT.
 */
unsigned page_victims_locked(struct pages *ps, enum page_queue q, unsigned max,
			     struct page *victim[]);

/* Assert queues, states and counts. */
void pages_check(struct pages *ps);

#endif
