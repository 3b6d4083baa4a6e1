/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_clone.c: clones on the real kernel: threads at both sides at once, I/O under way, memory nobody may read.
 *
 * What one thread after the other can show is in test_cow.c, over the simulated kernel.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "delivery.h"
#include "runtime.h"

#define RW (PROT_READ | PROT_WRITE)
#define PAGE ((size_t)PAGE_SIZE)
#define MiB ((size_t)1 << 20)

TestSuite(clone, .timeout = 110);

static struct up_runtime *rt;

static void
start(size_t limit, uint64_t mask)
{
	const struct up_config cfg = { .memory_limit = limit,
				       .service_threads = 2,
				       .feature_mask = mask,
				       .delivery = test_delivery(),
				       .compression = test_compression() };
	const int r = up_runtime_create(&rt, &cfg);

	if (r == -EPERM || r == -ENOSYS)
		cr_skip_test("no userfaultfd or io_uring here");
	cr_assert(r == 0, "create: %s", strerrorname_np(-r));
}

static char *
map(size_t len)
{
	void *p;

	cr_assert(up_map(rt, NULL, len, RW, UP_PRIVATE, NULL, 0, &p) == 0);
	return p;
}

static uint64_t
now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* --- both sides at once --- */

#define PAGES 700 /* beyond the limit: copies and frames are scarce */

static uint64_t *
word(char *base, size_t page)
{
	return (uint64_t *)(base + page * PAGE) + 100;
}

struct side {
	char *base;
	uint64_t version; /* what all of it holds */
	unsigned wrong;
};

/* Nothing is written, so that every page of a clone is a copy or is taken over, by whoever comes first. */
static void *
read_all(void *arg)
{
	struct side *s = arg;

	for (size_t i = 0; i < PAGES; i++)
		s->wrong += *word(s->base, i) != s->version + i;
	return NULL;
}

/* A kernel that says EAGAIN every other time. */
static const struct pmap_ops *honest;
static atomic_uint asked;

static int
enter_perhaps(struct pmap *pm, unsigned shard, uintptr_t va, frame_t frame, size_t n, size_t *done)
{
	*done = 0;
	return atomic_fetch_add(&asked, 1) % 2 ? honest->enter(pm, shard, va, frame, n, done)
					       : -EAGAIN;
}

static void
be_fickle(void)
{
	static struct pmap_ops fickle;

	honest = rt->p.pmap->ops;
	fickle = *honest;
	fickle.enter = enter_perhaps;
	rt->p.pmap->ops = &fickle;
}

static void
three_sides(uint64_t mask, bool fickle)
{
	const uint64_t end = now_ms() + 5000;
	unsigned rounds = 0;
	struct side s[3];

	start(2 * MiB, mask);
	if (fickle)
		be_fickle();
	s[0] = (struct side){ .base = map(PAGES * PAGE) };
	for (; rounds < 5 || now_ms() < end; rounds++) {
		pthread_t t[2];

		for (size_t i = 0; i < PAGES; i++)
			*word(s[0].base, i) = s[0].version + i;
		for (unsigned k = 1; k < 3; k++) {
			void *copy;

			cr_assert(up_clone(rt, s[0].base, PAGES * PAGE, &copy) == 0);
			s[k] = (struct side){ .base = copy, .version = s[0].version };
		}
		for (unsigned k = 0; k < 2; k++)
			cr_assert(pthread_create(&t[k], NULL, read_all, &s[k]) == 0);
		read_all(&s[2]);
		for (unsigned k = 0; k < 2; k++)
			pthread_join(t[k], NULL);
		for (unsigned k = 0; k < 3; k++)
			cr_assert(s[k].wrong == 0, "round %u: %u pages of side %u are wrong",
				  rounds, s[k].wrong, k);
		for (unsigned k = 1; k < 3; k++)
			cr_assert(up_unmap(rt, s[k].base, PAGES * PAGE) == 0);
		s[0].version += 1000;
	}
	up_runtime_destroy(rt);
}

Test(clone, three_sides_may_touch_the_same_page_at_once)
{
	three_sides(0, false);
}

Test(clone, three_sides_may_touch_the_same_page_at_once_without_move)
{
	three_sides(UP_MASK_MOVE, false);
}

/* A copy that can not be entered is as if it had not been tried, also for those who look meanwhile. */
Test(clone, three_sides_may_touch_the_same_page_at_once_while_the_kernel_refuses)
{
	three_sides(0, true);
}

/* --- what nobody may read --- */

static _Thread_local sigjmp_buf escape;

static void
on_signal(int sig)
{
	siglongjmp(escape, sig);
}

struct prober {
	char *at;
	atomic_bool stop;
	atomic_uint tries, reads;
};

static void *
probe(void *arg)
{
	struct prober *pr = arg;

	while (!atomic_load(&pr->stop)) {
		atomic_fetch_add(&pr->tries, 1);
		if (sigsetjmp(escape, 1) == 0) {
			(void)*(volatile char *)pr->at;
			atomic_fetch_add(&pr->reads, 1);
		}
	}
	return NULL;
}

static void
nobody_reads(uint64_t mask)
{
	struct sigaction sa = { .sa_handler = on_signal };
	const size_t len = 300 * PAGE;
	struct prober pr = { 0 };
	pthread_t t;

	start(4 * MiB, mask);
	sigaction(SIGSEGV, &sa, NULL);
	pr.at = map(len);
	for (unsigned round = 0; round < 60; round++) {
		void *copy;

		cr_assert(up_protect(rt, pr.at, len, RW) == 0);
		memset(pr.at, (int)round + 1, len);
		cr_assert(up_protect(rt, pr.at, len, PROT_NONE) == 0);
		atomic_store(&pr.stop, false);
		cr_assert(pthread_create(&t, NULL, probe, &pr) == 0);
		cr_assert(up_clone(rt, pr.at, len, &copy) == 0);
		atomic_store(&pr.stop, true);
		pthread_join(t, NULL);
		cr_assert(up_protect(rt, copy, len, PROT_READ) == 0);
		for (size_t i = 0; i < len; i += PAGE)
			cr_assert(((char *)copy)[i] == (char)(round + 1));
		cr_assert(up_unmap(rt, copy, len) == 0);
	}
	cr_assert(atomic_load(&pr.tries) > 60);
	cr_assert(atomic_load(&pr.reads) == 0, "%u of %u reads of memory that nobody may read",
		  atomic_load(&pr.reads), atomic_load(&pr.tries));
	up_runtime_destroy(rt);
}

Test(clone, what_nobody_may_read_stays_so_while_it_is_cloned)
{
	nobody_reads(0);
}

Test(clone, what_nobody_may_read_stays_so_while_it_is_cloned_without_move)
{
	nobody_reads(UP_MASK_MOVE);
}

/* --- I/O under way --- */

#define IO_PAGES 64

struct reader {
	char *to;
	int fd;
	atomic_bool stop;
	unsigned rounds, wrong, errors;
};

/* The disk writes into the region itself: what it has read has to be there afterwards. */
static void *
read_direct(void *arg)
{
	struct reader *d = arg;

	while (!atomic_load(&d->stop)) {
		const size_t from = d->rounds++ % 2 * IO_PAGES;

		if (pread(d->fd, d->to, IO_PAGES * PAGE, (off_t)(from * PAGE)) !=
		    (ssize_t)(IO_PAGES * PAGE)) {
			d->errors++;
			continue;
		}
		for (size_t i = 0; i < IO_PAGES; i++)
			d->wrong += *word(d->to, i) != from + i + 1;
	}
	return NULL;
}

Test(clone, direct_io_into_a_region_arrives_whatever_is_cloned_meanwhile)
{
	char name[] = "/var/tmp/clone.XXXXXX", link[64];
	const uint64_t end = now_ms() + 4000;
	struct reader d = { 0 };
	unsigned clones = 0;
	const int fd = mkostemp(name, O_CLOEXEC);
	pthread_t t;
	char *src;

	cr_assert(fd >= 0);
	unlink(name);
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	start(4 * MiB, 0);
	if ((up_features(rt) & (UP_MASK_MOVE | UP_MASK_KERNEL_FAULTS)) !=
	    (UP_MASK_MOVE | UP_MASK_KERNEL_FAULTS))
		cr_skip_test("only where pages move, and system calls may touch missing ones");
	src = calloc(2 * IO_PAGES, PAGE);
	cr_assert(src != NULL);
	for (size_t i = 0; i < (size_t)2 * IO_PAGES; i++)
		*word(src, i) = i + 1;
	cr_assert(write(fd, src, 2 * IO_PAGES * PAGE) == (ssize_t)(2 * IO_PAGES * PAGE));
	cr_assert(fsync(fd) == 0);
	free(src);
	d.fd = open(link, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (d.fd < 0)
		cr_skip_test("no direct I/O here");
	d.to = map(IO_PAGES * PAGE);
	cr_assert(pthread_create(&t, NULL, read_direct, &d) == 0);
	while (now_ms() < end) {
		void *copy;
		const int r = up_clone(rt, d.to, IO_PAGES * PAGE, &copy);

		cr_assert(r == 0 || r == -EBUSY, "%s", strerrorname_np(-r));
		clones += r == 0;
		if (r == 0)
			cr_assert(up_unmap(rt, copy, IO_PAGES * PAGE) == 0);
	}
	atomic_store(&d.stop, true);
	pthread_join(t, NULL);
	cr_assert(d.errors == 0);
	cr_assert(d.rounds > 10 && clones > 10, "%u reads, %u clones", d.rounds, clones);
	cr_assert(d.wrong == 0, "%u pages do not hold what was read into them, of %u reads",
		  d.wrong, d.rounds);
	close(d.fd);
	close(fd);
	up_runtime_destroy(rt);
}
