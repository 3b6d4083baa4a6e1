/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * codec.c: lz4 and zstd, with all their memory in one piece of the caller's.
 *
 *	| struct codec_state, buf | lz4's state     | ZSTD_DCtx, if it is to read what zstd has written |
 *	| struct codec_state, buf | ZSTD_CCtx       | ZSTD_DCtx |
 *
 * zstd's static contexts are "experimental": a later version may need another amount of memory, but says so when asked, and the asking
 * is done with the library that runs, not the one this was built with.  The alternative, contexts made by ZSTD_createCCtx_advanced()
 * with an allocator of ours, is experimental too, and allocates when it pleases.
 *
 * Frames are without magic number, checksum and dictionary: 5 bytes and the time to hash are saved on each page, and neither tells
 * anything that the caller's hash of the page does not.
 */
#define ZSTD_STATIC_LINKING_ONLY
#include "swap/codec.h"

#include <errno.h>
#include <lz4.h>
#include <string.h>
#include <zstd.h>

#define ALIGN 64
#define ZSTD_LEVEL 1

static size_t
work_size(enum up_compression kind)
{
	if (kind == UP_COMPRESS_LZ4)
		return (size_t)LZ4_sizeofState();
	return ZSTD_estimateCCtxSize_usingCParams(ZSTD_getCParams(ZSTD_LEVEL, PAGE_SIZE, 0));
}

static size_t
back_size(enum up_compression kind, bool zstd)
{
	return kind == UP_COMPRESS_ZSTD || zstd ? ZSTD_estimateDCtxSize() : 0;
}

size_t
codec_state_size(enum up_compression kind, bool zstd)
{
	assert(kind == UP_COMPRESS_LZ4 || kind == UP_COMPRESS_ZSTD);
	return round_up(sizeof(struct codec_state), ALIGN) + round_up(work_size(kind), ALIGN) +
	       round_up(back_size(kind, zstd), ALIGN);
}

/* True if it worked. */
static bool
zstd_writes(struct codec_state *st)
{
	ZSTD_CCtx *c = ZSTD_initStaticCCtx(st->work, round_up(work_size(st->kind), ALIGN));

	st->work = c;
	return c != NULL &&
	       !ZSTD_isError(ZSTD_CCtx_setParameter(c, ZSTD_c_compressionLevel, ZSTD_LEVEL)) &&
	       !ZSTD_isError(ZSTD_CCtx_setParameter(c, ZSTD_c_format, ZSTD_f_zstd1_magicless));
}

/* The same. */
static bool
zstd_reads(struct codec_state *st, size_t size)
{
	ZSTD_DCtx *d = ZSTD_initStaticDCtx(st->back, round_up(size, ALIGN));

	st->back = d;
	return d != NULL &&
	       !ZSTD_isError(ZSTD_DCtx_setParameter(d, ZSTD_d_format, ZSTD_f_zstd1_magicless));
}

struct codec_state *
codec_state_init(void *mem, enum up_compression kind, bool zstd)
{
	const size_t back = back_size(kind, zstd);
	struct codec_state *st = mem;

	assert((uintptr_t)mem % ALIGN == 0);
	st->kind = kind;
	st->work = (char *)mem + round_up(sizeof *st, ALIGN);
	st->back = back > 0 ? (char *)st->work + round_up(work_size(kind), ALIGN) : NULL;
	if (kind == UP_COMPRESS_ZSTD && !zstd_writes(st))
		return NULL;
	return back == 0 || zstd_reads(st, back) ? st : NULL;
}

bool
codec_same(const void *page, uint64_t *word)
{
	const char *p = page;

	memcpy(word, p, sizeof *word);
	/* Most pages differ in their first words: those are worth a look before a call. */
	return memcmp(p, p + 8, 8) == 0 && memcmp(p + 8, p + 16, PAGE_SIZE - 16) == 0;
}

void
codec_fill(void *page, uint64_t word)
{
	uint64_t *p = page;

	for (size_t i = 0; i < PAGE_SIZE / sizeof *p; i++)
		p[i] = word;
}

size_t
codec_compress(struct codec_state *st, const void *page)
{
	size_t n;
	int r;

	if (st->kind == UP_COMPRESS_LZ4) {
		r = LZ4_compress_fast_extState(st->work, page, st->buf, (int)PAGE_SIZE, CODEC_MAX,
					       1);
		return r > 0 ? (size_t)r : 0;
	}
	n = ZSTD_compress2(st->work, st->buf, sizeof st->buf, page, PAGE_SIZE);
	return ZSTD_isError(n) ? 0 : n;
}

int
codec_decompress(struct codec_state *st, enum up_compression kind, const void *data, size_t len,
		 void *page)
{
	bool good;

	if (len == 0 || len > CODEC_MAX)
		return -EBADMSG;
	if (kind == UP_COMPRESS_LZ4)
		good = LZ4_decompress_safe(data, page, (int)len, (int)PAGE_SIZE) == (int)PAGE_SIZE;
	else
		good = kind == UP_COMPRESS_ZSTD && st->back != NULL &&
		       ZSTD_decompressDCtx(st->back, page, PAGE_SIZE, data, len) == PAGE_SIZE;
	return good ? 0 : -EBADMSG;
}
