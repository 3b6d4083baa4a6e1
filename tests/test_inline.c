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
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "stress.h"
#include "uffd_pager.h"

#define PAGE ((size_t)UP_PAGE_SIZE)
#define WORDS (PAGE / 8)
#define MiB ((size_t)1 << 20)
#define RW (PROT_READ | PROT_WRITE)
#define DEADLINE 30 /* seconds, for what takes milliseconds */

TestSuite(inline_, .timeout = STRESS_SANITIZED ? 200 : 60);

static struct up_runtime *rt;
static char logged[8192];
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;

static void
collect(void *ctx, enum up_log_level level, const char *line)
{
	size_t len;

	(void)ctx;
	if (level > UP_LOG_WARNING)
		return;
	pthread_mutex_lock(&log_lock);
	len = strlen(logged);
	snprintf(logged + len, sizeof logged - len, "%s\n", line);
	pthread_mutex_unlock(&log_lock);
}

static bool
was_logged(const char *text)
{
	bool is;

	pthread_mutex_lock(&log_lock);
	is = strstr(logged, text) != NULL;
	pthread_mutex_unlock(&log_lock);
	return is;
}

static struct up_runtime *
create(size_t limit, const char *swap_path)
{
	const struct up_config cfg = { .memory_limit = limit,
				       .service_threads = 1,
				       .delivery = UP_DELIVER_INLINE,
				       .swap_path = swap_path,
				       .log = collect };
	struct up_runtime *made;
	const int r = up_runtime_create(&made, &cfg);

	if (r == -EPERM || r == -ENOSYS)
		cr_skip_test("no userfaultfd or io_uring here: %s", logged);
	cr_assert(r == 0, "create: %s: %s", strerrorname_np(-r), logged);
	return made;
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

static double
seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
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

static sigjmp_buf escape;
static volatile sig_atomic_t expected;
static void *volatile fault_at;
static volatile int fault_code;
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
	while (!was_logged("checksum mismatch"))
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
	cr_assert(!was_logged("up_handle_sigbus"));
	second = create(2 * MiB, NULL);
	cr_assert(was_logged("up_handle_sigbus"), "%s", logged);
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
	cr_assert(was_logged("there can be 64 runtimes"), "%s", logged);
	for (unsigned i = 0; i < n; i++) {
		uint64_t *p = map_in(many[i], 2);

		fill(p, 2);
		check(p, 2);
	}
	for (unsigned i = 0; i < n; i++)
		up_runtime_destroy(many[i]);
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
