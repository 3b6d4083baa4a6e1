/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * handoff.h (private): virtual machine monitors that hand their guest's memory over (Cloud Hypervisor).
 */
#ifndef UP_DAEMON_HANDOFF_H
#define UP_DAEMON_HANDOFF_H

#include <uv.h>

#include "base/base.h"
#include "session.h"
#include "uffd_pager.h"

#define HANDOFF_WAIT_MS 10000u /* from the connection to the end of the first message */

struct handoff_config {
	struct up_runtime *rt; /* serve_start() has been called */
	struct logger log;
	const char *group;    /* "" or NULL: none; copied */
	unsigned regions_max; /* of one client */
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

#endif
