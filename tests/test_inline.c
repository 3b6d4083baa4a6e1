/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_inline.c: threads that serve their own faults (UP_DELIVER_INLINE), on the real kernel: the process's SIGBUS, and
 * what a thread may be doing when it gets one.
 *
 * That the pager does the same in both ways is for the other suites: they run in both (delivery.h).
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "real.h"
#include "stress.h"
#include "uffd_pager.h"

#define PAGE ((size_t)UP_PAGE_SIZE)
#define WORDS (PAGE / 8)
#define MiB ((size_t)1 << 20)
#define RW (PROT_READ | PROT_WRITE)
#define DEADLINE 30 /* seconds, for what takes milliseconds */

TestSuite(inline_, .timeout = STRESS_SANITIZED ? 200 : 60);

static struct up_runtime *rt;

static struct up_runtime *
create_with(struct up_config cfg)
{
	cfg.service_threads = 1;
	cfg.delivery = UP_DELIVER_INLINE;
	cfg.log = collect;
	return real_start(&cfg);
}

static struct up_runtime *
create(size_t limit, const char *swap_path)
{
	return create_with((struct up_config){ .memory_limit = limit, .swap_path = swap_path });
}

static uint64_t *
map_in(struct up_runtime *in, size_t npages)
{
	void *p;
	const int r = up_map(in, NULL, npages * PAGE, RW, UP_PRIVATE, NULL, 0, &p);

	cr_assert(r == 0, "up_map: %s: %s", strerrorname_np(-r), logged);
	return p;
}

static uint64_t
content(size_t page, size_t w)
{
	return stress_mix(page * WORDS + w);
}

static void
fill(uint64_t *p, size_t npages)
{
	for (size_t i = 0; i < npages * WORDS; i++)
		p[i] = content(i / WORDS, i % WORDS);
}

static void
check(const uint64_t *p, size_t npages)
{
	for (size_t i = 0; i < npages * WORDS; i++)
		cr_assert(p[i] == content(i / WORDS, i % WORDS), "word %zu of page %zu", i % WORDS,
			  i / WORDS);
}

static struct up_stats
stats_of(struct up_runtime *of)
{
	struct up_stats st;

	cr_assert(up_stats_get(of, &st, sizeof st) == 0);
	return st;
}

/* --- faults --- */

Test(inline_, every_kind_of_fault_is_served_by_who_touched)
{
	enum { N = 4096 };
	struct up_stats st;
	uint64_t *p;
	void *q;

	rt = create(4 * MiB, NULL);
	p = map_in(rt, N);
	fill(p, N);
	check(p, N);
	cr_assert(up_advise(rt, p, N * PAGE, UP_ADVICE_COLD) == 0);
	check(p, N);
	cr_assert(up_clone(rt, p, N * PAGE, &q) == 0, "%s", logged);
	check(q, N);
	p[5 * WORDS] = 1;
	check(q, N);
	st = stats_of(rt);
	cr_assert(st.faults[UP_FAULT_ZERO] > 0 && st.faults[UP_FAULT_SOFT] > 0 &&
		  st.faults[UP_FAULT_MAJOR] > 0 && st.copies > 0);
	cr_assert(st.latency[UP_FAULT_MAJOR].p50 > 0);
	cr_assert(st.used_max <= st.limit && st.lost == 0 && st.fault_sigbus == 0);
	up_runtime_destroy(rt);
}

static uint64_t *shared;
static atomic_bool stop;
enum { SHARED = 2000, THREADS = 6 };

static void *
adder(void *arg)
{
	uint64_t *mine = calloc(SHARED, sizeof *mine), seed = (uintptr_t)arg;

	while (!atomic_load(&stop)) {
		const size_t i = (seed = stress_mix(seed)) % SHARED;

		atomic_fetch_add((_Atomic uint64_t *)&shared[i * WORDS + i % WORDS], 1);
		mine[i]++;
	}
	return mine;
}

/* Twice as many as there are processors at least, so that they meet each other's pages. */
Test(inline_, threads_that_fault_side_by_side_lose_nothing)
{
	uint64_t sum[SHARED] = { 0 };
	const struct timespec time = { .tv_sec = 2 };
	pthread_t t[THREADS];
	pthread_attr_t attr;
	void *mine;

	rt = create(3 * MiB, NULL);
	shared = map_in(rt, SHARED);
	pthread_attr_init(&attr);
	if (!STRESS_SANITIZED) /* what the header asks for, and what a thread needs itself */
		pthread_attr_setstacksize(&attr, (size_t)64 << 10);
	for (uintptr_t i = 0; i < THREADS; i++)
		cr_assert(pthread_create(&t[i], &attr, adder, (void *)(i + 1)) == 0);
	nanosleep(&time, NULL); /* that long they run */
	atomic_store(&stop, true);
	for (unsigned i = 0; i < THREADS; i++) {
		pthread_join(t[i], &mine);
		for (size_t k = 0; k < SHARED; k++)
			sum[k] += ((uint64_t *)mine)[k];
		free(mine);
	}
	for (size_t k = 0; k < SHARED; k++)
		cr_assert(shared[k * WORDS + k % WORDS] == sum[k], "page %zu", k);
	cr_assert(stats_of(rt).used_max <= stats_of(rt).limit);
	up_runtime_destroy(rt);
}

Test(inline_, system_calls_fail_on_what_is_absent_until_it_is_prefaulted)
{
	enum { N = 8 };
	char buf[N * 4096];
	uint64_t *p;
	int fd[2];

	rt = create(4 * MiB, NULL);
	cr_assert((up_features(rt) & UP_MASK_KERNEL_FAULTS) == 0);
	p = map_in(rt, N);
	cr_assert(pipe(fd) == 0);
	cr_assert(write(fd[1], p, N * PAGE) == -1 && errno == EFAULT);
	fill(p, N);
	cr_assert(up_prefault(rt, p, N * PAGE, 0) == 0, "%s", logged);
	cr_assert(write(fd[1], p, N * PAGE) == (ssize_t)(N * PAGE));
	cr_assert(up_advise(rt, p, N * PAGE, UP_ADVICE_DONTNEED) == 0);
	cr_assert(up_prefault(rt, p, N * PAGE, 1) == 0, "%s", logged);
	cr_assert(read(fd[0], p, N * PAGE) == (ssize_t)(N * PAGE));
	check(p, N);
	memcpy(buf, p, sizeof buf);
	close(fd[0]);
	close(fd[1]);
	up_runtime_destroy(rt);
}

/* --- what the thread was doing --- */

Test(inline_, errno_and_registers_stay_as_they_are)
{
	enum { N = 3000 };
	uint64_t *p;

	rt = create(3 * MiB, NULL);
	p = map_in(rt, N);
	fill(p, N);
	for (size_t i = 0; i < N; i++) {
		errno = 1000 + (int)i;
		cr_assert(*(volatile uint64_t *)&p[i * WORDS] == content(i, 0));
		cr_assert(errno == 1000 + (int)i, "errno is %d", errno);
	}
#if defined(__x86_64__)
	for (size_t i = 0; i < N; i += 7) {
		_Alignas(16) unsigned char in[16][16], out[16][16];
		uint64_t flags_in, flags_out, word;

		for (unsigned k = 0; k < sizeof in; k++)
			((unsigned char *)in)[k] = (unsigned char)stress_mix(i * 1000 + k);
		__asm__ volatile(
			"movdqa 0(%[in]), %%xmm0\n movdqa 16(%[in]), %%xmm1\n movdqa 32(%[in]), %%xmm2\n"
			"movdqa 48(%[in]), %%xmm3\n movdqa 64(%[in]), %%xmm4\n movdqa 80(%[in]), %%xmm5\n"
			"movdqa 96(%[in]), %%xmm6\n movdqa 112(%[in]), %%xmm7\n movdqa 128(%[in]), %%xmm8\n"
			"movdqa 144(%[in]), %%xmm9\n movdqa 160(%[in]), %%xmm10\n movdqa 176(%[in]), %%xmm11\n"
			"movdqa 192(%[in]), %%xmm12\n movdqa 208(%[in]), %%xmm13\n movdqa 224(%[in]), %%xmm14\n"
			"movdqa 240(%[in]), %%xmm15\n"
			"stc\n"
			"movq (%[page]), %[word]\n"
			"movdqa %%xmm0, 0(%[out])\n movdqa %%xmm1, 16(%[out])\n movdqa %%xmm2, 32(%[out])\n"
			"movdqa %%xmm3, 48(%[out])\n movdqa %%xmm4, 64(%[out])\n movdqa %%xmm5, 80(%[out])\n"
			"movdqa %%xmm6, 96(%[out])\n movdqa %%xmm7, 112(%[out])\n movdqa %%xmm8, 128(%[out])\n"
			"movdqa %%xmm9, 144(%[out])\n movdqa %%xmm10, 160(%[out])\n movdqa %%xmm11, 176(%[out])\n"
			"movdqa %%xmm12, 192(%[out])\n movdqa %%xmm13, 208(%[out])\n movdqa %%xmm14, 224(%[out])\n"
			"movdqa %%xmm15, 240(%[out])\n"
			: [word] "=&r"(word), "=@ccc"(flags_out)
			: [in] "r"(in), [out] "r"(out), [page] "r"(&p[i * WORDS + 9])
			: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
			  "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "memory");
		flags_in = 1;
		cr_assert(word == content(i, 9) && flags_out == flags_in);
		cr_assert(memcmp(in, out, sizeof in) == 0, "vector registers at page %zu", i);
	}
#endif
	up_runtime_destroy(rt);
}

static _Atomic uint64_t ticks;

static void
on_tick(int sig)
{
	const size_t i = stress_mix(atomic_fetch_add(&ticks, 1)) % SHARED;

	(void)sig;
	atomic_fetch_add((_Atomic uint64_t *)&shared[i * WORDS], 1);
}

Test(inline_, handlers_of_signals_in_flight_touch_regions_too)
{
	struct sigaction sa = { .sa_handler = on_tick, .sa_flags = SA_RESTART };
	const struct itimerval every = { { 0, 500 }, { 0, 500 } }, never = { { 0, 0 }, { 0, 0 } };
	const double until = seconds() + 2;
	uint64_t n = 0, sum = 0;

	rt = create(3 * MiB, NULL);
	shared = map_in(rt, SHARED);
	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
	while (seconds() < until) {
		for (size_t i = 0; i < 500; i++)
			atomic_fetch_add(
				(_Atomic uint64_t *)&shared[stress_mix(n++) % SHARED * WORDS], 1);
		/* A handler may run inside of a call, too. */
		cr_assert(up_advise(rt, shared, 100 * PAGE, UP_ADVICE_COLD) == 0);
	}
	setitimer(ITIMER_REAL, &never, NULL);
	for (size_t i = 0; i < SHARED; i++)
		sum += shared[i * WORDS];
	cr_assert(atomic_load(&ticks) > 100, "only %lu signals came", atomic_load(&ticks));
	cr_assert(sum == n + atomic_load(&ticks));
	up_runtime_destroy(rt);
}

static void *
cancelled(void *arg)
{
	/*
	 * AddressSanitizer does not see a thread unwind for that, and takes what was around variables of its frames for
	 * poisoned: so there are none, nor are there when it is cancelled at a point of its own choosing.
	 */
	const bool async = (uintptr_t)arg % 2 && !STRESS_SANITIZED;
	uint64_t seed = (uintptr_t)arg;

	if (async)
		pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
	for (;;) {
		const size_t i = (seed = stress_mix(seed)) % SHARED;

		shared[i * WORDS + 1] = content(i, 1);
		if (!async)
			pthread_testcancel();
	}
	return NULL;
}

/* Were a thread to be cancelled in the handler, it would leave with a worker, a busy page and perhaps a lock. */
Test(inline_, a_cancelled_thread_leaves_nothing_behind)
{
	rt = create(3 * MiB, NULL);
	shared = map_in(rt, SHARED);
	for (uintptr_t round = 0; round < 150; round++) {
		const struct timespec a_while = { .tv_nsec = (long)(stress_mix(round) % 3000000) };
		pthread_t t[3];
		void *result;

		for (uintptr_t i = 0; i < 3; i++)
			cr_assert(pthread_create(&t[i], NULL, cancelled, (void *)(round * 3 + i)) ==
				  0);
		nanosleep(&a_while, NULL);
		for (unsigned i = 0; i < 3; i++)
			pthread_cancel(t[i]);
		for (unsigned i = 0; i < 3; i++) {
			pthread_join(t[i], &result);
			cr_assert(result == PTHREAD_CANCELED);
		}
	}
	for (size_t i = 0; i < SHARED; i++)
		cr_assert(shared[i * WORDS + 1] == 0 || shared[i * WORDS + 1] == content(i, 1));
	cr_assert(stats_of(rt).lost == 0);
	up_runtime_destroy(rt); /* asserts that all is at rest */
}

static void *
short_lived(void *arg)
{
	const size_t i = (uintptr_t)arg % SHARED;

	atomic_fetch_add((_Atomic uint64_t *)&shared[i * WORDS], 1);
	return NULL;
}

Test(inline_, threads_come_touch_and_go)
{
	uint64_t sum = 0;

	rt = create(3 * MiB, NULL);
	shared = map_in(rt, SHARED);
	for (uintptr_t round = 0; round < 1500; round++) {
		pthread_t t[4];

		for (uintptr_t i = 0; i < 4; i++)
			cr_assert(pthread_create(&t[i], NULL, short_lived,
						 (void *)stress_mix(round * 4 + i)) == 0);
		for (unsigned i = 0; i < 4; i++)
			pthread_join(t[i], NULL);
	}
	for (size_t i = 0; i < SHARED; i++)
		sum += shared[i * WORDS];
	cr_assert(sum == 6000);
	up_runtime_destroy(rt);
}

/* --- the process's SIGBUS --- */

static _Thread_local sigjmp_buf escape;
static _Thread_local volatile sig_atomic_t expected;
static _Thread_local void *volatile fault_at;
static _Thread_local volatile int fault_code;
static sigset_t mask_in_handler;

static void
on_bus(int sig, siginfo_t *info, void *context)
{
	(void)context;
	if (!expected)
		_exit(99);
	fault_at = info->si_addr;
	fault_code = info->si_code;
	pthread_sigmask(SIG_SETMASK, NULL, &mask_in_handler);
	siglongjmp(escape, sig);
}

static void
install(void)
{
	struct sigaction sa = { .sa_sigaction = on_bus, .sa_flags = SA_SIGINFO };

	sigemptyset(&sa.sa_mask);
	sigaddset(&sa.sa_mask, SIGUSR1);
	sigaction(SIGBUS, &sa, NULL);
}

/* 0, or the signal that a read raised. */
static int
touch(volatile uint64_t *p)
{
	const int sig = sigsetjmp(escape, 1);

	if (sig == 0) {
		expected = 1;
		(void)*p;
	}
	expected = 0;
	return sig;
}

/* A mapping of a file that has no such page. */
static uint64_t *
beyond_the_end(void)
{
	const int fd = memfd_create("short", MFD_CLOEXEC);
	void *p;

	cr_assert(fd >= 0 && ftruncate(fd, PAGE) == 0);
	p = mmap(NULL, 2 * PAGE, RW, MAP_SHARED, fd, 0);
	cr_assert(p != MAP_FAILED);
	close(fd);
	return (uint64_t *)p + WORDS;
}

Test(inline_, what_is_not_ours_goes_to_who_was_there_before)
{
	uint64_t *p, *elsewhere;
	struct sigaction sa;

	install();
	elsewhere = beyond_the_end();
	rt = create(2 * MiB, NULL);
	p = map_in(rt, 900);
	fill(p, 900);
	for (unsigned i = 0; i < 3; i++) {
		cr_assert(touch(elsewhere + 7) == SIGBUS);
		cr_assert(fault_at == elsewhere + 7 && fault_code == BUS_ADRERR);
		cr_assert(sigismember(&mask_in_handler, SIGUSR1) == 1,
			  "its sa_mask is not in force");
		cr_assert(sigismember(&mask_in_handler, SIGBUS) == 1);
		cr_assert(sigismember(&mask_in_handler, SIGUSR2) == 0,
			  "more is blocked than it asked for");
		check(p, 900);
	}
	up_runtime_destroy(rt);
	cr_assert(sigaction(SIGBUS, NULL, &sa) == 0 && sa.sa_sigaction == on_bus,
		  "the handler was not put back");
	cr_assert(touch(elsewhere) == SIGBUS);
}

static int
scribble(const char *path)
{
	const int fd = open(path, O_WRONLY | O_CLOEXEC);
	const off_t size = lseek(fd, 0, SEEK_END);
	static char junk[1 << 16];

	memset(junk, 0x5a, sizeof junk);
	for (off_t at = 0; at < size; at += (off_t)sizeof junk)
		if (pwrite(fd, junk, sizeof junk, at) < 0)
			return -1;
	return fsync(fd) == 0 ? close(fd) : -1;
}

/* What can not be brought back is SIGBUS as ever, and the line in the log comes, though not from the handler. */
Test(inline_, a_page_that_is_lost_raises_sigbus_in_who_touches_it)
{
	char path[] = "/var/tmp/test_inline.XXXXXX";
	const double until = seconds() + DEADLINE;
	size_t lost = 0;
	uint64_t *p;

	close(mkstemp(path));
	install();
	rt = create(2 * MiB, path);
	p = map_in(rt, 1500);
	fill(p, 1500);
	cr_assert(scribble(path) == 0);
	for (size_t i = 0; i < 1500; i++) {
		if (touch(&p[i * WORDS + 3]) == 0) {
			cr_assert(p[i * WORDS + 3] == content(i, 3), "page %zu was given out wrong",
				  i);
			continue;
		}
		lost++;
		cr_assert(touch(&p[i * WORDS]) == SIGBUS, "page %zu came back", i);
	}
	cr_assert(lost > 100, "only %zu pages were in swap", lost);
	cr_assert(stats_of(rt).lost == lost * PAGE && stats_of(rt).checksum_errors >= lost);
	while (!has_logged("checksum mismatch"))
		cr_assert(seconds() < until, "no line in the log");
	up_runtime_destroy(rt);
	unlink(path);
}

static int
in_child(void (*fn)(void))
{
	int status;
	const pid_t pid = fork();

	cr_assert(pid >= 0);
	if (pid == 0) {
		alarm(DEADLINE);
		fn();
		_exit(7);
	}
	cr_assert(waitpid(pid, &status, 0) == pid);
	return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

static uint64_t *elsewhere_now;

static void
child_touches(void)
{
	uint64_t *p;

	rt = create(2 * MiB, NULL);
	p = map_in(rt, 700);
	fill(p, 700);
	check(p, 700);
	(void)*(volatile uint64_t *)elsewhere_now;
}

static void
child_is_sent_one(void)
{
	rt = create(2 * MiB, NULL);
	kill(getpid(), SIGBUS);
}

static void
child_ignores(void)
{
	signal(SIGBUS, SIG_IGN);
	child_is_sent_one();
	fill(map_in(rt, 700), 700);
}

static void
child_ignores_and_touches(void)
{
	child_ignores();
	(void)*(volatile uint64_t *)elsewhere_now;
}

static void
child_leaves_nothing(void)
{
	child_touches();
}

Test(inline_, without_a_handler_the_default_action_is_taken)
{
	signal(SIGBUS, SIG_DFL); /* also in place of a sanitizer's */
	elsewhere_now = beyond_the_end();
	cr_assert(in_child(child_touches) == 1000 + SIGBUS);
	cr_assert(in_child(child_is_sent_one) == 1000 + SIGBUS);
	cr_assert(in_child(child_ignores) == 7);
	cr_assert(in_child(child_ignores_and_touches) == 1000 + SIGBUS);
	/* Of a process that has a runtime itself. */
	rt = create(2 * MiB, NULL);
	fill(map_in(rt, 700), 700);
	cr_assert(in_child(child_leaves_nothing) == 1000 + SIGBUS);
	up_runtime_destroy(rt);
}

static uint64_t *inherited_not;

static void
child_touches_parents(void)
{
	(void)*(volatile uint64_t *)inherited_not;
}

Test(inline_, a_region_is_absent_in_a_child)
{
	signal(SIGSEGV, SIG_DFL);
	rt = create(2 * MiB, NULL);
	inherited_not = map_in(rt, 10);
	fill(inherited_not, 10);
	cr_assert(in_child(child_touches_parents) == 1000 + SIGSEGV);
	check(inherited_not, 10);
	up_runtime_destroy(rt);
}

static void
on_bus_later(int sig, siginfo_t *info, void *context)
{
	if (!up_handle_sigbus(info, context))
		on_bus(sig, info, context);
}

Test(inline_, a_handler_that_is_installed_later_hands_on_what_is_ours)
{
	struct sigaction sa = { .sa_sigaction = on_bus_later, .sa_flags = SA_SIGINFO };
	struct up_runtime *second;
	uint64_t *p, *q;

	rt = create(2 * MiB, NULL);
	p = map_in(rt, 900);
	sigfillset(&sa.sa_mask);
	sigaction(SIGBUS, &sa, NULL);
	fill(p, 900);
	check(p, 900);
	cr_assert(touch(beyond_the_end()) == SIGBUS);
	cr_assert(!has_logged("up_handle_sigbus"));
	second = create(2 * MiB, NULL);
	cr_assert(has_logged("up_handle_sigbus"), "%s", logged);
	q = map_in(second, 900);
	fill(q, 900);
	check(p, 900);
	check(q, 900);
	up_runtime_destroy(rt);
	check(q, 900);
	up_runtime_destroy(second);
	cr_assert(sigaction(SIGBUS, NULL, &sa) == 0 && sa.sa_sigaction == on_bus_later,
		  "the program's handler was taken away");
	cr_assert(up_handle_sigbus(NULL, NULL) == 0);
}

static struct sigaction saved;
static atomic_uint levels;

static void
on_bus_that_calls_the_one_before(int sig, siginfo_t *info, void *context)
{
	if (up_handle_sigbus(info, context))
		return;
	if (atomic_fetch_add(&levels, 1) > 10)
		_exit(98);
	saved.sa_sigaction(sig, info, context);
}

/* It has ours to call, and the second runtime must not take it for what was before ours. */
Test(inline_, handlers_do_not_call_each_other_for_ever)
{
	struct sigaction sa = { .sa_sigaction = on_bus_that_calls_the_one_before,
				.sa_flags = SA_SIGINFO };
	uint64_t *elsewhere = beyond_the_end(), *p;

	install();
	rt = create(2 * MiB, NULL);
	sigfillset(&sa.sa_mask);
	sigaction(SIGBUS, &sa, &saved);
	up_runtime_destroy(rt);
	rt = create(2 * MiB, NULL);
	p = map_in(rt, 900);
	fill(p, 900);
	cr_assert(touch(elsewhere) == SIGBUS);
	check(p, 900);
	up_runtime_destroy(rt);
}

/* With no runtime left, the library's handler is one that calls what was there before it. */
Test(inline_, a_handler_that_the_program_has_kept_and_put_back_does_no_harm)
{
	uint64_t *elsewhere = beyond_the_end(), *p;
	struct sigaction ours;

	install();
	rt = create(2 * MiB, NULL);
	cr_assert(sigaction(SIGBUS, NULL, &ours) == 0 && ours.sa_sigaction != on_bus);
	up_runtime_destroy(rt);
	sigaction(SIGBUS, &ours, NULL);
	cr_assert(touch(elsewhere) == SIGBUS && fault_at == elsewhere);
	rt = create(2 * MiB, NULL);
	p = map_in(rt, 900);
	fill(p, 900);
	check(p, 900);
	cr_assert(touch(elsewhere) == SIGBUS);
	up_runtime_destroy(rt);
	cr_assert(touch(elsewhere) == SIGBUS);
	cr_assert(sigaction(SIGBUS, NULL, &ours) == 0 && ours.sa_sigaction == on_bus);
}

/* --- several runtimes --- */

static uint64_t *source_of_pages;

/* A service thread of one runtime, with the memory of another. */
static int
page_in(void *ctx, struct up_request *req)
{
	(void)ctx;
	memcpy(up_request_buffer(req), (char *)source_of_pages + up_request_offset(req),
	       up_request_length(req));
	up_request_complete(req, 0);
	return 0;
}

Test(inline_, runtimes_stand_on_each_other)
{
	enum { N = 1500 };
	static const struct up_pager_ops ops = { .size = sizeof ops, .page_in = page_in };
	struct up_runtime *beneath = create(2 * MiB, NULL);
	struct up_object *o;
	uint64_t *p;
	void *q;

	rt = create(2 * MiB, NULL);
	source_of_pages = map_in(beneath, N);
	fill(source_of_pages, N);
	p = map_in(rt, N);
	memcpy(p, source_of_pages, N * PAGE);
	check(p, N);
	cr_assert(up_object_create_custom(rt, N * PAGE, &ops, NULL, &o) == 0, "%s", logged);
	cr_assert(up_map(rt, NULL, N * PAGE, RW, UP_PRIVATE, o, 0, &q) == 0, "%s", logged);
	up_object_unref(o);
	check(q, N);
	check(p, N);
	((uint64_t *)q)[0]++;
	check(source_of_pages, N);
	up_runtime_destroy(rt);
	check(source_of_pages, N);
	up_runtime_destroy(beneath);
}

/* --- pagers that take their time --- */

static uint64_t *
map_custom(struct up_runtime *in, const struct up_pager_ops *ops, size_t npages, unsigned flags)
{
	struct up_object *o;
	void *p;

	cr_assert(up_object_create_custom(in, npages * PAGE, ops, NULL, &o) == 0, "%s", logged);
	cr_assert(up_map(in, NULL, npages * PAGE, RW, flags, o, 0, &p) == 0, "%s", logged);
	up_object_unref(o);
	return p;
}

static sem_t asked, may_answer;

static void
await(sem_t *s, const char *what)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += DEADLINE;
	while (sem_timedwait(s, &until) < 0)
		cr_assert(errno == EINTR, "not in time: %s", what);
}

static void
join_all(pthread_t t[], size_t n)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += DEADLINE;
	for (size_t i = 0; i < n; i++)
		cr_assert(pthread_timedjoin_np(t[i], NULL, &until) == 0, "thread %zu hangs", i);
}

static int
zeros_in(void *ctx, struct up_request *req)
{
	(void)ctx;
	memset(up_request_buffer(req), 0, up_request_length(req));
	up_request_complete(req, 0);
	return 0;
}

#define SHORT_TIMEOUT_MS 100
#define SLOW_ANSWER_MS (6 * SHORT_TIMEOUT_MS)

static void *
answer_slowly(void *req)
{
	const struct timespec slow = { .tv_nsec = SLOW_ANSWER_MS * 1000000l };

	nanosleep(&slow, NULL);
	up_request_complete(req, 0);
	return NULL;
}

static pthread_t answering;

static int
out_slowly(void *ctx, struct up_request *req)
{
	(void)ctx;
	return -pthread_create(&answering, NULL, answer_slowly, req);
}

/* It has to wait for the write, however long that takes: what is on its way to its source has a place. */
Test(inline_, a_page_that_is_being_written_back_for_longer_than_a_fault_may_wait_is_not_lost)
{
	static const struct up_pager_ops ops = { .size = sizeof ops,
						 .page_in = zeros_in,
						 .page_out = out_slowly };
	uint64_t *p;

	install();
	rt = create_with((struct up_config){ .memory_limit = 4 * MiB,
					     .fault_timeout_ms = SHORT_TIMEOUT_MS });
	p = map_custom(rt, &ops, 16, UP_SHARED);
	p[0] = 42;
	cr_assert(up_sync(rt, p, PAGE, UP_SYNC_ASYNC) == 0, "%s", logged);
	for (unsigned i = 0; i < 50 && p[0] == 42; i++)
		cr_assert(touch(p) == 0, "lost: %s", logged);
	cr_assert(p[0] == 42 && stats_of(rt).lost == 0);
	up_runtime_destroy(rt);
	pthread_join(answering, NULL);
}

/* Answers in a thread of its own, when it may, out of `source_of_pages`. */
static void *
answer_in_time(void *req)
{
	await(&may_answer, "leave to answer");
	sem_post(&may_answer);
	memcpy(up_request_buffer(req), (char *)source_of_pages + up_request_offset(req),
	       up_request_length(req));
	up_request_complete(req, 0);
	return NULL;
}

static int
in_when_it_may(void *ctx, struct up_request *req)
{
	pthread_t t;
	int r;

	(void)ctx;
	r = -pthread_create(&t, NULL, answer_in_time, req);
	if (r == 0)
		pthread_detach(t);
	sem_post(&asked);
	return r;
}

static _Atomic int tids[80];
static atomic_uint ntids;

static void *
reader(void *arg)
{
	atomic_store(&tids[atomic_fetch_add(&ntids, 1)], gettid());
	cr_assert(*(volatile uint64_t *)arg == content(0, 0));
	return NULL;
}

/* The thread sleeps at this moment; 0 is none.  For handlers of signals, too. */
static bool
asleep(int tid)
{
	char path[64], stat[256];
	const char *name_end;
	ssize_t n;
	int fd;

	snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
	fd = tid > 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		return false;
	n = read(fd, stat, sizeof stat - 1);
	close(fd);
	stat[n > 0 ? n : 0] = '\0';
	name_end = strrchr(stat, ')');
	return name_end != NULL && strncmp(name_end, ") S", 3) == 0;
}

/* All of them sleep, so have touched what they wait for. */
static void
await_asleep(unsigned n)
{
	const double until = seconds() + DEADLINE;

	for (unsigned i = 0; i < n; i++) {
		while (!asleep(atomic_load(&tids[i]))) {
			cr_assert(seconds() < until, "thread %u does not sleep", i);
			sched_yield();
		}
	}
}

static void *
toucher(void *arg)
{
	fill(arg, 64);
	return NULL;
}

/* More threads than there can be workers wait for one page; everybody else goes on, and so does the pager, on another runtime's memory. */
static void
crowd(struct up_runtime *beneath, bool no_metadata)
{
	static const struct up_pager_ops ops = { .size = sizeof ops, .page_in = in_when_it_may };
	enum { CROWD = 70 };
	const unsigned n = no_metadata ? 6 : CROWD;
	pthread_t t[CROWD], one;
	pthread_attr_t attr;
	uint64_t *p, *anon;

	sem_init(&asked, 0, 0);
	sem_init(&may_answer, 0, 0);
	source_of_pages = beneath != NULL ? map_in(beneath, 1500) : calloc(16, PAGE);
	fill(source_of_pages, beneath != NULL ? 1500 : 16);
	anon = map_in(rt, 64);
	p = map_custom(rt, &ops, 16, UP_PRIVATE);
	for (uint64_t size = MiB; no_metadata && size >= 1;) {
		struct up_object *o;

		if (up_object_create_anon(rt, size * PAGE, 0, &o) != 0)
			size /= 2;
	}
	pthread_attr_init(&attr);
	if (!STRESS_SANITIZED)
		pthread_attr_setstacksize(&attr, (size_t)128 << 10);
	atomic_store(&ntids, 0);
	for (unsigned i = 0; i < n; i++) {
		atomic_store(&tids[i], 0);
		cr_assert(pthread_create(&t[i], &attr, reader, p) == 0);
	}
	await(&asked, "the pager is asked");
	await_asleep(n);
	cr_assert(pthread_create(&one, NULL, toucher, anon) == 0);
	join_all(&one, 1);
	check(anon, 64);
	sem_post(&may_answer);
	join_all(t, n);
	check(p, 16);
	if (beneath == NULL)
		free(source_of_pages);
}

Test(inline_, who_waits_for_a_pager_keeps_nobody_else_waiting)
{
	rt = create(16 * MiB, NULL);
	crowd(NULL, false);
	up_runtime_destroy(rt);
}

Test(inline_, who_waits_for_a_pager_keeps_nobody_else_waiting_without_metadata_for_more_workers)
{
	rt = create(8 * MiB, NULL);
	crowd(NULL, true);
	up_runtime_destroy(rt);
}

Test(inline_, a_pager_that_stands_on_another_runtime_answers_whoever_waits)
{
	struct up_runtime *beneath;

	rt = create(16 * MiB, NULL); /* the lower slot: it is asked first whose an address is */
	beneath = create(3 * MiB, NULL);
	crowd(beneath, false);
	up_runtime_destroy(rt);
	up_runtime_destroy(beneath);
}

static uint64_t *foreign_page;

static void *
recover_and_fail(void *req)
{
	const int sig = touch(foreign_page);

	up_request_complete(req, sig == SIGBUS ? -EIO : 0);
	return NULL;
}

static int
out_by_one_who_recovers(void *ctx, struct up_request *req)
{
	(void)ctx;
	return -pthread_create(&answering, NULL, recover_and_fail, req);
}

static void *
syncer(void *arg)
{
	return (void *)(intptr_t)up_sync(rt, arg, PAGE, UP_SYNC_WAIT);
}

/* A call that waits for the program may hold the map for long; a SIGBUS that is none of ours does not wait for that. */
Test(inline_, what_is_not_ours_does_not_wait_for_calls_that_wait_for_it)
{
	static const struct up_pager_ops ops = { .size = sizeof ops,
						 .page_in = zeros_in,
						 .page_out = out_by_one_who_recovers };
	struct timespec until;
	void *result;
	pthread_t t;
	uint64_t *p;

	install();
	foreign_page = beyond_the_end();
	rt = create(4 * MiB, NULL);
	p = map_custom(rt, &ops, 16, UP_SHARED);
	p[0] = 42;
	cr_assert(pthread_create(&t, NULL, syncer, p) == 0);
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += DEADLINE;
	cr_assert(pthread_timedjoin_np(t, &result, &until) == 0, "both wait");
	cr_assert((intptr_t)result == -EIO);
	pthread_join(answering, NULL);
}

/* The page was protected between the touch and the look: that is SIGSEGV's business, and the page as good as it was. */
Test(inline_, a_page_of_a_pager_that_nobody_may_touch_any_more_is_not_lost)
{
	static const struct up_pager_ops ops = { .size = sizeof ops, .page_in = zeros_in };
	siginfo_t info = { .si_signo = SIGBUS, .si_code = BUS_ADRERR };
	struct timespec before, after;
	uint64_t *p;

	install();
	rt = create_with((struct up_config){ .memory_limit = 4 * MiB, .fault_timeout_ms = 1000 });
	p = map_custom(rt, &ops, 16, UP_PRIVATE);
	info.si_addr = p;
	cr_assert(up_protect(rt, p, 16 * PAGE, PROT_NONE) == 0);
	clock_gettime(CLOCK_MONOTONIC, &before);
	cr_assert(up_handle_sigbus(&info, NULL) == 1, "it is to be touched again");
	clock_gettime(CLOCK_MONOTONIC, &after);
	cr_assert(after.tv_sec - before.tv_sec <= 1 && stats_of(rt).lost == 0);
	cr_assert(up_protect(rt, p, 16 * PAGE, RW) == 0);
	cr_assert(touch(p) == 0 && p[0] == 0);
	up_runtime_destroy(rt);
}

Test(inline_, there_are_as_many_as_there_are_slots_and_no_more)
{
	struct up_runtime *many[65];
	unsigned n = 0;
	int r = 0;

	while (n < 65 && r == 0) {
		const struct up_config cfg = { .memory_limit = 2 * MiB,
					       .service_threads = 1,
					       .delivery = UP_DELIVER_INLINE,
					       .log = collect };

		r = up_runtime_create(&many[n], &cfg);
		n += r == 0;
	}
	if (r == -EPERM || r == -ENOSYS)
		cr_skip_test("no userfaultfd or io_uring here: %s", logged);
	cr_assert(n == 64 && r == -EUSERS, "%u, then %s", n, strerrorname_np(-r));
	cr_assert(has_logged("there can be 64 runtimes"), "%s", logged);
	for (unsigned i = 0; i < n; i++) {
		uint64_t *p = map_in(many[i], 2);

		fill(p, 2);
		check(p, 2);
	}
	for (unsigned i = 0; i < n; i++)
		up_runtime_destroy(many[i]);
}

/* --- the end of a runtime --- */

/* preadv() of a disk that answers when who destroys the runtime waits for that, and then fails. */
static atomic_bool broken_disk;
static atomic_uint broken_reads;
static _Atomic int destroying; /* the thread, or 0: not yet */

ssize_t __real_preadv64(int fd, const struct iovec *iov, int niov, off_t offset);
ssize_t __wrap_preadv64(int fd, const struct iovec *iov, int niov, off_t offset);

ssize_t
__wrap_preadv64(int fd, const struct iovec *iov, int niov, off_t offset)
{
	const double until = seconds() + DEADLINE;

	if (!atomic_load(&broken_disk))
		return __real_preadv64(fd, iov, niov, offset);
	atomic_fetch_add(&broken_reads, 1);
	while (!asleep(atomic_load(&destroying))) {
		if (seconds() > until) {
			fprintf(stderr,
				"test_inline: who destroys the runtime (thread %d) does "
				"not wait for this read\n",
				atomic_load(&destroying));
			abort();
		}
		sched_yield();
	}
	errno = EIO;
	return -1;
}

static void
on_any(int sig, siginfo_t *info, void *context)
{
	if (sig == SIGBUS && up_handle_sigbus(info, context))
		return;
	siglongjmp(escape, sig);
}

static uint64_t *going; /* 1500 pages */

/* Touches page after page, from the one that its argument points to, until nothing is mapped any more. */
static void *
toucher_to_the_end(void *arg)
{
	volatile uint64_t *p = going;
	volatile size_t i = (size_t)((uint64_t *)arg - going) / WORDS;

	while (sigsetjmp(escape, 1) != SIGSEGV)
		for (;;)
			(void)p[(i = (i + 1) % 1500) * WORDS];
	return NULL;
}

/* Its reads end while the runtime goes, and have something to say. */
Test(inline_, a_runtime_is_destroyed_while_threads_read_for_themselves)
{
	struct sigaction sa = { .sa_sigaction = on_any, .sa_flags = SA_SIGINFO };
	const double until = seconds() + DEADLINE;
	pthread_t t[3];

	sigfillset(&sa.sa_mask);
	for (unsigned round = 0; round < 3; round++) {
		/* By preadv(). */
		rt = create_with(
			(struct up_config){ .memory_limit = 3 * MiB, .io_poll_us = UP_NO_IO_POLL });
		sigaction(SIGBUS, &sa, NULL);
		sigaction(SIGSEGV, &sa, NULL);
		going = map_in(rt, 1500);
		fill(going, 1500);
		atomic_store(&broken_reads, 0);
		atomic_store(&broken_disk, true);
		/* Apart, for who comes to the same page waits for the one who reads it. */
		for (unsigned i = 0; i < 3; i++)
			cr_assert(pthread_create(&t[i], NULL, toucher_to_the_end,
						 going + i * 200 * WORDS) == 0);
		while (atomic_load(&broken_reads) < 2)
			cr_assert(seconds() < until, "nobody reads");
		atomic_store(&destroying, gettid());
		up_runtime_destroy(rt);
		atomic_store(&destroying, 0);
		join_all(t, 3);
		atomic_store(&broken_disk, false);
	}
	cr_assert(has_logged("read error"), "%s", logged);
}

/* --- log lines --- */

/*
 * A thread in malloc() touches what is lost: the line that says so must not be logged there, for the log function
 * calls malloc() as well.  Here the lock is our own, so that it is certain.
 */
static pthread_mutex_t programs = PTHREAD_MUTEX_INITIALIZER;
static atomic_uint lines;

static void
locked_log(void *ctx, enum up_log_level level, const char *line)
{
	(void)ctx;
	(void)level;
	pthread_mutex_lock(&programs);
	if (strstr(line, "checksum mismatch") != NULL || strstr(line, "more such lines") != NULL)
		atomic_fetch_add(&lines, 1);
	pthread_mutex_unlock(&programs);
}

Test(inline_, a_log_line_does_not_interrupt_what_the_program_has_locked)
{
	char path[] = "/var/tmp/test_inline.XXXXXX";
	const struct up_config cfg = { .memory_limit = 2 * MiB,
				       .service_threads = 1,
				       .delivery = UP_DELIVER_INLINE,
				       .swap_path = path,
				       .log = locked_log };
	const double until = seconds() + DEADLINE;
	unsigned lost = 0;
	uint64_t *p;
	int r;

	close(mkstemp(path));
	install();
	r = up_runtime_create(&rt, &cfg);
	if (r == -EPERM || r == -ENOSYS)
		cr_skip_test("no userfaultfd or io_uring here");
	cr_assert(r == 0);
	p = map_in(rt, 1500);
	fill(p, 1500);
	cr_assert(scribble(path) == 0);
	pthread_mutex_lock(&programs);
	for (size_t i = 0; i < 1500 && lost < 40; i++)
		lost += touch(&p[i * WORDS]) != 0;
	cr_assert(lost == 40 && atomic_load(&lines) == 0);
	pthread_mutex_unlock(&programs);
	/* Some of them, and that there were more. */
	while (atomic_load(&lines) < 3)
		cr_assert(seconds() < until, "%u lines", atomic_load(&lines));
	up_runtime_destroy(rt);
	unlink(path);
}
