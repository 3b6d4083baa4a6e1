/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * assassin.c: kills the daemon that it is linked into, just before or just after one of its system
 * calls.
 *
 * A signal from outside comes at any time, and most of that is spent in a few calls; this comes to
 * where something has been done and not noted, or noted and not done.
 *
 * Works with UFFD_PAGERD_ASSASSIN=SEED:BITS:FILE in the environment, as long as there is such a file.  A
 * daemon that has come to serve is killed at the N-th call from then on, N between 1 and 2 to the power
 * of BITS, small numbers as likely as large ones; one of eight at the N-th of all its calls, most of them
 * while it takes over from its predecessor, and no more than EARLY_MAX of them, since a guardian does not
 * start for ever what does not come to serve.  Who is killed, and where, is a line in the file.
 *
 * With UFFD_PAGERD_LOSES=SUFFIX what was kept under names with that end is lost.
 *
 * With UFFD_PAGERD_STICKS=FILE the thread of the name that is in that file comes back no more from its next call of poll(), accept4(), ioctl()
 * or io_uring_enter(); the file is gone then.  The keeper does so in poll() only, where it holds no lock: others would wait for it, and be taken for the one.
 *
 * A program beside which lies another file, named as it and ".other", is of another version; with ".broken" it ends before it serves.
 *
 * The calls are those that the linker has put behind wrappers (daemon/meson.build).  liburing's are
 * io_uring_enter().
 */
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define LINE 64u
#define EARLY_MAX 4u

static const char *file; /* NULL: nobody is killed */
static uint64_t number;	 /* the call */
static bool early, after;
static atomic_bool counts;
static atomic_uint_fast64_t ncalls;

static uint64_t
mix(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

/* There is a file beside the program's, as it is called now. */
static bool
beside(const char *suffix)
{
	char path[4096];
	const ssize_t n = readlink("/proc/self/exe", path, sizeof path - 16);

	if (n < 0)
		return false;
	snprintf(path + n, sizeof path - (size_t)n, "%s", suffix);
	return access(path, F_OK) == 0;
}

uint32_t __real_store_sizes(void);
uint32_t __wrap_store_sizes(void);
uint32_t
__wrap_store_sizes(void)
{
	return __real_store_sizes() + beside(".other");
}

/*
 * Before main(): the guardian's word is still in the environment, which is how a daemon is told from
 * the guardian.
 */
static void __attribute__((constructor)) hire(void)
{
	const char *const text = getenv("UFFD_PAGERD_ASSASSIN");
	char *end;
	uint64_t x, bits;

	if (getenv("UFFD_PAGERD_GUARDIAN") != NULL && beside(".broken"))
		_exit(EXIT_FAILURE);
	if (text == NULL || getenv("UFFD_PAGERD_GUARDIAN") == NULL)
		return;
	x = mix(strtoull(text, &end, 0) ^ (uint64_t)getpid() << 32);
	bits = *end == ':' ? strtoull(end + 1, &end, 10) : 0;
	if (*end != ':' || bits < 1 || bits > 32)
		abort();
	file = end + 1;
	number = 1 + (mix(x) & ((UINT64_C(1) << (1 + x % bits)) - 1));
	after = (x >> 32 & 1) != 0;
	early = (x >> 33 & 7) == 0;
	atomic_store(&counts, early);
}

/* It is finished here and now, and whatever its other threads do. */
static void
murder(const char *call, unsigned long which)
{
	const int fd = open(file, O_WRONLY | O_APPEND | O_CLOEXEC);
	char line[LINE + 1];
	struct stat st;

	/* Lines are of one length: their number is the file's. */
	snprintf(line, sizeof line, "%-5s %d %s %s %#lx, call %llu", early ? "early" : "late",
		 (int)getpid(), after ? "after" : "before", call, which,
		 (unsigned long long)number);
	if (fd < 0 || fstat(fd, &st) < 0)
		return;
	if (early) {
		char was[LINE];
		unsigned n = 0;
		const int all = open(file, O_RDONLY | O_CLOEXEC);

		while (read(all, was, LINE) == (ssize_t)LINE)
			n += memcmp(was, "early", 5) == 0;
		close(all);
		if (n >= EARLY_MAX) {
			close(fd);
			return;
		}
	}
	memset(line + strlen(line), ' ', LINE - strlen(line));
	line[LINE - 1] = '\n';
	if (write(fd, line, LINE) == (ssize_t)LINE)
		kill(getpid(), SIGKILL);
	for (;;)
		pause();
}

/* The thread that is to stick does, for good, if it is this one. */
static void
stick(bool idle)
{
	const char *const name = getenv("UFFD_PAGERD_STICKS");
	char wanted[16] = "", me[16] = "";
	int fd;

	if (name == NULL || (fd = open(name, O_RDONLY | O_CLOEXEC)) < 0)
		return;
	if (pread(fd, wanted, sizeof wanted - 1, 0) > 0 && prctl(PR_GET_NAME, me) == 0 &&
	    strcmp(wanted, me) == 0 && (idle || strcmp(me, "uffd-keeper") != 0) &&
	    unlink(name) == 0)
		for (;;)
			pause();
	close(fd);
}

/* Whether this call is the one. */
static bool
is_it(const char *call)
{
	if (strcmp(call, "accept4") == 0 || strcmp(call, "ioctl") == 0 ||
	    strcmp(call, "io_uring_submit_and_wait_timeout") == 0)
		stick(false);
	return file != NULL && atomic_load_explicit(&counts, memory_order_relaxed) &&
	       atomic_fetch_add(&ncalls, 1) + 1 == number;
}

#define WRAP(type, name, params, args, which)                  \
	type __real_##name params;                             \
	type __wrap_##name params;                             \
	type __wrap_##name params                              \
	{                                                      \
		const bool it = is_it(#name);                  \
		type r;                                        \
                                                               \
		if (it && !after)                              \
			murder(#name, (unsigned long)(which)); \
		r = __real_##name args;                        \
		if (it && after)                               \
			murder(#name, (unsigned long)(which)); \
		return r;                                      \
	}

WRAP(int, ioctl, (int fd, unsigned long op, void *arg), (fd, op, arg), op)
WRAP(int, fallocate64, (int fd, int mode, off_t at, off_t len), (fd, mode, at, len), mode)
WRAP(int, madvise, (void *p, size_t len, int advice), (p, len, advice), advice)
WRAP(int, accept4, (int fd, struct sockaddr *a, socklen_t *len, int flags), (fd, a, len, flags), fd)
WRAP(ssize_t, read, (int fd, void *p, size_t n), (fd, p, n), n)
WRAP(ssize_t, recvmsg, (int fd, struct msghdr *m, int flags), (fd, m, flags), flags)
WRAP(ssize_t, sendmsg, (int fd, const struct msghdr *m, int flags), (fd, m, flags), flags)
WRAP(ssize_t, pwrite64, (int fd, const void *p, size_t n, off_t at), (fd, p, n, at), n)
WRAP(ssize_t, pwritev64, (int fd, const struct iovec *v, int n, off_t at), (fd, v, n, at), n)
WRAP(ssize_t, preadv64, (int fd, const struct iovec *v, int n, off_t at), (fd, v, n, at), n)
WRAP(int, io_uring_submit, (struct io_uring * ring), (ring), 0)
WRAP(int, io_uring_submit_and_get_events, (struct io_uring * ring), (ring), 0)
WRAP(int, io_uring_submit_and_wait_timeout,
     (struct io_uring * ring, struct io_uring_cqe **cqe, unsigned n, struct __kernel_timespec *ts,
      sigset_t *mask),
     (ring, cqe, n, ts, mask), n)

/* Not one of those to be killed at: it is most of all calls, and comes where nothing is being done. */
int __real_poll(struct pollfd *pf, nfds_t n, int ms);
int __wrap_poll(struct pollfd *pf, nfds_t n, int ms);
int
__wrap_poll(struct pollfd *pf, nfds_t n, int ms)
{
	stick(true);
	return __real_poll(pf, n, ms);
}

void __real_kept_serves(void);
void __wrap_kept_serves(void);
void
__wrap_kept_serves(void)
{
	__real_kept_serves();
	atomic_store(&counts, true);
}

int __real_kept_take(void *unused, const char *name);
int __wrap_kept_take(void *unused, const char *name);
int
__wrap_kept_take(void *unused, const char *name)
{
	const char *const suffix = getenv("UFFD_PAGERD_LOSES");
	const int fd = __real_kept_take(unused, name);
	const size_t n = strlen(name), end = suffix != NULL ? strlen(suffix) : 0;

	if (suffix == NULL || n < end || strcmp(name + n - end, suffix) != 0)
		return fd;
	if (fd >= 0)
		close(fd);
	return -1;
}
