/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * tier.c: pages into the compressed pool, out of it to swap, and how much of it there is.  Back into memory: pagein.c.
 */
#include <errno.h>

#include "base/hash.h"
#include "pager/pager.h"

#define ENTRIES_PER_PAGE 4 /* the most pages that a page of the pool is expected to hold */
#define SEG_BYTES 32
#define POOL_MIN ((size_t)256 << 10)
#define GHOSTS_MAX 65536u
#define TUNE_NS 100000000u
#define MARGIN 16 /* of the pool, this part is to be free before anybody needs it; */
#define MARGIN_MIN \
	((size_t)128 << 10) /* and what a cluster of pages takes, of small ones a quarter */

/* What things take, for ztune: figures of docs/benchmarks.md, rounded.  Only how they stand to each other matters. */
#define READ_NS 60000
#define HIT_NS_LZ4 4000
#define HIT_NS_ZSTD 5000
#define STORE_NS_LZ4 2000
#define STORE_NS_ZSTD 5000

/*
 * How many pages one that comes back by itself has paid for that are put into a full pool: it is a read less, and they are compressed, and as many unpacked to be
 * written.  The disk has pages of a stream 64 at a time, as fast as they can be unpacked: they earn nothing.
 */
#define EARNED_LZ4 14
#define EARNED_ZSTD 6
#define CREDIT_MAX 4096

#define SINGLES_MANY 256

void
tier_choose(struct pager *p, enum up_compression kind, const struct tier_place *place)
{
	struct tier *t = &p->tier;

	t->kind = kind;
	t->place = place;
	if (place == NULL || place->entries == 0)
		return;
	t->zstd = place->zstd;
	t->ends = kind == UP_COMPRESS_NONE;
	if (t->ends)
		t->kind = t->zstd ? UP_COMPRESS_ZSTD : UP_COMPRESS_LZ4;
}

/* The frames come first, so that the codec is aligned as it wants to be. */
static size_t
frames_of(unsigned n)
{
	return round_up(n * CLUSTER_MAX * sizeof(frame_t), 64);
}

size_t
tier_share(const struct pager *p, unsigned n)
{
	return p->tier.kind == UP_COMPRESS_NONE
		       ? 0
		       : round_up(frames_of(n) + codec_state_size(p->tier.kind, p->tier.zstd),
				  PAGE_SIZE);
}

int
tier_equip(struct service *s, struct request *write, unsigned n)
{
	struct wired_array *mem = &s->codec_mem;
	frame_t *f;

	if (s->p->tier.kind == UP_COMPRESS_NONE)
		return 0;
	if (wired_array_init(mem, &s->p->arena, tier_share(s->p, n), 1) < 0)
		return -ENOMEM;
	if (wired_array_grow(mem, 1) == 0)
		s->codec = codec_state_init((char *)mem->base + frames_of(n), s->p->tier.kind,
					    s->p->tier.zstd);
	if (s->codec == NULL) {
		wired_array_fini(mem);
		return -ENOMEM;
	}
	f = mem->base;
	for (unsigned i = 0; i < n; i++)
		write[i].frame = f + (size_t)i * CLUSTER_MAX;
	return 0;
}

void
tier_strip(struct service *s)
{
	if (s->codec != NULL)
		wired_array_fini(&s->codec_mem);
	s->codec = NULL;
}

/* What it may be now: what is worth it, not what metadata is waiting for, and not what frames need. */
static size_t
allowed(const struct tier *t)
{
	return t->ends ? 0 : MIN(MIN(t->tune.target, t->cap), t->room);
}

/* What write-back leaves in it. */
static size_t
kept(const struct tier *t)
{
	const size_t most = allowed(t);

	return most - MAX(most / MARGIN, MIN(most / 4, MARGIN_MIN));
}

/* What the pool may have of so much. */
static size_t
pool_of(const struct tier *t, size_t limit)
{
	return round_up(t->wanted != 0 ? MIN(t->wanted, limit) : limit / 3 * 2, ZSEG_SIZE);
}

static size_t
entries_of(size_t pool)
{
	return MIN(pool / PAGE_SIZE * ENTRIES_PER_PAGE, UINT32_MAX / 2);
}

/* Its tables never shrink, and must not take what regions were promised.  Its pages may go, to the last. */
static size_t
tables_of(const struct tier *t, size_t entries)
{
	return round_up(entries * ZENTRY_BYTES + t->pool.max / ZSEG_SIZE * SEG_BYTES +
				ghost_bytes(t->nghosts) + (size_t)4 * SLAB_SIZE,
			PAGE_SIZE);
}

int
tier_init(struct pager *p, size_t wanted, size_t most)
{
	struct tier *t = &p->tier;
	const size_t limit = p->budget.limit;
	const size_t had = t->place != NULL ? t->place->entries : 0;
	void *base = NULL;
	size_t max, top;
	int r = -ENOMEM;

	t->wanted = wanted;
	t->nghosts = MIN(limit / PAGE_SIZE, GHOSTS_MAX);
	max = pool_of(t, limit);
	top = MAX(pool_of(t, most), max);
	if (t->place != NULL) {
		/* Room for all that a predecessor's has, which may be more than this one may be. */
		base = t->place->reserve(t->place->ctx, top, &top);
		if (base == NULL)
			goto none;
	}
	r = zpool_init_at(&t->pool, &p->arena, base, t->place != NULL ? t->place->slide : NULL, top,
			  MAX(entries_of(top), had));
	if (r < 0)
		goto none;
	t->tables = tables_of(t, zpool_set_entries(&t->pool, MAX(entries_of(max), had)));
	r = -ENOMEM;
	if (!resv_try(&p->resv_meta, t->tables))
		goto fini_pool;
	r = wired_array_init(&t->ghosts, &p->arena, 1, ghost_bytes(t->nghosts));
	if (r < 0)
		goto give;
	r = wired_array_grow(&t->ghosts, ghost_bytes(t->nghosts));
	if (r < 0)
		goto fini_ghosts;
	ghost_init(&t->ghost, t->ghosts.base, t->nghosts);
	pthread_mutex_init(&t->lock, NULL);
	ztune_init(&t->tune, MIN(POOL_MIN, max / 8), max, max);
	t->cap = t->room = max;
	zpool_set_limit(&t->pool, allowed(t));
	t->tuned = now_ns();
	atomic_store(&t->suffices, !t->ends);
	return 0;

fini_ghosts:
	wired_array_fini(&t->ghosts);
give:
	resv_give(&p->resv_meta, t->tables);
fini_pool:
	zpool_fini(&t->pool);
none:
	t->kind = UP_COMPRESS_NONE;
	return r;
}

bool
tier_resize(struct pager *p, size_t limit)
{
	struct tier *t = &p->tier;
	size_t max, tables;
	bool ok = true;

	if (t->kind == UP_COMPRESS_NONE)
		return true;
	pthread_mutex_lock(&p->pageout_lock);
	max = MIN(pool_of(t, limit), t->pool.max);
	tables = tables_of(t, entries_of(max));
	if (tables > t->tables)
		ok = resv_try(&p->resv_meta, tables - t->tables);
	if (ok) {
		/* As many entries as there have been stay. */
		tables = tables_of(t, zpool_set_entries(&t->pool, entries_of(max)));
		if (tables < t->tables)
			resv_give(&p->resv_meta, t->tables - tables);
		t->tables = tables;
		ztune_resize(&t->tune, MIN(POOL_MIN, max / 8), max);
		t->cap = MIN(t->cap, max);
		zpool_set_limit(&t->pool, allowed(t));
	}
	pthread_mutex_unlock(&p->pageout_lock);
	return ok;
}

void
tier_fini(struct pager *p)
{
	struct tier *t = &p->tier;

	if (t->kind == UP_COMPRESS_NONE)
		return;
	pthread_mutex_destroy(&t->lock);
	wired_array_fini(&t->ghosts);
	zpool_fini(&t->pool);
	resv_give(&p->resv_meta, t->tables);
}

size_t
tier_bytes(struct pager *p)
{
	return p->tier.kind == UP_COMPRESS_NONE ? 0 : zpool_bytes(&p->tier.pool);
}

bool
tier_has_room(struct pager *p)
{
	struct tier *t = &p->tier;

	return t->kind != UP_COMPRESS_NONE &&
	       atomic_load_explicit(&t->credit, memory_order_relaxed) > 0 &&
	       zpool_excess(&t->pool, allowed(t) - allowed(t) / 8) == 0;
}

bool
tier_suffices(const struct pager *p)
{
	return atomic_load_explicit(&p->tier.suffices, memory_order_relaxed);
}

bool
tier_serves_singles(const struct pager *p)
{
	/* Of what is in swap streams are read ahead, for which it takes frames. */
	return atomic_load_explicit(&p->tier.singles, memory_order_relaxed) >= SINGLES_MANY &&
	       atomic_load_explicit(&p->nswapped, memory_order_relaxed) == 0;
}

void
tier_serves_run(struct pager *p)
{
	/* As a rule it is what it is to be: nobody writes then. */
	if (atomic_load_explicit(&p->tier.singles, memory_order_relaxed) != 0)
		atomic_store_explicit(&p->tier.singles, 0, memory_order_relaxed);
}

void
tier_falls_short(struct pager *p)
{
	if (p->tier.kind == UP_COMPRESS_NONE)
		return;
	atomic_store_explicit(&p->tier.suffices, false, memory_order_relaxed);
	atomic_store_explicit(&p->tier.short_of, true, memory_order_relaxed);
}

static bool
may_grow(struct pager *p)
{
	return zpool_bytes(&p->tier.pool) + ZPOOL_STEP * PAGE_SIZE <= allowed(&p->tier);
}

/* The pool grows by a few pages: of frames, if the budget has no room. */
static bool
make_room(struct pager *p)
{
	frame_t first;
	size_t n;

	if (!may_grow(p))
		return false;
	n = frame_take(&p->frames, ZPOOL_STEP, &first);
	if (n == 0)
		return false;
	frames_drop(p, first, n);
	return true;
}

/*
 * True if the pool has nearly as much as write-back leaves in it, which writes a cluster at a time, and what comes in pushes out what nobody asks for either.
 */
static bool
in_vain(struct tier *t)
{
	const size_t most = kept(t);

	if (atomic_load_explicit(&t->suffices, memory_order_relaxed) ||
	    zpool_excess(&t->pool, most - MIN(most / 4, CLUSTER_MAX * PAGE_SIZE)) == 0)
		return false;
	if (atomic_load_explicit(&t->credit, memory_order_relaxed) <= 0)
		return true;
	atomic_fetch_sub_explicit(&t->credit, 1, memory_order_relaxed);
	return false;
}

enum tier_verdict
tier_store(struct service *s, struct page *pg, uint64_t hash)
{
	struct pager *p = s->p;
	struct tier *t = &p->tier;
	struct anon *an = pg->anon;
	const unsigned shard = pg->shard;
	const uintptr_t va = pg->va;
	zref_t ref;
	int r;

	/* Then it is to become smaller. */
	if (t->ends || (atomic_load(&p->starved) > 0 && frames_most(p) < (size_t)4 * FRAMES_MIN))
		return TIER_REFUSED;
	if (in_vain(t))
		return TIER_REFUSED;
	for (bool again = true;; again = false) {
		r = zpool_store(&t->pool, s->codec, pmap_frame(p->pmap, pg->frame),
				(uint64_t)(uintptr_t)an, &ref);
		if (r != -ENOSPC || !again || !make_room(p))
			break;
	}
	if (r < 0)
		return r == -ENOSPC && may_grow(p) ? TIER_LATER : TIER_REFUSED;
	if (pg->slot != SLOT_NONE)
		swap_free(&p->swap, pg->slot, 1);
	pg->slot = SLOT_NONE;
	pg->same = false;
	an->hash = hash;
	anon_set(an, ANON_ZIP, ref);
	atomic_fetch_add(&t->nzipped, 1);
	atomic_fetch_add_explicit(&p->nreclaimed, 1, memory_order_relaxed);
	count(s, C_ZIPPED, 1);
	frame_give(&p->frames, pg->frame, 1);
	page_evicted(&p->pages, pg, page_key(pg));
	page_unbusy(p, an, shard, va);
	return TIER_STORED;
}

void
tier_free(struct pager *p, const struct anon *an, zref_t ref)
{
	assert(atomic_load_explicit(&an->kind, memory_order_relaxed) != ANON_ZIP);
	(void)an;
	stores_in_order();
	zpool_free(&p->tier.pool, ref);
	atomic_fetch_sub(&p->tier.nzipped, 1);
}

/* --- write-back --- */

struct claims {
	unsigned n;
	struct anon *anon[CLUSTER_MAX];
};

/* => the pool is locked: the anon is there, for its entry is freed before it is */
static bool
claim(void *ctx, zref_t ref, uint64_t owner)
{
	struct anon *an = (struct anon *)(uintptr_t)owner;
	struct claims *c = ctx;

	if (!anon_trybusy_loose(an))
		return false;
	assert(atomic_load(&an->kind) == ANON_ZIP && an->loc == ref);
	(void)ref;
	c->anon[c->n++] = an;
	return true;
}

/* What is to be written, in its frame.  False: it is not what was put there: who touches it is told. */
static bool
unpack(struct service *s, const struct anon *an, frame_t f)
{
	struct pager *p = s->p;
	void *page = pmap_frame(p->pmap, f);

	return zpool_get(&p->tier.pool, s->codec, an->loc, page, ZPOOL_WRITE_BACK) == 0 &&
	       hash_page(p->hash_seed, page) == an->hash;
}

bool
tier_write_back(struct service *s)
{
	struct pager *p = s->p;
	struct tier *t = &p->tier;
	struct claims c = { 0 };
	struct request *req;
	frame_t f[CLUSTER_MAX];
	size_t excess, got;
	unsigned nf, n = 0;
	slot_t first;

	excess = zpool_excess(&t->pool, kept(t));
	if (excess == 0 || s->free_writes == NULL)
		return false;
	nf = frames_obtain(p, CLUSTER_MAX, f);
	if (nf == 0)
		return false;
	zpool_oldest(&t->pool, nf, (size_t)4 * CLUSTER_MAX, claim, &c);
	for (unsigned i = 0; i < c.n; i++) {
		if (unpack(s, c.anon[i], f[n]))
			c.anon[n++] = c.anon[i];
		else
			anon_unbusy(&p->waitqs, c.anon[i]);
	}
	got = n > 0 ? swap_slots_take(p, n, &first) : 0;
	for (size_t i = got; i < n; i++)
		anon_unbusy(&p->waitqs, c.anon[i]);
	frames_release(p, f + got, nf - (unsigned)got);
	if (got == 0) {
		if (n > 0)
			pageout_backoff(&p->write_again, &p->write_backoff);
		return false;
	}
	req = request_get(s, REQ_PAGEOUT);
	assert(req != NULL);
	req->n = (unsigned)got;
	req->source = NULL;
	req->back = true;
	tier_falls_short(p);
	for (unsigned i = 0; i < got; i++) {
		req->anon[i] = c.anon[i];
		req->frame[i] = f[i];
	}
	request_fill_frames(p, req, f, SWAP_WRITE, first);
	count(s, C_WRITES, 1);
	count(s, C_WRITE_BYTES, got * PAGE_SIZE);
	trace_add(&s->trace, now_ns(), TRACE_SWAP_WRITE, first, (uint32_t)got);
	request_submit(s, req);
	return true;
}

void
tier_written(struct service *s, struct request *req)
{
	struct pager *p = s->p;
	struct tier *t = &p->tier;
	const bool ok = req->io.result == 0;

	for (unsigned i = 0; i < req->n; i++) {
		struct anon *an = req->anon[i];
		const slot_t slot = req->io.slot + i;

		if (ok) {
			const zref_t ref = an->loc;

			anon_set(an, ANON_SWAP, slot);
			tier_free(p, an, ref);
			atomic_fetch_add(&p->nswapped, 1);
			atomic_fetch_add_explicit(&t->nback, 1, memory_order_relaxed);
			tier_left(p, an);
		} else {
			swap_free(&p->swap, slot, 1);
		}
		anon_unbusy(&p->waitqs, an);
	}
	frames_release(p, req->frame, req->n);
	req->back = false;
	pageout_written(s, req, ok);
	request_put(s, req);
	services_kick(p, s);
}

/* --- how large it is to be --- */

void
tier_left(struct pager *p, const struct anon *an)
{
	struct tier *t = &p->tier;

	if (t->kind == UP_COMPRESS_NONE)
		return;
	pthread_mutex_lock(&t->lock);
	ghost_add(&t->ghost, (uint64_t)(uintptr_t)an);
	pthread_mutex_unlock(&t->lock);
}

void
tier_missed(struct pager *p, const struct anon *an, bool alone)
{
	struct tier *t = &p->tier;
	bool known;

	if (t->kind == UP_COMPRESS_NONE)
		return;
	pthread_mutex_lock(&t->lock);
	known = ghost_take(&t->ghost, (uint64_t)(uintptr_t)an) != GHOST_UNKNOWN;
	pthread_mutex_unlock(&t->lock);
	if (!known)
		return;
	atomic_fetch_add_explicit(&t->nlost, 1, memory_order_relaxed);
	if (alone)
		tier_earned(p);
}

void
tier_earned(struct pager *p)
{
	struct tier *t = &p->tier;
	const unsigned singles = atomic_load_explicit(&t->singles, memory_order_relaxed);

	if (singles < SINGLES_MANY)
		atomic_store_explicit(&t->singles, singles + 1, memory_order_relaxed);
	/* Nobody minds if it is a little more than there may be. */
	if (atomic_load_explicit(&t->credit, memory_order_relaxed) < CREDIT_MAX)
		atomic_fetch_add_explicit(&t->credit,
					  t->kind == UP_COMPRESS_LZ4 ? EARNED_LZ4 : EARNED_ZSTD,
					  memory_order_relaxed);
}

bool
tier_may_yield(struct pager *p)
{
	return tier_bytes(p) > 0;
}

bool
tier_yield(struct pager *p, size_t bytes)
{
	struct tier *t = &p->tier;
	const size_t has = tier_bytes(p), less = MAX(bytes, has / 8);

	if (t->kind == UP_COMPRESS_NONE)
		return false;
	t->cap = MIN(t->cap, has > less ? has - less : 0);
	zpool_set_limit(&t->pool, allowed(t));
	return zpool_shrink(&t->pool, bytes) > 0;
}

/* Of what metadata and wired pages leave, a third is for frames, and so many that the pager can work with them. */
static void
fit(struct pager *p)
{
	struct tier *t = &p->tier;
	const size_t left = frames_most(p) * PAGE_SIZE + tier_bytes(p);
	const size_t least = (size_t)4 * FRAMES_MIN * PAGE_SIZE;

	t->room = left > least ? MIN(left / 3 * 2, left - least) : 0;
	zpool_set_limit(&t->pool, allowed(t));
}

void
tier_tune(struct pager *p)
{
	struct tier *t = &p->tier;
	const bool lz4 = t->kind == UP_COMPRESS_LZ4;
	const uint64_t now = now_ns();
	struct ztune_counts at, c;
	struct ztune_state state;
	struct zpool_stats st;
	size_t staged;

	fit(p);
	if (now - t->tuned < TUNE_NS)
		return;
	t->tuned = now;
	atomic_store_explicit(&t->suffices, !atomic_exchange(&t->short_of, false) && !t->ends,
			      memory_order_relaxed);
	/* What it had to give it may have again, little by little, once nobody waits. */
	if (atomic_load(&p->starved) == 0)
		t->cap = MIN(t->cap + t->tune.max / ZTUNE_STEPS, t->tune.max);
	staged = page_count(&p->pages, Q_INACTIVE);
	zpool_stats(&t->pool, &st);
	at = (struct ztune_counts){
		.hits = st.count.hits,
		.hits_old = st.count.hits_old,
		.lost = atomic_load(&t->nlost),
		.soft = pager_total(p, C_FAULT + UP_FAULT_SOFT),
		.stored = st.count.stored + st.count.rejected,
		.reads = pager_total(p, C_READ_BYTES) >> PAGE_SHIFT,
	};
	c = (struct ztune_counts){
		.hits = at.hits - t->before.hits,
		.hits_old = at.hits_old - t->before.hits_old,
		.lost = at.lost - t->before.lost,
		.soft = at.soft - t->before.soft,
		.stored = at.stored - t->before.stored,
		.reads = at.reads - t->before.reads,
	};
	t->before = at;
	state = (struct ztune_state){
		.pool = st.pool,
		.entries = st.entries,
		.ghosts = t->nghosts,
		.staged = staged << PAGE_SHIFT,
		.hit_ns = lz4 ? HIT_NS_LZ4 : HIT_NS_ZSTD,
		.read_ns = READ_NS,
		.store_ns = lz4 ? STORE_NS_LZ4 : STORE_NS_ZSTD,
	};
	(void)ztune_step(&t->tune, &c, &state);
	zpool_set_limit(&t->pool, allowed(t));
}
