/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_handoff.c: monitors that hand their guest's memory over, byte for byte, and memory behind it that is taken back.
 *
 * The loop and the pager are this process; a monitor is a child (vmm.h).  How much of it is in memory is seen from outside: blocks of its memfd.
 */
#include "assertions.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "door.h"
#include "firecracker.h"
#include "handoff.h"
#include "handoff_wire.h"
#include "pmap/uffd_abi.h"
#include "serving.h"
#include "vmm.h"

TestSuite(handoff, .timeout = 110);

#define LIMIT ((size_t)16 << 20)
#define N ((uint64_t)(4 * LIMIT / VMM_PAGE)) /* pages: four times as much as may be in memory */
#define ANSWER_MS 2000

/* --- the parser alone --- */

static char why[300];

static int
parse(const char *text, struct handoff_message *m)
{
	const int r = handoff_parse(text, strlen(text), m, why, sizeof why);

	cr_assert(r == 0 || (m->region == NULL && why[0] != '\0'), "refused without a reason: %s",
		  text);
	return r;
}

#define R(address, size, offset)                                                 \
	"{\"guest_phys_addr\":0,\"host_virt_addr\":" #address ",\"size\":" #size \
	",\"backing_file_offset\":" #offset "}"
#define H(version, pid, mode, regions)                                                         \
	"{\"type\":\"handoff\",\"version\":" #version ",\"vmm_pid\":" #pid ",\"mode\":\"" mode \
	"\",\"regions\":[" regions "]}"

Test(handoff, in_words_every_message_is_read)
{
	struct handoff_message m;

	cr_assert(zero(int, parse(H(0, 17, "WP", R(65536, 8192, 4096) "," R(4096, 4096, 0)), &m)));
	cr_assert(eq(int, (int)m.type, HANDOFF_ALL));
	cr_assert(eq(int, (int)m.mode, HANDOFF_WP));
	cr_assert(eq(u64, m.pid, 17));
	cr_assert(eq(uint, m.n, 2));
	cr_assert(eq(u64, m.region[0].address, 4096));
	cr_assert(eq(u64, m.region[1].address, 65536));
	cr_assert(eq(u64, m.region[1].size, 8192));
	cr_assert(eq(u64, m.region[1].offset, 4096));
	free(m.region);
	cr_assert(zero(int,
		       parse("{\"type\":\"add_region\",\"region\":" R(4096, 4096, 0) ",\"x\":[]}",
			     &m)));
	cr_assert(eq(int, (int)m.type, HANDOFF_ADD));
	cr_assert(eq(uint, m.n, 1));
	free(m.region);
}

Test(handoff, in_words_what_makes_no_sense_is_refused_with_a_reason)
{
	static const struct {
		int err;
		const char *text;
	} bad[] = {
		{ -EPROTO, "" },
		{ -EPROTO, "[]" },
		{ -EPROTO, "{\"type\":1}" },
		{ -EPROTO, "{\"type\":\"bye\"}" },
		{ -EPROTO, "{\"type\":\"handoff\"}" },
		{ -EPROTO, H("0", 1, "WP", R(4096, 4096, 0)) },
		{ -EPROTONOSUPPORT, H(1, 1, "WP", R(4096, 4096, 0)) },
		{ -EINVAL, H(0, 0, "WP", R(4096, 4096, 0)) },
		{ -EINVAL, H(0, -1, "WP", R(4096, 4096, 0)) },
		{ -EINVAL, H(0, 1, "RW", R(4096, 4096, 0)) },
		{ -EPROTO, H(0, 1, "WP", "") },
		{ -EPROTO, H(0, 1, "WP", "1") },
		{ -EINVAL, H(0, 1, "WP", "{}") },
		{ -EINVAL, H(0, 1, "WP", R(0, 4096, 0)) },
		{ -EINVAL, H(0, 1, "WP", R(4096, 0, 0)) },
		{ -EINVAL, H(0, 1, "WP", R(4097, 4096, 0)) },
		{ -EINVAL, H(0, 1, "WP", R(4096, 4095, 0)) },
		{ -EINVAL, H(0, 1, "WP", R(4096, 4096, 7)) },
		{ -EINVAL, H(0, 1, "WP", R(9223372036854771712, 8192, 0)) },
		{ -EINVAL, H(0, 1, "WP", R(4096, 8192, 9223372036854771712)) },
		{ -EINVAL, H(0, 1, "WP", R(4096, 8192, 0) "," R(8192, 4096, 65536)) },
		{ -EPROTO, "{\"type\":\"add_region\"}" },
		{ -EINVAL, "{\"type\":\"add_region\",\"region\":{}}" },
	};
	static const unsigned char header[][HANDOFF_HEADER] = {
		{ 0, 0, 0, 0 }, { 1, 0, 16, 0 }, { 0, 0, 16, 0 }, { 2, 1, 0, 0 }
	};
	struct handoff_message m;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		cr_assert(eq(int, parse(bad[i].text, &m), bad[i].err), "%s: %s", bad[i].text, why);
	cr_assert(eq(i64, handoff_length(header[0]), -EPROTO));
	cr_assert(eq(i64, handoff_length(header[1]), -E2BIG));
	cr_assert(eq(i64, handoff_length(header[2]), (int64_t)HANDOFF_MESSAGE_MAX));
	cr_assert(eq(i64, handoff_length(header[3]), 258));
}

/* --- with connections --- */

static char dir[] = "/tmp/test_handoff.XXXXXX", path[64], sock[80];
static struct up_runtime *rt;
static struct memfile *source; /* of Firecracker's; NULL: it is a hand-off */
static struct vmm *watched[4];
static unsigned nwatched;
static uint64_t most; /* bytes that were seen in memory at a time, of all watched */

static void
on_ended(void *ctx, uint64_t id, bool guest)
{
	(void)ctx;
	(void)id;
	(void)guest;
}

static int
open_session(uv_loop_t *loop, int connection, struct session **out)
{
	const struct logger log = { .fn = collect };
	const struct handoff_config cfg = {
		.rt = rt, .log = log, .regions_max = 4, .gone = door_gone, .wait_ms = 500
	};
	const struct firecracker_config fc = {
		.rt = rt, .log = log, .regions_max = 4, .gone = door_gone, .source = source
	};

	return source != NULL ? firecracker_open(loop, connection, &fc, out)
			      : handoff_open(loop, connection, &cfg, out);
}

static uint64_t
in_memory(const struct vmm *v)
{
	struct stat st;

	cr_assert(zero(int, fstat(v->memfd, &st)));
	return (uint64_t)st.st_blocks * 512;
}

/* The loop's turn, and a look at how much is in memory. */
static void
turn(void)
{
	uint64_t sum = 0;

	door_turn();
	for (unsigned i = 0; i < nwatched; i++)
		sum += in_memory(watched[i]);
	most = MAX(most, sum);
	cr_assert(le(u64, sum, LIMIT));
}

static void
up(void)
{
	cr_assert(mkdtemp(dir) != NULL);
	snprintf(path, sizeof path, "%s/memfile", dir);
	snprintf(sock, sizeof sock, "%s/socket", dir);
	rt = serving_runtime(dir, LIMIT, on_ended);
	door_open(sock, open_session);
	vmm_pump = turn;
}

static bool
is_empty(void *arg)
{
	struct up_stats st;

	(void)arg;
	up_stats_get(rt, &st, sizeof st);
	return st.swapped == 0 && st.resident == 0 && st.mapped == 0;
}

/* Within a second of its end nothing of a client is left. */
static void
all_are_gone(void)
{
	nwatched = 0;
	door_empty(1000);
	vmm_until(is_empty, NULL, 1000, "all memory and swap given back");
}

static void
down(void)
{
	char cmd[80];

	all_are_gone();
	door_close();
	up_runtime_destroy(rt);
	if (source != NULL)
		memfile_unref(source);
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

static int64_t
say(struct vmm *v, const char *json, unsigned which, unsigned piece)
{
	char text[2048];
	const uint32_t len = (uint32_t)strlen(json);

	memcpy(text, &len, sizeof len);
	memcpy(text + sizeof len, json, len);
	return vmm_text(v, VMM_SEND, text, sizeof len + len, which, piece);
}

static void
hello(const struct vmm *v, const char *mode, uint64_t address, uint64_t size, uint64_t offset,
      char text[1024])
{
	snprintf(text, 1024,
		 "{\"type\":\"handoff\",\"version\":0,\"vmm_pid\":%d,\"mode\":\"%s\",\"regions\":"
		 "[{\"guest_phys_addr\":0,\"host_virt_addr\":%llu,\"size\":%llu,"
		 "\"backing_file_offset\":%llu}]}",
		 (int)v->pid, mode, (unsigned long long)address, (unsigned long long)size,
		 (unsigned long long)offset);
}

static int64_t
hand_over(struct vmm *v, const char *mode, unsigned piece)
{
	char text[1024];

	hello(v, mode, v->address, v->npages * VMM_PAGE, 0, text);
	cr_assert(zero(i64, vmm_text(v, VMM_CONNECT, sock, strlen(sock), 0, 0)));
	cr_assert(zero(i64, say(v, text, VMM_UFFD, piece)));
	return vmm_do(v, VMM_ANSWER, 0, 0, ANSWER_MS);
}

static void
handed_over(const struct vmm_config *cfg, const char *mode, unsigned piece)
{
	struct session_counts c = { 0 };
	struct vmm v;

	up();
	start(&v, cfg);
	cr_assert(eq(i64, hand_over(&v, mode, piece), HANDOFF_ANSWER), "%s", logged);
	cr_assert(zero(i64, vmm_do(&v, VMM_RANDOM, 1, 25000, 2)));
	cr_assert(zero(i64, vmm_do(&v, VMM_CHECK, 0, N, 0)));
	session_first()->ops->counts(session_first(), &c);
	cr_assert(gt(u64, c.swapped, 0));
	cr_assert(le(u64, c.resident, LIMIT));
	cr_assert(eq(u64, c.mapped, N * VMM_PAGE));
	cr_assert(gt(u64, most, LIMIT / 2));
	vmm_stop(&v);
	down();
}

Test(handoff, four_times_as_large_as_the_budget_it_loses_no_write)
{
	handed_over(&(struct vmm_config){ .npages = N, .memfd = true }, "WP", 0);
}

Test(handoff, one_for_missing_pages_in_pieces_of_a_byte_loses_none_either)
{
	handed_over(&(struct vmm_config){ .npages = N, .memfd = true, .unguarded = true },
		    "MISSING", 1);
}

Test(handoff, a_region_may_be_added)
{
	char text[1024];
	struct vmm v;
	int64_t at;

	up();
	start(&v, &(struct vmm_config){ .npages = N / 2, .memfd = true });
	cr_assert(eq(i64, hand_over(&v, "WP", 0), HANDOFF_ANSWER), "%s", logged);
	cr_assert(zero(i64, vmm_do(&v, VMM_RANDOM, 1, 10000, 2)));
	for (unsigned own = 0; own < 2; own++) {
		at = vmm_do(&v, VMM_MORE, 0, N / 2, own);
		cr_assert(gt(i64, at, 0));
		snprintf(text, sizeof text,
			 "{\"type\":\"add_region\",\"region\":{\"guest_phys_addr\":1,"
			 "\"host_virt_addr\":%lld,\"size\":%llu,\"backing_file_offset\":%llu}}",
			 (long long)at, (unsigned long long)(N / 2 * VMM_PAGE),
			 own ? 0ull : (unsigned long long)(N / 2 * VMM_PAGE));
		cr_assert(zero(i64, say(&v, text, 0, own)));
		cr_assert(eq(i64, vmm_do(&v, VMM_ANSWER, 0, 0, ANSWER_MS), HANDOFF_ANSWER), "%s",
			  logged);
		cr_assert(zero(i64, vmm_do(&v, VMM_RANDOM, 2, 10000, 2)));
		cr_assert(zero(i64, vmm_do(&v, VMM_CHECK, 0, N / 2, 0)));
	}
	/* The same again is refused, and what there is goes on. */
	cr_assert(zero(i64, say(&v, text, 0, 0)));
	cr_assert(eq(i64, vmm_do(&v, VMM_ANSWER, 0, 0, ANSWER_MS), -ENODATA));
	cr_assert(zero(i64, vmm_do(&v, VMM_RANDOM, 3, 10000, 2)));
	cr_assert(zero(i64, vmm_do(&v, VMM_CHECK, 0, N / 2, 0)));
	vmm_stop(&v);
	down();
}

/* The connection ends, and the process lives: what is in swap is not lost, neither before nor after it comes again. */
Test(handoff, who_comes_again_finds_what_he_had)
{
	struct vmm v;

	up();
	start(&v, &(struct vmm_config){ .npages = N, .memfd = true });
	cr_assert(eq(i64, hand_over(&v, "WP", 0), HANDOFF_ANSWER), "%s", logged);
	for (unsigned round = 0; round < 3; round++) {
		cr_assert(zero(i64, vmm_do(&v, VMM_RANDOM, round, 10000, 2)));
		cr_assert(zero(i64, vmm_do(&v, VMM_HANG_UP, 0, 0, 0)));
		logs("its connection has ended");
		cr_assert(zero(i64, vmm_do(&v, VMM_RANDOM, round + 10, 5000, 2)));
		/* Without hanging up before, the second time. */
		cr_assert(eq(i64, hand_over(&v, "WP", 0), HANDOFF_ANSWER), "%s", logged);
		cr_assert(eq(i64, hand_over(&v, "WP", 0), HANDOFF_ANSWER), "%s", logged);
		logs("again");
		cr_assert(zero(i64, vmm_do(&v, VMM_CHECK, 0, N, 0)));
	}
	cr_assert(eq(uint, door_left, door_came - 1));
	vmm_stop(&v);
	down();
}

Test(handoff, killed_at_work_it_leaves_nothing)
{
	struct session_counts c;
	struct vmm v;

	up();
	for (unsigned round = 0; round < 4; round++) {
		start(&v, &(struct vmm_config){ .npages = N, .memfd = true });
		cr_assert(eq(i64, hand_over(&v, "WP", 0), HANDOFF_ANSWER), "%s", logged);
		vmm_ask(&v, VMM_RANDOM, round, 100000000, 2);
		do {
			turn();
			session_first()->ops->counts(session_first(), &c);
		} while (c.swapped < LIMIT / 2);
		nwatched = 0;
		vmm_stop(&v);
		all_are_gone();
	}
	down();
}

Test(handoff, who_can_not_be_taken_back_is_filled_and_that_is_said)
{
	struct vmm v[2];

	up();
	vmm_start(&v[0], &(struct vmm_config){ .npages = 1000,
					       .memfd = true,
					       .features = UFFD_FEATURE_WP_ASYNC });
	cr_assert(eq(i64, hand_over(&v[0], "WP_ASYNC", 0), HANDOFF_ANSWER), "%s", logged);
	logs("its writes resolve themselves (WP_ASYNC): it is filled");
	vmm_start(&v[1], &(struct vmm_config){ .npages = 1000, .memfd = true });
	cr_assert(zero(i64, vmm_do(&v[1], VMM_AGAIN, 0, 0, 0)));
	cr_assert(eq(i64, hand_over(&v[1], "WP", 0), HANDOFF_ANSWER), "%s", logged);
	logs("mapped a second time");
	for (unsigned i = 0; i < 2; i++) {
		cr_assert(zero(i64, vmm_do(&v[i], VMM_RANDOM, 1, 5000, 2)));
		cr_assert(zero(i64, vmm_do(&v[i], VMM_CHECK, 0, 1000, 0)));
		cr_assert(eq(i64, session_first()->ops->evict(session_first(), 1 << 20), -ENOTSUP));
		vmm_stop(&v[i]);
	}
	down();
}

static void
refused(struct vmm *v, const char *json, unsigned which, const char *reason)
{
	cr_assert(zero(i64, vmm_text(v, VMM_CONNECT, sock, strlen(sock), 0, 0)));
	cr_assert(zero(i64, say(v, json, which, 0)));
	cr_assert(lt(i64, vmm_do(v, VMM_ANSWER, 0, 0, ANSWER_MS), 0), "%s", json);
	logs(reason);
	cr_assert(zero(i64, vmm_do(v, VMM_HANG_UP, 0, 0, 0)));
	door_empty(1000);
	cr_assert(lt(u64, in_memory(v), VMM_PAGE * 101));
}

Test(handoff, what_is_not_true_is_refused)
{
	char text[1024];
	struct vmm v;

	up();
	vmm_start(&v, &(struct vmm_config){ .npages = 100, .memfd = true });
	refused(&v, "{", VMM_UFFD, "no JSON");
	hello(&v, "WP", v.address, 100 * VMM_PAGE, 0, text);
	refused(&v, text, 0, "no file descriptor came with it");
	refused(&v, text, VMM_UFFD | VMM_MEMFD, "more than one");
	refused(&v, text, VMM_MEMFD, "userfaultfd");
	hello(&v, "WP", v.address, 100 * VMM_PAGE, VMM_PAGE, text);
	refused(&v, text, VMM_UFFD, "at 0 in its file, and not at 4096");
	refused(&v,
		"{\"type\":\"add_region\",\"region\":{\"guest_phys_addr\":1,\"host_virt_addr\":4096,"
		"\"size\":4096,\"backing_file_offset\":0}}",
		0, "before anything else");
	/* Half of it, and silence. */
	cr_assert(zero(i64, vmm_text(&v, VMM_CONNECT, sock, strlen(sock), 0, 0)));
	cr_assert(zero(i64, vmm_text(&v, VMM_SEND, "\x10\0\0\0{", 5, VMM_UFFD, 0)));
	cr_assert(eq(i64, vmm_do(&v, VMM_ANSWER, 0, 0, ANSWER_MS), -ENODATA));
	logs("half a message");
	/* And too long a one. */
	cr_assert(zero(i64, vmm_text(&v, VMM_CONNECT, sock, strlen(sock), 0, 0)));
	cr_assert(zero(i64, vmm_text(&v, VMM_SEND, "\xff\xff\xff\xff{", 5, VMM_UFFD, 0)));
	cr_assert(lt(i64, vmm_do(&v, VMM_ANSWER, 0, 0, ANSWER_MS), 0));
	logs("more than a megabyte");
	/* Nothing of that has changed anything. */
	cr_assert(eq(i64, hand_over(&v, "WP", 0), HANDOFF_ANSWER), "%s", logged);
	cr_assert(zero(i64, vmm_do(&v, VMM_RANDOM, 1, 5000, 2)));
	cr_assert(zero(i64, vmm_do(&v, VMM_CHECK, 0, 100, 0)));
	vmm_stop(&v);
	down();
}

/* --- Firecracker's [uffd, memfd] --- */

static int64_t
restore(struct vmm *v)
{
	char text[400];

	snprintf(text, sizeof text,
		 "[{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":0,\"page_size\":4096}]",
		 (unsigned long long)v->address, (unsigned long long)v->npages * VMM_PAGE);
	cr_assert(zero(i64, vmm_text(v, VMM_CONNECT, sock, strlen(sock), 0, 0)));
	return vmm_text(v, VMM_SEND, text, strlen(text), VMM_UFFD | VMM_MEMFD, 0);
}

static void
restored(const struct vmm_config *cfg, struct vmm *v)
{
	const struct logger log = { .fn = collect };

	up();
	start(v, cfg);
	vmm_make_file(path, cfg->npages);
	cr_assert(zero(int, memfile_open(&source, path, &log)));
	cr_assert(zero(i64, restore(v)));
}

Test(handoff, a_microvm_with_a_memfd_is_taken_back)
{
	struct session_counts c;
	struct vmm v;

	restored(&(struct vmm_config){ .npages = N,
				       .memfd = true,
				       .features = UFFD_FEATURE_EVENT_REMOVE },
		 &v);
	cr_assert(zero(i64, vmm_do(&v, VMM_THREADS, 0, N, 2)));
	cr_assert(zero(i64, vmm_do(&v, VMM_WRITE, 0, N / 2, 0x33)));
	cr_assert(zero(i64, vmm_do(&v, VMM_PUNCH, 0, 500, 0)));
	cr_assert(zero(i64, vmm_do(&v, VMM_PUNCH, N / 2 - 250, 500, 0)));
	cr_assert(zero(i64, vmm_do(&v, VMM_ZEROS, 0, 500, 0)));
	cr_assert(zero(i64, vmm_do(&v, VMM_ZEROS, N / 2 - 250, 500, 0)));
	cr_assert(zero(i64, vmm_do(&v, VMM_WRITTEN, 500, N / 2 - 750, 0x33)));
	cr_assert(zero(i64, vmm_do(&v, VMM_VERIFY, N / 2 + 250, N / 2 - 250, 0)));
	cr_assert(zero(i64, vmm_do(&v, VMM_ZEROS, 0, 500, 0)));
	session_first()->ops->counts(session_first(), &c);
	cr_assert(gt(u64, c.swapped, 0));
	cr_assert(gt(i64, session_first()->ops->evict(session_first(), 1 << 20), 0));
	cr_assert(zero(int, session_first()->ops->limit(session_first(), LIMIT / 2, LIMIT_KEEP)));
	cr_assert(zero(i64, vmm_do(&v, VMM_WRITTEN, 500, N / 2 - 750, 0x33)));
	vmm_stop(&v);
	down();
}

Test(handoff, a_microvm_whose_writes_resolve_themselves_is_filled_only)
{
	struct vmm v;

	restored(&(struct vmm_config){ .npages = 1000,
				       .memfd = true,
				       .features =
					       UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_WP_ASYNC },
		 &v);
	cr_assert(zero(i64, vmm_do(&v, VMM_THREADS, 0, 1000, 2)));
	logs("its memory is filled, but not taken back");
	cr_assert(eq(i64, session_first()->ops->evict(session_first(), 1 << 20), -ENOTSUP));
	vmm_stop(&v);
	down();
}

Test(handoff, a_microvm_whose_file_is_cut_off_is_told_of_those_pages)
{
	struct vmm v;

	restored(&(struct vmm_config){ .npages = 1000, .memfd = true }, &v);
	cr_assert(zero(int, truncate(path, 600 * VMM_PAGE)));
	cr_assert(zero(i64, vmm_do(&v, VMM_VERIFY, 0, 600, 0)));
	cr_assert(eq(i64, vmm_do(&v, VMM_VERIFY, 600, 400, 0), INT64_C(400) << 32));
	vmm_stop(&v);
	down();
}
