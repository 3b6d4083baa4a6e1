/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pageout.c: region -> frame -> swap, and where free frames come from.
 *
 * Three moves along the queues of page.h, each a batch of up to CLUSTER_MAX pages:
 *
 *	deactivate   ACTIVE -> INACTIVE   out of the page table, content intact in a frame
 *	launder      INACTIVE -> CLEAN    hash it: zeros and unchanged pages need no write; the others
 *	                                  go to neighbouring slots in one write
 *	reclaim      CLEAN -> free frame  only when somebody needs the frame: until then a touch is
 *	                                  a soft fault
 *
 * Pageout runs in the service threads, between batches of faults, from when less than the low
 * watermark is available until the high one is; several writes are in flight at once.  Available is
 * what frames_obtain() could hand out now: free frames, budget not yet used, clean pages.
 *
 * Alternative looked at: freeing frames as soon as their write ends.  It is simpler by one queue, and
 * forgets pages that memory still holds.
 */
#include <errno.h>

#include "base/hash.h"
#include "base/probe.h"
#include "pager/pager.h"

#define BACKOFF_MIN 1000000u /* ns after a failed write */
#define BACKOFF_MAX 1000000000u
#define SHORT_NS 100000000u /* how long we believe that the system has no memory for us */

/*
 * Calls of the kernel in one deactivation.  Pages that lie side by side leave in one; scattered ones cost a
 * call and a TLB shootdown each, 25 us and more across virtual CPUs, and meanwhile faults wait.
 */
#define STAGE_CALLS 8

/* The high watermark while all that leaves is compressed, at most: the low one still lets a stream have a run of frames. */
#ifndef HIGH_COMPRESSED
#define HIGH_COMPRESSED (4 * CLUSTER_MAX)
#endif
/* The same while nobody wants a run of them. */
#define HIGH_SINGLES (2 * CLUSTER_MAX)

/*
 * So many pages stay mapped when it is the system that has no memory, and throwing ours out may not help: a page
 * just brought in must still be there when its thread runs.
 */
#define ACTIVE_MIN 32

size_t
frames_most(struct pager *p)
{
	const size_t fixed = arena_bytes(&p->arena) + tier_bytes(p) +
			     atomic_load_explicit(&p->bounce.bytes, memory_order_relaxed) +
			     (atomic_load_explicit(&p->nwired, memory_order_relaxed) << PAGE_SHIFT);

	return p->budget.limit > fixed ? (p->budget.limit - fixed) >> PAGE_SHIFT : 0;
}

/* With the disk in the way: frames for as long as a write takes, and pages that may yet be spared one. */
static size_t
high_with_writes(size_t most)
{
	return MIN(MAX(most / 16, 32), 2048);
}

static size_t
inactive_with_writes(size_t most)
{
	return MIN(MAX(most / 8, 32), 16384);
}

/*
 * While all that leaves is compressed a frame is had as soon as it is wanted, and a page comes back for little more than a soft fault: what is free
 * or staged is better mapped.
 */
static size_t
high_watermark(struct pager *p)
{
	const size_t high = high_with_writes(frames_most(p));

	if (!tier_suffices(p))
		return high;
	return MIN(high, tier_serves_singles(p) ? HIGH_SINGLES : HIGH_COMPRESSED);
}

static size_t
inactive_target(struct pager *p)
{
	const size_t most = frames_most(p);

	return tier_suffices(p) ? MIN(MAX(most / 64, 32), 16384) : inactive_with_writes(most);
}

/* What pageout keeps available, and how many pages it stages, up to two batches too many, before it stops. */
size_t
frames_mappable(struct pager *p)
{
	const size_t most = frames_most(p), bounce = bounce_to_come(p) / PAGE_SIZE;
	const size_t n = most - MIN(most, bounce);
	const size_t kept = high_with_writes(n) + inactive_with_writes(n) + (size_t)2 * CLUSTER_MAX;

	return n > kept ? n - kept : 0;
}

static bool
system_short(struct pager *p)
{
	const uint64_t until = atomic_load_explicit(&p->short_until, memory_order_relaxed);

	return until != 0 && now_ns() < until;
}

size_t
frames_available(struct pager *p)
{
	const size_t used = atomic_load_explicit(&p->budget.used, memory_order_relaxed);
	size_t room = p->budget.limit > used ? (p->budget.limit - used) >> PAGE_SHIFT : 0;

	if (system_short(p))
		room = 0;
	return frames_nfree(&p->frames) + room + page_count(&p->pages, Q_CLEAN);
}

void
pager_short(struct pager *p)
{
	atomic_store_explicit(&p->short_until, now_ns() + SHORT_NS, memory_order_relaxed);
}

void
pager_starved(struct pager *p, size_t bytes)
{
	atomic_store(&p->starved, bytes);
}

/*
 * Take up to `max` pages that should leave a queue next, and make them busy.
 * => they are in TRANSIT on return.  Busy ones stay where they are.
 */
static unsigned
take_victims(struct pager *p, enum page_queue q, unsigned max, struct page *victim[])
{
	unsigned n;

	pthread_mutex_lock(&p->pages.lock);
	n = page_victims_locked(&p->pages, q, max, victim);
	pthread_mutex_unlock(&p->pages.lock);
	return n;
}

/* Return a victim that nothing could be done with to the head of its queue.  => busy, in TRANSIT */
static void
put_back(struct pager *p, struct page *pg, enum page_queue q, enum page_state state)
{
	struct anon *an = pg->anon;
	const unsigned shard = pg->shard;
	const uintptr_t va = pg->va;

	pthread_mutex_lock(&p->pages.lock);
	page_enqueue_head_locked(&p->pages, pg, q, state);
	pthread_mutex_unlock(&p->pages.lock);
	page_unbusy(p, an, shard, va);
}

/* --- reclaim --- */

/* Its source has the same bytes: nothing needs to be kept.  => busy, in TRANSIT, with a frame */
static void
forget_copy(struct pager *p, struct page *pg)
{
	struct leaf *leaf = pg->leaf;
	struct anon *an = pg->anon;
	const unsigned shard = pg->shard;
	const uintptr_t va = pg->va;

	leaf_forget(p, leaf, pg->index);
	frame_give(&p->frames, pg->frame, 1);
	page_free(&p->pages, pg);
	anon_gone(p, an, shard, va);
	atomic_fetch_add_explicit(&p->nreclaimed, 1, memory_order_relaxed);
}

/* These were read for a stream that has not come by.  => busy */
static void
wasted(struct pager *p, struct page *const pg[], unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		leaf_credit(pg[i]->leaf, -1);
	atomic_fetch_add_explicit(&p->nwasted, n, memory_order_relaxed);
}

void
ahead_trim(struct service *s)
{
	struct pager *p = s->p;
	const size_t most = MAX(frames_most(p) / 8, 2 * CLUSTER_MAX);
	struct page *pg[CLUSTER_MAX];
	unsigned n;

	if (page_count(&p->pages, Q_AHEAD) <= most)
		return;
	n = take_victims(p, Q_AHEAD, CLUSTER_MAX, pg);
	wasted(p, pg, n);
	for (unsigned i = 0; i < n; i++)
		put_back(p, pg[i], Q_CLEAN, PAGE_STAGED);
}

/* Turn up to `want` clean pages into free frames, in need those that streams are to find; returns how many. */
static unsigned
reclaim(struct pager *p, unsigned want)
{
	struct page *pg[CLUSTER_MAX];
	unsigned n = take_victims(p, Q_CLEAN, MIN(want, CLUSTER_MAX), pg);

	if (n == 0) {
		n = take_victims(p, Q_AHEAD, MIN(want, CLUSTER_MAX), pg);
		wasted(p, pg, n);
	}
	if (n == 0)
		return 0;
	PROBE1(pageout__reclaim, n);
	pthread_mutex_lock(&p->pages.lock);
	for (unsigned i = 0; i < n; i++)
		policy_evicted(&p->pages.policy, page_no(&p->pages, pg[i]), page_key(pg[i]));
	pthread_mutex_unlock(&p->pages.lock);
	for (unsigned i = 0; i < n; i++) {
		struct anon *an = pg[i]->anon;
		const unsigned shard = pg[i]->shard;
		const uintptr_t va = pg[i]->va;

		if (atomic_load_explicit(&an->kind, memory_order_relaxed) == ANON_COPY) {
			forget_copy(p, pg[i]);
			continue;
		}
		anon_set(an, ANON_SWAP, pg[i]->slot);
		atomic_fetch_add(&p->nswapped, 1);
		tier_left(p, an);
		atomic_fetch_add_explicit(&p->nreclaimed, 1, memory_order_relaxed);
		frame_give(&p->frames, pg[i]->frame, 1);
		page_free(&p->pages, pg[i]);
		page_unbusy(p, an, shard, va);
	}
	return n;
}

/* New frames out of unused budget, in holes; returns how many. */
static unsigned
frames_new(struct pager *p, unsigned want, frame_t *first)
{
	size_t n, done = 0;

	while (want > 0 && !budget_charge(&p->budget, want * PAGE_SIZE))
		want /= 2;
	if (want == 0)
		return 0;
	n = hole_take(&p->frames, want, first);
	if (n > 0 && p->pmap->ops->frame_new(p->pmap, *first, n, &done) == -ENOMEM)
		pager_short(p);
	hole_give(&p->frames, *first + (frame_t)done, n - done);
	budget_uncharge(&p->budget, (want - done) * PAGE_SIZE);
	return (unsigned)done;
}

static unsigned
frames_get(struct pager *p, unsigned want, bool create, frame_t f[])
{
	unsigned n = 0;

	while (n < want) {
		frame_t first;
		unsigned got = (unsigned)frame_take(&p->frames, want - n, &first);

		if (got == 0 && create)
			got = frames_new(p, want - n, &first);
		if (got == 0) {
			if (reclaim(p, MAX(want - n, 16)) == 0)
				break;
			continue;
		}
		for (unsigned i = 0; i < got; i++)
			f[n++] = first + i;
	}
	return n;
}

unsigned
frames_obtain(struct pager *p, unsigned want, frame_t f[])
{
	return frames_get(p, want, true, f);
}

unsigned
frames_there(struct pager *p, unsigned want, frame_t f[])
{
	return frames_get(p, want, false, f);
}

void
frames_release(struct pager *p, const frame_t f[], unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		frame_give(&p->frames, f[i], 1);
}

void
frames_drop(struct pager *p, frame_t first, size_t n)
{
	p->pmap->ops->frame_drop(p->pmap, first, n);
	hole_give(&p->frames, first, n);
	budget_uncharge(&p->budget, n * PAGE_SIZE);
}

size_t
frames_give_up(struct pager *p, size_t most)
{
	const size_t clean = page_count(&p->pages, Q_CLEAN) + page_count(&p->pages, Q_AHEAD);
	size_t done = 0, n;

	most = MIN(most, MAX((frames_nfree(&p->frames) + clean) / 2, (size_t)16));
	while (done < most) {
		frame_t first;

		n = frame_take(&p->frames, MIN(most - done, CLUSTER_MAX), &first);
		if (n > 0)
			frames_drop(p, first, n);
		else if (reclaim(p, CLUSTER_MAX) == 0)
			break;
		done += n;
	}
	return done;
}

/* Metadata needs room: give the memory of free frames back.  True if it did. */
bool
frames_shrink(struct pager *p)
{
	unsigned left = METADATA_STEP / PAGE_SIZE;
	bool any = false;

	/* Below this faults could not be served at all: then metadata has what the compressed pool gives, or has to do without. */
	if (frames_most(p) < FRAMES_MIN + left) {
		if (bounce_shrink(p))
			return true;
		if (!tier_may_yield(p))
			atomic_store(&p->starved, 0);
		return false;
	}
	while (left > 0) {
		frame_t f;

		/* One that is there: making one and dropping it would gain nothing. */
		if (frames_get(p, 1, false, &f) == 0)
			break;
		frames_drop(p, f, 1);
		left--;
		any = true;
	}
	if (left == 0)
		atomic_store(&p->starved, 0);
	return any;
}

/* --- deactivate --- */

/*
 * By address: pages that lie side by side leave in one call.  Nearly sorted already, as a rule.  From the
 * run of the oldest upwards and round to it, so that it goes first whoever else is in the batch: pinned pages at
 * low addresses would otherwise use up the calls every time.
 */
static void
sort_by_va(struct page *pg[], unsigned n)
{
	struct page *const oldest = pg[0], *low[CLUSTER_MAX];
	unsigned first = 0;

	for (unsigned i = 1; i < n; i++) {
		struct page *key = pg[i];
		unsigned j = i;

		for (; j > 0 && pg[j - 1]->va > key->va; j--)
			pg[j] = pg[j - 1];
		pg[j] = key;
	}
	while (first < n && pg[first] != oldest)
		first++;
	while (first > 0 && pg[first - 1]->va + PAGE_SIZE == pg[first]->va &&
	       pg[first - 1]->shard == oldest->shard)
		first--;
	memcpy(low, pg, first * sizeof pg[0]);
	memmove(pg, pg + first, (n - first) * sizeof pg[0]);
	memcpy(pg + n - first, low, first * sizeof pg[0]);
}

/* The same of pages that are staged, with their hashes: neighbours go back to their source in one request. */
static void
sort_sourced(struct page *pg[], uint64_t hash[], unsigned n)
{
	for (unsigned i = 1; i < n; i++) {
		struct page *key = pg[i];
		const uint64_t h = hash[i];
		unsigned j = i;

		for (; j > 0 && pg[j - 1]->va > key->va; j--) {
			pg[j] = pg[j - 1];
			hash[j] = hash[j - 1];
		}
		pg[j] = key;
		hash[j] = h;
	}
}

/*
 * A page that we believed mapped is not there: the program discarded it itself, so it is zeros now.
 * => busy, in TRANSIT; freed on return.
 */
static void
discarded(struct service *s, struct page *pg)
{
	struct pager *p = s->p;
	struct leaf *leaf = pg->leaf;
	struct anon *an = pg->anon;
	const unsigned shard = pg->shard;
	const uintptr_t va = pg->va;

	if (pg->slot != SLOT_NONE)
		swap_free(&p->swap, pg->slot, 1);
	leaf_forget(p, leaf, pg->index);
	page_free(&p->pages, pg);
	budget_uncharge(&p->budget, PAGE_SIZE);
	anon_gone(p, an, shard, va);
	count(s, C_FOREIGN, 1);
}

/* Move the run pg[0 .. n) of neighbouring pages out.  Returns how many of them have been dealt with. */
static unsigned
stage_run(struct service *s, struct page *pg[], unsigned n)
{
	struct pager *p = s->p;
	frame_t hole;
	size_t nhole, done = 0;
	struct anon *an;
	unsigned shard;
	uintptr_t va;
	int r;

	/* There are more addresses than the budget has frames: a hole is always to be had. */
	nhole = hole_take(&p->frames, n, &hole);
	assert(nhole > 0);
	for (unsigned i = 0; i < nhole; i++) {
		pg[i]->same = false;
		pg[i]->frame = hole + i; /* before: adopt.h */
	}
	stores_in_order();
	r = p->pmap->ops->remove(p->pmap, pg[0]->shard, pg[0]->va, hole, nhole, &done);
	for (unsigned i = (unsigned)done; i < nhole; i++)
		pg[i]->frame = FRAME_NONE;
	hole_give(&p->frames, hole + (frame_t)done, nhole - done);
	PROBE3(pageout__stage, pg[0]->va, done, r);
	for (unsigned i = 0; i < done; i++) {
		assert(pg[i] != NULL);
		an = pg[i]->anon;
		shard = pg[i]->shard;
		va = pg[i]->va;
		page_enqueue(&p->pages, pg[i], Q_INACTIVE, PAGE_STAGED);
		page_unbusy(p, an, shard, va);
	}
	count(s, C_STAGED, done);
	if (r == 0)
		return (unsigned)done;
	assert(done < n);
	if (r == -ENOENT) {
		discarded(s, pg[done]);
		return (unsigned)done + 1;
	}
	if (r == -EBUSY) {
		/* Somebody holds it because he uses it. */
		pthread_mutex_lock(&p->pages.lock);
		policy_touched(&p->pages.policy, page_no(&p->pages, pg[done]));
		pthread_mutex_unlock(&p->pages.lock);
		count(s, C_PINNED, 1);
		trace_add(&s->trace, now_ns(), TRACE_PINNED, pg[done]->va, 0);
	}
	an = pg[done]->anon;
	shard = pg[done]->shard;
	va = pg[done]->va;
	page_enqueue(&p->pages, pg[done], Q_ACTIVE, PAGE_MAPPED);
	page_unbusy(p, an, shard, va);
	return (unsigned)done + 1;
}

/*
 * Pages of pools whose touches the kernel settles without us: those that were touched since they were last looked at stay.
 * Each is passed over once at most until it is touched again.  Returns how many are left in pg[].
 */
static unsigned
keep_referenced(struct service *s, struct page *pg[], unsigned n)
{
	struct pager *p = s->p;
	unsigned left = 0;

	for (unsigned i = 0; i < n; i++) {
		struct anon *an = pg[i]->anon;
		const uintptr_t va = pg[i]->va;

		if (pg[i]->shard != PMAP_POOL || p->pmap->ops->pool_referenced(p->pmap, va) == 0) {
			pg[left++] = pg[i];
			continue;
		}
		pthread_mutex_lock(&p->pages.lock);
		policy_touched(&p->pages.policy, page_no(&p->pages, pg[i]));
		page_enqueue_locked(&p->pages, pg[i], Q_ACTIVE, PAGE_MAPPED);
		pthread_mutex_unlock(&p->pages.lock);
		page_unbusy(p, an, PMAP_POOL, va);
		count(s, C_REFERENCED, 1);
	}
	return left;
}

bool
account_is_full(const struct pager *p, const struct account *a)
{
	const size_t limit = atomic_load_explicit(&a->limit, memory_order_relaxed);
	const size_t mapped = atomic_load_explicit(&a->mapped, memory_order_relaxed);

	return limit != 0 && mapped + (size_t)RUN_MAX * p->nservices > limit;
}

bool
account_is_limited(const struct account *a)
{
	while (a != NULL && atomic_load_explicit(&a->limit, memory_order_relaxed) == 0)
		a = a->group;
	return a != NULL;
}

bool
account_turns_away(const struct pager *p, const struct account *a)
{
	while (a != NULL && !account_is_full(p, a))
		a = a->group;
	return a != NULL;
}

bool
account_is_kept(const struct account *a)
{
	for (; a != NULL; a = a->group) {
		const size_t minimum = atomic_load_explicit(&a->minimum, memory_order_relaxed);

		if (minimum > 0 &&
		    atomic_load_explicit(&a->mapped, memory_order_relaxed) <= minimum)
			return true;
	}
	return false;
}

static bool
pays(const struct object *o, const struct account *a)
{
	const struct account *of = o->account;

	while (of != NULL && of != a)
		of = of->group;
	return of != NULL && o->pool != 0;
}

/* Its next object from where the hand is on; NULL: none at all. */
static struct object *
next_payer(struct pager *p, struct account *a)
{
	struct object *lowest = NULL, *next = NULL;

	for (struct object *o = p->objects; o != NULL; o = o->next) {
		if (!pays(o, a))
			continue;
		if (lowest == NULL || o->id < lowest->id)
			lowest = o;
		if (o->id >= a->object && (next == NULL || o->id < next->id))
			next = o;
	}
	if (next == NULL)
		next = lowest;
	if (next != NULL && next->id != a->object) {
		a->object = next->id;
		a->index = 0;
	}
	return next;
}

/*
 * By address and round, a leaf at a time: in which order they were touched is known for all pages together only.  What is
 * taken by mistake is a soft fault as long as there is room for it.
 */
size_t
account_reduce(struct pager *p, struct account *a, size_t target)
{
	const size_t before = atomic_load(&a->mapped);
	size_t after;
	uint64_t first = 0;

	for (unsigned rounds = 0; atomic_load(&a->mapped) > target;) {
		struct object *o = next_payer(p, a);
		struct leaf *leaf;
		uint64_t end;

		if (o == NULL)
			break;
		if (a->object == first && a->index == 0 && ++rounds == 3)
			break; /* what is left is pinned, or on its way */
		if (first == 0)
			first = a->object;
		/* Far more may be mapped than was ever touched. */
		leaf = object_next_leaf(o, a->index);
		if (leaf != NULL) {
			a->index = MAX(a->index, leaf->base);
			pthread_mutex_unlock(&leaf->lock);
		} else {
			a->index = o->npages;
		}
		end = MIN(a->index + LEAF_SLOTS, o->npages);
		for (uint64_t at = a->index; at < end && atomic_load(&a->mapped) > target;
		     at += CLUSTER_MAX) {
			a->index = MIN(at + CLUSTER_MAX, end);
			range_keep(p, o, at, a->index - at, true, o->pool + (at << PAGE_SHIFT),
				   PMAP_POOL);
		}
		if (a->index >= o->npages) {
			a->object = o->id + 1;
			a->index = 0;
		}
	}
	after = atomic_load(&a->mapped);
	return before - MIN(before, after);
}

/* Those that others may not push out stay.  Returns how many are left in pg[]. */
static unsigned
keep_accounts(struct pager *p, struct page *pg[], unsigned n)
{
	unsigned left = 0;

	for (unsigned i = 0; i < n; i++) {
		const struct account *a = pg[i]->leaf->object->account;
		struct anon *an = pg[i]->anon;
		const unsigned shard = pg[i]->shard;
		const uintptr_t va = pg[i]->va;

		/* They are in TRANSIT, and not counted: those in hand would all be the last. */
		if (a == NULL || !account_is_kept(a)) {
			pg[left++] = pg[i];
			continue;
		}
		pthread_mutex_lock(&p->pages.lock);
		policy_touched(&p->pages.policy, page_no(&p->pages, pg[i]));
		page_enqueue_locked(&p->pages, pg[i], Q_ACTIVE, PAGE_MAPPED);
		pthread_mutex_unlock(&p->pages.lock);
		page_unbusy(p, an, shard, va);
	}
	return left;
}

/* True if a page was moved out, or passed over. */
static bool
deactivate(struct service *s, unsigned most)
{
	struct pager *p = s->p;
	struct page *pg[CLUSTER_MAX] = { NULL };
	const uint64_t before = atomic_load_explicit(&s->count[C_STAGED], memory_order_relaxed);
	const unsigned taken = take_victims(p, Q_ACTIVE, MIN(most, p->stage_batch), pg);
	unsigned n = taken, i = 0, calls = 0, passed;

	/* Not if somebody waits: all of them may be touched all the time. */
	if (s->nparked == 0 && p->pmap->ops->pool_referenced != NULL)
		n = keep_referenced(s, pg, n);
	if (p->over != NULL)
		n = keep_accounts(p, pg, n);
	passed = taken - n;
	if (n > 0)
		trace_add(&s->trace, now_ns(), TRACE_STAGE, pg[0]->va, n);
	n = lend_recall(s, pg, n);
	sort_by_va(pg, n);
	while (i < n && calls < STAGE_CALLS) {
		unsigned j = i + 1;

		while (j < n && pg[j]->va == pg[j - 1]->va + PAGE_SIZE &&
		       pg[j]->shard == pg[i]->shard)
			j++;
		for (; i < j; calls++)
			i += stage_run(s, pg + i, j - i);
	}
	/* Those that are scattered are not taken in vain the next time. */
	if (i < n)
		p->stage_batch = MAX(i, STAGE_CALLS);
	else if (calls < STAGE_CALLS)
		p->stage_batch = MIN(p->stage_batch * 2, CLUSTER_MAX);
	/* The rest stay first in line. */
	while (n > i)
		put_back(p, pg[--n], Q_ACTIVE, PAGE_MAPPED);
	return passed > 0 ||
	       atomic_load_explicit(&s->count[C_STAGED], memory_order_relaxed) != before;
}

/* --- launder --- */

/*
 * Reading all over a sparse region leaves leaves behind that hold nothing: where their metadata was promised leaf
 * by leaf, take it back.  The leaf that was emptied may be gone already, so it is looked up anew.
 */
static void
prune_overcommitted(struct pager *p, uintptr_t va)
{
	struct map_entry *e;
	uint64_t index;

	pthread_rwlock_rdlock(&p->map.lock);
	e = map_lookup(&p->map, va);
	if (e != NULL && e->object->noreserve) {
		index = e->offset + ((va - e->start) >> PAGE_SHIFT);
		resv_give(&p->resv_meta, object_prune(e->object, index, index + 1) * META_PER_LEAF);
	}
	pthread_rwlock_unlock(&p->map.lock);
}

/* A staged page of zeros: nothing needs to be kept.  => busy, in TRANSIT; freed on return. */
static void
drop_zero(struct service *s, struct page *pg)
{
	struct pager *p = s->p;
	struct leaf *leaf = pg->leaf;
	struct anon *an = pg->anon;
	const unsigned shard = pg->shard;
	const uintptr_t va = pg->va;

	if (pg->slot != SLOT_NONE)
		swap_free(&p->swap, pg->slot, 1);
	leaf_forget(p, leaf, pg->index);
	PROBE1(pageout__zero, va);
	frame_give(&p->frames, pg->frame, 1);
	page_free(&p->pages, pg);
	anon_gone(p, an, shard, va);
	if (va != 0)
		prune_overcommitted(p, va);
	count(s, C_ZERO, 1);
	trace_add(&s->trace, now_ns(), TRACE_ZERO_SKIP, va, 1);
}

bool
pageout_backoff(_Atomic uint64_t *write_again, _Atomic uint64_t *write_backoff)
{
	const uint64_t now = now_ns();
	uint64_t ns = atomic_load(write_backoff);

	if (now < atomic_load(write_again))
		return false; /* one of several that were in flight together: one failure, one pause */
	ns = MIN(MAX(ns * 2, BACKOFF_MIN), BACKOFF_MAX);
	atomic_store(write_backoff, ns);
	atomic_store(write_again, now + ns);
	return true;
}

size_t
swap_slots_take(struct pager *p, size_t want, slot_t *first)
{
	size_t n = swap_alloc(&p->swap, want, first);

	if (n == 0 && swap_area_grow(&p->swap, p->swap.nslots + CLUSTER_MAX) == 0)
		n = swap_alloc(&p->swap, want, first);
	return n;
}

/*
 * Start writing pg[0 .. n), all busy, in TRANSIT, with frames and without slots; hash[] is theirs.
 * Returns how many are under way (from the front); those are LAUNDRY and no longer busy.
 */
static unsigned
write_cluster(struct service *s, struct page *pg[], const uint64_t hash[], unsigned n)
{
	struct pager *p = s->p;
	struct request *req;
	slot_t first;
	size_t got;

	req = request_get(s, REQ_PAGEOUT);
	if (req == NULL)
		return 0;
	got = swap_slots_take(p, pg[0]->alone ? 1 : n, &first);
	if (got == 0) {
		request_put(s, req);
		pageout_backoff(&p->write_again, &p->write_backoff);
		return 0;
	}
	req->n = (unsigned)got;
	req->source = NULL;
	tier_falls_short(p);
	for (unsigned i = 0; i < got; i++) {
		pg[i]->slot = first + i;
		pg[i]->anon->hash = hash[i];
		req->page[i] = pg[i];
	}
	request_fill(p, req, SWAP_WRITE, first);
	atomic_fetch_add(&p->laundering, got);
	count(s, C_WRITES, 1);
	count(s, C_WRITE_BYTES, got * PAGE_SIZE);
	PROBE3(swap__write, pg[0]->va, first, got);
	trace_add(&s->trace, now_ns(), TRACE_SWAP_WRITE, pg[0]->va, (uint32_t)got);

	for (unsigned i = 0; i < got; i++) {
		struct anon *an = pg[i]->anon;
		const unsigned shard = pg[i]->shard;
		const uintptr_t va = pg[i]->va;

		pthread_mutex_lock(&p->pages.lock);
		page_set_state_locked(&p->pages, pg[i], PAGE_LAUNDRY);
		pthread_mutex_unlock(&p->pages.lock);
		page_unbusy(p, an, shard, va); /* pg[i] may be an orphan from here on */
	}
	request_submit(s, req);
	return (unsigned)got;
}

/*
 * True if a page was cleaned or its write started.  *stuck: there was one whose pager has as many as it gets, or is left alone
 * since it has failed, and which has moved to the end of the line.
 */
static bool
launder(struct service *s, bool *stuck)
{
	struct pager *p = s->p;
	struct page *dirty[CLUSTER_MAX], *sourced[CLUSTER_MAX];
	uint64_t hash[CLUSTER_MAX], shash[CLUSTER_MAX]; /* of dirty[], of sourced[] */
	unsigned ndirty = 0, nsourced = 0, clean = 0, out = 0, back = 0;
	const bool roomy = tier_has_room(p);

	*stuck = false;
	if (s->free_writes == NULL)
		return false;
	/* Unchanged pages cost only their hash: look on until a whole cluster is dirty. */
	for (unsigned round = 0; round < 4 && ndirty + nsourced < CLUSTER_MAX; round++) {
		struct page *pg[CLUSTER_MAX];
		const unsigned n = take_victims(p, Q_INACTIVE, CLUSTER_MAX - ndirty - nsourced, pg);

		if (n == 0)
			break;
		for (unsigned i = 0; i < n; i++) {
			struct anon *an = pg[i]->anon;
			const void *content = pmap_frame(p->pmap, pg[i]->frame);
			const bool same = pg[i]->same;
			const uint64_t h = same ? an->hash : hash_page(p->hash_seed, content);

			const bool copy =
				atomic_load_explicit(&an->kind, memory_order_relaxed) == ANON_COPY;

			/* Of a named object nothing means what its source has. */
			if (h == p->zero_hash && !pg[i]->leaf->named && page_is_zero(content)) {
				drop_zero(s, pg[i]);
				clean++;
				continue;
			}
			if (copy && (an->hash != h || pg[i]->alone)) {
				if (pg[i]->leaf->sourced) {
					shash[nsourced] = h;
					sourced[nsourced++] = pg[i];
					continue;
				}
				/* From here on it is a page of its own. */
				atomic_store_explicit(&an->kind, ANON_CORE, memory_order_relaxed);
			} else if (!copy && pg[i]->slot != SLOT_NONE && an->hash == h && roomy &&
				   tier_store(s, pg[i], h) == TIER_STORED) {
				clean++;
				continue;
			} else if (copy || (pg[i]->slot != SLOT_NONE && an->hash == h)) {
				const unsigned shard = pg[i]->shard;
				const uintptr_t va = pg[i]->va;

				page_enqueue(&p->pages, pg[i], Q_CLEAN, PAGE_STAGED);
				page_unbusy(p, an, shard, va);
				count(s, C_CLEAN, 1);
				PROBE1(pageout__clean, va);
				trace_add(&s->trace, now_ns(), TRACE_CLEAN, va, 1);
				clean++;
				continue;
			}
			if (pg[i]->slot != SLOT_NONE) {
				swap_free(&p->swap, pg[i]->slot, 1);
				pg[i]->slot = SLOT_NONE;
			}
			if (s->codec != NULL) {
				const enum tier_verdict v = tier_store(s, pg[i], h);

				if (v == TIER_STORED) {
					clean++;
					continue;
				}
				/* Who takes frames faster than they come free is no reason to write.  With none at all it takes a write to begin. */
				if (v == TIER_LATER && clean > 0) {
					put_back(p, pg[i], Q_INACTIVE, PAGE_STAGED);
					continue;
				}
			}
			hash[ndirty] = h;
			dirty[ndirty++] = pg[i];
		}
	}
	while (out < ndirty) {
		const unsigned n = write_cluster(s, dirty + out, hash + out, ndirty - out);

		if (n == 0)
			break;
		out += n;
	}
	sort_sourced(sourced, shash, nsourced);
	for (unsigned i = 0, n; i < nsourced; i += n) {
		n = source_out(s, sourced + i, shash + i, nsourced - i);
		back += n;
		if (n == 0) {
			struct anon *an = sourced[i]->anon;
			const unsigned shard = sourced[i]->shard;
			const uintptr_t va = sourced[i]->va;

			page_enqueue(&p->pages, sourced[i], Q_INACTIVE, PAGE_STAGED);
			page_unbusy(p, an, shard, va);
			*stuck = true;
			n = 1;
		}
	}
	for (unsigned i = ndirty; i-- > out;)
		put_back(p, dirty[i], Q_INACTIVE, PAGE_STAGED);
	return clean + out + back > 0;
}

/* One page whose write has ended.  => pages.lock held.  True if it was an orphan: the caller frees it. */
static bool
written_locked(struct pager *p, struct page *pg, bool ok)
{
	if (pg->anon == NULL)
		return true;
	page_set_state_locked(&p->pages, pg, PAGE_TRANSIT);
	pg->alone = !ok;
	if (!ok)
		pg->slot = SLOT_NONE;
	page_enqueue_locked(&p->pages, pg, ok ? Q_CLEAN : Q_INACTIVE, PAGE_STAGED);
	return false;
}

void
pageout_written(struct service *s, const struct request *req, bool ok)
{
	struct pager *p = s->p;

	if (ok) {
		atomic_store_explicit(&p->write_backoff, 0, memory_order_relaxed);
		atomic_store(&p->written, true);
	} else {
		count(s, C_WRITE_ERRORS, 1);
		trace_add(&s->trace, now_ns(), TRACE_SWAP_ERROR, req->io.slot,
			  (uint32_t)-req->io.result);
		/* A cluster is tried again at once, page by page, to find the bad slot; then we slow down. */
		if (req->n > 1 ? atomic_load(&p->written)
			       : pageout_backoff(&p->write_again, &p->write_backoff))
			log_line(&p->log, UP_LOG_ERROR,
				 "writing %u pages to swap slot %u: error %d; kept in memory",
				 req->n, req->io.slot, -req->io.result);
	}
}

void
pageout_done(struct service *s, struct request *req)
{
	struct pager *p = s->p;
	const bool ok = req->io.result == 0;

	for (unsigned i = 0; i < req->n; i++) {
		struct page *pg = req->page[i];
		const slot_t slot = req->io.slot + i;
		bool orphan;

		pthread_mutex_lock(&p->pages.lock);
		orphan = written_locked(p, pg, ok);
		pthread_mutex_unlock(&p->pages.lock);
		if (orphan) {
			frame_give(&p->frames, pg->frame, 1);
			page_free(&p->pages, pg);
		}
		if (ok && !orphan)
			continue; /* the page has the slot now */
		if (!ok && req->n == 1 && req->io.result != -ENOSPC &&
		    atomic_exchange(&p->written, false)) {
			/*
			 * The medium takes others and refuses this slot: never again.  (If it takes none, the
			 * slots are not to blame.)  The page is safe in memory.
			 */
			swap_retire(&p->swap, slot);
			resv_shrink(&p->resv_swap, 1);
			count(s, C_BAD_SLOTS, 1);
		} else {
			swap_free(&p->swap, slot, 1);
		}
	}
	atomic_fetch_sub(&p->laundering, req->n);
	pageout_written(s, req, ok);
	request_put(s, req);
	services_kick(p, s);
}

/* --- the step --- */

void
pageout_wake(struct pager *p)
{
	const size_t used = atomic_load_explicit(&p->budget.used, memory_order_relaxed);
	const size_t low = high_watermark(p) / 2;
	struct service *s = p->service[0];

	/* As a rule there is room, and no lock to take. */
	if (atomic_load_explicit(&p->pageout_on, memory_order_relaxed) ||
	    used + (low << PAGE_SHIFT) <= p->budget.limit ||
	    frames_available(p) + atomic_load_explicit(&p->laundering, memory_order_relaxed) >= low)
		return;
	if (!atomic_exchange(&p->pageout_on, true))
		s->io->ops->kick(s->io);
}

/* True if less is available than who unpacks pages leaves behind. */
static bool
below_mark(struct pager *p)
{
	const size_t used = atomic_load_explicit(&p->budget.used, memory_order_relaxed);
	const size_t mark = high_watermark(p) / 4 * 3;

	return used + (mark << PAGE_SHIFT) > p->budget.limit &&
	       frames_available(p) + atomic_load_explicit(&p->laundering, memory_order_relaxed) <
		       mark;
}

void
pageout_ask(struct pager *p)
{
	struct service *s = p->service[0];

	if (!atomic_load_explicit(&p->pageout_on, memory_order_relaxed) && below_mark(p) &&
	    !atomic_exchange(&p->pageout_on, true))
		s->io->ops->kick(s->io);
}

void
pageout_help(struct service *s)
{
	struct pager *p = s->p;

	if (!below_mark(p))
		return;
	atomic_store_explicit(&p->pageout_on, true, memory_order_relaxed);
	pageout_step(s);
}

bool
pageout_step(struct service *s)
{
	struct pager *p = s->p;
	size_t available =
		frames_available(p) + atomic_load_explicit(&p->laundering, memory_order_relaxed);
	const size_t high = high_watermark(p);
	bool progress = false, stuck = false;
	size_t active, inactive;

	/* As a rule there is room, and no lock to take. */
	if (available >= high / 2 && s->nparked == 0 &&
	    !atomic_load_explicit(&p->pageout_on, memory_order_relaxed) &&
	    atomic_load(&p->starved) == 0)
		return false;
	if (pthread_mutex_trylock(&p->pageout_lock) != 0)
		return false;
	assert(!p->unattached); /* who is to be stopped can be */
	/* There is room for it: another has gone, or it was the system that had none to give. */
	if (atomic_load(&p->budget.used) + atomic_load(&p->starved) <= p->budget.limit)
		atomic_store(&p->starved, 0);
	if (atomic_load(&p->starved) > 0) {
		progress = frames_shrink(p);
		/* What else is done here may take it again, the pool above all: who waits for it is to look first. */
		if (progress && atomic_load(&p->starved) == 0) {
			pthread_mutex_unlock(&p->pageout_lock);
			return true;
		}
		if (!progress && frames_most(p) < (size_t)4 * FRAMES_MIN)
			progress = tier_yield(p, atomic_load(&p->starved));
		available = MIN(available, high - 1);
	}
	if (available >= high)
		atomic_store_explicit(&p->pageout_on, false, memory_order_relaxed);
	else if (available < high / 2 || s->nparked > 0)
		atomic_store_explicit(&p->pageout_on, true, memory_order_relaxed);

	if (atomic_load_explicit(&p->pageout_on, memory_order_relaxed) ||
	    atomic_load(&p->starved) > 0) {
		inactive = page_count(&p->pages, Q_INACTIVE);
		active = page_count(&p->pages, Q_ACTIVE);
		if (inactive < inactive_target(p) + CLUSTER_MAX &&
		    active > (system_short(p) ? ACTIVE_MIN : 0))
			progress |= deactivate(s, (unsigned)MIN(active - ACTIVE_MIN, CLUSTER_MAX));
		if (p->tier.kind != UP_COMPRESS_NONE) {
			tier_tune(p);
			if (now_ns() >= atomic_load(&p->write_again))
				progress |= tier_write_back(s);
		}
		if ((inactive >= inactive_target(p) || !progress || s->nparked > 0) &&
		    now_ns() >= atomic_load(&p->write_again))
			progress |= launder(s, &stuck);
		/* The inactive ones may all wait for a pager that does not answer: others must get in line. */
		if (stuck && !progress && active > ACTIVE_MIN)
			progress |= deactivate(s, (unsigned)MIN(active - ACTIVE_MIN, CLUSTER_MAX));
	}
	pthread_mutex_unlock(&p->pageout_lock);
	return progress;
}
