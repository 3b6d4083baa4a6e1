/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * native.c: programs that link the library and are connected to the daemon (up_runtime_connect()).
 *
 *	the loop's thread                                   the runtime's keeper (lib/keeper.c)
 *	native_accept(): a session --- serve_accept() ----> its client, all that it says
 *	session_ops: numbers, maps, quotas <-- serve_*() --
 *	on_ended() <----------- uv_async_t ---------------- it has gone: ended()
 *
 * The socket is the runtime's from the moment it is accepted; here is only who it is, and what the operator wants of it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "childmsg.h"
#include "daemon.h"
#include "listen.h"
#include "log.h"
#include "serve.h"

#define STRIP 64u
#define MAP_RANGES 256u
#define OBJECTS_MAX 4096u

struct native {
	struct session session;	    /* first */
	uint64_t id;		    /* the runtime's */
	struct session_counts last; /* once it has gone it is not asked any more */
};

/* Clients that the keeper says are gone, and the loop has not heard of. */
struct gone {
	struct gone *next;
	uint64_t id;
};

static struct {
	struct daemon *d;
	bool started;
	uv_async_t wake;
	uv_mutex_t lock;
	struct gone *gone; /* (lock) */
} native;

/* --- what is asked of a session --- */

static void
counts(const struct session *s, struct session_counts *c)
{
	struct native *const n = (struct native *)(uintptr_t)s;
	struct serve_info info;

	if (serve_info(native.d->rt, n->id, &info) == 0) {
		n->last.mapped = info.mapped;
		n->last.resident = info.resident;
		n->last.swapped = info.swapped;
		memcpy(n->last.faults, info.faults, sizeof(n->last.faults));
	} else {
		n->last.mapped = n->last.resident = n->last.swapped = 0;
	}
	*c = n->last;
}

/* A digit for each 64th of the range: how much of it is in memory.  *resident: pages of it. */
static int
draw(uint64_t id, const struct serve_range *r, char strip[STRIP + 1], uint64_t *resident)
{
	const size_t npages = r->length / UP_PAGE_SIZE;
	const unsigned cells = npages < STRIP ? (unsigned)npages : STRIP;
	uint64_t in[STRIP] = { 0 }, of[STRIP] = { 0 };

	*resident = 0;
	for (size_t at = 0, n; at < npages; at += n) {
		unsigned char vec[SERVE_RESIDENCY_MAX];

		n = npages - at < sizeof(vec) ? npages - at : sizeof(vec);
		if (serve_residency(native.d->rt, id, r->start + at * UP_PAGE_SIZE, n, vec) < 0)
			return -1;
		for (size_t i = 0; i < n; i++) {
			const size_t cell = (at + i) * cells / npages;

			const bool there = (vec[i] & UP_PAGE_MAPPED) != 0;

			of[cell]++;
			in[cell] += there;
			*resident += there;
		}
	}
	for (unsigned i = 0; i < cells; i++)
		strip[i] = (char)('0' + in[i] * 9 / of[i]);
	strip[cells] = '\0';
	return 0;
}

static json_t *
map(const struct session *s)
{
	const struct native *const n = (const struct native *)s;
	json_t *const list = json_array();
	struct serve_range range[16];
	uintptr_t from = 0;
	int got;

	while (list != NULL && json_array_size(list) < MAP_RANGES &&
	       (got = serve_ranges(native.d->rt, n->id, from, range, 16)) > 0) {
		for (int i = 0; i < got; i++) {
			char strip[STRIP + 1];
			uint64_t resident;

			from = range[i].start + range[i].length;
			if (draw(n->id, &range[i], strip, &resident) < 0)
				continue;
			json_array_append_new(
				list, json_pack("{s:I, s:I, s:i, s:I, s:s, s:I, s:b}", "start",
						(json_int_t)range[i].start, "length",
						(json_int_t)range[i].length, "page_size",
						(int)UP_PAGE_SIZE, "resident",
						(json_int_t)resident * UP_PAGE_SIZE, "strip", strip,
						"object", (json_int_t)range[i].object, "shared",
						(int)range[i].shared));
		}
	}
	return list;
}

static int64_t
evict(struct session *s, uint64_t bytes)
{
	return serve_evict(native.d->rt, ((struct native *)s)->id, bytes);
}

static void
end(struct session *s)
{
	serve_end(native.d->rt, ((struct native *)s)->id);
}

static int
limit(struct session *s, uint64_t bytes)
{
	const struct native *const n = (const struct native *)s;
	struct serve_info info;
	int r = serve_info(native.d->rt, n->id, &info);

	return r < 0 ? r : serve_quota(native.d->rt, n->id, bytes, info.minimum);
}

static const struct session_ops ops = { "native", counts, map, evict, end, limit };

/* --- coming and going --- */

static struct native *
find(uint64_t id)
{
	for (struct session *s = session_first(); s != NULL; s = s->next) {
		struct native *const n = (struct native *)s;

		if (s->ops == &ops && n->id == id)
			return n;
	}
	return NULL;
}

/* The keeper's thread. */
static void
ended(void *ctx, uint64_t id)
{
	struct gone *const g = malloc(sizeof(*g));

	(void)ctx;
	if (g == NULL)
		return; /* it is shown as a client that has nothing */
	g->id = id;
	uv_mutex_lock(&native.lock);
	g->next = native.gone;
	native.gone = g;
	uv_mutex_unlock(&native.lock);
	uv_async_send(&native.wake);
}

static void
on_ended(uv_async_t *wake)
{
	struct gone *g;

	(void)wake;
	uv_mutex_lock(&native.lock);
	g = native.gone;
	native.gone = NULL;
	uv_mutex_unlock(&native.lock);
	while (g != NULL) {
		struct gone *const next = g->next;
		struct native *const n = find(g->id);

		if (n != NULL) {
			session_gone(&n->session);
			free(n);
		}
		free(g);
		g = next;
	}
}

/* Why not, as up_runtime_connect() expects it. */
static void
refuse(int fd, int status, const char *why)
{
	struct msg m = { .type = MSG_RETURN, .status = status };

	snprintf(m.call.text, sizeof(m.call.text), "%s", why);
	(void)msg_send(fd, &m, NULL, 0);
	close(fd);
}

void
native_quotas(struct daemon *d)
{
	if (!native.started)
		return;
	for (const struct config_named *g = d->cfg.named; g != NULL; g = g->next) {
		uint64_t most, least;
		int r;

		if (strcmp(g->kind, "group") != 0 || session_group(g->name, &most, &least) < 0)
			continue;
		r = serve_group_quota(d->rt, g->name, most, least);
		if (r < 0)
			log_error("group %s: limit %llu, minimum %llu: %s", g->name,
				  (unsigned long long)most, (unsigned long long)least,
				  r == -ENOSPC ? "half of the budget at most can be promised"
					       : strerror(-r));
	}
}

static int
start(struct daemon *d)
{
	int r;

	if (native.started)
		return 0;
	native.d = d;
	r = uv_async_init(&d->loop, &native.wake, on_ended);
	if (r == 0)
		r = uv_mutex_init(&native.lock);
	if (r == 0)
		r = serve_start(d->rt, ended, NULL);
	if (r < 0)
		return r;
	uv_unref((uv_handle_t *)&native.wake);
	native.started = true;
	native_quotas(d);
	return 0;
}

void
native_accept(struct daemon *d, const struct listener *l, int fd, const struct peer *peer)
{
	struct native *n;
	char why[MSG_TEXT];
	int r = session_admit(peer, why, sizeof(why));

	if (r == 0 && (r = start(d)) < 0)
		snprintf(why, sizeof(why), "native clients can not be served here: %s",
			 strerror(-r));
	if (r < 0) {
		refuse(fd, r, why);
		return;
	}
	n = calloc(1, sizeof(*n));
	if (n == NULL) {
		refuse(fd, -ENOMEM, "out of memory");
		return;
	}
	n->session.ops = &ops;
	n->session.pid = peer->pid;
	n->session.uid = peer->uid;
	n->session.gid = peer->gid;
	snprintf(n->session.group, sizeof(n->session.group), "%s", l->group);
	session_come(&n->session);
	r = serve_accept(d->rt, fd,
			 &(struct serve_limits){
				 .regions = (unsigned)config_n(&d->cfg, KEY_LIMIT_REGIONS),
				 .objects = OBJECTS_MAX,
				 .mapped = UINT64_MAX / 2,
				 .group = n->session.group },
			 &n->id);
	if (r < 0) {
		log_warning("client %u: %s", n->session.id, strerror(-r));
		session_gone(&n->session);
		free(n);
	}
}
