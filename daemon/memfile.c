/* SPDX-License-Identifier: BSD-2-Clause */
#include "memfile.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "pmap/uffd_abi.h"

#define WILL_NEED (128u << 10) /* bytes; the least that a kernel reads ahead, usually */

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct memfile *registry; /* (registry_lock) */

static void
destroy(struct memfile *s)
{
	if (s->map != NULL)
		munmap(s->map, s->size);
	if (s->fd >= 0)
		close(s->fd);
	pthread_mutex_destroy(&s->ws_lock);
	free(s->path);
	free(s->ws_path);
	free(s);
}

/* Unlike that of any other file, as far as 64 bits go. */
static uint64_t
number_of(const struct memfile *s)
{
	const uint64_t id[] = { s->dev, s->id.inode, s->size, (uint64_t)s->id.mtime_s,
				(uint64_t)s->id.mtime_ns };

	return XXH3_64bits(id, sizeof id);
}

static struct memfile *
create(const char *path, int fd, const struct stat *st)
{
	struct memfile *s = calloc(1, sizeof *s);
	void *map = NULL;

	if (s == NULL)
		return NULL;
	pthread_mutex_init(&s->ws_lock, NULL);
	s->fd = -1;
	s->refs = 1;
	s->dev = st->st_dev;
	s->size = (uint64_t)st->st_size;
	s->id = (struct file_identity){
		.size = s->size,
		.inode = st->st_ino,
		.mtime_s = st->st_mtim.tv_sec,
		.mtime_ns = st->st_mtim.tv_nsec,
	};
	s->path = strdup(path);
	if (s->path == NULL || asprintf(&s->ws_path, "%s.ws", path) < 0) {
		s->ws_path = NULL;
		goto fail;
	}
	/* One that a predecessor has had may have nothing any more. */
	if (s->size > 0)
		map = mmap(NULL, s->size, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (map == MAP_FAILED)
		goto fail;
	if (map != NULL)
		madvise(map, s->size, MADV_DONTFORK);
	s->map = map;
	s->fd = fd;
	s->number = number_of(s);
	return s;
fail:
	destroy(s);
	return NULL;
}

/* => registry_lock is held */
static struct memfile *
known(const struct stat *st)
{
	struct memfile *s = registry;

	while (s != NULL &&
	       (s->dev != st->st_dev || s->id.inode != st->st_ino ||
		s->size != (uint64_t)st->st_size || s->id.mtime_s != st->st_mtim.tv_sec ||
		s->id.mtime_ns != st->st_mtim.tv_nsec))
		s = s->next;
	return s;
}

int
memfile_open(struct memfile **out, const char *path, const struct logger *log)
{
	struct memfile *s;
	struct stat st;
	int fd, r = 0;

	*out = NULL;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &st) < 0) {
		r = -errno;
		log_line(log, UP_LOG_ERROR, "%s: %s", path, strerror(-r));
		goto close;
	}
	if (!S_ISREG(st.st_mode) || st.st_size == 0) {
		log_line(log, UP_LOG_ERROR, "%s: %s", path,
			 S_ISREG(st.st_mode) ? "it is empty" : "it is no regular file");
		r = -EINVAL;
		goto close;
	}
	pthread_mutex_lock(&registry_lock);
	s = known(&st);
	if (s != NULL) {
		s->refs++;
	} else if ((s = create(path, fd, &st)) != NULL) {
		fd = -1;
		s->next = registry;
		registry = s;
	}
	pthread_mutex_unlock(&registry_lock);
	if (s == NULL) {
		r = -ENOMEM;
		log_line(log, UP_LOG_ERROR, "%s: no memory to map it", path);
	}
	*out = s;
close:
	if (fd >= 0)
		close(fd);
	return r;
}

struct memfile *
memfile_ref(struct memfile *s)
{
	pthread_mutex_lock(&registry_lock);
	s->refs++;
	pthread_mutex_unlock(&registry_lock);
	return s;
}

void
memfile_keep(struct memfile *s, const struct store_keeper *keeper)
{
	pthread_mutex_lock(&registry_lock);
	if (s->keeper == NULL) {
		s->keeper = keeper;
		keeper_keep(keeper, "memfile", s->number, NULL, s->fd);
	}
	pthread_mutex_unlock(&registry_lock);
}

/* As `number`, of what a predecessor has had.  => registry_lock is held; the descriptor is used up */
static int
inherit(struct memfile **out, uint64_t number, const struct store_keeper *keeper, int fd)
{
	char link[40], path[PATH_MAX];
	struct memfile *s;
	struct stat st;
	ssize_t n;
	int r = 0;

	if (fstat(fd, &st) < 0)
		r = -errno;
	else if (!S_ISREG(st.st_mode))
		r = -EINVAL;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof path - 1);
	path[MAX(n, 0)] = '\0';
	s = r == 0 ? create(path, fd, &st) : NULL;
	if (s == NULL) {
		close(fd);
		return r < 0 ? r : -ENOMEM;
	}
	s->number = number;
	s->keeper = keeper;
	s->next = registry;
	registry = *out = s;
	return 0;
}

int
memfile_inherit(struct memfile **out, uint64_t number, const struct store_keeper *keeper,
		int (*take)(void *ctx, const char *name), void *ctx)
{
	char name[STORE_NAME_MAX];
	struct memfile *s;
	int fd, r = 0;

	*out = NULL;
	store_name(name, "memfile", number, NULL);
	pthread_mutex_lock(&registry_lock);
	for (s = registry; s != NULL && s->number != number; s = s->next)
		;
	if (s != NULL) {
		s->refs++;
		*out = s;
	} else {
		fd = take(ctx, name);
		r = fd < 0 ? -ENOENT : inherit(out, number, keeper, fd);
	}
	pthread_mutex_unlock(&registry_lock);
	return r;
}

void
memfile_unref(struct memfile *s)
{
	struct memfile **at = &registry;
	bool last;

	if (s == NULL)
		return;
	pthread_mutex_lock(&registry_lock);
	last = --s->refs == 0;
	if (last) {
		while (*at != s)
			at = &(*at)->next;
		*at = s->next;
		/* In here, or it could be kept anew before this. */
		if (s->keeper != NULL)
			keeper_drop(s->keeper, "memfile", s->number, NULL);
	}
	pthread_mutex_unlock(&registry_lock);
	if (last)
		destroy(s);
}

uint64_t
memfile_size_now(const struct memfile *s)
{
	/* Two thirds cheaper than fstat(), and nobody uses the position. */
	const off_t size = lseek(s->fd, 0, SEEK_END);

	return size < 0 ? 0 : MIN((uint64_t)size, s->size);
}

int
memfile_read(const struct memfile *s, uint64_t offset, void *buf, size_t len)
{
	char *p = buf;

	while (len > 0) {
		const ssize_t n = pread(s->fd, p, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -ENODATA;
		p += n;
		offset += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

void
memfile_known(struct memfile *s, bool known)
{
	pthread_mutex_lock(&registry_lock);
	s->known += known ? 1 : -1u;
	/* Nothing depends on it. */
	if (s->known == known)
		(void)madvise(s->map, s->size, known ? MADV_RANDOM : MADV_NORMAL);
	pthread_mutex_unlock(&registry_lock);
}

void
memfile_will_need(const struct memfile *s, uint64_t offset, uint64_t len)
{
	/* Of one request the kernel takes no more than its own read-ahead or the disk's largest request, and forgets the rest. */
	for (uint64_t n; len > 0; offset += n, len -= n) {
		n = MIN(len, (uint64_t)WILL_NEED);
		posix_fadvise(s->fd, (off_t)offset, (off_t)n, POSIX_FADV_WILLNEED);
	}
}

void
memfile_warm(const struct memfile *s, uint64_t offset, uint64_t len)
{
	const uint64_t start = offset & ~(uint64_t)PAGE_MASK;
	const uint64_t end = MIN(s->size, offset + len);
	char scratch[8192];

	if (start >= end || madvise(s->map + start, end - start, MADV_POPULATE_READ) == 0)
		return;
	if (errno != EINVAL)
		return;
	/* Before Linux 5.14: into the page cache at least. */
	for (uint64_t at = start; at < end; at += sizeof scratch) {
		if (pread(s->fd, scratch, sizeof scratch, (off_t)at) <= 0)
			return;
	}
}
