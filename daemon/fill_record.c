/* SPDX-License-Identifier: BSD-2-Clause */
#include "fill_record.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC "uffdfil"
#define VERSION 1u
#define LOG_ROOM 4096u

#define AT_NEXT UINT64_C(0xff)
#define AT_LOGGED (UINT64_C(1) << 8)
#define AT_CHILD (UINT64_C(1) << 32)

_Static_assert(sizeof(struct record) <= PAGE_SIZE, "");
_Static_assert(MSGS < AT_NEXT && LOG_ROOM < 1u << 24, "");

/* --- where its parts are --- */

/* Bytes from the beginning. */
struct layout {
	size_t ranges, log, states, end;
};

static struct layout
layout_of(uint64_t pages, uint64_t ranges, uint64_t room)
{
	struct layout l = { .ranges = PAGE_SIZE };

	l.log = l.ranges + round_up(ranges * sizeof(struct record_range), PAGE_SIZE);
	l.states = l.log + round_up(room * sizeof(struct uffd_msg), PAGE_SIZE);
	l.end = l.states + round_up(pages / STATES_A_WORD * 8 + 8, PAGE_SIZE);
	return l;
}

static struct layout
layout(const struct record *rec)
{
	return layout_of(rec->pages, rec->nranges, rec->room);
}

static void *
within(const struct record *rec, size_t at)
{
	return (char *)(uintptr_t)rec + at;
}

static uint32_t
sizes(void)
{
	return (uint32_t)(sizeof(struct record) * 31 * 31 + sizeof(struct record_range) * 31 +
			  sizeof(struct fill_note));
}

static size_t
logged(const struct record *rec)
{
	return atomic_load(&rec->at) / AT_LOGGED & 0xffffff;
}

/* Memory that a successor can have, or, with *fd < 0, not.  NULL: there is none. */
static void *
shared_memory(const char *name, size_t len, int *fd)
{
	void *p;

	if (*fd >= 0 && (*fd = memfd_create(name, MFD_CLOEXEC)) < 0)
		return NULL;
	if (*fd < 0)
		return fill_memory(len, PROT_READ | PROT_WRITE);
	p = ftruncate(*fd, (off_t)len) < 0
		    ? MAP_FAILED
		    : mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	if (p == MAP_FAILED) {
		close(*fd);
		*fd = -1;
		return NULL;
	}
	madvise(p, len, MADV_DONTFORK);
	return p;
}

/* --- one record --- */

int
record_make(struct space *sp, size_t ranges)
{
	const uint64_t room = sp->f->cfg.keeper != NULL ? LOG_ROOM : 0;
	const struct layout l = layout_of(sp->pages, ranges, room);
	int fd = sp->f->cfg.keeper != NULL ? 0 : -1;
	struct record *rec = shared_memory("uffd-pager-fill", l.end, &fd);

	if (rec == NULL)
		return -ENOMEM;
	/* So that the kernel never has to wait for memory while it tells of something. */
	(void)mlock(rec, PAGE_SIZE);
	memcpy(rec->magic, MAGIC, sizeof rec->magic);
	rec->version = VERSION;
	rec->sizes = sizes();
	rec->number = sp->number;
	rec->holder = sp->f->cfg.holder;
	rec->pages = sp->pages;
	rec->nranges = ranges;
	rec->room = room;
	rec->flags = sp->flags;
	sp->rec = rec;
	sp->rec_fd = fd;
	sp->state = within(rec, l.states);
	return 0;
}

void
record_free(struct space *sp)
{
	if (sp->rec == NULL)
		return;
	munmap(sp->rec, layout(sp->rec).end);
	if (sp->rec_fd >= 0)
		close(sp->rec_fd);
	sp->rec = NULL;
	sp->rec_fd = -1;
}

static void
name_part(char part[32], const struct space *sp, const char *what)
{
	snprintf(part, 32, "%llu/%s", (unsigned long long)sp->number, what);
}

/* The record will name it even when no range does any more. */
static void
hold_file(struct fill *f, struct memfile *s)
{
	struct memfile **more;

	pthread_mutex_lock(&f->files_lock);
	for (size_t i = 0; i < f->nfiles; i++) {
		if (f->file[i] == s)
			goto out;
	}
	memfile_keep(s, f->cfg.keeper);
	more = realloc(f->file, (f->nfiles + 1) * sizeof(struct memfile *));
	/* Without memory it is kept as long as ranges have it. */
	if (more != NULL) {
		f->file = more;
		f->file[f->nfiles++] = memfile_ref(s);
	}
out:
	pthread_mutex_unlock(&f->files_lock);
}

void
record_commit(struct space *sp)
{
	const struct fill_config *cfg = &sp->f->cfg;
	struct record *rec = sp->rec;
	struct record_range *at = within(rec, layout(rec).ranges);
	char part[32];

	if (sp->rec_fd < 0)
		return;
	assert(sp->n == rec->nranges);
	for (size_t i = 0; i < sp->n; i++) {
		const struct range *r = &sp->range[i];

		at[i] = (struct record_range){
			.start = r->r.start,
			.len = r->r.len,
			.offset = r->r.offset,
			.first = r->first,
			.source = r->r.source->number,
			.page_size = r->r.page_size,
			.wiped = r->r.wiped,
		};
		hold_file(sp->f, r->r.source);
	}
	rec->ndue = sp->ndue;
	rec->tag = sp->tag;
	memcpy(rec->due, sp->due, sizeof rec->due);
	rec->broken = sp->broken;
	rec->kept = sp->kept;
	rec->child = sp->child;
	stores_in_order();
	name_part(part, sp, "uffd");
	keeper_keep(cfg->keeper, "fill", cfg->id, part, sp->uffd);
	name_part(part, sp, "record");
	keeper_keep(cfg->keeper, "fill", cfg->id, part, sp->rec_fd);
}

void
record_born(struct space *sp, const struct space *parent)
{
	sp->rec->parent = parent->number;
	sp->rec->fork = atomic_load(&parent->rec->at) / AT_CHILD + 1;
	record_commit(sp);
}

void
record_drop(struct space *sp)
{
	const struct fill_config *cfg = &sp->f->cfg;
	char part[32];

	if (sp->rec_fd < 0)
		return;
	name_part(part, sp, "record");
	keeper_drop(cfg->keeper, "fill", cfg->id, part);
	name_part(part, sp, "uffd");
	keeper_drop(cfg->keeper, "fill", cfg->id, part);
}

static void
copy_states(struct space *sp, const _Atomic uint64_t *from)
{
	for (uint64_t i = 0; i <= sp->pages / STATES_A_WORD; i++) {
		const uint64_t w = atomic_load_explicit(&from[i], memory_order_relaxed);

		/* What is zero takes no memory. */
		if (w != 0)
			atomic_store_explicit(&sp->state[i], w, memory_order_relaxed);
	}
}

/* Which child it is, and how many it has had. */
static void
copy_family(struct record *rec, const struct record *from)
{
	rec->parent = from->parent;
	rec->fork = from->fork;
	atomic_store(&rec->at, atomic_load(&from->at) / AT_CHILD * AT_CHILD);
}

/* Another record, for what there is now, and with an empty log.  0 or -ENOMEM.  To be committed. */
static int
record_anew(struct space *sp)
{
	struct space was = { .rec = sp->rec, .rec_fd = sp->rec_fd };
	const _Atomic uint64_t *const states = sp->state;
	const int r = record_make(sp, sp->n);

	if (r < 0)
		return r;
	copy_states(sp, states);
	copy_family(sp->rec, was.rec);
	record_free(&was);
	return 0;
}

/* --- what the kernel tells --- */

void
fill_orphan(struct fill *f, int uffd)
{
	char part[32];

	if (f->cfg.keeper == NULL) {
		fcntl(uffd, F_DUPFD_CLOEXEC, 0);
		return;
	}
	/* Unlike that of any other, also of other processes'. */
	snprintf(part, sizeof part, "%llu/" FILL_ORPHAN, (unsigned long long)now_ns());
	keeper_keep(f->cfg.keeper, "fill", f->cfg.id, part, uffd);
}

/* What will not be noted any more: then rather nothing is. */
static void
lose_record(struct space *sp)
{
	log_line(
		&sp->f->log, UP_LOG_ERROR,
		"%s: no memory to note what it does: if this process is killed, it waits for what it misses",
		sp->f->name);
	fill_orphan(sp->f, sp->uffd);
	record_drop(sp);
	close(sp->rec_fd);
	sp->rec_fd = -1;
}

unsigned
record_read(struct space *sp)
{
	struct record *rec = sp->rec;
	uint64_t at = atomic_load_explicit(&rec->at, memory_order_relaxed);
	ssize_t len;

	for (unsigned i = 0; i < sp->nbatch; i++)
		rec->batch[i].event = 0;
	stores_in_order();
	if (at & AT_NEXT)
		atomic_store_explicit(&rec->at, at & ~AT_NEXT, memory_order_relaxed);
	if (sp->rec_fd >= 0 && logged(rec) + MSGS > rec->room) {
		if (record_anew(sp) == 0) {
			record_commit(sp);
			rec = sp->rec;
		} else {
			lose_record(sp);
		}
	}
	stores_in_order();
	len = read(sp->uffd, rec->batch, sizeof rec->batch);
	sp->nbatch = len > 0 ? (unsigned)((size_t)len / sizeof rec->batch[0]) : 0;
	return sp->nbatch;
}

/* Number i is done, and something more has been counted. */
static void
done(struct record *rec, unsigned i, uint64_t more)
{
	const uint64_t at = atomic_load_explicit(&rec->at, memory_order_relaxed);

	stores_in_order();
	atomic_store_explicit(&rec->at, ((at & ~AT_NEXT) | (i + 1)) + more, memory_order_relaxed);
	stores_in_order();
}

void
record_log(struct space *sp, unsigned i)
{
	struct record *rec = sp->rec;
	struct uffd_msg *log = within(rec, layout(rec).log);

	if (sp->rec_fd < 0)
		return;
	log[logged(rec)] = rec->batch[i];
	done(rec, i, AT_LOGGED);
}

void
record_forked(struct space *sp, unsigned i)
{
	done(sp->rec, i, AT_CHILD);
}

/* --- the filler's note --- */

uint64_t
note_id(uint64_t id)
{
	static uint64_t last;

	last = MAX(last + (id == 0), id);
	return id != 0 ? id : last;
}

int
note_make(struct fill *f)
{
	pthread_mutex_init(&f->files_lock, NULL);
	f->note_fd = f->cfg.keeper != NULL ? 0 : -1;
	f->note = shared_memory("uffd-pager-fill", sizeof *f->note, &f->note_fd);
	if (f->note == NULL)
		return -ENOMEM;
	memcpy(f->note->magic, MAGIC, sizeof f->note->magic);
	f->note->version = VERSION;
	f->note->sizes = sizes();
	f->note->holder = f->cfg.holder;
	return 0;
}

void
note_free(struct fill *f)
{
	for (size_t i = 0; i < f->nfiles; i++)
		memfile_unref(f->file[i]);
	free(f->file);
	pthread_mutex_destroy(&f->files_lock);
	if (f->note == NULL)
		return;
	if (f->note_kept) {
		keeper_drop(f->cfg.keeper, "fill", f->cfg.id, "note");
		keeper_drop(f->cfg.keeper, "fill", f->cfg.id, "socket");
		if (f->note->about.pending_kept)
			keeper_drop(f->cfg.keeper, "fill", f->cfg.id, "pending");
	}
	munmap(f->note, sizeof *f->note);
	if (f->note_fd >= 0)
		close(f->note_fd);
}

uint64_t
note_next(struct fill *f)
{
	return atomic_fetch_add(&f->note->spaces, 1) + 1;
}

void
note_keep(struct fill *f)
{
	if (f->note_fd < 0 || f->note_kept)
		return;
	f->note_kept = true;
	if (f->cfg.socket >= 0)
		keeper_keep(f->cfg.keeper, "fill", f->cfg.id, "socket", f->cfg.socket);
	keeper_keep(f->cfg.keeper, "fill", f->cfg.id, "note", f->note_fd);
}

/* --- a successor --- */

void
about_session(struct fill_about *about, const struct session *s)
{
	snprintf(about->kind, sizeof(about->kind), "%s", s->ops->kind);
	snprintf(about->name, sizeof(about->name), "%s", s->name);
	snprintf(about->group, sizeof(about->group), "%s", s->group);
	about->pid = (int32_t)s->pid;
	about->uid = s->uid;
	about->gid = s->gid;
}

void
about_whom(const struct fill_about *about, struct session *s)
{
	*s = (struct session){ .pid = about->pid, .uid = about->uid, .gid = about->gid };
	snprintf(s->name, sizeof(s->name), "%.*s", (int)sizeof(about->name) - 1, about->name);
	snprintf(s->group, sizeof(s->group), "%.*s", (int)sizeof(about->group) - 1, about->group);
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
	if (h->note == NULL || memcmp(h->note->magic, MAGIC, sizeof h->note->magic) != 0 ||
	    h->note->version != VERSION || h->note->sizes != sizes()) {
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
	    memcmp(head.magic, MAGIC, sizeof head.magic) != 0 || head.version != VERSION ||
	    head.sizes != sizes() || (size_t)st.st_size != layout(&head).end)
		return NULL;
	rec = mmap(NULL, layout(&head).end, PROT_READ, MAP_SHARED, fd, 0);
	return rec == MAP_FAILED ? NULL : rec;
}

static int
ranges_of(struct space *sp, const struct record *old, const struct fill_heir *h)
{
	const struct record_range *from = within(old, layout(old).ranges);

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

/* --- all of them --- */

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
	const struct uffd_msg *log = within(old, layout(old).log);

	for (size_t i = 0; i < logged(old); i++)
		fspace_replay(sp, &log[i]);
	for (size_t i = at & AT_NEXT; i < MSGS; i++) {
		const struct uffd_msg *m = &old->batch[i];

		if (m->event == UFFD_EVENT_FORK) {
			const uint64_t fork =
				atomic_fetch_add(&sp->rec->at, AT_CHILD) / AT_CHILD + 1;

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
	copy_states(sp, within(old, layout(old).states));
	copy_family(sp->rec, old);
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
		munmap(all.left[i].rec, layout(all.left[i].rec).end);
	free(all.left);
	return all.spaces;
}
