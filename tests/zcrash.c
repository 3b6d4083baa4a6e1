/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * zcrash.c: no page is lost in, or mixed up by, a pool of compressed pages whose process is killed between any two instructions.
 *
 *	this process      forks a child after the other, and kills each after a moment
 *	a child           takes over what the last one has left, compares all of it, says so, and goes on putting and freeing
 *
 * A child that is killed before it has said so has changed nothing: the next one takes over from the same.  What has to be there is in
 * slots, as it would be in anons: `in` says so after the entry is there and until before it goes, and when it is on its way the number of the
 * entry is something else already.
 *
 * Arguments: seconds, seed.  Exit status 0: all is well; 1: it is not, with a line on stderr.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/hash.h"
#include "swap/zpool.h"
#include "zpages.h"

#define SLOTS 400u
#define LIMIT ((size_t)384 << 10)
#define PAGES (LIMIT / PAGE_SIZE)
#define TABLES ((size_t)512 << 10)
#define SAMPLES 256u
#define MOST_US 2000u
#define WAIT_MS 20000u

struct slot {
	uint32_t ref;
	uint32_t sample;
	bool in, busy;
};

/* What a process leaves. */
struct left {
	uint64_t entries;
	struct slot slots[SLOTS];
	struct zslide slide;
	_Alignas(SLAB_SIZE) char tables[TABLES];
};

static struct shared {
	unsigned now; /* which of the two */
	uint64_t found, sliding, moved;
	_Atomic uint64_t done; /* children that have taken over */
	struct left left[2];
	uint8_t there[PAGES]; /* pages that are memory */
	_Alignas(PAGE_SIZE) char seg[LIMIT];
} * sh;

static struct sample {
	size_t len;
	enum up_compression codec;
	uint64_t hash, word; /* len 0: a page of that word */
	char data[CODEC_MAX];
} samples[SAMPLES];

static struct left *mine;
static size_t used; /* of mine->tables */
static struct zpool pool;
static struct zpool_past past;
static struct arena arena;
static struct budget budget;
static struct codec_state *state;
static uint64_t units[LIMIT / ZPOOL_UNIT / 64];
static _Alignas(64) char page[PAGE_SIZE];

static void
check(bool good, const char *what, unsigned long value)
{
	if (good)
		return;
	fprintf(stderr, "zcrash: %s (%lu)\n", what, value);
	_exit(1);
}

/* --- memory --- */

static void *
reserve(void *ctx, size_t len)
{
	char *at = mine->tables + used;

	(void)ctx;
	len = round_up(len, SLAB_SIZE);
	if (len > TABLES - used)
		return NULL;
	used += len;
	return at;
}

static void
release(void *ctx, void *addr, size_t len)
{
	(void)ctx;
	(void)addr;
	(void)len;
}

/* Of a segment one page after the other, as the kernel does. */
static int
commit(void *ctx, void *addr, size_t len)
{
	char *at = addr;

	(void)ctx;
	for (size_t i = 0; i < len; i += PAGE_SIZE) {
		memset(at + i, 0, PAGE_SIZE);
		if (at + i >= sh->seg && at + i < sh->seg + LIMIT)
			sh->there[(size_t)(at + i - sh->seg) / PAGE_SIZE] = 1;
	}
	return 0;
}

static void
decommit(void *ctx, void *addr, size_t len)
{
	char *at = addr;

	(void)ctx;
	for (size_t i = 0; i < len; i += PAGE_SIZE) {
		if (at + i >= sh->seg && at + i < sh->seg + LIMIT)
			sh->there[(size_t)(at + i - sh->seg) / PAGE_SIZE] = 0;
		memset(at + i, 0xdb, PAGE_SIZE);
	}
}

static const struct arena_ops ops = {
	.reserve = reserve,
	.release = release,
	.commit = commit,
	.decommit = decommit,
};

/* --- a child --- */

static void
verify(unsigned i)
{
	const struct slot *s = &mine->slots[i];

	check(zpool_get(&pool, state, s->ref, page, ZPOOL_HIT) == 0, "bytes of no page", i);
	check(hash_page(1, page) == samples[s->sample].hash, "another page", i);
}

static void
recall(void)
{
	for (size_t i = 0; i < PAGES; i += ZSEG_PAGES) {
		unsigned n = 0;

		while (n < ZSEG_PAGES && sh->there[i + n])
			n++;
		check(n == 0 || zpool_recall(&pool, i / ZSEG_PAGES, n) == 0, "no recall", i);
		for (unsigned k = n; k < ZSEG_PAGES; k++)
			sh->there[i + k] = 0;
	}
}

/* All that was in the pool is in this one. */
static void
take_over(void)
{
	const struct left *then = &sh->left[sh->now];
	uint64_t n = 0;

	mine = &sh->left[!sh->now];
	memset(mine, 0, sizeof *mine);
	budget_init(&budget, LIMIT * 8);
	check(arena_init(&arena, &ops, NULL, &budget, SLAB_SIZE) == 0, "no arena", 0);
	check(zpool_init_at(&pool, &arena, sh->seg, &mine->slide, LIMIT, SLOTS) == 0, "no pool", 0);
	mine->entries = (uintptr_t)pool.entries.base;
	past = (struct zpool_past){ .entries = (const void *)(uintptr_t)then->entries,
				    .n = then->entries != 0 ? SLOTS : 0,
				    .slide = then->slide,
				    .units = units };
	recall();
	for (unsigned i = 0; i < SLOTS; i++) {
		const struct slot *was = &then->slots[i];
		struct slot *s = &mine->slots[i];
		zref_t ref;

		if (!was->in)
			continue;
		ref = zpool_past_find(&past, was->ref, i + 1, was->busy);
		check(ref != ZREF_NONE, "no entry", i);
		check(zpool_claim(&pool, &past, ref, i + 1, &s->ref) == 0, "not claimed", i);
		s->in = true;
		s->sample = was->sample;
		verify(i);
		n++;
	}
	zpool_settle(&pool, &past);
	zpool_check(&pool);
	for (unsigned i = 0; i < SLOTS; i++)
		if (mine->slots[i].in)
			verify(i);
	sh->found += n;
	sh->sliding += past.n > 0 && past.slide.ref != ZREF_NONE;
	sh->done++;
	stores_in_order();
	sh->now = !sh->now;
	stores_in_order();
}

static void
put(unsigned i, uint64_t *x)
{
	struct slot *s = &mine->slots[i];
	const struct sample *sample = &samples[s->sample = (uint32_t)(zpage_random(x) % SAMPLES)];
	zref_t ref;
	int r;

	s->busy = true;
	r = sample->len > 0
		    ? zpool_put(&pool, sample->codec, sample->data, sample->len, i + 1, &ref)
		    : zpool_put_same(&pool, sample->word, i + 1, &ref);
	if (r == 0) {
		s->ref = ref;
		stores_in_order();
		s->in = true;
	}
	stores_in_order();
	s->busy = false;
}

static void
drop(unsigned i, uint64_t *x)
{
	struct slot *s = &mine->slots[i];
	const zref_t ref = s->ref;

	s->busy = true;
	stores_in_order();
	s->ref = (uint32_t)(zpage_random(x) % SLOTS);
	stores_in_order();
	s->in = false;
	stores_in_order();
	zpool_free(&pool, ref);
	s->busy = false;
}

static void
child(uint64_t seed)
{
	uint64_t x = seed;

	take_over();
	for (;;) {
		const unsigned i = (unsigned)(zpage_random(&x) % SLOTS);
		const unsigned what = (unsigned)(zpage_random(&x) % 1000);

		if (mine->slots[i].in)
			drop(i, &x);
		else
			put(i, &x);
		if (what < 20)
			(void)zpool_shrink(&pool, PAGE_SIZE * (what + 1));
		if (what == 20)
			zpool_set_limit(&pool, LIMIT / 2 + zpage_random(&x) % (LIMIT / 2));
		sh->moved += pool.count.moved;
		pool.count.moved = 0;
	}
}

/* --- */

static void
prepare(void)
{
	struct codec_state *st[2];

	for (unsigned k = 0; k < 2; k++) {
		const enum up_compression kind = k == 0 ? UP_COMPRESS_LZ4 : UP_COMPRESS_ZSTD;

		st[k] = codec_state_init(aligned_alloc(64, codec_state_size(kind, true)), kind,
					 true);
		check(st[k] != NULL, "no state", k);
	}
	for (unsigned i = 0; i < SAMPLES; i++) {
		struct sample *s = &samples[i];
		uint64_t x = i + 1, *p = (uint64_t *)(void *)page;
		const size_t random = zpage_random(&x) % (PAGE_SIZE / 8 * 2 / 3);

		/* Of all lengths. */
		zpage_fill(page, i % 16 == 0 ? ZPAGE_SAME : ZPAGE_POINTERS, i);
		for (size_t k = 0; i % 16 != 0 && k < PAGE_SIZE / 8; k++)
			p[k] = k < random ? zpage_random(&x) : i;
		s->hash = hash_page(1, page);
		s->codec = st[i % 2]->kind;
		if (codec_same(page, &s->word))
			continue;
		s->len = codec_compress(st[i % 2], page);
		check(s->len > 0, "does not compress", i);
		memcpy(s->data, st[i % 2]->buf, s->len);
	}
	state = st[0];
	free(st[1]);
}

int
main(int argc, char **argv)
{
	const time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 3);
	const uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : (uint64_t)getpid();
	uint64_t x = seed * 2 + 1, killed = 0;
	int status;

	sh = mmap(NULL, sizeof *sh + SLAB_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		  -1, 0);
	check(sh != MAP_FAILED, "no memory", 0);
	sh = (struct shared *)round_up((uintptr_t)sh, SLAB_SIZE);
	prepare();
	while (time(NULL) < end) {
		const uint64_t done = sh->done;
		const pid_t pid = fork();

		check(pid >= 0, "no child", 0);
		if (pid == 0)
			child(zpage_random(&x) + killed);
		/* Most of them once they have taken over. */
		for (unsigned i = 0; killed % 4 != 0 && sh->done == done && i < WAIT_MS; i++)
			usleep(200);
		usleep((useconds_t)(zpage_random(&x) % MOST_US));
		kill(pid, SIGKILL);
		check(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) &&
			      WTERMSIG(status) == SIGKILL,
		      "a child has ended", seed);
		killed++;
	}
	check(sh->done > killed / 2 && sh->found > sh->done * 32 && sh->moved > 1000,
	      "not everything was tried", sh->done);
	printf("seed %llu: killed %llu times, %llu of them taken over, with %llu pages, %llu moved; on its way %llu times\n",
	       (unsigned long long)seed, (unsigned long long)killed, (unsigned long long)sh->done,
	       (unsigned long long)sh->found, (unsigned long long)sh->moved,
	       (unsigned long long)sh->sliding);
	free(state);
	return 0;
}
