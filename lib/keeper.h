/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * keeper.h (private): a runtime some of whose memory forked children have, and the thread that looks after them.
 */
#ifndef UP_KEEPER_H
#define UP_KEEPER_H

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/pulse.h"
#include "childmsg.h"
#include "runtime.h"
#include "serve.h"

#define CHILDREN_MAX SERVE_SPACES_MAX
#define FORK_MS 30000  /* who is forking is back within that */
#define RETURN_MS 2000 /* the same, of who may have been back when a predecessor was killed */

/* A runtime some of whose memory is inherited. */
struct forks {
	struct forks *next; /* (registry.lock) */
	struct up_runtime *rt;
	pthread_t keeper;
	int kick;  /* eventfd */
	int pidfd; /* of this process, for watchers */
	atomic_bool stop;
	struct pulse pulse;
	pthread_mutex_t ended_lock;
	pthread_cond_t ended_cond;
	unsigned long ended; /* (ended_lock) spaces of children that are gone */
	/* (map.change) between prepare and what comes after the fork */
	struct space *coming;
	int refused; /* why there is none: -errno */
	size_t nends;
	int end[CHILDREN_MAX]; /* our ends of all children's sockets, for a child to close */
	/* keeper */
	struct pollfd poll[1 + CHILDREN_MAX];
	struct space *space[1 + CHILDREN_MAX];
	struct msg msg;
	int soon; /* ms, until something is to be done that nobody kicks for */
};

/* => no lock but that of who keeps a list of them.  0 or -errno. */
int keeper_start(struct up_runtime *rt, struct forks **out);
/* Children fend for themselves from here on.  => no lock is held */
void keeper_stop(struct forks *f);
/* There is a new space, or something else to look at.  Any thread. */
void keeper_kick(struct forks *f);
/*
 * What children that are gone had been promised is the keeper's to take back, for which it needs map.change: let it, before a fork is told
 * that there is no room.  Waits for a second at most.  => map.change is not held
 */
void keeper_catch_up(struct forks *f);
/*
 * The process `pid` runs there from now on, and is told so.  => map.change is not held.  < 0: the space is to end.  The descriptor is not the
 * caller's any more in any case.
 */
int keeper_attach(struct forks *f, struct space *sp, int uffd, pid_t pid);
/*
 * Tell a child or client what it has to map, in REGION messages that answer `serial`: of the space that it is about to fork, or of what is pending.
 * The keeper goes on with it as it reads them.  0 or -errno.  => map.change is not held
 */
int keeper_tell(struct forks *f, struct space *sp, uint32_t serial);
/* Nobody runs there, any more or yet.  => map.change is held */
void keeper_end(struct pager *p, struct space *sp);
/* What there is to map of an entry of a space; the descriptor is not the caller's. */
struct region keeper_region(struct pager *p, const struct map_entry *e);

#endif
