/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_api.c: what a program sees of the library, on the real kernel.
 *
 * Through uffd_pager.h only, with real threads, real faults and a real swap file; what can be known of
 * the outside is read from outside: mappings from /proc/self/maps, pages that are in memory from
 * up_residency(), threads from /proc/self/task.  Nothing here waits for a fixed time: what takes its
 * time is polled for, up to a deadline.
 */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
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

TestSuite(api, .timeout = 110);

/* --- rig --- */

static struct up_runtime *rt;

static void
check_and_collect(void *ctx, enum up_log_level level, const char *line)
{
	cr_expect(ctx == logged, "the log callback got another context");
	collect(ctx, level, line);
}

static struct up_config
config(size_t limit)
{
	return (struct up_config){ .memory_limit = limit,
				   .service_threads = 2,
				   .delivery = test_delivery(),
				   .compression = test_compression(),
				   .log = check_and_collect,
				   .log_ctx = logged };
}

static void
start(size_t limit)
{
	const struct up_config cfg = config(limit);

	rt = real_start(&cfg);
}

static char *
map_of(struct up_runtime *of, size_t len, unsigned flags)
{
	void *p;
	const int r = up_map(of, NULL, len, RW, flags, NULL, 0, &p);

	cr_assert(r == 0, "up_map: %s: %s", strerrorname_np(-r), logged);
	return p;
}

static char *
map(size_t len)
{
	return map_of(rt, len, UP_PRIVATE);
}

static struct up_stats
stats(void)
{
	return real_stats(rt);
}

/* Poll for `cond`, up to the deadline. */
#define AWAIT(cond, ...)                                                            \
	do {                                                                        \
		const double until_ = seconds() + DEADLINE;                         \
                                                                                    \
		while (!(cond)) {                                                   \
			cr_assert(seconds() < until_, "not in time: " __VA_ARGS__); \
			sched_yield();                                              \
		}                                                                   \
	} while (0)

static uint64_t *
word(char *p, size_t page)
{
	return (uint64_t *)(void *)(p + page * PAGE);
}

/* Content that no other page has, and that is not all in the first word. */
static void
fill(char *p, size_t first, size_t n, uint64_t salt)
{
	for (size_t i = first; i < first + n; i++) {
		for (size_t w = 0; w < PAGE / 8; w += 64)
			word(p, i)[w] = (i + 1) * UINT64_C(0x9e3779b97f4a7c15) + w + salt;
	}
}

static bool
intact(char *p, size_t page, uint64_t salt)
{
	for (size_t w = 0; w < PAGE / 8; w += 64)
		if (word(p, page)[w] != (page + 1) * UINT64_C(0x9e3779b97f4a7c15) + w + salt)
			return false;
	return true;
}

static void
check_fill(char *p, size_t first, size_t n, uint64_t salt)
{
	for (size_t i = first; i < first + n; i++)
		cr_assert(intact(p, i, salt), "page %zu is not what was written", i);
}

static unsigned char
residency(const char *p)
{
	unsigned char bits = 0xff;

	cr_assert(up_residency(rt, p, PAGE, &bits) == 0, "%s", logged);
	return bits;
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
 * Write as much as twice the limit elsewhere, until page p is in swap only.  A policy that keeps what has been used from what passes
 * through is told first that it will not be.
 */
static void
push_out(char *p)
{
	const size_t n = 2 * stats().limit / PAGE;
	char *other = map(n * PAGE);
	const double until = seconds() + DEADLINE;

	while (residency(p) != UP_PAGE_SWAPPED) {
		cr_assert(seconds() < until, "the page stays in memory: bits %#x", residency(p));
		cr_assert(up_advise(rt, p, PAGE, UP_ADVICE_COLD) == 0);
		for (size_t i = 0; i < n; i++)
			*word(other, i) = i + 1;
	}
	cr_assert(up_unmap(rt, other, n * PAGE) == 0);
}

/* --- signals --- */

static _Thread_local sigjmp_buf escape;
static void *_Atomic fault_address;

static void
on_signal(int sig, siginfo_t *info, void *context)
{
	if (sig == SIGBUS && up_handle_sigbus(info, context))
		return;
	fault_address = info->si_addr;
	siglongjmp(escape, sig);
}

static void
catch_signals(void)
{
	const struct sigaction sa = { .sa_sigaction = on_signal,
				      .sa_flags = SA_SIGINFO | SA_NODEFER };

	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
}

/* Touch a word; 0, or the signal that it raised. */
static int
touch(char *p, bool write)
{
	int sig = sigsetjmp(escape, 1);

	if (sig != 0)
		return sig;
	if (write)
		*(volatile char *)p = 7;
	else
		(void)*(volatile char *)p;
	return 0;
}

static int
in_child(int (*fn)(void))
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		alarm(DEADLINE);
		signal(SIGSEGV, SIG_DFL); /* not a sanitizer's */
		signal(SIGBUS, SIG_DFL);
		_exit(fn());
	}
	cr_assert(waitpid(pid, &status, 0) == pid);
	return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* --- mappings --- */

/* The protection of the mapping that holds p, as in /proc/self/maps: "rw-p"; "" if there is none. */
static const char *
vma_of(const char *p)
{
	static char prot[5];
	FILE *f = fopen("/proc/self/maps", "re");
	char line[512];

	cr_assert(f != NULL);
	prot[0] = '\0';
	while (fgets(line, sizeof line, f) != NULL) {
		uintptr_t start, end;
		char perms[5];

		if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s", &start, &end, perms) == 3 &&
		    start <= (uintptr_t)p && (uintptr_t)p < end)
			strcpy(prot, perms);
	}
	fclose(f);
	return prot;
}

Test(api, any_part_can_be_unmapped_and_the_kernel_agrees)
{
	enum { N = 24 };
	bool gone[N] = { false };
	unsigned seed = 1;
	char *p;

	start(8 * MiB);
	catch_signals();
	p = map(N * PAGE);
	fill(p, 0, N, 0);
	for (unsigned turn = 0; turn < 12; turn++) {
		const size_t first = (size_t)rand_r(&seed) % N,
			     n = 1 + (size_t)rand_r(&seed) % 4 % (N - first);
		uint64_t left = 0;

		cr_assert(up_unmap(rt, p + first * PAGE, n * PAGE) == 0, "%s", logged);
		for (size_t i = first; i < first + n; i++)
			gone[i] = true;
		for (size_t i = 0; i < N; i++) {
			left += !gone[i];
			cr_assert((vma_of(p + i * PAGE)[0] == '\0') == gone[i], "turn %u: page %zu",
				  turn, i);
			cr_assert(touch(p + i * PAGE, false) == (gone[i] ? SIGSEGV : 0),
				  "turn %u: page %zu", turn, i);
			cr_assert(gone[i] || intact(p, i, 0), "turn %u: page %zu", turn, i);
		}
		cr_assert(stats().mapped == left * PAGE);
	}
	up_runtime_destroy(rt);
}

Test(api, a_fixed_mapping_fills_a_hole_and_a_hint_is_honoured)
{
	void *q;
	char *p;

	start(8 * MiB);
	p = map(8 * PAGE);
	fill(p, 0, 8, 0);
	cr_assert(up_unmap(rt, p + 3 * PAGE, 2 * PAGE) == 0);
	cr_assert(up_map(rt, p + 3 * PAGE, 2 * PAGE, RW, UP_PRIVATE | UP_FIXED, NULL, 0, &q) == 0,
		  "%s", logged);
	cr_assert(q == p + 3 * PAGE && *word(q, 0) == 0 && *word(q, 1) == 0,
		  "what was unmapped came back");
	*word(q, 0) = 5;
	check_fill(p, 0, 3, 0);
	check_fill(p, 5, 3, 0);
	cr_assert(up_unmap(rt, p, 8 * PAGE) == 0 && stats().mapped == 0);

	cr_assert(up_map(rt, p, 4 * PAGE, RW, UP_PRIVATE, NULL, 0, &q) == 0);
	cr_assert(q == p, "the hinted addresses were free");
	cr_assert(up_map(rt, p, 4 * PAGE, RW, UP_PRIVATE, NULL, 0, &q) == 0);
	cr_assert(q != p, "a hint is no order");
	up_runtime_destroy(rt);
}

Test(api, protection_is_sigsegv_for_what_is_not_allowed)
{
	static const int prots[] = { PROT_NONE, PROT_READ, PROT_WRITE, RW };
	static const char *const vma[] = { "---p", "r--p", "rw-p", "rw-p" };
	char *p;

	start(8 * MiB);
	catch_signals();
	p = map(12 * PAGE);
	fill(p, 0, 6, 0);
	push_out(p); /* some are swapped, some never written: no difference */
	for (unsigned i = 0; i < 4; i++) {
		cr_assert(up_protect(rt, p + 4 * PAGE, 4 * PAGE, prots[i]) == 0, "%s", logged);
		cr_assert(strcmp(vma_of(p + 5 * PAGE), vma[i]) == 0, "%s", vma_of(p + 5 * PAGE));
		for (size_t page = 4; page < 8; page++) {
			cr_assert(touch(p + page * PAGE, false) ==
				  (prots[i] == PROT_NONE ? SIGSEGV : 0));
			cr_assert(touch(p + page * PAGE + 8, true) ==
				  (prots[i] & PROT_WRITE ? 0 : SIGSEGV));
			if (!(prots[i] & PROT_WRITE))
				cr_assert(fault_address == p + page * PAGE + (8));
		}
		cr_assert(touch(p + 3 * PAGE + 8, true) == 0 && touch(p + 8 * PAGE + 8, true) == 0);
	}
	for (size_t i = 0; i < 6; i++)
		cr_assert(*word(p, i) == (i + 1) * UINT64_C(0x9e3779b97f4a7c15), "page %zu", i);
	up_runtime_destroy(rt);
}

Test(api, a_region_can_be_mapped_without_access_and_be_opened_later)
{
	void *q;
	char *p;

	start(8 * MiB);
	catch_signals();
	cr_assert(up_map(rt, NULL, 4 * PAGE, PROT_NONE, UP_PRIVATE, NULL, 0, &q) == 0);
	p = q;
	cr_assert(touch(p, false) == SIGSEGV);
	cr_assert(up_protect(rt, p, 4 * PAGE, PROT_READ) == 0);
	cr_assert(touch(p, false) == 0 && touch(p, true) == SIGSEGV && *word(p, 0) == 0);
	cr_assert(up_protect(rt, p, 4 * PAGE, RW) == 0);
	cr_assert(touch(p, true) == 0);
	up_runtime_destroy(rt);
}

/* --- several of everything --- */

struct worker {
	pthread_t thread;
	struct up_runtime *rt;
	uint64_t salt;
	bool ok;
};

static void *
work(void *arg)
{
	struct worker *w = arg;
	const size_t n = 6 * MiB / PAGE;
	void *p;

	if (up_map(w->rt, NULL, n * PAGE, RW, UP_PRIVATE, NULL, 0, &p) != 0)
		return NULL;
	fill(p, 0, n, w->salt);
	w->ok = true;
	for (size_t i = 0; i < n; i++)
		w->ok &= intact(p, (i * 7919) % n, w->salt);
	w->ok &= up_unmap(w->rt, p, n * PAGE) == 0;
	return NULL;
}

Test(api, runtimes_and_threads_do_not_mix_their_pages)
{
	const struct up_config cfg = config(4 * MiB);
	struct worker w[6] = { 0 };
	struct up_runtime *r[2];
	struct timespec until;

	r[0] = real_start(&cfg);
	r[1] = real_start(&cfg);
	for (unsigned i = 0; i < 6; i++) {
		w[i].rt = r[i % 2];
		w[i].salt = i * 1000;
		cr_assert(pthread_create(&w[i].thread, NULL, work, &w[i]) == 0);
	}
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 3 * DEADLINE;
	for (unsigned i = 0; i < 6; i++) {
		cr_assert(pthread_timedjoin_np(w[i].thread, NULL, &until) == 0,
			  "worker %u is stuck", i);
		cr_assert(w[i].ok, "worker %u read what it had not written", i);
	}
	for (unsigned i = 0; i < 2; i++) {
		rt = r[i];
		cr_assert(stats().mapped == 0 && stats().swapped == 0 && stats().reserve_used == 0);
		cr_assert(stats().pages_out > 0 && stats().used_max <= 4 * MiB);
		up_runtime_destroy(rt);
	}
}

/* --- advice --- */

Test(api, dontneed_reads_as_zeros_wherever_the_pages_were)
{
	const size_t n = 4 * MiB / PAGE;
	struct up_stats st;
	char *p;

	start(4 * MiB);
	p = map(n * PAGE);
	fill(p, 0, n, 0);
	push_out(p);
	fill(p, n / 2, 64, 1); /* some in memory, the others in swap */
	cr_assert(up_advise(rt, p + PAGE, (n - 2) * PAGE, UP_ADVICE_DONTNEED) == 0);
	cr_assert(count_bits(p + PAGE, n - 2, 0xff) == 0,
		  "something is left of what was discarded");
	for (size_t i = 1; i < n - 1; i++) {
		for (size_t w = 0; w < PAGE / 8; w += 64)
			cr_assert(word(p, i)[w] == 0, "page %zu", i);
	}
	check_fill(p, 0, 1, 0);
	check_fill(p, n - 1, 1, 0);
	cr_assert(up_advise(rt, p, n * PAGE, UP_ADVICE_DONTNEED) == 0);
	/* A write that was in flight still holds its frames. */
	AWAIT(({
		      st = stats();
		      st.resident == 0 && st.staged == 0 && st.swapped == 0;
	      }),
	      "resident %lu, staged %lu, swapped %lu", st.resident, st.staged, st.swapped);
	up_runtime_destroy(rt);
}

Test(api, willneed_brings_pages_in_by_itself)
{
	const size_t n = 64;
	struct up_stats was, st;
	char *p;

	start(16 * MiB);
	p = map(n * PAGE);
	fill(p, 0, n, 0);
	/* Each of them: what is staged still is in memory, and not brought in. */
	for (size_t i = n; i-- > 0;)
		push_out(p + i * PAGE);
	was = stats();
	cr_assert(up_advise(rt, p, n * PAGE, UP_ADVICE_WILLNEED) == 0);
	AWAIT(count_bits(p, n, UP_PAGE_MAPPED) == n, "%zu of %zu pages are in memory",
	      count_bits(p, n, UP_PAGE_MAPPED), n);
	st = stats();
	cr_assert(st.readahead_pages >= was.readahead_pages + n / 2);
	cr_assert(st.faults[UP_FAULT_MAJOR] == was.faults[UP_FAULT_MAJOR],
		  "nobody has touched them");
	check_fill(p, 0, n, 0);
	cr_assert(stats().faults[UP_FAULT_MAJOR] == was.faults[UP_FAULT_MAJOR],
		  "they were not there after all");
	up_runtime_destroy(rt);
}

Test(api, cold_pages_leave_before_others)
{
	const size_t n = 128;
	char *warm, *cold, *other;
	size_t i = 0, left;

	start(8 * MiB);
	warm = map(n * PAGE); /* older than the cold ones: first to leave, but for the advice */
	fill(warm, 0, n, 0);
	cold = map(n * PAGE);
	fill(cold, 0, n, 0);
	other = map(16 * MiB);
	cr_assert(up_advise(rt, cold, n * PAGE, UP_ADVICE_COLD) == 0);
	while (count_bits(warm, n, UP_PAGE_MAPPED) == n) {
		cr_assert(i < 16 * MiB / PAGE, "nothing ever leaves");
		/* Not after every page: to look at one is to hold it for an instant, and pageout passes it by. */
		for (size_t k = 0; k < 32; k++)
			*word(other, i++) = 1;
	}
	left = count_bits(cold, n, UP_PAGE_MAPPED);
	cr_assert(left <= n / 8, "older pages leave, and of %zu cold ones %zu are left", n, left);
	check_fill(cold, 0, n, 0);
	check_fill(warm, 0, n, 0);
	up_runtime_destroy(rt);
}

/* How many pages come along, `want` at least, when 64 of 256 swapped ones are read in order. */
static uint64_t
come_along(enum up_advice advice, uint64_t want)
{
	const size_t n = 256;
	uint64_t before;
	char *p;

	start(4 * MiB);
	p = map(n * PAGE);
	fill(p, 0, n, 0);
	push_out(p + 163 * PAGE);
	push_out(p + 100 * PAGE);
	cr_assert(up_advise(rt, p, n * PAGE, advice) == 0);
	before = stats().readahead_pages;
	check_fill(p, 100, 64, 0);
	AWAIT(stats().readahead_pages - before >= want, "%lu pages came along, not %lu",
	      stats().readahead_pages - before, want);
	check_fill(p, 0, n, 0);
	before = stats().readahead_pages - before;
	up_runtime_destroy(rt);
	return before;
}

Test(api, sequential_reads_ahead_and_random_does_not)
{
	cr_assert(come_along(UP_ADVICE_SEQUENTIAL, 16) >= 16);
	cr_assert(come_along(UP_ADVICE_RANDOM, 0) == 0, "pages were read ahead of random access");
}

Test(api, residency_tells_where_each_page_is)
{
	const size_t n = 8;
	unsigned char vec[8];
	char *p;

	start(4 * MiB);
	p = map(n * PAGE);
	fill(p, 0, 2, 0);
	memset(vec, 0xff, sizeof vec);
	cr_assert(up_residency(rt, p, n * PAGE, vec) == 0);
	cr_assert(vec[0] == UP_PAGE_MAPPED && vec[1] == UP_PAGE_MAPPED && vec[n - 1] == 0);
	push_out(p);
	cr_assert(residency(p) == UP_PAGE_SWAPPED);
	check_fill(p, 0, 1, 0); /* a read: the copy in swap is still good */
	AWAIT(residency(p) == (UP_PAGE_MAPPED | UP_PAGE_SWAPPED), "bits %#x", residency(p));
	up_runtime_destroy(rt);
}

/* --- objects --- */

Test(api, an_object_keeps_its_contents_from_one_mapping_to_the_next)
{
	const size_t n = 6 * MiB / PAGE;
	struct up_object *o;
	void *a, *b;

	start(4 * MiB);
	cr_assert(up_object_create_anon(rt, n * PAGE, 0, &o) == 0, "%s", logged);
	cr_assert(up_map(rt, NULL, n * PAGE, RW, UP_SHARED, o, 0, &a) == 0, "%s", logged);
	fill(a, 0, n, 0);
	cr_assert(up_unmap(rt, a, n * PAGE) == 0);
	cr_assert(stats().mapped == 0 && stats().objects == 1);

	/* Back in two parts, the second half first. */
	cr_assert(up_map(rt, NULL, n / 2 * PAGE, RW, UP_SHARED, o, n / 2 * PAGE, &b) == 0, "%s",
		  logged);
	cr_assert(up_map(rt, NULL, n / 2 * PAGE, RW, UP_SHARED, o, 0, &a) == 0, "%s", logged);
	check_fill(a, 0, n / 2, 0);
	for (size_t i = 0; i < n / 2; i++)
		cr_assert(*word(b, i) == (n / 2 + i + 1) * UINT64_C(0x9e3779b97f4a7c15), "page %zu",
			  n / 2 + i);

	/* The mapping has a reference of its own; the last one frees. */
	cr_assert(up_object_ref(o) == o);
	up_object_unref(o);
	up_object_unref(o);
	check_fill(a, 0, n / 2, 0);
	cr_assert(up_unmap(rt, a, n / 2 * PAGE) == 0 && stats().objects == 1);
	cr_assert(up_unmap(rt, b, n / 2 * PAGE) == 0 && stats().objects == 0);
	cr_assert(stats().swapped == 0 && stats().resident == 0 && stats().reserve_used == 0);
	up_runtime_destroy(rt);
}

/* Without rights to /proc/self/mem pages of an inaccessible region are hard to come by. */
static int
child_keeps_inaccessible(void)
{
	const struct up_config cfg = config(4 * MiB);
	const size_t n = 16;
	struct up_object *o;
	void *p;

	if (setgid(65534) < 0 || setuid(65534) < 0 || up_runtime_create(&rt, &cfg) != 0)
		return 77;
	if (up_object_create_anon(rt, n * PAGE, 0, &o) != 0 ||
	    up_map(rt, NULL, n * PAGE, RW, UP_SHARED, o, 0, &p) != 0)
		return 1;
	fill(p, 0, n, 0);
	if (up_protect(rt, p, n * PAGE, PROT_NONE) != 0 || up_unmap(rt, p, n * PAGE) != 0)
		return 2;
	if (up_map(rt, NULL, n * PAGE, PROT_READ, UP_SHARED, o, 0, &p) != 0)
		return 3;
	for (size_t i = 0; i < n; i++)
		if (!intact(p, i, 0))
			return 4;
	up_runtime_destroy(rt);
	return 0;
}

Test(api, an_object_unmapped_while_inaccessible_keeps_its_contents)
{
	const int r = in_child(child_keeps_inaccessible);

	if (r == 77)
		cr_skip_test("can not become nobody, or no userfaultfd for him");
	cr_assert(r == 0, "step %d", r);
}

Test(api, destroy_takes_regions_and_objects_with_it)
{
	struct up_object *o, *unmapped;
	char *p;
	void *q;

	start(4 * MiB);
	catch_signals();
	p = map(6 * MiB);
	fill(p, 0, 6 * MiB / PAGE, 0);
	cr_assert(up_object_create_anon(rt, MiB, 0, &o) == 0);
	cr_assert(up_object_create_anon(rt, MiB, 0, &unmapped) == 0);
	cr_assert(up_map(rt, NULL, MiB, RW, UP_SHARED, unmapped, 0, &q) == 0);
	fill(q, 0, MiB / PAGE, 0);
	cr_assert(up_unmap(rt, q, MiB) == 0);
	cr_assert(up_map(rt, NULL, MiB, RW, UP_SHARED, o, 0, &q) == 0);
	up_object_ref(o);
	fill(q, 0, MiB / PAGE, 0);
	up_runtime_destroy(rt);
	cr_assert(vma_of(p)[0] == '\0' && vma_of(q)[0] == '\0', "a region outlived its runtime");
	cr_assert(touch(p, false) == SIGSEGV);
}

/* --- sizes --- */

Test(api, a_region_of_a_tebibyte_maps_at_once)
{
	const size_t size = (size_t)1 << 40;
	double best = 1e9;
	char *p;

	start(16 * MiB);
	for (unsigned i = 0; i < 5; i++) {
		const double t = seconds();

		p = map_of(rt, size, UP_PRIVATE | UP_NORESERVE);
		best = best < seconds() - t ? best : seconds() - t;
		for (size_t at = 0; at < 100; at++)
			*word(p, at * (size / PAGE / 100)) = at + 1;
		for (size_t at = 0; at < 100; at++)
			cr_assert(*word(p, at * (size / PAGE / 100)) == at + 1);
		cr_assert(residency(p + size - PAGE) == 0);
		cr_assert(stats().mapped == size);
		cr_assert(up_unmap(rt, p, size) == 0);
	}
	cr_assert(best < 0.010, "%.1f ms", best * 1e3);
	up_runtime_destroy(rt);
}

/* --- statistics --- */

Test(api, statistics_add_up)
{
	const size_t n = 12 * MiB / PAGE;
	struct up_stats st;
	uint64_t faults = 0;
	char *p;

	start(4 * MiB);
	p = map(n * PAGE);
	fill(p, 0, n, 0);
	check_fill(p, 0, n, 0);
	for (size_t i = 0; i < n; i++)
		cr_assert(intact(p, (i * 7919) % n, 0));
	st = stats();
	cr_assert(st.limit == 4 * MiB && st.used_max <= st.limit && st.used <= st.used_max);
	cr_assert(st.used_max > st.limit / 2, "12 MiB went through 4, and %lu were used",
		  st.used_max);
	cr_assert(st.resident + st.staged + st.free_frames + st.metadata <= st.limit);
	cr_assert(st.mapped == n * PAGE && st.entries == 1 && st.objects == 1);
	cr_assert(st.reserve_used == n * PAGE &&
		  st.reserve_free == st.reserve_max - st.reserve_used);
	cr_assert(st.faults[UP_FAULT_ZERO] > 0 && st.faults[UP_FAULT_MAJOR] > 0);
	cr_assert(st.faults[UP_FAULT_ZERO] + st.zero_ahead_pages <= n + st.pages_out);
	cr_assert(st.pages_out >= n - 4 * MiB / PAGE && st.pages_staged >= st.pages_out);
	cr_assert(st.swap_writes > 0 && st.swap_write_bytes >= st.swap_writes * PAGE);
	cr_assert(st.swap_reads > 0 && st.swap_read_bytes >= st.swap_reads * PAGE);
	cr_assert(st.swap_read_errors + st.swap_write_errors + st.checksum_errors + st.bad_slots ==
		  0);
	cr_assert(st.lost == 0 && st.fault_sigbus == 0);

	/* The last answer is counted after it has woken us: wait for it. */
	AWAIT(({
		      st = stats();
		      faults = 0;
		      for (unsigned k = 0; k < UP_FAULT_KINDS; k++)
			      faults += st.faults[k] - st.latency[k].count;
		      faults == 0;
	      }),
	      "faults and latencies differ by %lu", faults);
	for (unsigned k = 0; k < UP_FAULT_KINDS; k++) {
		const struct up_latency *l = &st.latency[k];

		if (l->count > 0)
			cr_assert(l->p50 <= l->p99 && l->p99 <= l->p999 &&
				  l->p999 <= l->max + l->max / 32 && l->max > 0);
	}

	/* At rest every page is in one place. */
	AWAIT(({
		      st = stats();
		      st.resident + st.staged + st.swapped == n *PAGE;
	      }),
	      "resident %lu, staged %lu, swapped %lu of %zu", st.resident, st.staged, st.swapped,
	      n * PAGE);
	AWAIT(({
		      st = stats();
		      st.resident + st.staged + st.free_frames + st.metadata <= st.used;
	      }),
	      "used %lu is less than its parts", st.used);
	up_runtime_destroy(rt);
}

Test(api, an_older_program_gets_the_fields_that_it_knows)
{
	struct {
		struct up_stats st;
		char tail[64];
	} big;
	struct up_stats st, full;
	const size_t known = offsetof(struct up_stats, readahead_pages);
	char *p;

	start(4 * MiB);
	p = map(MiB);
	fill(p, 0, 16, 0);
	AWAIT(stats().faults[UP_FAULT_ZERO] > 0, "no fault");
	/* The last fault is counted after it has been answered: until both looks come after that. */
	AWAIT(({
		      memset(&st, 0xee, sizeof st);
		      cr_assert(up_stats_get(rt, &st, known) == 0);
		      full = stats();
		      memcmp(st.faults, full.faults, sizeof st.faults) == 0;
	      }),
	      "two looks never agree");
	for (size_t i = known; i < sizeof st; i++)
		cr_assert(((unsigned char *)&st)[i] == 0xee, "byte %zu was written", i);

	/* And a newer one finds zeros where this library knows of nothing. */
	memset(&big, 0xee, sizeof big);
	cr_assert(up_stats_get(rt, &big.st, sizeof big) == 0);
	cr_assert(big.st.limit == 4 * MiB);
	for (size_t i = 0; i < sizeof big.tail; i++)
		cr_assert(big.tail[i] == 0);
	up_runtime_destroy(rt);
}

/* The first of `want` that print() does not say, NULL if it says all; *text is the caller's to free. */
static const char *
not_printed(int (*print)(struct up_runtime *, FILE *), const char *const *want, char **text)
{
	size_t len = 0;
	FILE *f = open_memstream(text, &len);

	cr_assert(f != NULL && print(rt, f) == 0);
	fclose(f);
	while (*want != NULL && strstr(*text, *want) != NULL)
		want++;
	return *want;
}

Test(api, statistics_and_events_are_printed_for_people)
{
	static const char *const screen[] = { "of 4.0 (at most",
					      "regions   8.0 MiB in 1 entries, 1 objects",
					      "zero-fill",
					      "major",
					      "p99.9",
					      "pageout",
					      "swap ",
					      "checksum",
					      NULL };
	static const char *const events[] = { "fault-major", "swap-read", "swap-write", "stage",
					      NULL };
	unsigned round = 0;
	const char *missing;
	char *p, *text;

	start(4 * MiB);
	p = map(8 * MiB);
	cr_assert(up_advise(rt, p, 8 * MiB, UP_ADVICE_RANDOM) == 0);
	fill(p, 0, 8 * MiB / PAGE, 0);
	check_fill(p, 0, 64, 0);
	missing = not_printed(up_stats_print, screen, &text);
	cr_assert(missing == NULL, "\"%s\" is not in:\n%s", missing, text);
	free(text);
	/*
	 * The recorder keeps the last events of a thread only, and of a thread that serves itself
	 * just a few: where it wrote pages out itself, faults have been recorded over that since.
	 */
	AWAIT(({
		      fill(p, 0, 8 * MiB / PAGE, ++round);
		      check_fill(p, 0, 8, round);
		      missing = not_printed(up_trace_print, events, &text);
		      free(text);
		      missing == NULL;
	      }),
	      "\"%s\" has never been printed", missing);
	up_runtime_destroy(rt);
}

Test(api, version_and_features_are_told)
{
	struct up_config cfg = config(4 * MiB);
	uint64_t all;
	char want[32];

	snprintf(want, sizeof want, "%d.%d.%d", UP_VERSION_MAJOR, UP_VERSION_MINOR,
		 UP_VERSION_PATCH);
	cr_assert(strcmp(up_version(), want) == 0);
	rt = real_start(&cfg);
	all = up_features(rt);
	cr_assert((all & ~UP_MASK_ALL) == 0);
	up_runtime_destroy(rt);
	for (unsigned bit = 0; bit < 8; bit++) {
		char *p;

		cfg.feature_mask = UINT64_C(1) << bit;
		rt = real_start(&cfg);
		cr_assert(up_features(rt) == (all & ~cfg.feature_mask), "bit %u: %#lx of %#lx", bit,
			  up_features(rt), all);
		p = map(6 * MiB);
		fill(p, 0, 6 * MiB / PAGE, bit);
		check_fill(p, 0, 6 * MiB / PAGE, bit);
		up_runtime_destroy(rt);
	}
}

/* --- system calls --- */

Test(api, system_calls_reach_pages_that_are_not_there)
{
	const size_t n = 64;
	char name[] = "/var/tmp/uffd-pager-api-XXXXXX", *p, *copy = malloc(64 * PAGE);
	const int fd = mkstemp(name);
	struct iovec iov[2];

	cr_assert(fd >= 0 && copy != NULL);
	unlink(name);
	start(4 * MiB);
	if ((up_features(rt) & UP_MASK_KERNEL_FAULTS) == 0)
		cr_skip_test("faults from inside system calls are not permitted here");
	p = map(2 * n * PAGE);
	fill(p, 0, n, 0);
	push_out(p);
	push_out(p + (n - 1) * PAGE);

	/* From swapped pages, into pages never touched; all of it, at once. */
	cr_assert(write(fd, p, n * PAGE) == (ssize_t)(n * PAGE), "write: %s", strerror(errno));
	cr_assert(pread(fd, copy, n * PAGE, 0) == (ssize_t)(n * PAGE));
	for (size_t i = 0; i < n; i++)
		cr_assert(memcmp(copy + i * PAGE, p + i * PAGE, PAGE) == 0, "page %zu", i);
	cr_assert(pread(fd, p + n * PAGE, n * PAGE, 0) == (ssize_t)(n * PAGE), "pread: %s",
		  strerror(errno));
	cr_assert(memcmp(p + n * PAGE, copy, n * PAGE) == 0);

	/* And into swapped ones. */
	push_out(p);
	memset(copy, 0x5a, n * PAGE);
	cr_assert(pwrite(fd, copy, n * PAGE, 0) == (ssize_t)(n * PAGE));
	cr_assert(lseek(fd, 0, SEEK_SET) == 0);
	cr_assert(read(fd, p, PAGE) == (ssize_t)PAGE, "read: %s", strerror(errno));
	cr_assert(memcmp(p, copy, PAGE) == 0);
	iov[0] = (struct iovec){ p + PAGE, PAGE };
	iov[1] = (struct iovec){ p + 5 * PAGE + 100, PAGE };
	cr_assert(readv(fd, iov, 2) == (ssize_t)(2 * PAGE), "readv: %s", strerror(errno));
	cr_assert(p[5 * PAGE + 99] != 0x5a || intact(p, 4, 0));
	cr_assert(memcmp(p + 5 * PAGE + 100, copy, PAGE) == 0);
	close(fd);
	free(copy);
	up_runtime_destroy(rt);
}

/* --- the swap --- */

static char swap_name[] = "/var/tmp/uffd-pager-api-XXXXXX";

static int
swap_file(void)
{
	const int fd = mkstemp(swap_name);

	cr_assert(fd > 0, "%s: %s", swap_name, strerror(errno));
	return fd;
}

static void
swap_through(struct up_config *cfg, const char *what)
{
	const size_t n = 8 * MiB / PAGE;
	char *p;

	rt = real_start(cfg);
	p = map(n * PAGE);
	fill(p, 0, n, 0);
	check_fill(p, 0, n, 0);
	cr_assert(stats().swap_write_bytes >= 4 * MiB && stats().swap_read_bytes > 0, "%s", what);
}

Test(api, swap_goes_to_the_file_by_path_or_descriptor_and_leaves_it_empty)
{
	struct up_config cfg = config(4 * MiB);
	const int fd = swap_file();
	struct stat st;

	cfg.swap_path = swap_name;
	swap_through(&cfg, "by path");
	cr_assert(fstat(fd, &st) == 0 && st.st_size >= (off_t)(8 * MiB) && st.st_blocks > 0,
		  "the file is not used");
	up_runtime_destroy(rt);
	cr_assert(fstat(fd, &st) == 0 && st.st_size == 0, "the file was not left empty");

	cfg.swap_path = NULL;
	cfg.swap_fd = fd;
	cfg.swap_size = 16 * MiB;
	swap_through(&cfg, "by descriptor");
	cr_assert(fstat(fd, &st) == 0 && st.st_size == (off_t)(16 * MiB));
	cr_assert(stats().reserve_max == 16 * MiB);
	up_runtime_destroy(rt);
	cr_assert(fstat(fd, &st) == 0 && st.st_size == 0, "our descriptor is not ours any more");
	close(fd);
	unlink(swap_name);
}

static void
detach_loop(const char *device)
{
	char cmd[128];

	snprintf(cmd, sizeof cmd, "losetup -d %s 2>/dev/null", device);
	cr_expect(system(cmd) == 0, "%s", cmd);
}

Test(api, swap_goes_to_a_block_device)
{
	struct up_config cfg = config(4 * MiB);
	char cmd[128], device[64] = "";
	const int fd = swap_file();
	FILE *f;

	cr_assert(ftruncate(fd, 32 * MiB) == 0);
	snprintf(cmd, sizeof cmd, "losetup --show -f %s 2>/dev/null", swap_name);
	f = popen(cmd, "re");
	if (f != NULL && fgets(device, sizeof device, f) != NULL)
		device[strcspn(device, "\n")] = '\0';
	if (f != NULL)
		pclose(f);
	unlink(swap_name);
	close(fd);
	if (device[0] == '\0')
		cr_skip_test("losetup does not work here");
	cfg.swap_path = device;
	if (up_runtime_create(&rt, &cfg) < 0) {
		detach_loop(device);
		cr_assert_fail("%s: %s", device, logged);
	}
	cr_expect(stats().reserve_max == 32 * MiB);
	up_runtime_destroy(rt);
	swap_through(&cfg, device);
	up_runtime_destroy(rt);
	detach_loop(device);
}

/* Overwrite, behind the library's back, the one place in the swap file that holds page `p`. */
static unsigned
damage(int fd, uint64_t first_word)
{
	static _Alignas(4096) unsigned char buf[4096];
	unsigned found = 0;
	struct stat st;

	cr_assert(fstat(fd, &st) == 0);
	for (off_t at = 0; at < st.st_size; at += (off_t)PAGE) {
		cr_assert(pread(fd, buf, PAGE, at) == (ssize_t)PAGE);
		if (memcmp(buf, &first_word, sizeof first_word) != 0)
			continue;
		buf[2048] ^= 1;
		cr_assert(pwrite(fd, buf, PAGE, at) == (ssize_t)PAGE);
		found++;
	}
	cr_assert(fsync(fd) == 0);
	return found;
}

Test(api, a_page_damaged_in_the_swap_file_is_sigbus_and_no_other_is)
{
	const size_t n = 8 * MiB / PAGE, victim = 77;
	struct up_config cfg = config(4 * MiB);
	const int fd = swap_file();
	struct up_stats st;
	char *p;

	cfg.swap_path = swap_name;
	rt = real_start(&cfg);
	catch_signals();
	p = map(n * PAGE);
	fill(p, 0, n, 0);
	push_out(p + victim * PAGE);
	cr_assert(damage(fd, (victim + 1) * UINT64_C(0x9e3779b97f4a7c15)) > 0,
		  "the page is in swap, and nowhere in the swap file");
	cr_assert(touch(p + victim * PAGE + 100, false) == SIGBUS, "a damaged page was given out");
	cr_assert(fault_address == p + victim * PAGE + 100 || fault_address == p + victim * PAGE);
	cr_assert(touch(p + victim * PAGE, true) == SIGBUS);
	for (size_t i = 0; i < n; i++)
		cr_assert(i == victim || intact(p, i, 0), "page %zu was damaged too", i);
	st = stats();
	cr_assert(st.checksum_errors == 1 && st.lost == PAGE && st.fault_sigbus >= 1 &&
		  st.bad_slots == 1);
	cr_assert(residency(p + victim * PAGE) == UP_PAGE_LOST);
	AWAIT(strstr(logged, "checksum mismatch") !=
	      NULL); /* from a handler of SIGBUS it comes later */

	/* Until it is discarded. */
	cr_assert(up_advise(rt, p + victim * PAGE, PAGE, UP_ADVICE_DONTNEED) == 0);
	cr_assert(touch(p + victim * PAGE, false) == 0 && *word(p, victim) == 0 &&
		  stats().lost == 0);
	up_runtime_destroy(rt);
	close(fd);
	unlink(swap_name);
}

Test(api, a_swap_file_cut_short_is_a_read_error_on_its_pages)
{
	const size_t n = 64;
	struct up_config cfg = config(4 * MiB);
	const int fd = swap_file();
	unsigned bus = 0;
	char *p, *q;

	cfg.swap_path = swap_name;
	rt = real_start(&cfg);
	catch_signals();
	p = map(n * PAGE);
	fill(p, 0, n, 0);
	push_out(p);
	push_out(p + (n - 1) * PAGE);
	cr_assert(ftruncate(fd, 0) == 0);
	for (size_t i = 0; i < n; i++) {
		const bool there =
			(residency(p + i * PAGE) & (UP_PAGE_MAPPED | UP_PAGE_STAGED)) != 0;
		const int sig = touch(p + i * PAGE, false);

		cr_assert(sig == (there ? 0 : SIGBUS), "page %zu: signal %d", i, sig);
		bus += sig == SIGBUS;
		cr_assert(sig != 0 || intact(p, i, 0), "page %zu", i);
	}
	cr_assert(bus > 0 && stats().swap_read_errors >= bus && stats().lost == bus * PAGE);
	q = map(PAGE); /* life goes on */
	*word(q, 0) = 1;
	up_runtime_destroy(rt);
	close(fd);
	unlink(swap_name);
}

/* --- fork --- */

static char *region;
static size_t npages;

static int
child_touches(void)
{
	*(volatile char *)region = 1;
	return 0;
}

static int
child_reads(void)
{
	return *(volatile char *)(region + (npages - 1) * PAGE) & 1;
}

Test(api, a_forked_child_has_no_regions_and_the_parent_keeps_them)
{
	start(4 * MiB);
	npages = 6 * MiB / PAGE;
	region = map(npages * PAGE);
	fill(region, 0, npages, 0);
	cr_assert(in_child(child_touches) == 1000 + SIGSEGV);
	cr_assert(in_child(child_reads) == 1000 + SIGSEGV);
	check_fill(region, 0, npages, 0);
	up_runtime_destroy(rt);
}

static atomic_bool stop;
static atomic_uint rounds;

static void *
page_on(void *arg)
{
	(void)arg;
	for (uint64_t salt = 1; !stop; salt++) {
		fill(region, 0, npages, salt);
		for (size_t i = 0; i < npages; i++)
			if (!intact(region, i, salt))
				return region + i * PAGE;
		rounds++;
	}
	return NULL;
}

static int
child_leaves(void)
{
	return 3;
}

Test(api, forking_while_pages_come_and_go_harms_nobody)
{
	struct timespec until;
	pthread_t thread;
	void *bad;

	start(4 * MiB);
	npages = 6 * MiB / PAGE;
	region = map(npages * PAGE);
	cr_assert(pthread_create(&thread, NULL, page_on, NULL) == 0);
	for (unsigned i = 0; i < 200 || rounds < 3; i++)
		cr_assert(in_child(i % 20 == 0 ? child_touches : child_leaves) ==
			  (i % 20 == 0 ? 1000 + SIGSEGV : 3));
	stop = true;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += DEADLINE;
	cr_assert(pthread_timedjoin_np(thread, &bad, &until) == 0, "the paging thread is stuck");
	cr_assert(bad == NULL, "the page at %p is not what was written", bad);
	cr_assert(stats().pages_out > 0 && stats().lost == 0);
	up_runtime_destroy(rt);
}

/* --- threads and log --- */

/* Service threads of this process, each with its mask of blocked signals. */
static unsigned
service_threads(uint64_t blocked[], unsigned max)
{
	DIR *d = opendir("/proc/self/task");
	struct dirent *de;
	unsigned n = 0;

	cr_assert(d != NULL);
	while ((de = readdir(d)) != NULL) {
		char path[300], line[256];
		bool ours = false;
		FILE *f;

		if (de->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "/proc/self/task/%s/status", de->d_name);
		f = fopen(path, "re");
		if (f == NULL)
			continue;
		while (fgets(line, sizeof line, f) != NULL) {
			if (strncmp(line, "Name:", 5) == 0)
				ours = strstr(line, "uffd-pager") != NULL;
			if (ours && n < max && sscanf(line, "SigBlk: %" SCNx64, &blocked[n]) == 1)
				n++;
		}
		fclose(f);
	}
	closedir(d);
	return n;
}

Test(api, service_threads_are_named_and_take_no_signals)
{
	struct up_config cfg = config(8 * MiB);
	const uint64_t kill_stop = UINT64_C(1) << (SIGKILL - 1) | UINT64_C(1) << (SIGSTOP - 1);
	/* Two below SIGRTMIN are the C library's own. */
	const uint64_t libc = UINT64_C(3) << 31;
	/* A thread that uses memory of a runtime with UP_DELIVER_INLINE needs it. */
	const uint64_t bus = UINT64_C(1) << (SIGBUS - 1);
	uint64_t blocked[16];
	unsigned n;

	cfg.service_threads = 3;
	rt = real_start(&cfg);
	n = service_threads(blocked, 16);
	cr_assert(n == 3, "%u threads are called uffd-pager", n);
	for (unsigned i = 0; i < n; i++)
		cr_assert((blocked[i] | kill_stop | libc) == ~bus, "thread %u blocks %#lx only", i,
			  blocked[i]);
	up_runtime_destroy(rt);
	n = service_threads(blocked, 16);
	cr_assert(n == 0, "%u threads outlive their runtime", n);
}

Test(api, the_log_says_what_was_found_and_where_the_swap_is)
{
	start(4 * MiB);
	cr_assert(nlogged[UP_LOG_ERROR] + nlogged[UP_LOG_WARNING] + nlogged[UP_LOG_INFO] >= 2, "%s",
		  logged);
	cr_assert(strstr(logged, "2: Linux ") != NULL && strstr(logged, "2: swap: ") != NULL, "%s",
		  logged);
	up_runtime_destroy(rt);
	/* Without a callback: silent, and no harm. */
	rt = real_start(&(struct up_config){ .memory_limit = 4 * MiB });
	cr_assert(up_unmap(rt, NULL, 3) == -EINVAL);
	up_runtime_destroy(rt);
}

Test(api, creating_and_destroying_leaves_no_descriptor_and_no_mapping)
{
	unsigned files[2], lines[2];

	for (unsigned turn = 0; turn < 6; turn++) {
		const unsigned at = turn < 3 ? 0 : 1; /* by then the C library has what it keeps */
		char line[512];
		DIR *d;
		FILE *f;

		start(4 * MiB);
		fill(map(6 * MiB), 0, 6 * MiB / PAGE, 0);
		up_runtime_destroy(rt);
		files[at] = lines[at] = 0;
		d = opendir("/proc/self/fd");
		cr_assert(d != NULL);
		while (readdir(d) != NULL)
			files[at]++;
		closedir(d);
		f = fopen("/proc/self/maps", "re");
		cr_assert(f != NULL);
		while (fgets(line, sizeof line, f) != NULL)
			lines[at]++;
		fclose(f);
	}
	cr_assert(files[0] == files[1], "%u descriptors became %u", files[0], files[1]);
	cr_assert(lines[1] <= lines[0] + 2, "%u mappings became %u", lines[0], lines[1]);
}
