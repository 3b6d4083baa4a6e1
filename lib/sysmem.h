/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * sysmem.h (private): the system's memory behind an arena.
 */
#ifndef UP_SYSMEM_H
#define UP_SYSMEM_H

#include "vm/zone.h"

/*
 * Private anonymous memory: resident and, where RLIMIT_MEMLOCK allows it, locked from commit to
 * decommit; never huge pages; absent in a forked child.  ctx is not used; reclaim is NULL, so
 * a runtime that can page out copies this table and fills it in.
 */
extern const struct arena_ops sysmem_ops;

/*
 * The memory that this process can have, bytes: the machine's, or the smallest limit of its memory
 * cgroup (v1 or v2) and those above it.  *in_cgroup says which.
 */
size_t sysmem_total(bool *in_cgroup);

#endif
