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

/* A userfaultfd without which what its process misses would be zeros, and by which nobody can serve it: it is kept, by this daemon and its successors, and is used up. */
void heirs_orphan(uint64_t id, int uffd);

/* Connections that the last one had accepted at that path, and that are in no session: one of them, the caller's; -1: there is none any more. */
int heirs_connection(const char *path);
/* All of them, to their listeners, once the daemon serves. */
struct daemon;
void heirs_knock(struct daemon *d);

/* There may be a new listener: before anything is accepted there, for which a successor will ask. */
void heirs_listening(void);

/* For a new session: who keeps what it will leave, and *holder.  NULL: nobody does. */
const struct store_keeper *heirs_keeper(uint64_t *holder);

#endif
