/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * tier.h (private): the compressed tier, between frames and swap.
 *
 *	            launder: it compresses
 *	INACTIVE --------------------------> ZIP: in the pool, no frame, no slot
 *	  ^   |                               |   |
 *	  |   | it does not, or the pool      |   | the oldest, when the pool is as large as it may be
 *	  |   | is full: as without a tier    |   v
 *	  |   +----------------------------> SWAP <--- write-back: decompressed, checked, written in clusters
 *	  |                                       |
 *	  +------- tier_in(): decompressed, checked; the entry goes ---+
 *
 * A page is in one place at a time: what comes back from the pool has no copy there, and is compressed again if it leaves again.  A page
 * whose slot still has the same bytes leaves for nothing, by way of CLEAN, as without a tier, unless the pool has room for it.
 *
 * What is put into a full pool pushes another page out, which has to be unpacked again for that and written in its place: work for nothing if nobody asks for either. So
 * a full pool takes pages while reads earn it (tier_earned()), and else they go to swap as if there were no tier: while a program fills more memory than there is, say.
 *
 * Memory: entries are charged to the budget page by page (zpool.h).  What the pool may have is decided ten times a second by
 * what its bytes and the frames' have earned (ztune.h).
 *
 * Write-back works on anons, not on pages: an anon that it has claimed is busy and marked ANON_LOOSE, since nobody knows by
 * what address it is waited for.
 */
#ifndef UP_TIER_H
#define UP_TIER_H

#include "swap/zpool.h"
#include "swap/ztune.h"
#include "vm/ghost.h"

struct anon;
struct pager;
struct page;
struct leaf;
struct request;
struct service;

/* Where the pool of a runtime is that may have a successor, and what a predecessor's had. */
struct tier_place {
	void *ctx;
	/* Addresses for a pool of max_bytes, once; *len: or of what is there already, if that is more.  NULL: there are none. */
	void *(*reserve)(void *ctx, size_t max_bytes, size_t *len);
	struct zslide *slide;
	size_t entries; /* not 0: it is the predecessor's */
	bool zstd;	/* some of them by zstd */
};

struct tier {
	enum up_compression kind; /* (c) NONE: there is no tier, and nothing below is valid */
	bool zstd;		  /* (c) what zstd has written is read, whatever kind says */
	bool ends; /* (c) nothing is put into it: what a predecessor has left there, and no more */
	struct zpool pool;
	atomic_size_t nzipped;	/* anons of kind ZIP */
	pthread_mutex_t lock;	/* innermost */
	struct ghost ghost;	/* (lock) anons that went to the disk lately */
	_Atomic uint64_t nlost; /* of those, read again */
	_Atomic uint64_t nback; /* pages written back, ever */
	atomic_bool suffices;	/* nothing has been written for some time */
	atomic_bool short_of;	/* something has, in this interval of tuning */
	atomic_uint
		singles; /* faults in a row that had one page come back and no more; SINGLES_MANY */
	atomic_int credit; /* pages that a full pool may take: tier_earned() */
	struct wired_array ghosts;
	size_t nghosts;			/* (c) */
	const struct tier_place *place; /* (c) NULL: it ends with the process */
	size_t tables; /* (pageout_lock) bytes promised for what it keeps for good */
	size_t wanted; /* (c) of the pool, as configured; 0: as much as seems good */
	/* (pageout_lock) */
	struct ztune tune;
	size_t cap;	/* bytes; less than tune.target after metadata was short, */
	size_t room;	/* and what there is for frames and for it allows */
	uint64_t tuned; /* when, ns */
	struct ztune_counts before;
};

/* Which tier there is to be: as configured, and as what a predecessor has left makes necessary.  place: or NULL.  => before all others */
void tier_choose(struct pager *p, enum up_compression kind, const struct tier_place *place);
/*
 * wanted: bytes; 0: two thirds of the limit, which may come to be `most`.  0 or -ENOMEM; nothing is left then.
 * => p->tier.kind is set, the arena and the budget are there
 */
int tier_init(struct pager *p, size_t wanted, size_t most);
/*
 * The limit is about to be this.  Of what may not be, pageout writes back.  False: what it keeps for good has no room beside what is promised; as before.
 * => pageout_lock is not held
 */
bool tier_resize(struct pager *p, size_t limit);
void tier_fini(struct pager *p);
/*
 * What a thread needs to compress and to write back, with requests write[0 .. n): bytes of the budget for as long as it lives; and to give it that
 * if there is a tier (0 or -ENOMEM), and to take it away.
 */
size_t tier_share(const struct pager *p, unsigned n);
int tier_equip(struct service *s, struct request *write, unsigned n);
void tier_strip(struct service *s);

/* Bytes of the budget that the pool has. */
size_t tier_bytes(struct pager *p);

/*
 * A page that is to leave memory, staged until now, with the hash of its content.  => busy, in TRANSIT, with a frame; its slot, if any, goes
 * => TIER_STORED: it is in the pool, its frame is free, and it is not busy any more.  Else nothing has happened: REFUSED, it does not compress, or the
 *    pool is as large as it may be; LATER, the pool may grow and there was neither room in the budget nor a free frame.
 */
enum tier_verdict { TIER_STORED, TIER_REFUSED, TIER_LATER };
enum tier_verdict tier_store(struct service *s, struct page *pg, uint64_t hash);
/* True while all that leaves memory is compressed, as far as anybody can tell; and to tell. */
bool tier_suffices(const struct pager *p);
void tier_falls_short(struct pager *p);
/* True while pages come back one by one only, and none is in swap; and to tell that somebody wants several. */
bool tier_serves_singles(const struct pager *p);
void tier_serves_run(struct pager *p);
/* True if pages that are clean in swap may as well be kept here, and reads earn it. */
bool tier_has_room(struct pager *p);
/* Write the oldest back if the pool has more than it may.  True if something was begun. */
bool tier_write_back(struct service *s);
void tier_written(struct service *s, struct request *req);
/* Metadata needs so much of what it has: give back what is free, and have the rest written back.  True if some came free.  => pageout_lock */
bool tier_yield(struct pager *p, size_t bytes);
bool tier_may_yield(struct pager *p);
/*
 * The entry that was this anon's goes, after that says where else its page is: whoever finds the pager's memory after a crash (adopt.h) finds it in one of the
 * two.  => busy
 */
void tier_free(struct pager *p, const struct anon *an, zref_t ref);
/* Time to think about how large it should be.  => pageout_lock held */
void tier_tune(struct pager *p);
/* This anon is in swap only, now; this one is read from there, `alone`: it is waited for, and no stream's. */
void tier_left(struct pager *p, const struct anon *an);
void tier_missed(struct pager *p, const struct anon *an, bool alone);
/* A page has come back from the pool by itself, or would have. */
void tier_earned(struct pager *p);

#endif
