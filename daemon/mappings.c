/* SPDX-License-Identifier: BSD-2-Clause */
#include "mappings.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/base.h"
#include "wire.h"

#define VMAS_MAX ((size_t)1 << 20)

struct vma {
	uint64_t start, end, offset, ino;
	dev_t dev;
	bool shared, writable; /* readable, too */
};

struct vmas {
	struct vma *vma; /* by address */
	size_t n;
};

static int
parse(const char *line, struct vma *v)
{
	unsigned maj, min;
	char prot[5];

	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64, &v->start,
		   &v->end, prot, &v->offset, &maj, &min, &v->ino) != 7)
		return -EPROTO;
	v->dev = makedev(maj, min);
	v->writable = prot[0] == 'r' && prot[1] == 'w';
	v->shared = prot[3] == 's';
	return 0;
}

static int
read_maps(pid_t pid, struct vmas *all)
{
	char path[40], *line = NULL;
	size_t room = 0, size = 0;
	int r = 0;
	FILE *f;

	*all = (struct vmas){ .n = 0 };
	snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
	f = fopen(path, "re");
	if (f == NULL)
		return -errno;
	while (r == 0 && getline(&line, &size, f) > 0) {
		if (all->n == room) {
			struct vma *more;

			room = MAX(2 * room, 256);
			more = room <= VMAS_MAX ? realloc(all->vma, room * sizeof *more) : NULL;
			if (more == NULL) {
				r = -ENOMEM;
				break;
			}
			all->vma = more;
		}
		r = parse(line, &all->vma[all->n++]);
	}
	if (r == 0 && ferror(f))
		r = -EIO;
	if (r == 0 && all->n == 0)
		r = -ESRCH; /* it ends */
	free(line);
	fclose(f);
	if (r < 0) {
		free(all->vma);
		*all = (struct vmas){ .n = 0 };
	}
	return r;
}

/* The mapping that ends above an address, or NULL. */
static const struct vma *
above(const struct vmas *all, uint64_t address)
{
	size_t lo = 0, hi = all->n;

	while (lo < hi) {
		const size_t mid = (lo + hi) / 2;

		if (all->vma[mid].end > address)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo < all->n ? &all->vma[lo] : NULL;
}

/* One range: its file, and where in it.  *first: the mapping that it begins in. */
static int
look(const struct vmas *all, struct mapped *m, unsigned i, const struct vma **first,
     const struct wire_reason *why)
{
	const uint64_t end = m->start + m->len;
	uint64_t at = m->start;

	*first = above(all, at);
	for (const struct vma *v = *first; at < end; v++) {
		if (v == NULL || v == all->vma + all->n || v->start > at)
			return wire_refuse(why, -ENOTSUP, "at %#" PRIx64 " nothing is mapped", at);
		if (v == *first)
			m->offset = v->offset + (at - v->start);
		if (!v->shared || v->ino == 0)
			return wire_refuse(why, -ENOTSUP, "region %u is private memory", i);
		if (!v->writable)
			return wire_refuse(why, -ENOTSUP,
					   "region %u is not mapped for reading and writing", i);
		if (v->ino != (*first)->ino || v->dev != (*first)->dev ||
		    v->offset + (at - v->start) != m->offset + (at - m->start))
			return wire_refuse(why, -ENOTSUP, "region %u is not one part of one file",
					   i);
		at = v->end;
	}
	return 0;
}

/* Its pages may be mapped nowhere else in the process: a store there would be seen by nobody. */
static int
check_twice(const struct vmas *all, const struct mapped *m, unsigned i, const struct vma *first,
	    const struct wire_reason *why)
{
	for (size_t k = 0; k < all->n; k++) {
		const struct vma *v = &all->vma[k];
		const uint64_t from = MAX(v->offset, m->offset),
			       to = MIN(v->offset + (v->end - v->start), m->offset + m->len);

		if (v->ino != first->ino || v->dev != first->dev || !v->shared || from >= to)
			continue;
		if (v->start + (from - v->offset) != m->start + (from - m->offset))
			return wire_refuse(why, -ENOTSUP,
					   "region %u is mapped a second time, at %#" PRIx64, i,
					   v->start);
	}
	return 0;
}

/* Memory that has to stay where it is: kB of a line of /proc/PID/status. */
static int
check_locked(pid_t pid, const struct wire_reason *why)
{
	char path[40], line[256];
	unsigned long locked = 0, pinned = 0;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
	f = fopen(path, "re");
	if (f == NULL)
		return wire_refuse(why, -errno, "%s: %s", path, strerror(errno));
	while (fgets(line, sizeof line, f) != NULL) {
		sscanf(line, "VmLck: %lu", &locked);
		sscanf(line, "VmPin: %lu", &pinned);
	}
	fclose(f);
	if (locked > 0 || pinned > 0)
		return wire_refuse(why, -ENOTSUP,
				   "the process has memory that is %s (a device that is passed "
				   "through?)",
				   pinned > 0 ? "pinned" : "locked");
	return 0;
}

/* The file of a mapping.  What else might be mapped, a device say, is not opened: that alone can do something. */
static int
open_mapped(pid_t pid, const struct vma *v, const struct wire_reason *why)
{
	char path[80];
	struct statfs fs;
	struct stat st;
	int name, fd;

	snprintf(path, sizeof path, "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, (int)pid, v->start,
		 v->end);
	name = open(path, O_PATH | O_CLOEXEC);
	if (name < 0)
		return wire_refuse(why, -errno, "%s: %s", path, strerror(errno));
	if (fstat(name, &st) < 0 || fstatfs(name, &fs) < 0 || !S_ISREG(st.st_mode) ||
	    st.st_nlink > 0 || fs.f_type != TMPFS_MAGIC) {
		close(name);
		return wire_refuse(why, -ENOTSUP, "%s is no memfd in pages of 4 KiB", path);
	}
	snprintf(path, sizeof path, "/proc/self/fd/%d", name);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		fd = wire_refuse(why, -errno, "its memfd: %s", strerror(errno));
	close(name);
	return fd;
}

static int
open_file(pid_t pid, const struct vma *v, int memfd, unsigned i, const struct wire_reason *why)
{
	struct stat st;
	int fd;

	if (memfd < 0)
		fd = open_mapped(pid, v, why);
	else if ((fd = fcntl(memfd, F_DUPFD_CLOEXEC, 0)) < 0)
		return wire_refuse(why, -errno, "a file descriptor more: %s", strerror(errno));
	if (fd < 0)
		return fd;
	if (fstat(fd, &st) < 0 || st.st_ino != v->ino || st.st_dev != v->dev) {
		close(fd);
		return wire_refuse(why, -ENOTSUP, "region %u is of another file than the one %s", i,
				   memfd >= 0 ? "that came with it" : "that it was a moment ago");
	}
	return fd;
}

int
mappings_find(pid_t pid, int memfd, struct mapped m[], unsigned n, char *whytext, size_t whysize)
{
	const struct wire_reason why = { whytext, whysize };
	const struct vma *first;
	struct vmas all;
	unsigned opened = 0;
	int r = read_maps(pid, &all);

	if (r < 0)
		return wire_refuse(&why, r, "/proc/%d/maps: %s", (int)pid, strerror(-r));
	r = check_locked(pid, &why);
	for (unsigned i = 0; i < n && r == 0; i++) {
		r = look(&all, &m[i], i, &first, &why);
		if (r == 0)
			r = check_twice(&all, &m[i], i, first, &why);
		if (r == 0) {
			m[i].fd = r = open_file(pid, first, memfd, i, &why);
			opened += r >= 0;
			r = MIN(r, 0);
		}
	}
	while (r < 0 && opened > 0)
		close(m[--opened].fd);
	for (unsigned i = 0; i < n && r < 0; i++)
		m[i].fd = -1;
	free(all.vma);
	return r;
}
