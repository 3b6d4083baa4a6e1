/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vnode.h (private): sources that are files and block devices.
 */
#ifndef UP_VNODE_H
#define UP_VNODE_H

#include <stdbool.h>
#include <stdint.h>

struct source;

/*
 * A regular file from `offset` on; size 0: to its end.  A device, or a file by direct I/O, all of it, or as if it were
 * `size` bytes long.  The descriptor is duplicated.  *readonly: it is not open for writing.  direct: what the page cache does not have may go past it.
 * 0, -EINVAL (not of that kind, not open for reading, empty), or what the system said.
 */
int vnode_file(int fd, uint64_t offset, uint64_t size, bool direct, bool *readonly,
	       struct source **src);
int vnode_device(int fd, uint64_t size, bool *readonly, struct source **src);

#endif
