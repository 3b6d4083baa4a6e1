/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * stats.c: what the pager tells about itself.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "remote.h"
#include "runtime.h"

/* A counter, summed over services and workers. */
uint64_t
pager_total(struct pager *p, unsigned c)
{
	uint64_t n = 0;

	for (unsigned i = 0; pager_server(p, i) != NULL; i++)
		n += atomic_load_explicit(&pager_server(p, i)->count[c], memory_order_relaxed);
	return n;
}

static void
fill_levels(struct up_runtime *rt, struct up_stats *st)
{
	struct pager *p = &rt->p;

	pthread_mutex_lock(&p->pages.lock);
	st->resident = (uint64_t)p->pages.count[PAGE_MAPPED] << PAGE_SHIFT;
	st->mapped_named = (uint64_t)p->pages.mapped_named << PAGE_SHIFT;
	st->mapped_anon = st->resident - st->mapped_named;
	st->staged = (uint64_t)(p->pages.count[PAGE_STAGED] + p->pages.count[PAGE_LAUNDRY])
		     << PAGE_SHIFT;
	pthread_mutex_unlock(&p->pages.lock);
	st->limit = rt->memory_limit;
	st->limit_max = rt->memory_most;
	st->free_frames = (uint64_t)frames_nfree(&p->frames) << PAGE_SHIFT;
	st->metadata = arena_bytes(&p->arena) + p->overhead;
	st->used = atomic_load(&p->budget.used);
	st->used_max = atomic_load(&p->budget.used_max);
	st->swapped = (uint64_t)atomic_load(&p->nswapped) << PAGE_SHIFT;
	st->lost = (uint64_t)atomic_load(&p->nlost) << PAGE_SHIFT;
	st->wired = (uint64_t)atomic_load(&p->nwired) << PAGE_SHIFT;
}

static void
fill_reserve(struct pager *p, struct up_stats *st)
{
	uint64_t max, used;

	swap_promised(p, &max, &used);
	st->reserve_max = max << PAGE_SHIFT;
	st->reserve_used = used << PAGE_SHIFT;
	st->reserve_free = (max > used ? max - used : 0) << PAGE_SHIFT;
}

void
stats_latency(struct up_runtime *rt, enum up_fault_kind kind, struct up_latency *l,
	      struct latency_steps *steps)
{
	struct histogram *h[MAX_SERVICES + 1];
	struct pager *p = &rt->p;
	unsigned n = 0;

	/* All workers have the same. */
	for (unsigned i = 0; i <= p->nservices && pager_server(p, i) != NULL; i++)
		h[n++] = &pager_server(p, i)->latency[kind];
	if (l != NULL)
		histogram_sum(h, n, l);
	if (steps != NULL)
		histogram_steps(h, n, steps);
}

static void
fill_stats(struct up_runtime *rt, struct up_stats *st)
{
	struct pager *p = &rt->p;

	memset(st, 0, sizeof *st);
	for (unsigned k = 0; k < UP_FAULT_KINDS; k++) {
		st->faults[k] = pager_total(p, C_FAULT + k);
		stats_latency(rt, k, &st->latency[k], NULL);
	}
	st->fault_waits = pager_total(p, C_WAIT);
	st->fault_retries = pager_total(p, C_RETRY);
	st->fault_exists = atomic_load_explicit(&p->nexists, memory_order_relaxed);
	st->fault_strays = pager_total(p, C_STRAY);
	st->fault_sigbus = pager_total(p, C_SIGBUS);
	st->rescues = pager_total(p, C_RESCUE);
	st->foreign_discards = pager_total(p, C_FOREIGN);
	st->readahead_pages = pager_total(p, C_READAHEAD);
	st->readahead_hits = pager_total(p, C_AHEAD_HITS);
	st->readahead_waste = atomic_load(&p->nwasted);
	st->zero_ahead_pages = pager_total(p, C_ZEROAHEAD);
	st->pages_staged = pager_total(p, C_STAGED);
	st->clean_skips = pager_total(p, C_CLEAN);
	st->zero_skips = pager_total(p, C_ZERO);
	st->pages_out = atomic_load_explicit(&p->nreclaimed, memory_order_relaxed) + st->zero_skips;
	st->pages_pinned = pager_total(p, C_PINNED);
	st->swap_reads = pager_total(p, C_READS);
	st->swap_writes = pager_total(p, C_WRITES);
	st->swap_read_bytes = pager_total(p, C_READ_BYTES);
	st->swap_write_bytes = pager_total(p, C_WRITE_BYTES);
	st->swap_read_errors = pager_total(p, C_READ_ERRORS);
	st->swap_write_errors = pager_total(p, C_WRITE_ERRORS);
	st->checksum_errors = pager_total(p, C_CHECKSUM);
	st->bad_slots = pager_total(p, C_BAD_SLOTS);
	st->copies = pager_total(p, C_COPY);
	st->source_reads = pager_total(p, C_SOURCE_INS);
	st->source_writes = pager_total(p, C_SOURCE_OUTS);
	st->source_errors = pager_total(p, C_SOURCE_ERRORS);
	st->referenced = pager_total(p, C_REFERENCED);
	st->pages_compressed = pager_total(p, C_ZIPPED);
	st->pages_decompressed = pager_total(p, C_UNZIPPED);
	if (p->tier.kind != UP_COMPRESS_NONE) {
		st->pages_written_back = atomic_load(&p->tier.nback);
		st->compressed = (uint64_t)atomic_load(&p->tier.nzipped) << PAGE_SHIFT;
		st->compressed_pool = tier_bytes(p);
	}
	if (p->foreign != NULL)
		st->foreign_events = atomic_load(&p->foreign->events);
	fill_levels(rt, st);
	fill_reserve(p, st);

	/* Not map.change: that may be held by a call that waits for I/O. */
	pthread_rwlock_rdlock(&p->map.lock);
	st->mapped = p->map.pages << PAGE_SHIFT;
	st->entries = p->map.n;
	pthread_rwlock_unlock(&p->map.lock);
	st->objects = zone_count(&p->zones.object);
}

static int
refuse_null(const struct up_runtime *rt, const char *what)
{
	log_line(&rt->p.log, UP_LOG_ERROR, "%s is NULL", what);
	return -EINVAL;
}

int
up_stats_get(struct up_runtime *rt, struct up_stats *st, size_t size)
{
	struct up_stats full;
	sigset_t old;
	int r;

	if (rt == NULL)
		return -EINVAL;
	r = check_process(rt, "up_stats_get");
	if (r < 0)
		return r;
	if (st == NULL)
		return refuse_null(rt, "up_stats_get: st");
	if (rt->remote != NULL) {
		r = remote_stats(rt, &full);
		if (r < 0)
			return r;
	} else {
		signals_hold(&old);
		fill_stats(rt, &full);
		signals_release(&old);
	}
	/* An older program's struct is a prefix of ours; a newer one's tail we know nothing about. */
	memset(st, 0, size);
	memcpy(st, &full, MIN(size, sizeof full));
	return 0;
}

static double
mib(uint64_t bytes)
{
	return (double)bytes / (1 << 20);
}

static double
us(uint64_t ns)
{
	return (double)ns / 1000;
}

int
up_stats_print(struct up_runtime *rt, FILE *out)
{
	static const char *const name[UP_FAULT_KINDS] = {
		[UP_FAULT_MINOR] = "minor",	 [UP_FAULT_ZERO] = "zero-fill",
		[UP_FAULT_SOFT] = "soft",	 [UP_FAULT_MAJOR] = "major",
		[UP_FAULT_WP] = "write-protect",
	};
	struct up_stats st;
	int r;

	if (rt == NULL)
		return -EINVAL;
	r = check_process(rt, "up_stats_print");
	if (r < 0)
		return r;
	if (out == NULL)
		return refuse_null(rt, "up_stats_print: out");
	r = up_stats_get(rt, &st, sizeof st);
	if (r < 0)
		return r;

	fprintf(out,
		"memory    %.1f MiB used of %.1f (at most %.1f): %.1f mapped, %.1f staged, %.1f free, "
		"%.1f metadata\n",
		mib(st.used), mib(st.limit), mib(st.used_max), mib(st.resident), mib(st.staged),
		mib(st.free_frames), mib(st.metadata));
	fprintf(out,
		"regions   %.1f MiB in %" PRIu64 " entries, %" PRIu64
		" objects; %.1f MiB wired, %.1f swapped, %.1f lost\n",
		mib(st.mapped), st.entries, st.objects, mib(st.wired), mib(st.swapped),
		mib(st.lost));
	fprintf(out, "reserve   %.1f MiB promised, %.1f free\n", mib(st.reserve_used),
		mib(st.reserve_free));
	fprintf(out, "%-14s %12s %10s %10s %10s %10s  us\n", "faults", "count", "p50", "p99",
		"p99.9", "max");
	for (unsigned k = 0; k < UP_FAULT_KINDS; k++) {
		if (st.faults[k] == 0)
			continue;
		fprintf(out, "  %-12s %12" PRIu64 " %10.1f %10.1f %10.1f %10.1f\n", name[k],
			st.faults[k], us(st.latency[k].p50), us(st.latency[k].p99),
			us(st.latency[k].p999), us(st.latency[k].max));
	}
	fprintf(out,
		"  copied %" PRIu64 ", waited %" PRIu64 ", retried %" PRIu64 ", stray %" PRIu64
		", rescued %" PRIu64 ", SIGBUS %" PRIu64 "; ahead: %" PRIu64 " read, %" PRIu64
		" zeroed\n",
		st.copies, st.fault_waits, st.fault_retries, st.fault_strays, st.rescues,
		st.fault_sigbus, st.readahead_pages, st.zero_ahead_pages);
	fprintf(out,
		"pageout   %" PRIu64 " pages staged, %" PRIu64 " out: %" PRIu64
		" unchanged, %" PRIu64 " zero; %" PRIu64 " pinned\n",
		st.pages_staged, st.pages_out, st.clean_skips, st.zero_skips, st.pages_pinned);
	fprintf(out,
		"swap      %.1f MiB in %" PRIu64 " reads, %.1f MiB in %" PRIu64
		" writes; errors: %" PRIu64 " read, %" PRIu64 " write, %" PRIu64
		" checksum; %" PRIu64 " bad slots\n",
		mib(st.swap_read_bytes), st.swap_reads, mib(st.swap_write_bytes), st.swap_writes,
		st.swap_read_errors, st.swap_write_errors, st.checksum_errors, st.bad_slots);
	if (st.readahead_hits + st.readahead_waste > 0)
		fprintf(out,
			"streams   %" PRIu64 " pages ahead of one that it came to, %" PRIu64
			" that it did not\n",
			st.readahead_hits, st.readahead_waste);
	if (st.pages_compressed > 0)
		fprintf(out,
			"compress  %.1f MiB in %.1f; %" PRIu64 " pages in, %" PRIu64
			" back, %" PRIu64 " on to swap\n",
			mib(st.compressed), mib(st.compressed_pool), st.pages_compressed,
			st.pages_decompressed, st.pages_written_back);
	if (st.source_reads + st.source_writes + st.source_errors > 0)
		fprintf(out,
			"named     %.1f MiB mapped; %" PRIu64 " reads, %" PRIu64
			" writes of their pagers, %" PRIu64 " errors\n",
			mib(st.mapped_named), st.source_reads, st.source_writes, st.source_errors);
	return fflush(out) != 0 || ferror(out) ? -EIO : 0;
}

int
up_trace_print(struct up_runtime *rt, FILE *out)
{
	struct trace *rings[MAX_SERVICES + WORKERS_MAX];
	unsigned n = 0;
	int r;

	if (rt == NULL)
		return -EINVAL;
	r = check_process(rt, "up_trace_print");
	if (r < 0)
		return r;
	if (out == NULL)
		return refuse_null(rt, "up_trace_print: out");
	if (rt->remote != NULL)
		return remote_trace(rt, out);
	for (; pager_server(&rt->p, n) != NULL; n++)
		rings[n] = &pager_server(&rt->p, n)->trace;
	trace_print(rings, n, out);
	return fflush(out) != 0 || ferror(out) ? -EIO : 0;
}
