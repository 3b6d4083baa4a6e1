/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * less.c: a source, less the pages that were removed.
 *
 * A guest that removes pages of its memory (a balloon) finds zeros there, and not what its snapshot has; so does who reads them again after
 * they have been in memory and in swap.  A bit a page says so: a slot can not, for in a shadow an empty one is the source's.
 *
 * The bits may lie in a file (memfd), for a successor.
 *
 * Reads go to the source beneath as they are; only before one is started has() is asked, and what it says holds until the next removal (`nwrites`).
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pager/less.h"

#define AROUND 7u /* pages behind the one at fault that are read along */

struct less {
	struct source src;
	struct source *of;	   /* (c) */
	_Atomic uint64_t *removed; /* (c) the pointer */
	size_t len;		   /* (c) bytes of them */
};

static struct less *
less_of(struct source *src)
{
	return container_of(src, struct less, src);
}

static bool
is_removed(struct less *l, uint64_t index)
{
	return (atomic_load(&l->removed[index / 64]) >> (index % 64)) & 1;
}

static int
less_has(struct source *src, uint64_t index, uint64_t *before, uint64_t *after)
{
	struct less *l = less_of(src);
	const uint64_t end = MIN((src->bytes + PAGE_MASK) >> PAGE_SHIFT, index + 1 + AROUND);
	const bool removed = is_removed(l, index);

	*before = *after = 0;
	for (uint64_t i = index + 1; i < end && is_removed(l, i) == removed; i++)
		++*after;
	return !removed;
}

static int
less_start(struct service *s, struct source *src, struct request *req, bool write)
{
	assert(!write);
	return less_of(src)->of->ops->start(s, less_of(src)->of, req, write);
}

static bool
less_refused(struct source *src, const struct swap_io *io)
{
	struct source *const of = less_of(src)->of;

	return of->ops->refused != NULL && of->ops->refused(of, io);
}

static int
less_ended(struct source *src, uint64_t index, size_t want, size_t got)
{
	return less_of(src)->of->ops->ended(less_of(src)->of, index, want, got);
}

static void
less_destroy(struct source *src)
{
	struct less *l = less_of(src);

	l->of->ops->destroy(l->of);
	munmap(l->removed, l->len);
	free(l);
}

static const struct source_ops ops = {
	.name = "snapshot",
	.start = less_start,
	.refused = less_refused,
	.has = less_has,
	.ended = less_ended,
	.destroy = less_destroy,
};

static size_t
bytes_of_bits(uint64_t bytes)
{
	const uint64_t words = (((bytes + PAGE_MASK) >> PAGE_SHIFT) + 63) / 64;

	return (size_t)round_up(words * sizeof(uint64_t), PAGE_SIZE);
}

int
less_file(uint64_t bytes)
{
	const int fd = memfd_create("uffd-pager-removed", MFD_CLOEXEC);
	int r;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)bytes_of_bits(bytes)) == 0)
		return fd;
	r = -errno;
	close(fd);
	return r;
}

/* 0, -ENOMEM, or -EINVAL: the file is another one's. */
static int
map_bits(struct less *l, int fd)
{
	struct stat st;
	void *map;

	if (fd >= 0 && (fstat(fd, &st) < 0 || st.st_size != (off_t)l->len))
		return -EINVAL;
	map = mmap(NULL, l->len, PROT_READ | PROT_WRITE,
		   fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd, 0);
	if (map == MAP_FAILED)
		return -ENOMEM;
	l->removed = map;
	return 0;
}

int
less_source(struct source *of, int fd, struct source **out)
{
	struct less *l = calloc(1, sizeof *l);
	int r = -ENOMEM;

	if (l != NULL) {
		l->len = bytes_of_bits(of->bytes);
		r = map_bits(l, fd);
	}
	if (r < 0) {
		free(l);
		of->ops->destroy(of);
		return r;
	}
	l->src.ops = &ops;
	l->src.asks = true;
	l->src.bytes = of->bytes;
	atomic_init(&l->src.refs, 1);
	l->of = of;
	*out = &l->src;
	return 0;
}

void
less_remove(struct source *src, uint64_t first, uint64_t n)
{
	struct less *l = less_of(src);

	for (uint64_t i = first; i < first + n; i++)
		atomic_fetch_or(&l->removed[i / 64], UINT64_C(1) << (i % 64));
	atomic_fetch_add(&src->nwrites, 1);
}
