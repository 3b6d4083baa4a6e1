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

#define REGIONS 8
#define NAMED 2
#define KEPT_MAX 256
#define THREADS 12
#define OPS 6000

struct world;

/* A named object: what its pager has, and what a shared mapping has to read. */
struct named {
	struct world *w;
	struct up_object *object; /* NULL: none */
	size_t npages;
	bool readonly, shared; /* can not be written to; is mapped shared */
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

struct region {
	uintptr_t va; /* 0: none */
	size_t npages;
	uint64_t *word;	     /* what the first word of each page must be */
	unsigned char *prot; /* PROT_*, or GONE */
	unsigned char *wired;
	struct up_object *object;
	bool readonly;	/* maps a snapshot */
	bool parted;	/* a clone, or has been cloned: may be in a chain */
	bool noreserve; /* overcommitted: SIGBUS when the swap is full */
	struct named *
		nm; /* maps this one, from page `first` on; shared: word is the object's, else the lowest possible */
	size_t first;
	bool shared;
	bool *mine; /* private mappings of named objects: written to, so word is exact */
};
#define GONE 0xff

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
	struct region rg[REGIONS];
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
	uint64_t ops, verified, sigbus;
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
		return got == rg->word[page];
	if (got == 0)
		return nm->zeroed[rg->first + page];
	return got >= rg->word[page] && got <= nm->highest[rg->first + page];
}

static void
written(struct region *rg, size_t page, uint64_t word)
{
	rg->word[page] = word;
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
		     (unsigned long)rg->va, got, rg->word[page], rg->parted ? " (parted)" : "");
	fail(w,
	     "page %zu of %#lx, page %zu of a named object, %s%s: read %#" PRIx64 ", not %#" PRIx64
	     "; the object has %#" PRIx64 ", its pager %#" PRIx64 ", highest %#" PRIx64,
	     page, (unsigned long)rg->va, i,
	     rg->shared	      ? "shared"
	     : rg->mine[page] ? "private, written"
			      : "private",
	     rg->parted ? ", parted" : "", got, rg->word[page], nm->word[i], nm->disk[2 * i],
	     nm->highest[i]);
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

	res = sim_touch(w->r->pm, thread, t->rg->va + t->page * PAGE_SIZE, t->write, words, 0,
			t->write && t->word != 0 ? 8 : 16);
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
	/* A third of the touches run through neighbouring pages, so that read-ahead has work. */
	if (t->rg == rg && below(w, 3) == 0)
		page = (t->page + 1) % rg->npages;
	/* One touch a page: who is first is not ours to predict. */
	for (unsigned i = 0; i < THREADS; i++) {
		if (w->touch[i].active && w->touch[i].rg == rg && w->touch[i].page == page)
			return;
	}
	if (rg->prot[page] == GONE)
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

		if (!t->active || t->rg != rg || t->page < first || t->page >= first + n)
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

/* The region has pages [first, ...) of `like`, or zeros. */
static void
settle_in(struct world *w, struct region *rg, void *p, const struct region *like, size_t first)
{
	struct named *nm = rg->nm;

	rg->va = (uintptr_t)p;
	rg->word = rg->shared ? nm->word + rg->first : calloc(rg->npages, sizeof *rg->word);
	rg->prot = malloc(rg->npages);
	rg->mine = calloc(rg->npages, sizeof *rg->mine);
	rg->wired = calloc(rg->npages, 1);
	if (rg->word == NULL || rg->prot == NULL || rg->mine == NULL || rg->wired == NULL)
		fail(w, "out of memory");
	memset(rg->prot, rg->readonly ? PROT_READ : PROT_READ | PROT_WRITE, rg->npages);
	if (nm != NULL && !rg->shared)
		memcpy(rg->word, nm->word + rg->first, rg->npages * sizeof *rg->word);
	if (like != NULL) {
		memcpy(rg->mine, like->mine + first, rg->npages * sizeof *rg->mine);
		memcpy(rg->word, like->word + first, rg->npages * sizeof *rg->word);
		memcpy(rg->prot, like->prot + first, rg->npages);
	}
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

/* Nobody writes to [first, first + n) and it was written back: the pager must have it.  If it may fail, what it has counts. */
static void
check_disk(struct world *w, struct named *nm, size_t first, size_t n, bool lost)
{
	for (size_t i = first; i < first + n; i++) {
		if (nm->disk[2 * i] == nm->word[i])
			continue;
		if (!lost)
			fail(w,
			     "page %zu of the object was not written back: %#" PRIx64
			     ", not %#" PRIx64,
			     i, nm->disk[2 * i], nm->word[i]);
		nm->word[i] = nm->disk[2 * i];
		for (unsigned k = 0; k < REGIONS; k++) {
			struct region *rg = &w->rg[k];

			if (rg->va != 0 && rg->nm == nm && !rg->shared && i >= rg->first &&
			    i < rg->first + rg->npages && !rg->mine[i - rg->first])
				rg->word[i - rg->first] = MIN(rg->word[i - rg->first], nm->word[i]);
		}
	}
}

static void
op_map_named(struct world *w)
{
	struct named *nm = &w->nm[below(w, NAMED)];
	struct region *rg = vacant(w);
	unsigned flags = UP_PRIVATE;
	void *p;
	int r;

	if (nm->object == NULL)
		named_create(w, nm);
	if (rg == NULL || nm->object == NULL)
		return;
	*rg = (struct region){ .nm = nm, .first = below(w, 3) == 0 ? below(w, nm->npages) : 0 };
	rg->npages = 1 + below(w, nm->npages - rg->first);
	rg->shared = !nm->shared && below(w, 3) != 0;
	rg->readonly = rg->shared && nm->readonly;
	rg->noreserve = !rg->shared && below(w, 3) == 0;
	if (rg->shared)
		flags = UP_SHARED;
	else if (rg->noreserve)
		flags |= UP_NORESERVE;
	r = up_map(w->r->rt, NULL, rg->npages * PAGE_SIZE,
		   rg->readonly ? PROT_READ : PROT_READ | PROT_WRITE, flags, nm->object,
		   rg->first * PAGE_SIZE, &p);
	if (r < 0 && r != -ENOSPC && r != -ENOMEM)
		fail(w, "up_map of a named object: %s", strerrorname_np(-r));
	if (r < 0) {
		*rg = (struct region){ 0 };
		return;
	}
	nm->shared |= rg->shared;
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
	if (below(w, 4) == 0) {
		r = up_object_create_anon(w->r->rt, rg->npages * PAGE_SIZE, 0, &rg->object);
		if (r == 0) {
			r = up_map(w->r->rt, NULL, rg->npages * PAGE_SIZE, PROT_READ | PROT_WRITE,
				   UP_SHARED, rg->object, 0, &p);
			if (r < 0)
				up_object_unref(rg->object);
		}
	} else {
		rg->noreserve = below(w, 4) == 0;
		r = up_map(w->r->rt, NULL, rg->npages * PAGE_SIZE, PROT_READ | PROT_WRITE,
			   UP_PRIVATE | (rg->noreserve ? UP_NORESERVE : 0), NULL, 0, &p);
	}
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
	for (unsigned i = 0; i < THREADS; i++) {
		if (w->touch[i].active && w->touch[i].rg == rg)
			finish(w, i);
		if (w->touch[i].rg == rg)
			w->touch[i].rg = NULL;
	}
	up_object_unref(rg->object);
	if (rg->shared)
		rg->nm->shared = false;
	else
		free(rg->word);
	free(rg->prot);
	free(rg->mine);
	free(rg->wired);
	*rg = (struct region){ 0 };
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

static void
op_unmap(struct world *w, struct region *rg)
{
	size_t first = 0, n = rg->npages;
	bool left = false;
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
	memset(rg->prot + first, GONE, n);
	if (rg->shared)
		check_disk(w, rg->nm, rg->first + first, n, w->fail_out);
	memset(rg->wired + first, 0, n);
	for (size_t i = 0; i < rg->npages; i++)
		left |= rg->prot[i] != GONE;
	if (left)
		return;
	if (rg->object != NULL && !rg->readonly && below(w, 2) == 0) {
		/* What was written stays in the object. */
		void *p;

		for (unsigned i = 0; i < THREADS; i++) {
			if (w->touch[i].rg == rg)
				finish(w, i);
		}
		r = up_map(w->r->rt, NULL, rg->npages * PAGE_SIZE, PROT_READ | PROT_WRITE,
			   UP_SHARED, rg->object, 0, &p);
		if (r == 0) {
			rg->va = (uintptr_t)p;
			memset(rg->prot, PROT_READ | PROT_WRITE, rg->npages);
			return;
		}
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
		if (w->touch[i].active && w->touch[i].rg == rg && w->touch[i].write)
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
	if ((r == 0 && wired_any(rg, first, n)) || (r == -EBUSY && !wired_any(rg, 0, rg->npages)))
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

/* A snapshot of an object, mapped for reading, or a private mapping of the object. */
static void
op_snapshot(struct world *w, struct region *rg)
{
	struct region *copy = vacant(w);
	struct up_object *snap;
	void *p = NULL;
	int r;

	if (copy == NULL || rg->object == NULL)
		return;
	finish_writes(w, rg);
	*copy = (struct region){ .npages = rg->npages };
	if (below(w, 2) == 0) {
		r = up_map(w->r->rt, NULL, rg->npages * PAGE_SIZE, PROT_READ | PROT_WRITE,
			   UP_PRIVATE, rg->object, 0, &p);
	} else {
		r = up_object_snapshot(w->r->rt, rg->object, &snap);
		if (r == 0) {
			r = up_map(w->r->rt, NULL, rg->npages * PAGE_SIZE, PROT_READ, UP_SHARED,
				   snap, 0, &p);
			if (r < 0)
				up_object_unref(snap);
			else
				copy->object = snap;
			copy->readonly = true;
		}
	}
	if ((r == -EBUSY) != wired_any(rg, 0, rg->npages))
		fail(w, "copying an object: %d, wired or not", r);
	if (r < 0 && r != -ENOMEM && r != -ENOSPC && r != -EBUSY)
		fail(w, "copying an object: %s", strerrorname_np(-r));
	if (r < 0)
		return;
	settle_in(w, copy, p, rg, 0);
	memset(copy->prot, copy->readonly ? PROT_READ : PROT_READ | PROT_WRITE, copy->npages);
	copy->parted = rg->parted = true;
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

/* All of a private region, longer or shorter. */
static void
op_remap(struct world *w, struct region *rg)
{
	const size_t npages = 1 + below(w, 1500), old = rg->npages;
	void *p;
	int r;

	if (rg->object != NULL || rg->nm != NULL || !covered(rg, 0, old))
		return;
	settle_range(w, rg, 0, old);
	sit(w);
	r = up_remap(w->r->rt, (void *)rg->va, old * PAGE_SIZE, npages * PAGE_SIZE,
		     below(w, 4) == 0 ? 0 : UP_MAYMOVE, &p);
	w->sitting = false;
	if (r == -ENOMEM || r == -ENOSPC)
		return;
	if ((r == -EBUSY) != (npages > old && wired_any(rg, 0, old)) ||
	    (r == -ENOTSUP && (npages <= old || !rg->parted)) ||
	    (r < 0 && r != -EBUSY && r != -ENOTSUP))
		fail(w, "up_remap: %s", strerrorname_np(-r));
	if (r < 0)
		return;
	assert(npages > 0);
	rg->va = (uintptr_t)p;
	rg->npages = npages;
	rg->word = realloc(rg->word, npages * sizeof *rg->word);
	rg->prot = realloc(rg->prot, npages);
	rg->wired = realloc(rg->wired, npages);
	rg->mine = realloc(rg->mine, npages * sizeof *rg->mine);
	if (rg->word == NULL || rg->prot == NULL || rg->wired == NULL || rg->mine == NULL)
		fail(w, "out of memory");
	if (npages > old) {
		memset(rg->word + old, 0, (npages - old) * sizeof *rg->word);
		memset(rg->prot + old, rg->prot[old - 1], npages - old);
		memset(rg->wired + old, 0, npages - old);
		memset(rg->mine + old, 0, (npages - old) * sizeof *rg->mine);
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
	if (rg->nm == NULL) {
		memset(rg->word + first, 0, n * sizeof *rg->word);
	} else if (rg->shared) {
		check_disk(w, rg->nm, rg->first + first, n, false);
	} else {
		memset(rg->mine + first, 0, n * sizeof *rg->mine);
		memcpy(rg->word + first, rg->nm->word + rg->first + first, n * sizeof *rg->word);
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
	if (r != -ENOMEM &&
	    (r == -EINVAL) != (advice == UP_ADVICE_DONTNEED && wired_any(rg, first, n)))
		fail(w, "up_advise(%d): %s, wired or not", (int)advice, strerrorname_np(-r));
	if (r < 0 && r != -ENOMEM && r != -EINVAL && !(rg->shared && w->fail_out && r == -EIO))
		fail(w, "up_advise: %s", strerrorname_np(-r));
}

/* What a private mapping has not changed is the source's, of now or later. */
static void
refreshed(struct world *w, struct region *rg, size_t first, size_t n)
{
	const struct named *nm = rg->nm;

	for (size_t i = first; i < first + n; i++) {
		/* One that is pinned, that nobody may read, or that was copied since a clone sees it too, need not have gone. */
		if (!w->pinning && !rg->parted && !rg->mine[i] && rg->prot[i] != PROT_NONE)
			rg->word[i] = MAX(rg->word[i], nm->disk[2 * (rg->first + i)]);
	}
}

static void
op_sync(struct world *w, struct region *rg)
{
	static const unsigned kinds[] = { UP_SYNC_WAIT, UP_SYNC_WAIT, UP_SYNC_ASYNC,
					  UP_SYNC_INVALIDATE };
	const unsigned flags = kinds[below(w, ARRAY_SIZE(kinds))];
	const bool still = below(w, 2) == 0;
	size_t first, n;
	int r;

	some_range(w, rg, &first, &n);
	if (resettled(w, rg, first, n))
		return;
	/* While threads write all that can be said is that it returns. */
	if (still)
		finish_writes(w, rg);
	sit(w);
	r = up_sync(w->r->rt, (void *)(rg->va + first * PAGE_SIZE), n * PAGE_SIZE, flags);
	w->sitting = false;
	if (r == 0 && still && rg->shared && flags != UP_SYNC_ASYNC)
		check_disk(w, rg->nm, rg->first + first, n, false);
	if (r == 0 && rg->nm != NULL && !rg->shared && flags == UP_SYNC_INVALIDATE)
		refreshed(w, rg, first, n);
	if (r == 0 && !covered(rg, first, n))
		fail(w, "up_sync of a hole succeeded");
	if (r != -ENOMEM &&
	    (r == -EBUSY) != (flags == UP_SYNC_INVALIDATE && wired_any(rg, first, n)))
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
				UP_PAGE_WIRED)) != 0 ||
		    (vec[i] & (UP_PAGE_MAPPED | UP_PAGE_STAGED)) ==
			    (UP_PAGE_MAPPED | UP_PAGE_STAGED))
			fail(w, "page %zu of %#lx: residency %#x makes no sense", first + i,
			     (unsigned long)rg->va, vec[i]);
		if ((vec[i] & UP_PAGE_WIRED) != 0 && rg->wired[first + i] == 0)
			fail(w, "page %zu of %#lx is wired: %#x", first + i, (unsigned long)rg->va,
			     vec[i]);
		if (rg->nm == NULL && rg->word[first + i] != 0 && vec[i] == 0)
			fail(w, "page %zu of %#lx has content, residency says never written",
			     first + i, (unsigned long)rg->va);
	}
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
	struct region *rg = &w->rg[below(w, REGIONS)];
	const unsigned what = (unsigned)below(w, 1000);

	/* What is written back has most to go wrong: it gets more than its share. */
	for (unsigned i = 0; i < REGIONS && what < 950 && w->seed % 3 != 0; i++) {
		if (w->rg[i].shared && below(w, 2) == 0)
			rg = &w->rg[i];
	}
	w->ops++;
	w->calling = rg->va == 0 || what >= 950;
	if (rg->va == 0 && below(w, 3) == 0) {
		op_map_named(w);
	} else if (rg->va == 0) {
		op_map(w);
	} else if (what < 850) {
		const unsigned t = (unsigned)below(w, THREADS);

		if (w->touch[t].active)
			advance(w, t);
		else
			begin(w, t, rg);
	} else if (what < 950) {
		step(w);
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
	for (unsigned i = 0; i < REGIONS; i++) {
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
	const struct rig_config cfg = {
		.memory = UP_MEMORY_LIMIT_MIN + (w->seed % 3) * ((size_t)512 << 10),
		.swap_slots = 4096,
		.services = 1 + w->seed % 3,
		.seed = w->seed,
		.mask = w->seed % 2 ? UP_MASK_MOVE : 0,
		.fault_timeout_ms = 3600000,
		.policy = w->seed / 3 % POLICY_KINDS,
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
	for (unsigned i = 0; i < REGIONS; i++) {
		struct region *rg = &w->rg[i];

		w->calling = true;
		/* What is left between holes in one go: a limit that is all promised has no room to cut entries. */
		for (size_t page = 0, n; rg->va != 0 && page < rg->npages; page += MAX(n, 1)) {
			for (n = 0; page + n < rg->npages && rg->prot[page + n] != GONE;)
				n++;
			if (n > 0 && up_unmap(w->r->rt, (void *)(rg->va + page * PAGE_SIZE),
					      n * PAGE_SIZE) < 0)
				fail(w, "the last up_unmap failed");
		}
		if (rg->va != 0 && rg->shared)
			check_disk(w, rg->nm, 0, rg->nm->npages, w->fail_out);
		if (rg->va != 0)
			forget(w, rg);
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
		 sigbus = 0, ncancelled = 0;
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
	}
	printf("random: %" PRIu64 " rounds from seed %" PRIu64 ": %" PRIu64 " operations, %" PRIu64
	       " touches verified, %" PRIu64 " SIGBUS on a lying disk, %" PRIu64
	       " requests cancelled; no mismatch, no leak\n",
	       n, seed, ops, verified, sigbus, ncancelled);
	return 0;
}
