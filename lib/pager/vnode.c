/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vnode.c: the file pager: pages of a file or block device, through the io_uring of the service that needs them.
 *
 * Devices are read and written with O_DIRECT, whose transfers are whole sectors.  Of a file what the page cache has is read and written
 * there, and all else goes past it, by a descriptor of its own:
 *
 *	            all of it cached    some of it         none
 *	read        through             past it            past it
 *	write       through             through            past it
 *
 * What goes through it is copied once more, waited for by whoever asks, and charged to our memory cgroup in the place of pages that the program
 * would have.  But others may have the file open.  They see what is written past it, for the kernel takes those pages out of the cache; and what they
 * have written is read past it, for the kernel has it written out before.  It can not do the one where somebody stores into a mapping
 * of the same page meanwhile (he is told by his fsync()): so what is cached, as what is mapped always is, is written there.  And to read what is
 * cached takes no disk.  By not asking for what is not we leave nothing behind in it.
 *
 * Whether it is cached cachestat() says, since Linux 6.5, at a price of less than a microsecond.  Where there is none, or no O_DIRECT, everything goes through.
 *
 * Rejected: mincore() on a mapping of our own (takes the lock of our address space, which faults need), RWF_NOWAIT (starts read-ahead
 * of what it does not find), RWF_DONTCACHE (is copied all the same).
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pager/source.h"
#include "pager/vnode.h"

#ifndef SYS_cachestat /* Linux 6.5 */
#define SYS_cachestat 451
#endif

/* Its arguments: bytes, and pages. */
struct cache_range {
	uint64_t offset, length;
};
struct cache_state {
	uint64_t cached, dirty, writeback, evicted, recently_evicted;
};

struct vnode {
	struct source src;
	int fd;	    /* (c) ours */
	int direct; /* (c) ours, the same with O_DIRECT; `fd` if all goes that way, -1: nothing does */
	atomic_bool refused; /* it does not take our transfers after all */
	bool borrowed; /* (c) but the description is the program's, with flags that it may change */
	uint64_t offset; /* (c) of page 0, bytes */
	bool device;	 /* (c) */
};

static struct vnode *
vnode_of(struct source *src)
{
	return container_of(src, struct vnode, src);
}

/* How much of a write of [offset, offset + len) lies inside the file: what is beyond nobody may see.  SOURCE_CUT_OFF: nothing. */
static int
inside(const struct vnode *v, uint64_t offset, size_t len, size_t *in)
{
	struct stat st;

	*in = len;
	if (v->device)
		return 0;
	/* With O_APPEND all of it would go to the end of the file. */
	if (v->borrowed && (fcntl(v->fd, F_GETFL) & O_APPEND))
		return -EBADF;
	if (fstat(v->fd, &st) < 0)
		return -errno;
	if (offset >= (uint64_t)st.st_size)
		return SOURCE_CUT_OFF;
	*in = (size_t)MIN((uint64_t)len, (uint64_t)st.st_size - offset);
	return 0;
}

static int
cache_look(int fd, uint64_t offset, size_t len, struct cache_state *st)
{
	const struct cache_range range = { offset, len };

	return syscall(SYS_cachestat, fd, &range, st, 0) < 0 ? -errno : 0;
}

/* True if it has failed because O_DIRECT can be had, but not with pages at multiples of their size: no other is to go past the page cache. */
static bool
refuses(struct vnode *v, int error)
{
	if (v->direct == v->fd || (error != -EINVAL && error != -EOPNOTSUPP))
		return false;
	atomic_store_explicit(&v->refused, true, memory_order_relaxed);
	return true;
}

/* True if a transfer is to go past the page cache. */
static bool
past_cache(const struct vnode *v, uint64_t offset, size_t len, bool write)
{
	struct cache_state st;

	if (v->direct == v->fd)
		return true;
	if (v->direct < 0 || atomic_load_explicit(&v->refused, memory_order_relaxed) ||
	    cache_look(v->fd, offset, len, &st) < 0)
		return false;
	return st.cached < (write ? 1 : round_up(len, PAGE_SIZE) >> PAGE_SHIFT);
}

/* Also a page that could go through the page cache does not, if others past it may be under way beside it: the kernel would call that a collision. */
static int
write_now(struct vnode *v, const char *from, size_t len, uint64_t offset)
{
	int r = inside(v, offset, len, &len);
	bool direct = r == 0 && (len & PAGE_MASK) == 0 && past_cache(v, offset, len, true);

	while (r == 0 && len > 0) {
		const ssize_t n = pwrite(direct ? v->direct : v->fd, from, len, (off_t)offset);

		if (n < 0 && direct && refuses(v, -errno)) {
			direct = false;
			continue;
		}
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n == 0)
			return -EIO;
		if (n > 0) {
			from += n;
			offset += (uint64_t)n;
			len -= (size_t)n;
			direct = direct && (len & PAGE_MASK) == 0;
		}
	}
	return r;
}

static int
vnode_aim(struct source *src, uint64_t index, unsigned n, bool write, struct swap_io *io)
{
	const struct vnode *v = vnode_of(src);
	size_t len = source_length(src, index, n);

	io->elsewhere = true;
	io->ends = !write;
	io->offset = v->offset + (index << PAGE_SHIFT);
	if (write) {
		size_t in;
		const int r = inside(v, io->offset, len, &in);

		if (r < 0)
			return r;
		if (in < len && n > 1)
			return SOURCE_CUT_OFF; /* which of them is seen when they come one by one */
		len = in;
		/* Requests are of whole pages, and this is one page a file. */
		if ((len & PAGE_MASK) != 0)
			return 1;
	}
	io->direct = past_cache(v, io->offset, len, write);
	io->fd = io->direct ? v->direct : v->fd;
	return 0;
}

static bool
vnode_refused(struct source *src, const struct swap_io *io)
{
	return io->direct && refuses(vnode_of(src), io->result);
}

static int
vnode_start(struct service *s, struct source *src, struct request *req, bool write)
{
	struct vnode *v = vnode_of(src);
	const size_t len = source_length(src, req->index, req->n);
	int r = src->ops->aim(src, req->index, req->n, write, &req->io);

	if (r < 0)
		return r;
	if (r > 0) {
		/* A part of a page at the end. */
		r = 0;
		for (unsigned i = 0; r == 0 && i < req->io.niov; i++) {
			const size_t done =
				(size_t)(req->io.offset - v->offset) - (req->index << PAGE_SHIFT);

			r = write_now(v, req->io.iov[i].iov_base,
				      MIN(req->io.iov[i].iov_len, len - done), req->io.offset);
			req->io.offset += req->io.iov[i].iov_len;
		}
		req->io.result = r;
		source_done(s, req);
		return 0;
	}
	request_submit(s, req);
	return 0;
}

static int
vnode_write(struct source *src, uint64_t index, void *page, size_t len)
{
	return write_now(vnode_of(src), page, len, vnode_of(src)->offset + (index << PAGE_SHIFT));
}

static int
vnode_flush(struct source *src)
{
	return fdatasync(vnode_of(src)->fd) < 0 && errno != EINVAL ? -errno : 0;
}

/* A read that ends early is believed only if the file does. */
static int
vnode_ended(struct source *src, uint64_t index, size_t want, size_t got)
{
	const struct vnode *v = vnode_of(src);
	const uint64_t at = v->offset + (index << PAGE_SHIFT);
	struct stat st;

	(void)want;
	if (v->device)
		return -EIO;
	if (fstat(v->fd, &st) < 0)
		return -errno;
	return (uint64_t)st.st_size <= at + got ? 0 : -EIO;
}

static void
vnode_destroy(struct source *src)
{
	if (vnode_of(src)->direct >= 0 && vnode_of(src)->direct != vnode_of(src)->fd)
		close(vnode_of(src)->direct);
	close(vnode_of(src)->fd);
	free(vnode_of(src));
}

static const struct source_ops file_ops = {
	.name = "file",
	.start = vnode_start,
	.aim = vnode_aim,
	.refused = vnode_refused,
	.write = vnode_write,
	.flush = vnode_flush,
	.ended = vnode_ended,
	.destroy = vnode_destroy,
};

static const struct source_ops device_ops = {
	.name = "device",
	.start = vnode_start,
	.aim = vnode_aim,
	.refused = vnode_refused,
	.write = vnode_write,
	.flush = vnode_flush,
	.ended = vnode_ended,
	.destroy = vnode_destroy,
};

/* A description of our own for the same file: flags are its property, and the caller's stay as they are. */
static int
reopen(int fd, int flags)
{
	char proc[sizeof "/proc/self/fd/" + 11];
	int r;

	snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
	r = open(proc, flags | O_CLOEXEC);
	return r < 0 ? -errno : r;
}

/* A description that goes past the page cache, for which it must be known what that has; -1: none. */
static int
open_direct(int fd, int flags)
{
	struct cache_state st;

	/* Also if it is hidden from us whose file it is, or by a filter of system calls. */
	if (cache_look(fd, 0, PAGE_SIZE, &st) < 0)
		return -1;
	return MAX(reopen(fd, flags | O_DIRECT), -1);
}

int
vnode_file(int fd, uint64_t offset, uint64_t size, bool direct, bool *readonly, struct source **src)
{
	const int flags = fcntl(fd, F_GETFL);
	struct vnode *v;
	struct stat st;
	int r;

	if (flags < 0 || fstat(fd, &st) < 0)
		return -errno;
	/* It says nothing about who may read: opened again it would be with our rights, not with those of whoever made it. */
	if (flags & O_PATH)
		return -EINVAL;
	if (!S_ISREG(st.st_mode) || (flags & O_ACCMODE) == O_WRONLY)
		return -EINVAL;
	if (size == 0) {
		if ((uint64_t)st.st_size <= offset)
			return -EINVAL;
		size = (uint64_t)st.st_size - offset;
	}
	v = calloc(1, sizeof *v);
	if (v == NULL)
		return -ENOMEM;
	/* Whatever flags the caller's has (O_APPEND, O_DIRECT), or will have. */
	/* Made up as it is read (/proc, /sys): by who opens it, and that would be us. */
	v->fd = st.st_blocks == 0 && st.st_size == 0 ? -1 : reopen(fd, flags & O_ACCMODE);
	if (v->fd < 0) {
		/* It was opened by somebody who may, or there is no /proc. */
		v->borrowed = true;
		v->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	}
	if (v->fd < 0 || (v->borrowed && (flags & (O_APPEND | O_DIRECT)) != 0)) {
		r = v->fd < 0 ? -EMFILE : -EACCES;
		if (v->fd >= 0)
			close(v->fd);
		free(v);
		return r;
	}
	v->direct = direct && !v->borrowed ? open_direct(v->fd, flags & O_ACCMODE) : -1;
	v->src.ops = &file_ops;
	v->src.bytes = size;
	atomic_init(&v->src.refs, 1);
	v->offset = offset;
	*readonly = (flags & O_ACCMODE) == O_RDONLY;
	*src = &v->src;
	return 0;
}

int
vnode_device(int fd, uint64_t size, bool *readonly, struct source **src)
{
	const int flags = fcntl(fd, F_GETFL);
	struct vnode *v;
	struct stat st;
	uint64_t bytes;
	int own;

	if (flags < 0 || fstat(fd, &st) < 0)
		return -errno;
	/* It says nothing about who may read: opened again it would be with our rights, not with those of whoever made it. */
	if (flags & O_PATH)
		return -EINVAL;
	if ((flags & O_ACCMODE) == O_WRONLY)
		return -EINVAL;
	if (S_ISBLK(st.st_mode)) {
		if (ioctl(fd, BLKGETSIZE64, &bytes) < 0)
			return -errno;
	} else if (S_ISREG(st.st_mode)) {
		bytes = (uint64_t)st.st_size;
	} else {
		return -EINVAL;
	}
	if (size != 0)
		bytes = size;
	if (bytes == 0)
		return -EINVAL;
	own = reopen(fd, (flags & O_ACCMODE) | O_DIRECT);
	if (own < 0)
		return own;
	v = calloc(1, sizeof *v);
	if (v == NULL) {
		close(own);
		return -ENOMEM;
	}
	v->src.ops = &device_ops;
	v->src.bytes = bytes;
	atomic_init(&v->src.refs, 1);
	v->fd = v->direct = own;
	v->device = S_ISBLK(st.st_mode);
	*readonly = (flags & O_ACCMODE) == O_RDONLY;
	*src = &v->src;
	return 0;
}
