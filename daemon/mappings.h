/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * mappings.h (private): what another process has mapped, as the kernel says: which file is behind its memory, and whether the process could change that file
 * behind our back.
 */
#ifndef UP_DAEMON_MAPPINGS_H
#define UP_DAEMON_MAPPINGS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* A range of a process, of whole pages. */
struct mapped {
	uint64_t start, len;
	uint64_t offset; /* found: in the file */
	int fd;		 /* found: the file, the caller's */
};

/*
 * The files behind n ranges: 0, and each has its descriptor and offset.  `memfd`: which file it is; -1: it is opened through /proc/PID/map_files, for which
 * CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN is needed, the right to trace the process, and of another user's CAP_DAC_READ_SEARCH.  Otherwise no descriptor is open, and `why` says what is wrong:
 *
 *	-ENOTSUP	it can not be taken back: private memory, not mapped for writing, not all of one file, mapped a second time, locked, or pinned
 *	-EPERM, -EACCES, -ESRCH and the like	the kernel does not tell
 */
int mappings_find(pid_t pid, int memfd, struct mapped m[], unsigned n, char *why, size_t whysize);

#endif
