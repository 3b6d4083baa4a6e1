/* SPDX-License-Identifier: BSD-2-Clause */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "refstring.h"

struct maker {
	const struct refstring_config *cfg;
	struct refstring *r;
	uint64_t rng;
	uint32_t *shuffled; /* 0 .. pages - 1 in random order: popular pages are no neighbours */
	double *cdf;	    /* of a Zipf law */
	uint32_t ncdf;
};

/* splitmix64 (G. Steele, D. Lea and C. Flood, OOPSLA 2014) */
static uint64_t
next(struct maker *m)
{
	uint64_t x = m->rng += UINT64_C(0x9e3779b97f4a7c15);

	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

/* Uniform in [0, n). */
static uint32_t
below(struct maker *m, uint32_t n)
{
	return (uint32_t)(((unsigned __int128)next(m) * n) >> 64);
}

static bool
shuffle(struct maker *m)
{
	const uint32_t n = m->cfg->pages;

	m->shuffled = malloc(n * sizeof m->shuffled[0]);
	if (m->shuffled == NULL)
		return false;
	for (uint32_t i = 0; i < n; i++)
		m->shuffled[i] = i;
	for (uint32_t i = n; i > 1; i--) {
		const uint32_t j = below(m, i), t = m->shuffled[i - 1];

		m->shuffled[i - 1] = m->shuffled[j];
		m->shuffled[j] = t;
	}
	return true;
}

/* The page of rank k, from 1, has a chance in proportion to k ^ -alpha. */
static bool
zipf_init(struct maker *m, uint32_t n, double alpha)
{
	double sum = 0;

	m->cdf = malloc(n * sizeof m->cdf[0]);
	if (m->cdf == NULL)
		return false;
	m->ncdf = n;
	for (uint32_t k = 0; k < n; k++)
		m->cdf[k] = sum += pow(k + 1, -alpha);
	for (uint32_t k = 0; k < n; k++)
		m->cdf[k] /= sum;
	return true;
}

static uint32_t
zipf(struct maker *m)
{
	const double u = (double)(next(m) >> 11) * 0x1p-53;
	uint32_t lo = 0, hi = m->ncdf - 1;

	while (lo < hi) {
		const uint32_t mid = lo + (hi - lo) / 2;

		if (m->cdf[mid] > u)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

static bool
make_zipf(struct maker *m, double alpha)
{
	if (!shuffle(m) || !zipf_init(m, m->cfg->pages, alpha))
		return false;
	for (size_t i = 0; i < m->r->n; i++)
		m->r->page[i] = m->shuffled[zipf(m)];
	return true;
}

static bool
make_random(struct maker *m, double param)
{
	(void)param;
	for (size_t i = 0; i < m->r->n; i++)
		m->r->page[i] = below(m, m->cfg->pages);
	return true;
}

static bool
make_scan(struct maker *m, double of_memory)
{
	const double len = of_memory * m->cfg->memory + 1;
	const uint32_t n = of_memory == 0 || len > m->cfg->pages ? m->cfg->pages : (uint32_t)len;

	for (size_t i = 0; i < m->r->n; i++)
		m->r->page[i] = (uint32_t)(i % n);
	return true;
}

/* Half of the pages are used by a Zipf law; a scan of the other half takes `share` of the accesses. */
static bool
make_mixed(struct maker *m, double share)
{
	const uint32_t half = m->cfg->pages / 2;
	uint32_t at = 0;

	if (!shuffle(m) || !zipf_init(m, half, 0.99))
		return false;
	for (size_t i = 0; i < m->r->n; i++) {
		const bool scan = (double)(next(m) >> 11) * 0x1p-53 < share;

		m->r->page[i] = m->shuffled[scan ? half + at : zipf(m)];
		if (scan)
			at = (at + 1) % half;
	}
	return true;
}

/* By a Zipf law; now and then, after `period` times as many accesses as there are pages, all are read in order. */
static bool
make_bursts(struct maker *m, double period)
{
	const uint32_t n = m->cfg->pages;
	const size_t between = (size_t)(period * n);

	if (!shuffle(m) || !zipf_init(m, n, 0.99))
		return false;
	for (size_t i = 0; i < m->r->n; i++) {
		const size_t phase = i % (between + n);

		m->r->page[i] =
			phase < between ? m->shuffled[zipf(m)] : (uint32_t)(phase - between);
	}
	return true;
}

/*
 * Working sets of three quarters of the memory, each used for ten times as many accesses as the memory has
 * pages; the next has half of its pages from the one before.  One access in 20 goes anywhere.
 */
static bool
make_working_sets(struct maker *m, double of_memory)
{
	const uint32_t n = m->cfg->pages;
	const uint32_t set = (uint32_t)(of_memory * m->cfg->memory) + 1;

	if (!shuffle(m))
		return false;
	for (size_t i = 0; i < m->r->n; i++) {
		const uint64_t phase = i / (10 * (size_t)m->cfg->memory);
		const uint64_t first = phase * (set / 2);
		const bool stray = below(m, 20) == 0;
		const uint64_t rank = stray ? below(m, n) : first + below(m, set);

		m->r->page[i] = m->shuffled[rank % n];
	}
	return true;
}

static const struct {
	const char *name, *what;
	bool (*make)(struct maker *m, double param);
	double param;
} laws[] = {
	{ "zipf-0.8", "Zipf's law, exponent 0.8", make_zipf, 0.8 },
	{ "zipf-0.99", "Zipf's law, exponent 0.99", make_zipf, 0.99 },
	{ "zipf-1.2", "Zipf's law, exponent 1.2", make_zipf, 1.2 },
	{ "random", "any page, one as likely as the other", make_random, 0 },
	{ "scan", "all pages in order, again and again", make_scan, 0 },
	{ "loop", "as many pages as memory has and a tenth more, in order, again and again",
	  make_scan, 1.1 },
	{ "mixed",
	  "three quarters Zipf 0.99 on half of the pages, one quarter a scan of the others",
	  make_mixed, 0.25 },
	{ "bursts", "Zipf 0.99, and a scan of all pages after 4 times as many accesses",
	  make_bursts, 4 },
	{ "working-sets", "uniform on 3/4 of memory; every 10 memories half of the set is replaced",
	  make_working_sets, 0.75 },
};
#define NLAWS (sizeof laws / sizeof laws[0])

const char *
refstring_name(unsigned law)
{
	return law < NLAWS ? laws[law].name : NULL;
}

const char *
refstring_what(unsigned law)
{
	return law < NLAWS ? laws[law].what : NULL;
}

bool
refstring_make(struct refstring *r, unsigned law, const struct refstring_config *cfg)
{
	struct maker m = { .cfg = cfg, .r = r, .rng = cfg->seed * UINT64_C(0xd1342543de82ef95) };
	bool ok;

	*r = (struct refstring){ .n = cfg->n, .npages = cfg->pages };
	r->page = malloc(cfg->n * sizeof r->page[0]);
	ok = r->page != NULL && laws[law].make(&m, laws[law].param);
	free(m.shuffled);
	free(m.cdf);
	if (!ok)
		refstring_free(r);
	return ok;
}

/* --- files --- */

struct numbers {
	uint64_t *v;
	size_t n, room;
};

static bool
numbers_add(struct numbers *nb, uint64_t v)
{
	if (nb->n == nb->room) {
		const size_t room = nb->room == 0 ? 4096 : 2 * nb->room;
		uint64_t *more = realloc(nb->v, room * sizeof nb->v[0]);

		if (more == NULL)
			return false;
		nb->v = more;
		nb->room = room;
	}
	nb->v[nb->n++] = v;
	return true;
}

/* 1: a number; 0: none on this line; -1: neither. */
static int
parse(const char *line, uint64_t *v)
{
	char *end;

	line += strspn(line, " \t\r\n");
	if (*line == '\0' || *line == '#')
		return 0;
	if (*line < '0' || *line > '9')
		return -1;
	errno = 0;
	*v = strtoull(line, &end, 0);
	end += strspn(end, " \t\r\n");
	return errno == 0 && (*end == '\0' || *end == '#') ? 1 : -1;
}

static bool
numbers_read(struct numbers *nb, const char *path)
{
	char line[256];
	uint64_t v = 0;
	FILE *f = fopen(path, "re");

	if (f == NULL) {
		fprintf(stderr, "policy: %s: %s\n", path, strerror(errno));
		return false;
	}
	for (size_t at = 1; fgets(line, sizeof line, f) != NULL; at++) {
		const int r = parse(line, &v);

		if (r < 0 || (r > 0 && !numbers_add(nb, v))) {
			fprintf(stderr, "policy: %s:%zu: %s\n", path, at,
				r < 0 ? "not a page number" : "no memory");
			(void)fclose(f);
			return false;
		}
	}
	if (ferror(f) || nb->n == 0 || nb->n >= UINT32_MAX) {
		fprintf(stderr, "policy: %s: %s\n", path,
			ferror(f)    ? "can not be read"
			: nb->n == 0 ? "no page numbers"
				     : "more than 4 G accesses");
		(void)fclose(f);
		return false;
	}
	(void)fclose(f);
	return true;
}

static int
compare(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

bool
refstring_read(struct refstring *r, const char *path)
{
	struct numbers nb = { 0 };
	uint64_t *sorted = NULL;
	bool ok = false;

	*r = (struct refstring){ 0 };
	if (!numbers_read(&nb, path))
		goto out;
	sorted = malloc(nb.n * sizeof sorted[0]);
	r->page = malloc(nb.n * sizeof r->page[0]);
	if (sorted == NULL || r->page == NULL) {
		fprintf(stderr, "policy: %s: no memory\n", path);
		goto out;
	}
	memcpy(sorted, nb.v, nb.n * sizeof sorted[0]);
	qsort(sorted, nb.n, sizeof sorted[0], compare);
	for (size_t i = 0; i < nb.n; i++)
		if (i == 0 || sorted[i] != sorted[i - 1])
			sorted[r->npages++] = sorted[i];
	r->n = nb.n;
	for (size_t i = 0; i < nb.n; i++) {
		const uint64_t *at =
			bsearch(&nb.v[i], sorted, r->npages, sizeof sorted[0], compare);

		r->page[i] = (uint32_t)(at - sorted);
	}
	ok = true;
out:
	free(sorted);
	free(nb.v);
	if (!ok)
		refstring_free(r);
	return ok;
}

void
refstring_free(struct refstring *r)
{
	free(r->page);
	*r = (struct refstring){ 0 };
}
