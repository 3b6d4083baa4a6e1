/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * readahead.c: streams in an entry, and how far to read ahead of each.
 *
 * A stream is the index at which its next miss is expected: just behind what was brought in last.  A
 * miss there is a hit of the stream and doubles its window; a miss elsewhere replaces the oldest
 * stream with a window of one, so random access never reads ahead.  Several streams in one
 * entry (threads, merges) each keep their own.  The fields are read and written without a lock: a lost
 * update costs one read too small or too large.
 */
#include "pager/pager.h"

unsigned
readahead_window(struct map_entry *e, uint64_t index, unsigned max, struct ra_stream **stream)
{
	struct ra_stream *st;
	unsigned hand;

	*stream = NULL;
	if (e->advice == UP_ADVICE_RANDOM)
		return 1;
	for (unsigned i = 0; i < RA_STREAMS; i++) {
		unsigned w;

		st = &e->stream[i];
		if (atomic_load_explicit(&st->next, memory_order_relaxed) != index || index == 0)
			continue;
		w = atomic_load_explicit(&st->window, memory_order_relaxed) * 2;
		w = MIN(w, CLUSTER_MAX);
		atomic_store_explicit(&st->window, MAX(w, 1), memory_order_relaxed);
		*stream = st;
		return MIN(MAX(w, 1), max);
	}
	hand = atomic_fetch_add_explicit(&e->stream_hand, 1, memory_order_relaxed);
	st = &e->stream[hand % RA_STREAMS];
	atomic_store_explicit(&st->window, e->advice == UP_ADVICE_SEQUENTIAL ? CLUSTER_MAX : 1,
			      memory_order_relaxed);
	*stream = st;
	return e->advice == UP_ADVICE_SEQUENTIAL ? max : 1;
}

void
readahead_done(struct ra_stream *stream, uint64_t index, unsigned n)
{
	if (stream != NULL)
		atomic_store_explicit(&stream->next, index + n, memory_order_relaxed);
}
