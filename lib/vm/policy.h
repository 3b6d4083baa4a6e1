/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * policy.h (private): in which order pages leave memory, behind verbs.
 *
 * The mechanism (pager/pageout.c) moves content and knows how much must go; a policy knows the order.
 * They meet in page numbers: each page in memory has a struct policy_node, which holds its queue links,
 * and lies on one queue or, while somebody moves the content, on none.
 *
 *	            policy_put                 policy_victims(MAPPED), policy_put
 *	 insert,  -------------> MAPPED -----------------------------------------> STAGED ----+
 *	 refault                   ^       ONCE, COLD, FRESH, MAIN or KEPT           |        | the same, after
 *	                           |                                                 |        | the write
 *	                           +------- policy_take, policy_touched, policy_put -+- CLEAN <--+
 *	                                                                                  |
 *	 policy_removed: discarded, from anywhere           policy_victims(CLEAN), policy_evicted (a ghost),
 *	                                                      policy_removed
 *
 * What user space sees of references is less than what a textbook assumes:
 *
 *	a touch of a page that is mapped    nothing: the processor serves it, and no accessed bit reaches us
 *	a touch of a page that is staged    a soft fault: policy_touched()
 *	a touch of a page that is out       a major fault: policy_refault() with the page's key
 *
 * What a stream has read, of more than memory holds, is wanted next when it comes round again, if ever, and nothing that has been in memory for longer is
 * wanted later: policy_once().  Such pages lie on ONCE and go before others while they are more than a sixteenth of memory, so a stream pushes out nothing but
 * itself, and of what it goes over again and again a part stays.  To keep on to what is dead for ever would be no better: one request for victims in
 * ONCE_TURNS goes to the other pages (and to ONCE, if that has less), a page that comes back before half of memory has left is like others, and while
 * nothing has to leave, what ONCE has too much becomes like others.  The idea is that of bimodal insertion (M. K. Qureshi, A. Jaleel, Y. N. Patt, S. C. Steely and
 * J. Emer, "Adaptive insertion policies for high performance caching", ISCA 2007).
 *
 * What has to stay lies at a place of its own, WIRED, from which no victim comes; taken off it, the page is as it was.
 *
 * What somebody brought in on purpose (up_prefault()) is promised to be there when the last of it is: policy_kept().  No policy's
 * order would do, since a page that has earned rounds goes round behind the youngest.  So such pages lie on KEPT, whatever the
 * policy, and go when nothing else is left.  They stay that for one to two turns, a turn being as many victims as there were mapped
 * pages when it began (fewer, and a range that fits might have a turn or two before the last of it is there), and are pages like others from then on, or memory would be full of what was wanted once.
 *
 * So to observe a page costs a move out of the page table, and a soft fault if it is in use: a policy that
 * looks at everything all the time would be exact and slow.  Whatever it does, a page must be staged before
 * it can leave, hence each is looked at once, at the last moment.
 *
 * Two policies over these signals, each described where it is:
 *
 *	policy_sfifo.c   segmented FIFO; as an option, pages that came back soon go round twice
 *	policy_s3fifo.c  S3-FIFO: new pages wait in a small queue of their own
 *
 * Alternative looked at: policies as callbacks inside pageout.c, each with its own lists.  The order of
 * locks and the busy pages would have to be right in each of them; here they are in neither.
 *
 * No locks: the owner's (pages.lock) is held for every call but policy_count().  Nothing is allocated: nodes and ghosts live in
 * memory that the owner gives.  All but policy_victims() take constant time.
 */
#ifndef UP_POLICY_H
#define UP_POLICY_H

#include "base/base.h"
#include "vm/ghost.h"

enum policy_kind {
	POLICY_S3FIFO,	      /* the default: docs/benchmarks.md says why */
	POLICY_SFIFO,	      /* segmented FIFO */
	POLICY_SFIFO_REFAULT, /* the same, with refault distance */
	POLICY_KINDS
};

/* What the mechanism asks for and puts to. */
enum policy_place {
	POLICY_MAPPED,
	POLICY_STAGED,
	POLICY_CLEAN,
	POLICY_AHEAD,
	POLICY_WIRED,
	POLICY_PLACES
};

/* Where a page is, for the policies.  0 is none, so that zeroed memory is a page on no queue. */
enum policy_queue {
	PQ_NONE,
	PQ_COLD,  /* mapped, to go first: somebody said so */
	PQ_ONCE,  /* mapped, read by a stream */
	PQ_FRESH, /* mapped, not seen in use since it came */
	PQ_MAIN,  /* mapped */
	PQ_KEPT,  /* mapped, to go last: somebody asked for it */
	PQ_STAGED,
	PQ_CLEAN,
	PQ_AHEAD, /* read for a stream that has not come by yet: in memory, and in swap or its source too */
	PQ_WIRED, /* mapped, and to stay: no victim comes from here, and no policy counts it */
	PQ_COUNT
};

/* A page's place; part of struct page, and packed so that it costs that no padding. */
struct policy_node {
	pageno_t next, prev; /* on no queue: the owner's */
	uint8_t queue;	     /* enum policy_queue */
	uint8_t home : 4;    /* the queue of it when mapped */
	uint8_t count : 4; /* rounds that it has earned, or references seen: the policy's; on KEPT the turn */
} __attribute__((packed, aligned(2)));

struct policy;

/* What differs from one policy to another.  Each is called with the node's page on no queue but for `spare`. */
struct policy_ops {
	const char *name;
	bool ghosts; /* wants to know refault distances */
	/* A page's first time, or the first for as long as we remember: set home and count. */
	void (*insert)(struct policy *p, struct policy_node *nd);
	/* It came back after `distance` evictions, or GHOST_UNKNOWN. */
	void (*refault)(struct policy *p, struct policy_node *nd, uint32_t distance);
	/* It was used while staged. */
	void (*touched)(struct policy *p, struct policy_node *nd);
	/* Whether it is worth knowing how soon this page, which is being evicted, comes back. */
	bool (*remember)(const struct policy *p, const struct policy_node *nd);
	/* From which queue the next mapped victim should come, PQ_FRESH or PQ_MAIN. */
	enum policy_queue (*choose)(const struct policy *p);
	/* Whether this page, the oldest of its queue, goes round once more instead; it pays for that. */
	bool (*spare)(struct policy *p, struct policy_node *nd);
};

struct policy {
	const struct policy_ops *ops; /* (c) */
	char *nodes;		      /* (c) */
	size_t stride;		      /* (c) */
	size_t frames;		      /* as configured, or resized */
	struct {
		pageno_t head, tail; /* oldest, youngest */
		atomic_size_t n;     /* (lock) to change */
	} queue[PQ_COUNT];
	/* Of KEPT, from its head: pages that are to be like others now; those from the turn before; the rest came in this one. */
	size_t kept_over, kept_before;
	size_t turn_left; /* victims until the next turn may begin */
	uint64_t turn;
	size_t once_min;	/* (c) */
	unsigned once_requests; /* for victims that are mapped, ever */
	struct ghost ghost;
	uint64_t spared; /* victims that went round again instead, ever */
};

struct policy_config {
	enum policy_kind kind;
	/*
	 * The node of page 0, and how many bytes later the next page's is.  Zeroed by the time that a page's
	 * number is first used.  The address must stay.
	 */
	void *nodes;
	size_t stride;
	/* Most pages that memory holds: as many evictions are remembered. */
	size_t frames;
	/* So many pages may lie on ONCE at least, before they go first. */
	size_t once_min;
	/* policy_ghost_bytes() of zeros, aligned to 4; NULL: nothing is remembered. */
	void *ghost;
};

/* Bytes that the policy wants for its ghosts: 4 a frame, or 0. */
size_t policy_ghost_bytes(enum policy_kind kind, size_t frames);
/* No failure.  What the config points to is the owner's, and in use from here on. */
void policy_init(struct policy *p, const struct policy_config *cfg);
/* Memory holds so many pages from here on; nghosts: what is there for ghosts now, in entries, no less than before; 0 if they are not wanted. */
void policy_resize(struct policy *p, size_t frames, size_t nghosts);
const char *policy_name(enum policy_kind kind);

static inline struct policy_node *
policy_node(const struct policy *p, pageno_t no)
{
	return (struct policy_node *)(p->nodes + (size_t)no * p->stride);
}

/*
 * It will be taken in a moment: let its neighbours' cache lines come meanwhile.  No lock is needed: they may be others by then, or no pages at all,
 * and nothing is done to them.
 */
__attribute__((no_sanitize("thread"))) static inline void
policy_prefetch(const struct policy *p, pageno_t no)
{
	const struct policy_node *nd = policy_node(p, no);

	if (nd->prev != PAGE_NONE)
		__builtin_prefetch(policy_node(p, nd->prev), 1);
	if (nd->next != PAGE_NONE)
		__builtin_prefetch(policy_node(p, nd->next), 1);
}

/* Pages on a queue, and at a place: with the lock held exactly; without, a moment's. */
static inline size_t
policy_length(const struct policy *p, enum policy_queue q)
{
	return atomic_load_explicit(&p->queue[q].n, memory_order_relaxed);
}

static inline size_t
policy_count(const struct policy *p, enum policy_place place)
{
	switch (place) {
	case POLICY_STAGED:
		return policy_length(p, PQ_STAGED);
	case POLICY_CLEAN:
		return policy_length(p, PQ_CLEAN);
	case POLICY_AHEAD:
		return policy_length(p, PQ_AHEAD);
	case POLICY_WIRED:
		return policy_length(p, PQ_WIRED);
	default:
		return policy_length(p, PQ_COLD) + policy_length(p, PQ_ONCE) +
		       policy_length(p, PQ_FRESH) + policy_length(p, PQ_MAIN) +
		       policy_length(p, PQ_KEPT);
	}
}

/* Pages that may leave, mapped and staged: all but the wired ones. */
static inline size_t
policy_in_memory(const struct policy *p)
{
	return policy_count(p, POLICY_MAPPED) + policy_count(p, POLICY_STAGED) +
	       policy_count(p, POLICY_CLEAN) + policy_count(p, POLICY_AHEAD);
}

/* --- signals: what is known of a page changes; it is on no queue, and on none afterwards --- */

/* The number begins a new life, with a page that has no history. */
void policy_insert(struct policy *p, pageno_t no);
/*
 * Instead of policy_insert(): the page comes back from swap.  Returns its refault distance.
 * `demanded`: a thread waits for it.  If not it comes along with another: that says nothing, and it
 * begins as new; it is remembered no longer all the same.  After policy_once() it stays that unless it comes back soon.
 */
uint32_t policy_refault(struct policy *p, pageno_t no, uint64_t key, bool demanded);
/* A soft fault.  policy_put() follows: MAPPED, or where it was if the kernel would not have it. */
void policy_touched(struct policy *p, pageno_t no);
/* Somebody asked for it: once mapped it leaves after all that is mapped now, unless that is used or kept again. */
void policy_kept(struct policy *p, pageno_t no);
/* It begins its life as one that a stream has read; after policy_insert(), or policy_refault() follows. */
void policy_once(struct policy *p, pageno_t no);
/* Somebody promised that it will not be used soon: once mapped again it goes before all others. */
void policy_cool(struct policy *p, pageno_t no);
/* Its content is another page's from now on, `to`, which is as good a page as `from` was. */
void policy_inherit(struct policy *p, pageno_t to, pageno_t from);
/* Its content is in swap only: the key may be remembered.  policy_removed() follows. */
void policy_evicted(struct policy *p, pageno_t no, uint64_t key);

/* --- moves --- */

/* Youngest of its queue.  What ONCE has too much is like others from then on, a page at a time. */
void policy_put(struct policy *p, pageno_t no, enum policy_place place);
/* Oldest of its queue: for a victim that nothing could be done with. */
void policy_put_back(struct policy *p, pageno_t no, enum policy_place place);
/* Off its queue. */
void policy_take(struct policy *p, pageno_t no);

/* Whether the page may be taken: the mechanism makes it busy, or finds that somebody else has. */
typedef bool policy_take_fn(void *ctx, pageno_t no);

/*
 * Up to `max` pages to go next from a place but WIRED: MAPPED ones to stage, STAGED ones to write, CLEAN and AHEAD ones to evict.
 * => those in victim[0 .. result) are on no queue; each is put somewhere or removed.
 * => pages that `take` refuses stay where they are; after 4 * max of them we give up.
 * => at least one, if there is one that is not refused: a page is spared only so often.
 */
unsigned policy_victims(struct policy *p, enum policy_place from, unsigned max,
			policy_take_fn *take, void *ctx, pageno_t victim[]);

/* --- the end --- */

/* The page leaves memory, for swap or for good: its number is free.  On no queue. */
void policy_removed(struct policy *p, pageno_t no);

/* Assert links, counts and homes. */
void policy_check(const struct policy *p);

/* One per file. */
extern const struct policy_ops policy_sfifo, policy_sfifo_refault, policy_s3fifo;

#endif
