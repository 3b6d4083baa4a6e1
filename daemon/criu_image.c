/* SPDX-License-Identifier: BSD-2-Clause */
#include "criu_image.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "criu.pb-c.h"

#define MAGIC_COMMON 0x54564319u /* in front of all but the inventory */
#define MAGIC_INVENTORY 0x58313116u
#define MAGIC_PSTREE 0x50273030u
#define MAGIC_PAGEMAP 0x56084025u
#define MAGIC_MM 0x57492820u

#define VERSION_MAX 2 /* of images */
#define PAGES_MAX ((uint64_t)1 << 36)

struct reason {
	char *text;
	size_t size;
};

static void __attribute__((format(printf, 2, 3)))
tell(const struct reason *why, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why->text, why->size, fmt, ap);
	va_end(ap);
}

#define refuse(why, err, ...) (tell(why, __VA_ARGS__), (err))

/* --- messages --- */

/* Where one is in an image. */
struct cursor {
	const uint8_t *at;
	size_t left;
};

static bool
next_u32(struct cursor *c, uint32_t *value)
{
	if (c->left < 4)
		return false;
	*value = c->at[0] | (uint32_t)c->at[1] << 8 | (uint32_t)c->at[2] << 16 |
		 (uint32_t)c->at[3] << 24;
	c->at += 4;
	c->left -= 4;
	return true;
}

static int
begin(struct cursor *c, const void *image, size_t len, uint32_t magic, const struct reason *why)
{
	uint32_t m = 0;

	*c = (struct cursor){ image, image != NULL ? len : 0 };
	if (magic != MAGIC_INVENTORY && (!next_u32(c, &m) || m != MAGIC_COMMON))
		return refuse(why, -EPROTO, "it is no image of CRIU");
	if (!next_u32(c, &m) || m != magic)
		return refuse(why, -EPROTO, "it is not the image that its name says");
	return 0;
}

/* What a message may take of memory: one of few bytes can become many. */
struct allowance {
	ProtobufCAllocator a;
	size_t left;
};

static void *
take(void *data, size_t size)
{
	struct allowance *al = data;

	if (size > al->left)
		return NULL;
	al->left -= size;
	return malloc(size);
}

static void
give_back(void *data, void *p)
{
	(void)data;
	free(p);
}

static struct allowance
allow(void)
{
	/* The pointer to itself is the caller's to set: it is copied. */
	return (struct allowance){ { take, give_back, NULL }, CRIU_MEMORY_MAX };
}

/* The next message.  1; 0 the image ends; or it is refused. */
static int
next_message(struct cursor *c, const ProtobufCMessageDescriptor *type, struct allowance *al,
	     ProtobufCMessage **m, const struct reason *why)
{
	uint32_t len;

	*m = NULL;
	if (c->left == 0)
		return 0;
	if (!next_u32(c, &len))
		return refuse(why, -EPROTO, "it ends within the length of a message");
	if (len > CRIU_MESSAGE_MAX)
		return refuse(why, -E2BIG, "a message of %" PRIu32 " bytes", len);
	if (len > c->left)
		return refuse(why, -EPROTO, "it ends within a message: it has been cut short");
	*al = allow();
	al->a.allocator_data = al;
	*m = protobuf_c_message_unpack(type, &al->a, len, c->at);
	if (*m == NULL)
		return refuse(why, -EPROTO,
			      "a message of %" PRIu32
			      " bytes is not what it should be, or too much",
			      len);
	c->at += len;
	c->left -= len;
	return 1;
}

/* The only one. */
static int
first_message(struct cursor *c, const ProtobufCMessageDescriptor *type, struct allowance *al,
	      ProtobufCMessage **m, const struct reason *why)
{
	const int r = next_message(c, type, al, m, why);

	return r == 0 ? refuse(why, -EPROTO, "it has no message") : r;
}

static void
done_with(ProtobufCMessage *m, struct allowance *al)
{
	if (m != NULL)
		protobuf_c_message_free_unpacked(m, &al->a);
}

/* The array, with room for one more, moved perhaps.  NULL: it is as it was, and why not has been said. */
static void *
room_for(void *array, size_t n, size_t *room, size_t size, size_t max, const struct reason *why,
	 int *r)
{
	void *more;

	*r = 0;
	if (n == max) {
		*r = refuse(why, -E2BIG, "more than %zu of what it has many of", max);
		return NULL;
	}
	if (n < *room)
		return array;
	*room = MIN(MAX(2 * *room, (size_t)16), max);
	more = realloc(array, *room * size);
	if (more == NULL)
		*r = refuse(why, -ENOMEM, "no memory");
	return more;
}

/* --- images --- */

int
criu_parse_inventory(const void *image, size_t len, char *whytext, size_t whysize)
{
	const struct reason why = { whytext, whysize };
	const Up__Criu__Inventory *inv;
	ProtobufCMessage *m;
	struct allowance al;
	struct cursor c;
	int r;

	r = begin(&c, image, len, MAGIC_INVENTORY, &why);
	if (r < 0)
		return r;
	r = first_message(&c, &up__criu__inventory__descriptor, &al, &m, &why);
	inv = (const void *)m;
	if (r > 0 && (inv->img_version == 0 || inv->img_version > VERSION_MAX))
		r = refuse(&why, -ENOTSUP, "images of version %" PRIu32 ": %d is the newest known",
			   inv->img_version, VERSION_MAX);
	done_with(m, &al);
	return MIN(r, 0);
}

static int
add_task(struct criu_tasks *t, size_t *room, const Up__Criu__Task *task, const struct reason *why)
{
	uint32_t *pid;
	int r;

	if (task->pid == 0 || task->pid > INT32_MAX)
		return refuse(why, -EINVAL, "%" PRIu32 " is no number of a task", task->pid);
	for (size_t i = 0; i < t->n; i++) {
		if (t->pid[i] == task->pid)
			return refuse(why, -EINVAL, "task %" PRIu32 " is there twice", task->pid);
	}
	pid = room_for(t->pid, t->n, room, sizeof *t->pid, CRIU_TASKS_MAX, why, &r);
	if (pid == NULL)
		return r;
	t->pid = pid;
	t->pid[t->n++] = task->pid;
	return 0;
}

int
criu_parse_pstree(const void *image, size_t len, struct criu_tasks *t, char *whytext,
		  size_t whysize)
{
	const struct reason why = { whytext, whysize };
	ProtobufCMessage *m;
	struct allowance al;
	struct cursor c;
	size_t room = 0;
	int r;

	*t = (struct criu_tasks){ 0 };
	r = begin(&c, image, len, MAGIC_PSTREE, &why);
	while (r == 0 && (r = next_message(&c, &up__criu__task__descriptor, &al, &m, &why)) > 0) {
		r = add_task(t, &room, (const void *)m, &why);
		done_with(m, &al);
	}
	if (r == 0 && t->n == 0)
		r = refuse(&why, -EPROTO, "it has no task");
	if (r < 0) {
		free(t->pid);
		*t = (struct criu_tasks){ 0 };
	}
	return r;
}

static int
check_entry(const struct criu_pagemap *pm, const struct criu_entry *e, uint64_t pages,
	    const struct reason *why)
{
	const struct criu_entry *before = pm->n > 0 ? &pm->entry[pm->n - 1] : NULL;

	if (e->start % PAGE_SIZE != 0 || pages == 0 || pages > PAGES_MAX ||
	    e->start > INT64_MAX - e->len)
		return refuse(why, -EINVAL, "%" PRIu64 " pages at %#" PRIx64 ": not in any memory",
			      pages, e->start);
	if (before != NULL && e->start < before->start + before->len)
		return refuse(why, -EINVAL,
			      "pages at %#" PRIx64 " are there twice, or out of order", e->start);
	if (e->flags & CRIU_PARENT && e->flags & CRIU_PRESENT)
		return refuse(why, -EINVAL, "pages at %#" PRIx64 " are here, and in the parent",
			      e->start);
	return 0;
}

static int
add_entry(struct criu_pagemap *pm, size_t *room, const Up__Criu__Pagemap *m,
	  const struct reason *why)
{
	const uint64_t pages = m->has_nr_pages_64 ? m->nr_pages_64 : m->nr_pages;
	struct criu_entry e = {
		.start = m->vaddr,
		.len = pages * PAGE_SIZE,
		.offset = pm->bytes,
		.flags = m->has_flags ? m->flags : 0,
	};
	struct criu_entry *entry;
	int r;

	/* Before there were flags. */
	if (m->has_in_parent && m->in_parent)
		e.flags |= CRIU_PARENT;
	else if (!m->has_flags)
		e.flags = CRIU_PRESENT;
	r = check_entry(pm, &e, pages, why);
	if (r < 0)
		return r;
	entry = room_for(pm->entry, pm->n, room, sizeof e, CRIU_ENTRIES_MAX, why, &r);
	if (entry == NULL)
		return r;
	pm->entry = entry;
	/* None overlaps another, and all are below 2^63: so is the sum. */
	if (e.flags & CRIU_PRESENT)
		pm->bytes += e.len;
	pm->entry[pm->n++] = e;
	return 0;
}

int
criu_parse_pagemap(const void *image, size_t len, struct criu_pagemap *pm, char *whytext,
		   size_t whysize)
{
	const struct reason why = { whytext, whysize };
	ProtobufCMessage *m;
	struct allowance al;
	struct cursor c;
	size_t room = 0;
	int r;

	*pm = (struct criu_pagemap){ 0 };
	r = begin(&c, image, len, MAGIC_PAGEMAP, &why);
	if (r < 0)
		return r;
	r = first_message(&c, &up__criu__pagemap_head__descriptor, &al, &m, &why);
	if (r > 0)
		pm->pages_id = ((const Up__Criu__PagemapHead *)(const void *)m)->pages_id;
	done_with(m, &al);
	r = MIN(r, 0);
	while (r == 0 &&
	       (r = next_message(&c, &up__criu__pagemap__descriptor, &al, &m, &why)) > 0) {
		r = add_entry(pm, &room, (const void *)m, &why);
		done_with(m, &al);
	}
	if (r < 0) {
		free(pm->entry);
		*pm = (struct criu_pagemap){ 0 };
	}
	return r;
}

int
criu_parse_mm(const void *image, size_t len, struct criu_vmas *v, char *whytext, size_t whysize)
{
	const struct reason why = { whytext, whysize };
	const Up__Criu__Mm *mm;
	ProtobufCMessage *m;
	struct allowance al;
	struct cursor c;
	int r;

	*v = (struct criu_vmas){ 0 };
	r = begin(&c, image, len, MAGIC_MM, &why);
	if (r < 0)
		return r;
	r = first_message(&c, &up__criu__mm__descriptor, &al, &m, &why);
	r = MIN(r, 0);
	mm = (const void *)m;
	if (r == 0 && mm->n_vmas > 0 && (v->vma = calloc(mm->n_vmas, sizeof *v->vma)) == NULL)
		r = refuse(&why, -ENOMEM, "no memory");
	for (size_t i = 0; r == 0 && i < mm->n_vmas; i++) {
		const Up__Criu__Vma *vma = mm->vmas[i];

		if (vma->start >= vma->end || vma->start % PAGE_SIZE != 0 ||
		    vma->end % PAGE_SIZE != 0 || (v->n > 0 && vma->start < v->vma[v->n - 1].end))
			r = refuse(&why, -EINVAL,
				   "a mapping from %#" PRIx64 " to %#" PRIx64
				   " makes no sense, or is out of order",
				   vma->start, vma->end);
		else
			v->vma[v->n++] = (struct criu_vma){
				.start = vma->start,
				.end = vma->end,
				.wiped = vma->has_madv && (vma->madv >> MADV_WIPEONFORK |
							   vma->madv >> MADV_DONTFORK) &
								  1,
			};
	}
	done_with(m, &al);
	if (r < 0) {
		free(v->vma);
		*v = (struct criu_vmas){ 0 };
	}
	return r;
}

/* --- what is where --- */

struct resolving {
	const struct criu_pagemap *layer;
	unsigned layers;
	const struct criu_vmas *v;
	size_t vma;   /* the first one that ends behind what is looked at */
	size_t where; /* of the last run: that one, or in front of it */
	struct criu_runs *runs;
	const struct reason *why;
};

/* Content of [start, end) is there.  Runs end where mappings do: a copy can't go beyond. */
static int
add_run(struct resolving *rs, uint64_t start, uint64_t end, uint64_t offset, unsigned layer)
{
	struct criu_runs *runs = rs->runs;

	for (uint64_t next; start < end; offset += next - start, start = next) {
		struct criu_run *last = runs->n > 0 ? &runs->run[runs->n - 1] : NULL;
		struct criu_run *run;
		const struct criu_vma *vma;
		bool wiped = false;
		size_t where;
		int r;

		while (rs->vma < rs->v->n && rs->v->vma[rs->vma].end <= start)
			rs->vma++;
		vma = rs->vma < rs->v->n ? &rs->v->vma[rs->vma] : NULL;
		next = end;
		where = 2 * rs->vma;
		if (vma != NULL && vma->start > start) {
			next = MIN(end, vma->start);
		} else if (vma != NULL) {
			next = MIN(end, vma->end);
			wiped = vma->wiped;
			where++;
		}
		if (last != NULL && rs->where == where && last->start + last->len == start &&
		    last->offset + last->len == offset && last->layer == layer) {
			last->len += next - start;
			continue;
		}
		run = room_for(runs->run, runs->n, &runs->room, sizeof *run, CRIU_RANGES_MAX,
			       rs->why, &r);
		if (run == NULL)
			return r;
		runs->run = run;
		rs->where = where;
		runs->run[runs->n++] = (struct criu_run){
			.start = start,
			.len = next - start,
			.offset = offset,
			.layer = layer,
			.wiped = wiped,
		};
	}
	return 0;
}

/* The entry of an address, or the first behind it, or n. */
static size_t
entry_at(const struct criu_pagemap *pm, uint64_t address)
{
	size_t lo = 0, hi = pm->n;

	while (lo < hi) {
		const size_t mid = (lo + hi) / 2;

		if (pm->entry[mid].start + pm->entry[mid].len <= address)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static int
resolve(struct resolving *rs, uint64_t start, uint64_t end, unsigned layer)
{
	const struct criu_pagemap *pm = &rs->layer[layer];
	int r = 0;

	for (size_t i = entry_at(pm, start); start < end && r == 0; i++) {
		const struct criu_entry *e = i < pm->n ? &pm->entry[i] : NULL;
		uint64_t to;

		if (e == NULL || e->start > start)
			return refuse(rs->why, -EINVAL,
				      "the page at %#" PRIx64
				      " is said to be in the parent, and is not",
				      start);
		to = MIN(end, e->start + e->len);
		if (e->flags & CRIU_PRESENT)
			r = add_run(rs, start, to, e->offset + (start - e->start), layer);
		else if (!(e->flags & CRIU_PARENT))
			r = refuse(
				rs->why, -ENOTSUP,
				"the content of the page at %#" PRIx64
				" is not in the images: it is with another machine (dump --lazy-pages)",
				start);
		else if (layer + 1 == rs->layers)
			r = refuse(rs->why, -EINVAL,
				   "the page at %#" PRIx64 " is in the parent, and there is none",
				   start);
		else
			r = resolve(rs, start, to, layer + 1);
		start = to;
	}
	return r;
}

int
criu_resolve(const struct criu_pagemap *layer, unsigned layers, const struct criu_vmas *v,
	     struct criu_runs *runs, char *whytext, size_t whysize)
{
	const struct reason why = { whytext, whysize };
	struct resolving rs = {
		.layer = layer,
		.layers = layers,
		.v = v,
		.runs = runs,
		.why = &why,
	};
	int r = 0;

	*runs = (struct criu_runs){ 0 };
	for (size_t i = 0; i < layer[0].n && r == 0; i++) {
		const struct criu_entry *e = &layer[0].entry[i];

		if (e->flags & CRIU_LAZY)
			r = resolve(&rs, e->start, e->start + e->len, 0);
	}
	if (r < 0) {
		free(runs->run);
		*runs = (struct criu_runs){ 0 };
	}
	return r;
}

/* --- files --- */

struct image {
	char path[PATH_MAX];
	void *bytes;
	size_t len;
};

struct loading {
	const struct logger *log;
	struct criu_images *im;
	size_t ranges; /* of all tasks */
};

static int
tell_of(const struct loading *ld, const char *path, int r, const char *why)
{
	log_line(ld->log, UP_LOG_ERROR, "%s: %s", path, why);
	return r;
}

/* All of a file.  Its bytes are the caller's.  -ENOENT: it is not there, and nothing is told. */
static int
read_image(const struct loading *ld, struct image *img)
{
	struct stat st;
	size_t at = 0;
	int fd, r = 0;

	img->bytes = NULL;
	img->len = 0;
	fd = open(img->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0 || fstat(fd, &st) < 0) {
		r = -errno;
		if (r != -ENOENT)
			tell_of(ld, img->path, r, strerror(-r));
		goto close;
	}
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size > CRIU_IMAGE_MAX) {
		r = tell_of(ld, img->path, -EINVAL,
			    S_ISREG(st.st_mode) ? "it is too large" : "it is no regular file");
		goto close;
	}
	img->len = (size_t)st.st_size;
	img->bytes = malloc(MAX(img->len, (size_t)1));
	if (img->bytes == NULL) {
		r = tell_of(ld, img->path, -ENOMEM, "no memory");
		goto close;
	}
	while (at < img->len) {
		const ssize_t n = read(fd, (char *)img->bytes + at, img->len - at);

		if (n <= 0) {
			r = n < 0 ? -errno : -ENODATA;
			tell_of(ld, img->path, r, n < 0 ? strerror(-r) : "it is being cut short");
			free(img->bytes);
			img->bytes = NULL;
			break;
		}
		at += (size_t)n;
	}
close:
	if (fd >= 0)
		close(fd);
	return r;
}

static int __attribute__((format(printf, 3, 4)))
name_image(const struct loading *ld, char path[PATH_MAX], const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(path, PATH_MAX, fmt, ap);
	va_end(ap);
	return n < PATH_MAX ? 0 : tell_of(ld, path, -ENAMETOOLONG, strerror(ENAMETOOLONG));
}

/* Every image but a pagemap has to be there. */
static int
must_read(const struct loading *ld, struct image *img)
{
	const int r = read_image(ld, img);

	return r == -ENOENT ? tell_of(ld, img->path, r, strerror(ENOENT)) : r;
}

struct layers {
	struct criu_pagemap pm[CRIU_LAYERS_MAX];
	char *dir[CRIU_LAYERS_MAX];
	unsigned n;
};

static bool
has_parent(const struct criu_pagemap *pm)
{
	for (size_t i = 0; i < pm->n; i++) {
		if (pm->entry[i].flags & CRIU_PARENT)
			return true;
	}
	return false;
}

/* One more directory, if the last one has a parent.  Its path without symbolic links, of which a path may have few. */
static int
next_layer(const struct loading *ld, const char *dir, struct layers *l)
{
	char path[PATH_MAX];
	int r;

	if (l->n == CRIU_LAYERS_MAX)
		return tell_of(ld, l->dir[l->n - 1], -ELOOP, "too many parents behind each other");
	r = l->n == 0 ? name_image(ld, path, "%s", dir)
		      : name_image(ld, path, "%s/parent", l->dir[l->n - 1]);
	if (r < 0)
		return r;
	l->dir[l->n] = realpath(path, NULL);
	if (l->dir[l->n] != NULL)
		return 0;
	r = -errno;
	return r == -ENOENT && l->n > 0 ? r : tell_of(ld, path, r, strerror(-r));
}

/* Pagemaps of a task, as far as they refer to each other.  None at all: it is a zombie. */
static int
load_layers(const struct loading *ld, const char *dir, uint32_t pid, struct layers *l)
{
	struct image img;
	char why[200];
	int r = 0;

	while (r == 0 && (l->n == 0 || has_parent(&l->pm[l->n - 1]))) {
		r = next_layer(ld, dir, l);
		if (r == 0)
			r = name_image(ld, img.path, "%s/pagemap-%" PRIu32 ".img", l->dir[l->n],
				       pid);
		img.bytes = NULL;
		if (r == 0)
			r = read_image(ld, &img);
		/* What is wanted of a parent that has none is told once that is known. */
		if (r == -ENOENT || (r == 0 && img.len == 0)) {
			free(img.bytes);
			return 0;
		}
		if (r != 0)
			return r;
		r = criu_parse_pagemap(img.bytes, img.len, &l->pm[l->n], why, sizeof why);
		free(img.bytes);
		if (r < 0)
			return tell_of(ld, img.path, r, why);
		l->n++;
	}
	return r;
}

/* pages-N.img of a layer, with as much in it as there should be. */
static int
open_pages(const struct loading *ld, const struct layers *l, unsigned layer, struct memfile **out)
{
	char path[PATH_MAX];
	int r = name_image(ld, path, "%s/pages-%" PRIu32 ".img", l->dir[layer],
			   l->pm[layer].pages_id);

	if (r == 0)
		r = memfile_open(out, path, ld->log);
	if (r == 0 && (*out)->size < l->pm[layer].bytes) {
		memfile_unref(*out);
		*out = NULL;
		r = tell_of(ld, path, -EINVAL,
			    "it has less than the pagemap says: it has been cut short");
	}
	return r;
}

/* Runs become ranges. */
static int
make_ranges(struct loading *ld, const char *dir, const struct layers *l,
	    const struct criu_runs *runs, struct criu_task *t)
{
	struct memfile *source[CRIU_LAYERS_MAX] = { NULL };
	int r = 0;

	if (runs->n > CRIU_TOTAL_MAX - ld->ranges)
		return tell_of(ld, dir, -E2BIG, "too many runs of pages in all");
	t->range = calloc(MAX(runs->n, (size_t)1), sizeof *t->range);
	if (t->range == NULL)
		return tell_of(ld, dir, -ENOMEM, "no memory");
	for (size_t i = 0; i < runs->n && r == 0; i++) {
		const struct criu_run *run = &runs->run[i];

		if (source[run->layer] == NULL)
			r = open_pages(ld, l, run->layer, &source[run->layer]);
		if (r < 0)
			break;
		t->range[t->n++] = (struct fill_range){
			.start = run->start,
			.len = run->len,
			.offset = run->offset,
			.page_size = PAGE_SIZE,
			.source = memfile_ref(source[run->layer]),
			.wiped = run->wiped,
		};
		t->bytes += run->len;
	}
	ld->ranges += t->n;
	for (unsigned i = 0; i < l->n; i++)
		memfile_unref(source[i]);
	return r;
}

static int
load_task(struct loading *ld, const char *dir, struct criu_task *t)
{
	struct layers *l = calloc(1, sizeof *l);
	struct criu_vmas v = { 0 };
	struct criu_runs runs = { 0 };
	struct image img = { .bytes = NULL };
	char why[300];
	int r;

	if (l == NULL)
		return tell_of(ld, dir, -ENOMEM, "no memory");
	r = load_layers(ld, dir, t->pid, l);
	if (r < 0 || l->n == 0)
		goto out;
	r = name_image(ld, img.path, "%s/mm-%" PRIu32 ".img", dir, t->pid);
	if (r == 0)
		r = must_read(ld, &img);
	if (r < 0)
		goto out;
	r = criu_parse_mm(img.bytes, img.len, &v, why, sizeof why);
	if (r < 0) {
		tell_of(ld, img.path, r, why);
		goto out;
	}
	r = criu_resolve(l->pm, l->n, &v, &runs, why, sizeof why);
	if (r < 0) {
		log_line(ld->log, UP_LOG_ERROR, "%s: task %" PRIu32 ": %s", dir, t->pid, why);
		goto out;
	}
	r = make_ranges(ld, dir, l, &runs, t);
	t->images = r == 0;
out:
	for (unsigned i = 0; i < CRIU_LAYERS_MAX; i++) {
		free(l->pm[i].entry);
		free(l->dir[i]);
	}
	free(l);
	free(img.bytes);
	free(v.vma);
	free(runs.run);
	return r;
}

static int
load_tasks(struct loading *ld, const char *dir)
{
	struct criu_tasks t = { 0 };
	struct image img;
	char why[200];
	int r;

	r = name_image(ld, img.path, "%s/inventory.img", dir);
	if (r == 0)
		r = must_read(ld, &img);
	if (r < 0)
		return r;
	r = criu_parse_inventory(img.bytes, img.len, why, sizeof why);
	free(img.bytes);
	if (r < 0)
		return tell_of(ld, img.path, r, why);
	r = name_image(ld, img.path, "%s/pstree.img", dir);
	if (r == 0)
		r = must_read(ld, &img);
	if (r < 0)
		return r;
	r = criu_parse_pstree(img.bytes, img.len, &t, why, sizeof why);
	free(img.bytes);
	if (r < 0)
		return tell_of(ld, img.path, r, why);
	ld->im->task = calloc(t.n, sizeof *ld->im->task);
	if (ld->im->task == NULL)
		r = tell_of(ld, dir, -ENOMEM, "no memory");
	for (size_t i = 0; i < t.n && r == 0; i++) {
		ld->im->task[ld->im->n++].pid = t.pid[i];
		r = load_task(ld, dir, &ld->im->task[i]);
	}
	free(t.pid);
	return r;
}

int
criu_images_load(struct criu_images **out, const char *dir, const struct logger *log)
{
	struct loading ld = { .log = log, .im = calloc(1, sizeof *ld.im) };
	int r;

	*out = NULL;
	if (ld.im == NULL)
		return tell_of(&ld, dir, -ENOMEM, "no memory");
	r = load_tasks(&ld, dir);
	if (r < 0) {
		criu_images_free(ld.im);
		return r;
	}
	*out = ld.im;
	return 0;
}

void
criu_task_finish(struct criu_task *t)
{
	for (size_t i = 0; i < t->n; i++)
		memfile_unref(t->range[i].source);
	free(t->range);
	t->range = NULL;
	t->n = 0;
}

void
criu_images_free(struct criu_images *im)
{
	if (im == NULL)
		return;
	for (size_t i = 0; i < im->n; i++)
		criu_task_finish(&im->task[i]);
	free(im->task);
	free(im);
}

struct criu_task *
criu_images_task(struct criu_images *im, uint32_t pid)
{
	for (size_t i = 0; i < im->n; i++) {
		if (im->task[i].pid == pid)
			return &im->task[i];
	}
	return NULL;
}
