/* SPDX-License-Identifier: BSD-2-Clause */
#include "verb.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/base.h"

#define CLIENTS_MAX 1024u
#define BACKLOG 128

void
verb_to_stderr(void *ctx, enum up_log_level level, const char *line)
{
	static const char *const name[] = {
		[UP_LOG_ERROR] = "error",
		[UP_LOG_WARNING] = "warning",
		[UP_LOG_INFO] = "info",
	};

	(void)ctx;
	fprintf(stderr, "uffd-pagerd: %s: %s\n",
		(unsigned)level < ARRAY_SIZE(name) && name[level] != NULL ? name[level] : "?",
		line);
}

bool
verb_seconds(const char *text, unsigned max, unsigned *value)
{
	char *end;
	unsigned long n;

	errno = 0;
	n = strtoul(text, &end, 10);
	if (errno != 0 || end == text || *end != '\0' || text[0] == '-' || n > max)
		return false;
	*value = (unsigned)n;
	return true;
}

/* --- over the death of this process --- */

const struct verb_heirs *verb_heirs;

const struct store_keeper *
verb_keeper(uint64_t *holder)
{
	return verb_heirs != NULL ? verb_heirs->keeper(holder) : NULL;
}

#define LISTENER "verb/1/listener"
#define BEGUN "verb/1/begun"

/* fd -1: not any more. */
static void
keep(const char *name, int fd)
{
	uint64_t holder;
	const struct store_keeper *k = verb_keeper(&holder);

	if (k != NULL && fd >= 0)
		k->keep(k->ctx, name, fd);
	else if (k != NULL)
		k->drop(k->ctx, name);
}

/* --- the socket --- */

/* What is there, if it is a socket that nobody listens on, is in the way.  0, or it can not be removed. */
static int
remove_stale(const struct verb *v, const struct sockaddr_un *sun)
{
	struct stat st;
	int fd, r;

	if (lstat(sun->sun_path, &st) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode)) {
		log_line(&v->log, UP_LOG_ERROR, "%s is there, and is no socket", sun->sun_path);
		return -EEXIST;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	r = connect(fd, (const struct sockaddr *)sun, sizeof *sun) < 0 ? -errno : 0;
	close(fd);
	if (r != -ECONNREFUSED) {
		log_line(&v->log, UP_LOG_ERROR, "%s: somebody listens on it", sun->sun_path);
		return -EADDRINUSE;
	}
	return unlink(sun->sun_path) < 0 && errno != ENOENT ? -errno : 0;
}

static int
listen_on(struct verb *v)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	struct stat st;
	int r = 0;

	if (strlen(v->socket_path) >= sizeof sun.sun_path) {
		log_line(&v->log, UP_LOG_ERROR, "%s: longer than a socket's path may be",
			 v->socket_path);
		return -ENAMETOOLONG;
	}
	strcpy(sun.sun_path, v->socket_path);
	/* The last process's, if there was one: somebody may have knocked meanwhile. */
	v->fd = verb_heirs != NULL ? verb_heirs->take(NULL, LISTENER) : -1;
	if (v->fd < 0) {
		r = remove_stale(v, &sun);
		if (r < 0)
			return r;
		v->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (v->fd < 0 || bind(v->fd, (struct sockaddr *)&sun, sizeof sun) < 0 ||
		    listen(v->fd, BACKLOG) < 0)
			r = -errno;
		if (r == 0)
			keep(LISTENER, v->fd);
	}
	if (r == 0 && lstat(sun.sun_path, &st) < 0)
		r = -errno;
	if (r != 0) {
		log_line(&v->log, UP_LOG_ERROR, "%s: %s", v->socket_path, strerror(-r));
		return r;
	}
	v->dev = st.st_dev;
	v->ino = st.st_ino;
	return 0;
}

static void
remove_socket(const struct verb *v)
{
	struct stat st;

	if (v->ino != 0 && lstat(v->socket_path, &st) == 0 && st.st_dev == v->dev &&
	    st.st_ino == v->ino)
		unlink(v->socket_path);
}

/* --- clients --- */

static void on_connection(uv_poll_t *p, int status, int events);

void
verb_gone(void *ctx, struct session *s)
{
	struct verb *v = ctx;

	(void)s;
	v->clients--;
	if (v->full && !uv_is_closing((uv_handle_t *)&v->listener)) {
		v->full = false;
		uv_poll_start(&v->listener, UV_READABLE, on_connection);
	}
}

/* No more until one goes. */
static void
pause_listening(struct verb *v, const char *why)
{
	log_line(&v->log, UP_LOG_WARNING, "no new clients for now: %s", why);
	v->full = true;
	uv_poll_stop(&v->listener);
}

/* The loop ends with the last client. */
static void
no_more(struct verb *v)
{
	if (uv_is_closing((uv_handle_t *)&v->listener))
		return;
	uv_close((uv_handle_t *)&v->listener, NULL);
	uv_unref((uv_handle_t *)&v->term);
	uv_unref((uv_handle_t *)&v->intr);
	uv_unref((uv_handle_t *)&v->hup);
	/* Who comes now is not to wait for an answer. */
	remove_socket(v);
	keep(LISTENER, -1);
	close(v->fd);
	v->fd = -1;
}

/* The one client has come: should this process be killed, the next one is not to wait for another. */
static void
note_begun(void)
{
	const int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	keep(BEGUN, fd);
	close(fd);
}

static void
open_client(struct verb *v, int fd)
{
	const int r = v->open(v, fd);

	if (r < 0) {
		log_line(&v->log, UP_LOG_ERROR, "a client is refused: %s", strerror(-r));
		close(fd);
	} else {
		v->clients++;
		if (v->once) {
			note_begun();
			no_more(v);
		}
	}
}

/* 0, or all that there was to do has ended with the last process. */
static int
resume(struct verb *v)
{
	bool begun;
	int fd, connection;

	if (verb_heirs == NULL)
		return 0;
	fd = verb_heirs->take(NULL, BEGUN);
	begun = fd >= 0;
	if (begun)
		close(fd);
	/* Whoever is accepted from here on is not forgotten. */
	verb_heirs->keeper(&(uint64_t){ 0 });
	v->clients = verb_heirs->come(&v->loop, v->gone, v);
	verb_heirs->serves();
	while ((connection = verb_heirs->connection(v->socket_path)) >= 0) {
		if (v->once && v->clients > 0)
			close(connection);
		else
			open_client(v, connection);
	}
	if (v->once && v->clients > 0)
		no_more(v);
	else if (begun) {
		log_line(
			&v->log, UP_LOG_ERROR,
			"the last process was killed when its client had just come, or had just gone");
		return -ESRCH;
	}
	return 0;
}

static void
on_connection(uv_poll_t *p, int status, int events)
{
	struct verb *v = p->data;
	int fd;

	(void)status;
	(void)events;
	if (v->clients == CLIENTS_MAX) {
		pause_listening(v, "there are as many as there may be");
		return;
	}
	fd = accept4(v->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0) {
		if ((errno == EMFILE || errno == ENFILE || errno == ENOMEM) && v->clients > 0)
			pause_listening(v, strerror(errno));
		return;
	}
	open_client(v, fd);
}

static void
close_one(uv_handle_t *handle, void *arg)
{
	struct verb *v = arg;

	if ((handle == (uv_handle_t *)&v->listener || handle == (uv_handle_t *)&v->term ||
	     handle == (uv_handle_t *)&v->intr || handle == (uv_handle_t *)&v->hup) &&
	    !uv_is_closing(handle))
		uv_close(handle, NULL);
}

/* The first time what clients miss is filled, a while; the second time it is not. */
static void
on_signal(uv_signal_t *sig, int signum)
{
	struct verb *v = sig->data;
	struct session *s, *next;

	log_line(&v->log, UP_LOG_INFO, "%s: %s, %u client%s", strsignal(signum),
		 v->ending ? "at once" : "ending", v->clients, v->clients == 1 ? "" : "s");
	for (s = session_first(); s != NULL; s = next) {
		next = s->next;
		v->end(s, FILL_END_FILL, v->ending ? 0 : v->drain_ms);
	}
	v->ending = true;
	no_more(v);
}

int
verb_run(struct verb *v)
{
	int r;

	if (verb_heirs != NULL)
		verb_heirs->begin();
	r = listen_on(v);
	if (r < 0)
		goto socket;
	r = uv_loop_init(&v->loop);
	if (r < 0)
		goto socket;
	uv_poll_init(&v->loop, &v->listener, v->fd);
	uv_signal_init(&v->loop, &v->term);
	uv_signal_init(&v->loop, &v->intr);
	uv_signal_init(&v->loop, &v->hup);
	v->listener.data = v->term.data = v->intr.data = v->hup.data = v;
	r = uv_poll_start(&v->listener, UV_READABLE, on_connection);
	if (r == 0)
		r = uv_signal_start(&v->term, on_signal, SIGTERM);
	if (r == 0)
		r = uv_signal_start(&v->intr, on_signal, SIGINT);
	if (r == 0)
		r = uv_signal_start(&v->hup, on_signal, SIGHUP);
	if (r == 0)
		r = resume(v);
	if (r == 0) {
		log_line(&v->log, UP_LOG_INFO, "serving %s on %s", v->what, v->socket_path);
		uv_run(&v->loop, UV_RUN_DEFAULT);
	}
	uv_walk(&v->loop, close_one, v);
	uv_run(&v->loop, UV_RUN_DEFAULT);
	uv_loop_close(&v->loop);
socket:
	remove_socket(v);
	if (v->fd >= 0)
		close(v->fd);
	return r;
}
