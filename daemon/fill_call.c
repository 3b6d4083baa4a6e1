/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fill_call.c: the calls of a userfaultfd that is somebody else's, and what their errors mean.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "fill.h"
#include "pmap/uffd_abi.h"

int
foreign_info(int fd, struct foreign_info *info)
{
	char path[64], text[1024];
	unsigned long long api, features, ioctls;
	const char *at;
	ssize_t n;
	int file;

	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return -errno;
	n = read(file, text, sizeof text - 1);
	close(file);
	if (n <= 0)
		return -EINVAL;
	text[n] = '\0';
	at = strstr(text, "\npending:");
	if (at == NULL || sscanf(at, " pending: %u total: %u API: %llx:%llx:%llx", &info->pending,
				 &info->total, &api, &features, &ioctls) != 5)
		return -EINVAL;
	info->features = features;
	return 0;
}

/*
 * What the kernel has said, in errno and in the field that it has (on EAGAIN, before 6.15, not) written.  A count that is positive is
 * progress.
 */
static int
result(int r, int64_t field, uint64_t len, uint64_t *done)
{
	const int err = errno;

	*done = r == 0 ? len : field > 0 ? MIN((uint64_t)field, len) : 0;
	if (r == 0)
		return 0;
	return field < 0 && field > -4096 ? (int)field : -err;
}

int
foreign_copy(int fd, uint64_t to, const void *from, uint64_t len, bool protect, uint64_t *done)
{
	struct uffdio_copy c = {
		.dst = to,
		.src = (uintptr_t)from,
		.len = len,
		.mode = protect ? UFFDIO_COPY_MODE_WP : 0,
	};
	const int r = ioctl(fd, UFFDIO_COPY, &c);

	return result(r, c.copy, len, done);
}

int
foreign_zero(int fd, uint64_t to, uint64_t len, uint64_t *done)
{
	struct uffdio_zeropage z = { .range = { to, len } };
	const int r = ioctl(fd, UFFDIO_ZEROPAGE, &z);

	return result(r, z.zeropage, len, done);
}

int
foreign_poison(int fd, uint64_t to, uint64_t len, uint64_t *done)
{
	struct uffdio_poison p = { .range = { to, len } };
	const int r = ioctl(fd, UFFDIO_POISON, &p);

	return result(r, p.updated, len, done);
}

int
foreign_unprotect(int fd, uint64_t at, uint64_t len)
{
	struct uffdio_writeprotect wp = { .range = { at, len } };

	return ioctl(fd, UFFDIO_WRITEPROTECT, &wp) == 0 ? 0 : -errno;
}

int
foreign_wake(int fd, uint64_t at, uint64_t len)
{
	struct uffdio_range range = { at, len };

	return ioctl(fd, UFFDIO_WAKE, &range) == 0 ? 0 : -errno;
}

void
foreign_unregister(int fd, uint64_t at, uint64_t len)
{
	struct uffdio_range range = { at, len };

	ioctl(fd, UFFDIO_UNREGISTER, &range);
	/* A thread that faulted meanwhile can be left asleep. */
	ioctl(fd, UFFDIO_WAKE, &range);
}

bool
foreign_alive(int fd)
{
	static const char page[2 * PAGE_SIZE];
	uint64_t done;
	int err = foreign_unprotect(fd, FOREIGN_LOWEST, PAGE_SIZE);

	/* Before Linux 5.7. */
	if (err == -EINVAL || err == -ENOTTY)
		err = foreign_copy(fd, FOREIGN_LOWEST, page, PAGE_SIZE, false, &done);
	return err != -ESRCH;
}
