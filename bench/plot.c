/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * plot.c: the table as pictures.  gnuplot is run on a script and a table in the work directory, and leaves an SVG each:
 *
 *	swap.svg, file.svg, compressed.svg   bars, microseconds a page, with the range over the rounds
 *	latency.svg                          how random reads are distributed
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "bench.h"

#define BARS_MAX 6

struct picture {
	const char *name, *title;
	const char *who[BARS_MAX + 1];
};

static const struct picture pictures[] = {
	{ "swap", "swap: a page, one thread", { "ours", "ours_service", "swap", "swap_ssd" } },
	{ "swap_2t", "swap: a page, two threads", { "ours", "ours_service", "swap" } },
	{ "file", "a file: a page, one thread", { "ours_file", "ours_file_direct", "mmap" } },
	{ "compressed",
	  "half-compressible data, swap behind it: a page, one thread",
	  { "ours_lz4", "ours_zstd", "zswap_lz4", "zswap" } },
	{ "compressed_fit",
	  "half-compressible data that fits: a page, one thread",
	  { "ours_lz4_fit", "zram" } },
};

static FILE *
work_file(const char *name, char path[PATH_MAX])
{
	FILE *f;

	work_path(path, name);
	f = fopen(path, "we");
	if (f == NULL)
		fprintf(stderr, "bench: %s: %s\n", path, strerror(errno));
	return f;
}

/* Says so if there is no gnuplot; that is no failure. */
static bool
gnuplot_run(const char *script, const char *svg)
{
	const char *const argv[] = { "gnuplot", script, NULL };
	const int r = program_run(argv, NULL, 60);

	if (r < 0)
		fprintf(stderr, "bench: no plots: gnuplot is not installed: "
				"apt-get install gnuplot-nox\n");
	else if (r > 0)
		fprintf(stderr, "bench: gnuplot failed on %s\n", svg);
	return r <= 0;
}

static void
script_head(FILE *f, const char *svg, const char *title)
{
	fprintf(f,
		"set terminal svg size 900,420 font 'sans,12' background '#ffffff'\n"
		"set output '%s'\n"
		"set title '%s'\n"
		"set grid ytics\n"
		"set key top left\n",
		svg, title);
}

/* A line a pattern: its name, then median, minimum and maximum of each contender.  How many lines. */
static unsigned
bars_table(FILE *f, const struct picture *pic, unsigned threads)
{
	char name[96], label[32];
	struct summary s;
	unsigned n = 0;

	for (enum pattern p = 0; p < PATTERNS; p++) {
		bool some = false;

		pattern_label(label, p, threads);
		for (int c = 0; pic->who[c] != NULL; c++) {
			snprintf(name, sizeof name, "%s.%s", pic->who[c], label);
			some |= summarise(name, &s);
		}
		if (!some)
			continue;
		n++;
		fprintf(f, "%s", label);
		for (int c = 0; pic->who[c] != NULL; c++) {
			snprintf(name, sizeof name, "%s.%s", pic->who[c], label);
			if (summarise(name, &s))
				fprintf(f, " %g %g %g", s.median, s.min, s.max);
			else
				fprintf(f, " NaN NaN NaN");
		}
		fprintf(f, "\n");
	}
	return n;
}

static bool
bars(const char *dir, const struct picture *pic)
{
	const unsigned threads = strstr(pic->name, "_2t") != NULL ? 2 : 1;
	char data[PATH_MAX], script[PATH_MAX], svg[PATH_MAX], name[96], label[32];
	struct summary s;
	unsigned n;
	FILE *f = work_file("plot.dat", data);

	if (f == NULL)
		return false;
	n = bars_table(f, pic, threads);
	fclose(f);
	if (n == 0)
		return true;
	f = work_file("plot.gp", script);
	if (f == NULL)
		return false;
	if (snprintf(svg, sizeof svg, "%s/%s.svg", dir, pic->name) >= (int)sizeof svg)
		svg[0] = '\0';
	script_head(f, svg, pic->title);
	/* From a power of ten, or bars on a logarithmic scale would have no foot. */
	fprintf(f, "set ylabel 'us a page'\nset logscale y\nset yrange [0.1:*]\n"
		   "set style data histograms\nset style histogram errorbars gap 1 lw 1\n"
		   "set style fill solid 0.7 noborder\nset boxwidth 0.9\nplot ");
	pattern_label(label, FILL, threads);
	for (int c = 0; pic->who[c] != NULL; c++) {
		snprintf(name, sizeof name, "%s.%s", pic->who[c], label);
		if (summarise(name, &s))
			fprintf(f, "'%s' using %d:%d:%d:xtic(1) title '%s' noenhanced, ", data,
				2 + 3 * c, 3 + 3 * c, 4 + 3 * c, pic->who[c]);
	}
	fprintf(f, "\n");
	fclose(f);
	return gnuplot_run(script, svg);
}

static bool
curves(const char *dir)
{
	static const char *const who[] = { "ours", "ours_service", "swap", "swap_ssd" };
	char script[PATH_MAX], svg[PATH_MAX], name[64];
	double point[CURVE_POINTS];
	bool some = false;
	FILE *f = work_file("plot.gp", script);

	if (f == NULL)
		return false;
	if (snprintf(svg, sizeof svg, "%s/latency.svg", dir) >= (int)sizeof svg)
		svg[0] = '\0';
	script_head(f, svg, "random reads, one thread, 1 page in 4 in memory");
	fprintf(f, "set key bottom right\nset logscale x\nset xlabel 'us, at most'\n"
		   "set ylabel 'per cent of reads'\nset yrange [0:100]\n");
	for (int c = 0; c < 4; c++) {
		snprintf(name, sizeof name, "%s.rand_read", who[c]);
		if (!curve_get(name, point))
			continue;
		fprintf(f, "$%s << EOD\n", who[c]);
		for (int i = 0; i < CURVE_POINTS; i++)
			fprintf(f, "%g %g\n", point[i], i * 100.0 / (CURVE_POINTS - 1));
		fprintf(f, "EOD\n");
	}
	fprintf(f, "plot ");
	for (int c = 0; c < 4; c++) {
		snprintf(name, sizeof name, "%s.rand_read", who[c]);
		if (!curve_get(name, point))
			continue;
		fprintf(f, "$%s using 1:2 with lines lw 2 title '%s' noenhanced, ", who[c], who[c]);
		some = true;
	}
	fprintf(f, "\n");
	fclose(f);
	return !some || gnuplot_run(script, svg);
}

bool
plots_make(const char *dir)
{
	bool ok = true;

	if (mkdir(dir, 0755) < 0 && errno != EEXIST) {
		fprintf(stderr, "bench: %s: %s\n", dir, strerror(errno));
		return false;
	}
	for (size_t i = 0; i < sizeof pictures / sizeof pictures[0]; i++)
		ok &= bars(dir, &pictures[i]);
	return curves(dir) && ok;
}
