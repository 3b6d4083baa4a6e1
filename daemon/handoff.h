/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * handoff.h (private): virtual machine monitors that hand their guest's memory over (Cloud Hypervisor).
 */
#ifndef UP_DAEMON_HANDOFF_H
#define UP_DAEMON_HANDOFF_H

#include <uv.h>

#include "base/base.h"
#include "serve.h"
#include "session.h"
#include "uffd_pager.h"

#define HANDOFF_WAIT_MS 10000u /* from the connection to the end of the first message */

struct handoff_config {
	struct up_runtime *rt; /* serve_start() has been called */
	struct logger log;
	const char *group;    /* "" or NULL: none; copied */
	unsigned regions_max; /* of one client */
	/* What else one that is in this group may have; NULL: any. */
	void (*limits)(const char *group, struct serve_limits *l);
	/* The session has ended, and is freed on return. */
	void (*gone)(void *ctx, struct session *s);
	void *ctx;
	unsigned wait_ms; /* 0: HANDOFF_WAIT_MS */
};

/*
 * A connection that has been accepted.  0: the descriptor is the session's, which is in the registry and goes of itself, when the process does; otherwise it
 * is still the caller's.  `cfg` is copied.  The loop's thread.
 */
int handoff_open(uv_loop_t *loop, int connection, const struct handoff_config *cfg,
		 struct session **out);

/* The tags of guests (lib/guest.h), by which a successor of this daemon knows whose they were. */
#define GUEST_OF_HANDOFF 1u
#define GUEST_OF_FIRECRACKER 2u

/*
 * A guest that a predecessor has had, which the runtime serves on: a session for it, without a connection.  0; -ESRCH: its process is gone; -ENOENT: it has ended; otherwise
 * there is none, and nobody hears of its end.
 */
int handoff_resume(uv_loop_t *loop, const struct handoff_config *cfg, uint64_t guest,
		   const struct session *who);

#endif
