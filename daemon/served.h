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
/* Add those of another, of the same client; but for latencies, which can not be added. */
void served_add(struct session_counts *to, const struct session_counts *more);
/* As session_ops.map, .latency and .limit. */
json_t *served_map(struct up_runtime *rt, uint64_t id, const struct glance *g);
bool served_latency(struct up_runtime *rt, uint64_t id, enum up_fault_kind kind,
		    struct latency_steps *steps);
int served_limit(struct up_runtime *rt, uint64_t id, uint64_t most, uint64_t least);

#endif
