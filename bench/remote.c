/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * remote.c: programs whose pager is in another process: what a fault costs across processes, and what it takes to connect.
 *
 * The server is a child of the one that measures.  The floor shares a memfd with it: poll(2), read(2), a first touch of the page through its own
 * mapping, UFFDIO_CONTINUE.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "bench.h"
#include "pmap/uffd_abi.h"
#include "serve.h"

#define CONNECTS 200

static void
serve_floor(int uffd, unsigned char *own, const unsigned char *base)
{
	struct uffd_msg msg;

	for (;;) {
		struct pollfd pfd = { .fd = uffd, .events = POLLIN };
		struct uffdio_continue in = { .range.len = PAGE };

		if (poll(&pfd, 1, -1) < 0 || read(uffd, &msg, sizeof msg) != sizeof msg)
			continue;
		in.range.start = msg.arg.pagefault.address & ~(__u64)(PAGE - 1);
		*(volatile unsigned char *)(own + (in.range.start - (uintptr_t)base)) = 0;
		if (ioctl(uffd, UFFDIO_CONTINUE, &in) < 0)
			job_fail("UFFDIO_CONTINUE: %s", strerror(errno));
	}
}

void
floor_remote(const void *arg)
{
	enum place where = *(const enum place *)arg;
	const size_t npages = bench.touches * 4;
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING |
					       UFFDIO_REGISTER_MODE_MINOR };
	const int file = memfd_create("floor", MFD_CLOEXEC);
	unsigned char *base, *own;
	char prefix[48];
	pid_t pid;
	int uffd;

	if (file < 0 || ftruncate(file, (off_t)(npages * PAGE)) < 0)
		job_fail("memfd: %s", strerror(errno));
	base = mmap(NULL, npages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	own = mmap(NULL, npages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (base == MAP_FAILED || own == MAP_FAILED)
		job_fail("mmap: %s", strerror(errno));
	uffd = floor_uffd(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM);
	reg.range.start = (uintptr_t)base;
	reg.range.len = npages * PAGE;
	if (ioctl(uffd, UFFDIO_REGISTER, &reg) < 0)
		job_skip("UFFDIO_REGISTER of shared memory: %s", strerror(errno));
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		place_service(where);
		serve_floor(uffd, own, base);
	}
	place_faulter(where);
	snprintf(prefix, sizeof prefix, "floor.remote_zero.%s", place_name[where]);
	latency_measure(base, random_order(npages), bench.touches, true, prefix);
	kill(pid, SIGKILL);
}

/* The server, on a socket in the work directory; returns its process. */
static pid_t
start(const char *path, size_t limit, enum place where)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	const struct serve_limits limits = { .regions = 1000,
					     .objects = 1000,
					     .mapped = UINT64_MAX };
	const int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	struct up_config cfg = { .memory_limit = limit, .service_threads = 1 };
	struct up_runtime *rt;
	pid_t pid;

	if (strlen(path) >= sizeof sun.sun_path)
		job_skip("the work directory's path is too long for a socket");
	strcpy(sun.sun_path, path);
	unlink(path);
	if (bind(listener, (struct sockaddr *)&sun, sizeof sun) < 0 || listen(listener, 64) < 0)
		job_fail("%s: %s", path, strerror(errno));
	pid = fork();
	if (pid != 0) {
		close(listener);
		return pid;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	place_service(where);
	rt = ours_open(&cfg);
	if (serve_start(rt, NULL, NULL) < 0)
		job_fail("serve_start: %s", ours_log());
	for (;;) {
		const int sock = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		uint64_t id;

		if (sock >= 0 && serve_accept(rt, sock, &limits, &id) < 0)
			job_fail("serve_accept: %s", ours_log());
	}
}

static struct up_runtime *
must_connect(const char *path)
{
	struct up_runtime *rt;
	const int r = up_runtime_connect(&rt, path, NULL);

	if (r < 0)
		job_fail("up_runtime_connect: %s", strerror(-r));
	return rt;
}

void
ours_remote(const void *arg)
{
	enum place where = *(const enum place *)arg;
	const size_t npages = bench.touches * 4;
	char path[PATH_MAX], prefix[48];
	struct up_runtime *rt;
	pid_t pid;
	void *p;

	work_path(path, "daemon.sock");
	pid = start(path, npages * PAGE + ((size_t)64 << 20), where);
	place_faulter(where);
	rt = must_connect(path);
	if (up_map(rt, NULL, npages * PAGE, PROT_READ | PROT_WRITE, UP_PRIVATE, NULL, 0, &p) < 0 ||
	    up_advise(rt, p, npages * PAGE, UP_ADVICE_RANDOM) < 0)
		job_fail("up_map of a connected runtime");
	snprintf(prefix, sizeof prefix, "ours.remote_zero.%s", place_name[where]);
	latency_measure(p, random_order(npages), bench.touches, true, prefix);
	latency_faults(rt, UP_FAULT_ZERO, 0, prefix);
	if (where == PLACE_UNPINNED) {
		for (unsigned i = 0; i < CONNECTS; i++) {
			const uint64_t t = bench_now();

			rt = must_connect(path);
			bench.ns[i] = (uint32_t)(bench_now() - t);
			up_runtime_destroy(rt);
		}
		job_quantiles("remote.attach", CONNECTS);
	}
	kill(pid, SIGKILL);
	unlink(path);
}
