/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pool_child.h: what a forked child does to share a pool, and how its userfaultfd comes to its parent.
 *
 * As the library has it done, with nothing that could hold a lock at the time of the fork.
 */
#ifndef UP_TESTS_POOL_CHILD_H
#define UP_TESTS_POOL_CHILD_H

#include <linux/userfaultfd.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pmap/pmap.h"

union fd_message {
	struct cmsghdr align;
	char buf[CMSG_SPACE(sizeof(int))];
};

static inline struct msghdr
fd_header(union fd_message *c, struct iovec *iov)
{
	return (struct msghdr){ .msg_iov = iov,
				.msg_iovlen = 1,
				.msg_control = c->buf,
				.msg_controllen = sizeof c->buf };
}

/*
 * In the child: map `len` bytes of the pool's file (both of pmap_uffd_pool_fd(), asked before the fork) and tell the
 * parent where.  The address, or 0.
 */
static inline uintptr_t
pool_child_map(const struct pmap *pm, int file, uint64_t offset, size_t len, int sock)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, file, (off_t)offset);
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)p, .len = len },
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
	};
	const int fd = pmap_uffd_child_open(pm);
	uintptr_t va = (uintptr_t)p;
	struct iovec iov = { &va, sizeof va };
	union fd_message c;
	struct msghdr m = fd_header(&c, &iov);
	struct cmsghdr *h;

	if (fd < 0 || p == MAP_FAILED || ioctl(fd, UFFDIO_REGISTER, &reg) < 0)
		return 0;
	memset(&c, 0, sizeof c);
	h = CMSG_FIRSTHDR(&m);
	h->cmsg_level = SOL_SOCKET;
	h->cmsg_type = SCM_RIGHTS;
	h->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(h), &fd, sizeof fd);
	return sendmsg(sock, &m, 0) == (ssize_t)sizeof va ? va : 0;
}

/* In the parent: the descriptor and *va, or -1: nothing came within so many seconds. */
static inline int
pool_child_hear(int sock, int seconds, uintptr_t *va)
{
	struct pollfd p = { .fd = sock, .events = POLLIN };
	struct iovec iov = { va, sizeof *va };
	union fd_message c;
	struct msghdr m = fd_header(&c, &iov);
	int fd;

	if (poll(&p, 1, seconds * 1000) != 1 ||
	    recvmsg(sock, &m, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof *va || CMSG_FIRSTHDR(&m) == NULL)
		return -1;
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
	return fd;
}

#endif
