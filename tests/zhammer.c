/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * zhammer.c: no page is lost in, or mixed up by, a pool of compressed pages that many use at once.
 *
 *	users	two threads: put pages, get them, free them; each page has a busy bit, as an anon has
 *	writer	claims the oldest by that bit, reads them as for write-back, frees them
 *	sizer	once in PACE steps of a user changes the limit, shrinks, looks at the figures
 *
 * Now and then the users free all that they meet, so that segments run empty while they grow.
 *
 * A page is always of its slot's content, which its round of use tells, so who gets another one sees it.  Plain C, so that it runs
 * under ThreadSanitizer too.  Arguments: steps of each user.  Exit status 0: all is well; 1: it is not, with a line on stderr.
 */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "heap_arena.h"
#include "swap/zpool.h"
#include "zpages.h"

#define SLOTS 600u
#define USERS 2u
#define LIMIT ((size_t)512 << 10)
#define PACE 128u

static struct heap_arena heap;
static struct zpool pool;
static struct slot {
	atomic_bool busy;
	zref_t ref;	/* (busy) */
	uint64_t round; /* (busy) */
} slots[SLOTS];
static atomic_bool stop;
static sem_t turn; /* of the sizer */
static atomic_ulong put, refused, got, written;
static unsigned long resized; /* by the sizer */

static void
check(bool good, const char *what, unsigned long value)
{
	if (good)
		return;
	fprintf(stderr, "zhammer: %s (%lu)\n", what, value);
	_exit(1);
}

/* Memory that takes its time, since what matters is what others do meanwhile. */
static struct arena_ops quick;

static int
slow_commit(void *ctx, void *addr, size_t len)
{
	usleep(20);
	return quick.commit(ctx, addr, len);
}

static void
slow_decommit(void *ctx, void *addr, size_t len)
{
	usleep(20);
	quick.decommit(ctx, addr, len);
	usleep(20);
}

struct hand {
	struct codec_state *st;
	_Alignas(64) char page[PAGE_SIZE], back[PAGE_SIZE];
};

static struct hand *
new_hand(enum up_compression kind)
{
	struct hand *h = aligned_alloc(64, round_up(sizeof *h, 64));

	h->st = codec_state_init(aligned_alloc(64, codec_state_size(kind, false)), kind, false);
	check(h->st != NULL, "no state", 0);
	return h;
}

static void
drop_hand(struct hand *h)
{
	free(h->st);
	free(h);
}

static bool
trybusy(struct slot *s)
{
	bool no = false;

	return atomic_compare_exchange_strong(&s->busy, &no, true);
}

static void
content(char *page, unsigned long i, uint64_t round)
{
	zpage_fill(page, (enum zpage_kind)((i + round) % ZPAGE_RANDOM), i * 1000003 + round);
}

/* The page of a busy slot is what it was when it was put. */
static void
verify(struct hand *h, unsigned long i, enum zpool_why why)
{
	struct slot *s = &slots[i];

	check(zpool_owner(&pool, s->ref) == i, "an entry of somebody else", i);
	check(zpool_get(&pool, h->st, s->ref, h->back, why) == 0, "can not be decompressed", i);
	content(h->page, i, s->round);
	check(memcmp(h->page, h->back, PAGE_SIZE) == 0, "another page's content", i);
}

static void
drop(struct slot *s)
{
	zpool_free(&pool, s->ref);
	s->ref = ZREF_NONE;
}

static unsigned long steps;

static void *
user(void *arg)
{
	struct hand *h = new_hand(UP_COMPRESS_LZ4);
	uint64_t x = (uintptr_t)arg;

	for (unsigned long n = 0; n < steps; n++) {
		const unsigned long i = zpage_random(&x) % SLOTS;
		struct slot *s = &slots[i];
		int r;

		if (n % PACE == 0)
			sem_post(&turn);
		if (!trybusy(s))
			continue;
		if (s->ref == ZREF_NONE && n / 1000 % 3 == 0 && n % 64 != 0) {
			; /* the pool runs empty */
		} else if (s->ref == ZREF_NONE) {
			s->round++;
			content(h->page, i, s->round);
			r = zpool_store(&pool, h->st, h->page, i, &s->ref);
			check(r == 0 || r == -ENOSPC, "an error that was not said",
			      (unsigned long)-r);
			atomic_fetch_add(r == 0 ? &put : &refused, 1);
		} else {
			verify(h, i, ZPOOL_HIT);
			atomic_fetch_add(&got, 1);
			if (zpage_random(&x) % 2 == 0 || n / 1000 % 3 == 0)
				drop(s);
		}
		atomic_store(&s->busy, false);
	}
	drop_hand(h);
	return NULL;
}

struct claimed {
	unsigned long slot[16];
	unsigned n;
};

static bool
claim(void *ctx, zref_t ref, uint64_t owner)
{
	struct claimed *c = ctx;

	if (!trybusy(&slots[owner]))
		return false;
	check(slots[owner].ref == ref, "an entry whose owner has another one", ref);
	c->slot[c->n++] = owner;
	return true;
}

static void *
writer(void *arg)
{
	struct hand *h = new_hand(UP_COMPRESS_LZ4);

	(void)arg;
	while (!atomic_load(&stop)) {
		struct claimed c = { .n = 0 };

		if (zpool_excess(&pool, LIMIT / 2) > 0)
			zpool_oldest(&pool, ARRAY_SIZE(c.slot), 64, claim, &c);
		for (unsigned k = 0; k < c.n; k++) {
			verify(h, c.slot[k], ZPOOL_WRITE_BACK);
			drop(&slots[c.slot[k]]);
			atomic_fetch_add(&written, 1);
			atomic_store(&slots[c.slot[k]].busy, false);
		}
	}
	drop_hand(h);
	return NULL;
}

static void *
sizer(void *arg)
{
	uint64_t x = (uintptr_t)arg;

	for (sem_wait(&turn); !atomic_load(&stop); sem_wait(&turn)) {
		struct zpool_stats st;

		resized++;
		zpool_set_limit(&pool, LIMIT / 4 + zpage_random(&x) % LIMIT);
		zpool_shrink(&pool, zpage_random(&x) % (LIMIT / 4));
		zpool_stats(&pool, &st);
		check(st.pool <= LIMIT && st.dead <= st.pool && st.bytes <= st.pool,
		      "figures that can not be", st.pool);
		check(atomic_load(&heap.budget.used) <= heap.budget.limit, "more than the budget",
		      st.pool);
	}
	return NULL;
}

int
main(int argc, char **argv)
{
	pthread_t users[USERS], others[2];

	steps = argc > 1 ? strtoul(argv[1], NULL, 0) : 40000;
	heap_arena_init(&heap, LIMIT + ((size_t)64 << 10), 0);
	quick = heap.ops;
	heap.ops.commit = slow_commit;
	heap.ops.decommit = slow_decommit;
	check(zpool_init(&pool, &heap.arena, LIMIT, SLOTS) == 0, "no pool", 0);
	sem_init(&turn, 0, 0);
	for (unsigned i = 0; i < SLOTS; i++)
		slots[i].ref = ZREF_NONE;
	for (uintptr_t i = 0; i < USERS; i++)
		check(pthread_create(&users[i], NULL, user, (void *)(i + 1)) == 0, "no thread", i);
	check(pthread_create(&others[0], NULL, writer, NULL) == 0, "no thread", 2);
	check(pthread_create(&others[1], NULL, sizer, (void *)7) == 0, "no thread", 3);
	for (unsigned i = 0; i < USERS; i++)
		pthread_join(users[i], NULL);
	atomic_store(&stop, true);
	sem_post(&turn);
	for (unsigned i = 0; i < ARRAY_SIZE(others); i++)
		pthread_join(others[i], NULL);

	zpool_check(&pool);
	check(put > 100 && got > 100 && refused > 0 && written > 0 && resized > 0,
	      "not everything was tried", written);
	for (unsigned i = 0; i < SLOTS; i++)
		if (slots[i].ref != ZREF_NONE)
			drop(&slots[i]);
	zpool_shrink(&pool, SIZE_MAX);
	zpool_check(&pool);
	check(pool.pool == 0, "bytes left", pool.pool);
	printf("%lu put, %lu refused, %lu got, %lu written back, %lu sizes, %llu moved\n", put,
	       refused, got, written, resized, (unsigned long long)pool.count.moved);
	zpool_fini(&pool);
	heap_arena_fini(&heap);
	return 0;
}
