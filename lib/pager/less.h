/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * less.h (private): a source, less the pages that were removed: those are zeros.
 */
#ifndef UP_LESS_H
#define UP_LESS_H

#include "pager/source.h"

/* The reference to `of` is the new source's from here on, also on failure.  0 or -ENOMEM. */
int less_source(struct source *of, struct source **out);
/* From here on n pages from `first` on are zeros.  Any thread. */
void less_remove(struct source *src, uint64_t first, uint64_t n);

#endif
