/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * janitor.c: takes down swap, zram, cgroup and work files and sets parameters back, whatever became of the benchmark.
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

bool
janitor_set(const char *path, const char *value)
{
	const size_t room = sizeof janitor_list->setting / sizeof janitor_list->setting[0];
	struct janitor_setting *s = janitor_list->setting;
	char was[sizeof s->was];

	while (s < janitor_list->setting + room && s->path[0] != '\0')
		s++;
	if (s == janitor_list->setting + room || strlen(path) >= sizeof s->path) {
		errno = ENOSPC;
		return false;
	}
	if (!read_line(path, was, sizeof was))
		return false;
	/* The path last: the janitor may come at any time. */
	memcpy(s->was, was, sizeof s->was);
	memcpy(s->path, path, strlen(path) + 1);
	if (write_line(path, value))
		return true;
	s->path[0] = '\0';
	return false;
}

/* In reverse order, as they depend on each other. */
void
janitor_set_back(void)
{
	char now[sizeof janitor_list->setting[0].was];

	for (size_t i = sizeof janitor_list->setting / sizeof janitor_list->setting[0]; i-- > 0;) {
		struct janitor_setting *s = &janitor_list->setting[i];

		if (s->path[0] != '\0' && read_line(s->path, now, sizeof now) &&
		    strcmp(now, s->was) != 0 && !write_line(s->path, s->was))
			fprintf(stderr, "bench: can not set %s back to %s: %s\n", s->path, s->was,
				strerror(errno));
		s->path[0] = '\0';
	}
}

/* Nobody swaps to it any more. */
void
zram_remove(void)
{
	char path[64];

	if (janitor_list->zram[0] == '\0')
		return;
	snprintf(path, sizeof path, "/sys/block/zram%.15s/reset", janitor_list->zram);
	if (!write_line(path, "1") ||
	    !write_line("/sys/class/zram-control/hot_remove", janitor_list->zram))
		fprintf(stderr, "bench: can not remove zram%s: %s\n", janitor_list->zram,
			strerror(errno));
	janitor_list->zram[0] = '\0';
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
	cgroup_down(); /* first, so that nobody has pages in the swap any more */
	swap_down();
	zram_remove();
	janitor_set_back();
	files_down();
	_exit(0);
}

bool
janitor_start(void)
{
	int fd[2];

	janitor_list = mmap(NULL, sizeof *janitor_list, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (janitor_list == MAP_FAILED || pipe2(fd, O_CLOEXEC) < 0)
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
