/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * host.c: the machine, as far as it explains the figures.
 *
 * Read from /proc and /sys directly; lscpu and lsblk would say the same and may be missing.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "bench.h"

struct host host;

bool
read_line(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	buf[0] = '\0';
	if (fd < 0)
		return false;
	n = read(fd, buf, size - 1);
	close(fd);
	buf[n > 0 ? n : 0] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	return n >= 0;
}

bool
write_line(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), saved;
	ssize_t n;

	if (fd < 0)
		return false;
	n = write(fd, text, strlen(text));
	saved = errno;
	close(fd);
	errno = saved;
	return n == (ssize_t)strlen(text);
}

static void
cpu_init(void)
{
	char line[512];
	FILE *f = fopen("/proc/cpuinfo", "re");

	snprintf(host.cpu, sizeof host.cpu, "unknown");
	while (f != NULL && fgets(line, sizeof line, f) != NULL) {
		if (strncmp(line, "model name", 10) == 0 && strchr(line, ':') != NULL) {
			line[strcspn(line, "\n")] = '\0';
			snprintf(host.cpu, sizeof host.cpu, "%.100s", strchr(line, ':') + 2);
			break;
		}
	}
	if (f != NULL)
		fclose(f);
}

/*
 * The queue of the disk is in the device's directory, or one above for a partition.  File systems
 * on anonymous devices (btrfs, overlayfs) have neither: unknown.
 */
static void
disk_init(const char *dir)
{
	char path[PATH_MAX], text[16], *name;
	const char *const form[] = { "/sys/dev/block/%u:%u/queue/rotational",
				     "/sys/dev/block/%u:%u/../queue/rotational" };
	struct stat st;

	host.rotational = -1;
	snprintf(host.disk, sizeof host.disk, "unknown");
	if (stat(dir, &st) < 0)
		return;
	for (int i = 0; i < 2; i++) {
		snprintf(path, sizeof path, i == 0 ? form[0] : form[1], major(st.st_dev),
			 minor(st.st_dev));
		if (!read_line(path, text, sizeof text))
			continue;
		host.rotational = strcmp(text, "0") != 0;
		snprintf(host.rotational_path, sizeof host.rotational_path, "%.120s", path);
		memcpy(path + strlen(path) - strlen("rotational"), "read_ahead_kb",
		       sizeof "read_ahead_kb");
		snprintf(host.read_ahead_path, sizeof host.read_ahead_path, "%.120s", path);
		break;
	}
	snprintf(path, sizeof path, "/sys/dev/block/%u:%u", major(st.st_dev), minor(st.st_dev));
	name = realpath(path, NULL);
	if (name != NULL && strrchr(name, '/') != NULL)
		snprintf(host.disk, sizeof host.disk, "%.60s", strrchr(name, '/') + 1);
	free(name);
}

static void
fs_init(const char *dir)
{
	static const struct {
		long magic;
		const char *name;
	} known[] = {
		{ 0xef53, "ext4" },	 { 0x58465342, "xfs" },	  { 0x9123683e, "btrfs" },
		{ 0xf2f52010, "f2fs" },	 { 0x01021994, "tmpfs" }, { 0x794c7630, "overlayfs" },
		{ 0x858458f6, "ramfs" }, { 0x2fc12fc1, "zfs" },
	};
	struct statfs sfs;

	snprintf(host.fs, sizeof host.fs, "unknown");
	if (statfs(dir, &sfs) < 0)
		return;
	for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
		if ((long)sfs.f_type == known[i].magic)
			snprintf(host.fs, sizeof host.fs, "%s", known[i].name);
}

void
host_init(const char *dir)
{
	struct utsname uts;
	char text[64], *open_bracket;

	if (uname(&uts) == 0)
		snprintf(host.kernel, sizeof host.kernel, "%.60s %.30s", uts.release, uts.machine);
	host.cpus = sysconf(_SC_NPROCESSORS_ONLN);
	host.memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
	snprintf(host.library, sizeof host.library, "%s", up_version());
	cpu_init();
	disk_init(dir);
	fs_init(dir);

	/* "always [madvise] never": the bracketed one */
	snprintf(host.thp, sizeof host.thp, "none");
	if (read_line("/sys/kernel/mm/transparent_hugepage/enabled", text, sizeof text)) {
		open_bracket = strchr(text, '[');
		if (open_bracket != NULL) {
			open_bracket[strcspn(open_bracket, "]")] = '\0';
			snprintf(host.thp, sizeof host.thp, "%.20s", open_bracket + 1);
		}
	}
	if (!read_line("/sys/module/zswap/parameters/enabled", host.zswap, sizeof host.zswap))
		snprintf(host.zswap, sizeof host.zswap, "none");
	read_line("/proc/sys/vm/page-cluster", host.page_cluster, sizeof host.page_cluster);
	read_line("/proc/sys/vm/swappiness", host.swappiness, sizeof host.swappiness);
}
