/* SPDX-License-Identifier: BSD-2-Clause */
/* polling.c: see polling.h.  The counters are hints: lost updates cost a poll more or less. */
#include <sched.h>

#include "swap/polling.h"

#define GAP_NS 50000
#define PENALTY_MIN 16u
#define PENALTY_MAX 4096u

void
polling_init(struct polling *pl, uint64_t limit_us)
{
	cpu_set_t set;

	pl->limit_ns = limit_us * 1000;
	pl->ncpus = 1;
	/* More CPUs than the set can hold: EINVAL. */
	if (sched_getaffinity(0, sizeof set, &set) < 0)
		pl->ncpus = CPU_SETSIZE;
	else
		pl->ncpus = (unsigned)CPU_COUNT(&set);
	atomic_init(&pl->waiting, 0);
	atomic_init(&pl->skip, 0);
	atomic_init(&pl->penalty, 0);
}

bool
polling_begin(struct polling *pl)
{
	unsigned skip;

	if (pl->limit_ns == 0)
		return false;
	/* With more waits than CPUs, who looks takes the CPU from one whose page has come. */
	if (atomic_fetch_add_explicit(&pl->waiting, 1, memory_order_relaxed) >= pl->ncpus)
		return false;
	skip = atomic_load_explicit(&pl->skip, memory_order_relaxed);
	if (skip == 0)
		return true;
	atomic_store_explicit(&pl->skip, skip - 1, memory_order_relaxed);
	return false;
}

void
polling_end(struct polling *pl)
{
	if (pl->limit_ns != 0)
		atomic_fetch_sub_explicit(&pl->waiting, 1, memory_order_relaxed);
}

void
polling_start(struct polling_turn *t)
{
	t->start = t->last = now_ns();
}

bool
polling_again(struct polling *pl, struct polling_turn *t)
{
	const uint64_t now = now_ns();
	unsigned penalty;

	if (now - t->last < GAP_NS && now - t->start < pl->limit_ns) {
		t->last = now;
		return true;
	}
	penalty = atomic_load_explicit(&pl->penalty, memory_order_relaxed) * 2;
	penalty = MIN(MAX(penalty, PENALTY_MIN), PENALTY_MAX);
	atomic_store_explicit(&pl->penalty, penalty, memory_order_relaxed);
	atomic_store_explicit(&pl->skip, penalty, memory_order_relaxed);
	return false;
}

void
polling_found(struct polling *pl)
{
	const unsigned penalty = atomic_load_explicit(&pl->penalty, memory_order_relaxed);

	if (penalty > 0)
		atomic_store_explicit(&pl->penalty, penalty / 2, memory_order_relaxed);
}
