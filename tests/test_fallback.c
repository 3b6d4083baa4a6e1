/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_fallback.c: the library as it runs on an older kernel, by masking features on this one.
 *
 * Each feature alone, and all of them: data written through four times the limit comes back, the limit
 * holds, and up_features() says what is in use.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stress.h"

#define MiB ((size_t)1 << 20)
#define LIMIT (4 * MiB)
#define REGION (16 * MiB)
#define PAGE ((size_t)UP_PAGE_SIZE)

TestSuite(fallback, .timeout = 120);

static char logged[4096];

static void
keep_line(void *ctx, enum up_log_level level, const char *line)
{
	const size_t n = strlen(logged);

	(void)ctx;
	(void)level;
	snprintf(logged + n, sizeof logged - n, "%s\n", line);
}

static struct up_runtime *
create(struct up_config cfg)
{
	struct up_runtime *rt;
	int r;

	cfg.memory_limit = LIMIT;
	cfg.log = keep_line;
	r = up_runtime_create(&rt, &cfg);
	if (r == -EPERM || r == -ENOSYS)
		cr_skip_test("no userfaultfd here: %s", logged);
	cr_assert(eq(int, r, 0), "%s", logged);
	return rt;
}

static void *
map(struct up_runtime *rt, size_t len)
{
	void *p;

	cr_assert(zero(int, up_map(rt, NULL, len, PROT_READ | PROT_WRITE, UP_PRIVATE, NULL, 0, &p)),
		  "%s", logged);
	return p;
}

/* Through the whole region twice: nothing is lost, and the limit holds. */
static void
round_trip(uint64_t mask)
{
	struct up_runtime *rt = create((struct up_config){ .feature_mask = mask });
	const size_t n = REGION / sizeof(uint64_t);
	uint64_t *word = map(rt, REGION);
	struct up_stats st;
	size_t wrong = 0;

	cr_assert(zero(u64, up_features(rt) & mask), "a masked feature is in use");
	for (unsigned pass = 0; pass < 2; pass++) {
		for (size_t i = 0; i < n; i++)
			word[i] = stress_mix(i + pass);
		for (size_t i = 0; i < n; i++)
			wrong += word[i] != stress_mix(i + pass);
	}
	cr_assert(zero(sz, wrong));
	cr_assert(zero(int, up_stats_get(rt, &st, sizeof st)));
	cr_assert(gt(u64, st.faults[UP_FAULT_MAJOR], 0));
	cr_assert(gt(u64, st.swap_write_bytes, REGION - LIMIT));
	cr_assert(le(u64, st.used_max, LIMIT));
	cr_assert(zero(u64, st.checksum_errors + st.lost));
	up_runtime_destroy(rt);
}

/* Pages of every protection leave and come back. */
static void
protections(uint64_t mask)
{
	static const int prots[] = { PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE };
	struct up_runtime *rt = create((struct up_config){ .feature_mask = mask });
	char *p = map(rt, 3 * MiB), *other;

	for (size_t i = 0; i < 3 * MiB / PAGE; i++)
		*(uint64_t *)(void *)(p + i * PAGE) = stress_mix(i);
	for (unsigned k = 0; k < 3; k++)
		cr_assert(zero(int, up_protect(rt, p + k * MiB, MiB, prots[k])));
	other = map(rt, REGION);
	for (size_t at = 0; at < REGION; at += PAGE)
		other[at] = 1;
	cr_assert(zero(int, up_unmap(rt, other, REGION)));
	cr_assert(zero(int, up_protect(rt, p, 3 * MiB, PROT_READ)));
	for (size_t i = 0; i < 3 * MiB / PAGE; i++)
		cr_assert(eq(u64, *(uint64_t *)(void *)(p + i * PAGE), stress_mix(i)), "page %zu", i);
	up_runtime_destroy(rt);
}

/* A page whose slot was overwritten on disk is SIGBUS, alone, and zeros once it is discarded. */
static void
lost_page(uint64_t mask)
{
	char path[] = "/var/tmp/uffd-pager-fallback-XXXXXX";
	const int fd = mkstemp(path);
	struct up_runtime *rt;
	struct up_stats st;
	unsigned char vec[REGION / PAGE], junk[4096];
	uint64_t value;
	size_t bus = 0, zeros = 0, first = SIZE_MAX;
	char *p;

	cr_assert(ge(int, fd, 0));
	unlink(path);
	touch_init();
	rt = create((struct up_config){
		.feature_mask = mask, .swap_fd = fd, .swap_size = 2 * REGION });
	p = map(rt, REGION);
	cr_assert(zero(int, up_advise(rt, p, REGION, UP_ADVICE_RANDOM)));
	for (size_t i = 0; i < REGION / PAGE; i++)
		*(uint64_t *)(void *)(p + i * PAGE) = i + 1;
	cr_assert(zero(int, up_residency(rt, p, REGION, vec)));
	cr_assert(eq(int, vec[0], UP_PAGE_SWAPPED), "the oldest page is still in memory");

	/* The first cluster that was written is that of the oldest pages. */
	memset(junk, 0x5a, sizeof junk);
	cr_assert(eq(sz, (size_t)pwrite(fd, junk, sizeof junk, 0), sizeof junk));
	for (size_t i = 0; i < REGION / PAGE; i++) {
		const int r = touch_read(p + i * PAGE, &value);

		cr_assert(ne(int, r, 0), "page %zu: SIGSEGV", i);
		if (r < 0) {
			bus++;
			first = i;
		} else {
			cr_assert(eq(u64, value, i + 1), "page %zu is silently wrong", i);
		}
	}
	cr_assert(eq(sz, bus, 1), "one slot was damaged");
	cr_assert(eq(int, touch_write(p + first * PAGE, 1), -1), "a lost page can be written");
	cr_assert(zero(int, up_stats_get(rt, &st, sizeof st)));
	cr_assert(eq(u64, st.checksum_errors, 1));
	cr_assert(eq(u64, st.lost, PAGE));

	cr_assert(zero(int, up_advise(rt, p + first * PAGE, PAGE, UP_ADVICE_DONTNEED)));
	zeros = touch_read(p + first * PAGE, &value) == 1 && value == 0;
	cr_assert(eq(sz, zeros, 1), "discarding does not heal it");
	cr_assert(eq(int, touch_write(p + first * PAGE, 9), 1));
	up_runtime_destroy(rt);
	close(fd);
}

Test(fallback, with_everything_this_kernel_has)
{
	round_trip(0);
	protections(0);
	lost_page(0);
}

Test(fallback, without_move)
{
	round_trip(UP_MASK_MOVE);
	protections(UP_MASK_MOVE);
	lost_page(UP_MASK_MOVE);
}

Test(fallback, without_poison)
{
	round_trip(UP_MASK_POISON);
	lost_page(UP_MASK_POISON);
}

Test(fallback, without_direct_io)
{
	round_trip(UP_MASK_ODIRECT);
}

Test(fallback, without_the_device)
{
	round_trip(UP_MASK_DEV_UFFD);
}

Test(fallback, without_kernel_mode_faults_a_system_call_gets_efault)
{
	struct up_runtime *rt;
	const int null = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	char *p;

	round_trip(UP_MASK_KERNEL_FAULTS);
	rt = create((struct up_config){ .feature_mask = UP_MASK_KERNEL_FAULTS });
	p = map(rt, MiB);
	errno = 0;
	cr_assert(eq(int, (int)read(null, p, PAGE), -1));
	cr_assert(eq(int, errno, EFAULT));
	p[0] = 1; /* touched first, it works */
	cr_assert(eq(int, (int)read(null, p, PAGE), (int)PAGE));
	up_runtime_destroy(rt);
	close(null);
}

Test(fallback, without_ring_flags)
{
	round_trip(UP_MASK_RING_FLAGS);
}

Test(fallback, as_on_the_oldest_kernel)
{
	round_trip(UP_MASK_ALL);
	protections(UP_MASK_ALL);
	lost_page(UP_MASK_ALL);
}
