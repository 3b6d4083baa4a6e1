/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * firecracker.c: a connection of Firecracker, from its first byte until the process is gone.
 *
 *	            array, descriptors          more of them
 *	OPEN ------------------------> SERVED ------.
 *	  |  refused, or too late        |  ^-------'
 *	  |                              | no process any more, or end()
 *	  v                              v
 *	CLOSING: threads told to stop, handles closed; each of them tells when it is --> freed
 *
 * It sends without waiting for an answer, and there is none: who is refused finds the connection closed, and the reason is in our log.
 *
 * Whether it lives: the end of the connection says little, since versions before 1.12 close it at once; the end of the process says it, but
 * who connects may be another process than whose memory it is.  So both only make us ask the kernel, whose answer (ESRCH) counts.
 *
 * Descriptors are told apart by what they are, not by how they came: bytes of one read() can belong to two arrays.  An array
 * takes the first userfaultfd and what follows it up to the next one.
 *
 * With a memfd the memory is that of the memfd, shared, and can be taken back, if we can stop who writes to it: a guest of the runtime (lib/guest.h), for which
 * nothing is recorded or prefetched.  All else is filled.
 */
#include "firecracker.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "descriptors.h"
#include "firecracker_wire.h"
#include "guest.h"
#include "handles.h"
#include "handoff.h"
#include "mappings.h"
#include "served.h"

#define READ_MAX ((size_t)64 << 10)
#define READS_MAX 16 /* until others have their turn */

struct firecracker {
	struct session s;
	struct firecracker_config cfg;
	struct handles uv; /* the timer is for the first array, then for looks */
	int connection, pidfd;
	bool closing, deaf; /* deaf: nothing more is read */
	struct fill *fill;  /* from the first array on */
	struct fc_scan scan;
	char *text; /* of the array that is not complete */
	size_t len, room;
	int fd[FC_DESCRIPTORS_MAX]; /* that no array has taken yet */
	unsigned nfds;
	struct fc_guest *guest; /* of arrays that have been taken */
	unsigned nguests, handshakes;
	char group[32];
};

/* Memory that can be taken back. */
struct fc_guest {
	uint64_t id; /* the runtime's */
	int uffd;    /* a copy, to ask whether it lives */
	struct session_counts counts;
};

static struct firecracker *
of(const struct session *s)
{
	return container_of((struct session *)(uintptr_t)s, struct firecracker, s);
}

static const char *
name_of(const struct firecracker *fc, char buf[80])
{
	snprintf(buf, 80, "%.60s[%d]", fc->s.name[0] != '\0' ? fc->s.name : "firecracker",
		 (int)fc->s.pid);
	return buf;
}

static bool
serves(const struct firecracker *fc)
{
	return fc->fill != NULL || fc->nguests > 0;
}

/* Asks the kernel. */
static bool
alive(const struct firecracker *fc)
{
	bool any = fc->fill != NULL && fill_alive(fc->fill);

	for (unsigned i = 0; i < fc->nguests && !any; i++)
		any = foreign_alive(fc->guest[i].uffd);
	return any;
}

static void __attribute__((format(printf, 3, 4)))
say(const struct firecracker *fc, enum up_log_level level, const char *fmt, ...)
{
	char line[400], name[80];
	const struct log_about about = session_about(&fc->s);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	log_line_about(&fc->cfg.log, &about, level, "%s: %s", name_of(fc, name), line);
}

/* --- the end --- */

static void
free_text(struct firecracker *fc)
{
	free(fc->text);
	fc->text = NULL;
	fc->len = fc->room = 0;
}

static void
close_waiting(struct firecracker *fc)
{
	while (fc->nfds > 0)
		close(fc->fd[--fc->nfds]);
}

/* Handles and threads are at their end. */
static void
bury(void *owner)
{
	struct firecracker *fc = owner;

	/* First: a successor takes what is open and in no session's note for a connection that has only been accepted. */
	if (fc->connection >= 0)
		close(fc->connection);
	session_gone(&fc->s);
	fill_destroy(fc->fill);
	fc->fill = NULL;
	close_waiting(fc);
	free_text(fc);
	while (fc->nguests > 0)
		close(fc->guest[--fc->nguests].uffd);
	free(fc->guest);
	if (fc->pidfd >= 0)
		close(fc->pidfd);
	if (fc->cfg.gone != NULL)
		fc->cfg.gone(fc->cfg.ctx, &fc->s);
	memfile_unref(fc->cfg.source);
	free(fc);
}

static void
deaf(struct firecracker *fc)
{
	fc->deaf = true;
	uv_poll_stop(&fc->uv.socket);
}

void
firecracker_end(struct session *s, enum fill_end how, unsigned ms)
{
	struct firecracker *fc = of(s);

	if (!fc->deaf)
		deaf(fc);
	uv_timer_stop(&fc->uv.timer);
	for (unsigned i = 0; i < fc->nguests && !fc->closing; i++) {
		served_counts(fc->cfg.rt, fc->guest[i].id, &fc->guest[i].counts);
		if (how == FILL_END_DROP)
			serve_end(fc->cfg.rt, fc->guest[i].id);
		else
			guest_leave(fc->cfg.rt, fc->guest[i].id);
	}
	if (fc->fill != NULL) {
		fc->closing = true;
		fill_stop(fc->fill, how, ms);
	} else if (!fc->closing) {
		fc->closing = true;
		handles_close(&fc->uv);
	}
}

/* Nobody misses what it has. */
static void
gone(struct firecracker *fc)
{
	if (fc->closing)
		return;
	say(fc, UP_LOG_INFO, "gone");
	firecracker_end(&fc->s, FILL_END_DROP, 0);
}

static void
on_look(uv_timer_t *t)
{
	struct firecracker *fc = handles_owner(t);

	if (!serves(fc)) {
		say(fc, UP_LOG_WARNING, "refused: nothing, or half a handshake, within %u ms",
		    fc->cfg.handshake_ms);
		firecracker_end(&fc->s, FILL_END_DROP, 0);
	} else if (!alive(fc)) {
		gone(fc);
	}
}

/* Something has ended that may have been the client. */
static void
look(struct firecracker *fc)
{
	const bool half = fc->len > 0 || fc->nfds > 0;

	if (fc->closing)
		return;
	if (!alive(fc)) {
		if (!serves(fc))
			say(fc, half ? UP_LOG_WARNING : UP_LOG_INFO,
			    "gone before it has said where its memory is%s",
			    half ? " (half a handshake)" : "");
		gone(fc);
		return;
	}
	/* It lives.  Who tells when it does not? */
	if (fc->pidfd < 0 || !uv_is_active((uv_handle_t *)&fc->uv.process))
		uv_timer_start(&fc->uv.timer, on_look, FC_LOOK_MS, FC_LOOK_MS);
}

static void
on_process(uv_poll_t *h, int status, int events)
{
	struct firecracker *fc = handles_owner(h);

	(void)status;
	(void)events;
	uv_poll_stop(h);
	look(fc);
}

/* The filler has found out something. */
static void
heard(void *owner)
{
	look(owner);
}

/* --- handshakes --- */

static bool
is_uffd(int fd)
{
	struct foreign_info info;

	return foreign_info(fd, &info) == 0;
}

/* The first userfaultfd that waits, and what came behind it: their number. */
static unsigned
take_descriptors(struct firecracker *fc, int taken[FC_DESCRIPTORS_MAX])
{
	unsigned n = 0;

	while (n < fc->nfds && (n == 0 || !is_uffd(fc->fd[n]))) {
		taken[n] = fc->fd[n];
		n++;
	}
	fc->nfds -= n;
	memmove(fc->fd, fc->fd + n, fc->nfds * sizeof fc->fd[0]);
	return n;
}

/* NULL: they are what they should be. */
static const char *
check_descriptors(const int fd[], unsigned n)
{
	struct stat st;

	if (n == 0)
		return "no file descriptor came with it (one that has been closed, or a limit of ours)";
	if (n >= 3)
		return "three file descriptors, the guest's memory is secret (guest_memfd): that is not served";
	if (!is_uffd(fd[0]))
		return "its first file descriptor is no userfaultfd";
	if (n == 2 && (fstat(fd[1], &st) < 0 || !S_ISREG(st.st_mode)))
		return "its second file descriptor is no memfd";
	return NULL;
}

/* id: of what a predecessor has had; 0: nothing. */
static int
make_fill(struct firecracker *fc, uint64_t id)
{
	char name[80];
	const struct fill_config cfg = {
		.name = name_of(fc, name),
		.log = fc->cfg.log,
		.notify = handles_notify,
		.ctx = &fc->uv,
		.pidfd = fc->pidfd,
		.working_set = fc->cfg.working_set ? fc->cfg.source : NULL,
		.record_ms = fc->cfg.record_seconds * 1000,
		.call_mask = fc->cfg.call_mask,
		.keeper = fc->cfg.keeper,
		.holder = fc->cfg.holder,
		.id = id,
		.socket = fc->connection,
	};
	struct fill_about *about;
	int r;

	if (fc->fill != NULL)
		return 0;
	r = fill_create(&fc->fill, &cfg);
	if (r < 0)
		return r;
	about = fill_about(fc->fill);
	about_session(about, &fc->s);
	about->source = fc->cfg.source->number;
	return 0;
}

/*
 * Its memory is that of the memfd in fd[1].  0: it is the runtime's, and the descriptors are used up; -ENOTSUP: it can not be taken back, and `why` says why not.
 */
static int
serve_guest(struct firecracker *fc, const int fd[2], const struct fc_region *region, unsigned n,
	    char *why, size_t whysize)
{
	struct mapped *file = calloc(n, sizeof *file);
	struct guest_region *rg = calloc(n, sizeof *rg);
	struct fc_guest *more = realloc(fc->guest, (fc->nguests + 1) * sizeof *more);
	struct guest_config cfg = {
		.limits = { .regions = fc->cfg.regions_max, .group = fc->group },
		.pid = fc->s.pid,
		.uid = fc->s.uid,
		.gid = fc->s.gid,
		.name = fc->s.name,
		.uffd = fcntl(fd[0], F_DUPFD_CLOEXEC, 0),
		.tag = GUEST_OF_FIRECRACKER,
	};
	int r = file == NULL || rg == NULL || more == NULL || cfg.uffd < 0 ? -ENOMEM : 0;

	if (fc->cfg.limits != NULL)
		fc->cfg.limits(fc->group, &cfg.limits);
	if (more != NULL)
		fc->guest = more;
	if (r < 0)
		snprintf(why, whysize, "no memory, or no descriptor");
	for (unsigned i = 0; i < n && r == 0; i++) {
		file[i] = (struct mapped){ .start = region[i].address, .len = region[i].size };
		if (region[i].page_size != PAGE_SIZE) {
			snprintf(why, whysize, "its pages are huge");
			r = -ENOTSUP;
		}
	}
	if (r == 0)
		r = mappings_find(fc->s.pid, fd[1], file, n, why, whysize);
	if (r < 0 && cfg.uffd >= 0)
		close(cfg.uffd);
	for (unsigned i = 0; i < n && r == 0; i++)
		rg[i] = (struct guest_region){
			.start = file[i].start,
			.length = file[i].len,
			.memfd = file[i].fd,
			.offset = file[i].offset,
			.source = fc->cfg.source->fd,
			.source_offset = region[i].offset,
		};
	if (r == 0) {
		r = guest_attach(fc->cfg.rt, &cfg, rg, n, &fc->guest[fc->nguests].id);
		for (unsigned i = 0; i < n; i++)
			close(file[i].fd);
		if (r < 0)
			snprintf(why, whysize, "%s",
				 r == -EOPNOTSUPP ? "its writes resolve themselves (WP_ASYNC)"
						  : strerror(-r));
	}
	free(file);
	free(rg);
	if (r < 0)
		return r == -ESTALE ? r : -ENOTSUP;
	fc->guest[fc->nguests].counts = (struct session_counts){ 0 };
	fc->guest[fc->nguests++].uffd = fd[0];
	close(fd[1]);
	return 0;
}

static int
serve(struct firecracker *fc, const int fd[], unsigned nfds, const struct fc_region *region, int n,
      char *why, size_t whysize)
{
	struct fill_range *range;
	int r;

	assert(n > 0);
	if (nfds == 2 && fc->cfg.rt != NULL) {
		r = serve_guest(fc, fd, region, (unsigned)n, why, whysize);
		if (r != -ENOTSUP)
			return r;
		say(fc, UP_LOG_WARNING, "%s: its memory is filled, but not taken back", why);
	}
	range = calloc((size_t)n, sizeof *range);
	if (range == NULL) {
		snprintf(why, whysize, "no memory");
		return -ENOMEM;
	}
	for (int i = 0; i < n; i++)
		range[i] = (struct fill_range){
			.start = region[i].address,
			.len = region[i].size,
			.offset = region[i].offset,
			.page_size = region[i].page_size,
			.source = fc->cfg.source,
		};
	r = make_fill(fc, 0);
	if (r == 0)
		r = fill_add(fc->fill, fd[0], range, (size_t)n, nfds == 2 ? FILL_TRACKED : 0, 0);
	free(range);
	if (r < 0) {
		snprintf(why, whysize, "it can not be served: %s", strerror(-r));
		return r;
	}
	if (nfds == 2)
		close(fd[1]);
	return 0;
}

/* One array, complete.  Negative: it is refused, and the reason has been told. */
static int
handshake(struct firecracker *fc)
{
	struct fc_region *region = NULL;
	int fd[FC_DESCRIPTORS_MAX], n = -EINVAL, r = 0;
	const unsigned nfds = take_descriptors(fc, fd);
	char why[300] = "";
	const char *wrong = check_descriptors(fd, nfds);
	uint64_t bytes = 0;

	if (++fc->handshakes > FC_HANDSHAKES_MAX)
		wrong = "too many handshakes on one connection";
	if (wrong == NULL)
		n = fc_parse(fc->text, fc->len, fc->cfg.source->size, &region, why, sizeof why);
	for (int i = 0; i < n; i++)
		bytes += region[i].size;
	r = n < 0 ? n : serve(fc, fd, nfds, region, n, why, sizeof why);
	free(region);
	free_text(fc);
	if (r < 0) {
		say(fc, UP_LOG_ERROR, "refused: %s", wrong != NULL ? wrong : why);
		for (unsigned i = 0; i < nfds; i++)
			close(fd[i]);
		return r;
	}
	uv_timer_stop(&fc->uv.timer);
	say(fc, UP_LOG_INFO, "%d region%s, %llu MiB%s, from %s", n, n == 1 ? "" : "s",
	    (unsigned long long)(bytes >> 20), nfds == 2 ? ", of a memfd" : "",
	    fc->cfg.source->path);
	return 0;
}

static int
keep(struct firecracker *fc, const char *data, size_t len)
{
	if (fc->len + len > FC_HANDSHAKE_MAX) {
		say(fc, UP_LOG_ERROR, "refused: a handshake of more than %zu bytes",
		    FC_HANDSHAKE_MAX);
		return -E2BIG;
	}
	if (fc->len + len > fc->room) {
		const size_t room = MAX(2 * fc->room, fc->len + len);
		char *text = realloc(fc->text, room);

		if (text == NULL)
			return -ENOMEM;
		fc->text = text;
		fc->room = room;
	}
	memcpy(fc->text + fc->len, data, len);
	fc->len += len;
	return 0;
}

static int
digest(struct firecracker *fc, const char *data, size_t len)
{
	while (len > 0) {
		bool complete;
		const int64_t n = fc_scan(&fc->scan, data, len, &complete);
		int r;

		if (n < 0) {
			say(fc, UP_LOG_ERROR, "refused: it is no JSON array");
			return (int)n;
		}
		/* White space between arrays is not kept: there may be much of it. */
		if (fc->scan.begun || complete) {
			r = keep(fc, data, (size_t)n);
			if (r < 0)
				return r;
		}
		data += n;
		len -= (size_t)n;
		if (complete && (r = handshake(fc)) < 0)
			return r;
	}
	return 0;
}

/* 1: again, 0: nothing more now, or at all; negative: it is refused. */
static int
receive(struct firecracker *fc)
{
	static char data[READ_MAX]; /* the loop's thread only */
	const ssize_t n = descriptors_receive(fc->connection, data, sizeof data, fc->fd, &fc->nfds,
					      FC_DESCRIPTORS_MAX);
	int r;

	if (n == -EAGAIN || n == -EINTR)
		return n == -EINTR;
	if (n == -E2BIG || n == -EMFILE) {
		say(fc, UP_LOG_ERROR, "refused: %s", descriptors_why((int)n));
		return (int)n;
	}
	if (n <= 0) {
		deaf(fc);
		look(fc);
		return 0;
	}
	r = digest(fc, data, (size_t)n);
	return r < 0 ? r : 1;
}

/* What has been read of an array that is not complete, a successor can not know. */
static int
receive_noted(struct firecracker *fc)
{
	int r;

	if (fc->fill != NULL)
		fill_about(fc->fill)->between = false;
	stores_in_order();
	r = receive(fc);
	stores_in_order();
	if (fc->fill != NULL)
		fill_about(fc->fill)->between = fc->len == 0 && fc->nfds == 0 && !fc->deaf;
	return r;
}

static void
on_socket(uv_poll_t *h, int status, int events)
{
	struct firecracker *fc = handles_owner(h);
	int r = 1;

	(void)events;
	if (status < 0) {
		deaf(fc);
		look(fc);
		return;
	}
	for (unsigned i = 0; i < READS_MAX && r == 1 && !fc->deaf; i++)
		r = receive_noted(fc);
	if (r >= 0)
		return;
	/* What has been taken before is served on, but what it says is not understood any more. */
	close_waiting(fc);
	free_text(fc);
	if (alive(fc)) {
		deaf(fc);
		shutdown(fc->connection, SHUT_RDWR);
		look(fc);
	} else {
		firecracker_end(&fc->s, FILL_END_DROP, 0);
	}
}

/* --- operations --- */

/* Of all that serves it. */
static bool
latency(const struct session *s, enum up_fault_kind kind, struct latency_steps *steps)
{
	const struct firecracker *fc = of(s);
	struct latency_steps one;

	*steps = (struct latency_steps){ .count = 0 };
	if (fc->fill != NULL)
		fill_latency(fc->fill, kind, steps);
	for (unsigned i = 0; i < fc->nguests; i++)
		if (served_latency(fc->cfg.rt, fc->guest[i].id, kind, &one))
			steps_add(steps, &one);
	return fc->fill != NULL || fc->nguests > 0;
}

static void
counts(const struct session *s, struct session_counts *c)
{
	const struct firecracker *fc = of(s);
	struct latency_steps all = { .count = 0 }, steps;
	struct up_latency of_all;

	memset(c, 0, sizeof *c);
	if (fc->fill != NULL)
		fill_counts(fc->fill, c);
	for (unsigned i = 0; i < fc->nguests; i++) {
		served_counts(fc->cfg.rt, fc->guest[i].id, &fc->guest[i].counts);
		served_add(c, &fc->guest[i].counts);
	}
	for (unsigned k = 0; k < UP_FAULT_KINDS && fc->nguests > 0; k++) {
		if (!latency(s, k, &steps))
			continue;
		steps_sum(&steps, &c->latency[k]);
		steps_add(&all, &steps);
	}
	if (all.count > 0) {
		steps_sum(&all, &of_all);
		c->p50_ns = of_all.p50;
		c->p99_ns = of_all.p99;
	}
}

static json_t *
map(const struct session *s, const struct glance *g)
{
	const struct firecracker *fc = of(s);
	json_t *const all = fc->fill != NULL ? fill_map(fc->fill) : json_array();

	for (unsigned i = 0; i < fc->nguests && all != NULL; i++) {
		json_t *const one = served_map(fc->cfg.rt, fc->guest[i].id, g);

		json_array_extend(all, one);
		json_decref(one);
	}
	return all;
}

static int64_t
evict(struct session *s, uint64_t bytes)
{
	const struct firecracker *fc = of(s);
	int64_t gone = fc->nguests > 0 ? 0 : -ENOTSUP;

	for (unsigned i = 0; i < fc->nguests && (uint64_t)gone < bytes; i++) {
		const int64_t n = serve_evict(fc->cfg.rt, fc->guest[i].id, bytes - (uint64_t)gone);

		gone += MAX(n, 0);
	}
	return gone;
}

/* There is nobody to be asked.  What has all of its memory does without us; what can be taken back has no room for all of it. */
static void
leave(struct session *s, unsigned ms)
{
	const struct firecracker *fc = of(s);

	if (ms > 0 && fc->fill != NULL && fc->nguests == 0 && !fc->closing)
		firecracker_end(s, FILL_END_FILL, ms);
}

static void
end(struct session *s)
{
	firecracker_end(s, FILL_END_POISON, 0);
}

/* Of one with memory in several pieces it would be each piece's. */
static int
limit(struct session *s, uint64_t most, uint64_t least)
{
	const struct firecracker *fc = of(s);

	return fc->nguests == 1 ? served_limit(fc->cfg.rt, fc->guest[0].id, most, least) : -ENOTSUP;
}

static int
regroup(struct session *s, const char *group)
{
	struct firecracker *fc = of(s);
	int r = 0;

	/* Also what comes later. */
	snprintf(fc->group, sizeof fc->group, "%s", group);
	for (unsigned i = 0; i < fc->nguests; i++) {
		const int one = serve_regroup(fc->cfg.rt, fc->guest[i].id, group);

		r = one < 0 && one != -ENOENT ? one : r;
	}
	return r;
}

static const struct session_ops ops = {
	.kind = "firecracker",
	.counts = counts,
	.map = map,
	.evict = evict,
	.leave = leave,
	.end = end,
	.limit = limit,
	.regroup = regroup,
	.latency = latency,
};

/* --- the beginning --- */

/* It goes of itself, later, and nobody is to hear of it. */
static void
abandon(struct firecracker *fc)
{
	fc->cfg.gone = NULL;
	fc->closing = true;
	handles_close(&fc->uv);
}

/* Its handles are there; connection -1: it has none.  Otherwise a negative errno: the connection is the caller's, and the session goes of itself. */
static int
make(struct firecracker **out, uv_loop_t *loop, int connection,
     const struct firecracker_config *cfg, const struct session *who)
{
	struct firecracker *fc = calloc(1, sizeof *fc);
	int r;

	*out = NULL;
	if (fc == NULL)
		return -ENOMEM;
	fc->connection = -1;
	fc->cfg = *cfg;
	if (fc->cfg.handshake_ms == 0)
		fc->cfg.handshake_ms = FC_HANDSHAKE_MS;
	if (cfg->source != NULL)
		memfile_ref(cfg->source);
	fc->s = *who;
	fc->s.ops = &ops;
	fc->pidfd = connection >= 0 ? descriptors_peer(connection, who->pid)
				    : descriptors_process(who->pid);
	session_come(&fc->s);
	/* The registry's word, by the user perhaps. */
	snprintf(fc->group, sizeof fc->group, "%s", fc->s.group);
	fc->uv.heard = heard;
	fc->uv.closed = bury;
	r = handles_open(&fc->uv, loop, connection, fc);
	/* Without it there are looks. */
	if (r == 0 && fc->pidfd >= 0)
		handles_watch(&fc->uv, fc->pidfd, on_process);
	if (r < 0)
		abandon(fc);
	else
		*out = fc;
	return r;
}

int
firecracker_open(uv_loop_t *loop, int connection, const struct firecracker_config *cfg,
		 struct session **out)
{
	struct session who;
	struct firecracker *fc;
	int r;

	*out = NULL;
	r = served_whose(&who, connection, cfg->group);
	if (r < 0)
		return r;
	r = make(&fc, loop, connection, cfg, &who);
	if (r < 0)
		return r;
	r = uv_poll_start(&fc->uv.socket, UV_READABLE, on_socket);
	if (r < 0) {
		abandon(fc);
		return r;
	}
	fc->connection = connection;
	uv_timer_start(&fc->uv.timer, on_look, fc->cfg.handshake_ms, 0);
	*out = &fc->s;
	return 0;
}

int
firecracker_resume(uv_loop_t *loop, const struct firecracker_config *cfg, struct fill_heir *h)
{
	const struct fill_about *about = &h->note->about;
	struct firecracker_config mine = *cfg;
	struct firecracker *fc;
	struct session who;
	unsigned n;
	int r;

	/* Its first seconds are over, and the record of those would be half of one. */
	mine.working_set = false;
	about_whom(about, &who);
	r = make(&fc, loop, h->socket, &mine, &who);
	if (r < 0)
		return r;
	fc->connection = h->socket;
	r = make_fill(fc, h->id);
	if (r < 0) {
		fc->connection = -1;
		abandon(fc);
		return r;
	}
	h->socket = -1;
	n = fill_resume(fc->fill, h);
	say(fc, UP_LOG_INFO, "%u region set%s of the last daemon's: %llu pages are missing", n,
	    n == 1 ? "" : "s", (unsigned long long)fill_missing(fc->fill));
	if (!about->between || uv_poll_start(&fc->uv.socket, UV_READABLE, on_socket) < 0)
		deaf(fc);
	look(fc);
	return 0;
}

/* The session of that process that a predecessor's filler has brought, or one of its guests before this one; NULL: none. */
static struct firecracker *
find_resumed(const struct session *who)
{
	for (struct session *s = session_first(); s != NULL; s = s->next)
		if (s->ops == &ops && s->pid == who->pid && !of(s)->closing)
			return of(s);
	return NULL;
}

int
firecracker_guest(uv_loop_t *loop, const struct firecracker_config *cfg, uint64_t guest,
		  const struct session *who)
{
	struct firecracker *fc = find_resumed(who);
	const int uffd = guest_uffd(cfg->rt, guest);
	struct fc_guest *more;
	int r = uffd < 0 ? uffd : 0;

	if (r == 0 && fc == NULL) {
		r = make(&fc, loop, -1, cfg, who);
		if (r == 0)
			fc->deaf = true;
	}
	more = r == 0 ? realloc(fc->guest, (fc->nguests + 1) * sizeof *more) : NULL;
	if (more == NULL) {
		if (uffd >= 0)
			close(uffd);
		/* A session that has nothing ends when it is looked at. */
		if (r == 0)
			look(fc);
		return r < 0 ? r : -ENOMEM;
	}
	fc->guest = more;
	fc->guest[fc->nguests++] = (struct fc_guest){ .id = guest, .uffd = uffd };
	fc->cfg.rt = cfg->rt;
	fc->cfg.regions_max = cfg->regions_max;
	fc->cfg.limits = cfg->limits;
	say(fc, UP_LOG_INFO, "a memfd is served on, as the last daemon did");
	look(fc);
	return 0;
}
