/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * policy.c: the queues, which all policies share; what differs is behind struct policy_ops.
 */
#include "vm/policy.h"

/* Busy pages, and pages with rounds to their credit, that one request for victims passes by per victim. */
#define LOOK 4

/* ONCE may have this part of memory before its pages go first, and one request in so many goes where the others do not. */
#define ONCE_PART 16
#define ONCE_TURNS 16

static const struct policy_ops *const policies[POLICY_KINDS] = {
	[POLICY_SFIFO] = &policy_sfifo,
	[POLICY_SFIFO_REFAULT] = &policy_sfifo_refault,
	[POLICY_S3FIFO] = &policy_s3fifo,
};

const char *
policy_name(enum policy_kind kind)
{
	return policies[kind]->name;
}

size_t
policy_ghost_bytes(enum policy_kind kind, size_t frames)
{
	return policies[kind]->ghosts ? ghost_bytes(frames) : 0;
}

void
policy_init(struct policy *p, const struct policy_config *cfg)
{
	assert(cfg->kind < POLICY_KINDS && cfg->stride >= sizeof(struct policy_node));
	*p = (struct policy){ .ops = policies[cfg->kind],
			      .nodes = cfg->nodes,
			      .stride = cfg->stride,
			      .frames = cfg->frames,
			      .once_min = cfg->once_min };
	for (unsigned q = 0; q < PQ_COUNT; q++)
		p->queue[q].head = p->queue[q].tail = PAGE_NONE;
	ghost_init(&p->ghost, p->ops->ghosts ? cfg->ghost : NULL, cfg->frames);
}

void
policy_resize(struct policy *p, size_t frames, size_t nghosts)
{
	p->frames = frames;
	if (p->ghost.entry != NULL)
		ghost_resize(&p->ghost, nghosts);
}

/* --- queues --- */

#define TURN(p, ago) (((p)->turn - (ago)) & 3)

/* A page goes to the head of KEPT: it is as old as who was there. */
static void
kept_first(struct policy *p, struct policy_node *nd)
{
	if (p->kept_over > 0) {
		nd->count = TURN(p, 2);
		p->kept_over++;
	} else if (p->kept_before > 0) {
		nd->count = TURN(p, 1);
		p->kept_before++;
	} else {
		nd->count = TURN(p, 0);
	}
}

/* A page leaves KEPT, from anywhere. */
static void
kept_gone(struct policy *p, struct policy_node *nd)
{
	p->kept_over -= nd->count == TURN(p, 2);
	p->kept_before -= nd->count == TURN(p, 1);
	nd->count = 0;
}

/* One more page on a queue, or, with SIZE_MAX, one less.  Not a locked instruction: writers have the lock. */
static void
add(struct policy *p, enum policy_queue q, size_t n)
{
	atomic_store_explicit(&p->queue[q].n, policy_length(p, q) + n, memory_order_relaxed);
}

static void
link_tail(struct policy *p, pageno_t no, enum policy_queue q)
{
	struct policy_node *nd = policy_node(p, no);

	assert(nd->queue == PQ_NONE && nd->home != PQ_NONE);
	nd->queue = (uint8_t)q;
	nd->next = PAGE_NONE;
	nd->prev = p->queue[q].tail;
	if (nd->prev == PAGE_NONE)
		p->queue[q].head = no;
	else
		policy_node(p, nd->prev)->next = no;
	p->queue[q].tail = no;
	add(p, q, 1);
	if (q == PQ_KEPT)
		nd->count = TURN(p, 0);
}

static void
link_head(struct policy *p, pageno_t no, enum policy_queue q)
{
	struct policy_node *nd = policy_node(p, no);

	assert(nd->queue == PQ_NONE && nd->home != PQ_NONE);
	nd->queue = (uint8_t)q;
	nd->prev = PAGE_NONE;
	nd->next = p->queue[q].head;
	if (nd->next == PAGE_NONE)
		p->queue[q].tail = no;
	else
		policy_node(p, nd->next)->prev = no;
	p->queue[q].head = no;
	add(p, q, 1);
	if (q == PQ_KEPT)
		kept_first(p, nd);
}

void
policy_take(struct policy *p, pageno_t no)
{
	struct policy_node *nd = policy_node(p, no);
	const enum policy_queue q = nd->queue;

	assert(q > PQ_NONE && q < PQ_COUNT);
	if (nd->prev == PAGE_NONE)
		p->queue[q].head = nd->next;
	else
		policy_node(p, nd->prev)->next = nd->next;
	if (nd->next == PAGE_NONE)
		p->queue[q].tail = nd->prev;
	else
		policy_node(p, nd->next)->prev = nd->prev;
	nd->next = nd->prev = PAGE_NONE;
	nd->queue = PQ_NONE;
	add(p, q, SIZE_MAX);
	if (q == PQ_KEPT)
		kept_gone(p, nd);
}

static enum policy_queue
queue_for(const struct policy_node *nd, enum policy_place place)
{
	switch (place) {
	case POLICY_STAGED:
		return PQ_STAGED;
	case POLICY_CLEAN:
		return PQ_CLEAN;
	case POLICY_AHEAD:
		return PQ_AHEAD;
	case POLICY_WIRED:
		return PQ_WIRED;
	default:
		return nd->home;
	}
}

static size_t
once_share(const struct policy *p)
{
	return MAX(policy_in_memory(p) / ONCE_PART, p->once_min);
}

void
policy_put(struct policy *p, pageno_t no, enum policy_place place)
{
	const enum policy_queue q = queue_for(policy_node(p, no), place);

	link_tail(p, no, q);
	if (q == PQ_ONCE && policy_length(p, PQ_ONCE) > 2 * once_share(p)) {
		const pageno_t oldest = p->queue[PQ_ONCE].head;
		struct policy_node *nd = policy_node(p, oldest);

		policy_take(p, oldest);
		p->ops->insert(p, nd);
		link_tail(p, oldest, nd->home);
	}
}

void
policy_put_back(struct policy *p, pageno_t no, enum policy_place place)
{
	link_head(p, no, queue_for(policy_node(p, no), place));
}

/* --- signals --- */

void
policy_insert(struct policy *p, pageno_t no)
{
	struct policy_node *nd = policy_node(p, no);

	assert(nd->queue == PQ_NONE);
	nd->count = 0;
	p->ops->insert(p, nd);
}

uint32_t
policy_refault(struct policy *p, pageno_t no, uint64_t key, bool demanded)
{
	struct policy_node *nd = policy_node(p, no);
	const uint32_t distance = ghost_take(&p->ghost, key);

	assert(nd->queue == PQ_NONE);
	nd->count = 0;
	/* GHOST_UNKNOWN is farther than any. */
	if (nd->home == PQ_ONCE && distance > policy_in_memory(p) / 2)
		return distance;
	if (demanded)
		p->ops->refault(p, nd, distance);
	else
		p->ops->insert(p, nd);
	return distance;
}

void
policy_touched(struct policy *p, pageno_t no)
{
	struct policy_node *nd = policy_node(p, no);

	assert(nd->queue == PQ_NONE);
	p->ops->touched(p, nd);
}

void
policy_once(struct policy *p, pageno_t no)
{
	struct policy_node *nd = policy_node(p, no);

	assert(nd->queue == PQ_NONE);
	nd->home = PQ_ONCE;
	nd->count = 0;
	(void)p;
}

void
policy_cool(struct policy *p, pageno_t no)
{
	struct policy_node *nd = policy_node(p, no);

	assert(nd->queue == PQ_NONE);
	nd->home = PQ_COLD;
	nd->count = 0;
	(void)p;
}

void
policy_kept(struct policy *p, pageno_t no)
{
	struct policy_node *nd = policy_node(p, no);

	assert(nd->queue == PQ_NONE);
	nd->home = PQ_KEPT;
	nd->count = 0;
	(void)p;
}

void
policy_inherit(struct policy *p, pageno_t to, pageno_t from)
{
	const struct policy_node *old = policy_node(p, from);
	struct policy_node *nd = policy_node(p, to);

	assert(nd->queue == PQ_NONE && old->queue == PQ_NONE);
	nd->home = old->home;
	nd->count = old->count;
}

void
policy_evicted(struct policy *p, pageno_t no, uint64_t key)
{
	const struct policy_node *nd = policy_node(p, no);

	assert(nd->queue == PQ_NONE);
	/* A page that was cooled is out because somebody wanted that: its return says nothing. */
	if (nd->home == PQ_ONCE || (nd->home != PQ_COLD && p->ops->remember(p, nd)))
		ghost_add(&p->ghost, key);
	else
		ghost_forget(&p->ghost, key);
}

void
policy_removed(struct policy *p, pageno_t no)
{
	struct policy_node *nd = policy_node(p, no);

	assert(nd->queue == PQ_NONE);
	nd->home = PQ_NONE; /* putting it anywhere now is caught */
	(void)p;
}

/* --- victims --- */

/* Whether a request for mapped victims goes to ONCE; one and all of it does, so that what leaves together has come together. */
static bool
once_first(struct policy *p)
{
	const bool other = p->once_requests++ % ONCE_TURNS == 0;

	return (policy_length(p, PQ_ONCE) > once_share(p)) != other;
}

/* The queue to look at next, given where each has been looked at to; PQ_NONE: all have been, to the end. */
static enum policy_queue
next_queue(const struct policy *p, enum policy_place from, bool once, const pageno_t at[])
{
	enum policy_queue q;

	switch (from) {
	case POLICY_STAGED:
		return at[PQ_STAGED] != PAGE_NONE ? PQ_STAGED : PQ_NONE;
	case POLICY_CLEAN:
		return at[PQ_CLEAN] != PAGE_NONE ? PQ_CLEAN : PQ_NONE;
	case POLICY_AHEAD:
		return at[PQ_AHEAD] != PAGE_NONE ? PQ_AHEAD : PQ_NONE;
	default:
		break;
	}
	if (at[PQ_COLD] != PAGE_NONE)
		return PQ_COLD;
	if (once && at[PQ_ONCE] != PAGE_NONE)
		return PQ_ONCE;
	q = p->ops->choose(p);
	if (at[q] == PAGE_NONE)
		q = q == PQ_MAIN ? PQ_FRESH : PQ_MAIN;
	if (at[q] == PAGE_NONE)
		q = PQ_ONCE;
	if (at[q] == PAGE_NONE)
		q = PQ_KEPT;
	return at[q] != PAGE_NONE ? q : PQ_NONE;
}

/* One more victim has been found elsewhere: KEPT grows older.  A page at a time is let go, so that it takes constant time. */
static void
kept_age(struct policy *p, pageno_t at[])
{
	const pageno_t no = p->queue[PQ_KEPT].head;

	if (p->turn_left > 0) {
		p->turn_left--;
	} else if (
		p->kept_over ==
		0) { /* so that there are three ages at most, and the count has two bits of them */
		p->kept_over = p->kept_before;
		p->kept_before = policy_length(p, PQ_KEPT) - p->kept_over;
		p->turn++;
		p->turn_left = policy_count(p, POLICY_MAPPED);
	}
	if (p->kept_over == 0)
		return;
	if (at[PQ_KEPT] == no)
		at[PQ_KEPT] = policy_node(p, no)->next;
	policy_take(p, no);
	policy_node(p, no)->home = PQ_MAIN;
	link_tail(p, no, PQ_MAIN);
	if (at[PQ_MAIN] == PAGE_NONE)
		at[PQ_MAIN] = no;
}

unsigned
policy_victims(struct policy *p, enum policy_place from, unsigned max, policy_take_fn *take,
	       void *ctx, pageno_t victim[])
{
	/* Pages before these have been refused. */
	pageno_t at[PQ_COUNT];
	unsigned n = 0, look = LOOK * max, patience = LOOK * max;
	bool once;

	assert(from < POLICY_WIRED);
	once = from == POLICY_MAPPED && once_first(p);
	for (unsigned q = 0; q < PQ_COUNT; q++)
		at[q] = p->queue[q].head;
	while (n < max && look > 0) {
		const enum policy_queue q = next_queue(p, from, once, at);
		const pageno_t no = at[q];
		struct policy_node *nd;

		if (q == PQ_NONE)
			break;
		nd = policy_node(p, no);
		if (from == POLICY_MAPPED && q != PQ_KEPT && patience > 0 && p->ops->spare(p, nd)) {
			const pageno_t next = nd->next;

			policy_take(p, no);
			link_tail(p, no, q);
			at[q] = next != PAGE_NONE ? next : no;
			patience--;
			p->spared++;
			continue;
		}
		at[q] = nd->next;
		if (!take(ctx, no)) {
			look--;
			continue;
		}
		policy_take(p, no);
		victim[n++] = no;
		if (q >= PQ_ONCE && q <= PQ_MAIN && policy_length(p, PQ_KEPT) > 0)
			kept_age(p, at);
	}
	return n;
}

void
policy_check(const struct policy *p)
{
	for (unsigned q = PQ_NONE + 1; q < PQ_COUNT; q++) {
		const size_t over = p->kept_over, before = over + p->kept_before;
		pageno_t prev = PAGE_NONE;
		size_t n = 0;

		for (pageno_t no = p->queue[q].head; no != PAGE_NONE;
		     no = policy_node(p, no)->next) {
			const struct policy_node *nd = policy_node(p, no);

			assert(nd->queue == q && nd->prev == prev);
			assert(nd->home >= PQ_COLD && nd->home <= PQ_KEPT);
			assert(q > PQ_KEPT || nd->home == q);
			assert(q != PQ_KEPT || nd->count == TURN(p, n < over	 ? 2u
								    : n < before ? 1u
										 : 0u));
			(void)nd;
			(void)before;
			prev = no;
			n++;
		}
		assert(p->queue[q].tail == prev && policy_length(p, q) == n);
		(void)n;
		(void)prev;
	}
	assert(policy_length(p, PQ_NONE) == 0);
	ghost_check(&p->ghost);
}
