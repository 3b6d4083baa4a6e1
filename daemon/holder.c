/* SPDX-License-Identifier: BSD-2-Clause */
#include "holder.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/base.h"
#include "descriptors.h"

#define ANSWER_MS 5000
/* In place of a number. */
#define ALONE (-1)
#define FROM_0 (-2) /* a connection of number 0 or more; -3: 1 or more... */

/* As getdents64() has it. */
struct entry {
	uint64_t ino;
	int64_t off;
	uint16_t len;
	uint8_t type;
	char name[];
};

static bool
is_uffd(int dir, const char *name)
{
	static const char uffd[] = "anon_inode:[userfaultfd]";
	char link[sizeof(uffd)];

	return readlinkat(dir, name, link, sizeof(link)) == (ssize_t)sizeof(uffd) - 1 &&
	       memcmp(link, uffd, sizeof(uffd) - 1) == 0;
}

static bool
is_connection(int fd)
{
	socklen_t len = sizeof(int);
	int domain, type, listens;

	return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX &&
	       getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0 && type == SOCK_STREAM &&
	       getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) == 0 && !listens;
}

/* Close all that nobody asks for; or, with from >= 0, the first connection of a number from there on, or -1. */
static int
look_through(int sock, int from)
{
	int dir = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC), found = -1;
	_Alignas(struct entry) char buf[4096];
	long n;

	/* The table may be full.  What is closed for it is nothing that anybody asks for. */
	for (int fd = 0; dir < 0 && errno == EMFILE && fd <= STDERR_FILENO; fd++) {
		close(fd);
		dir = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
	while ((n = syscall(SYS_getdents64, dir, buf, sizeof(buf))) > 0) {
		const struct entry *e;

		for (long at = 0; at < n; at += e->len) {
			int fd = 0;

			e = (const void *)(buf + at);
			for (const char *c = e->name; *c >= '0' && *c <= '9'; c++)
				fd = fd * 10 + (*c - '0');
			if (e->name[0] == '.' || fd == dir || fd == sock)
				continue;
			if (from >= 0 && fd >= from && (found < 0 || fd < found) &&
			    is_connection(fd))
				found = fd;
			if (from < 0 && !is_uffd(dir, e->name) && !is_connection(fd))
				close(fd);
		}
	}
	close(dir);
	return found;
}

/* Only system calls: another thread may have been anywhere when this process was made. */
static void __attribute__((noreturn)) hold(int sock)
{
	struct holder_word q = { 0 };

	prctl(PR_SET_NAME, "uffd-holder");
	setpgid(0, 0);
	while (recv(sock, &q, sizeof(q), 0) == (ssize_t)sizeof(q)) {
		q.found = q.number == ALONE    ? look_through(sock, -1)
			  : q.number <= FROM_0 ? look_through(sock, FROM_0 - q.number)
					       : q.number;
		/* And a descriptor, if there is one of that number. */
		if (descriptors_send(sock, &q, sizeof(q), q.found) < 0 &&
		    descriptors_send(sock, &q, sizeof(q), -1) < 0)
			break;
	}
	_exit(0);
}

int
holder_start(const struct store_keeper *keeper, uint64_t id)
{
	sigset_t all, old;
	int pair[2], pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	/* Before there is a holder: in its own table this end would be open for ever. */
	keeper_keep(keeper, "holder", id, NULL, pair[0]);
	close(pair[0]);
	/* It has our handlers: none of them is to run in there. */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &old);
	pid = (int)syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL);
	if (pid == 0)
		hold(pair[1]);
	sigprocmask(SIG_SETMASK, &old, NULL);
	if (pid < 0) {
		pid = -errno;
		close(pair[1]);
		return pid;
	}
	/* pair[1] is the holder's, and has to stay open here: it is the same table. */
	return 0;
}

static int
ask(int sock, int number, int *found)
{
	const uint64_t end = now_ns() + ANSWER_MS * UINT64_C(1000000);
	const struct holder_word q = { now_ns(), number, -1 };
	int r = descriptors_send(sock, &q, sizeof(q), -1);

	while (r == 0) {
		struct pollfd pf = { .fd = sock, .events = POLLIN };
		const uint64_t now = now_ns();
		struct holder_word answer = { 0 };
		unsigned n = 0;
		int fd = -1;

		if (now >= end)
			return -ETIMEDOUT;
		if (poll(&pf, 1, (int)((end - now) / 1000000) + 1) <= 0)
			continue;
		r = (int)descriptors_receive(sock, &answer, sizeof(answer), &fd, &n, 1);
		*found = answer.found;
		if (r == (int)sizeof(answer) && answer.turn == q.turn && answer.number == number)
			return n == 1 ? fd : -EBADF;
		if (n == 1)
			close(fd);
		r = r == 0 ? -ENOTCONN : r > 0 || r == -EAGAIN || r == -EINTR ? 0 : r;
	}
	return r;
}

void
holder_alone(int sock)
{
	int found;

	(void)ask(sock, ALONE, &found);
}

int
holder_ask(int sock, int number)
{
	int found;

	return number < 0 ? -EBADF : ask(sock, number, &found);
}

int
holder_connection(int sock, int *from)
{
	int found = -1;
	const int fd = ask(sock, FROM_0 - *from, &found);

	*from = found + 1;
	return fd;
}

void
holder_end(int sock)
{
	shutdown(sock, SHUT_RDWR);
	close(sock);
}
