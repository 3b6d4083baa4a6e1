/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * source.h (private): the file that pages of clients come from; one for all clients of the same file.
 *
 * It is mapped, and only the kernel ever reads the mapping, on behalf of UFFDIO_COPY: where the file has been cut short, or a block can
 * not be read, that says EFAULT, and nobody here meets a SIGBUS.  What a page is worth is then told by pread().
 *
 * The kernel shows zeros behind the end of a file up to the end of that page.  So the size is asked before each copy.
 */
#ifndef UP_DAEMON_SOURCE_H
#define UP_DAEMON_SOURCE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/base.h"
#include "working_set.h"

/* Keys: (c) constant, (r) the registry's lock, (a) atomic. */
struct source {
	struct source *next;	 /* (r) */
	unsigned refs;		 /* (r) */
	dev_t dev;		 /* (c) */
	int fd;			 /* (c) */
	char *map;		 /* (c) */
	uint64_t size;		 /* (c) when it was opened */
	struct file_identity id; /* (c) */
	char *path;		 /* (c) by which it was first opened */
	char *ws_path;		 /* (c) of its working set */
	pthread_mutex_t ws_lock; /* who reads, joins and writes the record */
	atomic_bool told;	 /* (a) that it is not what it was */
};

/* Regular, not empty.  A reference is the caller's: 0, or a negative errno, -EINVAL for what is no such file.  Any thread. */
int source_open(struct source **out, const char *path, const struct logger *log);
struct source *source_ref(struct source *s);
void source_unref(struct source *s); /* or NULL */

/* Bytes that there are now, as many as there were at most; 0 if that can't be told. */
uint64_t source_size_now(const struct source *s);

/* All of it into a buffer.  0, -ENODATA behind the end, or the errno of the read. */
int source_read(const struct source *s, uint64_t offset, void *buf, size_t len);

/* So that it is in memory, and mapped: waits for the disk.  Nothing depends on it. */
void source_warm(const struct source *s, uint64_t offset, uint64_t len);

/* It will be wanted: does not wait. */
void source_will_need(const struct source *s, uint64_t offset, uint64_t len);

#endif
