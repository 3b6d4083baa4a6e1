/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * anon.h (private): the identity of one anonymous page, in core or not.
 *
 * 16 bytes, the price of a page that is in swap (besides its 8-byte word in the object).  The
 * lock is two bits: BUSY, held by whoever moves the content from one place to another, also
 * across I/O, and WANTED, set by whoever met it busy.  Only the holder of BUSY may read or
 * change what is marked (b), change the page's place, or free the anon.
 *
 *	 alloc    +------+   pagein, rescue    +------+   read error, checksum   +------+
 *	--------> | CORE | <------------------ | SWAP | -----------------------> | LOST |
 *	          +------+ ------------------> +------+                          +------+
 *	           |  ^  |   reclaim (clean)   ^  |                                  |
 *	  compress |  |  +---------------------|--+-- discard, unmap, last reference: freed
 *	           v  | decompress             |
 *	          +------+    write-back       |
 *	          | ZIP  | --------------------+
 *	          +------+
 *
 * CORE: loc is a page number (page.h draws the states within).  SWAP: loc is a swap slot and
 * hash that of its content.  ZIP: the same with an entry of the compressed pool (pager/tier.h).
 * LOST: the content could not be read back.
 *
 * Waiting for a busy anon: user threads sleep in anon_wait(); a service thread never sleeps: it
 * marks the anon wanted and drops the fault message, since the holder wakes the address when it
 * is done and the thread faults again.
 */
#ifndef UP_ANON_H
#define UP_ANON_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/base.h"
#include "vm/zone.h"

/*
 * COPY is CORE too: in core, and when it was last looked at the same as what its object's pager (a file, say) has; hash is
 * that content's.  As long as it still hashes to that it can be forgotten, and be read again.
 */
enum anon_kind { ANON_CORE, ANON_SWAP, ANON_LOST, ANON_COPY, ANON_ZIP, ANON_KINDS };

#define ANON_BUSY 1u
#define ANON_WANTED 2u
#define ANON_LOOSE 4u /* busy, and the holder does not know by what address it is waited for */
#define ANON_GOING \
	8u /* busy, and the holder forgets the content: what is known of it may be somebody else's already (adopt.h) */

struct anon {
	uint64_t
		hash; /* (b) of the content in the slot: loc if SWAP, page->slot if CORE; COPY: see above */
	uint32_t loc;	       /* (b) page number or slot */
	_Atomic uint16_t refs; /* objects that hold it */
	_Atomic uint8_t bits;  /* ANON_BUSY, ANON_WANTED */
	_Atomic uint8_t kind;  /* (b) to change; anybody may peek for a hint */
};

static inline bool
anon_in_core(const struct anon *an)
{
	const uint8_t kind = atomic_load_explicit(&an->kind, memory_order_relaxed);

	return kind == ANON_CORE || kind == ANON_COPY;
}

/* Where the content is from here on.  The loc first: what a successor makes of either without the other (adopt.h) is right.  => busy */
static inline void
anon_set(struct anon *an, enum anon_kind kind, uint32_t loc)
{
	an->loc = loc;
	stores_in_order();
	atomic_store_explicit(&an->kind, (uint8_t)kind, memory_order_relaxed);
}

/* It is about to be freed, as soon as its content is.  => busy */
static inline void
anon_forget(struct anon *an)
{
	atomic_fetch_or_explicit(&an->bits, ANON_GOING, memory_order_relaxed);
	stores_in_order();
}

/* Sleeping places for user threads that meet a busy anon, shared by hash of its address. */
#define ANON_WAITQS 32
struct anon_waitqs {
	struct {
		pthread_mutex_t lock;
		pthread_cond_t cond;
		atomic_uint nudges;
	} q[ANON_WAITQS];
};

void anon_waitqs_init(struct anon_waitqs *w);
void anon_waitqs_fini(struct anon_waitqs *w);

/* A busy anon with one reference and kind CORE; NULL when the budget has no room. */
struct anon *anon_alloc(struct zone *z);

/* Become the holder of BUSY; false if somebody else is.  The caller guards the anon's existence. */
static inline bool
anon_trybusy(struct anon *an)
{
	uint8_t old = 0;

	return atomic_compare_exchange_strong_explicit(&an->bits, &old, ANON_BUSY,
						       memory_order_acquire, memory_order_relaxed);
}

/* The same, by one who has no address to wake: whoever waits by address looks again by himself. */
static inline bool
anon_trybusy_loose(struct anon *an)
{
	uint8_t old = 0;

	return atomic_compare_exchange_strong_explicit(&an->bits, &old, ANON_BUSY | ANON_LOOSE,
						       memory_order_acquire, memory_order_relaxed);
}

/* Ask the holder for a wake-up; 0 if there is no holder any more, else the bits, ANON_LOOSE perhaps among them. */
uint8_t anon_want(struct anon *an);

/* Stop being the holder.  True if it was wanted: the caller wakes the page's address. */
bool anon_unbusy(struct anon_waitqs *w, struct anon *an);

/* Drop the holder's reference; true if it was the last and the anon is freed, else it is unbusied. */
bool anon_free(struct anon_waitqs *w, struct zone *z, struct anon *an, bool *wanted);

/*
 * Sleep until a busy anon may have been released.
 * => `leaf` is locked, and guards the anon's existence; it is unlocked on return, and the
 *    caller looks everything up again.
 */
void anon_wait(struct anon_waitqs *w, struct anon *an, pthread_mutex_t *leaf);

/*
 * The same in two steps, for a caller that has more locks to let go of in between.  => the anon's existence is guarded until
 * anon_sleep_begin() has returned.  -1: it is not busy any more.  Else one of the other two has to follow; spurious wake-ups.
 */
int anon_sleep_begin(struct anon_waitqs *w, struct anon *an);
void anon_sleep(struct anon_waitqs *w, int q);
void anon_sleep_not(struct anon_waitqs *w, int q);

/*
 * Who waits may be able to do something else by now, although the anon is still busy: he does not sleep any longer
 * than until anon_nudge(), if that comes after his anon_ticket().  What he looks at is to be looked at in between.
 */
unsigned anon_ticket(struct anon_waitqs *w, const struct anon *an);
void anon_wait_since(struct anon_waitqs *w, struct anon *an, pthread_mutex_t *leaf,
		     unsigned ticket);
/* A set of sleeping places, one more, and everyone in them.  The anons of a set need not exist any more. */
uint32_t anon_place(const struct anon *an);
void anon_nudge(struct anon_waitqs *w, uint32_t places);

#endif
