/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * notify.c: libsystemd's corner of the daemon.
 */
#include "notify.h"

#ifdef UP_HAVE_SYSTEMD
#include <systemd/sd-daemon.h>
#endif

#include <inttypes.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "log.h"

#ifdef UP_HAVE_SYSTEMD

#define HANDED_MAX 64
#define SAY_S 5 /* how long the manager is waited for, if its queue is full */

static struct {
	int n;		    /* -1: not looked at yet */
	int fd[HANDED_MAX]; /* -1: taken */
	char name[HANDED_MAX][64];
} handed = { .n = -1 };

/*
 * As sd_notify(), which waits for as long as the manager's queue is full.  What is said again anyway does not wait at all.  False: it is to say it, for this is
 * no socket of AF_UNIX.
 */
static bool
say(const char *text)
{
	const bool again = strncmp(text, "STATUS=", 7) == 0 || strncmp(text, "WATCHDOG=", 9) == 0;
	const struct timeval most = { .tv_sec = SAY_S };
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	const char *const where = getenv("NOTIFY_SOCKET");
	const size_t len = where != NULL ? strlen(where) : 0;
	int sock;

	if (len == 0)
		return true;
	if ((where[0] != '/' && where[0] != '@') || len >= sizeof(sun.sun_path))
		return false;
	memcpy(sun.sun_path, where, len);
	if (where[0] == '@')
		sun.sun_path[0] = '\0';
	sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return true;
	(void)setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &most, sizeof(most));
	(void)sendto(sock, text, strlen(text), MSG_NOSIGNAL | (again ? MSG_DONTWAIT : 0),
		     (const struct sockaddr *)&sun,
		     (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len));
	close(sock);
	return true;
}

void
notify(const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (!say(text))
		(void)sd_notify(0, text);
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
