/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * handles.h (private): what the session of one connection has of the event loop, and when nothing is left of it.
 *
 *	            handles_close()                 the last handle is closed, and the last hold dropped
 *	OPEN ----------------------> CLOSING ------------------------------------------------------------> closed(owner)
 *
 * The filler of such a session has threads of its own: handles_notify() is what they call, and brings what they say to the loop.  Once they have
 * stopped there is nothing to wait for any more, and the handles are closed.
 *
 * All but handles_notify() is the loop's thread.
 */
#ifndef UP_DAEMON_HANDLES_H
#define UP_DAEMON_HANDLES_H

#include <stdatomic.h>
#include <uv.h>

#include "fill.h"

struct handles {
	uv_poll_t socket,
		process; /* the process is watched if the session wants it: handles_watch() */
	uv_timer_t timer;
	uv_async_t told;
	atomic_bool stopped; /* the filler's threads are */
	unsigned open;	     /* handles that are not closed yet, and holds */
	void *owner;
	void (*heard)(void *owner); /* the filler has said something; NULL: it is not of interest */
	void (*closed)(void *owner); /* the struct may be freed */
};

/*
 * heard and closed are set, and the rest is zero.  -errno: handles_close() is still to be called, since what has been opened is closed by the loop,
 * later.  The connection is the caller's; -1: there is none, and no handle `socket`.
 */
int handles_open(struct handles *h, uv_loop_t *loop, int connection, void *owner);
/* `cb` is called when the process of this pidfd, the caller's, is gone. */
int handles_watch(struct handles *h, int pidfd, uv_poll_cb cb);
/* Once or more often.  closed() is not called before this has returned, unless by handles_drop(). */
void handles_close(struct handles *h);

/* Something else of the loop's, a piece of work, that closed() waits for. */
void handles_hold(struct handles *h);
void handles_drop(struct handles *h);

/* For struct fill_config: `ctx` is the struct handles.  Any thread. */
void handles_notify(void *ctx, enum fill_event ev);

/* Whose the handle is that a callback has got: a uv_poll_t, uv_timer_t. */
void *handles_owner(const void *handle);

#endif
