/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_heir.c: memory that is filled outlives who fills it.
 *
 *	test			vmm, a child (vmm.h)		server, a child that is killed over and over
 *	keeps descriptors,	memory behind a userfaultfd,	a filler (fill.h); the first one is given the memory, and each of the others goes on
 *	as the guardian does	of which nobody else has	with what the last one has kept
 *	kills the server	a copy
 */
#include "assertions.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/base.h"
#include "descriptors.h"
#include "fill.h"
#include "holder.h"
#include "pmap/uffd_abi.h"
#include "vmm.h"

TestSuite(heir, .timeout = 110);

#define N ((uint64_t)2048)
#define ID 1u
#define KEPT_MAX 256u
#define ALL_EVENTS                                                                         \
	(UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP | \
	 UFFD_FEATURE_EVENT_FORK)

static char dir[] = "/tmp/test_heir.XXXXXX", path[64], second[64];
static struct vmm v;
static pid_t server;
static int sock = -1; /* the server's words */
static unsigned kills;
static bool transfers; /* and FILL_SOLE */
static bool two;       /* the second half of its memory is from a file of its own */
static bool serves;    /* the server has said so */

/* --- what is kept --- */

static struct kept {
	char name[STORE_NAME_MAX];
	int fd;
} kept[KEPT_MAX];

static struct kept *
find(const char *name)
{
	for (unsigned i = 0; i < KEPT_MAX; i++) {
		if (kept[i].name[0] != '\0' && strcmp(kept[i].name, name) == 0)
			return &kept[i];
	}
	return NULL;
}

static void
forget(struct kept *k)
{
	close(k->fd);
	k->name[0] = '\0';
}

/* All that the server has said. */
static void
hear(void)
{
	for (;;) {
		char name[STORE_NAME_MAX];
		unsigned n = 0;
		int fd = -1;
		struct kept *k;

		if (descriptors_receive(sock, name, sizeof name, &fd, &n, 1) <= 0)
			return;
		serves |= strcmp(name, "serves") == 0;
		k = find(name);
		if (k != NULL)
			forget(k);
		if (n == 0)
			continue;
		for (k = kept; k < kept + KEPT_MAX && k->name[0] != '\0'; k++)
			;
		cr_assert(k < kept + KEPT_MAX, "too much is kept");
		memcpy(k->name, name, sizeof name);
		k->fd = fd;
	}
}

/* --- the server --- */

static atomic_int words_left; /* until it kills itself; 0 or less: it does not */

static void
say(void *unused, const char *name, int fd)
{
	char text[STORE_NAME_MAX] = { 0 };

	(void)unused;
	snprintf(text, sizeof text, "%s", name);
	if (descriptors_send(sock, text, sizeof text, fd) < 0)
		_exit(10);
	/* Between what it has said and what it would say next. */
	if (atomic_fetch_sub(&words_left, 1) == 1)
		raise(SIGKILL);
}

static void
drop(void *unused, const char *name)
{
	say(unused, name, -1);
}

static const struct store_keeper keeper = { .keep = say, .drop = drop };

static int
take(void *unused, const char *name)
{
	struct kept *k = find(name);
	int fd;

	(void)unused;
	if (k == NULL)
		return -1;
	fd = k->fd;
	k->name[0] = '\0';
	return fd;
}

static int
fetch(void *unused, uint64_t holder, int number)
{
	char name[STORE_NAME_MAX];
	struct kept *k;

	(void)unused;
	store_name(name, "holder", holder, NULL);
	k = find(name);
	return k != NULL ? holder_ask(k->fd, number) : -ENOENT;
}

static void
to_stderr(void *ctx, enum up_log_level level, const char *line)
{
	(void)ctx;
	(void)level;
	fprintf(stderr, "%s\n", line);
}

static void
ignore(void *ctx, enum fill_event ev)
{
	(void)ctx;
	(void)ev;
}

/* The first one. */
static void
begin(struct fill *f)
{
	static const struct logger log = { .fn = to_stderr };
	const uint64_t half = v.npages / 2 * VMM_PAGE;
	struct fill_range range[2] = {
		{ .start = v.address, .len = two ? half : 2 * half, .page_size = VMM_PAGE },
		{ .start = v.address + half, .len = half, .offset = half, .page_size = VMM_PAGE },
	};

	if (memfile_open(&range[0].source, path, &log) < 0 ||
	    (two && memfile_open(&range[1].source, second, &log) < 0))
		_exit(11);
	/* First: once something is kept it may be killed at any moment. */
	strcpy(fill_about(f)->text, "as the first one has left it");
	if (fill_add(f, v.uffd, range, two ? 2 : 1, FILL_OUTSIDE_ZERO | (transfers ? FILL_SOLE : 0),
		     0) < 0)
		_exit(12);
	memfile_unref(range[0].source);
	memfile_unref(range[1].source);
}

static void
go_on(struct fill *f, struct fill_heir *h)
{
	/* As heirs_begin() does. */
	for (unsigned i = 0; i < KEPT_MAX; i++) {
		if (strncmp(kept[i].name, "holder/", 7) == 0)
			holder_alone(kept[i].fd);
	}
	if (fill_heir_open(h, ID, take, fetch, NULL) < 0)
		_exit(13);
	fill_resume(f, h);
	fill_heir_close(h);
	if (strcmp(fill_about(f)->text, "as the first one has left it") != 0)
		_exit(14);
	/* As what nobody takes is dropped, and that of which there is nothing more to be asked. */
	for (unsigned i = 0; i < KEPT_MAX; i++) {
		if (kept[i].name[0] == '\0')
			continue;
		drop(NULL, kept[i].name);
		if (strncmp(kept[i].name, "holder/", 7) == 0)
			holder_end(kept[i].fd);
		else
			close(kept[i].fd);
	}
}

static void
serve(void)
{
	const struct fill_config cfg = {
		.name = "vm",
		.log = { .fn = to_stderr },
		.notify = ignore,
		.pidfd = -1,
		.transfer = transfers,
		.keeper = &keeper,
		.id = ID,
		.holder = (uint64_t)getpid(),
		.socket = -1,
	};
	struct fill_heir heir;
	struct fill *f;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (holder_start(&keeper, cfg.holder) < 0)
		_exit(16);
	if (fill_create(&f, &cfg) < 0)
		_exit(15);
	/* The first one does not transfer: it would be done before it is killed. */
	if (v.uffd >= 0) {
		begin(f);
	} else {
		go_on(f, &heir);
		if (transfers)
			fill_transfer(f);
	}
	drop(NULL, "serves");
	for (;;)
		pause();
}

static bool
memory_is_kept(void *unused)
{
	(void)unused;
	return find("fill/1/1/record") != NULL;
}

static bool
has_said_so(void *unused)
{
	(void)unused;
	return serves;
}

static void pump(void);

/* Another one, when there is none. */
static void
start(void)
{
	int pair[2];

	cr_assert(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
	serves = false;
	/* Every second one ends in the middle of what it has to say, when it begins or of the first child that it hears of. */
	atomic_store(&words_left,
		     vmm_pump == pump && random() % 2 == 0 ? 1 + (int)(random() % 10) : 0);
	server = fork();
	cr_assert(server >= 0);
	if (server == 0) {
		close(pair[0]);
		sock = pair[1];
		serve();
	}
	close(pair[1]);
	sock = pair[0];
	if (v.uffd >= 0) {
		close(v.uffd);
		v.uffd = -1;
		/* Until then nobody else has it. */
		vmm_pump = hear;
		vmm_until(memory_is_kept, NULL, VMM_DEADLINE_MS, "the memory is served");
	}
}

static void
kill_server(void)
{
	int status;

	kill(server, SIGKILL);
	cr_assert(waitpid(server, &status, 0) == server);
	/* And not of anything else. */
	cr_assert(eq(int, status, SIGKILL));
	hear();
	close(sock);
	kills++;
}

/* --- the test --- */

/* When the server is to be killed, ns; 0: when it serves, and some time after that. */
static uint64_t kill_at;

static uint64_t
in_a_while(void)
{
	return now_ns() + (UINT64_C(200000) << random() % 7);
}

/* It has ended, and is still to be waited for. */
static bool
has_ended(pid_t pid)
{
	siginfo_t si = { .si_pid = 0 };

	return waitid(P_PID, (id_t)pid, &si, WEXITED | WNOHANG | WNOWAIT) == 0 && si.si_pid == pid;
}

/* While the vmm works. */
static void
pump(void)
{
	hear();
	if (kill_at == 0 && serves)
		kill_at = in_a_while();
	/* It has done so itself. */
	if (kill_at == 0 && atomic_load(&words_left) > 0 && has_ended(server))
		kill_at = now_ns();
	if (kill_at != 0 && now_ns() >= kill_at) {
		kill_server();
		start();
		/* Some of them are not to come far, but if none did nobody would be served. */
		kill_at = random() % 4 == 0 ? in_a_while() : 0;
	}
}

static void
up_(uint64_t features, bool sole)
{
	const struct vmm_config cfg = { .npages = N, .features = features };
	const char *seed = getenv("UP_TEST_SEED");
	const unsigned n = seed != NULL ? (unsigned)atoi(seed) : (unsigned)getpid();

	fprintf(stderr, "seed %u\n", n);
	srandom(n);
	transfers = sole;
	cr_assert(mkdtemp(dir) != NULL);
	snprintf(path, sizeof path, "%s/memfile", dir);
	snprintf(second, sizeof second, "%s/second", dir);
	vmm_make_file(path, N);
	vmm_make_file(second, N);
	vmm_start(&v, &cfg);
	cr_assert(zero(i64, vmm_do(&v, VMM_CLOSE_UFFD, 0, 0, 0)));
	start();
	kill_at = now_ns();
	vmm_pump = pump;
}

static void
down(void)
{
	vmm_pump = NULL;
	if (server > 0) {
		kill(server, SIGKILL);
		waitpid(server, NULL, 0);
	}
	if (v.pid > 0)
		vmm_stop(&v);
	unlink(path);
	unlink(second);
	rmdir(dir);
	fprintf(stderr, "killed %u times\n", kills);
}

static void
verifies(uint64_t first, uint64_t n)
{
	const int64_t r = vmm_do(&v, VMM_VERIFY, first, n, 0);

	cr_assert(r == 0, "%lld pages are wrong, %lld are SIGBUS, after %u kills",
		  (long long)(r & 0xffffffff), (long long)(r >> 32), kills);
}

static bool
nothing_is_kept(void *unused)
{
	return !memory_is_kept(unused);
}

Test(heir, every_page_holds_what_the_file_has, .fini = down)
{
	up_(UFFD_FEATURE_EVENT_REMOVE, false);
	cr_assert(zero(i64, vmm_do(&v, VMM_THREADS, 0, N, 8)));
	verifies(0, N);
	cr_assert(kills > 0);
}

Test(heir, what_was_removed_is_zeros, .fini = down)
{
	up_(ALL_EVENTS, false);
	for (unsigned i = 0; i < 4; i++)
		cr_assert(zero(i64, vmm_do(&v, VMM_STORM, 0, 0, 3000)));
	verifies(0, N / 2);
	cr_assert(kills > 0);
}

Test(heir, what_is_moved_and_inherited_is_found, .fini = down)
{
	up_(ALL_EVENTS, false);
	for (unsigned i = 0; i < 4; i++)
		cr_assert(zero(i64, vmm_do(&v, VMM_SHUFFLE, 0, 0, 2000)));
	verifies(0, N);
	cr_assert(kills > 0);
}

Test(heir, it_is_transferred_and_let_go, .fini = down)
{
	up_(ALL_EVENTS, true);
	/* As long as it is one mapping. */
	cr_assert(zero(i64, vmm_do(&v, VMM_MOVE, 0, 0, 0)));
	cr_assert(zero(i64, vmm_do(&v, VMM_SHUFFLE, 0, 0, 1000)));
	cr_assert(zero(i64, vmm_do(&v, VMM_UNMAP, N - 64, 64, 0)));
	verifies(0, N - 64);
	vmm_until(nothing_is_kept, NULL, VMM_DEADLINE_MS, "let go");
	verifies(0, N - 64);
	cr_assert(kills > 0);
}

/* More of what has to be noted than the log of one record holds. */
Test(heir, a_long_life_is_remembered, .fini = down)
{
	up_(ALL_EVENTS, false);
	vmm_pump = hear;
	for (unsigned i = 0; i < 3; i++) {
		cr_assert(zero(i64, vmm_do(&v, VMM_SHUFFLE, 0, 0, 2500)));
		kill_server();
		start();
	}
	verifies(0, N);
}

Test(heir, one_that_has_gone_leaves_nothing, .fini = down)
{
	up_(ALL_EVENTS, true);
	verifies(0, 64);
	kill_server();
	vmm_stop(&v);
	v.pid = 0;
	vmm_pump = hear;
	start();
	vmm_until(nothing_is_kept, NULL, VMM_DEADLINE_MS, "let go");
}

/* The record that it had at first names one that it has nothing of any more. */
Test(heir, a_file_that_is_not_needed_any_more_is_not_missed, .fini = down)
{
	two = true;
	up_(ALL_EVENTS, false);
	vmm_pump = hear;
	verifies(N / 2, 64);
	cr_assert(zero(i64, vmm_do(&v, VMM_UNMAP, N / 2, N / 2, 0)));
	verifies(0, 64);
	for (unsigned i = 0; i < 2; i++) {
		kill_server();
		start();
		verifies(0, N / 4 + i * N / 4);
	}
}

/* --- the holder --- */

/* A process that has a holder, and `path` locked, with as many descriptors as it may have if `full`, is killed.  The socket for its holder. */
static int
holder_of(bool full)
{
	const struct rlimit few = { 64, 64 };
	int pair[2], fd;

	cr_assert(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
	serves = false;
	server = fork();
	if (server == 0) {
		close(pair[0]);
		sock = pair[1];
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0 || flock(fd, LOCK_EX) < 0 ||
		    (full && setrlimit(RLIMIT_NOFILE, &few) < 0) || holder_start(&keeper, ID) < 0)
			_exit(17);
		while (full && dup(fd) >= 0)
			;
		drop(NULL, "serves");
		for (;;)
			pause();
	}
	close(pair[1]);
	sock = pair[0];
	vmm_pump = hear;
	vmm_until(has_said_so, NULL, VMM_DEADLINE_MS, "there is a holder");
	kill_server();
	server = 0;
	return take(NULL, "holder/1");
}

static bool
is_locked(void)
{
	const int fd = open(path, O_RDWR | O_CLOEXEC);
	const int r = flock(fd, LOCK_EX | LOCK_NB);

	cr_assert(fd >= 0);
	close(fd);
	return r < 0;
}

static void
up_file(void)
{
	cr_assert(mkdtemp(dir) != NULL);
	snprintf(path, sizeof path, "%s/file", dir);
	vmm_make_file(path, 1);
}

Test(heir, a_holder_lets_go_of_what_nobody_asks_for, .init = up_file, .fini = down)
{
	for (int full = 0; full < 2; full++) {
		const int holder = holder_of(full);

		cr_assert(is_locked());
		holder_alone(holder);
		cr_assert(not(is_locked()));
		holder_end(holder);
	}
}

/* Of the one before, who was killed before he read it, there is an answer. */
Test(heir, a_holder_gives_what_is_asked_for, .init = up_file, .fini = down)
{
	const int null = open("/dev/null", O_RDONLY), zero = open("/dev/zero", O_RDONLY);
	const int holder = holder_of(false);
	const struct holder_word before = { 1, null, -1 };
	struct stat want, is;
	int fd;

	cr_assert(zero(int, descriptors_send(holder, &before, sizeof before, -1)));
	fd = holder_ask(holder, zero);
	cr_assert(ge(int, fd, 0));
	cr_assert(zero(int, fstat(zero, &want)));
	cr_assert(zero(int, fstat(fd, &is)));
	cr_assert(eq(u64, is.st_rdev, want.st_rdev));
	cr_assert(lt(int, holder_ask(holder, 1000), 0));
	holder_end(holder);
	close(fd);
	close(null);
	close(zero);
}
