/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_random.c: random operations on a runtime over the simulated kernel, against a plain array.
 *
 *	random [--seconds N] [--seed S] [--rounds R] [--verbose]
 *
 * A round is one runtime with a budget of its own choosing and some way in which kernel and disk misbehave
 * (none; EAGAIN, EEXIST, ENOMEM and partial batches; a disk that fails or lies; messages twice, late and
 * out of order).  Simulated threads touch pages, several faults being under way at any moment, while regions
 * are mapped, unmapped, protected, advised, discarded, synced, cloned, brought in, wired, and made longer and shorter, and
 * objects have their snapshot taken.  An oracle knows the first word of every page, and how often it is wired.
 *
 * Objects are mapped in one place a page, or with UP_MULTI in several, all parts of them and with other protections: what is written
 * in one place has to be read in the others.  Children are forked, of us and of each other, with copies and with shares of what there is;
 * they touch it as we do, and end at any time.
 *
 * Named objects have a pager that keeps two words a page, may be slow, out of order and failing, sits on what it is to read while a range
 * is unmapped, discarded, moved or cloned, answers what was cancelled with rubbish, and refuses what no pager should
 * ever see: two requests at once for a page of which one is a write, another page's bytes.
 *
 * Where the disk is honest every read must return the oracle's word.  Where it is not, SIGBUS is allowed as
 * well, but a wrong word never.  After every round everything is counted back to zero.  A failure
 * prints the seed that makes it happen again: --seed S --rounds 1.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rig.h"

#define REGIONS 10
#define CHILDREN 3
#define ALL_REGIONS (REGIONS * (1 + CHILDREN))
#define OBJECTS 4
#define NAMED 2
#define KEPT_MAX 256
#define THREADS 16
#define OPS 6000

struct world;

/* A named object: what its pager has, and what a shared mapping has to read. */
struct named {
	struct world *w;
	struct up_object *object; /* NULL: none */
	size_t npages;
	bool readonly; /* can not be written to */
	bool multi;    /* its shared mappings are, if there are any */
	uint64_t *
		disk; /* two words a page: the one that the oracle knows, and whose page it is, or 0 */
	uint64_t *word;		/* what a shared mapping must read */
	uint64_t *highest;	/* the highest word that was ever in this page */
	bool *zeroed;		/* it was zeros at some time */
	bool *absent;		/* the pager has no such page yet */
	unsigned char *writing; /* page-outs under way */
};

/* A request that the pager has not completed yet. */
struct kept {
	struct named *nm;
	struct up_request *req;
	bool out, early; /* early: the bytes have been moved */
	bool unwanted;	 /* nobody wants it any more: what it reads must not be seen */
	uint64_t bytes[2 * CLUSTER_MAX];
};

/* An anonymous object that is mapped shared, or was. */
struct shared {
	uint64_t *word;		  /* NULL: none */
	struct up_object *object; /* NULL: we have let go of it */
	size_t npages;
	bool readonly; /* a snapshot */
	bool noreserve;
	bool multi; /* its mappings are, if there are any */
};

/* Ours, or a child's: then it has the place in the table that the one has which it comes from, among those of the child. */
struct region {
	uintptr_t va; /* 0: none */
	size_t npages;
	uint64_t **cell; /* where it says what the first word of each page must be */
	uint64_t *own;	 /* those cells that are no object's */
	const uint64_t
		*base; /* of shared mappings: all cells of the object, ours are from `first` on */
	unsigned char *prot; /* PROT_*, or GONE */
	unsigned char *wired;
	unsigned char *inherit;
	struct child *child; /* whose; NULL: ours */
	struct shared *sh;   /* maps this one shared, from page `first` on */
	bool readonly;	     /* can not be written to */
	bool parted;	     /* a clone, or has been cloned: may be in a chain */
	bool noreserve;	     /* overcommitted: SIGBUS when the swap is full */
	struct named *
		nm; /* maps this one, from page `first` on; private: cells have the lowest possible */
	size_t first;
	bool shared; /* a named object's, and shared */
	bool *mine;  /* private mappings of named objects: written to, so the cell is exact */
};
#define GONE 0xff

/* A forked child. */
struct child {
	struct space *sp; /* NULL: none */
	bool runs;
};

/* A touch that has begun and may be waiting. */
struct touch {
	bool active, write;
	bool any; /* the range changed under it: no expectation */
	struct region *rg;
	size_t page;
	uint64_t word;
};

struct world {
	struct rig *r;
	uint64_t seed;
	struct region rg[ALL_REGIONS]; /* ours first */
	struct shared sh[OBJECTS];
	struct child child[CHILDREN];
	struct touch touch[THREADS];
	struct named nm[NAMED];
	struct kept kept[KEPT_MAX];
	unsigned nkept;
	bool slow, fail_in, fail_out; /* what pagers do */
	bool pinning;		      /* the kernel refuses pages now and then */
	bool calling; /* inside of a call, which may wait for a page-out: those are answered at once */
	bool sitting; /* and page-ins are not answered at all: the call may not wait for one */
	unsigned sat; /* turns since then */
	unsigned ndestroyed;
	uint64_t ncancelled;
	bool denied;	 /* there was no metadata for a page that none was reserved for */
	bool lossy;	 /* SIGBUS is allowed */
	uint64_t serial; /* every word written is different */
	bool pools;	 /* this kernel has them */
	uint64_t ops, verified, sigbus, nforks, nmulti;
	uint64_t nlimits;
};

static bool verbose;

static void __attribute__((noreturn, format(printf, 2, 3)))
fail(struct world *w, const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "random: FAILED after %" PRIu64 " operations: ", w->ops);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\nrandom: again with: --seed %" PRIu64 " --rounds 1\n", w->seed);
	if (w->r->rt != NULL) {
		up_stats_print(w->r->rt, stderr);
		up_trace_print(w->r->rt, stderr);
	}
	abort();
}

static uint64_t
below(struct world *w, uint64_t n)
{
	return sim_below(&w->r->f, n);
}

/* --- the pager --- */

#define IDENTITY(nm, page) (((uint64_t)(nm)->npages << 32 | (page)) ^ UINT64_C(0x9e3779b97f4a7c15))

static void
carry(struct kept *k, bool late)
{
	struct named *nm = k->nm;
	const size_t first = up_request_offset(k->req) / PAGE_SIZE;
	const size_t n = (up_request_length(k->req) + PAGE_MASK) / PAGE_SIZE;
	char *buffer = up_request_buffer(k->req);

	for (size_t i = 0; i < n; i++) {
		uint64_t *page = (uint64_t *)(buffer + i * PAGE_SIZE),
			 *disk = &nm->disk[2 * (first + i)];

		if (!k->out && !k->early)
			memcpy(&k->bytes[2 * i], disk, 16);
		if (k->out && page[1] != 0 && page[1] != IDENTITY(nm, first + i))
			fail(nm->w, "the pager was given another page's bytes for %zu", first + i);
		if (!k->out && late) {
			memset(page, 0, MIN(PAGE_SIZE, up_request_length(k->req) - i * PAGE_SIZE));
			memcpy(page, &k->bytes[2 * i], 16);
		}
		if (k->out) {
			memcpy(disk, page, 16);
			nm->absent[first + i] = false;
		}
	}
}

static void
complete(struct world *w, unsigned i)
{
	struct kept k = w->kept[i];
	const size_t first = up_request_offset(k.req) / PAGE_SIZE;
	const size_t n = (up_request_length(k.req) + PAGE_MASK) / PAGE_SIZE;
	const bool bad = (k.out ? w->fail_out : w->fail_in) && below(w, 20) == 0;

	w->kept[i] = w->kept[--w->nkept];
	if (k.unwanted && below(w, 2) == 0)
		memset(up_request_buffer(k.req), 0x5a, up_request_length(k.req));
	else if (!bad)
		carry(&k, true);
	for (size_t at = 0; at < n && k.out; at++)
		k.nm->writing[first + at]--;
	up_request_complete(k.req, bad ? -EIO : 0);
}

static int
request(struct named *nm, struct up_request *req, bool out)
{
	struct world *w = nm->w;
	const size_t first = up_request_offset(req) / PAGE_SIZE;
	const size_t n = (up_request_length(req) + PAGE_MASK) / PAGE_SIZE;
	struct kept *k = &w->kept[w->nkept];

	if (up_request_offset(req) % PAGE_SIZE != 0 || n == 0 || first + n > nm->npages)
		fail(w, "the pager was asked for %zu pages at %zu", n, first);
	if ((out ? w->fail_out : w->fail_in) && below(w, 20) == 0)
		return -EIO;
	for (size_t i = 0; i < n; i++) {
		if (!out && nm->absent[first + i])
			fail(w, "the pager was asked for page %zu, which it has not", first + i);
		if (nm->writing[first + i] > 0)
			fail(w, "a page-%s of %zu overtakes a page-out", out ? "out" : "in",
			     first + i);
		nm->writing[first + i] += out;
	}
	if (w->nkept == KEPT_MAX)
		fail(w, "the pager has too many requests");
	*k = (struct kept){ .nm = nm, .req = req, .out = out };
	if (below(w, 2) == 0) {
		carry(k, false);
		k->early = true;
	}
	w->nkept++;
	if (w->sitting && !out)
		return 0;
	if (!w->slow || (w->calling && out) || below(w, 4) == 0)
		complete(w, w->nkept - 1);
	return 0;
}

static int
page_in(void *ctx, struct up_request *req)
{
	return request(ctx, req, false);
}

static int
page_out(void *ctx, struct up_request *req)
{
	return request(ctx, req, true);
}

/* Some answer at once, the others when it suits them. */
static void
cancel(void *ctx, struct up_request *req)
{
	struct named *nm = ctx;
	struct world *w = nm->w;

	w->ncancelled++;
	for (unsigned i = 0; i < w->nkept; i++) {
		if (w->kept[i].req != req)
			continue;
		if (w->kept[i].out || w->kept[i].unwanted || w->kept[i].nm != nm)
			fail(w, "a request was cancelled that is none, or twice");
		w->kept[i].unwanted = true;
		if (below(w, 2) == 0)
			complete(w, i);
		return;
	}
}

/* Pages come to be when they are written; none ever goes. */
static int
has_page(void *ctx, uint64_t offset, size_t *before, size_t *after)
{
	struct named *nm = ctx;
	const size_t page = offset / PAGE_SIZE;
	size_t first = page, end = page + 1;

	if (page >= nm->npages || offset % PAGE_SIZE != 0)
		fail(nm->w, "the pager was asked whether it has page %zu", page);
	if (nm->w->fail_in && below(nm->w, 40) == 0)
		return -EIO;
	while (first > 0 && nm->absent[first - 1] == nm->absent[page])
		first--;
	while (end < nm->npages && nm->absent[end] == nm->absent[page])
		end++;
	*before = below(nm->w, page - first + 1) * PAGE_SIZE;
	*after = below(nm->w, end - page) * PAGE_SIZE;
	return !nm->absent[page];
}

static void
destroyed(void *ctx)
{
	struct named *nm = ctx;

	for (unsigned i = 0; i < nm->w->nkept; i++) {
		if (nm->w->kept[i].nm == nm)
			fail(nm->w, "destroyed with a request under way");
	}
	nm->w->ndestroyed++;
}

/* One turn of everybody; the pager's thread gets its turn now and then. */
static void
step(struct world *w)
{
	while (w->nkept > 0 && below(w, 12) == 0) {
		const unsigned i = (unsigned)below(w, w->nkept);

		if (!w->sitting || w->kept[i].out)
			complete(w, i);
	}
	if (w->sitting && ++w->sat > RIG_PATIENCE)
		fail(w, "a call waits for a page-in that is not answered");
	rig_step(w->r);
}

static void
idle(void *ctx)
{
	step(ctx);
}

static void
settle(struct world *w)
{
	w->calling = true;
	while (w->nkept > 0)
		complete(w, 0);
	rig_settle(w->r);
	w->calling = false;
}

/* --- touches --- */

/* A private page that was not written to shows what the object has, or had at some time since `word`. */
static bool
plausible(const struct region *rg, size_t page, uint64_t got)
{
	const struct named *nm = rg->nm;

	if (nm == NULL || rg->shared || rg->mine[page])
		return got == *rg->cell[page];
	if (got == 0)
		return nm->zeroed[rg->first + page];
	return got >= *rg->cell[page] && got <= nm->highest[rg->first + page];
}

static void
written(struct region *rg, size_t page, uint64_t word)
{
	*rg->cell[page] = word;
	if (rg->nm == NULL)
		return;
	if (!rg->shared) {
		/* To store what is there already does not make it the mapping's own, and zeros may be there. */
		rg->mine[page] = word != 0 || !rg->nm->zeroed[rg->first + page];
		return;
	}
	rg->nm->zeroed[rg->first + page] |= word == 0;
	rg->nm->highest[rg->first + page] = MAX(rg->nm->highest[rg->first + page], word);
}

static void __attribute__((noreturn))
misread(struct world *w, const struct region *rg, size_t page, uint64_t got)
{
	const struct named *nm = rg->nm;
	const size_t i = rg->first + page;

	if (nm == NULL)
		fail(w, "page %zu of %#lx: read %#" PRIx64 ", not %#" PRIx64 "%s", page,
		     (unsigned long)rg->va, got, *rg->cell[page], rg->parted ? " (parted)" : "");
	fail(w,
	     "page %zu of %#lx, page %zu of a named object, %s%s: read %#" PRIx64 ", not %#" PRIx64
	     "; the object has %#" PRIx64 ", its pager %#" PRIx64 ", highest %#" PRIx64,
	     page, (unsigned long)rg->va, i,
	     rg->shared	      ? "shared"
	     : rg->mine[page] ? "private, written"
			      : "private",
	     rg->parted ? ", parted" : "", got, *rg->cell[page], nm->word[i], nm->disk[2 * i],
	     nm->highest[i]);
}

/* True if a page of a named object is mapped shared. */
static bool
named_reached(const struct world *w, const struct named *nm, size_t index)
{
	for (unsigned k = 0; k < ALL_REGIONS; k++) {
		const struct region *rg = &w->rg[k];

		if (rg->va != 0 && rg->nm == nm && rg->shared && index >= rg->first &&
		    index - rg->first < rg->npages && rg->prot[index - rg->first] != GONE &&
		    rg->cell[index - rg->first] == &nm->word[index])
			return true;
	}
	return false;
}

static void
judge(struct world *w, struct touch *t, enum sim_result res, uint64_t got)
{
	struct region *rg = t->rg;
	const unsigned need = t->write ? PROT_WRITE : PROT_READ | PROT_WRITE;

	t->active = false;
	if (t->any)
		return;
	switch (res) {
	case SIM_OK:
		if (rg->prot[t->page] == GONE || (rg->prot[t->page] & need) == 0)
			fail(w, "page %zu of %#lx: access was not allowed", t->page,
			     (unsigned long)rg->va);
		if (t->write)
			written(rg, t->page, t->word);
		else if (!plausible(rg, t->page, got))
			misread(w, rg, t->page, got);
		w->verified++;
		break;
	case SIM_SIGBUS:
		/* Shared mappings of named objects reserve no metadata; it says so when there was none left. */
		w->denied |= rig_logged(w->r, "no metadata left within the limit");
		if (!w->lossy && !rg->noreserve && !(rg->shared && w->denied) &&
		    !(rg->nm != NULL && w->fail_in))
			fail(w, "page %zu of %#lx: SIGBUS on an honest disk", t->page,
			     (unsigned long)rg->va);
		w->sigbus++;
		break;
	default:
		if (rg->prot[t->page] != GONE && (rg->prot[t->page] & need) != 0)
			fail(w, "page %zu of %#lx: SIGSEGV", t->page, (unsigned long)rg->va);
		break;
	}
}

/* Go on with thread t's touch; true if it is through. */
static bool
advance(struct world *w, unsigned thread)
{
	struct touch *t = &w->touch[thread];
	/* Zeros: all of the page that is not zeros anyway. */
	uint64_t words[2] = { t->word };
	enum sim_result res;
	const uintptr_t va = t->rg->va + t->page * PAGE_SIZE;
	const size_t len = t->write && t->word != 0 ? 8 : 16;

	if (t->rg->child != NULL)
		res = sim_touch_in(w->r->pm, t->rg->child->sp->shard, thread, va, t->write, words,
				   0, len);
	else
		res = rig_try_touch(w->r, thread, va, t->write, words, 0, len);
	if (res == SIM_FAULT)
		return false;
	if (res == SIM_OK && !t->write && !t->any && words[1] != 0 &&
	    (t->rg->nm == NULL || words[1] != IDENTITY(t->rg->nm, t->rg->first + t->page)))
		fail(w, "page %zu of %#lx: it is another page", t->page, (unsigned long)t->rg->va);
	judge(w, t, res, words[0]);
	return true;
}

static void
finish(struct world *w, unsigned thread)
{
	for (unsigned steps = 0; w->touch[thread].active && !advance(w, thread); steps++) {
		if (steps > RIG_PATIENCE)
			fail(w, "thread %u: fault at page %zu of %#lx is not served (stranded: %d)",
			     thread, w->touch[thread].page, (unsigned long)w->touch[thread].rg->va,
			     sim_stranded(w->r->pm));
		step(w);
	}
}

static void
begin(struct world *w, unsigned thread, struct region *rg)
{
	struct touch *t = &w->touch[thread];
	size_t page = below(w, rg->npages);

	/* Write back, change, write back: for that pages must be touched again and again. */
	if (rg->shared && below(w, 4) != 0)
		page = below(w, MIN(rg->npages, 150));
	/* Or in several places. */
	if (rg->sh != NULL && below(w, 2) == 0 && rg->first < 100)
		page = below(w, MIN(rg->npages, 100 - rg->first));
	/* A third of the touches run through neighbouring pages, so that read-ahead has work. */
	if (t->rg == rg && below(w, 3) == 0)
		page = (t->page + 1) % rg->npages;
	/* One touch a page: who is first is not ours to predict. */
	for (unsigned i = 0; i < THREADS; i++) {
		if (w->touch[i].active && w->touch[i].rg->cell[w->touch[i].page] == rg->cell[page])
			return;
	}
	if (rg->prot[page] == GONE || (rg->child != NULL && !rg->child->runs))
		return;
	*t = (struct touch){ .active = true, .write = below(w, 2) == 0, .rg = rg, .page = page };
	t->word = t->write ? (below(w, 8) == 0 ? 0 : ++w->serial) : 0;
	advance(w, thread);
}

static bool
wired_any(const struct region *rg, size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++) {
		if (rg->wired[i] > 0)
			return true;
	}
	return false;
}

/* Where another region has the page, if it has. */
static bool
same_page(const struct region *a, size_t page, const struct region *b, size_t *other)
{
	const size_t index = a->first + page;

	if (b->va == 0 || a->base == NULL || a->base != b->base || index < b->first ||
	    index - b->first >= b->npages)
		return false;
	*other = index - b->first;
	return b->prot[*other] != GONE && a->cell[page] == b->cell[*other];
}

/* True if some region, of ours or a child's, maps the page. */
static bool
reached(const struct world *w, const struct region *rg, size_t page)
{
	size_t other;

	for (unsigned k = 0; k < ALL_REGIONS; k++) {
		if (same_page(rg, page, &w->rg[k], &other))
			return true;
	}
	return false;
}

/* True if a page of the range is wired, in this place or another. */
static bool
held_any(const struct world *w, const struct region *rg, size_t first, size_t n)
{
	size_t other;

	if (wired_any(rg, first, n))
		return true;
	for (unsigned k = 0; k < REGIONS && rg->base != NULL; k++) {
		for (size_t i = first; i < first + n; i++) {
			if (same_page(rg, i, &w->rg[k], &other) && w->rg[k].wired[other] > 0)
				return true;
		}
	}
	return false;
}

/* True if a page of the object is wired that this region maps shared; of another one, if one of the region is. */
static bool
object_wired(const struct world *w, const struct region *rg)
{
	if (rg->base == NULL)
		return wired_any(rg, 0, rg->npages);
	for (unsigned k = 0; k < REGIONS; k++) {
		const struct region *o = &w->rg[k];

		if (o->va != 0 && o->base == rg->base && wired_any(o, 0, o->npages))
			return true;
	}
	return false;
}

/* A touch of a page in this range, in whatever place. */
static bool
touches(const struct touch *t, const struct region *rg, size_t first, size_t n)
{
	if (!t->active)
		return false;
	if (t->rg == rg)
		return t->page >= first && t->page < first + n;
	if (rg->base == NULL || t->rg->base != rg->base)
		return false;
	for (size_t i = first; i < first + n; i++) {
		if (rg->cell[i] == t->rg->cell[t->page])
			return true;
	}
	return false;
}

static bool
wired_all(const struct region *rg, size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++) {
		if (rg->wired[i] == 0)
			return false;
	}
	return true;
}

/* Writes under way in the range end first; reads go on, with no expectation. */
static void
settle_range(struct world *w, const struct region *rg, size_t first, size_t n)
{
	for (unsigned i = 0; i < THREADS; i++) {
		struct touch *t = &w->touch[i];

		if (!touches(t, rg, first, n))
			continue;
		if (t->write)
			finish(w, i);
		else
			t->any = true;
	}
}

/* --- operations --- */

/* During the call that follows the pagers answer no page-in, most often. */
static void
sit(struct world *w)
{
	w->sitting = below(w, 4) != 0;
	w->sat = 0;
}

/* A place in the table, or NULL. */
static struct region *
vacant(struct world *w)
{
	struct region *rg = NULL;

	for (unsigned i = 0; i < REGIONS && rg == NULL; i++) {
		if (w->rg[i].va == 0)
			rg = &w->rg[i];
	}
	for (unsigned i = 0; i < THREADS && rg != NULL; i++) { /* none still points here */
		if (w->touch[i].rg == rg) {
			finish(w, i);
			w->touch[i].rg = NULL;
		}
	}
	return rg;
}

/* The arrays of a region, for so many pages; what is new of them is zeros. */
static void
region_grow(struct world *w, struct region *rg, size_t old, size_t npages)
{
	const size_t n = MAX(npages, 1);
	const uint64_t *before = rg->own;

	rg->own = realloc(rg->own, n * sizeof *rg->own);
	rg->cell = realloc(rg->cell, n * sizeof *rg->cell);
	rg->prot = realloc(rg->prot, n);
	rg->wired = realloc(rg->wired, n);
	rg->inherit = realloc(rg->inherit, n);
	rg->mine = realloc(rg->mine, n * sizeof *rg->mine);
	if (rg->own == NULL || rg->cell == NULL || rg->prot == NULL || rg->wired == NULL ||
	    rg->inherit == NULL || rg->mine == NULL)
		fail(w, "out of memory");
	for (size_t i = 0; i < MIN(old, npages) && rg->own != before; i++) {
		if (rg->base == NULL)
			rg->cell[i] = &rg->own[i];
	}
	for (size_t i = old; i < npages; i++) {
		rg->own[i] = 0;
		rg->cell[i] = &rg->own[i];
		if (rg->sh != NULL)
			rg->cell[i] = &rg->sh->word[rg->first + i];
		else if (rg->shared)
			rg->cell[i] = &rg->nm->word[rg->first + i];
		rg->prot[i] = rg->readonly ? PROT_READ : PROT_READ | PROT_WRITE;
		rg->wired[i] = rg->inherit[i] = rg->mine[i] = 0;
	}
}

/* The region has pages [first, ...) of `like`, what the object has, or zeros. */
static void
settle_in(struct world *w, struct region *rg, void *p, const struct region *like, size_t first)
{
	struct named *nm = rg->nm;

	rg->va = (uintptr_t)p;
	if (rg->sh != NULL)
		rg->base = rg->sh->word;
	else if (rg->shared)
		rg->base = nm->word;
	region_grow(w, rg, 0, rg->npages);
	if (nm != NULL && !rg->shared)
		memcpy(rg->own, nm->word + rg->first, rg->npages * sizeof *rg->own);
	for (size_t i = 0; i < rg->npages && like != NULL; i++) {
		rg->mine[i] = like->mine[first + i];
		rg->own[i] = *like->cell[first + i];
		rg->prot[i] = like->prot[first + i];
		/* A copy is no part of what is shared. */
		rg->inherit[i] = like->inherit[first + i] != UP_INHERIT_NONE ? UP_INHERIT_COPY
									     : UP_INHERIT_NONE;
	}
}

/* Nothing is mapped there any more. */
static void
region_free(struct region *rg)
{
	free(rg->own);
	free(rg->cell);
	free(rg->prot);
	free(rg->mine);
	free(rg->wired);
	free(rg->inherit);
	*rg = (struct region){ 0 };
}

static void
named_create(struct world *w, struct named *nm)
{
	struct up_pager_ops ops = {
		.size = sizeof ops,
		.page_in = page_in,
		.page_out = page_out,
		.destroy = destroyed,
		.cancel = below(w, 4) == 0 ? NULL : cancel,
		.has_page = below(w, 2) == 0 ? NULL : has_page,
	};
	const unsigned tail = (unsigned)below(w, 2) * (16 + (unsigned)below(w, 4000));
	int r;

	*nm = (struct named){ .w = w, .npages = 2 + below(w, 1500), .readonly = below(w, 5) == 0 };
	if (nm->readonly)
		ops.page_out = NULL;
	r = up_object_create_custom(w->r->rt,
				    nm->npages * PAGE_SIZE - (tail > 0 ? PAGE_SIZE - tail : 0),
				    &ops, nm, &nm->object);
	if (r == -ENOMEM) {
		nm->object = NULL;
		return;
	}
	if (r < 0)
		fail(w, "up_object_create_custom: %s", strerrorname_np(-r));
	nm->disk = calloc(nm->npages, 2 * sizeof *nm->disk);
	nm->word = calloc(nm->npages, sizeof *nm->word);
	nm->highest = calloc(nm->npages, sizeof *nm->highest);
	nm->zeroed = calloc(nm->npages, sizeof *nm->zeroed);
	nm->absent = calloc(nm->npages, sizeof *nm->absent);
	nm->writing = calloc(nm->npages, 1);
	if (nm->disk == NULL || nm->word == NULL || nm->highest == NULL || nm->zeroed == NULL ||
	    nm->writing == NULL || nm->absent == NULL)
		fail(w, "out of memory");
	for (size_t i = 0; i < nm->npages; i++) {
		/* In runs of both kinds. */
		nm->absent[i] = ops.has_page != NULL &&
				(i > 0 && below(w, 8) != 0 ? nm->absent[i - 1] : below(w, 2));
		if (nm->absent[i]) {
			nm->zeroed[i] = true;
			continue;
		}
		nm->disk[2 * i] = nm->word[i] = nm->highest[i] = ++w->serial;
		nm->disk[2 * i + 1] = IDENTITY(nm, i);
	}
}

static void
named_destroy(struct named *nm)
{
	up_object_unref(nm->object);
	free(nm->disk);
	free(nm->word);
	free(nm->highest);
	free(nm->zeroed);
	free(nm->writing);
	free(nm->absent);
	*nm = (struct named){ 0 };
}

/*
 * Nobody writes to [first, first + n) and it was written back: the pager must have it.  If it may fail, what it has counts; but
 * what is mapped elsewhere is kept there.
 */
static void
check_disk(struct world *w, struct named *nm, size_t first, size_t n, bool lost)
{
	for (size_t i = first; i < first + n; i++) {
		if (nm->disk[2 * i] == nm->word[i] || (lost && named_reached(w, nm, i)))
			continue;
		if (!lost)
			fail(w,
			     "page %zu of the object was not written back: %#" PRIx64
			     ", not %#" PRIx64,
			     i, nm->disk[2 * i], nm->word[i]);
		nm->word[i] = nm->disk[2 * i];
		for (unsigned k = 0; k < ALL_REGIONS; k++) {
			struct region *rg = &w->rg[k];

			if (rg->va != 0 && rg->nm == nm && !rg->shared && i >= rg->first &&
			    i < rg->first + rg->npages && !rg->mine[i - rg->first])
				rg->own[i - rg->first] = MIN(rg->own[i - rg->first], nm->word[i]);
		}
	}
}

/* True if a page of [first, first + n) of an object is mapped shared. */
static bool
mapped_any(const struct world *w, const uint64_t *base, size_t first, size_t n)
{
	for (unsigned k = 0; k < ALL_REGIONS; k++) {
		const struct region *rg = &w->rg[k];

		if (rg->va == 0 || rg->base != base)
			continue;
		for (size_t i = 0; i < rg->npages; i++) {
			if (rg->first + i >= first && rg->first + i < first + n &&
			    rg->prot[i] != GONE && rg->cell[i] == &base[rg->first + i])
				return true;
		}
	}
	return false;
}

/* What up_map() of a shared object has to say; `multi`: what its mappings are now. */
static void
check_shared(struct world *w, const uint64_t *base, size_t npages, bool now, bool multi,
	     size_t first, size_t n, int r)
{
	const bool other = now != multi && mapped_any(w, base, 0, npages);
	const bool taken = !multi && mapped_any(w, base, first, n);

	if (multi && !w->pools) {
		if (r != -ENOTSUP && r != -EBUSY)
			fail(w, "up_map: UP_MULTI is not to be had, yet: %d", r);
		return;
	}
	if ((r == -EBUSY) != (other || taken))
		fail(w,
		     "up_map of pages %zu + %zu, UP_MULTI %d: %d, of another kind: %d, taken: %d",
		     first, n, multi, r, other, taken);
	if (r < 0 && r != -EBUSY && r != -ENOSPC && r != -ENOMEM)
		fail(w, "up_map of a shared object: %s", strerrorname_np(-r));
}

/* With UP_MULTI or without: most often as the object is mapped already. */
static bool
choose_multi(struct world *w, const uint64_t *base, size_t npages, bool now)
{
	if (mapped_any(w, base, 0, npages) && below(w, 8) != 0)
		return now;
	return below(w, 3) != 0;
}

static void
op_map_named(struct world *w)
{
	struct named *nm = &w->nm[below(w, NAMED)];
	struct region *rg = vacant(w);
	unsigned flags = UP_PRIVATE;
	bool multi = false;
	void *p;
	int r;

	if (nm->object == NULL)
		named_create(w, nm);
	if (rg == NULL || nm->object == NULL)
		return;
	*rg = (struct region){ .nm = nm, .first = below(w, 3) == 0 ? below(w, nm->npages) : 0 };
	rg->npages = 1 + below(w, nm->npages - rg->first);
	rg->shared = below(w, 3) != 0;
	rg->readonly = rg->shared && nm->readonly;
	rg->noreserve = !rg->shared && below(w, 3) == 0;
	if (rg->shared) {
		multi = choose_multi(w, nm->word, nm->npages, nm->multi);
		flags = UP_SHARED | (multi ? UP_MULTI : 0);
	} else if (rg->noreserve) {
		flags |= UP_NORESERVE;
	}
	r = up_map(w->r->rt, NULL, rg->npages * PAGE_SIZE,
		   rg->readonly ? PROT_READ : PROT_READ | PROT_WRITE, flags, nm->object,
		   rg->first * PAGE_SIZE, &p);
	if (rg->shared)
		check_shared(w, nm->word, nm->npages, nm->multi, multi, rg->first, rg->npages, r);
	else if (r < 0 && r != -ENOSPC && r != -ENOMEM)
		fail(w, "up_map of a named object: %s", strerrorname_np(-r));
	if (r < 0) {
		*rg = (struct region){ 0 };
		return;
	}
	if (rg->shared)
		nm->multi = multi;
	w->nmulti += multi;
	settle_in(w, rg, p, NULL, 0);
}

static void
shared_create(struct world *w, struct shared *sh, size_t npages)
{
	*sh = (struct shared){ .npages = npages };
	sh->word = calloc(npages, sizeof *sh->word);
	if (sh->word == NULL)
		fail(w, "out of memory");
}

/* If nobody can look at it any more. */
static void
shared_reap(struct world *w, struct shared *sh)
{
	for (unsigned k = 0; k < ALL_REGIONS; k++) {
		if (w->rg[k].va != 0 && w->rg[k].sh == sh)
			return;
	}
	if (sh->object != NULL)
		return;
	free(sh->word);
	*sh = (struct shared){ 0 };
}

static void
op_let_go(struct world *w)
{
	struct shared *sh = &w->sh[below(w, OBJECTS)];

	if (sh->object == NULL)
		return;
	sit(w);
	up_object_unref(sh->object);
	w->sitting = false;
	sh->object = NULL;
	shared_reap(w, sh);
}

/* Some part of an object, perhaps one that is mapped already. */
static void
op_map_object(struct world *w)
{
	struct shared *sh = &w->sh[below(w, OBJECTS)];
	struct region *rg = vacant(w);
	bool multi;
	void *p;
	int r;

	if (rg == NULL || (sh->word != NULL && sh->object == NULL))
		return;
	if (sh->word == NULL) {
		const bool noreserve = below(w, 6) == 0;
		const size_t npages = 1 + below(w, 1000);
		struct up_object *o;

		r = up_object_create_anon(w->r->rt, npages * PAGE_SIZE,
					  noreserve ? UP_NORESERVE : 0, &o);
		if (r == -ENOSPC || r == -ENOMEM)
			return;
		if (r < 0)
			fail(w, "up_object_create_anon: %s", strerrorname_np(-r));
		shared_create(w, sh, npages);
		sh->object = o;
		sh->noreserve = noreserve;
	}
	*rg = (struct region){ .sh = sh, .readonly = sh->readonly, .noreserve = sh->noreserve };
	rg->first = below(w, 2) == 0 ? below(w, sh->npages) : 0;
	rg->npages = 1 + below(w, sh->npages - rg->first);
	multi = choose_multi(w, sh->word, sh->npages, sh->multi);
	r = up_map(w->r->rt, NULL, rg->npages * PAGE_SIZE,
		   rg->readonly ? PROT_READ : PROT_READ | PROT_WRITE,
		   UP_SHARED | (multi ? UP_MULTI : 0), sh->object, rg->first * PAGE_SIZE, &p);
	check_shared(w, sh->word, sh->npages, sh->multi, multi, rg->first, rg->npages, r);
	if (r < 0) {
		*rg = (struct region){ 0 };
		return;
	}
	sh->multi = multi;
	w->nmulti += multi;
	settle_in(w, rg, p, NULL, 0);
}

static void
op_map(struct world *w)
{
	struct region *rg = vacant(w);
	void *p = NULL;
	int r;

	if (rg == NULL)
		return;
	*rg = (struct region){ .npages = 1 + below(w, 1500) };
	rg->noreserve = below(w, 4) == 0;
	r = up_map(w->r->rt, NULL, rg->npages * PAGE_SIZE, PROT_READ | PROT_WRITE,
		   UP_PRIVATE | (rg->noreserve ? UP_NORESERVE : 0), NULL, 0, &p);
	if (r < 0) {
		if (r != -ENOSPC && r != -ENOMEM)
			fail(w, "up_map: %s", strerrorname_np(-r));
		return;
	}
	settle_in(w, rg, p, NULL, 0);
}

static void
forget(struct world *w, struct region *rg)
{
	struct shared *sh = rg->sh;

	for (unsigned i = 0; i < THREADS; i++) {
		if (w->touch[i].active && w->touch[i].rg == rg)
			finish(w, i);
		if (w->touch[i].rg == rg)
			w->touch[i].rg = NULL;
	}
	region_free(rg);
	if (sh != NULL)
		shared_reap(w, sh);
}

static void
some_range(struct world *w, const struct region *rg, size_t *first, size_t *n)
{
	const size_t most = below(w, 3) == 0 ? rg->npages : 40;

	*first = below(w, rg->npages);
	*n = 1 + below(w, MIN(rg->npages - *first, most));
}

/* True if another region has come to lie in a hole of this range: not ours to operate on. */
static bool
resettled(const struct world *w, const struct region *rg, size_t first, size_t n)
{
	const uintptr_t start = rg->va + first * PAGE_SIZE, end = start + n * PAGE_SIZE;

	for (unsigned i = 0; i < REGIONS; i++) {
		const struct region *o = &w->rg[i];

		if (o != rg && o->va != 0 && o->va < end && start < o->va + o->npages * PAGE_SIZE)
			return true;
	}
	return false;
}

/* A part of a region is not mapped any more. */
static void
unmapped(struct world *w, struct region *rg, size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++) {
		const bool was = rg->prot[i] != GONE;

		rg->prot[i] = GONE;
		rg->wired[i] = 0;
		/* A hole was nothing to write back. */
		if (was && rg->shared)
			check_disk(w, rg->nm, rg->first + i, 1, w->fail_out);
		/* Nobody can get at it: it is gone. */
		if (was && rg->sh != NULL && rg->sh->object == NULL && !reached(w, rg, i))
			*rg->cell[i] = 0;
	}
}

static void
op_unmap(struct world *w, struct region *rg)
{
	size_t first = 0, n = rg->npages;
	int r;

	if (below(w, 3) != 0)
		some_range(w, rg, &first, &n);
	if (resettled(w, rg, first, n))
		return;
	settle_range(w, rg, first, n);
	sit(w);
	r = up_unmap(w->r->rt, (void *)(rg->va + first * PAGE_SIZE), n * PAGE_SIZE);
	w->sitting = false;
	if (r == -ENOMEM)
		return;
	if (r < 0)
		fail(w, "up_unmap: %s", strerrorname_np(-r));
	unmapped(w, rg, first, n);
	for (size_t i = 0; i < rg->npages; i++) {
		if (rg->prot[i] != GONE)
			return;
	}
	forget(w, rg);
}

static bool
covered(const struct region *rg, size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++) {
		if (rg->prot[i] == GONE)
			return false;
	}
	return true;
}

static void
op_protect(struct world *w, struct region *rg)
{
	static const unsigned char prots[] = { PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE };
	const unsigned char prot = prots[below(w, 3)];
	size_t first, n;
	int r;

	some_range(w, rg, &first, &n);
	if (resettled(w, rg, first, n))
		return;
	settle_range(w, rg, first, n);
	r = up_protect(w->r->rt, (void *)(rg->va + first * PAGE_SIZE), n * PAGE_SIZE, prot);
	if (r == 0 && !covered(rg, first, n))
		fail(w, "up_protect of a hole succeeded");
	if (r == 0 && rg->readonly && (prot & PROT_WRITE))
		fail(w, "a snapshot became writable");
	if (r == 0)
		memset(rg->prot + first, prot, n);
	else if (r != -ENOMEM && !(r == -EACCES && rg->readonly))
		fail(w, "up_protect: %s", strerrorname_np(-r));
}

/* Writes under way in the range end; reads see the same before and after. */
static void
finish_writes(struct world *w, const struct region *rg)
{
	for (unsigned i = 0; i < THREADS; i++) {
		if (w->touch[i].write && touches(&w->touch[i], rg, 0, rg->npages))
			finish(w, i);
	}
}

static void
op_clone(struct world *w, struct region *rg)
{
	struct region *copy = vacant(w);
	size_t first = 0, n = rg->npages;
	void *p;
	int r;

	if (copy == NULL)
		return;
	if (below(w, 3) == 0)
		some_range(w, rg, &first, &n);
	if (resettled(w, rg, first, n))
		return;
	finish_writes(w, rg);
	sit(w);
	r = up_clone(w->r->rt, (void *)(rg->va + first * PAGE_SIZE), n * PAGE_SIZE, &p);
	w->sitting = false;
	if (r == 0 && !covered(rg, first, n))
		fail(w, "up_clone of a hole succeeded");
	if (r == 0 && rg->shared)
		fail(w, "up_clone of a shared mapping of a named object succeeded");
	/* Its entries may have objects of their own, so it depends on where in the region something is wired. */
	if ((r == 0 && (rg->sh != NULL ? object_wired(w, rg) : wired_any(rg, first, n))) ||
	    (r == -EBUSY && !object_wired(w, rg)))
		fail(w, "up_clone: %d, wired or not", r);
	if (r < 0 && !(r == -ENOTSUP && rg->shared) && r != -ENOMEM && r != -ENOSPC && r != -EBUSY)
		fail(w, "up_clone: %s", strerrorname_np(-r));
	if (r < 0)
		return;
	*copy = (struct region){ .npages = n, .noreserve = rg->noreserve, .nm = rg->nm };
	copy->first = rg->first + first;
	settle_in(w, copy, p, rg, first);
	copy->parted = rg->parted = true;
}

/* A snapshot of an object, or a private mapping of it. */
static void
op_snapshot(struct world *w, struct region *rg)
{
	struct shared *sh = rg->sh, *vacant_sh = NULL;
	struct region *copy = vacant(w);
	struct up_object *snap;
	const bool private = below(w, 2) == 0;
	size_t first = 0, n;
	void *p = NULL;
	int r;

	if (copy == NULL || sh == NULL || sh->object == NULL)
		return;
	for (unsigned k = 0; k < OBJECTS; k++) {
		if (w->sh[k].word == NULL)
			vacant_sh = &w->sh[k];
	}
	if (!private && vacant_sh == NULL)
		return;
	n = sh->npages;
	if (private && below(w, 2) == 0) {
		first = below(w, sh->npages);
		n = 1 + below(w, sh->npages - first);
	}
	sit(w);
	if (private)
		r = up_map(w->r->rt, NULL, n * PAGE_SIZE, PROT_READ | PROT_WRITE, UP_PRIVATE,
			   sh->object, first * PAGE_SIZE, &p);
	else
		r = up_object_snapshot(w->r->rt, sh->object, &snap);
	w->sitting = false;
	if ((r == -EBUSY) != object_wired(w, rg))
		fail(w, "copying an object: %d, wired or not", r);
	if (r < 0 && r != -ENOMEM && r != -ENOSPC && r != -EBUSY)
		fail(w, "copying an object: %s", strerrorname_np(-r));
	if (r < 0)
		return;
	for (unsigned k = 0; k < REGIONS; k++)
		w->rg[k].parted |= w->rg[k].sh == sh;
	if (!private) {
		shared_create(w, vacant_sh, sh->npages);
		memcpy(vacant_sh->word, sh->word, sh->npages * sizeof *sh->word);
		vacant_sh->object = snap;
		vacant_sh->readonly = true;
		vacant_sh->noreserve = sh->noreserve;
		return;
	}
	*copy = (struct region){ .npages = n, .noreserve = sh->noreserve, .parted = true };
	settle_in(w, copy, p, NULL, 0);
	memcpy(copy->own, sh->word + first, n * sizeof *copy->own);
}

/* A call that brings pages in may end like this. */
static void
check_brought_in(struct world *w, const struct region *rg, const char *call, int r)
{
	if (r == 0 || r == -ENOMEM || r == -EACCES)
		return;
	if ((r == -EIO || r == -ENOSPC) &&
	    (w->lossy || rg->noreserve || rg->shared || (rg->nm != NULL && w->fail_in)))
		return;
	fail(w, "%s: %s", call, strerrorname_np(-r));
}

static void
op_prefault(struct world *w, struct region *rg)
{
	const bool write = below(w, 2);
	size_t first, n;
	int r;

	some_range(w, rg, &first, &n);
	if (resettled(w, rg, first, n))
		return;
	r = up_prefault(w->r->rt, (void *)(rg->va + first * PAGE_SIZE), n * PAGE_SIZE, write);
	check_brought_in(w, rg, "up_prefault", r);
	for (size_t i = first; r == 0 && i < first + n; i++) {
		if (rg->prot[i] == GONE || (rg->prot[i] & (write ? PROT_WRITE : PROT_READ)) == 0)
			fail(w, "up_prefault of what is not allowed succeeded");
	}
}

static void
op_wire(struct world *w, struct region *rg)
{
	size_t first, n;
	int r;

	some_range(w, rg, &first, &n);
	if (resettled(w, rg, first, n))
		return;
	for (size_t i = first; i < first + n; i++) {
		if (rg->wired[i] == 100)
			return;
	}
	r = up_wire(w->r->rt, (void *)(rg->va + first * PAGE_SIZE), n * PAGE_SIZE);
	check_brought_in(w, rg, "up_wire", r);
	for (size_t i = first; r == 0 && i < first + n; i++) {
		if (rg->prot[i] == GONE || rg->prot[i] == PROT_NONE)
			fail(w, "up_wire of what is not allowed succeeded");
		rg->wired[i]++;
	}
}

static void
op_unwire(struct world *w, struct region *rg)
{
	size_t first, n;
	int r;

	some_range(w, rg, &first, &n);
	/* Most often of what is wired. */
	if (below(w, 8) != 0) {
		while (first < rg->npages - 1 && rg->wired[first] == 0)
			first++;
		n = MIN(n, rg->npages - first);
		while (n > 1 && !wired_all(rg, first, n))
			n /= 2;
	}
	if (resettled(w, rg, first, n))
		return;
	r = up_unwire(w->r->rt, (void *)(rg->va + first * PAGE_SIZE), n * PAGE_SIZE);
	if (r != -ENOMEM && (r == 0) != wired_all(rg, first, n))
		fail(w, "up_unwire: %s, wired or not", strerrorname_np(-r));
	for (size_t i = first; r == 0 && i < first + n; i++)
		rg->wired[i]--;
}

/* Wired is wired, whatever happened. */
static void
check_wired(struct world *w)
{
	uint64_t n = 0;

	for (unsigned k = 0; k < REGIONS; k++) {
		const struct region *rg = &w->rg[k];

		for (size_t i = 0; rg->va != 0 && i < rg->npages; i++) {
			if (rg->wired[i] == 0)
				continue;
			n++;
			if (sim_state(w->r->pm, rg->va + i * PAGE_SIZE) != SIM_PRESENT)
				fail(w, "page %zu of %#lx is wired and not there", i,
				     (unsigned long)rg->va);
		}
	}
	if (rig_stats(w->r).wired != n * PAGE_SIZE)
		fail(w, "%" PRIu64 " pages are wired, not %" PRIu64,
		     rig_stats(w->r).wired / PAGE_SIZE, n);
}

/* All of a region, longer or shorter. */
static void
op_remap(struct world *w, struct region *rg)
{
	const size_t old = rg->npages;
	size_t npages = 1 + below(w, 1500);
	bool taken = false, beyond = false;
	void *p;
	int r;

	if ((rg->nm != NULL && !rg->shared) || !covered(rg, 0, old) || resettled(w, rg, 0, old))
		return;
	/* What nobody had a hold of is gone, perhaps not at once. */
	if (rg->sh != NULL && rg->sh->object == NULL)
		return;
	if (rg->base != NULL) {
		const size_t most = (rg->sh != NULL ? rg->sh->npages : rg->nm->npages) - rg->first;

		npages = 1 + below(w, most + (below(w, 8) == 0));
		beyond = npages > most;
		taken = !(rg->sh != NULL ? rg->sh->multi : rg->nm->multi) && npages > old &&
			mapped_any(w, rg->base, rg->first + old, npages - old);
	}
	settle_range(w, rg, 0, old);
	sit(w);
	r = up_remap(w->r->rt, (void *)rg->va, old * PAGE_SIZE, npages * PAGE_SIZE,
		     below(w, 4) == 0 ? 0 : UP_MAYMOVE, &p);
	w->sitting = false;
	if (r == -ENOMEM || r == -ENOSPC)
		return;
	if ((r == -EBUSY) != ((npages > old && wired_any(rg, 0, old)) || (taken && !beyond)) ||
	    (r == -ENOTSUP && (npages <= old || !rg->parted || rg->base != NULL)) ||
	    (r == -EINVAL && !beyond) || (r == 0 && beyond) ||
	    (r < 0 && r != -EBUSY && r != -ENOTSUP && r != -EINVAL))
		fail(w, "up_remap: %s", strerrorname_np(-r));
	if (r < 0)
		return;
	rg->va = (uintptr_t)p;
	if (npages < old)
		unmapped(w, rg, npages, old - npages);
	rg->npages = npages;
	region_grow(w, rg, old, npages);
	if (npages > old) {
		memset(rg->prot + old, rg->prot[old - 1], npages - old);
		memset(rg->inherit + old, rg->inherit[old - 1], npages - old);
	}
	/* Reads that were under way find the page where it is now, or there is none any more. */
	for (unsigned i = 0; i < THREADS; i++) {
		struct touch *t = &w->touch[i];

		if (t->rg == rg && t->page >= npages) {
			if (t->active)
				finish(w, i);
			t->rg = NULL;
		}
	}
}

/* The range was discarded: zeros, or what the source has. */
static void
discarded(struct world *w, struct region *rg, size_t first, size_t n)
{
	if (rg->shared) {
		check_disk(w, rg->nm, rg->first + first, n, false);
		return;
	}
	for (size_t i = first; i < first + n; i++)
		*rg->cell[i] = rg->nm != NULL ? rg->nm->word[rg->first + i] : 0;
	memset(rg->mine + first, 0, n * sizeof *rg->mine);
}

/* There was no metadata to hide all of it: mappings in front of the one where that was so have gone. */
static void
discarded_in_part(struct world *w, struct region *rg, size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++) {
		unsigned char v = 0xff;

		w->sitting = true;
		if (up_residency(w->r->rt, (void *)(rg->va + i * PAGE_SIZE), PAGE_SIZE, &v) == 0 &&
		    v == 0)
			discarded(w, rg, i, 1);
		w->sitting = false;
	}
}

static void
op_advise(struct world *w, struct region *rg)
{
	const enum up_advice advice = (enum up_advice)below(w, UP_ADVICE_COLD + 1);
	size_t first, n;
	int r;

	some_range(w, rg, &first, &n);
	if (resettled(w, rg, first, n))
		return;
	if (advice == UP_ADVICE_DONTNEED)
		settle_range(w, rg, first, n);
	sit(w);
	r = up_advise(w->r->rt, (void *)(rg->va + first * PAGE_SIZE), n * PAGE_SIZE, advice);
	w->sitting = false;
	if (r == 0 && advice == UP_ADVICE_DONTNEED)
		discarded(w, rg, first, n);
	if (r == -ENOMEM && advice == UP_ADVICE_DONTNEED && rg->parted)
		discarded_in_part(w, rg, first, n);
	if (r != -ENOMEM &&
	    (r == -EINVAL) != (advice == UP_ADVICE_DONTNEED && held_any(w, rg, first, n)))
		fail(w, "up_advise(%d): %s, wired or not", (int)advice, strerrorname_np(-r));
	if (r < 0 && r != -ENOMEM && r != -EINVAL && !(rg->shared && w->fail_out && r == -EIO))
		fail(w, "up_advise: %s", strerrorname_np(-r));
}

/* What a private mapping has not changed is the source's: what it had when the call began, or later. */
static void
refreshed(struct world *w, struct region *rg, size_t first, size_t n, const uint64_t *disk)
{
	for (size_t i = first; i < first + n; i++) {
		/* One that is pinned, that nobody may read, or that was copied since a clone sees it too, need not have gone. */
		if (!w->pinning && !rg->parted && !rg->mine[i] && rg->prot[i] != PROT_NONE)
			rg->own[i] = MAX(rg->own[i], disk[i - first]);
	}
}

static void
op_sync(struct world *w, struct region *rg)
{
	static const unsigned kinds[] = { UP_SYNC_WAIT, UP_SYNC_WAIT, UP_SYNC_ASYNC,
					  UP_SYNC_INVALIDATE };
	const unsigned flags = kinds[below(w, ARRAY_SIZE(kinds))];
	const bool still = below(w, 2) == 0;
	static uint64_t disk[1600];
	size_t first, n;
	int r;

	some_range(w, rg, &first, &n);
	if (resettled(w, rg, first, n))
		return;
	/* While threads write all that can be said is that it returns. */
	if (still)
		finish_writes(w, rg);
	for (size_t i = 0; rg->nm != NULL && i < n; i++)
		disk[i] = rg->nm->disk[2 * (rg->first + first + i)];
	sit(w);
	r = up_sync(w->r->rt, (void *)(rg->va + first * PAGE_SIZE), n * PAGE_SIZE, flags);
	w->sitting = false;
	if (r == 0 && still && rg->shared && flags != UP_SYNC_ASYNC)
		check_disk(w, rg->nm, rg->first + first, n, false);
	if (r == 0 && rg->nm != NULL && !rg->shared && flags == UP_SYNC_INVALIDATE)
		refreshed(w, rg, first, n, disk);
	if (r == 0 && !covered(rg, first, n))
		fail(w, "up_sync of a hole succeeded");
	if (r != -ENOMEM &&
	    (r == -EBUSY) != (flags == UP_SYNC_INVALIDATE && held_any(w, rg, first, n)))
		fail(w, "up_sync(%u): %d, wired or not", flags, r);
	if (r < 0 && r != -ENOMEM && r != -EBUSY && !(rg->shared && w->fail_out && r == -EIO))
		fail(w, "up_sync: %s", strerrorname_np(-r));
}

static void
op_residency(struct world *w, struct region *rg)
{
	unsigned char vec[2000];
	size_t first, n;
	int r;

	some_range(w, rg, &first, &n);
	if (resettled(w, rg, first, n))
		return;
	sit(w);
	r = up_residency(w->r->rt, (void *)(rg->va + first * PAGE_SIZE), n * PAGE_SIZE, vec);
	w->sitting = false;
	if (r < 0)
		return;
	for (size_t i = 0; i < n; i++) {
		/* What the call waited for may have let others in: the bits are a snapshot, old by now. */
		if ((vec[i] & ~(UP_PAGE_MAPPED | UP_PAGE_STAGED | UP_PAGE_SWAPPED | UP_PAGE_LOST |
				UP_PAGE_WIRED | UP_PAGE_COMPRESSED)) != 0 ||
		    (vec[i] & (UP_PAGE_MAPPED | UP_PAGE_STAGED)) ==
			    (UP_PAGE_MAPPED | UP_PAGE_STAGED))
			fail(w, "page %zu of %#lx: residency %#x makes no sense", first + i,
			     (unsigned long)rg->va, vec[i]);
		if ((vec[i] & UP_PAGE_WIRED) != 0 && !held_any(w, rg, first + i, 1))
			fail(w, "page %zu of %#lx is wired: %#x", first + i, (unsigned long)rg->va,
			     vec[i]);
		if (rg->nm == NULL && *rg->cell[first + i] != 0 && vec[i] == 0)
			fail(w, "page %zu of %#lx has content, residency says never written",
			     first + i, (unsigned long)rg->va);
	}
}

static void
op_inherit(struct world *w, struct region *rg)
{
	const enum up_inherit how = (enum up_inherit)below(w, UP_INHERIT_SHARE + 1);
	const bool multi = (rg->sh != NULL && rg->sh->multi) || (rg->shared && rg->nm->multi);
	bool refused = how != UP_INHERIT_NONE && !w->pools;
	size_t first = 0, n = rg->npages;
	int r;

	if (below(w, 2) == 0)
		some_range(w, rg, &first, &n);
	if (resettled(w, rg, first, n))
		return;
	refused |= how == UP_INHERIT_SHARE && !multi;
	refused |= how == UP_INHERIT_COPY && rg->shared;
	r = up_inherit(w->r->rt, (void *)(rg->va + first * PAGE_SIZE), n * PAGE_SIZE, how);
	if (r == 0 && !covered(rg, first, n))
		fail(w, "up_inherit of a hole succeeded");
	if ((r == 0 && refused) || (r == -ENOTSUP && !refused) ||
	    (r < 0 && r != -ENOTSUP && r != -ENOMEM))
		fail(w, "up_inherit(%d): %s", (int)how, strerrorname_np(-r));
	if (r == 0)
		memset(rg->inherit + first, (int)how, n);
}

/* What a child has of a region, at the instant of the fork. */
static void
bear(struct world *w, struct region *rg, struct child *c)
{
	const size_t slot = (size_t)(rg - w->rg) % REGIONS;
	struct region *to = &w->rg[REGIONS * (1 + (size_t)(c - w->child)) + slot];
	bool any = false;

	for (size_t i = 0; i < rg->npages; i++)
		any |= rg->prot[i] != GONE && rg->inherit[i] != UP_INHERIT_NONE;
	if (!any)
		return;
	*to = (struct region){
		.va = rg->va,
		.npages = rg->npages,
		.child = c,
		.nm = rg->nm,
		.first = rg->first,
		.noreserve = rg->noreserve,
	};
	region_grow(w, to, 0, to->npages);
	for (size_t i = 0; i < rg->npages; i++) {
		to->inherit[i] = rg->inherit[i];
		to->mine[i] = rg->mine[i];
		to->prot[i] = rg->inherit[i] != UP_INHERIT_NONE ? rg->prot[i] : GONE;
		if (rg->inherit[i] == UP_INHERIT_SHARE) {
			/* All of it is of one kind, but that some may be a copy. */
			to->cell[i] = rg->cell[i];
			to->base = rg->base;
			to->sh = rg->sh;
			to->shared = rg->shared;
		} else {
			to->own[i] = *rg->cell[i];
			rg->parted |= rg->inherit[i] == UP_INHERIT_COPY;
		}
	}
}

/* Nobody runs there any more. */
static void
child_end(struct world *w, struct child *c)
{
	const size_t at = REGIONS * (1 + (size_t)(c - w->child));
	sigset_t old;

	for (unsigned i = 0; i < THREADS; i++) {
		struct touch *t = &w->touch[i];

		if (t->rg != NULL && t->rg->child == c)
			*t = (struct touch){ 0 };
	}
	/* What it has shared is written back. */
	for (size_t k = at; k < at + REGIONS; k++) {
		if (w->rg[k].va != 0)
			settle_range(w, &w->rg[k], 0, w->rg[k].npages);
	}
	sit(w);
	change_begin(w->r->p, &old);
	w->r->pm->ops->space_detach(w->r->pm, c->sp->shard);
	space_end(w->r->p, c->sp);
	change_end(w->r->p, &old);
	w->sitting = false;
	*c = (struct child){ 0 };
	for (size_t k = at; k < at + REGIONS; k++) {
		struct region *rg = &w->rg[k];

		for (size_t page = 0; rg->va != 0 && page < rg->npages; page++) {
			if (rg->prot[page] != GONE && rg->cell[page] != &rg->own[page])
				unmapped(w, rg, page, 1);
		}
	}
	for (size_t k = at; k < at + REGIONS; k++) {
		if (w->rg[k].va != 0)
			forget(w, &w->rg[k]);
	}
}

/* We fork, or a child does. */
static void
op_fork(struct world *w)
{
	struct child *c = &w->child[below(w, CHILDREN)], *parent = &w->child[below(w, CHILDREN)];
	const bool ours = parent->sp == NULL || parent == c || !parent->runs || below(w, 2) == 0;
	struct region *from = ours ? w->rg : &w->rg[REGIONS * (1 + (size_t)(parent - w->child))];
	bool any = false, wired = false, held = false;
	struct space *sp;
	sigset_t old;
	int r;

	if (c->sp != NULL)
		return;
	for (struct region *rg = from; rg < from + REGIONS; rg++) {
		for (size_t i = 0; rg->va != 0 && i < rg->npages; i++) {
			any |= rg->prot[i] != GONE && rg->inherit[i] != UP_INHERIT_NONE;
			held |= rg->prot[i] != GONE && rg->inherit[i] == UP_INHERIT_COPY &&
				rg->wired[i] > 0;
		}
		wired |= rg->va != 0 && object_wired(w, rg);
	}
	sit(w);
	change_begin(w->r->p, &old);
	r = space_fork(w->r->rt, ours ? &w->r->p->map : &parent->sp->map, -1, &sp);
	w->sitting = false;
	if ((r == 0 && held) || (r == -EBUSY && !wired) ||
	    (r < 0 && r != -ENOMEM && r != -ENOSPC && r != -EBUSY))
		fail(w, "fork: %d, wired or not", r);
	if ((r == 0) != (sp != NULL || !any) || (!any && sp != NULL))
		fail(w, "fork: %d, with something to inherit or without: %d", r, any);
	if (sp != NULL) {
		*c = (struct child){ .sp = sp };
		for (struct region *rg = from; rg < from + REGIONS; rg++) {
			if (rg->va != 0)
				bear(w, rg, c);
		}
		w->nforks++;
		/* Whatever is touched until it is over: of what is copied nothing gets through. */
		for (uint64_t n = below(w, 30); n > 0; n--) {
			const unsigned t = (unsigned)below(w, THREADS);
			struct region *rg = &w->rg[below(w, ALL_REGIONS)];

			if (w->touch[t].active)
				advance(w, t);
			else if (rg->va != 0)
				begin(w, t, rg);
			if (below(w, 4) == 0)
				step(w);
		}
		chain_thaw(w->r->p);
	}
	change_end(w->r->p, &old);
	if (sp == NULL)
		return;
	if (below(w, 10) == 0) {
		child_end(w, c); /* it never came to that */
		return;
	}
	if (w->r->pm->ops->space_attach(w->r->pm, sp->shard, -1, 0) < 0)
		fail(w, "space_attach failed");
	c->runs = true;
}

/* Memory as the simulated kernel counts it, and our metadata. */
static void
check_budget(struct world *w)
{
	const struct up_stats st = rig_stats(w->r);
	const uint64_t pages = (uint64_t)sim_resident_pages(w->r->pm) * PAGE_SIZE;

	if (pages + st.metadata > w->r->cfg.memory)
		fail(w,
		     "the kernel has %" PRIu64 " bytes resident, metadata is %" PRIu64
		     ", the limit %zu",
		     pages, st.metadata, w->r->cfg.memory);
}

/* A limit of any size that there can be; what comes of it may be that it stays. */
static void
op_limit(struct world *w)
{
	struct rig_config *cfg = &w->r->cfg;
	const size_t limit =
		UP_MEMORY_LIMIT_MIN + below(w, cfg->memory_most - UP_MEMORY_LIMIT_MIN + 1);
	const int r = up_runtime_set_limit(w->r->rt, limit, 1 + (unsigned)below(w, 200));
	const struct up_stats st = rig_stats(w->r);

	if (r == 0)
		cfg->memory = limit & ~PAGE_MASK;
	else if (r != -EBUSY && r != -ETIMEDOUT)
		fail(w, "up_runtime_set_limit: error %d", -r);
	if (st.limit != cfg->memory || st.used > st.limit || st.used_max > st.limit)
		fail(w, "limit %zu: %" PRIu64 " is used, at most %" PRIu64 ", of %" PRIu64,
		     cfg->memory, st.used, st.used_max, st.limit);
	w->nlimits += r == 0;
	check_budget(w);
}

/* --- a round --- */

static void
misbehave(struct world *w, unsigned how)
{
	struct sim_faults *f = &w->r->f;
	static const enum sim_op ops[] = { SIM_ZERO, SIM_ENTER, SIM_REMOVE, SIM_FRAME_NEW };

	if (how & 1) {
		for (unsigned i = 0; i < ARRAY_SIZE(ops); i++) {
			sim_fail_rate(f, ops[i], -EAGAIN, 60);
			sim_fail_rate(f, ops[i], -ENOMEM, 10);
		}
		sim_fail_rate(f, SIM_REMOVE, -EBUSY, 20);
		sim_fail_rate(f, SIM_ZERO, -EEXIST, 20);
		sim_fail_rate(f, SIM_ENTER, -EEXIST, 20);
	}
	if (how & 2)
		sim_messages(w->r->pm, 50, 100, 5);
	if (how & 4) {
		w->lossy = true;
		sim_fail_rate(f, SIM_READ, -EIO, 10);
		sim_fail_rate(f, SIM_WRITE, -EIO, 10);
		sim_fail_rate(f, SIM_WRITE, -ENOSPC, 10);
		sim_disk_lie(w->r->disk, SIM_FLIP, 2);
		sim_disk_lie(w->r->disk, SIM_STALE, 2);
		sim_disk_lie(w->r->disk, SIM_OTHER, 2);
	}
	if (how & 8)
		sim_disk_delay(w->r->disk, 40);
	w->pinning = how & 1;
	w->slow = how & 16;
	w->fail_in = how & 32;
	w->fail_out = how & 64;
}

static void
operate(struct world *w)
{
	const unsigned what = (unsigned)below(w, 1000);
	struct region *rg = &w->rg[below(w, REGIONS)];

	/* What is written back has most to go wrong: it gets more than its share. */
	for (unsigned i = 0; i < REGIONS && what < 950 && w->seed % 3 != 0; i++) {
		if (w->rg[i].shared && below(w, 2) == 0)
			rg = &w->rg[i];
	}
	/* Children do nothing but touch what they have. */
	if (what < 850 && below(w, 3) == 0) {
		struct region *other = &w->rg[REGIONS + below(w, ALL_REGIONS - REGIONS)];

		if (other->va != 0)
			rg = other;
	}
	w->ops++;
	w->calling = rg->va == 0 || what >= 940;
	if (rg->va == 0 && what < 300) {
		op_map_named(w);
	} else if (rg->va == 0 && what < 650) {
		op_map_object(w);
	} else if (rg->va == 0) {
		op_map(w);
	} else if (what < 850) {
		const unsigned t = (unsigned)below(w, THREADS);

		if (w->touch[t].active)
			advance(w, t);
		else
			begin(w, t, rg);
	} else if (what < 940) {
		step(w);
	} else if (what < 943) {
		op_inherit(w, rg);
	} else if (what < 946) {
		op_fork(w);
	} else if (what < 948) {
		struct child *c = &w->child[below(w, CHILDREN)];

		if (c->sp != NULL)
			child_end(w, c);
	} else if (what < 949) {
		op_let_go(w);
	} else if (what < 950) {
		op_limit(w);
	} else if (what < 960) {
		op_unmap(w, rg);
	} else if (what < 970) {
		op_protect(w, rg);
	} else if (what < 978) {
		op_advise(w, rg);
	} else if (what < 981) {
		op_prefault(w, rg);
	} else if (what < 984) {
		op_wire(w, rg);
	} else if (what < 988) {
		op_unwire(w, rg);
	} else if (what < 990) {
		op_remap(w, rg);
	} else if (what < 995) {
		op_clone(w, rg);
	} else if (what < 996) {
		op_snapshot(w, rg);
	} else if (what < 998) {
		op_sync(w, rg);
	} else {
		op_residency(w, rg);
	}
	w->calling = false;
	if (below(w, 4) == 0)
		step(w);
}

static void
verify_all(struct world *w)
{
	for (unsigned i = 0; i < THREADS; i++)
		finish(w, i);
	for (unsigned i = 0; i < ALL_REGIONS; i++) {
		struct region *rg = &w->rg[i];

		if (rg->va == 0)
			continue;
		for (size_t page = 0; page < rg->npages; page++) {
			if (rg->prot[page] == GONE)
				continue;
			w->touch[0] = (struct touch){ .active = true, .rg = rg, .page = page };
			finish(w, 0);
		}
	}
}

static void
play(struct world *w)
{
	w->pools = w->seed % 16 != 5;
	const unsigned buffers = (unsigned)(w->seed / 11 % 3);
	const struct rig_config cfg = {
		.memory = UP_MEMORY_LIMIT_MIN + (w->seed % 3) * ((size_t)512 << 10) +
			  buffers * CLUSTER_MAX * PAGE_SIZE,
		.memory_most = UP_MEMORY_LIMIT_MIN + ((size_t)2 << 20),
		.buffers = buffers,
		.swap_slots = 4096,
		.services = 1 + w->seed % 3,
		.seed = w->seed,
		.mask = (w->seed % 2 ? UP_MASK_MOVE : 0) | (w->pools ? 0 : UP_MASK_SHARED),
		.fault_timeout_ms = 3600000,
		.policy = w->seed / 3 % POLICY_KINDS,
		.delivery = w->seed / 5 % 2 ? UP_DELIVER_INLINE : UP_DELIVER_SERVICE,
		.compression = (enum up_compression)(w->seed / 7 % 3),
	};
	const unsigned how = (unsigned)(w->seed * 0x9e3779b97f4a7c15u >> 57);

	w->r = rig_up(&cfg);
	w->r->p->idle = idle;
	w->r->p->idle_ctx = w;
	misbehave(w, how);
	for (unsigned i = 0; i < OPS; i++) {
		operate(w);
		if (i % 64 == 0) {
			check_budget(w);
			check_wired(w);
		}
	}
	verify_all(w);
	settle(w);
	check_budget(w);
	pager_check(w->r->p);
	w->calling = true;
	for (unsigned i = 0; i < CHILDREN; i++) {
		if (w->child[i].sp != NULL)
			child_end(w, &w->child[i]);
	}
	for (unsigned i = 0; i < REGIONS; i++) {
		struct region *rg = &w->rg[i];

		/* What is left between holes in one go: a limit that is all promised has no room to cut entries. */
		for (size_t page = 0, n; rg->va != 0 && page < rg->npages; page += MAX(n, 1)) {
			for (n = 0; page + n < rg->npages && rg->prot[page + n] != GONE;)
				n++;
			if (n > 0 && up_unmap(w->r->rt, (void *)(rg->va + page * PAGE_SIZE),
					      n * PAGE_SIZE) < 0)
				fail(w, "the last up_unmap failed");
			if (n > 0)
				unmapped(w, rg, page, n);
		}
		if (rg->va != 0)
			forget(w, rg);
	}
	for (unsigned i = 0; i < OBJECTS; i++) {
		up_object_unref(w->sh[i].object);
		w->sh[i].object = NULL;
		shared_reap(w, &w->sh[i]);
	}
	for (unsigned i = 0; i < NAMED; i++) {
		const unsigned before = w->ndestroyed, one = w->nm[i].object != NULL;

		named_destroy(&w->nm[i]);
		if (w->ndestroyed != before + one)
			fail(w, "an object that nobody refers to was not destroyed");
	}
	settle(w);
	pager_check(w->r->p);
	if (rig_stats(w->r).resident + rig_stats(w->r).staged + rig_stats(w->r).swapped != 0)
		fail(w, "everything is unmapped, yet pages are left");
	rig_down(w->r);
}

static uint64_t
number(const char *s)
{
	char *end;
	const uint64_t n = strtoull(s, &end, 10);

	if (*s == '\0' || *end != '\0') {
		fprintf(stderr, "random: not a number: %s\n", s);
		exit(2);
	}
	return n;
}

int
main(int argc, char **argv)
{
	uint64_t seconds = 5, seed = now_ns(), rounds = UINT64_MAX, n = 0, ops = 0, verified = 0,
		 sigbus = 0, ncancelled = 0, nforks = 0, nmulti = 0, nlimits = 0;
	uint64_t end;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--verbose") == 0) {
			verbose = true;
		} else if (i + 1 < argc && strcmp(argv[i], "--seconds") == 0) {
			seconds = number(argv[++i]);
		} else if (i + 1 < argc && strcmp(argv[i], "--seed") == 0) {
			seed = number(argv[++i]);
		} else if (i + 1 < argc && strcmp(argv[i], "--rounds") == 0) {
			rounds = number(argv[++i]);
		} else {
			fprintf(stderr,
				"usage: random [--seconds N] [--seed S] [--rounds R] [--verbose]\n");
			return 2;
		}
	}
	end = now_ns() + seconds * 1000000000u;
	for (; n < rounds && (n == 0 || now_ns() < end); n++) {
		struct world w = { .seed = seed + n };

		if (verbose)
			printf("seed %" PRIu64 "\n", w.seed);
		play(&w);
		ops += w.ops;
		verified += w.verified;
		sigbus += w.sigbus;
		ncancelled += w.ncancelled;
		nforks += w.nforks;
		nmulti += w.nmulti;
		nlimits += w.nlimits;
	}
	printf("random: %" PRIu64 " rounds from seed %" PRIu64 ": %" PRIu64 " operations, %" PRIu64
	       " touches verified, %" PRIu64 " SIGBUS on a lying disk, %" PRIu64
	       " requests cancelled, %" PRIu64 " mappings in several places, %" PRIu64
	       " forks, %" PRIu64 " other limits; no mismatch, no leak\n",
	       n, seed, ops, verified, sigbus, ncancelled, nmulti, nforks, nlimits);
	return 0;
}
