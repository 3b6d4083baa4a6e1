/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * custom.h (private): sources that the program implements.
 */
#ifndef UP_CUSTOM_H
#define UP_CUSTOM_H

#include "base/base.h"

struct source;

/* `ops` is copied.  0 or -ENOMEM. */
int custom_source(uint64_t size, const struct up_pager_ops *ops, void *ctx, struct source **src);

#endif
