/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fill_record.h (private to fill*.c): what a successor of this process needs of a space, in a file in memory that somebody else keeps.
 *
 *	| struct record | ranges that it began with | log: events that changed ranges | a state of two bits for each page |
 *
 * The states are the space's own: there are no others.  Its ranges lie in private memory, so those that it began with are noted, and each event that
 * changed them; once the log is full the space gets another record, which begins with what there is then.
 *
 * What the kernel has told it does not tell again.  So messages are read into the record, and a message is
 *
 *	there, `event` is not 0, and its place is `at.next` or behind:	read, and perhaps acted upon in part: it is acted upon once more.
 *									REMOVE may be, any number of times
 *	before `at.next`:						done.  What cannot be done twice is in the log, or counted, by
 *									the same store
 *
 * A fault that was read is not noted: whoever waits is woken by the successor, and asks again.  A page that was copied, and not marked yet, is
 * copied once more: EEXIST.
 *
 * A child that is forked is told by a message with its userfaultfd, which nobody else has before record_born().  So whoever holds all
 * descriptors of this process (holder.h) is asked for it by its number, which is in the message.
 */
#ifndef UP_DAEMON_FILL_RECORD_H
#define UP_DAEMON_FILL_RECORD_H

#include "fill_space.h"

#define RECORD_MAGIC "uffdfil"
#define RECORD_VERSION 1u

/* Parts of record.at. */
#define RECORD_NEXT UINT64_C(0xff)
#define RECORD_LOGGED (UINT64_C(1) << 8)
#define RECORD_CHILD (UINT64_C(1) << 32)

struct record_range {
	uint64_t start, len, offset, first;
	uint64_t source; /* memfile.number */
	uint32_t page_size, wiped;
};

struct record {
	char magic[8];
	uint32_t version, sizes;
	uint64_t number; /* space.number */
	uint64_t holder; /* fill_config.holder of the process that made it */
	uint64_t parent,
		fork; /* of which space it is the how manieth child, from 1 on; 0: of none */
	uint64_t pages, nranges, room; /* room: in the log, messages */
	uint32_t flags, ndue, tag;
	bool broken, kept, child;
	struct unmap_due due[UNMAPS_DUE];
	/* at.next, 8 bits; how many are in the log, 24; children, 32 */
	_Atomic uint64_t at;
	struct uffd_msg batch[MSGS];
};

/* Bytes from the beginning. */
struct record_layout {
	size_t ranges, log, states, end;
};

static inline struct record_layout
record_layout_of(uint64_t pages, uint64_t ranges, uint64_t room)
{
	struct record_layout l = { .ranges = PAGE_SIZE };

	l.log = l.ranges + round_up(ranges * sizeof(struct record_range), PAGE_SIZE);
	l.states = l.log + round_up(room * sizeof(struct uffd_msg), PAGE_SIZE);
	l.end = l.states + round_up(pages / STATES_A_WORD * 8 + 8, PAGE_SIZE);
	return l;
}

static inline struct record_layout
record_layout(const struct record *rec)
{
	return record_layout_of(rec->pages, rec->nranges, rec->room);
}

static inline void *
record_part(const struct record *rec, size_t at)
{
	return (char *)(uintptr_t)rec + at;
}

static inline uint32_t
record_sizes(void)
{
	return (uint32_t)(sizeof(struct record) * 31 * 31 + sizeof(struct record_range) * 31 +
			  sizeof(struct fill_note));
}

static inline size_t
record_logged(const struct record *rec)
{
	return atomic_load(&rec->at) / RECORD_LOGGED & 0xffffff;
}

/* Room for so many ranges, and states: all MISSING.  0 or a negative errno. */
int record_make(struct space *sp, size_t ranges);
void record_free(struct space *sp);

/* A space is as it is now; it is kept from here on, if there may be a successor.  => write-locked, or in no list */
void record_commit(struct space *sp);
/* The same of a child.  => the parent is write-locked, and its message not done yet */
void record_born(struct space *sp, const struct space *parent);
/* Another record, for what there is now, and with an empty log: 0 or -ENOMEM.  To be committed. */
int record_anew(struct space *sp);
/* States, and which child it is, and how many it has had. */
void record_copy(struct space *sp, const struct record *from);
/* Nobody needs it any more. */
void record_drop(struct space *sp);

/*
 * Nobody will serve what is behind this userfaultfd: it is kept, so that who misses a page waits, and does not read zeros, as long as the guardian lives.  It
 * stays the caller's.  Without cfg.keeper a copy stays open as long as this process does.
 */
void fill_orphan(struct fill *f, int uffd);

/* What the kernel has to say, in rec->batch: how many messages.  => write-locked */
unsigned record_read(struct space *sp);
/* Number i of the batch has changed ranges, or made a child. */
void record_log(struct space *sp, unsigned i);
void record_forked(struct space *sp, unsigned i);

/* An id that is not 0 is taken, whether there will be a filler of it or not; for 0: one that is not.  The loop's thread. */
uint64_t note_id(uint64_t id);
/* The filler's own.  0 or a negative errno. */
int note_make(struct fill *f);
void note_free(struct fill *f);
/* A number for a space. */
uint64_t note_next(struct fill *f);
/* With its first space, or before. */
void note_keep(struct fill *f);

/* --- fill_heir.c --- */

/* As a predecessor has left it; not kept yet. */
void note_again(struct fill *f, const struct fill_heir *h);

/*
 * All that a predecessor has left: in no list yet, and not committed.  NULL: nothing.  What can not be served is logged, and left to who
 * keeps it.
 */
struct space *fspaces_again(struct fill *f, const struct fill_heir *h);

#endif
