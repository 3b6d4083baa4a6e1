/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * computed.c: a table that is computed where it is touched, larger than the memory it may use.
 *
 *	computed [--size 64M] [--memory 8M] [--checks 20000]
 *
 * table[n] is how many steps the Collatz sequence takes from n to 1.  The table is an array: nothing in the code that
 * reads it knows that a page of it does not exist before somebody looks, or that it is forgotten when memory is
 * short and computed again.  Nothing is ever written to the swap, since an unchanged page can be had again.
 *
 * Exit status: 0 all as recomputed, 1 not so or the pager could not be started, 2 bad usage.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uffd_pager.h>

static const char usage[] = "usage: computed [--size BYTES] [--memory BYTES] [--checks N]\n"
			    "  --size    of the table; 2 bytes a number (64M)\n"
			    "  --memory  that may be used (8M)\n"
			    "  --checks  random numbers to recompute (20000)\n"
			    "  BYTES may end in K, M or G.\n";

static uint16_t
collatz(uint64_t n)
{
	uint16_t steps = 0;

	for (; n > 1; steps++)
		n = n % 2 == 0 ? n / 2 : 3 * n + 1;
	return steps;
}

/*
 * The pager.  A page is 2048 numbers of some hundred steps, a fraction of a millisecond, so it is computed right here, on the
 * library's thread.  What takes longer, or waits, belongs on a thread of its own: see compressed_file.c.
 */
static int
compute(void *ctx, struct up_request *req)
{
	uint16_t *table = up_request_buffer(req);
	const uint64_t first = up_request_offset(req) / sizeof *table;
	const size_t n = up_request_length(req) / sizeof *table;

	(void)ctx;
	for (size_t i = 0; i < n; i++)
		table[i] = collatz(first + i);
	up_request_complete(req, 0);
	return 0;
}

static const struct up_pager_ops ops = { .size = sizeof ops, .page_in = compute };

static void
check(const char *what, int r)
{
	if (r == 0)
		return;
	fprintf(stderr, "computed: %s: %s\n", what, strerror(-r));
	exit(1);
}

static void
complain(void *ctx, enum up_log_level level, const char *line)
{
	(void)ctx;
	if (level <= UP_LOG_WARNING)
		fprintf(stderr, "uffd-pager: %s\n", line);
}

static size_t
number(const char *option, const char *s)
{
	static const char units[] = "KMG";
	char *end = NULL;
	unsigned long long n = s != NULL && *s >= '0' && *s <= '9' ? strtoull(s, &end, 10) : 0;

	if (end != NULL && *end != '\0') {
		const char *unit = strchr(units, *end++);
		const unsigned shift = unit != NULL ? 10 * (unsigned)(unit - units + 1) : 64;

		n = shift < 64 && *end == '\0' && n <= (1ull << 42) >> shift ? n << shift : 0;
	}
	if (n == 0 || n > 1ull << 42) {
		fprintf(stderr, "computed: %s needs a number above 0; see --help\n", option);
		exit(2);
	}
	return n;
}

int
main(int argc, char **argv)
{
	size_t size = (size_t)64 << 20, memory = (size_t)8 << 20, checks = 20000, wrong = 0;
	struct up_runtime *rt;
	struct up_object *obj;
	struct up_stats st;
	uint64_t state = 1, longest = 0;
	void *p;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--help") == 0) {
			fputs(usage, stdout);
			return 0;
		} else if (strcmp(argv[i], "--size") == 0) {
			size = number("--size", argv[++i]);
		} else if (strcmp(argv[i], "--memory") == 0) {
			memory = number("--memory", argv[++i]);
		} else if (strcmp(argv[i], "--checks") == 0) {
			checks = number("--checks", argv[++i]);
		} else {
			fprintf(stderr, "computed: unknown argument %s; see --help\n", argv[i]);
			return 2;
		}
	}
	if (memory < UP_MEMORY_LIMIT_MIN) {
		fprintf(stderr, "computed: --memory is at least %zu; see --help\n",
			UP_MEMORY_LIMIT_MIN);
		return 2;
	}
	size = (size + UP_PAGE_SIZE - 1) / UP_PAGE_SIZE * UP_PAGE_SIZE;

	const struct up_config cfg = { .memory_limit = memory, .log = complain };

	check("up_runtime_create", up_runtime_create(&rt, &cfg));
	check("up_object_create_custom", up_object_create_custom(rt, size, &ops, NULL, &obj));
	check("up_map", up_map(rt, NULL, size, PROT_READ, UP_SHARED, obj, 0, &p));

	const uint16_t *table = p; /* an array from here on */
	const uint64_t n = size / sizeof *table;

	/* Here and there: neighbours would be computed for nothing. */
	check("up_advise", up_advise(rt, p, size, UP_ADVICE_RANDOM));
	for (size_t i = 0; i < checks; i++) {
		uint64_t at;

		state = state * UINT64_C(6364136223846793005) + 1442695040888963407u;
		at = (state >> 20) % n;
		wrong += table[at] != collatz(at);
	}
	printf("%zu of %zu random entries are wrong\n", wrong, checks);

	/* From one end to the other: now the pages that follow are asked for together. */
	check("up_advise", up_advise(rt, p, size, UP_ADVICE_SEQUENTIAL));
	for (uint64_t i = 0; i < n; i++) {
		if (table[i] > table[longest])
			longest = i;
		/* Known: below a million it is 837799, with 524 steps. */
		if (i == 999999 && (longest != 837799 || table[longest] != 524)) {
			printf("below a million: %" PRIu64 ", which is wrong\n", longest);
			wrong++;
		}
	}
	wrong += table[longest] != collatz(longest);
	printf("of %" PRIu64 " numbers %" PRIu64 " takes the most steps, %u\n", n, longest,
	       (unsigned)table[longest]);

	check("up_stats_get", up_stats_get(rt, &st, sizeof st));
	printf("%zu MiB of table, never more than %.1f MiB in memory, %" PRIu64
	       " bytes of swap written\n",
	       size >> 20, (double)st.used_max / (1 << 20), st.swap_write_bytes);
	wrong += st.used_max > memory || st.swap_write_bytes > 0;
	up_runtime_destroy(rt); /* the object dies with it */
	puts(wrong == 0 ? "PASS" : "FAIL");
	return wrong != 0;
}
