/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * adopt.h (private): what a pager that was killed has left, taken over by the next one.
 *
 *	predecessor                    keeper of descriptors              successor
 *	store, staging, pools, swap,
 *	clients' userfaultfds, sockets -------> (store.h)
 *	killed in the middle of anything
 *	                                        ------------------------> adopt():  reads the old store, builds its own
 *	                                        <------------------------ keeps "store": from here on the old one is nothing
 *	                                                                  attaches the clients, and wakes whoever waits
 *
 * Clients notice that nobody serves them for a while, and no more: their descriptors are held by somebody all the time.
 *
 * Nothing was prepared for the end: threads stopped between two instructions, with locks held and pages on their way.  So the old
 * structures are not used, only read: what objects there are, what is mapped, and for each page where its bytes are.  Whoever changes one of
 * these does it in an order in which what is read at any time makes sense (stores_in_order()).  Where a page's bytes are:
 *
 *	not busy	as its anon and struct page say
 *	compressed	in the entry that is the anon's; busy or not, for it is not freed before the anon says something else, nor is what
 *			it says of its bytes right before they are there (zpool.h)
 *	busy		1  in the file of its pool, if there is a page there: pages get into it whole, and leave it only after they were
 *			   copied; what is there may be newer than any copy
 *			2  in swap, if the anon says so (and not, at the same time, that it is in the frame which hashes to what it says)
 *			3  in the frame that struct page names
 *			4  nowhere yet: a page that nobody has seen is as if its fault had not come (page->raw); or nowhere any
 *			   more: it was being discarded
 *
 * What does not fit together is lost: SIGBUS, never other bytes.  Frames that have no page are dropped, so that I/O which is still under way goes
 * nowhere; slots that were being written are not used again.
 *
 * What is compressed stays where it is: the pool's memory is a file, as staging is, and the entries that are somebody's are entries of the next pool.
 * If that is configured to be none, it has no others, and they go to swap when memory is short.
 *
 * Guests (guest.h) are clients whose pools are files of their own: what is in there is what they see, whatever is known of it, and what nobody knows of is theirs. A guest that can not be served is
 * not told of lost pages: it is left waiting, by somebody who keeps its userfaultfd.
 *
 * Not taken over: clients who had not said hello yet.
 */
#ifndef UP_ADOPT_H
#define UP_ADOPT_H

#include "runtime.h"
#include "serve.h"
#include "store.h"

/* Descriptors of the predecessor, by the name under which they were kept.  -1: there is none.  The caller's of take() from then on. */
struct adopt_from {
	void *ctx;
	int (*take)(void *ctx, const char *name);
	/* Nothing more will be taken: what is left can go, and clients may come. */
	void (*settled)(void *ctx);
	/* A client that is there again; it may not call the runtime. */
	void (*client)(void *ctx, uint64_t id, const struct serve_info *info, const char *group);
	/* A guest that is not: without its userfaultfd, the callee's from here on, what it misses would be zeros. */
	void (*orphan)(void *ctx, uint64_t id, int uffd);
};

/* Whether a store was left by this version: 0; -EPROTO: by another; -EINVAL: it is none, or not complete. */
int adopt_look(int store);

/*
 * up_runtime_create() of a pager that may have a successor, and serve_start().  `from`: of one that has had a predecessor, whose store is taken as "store";
 * NULL, or there is no "store": it is the first.  adopted: whether there was one.  `s` has to outlive it, and so has *from until this returns.  0 or -errno and
 * a log line; -EPROTO: what there is was left by another version of this program.  After a failure with *adopted set the predecessor's things are as they
 * were, for somebody else, if this process ends now.
 */
int adopt_create(struct up_runtime **rt, const struct up_config *cfg, struct store *s,
		 const struct adopt_from *from, void (*ended)(void *ctx, uint64_t id, bool guest),
		 void *ctx, bool *adopted);

#endif
