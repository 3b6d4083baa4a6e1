/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz_firecracker.c: any bytes at all as what Firecracker says.
 *
 *	meson setup build-fuzz -Dfuzzers=enabled	(CC=clang; adds ASan and UBSan if b_sanitize says so)
 *	build-fuzz/tests/fuzz_firecracker tests/corpus/firecracker
 *
 * The first byte says how the rest is cut into pieces, the second how big the memory file is; the corpus has both.  Where there is no
 * libFuzzer the same program reads the files that it is given, once: the corpus is a test then.
 *
 * Checked beside that nothing crashes: pieces give the same arrays as the whole; what is accepted is sound.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "firecracker_wire.h"
#include "fuzz_files.h"

#define CHECK(is) ((is) ? (void)0 : (fprintf(stderr, "%s\n", #is), abort()))

static void
check(const struct fc_region *r, int n, uint64_t file_size)
{
	uint64_t sum = 0;

	CHECK(n > 0 && n <= (int)FC_REGIONS_MAX);
	for (int i = 0; i < n; i++) {
		CHECK(r[i].page_size == 4096 || r[i].page_size == 2 << 20);
		CHECK(r[i].size > 0 && r[i].size % r[i].page_size == 0);
		CHECK(r[i].address > 0 && r[i].address % r[i].page_size == 0);
		CHECK(r[i].address + r[i].size > r[i].address);
		CHECK(r[i].offset % 4096 == 0 && r[i].offset <= file_size);
		CHECK(r[i].size <= file_size - r[i].offset);
		for (int j = 0; j < i; j++) {
			CHECK(r[j].address + r[j].size <= r[i].address);
			CHECK(r[j].offset + r[j].size <= r[i].offset ||
			      r[i].offset + r[i].size <= r[j].offset);
		}
		sum += r[i].size;
	}
	CHECK(sum == file_size);
}

/* Where arrays end, reading so many bytes at a time: up to `max`, and how many.  -1 at the end: no array. */
static size_t
ends(const char *text, size_t len, size_t piece, int64_t end[], size_t max)
{
	struct fc_scan s = { 0 };
	size_t n = 0;

	for (size_t at = 0; at < len && n < max;) {
		const size_t count = len - at < piece ? len - at : piece;
		bool complete;
		const int64_t got = fc_scan(&s, text + at, count, &complete);

		CHECK(got == -EPROTO || (got > 0 && got <= (int64_t)count));
		if (got < 0) {
			end[n++] = -1;
			break;
		}
		CHECK(complete || got == (int64_t)count);
		at += (size_t)got;
		if (complete)
			end[n++] = (int64_t)at;
	}
	return n;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int64_t whole[16], pieces[16];
	uint64_t file_size;
	const char *text;
	char why[64];
	size_t n, from = 0;

	if (size < 2)
		return 0;
	text = (const char *)data + 2;
	size -= 2;
	file_size = (uint64_t)4096 << data[1] % 52;
	n = ends(text, size, size, whole, 16);
	CHECK(n == ends(text, size, 1 + data[0] % 64, pieces, 16));
	CHECK(memcmp(whole, pieces, n * sizeof whole[0]) == 0);
	for (size_t i = 0; i < n && whole[i] > 0; i++) {
		struct fc_region *r;
		const int count = fc_parse(text + from, (size_t)whole[i] - from, file_size, &r, why,
					   sizeof why);

		if (count > 0)
			check(r, count, file_size);
		else
			CHECK(r == NULL && why[0] != '\0' && strlen(why) < sizeof why);
		free(r);
		from = (size_t)whole[i];
	}
	return 0;
}
