/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * kernel_swap.c: the kernel's own swap, in a memory cgroup of the budget's size.
 *
 * The swap file lies in the work directory, so on the disk that everybody uses, has the highest
 * priority, and is on only while this contender runs.  Its header is written here: two fields
 * and a magic, not worth a dependency on mkswap.
 *
 * A disk flagged rotational makes the kernel leave its better swap read-ahead (by address) alone,
 * and virtual disks are often flagged so by mistake.  Therefore two contenders: "swap" as the disk
 * is flagged, and "swap_ssd", where the flag is 0 during swapon(), when the kernel looks at it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/types.h>
#include <unistd.h>

#include "bench.h"

#define SWAP_HEADROOM_PAGES ((size_t)16384)

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
cgroup_setup(char *why, size_t size)
{
	char path[PATH_MAX + 32], text[32];

	if (cgroup_root[0] == '\0' && !cgroup_find(why, size))
		return false;
	if (snprintf(path, PATH_MAX, "%s/uffd-pager-bench.%d", cgroup_root, (int)getpid()) >=
	    PATH_MAX) {
		snprintf(why, size, "path of the cgroup is too long");
		return false;
	}
	memcpy(janitor_list->cgroup, path, sizeof janitor_list->cgroup);
	if (mkdir(path, 0755) < 0 && errno != EEXIST) {
		snprintf(why, size, "can not make %.100s: %s", path, strerror(errno));
		janitor_list->cgroup[0] = '\0';
		return false;
	}
	snprintf(path, sizeof path, "%s/%s", janitor_list->cgroup,
		 cgroup_v2 ? "memory.max" : "memory.limit_in_bytes");
	snprintf(text, sizeof text, "%zu", bench.memory);
	if (!write_line(path, text)) {
		snprintf(why, size, "%.100s: %s", path, strerror(errno));
		cgroup_teardown();
		return false;
	}
	return true;
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

/* Offsets of union swap_header in the kernel's linux/swap.h; magic at the end of the page. */
static bool
swapfile_header(int fd, size_t npages)
{
	static const char magic[10] = { 'S', 'W', 'A', 'P', 'S', 'P', 'A', 'C', 'E', '2' };
	unsigned char page[4096] = { 0 };
	const uint32_t info[3] = { 1, (uint32_t)(npages - 1), 0 }; /* version, last page, bad */

	memcpy(page + 1024, info, sizeof info);
	memcpy(page + sizeof page - sizeof magic, magic, sizeof magic);
	return pwrite(fd, page, sizeof page, 0) == (ssize_t)sizeof page && fsync(fd) == 0;
}

/* With all blocks written: some file systems refuse to swap on blocks that are only reserved. */
static bool
swapfile_write(int fd, size_t npages)
{
	for (size_t i = 0; i < npages * PAGE; i += POOL_SIZE)
		if (pwrite(fd, bench.pool, POOL_SIZE, (off_t)i) != (ssize_t)POOL_SIZE)
			return false;
	return true;
}

static bool
swapfile_make(bool written, char *why, size_t size)
{
	size_t npages = bench.pages + SWAP_HEADROOM_PAGES;
	bool ok;
	int fd, r;

	unlink(janitor_list->swapfile);
	fd = open(janitor_list->swapfile, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0) {
		snprintf(why, size, "swap file: %s", strerror(errno));
		return false;
	}
	r = posix_fallocate(fd, 0, (off_t)(npages * PAGE));
	ok = r == 0 && (!written || swapfile_write(fd, npages)) && swapfile_header(fd, npages);
	if (!ok)
		snprintf(why, size, "swap file: %s", strerror(r != 0 ? r : errno));
	close(fd);
	return ok;
}

static bool
swapfile_on(char *why, size_t size)
{
	const int flags = SWAP_FLAG_PREFER | (SWAP_FLAG_PRIO_MASK & 32767);

	work_path(janitor_list->swapfile, "kernel.swap");
	if (access(janitor_list->swapfile, F_OK) < 0 && !swapfile_make(false, why, size))
		return false;
	if (swapon(janitor_list->swapfile, flags) == 0)
		return true;
	if (errno == EINVAL && swapfile_make(true, why, size) &&
	    swapon(janitor_list->swapfile, flags) == 0)
		return true;
	snprintf(why, size, "swapon: %s%s", strerror(errno),
		 errno == EPERM ? " (needs root and CAP_SYS_ADMIN)" : "");
	return false;
}

bool
swap_before(char *why, size_t size)
{
	if (!cgroup_setup(why, size))
		return false;
	if (!swapfile_on(why, size)) {
		cgroup_teardown();
		return false;
	}
	return true;
}

bool
swap_ssd_before(char *why, size_t size)
{
	bool ok;

	if (host.rotational != 1) {
		snprintf(why, size, "the disk is %s",
			 host.rotational == 0 ? "not flagged rotational: \"swap\" is this already"
					      : "unknown");
		return false;
	}
	snprintf(janitor_list->rotational_was, sizeof janitor_list->rotational_was, "1");
	memcpy(janitor_list->rotational, host.rotational_path, sizeof janitor_list->rotational);
	if (!write_line(host.rotational_path, "0")) {
		snprintf(why, size, "%.100s: %s", host.rotational_path, strerror(errno));
		return false;
	}
	ok = swap_before(why, size);
	if (!write_line(host.rotational_path, "1"))
		fprintf(stderr, "bench: can not set %s back to 1: %s\n", host.rotational_path,
			strerror(errno));
	return ok;
}

void
swap_after(void)
{
	cgroup_teardown();
	if (swapoff(janitor_list->swapfile) < 0)
		fprintf(stderr, "bench: swapoff %s: %s\n", janitor_list->swapfile, strerror(errno));
}

static void
advise(void *ctx, enum pattern p)
{
	if (bench.advice)
		madvise(ctx, bench.pages * PAGE,
			p == RAND_READ || p == RAND_WRITE ? MADV_RANDOM : MADV_SEQUENTIAL);
}

/* arg: the contender's name */
void
swap_patterns(const void *arg)
{
	static const struct pattern_ops ops = { .advise = advise };
	void *p;

	cgroup_enter();
	p = mmap(NULL, bench.pages * PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		job_fail("mmap: %s", strerror(errno));
	patterns_run(arg, p, &ops, p);
}
