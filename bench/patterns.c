/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * patterns.c: the pages' contents, and the ways to go over them.
 *
 * A page is 4096 bytes cut out of a pool at a place that depends on the page, under a first word that no other page has: never equal to
 * another page, and made by one memcpy(), so that the memory is measured and not a random number generator.  The pool decides
 * what a page compresses to:
 *
 *	random  to nothing less
 *	half    to half: 256 random bytes and 256 that repeat a word, in turn
 *	real    as programs and texts do: pieces of files that this machine has
 *
 * The patterns go over the same pages one after the other, so that each starts with what the one before left in memory:
 *
 *	fill          from nothing; most of it must leave again on the way
 *	seq_read      finds the last pages of the fill in memory, all dirty
 *	backward      from the last page to the first; finds the last pages, clean
 *	streams4      a page of each quarter in turn; finds the first pages
 *	rand_read     finds the ends of the quarters
 *	rand_write    as many pages as fit have been written to in order first, outside the clock, or the first
 *	              memory-full of evictions would cost nothing and a short run be one of reads
 *	zipf          finds dirty pages
 *
 * With several threads each goes over its own stretch of the region, all at the same time.
 */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench.h"
#include "policy/refstring.h"

#define FULL_CHECK 64 /* of so many pages one is compared in full, the rest by first word */
#define FINAL_SAMPLE 1024
#define STREAMS 4
#define STORE_EVERY 10 /* of so many accesses by Zipf's law one stores */
#define WORKERS_MAX 8

struct worker {
	pthread_t thread;
	pthread_barrier_t *start; /* NULL: there is only one */
	enum pattern pattern;
	unsigned char *base; /* of the region */
	size_t first, n;     /* pages that are its own */
	size_t ops;	     /* touches */
	size_t slice;	     /* where its share of bench.ns begins */
	const uint32_t *order;
	uint64_t rng;
	uint64_t began, ended;
};

const char *const data_name[DATAS] = { "random", "half", "real" };

/* ---- the data ---- */

static void
pool_random(unsigned char *pool)
{
	uint64_t w;

	for (size_t i = 0; i < POOL_SIZE; i += sizeof w) {
		w = mix64(i);
		memcpy(pool + i, &w, sizeof w);
	}
}

static void
pool_half(unsigned char *pool)
{
	uint64_t w;

	for (size_t i = 0; i < POOL_SIZE; i += sizeof w) {
		w = i & 256 ? mix64(i >> 9) : mix64(~i);
		memcpy(pool + i, &w, sizeof w);
	}
}

/* Append what regular files of a directory hold, a piece of each, up to `end`. */
static size_t
pool_files(unsigned char *pool, size_t at, size_t end, const char *dir)
{
	const size_t piece = (size_t)32 << 10;
	struct dirent **name;
	/* In order of names: the same on every run. */
	int n = scandir(dir, &name, NULL, alphasort);
	struct stat st;
	ssize_t got;
	int fd, d;

	if (n < 0)
		return at;
	d = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	for (int i = 0; i < n; i++) {
		fd = d < 0 || at == end ? -1
					: openat(d, name[i]->d_name,
						 O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
		free(name[i]);
		if (fd < 0)
			continue;
		if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size >= 8192) {
			got = pread(fd, pool + at, end - at < piece ? end - at : piece, 4096);
			at += got > 0 ? (size_t)got : 0;
		}
		close(fd);
	}
	free(name);
	if (d >= 0)
		close(d);
	return at;
}

/* Half programs, half text. */
static void
pool_real(unsigned char *pool)
{
	static const char *const text[] = {
		"/usr/share/common-licenses", "/usr/share/perl5",  "/usr/share/misc",
		"/usr/share/i18n/charmaps",   "/usr/include",	   "/usr/include/linux",
		"/usr/lib/python3",	      "/var/lib/dpkg/info"
	};
	static const char *const binary[] = { "/usr/bin", "/usr/sbin", "/usr/lib" };
	size_t at = 0, begun;

	for (size_t i = 0; i < sizeof text / sizeof text[0]; i++)
		at = pool_files(pool, at, POOL_SIZE / 2, text[i]);
	begun = at;
	for (size_t i = 0; i < sizeof binary / sizeof binary[0]; i++)
		at = pool_files(pool, at, POOL_SIZE, binary[i]);
	if (begun < POOL_SIZE / 4 || at - begun < POOL_SIZE / 4)
		skip_add("data real",
			 "too few programs and texts here: in part half-compressible data instead");
	if (at < POOL_SIZE)
		memcpy(pool + at, bench.pool[DATA_HALF], POOL_SIZE - at);
}

void
pool_init(void)
{
	pool_random(bench.pool[DATA_RANDOM]);
	pool_half(bench.pool[DATA_HALF]);
	pool_real(bench.pool[DATA_REAL]);
}

uint64_t
page_word(size_t page, uint32_t generation)
{
	return mix64(mix64((uint64_t)page << 24 ^ generation) + bench.round);
}

static const unsigned char *
page_body(size_t page)
{
	return bench.pool[bench.scale.data] + page_word(page, 0) % ((POOL_SIZE - PAGE) / 8) * 8;
}

void
page_write(unsigned char *p, size_t page)
{
	uint64_t w = page_word(page, 0);

	memcpy(p + sizeof w, page_body(page), PAGE - sizeof w);
	memcpy(p, &w, sizeof w);
}

void
page_rewrite(unsigned char *base, size_t page)
{
	*(volatile uint64_t *)(void *)(base + page * PAGE) =
		page_word(page, ++bench.generation[page]);
}

void
page_check_word(uint64_t word, size_t page)
{
	if (word != page_word(page, bench.generation[page]))
		job_fail("WRONG DATA: page %zu has %#llx instead of %#llx", page,
			 (unsigned long long)word,
			 (unsigned long long)page_word(page, bench.generation[page]));
}

void
page_check_all(const unsigned char *p, size_t page)
{
	uint64_t w;

	memcpy(&w, p, sizeof w);
	page_check_word(w, page);
	if (memcmp(p + sizeof w, page_body(page), PAGE - sizeof w) != 0)
		job_fail("WRONG DATA: page %zu differs behind its first word", page);
}

static uint64_t
load_word(const unsigned char *base, size_t page)
{
	return *(const volatile uint64_t *)(const void *)(base + page * PAGE);
}

/* The i-th read of a worker. */
static void
page_read(const struct worker *w, size_t i, size_t page)
{
	page_check_word(load_word(w->base, page), page);
	if (i % FULL_CHECK == 0)
		page_check_all(w->base + page * PAGE, page);
}

/* ---- what a worker does ---- */

static void
fill(struct worker *w)
{
	for (size_t i = 0; i < w->n; i++)
		page_write(w->base + (w->first + i) * PAGE, w->first + i);
}

static void
seq_read(struct worker *w)
{
	for (size_t i = 0; i < w->n; i++)
		page_read(w, i, w->first + i);
}

static void
backward(struct worker *w)
{
	for (size_t i = 0; i < w->n; i++)
		page_read(w, i, w->first + w->n - 1 - i);
}

static void
streams4(struct worker *w)
{
	const size_t share = w->n / STREAMS;

	for (size_t i = 0; i < share; i++)
		for (size_t s = 0; s < STREAMS; s++)
			page_read(w, i, w->first + s * share + i);
}

static void
rand_read(struct worker *w)
{
	uint64_t t, word;
	size_t page;

	for (size_t i = 0; i < w->ops; i++) {
		page = w->first + rng_below(&w->rng, w->n);
		t = bench_now();
		word = load_word(w->base, page);
		bench.ns[w->slice + i] = (uint32_t)(bench_now() - t);
		page_check_word(word, page);
		if (i % FULL_CHECK == 0)
			page_check_all(w->base + page * PAGE, page);
	}
}

/* One word is stored, without a look before: a load would make two faults of it for some. */
static void
rand_write(struct worker *w)
{
	size_t page;
	uint64_t t;

	for (size_t i = 0; i < w->ops; i++) {
		page = w->first + rng_below(&w->rng, w->n);
		t = bench_now();
		page_rewrite(w->base, page);
		bench.ns[w->slice + i] = (uint32_t)(bench_now() - t);
	}
}

static void
zipf(struct worker *w)
{
	for (size_t i = 0; i < w->ops; i++) {
		const size_t page = w->first + w->order[i];

		if (mix64(i) % STORE_EVERY == 0)
			page_rewrite(w->base, page);
		else
			page_read(w, i, page);
	}
}

static const struct {
	void (*go)(struct worker *w);
	int advice;
	bool writes, latencies;
} how[PATTERNS] = {
	[FILL] = { .go = fill, .advice = MADV_SEQUENTIAL, .writes = true },
	[SEQ_READ] = { .go = seq_read, .advice = MADV_SEQUENTIAL },
	[BACKWARD] = { .go = backward, .advice = MADV_NORMAL },
	[STREAMS4] = { .go = streams4, .advice = MADV_SEQUENTIAL },
	[RAND_READ] = { .go = rand_read, .advice = MADV_RANDOM, .latencies = true },
	[RAND_WRITE] = { .go = rand_write,
			 .advice = MADV_RANDOM,
			 .writes = true,
			 .latencies = true },
	[ZIPF] = { .go = zipf, .advice = MADV_RANDOM, .writes = true },
};

const char *const pattern_name[PATTERNS] = { "fill",	  "seq_read",	"backward", "streams4",
					     "rand_read", "rand_write", "zipf" };

int
pattern_advice(enum pattern p)
{
	return how[p].advice;
}

bool
pattern_writes(enum pattern p)
{
	return how[p].writes;
}

/* Half as many writes as reads, since all that matters is in memory and dirty already. */
static size_t
touches_in(enum pattern p)
{
	switch (p) {
	case RAND_READ:
		return bench.scale.rand_ops;
	case RAND_WRITE:
		return bench.scale.rand_ops / 2;
	case ZIPF:
		return ZIPF_OPS(bench.scale.rand_ops);
	default:
		return bench.scale.pages;
	}
}

void
pattern_label(char label[32], enum pattern p, unsigned threads)
{
	if (threads > 1)
		snprintf(label, 32, "%s_%ut", pattern_name[p], threads);
	else
		snprintf(label, 32, "%s", pattern_name[p]);
}

/* Each thread's pages by Zipf's law, one thread's behind the other's. */
void
patterns_prepare(unsigned threads)
{
	const size_t ops = touches_in(ZIPF) / threads;
	struct refstring_config want = { .pages = (uint32_t)(bench.scale.pages / threads),
					 .memory = (uint32_t)(bench.scale.memory / PAGE),
					 .n = ops };
	struct refstring r;
	unsigned law = 0;

	while (strcmp(refstring_name(law), "zipf-0.99") != 0)
		law++;
	for (unsigned i = 0; i < threads; i++) {
		want.seed = bench.round * WORKERS_MAX + i + 1;
		if (!refstring_make(&r, law, &want))
			job_fail("no memory for Zipf's law");
		memcpy(bench.order + i * ops, r.page, ops * sizeof r.page[0]);
		refstring_free(&r);
	}
}

/* ---- all of them ---- */

static void *
worker_main(void *arg)
{
	struct worker *w = arg;

	if (w->start != NULL)
		pthread_barrier_wait(w->start);
	w->began = bench_now();
	how[w->pattern].go(w);
	w->ended = bench_now();
	return NULL;
}

/*
 * Nanoseconds from the first one's start to the last one's end.  They take the time themselves: this thread may be let run only when they are done.
 */
static uint64_t
workers_run(struct worker *w, unsigned n)
{
	uint64_t began = UINT64_MAX, ended = 0;
	pthread_barrier_t start;

	if (n == 1) {
		worker_main(w);
		return w->ended - w->began;
	}
	pthread_barrier_init(&start, NULL, n);
	for (unsigned i = 0; i < n; i++) {
		w[i].start = &start;
		if (pthread_create(&w[i].thread, NULL, worker_main, &w[i]) != 0)
			job_fail("pthread_create");
	}
	for (unsigned i = 0; i < n; i++) {
		pthread_join(w[i].thread, NULL);
		began = w[i].began < began ? w[i].began : began;
		ended = w[i].ended > ended ? w[i].ended : ended;
	}
	pthread_barrier_destroy(&start);
	return ended - began;
}

static void
workers_init(struct worker *w, const struct race *race, unsigned char *base, enum pattern p)
{
	const size_t share = bench.scale.pages / race->threads;
	const size_t ops = touches_in(p) / race->threads;

	for (unsigned i = 0; i < race->threads; i++)
		w[i] = (struct worker){
			.pattern = p,
			.base = base,
			.first = i * share,
			.n = share,
			.ops = ops,
			.slice = i * ops,
			.order = bench.order + i * ops,
			.rng = mix64((uint64_t)p << 32 | (bench.round * WORKERS_MAX + i)),
		};
}

static void
pattern_run(const struct race *race, unsigned char *base, enum pattern p,
	    const struct pattern_ops *ops, void *ctx)
{
	const size_t touches = touches_in(p) / race->threads * race->threads;
	uint64_t ns, t, in[2] = { 0 }, out[2] = { 0 };
	struct worker w[WORKERS_MAX];
	char label[32], prefix[56];

	pattern_label(label, p, race->threads);
	snprintf(prefix, sizeof prefix, "%s.%s", race->who, label);
	workers_init(w, race, base, p);
	ops->advise(ctx, p);
	if (ops->moved != NULL)
		ops->moved(ctx, &in[0], &out[0]);

	ns = workers_run(w, race->threads);
	if (how[p].writes && ops->sync != NULL) {
		t = bench_now();
		ops->sync(ctx);
		ns += bench_now() - t;
	}
	job_value("us/page", (double)ns / 1e3 / (double)touches, "%s", prefix);
	if (ops->moved != NULL && (p == FILL || p == SEQ_READ)) {
		ops->moved(ctx, &in[1], &out[1]);
		job_value("MiB/s", (double)(in[1] - in[0]) / 1048576 / ((double)ns / 1e9),
			  "%s.swap_in", prefix);
		job_value("MiB/s", (double)(out[1] - out[0]) / 1048576 / ((double)ns / 1e9),
			  "%s.swap_out", prefix);
	}
	if (how[p].latencies)
		job_quantiles(prefix, touches);
	if (p == RAND_READ)
		job_curve(prefix, touches);
}

void
patterns_run(const struct race *race, unsigned char *base, const struct pattern_ops *ops, void *ctx)
{
	uint64_t rng = mix64(bench.round);
	const size_t fits = bench.scale.memory / PAGE;
	size_t page;

	for (enum pattern p = FILL; p < PATTERNS; p++) {
		if (p == RAND_WRITE) {
			ops->advise(ctx, FILL);
			for (page = 0; page < fits; page++)
				page_rewrite(base, page);
		}
		pattern_run(race, base, p, ops, ctx);
	}
	for (unsigned i = 0; i < FINAL_SAMPLE; i++) {
		page = rng_below(&rng, bench.scale.pages);
		page_check_all(base + page * PAGE, page);
	}
}
