/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_guest.c: memory of programs that do not know of us, taken out and brought back (lib/guest.h).
 *
 * The pager is this process, a guest is a child (vmm.h).  How much of it is in memory is seen from outside: blocks of its memfd.
 */
#include "assertions.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest.h"
#include "pmap/uffd_abi.h"
#include "runtime.h"
#include "serving.h"
#include "vmm.h"

TestSuite(guest, .timeout = 110);

#define LIMIT ((size_t)16 << 20)
#define N ((uint64_t)(4 * LIMIT / VMM_PAGE)) /* pages: four times as much as may be in memory */
#define SIGBUSES(n) ((int64_t)(n) << 32)

static char dir[] = "/tmp/test_guest.XXXXXX", file[64];
static struct up_runtime *rt;
static struct vmm *watched[4];
static unsigned nwatched;
static uint64_t most; /* bytes that were seen in memory at a time, of all watched */
static bool settled;  /* what they had before they came has been taken over */
static atomic_int ended;

static void
on_ended(void *ctx, uint64_t id, bool guest)
{
	(void)ctx;
	(void)id;
	(void)guest;
	atomic_fetch_add(&ended, 1);
}

static uint64_t
in_memory(const struct vmm *v)
{
	struct stat st;

	cr_assert(fstat(v->memfd, &st) == 0);
	return (uint64_t)st.st_blocks * 512;
}

static void
sample(void)
{
	struct up_stats st;
	uint64_t sum = 0;

	for (unsigned i = 0; i < nwatched; i++)
		sum += in_memory(watched[i]);
	if (settled && sum > most)
		most = sum;
	if (rt == NULL)
		return;
	up_stats_get(rt, &st, sizeof st);
	cr_assert(st.used <= st.limit, "%zu bytes used of %zu", (size_t)st.used, (size_t)st.limit);
	cr_assert(le(u64, settled ? sum : 0, LIMIT), "%zu KiB of guests are in memory, of %zu",
		  (size_t)(sum >> 10), LIMIT >> 10);
}

static void
up(void)
{
	cr_assert(mkdtemp(dir) != NULL);
	snprintf(file, sizeof file, "%s/memfile", dir);
	rt = serving_runtime(dir, LIMIT, on_ended);
	vmm_pump = sample;
	settled = true;
}

static bool
enough_ended(void *n)
{
	return atomic_load(&ended) >= *(int *)n;
}

struct amount {
	uint64_t id, bytes;
};

static bool
has_at_most(void *amount)
{
	const struct amount *a = amount;
	struct serve_info info;

	cr_assert(zero(int, serve_info(rt, a->id, &info)));
	return info.resident <= a->bytes;
}

static bool
has_swapped(void *amount)
{
	const struct amount *a = amount;
	struct serve_info info;

	cr_assert(zero(int, serve_info(rt, a->id, &info)));
	return info.swapped > a->bytes;
}

static void
down(void)
{
	char cmd[80];

	settled = false;
	nwatched = 0;
	up_runtime_destroy(rt);
	rt = NULL;
	vmm_pump = NULL;
	snprintf(cmd, sizeof cmd, "rm -r %s", dir);
	cr_assert(zero(int, system(cmd)));
}

static void
start(struct vmm *v, const struct vmm_config *cfg)
{
	vmm_start(v, cfg);
	watched[nwatched++] = v;
}

static struct guest_region
region_of(const struct vmm *v)
{
	return (struct guest_region){
		.start = v->address, .length = v->npages * VMM_PAGE, .memfd = v->memfd, .source = -1
	};
}

static int
attach_with(const struct vmm *v, const struct guest_region *rg, uint64_t *id)
{
	const struct guest_config cfg = {
		.limits = { .regions = 16, .objects = 16, .mapped = UINT64_MAX / 2 },
		.pid = v->pid,
		.name = "guest",
		.uffd = fcntl(v->uffd, F_DUPFD_CLOEXEC, 0),
	};

	return guest_attach(rt, &cfg, rg, 1, id);
}

static uint64_t
attach(const struct vmm *v)
{
	const struct guest_region rg = region_of(v);
	uint64_t id;

	cr_assert(zero(int, attach_with(v, &rg, &id)), "%s", logged);
	return id;
}

static bool
is_taken_over(void *id)
{
	return guest_left(rt, *(uint64_t *)id) == 0;
}

static void
stop(struct vmm *v, uint64_t id)
{
	int want = atomic_load(&ended) + 1;

	vmm_stop(v);
	cr_assert(zero(int, serve_end(rt, id)));
	vmm_until(enough_ended, &want, 1000, "its end");
}

static void
random_writes(const struct vmm_config *cfg)
{
	struct serve_info info;
	struct vmm v;
	uint64_t id;

	up();
	start(&v, cfg);
	id = attach(&v);
	cr_assert(zero(i64, vmm_do(&v, VMM_RANDOM, 1, 25000, 2)));
	cr_assert(zero(i64, vmm_do(&v, VMM_CHECK, 0, N, 0)));
	cr_assert(gt(u64, most, LIMIT / 4));
	cr_assert(zero(int, serve_info(rt, id, &info)));
	cr_assert(gt(u64, info.swapped, LIMIT));
	cr_assert(le(u64, info.resident, LIMIT));
	cr_assert(eq(u64, info.mapped, N * VMM_PAGE));
	nwatched = 0;
	stop(&v, id);
	down();
}

Test(guest, four_times_as_large_as_memory_it_loses_no_write)
{
	random_writes(&(struct vmm_config){ .npages = N, .memfd = true });
}

Test(guest, one_that_was_registered_for_missing_pages_only_loses_none_either)
{
	random_writes(&(struct vmm_config){ .npages = N, .memfd = true, .unguarded = true });
}

Test(guest, one_that_tells_of_removals_loses_none_either)
{
	random_writes(&(struct vmm_config){
		.npages = N, .memfd = true, .features = UFFD_FEATURE_EVENT_REMOVE });
}

/* A few pages that are written all the time, and taken out all the time: no store falls in between. */
static void
taken_out_at_work(const struct vmm_config *cfg)
{
	struct vmm v;
	uint64_t id, out = 0;
	struct pollfd pf;

	up();
	start(&v, cfg);
	id = attach(&v);
	/* Until enough have been: on a busy machine the writes may be done before we have had our turn. */
	pf = (struct pollfd){ .fd = v.control, .events = POLLIN };
	while (out <= 1000) {
		vmm_ask(&v, VMM_RANDOM, 1, 100000, 2);
		while (poll(&pf, 1, 0) == 0)
			out += (uint64_t)serve_evict(rt, id, LIMIT) / VMM_PAGE;
		cr_assert(zero(i64, vmm_answer(&v)));
		cr_assert(zero(i64, vmm_do(&v, VMM_CHECK, 0, cfg->npages, 0)));
	}
	nwatched = 0;
	stop(&v, id);
	down();
}

Test(guest, what_it_writes_while_it_is_taken_out_is_kept)
{
	taken_out_at_work(&(struct vmm_config){ .npages = 64, .memfd = true });
}

Test(guest, what_one_for_missing_pages_only_writes_while_it_is_taken_out_is_kept)
{
	taken_out_at_work(&(struct vmm_config){ .npages = 64, .memfd = true, .unguarded = true });
}

Test(guest, what_one_that_tells_of_removals_writes_while_it_is_taken_out_is_kept)
{
	taken_out_at_work(&(struct vmm_config){
		.npages = 64, .memfd = true, .features = UFFD_FEATURE_EVENT_REMOVE });
}

Test(guest, what_it_had_before_it_came_is_taken_over_and_out)
{
	struct vmm v;
	uint64_t id;

	up();
	settled = false;
	start(&v, &(struct vmm_config){ .npages = N, .memfd = true, .before = N });
	cr_assert(eq(u64, in_memory(&v), N * VMM_PAGE));
	id = attach(&v);
	vmm_until(is_taken_over, &id, 20000, "taken over");
	settled = true;
	cr_assert(zero(i64, vmm_do(&v, VMM_THREADS, 0, N, 2)));
	nwatched = 0;
	stop(&v, id);
	down();
}

Test(guest, what_it_has_not_comes_from_its_source_and_goes_there_no_more)
{
	struct guest_region rg;
	struct vmm v;
	uint64_t id;

	up();
	start(&v, &(struct vmm_config){ .npages = N, .memfd = true });
	vmm_make_file(file, N);
	rg = region_of(&v);
	rg.source = open(file, O_RDONLY | O_CLOEXEC);
	cr_assert(zero(int, attach_with(&v, &rg, &id)), "%s", logged);
	close(rg.source);
	cr_assert(zero(i64, vmm_do(&v, VMM_THREADS, 0, N, 2)));
	cr_assert(zero(i64, vmm_do(&v, VMM_WRITE, 100, 1000, 0x55)));
	cr_assert(zero(i64, vmm_do(&v, VMM_VERIFY, 2000, N - 2000, 0)));
	cr_assert(zero(i64, vmm_do(&v, VMM_WRITTEN, 100, 1000, 0x55)));
	nwatched = 0;
	stop(&v, id);
	down();
}

/* Removed where it is in memory, in swap, in the source only: zeros, and what is written afterwards stays. */
static void
removed(bool source)
{
	struct guest_region rg;
	struct vmm v;
	uint64_t id;

	up();
	start(&v, &(struct vmm_config){
			  .npages = N, .memfd = true, .features = UFFD_FEATURE_EVENT_REMOVE });
	rg = region_of(&v);
	if (source) {
		vmm_make_file(file, N);
		rg.source = open(file, O_RDONLY | O_CLOEXEC);
	}
	cr_assert(zero(int, attach_with(&v, &rg, &id)), "%s", logged);
	for (unsigned round = 0; round < 3; round++) {
		cr_assert(zero(i64, vmm_do(&v, VMM_WRITE, 0, N / 2, 0x11)));
		/* Of the oldest, which are in swap; of the youngest, which are in memory; of what was never touched. */
		cr_assert(zero(i64, vmm_do(&v, VMM_PUNCH, 0, 700, 0)));
		cr_assert(zero(i64, vmm_do(&v, VMM_ZEROS, 0, 700, 0)));
		cr_assert(zero(i64, vmm_do(&v, VMM_PUNCH, N / 2 - 700, 1400, 0)));
		cr_assert(zero(i64, vmm_do(&v, VMM_ZEROS, N / 2 - 700, 1400, 0)));
		cr_assert(zero(i64, vmm_do(&v, VMM_WRITTEN, 700, N / 2 - 1400, 0x11)));
		/* They have been out since. */
		cr_assert(zero(i64, vmm_do(&v, VMM_ZEROS, 0, 700, 0)));
		cr_assert(zero(i64, vmm_do(&v, VMM_ZEROS, N / 2 - 700, 1400, 0)));
		cr_assert(zero(i64, vmm_do(&v, VMM_WRITE, 100, 50, 0x22)));
		cr_assert(zero(i64, vmm_do(&v, VMM_WRITTEN, 700, N / 2 - 1400, 0x11)));
		cr_assert(zero(i64, vmm_do(&v, VMM_WRITTEN, 100, 50, 0x22)));
		cr_assert(zero(i64, vmm_do(&v, VMM_ZEROS, 150, 550, 0)));
	}
	if (source)
		cr_assert(zero(i64, vmm_do(&v, VMM_VERIFY, N / 2 + 700, N / 2 - 700, 0)));
	nwatched = 0;
	stop(&v, id);
	down();
}

Test(guest, what_it_removes_is_zeros)
{
	removed(false);
}

Test(guest, what_it_removes_is_zeros_and_not_what_its_source_has)
{
	removed(true);
}

/* Whatever is on its way in or out just then. */
Test(guest, what_it_removes_at_work_is_zeros)
{
	struct vmm v;
	uint64_t id;

	up();
	start(&v, &(struct vmm_config){
			  .npages = N, .memfd = true, .features = UFFD_FEATURE_EVENT_REMOVE });
	id = attach(&v);
	cr_assert(zero(i64, vmm_do(&v, VMM_RANDOM, 1, 12000, 4 | VMM_REMOVING)));
	cr_assert(zero(i64, vmm_do(&v, VMM_CHECK, 0, N, 0)));
	nwatched = 0;
	stop(&v, id);
	down();
}

Test(guest, what_it_removes_is_given_back)
{
	struct vmm v;
	uint64_t id;

	up();
	start(&v, &(struct vmm_config){
			  .npages = 2000, .memfd = true, .features = UFFD_FEATURE_EVENT_REMOVE });
	id = attach(&v);
	cr_assert(zero(i64, vmm_do(&v, VMM_WRITE, 0, 2000, 0x11)));
	cr_assert(zero(i64, vmm_do(&v, VMM_PUNCH, 0, 1500, 0)));
	vmm_until(has_at_most, &(struct amount){ id, 500 * VMM_PAGE }, 5000,
		  "what is removed does not count");
	cr_assert(zero(i64, vmm_do(&v, VMM_WRITTEN, 1500, 500, 0x11)));
	nwatched = 0;
	stop(&v, id);
	down();
}

Test(guest, a_source_that_was_cut_off_is_sigbus_there_and_nowhere_else)
{
	struct guest_region rg;
	struct vmm v;
	uint64_t id;

	up();
	start(&v, &(struct vmm_config){ .npages = 1000, .memfd = true });
	vmm_make_file(file, 1000);
	rg = region_of(&v);
	rg.source = open(file, O_RDONLY | O_CLOEXEC);
	cr_assert(zero(int, attach_with(&v, &rg, &id)), "%s", logged);
	cr_assert(zero(int, truncate(file, 600 * VMM_PAGE)));
	cr_assert(zero(i64, vmm_do(&v, VMM_VERIFY, 0, 600, 0)));
	cr_assert(eq(i64, vmm_do(&v, VMM_VERIFY, 600, 400, 0), SIGBUSES(400)));
	nwatched = 0;
	stop(&v, id);
	down();
}

Test(guest, killed_while_its_pages_are_written_out_it_leaves_nothing)
{
	struct up_stats before, after;
	struct vmm v;
	uint64_t id;

	up();
	up_stats_get(rt, &before, sizeof before);
	for (unsigned round = 0; round < 5; round++) {
		nwatched = 0;
		start(&v, &(struct vmm_config){ .npages = N, .memfd = true });
		id = attach(&v);
		vmm_ask(&v, VMM_RANDOM, round, 10000000, 2);
		vmm_until(has_swapped, &(struct amount){ id, (round + 1) * (LIMIT / 4) },
			  VMM_DEADLINE_MS, "enough is in swap");
		nwatched = 0;
		stop(&v, id);
		up_stats_get(rt, &after, sizeof after);
		cr_assert(eq(u64, after.mapped, before.mapped));
		cr_assert(zero(u64, after.swapped));
		cr_assert(eq(u64, after.resident, before.resident));
		cr_assert(eq(u64, after.entries, before.entries));
	}
	down();
}

Test(guest, one_that_goes_on_without_us_keeps_what_is_there_and_is_told_of_the_rest)
{
	const int64_t sigbus = SIGBUSES(1);
	struct vmm v;
	uint64_t id;
	int64_t r;
	int want = 1;

	up();
	start(&v, &(struct vmm_config){ .npages = N, .memfd = true });
	id = attach(&v);
	cr_assert(zero(i64, vmm_do(&v, VMM_RANDOM, 1, 25000, 2)));
	cr_assert(zero(int, guest_leave(rt, id)));
	vmm_until(enough_ended, &want, 2000, "its end");
	r = vmm_do(&v, VMM_CHECK, 0, N, 0);
	cr_assert(zero(i64, r % sigbus), "%lld pages are wrong", (long long)(r % sigbus));
	cr_assert(gt(i64, r / sigbus, (int64_t)N / 2));
	cr_assert(lt(i64, r / sigbus, (int64_t)N));
	nwatched = 0;
	vmm_stop(&v);
	down();
}

/* In the midst of removals: the pager does not wait for a message that it would have to read itself. */
Test(guest, one_that_removes_all_the_time_can_be_left)
{
	struct vmm v;
	uint64_t id;
	int want = 1;

	up();
	start(&v, &(struct vmm_config){
			  .npages = N / 8, .memfd = true, .features = UFFD_FEATURE_EVENT_REMOVE });
	id = attach(&v);
	vmm_ask(&v, VMM_RANDOM, 1, 3000, 4 | VMM_REMOVING);
	poll(NULL, 0, 300);
	cr_assert(zero(int, guest_leave(rt, id)));
	vmm_until(enough_ended, &want, 2000, "its end");
	/* It ends, whatever it has met. */
	cr_assert(ge(i64, vmm_answer(&v), 0));
	nwatched = 0;
	vmm_stop(&v);
	down();
}

/* One thrashes, another keeps what it was promised. */
Test(guest, a_minimum_is_kept_while_another_thrashes)
{
	const uint64_t own = LIMIT / 4;
	struct serve_info info;
	struct vmm v[2];
	uint64_t id[2];

	up();
	for (unsigned i = 0; i < 2; i++)
		start(&v[i], &(struct vmm_config){ .npages = N / 2, .memfd = true });
	for (unsigned i = 0; i < 2; i++)
		id[i] = attach(&v[i]);
	cr_assert(zero(int, serve_quota(rt, id[0], 0, own)));
	cr_assert(zero(i64, vmm_do(&v[0], VMM_WRITE, 0, own / VMM_PAGE, 7)));
	vmm_ask(&v[1], VMM_RANDOM, 5, 25000, 2);
	for (unsigned i = 0; i < 200; i++) {
		sample();
		cr_assert(zero(int, serve_info(rt, id[0], &info)));
		cr_assert(ge(u64, info.resident + 64 * VMM_PAGE, own));
		usleep(5000);
	}
	cr_assert(zero(i64, vmm_answer(&v[1])));
	cr_assert(zero(i64, vmm_do(&v[0], VMM_WRITTEN, 0, own / VMM_PAGE, 7)));
	cr_assert(zero(i64, vmm_do(&v[1], VMM_CHECK, 0, N / 2, 0)));
	/* And the same by a limit. */
	cr_assert(zero(int, serve_quota(rt, id[1], LIMIT / 2, 0)));
	cr_assert(zero(i64, vmm_do(&v[1], VMM_RANDOM, 6, 25000, 2)));
	cr_assert(zero(int, serve_info(rt, id[1], &info)));
	cr_assert(le(u64, info.resident, LIMIT / 2));
	cr_assert(zero(i64, vmm_do(&v[1], VMM_CHECK, 0, N / 2, 0)));
	cr_assert(gt(i64, serve_evict(rt, id[1], LIMIT), 0));
	cr_assert(zero(i64, vmm_do(&v[1], VMM_CHECK, 0, N / 2, 0)));
	nwatched = 0;
	for (unsigned i = 0; i < 2; i++)
		stop(&v[i], id[i]);
	down();
}

Test(guest, who_can_not_be_taken_back_is_refused_and_untouched)
{
	struct guest_region rg;
	struct vmm v, other;
	uint64_t id;

	up();
	settled = false;
	start(&v, &(struct vmm_config){
			  .npages = 100, .memfd = true, .features = UFFD_FEATURE_WP_ASYNC });
	rg = region_of(&v);
	cr_assert(eq(int, attach_with(&v, &rg, &id), -EOPNOTSUPP));
	start(&other, &(struct vmm_config){
			      .npages = 100, .memfd = true, .features = UFFD_FEATURE_EVENT_REMAP });
	rg = region_of(&other);
	cr_assert(eq(int, attach_with(&other, &rg, &id), -EPERM));
	nwatched = 0;
	vmm_stop(&other);

	start(&other, &(struct vmm_config){ .npages = 100, .memfd = true });
	rg = region_of(&other);
	rg.memfd =
		v.memfd; /* another's: as large, but mapped elsewhere, where this one's writes can not be stopped */
	rg.length += VMM_PAGE;
	cr_assert(eq(int, attach_with(&other, &rg, &id), -EINVAL));
	rg = region_of(&other);
	rg.memfd = open("/dev/null", O_RDWR | O_CLOEXEC);
	cr_assert(eq(int, attach_with(&other, &rg, &id), -EINVAL));
	close(rg.memfd);
	id = attach(&other);
	rg = region_of(&other);
	cr_assert(eq(int, guest_add(rt, id, &rg), -EEXIST));
	rg.start += 1 << 30;
	cr_assert(eq(int, guest_add(rt, id, &rg), -EEXIST), "the same part of a memfd twice");
	cr_assert(eq(int, guest_add(rt, id + 1000, &rg), -ENOENT));
	cr_assert(zero(i64, vmm_do(&other, VMM_RANDOM, 1, 1000, 2)));
	cr_assert(zero(i64, vmm_do(&other, VMM_CHECK, 0, 100, 0)));
	nwatched = 0;
	stop(&other, id);
	vmm_stop(&v);
	down();
}

/* A pager that is killed takes what it had written to its swap with it. */
/* More than are read in a turn; those that serve come late. */
Test(guest, many_that_are_ready_at_once_are_all_served)
{
	enum { GUESTS = 40, ROUNDS = 20 };
	static struct vmm v[GUESTS];
	static uint64_t id[GUESTS];
	DIR *tasks;
	struct dirent *de;

	up();
	tasks = opendir("/proc/self/task");
	cr_assert(tasks != NULL);
	while ((de = readdir(tasks)) != NULL) {
		if (atoi(de->d_name) > 0 && atoi(de->d_name) != (int)getpid())
			sched_setscheduler(atoi(de->d_name), SCHED_IDLE,
					   &(struct sched_param){ 0 });
	}
	closedir(tasks);
	for (unsigned i = 0; i < GUESTS; i++) {
		vmm_start(&v[i], &(struct vmm_config){ .npages = 64,
						       .memfd = true,
						       .features = UFFD_FEATURE_EVENT_REMOVE });
		id[i] = attach(&v[i]);
	}
	for (unsigned k = 0; k < ROUNDS; k++) {
		for (unsigned i = 0; i < GUESTS; i++)
			vmm_ask(&v[i], VMM_ZEROS, k, 1, 0);
		for (unsigned i = 0; i < GUESTS; i++) {
			struct pollfd pf = { .fd = v[i].control, .events = POLLIN };

			cr_assert(eq(int, poll(&pf, 1, 20000), 1), "round %u: guest %u waits", k,
				  i);
			cr_assert(eq(int, (int)vmm_answer(&v[i]), 0));
		}
	}
	for (unsigned i = 0; i < GUESTS; i++)
		stop(&v[i], id[i]);
	down();
}

Test(guest, the_next_pager_does_not_take_what_is_gone_for_zeros)
{
	struct guest_region rg;
	struct up_runtime *first;
	struct vmm v;
	uint64_t id;

	up();
	start(&v, &(struct vmm_config){ .npages = 100, .memfd = true });
	first = rt;
	id = attach(&v);
	rt = serving_runtime(dir, LIMIT, on_ended);
	cr_assert(zero(int, guest_leave(first, id)));
	rg = region_of(&v);
	cr_assert(eq(int, attach_with(&v, &rg, &id), -ESTALE));
	up_runtime_destroy(first);
	nwatched = 0;
	vmm_stop(&v);
	down();
}
