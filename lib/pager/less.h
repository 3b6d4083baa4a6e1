/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * less.h (private): a source, less the pages that were removed: those are zeros.
 */
#ifndef UP_LESS_H
#define UP_LESS_H

#include "pager/source.h"

/* A file for what is removed of so many bytes, in which nothing is yet.  Its descriptor or -errno. */
int less_file(uint64_t bytes);
/*
 * The reference to `of` is the new source's from here on, also on failure.  fd: where it is noted what is removed, the caller's; -1: nowhere that outlives
 * this process.  0, -ENOMEM, or -EINVAL: it is not of less_file() for as many bytes.
 */
int less_source(struct source *of, int fd, struct source **out);
/* From here on n pages from `first` on are zeros.  Any thread. */
void less_remove(struct source *src, uint64_t first, uint64_t n);

#endif
