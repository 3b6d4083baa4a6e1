/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * disk.c: the disk alone, before each round: if this moves, all the rest moves with it.
 *
 * pread() and pwrite() with O_DIRECT, one at a time; several at a time are fio's (program.c), where it is installed.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"

#define CHUNK ((size_t)256 << 10)

static double
transfer(int fd, unsigned char *buf, size_t size, bool write_it)
{
	uint64_t t = bench_now();
	ssize_t n;

	for (size_t at = 0; at < size; at += CHUNK) {
		n = write_it ? pwrite(fd, buf, CHUNK, (off_t)at) : pread(fd, buf, CHUNK, (off_t)at);
		if (n != (ssize_t)CHUNK)
			job_fail("disk: %s", n < 0 ? strerror(errno) : "short transfer");
	}
	return (double)size / 1048576 / ((double)(bench_now() - t) / 1e9);
}

void
disk_raw(const void *arg)
{
	const size_t size = (size_t)(bench.quick ? 64 : 256) << 20, reads = bench.touches;
	unsigned char *buf = job_buffer(CHUNK);
	char path[PATH_MAX];
	uint64_t rng = bench.round, t;
	size_t at;
	int fd;

	(void)arg;
	work_path(path, "disk.dat");
	fd = open(path, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
	if (fd < 0)
		job_fail("%s with O_DIRECT: %s", path, strerror(errno));
	unlink(path);
	memcpy(buf, bench.pool[DATA_RANDOM], CHUNK);
	transfer(fd, buf, size, true); /* blocks are allocated in this one */
	if (fsync(fd) < 0)
		job_fail("fsync: %s", strerror(errno));
	job_value("MiB/s", transfer(fd, buf, size, true), "disk.write_256k");
	job_value("MiB/s", transfer(fd, buf, size, false), "disk.read_256k");
	for (size_t i = 0; i < reads; i++) {
		at = rng_below(&rng, size / PAGE) * PAGE;
		t = bench_now();
		if (pread(fd, buf, PAGE, (off_t)at) != (ssize_t)PAGE)
			job_fail("disk: %s", strerror(errno));
		bench.ns[i] = (uint32_t)(bench_now() - t);
	}
	job_quantiles("disk.read_4k", reads);
}
