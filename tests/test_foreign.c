/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_foreign.c: munmap(), mremap() and madvise() behind the library's back (UP_TRACK_FOREIGN), on the real kernel.
 *
 * Every page holds its own word, a pattern made of a number that is the page's; so memory that is somebody else's is found
 * out by its content.  Every test runs in a process of its own with an alarm.
 */
#include "assertions.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "uffd_pager.h"

TestSuite(foreign, .timeout = 120);

#define P UP_PAGE_SIZE
#define MIB ((size_t)1 << 20)
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

static char last_log[512];

static void
log_fn(void *ctx, enum up_log_level level, const char *line)
{
	(void)ctx;
	if (level < UP_LOG_INFO)
		snprintf(last_log, sizeof last_log, "%s", line);
	if (getenv("FOREIGN_LOG") != NULL)
		fprintf(stderr, "log %d: %s\n", (int)level, line);
}

static struct up_runtime *
create(uint64_t mask, unsigned services)
{
	const struct up_config cfg = {
		.memory_limit = 4 * MIB,
		.service_threads = services,
		.swap_size = 256 * MIB,
		.feature_mask = mask,
		.fault_timeout_ms = 10000,
		.flags = UP_TRACK_FOREIGN,
		.log = log_fn,
	};
	struct up_runtime *rt;
	const int r = up_runtime_create(&rt, &cfg);

	if (r == -ENOSYS || r == -EPERM) {
		fprintf(stderr, "skipped: %s\n", last_log);
		exit(0);
	}
	cr_assert(r == 0, "up_runtime_create: %s: %s", strerrorname_np(-r), last_log);
	alarm(100);
	return rt;
}

static char *
map(struct up_runtime *rt, size_t npages)
{
	void *p;
	const int r = up_map(rt, NULL, npages * P, PROT_READ | PROT_WRITE, UP_PRIVATE, NULL, 0, &p);

	cr_assert(r == 0, "up_map: %s: %s", strerrorname_np(-r), last_log);
	return p;
}

static uint64_t
word(size_t page, uint64_t salt)
{
	return (page + 1) * UINT64_C(0x9e3779b97f4a7c15) ^ salt;
}

static void
put(char *p, size_t page, uint64_t value)
{
	for (size_t i = 0; i < P; i += 512)
		*(volatile uint64_t *)(p + page * P + i) = value;
}

/* The word of a page; all its copies in it agree. */
static uint64_t
get(const char *p, size_t page)
{
	const uint64_t value = *(const volatile uint64_t *)(p + page * P);

	for (size_t i = 512; i < P; i += 512)
		if (*(const volatile uint64_t *)(p + page * P + i) != value)
			cr_fatal("page %zu is not of one piece", page);
	return value;
}

static void
fill(char *p, size_t from, size_t to, uint64_t salt)
{
	for (size_t i = from; i < to; i++)
		put(p, i, word(i, salt));
}

static void
expect(const char *p, size_t from, size_t to, size_t shift, uint64_t salt)
{
	for (size_t i = from; i < to; i++)
		cr_assert(get(p, i) == word(i + shift, salt), "page %zu holds %#lx", i,
			  (unsigned long)get(p, i));
}

static void
expect_zeros(const char *p, size_t from, size_t to)
{
	for (size_t i = from; i < to; i++)
		cr_assert(get(p, i) == 0, "page %zu holds %#lx", i, (unsigned long)get(p, i));
}

static sigjmp_buf away;

static void
on_signal(int sig)
{
	siglongjmp(away, sig);
}

/* Touch: 0, or the signal. */
static int
touch(char *p)
{
	struct sigaction sa = { .sa_handler = on_signal }, bus, segv;
	int sig;

	sigaction(SIGBUS, &sa, &bus);
	sigaction(SIGSEGV, &sa, &segv);
	sig = sigsetjmp(away, 1);
	if (sig == 0)
		*(volatile char *)p;
	sigaction(SIGBUS, &bus, NULL);
	sigaction(SIGSEGV, &segv, NULL);
	return sig;
}

static struct up_stats
stats(struct up_runtime *rt)
{
	struct up_stats st;

	/* Every call that changes mappings sees to what happened before it, also one that changes none. */
	cr_assert(up_unmap(rt, (void *)(16 * (uintptr_t)P), P) == 0);
	up_stats_get(rt, &st, sizeof st);
	cr_assert(le(u64, st.used_max, st.limit));
	return st;
}

/* The region is far larger than memory, so it has pages in every state. */
static void
madvise_reads_as_zeros(uint64_t mask)
{
	struct up_runtime *rt = create(mask, 1);
	const size_t n = 4096;
	char *p = map(rt, n);

	fill(p, 0, n, 1);
	cr_assert(madvise(p + 100 * P, 1000 * P, MADV_DONTNEED) == 0);
	cr_assert(madvise(p + (n - 50) * P, 50 * P, MADV_DONTNEED) == 0);
	expect(p, 0, 100, 0, 1);
	expect_zeros(p, 100, 1100);
	expect(p, 1100, n - 50, 0, 1);
	expect_zeros(p, n - 50, n);
	for (size_t i = 0; i < n; i++) {
		put(p, i, word(i, 2));
		if (i % 3 == 0) {
			cr_assert(madvise(p + i * P, P, MADV_DONTNEED) == 0);
			cr_assert(get(p, i) == 0);
		}
	}
	for (size_t i = 0; i < n; i++)
		cr_assert(get(p, i) == (i % 3 == 0 ? 0 : word(i, 2)), "page %zu", i);
	cr_assert(gt(u64, stats(rt).foreign_events, 1000));
	cr_assert(madvise(p, n * P, MADV_DONTNEED) == 0);
	cr_assert(up_unmap(rt, p, n * P) == 0);
	up_runtime_destroy(rt);
}

Test(foreign, madvise_reads_as_zeros)
{
	madvise_reads_as_zeros(0);
}

Test(foreign, madvise_reads_as_zeros_by_the_system_call)
{
	madvise_reads_as_zeros(UP_MASK_DEV_UFFD);
}

static void
munmap_clips_what_is_mapped(uint64_t mask)
{
	struct up_runtime *rt = create(mask, 2);
	const size_t n = 4096;
	char *p = map(rt, n), *q = map(rt, n);
	struct up_stats st;

	fill(p, 0, n, 1);
	fill(q, 0, n, 2);
	cr_assert(munmap(p + 1000 * P, 500 * P) == 0);
	cr_assert(munmap(q, 10 * P) == 0);
	cr_assert(munmap(q + (n - 10) * P, 10 * P) == 0);
	cr_assert(touch(p + 1200 * P) == SIGSEGV);
	expect(p, 0, 1000, 0, 1);
	expect(p, 1500, n, 0, 1);
	expect(q, 10, n - 10, 0, 2);
	cr_assert(up_advise(rt, p, n * P, UP_ADVICE_COLD) == -ENOMEM);
	st = stats(rt);
	cr_assert(eq(u64, st.mapped, (2 * n - 520) * P));
	cr_assert(eq(u64, st.entries, 3));
	/* What takes its place is none of our business. */
	char *other = mmap(p + 1000 * P, 500 * P, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	cr_assert(other == p + 1000 * P);
	fill(other, 0, 500, 3);
	cr_assert(up_unmap(rt, p, n * P) == 0);
	expect(other, 0, 500, 0, 3);
	munmap(other, 500 * P);
	cr_assert(munmap(q, n * P) == 0);
	st = stats(rt);
	cr_assert(eq(u64, st.mapped, 0));
	cr_assert(eq(u64, st.objects, 0));
	cr_assert(eq(u64, st.resident + st.staged + st.swapped, 0));
	up_runtime_destroy(rt);
}

Test(foreign, munmap_clips_what_is_mapped)
{
	munmap_clips_what_is_mapped(0);
}

Test(foreign, munmap_clips_what_is_mapped_by_the_system_call)
{
	munmap_clips_what_is_mapped(UP_MASK_DEV_UFFD);
}

static void
mremap_takes_the_pages_along(uint64_t mask)
{
	struct up_runtime *rt = create(mask, 2);
	const size_t n = 4096;
	char *p = map(rt, n), *q, *r;

	fill(p, 0, n, 1);
	/* A part of it. */
	q = mremap(p + 1000 * P, 2000 * P, 2000 * P, MREMAP_MAYMOVE | MREMAP_FIXED,
		   mmap(NULL, 2000 * P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	cr_assert(q != MAP_FAILED);
	expect(q, 0, 2000, 1000, 1);
	expect(p, 0, 1000, 0, 1);
	expect(p, 3000, n, 0, 1);
	cr_assert(touch(p + 1500 * P) == SIGSEGV);
	/* Shorter, and then longer than there is room for. */
	cr_assert(mremap(q, 2000 * P, 1500 * P, 0) == q);
	r = mremap(q, 1500 * P, 3000 * P, MREMAP_MAYMOVE);
	cr_assert(r != MAP_FAILED);
	expect(r, 0, 1500, 1000, 1);
	if (!(mask & UP_MASK_POISON)) {
		cr_assert(touch(r + 2000 * P) == SIGBUS);
		cr_assert(touch(r + 2999 * P) == SIGBUS);
	} else {
		cr_assert(touch(r + 2000 * P) == SIGSEGV);
	}
	fill(r, 0, 1500, 7);
	expect(r, 0, 1500, 0, 7);
	/* On top of another part of ours. */
	q = mremap(p + 3000 * P, 500 * P, 500 * P, MREMAP_MAYMOVE | MREMAP_FIXED, r + 100 * P);
	cr_assert(q == r + 100 * P);
	expect(r, 0, 100, 0, 7);
	expect(q, 0, 500, 3000, 1);
	expect(r, 600, 1500, 0, 7);
	cr_assert(eq(u64, stats(rt).mapped, (n - 2000 - 500 + 1500) * P));
	cr_assert(up_unmap(rt, r, 1500 * P) == 0);
	munmap(r, 3000 * P);
	cr_assert(up_unmap(rt, p, n * P) == 0);
	up_runtime_destroy(rt);
}

Test(foreign, mremap_takes_the_pages_along)
{
	mremap_takes_the_pages_along(0);
}

Test(foreign, mremap_takes_the_pages_along_by_the_system_call)
{
	mremap_takes_the_pages_along(UP_MASK_DEV_UFFD);
}

Test(foreign, the_range_that_DONTUNMAP_leaves_behind_is_SIGBUS)
{
	struct up_runtime *rt = create(0, 1);
	const size_t n = 2048;
	char *p = map(rt, n), *q;

	fill(p, 0, n, 1);
	q = mremap(p, n * P, n * P, MREMAP_MAYMOVE | 4 /* MREMAP_DONTUNMAP */, NULL);
	cr_assert(q != MAP_FAILED);
	expect(q, 0, n, 0, 1);
	cr_assert(touch(p + 5 * P) == SIGBUS);
	munmap(p, n * P);
	expect(q, 0, n, 0, 1);
	cr_assert(up_unmap(rt, q, n * P) == 0);
	up_runtime_destroy(rt);
}

Test(foreign, a_clone_does_not_see_what_the_original_discards)
{
	struct up_runtime *rt = create(0, 2);
	const size_t n = 2048;
	char *p = map(rt, n);
	void *q;

	fill(p, 0, n, 1);
	cr_assert(up_clone(rt, p, n * P, &q) == 0);
	cr_assert(madvise(p + 100 * P, 900 * P, MADV_DONTNEED) == 0);
	cr_assert(madvise((char *)q + 500 * P, 1000 * P, MADV_DONTNEED) == 0);
	expect_zeros(p, 100, 1000);
	expect(p, 1000, n, 0, 1);
	expect(q, 0, 500, 0, 1);
	expect_zeros(q, 500, 1500);
	expect(q, 1500, n, 0, 1);
	cr_assert(munmap(p, n * P) == 0);
	expect(q, 1500, n, 0, 1);
	cr_assert(munmap(q, n * P) == 0);
	cr_assert(eq(u64, stats(rt).objects, 0));
	up_runtime_destroy(rt);
}

Test(foreign, wired_pages_read_as_zeros_and_stay_wired)
{
	struct up_runtime *rt = create(0, 1);
	char *p = map(rt, 64);

	cr_assert(up_wire(rt, p, 64 * P) == 0);
	fill(p, 0, 64, 1);
	cr_assert(madvise(p, 32 * P, MADV_DONTNEED) == 0);
	expect_zeros(p, 0, 32);
	expect(p, 32, 64, 0, 1);
	cr_assert(eq(u64, stats(rt).wired, 64 * P));
	cr_assert(munmap(p, 10 * P) == 0);
	cr_assert(up_unwire(rt, p + 10 * P, 54 * P) == 0);
	cr_assert(eq(u64, stats(rt).wired, 0));
	cr_assert(up_unmap(rt, p, 64 * P) == 0);
	up_runtime_destroy(rt);
}

Test(foreign, of_a_shared_object_what_is_taken_is_SIGBUS_and_the_rest_stays)
{
	struct up_runtime *rt = create(0, 1);
	const size_t n = 2048;
	struct up_object *o;
	size_t lost = 0;
	void *p;

	cr_assert(up_object_create_anon(rt, n * P, 0, &o) == 0);
	cr_assert(up_map(rt, NULL, n * P, PROT_READ | PROT_WRITE, UP_SHARED, o, 0, &p) == 0);
	fill(p, 0, n, 1);
	cr_assert(munmap(p, n * P) == 0);
	cr_assert(up_map(rt, NULL, n * P, PROT_READ | PROT_WRITE, UP_SHARED, o, 0, &p) == 0);
	for (size_t i = 0; i < n; i++) {
		const int sig = touch((char *)p + i * P);

		cr_assert(sig == 0 || sig == SIGBUS);
		if (sig == 0)
			cr_assert(get(p, i) == word(i, 1), "page %zu", i);
		lost += sig != 0;
	}
	cr_assert(lost > 0 && lost < n, "%zu pages are lost", lost);
	cr_assert(strstr(last_log, "are lost") != NULL, "%s", last_log);
	cr_assert(up_unmap(rt, p, n * P) == 0);
	up_object_unref(o);
	up_runtime_destroy(rt);
}

Test(foreign, a_file_keeps_what_was_written_back)
{
	struct up_runtime *rt = create(0, 1);
	const size_t n = 1024;
	const int fd = memfd_create("foreign", 0);
	struct up_object *o;
	uint64_t w;
	void *p;

	cr_assert(ftruncate(fd, (off_t)(n * P)) == 0);
	cr_assert(up_object_create_file(rt, fd, 0, 0, 0, &o) == 0);
	cr_assert(up_map(rt, NULL, n * P, PROT_READ | PROT_WRITE, UP_SHARED, o, 0, &p) == 0);
	fill(p, 0, n, 1);
	cr_assert(up_sync(rt, p, n * P, 0) == 0);
	cr_assert(madvise(p, 100 * P, MADV_DONTNEED) == 0);
	expect(p, 0, n, 0, 1);
	cr_assert(munmap((char *)p + 500 * P, 100 * P) == 0);
	expect(p, 0, 500, 0, 1);
	expect(p, 600, n, 0, 1);
	for (size_t i = 0; i < n; i++) {
		cr_assert(pread(fd, &w, sizeof w, (off_t)(i * P)) == sizeof w);
		cr_assert(w == word(i, 1));
	}
	cr_assert(up_unmap(rt, p, n * P) == 0);
	up_object_unref(o);
	up_runtime_destroy(rt);
	close(fd);
}

/* --- a storm --- */

#define THREADS 4
#define SLOT_PAGES 256
#define AREA ((size_t)16 << 30)

struct storm {
	struct up_runtime *rt;
	atomic_bool stop;
	atomic_ulong ops;
};

struct actor {
	struct storm *st;
	uint64_t rng;
	char *p; /* NULL: nothing is mapped */
	size_t n;
	uint64_t value[SLOT_PAGES]; /* the oracle; UNMAPPED: a hole */
	bool moves;
	char *area; /* addresses to move to, each of them once */
	size_t used;
	char *heap; /* memory that is not ours, at whatever addresses the kernel gives */
};

#define UNMAPPED UINT64_MAX

static uint64_t
rnd(struct actor *a, uint64_t n)
{
	a->rng ^= a->rng << 13;
	a->rng ^= a->rng >> 7;
	a->rng ^= a->rng << 17;
	return a->rng % n;
}

static void
check_page(struct actor *a, size_t i)
{
	const uint64_t got = get(a->p, i);

	cr_assert(got == a->value[i], "page %zu at %p holds %#lx, not %#lx", i,
		  (void *)(a->p + i * P), (unsigned long)got, (unsigned long)a->value[i]);
}

/* Some run of mapped pages; false: there is none. */
static bool
pick(struct actor *a, size_t *from, size_t *to)
{
	const size_t first = rnd(a, a->n);

	for (*from = first; a->value[*from] == UNMAPPED;) {
		*from = (*from + 1) % a->n;
		if (*from == first)
			return false;
	}
	*to = *from + 1;
	for (size_t most = 1 + rnd(a, 40); *to < a->n && *to - *from < most; ++*to) {
		if (a->value[*to] == UNMAPPED)
			break;
	}
	return true;
}

static void
plain_heap(struct actor *a)
{
	const size_t n = 16;

	if (a->heap != NULL) {
		for (size_t i = 0; i < n; i++)
			cr_assert(get(a->heap, i) == word(i, (uint64_t)a->heap),
				  "memory that is not paged was touched: page %zu of %p", i,
				  (void *)a->heap);
		munmap(a->heap, n * P);
	}
	a->heap = mmap(NULL, n * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cr_assert(a->heap != MAP_FAILED);
	fill(a->heap, 0, n, (uint64_t)a->heap);
}

/* In the holes others may have memory by now. */
static void
drop_all(struct actor *a, bool properly)
{
	for (size_t from = 0, to; from < a->n; from = to) {
		for (to = from + 1; to < a->n; to++) {
			if ((a->value[to] == UNMAPPED) != (a->value[from] == UNMAPPED))
				break;
		}
		if (a->value[from] == UNMAPPED)
			continue;
		if (properly)
			cr_assert(up_unmap(a->st->rt, a->p + from * P, (to - from) * P) == 0);
		else
			cr_assert(munmap(a->p + from * P, (to - from) * P) == 0);
	}
	a->p = NULL;
}

static void
act(struct actor *a)
{
	size_t from, to;
	void *p;
	int r;

	if (rnd(a, 8) == 0)
		plain_heap(a);
	if (a->p == NULL) {
		a->n = 1 + rnd(a, SLOT_PAGES);
		r = up_map(a->st->rt, NULL, a->n * P, PROT_READ | PROT_WRITE, UP_PRIVATE, NULL, 0,
			   &p);
		cr_assert(r == 0, "up_map: %s: %s", strerrorname_np(-r), last_log);
		a->p = p;
		memset(a->value, 0, sizeof a->value);
		return;
	}
	if (!pick(a, &from, &to)) {
		a->p = NULL;
		return;
	}
	switch (rnd(a, 40)) {
	case 0:
		drop_all(a, false);
		break;
	case 1:
		drop_all(a, true);
		break;
	case 2:
		cr_assert(munmap(a->p + from * P, (to - from) * P) == 0);
		for (size_t i = from; i < to; i++)
			a->value[i] = UNMAPPED;
		break;
	case 3:
	case 4:
		r = up_advise(a->st->rt, a->p + from * P, (to - from) * P, UP_ADVICE_DONTNEED);
		cr_assert(r == 0, "up_advise: %s: %s", strerrorname_np(-r), last_log);
		for (size_t i = from; i < to; i++)
			a->value[i] = 0;
		break;
	case 5:
	case 6:
	case 7: {
		/* The part becomes all that there is, where nothing of the library's has been. */
		char *q;

		if (!a->moves)
			break;
		q = mremap(a->p + from * P, (to - from) * P, (to - from) * P,
			   MREMAP_MAYMOVE | MREMAP_FIXED, a->area + a->used);
		/* The library may have split the mapping, and older kernels move only one. */
		if (q == MAP_FAILED)
			break;
		a->used += (to - from) * P;
		cr_assert(a->used + SLOT_PAGES * P < AREA);
		for (size_t i = 0; i < a->n; i++) {
			if (a->value[i] != UNMAPPED && (i < from || i >= to))
				cr_assert(munmap(a->p + i * P, P) == 0);
		}
		memmove(a->value, a->value + from, (to - from) * sizeof a->value[0]);
		a->p = q;
		a->n = to - from;
		break;
	}
	case 8:
	case 9:
	case 10:
	case 11:
	case 12:
		cr_assert(madvise(a->p + from * P, (to - from) * P, MADV_DONTNEED) == 0);
		for (size_t i = from; i < to; i++)
			a->value[i] = 0;
		break;
	case 13:
		r = up_advise(a->st->rt, a->p + from * P, (to - from) * P, UP_ADVICE_COLD);
		cr_assert(r == 0);
		break;
	default:
		for (size_t i = from; i < to; i++) {
			check_page(a, i);
			if (rnd(a, 2) == 0)
				continue;
			a->value[i] = word(i, a->rng);
			put(a->p, i, a->value[i]);
		}
		break;
	}
}

static void *
actor(void *arg)
{
	struct actor *a = arg;

	while (!atomic_load(&a->st->stop)) {
		act(a);
		atomic_fetch_add(&a->st->ops, 1);
	}
	for (size_t i = 0; a->p != NULL && i < a->n; i++) {
		if (a->value[i] != UNMAPPED)
			check_page(a, i);
	}
	if (a->heap != NULL)
		munmap(a->heap, 16 * P);
	return NULL;
}

/* Three actors at a time on one large region that is never unmapped, to press everything else out. */
static void *
presser(void *arg)
{
	struct storm *st = arg;
	const size_t n = 2048;
	char *p = map(st->rt, n);

	for (uint64_t round = 1; !atomic_load(&st->stop); round++) {
		for (size_t i = 0; i < n && !atomic_load(&st->stop); i++) {
			const uint64_t w = get(p, i);

			cr_assert(round == 1 ? w == 0 : w == word(i, round - 1),
				  "page %zu holds %#lx", i, (unsigned long)w);
			put(p, i, word(i, round));
		}
	}
	return NULL;
}

static void
storm(bool moves)
{
	struct storm st = { .rt = create(0, 2) };
	struct actor a[THREADS];
	pthread_t t[THREADS + 1];
	unsigned long before = 0;

	memset(a, 0, sizeof a);
	for (unsigned i = 0; i < THREADS; i++) {
		a[i].st = &st;
		a[i].rng = 88172645463325252u + i * 7919;
		a[i].moves = moves;
		a[i].area = mmap(NULL, AREA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
				 -1, 0);
		cr_assert(a[i].area != MAP_FAILED);
		pthread_create(&t[i], NULL, actor, &a[i]);
	}
	pthread_create(&t[THREADS], NULL, presser, &st);
	for (unsigned tick = 0, still = 0; tick < 40; tick++) {
		const unsigned long now = atomic_load(&st.ops);

		still = now == before ? still + 1 : 0;
		if (still == 80) {
			up_stats_print(st.rt, stderr);
			up_trace_print(st.rt, stderr);
			up_map_dump(st.rt, stderr);
		}
		cr_assert(still < 80, "nothing moves any more after %lu operations", now);
		tick -= still > 0 && tick == 39;
		before = now;
		usleep(100000);
	}
	atomic_store(&st.stop, true);
	for (unsigned i = 0; i <= THREADS; i++) {
		struct timespec ts;

		clock_gettime(CLOCK_REALTIME, &ts);
		ts.tv_sec += 30;
		cr_assert(pthread_timedjoin_np(t[i], NULL, &ts) == 0, "thread %u hangs", i);
	}
	cr_assert(gt(u64, stats(st.rt).foreign_events, 100));
	fprintf(stderr, "%lu operations, %lu events\n", atomic_load(&st.ops),
		(unsigned long)stats(st.rt).foreign_events);
	up_runtime_destroy(st.rt);
}

Test(foreign, storm_of_munmap_and_madvise)
{
	storm(false);
}

Test(foreign, storm_of_mremap_too)
{
	storm(true);
}

Test(foreign, what_can_not_be_tracked_is_refused)
{
	static const uint64_t without[] = { UP_MASK_MOVE, UP_MASK_POISON };
	struct up_runtime *rt = create(0, 1);
	void *p;

	cr_assert(up_map(rt, NULL, P, PROT_READ, UP_PRIVATE, NULL, 0, &p) == -ENOTSUP);
	p = map(rt, 64);
	fill(p, 0, 64, 1);
	cr_assert(up_protect(rt, p, 64 * P, PROT_READ) == -ENOTSUP);
	cr_assert(up_protect(rt, p, 64 * P, PROT_NONE) == 0);
	cr_assert(touch(p) == SIGSEGV);
	cr_assert(up_protect(rt, p, 64 * P, PROT_READ | PROT_WRITE) == 0);
	expect(p, 0, 64, 0, 1);
	cr_assert(up_unmap(rt, p, 64 * P) == 0);
	up_runtime_destroy(rt);
	for (size_t i = 0; i < ARRAY_LEN(without); i++) {
		const struct up_config cfg = {
			.memory_limit = 4 * MIB,
			.feature_mask = without[i],
			.flags = UP_TRACK_FOREIGN,
			.log = log_fn,
		};

		cr_assert(up_runtime_create(&rt, &cfg) == -ENOSYS);
	}
}
