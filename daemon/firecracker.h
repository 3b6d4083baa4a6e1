/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * firecracker.h (private): microVMs of Firecracker that are restored from a snapshot (mem_backend "Uffd").
 */
#ifndef UP_DAEMON_FIRECRACKER_H
#define UP_DAEMON_FIRECRACKER_H

#include <stdbool.h>
#include <uv.h>

#include "base/base.h"
#include "fill.h"
#include "memfile.h"
#include "serve.h"
#include "session.h"

#define FC_RECORD_SECONDS 5u   /* by default */
#define FC_HANDSHAKE_MS 10000u /* from the connection to the end of the first array */
#define FC_HANDSHAKES_MAX 64u  /* on one connection */
#define FC_DESCRIPTORS_MAX 16u /* that came, and belong to no array yet */
#define FC_LOOK_MS 200u	       /* between looks whether it lives, where that is not told */

struct firecracker_config {
	struct memfile *source; /* the memory file; each session takes a reference */
	struct logger log;
	bool working_set;
	unsigned record_seconds;
	/* The session has ended, and is freed on return: nothing of it is left, and its slot can be used again. */
	void (*gone)(void *ctx, struct session *s);
	void *ctx;
	unsigned handshake_ms; /* 0: FC_HANDSHAKE_MS */
	uint64_t call_mask;    /* tests: FILL_NO_... */
	/* Whose clients those are whose memory can be taken back; serve_start() has been called.  NULL: all are filled only. */
	struct up_runtime *rt;
	const char *group;    /* that they are in; copied.  "" or NULL: none */
	unsigned regions_max; /* of one of them */
	/* What else one that is in this group may have; NULL: any. */
	void (*limits)(const char *group, struct serve_limits *l);
	/* As in struct fill_config: what a successor of this process needs. */
	const struct store_keeper *keeper;
	uint64_t holder;
};

/*
 * A connection that has been accepted.  0: the descriptor is the session's, which is in the registry and goes of itself; otherwise it
 * is still the caller's.  `cfg` is copied.  The loop's thread.
 */
int firecracker_open(uv_loop_t *loop, int connection, const struct firecracker_config *cfg,
		     struct session **out);

/*
 * The session that a predecessor has had, which has been killed: h->note->about.kind is "firecracker".  cfg->source is that of the note.  0: what was kept
 * for it is used up; otherwise it is the caller's, and what the machine misses waits.
 */
int firecracker_resume(uv_loop_t *loop, const struct firecracker_config *cfg, struct fill_heir *h);

/*
 * The same of memory that can be taken back, which the runtime of cfg serves on (lib/guest.h): it is the session's that firecracker_resume() has made of that process, or has one of
 * its own, without a connection.  0; -ENOENT: it has ended; otherwise nobody hears of its end.
 */
int firecracker_guest(uv_loop_t *loop, const struct firecracker_config *cfg, uint64_t guest,
		      const struct session *who);

/* End it as the operation `end` does, but with what is missing dealt with in another way.  Does not wait. */
void firecracker_end(struct session *s, enum fill_end how, unsigned ms);

/* uffd-pagerd firecracker SOCK MEMFILE.  The exit status: 0, 1 something failed, 2 wrong usage. */
int firecracker_main(int argc, char **argv);

#endif
