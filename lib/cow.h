/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * cow.h (private): objects that part from each other, for cow.c and space.c.
 *
 * In this order, with map.change held: part_prepare() each; parts_freeze(); parts_take(); chain_thaw(); parts_done().
 * Until parts_take() part_abandon() makes everything as it was.
 */
#ifndef UP_COW_H
#define UP_COW_H

#include "runtime.h"

/* One object to part, and its copy. */
struct part {
	struct object *from; /* NULL: there is nothing to do; `copy` is to be mapped as it is */
	uint64_t first, n;   /* what is copied */
	struct object *copy;
	struct object
		*under; /* ready to take what `from` has, once for each of these; NULL once used */
	struct map_entry *entry; /* of the copy; NULL if it is not mapped */
};

/* Everything that may fail but for pages that can not be moved.  0, or -errno and a log line. */
int part_prepare(struct up_runtime *rt, const char *call, struct part *part);
void part_abandon(struct pager *p, struct part *part);
/*
 * Stop everybody, and take out what is in regions.  0: frozen.  -EBUSY, -ENOMEM and a log line: not.
 */
int parts_freeze(struct pager *p, const char *call, const struct part part[], size_t n);
/* Part, and put the entries into `map`.  => frozen, map.lock held for writing */
void parts_take(struct part part[], size_t n, struct map *map);
/* => thawed */
void parts_done(struct part part[], size_t n);
/* Room for n of them: wired, as they are used while nobody can touch paged memory.  NULL: no memory. */
struct part *parts_alloc(struct pager *p, struct wired_array *mem, size_t n);

#endif
