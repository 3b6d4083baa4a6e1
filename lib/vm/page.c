/* SPDX-License-Identifier: BSD-2-Clause */
#include "vm/page.h"

int
pages_init(struct pages *ps, struct arena *arena, size_t max, size_t frames, size_t most,
	   enum policy_kind kind)
{
	const size_t nghosts = policy_ghost_bytes(kind, frames) / sizeof(uint32_t);
	int r;

	*ps = (struct pages){ .free = PAGE_NONE };
	r = wired_array_init(&ps->table, arena, sizeof(struct page), max);
	if (r < 0)
		return r;
	if (nghosts > 0) {
		r = wired_array_init(&ps->ghosts, arena, sizeof(uint32_t),
				     policy_ghost_bytes(kind, most) / sizeof(uint32_t));
		if (r < 0)
			goto fini_table;
		r = wired_array_grow(&ps->ghosts, nghosts);
		if (r < 0)
			goto fini_ghosts;
	}
	policy_init(&ps->policy, &(struct policy_config){ .kind = kind,
							  .nodes = (char *)ps->table.base +
								   offsetof(struct page, node),
							  .stride = sizeof(struct page),
							  .frames = frames,
							  .once_min = 2 * CLUSTER_MAX,
							  .ghost = ps->ghosts.base });
	(void)mutex_init_brief(&ps->lock);
	return 0;

fini_ghosts:
	wired_array_fini(&ps->ghosts);
fini_table:
	wired_array_fini(&ps->table);
	return r;
}

void
pages_fini(struct pages *ps)
{
	assert(ps->count[PAGE_FREE] == ps->table.n);
	if (ps->ghosts.base != NULL)
		wired_array_fini(&ps->ghosts);
	wired_array_fini(&ps->table);
	pthread_mutex_destroy(&ps->lock);
}

void
pages_resize(struct pages *ps, size_t frames)
{
	if (ps->ghosts.base != NULL)
		(void)wired_array_grow(&ps->ghosts,
				       MIN(ghost_bytes(frames) / sizeof(uint32_t), ps->ghosts.max));
	pthread_mutex_lock(&ps->lock);
	policy_resize(&ps->policy, frames, ps->ghosts.n);
	pthread_mutex_unlock(&ps->lock);
}

/* => ps->lock is held. */
static bool
grow_locked(struct pages *ps)
{
	const size_t old = ps->table.n;
	const size_t n = MIN(old + 64, ps->table.max);

	if (n == old || wired_array_grow(&ps->table, n) < 0)
		return false;
	for (size_t i = n; i-- > old;) {
		struct page *pg = page_at(ps, (pageno_t)i);

		pg->state = PAGE_FREE;
		pg->node.next = ps->free;
		ps->free = (pageno_t)i;
	}
	ps->count[PAGE_FREE] += n - old;
	return true;
}

struct page *
page_alloc(struct pages *ps, struct anon *an, struct leaf *leaf, unsigned index, bool once)
{
	struct page *pg = NULL;

	pthread_mutex_lock(&ps->lock);
	if (ps->free != PAGE_NONE || grow_locked(ps)) {
		const uintptr_t word = leaf->slot[index];

		pg = page_at(ps, ps->free);
		ps->free = pg->node.next;
		*pg = (struct page){ .anon = an,
				     .leaf = leaf,
				     .index = (uint16_t)index,
				     .frame = FRAME_NONE,
				     .slot = UINT32_MAX,
				     .state = PAGE_FREE,
				     .raw = word == 0		? PAGE_RAW_EMPTY
					    : word == SLOT_BASE ? PAGE_RAW_MARKED
								: PAGE_RAW_NOT };
		policy_insert(&ps->policy, page_no(ps, pg));
		if (once)
			policy_once(&ps->policy, page_no(ps, pg));
		page_set_state_locked(ps, pg, PAGE_TRANSIT);
	}
	pthread_mutex_unlock(&ps->lock);
	return pg;
}

static void
free_locked(struct pages *ps, struct page *pg)
{
	assert(page_queue_locked(pg) == Q_NONE);
	assert(pg->state == PAGE_TRANSIT || (pg->state == PAGE_LAUNDRY && pg->anon == NULL));
	page_set_state_locked(ps, pg, PAGE_FREE);
	pg->anon = NULL;
	policy_removed(&ps->policy, page_no(ps, pg));
	pg->node.next = ps->free;
	ps->free = page_no(ps, pg);
}

void
page_free(struct pages *ps, struct page *pg)
{
	pthread_mutex_lock(&ps->lock);
	free_locked(ps, pg);
	pthread_mutex_unlock(&ps->lock);
}

void
page_evicted(struct pages *ps, struct page *pg, uint64_t key)
{
	pthread_mutex_lock(&ps->lock);
	policy_evicted(&ps->policy, page_no(ps, pg), key);
	free_locked(ps, pg);
	pthread_mutex_unlock(&ps->lock);
}

/* As long as a page is MAPPED this does not change. */
static bool
named(const struct page *pg)
{
	return atomic_load_explicit(&pg->anon->kind, memory_order_relaxed) == ANON_COPY;
}

/* One page more or less.  As long as it is MAPPED its leaf stays where it is: objects part without such pages. */
static void
charge(struct account *a, bool more)
{
	for (; a != NULL; a = a->group) {
		const size_t n = atomic_load_explicit(&a->mapped, memory_order_relaxed);

		assert(more || n > 0);
		atomic_store_explicit(&a->mapped, more ? n + 1 : n - 1, memory_order_relaxed);
	}
}

void
page_account_move(struct pages *ps, struct account *a, struct account *group)
{
	pthread_mutex_lock(&ps->lock);
	for (int more = 0; more < 2; more++) {
		for (struct account *g = a->group; g != NULL; g = g->group) {
			const size_t n = atomic_load(&g->mapped), mine = atomic_load(&a->mapped);

			assert(more || n >= mine);
			atomic_store(&g->mapped, more ? n + mine : n - mine);
			atomic_fetch_add(&g->promised, more ? atomic_load(&a->promised)
							    : -atomic_load(&a->promised));
		}
		a->group = group;
	}
	pthread_mutex_unlock(&ps->lock);
}

static inline void
set_state(struct pages *ps, struct page *pg, enum page_state state)
{
	const enum page_state was = atomic_load_explicit(&pg->state, memory_order_relaxed);

	assert(ps->count[was] > 0);
	ps->count[was]--;
	ps->count[state]++;
	if ((was == PAGE_MAPPED) != (state == PAGE_MAPPED)) {
		struct account *account = pg->leaf->object->account;

		if (named(pg))
			ps->mapped_named += state == PAGE_MAPPED ? 1 : SIZE_MAX;
		if (account != NULL)
			charge(account, state == PAGE_MAPPED);
	}
	atomic_store_explicit(&pg->state, (uint8_t)state, memory_order_relaxed);
}

void
page_set_state_locked(struct pages *ps, struct page *pg, enum page_state state)
{
	set_state(ps, pg, state);
}

/* The states that each queue holds; see the drawing. */
static inline bool
belongs(enum page_queue q, enum page_state state)
{
	return state == (q == Q_ACTIVE || q == Q_WIRED ? PAGE_MAPPED : PAGE_STAGED);
}

static inline void
enter_queue(struct pages *ps, struct page *pg, enum page_queue q, enum page_state state)
{
	assert(page_queue_locked(pg) == Q_NONE && pg->anon != NULL && belongs(q, state));
	assert((pg->frame == FRAME_NONE) == (state == PAGE_MAPPED));
	assert((q != Q_CLEAN && q != Q_AHEAD) || pg->slot != UINT32_MAX ||
	       pg->anon->kind == ANON_COPY);
	(void)q;
	pg->raw = PAGE_RAW_NOT;
	stores_in_order();
	set_state(ps, pg, state);
}

void
page_enqueue_locked(struct pages *ps, struct page *pg, enum page_queue q, enum page_state state)
{
	enter_queue(ps, pg, q, state);
	policy_put(&ps->policy, page_no(ps, pg), (enum policy_place)q);
}

void
page_enqueue_head_locked(struct pages *ps, struct page *pg, enum page_queue q,
			 enum page_state state)
{
	enter_queue(ps, pg, q, state);
	policy_put_back(&ps->policy, page_no(ps, pg), (enum policy_place)q);
}

void
page_enqueue(struct pages *ps, struct page *pg, enum page_queue q, enum page_state state)
{
	pthread_mutex_lock(&ps->lock);
	page_enqueue_locked(ps, pg, q, state);
	pthread_mutex_unlock(&ps->lock);
}

void
page_dequeue_locked(struct pages *ps, struct page *pg)
{
	policy_take(&ps->policy, page_no(ps, pg));
	set_state(ps, pg, PAGE_TRANSIT);
}

bool
page_use_locked(struct pages *ps, struct page *pg)
{
	const pageno_t no = page_no(ps, pg);
	const bool ahead = pg->node.queue == PQ_AHEAD;

	assert(pg->frame == FRAME_NONE && pg->raw == PAGE_RAW_NOT);
	policy_take(&ps->policy, no);
	if (!ahead)
		policy_touched(&ps->policy, no);
	set_state(ps, pg, PAGE_MAPPED);
	policy_put(&ps->policy, no, POLICY_MAPPED);
	return ahead;
}

static bool
not_busy(void *ctx, pageno_t no)
{
	return anon_trybusy(page_at(ctx, no)->anon);
}

unsigned
page_victims_locked(struct pages *ps, enum page_queue q, unsigned max, struct page *victim[])
{
	pageno_t no[CLUSTER_MAX];
	unsigned n;

	assert(max <= CLUSTER_MAX);
	n = policy_victims(&ps->policy, (enum policy_place)q, max, not_busy, ps, no);
	for (unsigned i = 0; i < n; i++) {
		victim[i] = page_at(ps, no[i]);
		set_state(ps, victim[i], PAGE_TRANSIT);
	}
	return n;
}

void
pages_check(struct pages *ps)
{
	size_t count[PAGE_STATES] = { 0 }, mapped_named = 0;

	pthread_mutex_lock(&ps->lock);
	policy_check(&ps->policy);
	for (size_t i = 0; i < ps->table.n; i++) {
		const struct page *pg = page_at(ps, (pageno_t)i);
		const enum page_queue q = page_queue_locked(pg);

		count[pg->state]++;
		mapped_named += pg->state == PAGE_MAPPED && named(pg);
		assert((q != Q_NONE) == (pg->state == PAGE_MAPPED || pg->state == PAGE_STAGED));
		assert(pg->state != PAGE_LAUNDRY || pg->frame != FRAME_NONE);
		assert(!pg->same || pg->state == PAGE_FREE ||
		       (pg->state != PAGE_LAUNDRY &&
			(pg->slot != UINT32_MAX || pg->leaf->sourced)));
		if (q == Q_NONE)
			continue;
		assert(belongs(q, pg->state));
		assert(pg->anon != NULL);
		assert((pg->frame == FRAME_NONE) == (pg->state == PAGE_MAPPED));
		assert((q != Q_CLEAN && q != Q_AHEAD) || pg->slot != UINT32_MAX ||
		       pg->anon->kind == ANON_COPY);
	}
	for (unsigned s = 0; s < PAGE_STATES; s++)
		assert(count[s] == ps->count[s]);
	assert(mapped_named == ps->mapped_named);
	(void)count;
	(void)mapped_named;
	pthread_mutex_unlock(&ps->lock);
}
