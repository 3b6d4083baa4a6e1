/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * uring.c: the I/O engine of a service thread: everything that it waits for is a completion
 * on one io_uring.  And that of a thread that serves its own fault, whose reads it polls for.
 *
 *	watched descriptor --poll----+
 *	kick()  --eventfd-----poll---+--> completion queue --reap()--> struct io_events
 *	submit() --read, write-------+
 *
 * A thread that waits in poll() for its userfaultfd and hears of I/O through an eventfd pays
 * three system calls to learn of one read.  Here the wait is one io_uring_enter(), which also
 * starts what is queued.  A fault answered from this wait takes as long as one answered from a
 * bare poll() loop: 0.94 to 0.97 of it on one CPU, 1.03 on two (6.18, DEFER_TASKRUN; without
 * any of the set-up flags and multishot polls 1.05 and 1.02).
 *
 * Rejected:
 *	registered buffers	pin the pages: UFFDIO_MOVE of a pinned page is EBUSY
 *	SQPOLL			a kernel thread that spins, one for each of ours
 *	polling for reads	by a service: it keeps the CPU to which the disk's interrupts and the
 *				thread that waits for the page go, which then has to be woken up on
 *				another: 130 us a fault instead of 75 (two virtual CPUs)
 *	reading the userfaultfd	through the ring: it bypasses pmap's reader, and a read that
 *				has taken a message and is then cancelled has lost it
 *
 * After create nothing here allocates, logs or takes a lock: a thread that forks may hold any
 * lock of libc while it waits for the owner of this engine.
 *
 * One request has one SQE at any time, its first or a continuation, so the submission queue,
 * made for `depth` requests and the polls, never fills up.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "swap/swap.h"

/* user_data of what is not a request; requests are aligned pointers. */
#define TAG_WATCH 1u
#define TAG_KICK 2u
#define TAG_CANCEL 3u
#define TAG_WATCH_TOO 4u

/* SQEs beside the requests: three polls, three cancels. */
#define SQ_EXTRA 6

#define DEPTH_MAX 4096

static struct io_uring_engine *
uring_of(struct io_engine *e)
{
	return container_of(e, struct io_uring_engine, engine);
}

static struct io_uring_sqe *
uring_sqe(struct io_uring_engine *u)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

	assert(sqe != NULL); /* sized for it, see above */
	return sqe;
}

/* Queue what is left of a request. */
static void
uring_queue(struct io_uring_engine *u, struct swap_io *io)
{
	const uint64_t offset = swap_io_offset(io);
	const int fd = io->elsewhere ? io->fd : u->fd;
	const bool plain = u->plain_rw && io->niov == 1;
	struct io_uring_sqe *sqe = uring_sqe(u);
	void *base = io->iov[0].iov_base;
	unsigned len = (unsigned)io->iov[0].iov_len;

	assert(io->niov > 0 && io->done < (size_t)io->n << PAGE_SHIFT);
	if (io->op == SWAP_READ && plain)
		io_uring_prep_read(sqe, fd, base, len, offset);
	else if (io->op == SWAP_READ)
		io_uring_prep_readv(sqe, fd, io->iov, io->niov, offset);
	else if (plain)
		io_uring_prep_write(sqe, fd, base, len, offset);
	else
		io_uring_prep_writev(sqe, fd, io->iov, io->niov, offset);
	io_uring_sqe_set_data(sqe, io);
}

static int
uring_submit(struct io_engine *e, struct swap_io *io)
{
	struct io_uring_engine *u = uring_of(e);

	if (e->inflight == e->depth)
		return -EBUSY;
	e->inflight++;
	swap_io_begin(io);
	swap_io_depart(io);
	if (u->lent && io->elsewhere && !io->direct) {
		/* Through the page cache: what is not there would be read by a thread of the kernel's. */
		*u->aside_last = io;
		u->aside_last = &io->next;
		return 0;
	}
	u->urgent += io->urgent;
	uring_queue(u, io);
	return 0;
}

static void
uring_arm(struct io_uring_engine *u, struct ring_poll *p)
{
	struct io_uring_sqe *sqe;

	if (p->armed || p->fd < 0)
		return;
	sqe = uring_sqe(u);
	if (u->multishot)
		io_uring_prep_poll_multishot(sqe, p->fd, POLLIN);
	else
		io_uring_prep_poll_add(sqe, p->fd, POLLIN);
	io_uring_sqe_set_data64(sqe, p->tag);
	p->armed = true;
}

/* One completion of a poll.  Returns whether the descriptor has something to say. */
static bool
uring_polled(struct io_uring_engine *u, struct ring_poll *p, const struct io_uring_cqe *cqe)
{
	if ((cqe->flags & IORING_CQE_F_MORE) == 0)
		p->armed = false; /* one-shot, or the kernel gave up on it: arm again */
	if (cqe->res >= 0)
		return true;
	if (cqe->res == -EINVAL && u->multishot) {
		u->multishot = false; /* before 5.13 */
		return false;
	}
	if (cqe->res == -EAGAIN || cqe->res == -EINTR || cqe->res == -ECANCELED ||
	    cqe->res == -ENOMEM)
		return false;
	p->fd = -1; /* it can not be polled: the owner's read will say why */
	return true;
}

static bool
uring_kicked(struct io_uring_engine *u, const struct io_uring_cqe *cqe)
{
	uint64_t count;

	if (!uring_polled(u, &u->kick, cqe))
		return false;
	/* A multishot poll reports each write, whatever the count is; arming again looks at it. */
	if (!u->kick.armed && read(u->kick.fd, &count, sizeof count) < 0)
		assert(errno == EAGAIN);
	/*
	 * From here the next kick writes again.  One that came before this line has put down
	 * what it kicked for, and the owner sees that after this wait.
	 */
	return atomic_exchange(&u->kick_pending, false);
}

/* To the end of the list of what is completed. */
static void
uring_finish(struct io_uring_engine *u, struct swap_io *io, struct swap_io ***tail)
{
	u->engine.inflight--;
	swap_io_return(io);
	io->next = NULL;
	**tail = io;
	*tail = &io->next;
}

/* Do what is aside.  Returns whether there was any. */
static bool
uring_transfer(struct io_uring_engine *u, struct swap_io ***tail)
{
	struct swap_io *io = u->aside;

	if (io == NULL)
		return false;
	u->aside = NULL;
	u->aside_last = &u->aside;
	while (io != NULL) {
		struct swap_io *next = io->next;

		while (!swap_io_step(io, swap_io_transfer(io, u->fd)))
			;
		uring_finish(u, io, tail);
		io = next;
	}
	return true;
}

/*
 * Empty the completion queue into *ev, oldest first; *tail is where the list of completed
 * requests ends.  Returns whether anything was found.
 */
static bool
uring_reap(struct io_uring_engine *u, struct io_events *ev, struct swap_io ***tail)
{
	struct io_uring_cqe *cqe;
	unsigned head, seen = 0;

	io_uring_for_each_cqe (&u->ring, head, cqe) {
		struct swap_io *io;

		seen++;
		switch (io_uring_cqe_get_data64(cqe)) {
		case TAG_WATCH:
			ev->readable |= uring_polled(u, &u->watch, cqe);
			break;
		case TAG_WATCH_TOO:
			ev->readable |= uring_polled(u, &u->too, cqe);
			break;
		case TAG_KICK:
			ev->kicked |= uring_kicked(u, cqe);
			break;
		case TAG_CANCEL:
			break;
		default:
			io = io_uring_cqe_get_data(cqe);
			if (!swap_io_step(io, cqe->res)) {
				uring_queue(u, io);
				break;
			}
			u->urgent -= io->urgent;
			uring_finish(u, io, tail);
		}
	}
	io_uring_cq_advance(&u->ring, seen);
	return ev->completed != NULL || ev->readable || ev->kicked;
}

/*
 * The same for kernels that know no limit (5.10: no EXT_ARG).  liburing would have a request of its own end the wait, which
 * stays behind when another does, and can then answer for the next wait's: one in some ten thousand never ended.
 */
static int
uring_enter_old(struct io_uring_engine *u, int64_t ns)
{
	const struct timespec ts = { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };
	struct pollfd ring = { .fd = u->ring.ring_fd, .events = POLLIN };
	const int r = io_uring_submit(&u->ring);

	if (r >= 0 && io_uring_cq_ready(&u->ring) == 0)
		ppoll(&ring, 1, &ts, NULL);
	return r < 0 ? r : io_uring_submit_and_get_events(&u->ring);
}

/*
 * One entry into the kernel: submit what is queued, and wait for a completion, `ns` at most
 * (0: only look; < 0: no limit).
 */
static void
uring_enter(struct io_uring_engine *u, int64_t ns)
{
	struct __kernel_timespec ts;
	struct io_uring_cqe *cqe;
	int r;

	if (ns == 0) {
		r = io_uring_submit_and_get_events(&u->ring);
	} else if (ns > 0 && (u->ring.features & IORING_FEAT_EXT_ARG) == 0) {
		r = uring_enter_old(u, ns);
	} else {
		ts.tv_sec = ns / 1000000000;
		ts.tv_nsec = ns % 1000000000;
		r = io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, ns < 0 ? NULL : &ts, NULL);
	}
	/*
	 * EBUSY: reap first.  EAGAIN, ENOMEM: the kernel has no memory for a request now; what was
	 * not taken stays queued.  If there is nothing to reap either, give it a moment.
	 */
	if ((r == -EAGAIN || r == -ENOMEM) && io_uring_cq_ready(&u->ring) == 0 &&
	    io_uring_sq_ready(&u->ring) > 0 && ns != 0)
		poll(NULL, 0, 1);
	assert(r >= 0 || r == -ETIME || r == -EINTR || r == -EBUSY || r == -EAGAIN || r == -ENOMEM);
}

/* Look for a completion, as long as that is worth it. */
static void
uring_poll(struct io_uring_engine *u)
{
	struct polling_turn t;

	if (io_uring_sq_ready(&u->ring) > 0)
		uring_enter(u, 0);
	polling_start(&t);
	while (io_uring_cq_ready(&u->ring) == 0) {
		/* Completions are posted, and polls looked at, when the thread is in the kernel. */
		io_uring_get_events(&u->ring);
		if (io_uring_cq_ready(&u->ring) > 0)
			break;
		if (!polling_again(u->polling, &t))
			return;
	}
	polling_found(u->polling);
}

static void
uring_wait(struct io_engine *e, int64_t timeout_ns, struct io_events *ev)
{
	struct io_uring_engine *u = uring_of(e);
	struct swap_io **tail = &ev->completed;
	int64_t left = timeout_ns;
	uint64_t end = 0;

	const bool urgent = u->urgent > 0 && u->polling != NULL && timeout_ns != 0;
	bool poll = urgent && polling_begin(u->polling), done;

	*ev = (struct io_events){ 0 };
	if (timeout_ns > 0)
		end = now_ns() + (uint64_t)timeout_ns;
	for (;;) {
		uring_arm(u, &u->watch);
		uring_arm(u, &u->too);
		uring_arm(u, &u->kick);
		if (poll)
			uring_poll(u);
		poll = false; /* one turn of looks, whatever comes of it */
		if (io_uring_cq_ready(&u->ring) == 0)
			uring_enter(u, u->aside != NULL ? 0 : left);
		done = uring_transfer(u, &tail);
		if (uring_reap(u, ev, &tail) || done || timeout_ns == 0)
			break;
		/* A signal, a continuation, a poll to be armed again, or the time is up. */
		if (timeout_ns > 0) {
			left = (int64_t)(end - now_ns());
			if (left <= 0)
				break;
		}
	}
	if (urgent)
		polling_end(u->polling);
}

static void
uring_flush(struct io_engine *e)
{
	struct io_uring_engine *u = uring_of(e);

	/* The kernel stops at an SQE that it refuses; what it does not take, wait() starts. */
	while (io_uring_sq_ready(&u->ring) > 0 && io_uring_submit(&u->ring) > 0)
		;
}

static void
uring_kick(struct io_engine *e)
{
	struct io_uring_engine *u = uring_of(e);
	const uint64_t one = 1;

	assert(!u->lent);
	if (atomic_exchange(&u->kick_pending, true))
		return; /* the owner has not looked since the last one */
	/* Can not fail: it would take 2^64 - 1 kicks to fill the counter up. */
	if (write(u->kick.fd, &one, sizeof one) < 0)
		assert(!"kick");
}

/*
 * Take the polls back before the ring goes.  The kernel would do it too, but later, on a worker
 * of its own; meanwhile the ring would keep the watched descriptor open.
 */
static void
uring_disarm(struct io_uring_engine *u)
{
	struct ring_poll *polls[] = { &u->watch, &u->too, &u->kick };
	struct io_events ev = { 0 };
	struct swap_io **tail = &ev.completed;

	/* A poll that is just being woken refuses (EALREADY): ask until it has ended. */
	while (u->watch.armed || u->too.armed || u->kick.armed) {
		for (unsigned i = 0; i < ARRAY_SIZE(polls); i++) {
			struct io_uring_sqe *sqe;

			if (!polls[i]->armed)
				continue;
			sqe = uring_sqe(u);
			io_uring_prep_poll_remove(sqe, polls[i]->tag);
			io_uring_sqe_set_data64(sqe, TAG_CANCEL);
		}
		uring_enter(u, -1);
		uring_reap(u, &ev, &tail);
	}
	assert(ev.completed == NULL);
}

static void
uring_destroy(struct io_engine *e)
{
	struct io_uring_engine *u = uring_of(e);

	assert(e->inflight == 0);
	uring_disarm(u);
	/* The ring itself goes some time later, and somebody else may want the area. */
	if (u->holds)
		io_uring_unregister_files(&u->ring);
	io_uring_queue_exit(&u->ring);
	if (u->lent)
		return;
	close(u->kick.fd);
	free(u);
}

static const struct io_engine_ops uring_ops = {
	.submit = uring_submit,
	.flush = uring_flush,
	.wait = uring_wait,
	.kick = uring_kick,
	.destroy = uring_destroy,
};

/* Why there is no ring, and what to do about it. */
static void
uring_explain(const struct logger *log, int err)
{
	char value[8] = "?";
	int fd;

	switch (err) {
	case -EPERM:
		/* 0 and we are refused: then it is a filter. */
		fd = open("/proc/sys/kernel/io_uring_disabled", O_RDONLY | O_CLOEXEC);
		if (fd >= 0) {
			if (read(fd, value, 1) != 1)
				value[0] = '?';
			close(fd);
		}
		log_line(log, UP_LOG_ERROR,
			 "io_uring is not permitted (kernel.io_uring_disabled is %s): set it to 0 "
			 "(1: join the group in kernel.io_uring_group); if it is 0, the seccomp "
			 "filter (of a container, mostly) must allow io_uring_setup, "
			 "io_uring_enter and io_uring_register",
			 value);
		break;
	case -ENOSYS:
		log_line(log, UP_LOG_ERROR,
			 "there is no io_uring: it takes Linux 5.10 or newer, built with "
			 "CONFIG_IO_URING, and a seccomp filter that does not hide it");
		break;
	case -ENOMEM:
		log_line(log, UP_LOG_ERROR,
			 "io_uring: out of memory (before Linux 5.12 the rings count against "
			 "RLIMIT_MEMLOCK: raise it)");
		break;
	default:
		log_line(log, UP_LOG_ERROR, "io_uring: %s", strerror(-err));
	}
}

/*
 * Make the ring with the best set-up that the kernel knows.  In DEFER_TASKRUN a completion
 * interrupts nobody and is posted when the owner waits, which is all that we need; COOP_TASKRUN
 * is most of that.
 */
static int
uring_setup(struct io_uring_engine *u, uint64_t mask)
{
	static const unsigned setups[] = {
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, /* 6.1 */
		IORING_SETUP_COOP_TASKRUN,				 /* 5.19 */
		0,
	};
	unsigned i = mask & UP_MASK_RING_FLAGS ? ARRAY_SIZE(setups) - 1 : 0;
	int r;

	do
		r = io_uring_queue_init(u->engine.depth + SQ_EXTRA, &u->ring, setups[i]);
	while (r == -EINVAL && ++i < ARRAY_SIZE(setups));
	return r;
}

/* The ring holds the area's file until the last of its requests has ended, whatever file that is for and whoever is still there. */
static int
uring_hold(struct io_uring_engine *u, const struct swap_area *area)
{
	return area->shared ? io_uring_register_files(&u->ring, &area->fd, 1) : 0;
}

/* Find out what the ring can do; masked: what one of Linux 5.10 could. */
static void
uring_probe(struct io_uring_engine *u, uint64_t mask)
{
	struct io_uring_probe *probe;

	u->plain_rw = false;
	u->multishot = false;
	if (mask & UP_MASK_RING_FLAGS) {
		u->ring.features &= ~(unsigned)IORING_FEAT_EXT_ARG;
		return;
	}
	probe = io_uring_get_probe_ring(&u->ring);
	if (probe != NULL) {
		u->plain_rw = io_uring_opcode_supported(probe, IORING_OP_READ) &&
			      io_uring_opcode_supported(probe, IORING_OP_WRITE);
		io_uring_free_probe(probe);
	}
	u->multishot = true;		     /* until it is refused: there is no way to ask */
	io_uring_register_ring_fd(&u->ring); /* 5.18; spares a look-up in every wait */
}

int
io_engine_uring_create(struct io_engine **e, const struct swap_area *area, int watch_fd,
		       int watch_too, unsigned depth, uint64_t mask, const struct logger *log)
{
	struct io_uring_engine *u;
	int r;

	*e = NULL;
	if (depth == 0 || depth > DEPTH_MAX) {
		log_line(log, UP_LOG_ERROR, "io_uring: a depth of %u is not in 1..%d", depth,
			 DEPTH_MAX);
		return -EINVAL;
	}
	u = calloc(1, sizeof *u);
	if (u == NULL)
		return -ENOMEM;
	u->engine.ops = &uring_ops;
	u->engine.depth = depth;
	u->fd = area->fd;
	u->watch = (struct ring_poll){ .fd = watch_fd, .tag = TAG_WATCH };
	u->too = (struct ring_poll){ .fd = watch_too, .tag = TAG_WATCH_TOO };
	u->kick =
		(struct ring_poll){ .fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .tag = TAG_KICK };
	atomic_init(&u->kick_pending, false);
	if (u->kick.fd < 0) {
		r = -errno;
		log_line(log, UP_LOG_ERROR, "eventfd: %s", strerror(-r));
		goto free;
	}
	r = uring_setup(u, mask);
	if (r < 0) {
		uring_explain(log, r);
		goto close;
	}
	r = io_uring_ring_dontfork(&u->ring); /* a child must not submit in our name */
	if (r < 0) {
		log_line(log, UP_LOG_ERROR, "io_uring: MADV_DONTFORK: %s", strerror(-r));
		goto exit;
	}
	r = uring_hold(u, area);
	if (r < 0) {
		uring_explain(log, r);
		goto exit;
	}
	uring_probe(u, mask);
	u->holds = area->shared;
	*e = &u->engine;
	return 0;
exit:
	io_uring_queue_exit(&u->ring);
close:
	close(u->kick.fd);
free:
	free(u);
	return r;
}

int
io_engine_uring_init(struct io_uring_engine *u, const struct swap_area *area, unsigned depth,
		     uint64_t mask, struct polling *pl)
{
	int r;

	if (pl == NULL || pl->limit_ns == 0 || !area->odirect || (mask & UP_MASK_RING_FLAGS))
		return -EOPNOTSUPP;
	*u = (struct io_uring_engine){
		.engine = { .ops = &uring_ops, .depth = depth },
		.polling = pl,
		.fd = area->fd,
		.lent = true,
		.plain_rw = true,
		.watch = { .fd = -1 },
		.too = { .fd = -1 },
		.kick = { .fd = -1 },
	};
	u->aside_last = &u->aside;
	/* Not of a single thread, and none is to be interrupted. */
	r = io_uring_queue_init(depth, &u->ring, IORING_SETUP_COOP_TASKRUN);
	if (r < 0)
		return r == -EINVAL ? -EOPNOTSUPP : r;
	r = io_uring_ring_dontfork(&u->ring);
	if (r == 0)
		r = uring_hold(u, area);
	if (r < 0)
		io_uring_queue_exit(&u->ring);
	else
		u->holds = area->shared;
	return r;
}
