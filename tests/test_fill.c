/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_fill.c: memory of other processes is filled, on the real kernel; and the record of a working set.
 */
#include "assertions.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fill.h"
#include "logged.h"
#include "pmap/uffd_abi.h"
#include "vmm.h"

TestSuite(fill, .timeout = 110);

#define N ((uint64_t)1024)
#define FC_FEATURES UFFD_FEATURE_EVENT_REMOVE
#define ALL_EVENTS                                                                         \
	(UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP | \
	 UFFD_FEATURE_EVENT_FORK)
#define SIGBUSES(n) ((int64_t)(n) << 32)

static char dir[] = "/tmp/test_fill.XXXXXX", path[64], record_path[80];
static struct memfile *source;
static struct fill *fill;
static struct vmm v;
static atomic_bool stopped, gone;

static const struct logger logger = { .fn = collect };

static void
on_notify(void *ctx, enum fill_event ev)
{
	(void)ctx;
	atomic_store(ev == FILL_GONE ? &gone : &stopped, true);
}

static bool
is_set(void *arg)
{
	return atomic_load((atomic_bool *)arg);
}

static void
down(void)
{
	if (v.pid > 0)
		vmm_stop(&v);
	fill_destroy(fill);
	fill = NULL;
	memfile_unref(source);
	source = NULL;
	unlink(path);
	unlink(record_path);
	rmdir(dir);
}

static void
file(uint64_t npages)
{
	cr_assert(mkdtemp(dir) != NULL);
	snprintf(path, sizeof path, "%s/memfile", dir);
	snprintf(record_path, sizeof record_path, "%s.ws", path);
	vmm_make_file(path, npages);
	cr_assert(zero(int, memfile_open(&source, path, &logger)), "%s", logged);
}

static void
filler(bool working_set, uint64_t mask)
{
	const struct fill_config cfg = {
		.name = "vm",
		.log = logger,
		.notify = on_notify,
		.pidfd = (int)syscall(SYS_pidfd_open, v.pid, 0),
		.working_set = working_set ? source : NULL,
		.record_ms = 100000,
		.call_mask = mask,
	};

	stopped = gone = false;
	cr_assert(zero(int, fill_create(&fill, &cfg)));
}

static int
add(unsigned flags, uint32_t page_size)
{
	const struct fill_range range = {
		.start = v.address,
		.len = v.npages * VMM_PAGE,
		.page_size = page_size,
		.source = source,
	};
	const int r = fill_add(fill, v.uffd, &range, 1, flags, 0);

	if (r == 0)
		v.uffd = -1;
	return r;
}

/* A process with the memory of a file of as many pages, served. */
static void
up_masked(uint64_t npages, uint64_t features, uint64_t mask)
{
	const struct vmm_config cfg = { .npages = npages, .features = features };

	file(npages);
	vmm_start(&v, &cfg);
	filler(false, mask);
	cr_assert(zero(int, add(0, PAGE_SIZE)));
}

static void
up(uint64_t npages, uint64_t features)
{
	up_masked(npages, features, 0);
}

static struct session_counts
counts(void)
{
	struct session_counts c;

	fill_counts(fill, &c);
	return c;
}

struct want {
	enum up_fault_kind kind;
	uint64_t n;
};

static size_t
ranges(void)
{
	json_t *map = fill_map(fill);
	const size_t n = json_array_size(map);

	json_decref(map);
	return n;
}

static bool
has_served(void *arg)
{
	const struct want *w = arg;

	return counts().faults[w->kind] == w->n;
}

/* A fault is counted after who waited has gone on. */
static void
served(enum up_fault_kind kind, uint64_t n)
{
	struct want w = { kind, n };

	vmm_until(has_served, &w, VMM_DEADLINE_MS, "as many faults as there should be");
}

#define VERIFIES(first, n) cr_assert(zero(i64, vmm_do(&v, VMM_VERIFY, first, n, 0)), "%s", logged)

Test(fill, every_page_holds_what_the_file_has, .fini = down)
{
	struct session_counts c;
	json_t *map;

	up(N, FC_FEATURES);
	VERIFIES(0, N);
	served(UP_FAULT_MAJOR, N);
	c = counts();
	cr_assert(eq(u64, c.mapped, N * VMM_PAGE));
	cr_assert(eq(u64, c.resident, N * VMM_PAGE));
	cr_assert(zero(u64, fill_missing(fill)));
	cr_assert(gt(u64, c.p50_ns, 0));
	map = fill_map(fill);
	cr_assert(eq(sz, json_array_size(map), 1));
	cr_assert(eq(str,
		     (char *)(uintptr_t)json_string_value(
			     json_object_get(json_array_get(map, 0), "strip")),
		     "9999999999999999999999999999999999999999999999999999999999999999"));
	json_decref(map);
}

Test(fill, threads_that_want_the_same_pages_all_go_on, .fini = down)
{
	up(N, FC_FEATURES);
	cr_assert(zero(i64, vmm_do(&v, VMM_THREADS, 0, N, 8)));
	served(UP_FAULT_MAJOR, N);
}

Test(fill, pages_of_2_mib, .fini = down)
{
	const struct vmm_config cfg = { .npages = 2048, .features = FC_FEATURES, .huge = true };

	file(2048);
	vmm_start(&v, &cfg);
	filler(false, 0);
	cr_assert(zero(int, add(0, FILL_HUGE)));
	VERIFIES(0, 2048);
	served(UP_FAULT_MAJOR, 4);
	cr_assert(zero(i64, vmm_do(&v, VMM_REMOVE, 512, 512, 0)));
	cr_assert(zero(i64, vmm_do(&v, VMM_ZEROS, 512, 512, 0)));
	VERIFIES(1024, 1024);
}

Test(fill, what_is_removed_is_zeros_and_can_be_written, .fini = down)
{
	up(N, FC_FEATURES);
	VERIFIES(0, 20);
	/* Pages that were there and pages that never were. */
	cr_assert(zero(i64, vmm_do(&v, VMM_REMOVE, 10, 20, 0)));
	cr_assert(zero(i64, vmm_do(&v, VMM_ZEROS, 10, 20, 0)));
	VERIFIES(0, 10);
	VERIFIES(30, 10);
	cr_assert(zero(i64, vmm_do(&v, VMM_WRITE, 15, 5, 7)));
	cr_assert(zero(i64, vmm_do(&v, VMM_REMOVE, 17, 1, 0)));
	cr_assert(zero(i64, vmm_do(&v, VMM_WRITTEN, 15, 2, 7)));
	cr_assert(zero(i64, vmm_do(&v, VMM_ZEROS, 17, 1, 0)));
	cr_assert(zero(i64, vmm_do(&v, VMM_WRITTEN, 18, 2, 7)));
	served(UP_FAULT_ZERO, 21);
	cr_assert(eq(u64, counts().resident, 40 * VMM_PAGE));
}

Test(fill, pages_thrown_out_without_a_word_are_zeros, .fini = down)
{
	up(N, 0);
	VERIFIES(0, 20);
	cr_assert(zero(i64, vmm_do(&v, VMM_REMOVE, 0, 20, 0)));
	cr_assert(zero(i64, vmm_do(&v, VMM_ZEROS, 0, 20, 0)));
	VERIFIES(20, 20);
}

Test(fill, removing_and_faulting_at_once, .fini = down)
{
	up(N, FC_FEATURES);
	cr_assert(zero(i64, vmm_do(&v, VMM_STORM, 0, 0, 3000)), "%s", logged);
}

Test(fill, what_is_unmapped_is_forgotten, .fini = down)
{
	up(N, ALL_EVENTS);
	VERIFIES(0, 20);
	cr_assert(zero(i64, vmm_do(&v, VMM_UNMAP, 10, 100, 0)));
	VERIFIES(0, 10);
	VERIFIES(110, N - 110);
	served(UP_FAULT_MAJOR, N - 90);
	cr_assert(eq(u64, counts().mapped, (N - 100) * VMM_PAGE));
	cr_assert(eq(u64, counts().resident, (N - 100) * VMM_PAGE));
}

Test(fill, what_is_moved_is_filled_where_it_is_now, .fini = down)
{
	up(N, ALL_EVENTS);
	VERIFIES(0, 20);
	cr_assert(zero(i64, vmm_do(&v, VMM_MOVE, 0, 0, 0)));
	VERIFIES(0, N);
	served(UP_FAULT_MAJOR, N);
	cr_assert(eq(u64, counts().mapped, N * VMM_PAGE));
}

Test(fill, a_child_of_the_client_is_served_too, .fini = down)
{
	up(N, ALL_EVENTS);
	VERIFIES(0, 20);
	cr_assert(zero(i64, vmm_do(&v, VMM_REMOVE, N - 1, 1, 0)));
	cr_assert(zero(i64, vmm_do(&v, VMM_FORK, 0, N - 1, 0)), "%s", logged);
	VERIFIES(0, N - 1);
	/* 20 pages were there before the child was. */
	served(UP_FAULT_MAJOR, 2 * (N - 1) - 20);
}

static bool
has_lost(void *arg)
{
	return counts().lost == *(uint64_t *)arg;
}

Test(fill, children_that_have_ended_hold_nothing, .fini = down)
{
	unsigned descriptors;

	up(N, ALL_EVENTS);
	descriptors = vmm_descriptors();
	for (unsigned i = 0; i < FILL_SPACES_MAX + 20; i++)
		cr_assert(zero(i64, vmm_do(&v, VMM_FORK, i % N, 1, 0)), "child %u: %s", i, logged);
	VERIFIES(0, N);
	cr_assert(le(uint, vmm_descriptors(), descriptors + 3));
	cr_assert(le(sz, ranges(), 3));
}

static void
is_cut_short(uint64_t mask)
{
	up_masked(N, FC_FEATURES, mask);
	VERIFIES(0, 20);
	/* In the middle of page 500: not even that one is half zeros. */
	cr_assert(zero(int, truncate(path, 500 * VMM_PAGE + 100)));
	VERIFIES(0, 500);
	cr_assert(eq(i64, vmm_do(&v, VMM_VERIFY, 490, 20, 0), SIGBUSES(10)));
	cr_assert(eq(i64, vmm_do(&v, VMM_VERIFY, 500, 10, 0), SIGBUSES(10)));
	vmm_until(has_lost, &(uint64_t){ 10 }, VMM_DEADLINE_MS, "as many pages lost");
	cr_assert(has_logged("vm: page at"), "%s", logged);
	cr_assert(has_logged("cut short"), "%s", logged);
}

Test(fill, pages_behind_the_end_of_the_file_are_sigbus, .fini = down)
{
	is_cut_short(0);
	cr_assert(zero(i64, vmm_do(&v, VMM_REMOVE, 505, 1, 0)));
	cr_assert(zero(i64, vmm_do(&v, VMM_ZEROS, 505, 1, 0)));
}

Test(fill, pages_behind_the_end_of_the_file_are_sigbus_without_poison, .fini = down)
{
	is_cut_short(FILL_NO_POISON);
}

Test(fill, a_message_that_somebody_else_has_read_is_asked_again, .fini = down)
{
	const struct vmm_config cfg = { .npages = N, .features = FC_FEATURES };
	struct uffd_msg msg;
	struct pollfd p;

	file(N);
	vmm_start(&v, &cfg);
	filler(false, 0);
	vmm_ask(&v, VMM_VERIFY, 0, 10, 0);
	p = (struct pollfd){ .fd = v.uffd, .events = POLLIN };
	cr_assert(eq(int, poll(&p, 1, VMM_DEADLINE_MS), 1));
	cr_assert(eq(i64, read(v.uffd, &msg, sizeof msg), sizeof msg));
	cr_assert(zero(int, add(0, PAGE_SIZE)));
	cr_assert(zero(i64, vmm_answer(&v)));
}

static void
ends(enum fill_end how, int64_t want)
{
	up(N, FC_FEATURES);
	VERIFIES(0, 20);
	cr_assert(zero(i64, vmm_do(&v, VMM_REMOVE, 10, 5, 0)));
	fill_stop(fill, how, VMM_DEADLINE_MS);
	vmm_until(is_set, &stopped, VMM_DEADLINE_MS, "stopped");
	fill_destroy(fill);
	fill = NULL;
	VERIFIES(0, 10);
	cr_assert(zero(i64, vmm_do(&v, VMM_ZEROS, 10, 5, 0)));
	VERIFIES(15, 5);
	cr_assert(eq(i64, vmm_do(&v, VMM_VERIFY, 20, N - 20, 0), want));
	/* Nobody waits for us, and removed pages are zeros without us. */
	cr_assert(zero(i64, vmm_do(&v, VMM_REMOVE, 0, N, 0)));
	cr_assert(zero(i64, vmm_do(&v, VMM_ZEROS, 0, N, 0)));
}

Test(fill, who_is_not_served_any_more_gets_sigbus_not_zeros, .fini = down)
{
	ends(FILL_END_POISON, SIGBUSES(N - 20));
	cr_assert(has_logged("1004 pages that it did not have yet are SIGBUS"), "%s", logged);
}

Test(fill, who_is_not_served_any_more_can_get_all_first, .fini = down)
{
	ends(FILL_END_FILL, 0);
}

Test(fill, a_client_that_is_gone_is_noticed, .fini = down)
{
	up(N, FC_FEATURES);
	VERIFIES(0, 20);
	cr_assert(fill_alive(fill));
	vmm_stop(&v);
	v.pid = 0;
	cr_assert(not(fill_alive(fill)));
	fill_stop(fill, FILL_END_POISON, 0);
	vmm_until(is_set, &stopped, 1000, "stopped");
}

Test(fill, what_makes_no_sense_is_refused, .fini = down)
{
	const struct vmm_config cfg = { .npages = N, .features = FC_FEATURES };
	struct fill_range r[2];
	int pair[2];

	file(N);
	vmm_start(&v, &cfg);
	filler(false, 0);
	r[0] = (struct fill_range){ v.address, 16 * VMM_PAGE, 0, PAGE_SIZE, source, false };
	r[1] = (struct fill_range){
		v.address + 15 * VMM_PAGE, 16 * VMM_PAGE, 0, PAGE_SIZE, source, false
	};
	cr_assert(eq(int, fill_add(fill, v.uffd, r, 2, 0, 0), -EINVAL), "they overlap");
	cr_assert(eq(int, fill_add(fill, v.uffd, r, 0, 0, 0), -EINVAL), "nothing");
	r[0].offset = (N - 15) * VMM_PAGE;
	cr_assert(eq(int, fill_add(fill, v.uffd, r, 1, 0, 0), -EINVAL),
		  "behind the end of the file");
	r[0].offset = 100;
	cr_assert(eq(int, fill_add(fill, v.uffd, r, 1, 0, 0), -EINVAL), "misaligned");
	r[0].offset = 0;
	r[0].page_size = 8192;
	cr_assert(eq(int, fill_add(fill, v.uffd, r, 1, 0, 0), -EINVAL), "no such pages");
	r[0].page_size = PAGE_SIZE;
	r[0].start = UINT64_MAX - PAGE_SIZE + 1;
	cr_assert(eq(int, fill_add(fill, v.uffd, r, 1, 0, 0), -EINVAL), "wraps");
	r[0].start = v.address;
	cr_assert(zero(int, pipe2(pair, O_CLOEXEC)));
	cr_assert(eq(int, fill_add(fill, pair[0], r, 1, 0, 0), -EINVAL), "no userfaultfd");
	cr_assert(zero(int, add(0, PAGE_SIZE)));
	VERIFIES(0, N);
}

Test(fill, clients_of_a_file_share_it, .fini = down)
{
	struct memfile *again;
	char other[80];

	file(16);
	snprintf(other, sizeof other, "%s/../%s/memfile", dir, strrchr(dir, '/') + 1);
	cr_assert(zero(int, memfile_open(&again, other, &logger)));
	cr_assert(eq(ptr, again, source));
	memfile_unref(again);
	cr_assert(eq(int, memfile_open(&again, dir, &logger), -EINVAL));
	cr_assert(eq(int, memfile_open(&again, "/nonexistent", &logger), -ENOENT));
}

/* --- what it costs --- */

#define ROUNDS 5
#define MEDIAN 2

struct bare {
	struct memfile *s;
	struct vmm *v;
	int uffd;
};

/* What every pager pays at least. */
static void *
bare_loop(void *arg)
{
	struct bare *b = arg;
	struct uffd_msg msg;

	for (;;) {
		struct pollfd p = { .fd = b->uffd, .events = POLLIN };
		uint64_t at, done;

		if (poll(&p, 1, -1) <= 0 || read(b->uffd, &msg, sizeof msg) != sizeof msg)
			continue;
		at = msg.arg.pagefault.address & ~(uint64_t)PAGE_MASK;
		if (foreign_copy(b->uffd, at, b->s->map + (at - b->v->address), PAGE_SIZE, false,
				 &done) < 0)
			break;
	}
	return NULL;
}

/* The median and the 99th percentile of a touch. */
static int64_t
bare(void)
{
	const struct vmm_config cfg = { .npages = 4096, .features = FC_FEATURES };
	struct bare b = { .s = source, .v = &v };
	pthread_t t;
	int64_t r;

	vmm_start(&v, &cfg);
	b.uffd = v.uffd;
	cr_assert(zero(int, pthread_create(&t, NULL, bare_loop, &b)));
	r = vmm_do(&v, VMM_TIME, 0, 4096, 0);
	pthread_cancel(t);
	pthread_join(t, NULL);
	vmm_stop(&v);
	return r;
}

static int64_t
ours(void)
{
	const struct vmm_config cfg = { .npages = 4096, .features = FC_FEATURES };
	int64_t r;

	vmm_start(&v, &cfg);
	filler(false, 0);
	cr_assert(zero(int, add(0, PAGE_SIZE)));
	r = vmm_do(&v, VMM_TIME, 0, 4096, 0);
	vmm_stop(&v);
	fill_destroy(fill);
	fill = NULL;
	return r;
}

static int
by_value(const void *a, const void *b)
{
	return *(const int64_t *)a < *(const int64_t *)b ? -1 : 1;
}

/* Told, not asserted: who else runs here is not known. */
Test(fill, what_a_fault_costs_is_told, .fini = down)
{
	int64_t b[ROUNDS], o[ROUNDS], r;
	int64_t b99 = 0, o99 = 0;

	file(4096);
	bare();
	for (unsigned i = 0; i < ROUNDS; i++) {
		r = bare();
		b[i] = r & UINT32_MAX;
		b99 += (r >> 32) / ROUNDS;
		r = ours();
		o[i] = r & UINT32_MAX;
		o99 += (r >> 32) / ROUNDS;
	}
	v.pid = 0;
	qsort(b, ROUNDS, sizeof *b, by_value);
	qsort(o, ROUNDS, sizeof *o, by_value);
	fprintf(stderr,
		"a page of 4 KiB filled: bare poll and COPY p50 %d ns, p99 %d ns; ours p50 %d ns, p99 %d ns: %.2fx\n",
		(int)b[MEDIAN], (int)b99, (int)o[MEDIAN], (int)o99,
		(double)o[MEDIAN] / (double)b[MEDIAN]);
}

/* --- the record --- */

static const struct file_identity some_file = { 100 * 4096, 17, 1700000000, 5 };

static void
make(struct working_set *ws, const struct working_set *also, const unsigned *pages, size_t n)
{
	_Atomic uint64_t bits[2] = { 0 };

	for (size_t i = 0; i < n; i++)
		bits[pages[i] / 64] |= UINT64_C(1) << pages[i] % 64;
	cr_assert(zero(int, working_set_make(ws, bits, 100, also)));
}

static void
in_a_directory(void)
{
	cr_assert(mkdtemp(dir) != NULL);
	snprintf(record_path, sizeof record_path, "%s/x.ws", dir);
}

static void
saved(void)
{
	const unsigned pages[] = { 0, 1, 2, 63, 64, 70, 99 };
	struct working_set ws;

	in_a_directory();
	make(&ws, NULL, pages, ARRAY_SIZE(pages));
	cr_assert(zero(int, working_set_save(record_path, &some_file, &ws)));
	working_set_free(&ws);
}

Test(fill, a_working_set_is_read_as_it_was_written, .init = saved, .fini = down)
{
	const struct working_set_run want[] = { { 0, 3 }, { 63, 2 }, { 70, 1 }, { 99, 1 } };
	struct working_set ws;

	cr_assert(zero(int, working_set_load(record_path, &some_file, &ws)));
	cr_assert(eq(sz, ws.n, ARRAY_SIZE(want)));
	cr_assert(zero(int, memcmp(ws.run, want, sizeof want)));
	cr_assert(eq(u64, ws.pages, 7));
	working_set_free(&ws);
}

Test(fill, a_working_set_is_joined_with_what_was_known)
{
	const unsigned one[] = { 5, 6, 80 }, two[] = { 4, 7, 90 };
	const struct working_set_run want[] = { { 4, 4 }, { 80, 1 }, { 90, 1 } };
	struct working_set a, b;

	make(&a, NULL, one, ARRAY_SIZE(one));
	make(&b, &a, two, ARRAY_SIZE(two));
	cr_assert(eq(sz, b.n, ARRAY_SIZE(want)));
	cr_assert(zero(int, memcmp(b.run, want, sizeof want)));
	working_set_free(&a);
	working_set_free(&b);
}

Test(fill, a_working_set_of_a_file_that_has_changed_is_ignored, .init = saved, .fini = down)
{
	struct file_identity id[4] = { some_file, some_file, some_file, some_file };
	struct working_set ws;

	id[0].size += 4096;
	id[1].inode++;
	id[2].mtime_s++;
	id[3].mtime_ns++;
	for (size_t i = 0; i < 4; i++) {
		cr_assert(eq(int, working_set_load(record_path, &id[i], &ws), -ESTALE));
		cr_assert(zero(sz, ws.n));
	}
}

Test(fill, a_working_set_that_is_broken_in_any_byte_is_ignored, .init = saved, .fini = down)
{
	struct working_set ws;
	unsigned char byte, old;
	struct stat st;
	const int fd = open(record_path, O_RDWR | O_CLOEXEC);

	cr_assert(zero(int, fstat(fd, &st)));
	for (off_t i = 0; i < st.st_size; i++) {
		cr_assert(eq(i64, pread(fd, &old, 1, i), 1));
		byte = old ^ 0x10;
		cr_assert(eq(i64, pwrite(fd, &byte, 1, i), 1));
		cr_assert(lt(int, working_set_load(record_path, &some_file, &ws), 0), "byte %d",
			  (int)i);
		cr_assert(eq(i64, pwrite(fd, &old, 1, i), 1));
	}
	for (off_t len = st.st_size; len-- > 0;) {
		cr_assert(zero(int, ftruncate(fd, len)));
		cr_assert(eq(int, working_set_load(record_path, &some_file, &ws), -EBADMSG));
	}
	close(fd);
	unlink(record_path);
	cr_assert(eq(int, working_set_load(record_path, &some_file, &ws), -ENOENT));
}
