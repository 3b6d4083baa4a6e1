/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * childmsg.h (private): what a forked child and the process of its pager have to say to each other, over a SOCK_SEQPACKET.
 *
 *	child				pager
 *	HELLO, its userfaultfd ------->
 *	              <--------------- ACK, a pidfd		it is served
 *	FORK, a socket --------------->				it is about to fork
 *	              <--------------- REGION, descriptors ...	what its child is to map
 *	FORKED ----------------------->				it has, or will not
 *
 * Nothing is allocated and no lock is taken: most of it happens around a fork().
 */
#ifndef UP_CHILDMSG_H
#define UP_CHILDMSG_H

#include <stddef.h>
#include <sys/types.h>

#include "watcher.h"

#define MSG_REGIONS 32u /* and descriptors, at most */
#define FORK_MS 2000	/* a child that is forking is back within that */
#define ANSWER_MS 30000 /* the pager answers within that */

enum msg_type { MSG_HELLO = 1, MSG_ACK, MSG_FORK, MSG_REGION, MSG_FORKED };

struct msg {
	uint32_t type;
	uint32_t serial;  /* FORK: the child's; REGION: of what it answers */
	int32_t status;	  /* REGION: 0, or why there are none; FORKED: 0, or it will not */
	uint32_t n, left; /* REGION: how many here, and how many are still to come */
	struct region r[MSG_REGIONS];
};

/* 0 or -errno; -ETIMEDOUT: the other side does not read.  `nfd` descriptors go with it. */
int msg_send(int sock, const struct msg *m, const int fd[], size_t nfd);
/*
 * What is there now: 0, or -errno; -EAGAIN: nothing; -ENOTCONN: it is over; -EPROTO: not a whole message.  *nfd: descriptors that came, which
 * are the caller's.  *pid: the sender's, if asked for.
 */
int msg_receive(int sock, struct msg *m, int fd[MSG_REGIONS], size_t *nfd, pid_t *pid);
/* The same, once there is one, within `ms`. */
int msg_await(int sock, struct msg *m, int fd[MSG_REGIONS], size_t *nfd, int ms);

#endif
