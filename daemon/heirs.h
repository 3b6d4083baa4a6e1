/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * heirs.h (private): sessions whose memory is filled (fill.h), over the death of a daemon.
 *
 * All is the loop's thread.
 */
#ifndef UP_DAEMON_HEIRS_H
#define UP_DAEMON_HEIRS_H

#include "daemon.h"

/* Before anything else: what the last daemon had open and nobody needs is closed. */
void heirs_begin(void);

/* Those that the last daemon has left are served again.  Once, before anybody else comes.  Without a guardian there are none. */
void heirs_come(struct daemon *d);

/* For a new session: who keeps what it will leave, and *holder.  NULL: nobody does. */
const struct store_keeper *heirs_keeper(uint64_t *holder);

#endif
