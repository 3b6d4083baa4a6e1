/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * store.h (private): memory of a pager that outlives its process.
 *
 *	a window of addresses, all of it one file in memory (memfd)
 *	| struct store_root | arena | wired arrays ...                |
 *
 * Everything that a runtime knows lies in there: its arena (vm/zone.h) is committed out of this file instead of private memory.  Whoever holds
 * the descriptor when the process is killed has all of it, as of the instant in which the last thread stopped; adopt.h reads it.  The
 * other parts of a pager that have to outlive it are files anyway: staging (pmap.h) and pools, which have what is in
 * memory, and the swap area.  What is compressed (zpool.h) is in a file of its own, so that a successor goes on with it where it is: copied
 * from one store to the next it would be there twice for a while, and it may be most of the budget.
 *
 * Nothing is written to a disk: programs whose memory this is do not outlive the machine either.
 */
#ifndef UP_STORE_H
#define UP_STORE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/base.h"
#include "pager/tier.h"
#include "vm/object.h"
#include "vm/zone.h"

/* Of what is in there.  To be raised with any change to a struct that adopt.c reads. */
#define STORE_MAGIC "uffdpgr"
#define STORE_VERSION 7u

/*
 * At the front, for the successor: where things are.  Addresses are those of the process that wrote them.  All constant before the
 * first client is served, but limit, wanted, relink and slide.
 */
struct store_root {
	char magic[8];
	uint32_t version;
	uint32_t sizes; /* a sum of the sizes of all structs that are read */
	uint64_t base;	/* address of the window, */
	uint64_t len;	/* and its length */
	uint64_t hash_seed;
	uint64_t pages;	 /* struct pages.table: address of the first page */
	uint64_t npages; /* at most */
	uint64_t nstage; /* frames */
	uint64_t limit;	 /* up_runtime_set_limit() changes it, */
	uint64_t
		wanted; /* and what it is to be, which is less while memory of a successor is more than that */
	uint64_t own; /* what the runtime keeps for itself, whoever its clients are */
	/* which zone a slab belongs to, by the address of the zone */
	uint64_t space_zone, owner_zone, file_zone;
	uint64_t arena, arena_len; /* where slabs are */
	/* of the compressed pool: address of its table, and how many entries it may come to have; 0: there is no pool */
	uint64_t entries, nentries;
	struct relink relink;
	struct zslide slide;
	bool complete; /* all of the above is there */
};

/* What becomes of descriptors that a successor needs.  Any thread; neither may fail silently: they log. */
struct store_keeper {
	void *ctx;
	/* A duplicate of fd is kept under this name, instead of what was before. */
	void (*keep)(void *ctx, const char *name, int fd);
	void (*drop)(void *ctx, const char *name);
};

/* One per process. */
struct store {
	int fd;
	char *base;
	size_t len;
	const struct store_keeper *keeper; /* (c) */
	int pidfd; /* (c) of the process that keeps them: as long as it runs there may be a successor */
	int stage;   /* (c) staging's file */
	int zpool;   /* (c) the compressed pool's, */
	char *zbase; /* and where it is here; NULL: there is none */
	size_t zlen;
	struct tier_place zplace;
	struct store_root *root;
	pthread_mutex_t lock;
	size_t next; /* (lock) nothing beyond has been reserved yet */
	/* (lock) ranges of 2^i slabs that have been given back */
	struct {
		uint32_t *slab;
		size_t n, room;
	} free[32];
};

#define STORE_NAME_MAX 64u

/* 0 or -errno.  What keeper points to has to outlive it, and stays the caller's, as does pidfd. */
int store_create(struct store **out, size_t memory_limit, const struct store_keeper *keeper,
		 int pidfd);
/* With the runtime gone. */
void store_destroy(struct store *s);

/* arena_ops of it: .reserve and so on.  ctx: a struct pager, whose store it is. */
extern const struct arena_ops store_ops;

/* A part of the compressed pool is memory of the predecessor's, as it is.  0 or -errno. */
int store_zpool_has(void *addr, size_t len);

/* What is known once the runtime is there.  From here on a successor can make use of it. */
struct up_runtime;
void store_complete(struct store *s, const struct up_runtime *rt, size_t wanted);
size_t store_own(const struct up_runtime *rt);
/* The sum of sizes. */
uint32_t store_sizes(void);

/* Of one numbered thing: "object/7", "space/3/uffd" (part "uffd", or NULL). */
void store_name(char name[STORE_NAME_MAX], const char *kind, uint64_t id, const char *part);
void keeper_keep(const struct store_keeper *k, const char *kind, uint64_t id, const char *part,
		 int fd);
void keeper_drop(const struct store_keeper *k, const char *kind, uint64_t id, const char *part);
/* The same by the one of a store, which may be NULL. */
void store_keep(const struct store *s, const char *kind, uint64_t id, const char *part, int fd);
void store_drop(const struct store *s, const char *kind, uint64_t id, const char *part);

#endif
