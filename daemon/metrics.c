/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * metrics.c: the text that Prometheus reads, version 0.0.4.
 *
 * Latencies are histograms with bounds at powers of two: those of the daemon as a whole from 1 us to 17 s, those of each client at every second of
 * them, and of the kinds of faults that it has had, since there may be a thousand clients.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "http.h"
#include "listen.h"
#include "runtime.h"
#include "sessions.h"

#define P "uffd_pager_"

static void
head(FILE *f, const char *name, const char *type, const char *help)
{
	fprintf(f, "# HELP " P "%s %s\n# TYPE " P "%s %s\n", name, help, name, type);
}

static void
single(FILE *f, const char *name, const char *type, const char *help, uint64_t value)
{
	head(f, name, type, help);
	fprintf(f, P "%s %" PRIu64 "\n", name, value);
}

/* As the inside of a label's quotes. */
static void
label(FILE *f, const char *text)
{
	for (; *text != '\0'; text++) {
		if (*text == '\\' || *text == '"')
			fputc('\\', f);
		if (*text == '\n')
			fputs("\\n", f);
		else
			fputc(*text, f);
	}
}

static void
client_labels(FILE *f, const struct session *s)
{
	fprintf(f, "client=\"%u\",pid=\"%d\",name=\"", s->id, (int)s->pid);
	label(f, s->name);
	fputs("\",group=\"", f);
	label(f, s->group);
	fprintf(f, "\",kind=\"%s\"", s->ops->kind);
}

static void
budget(FILE *f, const struct up_stats *st)
{
	const struct {
		const char *name, *help;
		uint64_t value;
	} level[] = {
		{ "memory_limit_bytes", "The budget.", st->limit },
		{ "memory_limit_max_bytes", "What it may be raised to.", st->limit_max },
		{ "memory_used_bytes", "Used of the budget, metadata and buffers included.",
		  st->used },
		{ "memory_used_max_bytes",
		  "The most that was used of it since it was last changed.", st->used_max },
		{ "memory_resident_bytes", "In page tables of clients.", st->resident },
		{ "memory_staged_bytes", "In memory, in no page table.", st->staged },
		{ "memory_free_bytes", "Frames without content.", st->free_frames },
		{ "memory_metadata_bytes", "The pager's own.", st->metadata },
		{ "memory_wired_bytes", "Held in memory for ever.", st->wired },
		{ "memory_compressed_bytes", "Content of the compressed tier, decompressed.",
		  st->compressed },
		{ "memory_compressed_pool_bytes", "What the compressed tier takes.",
		  st->compressed_pool },
		{ "swap_used_bytes", "Out of memory, content in swap.", st->swapped },
		{ "swap_reserve_max_bytes", "Swap space that can be promised.", st->reserve_max },
		{ "swap_reserve_used_bytes", "Swap space that is promised.", st->reserve_used },
		{ "lost_bytes", "Content that can not be had any more.", st->lost },
		{ "mapped_bytes", "Address space that is mapped.", st->mapped },
		{ "map_entries", "Ranges that are mapped.", st->entries },
		{ "objects", "Objects that there are.", st->objects },
	};
	const struct {
		const char *name, *help;
		uint64_t value;
	} counter[] = {
		{ "fault_strays_total", "Faults at addresses being unmapped.", st->fault_strays },
		{ "fault_sigbus_total", "Faults answered with SIGBUS.", st->fault_sigbus },
		{ "rescues_total", "Soft faults on pages whose write was in flight.", st->rescues },
		{ "readahead_pages_total", "Pages read beside the one that was asked for.",
		  st->readahead_pages },
		{ "readahead_hits_total", "Of those, pages that were come to.",
		  st->readahead_hits },
		{ "readahead_waste_total", "Of those, pages that left before.",
		  st->readahead_waste },
		{ "pages_staged_total", "Pages taken out of page tables.", st->pages_staged },
		{ "pages_out_total", "Pages that left memory.", st->pages_out },
		{ "clean_skips_total", "Pages that were unchanged, and not written.",
		  st->clean_skips },
		{ "zero_skips_total", "Pages that were all zeros, and not written.",
		  st->zero_skips },
		{ "pages_pinned_total", "Pages that could not be taken out.", st->pages_pinned },
		{ "pages_copied_total", "Pages copied on write.", st->copies },
		{ "pages_compressed_total", "Pages that went to the compressed tier.",
		  st->pages_compressed },
		{ "pages_decompressed_total", "Pages that came back from there.",
		  st->pages_decompressed },
		{ "swap_reads_total", "Reads of the swap.", st->swap_reads },
		{ "swap_writes_total", "Writes of the swap.", st->swap_writes },
		{ "swap_read_bytes_total", "Bytes read from the swap.", st->swap_read_bytes },
		{ "swap_write_bytes_total", "Bytes written to the swap.", st->swap_write_bytes },
		{ "swap_read_errors_total", "Reads of the swap that failed.",
		  st->swap_read_errors },
		{ "swap_write_errors_total", "Writes of the swap that failed.",
		  st->swap_write_errors },
		{ "checksum_errors_total", "Pages that came back other than they left.",
		  st->checksum_errors },
		{ "bad_slots_total", "Slots of the swap that were given up.", st->bad_slots },
		{ "source_reads_total", "Reads of files, devices and custom pagers.",
		  st->source_reads },
		{ "source_writes_total", "Writes to them.", st->source_writes },
		{ "source_errors_total", "Requests to them that failed.", st->source_errors },
	};

	for (size_t i = 0; i < sizeof(level) / sizeof(level[0]); i++)
		single(f, level[i].name, "gauge", level[i].help, level[i].value);
	for (size_t i = 0; i < sizeof(counter) / sizeof(counter[0]); i++)
		single(f, counter[i].name, "counter", counter[i].help, counter[i].value);
}

/* One histogram of a metric: every `step`th bound. */
static void
histogram(FILE *f, const char *name, const char *labels, const struct latency_steps *s,
	  unsigned step)
{
	for (unsigned i = 0; i < LATENCY_STEPS; i += step)
		fprintf(f, P "%s_bucket{%s,le=\"%.9g\"} %" PRIu64 "\n", name, labels,
			(double)(UINT64_C(1) << (TALLY_SHIFT + i)) / 1e9, s->below[i]);
	fprintf(f, P "%s_bucket{%s,le=\"+Inf\"} %" PRIu64 "\n", name, labels, s->count);
	fprintf(f, P "%s_sum{%s} %.9g\n", name, labels, (double)s->sum / 1e9);
	fprintf(f, P "%s_count{%s} %" PRIu64 "\n", name, labels, s->count);
}

static void
faults(FILE *f, struct daemon *d, const struct up_stats *st)
{
	uint64_t n[UP_FAULT_KINDS];
	struct session_counts total;

	sessions_faults(st, n);
	sessions_totals(&total);
	head(f, "faults_total", "counter", "Faults served, of all clients that there ever were.");
	for (unsigned i = 0; i < UP_FAULT_KINDS; i++)
		fprintf(f, P "faults_total{kind=\"%s\"} %" PRIu64 "\n", fault_names[i], n[i]);
	single(f, "fault_again_total", "counter", "Times that the kernel said EAGAIN.",
	       total.again + st->fault_retries);
	single(f, "fault_exists_total", "counter", "Times that the kernel said EEXIST.",
	       total.exists + st->fault_exists);
	single(f, "fault_deferred_total", "counter",
	       "Faults that were put off: they met a busy page, or there was no room.",
	       total.deferred + st->fault_waits);
	single(f, "prefetched_pages_total", "counter", "Pages filled before they were asked for.",
	       total.prefetched);

	head(f, "fault_seconds", "histogram",
	     "From the fault's message to its answer, of the pager's own since the daemon began.");
	for (unsigned i = 0; i < UP_FAULT_KINDS; i++) {
		struct latency_steps steps;
		char labels[32];

		stats_latency(d->rt, i, NULL, &steps);
		snprintf(labels, sizeof(labels), "kind=\"%s\"", fault_names[i]);
		histogram(f, "fault_seconds", labels, &steps, 1);
	}
}

/* One metric of every client; all lines of a name have to stand together. */
static void
of_clients(FILE *f, const char *name, const char *type, const char *help, size_t offset)
{
	struct session_counts c;
	uint64_t value;

	head(f, name, type, help);
	for (const struct session *s = session_first(); s != NULL; s = s->next) {
		session_counts(s, &c);
		memcpy(&value, (const char *)&c + offset, sizeof(value));
		fprintf(f, P "%s{", name);
		client_labels(f, s);
		fprintf(f, "} %" PRIu64 "\n", value);
	}
}

static void
client_latency(FILE *f, const struct session *s)
{
	char *labels = NULL;
	size_t len;

	for (unsigned k = 0; k < UP_FAULT_KINDS && s->ops->latency != NULL; k++) {
		struct latency_steps steps = { .count = 0 };
		FILE *l;

		if (!s->ops->latency(s, k, &steps) || steps.count == 0)
			continue;
		l = open_memstream(&labels, &len);
		if (l == NULL)
			return;
		client_labels(l, s);
		fprintf(l, ",kind_of_fault=\"%s\"", fault_names[k]);
		if (fclose(l) == 0)
			histogram(f, "client_fault_seconds", labels, &steps, 2);
		free(labels);
	}
}

static void
clients(FILE *f)
{
	static const struct {
		const char *name, *type, *help;
		size_t offset;
	} metric[] = {
		{ "client_mapped_bytes", "gauge", "Mapped by a client.",
		  offsetof(struct session_counts, mapped) },
		{ "client_resident_bytes", "gauge", "In memory, of a client.",
		  offsetof(struct session_counts, resident) },
		{ "client_swapped_bytes", "gauge", "In swap, of a client.",
		  offsetof(struct session_counts, swapped) },
		{ "client_wired_bytes", "gauge", "Wired by a client.",
		  offsetof(struct session_counts, wired) },
		{ "client_again_total", "counter", "EAGAIN, of a client.",
		  offsetof(struct session_counts, again) },
		{ "client_exists_total", "counter", "EEXIST, of a client.",
		  offsetof(struct session_counts, exists) },
		{ "client_deferred_total", "counter", "Faults put off, of a client.",
		  offsetof(struct session_counts, deferred) },
		{ "client_prefetched_pages_total", "counter", "Pages filled ahead, of a client.",
		  offsetof(struct session_counts, prefetched) },
		{ "client_lost_pages", "gauge", "Pages of a client that are SIGBUS.",
		  offsetof(struct session_counts, lost) },
	};
	struct session_counts c;

	single(f, "clients", "gauge", "Clients that are there.", session_number());
	for (size_t i = 0; i < sizeof(metric) / sizeof(metric[0]); i++)
		of_clients(f, metric[i].name, metric[i].type, metric[i].help, metric[i].offset);
	head(f, "client_faults_total", "counter", "Faults served, of a client.");
	for (const struct session *s = session_first(); s != NULL; s = s->next) {
		session_counts(s, &c);
		for (unsigned k = 0; k < UP_FAULT_KINDS; k++) {
			fputs(P "client_faults_total{", f);
			client_labels(f, s);
			fprintf(f, ",kind_of_fault=\"%s\"} %" PRIu64 "\n", fault_names[k],
				c.faults[k]);
		}
	}
	head(f, "client_fault_seconds", "histogram",
	     "The same of a client, since it came; kinds that there have been.");
	for (const struct session *s = session_first(); s != NULL; s = s->next)
		client_latency(f, s);
}

char *
metrics_text(struct daemon *d, size_t *len)
{
	struct up_stats st;
	char *text = NULL;
	FILE *f;

	if (up_stats_get(d->rt, &st, sizeof(st)) < 0)
		return NULL;
	f = open_memstream(&text, len);
	if (f == NULL)
		return NULL;
	head(f, "build_info", "gauge", "Always 1; the version is a label.");
	fprintf(f, P "build_info{version=\"%s\"} 1\n", up_version());
	head(f, "uptime_seconds", "gauge", "Since the daemon began.");
	fprintf(f, P "uptime_seconds %.3f\n", (double)(monotonic_ns() - d->since) / 1e9);
	single(f, "draining", "gauge", "1: no new clients are taken.", d->state != STATE_SERVING);
	budget(f, &st);
	faults(f, d, &st);
	clients(f);
	if (fclose(f) != 0) {
		free(text);
		return NULL;
	}
	return text;
}
