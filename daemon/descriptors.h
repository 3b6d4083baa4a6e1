/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * descriptors.h (private): file descriptors that come, and go, over a Unix socket.
 */
#ifndef UP_DAEMON_DESCRIPTORS_H
#define UP_DAEMON_DESCRIPTORS_H

#include <sys/socket.h>
#include <sys/types.h>

#define DESCRIPTORS_MAX 16u

/*
 * Bytes that are there, up to `size`, and what comes along with them, behind the *n that there are in fd[].  0: the other end has closed it.  Not blocking: -EAGAIN,
 * -EINTR.  -E2BIG: more descriptors than `max` (<= DESCRIPTORS_MAX) in all, and the rest is closed; -EMFILE: some could not be received.
 */
ssize_t descriptors_receive(int connection, void *data, size_t size, int fd[], unsigned *n,
			    unsigned max);
/* The same, with what comes along in `control` afterwards (DESCRIPTORS_CONTROL bytes, aligned as a struct cmsghdr), whatever becomes of this process. */
#define DESCRIPTORS_CONTROL \
	(CMSG_SPACE(DESCRIPTORS_MAX * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred)))
ssize_t descriptors_receive_into(int connection, void *data, size_t size, void *control, int fd[],
				 unsigned *n, unsigned max);
/* The first number in there, of the process that has received it; -1: none. */
int descriptors_number(const void *control);
/* -E2BIG, -EMFILE in words. */
const char *descriptors_why(int r);

/*
 * All bytes, as one message, and a descriptor along with them unless that is -1.  0 or a negative errno.  Nothing but system calls.
 */
int descriptors_send(int connection, const void *data, size_t len, int fd);

/* A pidfd of who is at the other end, whose pid is `pid`; the caller's.  A negative errno. */
int descriptors_peer(int connection, pid_t pid);
/* The same of the process that has that number now. */
int descriptors_process(pid_t pid);

#endif
