/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * criu_image.h (private): the images of a checkpoint by CRIU, as far as memory that is restored lazily goes.
 *
 *	IMG/inventory.img	which version of images they are
 *	IMG/pstree.img		the tasks
 *	IMG/pagemap-PID.img	which pages of a task there are; whether they are restored lazily; and whether their content is here
 *	IMG/pages-N.img		  content, one page behind the other, of all that is here
 *	IMG/parent		  or in the images of an earlier checkpoint: a directory of the same shape
 *	IMG/mm-PID.img		its mappings
 *
 * An image is a magic number or two, then messages (criu.proto), each behind its length.  The first half of this file takes bytes, and
 * touches no file: tests/fuzz_criu.c calls it with whatever there is.
 *
 * All can be called by any thread.
 */
#ifndef UP_DAEMON_CRIU_IMAGE_H
#define UP_DAEMON_CRIU_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fill.h"
#include "memfile.h"

#define CRIU_TASKS_MAX FILL_SPACES_MAX
#define CRIU_LAYERS_MAX 64u		      /* directories, the first included */
#define CRIU_IMAGE_MAX ((size_t)64 << 20)     /* bytes of one image that is read as a whole */
#define CRIU_MESSAGE_MAX ((size_t)16 << 20)   /* of one message of it */
#define CRIU_MEMORY_MAX ((size_t)128 << 20)   /* that one message may become */
#define CRIU_ENTRIES_MAX ((size_t)1 << 20)    /* of one pagemap */
#define CRIU_RANGES_MAX (FILL_RANGES_MAX / 2) /* of one task */
#define CRIU_TOTAL_MAX ((size_t)1 << 20)      /* of all tasks */

/* Of an entry of a pagemap. */
#define CRIU_PARENT 1u
#define CRIU_LAZY 2u
#define CRIU_PRESENT 4u

struct criu_entry {
	uint64_t start, len; /* bytes */
	uint64_t offset;     /* in pages-N.img, if it is PRESENT */
	uint32_t flags;
};

struct criu_pagemap {
	uint32_t pages_id;
	struct criu_entry *entry; /* by address, none overlaps another */
	size_t n;
	uint64_t bytes; /* that pages-N.img has at least */
};

struct criu_vma {
	uint64_t start, end;
	bool wiped; /* a child does not have it, or has zeros there */
};

struct criu_vmas {
	struct criu_vma *vma; /* by address */
	size_t n;
};

struct criu_tasks {
	uint32_t *pid;
	size_t n;
};

/* One run of pages that are restored lazily: in the pages of which layer, and where. */
struct criu_run {
	uint64_t start, len, offset;
	unsigned layer; /* 0: of the images themselves, 1: of their parent... */
	bool wiped;
};

struct criu_runs {
	struct criu_run *run; /* by address */
	size_t n, room;
};

/*
 * Each: 0, and what there is is the caller's to free with free(); or -EPROTO it is no such image, -EINVAL it makes no sense, -E2BIG,
 * -ENOTSUP or -ENOMEM, `why` says what is wrong, and there is nothing to free.
 */
int criu_parse_inventory(const void *image, size_t len, char *why, size_t whysize);
int criu_parse_pstree(const void *image, size_t len, struct criu_tasks *t, char *why,
		      size_t whysize);
int criu_parse_pagemap(const void *image, size_t len, struct criu_pagemap *pm, char *why,
		       size_t whysize);
int criu_parse_mm(const void *image, size_t len, struct criu_vmas *v, char *why, size_t whysize);

/* What is restored lazily, of a task whose pagemaps are those: layer[0] of the images themselves, layer[1] of their parent... */
int criu_resolve(const struct criu_pagemap *layer, unsigned layers, const struct criu_vmas *v,
		 struct criu_runs *runs, char *why, size_t whysize);

/* --- files --- */

/* A task, and its memory: ranges that fill_add() takes.  Each range holds a reference to its source. */
struct criu_task {
	uint32_t pid;
	bool images; /* false: it has none, as a zombie */
	bool come;   /* the session's */
	struct fill_range *range;
	size_t n;
	uint64_t bytes;
};

struct criu_images {
	struct criu_task *task;
	size_t n;
};

/*
 * All images of a directory.  0, and they are the caller's to free with criu_images_free(); otherwise a negative errno, and a log line has
 * said what is wrong.  Waits for the disk.
 */
int criu_images_load(struct criu_images **out, const char *dir, const struct logger *log);
void criu_images_free(struct criu_images *im); /* or NULL */

/* Its ranges are not wanted any more. */
void criu_task_finish(struct criu_task *t);

/* NULL: none of that number. */
struct criu_task *criu_images_task(struct criu_images *im, uint32_t pid);

#endif
