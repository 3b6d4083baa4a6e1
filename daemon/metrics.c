/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * metrics.c: the text that Prometheus reads, version 0.0.4.
 *
 * Latencies are histograms with bounds at powers of two: those of the daemon as a whole from 1 us to 17 s, those of each client at every second of
 * them, and of the kinds of faults that it has had, since there may be a thousand clients: some 90 lines each at most.
 *
 * A client's number begins anew with each daemon, its process and its name do not: what is to outlive a restart is summed without (client).
 */
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "guardian.h"
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
	single(f, "fault_sigbus_total", "counter", "Faults answered with SIGBUS.",
	       total.lost + st->fault_sigbus);
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

/* One metric of every client, whose numbers are c[]; all lines of a name have to stand together. */
static void
of_clients(FILE *f, const struct session_counts c[], const char *name, const char *type,
	   const char *help, size_t offset)
{
	uint64_t value;

	head(f, name, type, help);
	for (const struct session *s = session_first(); s != NULL; s = s->next, c++) {
		memcpy(&value, (const char *)c + offset, sizeof(value));
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
		{ "client_limit_bytes", "gauge",
		  "The most that a client may have in memory; 0: no limit of its own.",
		  offsetof(struct session_counts, limit) },
		{ "client_minimum_bytes", "gauge", "What others can not push out of that.",
		  offsetof(struct session_counts, minimum) },
		{ "client_regions", "gauge", "Ranges that are mapped by a client, if known.",
		  offsetof(struct session_counts, regions) },
		{ "client_again_total", "counter", "EAGAIN, of a client.",
		  offsetof(struct session_counts, again) },
		{ "client_exists_total", "counter", "EEXIST, of a client.",
		  offsetof(struct session_counts, exists) },
		{ "client_deferred_total", "counter", "Faults put off, of a client.",
		  offsetof(struct session_counts, deferred) },
		{ "client_prefetched_pages_total", "counter", "Pages filled ahead, of a client.",
		  offsetof(struct session_counts, prefetched) },
		{ "client_lost_pages", "gauge",
		  "Pages that were lost to a client: it got SIGBUS, since it came.",
		  offsetof(struct session_counts, lost) },
	};
	struct session_counts *const all = calloc(session_number() + 1, sizeof(*all)), *c = all;

	single(f, "clients", "gauge", "Clients that are there.", session_number());
	single(f, "clients_taken_over", "gauge",
	       "Clients that the daemon before this one had, and this one serves on.",
	       sessions_taken_over());
	if (all == NULL)
		return;
	for (const struct session *s = session_first(); s != NULL; s = s->next)
		session_counts(s, c++);
	for (size_t i = 0; i < sizeof(metric) / sizeof(metric[0]); i++)
		of_clients(f, all, metric[i].name, metric[i].type, metric[i].help,
			   metric[i].offset);
	head(f, "client_faults_total", "counter", "Faults served, of a client.");
	c = all;
	for (const struct session *s = session_first(); s != NULL; s = s->next, c++) {
		for (unsigned k = 0; k < UP_FAULT_KINDS; k++) {
			fputs(P "client_faults_total{", f);
			client_labels(f, s);
			fprintf(f, ",kind_of_fault=\"%s\"} %" PRIu64 "\n", fault_names[k],
				c->faults[k]);
		}
	}
	head(f, "client_fault_seconds", "histogram",
	     "The same of a client, since it came; kinds that there have been.");
	for (const struct session *s = session_first(); s != NULL; s = s->next)
		client_latency(f, s);
	free(all);
}

static void
group_value(FILE *f, const char *name, const char *group, uint64_t value)
{
	fprintf(f, P "%s{group=\"", name);
	label(f, group);
	fprintf(f, "\"} %" PRIu64 "\n", value);
}

static void
groups(FILE *f, struct daemon *d)
{
	static const struct {
		const char *name, *help;
	} metric[] = {
		{ "group_limit_bytes", "The most that a group may have in memory; 0: no limit." },
		{ "group_minimum_bytes", "What others can not push out of that." },
		{ "group_resident_bytes", "In memory, of the clients of a group." },
		{ "group_clients", "Clients of a group." },
	};

	for (size_t i = 0; i < sizeof(metric) / sizeof(metric[0]); i++) {
		head(f, metric[i].name, "gauge", metric[i].help);
		for (const struct config_named *g = d->cfg.named; g != NULL; g = g->next) {
			uint64_t value[4] = { 0 };

			if (strcmp(g->kind, "group") != 0)
				continue;
			session_group(g->name, &value[0], &value[1]);
			value[3] = sessions_of_group(g->name, &value[2]);
			group_value(f, metric[i].name, g->name, value[i]);
		}
	}
}

/* Of connections: who came and was not taken. */
static void
refusals(FILE *f)
{
	head(f, "refused_connections_total", "counter",
	     "Connections that were refused: the daemon drains, there are as many clients as may be, no descriptor is left, the peer has no right to, or it "
	     "failed.");
	for (unsigned i = 0; i < REFUSALS; i++)
		fprintf(f, P "refused_connections_total{reason=\"%s\"} %" PRIu64 "\n",
			refusal_names[i], sessions_refused(i));
}

/* Seconds since 1970: the same at each call, unless the clock is set. */
static double
process_began(void)
{
	static double began;
	struct timespec now, boot;
	unsigned long long ticks = 0;
	char text[1024];
	FILE *stat;

	if (began != 0 || (stat = fopen("/proc/self/stat", "re")) == NULL)
		return began;
	if (fgets(text, sizeof(text), stat) != NULL && strrchr(text, ')') != NULL)
		(void)sscanf(strrchr(text, ')') + 1,
			     " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d "
			     "%*d %*d %llu",
			     &ticks);
	fclose(stat);
	clock_gettime(CLOCK_REALTIME, &now);
	clock_gettime(CLOCK_BOOTTIME, &boot);
	began = (double)(now.tv_sec - boot.tv_sec) + (double)(now.tv_nsec - boot.tv_nsec) / 1e9 +
		(double)ticks / (double)sysconf(_SC_CLK_TCK);
	return began;
}

static unsigned
open_descriptors(void)
{
	DIR *const dir = opendir("/proc/self/fd");
	unsigned n = 0;

	if (dir == NULL)
		return 0;
	while (readdir(dir) != NULL)
		n++;
	closedir(dir);
	return n > 3 ? n - 3 : 0; /* ".", "..", and its own */
}

/* By the names that client libraries of Prometheus have for it. */
static void
process(FILE *f)
{
	struct rlimit lim = { 0 };
	struct rusage use = { 0 };
	unsigned long long vm = 0, rss = 0;
	FILE *const statm = fopen("/proc/self/statm", "re");

	if (statm != NULL) {
		if (fscanf(statm, "%llu %llu", &vm, &rss) != 2)
			vm = rss = 0;
		fclose(statm);
	}
	getrlimit(RLIMIT_NOFILE, &lim);
	getrusage(RUSAGE_SELF, &use);
	fprintf(f,
		"# HELP process_open_fds Descriptors that are open.\n# TYPE process_open_fds gauge\n"
		"process_open_fds %u\n"
		"# HELP process_max_fds Descriptors that may be.\n# TYPE process_max_fds gauge\n"
		"process_max_fds %llu\n",
		open_descriptors(), (unsigned long long)lim.rlim_cur);
	fprintf(f,
		"# HELP process_start_time_seconds When the daemon began, since 1970.\n"
		"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds %.3f\n",
		process_began());
	fprintf(f,
		"# HELP process_cpu_seconds_total CPU time of the daemon.\n"
		"# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total %.3f\n",
		(double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
			(double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6);
	fprintf(f,
		"# HELP process_virtual_memory_bytes Address space of the daemon.\n"
		"# TYPE process_virtual_memory_bytes gauge\nprocess_virtual_memory_bytes %llu\n"
		"# HELP process_resident_memory_bytes What it has in memory, the files of its clients included.\n"
		"# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes %llu\n",
		vm * UP_PAGE_SIZE, rss * UP_PAGE_SIZE);
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
	single(f, "guardian", "gauge", "1: there is one, which starts the next daemon.",
	       kept_any());
	single(f, "restarts_total", "counter", "Daemons that the guardian has had before this one.",
	       kept_any() ? kept_before() : 0);
	process(f);
	budget(f, &st);
	faults(f, d, &st);
	refusals(f);
	groups(f, d);
	clients(f);
	if (fclose(f) != 0) {
		free(text);
		return NULL;
	}
	return text;
}
