/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Tests of lib/base/trace.c: the event ring, read while it is written, and its printing.
 */
#include "assertions.h"
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/trace.h"

TestSuite(trace, .timeout = 60);

#define SLOTS 8

static struct trace ring;
static struct trace_slot slots[SLOTS];

static void
rig_up(void)
{
	memset(slots, 0xa5, sizeof slots); /* init must not rely on zeros */
	memset(&ring, 0xa5, sizeof ring);
	trace_init(&ring, slots, SLOTS);
}

/* Event n of the tests; every field tells n. */
static void
add_nth(struct trace *t, uint64_t n)
{
	trace_add2(t, n, (enum trace_kind)(n % TRACE_KINDS), ~n, (uint32_t)(n * 7),
		   (uint16_t)(n * 3));
}

static bool
is_nth(const struct trace_event *ev, uint64_t n)
{
	return ev->time_ns == n && ev->va == ~n && ev->kind == n % TRACE_KINDS &&
	       ev->arg == (uint32_t)(n * 7) && ev->arg2 == (uint16_t)(n * 3);
}

/* ---- reading ---- */

Test(trace, an_empty_ring_reads_nothing, .init = rig_up)
{
	struct trace_event ev;
	uint64_t cursor = 0;

	cr_assert(not(trace_read(&ring, &cursor, &ev)));
	cr_assert(eq(u64, cursor, 0));
}

Test(trace, an_event_reads_as_it_was_added, .init = rig_up)
{
	struct trace_event ev;
	uint64_t cursor = 0;

	trace_add(&ring, UINT64_MAX, TRACE_PINNED, 0x7fffffffe000, UINT32_MAX);
	trace_add2(&ring, 1, TRACE_FAULT_MINOR, UINT64_MAX, 0, UINT16_MAX);

	cr_assert(trace_read(&ring, &cursor, &ev));
	cr_assert(eq(u64, ev.time_ns, UINT64_MAX));
	cr_assert(eq(u64, ev.va, 0x7fffffffe000));
	cr_assert(eq(u32, ev.arg, UINT32_MAX));
	cr_assert(eq(u16, ev.kind, TRACE_PINNED));
	cr_assert(eq(u16, ev.arg2, 0));
	cr_assert(trace_read(&ring, &cursor, &ev));
	cr_assert(eq(u64, ev.time_ns, 1));
	cr_assert(eq(u64, ev.va, UINT64_MAX));
	cr_assert(eq(u32, ev.arg, 0));
	cr_assert(eq(u16, ev.kind, TRACE_FAULT_MINOR));
	cr_assert(eq(u16, ev.arg2, UINT16_MAX));
	cr_assert(not(trace_read(&ring, &cursor, &ev)));
}

Test(trace, a_reader_that_keeps_up_misses_nothing_round_after_round, .init = rig_up)
{
	struct trace_event ev;
	uint64_t cursor = 0, read = 0;

	for (uint64_t n = 0; n < 10 * SLOTS; n++) {
		add_nth(&ring, n);
		if (n % 5 != 0)
			continue; /* up to five at a time */
		while (trace_read(&ring, &cursor, &ev)) {
			cr_assert(is_nth(&ev, read), "event %" PRIu64, read);
			read++;
			cr_assert(eq(u64, cursor, read));
		}
		cr_assert(eq(u64, read, n + 1));
	}
}

Test(trace, a_late_reader_gets_the_newest_events_and_sees_how_many_it_lost, .init = rig_up)
{
	struct trace_event ev;
	uint64_t cursor = 0;

	for (uint64_t n = 0; n < 3 * SLOTS + 1; n++)
		add_nth(&ring, n);
	cr_assert(trace_read(&ring, &cursor, &ev));
	cr_assert(eq(u64, cursor - 1, 2 * SLOTS + 1), "that many lost");
	for (uint64_t n = 2 * SLOTS + 1;; n++) {
		cr_assert(is_nth(&ev, n), "event %" PRIu64, n);
		cr_assert(eq(u64, cursor, n + 1));
		if (!trace_read(&ring, &cursor, &ev)) {
			cr_assert(eq(u64, n, 3 * SLOTS), "the last one");
			break;
		}
	}
}

Test(trace, a_ring_of_one_slot_holds_the_last_event)
{
	struct trace_slot slot;
	struct trace one;
	struct trace_event ev;
	uint64_t cursor = 0;

	trace_init(&one, &slot, 1);
	for (uint64_t n = 0; n < 3; n++)
		add_nth(&one, n);
	cr_assert(trace_read(&one, &cursor, &ev));
	cr_assert(is_nth(&ev, 2));
	cr_assert(not(trace_read(&one, &cursor, &ev)));
}

Test(trace, a_reader_a_trillion_events_late_catches_up_at_once, .init = rig_up)
{
	const uint64_t first = UINT64_C(1) << 40;
	struct trace_event ev;
	uint64_t cursor = 0;

	atomic_store(&ring.head, first);
	for (uint64_t n = first; n < first + SLOTS; n++)
		add_nth(&ring, n);
	cr_assert(trace_read(&ring, &cursor, &ev));
	cr_assert(is_nth(&ev, first));
}

/* A writer stopped inside trace_add(), as a reader would find it. */
Test(trace, an_event_being_overwritten_is_skipped, .init = rig_up)
{
	struct trace_event ev;
	uint64_t cursor = 0;

	for (uint64_t n = 0; n < SLOTS; n++)
		add_nth(&ring, n);
	atomic_store(&slots[0].seq, 2 * SLOTS + 1); /* event SLOTS begun */
	atomic_store(&slots[0].time_ns, 12345);
	cr_assert(trace_read(&ring, &cursor, &ev));
	cr_assert(is_nth(&ev, 1));
	cr_assert(eq(u64, cursor, 2));

	cursor = 0;
	atomic_store(&slots[0].seq, 2 * SLOTS + 2); /* complete, head not yet moved */
	cr_assert(trace_read(&ring, &cursor, &ev));
	cr_assert(is_nth(&ev, 1));
}

/* ---- reading while it is written ---- */

#define EVENTS 1000000

static atomic_bool writer_done;

/* Adds in bursts with a pause for the readers between them: on one CPU they take turns. */
static void *
writer(void *arg)
{
	for (uint64_t n = 0; n < EVENTS; n++) {
		add_nth(arg, n);
		if (n % 1024 == 0)
			sched_yield();
	}
	atomic_store(&writer_done, true);
	return NULL;
}

struct reader {
	pthread_t thread;
	const struct trace *ring;
	uint64_t seen, wrong, disorder, last;
};

static void *
reader(void *arg)
{
	struct reader *r = arg;
	struct trace_event ev;
	uint64_t cursor = 0, next = 0;
	bool done;

	do {
		done = atomic_load(&writer_done);
		while (trace_read(r->ring, &cursor, &ev)) {
			r->disorder += cursor - 1 < next;
			next = cursor;
			r->wrong += !is_nth(&ev, cursor - 1);
			r->last = cursor - 1;
			r->seen++;
		}
	} while (!done);
	return NULL;
}

/*
 *	writer		add add add add add add add ... a million times round four slots
 *	readers (2)	read, read, (skip,) read ...	all whole, in order, the last one too
 */
Test(trace, readers_never_see_half_an_event_however_fast_it_is_overwritten)
{
	static struct trace_slot few[4];
	static struct trace small;
	struct reader r[2] = { { .ring = &small }, { .ring = &small } };
	pthread_t w;

	trace_init(&small, few, ARRAY_SIZE(few));
	for (size_t i = 0; i < ARRAY_SIZE(r); i++)
		cr_assert(eq(int, pthread_create(&r[i].thread, NULL, reader, &r[i]), 0));
	cr_assert(eq(int, pthread_create(&w, NULL, writer, &small), 0));
	pthread_join(w, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(r); i++) {
		pthread_join(r[i].thread, NULL);
		cr_assert(eq(u64, r[i].wrong, 0));
		cr_assert(eq(u64, r[i].disorder, 0));
		cr_assert(eq(u64, r[i].last, EVENTS - 1));
		cr_assert(ge(u64, r[i].seen, ARRAY_SIZE(few)), "seen: the last four at least");
	}
}

/* ---- printing ---- */

/* What trace_print() prints; the caller frees. */
static char *
printed(struct trace *const rings[], unsigned n)
{
	char *text = NULL;
	size_t len;
	FILE *out = open_memstream(&text, &len);

	cr_assert(ne(ptr, out, NULL));
	cr_assert(eq(int, trace_print(rings, n, out), 0));
	fclose(out);
	return text;
}

Test(trace, every_kind_has_a_name_of_its_own)
{
	for (unsigned i = 0; i < TRACE_KINDS; i++) {
		cr_assert(ne(ptr, (void *)(uintptr_t)trace_kind_name(i), NULL), "kind %u", i);
		cr_assert(ne(int, strcmp(trace_kind_name(i), "?"), 0), "kind %u", i);
		cr_assert(eq(ptr, strchr(trace_kind_name(i), ' '), NULL), "kind %u", i);
		for (unsigned j = 0; j < i; j++) {
			cr_assert(ne(int, strcmp(trace_kind_name(i), trace_kind_name(j)), 0),
				  "kinds %u and %u", i, j);
		}
	}
	cr_assert(eq(int, strcmp(trace_kind_name(TRACE_KINDS), "?"), 0));
}

Test(trace, nothing_to_print_prints_nothing, .init = rig_up)
{
	struct trace *const rings[] = { &ring };
	char *text = printed(rings, 1), *none = printed(NULL, 0);

	cr_assert(eq(str, text, ""));
	cr_assert(eq(str, none, ""));
	free(text);
	free(none);
}

Test(trace, rings_are_printed_merged_by_time_from_the_first_event_on)
{
	static struct trace_slot s[3][4];
	struct trace t[3];
	struct trace *const rings[] = { &t[0], &t[1], &t[2] };
	const uint64_t zero = UINT64_C(5000000000);
	char *text;

	for (size_t i = 0; i < ARRAY_SIZE(t); i++)
		trace_init(&t[i], s[i], 4);
	trace_add(&t[0], zero + 1000, TRACE_FAULT_MAJOR, 0x7f0000001000, 3);
	trace_add(&t[0], zero + 2500000, TRACE_SWAP_READ, 0x7f0000001000, 16);
	trace_add(&t[2], zero, TRACE_STAGE, 0x7f0000200000, 64);
	trace_add2(&t[2], zero + 1000, TRACE_SWAP_ERROR, 0x42, 5, 7);
	trace_add(&t[2], zero + UINT64_C(61000002999), TRACE_FAULT_SIGBUS, 0x7f0000003000, 0);

	text = printed(rings, 3);
	cr_assert(eq(str, text,
		     "0.000000 stage        0x7f0000200000 64\n"
		     "0.000001 fault-major  0x7f0000001000 3\n"
		     "0.000001 swap-error   0x000000000042 5 7\n"
		     "0.002500 swap-read    0x7f0000001000 16\n"
		     "61.000002 fault-sigbus 0x7f0000003000 0\n"));
	free(text);
}

Test(trace, a_time_before_the_first_event_is_negative_not_huge, .init = rig_up)
{
	struct trace *const rings[] = { &ring };
	char *text;

	trace_add(&ring, 9000, TRACE_CLEAN, 0x1000, 0);
	trace_add(&ring, 2000, TRACE_CLEAN, 0x2000, 0);
	text = printed(rings, 1);
	cr_assert(eq(str, text,
		     "0.000000 clean        0x000000001000 0\n"
		     "-0.000007 clean        0x000000002000 0\n"));
	free(text);
}

/* A stream whose every write adds to the ring that is being printed. */
static ssize_t
add_on_write(void *cookie, const char *buf, size_t len)
{
	size_t *written = cookie;

	(void)buf;
	for (uint64_t n = 0; n < SLOTS / 2; n++)
		add_nth(&ring, 1000 + n);
	*written += len;
	return (ssize_t)len;
}

Test(trace, printing_ends_although_the_owner_goes_on_adding, .init = rig_up)
{
	const cookie_io_functions_t io = { .write = add_on_write };
	struct trace *const rings[] = { &ring };
	size_t written = 0;
	FILE *out = fopencookie(&written, "w", io);

	cr_assert(ne(ptr, out, NULL));
	setvbuf(out, NULL, _IOLBF, 64);
	for (uint64_t n = 0; n < SLOTS; n++)
		add_nth(&ring, n);
	cr_assert(eq(int, trace_print(rings, 1, out), 0));
	cr_assert(gt(sz, written, 0));
	cr_assert(lt(sz, written, 100 * SLOTS), "more lines than there were events");
	fclose(out);
}

Test(trace, a_stream_that_cannot_be_written_is_eio, .init = rig_up)
{
	struct trace *const rings[] = { &ring };
	FILE *full = fopen("/dev/full", "w");

	if (full == NULL)
		cr_skip("no /dev/full here");
	add_nth(&ring, 0);
	cr_assert(eq(int, trace_print(rings, 1, full), -EIO), "buffered: found when flushed");
	fclose(full);

	full = fopen("/dev/full", "w");
	cr_assert(ne(ptr, full, NULL));
	setvbuf(full, NULL, _IONBF, 0);
	cr_assert(eq(int, trace_print(rings, 1, full), -EIO), "unbuffered");
	fclose(full);
}

/* Fails once, then works. */
static ssize_t
fail_first_write(void *cookie, const char *buf, size_t len)
{
	unsigned *calls = cookie;

	(void)buf;
	if ((*calls)++ > 0)
		return (ssize_t)len;
	errno = EIO;
	return 0;
}

Test(trace, one_lost_line_is_eio_even_if_the_stream_recovers, .init = rig_up)
{
	const cookie_io_functions_t io = { .write = fail_first_write };
	struct trace *const rings[] = { &ring };
	unsigned calls = 0;
	FILE *out = fopencookie(&calls, "w", io);

	cr_assert(ne(ptr, out, NULL));
	setvbuf(out, NULL, _IONBF, 0);
	add_nth(&ring, 0);
	add_nth(&ring, 1);
	cr_assert(eq(int, trace_print(rings, 1, out), -EIO));
	cr_assert(ge(uint, calls, 1));
	fclose(out);
}
