/* SPDX-License-Identifier: BSD-2-Clause */
#include "descriptors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD /* Linux 6.5 */
#define SO_PEERPIDFD 77
#endif

/* Those of a message that has been received. */
static int
take(struct msghdr *msg, int fd[], unsigned *n, unsigned max)
{
	int r = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c != NULL; c = CMSG_NXTHDR(msg, c)) {
		const unsigned char *data = CMSG_DATA(c);
		size_t count;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int one;

			memcpy(&one, data + i * sizeof one, sizeof one);
			if (*n < max) {
				fd[(*n)++] = one;
			} else {
				close(one);
				r = -E2BIG;
			}
		}
	}
	return msg->msg_flags & MSG_CTRUNC ? -EMFILE : r;
}

int
descriptors_number(const void *control)
{
	struct msghdr msg = {
		.msg_control = (void *)(uintptr_t)control,
		.msg_controllen = DESCRIPTORS_CONTROL,
	};
	int fd = -1;

	for (struct cmsghdr *h = CMSG_FIRSTHDR(&msg); h != NULL && h->cmsg_len >= CMSG_LEN(0);
	     h = CMSG_NXTHDR(&msg, h)) {
		if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_RIGHTS &&
		    h->cmsg_len >= CMSG_LEN(sizeof fd)) {
			memcpy(&fd, CMSG_DATA(h), sizeof fd);
			break;
		}
	}
	return fd;
}

ssize_t
descriptors_receive(int connection, void *data, size_t size, int fd[], unsigned *n, unsigned max)
{
	union {
		struct cmsghdr align;
		char space[DESCRIPTORS_CONTROL];
	} control;

	return descriptors_receive_into(connection, data, size, &control, fd, n, max);
}

ssize_t
descriptors_receive_into(int connection, void *data, size_t size, void *control, int fd[],
			 unsigned *n, unsigned max)
{
	struct iovec iov = { data, size };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = DESCRIPTORS_CONTROL,
	};
	const ssize_t len = recvmsg(connection, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	int r;

	if (len < 0)
		return -errno;
	r = take(&msg, fd, n, max);
	return r < 0 ? r : len;
}

const char *
descriptors_why(int r)
{
	return r == -E2BIG ? "too many file descriptors"
			   : "its file descriptors could not be received, a limit of ours";
}

int
descriptors_send(int connection, const void *data, size_t len, int fd)
{
	struct iovec iov = { (void *)(uintptr_t)data, len };
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { .bytes = { 0 } };
	struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	if (fd >= 0) {
		h.msg_control = control.bytes;
		h.msg_controllen = sizeof control.bytes;
		*CMSG_FIRSTHDR(&h) = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)),
						       .cmsg_level = SOL_SOCKET,
						       .cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&h)), &fd, sizeof fd);
	}
	do {
		n = sendmsg(connection, &h, MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	return n == (ssize_t)len ? 0 : n < 0 ? -errno : -EPROTO;
}

int
descriptors_peer(int connection, pid_t pid)
{
	socklen_t len = sizeof(int);
	int fd = -1;

	if (getsockopt(connection, SOL_SOCKET, SO_PEERPIDFD, &fd, &len) == 0 && fd >= 0) {
		fcntl(fd, F_SETFD, FD_CLOEXEC);
		return fd;
	}
	return descriptors_process(pid);
}

int
descriptors_process(pid_t pid)
{
	const int fd = pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;

	return pid <= 0 ? -ESRCH : fd < 0 ? -errno : fd;
}
