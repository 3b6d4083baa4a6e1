/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * trace.c: the reading side of the event ring; adding is inline in trace.h, where the protocol is.
 *
 * Everything here is bounded by what a ring held when the call began.  Without that bound a
 * writer that is faster than the terminal would keep trace_print() busy for ever.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/trace.h"

_Static_assert(sizeof(struct trace_event) == 24, "three words, as stored in a slot");

void
trace_init(struct trace *t, struct trace_slot *slots, size_t n)
{
	assert(n > 0 && (n & (n - 1)) == 0);
	t->slots = slots;
	t->mask = n - 1;
	atomic_init(&t->head, 0);
}

/* Event n has been added.  True if its slot still held it after it was read. */
static bool
slot_read(const struct trace_slot *s, uint64_t n, struct trace_event *ev)
{
	uint64_t rest;

	ev->time_ns = atomic_load_explicit(&s->time_ns, memory_order_acquire);
	ev->va = atomic_load_explicit(&s->va, memory_order_acquire);
	rest = atomic_load_explicit(&s->rest, memory_order_acquire);
	ev->arg = (uint32_t)rest;
	ev->kind = (uint16_t)(rest >> 32);
	ev->arg2 = (uint16_t)(rest >> 48);
	return atomic_load_explicit(&s->seq, memory_order_relaxed) == 2 * n + 2;
}

/* As trace_read(), but only events before number `until`. */
static bool
read_until(const struct trace *t, uint64_t *cursor, uint64_t until, struct trace_event *ev)
{
	for (;;) {
		const uint64_t head = atomic_load_explicit(&t->head, memory_order_acquire);
		uint64_t n = *cursor;

		if (head > t->mask + 1)
			n = MAX(n, head - t->mask - 1);
		if (n >= until)
			return false;
		*cursor = n + 1;
		if (slot_read(&t->slots[n & t->mask], n, ev))
			return true;
	}
}

bool
trace_read(const struct trace *t, uint64_t *cursor, struct trace_event *ev)
{
	return read_until(t, cursor, atomic_load_explicit(&t->head, memory_order_acquire), ev);
}

const char *
trace_kind_name(unsigned kind)
{
	static const char *const name[TRACE_KINDS] = {
		[TRACE_FAULT_MINOR] = "fault-minor",
		[TRACE_FAULT_ZERO] = "fault-zero",
		[TRACE_FAULT_SOFT] = "fault-soft",
		[TRACE_FAULT_MAJOR] = "fault-major",
		[TRACE_FAULT_WP] = "fault-wp",
		[TRACE_FAULT_WAIT] = "fault-wait",
		[TRACE_FAULT_RETRY] = "fault-retry",
		[TRACE_FAULT_SIGBUS] = "fault-sigbus",
		[TRACE_RESCUE] = "rescue",
		[TRACE_STAGE] = "stage",
		[TRACE_CLEAN] = "clean",
		[TRACE_ZERO_SKIP] = "zero-skip",
		[TRACE_SWAP_READ] = "swap-read",
		[TRACE_SWAP_WRITE] = "swap-write",
		[TRACE_SWAP_ERROR] = "swap-error",
		[TRACE_CHECKSUM] = "checksum",
		[TRACE_PINNED] = "pinned",
	};

	return kind < TRACE_KINDS ? name[kind] : "?";
}

/* ---- printing ---- */

/* One ring of a merge, and the next event of it that is to be printed. */
struct source {
	const struct trace *ring;
	uint64_t cursor, until;
	struct trace_event ev;
	bool more; /* ev is there */
};

static void
source_advance(struct source *s)
{
	s->more = read_until(s->ring, &s->cursor, s->until, &s->ev);
}

/* The one with the earliest event, the first such; NULL when all are done. */
static struct source *
source_earliest(struct source *s, unsigned n)
{
	struct source *best = NULL;

	for (unsigned i = 0; i < n; i++) {
		if (s[i].more && (best == NULL || s[i].ev.time_ns < best->ev.time_ns))
			best = &s[i];
	}
	return best;
}

int
trace_merge(struct trace *const rings[], unsigned n,
	    bool (*fn)(void *ctx, const struct trace_event *ev), void *ctx)
{
	struct source *sources = calloc(MAX(n, 1), sizeof *sources), *s;
	bool more = true;

	if (sources == NULL)
		return -ENOMEM;
	for (unsigned i = 0; i < n; i++) {
		s = &sources[i];
		s->ring = rings[i];
		s->until = atomic_load_explicit(&s->ring->head, memory_order_acquire);
		source_advance(s);
	}
	while (more && (s = source_earliest(sources, n)) != NULL) {
		more = fn(ctx, &s->ev);
		source_advance(s);
	}
	free(sources);
	return 0;
}

bool
trace_print_event(const struct trace_event *ev, uint64_t first_ns, FILE *out)
{
	/* An owner that took its time stamps in another order than it added has earlier ones. */
	const bool before = ev->time_ns < first_ns;
	const uint64_t us = (before ? first_ns - ev->time_ns : ev->time_ns - first_ns) / 1000;
	int r = fprintf(out, "%s%" PRIu64 ".%06" PRIu64 " %-12s 0x%012" PRIx64 " %" PRIu32,
			before ? "-" : "", us / 1000000, us % 1000000, trace_kind_name(ev->kind),
			ev->va, ev->arg);

	if (r >= 0 && ev->arg2 != 0)
		r = fprintf(out, " %u", (unsigned)ev->arg2);
	return r >= 0 && fputc('\n', out) != EOF;
}

struct printing {
	FILE *out;
	uint64_t first_ns;
	bool any, ok;
};

static bool
print_one(void *ctx, const struct trace_event *ev)
{
	struct printing *const p = ctx;

	if (!p->any)
		p->first_ns = ev->time_ns;
	p->any = true;
	p->ok = trace_print_event(ev, p->first_ns, p->out);
	return p->ok;
}

int
trace_print(struct trace *const rings[], unsigned n, FILE *out)
{
	struct printing p = { .out = out, .ok = true };
	const int r = trace_merge(rings, n, print_one, &p);

	if (r < 0)
		return r;
	return p.ok && fflush(out) == 0 ? 0 : -EIO;
}
