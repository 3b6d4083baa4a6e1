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
#define ALONE (-1) /* in place of a number */

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

/* All others are closed. */
static void
keep_uffds(int sock)
{
	int dir = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
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
			if (e->name[0] != '.' && fd != dir && fd != sock && !is_uffd(dir, e->name))
				close(fd);
		}
	}
	close(dir);
}

/* Only system calls: another thread may have been anywhere when this process was made. */
static void __attribute__((noreturn)) hold(int sock)
{
	struct holder_word q = { 0 };

	prctl(PR_SET_NAME, "uffd-holder");
	setpgid(0, 0);
	while (recv(sock, &q, sizeof(q), 0) == (ssize_t)sizeof(q)) {
		if (q.number == ALONE)
			keep_uffds(sock);
		/* And a descriptor, if there is one of that number. */
		if (descriptors_send(sock, &q, sizeof(q), q.number) < 0 &&
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

void
holder_alone(int sock)
{
	(void)holder_ask(sock, ALONE);
}

int
holder_ask(int sock, int number)
{
	const uint64_t end = now_ns() + ANSWER_MS * UINT64_C(1000000);
	const struct holder_word q = { now_ns(), number };
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
		if (r == (int)sizeof(answer) && answer.turn == q.turn && answer.number == number)
			return n == 1 ? fd : -EBADF;
		if (n == 1)
			close(fd);
		r = r == 0 ? -ENOTCONN : r > 0 || r == -EAGAIN || r == -EINTR ? 0 : r;
	}
	return r;
}

void
holder_end(int sock)
{
	shutdown(sock, SHUT_RDWR);
	close(sock);
}
