/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * trace.h (private): the recent past, raw, in a ring that its owner can afford to fill.
 *
 * One ring, one writer: the service thread, or whoever else it belongs to.  It stores numbers
 * only, a handful of instructions an event, and never waits; names and columns appear when
 * somebody asks (trace_print).  Any thread may read at any time, also while the ring is written.
 *
 *	event n lives in slot n % nslots          slot->seq
 *
 *	     (older event) --trace_add begins--> 2n + 1 --trace_add ends--> 2n + 2
 *
 * A reader that wants event n < head takes the words and then looks at seq.  Unless it says
 * 2n + 2 the writer has come round again, and the event is skipped, as lost as one that was
 * overwritten long ago.  (No look before: seq only grows, and head says that it got that far.)
 *
 * Alternative looked at: one ring for all, with a ticket counter.  Writers of different CPUs
 * would pass one cache line to and fro on every fault, which costs more than the fault's own
 * bookkeeping; merging by time when printing costs nothing that matters.
 *
 * The words are release stores and acquire loads rather than plain ones between fences: no more
 * instructions on x86, and ThreadSanitizer, which does not know fences, can follow.
 *
 * Keys: (c) constant once initialised, (w) written by the owner only, read by all.
 */
#ifndef UP_TRACE_H
#define UP_TRACE_H

#include <stdatomic.h>
#include <stdio.h>

#include "base/base.h"

enum trace_kind {
	TRACE_FAULT_MINOR = 0, /* how faults ended */
	TRACE_FAULT_ZERO,
	TRACE_FAULT_SOFT,
	TRACE_FAULT_MAJOR,
	TRACE_FAULT_WP,
	TRACE_FAULT_WAIT,  /* met a busy page or no free frame */
	TRACE_FAULT_RETRY, /* the kernel said EAGAIN */
	TRACE_FAULT_SIGBUS,
	TRACE_RESCUE,	 /* came back while its write was in flight */
	TRACE_STAGE,	 /* pages taken out of the page table */
	TRACE_CLEAN,	 /* dropped unwritten: swap has the same bytes */
	TRACE_ZERO_SKIP, /* dropped unwritten: all zeros */
	TRACE_SWAP_READ,
	TRACE_SWAP_WRITE,
	TRACE_SWAP_ERROR,
	TRACE_CHECKSUM, /* came back other than it left */
	TRACE_PINNED,	/* could not be taken out */
	TRACE_KINDS
};

struct trace_event {
	uint64_t time_ns; /* now_ns() */
	uint64_t va;	  /* or a slot number, where there is no address */
	uint32_t arg;	  /* of the kind: pages, bytes, an errno */
	uint16_t kind;	  /* enum trace_kind */
	uint16_t arg2;	  /* of another space: which, a shard (pager.h) */
};

struct trace_slot {
	_Atomic uint64_t seq;	  /* (w) see above */
	_Atomic uint64_t time_ns; /* (w) */
	_Atomic uint64_t va;	  /* (w) */
	_Atomic uint64_t rest;	  /* (w) arg, kind << 32, arg2 << 48 */
};

struct trace {
	struct trace_slot *slots; /* (c) the caller's; wired if the owner serves faults */
	uint64_t mask;		  /* (c) slots - 1 */
	_Atomic uint64_t head;	  /* (w) events ever added */
};

/*
 * An empty ring over `n` slots, a power of two, with any content, that outlive it.  There is
 * nothing to undo.
 */
void trace_init(struct trace *t, struct trace_slot *slots, size_t n);

/* Add an event.  The owner only; `now` from now_ns(), which it has taken anyway. */
static inline void
trace_add2(struct trace *t, uint64_t now, enum trace_kind kind, uint64_t va, uint32_t arg,
	   uint16_t arg2)
{
	const uint64_t n = atomic_load_explicit(&t->head, memory_order_relaxed);
	struct trace_slot *s = &t->slots[n & t->mask];
	const uint64_t rest = (uint64_t)arg2 << 48 | (uint64_t)(uint16_t)kind << 32 | arg;

	/* Each word carries the odd seq with it: who sees the word sees that it is new. */
	atomic_store_explicit(&s->seq, 2 * n + 1, memory_order_relaxed);
	atomic_store_explicit(&s->time_ns, now, memory_order_release);
	atomic_store_explicit(&s->va, va, memory_order_release);
	atomic_store_explicit(&s->rest, rest, memory_order_release);
	atomic_store_explicit(&s->seq, 2 * n + 2, memory_order_release);
	atomic_store_explicit(&t->head, n + 1, memory_order_release);
}

static inline void
trace_add(struct trace *t, uint64_t now, enum trace_kind kind, uint64_t va, uint32_t arg)
{
	trace_add2(t, now, kind, va, arg, 0);
}

/*
 * The next event at or after *cursor (0: the oldest there is), oldest first.  True: *ev is event
 * number *cursor - 1, and a jump of *cursor by more than one says how many were lost.  False:
 * all that was there at the time of the call is read.  Any thread; never waits.
 */
bool trace_read(const struct trace *t, uint64_t *cursor, struct trace_event *ev);

/* Lower case, no spaces; "?" for a number that is no kind. */
const char *trace_kind_name(unsigned kind);

/*
 * What the rings hold at the time of the call, merged by time, to fn(), until that says that it is enough (false).  Not for an owner that serves
 * faults: it allocates.  0 or -ENOMEM.
 */
int trace_merge(struct trace *const rings[], unsigned n,
		bool (*fn)(void *ctx, const struct trace_event *ev), void *ctx);

/* Print one, as below.  False: it failed. */
bool trace_print_event(const struct trace_event *ev, uint64_t first_ns, FILE *out);
/*
 * Print what the rings hold at the time of the call, merged by time, one event a line: seconds
 * since the first one, kind, address, arg, and arg2 if it is not 0.  Not for an owner that
 * serves faults: it allocates and writes to `out`.  0, -ENOMEM, or -EIO if printing failed.
 */
int trace_print(struct trace *const rings[], unsigned n, FILE *out);

#endif
