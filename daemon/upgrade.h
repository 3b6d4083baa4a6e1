/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * upgrade.h (private): who asks for an upgrade, and what comes of it.  The guardian does it (guardian.h): if it succeeds this process is gone.
 */
#ifndef UP_DAEMON_UPGRADE_H
#define UP_DAEMON_UPGRADE_H

#include "daemon.h"

/* Around the loop. */
void upgrade_open(struct daemon *d);
void upgrade_close(void);

/* refused() says why nothing has come of it.  -ENOTSUP: there is no guardian; -EBUSY: somebody else has asked; then it is not called. */
typedef void upgrade_refused(void *ctx, const char *why);
int upgrade_ask(upgrade_refused *refused, void *ctx);
/* Whoever has this context does not want to hear of it any more. */
void upgrade_forget(const void *ctx);
/* Why the upgrade that has come to this daemon's start has not; "": it has, or there was none. */
const char *upgrade_outcome(void);

#endif
