/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_heir.c: memory that is filled outlives who fills it.
 *
 *	test			vmm, a child (vmm.h)		server, a child that is killed over and over
 *	keeps descriptors,	memory behind a userfaultfd,	a filler (fill.h); the first one is given the memory, and each of the others goes on
 *	as the guardian does	of which nobody else has	with what the last one has kept
 *	kills the server	a copy
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
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

static char dir[] = "/tmp/test_heir.XXXXXX", path[64];
static struct vmm v;
static pid_t server;
static int sock = -1; /* the server's words */
static unsigned kills;
static bool transfers; /* and FILL_SOLE */
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

static void
say(void *unused, const char *name, int fd)
{
	char text[STORE_NAME_MAX] = { 0 };

	(void)unused;
	snprintf(text, sizeof text, "%s", name);
	if (descriptors_send(sock, text, sizeof text, fd) < 0)
		_exit(10);
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
	struct fill_range range = {
		.start = v.address,
		.len = v.npages * VMM_PAGE,
		.page_size = VMM_PAGE,
	};

	if (memfile_open(&range.source, path, &(struct logger){ .fn = to_stderr }) < 0)
		_exit(11);
	if (fill_add(f, v.uffd, &range, 1, FILL_OUTSIDE_ZERO | (transfers ? FILL_SOLE : 0), 0) < 0)
		_exit(12);
	memfile_unref(range.source);
	strcpy(fill_about(f)->text, "as the first one has left it");
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

/* Another one, when there is none. */
static void
start(void)
{
	int pair[2];

	cr_assert(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
	serves = false;
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

/* While the vmm works. */
static void
pump(void)
{
	hear();
	if (kill_at == 0 && serves)
		kill_at = in_a_while();
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
	vmm_make_file(path, N);
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
	start();
	vmm_pump = hear;
	vmm_until(nothing_is_kept, NULL, VMM_DEADLINE_MS, "let go");
}
