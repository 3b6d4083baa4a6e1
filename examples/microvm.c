/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * microvm.c: what Firecracker does with memory that it restores from a snapshot, and nothing else of it.
 *
 *	microvm --make FILE MIB       a file whose pages all differ: the memory of a machine that was snapshotted
 *	microvm SOCKET FILE           restored by who listens at SOCKET: uffd-pagerd with that FILE as source
 *	microvm --hold SOCKET FILE    go on until the standard input ends
 *
 * It maps memory, puts it behind a userfaultfd, and gives that away, with a line of JSON that says where the memory is.  From then on
 * whatever is touched comes from the other side.  All pages are read, in an order that no read-ahead likes, and compared with FILE;
 * then each is overwritten, as a guest does, and compared again: what was filled must not be filled once more.
 *
 * It is here to show the protocol and to be a client of tests: this library is not needed on this side.
 *
 * Exit status: 0 every byte was right, 1 not so or something can not be had here, 2 bad usage.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef USERFAULTFD_IOC_NEW /* Linux 6.1 */
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

#define PAGE ((size_t)4096)
#define WORDS (PAGE / sizeof(uint64_t))
#define STRIDE 7919   /* pages from one to the next; a prime */
#define PATIENCE_S 30 /* a refused handshake has no answer: pages then never come */

static _Noreturn void __attribute__((format(printf, 1, 2))) die(const char *fmt, ...)
{
	va_list ap;

	fputs("microvm: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(1);
}

static int
make(const char *path, const char *mib)
{
	char *end;
	const unsigned long n = strtoul(mib, &end, 10);
	uint64_t page[WORDS];
	FILE *f;

	if (*end != '\0' || n < 1 || n > 1 << 20)
		return 2;
	f = fopen(path, "we");
	if (f == NULL)
		die("%s: %s", path, strerror(errno));
	for (uint64_t p = 0; p < ((uint64_t)n << 20) / PAGE; p++) {
		for (size_t i = 0; i < WORDS; i++)
			page[i] = (p * WORDS + i + 1) * UINT64_C(0x9e3779b97f4a7c15);
		if (fwrite(page, sizeof page, 1, f) != 1)
			die("%s: %s", path, strerror(errno));
	}
	if (fclose(f) != 0)
		die("%s: %s", path, strerror(errno));
	return 0;
}

static int
open_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0) { /* not for us; there is a file for that */
		const int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

		if (dev >= 0) {
			fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
			close(dev);
		}
	}
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
		die("userfaultfd: %s", strerror(errno));
	return fd;
}

/* A page that does not come: the thread is woken by the signal alone. */
static void
on_alarm(int sig)
{
	static const char msg[] =
		"microvm: a page has not come: its log says why, if the other side refused us\n";

	(void)sig;
	if (write(STDERR_FILENO, msg, sizeof msg - 1) < 0)
		_exit(1);
	_exit(1);
}

/* All that is ever sent: one array of one region, and the userfaultfd beside it. */
static int
shake_hands(const char *path, const void *base, size_t size, int uffd)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	char text[200];
	struct iovec iov = { .iov_base = text };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof control };
	const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	if (strlen(path) >= sizeof sun.sun_path)
		die("%s: too long for a socket", path);
	strcpy(sun.sun_path, path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&sun, sizeof sun) < 0)
		die("%s: %s", path, strerror(errno));
	iov.iov_len = (size_t)snprintf(text, sizeof text,
				       "[{\"base_host_virt_addr\":%" PRIuPTR
				       ",\"size\":%zu,\"offset\":0,\"page_size\":%zu,"
				       "\"page_size_kib\":%zu}]",
				       (uintptr_t)base, size, PAGE, PAGE);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &uffd, sizeof uffd);
	if (sendmsg(fd, &msg, MSG_NOSIGNAL) != (ssize_t)iov.iov_len)
		die("%s: %s", path, strerror(errno));
	return fd;
}

/* One pass.  A page has to be what the file has, every word of it xored with `now`; then it is written as with `next`. */
static size_t
pass(unsigned char *base, size_t npages, int file, uint64_t now, uint64_t next)
{
	uint64_t want[WORDS];
	size_t wrong = 0, page = 0;

	for (size_t n = 0; n < npages; n++) {
		volatile uint64_t *const word = (volatile uint64_t *)(void *)(base + page * PAGE);
		bool right = true;

		if (n % 64 == 0)
			alarm(PATIENCE_S);
		if (pread(file, want, sizeof want, (off_t)(page * PAGE)) != (ssize_t)sizeof want)
			die("the file has become shorter");
		for (size_t i = 0; i < WORDS; i++) {
			right &= word[i] == (want[i] ^ now);
			word[i] = want[i] ^ next;
		}
		wrong += !right;
		page = (page + STRIDE) % npages;
	}
	alarm(0);
	return wrong;
}

static bool
input_has_ended(void)
{
	struct pollfd p = { .fd = STDIN_FILENO, .events = POLLIN };
	char byte;

	return poll(&p, 1, 0) > 0 && read(STDIN_FILENO, &byte, 1) <= 0;
}

static int
live(const char *sock, const char *path, bool hold)
{
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	const int file = open(path, O_RDONLY | O_CLOEXEC), uffd = open_uffd();
	unsigned char *base;
	uint64_t passes = 0;
	size_t size, npages, wrong;
	struct stat st;

	if (file < 0 || fstat(file, &st) < 0)
		die("%s: %s", path, strerror(errno));
	size = (size_t)st.st_size;
	npages = size / PAGE;
	if (npages == 0 || size % PAGE != 0 || npages % STRIDE == 0)
		die("%s: not so many pages, please", path);
	base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		    -1, 0);
	if (base == MAP_FAILED)
		die("mapping %zu bytes: %s", size, strerror(errno));
	reg.range.start = (uintptr_t)base;
	reg.range.len = size;
	if (ioctl(uffd, UFFDIO_REGISTER, &reg) < 0)
		die("UFFDIO_REGISTER: %s", strerror(errno));
	signal(SIGALRM, on_alarm);
	/* Open until the end, as Firecracker keeps both since 1.12: so the other side sees it. */
	shake_hands(sock, base, size, uffd);

	wrong = pass(base, npages, file, 0, 1);
	printf("%zu pages filled by the other side, %zu wrong\n", npages, wrong);
	fflush(stdout);
	do {
		passes++;
		wrong += pass(base, npages, file, passes, passes + 1);
		if (hold)
			usleep(10000); /* a guest that does not keep a CPU to itself */
	} while (hold && wrong == 0 && !input_has_ended());
	printf("overwritten and read %" PRIu64 " times, %zu pages wrong in all\n", passes, wrong);
	puts(wrong == 0 ? "PASS" : "FAIL");
	return wrong != 0;
}

int
main(int argc, char **argv)
{
	int r = 2;

	if (argc == 4 && strcmp(argv[1], "--make") == 0)
		r = make(argv[2], argv[3]);
	else if (argc == 4 && strcmp(argv[1], "--hold") == 0)
		r = live(argv[2], argv[3], true);
	else if (argc == 3 && argv[1][0] != '-')
		r = live(argv[1], argv[2], false);
	if (r == 2)
		fputs("usage: microvm --make FILE MIB | microvm [--hold] SOCKET FILE\n", stderr);
	return r;
}
