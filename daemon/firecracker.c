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
 * With a memfd the memory is that of the memfd, shared, and could be taken back: evict() is to come, and keeps the memfd for that.
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

#include "firecracker_wire.h"

#ifndef SO_PEERPIDFD /* Linux 6.5 */
#define SO_PEERPIDFD 77
#endif

#define READ_MAX ((size_t)64 << 10)
#define READS_MAX 16 /* until others have their turn */

struct firecracker {
	struct session s;
	struct firecracker_config cfg;
	uv_poll_t socket, process;
	uv_timer_t timer; /* for the first array, then for looks */
	uv_async_t told;  /* by threads of the filler */
	unsigned handles; /* that are not closed yet */
	int connection, pidfd;
	bool closing, deaf; /* deaf: nothing more is read */
	atomic_bool stopped;
	struct fill *fill; /* from the first array on */
	struct fc_scan scan;
	char *text; /* of the array that is not complete */
	size_t len, room;
	int fd[FC_DESCRIPTORS_MAX]; /* that no array has taken yet */
	unsigned nfds;
	int *memfd; /* of arrays that have been taken */
	unsigned nmemfds, handshakes;
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

static void __attribute__((format(printf, 3, 4)))
say(const struct firecracker *fc, enum up_log_level level, const char *fmt, ...)
{
	char line[400], name[80];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	log_line(&fc->cfg.log, level, "%s: %s", name_of(fc, name), line);
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
bury(struct firecracker *fc)
{
	fill_destroy(fc->fill);
	fc->fill = NULL;
	close_waiting(fc);
	free_text(fc);
	while (fc->nmemfds > 0)
		close(fc->memfd[--fc->nmemfds]);
	free(fc->memfd);
	if (fc->connection >= 0)
		close(fc->connection);
	if (fc->pidfd >= 0)
		close(fc->pidfd);
	session_gone(&fc->s);
	if (fc->cfg.gone != NULL)
		fc->cfg.gone(fc->cfg.ctx, &fc->s);
	memfile_unref(fc->cfg.source);
	free(fc);
}

static void
on_closed(uv_handle_t *h)
{
	struct firecracker *fc = h->data;

	if (--fc->handles == 0)
		bury(fc);
}

static void
close_handle(uv_handle_t *h)
{
	if (h->data != NULL && !uv_is_closing(h))
		uv_close(h, on_closed);
}

/* The threads are at their end, or there are none. */
static void
close_handles(struct firecracker *fc)
{
	close_handle((uv_handle_t *)&fc->socket);
	close_handle((uv_handle_t *)&fc->process);
	close_handle((uv_handle_t *)&fc->timer);
	close_handle((uv_handle_t *)&fc->told);
}

static void
deaf(struct firecracker *fc)
{
	fc->deaf = true;
	uv_poll_stop(&fc->socket);
}

void
firecracker_end(struct session *s, enum fill_end how, unsigned ms)
{
	struct firecracker *fc = of(s);

	if (!fc->deaf)
		deaf(fc);
	uv_timer_stop(&fc->timer);
	if (fc->fill != NULL) {
		fc->closing = true;
		fill_stop(fc->fill, how, ms);
	} else if (!fc->closing) {
		fc->closing = true;
		close_handles(fc);
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
	struct firecracker *fc = t->data;

	if (fc->fill == NULL) {
		say(fc, UP_LOG_WARNING, "refused: nothing, or half a handshake, within %u ms",
		    fc->cfg.handshake_ms);
		firecracker_end(&fc->s, FILL_END_DROP, 0);
	} else if (!fill_alive(fc->fill)) {
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
	if (fc->fill == NULL || !fill_alive(fc->fill)) {
		if (fc->fill == NULL)
			say(fc, half ? UP_LOG_WARNING : UP_LOG_INFO,
			    "gone before it has said where its memory is%s",
			    half ? " (half a handshake)" : "");
		gone(fc);
		return;
	}
	/* It lives.  Who tells when it does not? */
	if (fc->pidfd < 0 || !uv_is_active((uv_handle_t *)&fc->process))
		uv_timer_start(&fc->timer, on_look, FC_LOOK_MS, FC_LOOK_MS);
}

static void
on_process(uv_poll_t *h, int status, int events)
{
	struct firecracker *fc = h->data;

	(void)status;
	(void)events;
	uv_poll_stop(h);
	look(fc);
}

/* From threads of the filler. */
static void
on_notify(void *ctx, enum fill_event ev)
{
	struct firecracker *fc = ctx;

	if (ev == FILL_STOPPED)
		atomic_store(&fc->stopped, true);
	uv_async_send(&fc->told);
}

static void
on_told(uv_async_t *h)
{
	struct firecracker *fc = h->data;

	if (atomic_load(&fc->stopped))
		close_handles(fc);
	else
		look(fc);
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

static int
make_fill(struct firecracker *fc)
{
	char name[80];
	const struct fill_config cfg = {
		.name = name_of(fc, name),
		.log = fc->cfg.log,
		.notify = on_notify,
		.ctx = fc,
		.pidfd = fc->pidfd,
		.working_set = fc->cfg.working_set ? fc->cfg.source : NULL,
		.record_ms = fc->cfg.record_seconds * 1000,
		.call_mask = fc->cfg.call_mask,
	};

	return fc->fill != NULL ? 0 : fill_create(&fc->fill, &cfg);
}

static int
keep_memfd(struct firecracker *fc, int fd)
{
	int *more = realloc(fc->memfd, (fc->nmemfds + 1) * sizeof *more);

	if (more == NULL)
		return -ENOMEM;
	fc->memfd = more;
	fc->memfd[fc->nmemfds++] = fd;
	return 0;
}

static int
serve(struct firecracker *fc, const int fd[], unsigned nfds, const struct fc_region *region, int n,
      char *why, size_t whysize)
{
	struct fill_range *range;
	int r;

	assert(n > 0);
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
	r = make_fill(fc);
	if (r == 0)
		r = fill_add(fc->fill, fd[0], range, (size_t)n, nfds == 2 ? FILL_TRACKED : 0);
	free(range);
	if (r < 0) {
		snprintf(why, whysize, "it can not be served: %s", strerror(-r));
		return r;
	}
	if (nfds == 2 && keep_memfd(fc, fd[1]) < 0)
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
	uv_timer_stop(&fc->timer);
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

/* Descriptors that came along. */
static int
take_control(struct firecracker *fc, struct msghdr *msg)
{
	int r = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c != NULL; c = CMSG_NXTHDR(msg, c)) {
		const unsigned char *data = CMSG_DATA(c);
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, data + i * sizeof fd, sizeof fd);
			if (fc->nfds < FC_DESCRIPTORS_MAX) {
				fc->fd[fc->nfds++] = fd;
			} else {
				close(fd);
				r = -E2BIG;
			}
		}
	}
	if (msg->msg_flags & MSG_CTRUNC)
		r = -EMFILE;
	if (r < 0)
		say(fc, UP_LOG_ERROR, "refused: %s",
		    r == -E2BIG ? "too many file descriptors"
				: "its file descriptors could not be received, a limit of ours");
	return r;
}

/* 1: again, 0: nothing more now, or at all; negative: it is refused. */
static int
receive(struct firecracker *fc)
{
	static char data[READ_MAX]; /* the loop's thread only */
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(FC_DESCRIPTORS_MAX * sizeof(int))];
	} control;
	struct iovec iov = { data, sizeof data };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control,
	};
	ssize_t n;
	int r;

	n = recvmsg(fc->connection, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return errno == EINTR;
	if (n <= 0) {
		deaf(fc);
		look(fc);
		return 0;
	}
	r = take_control(fc, &msg);
	if (r == 0)
		r = digest(fc, data, (size_t)n);
	return r < 0 ? r : 1;
}

static void
on_socket(uv_poll_t *h, int status, int events)
{
	struct firecracker *fc = h->data;
	int r = 1;

	(void)events;
	if (status < 0) {
		deaf(fc);
		look(fc);
		return;
	}
	for (unsigned i = 0; i < READS_MAX && r == 1 && !fc->deaf; i++)
		r = receive(fc);
	if (r >= 0)
		return;
	/* What has been taken before is served on, but what it says is not understood any more. */
	close_waiting(fc);
	free_text(fc);
	if (fc->fill != NULL && fill_alive(fc->fill)) {
		deaf(fc);
		shutdown(fc->connection, SHUT_RDWR);
		look(fc);
	} else {
		firecracker_end(&fc->s, FILL_END_DROP, 0);
	}
}

/* --- operations --- */

static void
counts(const struct session *s, struct session_counts *c)
{
	const struct firecracker *fc = of(s);

	if (fc->fill != NULL)
		fill_counts(fc->fill, c);
	else
		memset(c, 0, sizeof *c);
}

static json_t *
map(const struct session *s)
{
	const struct firecracker *fc = of(s);

	return fc->fill != NULL ? fill_map(fc->fill) : json_array();
}

static int64_t
evict(struct session *s, uint64_t bytes)
{
	(void)s;
	(void)bytes;
	return -ENOTSUP;
}

static void
end(struct session *s)
{
	firecracker_end(s, FILL_END_POISON, 0);
}

static const struct session_ops ops = {
	.kind = "firecracker",
	.counts = counts,
	.map = map,
	.evict = evict,
	.end = end,
};

/* --- the beginning --- */

static int
pidfd_of(int connection, pid_t pid)
{
	socklen_t len = sizeof(int);
	int fd = -1;

	if (getsockopt(connection, SOL_SOCKET, SO_PEERPIDFD, &fd, &len) == 0 && fd >= 0) {
		fcntl(fd, F_SETFD, FD_CLOEXEC);
		return fd;
	}
	return pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
}

/* A handle that has been initialised is to be closed. */
static void
has(struct firecracker *fc, uv_handle_t *h)
{
	h->data = fc;
	fc->handles++;
}

int
firecracker_open(uv_loop_t *loop, int connection, const struct firecracker_config *cfg,
		 struct session **out)
{
	struct firecracker *fc = calloc(1, sizeof *fc);
	struct ucred cred = { 0 };
	socklen_t len = sizeof cred;
	int r;

	*out = NULL;
	if (fc == NULL)
		return -ENOMEM;
	fc->connection = fc->pidfd = -1;
	if (getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0) {
		r = -errno;
		free(fc);
		return r;
	}
	fc->cfg = *cfg;
	if (fc->cfg.handshake_ms == 0)
		fc->cfg.handshake_ms = FC_HANDSHAKE_MS;
	memfile_ref(cfg->source);
	fc->s.ops = &ops;
	fc->s.pid = cred.pid;
	fc->s.uid = cred.uid;
	fc->s.gid = cred.gid;
	fc->pidfd = pidfd_of(connection, cred.pid);
	session_come(&fc->s);
	uv_timer_init(loop, &fc->timer);
	has(fc, (uv_handle_t *)&fc->timer);
	r = uv_async_init(loop, &fc->told, on_told);
	if (r == 0) {
		has(fc, (uv_handle_t *)&fc->told);
		r = uv_poll_init(loop, &fc->socket, connection);
	}
	if (r == 0) {
		has(fc, (uv_handle_t *)&fc->socket);
		r = uv_poll_start(&fc->socket, UV_READABLE, on_socket);
	}
	if (r == 0 && fc->pidfd >= 0 && uv_poll_init(loop, &fc->process, fc->pidfd) == 0) {
		has(fc, (uv_handle_t *)&fc->process);
		uv_poll_start(&fc->process, UV_READABLE, on_process);
	}
	if (r < 0) {
		/* It goes of itself, later. */
		fc->cfg.gone = NULL;
		fc->closing = true;
		close_handles(fc);
		return r;
	}
	fc->connection = connection;
	uv_timer_start(&fc->timer, on_look, fc->cfg.handshake_ms, 0);
	*out = &fc->s;
	return 0;
}
