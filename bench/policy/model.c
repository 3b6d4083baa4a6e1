/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * model.c: pageout without the pages.
 */
#include <stdlib.h>

#include "model.h"

struct model {
	const struct model_config *cfg;
	struct policy policy;
	struct policy_node *node; /* one a frame */
	uint32_t *page_of;	  /* what is in the frame */
	pageno_t *frame_of;	  /* [npages]; PAGE_NONE: out */
	uint8_t *been;		  /* [npages] it has been in memory */
	pageno_t *spare;	  /* frames without a page */
	uint32_t nfree;
	bool on;
	struct outcome out;
};

struct model_config
model_config_for(uint32_t memory)
{
	return (struct model_config){
		.memory = memory,
		.batch = CLUSTER_MAX,
		.reclaim = 16,
		.staged_target = MIN(MAX(memory / 8, 32), 16384),
		.high = MIN(MAX(memory / 16, 32), 2048),
	};
}

static bool
nobody_has_it(void *ctx, pageno_t no)
{
	(void)ctx;
	(void)no;
	return true;
}

/* Pages from one place to the next. */
static bool
advance(struct model *m, enum policy_place from, enum policy_place to, unsigned max)
{
	pageno_t victim[CLUSTER_MAX];
	const unsigned n = policy_victims(&m->policy, from, MIN(max, CLUSTER_MAX), nobody_has_it,
					  NULL, victim);

	for (unsigned i = 0; i < n; i++)
		policy_put(&m->policy, victim[i], to);
	if (from == POLICY_MAPPED)
		m->out.staged += n;
	return n > 0;
}

/* As pageout_step(). */
static bool
step(struct model *m)
{
	const size_t staged = policy_count(&m->policy, POLICY_STAGED);
	bool progress = false;

	if (staged < (size_t)m->cfg->staged_target + m->cfg->batch)
		progress = advance(m, POLICY_MAPPED, POLICY_STAGED, m->cfg->batch);
	if (staged >= m->cfg->staged_target || !progress)
		progress |= advance(m, POLICY_STAGED, POLICY_CLEAN, m->cfg->batch);
	return progress;
}

static void
pageout(struct model *m)
{
	for (;;) {
		const size_t available = m->nfree + policy_count(&m->policy, POLICY_CLEAN);

		if (available >= m->cfg->high)
			m->on = false;
		else if (available < m->cfg->high / 2)
			m->on = true;
		if (!m->on || !step(m))
			return;
	}
}

static void
reclaim(struct model *m)
{
	pageno_t victim[CLUSTER_MAX];
	const unsigned n =
		policy_victims(&m->policy, POLICY_CLEAN, MIN(m->cfg->reclaim, CLUSTER_MAX),
			       nobody_has_it, NULL, victim);

	for (unsigned i = 0; i < n; i++) {
		const uint32_t page = m->page_of[victim[i]];

		policy_evicted(&m->policy, victim[i], page);
		policy_removed(&m->policy, victim[i]);
		m->frame_of[page] = PAGE_NONE;
		m->spare[m->nfree++] = victim[i];
	}
}

static void
miss(struct model *m, uint32_t page)
{
	pageno_t no;

	m->out.misses++;
	while (m->nfree == 0) {
		if (policy_count(&m->policy, POLICY_CLEAN) == 0)
			step(m);
		reclaim(m);
	}
	no = m->spare[--m->nfree];
	m->page_of[no] = page;
	m->frame_of[page] = no;
	if (m->been[page])
		policy_refault(&m->policy, no, page, true);
	else
		policy_insert(&m->policy, no);
	m->been[page] = 1;
	policy_put(&m->policy, no, POLICY_MAPPED);
	pageout(m);
}

static void
touch(struct model *m, uint32_t page)
{
	const pageno_t no = m->frame_of[page];

	if (no == PAGE_NONE) {
		miss(m, page);
	} else if (policy_node(&m->policy, no)->queue >= PQ_STAGED) {
		m->out.soft++;
		policy_take(&m->policy, no);
		policy_touched(&m->policy, no);
		policy_put(&m->policy, no, POLICY_MAPPED);
		pageout(m);
	}
}

bool
model_run(enum policy_kind kind, const struct model_config *cfg, const struct refstring *r,
	  struct outcome *out)
{
	const size_t bytes = policy_ghost_bytes(kind, cfg->memory);
	void *ghost = bytes > 0 ? calloc(1, bytes) : NULL;
	struct model m = {
		.cfg = cfg,
		.node = calloc(cfg->memory, sizeof m.node[0]),
		.page_of = calloc(cfg->memory, sizeof m.page_of[0]),
		.spare = calloc(cfg->memory, sizeof m.spare[0]),
		.frame_of = malloc(r->npages * sizeof m.frame_of[0]),
		.been = calloc(r->npages, sizeof m.been[0]),
	};
	const bool ok = (bytes == 0 || ghost != NULL) && m.node != NULL && m.page_of != NULL &&
			m.spare != NULL && m.frame_of != NULL && m.been != NULL;

	if (ok) {
		policy_init(&m.policy, &(struct policy_config){ .kind = kind,
								.nodes = m.node,
								.stride = sizeof m.node[0],
								.frames = cfg->memory,
								.ghost = ghost });
		for (uint32_t i = 0; i < r->npages; i++)
			m.frame_of[i] = PAGE_NONE;
		for (uint32_t i = cfg->memory; i > 0; i--)
			m.spare[m.nfree++] = i - 1;
		for (size_t i = 0; i < r->n; i++)
			touch(&m, r->page[i]);
		policy_check(&m.policy);
		*out = m.out;
	}
	free(ghost);
	free(m.node);
	free(m.page_of);
	free(m.spare);
	free(m.frame_of);
	free(m.been);
	return ok;
}
