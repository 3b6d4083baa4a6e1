/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * codec.h (private): a page into fewer bytes, and back.
 *
 *	page --codec_same--> one word, 8 times 512
 *	     --codec_compress--> 1 .. CODEC_MAX bytes, or not worth it
 *
 * It runs in service threads and in handlers of SIGBUS, so it allocates nothing and takes no lock: all that lz4 and zstd need
 * lies in a codec_state, in memory of the caller's.  One thread at a time has a state; any number of states work side by side.
 *
 * What comes back is not trusted: bytes that are no compressed page, or one of another length, are -EBADMSG, and nothing is read or
 * written out of bounds.  Bytes that were changed into another page's are told by the hash that the caller has.
 */
#ifndef UP_CODEC_H
#define UP_CODEC_H

#include "base/base.h"

/*
 * A page that needs more than this is not compressed.  At 3/4 of a page a byte of the pool holds 1.33 of swap's, of which the entry and
 * the holes between entries take a tenth back: what is left is not worth a compression on the way out and a copy more on the way to
 * swap.  zsmalloc draws its line at the same place (its "huge" class begins a little above 3/4).
 */
#define CODEC_MAX (PAGE_SIZE * 3 / 4)

struct codec_state {
	enum up_compression kind; /* LZ4 or ZSTD */
	void *work;		  /* lz4's state, or zstd's ZSTD_CCtx */
	void *back;	     /* zstd's ZSTD_DCtx, or NULL: it does not read what zstd has written */
	char buf[CODEC_MAX]; /* what was compressed last, or is being decompressed */
};

/*
 * Bytes that a state needs in all: 20 KiB for lz4, about 180 KiB for zstd.  Each reads what lz4 has written; `zstd`: also what zstd has, whatever it writes
 * itself (another 95 KiB for lz4).
 */
size_t codec_state_size(enum up_compression kind, bool zstd);
/*
 * In `mem`, of codec_state_size(kind, zstd) bytes, aligned to 64; it stays the caller's, and there is nothing to undo.  NULL: this version of
 * the library needs more than it said.
 */
struct codec_state *codec_state_init(void *mem, enum up_compression kind, bool zstd);

/* True if all words of the page (aligned to 8) are the same, *word. */
bool codec_same(const void *page, uint64_t *word);
/* A page of that. */
void codec_fill(void *page, uint64_t word);

/*
 * The page's bytes in st->buf, and how many they are; 0: more than CODEC_MAX.  They stay until the state is used again.  The page is
 * read more than once: who changes it meanwhile gets bytes of no page in particular, and no harm.
 */
size_t codec_compress(struct codec_state *st, const void *page);
/* What `kind` has written.  `data` may be st->buf.  0, or -EBADMSG: the content of `page` is anything. */
int codec_decompress(struct codec_state *st, enum up_compression kind, const void *data, size_t len,
		     void *page);

#endif
