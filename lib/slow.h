/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * slow.h (private): calls that write to files, and so take as long as a disk does, are done piece by piece, with other clients' in between.  What makes it
 * safe in the end can not be cut into pieces: a thread of its own does that.
 *
 *	slow_begin() --> pieces <--------------------------+
 *	                   | |  all of a file is written   |
 *	                   | +------------> flush due -> a thread
 *	                   v
 *	              done: its answer, or the end of the space
 */
#ifndef UP_SLOW_H
#define UP_SLOW_H

#include <stdbool.h>
#include <stdint.h>

struct call;
struct flush;
struct forks;
struct server;
struct slow;
struct space;
struct up_runtime;

#define FLUSHES 64u	    /* threads at a time */
#define SLOW_END UINT32_MAX /* in place of a call: the space ends */

/* Where they are kept.  Before the first. */
void slow_init(struct up_runtime *rt, struct server *sv);

enum slow_state {
	SLOW_MORE,   /* go on */
	SLOW_LATER,  /* after a moment */
	SLOW_KICKED, /* when the keeper has been kicked */
	SLOW_OVER,   /* it has a result, and slow_done() is to follow */
};

/* CALL_SYNC, CALL_UNMAP; or SLOW_END, also in place of what is under way.  0; -ENOMEM.  => no lock is held; the keeper, as for the others */
int slow_begin(struct up_runtime *rt, struct space *sp, const struct call *q, uint32_t serial);
/* A piece. */
enum slow_state slow_piece(struct forks *f, struct space *sp, int *result);
uint32_t slow_op(const struct slow *s);
uint32_t slow_serial(const struct slow *s);
/* True if who waits is to be told that it is not over: he would not wait for longer than ANSWER_MS otherwise. */
bool slow_tells(struct slow *s);
/* Also of what is not over; nothing, if there is nothing. */
void slow_done(struct up_runtime *rt, struct space *sp);
/* Threads that have ended are put away; `all`: those that have not as well, which is waited for. */
void slow_reap(struct up_runtime *rt, bool all);

#endif
