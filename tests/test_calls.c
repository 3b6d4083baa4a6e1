/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_calls.c: prefault, wire, dump and remap as a program sees it, on the real kernel, through the public header.
 *
 * That a page is in the page table is asked of the kernel: touching it costs this thread no fault
 * (RUSAGE_THREAD), or a system call that can not have its faults served gets through.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "delivery.h"
#include "real.h"
#include "uffd_pager.h"

#define RW (PROT_READ | PROT_WRITE)
#define PAGE ((size_t)UP_PAGE_SIZE)
#define MiB ((size_t)1 << 20)
#define DEADLINE 30 /* seconds, for whatever has to happen */

TestSuite(calls, .timeout = 110);

/* --- rig --- */

static struct up_runtime *rt;

static _Thread_local volatile long own_faults;

/* Of threads that serve themselves, see faults_taken(). */
static void
own_bus(int sig, siginfo_t *info, void *context)
{
	const struct sigaction dfl = { .sa_handler = SIG_DFL };

	own_faults++;
	if (!up_handle_sigbus(info, context))
		sigaction(sig, &dfl, NULL);
}

static void
start_with(struct up_config cfg)
{
	struct sigaction sa = { .sa_sigaction = own_bus, .sa_flags = SA_SIGINFO };

	cfg.log = collect;
	cfg.delivery = test_delivery();
	cfg.compression = test_compression();
	rt = real_start(&cfg);
	if (cfg.delivery == UP_DELIVER_INLINE) {
		sigfillset(&sa.sa_mask);
		sigaction(SIGBUS, &sa, NULL);
	}
	log_clear();
}

static void
start(size_t limit)
{
	start_with((struct up_config){ .memory_limit = limit, .service_threads = 2 });
}

static char *
map(size_t len, unsigned flags)
{
	void *p;
	const int r = up_map(rt, NULL, len, RW, UP_PRIVATE | flags, NULL, 0, &p);

	cr_assert(r == 0, "up_map: %s: %s", strerrorname_np(-r), logged);
	return p;
}

static struct up_stats
stats(void)
{
	return real_stats(rt);
}

static _Atomic uint64_t *
word(char *p, size_t page)
{
	return (_Atomic uint64_t *)(void *)(p + page * PAGE);
}

static uint64_t
content(size_t page, size_t w)
{
	return (page + 1) * UINT64_C(0x9e3779b97f4a7c15) + w;
}

static void
fill(char *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		for (size_t w = 0; w < PAGE / 8; w += 64)
			word(p, i)[w] = content(i, w);
}

static void
check_fill(char *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		for (size_t w = 0; w < PAGE / 8; w += 64)
			cr_assert(word(p, i)[w] == content(i, w),
				  "page %zu is not what was written", i);
}

static size_t
count_bits(char *p, size_t n, unsigned bits)
{
	unsigned char *vec = malloc(n);
	size_t found = 0;

	cr_assert(vec != NULL && up_residency(rt, p, n * PAGE, vec) == 0);
	for (size_t i = 0; i < n; i++)
		found += (vec[i] & bits) != 0;
	free(vec);
	return found;
}

/*
 * Write as much as twice the limit elsewhere, until none of the pages is in memory.  A policy that keeps what has been used from what
 * passes through is told first that they will not be.
 * => nobody else uses them: what others touch comes back at any moment.
 */
static void
push_out(char *p, size_t npages)
{
	const size_t n = 2 * stats().limit / PAGE;
	char *other = map(n * PAGE, 0);
	const double until = seconds() + DEADLINE;

	while (count_bits(p, npages, UP_PAGE_MAPPED | UP_PAGE_STAGED) > 0) {
		cr_assert(seconds() < until, "pages stay in memory");
		cr_assert(up_advise(rt, p, npages * PAGE, UP_ADVICE_COLD) == 0);
		for (size_t i = 0; i < n; i++)
			*word(other, i) = i + 1;
	}
	cr_assert(up_unmap(rt, other, n * PAGE) == 0);
}

/* Faults that the kernel has counted for this thread; what it serves itself is not counted, but comes by own_bus(). */
static long
faults_taken(void)
{
	struct rusage ru;

	if (test_delivery() == UP_DELIVER_INLINE)
		return own_faults;
	cr_assert(getrusage(RUSAGE_THREAD, &ru) == 0);
	return ru.ru_minflt + ru.ru_majflt;
}

static void __attribute__((noinline, no_sanitize("address", "thread", "undefined")))
touch_all(char *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		(void)atomic_load(word(p, i));
	for (size_t i = 0; i < n; i++)
		atomic_fetch_or(word(p, i), 0);
}

/*
 * What touching every page costs in faults.  Nothing else is touched in between; a sanitizer's shadow would be.  The code
 * that touches is brought in first, on memory that is not paged.
 */
static long
cost_of_touching(char *p, size_t n)
{
	static _Alignas(4096) char plain[2 * UP_PAGE_SIZE];
	long before;

	touch_all(plain, 2);
	faults_taken();
	before = faults_taken();
	touch_all(p, n);
	before = faults_taken() - before;
	return before;
}

/*
 * Faults that the pager has served, all of them: one is counted after it has been answered, but before the same thread, the
 * only one, serves anything else.  `there` is in memory.  Unlike the kernel's count it has none of our program's own
 * text, which a busy machine reclaims.
 */
static uint64_t
faults_served(char *there)
{
	struct up_stats st;
	uint64_t n = 0;

	cr_assert(up_prefault(rt, there, PAGE, 0) == 0, "%s", logged);
	st = stats();

	for (unsigned k = 0; k < UP_FAULT_KINDS; k++)
		n += st.faults[k];
	return n;
}

/* The result, and exactly one line that says so; `text` is part of it. */
static void
refused(const char *what, int r, int want, const char *text)
{
	cr_expect(r == want, "%s: %s instead of %s", what, r < 0 ? strerrorname_np(-r) : "success",
		  strerrorname_np(-want));
	cr_expect(strstr(logged, text) != NULL, "%s: \"%s\" is not in: %s", what, text, logged);
	cr_expect(nlogged[UP_LOG_ERROR] == 1, "%s: %u lines: %s", what, nlogged[UP_LOG_ERROR],
		  logged);
	log_clear();
}
#define REFUSED(call, want, text) refused(#call, (call), (want), (text))

static int
in_child(int (*fn)(void))
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		alarm(DEADLINE);
		_exit(fn());
	}
	cr_assert(waitpid(pid, &status, 0) == pid);
	return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* --- prefault --- */

Test(calls, prefault_costs_the_faults_that_touching_does_not)
{
	enum { N = 512 };
	char *p;

	start(8 * MiB);
	p = map(N * PAGE, 0);
	cr_assert(up_prefault(rt, p, N * PAGE, 1) == 0, "%s", logged);
	cr_assert(cost_of_touching(p, N) == 0);
	fill(p, N);
	push_out(p, N);
	cr_assert(cost_of_touching(p, 8) > 0, "the kernel counts no faults here");
	push_out(p, N);
	cr_assert(up_prefault(rt, p, N * PAGE, 1) == 0, "%s", logged);
	cr_assert(cost_of_touching(p, N) == 0);
	check_fill(p, N);
	cr_assert(nlogged[UP_LOG_ERROR] == 0, "%s", logged);
	up_runtime_destroy(rt);
}

Test(calls, prefault_makes_system_calls_work_that_can_not_have_faults_served)
{
	enum { N = 16 };
	char buf[N * 4096];
	char *p;
	int fd[2];

	start_with((struct up_config){ .memory_limit = 8 * MiB,
				       .feature_mask = UP_MASK_KERNEL_FAULTS });
	p = map(N * PAGE, 0);
	fill(p, N);
	push_out(p, N);
	cr_assert(pipe(fd) == 0);
	cr_assert(write(fd[1], p, N * PAGE) == -1 && errno == EFAULT,
		  "the mask has no effect: a system call had its fault served");
	cr_assert(up_prefault(rt, p, N * PAGE, 0) == 0, "%s", logged);
	cr_assert(write(fd[1], p, N * PAGE) == (ssize_t)(N * PAGE), "%s", strerror(errno));
	cr_assert(read(fd[0], buf, sizeof buf) == (ssize_t)sizeof buf);
	check_fill(p, N);
	cr_assert(memcmp(buf, p, sizeof buf) == 0);

	/* And the other way, into what was never touched. */
	cr_assert(up_advise(rt, p, N * PAGE, UP_ADVICE_DONTNEED) == 0);
	cr_assert(write(fd[1], buf, sizeof buf) == (ssize_t)sizeof buf);
	cr_assert(read(fd[0], p, N * PAGE) == -1 && errno == EFAULT);
	cr_assert(up_prefault(rt, p, N * PAGE, 1) == 0, "%s", logged);
	cr_assert(read(fd[0], p, N * PAGE) == (ssize_t)(N * PAGE), "%s", strerror(errno));
	check_fill(p, N);
	close(fd[0]);
	close(fd[1]);
	up_runtime_destroy(rt);
}

/* Writers all over a region that hardly fits, while it is brought in again and again. */
static char *shared_region;
static atomic_bool stop;
enum { WRITERS = 3, SHARED_PAGES = 1200 };

static void *
writer(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;
	uint64_t *mine = calloc(SHARED_PAGES, sizeof *mine);

	while (!atomic_load(&stop)) {
		const size_t i = (size_t)rand_r(&seed) % SHARED_PAGES;

		atomic_fetch_add(word(shared_region, i), 1);
		mine[i]++;
	}
	return mine;
}

Test(calls, prefault_changes_nothing_that_others_write)
{
	pthread_t t[WRITERS];
	uint64_t sum[SHARED_PAGES] = { 0 };
	const double until = seconds() + 3;
	unsigned rounds = 0, again = 0;

	start(6 * MiB);
	shared_region = map(SHARED_PAGES * PAGE, 0);
	atomic_store(&stop, false);
	for (uintptr_t i = 0; i < WRITERS; i++)
		cr_assert(pthread_create(&t[i], NULL, writer, (void *)(i + 1)) == 0);
	while (seconds() < until) {
		const size_t n = 100 + rounds * 37 % 500, first = rounds * 101 % (SHARED_PAGES - n);
		const int r = up_prefault(rt, shared_region + first * PAGE, n * PAGE, 1);

		/* Three writers all over the place may need the room for themselves. */
		cr_assert(r == 0 || r == -EAGAIN, "%s: %s", strerrorname_np(-r), logged);
		again += r < 0;
		rounds++;
	}
	atomic_store(&stop, true);
	for (unsigned i = 0; i < WRITERS; i++) {
		void *mine;

		pthread_join(t[i], &mine);
		for (size_t k = 0; k < SHARED_PAGES; k++)
			sum[k] += ((uint64_t *)mine)[k];
		free(mine);
	}
	cr_assert(again < rounds);
	for (size_t k = 0; k < SHARED_PAGES; k++)
		cr_assert(*word(shared_region, k) == sum[k], "page %zu: %lu of %lu additions", k,
			  *word(shared_region, k), sum[k]);
	up_runtime_destroy(rt);
}

/* Calls that change mappings, all the time. */
static void *
mapper(void *arg)
{
	unsigned *done = arg;

	while (!atomic_load(&stop)) {
		void *q;

		if (up_map(rt, NULL, 8 * PAGE, RW, UP_PRIVATE, NULL, 0, &q) < 0)
			break;
		*word(q, 3) = 1;
		if (up_protect(rt, q, 4 * PAGE, PROT_READ) < 0 || up_unmap(rt, q, 8 * PAGE) < 0)
			break;
		++*done;
	}
	return NULL;
}

Test(calls, prefault_and_calls_that_change_mappings_go_on_side_by_side)
{
	enum { N = 1000 };
	unsigned done = 0;
	pthread_t t;
	char *p;

	start(8 * MiB);
	p = map(N * PAGE, 0);
	fill(p, N);
	atomic_store(&stop, false);
	cr_assert(pthread_create(&t, NULL, mapper, &done) == 0);
	for (unsigned i = 0; i < 5; i++) {
		push_out(p, N);
		cr_assert(up_prefault(rt, p, N * PAGE, 0) == 0, "%s", logged);
	}
	atomic_store(&stop, true);
	pthread_join(t, NULL);
	cr_assert(done > 0 && nlogged[UP_LOG_ERROR] == 0, "%u: %s", done, logged);
	check_fill(p, N);
	up_runtime_destroy(rt);
}

static int
child_prefault(void)
{
	return up_prefault(rt, shared_region, PAGE, 0) == -ECHILD ? 0 : 1;
}

Test(calls, prefault_says_what_is_wrong)
{
	char *p;

	start(4 * MiB);
	p = map(2000 * PAGE, 0);
	cr_expect(up_prefault(NULL, p, PAGE, 0) == -EINVAL);
	REFUSED(up_prefault(rt, p + 1, PAGE, 0), -EINVAL, "up_prefault: address");
	REFUSED(up_prefault(rt, p, 0, 0), -EINVAL, "up_prefault: length 0");
	REFUSED(up_prefault(rt, p, 100, 0), -EINVAL, "up_prefault: length 100");
	REFUSED(up_prefault(rt, p, SIZE_MAX & ~(PAGE - 1), 0), -EINVAL, "wraps around");
	REFUSED(up_prefault(rt, p, 2000 * PAGE, 0), -ENOMEM, "2000 pages are more than the");
	cr_assert(up_unmap(rt, p + 10 * PAGE, PAGE) == 0);
	REFUSED(up_prefault(rt, p, 20 * PAGE, 0), -ENOMEM, "is not mapped");
	cr_assert(up_protect(rt, p, PAGE, PROT_READ) == 0);
	REFUSED(up_prefault(rt, p, 2 * PAGE, 1), -EACCES, "is not writable");
	cr_assert(up_protect(rt, p, PAGE, PROT_NONE) == 0);
	REFUSED(up_prefault(rt, p, 2 * PAGE, 0), -EACCES, "is not accessible");
	cr_expect(count_bits(p, 10, ~0u) == 0, "a refused call brought pages in");
	shared_region = p + 20 * PAGE;
	cr_expect(in_child(child_prefault) == 0);
	cr_assert(up_prefault(rt, p + 11 * PAGE, 20 * PAGE, 1) == 0, "%s", logged);
	up_runtime_destroy(rt);
}

Test(calls, prefault_of_overcommitted_pages_loses_nothing)
{
	char *p;
	size_t in;

	start_with((struct up_config){
		.memory_limit = 4 * MiB, .swap_size = MiB, .flags = UP_OVERCOMMIT });
	p = map(512 * PAGE, 0);
	REFUSED(up_prefault(rt, p, 512 * PAGE, 1), -ENOSPC, "is overcommitted");
	in = count_bits(p, 512, UP_PAGE_MAPPED);
	cr_assert(in > 0 && in < 512 && stats().lost == 0 && stats().fault_sigbus == 0);
	cr_assert(up_advise(rt, p, in * PAGE, UP_ADVICE_DONTNEED) == 0);
	*word(p, 400) = 1; /* nothing was poisoned */
	cr_assert(*word(p, 400) == 1);
	up_runtime_destroy(rt);
}

/* --- wire --- */

Test(calls, wired_pages_never_fault_whatever_else_goes_on)
{
	enum { N = 400 };
	char *p;

	start_with((struct up_config){ .memory_limit = 6 * MiB, .service_threads = 1 });
	p = map(2 * N * PAGE, 0);
	fill(p, 2 * N);
	push_out(p, 2 * N);
	cr_assert(up_wire(rt, p + N / 2 * PAGE, N * PAGE) == 0, "%s", logged);
	cr_assert(stats().wired == N * PAGE);
	for (unsigned i = 0; i < 4; i++) {
		push_out(p, N / 2);
		const uint64_t before = faults_served(p + N / 2 * PAGE);

		touch_all(p + N / 2 * PAGE, N);
		cr_assert(faults_served(p + N / 2 * PAGE) == before, "turn %u", i);
	}
	cr_assert(count_bits(p, 2 * N, UP_PAGE_WIRED) == N);
	check_fill(p, 2 * N);

	/* In part; then what is left goes with the mapping. */
	cr_assert(up_unwire(rt, p + N / 2 * PAGE, N / 2 * PAGE) == 0, "%s", logged);
	push_out(p, N);
	cr_assert(count_bits(p + N * PAGE, N, UP_PAGE_MAPPED) >= N / 2);
	check_fill(p, 2 * N);
	cr_assert(up_unmap(rt, p, 2 * N * PAGE) == 0 && stats().wired == 0);
	cr_assert(nlogged[UP_LOG_ERROR] == 0, "%s", logged);
	up_runtime_destroy(rt);
}

/* A loop over `shared_region`, wiring and unwiring parts of it. */
static void *
wirer(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;
	uintptr_t failed = 0;

	while (!atomic_load(&stop) && failed == 0) {
		const size_t n = 1 + (size_t)rand_r(&seed) % 60,
			     first = (size_t)rand_r(&seed) % (SHARED_PAGES - n);
		char *at = shared_region + first * PAGE;
		const int r = up_wire(rt, at, n * PAGE);

		if (r == 0 && cost_of_touching(at, n) > 0)
			failed = 1;
		if (r == 0 && up_unwire(rt, at, n * PAGE) < 0)
			failed = 2;
		if (r < 0 && r != -EAGAIN && r != -ENOMEM)
			failed = 3;
	}
	return (void *)failed;
}

Test(calls, wire_nests_across_threads_while_others_write)
{
	const struct timespec time = { .tv_sec = 3 };
	pthread_t w[WRITERS], t[2];
	uint64_t sum[SHARED_PAGES] = { 0 };
	void *result;

	start(6 * MiB);
	shared_region = map(SHARED_PAGES * PAGE, 0);
	atomic_store(&stop, false);
	for (uintptr_t i = 0; i < WRITERS; i++)
		cr_assert(pthread_create(&w[i], NULL, writer, (void *)(i + 1)) == 0);
	for (uintptr_t i = 0; i < 2; i++)
		cr_assert(pthread_create(&t[i], NULL, wirer, (void *)(i + 10)) == 0);
	nanosleep(&time, NULL); /* that long they run */
	atomic_store(&stop, true);
	for (unsigned i = 0; i < 2; i++) {
		pthread_join(t[i], &result);
		cr_assert(result == NULL, "step %zu: %s", (size_t)result, logged);
	}
	for (unsigned i = 0; i < WRITERS; i++) {
		pthread_join(w[i], &result);
		for (size_t k = 0; k < SHARED_PAGES; k++)
			sum[k] += ((uint64_t *)result)[k];
		free(result);
	}
	cr_assert(stats().wired == 0);
	for (size_t k = 0; k < SHARED_PAGES; k++)
		cr_assert(*word(shared_region, k) == sum[k], "page %zu: %lu of %lu additions", k,
			  *word(shared_region, k), sum[k]);
	up_runtime_destroy(rt);
}

static int
child_wire(void)
{
	if (up_wire(rt, shared_region, PAGE) != -ECHILD)
		return 1;
	return up_unwire(rt, shared_region, PAGE) == -ECHILD ? 0 : 2;
}

/* As around I/O into page after page of a region. */
Test(calls, what_was_wired_protected_and_advised_for_a_while_is_one_mapping_again)
{
	enum { N = 3000 };
	uint64_t metadata = 0;
	void *q;
	char *p;

	start(2 * MiB);
	p = map((N + 1) * PAGE, 0);
	cr_assert(up_unmap(rt, p + N * PAGE, PAGE) == 0);
	fill(p, 10);
	for (unsigned i = 0; i < N; i++) {
		char *at = p + (i * 1663 % N) * PAGE;

		cr_assert(up_wire(rt, at, PAGE) == 0, "%s", logged);
		cr_assert(up_unwire(rt, at, PAGE) == 0, "%s", logged);
		cr_assert(up_protect(rt, at, PAGE, PROT_READ) == 0, "%s", logged);
		cr_assert(up_advise(rt, at, PAGE, UP_ADVICE_RANDOM) == 0, "%s", logged);
		cr_assert(stats().entries <= 3);
		cr_assert(up_protect(rt, at, PAGE, RW) == 0, "%s", logged);
		cr_assert(up_advise(rt, at, PAGE, UP_ADVICE_NORMAL) == 0, "%s", logged);
		cr_assert(stats().entries == 1);
		if (i == N / 2)
			metadata = stats().metadata;
	}
	cr_assert(stats().metadata <= metadata + MiB / 16);
	/* Two mappings stay two. */
	cr_assert(up_map(rt, p + N * PAGE, PAGE, RW, UP_PRIVATE | UP_FIXED, NULL, 0, &q) == 0, "%s",
		  logged);
	cr_assert(up_wire(rt, q, PAGE) == 0 && up_unwire(rt, q, PAGE) == 0, "%s", logged);
	cr_assert(stats().entries == 2);
	check_fill(p, 10);
	up_runtime_destroy(rt);
}

Test(calls, wire_and_unwire_say_what_is_wrong)
{
	char *p;

	start_with((struct up_config){ .memory_limit = 8 * MiB, .wire_limit = 1 * MiB });
	p = map(600 * PAGE, 0);
	cr_expect(up_wire(NULL, p, PAGE) == -EINVAL && up_unwire(NULL, p, PAGE) == -EINVAL);
	REFUSED(up_wire(rt, p + 1, PAGE), -EINVAL, "up_wire: address");
	REFUSED(up_wire(rt, p, 0), -EINVAL, "up_wire: length 0");
	REFUSED(up_unwire(rt, p + 1, PAGE), -EINVAL, "up_unwire: address");
	REFUSED(up_unwire(rt, p, 1), -EINVAL, "up_unwire: length 1");
	REFUSED(up_unwire(rt, p, PAGE), -EINVAL, "is not wired");
	REFUSED(up_wire(rt, p, 257 * PAGE), -ENOMEM,
		"257 pages and 0 that are wired are more than wire_limit 1048576");
	cr_assert(up_unmap(rt, p + 10 * PAGE, PAGE) == 0);
	REFUSED(up_wire(rt, p, 20 * PAGE), -ENOMEM, "up_wire: part of");
	REFUSED(up_unwire(rt, p, 20 * PAGE), -ENOMEM, "up_unwire: part of");
	cr_assert(up_protect(rt, p, PAGE, PROT_NONE) == 0);
	REFUSED(up_wire(rt, p, 2 * PAGE), -EACCES, "is not accessible");
	cr_expect(count_bits(p, 10, ~0u) == 0, "a refused call brought pages in");
	shared_region = p + 20 * PAGE;
	cr_expect(in_child(child_wire) == 0);

	cr_assert(up_wire(rt, p + 20 * PAGE, 10 * PAGE) == 0, "%s", logged);
	REFUSED(up_advise(rt, p + 15 * PAGE, 10 * PAGE, UP_ADVICE_DONTNEED), -EINVAL,
		"is wired, and can not be discarded");
	cr_assert(count_bits(p + 20 * PAGE, 10, UP_PAGE_WIRED) == 10);
	up_runtime_destroy(rt);
}

Test(calls, wiring_up_to_the_limit_leaves_a_pager_that_works)
{
	enum { N = 3000 };
	size_t n = 0;
	char *p, *q;

	start_with((struct up_config){ .memory_limit = 6 * MiB, .wire_limit = 6 * MiB });
	p = map(1536 * PAGE, 0);
	q = map(N * PAGE, 0);
	while (up_wire(rt, p + n * PAGE, 16 * PAGE) == 0)
		n += 16;
	cr_assert(n > 500, "only %zu pages could be wired: %s", n, logged);
	fill(q, N);
	check_fill(q, N);
	cr_assert(stats().wired == n * PAGE && count_bits(p, n, UP_PAGE_WIRED) == n);
	cr_assert(stats().used_max <= stats().limit);
	up_runtime_destroy(rt);
}

/* --- dump --- */

/* True if the kernel has memory with these permissions there, in one VMA or several. */
static bool
kernel_agrees(uintptr_t start, uintptr_t end, const char *perms)
{
	FILE *f = fopen("/proc/self/maps", "re");
	char line[512];

	cr_assert(f != NULL);
	while (start < end && fgets(line, sizeof line, f) != NULL) {
		unsigned long from, to;
		char has[8];

		if (sscanf(line, "%lx-%lx %7s", &from, &to, has) == 3 && from <= start &&
		    start < to && strncmp(has, perms, 3) == 0)
			start = to;
	}
	fclose(f);
	return start >= end;
}

Test(calls, a_dump_agrees_with_the_kernel_and_may_go_through_paged_memory)
{
	enum { N = 64 };
	struct up_object_stats info;
	struct up_object *o;
	char *p, *buffer, line[256];
	size_t lines = 0, bytes = 0;
	void *q;
	FILE *f;

	start(4 * MiB);
	p = map(N * PAGE, 0);
	fill(p, N);
	cr_assert(up_object_create_anon(rt, 4 * MiB, 0, &o) == 0);
	cr_assert(up_map(rt, NULL, MiB, PROT_READ, UP_SHARED, o, MiB, &q) == 0);
	cr_assert(up_protect(rt, p + 10 * PAGE, 5 * PAGE, PROT_NONE) == 0);
	cr_assert(up_wire(rt, p + 20 * PAGE, 5 * PAGE) == 0, "%s", logged);
	buffer = map(4 * PAGE, 0);
	*word(buffer, 0) = 1;
	push_out(buffer, 1);

	f = tmpfile();
	cr_assert(f != NULL && setvbuf(f, buffer, _IOFBF, 4 * PAGE) == 0);
	cr_assert(up_map_dump(rt, f) == 0);
	cr_assert(count_bits(buffer, 1, UP_PAGE_MAPPED) == 1);
	rewind(f);
	cr_assert(fgets(line, sizeof line, f) != NULL);
	while (fgets(line, sizeof line, f) != NULL) {
		unsigned long from, to;
		unsigned wired;
		char perms[8];

		cr_assert(sscanf(line, "%lx-%lx %7s %*x %*u anonymous %*u %*u %*u %*u %*u %u",
				 &from, &to, perms, &wired) == 4,
			  "%s", line);
		cr_assert(kernel_agrees(from, to, perms), "%s", line);
		cr_assert((wired > 0) == (from == (uintptr_t)(p + 20 * PAGE)), "%s", line);
		bytes += to - from;
		lines++;
	}
	fclose(f);
	cr_assert(lines == 7, "%zu lines", lines);
	cr_assert(bytes == (N + 4) * PAGE + MiB && bytes == stats().mapped);

	cr_assert(up_object_info(o, &info, sizeof info) == 0);
	cr_assert(info.size == 4 * MiB && info.resident == 0 && info.refs == 2);
	cr_assert(nlogged[UP_LOG_ERROR] == 0, "%s", logged);
	up_object_unref(o);
	up_runtime_destroy(rt);
}

/* What up_map_dump() says, from "child" on: "" if there is no child. */
static const char *
dump_of_children(void)
{
	static char text[8192];
	FILE *f = fmemopen(text, sizeof text, "w");
	const char *child;

	cr_assert(f != NULL && up_map_dump(rt, f) == 0, "%s", logged);
	fclose(f);
	child = strstr(text, "\nchild PID ");
	return child != NULL ? child + 1 : "";
}

Test(calls, a_dump_shows_a_forked_child_and_what_it_has)
{
	const double end = seconds() + DEADLINE;
	char *p, want[128];
	int out[2], in[2], status;
	pid_t pid;
	char byte;

	start(4 * MiB);
	if ((up_features(rt) & UP_MASK_SHARED) == 0)
		cr_skip_test("this kernel can not protect shared memory");
	p = map(16 * PAGE, 0);
	fill(p, 16);
	cr_assert(up_inherit(rt, p, 8 * PAGE, UP_INHERIT_COPY) == 0, "%s", logged);
	cr_assert(pipe(out) == 0 && pipe(in) == 0);
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		alarm(DEADLINE);
		close(in[1]);
		*word(p, 3) = 0;
		byte = 'w';
		if (write(out[1], &byte, 1) != 1)
			_exit(1);
		_exit(read(in[0], &byte, 1) == 0 ? 0 : 2);
	}
	cr_assert(pid > 0);
	/* It has said that it is there before its fork() returned. */
	snprintf(want, sizeof want, "child PID %d\n%lx-%lx ", (int)pid, (unsigned long)p,
		 (unsigned long)(p + 8 * PAGE));
	close(out[1]);
	cr_assert(read(out[0], &byte, 1) == 1, "%s", logged);
	cr_expect(strncmp(dump_of_children(), want, strlen(want)) == 0, "%s, not %s",
		  dump_of_children(), want);
	cr_expect(strstr(dump_of_children(), "  over ") != NULL, "%s", dump_of_children());
	close(in[0]);
	close(in[1]);
	cr_assert(waitpid(pid, &status, 0) == pid && status == 0, "status %d", status);
	while (dump_of_children()[0] != '\0') {
		cr_assert(seconds() < end, "%d s after it has gone:\n%s", DEADLINE,
			  dump_of_children());
		usleep(1000);
	}
	check_fill(p, 16);
	close(out[0]);
	cr_assert(nlogged[UP_LOG_ERROR] == 0, "%s", logged);
	up_runtime_destroy(rt);
}

static struct up_object *shared_object;

static int
child_dump(void)
{
	struct up_object_stats info;

	if (up_map_dump(rt, stderr) != -ECHILD)
		return 1;
	return up_object_info(shared_object, &info, sizeof info) == -ECHILD ? 0 : 2;
}

Test(calls, dump_and_info_say_what_is_wrong)
{
	struct up_object_stats info;
	FILE *full = fopen("/dev/full", "we");

	start(4 * MiB);
	map(16 * PAGE, 0);
	cr_assert(up_object_create_anon(rt, MiB, 0, &shared_object) == 0 && full != NULL);
	cr_expect(up_map_dump(NULL, stderr) == -EINVAL);
	cr_expect(up_object_info(NULL, &info, sizeof info) == -EINVAL);
	REFUSED(up_map_dump(rt, NULL), -EINVAL, "up_map_dump: out is NULL");
	REFUSED(up_object_info(shared_object, NULL, 8), -EINVAL, "up_object_info: info is NULL");
	cr_expect(up_map_dump(rt, full) == -EIO);
	fclose(full);
	cr_expect(in_child(child_dump) == 0);
	up_object_unref(shared_object);
	up_runtime_destroy(rt);
}

/* --- remap --- */

static char *
remap(char *p, size_t from, size_t to, unsigned flags)
{
	void *at;
	const int r = up_remap(rt, p, from * PAGE, to * PAGE, flags, &at);

	cr_assert(r == 0, "up_remap: %s: %s", strerrorname_np(-r), logged);
	return at;
}

static bool
absent(const char *p)
{
	unsigned char c;
	int fd[2];
	bool fault;

	/* A system call on what is not mapped at all. */
	cr_assert(pipe(fd) == 0);
	fault = write(fd[1], p, 1) < 0 && errno == EFAULT;
	cr_assert(fault || read(fd[0], &c, 1) == 1);
	close(fd[0]);
	close(fd[1]);
	return fault;
}

Test(calls, an_array_grows_like_realloc_to_many_times_the_memory)
{
	size_t n = 16, moved = 0;
	char *p, *in_the_way;

	start(4 * MiB);
	p = map(n * PAGE, 0);
	fill(p, n);
	while (n < 6000) {
		const size_t more = n / 2;
		void *q;
		char *at;

		/* Every other time something is in the way. */
		if (moved % 2 == 0 &&
		    up_map(rt, p + n * PAGE, PAGE, RW, UP_PRIVATE | UP_FIXED, NULL, 0, &q) == 0)
			in_the_way = q;
		else
			in_the_way = NULL;
		at = remap(p, n, n + more, UP_MAYMOVE);
		cr_assert(in_the_way == NULL || at != p);
		if (at != p)
			cr_assert(absent(p) && absent(p + (n - 1) * PAGE));
		moved++;
		p = at;
		for (size_t i = n; i < n + more; i++) {
			cr_assert(*word(p, i) == 0, "new page %zu is not zeros", i);
			for (size_t w = 0; w < PAGE / 8; w += 64)
				word(p, i)[w] = content(i, w);
		}
		n += more;
		check_fill(p, n);
		if (in_the_way != NULL)
			cr_assert(up_unmap(rt, in_the_way, PAGE) == 0);
	}
	cr_assert(stats().used_max <= stats().limit && stats().lost == 0);
	cr_assert(stats().mapped == n * PAGE);
	while (n > 10) {
		cr_assert(remap(p, n, n / 2, 0) == p);
		n /= 2;
		check_fill(p, n);
	}
	cr_assert(up_unmap(rt, p, n * PAGE) == 0);
	cr_assert(stats().entries == 0 && stats().objects == 0 && stats().swapped == 0);
	up_runtime_destroy(rt);
}

static sigjmp_buf escape;

static void
on_signal(int sig)
{
	siglongjmp(escape, sig);
}

/*
 * Reads the region wherever it was last seen: through the kernel, for EFAULT instead of a signal.  All of it but its end, of which the
 * last page is not in memory at some of the moves; it is too far off to be read ahead.
 */
static _Atomic(char *) region_at;
enum { CHASED = 200 };

static void *
chaser(void *arg)
{
	atomic_uint *found = arg;

	while (!atomic_load(&stop)) {
		const char *at = atomic_load(&region_at);

		for (size_t i = 0; i < CHASED && !absent(at + i * PAGE); i++)
			atomic_fetch_add(found, 1);
	}
	return NULL;
}

Test(calls, a_region_moves_while_others_look_at_it)
{
	enum { N = CHASED + 64 };
	const double least = seconds() + 1, until = seconds() + DEADLINE;
	atomic_uint found[2] = { 0 };
	unsigned rounds = 0;
	pthread_t t[2];
	char *p;

	start(4 * MiB);
	p = map(N * PAGE, 0);
	fill(p, N);
	atomic_store(&region_at, p);
	atomic_store(&stop, false);
	for (unsigned i = 0; i < 2; i++)
		cr_assert(pthread_create(&t[i], NULL, chaser, &found[i]) == 0);
	while (seconds() < least || rounds < 8 || found[0] == 0 || found[1] == 0) {
		void *q;
		char *at;
		const bool wall =
			up_map(rt, p + N * PAGE, PAGE, RW, UP_PRIVATE | UP_FIXED, NULL, 0, &q) == 0;

		cr_assert(seconds() < until, "not in time: %u rounds", rounds);
		if (rounds % 4 == 0)
			push_out(p + (N - 1) * PAGE, 1);
		at = remap(p, N, N + 1, UP_MAYMOVE);
		atomic_store(&region_at, at);
		cr_assert(remap(at, N + 1, N, 0) == at);
		if (wall)
			cr_assert(up_unmap(rt, q, PAGE) == 0);
		p = at;
		check_fill(p, N);
		rounds++;
	}
	atomic_store(&stop, true);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	cr_assert(stats().lost == 0);
	up_runtime_destroy(rt);
}

Test(calls, a_move_keeps_protections_and_what_nobody_may_read)
{
	enum { N = 40 };
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_NODEFER };
	char *p, *at;
	void *q;

	for (unsigned copies = 0; copies < 2; copies++) {
		start_with((struct up_config){ .memory_limit = 4 * MiB,
					       .feature_mask = copies ? UP_MASK_MOVE : 0 });
		p = map((N + 1) * PAGE, 0);
		fill(p, N);
		cr_assert(up_unmap(rt, p + N * PAGE, PAGE) == 0);
		cr_assert(up_map(rt, p + N * PAGE, PAGE, RW, UP_PRIVATE | UP_FIXED, NULL, 0, &q) ==
			  0);
		cr_assert(up_protect(rt, p + 10 * PAGE, 5 * PAGE, PROT_NONE) == 0);
		cr_assert(up_protect(rt, p + 20 * PAGE, 5 * PAGE, PROT_READ) == 0);
		at = remap(p, N, 2 * N, UP_MAYMOVE);
		cr_assert(at != p && absent(p) && absent(p + 12 * PAGE));
		cr_assert(kernel_agrees((uintptr_t)at, (uintptr_t)at + 10 * PAGE, "rw-"));
		cr_assert(
			kernel_agrees((uintptr_t)at + 10 * PAGE, (uintptr_t)at + 15 * PAGE, "---"));
		cr_assert(
			kernel_agrees((uintptr_t)at + 20 * PAGE, (uintptr_t)at + 25 * PAGE, "r--"));
		cr_assert(kernel_agrees((uintptr_t)at + 25 * PAGE, (uintptr_t)at + 2 * N * PAGE,
					"rw-"));
		sigaction(SIGSEGV, &sa, NULL);
		if (sigsetjmp(escape, 1) == 0) {
			*word(at, 22) = 1;
			cr_assert(false, "a read-only page was written");
		}
		signal(SIGSEGV, SIG_DFL);
		cr_assert(up_protect(rt, at, 2 * N * PAGE, RW) == 0);
		check_fill(at, N);
		up_runtime_destroy(rt);
	}
}

static int
child_remap(void)
{
	void *q;

	return up_remap(rt, shared_region, PAGE, 2 * PAGE, 0, &q) == -ECHILD && q == NULL ? 0 : 1;
}

Test(calls, remap_says_what_is_wrong)
{
	struct up_object *o;
	void *q = &q;
	char *p;

	start_with((struct up_config){ .memory_limit = 8 * MiB, .swap_size = 8 * MiB });
	p = map(100 * PAGE, 0);
	fill(p, 100);
	cr_expect(up_remap(NULL, p, PAGE, PAGE, 0, &q) == -EINVAL && q == NULL);
	REFUSED(up_remap(rt, p + 1, PAGE, PAGE, 0, &q), -EINVAL, "up_remap: address");
	REFUSED(up_remap(rt, p, PAGE, 0, 0, &q), -EINVAL, "up_remap: length 0");
	REFUSED(up_remap(rt, p, PAGE, PAGE, 0, NULL), -EINVAL, "up_remap: new_addr is NULL");
	REFUSED(up_remap(rt, p, PAGE, PAGE, 2, &q), -EINVAL, "up_remap: unknown flags 0x2");
	REFUSED(up_remap(rt, p, 10 * PAGE, 20 * PAGE, 0, &q), -ENOMEM, "no room behind");
	REFUSED(up_remap(rt, p, 100 * PAGE, 2100 * PAGE, UP_MAYMOVE, &q), -ENOSPC,
		"up_remap: no swap space for 2000 pages");
	REFUSED(up_remap(rt, p, 100 * PAGE, (size_t)1 << 50, UP_MAYMOVE, &q), -ENOMEM, "up_remap");
	cr_assert(up_wire(rt, p + 5 * PAGE, PAGE) == 0);
	REFUSED(up_remap(rt, p, 100 * PAGE, 101 * PAGE, UP_MAYMOVE, &q), -EBUSY, "is wired");
	cr_assert(up_unwire(rt, p + 5 * PAGE, PAGE) == 0);
	cr_assert(up_object_create_anon(rt, 10 * PAGE, 0, &o) == 0);
	cr_assert(up_map(rt, NULL, 5 * PAGE, RW, UP_SHARED, o, 0, &q) == 0);
	shared_region = q;
	REFUSED(up_remap(rt, shared_region, 5 * PAGE, 11 * PAGE, UP_MAYMOVE, &q), -EINVAL,
		"the object ends after 5 more pages, not 6");
	cr_assert(up_map(rt, NULL, PAGE, RW, UP_SHARED, o, 9 * PAGE, &q) == 0);
	REFUSED(up_remap(rt, shared_region, 5 * PAGE, 10 * PAGE, UP_MAYMOVE, &q), -EBUSY,
		"mapped already");
	cr_assert(q == NULL);
	up_object_unref(o);
	cr_expect(in_child(child_remap) == 0);
	cr_assert(up_unmap(rt, p + 50 * PAGE, PAGE) == 0);
	REFUSED(up_remap(rt, p, 100 * PAGE, 50 * PAGE, 0, &q), -ENOMEM, "up_remap: part of");
	check_fill(p, 50);
	up_runtime_destroy(rt);
}
