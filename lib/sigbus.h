/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * sigbus.h (private): faults that come as a signal to the thread that touched (UP_DELIVER_INLINE).
 *
 *	(none) --sigbus_add--> in a slot: SIGBUS in its regions is served --sigbus_remove--> (none)
 *
 * The first that is added takes the process's SIGBUS over, and what was there before is called for what is not ours; the last that is
 * removed puts it back, unless the program has installed something else meanwhile.
 */
#ifndef UP_SIGBUS_H
#define UP_SIGBUS_H

#include "pager/pager.h"

/* 0; -EUSERS and a log line: there are too many. */
int sigbus_add(struct pager *p);
/* => nobody touches its regions any more; waits for those that have, and are not through. */
void sigbus_remove(struct pager *p);

#endif
