/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * program.c: other programs: fio, for what the disk can do with several requests at a time, and the external sort of
 * the examples, which is the same program over the library and over plain memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

#define NOT_THERE 127 /* what a shell would say */
#define SORT_INPUT "sort.in"
#define SORT_OUTPUT "sort.out"

__attribute__((noreturn)) static void
program_exec(const char *const argv[], const char *output, pid_t parent)
{
	sigset_t none;
	int fd;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (output != NULL) {
		fd = open(output, O_WRONLY | O_CREAT | O_TRUNC, 0600);
		if (fd < 0 || dup2(fd, STDOUT_FILENO) < 0)
			_exit(1);
		close(fd);
	}
	/* execvp() takes its arguments as if it would write to them. */
	execvp(argv[0], (char *const *)(uintptr_t)argv);
	_exit(errno == ENOENT ? NOT_THERE : 1);
}

int
program_run(const char *const argv[], const char *output, unsigned deadline_s)
{
	const pid_t parent = getpid();
	int status = 0, pidfd;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid == 0)
		program_exec(argv, output, parent);
	if (pid < 0)
		return 1;
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0 ||
	    poll(&(struct pollfd){ .fd = pidfd, .events = POLLIN }, 1, (int)deadline_s * 1000) != 1)
		kill(pid, SIGKILL);
	if (pidfd >= 0)
		close(pidfd);
	if (waitpid(pid, &status, 0) != pid)
		return 1;
	if (WIFSIGNALED(status))
		return 128 + WTERMSIG(status); /* as a shell says it */
	return WEXITSTATUS(status) == NOT_THERE ? -1 : WEXITSTATUS(status);
}

/* ---- fio ---- */

/* The number behind the first "bw_bytes" behind the first "SECTION" in fio's output. */
static double
fio_bandwidth(const char *path, const char *section)
{
	static char text[64 << 10];
	FILE *f = fopen(path, "re");
	const char *p;
	size_t n;

	if (f == NULL)
		job_fail("%s: %s", path, strerror(errno));
	n = fread(text, 1, sizeof text - 1, f);
	fclose(f);
	text[n] = '\0';
	p = strstr(text, section);
	p = p != NULL ? strstr(p, "\"bw_bytes\"") : NULL;
	p = p != NULL ? strchr(p, ':') : NULL;
	if (p == NULL || strtod(p + 1, NULL) <= 0)
		job_fail("fio's output is not understood");
	return strtod(p + 1, NULL);
}

static void
fio_run(const char *rw, const char *section, const char *file, const char *series)
{
	char output[PATH_MAX], name[PATH_MAX + 16], size[32], kind[16];
	const char *const argv[] = { "fio",
				     "--name=disk",
				     name,
				     size,
				     kind,
				     "--bs=256k",
				     "--direct=1",
				     "--ioengine=io_uring",
				     "--iodepth=8",
				     "--overwrite=1",
				     "--randrepeat=1",
				     "--output-format=json",
				     NULL };
	int r;

	work_path(output, "fio.json");
	snprintf(name, sizeof name, "--filename=%s", file);
	snprintf(size, sizeof size, "--size=%zu", (size_t)(bench.quick ? 64 : 256) << 20);
	snprintf(kind, sizeof kind, "--rw=%s", rw);
	r = program_run(argv, output, 60);
	if (r < 0)
		job_skip("fio is not installed: apt-get install fio");
	if (r > 0)
		job_fail("fio: exit status %d", r);
	job_value("MiB/s", fio_bandwidth(output, section) / 1048576, "%s", series);
}

void
fio_disk(const void *arg)
{
	char file[PATH_MAX];

	(void)arg;
	work_path(file, "fio.dat");
	fio_run("write", "\"write\" : {", file, "fio.write");
	fio_run("read", "\"read\" : {", file, "fio.read");
}

/* ---- the external sort ---- */

#ifdef EXTERNAL_SORT

static uint64_t sort_sum; /* of all lines, in any order */
static size_t sort_bytes;

static uint64_t
line_hash(const char *line, size_t n)
{
	uint64_t h = n;

	for (size_t i = 0; i < n; i++)
		h = (h ^ (unsigned char)line[i]) * UINT64_C(0x100000001b3);
	return mix64(h);
}

/* Lines of the real text in random order.  Two texts and references to their lines are to be four budgets large. */
static bool
sort_input(const char *path)
{
	const char *pool = (const char *)bench.pool[DATA_REAL];
	const size_t text = POOL_SIZE / 2, want = bench.scale.memory / 8 * 11;
	uint64_t rng = 1;
	FILE *f = fopen(path, "we");

	if (f == NULL)
		return false;
	sort_sum = sort_bytes = 0;
	while (sort_bytes < want) {
		/* From somewhere to the next newline, or for want of one a hundred bytes. */
		const char *from = pool + rng_below(&rng, text - 128);
		const char *end = memchr(from, '\n', 100);
		const size_t n = (size_t)((end != NULL ? end : from + 100) - from);

		if (fwrite(from, 1, n, f) != n || putc('\n', f) == EOF)
			break;
		sort_sum += line_hash(from, n);
		sort_bytes += n + 1;
	}
	/* On the disk, for all to read it from there. */
	if (fflush(f) == 0 && fsync(fileno(f)) == 0)
		posix_fadvise(fileno(f), 0, 0, POSIX_FADV_DONTNEED);
	return fclose(f) == 0 && sort_bytes >= want;
}

static bool
sort_prepare(char *why, size_t size)
{
	char path[PATH_MAX];

	work_path(path, SORT_INPUT);
	if (access(path, F_OK) == 0 || sort_input(path))
		return true;
	snprintf(why, size, "%.100s: %s", path, strerror(errno));
	return false;
}

bool
sort_before(const void *arg, char *why, size_t size)
{
	return sort_prepare(why, size) && cgroup_before(arg, why, size);
}

bool
sort_swap_before(const void *arg, char *why, size_t size)
{
	return sort_prepare(why, size) && swap_before(arg, why, size);
}

bool
sort_swap_ssd_before(const void *arg, char *why, size_t size)
{
	return sort_prepare(why, size) && swap_ssd_before(arg, why, size);
}

static void
sort_check(const char *path)
{
	FILE *f = fopen(path, "re");
	char *line = NULL, *last = NULL;
	size_t room[2] = { 0 }, bytes = 0, had = 0, n, common;
	uint64_t sum = 0;
	ssize_t r;
	int order;

	if (f == NULL)
		job_fail("%s: %s", path, strerror(errno));
	while ((r = getline(&line, &room[0], f)) > 0) {
		char *other = last;
		size_t other_room = room[1];

		bytes += (size_t)r;
		n = (size_t)r - 1;
		sum += line_hash(line, n);
		common = n < had ? n : had;
		order = last == NULL ? 0 : memcmp(last, line, common);
		if (order > 0 || (order == 0 && had > n))
			job_fail("WRONG DATA: the sorted lines are not in order");
		last = line;
		room[1] = room[0];
		had = n;
		line = other;
		room[0] = other_room;
	}
	fclose(f);
	free(line);
	free(last);
	if (bytes != sort_bytes || sum != sort_sum)
		job_fail("WRONG DATA: the sorted lines are not those of the input");
}

void
sort_run(const void *arg)
{
	const struct race *race = arg;
	const bool kernel = strstr(race->who, "swap") != NULL;
	const size_t margin = cgroup_margin(bench.scale.pages);
	char in[PATH_MAX], out[PATH_MAX], memory[32];
	const char *const argv[] = { EXTERNAL_SORT,
				     "--memory",
				     memory,
				     kernel				   ? "--in-memory-of-kernel"
				     : race->delivery == UP_DELIVER_INLINE ? "--inline"
									   : "--",
				     in,
				     NULL };
	pid_t reader;
	uint64_t t;
	int r;

	if (bench.scale.memory < margin + UP_MEMORY_LIMIT_MIN)
		job_skip("the budget is too small");
	work_path(in, SORT_INPUT);
	work_path(out, SORT_OUTPUT);
	snprintf(memory, sizeof memory, "%zu", bench.scale.memory - margin);
	setenv("TMPDIR", bench.dir, 1); /* there the program's pager swaps */
	reader = cgroup_stat_reader();
	cgroup_enter();
	t = bench_now();
	r = program_run(argv, out, bench.deadline > 0 ? bench.deadline : 150);
	t = bench_now() - t;
	kill(reader, SIGKILL);
	waitpid(reader, NULL, 0);
	if (r != 0)
		job_fail("%s: exit status %d", EXTERNAL_SORT, r);
	job_value("s", (double)t / 1e9, "%s.external_sort", race->who);
	cgroup_peak(race->who);
	sort_check(out);
}

#else

bool
sort_before(const void *arg, char *why, size_t size)
{
	(void)arg;
	snprintf(why, size, "built without the examples");
	return false;
}

bool
sort_swap_before(const void *arg, char *why, size_t size)
{
	return sort_before(arg, why, size);
}

bool
sort_swap_ssd_before(const void *arg, char *why, size_t size)
{
	return sort_before(arg, why, size);
}

void
sort_run(const void *arg)
{
	(void)arg;
}

#endif
