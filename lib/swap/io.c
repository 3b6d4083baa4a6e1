/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * io.c: how far one request of I/O has come; the same for every engine.
 */
#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "swap/swap.h"

/*
 * Attempts in a row of one request that move no whole page (EINTR, EAGAIN, a fraction of a
 * page) before it is an error: the page must not stay busy for ever.
 */
#define STALLS_MAX 100

/* How many are under way of each era, which swap_io_lingers() ends; their numbers come round. */
#define ERAS 8u
static atomic_uint under_way[ERAS], era;

/* Take `bytes` off the front of what is left. */
static void
io_advance(struct swap_io *io, size_t bytes)
{
	unsigned gone = 0;

	io->done += bytes;
	while (gone < io->niov && bytes >= io->iov[gone].iov_len)
		bytes -= io->iov[gone++].iov_len;
	io->niov -= gone;
	memmove(io->iov, io->iov + gone, io->niov * sizeof io->iov[0]);
	if (bytes > 0) {
		assert(io->niov > 0);
		io->iov[0].iov_base = (char *)io->iov[0].iov_base + bytes;
		io->iov[0].iov_len -= bytes;
	}
}

void
swap_io_begin(struct swap_io *io)
{
	size_t bytes = 0;

	assert(io->n >= 1 && io->n <= CLUSTER_MAX && io->niov >= 1 && io->niov <= io->n);
	for (unsigned i = 0; i < io->niov; i++) {
		assert((((uintptr_t)io->iov[i].iov_base | io->iov[i].iov_len) & PAGE_MASK) == 0);
		bytes += io->iov[i].iov_len;
	}
	assert(bytes == (size_t)io->n << PAGE_SHIFT);
	(void)bytes;
	io->result = 0;
	io->done = 0;
	io->stalls = 0;
	io->next = NULL;
}

void
swap_io_depart(struct swap_io *io)
{
	io->era = atomic_load_explicit(&era, memory_order_relaxed) % ERAS;
	atomic_fetch_add_explicit(&under_way[io->era], 1, memory_order_relaxed);
}

void
swap_io_return(struct swap_io *io)
{
	atomic_fetch_sub_explicit(&under_way[io->era], 1, memory_order_relaxed);
}

bool
swap_io_lingers(void)
{
	const unsigned now = atomic_fetch_add_explicit(&era, 1, memory_order_relaxed);
	unsigned n = 0;

	/* What is of the era that ends now may be new; what has been there for ERAS of them is taken for that, this once. */
	for (unsigned i = 1; i < ERAS; i++)
		n += atomic_load_explicit(&under_way[(now + i) % ERAS], memory_order_relaxed);
	return n > 0;
}

bool
swap_io_step(struct swap_io *io, int res)
{
	size_t whole;

	if (res == 0 && io->ends && io->op == SWAP_READ) {
		io->result = 0;
		return true;
	}
	if (res == 0)
		res = -EIO; /* the end of the file */
	if (res < 0 && res != -EINTR && res != -EAGAIN) {
		io->result = res;
		return true;
	}
	/* A fraction of a page is done again: O_DIRECT takes nothing unaligned. */
	whole = res > 0 ? (size_t)res & ~PAGE_MASK : 0;
	if (whole > 0) {
		assert(io->done + whole <= (size_t)io->n << PAGE_SHIFT);
		io->stalls = 0;
		io_advance(io, whole);
	} else if (io->ends && io->op == SWAP_READ && res > 0 && io->stalls > 0) {
		/* The same fraction of a page again: the file ends there. */
		io->done += (size_t)res;
		io->result = 0;
		return true;
	} else if (++io->stalls == STALLS_MAX) {
		io->result = -EIO;
		return true;
	}
	return io->niov == 0;
}

int
swap_io_transfer(const struct swap_io *io, int swap_fd)
{
	const int fd = io->elsewhere ? io->fd : swap_fd;
	const off_t offset = (off_t)swap_io_offset(io);
	const ssize_t n = io->op == SWAP_READ ? preadv(fd, io->iov, (int)io->niov, offset)
					      : pwritev(fd, io->iov, (int)io->niov, offset);

	return n < 0 ? -errno : (int)n;
}
