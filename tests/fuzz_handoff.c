/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fuzz_handoff.c: any bytes at all as what a monitor says that hands its memory over: message after message, as they come over the socket.
 *
 *	meson setup build-fuzz -Dfuzzers=enabled	(CC=clang; adds ASan and UBSan if b_sanitize says so)
 *	build-fuzz/tests/fuzz_handoff tests/corpus/handoff
 *
 * Where there is no libFuzzer the same program reads the files that it is given, once: the corpus is a test then.
 *
 * Checked beside that nothing crashes: what is accepted is sound, and what is not has a reason.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz_files.h"
#include "handoff_wire.h"

#define CHECK(is) ((is) ? (void)0 : (fprintf(stderr, "%s\n", #is), abort()))

static void
check(const struct handoff_message *m)
{
	CHECK(m->n > 0 && m->n <= HANDOFF_REGIONS_MAX);
	CHECK(m->type == HANDOFF_ALL || (m->type == HANDOFF_ADD && m->n == 1));
	CHECK(m->mode <= HANDOFF_WP_ASYNC);
	CHECK(m->type == HANDOFF_ADD || (m->pid > 0 && m->pid <= INT64_MAX));
	for (unsigned i = 0; i < m->n; i++) {
		const struct handoff_region *r = &m->region[i];

		CHECK(r->address > 0 && r->size > 0);
		CHECK((r->address | r->size | r->offset) % 4096 == 0);
		CHECK(r->address + r->size > r->address && r->address + r->size <= INT64_MAX);
		CHECK(r->offset + r->size > r->offset && r->offset + r->size <= INT64_MAX);
		CHECK(i == 0 || m->region[i - 1].address + m->region[i - 1].size <= r->address);
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	while (size >= HANDOFF_HEADER) {
		const int64_t len = handoff_length(data);
		struct handoff_message m;
		char why[64] = "";
		int r;

		if (len < 0) {
			CHECK(len == -EPROTO || len == -E2BIG);
			break;
		}
		CHECK(len > 0 && len <= (int64_t)HANDOFF_MESSAGE_MAX);
		data += HANDOFF_HEADER;
		size -= HANDOFF_HEADER;
		if ((uint64_t)len > size)
			break;
		r = handoff_parse((const char *)data, (size_t)len, &m, why, sizeof why);
		if (r == 0)
			check(&m);
		else
			CHECK(r < 0 && m.region == NULL && why[0] != '\0' &&
			      strlen(why) < sizeof why);
		free(m.region);
		data += len;
		size -= (size_t)len;
	}
	return 0;
}
