/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * guest.h (private): programs that do not know of us, whose memory we can take back all the same, for a daemon.
 *
 *	virtual machine monitor				us
 *	memfd, mapped MAP_SHARED			the memfd is the pool, the mapping a place of it, in a space (pmap.h)
 *	userfaultfd, registered --- some protocol --->	guest_attach(): a client (serve.h) that never says anything
 *	touches what is not there			a service, as for any client
 *	is gone --- the caller knows ---------------->	serve_end()
 *
 * What is in the memfd when it comes is the guest's, and is taken over page by page: charged to the budget, which frames give for it if there is no other room,
 * and pageout's from then on.  What is not there comes from a source, or is zeros.
 *
 * If the pager has a store (adopt.h) a guest outlives it: its userfaultfd, its memfds, its source and what it has removed are kept, and the next pager serves it under the same id.  Who has
 * attached it hears of that, as of all clients that are there again, and makes of it what he had.
 *
 * A guest is a client in all else: serve_info(), serve_quota(), serve_evict(), serve_ranges(), serve_look(), serve_end(), and ended() when it is gone.
 *
 * What is asked of it: nobody writes to the memfd but through the ranges given here (another mapping, write(), a device that has pages pinned: what is written so while a page
 * is taken out is lost), and nobody punches it without a word: what has been taken out then comes back.  madvise(MADV_REMOVE) is told if its userfaultfd has
 * UFFD_FEATURE_EVENT_REMOVE.
 */
#ifndef UP_GUEST_H
#define UP_GUEST_H

#include "serve.h"

/* A range of the guest's addresses; all multiples of the page size. */
struct guest_region {
	uintptr_t start;
	size_t length;
	int memfd;	 /* the caller's */
	uint64_t offset; /* of the range in it, bytes */
	int source; /* a file, the caller's: what is not in the memfd is read there; -1: zeros */
	uint64_t source_offset; /* bytes */
};

struct guest_config {
	struct serve_limits limits;
	pid_t pid;
	uid_t uid;
	gid_t gid;
	const char *name; /* for people; copied */
	int uffd;	  /* of all ranges: the runtime's from the call on, also on failure */
	uint32_t tag;	  /* the caller's; what a successor of this process finds in serve_info */
};

/*
 * From serve_start() on.  0: it is served; what is in its memfds already is taken over in the background.  Otherwise nothing has changed: -EOPNOTSUPP its writes
 * can not be stopped (WP_ASYNC), -EPERM no userfaultfd, or one that tells of forks, unmaps or moves; -EINVAL a range, or a file that is no shared memory in pages of
 * 4 KiB; -ESTALE another pager has had the memfd, and what it has taken out is nowhere; -EEXIST ranges overlap; -EDQUOT, -EAGAIN limits; -ENOMEM, -ENOSPC no room for
 * metadata, or in swap.  Any thread; it may wait for calls of others.
 */
int guest_attach(struct up_runtime *rt, const struct guest_config *cfg,
		 const struct guest_region region[], size_t n, uint64_t *id);
/* One more range of a guest that is there.  As guest_attach; -ENOENT: it has gone. */
int guest_add(struct up_runtime *rt, uint64_t id, const struct guest_region *region);
/*
 * The guest is to go on without us: what is not in its memfds is SIGBUS for good.  ended() follows.  -ENOENT.
 */
int guest_leave(struct up_runtime *rt, uint64_t id);
/* Pages that have not been taken over yet, about.  -ENOENT. */
int64_t guest_left(struct up_runtime *rt, uint64_t id);
/* A duplicate of its userfaultfd, the caller's; -ENOENT, -EMFILE. */
int guest_uffd(struct up_runtime *rt, uint64_t id);
/* Its ranges, at most n: how many there are, or -ENOENT.  memfd and source are not told (-1). */
int64_t guest_regions(struct up_runtime *rt, uint64_t id, struct guest_region region[], size_t n);

#endif
