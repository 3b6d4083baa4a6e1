/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * state.c: see state.h.
 */
#include "state.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guardian.h"
#include "listen.h"
#include "serve.h"
#include "sessions.h"

#define PAGE_CLIENTS 64
#define PAGE_PAGES 262144u /* that are looked at, of all of them together, */
#define PAGE_NS 50000000u  /* and for how long: the loop does nothing else */
#define PAGE_GOOD_NS 900000000u
#define MAP_PAGES 2097152u /* the same of one */
#define MAP_NS 250000000u

static json_int_t
number(uint64_t n)
{
	return n > INT64_MAX ? INT64_MAX : (json_int_t)n;
}

/* Whatever it holds: what is no UTF-8 is not shown. */
static json_t *
text(const char *s)
{
	json_t *const j = json_string(s);

	return j != NULL ? j : json_string("?");
}

static json_t *
faults_json(const uint64_t faults[UP_FAULT_KINDS])
{
	json_t *const j = json_object();

	for (unsigned i = 0; i < UP_FAULT_KINDS; i++)
		json_object_set_new(j, fault_names[i], json_integer(number(faults[i])));
	return j;
}

static json_t *
latency_json(const struct up_latency latency[UP_FAULT_KINDS])
{
	json_t *const j = json_object();

	for (unsigned i = 0; i < UP_FAULT_KINDS; i++) {
		const struct up_latency *const l = &latency[i];

		json_object_set_new(j, fault_names[i],
				    json_pack("{s:I, s:I, s:I, s:I, s:I}", "count",
					      number(l->count), "p50_ns", number(l->p50), "p99_ns",
					      number(l->p99), "p999_ns", number(l->p999), "max_ns",
					      number(l->max)));
	}
	return j;
}

/* Of the last second: kinds that there were; of one `all` of them, too. */
static json_t *
recent_json(const struct up_latency recent[UP_FAULT_KINDS], const struct up_latency *all)
{
	json_t *const j = json_object();

	for (unsigned i = 0; i <= UP_FAULT_KINDS; i++) {
		const struct up_latency *const l = i < UP_FAULT_KINDS ? &recent[i] : all;

		if (l != NULL && l->count != 0)
			json_object_set_new(j, i < UP_FAULT_KINDS ? fault_names[i] : "all",
					    json_pack("{s:I, s:I, s:I}", "count", number(l->count),
						      "p50_ns", number(l->p50), "p99_ns",
						      number(l->p99)));
	}
	return j;
}

static json_t *
history_json(void)
{
	static struct sample s[SAMPLES];
	const unsigned n = sessions_history(s, SAMPLES);
	json_t *const faults = json_array(), *const major = json_array(), *const in = json_array(),
		      *const out = json_array(), *const used = json_array(),
		      *const p99 = json_array();

	for (unsigned i = 0; i < n; i++) {
		json_array_append_new(faults, json_real(s[i].faults));
		json_array_append_new(major, json_real(s[i].major));
		json_array_append_new(in, json_real(s[i].swap_read));
		json_array_append_new(out, json_real(s[i].swap_write));
		json_array_append_new(used, json_integer(number(s[i].used)));
		json_array_append_new(p99, json_integer(number(s[i].p99_ns)));
	}
	return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "faults", faults, "major", major,
			 "swap_read", in, "swap_write", out, "used", used, "p99_ns", p99);
}

static json_t *
groups_json(struct daemon *d)
{
	json_t *const j = json_array();

	for (const struct config_named *g = d->cfg.named; g != NULL; g = g->next) {
		struct serve_group is = { .limit = 0 };
		uint64_t limit = 0, minimum = 0, resident;
		const char *why = "";
		unsigned n;

		if (strcmp(g->kind, "group") != 0)
			continue;
		session_group(g->name, &limit, &minimum);
		n = sessions_of_group(g->name, &resident);
		if (native_group != NULL)
			native_group(d, g->name, &is, &why);
		json_array_append_new(
			j, json_pack("{s:s, s:I, s:I, s:I, s:I, s:i, s:I, s:{s:I, s:I}, s:s}",
				     "name", g->name, "limit", number(is.limit), "minimum",
				     number(is.minimum), "swap_limit", number(is.swap), "promised",
				     number(is.promised), "clients", (int)n, "resident",
				     number(is.resident), "configured", "limit", number(limit),
				     "minimum", number(minimum), "refused", why));
	}
	return j;
}

static json_t *
listeners_json(void)
{
	json_t *const j = json_array();

	for (const struct listener *l = listen_first(); l != NULL; l = l->next)
		json_array_append_new(j, json_pack("{s:s, s:s, s:o}", "name", l->name, "type",
						   l->type, "path", text(l->path)));
	return j;
}

/* Of a daemon, told to end or not. */
static json_t *
status(struct daemon *d)
{
	static const char *const states[] = { "serving", "draining", "ending" };
	uint64_t faults[UP_FAULT_KINDS];
	struct session_counts total;
	struct sample now = { 0 };
	struct up_stats st;

	if (up_stats_get(d->rt, &st, sizeof(st)) < 0)
		return NULL;
	sessions_faults(&st, faults);
	sessions_totals(&total);
	sessions_history(&now, 1);
	return json_pack(
		"{s:s, s:i, s:f, s:s, s:i,"
		" s:{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I},"
		" s:{s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I},"
		" s:o, s:{s:I, s:I, s:I, s:I, s:I, s:I}, s:o,"
		" s:o, s:{s:f, s:f, s:f, s:f}, s:{s:I, s:I, s:I, s:I}, s:o, s:o, s:o}",
		"version", up_version(), "pid", (int)(kept_any() ? getppid() : getpid()), "uptime",
		(double)(monotonic_ns() - d->since) / 1e9, "state", states[d->state], "clients",
		(int)session_number(), "budget", "limit", number(st.limit), "limit_max",
		number(st.limit_max), "used", number(st.used), "used_max", number(st.used_max),
		"resident", number(st.resident), "staged", number(st.staged), "free",
		number(st.free_frames), "metadata", number(st.metadata), "compressed",
		number(st.compressed), "compressed_pool", number(st.compressed_pool), "wired",
		number(st.wired), "swap", "path", text(d->swap), "swapped", number(st.swapped),
		"reserve_max", number(st.reserve_max), "reserve_used", number(st.reserve_used),
		"reserve_free", number(st.reserve_free), "reads", number(st.swap_reads), "writes",
		number(st.swap_writes), "read_bytes", number(st.swap_read_bytes), "write_bytes",
		number(st.swap_write_bytes), "read_errors", number(st.swap_read_errors),
		"write_errors", number(st.swap_write_errors), "checksum_errors",
		number(st.checksum_errors), "bad_slots", number(st.bad_slots), "faults",
		faults_json(faults), "fault_counts", "strays", number(st.fault_strays), "sigbus",
		number(st.fault_sigbus + total.lost), "again",
		number(total.again + st.fault_retries), "exists",
		number(total.exists + st.fault_exists), "deferred",
		number(total.deferred + st.fault_waits), "prefetched", number(total.prefetched),
		"latency", latency_json(st.latency), "recent", recent_json(sessions_recent(), NULL),
		"rate", "faults", now.faults, "major", now.major, "swap_read", now.swap_read,
		"swap_write", now.swap_write, "limits", "clients",
		number(config_n(&d->cfg, KEY_LIMIT_CLIENTS)), "regions",
		number(config_n(&d->cfg, KEY_LIMIT_REGIONS)), "fds",
		number(config_n(&d->cfg, KEY_LIMIT_FDS)), "inflight",
		number(config_n(&d->cfg, KEY_LIMIT_INFLIGHT)), "groups", groups_json(d),
		"listeners", listeners_json(), "history", history_json());
}

json_t *
state_status(struct daemon *d)
{
	json_t *const j = status(d);
	const uint64_t now = monotonic_ns();

	if (d->end_at != 0)
		json_object_set_new(j, "ends_in",
				    json_real(now < d->end_at ? (double)(d->end_at - now) / 1e9
							      : 0));
	return j;
}

/* Kinds that it has had; in a client's small histogram the longest is no better known than the others. */
static json_t *
client_latency_json(const struct session_counts *c)
{
	json_t *const j = json_object();

	for (unsigned i = 0; i < UP_FAULT_KINDS; i++) {
		const struct up_latency *const l = &c->latency[i];

		if (l->count != 0)
			json_object_set_new(j, fault_names[i],
					    json_pack("{s:I, s:I, s:I, s:I}", "count",
						      number(l->count), "p50_ns", number(l->p50),
						      "p99_ns", number(l->p99), "p999_ns",
						      number(l->p999)));
	}
	return j;
}

json_t *
state_client(const struct session *s)
{
	struct session_counts c;

	session_counts(s, &c);
	return json_pack(
		"{s:i, s:i, s:I, s:I, s:o, s:s, s:s, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o}",
		"id", (int)s->id, "pid", (int)s->pid, "uid", (json_int_t)s->uid, "gid",
		(json_int_t)s->gid, "name", text(s->name), "group", s->group, "kind", s->ops->kind,
		"age", (double)(monotonic_ns() - s->since) / 1e9, "mapped", number(c.mapped),
		"resident", number(c.resident), "swapped", number(c.swapped), "wired",
		number(c.wired), "limit", number(c.limit), "minimum", number(c.minimum), "promised",
		number(c.promised), "swap_limit", number(c.swap), "regions", number(c.regions),
		"faults", faults_json(c.faults), "rate", s->rate, "again", number(c.again),
		"exists", number(c.exists), "deferred", number(c.deferred), "prefetched",
		number(c.prefetched), "lost", number(c.lost), "p50_ns", number(c.p50_ns), "p99_ns",
		number(c.p99_ns), "latency", client_latency_json(&c), "recent",
		recent_json(s->recent, &s->all));
}

json_t *
state_clients(void)
{
	json_t *const j = json_array();

	for (const struct session *s = session_first(); s != NULL; s = s->next)
		json_array_append_new(j, state_client(s));
	return j;
}

/* As ls(1) has it, without what is never set. */
static const char *
mode_text(unsigned mode, char text[10])
{
	for (unsigned i = 0; i < 9; i++)
		text[i] = mode & (0400u >> i) ? "rwx"[i % 3] : '-';
	text[9] = '\0';
	return text;
}

json_t *
state_objects(struct daemon *d)
{
	const struct glance g = state_glance();
	struct serve_name n = { .id = 0 };
	json_t *const j = json_array();
	char mode[10];

	while (serve_name(d->rt, g.until, &n) == 0)
		json_array_append_new(
			j,
			json_pack("{s:I, s:o, s:I, s:I, s:s, s:I, s:I, s:I, s:I, s:b, s:i}",
				  "object", number(n.id), "name", text(n.name), "uid",
				  (json_int_t)n.uid, "gid", (json_int_t)n.gid, "mode",
				  mode_text(n.mode, mode), "size", number(n.size), "resident",
				  number(n.resident), "swapped", number(n.swapped), "lost",
				  number(n.lost), "partly", n.partly, "clients", (int)n.clients));
	return j;
}

struct glance
state_glance(void)
{
	return (struct glance){ .pages = MAP_PAGES, .until = monotonic_ns() + MAP_NS };
}

json_t *
state_map(const struct session *s, const struct glance *g)
{
	json_t *const j = state_client(s);
	json_t *const map = s->ops->map != NULL ? s->ops->map(s, g) : json_array();
	const uint64_t there = json_integer_value(json_object_get(j, "regions")),
		       listed = json_array_size(map);

	json_object_set_new(j, "map", map);
	json_object_set_new(j, "more", json_integer(there > listed ? there - listed : 0));
	return j;
}

static json_t *
page(struct daemon *d)
{
	const unsigned drawn = session_number() < PAGE_CLIENTS ? session_number() : PAGE_CLIENTS;
	const struct glance g = { .pages = drawn > 0 ? PAGE_PAGES / drawn : 0,
				  .until = monotonic_ns() + PAGE_NS };
	json_t *const clients = json_array();
	unsigned n = 0;

	for (const struct session *s = session_first(); s != NULL; s = s->next)
		json_array_append_new(clients,
				      n++ < PAGE_CLIENTS ? state_map(s, &g) : state_client(s));
	return json_pack("{s:o, s:o}", "status", state_status(d), "clients", clients);
}

const char *
state_page(struct daemon *d)
{
	static struct {
		char *text;
		uint64_t since;
		unsigned changes;
	} last;
	json_t *j;

	if (last.text != NULL && last.changes == sessions_changes() &&
	    monotonic_ns() - last.since < PAGE_GOOD_NS)
		return last.text;
	free(last.text);
	j = page(d);
	last.text = j != NULL ? json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(6)) : NULL;
	json_decref(j);
	last.since = monotonic_ns();
	last.changes = sessions_changes();
	return last.text;
}
