/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * http.c: libmicrohttpd on the loop.
 *
 * Without a thread of its own: its epoll descriptor is one that the loop polls, and when that is readable, or the time-out that it
 * names is over, MHD_run() does what there is to do.  So a request is answered on the loop's thread, where the sessions are.
 *
 * Nothing is changed through HTTP, and what is shown (names and sizes of clients) is for who may connect: the loopback, or the mode of
 * the socket.  A browser on this machine may be talked into asking on behalf of a page from elsewhere: over TCP, a Host that is no
 * name of the loopback is refused, and no answer is for other origins.
 */
#include "http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "listen.h"
#include "log.h"
#include "notify.h"
#include "page.h"
#include "state.h"

#define CONNECTIONS 64
#define IDLE_SECONDS 30

struct server {
	struct daemon *d;
	struct MHD_Daemon *mhd;
	uv_poll_t poll;
	uv_timer_t timer;
	unsigned handles; /* that are open: poll and timer */
	bool tcp;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)]; /* "": not a file of ours */
	dev_t dev;
	ino_t ino;
};

static struct server *servers[2];

/* ---- answers ---- */

static enum MHD_Result
reply(struct MHD_Connection *conn, unsigned status, const char *type, char *text, size_t len,
      enum MHD_ResponseMemoryMode mode)
{
	struct MHD_Response *const r = MHD_create_response_from_buffer(len, text, mode);
	enum MHD_Result ok;

	if (r == NULL) {
		if (mode == MHD_RESPMEM_MUST_FREE)
			free(text);
		return MHD_NO;
	}
	MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, type);
	MHD_add_response_header(r, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
	MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
	MHD_add_response_header(
		r, "Content-Security-Policy",
		"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
		"frame-ancestors 'none'; base-uri 'none'; form-action 'none'");
	if (status == MHD_HTTP_METHOD_NOT_ALLOWED)
		MHD_add_response_header(r, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
	ok = MHD_queue_response(conn, status, r);
	MHD_destroy_response(r);
	return ok;
}

static enum MHD_Result
reply_text(struct MHD_Connection *conn, unsigned status, const char *text)
{
	char copy[128];

	snprintf(copy, sizeof(copy), "%s\n", text);
	return reply(conn, status, "text/plain; charset=utf-8", copy, strlen(copy),
		     MHD_RESPMEM_MUST_COPY);
}

/* What a browser calls us by.  Only over TCP: nobody gets at a Unix socket by a name. */
static bool
is_our_host(struct MHD_Connection *conn)
{
	static const char *const names[] = { "localhost", "127.0.0.1", "[::1]" };
	const char *const host =
		MHD_lookup_connection_value(conn, MHD_HEADER_KIND, MHD_HTTP_HEADER_HOST);

	if (host == NULL)
		return true; /* HTTP/1.0: no browser */
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		const size_t len = strlen(names[i]);

		if (strncasecmp(host, names[i], len) == 0 &&
		    (host[len] == '\0' || host[len] == ':'))
			return true;
	}
	return strncmp(host, "127.", 4) == 0 && strspn(host, "0123456789.:") == strlen(host);
}

static enum MHD_Result
on_request(void *cls, struct MHD_Connection *conn, const char *url, const char *method,
	   const char *version, const char *upload, size_t *upload_len, void **ctx)
{
	static int seen;
	struct server *const s = cls;
	char *text;
	size_t len;

	(void)version;
	(void)upload;
	/* The first call has the headers only, and a second follows: an answer now would leave out the body of a POST. */
	if (*ctx == NULL) {
		*ctx = &seen;
		return MHD_YES;
	}
	if (*upload_len != 0) {
		*upload_len = 0;
		return MHD_YES;
	}
	if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
		return reply_text(conn, MHD_HTTP_METHOD_NOT_ALLOWED, "GET or HEAD");
	if (s->tcp && !is_our_host(conn))
		return reply_text(conn, MHD_HTTP_FORBIDDEN, "this host is not the loopback");
	if (strcmp(url, "/healthz") == 0) {
		if (s->d->state != STATE_SERVING)
			return reply_text(conn, MHD_HTTP_SERVICE_UNAVAILABLE, "draining");
		return reply_text(conn, MHD_HTTP_OK, "ok");
	}
	if (strcmp(url, "/") == 0)
		return reply(conn, MHD_HTTP_OK, "text/html; charset=utf-8", page_html,
			     page_html_len, MHD_RESPMEM_PERSISTENT);
	if (strcmp(url, "/metrics") == 0) {
		text = metrics_text(s->d, &len);
		if (text == NULL)
			return reply_text(conn, MHD_HTTP_INTERNAL_SERVER_ERROR, "no memory");
		return reply(conn, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", text,
			     len, MHD_RESPMEM_MUST_FREE);
	}
	if (strcmp(url, "/state.json") == 0) {
		const char *const state = state_page(s->d);

		if (state == NULL)
			return reply_text(conn, MHD_HTTP_INTERNAL_SERVER_ERROR, "no memory");
		return reply(conn, MHD_HTTP_OK, "application/json", (char *)(uintptr_t)state,
			     strlen(state), MHD_RESPMEM_MUST_COPY);
	}
	return reply_text(conn, MHD_HTTP_NOT_FOUND,
			  "there are /, /metrics, /healthz and /state.json");
}

/* ---- the loop ---- */

static void on_timer(uv_timer_t *timer);

static void
turn(struct server *s)
{
	MHD_UNSIGNED_LONG_LONG ms;

	MHD_run(s->mhd);
	if (MHD_get_timeout(s->mhd, &ms) == MHD_YES)
		uv_timer_start(&s->timer, on_timer, ms, 0);
	else
		uv_timer_stop(&s->timer);
}

static void
on_timer(uv_timer_t *timer)
{
	turn(timer->data);
}

static void
on_ready(uv_poll_t *poll, int status, int events)
{
	(void)status;
	(void)events;
	turn(poll->data);
}

static void
mhd_log(void *ctx, const char *fmt, va_list ap)
{
	char text[256];

	(void)ctx;
	vsnprintf(text, sizeof(text), fmt, ap);
	text[strcspn(text, "\n")] = '\0';
	log_debug("http: %s", text);
}

static void
on_server_closed(uv_handle_t *handle)
{
	struct server *const s = handle->data;

	/* It has two, closed in no particular order. */
	if (--s->handles == 0)
		free(s);
}

/* `fd` listens, and is the server's from now on. */
static int
serve(struct daemon *d, int fd, struct server *s)
{
	const union MHD_DaemonInfo *info;

	s->d = d;
	s->mhd = MHD_start_daemon(MHD_USE_EPOLL | MHD_USE_ERROR_LOG, 0, NULL, NULL, on_request, s,
				  MHD_OPTION_EXTERNAL_LOGGER, mhd_log, NULL,
				  MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT,
				  (unsigned)CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT,
				  (unsigned)IDLE_SECONDS, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
				  (size_t)16384, MHD_OPTION_END);
	info = s->mhd != NULL ? MHD_get_daemon_info(s->mhd, MHD_DAEMON_INFO_EPOLL_FD) : NULL;
	if (info == NULL || uv_poll_init(&d->loop, &s->poll, info->epoll_fd) < 0) {
		log_error("http: can not be started");
		if (s->mhd != NULL)
			MHD_stop_daemon(s->mhd);
		else
			close(fd);
		free(s);
		return -EIO;
	}
	uv_timer_init(&d->loop, &s->timer);
	s->timer.data = s->poll.data = s;
	s->handles = 2;
	uv_poll_start(&s->poll, UV_READABLE, on_ready);
	servers[servers[0] != NULL] = s;
	turn(s);
	return 0;
}

static int
open_unix(struct daemon *d)
{
	const char *const path = config_s(&d->cfg, KEY_METRICS_SOCKET);
	struct server *const s = calloc(1, sizeof(*s));
	int fd = notify_take("http", SOCK_STREAM);

	if (s == NULL)
		return -ENOMEM;
	if (fd < 0) {
		if (path == NULL)
			snprintf(s->path, sizeof(s->path), "%.90s/http.sock", d->run_dir);
		else
			snprintf(s->path, sizeof(s->path), "%s", path);
		fd = listen_unix(s->path, SOCK_STREAM, (mode_t)config_n(&d->cfg, KEY_METRICS_MODE),
				 config_s(&d->cfg, KEY_METRICS_GROUP), &s->dev, &s->ino);
		if (fd < 0) {
			free(s);
			return fd;
		}
	}
	log_info("%s: listening (http%s)", s->path[0] != '\0' ? s->path : "http",
		 s->path[0] != '\0' ? "" : ", handed over");
	return serve(d, fd, s);
}

static int
open_tcp(struct daemon *d, const char *where)
{
	struct server *s;
	struct sockaddr_storage ss;
	socklen_t len;
	const int one = 1;
	int fd, r;

	/* Or it would not be in the configuration. */
	if (config_address(where, &ss, &len) != NULL)
		return -EINVAL;
	s = calloc(1, sizeof(*s));
	if (s == NULL)
		return -ENOMEM;
	s->tcp = true;
	fd = socket(ss.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
	    bind(fd, (const struct sockaddr *)&ss, len) < 0 || listen(fd, CONNECTIONS) < 0 ||
	    getsockname(fd, (struct sockaddr *)&ss, &len) < 0) {
		r = -errno;
		log_error("[metrics] listen = %s: %s", where, strerror(-r));
		if (fd >= 0)
			close(fd);
		free(s);
		return r;
	}
	/* Port 0 is any: say which. */
	log_info("%.*s:%u: listening (http)", (int)(strrchr(where, ':') - where), where,
		 (unsigned)ntohs(ss.ss_family == AF_INET
					 ? ((struct sockaddr_in *)&ss)->sin_port
					 : ((struct sockaddr_in6 *)&ss)->sin6_port));
	return serve(d, fd, s);
}

int
http_open(struct daemon *d)
{
	const char *const path = config_s(&d->cfg, KEY_METRICS_SOCKET), *const where = config_s(
										&d->cfg,
										KEY_METRICS_LISTEN);
	int r = 0;

	if (path == NULL || strcmp(path, "none") != 0)
		r = open_unix(d);
	if (r == 0 && where != NULL)
		r = open_tcp(d, where);
	return r;
}

void
http_close(void)
{
	for (unsigned i = 0; i < 2; i++) {
		struct server *const s = servers[i];

		if (s == NULL)
			continue;
		servers[i] = NULL;
		if (s->path[0] != '\0')
			listen_unlink(s->path, s->dev, s->ino);
		/* Out of the loop before its descriptor goes. */
		uv_poll_stop(&s->poll);
		uv_timer_stop(&s->timer);
		uv_close((uv_handle_t *)&s->timer, on_server_closed);
		uv_close((uv_handle_t *)&s->poll, on_server_closed);
		MHD_stop_daemon(s->mhd);
	}
}
