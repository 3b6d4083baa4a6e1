/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_remote.c: programs that are connected to a pager in another process (lib/serve.c, lib/remote.c).
 *
 * The daemon is a child of the test; the test is the client.  What it serves is in memory that both have.
 */
#include "assertions.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/base.h"
#include "childmsg.h"
#include "descriptor.h"
#include "dump.h"
#include "fuse_file.h"
#include "serve.h"
#include "slow.h"
#include "timely.h"

#define MiB ((size_t)1 << 20)
#define WORDS (PAGE_SIZE / sizeof(uint64_t))
#define RW (PROT_READ | PROT_WRITE)
#define DEADLINE 20.0

struct shared {
	atomic_uint ready, accepted, ended, failed;
	atomic_uint regions; /* of all clients, when last asked */
	atomic_uint ask;     /* 1: count them */
	_Atomic uint64_t used;
	/* 3: the quota of a client, by the order of their coming; 4: take bytes from it; 5: the quota of `group`; 6: the client is in `group` from here on; 7: swap of `group`; 8: ask the client to leave, `limit` is how many ms */
	atomic_uint client;
	char group[32];	  /* that clients come into */
	char watched[32]; /* the group whose memory is looked at all the time */
	_Atomic uint64_t group_most, group_least;
	_Atomic uint64_t limit, minimum;
	atomic_int result;
	atomic_uint flushing; /* the daemon is told to make a file safe, and has not done so */
	atomic_bool hold;     /* which takes as long as this */
	_Atomic uint64_t resident[8], most[8], least[8]; /* of clients, looked at all the time */
	_Atomic uint64_t sigbus[8];
	char said[1024]; /* by the daemon, the last error */
	atomic_uint errors;
};

static struct shared *shared;
static struct up_runtime *rt;
static char path[64], logged[4096];
static pid_t daemon_pid;
static struct serve_limits limits = { .regions = 100, .objects = 20, .mapped = 1 << 30 };
static size_t daemon_limit = 8 * MiB;

static double
seconds(void)
{
	return (double)now_ns() * 1e-9;
}

static void
nap(void)
{
	poll(NULL, 0, 2);
}

static void
collect(void *ctx, enum up_log_level level, const char *line)
{
	const size_t n = strlen(logged);

	(void)ctx;
	(void)level;
	snprintf(logged + n, sizeof logged - n, "%s\n", line);
}

/* --- the daemon --- */

/* As with a disk that takes its time. */
static int
held_fdatasync(int fd)
{
	if (shared != NULL) {
		atomic_fetch_add(&shared->flushing, 1);
		while (atomic_load(&shared->hold))
			nap();
		atomic_fetch_sub(&shared->flushing, 1);
	}
	return (int)syscall(SYS_fdatasync, fd);
}

int fdatasync(int) __attribute__((alias("held_fdatasync")));

static void
gone(void *ctx, uint64_t id, bool guest)
{
	(void)ctx;
	(void)id;
	(void)guest;
	atomic_fetch_add(&shared->ended, 1);
}

static void
grumble(void *ctx, enum up_log_level level, const char *line)
{
	(void)ctx;
	if (level <= UP_LOG_WARNING && getenv("UP_TEST_LOG") != NULL)
		fprintf(stderr, "daemon: %s\n", line);
	if (level == UP_LOG_ERROR) {
		snprintf(shared->said, sizeof shared->said, "%s", line);
		atomic_fetch_add(&shared->errors, 1);
	}
}

static bool few_on_their_way;

/* As a daemon that runs as its unit says. */
static void
give_up_rights(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	if (setrlimit(RLIMIT_NOFILE, &(struct rlimit){ 1024, 1024 }) < 0 ||
	    syscall(SYS_capget, &head, data) < 0)
		_exit(1);
	data[0].effective &= ~(1u << CAP_SYS_RESOURCE | 1u << CAP_SYS_ADMIN);
	if (syscall(SYS_capset, &head, data) < 0)
		_exit(1);
}

/* As native_refuse() does it. */
static void
turn_away(int sock, int r)
{
	struct msg m = { .type = MSG_RETURN, .status = r };

	snprintf(m.call.text, sizeof m.call.text, "%s", serve_refused(r));
	(void)msg_send_by(sock, &m, NULL, 0, 0);
	close(sock);
}

static int
daemon_run(int listener)
{
	const struct up_config cfg = { .memory_limit = daemon_limit,
				       .service_threads = 2,
				       .log = grumble };
	uint64_t id[64] = { 0 }, audited = 0;
	struct up_runtime *served;
	unsigned n = 0;
	int r;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	r = up_runtime_create(&served, &cfg);
	if (few_on_their_way)
		give_up_rights();
	if (r == 0)
		r = serve_start(served, gone, NULL);
	atomic_store(&shared->failed, (unsigned)-r);
	atomic_store(&shared->ready, 1);
	while (r == 0) {
		struct pollfd pf = { .fd = listener, .events = POLLIN };
		struct up_stats st;

		for (unsigned i = 0; i < MIN(n, 8); i++) {
			struct serve_info info;

			if (serve_info(served, id[i], &info) < 0)
				continue;
			atomic_store(&shared->resident[i], info.resident);
			atomic_store(&shared->sigbus[i], info.sigbus);
			if (info.resident > atomic_load(&shared->most[i]))
				atomic_store(&shared->most[i], info.resident);
			if (info.resident < atomic_load(&shared->least[i]))
				atomic_store(&shared->least[i], info.resident);
		}
		struct serve_group group;

		if (serve_group_info(served, shared->watched, &group) == 0) {
			if (group.resident > atomic_load(&shared->group_most))
				atomic_store(&shared->group_most, group.resident);
			if (group.resident < atomic_load(&shared->group_least))
				atomic_store(&shared->group_least, group.resident);
		}
		if (poll(&pf, 1, 1) > 0) {
			struct serve_limits with = limits;
			const int sock =
				accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

			with.group = shared->group;
			if (sock >= 0)
				r = serve_accept(served, sock, &with, &id[n % 64]);
			if (sock >= 0 && r == 0)
				n++;
			else if (sock >= 0)
				turn_away(sock, r);
			r = 0;
			atomic_store(&shared->accepted, n);
		}
		if (now_ns() - audited > 50000000) {
			audited = now_ns();
			serve_audit(served);
		}
		if (atomic_load(&shared->ask) == 0)
			continue;
		if (atomic_load(&shared->ask) >= 3) {
			const uint64_t who = id[atomic_load(&shared->client)],
				       most = atomic_load(&shared->limit),
				       least = atomic_load(&shared->minimum);

			switch (atomic_load(&shared->ask)) {
			case 3:
				r = serve_quota(served, who, most, least);
				break;
			case 4:
				r = (int)serve_evict(served, who, most);
				break;
			case 5:
				r = serve_group_quota(served, shared->group, most, least);
				break;
			case 7:
				r = serve_group_swap(served, shared->group, most);
				break;
			case 8:
				r = serve_leave(served, who, (unsigned)most);
				break;
			default:
				r = serve_regroup(served, who, shared->group);
				break;
			}
			atomic_store(&shared->result, r);
			r = 0;
			atomic_store(&shared->ask, 0);
			continue;
		}
		if (atomic_load(&shared->ask) == 2) {
			up_runtime_destroy(served);
			atomic_store(&shared->ask, 0);
			return 0;
		}
		atomic_store(&shared->regions, 0);
		for (unsigned i = 0; i < MIN(n, 64); i++) {
			struct serve_info info;

			if (serve_info(served, id[i], &info) == 0)
				atomic_fetch_add(&shared->regions, (unsigned)info.regions);
		}
		up_stats_get(served, &st, sizeof st);
		atomic_store(&shared->used, st.resident + st.staged + st.swapped);
		atomic_store(&shared->ask, 0);
	}
	return 1;
}

static void
daemon_start(void)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	const double until = seconds() + DEADLINE;
	int listener;

	shared = mmap(NULL, PAGE_SIZE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	snprintf(path, sizeof path, "/tmp/test_remote.%d", (int)getpid());
	unlink(path);
	strcpy(sun.sun_path, path);
	listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	cr_assert(bind(listener, (struct sockaddr *)&sun, sizeof sun) == 0 &&
		  listen(listener, 64) == 0);
	daemon_pid = fork();
	if (daemon_pid == 0)
		_exit(daemon_run(listener));
	close(listener);
	while (atomic_load(&shared->ready) == 0) {
		cr_assert(seconds() < until, "the daemon does not come up");
		nap();
	}
	if (atomic_load(&shared->failed) == EPERM || atomic_load(&shared->failed) == ENOSYS ||
	    atomic_load(&shared->failed) == ENOTSUP) {
		kill(daemon_pid, SIGKILL);
		cr_skip_test("no userfaultfd with shared memory here");
	}
	cr_assert(eq(uint, atomic_load(&shared->failed), 0));
}

static void
daemon_ask(unsigned what)
{
	const double until = seconds() + DEADLINE;

	atomic_store(&shared->ask, what);
	while (atomic_load(&shared->ask) != 0) {
		cr_assert(seconds() < until, "the daemon does not answer (%u)", what);
		nap();
	}
}

static void
wait_ended(unsigned n)
{
	const double until = seconds() + DEADLINE;

	while (atomic_load(&shared->ended) < n) {
		cr_assert(seconds() < until, "%u clients have ended, of %u",
			  atomic_load(&shared->ended), n);
		nap();
	}
}

static void
set_up(void)
{
	daemon_start();
}

static void
tear_down(void)
{
	if (daemon_pid > 0) {
		kill(daemon_pid, SIGKILL);
		waitpid(daemon_pid, NULL, 0);
	}
	unlink(path);
}

TestSuite(remote, .init = set_up, .fini = tear_down, .timeout = 60);

static void
set_up_timely(void)
{
	at_once();
	daemon_start();
}

TestSuite(timely, .init = set_up_timely, .fini = tear_down, .timeout = 60);

/* --- the client --- */

static struct up_runtime *
must_connect(void)
{
	const struct up_config cfg = { .log = collect };
	struct up_runtime *made;
	const int r = up_runtime_connect(&made, path, &cfg);

	cr_assert(r == 0, "connect: %s: %s", strerrorname_np(-r), logged);
	return made;
}

static uint64_t *
must_map(struct up_runtime *in, size_t npages, unsigned flags, struct up_object *o, uint64_t offset)
{
	void *p = NULL;
	const int r = up_map(in, NULL, npages * PAGE_SIZE, RW, flags, o, offset, &p);

	cr_assert(r == 0, "map: %s: %s", strerrorname_np(-r), logged);
	return p;
}

static void
fill(uint64_t *p, size_t npages, uint64_t tag)
{
	for (size_t i = 0; i < npages * WORDS; i++)
		p[i] = tag + i;
}

static size_t
wrong(const uint64_t *p, size_t npages, uint64_t tag)
{
	size_t n = 0;

	for (size_t i = 0; i < npages * WORDS; i++)
		n += p[i] != tag + i;
	return n;
}

static sigjmp_buf out;

static void
on_signal(int sig)
{
	siglongjmp(out, sig);
}

/* The signal that reading this raises, or 0. */
static int
touch(const volatile uint64_t *p)
{
	const struct sigaction sa = { .sa_handler = on_signal };
	struct sigaction bus, segv;
	int sig;

	sigaction(SIGBUS, &sa, &bus);
	sigaction(SIGSEGV, &sa, &segv);
	sig = sigsetjmp(out, 1);
	if (sig == 0)
		(void)*p;
	sigaction(SIGBUS, &bus, NULL);
	sigaction(SIGSEGV, &segv, NULL);
	return sig;
}

Test(remote, memory_four_times_the_budget_comes_back)
{
	const size_t npages = 4 * daemon_limit / PAGE_SIZE;
	struct up_stats st;
	uint64_t *p;

	rt = must_connect();
	p = must_map(rt, npages, UP_PRIVATE, NULL, 0);
	fill(p, npages, 1000);
	cr_assert(eq(sz, wrong(p, npages, 1000), 0));
	cr_assert(eq(int, up_stats_get(rt, &st, sizeof st), 0));
	cr_assert(eq(u64, st.mapped, npages * PAGE_SIZE));
	cr_assert(eq(u64, st.limit, daemon_limit));
	cr_assert(eq(u64, st.resident + st.swapped, npages * PAGE_SIZE));
	cr_assert(gt(u64, st.swapped, 2 * daemon_limit));
	cr_assert(eq(u64, st.used, st.resident));
	cr_assert(zero(u64, st.fault_sigbus));
	cr_assert(gt(u64, st.faults[UP_FAULT_ZERO], 0));
	cr_assert(gt(u64, st.faults[UP_FAULT_MAJOR], 0));
	for (unsigned k = 0; k < UP_FAULT_KINDS; k++) {
		cr_assert(eq(u64, st.latency[k].count, st.faults[k]));
		cr_assert(eq(int, st.latency[k].p50 > 0, st.faults[k] > 0));
		cr_assert(le(u64, st.latency[k].p50, st.latency[k].p99));
	}
	cr_assert(eq(int, up_unmap(rt, p, npages * PAGE_SIZE), 0));
	cr_assert(eq(int, touch(p), SIGSEGV));
	daemon_ask(1);
	cr_assert(eq(uint, atomic_load(&shared->regions), 0));
	cr_assert(eq(u64, atomic_load(&shared->used), 0));
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2); /* its checks at the end */
}

Test(remote, a_part_is_unmapped_protected_and_discarded)
{
	unsigned char in[64];
	uint64_t *p;

	rt = must_connect();
	p = must_map(rt, 64, UP_PRIVATE, NULL, 0);
	fill(p, 64, 7);
	cr_assert(eq(int, up_protect(rt, p + 8 * WORDS, 8 * PAGE_SIZE, PROT_READ), 0));
	cr_assert(eq(int, touch(p + 8 * WORDS), 0));
	cr_assert(eq(int, up_protect(rt, p + 8 * WORDS, 8 * PAGE_SIZE, PROT_NONE), 0));
	cr_assert(eq(int, touch(p + 8 * WORDS), SIGSEGV));
	cr_assert(eq(int, up_protect(rt, p + 8 * WORDS, 8 * PAGE_SIZE, RW), 0));
	cr_assert(eq(int, up_advise(rt, p, 4 * PAGE_SIZE, UP_ADVICE_DONTNEED), 0));
	cr_assert(eq(int, up_residency(rt, p, 64 * PAGE_SIZE, in), 0));
	for (unsigned i = 0; i < 64; i++)
		cr_assert(eq(int, in[i] != 0, i >= 4), "page %u: %d", i, in[i]);
	for (size_t i = 0; i < 4 * WORDS; i++)
		cr_assert(eq(u64, p[i], 0));
	cr_assert(eq(int, up_unmap(rt, p + 16 * WORDS, 16 * PAGE_SIZE), 0));
	cr_assert(eq(int, touch(p + 16 * WORDS), SIGSEGV));
	cr_assert(eq(sz, wrong(p + 32 * WORDS, 32, 7 + 32 * WORDS), 0));
	cr_assert(eq(int, up_advise(rt, p, 32 * PAGE_SIZE, UP_ADVICE_RANDOM), -ENOMEM));
	cr_assert(eq(int, up_advise(rt, p, 16 * PAGE_SIZE, UP_ADVICE_RANDOM), 0));
	cr_assert(eq(int, up_prefault(rt, p, 16 * PAGE_SIZE, 1), 0));
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

/* How many of the pages are in memory, where they can be touched. */
static size_t
there(struct up_runtime *in, const uint64_t *p, size_t npages)
{
	unsigned char vec[4096];
	size_t n = 0;

	cr_assert(npages <= sizeof vec && up_residency(in, p, npages * PAGE_SIZE, vec) == 0, "%s",
		  logged);
	for (size_t i = 0; i < npages; i++)
		n += (vec[i] & UP_PAGE_MAPPED) != 0;
	return n;
}

static uint64_t
major_faults(struct up_runtime *of)
{
	struct up_stats st;

	cr_assert(eq(int, up_stats_get(of, &st, sizeof st), 0));
	return st.faults[UP_FAULT_MAJOR];
}

/* Pages of a client that are in swap, and nothing else that is in memory. */
static uint64_t *
swapped_out(size_t npages)
{
	uint64_t *p, *other;

	rt = must_connect();
	p = must_map(rt, npages, UP_PRIVATE, NULL, 0);
	fill(p, npages, 5);
	other = must_map(rt, 4096, UP_PRIVATE, NULL, 0);
	fill(other, 4096, 6);
	cr_assert(eq(int, up_unmap(rt, other, 4096 * PAGE_SIZE), 0));
	cr_assert(lt(sz, there(rt, p, npages), npages / 4));
	return p;
}

Test(remote, what_will_be_needed_comes_in_by_itself)
{
	uint64_t *const p = swapped_out(512);
	const double until = seconds() + DEADLINE;
	uint64_t before;

	cr_assert(eq(int, up_advise(rt, p, 512 * PAGE_SIZE, UP_ADVICE_WILLNEED), 0));
	while (there(rt, p, 512) < 512) {
		cr_assert(seconds() < until, "%zu of 512 pages are there", there(rt, p, 512));
		nap();
	}
	before = major_faults(rt);
	cr_assert(eq(sz, wrong(p, 512, 5), 0));
	cr_assert(eq(u64, major_faults(rt), before));
	/* Of what is not mapped, or never was touched, nothing comes. */
	cr_assert(eq(int, up_advise(rt, p, 513 * PAGE_SIZE, UP_ADVICE_WILLNEED), -ENOMEM));
	up_runtime_destroy(rt);
}

Test(remote, a_range_is_brought_in_or_refused)
{
	uint64_t *const p = swapped_out(512);
	uint64_t *big, before;

	cr_assert(eq(int, up_prefault(rt, p, 512 * PAGE_SIZE, 0), 0));
	before = major_faults(rt);
	cr_assert(eq(sz, wrong(p, 512, 5), 0));
	cr_assert(eq(u64, major_faults(rt), before));
	cr_assert(eq(int, up_prefault(rt, p, 512 * PAGE_SIZE, 1), 0));
	fill(p, 512, 7);
	cr_assert(eq(int, up_protect(rt, p, 256 * PAGE_SIZE, PROT_READ), 0));
	cr_assert(eq(int, up_prefault(rt, p, 512 * PAGE_SIZE, 1), -EACCES));
	cr_assert(eq(int, up_prefault(rt, p, 512 * PAGE_SIZE, 0), 0));
	cr_assert(eq(int, up_prefault(rt, p, 513 * PAGE_SIZE, 0), -ENOMEM));
	/* More than fits into the budget of 8 MiB. */
	big = must_map(rt, 2048, UP_PRIVATE, NULL, 0);
	cr_assert(eq(int, up_prefault(rt, big, 2048 * PAGE_SIZE, 1), -ENOMEM));
	cr_assert(eq(sz, wrong(p, 512, 7), 0));
	up_runtime_destroy(rt);
}

static int raw_client(void);
static int raw_call(int fd, const struct call *q, struct msg *m);
static void raw_map(int fd, uint64_t addr, int prot, bool inherit);
static int raw_cloning(const char *name, uint64_t length, struct call *q);

/* How many of the pages stay in memory. */
static size_t
held(struct up_runtime *in, const uint64_t *p, size_t npages)
{
	unsigned char vec[4096];
	size_t n = 0;

	cr_assert(npages <= sizeof vec && up_residency(in, p, npages * PAGE_SIZE, vec) == 0, "%s",
		  logged);
	for (size_t i = 0; i < npages; i++)
		n += (vec[i] & UP_PAGE_WIRED) != 0 && (vec[i] & UP_PAGE_MAPPED) != 0;
	return n;
}

static uint64_t
wired_bytes(struct up_runtime *of)
{
	struct up_stats st;

	cr_assert(eq(int, up_stats_get(of, &st, sizeof st), 0));
	return st.wired;
}

/* Everything that is not wired goes out. */
static void
press(struct up_runtime *in)
{
	const size_t npages = 2 * daemon_limit / PAGE_SIZE;
	uint64_t *const p = must_map(in, npages, UP_PRIVATE, NULL, 0);

	fill(p, npages, 77);
	cr_assert(eq(int, up_unmap(in, p, npages * PAGE_SIZE), 0));
}

Test(remote, wired_pages_stay_whatever_else_is_paged)
{
	struct up_stats before, after;
	uint64_t *p;

	rt = must_connect();
	p = must_map(rt, 512, UP_PRIVATE, NULL, 0);
	fill(p, 512, 3);
	press(rt);
	cr_assert(lt(sz, there(rt, p, 512), 512));
	cr_assert(eq(int, up_wire(rt, p + 100 * WORDS, 200 * PAGE_SIZE), 0), "%s", logged);
	cr_assert(eq(u64, wired_bytes(rt), 200 * PAGE_SIZE));
	press(rt);
	cr_assert(eq(sz, held(rt, p, 512), 200));
	cr_assert(eq(sz, held(rt, p + 100 * WORDS, 200), 200));
	cr_assert(eq(int, up_stats_get(rt, &before, sizeof before), 0));
	cr_assert(eq(sz, wrong(p + 100 * WORDS, 200, 3 + 100 * WORDS), 0));
	cr_assert(eq(int, up_stats_get(rt, &after, sizeof after), 0));
	cr_assert(eq(u64, after.faults[UP_FAULT_MAJOR], before.faults[UP_FAULT_MAJOR]));
	cr_assert(eq(u64, after.faults[UP_FAULT_SOFT], before.faults[UP_FAULT_SOFT]));
	cr_assert(eq(int, up_unwire(rt, p + 100 * WORDS, 200 * PAGE_SIZE), 0), "%s", logged);
	cr_assert(eq(u64, wired_bytes(rt), 0));
	cr_assert(eq(int, up_advise(rt, p, 512 * PAGE_SIZE, UP_ADVICE_COLD), 0));
	press(rt);
	cr_assert(lt(sz, there(rt, p + 100 * WORDS, 200), 200));
	cr_assert(eq(sz, wrong(p, 512, 3), 0));
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

Test(remote, wiring_nests_and_what_would_undo_it_is_refused)
{
	uint64_t *p;
	void *copy;

	rt = must_connect();
	p = must_map(rt, 64, UP_PRIVATE, NULL, 0);
	cr_assert(eq(int, up_wire(rt, p, 32 * PAGE_SIZE), 0), "%s", logged);
	cr_assert(eq(int, up_wire(rt, p + 16 * WORDS, 32 * PAGE_SIZE), 0), "%s", logged);
	cr_assert(eq(u64, wired_bytes(rt), 48 * PAGE_SIZE));
	cr_assert(eq(int, up_unwire(rt, p, 64 * PAGE_SIZE), -EINVAL));
	cr_assert(eq(int, up_unwire(rt, p, 32 * PAGE_SIZE), 0));
	cr_assert(eq(u64, wired_bytes(rt), 32 * PAGE_SIZE));
	cr_assert(eq(sz, held(rt, p + 16 * WORDS, 32), 32));
	cr_assert(eq(int, up_advise(rt, p, 17 * PAGE_SIZE, UP_ADVICE_DONTNEED), -EINVAL));
	cr_assert(eq(int, up_advise(rt, p, 16 * PAGE_SIZE, UP_ADVICE_DONTNEED), 0));
	cr_assert(eq(int, up_clone(rt, p, 4 * PAGE_SIZE, &copy), -EBUSY));
	cr_assert(eq(int, up_wire(rt, p, 65 * PAGE_SIZE), -ENOMEM));
	cr_assert(eq(int, up_wire(rt, p, 100), -EINVAL));
	cr_assert(eq(int, up_protect(rt, p, PAGE_SIZE, PROT_NONE), 0));
	cr_assert(eq(int, up_wire(rt, p, 2 * PAGE_SIZE), -EACCES));
	cr_assert(eq(int, up_unmap(rt, p + 32 * WORDS, 32 * PAGE_SIZE), 0));
	cr_assert(eq(u64, wired_bytes(rt), 16 * PAGE_SIZE));
	cr_assert(eq(int, up_unwire(rt, p + 16 * WORDS, 16 * PAGE_SIZE), 0));
	cr_assert(eq(u64, wired_bytes(rt), 0));
	cr_assert(eq(int, up_clone(rt, p + WORDS, 4 * PAGE_SIZE, &copy), 0), "%s", logged);
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

/* Who takes away what he has wired harms himself. */
Test(remote, what_a_client_punches_out_of_its_wired_pages_is_gone)
{
	uint64_t *p;

	rt = must_connect();
	p = must_map(rt, 128, UP_PRIVATE, NULL, 0);
	fill(p, 128, 1);
	cr_assert(eq(int, up_wire(rt, p, 128 * PAGE_SIZE), 0), "%s", logged);
	cr_assert(madvise(p, 64 * PAGE_SIZE, MADV_REMOVE) == 0, "%s", strerror(errno));
	for (size_t i = 0; i < 32 * WORDS; i++)
		cr_assert(eq(u64, p[i], 0));
	press(rt);
	cr_assert(eq(sz, wrong(p + 64 * WORDS, 64, 1 + 64 * WORDS), 0));
	fill(p, 128, 2);
	cr_assert(eq(int, up_wire(rt, p, 128 * PAGE_SIZE), 0), "%s", logged);
	cr_assert(eq(int, up_unwire(rt, p, 128 * PAGE_SIZE), 0), "%s", logged);
	cr_assert(eq(int, up_unwire(rt, p, 100 * PAGE_SIZE), 0), "%s", logged);
	press(rt);
	cr_assert(eq(sz, wrong(p, 128, 2), 0));
	cr_assert(eq(sz, held(rt, p + 100 * WORDS, 28), 28));
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

/* Of 8 MiB half may be wired, by one client a quarter of that; and with what others were promised three quarters of all. */
Test(remote, nobody_wires_away_the_budget)
{
	const size_t most = daemon_limit / PAGE_SIZE / 8;
	struct up_runtime *in[5];
	uint64_t *p[5];

	for (unsigned i = 0; i < 5; i++) {
		in[i] = must_connect();
		p[i] = must_map(in[i], 2 * most, UP_PRIVATE, NULL, 0);
		fill(p[i], 2 * most, i);
		cr_assert(eq(int, up_wire(in[i], p[i], 2 * most * PAGE_SIZE), -EDQUOT));
		cr_assert(eq(u64, wired_bytes(in[i]), 0));
	}
	for (unsigned i = 0; i < 3; i++) {
		cr_assert(eq(int, up_wire(in[i], p[i], most * PAGE_SIZE), 0), "%u: %s", i, logged);
		cr_assert(eq(int, up_wire(in[i], p[i] + most * WORDS, PAGE_SIZE), -EDQUOT));
		/* Once more costs nothing. */
		cr_assert(eq(int, up_wire(in[i], p[i], PAGE_SIZE), 0), "%u: %s", i, logged);
	}
	/* Metadata is promised out of the same half. */
	cr_assert(up_wire(in[3], p[3], most * PAGE_SIZE) == -ENOMEM ||
		  up_wire(in[4], p[4], most * PAGE_SIZE) == -ENOMEM);
	for (unsigned i = 0; i < 5; i++) {
		press(in[i]);
		cr_assert(eq(sz, wrong(p[i], 2 * most, i), 0));
	}
	/* What has gone has nothing. */
	up_runtime_destroy(in[0]);
	wait_ended(1);
	cr_assert(eq(int, up_unmap(in[1], p[1], 2 * most * PAGE_SIZE), 0));
	cr_assert(eq(int, up_unwire(in[2], p[2], most * PAGE_SIZE), 0));
	cr_assert(eq(int, up_wire(in[4], p[4], most * PAGE_SIZE), 0), "%s", logged);
	for (unsigned i = 1; i < 5; i++)
		up_runtime_destroy(in[i]);
	wait_ended(5);
	daemon_ask(2);
}

/* What is wired has one place, which the child can have too, but not a copy of its own. */
Test(remote, a_child_shares_what_is_wired_and_the_parent_keeps_it)
{
	struct up_object *o;
	uint64_t *p;
	int status;
	pid_t pid;

	rt = must_connect();
	cr_assert(eq(int, up_object_create_anon(rt, 64 * PAGE_SIZE, 0, &o), 0));
	p = must_map(rt, 64, UP_SHARED | UP_MULTI, o, 0);
	fill(p, 64, 1);
	cr_assert(eq(int, up_inherit(rt, p, 64 * PAGE_SIZE, UP_INHERIT_SHARE), 0), "%s", logged);
	cr_assert(eq(int, up_wire(rt, p, 64 * PAGE_SIZE), 0), "%s", logged);
	pid = fork();
	if (pid == 0) {
		const size_t n = wrong(p, 64, 1);

		fill(p, 64, 2);
		_exit(n == 0 && up_unwire(rt, p, PAGE_SIZE) == -ECHILD ? 0 : 1);
	}
	cr_assert(waitpid(pid, &status, 0) == pid);
	cr_assert(eq(int, status, 0), "%s", logged);
	press(rt);
	cr_assert(eq(sz, held(rt, p, 64), 64));
	cr_assert(eq(sz, wrong(p, 64, 2), 0));
	cr_assert(eq(int, up_unwire(rt, p, 64 * PAGE_SIZE), 0), "%s", logged);
	up_object_unref(o);
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

/* Between CLONE and MAPPED another program wires what is about to be parted. */
Test(remote, what_is_wired_in_the_middle_of_a_clone_is_not_parted)
{
	struct call call;
	struct up_object *o;
	struct msg m;
	uint64_t *p;
	int fd;

	rt = must_connect();
	cr_assert(eq(int, up_object_create_named(rt, "parted", 8 * PAGE_SIZE, 0, &o), 0));
	p = must_map(rt, 8, UP_SHARED, o, 0);
	fill(p, 8, 1);
	fd = raw_cloning("parted", 8 * PAGE_SIZE, &call);
	cr_assert(eq(int, up_wire(rt, p, 8 * PAGE_SIZE), 0), "%s", logged);
	call.op = CALL_MAPPED;
	cr_assert(eq(int, raw_call(fd, &call, &m), -EBUSY));
	cr_assert(eq(sz, held(rt, p, 8), 8));
	close(fd);
	cr_assert(eq(int, up_object_remove(rt, "parted"), 0));
	up_object_unref(o);
	up_runtime_destroy(rt);
	wait_ended(2);
	daemon_ask(2);
}

/* A daemon was killed as it counted the second of three mappings up, and perhaps had. */
Test(remote, what_was_being_wired_is_wired_once_by_the_next_daemon)
{
	struct wire_note note = { .done = 6,
				  .doing = 7,
				  .token = 7,
				  .start = 10 * PAGE_SIZE,
				  .end = 40 * PAGE_SIZE,
				  .more = true,
				  .which = 1,
				  .slot = { { 10 * PAGE_SIZE, 4 }, { 20 * PAGE_SIZE, 2 } } };
	const struct {
		unsigned at, wired, more, less, ended;
	} want[] = {
		{ 9, 5, 5, 5, 5 },			/* in front of the range */
		{ 10, 4, 4, 4, 4 },			/* counted */
		{ 20, 1, 2, 2, 1 },			/* as it was to be, whether it is or not */
		{ 20, 2, 2, 2, 2 }, { 30, 1, 2, 0, 1 }, /* not counted yet */
		{ 40, 1, 1, 1, 1 },			/* behind it */
	};

	for (size_t i = 0; i < ARRAY_SIZE(want); i++) {
		const struct map_entry e = { .start = want[i].at * PAGE_SIZE,
					     .wired = want[i].wired };

		note.more = true;
		note.doing = 7;
		cr_assert(eq(uint, wire_noted(&note, &e), want[i].more), "%zu", i);
		note.more = false;
		cr_assert(eq(uint, wire_noted(&note, &e), want[i].less), "%zu", i);
		/* Nothing is under way, or only that it has ended was not written down. */
		note.doing = 0;
		cr_assert(eq(uint, wire_noted(&note, &e), want[i].ended), "%zu", i);
		note.doing = note.done;
		cr_assert(eq(uint, wire_noted(&note, &e), want[i].ended), "%zu", i);
	}
}

Test(remote, what_is_not_in_memory_is_not_wired_by_asking_for_it)
{
	const int fd = raw_client();
	struct call call;
	struct msg m;

	raw_map(fd, 0x10000000, RW, false);
	/* Without a number; then nobody has touched the page, and who could does not. */
	call = (struct call){ .op = CALL_WIRE, .addr = 0x10000000, .length = PAGE_SIZE };
	cr_assert(eq(int, raw_call(fd, &call, &m), -EINVAL));
	call.offset = 1;
	cr_assert(eq(int, raw_call(fd, &call, &m), -EINPROGRESS));
	call.flags = WIRE_LOOK;
	cr_assert(eq(int, raw_call(fd, &call, &m), 0));
	call.flags = 2;
	cr_assert(eq(int, raw_call(fd, &call, &m), -EINVAL));
	call = (struct call){
		.op = CALL_UNWIRE, .addr = 0x10000000, .length = PAGE_SIZE, .offset = 2
	};
	cr_assert(eq(int, raw_call(fd, &call, &m), -EINVAL));
	close(fd);
	wait_ended(1);
	daemon_ask(2);
}

Test(remote, an_object_with_a_name_is_shared_and_outlives_who_made_it)
{
	struct up_object *o, *same;
	struct up_object_stats info;
	struct up_runtime *other;
	uint64_t *p, *q;

	rt = must_connect();
	other = must_connect();
	cr_assert(eq(int, up_object_create_named(rt, "table", 4 * MiB, 0, &o), 0));
	cr_assert(eq(int, up_object_create_named(other, "table", 4 * MiB, 0, &same), -EEXIST));
	cr_assert(eq(int, up_object_open(other, "chair", &same), -ENOENT));
	cr_assert(eq(int, up_object_open(other, "table", &same), 0));
	cr_assert(eq(int, up_object_info(same, &info, sizeof info), 0));
	cr_assert(eq(u64, info.size, 4 * MiB));
	p = must_map(rt, 1024, UP_SHARED, o, 0);
	q = must_map(other, 512, UP_SHARED, same, 2 * MiB);
	/* Larger than the budget, together with something else. */
	fill(p, 1024, 5);
	fill(must_map(rt, 3000, UP_PRIVATE, NULL, 0), 3000, 9);
	cr_assert(eq(sz, wrong(q, 512, 5 + 512 * WORDS), 0));
	q[3] = 77;
	cr_assert(eq(u64, p[512 * WORDS + 3], 77));
	q[3] = 5 + 512 * WORDS + 3;
	up_object_unref(o);
	up_runtime_destroy(rt);
	wait_ended(1);
	rt = must_connect();
	cr_assert(eq(int, up_object_open(rt, "table", &o), 0));
	p = must_map(rt, 1024, UP_SHARED, o, 0);
	cr_assert(eq(sz, wrong(p, 1024, 5), 0));
	cr_assert(eq(int, up_object_remove(rt, "table"), 0));
	cr_assert(eq(int, up_object_remove(rt, "table"), -ENOENT));
	up_object_unref(o);
	up_object_unref(same);
	up_runtime_destroy(rt);
	up_runtime_destroy(other);
	wait_ended(3);
	daemon_ask(2);
}

/* A pointer of the daemon's is none of ours. */
Test(remote, what_pager_an_object_has_is_told_by_number)
{
	struct call call = { .op = CALL_CREATE_ANON, .length = PAGE_SIZE };
	struct up_object_stats info;
	struct up_object *o;
	struct msg m;
	int fd;

	rt = must_connect();
	cr_assert(eq(int, up_object_create_anon(rt, PAGE_SIZE, 0, &o), 0));
	cr_assert(eq(int, up_object_info(o, &info, sizeof info), 0));
	cr_assert(eq(str, (char *)(uintptr_t)info.pager, "anonymous"));
	up_object_unref(o);
	fd = memfd_create("content", MFD_CLOEXEC);
	cr_assert(fd >= 0 && ftruncate(fd, PAGE_SIZE) == 0);
	cr_assert(eq(int, up_object_create_file(rt, fd, 0, PAGE_SIZE, 0, &o), 0));
	close(fd);
	cr_assert(eq(int, up_object_info(o, &info, sizeof info), 0));
	cr_assert(eq(str, (char *)(uintptr_t)info.pager, "file"));
	up_object_unref(o);
	fd = raw_client();
	cr_assert(eq(int, raw_call(fd, &call, &m), 0));
	call = (struct call){ .op = CALL_INFO, .object = m.call.object };
	cr_assert(eq(int, raw_call(fd, &call, &m), 0));
	memcpy(&info, m.bytes, sizeof info);
	cr_assert(zero(ptr, (void *)(uintptr_t)info.pager));
	close(fd);
	up_runtime_destroy(rt);
	wait_ended(2);
	daemon_ask(2);
}

/* Its lines, and how often this is in them. */
static char *dumped;

static unsigned
dump(struct up_runtime *of, const char *with)
{
	size_t len;
	unsigned n = 0;
	FILE *f;
	int r;

	free(dumped);
	f = open_memstream(&dumped, &len);
	cr_assert(ne(ptr, f, NULL));
	r = up_map_dump(of, f);
	fclose(f);
	cr_assert(r == 0, "%s: %s", strerrorname_np(-r), logged);
	for (const char *at = dumped; (at = strstr(at, with)) != NULL; at++)
		n++;
	return n;
}

Test(remote, what_is_mapped_is_printed_line_by_line_with_its_children)
{
	const double until = seconds() + DEADLINE;
	struct up_object *o;
	char where[80], child[40];
	int pipes[2], status;
	uint64_t *p, *q;
	void *copy;
	pid_t pid;

	rt = must_connect();
	cr_assert(eq(int, up_map_dump(rt, NULL), -EINVAL));
	cr_assert(eq(uint, dump(rt, "\n"), 1));
	cr_assert(eq(int, up_object_create_named(rt, "a name", 8 * PAGE_SIZE, 0, &o), 0));
	p = must_map(rt, 64, UP_PRIVATE, NULL, 0);
	q = must_map(rt, 4, UP_SHARED, o, 2 * PAGE_SIZE);
	fill(p, 64, 1);
	fill(q, 4, 1);
	cr_assert(eq(int, up_clone(rt, p, 64 * PAGE_SIZE, &copy), 0), "%s", logged);
	cr_assert(eq(int, up_wire(rt, q, 4 * PAGE_SIZE), 0), "%s", logged);
	cr_assert(eq(int, up_inherit(rt, p, 16 * PAGE_SIZE, UP_INHERIT_COPY), 0));
	cr_assert(eq(int, pipe(pipes), 0));
	pid = fork();
	if (pid == 0) {
		char c;

		close(pipes[1]);
		_exit(wrong(p, 16, 1) == 0 && read(pipes[0], &c, 1) == 0 ? 0 : 1);
	}
	close(pipes[0]);
	snprintf(child, sizeof child, "child PID %d\n", (int)pid);
	/* It is still on its way at first. */
	while (dump(rt, child) == 0) {
		cr_assert(seconds() < until, "%s", dumped);
		nap();
	}
	/* The region in two parts, its clone, the object, and what the child has. */
	cr_assert(eq(uint, dump(rt, " anonymous "), dump(rt, "\n") - 2), "%s", dumped);
	snprintf(where, sizeof where, "\n%lx-%lx ", (unsigned long)(uintptr_t)p,
		 (unsigned long)(uintptr_t)(p + 16 * WORDS));
	cr_assert(eq(uint, dump(rt, where), 2), "%s", dumped);
	snprintf(where, sizeof where, "\n%lx-%lx rw-s  00002000 ", (unsigned long)(uintptr_t)q,
		 (unsigned long)(uintptr_t)(q + 4 * WORDS));
	cr_assert(eq(uint, dump(rt, where), 1), "%s", dumped);
	cr_assert(eq(uint, dump(rt, "  over "), 4), "%s", dumped);
	cr_assert(eq(uint, dump(rt, " a name\n"), 1), "%s", dumped);
	cr_assert(eq(uint, dump(rt, "     1 - a name\n"), 1), "%s", dumped);
	cr_assert(eq(uint, dump(rt, " copy"), 2), "%s", dumped);
	close(pipes[1]);
	cr_assert(waitpid(pid, &status, 0) == pid && status == 0, "%s", logged);
	cr_assert(eq(int, up_object_remove(rt, "a name"), 0));
	up_object_unref(o);
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

/* More lines than a message has. */
Test(remote, a_long_map_is_printed_in_order)
{
	const char *at;
	uintptr_t last = 0;
	uint64_t *p;

	rt = must_connect();
	p = must_map(rt, 2 * limits.regions, UP_PRIVATE, NULL, 0);
	for (unsigned i = 0; i + 1 < limits.regions; i += 2)
		cr_assert(eq(int, up_protect(rt, p + i * WORDS, PAGE_SIZE, PROT_READ), 0), "%s",
			  logged);
	cr_assert(eq(uint, dump(rt, "\n"), limits.regions + 1));
	at = strchr(dumped, '\n');
	for (unsigned i = 0; i < limits.regions; i++) {
		const uintptr_t start = strtoul(at, NULL, 16);

		cr_assert(gt(uptr, start, last), "%s", dumped);
		last = start;
		at = strchr(at + 1, '\n');
	}
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

/* Numbers of others' spaces are none. */
Test(remote, nobody_is_shown_the_map_of_another)
{
	struct call call = { .op = CALL_DUMP };
	struct dump_record rec;
	struct msg m;
	uint64_t *p;
	int fd;

	rt = must_connect();
	p = must_map(rt, 64, UP_PRIVATE, NULL, 0);
	cr_assert(eq(int, up_inherit(rt, p, PAGE_SIZE, UP_INHERIT_COPY), 0));
	fd = raw_client();
	for (uint64_t space = 0; space < 100; space++) {
		for (unsigned i = 0; i < 8; i++) {
			call.object = space;
			call.addr = i & 1 ? (uintptr_t)p : 0;
			call.length = i & 2 ? PAGE_SIZE : 0;
			call.offset = space + i;
			call.flags = i & 4 ? UINT32_MAX : 0;
			cr_assert(eq(int, raw_call(fd, &call, &m), 0));
			cr_assert(eq(uint, m.n, 0));
			cr_assert(eq(uint, m.left, 0));
		}
	}
	/* And what it has itself it is shown. */
	raw_map(fd, 0x10000000, RW, false);
	call = (struct call){ .op = CALL_DUMP };
	cr_assert(eq(int, raw_call(fd, &call, &m), 0));
	cr_assert(eq(uint, m.n, 1));
	memcpy(&rec, m.bytes, sizeof rec);
	cr_assert(eq(u64, rec.start, 0x10000000));
	cr_assert(eq(u64, rec.end, 0x10000000 + PAGE_SIZE));
	close(fd);
	up_runtime_destroy(rt);
	wait_ended(2);
	daemon_ask(2);
}

/* A daemon that says what is none. */
Test(remote, what_is_no_line_of_a_map_is_not_printed)
{
	struct dump_line line = { .end = 0 };
	unsigned char bytes[MSG_BYTES];
	struct dump_record rec = {
		.start = PAGE_SIZE, .end = 2 * PAGE_SIZE, .serial = 1, .name = 3
	};
	const size_t all = sizeof rec + 8;

	memset(bytes, 0, sizeof bytes);
	memcpy(bytes + sizeof rec, " ab", 3);
#define SAYS(field, value)                                \
	({                                                \
		struct dump_record other = rec;           \
		struct dump_line after = line;            \
		other.field = (value);                    \
		memcpy(bytes, &other, sizeof other);      \
		dump_unpack(bytes, sizeof bytes, &after); \
	})
	cr_assert(eq(sz, SAYS(name, 3), all));
	cr_assert(eq(sz, SAYS(name, 2), 0));
	cr_assert(eq(sz, SAYS(name, 4), 0));
	cr_assert(eq(sz, SAYS(name, UINT32_MAX), 0));
	cr_assert(eq(sz, SAYS(what, 3), 0));
	cr_assert(eq(sz, SAYS(what, DUMP_BENEATH), 0));
	cr_assert(eq(sz, SAYS(what, DUMP_CHILD), 0));
	cr_assert(eq(sz, SAYS(prot, 4), 0));
	cr_assert(eq(sz, SAYS(shared, 2), 0));
	cr_assert(eq(sz, SAYS(inherit, 3), 0));
	cr_assert(eq(sz, SAYS(pager, 9), 0));
	cr_assert(eq(sz, SAYS(end, PAGE_SIZE), 0));
	cr_assert(eq(sz, SAYS(serial, 0), 0));
	cr_assert(eq(sz, SAYS(space, 1), 0));
	memcpy(bytes, &rec, sizeof rec);
	cr_assert(eq(sz, dump_unpack(bytes, all - 1, &line), 0));
	cr_assert(eq(sz, dump_unpack(bytes, sizeof rec - 1, &line), 0));
	cr_assert(eq(sz, dump_unpack(bytes, all, &line), all));
	cr_assert(eq(str, line.name, " ab"));
	/* The same line again would never end. */
	cr_assert(eq(sz, dump_unpack(bytes, all, &line), 0));
	cr_assert(eq(sz, SAYS(what, DUMP_BENEATH), 0));
	rec.depth = 1;
	cr_assert(eq(sz, SAYS(what, DUMP_BENEATH), all));
}

/* Blocks of odd sizes, each with its number all over. */
#define BLOCKS 6000u

static size_t
block_size(unsigned i)
{
	return i % 100 == 0 ? 20000 + i : 16 + (size_t)i * 37 % 5000;
}

static size_t
wrong_blocks(char *const block[], unsigned n)
{
	size_t bad = 0;

	for (unsigned i = 0; i < n; i++) {
		for (size_t k = 0; block[i] != NULL && k < block_size(i); k++)
			bad += block[i][k] != (char)(i + k / 512);
	}
	return bad;
}

Test(remote, a_heap_is_larger_than_the_budget)
{
	static char *block[BLOCKS];
	struct up_heap_stats st;
	struct up_stats all;
	struct up_heap *heap;
	int status;
	char *p;
	pid_t pid;

	rt = must_connect();
	cr_assert(eq(int, up_heap_create(rt, 5, 0, &heap), -EINVAL));
	cr_assert(eq(int, up_heap_create(rt, 64 * MiB, 0, &heap), 0), "%s", logged);
	for (unsigned i = 0; i < BLOCKS; i++) {
		block[i] = up_malloc(heap, block_size(i));
		cr_assert(block[i] != NULL, "%u: %s: %s", i, strerror(errno), logged);
		for (size_t k = 0; k < block_size(i); k++)
			block[i][k] = (char)(i + k / 512);
	}
	cr_assert(eq(int, up_heap_stats_get(heap, &st, sizeof st), 0));
	cr_assert(gt(u64, st.allocated, 2 * daemon_limit));
	cr_assert(eq(u64, st.blocks, BLOCKS));
	cr_assert(eq(int, up_stats_get(rt, &all, sizeof all), 0));
	cr_assert(ge(u64, all.metadata, st.metadata));
	cr_assert(le(u64, all.resident, daemon_limit));
	cr_assert(eq(sz, wrong_blocks(block, BLOCKS), 0));
	pid = fork();
	if (pid == 0) {
		errno = 0;
		_exit(up_malloc(heap, 10) == NULL && errno == ECHILD &&
				      up_free(heap, block[0]) == -ECHILD
			      ? 0
			      : 1);
	}
	cr_assert(waitpid(pid, &status, 0) == pid && status == 0);
	for (unsigned i = 0; i < BLOCKS; i++) {
		if (i % 3 == 0) {
			cr_assert(eq(int, up_free(heap, block[i]), 0));
			cr_assert(eq(int, up_free(heap, block[i]), -EINVAL));
			block[i] = NULL;
		}
	}
	cr_assert(eq(sz, wrong_blocks(block, BLOCKS), 0));
	p = up_calloc(heap, 1, 4 * MiB);
	cr_assert(ne(ptr, p, NULL));
	for (size_t i = 0; i < 4 * MiB; i += 512)
		cr_assert(eq(chr, p[i], 0));
	p = up_realloc(heap, p, 8 * MiB);
	cr_assert(ne(ptr, p, NULL));
	cr_assert(eq(int, up_free(heap, p), 0));
	for (unsigned i = 0; i < BLOCKS; i++)
		cr_assert(eq(int, up_free(heap, block[i]), 0));
	cr_assert(eq(int, up_heap_stats_get(heap, &st, sizeof st), 0));
	cr_assert(eq(u64, st.blocks, 0));
	/* What is free has been given back to the daemon. */
	cr_assert(eq(int, up_stats_get(rt, &all, sizeof all), 0));
	cr_assert(le(u64, all.resident, 36 * 64 << 10));
	up_heap_destroy(heap);
	daemon_ask(1);
	cr_assert(eq(uint, atomic_load(&shared->regions), 0));
	/* One goes with the runtime; its tables have to fit what the daemon's budget would allow. */
	cr_assert(eq(int, up_heap_create(rt, MiB, 0, &heap), 0), "%s", logged);
	cr_assert(ne(ptr, up_malloc(heap, 100), NULL));
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

Test(remote, a_heap_without_a_daemon_keeps_what_is_in_memory)
{
	struct up_heap *heap;
	char *p, *q;

	rt = must_connect();
	cr_assert(eq(int, up_heap_create(rt, MiB, 0, &heap), 0), "%s", logged);
	p = up_malloc(heap, 1000);
	q = up_malloc(heap, 100000);
	cr_assert(p != NULL && q != NULL);
	memset(p, 1, 1000);
	kill(daemon_pid, SIGKILL);
	waitpid(daemon_pid, NULL, 0);
	daemon_pid = 0;
	for (unsigned i = 0; i < 1000; i++)
		cr_assert(eq(chr, p[i], 1));
	/* Its pages can not be discarded, and are not handed out again. */
	cr_assert(eq(int, up_free(heap, q), 0));
	cr_assert(eq(int, up_free(heap, p), 0));
	up_heap_destroy(heap);
	cr_assert(eq(int, touch((uint64_t *)(void *)p), SIGSEGV));
	up_runtime_destroy(rt);
}

Test(remote, a_clone_and_a_snapshot_are_what_memory_was)
{
	struct up_object *o, *snap;
	uint64_t *p, *q, *s;
	void *copy;

	rt = must_connect();
	p = must_map(rt, 1500, UP_PRIVATE, NULL, 0);
	fill(p, 1500, 3);
	cr_assert(eq(int, up_clone(rt, p, 1500 * PAGE_SIZE, &copy), 0), "%s", logged);
	q = copy;
	fill(p, 700, 4);
	cr_assert(eq(sz, wrong(q, 1500, 3), 0));
	q[0] = 1;
	cr_assert(eq(u64, p[0], 4));
	cr_assert(eq(sz, wrong(p, 700, 4), 0));
	cr_assert(eq(sz, wrong(p + 700 * WORDS, 800, 3 + 700 * WORDS), 0));
	cr_assert(eq(int, up_unmap(rt, q, 1500 * PAGE_SIZE), 0));

	cr_assert(eq(int, up_object_create_anon(rt, 2 * MiB, 0, &o), 0));
	s = must_map(rt, 512, UP_SHARED, o, 0);
	fill(s, 512, 11);
	cr_assert(eq(int, up_object_snapshot(rt, o, &snap), 0));
	fill(s, 512, 12);
	q = must_map(rt, 512, UP_PRIVATE, snap, 0);
	cr_assert(eq(sz, wrong(q, 512, 11), 0));
	cr_assert(eq(sz, wrong(s, 512, 12), 0));
	up_object_unref(o);
	up_object_unref(snap);
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

Test(remote, a_file_is_mapped_and_written_back)
{
	char file[] = "/var/tmp/test_remote_file.XXXXXX";
	const int fd = mkstemp(file);
	struct up_object *o;
	uint64_t word, *p;

	unlink(file);
	for (uint64_t i = 0; i < 64 * WORDS; i++)
		cr_assert(write(fd, &i, sizeof i) == (ssize_t)sizeof i);
	rt = must_connect();
	cr_assert(eq(int, up_object_create_file(rt, fd, 0, 0, 0, &o), 0), "%s", logged);
	p = must_map(rt, 64, UP_SHARED, o, 0);
	cr_assert(eq(sz, wrong(p, 64, 0), 0));
	p[10 * WORDS] = 999;
	cr_assert(eq(int, up_sync(rt, p, 64 * PAGE_SIZE, 0), 0), "%s", logged);
	cr_assert(pread(fd, &word, sizeof word, 10 * PAGE_SIZE) == (ssize_t)sizeof word);
	cr_assert(eq(u64, word, 999));
	p = must_map(rt, 64, UP_PRIVATE, o, 0);
	cr_assert(eq(u64, p[10 * WORDS], 999));
	p[5] = 1;
	cr_assert(eq(int, up_sync(rt, p, 64 * PAGE_SIZE, 0), 0));
	cr_assert(pread(fd, &word, sizeof word, 5 * sizeof word) == (ssize_t)sizeof word);
	cr_assert(eq(u64, word, 5));
	up_object_unref(o);
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
	close(fd);
}

/* So many errors have been logged, the last of them with this in it. */
static void
wait_said(unsigned n, const char *text)
{
	const double until = seconds() + DEADLINE;

	while (atomic_load(&shared->errors) < n) {
		cr_assert(seconds() < until, "%u errors, and not %u", atomic_load(&shared->errors),
			  n);
		nap();
	}
	cr_assert(strstr(shared->said, text) != NULL, "no \"%s\" in \"%s\"", text, shared->said);
}

static void
wait_sigbus(unsigned client, uint64_t n)
{
	const double until = seconds() + DEADLINE;

	while (atomic_load(&shared->sigbus[client]) != n) {
		cr_assert(seconds() < until, "%lu times SIGBUS of client %u, and not %lu",
			  (unsigned long)atomic_load(&shared->sigbus[client]), client,
			  (unsigned long)n);
		nap();
	}
}

Test(remote, who_gets_sigbus_is_counted_and_named_with_his_own_address)
{
	char file[] = "/var/tmp/test_remote_file.XXXXXX", text[200];
	const int fd = mkstemp(file);
	struct up_runtime *other;
	struct up_object *o;
	struct up_stats st;
	uint64_t *p, *q;
	int status;
	pid_t child;

	unlink(file);
	cr_assert(ftruncate(fd, 64 * PAGE_SIZE) == 0);
	other = must_connect();
	rt = must_connect();
	cr_assert(eq(int, up_object_create_file(rt, fd, 0, 0, 0, &o), 0), "%s", logged);
	p = must_map(rt, 64, UP_SHARED, o, 0);
	q = must_map(rt, 64, UP_PRIVATE, o, 0);
	cr_assert(eq(u64, p[0], 0));
	cr_assert(eq(u64, q[0], 0));
	cr_assert(eq(int, up_inherit(rt, q, 64 * PAGE_SIZE, UP_INHERIT_COPY), 0), "%s", logged);
	cr_assert(ftruncate(fd, PAGE_SIZE) == 0);

	cr_assert(eq(int, touch(p + 40 * WORDS), SIGBUS));
	snprintf(text, sizeof text,
		 "page at %#lx of client %s, process %d: past the end of the file",
		 (unsigned long)(p + 40 * WORDS), program_invocation_short_name, (int)getpid());
	wait_said(1, text);
	wait_sigbus(1, 1);
	cr_assert(eq(int, touch(q + 50 * WORDS), SIGBUS));
	snprintf(text, sizeof text, "page at %#lx of client ", (unsigned long)(q + 50 * WORDS));
	wait_said(2, text);
	wait_sigbus(1, 2);

	child = fork();
	if (child == 0)
		_exit(touch(q + 30 * WORDS));
	cr_assert(child > 0 && waitpid(child, &status, 0) == child);
	cr_assert(eq(int, status, SIGBUS << 8));
	snprintf(text, sizeof text, "page at %#lx of client %s, its forked process %d: ",
		 (unsigned long)(q + 30 * WORDS), program_invocation_short_name, (int)child);
	wait_said(3, text);
	cr_assert(eq(u64, atomic_load(&shared->sigbus[1]), 2), "it is the child's");
	cr_assert(eq(u64, atomic_load(&shared->sigbus[0]), 0), "the other has lost nothing");
	cr_assert(eq(int, up_stats_get(rt, &st, sizeof st), 0));
	cr_assert(eq(u64, st.fault_sigbus, 2));
	/* One shows through in the other mapping as well. */
	cr_assert(eq(u64, st.lost, 3 * PAGE_SIZE));
	cr_assert(eq(int, up_stats_get(other, &st, sizeof st), 0));
	cr_assert(eq(u64, st.fault_sigbus, 0));
	cr_assert(eq(u64, st.lost, 0));
	cr_assert(eq(int, up_unmap(rt, p, 64 * PAGE_SIZE), 0), "%s", logged);
	cr_assert(eq(int, up_stats_get(rt, &st, sizeof st), 0));
	cr_assert(eq(u64, st.lost, PAGE_SIZE));
	cr_assert(eq(int, up_unmap(rt, q, 64 * PAGE_SIZE), 0), "%s", logged);
	cr_assert(eq(int, up_stats_get(rt, &st, sizeof st), 0));
	cr_assert(eq(u64, st.lost, 0));
	up_object_unref(o);
	up_runtime_destroy(rt);
	up_runtime_destroy(other);
	wait_ended(2);
	daemon_ask(2);
	close(fd);
}

/* How many events are told, all of them of [p, p + npages); and of those, how many of children. */
static size_t
events(struct up_runtime *of, const uint64_t *p, size_t npages, size_t *forked)
{
	char *text, *save, *line;
	size_t len, n = 0;
	FILE *f = open_memstream(&text, &len);

	*forked = 0;
	cr_assert(eq(int, up_trace_print(of, f), 0), "%s", logged);
	fclose(f);
	for (line = strtok_r(text, "\n", &save); line != NULL;
	     line = strtok_r(NULL, "\n", &save), n++) {
		uintptr_t va = 0;
		unsigned of_child;

		*forked += sscanf(line, "%*s %*s %" SCNxPTR " %*u %u", &va, &of_child) == 2;
		cr_assert(va - (uintptr_t)p < npages * PAGE_SIZE, "not its own: %s", line);
	}
	free(text);
	return n;
}

/* As many events, and of children; who is awake may be so before his event is there. */
static void
wait_events(struct up_runtime *of, const uint64_t *p, size_t npages, size_t least, size_t forked)
{
	const double until = seconds() + DEADLINE;
	size_t n, of_children;

	while ((n = events(of, p, npages, &of_children)) < least || of_children < forked) {
		cr_assert(seconds() < until, "%zu events, %zu of children", n, of_children);
		nap();
	}
	cr_assert(forked > 0 || of_children == 0, "another's");
}

Test(remote, who_asks_for_events_is_told_his_own_and_his_childrens)
{
	const size_t npages = 200;
	struct up_runtime *other;
	uint64_t *p, *q;
	size_t forked;
	int status, done[2];
	pid_t child;
	char byte;

	rt = must_connect();
	other = must_connect();
	p = must_map(rt, npages, UP_PRIVATE, NULL, 0);
	q = must_map(other, npages, UP_PRIVATE, NULL, 0);
	cr_assert(eq(sz, events(rt, p, npages, &forked), 0));
	cr_assert(eq(int, up_advise(rt, p, npages * PAGE_SIZE, UP_ADVICE_RANDOM), 0));
	for (size_t i = 0; i < npages; i++) {
		p[i * WORDS] = i;
		if (i % 2 == 0)
			q[i * WORDS] = i;
	}
	/* More than one answer has room for. */
	wait_events(rt, p, npages, npages, 0);
	wait_events(other, q, npages, 1, 0);
	cr_assert(eq(int, up_inherit(other, q, npages * PAGE_SIZE, UP_INHERIT_COPY), 0));
	cr_assert(eq(int, pipe(done), 0));
	child = fork();
	if (child == 0) {
		q[0] = 1;
		_exit(write(done[1], q, 1) != 1 || pause() == 0);
	}
	cr_assert(child > 0 && read(done[0], &byte, 1) == 1);
	wait_events(other, q, npages, 2, 1);
	kill(child, SIGKILL);
	cr_assert(waitpid(child, &status, 0) == child);
	wait_events(rt, p, npages, npages, 0);
	cr_assert(eq(int, up_trace_print(rt, NULL), -EINVAL));
	close(done[0]);
	close(done[1]);
	up_runtime_destroy(rt);
	wait_ended(1);
	/* Whoever comes next, in his place perhaps, has done nothing yet. */
	rt = must_connect();
	cr_assert(eq(sz, events(rt, p, npages, &forked), 0));
	up_runtime_destroy(rt);
	up_runtime_destroy(other);
	wait_ended(3);
	daemon_ask(2);
}

/* A descriptor that was opened without the right to read is no right to read. */
Test(remote, a_descriptor_by_o_path_opens_no_file)
{
	char file[] = "/var/tmp/test_remote_file.XXXXXX";
	const int fd = mkstemp(file);
	struct up_object *o;
	int by_path;

	cr_assert(ftruncate(fd, 4096) == 0);
	by_path = open(file, O_PATH | O_CLOEXEC);
	unlink(file);
	rt = must_connect();
	cr_assert(eq(int, up_object_create_file(rt, by_path, 0, 0, 0, &o), -EINVAL));
	cr_assert(eq(int, up_object_create_device(rt, by_path, 0, &o), -EINVAL));
	up_runtime_destroy(rt);
}

/* What it says depends on who opened it, and that was not the daemon. */
Test(remote, a_file_that_is_made_up_is_read_as_who_opened_it)
{
	struct up_object *o;
	char seen[256];
	uint64_t *p;
	int fd;

	if (geteuid() != 0 || seteuid(65534) < 0)
		cr_skip_test("needs to be root");
	fd = open("/proc/kallsyms", O_RDONLY | O_CLOEXEC);
	cr_assert(eq(int, seteuid(0), 0));
	if (fd < 0 || pread(fd, seen, sizeof seen, 0) != (ssize_t)sizeof seen)
		cr_skip_test("no /proc/kallsyms here");
	rt = must_connect();
	cr_assert(eq(int, up_object_create_file(rt, fd, 0, PAGE_SIZE, 0, &o), 0), "%s", logged);
	p = NULL;
	cr_assert(eq(int, up_map(rt, NULL, PAGE_SIZE, PROT_READ, UP_SHARED, o, 0, (void **)&p), 0));
	cr_assert(eq(int, memcmp(p, seen, sizeof seen), 0));
	up_object_unref(o);
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
	close(fd);
}

Test(remote, a_child_that_is_forked_has_its_copy)
{
	uint64_t *p;
	int status;
	pid_t pid;

	rt = must_connect();
	p = must_map(rt, 1000, UP_PRIVATE, NULL, 0);
	fill(p, 1000, 21);
	cr_assert(eq(int, up_inherit(rt, p, 1000 * PAGE_SIZE, UP_INHERIT_COPY), 0), "%s", logged);
	pid = fork();
	if (pid == 0) {
		size_t n = wrong(p, 1000, 21);

		fill(p, 1000, 22);
		n += wrong(p, 1000, 22);
		_exit(n == 0 ? 0 : 1);
	}
	fill(p, 500, 23);
	cr_assert(waitpid(pid, &status, 0) == pid);
	cr_assert(eq(int, status, 0), "%s", logged);
	cr_assert(eq(sz, wrong(p, 500, 23), 0));
	cr_assert(eq(sz, wrong(p + 500 * WORDS, 500, 21 + 500 * WORDS), 0));
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

/* The daemon serves others while somebody forks, and that somebody's other runtime is one of them. */
Test(timely, of_two_runtimes_with_one_daemon_a_child_has_both)
{
	const double began = seconds();
	struct up_runtime *other;
	uint64_t *p, *q;
	int status;
	pid_t pid;

	rt = must_connect();
	other = must_connect();
	p = must_map(rt, 10, UP_PRIVATE, NULL, 0);
	q = must_map(other, 10, UP_PRIVATE, NULL, 0);
	fill(p, 10, 1);
	fill(q, 10, 2);
	cr_assert(eq(int, up_inherit(rt, p, 10 * PAGE_SIZE, UP_INHERIT_COPY), 0));
	cr_assert(eq(int, up_inherit(other, q, 10 * PAGE_SIZE, UP_INHERIT_COPY), 0));
	for (unsigned i = 0; i < 3; i++) {
		pid = fork();
		if (pid == 0) {
			_exit(touch(p) != 0 || touch(q) != 0 || wrong(p, 10, 1) != 0 ||
			      wrong(q, 10, 2) != 0);
		}
		cr_assert(waitpid(pid, &status, 0) == pid);
		cr_assert(eq(int, status, 0), "%s", logged);
	}
	cr_assert(lt(dbl, seconds() - began, 1.9), "somebody waited");
	cr_assert(eq(sz, wrong(p, 10, 1) + wrong(q, 10, 2), 0));
	up_runtime_destroy(rt);
	up_runtime_destroy(other);
	wait_ended(2);
	daemon_ask(2);
}

Test(remote, a_daemon_that_is_killed_leaves_no_zeros)
{
	const size_t npages = 2 * daemon_limit / PAGE_SIZE;
	unsigned char in[64];
	size_t there = 0, missing = 0;
	void *more;
	uint64_t *p;

	rt = must_connect();
	p = must_map(rt, npages, UP_PRIVATE, NULL, 0);
	fill(p, npages, 31);
	cr_assert(eq(int, up_residency(rt, p, 64 * PAGE_SIZE, in), 0));
	kill(daemon_pid, SIGKILL);
	waitpid(daemon_pid, NULL, 0);
	daemon_pid = 0;
	for (size_t i = 0; i < npages; i++) {
		const int sig = touch(p + i * WORDS);

		if (sig == 0)
			cr_assert(eq(u64, p[i * WORDS], 31 + i * WORDS), "page %zu", i);
		else
			cr_assert(eq(int, sig, SIGBUS));
		there += sig == 0;
		missing += sig != 0;
	}
	cr_assert(gt(sz, there, 0));
	cr_assert(gt(sz, missing, npages / 2 - 10));
	cr_assert(eq(int, up_map(rt, NULL, PAGE_SIZE, RW, UP_PRIVATE, NULL, 0, &more), -ENOTCONN));
	cr_assert(eq(int, up_unmap(rt, p, PAGE_SIZE), 0));
	up_runtime_destroy(rt);
}

static atomic_int lost_calls, lost_over;

static void
on_lost(void *ctx)
{
	(void)ctx;
	atomic_fetch_add(&lost_calls, 1);
	poll(NULL, 0, 300);
	atomic_store(&lost_over, 1);
}

Test(remote, a_program_is_told_before_it_gets_sigbus)
{
	const size_t npages = 2 * daemon_limit / PAGE_SIZE;
	const struct up_config cfg = { .log = collect, .pager_lost = on_lost };
	struct up_runtime *unheard;
	size_t i = 0;
	uint64_t *p;

	/* Nothing is lost when one hangs up himself. */
	cr_assert(eq(int, up_runtime_connect(&unheard, path, &cfg), 0));
	up_runtime_destroy(unheard);
	wait_ended(1);
	cr_assert(eq(int, atomic_load(&lost_calls), 0));

	cr_assert(eq(int, up_runtime_connect(&rt, path, &cfg), 0));
	p = must_map(rt, npages, UP_PRIVATE, NULL, 0);
	fill(p, npages, 31);
	kill(daemon_pid, SIGKILL);
	waitpid(daemon_pid, NULL, 0);
	daemon_pid = 0;
	while (i < npages && touch(p + i * WORDS) == 0)
		i++;
	cr_assert(lt(sz, i, npages));
	/* The first SIGBUS came after it had returned. */
	cr_assert(eq(int, atomic_load(&lost_over), 1));
	cr_assert(eq(int, atomic_load(&lost_calls), 1));
	up_runtime_destroy(rt);
}

static atomic_uint asked_to_leave, leave_ms;

static void
on_leaving(void *ctx, unsigned ms)
{
	struct up_stats st;

	/* It is served as before, also in here. */
	if (up_stats_get(*(struct up_runtime **)ctx, &st, sizeof st) == 0) {
		atomic_store(&leave_ms, ms);
		atomic_fetch_add(&asked_to_leave, 1);
	}
}

static void
ask_to_leave(unsigned client, unsigned ms)
{
	atomic_store(&shared->client, client);
	atomic_store(&shared->limit, ms);
	daemon_ask(8);
	cr_assert(eq(int, atomic_load(&shared->result), 0));
}

static const struct up_config leaving = { .log = collect,
					  .pager_leaving = on_leaving,
					  .pager_leaving_ctx = &rt };

Test(remote, a_program_is_asked_to_leave_and_served_until_it_does)
{
	const size_t npages = 2 * daemon_limit / PAGE_SIZE;
	const double until = seconds() + DEADLINE;
	struct up_runtime *deaf = must_connect();
	uint64_t *p, *q;

	cr_assert(eq(int, up_runtime_connect(&rt, path, &leaving), 0));
	p = must_map(rt, npages, UP_PRIVATE, NULL, 0);
	q = must_map(deaf, 100, UP_PRIVATE, NULL, 0);
	fill(p, npages, 7);
	fill(q, 100, 8);
	ask_to_leave(0, 1234);
	ask_to_leave(1, 1234);
	while (atomic_load(&asked_to_leave) == 0) {
		cr_assert(seconds() < until, "it has not heard that it is to leave");
		nap();
	}
	cr_assert(eq(uint, atomic_load(&leave_ms), 1234));
	cr_assert(eq(sz, wrong(p, npages, 7), 0));
	cr_assert(eq(sz, wrong(q, 100, 8), 0));
	fill(must_map(rt, 10, UP_PRIVATE, NULL, 0), 10, 9);
	fill(must_map(deaf, 10, UP_PRIVATE, NULL, 0), 10, 9);
	cr_assert(eq(uint, atomic_load(&asked_to_leave), 1));
	up_runtime_destroy(rt);
	up_runtime_destroy(deaf);
	wait_ended(2);
	daemon_ask(2);
}

/* Whose answers come over the same socket. */
Test(remote, it_is_asked_to_leave_whatever_it_is_doing)
{
	uint64_t *p;
	int status;

	cr_assert(eq(int, up_runtime_connect(&rt, path, &leaving), 0));
	p = must_map(rt, 10, UP_PRIVATE, NULL, 0);
	fill(p, 10, 1);
	cr_assert(eq(int, up_inherit(rt, p, 10 * PAGE_SIZE, UP_INHERIT_COPY), 0));
	for (unsigned i = 1; i <= 400; i++) {
		const double until = seconds() + DEADLINE;

		/* The daemon may have told it, and not have said yet that it has done so. */
		while (atomic_load(&shared->ask) != 0) {
			cr_assert(seconds() < until, "the daemon does not answer");
			sched_yield();
		}
		atomic_store(&shared->client, 0);
		atomic_store(&shared->limit, i);
		atomic_store(&shared->ask, 8);
		while (atomic_load(&leave_ms) != i) {
			cr_assert(seconds() < until, "it has not heard it the %u. time", i);
			if (i % 8 == 0) {
				const pid_t pid = fork();

				if (pid == 0)
					_exit(wrong(p, 10, 1) != 0);
				cr_assert(waitpid(pid, &status, 0) == pid);
				cr_assert(eq(int, status, 0), "%s", logged);
			} else {
				void *more = must_map(rt, 1, UP_PRIVATE, NULL, 0);

				cr_assert(eq(int, up_unmap(rt, more, PAGE_SIZE), 0));
			}
		}
	}
	cr_assert(eq(uint, atomic_load(&asked_to_leave), 400));
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

Test(remote, clients_that_are_killed_leave_nothing_behind)
{
	uint64_t *p;

	rt = must_connect();
	p = must_map(rt, 500, UP_PRIVATE, NULL, 0);
	fill(p, 500, 1);
	for (unsigned i = 0; i < 8; i++) {
		const pid_t pid = fork();

		if (pid == 0) {
			struct up_runtime *mine = NULL;
			void *q;

			if (up_runtime_connect(&mine, path, NULL) == 0 &&
			    up_map(mine, NULL, 16 * MiB, RW, UP_PRIVATE, NULL, 0, &q) == 0)
				for (uint64_t n = 0;; n++)
					fill(q, 16 * MiB / PAGE_SIZE, n);
			_exit(1);
		}
		poll(NULL, 0, 20 + 30 * (int)i);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	wait_ended(atomic_load(&shared->accepted) - 1);
	cr_assert(eq(sz, wrong(p, 500, 1), 0));
	daemon_ask(1);
	cr_assert(eq(uint, atomic_load(&shared->regions), 1));
	up_runtime_destroy(rt);
	wait_ended(atomic_load(&shared->accepted));
	daemon_ask(2);
}

/* --- clients that do not behave --- */

static int
raw_connect(void)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	strcpy(sun.sun_path, path);
	cr_assert(connect(fd, (struct sockaddr *)&sun, sizeof sun) == 0);
	cr_assert(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
	return fd;
}

/* Nothing more comes but the end. */
static void
must_hang_up(int fd)
{
	const double until = seconds() + DEADLINE;
	char buf[sizeof(struct msg)];
	ssize_t n;

	while ((n = recv(fd, buf, sizeof buf, 0)) != 0) {
		if (n < 0 && errno == ECONNRESET)
			break;
		cr_assert(n > 0 || errno == EAGAIN);
		cr_assert(seconds() < until, "still connected");
		nap();
	}
	close(fd);
}

static void
say(int fd, const struct msg *m, const int with[], size_t n)
{
	cr_assert(eq(int, msg_send(fd, m, with, n), 0));
}

Test(remote, what_is_no_message_ends_the_connection)
{
	struct msg m = { .type = MSG_CALL };
	char junk[3000];
	int fd, null = open("/dev/null", O_RDONLY);

	for (size_t i = 0; i < sizeof junk; i++)
		junk[i] = (char)(i * 37);
	fd = raw_connect();
	cr_assert(send(fd, junk, sizeof junk, 0) > 0);
	must_hang_up(fd);
	fd = raw_connect();
	cr_assert(send(fd, junk, 5, 0) == 5);
	must_hang_up(fd);
	/* Before it has said who it is. */
	for (uint32_t type = 0; type < 12; type++) {
		if (type == MSG_CONNECT || type == MSG_FORKED)
			continue;
		fd = raw_connect();
		m.type = type;
		say(fd, &m, &null, type == MSG_HELLO || type == MSG_FORK);
		must_hang_up(fd);
	}
	/* Descriptors that nobody asked for. */
	fd = raw_connect();
	m = (struct msg){ .type = MSG_CONNECT, .n = PROTOCOL_VERSION };
	say(fd, &m, &null, 1);
	must_hang_up(fd);
	/* The others do not notice. */
	rt = must_connect();
	fill(must_map(rt, 100, UP_PRIVATE, NULL, 0), 100, 1);
	up_runtime_destroy(rt);
	wait_ended(atomic_load(&shared->accepted));
	daemon_ask(2);
	close(null);
}

Test(remote, another_version_is_told_why_not)
{
	struct msg m = { .type = MSG_CONNECT, .n = 99 };
	int fd = raw_connect(), with[MSG_REGIONS];
	size_t n;

	say(fd, &m, NULL, 0);
	cr_assert(eq(int, msg_await(fd, &m, with, &n, 10000), 0));
	cr_assert(eq(int, m.status, -EPROTONOSUPPORT));
	cr_assert(strstr(m.call.text, "version 2") != NULL, "%s", m.call.text);
	m = (struct msg){ .type = MSG_CALL };
	say(fd, &m, NULL, 0);
	must_hang_up(fd);
}

struct refusal {
	int listener;
	bool patient; /* it waits for the question, and does not read it */
	unsigned times;
};

static void *
refuse_all(void *arg)
{
	const struct refusal *f = arg;
	struct msg m = { .type = MSG_RETURN, .status = -EUSERS };

	snprintf(m.call.text, MSG_TEXT, "three is a crowd");
	for (unsigned i = 0; i < f->times; i++) {
		struct pollfd pf = { .fd = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC),
				     .events = POLLIN };

		if (f->patient)
			poll(&pf, 1, (int)(DEADLINE * 1000));
		msg_send(pf.fd, &m, NULL, 0);
		close(pf.fd);
	}
	return NULL;
}

/* Whether the daemon has gone when it asks, or has not heard the question, which the kernel tells before the answer. */
Test(remote, a_refusal_is_heard_whenever_it_is_said)
{
	struct refusal f = { .times = 50 };
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	const struct up_config cfg = { .log = collect };
	pthread_t thread;

	snprintf(sun.sun_path, sizeof sun.sun_path, "%.60s.no", path);
	f.listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	cr_assert(bind(f.listener, (struct sockaddr *)&sun, sizeof sun) == 0 &&
		  listen(f.listener, 8) == 0);
	for (int patient = 0; patient < 2; patient++) {
		f.patient = patient != 0;
		cr_assert(eq(int, pthread_create(&thread, NULL, refuse_all, &f), 0));
		for (unsigned i = 0; i < f.times; i++) {
			logged[0] = '\0';
			cr_assert(eq(int, up_runtime_connect(&rt, sun.sun_path, &cfg), -EUSERS),
				  "%s", logged);
			cr_assert(strstr(logged, "three is a crowd") != NULL, "%s", logged);
		}
		pthread_join(thread, NULL);
	}
	close(f.listener);
	unlink(sun.sun_path);
}

/* A client by hand, that has said HELLO; its userfaultfd is left open if `keep` is not NULL. */
static int
raw_client_with(int *keep)
{
	struct msg m = { .type = MSG_CONNECT, .n = PROTOCOL_VERSION };
	int fd = raw_connect(), with[MSG_REGIONS], uffd;
	size_t n;

	say(fd, &m, NULL, 0);
	cr_assert(eq(int, msg_await(fd, &m, with, &n, 10000), 0));
	cr_assert(eq(int, m.status, 0));
	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0)
		cr_skip_test("no userfaultfd here");
	m = (struct msg){ .type = MSG_HELLO };
	if (keep != NULL) {
		struct uffdio_api api = { .api = UFFD_API };

		cr_assert(eq(int, ioctl(uffd, UFFDIO_API, &api), 0));
		*keep = uffd;
	}
	say(fd, &m, &uffd, 1);
	if (keep == NULL)
		close(uffd);
	cr_assert(eq(int, msg_await(fd, &m, with, &n, 10000), 0));
	cr_assert(eq(uint, m.type, MSG_ACK));
	cr_assert(eq(sz, n, 1));
	close(with[0]);
	return fd;
}

static int
raw_client(void)
{
	return raw_client_with(NULL);
}

static int
raw_call(int fd, const struct call *q, struct msg *m)
{
	int with[MSG_REGIONS];
	size_t n;

	*m = (struct msg){ .type = MSG_CALL, .serial = 5, .call = *q };
	say(fd, m, NULL, 0);
	cr_assert(eq(int, msg_await(fd, m, with, &n, 10000), 0), "no answer to call %u", q->op);
	cr_assert(eq(uint, m->serial, 5));
	for (size_t i = 0; i < n; i++)
		close(with[i]);
	return m->status;
}

/* A page of the client's own, inherited by what it forks or not. */
static void
raw_map(int fd, uint64_t addr, int prot, bool inherit)
{
	struct call call = {
		.op = CALL_MAP, .addr = addr, .length = PAGE_SIZE, .prot = prot, .flags = UP_PRIVATE
	};
	struct msg m;

	cr_assert(eq(int, raw_call(fd, &call, &m), 0), "at %#lx", (unsigned long)addr);
	call.op = CALL_MAPPED;
	cr_assert(eq(int, raw_call(fd, &call, &m), 0));
	if (!inherit)
		return;
	call.op = CALL_INHERIT;
	call.flags = UP_INHERIT_COPY;
	cr_assert(eq(int, raw_call(fd, &call, &m), 0));
}

/* A client that has mapped a named object, and has been told what a clone of it is: *q is its call, for CALL_MAPPED or CALL_CANCEL. */
static int
raw_cloning(const char *name, uint64_t length, struct call *q)
{
	const int fd = raw_client();
	struct msg m;

	*q = (struct call){ .op = CALL_OPEN };
	snprintf(q->text, sizeof q->text, "%s", name);
	cr_assert(eq(int, raw_call(fd, q, &m), 0));
	*q = (struct call){ .op = CALL_MAP,
			    .addr = 0x10000000,
			    .length = length,
			    .prot = RW,
			    .flags = UP_SHARED,
			    .object = m.call.object };
	cr_assert(eq(int, raw_call(fd, q, &m), 0));
	q->op = CALL_MAPPED;
	cr_assert(eq(int, raw_call(fd, q, &m), 0));
	q->op = CALL_CLONE;
	q->offset = 0x20000000;
	cr_assert(eq(int, raw_call(fd, q, &m), 0));
	return fd;
}

Test(remote, no_number_that_a_client_sends_is_believed)
{
	static const uint64_t odd[] = { 0,
					1,
					4095,
					4096,
					4097,
					UINT64_MAX,
					UINT64_MAX - 4095,
					(uint64_t)1 << 47,
					((uint64_t)1 << 47) - 4096,
					(uint64_t)1 << 63,
					(uint64_t)1 << 32 };
	const struct call good = {
		.op = CALL_MAP, .addr = 0x10000000, .length = 4096, .prot = RW, .flags = UP_PRIVATE
	};
	const int fd = raw_client();
	struct call q;
	struct msg m;

	for (uint32_t op = 0; op < 30; op++) {
		for (size_t i = 0; i < ARRAY_SIZE(odd) * ARRAY_SIZE(odd) * 3; i++) {
			q = (struct call){ .op = op };
			q.addr = odd[i % ARRAY_SIZE(odd)];
			q.length = odd[i / ARRAY_SIZE(odd) % ARRAY_SIZE(odd)];
			q.object = odd[(i * 7) % ARRAY_SIZE(odd)];
			q.offset = odd[(i * 5) % ARRAY_SIZE(odd)];
			q.flags = i % 3 == 0 ? UINT32_MAX : i % 3 == 1 ? 0 : UP_PRIVATE;
			q.prot = i % 2 == 0 ? -1 : RW;
			raw_call(fd, &q, &m);
		}
	}
	/* What it may. */
	q = good;
	cr_assert(eq(int, raw_call(fd, &q, &m), 0));
	cr_assert(eq(uint, m.type, MSG_REGION));
	q.op = CALL_MAPPED;
	cr_assert(eq(int, raw_call(fd, &q, &m), 0));
	cr_assert(eq(int, raw_call(fd, &q, &m), -ERESTART));
	q = good;
	cr_assert(eq(int, raw_call(fd, &q, &m), -EEXIST));
	q.length = limits.mapped + 4096;
	q.addr = 0x20000000;
	cr_assert(eq(int, raw_call(fd, &q, &m), -EDQUOT));
	q = good;
	q.object = 1;
	q.addr = 0x20000000;
	cr_assert(eq(int, raw_call(fd, &q, &m), -EBADF));
	memset(q.text, 'x', sizeof q.text);
	q.op = CALL_OPEN;
	say(fd, &(struct msg){ .type = MSG_CALL, .call = q }, NULL, 0);
	must_hang_up(fd);
	wait_ended(1);
	daemon_ask(2);
}

/* A userfaultfd of this process. */
static int
own_uffd(void)
{
	for (int fd = 3; fd < 100; fd++) {
		char link[32], to[64];
		ssize_t n;

		snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
		n = readlink(link, to, sizeof to - 1);
		if (n > 0 && (to[n] = '\0', strstr(to, "userfaultfd") != NULL))
			return fd;
	}
	return -1;
}

/* It would fault for ever, and keep a service busy. */
Test(remote, what_a_client_protects_from_itself_it_may_write_all_the_same)
{
	struct uffdio_writeprotect wp = { .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	const double began = seconds();
	const size_t npages = 6000;
	uint64_t *p;

	rt = must_connect();
	p = must_map(rt, npages, UP_PRIVATE, NULL, 0);
	wp.range.start = (uintptr_t)p;
	wp.range.len = npages * PAGE_SIZE;
	for (uint64_t i = 0; i < 3; i++) {
		cr_assert(ioctl(own_uffd(), UFFDIO_WRITEPROTECT, &wp) == 0, "%s", strerror(errno));
		fill(p, npages, i);
		cr_assert(eq(sz, wrong(p, npages, i), 0));
	}
	cr_assert(lt(dbl, seconds() - began, DEADLINE));
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

Test(remote, names_of_a_user_are_limited)
{
	struct up_object *o;
	char name[16];
	unsigned n = 0;
	int r;

	rt = must_connect();
	do {
		snprintf(name, sizeof name, "name%u", n);
		r = up_object_create_named(rt, name, PAGE_SIZE, 0, &o);
		if (r == 0)
			up_object_unref(o);
	} while (r == 0 && ++n < 2000);
	cr_assert(eq(int, r, -EDQUOT));
	cr_assert(eq(uint, n, 256));
	for (unsigned i = 0; i < n; i++) {
		snprintf(name, sizeof name, "name%u", i);
		cr_assert(eq(int, up_object_remove(rt, name), 0));
	}
	cr_assert(eq(int, up_object_create_named(rt, "one more", PAGE_SIZE, 0, &o), 0));
	up_object_unref(o);
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

Test(remote, regions_and_objects_are_limited)
{
	struct up_object *o[30];
	unsigned n = 0, k = 0;
	void *p;
	int r;

	rt = must_connect();
	while (n <= limits.regions + 1 && (r = up_map(rt, NULL, PAGE_SIZE, n % 2 ? PROT_READ : RW,
						      UP_PRIVATE, NULL, 0, &p)) == 0)
		n++;
	cr_assert(eq(int, r, -EDQUOT));
	cr_assert(eq(uint, n, limits.regions));
	while (k < 30 && (r = up_object_create_anon(rt, PAGE_SIZE, 0, &o[k])) == 0)
		k++;
	cr_assert(eq(int, r, -EDQUOT));
	cr_assert(eq(uint, k, limits.objects));
	up_object_unref(o[3]);
	cr_assert(eq(int, up_object_create_anon(rt, PAGE_SIZE, 0, &o[3]), 0));
	for (unsigned i = 0; i < k; i++)
		up_object_unref(o[i]);
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

/* What is between CLONE and MAPPED is seen by nobody else. */
Test(remote, who_does_not_finish_a_clone_is_in_nobodys_way)
{
	struct up_object *o, *snap;
	uint64_t *p, *q;
	struct call call;
	struct msg m;
	int fd;

	rt = must_connect();
	cr_assert(eq(int, up_object_create_named(rt, "theirs", 100 * PAGE_SIZE, 0, &o), 0));
	p = must_map(rt, 100, UP_SHARED, o, 0);
	fill(p, 100, 1);
	fd = raw_cloning("theirs", 100 * PAGE_SIZE, &call);
	cr_assert(eq(int, up_object_snapshot(rt, o, &snap), 0), "%s", logged);
	fill(p, 100, 2);
	q = must_map(rt, 100, UP_PRIVATE, snap, 0);
	cr_assert(eq(sz, wrong(q, 100, 1), 0));
	call.op = CALL_MAPPED;
	cr_assert(eq(int, raw_call(fd, &call, &m), 0));
	cr_assert(eq(sz, wrong(p, 100, 2), 0));
	close(fd);
	cr_assert(eq(int, up_object_remove(rt, "theirs"), 0));
	up_object_unref(o);
	up_object_unref(snap);
	up_runtime_destroy(rt);
	wait_ended(2);
	daemon_ask(2);
}

/* Addresses that were given back are the program's: somebody else's by now. */
Test(remote, what_was_unmapped_in_the_middle_is_not_unmapped_again)
{
	uint64_t *p, *mine;

	rt = must_connect();
	p = must_map(rt, 3, UP_PRIVATE, NULL, 0);
	fill(p, 3, 1);
	cr_assert(eq(int, up_unmap(rt, p + WORDS, PAGE_SIZE), 0));
	mine = mmap(p + WORDS, PAGE_SIZE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
		    0);
	cr_assert(mine == p + WORDS);
	fill(mine, 1, 7);
	up_runtime_destroy(rt);
	cr_assert(eq(int, touch(mine), 0));
	cr_assert(eq(sz, wrong(mine, 1, 7), 0));
	cr_assert(eq(int, touch(p), SIGSEGV));
	cr_assert(eq(int, touch(p + 2 * WORDS), SIGSEGV));
	wait_ended(1);
	daemon_ask(2);
}

/* It has the description of its userfaultfd as well as the daemon does. */
Test(remote, a_userfaultfd_that_is_made_to_block_stops_nobody)
{
	pid_t pid[4];
	uint64_t *p;

	rt = must_connect();
	p = must_map(rt, 4000, UP_PRIVATE, NULL, 0);
	for (unsigned i = 0; i < 4; i++) {
		pid[i] = fork();
		if (pid[i] == 0) {
			struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
			int uffd;

			prctl(PR_SET_PDEATHSIG, SIGKILL);
			raw_client_with(&uffd);
			reg.range.start = (uintptr_t)mmap(NULL, PAGE_SIZE, RW,
							  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			reg.range.len = PAGE_SIZE;
			if (ioctl(uffd, UFFDIO_REGISTER, &reg) == 0 && fcntl(uffd, F_SETFL, 0) == 0)
				*(volatile char *)(uintptr_t)reg.range.start = 1;
			_exit(1);
		}
	}
	poll(NULL, 0, 300);
	alarm(15);
	fill(p, 4000, 1);
	cr_assert(eq(sz, wrong(p, 4000, 1), 0));
	for (unsigned i = 0; i < 4; i++) {
		kill(pid[i], SIGKILL);
		waitpid(pid[i], NULL, 0);
	}
	up_runtime_destroy(rt);
	wait_ended(5);
	daemon_ask(2);
	alarm(0);
}

Test(remote, what_is_no_userfaultfd_is_not_served)
{
	const struct msg connect = { .type = MSG_CONNECT, .n = PROTOCOL_VERSION },
			 hello = { .type = MSG_HELLO };
	int fd = raw_connect(), with[MSG_REGIONS], pipes[2];
	struct msg m;
	size_t n;

	cr_assert(eq(int, pipe(pipes), 0));
	say(fd, &connect, NULL, 0);
	cr_assert(eq(int, msg_await(fd, &m, with, &n, 10000), 0));
	say(fd, &hello, &pipes[0], 1);
	must_hang_up(fd);
	close(pipes[0]);
	close(pipes[1]);
	wait_ended(1);
	daemon_ask(2);
}

/* As long as an event waits nothing can be protected, and pages not be taken out. */
Test(remote, a_userfaultfd_that_tells_of_events_is_not_served)
{
	const struct msg connect = { .type = MSG_CONNECT, .n = PROTOCOL_VERSION },
			 hello = { .type = MSG_HELLO };
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE };
	int fd = raw_connect(), with[MSG_REGIONS], uffd;
	struct msg m;
	size_t n;

	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) < 0)
		cr_skip_test("no userfaultfd with events here");
	say(fd, &connect, NULL, 0);
	cr_assert(eq(int, msg_await(fd, &m, with, &n, 10000), 0));
	say(fd, &hello, &uffd, 1);
	must_hang_up(fd);
	close(uffd);
	wait_ended(1);
	daemon_ask(2);
}

/* Only its own faults wait. */
Test(timely, who_does_not_come_back_from_a_fork_stops_nobody_else)
{
	int with[MSG_REGIONS];
	size_t nwith;
	struct msg m;
	double t0;
	uint64_t *p;

	rt = must_connect();
	p = must_map(rt, 1000, UP_PRIVATE, NULL, 0);
	for (unsigned i = 0; i < 4; i++) {
		const int fd = raw_client();
		struct msg say_fork = { .type = MSG_FORK, .serial = 9 };
		int pair[2];

		raw_map(fd, 0x10000000, RW, true);
		cr_assert(eq(int, socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0));
		say(fd, &say_fork, &pair[0], 1);
		cr_assert(eq(int, msg_await(fd, &m, with, &nwith, 10000), 0));
		cr_assert(eq(uint, m.type, MSG_REGION));
		close(with[0]);
		t0 = seconds();
		fill(p, 1000, i);
		cr_assert(eq(sz, wrong(p, 1000, i), 0));
		cr_assert(eq(int, up_advise(rt, p, 1000 * PAGE_SIZE, UP_ADVICE_DONTNEED), 0));
		cr_assert(lt(dbl, seconds() - t0, 1));
		close(pair[0]);
		close(pair[1]);
		close(fd);
	}
	up_runtime_destroy(rt);
	wait_ended(5);
	daemon_ask(2);
}

/* It hears that again and again, and does not read it. */
Test(timely, who_speaks_another_version_keeps_nobody_waiting)
{
	const struct msg m = { .type = MSG_CONNECT, .n = PROTOCOL_VERSION + 1 };
	const int fd = raw_connect();
	double t0;

	rt = must_connect();
	while (send(fd, &m, sizeof m, MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
		;
	t0 = seconds();
	fill(must_map(rt, 100, UP_PRIVATE, NULL, 0), 100, 1);
	cr_assert(lt(dbl, seconds() - t0, 1));
	close(fd);
	up_runtime_destroy(rt);
	wait_ended(2);
	daemon_ask(2);
}

static pthread_mutex_t program_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool store_no_more;

static void
log_under_lock(void *ctx, enum up_log_level level, const char *line)
{
	pthread_mutex_lock(&program_lock);
	collect(ctx, level, line);
	pthread_mutex_unlock(&program_lock);
}

static void *
store_under_lock(void *p)
{
	while (!atomic_load(&store_no_more)) {
		pthread_mutex_lock(&program_lock);
		fill(p, 10, 2);
		pthread_mutex_unlock(&program_lock);
		sched_yield();
	}
	return NULL;
}

/* Who has the lock that the program's log function wants may wait for the fork. */
Test(timely, what_a_fork_has_to_say_is_said_when_nobody_waits)
{
	const struct up_config cfg = { .log = log_under_lock };
	struct up_runtime *other;
	pthread_t thread;
	uint64_t *p, *q;
	int status;
	double t0;
	pid_t pid;

	cr_assert(eq(int, up_runtime_connect(&rt, path, &cfg), 0));
	cr_assert(eq(int, up_runtime_connect(&other, path, &cfg), 0));
	p = must_map(rt, 10, UP_PRIVATE, NULL, 0);
	q = must_map(other, 10, UP_PRIVATE, NULL, 0);
	fill(p, 10, 1);
	cr_assert(eq(int, up_inherit(rt, p, 10 * PAGE_SIZE, UP_INHERIT_COPY), 0));
	cr_assert(eq(int, up_inherit(other, q, 10 * PAGE_SIZE, UP_INHERIT_COPY), 0));
	/* It can not be parted. */
	cr_assert(eq(int, up_wire(rt, p, PAGE_SIZE), 0));
	cr_assert(eq(int, pthread_create(&thread, NULL, store_under_lock, q), 0));
	for (unsigned i = 0; i < 5; i++) {
		t0 = seconds();
		pid = fork();
		if (pid == 0)
			_exit(touch(q) != 0 || touch(p) == 0);
		cr_assert(waitpid(pid, &status, 0) == pid);
		cr_assert(eq(int, status, 0));
		cr_assert(lt(dbl, seconds() - t0, 2));
	}
	atomic_store(&store_no_more, true);
	pthread_join(thread, NULL);
	cr_assert(ne(ptr, strstr(logged, "no paged memory: EBUSY"), NULL), "%s", logged);
	up_runtime_destroy(rt);
	up_runtime_destroy(other);
	wait_ended(2);
	daemon_ask(2);
}

/* --- calls that take as long as a disk --- */

#define FILE_PAGES 64

static int
zeros_file(void)
{
	char file[] = "/var/tmp/test_remote_file.XXXXXX";
	const int fd = mkstemp(file);

	unlink(file);
	cr_assert(ge(int, fd, 0));
	cr_assert(zero(int, ftruncate(fd, FILE_PAGES * PAGE_SIZE)));
	return fd;
}

static void
wait_flushing(void)
{
	const double until = seconds() + DEADLINE;

	while (atomic_load(&shared->flushing) == 0) {
		cr_assert(seconds() < until, "nothing is made safe");
		nap();
	}
}

static struct synced {
	uint64_t *p;
	int result;
	double took;
} synced;

static void *
sync_it(void *arg)
{
	struct synced *s = arg;
	const double t0 = seconds();

	s->result = up_sync(rt, s->p, FILE_PAGES * PAGE_SIZE, 0);
	s->took = seconds() - t0;
	return NULL;
}

Test(timely, a_disk_that_takes_its_time_keeps_nobody_else_waiting)
{
	const int fd = zeros_file();
	struct up_runtime *other;
	struct up_object *o;
	pthread_t thread;
	uint64_t word, *q;
	double t0;

	rt = must_connect();
	other = must_connect();
	cr_assert(zero(int, up_object_create_file(rt, fd, 0, 0, 0, &o)), "%s", logged);
	synced.p = must_map(rt, FILE_PAGES, UP_SHARED, o, 0);
	fill(synced.p, FILE_PAGES, 3);
	atomic_store(&shared->hold, true);
	cr_assert(zero(int, pthread_create(&thread, NULL, sync_it, &synced)));
	wait_flushing();
	/* What is done meanwhile by others, also with files of their own. */
	t0 = seconds();
	q = must_map(other, 100, UP_PRIVATE, NULL, 0);
	fill(q, 100, 1);
	cr_assert(zero(int, up_advise(other, q, 50 * PAGE_SIZE, UP_ADVICE_DONTNEED)));
	cr_assert(zero(int, up_unmap(other, q, 100 * PAGE_SIZE)));
	up_runtime_destroy(other);
	wait_ended(1);
	other = must_connect();
	cr_assert(lt(dbl, seconds() - t0, 1));
	/* Its own pages are there, too. */
	synced.p[5] = 99;
	cr_assert(eq(u64, synced.p[5], 99));
	atomic_store(&shared->hold, false);
	cr_assert(zero(int, pthread_join(thread, NULL)));
	cr_assert(zero(int, synced.result), "%s", logged);
	cr_assert(pread(fd, &word, sizeof word, 10 * sizeof word) == (ssize_t)sizeof word);
	cr_assert(eq(u64, word, 13));
	cr_assert(zero(int, up_unmap(rt, synced.p, FILE_PAGES * PAGE_SIZE)));
	cr_assert(pread(fd, &word, sizeof word, 5 * sizeof word) == (ssize_t)sizeof word);
	cr_assert(eq(u64, word, 99));
	up_object_unref(o);
	up_runtime_destroy(other);
	up_runtime_destroy(rt);
	wait_ended(3);
	daemon_ask(2);
	close(fd);
}

/* By hand: *q is what syncs it. */
static int
raw_file_client(int file, struct call *q)
{
	struct msg m = { .type = MSG_CALL, .serial = 5, .call = { .op = CALL_CREATE_FILE } };
	const int fd = raw_client();
	int with[MSG_REGIONS];
	size_t n;

	say(fd, &m, &file, 1);
	cr_assert(zero(int, msg_await(fd, &m, with, &n, 10000)));
	cr_assert(zero(int, m.status));
	*q = (struct call){ .op = CALL_MAP,
			    .addr = 0x10000000,
			    .length = FILE_PAGES * PAGE_SIZE,
			    .prot = RW,
			    .flags = UP_SHARED,
			    .object = m.call.object };
	cr_assert(zero(int, raw_call(fd, q, &m)));
	q->op = CALL_MAPPED;
	cr_assert(zero(int, raw_call(fd, q, &m)));
	q->op = CALL_SYNC;
	q->flags = 0;
	return fd;
}

/* Else it would believe after a while that nobody is there any more; and what it says meanwhile comes to its turn. */
Test(remote, who_waits_for_a_disk_is_told_so_and_one_call_follows_another)
{
	const int file = zeros_file();
	struct msg m = { .type = MSG_CALL, .serial = 7 };
	int with[MSG_REGIONS], fd;
	size_t n;

	fd = raw_file_client(file, &m.call);
	atomic_store(&shared->hold, true);
	say(fd, &m, NULL, 0);
	m = (struct msg){ .type = MSG_CALL, .serial = 8, .call = { .op = CALL_STATS } };
	say(fd, &m, NULL, 0);
	for (unsigned i = 0; i < 2; i++) {
		cr_assert(zero(int, msg_await(fd, &m, with, &n, 10000)), "not told (%u)", i);
		cr_assert(eq(uint, m.type, MSG_ACK));
		cr_assert(zero(sz, n));
	}
	atomic_store(&shared->hold, false);
	for (uint32_t serial = 7; serial < 9; serial++) {
		cr_assert(zero(int, msg_await(fd, &m, with, &n, 10000)));
		cr_assert(eq(uint, m.type, MSG_RETURN));
		cr_assert(eq(uint, m.serial, serial));
		cr_assert(zero(int, m.status));
	}
	close(fd);
	wait_ended(1);
	daemon_ask(2);
	close(file);
}

Test(remote, who_ends_while_a_disk_takes_its_time_is_gone_at_once)
{
	const int file = zeros_file();
	struct msg m = { .type = MSG_CALL, .serial = 7 };
	int fd;

	fd = raw_file_client(file, &m.call);
	atomic_store(&shared->hold, true);
	say(fd, &m, NULL, 0);
	wait_flushing();
	/* That may be in its queue. */
	say(fd, &m, NULL, 0);
	close(fd);
	wait_ended(1);
	daemon_ask(1);
	cr_assert(zero(uint, atomic_load(&shared->regions)));
	cr_assert(eq(uint, atomic_load(&shared->flushing), 1));
	/* The daemon itself waits: the file may be its own to close. */
	atomic_store(&shared->hold, false);
	daemon_ask(2);
	close(file);
}

/* As its unit has it: the kernel counts descriptors that are on their way, and it may not have more of them than open ones. */
static void
set_up_few_on_their_way(void)
{
	few_on_their_way = true;
	limits.regions = 10000;
	daemon_limit = 64 * MiB;
	set_up_timely();
}

TestSuite(few, .init = set_up_few_on_their_way, .fini = tear_down, .timeout = 60);

Test(few, who_does_not_read_does_not_end_others)
{
	struct msg say_fork = { .type = MSG_FORK, .serial = 9 }, m;
	int fd[4], pair[2];
	uint64_t *p;

	rt = must_connect();
	p = must_map(rt, 10, UP_PRIVATE, NULL, 0);
	fill(p, 10, 1);
	cr_assert(eq(int, socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0));
	for (unsigned k = 0; k < ARRAY_SIZE(fd); k++) {
		struct call call = { .op = CALL_CREATE_ANON, .length = PAGE_SIZE };

		fd[k] = raw_client();
		cr_assert(eq(int, raw_call(fd[k], &call, &m), 0));
		call = (struct call){ .addr = 0x10000000,
				      .length = PAGE_SIZE,
				      .object = m.call.object };
		for (unsigned i = 0; i < 500; i++, call.addr += 2 * PAGE_SIZE) {
			call.op = CALL_MAP;
			call.prot = RW;
			call.flags = UP_SHARED;
			cr_assert(eq(int, raw_call(fd[k], &call, &m), 0));
			call.op = CALL_MAPPED;
			cr_assert(eq(int, raw_call(fd[k], &call, &m), 0));
			call.op = CALL_INHERIT;
			call.flags = UP_INHERIT_SHARE;
			cr_assert(eq(int, raw_call(fd[k], &call, &m), 0));
		}
	}
	for (unsigned k = 0; k < ARRAY_SIZE(fd); k++) {
		say(fd[k], &say_fork, &pair[0], 1);
		cr_assert(eq(int, poll(&(struct pollfd){ .fd = fd[k], .events = POLLIN }, 1, 5000),
			     1));
	}
	fill(must_map(rt, 100, UP_PRIVATE, NULL, 0), 100, 2);
	cr_assert(eq(sz, wrong(p, 10, 1), 0));
	for (unsigned k = 0; k < ARRAY_SIZE(fd); k++)
		close(fd[k]);
	close(pair[0]);
	close(pair[1]);
	up_runtime_destroy(rt);
	wait_ended(1 + ARRAY_SIZE(fd));
	daemon_ask(2);
}

static void
set_up_many_regions(void)
{
	limits.regions = 10000;
	daemon_limit = 256 * MiB;
	set_up_timely();
}

TestSuite(many, .init = set_up_many_regions, .fini = tear_down, .timeout = 60);

/* Each is a thread of the daemon's: who is one too many waits, and nobody else. */
Test(many, disks_that_take_their_time_are_waited_for_by_those_who_asked)
{
	struct msg m = { .type = MSG_CALL, .serial = 7 };
	int file[FLUSHES + 2], fd[FLUSHES + 2], with[MSG_REGIONS];
	const double until = seconds() + DEADLINE;
	double t0;
	size_t n;

	rt = must_connect();
	atomic_store(&shared->hold, true);
	for (unsigned i = 0; i < ARRAY_SIZE(fd); i++) {
		file[i] = zeros_file();
		fd[i] = raw_file_client(file[i], &m.call);
		say(fd[i], &m, NULL, 0);
	}
	while (atomic_load(&shared->flushing) < FLUSHES) {
		cr_assert(seconds() < until, "%u flushes", atomic_load(&shared->flushing));
		nap();
	}
	t0 = seconds();
	fill(must_map(rt, 100, UP_PRIVATE, NULL, 0), 100, 1);
	cr_assert(lt(dbl, seconds() - t0, 1));
	cr_assert(eq(uint, atomic_load(&shared->flushing), FLUSHES));
	/* One of those goes while it waits: it is not waited for. */
	close(fd[0]);
	wait_ended(1);
	cr_assert(eq(uint, atomic_load(&shared->flushing), FLUSHES));
	atomic_store(&shared->hold, false);
	for (unsigned i = 1; i < ARRAY_SIZE(fd); i++) {
		do
			cr_assert(zero(int, msg_await(fd[i], &m, with, &n, 10000)), "client %u", i);
		while (m.type == MSG_ACK);
		cr_assert(eq(uint, m.type, MSG_RETURN));
		cr_assert(zero(int, m.status));
		close(fd[i]);
	}
	up_runtime_destroy(rt);
	wait_ended(ARRAY_SIZE(fd) + 1);
	daemon_ask(2);
	for (unsigned i = 0; i < ARRAY_SIZE(file); i++)
		close(file[i]);
}

/* What it is to map does not fit its queue. */
Test(many, who_does_not_read_keeps_nobody_waiting_and_is_told_all_of_it_later)
{
	const uint32_t n = 4000;
	struct msg say_fork = { .type = MSG_FORK, .serial = 9 }, m;
	const int fd = raw_client();
	int pair[2], with[MSG_REGIONS], r;
	uint64_t at = 0x10000000;
	uint32_t told = 0;
	size_t nwith;
	uint64_t *p;
	double t0;

	rt = must_connect();
	p = must_map(rt, 1000, UP_PRIVATE, NULL, 0);
	for (uint32_t i = 0; i < n; i++)
		raw_map(fd, at + i * 2 * PAGE_SIZE, i % 2 ? RW : PROT_READ, true);
	cr_assert(eq(int, socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0));
	say(fd, &say_fork, &pair[0], 1);
	/* The first message has come: the others are on their way, or wait. */
	cr_assert(eq(int, poll(&(struct pollfd){ .fd = fd, .events = POLLIN }, 1, 10000), 1));
	t0 = seconds();
	fill(p, 1000, 1);
	cr_assert(eq(int, up_advise(rt, p, 500 * PAGE_SIZE, UP_ADVICE_DONTNEED), 0));
	cr_assert(lt(dbl, seconds() - t0, 1));
	cr_assert(eq(sz, wrong(p + 500 * WORDS, 500, 1 + 500 * WORDS), 0));
	do {
		r = msg_await(fd, &m, with, &nwith, 10000);
		cr_assert(eq(int, r, 0), "after %u regions", told);
		cr_assert(eq(uint, m.type, MSG_REGION));
		cr_assert(eq(uint, m.serial, 9));
		cr_assert(eq(int, m.status, 0));
		cr_assert(eq(sz, nwith, m.n));
		for (uint32_t i = 0; i < m.n; i++, at += 2 * PAGE_SIZE) {
			cr_assert(eq(u64, m.r[i].va, at));
			close(with[i]);
		}
		told += m.n;
		cr_assert(eq(uint, told + m.left, n));
	} while (m.left > 0);
	m = (struct msg){ .type = MSG_FORKED };
	say(fd, &m, NULL, 0);
	close(pair[0]);
	close(pair[1]);
	close(fd);
	up_runtime_destroy(rt);
	wait_ended(2);
	daemon_ask(2);
}

static void
set_up_few_fds(void)
{
	limits.fds = 10;
	daemon_start();
}

TestSuite(fds, .init = set_up_few_fds, .fini = tear_down, .timeout = 60);

Test(fds, descriptors_of_a_client_are_limited)
{
	uint64_t *p[9];
	void *more;
	size_t n;

	rt = must_connect();
	for (n = 0; n < 8; n++)
		p[n] = must_map(rt, 10, UP_PRIVATE, NULL, 0);
	cr_assert(eq(int, up_map(rt, NULL, PAGE_SIZE, RW, UP_PRIVATE, NULL, 0, &more), -EMFILE));
	cr_assert(ne(ptr, strstr(logged, "EMFILE"), NULL));
	cr_assert(eq(int, up_clone(rt, p[0], 10 * PAGE_SIZE, &more), -EMFILE));
	fill(p[0], 10, 1);
	cr_assert(eq(int, up_unmap(rt, p[7], 10 * PAGE_SIZE), 0));
	p[8] = must_map(rt, 10, UP_PRIVATE, NULL, 0);
	cr_assert(eq(sz, wrong(p[0], 10, 1), 0));
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

/* --- files that a process answers for --- */

static struct fuse_file fuse;

/* The file, open. */
static int
must_mount(void)
{
	int fd;

	if (!fuse_file_start(&fuse))
		cr_skip_test("no FUSE here");
	fd = open(fuse.path, O_RDONLY | O_CLOEXEC);
	cr_assert(ge(int, fd, 0), "%s", strerror(errno));
	return fd;
}

static void
tear_down_fuse(void)
{
	if (fuse.server > 0)
		fuse_file_end(&fuse);
	tear_down();
}

static void
set_up_fuse(void)
{
	limits.fuse = true;
	daemon_start();
}

TestSuite(no_fuse, .init = set_up, .fini = tear_down_fuse, .timeout = 60);
TestSuite(fuse, .init = set_up_fuse, .fini = tear_down_fuse, .timeout = 60);

/* What is on its way to *peer is not read. */
static int
lingering_socket(int *peer)
{
	static const char junk[65536];
	const struct linger patient = { 1, 1000 };
	struct sockaddr_in in = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof in;
	const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	const int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	cr_assert(bind(listener, (struct sockaddr *)&in, sizeof in) == 0 &&
		  listen(listener, 1) == 0 &&
		  getsockname(listener, (struct sockaddr *)&in, &len) == 0 &&
		  connect(s, (struct sockaddr *)&in, sizeof in) == 0);
	*peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	cr_assert(ge(int, *peer, 0));
	close(listener);
	while (send(s, junk, sizeof junk, MSG_DONTWAIT) > 0)
		;
	cr_assert(setsockopt(s, SOL_SOCKET, SO_LINGER, &patient, sizeof patient) == 0);
	return s;
}

/* Its process can let wait whom it likes: also who only closes it. */
Test(no_fuse, it_is_refused_and_nobody_waits_for_it)
{
	const struct call create = { .op = CALL_CREATE_FILE };
	struct msg m = { .type = MSG_CALL, .serial = 5, .call = create };
	int with[MSG_REGIONS], fd, raw, half, lingering, peer;
	size_t n;

	fd = must_mount();
	rt = must_connect();
	raw = raw_client();
	half = raw_connect();
	fuse_file_mute(&fuse, true);
	say(raw, &m, &fd, 1);
	cr_assert(eq(int, msg_await(raw, &m, with, &n, 10000), 0));
	cr_assert(eq(int, m.status, -ENOTSUP));
	/* In place of a userfaultfd. */
	m = (struct msg){ .type = MSG_CONNECT, .n = PROTOCOL_VERSION };
	say(half, &m, NULL, 0);
	cr_assert(eq(int, msg_await(half, &m, with, &n, 10000), 0));
	m = (struct msg){ .type = MSG_HELLO };
	say(half, &m, &fd, 1);
	must_hang_up(half);
	/* In place of a socket; and one that waits for its peer when it is closed. */
	half = raw_client();
	m = (struct msg){ .type = MSG_FORK, .serial = 9 };
	say(half, &m, &fd, 1);
	must_hang_up(half);
	half = raw_client();
	lingering = lingering_socket(&peer);
	m = (struct msg){ .type = MSG_CALL, .serial = 5, .call = { .op = CALL_STATS } };
	/* Whose close() is the last one waits. */
	kill(daemon_pid, SIGSTOP);
	say(half, &m, &lingering, 1);
	close(lingering);
	kill(daemon_pid, SIGCONT);
	cr_assert(eq(int, msg_await(half, &m, with, &n, 10000), 0));
	cr_assert(eq(int, m.status, -EPROTOTYPE));
	close(half);
	/* The others do not notice. */
	fill(must_map(rt, 100, UP_PRIVATE, NULL, 0), 100, 1);
	raw_map(raw, 0x10000000, RW, false);
	close(peer);
	fuse_file_mute(&fuse, false);
	close(fd);
	close(raw);
	up_runtime_destroy(rt);
	wait_ended(5);
	daemon_ask(2);
}

Test(fuse, it_is_taken_where_that_is_allowed)
{
	struct up_object *o;
	unsigned char *p;
	int fd;

	fd = must_mount();
	rt = must_connect();
	cr_assert(eq(int, up_object_create_file(rt, fd, 0, 0, 0, &o), 0), "%s", logged);
	close(fd);
	p = (unsigned char *)must_map(rt, FUSE_FILE_PAGES, UP_PRIVATE, o, 0);
	for (size_t i = 0; i < FUSE_FILE_PAGES * PAGE_SIZE; i++)
		cr_assert(eq(uint, p[i], i / PAGE_SIZE + 1), "byte %zu", i);
	cr_assert(gt(uint, atomic_load(fuse.others), 0));
	up_object_unref(o);
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

/* The number of a mount is the kernel's, but its kind is told only where it is mounted. */
Test(no_fuse, a_file_of_a_mount_is_known_where_that_is_mounted)
{
	char dir[64];
	int status, fd;
	pid_t pid;

	fd = must_mount();
	cr_assert(eq(int, descriptor_vet(fd, getpid()), -ENOTSUP));
	close(fd);
	fd = memfd_create("in memory", MFD_CLOEXEC);
	cr_assert(eq(int, descriptor_vet(fd, getpid()), 0));
	close(fd);
	fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	cr_assert(eq(int, descriptor_vet(fd, getpid()), 0));
	close(fd);
	cr_assert(eq(int, descriptor_vet(fd, getpid()), -ENOENT));
	snprintf(dir, sizeof dir, "/tmp/test_mount.%d", (int)getpid());
	cr_assert(eq(int, mkdir(dir, 0700), 0));
	pid = fork();
	if (pid == 0) {
		const pid_t parent = getppid();
		char ours[80];
		int tree;

		/* Where the one who asks is another one, as a daemon would be. */
		if (unshare(CLONE_NEWNS) < 0 ||
		    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
		    mount("/var/tmp", dir, NULL, MS_BIND, NULL) < 0)
			_exit(77);
		snprintf(ours, sizeof ours, "%s/test_mount.%d", dir, (int)getpid());
		fd = open(ours, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (fd < 0 || descriptor_vet(fd, parent) != 0)
			_exit(1);
		pid = fork();
		if (pid == 0) {
			/* It is back where it is not mounted. */
			char ns[64];
			int at;

			snprintf(ns, sizeof ns, "/proc/%d/ns/mnt", (int)parent);
			at = open(ns, O_RDONLY | O_CLOEXEC);
			if (at < 0 || setns(at, CLONE_NEWNS) < 0)
				_exit(77);
			if (descriptor_vet(fd, parent) != -EXDEV)
				_exit(2);
			_exit(descriptor_vet(fd, getppid()) == 0 ? 0 : 3);
		}
		if (waitpid(pid, &status, 0) != pid || status != 0)
			_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 4);
		unlink(ours);
		/* Nowhere. */
		tree = (int)syscall(SYS_open_tree, AT_FDCWD, dir, 1 | O_CLOEXEC);
		fd = tree < 0 ? -1 : openat(tree, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		_exit(fd < 0 ? 77 : descriptor_vet(fd, parent) != -EXDEV ? 5 : 0);
	}
	cr_assert(waitpid(pid, &status, 0) == pid);
	rmdir(dir);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		cr_skip_test("no mounts of one's own here");
	cr_assert(eq(int, status, 0));
}

static void
set_up_little_in_flight(void)
{
	limits.inflight = 4 * PAGE_SIZE;
	daemon_start();
}

TestSuite(inflight, .init = set_up_little_in_flight, .fini = tear_down, .timeout = 60);

/* A stream of 64 pages a fault is one of 4, or a few more if a read ends in time. */
Test(inflight, no_more_is_read_ahead_than_that)
{
	const size_t npages = 8192;
	struct up_stats before, after;
	uint64_t *p, faults = 0;

	rt = must_connect();
	p = must_map(rt, npages, UP_PRIVATE, NULL, 0);
	fill(p, npages, 1);
	cr_assert(eq(int, up_stats_get(rt, &before, sizeof before), 0));
	cr_assert(eq(sz, wrong(p, npages, 1), 0));
	cr_assert(eq(int, up_stats_get(rt, &after, sizeof after), 0));
	for (unsigned k = 0; k < UP_FAULT_KINDS; k++)
		faults += after.faults[k] - before.faults[k];
	cr_assert(ge(u64, faults, npages / 16));
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

/* Memory of a pool's file behind the pager's back: by a mapping that is not registered. */
static void
put_behind_its_back(uint64_t *p, size_t npages)
{
	uint64_t *again = mremap(p, 0, npages * PAGE_SIZE, MREMAP_MAYMOVE);

	cr_assert(again != MAP_FAILED, "%s", strerror(errno));
	for (size_t i = 0; i < npages; i++)
		again[i * WORDS] = i;
	cr_assert(eq(int, munmap(again, npages * PAGE_SIZE), 0));
}

Test(remote, who_puts_memory_into_its_files_itself_is_disconnected)
{
	struct up_runtime *other;
	uint64_t *p, *q;

	rt = must_connect();
	other = must_connect();
	p = must_map(rt, 8192, UP_PRIVATE, NULL, 0);
	q = must_map(other, 4096, UP_PRIVATE, NULL, 0);
	/* Who does not is left alone, however much it moves. */
	for (unsigned round = 0; round < 3; round++) {
		fill(q, 4096, round);
		cr_assert(eq(sz, wrong(q, 4096, round), 0));
	}
	cr_assert(eq(uint, atomic_load(&shared->ended), 0));
	put_behind_its_back(p, 8192);
	wait_ended(1);
	cr_assert(eq(sz, wrong(q, 4096, 2), 0));
	fill(q, 4096, 9);
	cr_assert(eq(sz, wrong(q, 4096, 9), 0));
	up_runtime_destroy(rt);
	up_runtime_destroy(other);
	wait_ended(2);
	daemon_ask(2);
}

Test(remote, nor_into_those_of_objects_with_a_name)
{
	struct up_object *o;
	uint64_t *p;

	rt = must_connect();
	cr_assert(eq(int, up_object_create_named(rt, "hoard", 8192 * PAGE_SIZE, 0, &o), 0));
	p = must_map(rt, 8192, UP_SHARED, o, 0);
	fill(p, 8192, 1);
	cr_assert(eq(sz, wrong(p, 8192, 1), 0));
	cr_assert(eq(uint, atomic_load(&shared->ended), 0));
	put_behind_its_back(p, 8192);
	wait_ended(1);
	up_object_unref(o);
	up_runtime_destroy(rt);
	daemon_ask(2);
}

/* Without a daemon nobody knows what was mapped but we do. */
Test(remote, without_a_daemon_only_what_is_its_own_is_unmapped)
{
	uint64_t *p, *mine;

	rt = must_connect();
	p = must_map(rt, 30, UP_PRIVATE, NULL, 0);
	fill(p, 30, 1);
	cr_assert(eq(int, up_unmap(rt, p + 10 * WORDS, 10 * PAGE_SIZE), 0));
	mine = mmap(p + 10 * WORDS, 10 * PAGE_SIZE, RW,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	cr_assert(eq(ptr, mine, p + 10 * WORDS));
	fill(mine, 10, 2);
	cr_assert(eq(int, up_unmap(rt, p + 5 * WORDS, 10 * PAGE_SIZE), 0));
	cr_assert(eq(sz, wrong(mine, 10, 2), 0));
	kill(daemon_pid, SIGKILL);
	waitpid(daemon_pid, NULL, 0);
	daemon_pid = 0;
	cr_assert(eq(int, up_unmap(rt, p, 30 * PAGE_SIZE), 0));
	cr_assert(eq(sz, wrong(mine, 10, 2), 0));
	cr_assert(eq(int, touch(p), SIGSEGV));
	cr_assert(eq(int, touch(p + 25 * WORDS), SIGSEGV));
	up_runtime_destroy(rt);
	cr_assert(eq(sz, wrong(mine, 10, 2), 0));
}

/* --- quotas --- */

static int
quota(unsigned client, uint64_t limit, uint64_t minimum)
{
	atomic_store(&shared->client, client);
	atomic_store(&shared->limit, limit);
	atomic_store(&shared->minimum, minimum);
	daemon_ask(3);
	return atomic_load(&shared->result);
}

static void
set_up_roomy(void)
{
	daemon_limit = 48 * MiB;
	daemon_start();
}

TestSuite(quota, .init = set_up_roomy, .fini = tear_down, .timeout = 60);

Test(quota, a_client_never_has_more_than_its_limit)
{
	struct up_runtime *other;
	uint64_t *p, *q;

	rt = must_connect();
	other = must_connect();
	cr_assert(eq(int, quota(0, 8 * MiB, 0), 0));
	p = must_map(rt, 8192, UP_PRIVATE, NULL, 0);
	q = must_map(other, 3000, UP_PRIVATE, NULL, 0);
	fill(q, 3000, 2);
	fill(p, 8192, 1);
	cr_assert(eq(sz, wrong(p, 8192, 1), 0));
	for (size_t i = 0; i < 20000; i++) {
		const size_t page = (i * 2654435761u) % 8192;

		cr_assert(eq(u64, p[page * WORDS + 5], 1 + page * WORDS + 5));
	}
	cr_assert(eq(sz, wrong(q, 3000, 2), 0));
	cr_assert(le(u64, atomic_load(&shared->most[0]), 8 * MiB));
	cr_assert(ge(u64, atomic_load(&shared->most[0]), 4 * MiB));
	/* Not for the other. */
	cr_assert(ge(u64, atomic_load(&shared->most[1]), 10 * MiB));
	/* Less, while it has more than that. */
	cr_assert(eq(int, quota(1, 8 * MiB, 0), 0));
	q[0] = 2;
	fill(q, 3000, 3);
	cr_assert(eq(sz, wrong(q, 3000, 3), 0));
	daemon_ask(1);
	cr_assert(le(u64, atomic_load(&shared->resident[1]), 8 * MiB));
	up_runtime_destroy(rt);
	up_runtime_destroy(other);
	wait_ended(2);
	daemon_ask(2);
}

Test(quota, what_is_asked_for_ahead_is_no_more_than_that)
{
	uint64_t *p;

	rt = must_connect();
	cr_assert(eq(int, quota(0, 8 * MiB, 0), 0));
	p = must_map(rt, 4096, UP_PRIVATE, NULL, 0);
	fill(p, 4096, 1);
	for (unsigned i = 0; i < 16; i++) {
		cr_assert(eq(int, up_advise(rt, p, 4096 * PAGE_SIZE, UP_ADVICE_WILLNEED), 0));
		for (size_t at = 0; at < 4096; at += 64)
			cr_assert(eq(u64, p[at * WORDS + i], 1 + at * WORDS + i));
	}
	/* Of all of it together there is no hope; of a part there is. */
	cr_assert(eq(int, up_prefault(rt, p, 4096 * PAGE_SIZE, 1), -ENOMEM));
	cr_assert(eq(int, up_prefault(rt, p, 512 * PAGE_SIZE, 1), 0));
	cr_assert(eq(sz, wrong(p, 4096, 1), 0));
	daemon_ask(1);
	cr_assert(le(u64, atomic_load(&shared->most[0]), 8 * MiB));
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

/* Whatever kind of fault it makes of its touches. */
Test(quota, who_protects_what_is_not_there_has_no_more_for_that)
{
	struct uffdio_writeprotect wp = { .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	const size_t npages = 6000;
	uint64_t *p;

	rt = must_connect();
	cr_assert(eq(int, quota(0, 8 * MiB, 0), 0));
	p = must_map(rt, npages, UP_PRIVATE, NULL, 0);
	wp.range.start = (uintptr_t)p;
	wp.range.len = npages * PAGE_SIZE;
	for (uint64_t i = 0; i < 3; i++) {
		cr_assert(ioctl(own_uffd(), UFFDIO_WRITEPROTECT, &wp) == 0, "%s", strerror(errno));
		fill(p, npages, i);
		cr_assert(eq(sz, wrong(p, npages, i), 0));
	}
	daemon_ask(1);
	cr_assert(le(u64, atomic_load(&shared->most[0]), 8 * MiB));
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

Test(quota, what_a_client_may_keep_is_not_pushed_out)
{
	struct up_runtime *other;
	uint64_t *p, *q;

	rt = must_connect();
	other = must_connect();
	cr_assert(eq(int, quota(0, 0, 16 * MiB), 0));
	p = must_map(rt, 4096, UP_PRIVATE, NULL, 0);
	q = must_map(other, 20000, UP_PRIVATE, NULL, 0);
	fill(p, 4096, 1);
	daemon_ask(1);
	atomic_store(&shared->least[0], UINT64_MAX);
	for (uint64_t i = 0; i < 3; i++) {
		fill(q, 20000, i);
		cr_assert(eq(sz, wrong(q, 20000, i), 0));
	}
	daemon_ask(1);
	cr_assert(ge(u64, atomic_load(&shared->least[0]), 16 * MiB - 64 * PAGE_SIZE));
	cr_assert(eq(sz, wrong(p, 4096, 1), 0));
	up_runtime_destroy(rt);
	up_runtime_destroy(other);
	wait_ended(2);
	daemon_ask(2);
}

Test(quota, what_can_not_be_promised_is_refused_and_what_is_evicted_comes_back)
{
	uint64_t *p;

	rt = must_connect();
	p = must_map(rt, 2048, UP_PRIVATE, NULL, 0);
	fill(p, 2048, 9);
	cr_assert(eq(int, quota(0, 4096, 0), -EINVAL));
	cr_assert(eq(int, quota(0, 16 * MiB, 17 * MiB), -EINVAL));
	cr_assert(eq(int, quota(0, 0, 25 * MiB), -ENOSPC));
	cr_assert(eq(int, quota(0, 0, 24 * MiB), 0));
	cr_assert(eq(int, quota(5, 0, 0), -ENOENT));
	atomic_store(&shared->client, 0);
	atomic_store(&shared->limit, 4 * MiB);
	daemon_ask(4);
	cr_assert(ge(int, atomic_load(&shared->result), (int)(4 * MiB)));
	cr_assert(le(int, atomic_load(&shared->result), (int)(5 * MiB)));
	cr_assert(eq(sz, wrong(p, 2048, 9), 0));
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

/* A child is in its parent's account, also when the parent has gone. */
Test(quota, a_child_is_held_to_the_limit_and_never_left_waiting)
{
	uint64_t *p;
	int status;
	pid_t pid;

	rt = must_connect();
	cr_assert(eq(int, quota(0, 8 * MiB, 0), 0));
	p = must_map(rt, 4096, UP_PRIVATE, NULL, 0);
	fill(p, 4096, 4);
	cr_assert(eq(int, up_inherit(rt, p, 4096 * PAGE_SIZE, UP_INHERIT_COPY), 0));
	pid = fork();
	if (pid == 0) {
		alarm(30);
		for (uint64_t i = 0; i < 20; i++) {
			fill(p, 4096, i);
			if (wrong(p, 4096, i) != 0)
				_exit(2);
		}
		_exit(0);
	}
	fill(p, 4096, 5);
	cr_assert(eq(sz, wrong(p, 4096, 5), 0));
	cr_assert(le(u64, atomic_load(&shared->most[0]), 8 * MiB));
	up_runtime_destroy(rt);
	cr_assert(waitpid(pid, &status, 0) == pid);
	cr_assert(eq(int, status, 0));
	wait_ended(1);
	daemon_ask(2);
}

/* The other half goes in and out. */
Test(quota, half_of_a_limit_may_be_wired_and_is_not_taken_by_anybody)
{
	const size_t npages = 5 * MiB / PAGE_SIZE;
	uint64_t *p;

	rt = must_connect();
	p = must_map(rt, 8192, UP_PRIVATE, NULL, 0);
	cr_assert(eq(int, quota(0, 10 * MiB, 0), 0));
	cr_assert(eq(int, up_wire(rt, p, (npages + 1) * PAGE_SIZE), -EDQUOT));
	cr_assert(eq(int, up_wire(rt, p, npages * PAGE_SIZE), 0), "%s", logged);
	fill(p, 8192, 4);
	cr_assert(eq(sz, wrong(p, 8192, 4), 0));
	cr_assert(eq(int, quota(0, 8 * MiB, 0), -EBUSY));
	atomic_store(&shared->limit, 48 * MiB);
	daemon_ask(4);
	cr_assert(eq(sz, held(rt, p, npages), npages));
	cr_assert(le(sz, there(rt, p + npages * WORDS, 4096), 16));
	cr_assert(eq(int, up_unwire(rt, p, npages * PAGE_SIZE), 0));
	cr_assert(eq(int, quota(0, 8 * MiB, 0), 0));
	cr_assert(eq(sz, wrong(p, 8192, 4), 0));
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

/* A minimum is not wired away: three quarters of 48 MiB are 36, 24 of them are promised, and one may have 6. */
Test(quota, what_was_promised_to_others_is_not_wired)
{
	const size_t npages = 6 * MiB / PAGE_SIZE;
	struct up_runtime *in[4];
	uint64_t *p[4];

	for (unsigned i = 0; i < 4; i++) {
		in[i] = must_connect();
		p[i] = must_map(in[i], npages, UP_PRIVATE, NULL, 0);
	}
	cr_assert(eq(int, quota(0, 0, 24 * MiB), 0));
	cr_assert(eq(int, up_wire(in[1], p[1], npages * PAGE_SIZE), 0), "%s", logged);
	cr_assert(eq(int, up_wire(in[2], p[2], npages * PAGE_SIZE), 0), "%s", logged);
	cr_assert(eq(int, up_wire(in[3], p[3], PAGE_SIZE), -ENOMEM));
	cr_assert(eq(int, quota(0, 0, 23 * MiB), 0));
	cr_assert(eq(int, up_wire(in[3], p[3], PAGE_SIZE), 0), "%s", logged);
	cr_assert(eq(int, quota(0, 0, 24 * MiB), -ENOSPC));
	for (unsigned i = 0; i < 4; i++)
		up_runtime_destroy(in[i]);
	wait_ended(4);
	daemon_ask(2);
}

/* --- groups --- */

static int
group_quota(const char *group, uint64_t limit, uint64_t minimum)
{
	strcpy(shared->group, group);
	strcpy(shared->watched, group);
	atomic_store(&shared->limit, limit);
	atomic_store(&shared->minimum, minimum);
	daemon_ask(5);
	return atomic_load(&shared->result);
}

/* The next client comes into that group. */
static struct up_runtime *
connect_in(const char *group)
{
	const unsigned n = atomic_load(&shared->accepted);
	const double until = seconds() + DEADLINE;
	struct up_runtime *in;

	strcpy(shared->group, group);
	in = must_connect();
	while (atomic_load(&shared->accepted) == n) {
		cr_assert(seconds() < until, "a client that is served was not accepted");
		nap();
	}
	return in;
}

static int
regroup(unsigned client, const char *group)
{
	strcpy(shared->group, group);
	atomic_store(&shared->client, client);
	daemon_ask(6);
	return atomic_load(&shared->result);
}

struct filler {
	pthread_t thread;
	uint64_t *p;
	size_t npages;
	unsigned rounds;
	size_t wrong;
};

static void *
fill_often(void *arg)
{
	struct filler *f = arg;

	for (uint64_t i = 0; i < f->rounds; i++) {
		fill(f->p, f->npages, i);
		f->wrong += wrong(f->p, f->npages, i);
	}
	return NULL;
}

/* Each alone would have more than they may together, and one at a time has nearly all of it. */
Test(quota, a_group_never_has_more_than_its_limit_together)
{
	struct up_runtime *in[3];
	struct filler f[3];

	cr_assert(eq(int, group_quota("g", 12 * MiB, 0), 0));
	in[0] = connect_in("g");
	in[1] = connect_in("g");
	in[2] = connect_in("");
	for (unsigned i = 0; i < 3; i++)
		f[i] = (struct filler){ .p = must_map(in[i], 4096, UP_PRIVATE, NULL, 0),
					.npages = 4096,
					.rounds = 3 };
	fill(f[0].p, 4096, 9);
	cr_assert(ge(u64, atomic_load(&shared->most[0]), 8 * MiB));
	for (unsigned i = 0; i < 3; i++)
		cr_assert(eq(int, pthread_create(&f[i].thread, NULL, fill_often, &f[i]), 0));
	for (unsigned i = 0; i < 3; i++) {
		pthread_join(f[i].thread, NULL);
		cr_assert(eq(sz, f[i].wrong, 0), "client %u", i);
	}
	daemon_ask(1);
	cr_assert(le(u64, atomic_load(&shared->group_most), 12 * MiB));
	cr_assert(ge(u64, atomic_load(&shared->group_most), 8 * MiB));
	/* Both had a part of it, and who is in no group is not held to it. */
	cr_assert(gt(u64, atomic_load(&shared->most[1]), 1 * MiB));
	cr_assert(ge(u64, atomic_load(&shared->most[2]), 15 * MiB));
	for (unsigned i = 0; i < 3; i++)
		up_runtime_destroy(in[i]);
	wait_ended(3);
	daemon_ask(2);
}

Test(quota, what_a_group_may_keep_is_not_pushed_out)
{
	struct up_runtime *in[3];
	uint64_t *p[2];
	struct filler f = { .npages = 20000, .rounds = 3 };

	cr_assert(eq(int, group_quota("g", 0, 16 * MiB), 0));
	in[0] = connect_in("g");
	in[1] = connect_in("g");
	in[2] = connect_in("other");
	for (unsigned i = 0; i < 2; i++) {
		p[i] = must_map(in[i], 2048, UP_PRIVATE, NULL, 0);
		fill(p[i], 2048, i);
	}
	f.p = must_map(in[2], f.npages, UP_PRIVATE, NULL, 0);
	daemon_ask(1);
	atomic_store(&shared->group_least, UINT64_MAX);
	fill_often(&f);
	daemon_ask(1);
	cr_assert(eq(sz, f.wrong, 0));
	cr_assert(ge(u64, atomic_load(&shared->group_least), 16 * MiB - 64 * PAGE_SIZE));
	for (unsigned i = 0; i < 2; i++)
		cr_assert(eq(sz, wrong(p[i], 2048, i), 0));
	for (unsigned i = 0; i < 3; i++)
		up_runtime_destroy(in[i]);
	wait_ended(3);
	daemon_ask(2);
}

/* With all that it has, while it uses it; and what it does not count for any more does not hold it. */
Test(quota, a_client_that_changes_its_group_counts_for_the_new_one_only)
{
	struct up_runtime *other;
	struct filler f = { .npages = 6000, .rounds = 40 };
	uint64_t *q;

	cr_assert(eq(int, group_quota("small", 8 * MiB, 0), 0));
	cr_assert(eq(int, group_quota("g", 0, 0), 0));
	rt = connect_in("g");
	other = connect_in("g");
	f.p = must_map(rt, f.npages, UP_PRIVATE, NULL, 0);
	q = must_map(other, 1024, UP_PRIVATE, NULL, 0);
	fill(q, 1024, 1);
	fill(f.p, f.npages, 0);
	cr_assert(eq(int, pthread_create(&f.thread, NULL, fill_often, &f), 0));
	for (unsigned i = 0; i < 50; i++)
		cr_assert(eq(int, regroup(0, i % 2 == 0 ? "small" : i % 3 == 0 ? "" : "g"), 0));
	cr_assert(eq(int, regroup(0, "small"), 0));
	cr_assert(eq(int, regroup(9, "small"), -ENOENT));
	pthread_join(f.thread, NULL);
	cr_assert(eq(sz, f.wrong, 0));
	atomic_store(&shared->most[0], 0);
	fill(f.p, f.npages, 7);
	daemon_ask(1);
	cr_assert(le(u64, atomic_load(&shared->most[0]), 8 * MiB));
	cr_assert(ge(u64, atomic_load(&shared->most[0]), 4 * MiB));
	/* It is in none, and the limit of the one that it was in is that of others. */
	cr_assert(eq(int, regroup(0, ""), 0));
	atomic_store(&shared->most[0], 0);
	fill(f.p, f.npages, 8);
	daemon_ask(1);
	cr_assert(ge(u64, atomic_load(&shared->most[0]), 16 * MiB));
	strcpy(shared->watched, "small");
	daemon_ask(1);
	atomic_store(&shared->group_most, 0);
	daemon_ask(1);
	cr_assert(eq(u64, atomic_load(&shared->group_most), 0));
	cr_assert(eq(sz, wrong(f.p, f.npages, 8), 0));
	up_runtime_destroy(rt);
	up_runtime_destroy(other);
	wait_ended(2);
	daemon_ask(2);
}

/* --- what may be promised --- */

static void
set_up_promises(void)
{
	daemon_limit = 16 * MiB;
	limits.swap = 64 * MiB;
	limits.mapped = 160 * MiB;
	daemon_start();
}

TestSuite(promises, .init = set_up_promises, .fini = tear_down, .timeout = 60);

#define NPAGES(mib) ((mib)*MiB / PAGE_SIZE)

static int
try_map(struct up_runtime *in, size_t npages, unsigned flags, void **p)
{
	logged[0] = '\0';
	return up_map(in, NULL, npages * PAGE_SIZE, RW, flags, NULL, 0, p);
}

Test(promises, swap_of_a_client_is_limited_whatever_it_is_for)
{
	struct up_object *o, *snapshot;
	struct up_runtime *other;
	void *p, *q, *copy;

	rt = must_connect();
	cr_assert(eq(int, try_map(rt, NPAGES(40), UP_PRIVATE, &p), 0), "%s", logged);
	cr_assert(eq(int, try_map(rt, NPAGES(25), UP_PRIVATE, &q), -EDQUOT));
	cr_assert(strstr(logged, "65 MiB of swap promised, and 64 are allowed (swap)") != NULL,
		  "%s", logged);
	cr_assert(eq(int, up_clone(rt, p, 25 * MiB, &copy), -EDQUOT));
	cr_assert(eq(int, up_clone(rt, p, 4 * MiB, &copy), 0), "%s", logged);
	cr_assert(eq(int, up_object_create_anon(rt, 21 * MiB, 0, &o), -EDQUOT));
	cr_assert(eq(int, up_object_create_anon(rt, 10 * MiB, 0, &o), 0), "%s", logged);
	cr_assert(eq(int, up_object_snapshot(rt, o, &snapshot), 0), "%s", logged);
	cr_assert(eq(int, try_map(rt, 1, UP_PRIVATE, &q), -EDQUOT));
	/* All of it comes back. */
	up_object_unref(snapshot);
	up_object_unref(o);
	cr_assert(eq(int, up_unmap(rt, copy, 4 * MiB), 0));
	cr_assert(eq(int, up_unmap(rt, p, 20 * MiB), 0));
	cr_assert(eq(int, try_map(rt, NPAGES(44) + 1, UP_PRIVATE, &q), -EDQUOT));
	cr_assert(eq(int, try_map(rt, NPAGES(44), UP_PRIVATE, &q), 0), "%s", logged);
	fill(q, NPAGES(44), 3);
	cr_assert(eq(sz, wrong(q, NPAGES(44), 3), 0));
	/* It is its own only. */
	other = must_connect();
	cr_assert(eq(int, try_map(other, NPAGES(64), UP_PRIVATE, &p), 0), "%s", logged);
	up_runtime_destroy(rt);
	up_runtime_destroy(other);
	wait_ended(2);
	daemon_ask(2);
}

Test(promises, names_of_a_user_have_as_much_swap_as_one_client)
{
	struct up_object *o[3];

	rt = must_connect();
	cr_assert(eq(int, up_object_create_named(rt, "a", 40 * MiB, 0, &o[0]), 0));
	cr_assert(eq(int, up_object_create_named(rt, "b", 25 * MiB, 0, &o[1]), -EDQUOT));
	cr_assert(strstr(logged, "promised to names of user") != NULL, "%s", logged);
	cr_assert(eq(int, up_object_create_named(rt, "b", 24 * MiB, 0, &o[1]), 0));
	/* Not of those that are gone, nor of what is promised to the client itself. */
	cr_assert(eq(int, up_object_remove(rt, "b"), 0));
	up_object_unref(o[1]);
	cr_assert(eq(int, up_object_create_named(rt, "c", 24 * MiB, 0, &o[2]), 0), "%s", logged);
	must_map(rt, NPAGES(64), UP_PRIVATE, NULL, 0);
	up_object_unref(o[0]);
	up_object_unref(o[2]);
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

/* The signal that writing this raises, or 0.  Zeros that are only read are promised nothing once they are out. */
static int
store(volatile uint64_t *p)
{
	const int sig = sigsetjmp(out, 1);

	signal(SIGBUS, on_signal);
	if (sig == 0)
		*p = 1;
	signal(SIGBUS, SIG_DFL);
	return sig;
}

/* What is promised when it is touched counts then, wherever its pages go; what is beyond that is SIGBUS. */
Test(promises, what_is_not_reserved_counts_as_it_is_touched)
{
	const unsigned flags = UP_PRIVATE | UP_NORESERVE;
	void *p, *q, *copy, *spare;
	size_t n = 0;
	int sig = 0;

	rt = must_connect();
	cr_assert(eq(int, try_map(rt, NPAGES(80), flags, &p), 0), "%s", logged);
	cr_assert(eq(int, try_map(rt, NPAGES(24), UP_PRIVATE, &q), 0), "%s", logged);
	fill(p, NPAGES(16), 1);
	cr_assert(eq(int, try_map(rt, NPAGES(25), UP_PRIVATE, &copy), -EDQUOT));
	/* What a clone takes along is the client's still. */
	cr_assert(eq(int, up_clone(rt, p, 12 * MiB, &copy), 0), "%s", logged);
	cr_assert(eq(int, try_map(rt, NPAGES(25), UP_PRIVATE, &spare), -EDQUOT));
	cr_assert(eq(sz, wrong(p, NPAGES(16), 1), 0));
	cr_assert(eq(sz, wrong(copy, NPAGES(12), 1), 0));
	while (sig == 0 && n < NPAGES(30))
		sig = store((uint64_t *)p + (NPAGES(50) + n++) * WORDS);
	cr_assert(eq(int, sig, SIGBUS));
	cr_assert(le(sz, n, NPAGES(24) + 1), "more is touched than may be promised");
	cr_assert(ge(sz, n, NPAGES(10)), "less may be touched than may be promised");
	cr_assert(eq(sz, wrong(p, NPAGES(16), 1), 0));
	/* All of it comes back, what the clone has last. */
	cr_assert(eq(int, up_unmap(rt, p, 80 * MiB), 0));
	cr_assert(eq(sz, wrong(copy, NPAGES(12), 1), 0));
	cr_assert(eq(int, try_map(rt, NPAGES(29), UP_PRIVATE, &p), -EDQUOT));
	cr_assert(eq(int, up_unmap(rt, copy, 12 * MiB), 0));
	cr_assert(eq(int, try_map(rt, NPAGES(40), flags, &p), 0), "%s", logged);
	fill(p, NPAGES(39), 5);
	cr_assert(eq(sz, wrong(p, NPAGES(39), 5), 0));
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

Test(promises, a_fork_is_held_to_it)
{
	uint64_t *p;
	int status;
	pid_t pid;

	rt = must_connect();
	p = must_map(rt, NPAGES(36), UP_PRIVATE, NULL, 0);
	fill(p, NPAGES(36), 4);
	cr_assert(eq(int, up_inherit(rt, p, 36 * MiB, UP_INHERIT_COPY), 0));
	for (unsigned i = 0; i < 2; i++) {
		pid = fork();
		if (pid == 0)
			_exit(touch(p) != 0 ? 1 : wrong(p, 16, 4) != 0 ? 2 : 0);
		cr_assert(waitpid(pid, &status, 0) == pid);
		/* Without the memory first, and then with less to inherit. */
		cr_assert(eq(int, status, i == 0 ? 1 << 8 : 0));
		cr_assert(eq(int, up_inherit(rt, p + NPAGES(20) * WORDS, 16 * MiB, UP_INHERIT_NONE),
			     0));
	}
	cr_assert(eq(sz, wrong(p, NPAGES(36), 4), 0));
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

Test(promises, a_group_has_it_together)
{
	struct up_runtime *other;
	void *p;

	strcpy(shared->group, "g");
	atomic_store(&shared->limit, 80 * MiB);
	daemon_ask(7);
	rt = connect_in("g");
	other = connect_in("g");
	cr_assert(eq(int, try_map(rt, NPAGES(60), UP_PRIVATE, &p), 0), "%s", logged);
	cr_assert(eq(int, try_map(other, NPAGES(21), UP_PRIVATE, &p), -EDQUOT));
	cr_assert(strstr(logged, "promised to group g, and 80 are allowed") != NULL, "%s", logged);
	cr_assert(eq(int, try_map(other, NPAGES(20), UP_PRIVATE, &p), 0), "%s", logged);
	/* What the one takes along, the other may have. */
	cr_assert(eq(int, regroup(0, ""), 0));
	cr_assert(eq(int, try_map(other, NPAGES(44), UP_PRIVATE, &p), 0), "%s", logged);
	up_runtime_destroy(rt);
	up_runtime_destroy(other);
	wait_ended(2);
	daemon_ask(2);
}

Test(promises, addresses_of_a_client_are_limited)
{
	void *p, *q;

	rt = must_connect();
	cr_assert(eq(int, try_map(rt, NPAGES(120), UP_PRIVATE | UP_NORESERVE, &p), 0));
	cr_assert(eq(int, try_map(rt, NPAGES(41), UP_PRIVATE | UP_NORESERVE, &q), -EDQUOT));
	cr_assert(strstr(logged, "161 MiB mapped, and 160 are allowed (mapped)") != NULL, "%s",
		  logged);
	cr_assert(eq(int, try_map(rt, NPAGES(40), UP_PRIVATE | UP_NORESERVE, &q), 0));
	up_runtime_destroy(rt);
	wait_ended(1);
	daemon_ask(2);
}

/* --- a quota from the beginning --- */

static void
set_up_with_quota(void)
{
	daemon_limit = 48 * MiB;
	limits.limit = 9 * MiB;
	limits.minimum = 8 * MiB;
	daemon_start();
}

TestSuite(each, .init = set_up_with_quota, .fini = tear_down, .timeout = 60);

Test(each, client_has_its_limit_and_its_minimum_or_is_told_why_not)
{
	const struct up_config cfg = { .log = collect };
	struct up_runtime *in[4];
	uint64_t *p;

	for (unsigned i = 0; i < 3; i++)
		in[i] = must_connect();
	/* Three times 8 MiB are half of the budget. */
	logged[0] = '\0';
	cr_assert(eq(int, up_runtime_connect(&in[3], path, &cfg), -ENOSPC));
	cr_assert(strstr(logged, "can not be promised to one more (client_minimum)") != NULL, "%s",
		  logged);
	p = must_map(in[0], 4096, UP_PRIVATE, NULL, 0);
	fill(p, 4096, 1);
	cr_assert(eq(sz, wrong(p, 4096, 1), 0));
	cr_assert(le(u64, atomic_load(&shared->most[0]), 9 * MiB));
	cr_assert(ge(u64, atomic_load(&shared->most[0]), 4 * MiB));
	/* Who goes gives it back. */
	up_runtime_destroy(in[2]);
	wait_ended(1);
	in[2] = must_connect();
	for (unsigned i = 0; i < 3; i++)
		up_runtime_destroy(in[i]);
	wait_ended(4);
	daemon_ask(2);
}

/* --- who says nothing --- */

static void
set_up_impatient(void)
{
	limits.hello_ms = 300;
	daemon_start();
}

TestSuite(hello, .init = set_up_impatient, .fini = tear_down, .timeout = 60);

Test(hello, who_does_not_say_it_is_disconnected_and_others_stay)
{
	const double began = seconds();
	struct msg m = { .type = MSG_CONNECT, .n = PROTOCOL_VERSION };
	int fd[2], with[MSG_REGIONS];
	uint64_t *p;
	size_t n;

	rt = must_connect();
	p = must_map(rt, 100, UP_PRIVATE, NULL, 0);
	fill(p, 100, 1);
	fd[0] = raw_connect();
	fd[1] = raw_connect();
	say(fd[1], &m, NULL, 0);
	cr_assert(eq(int, msg_await(fd[1], &m, with, &n, 5000), 0));
	cr_assert(eq(int, m.status, 0));
	must_hang_up(fd[0]);
	must_hang_up(fd[1]);
	cr_assert(ge(dbl, seconds() - began, 0.3));
	wait_ended(2);
	fill(p, 100, 2);
	cr_assert(eq(sz, wrong(p, 100, 2), 0));
	up_runtime_destroy(rt);
	wait_ended(3);
	daemon_ask(2);
}
