/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * budget.h (private): the memory that all clients have together, and another one while they are there.
 */
#ifndef UP_DAEMON_BUDGET_H
#define UP_DAEMON_BUDGET_H

#include "daemon.h"

/* What the configuration wants, and what that may be raised to while the daemon runs; bytes, whole pages. */
uint64_t budget_wanted(const struct config *c);
uint64_t budget_most(const struct config *c);

/*
 * Make it `bytes`.  What has to leave memory for that takes its time: the loop goes on meanwhile, and then done() says how it ended: 0, or as
 * up_runtime_set_limit().  -EBUSY: another change is under way; done() is not called.
 */
typedef void budget_done(void *ctx, int r, uint64_t bytes);
int budget_set(struct daemon *d, uint64_t bytes, budget_done *done, void *ctx);
/* Whoever has this context does not want to hear of it any more. */
void budget_forget(const void *ctx);

#endif
