/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * adoption.h (private to adopt*.c): one pager's things, while another takes them over.
 *
 *	adopt.c		the order of it all, and the switch
 *	adopt_past.c	what is read of the old store
 *	adopt_object.c	accounts, objects, their files
 *	adopt_page.c	where the bytes of each page are (adopt.h has the table)
 *	adopt_space.c	clients, and what they have mapped
 *
 * `then` are addresses of the process that was; they are looked up in a mapping of its store (past_at()), and never believed: a
 * pointer that leads out of it is no pointer.
 */
#ifndef UP_ADOPTION_H
#define UP_ADOPTION_H

#include "adopt.h"
#include "client.h"

/* From an address then to whatever it is now. */
struct table {
	struct {
		uint64_t then;
		void *now;
	} * slot;
	size_t n, room; /* a power of two; at most half full */
};

/* A page of the predecessor, by its anon. */
struct known {
	const struct page *page; /* in the old store */
	struct known *next;	 /* of the same anon */
	pageno_t no;
};

/* An object that there is again. */
struct heir {
	struct heir *next;
	struct object *o; /* one reference */
	const struct object *was;
	uint64_t pool_then; /* 0: none */
	uint8_t *there;	    /* a bit a page: it is in the pool's file, and nobody's yet */
	bool handle;	    /* the reference is one of the program's */
	bool unsound; /* what it says can not be: who sees it is not served again, and everybody else is */
};

/* A space that is there again. */
struct returned {
	struct returned *next;
	struct space *sp;
	const struct space *was;
	int uffd;
	int removed; /* of a guest: its removals; -1 */
	bool guest;
	bool failed; /* it is to end */
};

struct adoption {
	struct up_runtime *rt;
	const struct adopt_from *from;
	const struct store_root *root;
	const char *base; /* the old store, */
	int fd;		  /* and its descriptor */
	struct table objects, anons, accounts, pages;
	struct known *known;
	size_t nknown;
	struct heir *heirs, **last; /* what is mapped comes before what is beneath it */
	struct returned *spaces;
	uint8_t *frames; /* a bit a frame: it has content then */
	uint64_t max_object, max_serial;
	unsigned shard;		 /* of the space whose entries are being made */
	struct zpool_past zpool; /* no units: there is none */
	size_t resident, staged, compressed, swapped, lost, dropped;
};

static inline bool
has_bit(const uint8_t *map, size_t i)
{
	return (map[i / 8] >> i % 8 & 1) != 0;
}

static inline void
set_bit(uint8_t *map, size_t i, bool to)
{
	const uint8_t mask = (uint8_t)(1u << i % 8);

	map[i / 8] = (uint8_t)(to ? map[i / 8] | mask : map[i / 8] & ~mask);
}

/* What was at an address; NULL: it is none, or not aligned. */
static inline const void *
past_at(const struct adoption *a, uint64_t then, size_t size)
{
	if (then < a->root->base || then % 8 != 0 || size > a->root->len ||
	    then - a->root->base > a->root->len - size)
		return NULL;
	return a->base + (then - a->root->base);
}

static inline uint64_t
then_of(const void *p)
{
	return (uint64_t)(uintptr_t)p;
}

/* --- adopt_past.c: what the predecessor's memory says --- */

/* The root of a store.  0; -EINVAL: it is none; -EPROTO: another version's. */
int past_look(int store, struct store_root *root);
/* All pages that are somebody's, by their anons. */
int past_pages(struct adoption *a);
/* Which frames have content. */
int past_frames(struct adoption *a);
/* The pool's memory is this one's already, as it is; what its table says is read with the anons. */
int past_zpool(struct adoption *a);
/* Call fn for each item of a zone of the predecessor. */
int past_each(struct adoption *a, const struct zone *like, uint64_t zone_then,
	      int (*fn)(struct adoption *a, const void *item));
/* NULL: there is none.  0 or -ENOMEM. */
void *table_get(const struct table *t, uint64_t then);
int table_put(struct table *t, uint64_t then, void *now);

/* --- adopt_object.c: accounts and objects --- */

/* The account of one then; NULL: it had none.  A reference of the table's. */
int adopt_account(struct adoption *a, uint64_t then, struct account **now);
/* => map.change is not held */
int adopt_object(struct adoption *a, uint64_t then, struct object **out, unsigned depth);
/* Its tree and what is beneath it, as they were to become if that was under way. */
void adopt_shape(const struct adoption *a, const struct object *was, uint64_t then, uint64_t *root,
		 uint64_t *backing, uint64_t *offset);
uint64_t adopt_then_of(const struct adoption *a, const struct object *was);
int adopt_take(const struct adoption *a, const char *kind, uint64_t id, const char *part);

/* --- adopt_page.c: where each page's bytes are --- */

/* All pages of an object, from the root of its tree.  0 or a negative errno. */
int adopt_pages(struct adoption *a, struct heir *h, uint64_t then, unsigned level, uint64_t base);

/* --- adopt_space.c: clients, and what they have mapped --- */

/* All but to run there: 0 or a negative errno; one that can not be is noted as failed. */
int adopt_space(struct adoption *a, const void *item);
/* So it can not be served again; r: why.  Before the switch. */
void adopt_failed(struct adoption *a, struct returned *re, int r);
/* What a client's object has its pages from, and who owns its name. */
int adopt_file(struct adoption *a, const void *item);
int adopt_owner(struct adoption *a, const void *item);
/* Records of files that nobody has any more. */
void adopt_forget_files(struct adoption *a);
/* All pages are where they are: those that were wired are again. */
void adopt_wired(struct adoption *a);

#endif
