/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * main.c: uffd-pager-bench: who runs when.
 *
 * Everybody runs once in each round, in the same order, A B C A B C: a machine that gets slower
 * or busier in the meantime then does so for all of them.  All of A before all of B would let it
 * pick the winner.
 */
#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "bench.h"

struct contender {
	const char *group; /* for --only */
	const char *name;  /* for --only */
	const char *row;   /* which of several, for people; may be NULL */
	job_fn *run;
	const void *arg;
	unsigned deadline; /* seconds */
	before_fn *before; /* false: skip, with the reason */
	void (*after)(void);
	enum scale_id scale;
	unsigned cpus;	/* at least so many are needed */
	bool full_only; /* left out of a quick run */
	bool if_asked;	/* left out unless --only names its group */
	bool out;	/* does not run any more */
};

static const enum place places[PLACES] = { PLACE_UNPINNED, PLACE_SAME_CPU, PLACE_TWO_CPUS };

/* clang-format off */
#define LATENCY(who, kind, place, ncpus, full)                                                  \
	{ .group = "latency", .name = #who, .row = #kind " " #place, .run = who##_##kind,       \
	  .arg = &places[PLACE_##place], .deadline = 60, .cpus = ncpus, .full_only = full }
#define LATENCIES(kind, quick)                                                                  \
	LATENCY(floor, kind, UNPINNED, 1, !(quick)), LATENCY(ours, kind, UNPINNED, 1, !(quick)),\
	LATENCY(floor, kind, SAME_CPU, 1, true), LATENCY(ours, kind, SAME_CPU, 1, true),        \
	LATENCY(floor, kind, TWO_CPUS, 2, true), LATENCY(ours, kind, TWO_CPUS, 2, true)
#define INLINE(who, kind)                                                                       \
	{ .group = "latency", .name = #who, .row = "inline " kind, .run = who##_inline,         \
	  .arg = kind, .deadline = 60 }
#define REMOTE(place, ncpus)                                                                    \
	{ .group = "daemon", .name = "floor", .row = #place, .run = floor_remote,               \
	  .arg = &places[PLACE_##place], .deadline = 60, .cpus = ncpus, .full_only = true },    \
	{ .group = "daemon", .name = "ours", .row = #place, .run = ours_remote,                 \
	  .arg = &places[PLACE_##place], .deadline = 60, .cpus = ncpus, .full_only = true }
#define FILLED(place, ncpus)                                                                    \
	{ .group = "daemon", .name = "floor", .row = "4 KiB of a snapshot " #place,             \
	  .run = floor_filled, .arg = &places[PLACE_##place], .deadline = 60, .cpus = ncpus,    \
	  .full_only = true },                                                                  \
	{ .group = "daemon", .name = "ours", .row = "4 KiB of a snapshot " #place,              \
	  .run = ours_filled, .arg = &places[PLACE_##place], .deadline = 60, .cpus = ncpus,     \
	  .full_only = true }
#define THREADS(count, one, how, services_, text)                                               \
	{ .group = "threads", .name = "ours", .row = #count " " text, .run = ours_threads,      \
	  .arg = &(const struct threads_arg){ .n = count, .shared = one, .delivery = how,       \
					      .services = services_ },                          \
	  .deadline = 60, .full_only = true }
#define THREADS_OF(how, services, text)                                                         \
	THREADS(1, false, how, services, text ", own region"),                                  \
	THREADS(2, false, how, services, text ", own regions"),                                 \
	THREADS(4, false, how, services, text ", own regions"),                                 \
	THREADS(8, false, how, services, text ", own regions"),                                 \
	THREADS(1, true, how, services, text ", one region"),                                   \
	THREADS(2, true, how, services, text ", one region"),                                   \
	THREADS(4, true, how, services, text ", one region"),                                   \
	THREADS(8, true, how, services, text ", one region")
/* Who is in the race: a member of struct race to set follows. */
#define RACE(group_, name_, who_, nthreads, run_, before_, after_, scale_, ...)                 \
	.group = group_, .name = name_, .row = (nthreads) > 1 ? "2 threads" : NULL,             \
	.run = run_, .before = before_, .after = after_, .scale = scale_, .deadline = 300,      \
	.arg = &(const struct race){ .who = who_, .threads = nthreads, __VA_ARGS__ }
#define OURS(group, name, who, nthreads, scale, ...)                                            \
	RACE(group, name, who, nthreads, ours_patterns, cgroup_before, cgroup_teardown, scale,  \
	     __VA_ARGS__)
#define SWAP(group, name, who, nthreads, kind, scale, ...)                                      \
	RACE(group, name, who, nthreads, swap_patterns, kind##_before, kind##_after, scale,     \
	     __VA_ARGS__)
#define INSIDE .delivery = UP_DELIVER_INLINE
#define swap_ssd_after swap_after
#define HUGE(what, enter, leave)                                                                \
	{ .group = "huge", .name = "raw", .row = #what, .run = huge_##what, .before = enter,    \
	  .after = leave, .deadline = 120, .if_asked = true }

static struct contender contenders[] = {
	{ .group = "disk", .name = "raw", .run = disk_raw, .deadline = 120 },
	{ .group = "fio", .name = "raw", .run = fio_disk, .deadline = 120, .full_only = true },
	LATENCIES(zero, true),
	LATENCIES(major, false),
	LATENCIES(soft, true),
	INLINE(floor, "zero"), INLINE(ours, "zero"), INLINE(floor, "soft"), INLINE(ours, "soft"),

	REMOTE(UNPINNED, 1), REMOTE(SAME_CPU, 1), REMOTE(TWO_CPUS, 2),
#ifdef BENCH_FILLED
	FILLED(UNPINNED, 1), FILLED(SAME_CPU, 1), FILLED(TWO_CPUS, 2),
	{ .group = "daemon", .name = "ours", .row = "restore", .run = ours_restore,
	  .deadline = 60, .full_only = true },
#endif

	{ OURS("pattern", "ours", "ours", 1, SCALE_MAIN, INSIDE) },
	{ SWAP("pattern", "swap", "swap", 1, swap, SCALE_MAIN) },
	{ OURS("pattern", "ours_service", "ours_service", 1, SCALE_MAIN), .full_only = true },
	{ SWAP("pattern", "swap_ssd", "swap_ssd", 1, swap_ssd, SCALE_MAIN), .full_only = true },
	{ OURS("pattern", "ours", "ours", 2, SCALE_MAIN, INSIDE), .full_only = true },
	{ SWAP("pattern", "swap", "swap", 2, swap, SCALE_MAIN), .full_only = true },
	{ OURS("pattern", "ours_service", "ours_service", 2, SCALE_MAIN), .full_only = true },

	{ OURS("file", "ours_file", "ours_file", 1, SCALE_MAIN, INSIDE, .file = true),
	  .full_only = true },
	{ OURS("file", "ours_file_direct", "ours_file_direct", 1, SCALE_MAIN, INSIDE,
	       .file = true, .direct = true), .full_only = true },
	{ RACE("file", "mmap", "mmap", 1, mmap_patterns, cgroup_before, cgroup_teardown,
	       SCALE_MAIN), .full_only = true },
	{ OURS("file", "ours_file", "ours_file", 2, SCALE_MAIN, INSIDE, .file = true),
	  .full_only = true },
	{ RACE("file", "mmap", "mmap", 2, mmap_patterns, cgroup_before, cgroup_teardown,
	       SCALE_MAIN), .full_only = true },

	{ OURS("real", "ours", "real_ours", 1, SCALE_REAL, INSIDE), .full_only = true },
	{ SWAP("real", "swap", "real_swap", 1, swap, SCALE_REAL), .full_only = true },

	{ OURS("zswap", "ours_lz4", "ours_lz4", 1, SCALE_ZSWAP, INSIDE,
	       .compression = UP_COMPRESS_LZ4), .full_only = true },
	{ OURS("zswap", "ours_zstd", "ours_zstd", 1, SCALE_ZSWAP, INSIDE,
	       .compression = UP_COMPRESS_ZSTD), .full_only = true },
	{ SWAP("zswap", "zswap_lz4", "zswap_lz4", 1, zswap, SCALE_ZSWAP, .compressor = "lz4"),
	  .full_only = true },
	{ SWAP("zswap", "zswap_default", "zswap", 1, zswap, SCALE_ZSWAP), .full_only = true },

	{ OURS("zram", "ours_lz4", "ours_lz4_fit", 1, SCALE_ZRAM, INSIDE,
	       .compression = UP_COMPRESS_LZ4), .full_only = true },
	{ SWAP("zram", "zram_swap", "zram", 1, zram, SCALE_ZRAM), .full_only = true },
	{ OURS("zram", "ours_lz4", "ours_lz4_fit", 2, SCALE_ZRAM, INSIDE,
	       .compression = UP_COMPRESS_LZ4), .full_only = true },
	{ SWAP("zram", "zram_swap", "zram", 2, zram, SCALE_ZRAM), .full_only = true },

	{ RACE("program", "ours", "ours", 1, sort_run, sort_before, cgroup_teardown, SCALE_SORT,
	       INSIDE), .full_only = true },
	{ RACE("program", "ours_service", "ours_service", 1, sort_run, sort_before,
	       cgroup_teardown, SCALE_SORT), .full_only = true },
	{ RACE("program", "swap", "swap", 1, sort_run, sort_swap_before, swap_after, SCALE_SORT),
	  .full_only = true },
	{ RACE("program", "swap_ssd", "swap_ssd", 1, sort_run, sort_swap_ssd_before, swap_after,
	       SCALE_SORT), .full_only = true },

	THREADS_OF(UP_DELIVER_INLINE, 0, "inline"),
	THREADS_OF(UP_DELIVER_INLINE, 1, "inline, one service"),
	THREADS_OF(UP_DELIVER_SERVICE, 0, "service"),
	THREADS_OF(UP_DELIVER_SERVICE, 1, "one service"),

	{ .group = "meta", .name = "ours", .run = meta_per_page, .deadline = 60 },
	{ .group = "sparse", .name = "ours", .run = meta_sparse, .deadline = 60 },
	{ .group = "sparse", .name = "ours", .row = "fault", .run = meta_sparse_fault,
	  .deadline = 60, .full_only = true },
	{ .group = "entries", .name = "ours", .run = meta_entries, .deadline = 60,
	  .full_only = true },
	{ .group = "clone", .name = "ours", .run = clone_cost, .deadline = 120,
	  .full_only = true },
	{ .group = "policy", .name = "sfifo", .run = policy_strings, .arg = "sfifo",
	  .deadline = 300, .if_asked = true },
	{ .group = "policy", .name = "s3fifo", .run = policy_strings, .arg = "s3fifo",
	  .deadline = 300, .if_asked = true },
	HUGE(touch, NULL, NULL), HUGE(ours, NULL, NULL), HUGE(pageout, NULL, NULL), HUGE(reach, NULL, NULL),
	HUGE(pressure, cgroup_before, cgroup_teardown), HUGE(account, cgroup_before, cgroup_teardown),
};
/* clang-format on */
#define NCONTENDERS (sizeof contenders / sizeof contenders[0])

static void
usage(FILE *out)
{
	fprintf(out,
		"usage: uffd-pager-bench [options]\n"
		"  --quick          256 MiB in 64 MiB, 3 rounds, the most important rows, under a minute\n"
		"  --size SIZE      region of the pattern rows (384M)\n"
		"  --memory SIZE    its budget (96M)\n"
		"  --rounds N       how often everybody runs (5)\n"
		"  --data KIND      what pages hold in the groups pattern and file: random, half (of\n"
		"                   each compresses), real (from files of this machine)\n"
		"  --only NAMES     groups and contenders, comma separated, of\n"
		"                   disk fio latency daemon pattern file real zswap zram program threads\n"
		"                   meta sparse entries clone policy huge\n"
		"                   raw floor ours ours_service swap swap_ssd ours_file\n"
		"                   ours_file_direct mmap ours_lz4 ours_zstd zswap_lz4\n"
		"                   zswap_default zram_swap sfifo s3fifo\n"
		"                   (policy and huge only if they are named)\n"
		"  --no-advice      do not say which pattern comes\n"
		"  --deadline S     seconds that one measurement may take\n"
		"  --json FILE      write the figures there, too\n"
		"  --plots DIR      and pictures of them there (gnuplot)\n"
		"Work files go to $TMPDIR or /var/tmp.  The pattern rows need root and a memory cgroup;\n"
		"those of the kernel turn swap, zswap and a zram device on and off.\n");
}

/* "256M", "1G", "1048576"; 0: no. */
static size_t
parse_size(const char *s)
{
	char *end;
	unsigned long long n = strtoull(s, &end, 10);
	unsigned shift = 0;

	if (end == s || s[0] == '-')
		return 0;
	if (*end != '\0') {
		const char *units = "KMGT", *u = strchr(units, *end & ~0x20);

		if (u == NULL || end[1] != '\0')
			return 0;
		shift = 10 * (unsigned)(u - units + 1);
	}
	return n > SIZE_MAX >> shift ? 0 : (size_t)n << shift;
}

static void
scale_set(enum scale_id id, size_t size, size_t memory, enum data data)
{
	/* Enough to replace half of what is in memory. */
	const size_t ops = memory / PAGE / 2, most = bench.scales[SCALE_MAIN].rand_ops;

	bench.scales[id] = (struct scale){
		.id = id,
		.pages = size / PAGE / 8 * 8, /* each thread has four streams of the same length */
		.memory = memory,
		.rand_ops = id != SCALE_MAIN && ops > most ? most : ops,
		.data = data,
	};
}

/*
 * zram: what is to fit, with half of the budget for pages as they are and half for compressed ones, which take a little more than
 * half of their size.
 */
static void
scales_init(size_t size, size_t memory, enum data data)
{
	const size_t zswap = cgroup_is_v2() ? memory : zswap_memory(memory);
	const size_t least = (size_t)16 << 20, sort = memory / 4 > least ? memory / 4 : least;

	scale_set(SCALE_MAIN, size, memory, data);
	scale_set(SCALE_REAL, size / 2, memory / 2, DATA_REAL);
	scale_set(SCALE_ZSWAP, size / PAGE * (zswap / PAGE) / (memory / PAGE) * PAGE, zswap,
		  DATA_HALF);
	scale_set(SCALE_ZRAM, memory / 4 * 5, memory, DATA_HALF);
	scale_set(SCALE_SORT, sort * 4, sort, DATA_REAL);
	bench.scale = bench.scales[SCALE_MAIN];
}

static bool
parse_options(int argc, char **argv)
{
	/* clang-format off */
	static const struct option longopts[] = {
		{ "quick", no_argument, NULL, 'q' }, { "no-advice", no_argument, NULL, 'n' },
		{ "size", required_argument, NULL, 's' },
		{ "memory", required_argument, NULL, 'm' },
		{ "rounds", required_argument, NULL, 'r' },
		{ "deadline", required_argument, NULL, 'd' },
		{ "only", required_argument, NULL, 'o' }, { "json", required_argument, NULL, 'j' },
		{ "data", required_argument, NULL, 'D' }, { "plots", required_argument, NULL, 'p' },
		{ "help", no_argument, NULL, 'h' }, { NULL, 0, NULL, 0 },
	};
	/* clang-format on */
	size_t size = 0, memory = 0;
	enum data data = DATA_RANDOM;
	int c;

	bench.advice = true;
	while ((c = getopt_long(argc, argv, "", longopts, NULL)) != -1) {
		switch (c) {
		case 'q':
			bench.quick = true;
			break;
		case 's':
			size = parse_size(optarg);
			break;
		case 'm':
			memory = parse_size(optarg);
			break;
		case 'r':
			bench.rounds = (unsigned)parse_size(optarg);
			break;
		case 'o':
			bench.only = optarg;
			break;
		case 'j':
			bench.json = optarg;
			break;
		case 'p':
			bench.plots = optarg;
			break;
		case 'D':
			for (data = 0; data < DATAS && strcmp(optarg, data_name[data]) != 0;)
				data++;
			break;
		case 'n':
			bench.advice = false;
			break;
		case 'd':
			bench.deadline = (unsigned)parse_size(optarg);
			break;
		case 'h':
			usage(stdout);
			exit(0);
		default:
			usage(stderr);
			return false;
		}
	}
	if (size == 0)
		size = (size_t)(bench.quick ? 256 : 384) << 20;
	if (memory == 0)
		memory = (size_t)(bench.quick ? 64 : 96) << 20;
	if (bench.rounds == 0)
		bench.rounds = bench.quick ? 3 : 5;
	bench.touches = bench.quick ? 1000 : 4000;
	if (optind < argc || memory < UP_MEMORY_LIMIT_MIN || size < memory || size >> 42 != 0 ||
	    bench.rounds > ROUNDS_MAX || data == DATAS) {
		fprintf(stderr,
			"bench: size must be at least memory, memory at least 2M, "
			"rounds at most %d, data random, half or real\n",
			ROUNDS_MAX);
		return false;
	}
	scales_init(size, memory, data);
	return true;
}

/* Whether `word` is in the comma separated list. */
static bool
listed(const char *list, const char *word)
{
	size_t len = strlen(word);

	for (const char *p = list; p != NULL; p = strchr(p, ',')) {
		p += *p == ',';
		if (strncmp(p, word, len) == 0 && (p[len] == ',' || p[len] == '\0'))
			return true;
	}
	return false;
}

/* With names of both kinds ("pattern,ours,swap") both must fit; else the one given. */
static bool
select_contenders(void)
{
	bool by_group = false, by_name = false, some = false;

	for (size_t i = 0; i < NCONTENDERS; i++) {
		by_group |= listed(bench.only, contenders[i].group);
		by_name |= listed(bench.only, contenders[i].name);
	}
	for (size_t i = 0; i < NCONTENDERS; i++) {
		struct contender *c = &contenders[i];

		c->out = (by_group && !listed(bench.only, c->group)) ||
			 (by_name && !listed(bench.only, c->name)) ||
			 (bench.quick && c->full_only && bench.only == NULL) ||
			 (c->if_asked && !listed(bench.only, c->group)) || c->cpus > bench.ncpus;
		some |= !c->out;
	}
	/* A scale that nobody runs at needs no room. */
	for (int id = 0; id < SCALES; id++) {
		bool used = id == SCALE_MAIN;

		for (size_t i = 0; i < NCONTENDERS; i++)
			used |= !contenders[i].out && contenders[i].scale == (enum scale_id)id;
		if (!used)
			bench.scales[id].pages = 0;
	}
	if (bench.quick && bench.only == NULL)
		skip_add("all others", "not in a quick run");
	if (bench.ncpus < 2)
		skip_add("latency two_cpus", "there is only one CPU");
	return bench.only == NULL || (some && (by_group || by_name));
}

static void
cpus_init(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof set, &set) < 0)
		return;
	for (int i = 0; i < CPU_SETSIZE; i++) {
		if (!CPU_ISSET((size_t)i, &set))
			continue;
		if (bench.ncpus < 2)
			bench.cpu[bench.ncpus] = i;
		bench.ncpus++;
	}
}

static bool
dir_make(const char *parent)
{
	struct statvfs vfs;
	uint64_t need = (uint64_t)1 << 30, have;

	for (int i = 0; i < SCALES; i++)
		need += 3 * (uint64_t)bench.scales[i].pages * PAGE;

	if (snprintf(bench.dir, sizeof bench.dir, "%s/uffd-pager-bench.XXXXXX", parent) >=
		    (int)sizeof bench.dir ||
	    mkdtemp(bench.dir) == NULL) {
		fprintf(stderr, "bench: %s: %s\n", parent, strerror(errno));
		return false;
	}
	memcpy(janitor_list->dir, bench.dir, sizeof janitor_list->dir);
	if (statvfs(bench.dir, &vfs) < 0) {
		fprintf(stderr, "bench: %s: %s\n", bench.dir, strerror(errno));
		return false;
	}
	have = (uint64_t)vfs.f_bavail * vfs.f_frsize;
	if (have < need) {
		fprintf(stderr,
			"bench: %s has %llu MiB free, %llu are needed: "
			"set TMPDIR, or a smaller --size\n",
			parent, (unsigned long long)(have >> 20), (unsigned long long)(need >> 20));
		return false;
	}
	host_init(bench.dir);
	if (strcmp(host.fs, "tmpfs") == 0 || strcmp(host.fs, "ramfs") == 0) {
		fprintf(stderr, "bench: %s is memory, not a disk: set TMPDIR\n", parent);
		return false;
	}
	return true;
}

static void
progress(const char *label)
{
	static const char *clear = "\r\033[K";

	if (!isatty(STDERR_FILENO))
		return;
	if (label == NULL)
		fprintf(stderr, "%s", clear);
	else
		fprintf(stderr, "%sround %u/%u: %s", clear, bench.round + 1, bench.rounds, label);
}

/* False: interrupted. */
static bool
contender_run(struct contender *c, bool *failed)
{
	char why[256] = "", label[64];
	enum job_end end;

	snprintf(label, sizeof label, "%s: %s%s%s", c->group, c->name, c->row != NULL ? ", " : "",
		 c->row != NULL ? c->row : "");
	progress(label);
	bench.scale = bench.scales[c->scale];
	if (c->before != NULL && !c->before(c->arg, why, sizeof why)) {
		skip_add(label, why);
		c->out = true;
		return true;
	}
	end = job_run(c->run, c->arg, c->deadline, why, sizeof why);
	if (c->after != NULL)
		c->after();
	if (end == JOB_INTERRUPTED)
		return false;
	if (end == JOB_DONE)
		return true;
	/* Once is enough: a contender that hangs in each round would make hours of it. */
	c->out = true;
	skip_add(label, why);
	if (end != JOB_SKIPPED) {
		progress(NULL);
		fprintf(stderr, "bench: round %u: %s: %s\n", bench.round + 1, label, why);
		*failed = true;
	}
	return true;
}

static bool
rounds_run(bool *failed)
{
	uint64_t start = bench_now();

	for (bench.round = 0; bench.round < bench.rounds; bench.round++) {
		for (size_t i = 0; i < NCONTENDERS; i++) {
			if (contenders[i].out)
				continue;
			if (!contender_run(&contenders[i], failed))
				return false;
		}
		progress(NULL);
		if (!isatty(STDERR_FILENO))
			fprintf(stderr, "round %u/%u done after %.0f s\n", bench.round + 1,
				bench.rounds, (double)(bench_now() - start) / 1e9);
	}
	return true;
}

int
main(int argc, char **argv)
{
	const char *tmp = getenv("TMPDIR");
	bool failed = false, finished;

	if (!parse_options(argc, argv))
		return 2;
	cpus_init();
	if (!select_contenders()) {
		fprintf(stderr, "bench: --only %s: nothing is called that\n", bench.only);
		return 2;
	}
	if (!job_init() || !janitor_start()) {
		fprintf(stderr, "bench: can not start: %s\n", strerror(errno));
		return 1;
	}
	if (!dir_make(tmp != NULL && tmp[0] != '\0' ? tmp : "/var/tmp")) {
		janitor_finish();
		return 1;
	}
	pool_init();

	finished = rounds_run(&failed);
	if (finished && bench.plots != NULL && !plots_make(bench.plots))
		failed = true;
	janitor_finish();
	if (!finished) {
		fprintf(stderr, "bench: interrupted; swap, cgroup and files are cleaned up\n");
		return 130;
	}
	bench.scale = bench.scales[SCALE_MAIN];
	report_print(stdout);
	if (bench.json != NULL && !report_json(bench.json))
		failed = true;
	return failed ? 1 : 0;
}
