/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * delivery.h: the same tests for both ways to serve faults, and with a compressed tier: UP_TEST_DELIVERY=inline and
 * UP_TEST_COMPRESS=lz4 or zstd in the environment.
 *
 * Handlers of SIGBUS of tests call up_handle_sigbus() first.
 */
#ifndef UP_TESTS_DELIVERY_H
#define UP_TESTS_DELIVERY_H

#include <stdlib.h>
#include <string.h>

#include "uffd_pager.h"

static inline enum up_delivery
test_delivery(void)
{
	const char *s = getenv("UP_TEST_DELIVERY");

	return s != NULL && strcmp(s, "inline") == 0 ? UP_DELIVER_INLINE : UP_DELIVER_SERVICE;
}

static inline enum up_compression
test_compression(void)
{
	const char *s = getenv("UP_TEST_COMPRESS");

	if (s == NULL)
		return UP_COMPRESS_NONE;
	return strcmp(s, "zstd") == 0 ? UP_COMPRESS_ZSTD : UP_COMPRESS_LZ4;
}

#endif
