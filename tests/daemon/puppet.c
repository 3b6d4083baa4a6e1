/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * puppet.c: clients of uffd-pagerd that have no memory, for the tests of all that looks at clients.
 *
 * The protocol "test" ([listen NAME] type = test), built into the daemon that the tests start: who connects is a client.  What it
 * says, a line at a time, becomes so, and is answered "ok":
 *
 *	name TEXT, group TEXT
 *	mapped|resident|swapped|zero|major|lost|p99|again|deferred N	what counts() tells; the regions are made up of it
 *	log TEXT					a warning about it, whose name is that text too; | is an end of line
 *	stubborn					it does not end when it is told to
 *
 * $UP_TEST_JOURNAL is where that build thinks that journald listens.
 * It is told "leave MS" when it is asked to leave.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/histogram.h"
#include "daemon.h"
#include "journal.h"
#include "listen.h"
#include "log.h"

static void __attribute__((constructor)) have_journal(void)
{
	const char *const path = getenv("UP_TEST_JOURNAL");

	if (path != NULL)
		journal_socket = path;
}

struct puppet {
	struct session session; /* first */
	uv_pipe_t pipe;
	struct session_counts counts;
	bool come, stubborn, gone;
	size_t have;
	char buf[256];
};

static void
counts(const struct session *s, struct session_counts *c)
{
	*c = ((const struct puppet *)s)->counts;
}

/* Two regions; the first has what is in memory at its beginning, the second is an even mixture. */
static json_t *
map(const struct session *s, const struct glance *g)
{
	const struct session_counts *const c = &((const struct puppet *)s)->counts;
	const uint64_t half = c->mapped / 2;
	const unsigned full = half != 0 ? (unsigned)(c->resident * 64 / c->mapped) : 0;
	char strip[65], mixed[65];

	(void)g;
	for (unsigned i = 0; i < 64; i++) {
		strip[i] = i < full ? '9' : i == full ? '4' : '0';
		mixed[i] = (char)('0' + (full == 0 ? 0 : (i * 7 + full) % 10));
	}
	strip[64] = mixed[64] = '\0';
	return json_pack("[{s:I, s:I, s:i, s:I, s:s}, {s:I, s:I, s:i, s:I, s:s}]", "start",
			 (json_int_t)0x7f0000000000, "length", (json_int_t)half, "page_size", 4096,
			 "resident", (json_int_t)(c->resident / 2), "strip", strip, "start",
			 (json_int_t)0x7f8000000000, "length", (json_int_t)half, "page_size", 4096,
			 "resident", (json_int_t)(c->resident / 2), "strip", mixed);
}

static int64_t
evict(struct session *s, uint64_t bytes)
{
	struct session_counts *const c = &((struct puppet *)s)->counts;

	bytes = bytes < c->resident ? bytes : c->resident;
	c->resident -= bytes;
	c->swapped += bytes;
	return (int64_t)bytes;
}

static int
limit(struct session *s, uint64_t most, uint64_t least)
{
	if (most != LIMIT_KEEP && most < 4096)
		return -EINVAL;
	if (most != LIMIT_KEEP)
		((struct puppet *)s)->counts.limit = most;
	if (least != LIMIT_KEEP)
		((struct puppet *)s)->counts.minimum = least;
	return 0;
}

static void
on_closed(uv_handle_t *handle)
{
	free(handle->data);
}

static void
leave(struct puppet *p)
{
	if (p->gone)
		return;
	p->gone = true;
	if (p->come)
		session_gone(&p->session);
	uv_close((uv_handle_t *)&p->pipe, on_closed);
}

static void
end(struct session *s)
{
	struct puppet *const p = (struct puppet *)s;

	if (!p->stubborn)
		leave(p);
}

static void say(struct puppet *p, const char *text);

static void
ask(struct session *s, unsigned ms)
{
	char line[32];

	snprintf(line, sizeof(line), "leave %u\n", ms);
	say((struct puppet *)s, line);
}

/* All of them took as long as one in a hundred. */
static bool
latency(const struct session *s, enum up_fault_kind kind, struct latency_steps *steps)
{
	const struct session_counts *const c = &((const struct puppet *)s)->counts;

	steps->count = c->faults[kind];
	steps->sum = steps->count * c->p99_ns;
	for (unsigned i = 0; i < LATENCY_STEPS; i++)
		steps->below[i] = c->p99_ns < UINT64_C(1) << (TALLY_SHIFT + i) ? steps->count : 0;
	return true;
}

static const struct session_ops ops = {
	"test", counts, map, evict, ask, end, limit, NULL, latency
};

static void
log_text(const struct puppet *p, char *text)
{
	struct log_about about = session_about(&p->session);

	for (char *bar = text; (bar = strchr(bar, '|')) != NULL;)
		*bar = '\n';
	snprintf(about.name, sizeof(about.name), "%s", text);
	daemon_log_about(LOG_WARNING, &about, "%s", text);
}

static void
obey(struct puppet *p, char *line)
{
	struct session_counts *const c = &p->counts;
	const struct {
		const char *word;
		uint64_t *n;
	} words[] = { { "mapped", &c->mapped },
		      { "resident", &c->resident },
		      { "swapped", &c->swapped },
		      { "zero", &c->faults[UP_FAULT_ZERO] },
		      { "major", &c->faults[UP_FAULT_MAJOR] },
		      { "lost", &c->lost },
		      { "p99", &c->p99_ns },
		      { "again", &c->again },
		      { "deferred", &c->deferred } };
	char *value = strchr(line, ' ');

	if (value != NULL)
		*value++ = '\0';
	if (strcmp(line, "stubborn") == 0)
		p->stubborn = true;
	else if (value != NULL && strcmp(line, "name") == 0)
		snprintf(p->session.name, sizeof(p->session.name), "%s", value);
	else if (value != NULL && strcmp(line, "log") == 0)
		log_text(p, value);
	else if (value != NULL && strcmp(line, "group") == 0)
		snprintf(p->session.group, sizeof(p->session.group), "%s", value);
	else
		for (size_t i = 0; value != NULL && i < sizeof(words) / sizeof(words[0]); i++)
			if (strcmp(line, words[i].word) == 0)
				*words[i].n = strtoull(value, NULL, 10);
	c->p50_ns = c->p99_ns / 4;
	c->latency[UP_FAULT_MAJOR] = (struct up_latency){ .count = c->faults[UP_FAULT_MAJOR],
							  .p50 = c->p50_ns,
							  .p99 = c->p99_ns };
}

static void
say(struct puppet *p, const char *text)
{
	uv_buf_t buf = uv_buf_init((char *)(uintptr_t)text, (unsigned)strlen(text));

	(void)uv_try_write((uv_stream_t *)&p->pipe, &buf, 1);
}

static void
give_buffer(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
	struct puppet *const p = handle->data;

	(void)suggested;
	*buf = uv_buf_init(p->buf + p->have, (unsigned)(sizeof(p->buf) - p->have));
}

static void
on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
	struct puppet *const p = stream->data;
	char *line_end;

	(void)buf;
	if (n < 0 || p->have == sizeof(p->buf)) {
		leave(p);
		return;
	}
	p->have += (size_t)n;
	while ((line_end = memchr(p->buf, '\n', p->have)) != NULL) {
		char why[200];

		*line_end++ = '\0';
		obey(p, p->buf);
		p->have -= (size_t)(line_end - p->buf);
		memmove(p->buf, line_end, p->have);
		/* Its first line is its hello. */
		if (!p->come) {
			const struct peer peer = { p->session.pid, p->session.uid, p->session.gid,
						   -1 };

			if (session_admit(&peer, why, sizeof(why)) < 0) {
				say(p, why);
				leave(p);
				return;
			}
			p->come = true;
			session_come(&p->session);
		}
		say(p, "ok\n");
	}
}

void
test_accept(struct daemon *d, const struct listener *l, int fd, const struct peer *peer)
{
	struct puppet *const p = calloc(1, sizeof(*p));

	if (p == NULL) {
		close(fd);
		return;
	}
	p->session.ops = &ops;
	p->session.pid = peer->pid;
	p->session.uid = peer->uid;
	p->session.gid = peer->gid;
	snprintf(p->session.group, sizeof(p->session.group), "%s", l->group);
	p->session.by_door = l->group[0] != '\0';
	uv_pipe_init(&d->loop, &p->pipe, 0);
	p->pipe.data = p;
	if (uv_pipe_open(&p->pipe, fd) < 0 ||
	    uv_read_start((uv_stream_t *)&p->pipe, give_buffer, on_read) < 0) {
		log_error("test: no stream");
		leave(p);
	}
}
