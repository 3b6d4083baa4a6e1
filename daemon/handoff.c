/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * handoff.c: a monitor that hands its guest's memory over, from its first byte until the process is gone.
 *
 *	             handoff, userfaultfd            add_region
 *	OPEN ----------------------------> SERVED ------.
 *	  |  refused, or too late            |  ^-------'
 *	  |                                  |  |  the connection ends: the process lives, and so does its memory
 *	  |                                  |  +-- it connects again: a session of its own, which takes the memory over (MOVED)
 *	  v                                  v
 *	CLOSING: handles closed, a filler's threads told to stop --> freed
 *
 * Who it is the kernel says, by the socket: whose memory files are opened is nothing that a client may choose.  `vmm_pid` is as it sees itself, perhaps in a
 * namespace of its own.
 *
 * Its memory is a guest of the runtime (lib/guest.h) if it can be taken back.  If not, since writes resolve themselves (WP_ASYNC), or it is mapped twice, locked or pinned,
 * a filler (fill.h) puts zeros where something is missing, and that is all.
 *
 * If the daemon is killed its memory is the next one's (lib/guest.h), and so is a session without a connection: as after the end of one.
 *
 * An answer means that it is served from now on; who is refused finds the connection closed, and the reason is in our log.
 */
#include "handoff.h"

#include <errno.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "descriptors.h"
#include "fill.h"
#include "guest.h"
#include "handles.h"
#include "handoff_wire.h"
#include "mappings.h"
#include "served.h"

#define WAITING_MAX 4u /* descriptors that no message has taken yet */
#define READ_MAX ((size_t)64 << 10)
#define READS_MAX 16 /* until others have their turn */

struct handoff {
	struct session s;
	struct handoff_config cfg;
	char group[32];
	struct handles uv; /* the timer is for the first message */
	int connection, pidfd;
	bool deaf, closing, dead; /* deaf: nothing more is read; dead: the process is gone */
	unsigned char *text;	  /* of the message that is not complete: header, JSON */
	size_t len, room;
	int fd[WAITING_MAX];
	unsigned nfds;
	uint64_t guest; /* the runtime's; 0: none */
	struct session_counts last;
	struct handoff_region *region; /* that are served */
	unsigned nregions;
	int uffd; /* a copy, to know it again; -1 */
	struct fill *fill;
};

static const struct session_ops ops;

static struct handoff *
of(const struct session *s)
{
	return container_of((struct session *)(uintptr_t)s, struct handoff, s);
}

static void __attribute__((format(printf, 3, 4)))
say(const struct handoff *h, enum up_log_level level, const char *fmt, ...)
{
	char line[400];
	const struct log_about about = session_about(&h->s);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	log_line_about(&h->cfg.log, &about, level, "%.60s[%d]: %s",
		       h->s.name[0] != '\0' ? h->s.name : "handoff", (int)h->s.pid, line);
}

/* --- the end --- */

static void
close_waiting(struct handoff *h)
{
	while (h->nfds > 0)
		close(h->fd[--h->nfds]);
}

/* Handles and threads are at their end. */
static void
bury(void *owner)
{
	struct handoff *h = owner;

	session_gone(&h->s);
	fill_destroy(h->fill);
	h->fill = NULL;
	close_waiting(h);
	free(h->text);
	free(h->region);
	if (h->uffd >= 0)
		close(h->uffd);
	if (h->connection >= 0)
		close(h->connection);
	if (h->pidfd >= 0)
		close(h->pidfd);
	if (h->cfg.gone != NULL)
		h->cfg.gone(h->cfg.ctx, &h->s);
	free(h);
}

static void
deaf(struct handoff *h)
{
	if (h->deaf)
		return;
	h->deaf = true;
	uv_poll_stop(&h->uv.socket);
	/* Who has sent half of something, or waits for an answer, is to know. */
	shutdown(h->connection, SHUT_RDWR);
}

static void
stop(struct handoff *h)
{
	if (h->closing)
		return;
	h->closing = true;
	deaf(h);
	uv_timer_stop(&h->uv.timer);
	if (h->guest != 0) {
		served_counts(h->cfg.rt, h->guest, &h->last);
		if (h->dead)
			serve_end(h->cfg.rt, h->guest);
		else
			guest_leave(h->cfg.rt, h->guest);
		h->guest = 0;
	}
	if (h->fill != NULL)
		fill_stop(h->fill, h->dead ? FILL_END_DROP : FILL_END_POISON, 0);
	else
		handles_close(&h->uv);
}

static void
on_process(uv_poll_t *handle, int status, int events)
{
	struct handoff *h = handles_owner(handle);

	(void)status;
	(void)events;
	uv_poll_stop(handle);
	say(h, UP_LOG_INFO, "gone");
	h->dead = true;
	stop(h);
}

static void
on_late(uv_timer_t *timer)
{
	struct handoff *h = handles_owner(timer);

	say(h, UP_LOG_WARNING, "refused: nothing, or half a message, within %u ms", h->cfg.wait_ms);
	stop(h);
}

/* --- messages --- */

static bool
serves(const struct handoff *h)
{
	return h->guest != 0 || h->fill != NULL;
}

/* The part of the guest that a region is.  Its descriptor is the caller's. */
static struct guest_region
guest_region(const struct mapped *m)
{
	return (struct guest_region){ .start = m->start,
				      .length = m->len,
				      .memfd = m->fd,
				      .offset = m->offset,
				      .source = -1 };
}

/* Which file is behind each region.  0: the descriptors are the caller's.  Otherwise `why`, as of mappings_find(). */
static int
find_files(const struct handoff *h, const struct handoff_region rg[], struct mapped m[], unsigned n,
	   char *why, size_t size)
{
	int r;

	for (unsigned i = 0; i < n; i++)
		m[i] = (struct mapped){ .start = rg[i].address, .len = rg[i].size, .fd = -1 };
	r = mappings_find(h->s.pid, -1, m, n, why, size);
	for (unsigned i = 0; i < n && r == 0; i++) {
		if (m[i].offset == rg[i].offset)
			continue;
		snprintf(why, size, "region %u is at %llu in its file, and not at %llu", i,
			 (unsigned long long)m[i].offset, (unsigned long long)rg[i].offset);
		r = -EINVAL;
	}
	for (unsigned i = 0; i < n && r < 0; i++)
		if (m[i].fd >= 0)
			close(m[i].fd);
	return r;
}

/* 0; -ENOTSUP: it can be filled only; other errors: `why`. */
static int
become_guest(struct handoff *h, const struct handoff_message *m, char *why, size_t size)
{
	struct mapped *file = calloc(m->n, sizeof *file);
	struct guest_region *rg = calloc(m->n, sizeof *rg);
	struct guest_config cfg = {
		.limits = { .regions = h->cfg.regions_max, .group = h->group },
		.pid = h->s.pid,
		.uid = h->s.uid,
		.gid = h->s.gid,
		.name = h->s.name,
		.uffd = fcntl(h->fd[0], F_DUPFD_CLOEXEC, 0),
		.tag = GUEST_OF_HANDOFF,
	};
	int r = file == NULL || rg == NULL || cfg.uffd < 0 ? -ENOMEM : 0;

	if (h->cfg.limits != NULL)
		h->cfg.limits(h->group, &cfg.limits);
	if (r < 0)
		snprintf(why, size, "no memory, or no descriptor");
	else
		r = find_files(h, m->region, file, m->n, why, size);
	if (r == 0) {
		for (unsigned i = 0; i < m->n; i++)
			rg[i] = guest_region(&file[i]);
		r = guest_attach(h->cfg.rt, &cfg, rg, m->n, &h->guest);
		for (unsigned i = 0; i < m->n; i++)
			close(file[i].fd);
		if (r < 0) {
			h->guest = 0;
			snprintf(
				why, size, "%s",
				r == -EOPNOTSUPP ? "its writes resolve themselves (WP_ASYNC)"
				: r == -ESTALE
					? "another pager has had it, and what that has taken out is lost"
				: r == -EPERM
					? "its userfaultfd is none, or tells of forks or moves"
					: strerror(-r));
		}
	} else if (cfg.uffd >= 0) {
		close(cfg.uffd);
	}
	free(file);
	free(rg);
	return r == -EPERM || r == -EACCES ? -ENOTSUP : r;
}

static int
become_filled(struct handoff *h)
{
	const struct fill_config cfg = {
		.name = h->s.name,
		.log = h->cfg.log,
		.notify = handles_notify,
		.ctx = &h->uv,
		.pidfd = h->pidfd,
	};
	const int fd = fcntl(h->fd[0], F_DUPFD_CLOEXEC, 0);
	int r = fd < 0 ? -errno : fill_create(&h->fill, &cfg);

	if (r == 0) {
		r = fill_add(h->fill, fd, NULL, 0, FILL_OUTSIDE_ZERO | FILL_TRACKED, 0);
		if (r < 0) {
			fill_destroy(h->fill);
			h->fill = NULL;
		}
	}
	if (r < 0 && fd >= 0)
		close(fd);
	return r;
}

static bool
same_file(int a, int b)
{
	const pid_t me = getpid();

	return syscall(SYS_kcmp, me, me, KCMP_FILE, (unsigned long)a, (unsigned long)b) == 0;
}

static const struct handoff_region *
find_region(const struct handoff_region rg[], unsigned n, const struct handoff_region *which)
{
	for (unsigned i = 0; i < n; i++)
		if (memcmp(&rg[i], which, sizeof *which) == 0)
			return &rg[i];
	return NULL;
}

/* The session of the same process that has the same userfaultfd; NULL: none.  That the process is the same its pidfd says: a number is used again. */
static struct handoff *
find_earlier(const struct handoff *h)
{
	for (struct session *s = session_first(); s != NULL; s = s->next) {
		struct handoff *e = of(s);
		struct pollfd pf;

		if (s->ops != &ops || e == h || e->closing || s->pid != h->s.pid || e->uffd < 0 ||
		    !same_file(e->uffd, h->fd[0]))
			continue;
		pf = (struct pollfd){ .fd = e->pidfd, .events = POLLIN };
		if (poll(&pf, 1, 0) == 0)
			return e;
	}
	return NULL;
}

static int
remember(struct handoff *h, const struct handoff_region *rg)
{
	struct handoff_region *more =
		realloc(h->region, (h->nregions + 1) * sizeof(struct handoff_region));

	if (more == NULL)
		return -ENOMEM;
	h->region = more;
	h->region[h->nregions++] = *rg;
	return 0;
}

/* One region more.  0, or `why`. */
static int
add(struct handoff *h, const struct handoff_region *rg, char *why, size_t size)
{
	struct mapped m;
	int r;

	if (h->nregions >= h->cfg.regions_max) {
		snprintf(why, size, "more than %u regions", h->cfg.regions_max);
		return -EDQUOT;
	}
	if (h->fill != NULL) /* wherever something is missing */
		return remember(h, rg);
	r = find_files(h, rg, &m, 1, why, size);
	if (r == 0) {
		const struct guest_region g = guest_region(&m);

		r = guest_add(h->cfg.rt, h->guest, &g);
		close(m.fd);
		if (r < 0)
			snprintf(why, size, "%s", strerror(-r));
	}
	return r == 0 ? remember(h, rg) : r;
}

/* It was here before, and what it had is still there.  0, or `why`, and nothing has changed. */
static int
take_over(struct handoff *h, struct handoff *e, const struct handoff_message *m, char *why,
	  size_t size)
{
	int r = 0;

	for (unsigned i = 0; i < e->nregions; i++) {
		if (find_region(m->region, m->n, &e->region[i]) != NULL)
			continue;
		snprintf(why, size,
			 "it comes again, with other regions than before: %#llx is missing",
			 (unsigned long long)e->region[i].address);
		return -EINVAL;
	}
	/* What is new is the earlier one's first, so that a failure changes nothing. */
	for (unsigned i = 0; i < m->n && r == 0; i++)
		if (find_region(e->region, e->nregions, &m->region[i]) == NULL)
			r = add(e, &m->region[i], why, size);
	if (r < 0)
		return r;
	if (e->fill != NULL) {
		/* Its filler calls the session that made it: this one fills from now on. */
		r = become_filled(h);
		if (r < 0) {
			snprintf(why, size, "%s", strerror(-r));
			return r;
		}
		e->dead = true; /* nobody misses what it has */
	}
	h->guest = e->guest;
	h->last = e->last;
	h->region = e->region;
	h->nregions = e->nregions;
	e->guest = 0;
	e->region = NULL;
	e->nregions = 0;
	close(e->uffd);
	e->uffd = -1;
	stop(e);
	return 0;
}

static int
hand_over(struct handoff *h, const struct handoff_message *m, char *why, size_t size)
{
	struct handoff *earlier;
	uint64_t bytes = 0;
	int r = 0;

	if (serves(h) || h->nfds != 1) {
		snprintf(why, size, "%s",
			 serves(h)	? "a second handoff on one connection"
			 : h->nfds == 0 ? "no file descriptor came with it"
					: "more than one file descriptor came with it");
		return -EPROTO;
	}
	if (m->pid != (uint64_t)h->s.pid)
		say(h, UP_LOG_INFO, "it calls itself process %llu", (unsigned long long)m->pid);
	for (unsigned i = 0; i < m->n; i++)
		bytes += m->region[i].size;
	earlier = find_earlier(h);
	if (earlier != NULL) {
		r = take_over(h, earlier, m, why, size);
	} else {
		r = become_guest(h, m, why, size);
		if (r == -ENOTSUP) {
			say(h, UP_LOG_WARNING,
			    "%s: it is filled where something is missing, but not taken back", why);
			r = become_filled(h);
		}
		for (unsigned i = 0; i < m->n && r == 0; i++)
			r = remember(h, &m->region[i]);
	}
	if (r < 0)
		return r;
	h->uffd = h->fd[0];
	h->nfds = 0;
	uv_timer_stop(&h->uv.timer);
	say(h, UP_LOG_INFO, "%u region%s, %llu MiB%s", m->n, m->n == 1 ? "" : "s",
	    (unsigned long long)(bytes >> 20), earlier != NULL ? ", again" : "");
	return 0;
}

/* One message, complete.  Negative: it is refused, and the reason has been told. */
static int
message(struct handoff *h)
{
	static const unsigned char answer = HANDOFF_ANSWER;
	struct handoff_message m;
	char why[300] = "";
	int r;

	r = handoff_parse((const char *)h->text + HANDOFF_HEADER, h->len - HANDOFF_HEADER, &m, why,
			  sizeof why);
	h->len = 0;
	if (r == 0 && m.type == HANDOFF_ALL) {
		r = hand_over(h, &m, why, sizeof why);
	} else if (r == 0) {
		if (!serves(h) || h->nfds > 0 ||
		    find_region(h->region, h->nregions, m.region) != NULL) {
			snprintf(why, sizeof why, "%s",
				 serves(h)
					 ? "a region that it has already, or one with a descriptor"
					 : "a region before anything else");
			r = -EPROTO;
		} else {
			r = add(h, m.region, why, sizeof why);
		}
		if (r == 0)
			say(h, UP_LOG_INFO, "one region more, %llu MiB",
			    (unsigned long long)(m.region[0].size >> 20));
	}
	free(m.region);
	if (r < 0)
		say(h, UP_LOG_ERROR, "refused: %s", why[0] != '\0' ? why : strerror(-r));
	/* One that does not read it is still served. */
	else if (send(h->connection, &answer, sizeof answer, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		say(h, UP_LOG_WARNING, "it does not take an answer: %s", strerror(errno));
	return r;
}

/* Bytes that the message wants which is not complete: its header, or all of it. */
static int64_t
wanted(const struct handoff *h)
{
	const int64_t json = h->len < HANDOFF_HEADER ? 0 : handoff_length(h->text);

	return json < 0 ? json : (int64_t)HANDOFF_HEADER + json;
}

static int
keep(struct handoff *h, const unsigned char *data, size_t len)
{
	if (h->len + len > h->room) {
		const size_t room = MAX(2 * h->room, h->len + len);
		unsigned char *text = realloc(h->text, room);

		if (text == NULL)
			return -ENOMEM;
		h->text = text;
		h->room = room;
	}
	memcpy(h->text + h->len, data, len);
	h->len += len;
	return 0;
}

static int
digest(struct handoff *h, const unsigned char *data, size_t len)
{
	int r = 0;

	while (r == 0 && len > 0) {
		int64_t want = wanted(h);
		const size_t n = MIN(len, (size_t)(want - (int64_t)h->len));

		r = keep(h, data, n);
		data += n;
		len -= n;
		want = wanted(h);
		if (r == 0 && want < 0) {
			say(h, UP_LOG_ERROR, "refused: a message of %s",
			    want == -E2BIG ? "more than a megabyte" : "no bytes");
			r = (int)want;
		} else if (r == 0 && h->len > HANDOFF_HEADER && (int64_t)h->len == want) {
			r = message(h);
		}
	}
	return r;
}

/* 1: again, 0: nothing more now, or at all; negative: it is refused. */
static int
receive(struct handoff *h)
{
	static unsigned char data[READ_MAX]; /* the loop's thread only */
	const ssize_t n =
		descriptors_receive(h->connection, data, sizeof data, h->fd, &h->nfds, WAITING_MAX);
	int r;

	if (n == -EAGAIN || n == -EINTR)
		return n == -EINTR;
	if (n == -E2BIG || n == -EMFILE) {
		say(h, UP_LOG_ERROR, "refused: %s", descriptors_why((int)n));
		return (int)n;
	}
	if (n <= 0)
		return -ENOTCONN;
	r = digest(h, data, (size_t)n);
	return r < 0 ? r : 1;
}

static void
on_socket(uv_poll_t *handle, int status, int events)
{
	struct handoff *h = handles_owner(handle);
	int r = status < 0 ? -ENOTCONN : 1;

	(void)events;
	for (unsigned i = 0; i < READS_MAX && r == 1; i++)
		r = receive(h);
	if (r >= 0)
		return;
	/* What is served is served on, until the process ends. */
	close_waiting(h);
	if (serves(h)) {
		say(h, UP_LOG_INFO, "its connection has ended; it is served on");
		deaf(h);
		return;
	}
	if (r == -ENOTCONN)
		say(h, UP_LOG_WARNING, "gone before it has handed anything over%s",
		    h->len > 0 ? " (half a message)" : "");
	stop(h);
}

/* --- operations --- */

static void
counts(const struct session *s, struct session_counts *c)
{
	struct handoff *h = of(s);

	if (h->fill != NULL)
		fill_counts(h->fill, &h->last);
	else
		served_counts(h->cfg.rt, h->guest, &h->last);
	*c = h->last;
}

static json_t *
map(const struct session *s, const struct glance *g)
{
	const struct handoff *h = of(s);

	return h->fill != NULL ? fill_map(h->fill) : served_map(h->cfg.rt, h->guest, g);
}

static int64_t
evict(struct session *s, uint64_t bytes)
{
	const struct handoff *h = of(s);

	return h->guest != 0 ? serve_evict(h->cfg.rt, h->guest, bytes) : -ENOTSUP;
}

static void
end(struct session *s)
{
	stop(of(s));
}

static int
limit(struct session *s, uint64_t most, uint64_t least)
{
	const struct handoff *h = of(s);

	return h->guest != 0 ? served_limit(h->cfg.rt, h->guest, most, least) : -ENOTSUP;
}

static int
regroup(struct session *s, const char *group)
{
	struct handoff *h = of(s);

	/* Also what it hands over later. */
	snprintf(h->group, sizeof h->group, "%s", group);
	return h->guest != 0 ? serve_regroup(h->cfg.rt, h->guest, group) : 0;
}

static bool
latency(const struct session *s, enum up_fault_kind kind, struct latency_steps *steps)
{
	const struct handoff *h = of(s);

	if (h->fill == NULL)
		return h->guest != 0 && served_latency(h->cfg.rt, h->guest, kind, steps);
	fill_latency(h->fill, kind, steps);
	return true;
}

static const struct session_ops ops = {
	.kind = "handoff",
	.counts = counts,
	.map = map,
	.evict = evict,
	.end = end,
	.limit = limit,
	.latency = latency,
	.regroup = regroup,
};

/* --- the beginning --- */

/* It goes of itself, later, and nobody is to hear of it. */
static int
abandon(struct handoff *h, int r)
{
	h->cfg.gone = NULL;
	h->closing = h->deaf = true;
	handles_close(&h->uv);
	return r;
}

/*
 * A session of that process, its handles open; connection -1: it has none.  pidfd is used up, the connection is not.  0, or -errno, and *out goes of itself if it is there
 * at all.
 */
static int
make(struct handoff **out, uv_loop_t *loop, int connection, int pidfd,
     const struct handoff_config *cfg, const struct session *who)
{
	/* Nothing else tells when the process ends. */
	struct handoff *h = pidfd >= 0 ? calloc(1, sizeof *h) : NULL;
	int r;

	*out = NULL;
	if (h == NULL) {
		if (pidfd >= 0)
			close(pidfd);
		return pidfd < 0 ? pidfd : -ENOMEM;
	}
	h->connection = h->uffd = -1;
	h->pidfd = pidfd;
	h->cfg = *cfg;
	if (h->cfg.wait_ms == 0)
		h->cfg.wait_ms = HANDOFF_WAIT_MS;
	h->s = *who;
	h->s.ops = &ops;
	session_come(&h->s);
	/* The registry's word, by the user perhaps. */
	snprintf(h->group, sizeof h->group, "%s", h->s.group);
	h->uv.closed = bury;
	r = handles_open(&h->uv, loop, connection, h);
	if (r == 0)
		r = handles_watch(&h->uv, h->pidfd, on_process);
	if (r < 0)
		return abandon(h, r);
	*out = h;
	return 0;
}

int
handoff_open(uv_loop_t *loop, int connection, const struct handoff_config *cfg,
	     struct session **out)
{
	struct session who;
	struct handoff *h;
	int r;

	*out = NULL;
	r = served_whose(&who, connection, cfg->group);
	if (r < 0)
		return r;
	r = make(&h, loop, connection, descriptors_peer(connection, who.pid), cfg, &who);
	if (r == 0 && (r = uv_poll_start(&h->uv.socket, UV_READABLE, on_socket)) < 0)
		r = abandon(h, r);
	if (r < 0)
		return r;
	h->connection = connection;
	uv_timer_start(&h->uv.timer, on_late, h->cfg.wait_ms, 0);
	*out = &h->s;
	return 0;
}

/* What its guest has, as handoffs say it. */
static int
find_regions(struct handoff *h)
{
	const int64_t n = guest_regions(h->cfg.rt, h->guest, NULL, 0);
	struct guest_region *rg = n > 0 ? calloc((size_t)n, sizeof *rg) : NULL;

	h->region = n > 0 ? calloc((size_t)n, sizeof *h->region) : NULL;
	if (n < 0 || (n > 0 && (rg == NULL || h->region == NULL))) {
		free(rg);
		return n < 0 ? (int)n : -ENOMEM;
	}
	if (n > 0)
		(void)guest_regions(h->cfg.rt, h->guest, rg, (size_t)n);
	for (; h->nregions < (unsigned)n; h->nregions++)
		h->region[h->nregions] =
			(struct handoff_region){ .address = rg[h->nregions].start,
						 .size = rg[h->nregions].length,
						 .offset = rg[h->nregions].offset };
	free(rg);
	return 0;
}

int
handoff_resume(uv_loop_t *loop, const struct handoff_config *cfg, uint64_t guest,
	       const struct session *who)
{
	const int uffd = guest_uffd(cfg->rt, guest);
	struct handoff *h;
	int r;

	if (uffd < 0)
		return uffd;
	/* Before the question: who lives then is that process. */
	r = make(&h, loop, -1, descriptors_process(who->pid), cfg, who);
	if (r < 0) {
		close(uffd);
		return r;
	}
	h->deaf = true;
	h->guest = guest;
	h->uffd = uffd;
	h->dead = !foreign_alive(uffd);
	r = find_regions(h);
	say(h, UP_LOG_INFO, "%s",
	    r < 0     ? "what the last daemon has served can not be looked at"
	    : h->dead ? "gone"
		      : "served on, as the last daemon did");
	if (h->dead || r < 0)
		stop(h);
	return 0;
}
