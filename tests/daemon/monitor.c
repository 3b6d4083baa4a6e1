/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * monitor.c: a virtual machine monitor at work that knows what its guest's memory has to be, whatever becomes of the daemon that has it.
 *
 *	monitor make FILE PAGES SEED			what a machine was snapshotted to
 *	monitor handoff SOCKET PAGES SECONDS SEED	memory that has something in it already; comes again now and then
 *	monitor full SOCKET PAGES SECONDS SEED		memory that is there, all of it
 *	monitor firecracker SOCKET PAGES SECONDS SEED	memory that comes from such a file
 *	monitor forgetful SOCKET PAGES SECONDS SEED	the same, and its own copy of the userfaultfd is closed
 *
 * Two threads have every other block of pages each, and note a version a page: how it was in the beginning, how often it was written, or removed.  At random: read and compare, write,
 * remove (madvise(), which the userfaultfd tells of) and compare.  In the end all pages are compared.  Prints what it did; exit status 0: all of it was as it had
 * to be, 1: it was not, 2: a call failed, 77: there is no userfaultfd.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PAGE ((size_t)4096)
#define WORDS (PAGE / sizeof(uint64_t))
#define BLOCK ((size_t)16) /* pages */
#define THREADS 2u
#define REMOVED 0u /* versions; and what was never there */
#define FIRST 1u
#define ANSWER_S 30

static uint64_t seed;
static size_t npages;
static char *memory;
static uint32_t *version;
static atomic_bool over;
static atomic_uint_fast64_t checked, wrote, removed, again;

static uint64_t
mix(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static void __attribute__((noreturn)) die(const char *what)
{
	fprintf(stderr, "monitor %d: %s: %s\n", (int)getpid(), what, strerror(errno));
	exit(2);
}

/* One page in two can be compressed. */
static uint64_t
word_of(size_t page, uint32_t v, size_t i)
{
	const uint64_t x = mix(seed ^ (uint64_t)page << 32 ^ v);

	return v == REMOVED ? 0 : mix(x + (x % 2 == 0 ? i : i / 16));
}

static void
fill(size_t page, uint32_t v)
{
	uint64_t *const w = (uint64_t *)(void *)(memory + page * PAGE);

	for (size_t i = 0; i < WORDS; i++)
		w[i] = word_of(page, v, i);
}

static void
check(size_t page, const char *when)
{
	const uint64_t *const w = (const uint64_t *)(const void *)(memory + page * PAGE);

	for (size_t i = 0; i < WORDS; i++) {
		const uint64_t is = w[i], want = word_of(page, version[page], i);

		if (is == want)
			continue;
		fprintf(stderr,
			"monitor %d: page %zu, version %u, word %zu is %#" PRIx64
			" and not %#" PRIx64 " (%s)\n",
			(int)getpid(), page, version[page], i, is, want, when);
		exit(1);
	}
	atomic_fetch_add(&checked, 1);
}

static void *
work(void *arg)
{
	const size_t mine = (size_t)(uintptr_t)arg;
	uint64_t r = mix(seed ^ mine);
	uint32_t next = FIRST;

	while (!atomic_load(&over)) {
		const size_t block = (r >> 8) % (npages / BLOCK / THREADS) * THREADS + mine;
		const size_t first = block * BLOCK + (r >> 40) % BLOCK;
		size_t n = 1 + (r >> 50) % (BLOCK - first % BLOCK);

		switch (r % 16) {
		case 0:
			if (madvise(memory + first * PAGE, n * PAGE, MADV_REMOVE) < 0)
				die("madvise");
			for (size_t i = first; i < first + n; i++)
				version[i] = REMOVED;
			atomic_fetch_add(&removed, n);
			check(first, "removed just now");
			break;
		case 1:
		case 2:
		case 3:
		case 4:
		case 5:
			for (; n > 0; n--) {
				version[first + n - 1] = ++next;
				fill(first + n - 1, next);
			}
			atomic_fetch_add(&wrote, 1);
			break;
		default:
			check(first, "at work");
		}
		r = mix(r);
	}
	return NULL;
}

static int
open_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_MISSING_SHMEM |
					      UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
					      UFFD_FEATURE_EVENT_REMOVE };
	const int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0) {
		printf("skip: userfaultfd: %s\n", strerror(errno));
		exit(77);
	}
	return fd;
}

static int
connect_to(const char *path)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	const struct timeval limit = { .tv_sec = ANSWER_S };
	const int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof sun.sun_path) {
		errno = ENAMETOOLONG;
		die(path);
	}
	strcpy(sun.sun_path, path);
	if (s < 0 || setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) < 0 ||
	    connect(s, (struct sockaddr *)&sun, sizeof sun) < 0)
		die(path);
	return s;
}

static void
say(int s, const char *text, const int fd[], size_t n)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(2 * sizeof(int))];
	} u = { 0 };
	struct iovec iov = { .iov_base = (char *)(uintptr_t)text, .iov_len = strlen(text) };
	struct msghdr m = { .msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = u.buf,
			    .msg_controllen = CMSG_SPACE(n * sizeof(int)) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(n * sizeof(int));
	memcpy(CMSG_DATA(c), fd, n * sizeof(int));
	if (sendmsg(s, &m, MSG_NOSIGNAL) != (ssize_t)strlen(text))
		die("sendmsg");
}

/* The connection; -1, it ended before it was answered: the daemon may have been killed just then. */
static int
hand_over(const char *path, int uffd)
{
	const int s = connect_to(path);
	char text[512], answer;
	uint32_t len;

	snprintf(text, sizeof text,
		 "{\"type\":\"handoff\",\"version\":0,\"vmm_pid\":%d,\"mode\":\"WP\",\"regions\":"
		 "[{\"guest_phys_addr\":0,\"host_virt_addr\":%" PRIuPTR
		 ",\"size\":%zu,\"backing_file_offset\":0}]}",
		 (int)getpid(), (uintptr_t)memory, npages * PAGE);
	len = (uint32_t)strlen(text);
	if (send(s, &len, sizeof len, MSG_NOSIGNAL) == sizeof len) {
		say(s, text, &uffd, 1);
		if (recv(s, &answer, 1, 0) == 1)
			return s;
	}
	close(s);
	return -1;
}

static void
make_file(const char *path)
{
	const int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, (off_t)(npages * PAGE)) < 0)
		die(path);
	memory = mmap(NULL, npages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	for (size_t i = 0; i < npages; i++)
		fill(i, FIRST);
	if (msync(memory, npages * PAGE, MS_SYNC) < 0)
		die("msync");
}

static void
wait_until(const struct timespec *end, const char *path, int uffd, bool handoff)
{
	uint64_t r = mix(~seed);
	struct timespec now;

	for (;;) {
		const struct timespec some = { .tv_nsec = (long)(50 + r % 400) * 1000000 };

		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec > end->tv_sec ||
		    (now.tv_sec == end->tv_sec && now.tv_nsec >= end->tv_nsec))
			return;
		nanosleep(&some, NULL);
		if (handoff) {
			const int s = hand_over(path, uffd);

			if (s >= 0)
				close(s);
			atomic_fetch_add(&again, s >= 0);
		}
		r = mix(r);
	}
}

int
main(int argc, char **argv)
{
	const bool make = argc == 5 && strcmp(argv[1], "make") == 0;
	const bool handoff = argc == 6 && strcmp(argv[1], "handoff") == 0;
	const bool full = argc == 6 && strcmp(argv[1], "full") == 0;
	const bool forgetful = argc == 6 && strcmp(argv[1], "forgetful") == 0;
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING |
					       UFFDIO_REGISTER_MODE_WP };
	pthread_t thread[THREADS];
	struct timespec end;
	char text[256];
	int fd[2], s;

	if (!make && !handoff && !full && !forgetful &&
	    (argc != 6 || strcmp(argv[1], "firecracker") != 0)) {
		fprintf(stderr,
			"monitor make FILE PAGES SEED\n"
			"monitor handoff|full|firecracker|forgetful SOCKET PAGES SECONDS SEED\n");
		return 2;
	}
	npages = strtoul(argv[3], NULL, 0) / (BLOCK * THREADS) * (BLOCK * THREADS);
	seed = strtoull(argv[argc - 1], NULL, 0);
	if (make) {
		make_file(argv[2]);
		return 0;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += (time_t)strtoul(argv[4], NULL, 0);
	fd[0] = open_uffd();
	fd[1] = memfd_create("guest", MFD_CLOEXEC);
	version = calloc(npages, sizeof version[0]);
	if (fd[1] < 0 || version == NULL || ftruncate(fd[1], (off_t)(npages * PAGE)) < 0)
		die("memfd");
	memory = mmap(NULL, npages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd[1], 0);
	if (memory == MAP_FAILED)
		die("mmap");
	/* A machine is restored, or has run for a while. */
	for (size_t i = 0; i < npages; i++) {
		version[i] = !handoff || i % 5 == 0 ? FIRST : REMOVED;
		if (full || (handoff && i % 5 == 0))
			fill(i, FIRST);
	}
	reg.range.start = (uintptr_t)memory;
	reg.range.len = npages * PAGE;
	if (ioctl(fd[0], UFFDIO_REGISTER, &reg) < 0)
		die("UFFDIO_REGISTER");
	if (handoff || full) {
		while ((s = hand_over(argv[2], fd[0])) < 0)
			;
	} else {
		snprintf(text, sizeof text,
			 "[{\"base_host_virt_addr\":%" PRIuPTR
			 ",\"size\":%zu,\"offset\":0,\"page_size\":4096}]",
			 (uintptr_t)memory, npages * PAGE);
		s = connect_to(argv[2]);
		say(s, text, fd, 2);
	}
	check(npages - 1, "the first");
	if (forgetful && close(fd[0]) < 0)
		die("close");
	printf("there\n");
	for (uintptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&thread[i], NULL, work, (void *)i) != 0)
			die("pthread_create");
	wait_until(&end, argv[2], fd[0], handoff);
	atomic_store(&over, true);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	for (size_t i = 0; i < npages; i++)
		check(i, "in the end");
	printf("%" PRIu64 " pages compared, %" PRIu64 " times written, %" PRIu64
	       " removed, handed over %" PRIu64 " times more\n",
	       atomic_load(&checked), atomic_load(&wrote), atomic_load(&removed),
	       atomic_load(&again));
	close(s);
	return 0;
}
