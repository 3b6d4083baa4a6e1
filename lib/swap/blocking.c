/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * blocking.c: the I/O engine of a thread that has nothing else to do until its request is done: one that serves its own fault,
 * where there is no io_uring for it, or nothing to gain by one.
 *
 * wait() does what is queued, one request after the other, by preadv() and pwritev(): a system call each, as io_uring would
 * take to start one and wait for it, and there is neither a descriptor nor memory to have for each thread.
 */
#include "swap/swap.h"

static struct io_blocking *
blocking_of(struct io_engine *e)
{
	return container_of(e, struct io_blocking, engine);
}

static int
blocking_submit(struct io_engine *e, struct swap_io *io)
{
	struct io_blocking *b = blocking_of(e);

	if (e->inflight == e->depth)
		return -EBUSY;
	e->inflight++;
	swap_io_begin(io);
	swap_io_depart(io);
	*b->last = io;
	b->last = &io->next;
	return 0;
}

static void
blocking_flush(struct io_engine *e)
{
	(void)e;
}

static void
blocking_wait(struct io_engine *e, int64_t timeout_ns, struct io_events *ev)
{
	struct io_blocking *b = blocking_of(e);

	(void)timeout_ns; /* nothing else can happen */
	*ev = (struct io_events){ .completed = b->first };
	for (struct swap_io *io = b->first; io != NULL; io = io->next) {
		while (!swap_io_step(io, swap_io_transfer(io, b->fd)))
			;
		e->inflight--;
		swap_io_return(io);
	}
	b->first = NULL;
	b->last = &b->first;
}

static void
blocking_kick(struct io_engine *e)
{
	(void)e; /* it does not sleep */
}

static void
blocking_destroy(struct io_engine *e)
{
	assert(e->inflight == 0);
	(void)e;
}

static const struct io_engine_ops blocking_ops = {
	.submit = blocking_submit,
	.flush = blocking_flush,
	.wait = blocking_wait,
	.kick = blocking_kick,
	.destroy = blocking_destroy,
};

void
io_engine_blocking_init(struct io_blocking *b, const struct swap_area *area, unsigned depth)
{
	b->engine = (struct io_engine){ .ops = &blocking_ops, .depth = depth };
	b->fd = area->fd;
	b->first = NULL;
	b->last = &b->first;
}
