/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * job.c: one measurement, in a child with a deadline.
 *
 * The parent waits in poll() on a pidfd and a signalfd.  Not alarm() and waitpid(): a signal that
 * arrives between the test and the wait would be lost, and Ctrl-C must never leave a swap file on.
 */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

struct value {
	char name[56];
	char unit[12];
	double v;
};

struct result {
	enum job_end end;
	char why[240];
	char note[160];
	unsigned n;
	struct value value[VALUES_MAX];
	char curve[56]; /* what point[] is the distribution of; empty: nothing */
	double point[CURVE_POINTS];
};

struct bench bench;
const char *const place_name[PLACES] = { "unpinned", "same_cpu", "two_cpus" };

static int signal_fd = -1;
static bool interrupted;

static void *
shared_alloc(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* The other rows check pages too, however small the regions of the pattern rows are. */
static size_t
generations(void)
{
	size_t most = CHECKED_PAGES;

	for (int i = 0; i < SCALES; i++)
		if (bench.scales[i].pages > most)
			most = bench.scales[i].pages;
	return most;
}

bool
job_init(void)
{
	size_t rand_ops = bench.touches;
	sigset_t set;

	for (int i = 0; i < SCALES; i++)
		if (bench.scales[i].rand_ops > rand_ops)
			rand_ops = bench.scales[i].rand_ops;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGQUIT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);

	bench.result = shared_alloc(sizeof *bench.result);
	for (int i = 0; i < DATAS; i++) {
		bench.pool[i] = shared_alloc(POOL_SIZE);
		if (bench.pool[i] == NULL)
			return false;
	}
	bench.generation = shared_alloc(generations() * sizeof *bench.generation);
	bench.ns = shared_alloc(rand_ops * sizeof *bench.ns);
	bench.order = shared_alloc(ZIPF_OPS(rand_ops) * sizeof *bench.order);
	return signal_fd >= 0 && bench.result != NULL && bench.generation != NULL &&
	       bench.ns != NULL && bench.order != NULL;
}

bool
job_interrupted(void)
{
	struct signalfd_siginfo si;

	if (read(signal_fd, &si, sizeof si) == (ssize_t)sizeof si)
		interrupted = true;
	return interrupted;
}

__attribute__((noreturn)) static void
child_main(job_fn *fn, const void *arg, pid_t parent)
{
	sigset_t none;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	janitor_leave();
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	fn(arg);
	_exit(0);
}

/* Wait for the pidfd.  False: the deadline passed, or a signal came (then `interrupted`). */
static bool
child_wait(int pidfd, uint64_t deadline)
{
	struct pollfd pfd[2] = {
		{ .fd = pidfd, .events = POLLIN },
		{ .fd = signal_fd, .events = POLLIN },
	};

	for (;;) {
		uint64_t now = bench_now();
		int ms = now >= deadline ? 0 : (int)((deadline - now) / 1000000 + 1);
		int r = poll(pfd, 2, ms);

		if (r < 0 && errno == EINTR)
			continue;
		if (r > 0 && pfd[0].revents != 0)
			return true;
		if (r <= 0 || job_interrupted())
			return false;
	}
}

static void
values_keep(void)
{
	for (unsigned i = 0; i < bench.result->n; i++) {
		const struct value *v = &bench.result->value[i];

		series_add(v->name, v->unit, v->v);
	}
	if (bench.result->curve[0] != '\0')
		curve_add(bench.result->curve, bench.result->point);
}

enum job_end
job_run(job_fn *fn, const void *arg, unsigned deadline_s, char *why, size_t why_size)
{
	const pid_t parent = getpid();
	const char *note = bench.result->note;
	uint64_t grace;
	bool in_time;
	int pidfd, status = 0;
	pid_t pid;

	if (job_interrupted())
		return JOB_INTERRUPTED;
	if (bench.deadline > 0)
		deadline_s = bench.deadline;
	memset(bench.result, 0, sizeof *bench.result); /* JOB_DONE, unless it gives up */
	memset(bench.generation, 0, generations() * sizeof *bench.generation);

	fflush(NULL);
	pid = fork();
	if (pid == 0)
		child_main(fn, arg, parent);
	pidfd = pid < 0 ? -1 : (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0) {
		snprintf(why, why_size, "fork or pidfd_open: %s", strerror(errno));
		if (pid > 0) {
			kill(pid, SIGKILL);
			waitpid(pid, NULL, 0);
		}
		return JOB_FAILED;
	}

	in_time = child_wait(pidfd, bench_now() + deadline_s * UINT64_C(1000000000));
	if (!in_time)
		kill(pid, SIGKILL);
	/* Even a killed child may stick in the kernel; then it is left to init. */
	grace = bench_now() + UINT64_C(10000000000);
	while (waitpid(pid, &status, WNOHANG) == 0 && bench_now() < grace)
		poll(&(struct pollfd){ .fd = pidfd, .events = POLLIN }, 1, 100);
	close(pidfd);

	if (interrupted)
		return JOB_INTERRUPTED;
	if (!in_time) {
		snprintf(why, why_size, "hang: not done after %u s%s%s", deadline_s,
			 note[0] != '\0' ? ": " : "", note);
		return JOB_HUNG;
	}
	if (bench.result->end != JOB_DONE) {
		snprintf(why, why_size, "%s", bench.result->why);
		return bench.result->end;
	}
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
		if (WIFSIGNALED(status))
			snprintf(why, why_size, "killed by signal %d (%s)%s%s", WTERMSIG(status),
				 strsignal(WTERMSIG(status)), note[0] != '\0' ? ": " : "", note);
		else
			snprintf(why, why_size, "exit status %d", WEXITSTATUS(status));
		return JOB_FAILED;
	}
	values_keep();
	return JOB_DONE;
}

void
job_value(const char *unit, double v, const char *fmt, ...)
{
	struct value *out;
	va_list ap;

	if (bench.result->n == VALUES_MAX)
		job_fail("more than %d values", VALUES_MAX);
	out = &bench.result->value[bench.result->n++];
	va_start(ap, fmt);
	vsnprintf(out->name, sizeof out->name, fmt, ap);
	va_end(ap);
	snprintf(out->unit, sizeof out->unit, "%s", unit);
	out->v = v;
}

__attribute__((format(printf, 2, 0))) static void
give_up(enum job_end end, const char *fmt, va_list ap)
{
	vsnprintf(bench.result->why, sizeof bench.result->why, fmt, ap);
	bench.result->end = end;
}

void
job_fail(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	give_up(JOB_FAILED, fmt, ap);
	va_end(ap);
	_exit(1);
}

void
job_skip(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	give_up(JOB_SKIPPED, fmt, ap);
	va_end(ap);
	_exit(1);
}

static int
compare_ns(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

void
job_quantiles(const char *prefix, size_t n)
{
	const size_t p50 = n / 2, p99 = n - 1 - n / 100;
	double sum = 0;

	if (n == 0)
		job_fail("%s: nothing was measured", prefix);
	for (size_t i = 0; i < n; i++)
		sum += bench.ns[i];
	qsort(bench.ns, n, sizeof *bench.ns, compare_ns);
	job_value("us", bench.ns[p50] / 1e3, "%s.p50", prefix);
	job_value("us", bench.ns[p99] / 1e3, "%s.p99", prefix);
	job_value("us", sum / (double)n / 1e3, "%s.mean", prefix);
}

void
job_curve(const char *name, size_t n)
{
	qsort(bench.ns, n, sizeof *bench.ns, compare_ns);
	for (size_t i = 0; i < CURVE_POINTS; i++) {
		const size_t at = i * (n - 1) / (CURVE_POINTS - 1);

		bench.result->point[i] = bench.ns[at] / 1e3;
	}
	snprintf(bench.result->curve, sizeof bench.result->curve, "%s", name);
}

void
job_note(const char *text)
{
	snprintf(bench.result->note, sizeof bench.result->note, "%.150s", text);
}

void *
job_buffer(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (p == MAP_FAILED)
		job_fail("mmap of %zu bytes: %s", size, strerror(errno));
	return p;
}

static void
pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((size_t)cpu, &set);
	if (sched_setaffinity(0, sizeof set, &set) < 0)
		job_fail("sched_setaffinity: %s", strerror(errno));
}

void
place_service(enum place where)
{
	if (where != PLACE_UNPINNED)
		pin(where == PLACE_SAME_CPU ? bench.cpu[0] : bench.cpu[1]);
}

void
place_faulter(enum place where)
{
	if (where != PLACE_UNPINNED)
		pin(bench.cpu[0]);
}

void
work_path(char path[PATH_MAX], const char *name)
{
	if (snprintf(path, PATH_MAX, "%s/%s", bench.dir, name) >= PATH_MAX)
		path[0] = '\0'; /* open() then says ENOENT */
}
