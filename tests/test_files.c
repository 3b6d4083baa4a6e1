/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_files.c: named objects on the real kernel: files, devices, and a pager with threads of its own.
 */
#include "assertions.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "delivery.h"
#include "pager/source.h"
#include "real.h"
#include "stress.h"
#include "uffd_pager.h"

#define PAGE ((size_t)UP_PAGE_SIZE)
#define MiB ((size_t)1 << 20)
#define RW (PROT_READ | PROT_WRITE)

TestSuite(files, .timeout = 60);

static struct up_runtime *rt;
static uint64_t without; /* UP_MASK_* for start() */

static void
start(size_t memory)
{
	const struct up_config cfg = { .memory_limit = memory,
				       .service_threads = 2,
				       .feature_mask = without,
				       .delivery = test_delivery(),
				       .compression = test_compression(),
				       .log = collect };

	rt = real_start(&cfg);
	touch_init();
}

static uint64_t
word_of(size_t page, unsigned i)
{
	return stress_mix(page + 1) + i;
}

static void
page_of(size_t page, uint64_t *w)
{
	for (unsigned i = 0; i < PAGE / 8; i++)
		w[i] = word_of(page, i);
}

static bool
	cold; /* files begin with nothing in the page cache: they are read and written past it */

/* What the page cache has of a file is on the disk, and forgotten. */
static void
uncache(int fd)
{
	cr_assert(zero(int, fdatasync(fd)));
	cr_assert(zero(int, posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED)));
}

/* Pages of a file that are in the page cache. */
static size_t
cached(int fd, size_t bytes)
{
	unsigned char *vec = malloc(bytes / PAGE);
	void *p = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
	size_t n = 0;

	cr_assert(ne(ptr, p, MAP_FAILED));
	cr_assert(ne(ptr, vec, NULL));
	cr_assert(zero(int, mincore(p, bytes, vec)));
	for (size_t i = 0; i < bytes / PAGE; i++)
		n += vec[i] & 1;
	munmap(p, bytes);
	free(vec);
	return n;
}

/* A nameless file of `bytes`, filled. */
static int
file_of(size_t bytes)
{
	char name[] = "/var/tmp/test_files.XXXXXX";
	const int fd = mkostemp(name, O_CLOEXEC);
	uint64_t w[PAGE / 8];

	cr_assert(ge(int, fd, 0), "%s", strerror(errno));
	unlink(name);
	for (size_t at = 0; at < bytes; at += PAGE) {
		const size_t n = bytes - at < PAGE ? bytes - at : PAGE;

		page_of(at / PAGE, w);
		cr_assert(eq(sz, (size_t)pwrite(fd, w, n, (off_t)at), n));
	}
	if (cold)
		uncache(fd);
	return fd;
}

static struct up_object *
object_of(int fd, uint64_t offset, uint64_t size)
{
	struct up_object *obj;

	cr_assert(zero(int, up_object_create_file(rt, fd, offset, size, 0, &obj)), "%s", logged);
	return obj;
}

static uint64_t *
map(struct up_object *obj, size_t bytes, unsigned flags, int prot)
{
	void *p;

	cr_assert(zero(int, up_map(rt, NULL, bytes, prot, flags, obj, 0, &p)), "%s", logged);
	return p;
}

static void
check(const uint64_t *p, size_t page, size_t content)
{
	for (unsigned i = 0; i < PAGE / 8; i++)
		cr_assert(eq(u64, p[page * (PAGE / 8) + i], word_of(content, i)),
			  "page %zu, word %u", page, i);
}

/* Reads [0, n) of a file past any cache of ours. */
static void
check_file(int fd, size_t page, size_t content)
{
	uint64_t w[PAGE / 8] = { 0 }, want[PAGE / 8];

	page_of(content, want);
	cr_assert(eq(sz, (size_t)pread(fd, w, sizeof w, (off_t)(page * PAGE)), PAGE));
	cr_assert(zero(int, memcmp(w, want, sizeof w)), "page %zu of the file", page);
}

static struct up_stats
stats(void)
{
	return real_stats(rt);
}

Test(files, a_file_four_times_the_budget_is_read_and_never_written)
{
	const size_t n = 8 * MiB / PAGE;
	const int fd = file_of(8 * MiB);
	struct up_object *obj;
	struct stat before, after;
	uint64_t *p;

	start(2 * MiB);
	fstat(fd, &before);
	obj = object_of(fd, 0, 0);
	p = map(obj, 8 * MiB, UP_SHARED, RW);
	for (unsigned turn = 0; turn < 2; turn++) {
		for (size_t i = 0; i < n; i++)
			check(p, i, i);
	}
	for (size_t i = n; i-- > 0;)
		check(p, i * 7 % n, i * 7 % n);
	cr_assert(eq(u64, stats().source_writes, 0));
	cr_assert(eq(u64, stats().swap_writes, 0));
	cr_assert(zero(int, up_sync(rt, p, 8 * MiB, 0)));
	up_object_unref(obj);
	up_runtime_destroy(rt);
	fstat(fd, &after);
	cr_assert(eq(i64, before.st_mtim.tv_nsec, after.st_mtim.tv_nsec), "it has been written to");
	close(fd);
}

static void
written_shared(void)
{
	const size_t n = 8 * MiB / PAGE;
	const int fd = file_of(8 * MiB);
	struct up_object *obj;
	uint64_t *p;

	start(2 * MiB);
	obj = object_of(fd, 0, 0);
	p = map(obj, 8 * MiB, UP_SHARED, RW);
	for (size_t i = 0; i < n; i += 2)
		page_of(100000 + i, p + i * (PAGE / 8));
	cr_assert(zero(int, up_sync(rt, p, 8 * MiB, 0)), "%s", logged);
	for (size_t i = 0; i < n; i++)
		check_file(fd, i, i % 2 ? i : 100000 + i);
	for (size_t i = 1; i < n; i += 2)
		page_of(200000 + i, p + i * (PAGE / 8));
	cr_assert(zero(int, up_unmap(rt, p, 8 * MiB)));
	for (size_t i = 0; i < n; i++)
		check_file(fd, i, i % 2 ? 200000 + i : 100000 + i);
	/* And again through another mapping of the same object. */
	p = map(obj, 8 * MiB, UP_SHARED, PROT_READ);
	for (size_t i = 0; i < n; i++)
		check(p, i, i % 2 ? 200000 + i : 100000 + i);
	up_object_unref(obj);
	up_runtime_destroy(rt);
	close(fd);
}

Test(files, what_is_written_to_a_shared_mapping_is_in_the_file)
{
	written_shared();
}

/* Where a page goes is not for the descriptor's flags to say, whenever they were set. */
static void
appended(int flags_before, int flags_later)
{
	const size_t n = 900;
	const int fd = file_of(n * PAGE);
	struct up_object *obj;
	struct stat st;
	uint64_t *p;

	start(2 * MiB);
	cr_assert(zero(int, fcntl(fd, F_SETFL, flags_before)));
	obj = object_of(fd, 0, 0);
	cr_assert(zero(int, fcntl(fd, F_SETFL, flags_later)));
	p = map(obj, n * PAGE, UP_SHARED, RW);
	for (size_t i = 0; i < n; i++)
		page_of(i + 5000, p + i * PAGE / 8);
	for (size_t i = 0; i < n; i++)
		check(p, i, i + 5000);
	cr_assert(zero(int, up_sync(rt, p, n * PAGE, UP_SYNC_WAIT)), "%s", logged);
	cr_assert(zero(int, fcntl(fd, F_SETFL, 0)));
	for (size_t i = 0; i < n; i++)
		check_file(fd, i, i + 5000);
	cr_assert(zero(int, fstat(fd, &st)));
	cr_assert(eq(sz, (size_t)st.st_size, n * PAGE));
	up_object_unref(obj);
	up_runtime_destroy(rt);
	close(fd);
}

Test(files, a_descriptor_that_appends_is_written_where_pages_belong)
{
	appended(O_APPEND, O_APPEND);
	appended(0, O_APPEND);
	appended(O_DIRECT, 0);
}

/* A file that this thread may not open, but has. */
Test(files, a_descriptor_that_can_not_be_reopened_is_refused_or_watched)
{
	const size_t n = 20;
	const int fd = file_of(n * PAGE);
	struct up_object *obj;
	uint64_t *p;
	int r;

	start(2 * MiB);
	cr_assert(zero(int, fchmod(fd, 0)));
	cr_assert(zero(int, fcntl(fd, F_SETFL, O_APPEND)));
	setfsuid(65534);
	r = up_object_create_file(rt, fd, 0, 0, 0, &obj);
	setfsuid(0);
	if (r == 0)
		cr_skip_test("this user may open anything");
	cr_assert(eq(int, r, -EACCES));
	cr_assert(strstr(logged, "can not be reopened") != NULL, "%s", logged);

	cr_assert(zero(int, fcntl(fd, F_SETFL, 0)));
	setfsuid(65534);
	obj = object_of(fd, 0, 0);
	setfsuid(0);
	p = map(obj, n * PAGE, UP_SHARED, RW);
	page_of(77, p + 3 * PAGE / 8);
	cr_assert(zero(int, fcntl(fd, F_SETFL, O_APPEND)));
	cr_assert(eq(int, up_sync(rt, p, n * PAGE, UP_SYNC_WAIT), -EBADF), "%s", logged);
	cr_assert(zero(int, fcntl(fd, F_SETFL, 0)));
	cr_assert(zero(int, up_sync(rt, p, n * PAGE, UP_SYNC_WAIT)), "%s", logged);
	check_file(fd, 3, 77);
	check_file(fd, 19, 19);
	up_object_unref(obj);
	up_runtime_destroy(rt);
	close(fd);
}

Test(files, destroying_the_runtime_writes_back)
{
	const int fd = file_of(MiB);
	uint64_t *p;

	start(2 * MiB);
	p = map(object_of(fd, 0, 0), MiB, UP_SHARED, RW);
	page_of(777, p + 5 * (PAGE / 8));
	up_runtime_destroy(rt);
	check_file(fd, 5, 777);
	check_file(fd, 6, 6);
	close(fd);
}

static void
written_private(void)
{
	const size_t n = 4 * MiB / PAGE;
	const int fd = file_of(4 * MiB);
	struct up_object *obj;
	uint64_t *p, *q;
	void *c;

	start(2 * MiB);
	obj = object_of(fd, 0, 0);
	p = map(obj, 4 * MiB, UP_PRIVATE, RW);
	q = map(obj, 4 * MiB, UP_PRIVATE, RW);
	up_object_unref(obj);
	for (size_t i = 0; i < n; i += 3)
		page_of(5000 + i, p + i * (PAGE / 8));
	cr_assert(zero(int, up_clone(rt, p, 4 * MiB, &c)), "%s", logged);
	for (size_t i = 0; i < n; i += 2)
		page_of(9000 + i, p + i * (PAGE / 8));
	for (size_t i = 0; i < n; i++) {
		check(p, i, i % 2 == 0 ? 9000 + i : i % 3 == 0 ? 5000 + i : i);
		check(c, i, i % 3 == 0 ? 5000 + i : i);
		check(q, i, i);
	}
	up_runtime_destroy(rt);
	for (size_t i = 0; i < n; i++)
		check_file(fd, i, i);
	close(fd);
}

Test(files, a_private_mapping_leaves_the_file_alone)
{
	written_private();
}

Test(files, files_on_kernels_that_can_do_less)
{
	static const uint64_t masks[] = { UP_MASK_MOVE, UP_MASK_POISON | UP_MASK_SHARED,
					  UP_MASK_ALL & ~UP_MASK_KERNEL_FAULTS };

	for (size_t i = 0; i < sizeof masks / sizeof masks[0]; i++) {
		without = masks[i];
		written_shared();
		written_private();
	}
}

static void
tail(void)
{
	const size_t bytes = 5 * PAGE + 1000;
	const int fd = file_of(bytes);
	struct up_object *obj;
	uint64_t *p, v, w[PAGE / 8];
	struct stat st;

	start(2 * MiB);
	obj = object_of(fd, 0, 8 * PAGE);
	p = map(obj, 8 * PAGE, UP_SHARED, RW);
	for (unsigned i = 0; i < PAGE / 8; i++)
		cr_assert(eq(u64, p[5 * (PAGE / 8) + i], i < 125 ? word_of(5, i) : 0), "word %u",
			  i);
	cr_assert(eq(int, touch_read(p + 6 * (PAGE / 8), &v), -1));
	cr_assert(eq(int, touch_read(p + 7 * (PAGE / 8), &v), -1));
	check(p, 4, 4);
	/* What is written behind the end stays there: the file does not grow. */
	up_object_unref(obj);
	cr_assert(zero(int, up_unmap(rt, p, 8 * PAGE)));
	obj = object_of(fd, 0, 0);
	p = map(obj, 6 * PAGE, UP_SHARED, RW);
	memset(p + 5 * (PAGE / 8), 0x11, PAGE);
	cr_assert(zero(int, up_sync(rt, p, 6 * PAGE, 0)), "%s", logged);
	fstat(fd, &st);
	cr_assert(eq(sz, (size_t)st.st_size, bytes));
	cr_assert(eq(sz, (size_t)pread(fd, w, PAGE, 5 * (off_t)PAGE), 1000));
	cr_assert(eq(u64, w[124], UINT64_C(0x1111111111111111)));
	up_runtime_destroy(rt);
	close(fd);
}

Test(files, the_tail_is_zeros_and_beyond_the_end_is_SIGBUS)
{
	tail();
}

static void
truncated(void)
{
	const int fd = file_of(64 * PAGE);
	struct up_object *obj;
	uint64_t *p, v;

	start(2 * MiB);
	obj = object_of(fd, 0, 0);
	p = map(obj, 64 * PAGE, UP_SHARED, RW);
	cr_assert(zero(int, up_advise(rt, p, 64 * PAGE, UP_ADVICE_RANDOM)));
	check(p, 3, 3);
	cr_assert(zero(int, ftruncate(fd, 10 * (off_t)PAGE)));
	check(p, 9, 9);
	for (size_t i = 10; i < 64; i += 9)
		cr_assert(eq(int, touch_read(p + i * (PAGE / 8), &v), -1), "page %zu", i);
	cr_assert(zero(int, up_unmap(rt, p, 64 * PAGE)));
	up_object_unref(obj);
	up_runtime_destroy(rt);
	close(fd);
}

Test(files, a_file_that_is_truncated_underneath_is_SIGBUS_and_never_zeros)
{
	truncated();
}

/* Pages that go back in one request, half of which the file does not have any more: the other half must arrive, to the last byte. */
static void
truncated_dirty(void)
{
	const int fd = file_of(64 * PAGE);
	struct up_object *obj;
	uint64_t *p, *other, w[PAGE / 8], want[PAGE / 8];
	void *q;

	start(2 * MiB);
	obj = object_of(fd, 0, 0);
	p = map(obj, 64 * PAGE, UP_SHARED, RW);
	for (size_t i = 0; i < 64; i++)
		page_of(1000 + i, p + i * (PAGE / 8));
	cr_assert(zero(int, ftruncate(fd, 10 * (off_t)PAGE + 1000)));
	cr_assert(zero(int, up_map(rt, NULL, 16 * MiB, RW, UP_PRIVATE, NULL, 0, &q)));
	other = q;
	for (size_t i = 0; i < 16 * MiB / PAGE; i++)
		other[i * (PAGE / 8)] = i + 1;
	for (size_t i = 0; i < 10; i++)
		check(p, i, 1000 + i);
	cr_assert(zero(int, up_unmap(rt, p, 64 * PAGE)));
	for (size_t i = 0; i < 10; i++)
		check_file(fd, i, 1000 + i);
	page_of(1010, want);
	cr_assert(eq(sz, (size_t)pread(fd, w, PAGE, 10 * (off_t)PAGE), 1000));
	cr_assert(zero(int, memcmp(w, want, 1000)), "the part of a page in front of the end");
	up_object_unref(obj);
	up_runtime_destroy(rt);
	close(fd);
}

Test(files, what_is_in_front_of_a_truncated_end_is_written_back)
{
	truncated_dirty();
}

/* As msync() and MADV_DONTNEED: what was cut off is nobody's failure. */
static void
truncated_synced(void)
{
	const int fd = file_of(16 * PAGE);
	struct up_object *obj;
	uint64_t *p, v;

	start(2 * MiB);
	obj = object_of(fd, 0, 0);
	p = map(obj, 16 * PAGE, UP_SHARED, RW);
	for (size_t i = 0; i < 16; i++)
		page_of(1000 + i, p + i * (PAGE / 8));
	cr_assert(zero(int, ftruncate(fd, 4 * (off_t)PAGE)));
	cr_assert(zero(int, up_sync(rt, p, 16 * PAGE, 0)), "%s", logged);
	for (size_t i = 0; i < 4; i++)
		check_file(fd, i, 1000 + i);
	p[8 * (PAGE / 8)]++;
	cr_assert(zero(int, up_advise(rt, p, 16 * PAGE, UP_ADVICE_DONTNEED)), "%s", logged);
	cr_assert(eq(int, touch_read(p + 8 * (PAGE / 8), &v), -1));
	check(p, 3, 1003);
	up_object_unref(obj);
	up_runtime_destroy(rt);
	close(fd);
}

Test(files, sync_and_discard_do_not_mind_a_truncated_end)
{
	truncated_synced();
}

Test(files, a_file_that_can_only_be_read_is_mapped_for_reading)
{
	char name[64];
	const int fd = file_of(4 * PAGE);
	int ro;
	struct up_object *obj;
	void *p;

	snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
	ro = open(name, O_RDONLY | O_CLOEXEC);
	cr_assert(ge(int, ro, 0));
	start(2 * MiB);
	obj = object_of(ro, PAGE, 0);
	cr_assert(eq(int, up_map(rt, NULL, 3 * PAGE, RW, UP_SHARED, obj, 0, &p), -EACCES));
	check(map(obj, 3 * PAGE, UP_SHARED, PROT_READ), 2, 3);
	page_of(42, map(obj, 3 * PAGE, UP_PRIVATE, RW));
	cr_assert(eq(int, up_object_create_file(rt, -1, 0, 0, 0, &obj), -EBADF));
	cr_assert(eq(int, up_object_create_file(rt, ro, 100, 0, 0, &obj), -EINVAL));
	cr_assert(eq(int, up_object_create_file(rt, ro, 1 << 20, 0, 0, &obj), -EINVAL));
	up_runtime_destroy(rt);
	close(ro);
	close(fd);
}

/* --- devices --- */

/* A loop device over `fd`, of which the kernel forgets when it is closed; -1: not to be had. */
static int
loop_over(int fd, unsigned sector)
{
	const int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	const struct loop_config cfg = { .fd = (uint32_t)fd,
					 .block_size = sector,
					 .info.lo_flags = LO_FLAGS_AUTOCLEAR };
	int loop = -1;

	/* Somebody else may be given the same free number, and be faster. */
	for (unsigned tries = 0; control >= 0 && loop < 0 && tries < 50; tries++) {
		const int n = ioctl(control, LOOP_CTL_GET_FREE);
		char name[32];

		if (n < 0)
			break;
		snprintf(name, sizeof name, "/dev/loop%d", n);
		loop = open(name, O_RDWR | O_CLOEXEC);
		if (loop >= 0 && ioctl(loop, LOOP_CONFIGURE, &cfg) < 0) {
			const bool taken = errno == EBUSY;

			close(loop);
			loop = -1;
			if (!taken)
				break;
		}
	}
	if (control >= 0)
		close(control);
	return loop;
}

static void
use_device(unsigned sector)
{
	const size_t bytes = 4 * MiB + 512;
	const int fd = file_of(sector == 512 ? bytes : 4 * MiB), loop = loop_over(fd, sector);
	const size_t n = 4 * MiB / PAGE;
	struct up_object *obj;
	uint64_t *p;

	if (loop < 0)
		cr_skip_test("no loop device with sectors of %u bytes", sector);
	start(2 * MiB);
	cr_assert(zero(int, up_object_create_device(rt, loop, 0, &obj)), "%s", logged);
	p = map(obj, 4 * MiB, UP_SHARED, RW);
	for (size_t i = 0; i < n; i++)
		check(p, i, i);
	for (size_t i = 0; i < n; i += 3)
		page_of(70000 + i, p + i * (PAGE / 8));
	cr_assert(zero(int, up_sync(rt, p, 4 * MiB, 0)), "%s", logged);
	for (size_t i = 0; i < n; i++)
		check(p, i, i % 3 ? i : 70000 + i);
	up_object_unref(obj);
	up_runtime_destroy(rt);
	for (size_t i = 0; i < n; i++)
		check_file(fd, i, i % 3 ? i : 70000 + i);
	close(loop);
	close(fd);
}

Test(files, a_device_of_small_sectors)
{
	use_device(512);
}

Test(files, a_device_of_large_sectors)
{
	use_device(4096);
}

Test(files, what_is_no_device_is_refused)
{
	struct up_object *obj;
	int null, pipes[2];

	start(2 * MiB);
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	cr_assert(eq(int, up_object_create_device(rt, null, 0, &obj), -EINVAL));
	cr_assert(eq(int, up_object_create_file(rt, null, 0, 0, 0, &obj), -EINVAL));
	cr_assert(zero(int, pipe(pipes)));
	cr_assert(eq(int, up_object_create_file(rt, pipes[0], 0, 0, 0, &obj), -EINVAL));
	cr_assert(strstr(logged, "no block device") != NULL);
	cr_assert(strstr(logged, "not a regular file") != NULL);
	up_runtime_destroy(rt);
}

/* --- a pager with threads of its own --- */

#define QUEUE 256

static struct {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	struct up_request *req[QUEUE];
	bool out[QUEUE];
	unsigned head, tail, most;
	bool stop;
	uint64_t *store;
} q = { .lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER };

static int
enqueue(struct up_request *req, bool out)
{
	pthread_mutex_lock(&q.lock);
	cr_assert(lt(uint, q.tail - q.head, QUEUE));
	q.out[q.tail % QUEUE] = out;
	q.req[q.tail++ % QUEUE] = req;
	if (q.tail - q.head > q.most)
		q.most = q.tail - q.head;
	pthread_cond_signal(&q.cond);
	pthread_mutex_unlock(&q.lock);
	return 0;
}

static int
queue_in(void *ctx, struct up_request *req)
{
	(void)ctx;
	return enqueue(req, false);
}

static int
queue_out(void *ctx, struct up_request *req)
{
	(void)ctx;
	return enqueue(req, true);
}

static void *
carry(void *arg)
{
	for (;;) {
		const struct timespec us = { .tv_nsec = 20000 };
		struct up_request *req;
		char *at;
		bool out;

		pthread_mutex_lock(&q.lock);
		while (q.head == q.tail && !q.stop)
			pthread_cond_wait(&q.cond, &q.lock);
		if (q.head == q.tail) {
			pthread_mutex_unlock(&q.lock);
			return arg;
		}
		out = q.out[q.head % QUEUE];
		req = q.req[q.head++ % QUEUE];
		pthread_mutex_unlock(&q.lock);
		nanosleep(&us, NULL);
		at = (char *)q.store + up_request_offset(req);
		if (out)
			memcpy(at, up_request_buffer(req), up_request_length(req));
		else
			memcpy(up_request_buffer(req), at, up_request_length(req));
		up_request_complete(req, 0);
	}
}

struct user {
	pthread_t thread;
	uint64_t *p;
	size_t npages;
	unsigned id, of;
	bool wrong;
};

/* Each owns every `of`th page: counts them up, and finds them as they were left. */
static void *
use(void *arg)
{
	struct user *u = arg;

	for (unsigned turn = 0; turn < 6; turn++) {
		for (size_t i = u->id; i < u->npages; i += u->of) {
			uint64_t *w = u->p + i * (PAGE / 8);

			if (w[0] != word_of(i, 0) + turn || w[511] != word_of(i, 511) + turn)
				u->wrong = true;
			w[0]++;
			w[511]++;
		}
	}
	return NULL;
}

Test(files, a_pager_of_the_program_serves_many_threads)
{
	static const struct up_pager_ops ops = { .size = sizeof ops,
						 .page_in = queue_in,
						 .page_out = queue_out };
	const size_t n = 6 * MiB / PAGE;
	struct user u[4];
	struct up_object *obj;
	pthread_t carriers[3];
	uint64_t *p;

	q.store = malloc(6 * MiB);
	for (size_t i = 0; i < n; i++)
		page_of(i, q.store + i * (PAGE / 8));
	start(2 * MiB);
	for (unsigned i = 0; i < 3; i++)
		cr_assert(zero(int, pthread_create(&carriers[i], NULL, carry, NULL)));
	cr_assert(zero(int, up_object_create_custom(rt, 6 * MiB, &ops, NULL, &obj)), "%s", logged);
	p = map(obj, 6 * MiB, UP_SHARED, RW);
	cr_assert(zero(int, up_advise(rt, p, 6 * MiB, UP_ADVICE_RANDOM)));
	for (unsigned i = 0; i < 4; i++) {
		u[i] = (struct user){ .p = p, .npages = n, .id = i, .of = 4 };
		cr_assert(zero(int, pthread_create(&u[i].thread, NULL, use, &u[i])));
	}
	for (unsigned i = 0; i < 40; i++)
		cr_assert(zero(int, up_sync(rt, p, 6 * MiB, 0)));
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(u[i].thread, NULL);
		cr_assert(not(u[i].wrong), "thread %u found what it had not left", i);
	}
	cr_assert(zero(int, up_sync(rt, p, 6 * MiB, 0)));
	for (size_t i = 0; i < n; i++)
		cr_assert(eq(u64, q.store[i * (PAGE / 8)], word_of(i, 0) + 6), "page %zu", i);
	cr_assert(gt(uint, q.most, 1), "there was never more than one request at a time");
	cr_assert(eq(u64, stats().swap_writes, 0));
	up_object_unref(obj);
	up_runtime_destroy(rt);
	pthread_mutex_lock(&q.lock);
	q.stop = true;
	pthread_cond_broadcast(&q.cond);
	pthread_mutex_unlock(&q.lock);
	for (unsigned i = 0; i < 3; i++)
		pthread_join(carriers[i], NULL);
	free(q.store);
}

/* --- a pager that does not answer --- */

static struct {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	struct up_request *kept[8];
	unsigned nkept, ncancelled;
	bool answer; /* when told that nobody wants it */
} mute = { .lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER };

static int
mute_in(void *ctx, struct up_request *req)
{
	(void)ctx;
	pthread_mutex_lock(&mute.lock);
	cr_assert(lt(uint, mute.nkept, 8));
	mute.kept[mute.nkept++] = req;
	pthread_cond_signal(&mute.cond);
	pthread_mutex_unlock(&mute.lock);
	return 0;
}

static void
mute_cancel(void *ctx, struct up_request *req)
{
	(void)ctx;
	pthread_mutex_lock(&mute.lock);
	mute.ncancelled++;
	pthread_cond_signal(&mute.cond);
	for (unsigned i = 0; i < mute.nkept && mute.answer; i++) {
		if (mute.kept[i] == req) {
			mute.kept[i] = mute.kept[--mute.nkept];
			up_request_complete(req, -ECANCELED);
			break;
		}
	}
	pthread_mutex_unlock(&mute.lock);
}

static void *
touch_it(void *p)
{
	uint64_t v;

	(void)touch_read(p, &v);
	return NULL;
}

/* Returns when the pager has n requests, or has been told so often that one is not wanted: perhaps once the call has returned. */
static void
wait_for(const unsigned *what, unsigned n)
{
	struct timespec end;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += 20;
	pthread_mutex_lock(&mute.lock);
	while (*what < n)
		cr_assert(zero(int, pthread_cond_timedwait(&mute.cond, &mute.lock, &end)),
			  "the pager has %u requests, and %u were cancelled: not %u", mute.nkept,
			  mute.ncancelled, n);
	pthread_mutex_unlock(&mute.lock);
}

Test(files, unmapping_cancels_what_a_pager_does_not_answer)
{
	static const struct up_pager_ops ops = { .size = sizeof ops,
						 .page_in = mute_in,
						 .cancel = mute_cancel };
	struct up_object *obj;
	pthread_t t[3];
	uint64_t *p, *q2;
	void *copy;

	start(2 * MiB);
	cr_assert(zero(int, up_object_create_custom(rt, MiB, &ops, NULL, &obj)), "%s", logged);
	p = map(obj, MiB, UP_SHARED, PROT_READ);
	q2 = map(obj, MiB, UP_PRIVATE, RW);
	cr_assert(zero(int, pthread_create(&t[0], NULL, touch_it, p)));
	wait_for(&mute.nkept, 1);
	cr_assert(zero(int, up_unmap(rt, p, MiB)));
	pthread_join(t[0], NULL); /* SIGSEGV */
	wait_for(&mute.ncancelled, 1);
	/* A clone lets go of it too; the thread waits on. */
	cr_assert(zero(int, pthread_create(&t[1], NULL, touch_it, q2 + PAGE)));
	wait_for(&mute.nkept, 2);
	cr_assert(zero(int, up_clone(rt, q2, MiB, &copy)), "%s", logged);
	wait_for(&mute.nkept, 3);
	wait_for(&mute.ncancelled, 2);
	/* What is left is cancelled at the end; those that were before are answered now. */
	pthread_mutex_lock(&mute.lock);
	mute.answer = true;
	for (unsigned i = 0; i < 2; i++) {
		memset(up_request_buffer(mute.kept[i]), 0x5a, up_request_length(mute.kept[i]));
		up_request_complete(mute.kept[i], 0);
	}
	mute.kept[0] = mute.kept[2];
	mute.nkept = 1;
	pthread_mutex_unlock(&mute.lock);
	up_runtime_destroy(rt);
	pthread_join(t[1], NULL);
	cr_assert(eq(uint, mute.ncancelled, 3));
	cr_assert(zero(uint, mute.nkept));
}

Test(files, an_async_sync_is_in_the_file_after_one_that_waits)
{
	const size_t n = MiB / PAGE;
	const int fd = file_of(MiB);
	struct up_object *obj;
	uint64_t *p;

	start(4 * MiB);
	obj = object_of(fd, 0, 0);
	p = map(obj, MiB, UP_SHARED, RW);
	for (unsigned turn = 1; turn < 6; turn++) {
		for (size_t i = 0; i < n; i += 3)
			page_of(turn * 1000 + i, p + i * (PAGE / 8));
		cr_assert(zero(int, up_sync(rt, p, MiB, UP_SYNC_ASYNC)), "%s", logged);
		for (size_t i = 1; i < n; i += 3)
			page_of(turn * 1000 + i, p + i * (PAGE / 8));
		cr_assert(zero(int, up_sync(rt, p, MiB, UP_SYNC_WAIT)), "%s", logged);
		for (size_t i = 0; i < n; i++)
			check_file(fd, i, i % 3 == 2 ? i : turn * 1000 + i);
	}
	up_object_unref(obj);
	up_runtime_destroy(rt);
	close(fd);
}

Test(files, invalidate_sees_what_somebody_else_wrote)
{
	const int fd = file_of(16 * PAGE);
	struct up_object *obj;
	uint64_t *p, *priv, w[PAGE / 8];

	start(2 * MiB);
	obj = object_of(fd, 0, 0);
	p = map(obj, 16 * PAGE, UP_SHARED, RW);
	priv = map(obj, 16 * PAGE, UP_PRIVATE, RW);
	check(p, 3, 3);
	check(priv, 4, 4);
	page_of(77, priv + 5 * (PAGE / 8));
	page_of(900, w);
	for (off_t i = 3; i < 6; i++)
		cr_assert(eq(sz, (size_t)pwrite(fd, w, PAGE, i * (off_t)PAGE), PAGE));
	check(p, 3, 3);
	cr_assert(zero(int, up_sync(rt, p, 16 * PAGE, UP_SYNC_INVALIDATE)), "%s", logged);
	cr_assert(zero(int, up_sync(rt, priv, 16 * PAGE, UP_SYNC_INVALIDATE)), "%s", logged);
	check(p, 3, 900);
	check(priv, 4, 900);
	check(priv, 5, 77);
	up_object_unref(obj);
	up_runtime_destroy(rt);
	close(fd);
}

Test(files, the_same_of_files_that_are_in_nobodys_page_cache)
{
	cold = true;
	written_shared();
	written_private();
	tail();
	truncated();
	truncated_dirty();
	truncated_synced();
}

/* Skips the test where files are not read and written past the page cache. */
static void
need_direct(struct up_object *obj, int fd, size_t bytes)
{
	struct source *src = ((struct object *)obj)->source;
	struct swap_io io = { 0 };

	if (cached(fd, bytes) > 0)
		cr_skip_test("the file system keeps what it is told to forget");
	cr_assert(zero(int, src->ops->aim(src, 0, 1, false, &io)));
	if (!io.direct)
		cr_skip_test("no cachestat() or no O_DIRECT here");
}

/* An object over a file that is not in the page cache, of a runtime of 2 MiB. */
static int
cold_object(size_t bytes, struct up_object **obj)
{
	int fd;

	cold = true;
	fd = file_of(bytes);
	start(2 * MiB);
	*obj = object_of(fd, 0, 0);
	return fd;
}

Test(files, a_file_that_is_not_in_the_page_cache_stays_out_of_it)
{
	const size_t n = 8 * MiB / PAGE;
	struct up_object *obj;
	const int fd = cold_object(8 * MiB, &obj);
	uint64_t *p;

	need_direct(obj, fd, 8 * MiB);
	p = map(obj, 8 * MiB, UP_SHARED, RW);
	for (size_t i = 0; i < n; i++)
		check(p, i, i);
	for (size_t i = 0; i < n; i++)
		page_of(5000 + i, p + i * (PAGE / 8));
	cr_assert(zero(int, up_sync(rt, p, 8 * MiB, 0)), "%s", logged);
	cr_assert(zero(sz, cached(fd, 8 * MiB)));
	cr_assert(zero(int, up_unmap(rt, p, 8 * MiB)), "%s", logged);
	for (size_t i = 0; i < n; i++)
		check_file(fd, i, 5000 + i);
	up_object_unref(obj);
	up_runtime_destroy(rt);
	close(fd);
}

/* In so much memory that large requests go through buffers, which are as much of it as is more in use than what is told of. */
Test(files, a_stream_through_buffers_is_what_the_file_has)
{
	const size_t bytes = 160 * MiB + 100, n = (bytes + PAGE - 1) / PAGE;
	struct up_object *obj;
	struct up_stats st;
	uint64_t *p;
	int fd;

	cold = true;
	fd = file_of(bytes);
	start(64 * MiB);
	obj = object_of(fd, 0, 0);
	need_direct(obj, fd, 160 * MiB);
	p = map(obj, n * PAGE, UP_SHARED, RW);
	cr_assert(zero(int, up_advise(rt, p, n * PAGE, UP_ADVICE_SEQUENTIAL)));
	for (unsigned round = 0; round < 2; round++) {
		for (size_t i = 0; i + 1 < n; i++)
			check(p, i, i);
		for (unsigned i = 0; i < PAGE / 8; i++) {
			if (i != 100 / 8) /* the word in which the file ends */
				cr_assert(eq(u64, p[(n - 1) * (PAGE / 8) + i],
					     i < 100 / 8 ? word_of(n - 1, i) : 0));
		}
	}
	st = stats();
	cr_assert(
		ge(u64, st.used, st.resident + st.staged + st.free_frames + st.metadata + 2 * MiB));
	for (size_t i = 0; i + 1 < n; i++)
		page_of(50000 + i, p + i * (PAGE / 8));
	cr_assert(zero(int, up_sync(rt, p, n * PAGE, 0)), "%s", logged);
	for (size_t i = 0; i + 1 < n; i += 7)
		check(p, i, 50000 + i);
	st = stats();
	cr_assert(le(u64, st.used_max, 64 * MiB));
	cr_assert(zero(int, up_unmap(rt, p, n * PAGE)), "%s", logged);
	for (size_t i = 0; i + 1 < n; i++)
		check_file(fd, i, 50000 + i);
	up_object_unref(obj);
	up_runtime_destroy(rt);
	close(fd);
}

/*
 * Somebody else has a part of the file mapped and stores there: what he has stored is read, without his fsync(), and what is written back is in his
 * mapping, of which the page cache has every other page.
 */
Test(files, who_has_the_file_mapped_sees_and_is_seen)
{
	const size_t n = 2048;
	struct up_object *obj;
	const int fd = cold_object(n * PAGE, &obj);
	uint64_t *p, *his;

	his = mmap(NULL, n * PAGE, RW, MAP_SHARED, fd, 0);
	cr_assert(ne(ptr, his, MAP_FAILED));
	cr_assert(zero(int, madvise(his, n * PAGE, MADV_RANDOM)));
	for (size_t i = 0; i < n; i += 2)
		page_of(10000 + i, his + i * (PAGE / 8));
	p = map(obj, n * PAGE, UP_SHARED, RW);
	for (size_t i = 0; i < n; i++)
		check(p, i, i % 2 ? i : 10000 + i);
	for (size_t i = 0; i < n; i++)
		page_of(20000 + i, p + i * (PAGE / 8));
	cr_assert(zero(int, up_sync(rt, p, n * PAGE, 0)), "%s", logged);
	for (size_t i = 0; i < n; i++)
		check(his, i, 20000 + i);
	/* And the other way round. */
	for (size_t i = 0; i < n; i += 3)
		page_of(30000 + i, his + i * (PAGE / 8));
	cr_assert(zero(int, up_sync(rt, p, n * PAGE, UP_SYNC_INVALIDATE)), "%s", logged);
	for (size_t i = 0; i < n; i++)
		check(p, i, i % 3 ? 20000 + i : 30000 + i);
	munmap(his, n * PAGE);
	up_object_unref(obj);
	up_runtime_destroy(rt);
	close(fd);
}

/* Pages that came for a load are guarded, so that nobody need look whether they have changed: but whoever stores is seen. */
Test(files, a_store_after_a_load_is_written_back)
{
	const size_t n = 8 * MiB / PAGE;
	struct up_object *obj;
	const int fd = cold_object(8 * MiB, &obj);
	uint64_t *p;

	p = map(obj, 8 * MiB, UP_SHARED, RW);
	cr_assert(zero(int, up_advise(rt, p, 8 * MiB, UP_ADVICE_RANDOM)));
	for (unsigned turn = 0; turn < 3; turn++) {
		for (size_t k = 0; k < n; k++) {
			const size_t i = k * 797 % n, was = turn == 0 ? i : turn * 10000 + i;

			check(p, i, i % 4 == 1 ? was : i);
			if (i % 4 == 1)
				page_of((turn + 1) * 10000 + i, p + i * (PAGE / 8));
		}
		cr_assert(zero(int, up_sync(rt, p, 8 * MiB, 0)), "%s", logged);
		for (size_t i = 0; i < n; i++)
			check_file(fd, i, i % 4 == 1 ? (turn + 1) * 10000 + i : i);
		uncache(fd);
	}
	up_object_unref(obj);
	up_runtime_destroy(rt);
	close(fd);
}

/* --- a source of which transfers go astray --- */

static int (*true_aim)(struct source *src, uint64_t index, unsigned n, bool write,
		       struct swap_io *io);
static bool crooked_reads, crooked_writes; /* at no multiple of a sector */
static uint64_t full_first, full_end;	   /* pages that are written to a device that is full */
static int full_fd;

static int
astray(struct source *src, uint64_t index, unsigned n, bool write, struct swap_io *io)
{
	const int r = true_aim(src, index, n, write, io);

	if (r == 0 && io->direct && (write ? crooked_writes : crooked_reads))
		io->offset += 8;
	if (r == 0 && write && index < full_end && index + n > full_first)
		io->fd = full_fd;
	return r;
}

static void
lead_astray(struct up_object *obj, struct source_ops *ops)
{
	struct source *src = ((struct object *)obj)->source;

	*ops = *src->ops;
	true_aim = ops->aim;
	ops->aim = astray;
	src->ops = ops;
}

static void
refused_direct(bool reads, bool writes)
{
	static struct source_ops ops;
	const size_t n = 8 * MiB / PAGE;
	_Alignas(4096) char buf[PAGE];
	struct up_object *obj;
	const int fd = cold_object(8 * MiB, &obj);
	char name[64];
	uint64_t *p;
	int direct;

	need_direct(obj, fd, 8 * MiB);
	snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
	direct = open(name, O_RDONLY | O_DIRECT | O_CLOEXEC);
	cr_assert(ge(int, direct, 0));
	if (pread(direct, buf, PAGE, 8) >= 0 || errno != EINVAL)
		cr_skip_test("this file system transfers anything by O_DIRECT");
	close(direct);
	lead_astray(obj, &ops);
	crooked_reads = reads;
	crooked_writes = writes;
	p = map(obj, 8 * MiB, UP_SHARED, RW);
	for (size_t i = 0; i < n; i++)
		check(p, i * 37 % n, i * 37 % n);
	for (size_t i = 0; i < n; i++)
		page_of(5000 + i, p + i * (PAGE / 8));
	cr_assert(zero(int, up_sync(rt, p, 8 * MiB, 0)), "%s", logged);
	for (size_t i = 0; i < n; i++)
		check_file(fd, i, 5000 + i);
	for (size_t i = 0; i < n; i++)
		check(p, i, 5000 + i);
	cr_assert(zero(u64, stats().source_errors), "%s", logged);
	cr_assert(gt(sz, cached(fd, 8 * MiB), 0), "nothing went through the page cache");
	up_object_unref(obj);
	up_runtime_destroy(rt);
	close(fd);
}

Test(files, what_O_DIRECT_refuses_goes_through_the_page_cache)
{
	refused_direct(true, false);
	refused_direct(false, true);
	refused_direct(true, true);
}

Test(files, of_a_cluster_that_fails_only_what_can_not_be_written_is_kept)
{
	static struct source_ops ops;
	const size_t n = 256;
	struct up_object *obj;
	uint64_t *p, w[PAGE / 8];
	int fd;

	cold = true;
	fd = file_of(n * PAGE);
	start(8 * MiB);
	obj = object_of(fd, 0, 0);
	full_fd = open("/dev/full", O_RDWR | O_CLOEXEC);
	cr_assert(ge(int, full_fd, 0));
	lead_astray(obj, &ops);
	full_first = 100;
	full_end = 103;
	p = map(obj, n * PAGE, UP_SHARED, RW);
	/* Neighbours, and some that have none. */
	for (size_t i = 0; i < n; i++) {
		if (i < 200 || i % 2)
			page_of(5000 + i, p + i * (PAGE / 8));
	}
	cr_assert(eq(int, up_sync(rt, p, n * PAGE, 0), -ENOSPC), "%s", logged);
	for (size_t i = 0; i < n; i++)
		check_file(fd, i, (i < 200 || i % 2) && (i < 100 || i >= 103) ? 5000 + i : i);
	full_end = 0;
	cr_assert(zero(int, up_sync(rt, p, n * PAGE, 0)), "%s", logged);
	for (size_t i = 100; i < 103; i++)
		check_file(fd, i, 5000 + i);
	/* It is told once, and what is the same again is still written: nobody knows what the file has. */
	full_end = 103;
	page_of(7000, p + 101 * (PAGE / 8));
	cr_assert(eq(int, up_sync(rt, p, n * PAGE, 0), -ENOSPC), "%s", logged);
	page_of(1, w);
	cr_assert(eq(sz, (size_t)pwrite(fd, w, PAGE, 101 * (off_t)PAGE), PAGE));
	page_of(5101, p + 101 * (PAGE / 8));
	full_end = 0;
	cr_assert(zero(int, up_sync(rt, p, n * PAGE, 0)), "%s", logged);
	check_file(fd, 101, 5101);
	up_object_unref(obj);
	up_runtime_destroy(rt);
	close(full_fd);
	close(fd);
}
