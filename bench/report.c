/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * report.c: one series of values for each thing measured, one value a round; printed as median
 * and range, for people and as JSON.
 *
 * Medians, not means or minima: on a machine that others use as well, a mean follows the one bad
 * round and a minimum hides what a program would see.  A ratio is the median of one series over
 * the median of the other.  The JSON is printed by hand: names and texts are our own, apart from
 * what the system calls itself, and one level of quoting does not need a library.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"
#include "policy/refstring.h"

#define SERIES_MAX 1024
#define SKIPS_MAX 96
#define CURVES_MAX 32

struct series {
	char name[56];
	char unit[12];
	unsigned n;
	double v[ROUNDS_MAX]; /* in the order of the rounds */
};

struct skip {
	char name[64];
	char reason[240];
};

struct curve {
	char name[56];
	unsigned n;
	double v[ROUNDS_MAX][CURVE_POINTS];
};

static struct curve curves[CURVES_MAX];
static unsigned ncurves;
static struct series series[SERIES_MAX];
static unsigned nseries;
static struct skip skips[SKIPS_MAX];
static unsigned nskips;

static struct series *
series_find(const char *name)
{
	for (unsigned i = 0; i < nseries; i++)
		if (strcmp(series[i].name, name) == 0)
			return &series[i];
	return NULL;
}

void
series_add(const char *name, const char *unit, double v)
{
	struct series *s = series_find(name);

	if (s == NULL) {
		if (nseries == SERIES_MAX)
			return;
		s = &series[nseries++];
		snprintf(s->name, sizeof s->name, "%s", name);
		snprintf(s->unit, sizeof s->unit, "%s", unit);
	}
	if (s->n < ROUNDS_MAX)
		s->v[s->n++] = v;
}

void
skip_add(const char *name, const char *reason)
{
	if (nskips == SKIPS_MAX)
		return;
	snprintf(skips[nskips].name, sizeof skips[nskips].name, "%s", name);
	snprintf(skips[nskips].reason, sizeof skips[nskips].reason, "%s", reason);
	nskips++;
}

static int
compare_double(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

bool
summarise(const char *name, struct summary *out)
{
	const struct series *s = series_find(name);
	double v[ROUNDS_MAX];

	if (s == NULL)
		return false;
	memcpy(v, s->v, s->n * sizeof v[0]);
	qsort(v, s->n, sizeof v[0], compare_double);
	out->min = v[0];
	out->max = v[s->n - 1];
	out->median = s->n % 2 != 0 ? v[s->n / 2] : (v[s->n / 2 - 1] + v[s->n / 2]) / 2;
	return true;
}

void
curve_add(const char *name, const double *point)
{
	unsigned i = 0;

	while (i < ncurves && strcmp(curves[i].name, name) != 0)
		i++;
	if (i == CURVES_MAX)
		return;
	ncurves = i == ncurves ? i + 1 : ncurves;
	snprintf(curves[i].name, sizeof curves[i].name, "%s", name);
	if (curves[i].n < ROUNDS_MAX)
		memcpy(curves[i].v[curves[i].n++], point, CURVE_POINTS * sizeof *point);
}

bool
curve_get(const char *name, double *point)
{
	double v[ROUNDS_MAX];

	for (unsigned i = 0; i < ncurves; i++) {
		const struct curve *c = &curves[i];

		if (strcmp(c->name, name) != 0)
			continue;
		for (unsigned k = 0; k < CURVE_POINTS; k++) {
			for (unsigned r = 0; r < c->n; r++)
				v[r] = c->v[r][k];
			qsort(v, c->n, sizeof v[0], compare_double);
			point[k] = v[c->n / 2];
		}
		return true;
	}
	return false;
}

/* "12.3 (11.9-14.0)" or "-" */
static const char *
range(const char *name, char buf[64])
{
	struct summary s;
	int digits;

	if (!summarise(name, &s))
		return strcpy(buf, "-");
	digits = s.median < 1 ? 3 : s.median < 100 ? 2 : 0;
	snprintf(buf, 64, "%.*f (%.*f-%.*f)", digits, s.median, digits, s.min, digits, s.max);
	return buf;
}

static bool
ratio(const char *over, const char *under, double *out)
{
	struct summary a, b;

	if (!summarise(over, &a) || !summarise(under, &b) || b.median <= 0)
		return false;
	*out = a.median / b.median;
	return true;
}

static const char *
ratio_text(const char *over, const char *under, char buf[64])
{
	double r;

	if (!ratio(over, under, &r))
		return strcpy(buf, "-");
	snprintf(buf, 64, "%.2f", r);
	return buf;
}

static void
print_host(FILE *out)
{
	fprintf(out, "uffd-pager %s, Linux %s, %ld CPUs (%s), %.1f GiB of memory\n", host.library,
		host.kernel, host.cpus, host.cpu, (double)host.memory / (1u << 30));
	fprintf(out, "disk %s (%s, rotational %s), transparent huge pages: %s, zswap: %s\n",
		host.disk, host.fs,
		host.rotational < 0 ? "unknown"
		: host.rotational   ? "1"
				    : "0",
		host.thp, host.zswap);
	fprintf(out, "%u rounds; median (min-max)\n", bench.rounds);
}

static void
print_latency(FILE *out)
{
	static const char *const what[] = { "zero", "major", "soft" };
	static const char *const text[] = { "zero-fill", "swap-in", "soft" };
	static const char *const stat[] = { "p50", "p99", "mean" };
	char ours[96], bare[96], b[3][64];

	fprintf(out, "\nfault, as the faulting thread sees it; us\n");
	fprintf(out, "  %-22s %-5s %-24s %-24s %s\n", "", "", "raw floor", "ours", "ours/floor");
	for (int w = 0; w < 3; w++) {
		for (int p = 0; p < PLACES; p++) {
			for (int s = 0; s < 3; s++) {
				struct summary unused;

				snprintf(ours, sizeof ours, "ours.%s.%s.%s", what[w], place_name[p],
					 stat[s]);
				if (!summarise(ours, &unused))
					continue;
				snprintf(bare, sizeof bare, "floor.%s.%s.%s", what[w],
					 place_name[p], stat[s]);
				fprintf(out, "  %-9s %-12s %-5s %-24s %-24s %s\n",
					s > 0 ? "" : text[w], s > 0 ? "" : place_name[p], stat[s],
					range(bare, b[0]), range(ours, b[1]),
					ratio_text(ours, bare, b[2]));
			}
		}
	}
}

static void
print_inline(FILE *out)
{
	static const char *const what[] = { "zero", "soft" };
	static const char *const stat[] = { "p50", "p99", "mean" };
	char ours[96], bare[96], b[3][64];

	fprintf(out, "\nfault, served by the thread that faults; us\n");
	fprintf(out, "  %-22s %-5s %-24s %-24s %s\n", "", "", "raw floor", "ours", "ours/floor");
	for (int w = 0; w < 2; w++) {
		for (int s = 0; s < 3; s++) {
			snprintf(ours, sizeof ours, "ours.inline_%s.%s", what[w], stat[s]);
			snprintf(bare, sizeof bare, "floor.inline_%s.%s", what[w], stat[s]);
			fprintf(out, "  %-22s %-5s %-24s %-24s %s\n",
				s > 0	 ? ""
				: w == 0 ? "zero-fill"
					 : "soft",
				stat[s], range(bare, b[0]), range(ours, b[1]),
				ratio_text(ours, bare, b[2]));
		}
	}
}

static bool
any(const char *prefix)
{
	for (unsigned i = 0; i < nseries; i++)
		if (strncmp(series[i].name, prefix, strlen(prefix)) == 0)
			return true;
	return false;
}

/* Ours over the floor for each place, of series WHO.WHAT.PLACE.STAT. */
static void
print_places(FILE *out, const char *title, const char *what)
{
	static const char *const stat[] = { "p50", "p99", "mean" };
	char ours[96], bare[96], b[3][64];

	fprintf(out, "\n%s; us\n", title);
	fprintf(out, "  %-22s %-5s %-24s %-24s %s\n", "", "", "raw floor", "ours", "ours/floor");
	for (int p = 0; p < PLACES; p++) {
		for (int s = 0; s < 3; s++) {
			struct summary unused;

			snprintf(ours, sizeof ours, "ours.%s.%s.%s", what, place_name[p], stat[s]);
			if (!summarise(ours, &unused))
				continue;
			snprintf(bare, sizeof bare, "floor.%s.%s.%s", what, place_name[p], stat[s]);
			fprintf(out, "  %-22s %-5s %-24s %-24s %s\n", s > 0 ? "" : place_name[p],
				stat[s], range(bare, b[0]), range(ours, b[1]),
				ratio_text(ours, bare, b[2]));
		}
	}
}

static void
print_daemon(FILE *out)
{
	char b[3][64];

	print_places(out, "zero-fill of a program that is connected to a daemon", "remote_zero");
	if (any("remote.attach"))
		fprintf(out, "  %-22s %-5s %-24s %s\n", "to connect", "p50", "",
			range("remote.attach.p50", b[0]));
	if (any("ours.fill_4k"))
		print_places(out,
			     "a page of a microVM filled from its snapshot, which is in memory",
			     "fill_4k");
	if (!any("restore."))
		return;
	fprintf(out,
		"\na microVM restored from a snapshot on disk; until it has read what it reads first\n");
	fprintf(out, "  %-28s %-24s %-24s %s\n", "", "the first time", "again", "first/again");
	fprintf(out, "  %-28s %-24s %-24s %s\n", "ms", range("restore.first.ms", b[0]),
		range("restore.again.ms", b[1]),
		ratio_text("restore.first.ms", "restore.again.ms", b[2]));
	fprintf(out, "  %-28s %-24s %-24s %s\n", "faults", range("restore.first.faults", b[0]),
		range("restore.again.faults", b[1]),
		ratio_text("restore.first.faults", "restore.again.faults", b[2]));
}

/* Who is compared with whom.  The first is what the others are held against. */
#define RUNNERS_MAX 4
static const struct table {
	const char *title;
	enum scale_id scale;
	const char *who[RUNNERS_MAX];
	const char *key[RUNNERS_MAX]; /* in the JSON's "ratio" */
} tables[] = {
	{ "swap",
	  SCALE_MAIN,
	  { "ours", "ours_service", "swap", "swap_ssd" },
	  { NULL, "service", "swap", "swap_ssd" } },
	{ "a file",
	  SCALE_MAIN,
	  { "ours_file", "ours_file_direct", "mmap" },
	  { NULL, "file_direct", "mmap" } },
	{ "swap, real data", SCALE_REAL, { "real_ours", "real_swap" }, { NULL, "real.swap" } },
	{ "compressed, and swap behind it",
	  SCALE_ZSWAP,
	  { "ours_lz4", "ours_zstd", "zswap_lz4", "zswap" },
	  { NULL, "zstd", "zswap_lz4", "zswap" } },
	{ "compressed, and it fits", SCALE_ZRAM, { "ours_lz4_fit", "zram" }, { NULL, "zram" } },
};
#define NTABLES (sizeof tables / sizeof tables[0])
#define RACES 2 /* one thread, two threads */

static bool
table_any(const struct table *t, const char *label)
{
	struct summary s;
	char name[96];

	for (int c = 0; c < RUNNERS_MAX && t->who[c] != NULL; c++) {
		snprintf(name, sizeof name, "%s.%s", t->who[c], label);
		if (summarise(name, &s))
			return true;
	}
	return false;
}

static void
print_pattern(FILE *out, const struct table *t, const char *label)
{
	char name[96], first[96], b[4][64];
	struct summary s;
	bool begun = false;

	snprintf(first, sizeof first, "%s.%s", t->who[0], label);
	for (int c = 0; c < RUNNERS_MAX && t->who[c] != NULL; c++) {
		snprintf(name, sizeof name, "%s.%s", t->who[c], label);
		if (!summarise(name, &s))
			continue;
		snprintf(b[0], sizeof b[0], "%.0f", 1e6 * PAGE / 1048576 / s.median);
		fprintf(out, "  %-13s %-17s %-22s %8s  %11s\n", begun ? "" : label, t->who[c],
			range(name, b[1]), b[0], c == 0 ? "" : ratio_text(name, first, b[2]));
		begun = true;
	}
}

static void
print_table(FILE *out, const struct table *t)
{
	const struct scale *scale = &bench.scales[t->scale];
	char label[32];
	bool begun = false;

	for (unsigned threads = 1; threads <= RACES; threads++) {
		for (enum pattern p = 0; p < PATTERNS; p++) {
			pattern_label(label, p, threads);
			if (!table_any(t, label))
				continue;
			if (!begun) {
				fprintf(out, "\n%s: %zu MiB of %s data in %zu MiB\n", t->title,
					scale->pages / 256, data_name[scale->data],
					scale->memory >> 20);
				fprintf(out, "  %-13s %-17s %-22s %8s  %11s\n", "", "", "us/page",
					"MiB/s", "theirs/ours");
				begun = true;
			}
			print_pattern(out, t, label);
		}
	}
}

static void
print_sort(FILE *out)
{
	static const char *const who[] = { "ours", "ours_service", "swap", "swap_ssd" };
	char name[64], b[2][64];

	fprintf(out, "\nexternal sort, %zu MiB in %zu MiB; s\n",
		bench.scales[SCALE_SORT].pages / 256, bench.scales[SCALE_SORT].memory >> 20);
	for (size_t i = 0; i < sizeof who / sizeof who[0]; i++) {
		snprintf(name, sizeof name, "%s.external_sort", who[i]);
		fprintf(out, "  %-13s %-17s %-22s %8s  %11s\n", "", who[i], range(name, b[0]), "",
			i == 0 ? "" : ratio_text(name, "ours.external_sort", b[1]));
	}
}

static void
print_fio(FILE *out)
{
	char b[3][64];

	fprintf(out, "\nfio, 256 KiB in order, 8 requests at a time; MiB/s\n");
	fprintf(out, "  %-22s %-24s %-24s %s\n", "", "fio", "ours", "ours/fio");
	fprintf(out, "  %-22s %-24s %-24s %s\n", "read: seq_read", range("fio.read", b[0]),
		range("ours.seq_read.swap_in", b[1]),
		ratio_text("ours.seq_read.swap_in", "fio.read", b[2]));
	fprintf(out, "  %-22s %-24s %-24s %s\n", "written: fill", range("fio.write", b[0]),
		range("ours.fill.swap_out", b[1]),
		ratio_text("ours.fill.swap_out", "fio.write", b[2]));
}

static void
print_threads(FILE *out)
{
	static const char *const who[] = { "inline", "inline_one", "service", "service_one" };
	static const char *const what[] = { "zero", "rand_read" };
	static const char *const kind[] = { "own", "shared" };
	static const unsigned n[] = { 1, 2, 4, 8 };
	char name[96], one[96], b[2][64];

	fprintf(out,
		"\nthreads that fault at the same time; us/page of all together, xN over one\n");
	for (int i = 0; i < 16; i++) {
		const char *const w = who[i % 4], *const k = kind[i / 4 % 2],
				  *const a = what[i / 8];

		snprintf(one, sizeof one, "threads.%s.%s.%s.1", w, a, k);
		fprintf(out, "  %-10s %-14s %-12s", i % 8 == 0 ? a : "",
			i % 4 > 0	 ? ""
			: i / 4 % 2 == 0 ? "a region each"
					 : "one region",
			w);
		for (int c = 0; c < 4; c++) {
			snprintf(name, sizeof name, "threads.%s.%s.%s.%u", w, a, k, n[c]);
			fprintf(out, "  %u: %s", n[c], range(name, b[0]));
			if (c > 0)
				fprintf(out, " x%s", ratio_text(one, name, b[1]));
		}
		fprintf(out, "\n");
	}
}

static void
print_line(FILE *out, const char *label, const char *name, const char *unit)
{
	struct summary s;
	char b[64];

	fprintf(out, "  %-44s %s %s\n", label, range(name, b), summarise(name, &s) ? unit : "");
}

static void
print_metadata(FILE *out)
{
	fprintf(out, "\nmetadata\n");
	print_line(out, "a page in memory: one more", "meta.in_core", "bytes");
	print_line(out, "                  all there is, shared out", "meta.in_core_total",
		   "bytes");
	print_line(out, "a page in swap:   one more", "meta.swapped", "bytes");
	print_line(out, "                  all there is, shared out", "meta.swapped_total",
		   "bytes");
}

static void
print_sparse(FILE *out)
{
	fprintf(out, "\na sparse region of 1 TiB\n");
	print_line(out, "map", "sparse.map", "ms");
	print_line(out, "unmap, 16 pages touched", "sparse.unmap", "ms");
}

/* A line each of two series and what one is over the other. */
static void
print_over(FILE *out, const char *title, const char *few, const char *few_name, const char *many,
	   const char *many_name)
{
	char b[64];

	fprintf(out, "\n%s\n", title);
	print_line(out, few, few_name, "us");
	print_line(out, many, many_name, "us");
	fprintf(out, "  %-44s %s\n", "            over that", ratio_text(many_name, few_name, b));
}

static void
print_clone(FILE *out)
{
	char b[64];

	fprintf(out, "\na clone of 64 MiB in memory\n");
	print_line(out, "up_clone()", "clone.call", "us");
	print_line(out, "            a page", "clone.call_page", "ns");
	print_line(out, "up_unmap() of it, all of it touched", "clone.drop", "us");
	print_line(out, "a touch of the clone, a copy: p50", "clone.copy.p50", "us");
	print_line(out, "a touch of the original, the clone dropped: p50", "clone.before.p50",
		   "us");
	print_line(out, "clone, two writes, drop: 1,000 times, each", "clone.round", "us");
	print_line(out, "a touch of the original after that: p50", "clone.after.p50", "us");
	fprintf(out, "  %-44s %s\n", "            over before",
		ratio_text("clone.after.p50", "clone.before.p50", b));
	print_line(out, "objects after that", "clone.objects", "");
}

static void
print_policy(FILE *out)
{
	static const char *const what[] = { "misses", "soft", "read", "written", "us" };
	char a[96], b[96], text[3][64];

	fprintf(out, "\nreplacement: an access\n");
	fprintf(out, "  %-13s %-8s %-24s %-24s %s\n", "", "", "sfifo", "s3fifo", "s3fifo/sfifo");
	for (unsigned law = 0; refstring_name(law) != NULL; law++) {
		for (size_t w = 0; w < sizeof what / sizeof what[0]; w++) {
			snprintf(a, sizeof a, "sfifo.%s.%s", refstring_name(law), what[w]);
			snprintf(b, sizeof b, "s3fifo.%s.%s", refstring_name(law), what[w]);
			fprintf(out, "  %-13s %-8s %-24s %-24s %s\n",
				w == 0 ? refstring_name(law) : "", what[w], range(a, text[0]),
				range(b, text[1]), ratio_text(b, a, text[2]));
		}
	}
	fprintf(out, "  patterns\n");
	for (int p = 0; p < PATTERNS; p++) {
		snprintf(a, sizeof a, "sfifo.%s", pattern_name[p]);
		snprintf(b, sizeof b, "s3fifo.%s", pattern_name[p]);
		fprintf(out, "  %-13s %-8s %-24s %-24s %s\n", pattern_name[p], "us",
			range(a, text[0]), range(b, text[1]), ratio_text(b, a, text[2]));
	}
}

static void
print_huge_row(FILE *out, const char *label, const char *what, const char *small, const char *huge)
{
	char a[96], b[96], text[3][64];

	snprintf(a, sizeof a, "huge.%s", small);
	snprintf(b, sizeof b, "huge.%s", huge);
	fprintf(out, "  %-34s %-4s %-24s %-24s %s\n", label, what, range(a, text[0]),
		range(b, text[1]), ratio_text(a, b, text[2]));
}

static void
print_huge(FILE *out)
{
	static const char *const off[] = { "in",	  "staged",	     "dropped",
					   "zeros_in",	  "zeros_staged",    "zeros_written",
					   "discard_run", "discard_but_one", "discard_split",
					   "peak_nohuge", "peak_advised" };
	char name[96], b[64];

	fprintf(out, "\nhuge first touch; CPU time a page or an access\n");
	fprintf(out, "  %-34s %-4s %-24s %-24s %s\n", "", "", "4 KiB", "2 MiB", "4K/2M");
	print_huge_row(out, "first touch, THP made meanwhile", "us", "touch.copy64.cpu",
		       "touch.refill.cpu");
	print_huge_row(out, "  THP made before", "us", "touch.copy64.cpu", "touch.pool.cpu");
	print_huge_row(out, "  THP used before, cleared", "us", "touch.copy64.cpu",
		       "touch.recycle.cpu");
	print_huge_row(out, "  THP made before, MADV_HUGEPAGE", "us", "touch.copy64.cpu",
		       "touch.advised.cpu");
	print_huge_row(out, "  THP that has to be split", "us", "touch.copy64.cpu",
		       "touch.split.cpu");
	print_huge_row(out, "  the kernel alone", "us", "touch.kernel_4k.cpu",
		       "touch.kernel_2m.cpu");
	print_huge_row(out, "  the library", "us", "touch.ours.cpu", "-");
	print_huge_row(out, "random read", "ns", "reach.copy64.independent",
		       "reach.refill.independent");
	print_huge_row(out, "random read, dependent", "ns", "reach.copy64.chase",
		       "reach.refill.chase");
	print_huge_row(out, "random write", "ns", "reach.copy64.store", "reach.refill.store");
	print_huge_row(out, "sequential read, 64 bytes apart", "ns", "reach.copy64.stream",
		       "reach.refill.stream");
	print_huge_row(out, "fill and 16 random reads a page", "ms", "reach.copy64.fill_use",
		       "reach.refill.fill_use");
	print_huge_row(out, "out, the first 64", "us", "out.small.first", "out.split.first");
	print_huge_row(out, "  each 64 more", "us", "out.small.next", "out.split.next");
	print_huge_row(out, "  a page of all", "us", "out.small.page", "out.split.page");
	print_huge_row(out, "  a page of all, of zeros", "us", "out.small.page",
		       "out.split_zero.page");
	print_huge_row(out, "  a page of all, whole", "us", "out.small.page", "out.whole.page");
	print_huge_row(out, "fill of 4 x memory, huge at first", "us", "pressure.small.cpu",
		       "pressure.mixed.cpu");
	print_huge_row(out, "  huge, out by 64", "us", "pressure.small.cpu", "pressure.split.cpu");
	print_huge_row(out, "  huge, out whole", "us", "pressure.small.cpu", "pressure.whole.cpu");
	print_huge_row(out, "movable beside a page in use", "", "account.movable_small",
		       "account.movable");
	print_huge_row(out, "still protected after a split", "", "-", "account.protected");
	fprintf(out, "  KiB charged beyond what is counted, of each 2 MiB\n");
	for (size_t i = 0; i < sizeof off / sizeof off[0]; i++) {
		snprintf(name, sizeof name, "huge.account.%s", off[i]);
		fprintf(out, "    %-16s %s\n", off[i], range(name, b));
	}
}

static void
print_disk(FILE *out)
{
	fprintf(out, "\nthe disk alone, before each round\n");
	print_line(out, "random read of 4 KiB, one at a time: p50", "disk.read_4k.p50", "us");
	print_line(out, "                                     p99", "disk.read_4k.p99", "us");
	print_line(out, "sequential read by 256 KiB", "disk.read_256k", "MiB/s");
	print_line(out, "sequential write by 256 KiB", "disk.write_256k", "MiB/s");
}

/* A section of which nothing was measured (--only) is left out. */
void
report_print(FILE *out)
{
	print_host(out);
	if (any("ours.zero") || any("ours.major") || any("ours.soft"))
		print_latency(out);
	if (any("ours.remote") || any("floor.remote"))
		print_daemon(out);
	if (any("ours.inline") || any("floor.inline"))
		print_inline(out);
	for (size_t i = 0; i < NTABLES; i++)
		print_table(out, &tables[i]);
	if (any("ours.external_sort") || any("ours_service.external_sort") ||
	    any("swap.external_sort"))
		print_sort(out);
	if (any("fio."))
		print_fio(out);
	if (any("threads."))
		print_threads(out);
	if (any("meta."))
		print_metadata(out);
	if (any("sparse.map"))
		print_sparse(out);
	if (any("sparse.large"))
		print_over(out, "a fault in a sparse region: p50", "of 1 GiB", "sparse.small.p50",
			   "of 64 GiB", "sparse.large.p50");
	if (any("entries.")) {
		print_over(out, "a fault among the entries of a map: p50", "1", "entries.one.p50",
			   "100,000", "entries.many.p50");
		print_line(out, "to read a line that is in no cache", "entries.line", "us");
	}
	if (any("clone."))
		print_clone(out);
	if (any("sfifo.") || any("s3fifo."))
		print_policy(out);
	if (any("huge."))
		print_huge(out);
	if (any("disk."))
		print_disk(out);
	for (unsigned i = 0; i < nskips; i++)
		fprintf(out, "%s%s: %s\n", i == 0 ? "\nnot measured, or given up\n  " : "  ",
			skips[i].name, skips[i].reason);
}

static void
json_string(FILE *f, const char *s)
{
	fputc('"', f);
	for (; *s != '\0'; s++) {
		unsigned char c = (unsigned char)*s;

		if (c == '"' || c == '\\')
			fprintf(f, "\\%c", c);
		else if (c < 0x20 || c >= 0x7f)
			fprintf(f, "\\u%04x", c);
		else
			fputc(c, f);
	}
	fputc('"', f);
}

static void
json_ratio(FILE *f, const char *key, const char *over, const char *under, const char **comma)
{
	double r;

	if (!ratio(over, under, &r))
		return;
	fprintf(f, "%s\n    \"%s\": %.4f", *comma, key, r);
	*comma = ",";
}

static void
json_table(FILE *f, const struct table *t, const char **comma)
{
	char key[96], over[96], under[96], label[32];

	for (int c = 1; c < RUNNERS_MAX && t->who[c] != NULL; c++) {
		for (unsigned threads = 1; threads <= RACES; threads++) {
			for (enum pattern p = 0; p < PATTERNS; p++) {
				pattern_label(label, p, threads);
				snprintf(key, sizeof key, "%s.%s", t->key[c], label);
				snprintf(over, sizeof over, "%s.%s", t->who[c], label);
				snprintf(under, sizeof under, "%s.%s", t->who[0], label);
				json_ratio(f, key, over, under, comma);
				/* Only of the random ones. */
				snprintf(key, sizeof key, "%s.%s_p50", t->key[c], label);
				snprintf(over, sizeof over, "%s.%s.p50", t->who[c], label);
				snprintf(under, sizeof under, "%s.%s.p50", t->who[0], label);
				json_ratio(f, key, over, under, comma);
			}
		}
	}
}

static void
json_ratios(FILE *f)
{
	static const char *const what[] = { "zero", "major", "soft" };
	char key[96], over[96], under[96];
	const char *comma = "";

	fprintf(f, "  \"ratio\": {");
	for (size_t i = 0; i < NTABLES; i++)
		json_table(f, &tables[i], &comma);
	json_ratio(f, "swap.external_sort", "swap.external_sort", "ours.external_sort", &comma);
	json_ratio(f, "swap_ssd.external_sort", "swap_ssd.external_sort", "ours.external_sort",
		   &comma);
	json_ratio(f, "service.external_sort", "ours_service.external_sort", "ours.external_sort",
		   &comma);
	json_ratio(f, "fio.read", "ours.seq_read.swap_in", "fio.read", &comma);
	json_ratio(f, "fio.write", "ours.fill.swap_out", "fio.write", &comma);
	/* The bare key is the unpinned one. */
	for (int w = 0; w < 3; w++) {
		for (int p = 0; p < PLACES; p++) {
			snprintf(key, sizeof key, "floor.service_%s%s%s", what[w],
				 p == 0 ? "" : ".", p == 0 ? "" : place_name[p]);
			snprintf(over, sizeof over, "ours.%s.%s.p50", what[w], place_name[p]);
			snprintf(under, sizeof under, "floor.%s.%s.p50", what[w], place_name[p]);
			json_ratio(f, key, over, under, &comma);
		}
	}
	for (int p = 0; p < PLACES; p++) {
		snprintf(key, sizeof key, "floor.daemon_zero%s%s", p == PLACE_UNPINNED ? "" : ".",
			 p == PLACE_UNPINNED ? "" : place_name[p]);
		snprintf(over, sizeof over, "ours.remote_zero.%s.p50", place_name[p]);
		snprintf(under, sizeof under, "floor.remote_zero.%s.p50", place_name[p]);
		json_ratio(f, key, over, under, &comma);
	}
	for (int p = 0; p < PLACES; p++) {
		snprintf(key, sizeof key, "floor.fill_4k%s%s", p == PLACE_UNPINNED ? "" : ".",
			 p == PLACE_UNPINNED ? "" : place_name[p]);
		snprintf(over, sizeof over, "ours.fill_4k.%s.p50", place_name[p]);
		snprintf(under, sizeof under, "floor.fill_4k.%s.p50", place_name[p]);
		json_ratio(f, key, over, under, &comma);
	}
	json_ratio(f, "restore.ms", "restore.first.ms", "restore.again.ms", &comma);
	json_ratio(f, "restore.faults", "restore.again.faults", "restore.first.faults", &comma);
	json_ratio(f, "floor.inline_zero", "ours.inline_zero.p50", "floor.inline_zero.p50", &comma);
	json_ratio(f, "floor.inline_soft", "ours.inline_soft.p50", "floor.inline_soft.p50", &comma);
	json_ratio(f, "entries.fault", "entries.many.p50", "entries.one.p50", &comma);
	json_ratio(f, "sparse.fault", "sparse.large.p50", "sparse.small.p50", &comma);
	json_ratio(f, "clone.fault_after_rounds", "clone.after.p50", "clone.before.p50", &comma);
	for (unsigned law = 0; refstring_name(law) != NULL; law++) {
		snprintf(key, sizeof key, "policy.%s", refstring_name(law));
		snprintf(over, sizeof over, "s3fifo.%s.misses", refstring_name(law));
		snprintf(under, sizeof under, "sfifo.%s.misses", refstring_name(law));
		json_ratio(f, key, over, under, &comma);
	}
	fprintf(f, "\n  },\n");
}

static void
json_machine(FILE *f)
{
	const struct {
		const char *key, *value;
	} text[] = {
		{ "library", host.library },
		{ "kernel", host.kernel },
		{ "cpu", host.cpu },
		{ "disk", host.disk },
		{ "file_system", host.fs },
		{ "transparent_huge_pages", host.thp },
		{ "zswap", host.zswap },
		{ "page_cluster", host.page_cluster },
		{ "swappiness", host.swappiness },
	};

	fprintf(f, "    \"machine\": {");
	for (size_t i = 0; i < sizeof text / sizeof text[0]; i++) {
		fprintf(f, "\n      \"%s\": ", text[i].key);
		json_string(f, text[i].value);
		fputc(',', f);
	}
	if (host.rotational < 0)
		fprintf(f, "\n      \"rotational\": null,");
	else
		fprintf(f, "\n      \"rotational\": %d,", host.rotational);
	fprintf(f, "\n      \"cpus\": %ld,\n      \"memory\": %llu\n    },\n", host.cpus,
		(unsigned long long)host.memory);
	fprintf(f,
		"    \"run\": { \"size\": %zu, \"memory\": %zu, \"data\": \"%s\", \"rounds\": %u, \"quick\": %s, "
		"\"advice\": %s, \"random_touches\": %zu, \"latency_touches\": %zu },\n",
		bench.scale.pages * PAGE, bench.scale.memory, data_name[bench.scale.data],
		bench.rounds, bench.quick ? "true" : "false", bench.advice ? "true" : "false",
		bench.scale.rand_ops, bench.touches);
}

static void
json_series(FILE *f)
{
	struct summary sum;

	fprintf(f, "    \"series\": {");
	for (unsigned i = 0; i < nseries; i++) {
		const struct series *s = &series[i];

		if (!summarise(s->name, &sum))
			continue;
		fprintf(f,
			"%s\n      \"%s\": { \"unit\": \"%s\", \"median\": %.6g, \"min\": %.6g, "
			"\"max\": %.6g, \"values\": [",
			i == 0 ? "" : ",", s->name, s->unit, sum.median, sum.min, sum.max);
		for (unsigned k = 0; k < s->n; k++)
			fprintf(f, "%s%.6g", k == 0 ? "" : ", ", s->v[k]);
		fprintf(f, "] }");
	}
	fprintf(f, "\n    },\n    \"skipped\": {");
	for (unsigned i = 0; i < nskips; i++) {
		fprintf(f, "%s\n      \"%s\": ", i == 0 ? "" : ",", skips[i].name);
		json_string(f, skips[i].reason);
	}
	fprintf(f, "\n    }\n");
}

bool
report_json(const char *path)
{
	FILE *f = fopen(path, "we");
	bool ok;

	if (f == NULL) {
		fprintf(stderr, "bench: %s: %s\n", path, strerror(errno));
		return false;
	}
	fprintf(f, "{\n");
	json_ratios(f);
	fprintf(f, "  \"raw\": {\n");
	json_machine(f);
	json_series(f);
	fprintf(f, "  }\n}\n");
	ok = ferror(f) == 0;
	if (fclose(f) != 0 || !ok) {
		fprintf(stderr, "bench: can not write %s\n", path);
		return false;
	}
	return true;
}
