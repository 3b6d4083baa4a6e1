/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_limit.c: the memory limit is changed while threads use the memory, on the real kernel.  tests/test_random.c does the same over the simulated
 * one, where everything can fail.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "delivery.h"
#include "real.h"
#include "uffd_pager.h"

#define RW (PROT_READ | PROT_WRITE)
#define PAGE ((size_t)UP_PAGE_SIZE)
#define MiB ((size_t)1 << 20)
#define DEADLINE 30 /* seconds, for whatever has to happen */

TestSuite(limit, .timeout = 110);

static struct up_runtime *rt;

static struct up_config
config(size_t limit, size_t most)
{
	return (struct up_config){ .memory_limit = limit,
				   .memory_limit_max = most,
				   .service_threads = 2,
				   .delivery = test_delivery(),
				   .compression = test_compression(),
				   .log = collect };
}

static uint64_t *
map(size_t len)
{
	void *p;
	const int r = up_map(rt, NULL, len, RW, UP_PRIVATE, NULL, 0, &p);

	cr_assert(r == 0, "up_map: %s: %s", strerrorname_np(-r), logged);
	return p;
}

static struct up_stats
stats(void)
{
	return real_stats(rt);
}

/* No two pages alike, half of each compressible. */
static uint64_t
word_of(size_t page, size_t w, uint64_t salt)
{
	const uint64_t x = (page * 512 + w + salt) * UINT64_C(0x9e3779b97f4a7c15);

	return w < 256 ? x ^ x >> 29 : page + 1;
}

static void
fill(uint64_t *p, size_t first, size_t n, uint64_t salt)
{
	for (size_t page = first; page < first + n; page++)
		for (size_t w = 0; w < 512; w++)
			p[page * 512 + w] = word_of(page, w, salt);
}

static void
verify(const uint64_t *p, size_t first, size_t n, uint64_t salt)
{
	for (size_t page = first; page < first + n; page++)
		for (size_t w = 0; w < 512; w++)
			cr_assert(p[page * 512 + w] == word_of(page, w, salt),
				  "page %zu, word %zu is not what was written", page, w);
}

static void
set(size_t limit)
{
	const int r = up_runtime_set_limit(rt, limit, DEADLINE * 1000);
	struct up_stats st;

	cr_assert(r == 0, "%zu: %s: %s", limit, strerrorname_np(-r), logged);
	st = stats();
	cr_assert(st.limit == limit, "%zu after %zu was set", (size_t)st.limit, limit);
	cr_assert(st.used <= limit && st.used_max <= limit, "%zu used, at most %zu, of %zu",
		  (size_t)st.used, (size_t)st.used_max, limit);
}

static void
expect(int want, size_t limit, const char *why)
{
	const uint64_t before = stats().limit;
	int r;

	log_clear();
	r = up_runtime_set_limit(rt, limit, 2000);
	cr_assert(r == want, "%zu: %s, wanted %s", limit, strerrorname_np(-r),
		  strerrorname_np(-want));
	cr_assert(strstr(logged, why) != NULL, "'%s' is not in: %s", why, logged);
	cr_assert(stats().limit == before, "refused, and the limit is %zu now",
		  (size_t)stats().limit);
}

Test(limit, a_lower_one_holds_once_the_call_has_returned)
{
	const struct up_config cfg = config(48 * MiB, 0);
	const size_t n = 64 * MiB / PAGE;
	uint64_t *p;

	rt = real_start(&cfg);
	p = map(n * PAGE);
	fill(p, 0, n, 1);
	cr_assert(stats().used > 32 * MiB, "%zu is used", (size_t)stats().used);
	set(12 * MiB);
	cr_assert(stats().limit_max == 48 * MiB);
	verify(p, 0, n, 1);
	fill(p, 0, n, 2);
	cr_assert(stats().used_max <= 12 * MiB, "%zu was used", (size_t)stats().used_max);
	set(48 * MiB);
	verify(p, 0, n, 2);
	up_runtime_destroy(rt);
}

Test(limit, a_higher_one_is_used)
{
	const struct up_config cfg = config(8 * MiB, 80 * MiB);
	const size_t n = 48 * MiB / PAGE;
	unsigned char *vec = malloc(n);
	size_t there = 0;
	uint64_t *p;

	rt = real_start(&cfg);
	cr_assert(stats().limit_max == 80 * MiB);
	p = map(n * PAGE);
	fill(p, 0, n, 1);
	set(80 * MiB);
	verify(p, 0, n, 1);
	cr_assert(vec != NULL && up_residency(rt, p, n * PAGE, vec) == 0, "%s", logged);
	for (size_t i = 0; i < n; i++)
		there += (vec[i] & (UP_PAGE_MAPPED | UP_PAGE_STAGED)) != 0;
	cr_assert(there > n / 10 * 9, "%zu of %zu pages are in memory, all of which fit", there, n);
	free(vec);
	up_runtime_destroy(rt);
}

Test(limit, what_can_not_be_is_refused_and_changes_nothing)
{
	const struct up_config cfg = config(32 * MiB, 40 * MiB);
	uint64_t *p;

	rt = real_start(&cfg);
	cr_assert(up_runtime_set_limit(NULL, 8 * MiB, 0) == -EINVAL);
	expect(-EINVAL, MiB, "below the minimum");
	expect(-EINVAL, 40 * MiB + PAGE, "above memory_limit_max");
	p = map(32 * MiB);
	fill(p, 0, 8 * MiB / PAGE, 1);
	cr_assert(up_wire(rt, p, 8 * MiB) == 0, "%s", logged);
	expect(-EBUSY, 12 * MiB, "wired");
	expect(-EBUSY, 8 * MiB, "up_runtime_set_limit");
	set(20 * MiB);
	cr_assert(up_unwire(rt, p, 8 * MiB) == 0, "%s", logged);
	set(12 * MiB);
	cr_assert(up_wire(rt, p, 8 * MiB) == -ENOMEM, "half of the limit may be wired");
	set(40 * MiB);
	cr_assert(up_wire(rt, p, 8 * MiB) == 0, "%s", logged);
	verify(p, 0, 8 * MiB / PAGE, 1);
	/* Metadata of what is mapped has been promised out of it. */
	cr_assert(up_unwire(rt, p, 8 * MiB) == 0, "%s", logged);
	(void)map((size_t)512 << 20);
	expect(-EBUSY, 4 * MiB, "up_runtime_set_limit");
	up_runtime_destroy(rt);
}

Test(limit, a_highest_one_below_the_limit_is_refused)
{
	const struct up_config cfg = config(32 * MiB, 31 * MiB);

	cr_assert(up_runtime_create(&rt, &cfg) == -EINVAL);
	cr_assert(strstr(logged, "memory_limit_max") != NULL, "%s", logged);
}

/* --- threads that use it meanwhile --- */

struct user {
	pthread_t thread;
	uint64_t *p;
	size_t n;
	unsigned seed;
	uint64_t touches;
};

static atomic_bool over;

static void *
use(void *arg)
{
	struct user *u = arg;
	uint64_t *expected = calloc(u->n, sizeof *expected);

	if (expected == NULL)
		abort();
	while (!atomic_load(&over)) {
		const size_t page = (size_t)rand_r(&u->seed) % u->n;
		uint64_t *at = u->p + page * 512;

		if (at[0] != expected[page] || at[511] != expected[page]) {
			fprintf(stderr, "page %zu: %llx %llx, not %llx\n", page,
				(unsigned long long)at[0], (unsigned long long)at[511],
				(unsigned long long)expected[page]);
			abort();
		}
		expected[page] = (uint64_t)u->seed << 32 | ++u->touches;
		at[0] = at[100] = at[511] = expected[page];
	}
	free(expected);
	return NULL;
}

Test(limit, goes_up_and_down_under_threads_that_use_all_of_it)
{
	const struct up_config cfg = config(8 * MiB, 48 * MiB);
	struct user user[3];
	unsigned seed = 5, changes = 0;
	const double end = seconds() + 4;

	rt = real_start(&cfg);
	for (size_t i = 0; i < 3; i++) {
		user[i] = (struct user){ .p = map(16 * MiB),
					 .n = 16 * MiB / PAGE,
					 .seed = (unsigned)i + 1 };
		cr_assert(pthread_create(&user[i].thread, NULL, use, &user[i]) == 0);
	}
	while (seconds() < end) {
		const size_t limit = (6 + (size_t)rand_r(&seed) % 43) * MiB;

		set(limit);
		for (unsigned k = 0; k < 200; k++) {
			const struct up_stats st = stats();

			cr_assert(st.used <= limit && st.used_max <= limit,
				  "%zu used, at most %zu, of %zu", (size_t)st.used,
				  (size_t)st.used_max, limit);
			sched_yield();
		}
		changes++;
	}
	atomic_store(&over, true);
	for (size_t i = 0; i < 3; i++) {
		pthread_join(user[i].thread, NULL);
		cr_assert(user[i].touches > 0, "a thread could do nothing");
	}
	cr_assert(changes > 10, "%u changes in four seconds", changes);
	up_runtime_destroy(rt);
}
