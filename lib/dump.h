/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * dump.h (private): lines of up_map_dump(), one after the other.
 */
#ifndef UP_DUMP_H
#define UP_DUMP_H

#include "runtime.h"

enum dump_what { DUMP_RANGE, DUMP_BENEATH, DUMP_CHILD };

/*
 * One line, and where the dump is: at a range by its address, at what lies beneath that by how deep it is, at a child by
 * its id.  None of them need be there any more when the next line is asked for.
 */
struct dump_line {
	enum dump_what what;
	uint64_t space;	 /* 0: ours; else the id of a child's */
	int pid;	 /* of that; 0: not known yet */
	uint64_t serial; /* of the mapping */
	unsigned depth;	 /* 0: the range's own object */
	uintptr_t start, end;
	uint64_t offset;
	int prot;
	bool shared;
	unsigned wired;
	enum up_inherit inherit;
	struct up_object_stats object;
	char name[UP_OBJECT_NAME_MAX + 2]; /* " name", or "" */
};

/*
 * The line after `line`, in place; false: there is none.  A new one is zeroed.  => map.change is held
 */
bool dump_next(struct pager *p, struct dump_line *line);
void dump_head(FILE *out);
void dump_print(FILE *out, const struct dump_line *line);

#endif
