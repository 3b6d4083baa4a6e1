/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * criu.c: a connection of `criu restore --lazy-pages`, from its first byte until the last page is there.
 *
 *	i32 PID, then a byte with a userfaultfd		a task; its memory is registered afterwards
 *	i32 -PID					a zombie
 *	"FTSR"						all is restored, and runs
 *
 *	           images read             "FTSR"                 nothing missing, or no process left
 *	LOADING ---------------> RESTORING -----> TRANSFERRING ---.
 *	   |                        |  end of the connection,      \
 *	   | they are refused       |  or nonsense                  v
 *	   |                        '---------> FAILED ---------> CLOSING: threads told to stop, handles closed --> freed
 *	   '-----------------------------------------------------^    no process left, or some time later
 *
 * There is no answer in this protocol: who is refused finds the connection closed, which fails the restore, and the reason is in our log.
 *
 * CRIU tells us which task it is by its number, that of the images; which process that is now we do not know, nor need to.  And each task
 * closes its own copy of the userfaultfd: ours is the only one, but for the guardian's.  So it is closed when no page is missing any more, or those that are
 * have been poisoned, and before only if the restore has failed and its tasks have not gone of themselves.  (If this process is killed, and there is
 * no guardian, the kernel closes them, and what was missing reads as zeros.  See docs/architecture.md.)
 */
#include "criu.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "criu_image.h"
#include "descriptors.h"
#include "handles.h"
#include "pmap/uffd_abi.h"
#include "served.h"

#define READS_MAX 64 /* until others have their turn */

/* Without one of those what the program does itself would give it old content, or zeros. */
#define FEATURES                                                                          \
	(UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | \
	 UFFD_FEATURE_EVENT_UNMAP)

enum phase { LOADING, RESTORING, TRANSFERRING, FAILED, CLOSING };

struct criu {
	struct session s;
	struct criu_config cfg;
	char dir[PATH_MAX];
	struct handles uv; /* the timer is for looks */
	uv_work_t work;
	int connection;
	enum phase phase;
	bool transferred;	    /* it has been TRANSFERRING */
	bool dropped;		    /* pages were not waited for */
	bool complete;		    /* see criu_complete() */
	uint64_t failed_at;	    /* ns */
	struct session_counts last; /* when what counts is gone */
	int loaded;		    /* what the work has said */
	struct criu_images *images; /* from then on */
	struct fill *fill;	    /* from then on */
	unsigned tasks, zombies;
	uint64_t bytes;
};

static struct criu *
of(const struct session *s)
{
	return container_of((struct session *)(uintptr_t)s, struct criu, s);
}

static const char *
name_of(const struct criu *c, char buf[80])
{
	snprintf(buf, 80, "%.60s[%d]", c->s.name[0] != '\0' ? c->s.name : "criu", (int)c->s.pid);
	return buf;
}

static void __attribute__((format(printf, 3, 4)))
say(const struct criu *c, enum up_log_level level, const char *fmt, ...)
{
	char line[PATH_MAX + 200], name[80];
	const struct log_about about = session_about(&c->s);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	log_line_about(&c->cfg.log, &about, level, "%s: %s", name_of(c, name), line);
}

/* And for a successor. */
static void
set_phase(struct criu *c, enum phase phase)
{
	c->phase = phase;
	if (c->fill != NULL)
		fill_about(c->fill)->phase = (uint32_t)phase;
}

/* --- the end --- */

/* It goes of itself, later, and nobody is to hear of it. */
static void
abandon(struct criu *c)
{
	c->cfg.gone = NULL;
	c->phase = CLOSING;
	handles_close(&c->uv);
}

/* Handles, work and threads are at their end. */
static void
bury(void *owner)
{
	struct criu *c = owner;
	struct session_counts n = { 0 };

	if (c->fill != NULL)
		fill_counts(c->fill, &n);
	c->last = n;
	c->last.mapped = c->last.resident = 0;
	c->complete = c->transferred && !c->dropped && n.lost == 0;
	if (c->transferred)
		say(c, c->complete ? UP_LOG_INFO : UP_LOG_WARNING,
		    "%s: %llu pages because they were asked for, %llu before, %llu of zeros, %llu lost",
		    c->complete ? "nothing is missing any more" : "ended",
		    (unsigned long long)n.faults[UP_FAULT_MAJOR], (unsigned long long)n.prefetched,
		    (unsigned long long)n.faults[UP_FAULT_ZERO], (unsigned long long)n.lost);
	/* First: a successor takes what is open and in no session's note for a connection that has only been accepted. */
	if (c->connection >= 0)
		close(c->connection);
	session_gone(&c->s);
	fill_destroy(c->fill);
	c->fill = NULL;
	criu_images_free(c->images);
	if (c->cfg.gone != NULL)
		c->cfg.gone(c->cfg.ctx, &c->s);
	free(c);
}

/* CRIU is told that it need not go on, if it still is there. */
static void
hang_up(struct criu *c)
{
	uv_poll_stop(&c->uv.socket);
	shutdown(c->connection, SHUT_RDWR);
}

void
criu_end(struct session *s, enum fill_end how, unsigned ms)
{
	struct criu *c = of(s);
	const bool first = c->phase != CLOSING;

	set_phase(c, CLOSING);
	if (first) {
		hang_up(c);
		uv_timer_stop(&c->uv.timer);
	}
	if (c->fill != NULL) {
		if (how != FILL_END_FILL)
			c->dropped = true;
		fill_stop(c->fill, how, ms);
	} else if (first) {
		handles_close(&c->uv);
	}
}

/* Nobody misses anything. */
static void
over(struct criu *c)
{
	const bool dropped = c->dropped;

	criu_end(&c->s, FILL_END_DROP, 0);
	c->dropped = dropped;
}

static void
on_look(uv_timer_t *t)
{
	struct criu *c = handles_owner(t);

	if (!fill_alive(c->fill))
		over(c);
	else if (c->phase == FAILED &&
		 now_ns() - c->failed_at > c->cfg.grace_ms * UINT64_C(1000000))
		criu_end(&c->s, FILL_END_POISON, 0);
}

/* It does not get any further.  Tasks are there perhaps, until CRIU has killed them: they are served. */
static void
fail(struct criu *c, const char *why)
{
	say(c, UP_LOG_ERROR, "the restore has failed: %s", why);
	set_phase(c, FAILED);
	c->failed_at = now_ns();
	if (!fill_alive(c->fill)) {
		criu_end(&c->s, FILL_END_DROP, 0);
		return;
	}
	hang_up(c);
	uv_timer_start(&c->uv.timer, on_look, CRIU_LOOK_MS, CRIU_LOOK_MS);
}

/* The filler has found out something. */
static void
heard(void *owner)
{
	struct criu *c = owner;

	if ((c->phase == TRANSFERRING || c->phase == FAILED) && !fill_alive(c->fill))
		over(c);
}

/* --- what it says --- */

static void
has_come(struct criu *c, struct criu_task *t)
{
	t->come = true;
	c->tasks++;
	c->bytes += t->bytes;
	criu_task_finish(t);
}

/* NULL: it is what it should be. */
static const char *
take_task(struct criu *c, uint32_t pid, int fd)
{
	struct criu_task *t = criu_images_task(c->images, pid);
	struct foreign_info info;
	int r;

	/* By a process that was killed before it could say that it has. */
	if (fill_has(c->fill, pid)) {
		close(fd);
		return NULL;
	}
	if (foreign_info(fd, &info) < 0) {
		close(fd);
		return "a file descriptor that is no userfaultfd";
	}
	if ((info.features & FEATURES) != FEATURES) {
		close(fd);
		return "a userfaultfd that does not tell of fork(), mremap(), munmap() and madvise(): CRIU lacks a capability";
	}
	r = fill_add(c->fill, fd, t->range, t->n, FILL_OUTSIDE_ZERO | FILL_SOLE, pid);
	if (r < 0) {
		close(fd);
		say(c, UP_LOG_ERROR, "task %u can not be served: %s", t->pid, strerror(-r));
		return "a task that can not be served";
	}
	has_come(c, t);
	return NULL;
}

static void
transfer(struct criu *c)
{
	set_phase(c, TRANSFERRING);
	c->transferred = true;
	hang_up(c);
	uv_timer_start(&c->uv.timer, on_look, CRIU_LOOK_MS, CRIU_LOOK_MS);
	if (c->tasks > 0)
		fill_transfer(c->fill);
	else
		over(c);
}

/* *task: whose userfaultfd comes next; it is 0. */
static const char *
take_word(struct criu *c, int32_t word, uint32_t *task)
{
	struct criu_task *t;

	if (word == CRIU_FINISHED) {
		if (c->tasks + c->zombies < c->images->n)
			say(c, UP_LOG_WARNING, "%u tasks have come, the images have %zu",
			    c->tasks + c->zombies, c->images->n);
		say(c, UP_LOG_INFO, "restored: %u task%s, %llu MiB to come later, from %s",
		    c->tasks, c->tasks == 1 ? "" : "s", (unsigned long long)(c->bytes >> 20),
		    c->dir);
		transfer(c);
		return NULL;
	}
	if (word == 0 || word == INT32_MIN)
		return "something that is no number of a task";
	t = criu_images_task(c->images, (uint32_t)(word < 0 ? -word : word));
	if (t == NULL)
		return "a task that the images do not have";
	if (t->come)
		return "a task for the second time";
	if (word > 0 && !t->images)
		return "a task whose memory the images do not have";
	if (word > 0) {
		*task = t->pid;
	} else {
		t->come = true;
		c->zombies++;
	}
	return NULL;
}

#define NO_TASK "a file descriptor that belongs to no task"

/*
 * fill_about.io: of what is received next.
 *
 *	task << 32	0, or whose userfaultfd it is
 *	have << 8	bytes of the word that have come
 *	want		bytes asked for, and perhaps here, and not done with
 */
static uint64_t
io_of(uint32_t task, unsigned have)
{
	return (uint64_t)task << 32 | have << 8;
}

/* Bytes asked for have come: fill_about.data.  The descriptor is used up. */
static const char *
take(struct criu *c, int fd)
{
	struct fill_about *io = fill_about(c->fill);
	const uint64_t at = io->io;
	const unsigned have = at >> 8 & 0xff, n = at & FILL_IO_WANT;
	uint32_t task = (uint32_t)(at >> 32);
	const char *wrong = NULL;
	int32_t word;

	if (task != 0) {
		wrong = fd >= 0 ? take_task(c, task, fd) : "a task without its userfaultfd";
		io->io = io_of(0, 0);
		return wrong;
	}
	if (fd >= 0) {
		close(fd);
		return NO_TASK;
	}
	memcpy(io->word + have, io->data, n);
	if (have + n < sizeof io->word) {
		io->io = io_of(0, have + n);
		return NULL;
	}
	memcpy(&word, io->word, sizeof word);
	wrong = take_word(c, word, &task);
	io->io = io_of(task, 0);
	return wrong;
}

static bool
refuse(struct criu *c, const char *wrong)
{
	say(c, UP_LOG_ERROR, "refused: %s", wrong);
	fail(c, "it has been refused");
	return false;
}

static bool
hung_up(struct criu *c)
{
	fail(c, "CRIU has hung up before it was done");
	return false;
}

/*
 * No more than what is wanted next, so that a descriptor is known by its place; and no more than is there, so that a successor of this
 * process knows how much it was.  True: again.
 */
static bool
receive(struct criu *c)
{
	struct fill_about *io = fill_about(c->fill);
	const uint64_t at = io->io;
	const size_t room = at >> 32 != 0 ? 1 : sizeof io->word - (at >> 8 & 0xff);
	const char *wrong;
	unsigned nfds = 0;
	int fd = -1;
	ssize_t n = recv(c->connection, io->data, room, MSG_PEEK | MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return errno == EINTR;
	if (n <= 0)
		return hung_up(c);
	memset(io->control, 0, sizeof io->control);
	stores_in_order();
	io->io = at | (uint64_t)n;
	stores_in_order();
	n = descriptors_receive_into(c->connection, io->data, (size_t)n, io->control, &fd, &nfds,
				     1);
	if (n == -E2BIG || n == -EMFILE) {
		if (nfds > 0)
			close(fd);
		return refuse(c, n == -EMFILE	 ? descriptors_why(-EMFILE)
				 : at >> 32 == 0 ? NO_TASK
						 : "more than one file descriptor");
	}
	if (n <= 0)
		return hung_up(c);
	assert((uint64_t)n == (io->io & FILL_IO_WANT));
	wrong = take(c, fd);
	if (wrong != NULL)
		return refuse(c, wrong);
	return c->phase == RESTORING;
}

/* What a predecessor had received, or was about to, when it was killed. */
static void
receive_pending(struct criu *c)
{
	struct fill_about *io = fill_about(c->fill);
	const struct cmsghdr *first = (const void *)io->control;
	const int fd = fill_pending(c->fill);
	const char *wrong = NULL;

	if ((io->io & FILL_IO_WANT) != 0 && first->cmsg_len != 0)
		wrong = take(c, fd);
	else
		io->io &= ~FILL_IO_WANT;
	fill_pending_done(c->fill);
	if (wrong != NULL)
		refuse(c, wrong);
}

static void
on_socket(uv_poll_t *h, int status, int events)
{
	struct criu *c = handles_owner(h);

	(void)events;
	if (status < 0) {
		fail(c, "the connection is broken");
		return;
	}
	for (unsigned i = 0; i < READS_MAX && receive(c); i++)
		;
}

/* --- operations --- */

static void
counts(const struct session *s, struct session_counts *n)
{
	const struct criu *c = of(s);

	*n = c->last;
	if (c->fill != NULL)
		fill_counts(c->fill, n);
}

static json_t *
map(const struct session *s, const struct glance *g)
{
	const struct criu *c = of(s);

	(void)g;
	return c->fill != NULL ? fill_map(c->fill) : json_array();
}

static int64_t
evict(struct session *s, uint64_t bytes)
{
	(void)s;
	(void)bytes;
	return -ENOTSUP;
}

/* What is restored gets what it misses; what is not is not wanted any more. */
static void
end(struct session *s)
{
	const struct criu *c = of(s);

	criu_end(s, c->transferred ? FILL_END_FILL : FILL_END_POISON, c->cfg.end_ms);
}

static bool
latency(const struct session *s, enum up_fault_kind kind, struct latency_steps *steps)
{
	const struct criu *c = of(s);

	if (c->fill != NULL)
		fill_latency(c->fill, kind, steps);
	return c->fill != NULL;
}

static const struct session_ops ops = {
	.kind = "criu",
	.counts = counts,
	.map = map,
	.evict = evict,
	.end = end,
	.latency = latency,
};

bool
criu_complete(const struct session *s)
{
	return of(s)->complete;
}

/* --- the beginning --- */

/* In a thread of the pool. */
static void
load(uv_work_t *w)
{
	struct criu *c = w->data;

	c->loaded = criu_images_load(&c->images, c->dir, &c->cfg.log);
}

/* id: of what a predecessor has had; 0: nothing. */
static int
make_fill(struct criu *c, uint64_t id)
{
	char name[80];
	const struct fill_config cfg = {
		.name = name_of(c, name),
		.log = c->cfg.log,
		.notify = handles_notify,
		.ctx = &c->uv,
		.pidfd = -1,
		.transfer = true,
		.call_mask = c->cfg.call_mask,
		.keeper = c->cfg.keeper,
		.holder = c->cfg.holder,
		.id = id,
		.socket = c->connection,
	};
	struct fill_about *about;
	const int r = fill_create(&c->fill, &cfg);

	if (r < 0)
		return r;
	about = fill_about(c->fill);
	about_session(about, &c->s);
	snprintf(about->text, sizeof about->text, "%s", c->dir);
	return 0;
}

static void
after_load(uv_work_t *w, int status)
{
	struct criu *c = w->data;
	int r = status < 0 ? status : c->loaded;

	if (c->phase == LOADING && r == 0) {
		for (size_t i = 0; i < c->images->n; i++) {
			if (fill_has(c->fill, c->images->task[i].pid))
				has_come(c, &c->images->task[i]);
		}
		set_phase(c, RESTORING);
		receive_pending(c);
	}
	if (c->phase == RESTORING && r == 0)
		r = uv_poll_start(&c->uv.socket, UV_READABLE, on_socket);
	if (r < 0 && c->phase != CLOSING) {
		say(c, UP_LOG_ERROR, "refused: its images can not be served: %s", strerror(-r));
		/* Which ends it, unless there are tasks of a predecessor's. */
		fail(c, "it has been refused");
	}
	handles_drop(&c->uv);
}

/* Its handles are there.  Otherwise a negative errno: the connection is the caller's, and the session goes of itself, later. */
static int
make(struct criu **out, uv_loop_t *loop, int connection, const struct criu_config *cfg,
     const struct session *who)
{
	struct criu *c = calloc(1, sizeof *c);
	int r;

	*out = NULL;
	if (c == NULL)
		return -ENOMEM;
	if ((size_t)snprintf(c->dir, sizeof c->dir, "%s", cfg->dir) >= sizeof c->dir) {
		free(c);
		return -ENAMETOOLONG;
	}
	c->cfg = *cfg;
	c->cfg.dir = c->dir;
	if (c->cfg.end_ms == 0)
		c->cfg.end_ms = CRIU_END_MS;
	if (c->cfg.grace_ms == 0)
		c->cfg.grace_ms = CRIU_GRACE_MS;
	c->connection = -1;
	c->s = *who;
	c->s.ops = &ops;
	session_come(&c->s);
	c->uv.heard = heard;
	c->uv.closed = bury;
	r = handles_open(&c->uv, loop, connection, c);
	if (r < 0)
		abandon(c);
	else
		*out = c;
	return r;
}

/* What there is to read is read into the note, from its beginning (fill_about.io). */
static int
begin(struct criu *c, uv_loop_t *loop)
{
	const int one = 1;
	int r;

	if (setsockopt(c->connection, SOL_SOCKET, SO_PASSCRED, &one, sizeof one) < 0)
		return -errno;
	fill_keep(c->fill);
	c->work.data = c;
	r = uv_queue_work(loop, &c->work, load, after_load);
	if (r == 0)
		handles_hold(&c->uv); /* the work */
	return r;
}

int
criu_open(uv_loop_t *loop, int connection, const struct criu_config *cfg, struct session **out)
{
	struct session who;
	struct criu *c;
	int r;

	*out = NULL;
	r = served_whose(&who, connection, NULL);
	if (r < 0)
		return r;
	r = make(&c, loop, connection, cfg, &who);
	if (r < 0)
		return r;
	c->connection = connection;
	r = make_fill(c, 0);
	if (r == 0)
		r = begin(c, loop);
	if (r < 0) {
		c->connection = -1;
		abandon(c);
		return r;
	}
	*out = &c->s;
	return 0;
}

int
criu_resume(uv_loop_t *loop, const struct criu_config *cfg, struct fill_heir *h)
{
	const struct fill_about *about = &h->note->about;
	struct criu_config mine = *cfg;
	struct session who;
	struct criu *c;
	unsigned n;
	int r;

	mine.dir = about->text;
	about_whom(about, &who);
	r = make(&c, loop, h->socket, &mine, &who);
	if (r < 0)
		return r;
	c->connection = h->socket;
	r = make_fill(c, h->id);
	if (r < 0) {
		c->connection = -1;
		abandon(c);
		return r;
	}
	h->socket = -1;
	n = fill_resume(c->fill, h);
	say(c, UP_LOG_INFO, "%u space%s of the last daemon's: %llu pages are missing", n,
	    n == 1 ? "" : "s", (unsigned long long)fill_missing(c->fill));
	switch ((enum phase)about->phase) {
	case LOADING:
	case RESTORING:
		r = begin(c, loop);
		if (r < 0)
			fail(c, strerror(-r));
		break;
	case TRANSFERRING:
		c->tasks = n;
		transfer(c);
		break;
	case CLOSING:
		c->transferred = true;
		criu_end(&c->s, FILL_END_FILL, c->cfg.end_ms);
		break;
	default:
		fail(c, "the daemon was killed, and it had failed before");
		break;
	}
	return 0;
}
