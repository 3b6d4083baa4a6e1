/* SPDX-License-Identifier: BSD-2-Clause */
#include "store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client.h"
#include "pager/pager.h"

/* Addresses are for free: tables are reserved for what they may come to, and most of them stay small. */
#define WINDOW_MIN ((size_t)1 << 40)
#define ROOT_BYTES SLAB_SIZE

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

_Static_assert(sizeof(struct store_root) <= ROOT_BYTES, "");

/* --- arena_ops --- */

static struct store *
store_of(void *ctx)
{
	return ((struct pager *)ctx)->store;
}

/* Slabs in powers of two, so that what is given back fits whoever asks next. */
static unsigned
order_of(size_t len)
{
	unsigned order = 0;

	while ((SLAB_SIZE << order) < len)
		order++;
	return order;
}

static void *
store_reserve(void *ctx, size_t len)
{
	struct store *s = store_of(ctx);
	const unsigned order = order_of(len);
	char *at = NULL;

	if (order >= ARRAY_SIZE(s->free))
		return NULL;
	pthread_mutex_lock(&s->lock);
	if (s->free[order].n > 0) {
		at = s->base + (size_t)s->free[order].slab[--s->free[order].n] * SLAB_SIZE;
	} else if ((SLAB_SIZE << order) <= s->len - s->next) {
		at = s->base + s->next;
		s->next += SLAB_SIZE << order;
	}
	pthread_mutex_unlock(&s->lock);
	return at;
}

static void
store_release(void *ctx, void *addr, size_t len)
{
	struct store *s = store_of(ctx);
	const unsigned order = order_of(len);

	pthread_mutex_lock(&s->lock);
	if (s->free[order].n == s->free[order].room) {
		const size_t room = s->free[order].room + 64;
		uint32_t *more = realloc(s->free[order].slab, room * sizeof *more);

		if (more != NULL) {
			s->free[order].slab = more;
			s->free[order].room = room;
		}
	}
	/* Without memory to note it in, the addresses are not used again. */
	if (s->free[order].n < s->free[order].room)
		s->free[order].slab[s->free[order].n++] =
			(uint32_t)((size_t)((char *)addr - s->base) / SLAB_SIZE);
	pthread_mutex_unlock(&s->lock);
}

static void
store_decommit(void *ctx, void *addr, size_t len)
{
	(void)ctx;
	(void)munlock(addr, len);
	if (madvise(addr, len, MADV_REMOVE) < 0)
		memset(addr, 0, len); /* zero, as promised, if not gone */
	(void)mprotect(addr, len, PROT_NONE);
}

static int
store_commit(void *ctx, void *addr, size_t len)
{
	int r;

	if (mprotect(addr, len, PROT_READ | PROT_WRITE) < 0)
		return -ENOMEM;
	(void)mlock(addr, len); /* as in sysmem.c */
	do {
		r = madvise(addr, len, MADV_POPULATE_WRITE);
	} while (r < 0 && (errno == EINTR || errno == EAGAIN));
	if (r == 0)
		return 0;
	store_decommit(ctx, addr, len);
	return -ENOMEM;
}

static int
store_reclaim(void *ctx, size_t bytes)
{
	return runtime_reclaim(ctx, bytes);
}

const struct arena_ops store_ops = {
	.reserve = store_reserve,
	.release = store_release,
	.commit = store_commit,
	.decommit = store_decommit,
	.reclaim = store_reclaim,
};

/* --- the store --- */

uint32_t
store_sizes(void)
{
	static const size_t size[] = {
		sizeof(struct store_root),
		sizeof(struct object),
		sizeof(struct leaf),
		sizeof(struct node),
		sizeof(struct anon),
		sizeof(struct page),
		sizeof(struct map_entry),
		sizeof(struct space),
		sizeof(struct client),
		sizeof(struct account),
		sizeof(struct owner),
		sizeof(struct handle),
		sizeof(struct served_file),
		sizeof(struct zslide),
		ZENTRY_BYTES,
		ZSEG_SIZE,
		offsetof(struct space, map),
		offsetof(struct client, object),
		offsetof(struct client, wiring),
		offsetof(struct client, guest),
		offsetof(struct store_root, slide),
	};
	uint32_t sum = 0;

	for (size_t i = 0; i < ARRAY_SIZE(size); i++)
		sum = sum * 31 + (uint32_t)size[i];
	return sum;
}

/* tier_place.reserve */
static void *
zpool_reserve(void *ctx, size_t max_bytes, size_t *len)
{
	struct store *s = ctx;
	struct stat st = { 0 };
	void *base;

	assert(s->zbase == NULL);
	if (s->zpool < 0)
		s->zpool = memfd_create("uffd-pager-zpool", MFD_CLOEXEC);
	if (s->zpool < 0 || fstat(s->zpool, &st) < 0)
		return NULL;
	s->zlen = MAX(round_up(max_bytes, ZSEG_SIZE), (size_t)st.st_size / ZSEG_SIZE * ZSEG_SIZE);
	if (ftruncate(s->zpool, (off_t)s->zlen) < 0)
		return NULL;
	base = mmap(NULL, s->zlen, PROT_NONE, MAP_SHARED | MAP_NORESERVE, s->zpool, 0);
	if (base == MAP_FAILED)
		return NULL;
	if (madvise(base, s->zlen, MADV_DONTFORK) < 0 ||
	    (madvise(base, s->zlen, MADV_NOHUGEPAGE) < 0 && errno != EINVAL)) {
		munmap(base, s->zlen);
		return NULL;
	}
	*len = s->zlen;
	s->zbase = base;
	return base;
}

int
store_create(struct store **out, size_t memory_limit, const struct store_keeper *keeper, int pidfd)
{
	struct store *s = calloc(1, sizeof *s);
	void *base = MAP_FAILED;
	int r = 0;

	if (s == NULL)
		return -ENOMEM;
	s->keeper = keeper;
	s->pidfd = pidfd;
	s->stage = -1;
	s->zpool = -1;
	s->len = MAX(WINDOW_MIN, memory_limit * 64);
	s->fd = memfd_create("uffd-pager-store", MFD_CLOEXEC);
	if (s->fd < 0 || ftruncate(s->fd, (off_t)s->len) < 0)
		r = -errno;
	/* Slabs are found by masking addresses. */
	if (r == 0)
		base = mmap(NULL, s->len + SLAB_SIZE, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (r == 0 && base != MAP_FAILED)
		base = mmap((void *)round_up((uintptr_t)base, SLAB_SIZE), s->len, PROT_NONE,
			    MAP_SHARED | MAP_FIXED | MAP_NORESERVE, s->fd, 0);
	if (r == 0 && (base == MAP_FAILED || madvise(base, s->len, MADV_DONTFORK) < 0 ||
		       (madvise(base, s->len, MADV_NOHUGEPAGE) < 0 && errno != EINVAL) ||
		       mprotect(base, ROOT_BYTES, PROT_READ | PROT_WRITE) < 0))
		r = -errno;
	if (r < 0) {
		if (s->fd >= 0)
			close(s->fd);
		free(s);
		return r;
	}
	pthread_mutex_init(&s->lock, NULL);
	s->base = base;
	s->root = base;
	s->next = ROOT_BYTES;
	s->zplace = (struct tier_place){
		.ctx = s,
		.reserve = zpool_reserve,
		.slide = &s->root->slide,
	};
	*out = s;
	return 0;
}

void
store_destroy(struct store *s)
{
	for (unsigned i = 0; i < ARRAY_SIZE(s->free); i++)
		free(s->free[i].slab);
	munmap(s->base, s->len);
	close(s->fd);
	if (s->stage >= 0)
		close(s->stage);
	if (s->zbase != NULL)
		munmap(s->zbase, s->zlen);
	if (s->zpool >= 0)
		close(s->zpool);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

int
store_zpool_has(void *addr, size_t len)
{
	/* Not store_commit(), which leaves nothing behind if it fails. */
	if (mprotect(addr, len, PROT_READ | PROT_WRITE) < 0)
		return -errno;
	(void)mlock(addr, len);
	return 0;
}

size_t
store_own(const struct up_runtime *rt)
{
	const struct pager *p = &rt->p;

	return p->meta_fixed + p->nservices * THREAD_OVERHEAD +
	       (p->tier.kind != UP_COMPRESS_NONE ? p->tier.tables : 0);
}

void
store_complete(struct store *s, const struct up_runtime *rt, size_t wanted)
{
	struct store_root *root = s->root;
	const struct pager *p = &rt->p;

	memcpy(root->magic, STORE_MAGIC, sizeof root->magic);
	root->version = STORE_VERSION;
	root->sizes = store_sizes();
	root->base = (uintptr_t)s->base;
	root->len = s->len;
	root->hash_seed = p->hash_seed;
	root->pages = (uintptr_t)p->pages.table.base;
	root->npages = p->pages.table.max;
	root->nstage = p->pmap->nstage;
	root->limit = rt->memory_limit;
	root->wanted = wanted;
	root->own = store_own(rt);
	root->space_zone = (uintptr_t)&p->space_zone;
	root->owner_zone = (uintptr_t)&rt->server->owner_zone;
	root->file_zone = (uintptr_t)&rt->server->file_zone;
	root->arena = (uintptr_t)p->arena.base;
	root->arena_len = p->arena.nslabs * SLAB_SIZE;
	if (p->tier.kind != UP_COMPRESS_NONE) {
		root->entries = (uintptr_t)p->tier.pool.entries.base;
		root->nentries = p->tier.pool.entries.max;
	}
	stores_in_order();
	root->complete = true;
	stores_in_order();
	if (swap_area_nameless(&p->swap))
		s->keeper->keep(s->keeper->ctx, "swap", p->swap.fd);
	s->keeper->keep(s->keeper->ctx, "stage", s->stage);
	if (p->tier.kind != UP_COMPRESS_NONE)
		s->keeper->keep(s->keeper->ctx, "zpool", s->zpool);
	/* Last of what is kept: it stands for all. */
	s->keeper->keep(s->keeper->ctx, "store", s->fd);
	if (p->tier.kind == UP_COMPRESS_NONE)
		s->keeper->drop(s->keeper->ctx, "zpool"); /* a predecessor's, which was empty */
}

/* --- descriptors --- */

void
store_name(char name[STORE_NAME_MAX], const char *kind, uint64_t id, const char *part)
{
	snprintf(name, STORE_NAME_MAX, "%s/%llu%s%s", kind, (unsigned long long)id,
		 part != NULL ? "/" : "", part != NULL ? part : "");
}

void
keeper_keep(const struct store_keeper *k, const char *kind, uint64_t id, const char *part, int fd)
{
	char name[STORE_NAME_MAX];

	store_name(name, kind, id, part);
	k->keep(k->ctx, name, fd);
}

void
keeper_drop(const struct store_keeper *k, const char *kind, uint64_t id, const char *part)
{
	char name[STORE_NAME_MAX];

	store_name(name, kind, id, part);
	k->drop(k->ctx, name);
}

void
store_keep(const struct store *s, const char *kind, uint64_t id, const char *part, int fd)
{
	if (s != NULL)
		keeper_keep(s->keeper, kind, id, part, fd);
}

void
store_drop(const struct store *s, const char *kind, uint64_t id, const char *part)
{
	if (s != NULL)
		keeper_drop(s->keeper, kind, id, part);
}
