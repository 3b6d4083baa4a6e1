/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * filled.c: memory of a microVM that a daemon fills from its snapshot: what a fault costs, and what it is worth to know which pages it touches in the beginning.
 *
 * The server is a child of the one that measures, whose memory it is.  The floor does poll(2), read(2), UFFDIO_COPY out of the same file, mapped.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"
#include "fill.h"
#include "pmap/uffd_abi.h"

#define SNAPSHOT_PAGES CHECKED_PAGES
#define RESTORE_TOUCHES ((size_t)4096) /* of these, here and there */

struct machine {
	unsigned char *base;
	size_t npages;
	int uffd;
	char path[PATH_MAX]; /* of its snapshot */
	int ask; /* a byte: what is done with it is over; the answer: how many faults there were */
	pid_t server;
};

static void
logged(void *ctx, enum up_log_level level, const char *line)
{
	(void)ctx;
	if (level <= UP_LOG_WARNING)
		job_note(line);
}

static void
ignore(void *ctx, enum fill_event ev)
{
	(void)ctx;
	(void)ev;
}

/* A snapshot of so many pages, all of them different, on the disk. */
static void
make_snapshot(struct machine *m)
{
	unsigned char *map;
	int fd;

	work_path(m->path, "snapshot");
	fd = open(m->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)(m->npages * PAGE)) < 0)
		job_fail("%s: %s", m->path, strerror(errno));
	map = mmap(NULL, m->npages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		job_fail("mmap: %s", strerror(errno));
	for (size_t i = 0; i < m->npages; i++)
		page_write(map + i * PAGE, i);
	if (fsync(fd) < 0)
		job_fail("%s: %s", m->path, strerror(errno));
	munmap(map, m->npages * PAGE);
	close(fd);
}

/* The snapshot is on the disk, and nowhere else. */
static void
cool(const struct machine *m)
{
	const int fd = open(m->path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
		job_fail("%s: %s", m->path, strerror(errno));
	close(fd);
}

/* Its memory, of which nothing is there. */
static void
power_on(struct machine *m)
{
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };

	m->base = mmap(NULL, m->npages * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (m->base == MAP_FAILED)
		job_fail("mmap: %s", strerror(errno));
	m->uffd = floor_uffd(UFFD_FEATURE_EVENT_REMOVE);
	reg.range.start = (uintptr_t)m->base;
	reg.range.len = m->npages * PAGE;
	if (ioctl(m->uffd, UFFDIO_REGISTER, &reg) < 0)
		job_fail("UFFDIO_REGISTER: %s", strerror(errno));
}

static void __attribute__((noreturn)) serve_bare(const struct machine *m)
{
	const int fd = open(m->path, O_RDONLY | O_CLOEXEC);
	const unsigned char *map =
		mmap(NULL, m->npages * PAGE, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
	struct uffd_msg msg;

	if (map == MAP_FAILED)
		job_fail("%s: %s", m->path, strerror(errno));
	for (;;) {
		struct pollfd pfd = { .fd = m->uffd, .events = POLLIN };
		struct uffdio_copy copy = { .len = PAGE };

		if (poll(&pfd, 1, -1) < 0 || read(m->uffd, &msg, sizeof msg) != sizeof msg)
			continue;
		copy.dst = msg.arg.pagefault.address & ~(__u64)(PAGE - 1);
		copy.src = (uintptr_t)(map + (copy.dst - (uintptr_t)m->base));
		if (ioctl(m->uffd, UFFDIO_COPY, &copy) < 0)
			job_fail("UFFDIO_COPY: %s", strerror(errno));
	}
}

static void __attribute__((noreturn))
serve_ours(const struct machine *m, int told, bool working_set)
{
	const struct logger log = { .fn = logged };
	struct session_counts c;
	char byte;
	struct memfile *source = NULL;
	struct fill *fill = NULL;
	int r = memfile_open(&source, m->path, &log);
	const struct fill_config cfg = {
		.name = "machine",
		.log = log,
		.notify = ignore,
		.pidfd = (int)syscall(SYS_pidfd_open, getppid(), 0),
		.working_set = working_set ? source : NULL,
		.record_ms = 100000,
		.socket = -1,
	};
	const struct fill_range range = {
		.start = (uintptr_t)m->base,
		.len = m->npages * PAGE,
		.page_size = PAGE,
		.source = source,
	};

	if (r == 0)
		r = fill_create(&fill, &cfg);
	if (r == 0)
		r = fill_add(fill, m->uffd, &range, 1, 0, 0);
	if (r < 0)
		job_fail("fill: %s", strerror(-r));
	/* Or it is killed. */
	if (read(told, &byte, 1) != 1)
		_exit(1);
	fill_counts(fill, &c);
	/* What it has touched is written down by then. */
	fill_stop(fill, FILL_END_FILL, 0);
	fill_destroy(fill);
	memfile_unref(source);
	_exit(write(told, &c.faults[UP_FAULT_MAJOR], sizeof c.faults[0]) != sizeof c.faults[0]);
}

enum how { BARE, PLAIN, RECORDED };

static void
serve(struct machine *m, enum how how, enum place where)
{
	int sock[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock) < 0)
		job_fail("socketpair: %s", strerror(errno));
	m->ask = sock[0];
	m->server = fork();
	if (m->server < 0)
		job_fail("fork: %s", strerror(errno));
	close(sock[m->server > 0]);
	if (m->server > 0)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	place_service(where);
	if (how == BARE)
		serve_bare(m);
	serve_ours(m, sock[1], how == RECORDED);
}

static void
power_off(struct machine *m)
{
	kill(m->server, SIGKILL);
	waitpid(m->server, NULL, 0);
	munmap(m->base, m->npages * PAGE);
	close(m->ask);
	close(m->uffd);
}

static void
measure(enum place where, enum how how)
{
	struct machine m = { .npages = bench.touches * 4 };
	char prefix[48];

	make_snapshot(&m);
	power_on(&m);
	serve(&m, how, where);
	place_faulter(where);
	snprintf(prefix, sizeof prefix, "%s.fill_4k.%s", how == BARE ? "floor" : "ours",
		 place_name[where]);
	latency_measure(m.base, random_order(m.npages), bench.touches, false, prefix);
	power_off(&m);
	unlink(m.path);
}

void
floor_filled(const void *arg)
{
	measure(*(const enum place *)arg, BARE);
}

void
ours_filled(const void *arg)
{
	measure(*(const enum place *)arg, PLAIN);
}

/* One life of a machine: how long it takes to read what it reads in the beginning, and how often it waited. */
static void
restore(struct machine *m, const uint32_t *order, const char *what)
{
	uint64_t t, faults;

	cool(m);
	power_on(m);
	serve(m, RECORDED, PLACE_UNPINNED);
	t = bench_now();
	for (size_t i = 0; i < RESTORE_TOUCHES; i++)
		page_check_all(m->base + (size_t)order[i] * PAGE, order[i]);
	t = bench_now() - t;
	if (write(m->ask, "", 1) != 1 || read(m->ask, &faults, sizeof faults) != sizeof faults)
		job_fail("the server has ended");
	job_value("ms", (double)t / 1e6, "restore.%s.ms", what);
	job_value("faults", (double)faults, "restore.%s.faults", what);
	power_off(m);
}

void
ours_restore(const void *arg)
{
	struct machine m = { .npages = SNAPSHOT_PAGES };
	const uint32_t *order = random_order(m.npages);
	char record[PATH_MAX + 4];

	(void)arg;
	make_snapshot(&m);
	snprintf(record, sizeof record, "%s.ws", m.path);
	unlink(record);
	restore(&m, order, "first");
	if (access(record, R_OK) < 0)
		job_fail("%s: %s", record, strerror(errno));
	restore(&m, order, "again");
	unlink(record);
	unlink(m.path);
}
