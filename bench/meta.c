/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * meta.c: what the library itself takes: metadata per page, time to map a sparse region, and faults where there is much to look through.
 *
 * Metadata as the library counts it, in two ways: what was added to an empty runtime, divided by
 * the pages (the price of one more page), and all there is, divided by the pages (what an
 * allocation made at creation would hide from the first).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

#define SPARSE ((size_t)1 << 40)
#define ENTRIES ((size_t)100000)

struct level {
	double metadata, in_core, swapped; /* bytes, pages, pages */
};

static struct level
level_of(struct up_runtime *rt)
{
	struct up_stats st;
	int r = up_stats_get(rt, &st, sizeof st);
	uint64_t core, swapped;

	if (r < 0)
		job_fail("up_stats_get: %s%s", strerror(-r), ours_log());
	core = (st.resident + st.staged) / PAGE;
	swapped = st.swapped / PAGE;
	return (struct level){
		.metadata = (double)st.metadata,
		.in_core = (double)core,
		.swapped = (double)swapped,
	};
}

/* Fill npages under `limit`; the level of the empty runtime and of the full one. */
static void
fill_under(size_t limit, size_t npages, struct level *empty, struct level *full)
{
	struct up_config cfg = { .memory_limit = limit };
	struct up_runtime *rt = ours_open(&cfg);
	void *p;
	int r;

	*empty = level_of(rt);
	r = up_map(rt, NULL, npages * PAGE, PROT_READ | PROT_WRITE, UP_PRIVATE, NULL, 0, &p);
	if (r < 0)
		job_fail("up_map: %s%s", strerror(-r), ours_log());
	for (size_t i = 0; i < npages; i++)
		page_write((unsigned char *)p + i * PAGE, i);
	*full = level_of(rt);
	up_runtime_destroy(rt);
}

void
meta_per_page(const void *arg)
{
	const size_t npages = bench.quick ? 16384 : 65536;
	struct level empty, full;
	double core;

	(void)arg;
	fill_under(npages * PAGE * 2, npages, &empty, &full);
	/* The page touched last may be counted a moment later. */
	if (full.in_core < (double)npages * 0.99)
		job_fail("only %.0f of %zu pages are in memory", full.in_core, npages);
	core = (full.metadata - empty.metadata) / full.in_core;
	job_value("bytes", core, "meta.in_core");
	job_value("bytes", full.metadata / full.in_core, "meta.in_core_total");

	/* The few that are in memory are taken off at the price just found. */
	fill_under(npages * PAGE / 8, npages, &empty, &full);
	if (full.swapped < (double)npages / 2)
		job_fail("only %.0f of %zu pages left memory", full.swapped, npages);
	job_value("bytes", (full.metadata - empty.metadata - core * full.in_core) / full.swapped,
		  "meta.swapped");
	job_value("bytes", full.metadata / (full.swapped + full.in_core), "meta.swapped_total");
}

void
meta_sparse(const void *arg)
{
	struct up_config cfg = { .memory_limit = (size_t)64 << 20 };
	struct up_runtime *rt = ours_open(&cfg);
	volatile unsigned char *c;
	uint64_t t;
	void *p;
	int r;

	(void)arg;
	t = bench_now();
	r = up_map(rt, NULL, SPARSE, PROT_READ | PROT_WRITE, UP_PRIVATE | UP_NORESERVE, NULL, 0,
		   &p);
	t = bench_now() - t;
	if (r < 0)
		job_fail("up_map of 1 TiB: %s%s", strerror(-r), ours_log());
	job_value("ms", (double)t / 1e6, "sparse.map");

	c = p;
	for (size_t at = 0; at < SPARSE; at += SPARSE / 16) {
		c[at] = 7;
		if (c[at] != 7 || c[at + PAGE] != 0)
			job_fail("WRONG DATA at offset %#zx of the sparse region", at);
	}
	t = bench_now();
	r = up_unmap(rt, p, SPARSE);
	t = bench_now() - t;
	if (r < 0)
		job_fail("up_unmap of 1 TiB: %s%s", strerror(-r), ours_log());
	job_value("ms", (double)t / 1e6, "sparse.unmap");
	up_runtime_destroy(rt);
}

/*
 * A fault among many ranges.  Every other page is advised differently, which divides the library's map and leaves the
 * kernel's alone: that would refuse so many mappings.
 */
static void
entries_fault(size_t npages, bool divided, const char *prefix)
{
	struct up_config cfg = { .memory_limit = npages * PAGE + ((size_t)256 << 20),
				 .service_threads = 1,
				 .delivery = UP_DELIVER_INLINE };
	struct up_runtime *rt = ours_open(&cfg);
	unsigned char *p = ours_map(rt, npages);
	uint32_t *order = random_order(npages);
	size_t n = 0;

	ours_advise(rt, p, npages, UP_ADVICE_RANDOM);
	for (size_t i = 0; divided && i < npages; i += 2)
		ours_advise(rt, p + i * PAGE, 1, UP_ADVICE_SEQUENTIAL);
	if (divided && ours_stats(rt).entries < npages)
		job_fail("only %llu entries", (unsigned long long)ours_stats(rt).entries);
	/* Those whose advice is the same in both. */
	for (size_t i = 0; i < npages; i++)
		if (order[i] % 2 != 0)
			order[n++] = order[i];
	latency_measure(p, order, bench.touches, true, prefix);
	up_runtime_destroy(rt);
}

/* What it costs to read a cache line that is in no cache: of two such a fault among so many entries can not do without. */
static void
line_measure(void)
{
	enum { LINE = 64, TIMES = 1000000 };
	const size_t n = ((size_t)64 << 20) / LINE;
	uint32_t *order = random_order(n);
	unsigned char *base = aligned_alloc(LINE, n * LINE);
	void **at;
	uint64_t t;

	if (base == NULL)
		job_fail("no memory");
	for (size_t i = 0; i < n; i++)
		*(void **)(base + (size_t)order[i] * LINE) =
			base + (size_t)order[(i + 1) % n] * LINE;
	at = (void **)(base + (size_t)order[0] * LINE);
	t = bench_now();
	for (size_t i = 0; i < TIMES; i++)
		at = *at;
	t = bench_now() - t;
	/* Or the compiler would see that nobody wants to know. */
	if (at == NULL)
		job_fail("the chain ends");
	job_value("us", (double)t / 1e3 / TIMES, "entries.line");
	free(base);
	free(order);
}

void
meta_entries(const void *arg)
{
	(void)arg;
	line_measure();
	entries_fault(ENTRIES, false, "entries.one");
	entries_fault(ENTRIES, true, "entries.many");
}

/*
 * In a region of 1 GiB and in one of 64 GiB the same number of pages is touched, in as many stretches of 2 MiB in which a page
 * has been touched before: so that the kernel's price of a page table, which has nothing to do with the library, is not in it.
 */
static void
sparse_fault(size_t size, const char *prefix)
{
	const size_t stretch = (size_t)2 << 20, n = ((size_t)1 << 30) / stretch;
	const size_t each = stretch / PAGE, step = size / n;
	struct up_config cfg = { .memory_limit = (size_t)512 << 20,
				 .service_threads = 1,
				 .delivery = UP_DELIVER_INLINE };
	struct up_runtime *rt = ours_open(&cfg);
	uint32_t *order = random_order(n * each);
	unsigned char *p;
	void *q;
	int r;

	r = up_map(rt, NULL, size, PROT_READ | PROT_WRITE, UP_PRIVATE | UP_NORESERVE, NULL, 0, &q);
	if (r < 0)
		job_fail("up_map: %s%s", strerror(-r), ours_log());
	p = q;
	ours_advise(rt, p, size / PAGE, UP_ADVICE_RANDOM);
	for (size_t i = 0; i < n; i++)
		p[i * step] = 1;
	/* Page i of all stretches, in the region; the first of each is there. */
	for (size_t i = 0; i < n * each; i++)
		order[i] = (uint32_t)(order[i] / each * (step / PAGE) + order[i] % each);
	latency_measure(p, order, bench.touches, true, prefix);
	up_runtime_destroy(rt);
}

void
meta_sparse_fault(const void *arg)
{
	(void)arg;
	sparse_fault((size_t)1 << 30, "sparse.small");
	sparse_fault((size_t)64 << 30, "sparse.large");
}
