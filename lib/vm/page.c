/* SPDX-License-Identifier: BSD-2-Clause */
#include "vm/page.h"

int
pages_init(struct pages *ps, struct arena *arena, size_t max)
{
	int r;

	*ps = (struct pages){ .free = PAGE_NONE };
	for (unsigned q = 0; q < Q_COUNT; q++)
		ps->queue[q].head = ps->queue[q].tail = PAGE_NONE;
	r = wired_array_init(&ps->table, arena, sizeof(struct page), max);
	if (r < 0)
		return r;
	pthread_mutex_init(&ps->lock, NULL);
	return 0;
}

void
pages_fini(struct pages *ps)
{
	assert(ps->count[PAGE_FREE] == ps->table.n);
	wired_array_fini(&ps->table);
	pthread_mutex_destroy(&ps->lock);
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
		pg->queue = Q_NONE;
		pg->next = ps->free;
		ps->free = (pageno_t)i;
	}
	ps->count[PAGE_FREE] += n - old;
	return true;
}

struct page *
page_alloc(struct pages *ps, struct anon *an, struct leaf *leaf, unsigned index)
{
	struct page *pg = NULL;

	pthread_mutex_lock(&ps->lock);
	if (ps->free != PAGE_NONE || grow_locked(ps)) {
		pg = page_at(ps, ps->free);
		ps->free = pg->next;
		*pg = (struct page){ .anon = an,
				     .leaf = leaf,
				     .index = (uint16_t)index,
				     .frame = FRAME_NONE,
				     .slot = UINT32_MAX,
				     .next = PAGE_NONE,
				     .prev = PAGE_NONE,
				     .state = PAGE_FREE,
				     .queue = Q_NONE };
		page_set_state_locked(ps, pg, PAGE_TRANSIT);
	}
	pthread_mutex_unlock(&ps->lock);
	return pg;
}

void
page_free(struct pages *ps, struct page *pg)
{
	pthread_mutex_lock(&ps->lock);
	assert(pg->queue == Q_NONE);
	assert(pg->state == PAGE_TRANSIT || (pg->state == PAGE_LAUNDRY && pg->anon == NULL));
	page_set_state_locked(ps, pg, PAGE_FREE);
	pg->anon = NULL;
	pg->next = ps->free;
	ps->free = page_no(ps, pg);
	pthread_mutex_unlock(&ps->lock);
}

void
page_set_state_locked(struct pages *ps, struct page *pg, enum page_state state)
{
	assert(ps->count[pg->state] > 0);
	ps->count[pg->state]--;
	ps->count[state]++;
	atomic_store_explicit(&pg->state, (uint8_t)state, memory_order_relaxed);
}

/* The states that each queue holds; see the drawing. */
static inline bool
belongs(enum page_queue q, enum page_state state)
{
	return state == (q == Q_ACTIVE || q == Q_WIRED ? PAGE_MAPPED : PAGE_STAGED);
}

void
page_enqueue_locked(struct pages *ps, struct page *pg, enum page_queue q, enum page_state state)
{
	const pageno_t no = page_no(ps, pg);

	assert(pg->queue == Q_NONE && pg->anon != NULL && belongs(q, state));
	assert((pg->frame == FRAME_NONE) == (state == PAGE_MAPPED));
	assert(q != Q_CLEAN || pg->slot != UINT32_MAX);
	page_set_state_locked(ps, pg, state);
	pg->queue = (uint8_t)q;
	pg->next = PAGE_NONE;
	pg->prev = ps->queue[q].tail;
	if (pg->prev == PAGE_NONE)
		ps->queue[q].head = no;
	else
		page_at(ps, pg->prev)->next = no;
	ps->queue[q].tail = no;
	ps->queue[q].n++;
}

void
page_enqueue_head_locked(struct pages *ps, struct page *pg, enum page_queue q,
			 enum page_state state)
{
	const pageno_t no = page_no(ps, pg);

	assert(pg->queue == Q_NONE && pg->anon != NULL && belongs(q, state));
	assert((pg->frame == FRAME_NONE) == (state == PAGE_MAPPED));
	page_set_state_locked(ps, pg, state);
	pg->queue = (uint8_t)q;
	pg->prev = PAGE_NONE;
	pg->next = ps->queue[q].head;
	if (pg->next == PAGE_NONE)
		ps->queue[q].tail = no;
	else
		page_at(ps, pg->next)->prev = no;
	ps->queue[q].head = no;
	ps->queue[q].n++;
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
	const enum page_queue q = pg->queue;

	assert(q < Q_COUNT);
	if (pg->prev == PAGE_NONE)
		ps->queue[q].head = pg->next;
	else
		page_at(ps, pg->prev)->next = pg->next;
	if (pg->next == PAGE_NONE)
		ps->queue[q].tail = pg->prev;
	else
		page_at(ps, pg->next)->prev = pg->prev;
	pg->next = pg->prev = PAGE_NONE;
	pg->queue = Q_NONE;
	ps->queue[q].n--;
	page_set_state_locked(ps, pg, PAGE_TRANSIT);
}

void
pages_check(struct pages *ps)
{
	size_t count[PAGE_STATES] = { 0 };

	pthread_mutex_lock(&ps->lock);
	for (unsigned q = 0; q < Q_COUNT; q++) {
		pageno_t prev = PAGE_NONE;
		size_t n = 0;

		for (pageno_t no = ps->queue[q].head; no != PAGE_NONE; no = page_at(ps, no)->next) {
			const struct page *pg = page_at(ps, no);

			assert(pg->queue == q && pg->prev == prev && belongs(q, pg->state));
			assert(pg->anon != NULL);
			assert((pg->frame == FRAME_NONE) == (pg->state == PAGE_MAPPED));
			assert(q != Q_CLEAN || pg->slot != UINT32_MAX);
			(void)pg;
			prev = no;
			n++;
		}
		assert(ps->queue[q].tail == prev && ps->queue[q].n == n);
		(void)n;
	}
	for (size_t i = 0; i < ps->table.n; i++) {
		const struct page *pg = page_at(ps, (pageno_t)i);

		count[pg->state]++;
		assert(pg->queue != Q_NONE ||
		       (pg->state != PAGE_MAPPED && pg->state != PAGE_STAGED));
		assert(pg->state != PAGE_LAUNDRY || pg->frame != FRAME_NONE);
	}
	for (unsigned s = 0; s < PAGE_STATES; s++)
		assert(count[s] == ps->count[s]);
	(void)count;
	pthread_mutex_unlock(&ps->lock);
}
