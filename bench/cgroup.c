/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * cgroup.c: the memory cgroup that a contender is put into: made by the parent, entered by the child.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench.h"

static bool cgroup_v2;
static char cgroup_root[PATH_MAX];

/* Where memory cgroups are mounted; v1 first: a v2 mount next to it has no memory controller. */
static bool
cgroup_find(char *why, size_t size)
{
	char line[PATH_MAX + 512], dir[PATH_MAX], type[64], opts[512], text[512], v2[PATH_MAX] = "";
	FILE *f = fopen("/proc/self/mounts", "re");

	if (f == NULL) {
		snprintf(why, size, "/proc/self/mounts: %s", strerror(errno));
		return false;
	}
	while (cgroup_root[0] == '\0' && fgets(line, sizeof line, f) != NULL) {
		if (sscanf(line, "%*s %4095s %63s %511s", dir, type, opts) != 3)
			continue;
		if (strcmp(type, "cgroup") == 0 && strstr(opts, ",memory") != NULL)
			snprintf(cgroup_root, sizeof cgroup_root, "%s", dir);
		else if (strcmp(type, "cgroup2") == 0)
			snprintf(v2, sizeof v2, "%s", dir);
	}
	fclose(f);
	if (cgroup_root[0] != '\0')
		return true;
	if (v2[0] == '\0') {
		snprintf(why, size, "no memory cgroup is mounted");
		return false;
	}
	if (snprintf(line, sizeof line, "%s/cgroup.subtree_control", v2) < 0 ||
	    !read_line(line, text, sizeof text) || strstr(text, "memory") == NULL) {
		snprintf(why, size, "the memory controller is off: echo +memory > %.120s", line);
		return false;
	}
	cgroup_v2 = true;
	memcpy(cgroup_root, v2, sizeof cgroup_root);
	return true;
}

bool
cgroup_is_v2(void)
{
	char why[256];

	return (cgroup_root[0] != '\0' || cgroup_find(why, sizeof why)) && cgroup_v2;
}

static bool
limit_write(const char *name, size_t value)
{
	char path[PATH_MAX + 32], text[32];

	snprintf(path, sizeof path, "%s/%s", janitor_list->cgroup, name);
	snprintf(text, sizeof text, "%zu", value);
	return write_line(path, text);
}

bool
cgroup_setup(size_t limit, char *why, size_t size)
{
	char path[PATH_MAX];

	if (cgroup_root[0] == '\0' && !cgroup_find(why, size))
		return false;
	if (snprintf(path, sizeof path, "%.4000s/uffd-pager-bench.%d", cgroup_root,
		     (int)getpid()) >= PATH_MAX) {
		snprintf(why, size, "path of the cgroup is too long");
		return false;
	}
	memcpy(janitor_list->cgroup, path, sizeof janitor_list->cgroup);
	if (mkdir(path, 0755) < 0 && errno != EEXIST) {
		snprintf(why, size, "can not make %.100s: %s", path, strerror(errno));
		janitor_list->cgroup[0] = '\0';
		return false;
	}
	if (!limit_write(cgroup_v2 ? "memory.max" : "memory.limit_in_bytes", limit)) {
		snprintf(why, size, "limit of %.100s: %s", path, strerror(errno));
		cgroup_teardown();
		return false;
	}
	return true;
}

bool
cgroup_set_v2(const char *name, size_t value)
{
	return cgroup_v2 && limit_write(name, value);
}

void
cgroup_teardown(void)
{
	struct timespec tick = { .tv_nsec = 10000000 };

	/* A dead child counts as a member until the kernel is done with it. */
	for (int i = 0; i < 500; i++) {
		if (rmdir(janitor_list->cgroup) == 0 || errno != EBUSY) {
			janitor_list->cgroup[0] = '\0';
			return;
		}
		nanosleep(&tick, NULL);
	}
}

void
cgroup_enter(void)
{
	char path[PATH_MAX + 32];

	snprintf(path, sizeof path, "%s/cgroup.procs", janitor_list->cgroup);
	if (!write_line(path, "0"))
		job_fail("can not enter %.100s: %s", path, strerror(errno));
}

/*
 * Linux (seen: 6.18) looks at a cgroup's active pages when its statistics say that few are inactive, and these it brings up to date every 2 s
 * and when somebody reads them.  A small cgroup that swaps is turned over in less: all is active, the statistics say otherwise, nothing
 * is found to reclaim, and its programs are killed, with most of the swap free.
 */
pid_t
cgroup_stat_reader(void)
{
	const struct timespec nap = { .tv_nsec = 10000000 };
	const pid_t parent = getpid();
	char path[PATH_MAX + 32], text[4096];
	pid_t pid;
	int fd;

	fflush(NULL);
	pid = fork();
	if (pid < 0)
		job_fail("fork: %s", strerror(errno));
	if (pid > 0)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	snprintf(path, sizeof path, "%s/memory.stat", janitor_list->cgroup);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	while (getppid() == parent && pread(fd, text, sizeof text, 0) > 0)
		nanosleep(&nap, NULL);
	_exit(0);
}

void
cgroup_peak(const char *who)
{
	char path[PATH_MAX + 32], text[32];

	snprintf(path, sizeof path, "%s/%s", janitor_list->cgroup,
		 cgroup_v2 ? "memory.peak" : "memory.max_usage_in_bytes");
	if (read_line(path, text, sizeof text))
		job_value("MiB", strtod(text, NULL) / 1048576, "%s.cgroup_peak", who);
}

/*
 * Page tables of the region and of where the library stages pages, 8 bytes a page each, and what does not depend on the size.  Seen:
 * 2.0 MiB more than the library says that it used for 512 MiB in 128, 1.5 for 256 in 64; it is given 4 and 3.
 */
size_t
cgroup_margin(size_t npages)
{
	return npages * 16 + ((size_t)2 << 20);
}
