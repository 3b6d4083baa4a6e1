/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * filesystem.h (private): who answers for the file system of a descriptor, without asking it: fstat() and statfs() of a FUSE file wait for as long as its
 * process likes.
 */
#ifndef UP_FILESYSTEM_H
#define UP_FILESYSTEM_H

#include <sys/types.h>

/*
 * 0: the kernel does, as far as can be seen (an overlay's layers can not).  -ENOTSUP: a process does (FUSE).  -EXDEV: it is mounted neither here nor where the process
 * `pid` is, so that nobody knows; or another -errno.  What is no file of a file system (a socket, a userfaultfd), and memory (tmpfs, memfd), is the kernel's anywhere.
 * Any thread; allocates nothing.
 */
int filesystem_answers(int fd, pid_t pid);
/* To close such a file asks its process, too (FUSE_FLUSH).  A thread of its own does: the descriptor is not the caller's any more. */
void filesystem_close(int fd);

#endif
