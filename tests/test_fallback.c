/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_fallback.c: the whole runtime as on older kernels: each feature masked, and all of them.
 *
 * A page is lost here the way it would be in life: the swap file comes back with other bytes than
 * were written.  It is ours (up_config.swap_fd), so we can see to that.
 */
#include "assertions.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stress.h"

#define PAGE ((size_t)UP_PAGE_SIZE)
#define WORDS (PAGE / 8)
#define RW (PROT_READ | PROT_WRITE)
#define NPAGES 1200u

TestSuite(fallback, .timeout = STRESS_SANITIZED ? 280 : 120);

static const struct {
	const char *name;
	uint64_t mask;
} masks[] = {
	{ "none", 0 },
	{ "move", UP_MASK_MOVE },
	{ "poison", UP_MASK_POISON },
	{ "odirect", UP_MASK_ODIRECT },
	{ "dev_uffd", UP_MASK_DEV_UFFD },
	{ "kernel_faults", UP_MASK_KERNEL_FAULTS },
	{ "ring_flags", UP_MASK_RING_FLAGS },
	{ "shared", UP_MASK_SHARED },
	{ "vector", UP_MASK_VECTOR },
	{ "move and poison", UP_MASK_MOVE | UP_MASK_POISON },
	{ "all", UP_MASK_ALL },
};
#define NMASKS (sizeof masks / sizeof masks[0])

/* --- rig --- */

static struct watch watch;
static struct up_runtime *rt;
static uint64_t features;
static int swap;
static char *base;

static void
rig_up(uint64_t mask)
{
	char name[] = "/var/tmp/test_fallback.XXXXXX";
	struct up_config cfg = { .memory_limit = UP_MEMORY_LIMIT_MIN,
				 .service_threads = 1,
				 .feature_mask = mask };
	void *p;
	int r;

	swap = mkostemp(name, O_CLOEXEC);
	cr_assert(ge(int, swap, 0), "%s: %s", name, strerror(errno));
	unlink(name);
	cfg.swap_fd = swap;
	r = up_runtime_create(&rt, &cfg);
	if (r == -EPERM || r == -ENOSYS)
		cr_skip_test("userfaultfd is not allowed here with features %#llx masked",
			     (unsigned long long)mask);
	cr_assert(eq(int, r, 0));
	features = up_features(rt);
	touch_init();
	watch_start(&watch, rt, 1, "this test");
	post_step(&watch.post[0], "a test of fallbacks", NULL, 0);
	cr_assert(eq(int, up_map(rt, NULL, NPAGES * PAGE, RW, UP_PRIVATE, NULL, 0, &p), 0));
	base = p;
}

static void
rig_down(void)
{
	post_step(&watch.post[0], "up_runtime_destroy", NULL, 0);
	up_runtime_destroy(rt);
	watch.rt = NULL;
	post_step(&watch.post[0], NULL, NULL, 0);
	watch_stop(&watch);
	close(swap);
}

static uint64_t *
page_at(size_t i)
{
	return (uint64_t *)(base + i * PAGE);
}

static void
fill(size_t from, size_t n)
{
	for (size_t i = from; i < from + n; i++) {
		post_step(&watch.post[0], "filling", page_at(i), 1);
		for (size_t w = 0; w < WORDS; w++)
			page_at(i)[w] = stress_mix(i) + w;
	}
}

static bool
holds(size_t i)
{
	for (size_t w = 0; w < WORDS; w++) {
		if (page_at(i)[w] != stress_mix(i) + w)
			return false;
	}
	return true;
}

static bool
is_zero(size_t i)
{
	for (size_t w = 0; w < WORDS; w++) {
		if (page_at(i)[w] != 0)
			return false;
	}
	return true;
}

static struct up_stats
stats(void)
{
	struct up_stats st;

	cr_assert(eq(int, up_stats_get(rt, &st, sizeof st), 0));
	return st;
}

/* Whatever the swap file holds, it is something else now. */
static void
spoil_swap(void)
{
	uint64_t junk[WORDS];
	struct stat st;

	cr_assert(eq(int, fstat(swap, &st), 0));
	for (off_t at = 0; at < st.st_size; at += (off_t)PAGE) {
		for (size_t w = 0; w < WORDS; w++)
			junk[w] = stress_mix((uint64_t)at + w);
		cr_assert(pwrite(swap, junk, PAGE, at) == (ssize_t)PAGE, "%s", strerror(errno));
	}
}

static unsigned
residency(size_t i)
{
	unsigned char vec = 0xff;

	cr_assert(eq(int, up_residency(rt, page_at(i), PAGE, &vec), 0));
	return vec;
}

/* Fill more than fits, spoil the swap, touch everything: returns how many pages are lost. */
static size_t
lose_some(bool lost[])
{
	size_t n = 0;
	uint64_t v;

	fill(0, NPAGES);
	spoil_swap();
	for (size_t i = 0; i < NPAGES; i++) {
		int r;

		post_step(&watch.post[0], "touching what may be lost", page_at(i), 1);
		r = touch_read(page_at(i), &v);
		lost[i] = r == -1;
		n += lost[i];
		cr_assert(ne(int, r, 0), "page %zu: SIGSEGV", i);
		if (r == 1)
			cr_assert(holds(i), "page %zu was spoilt, and nobody noticed", i);
	}
	return n;
}

/* --- features --- */

Test(fallback, features_in_use_are_those_found_less_the_masked)
{
	uint64_t all = 0;

	for (size_t i = 0; i < NMASKS; i++) {
		const uint64_t mask = masks[i].mask;

		rig_up(mask);
		if (mask == 0)
			all = features;
		cr_assert(eq(u64, features & mask, 0), "%s", masks[i].name);
		cr_assert(eq(u64, features & ~UP_MASK_ALL, 0), "%s", masks[i].name);
		/* Without the device another door may lead to less; the others are on their own. */
		if ((mask & UP_MASK_DEV_UFFD) == 0)
			cr_assert(eq(u64, features, all & ~mask), "%s", masks[i].name);
		rig_down();
	}
}

/* --- the mill --- */

static void
mill(uint64_t mask, uint64_t seed)
{
	const struct stress cfg = { .seconds = 2,
				    .threads = 4,
				    .services = 1 + seed % 2,
				    .memory = UP_MEMORY_LIMIT_MIN,
				    .mask = mask,
				    .seed = seed };
	struct stress_result res;

	rig_up(mask); /* skips where this is not to be had */
	rig_down();
	stress_run(&cfg, &res);
	cr_assert(gt(u64, res.st.faults[UP_FAULT_MAJOR], 0));
	cr_assert(gt(u64, res.st.pages_out, 0));
	cr_assert(eq(u64, res.st.fault_sigbus, 0));
	/* Then the mill must have kept from them. */
	if (mask & UP_MASK_KERNEL_FAULTS)
		cr_assert(eq(u64, res.syscalls, 0));
}

Test(fallback, everything_at_once_without_MOVE)
{
	mill(UP_MASK_MOVE, 21);
}

Test(fallback, everything_at_once_without_POISON)
{
	mill(UP_MASK_POISON, 22);
}

Test(fallback, everything_at_once_without_O_DIRECT)
{
	mill(UP_MASK_ODIRECT, 23);
}

Test(fallback, everything_at_once_without_the_device)
{
	mill(UP_MASK_DEV_UFFD, 24);
}

Test(fallback, everything_at_once_without_faults_in_the_kernel)
{
	mill(UP_MASK_KERNEL_FAULTS, 25);
}

Test(fallback, everything_at_once_with_the_oldest_ring)
{
	mill(UP_MASK_RING_FLAGS, 26);
}

Test(fallback, everything_at_once_without_anything)
{
	mill(UP_MASK_ALL, 27);
}

/* --- system calls --- */

/* One byte into a page, by a system call. */
static ssize_t
read_into(void *at)
{
	const int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	const ssize_t r = read(fd, at, 1);
	const int err = errno;

	cr_assert(ge(int, fd, 0));
	close(fd);
	return r < 0 ? -err : r;
}

Test(fallback, without_faults_in_the_kernel_a_system_call_on_a_missing_page_is_EFAULT)
{
	rig_up(UP_MASK_KERNEL_FAULTS);
	cr_assert(eq(int, (int)read_into(base), -EFAULT));
	*page_at(0) = 1;
	/* It may have left at once, in so little memory, but not for ever. */
	for (unsigned tries = 0; tries < 1000 && read_into(base) != 1; tries++)
		*page_at(0) = 1;
	cr_assert(eq(int, (int)read_into(base), 1));
	cr_assert(eq(u64, *page_at(0), 0));
	rig_down();
}

Test(fallback, with_faults_in_the_kernel_a_system_call_waits_for_the_page)
{
	rig_up(0);
	if ((features & UP_MASK_KERNEL_FAULTS) == 0)
		cr_skip_test("not allowed here");
	fill(0, NPAGES);
	for (size_t i = 0; i < NPAGES; i += 3) {
		post_step(&watch.post[0], "read() into a page", page_at(i), 1);
		cr_assert(eq(int, (int)read_into((char *)page_at(i) + 5), 1));
		cr_assert(eq(u64, page_at(i)[1], stress_mix(i) + 1));
	}
	rig_down();
}

/* --- lost pages --- */

/* On every way to mark a page as lost. */
static void
for_each_way(void (*test)(void))
{
	static const uint64_t ways[] = { 0, UP_MASK_POISON, UP_MASK_POISON | UP_MASK_ODIRECT,
					 UP_MASK_ALL };

	for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
		rig_up(ways[i]);
		test();
		rig_down();
	}
}

static bool lost[NPAGES];

static void
lost_and_healed(void)
{
	const size_t n = lose_some(lost);
	struct up_stats st = stats();
	uint64_t v;

	cr_assert(gt(sz, n, 0), "nothing was in swap");
	cr_assert(eq(u64, st.lost, n * PAGE));
	cr_assert(ge(u64, st.checksum_errors, n));
	cr_assert(ge(u64, st.fault_sigbus, n));
	for (size_t i = 0; i < NPAGES; i++) {
		cr_assert(eq(int, (residency(i) & UP_PAGE_LOST) != 0, lost[i]), "page %zu", i);
		/* Reading, writing, and again: it does not come back by itself. */
		if (lost[i] && i % 5 == 0) {
			cr_assert(eq(int, touch_read(page_at(i), &v), -1), "page %zu", i);
			cr_assert(eq(int, touch_write(page_at(i), 1), -1), "page %zu", i);
		}
	}
	/* Discarding heals, one page, then all. */
	for (size_t i = 0; i < NPAGES && n > 0; i++) {
		if (!lost[i])
			continue;
		cr_assert(eq(int, up_advise(rt, page_at(i), PAGE, UP_ADVICE_DONTNEED), 0));
		cr_assert(is_zero(i), "page %zu", i);
		cr_assert(eq(u64, stats().lost, (n - 1) * PAGE));
		break;
	}
	cr_assert(eq(int, up_advise(rt, base, NPAGES * PAGE, UP_ADVICE_DONTNEED), 0));
	cr_assert(eq(u64, stats().lost, 0));
	for (size_t i = 0; i < NPAGES; i++)
		cr_assert(is_zero(i), "page %zu", i);
	fill(0, NPAGES);
	for (size_t i = 0; i < NPAGES; i++)
		cr_assert(holds(i), "page %zu", i);
}

Test(fallback, a_lost_page_is_SIGBUS_until_it_is_discarded)
{
	for_each_way(lost_and_healed);
}

static void
lost_and_unmapped(void)
{
	const size_t n = lose_some(lost);

	cr_assert(gt(sz, n, 0), "nothing was in swap");
	for (size_t i = 0; i < NPAGES; i += 100)
		cr_assert(eq(int, up_unmap(rt, page_at(i), 50 * PAGE), 0));
	for (size_t i = 0; i < NPAGES; i++) {
		uint64_t v;

		cr_assert(eq(int, touch_read(page_at(i), &v),
			     i % 100 < 50 ? 0
			     : lost[i]	  ? -1
					  : 1),
			  "page %zu", i);
	}
	/* The rest is left to the runtime's end. */
}

Test(fallback, lost_pages_can_be_unmapped)
{
	for_each_way(lost_and_unmapped);
}

static void
lost_and_protected(void)
{
	const size_t n = lose_some(lost);

	cr_assert(gt(sz, n, 0), "nothing was in swap");
	cr_assert(eq(int, up_protect(rt, base, NPAGES * PAGE, PROT_NONE), 0));
	for (size_t i = 0; i < NPAGES; i += 7) {
		uint64_t v;

		cr_assert(eq(int, touch_read(page_at(i), &v), 0), "page %zu: no SIGSEGV", i);
	}
	cr_assert(eq(int, up_protect(rt, base, NPAGES * PAGE, RW), 0));
	for (size_t i = 0; i < NPAGES; i++) {
		uint64_t v;

		cr_assert(eq(int, touch_read(page_at(i), &v), lost[i] ? -1 : 1), "page %zu", i);
		if (!lost[i])
			cr_assert(holds(i), "page %zu", i);
	}
	cr_assert(eq(int, up_advise(rt, base, NPAGES * PAGE, UP_ADVICE_DONTNEED), 0));
	for (size_t i = 0; i < NPAGES; i++)
		cr_assert(is_zero(i), "page %zu", i);
}

Test(fallback, lost_pages_stay_lost_under_another_protection)
{
	for_each_way(lost_and_protected);
}

static void
lost_in_a_system_call(void)
{
	const size_t n = lose_some(lost);

	cr_assert(gt(sz, n, 0), "nothing was in swap");
	for (size_t i = 0; i < NPAGES; i++) {
		if (lost[i])
			cr_assert(eq(int, (int)read_into(page_at(i)), -EFAULT), "page %zu", i);
	}
}

Test(fallback, a_lost_page_is_EFAULT_to_a_system_call)
{
	for_each_way(lost_in_a_system_call);
}
