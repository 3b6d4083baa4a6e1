/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * minimal.c: 256 MiB of memory in a program that may use 64 MiB.  The README's program.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uffd_pager.h>

static void
check(const char *what, int r)
{
	if (r < 0) {
		fprintf(stderr, "%s: %s\n", what, strerror(-r));
		exit(1);
	}
}

static void
complain(void *ctx, enum up_log_level level, const char *line)
{
	(void)ctx;
	if (level <= UP_LOG_WARNING)
		fprintf(stderr, "uffd-pager: %s\n", line);
}

int
main(void)
{
	const struct up_config cfg = { .memory_limit = 64 << 20, .log = complain };
	const size_t length = 256 << 20, n = length / sizeof(uint64_t);
	struct up_runtime *rt;
	struct up_stats st;
	size_t wrong = 0;
	void *p;

	check("up_runtime_create", up_runtime_create(&rt, &cfg));
	check("up_map", up_map(rt, NULL, length, PROT_READ | PROT_WRITE, UP_PRIVATE, NULL, 0, &p));

	uint64_t *number = p; /* ordinary memory from here on */
	for (size_t i = 0; i < n; i++)
		number[i] = i * i;
	for (size_t i = 0; i < n; i++)
		wrong += number[i] != i * i;

	check("up_stats_get", up_stats_get(rt, &st, sizeof(st)));
	printf("%zu MiB written and read back, %zu of %zu numbers wrong\n", length >> 20, wrong, n);
	printf("never more than %.0f MiB in memory; %.0f MiB is in the swap file now\n",
	       (double)st.used_max / (1 << 20), (double)st.swapped / (1 << 20));
	up_runtime_destroy(rt);
	return wrong != 0;
}
