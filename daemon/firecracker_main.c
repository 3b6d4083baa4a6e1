/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * firecracker_main.c: `uffd-pagerd firecracker SOCK MEMFILE`, the shape of Firecracker's own example handlers.
 *
 * A loop of its own and nothing else: no budget, no swap, no other clients.  Any number of microVMs may be restored from MEMFILE, one after
 * the other or at once.
 */
#include <argp.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "firecracker.h"

#define CLIENTS_MAX 1024u
#define DRAIN_MS 5000u	 /* that pages which nobody has asked for are still filled at the end */
#define RECORD_MAX 3600u /* seconds */
#define BACKLOG 128

enum { OPT_NO_WORKING_SET = 256, OPT_RECORD, OPT_DRAIN };

struct handler {
	const char *socket_path, *memfile;
	bool no_working_set;
	unsigned record_seconds, drain_ms;
	struct logger log;
	struct memfile *source;
	uv_loop_t loop;
	uv_poll_t listener;
	uv_signal_t term, intr;
	int fd;
	dev_t dev; /* of the socket's file, so that only ours is removed */
	ino_t ino;
	unsigned clients;
	bool ending, failed, full;
};

static void
to_stderr(void *ctx, enum up_log_level level, const char *line)
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

/* --- options --- */

static bool
seconds(const char *text, unsigned max, unsigned *value)
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

static error_t
parse(int key, char *arg, struct argp_state *state)
{
	struct handler *h = state->input;
	unsigned n = 0;

	switch (key) {
	case OPT_NO_WORKING_SET:
		h->no_working_set = true;
		return 0;
	case OPT_RECORD:
		if (!seconds(arg, RECORD_MAX, &h->record_seconds) || h->record_seconds == 0)
			argp_error(state, "--record-seconds: 1 to %u, not '%s'", RECORD_MAX, arg);
		return 0;
	case OPT_DRAIN:
		if (!seconds(arg, RECORD_MAX, &n))
			argp_error(state, "--drain-seconds: 0 to %u, not '%s'", RECORD_MAX, arg);
		h->drain_ms = n * 1000;
		return 0;
	case ARGP_KEY_ARG:
		if (state->arg_num == 0)
			h->socket_path = arg;
		else if (state->arg_num == 1)
			h->memfile = arg;
		else
			argp_error(state, "too many arguments");
		return 0;
	case ARGP_KEY_END:
		if (h->memfile == NULL)
			argp_error(state, "SOCK and MEMFILE are wanted");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

/* --- the socket --- */

/* What is there, if it is a socket that nobody listens on, is in the way.  0, or it can not be removed. */
static int
remove_stale(const struct handler *h, const struct sockaddr_un *sun)
{
	struct stat st;
	int fd, r;

	if (lstat(sun->sun_path, &st) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode)) {
		log_line(&h->log, UP_LOG_ERROR, "%s is there, and is no socket", sun->sun_path);
		return -EEXIST;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	r = connect(fd, (const struct sockaddr *)sun, sizeof *sun) < 0 ? -errno : 0;
	close(fd);
	if (r != -ECONNREFUSED) {
		log_line(&h->log, UP_LOG_ERROR, "%s: somebody listens on it", sun->sun_path);
		return -EADDRINUSE;
	}
	return unlink(sun->sun_path) < 0 && errno != ENOENT ? -errno : 0;
}

static int
listen_on(struct handler *h)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	struct stat st;
	int r;

	if (strlen(h->socket_path) >= sizeof sun.sun_path) {
		log_line(&h->log, UP_LOG_ERROR, "%s: longer than a socket's path may be",
			 h->socket_path);
		return -ENAMETOOLONG;
	}
	strcpy(sun.sun_path, h->socket_path);
	r = remove_stale(h, &sun);
	if (r < 0)
		return r;
	h->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (h->fd < 0 || bind(h->fd, (struct sockaddr *)&sun, sizeof sun) < 0 ||
	    listen(h->fd, BACKLOG) < 0 || lstat(sun.sun_path, &st) < 0) {
		r = -errno;
		log_line(&h->log, UP_LOG_ERROR, "%s: %s", h->socket_path, strerror(-r));
		return r;
	}
	h->dev = st.st_dev;
	h->ino = st.st_ino;
	return 0;
}

static void
remove_socket(const struct handler *h)
{
	struct stat st;

	if (h->ino != 0 && lstat(h->socket_path, &st) == 0 && st.st_dev == h->dev &&
	    st.st_ino == h->ino)
		unlink(h->socket_path);
}

/* --- clients --- */

static void on_connection(uv_poll_t *p, int status, int events);

static void
on_gone(void *ctx, struct session *s)
{
	struct handler *h = ctx;

	(void)s;
	h->clients--;
	if (h->full && !h->ending) {
		h->full = false;
		uv_poll_start(&h->listener, UV_READABLE, on_connection);
	}
}

/* No more until one goes. */
static void
pause_listening(struct handler *h, const char *why)
{
	log_line(&h->log, UP_LOG_WARNING, "no new clients for now: %s", why);
	h->full = true;
	uv_poll_stop(&h->listener);
}

static void
on_connection(uv_poll_t *p, int status, int events)
{
	struct handler *h = p->data;
	const struct firecracker_config cfg = {
		.source = h->source,
		.log = h->log,
		.working_set = !h->no_working_set,
		.record_seconds = h->record_seconds,
		.gone = on_gone,
		.ctx = h,
	};
	struct session *s;
	int fd, r;

	(void)status;
	(void)events;
	if (h->clients == CLIENTS_MAX) {
		pause_listening(h, "there are as many as there may be");
		return;
	}
	fd = accept4(h->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0) {
		if ((errno == EMFILE || errno == ENFILE || errno == ENOMEM) && h->clients > 0)
			pause_listening(h, strerror(errno));
		return;
	}
	r = firecracker_open(&h->loop, fd, &cfg, &s);
	if (r < 0) {
		log_line(&h->log, UP_LOG_ERROR, "a client is refused: %s", strerror(-r));
		close(fd);
		return;
	}
	h->clients++;
}

static void
close_one(uv_handle_t *handle, void *arg)
{
	struct handler *h = arg;

	if ((handle == (uv_handle_t *)&h->listener || handle == (uv_handle_t *)&h->term ||
	     handle == (uv_handle_t *)&h->intr) &&
	    !uv_is_closing(handle))
		uv_close(handle, NULL);
}

/* The first time what clients miss is filled, a while; the second time it is not. */
static void
on_signal(uv_signal_t *sig, int signum)
{
	struct handler *h = sig->data;
	struct session *s, *next;

	log_line(&h->log, UP_LOG_INFO, "%s: %s, %u client%s", strsignal(signum),
		 h->ending ? "at once" : "ending", h->clients, h->clients == 1 ? "" : "s");
	for (s = session_first(); s != NULL; s = next) {
		next = s->next;
		firecracker_end(s, FILL_END_FILL, h->ending ? 0 : h->drain_ms);
	}
	if (!h->ending) {
		h->ending = true;
		uv_close((uv_handle_t *)&h->listener, NULL);
		uv_unref((uv_handle_t *)&h->term);
		uv_unref((uv_handle_t *)&h->intr);
	}
}

static int
run(struct handler *h)
{
	int r = memfile_open(&h->source, h->memfile, &h->log);

	if (r < 0)
		return r;
	r = listen_on(h);
	if (r < 0)
		goto source;
	r = uv_loop_init(&h->loop);
	if (r < 0)
		goto socket;
	uv_poll_init(&h->loop, &h->listener, h->fd);
	uv_signal_init(&h->loop, &h->term);
	uv_signal_init(&h->loop, &h->intr);
	h->listener.data = h->term.data = h->intr.data = h;
	r = uv_poll_start(&h->listener, UV_READABLE, on_connection);
	if (r == 0)
		r = uv_signal_start(&h->term, on_signal, SIGTERM);
	if (r == 0)
		r = uv_signal_start(&h->intr, on_signal, SIGINT);
	if (r == 0) {
		log_line(&h->log, UP_LOG_INFO, "serving %s (%llu MiB) on %s", h->memfile,
			 (unsigned long long)(h->source->size >> 20), h->socket_path);
		uv_run(&h->loop, UV_RUN_DEFAULT);
	}
	uv_walk(&h->loop, close_one, h);
	uv_run(&h->loop, UV_RUN_DEFAULT);
	uv_loop_close(&h->loop);
socket:
	remove_socket(h);
	if (h->fd >= 0)
		close(h->fd);
source:
	memfile_unref(h->source);
	return r;
}

int
firecracker_main(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "no-working-set", OPT_NO_WORKING_SET, NULL, 0,
		  "Neither read nor write MEMFILE.ws", 0 },
		{ "record-seconds", OPT_RECORD, "N", 0,
		  "Pages touched in the first N seconds are the working set (5)", 0 },
		{ "drain-seconds", OPT_DRAIN, "N", 0,
		  "On SIGTERM, fill what clients miss for as long as that; then it is SIGBUS (5)",
		  0 },
		{ 0 },
	};
	static const struct argp argp = {
		.options = options,
		.parser = parse,
		.args_doc = "SOCK MEMFILE",
		.doc = "Serve page faults of Firecracker microVMs that are restored from MEMFILE "
		       "(mem_backend: backend_type \"Uffd\", backend_path SOCK).",
	};
	struct handler h = {
		.record_seconds = FC_RECORD_SECONDS,
		.drain_ms = DRAIN_MS,
		.log = { .fn = to_stderr },
		.fd = -1,
	};

	argp_err_exit_status = 2;
	if (argp_parse(&argp, argc, argv, 0, NULL, &h) != 0)
		return 2;
	signal(SIGPIPE, SIG_IGN);
	return run(&h) < 0 ? 1 : 0;
}
