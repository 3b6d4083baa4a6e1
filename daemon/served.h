/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * served.h (private): what sessions say whose client is the runtime's (lib/serve.h): by its id there; and who they are.
 */
#ifndef UP_DAEMON_SERVED_H
#define UP_DAEMON_SERVED_H

#include "session.h"

/* Who is at the other end, as the socket says, and nothing else; the group is copied, or NULL.  0 or -errno. */
int served_whose(struct session *who, int connection, const char *group);

/* Of one that has gone: what was served stays, and it has nothing any more. */
void served_counts(struct up_runtime *rt, uint64_t id, struct session_counts *c);
/* As session_ops.map, and .limit. */
json_t *served_map(struct up_runtime *rt, uint64_t id);
int served_limit(struct up_runtime *rt, uint64_t id, uint64_t bytes);

#endif
