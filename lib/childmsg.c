/* SPDX-License-Identifier: BSD-2-Clause */
#include "childmsg.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/base.h"

int
msg_send(int sock, const struct msg *m, const int fd[], size_t nfd)
{
	return msg_send_by(sock, m, fd, nfd, now_ns() + (uint64_t)SEND_MS * 1000000);
}

int
msg_send_by(int sock, const struct msg *m, const int fd[], size_t nfd, uint64_t end)
{
	union {
		char buf[CMSG_SPACE(sizeof(int) * MSG_REGIONS)];
		struct cmsghdr align;
	} control;
	struct iovec iov = { .iov_base = (void *)(uintptr_t)m, .iov_len = sizeof *m };
	struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (nfd > 0) {
		struct cmsghdr *c;

		memset(&control, 0, sizeof control);
		h.msg_control = control.buf;
		h.msg_controllen = CMSG_SPACE(sizeof(int) * nfd);
		c = CMSG_FIRSTHDR(&h);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nfd);
		memcpy(CMSG_DATA(c), fd, sizeof(int) * nfd);
	}
	for (;;) {
		const ssize_t n = sendmsg(sock, &h, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n == (ssize_t)sizeof *m)
			return 0;
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			struct pollfd pf = { .fd = sock, .events = POLLOUT };
			const uint64_t now = now_ns();

			if (now < end &&
			    (poll(&pf, 1, (int)((end - now) / 1000000) + 1) > 0 || errno == EINTR))
				continue;
			return -ETIMEDOUT;
		}
		if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
			return -ENOTCONN;
		return n < 0 ? -errno : -EIO;
	}
}

int
msg_receive(int sock, struct msg *m, int fd[MSG_REGIONS], size_t *nfd, pid_t *pid)
{
	union {
		char buf[CMSG_SPACE(sizeof(int) * MSG_REGIONS) + CMSG_SPACE(sizeof(struct ucred))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { .iov_base = m, .iov_len = sizeof *m };
	struct msghdr h = { .msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = control.buf,
			    .msg_controllen = sizeof control.buf };
	ssize_t n;

	*nfd = 0;
	do {
		n = recvmsg(sock, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == ECONNRESET ? -ENOTCONN : -errno;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&h); c != NULL; c = CMSG_NXTHDR(&h, c)) {
		if (c->cmsg_level != SOL_SOCKET)
			continue;
		if (c->cmsg_type == SCM_RIGHTS) {
			*nfd = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
			memcpy(fd, CMSG_DATA(c), *nfd * sizeof(int));
		} else if (c->cmsg_type == SCM_CREDENTIALS && pid != NULL) {
			struct ucred cred;

			memcpy(&cred, CMSG_DATA(c), sizeof cred);
			*pid = cred.pid;
		}
	}
	if (n == (ssize_t)sizeof *m && (h.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0)
		return 0;
	return n == 0 ? -ENOTCONN : -EPROTO;
}

void
fds_close(const int fd[], size_t n)
{
	for (size_t i = 0; i < n; i++)
		close(fd[i]);
}

void
msg_unasked(struct unasked *u, const struct msg *m)
{
	const uint64_t one = 1;

	if (u == NULL || u->kick < 0 || m->type != MSG_LEAVE)
		return;
	atomic_store(&u->leave, (uint64_t)m->n + 1);
	if (write(u->kick, &one, sizeof one) < 0)
		assert(errno == EAGAIN || errno == EBADF); /* or the program has closed it */
}

void
msg_drain(int sock, struct unasked *u)
{
	int fd[MSG_REGIONS];
	struct msg m;
	size_t nfd;
	int r;

	do {
		r = msg_receive(sock, &m, fd, &nfd, NULL);
		fds_close(fd, nfd);
		if (r == 0)
			msg_unasked(u, &m);
	} while (r == 0);
}

static const char *const pagers[] = { "anonymous", "file", "device", "custom", "snapshot" };

uint32_t
pager_number(const char *name)
{
	uint32_t i = 0;

	while (i < ARRAY_SIZE(pagers) && strcmp(pagers[i], name) != 0)
		i++;
	return i;
}

const char *
pager_name(uint32_t number)
{
	return number < ARRAY_SIZE(pagers) ? pagers[number] : NULL;
}

int
msg_await(int sock, struct msg *m, int fd[MSG_REGIONS], size_t *nfd, int ms)
{
	const uint64_t end = now_ns() + (uint64_t)ms * 1000000;

	for (;;) {
		struct pollfd pf = { .fd = sock, .events = POLLIN };
		const uint64_t now = now_ns();
		int r;

		if (now >= end)
			return -ETIMEDOUT;
		r = poll(&pf, 1, (int)((end - now) / 1000000) + 1);
		if (r < 0 && errno != EINTR)
			return -errno;
		if (r <= 0)
			continue;
		r = msg_receive(sock, m, fd, nfd, NULL);
		if (r < 0) {
			fds_close(fd, *nfd);
			*nfd = 0;
		}
		if (r != -EAGAIN)
			return r;
	}
}
