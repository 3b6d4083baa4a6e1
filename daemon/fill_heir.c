/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fill_heir.c: what a predecessor has left of a filler, read as it lies there: its note, and the records of its spaces (fill_record.h).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fill_record.h"

static bool
is_ours(const struct fill_note *note)
{
	return memcmp(note->magic, RECORD_MAGIC, sizeof note->magic) == 0 &&
	       note->version == RECORD_VERSION && note->sizes == record_sizes();
}

int
fill_heir_look(int note)
{
	struct fill_note n;

	return pread(note, &n, sizeof n, 0) == (ssize_t)sizeof n && is_ours(&n) ? 0 : -EPROTO;
}

int
fill_heir_open(struct fill_heir *h, uint64_t id, int (*take)(void *ctx, const char *name),
	       int (*fetch)(void *ctx, uint64_t holder, int number), void *ctx)
{
	char name[STORE_NAME_MAX];
	struct stat st;
	int fd;

	/* If it can not be taken over it waits, under that name. */
	note_id(id);
	*h = (struct fill_heir){ .id = id, .socket = -1, .take = take, .fetch = fetch, .ctx = ctx };
	store_name(name, "fill", id, "note");
	fd = take(ctx, name);
	if (fd < 0)
		return -ENOENT;
	if (fstat(fd, &st) == 0 && (size_t)st.st_size == sizeof *h->note)
		h->note = mmap(NULL, sizeof *h->note, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (h->note == MAP_FAILED)
		h->note = NULL;
	if (h->note == NULL || !is_ours(h->note)) {
		fill_heir_close(h);
		return -EPROTO;
	}
	store_name(name, "fill", id, "socket");
	h->socket = take(ctx, name);
	return 0;
}

void
fill_heir_close(struct fill_heir *h)
{
	if (h->note != NULL)
		munmap((void *)(uintptr_t)h->note, sizeof *h->note);
	if (h->socket >= 0)
		close(h->socket);
	h->note = NULL;
	h->socket = -1;
}

/* A record as it was left.  NULL: it is none. */
static struct record *
record_open(int fd)
{
	struct record head, *rec;
	struct stat st;

	if (fstat(fd, &st) < 0 || pread(fd, &head, sizeof head, 0) != (ssize_t)sizeof head ||
	    memcmp(head.magic, RECORD_MAGIC, sizeof head.magic) != 0 ||
	    head.version != RECORD_VERSION || head.sizes != record_sizes() ||
	    (size_t)st.st_size != record_layout(&head).end)
		return NULL;
	rec = mmap(NULL, record_layout(&head).end, PROT_READ, MAP_SHARED, fd, 0);
	return rec == MAP_FAILED ? NULL : rec;
}

static int
ranges_of(struct space *sp, const struct record *old, const struct fill_heir *h)
{
	const struct record_range *from = record_part(old, record_layout(old).ranges);

	for (size_t i = 0; i < old->nranges; i++) {
		struct range r = {
			.r = { .start = from[i].start,
			       .len = from[i].len,
			       .offset = from[i].offset,
			       .page_size = from[i].page_size,
			       .wiped = from[i].wiped != 0 },
			.first = from[i].first,
		};
		int err = memfile_inherit(&r.r.source, from[i].source, sp->f->cfg.keeper, h->take,
					  h->ctx);

		if (err == 0 && !range_insert(sp, sp->n, &r))
			err = -ENOMEM;
		memfile_unref(r.r.source); /* the range has one of its own */
		if (err < 0)
			return err;
	}
	return 0;
}

/* A space as its predecessor has left it. */
struct left {
	struct record *rec;
	int uffd;
};

struct all_left {
	const struct fill_heir *h;
	struct left *left;
	size_t n, room;
	/* Those that are served again; in no list, and not committed.  A child that was not kept before its parent, whose new record counts it. */
	struct space *spaces, **last;
};

static bool
was_kept(const struct all_left *all, const struct record *parent, uint64_t fork)
{
	for (size_t i = 0; i < all->n; i++) {
		if (all->left[i].rec->parent == parent->number && all->left[i].rec->fork == fork)
			return true;
	}
	return false;
}

static void
push(struct all_left *all, struct space *sp)
{
	*all->last = sp;
	all->last = &sp->next;
}

/* A child of which a message was read, and nothing kept: only the predecessor's table had its userfaultfd. */
static void
child_again(struct all_left *all, struct space *parent, uint64_t fork, uint64_t holder, int number)
{
	struct space *sp = NULL;
	const int uffd = all->h->fetch(all->h->ctx, holder, number);
	int r = uffd < 0 ? uffd : fspace_child(parent, uffd, &sp);

	if (r < 0) {
		log_line(
			&parent->f->log, UP_LOG_ERROR,
			"%s: a child that was forked in the instant in which the last daemon was killed can not be served (%s): what it misses %s",
			parent->f->name, strerror(-r), uffd < 0 ? "reads as zeros" : "waits");
		if (uffd >= 0) {
			fill_orphan(parent->f, uffd);
			close(uffd);
		}
		return;
	}
	sp->rec->parent = parent->number;
	sp->rec->fork = fork;
	push(all, sp);
}

/* What the space did after its record was made. */
static void
catch_up(struct all_left *all, struct space *sp, const struct record *old)
{
	const uint64_t at = atomic_load(&old->at);
	const struct uffd_msg *log = record_part(old, record_layout(old).log);

	for (size_t i = 0; i < record_logged(old); i++)
		fspace_replay(sp, &log[i]);
	for (size_t i = at & RECORD_NEXT; i < MSGS; i++) {
		const struct uffd_msg *m = &old->batch[i];

		if (m->event == UFFD_EVENT_FORK) {
			const uint64_t fork =
				atomic_fetch_add(&sp->rec->at, RECORD_CHILD) / RECORD_CHILD + 1;

			if (!was_kept(all, old, fork))
				child_again(all, sp, fork, old->holder, (int)m->arg.fork.ufd);
		} else {
			fspace_replay(sp, m);
		}
	}
}

/* 0, and the userfaultfd is the space's; or a negative errno. */
static int
space_again(struct fill *f, struct all_left *all, const struct left *left)
{
	const struct record *old = left->rec;
	struct space *sp;
	int r = fspace_make(f, left->uffd, old->flags, old->pages, 0, old->number, &sp);

	if (r < 0)
		return r;
	record_copy(sp, old);
	sp->broken = old->broken;
	sp->kept = old->kept;
	sp->child = old->child;
	sp->brought = true;
	sp->tag = old->tag;
	sp->ndue = old->ndue;
	memcpy(sp->due, old->due, sizeof sp->due);
	r = ranges_of(sp, old, all->h);
	if (r == 0) {
		catch_up(all, sp, old);
		r = record_anew(sp);
	}
	if (r < 0)
		fspace_free(sp);
	else
		push(all, sp);
	return r;
}

/* -ENOENT: there is none of that number. */
static int
open_left(struct all_left *all, uint64_t number)
{
	const struct fill_heir *h = all->h;
	char part[32], name[STORE_NAME_MAX];
	struct left left;
	int fd;

	if (all->n == all->room) {
		const size_t room = MAX(2 * all->room, (size_t)16);
		struct left *more = realloc(all->left, room * sizeof *more);

		if (more == NULL)
			return -ENOMEM;
		all->left = more;
		all->room = room;
	}
	snprintf(part, sizeof part, "%llu/record", (unsigned long long)number);
	store_name(name, "fill", h->id, part);
	fd = h->take(h->ctx, name);
	if (fd < 0)
		return -ENOENT;
	snprintf(part, sizeof part, "%llu/uffd", (unsigned long long)number);
	store_name(name, "fill", h->id, part);
	left.uffd = h->take(h->ctx, name);
	left.rec = left.uffd >= 0 ? record_open(fd) : NULL;
	close(fd);
	if (left.rec == NULL) {
		if (left.uffd < 0)
			return -ENOENT; /* it was being let go */
		close(left.uffd);
		return -EPROTO;
	}
	all->left[all->n++] = left;
	return 0;
}

/* Whoever keeps it goes on doing so: better to wait than to read zeros. */
static void
waits(struct fill *f, int r)
{
	log_line(&f->log, UP_LOG_ERROR,
		 "%s: what the last daemon served of it can not be taken over, and waits: %s",
		 f->name, strerror(-r));
}

void
note_again(struct fill *f, const struct fill_heir *h)
{
	const struct fill_note *old = h->note;
	struct fill_note *note = f->note;
	char name[STORE_NAME_MAX];
	int number;

	atomic_store(&note->spaces, atomic_load(&old->spaces));
	memcpy(&note->about, &old->about, sizeof note->about);
	number = note->about.io & FILL_IO_WANT ? descriptors_number(note->about.control) : -1;
	if (note->about.pending_kept) {
		store_name(name, "fill", h->id, "pending");
		f->pending = h->take(h->ctx, name);
	} else if (number >= 0) {
		f->pending = h->fetch(h->ctx, old->holder, number);
		/* Before the number is nobody's any more. */
		if (f->pending >= 0)
			keeper_keep(f->cfg.keeper, "fill", h->id, "pending", f->pending);
		note->about.pending_kept = f->pending >= 0;
	}
}

struct space *
fspaces_again(struct fill *f, const struct fill_heir *h)
{
	struct all_left all = { .h = h, .last = &all.spaces };
	const uint64_t spaces = atomic_load(&h->note->spaces);
	int r;

	for (uint64_t number = 1; number <= spaces; number++) {
		r = open_left(&all, number);
		if (r < 0 && r != -ENOENT)
			waits(f, r);
	}
	for (size_t i = 0; i < all.n; i++) {
		r = space_again(f, &all, &all.left[i]);
		if (r < 0) {
			waits(f, r);
			close(all.left[i].uffd);
		}
	}
	for (size_t i = 0; i < all.n; i++)
		munmap(all.left[i].rec, record_layout(all.left[i].rec).end);
	free(all.left);
	return all.spaces;
}
