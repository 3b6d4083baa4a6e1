/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * memfile.h (private): the file that pages of clients come from; one for all clients of the same file.
 *
 * It is mapped, and only the kernel ever reads the mapping, on behalf of UFFDIO_COPY: where the file has been cut short, or a block can
 * not be read, that says EFAULT, and nobody here meets a SIGBUS.  What a page is worth is then told by pread().
 *
 * The kernel shows zeros behind the end of a file up to the end of that page.  So the size is asked before each copy.
 */
#ifndef UP_DAEMON_MEMFILE_H
#define UP_DAEMON_MEMFILE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/base.h"
#include "store.h"
#include "working_set.h"

/* Keys: (c) constant, (r) the registry's lock, (a) atomic. */
struct memfile {
	struct memfile *next;		   /* (r) */
	unsigned refs;			   /* (r) */
	dev_t dev;			   /* (c) */
	int fd;				   /* (c) */
	char *map;			   /* (c) */
	uint64_t size;			   /* (c) when it was opened */
	struct file_identity id;	   /* (c) */
	char *path;			   /* (c) by which it was first opened */
	char *ws_path;			   /* (c) of its working set */
	pthread_mutex_t ws_lock;	   /* who reads, joins and writes the record */
	atomic_bool told;		   /* (a) that it is not what it was */
	unsigned known;			   /* (r) memfile_known() */
	uint64_t number;		   /* (c) by which a successor finds it */
	const struct store_keeper *keeper; /* (r) who keeps its descriptor; NULL: nobody */
};

/* Regular, not empty.  A reference is the caller's: 0, or a negative errno, -EINVAL for what is no such file.  Any thread. */
int memfile_open(struct memfile **out, const char *path, const struct logger *log);
struct memfile *memfile_ref(struct memfile *s);

/* It is needed by a successor of this process (store.h): its descriptor is kept as long as there is a reference. */
void memfile_keep(struct memfile *s, const struct store_keeper *keeper);
/*
 * What a predecessor has had under that number, as it is now: it may have been cut short meanwhile.  -ENOENT: it was not kept;
 * otherwise as memfile_open().
 */
int memfile_inherit(struct memfile **out, uint64_t number, const struct store_keeper *keeper,
		    int (*take)(void *ctx, const char *name), void *ctx);
void memfile_unref(struct memfile *s); /* or NULL */

/* Bytes that there are now, as many as there were at most; 0 if that can't be told. */
uint64_t memfile_size_now(const struct memfile *s);

/* All of it into a buffer.  0, -ENODATA behind the end, or the errno of the read. */
int memfile_read(const struct memfile *s, uint64_t offset, void *buf, size_t len);

/* So that it is in memory, and mapped: waits for the disk.  Nothing depends on it. */
void memfile_warm(const struct memfile *s, uint64_t offset, uint64_t len);

/*
 * From here until the same with false, as often, somebody asks for what will be wanted.  The kernel is not to guess, then: around each page that is missing in the mapping
 * it would read as much as the disk's read_ahead_kb says, which may be the whole file.  Any thread.
 */
void memfile_known(struct memfile *s, bool known);

/* It will be wanted: does not wait. */
void memfile_will_need(const struct memfile *s, uint64_t offset, uint64_t len);

#endif
