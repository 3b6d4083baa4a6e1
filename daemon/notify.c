/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * notify.c: libsystemd's corner of the daemon.
 */
#include "notify.h"

#ifdef UP_HAVE_SYSTEMD
#include <systemd/sd-daemon.h>
#endif

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon.h"
#include "descriptors.h"
#include "log.h"

#ifdef UP_HAVE_SYSTEMD

#define HANDED_MAX 64
#define SAY_MS \
	5000 /* what has to be known there is waited with for that long, if its queue is full */

static struct {
	int n;		    /* -1: not looked at yet */
	int fd[HANDED_MAX]; /* -1: taken */
	char name[HANDED_MAX][64];
} handed = { .n = -1 };

static int sock = -1;

/* Connected to the manager's socket; -1. */
static int
manager(void)
{
	static pid_t pid;
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	const char *const where = getenv("NOTIFY_SOCKET");
	size_t len;

	/* A child's is its own. */
	if (where == NULL || (sock >= 0 && pid == getpid()))
		return where == NULL ? -1 : sock;
	len = strlen(where);
	if ((where[0] != '/' && where[0] != '@') || len >= sizeof(sun.sun_path))
		return -1;
	memcpy(sun.sun_path, where, len);
	if (where[0] == '@')
		sun.sun_path[0] = '\0';
	sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (sock >= 0 && connect(sock, (const struct sockaddr *)&sun,
				 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)) < 0) {
		close(sock);
		sock = -1;
	}
	pid = getpid();
	return sock;
}

int
notify_send(const char *text, int fd, int ms)
{
	const uint64_t end = monotonic_ns() + (uint64_t)ms * 1000000;
	int r;

	if (manager() < 0)
		return -ENOTCONN;
	r = descriptors_send(sock, text, strlen(text), fd);
	if (r == -ECONNREFUSED || r == -ECONNRESET) {
		/* It has been started anew, with another one. */
		close(sock);
		sock = -1;
		if (manager() < 0)
			return r;
	}
	while (r != 0 && ((r = descriptors_send(sock, text, strlen(text), fd)) == -EAGAIN ||
			  r == -ETOOMANYREFS)) {
		struct pollfd pf = { .fd = sock, .events = POLLOUT };
		const uint64_t now = monotonic_ns();

		if (now >= end)
			return -ETIMEDOUT;
		if (r == -ETOOMANYREFS) {
			pf.fd = -1; /* it has not read enough of them yet, and nobody is told when */
			(void)poll(&pf, 1, 1);
		} else {
			(void)poll(&pf, 1, (int)((end - now) / 1000000) + 1);
		}
	}
	return r;
}

void
notify(const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (manager() < 0)
		(void)sd_notify(0, text);
	else /* a manager that hangs does not stop us: the rest is said again, or is no loss */
		(void)notify_send(text, -1,
				  strncmp(text, "STATUS=", 7) == 0 ||
						  strncmp(text, "WATCHDOG=", 9) == 0
					  ? 0
					  : SAY_MS);
}

void
notify_reloading(void)
{
	notify("RELOADING=1\nMONOTONIC_USEC=%" PRIu64, uv_hrtime() / 1000);
}

uint64_t
notify_watchdog(void)
{
	uint64_t us;

	return sd_watchdog_enabled(0, &us) > 0 ? us * 1000 : 0;
}

static void
look(void)
{
	char **names = NULL;
	const int n = sd_listen_fds_with_names(1, &names);

	handed.n = 0;
	for (int i = 0; i < n; i++) {
		const int fd = SD_LISTEN_FDS_START + i;

		if (i < HANDED_MAX) {
			handed.fd[i] = fd;
			snprintf(handed.name[i], sizeof(handed.name[i]), "%s", names[i]);
			handed.n++;
		} else
			close(fd);
		free(names[i]);
	}
	free(names);
}

int
notify_take(const char *name, int socktype)
{
	if (handed.n < 0)
		look();
	for (int i = 0; i < handed.n; i++) {
		const int fd = handed.fd[i];

		if (fd < 0 || strcmp(handed.name[i], name) != 0)
			continue;
		if (sd_is_socket(fd, AF_UNSPEC, socktype, 1) <= 0) {
			log_error(
				"the descriptor '%s' that was handed over is no listening socket of the type that is wanted",
				name);
			continue;
		}
		handed.fd[i] = -1;
		return fd;
	}
	return -1;
}

void
notify_close_rest(void)
{
	for (int i = 0; i < handed.n; i++)
		if (handed.fd[i] >= 0) {
			log_warning(
				"nothing is known of the descriptor '%s' that was handed over; it is closed",
				handed.name[i]);
			close(handed.fd[i]);
			handed.fd[i] = -1;
		}
}

#else

int
notify_send(const char *text, int fd, int ms)
{
	(void)text;
	(void)fd;
	(void)ms;
	return -ENOTSUP;
}

void
notify(const char *fmt, ...)
{
	(void)fmt;
}

void
notify_reloading(void)
{
}

uint64_t
notify_watchdog(void)
{
	return 0;
}

int
notify_take(const char *name, int socktype)
{
	(void)name;
	(void)socktype;
	return -1;
}

void
notify_close_rest(void)
{
}

#endif
