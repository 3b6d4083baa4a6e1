/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * source.h (private): where the pages of a named object come from: a file, a device, a pager of the program.
 *
 *	nothing --source_in--> MAPPED, COPY --launder: unchanged--> CLEAN --reclaim--> nothing
 *	                                    --launder: changed, of a shared mapping--> LAUNDRY --source_out--> CLEAN
 *	                                    --launder: changed, of a private mapping--> as any anonymous page
 *
 * Changed or not is told by content: the hash taken when a page came in, or was last written back, is kept with its anon.  So
 * nobody watches for writes, and a page is written back only if its bytes differ.
 */
#ifndef UP_SOURCE_H
#define UP_SOURCE_H

#include "pager/pager.h"

/* A write lies behind the end that the source has by now: nobody could see it, so it is forgotten.  No errno. */
#define SOURCE_CUT_OFF (-4096)

struct source_ops {
	const char *name;
	bool contiguous; /* a request is one buffer */
	/*
	 * Start a request whose I/O vector points at its frames: a page-in, or if `write` a page-out.  Service threads.
	 * 0: source_done() follows.  -errno: it does not; it failed.
	 */
	int (*start)(struct service *s, struct source *src, struct request *req, bool write);
	/*
	 * Say where whole pages are to be transferred from or to: fd, offset, direct and ends of `io`.  0; 1: not by a request, some of
	 * it is less than a page; SOURCE_CUT_OFF or -errno.  Any thread.  NULL: what start() does is no transfer.
	 */
	int (*aim)(struct source *src, uint64_t index, unsigned n, bool write, struct swap_io *io);
	/* A transfer that was aimed has failed: true if it is to be aimed again, which will be elsewhere.  NULL: never. */
	bool (*refused)(struct source *src, const struct swap_io *io);
	/* Write now; threads of the program. */
	int (*write)(struct source *src, uint64_t index, void *page, size_t len);
	/* Make what was written durable; NULL: nothing to do. */
	int (*flush)(struct source *src);
	/*
	 * 1: there is a page at `index`, and *before in front of it and *after behind it, which are best read together.  0: there
	 * is none, nor *after behind it: zeros.  -errno.  Service threads, nothing locked.  Only if src->asks.
	 */
	int (*has)(struct source *src, uint64_t index, uint64_t *before, uint64_t *after);
	/* Nobody wants what this request reads any more; any thread.  NULL: requests of this kind can not be taken back. */
	void (*cancel)(struct source *src, struct request *req);
	/* 0, or why what was read is not to be believed: `got` of `want` bytes at page `index`. */
	int (*ended)(struct source *src, uint64_t index, size_t want, size_t got);
	void (*destroy)(struct source *src);
};

struct source {
	const struct source_ops *ops; /* (c) */
	bool asks;		      /* (c) ops->has is to be asked before a page-in */
	uint64_t bytes; /* (c) size of the object; its last page may be a part of one */
	atomic_uint
		refs; /* the object's, and one for each request under way, which may outlive it */
	struct source *next_dead; /* on p->dead_sources */
	atomic_int error;	  /* the first failed write that up_sync() has not told of yet */
	_Atomic uint64_t
		nwrites; /* begun and ended, ever: what `has` said before either may be wrong after it */
	_Atomic uint64_t write_again;	/* after a failed write: not before this time */
	_Atomic uint64_t write_backoff; /* ns, doubling while writes fail */
	/* requests that it has, of custom pagers; each of one service only */
	uint8_t reads[MAX_SERVICES], writes[MAX_SERVICES];
};

/* The pager has completed a page-in: what has not been taken of it is the service's again.  By the service. */
void source_let_go(struct pager *p, struct request *req);

/* The content of a busy, mapped page of this object.  0; -ENOENT, -ESTALE: the program has discarded it; or why it can not be had.  User threads. */
int source_look(struct pager *p, const struct page *pg, void *copy);
/*
 * Write what has changed of object pages [*first, end), and wait for that: 0, or the first error.  What is not begun by a time (now_ns(), UINT64_MAX: none) is
 * left, and *first is where it begins; something is begun in any case.  => map.change held; user threads
 */
int writeback(struct pager *p, struct object *o, uint64_t *first, uint64_t end, uint64_t until);

/* Bytes of n pages from `index` on that exist. */
static inline size_t
source_length(const struct source *src, uint64_t index, size_t n)
{
	const uint64_t start = index << PAGE_SHIFT;

	return (size_t)MIN((uint64_t)n << PAGE_SHIFT, src->bytes - start);
}

#endif
