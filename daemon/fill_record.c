/* SPDX-License-Identifier: BSD-2-Clause */
#include "fill_record.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOG_ROOM 4096u

_Static_assert(sizeof(struct record) <= PAGE_SIZE, "");
_Static_assert(MSGS < RECORD_NEXT && LOG_ROOM < 1u << 24, "");

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
	const struct record_layout l = record_layout_of(sp->pages, ranges, room);
	int fd = sp->f->cfg.keeper != NULL ? 0 : -1;
	struct record *rec = shared_memory("uffd-pager-fill", l.end, &fd);

	if (rec == NULL)
		return -ENOMEM;
	/* So that the kernel never has to wait for memory while it tells of something. */
	(void)mlock(rec, PAGE_SIZE);
	memcpy(rec->magic, RECORD_MAGIC, sizeof rec->magic);
	rec->version = RECORD_VERSION;
	rec->sizes = record_sizes();
	rec->number = sp->number;
	rec->holder = sp->f->cfg.holder;
	rec->pages = sp->pages;
	rec->nranges = ranges;
	rec->room = room;
	rec->flags = sp->flags;
	sp->rec = rec;
	sp->rec_fd = fd;
	sp->state = record_part(rec, l.states);
	return 0;
}

void
record_free(struct space *sp)
{
	if (sp->rec == NULL)
		return;
	munmap(sp->rec, record_layout(sp->rec).end);
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
	struct record_range *at = record_part(rec, record_layout(rec).ranges);
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
	sp->rec->fork = atomic_load(&parent->rec->at) / RECORD_CHILD + 1;
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

void
record_copy(struct space *sp, const struct record *from)
{
	const _Atomic uint64_t *const state = record_part(from, record_layout(from).states);

	for (uint64_t i = 0; i <= sp->pages / STATES_A_WORD; i++) {
		const uint64_t w = atomic_load_explicit(&state[i], memory_order_relaxed);

		/* What is zero takes no memory. */
		if (w != 0)
			atomic_store_explicit(&sp->state[i], w, memory_order_relaxed);
	}
	sp->rec->parent = from->parent;
	sp->rec->fork = from->fork;
	atomic_store(&sp->rec->at, atomic_load(&from->at) / RECORD_CHILD * RECORD_CHILD);
}

int
record_anew(struct space *sp)
{
	struct space was = { .rec = sp->rec, .rec_fd = sp->rec_fd };
	const int r = record_make(sp, sp->n);

	if (r < 0)
		return r;
	record_copy(sp, was.rec);
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
	if (at & RECORD_NEXT)
		atomic_store_explicit(&rec->at, at & ~RECORD_NEXT, memory_order_relaxed);
	if (sp->rec_fd >= 0 && record_logged(rec) + MSGS > rec->room) {
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
	atomic_store_explicit(&rec->at, ((at & ~RECORD_NEXT) | (i + 1)) + more,
			      memory_order_relaxed);
	stores_in_order();
}

void
record_log(struct space *sp, unsigned i)
{
	struct record *rec = sp->rec;
	struct uffd_msg *log = record_part(rec, record_layout(rec).log);

	if (sp->rec_fd < 0)
		return;
	log[record_logged(rec)] = rec->batch[i];
	done(rec, i, RECORD_LOGGED);
}

void
record_forked(struct space *sp, unsigned i)
{
	done(sp->rec, i, RECORD_CHILD);
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
	memcpy(f->note->magic, RECORD_MAGIC, sizeof f->note->magic);
	f->note->version = RECORD_VERSION;
	f->note->sizes = record_sizes();
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
