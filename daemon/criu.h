/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * criu.h (private): processes that CRIU restores with their memory to come later (restore --lazy-pages).
 */
#ifndef UP_DAEMON_CRIU_H
#define UP_DAEMON_CRIU_H

#include <limits.h>
#include <stdbool.h>
#include <uv.h>

#include "base/base.h"
#include "fill.h"
#include "session.h"

#define CRIU_SOCKET "lazy-pages.socket" /* in the directory where `criu restore` works (-W) */
#define CRIU_FINISHED 0x52535446	/* "FTSR" in place of a task: all of them are restored */
#define CRIU_END_MS \
	20000u /* that what is missing is still filled when a session is told to end, by default */
#define CRIU_GRACE_MS 10000u /* that tasks have to go after a restore that failed */
#define CRIU_LOOK_MS 500u    /* between looks whether they live */

struct criu_config {
	const char *dir; /* of the images; copied */
	struct logger log;
	/* The session has ended, and is freed on return: nothing of it is left. */
	void (*gone)(void *ctx, struct session *s);
	void *ctx;
	unsigned end_ms, grace_ms; /* 0: CRIU_END_MS, CRIU_GRACE_MS */
	uint64_t call_mask;	   /* tests: FILL_NO_... */
	/* As in struct fill_config: what a successor of this process needs. */
	const struct store_keeper *keeper;
	uint64_t holder;
};

/*
 * A connection that has been accepted.  0: the descriptor is the session's, which is in the registry and goes of itself; otherwise it
 * is still the caller's.  The images are read in a thread of the loop's pool.  The loop's thread.
 */
int criu_open(uv_loop_t *loop, int connection, const struct criu_config *cfg, struct session **out);

/*
 * The session that a predecessor has had, which has been killed: h->note->about.kind is "criu".  0: what was kept for it is used up; otherwise it is the
 * caller's, and what the tasks miss waits.  A restore that is under way goes on.
 */
int criu_resume(uv_loop_t *loop, const struct criu_config *cfg, struct fill_heir *h);

/* End it as the operation `end` does, but with what is missing dealt with in another way.  Does not wait. */
void criu_end(struct session *s, enum fill_end how, unsigned ms);

/* When it has ended: whether all that was restored has all its pages. */
bool criu_complete(const struct session *s);

/* uffd-pagerd criu --images-dir IMG --work-dir WORK.  The exit status: 0 all is transferred, 1 something failed, 2 wrong usage. */
int criu_main(int argc, char **argv);

#endif
