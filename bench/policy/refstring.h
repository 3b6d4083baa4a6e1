/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * refstring.h: reference strings: which pages a program touches, in order.
 *
 * Made up, each from one law and a seed, or read from a file.  The same seed gives the same string.
 */
#ifndef REFSTRING_H
#define REFSTRING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct refstring {
	uint32_t *page; /* page[0 .. n), each below npages */
	size_t n;
	uint32_t npages;
};

struct refstring_config {
	uint32_t pages;	 /* that the program has */
	uint32_t memory; /* pages that fit: loops and working sets are made to its measure */
	size_t n;
	uint64_t seed;
};

/* The laws, by number; NULL past the last. */
const char *refstring_name(unsigned law);
const char *refstring_what(unsigned law);
/* False if there is no memory. */
bool refstring_make(struct refstring *r, unsigned law, const struct refstring_config *cfg);

/*
 * From a file: one page number a line, decimal, 0x or 0; empty lines and what follows a # do not count.
 * Numbers may be any: they are counted through.  False, and a line on standard error, if it can't be read.
 */
bool refstring_read(struct refstring *r, const char *path);

void refstring_free(struct refstring *r);

#endif
