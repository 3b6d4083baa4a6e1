/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * writeback.c: what up_sync() waits for: changed pages of an object to its source, in order of their places there.
 *
 *	range_batch() --changed?--> the open flight: neighbours, up to a cluster --launch--> in flight, FLIGHTS at most --land--> free
 *	                                  ^ a copy of what is mapped, the frame of what is staged
 *
 * Pages are busy from the first look until their write has ended, so that nobody writes another version of one meanwhile, or throws it out.  What is
 * mapped can be written to by the program all the time: it gets the hash of the copy.
 *
 * A page at a time, written while the caller waits, is 60 to 100 us each to a device or past the page cache; and neighbours alone do not help
 * a program that has written all over the file, hence several at a time.  The engine lives for one call, and is made for
 * the second flight: most calls have only one, and it costs as much as a write.  A flight lives in a frame, as its copies do: so the budget holds.  With no
 * frame to spare, or where the source has other ways (source_ops.aim), pages are written one by one.
 */
#include <errno.h>

#include "base/hash.h"
#include "pager/source.h"

#define FLIGHTS 32
#define COPIES_MAX ((size_t)8 * CLUSTER_MAX)
#define RING_BYTES (4 * PAGE_SIZE) /* what an engine takes, about */

struct flight {
	struct swap_io io;
	struct flight *next; /* on the list of those that are free */
	frame_t home;	     /* this struct is in it */
	unsigned n;
	uint64_t index; /* of anon[0] */
	struct anon *anon[CLUSTER_MAX];
	uint64_t hash[CLUSTER_MAX];
	frame_t frame[CLUSTER_MAX];
	bool copy[CLUSTER_MAX]; /* that frame is ours */
};
_Static_assert(sizeof(struct flight) <= PAGE_SIZE, "a flight lives in a frame");

struct writeback {
	struct pager *p;
	struct object *o;
	struct io_engine *io; /* NULL: not made yet, or it can not be */
	bool tried;
	struct flight *free, *open;
	unsigned nflights;
	frame_t spare; /* for the next copy; FRAME_NONE: none */
	size_t ncopies, most;
	int error; /* the first */
};

static void
failed(struct writeback *w, int r)
{
	if (w->error == 0)
		w->error = r;
}

/* One page, now.  => busy; released on return */
static void
write_one(struct writeback *w, struct anon *an, uint64_t index)
{
	failed(w, source_write(w->p, w->o, an, index));
	/* Those of named objects are loose: who waits for one is parked. */
	page_unbusy(w->p, an, 0, 0);
}

/* The write of one page of a flight has ended.  => busy; released on return */
static void
settle(struct writeback *w, struct flight *f, unsigned i, int r)
{
	struct pager *p = w->p;
	struct anon *an = f->anon[i];
	struct page *pg = page_at(&p->pages, an->loc);

	if (f->copy[i]) {
		frame_give(&p->frames, f->frame[i], 1);
		w->ncopies--;
	}
	if (r == 0) {
		an->hash = f->hash[i];
	} else {
		/* Nobody knows what the source has. */
		pg->alone = true;
		failed(w, r);
	}
	page_unbusy(p, an, 0, 0);
}

/* One page of a flight, now. */
static void
transfer_one(struct writeback *w, struct flight *f, unsigned i)
{
	struct source *src = w->o->source;
	int r;

	do {
		swap_io_fill(w->p, &f->io, &f->frame[i], 1, SWAP_WRITE, 0);
		r = src->ops->aim(src, f->index + i, 1, true, &f->io);
		if (r != 0)
			break;
		atomic_fetch_add(&src->nwrites, 1);
		swap_io_begin(&f->io);
		while (!swap_io_step(&f->io, swap_io_transfer(&f->io, -1)))
			;
		atomic_fetch_add(&src->nwrites, 1);
	} while (f->io.result < 0 && src->ops->refused(src, &f->io));
	if (r == 0) {
		settle(w, f, i, f->io.result);
		return;
	}
	/* Less than a page, or cut off, or it fails: it is said there which. */
	if (f->copy[i]) {
		frame_give(&w->p->frames, f->frame[i], 1);
		w->ncopies--;
	}
	write_one(w, f->anon[i], f->index + i);
}

/* A flight is over; `apart`: it has not taken place.  Its pages are released. */
static void
land(struct writeback *w, struct flight *f, bool apart)
{
	const int r = f->io.result;

	/* Of several pages only one may be the cause. */
	if (!apart && r < 0)
		apart = w->o->source->ops->refused(w->o->source, &f->io) || f->n > 1;
	for (unsigned i = 0; i < f->n; i++) {
		if (apart)
			transfer_one(w, f, i);
		else
			settle(w, f, i, r);
	}
	f->next = w->free;
	w->free = f;
}

static void
wait_for_some(struct writeback *w)
{
	struct io_events ev;

	w->io->ops->wait(w->io, -1, &ev);
	while (ev.completed != NULL) {
		struct flight *f = ev.completed->owner;

		ev.completed = ev.completed->next;
		atomic_fetch_add(&w->o->source->nwrites, 1);
		land(w, f, false);
	}
}

static void
make_engine(struct writeback *w)
{
	struct pager *p = w->p;

	w->tried = true;
	if (!frames_trade(p, RING_BYTES))
		return;
	if (io_engine_uring_create(&w->io, &p->swap, -1, -1, FLIGHTS, p->workers.mask, &p->log) <
	    0) {
		w->io = NULL;
		budget_uncharge(&p->budget, RING_BYTES);
	}
}

/* Begin to write what is open; `last`: no other flight will follow. */
static void
launch(struct writeback *w, bool last)
{
	struct source *src = w->o->source;
	struct flight *f = w->open;
	int r;

	if (f == NULL)
		return;
	w->open = NULL;
	swap_io_fill(w->p, &f->io, f->frame, f->n, SWAP_WRITE, 0);
	f->io.owner = f;
	if (src->ops->aim(src, f->index, f->n, true, &f->io) != 0) {
		land(w, f, true);
		return;
	}
	atomic_fetch_add(&src->nwrites, 1);
	if (!w->tried && !last)
		make_engine(w);
	/* Through the page cache it is a copy, which is better made here than by a thread of the kernel's. */
	if (w->io != NULL && f->io.direct) {
		r = w->io->ops->submit(w->io, &f->io);
		assert(r == 0);
		(void)r;
		w->io->ops->flush(w->io);
		return;
	}
	swap_io_begin(&f->io);
	while (!swap_io_step(&f->io, swap_io_transfer(&f->io, -1)))
		;
	atomic_fetch_add(&src->nwrites, 1);
	land(w, f, false);
}

static unsigned
flying(const struct writeback *w)
{
	return w->io != NULL ? w->io->inflight : 0;
}

/* A frame for a copy.  False: there is none. */
static bool
have_spare(struct writeback *w)
{
	while (w->spare == FRAME_NONE) {
		if (w->ncopies < w->most && frames_obtain(w->p, 1, &w->spare) == 1)
			break;
		launch(w, false);
		if (flying(w) == 0)
			return w->ncopies == 0 && frames_obtain(w->p, 1, &w->spare) == 1;
		wait_for_some(w);
	}
	return true;
}

/* The flight that goes on, or begins, with the page at `index`; NULL: there is no frame for one. */
static struct flight *
flight_for(struct writeback *w, uint64_t index)
{
	struct flight *f = w->open;
	frame_t home;

	if (f != NULL && f->n < CLUSTER_MAX && f->index + f->n == index)
		return f;
	launch(w, false);
	while (w->free == NULL) {
		if (w->nflights < FLIGHTS && frames_obtain(w->p, 1, &home) == 1) {
			f = pmap_frame(w->p->pmap, home);
			f->home = home;
			f->next = NULL;
			w->free = f;
			w->nflights++;
		} else if (flying(w) == 0) {
			return NULL;
		} else {
			wait_for_some(w);
		}
	}
	f = w->free;
	w->free = f->next;
	f->index = index;
	f->n = 0;
	w->open = f;
	return f;
}

/* => busy; released, now or when it is written */
static void
add(struct writeback *w, struct anon *an, uint64_t index)
{
	struct pager *p = w->p;
	const struct page *pg = anon_in_core(an) ? page_at(&p->pages, an->loc) : NULL;
	struct flight *f;
	frame_t frame;
	uint64_t h;
	bool copy;

	if (pg == NULL || (pg->same && !pg->alone)) {
		page_unbusy(p, an, 0, 0);
		return;
	}
	copy = pg->state == PAGE_MAPPED;
	/* What has failed before goes by itself. */
	if (w->o->source->ops->aim == NULL || pg->alone || (copy && !have_spare(w))) {
		write_one(w, an, index);
		return;
	}
	frame = copy ? w->spare : pg->frame;
	if (copy && source_look(p, pg, pmap_frame(p->pmap, frame)) < 0) {
		write_one(w, an, index); /* it knows what that means */
		return;
	}
	h = hash_page(p->hash_seed, pmap_frame(p->pmap, frame));
	if (h == an->hash) {
		page_unbusy(p, an, 0, 0);
		return;
	}
	f = flight_for(w, index);
	if (f == NULL) {
		write_one(w, an, index);
		return;
	}
	if (copy) {
		w->spare = FRAME_NONE;
		w->ncopies++;
	}
	f->anon[f->n] = an;
	f->hash[f->n] = h;
	f->frame[f->n] = frame;
	f->copy[f->n++] = copy;
}

int
writeback(struct pager *p, struct object *o, uint64_t *first, uint64_t end, uint64_t until)
{
	struct writeback w = { .p = p, .o = o, .spare = FRAME_NONE };
	bool more = true;
	struct batch b;

	w.most = MIN(frames_available(p) / 2, COPIES_MAX);
	while (more && range_batch(p, o, first, end, READS_PASS, &b)) {
		for (unsigned i = 0; i < b.n; i++)
			add(&w, b.anon[i], b.leaf->base + b.at[i]);
		more = until == UINT64_MAX || now_ns() < until;
	}
	if (more)
		*first = end;
	launch(&w, true);
	while (flying(&w) > 0)
		wait_for_some(&w);
	if (w.io != NULL) {
		w.io->ops->destroy(w.io);
		budget_uncharge(&p->budget, RING_BYTES);
	}
	if (w.spare != FRAME_NONE)
		frame_give(&p->frames, w.spare, 1);
	while (w.free != NULL) {
		struct flight *f = w.free;

		w.free = f->next;
		frame_give(&p->frames, f->home, 1);
	}
	services_kick(p, NULL);
	return w.error;
}
