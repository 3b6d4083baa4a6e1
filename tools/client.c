/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * client.c: see client.h.
 */
#include "client.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define DEADLINE_MS 30000 /* another budget may take 20 s */
#define ANSWER_MAX (64u << 20)

const char *
client_default_socket(void)
{
	static char path[PATH_MAX];
	const char *const dir = getenv("XDG_RUNTIME_DIR");

	if (dir != NULL && dir[0] == '/') {
		snprintf(path, sizeof(path), "%s/uffd-pagerd/control.sock", dir);
		if (access(path, F_OK) == 0)
			return path;
	}
	return "/run/uffd-pagerd/control.sock";
}

int
client_connect(struct client *c, const char *path)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	int r;

	*c = (struct client){ .fd = -1 };
	if (strlen(path) >= sizeof(sun.sun_path))
		return -ENAMETOOLONG;
	memcpy(sun.sun_path, path, strlen(path));
	c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		return -errno;
	if (connect(c->fd, (const struct sockaddr *)&sun, sizeof(sun)) < 0) {
		r = -errno;
		client_close(c);
		return r;
	}
	return 0;
}

void
client_close(struct client *c)
{
	if (c->fd >= 0)
		close(c->fd);
	free(c->buf);
	*c = (struct client){ .fd = -1 };
}

static long
now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* 0, or -1 with errno. */
static int
wait_for(int fd, short events, long until)
{
	struct pollfd p = { .fd = fd, .events = events };

	for (;;) {
		const long left = until - now_ms();
		const int r = left > 0 ? poll(&p, 1, (int)left) : 0;

		if (r > 0)
			return 0;
		if (r == 0) {
			errno = ETIMEDOUT;
			return -1;
		}
		if (errno != EINTR)
			return -1;
	}
}

static int
send_all(struct client *c, const char *text, size_t len, long until)
{
	while (len > 0) {
		const ssize_t n = send(c->fd, text, len, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n > 0) {
			text += n;
			len -= (size_t)n;
		} else if ((errno != EAGAIN && errno != EINTR) ||
			   wait_for(c->fd, POLLOUT, until) < 0)
			return -1;
	}
	return 0;
}

static json_t *
receive(struct client *c, long until)
{
	char *end;
	json_error_t error;

	for (size_t seen = 0;;) {
		end = c->have > seen ? memchr(c->buf + seen, '\n', c->have - seen) : NULL;
		if (end != NULL) {
			const size_t len = (size_t)(end - c->buf);
			json_t *const j = json_loadb(c->buf, len, 0, &error);

			c->have -= len + 1;
			memmove(c->buf, end + 1, c->have);
			if (j == NULL)
				errno = EPROTO;
			return j;
		}
		seen = c->have;
		if (c->have == c->room) {
			const size_t room = c->room == 0 ? 16384 : c->room * 2;
			char *const bigger = room <= ANSWER_MAX ? realloc(c->buf, room) : NULL;

			if (bigger == NULL) {
				errno = EMSGSIZE;
				return NULL;
			}
			c->buf = bigger;
			c->room = room;
		}
		if (wait_for(c->fd, POLLIN, until) < 0)
			return NULL;
		const ssize_t n = recv(c->fd, c->buf + c->have, c->room - c->have, MSG_DONTWAIT);
		if (n > 0)
			c->have += (size_t)n;
		else if (n == 0) {
			errno = ECONNRESET;
			return NULL;
		} else if (errno != EAGAIN && errno != EINTR)
			return NULL;
	}
}

json_t *
client_ask(struct client *c, json_t *req)
{
	char *const text = json_dumps(req, JSON_COMPACT);
	const long until = now_ms() + DEADLINE_MS;
	json_t *answer = NULL;
	int error = ENOMEM;

	json_decref(req);
	if (text != NULL) {
		const size_t len = strlen(text);

		text[len] = '\n';
		/* Refused at the door, its last word is still to be read, though nothing can be said. */
		if (send_all(c, text, len + 1, until) == 0 || errno == EPIPE)
			answer = receive(c, until);
		error = errno;
	}
	free(text);
	errno = error;
	return answer;
}
