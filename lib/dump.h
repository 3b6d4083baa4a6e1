/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * dump.h (private): lines of up_map_dump(), one after the other, and as a daemon tells them to a program.
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
	uint64_t space;	 /* 0: of whoever asks; else the id of a child's */
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
 * The line after `line`, in place; false: there is none.  A new one is zeroed.  of: the client who asks, whose lines are those of its map and its
 * children's; NULL: we do.  No number in `line` is believed.  => map.change is held
 */
bool dump_next(struct pager *p, const struct space *of, struct dump_line *line);
void dump_head(FILE *out);
void dump_print(FILE *out, const struct dump_line *line);

/* A line in a message; its name with a 0 behind it follows, and the next one at a multiple of 8. */
struct dump_record {
	uint64_t space, serial, start, end, offset;
	uint64_t object, size, resident, swapped, lost;
	uint32_t what, depth, prot, shared, wired, inherit;
	uint32_t pid, refs;
	uint32_t pager; /* pager_number() */
	uint32_t name;	/* its bytes, without the 0 */
};
/* How many bytes it took; 0: more than there is room for. */
size_t dump_pack(unsigned char to[], size_t room, const struct dump_line *line);
/* How many bytes it was; 0: that is no line, or none that may come after `line`, which becomes it. */
size_t dump_unpack(const unsigned char from[], size_t n, struct dump_line *line);

#endif
