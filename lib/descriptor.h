/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * descriptor.h (private): what somebody else has sent may make who looks at it wait: fstat(), ioctl(), poll() and close() of a FUSE file ask its process, and the close() of a TCP
 * socket may wait for its peer.  Here it is found out without asking anybody.
 */
#ifndef UP_DESCRIPTOR_H
#define UP_DESCRIPTOR_H

#include <sys/types.h>

/*
 * 0: only the kernel answers for it, as far as can be seen (an overlay's layers can not).  -ENOTSUP: a file of a process (FUSE).  -EXDEV: a file that is mounted neither here nor where the
 * process `pid` is, so that nobody knows.  -EPROTOTYPE: a socket that is not a Unix one.  Or another -errno.  Any thread; allocates nothing.
 */
int descriptor_vet(int fd, pid_t pid);
/* Closed by a thread of its own: the descriptor is not the caller's any more. */
void descriptor_drop(int fd);

#endif
