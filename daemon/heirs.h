/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * heirs.h (private): sessions whose memory is filled (fill.h), over the death of a daemon.
 *
 * All is the loop's thread.
 */
#ifndef UP_DAEMON_HEIRS_H
#define UP_DAEMON_HEIRS_H

#include <uv.h>

#include "session.h"
#include "store.h"

/* Before anything else: what the last daemon had open and nobody needs is closed. */
void heirs_begin(void);

/*
 * Those that the last daemon has left are served again: how many.  Once, before anybody else comes.  Without a guardian there are none.  gone: session
 * ends, as in struct criu_config; or NULL.
 */
unsigned heirs_come(uv_loop_t *loop, void (*gone)(void *ctx, struct session *s), void *ctx);

/*
 * A connection that has been accepted at the listener of that name, and is in no session yet: kept until heirs_taken().  A number for that; 0: without a
 * guardian.
 */
uint64_t heirs_accepted(const char *listener, int fd);
void heirs_taken(const char *listener, uint64_t number);

/* Those of the last daemon that were in no session: once it serves, its listeners take them. */
struct daemon;
void heirs_knock(struct daemon *d);

/* For a new session: who keeps what it will leave, and *holder.  NULL: nobody does. */
const struct store_keeper *heirs_keeper(uint64_t *holder);

#endif
