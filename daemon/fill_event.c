/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fill_event.c: what the kernel tells of an address space: mappings that go, move, or are inherited.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fill_record.h"
#include "fill_space.h"

/* Pages that only partly belong to it stay as they are: the kernel throws out whole ones. */
static void
on_remove(struct space *sp, uint64_t start, uint64_t end)
{
	for (size_t i = fspace_find_from(sp, start); i < sp->n && sp->range[i].r.start < end; i++) {
		const struct range *r = &sp->range[i];
		const uint64_t size = r->r.page_size;
		const uint64_t lo = MAX(start, r->r.start), hi = MIN(end, r->r.start + r->r.len);
		const uint64_t from = (lo + size - 1) & ~(size - 1), to = hi & ~(size - 1);

		if (from < to)
			fspace_set(sp, r, from, to - from, ZERO);
	}
}

/* False: it could not be split. */
static bool
forget(struct space *sp, uint64_t start, uint64_t end)
{
	size_t i;

	if (!fspace_split(sp, start) || !fspace_split(sp, end))
		return false;
	i = fspace_find_from(sp, start);
	while (i < sp->n && sp->range[i].r.start < end) {
		const struct range *r = &sp->range[i];

		fspace_count_mapped(sp, -(int64_t)r->r.len);
		fspace_set(sp, r, r->r.start, r->r.len, MISSING);
		range_drop(sp, i);
	}
	return true;
}

/* What is where is not known any more. */
static void
lose_track(struct space *sp, const char *call)
{
	sp->broken = sp->rec->broken = true;
	log_line(
		&sp->f->log, UP_LOG_ERROR,
		"%s: no memory, or too many ranges, to follow its %s: SIGBUS where it has no pages yet",
		sp->f->name, call);
}

/*
 * That something has been moved away from there is told first, then that it has been unmapped: by then another thread may have moved
 * something there, and that has been told, too.
 */
static bool
was_due(struct space *sp, uint64_t start, uint64_t end)
{
	for (unsigned i = 0; i < sp->ndue; i++) {
		if (sp->due[i].start == start && sp->due[i].end == end) {
			sp->ndue--;
			memmove(sp->due + i, sp->due + i + 1, (sp->ndue - i) * sizeof sp->due[0]);
			return true;
		}
	}
	return false;
}

static void
is_due(struct space *sp, uint64_t start, uint64_t end)
{
	/* The oldest has not come for so long: it was MREMAP_DONTUNMAP. */
	if (sp->ndue == UNMAPS_DUE)
		was_due(sp, sp->due[0].start, sp->due[0].end);
	sp->due[sp->ndue++] = (struct unmap_due){ start, end };
}

static void
on_unmap(struct space *sp, uint64_t start, uint64_t end)
{
	/* What comes there next may be a neighbour that grows, and whose new pages are zeros. */
	if (!was_due(sp, start, end) && !forget(sp, start, end))
		lose_track(sp, "munmap()");
}

static void
on_remap(struct space *sp, uint64_t from, uint64_t to, uint64_t len)
{
	struct range *moved = NULL;
	size_t first, n = 0, i = 0;

	if (from == to)
		return;
	is_due(sp, from, from + len);
	if (!fspace_split(sp, from) || !fspace_split(sp, from + len))
		goto broken;
	first = fspace_find_from(sp, from);
	while (first + n < sp->n && sp->range[first + n].r.start < from + len)
		n++;
	if (n > 0) {
		moved = malloc(n * sizeof *moved);
		if (moved == NULL)
			goto broken;
		memcpy(moved, sp->range + first, n * sizeof *moved);
		sp->n -= n;
		memmove(sp->range + first, sp->range + first + n,
			(sp->n - first) * sizeof *sp->range);
	}
	/* What was there has been unmapped; that may not have been told yet, or not have been ours. */
	if (!forget(sp, to, to + len))
		goto unref;
	for (; i < n; i++) {
		moved[i].r.start += to - from;
		if (!range_insert(sp, fspace_find_from(sp, moved[i].r.start), &moved[i]))
			goto unref;
		memfile_unref(moved[i].r.source); /* the one of where it was */
	}
	free(moved);
	return;
unref:
	for (; i < n; i++) {
		fspace_count_mapped(sp, -(int64_t)moved[i].r.len);
		memfile_unref(moved[i].r.source);
	}
	free(moved);
broken:
	lose_track(sp, "mremap()");
}

void
fill_tell_child(struct fill *f, int r)
{
	log_line(&f->log, UP_LOG_ERROR, "%s: its child can not be served: %s", f->name,
		 strerror(-r));
}

int
fspace_child(const struct space *parent, int uffd, struct space **out)
{
	int r = fspace_make(parent->f, uffd, parent->flags, parent->pages, parent->n, 0, out);

	if (r < 0)
		return r;
	r = fspace_inherit(*out, parent);
	if (r < 0)
		fspace_free(*out);
	return r;
}

static void
on_fork(struct space *parent, int uffd)
{
	struct fill *f = parent->f;
	struct space *sp;
	const int r = fspace_child(parent, uffd, &sp);

	if (r == 0) {
		record_born(sp, parent);
		/* Linked by link_born(): f->lock comes before the parent's, which is held. */
		sp->next = f->born;
		f->born = sp;
		atomic_fetch_add(&f->nborn, 1);
		atomic_fetch_add(&f->living, 1);
		return;
	}
	fill_tell_child(f, r);
	fill_orphan(f, uffd);
	close(uffd);
}

void
fspace_replay(struct space *sp, const struct uffd_msg *m)
{
	switch (m->event) {
	case UFFD_EVENT_REMOVE:
		on_remove(sp, m->arg.remove.start, m->arg.remove.end);
		break;
	case UFFD_EVENT_UNMAP:
		on_unmap(sp, m->arg.remove.start, m->arg.remove.end);
		break;
	case UFFD_EVENT_REMAP:
		on_remap(sp, m->arg.remap.from, m->arg.remap.to, m->arg.remap.len);
		break;
	default:
		break;
	}
}

/* Number i of the batch. */
static void
event(struct space *sp, unsigned i)
{
	const struct uffd_msg *m = &sp->rec->batch[i];

	switch (m->event) {
	case UFFD_EVENT_REMOVE:
		fspace_replay(sp, m);
		break;
	case UFFD_EVENT_UNMAP:
	case UFFD_EVENT_REMAP:
		fspace_replay(sp, m);
		record_log(sp, i);
		break;
	case UFFD_EVENT_FORK:
		on_fork(sp, (int)m->arg.fork.ufd);
		record_forked(sp, i);
		break;
	default:
		log_line(&sp->f->log, UP_LOG_WARNING, "%s: unknown event %u", sp->f->name,
			 m->event);
	}
}

/*
 * Read what there is, and act upon the events.  How many faults are in `fault`; *more: there may be more to read.  They are to be
 * read under the lock, as who waits for an event goes on as soon as it is read.
 */
size_t
fspace_drain(struct space *sp, struct fault fault[FAULTS], bool *more)
{
	size_t n = 0;

	*more = false;
	pthread_rwlock_wrlock(&sp->lock);
	while (n <= FAULTS - MSGS) {
		const unsigned count = record_read(sp);
		const uint64_t now = now_ns();

		for (unsigned i = 0; i < count; i++) {
			const struct uffd_msg *m = &sp->rec->batch[i];

			if (m->event == UFFD_EVENT_PAGEFAULT)
				fault[n++] = (struct fault){ m->arg.pagefault.address,
							     m->arg.pagefault.flags, now };
			else
				event(sp, i);
		}
		if (count > 0)
			sp->f->busy = true;
		if (count < MSGS)
			break;
		*more = n > FAULTS - MSGS;
	}
	pthread_rwlock_unlock(&sp->lock);
	return n;
}
