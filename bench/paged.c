/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * paged.c: the library, "ours".
 *
 * In the pattern rows all of its process is in a memory cgroup of the budget's size, as the kernel's contenders are.  There is no swap
 * that the kernel could put it to, so more than that is its end.  memory_limit, which does not cover page tables, stacks and
 * what the kernel keeps for the process, is so much smaller; what the library says that it used is compared with that.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bench.h"

static char log_text[160];

static void
remember(void *ctx, enum up_log_level level, const char *line)
{
	(void)ctx;
	if (level != UP_LOG_ERROR)
		return;
	snprintf(log_text, sizeof log_text, ": %.150s", line);
	job_note(line);
}

const char *
ours_log(void)
{
	return log_text;
}

struct up_runtime *
ours_open_with(struct up_config *cfg, const char *policy)
{
	struct up_runtime *rt;
	char path[PATH_MAX];
	int r;

	log_text[0] = '\0';
	work_path(path, "ours.swap");
	if (cfg->swap_fd <= 0)
		cfg->swap_path = path;
	cfg->log = remember;
	r = runtime_open_with(&rt, cfg, policy);
	cfg->swap_path = NULL;
	if (r == -ENOTSUP && cfg->compression != UP_COMPRESS_NONE)
		job_skip("a compressed tier: not in this version");
	if (r == -EPERM || r == -ENOSYS)
		job_skip("up_runtime_create: %s%s", strerror(-r), log_text);
	if (r < 0)
		job_fail("up_runtime_create: %s%s", strerror(-r), log_text);
	return rt;
}

struct up_runtime *
ours_open(struct up_config *cfg)
{
	return ours_open_with(cfg, NULL);
}

unsigned char *
ours_map(struct up_runtime *rt, size_t npages)
{
	void *p;
	int r = up_map(rt, NULL, npages * PAGE, PROT_READ | PROT_WRITE, UP_PRIVATE, NULL, 0, &p);

	if (r < 0)
		job_fail("up_map of %zu pages: %s%s", npages, strerror(-r), log_text);
	return p;
}

void
ours_advise(struct up_runtime *rt, void *p, size_t npages, enum up_advice advice)
{
	int r = up_advise(rt, p, npages * PAGE, advice);

	if (r < 0)
		job_fail("up_advise: %s%s", strerror(-r), log_text);
}

struct up_stats
ours_stats(struct up_runtime *rt)
{
	struct up_stats st;
	int r = up_stats_get(rt, &st, sizeof st);

	if (r < 0)
		job_fail("up_stats_get: %s%s", strerror(-r), log_text);
	return st;
}

/*
 * The service thread inherits the affinity that the process has when it is created.  One service
 * thread, as the floor has one.  RANDOM: every touch is to be a fault.
 */
static struct up_runtime *
latency_open(struct up_config *cfg, enum place where)
{
	struct up_runtime *rt;

	cfg->service_threads = 1;
	place_service(where);
	rt = ours_open(cfg);
	place_faulter(where);
	return rt;
}

/* Read-ahead or a page in memory would flatter: say how many touches really were faults. */
void
latency_faults(struct up_runtime *rt, enum up_fault_kind kind, uint64_t before, const char *prefix)
{
	uint64_t n = ours_stats(rt).faults[kind] - before;

	job_value("1", (double)n / (double)bench.touches, "%s.faults_per_touch", prefix);
}

void
ours_zero(const void *arg)
{
	enum place where = *(const enum place *)arg;
	size_t npages = bench.touches * 4;
	struct up_config cfg = { .memory_limit = npages * PAGE + (64u << 20) };
	struct up_runtime *rt = latency_open(&cfg, where);
	unsigned char *p = ours_map(rt, npages);
	char prefix[48];

	ours_advise(rt, p, npages, UP_ADVICE_RANDOM);
	snprintf(prefix, sizeof prefix, "ours.zero.%s", place_name[where]);
	latency_measure(p, random_order(npages), bench.touches, true, prefix);
	latency_faults(rt, UP_FAULT_ZERO, 0, prefix);
	up_runtime_destroy(rt);
}

void
ours_soft(const void *arg)
{
	enum place where = *(const enum place *)arg;
	size_t npages = bench.touches * 4;
	struct up_config cfg = { .memory_limit = npages * PAGE * 2 + (64u << 20) };
	struct up_runtime *rt = latency_open(&cfg, where);
	unsigned char *p = ours_moved(rt, ours_map(rt, npages), npages);
	uint64_t before = ours_stats(rt).faults[UP_FAULT_SOFT];
	char prefix[48];

	ours_advise(rt, p, npages, UP_ADVICE_RANDOM);
	snprintf(prefix, sizeof prefix, "ours.soft.%s", place_name[where]);
	latency_measure(p, random_order(npages), bench.touches, true, prefix);
	latency_faults(rt, UP_FAULT_SOFT, before, prefix);
	up_runtime_destroy(rt);
}

/*
 * 64 MiB in 16 MiB, on the floor's file.  Only pages that are out of memory are touched.  The
 * library pays for making room as it goes; the floor does not.
 */
void
ours_major(const void *arg)
{
	enum place where = *(const enum place *)arg;
	struct up_config cfg = { .memory_limit = FLOOR_PAGES * PAGE / 4,
				 .swap_size = FLOOR_PAGES * PAGE + (1u << 20) };
	struct up_runtime *rt;
	unsigned char *p, *vec = malloc(FLOOR_PAGES);
	uint32_t *order = random_order(FLOOR_PAGES);
	char path[PATH_MAX], prefix[48];
	uint64_t before;
	size_t n = 0;
	int r;

	work_path(path, FLOOR_FILE);
	cfg.swap_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (vec == NULL || cfg.swap_fd < 0)
		job_fail("%s: %s", path, strerror(errno));
	rt = latency_open(&cfg, where);
	p = ours_map(rt, FLOOR_PAGES);
	for (size_t i = 0; i < FLOOR_PAGES; i++)
		page_write(p + i * PAGE, i);
	ours_advise(rt, p, FLOOR_PAGES, UP_ADVICE_RANDOM);

	r = up_residency(rt, p, FLOOR_PAGES * PAGE, vec);
	if (r < 0)
		job_fail("up_residency: %s%s", strerror(-r), log_text);
	for (size_t i = 0; i < FLOOR_PAGES && n < bench.touches; i++)
		if ((vec[order[i]] & (UP_PAGE_MAPPED | UP_PAGE_STAGED)) == 0)
			order[n++] = order[i];
	if (n < bench.touches)
		job_fail("only %zu of %zu pages left memory", n, FLOOR_PAGES);

	before = ours_stats(rt).faults[UP_FAULT_MAJOR];
	snprintf(prefix, sizeof prefix, "ours.major.%s", place_name[where]);
	latency_measure(p, order, n, false, prefix);
	latency_faults(rt, UP_FAULT_MAJOR, before, prefix);
	for (size_t i = 0; i < n; i += 64)
		page_check_all(p + order[i] * PAGE, order[i]);
	up_runtime_destroy(rt);
}

struct advisee {
	struct up_runtime *rt;
	unsigned char *base;
};

static void
patterns_advise(void *ctx, enum pattern p)
{
	struct advisee *a = ctx;
	const int advice = pattern_advice(p);

	if (bench.advice)
		ours_advise(a->rt, a->base, bench.scale.pages,
			    advice == MADV_RANDOM	? UP_ADVICE_RANDOM
			    : advice == MADV_SEQUENTIAL ? UP_ADVICE_SEQUENTIAL
							: UP_ADVICE_NORMAL);
}

static void
patterns_moved(void *ctx, uint64_t *in, uint64_t *out)
{
	struct advisee *a = ctx;
	const struct up_stats st = ours_stats(a->rt);

	*in = st.swap_read_bytes;
	*out = st.swap_write_bytes;
}

static void
patterns_sync(void *ctx)
{
	struct advisee *a = ctx;
	const int r = up_sync(a->rt, a->base, bench.scale.pages * PAGE, UP_SYNC_WAIT);

	if (r < 0)
		job_fail("up_sync: %s%s", strerror(-r), log_text);
}

static void
values_keep(struct up_runtime *rt, const char *who, size_t limit)
{
	const struct up_stats st = ours_stats(rt);

	job_value("1", (double)st.used_max / (double)limit, "%s.used_max_per_limit", who);
	job_value("MiB", (double)st.swap_write_bytes / 1048576, "%s.swap_written", who);
	job_value("MiB", (double)st.swap_read_bytes / 1048576, "%s.swap_read", who);
	if (st.used_max > limit)
		job_fail("BUDGET BROKEN: used up to %llu of %zu bytes",
			 (unsigned long long)st.used_max, limit);
}

void
ours_patterns_with(const char *policy, const struct race *race)
{
	static const struct pattern_ops ops = { .advise = patterns_advise };
	struct up_config cfg = { .memory_limit = bench.scale.memory };
	struct advisee a;

	patterns_prepare(race->threads);
	a.rt = ours_open_with(&cfg, policy);
	a.base = ours_map(a.rt, bench.scale.pages);
	patterns_run(race, a.base, &ops, &a);
	values_keep(a.rt, race->who, cfg.memory_limit);
	up_runtime_destroy(a.rt);
}

/* True if the pages of files go through the page cache: before Linux 6.5 the library can not tell what that has. */
static bool
files_are_cached(void)
{
	const uint64_t range[2] = { 0, PAGE };
	uint64_t state[5];
	const int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	const bool cached = fd < 0 || syscall(451 /* cachestat */, fd, range, state, 0) < 0;

	if (fd >= 0)
		close(fd);
	return cached;
}

/* A shared mapping of a file. */
static unsigned char *
ours_map_file(struct up_runtime *rt, bool direct)
{
	const size_t bytes = bench.scale.pages * PAGE;
	const int fd = mapped_file("ours.dat");
	struct up_object *obj;
	void *p;
	int r;

	r = direct ? up_object_create_device(rt, fd, 0, &obj)
		   : up_object_create_file(rt, fd, 0, 0, 0, &obj);
	if (r < 0)
		job_fail("an object over a file: %s%s", strerror(-r), log_text);
	r = up_map(rt, NULL, bytes, PROT_READ | PROT_WRITE, UP_SHARED, obj, 0, &p);
	if (r < 0)
		job_fail("up_map of a file: %s%s", strerror(-r), log_text);
	up_object_unref(obj);
	close(fd);
	return p;
}

void
ours_patterns(const void *arg)
{
	static const struct pattern_ops in_swap = { .advise = patterns_advise,
						    .moved = patterns_moved };
	static const struct pattern_ops in_file = { .advise = patterns_advise,
						    .sync = patterns_sync };
	const struct race *race = arg;
	/* The cgroup is charged for what is in the page cache. */
	const bool cached = race->file && !race->direct && files_are_cached();
	const size_t margin =
		cgroup_margin(bench.scale.pages) + (cached ? bench.scale.memory / 8 : 0);
	struct up_config cfg = { .delivery = race->delivery, .compression = race->compression };
	struct advisee a;

	if (bench.scale.memory < margin + UP_MEMORY_LIMIT_MIN)
		job_skip("a budget of %zu MiB leaves nothing beside page tables: --memory",
			 bench.scale.memory >> 20);
	cfg.memory_limit = bench.scale.memory - margin;
	patterns_prepare(race->threads);
	cgroup_enter();
	a.rt = ours_open(&cfg);
	a.base = race->file ? ours_map_file(a.rt, race->direct) : ours_map(a.rt, bench.scale.pages);
	patterns_run(race, a.base, race->file ? &in_file : &in_swap, &a);
	values_keep(a.rt, race->who, cfg.memory_limit);
	up_runtime_destroy(a.rt);
	cgroup_peak(race->who);
}

struct faulter {
	pthread_t thread;
	pthread_barrier_t *start;
	unsigned char *base; /* of the region this one works in */
	size_t first, n;     /* pages of it, this one's share to write */
	size_t region;	     /* pages in the region */
	size_t ops;	     /* random reads, anywhere in the region */
	size_t id;	     /* of base's first page */
	uint64_t rng;
	uint64_t began, ended;
	bool read;
};

static void *
faulter_main(void *arg)
{
	struct faulter *f = arg;
	size_t page;

	pthread_barrier_wait(f->start);
	f->began = bench_now();
	if (!f->read) {
		for (size_t i = f->first; i < f->first + f->n; i++)
			page_write(f->base + i * PAGE, f->id + i);
	} else {
		for (size_t i = 0; i < f->ops; i++) {
			page = rng_below(&f->rng, f->region);
			page_check_word(*(volatile uint64_t *)(void *)(f->base + page * PAGE),
					f->id + page);
		}
	}
	f->ended = bench_now();
	return NULL;
}

/*
 * Microseconds from the first thread's start to the last one's end.  They take the time
 * themselves: this thread may be let run only when they are done.
 */
static double
faulters_run(struct faulter *f, unsigned n, bool read_back)
{
	pthread_barrier_t start;
	uint64_t began = UINT64_MAX, ended = 0;

	pthread_barrier_init(&start, NULL, n);
	for (unsigned i = 0; i < n; i++) {
		f[i].start = &start;
		f[i].read = read_back;
		if (pthread_create(&f[i].thread, NULL, faulter_main, &f[i]) != 0)
			job_fail("pthread_create");
	}
	for (unsigned i = 0; i < n; i++) {
		pthread_join(f[i].thread, NULL);
		began = f[i].began < began ? f[i].began : began;
		ended = f[i].ended > ended ? f[i].ended : ended;
	}
	pthread_barrier_destroy(&start);
	return (double)(ended - began) / 1e3;
}

static void
faulters_init(struct faulter *f, const struct threads_arg *arg, struct up_runtime *rt,
	      size_t npages, size_t ops)
{
	size_t share = npages / arg->n;
	unsigned char *all = arg->shared ? ours_map(rt, npages) : NULL;

	for (unsigned i = 0; i < arg->n; i++) {
		f[i] = (struct faulter){
			.base = arg->shared ? all : ours_map(rt, share),
			.first = arg->shared ? i * share : 0,
			.n = share,
			.region = arg->shared ? npages : share,
			.ops = ops / arg->n,
			.id = arg->shared ? 0 : i * share,
			.rng = mix64(bench.round * 64 + i),
		};
	}
}

/*
 * The same number of pages and reads whatever the number of threads.  Zero-fill with room for
 * everything, so that nothing is thrown out; then with a quarter of that, read back at random.
 */
void
ours_threads(const void *arg)
{
	const struct threads_arg *ta = arg;
	const size_t npages = bench.quick ? 8192 : 16384, ops = bench.quick ? 2048 : 8192;
	const char *kind = ta->shared ? "shared" : "own";
	struct up_config cfg = { .memory_limit = npages * PAGE + (64u << 20),
				 .delivery = ta->delivery,
				 .service_threads = ta->services };
	struct faulter f[16];
	struct up_runtime *rt;
	char who[40];
	double us;

	snprintf(who, sizeof who, "threads.%s%s",
		 ta->delivery == UP_DELIVER_INLINE ? "inline" : "service",
		 ta->services == 1 ? "_one" : "");
	rt = ours_open(&cfg);
	faulters_init(f, ta, rt, npages, ops);
	us = faulters_run(f, ta->n, false);
	job_value("us/page", us / (double)npages, "%s.zero.%s.%u", who, kind, ta->n);
	up_runtime_destroy(rt);

	cfg.memory_limit = npages * PAGE / 4;
	rt = ours_open(&cfg);
	faulters_init(f, ta, rt, npages, ops);
	faulters_run(f, ta->n, false);
	for (unsigned i = 0; i < ta->n; i++)
		ours_advise(rt, f[i].base, f[i].region, UP_ADVICE_RANDOM);
	us = faulters_run(f, ta->n, true);
	job_value("us/page", us / (double)ops, "%s.rand_read.%s.%u", who, kind, ta->n);
	up_runtime_destroy(rt);
}
