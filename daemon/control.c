/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * control.c: see control.h.
 *
 *	              a line                  answered
 *	    reading ---------> control_answer ---------> reading, if less than OUT_HIGH waits to be written
 *	       ^                                  |
 *	       |          written                 v
 *	       +-------------------------------- full: nothing is read, nothing is answered
 *
 * So a connection holds a line of at most LINE_MAX_BYTES, and one answer more than OUT_HIGH.  One that does not take its answers for
 * STALL_NS, or says nothing for IDLE_NS, is dropped.
 */
#include "control.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "budget.h"
#include "listen.h"
#include "log.h"
#include "serve.h"
#include "sessions.h"
#include "state.h"
#include "upgrade.h"

#define CONNECTIONS 32
#define LINE_MAX_BYTES 65536
#define OUT_HIGH (256 << 10)
#define STALL_NS UINT64_C(10000000000)
#define IDLE_NS UINT64_C(120000000000)
#define TRACE_LINES 1000

struct conn {
	uv_pipe_t pipe;
	struct conn *next;
	struct daemon *d;
	struct peer peer;
	size_t have;		 /* bytes in buf */
	uint64_t heard, written; /* when, last */
	bool full;		 /* not reading */
	bool waiting;		 /* its last request is being done: nothing else is answered */
	bool closing;		 /* once all is written: no further request */
	bool gone;		 /* uv_close() has been called */
	char buf[LINE_MAX_BYTES];
};

struct answer {
	uv_write_t req;
	char *text;
};

static struct conn *conns;
static unsigned nconns;

static void pump(struct conn *c);
static void send_answer(struct conn *c, json_t *j);

/* ---- answers ---- */

static const char *
errno_name(int error)
{
	/* Two names of one number; ours is the one that is documented. */
	const char *const name = error == ENOTSUP ? "ENOTSUP" : strerrorname_np(error);

	return name != NULL ? name : "EIO";
}

__attribute__((format(printf, 2, 3))) static json_t *
refuse(int error, const char *fmt, ...)
{
	char why[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	/* What was quoted may be no UTF-8. */
	json_t *const j =
		json_pack("{s:b, s:s, s:s}", "ok", 0, "errno", errno_name(error), "error", why);
	return j != NULL ? j
			 : json_pack("{s:b, s:s, s:s}", "ok", 0, "errno", errno_name(error),
				     "error", "refused");
}

static json_t *
answer_with(const char *key, json_t *value)
{
	return value == NULL ? refuse(ENOMEM, "no memory")
			     : json_pack("{s:b, s:o}", "ok", 1, key, value);
}

/* ---- requests ---- */

/* The client that "client" names; NULL with *no, the refusal. */
static struct session *
client_of(json_t *req, json_t **no)
{
	json_t *const who = json_object_get(req, "client");
	char number[24];
	const char *text;
	struct session *s;
	int r;

	if (json_is_integer(who)) {
		snprintf(number, sizeof(number), "%" JSON_INTEGER_FORMAT, json_integer_value(who));
		text = number;
	} else
		text = json_string_value(who);
	if (text == NULL) {
		*no = refuse(EINVAL, "'client' is wanted: a process number, or a name");
		return NULL;
	}
	r = session_find(text, &s);
	if (r == -ENOTUNIQ)
		*no = refuse(ENOTUNIQ,
			     "several clients are called '%.64s': say which process, or #ID", text);
	else if (r < 0)
		*no = refuse(ESRCH, "there is no client '%.64s'", text);
	return r < 0 ? NULL : s;
}

/* The number of bytes that "bytes" gives. */
static bool
bytes_of(json_t *req, uint64_t *bytes, json_t **no)
{
	json_t *const n = json_object_get(req, "bytes");

	if (!json_is_integer(n) || json_integer_value(n) < 0) {
		*no = refuse(EINVAL, "'bytes' is wanted: a whole number");
		return false;
	}
	*bytes = (uint64_t)json_integer_value(n);
	return true;
}

static json_t *
do_status(struct conn *c, json_t *req)
{
	(void)req;
	return answer_with("status", state_status(c->d));
}

static json_t *
do_clients(struct conn *c, json_t *req)
{
	(void)c;
	(void)req;
	return answer_with("clients", state_clients());
}

static json_t *
do_objects(struct conn *c, json_t *req)
{
	(void)req;
	return answer_with("objects", state_objects(c->d));
}

/* Both of one moment, for `top`. */
static json_t *
do_top(struct conn *c, json_t *req)
{
	(void)req;
	return json_pack("{s:b, s:o, s:o}", "ok", 1, "status", state_status(c->d), "clients",
			 state_clients());
}

/* What up_*_print() prints, as lines: the last `most` of them. */
static json_t *
printed(int (*print)(struct up_runtime *rt, FILE *out), struct up_runtime *rt, size_t most)
{
	json_t *const lines = json_array();
	char *text = NULL, *line, *save;
	size_t len;
	FILE *const f = open_memstream(&text, &len);

	if (f == NULL || print(rt, f) < 0 || fclose(f) != 0) {
		json_decref(lines);
		free(text);
		return NULL;
	}
	for (line = strtok_r(text, "\n", &save); line != NULL; line = strtok_r(NULL, "\n", &save)) {
		json_t *const j = json_string(line);

		json_array_append_new(lines, j != NULL ? j : json_string("?"));
	}
	free(text);
	if (json_array_size(lines) <= most)
		return lines;
	/* The first ones fall off. */
	json_t *const tail = json_array();
	for (size_t i = json_array_size(lines) - most; i < json_array_size(lines); i++)
		json_array_append(tail, json_array_get(lines, i));
	json_decref(lines);
	return tail;
}

static json_t *
do_map(struct conn *c, json_t *req)
{
	json_t *no = NULL;
	const struct session *s;

	if (json_object_get(req, "client") == NULL)
		return answer_with("runtime", printed(up_map_dump, c->d->rt, 10000));
	s = client_of(req, &no);
	if (s == NULL)
		return no;
	const struct glance g = state_glance();
	return answer_with("client", state_map(s, &g));
}

static json_t *
do_evict(struct conn *c, json_t *req)
{
	json_t *no = NULL;
	struct session *const s = client_of(req, &no);
	uint64_t bytes;
	int64_t n;

	(void)c;
	if (s == NULL || !bytes_of(req, &bytes, &no))
		return no;
	n = s->ops->evict != NULL ? s->ops->evict(s, bytes) : -ENOTSUP;
	if (n == -ENOTSUP)
		return refuse(ENOTSUP, "the memory of %s (%s) can be filled, but not taken back",
			      s->name, s->ops->kind);
	if (n < 0)
		return refuse((int)-n, "%s: %s", s->name, strerror((int)-n));
	log_session(LOG_INFO, s, "client %u: %s: %" PRId64 " bytes thrown out, as asked for", s->id,
		    s->name, n);
	return json_pack("{s:b, s:I}", "ok", 1, "evicted", (json_int_t)n);
}

static void
on_budget(void *ctx, int r, uint64_t bytes)
{
	struct conn *const c = ctx;
	const char *const why = r == -EINVAL	  ? "it is below 2 MiB, or above memory_max"
				: r == -EBUSY	  ? "what has been promised does not fit"
				: r == -ETIMEDOUT ? "not enough could be thrown out in time"
						  : strerror(-r);

	c->waiting = false;
	send_answer(c, r == 0 ? answer_with("limit", json_integer((json_int_t)bytes))
			      : refuse(-r, "%" PRIu64 ": %s", bytes, why));
	pump(c);
}

/* NULL: answered when it is done. */
static json_t *
set_budget(struct conn *c, uint64_t bytes)
{
	const int r = budget_set(c->d, bytes, on_budget, c);

	if (r == -EBUSY)
		return refuse(EBUSY, "the budget is being changed already");
	if (r < 0)
		return refuse(-r, "%s", strerror(-r));
	c->waiting = true;
	return NULL;
}

/* A number of bytes of that name, if there is one. */
static bool
may_have(json_t *req, const char *name, uint64_t *bytes, json_t **no)
{
	json_t *const n = json_object_get(req, name);

	*bytes = LIMIT_KEEP;
	if (n == NULL)
		return true;
	if (!json_is_integer(n) || json_integer_value(n) < 0) {
		*no = refuse(EINVAL, "'%s' is wanted to be a whole number", name);
		return false;
	}
	*bytes = (uint64_t)json_integer_value(n);
	return true;
}

static json_t *
limited(const char *who, uint64_t most, uint64_t least)
{
	log_info("%s: limited to %" PRIu64 " bytes, minimum %" PRIu64, who, most, least);
	return json_pack("{s:b, s:I, s:I}", "ok", 1, "limit", (json_int_t)most, "minimum",
			 (json_int_t)least);
}

static json_t *
limit_group(struct daemon *d, const char *group, uint64_t most, uint64_t least)
{
	char who[64];
	int r = native_group_limit != NULL ? native_group_limit(d, group, &most, &least) : -ESRCH;

	if (r == -ESRCH)
		return refuse(ESRCH, "there is no [group %.64s]", group);
	if (r < 0)
		return refuse(-r, "group %s: %s", group, native_quota_refused(r));
	snprintf(who, sizeof(who), "group %s", group);
	return limited(who, most, least);
}

static json_t *
limit_client(struct session *s, uint64_t most, uint64_t least)
{
	struct session_counts c;
	char who[96];
	const int r = s->ops->limit != NULL ? s->ops->limit(s, most, least) : -ENOTSUP;

	if (r == -ENOTSUP)
		return refuse(ENOTSUP, "there is no limit of its own for %s (%s)", s->name,
			      s->ops->kind);
	if (r < 0)
		return refuse(-r, "%s: %s", s->name,
			      native_quota_refused != NULL ? native_quota_refused(r)
							   : strerror(-r));
	session_counts(s, &c);
	snprintf(who, sizeof(who), "client %u: %s", s->id, s->name);
	return limited(who, c.limit, c.minimum);
}

static json_t *
do_limit(struct conn *c, json_t *req)
{
	const bool has_client = json_object_get(req, "client") != NULL;
	const char *const group = json_string_value(json_object_get(req, "group"));
	uint64_t bytes, least;
	json_t *no = NULL;
	struct session *s;

	if (!may_have(req, "bytes", &bytes, &no) || !may_have(req, "minimum", &least, &no))
		return no;
	if (bytes == LIMIT_KEEP && least == LIMIT_KEEP) {
		if (!has_client && group == NULL)
			return answer_with("limit", json_integer((json_int_t)c->d->budget));
		return refuse(EINVAL, "'bytes' is wanted: a whole number");
	}
	if (group != NULL)
		return limit_group(c->d, group, bytes, least);
	if (!has_client)
		return least != LIMIT_KEEP ? refuse(EINVAL, "a minimum is a client's or a group's")
					   : set_budget(c, bytes);
	s = client_of(req, &no);
	return s == NULL ? no : limit_client(s, bytes, least);
}

/* The name of a process that is a client; NULL: it has gone. */
static const char *
name_of(pid_t pid)
{
	for (const struct session *s = session_first(); s != NULL; s = s->next)
		if (s->pid == pid)
			return s->name;
	return NULL;
}

/* When it was: ns since 1970. */
static json_t *
event_json(const struct serve_event *ev, int64_t since_1970)
{
	json_t *const j =
		json_pack("{s:I, s:s, s:I, s:I}", "time_ns", (json_int_t)ev->time_ns + since_1970,
			  "kind", ev->kind, "at", (json_int_t)ev->at, "arg", (json_int_t)ev->arg);
	const char *const name = ev->pid != 0 ? name_of(ev->pid) : NULL;

	if (ev->pid != 0)
		json_object_set_new(j, "pid", json_integer(ev->pid));
	if (name != NULL)
		json_object_set_new(j, "name", json_string(name));
	if (ev->child != 0)
		json_object_set_new(j, "child", json_integer(ev->child));
	return j;
}

static json_t *
do_trace(struct conn *c, json_t *req)
{
	const json_t *const n = json_object_get(req, "lines");
	static struct serve_event ev[TRACE_LINES];
	json_t *no = NULL, *events;
	const struct session *s = NULL;
	struct timespec real, mono;
	size_t most = 200;
	int got;

	if (json_is_integer(n) && json_integer_value(n) > 0)
		most = (size_t)json_integer_value(n);
	if (json_object_get(req, "client") != NULL && (s = client_of(req, &no)) == NULL)
		return no;
	got = serve_trace(c->d->rt, s != NULL ? s->pid : 0, ev,
			  most < TRACE_LINES ? most : TRACE_LINES);
	if (got < 0)
		return refuse(-got, "%s", strerror(-got));
	clock_gettime(CLOCK_REALTIME, &real);
	clock_gettime(CLOCK_MONOTONIC, &mono);
	events = json_array();
	for (int i = 0; i < got; i++)
		json_array_append_new(events,
				      event_json(&ev[i],
						 (int64_t)(real.tv_sec - mono.tv_sec) * 1000000000 +
							 (real.tv_nsec - mono.tv_nsec)));
	return answer_with("trace", events);
}

static json_t *
do_drain(struct conn *c, json_t *req)
{
	const bool cancel = json_is_true(json_object_get(req, "cancel"));
	const int left = (int)session_number();

	if (daemon_drain(c->d, !cancel) < 0)
		return refuse(EBUSY, "the daemon is ending");
	return json_pack("{s:b, s:b, s:i}", "ok", 1, "draining", !cancel, "clients", left);
}

static void
on_refused(void *ctx, const char *why)
{
	struct conn *const c = ctx;

	c->waiting = false;
	send_answer(c, refuse(ECANCELED, "not upgraded: %s", why));
	pump(c);
}

/* It is answered only if nothing comes of it: the connection ends with this daemon.  With "outcome" the next one says what has come of it. */
static json_t *
do_upgrade(struct conn *c, json_t *req)
{
	const char *const why = upgrade_outcome();
	int r;

	if (json_is_true(json_object_get(req, "outcome")))
		return *why != '\0' ? refuse(ECANCELED, "not upgraded: %s", why)
				    : json_pack("{s:b, s:s}", "ok", 1, "version", up_version());
	r = upgrade_ask(on_refused, c);
	if (r == -EBUSY)
		return refuse(EBUSY, "somebody else has asked for it");
	if (r < 0)
		return refuse(-r, "there is no guardian: it takes a restart");
	c->waiting = true;
	return NULL;
}

static const struct {
	const char *verb;
	json_t *(*run)(struct conn *c, json_t *req); /* NULL: the answer comes later */
} verbs[] = {
	{ "status", do_status },   { "clients", do_clients }, { "top", do_top },
	{ "map", do_map },	   { "evict", do_evict },     { "limit", do_limit },
	{ "trace", do_trace },	   { "drain", do_drain },     { "upgrade", do_upgrade },
	{ "objects", do_objects },
};

/* NULL: the connection is waiting for it. */
static json_t *
answer_to(struct conn *c, const char *line, size_t len)
{
	json_error_t error;
	json_t *const req = json_loadb(line, len, JSON_REJECT_DUPLICATES, &error);
	const char *verb;
	json_t *answer;

	if (req == NULL)
		return refuse(EBADMSG, "not a line of JSON: %s", error.text);
	verb = json_string_value(json_object_get(req, "verb"));
	if (verb == NULL) {
		answer = refuse(EINVAL, "'verb' is wanted");
	} else {
		size_t i = 0;

		while (i < sizeof(verbs) / sizeof(verbs[0]) && strcmp(verb, verbs[i].verb) != 0)
			i++;
		answer = i < sizeof(verbs) / sizeof(verbs[0])
				 ? verbs[i].run(c, req)
				 : refuse(EINVAL, "there is no verb '%.40s'", verb);
	}
	json_decref(req);
	return answer;
}

/* ---- connections ---- */

static void
on_closed(uv_handle_t *handle)
{
	free(handle->data);
}

static void
drop(struct conn *c)
{
	struct conn **p = &conns;

	if (c->gone)
		return;
	c->gone = true;
	while (*p != c)
		p = &(*p)->next;
	*p = c->next;
	nconns--;
	budget_forget(c);
	upgrade_forget(c);
	uv_close((uv_handle_t *)&c->pipe, on_closed);
}

static void
on_written(uv_write_t *req, int status)
{
	struct answer *const a = req->data;
	struct conn *const c = req->handle->data;

	free(a->text);
	free(a);
	if (c->gone)
		return;
	c->written = monotonic_ns();
	if (status < 0 ||
	    (c->closing && uv_stream_get_write_queue_size((uv_stream_t *)&c->pipe) == 0))
		drop(c);
	else
		pump(c);
}

/* Takes the reference. */
static void
send_answer(struct conn *c, json_t *j)
{
	struct answer *const a = malloc(sizeof(*a));
	uv_buf_t buf;
	size_t len;

	if (a == NULL || j == NULL ||
	    (a->text = json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(6))) == NULL) {
		free(a);
		json_decref(j);
		drop(c);
		return;
	}
	json_decref(j);
	len = strlen(a->text);
	a->text[len] = '\n'; /* in place of the 0: its length is known */
	a->req.data = a;
	buf = uv_buf_init(a->text, (unsigned)len + 1);
	if (uv_stream_get_write_queue_size((uv_stream_t *)&c->pipe) == 0)
		c->written = monotonic_ns();
	if (uv_write(&a->req, (uv_stream_t *)&c->pipe, &buf, 1, on_written) < 0) {
		free(a->text);
		free(a);
		drop(c);
	}
}

static void
give_buffer(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
	struct conn *const c = handle->data;

	(void)suggested;
	*buf = uv_buf_init(c->buf + c->have, (unsigned)(sizeof(c->buf) - c->have));
}

static void
on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
	struct conn *const c = stream->data;

	(void)buf;
	if (n == 0)
		return;
	if (n < 0) {
		/* It may have shut down one direction only: what is owed is still written. */
		c->closing = true;
		uv_read_stop(stream);
		if (uv_stream_get_write_queue_size(stream) == 0 && !c->waiting)
			drop(c);
		return;
	}
	c->have += (size_t)n;
	c->heard = monotonic_ns();
	pump(c);
}

/* Answer the lines that are there, as far as the answers are taken. */
static void
pump(struct conn *c)
{
	uv_stream_t *const stream = (uv_stream_t *)&c->pipe;
	size_t done = 0;
	char *end;

	while (!c->gone && !c->closing && !c->waiting &&
	       uv_stream_get_write_queue_size(stream) < OUT_HIGH) {
		const char *const line = c->buf + done;

		end = memchr(line, '\n', c->have - done);
		if (end == NULL)
			break;
		done += (size_t)(end - line) + 1;
		if (end != line) {
			json_t *const answer = answer_to(c, line, (size_t)(end - line));

			if (!c->waiting)
				send_answer(c, answer);
		}
	}
	if (c->gone)
		return;
	memmove(c->buf, c->buf + done, c->have - done);
	c->have -= done;
	if (c->have == sizeof(c->buf) && memchr(c->buf, '\n', c->have) == NULL && !c->closing) {
		c->closing = true;
		uv_read_stop(stream);
		send_answer(c, refuse(EMSGSIZE, "a request is a line of at most %d bytes",
				      LINE_MAX_BYTES - 1));
		return;
	}
	if (c->closing)
		return;
	const bool full =
		uv_stream_get_write_queue_size(stream) >= OUT_HIGH || c->have == sizeof(c->buf);
	if (full != c->full) {
		c->full = full;
		if (full)
			uv_read_stop(stream);
		else
			uv_read_start(stream, give_buffer, on_read);
	}
}

static bool
is_allowed(struct daemon *d, int fd, const struct peer *peer)
{
	if (peer->uid == 0 || peer->uid == geteuid())
		return true;
	return config_s(&d->cfg, KEY_CONTROL_GROUP) != NULL &&
	       peer_in_group(fd, peer, (gid_t)config_n(&d->cfg, KEY_CONTROL_GROUP));
}

/* The last word to somebody who is not let in: as much as fits. */
static void
turn_away(int fd, json_t *j)
{
	char *const text = json_dumps(j, JSON_COMPACT);

	if (text != NULL && (write(fd, text, strlen(text)) < 0 || write(fd, "\n", 1) < 0))
		log_debug("control: hung up before it was refused");
	free(text);
	json_decref(j);
	close(fd);
}

void
control_refuse(int fd, int status, const char *why)
{
	turn_away(fd, refuse(-status, "%s", why));
}

void
control_accept(struct daemon *d, const struct listener *l, int fd, const struct peer *peer)
{
	struct conn *c;

	(void)l;
	if (!is_allowed(d, fd, peer)) {
		log_warning(
			"control: process %d, user %u: refused: neither root, nor the daemon's user, nor in control_group",
			(int)peer->pid, (unsigned)peer->uid);
		session_refused(REFUSED_PERMISSION);
		turn_away(fd,
			  refuse(EACCES, "user %u may not steer this daemon", (unsigned)peer->uid));
		return;
	}
	if (nconns >= CONNECTIONS) {
		turn_away(fd, refuse(EBUSY, "there are %d connections already", CONNECTIONS));
		return;
	}
	c = calloc(1, sizeof(*c));
	if (c == NULL) {
		close(fd);
		return;
	}
	c->d = d;
	c->peer = *peer;
	c->heard = c->written = monotonic_ns();
	uv_pipe_init(&d->loop, &c->pipe, 0);
	c->pipe.data = c;
	c->next = conns;
	conns = c;
	nconns++;
	if (uv_pipe_open(&c->pipe, fd) < 0) {
		close(fd);
		drop(c);
		return;
	}
	if (uv_read_start((uv_stream_t *)&c->pipe, give_buffer, on_read) < 0)
		drop(c);
}

void
control_tick(void)
{
	const uint64_t now = monotonic_ns();
	struct conn *next;

	for (struct conn *c = conns; c != NULL; c = next) {
		const bool waits = uv_stream_get_write_queue_size((uv_stream_t *)&c->pipe) > 0;

		next = c->next;
		if (waits ? now - c->written > STALL_NS : now - c->heard > IDLE_NS) {
			log_debug("control: process %d: dropped, it %s", (int)c->peer.pid,
				  waits ? "does not take its answers" : "says nothing");
			drop(c);
		}
	}
}

void
control_close(void)
{
	while (conns != NULL)
		drop(conns);
}
