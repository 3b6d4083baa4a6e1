/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz_serve.c: any bytes at all as what a connected program says to a pager (lib/serve.c).
 *
 *	meson setup build-fuzz -Dfuzzers=enabled	(CC=clang; adds ASan and UBSan if b_sanitize says so)
 *	build-fuzz/tests/fuzz_serve tests/corpus/serve
 *
 * The input is a list of messages, each of up to 24 bytes: the first says what type it is, whether a descriptor comes along and which, and
 * whether it is one message cut short; the second picks the call, the others its numbers, out of a table in which those that matter are
 * (pages, edges, what has been mapped before).  Where there is no libFuzzer the same program reads the files that it is given, once.
 *
 * Checked beside that nothing crashes: each message is answered or ends the connection, within a deadline; and when the client is gone it
 * has left nothing behind.  The pager is a real one, and asserts its own drawing.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"
#include "childmsg.h"
#include "fuzz_files.h"
#include "serve.h"

#define CHECK(is) ((is) ? (void)0 : (fprintf(stderr, "%s\n", #is), abort()))
#define DEADLINE_MS 20000
#define MESSAGES_MAX 64u

static struct up_runtime *rt;
static sem_t gone;
static int file;

static void
ended(void *ctx, uint64_t id, bool guest)
{
	(void)ctx;
	(void)id;
	(void)guest;
	sem_post(&gone);
}

/* Which asserts that nothing is left. */
static void
stop(void)
{
	up_runtime_destroy(rt);
}

static void
start(void)
{
	const struct up_config cfg = { .memory_limit = (size_t)16 << 20, .service_threads = 1 };
	char name[] = "/tmp/fuzz_serve.XXXXXX";

	const int r = up_runtime_create(&rt, &cfg);

	if (r == -EPERM || r == -ENOSYS || (r == 0 && (up_features(rt) & UP_MASK_SHARED) == 0)) {
		fprintf(stderr, "no userfaultfd of shared memory here\n");
		exit(77); /* skipped */
	}
	CHECK(r == 0);
	sem_init(&gone, 0, 0);
	CHECK(serve_start(rt, ended, NULL) == 0);
	CHECK(atexit(stop) == 0);
	file = mkstemp(name);
	CHECK(file >= 0 && unlink(name) == 0 && ftruncate(file, 1 << 16) == 0);
}

/* A number that may mean something. */
static uint64_t
number(uint8_t b)
{
	static const uint64_t table[] = { 0,
					  1,
					  2,
					  3,
					  4095,
					  4096,
					  8192,
					  16384,
					  1 << 16,
					  1 << 20,
					  UINT64_MAX,
					  UINT64_MAX - 4095,
					  (uint64_t)1 << 47,
					  ((uint64_t)1 << 47) - 4096,
					  (uint64_t)1 << 63,
					  UINT32_MAX };

	/* Addresses beside each other, pages of 64. */
	if (b & 0x80)
		return 0x10000000 + (uint64_t)(b & 0x7f) * 4096;
	if (b & 0x40)
		return (uint64_t)(b & 0x3f) * 4096;
	return b & 0x20 ? b & 0x1f : table[b & 0xf];
}

static int
descriptor(uint8_t b)
{
	switch (b & 3) {
	case 1:
		return (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	case 2:
		return dup(file);
	case 3:
		return open("/dev/null", O_RDONLY | O_CLOEXEC);
	default:
		return -1;
	}
}

/* True: it was answered.  False: the connection has ended, or nothing is to be said to such a message. */
static bool
answered(int sock)
{
	struct msg m = { .type = 0 };
	int fd[MSG_REGIONS];
	size_t nfd;

	do {
		const int r = msg_await(sock, &m, fd, &nfd, DEADLINE_MS);

		CHECK(r != -ETIMEDOUT);
		if (r < 0)
			return false;
		CHECK(nfd <= MSG_REGIONS && (m.type != MSG_REGION || nfd == m.n));
		for (size_t i = 0; i < nfd; i++)
			close(fd[i]);
	} while (m.type == MSG_REGION && m.left > 0);
	return true;
}

/* One message out of at most 24 bytes; how many it took. */
static size_t
say(int sock, const uint8_t *d, size_t n, bool *on)
{
	struct msg m = { .type = d[0] & 0xf, .serial = 7, .n = PROTOCOL_VERSION };
	uint8_t b[24] = { 0 };
	int fd;

	memcpy(b, d, n < sizeof b ? n : sizeof b);
	if (b[0] & 0x80) { /* cut short, or raw */
		*on = send(sock, b, b[1] % sizeof b, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0 &&
		      answered(sock);
		return sizeof b;
	}
	m.call = (struct call){ .op = b[1] & 31,
				.flags = (uint32_t)number(b[2]),
				.prot = (int32_t)number(b[3]),
				.mode = (uint32_t)number(b[3]),
				.addr = number(b[4]),
				.length = number(b[5]),
				.offset = number(b[6]),
				.object = number(b[7]) };
	memcpy(m.call.text, b + 8, 8);
	if (b[1] & 0x80)
		memset(m.call.text, 'x', sizeof m.call.text);
	if (m.type == MSG_CONNECT)
		m.n = b[2] & 1 ? PROTOCOL_VERSION : b[3];
	/* A fork stops everybody until it is over, or 2 s have passed: it is told that it is. */
	fd = descriptor(b[0] >> 4);
	*on = msg_send(sock, &m, &fd, fd >= 0) == 0;
	if (fd >= 0)
		close(fd);
	if (*on && m.type == MSG_FORK) {
		m.type = MSG_FORKED;
		m.status = 0;
		*on = msg_send(sock, &m, NULL, 0) == 0;
	}
	if (*on && m.type != MSG_FORKED)
		*on = answered(sock);
	return 16;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct serve_limits limits = { .regions = 20,
					     .objects = 6,
					     .mapped = (uint64_t)4 << 20 };
	struct timespec until;
	struct serve_info info;
	struct up_stats st;
	int sock[2];
	uint64_t id;
	bool on = true;

	if (rt == NULL)
		start();
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sock) == 0);
	CHECK(serve_accept(rt, sock[0], &limits, &id) == 0);
	for (unsigned n = 0; n < MESSAGES_MAX && size > 0 && on; n++) {
		const size_t took = say(sock[1], data, size, &on);

		data += took < size ? took : size;
		size -= took < size ? took : size;
	}
	close(sock[1]);
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += DEADLINE_MS / 1000;
	CHECK(sem_timedwait(&gone, &until) == 0);
	CHECK(serve_info(rt, id, &info) == -ENOENT);
	CHECK(up_stats_get(rt, &st, sizeof st) == 0);
	CHECK(st.resident + st.staged + st.swapped + st.lost == 0 && st.entries == 0);
	return 0;
}
