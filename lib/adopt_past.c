/* SPDX-License-Identifier: BSD-2-Clause */
#include "adoption.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- tables --- */

static size_t
hash_of(uint64_t then)
{
	return (size_t)((then >> 4) * UINT64_C(0x9e3779b97f4a7c15) >> 20);
}

void *
table_get(const struct table *t, uint64_t then)
{
	for (size_t i = t->room > 0 ? hash_of(then) & (t->room - 1) : 0;
	     t->room > 0 && t->slot[i].then != 0; i = (i + 1) & (t->room - 1)) {
		if (t->slot[i].then == then)
			return t->slot[i].now;
	}
	return NULL;
}

int
table_put(struct table *t, uint64_t then, void *now)
{
	size_t i;

	if (2 * (t->n + 1) > t->room) {
		struct table more = { .room = MAX(t->room * 2, (size_t)1024) };

		more.slot = calloc(more.room, sizeof more.slot[0]);
		if (more.slot == NULL)
			return -ENOMEM;
		for (i = 0; i < t->room; i++) {
			if (t->slot[i].then != 0)
				table_put(&more, t->slot[i].then, t->slot[i].now);
		}
		free(t->slot);
		*t = more;
	}
	for (i = hash_of(then) & (t->room - 1); t->slot[i].then != 0 && t->slot[i].then != then;)
		i = (i + 1) & (t->room - 1);
	t->n += t->slot[i].then == 0;
	t->slot[i].then = then;
	t->slot[i].now = now;
	return 0;
}

/* --- reading --- */

int
past_look(int store, struct store_root *root)
{
	if (pread(store, root, sizeof *root, 0) != (ssize_t)sizeof *root ||
	    memcmp(root->magic, STORE_MAGIC, sizeof root->magic) != 0 || !root->complete)
		return -EINVAL;
	return root->version == STORE_VERSION && root->sizes == store_sizes() ? 0 : -EPROTO;
}

int
past_pages(struct adoption *a)
{
	const struct page *page = past_at(a, a->root->pages, a->root->npages * sizeof(struct page));
	const off_t from = (off_t)(a->root->pages - a->root->base);
	const int fd = a->fd;
	off_t end = lseek(fd, from, SEEK_HOLE);
	size_t n;
	int r = 0;

	if (page == NULL)
		return -EINVAL;
	/* The table grows at its end. */
	n = end > from ? (size_t)(end - from) / sizeof(struct page) : 0;
	n = MIN(n, a->root->npages);
	a->nknown = n;
	a->known = calloc(MAX(n, 1), sizeof a->known[0]);
	if (a->known == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < n && r == 0; i++) {
		struct known *k = &a->known[i];

		if (page[i].state == PAGE_FREE || page[i].anon == NULL)
			continue;
		k->page = &page[i];
		k->no = (pageno_t)i;
		k->next = table_get(&a->pages, then_of(page[i].anon));
		r = table_put(&a->pages, then_of(page[i].anon), k);
	}
	return r;
}

int
past_frames(struct adoption *a)
{
	const int fd = a->rt->p.store->stage;
	const off_t end = (off_t)(a->root->nstage << PAGE_SHIFT);
	off_t at = 0, hole;

	a->frames = calloc(1, a->root->nstage / 8 + 1);
	if (a->frames == NULL)
		return -ENOMEM;
	while ((at = lseek(fd, at, SEEK_DATA)) >= 0 && at < end) {
		hole = lseek(fd, at, SEEK_HOLE);
		if (hole <= at)
			return -EIO;
		for (; at < MIN(hole, end); at += (off_t)PAGE_SIZE)
			set_bit(a->frames, (size_t)at >> PAGE_SHIFT, true);
	}
	return 0;
}

int
past_zpool(struct adoption *a)
{
	struct pager *p = &a->rt->p;
	const int fd = p->store->zpool;
	const off_t end = (off_t)p->store->zlen;
	off_t at = 0, data, hole;

	if (p->store->zplace.entries == 0)
		return 0;
	a->zpool.n = p->store->zplace.entries;
	a->zpool.entries = past_at(a, a->root->entries, a->zpool.n * ZENTRY_BYTES);
	a->zpool.slide = a->root->slide;
	a->zpool.units = calloc(1, zpool_past_units(&p->tier.pool));
	if (a->zpool.entries == NULL || a->zpool.units == NULL)
		return a->zpool.entries == NULL ? -EINVAL : -ENOMEM;
	for (; at < end && (data = lseek(fd, at, SEEK_DATA)) >= 0; at += (off_t)ZSEG_SIZE) {
		char *const seg = p->tier.pool.base + data / (off_t)ZSEG_SIZE * (off_t)ZSEG_SIZE;
		int r = 0;

		at = seg - p->tier.pool.base;
		hole = lseek(fd, at, SEEK_HOLE);
		/* A segment has its pages at its front: others are not in use yet, or not any more. */
		hole = MIN(MAX(hole, at), at + (off_t)ZSEG_SIZE);
		if (hole > at)
			r = store_zpool_has(seg, (size_t)(hole - at));
		if (r == 0 && hole > at)
			r = zpool_recall(&p->tier.pool, (size_t)at / ZSEG_SIZE,
					 (unsigned)((size_t)(hole - at) / PAGE_SIZE));
		if (r == 0 && hole < at + (off_t)ZSEG_SIZE &&
		    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, hole,
			      at + (off_t)ZSEG_SIZE - hole) < 0)
			r = -errno;
		if (r < 0)
			return r;
	}
	return 0;
}

int
past_each(struct adoption *a, const struct zone *like, uint64_t zone_then,
	  int (*fn)(struct adoption *a, const void *item))
{
	const void **item = malloc(SLAB_ITEMS_MAX * sizeof item[0]);
	const int fd = a->fd;
	const off_t from = (off_t)(a->root->arena - a->root->base);
	off_t at = from;
	int r = item == NULL ? -ENOMEM : 0;

	while (r == 0 && (at = lseek(fd, at, SEEK_DATA)) >= 0 &&
	       at - from < (off_t)a->root->arena_len) {
		size_t n;

		at -= at % (off_t)SLAB_SIZE;
		n = zone_find_items(like, a->base + at, zone_then, item, SLAB_ITEMS_MAX);
		for (size_t i = 0; i < n && r == 0; i++)
			r = fn(a, item[i]);
		at += (off_t)SLAB_SIZE;
	}
	free(item);
	return r;
}
