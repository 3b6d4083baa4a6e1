/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * serving.h: a runtime that serves guests, for tests of programs that do not know of us.  What it says goes to the test's own log (logged.h).
 */
#ifndef UP_TESTS_SERVING_H
#define UP_TESTS_SERVING_H

#include "assertions.h"
#include <stdio.h>
#include <unistd.h>

#include "logged.h"
#include "serve.h"

/* Its swap file is in that directory, and has no name any more. */
static inline struct up_runtime *
serving_runtime(const char *dir, size_t limit, void (*ended)(void *ctx, uint64_t id, bool guest))
{
	char swap[80];
	const struct up_config cfg = {
		.memory_limit = limit, .swap_path = swap, .service_threads = 2, .log = collect
	};
	struct up_runtime *rt;

	snprintf(swap, sizeof swap, "%s/swap", dir);
	cr_assert(zero(int, up_runtime_create(&rt, &cfg)), "%s", logged);
	cr_assert(zero(int, serve_start(rt, ended, NULL)), "%s", logged);
	unlink(swap);
	return rt;
}

#endif
