/* SPDX-License-Identifier: BSD-2-Clause */
#include "served.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "pager/pager.h"
#include "serve.h"

#define STRIP 64u
#define MAP_RANGES 256u
#define STEP_MAX 64u

int
served_whose(struct session *who, int connection, const char *group)
{
	struct ucred cred = { 0 };
	socklen_t len = sizeof(cred);

	if (getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return -errno;
	*who = (struct session){ .pid = cred.pid, .uid = cred.uid, .gid = cred.gid };
	if (group != NULL)
		snprintf(who->group, sizeof(who->group), "%s", group);
	who->by_door = who->group[0] != '\0';
	return 0;
}

void
served_counts(struct up_runtime *rt, uint64_t id, struct session_counts *c)
{
	struct serve_info info;

	if (serve_info(rt, id, &info) < 0) {
		c->mapped = c->resident = c->swapped = c->wired = c->promised = 0;
		c->limit = c->minimum = c->regions = 0;
		return;
	}
	c->mapped = info.mapped;
	c->resident = info.resident;
	c->swapped = info.swapped;
	c->wired = info.wired;
	c->limit = info.limit;
	c->minimum = info.minimum;
	c->regions = info.regions;
	c->promised = info.promised;
	c->swap = info.swap;
	c->again = info.again;
	c->exists = info.exists;
	c->deferred = info.deferred;
	c->lost = info.sigbus;
	c->p50_ns = info.all.p50;
	c->p99_ns = info.all.p99;
	memcpy(c->faults, info.faults, sizeof(c->faults));
	memcpy(c->latency, info.latency, sizeof(c->latency));
	c->ours = (struct session_events){
		.again = c->again, .exists = c->exists, .deferred = c->deferred, .lost = c->lost
	};
	memcpy(c->ours.faults, c->faults, sizeof(c->ours.faults));
}

void
served_add(struct session_counts *to, const struct session_counts *more)
{
	to->mapped += more->mapped;
	to->resident += more->resident;
	to->swapped += more->swapped;
	to->wired += more->wired;
	to->limit += more->limit;
	to->minimum += more->minimum;
	to->regions += more->regions;
	to->prefetched += more->prefetched;
	to->again += more->again;
	to->exists += more->exists;
	to->deferred += more->deferred;
	to->lost += more->lost;
	to->ours.again += more->ours.again;
	to->ours.exists += more->ours.exists;
	to->ours.deferred += more->ours.deferred;
	to->ours.lost += more->ours.lost;
	for (unsigned k = 0; k < UP_FAULT_KINDS; k++) {
		to->faults[k] += more->faults[k];
		to->ours.faults[k] += more->ours.faults[k];
	}
}

bool
served_latency(struct up_runtime *rt, uint64_t id, enum up_fault_kind kind,
	       struct latency_steps *steps)
{
	return serve_latency(rt, id, kind, steps) == 0;
}

/* Every so many pages of it do. */
static unsigned
step_for(struct up_runtime *rt, uint64_t id, const struct glance *g)
{
	struct serve_info info;
	unsigned step = 1;

	if (g->pages == 0 || serve_info(rt, id, &info) < 0)
		return 1;
	while (step < STEP_MAX && (info.resident + info.swapped) / UP_PAGE_SIZE / step > g->pages)
		step *= 2;
	return step;
}

/* Of what is not where it could be touched: what there is most of; what is lost is seen in any case. */
static char
rest_of(const struct range_look *l)
{
	const uint32_t most = MAX(l->staged, MAX(l->swapped, l->compressed));

	return l->lost > 0	    ? '!'
	       : most == 0	    ? '.'
	       : l->swapped == most ? 'w'
	       : l->staged == most  ? 's'
				    : 'c';
}

static json_int_t
bytes_of(uint64_t pages)
{
	const uint64_t bytes = pages * UP_PAGE_SIZE;

	return (json_int_t)bytes;
}

/*
 * The range with a digit for each 64th of it: how much of that is in memory; and a letter: where most of the rest is.  Without those if there is no more
 * time.  NULL: it has gone.
 */
static json_t *
draw(struct up_runtime *rt, uint64_t id, const struct serve_range *r, unsigned step,
     const struct glance *g)
{
	const size_t npages = r->length / UP_PAGE_SIZE;
	const unsigned cells = npages < STRIP ? (unsigned)npages : STRIP;
	struct range_look look[STRIP] = { { 0 } };
	uint64_t in = 0, staged = 0, swapped = 0, compressed = 0, lost = 0;
	char strip[STRIP + 1], rest[STRIP + 1];
	int late = 1;
	json_t *j;

	if (g->until == 0 || now_ns() < g->until)
		late = serve_look(rt, id, r, step, g->until, look, cells);
	if (late < 0)
		return NULL;
	j = json_pack("{s:I, s:I, s:i, s:I, s:I, s:s, s:s, s:i, s:b, s:b}", "start",
		      (json_int_t)r->start, "length", (json_int_t)r->length, "page_size",
		      (int)UP_PAGE_SIZE, "object", (json_int_t)r->object, "offset",
		      (json_int_t)r->offset, "pager", r->pager, "prot",
		      (r->prot & PROT_WRITE) != 0  ? "rw"
		      : (r->prot & PROT_READ) != 0 ? "r"
						   : "",
		      "depth", (int)r->depth, "shared", (int)r->shared, "wired",
		      (int)(r->wired > 0));
	if (j == NULL || late)
		return j;
	for (unsigned i = 0; i < cells; i++) {
		const struct range_look *const l = &look[i];
		const uint64_t of = npages * (i + 1) / cells - npages * i / cells;

		/* A page is seen in however many. */
		strip[i] =
			(char)('0' + (l->mapped == 0 ? 0 : MIN(MAX(l->mapped * 9ull / of, 1), 9)));
		rest[i] = rest_of(l);
		in += l->mapped;
		staged += l->staged;
		swapped += l->swapped;
		compressed += l->compressed;
		lost += l->lost;
	}
	strip[cells] = rest[cells] = '\0';
	json_object_update_new(j, json_pack("{s:I, s:I, s:I, s:I, s:I, s:s, s:s}", "resident",
					    bytes_of(in), "staged", bytes_of(staged), "swapped",
					    bytes_of(swapped), "compressed", bytes_of(compressed),
					    "lost", bytes_of(lost), "strip", strip, "rest", rest));
	return j;
}

json_t *
served_map(struct up_runtime *rt, uint64_t id, const struct glance *g)
{
	const unsigned step = step_for(rt, id, g);
	json_t *const list = json_array();
	struct serve_range range[16];
	uintptr_t from = 0;
	int got;

	while (list != NULL && json_array_size(list) < MAP_RANGES &&
	       (got = serve_ranges(rt, id, from, range, 16)) > 0) {
		for (int i = 0; i < got; i++) {
			json_t *const j = draw(rt, id, &range[i], step, g);

			from = range[i].start + range[i].length;
			if (j != NULL)
				json_array_append_new(list, j);
		}
	}
	return list;
}

int
served_limit(struct up_runtime *rt, uint64_t id, uint64_t most, uint64_t least)
{
	struct serve_info info;
	int r = serve_info(rt, id, &info);

	if (r < 0)
		return r;
	return serve_quota(rt, id, most != LIMIT_KEEP ? most : info.limit,
			   least != LIMIT_KEEP ? least : info.minimum);
}
