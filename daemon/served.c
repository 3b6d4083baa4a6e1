/* SPDX-License-Identifier: BSD-2-Clause */
#include "served.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "serve.h"

#define STRIP 64u
#define MAP_RANGES 256u

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
	return 0;
}

void
served_counts(struct up_runtime *rt, uint64_t id, struct session_counts *c)
{
	struct serve_info info;

	if (serve_info(rt, id, &info) < 0) {
		c->mapped = c->resident = c->swapped = c->wired = 0;
		return;
	}
	c->mapped = info.mapped;
	c->resident = info.resident;
	c->swapped = info.swapped;
	c->wired = info.wired;
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

/* A digit for each 64th of the range: how much of it is in memory.  *resident: pages of it. */
static int
draw(struct up_runtime *rt, uint64_t id, const struct serve_range *r, char strip[STRIP + 1],
     uint64_t *resident)
{
	const size_t npages = r->length / UP_PAGE_SIZE;
	const unsigned cells = npages < STRIP ? (unsigned)npages : STRIP;
	uint64_t in[STRIP] = { 0 }, of[STRIP] = { 0 };

	*resident = 0;
	for (size_t at = 0, n; at < npages; at += n) {
		unsigned char vec[SERVE_RESIDENCY_MAX];

		n = npages - at < sizeof(vec) ? npages - at : sizeof(vec);
		if (serve_residency(rt, id, r->start + at * UP_PAGE_SIZE, n, vec) < 0)
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

json_t *
served_map(struct up_runtime *rt, uint64_t id)
{
	json_t *const list = json_array();
	struct serve_range range[16];
	uintptr_t from = 0;
	int got;

	while (list != NULL && json_array_size(list) < MAP_RANGES &&
	       (got = serve_ranges(rt, id, from, range, 16)) > 0) {
		for (int i = 0; i < got; i++) {
			char strip[STRIP + 1];
			uint64_t resident;

			from = range[i].start + range[i].length;
			if (draw(rt, id, &range[i], strip, &resident) < 0)
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

int
served_limit(struct up_runtime *rt, uint64_t id, uint64_t bytes)
{
	struct serve_info info;
	int r = serve_info(rt, id, &info);

	return r < 0 ? r : serve_quota(rt, id, bytes, info.minimum);
}
