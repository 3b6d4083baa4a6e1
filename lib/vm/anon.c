/* SPDX-License-Identifier: BSD-2-Clause */
#include "vm/anon.h"

void
anon_waitqs_init(struct anon_waitqs *w)
{
	for (unsigned i = 0; i < ANON_WAITQS; i++) {
		pthread_mutex_init(&w->q[i].lock, NULL);
		pthread_cond_init(&w->q[i].cond, NULL);
		atomic_init(&w->q[i].nudges, 0);
	}
}

void
anon_waitqs_fini(struct anon_waitqs *w)
{
	for (unsigned i = 0; i < ANON_WAITQS; i++) {
		pthread_cond_destroy(&w->q[i].cond);
		pthread_mutex_destroy(&w->q[i].lock);
	}
}

static unsigned
waitq_of(const struct anon *an)
{
	return (unsigned)(((uintptr_t)an / sizeof *an) * 0x9e3779b1u >> 16) % ANON_WAITQS;
}

struct anon *
anon_alloc(struct zone *z)
{
	struct anon *an = zone_alloc(z, ZONE_NOWAIT);

	if (an == NULL)
		return NULL;
	an->hash = 0;
	an->loc = UINT32_MAX;
	atomic_store_explicit(&an->refs, 1, memory_order_relaxed);
	atomic_store_explicit(&an->kind, ANON_CORE, memory_order_relaxed);
	atomic_store_explicit(&an->bits, ANON_BUSY, memory_order_relaxed);
	return an;
}

uint8_t
anon_want(struct anon *an)
{
	uint8_t old = atomic_load_explicit(&an->bits, memory_order_relaxed);

	do {
		if ((old & ANON_BUSY) == 0)
			return 0;
	} while (!atomic_compare_exchange_weak(&an->bits, &old, old | ANON_WANTED));
	return old | ANON_WANTED;
}

static void
wake_sleepers(struct anon_waitqs *w, unsigned q)
{
	/* A sleeper has held this lock from before it set WANTED until it slept. */
	pthread_mutex_lock(&w->q[q].lock);
	pthread_cond_broadcast(&w->q[q].cond);
	pthread_mutex_unlock(&w->q[q].lock);
}

bool
anon_unbusy(struct anon_waitqs *w, struct anon *an)
{
	/* Once the bits are clear the anon may be freed under us: no touch after the exchange. */
	const unsigned q = waitq_of(an);
	const uint8_t old = atomic_exchange_explicit(&an->bits, 0, memory_order_acq_rel);

	assert(old & ANON_BUSY);
	if ((old & ANON_WANTED) == 0)
		return false;
	wake_sleepers(w, q);
	return true;
}

bool
anon_free(struct anon_waitqs *w, struct zone *z, struct anon *an, bool *wanted)
{
	const unsigned q = waitq_of(an);
	uint8_t old;

	if (atomic_fetch_sub_explicit(&an->refs, 1, memory_order_acq_rel) != 1) {
		*wanted = anon_unbusy(w, an);
		return false;
	}
	old = atomic_exchange_explicit(&an->bits, 0, memory_order_acq_rel);
	assert(old & ANON_BUSY);
	zone_free(z, an);
	*wanted = (old & ANON_WANTED) != 0;
	if (*wanted)
		wake_sleepers(w, q);
	return true;
}

unsigned
anon_ticket(struct anon_waitqs *w, const struct anon *an)
{
	return atomic_load(&w->q[waitq_of(an)].nudges);
}

uint32_t
anon_place(const struct anon *an)
{
	_Static_assert(ANON_WAITQS <= 32, "a bit for each");
	return UINT32_C(1) << waitq_of(an);
}

void
anon_nudge(struct anon_waitqs *w, uint32_t places)
{
	for (unsigned q = 0; q < ANON_WAITQS; q++) {
		if ((places >> q & 1) == 0)
			continue;
		pthread_mutex_lock(&w->q[q].lock);
		atomic_fetch_add(&w->q[q].nudges, 1);
		pthread_cond_broadcast(&w->q[q].cond);
		pthread_mutex_unlock(&w->q[q].lock);
	}
}

void
anon_wait(struct anon_waitqs *w, struct anon *an, pthread_mutex_t *leaf)
{
	anon_wait_since(w, an, leaf, anon_ticket(w, an));
}

void
anon_wait_since(struct anon_waitqs *w, struct anon *an, pthread_mutex_t *leaf, unsigned ticket)
{
	const unsigned q = waitq_of(an);

	pthread_mutex_lock(&w->q[q].lock);
	if (!anon_want(an) || atomic_load(&w->q[q].nudges) != ticket) {
		pthread_mutex_unlock(&w->q[q].lock);
		pthread_mutex_unlock(leaf);
		return;
	}
	pthread_mutex_unlock(leaf);
	anon_sleep(w, (int)q);
}

int
anon_sleep_begin(struct anon_waitqs *w, struct anon *an)
{
	const unsigned q = waitq_of(an);

	pthread_mutex_lock(&w->q[q].lock);
	if (anon_want(an))
		return (int)q;
	pthread_mutex_unlock(&w->q[q].lock);
	return -1;
}

void
anon_sleep(struct anon_waitqs *w, int q)
{
	pthread_cond_wait(&w->q[q].cond, &w->q[q].lock);
	pthread_mutex_unlock(&w->q[q].lock);
}

void
anon_sleep_not(struct anon_waitqs *w, int q)
{
	pthread_mutex_unlock(&w->q[q].lock);
}
