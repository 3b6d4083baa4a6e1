/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * zpool.h (private): compressed pages in memory, between the frames and the disk.
 *
 * An entry is a page: its compressed bytes somewhere in a segment, or, if all its words are the same, that word and no bytes.
 * A page goes into the shortest hole that is long enough; if there is none, segments are written from the front like those of a log:
 *
 *	segment   | ref data | ref data | hole ... | ref data |   not written   | no memory yet |
 *	                                                      ^ fill            ^ npages         ^ ZSEG_SIZE
 *
 *	        zpool_put: no room            no room, the fullest one
 *	(hole) -------------------> OPEN <=4 ------------------------> CLOSED, listed by how much of it is dead
 *	  ^                          |  ^                                 |
 *	  |                          |  +--- clean: the rest slid down ---+--- clean: all moved into open ones, or
 *	  |  zpool_shrink, or        v                                    v    the last one freed
 *	  +--- there is one ------- SPARE (at most one, with its memory) <+
 *
 * *Cleaning* takes the CLOSED segment with the most that is dead, moves into holes of others and into the open ones what they have room for, slides
 * the rest down to its front, and goes on filling it.  So it never needs memory and never fails, which matters since it is memory that is short.
 * It is done by whoever puts or frees, one segment at a time, when more than 1 / ZPOOL_DEAD of the pool is dead: when it becomes smaller, or if what comes does not
 * fit where something went.
 *
 * Alternatives: a log, in which holes are only ever cleaned.  Of a full pool whose pages come and go at random, three to six entries were moved for each
 * that came, and 17 % of the pool was waste where pages compress alike, for which holes need nothing.
 * Size classes (zsmalloc) have a rest in every class, some 40 half-filled zspages, which is much of a small pool; waste by rounding up; and can not use
 * memory of one class for another without the same moving.
 *
 * Cost: 24 bytes an entry (16, and the owner), 4 in the segment, and rounding up to 8; 16 bytes a segment.  The table of entries
 * does not shrink.
 *
 * Memory comes and goes by the page, by the arena's ops, and is charged to its budget first.  Metadata is the arena's.  What the pool has is
 * not part of arena_bytes().
 *
 * A pool may outlive its process: then its segments are in a file (zpool_init_at()), and the next process has them as they are, nothing copied.  It builds
 * its own entries out of the table that was, which it only reads (zpool_claim()); where an entry's bytes are is one store, after they are
 * there, and of bytes that are moved onto themselves there is a note (struct zslide).  An entry says which codec wrote it, since the next process may have another.
 *
 * An entry is its owner's: who put it (and whoever has the right to from him, as by the anon's BUSY) is the only one to get it or to free it.  Write-back
 * finds entries of others: zpool_oldest().
 *
 * Locks: grow_lock > lock > the arena's.  Both are innermost to everybody else.  `lock` is never held while memory is committed or given back (but for a
 * page of the segments' bitmap, once in a GiB), nor while anything is compressed or decompressed: bytes are copied out under it first, for cleaning
 * moves them.  Longest hold: one segment cleaned, some 10 us.
 *
 * Keys: (c) constant once made, (lock), (g) grow_lock, (gl) written under both, read under either.
 */
#ifndef UP_ZPOOL_H
#define UP_ZPOOL_H

#include <pthread.h>

#include "base/base.h"
#include "base/fitmap.h"
#include "swap/codec.h"
#include "vm/zone.h"

/* Number of an entry; fits in anon->loc, as slots do. */
typedef uint32_t zref_t;
#define ZREF_NONE UINT32_MAX
#define ZENTRY_BYTES 24

#define ZSEG_SIZE \
	((size_t)64 << 10) /* longer ones waste less at the end, and take longer to clean */
#define ZSEG_PAGES (ZSEG_SIZE / PAGE_SIZE)
#define ZPOOL_OPEN 4 /* what does not fit at the end of one may fit in another */
/* Clean when more than 1/24 is dead.  What churns fills its own holes: then hardly anything is moved, and less would be no dearer. */
#define ZPOOL_DEAD 24
#define ZPOOL_UNIT 8u /* what is stored begins and ends at multiples of this */
/* Lists of holes: of each length that an entry can have, and of all longer ones. */
#define ZPOOL_HOLES ((CODEC_MAX + 4 + ZPOOL_UNIT - 1) / ZPOOL_UNIT + 2)
#define ZPOOL_STEP 4u /* pages that a segment is extended by, if there is room for as many */
#define ZPOOL_LISTS 17

struct zentry;
struct zseg;

/*
 * An entry that is moved to where it overlaps itself, from before the first byte is until it says where it is now: for whoever finds the pool after a crash in
 * between, when it is whole nowhere else.
 */
struct zslide {
	zref_t ref; /* ZREF_NONE: there is none */
	uint64_t obj[CODEC_MAX / 8 + 1];
};

struct zpool {
	struct arena *arena;  /* (c) of metadata; its ops and its budget are the pool's too */
	char *base;	      /* (c) segment i is at base + i * ZSEG_SIZE; reserved */
	bool lent;	      /* (c) by the caller of zpool_init_at() */
	struct zslide *slide; /* (lock) NULL: nobody is going to look */
	size_t max;	      /* (c) bytes reserved */
	size_t max_entries; /* (lock) as many as there may be; reserved for as many as there may ever be */
	pthread_mutex_t grow_lock;
	pthread_mutex_t lock;

	struct wired_array entries; /* (g) to grow; struct zentry, each (lock) */
	struct wired_array segs;    /* (g) to grow; struct zseg, each (lock) */
	struct fitmap
		map; /* (lock) segments: lowest first, so that what is in use stays together */

	zref_t free;	   /* (lock) entries without a page, by ->next */
	uint32_t nentries; /* (gl) that have been in the list once */
	zref_t oldest;	   /* (lock) entries with bytes, in order of arrival */
	zref_t young;	   /* (lock) the first that is not of the oldest quarter */
	zref_t youngest;   /* (lock) */
	uint32_t nqueue;   /* (lock) entries in that order */
	uint32_t nold;	   /* (lock) of those, before `young` */

	uint32_t open[ZPOOL_OPEN];  /* (lock) segments, from the front; SEG_NONE */
	uint32_t list[ZPOOL_LISTS]; /* (lock) CLOSED, by a 16th of a segment that is dead */
	uint64_t hole[ZPOOL_HOLES]; /* (lock) the first of each length, what was freed last first */
	uint64_t holes[(ZPOOL_HOLES + 63) / 64]; /* (lock) lists that are not empty */
	uint32_t spare;				 /* (lock) */
	uint32_t gone;	  /* (lock) segments whose memory is to be given back */
	uint32_t growing; /* (lock) the one that is being extended: stays OPEN, or nowhere */
	size_t limit;	  /* (lock) bytes */
	atomic_size_t
		pool; /* (lock) to change; bytes: pages that segments have, or that are on their way in or out */
	size_t live;		 /* (lock) of those, bytes of entries, rounding and refs included */
	size_t dead;		 /* (lock) of those, bytes that only cleaning brings back */
	struct zpool_counters {	 /* (lock) */
		uint64_t stored; /* entries ever put: bytes */
		uint64_t same;	 /* and those that are one word */
		uint64_t rejected; /* pages that did not compress */
		uint64_t refused;  /* -ENOSPC */
		uint64_t hits;	   /* zpool_get() of either kind, but by write-back */
		uint64_t hits_old; /* of those, entries of the oldest quarter */
		uint64_t moved;	   /* entries, by cleaning */
		uint64_t offered;  /* to a claim of zpool_oldest() */
		uint64_t claimed;  /* of those */
	} count;
	size_t bytes;	 /* (lock) compressed bytes in it, nothing included */
	uint32_t nsame;	 /* (lock) entries of one word now */
	size_t pool_max; /* (lock) the most that `pool` ever was */
};

/*
 * An empty pool with a limit of max_bytes, in address space of that size, and at most max_entries (no more than 2^32 - 1; address space, 24 bytes
 * each).  0, -ENOMEM, or what pthread_mutex_init() said.
 */
int zpool_init(struct zpool *zp, struct arena *arena, size_t max_bytes, size_t max_entries);
/*
 * The same at `base`, max_bytes rounded up to whole segments, which stays the caller's; NULL: as above.  slide: where a successor finds what was on its way.
 */
int zpool_init_at(struct zpool *zp, struct arena *arena, void *base, struct zslide *slide,
		  size_t max_bytes, size_t max_entries);
/* What is in it is forgotten, all memory given back.  Nobody uses it any more. */
void zpool_fini(struct zpool *zp);

/*
 * Put a page into the pool.  Any thread.  `page` may be anything that can be read and does not fault.
 *
 * => 0 and *ref.  The caller does not let anybody else claim what `owner` names before he has noted *ref (see zpool_oldest()).
 * => -E2BIG: it does not compress, counted as rejected.  -ENOSPC: at the limit, the budget has no room for a page or two, or all entries are taken.
 */
int zpool_store(struct zpool *zp, struct codec_state *st, const void *page, uint64_t owner,
		zref_t *ref);
/* The parts of it.  `data` is 1..CODEC_MAX bytes of wired memory, of that codec; st->buf will do.  0 or -ENOSPC. */
int zpool_put(struct zpool *zp, enum up_compression codec, const void *data, size_t len,
	      uint64_t owner, zref_t *ref);
int zpool_put_same(struct zpool *zp, uint64_t word, uint64_t owner, zref_t *ref);

/* Why an entry is read: what is asked for counts as a hit, what is to be written back does not. */
enum zpool_why { ZPOOL_HIT, ZPOOL_WRITE_BACK };
/* The page, decompressed; the entry stays.  0, or -EBADMSG: it is not what was put, and the content of `page` is anything. */
int zpool_get(struct zpool *zp, struct codec_state *st, zref_t ref, void *page, enum zpool_why why);
void zpool_free(struct zpool *zp, zref_t ref);
/* It is read soon. */
void zpool_soon(const struct zpool *zp, zref_t ref);
/* Whose it is; the caller knows that it exists. */
uint64_t zpool_owner(struct zpool *zp, zref_t ref);

/*
 * What is to be written back: offer entries to claim(), oldest first, until it has said true `want` times or has seen `look`.  Entries of one word are never offered, since they
 * take no room.  Each that was offered becomes the youngest, so that two threads do not get the same ones, and what can not be had now does not stand in the way.
 *
 * claim() runs with `lock` held, when the entry exists for certain.  If what `owner` names can not go before its entry is freed (zpool_free() first, then
 * the anon), it may be touched there; but claim() takes no lock and does not wait: anon_trybusy() is what it is for.  Who has claimed an entry has it for himself, for BUSY keeps
 * everybody else from freeing it: zpool_get(), write, zpool_free().  If the write fails the entry stays where it is.
 *
 * => How many were claimed.
 */
typedef bool zpool_claim_fn(void *ctx, zref_t ref, uint64_t owner);
size_t zpool_oldest(struct zpool *zp, size_t want, size_t look, zpool_claim_fn *claim, void *ctx);

/* From now on this is the limit, at most what was reserved.  What is above it stays: the caller writes back, see zpool_excess(), and shrinks. */
void zpool_set_limit(struct zpool *zp, size_t bytes);
/* From now on there are at most so many entries, and no more than were reserved; or as many as there have been at a time.  Returns which. */
size_t zpool_set_entries(struct zpool *zp, size_t n);
/* By how much what is live, with the share of dead that is tolerated, is above `bytes`: so much has to be written back for a pool of that size. */
size_t zpool_excess(struct zpool *zp, size_t bytes);
/*
 * Give back memory, up to about `want` bytes: what is free, then what cleaning makes free.  => Bytes given back; 0: it is as small as its entries are.
 * May take a while; holds grow_lock.
 */
size_t zpool_shrink(struct zpool *zp, size_t want);

/* Bytes that are charged for it. */
size_t zpool_bytes(struct zpool *zp);

struct zpool_stats {
	size_t entries;	 /* of either kind */
	size_t same;	 /* of one word */
	size_t bytes;	 /* of compressed data */
	size_t pool;	 /* what is charged for them */
	size_t pool_max; /* the most it ever was */
	size_t dead;	 /* of `pool`: holes */
	size_t limit;
	size_t metadata; /* part of arena_bytes() */
	struct zpool_counters count;
};
void zpool_stats(struct zpool *zp, struct zpool_stats *st);

/*
 * --- what a pool had whose process is no more, and whose segments are this one's ---
 *
 *	zpool_recall(), each segment;  zpool_claim(), each entry that is somebody's;  zpool_settle()
 *
 * Until then nobody else uses the pool.  As long as zpool_settle() has not been called, all that was claimed is also there for another process that reads the same
 * table then.
 */
struct zpool_past {
	const void *entries; /* the table, and how many it had */
	size_t n;
	struct zslide slide; /* as it was */
	uint64_t *units;     /* a bit for each unit of the pool: claimed; zero at first */
};

size_t zpool_past_units(const struct zpool *zp); /* bytes of that */
/* How many entries were in use; zstd: some of them by zstd. */
size_t zpool_past_used(const struct zpool_past *past, bool *zstd);
/* The entry that was `owner`'s then: this one; `search`: or any other, looked for one by one.  ZREF_NONE: none. */
zref_t zpool_past_find(const struct zpool_past *past, zref_t likely, uint64_t owner, bool search);
/* Segment i has so many pages, from its front on, which are memory already.  0, -EINVAL, or -ENOSPC: they can't be charged. */
int zpool_recall(struct zpool *zp, size_t i, unsigned npages);
/* An entry then is one now.  0; -EINVAL: it can not be one, or what it says to be its bytes is another's; -ENOSPC. */
int zpool_claim(struct zpool *zp, struct zpool_past *past, zref_t then, uint64_t owner,
		zref_t *ref);
/* What nobody has claimed is free. */
void zpool_settle(struct zpool *zp, const struct zpool_past *past);

/* Assert all of the above.  Nobody puts, frees or shrinks meanwhile. */
void zpool_check(struct zpool *zp);

#endif
