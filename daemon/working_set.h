/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * working_set.h (private): which pages of a snapshot a machine touches in its first seconds, kept beside the snapshot.
 *
 *	MEMFILE.ws	header | runs, in the order of the file
 *
 * The record is a hint: one that is torn, of another version, or of a file that has changed since is as good as none.  So it is
 * written without fsync, to a file of another name that then takes the place of the old one.
 */
#ifndef UP_DAEMON_WORKING_SET_H
#define UP_DAEMON_WORKING_SET_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define WORKING_SET_PAGE 4096u
#define WORKING_SET_RUNS_MAX ((size_t)1 << 20) /* of a record: 16 MiB */

/* Pages of the file. */
struct working_set_run {
	uint64_t first, n;
};

struct working_set {
	struct working_set_run *run; /* in order, with a gap between each two */
	size_t n;
	uint64_t pages;
};

/* What a record is about: the file as it was. */
struct file_identity {
	uint64_t size, inode;
	int64_t mtime_s, mtime_ns;
};

/*
 * 0; -ENOENT there is none; -ESTALE it is about another file, or this one as it was before; -EBADMSG it is broken; -ENOTSUP it is of
 * another version; another negative errno: it can not be read.  Not 0: the set is empty.
 */
int working_set_load(const char *path, const struct file_identity *id, struct working_set *ws);

/* Atomically.  0 or a negative errno, and what was there is still there. */
int working_set_save(const char *path, const struct file_identity *id,
		     const struct working_set *ws);

/* The pages whose bit is set, and those of `also` if it is not NULL.  0; -ENOMEM; -E2BIG: too many runs. */
int working_set_make(struct working_set *ws, const _Atomic uint64_t *bits, uint64_t npages,
		     const struct working_set *also);

/* Of one that is empty, too. */
void working_set_free(struct working_set *ws);

#endif
