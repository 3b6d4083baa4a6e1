/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vnode.c: the file pager: pages of a file or block device, through the io_uring of the service that needs them.
 *
 * Files are read and written through the page cache, so that everyone else who has the file open sees what we
 * write back; devices with O_DIRECT, whose transfers are whole sectors.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pager/source.h"
#include "pager/vnode.h"

struct vnode {
	struct source src;
	int fd;	       /* (c) ours */
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
write_now(const struct vnode *v, const char *from, size_t len, uint64_t offset)
{
	int r = inside(v, offset, len, &len);

	while (r == 0 && len > 0) {
		const ssize_t n = pwrite(v->fd, from, len, (off_t)offset);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n == 0)
			return -EIO;
		if (n > 0) {
			from += n;
			offset += (uint64_t)n;
			len -= (size_t)n;
		}
	}
	return r;
}

static int
vnode_start(struct service *s, struct source *src, struct request *req, bool write)
{
	struct vnode *v = vnode_of(src);
	size_t len = source_length(src, req->index, req->n);
	int r = 0;

	req->io.elsewhere = true;
	req->io.ends = !write;
	req->io.fd = v->fd;
	req->io.offset = v->offset + (req->index << PAGE_SHIFT);
	if (write) {
		size_t in;

		r = inside(v, req->io.offset, len, &in);
		if (r < 0)
			return r;
		if (in < len && req->n > 1)
			return SOURCE_CUT_OFF; /* which of them is seen when they come one by one */
		len = in;
	}
	if (write && (len & PAGE_MASK) != 0) {
		/* A part of a page at the end: requests are of whole ones, and this is one page a file. */
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
	close(vnode_of(src)->fd);
	free(vnode_of(src));
}

static const struct source_ops file_ops = {
	.name = "file",
	.start = vnode_start,
	.write = vnode_write,
	.flush = vnode_flush,
	.ended = vnode_ended,
	.destroy = vnode_destroy,
};

static const struct source_ops device_ops = {
	.name = "device",
	.start = vnode_start,
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

int
vnode_file(int fd, uint64_t offset, uint64_t size, bool *readonly, struct source **src)
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
	v->src.ops = &file_ops;
	v->src.bytes = size;
	atomic_init(&v->src.refs, 1);
	v->offset = offset;
	*readonly = (flags & O_ACCMODE) == O_RDONLY;
	*src = &v->src;
	return 0;
}

int
vnode_device(int fd, bool *readonly, struct source **src)
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
	v->fd = own;
	v->device = S_ISBLK(st.st_mode);
	*readonly = (flags & O_ACCMODE) == O_RDONLY;
	*src = &v->src;
	return 0;
}
