/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_names.c: whose the objects with names of a daemon are (lib/serve.c): owner, group and mode, and what who may only read can do to them.
 *
 *	test ----- the daemon, as root
 *	       +-- its clients, each a process of its own that is somebody else: a line on stderr and exit status 1, if something is not as it should be
 *
 * The test itself is a client where something has to stay what it is meanwhile.
 */
#include "assertions.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/falloc.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/base.h"
#include "childmsg.h"
#include "logged.h"
#include "serve.h"

#define MiB ((size_t)1 << 20)
#define WORDS (PAGE_SIZE / sizeof(uint64_t))
#define RW (PROT_READ | PROT_WRITE)
#define PAGES 64u
#define SKIP 77
#define OWNER 61001u
#define OTHER 61002u
#define GROUP 61003u
#define STRANGER 61004u

/* In a client: what is not so ends it. */
#define MUST(is) ((is) ? (void)0 : fail(__LINE__, #is))

static char path[64];
static pid_t daemon_pid;

static void
fail(int line, const char *what)
{
	fprintf(stderr, "test_names.c:%d, user %u: not so: %s\n%s", line, (unsigned)getuid(), what,
		logged);
	_exit(1);
}

/* --- the daemon --- */

static void
gone(void *ctx, uint64_t id, bool guest)
{
	(void)ctx;
	(void)id;
	(void)guest;
}

/* What it finds first it says: 0, or an errno. */
static void
daemon_run(int listener, int say)
{
	const struct up_config cfg = { .memory_limit = 8 * MiB, .service_threads = 1 };
	const struct serve_limits limits = { .regions = 100, .objects = 50, .mapped = 1 << 30 };
	struct up_runtime *served;
	uint64_t id;
	int r;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	r = up_runtime_create(&served, &cfg);
	if (r == 0)
		r = serve_start(served, gone, NULL);
	if (write(say, &r, sizeof r) != (ssize_t)sizeof r || r < 0)
		_exit(1);
	for (;;) {
		const int sock = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (sock >= 0 && serve_accept(served, sock, &limits, &id) < 0)
			close(sock);
	}
}

static void
set_up(void)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	int listener, said[2], r = -EIO;

	if (geteuid() != 0)
		cr_skip_test("needs root, to be somebody else");
	snprintf(path, sizeof path, "/tmp/test_names.%d", (int)getpid());
	unlink(path);
	strcpy(sun.sun_path, path);
	listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	cr_assert(bind(listener, (struct sockaddr *)&sun, sizeof sun) == 0 &&
		  chmod(path, 0666) == 0 && listen(listener, 64) == 0 && pipe(said) == 0);
	daemon_pid = fork();
	if (daemon_pid == 0)
		daemon_run(listener, said[1]);
	close(listener);
	close(said[1]);
	cr_assert(eq(sz, (size_t)read(said[0], &r, sizeof r), sizeof r));
	close(said[0]);
	if (r == -EPERM || r == -ENOSYS || r == -ENOTSUP)
		cr_skip_test("no userfaultfd with shared memory here");
	cr_assert(eq(int, r, 0));
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

TestSuite(names, .init = set_up, .fini = tear_down, .timeout = 60);

/* --- clients --- */

static struct up_runtime *
joined(void)
{
	const struct up_config cfg = { .log = collect };
	struct up_runtime *rt;
	const int r = up_runtime_connect(&rt, path, &cfg);

	if (r == -EPERM || r == -ENOSYS)
		_exit(SKIP);
	MUST(r == 0);
	return rt;
}

/* Somebody else does it, in a process of his own, and ends well. */
static void
as(uid_t uid, gid_t gid, size_t ngroups, const gid_t groups[], void (*what)(void))
{
	const pid_t pid = fork();
	int status;

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		logged[0] = '\0';
		if (setgroups(ngroups, groups) < 0 || setresgid(gid, gid, gid) < 0 ||
		    setresuid(uid, uid, uid) < 0)
			fail(__LINE__, "somebody else");
		what();
		_exit(0);
	}
	cr_assert(waitpid(pid, &status, 0) == pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == SKIP)
		cr_skip_test("only root may have a userfaultfd here");
	cr_assert(eq(int, status, 0), "user %u: %#x", (unsigned)uid, status);
}

static void
fill(uint64_t *p, uint64_t tag)
{
	for (size_t i = 0; i < PAGES * WORDS; i++)
		p[i] = tag + i;
}

static size_t
wrong(const uint64_t *p, uint64_t tag)
{
	size_t n = 0;

	for (size_t i = 0; i < PAGES * WORDS; i++)
		n += p[i] != tag + i;
	return n;
}

static uint64_t *
mapped(struct up_runtime *rt, struct up_object *o, int prot, unsigned flags)
{
	void *p = NULL;

	MUST(up_map(rt, NULL, PAGES * PAGE_SIZE, prot, flags, o, 0, &p) == 0);
	return p;
}

static int
map_error(struct up_runtime *rt, struct up_object *o, int prot, unsigned flags)
{
	void *p = NULL;

	return up_map(rt, NULL, PAGES * PAGE_SIZE, prot, flags, o, 0, &p);
}

/* --- who may what --- */

static const unsigned modes[] = { 0600, 0400, 0200, 0000, 0640, 0660, 0620, 0644,
				  0666, 0606, 0066, 0604, 0060, 0006, 0004, 0444 };
static unsigned class_shift; /* of the class that who comes next is in; 9: root */

static const char *
name_of(unsigned mode)
{
	static char name[32];

	snprintf(name, sizeof name, "of mode %04o", mode);
	return name;
}

static void
make_all(void)
{
	struct up_runtime *const rt = joined();
	struct up_object_stats info;
	struct up_object *o;

	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		MUST(up_object_create_mode(rt, name_of(modes[i]), PAGES * PAGE_SIZE, 0, modes[i],
					   &o) == 0);
		/* Who makes it may write, whatever the mode. */
		MUST(up_object_info(o, &info, sizeof info) == 0 && info.prot == RW);
		fill(mapped(rt, o, RW, UP_SHARED), modes[i]);
		/* A group that it is in, though not the first one. */
		MUST(up_object_chown(rt, name_of(modes[i]), (uid_t)-1, GROUP) == 0);
		up_object_unref(o);
	}
	MUST(up_object_create_named(rt, "of no mode", PAGE_SIZE, 0, &o) == 0);
	MUST(up_object_create_mode(rt, "odd", PAGE_SIZE, 0, 0700, &o) == -EINVAL);
	MUST(up_object_create_mode(rt, "odd", PAGE_SIZE, 0, 01600, &o) == -EINVAL);
	MUST(up_object_open(rt, "odd", &o) == -ENOENT);
	up_runtime_destroy(rt);
}

static void
try_all(void)
{
	struct up_runtime *const rt = joined();
	struct up_object_stats info;
	struct up_object *o;

	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		const unsigned may = class_shift == 9 ? 6 : modes[i] >> class_shift & 6;
		const int r = up_object_open(rt, name_of(modes[i]), &o);

		MUST(r == (may & 4 ? 0 : -EACCES));
		if (r < 0)
			continue;
		MUST(up_object_info(o, &info, sizeof info) == 0);
		MUST(info.prot == (may == 6 ? RW : PROT_READ));
		MUST(wrong(mapped(rt, o, RW, UP_PRIVATE), modes[i]) == 0);
		if (may == 6)
			MUST(wrong(mapped(rt, o, RW, UP_SHARED), modes[i]) == 0);
		else
			MUST(map_error(rt, o, RW, UP_SHARED) == -EACCES &&
			     map_error(rt, o, PROT_READ, UP_SHARED) == -EACCES);
		up_object_unref(o);
	}
	MUST(up_object_open(rt, "of no mode", &o) == (class_shift >= 6 ? 0 : -EACCES));
	MUST(up_object_open(rt, "none", &o) == -ENOENT);
	up_runtime_destroy(rt);
}

/* Nothing of a name is the business of who may only open it. */
static void
steal(void)
{
	struct up_runtime *const rt = joined();
	struct up_object *o;

	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		const char *const name = name_of(modes[i]);

		MUST(up_object_remove(rt, name) == -EACCES);
		MUST(up_object_chmod(rt, name, 0666) == -EACCES);
		MUST(up_object_chown(rt, name, getuid(), (gid_t)-1) == -EACCES);
		MUST(up_object_chown(rt, name, (uid_t)-1, getgid()) == -EACCES);
		MUST(up_object_create_mode(rt, name, PAGE_SIZE, 0, 0666, &o) == -EEXIST);
	}
	MUST(up_object_chmod(rt, "none", 0600) == -ENOENT);
	MUST(up_object_chown(rt, "none", 0, 0) == -ENOENT);
	up_runtime_destroy(rt);
}

static void
dispose(void)
{
	struct up_runtime *const rt = joined();
	const char *const name = name_of(0600);
	struct up_object *o;

	MUST(up_object_chmod(rt, name, 0611) == -EINVAL);
	MUST(up_object_chown(rt, name, OTHER, (gid_t)-1) == -EPERM);
	MUST(up_object_chown(rt, name, (uid_t)-1, STRANGER) == -EPERM);
	MUST(up_object_chown(rt, name, OWNER, (gid_t)-1) == 0);
	MUST(up_object_chmod(rt, name, 0060) == 0);
	MUST(up_object_open(rt, name, &o) == -EACCES);
	/* Not to be read, and still its owner's. */
	MUST(up_object_chmod(rt, name, 0400) == 0 && up_object_open(rt, name, &o) == 0);
	MUST(map_error(rt, o, RW, UP_SHARED) == -EACCES);
	MUST(up_object_remove(rt, name) == 0 && up_object_open(rt, name, &o) == -ENOENT);
	up_runtime_destroy(rt);
}

static void
give_away(void)
{
	struct up_runtime *const rt = joined();

	MUST(up_object_chown(rt, name_of(0640), OTHER, STRANGER) == 0);
	up_runtime_destroy(rt);
}

static void
find_given(void)
{
	struct up_runtime *const rt = joined();
	struct up_object *o;

	MUST(up_object_open(rt, name_of(0640), &o) == 0);
	MUST(wrong(mapped(rt, o, RW, UP_SHARED), 0640) == 0);
	MUST(up_object_remove(rt, name_of(0640)) == 0);
	up_runtime_destroy(rt);
}

Test(names, the_first_class_of_the_mode_that_one_is_in_decides)
{
	static gid_t many[300];
	const gid_t in = GROUP;

	for (unsigned i = 0; i < ARRAY_SIZE(many); i++)
		many[i] = 70000 + i;
	many[ARRAY_SIZE(many) - 1] = GROUP;
	as(OWNER, OWNER, 1, &in, make_all);
	class_shift = 6;
	as(OWNER, GROUP, 0, NULL, try_all);
	class_shift = 3;
	as(OTHER, GROUP, 0, NULL, try_all);
	as(OTHER, OTHER, 1, &in, try_all);
	as(OTHER, OTHER, ARRAY_SIZE(many), many, try_all);
	class_shift = 0;
	as(STRANGER, OWNER, 0, NULL, try_all);
	as(STRANGER, STRANGER, ARRAY_SIZE(many) - 1, many, try_all);
	class_shift = 9;
	as(0, 0, 0, NULL, try_all);
}

Test(names, a_name_is_its_owners_to_remove_and_to_give)
{
	const gid_t in = GROUP;

	as(OWNER, OWNER, 1, &in, make_all);
	as(OTHER, GROUP, 0, NULL, steal);
	as(STRANGER, OWNER, 0, NULL, steal);
	as(OWNER, OWNER, 1, &in, dispose);
	as(0, 0, 0, NULL, give_away);
	as(OTHER, OTHER, 0, NULL, find_given);
}

/* --- who may only read --- */

static void
write_in_a_child(uint64_t *p)
{
	const pid_t pid = fork();
	int status;

	if (pid == 0) {
		fill(p, 66);
		_exit(wrong(p, 66) == 0 ? 0 : 1);
	}
	MUST(waitpid(pid, &status, 0) == pid && status == 0);
}

/* By all calls that take a range. */
static void
spoil_mapping(struct up_runtime *rt, uint64_t *p)
{
	const size_t len = PAGES * PAGE_SIZE;
	void *copy;

	MUST(wrong(p, 1) == 0);
	MUST(up_clone(rt, p, len, &copy) == 0 && wrong(copy, 1) == 0);
	MUST(up_protect(rt, copy, len, RW) == 0 && up_protect(rt, p, len, RW) == 0);
	fill(copy, 60);
	(void)up_prefault(rt, p, len,
			  1); /* -EIO, unless system calls may have their faults served */
	fill(p, 61);
	MUST(up_sync(rt, p, len, UP_SYNC_WAIT) == 0 && up_sync(rt, p, len, UP_SYNC_ASYNC) == 0);
	MUST(up_sync(rt, p, len, UP_SYNC_INVALIDATE) == 0 && wrong(p, 61) == 0);
	MUST(up_inherit(rt, p, len, UP_INHERIT_SHARE) < 0);
	MUST(up_inherit(rt, p, len, UP_INHERIT_COPY) == 0);
	write_in_a_child(p);
	MUST(wrong(p, 61) == 0);
	MUST(up_advise(rt, p, len, UP_ADVICE_COLD) == 0);
	MUST(up_advise(rt, p, len, UP_ADVICE_DONTNEED) == 0 && p[0] == 0);
	fill(p, 62);
	MUST(up_unmap(rt, p, len) == 0 && wrong(copy, 60) == 0);
}

static void
raw_say(int sock, struct msg *m, int with[MSG_REGIONS], size_t *n, int fd)
{
	MUST(msg_send(sock, m, &fd, fd >= 0) == 0);
	MUST(msg_await(sock, m, with, n, 20000) == 0);
}

/* A client that does what the library would not. */
static int
raw_client(void)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	struct msg m = { .type = MSG_CONNECT, .n = PROTOCOL_VERSION };
	const int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	int with[MSG_REGIONS], uffd;
	size_t n;

	strcpy(sun.sun_path, path);
	MUST(connect(sock, (struct sockaddr *)&sun, sizeof sun) == 0);
	MUST(fcntl(sock, F_SETFL, O_NONBLOCK) == 0);
	raw_say(sock, &m, with, &n, -1);
	MUST(m.status == 0);
	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1 /* UFFD_USER_MODE_ONLY */);
	if (uffd < 0)
		_exit(SKIP);
	m = (struct msg){ .type = MSG_HELLO };
	raw_say(sock, &m, with, &n, uffd);
	MUST(m.type == MSG_ACK && n == 1);
	close(uffd);
	return sock;
}

static int
raw_call(int sock, const struct call *q, struct msg *m, int with[MSG_REGIONS], size_t *n)
{
	*m = (struct msg){ .type = MSG_CALL, .serial = 5, .call = *q };
	raw_say(sock, m, with, n, -1);
	return m->status;
}

/* All that can be done to a file that one has in hand. */
static void
spoil_file(int fd)
{
	static const char junk[PAGE_SIZE] = { 1, 2, 3 };
	char name[32];
	char *at;
	int again;

	for (unsigned i = 0; i < PAGES; i++)
		if (pwrite(fd, junk, sizeof junk, (off_t)(i * PAGE_SIZE)) < 0)
			break;
	(void)fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE_SIZE);
	MUST(ftruncate(fd, 0) < 0 && ftruncate(fd, (off_t)1 << 40) < 0);
	MUST(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) < 0);
	snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
	again = open(name, O_RDWR | O_CLOEXEC);
	for (int i = 0; i < 2; i++) {
		at = mmap(NULL, PAGES * PAGE_SIZE, RW, MAP_SHARED, i == 0 || again < 0 ? fd : again,
			  0);
		if (at == MAP_FAILED)
			continue;
		memset(at, 0x55, PAGES * PAGE_SIZE);
		munmap(at, PAGES * PAGE_SIZE);
	}
	/* Holes, by who has it for reading. */
	at = mmap(NULL, PAGES * PAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0);
	for (unsigned i = 0; at != MAP_FAILED && i < PAGES; i++)
		(void)((volatile char *)at)[i * PAGE_SIZE];
	if (again >= 0)
		close(again);
}

static void
spoil_by_hand(void)
{
	const int sock = raw_client();
	int with[MSG_REGIONS], file;
	struct call q = { .op = CALL_OPEN };
	struct msg m;
	uint64_t id;
	size_t n;

	strcpy(q.text, "ours");
	q.flags = OPEN_OWN;
	MUST(raw_call(sock, &q, &m, with, &n) == -EEXIST);
	q.flags = 2;
	MUST(raw_call(sock, &q, &m, with, &n) == -EINVAL);
	q.flags = 0;
	MUST(raw_call(sock, &q, &m, with, &n) == 0 && m.call.prot == PROT_READ);
	id = m.call.object;
	/* No flags at all that have SHARED in them, alone or not. */
	for (uint32_t flags = 0; flags < 256; flags++) {
		q = (struct call){ .op = CALL_MAP,
				   .addr = 0x10000000,
				   .length = PAGES * PAGE_SIZE,
				   .prot = flags & 1 ? PROT_READ : PROT_NONE,
				   .flags = flags | UP_SHARED,
				   .object = id };
		MUST(raw_call(sock, &q, &m, with, &n) < 0 && n == 0);
	}
	q.flags = UP_PRIVATE;
	q.prot = RW;
	MUST(raw_call(sock, &q, &m, with, &n) == 0 && m.type == MSG_REGION && n == 1);
	file = with[0];
	spoil_file(file);
	q.op = CALL_MAPPED;
	MUST(raw_call(sock, &q, &m, with, &n) == 0 && n == 0);
	spoil_file(file);
	q = (struct call){ .op = CALL_INHERIT,
			   .addr = 0x10000000,
			   .length = PAGES * PAGE_SIZE,
			   .flags = UP_INHERIT_SHARE };
	MUST(raw_call(sock, &q, &m, with, &n) < 0);
	/* A snapshot is its own, and not what it is of. */
	q = (struct call){ .op = CALL_SNAPSHOT, .object = id };
	MUST(raw_call(sock, &q, &m, with, &n) == 0);
	q = (struct call){ .op = CALL_MAP,
			   .addr = 0x20000000,
			   .length = PAGES * PAGE_SIZE,
			   .prot = PROT_READ,
			   .flags = UP_SHARED,
			   .object = m.call.object };
	MUST(raw_call(sock, &q, &m, with, &n) == 0 && m.type == MSG_REGION && n == 1);
	file = with[0];
	q.op = CALL_MAPPED;
	MUST(raw_call(sock, &q, &m, with, &n) == 0);
	spoil_file(file);
}

static void
spoil(void)
{
	struct up_runtime *const rt = joined();
	struct up_object *o, *snap;
	uint64_t *p;

	MUST(up_object_open(rt, "ours", &o) == 0);
	MUST(map_error(rt, o, RW, UP_SHARED) == -EACCES);
	MUST(strstr(logged, "UP_PRIVATE maps a copy") != NULL);
	MUST(map_error(rt, o, PROT_READ, UP_SHARED | UP_MULTI) == -EACCES);
	MUST(map_error(rt, o, PROT_NONE, UP_SHARED) == -EACCES);
	spoil_mapping(rt, mapped(rt, o, PROT_READ, UP_PRIVATE));
	MUST(up_object_snapshot(rt, o, &snap) == 0);
	p = mapped(rt, snap, PROT_READ, UP_SHARED);
	MUST(wrong(p, 1) == 0);
	/* Behind the library's back: it is its own. */
	MUST(mprotect(p, PAGES * PAGE_SIZE, RW) == 0);
	fill(p, 63);
	MUST(up_object_chmod(rt, "ours", 0666) == -EACCES &&
	     up_object_remove(rt, "ours") == -EACCES);
	up_object_unref(snap);
	up_object_unref(o);
	up_runtime_destroy(rt);
	spoil_by_hand();
}

Test(names, who_may_only_read_changes_nothing)
{
	const struct up_config cfg = { .log = collect };
	struct up_object *o;
	struct up_runtime *rt;
	void *p = NULL, *press = NULL;

	cr_assert(eq(int, up_runtime_connect(&rt, path, &cfg), 0), "%s", logged);
	cr_assert(eq(int, up_object_create_mode(rt, "ours", PAGES * PAGE_SIZE, 0, 0644, &o), 0));
	cr_assert(eq(int, up_map(rt, NULL, PAGES * PAGE_SIZE, RW, UP_SHARED, o, 0, &p), 0));
	cr_assert(eq(int, up_map(rt, NULL, 12 * MiB, RW, UP_PRIVATE, NULL, 0, &press), 0));
	/* All of it in memory, and then none. */
	for (int round = 0; round < 2; round++) {
		fill(p, 1);
		if (round == 1)
			memset(press, 7, 12 * MiB);
		as(OTHER, OTHER, 0, NULL, spoil);
		cr_assert(eq(sz, wrong(p, 1), 0), "round %d", round);
		memset(press, 8, 12 * MiB);
		cr_assert(eq(sz, wrong(p, 1), 0), "round %d", round);
	}
	up_object_unref(o);
	up_runtime_destroy(rt);
}

/* --- a mode that changes --- */

static int turn[2][2]; /* pipes: of the reader's turn, and of the test's */

static void
hand_over(int to, int wait_for)
{
	char c = 0;

	MUST(write(to, &c, 1) == 1 && read(wait_for, &c, 1) == 1);
}

static void
read_and_wait(void)
{
	struct up_runtime *const rt = joined();
	struct up_object *o, *again;
	uint64_t *p;

	MUST(up_object_open(rt, "ours", &o) == 0);
	p = mapped(rt, o, RW, UP_PRIVATE);
	MUST(wrong(p, 1) == 0);
	MUST(up_wire(rt, p, PAGES * PAGE_SIZE) == 0);
	hand_over(turn[1][1], turn[0][0]);
	/* It may write now: what it has open is what it was. */
	MUST(map_error(rt, o, RW, UP_SHARED) == -EACCES);
	MUST(up_object_open(rt, "ours", &again) == 0);
	fill(mapped(rt, again, RW, UP_SHARED), 3);
	hand_over(turn[1][1], turn[0][0]);
	/* Nothing any more: and so it is with that. */
	MUST(up_object_open(rt, "ours", &o) == -EACCES);
	fill(mapped(rt, again, RW, UP_SHARED), 4);
	MUST(wrong(p, 1) == 0);
	up_runtime_destroy(rt);
}

Test(names, what_is_open_stays_what_it_was_when_the_mode_changes)
{
	const struct up_config cfg = { .log = collect };
	struct up_runtime *rt;
	struct up_object *o;
	void *copy, *p = NULL;
	int status;
	pid_t pid;
	char c;

	cr_assert(pipe(turn[0]) == 0 && pipe(turn[1]) == 0);
	cr_assert(eq(int, up_runtime_connect(&rt, path, &cfg), 0), "%s", logged);
	cr_assert(eq(int, up_object_create_mode(rt, "ours", PAGES * PAGE_SIZE, 0, 0644, &o), 0));
	cr_assert(eq(int, up_map(rt, NULL, PAGES * PAGE_SIZE, RW, UP_SHARED, o, 0, &p), 0));
	fill(p, 1);
	pid = fork();
	if (pid == 0) {
		close(turn[1][0]);
		if (setgroups(0, NULL) < 0 || setresgid(OTHER, OTHER, OTHER) < 0 ||
		    setresuid(OTHER, OTHER, OTHER) < 0)
			_exit(1);
		read_and_wait();
		_exit(0);
	}
	close(turn[1][1]);
	if (read(turn[1][0], &c, 1) == 1) {
		/* What others have wired of their copies is in nobody's way. */
		cr_assert(eq(int, up_clone(rt, p, PAGES * PAGE_SIZE, &copy), 0), "%s", logged);
		cr_assert(eq(int, up_object_chmod(rt, "ours", 0646), 0));
		cr_assert(write(turn[0][1], &c, 1) == 1 && read(turn[1][0], &c, 1) == 1);
		cr_assert(eq(sz, wrong(p, 3), 0));
		cr_assert(eq(int, up_object_chmod(rt, "ours", 0600), 0));
		cr_assert(write(turn[0][1], &c, 1) == 1);
	}
	cr_assert(waitpid(pid, &status, 0) == pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == SKIP)
		cr_skip_test("only root may have a userfaultfd here");
	cr_assert(eq(int, status, 0));
	cr_assert(eq(sz, wrong(p, 4), 0));
	up_object_unref(o);
	up_runtime_destroy(rt);
}
