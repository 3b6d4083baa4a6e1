/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * floor.c: the raw floor: what a fault costs when nothing is done but the bare minimum.
 *
 * One thread in poll(2), read(2), UFFDIO_COPY; for a swap-in one O_DIRECT pread(2) before the
 * copy; for a soft fault UFFDIO_MOVE instead, of a page from a staging area.  No map, no budget, no statistics, no second kind of event.  A service thread of any
 * pager pays at least this, so the distance to it is the price of the library.  Measured in the
 * faulting thread, around the touch: that is where a program waits.
 *
 * No spinning reader: it would be faster, and take a CPU away from the program.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bench.h"
#include "pmap/uffd_abi.h"

struct floor {
	int uffd;
	int file;	    /* -1: zero-fill */
	unsigned char *buf; /* one page, copied into the region */
	unsigned char *base;
	unsigned char *stage; /* page i of the region is moved from there; NULL: it is copied */
};

void
latency_measure(unsigned char *base, const uint32_t *order, size_t n, bool write,
		const char *prefix)
{
	volatile unsigned char *p;
	uint64_t t;

	for (size_t i = 0; i < n; i++) {
		p = base + order[i] * PAGE;
		t = bench_now();
		if (write)
			*p = 1;
		else
			(void)*p;
		bench.ns[i] = (uint32_t)(bench_now() - t);
	}
	job_quantiles(prefix, n);
}

uint32_t *
random_order(size_t n)
{
	uint32_t *order = malloc(n * sizeof *order), swap;
	uint64_t rng = mix64(bench.round);
	size_t j;

	if (order == NULL)
		job_fail("no memory");
	for (size_t i = 0; i < n; i++)
		order[i] = (uint32_t)i;
	for (size_t i = n - 1; i > 0; i--) {
		j = rng_below(&rng, i + 1);
		swap = order[i];
		order[i] = order[j];
		order[j] = swap;
	}
	return order;
}

int
floor_uffd(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), fd = -1;

	if (dev >= 0) {
		fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		close(dev);
	}
	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		job_skip("userfaultfd: %s", strerror(errno));
	if (ioctl(fd, UFFDIO_API, &api) < 0)
		job_fail("UFFDIO_API: %s", strerror(errno));
	return fd;
}

static void *
serve(void *arg)
{
	struct floor *fl = arg;
	struct uffd_msg msg;

	for (;;) {
		struct pollfd pfd = { .fd = fl->uffd, .events = POLLIN };
		struct uffdio_copy copy = { .src = (uintptr_t)fl->buf, .len = PAGE };
		struct uffdio_move move = { .len = PAGE };

		if (poll(&pfd, 1, -1) < 0 || read(fl->uffd, &msg, sizeof msg) != sizeof msg)
			continue;
		copy.dst = msg.arg.pagefault.address & ~(__u64)(PAGE - 1);
		if (fl->stage != NULL) {
			move.dst = copy.dst;
			move.src = (uintptr_t)fl->stage + (copy.dst - (uintptr_t)fl->base);
			if (ioctl(fl->uffd, UFFDIO_MOVE, &move) < 0)
				job_fail("UFFDIO_MOVE: %s", strerror(errno));
			continue;
		}
		if (fl->file >= 0) {
			off_t at = (off_t)(copy.dst - (uintptr_t)fl->base);

			if (pread(fl->file, fl->buf, PAGE, at) != (ssize_t)PAGE)
				job_fail("pread of the floor's file: %s", strerror(errno));
		}
		if (ioctl(fl->uffd, UFFDIO_COPY, &copy) < 0)
			job_fail("UFFDIO_COPY: %s", strerror(errno));
	}
	return NULL;
}

static unsigned char *
staging_area(size_t npages)
{
	void *p = mmap(NULL, npages * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED || madvise(p, npages * PAGE, MADV_NOHUGEPAGE) < 0)
		job_fail("mmap: %s", strerror(errno));
	return memset(p, 1, npages * PAGE);
}

/* The thread ends with the process. */
static void
floor_start(struct floor *fl, size_t npages, enum place where, bool staged)
{
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	pthread_t thread;
	void *p = mmap(NULL, npages * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED || madvise(p, npages * PAGE, MADV_NOHUGEPAGE) < 0)
		job_fail("mmap: %s", strerror(errno));
	fl->base = p;
	fl->buf = job_buffer(PAGE);
	if (staged)
		fl->stage = staging_area(npages);
	fl->uffd = floor_uffd(fl->stage != NULL ? UFFD_FEATURE_MOVE : 0);
	reg.range.start = (uintptr_t)p;
	reg.range.len = npages * PAGE;
	if (ioctl(fl->uffd, UFFDIO_REGISTER, &reg) < 0)
		job_fail("UFFDIO_REGISTER: %s", strerror(errno));
	place_service(where);
	if (pthread_create(&thread, NULL, serve, fl) != 0)
		job_fail("pthread_create");
	place_faulter(where);
}

void
floor_zero(const void *arg)
{
	enum place where = *(const enum place *)arg;
	size_t npages = bench.touches * 4;
	struct floor fl = { .file = -1 };
	char prefix[48];

	floor_start(&fl, npages, where, false);
	snprintf(prefix, sizeof prefix, "floor.zero.%s", place_name[where]);
	latency_measure(fl.base, random_order(npages), bench.touches, true, prefix);
}

void
floor_soft(const void *arg)
{
	enum place where = *(const enum place *)arg;
	size_t npages = bench.touches * 4;
	struct floor fl = { .file = -1 };
	char prefix[48];

	floor_start(&fl, npages, where, true);
	snprintf(prefix, sizeof prefix, "floor.soft.%s", place_name[where]);
	latency_measure(fl.base, random_order(npages), bench.touches, true, prefix);
}

/*
 * Written anew each time: the library swapped to this file in between, and a file of
 * unwritten extents would be read without going to the disk.
 */
static int
floor_file(void)
{
	const size_t chunk = 64 * PAGE;
	unsigned char *buf = job_buffer(chunk);
	char path[PATH_MAX];
	int fd;

	work_path(path, FLOOR_FILE);
	fd = open(path, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
	if (fd < 0)
		job_fail("%s with O_DIRECT: %s", path, strerror(errno));
	for (size_t at = 0; at < FLOOR_PAGES * PAGE; at += chunk) {
		for (size_t i = 0; i < chunk; i += PAGE)
			page_write(buf + i, (at + i) / PAGE);
		if (pwrite(fd, buf, chunk, (off_t)at) != (ssize_t)chunk)
			job_fail("write of %s: %s", path, strerror(errno));
	}
	if (fsync(fd) < 0)
		job_fail("fsync of %s: %s", path, strerror(errno));
	return fd;
}

void
floor_major(const void *arg)
{
	enum place where = *(const enum place *)arg;
	struct floor fl = { .file = floor_file() };
	uint32_t *order;
	char prefix[48];

	floor_start(&fl, FLOOR_PAGES, where, false);
	order = random_order(FLOOR_PAGES);
	snprintf(prefix, sizeof prefix, "floor.major.%s", place_name[where]);
	latency_measure(fl.base, order, bench.touches, false, prefix);
	for (size_t i = 0; i < bench.touches; i += 64)
		page_check_all(fl.base + order[i] * PAGE, order[i]);
}
