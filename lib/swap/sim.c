/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * sim.c: the simulated disk and its engines; sim.h says what it is for.
 *
 * A slot remembers what it holds and what it held before, so that a lost write can be told from
 * a flipped bit.  A write gathers its pages into a buffer of its own, each at its own moment, and
 * the slots change when it is reaped; a read picks up the slots at such moments and meets, when a
 * write overlaps, the old bytes or the new ones.
 *
 * Rejected: a real temporary file with an engine of pread and pwrite.  It needs no code for
 * content, but it is synchronous, and the order of completions and the moment of the copy are
 * what a pager gets wrong.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "swap/sim.h"

#define UNWRITTEN_BYTE 0xee /* read of a slot never written: not zeros, they could pass */
#define UNREAD_BYTE 0x5c    /* a read's buffer until its data comes */
#define BAD(op) (1u << (op))

#define require(cond, ...)                    \
	do {                                  \
		if (!(cond))                  \
			sim_die(__VA_ARGS__); \
	} while (0)

struct slot {
	unsigned char *now, *before; /* NULL: never written; not written twice */
	unsigned bad;		     /* BAD() bits */
};

/* A request: the engine's side of a swap_io. */
struct sim_req {
	struct sim_req *next; /* in submission order */
	struct swap_io *io;
	struct sim_engine *engine;
	bool started;
	unsigned age, delay; /* steps so far; needed */
	int err;	     /* injected */
	unsigned good;	     /* pages that an injected error lets pass */
	unsigned char *page[CLUSTER_MAX];
	unsigned dma[CLUSTER_MAX]; /* age at which the page is copied */
	bool copied[CLUSTER_MAX];
	unsigned char *gather; /* writes: what was copied */
};

struct sim_disk {
	struct sim_faults *f;
	struct slot *slot;
	size_t nslots;
	struct sim_req *req; /* of all engines */
	unsigned nengines;
	unsigned delay;
	bool held[2];		 /* by swap_op */
	unsigned lie[SIM_NLIES]; /* per mille */
	struct sim_disk_stats st;
};

struct sim_engine {
	struct io_engine engine;
	struct sim_disk *disk;
	struct sim_engine_hooks hooks;
	atomic_bool kicked;
};

static void *
must_alloc(void *p)
{
	require(p != NULL, "the test itself is out of memory");
	return p;
}

/* Content. */

static struct slot *
slot_at(struct sim_disk *d, slot_t slot)
{
	require(slot != SLOT_NONE, "disk: SLOT_NONE");
	if (slot >= d->nslots) {
		const size_t n = MAX((size_t)slot + 1, 2 * d->nslots);

		d->slot = must_alloc(realloc(d->slot, n * sizeof(d->slot[0])));
		memset(&d->slot[d->nslots], 0, (n - d->nslots) * sizeof(d->slot[0]));
		d->nslots = n;
	}
	return &d->slot[slot];
}

static void
slot_store(struct slot *sl, const unsigned char *data)
{
	unsigned char *page = sl->before;

	if (page == NULL)
		page = must_alloc(malloc(PAGE_SIZE));
	memcpy(page, data, PAGE_SIZE);
	sl->before = sl->now;
	sl->now = page;
}

static bool
same(const unsigned char *a, const unsigned char *b)
{
	return a != NULL && b != NULL && memcmp(a, b, PAGE_SIZE) == 0;
}

/* Content of some slot that differs from this one's, or NULL. */
static const unsigned char *
slot_other(struct sim_disk *d, const struct slot *sl)
{
	const size_t from = sim_below(d->f, d->nslots);

	for (size_t i = 0; i < d->nslots; i++) {
		const struct slot *o = &d->slot[(from + i) % d->nslots];

		if (o != sl && o->now != NULL && !same(o->now, sl->now))
			return o->now;
	}
	return NULL;
}

bool
sim_disk_corrupt(struct sim_disk *d, slot_t slot, enum sim_lie how)
{
	struct slot *sl = slot_at(d, slot);
	const unsigned char *with = NULL;
	uint64_t bit;

	if (sl->now == NULL)
		return false;
	switch (how) {
	case SIM_FLIP:
		bit = sim_below(d->f, PAGE_SIZE * 8);
		sl->now[bit / 8] ^= (unsigned char)(1u << bit % 8);
		d->st.lies++;
		return true;
	case SIM_STALE:
		with = same(sl->now, sl->before) ? NULL : sl->before;
		break;
	case SIM_OTHER:
		with = slot_other(d, sl);
		break;
	case SIM_NLIES:
		break;
	}
	if (with == NULL)
		return false;
	memcpy(sl->now, with, PAGE_SIZE);
	d->st.lies++;
	return true;
}

/* A page arrives on the medium, perhaps. */
static void
slot_write(struct sim_disk *d, slot_t slot, const unsigned char *data)
{
	struct slot *sl = slot_at(d, slot);

	if (sim_chance(d->f, d->lie[SIM_STALE])) {
		if (!same(sl->now, data))
			d->st.lies++;
		return;
	}
	slot_store(sl, data);
	if (sim_chance(d->f, d->lie[SIM_FLIP]))
		sim_disk_corrupt(d, slot, SIM_FLIP);
	else if (sim_chance(d->f, d->lie[SIM_OTHER]))
		sim_disk_corrupt(d, slot, SIM_OTHER);
}

/* Requests. */

static void
req_copy(struct sim_disk *d, struct sim_req *r, unsigned i)
{
	if (r->copied[i])
		return;
	r->copied[i] = true;
	if (r->io->op == SWAP_WRITE) {
		memcpy(r->gather + i * PAGE_SIZE, r->page[i], PAGE_SIZE);
	} else {
		const unsigned char *now = slot_at(d, r->io->slot + i)->now;

		if (now != NULL)
			memcpy(r->page[i], now, PAGE_SIZE);
		else
			memset(r->page[i], UNWRITTEN_BYTE, PAGE_SIZE);
	}
}

/* Copy what is to be copied by now. */
static void
req_dma(struct sim_disk *d, struct sim_req *r)
{
	for (unsigned i = 0; i < r->io->n; i++)
		if (r->dma[i] <= r->age)
			req_copy(d, r, i);
}

/* How it ends: the result, and in *good how many pages of it are sound. */
static int
req_result(struct sim_disk *d, const struct sim_req *r, unsigned *good)
{
	*good = r->good;
	for (unsigned i = 0; i < *good; i++) {
		if (slot_at(d, r->io->slot + i)->bad & BAD(r->io->op)) {
			*good = i;
			return -EIO;
		}
	}
	return r->err;
}

/* Take effect, give the frames back, and forget the request. */
static void
req_finish(struct sim_disk *d, struct sim_req *r)
{
	struct sim_engine *e = r->engine;
	struct swap_io *io = r->io;
	unsigned good;

	io->result = req_result(d, r, &good);
	for (unsigned i = 0; i < io->n; i++) {
		if (i < good)
			req_copy(d, r, i);
		if (i < good && io->op == SWAP_WRITE)
			slot_write(d, io->slot + i, r->gather + i * PAGE_SIZE);
		if (i >= good && io->op == SWAP_READ)
			memset(r->page[i], UNREAD_BYTE, PAGE_SIZE);
		if (e->hooks.unpin != NULL)
			e->hooks.unpin(e->hooks.ctx, r->page[i]);
	}
	io->done = good * PAGE_SIZE;
	for (unsigned i = 0; i < io->niov; i++) {
		io->iov[i].iov_base = (char *)io->iov[i].iov_base + io->iov[i].iov_len;
		io->iov[i].iov_len = 0;
	}
	if (io->op == SWAP_READ)
		d->st.reads++;
	else
		d->st.writes++;
	if (io->result != 0)
		d->st.errors++;
	else if (io->op == SWAP_READ)
		d->st.read_pages += io->n;
	else
		d->st.written_pages += io->n;
	e->engine.inflight--;
	free(r->gather);
	free(r);
}

static void
check_overlap(const struct sim_disk *d, const struct swap_io *io)
{
	for (const struct sim_req *r = d->req; r != NULL; r = r->next)
		require(r->io->op != SWAP_WRITE || io->op != SWAP_WRITE ||
				r->io->slot >= io->slot + io->n ||
				io->slot >= r->io->slot + r->io->n,
			"disk: write of slots %u + %u while a write of %u + %u is in flight",
			io->slot, io->n, r->io->slot, r->io->n);
}

/* Note where each page of the request is. */
static void
req_pages(struct sim_req *r, const struct swap_io *io)
{
	unsigned n = 0;

	for (unsigned i = 0; i < io->niov; i++) {
		unsigned char *base = io->iov[i].iov_base;
		const size_t len = io->iov[i].iov_len;

		require(((uintptr_t)base & PAGE_MASK) == 0 && (len & PAGE_MASK) == 0 && len > 0,
			"disk: iovec %u is not whole pages", i);
		for (size_t off = 0; off < len; off += PAGE_SIZE) {
			require(n < io->n, "disk: iovecs for more than %u pages", io->n);
			r->page[n++] = base + off;
		}
	}
	require(n == io->n, "disk: iovecs for %u pages, not %u", n, io->n);
}

/* io_engine_ops. */

static struct sim_engine *
to_sim(struct io_engine *e)
{
	return container_of(e, struct sim_engine, engine);
}

static int
engine_submit(struct io_engine *eng, struct swap_io *io)
{
	struct sim_engine *e = to_sim(eng);
	struct sim_disk *d = e->disk;
	struct sim_req *r, **last = &d->req;

	require(io->n >= 1 && io->n <= CLUSTER_MAX && io->niov >= 1 && io->niov <= CLUSTER_MAX,
		"disk: %u pages in %u iovecs", io->n, io->niov);
	require(io->slot <= SLOT_NONE - io->n, "disk: slots %u + %u", io->slot, io->n);
	if (eng->inflight == eng->depth)
		return -EBUSY;
	check_overlap(d, io);

	r = must_alloc(calloc(1, sizeof(*r)));
	r->io = io;
	r->engine = e;
	req_pages(r, io);
	r->err = sim_inject(d->f, io->op == SWAP_READ ? SIM_READ : SIM_WRITE);
	r->good = r->err == 0 ? io->n : (unsigned)sim_below(d->f, io->n);
	r->delay = (unsigned)sim_below(d->f, d->delay + 1u);
	if (io->op == SWAP_WRITE)
		r->gather = must_alloc(malloc(io->n * PAGE_SIZE));
	for (unsigned i = 0; i < io->n; i++) {
		r->dma[i] = (unsigned)sim_below(d->f, r->delay + 1u);
		if (e->hooks.pin != NULL)
			e->hooks.pin(e->hooks.ctx, r->page[i]);
		if (io->op == SWAP_READ)
			memset(r->page[i], UNREAD_BYTE, PAGE_SIZE);
	}
	while (*last != NULL)
		last = &(*last)->next;
	*last = r;
	eng->inflight++;
	return 0;
}

static void
engine_flush(struct io_engine *eng)
{
	struct sim_engine *e = to_sim(eng);

	for (struct sim_req *r = e->disk->req; r != NULL; r = r->next) {
		if (r->engine == e && !r->started) {
			r->started = true;
			req_dma(e->disk, r);
		}
	}
}

/* True if a request of this engine will be reaped some day without outside help. */
static bool
engine_moves(const struct sim_engine *e)
{
	for (const struct sim_req *r = e->disk->req; r != NULL; r = r->next)
		if (r->engine == e && !e->disk->held[r->io->op])
			return true;
	return false;
}

/* Unlink the kth due request of this engine, or return NULL; *ndue counts them. */
static struct sim_req *
engine_due(struct sim_engine *e, size_t k, size_t *ndue)
{
	struct sim_req **link = &e->disk->req, *r;
	size_t n = 0;

	for (; (r = *link) != NULL; link = &r->next) {
		if (r->engine != e || r->age <= r->delay || e->disk->held[r->io->op])
			continue;
		if (n++ == k && ndue == NULL) {
			*link = r->next;
			return r;
		}
	}
	if (ndue != NULL)
		*ndue = n;
	return NULL;
}

/* One step: everything in flight gets older, and what is due is reaped in random order. */
static void
engine_step(struct sim_engine *e, struct io_events *ev)
{
	struct sim_disk *d = e->disk;
	struct swap_io **last = &ev->completed;
	size_t ndue;

	for (struct sim_req *r = d->req; r != NULL; r = r->next) {
		if (r->engine == e && r->age <= r->delay) {
			req_dma(d, r);
			r->age++;
		}
	}
	for (engine_due(e, 0, &ndue); ndue > 0; ndue--) {
		struct sim_req *r = engine_due(e, sim_below(d->f, ndue), NULL);
		struct swap_io *io = r->io;

		req_finish(d, r);
		io->next = NULL;
		*last = io;
		last = &io->next;
	}
}

static void
engine_wait(struct io_engine *eng, int64_t timeout_ns, struct io_events *ev)
{
	struct sim_engine *e = to_sim(eng);

	*ev = (struct io_events){ .completed = NULL };
	engine_flush(eng);
	do {
		engine_step(e, ev);
		ev->kicked = atomic_exchange(&e->kicked, false);
		ev->readable = e->hooks.readable != NULL &&
			       e->hooks.readable(e->hooks.ctx, e->hooks.shard);
	} while (timeout_ns < 0 && ev->completed == NULL && !ev->kicked && !ev->readable &&
		 engine_moves(e));
}

static void
engine_kick(struct io_engine *eng)
{
	atomic_store(&to_sim(eng)->kicked, true);
}

static void
engine_destroy(struct io_engine *eng)
{
	struct sim_engine *e = to_sim(eng);

	require(eng->inflight == 0, "disk: engine destroyed with %u requests in flight",
		eng->inflight);
	e->disk->nengines--;
	free(e);
}

static const struct io_engine_ops sim_ops = {
	.submit = engine_submit,
	.flush = engine_flush,
	.wait = engine_wait,
	.kick = engine_kick,
	.destroy = engine_destroy,
};

int
io_engine_sim_create(struct io_engine **eng, struct sim_disk *d, unsigned depth,
		     const struct sim_engine_hooks *hooks)
{
	struct sim_engine *e = calloc(1, sizeof(*e));

	*eng = NULL;
	if (e == NULL)
		return -ENOMEM;
	e->engine.ops = &sim_ops;
	e->engine.depth = depth;
	e->disk = d;
	if (hooks != NULL)
		e->hooks = *hooks;
	d->nengines++;
	*eng = &e->engine;
	return 0;
}

/* The disk. */

int
sim_disk_create(struct sim_disk **disk, struct sim_faults *f)
{
	struct sim_disk *d = calloc(1, sizeof(*d));

	*disk = d;
	if (d == NULL)
		return -ENOMEM;
	d->f = f;
	d->delay = 3;
	return 0;
}

void
sim_disk_destroy(struct sim_disk *d)
{
	if (d == NULL)
		return;
	require(d->nengines == 0, "disk: destroyed with %u engines on it", d->nengines);
	for (size_t i = 0; i < d->nslots; i++) {
		free(d->slot[i].now);
		free(d->slot[i].before);
	}
	free(d->slot);
	free(d);
}

void
sim_disk_delay(struct sim_disk *d, unsigned max)
{
	d->delay = max;
}

void
sim_disk_hold(struct sim_disk *d, enum swap_op op)
{
	d->held[op] = true;
}

void
sim_disk_release(struct sim_disk *d, enum swap_op op)
{
	d->held[op] = false;
}

void
sim_disk_bad(struct sim_disk *d, slot_t slot, enum swap_op op, bool bad)
{
	struct slot *sl = slot_at(d, slot);

	sl->bad = bad ? sl->bad | BAD(op) : sl->bad & ~BAD(op);
}

void
sim_disk_lie(struct sim_disk *d, enum sim_lie how, unsigned permille)
{
	require(how < SIM_NLIES, "disk: no such lie");
	d->lie[how] = permille;
}

const void *
sim_disk_peek(struct sim_disk *d, slot_t slot)
{
	return slot_at(d, slot)->now;
}

void
sim_disk_stats(struct sim_disk *d, struct sim_disk_stats *st)
{
	*st = d->st;
}
