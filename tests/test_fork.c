/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_fork.c: fork() with inherited regions, on the real kernel.
 *
 *	parent     has the runtime; checks what children exit with, and what is left when they are gone
 *	child      exits with 0 if all was as it should be, else with a number that says which of its
 *	           steps was not; it never waits for ever, an alarm ends it
 *	guardian   of tests in which the process with the runtime is killed: forks that, and watches its child
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "delivery.h"
#include "runtime.h"
#include "stress.h"
#include "timely.h"

#define RW (PROT_READ | PROT_WRITE)
#define PAGE ((size_t)PAGE_SIZE)
#define MiB ((size_t)1 << 20)
#define DEADLINE 60 /* seconds, for whatever has to happen */

#if defined(__SANITIZE_ADDRESS__)
#define SLOW 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SLOW 1
#endif
#endif
#ifndef SLOW
#define SLOW 0
#endif

TestSuite(fork, .timeout = SLOW ? 440 : 110);

static struct up_runtime *rt;
static char logged[16384];
static pthread_mutex_t logged_lock = PTHREAD_MUTEX_INITIALIZER;

/* --- rig --- */

static void
collect(void *ctx, enum up_log_level level, const char *line)
{
	size_t len;

	(void)ctx;
	/* Who forks may have it: not in a child. */
	if (pthread_mutex_trylock(&logged_lock) != 0)
		return;
	len = strlen(logged);
	snprintf(logged + len, sizeof logged - len, "%d: %s\n", (int)level, line);
	pthread_mutex_unlock(&logged_lock);
}

/* swap_fd: 0 for a file on the disk */
static struct up_runtime *
create_on(int swap_fd, size_t limit, uint64_t mask, unsigned timeout_ms)
{
	const struct up_config cfg = { .memory_limit = limit,
				       .service_threads = 2,
				       .swap_fd = swap_fd,
				       .feature_mask = mask,
				       .fault_timeout_ms = timeout_ms,
				       .delivery = test_delivery(),
				       .compression = test_compression(),
				       .log = collect };
	struct up_runtime *made;
	const int r = up_runtime_create(&made, &cfg);

	if (r == -EPERM || r == -ENOSYS)
		cr_skip_test("no userfaultfd or io_uring here");
	cr_assert(r == 0, "create: %s\n%s", strerrorname_np(-r), logged);
	return made;
}

static struct up_runtime *
create(size_t limit, uint64_t mask, unsigned timeout_ms)
{
	return create_on(0, limit, mask, timeout_ms);
}

static void
start_on(int swap_fd, size_t limit, uint64_t mask)
{
	rt = create_on(swap_fd, limit, mask, 0);
	if (!(mask & UP_MASK_SHARED) && !(up_features(rt) & UP_MASK_SHARED))
		cr_skip_test("this kernel can not write-protect shared memory");
}

static void
start(size_t limit, uint64_t mask)
{
	start_on(0, limit, mask);
}

static uint64_t *
map_with(struct up_runtime *of, size_t npages, unsigned flags)
{
	void *p;
	const int r = up_map(of, NULL, npages * PAGE, RW, UP_PRIVATE | flags, NULL, 0, &p);

	cr_assert(r == 0, "map: %s\n%s", strerrorname_np(-r), logged);
	return p;
}

static uint64_t *
map(size_t npages)
{
	return map_with(rt, npages, 0);
}

static uint64_t *
map_object(struct up_object *o, size_t npages, int prot, unsigned flags)
{
	void *p;
	const int r = up_map(rt, NULL, npages * PAGE, prot, flags, o, 0, &p);

	cr_assert(r == 0, "map: %s\n%s", strerrorname_np(-r), logged);
	return p;
}

static struct up_object *
object(size_t npages)
{
	struct up_object *o;

	cr_assert(up_object_create_anon(rt, npages * PAGE, 0, &o) == 0, "%s", logged);
	return o;
}

static void
inherit(struct up_runtime *of, void *va, size_t npages, enum up_inherit how)
{
	const int r = up_inherit(of, va, npages * PAGE, how);

	cr_assert(r == 0, "inherit: %s\n%s", strerrorname_np(-r), logged);
}

static uint64_t
now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void
pause_ms(long ms)
{
	const struct timespec ts = { .tv_nsec = ms * 1000000 };

	nanosleep(&ts, NULL);
}

/* One word of a page and its copy at the other end: both or none are right. */
static uint64_t *
word(uint64_t *base, size_t page)
{
	return base + page * (PAGE / 8) + page % 255;
}

static void
fill(uint64_t *base, size_t from, size_t n, uint64_t version)
{
	for (size_t i = from; i < from + n; i++) {
		*word(base, i) = version << 32 | i;
		word(base, i)[256] = version << 32 | i;
	}
}

/* How many pages hold something else. */
static size_t
wrong(uint64_t *base, size_t from, size_t n, uint64_t version)
{
	size_t bad = 0;

	for (size_t i = from; i < from + n; i++) {
		const uint64_t v = *word(base, i), w = word(base, i)[256];

		if (v == (version << 32 | i) && w == v)
			continue;
		if (bad++ == 0)
			dprintf(2, "[%d] page %zu of %p is %#lx, %#lx, not of version %lu\n",
				getpid(), i, (void *)base, v, w, version);
	}
	return bad;
}

/* fork(); the child dies with its parent, and after a while in any case. */
static pid_t
fork_child(void)
{
	const pid_t pid = fork();

	cr_assert(pid >= 0, "fork: %s", strerror(errno));
	if (pid == 0)
		alarm(SLOW ? 4 * DEADLINE : DEADLINE);
	return pid;
}

/* The status of a child that has to end soon; -1: of any. */
static int
reap(pid_t pid)
{
	const uint64_t end = now_ms() + (SLOW ? 4 : 1) * DEADLINE * UINT64_C(1000) + 5000;
	int status = 0;

	for (;;) {
		const pid_t got = waitpid(pid, &status, WNOHANG);

		if (got > 0)
			return status;
		cr_assert(got == 0, "waitpid: %s", strerror(errno));
		if (now_ms() > end) {
			if (pid > 0)
				kill(pid, SIGKILL);
			cr_assert_fail("child %d does not end\n%s", pid, logged);
		}
		pause_ms(1);
	}
}

static void
expect_ok(pid_t pid)
{
	const int status = reap(pid);

	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child ended with %#x\n%s", status,
		  logged);
}

static void
expect_signal(pid_t pid, int sig)
{
	const int status = reap(pid);

	cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == sig,
		  "child ended with %#x, not signal %d\n%s", status, sig, logged);
}

static struct up_stats
stats_of(struct up_runtime *of)
{
	struct up_stats st;

	cr_assert(up_stats_get(of, &st, sizeof st) == 0);
	return st;
}

static struct up_stats
stats(void)
{
	return stats_of(rt);
}

/* What children had is gone: as many objects and promises as before.  They are noticed some time after their end. */
static void
expect_left(const struct up_stats *before)
{
	const uint64_t end = now_ms() + DEADLINE * UINT64_C(1000);
	struct up_stats st;

	for (;;) {
		st = stats();
		if (st.objects == before->objects && st.reserve_used == before->reserve_used &&
		    st.entries == before->entries)
			return;
		cr_assert(
			now_ms() < end,
			"children are gone, yet %lu objects (%lu), %lu promised (%lu), %lu entries "
			"(%lu) are left\n%s",
			st.objects, before->objects, st.reserve_used, before->reserve_used,
			st.entries, before->entries, logged);
		pause_ms(1);
	}
}

static unsigned
depth_at(const void *va)
{
	unsigned depth;

	pthread_mutex_lock(&rt->p.map.change);
	depth = object_depth(map_lookup(&rt->p.map, (uintptr_t)va)->object);
	pthread_mutex_unlock(&rt->p.map.change);
	return depth;
}

static void
no_children(void)
{
	const uint64_t end = now_ms() + DEADLINE * UINT64_C(1000);

	for (;;) {
		bool none;

		pthread_mutex_lock(&rt->p.map.change);
		none = rt->p.spaces == NULL;
		pthread_mutex_unlock(&rt->p.map.change);
		if (none)
			return;
		cr_assert(now_ms() < end, "a child's end has not been noticed\n%s", logged);
		pause_ms(1);
	}
}

/* --- touching what may raise a signal --- */

static sigjmp_buf out;
static volatile sig_atomic_t raised;

static void
on_signal(int sig, siginfo_t *info, void *context)
{
	if (sig == SIGBUS && up_handle_sigbus(info, context))
		return;
	raised = sig;
	siglongjmp(out, 1);
}

static void
catch_signals(void)
{
	struct sigaction sa = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_NODEFER };

	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
}

/* 0, or the signal.  => catch_signals() */
static int
touch(uint64_t *p, bool write, uint64_t *v)
{
	raised = 0;
	if (sigsetjmp(out, 0) != 0)
		return raised;
	if (write)
		*(volatile uint64_t *)p = *v;
	else
		*v = *(volatile uint64_t *)p;
	return 0;
}

/* Pipes on which parent and children wait for each other. */
struct gate {
	int fd[2];
};

static void
gate_make(struct gate *g)
{
	cr_assert(pipe2(g->fd, O_CLOEXEC) == 0);
}

static void
gate_pass(struct gate *g, unsigned n)
{
	while (n-- > 0) {
		if (write(g->fd[1], "x", 1) != 1)
			_exit(99);
	}
}

/* False: not within the deadline. */
static bool
gate_wait(struct gate *g, unsigned n)
{
	while (n-- > 0) {
		struct pollfd pf = { .fd = g->fd[0], .events = POLLIN };
		char c;

		if (poll(&pf, 1, (SLOW ? 4 : 1) * DEADLINE * 1000) != 1 ||
		    read(g->fd[0], &c, 1) != 1)
			return false;
	}
	return true;
}

/* --- what a child has --- */

static void
both_have_their_own(uint64_t mask)
{
	const size_t n = 1500;
	struct up_stats before;
	uint64_t *p;
	pid_t pid;

	start(4 * MiB, mask);
	p = map(n);
	fill(p, 0, n, 1);
	inherit(rt, p, n, UP_INHERIT_COPY);
	before = stats();
	pid = fork_child();
	if (pid == 0) {
		pid_t sub;

		if (wrong(p, 0, n, 1) > 0)
			_exit(1);
		fill(p, 0, n, 2);
		if (wrong(p, 0, n, 2) > 0)
			_exit(2);
		sub = fork();
		if (sub == 0) {
			if (wrong(p, 0, n, 2) > 0)
				_exit(1);
			fill(p, n / 2, n / 2, 4);
			_exit(wrong(p, n / 2, n / 2, 4) > 0 || wrong(p, 0, n / 2, 2) > 0);
		}
		fill(p, 0, n / 2, 5);
		if (waitpid(sub, &(int){ 0 }, WNOHANG) < 0)
			_exit(3);
		for (int status;;) {
			if (waitpid(sub, &status, 0) == sub) {
				if (status != 0)
					_exit(4);
				break;
			}
			if (errno == ECHILD)
				break;
		}
		_exit(wrong(p, 0, n / 2, 5) > 0 || wrong(p, n / 2, n / 2, 2) > 0 ? 5 : 0);
	}
	fill(p, 0, n, 3);
	expect_ok(pid);
	cr_assert(wrong(p, 0, n, 3) == 0);
	expect_left(&before);
	cr_assert(depth_at(p) == 0);
	up_runtime_destroy(rt);
}

Test(fork, parent_child_and_grandchild_write_their_own_copies)
{
	both_have_their_own(0);
}

Test(fork, copies_are_right_without_move)
{
	both_have_their_own(UP_MASK_MOVE);
}

Test(fork, copies_are_right_without_poison)
{
	both_have_their_own(UP_MASK_POISON);
}

Test(fork, copies_are_right_without_all_that_forks_can_do_without)
{
	both_have_their_own(UP_MASK_ALL & ~UP_MASK_SHARED);
}

static void
not_to_be_had(uint64_t mask)
{
	struct up_object *o;
	uint64_t *p, v = 0;
	void *q;
	pid_t pid;

	start(4 * MiB, mask);
	p = map(8);
	cr_assert(up_inherit(rt, p, 8 * PAGE, UP_INHERIT_COPY) == -ENOTSUP);
	cr_assert(up_inherit(rt, p, 8 * PAGE, UP_INHERIT_SHARE) == -ENOTSUP);
	cr_assert(up_inherit(rt, p, 8 * PAGE, UP_INHERIT_NONE) == 0);
	o = object(8);
	cr_assert(up_map(rt, NULL, 8 * PAGE, RW, UP_SHARED | UP_MULTI, o, 0, &q) == -ENOTSUP);
	fill(p, 0, 8, 1);
	pid = fork_child();
	if (pid == 0) {
		catch_signals();
		_exit(touch(p, false, &v) != SIGSEGV);
	}
	expect_ok(pid);
	cr_assert(wrong(p, 0, 8, 1) == 0);
	up_runtime_destroy(rt);
}

Test(fork, nothing_is_inherited_without_write_protection_of_shared_memory)
{
	not_to_be_had(UP_MASK_SHARED);
}

Test(fork, nothing_is_inherited_with_everything_masked)
{
	not_to_be_had(UP_MASK_ALL);
}

Test(fork, what_is_shared_is_seen_by_all_at_once)
{
	const size_t n = 1500;
	struct up_object *o;
	uint64_t *p, *q, *ro;
	struct gate there, back;
	pid_t pid;

	start(3 * MiB, 0);
	gate_make(&there);
	gate_make(&back);
	o = object(n);
	p = map_object(o, n, RW, UP_SHARED | UP_MULTI);
	q = map_object(o, n, RW, UP_SHARED | UP_MULTI);
	ro = map_object(o, n, PROT_READ, UP_SHARED | UP_MULTI);
	fill(p, 0, n, 1);
	cr_assert(wrong(q, 0, n, 1) == 0 && wrong(ro, 0, n, 1) == 0);
	inherit(rt, p, n, UP_INHERIT_SHARE);
	inherit(rt, q, n / 2, UP_INHERIT_SHARE); /* the rest of it is absent there */
	pid = fork_child();
	if (pid == 0) {
		uint64_t v = 0;

		catch_signals();
		if (wrong(p, 0, n, 1) > 0 || wrong(q, 0, n / 2, 1) > 0)
			_exit(1);
		if (touch(word(q, n / 2), false, &v) != SIGSEGV ||
		    touch(word(ro, 0), false, &v) != SIGSEGV)
			_exit(2);
		fill(q, 0, n / 2, 2);
		fill(p, n / 2, n - n / 2, 2);
		gate_pass(&there, 1);
		if (!gate_wait(&back, 1))
			_exit(3);
		_exit(wrong(p, 0, n, 3) > 0 || wrong(q, 0, n / 2, 3) > 0 ? 4 : 0);
	}
	cr_assert(gate_wait(&there, 1));
	cr_assert(wrong(p, 0, n, 2) == 0 && wrong(q, 0, n, 2) == 0 && wrong(ro, 0, n, 2) == 0);
	fill(q, 0, n, 3);
	gate_pass(&back, 1);
	expect_ok(pid);
	no_children();
	cr_assert(wrong(p, 0, n, 3) == 0);
	up_object_unref(o);
	up_runtime_destroy(rt);
}

/* A word that everybody increments: no addition is lost, wherever its page is just now. */
Test(fork, atomic_additions_of_many_processes_add_up)
{
	const size_t n = 900;
	struct up_object *o;
	pid_t pid[6];
	uint64_t *p, *q;

	start(2 * MiB, 0);
	o = object(n);
	p = map_object(o, n, RW, UP_SHARED | UP_MULTI);
	q = map_object(o, n, RW, UP_SHARED | UP_MULTI);
	inherit(rt, p, n, UP_INHERIT_SHARE);
	for (size_t k = 0; k < ARRAY_SIZE(pid); k++) {
		pid[k] = fork_child();
		if (pid[k] != 0)
			continue;
		for (unsigned round = 0; round < 5; round++) {
			for (size_t i = 0; i < n; i++)
				__atomic_fetch_add(word(p, (i * 7 + k * 100) % n), 1,
						   __ATOMIC_RELAXED);
		}
		_exit(0);
	}
	for (unsigned round = 0; round < 5; round++) {
		for (size_t i = 0; i < n; i++)
			__atomic_fetch_add(word(q, i), 1, __ATOMIC_RELAXED);
	}
	for (size_t k = 0; k < ARRAY_SIZE(pid); k++)
		expect_ok(pid[k]);
	for (size_t i = 0; i < n; i++)
		cr_assert(*word(p, i) == 5 * (ARRAY_SIZE(pid) + 1), "page %zu: %lu", i,
			  *word(p, i));
	up_object_unref(o);
	up_runtime_destroy(rt);
}

Test(fork, protections_and_holes_are_inherited_and_parts_not_inherited_are_absent)
{
	uint64_t *p, v = 7;
	pid_t pid;

	start(4 * MiB, 0);
	p = map(64);
	fill(p, 0, 64, 1);
	cr_assert(up_protect(rt, p + 8 * 512, 8 * PAGE, PROT_NONE) == 0);
	cr_assert(up_protect(rt, p + 16 * 512, 8 * PAGE, PROT_READ) == 0);
	inherit(rt, p, 64, UP_INHERIT_COPY);
	inherit(rt, p + 40 * 512, 8, UP_INHERIT_NONE);
	cr_assert(up_unmap(rt, p + 24 * 512, 8 * PAGE) == 0);
	pid = fork_child();
	if (pid == 0) {
		catch_signals();
		for (size_t i = 0; i < 64; i++) {
			const bool none =
				(i >= 8 && i < 16) || (i >= 24 && i < 32) || (i >= 40 && i < 48);
			const bool ro = i >= 16 && i < 24;

			if (touch(word(p, i), false, &v) != (none ? SIGSEGV : 0))
				_exit(1);
			if (!none && v != (UINT64_C(1) << 32 | i))
				_exit(2);
			v = 9;
			if (touch(word(p, i), true, &v) != (none || ro ? SIGSEGV : 0))
				_exit(3);
		}
		/* It is memory like any other: its protection can be changed here. */
		if (mprotect(p + 8 * 512, 8 * PAGE, RW) != 0 || wrong(p, 8, 8, 1) > 0)
			_exit(4);
		_exit(0);
	}
	expect_ok(pid);
	cr_assert(wrong(p, 0, 8, 1) + wrong(p, 16, 8, 1) + wrong(p, 32, 32, 1) == 0);
	up_runtime_destroy(rt);
}

Test(fork, what_the_parent_does_to_its_ranges_does_not_change_the_childs)
{
	const size_t n = 1200;
	struct gate go;
	uint64_t *p;
	void *q;
	pid_t pid;

	start(3 * MiB, 0);
	gate_make(&go);
	p = map(n);
	fill(p, 0, n, 1);
	inherit(rt, p, n, UP_INHERIT_COPY);
	pid = fork_child();
	if (pid == 0) {
		if (!gate_wait(&go, 1))
			_exit(1);
		if (wrong(p, 0, n, 1) > 0)
			_exit(2);
		fill(p, 0, n, 2);
		_exit(wrong(p, 0, n, 2) > 0 ? 3 : 0);
	}
	cr_assert(up_advise(rt, p, 200 * PAGE, UP_ADVICE_DONTNEED) == 0);
	cr_assert(up_protect(rt, p + 200 * 512, 200 * PAGE, PROT_NONE) == 0);
	cr_assert(up_unmap(rt, p + 400 * 512, 200 * PAGE) == 0);
	cr_assert(up_remap(rt, p + 600 * 512, 200 * PAGE, 100 * PAGE, 0, &q) == 0);
	cr_assert(up_unmap(rt, p + 800 * 512, 400 * PAGE) == 0);
	gate_pass(&go, 1);
	cr_assert(p[0] == 0 && wrong(p, 600, 100, 1) == 0);
	expect_ok(pid);
	up_runtime_destroy(rt);
}

Test(fork, blocks_of_a_heap_are_readable_in_the_child)
{
	struct up_heap_stats hs;
	struct up_heap *heap;
	char *block[500];
	pid_t pid;

	start(3 * MiB, 0);
	cr_assert(up_heap_create(rt, 8 * MiB, 0, &heap) == 0);
	cr_assert(up_heap_stats_get(heap, &hs, sizeof hs) == 0);
	inherit(rt, hs.base, hs.size / PAGE, UP_INHERIT_COPY);
	for (size_t i = 0; i < ARRAY_SIZE(block); i++) {
		block[i] = up_malloc(heap, 100 + i * 20);
		cr_assert(block[i] != NULL);
		memset(block[i], (int)(i % 251) + 1, 100 + i * 20);
	}
	pid = fork_child();
	if (pid == 0) {
		for (size_t i = 0; i < ARRAY_SIZE(block); i++) {
			for (size_t k = 0; k < 100 + i * 20; k++) {
				if (block[i][k] != (char)(i % 251 + 1))
					_exit(1);
			}
		}
		if (up_malloc(heap, 10) != NULL || errno != ECHILD ||
		    up_free(heap, block[0]) != -ECHILD)
			_exit(2);
		_exit(0);
	}
	for (size_t i = 0; i < ARRAY_SIZE(block); i += 2)
		cr_assert(up_free(heap, block[i]) == 0);
	expect_ok(pid);
	up_heap_destroy(heap);
	up_runtime_destroy(rt);
}

Test(fork, calls_in_the_child_change_nothing)
{
	unsigned char vec[8];
	struct up_object *o;
	struct up_stats st;
	uint64_t *p;
	void *q;
	pid_t pid;

	start(4 * MiB, 0);
	p = map(8);
	o = object(8);
	fill(p, 0, 8, 1);
	inherit(rt, p, 8, UP_INHERIT_COPY);
	pid = fork_child();
	if (pid == 0) {
		if (up_map(rt, NULL, PAGE, RW, UP_PRIVATE, NULL, 0, &q) != -ECHILD ||
		    up_unmap(rt, p, PAGE) != -ECHILD || up_protect(rt, p, PAGE, 0) != -ECHILD ||
		    up_advise(rt, p, PAGE, UP_ADVICE_DONTNEED) != -ECHILD ||
		    up_inherit(rt, p, PAGE, UP_INHERIT_NONE) != -ECHILD ||
		    up_clone(rt, p, PAGE, &q) != -ECHILD || up_wire(rt, p, PAGE) != -ECHILD ||
		    up_sync(rt, p, PAGE, 0) != -ECHILD ||
		    up_residency(rt, p, PAGE, vec) != -ECHILD ||
		    up_prefault(rt, p, PAGE, 0) != -ECHILD ||
		    up_remap(rt, p, PAGE, 2 * PAGE, UP_MAYMOVE, &q) != -ECHILD ||
		    up_stats_get(rt, &st, sizeof st) != -ECHILD)
			_exit(1);
		up_object_unref(o);
		up_runtime_destroy(rt);
		_exit(wrong(p, 0, 8, 1) > 0 ? 2 : 0);
	}
	expect_ok(pid);
	up_object_unref(o);
	up_runtime_destroy(rt);
}

Test(fork, several_runtimes_are_inherited_at_once)
{
	struct up_runtime *more[3];
	uint64_t *p[4];
	pid_t pid;

	start(3 * MiB, 0);
	p[3] = map(700);
	fill(p[3], 0, 700, 4);
	inherit(rt, p[3], 700, UP_INHERIT_COPY);
	for (unsigned i = 0; i < 3; i++) {
		more[i] = create(2 * MiB, 0, 0);
		p[i] = map_with(more[i], 600, 0);
		fill(p[i], 0, 600, i + 1);
		if (i != 1)
			inherit(more[i], p[i], 600, UP_INHERIT_COPY);
	}
	for (unsigned round = 0; round < 4; round++) {
		pid = fork_child();
		if (pid == 0) {
			uint64_t v = 0;

			for (unsigned i = 0; i < 4; i++) {
				if (i != 1 && wrong(p[i], 0, 600, i + 1) > 0)
					_exit(1);
			}
			pid = fork();
			for (unsigned i = 0; i < 4; i++) {
				if (i != 1 && wrong(p[i], 0, 600, i + 1) > 0)
					_exit(2);
				if (i != 1)
					fill(p[i], 0, 600, 10 + (pid == 0));
			}
			for (unsigned i = 0; i < 4; i++) {
				if (i != 1 && wrong(p[i], 0, 600, 10 + (pid == 0)) > 0)
					_exit(3);
			}
			catch_signals();
			if (touch(p[1], false, &v) != SIGSEGV)
				_exit(4);
			if (pid > 0) {
				int status;

				if (waitpid(pid, &status, 0) != pid || status != 0)
					_exit(5);
			}
			_exit(0);
		}
		expect_ok(pid);
	}
	for (unsigned i = 0; i < 3; i++) {
		cr_assert(wrong(p[i], 0, 600, i + 1) == 0);
		up_runtime_destroy(more[i]);
	}
	up_runtime_destroy(rt);
}

/* A child can have a runtime of its own, which its children inherit beside what it has of ours. */
Test(fork, a_child_with_a_runtime_of_its_own_forks_both)
{
	uint64_t *p;
	pid_t pid;

	start(3 * MiB, 0);
	p = map(600);
	fill(p, 0, 600, 1);
	inherit(rt, p, 600, UP_INHERIT_COPY);
	pid = fork_child();
	if (pid == 0) {
		const struct up_config cfg = { .memory_limit = 2 * MiB };
		struct up_runtime *own;
		int status;
		void *q;

		if (up_runtime_create(&own, &cfg) != 0 ||
		    up_map(own, NULL, 600 * PAGE, RW, UP_PRIVATE, NULL, 0, &q) != 0 ||
		    up_inherit(own, q, 600 * PAGE, UP_INHERIT_COPY) != 0)
			_exit(1);
		fill(q, 0, 600, 2);
		for (unsigned i = 0; i < 5; i++) {
			pid = fork();
			if (pid == 0)
				_exit(wrong(p, 0, 600, 1) + wrong(q, 0, 600, 2) > 0 ? 2 : 0);
			if (waitpid(pid, &status, 0) != pid || status != 0)
				_exit(3);
		}
		up_runtime_destroy(own);
		_exit(wrong(p, 0, 600, 1) > 0 ? 4 : 0);
	}
	expect_ok(pid);
	up_runtime_destroy(rt);
}

/* --- files --- */

Test(fork, writes_of_a_child_reach_the_file_at_sync)
{
	const size_t n = 700;
	char path[] = "/var/tmp/up-fork-XXXXXX";
	const int fd = mkstemp(path);
	struct up_object *o;
	uint64_t *p, *q, *copy, buf[512];
	pid_t pid;
	void *va;

	cr_assert(fd >= 0);
	unlink(path);
	cr_assert(ftruncate(fd, (off_t)(n * PAGE)) == 0);
	start(2 * MiB, 0);
	cr_assert(up_object_create_file(rt, fd, 0, 0, 0, &o) == 0);
	p = map_object(o, n, RW, UP_SHARED | UP_MULTI);
	q = map_object(o, n, PROT_READ, UP_SHARED | UP_MULTI);
	cr_assert(up_inherit(rt, p, n * PAGE, UP_INHERIT_COPY) == -ENOTSUP);
	inherit(rt, p, n, UP_INHERIT_SHARE);
	fill(p, 0, n, 1);
	copy = map_object(o, n, RW, UP_PRIVATE);
	(void)va;
	fill(copy, 0, 50, 5);
	inherit(rt, copy, n, UP_INHERIT_COPY);
	pid = fork_child();
	if (pid == 0) {
		if (wrong(p, 0, n, 1) > 0 || wrong(copy, 0, 50, 5) > 0)
			_exit(1);
		fill(copy, 25, 25, 6);
		fill(p, 0, n, 2);
		if (wrong(copy, 0, 25, 5) > 0 || wrong(copy, 25, 25, 6) > 0)
			_exit(3);
		_exit(wrong(p, 0, n, 2) > 0 ? 2 : 0);
	}
	expect_ok(pid);
	cr_assert(wrong(q, 0, n, 2) == 0 && wrong(copy, 0, 50, 5) == 0);
	cr_assert(up_sync(rt, p, n * PAGE, UP_SYNC_WAIT) == 0);
	for (size_t i = 0; i < n; i++) {
		cr_assert(pread(fd, buf, PAGE, (off_t)(i * PAGE)) == (ssize_t)PAGE);
		cr_assert(buf[i % 255] == (UINT64_C(2) << 32 | i), "page %zu: %#lx", i,
			  buf[i % 255]);
	}
	up_object_unref(o);
	up_runtime_destroy(rt);
	close(fd);
}

/* What is written back when its last mapping goes: the child's, after the parent has unmapped. */
Test(fork, the_last_mapping_is_a_childs_and_is_written_back)
{
	const size_t n = 200;
	char path[] = "/var/tmp/up-fork-XXXXXX";
	const int fd = mkstemp(path);
	struct gate there, back;
	struct up_object *o;
	uint64_t *p, buf[512];
	pid_t pid;

	cr_assert(fd >= 0);
	unlink(path);
	cr_assert(ftruncate(fd, (off_t)(n * PAGE)) == 0);
	start(2 * MiB, 0);
	gate_make(&there);
	gate_make(&back);
	cr_assert(up_object_create_file(rt, fd, 0, 0, 0, &o) == 0);
	p = map_object(o, n, RW, UP_SHARED | UP_MULTI);
	up_object_unref(o);
	inherit(rt, p, n, UP_INHERIT_SHARE);
	pid = fork_child();
	if (pid == 0) {
		if (!gate_wait(&back, 1))
			_exit(1);
		fill(p, 0, n, 7);
		gate_pass(&there, 1);
		pause();
	}
	cr_assert(up_unmap(rt, p, n * PAGE) == 0);
	gate_pass(&back, 1);
	cr_assert(gate_wait(&there, 1));
	kill(pid, SIGKILL);
	expect_signal(pid, SIGKILL);
	no_children();
	for (size_t i = 0; i < n; i++) {
		cr_assert(pread(fd, buf, PAGE, (off_t)(i * PAGE)) == (ssize_t)PAGE);
		cr_assert(buf[i % 255] == (UINT64_C(7) << 32 | i), "page %zu: %#lx", i,
			  buf[i % 255]);
	}
	up_runtime_destroy(rt);
	close(fd);
}

/* --- counters --- */

/* Each page goes to swap once, however many map it. */
Test(fork, eviction_writes_a_page_once_whatever_the_number_of_mappers)
{
	const size_t n = 256, filler = 1200;
	struct gate there, back;
	struct up_stats before, after;
	struct up_object *o;
	pid_t pid[3];
	uint64_t *p, *q, *other;

	start(4 * MiB, 0);
	gate_make(&there);
	gate_make(&back);
	o = object(n);
	p = map_object(o, n, RW, UP_SHARED | UP_MULTI);
	q = map_object(o, n, RW, UP_SHARED | UP_MULTI);
	other = map(filler);
	inherit(rt, p, n, UP_INHERIT_SHARE);
	fill(p, 0, n, 1);
	for (unsigned k = 0; k < 3; k++) {
		pid[k] = fork_child();
		if (pid[k] == 0) {
			if (wrong(p, 0, n, 1) > 0)
				_exit(1);
			gate_pass(&there, 1);
			if (!gate_wait(&back, 1))
				_exit(2);
			_exit(wrong(p, 0, n, 1) > 0 ? 3 : 0);
		}
	}
	cr_assert(gate_wait(&there, 3));
	cr_assert(wrong(q, 0, n, 1) == 0);
	before = stats();
	cr_assert(before.swap_writes == 0, "%lu writes already", before.swap_writes);
	/* All of it out; what pushes it out are pages that read as zeros, which are not written. */
	for (unsigned round = 0; round < 50; round++) {
		struct up_object_stats os;

		cr_assert(up_advise(rt, p, n * PAGE, UP_ADVICE_COLD) == 0);
		for (size_t i = 0; i < filler; i++)
			(void)*(volatile uint64_t *)word(other, i);
		cr_assert(up_advise(rt, other, filler * PAGE, UP_ADVICE_DONTNEED) == 0);
		cr_assert(up_object_info(o, &os, sizeof os) == 0);
		if (os.swapped == n * PAGE)
			break;
	}
	after = stats();
	if (test_compression() == UP_COMPRESS_NONE)
		cr_assert(after.swap_write_bytes == n * PAGE, "%lu bytes written, not %zu",
			  after.swap_write_bytes, n * PAGE);
	cr_assert(after.swap_writes <= n / 4, "%lu writes", after.swap_writes);
	gate_pass(&back, 3);
	for (unsigned k = 0; k < 3; k++)
		expect_ok(pid[k]);
	cr_assert(wrong(p, 0, n, 1) == 0 && wrong(q, 0, n, 1) == 0);
	/* Read by five mappers, and thrown out again unchanged: nothing more is written. */
	for (unsigned round = 0; round < 5; round++) {
		cr_assert(up_advise(rt, p, n * PAGE, UP_ADVICE_COLD) == 0);
		for (size_t i = 0; i < filler; i++)
			(void)*(volatile uint64_t *)word(other, i);
		cr_assert(up_advise(rt, other, filler * PAGE, UP_ADVICE_DONTNEED) == 0);
	}
	if (test_compression() == UP_COMPRESS_NONE)
		cr_assert(stats().swap_write_bytes == n * PAGE);
	up_object_unref(o);
	up_runtime_destroy(rt);
}

/* A pager of the program that counts how often each page comes back. */
#define STORE 128

struct store {
	uint64_t page[STORE][512];
	atomic_uint written[STORE], requests;
};

static int
store_in(void *ctx, struct up_request *req)
{
	const struct store *st = ctx;

	memcpy(up_request_buffer(req), st->page[up_request_offset(req) / PAGE],
	       up_request_length(req));
	up_request_complete(req, 0);
	return 0;
}

static int
store_out(void *ctx, struct up_request *req)
{
	const size_t first = up_request_offset(req) / PAGE, n = up_request_length(req) / PAGE;
	struct store *st = ctx;

	memcpy(st->page[first], up_request_buffer(req), n * PAGE);
	for (size_t i = 0; i < n; i++)
		atomic_fetch_add(&st->written[first + i], 1);
	atomic_fetch_add(&st->requests, 1);
	up_request_complete(req, 0);
	return 0;
}

static void
written_times(const struct store *st, unsigned times)
{
	for (size_t i = 0; i < STORE; i++)
		cr_assert(atomic_load(&st->written[i]) == times,
			  "page %zu went out %u times, not %u", i, atomic_load(&st->written[i]),
			  times);
}

Test(fork, a_page_of_a_source_is_written_back_once_whatever_the_number_of_mappers)
{
	const struct up_pager_ops ops = { .size = sizeof ops,
					  .page_in = store_in,
					  .page_out = store_out };
	struct store *store = calloc(1, sizeof *store);
	const size_t filler = 1200;
	struct up_object *o;
	uint64_t *p, *q, *other;
	pid_t pid;

	start(4 * MiB, 0);
	cr_assert(up_object_create_custom(rt, STORE * PAGE, &ops, store, &o) == 0);
	p = map_object(o, STORE, RW, UP_SHARED | UP_MULTI);
	q = map_object(o, STORE, RW, UP_SHARED | UP_MULTI);
	other = map(filler);
	inherit(rt, p, STORE, UP_INHERIT_SHARE);
	inherit(rt, q, STORE, UP_INHERIT_SHARE);
	fill(p, 0, STORE, 1);
	cr_assert(up_sync(rt, p, STORE * PAGE, 0) == 0);
	written_times(store, 1);
	cr_assert(up_sync(rt, q, STORE * PAGE, 0) == 0);
	written_times(store, 1);
	for (unsigned version = 2; version < 4; version++) {
		pid = fork_child();
		if (pid == 0) {
			fill(p, 0, STORE, version);
			_exit(wrong(q, 0, STORE, version) > 0);
		}
		expect_ok(pid);
		no_children();
		if (version == 2) { /* by a call */
			cr_assert(up_sync(rt, q, STORE * PAGE, 0) == 0);
			cr_assert(up_sync(rt, p, STORE * PAGE, 0) == 0);
		}
		for (unsigned round = 0; version == 3 && round < 5;
		     round++) { /* as they are thrown out */
			cr_assert(up_advise(rt, p, STORE * PAGE, UP_ADVICE_COLD) == 0);
			for (size_t i = 0; i < filler; i++)
				(void)*(volatile uint64_t *)word(other, i);
			cr_assert(up_advise(rt, other, filler * PAGE, UP_ADVICE_DONTNEED) == 0);
		}
		cr_assert(up_sync(rt, p, STORE * PAGE, 0) == 0);
		cr_assert(wrong(p, 0, STORE, version) == 0 && wrong(q, 0, STORE, version) == 0);
		/* A child that goes takes what it has changed there, and its end was waited for. */
		written_times(store, version);
	}
	up_object_unref(o);
	up_runtime_destroy(rt);
	free(store);
}

Test(fork, mappings_of_an_object_are_all_multi_or_none)
{
	struct up_object *o;
	uint64_t *p, *q;
	void *va;

	start(4 * MiB, 0);
	o = object(16);
	cr_assert(up_map(rt, NULL, 8 * PAGE, RW, UP_SHARED | UP_MULTI, o, 0, (void **)&p) == 0);
	fill(p, 0, 8, 1);
	/* Pages of it that are not mapped: still it is one object. */
	cr_assert(up_map(rt, NULL, 8 * PAGE, RW, UP_SHARED, o, 8 * PAGE, &va) == -EBUSY);
	cr_assert(wrong(p, 0, 8, 1) == 0);
	cr_assert(up_unmap(rt, p, 8 * PAGE) == 0);
	cr_assert(up_map(rt, NULL, 8 * PAGE, RW, UP_SHARED, o, 0, (void **)&p) == 0);
	cr_assert(wrong(p, 0, 8, 1) == 0);
	cr_assert(up_map(rt, NULL, 8 * PAGE, RW, UP_SHARED | UP_MULTI, o, 8 * PAGE, (void **)&q) ==
		  -EBUSY);
	cr_assert(up_unmap(rt, p, 8 * PAGE) == 0);
	q = map_object(o, 16, RW, UP_SHARED | UP_MULTI);
	cr_assert(wrong(q, 0, 8, 1) == 0);
	up_object_unref(o);
	up_runtime_destroy(rt);
}

/* --- many --- */

struct sampler {
	pthread_t thread;
	atomic_bool stop;
	size_t limit;
	uint64_t samples, peak, over;
};

static void *
sample(void *arg)
{
	struct sampler *s = arg;

	while (!atomic_load(&s->stop)) {
		uint64_t mine;

		if (!resident_pager(&mine))
			continue;
		s->peak = MAX(s->peak, mine);
		s->over += mine > s->limit;
		s->samples++;
		pause_ms(2);
	}
	return NULL;
}

static void
sample_begin(struct sampler *s, size_t limit)
{
	*s = (struct sampler){ .limit = limit };
	/* A sanitizer's shadow grows and shrinks beside us. */
	if (!SLOW)
		cr_assert(pthread_create(&s->thread, NULL, sample, s) == 0);
}

static void
sample_end(struct sampler *s)
{
	atomic_store(&s->stop, true);
	if (SLOW)
		return;
	pthread_join(s->thread, NULL);
	cr_assert(s->over == 0 && s->samples > 0,
		  "in %lu of %lu samples more was resident than the limit, %zu: at most %lu",
		  s->over, s->samples, s->limit, s->peak);
}

#define ALIVE 100
#define BIG 6144   /* pages, six times the limit */
#define WINDOW 128 /* pages that one child looks at and writes to */

static void
one_of_many(uint64_t *p, unsigned k, struct gate *there, struct gate *go)
{
	const size_t from = (size_t)(k * 3 % (BIG / WINDOW)) * WINDOW;
	const uint64_t parents = from < 512 ? 2 + (k + 7) / 8 : 1;
	pid_t sub = 0;
	int status = 0;

	if (from >= 512 && wrong(p, from, WINDOW, parents) > 0)
		_exit(1);
	fill(p, from, WINDOW, 1000 + k);
	if (wrong(p, from, WINDOW, 1000 + k) > 0)
		_exit(2);
	if (k % 7 == 0) {
		sub = fork();
		if (sub < 0)
			_exit(3);
		if (sub == 0) {
			alarm(SLOW ? 4 * DEADLINE : DEADLINE);
			if (wrong(p, from, WINDOW, 1000 + k) > 0)
				_exit(4);
			fill(p, from, WINDOW / 2, 2000 + k);
			if (!gate_wait(go, 1))
				_exit(5);
			_exit(wrong(p, from, WINDOW / 2, 2000 + k) > 0 ||
					      wrong(p, from + WINDOW / 2, WINDOW / 2, 1000 + k) > 0
				      ? 6
				      : 0);
		}
	}
	gate_pass(there, 1);
	if (!gate_wait(go, 1))
		_exit(7);
	if (wrong(p, from, WINDOW, 1000 + k) > 0)
		_exit(8);
	if (sub > 0 && (waitpid(sub, &status, 0) != sub || status != 0))
		_exit(9);
	_exit(0);
}

/* Nothing of ours may be mapped there, where the kernel has addresses to give away: each generation needs memory for its watcher. */
static int
absent_in(uint64_t *const p[], size_t n, size_t pages, unsigned generations)
{
	int status = 0;
	pid_t pid;

	if (generations == 0)
		return 0;
	pid = fork();
	if (pid == 0) {
		alarm(SLOW ? 4 * DEADLINE : DEADLINE);
		catch_signals();
		for (size_t i = 0; i < n; i++) {
			for (size_t k = 0; k < pages; k++) {
				uint64_t v = 0;
				const int sig = touch(p[i] + k * 512, false, &v);

				if (i % 2 == 0 ? sig != SIGSEGV : sig != 0 || v != i * 1000 + k)
					_exit(10 + (int)generations);
			}
		}
		_exit(absent_in(p, n, pages, generations - 1));
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return 99;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 100 + WTERMSIG(status);
}

Test(fork, what_is_absent_in_a_child_is_absent_in_its_children_too)
{
	enum { N = 40 };
	uint64_t *p[N];

	for (size_t pages = 8; pages <= 24; pages += 8) {
		start(16 * MiB, 0);
		for (size_t i = 0; i < N; i++) {
			p[i] = map(pages);
			for (size_t k = 0; k < pages; k++)
				p[i][k * 512] = i * 1000 + k;
			if (i % 2)
				inherit(rt, p[i], pages, UP_INHERIT_COPY);
		}
		const int status = absent_in(p, N, pages, 4);

		cr_assert(status == 0, "status %d: 10 and how many generations were to go: %s",
			  status, logged);
		up_runtime_destroy(rt);
	}
}

Test(fork, a_hundred_children_alive_at_once_within_a_tiny_budget)
{
	struct up_stats before, during;
	struct gate there, go;
	struct sampler sampler;
	pid_t pid[ALIVE];
	unsigned waiting = ALIVE;
	uint64_t *p;

	/* Descriptors: three a child. */
	cr_assert(setrlimit(RLIMIT_NOFILE, &(struct rlimit){ 4096, 4096 }) == 0);
	start(4 * MiB, 0);
	gate_make(&there);
	gate_make(&go);
	p = map_with(rt, BIG, UP_NORESERVE);
	fill(p, 0, BIG, 1);
	inherit(rt, p, BIG, UP_INHERIT_COPY);
	before = stats();
	sample_begin(&sampler, 4 * MiB);
	for (unsigned k = 0; k < ALIVE; k++) {
		if (k % 8 == 0)
			fill(p, 0, WINDOW, 2 + k / 8);
		pid[k] = fork_child();
		if (pid[k] == 0)
			one_of_many(p, k, &there, &go);
		waiting += k % 7 == 0;
	}
	cr_assert(gate_wait(&there, ALIVE), "%s", logged);
	fill(p, 512, BIG / 2, 3);
	during = stats();
	gate_pass(&go, waiting);
	cr_assert(wrong(p, 512, BIG / 2, 3) == 0);
	for (unsigned k = 0; k < ALIVE; k++)
		expect_ok(pid[k]);
	sample_end(&sampler);
	cr_assert(during.used_max <= during.limit);
	cr_assert(wrong(p, 0, WINDOW, 2 + (ALIVE - 1) / 8) == 0);
	cr_assert(wrong(p, WINDOW, 512 - WINDOW, 1) == 0);
	cr_assert(wrong(p, 512, BIG / 2, 3) == 0);
	cr_assert(wrong(p, 512 + BIG / 2, BIG - BIG / 2 - 512, 1) == 0);
	expect_left(&before);
	cr_assert(depth_at(p) == 0);
	up_runtime_destroy(rt);
}

/* All of it in each child, six at a time. */
Test(fork, a_hundred_forks_each_child_reads_and_writes_everything)
{
	const size_t n = 640; /* of 512 there may be */
	struct up_stats before;
	struct sampler sampler;
	pid_t pid[6] = { 0 };
	uint64_t version = 1, *p;

	start(2 * MiB, 0);
	p = map(n);
	fill(p, 0, n, version);
	inherit(rt, p, n, UP_INHERIT_COPY);
	before = stats();
	sample_begin(&sampler, 2 * MiB);
	for (unsigned k = 0; k < 100; k++) {
		pid_t *slot = &pid[k % ARRAY_SIZE(pid)];

		if (*slot != 0) {
			if (k % 5 == 0)
				kill(*slot, SIGKILL); /* in whatever state */
			if (k % 5 == 0)
				reap(*slot);
			else
				expect_ok(*slot);
		}
		*slot = fork_child();
		if (*slot == 0) {
			if (wrong(p, 0, n, version) > 0)
				_exit(1);
			fill(p, k % 2 * n / 2, n / 2, 1000 + k);
			if (wrong(p, k % 2 * n / 2, n / 2, 1000 + k) > 0 ||
			    wrong(p, (k + 1) % 2 * n / 2, n / 2, version) > 0)
				_exit(2);
			_exit(0);
		}
		if (k % 3 == 0)
			fill(p, 0, n, ++version);
	}
	for (unsigned k = 0; k < ARRAY_SIZE(pid); k++)
		expect_ok(pid[k]);
	sample_end(&sampler);
	cr_assert(wrong(p, 0, n, version) == 0);
	expect_left(&before);
	cr_assert(depth_at(p) == 0);
	up_runtime_destroy(rt);
}

/* --- one instant --- */

struct writer {
	pthread_t thread;
	uint64_t *x, *y;    /* paged, x written before z, z before y */
	_Atomic uint64_t z; /* ordinary memory */
};

static atomic_bool writers_stop;

static void *
write_in_order(void *arg)
{
	struct writer *w = arg;

	for (uint64_t i = 1; !atomic_load(&writers_stop); i++) {
		__atomic_store_n(w->x, i, __ATOMIC_SEQ_CST);
		atomic_store(&w->z, i);
		__atomic_store_n(w->y, i, __ATOMIC_SEQ_CST);
	}
	return NULL;
}

/* Pages come and go under the writers. */
static void *
churn(void *arg)
{
	uint64_t *p = arg;

	for (size_t i = 0; !atomic_load(&writers_stop); i++)
		(*word(p, i * 7 % 1500))++;
	return NULL;
}

/* It ends, in time, and with 0; also for a process that is no test. */
static bool
ends_well(pid_t pid)
{
	struct pollfd pf = { .fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN };
	int status = 1;

	if (pf.fd < 0)
		return false;
	if (poll(&pf, 1, (SLOW ? 4 : 1) * DEADLINE * 1000) != 1) {
		dprintf(2, "child %d does not end\n", (int)pid);
		kill(pid, SIGKILL);
	}
	close(pf.fd);
	return waitpid(pid, &status, 0) == pid && status == 0;
}

/* Fork under threads that write; `after` each time.  True: each child has seen one instant. */
static bool
fork_under_writers(uint64_t *p, uint64_t *q, void (*after)(void))
{
	static struct writer w[4];
	const unsigned forks = SLOW ? 30 : 120;
	pthread_t churner;
	bool well = true;

	for (unsigned i = 0; i < ARRAY_SIZE(w); i++) {
		w[i].x = word(p, i % 2 ? i : 40 - i);
		w[i].y = word(p, i % 2 ? 30 + i : 10 - i);
		if (pthread_create(&w[i].thread, NULL, write_in_order, &w[i]) != 0)
			return false;
	}
	if (pthread_create(&churner, NULL, churn, q) != 0)
		return false;
	for (unsigned k = 0; k < forks && well; k++) {
		const pid_t pid = fork();

		if (pid == 0) {
			for (unsigned i = 0; i < ARRAY_SIZE(w); i++) {
				const uint64_t x = *w[i].x, z = atomic_load(&w[i].z), y = *w[i].y;

				if (y <= z && z <= x && x <= y + 1)
					continue;
				dprintf(2, "fork %u, writer %u: x %lu, z %lu, y %lu\n", k, i, x, z,
					y);
				_exit(1);
			}
			_exit(0);
		}
		well = pid > 0 && ends_well(pid);
		if (after != NULL)
			after();
	}
	atomic_store(&writers_stop, true);
	for (unsigned i = 0; i < ARRAY_SIZE(w); i++)
		pthread_join(w[i].thread, NULL);
	pthread_join(churner, NULL);
	return well;
}

static void
see_one_instant(uint64_t mask, bool in_child)
{
	uint64_t *p, *q;
	pid_t pid;

	start(3 * MiB, mask);
	p = map(64);
	q = map(1500);
	inherit(rt, p, 64, UP_INHERIT_COPY);
	inherit(rt, q, 1500, UP_INHERIT_COPY);
	if (in_child) {
		pid = fork_child();
		if (pid == 0)
			_exit(!fork_under_writers(p, q, NULL));
		expect_ok(pid);
	} else {
		/* What a child was promised is given back when its end is noticed: there is not room for many. */
		cr_assert(fork_under_writers(p, q, no_children), "%s", logged);
	}
	no_children();
	up_runtime_destroy(rt);
}

Test(fork, a_child_sees_one_instant_of_all_threads)
{
	see_one_instant(0, false);
}

Test(fork, a_child_sees_one_instant_of_all_threads_without_move)
{
	see_one_instant(UP_MASK_MOVE, false);
}

/* Its parent's faults are the only ones that wait. */
Test(fork, a_child_of_a_child_sees_one_instant_of_all_threads)
{
	see_one_instant(0, true);
}

static _Atomic unsigned forked_badly;

static bool
same_mask(const sigset_t *a, const sigset_t *b)
{
	for (int sig = 1; sig < SIGRTMAX; sig++) {
		if (sigismember(a, sig) != sigismember(b, sig))
			return false;
	}
	return true;
}

static void *
fork_in_a_loop(void *arg)
{
	uint64_t *p = arg;
	sigset_t mine, now;

	/* Each has a mask of its own, and keeps it. */
	sigemptyset(&mine);
	sigaddset(&mine, SIGRTMIN + (int)(((uintptr_t)p >> 12) % 8));
	pthread_sigmask(SIG_SETMASK, &mine, NULL);
	for (unsigned k = 0; k < (SLOW ? 10 : 40); k++) {
		pid_t pid;
		int status;

		fill(p, 0, 100, k + 1);
		pid = fork();
		if (pid == 0) {
			alarm(DEADLINE);
			pthread_sigmask(SIG_SETMASK, NULL, &now);
			if (wrong(p, 0, 100, k + 1) > 0 || !same_mask(&mine, &now))
				_exit(1);
			pid = fork();
			if (pid == 0)
				_exit(wrong(p, 0, 100, k + 1) > 0);
			_exit(waitpid(pid, &status, 0) != pid || status != 0);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
			atomic_fetch_add(&forked_badly, 1);
		pthread_sigmask(SIG_SETMASK, NULL, &now);
		if (!same_mask(&mine, &now))
			atomic_fetch_add(&forked_badly, 1000);
	}
	return NULL;
}

/* More of it than a small stack holds; touched, so that it is there. */
static _Thread_local volatile char large[96 << 10];

Test(fork, a_program_with_much_thread_local_storage_has_its_memory_in_the_child)
{
	uint64_t *p;
	pid_t pid;

	start(2 * MiB, 0);
	p = map(100);
	inherit(rt, p, 100, UP_INHERIT_COPY);
	fill(p, 0, 100, 1);
	large[sizeof large - 1] = 1;
	pid = fork_child();
	if (pid == 0)
		_exit(wrong(p, 0, 100, 1) > 0 || large[sizeof large - 1] != 1);
	expect_ok(pid);
	up_runtime_destroy(rt);
}

/* Ours is not one of the program's threads, the last of which ends the process. */
Test(fork, a_child_ends_when_its_last_thread_does)
{
	int status;
	uint64_t *p;
	pid_t pid;

	start(2 * MiB, 0);
	p = map(100);
	inherit(rt, p, 100, UP_INHERIT_COPY);
	fill(p, 0, 100, 1);
	pid = fork_child();
	if (pid == 0) {
		if (wrong(p, 0, 100, 1) > 0)
			_exit(77);
		pthread_exit(NULL);
	}
	status = reap(pid);
	/* By itself, through exit(): what a sanitizer makes of that is another matter. */
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) != 77, "child ended with %#x", status);
	up_runtime_destroy(rt);
}

Test(fork, several_threads_fork_at_once)
{
	pthread_t thread[4];
	struct up_stats before;
	uint64_t *p;

	start(3 * MiB, 0);
	p = map(1200);
	fill(p, 0, 1200, 1);
	inherit(rt, p, 1200, UP_INHERIT_COPY);
	before = stats();
	for (size_t i = 0; i < ARRAY_SIZE(thread); i++)
		cr_assert(pthread_create(&thread[i], NULL, fork_in_a_loop, p + i * 100 * 512) == 0);
	for (size_t i = 0; i < ARRAY_SIZE(thread); i++)
		pthread_join(thread[i], NULL);
	cr_assert(atomic_load(&forked_badly) == 0, "%u\n%s", atomic_load(&forked_badly), logged);
	expect_left(&before);
	up_runtime_destroy(rt);
}

/* Calls that change mappings, up_inherit() for the first time of a runtime among them, while another thread forks. */
static void *
make_and_destroy(void *arg)
{
	(void)arg;
	while (!atomic_load(&writers_stop)) {
		struct up_runtime *r = create(2 * MiB, 0, 0);
		uint64_t *p = map_with(r, 100, 0);
		unsigned char vec[8];

		fill(p, 0, 100, 1);
		inherit(r, p, 100, UP_INHERIT_COPY);
		up_residency(r, p, 8 * PAGE, vec);
		fill(p, 0, 100, 2);
		cr_assert(wrong(p, 0, 100, 2) == 0);
		up_runtime_destroy(r);
	}
	return NULL;
}

/* What a call is told to write to may be paged memory of another runtime. */
static void *
ask_into_paged_memory(void *arg)
{
	uint64_t *p = arg;

	while (!atomic_load(&writers_stop)) {
		for (size_t i = 0; i < 50; i++)
			up_residency(rt, p, PAGE, (unsigned char *)word(p, i + 1));
	}
	return NULL;
}

Test(fork, runtimes_come_and_go_while_a_thread_forks)
{
	pthread_t thread[2];
	uint64_t *p;

	start(2 * MiB, 0);
	p = map(600);
	inherit(rt, p, 600, UP_INHERIT_COPY);
	fill(p, 100, 500, 1);
	cr_assert(pthread_create(&thread[0], NULL, make_and_destroy, NULL) == 0);
	cr_assert(pthread_create(&thread[1], NULL, ask_into_paged_memory, p) == 0);
	for (unsigned k = 0; k < (SLOW ? 10 : 25); k++) {
		const pid_t pid = fork_child();

		if (pid == 0)
			_exit(wrong(p, 100, 500, 1) > 0);
		expect_ok(pid);
	}
	atomic_store(&writers_stop, true);
	pthread_join(thread[0], NULL);
	pthread_join(thread[1], NULL);
	no_children();
	up_runtime_destroy(rt);
}

/* --- atfork handlers of the program --- */

static pthread_mutex_t app_lock = PTHREAD_MUTEX_INITIALIZER;

static void
app_take(void)
{
	pthread_mutex_lock(&app_lock);
}

static void
app_give(void)
{
	pthread_mutex_unlock(&app_lock);
}

static void *
touch_under_lock(void *arg)
{
	uint64_t *p = arg;

	for (size_t i = 0; !atomic_load(&writers_stop); i++) {
		pthread_mutex_lock(&app_lock);
		(*word(p, i * 7 % 900))++;
		pthread_mutex_unlock(&app_lock);
		sched_yield();
	}
	return NULL;
}

Test(fork, locks_that_atfork_handlers_take_are_held_while_paged_memory_is_touched)
{
	pthread_t thread[2];
	uint64_t *p;

	cr_assert(pthread_atfork(app_take, app_give, app_give) == 0);
	start(2 * MiB, 0);
	p = map(900);
	inherit(rt, p, 900, UP_INHERIT_COPY);
	for (unsigned i = 0; i < 2; i++)
		cr_assert(pthread_create(&thread[i], NULL, touch_under_lock, p) == 0);
	for (unsigned k = 0; k < (SLOW ? 5 : 15); k++) {
		const pid_t pid = fork_child();

		if (pid == 0) {
			pthread_mutex_lock(&app_lock);
			for (size_t i = 0; i < 900; i++)
				(*word(p, i))++;
			_exit(0);
		}
		expect_ok(pid);
	}
	atomic_store(&writers_stop, true);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	no_children();
	up_runtime_destroy(rt);
}

/* --- ends --- */

#define ORPHAN 700

/*
 * Go on without a pager: each page holds what was written to it last, or is SIGBUS, and then for good.  `version` is
 * what all of it holds.  => catch_signals().  0, or which check failed.
 */
static int
fend_for_oneself(uint64_t *p, uint64_t version)
{
	static bool lost[ORPHAN];

	for (unsigned round = 0; round < 3; round++) {
		for (size_t i = 0; i < ORPHAN; i++) {
			uint64_t want = (version + round) << 32 | i, v = 0;
			int sig = touch(word(p, i), false, &v);

			if (sig != 0 && sig != SIGBUS)
				return 2;
			if (sig == 0 && (lost[i] || v != want)) {
				dprintf(2, "page %zu is %#lx, not %#lx, lost %d\n", i, v, want,
					lost[i]);
				return 3;
			}
			if (sig == 0) {
				v = (version + round + 1) << 32 | i;
				sig = touch(word(p, i), true, &v);
				if (sig != 0 && sig != SIGBUS)
					return 4;
			}
			lost[i] |= sig != 0;
		}
	}
	return 0;
}

/* A child that works until its pager is gone, and a while longer. */
static void
work_on(uint64_t *p, const struct gate *there, pid_t pager)
{
	uint64_t version = 1;

	catch_signals();
	alarm(SLOW ? 4 * DEADLINE : DEADLINE);
	if (write(there->fd[1], "x", 1) != 1)
		_exit(90);
	for (;;) {
		for (size_t i = 0; i < ORPHAN; i++) {
			uint64_t v = 0, want = version << 32 | i, next = (version + 1) << 32 | i;
			int sig = touch(word(p, i), false, &v);

			if (sig == 0 && v != want) {
				dprintf(2, "page %zu is %#lx, not %#lx\n", i, v, want);
				_exit(10);
			}
			if (sig == 0)
				sig = touch(word(p, i), true, &next);
			if (sig == 0)
				continue;
			if (sig != SIGBUS)
				_exit(11);
			/* So the pager is gone: nothing else makes pages SIGBUS here. */
			for (unsigned k = 0; kill(pager, 0) == 0 && getppid() == pager && k < 1000;
			     k++)
				pause_ms(1);
			if (getppid() == pager)
				_exit(12);
			for (size_t k = 0; k < ORPHAN; k++) {
				sig = touch(word(p, k), false, &v);
				if (sig != 0 && sig != SIGBUS)
					_exit(13);
				want = (k < i ? version + 1 : version) << 32 | k;
				if (sig == 0 && v != want && !(k == i && v == next)) {
					dprintf(2, "orphan's page %zu is %#lx, not %#lx\n", k, v,
						want);
					_exit(14);
				}
				next = 7;
				if (touch(word(p, k), true, &next) != sig)
					_exit(15);
			}
			_exit(0);
		}
		version++;
		if (getppid() != pager)
			_exit(fend_for_oneself(p, version));
	}
}

/* The process with the runtime: never returns. */
static void
be_pager(uint64_t mask, const struct gate *there, unsigned nchildren)
{
	const struct up_config cfg = { .memory_limit = 2 * MiB,
				       .service_threads = 2,
				       .feature_mask = mask };
	const pid_t me = getpid();
	struct up_runtime *mine;
	uint64_t *p;
	void *va;

	if (up_runtime_create(&mine, &cfg) != 0 ||
	    up_map(mine, NULL, ORPHAN * PAGE, RW, UP_PRIVATE, NULL, 0, &va) != 0)
		_exit(1);
	p = va;
	fill(p, 0, ORPHAN, 1);
	if (up_inherit(mine, p, ORPHAN * PAGE, UP_INHERIT_COPY) != 0)
		_exit(2);
	for (unsigned k = 0; k < nchildren; k++) {
		const pid_t pid = fork();

		if (pid == 0)
			work_on(p, there, me);
	}
	for (uint64_t version = 2;; version++)
		fill(p, 0, ORPHAN, version);
}

static void
kill_the_pager(uint64_t mask)
{
	struct gate there;

	start(2 * MiB, mask);
	up_runtime_destroy(rt);
	rt = NULL;
	gate_make(&there);
	cr_assert(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
	for (unsigned round = 0; round < (SLOW ? 8 : 40); round++) {
		const pid_t pager = fork_child();

		if (pager == 0)
			be_pager(mask, &there, 3);
		cr_assert(gate_wait(&there, 3), "round %u", round);
		pause_ms(round * 7 % 60);
		kill(pager, SIGKILL);
		expect_signal(pager, SIGKILL);
		for (unsigned k = 0; k < 3; k++) {
			const int status = reap(-1);

			cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0,
				  "round %u: a child ended with %#x", round, status);
		}
	}
}

Test(fork, the_pager_is_killed_and_its_children_have_what_is_in_memory)
{
	kill_the_pager(0);
}

Test(fork, the_pager_is_killed_without_move)
{
	kill_the_pager(UP_MASK_MOVE);
}

/* Its children are in the middle of whatever they do. */
Test(fork, a_runtime_is_destroyed_and_its_children_live_on)
{
	struct gate there;

	gate_make(&there);
	for (unsigned round = 0; round < (SLOW ? 6 : 25); round++) {
		const size_t n = ORPHAN;
		pid_t pid[3];
		uint64_t *p, *s;
		struct up_object *o;

		start(2 * MiB, 0);
		p = map(n);
		o = object(100);
		s = map_object(o, 100, RW, UP_SHARED | UP_MULTI);
		fill(p, 0, n, 1);
		fill(s, 0, 100, 1);
		inherit(rt, p, n, UP_INHERIT_COPY);
		inherit(rt, s, 100, UP_INHERIT_SHARE);
		for (unsigned k = 0; k < ARRAY_SIZE(pid); k++) {
			pid[k] = fork_child();
			if (pid[k] != 0)
				continue;
			catch_signals();
			gate_pass(&there, 1);
			for (uint64_t version = 1;; version++) {
				for (size_t i = 0; i < n; i++) {
					uint64_t v = 0, next = (version + 1) << 32 | i;
					int sig = touch(word(p, i), false, &v);

					if (sig == 0 && v != (version << 32 | i)) {
						dprintf(2, "page %zu is %#lx of version %lu\n", i,
							v, version);
						_exit(1);
					}
					if (sig == 0)
						sig = touch(word(p, i), true, &next);
					if (sig == 0)
						sig = touch(word(s, i % 100), false, &v);
					if (sig == 0 && v != (UINT64_C(1) << 32 | i % 100))
						_exit(2);
					if (sig == SIGBUS)
						_exit(0);
					if (sig != 0)
						_exit(3);
				}
			}
		}
		cr_assert(gate_wait(&there, ARRAY_SIZE(pid)));
		pause_ms(round * 5 % 50);
		up_object_unref(o);
		up_runtime_destroy(rt);
		for (unsigned k = 0; k < ARRAY_SIZE(pid); k++)
			expect_ok(pid[k]);
	}
}

/* Children of children, killed at any moment. */
static void
fork_for_ever(uint64_t *p, size_t n)
{
	for (uint64_t version = 2;; version++) {
		pid_t pid;

		fill(p, 0, n, version);
		pid = fork();
		if (pid == 0)
			_exit(wrong(p, 0, n, version) > 0);
		if (pid > 0) {
			int status;

			if (waitpid(pid, &status, 0) != pid || status != 0)
				_exit(1);
		}
	}
}

Test(fork, children_are_killed_in_every_state)
{
	const unsigned rounds = SLOW ? 60 : 300;
	struct up_stats before;
	uint64_t *p, seed = 1;
	const size_t n = 600;

	start(2 * MiB, 0);
	p = map(n);
	fill(p, 0, n, 1);
	inherit(rt, p, n, UP_INHERIT_COPY);
	before = stats();
	cr_assert(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
	for (unsigned k = 0; k < rounds; k++) {
		struct timespec ts = { 0 };
		const pid_t pid = fork_child();
		int status;

		if (pid == 0) {
			if (wrong(p, 0, k % 4 == 0 ? n : 5, 1) > 0)
				_exit(1);
			fork_for_ever(p, k % 3 == 0 ? n : 20);
		}
		seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
		ts.tv_nsec = (long)((seed >> 33) % 12000000);
		nanosleep(&ts, NULL);
		kill(pid, SIGKILL);
		status = reap(pid);
		cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
			  "round %u: child ended with %#x\n%s", k, status, logged);
		/* What it left behind comes to us. */
		while (waitpid(-1, &status, WNOHANG) > 0)
			cr_assert(status == 0, "round %u: an orphan ended with %#x\n%s", k, status,
				  logged);
	}
	while (waitpid(-1, &(int){ 0 }, 0) > 0)
		;
	cr_assert(wrong(p, 0, n, 1) == 0);
	expect_left(&before);
	cr_assert(depth_at(p) == 0);
	up_runtime_destroy(rt);
}

Test(fork, a_child_that_closes_everything_is_served_and_its_end_is_noticed)
{
	struct gate there, back;
	struct up_stats before;
	const size_t n = 900;
	uint64_t *p, v = 0;
	pid_t pid;

	start(2 * MiB, 0);
	gate_make(&there);
	gate_make(&back);
	p = map(n);
	fill(p, 0, n, 1);
	inherit(rt, p, n, UP_INHERIT_COPY);
	before = stats();
	pid = fork_child();
	if (pid == 0) {
		syscall(SYS_close_range, 0u, ~0u, 0u);
		if (wrong(p, 0, n, 1) > 0)
			_exit(1);
		fill(p, 0, n, 2);
		if (wrong(p, 0, n, 2) > 0)
			_exit(2);
		/* The number of its socket is another file now. */
		for (unsigned i = 0; i < 200; i++) {
			if (open("/dev/null", O_RDWR) < 0)
				_exit(3);
		}
		pid = fork();
		if (pid == 0) {
			catch_signals();
			_exit(touch(p, false, &v) != SIGSEGV);
		}
		_exit(waitpid(pid, &(int){ 0 }, 0) != pid || wrong(p, 0, n, 2) > 0 ? 4 : 0);
	}
	expect_ok(pid);
	expect_left(&before);
	/* Without ending: by exec(), which takes its memory away. */
	pid = fork_child();
	if (pid == 0) {
		if (wrong(p, 0, n, 1) > 0)
			_exit(1);
		execl("/bin/sleep", "sleep", "1000", (char *)NULL);
		_exit(1);
	}
	expect_left(&before);
	kill(pid, SIGKILL);
	expect_signal(pid, SIGKILL);
	up_runtime_destroy(rt);
}

Test(fork, processes_that_are_made_otherwise_have_nothing_and_do_no_harm)
{
	char *const argv[] = { (char *)(uintptr_t) "true", NULL }, *const env[] = { NULL };
	struct up_stats before;
	const size_t n = 900;
	uint64_t *p, v = 0;
	pid_t pid;

	start(2 * MiB, 0);
	p = map(n);
	fill(p, 0, n, 1);
	inherit(rt, p, n, UP_INHERIT_COPY);
	before = stats();
	for (unsigned k = 0; k < 20; k++) {
		cr_assert(system("true") == 0);
		cr_assert(posix_spawn(&pid, "/bin/true", NULL, NULL, argv, env) == 0);
		expect_ok(pid);
		pid = vfork();
		if (pid == 0) {
			execve("/bin/true", argv, env);
			_exit(1);
		}
		expect_ok(pid);
		pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
		if (pid == 0) {
			catch_signals();
			_exit(touch(p, false, &v) != SIGSEGV);
		}
		expect_ok(pid);
		cr_assert(wrong(p, k * 45, 45, 1) == 0);
	}
	expect_left(&before);
	/* One that lives on has copies of our descriptors; who was forked is noticed all the same. */
	pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (pid == 0) {
		for (;;)
			pause();
	}
	for (unsigned k = 0; k < 3; k++) {
		const pid_t child = fork_child();

		if (child == 0)
			_exit(wrong(p, 0, n, 1) > 0);
		expect_ok(child);
	}
	expect_left(&before);
	kill(pid, SIGKILL);
	reap(pid);
	up_runtime_destroy(rt);
}

/* It may be stopped in the middle of a fork: then its own faults wait, and nobody else's. */
Test(fork, a_child_that_is_stopped_does_not_stop_the_parent)
{
	const int swap = memfd_create("swap", MFD_CLOEXEC); /* how long a disk takes is not asked */
	uint64_t *p, worst = 0, seed = 7;
	const size_t n = 600;

	cr_assert(swap > 0);
	at_once();
	start_on(swap, 2 * MiB, 0);
	close(swap);
	p = map(n);
	fill(p, 0, n, 1);
	inherit(rt, p, n, UP_INHERIT_COPY);
	for (unsigned k = 0; k < (SLOW ? 4 : 10); k++) {
		const pid_t pid = fork_child();
		struct timespec ts = { 0 };
		uint64_t t;

		if (pid == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (;;) {
				const pid_t sub = fork();

				if (sub == 0)
					_exit(0);
				waitpid(sub, &(int){ 0 }, 0);
			}
		}
		seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
		ts.tv_nsec = (long)((seed >> 33) % 9000000);
		nanosleep(&ts, NULL);
		kill(pid, SIGSTOP);
		/* Each touch for itself: how long all of them take is the machine's affair. */
		for (size_t i = 0; i < n; i++) {
			t = now_ms();
			fill(p, i, 1, k + 2);
			worst = MAX(worst, now_ms() - t);
		}
		cr_assert(wrong(p, 0, n, k + 2) == 0);
		kill(pid, SIGKILL);
		expect_signal(pid, SIGKILL);
	}
	cr_assert(worst < (SLOW ? 5000 : 1000), "%lu ms", worst);
	no_children();
	up_runtime_destroy(rt);
}

/* Parent, children and their children fork all the time. */
Test(fork, children_fork_while_the_parent_forks)
{
	const size_t n = 300;
	struct up_stats before;
	pid_t pid[3];
	uint64_t *p;

	start(2 * MiB, 0);
	p = map(n);
	fill(p, 0, n, 1);
	inherit(rt, p, n, UP_INHERIT_COPY);
	before = stats();
	for (unsigned k = 0; k < ARRAY_SIZE(pid); k++) {
		pid[k] = fork_child();
		if (pid[k] == 0) {
			for (uint64_t version = 2; version < 15; version++) {
				int status;
				pid_t sub;

				fill(p, 0, n, version);
				sub = fork();
				if (sub == 0)
					_exit(wrong(p, 0, n, version) > 0);
				if (waitpid(sub, &status, 0) != sub || status != 0)
					_exit(1);
			}
			_exit(0);
		}
	}
	for (uint64_t version = 2; version < 30; version++) {
		pid_t sub;

		fill(p, 0, n, version);
		sub = fork_child();
		if (sub == 0)
			_exit(wrong(p, 0, n, version) > 0);
		expect_ok(sub);
	}
	for (unsigned k = 0; k < ARRAY_SIZE(pid); k++)
		expect_ok(pid[k]);
	expect_left(&before);
	up_runtime_destroy(rt);
}

/* --- failures --- */

static void
gets_nothing(uint64_t *p, size_t n, uint64_t version)
{
	const pid_t pid = fork_child();
	uint64_t v = 0;

	if (pid == 0) {
		catch_signals();
		for (size_t i = 0; i < n; i++) {
			if (touch(word(p, i), false, &v) != SIGSEGV)
				_exit(1);
		}
		_exit(0);
	}
	expect_ok(pid);
	cr_assert(strstr(logged, "fork") != NULL, "nothing was logged");
	logged[0] = '\0';
	cr_assert(wrong(p, 0, n, version) == 0);
}

static void
gets_all(uint64_t *p, size_t n, uint64_t version)
{
	const pid_t pid = fork_child();

	if (pid == 0)
		_exit(wrong(p, 0, n, version) > 0);
	expect_ok(pid);
	no_children();
}

/* From here on this thread can make no process, as at a limit of them; a superuser has none that could be reached. */
static void
deny_forks(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAGAIN),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	const struct sock_fprog prog = { .len = sizeof code / sizeof code[0], .filter = code };

	cr_assert(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	cr_assert(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0, "%s", strerror(errno));
}

Test(fork, a_fork_that_fails_leaves_everything_as_it_was)
{
	struct up_stats before;
	sigset_t mine, now;
	uint64_t *p;

	start(2 * MiB, 0);
	p = map(900);
	inherit(rt, p, 900, UP_INHERIT_COPY);
	fill(p, 0, 900, 1);
	before = stats();
	sigemptyset(&mine);
	sigaddset(&mine, SIGUSR2);
	pthread_sigmask(SIG_SETMASK, &mine, NULL);
	deny_forks();
	for (unsigned k = 1; k <= 20; k++) {
		errno = 0;
		cr_assert(fork() == -1 && errno == EAGAIN, "fork %u: %s", k, strerror(errno));
		pthread_sigmask(SIG_SETMASK, NULL, &now);
		cr_assert(same_mask(&mine, &now), "fork %u", k);
		cr_assert(wrong(p, 0, 900, k) == 0, "after fork %u", k);
		fill(p, 0, 900, k + 1);
	}
	expect_left(&before);
	cr_assert(wrong(p, 0, 900, 21) == 0);
	up_runtime_destroy(rt);
}

Test(fork, without_swap_for_the_copy_the_child_has_nothing)
{
	const struct up_config cfg = { .memory_limit = 3 * MiB,
				       .swap_size = 1500 * PAGE,
				       .log = collect };
	struct up_stats before;
	uint64_t *p, *q;
	void *va;

	start(3 * MiB, 0);
	up_runtime_destroy(rt);
	cr_assert(up_runtime_create(&rt, &cfg) == 0);
	p = map(1000);
	fill(p, 0, 1000, 1);
	inherit(rt, p, 1000, UP_INHERIT_COPY);
	before = stats();
	for (unsigned k = 0; k < 3; k++)
		gets_nothing(p, 1000, 1);
	expect_left(&before);
	cr_assert(up_unmap(rt, p + 500 * 512, 500 * PAGE) == 0);
	gets_all(p, 500, 1);
	q = map_with(rt, 100, UP_NORESERVE);
	(void)q;
	cr_assert(up_map(rt, NULL, 500 * PAGE, RW, UP_PRIVATE, NULL, 0, &va) == 0);
	up_runtime_destroy(rt);
}

Test(fork, without_metadata_for_the_copy_the_child_has_nothing)
{
	struct up_stats before;
	const size_t n = 1000, others = test_compression() == UP_COMPRESS_NONE ? 20000 : 12000;
	uint64_t *p, *q;
	void *va;

	start(2 * MiB, 0);
	p = map(n);
	q = map(others);
	while (up_map(rt, NULL, 512 * PAGE, RW, UP_PRIVATE, NULL, 0, &va) == 0)
		;
	fill(p, 0, n, 1);
	inherit(rt, p, n, UP_INHERIT_COPY);
	before = stats();
	for (unsigned k = 0; k < 3; k++)
		gets_nothing(p, n, 1);
	expect_left(&before);
	cr_assert(up_unmap(rt, q, others * PAGE) == 0);
	gets_all(p, n, 1);
	up_runtime_destroy(rt);
}

Test(fork, while_a_page_is_wired_the_child_has_nothing)
{
	struct up_stats before;
	uint64_t *p;

	start(3 * MiB, 0);
	p = map(900);
	fill(p, 0, 900, 1);
	inherit(rt, p, 900, UP_INHERIT_COPY);
	before = stats();
	cr_assert(up_wire(rt, p + 512, PAGE) == 0);
	gets_nothing(p, 900, 1);
	cr_assert(up_unwire(rt, p + 512, PAGE) == 0);
	gets_all(p, 900, 1);
	(void)before;
	up_runtime_destroy(rt);
}

/* Locked: to the pager what can not be taken out of the page table is all the same. */
Test(fork, while_a_page_is_locked_the_child_has_nothing)
{
	uint64_t *p;

	start(3 * MiB, 0);
	p = map(900);
	fill(p, 0, 900, 1);
	inherit(rt, p, 900, UP_INHERIT_COPY);
	/* (ASan's mlock() does nothing.)  Where threads serve themselves, mlock() is not served. */
	cr_assert(up_prefault(rt, p, PAGE, 1) == 0);
	cr_assert(syscall(SYS_mlock, p, PAGE) == 0);
	gets_nothing(p, 900, 1);
	cr_assert(syscall(SYS_munlock, p, PAGE) == 0);
	gets_all(p, 900, 1);
	up_runtime_destroy(rt);
}

Test(fork, without_descriptors_the_child_has_nothing_and_nobody_waits)
{
	struct rlimit old, few;
	struct up_stats before;
	int last[3];
	uint64_t *p;
	pid_t pid;

	start(3 * MiB, 0);
	p = map(900);
	fill(p, 0, 900, 1);
	inherit(rt, p, 900, UP_INHERIT_COPY);
	before = stats();
	cr_assert(getrlimit(RLIMIT_NOFILE, &old) == 0);
	last[0] = dup(0);
	few = (struct rlimit){ (rlim_t)last[0] + 1, old.rlim_max };
	for (unsigned k = 0; k < 6; k++) {
		few.rlim_cur = (rlim_t)last[0] + 1 + k;
		setrlimit(RLIMIT_NOFILE, &few);
		pid = fork();
		if (pid == 0) {
			uint64_t v = 0;
			int sig;

			alarm(SLOW ? 4 * DEADLINE : DEADLINE);
			catch_signals();
			sig = touch(p, false, &v);
			_exit(sig == SIGSEGV || (sig == 0 && wrong(p, 0, 900, 1) == 0) ? 0 : 1);
		}
		setrlimit(RLIMIT_NOFILE, &old);
		cr_assert(pid > 0);
		expect_ok(pid);
		cr_assert(wrong(p, 0, 900, 1) == 0);
	}
	expect_left(&before);
	gets_all(p, 900, 1);
	up_runtime_destroy(rt);
}

/* In a child that forks: what the pager tells it then is many messages long, and the next fork is told anew. */
Test(fork, a_child_that_runs_out_of_descriptors_while_it_forks_can_fork_later)
{
	const size_t parts = 80; /* ranges of two pages, with holes between them */
	uint64_t *p;
	pid_t pid;

	start(16 * MiB, 0);
	p = map(parts * 3);
	fill(p, 0, parts * 3, 1);
	inherit(rt, p, parts * 3, UP_INHERIT_COPY);
	for (size_t i = 0; i < parts; i++)
		cr_assert(up_unmap(rt, p + (i * 3 + 2) * 512, PAGE) == 0);
	pid = fork_child();
	if (pid == 0) {
		struct rlimit old, few;
		int low = dup(0), status;

		catch_signals();
		getrlimit(RLIMIT_NOFILE, &old);
		for (unsigned k = 0; k < 4; k++) {
			few = (struct rlimit){ (rlim_t)low + 5 + 10 * k, old.rlim_max };
			setrlimit(RLIMIT_NOFILE, &few);
			pid = fork();
			if (pid == 0) {
				uint64_t v = 0;
				const int sig = touch(p, false, &v);

				_exit(sig == SIGSEGV ? 0 : 1);
			}
			setrlimit(RLIMIT_NOFILE, &old);
			if (waitpid(pid, &status, 0) != pid || status != 0)
				_exit(1);
			fill(p, 0, 2, k + 2);
			pid = fork();
			if (pid == 0) {
				size_t bad = wrong(p, 0, 2, k + 2);

				for (size_t i = 1; i < parts; i++)
					bad += wrong(p, i * 3, 2, 1);
				_exit(bad > 0);
			}
			if (waitpid(pid, &status, 0) != pid || status != 0)
				_exit(2);
		}
		_exit(0);
	}
	expect_ok(pid);
	no_children();
	up_runtime_destroy(rt);
}

/* A clone of shared memory is a copy, private to each. */
Test(fork, a_clone_of_what_children_share_is_copied_to_them)
{
	struct up_object *o;
	uint64_t *p, *q;
	void *va;
	pid_t pid;

	start(3 * MiB, 0);
	o = object(300);
	p = map_object(o, 300, RW, UP_SHARED | UP_MULTI);
	fill(p, 0, 300, 1);
	inherit(rt, p, 300, UP_INHERIT_SHARE);
	cr_assert(up_clone(rt, p, 300 * PAGE, &va) == 0);
	q = va;
	pid = fork_child();
	if (pid == 0) {
		if (wrong(p, 0, 300, 1) + wrong(q, 0, 300, 1) > 0)
			_exit(1);
		fill(p, 0, 300, 2);
		fill(q, 0, 300, 3);
		_exit(wrong(p, 0, 300, 2) + wrong(q, 0, 300, 3) > 0);
	}
	expect_ok(pid);
	cr_assert(wrong(p, 0, 300, 2) + wrong(q, 0, 300, 1) == 0);
	up_object_unref(o);
	up_runtime_destroy(rt);
}

/* Its process lives on as another program: nothing but the end of their sockets tells its children. */
Test(fork, the_pager_executes_another_program_and_its_children_do_not_wait_for_ever)
{
	struct gate there;
	int status;

	start(2 * MiB, 0);
	up_runtime_destroy(rt);
	gate_make(&there);
	cr_assert(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
	for (unsigned round = 0; round < (SLOW ? 3 : 10); round++) {
		const pid_t pager = fork_child();

		if (pager == 0) {
			uint64_t *p;

			start(2 * MiB, 0);
			p = map(ORPHAN);
			fill(p, 0, ORPHAN, 1);
			inherit(rt, p, ORPHAN, UP_INHERIT_COPY);
			for (unsigned k = 0; k < 3; k++) {
				if (fork() > 0)
					continue;
				alarm(DEADLINE);
				catch_signals();
				gate_pass(&there, 1);
				for (size_t i = 0;; i = (i + 1) % ORPHAN) {
					uint64_t v = 0, want = UINT64_C(1) << 32 | i;
					int sig = touch(word(p, i), false, &v);

					if (sig == 0 && v != want)
						_exit(1);
					if (sig == 0)
						sig = touch(word(p, i), true, &want);
					if (sig != 0)
						_exit(sig == SIGBUS ? 0 : 2);
				}
			}
			gate_wait(&there, 3);
			pause_ms(round * 3);
			execl("/bin/sleep", "sleep", "1000", (char *)NULL);
			_exit(1);
		}
		/* It sleeps on, and has not waited for them. */
		for (uint64_t end = now_ms() + DEADLINE * UINT64_C(1000);;) {
			char path[64], buf[4096];
			size_t n;
			FILE *f;
			bool running = false, sleeping;
			char *at;

			snprintf(path, sizeof path, "/proc/%d/comm", pager);
			f = fopen(path, "re");
			n = f != NULL ? fread(buf, 1, sizeof buf - 1, f) : 0;
			buf[n] = '\0';
			sleeping = strcmp(buf, "sleep\n") == 0;
			if (f != NULL)
				fclose(f);
			snprintf(path, sizeof path, "/proc/%d/task/%d/children", pager, pager);
			f = fopen(path, "re");
			n = f != NULL ? fread(buf, 1, sizeof buf - 1, f) : 0;
			buf[n] = '\0';
			if (f != NULL)
				fclose(f);
			at = buf;
			for (char *next; sleeping; at = next) {
				const long pid = strtol(at, &next, 10);
				char stat[512] = "";

				if (next == at)
					break;
				snprintf(path, sizeof path, "/proc/%ld/stat", pid);
				f = fopen(path, "re");
				if (f != NULL && fgets(stat, sizeof stat, f) != NULL)
					running |= strstr(stat, ") Z") == NULL;
				if (f != NULL)
					fclose(f);
			}
			if (sleeping && !running)
				break;
			cr_assert(now_ms() < end, "round %u: its children wait for ever", round);
			pause_ms(2);
		}
		kill(pager, SIGKILL);
		expect_signal(pager, SIGKILL);
		for (unsigned k = 0; k < 3; k++) {
			status = reap(-1);
			cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0,
				  "round %u: a child ended with %#x", round, status);
		}
	}
}
