/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_firecracker.c: what Firecracker says, byte for byte, and memory behind it.
 *
 * The loop, and with it the daemon's side, is this process; each microVM is a child (vmm.h), whose memory is really behind a userfaultfd.
 */
#include "assertions.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "door.h"
#include "firecracker.h"
#include "firecracker_wire.h"
#include "pmap/uffd_abi.h"
#include "timely.h"
#include "vmm.h"

TestSuite(firecracker, .timeout = 110);

#define N ((uint64_t)1024)
#define FEATURES UFFD_FEATURE_EVENT_REMOVE
#define SIGBUSES(n) ((int64_t)(n) << 32)

/* --- the parser alone --- */

/* As captured. */
#define CAPTURED_4K                                                                  \
	"[{\"base_host_virt_addr\":140427042750464,\"size\":134217728,\"offset\":0," \
	"\"page_size\":4096,\"page_size_kib\":4096}]"
#define CAPTURED_2M                                                                  \
	"[{\"base_host_virt_addr\":140427042750464,\"size\":134217728,\"offset\":0," \
	"\"page_size\":2097152,\"page_size_kib\":2097152}]"
#define CAPTURED_SIZE 134217728u

static char why[300];

static int
parse(const char *text, uint64_t size)
{
	struct fc_region *r;
	int n;

	why[0] = '\0';
	n = fc_parse(text, strlen(text), size, &r, why, sizeof why);
	cr_assert(n > 0 || (r == NULL && why[0] != '\0'), "refused without a reason: %s", text);
	free(r);
	return n;
}

static void
reads(const char *text, uint32_t page_size)
{
	struct fc_region *r;
	const int n = fc_parse(text, strlen(text), CAPTURED_SIZE, &r, why, sizeof why);

	cr_assert(eq(int, n, 1), "%s: %s", text, why);
	cr_assert(eq(u64, r->address, UINT64_C(140427042750464)));
	cr_assert(eq(u64, r->size, CAPTURED_SIZE));
	cr_assert(zero(u64, r->offset));
	cr_assert(eq(u32, r->page_size, page_size));
	free(r);
}

Test(firecracker, in_words_every_version_is_read)
{
	reads(CAPTURED_4K, 4096);
	reads(CAPTURED_2M, 2097152);
	reads("[{\"base_host_virt_addr\":140427042750464,\"size\":134217728,\"offset\":0}]", 4096);
	reads("[{\"base_host_virt_addr\":140427042750464,\"size\":134217728,\"offset\":0,"
	      "\"page_size_kib\":2097152}]",
	      2097152);
	reads(" [ {\"page_size\":4096,\"page_size_kib\":4,\"offset\":0,\"size\":134217728,"
	      "\"new\":{\"a\":[\"]}\"]},\"base_host_virt_addr\":140427042750464} ] ",
	      4096);
}

/* Any split of the bytes gives the same array. */
Test(firecracker, in_words_an_array_may_come_in_pieces)
{
	static const char text[] = "  [{\"x\":\"]\\\"}[\",\"y\":[[{}]]}] \n" CAPTURED_4K;
	const size_t len = sizeof text - 1, end = strchr(text, '\n') - text - 1;

	for (size_t a = 0; a <= len; a++) {
		struct fc_scan s = { 0 };
		const size_t cut[] = { 0, a, len };
		size_t ends[4], n = 0;

		for (unsigned i = 0; i < 2; i++) {
			for (size_t at = cut[i]; at < cut[i + 1];) {
				bool complete;
				const int64_t got =
					fc_scan(&s, text + at, cut[i + 1] - at, &complete);

				cr_assert(gt(i64, got, 0));
				at += (size_t)got;
				if (complete)
					ends[n++] = at;
			}
		}
		cr_assert(eq(sz, n, 2));
		cr_assert(eq(sz, ends[0], end));
		cr_assert(eq(sz, ends[1], len));
	}
}

Test(firecracker, in_words_garbage_is_no_array)
{
	static const char *const text[] = {
		"{}", "x[", "\"[\"", "GET / HTTP/1.1\r\n", "1", "]", "[[[[[[[[[[[[[[[[[", "\xff\xfe"
	};
	bool complete;

	for (size_t i = 0; i < ARRAY_SIZE(text); i++) {
		struct fc_scan s = { 0 };

		cr_assert(eq(i64, fc_scan(&s, text[i], strlen(text[i]), &complete), -EPROTO), "%s",
			  text[i]);
	}
}

#define R(address, size, offset) \
	"{\"base_host_virt_addr\":" #address ",\"size\":" #size ",\"offset\":" #offset "}"

Test(firecracker, in_words_what_makes_no_sense_is_refused_with_a_reason)
{
	static const struct {
		int err;
		const char *text;
	} bad[] = {
		{ -EPROTO, "[" },
		{ -EPROTO, "[]" },
		{ -EPROTO, "[1]" },
		{ -EPROTO, "[{}}" },
		{ -EPROTO, "[{\"size\":1,\"size\":2}]" },
		{ -EINVAL, "[{}]" },
		{ -EINVAL, "[{\"base_host_virt_addr\":4096,\"size\":8192}]" },
		{ -EINVAL, "[" R(4096, 8192.0, 0) "]" },
		{ -EINVAL, "[" R(4096, "8192", 0) "]" },
		{ -EINVAL, "[" R(-4096, 8192, 0) "]" },
		{ -EINVAL, "[" R(4096, 8192, -1) "]" },
		{ -EPROTO, "[" R(18446744073709551615, 8192, 0) "]" },
		{ -EINVAL, "[" R(0, 8192, 0) "]" },
		{ -EINVAL, "[" R(4096, 0, 0) "]" },
		{ -EINVAL, "[" R(4097, 8192, 0) "]" },
		{ -EINVAL, "[" R(4096, 8191, 0) "]" },
		{ -EINVAL, "[" R(4096, 4096, 1) "]" },
		{ -EINVAL, "[" R(9223372036854771712, 8192, 0) "]" },
		{ -EINVAL, "[" R(4096, 8192, 4096) "]" },
		{ -EINVAL, "[" R(4096, 4096, 9223372036854771712) "]" },
		/* The sum is not the file's size. */
		{ -EINVAL, "[" R(4096, 4096, 0) "]" },
		{ -EINVAL, "[" R(4096, 4096, 0) "," R(4096, 4096, 4096) "]" },
		{ -EINVAL, "[" R(4096, 4096, 0) "," R(65536, 4096, 0) "]" },
		{ -EINVAL, "[" R(4096, 8192, 0) "," R(8192, 4096, 4096) "]" },
		{ -EINVAL, "[{\"base_host_virt_addr\":4096,\"size\":8192,\"offset\":0,"
			   "\"page_size\":0}]" },
		{ -EINVAL, "[{\"base_host_virt_addr\":4096,\"size\":8192,\"offset\":0,"
			   "\"page_size\":4}]" },
		{ -EINVAL, "[{\"base_host_virt_addr\":4096,\"size\":8192,\"offset\":0,"
			   "\"page_size\":1073741824}]" },
		{ -EINVAL, "[{\"base_host_virt_addr\":4096,\"size\":8192,\"offset\":0,"
			   "\"page_size\":2097152}]" },
		{ -ENOTSUP, "[{\"base_host_virt_addr\":4096,\"size\":8192,\"offset\":0,"
			    "\"is_guest_memfd\":true}]" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		cr_assert(eq(int, parse(bad[i].text, 8192), bad[i].err), "%s: %s", bad[i].text,
			  why);
	cr_assert(eq(int, parse("[" R(65536, 4096, 4096) "," R(4096, 4096, 0) "]", 8192), 2));
	cr_assert(eq(int,
		     parse("[{\"base_host_virt_addr\":4096,\"size\":8192,\"offset\":0,"
			   "\"is_guest_memfd\":false}]",
			   8192),
		     1));
}

Test(firecracker, in_words_too_many_regions_are_refused)
{
	static char text[FC_REGIONS_MAX * 80 + 200];
	size_t at = 0;

	for (unsigned i = 0; i <= FC_REGIONS_MAX; i++)
		at += (size_t)sprintf(text + at,
				      "%c{\"base_host_virt_addr\":%u,\"size\":4096,\"offset\":%u}",
				      i == 0 ? '[' : ',', (i + 1) * 4096, i * 4096);
	strcpy(text + at, "]");
	cr_assert(eq(int, parse(text, (FC_REGIONS_MAX + 1) * 4096), -E2BIG));
	*strrchr(text, ',') = '\0';
	cr_assert(lt(int, parse(text, (uint64_t)FC_REGIONS_MAX * 4096), 0));
	/* The last one is gone by its opening bracket. */
	at = strlen(text);
	while (text[at - 1] != '}')
		at--;
	strcpy(text + at, "]");
	cr_assert(eq(int, parse(text, (uint64_t)FC_REGIONS_MAX * 4096), (int)FC_REGIONS_MAX));
}

/* --- with connections --- */

static char dir[] = "/tmp/test_firecracker.XXXXXX", path[64], record_path[80], sock[80];
static struct memfile *source;
static struct firecracker_config config;

static int
open_session(uv_loop_t *loop, int connection, struct session **out)
{
	return firecracker_open(loop, connection, &config, out);
}

static void
up_n(uint64_t npages)
{
	const struct logger log = { .fn = collect };

	cr_assert(mkdtemp(dir) != NULL);
	snprintf(path, sizeof path, "%s/memfile", dir);
	snprintf(record_path, sizeof record_path, "%s.ws", path);
	snprintf(sock, sizeof sock, "%s/socket", dir);
	vmm_make_file(path, npages);
	cr_assert(zero(int, memfile_open(&source, path, &log)));
	config = (struct firecracker_config){
		.source = source,
		.log = log,
		.record_seconds = 100,
		.gone = door_gone,
	};
	door_open(sock, open_session);
}

static void
up(void)
{
	up_n(N);
}

/* The test has ended its clients. */
static void
down(void)
{
	for (struct session *s = session_first(), *next; s != NULL; s = next) {
		next = s->next;
		s->ops->end(s);
	}
	door_empty(VMM_DEADLINE_MS);
	door_close();
	memfile_unref(source);
	unlink(path);
	unlink(record_path);
	unlink(sock);
	rmdir(dir);
}

static void
begin(struct vmm *v, const struct vmm_config *cfg)
{
	vmm_start(v, cfg);
	/* Only the client has it, and what it gives away. */
	close(v->uffd);
	v->uffd = -1;
}

static void
begin_4k(struct vmm *v)
{
	const struct vmm_config cfg = { .npages = N, .features = FEATURES };

	begin(v, &cfg);
}

enum version { V1_6, V1_11, V1_12 };

/* Its memory in two regions. */
static size_t
say(char *text, size_t size, const struct vmm *v, enum version version, unsigned page_size)
{
	const uint64_t half = v->npages / 2 * VMM_PAGE;
	char tail[80] = "";

	if (version == V1_11)
		snprintf(tail, sizeof tail, ",\"page_size_kib\":%u", page_size);
	else if (version == V1_12)
		snprintf(tail, sizeof tail, ",\"page_size\":%u,\"page_size_kib\":%u", page_size,
			 page_size);
	return (size_t)snprintf(text, size,
				"[{\"base_host_virt_addr\":%" PRIu64 ",\"size\":%" PRIu64
				",\"offset\":%u%s},{\"base_host_virt_addr\":%" PRIu64
				",\"size\":%" PRIu64 ",\"offset\":%" PRIu64 "%s}]",
				v->address, half, 0, tail, v->address + half, half, half, tail);
}

static void
connects(struct vmm *v)
{
	cr_assert(zero(i64, vmm_text(v, VMM_CONNECT, sock, strlen(sock), 0, 0)));
}

static int64_t
sends(struct vmm *v, const char *text, unsigned descriptors, size_t piece)
{
	return vmm_text(v, VMM_SEND, text, strlen(text), descriptors, piece);
}

static void
shakes_hands_in(struct vmm *v, enum version version, unsigned page_size, size_t piece)
{
	char text[600];

	say(text, sizeof text, v, version, page_size);
	connects(v);
	cr_assert(
		zero(i64, sends(v, text, v->memfd >= 0 ? VMM_UFFD | VMM_MEMFD : VMM_UFFD, piece)));
}

static void
shakes_hands(struct vmm *v, enum version version)
{
	shakes_hands_in(v, version, 4096, 0);
}

#define VERIFIES(v, first, n) cr_assert(zero(i64, vmm_do(v, VMM_VERIFY, first, n, 0)), "%s", logged)

struct want {
	enum up_fault_kind kind;
	uint64_t n;
};

static bool
has_served(void *arg)
{
	const struct want *w = arg;

	return session_first() != NULL && door_counts().faults[w->kind] == w->n;
}

/* A fault is counted after who waited has gone on. */
static void
served(enum up_fault_kind kind, uint64_t n)
{
	struct want w = { kind, n };

	vmm_until(has_served, &w, VMM_DEADLINE_MS, "as many faults as there should be");
}

static void
speaks(enum version version)
{
	struct vmm v;

	begin_4k(&v);
	/* One byte a message, the descriptor with the first. */
	shakes_hands_in(&v, version, 4096, 1);
	VERIFIES(&v, 0, N);
	served(UP_FAULT_MAJOR, N);
	cr_assert(eq(i64, session_first()->ops->evict(session_first(), 4096), -ENOTSUP));
	cr_assert(eq(int, session_first()->pid, v.pid));
	vmm_stop(&v);
	door_empty(1000);
}

Test(firecracker, version_1_6_is_served, .init = up, .fini = down)
{
	speaks(V1_6);
}

Test(firecracker, version_1_11_is_served, .init = up, .fini = down)
{
	speaks(V1_11);
}

Test(firecracker, version_1_12_is_served, .init = up, .fini = down)
{
	speaks(V1_12);
}

static void
up_huge(void)
{
	up_n(2048);
}

Test(firecracker, huge_pages_are_served, .init = up_huge, .fini = down)
{
	const struct vmm_config cfg = { .npages = 2048, .features = FEATURES, .huge = true };
	struct vmm v;

	begin(&v, &cfg);
	shakes_hands_in(&v, V1_12, 2097152, 0);
	VERIFIES(&v, 0, 2048);
	served(UP_FAULT_MAJOR, 4);
	vmm_stop(&v);
}

Test(firecracker, a_memfd_is_filled, .init = up, .fini = down)
{
	const struct vmm_config cfg = {
		.npages = N,
		.features = FEATURES | UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
		.memfd = true,
	};
	struct vmm v;

	begin(&v, &cfg);
	shakes_hands(&v, V1_12);
	VERIFIES(&v, 0, N);
	cr_assert(zero(i64, vmm_do(&v, VMM_WRITE, 3, 5, 9)));
	cr_assert(zero(i64, vmm_do(&v, VMM_WRITTEN, 3, 5, 9)));
	served(UP_FAULT_MAJOR, N);
	logs("of a memfd");
	vmm_stop(&v);
}

/* The array is 100 KiB: it does not fit in one read. */
Test(firecracker, a_long_handshake_is_read, .init = up, .fini = down)
{
	static char text[200000];
	struct vmm v;
	size_t at;

	begin_4k(&v);
	at = (size_t)sprintf(text,
			     "[{\"base_host_virt_addr\":%" PRIu64 ",\"size\":%" PRIu64
			     ",\"offset\":0,\"what\":\"",
			     v.address, N * VMM_PAGE);
	memset(text + at, '[', 100000);
	strcpy(text + at + 100000, "\"}]");
	connects(&v);
	cr_assert(zero(i64, sends(&v, text, VMM_UFFD, 0)));
	VERIFIES(&v, 0, N);
	vmm_stop(&v);
}

/* Two arrays, one write, one of the descriptors: the second array has none, and the first is served on. */
Test(firecracker, two_handshakes_in_one_write, .init = up, .fini = down)
{
	char text[1300];
	struct vmm v;

	begin_4k(&v);
	say(text, 600, &v, V1_12, 4096);
	say(text + strlen(text), 600, &v, V1_12, 4096);
	connects(&v);
	sends(&v, text, VMM_UFFD, 0);
	logs("no file descriptor came with it");
	VERIFIES(&v, 0, N);
	vmm_stop(&v);
	door_empty(1000);
}

Test(firecracker, two_handshakes_on_one_connection, .init = up, .fini = down)
{
	struct vmm v;
	char text[600];

	begin_4k(&v);
	shakes_hands(&v, V1_12);
	say(text, sizeof text, &v, V1_12, 4096);
	cr_assert(zero(i64, sends(&v, text, VMM_UFFD, 1)));
	VERIFIES(&v, 0, N);
	vmm_stop(&v);
	door_empty(1000);
}

static void
is_refused(const char *text, unsigned descriptors, const char *reason)
{
	const unsigned before = vmm_descriptors();
	struct vmm v;
	char own[600];

	begin_4k(&v);
	if (text == NULL) {
		say(own, sizeof own, &v, V1_12, 4096);
		text = own;
	}
	connects(&v);
	sends(&v, text, descriptors, 0);
	logs(reason);
	/* Refused is closed, while the client lives. */
	door_empty(1000);
	vmm_stop(&v);
	cr_assert(le(uint, vmm_descriptors(), before + 4), "descriptors are left");
}

Test(firecracker, no_descriptor_is_refused, .init = up, .fini = down)
{
	is_refused(NULL, 0, "refused: no file descriptor came with it");
}

Test(firecracker, something_else_is_refused, .init = up, .fini = down)
{
	is_refused(NULL, VMM_NOT_UFFD, "refused: its first file descriptor is no userfaultfd");
}

Test(firecracker, three_descriptors_are_refused, .init = up, .fini = down)
{
	is_refused(NULL, VMM_UFFD | VMM_MEMFD | VMM_THIRD, "refused: three file descriptors");
}

Test(firecracker, two_of_which_one_is_no_memfd_is_refused, .init = up, .fini = down)
{
	is_refused(NULL, VMM_UFFD | VMM_THIRD, "refused: its second file descriptor is no memfd");
}

Test(firecracker, garbage_is_refused, .init = up, .fini = down)
{
	is_refused("GET / HTTP/1.1\r\n\r\n", 0, "refused: it is no JSON array");
}

Test(firecracker, another_machine_is_refused, .init = up, .fini = down)
{
	is_refused("[" R(4096, 4096, 0) "]", VMM_UFFD, "it is not this machine's");
}

Test(firecracker, secret_memory_is_refused, .init = up, .fini = down)
{
	is_refused("[{\"base_host_virt_addr\":4096,\"size\":4194304,\"offset\":0,"
		   "\"is_guest_memfd\":true}]",
		   VMM_UFFD, "guest_memfd (secret-free)");
}

Test(firecracker, what_never_ends_is_refused, .init = up, .fini = down)
{
	static char text[FC_HANDSHAKE_MAX + 4096];

	memset(text, '1', sizeof text - 1);
	text[0] = '[';
	is_refused(text, VMM_UFFD, "a handshake of more than");
}

Test(firecracker, half_a_handshake_is_refused_in_time, .init = up, .fini = down)
{
	struct vmm v;

	config.handshake_ms = 50;
	begin_4k(&v);
	connects(&v);
	sends(&v, "[{\"base_host", VMM_UFFD, 0);
	logs("refused: nothing, or half a handshake");
	door_empty(1000);
	vmm_stop(&v);
}

Test(firecracker, half_a_handshake_and_the_end, .init = up, .fini = down)
{
	struct vmm v;

	begin_4k(&v);
	connects(&v);
	sends(&v, "[{\"base_host", VMM_UFFD, 0);
	cr_assert(zero(i64, vmm_do(&v, VMM_HANG_UP, 0, 0, 0)));
	logs("half a handshake");
	door_empty(1000);
	vmm_stop(&v);
}

Test(firecracker, who_hangs_up_is_served_until_it_is_gone, .init = up, .fini = down)
{
	struct vmm v;

	begin_4k(&v);
	shakes_hands(&v, V1_6);
	cr_assert(zero(i64, vmm_do(&v, VMM_HANG_UP, 0, 0, 0)));
	/* We hold the last reference, too. */
	cr_assert(zero(i64, vmm_do(&v, VMM_CLOSE_UFFD, 0, 0, 0)));
	VERIFIES(&v, 0, N);
	cr_assert(zero(uint, door_left));
	vmm_stop(&v);
	door_empty(1000);
}

Test(firecracker, removed_pages_are_zeros, .init = up, .fini = down)
{
	struct vmm v;

	begin_4k(&v);
	shakes_hands(&v, V1_12);
	VERIFIES(&v, 0, 100);
	cr_assert(zero(i64, vmm_do(&v, VMM_REMOVE, 50, 100, 0)));
	cr_assert(zero(i64, vmm_do(&v, VMM_ZEROS, 50, 100, 0)));
	VERIFIES(&v, 150, 100);
	vmm_stop(&v);
}

#define VMS 6

Test(firecracker, machines_of_one_file_go_on_while_one_is_killed, .init = up, .fini = down)
{
	unsigned threads, descriptors;
	struct vmm v[VMS];

	for (unsigned i = 0; i < VMS; i++)
		begin_4k(&v[i]);
	threads = vmm_threads();
	descriptors = vmm_descriptors();
	for (unsigned i = 0; i < VMS; i++)
		shakes_hands(&v[i], (enum version)(i % 3));
	/* All at once, and one dies of it. */
	for (unsigned i = 0; i < VMS; i++)
		vmm_ask(&v[i], i == 0 ? VMM_THREADS : VMM_VERIFY, 0, N, 4);
	vmm_until(has_served, &(struct want){ .kind = UP_FAULT_SOFT }, VMM_DEADLINE_MS, "a turn");
	kill(v[0].pid, SIGKILL);
	for (unsigned i = 1; i < VMS; i++)
		cr_assert(zero(i64, vmm_answer(&v[i])), "machine %u\n%s", i, logged);
	vmm_stop(&v[0]);
	logs_within(": gone", 1000);
	cr_assert(zero(i64, vmm_do(&v[1], VMM_VERIFY, 0, N, 0)));
	for (unsigned i = 1; i < VMS; i++)
		vmm_stop(&v[i]);
	door_empty(1000);
	/* Those of the connections between test and children are closed, too. */
	cr_assert(eq(uint, vmm_threads(), threads));
	cr_assert(eq(uint, vmm_descriptors(), descriptors - VMS));
}

Test(firecracker, a_file_cut_short_is_sigbus_where_it_was, .init = up, .fini = down)
{
	struct vmm a, b;
	char name[40];

	begin_4k(&a);
	begin_4k(&b);
	shakes_hands(&a, V1_12);
	shakes_hands(&b, V1_12);
	VERIFIES(&b, 0, N);
	VERIFIES(&a, 0, 10);
	cr_assert(zero(int, truncate(path, 700 * VMM_PAGE)));
	cr_assert(eq(i64, vmm_do(&a, VMM_VERIFY, 0, N, 0), SIGBUSES(N - 700)));
	VERIFIES(&b, 0, N);
	/* Who it was can be read. */
	snprintf(name, sizeof name, "[%d]: page at", (int)a.pid);
	logs(name);
	vmm_stop(&a);
	vmm_stop(&b);
}

Test(firecracker, who_is_ended_gets_sigbus, .init = up, .fini = down)
{
	struct vmm v;

	begin_4k(&v);
	shakes_hands(&v, V1_12);
	VERIFIES(&v, 0, 10);
	session_first()->ops->end(session_first());
	door_empty(1000);
	cr_assert(eq(i64, vmm_do(&v, VMM_VERIFY, 0, N, 0), SIGBUSES(N - 10)));
	vmm_stop(&v);
}

Test(firecracker, its_map_and_counts_can_be_read_at_any_time, .init = up, .fini = down)
{
	struct vmm v;
	json_t *map;

	begin_4k(&v);
	connects(&v);
	vmm_until(has_served, &(struct want){ .kind = UP_FAULT_SOFT }, VMM_DEADLINE_MS, "come");
	map = session_first()->ops->map(session_first(), &(struct glance){ 0 });
	cr_assert(zero(sz, json_array_size(map)));
	json_decref(map);
	shakes_hands(&v, V1_12);
	VERIFIES(&v, 0, N / 2);
	map = session_first()->ops->map(session_first(), &(struct glance){ 0 });
	cr_assert(eq(sz, json_array_size(map), 2));
	json_decref(map);
	vmm_stop(&v);
}

/* --- the working set --- */

#define WS_PAGES ((uint64_t)16384)
#define WS_TOUCHED ((uint64_t)12000)

static void
up_working_set(void)
{
	at_once(); /* who brings the record in is to be ahead of who touches */
	up_n(WS_PAGES);
	config.working_set = true;
}

static double
ms_of(struct vmm *v, enum vmm_op op, uint64_t n)
{
	const uint64_t t = now_ns();

	cr_assert(zero(i64, vmm_do(v, op, 0, n, 1)), "%s", logged);
	return (double)(now_ns() - t) / 1e6;
}

static bool
has_record(void *arg)
{
	(void)arg;
	return access(record_path, F_OK) == 0;
}

/* One life: how many faults it had to wait for, and how long it took to read all that it reads. */
static uint64_t
restore(double *ms, uint64_t *prefetched)
{
	const struct vmm_config cfg = { .npages = WS_PAGES, .features = FEATURES };
	struct session_counts c;
	struct vmm v;

	begin(&v, &cfg);
	shakes_hands(&v, V1_12);
	*ms = ms_of(&v, VMM_VERIFY, WS_TOUCHED);
	c = door_counts();
	vmm_stop(&v);
	door_empty(2000);
	*prefetched = c.prefetched;
	return c.faults[UP_FAULT_MAJOR];
}

/* The file is on the disk, and nowhere else. */
static void
cool(void)
{
	cr_assert(zero(int, fsync(source->fd)));
	madvise(source->map, source->size, MADV_DONTNEED);
	cr_assert(zero(int, posix_fadvise(source->fd, 0, 0, POSIX_FADV_DONTNEED)));
}

static void
two_restores(bool cold)
{
	uint64_t first, second, prefetched;
	double ms[2];

	if (cold)
		cool();
	first = restore(&ms[0], &prefetched);
	cr_assert(ge(u64, first, WS_TOUCHED - 1));
	cr_assert(zero(u64, prefetched));
	cr_assert(has_record(NULL), "%s", logged);
	if (cold)
		cool();
	second = restore(&ms[1], &prefetched);
	fprintf(stderr,
		"working set of %d pages, %s: without %d faults, %.1f ms; with %d faults, %d prefetched, %.1f ms: %.1fx\n",
		(int)WS_TOUCHED, cold ? "on disk" : "in memory", (int)first, ms[0], (int)second,
		(int)prefetched, ms[1], ms[0] / ms[1]);
	/* Its time is told, not asserted: who else runs here is not known.  Nor how slow the disk is, while it reads in order. */
	cr_assert(le(u64, second, WS_TOUCHED / (cold ? 4 : 20)), "%d faults", (int)second);
	/* What nobody touched is not brought. */
	cr_assert(le(u64, prefetched, WS_TOUCHED));
}

Test(firecracker, a_second_restore_finds_its_working_set, .init = up_working_set, .fini = down)
{
	two_restores(false);
}

Test(firecracker, a_second_restore_of_a_cold_file_does, .init = up_working_set, .fini = down)
{
	two_restores(true);
}

Test(firecracker, a_window_ends_while_the_machine_runs, .init = up_working_set, .fini = down)
{
	const struct vmm_config cfg = { .npages = WS_PAGES, .features = FEATURES };
	struct working_set ws;
	struct vmm v;

	config.record_seconds = 1;
	begin(&v, &cfg);
	shakes_hands(&v, V1_12);
	VERIFIES(&v, 0, 300);
	vmm_until(has_record, NULL, VMM_DEADLINE_MS, "recorded");
	VERIFIES(&v, 300, 300);
	cr_assert(zero(int, working_set_load(record_path, &source->id, &ws)));
	cr_assert(eq(sz, ws.n, 1));
	cr_assert(eq(u64, ws.run[0].n, 300));
	working_set_free(&ws);
	vmm_stop(&v);
}

Test(firecracker, a_stale_record_is_not_used, .init = up_working_set, .fini = down)
{
	uint64_t prefetched;
	struct stat st;
	double ms;
	int fd;

	restore(&ms, &prefetched);
	/* The same bytes, written again. */
	fd = open(path, O_WRONLY | O_CLOEXEC);
	cr_assert(zero(int, fstat(fd, &st)));
	cr_assert(zero(int, futimens(fd, (struct timespec[]){ { 0, UTIME_NOW }, { 1, 2 } })));
	close(fd);
	memfile_unref(source);
	cr_assert(zero(int, memfile_open(&source, path, &config.log)));
	config.source = source;
	cr_assert(ge(u64, restore(&ms, &prefetched), WS_TOUCHED - 1));
	cr_assert(zero(u64, prefetched));
	logs("the snapshot is not the one that it was made of");
}

/* --- a guest --- */

#define GUEST_PAGES ((uint64_t)256)

static void
up_guest(void)
{
	up_n(GUEST_PAGES);
}

Test(firecracker, a_guest_reads_its_memory, .init = up_guest, .fini = down)
{
	const struct vmm_config cfg = { .npages = GUEST_PAGES, .features = FEATURES };
	struct vmm v;
	int64_t sum;
	uint16_t want = 0;

	begin(&v, &cfg);
	shakes_hands(&v, V1_12);
	sum = vmm_do(&v, VMM_KVM, 0, GUEST_PAGES, 0);
	for (uint64_t p = 0; p < GUEST_PAGES; p++)
		want = (uint16_t)(want + vmm_word(p, 0));
	if (sum == -ENOENT || sum == -EACCES || sum == -EPERM || sum == -ENODEV) {
		vmm_stop(&v);
		cr_skip_test("no KVM here: %s", strerror((int)-sum));
	}
	cr_assert(eq(i64, sum, want), "%s", logged);
	served(UP_FAULT_MAJOR, GUEST_PAGES);
	vmm_stop(&v);
}

/* --- the program --- */

static pid_t
program(char **argv)
{
	const char *other, *log;
	const pid_t pid = fork();
	int argc = 0, null;

	cr_assert(pid >= 0);
	if (pid > 0)
		return pid;
	null = open("/dev/null", O_RDWR);
	dup2(null, 1);
	dup2(null, 2);
	while (argv[argc] != NULL)
		argc++;
	/* Another build of it, with TSan, which Criterion can't be built with. */
	other = getenv("UP_TEST_PROGRAM");
	log = getenv("UP_TEST_LOG");
	if (other != NULL) {
		if (log != NULL)
			dup2(open(log, O_WRONLY | O_CREAT | O_APPEND, 0600), 2);
		execv(other, argv);
	}
	exit(firecracker_main(argc, argv));
}

static int
status_of(pid_t pid)
{
	int status;

	for (unsigned ms = 0; ms < VMM_DEADLINE_MS; ms++) {
		if (waitpid(pid, &status, WNOHANG) == pid)
			return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status;
		poll(NULL, 0, 1);
	}
	kill(pid, SIGKILL);
	cr_fatal("it does not end");
}

static bool
is_there(void *arg)
{
	return access(arg, F_OK) == 0;
}

static void
listens(void)
{
	vmm_until(is_there, sock, VMM_DEADLINE_MS, "listening");
	poll(NULL, 0, 20); /* from bind() to listen() */
}

static void
files(void)
{
	cr_assert(mkdtemp(dir) != NULL);
	snprintf(path, sizeof path, "%s/memfile", dir);
	snprintf(record_path, sizeof record_path, "%s.ws", path);
	snprintf(sock, sizeof sock, "%s/socket", dir);
	vmm_make_file(path, N);
}

static void
no_files(void)
{
	unlink(path);
	unlink(record_path);
	unlink(sock);
	rmdir(dir);
}

#define ARGS(...) ((char *[]){ (char[]){ "firecracker" }, __VA_ARGS__, NULL })
#define TEXT(t) ((char[]){ t })

Test(firecracker, the_program_says_2_for_wrong_usage, .init = files, .fini = no_files)
{
	cr_assert(eq(int, status_of(program(ARGS(sock))), 2));
	cr_assert(eq(int, status_of(program(ARGS(sock, path, path))), 2));
	cr_assert(eq(int, status_of(program(ARGS(TEXT("--nonsense"), sock, path))), 2));
	cr_assert(eq(int, status_of(program(ARGS(TEXT("--record-seconds=0"), sock, path))), 2));
	cr_assert(eq(int, status_of(program(ARGS(TEXT("--record-seconds=x"), sock, path))), 2));
	cr_assert(eq(int, status_of(program(ARGS(TEXT("--help")))), 0));
}

Test(firecracker, the_program_says_1_for_what_fails, .init = files, .fini = no_files)
{
	pid_t pid;

	cr_assert(eq(int, status_of(program(ARGS(sock, TEXT("/nonexistent")))), 1));
	cr_assert(eq(int, status_of(program(ARGS(TEXT("/nonexistent/socket"), path))), 1));
	cr_assert(eq(int, status_of(program(ARGS(path, path))), 1), "that is no socket");
	pid = program(ARGS(sock, path));
	listens();
	cr_assert(eq(int, status_of(program(ARGS(sock, path))), 1), "somebody listens there");
	kill(pid, SIGINT);
	cr_assert(zero(int, status_of(pid)));
}

Test(firecracker, the_program_serves_and_ends_with_everything_filled, .init = files,
     .fini = no_files)
{
	struct vmm v;
	pid_t pid;

	/* A socket that is left over is in nobody's way. */
	pid = program(ARGS(sock, path));
	listens();
	kill(pid, SIGKILL);
	status_of(pid);
	cr_assert(is_there(sock));
	begin_4k(&v);
	pid = program(ARGS(sock, path, TEXT("--record-seconds=1")));
	poll(NULL, 0, 100);
	shakes_hands(&v, V1_12);
	VERIFIES(&v, 0, 100);
	kill(pid, SIGTERM);
	cr_assert(zero(int, status_of(pid)));
	cr_assert(not(is_there(sock)));
	cr_assert(is_there(record_path));
	VERIFIES(&v, 0, N);
	vmm_stop(&v);
}

Test(firecracker, the_program_serves_several, .init = files, .fini = no_files)
{
	struct vmm v[3];
	pid_t pid;

	pid = program(ARGS(sock, path));
	listens();
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < 3; i++)
			begin_4k(&v[i]);
		for (unsigned i = 0; i < 3; i++)
			shakes_hands(&v[i], V1_12);
		for (unsigned i = 0; i < 3; i++)
			vmm_ask(&v[i], i == 0 ? VMM_STORM : VMM_THREADS, 0, N, i == 0 ? 300 : 4);
		for (unsigned i = 0; i < 3; i++) {
			cr_assert(zero(i64, vmm_answer(&v[i])));
			vmm_stop(&v[i]);
		}
	}
	kill(pid, SIGTERM);
	cr_assert(zero(int, status_of(pid)));
}
