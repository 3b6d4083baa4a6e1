/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * janitor.c: takes down swap, cgroup and work files, whatever became of the benchmark.
 *
 * A process of its own that waits for the end of a pipe.  atexit() and signal handlers would not
 * do: SIGKILL, a crash or `| head` runs neither, and a swap file left on holds its disk space
 * until the next boot.  It is the only place that cleans up, so the path is exercised on every run.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/swap.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

struct janitor_list *janitor_list;
static int hold_fd = -1;
static pid_t janitor_pid = -1;

static void
swap_down(void)
{
	if (janitor_list->swapfile[0] == '\0')
		return;
	/* EINVAL: it is not on, which is how it should be. */
	if (swapoff(janitor_list->swapfile) < 0 && errno != EINVAL && errno != ENOENT &&
	    errno != EPERM)
		fprintf(stderr, "bench: swapoff %s: %s\n", janitor_list->swapfile, strerror(errno));
}

static void
cgroup_down(void)
{
	char path[PATH_MAX + 16];
	struct timespec tick = { .tv_nsec = 20000000 };
	char line[32];
	FILE *f;

	if (janitor_list->cgroup[0] == '\0')
		return;
	snprintf(path, sizeof path, "%s/cgroup.procs", janitor_list->cgroup);
	f = fopen(path, "re");
	if (f != NULL) {
		while (fgets(line, sizeof line, f) != NULL) {
			long pid = strtol(line, NULL, 10);

			if (pid > 1) /* 0: of another PID namespace; kill(0) would be ours */
				kill((pid_t)pid, SIGKILL);
		}
		fclose(f);
	}
	/* Busy until the last member is dead: up to 10 s. */
	for (int i = 0; i < 500; i++) {
		if (rmdir(janitor_list->cgroup) == 0 || errno != EBUSY)
			return;
		nanosleep(&tick, NULL);
	}
	fprintf(stderr, "bench: can not remove %s: %s\n", janitor_list->cgroup, strerror(errno));
}

static void
rotational_back(void)
{
	char now[8];

	if (janitor_list->rotational[0] == '\0' ||
	    !read_line(janitor_list->rotational, now, sizeof now))
		return;
	if (strcmp(now, janitor_list->rotational_was) != 0)
		write_line(janitor_list->rotational, janitor_list->rotational_was);
}

static void
files_down(void)
{
	struct dirent *de;
	DIR *d;

	if (janitor_list->dir[0] == '\0')
		return;
	d = opendir(janitor_list->dir);
	if (d == NULL)
		return;
	while ((de = readdir(d)) != NULL)
		if (de->d_name[0] != '.')
			unlinkat(dirfd(d), de->d_name, 0);
	closedir(d);
	if (rmdir(janitor_list->dir) < 0)
		fprintf(stderr, "bench: can not remove %s: %s\n", janitor_list->dir,
			strerror(errno));
}

__attribute__((noreturn)) static void
janitor_main(int fd)
{
	sigset_t all;
	char c;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	setsid();
	while (read(fd, &c, 1) < 0 && errno == EINTR)
		;
	rotational_back();
	cgroup_down(); /* first, so that nobody has pages in the swap any more */
	swap_down();
	files_down();
	_exit(0);
}

bool
janitor_start(void)
{
	int fd[2];

	janitor_list = mmap(NULL, sizeof *janitor_list, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (janitor_list == MAP_FAILED || pipe(fd) < 0)
		return false;
	janitor_pid = fork();
	if (janitor_pid == 0) {
		close(fd[1]);
		janitor_main(fd[0]);
	}
	close(fd[0]);
	hold_fd = fd[1];
	return janitor_pid > 0;
}

void
janitor_leave(void)
{
	close(hold_fd);
}

void
janitor_finish(void)
{
	close(hold_fd);
	waitpid(janitor_pid, NULL, 0);
}
