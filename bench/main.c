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
	unsigned deadline;			/* seconds */
	bool (*before)(char *why, size_t size); /* false: skip, with the reason */
	void (*after)(void);
	unsigned cpus;	/* at least so many are needed */
	bool full_only; /* left out of a quick run */
	bool if_asked;	/* left out unless --only names its group */
	bool out;	/* does not run any more */
};

static const enum place places[PLACES] = { PLACE_UNPINNED, PLACE_SAME_CPU, PLACE_TWO_CPUS };
static const struct threads_arg threads[] = {
	{ 1, false }, { 2, false }, { 4, false }, { 1, true }, { 2, true }, { 4, true },
};

/* clang-format off */
#define LATENCY(who, kind, place, ncpus)                                                        \
	{ .group = "latency", .name = #who, .row = #kind " " #place, .run = who##_##kind,       \
	  .arg = &places[PLACE_##place], .deadline = 60, .cpus = ncpus }
#define INLINE(who, kind)                                                                       \
	{ .group = "latency", .name = #who, .row = "inline " kind, .run = who##_inline,         \
	  .arg = kind, .deadline = 60 }
#define THREADS(i, text)                                                                        \
	{ .group = "threads", .name = "ours", .row = text, .run = ours_threads,                 \
	  .arg = &threads[i], .deadline = 60 }

static struct contender contenders[] = {
	{ .group = "disk", .name = "raw", .run = disk_raw, .deadline = 120 },
	LATENCY(floor, zero, UNPINNED, 1),
	LATENCY(ours, zero, UNPINNED, 1),
	LATENCY(floor, zero, SAME_CPU, 1),
	LATENCY(ours, zero, SAME_CPU, 1),
	LATENCY(floor, zero, TWO_CPUS, 2),
	LATENCY(ours, zero, TWO_CPUS, 2),
	LATENCY(floor, major, UNPINNED, 1),
	LATENCY(ours, major, UNPINNED, 1),
	LATENCY(floor, major, SAME_CPU, 1),
	LATENCY(ours, major, SAME_CPU, 1),
	LATENCY(floor, major, TWO_CPUS, 2),
	LATENCY(ours, major, TWO_CPUS, 2),
	INLINE(floor, "zero"), INLINE(ours, "zero"), INLINE(floor, "soft"), INLINE(ours, "soft"),
	{ .group = "pattern", .name = "ours", .run = ours_patterns, .deadline = 150 },
	{ .group = "pattern", .name = "swap", .run = swap_patterns, .arg = "swap",
	  .deadline = 150, .before = swap_before, .after = swap_after },
	{ .group = "pattern", .name = "swap_ssd", .run = swap_patterns, .arg = "swap_ssd",
	  .deadline = 150, .before = swap_ssd_before, .after = swap_after, .full_only = true },
	{ .group = "pattern", .name = "mmap", .run = mmap_patterns, .deadline = 150,
	  .before = cgroup_setup, .after = cgroup_teardown },
	THREADS(0, "1, own region"), THREADS(1, "2, own regions"), THREADS(2, "4, own regions"),
	THREADS(3, "1, one region"), THREADS(4, "2, one region"), THREADS(5, "4, one region"),
	{ .group = "meta", .name = "ours", .run = meta_per_page, .deadline = 60 },
	{ .group = "sparse", .name = "ours", .run = meta_sparse, .deadline = 60 },
	{ .group = "clone", .name = "ours", .run = clone_cost, .deadline = 120 },
	{ .group = "policy", .name = "sfifo", .run = policy_strings, .arg = "sfifo",
	  .deadline = 300, .if_asked = true },
	{ .group = "policy", .name = "s3fifo", .run = policy_strings, .arg = "s3fifo",
	  .deadline = 300, .if_asked = true },
};
/* clang-format on */
#define NCONTENDERS (sizeof contenders / sizeof contenders[0])

static void
usage(FILE *out)
{
	fprintf(out,
		"usage: uffd-pager-bench [options]\n"
		"  --quick          256 MiB in 64 MiB, 3 rounds, under a minute\n"
		"  --size SIZE      region of the pattern rows (1G)\n"
		"  --memory SIZE    its budget (256M)\n"
		"  --rounds N       how often everybody runs (5)\n"
		"  --only NAMES     groups and contenders, comma separated, of\n"
		"                   disk latency pattern threads meta sparse clone policy\n"
		"                   raw floor ours swap swap_ssd mmap sfifo s3fifo\n"
		"                   (policy only if it is named)\n"
		"  --no-advice      do not say which pattern comes\n"
		"  --deadline S     seconds that one measurement may take\n"
		"  --json FILE      write the figures there, too\n"
		"Work files go to $TMPDIR or /var/tmp.  The rows of the kernel's swap and of mmap\n"
		"need root and a memory cgroup; they turn a swap file on and off.\n");
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
		{ "help", no_argument, NULL, 'h' }, { NULL, 0, NULL, 0 },
	};
	/* clang-format on */
	size_t size = 0;
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
			bench.memory = parse_size(optarg);
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
		size = (size_t)(bench.quick ? 256 : 1024) << 20;
	if (bench.memory == 0)
		bench.memory = (size_t)(bench.quick ? 64 : 256) << 20;
	if (bench.rounds == 0)
		bench.rounds = bench.quick ? 3 : 5;
	bench.pages = size / PAGE;
	/* Enough to replace what is in memory once. */
	bench.rand_ops = bench.memory / PAGE;
	bench.touches = bench.quick ? 1000 : 4000;
	if (optind < argc || bench.memory < UP_MEMORY_LIMIT_MIN || size < bench.memory ||
	    size >> 42 != 0 || bench.rounds > ROUNDS_MAX) {
		fprintf(stderr,
			"bench: size must be at least memory, memory at least 2M, "
			"rounds at most %d\n",
			ROUNDS_MAX);
		return false;
	}
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
			 (bench.quick && c->full_only && !listed(bench.only, c->name)) ||
			 (c->if_asked && !listed(bench.only, c->group)) || c->cpus > bench.ncpus;
		some |= !c->out;
	}
	if (bench.quick && bench.only == NULL)
		skip_add("swap_ssd", "not in a quick run");
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
	uint64_t need = 3 * (uint64_t)bench.pages * PAGE + ((uint64_t)512 << 20);
	uint64_t have;

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
	if (c->before != NULL && !c->before(why, sizeof why)) {
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
	janitor_finish();
	if (!finished) {
		fprintf(stderr, "bench: interrupted; swap, cgroup and files are cleaned up\n");
		return 130;
	}
	report_print(stdout);
	if (bench.json != NULL && !report_json(bench.json))
		failed = true;
	return failed ? 1 : 0;
}
