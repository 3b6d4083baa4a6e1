/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * mmap_file.c: a mapped file in a cgroup of the same size: what programs do that have no pager.
 *
 * A pattern that writes ends with msync(), inside the clock: unlike swap, a file is there to be
 * kept, and without it the figure would leave out whatever is still dirty.  The file's blocks are
 * reserved beforehand, which is in its favour.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"

int
mapped_file(const char *name)
{
	char path[PATH_MAX];
	int fd, r;

	work_path(path, name);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		job_fail("%s: %s", path, strerror(errno));
	unlink(path); /* its page cache goes with the last descriptor */
	r = posix_fallocate(fd, 0, (off_t)(bench.scale.pages * PAGE));
	if (r != 0)
		job_fail("%s: %s", path, strerror(r));
	return fd;
}

/*
 * The best that it can be told.  The kernel knows one position to read ahead from for the whole file, and reads as far as the
 * disk's read_ahead_kb says: where four times twice that does not fit, four streams throw away what the others
 * read, and a page takes milliseconds (8 MiB, in 16 MiB).
 */
static int
streams_advice(void)
{
	char text[16];

	if (!read_line(host.read_ahead_path, text, sizeof text))
		return MADV_NORMAL;
	return strtoul(text, NULL, 10) * 1024 * 8 > bench.scale.memory ? MADV_RANDOM : MADV_NORMAL;
}

static void
advise(void *ctx, enum pattern p)
{
	if (bench.advice)
		madvise(ctx, bench.scale.pages * PAGE,
			p == STREAMS4 ? streams_advice() : pattern_advice(p));
}

static void
sync_all(void *ctx)
{
	if (msync(ctx, bench.scale.pages * PAGE, MS_SYNC) < 0)
		job_fail("msync: %s", strerror(errno));
}

void
mmap_patterns(const void *arg)
{
	static const struct pattern_ops ops = { .advise = advise, .sync = sync_all };
	const struct race *race = arg;
	void *p;
	int fd;

	patterns_prepare(race->threads);
	cgroup_enter();
	fd = mapped_file("mmap.dat");
	p = mmap(NULL, bench.scale.pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		job_fail("mmap: %s", strerror(errno));
	patterns_run(race, p, &ops, p);
	cgroup_peak(race->who);
}
