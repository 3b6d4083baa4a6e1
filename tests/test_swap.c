/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_swap.c: swap space (lib/swap/area.c) and the io_uring engine (lib/swap/uring.c).
 *
 * All on the real kernel: what is tested is mostly what it does.  What needs a file system of
 * a certain kind or size is root's, in a mount namespace of the test's own; what needs a system
 * call to fail gets a seccomp filter, which ends with the process of the test.
 *
 * What the engine promises is tested four times: as it is and as on Linux 5.10
 * (UP_MASK_RING_FLAGS), each with O_DIRECT where it works and through the page cache
 * (UP_MASK_ODIRECT), where requests go by the kernel's worker threads.
 */
#include "assertions.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/loop.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "heap_arena.h"
#include "swap/swap.h"

#define MIB ((size_t)1 << 20)
#define SEC INT64_C(1000000000)

/* How long anything may take before a test says that it is lost. */
#define PATIENCE (10 * SEC)

/* --- the rig: an arena, a log that is kept, a directory on a disk --- */

static struct heap_arena heap;
static struct logger logger;
static char log_text[16384];
static size_t log_len;
static char dir[64];
static char path[128];
static bool mounted;

static void
keep_line(void *ctx, enum up_log_level level, const char *line)
{
	int n;

	(void)ctx;
	n = snprintf(log_text + log_len, sizeof log_text - log_len, "%c: %s\n", "EWI"[level], line);
	if (n > 0 && (size_t)n < sizeof log_text - log_len)
		log_len += (size_t)n;
}

static bool
logged(const char *what)
{
	return strstr(log_text, what) != NULL;
}

static void
rig_up(void)
{
	heap_arena_init(&heap, 64 * MIB, MIB);
	logger = (struct logger){ .fn = keep_line };
	strcpy(dir, "/var/tmp/test-swap-XXXXXX");
	if (mkdtemp(dir) == NULL) {
		strcpy(dir, "./test-swap-XXXXXX");
		cr_assert(mkdtemp(dir) != NULL, "no directory for files: %s", strerror(errno));
	}
	snprintf(path, sizeof path, "%s/swap", dir);
	signal(SIGPIPE, SIG_IGN);
}

static void
tidy(void)
{
	if (mounted)
		umount2(dir, MNT_DETACH);
	unlink(path);
	rmdir(dir);
}

static void
rig_down(void)
{
	tidy();
	heap_arena_fini(&heap);
}

/* Criterion runs no .fini after a skip. */
#define skip(...)                     \
	do {                          \
		tidy();               \
		cr_skip(__VA_ARGS__); \
	} while (0)

/* Open an area that must open. */
static void
must_open(struct swap_area *s, const char *name, int fd, uint64_t size, uint64_t mask)
{
	int r = swap_area_open(s, &heap.arena, name, fd, size, mask, &logger);

	cr_assert(eq(int, r, 0), "%s; log:\n%s", strerror(-r), log_text);
}

/* Open one that must be refused with `error`, for a reason that the log gives as `why`. */
static void
must_refuse(const char *name, int fd, uint64_t size, int error, const char *why)
{
	const size_t before = heap.committed;
	struct swap_area s;
	int r = swap_area_open(&s, &heap.arena, name, fd, size, 0, &logger);

	cr_assert(eq(int, r, error), "log:\n%s", log_text);
	cr_assert(logged(why), "\"%s\" is not in the log:\n%s", why, log_text);
	swap_area_close(&s); /* does nothing */
	cr_assert(eq(sz, heap.committed, before));
}

static struct stat
stat_of(int fd)
{
	struct stat st;

	cr_assert(eq(int, fstat(fd, &st), 0));
	return st;
}

static bool
exists(const char *name)
{
	struct stat st;

	return lstat(name, &st) == 0;
}

static unsigned
count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	cr_assert(d != NULL);
	while (readdir(d) != NULL)
		n++;
	closedir(d);
	return n;
}

static int
make_file(const char *name, const char *text, mode_t mode)
{
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	cr_assert(fd >= 0, "%s: %s", name, strerror(errno));
	cr_assert(eq(int, fchmod(fd, mode), 0));
	cr_assert(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	return fd;
}

/* --- what only root has --- */

/* Mount on `dir`, seen by this test alone. */
static void
private_mount(const char *source, const char *type, const char *options)
{
	if (geteuid() != 0)
		skip("needs root, to mount a %s", type);
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		skip("no mount namespace of our own: %s", strerror(errno));
	if (mount(source, dir, type, 0, options) < 0)
		skip("can not mount a %s: %s", type, strerror(errno));
	mounted = true;
}

/*
 * A block device over `backing`, gone when the last descriptor of it is closed.  The name is
 * left in `name`.
 */
static int
make_loop(int backing, char name[32])
{
	struct loop_config cfg = { .fd = (unsigned)backing, .info.lo_flags = LO_FLAGS_AUTOCLEAR };
	int control, fd = -1;

	if (geteuid() != 0)
		skip("needs root, for a loop device");
	control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		skip("no loop devices: %s", strerror(errno));
	for (int tries = 0; tries < 100; tries++) {
		int n = ioctl(control, LOOP_CTL_GET_FREE);

		if (n < 0)
			break;
		snprintf(name, 32, "/dev/loop%d", n);
		fd = open(name, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			break;
		if (ioctl(fd, LOOP_CONFIGURE, &cfg) == 0)
			break;
		close(fd); /* somebody else was quicker */
		fd = -1;
	}
	close(control);
	if (fd < 0)
		skip("no loop device to be had: %s", strerror(errno));
	return fd;
}

/*
 * From now on system call `nr` fails with `error`; with `flag`, only if that bit is in the low
 * half of argument `arg`.
 */
static void
fail_syscall(unsigned nr, unsigned arg, uint32_t flag, int error)
{
	const uint32_t low = offsetof(struct seccomp_data, args) + arg * 8;
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, low),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, flag, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { .len = ARRAY_SIZE(code), .filter = code };

	if (flag == 0)
		code[3] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JA, 0, 0, 0);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) < 0)
		skip("no seccomp filters here: %s", strerror(errno));
}

/* --- area: the default file --- */

TestSuite(area, .init = rig_up, .fini = rig_down, .timeout = 30);

Test(area, the_default_file_is_in_TMPDIR_and_has_no_name)
{
	struct swap_area s;
	char proc[64], target[256] = "";

	setenv("TMPDIR", dir, 1);
	must_open(&s, NULL, 0, 0, 0);
	snprintf(proc, sizeof proc, "/proc/self/fd/%d", s.fd);
	cr_assert(readlink(proc, target, sizeof target - 1) > 0);
	cr_assert(strstr(target, strrchr(dir, '/')) != NULL, "it is %s", target);
	cr_assert(eq(int, (int)stat_of(s.fd).st_nlink, 0));
	cr_assert(eq(int, (int)(stat_of(s.fd).st_mode & 0777), 0600));
	cr_assert(fcntl(s.fd, F_GETFD) & FD_CLOEXEC);
	cr_assert(logged("I: swap: an unlinked file in "), "log:\n%s", log_text);
	swap_area_close(&s);
	cr_assert(eq(int, rmdir(dir), 0), "something was left in the directory");
}

Test(area, a_TMPDIR_that_is_not_there_is_passed_over)
{
	struct swap_area s;

	cr_assert(eq(int, chdir(dir), 0));
	setenv("TMPDIR", "/nowhere/at/all", 1);
	must_open(&s, NULL, -1, 0, 0);
	cr_assert(logged("passing over /nowhere/at/all"));
	cr_assert(eq(int, (int)stat_of(s.fd).st_nlink, 0));
	swap_area_close(&s);
}

Test(area, the_default_file_is_never_in_memory)
{
	struct swap_area s;
	struct statfs fs;

	private_mount("tmpfs", "tmpfs", "size=1m");
	setenv("TMPDIR", dir, 1);
	must_open(&s, NULL, 0, 0, 0);
	cr_assert(eq(int, fstatfs(s.fd, &fs), 0));
	cr_assert(fs.f_type != TMPFS_MAGIC);
	cr_assert(logged("which is in memory"), "log:\n%s", log_text);
	swap_area_close(&s);
}

Test(area, without_O_TMPFILE_the_file_is_made_and_unlinked)
{
	struct swap_area s;

	setenv("TMPDIR", dir, 1);
	fail_syscall(__NR_openat, 2, O_TMPFILE & ~O_DIRECTORY, EOPNOTSUPP);
	cr_assert(open(dir, O_TMPFILE | O_RDWR, 0600) < 0 && errno == EOPNOTSUPP);
	must_open(&s, NULL, 0, 0, 0);
	cr_assert(logged(dir), "it is elsewhere; log:\n%s", log_text);
	cr_assert(eq(int, (int)stat_of(s.fd).st_nlink, 0));
	cr_assert(eq(int, (int)(stat_of(s.fd).st_mode & 0777), 0600));
	cr_assert(eq(int, rmdir(dir), 0), "the name is still there");
	cr_assert(fcntl(s.fd, F_GETFD) & FD_CLOEXEC);
	swap_area_close(&s);
}

/* --- area: size --- */

Test(area, starts_empty_and_grows_when_no_size_is_given)
{
	struct swap_area s;
	slot_t first = 7;
	struct stat st;

	setenv("TMPDIR", dir, 1);
	must_open(&s, NULL, 0, 0, 0);
	cr_assert(not(s.fixed));
	cr_assert(eq(sz, s.nslots, 0));
	cr_assert(eq(sz, (size_t)stat_of(s.fd).st_size, 0));
	cr_assert(eq(sz, swap_alloc(&s, 1, &first), 0), "a slot out of nothing");
	cr_assert(eq(u32, first, 7));

	cr_assert(eq(int, swap_area_grow(&s, 1), 0));
	cr_assert(eq(sz, s.nslots, 16 * MIB / PAGE_SIZE), "one step is 16 MiB");
	st = stat_of(s.fd);
	cr_assert(eq(sz, (size_t)st.st_size, s.nslots * PAGE_SIZE));
	if (!s.unreserved)
		cr_assert(ge(sz, (size_t)st.st_blocks * 512, s.nslots * PAGE_SIZE),
			  "promised, not allocated");
	cr_assert(eq(int, swap_area_grow(&s, 5), 0));
	cr_assert(eq(sz, s.nslots, 16 * MIB / PAGE_SIZE), "it grew without need");
	cr_assert(eq(sz, swap_alloc(&s, 64, &first), 64));
	cr_assert(eq(u32, first, 0));
	swap_area_check(&s);
	swap_area_close(&s);
}

Test(area, grows_by_what_is_asked_when_that_is_more_than_a_step)
{
	struct swap_area s;

	must_open(&s, path, 0, 0, 0);
	cr_assert(eq(int, swap_area_grow(&s, 1), 0));
	cr_assert(eq(int, swap_area_grow(&s, 40 * MIB / PAGE_SIZE + 1), 0));
	cr_assert(eq(sz, s.nslots, 40 * MIB / PAGE_SIZE + 64));
	cr_assert(eq(sz, (size_t)stat_of(s.fd).st_size, s.nslots * PAGE_SIZE));
	swap_area_check(&s);
	swap_area_close(&s);
}

Test(area, of_a_fixed_size_has_every_slot_and_never_grows)
{
	struct swap_area s;
	bool seen[100] = { false };
	size_t n, total = 0;
	slot_t first;

	must_open(&s, path, 0, 100 * PAGE_SIZE + 123, 0);
	cr_assert(s.fixed);
	cr_assert(eq(sz, s.nslots, 100));
	cr_assert(eq(sz, swap_area_max(&s), 100));
	cr_assert(eq(int, swap_area_grow(&s, 100), 0));
	cr_assert(eq(int, swap_area_grow(&s, 101), -ENOSPC));
	cr_assert(eq(sz, (size_t)stat_of(s.fd).st_size, 100 * PAGE_SIZE));
	while ((n = swap_alloc(&s, 64, &first)) > 0) {
		for (size_t i = first; i < first + n; i++) {
			cr_assert(i < 100 && !seen[i], "slot %zu", i);
			seen[i] = true;
		}
		total += n;
	}
	cr_assert(eq(sz, total, 100));
	cr_assert(eq(sz, s.nused, 100));
	swap_area_check(&s);
	swap_area_close(&s);
}

Test(area, a_size_that_slots_can_not_number_is_refused)
{
	must_refuse(path, 0, 1, -EINVAL, "a size of 1 bytes");
	must_refuse(path, 0, UINT64_C(1) << 44, -EINVAL, "a size of 17592186044416 bytes");
	must_refuse(path, 0, UINT64_MAX, -EINVAL, "a size of 18446744073709551615 bytes");
	cr_assert(not(exists(path)), "a file was created and left behind");
}

/* `dir` is a file system of a few MiB: fill it up, and see that a refusal changes nothing. */
static void
grow_until_full(void)
{
	struct swap_area s;
	struct statfs before, after;
	size_t nslots, max;

	must_open(&s, path, 0, 0, 0);
	cr_assert(not(s.unreserved));
	max = swap_area_max(&s);
	cr_assert(lt(sz, max, 16 * MIB / PAGE_SIZE), "%zu slots on a small file system", max);
	/* A step does not fit, but what is asked for does. */
	cr_assert(eq(int, swap_area_grow(&s, 65), 0));
	cr_assert(eq(sz, s.nslots, 128));
	nslots = s.nslots;
	cr_assert(eq(int, fstatfs(s.fd, &before), 0));

	cr_assert(eq(int, swap_area_grow(&s, 32 * MIB / PAGE_SIZE), -ENOSPC));
	cr_assert(eq(int, swap_area_grow(&s, max + 1024), -ENOSPC));
	cr_assert(eq(sz, s.nslots, nslots));
	cr_assert(eq(sz, (size_t)stat_of(s.fd).st_size, nslots * PAGE_SIZE));
	cr_assert(eq(int, fstatfs(s.fd, &after), 0));
	/* ext4 may keep a block for the file's extents. */
	cr_assert(ge(sz, (size_t)after.f_bfree * (size_t)after.f_bsize + PAGE_SIZE,
		     (size_t)before.f_bfree * (size_t)before.f_bsize),
		  "part of it is still allocated");
	swap_area_check(&s);

	/* What does fit is still to be had. */
	cr_assert(eq(int, swap_area_grow(&s, 192), 0));
	cr_assert(eq(sz, s.nslots, 192));
	swap_area_close(&s);
	must_refuse(path, 0, 64 * MIB, -ENOSPC, "65536 KiB: No space left");
}

Test(area, a_full_tmpfs_refuses_growth_and_changes_nothing)
{
	private_mount("tmpfs", "tmpfs", "size=4m");
	grow_until_full();
	cr_assert(logged("W: swap: "), "no warning that this is memory; log:\n%s", log_text);
	cr_assert(logged("is in memory (tmpfs)"));
}

Test(area, a_full_ext4_refuses_growth_and_changes_nothing)
{
	char image[128], command[256], name[32];
	int backing, fd;

	snprintf(image, sizeof image, "%s.img", dir);
	backing = make_file(image, "", 0600);
	cr_assert(eq(int, ftruncate(backing, (off_t)(8 * MIB)), 0));
	snprintf(command, sizeof command, "mkfs.ext4 -q -F %s >/dev/null 2>&1", image);
	if (system(command) != 0) {
		unlink(image);
		skip("no mkfs.ext4");
	}
	unlink(image);
	fd = make_loop(backing, name);
	private_mount(name, "ext4", NULL);
	close(fd);
	grow_until_full();
	close(backing);
}

Test(area, growth_beyond_RLIMIT_FSIZE_is_refused_without_a_signal)
{
	struct swap_area s;
	struct rlimit lim = { .rlim_cur = 20 * MIB, .rlim_max = RLIM_INFINITY };

	cr_assert(eq(int, getrlimit(RLIMIT_FSIZE, &lim), 0));
	lim.rlim_cur = 20 * MIB;
	cr_assert(eq(int, setrlimit(RLIMIT_FSIZE, &lim), 0));
	must_open(&s, path, 0, 0, 0);
	cr_assert(le(sz, swap_area_max(&s), 20 * MIB / PAGE_SIZE));
	cr_assert(eq(int, swap_area_grow(&s, 1), 0));
	cr_assert(eq(int, swap_area_grow(&s, 20 * MIB / PAGE_SIZE + 1), -ENOSPC));
	cr_assert(eq(int, swap_area_grow(&s, 20 * MIB / PAGE_SIZE), 0));
	cr_assert(eq(sz, s.nslots, 20 * MIB / PAGE_SIZE));
	swap_area_close(&s);
	lim.rlim_cur = 100;
	cr_assert(eq(int, setrlimit(RLIMIT_FSIZE, &lim), 0));
	must_refuse(path, 0, 0, -ENOSPC, "No space left");
}

Test(area, without_fallocate_it_grows_by_holes_and_says_so_once)
{
	struct swap_area s;
	const char *warning;

	fail_syscall(__NR_fallocate, 0, 0, EOPNOTSUPP);
	cr_assert(fallocate(-1, 0, 0, 1) < 0 && errno == EOPNOTSUPP);
	must_open(&s, path, 0, 0, 0);
	cr_assert(s.unreserved);
	cr_assert(eq(int, swap_area_grow(&s, 1), 0));
	cr_assert(eq(int, swap_area_grow(&s, s.nslots + 1), 0));
	cr_assert(eq(sz, s.nslots, 32 * MIB / PAGE_SIZE));
	cr_assert(eq(sz, (size_t)stat_of(s.fd).st_size, 32 * MIB));
	cr_assert(lt(sz, (size_t)stat_of(s.fd).st_blocks * 512, MIB));
	warning = strstr(log_text, "can not allocate space ahead");
	cr_assert(warning != NULL, "log:\n%s", log_text);
	cr_assert(strstr(warning + 1, "can not allocate space ahead") == NULL, "said twice");
	swap_area_close(&s);
}

/* Fail the 1st, 2nd, 3rd... commit of memory in turn. */
Test(area, without_memory_it_does_not_open_or_grow_and_leaks_nothing)
{
	const unsigned fds = count_fds();
	struct swap_area s;
	bool failed;
	int r;

	for (unsigned nth = 1;; nth++) {
		heap_arena_fail_commit(&heap, nth);
		r = swap_area_open(&s, &heap.arena, path, 0, MIB, 0, &logger);
		failed = heap_arena_disarm(&heap);
		if (r == 0)
			swap_area_close(&s);
		cr_assert(eq(int, r, failed ? -ENOMEM : 0), "commit %u", nth);
		cr_assert(eq(uint, count_fds(), fds), "commit %u", nth);
		cr_assert(eq(sz, heap.committed, 0), "commit %u", nth);
		cr_assert(eq(int, exists(path), !failed), "commit %u", nth);
		unlink(path);
		if (!failed)
			break;
		cr_assert(lt(uint, nth, 100), "it goes on for ever");
	}
	must_open(&s, path, 0, 0, 0);
	for (unsigned nth = 1;; nth++) {
		const size_t before = s.nslots;

		/* A second commit lets the smaller attempt fail as well. */
		heap_arena_fail_commit(&heap, nth);
		r = swap_area_grow(&s, before + 100000);
		failed = heap_arena_disarm(&heap);
		cr_assert(eq(int, r, failed ? -ENOMEM : 0), "commit %u", nth);
		cr_assert(eq(sz, (size_t)stat_of(s.fd).st_size, s.nslots * PAGE_SIZE), "commit %u",
			  nth);
		swap_area_check(&s);
		if (!failed)
			break;
		cr_assert(eq(sz, s.nslots, before), "commit %u", nth);
		cr_assert(lt(uint, nth, 100), "it goes on for ever");
	}
	swap_area_close(&s);
	cr_assert(eq(uint, count_fds(), fds));
}

/* --- area: slots --- */

Test(area, clusters_that_follow_each_other_lie_one_behind_the_other)
{
	struct swap_area s;
	slot_t a, b, c;

	must_open(&s, path, 0, MIB, 0);
	cr_assert(eq(sz, swap_alloc(&s, 64, &a), 64));
	cr_assert(eq(sz, swap_alloc(&s, 64, &b), 64));
	cr_assert(eq(sz, swap_alloc(&s, 64, &c), 64));
	cr_assert(eq(u32, b, a + 64));
	cr_assert(eq(u32, c, b + 64));
	cr_assert(eq(sz, s.nused, 192));
	swap_free(&s, b, 64);
	cr_assert(eq(sz, s.nused, 128));
	swap_area_check(&s);
	swap_free(&s, a, 64);
	swap_free(&s, c, 64);
	cr_assert(eq(sz, s.nused, 0));
	swap_area_close(&s);
}

Test(area, a_freed_slot_is_handed_out_again)
{
	struct swap_area s;
	slot_t first, again;
	size_t total = 0;

	must_open(&s, path, 0, MIB, 0);
	while (swap_alloc(&s, 1, &first) == 1)
		total++;
	cr_assert(eq(sz, total, 256));
	swap_free(&s, 77, 3);
	cr_assert(eq(sz, swap_alloc(&s, 64, &again), 3));
	cr_assert(eq(u32, again, 77));
	cr_assert(eq(sz, swap_alloc(&s, 64, &again), 0));
	swap_area_close(&s);
}

Test(area, a_retired_slot_never_comes_back)
{
	struct swap_area s;
	size_t n, total = 0;
	slot_t first;

	must_open(&s, path, 0, 64 * PAGE_SIZE, 0);
	cr_assert(eq(sz, swap_alloc(&s, 64, &first), 64));
	swap_retire(&s, 5);
	cr_assert(eq(sz, s.nbad, 1));
	cr_assert(eq(sz, s.nused, 63));
	swap_free(&s, 0, 5);
	swap_free(&s, 6, 58);
	swap_area_check(&s);
	while ((n = swap_alloc(&s, 64, &first)) > 0) {
		cr_assert(first > 5 || first + n <= 5, "[%u, %zu) has the bad slot", first,
			  first + n);
		total += n;
	}
	cr_assert(eq(sz, total, 63));
	cr_assert(eq(sz, s.nslots, 64));
	swap_area_check(&s);
	swap_area_close(&s);
}

#define RACE_SLOTS (64 * MIB / PAGE_SIZE)
#define RACE_TURNS 50000

struct race {
	struct swap_area s;
	pthread_barrier_t start;
	atomic_uchar owned[RACE_SLOTS];
	atomic_uint twice; /* slots that two had at a time */
	atomic_uint late;  /* allocators that got too little in all their time */
	atomic_int error;
};

static void *
race_alloc(void *arg)
{
	struct race *r = arg;
	const uint64_t end = now_ns() + PATIENCE;
	unsigned rnd = 1, turns = 0;

	pthread_barrier_wait(&r->start);
	while (turns < RACE_TURNS && now_ns() < end) {
		slot_t first = 0;
		size_t n;

		rnd = rnd * 1103515245 + 12345;
		n = swap_alloc(&r->s, rnd / 65536 % 64 + 1, &first);
		for (size_t j = first; j < first + n; j++)
			if (atomic_exchange(&r->owned[j], 1))
				atomic_fetch_add(&r->twice, 1);
		turns += n > 0;
		if (rnd / 4096 % 1024 == 0)
			continue; /* kept */
		for (size_t j = first; j < first + n; j++)
			atomic_store(&r->owned[j], 0);
		if (n > 0)
			swap_free(&r->s, first, n);
	}
	r->late += turns < RACE_TURNS;
	return NULL;
}

static void *
race_grow(void *arg)
{
	struct race *r = arg;

	pthread_barrier_wait(&r->start);
	while (r->s.nslots < RACE_SLOTS && r->error == 0)
		r->error = swap_area_grow(&r->s, r->s.nslots + 64);
	return NULL;
}

Test(area, grows_while_slots_are_handed_out_and_no_slot_has_two_owners)
{
	static struct race r;
	pthread_t t[3];
	size_t owned = 0;

	must_open(&r.s, path, 0, 0, 0);
	pthread_barrier_init(&r.start, NULL, 3);
	for (int i = 0; i < 3; i++)
		cr_assert(eq(int, pthread_create(&t[i], NULL, i < 2 ? race_alloc : race_grow, &r),
			     0));
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	cr_assert(eq(int, r.error, 0));
	cr_assert(eq(uint, r.twice, 0));
	cr_assert(eq(uint, r.late, 0), "an allocator was starved");
	cr_assert(eq(sz, r.s.nslots, RACE_SLOTS));
	for (size_t i = 0; i < RACE_SLOTS; i++)
		owned += r.owned[i];
	cr_assert(eq(sz, r.s.nused, owned));
	swap_area_check(&r.s);
	pthread_barrier_destroy(&r.start);
	swap_area_close(&r.s);
}

struct grower {
	struct swap_area *s;
	pthread_barrier_t *start;
	size_t to;
	int error;
};

static void *
grow_once(void *arg)
{
	struct grower *g = arg;

	pthread_barrier_wait(g->start);
	g->error = swap_area_grow(g->s, g->to);
	return NULL;
}

Test(area, two_that_grow_it_at_once_get_what_the_larger_asked_for)
{
	for (unsigned round = 0; round < 100; round++) {
		static const size_t to[2] = { 20 * MIB / PAGE_SIZE, 24 * MIB / PAGE_SIZE };
		pthread_barrier_t start;
		struct grower g[2];
		struct swap_area s;
		pthread_t t[2];

		must_open(&s, path, 0, 0, UP_MASK_ODIRECT);
		pthread_barrier_init(&start, NULL, 2);
		for (unsigned i = 0; i < 2; i++) {
			g[i] = (struct grower){ .s = &s, .start = &start, .to = to[i] };
			cr_assert(eq(int, pthread_create(&t[i], NULL, grow_once, &g[i]), 0));
		}
		for (unsigned i = 0; i < 2; i++)
			pthread_join(t[i], NULL);
		cr_assert(eq(int, g[0].error, 0));
		cr_assert(eq(int, g[1].error, 0));
		cr_assert(ge(sz, s.nslots, to[1]), "round %u", round);
		cr_assert(eq(sz, (size_t)stat_of(s.fd).st_size, s.nslots * PAGE_SIZE), "round %u",
			  round);
		swap_area_check(&s);
		pthread_barrier_destroy(&start);
		swap_area_close(&s);
		log_len = 0;
	}
}

/* --- area: O_DIRECT --- */

Test(area, O_DIRECT_is_set_if_and_only_if_it_says_so)
{
	struct swap_area s;

	must_open(&s, path, 0, 0, 0);
	cr_assert(eq(int, (fcntl(s.fd, F_GETFL) & O_DIRECT) != 0, s.odirect));
	cr_assert(eq(int, logged(", O_DIRECT"), s.odirect));
	cr_assert(eq(int, logged("O_DIRECT does not work"), !s.odirect));
	swap_area_close(&s);
}

Test(area, O_DIRECT_is_left_alone_when_masked)
{
	struct swap_area s;

	must_open(&s, path, 0, 0, UP_MASK_ODIRECT);
	cr_assert(not(s.odirect));
	cr_assert(eq(int, fcntl(s.fd, F_GETFL) & O_DIRECT, 0));
	cr_assert(logged("buffered (O_DIRECT is masked)"));
	swap_area_close(&s);
}

Test(area, O_DIRECT_that_opens_but_does_not_write_is_given_up)
{
	struct swap_area s;

	/* Of whole pages; what is tried afterwards without O_DIRECT is less. */
	fail_syscall(__NR_pwrite64, 2, PAGE_SIZE, EINVAL);
	must_open(&s, path, 0, 0, 0);
	cr_assert(not(s.odirect));
	cr_assert(eq(int, fcntl(s.fd, F_GETFL) & O_DIRECT, 0), "the flag was left set");
	cr_assert(logged("buffered (O_DIRECT does not work there)"), "log:\n%s", log_text);
	swap_area_close(&s);
}

Test(area, a_file_that_takes_no_data_is_refused)
{
	fail_syscall(__NR_pwrite64, 0, 0, EIO);
	cr_assert(pwrite(-1, "x", 1, 0) < 0 && errno == EIO);
	must_refuse(path, 0, 0, -EINVAL, "does not keep what is written to it");
}

/* --- area: a path --- */

Test(area, a_path_is_created_private_and_left_behind_empty)
{
	struct swap_area s;
	struct stat st;

	umask(0);
	must_open(&s, path, 0, 0, 0);
	cr_assert(eq(int, stat(path, &st), 0));
	cr_assert(eq(int, (int)(st.st_mode & 07777), 0600));
	cr_assert(fcntl(s.fd, F_GETFD) & FD_CLOEXEC);
	cr_assert(eq(int, swap_area_grow(&s, 1), 0));
	swap_area_close(&s);
	cr_assert(eq(int, stat(path, &st), 0), "it is gone");
	cr_assert(eq(sz, (size_t)st.st_size, 0));
	cr_assert(eq(sz, (size_t)st.st_blocks, 0));
}

Test(area, what_was_in_the_file_is_gone)
{
	struct swap_area s;
	int fd = make_file(path, "yesterday's pages", 0600);

	must_open(&s, path, 0, 0, 0);
	cr_assert(eq(sz, (size_t)stat_of(fd).st_size, 0));
	cr_assert(logged("W: swap: the 17 bytes that were in"), "log:\n%s", log_text);
	swap_area_close(&s);
	close(fd);
}

Test(area, a_file_that_others_can_read_is_warned_about)
{
	struct swap_area s;

	close(make_file(path, "", 0644));
	must_open(&s, path, 0, 0, 0);
	cr_assert(logged("W: swap: "), "log:\n%s", log_text);
	cr_assert(logged("has mode 644"), "log:\n%s", log_text);
	swap_area_close(&s);
}

Test(area, what_is_not_a_file_or_block_device_is_refused)
{
	char target[160];
	int fd;

	must_refuse(dir, 0, 0, -EINVAL, "is a directory");

	cr_assert(eq(int, mkfifo(path, 0600), 0));
	must_refuse(path, 0, 0, -EINVAL, "is a fifo");
	unlink(path);

	must_refuse("/dev/null", 0, 0, -EINVAL, "is a character device");

	snprintf(target, sizeof target, "%s/target", dir);
	fd = make_file(target, "precious", 0600);
	cr_assert(eq(int, symlink(target, path), 0));
	must_refuse(path, 0, 0, -EINVAL, "is a symbolic link");
	cr_assert(eq(sz, (size_t)stat_of(fd).st_size, strlen("precious")),
		  "it went through the link");
	close(fd);
	unlink(target);
	must_refuse(path, 0, 0, -EINVAL, "is a symbolic link"); /* dangling */
	cr_assert(not(exists(target)), "created through a dangling link");
}

Test(area, a_path_that_can_not_be_opened_says_why)
{
	must_refuse("/nowhere/at/all", 0, 0, -ENOENT, "/nowhere/at/all: No such file");
	must_refuse("", 0, 0, -ENOENT, "No such file");
}

Test(area, a_second_user_of_the_same_file_is_refused_and_the_first_keeps_its_data)
{
	struct swap_area s, again;
	char byte = 0;

	must_open(&s, path, 0, MIB, UP_MASK_ODIRECT);
	cr_assert(pwrite(s.fd, "x", 1, 5000) == 1);
	must_refuse(path, 0, MIB, -EBUSY, "is locked");
	cr_assert(eq(sz, (size_t)stat_of(s.fd).st_size, MIB));
	cr_assert(pread(s.fd, &byte, 1, 5000) == 1);
	cr_assert(eq(chr, byte, 'x'));
	cr_assert(exists(path));
	swap_area_close(&s);
	must_open(&again, path, 0, MIB, 0);
	swap_area_close(&again);
}

Test(area, a_child_that_inherited_the_file_does_not_keep_it_locked)
{
	struct swap_area s, again;
	int hold[2];
	char byte;
	pid_t pid;

	cr_assert(eq(int, pipe(hold), 0));
	must_open(&s, path, 0, 0, 0);
	pid = fork();
	cr_assert(pid >= 0);
	if (pid == 0) {
		close(hold[1]);
		_exit(read(hold[0], &byte, 1) < 0); /* lives until the parent closes its end */
	}
	swap_area_close(&s);
	must_open(&again, path, 0, 0, 0);
	swap_area_close(&again);
	close(hold[1]);
	cr_assert(eq(int, waitpid(pid, NULL, 0), pid));
}

/* --- area: a descriptor --- */

Test(area, a_descriptor_stays_as_the_caller_left_it)
{
	struct swap_area s;
	int fd = make_file(path, "12345", 0600);
	int flags;

	cr_assert(eq(int, fcntl(fd, F_SETFL, O_APPEND | O_NONBLOCK), 0));
	flags = fcntl(fd, F_GETFL);
	must_open(&s, NULL, fd, 0, 0);
	cr_assert(s.fd != fd);
	cr_assert(eq(int, fcntl(fd, F_GETFL), flags));
	cr_assert(eq(int, (int)lseek(fd, 0, SEEK_CUR), 5));
	cr_assert(eq(int, fcntl(s.fd, F_GETFL) & (O_APPEND | O_NONBLOCK), 0));
	swap_area_close(&s);
	cr_assert(eq(int, fcntl(fd, F_GETFL), flags), "it was closed");
	cr_assert(eq(sz, (size_t)stat_of(fd).st_size, 0));
	close(fd);
}

Test(area, a_descriptor_may_be_closed_by_the_caller_meanwhile)
{
	struct swap_area s;
	int fd = make_file(path, "", 0600);

	must_open(&s, NULL, fd, MIB, 0);
	close(fd);
	cr_assert(eq(sz, (size_t)stat_of(s.fd).st_size, MIB));
	swap_area_close(&s);
}

Test(area, a_descriptor_that_can_not_be_reopened_is_duplicated)
{
	struct swap_area s;
	int fd = make_file(path, "", 0600);
	int flags = fcntl(fd, F_GETFL);

	fail_syscall(__NR_openat, 0, 0, EACCES); /* from now on nothing opens */
	must_open(&s, NULL, fd, MIB, 0);
	cr_assert(s.fd != fd);
	cr_assert(fcntl(s.fd, F_GETFD) & FD_CLOEXEC);
	cr_assert(not(s.odirect));
	cr_assert(eq(int, fcntl(fd, F_GETFL), flags),
		  "O_DIRECT was set on the caller's description");
	swap_area_close(&s);
	cr_assert(eq(int, fcntl(fd, F_SETFL, O_APPEND), 0));
	must_refuse(NULL, fd, MIB, -EINVAL, "O_APPEND");
	close(fd);
}

Test(area, a_descriptor_that_can_not_hold_swap_is_refused)
{
	int p[2], fd = make_file(path, "precious", 0600), ro = open(path, O_RDONLY);

	cr_assert(eq(int, pipe(p), 0));
	must_refuse(NULL, p[0], 0, -EINVAL, "is a fifo");
	must_refuse(NULL, ro, 0, -EINVAL, "not open for reading and writing");
	close(ro);
	must_refuse(NULL, ro, 0, -EBADF, "Bad file descriptor");
	cr_assert(eq(sz, (size_t)stat_of(fd).st_size, strlen("precious")));
	close(fd);
}

Test(area, the_same_descriptor_can_not_serve_two_areas)
{
	struct swap_area s;
	int fd = make_file(path, "", 0600);

	must_open(&s, NULL, fd, MIB, 0);
	must_refuse(NULL, fd, MIB, -EBUSY, "is locked");
	must_refuse(path, 0, MIB, -EBUSY, "is locked");
	cr_assert(eq(sz, (size_t)stat_of(s.fd).st_size, MIB));
	swap_area_close(&s);
	close(fd);
}

/* --- area: a block device --- */

Test(area, a_block_device_is_used_whole_and_by_one_at_a_time)
{
	int backing = make_file(path, "", 0600), fd, holder;
	struct swap_area s;
	char name[32];

	cr_assert(eq(int, ftruncate(backing, (off_t)(MIB + 5 * PAGE_SIZE)), 0));
	fd = make_loop(backing, name);
	must_open(&s, name, 0, 0, 0);
	cr_assert(s.fixed);
	cr_assert(eq(sz, s.nslots, 261));
	cr_assert(eq(sz, swap_area_max(&s), 261));
	cr_assert(eq(int, swap_area_grow(&s, 262), -ENOSPC));
	must_refuse(name, 0, 0, -EBUSY, "the device is in use");
	must_refuse(NULL, fd, 0, -EBUSY, "the device is in use");
	swap_area_close(&s);

	must_open(&s, NULL, fd, MIB, 0);
	cr_assert(eq(sz, s.nslots, 256));
	swap_area_close(&s);

	must_refuse(name, 0, 2 * MIB, -ENOSPC, "less than the 2097152 asked for");
	holder = open(name, O_RDWR | O_EXCL); /* as a mount does */
	cr_assert(holder >= 0, "%s", strerror(errno));
	must_refuse(name, 0, 0, -EBUSY, "the device is in use");
	close(holder);
	close(fd);
	close(backing);
}

/* --- polling --- */

static uint64_t clock_now;

static uint64_t
hand_clock(void)
{
	return clock_now;
}

static void
clock_down(void)
{
	test_clock = NULL;
}

TestSuite(polling, .fini = clock_down, .timeout = 60);

/* One wait: looks every `step` ns until found at `done`.  Returns how many. */
static unsigned
looks(struct polling *pl, uint64_t step, uint64_t done)
{
	const uint64_t begin = clock_now;
	struct polling_turn t;
	unsigned n = 0;

	test_clock = hand_clock;
	if (polling_begin(pl)) {
		polling_start(&t);
		for (n = 1; clock_now - begin < done; n++) {
			clock_now += step;
			if (clock_now - begin < done && !polling_again(pl, &t))
				break;
		}
		if (clock_now - begin >= done)
			polling_found(pl);
	}
	polling_end(pl);
	return n;
}

/* How many waits in a row do not poll. */
static unsigned
skipped(struct polling *pl)
{
	unsigned n = 0;

	while (looks(pl, 1000, 60000) == 0)
		n++;
	return n;
}

Test(lingering, is_what_was_under_way_at_the_last_look_and_still_is)
{
	struct swap_io a = { 0 }, b = { 0 };

	cr_assert(swap_io_lingers() == false, "nothing is under way");
	swap_io_depart(&a);
	cr_assert(swap_io_lingers() == false, "it was not there at the last look");
	cr_assert(swap_io_lingers());
	swap_io_depart(&b);
	swap_io_return(&a);
	cr_assert(swap_io_lingers() == false, "that of the last look has returned");
	cr_assert(swap_io_lingers(), "and now it is the other");
	swap_io_return(&b);
	cr_assert(swap_io_lingers() == false);
}

Test(lingering, is_not_forgotten_however_long_it_lasts)
{
	struct swap_io io = { 0 };
	unsigned times = 0;

	swap_io_depart(&io);
	for (unsigned i = 0; i < 100; i++)
		times += swap_io_lingers();
	cr_assert_geq(times, 80u);
	swap_io_return(&io);
	cr_assert(swap_io_lingers() == false);
}

Test(polling, a_read_that_comes_soon_is_looked_for_until_it_is_there)
{
	struct polling pl;

	polling_init(&pl, 200);
	for (unsigned i = 0; i < 1000; i++)
		cr_assert(eq(uint, looks(&pl, 1000, 60000), 61));
	cr_assert(eq(uint, atomic_load(&pl.waiting), 0));
}

Test(polling, where_others_want_the_cpu_it_stops_longer_and_longer)
{
	struct polling pl;
	unsigned was = 0;

	polling_init(&pl, 200);
	for (unsigned i = 0; i < 12; i++) {
		/* A look that takes 3 ms: somebody else has been on. */
		const unsigned n = looks(&pl, 3000000, 10000000);
		const unsigned penalty = atomic_load(&pl.skip);

		cr_assert(eq(uint, n, 1));
		cr_assert(ge(uint, penalty, MAX(was, 16)));
		cr_assert(le(uint, penalty, 4096));
		/* Served without a look; then the next may. */
		for (unsigned k = 0; k < penalty; k++)
			cr_assert(eq(uint, looks(&pl, 1000, 60000), 0));
		was = penalty;
	}
	cr_assert(eq(uint, was, 4096));
	/* Once it pays again it is forgotten by and by. */
	for (unsigned i = 0; i < 13; i++)
		cr_assert(eq(uint, looks(&pl, 1000, 60000), 61));
	looks(&pl, 3000000, 10000000);
	cr_assert(eq(uint, skipped(&pl), 16));
}

Test(polling, a_slow_disk_is_not_polled)
{
	struct polling pl;
	unsigned total = 0;

	polling_init(&pl, 200);
	for (unsigned i = 0; i < 10000; i++)
		total += looks(&pl, 1000, 8000000);
	/* 200 looks each, but of the 10,000 waits only one in thousands. */
	cr_assert(le(uint, total, 12 * 201));
}

Test(polling, no_more_threads_look_than_there_are_cpus)
{
	struct polling pl;

	polling_init(&pl, 200);
	cr_assert(ge(uint, pl.ncpus, 1));
	for (unsigned i = 0; i < pl.ncpus; i++)
		cr_assert(polling_begin(&pl));
	cr_assert(not(polling_begin(&pl)));
	polling_end(&pl);
	polling_end(&pl);
	cr_assert(polling_begin(&pl));
	for (unsigned i = 0; i < pl.ncpus; i++)
		polling_end(&pl);
	cr_assert(eq(uint, atomic_load(&pl.waiting), 0));
}

Test(polling, without_a_limit_nobody_looks)
{
	struct polling pl;

	polling_init(&pl, 0);
	cr_assert(eq(uint, looks(&pl, 1000, 60000), 0));
}

/* --- engine: helpers --- */

TestSuite(uring, .init = rig_up, .fini = rig_down, .timeout = 60);

#define DEPTH 64

static const uint64_t masks[] = { 0, UP_MASK_RING_FLAGS, UP_MASK_ODIRECT,
				  UP_MASK_RING_FLAGS | UP_MASK_ODIRECT };

static struct io_engine *
must_watch(const struct swap_area *s, int watch_fd, int watch_too, uint64_t mask)
{
	struct io_engine *e;
	int r = io_engine_uring_create(&e, s, watch_fd, watch_too, DEPTH, mask, &logger);

	if (r == -ENOSYS || r == -EPERM)
		skip("no io_uring here: %s", log_text);
	cr_assert(eq(int, r, 0), "log:\n%s", log_text);
	cr_assert(eq(uint, e->depth, DEPTH));
	cr_assert(eq(uint, e->inflight, 0));
	return e;
}

static struct io_engine *
must_create(const struct swap_area *s, int watch_fd, uint64_t mask)
{
	return must_watch(s, watch_fd, -1, mask);
}

/* Run `fn` over an area of 16 MiB and its engine, in each of the ways that there are. */
static void
each_way(void (*fn)(struct swap_area *, struct io_engine *))
{
	for (unsigned i = 0; i < ARRAY_SIZE(masks); i++) {
		struct swap_area s;
		struct io_engine *e;

		must_open(&s, path, 0, 16 * MIB, masks[i]);
		e = must_create(&s, -1, masks[i]);
		fn(&s, e);
		e->ops->destroy(e);
		swap_area_close(&s);
	}
}

/* The same, and with those of threads that serve themselves: one that needs no io_uring, and one that polls. */
static void
each_engine(void (*fn)(struct swap_area *, struct io_engine *))
{
	struct io_uring_engine u;
	struct io_blocking b;
	struct polling pl;
	struct swap_area s;
	int r;

	must_open(&s, path, 0, 16 * MIB, 0);
	io_engine_blocking_init(&b, &s, DEPTH);
	fn(&s, &b.engine);
	b.engine.ops->destroy(&b.engine);
	polling_init(&pl, 200);
	r = io_engine_uring_init(&u, &s, DEPTH, 0, &pl);
	if (r == 0) {
		fn(&s, &u.engine);
		cr_assert(eq(uint, atomic_load(&pl.waiting), 0));
		cr_assert(eq(uint, u.urgent, 0));
		u.engine.ops->destroy(&u.engine);
	}
	swap_area_close(&s);
	/* An area in the page cache, before 5.19. */
	cr_assert(r == 0 || (r == -EOPNOTSUPP && !s.odirect), "%s", strerror(-r));
	each_way(fn);
}

static char *
pages(size_t n)
{
	char *p = aligned_alloc(PAGE_SIZE, n * PAGE_SIZE);

	cr_assert(p != NULL);
	return p;
}

/* Every 64-bit word of a page says whose page it is. */
static void
fill(char *page, uint64_t tag)
{
	for (size_t i = 0; i < PAGE_SIZE; i += sizeof tag)
		memcpy(page + i, &tag, sizeof tag);
}

static bool
filled(const char *page, uint64_t tag)
{
	for (size_t i = 0; i < PAGE_SIZE; i += sizeof tag)
		if (memcmp(page + i, &tag, sizeof tag) != 0)
			return false;
	return true;
}

/* A request for `n` pages in one piece. */
static void
request(struct swap_io *io, enum swap_op op, slot_t slot, char *memory, unsigned n)
{
	*io = (struct swap_io){ .op = op,
				.slot = slot,
				.n = n,
				.niov = 1,
				.owner = memory,
				.urgent = op == SWAP_READ };
	io->iov[0] = (struct iovec){ .iov_base = memory, .iov_len = n * PAGE_SIZE };
}

static void
submit(struct io_engine *e, struct swap_io *io)
{
	cr_assert(eq(int, e->ops->submit(e, io), 0));
}

/* Wait for all that is in flight.  Returns how many came. */
static unsigned
reap_all(struct io_engine *e)
{
	const uint64_t end = now_ns() + PATIENCE;
	unsigned n = 0;

	while (e->inflight > 0) {
		struct io_events ev;

		e->ops->wait(e, SEC, &ev);
		for (struct swap_io *io = ev.completed; io != NULL; io = io->next)
			n++;
		cr_assert(now_ns() < end, "%u requests never came back", e->inflight);
	}
	return n;
}

static int
run_one(struct io_engine *e, enum swap_op op, slot_t slot, char *memory, unsigned n)
{
	struct swap_io io;

	request(&io, op, slot, memory, n);
	submit(e, &io);
	cr_assert(eq(uint, reap_all(e), 1));
	return io.result;
}

/* --- engine: requests --- */

static void
scattered(struct swap_area *s, struct io_engine *e)
{
	char *out = pages(CLUSTER_MAX), *in = pages(CLUSTER_MAX);

	(void)s;
	for (unsigned n = 1; n <= CLUSTER_MAX; n = n < 4 ? n + 1 : n * 2) {
		struct swap_io w, r;

		/* Written from single pages, backwards in memory; read in pieces of 1, 2, 3... */
		w = (struct swap_io){ .op = SWAP_WRITE, .slot = 100 + n, .n = n, .niov = n };
		for (unsigned i = 0; i < n; i++) {
			fill(out + i * PAGE_SIZE, n * 1000 + (n - 1 - i));
			w.iov[n - 1 - i] = (struct iovec){ out + i * PAGE_SIZE, PAGE_SIZE };
		}
		submit(e, &w);
		cr_assert(eq(uint, reap_all(e), 1));
		cr_assert(eq(int, w.result, 0));

		r = (struct swap_io){ .op = SWAP_READ, .slot = 100 + n, .n = n };
		for (unsigned i = 0; i < n; r.niov++) {
			unsigned k = MIN(r.niov + 1, n - i);

			r.iov[r.niov] = (struct iovec){ in + i * PAGE_SIZE, k * PAGE_SIZE };
			i += k;
		}
		memset(in, 0xee, CLUSTER_MAX * PAGE_SIZE);
		submit(e, &r);
		cr_assert(eq(uint, reap_all(e), 1));
		cr_assert(eq(int, r.result, 0));
		for (unsigned i = 0; i < n; i++)
			cr_assert(filled(in + i * PAGE_SIZE, n * 1000 + i), "page %u of %u", i, n);
	}
	free(out);
	free(in);
}

Test(uring, what_was_written_comes_back_however_it_is_cut)
{
	each_engine(scattered);
}

static void
neighbours(struct swap_area *s, struct io_engine *e)
{
	char *out = pages(4), *in = pages(4);
	char raw[16];

	for (unsigned i = 0; i < 4; i++)
		fill(out + i * PAGE_SIZE, 40 + i);
	cr_assert(eq(int, run_one(e, SWAP_WRITE, 1000, out, 4), 0));
	fill(out, 99);
	cr_assert(eq(int, run_one(e, SWAP_WRITE, 1002, out, 1), 0));
	cr_assert(eq(int, run_one(e, SWAP_READ, 1000, in, 4), 0));
	for (unsigned i = 0; i < 4; i++)
		cr_assert(filled(in + i * PAGE_SIZE, i == 2 ? 99 : 40 + i), "slot %u", 1000 + i);
	/* And it is at slot * 4096 of the file, where a person would look for it. */
	if (!s->odirect) {
		cr_assert(pread(s->fd, raw, 8, 1003 * (off_t)PAGE_SIZE) == 8);
		cr_assert(eq(chr, raw[0], 43));
	}
	free(out);
	free(in);
}

Test(uring, a_write_touches_its_own_slots_only)
{
	each_engine(neighbours);
}

static void
crowd(struct swap_area *s, struct io_engine *e)
{
	struct swap_io *io = calloc(DEPTH + 1, sizeof *io);
	char *memory = pages(DEPTH * 4);

	(void)s;
	for (unsigned round = 0; round < 8; round++) {
		const enum swap_op op = round % 2 ? SWAP_READ : SWAP_WRITE;
		struct io_events ev;
		unsigned left = DEPTH;
		uint64_t end;

		for (unsigned i = 0; i < DEPTH; i++) {
			for (unsigned j = 0; j < 4; j++)
				fill(memory + (i * 4 + j) * PAGE_SIZE,
				     op == SWAP_WRITE ? round * 10000 + i * 4 + j : 0);
			request(&io[i], op, (i * 37 % DEPTH) * 4, memory + i * 4 * PAGE_SIZE, 4);
			submit(e, &io[i]);
		}
		request(&io[DEPTH], SWAP_READ, 0, memory, 1);
		cr_assert(eq(int, e->ops->submit(e, &io[DEPTH]), -EBUSY), "more than the depth");
		cr_assert(eq(uint, e->inflight, DEPTH));

		end = now_ns() + PATIENCE;
		while (left > 0) {
			struct swap_io *next;

			e->ops->wait(e, SEC, &ev);
			for (struct swap_io *c = ev.completed; c != NULL; c = next) {
				next = c->next;
				cr_assert(c >= io && c < io + DEPTH && c->owner != NULL,
					  "reaped twice");
				cr_assert(c->owner == memory + (c - io) * 4 * (ptrdiff_t)PAGE_SIZE);
				cr_assert(eq(int, c->result, 0));
				c->owner = NULL;
				left--;
			}
			cr_assert(now_ns() < end, "%u of %u never came back", left, DEPTH);
		}
		cr_assert(eq(uint, e->inflight, 0));
		for (unsigned i = 0; i < DEPTH * 4; i++)
			cr_assert(filled(memory + i * PAGE_SIZE, (round & ~1u) * 10000 + i),
				  "page %u", i);
	}
	free(memory);
	free(io);
}

Test(uring, as_many_requests_as_the_queue_is_deep_all_come_back_once)
{
	each_engine(crowd);
}

static void
early(struct swap_area *s, struct io_engine *e)
{
	const uint64_t end = now_ns() + PATIENCE;
	char *memory = pages(1), *seen = pages(1);
	struct swap_io io;

	fill(memory, 4711);
	request(&io, SWAP_WRITE, 9, memory, 1);
	submit(e, &io);
	e->ops->flush(e);
	do {
		cr_assert(pread(s->fd, seen, PAGE_SIZE, 9 * (off_t)PAGE_SIZE) ==
			  (ssize_t)PAGE_SIZE);
		cr_assert(now_ns() < end, "flush() did not start it");
	} while (!filled(seen, 4711));
	cr_assert(eq(uint, e->inflight, 1));
	cr_assert(eq(uint, reap_all(e), 1));
	cr_assert(eq(int, io.result, 0));
	cr_assert(eq(int, run_one(e, SWAP_WRITE, 9, memory, 1), 0));
	e->ops->flush(e); /* nothing to start is fine */
	free(memory);
	free(seen);
}

Test(uring, flush_starts_a_request_without_a_wait)
{
	each_way(early);
}

static void
beyond(struct swap_area *s, struct io_engine *e)
{
	const slot_t end = (slot_t)s->nslots;
	char *memory = pages(8);

	cr_assert(eq(int, run_one(e, SWAP_READ, end, memory, 1), -EIO));
	cr_assert(eq(int, run_one(e, SWAP_READ, end + 1000000, memory, 8), -EIO));
	cr_assert(eq(int, run_one(e, SWAP_READ, SLOT_NONE - 1, memory, 1), -EIO));
	cr_assert(eq(int, run_one(e, SWAP_READ, end - 3, memory, 8), -EIO),
		  "part of it is there, part is not");
	cr_assert(eq(int, run_one(e, SWAP_READ, end - 8, memory, 8), 0));
	free(memory);
}

Test(uring, a_read_past_the_end_of_the_file_is_an_error)
{
	each_engine(beyond);
}

Test(uring, a_read_that_ends_within_a_page_is_an_error)
{
	for (unsigned i = 0; i < ARRAY_SIZE(masks); i++) {
		struct swap_area s;
		struct io_engine *e;
		char *memory = pages(4);

		must_open(&s, path, 0, MIB, masks[i]);
		e = must_create(&s, -1, masks[i]);
		cr_assert(eq(int, ftruncate(s.fd, 10 * (off_t)PAGE_SIZE + 100), 0));
		cr_assert(eq(int, run_one(e, SWAP_READ, 8, memory, 4), -EIO), "way %u", i);
		cr_assert(eq(int, run_one(e, SWAP_READ, 8, memory, 2), 0), "way %u", i);
		e->ops->destroy(e);
		swap_area_close(&s);
		free(memory);
	}
}

/*
 * The file ends in the middle of the request, and when the short read is reaped it does not
 * any more.  From the page cache the read is over when flush() returns; from the disk it
 * is very likely over when another one is.  Were it not, the data would have to be right all
 * the same.
 */
static void
shortened(struct swap_area *s, struct io_engine *e)
{
	char *out = pages(8), *in = pages(8), *other = pages(1);

	for (unsigned i = 0; i < 8; i++)
		fill(out + i * PAGE_SIZE, 800 + i);
	for (unsigned niov = 1; niov <= 4; niov++) {
		struct swap_io io;

		cr_assert(pwrite(s->fd, out, 8 * PAGE_SIZE, 0) == (ssize_t)(8 * PAGE_SIZE));
		cr_assert(eq(int, ftruncate(s->fd, 3 * (off_t)PAGE_SIZE + 50), 0));

		request(&io, SWAP_READ, 0, in, 8);
		io.niov = niov; /* 8; 1 + 7; 1 + 1 + 6; 1 + 1 + 1 + 5 */
		for (unsigned i = 0; i < niov; i++)
			io.iov[i] = (struct iovec){ in + i * PAGE_SIZE,
						    (i < niov - 1 ? 1 : 9 - niov) * PAGE_SIZE };
		memset(in, 0xee, 8 * PAGE_SIZE);
		submit(e, &io);
		e->ops->flush(e);
		for (unsigned i = 0; i < 4; i++)
			cr_assert(pread(s->fd, other, PAGE_SIZE, 0) == (ssize_t)PAGE_SIZE);
		cr_assert(pwrite(s->fd, out, 8 * PAGE_SIZE, 0) == (ssize_t)(8 * PAGE_SIZE));
		cr_assert(eq(uint, reap_all(e), 1));
		cr_assert(eq(int, io.result, 0), "in %u pieces", niov);
		for (unsigned i = 0; i < 8; i++)
			cr_assert(filled(in + i * PAGE_SIZE, 800 + i), "page %u, in %u pieces", i,
				  niov);
	}
	free(out);
	free(in);
	free(other);
}

Test(uring, a_short_transfer_is_continued_where_it_stopped)
{
	each_engine(shortened);
}

static void
too_big(struct swap_area *s, struct io_engine *e)
{
	struct rlimit lim;
	char *memory = pages(8), *in = pages(4);

	for (unsigned i = 0; i < 8; i++)
		fill(memory + i * PAGE_SIZE, 70 + i);
	cr_assert(eq(int, getrlimit(RLIMIT_FSIZE, &lim), 0));
	lim.rlim_cur = 104 * PAGE_SIZE;
	cr_assert(eq(int, setrlimit(RLIMIT_FSIZE, &lim), 0));
	cr_assert(eq(int, run_one(e, SWAP_WRITE, 100, memory, 8), -EFBIG));
	cr_assert(eq(int, run_one(e, SWAP_WRITE, 2000, memory, 1), -EFBIG));
	cr_assert(eq(int, run_one(e, SWAP_WRITE, 100, memory, 4), 0));
	lim.rlim_cur = lim.rlim_max;
	cr_assert(eq(int, setrlimit(RLIMIT_FSIZE, &lim), 0));
	cr_assert(eq(int, run_one(e, SWAP_READ, 100, in, 4), 0));
	for (unsigned i = 0; i < 4; i++)
		cr_assert(filled(in + i * PAGE_SIZE, 70 + i), "page %u", i);
	(void)s;
	free(memory);
	free(in);
}

Test(uring, a_write_that_the_system_refuses_is_its_error_and_the_engine_lives_on)
{
	struct rlimit lim;

	signal(SIGXFSZ, SIG_IGN);
	cr_assert(eq(int, getrlimit(RLIMIT_FSIZE, &lim), 0));
	if (lim.rlim_max != RLIM_INFINITY)
		skip("RLIMIT_FSIZE is taken");
	each_engine(too_big);
}

Test(uring, a_write_to_a_full_file_system_is_ENOSPC)
{
	struct swap_area s = { .fd = -1 };
	struct io_engine *e;
	char *memory = pages(64);

	private_mount("tmpfs", "tmpfs", "size=128k");
	memset(memory, 7, 64 * PAGE_SIZE);
	s.fd = make_file(path, "", 0600); /* with nothing allocated, as no area would */
	e = must_create(&s, -1, 0);
	cr_assert(eq(int, run_one(e, SWAP_WRITE, 0, memory, 64), -ENOSPC));
	cr_assert(eq(int, run_one(e, SWAP_WRITE, 0, memory, 8), 0), "there is room for 8");
	e->ops->destroy(e);
	close(s.fd);
	free(memory);
}

/* A loop device over a file that has become shorter: the medium is gone from under it. */
Test(uring, a_broken_medium_is_EIO_on_its_own_slots_only)
{
	int backing = make_file(path, "", 0600), fd;
	struct swap_area s;
	struct io_engine *e;
	char name[32], *memory = pages(8);

	cr_assert(eq(int, ftruncate(backing, (off_t)(4 * MIB)), 0));
	fd = make_loop(backing, name);
	must_open(&s, name, 0, 0, 0);
	if (!s.odirect)
		skip("no O_DIRECT on loop devices: the page cache would answer");
	e = must_create(&s, -1, 0);
	memset(memory, 5, 8 * PAGE_SIZE);
	cr_assert(eq(int, run_one(e, SWAP_WRITE, 0, memory, 8), 0));
	cr_assert(eq(int, run_one(e, SWAP_WRITE, 512, memory, 8), 0));
	cr_assert(eq(int, ftruncate(backing, (off_t)MIB), 0));
	cr_assert(eq(int, run_one(e, SWAP_READ, 512, memory, 8), -EIO));
	cr_assert(eq(int, run_one(e, SWAP_READ, 0, memory, 8), 0));
	e->ops->destroy(e);
	swap_area_close(&s);
	close(fd);
	close(backing);
	free(memory);
}

/* --- engine: waiting --- */

static void
times_out(struct swap_area *s, struct io_engine *e)
{
	static const int64_t ns[] = { 1, 1000000, 30000000 };
	struct io_events ev;
	uint64_t t;

	(void)s;
	for (unsigned i = 0; i < ARRAY_SIZE(ns); i++) {
		memset(&ev, 0xff, sizeof ev);
		t = now_ns();
		e->ops->wait(e, ns[i], &ev);
		t = now_ns() - t;
		cr_assert(ge(u64, t, (uint64_t)ns[i]), "it came back early");
		cr_assert(lt(u64, t, (uint64_t)(ns[i] + PATIENCE)), "it overslept");
		cr_assert(ev.completed == NULL && !ev.readable && !ev.kicked);
	}
	/* Only to look. */
	t = now_ns();
	for (unsigned i = 0; i < 100; i++) {
		memset(&ev, 0xff, sizeof ev);
		e->ops->wait(e, 0, &ev);
		cr_assert(ev.completed == NULL && !ev.readable && !ev.kicked);
	}
	cr_assert(lt(u64, now_ns() - t, (uint64_t)PATIENCE));
}

Test(uring, a_wait_for_nothing_times_out_and_not_before)
{
	each_way(times_out);
}

static atomic_uint alarms;

static void
on_alarm(int sig)
{
	(void)sig;
	alarms++;
}

static void
interrupted(struct swap_area *s, struct io_engine *e)
{
	struct itimerval every = { .it_interval.tv_usec = 2000, .it_value.tv_usec = 2000 };
	struct sigaction sa = { .sa_handler = on_alarm };
	struct io_events ev;
	uint64_t t = now_ns();

	(void)s;
	alarms = 0;
	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
	e->ops->wait(e, 50000000, &ev);
	every = (struct itimerval){ 0 };
	setitimer(ITIMER_REAL, &every, NULL);
	cr_assert(ge(u64, now_ns() - t, 50000000), "a signal ended the wait");
	cr_assert(gt(uint, alarms, 0));
	cr_assert(ev.completed == NULL && !ev.readable && !ev.kicked);
}

Test(uring, a_signal_does_not_end_a_wait)
{
	each_way(interrupted);
}

static void
look(struct swap_area *s, struct io_engine *e)
{
	const uint64_t end = now_ns() + PATIENCE;
	char *memory = pages(1);
	struct swap_io io;
	struct io_events ev;

	(void)s;
	fill(memory, 1);
	request(&io, SWAP_WRITE, 3, memory, 1);
	submit(e, &io);
	do {
		e->ops->wait(e, 0, &ev);
		cr_assert(now_ns() < end, "looking does not see a completion");
	} while (ev.completed == NULL);
	cr_assert(ev.completed == &io && io.next == NULL);
	cr_assert(eq(int, io.result, 0));
	free(memory);
}

Test(uring, a_look_starts_and_finds_requests_too)
{
	each_way(look);
}

struct kicker {
	struct io_engine *e;
	sem_t go;
	atomic_ulong asked; /* raised before each kick */
	atomic_ulong *seen;
	unsigned long n;
};

static void *
kick_on_demand(void *arg)
{
	struct kicker *k = arg;

	for (unsigned long i = 0; i < k->n; i++) {
		while (sem_wait(&k->go) < 0)
			;
		k->e->ops->kick(k->e);
	}
	return NULL;
}

static void
one_by_one(struct swap_area *s, struct io_engine *e)
{
	struct kicker k = { .e = e, .n = 2000 };
	struct io_events ev;
	pthread_t t;

	(void)s;
	sem_init(&k.go, 0, 0);
	cr_assert(eq(int, pthread_create(&t, NULL, kick_on_demand, &k), 0));
	for (unsigned long i = 0; i < k.n; i++) {
		sem_post(&k.go);
		e->ops->wait(e, i % 2 ? PATIENCE : -1, &ev);
		cr_assert(ev.kicked, "kick %lu was lost", i);
		cr_assert(ev.completed == NULL && !ev.readable);
	}
	pthread_join(t, NULL);
	e->ops->wait(e, 0, &ev);
	cr_assert(not(ev.kicked), "one kick too many");
	sem_destroy(&k.go);
}

Test(uring, a_kick_from_another_thread_ends_the_wait)
{
	each_way(one_by_one);
}

struct pest {
	struct io_engine *e;
	sem_t enough;
};

/* Kicks when a wait is about to end by itself, and at last one that does not end. */
static void *
kick_at_any_moment(void *arg)
{
	struct pest *p = arg;
	struct timespec end;
	unsigned seed = 1;

	/* When it kicks is what is tested: anywhere in two waits. */
	for (unsigned i = 0; i < 3000; i++) {
		const struct timespec ts = { .tv_nsec = rand_r(&seed) % 400000 };

		nanosleep(&ts, NULL);
		p->e->ops->kick(p->e);
	}
	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += 2 * PATIENCE / SEC;
	while (sem_timedwait(&p->enough, &end) < 0 && errno == EINTR)
		;
	p->e->ops->kick(p->e);
	return NULL;
}

static void
pestered(struct swap_area *s, struct io_engine *e)
{
	struct pest p = { .e = e };
	const uint64_t end = now_ns() + 1500000000u;
	struct io_events ev;
	pthread_t t;

	(void)s;
	sem_init(&p.enough, 0, 0);
	cr_assert(zero(int, pthread_create(&t, NULL, kick_at_any_moment, &p)));
	while (now_ns() < end) {
		const uint64_t t0 = now_ns();

		e->ops->wait(e, 200000, &ev);
		cr_assert(lt(u64, now_ns() - t0, (uint64_t)PATIENCE), "a wait did not end");
	}
	sem_post(&p.enough);
	pthread_join(t, NULL);
	sem_destroy(&p.enough);
}

Test(uring, a_wait_that_a_kick_meets_at_its_end_ends)
{
	each_way(pestered);
}

/* Says what it wants, kicks, and does not go on before the owner has seen it. */
static void *
kick_and_insist(void *arg)
{
	struct kicker *k = arg;

	for (unsigned long i = 1; i <= k->n; i++) {
		atomic_store(&k->asked, i);
		k->e->ops->kick(k->e);
		while (atomic_load(k->seen) < i)
			sched_yield();
	}
	return NULL;
}

static void
all_at_once(struct swap_area *s, struct io_engine *e)
{
	static atomic_ulong seen[3];
	struct kicker k[3];
	pthread_t t[3];
	unsigned done = 0;

	(void)s;
	for (unsigned i = 0; i < 3; i++) {
		seen[i] = 0;
		k[i] = (struct kicker){ .e = e, .n = 2000, .seen = &seen[i] };
		cr_assert(eq(int, pthread_create(&t[i], NULL, kick_and_insist, &k[i]), 0));
	}
	while (done < 3) {
		struct io_events ev;

		e->ops->wait(e, PATIENCE, &ev);
		cr_assert(ev.kicked, "a kick was lost: %lu %lu %lu were seen", seen[0], seen[1],
			  seen[2]);
		done = 0;
		for (unsigned i = 0; i < 3; i++) {
			atomic_store(&seen[i], atomic_load(&k[i].asked));
			done += atomic_load(&seen[i]) == k[i].n;
		}
	}
	for (unsigned i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
}

Test(uring, no_kick_is_lost_when_several_threads_kick)
{
	each_way(all_at_once);
}

static void
many_as_one(struct swap_area *s, struct io_engine *e)
{
	struct io_events ev;

	(void)s;
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < 1000; i++)
			e->ops->kick(e);
		e->ops->wait(e, PATIENCE, &ev);
		cr_assert(ev.kicked, "round %u", round);
		e->ops->wait(e, 1000000, &ev);
		cr_assert(not(ev.kicked), "reported twice in round %u", round);
	}
}

Test(uring, kicks_before_a_wait_are_kept_and_count_as_one)
{
	each_way(many_as_one);
}

static void
idle(struct swap_area *s, struct io_engine *e)
{
	struct timespec before, after;
	struct io_events ev;

	(void)s;
	for (unsigned i = 0; i < 3; i++) {
		e->ops->kick(e);
		e->ops->wait(e, PATIENCE, &ev);
	}
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
	e->ops->wait(e, 200000000, &ev);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
	cr_assert(lt(i64, (after.tv_sec - before.tv_sec) * SEC + after.tv_nsec - before.tv_nsec,
		     50000000),
		  "it spins");
}

Test(uring, a_wait_after_kicks_does_not_spin)
{
	each_way(idle);
}

/* --- engine: the watched descriptor --- */

static void
watch(int rd, int wr, int watched, bool too, uint64_t mask)
{
	struct swap_area s = { .fd = -1 };
	struct io_engine *e = must_watch(&s, too ? -1 : watched, too ? watched : -1, mask);
	uint64_t word = 1;
	struct io_events ev;

	for (unsigned round = 0; round < 100; round++) {
		cr_assert(write(wr, &word, sizeof word) == (ssize_t)sizeof word);
		e->ops->wait(e, PATIENCE, &ev);
		cr_assert(ev.readable, "round %u", round);
		cr_assert(ev.completed == NULL && !ev.kicked);
		cr_assert(read(rd, &word, sizeof word) == (ssize_t)sizeof word);
		if (round % 10 == 0) {
			e->ops->wait(e, 1000000, &ev); /* may be said once more, but not for ever */
			e->ops->wait(e, 1000000, &ev);
			cr_assert(not(ev.readable), "nothing is there in round %u", round);
		}
	}
	e->ops->destroy(e);
}

Test(uring, a_watched_descriptor_is_reported_each_time_it_becomes_readable)
{
	for (unsigned i = 0; i < 4; i++) {
		const bool too = i >= 2;
		int p[2], fd;

		cr_assert(eq(int, pipe2(p, O_NONBLOCK | O_CLOEXEC), 0));
		watch(p[0], p[1], p[0], too, masks[i % 2]);
		close(p[0]);
		close(p[1]);
		fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		watch(fd, fd, fd, too, masks[i % 2]);
		close(fd);
	}
}

Test(uring, several_descriptors_are_watched_through_one_epoll)
{
	for (unsigned i = 0; i < 2; i++) {
		const int ep = epoll_create1(EPOLL_CLOEXEC);
		int fd[2];

		for (unsigned k = 0; k < 2; k++) {
			struct epoll_event ev = { .events = EPOLLIN };

			fd[k] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
			cr_assert(eq(int, epoll_ctl(ep, EPOLL_CTL_ADD, fd[k], &ev), 0));
		}
		watch(fd[0], fd[0], ep, true, masks[i]);
		watch(fd[1], fd[1], ep, true, masks[i]);
		close(fd[0]);
		close(fd[1]);
		close(ep);
	}
}

Test(uring, a_watched_descriptor_that_was_readable_before_is_reported)
{
	for (unsigned i = 0; i < 2; i++) {
		struct swap_area s = { .fd = -1 };
		int fd = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
		struct io_engine *e = must_create(&s, fd, masks[i]);
		struct io_events ev;

		e->ops->wait(e, PATIENCE, &ev);
		cr_assert(ev.readable);
		/* Not read, and more comes: that is news too. */
		cr_assert(eq(int, eventfd_write(fd, 1), 0));
		e->ops->wait(e, PATIENCE, &ev);
		cr_assert(ev.readable);
		e->ops->destroy(e);
		close(fd);
	}
}

Test(uring, the_other_end_going_away_is_reported)
{
	for (unsigned i = 0; i < 2; i++) {
		struct swap_area s = { .fd = -1 };
		struct io_engine *e;
		struct io_events ev;
		int p[2];

		cr_assert(eq(int, pipe2(p, O_NONBLOCK | O_CLOEXEC), 0));
		e = must_create(&s, p[0], masks[i]);
		e->ops->wait(e, 0, &ev);
		cr_assert(not(ev.readable));
		close(p[1]);
		e->ops->wait(e, PATIENCE, &ev);
		cr_assert(ev.readable);
		e->ops->destroy(e);
		close(p[0]);
	}
}

Test(uring, a_descriptor_that_can_not_be_polled_is_left_to_its_reader)
{
	for (unsigned i = 0; i < 2; i++) {
		struct swap_area s = { .fd = -1 };
		int fd = make_file(path, "", 0600);
		struct io_engine *e = must_create(&s, fd, masks[i]);
		struct io_events ev;

		e->ops->wait(e, PATIENCE, &ev);
		cr_assert(ev.readable, "nobody would ever hear of it");
		e->ops->kick(e);
		e->ops->wait(e, PATIENCE, &ev);
		cr_assert(ev.kicked || ev.readable);
		e->ops->destroy(e);
		close(fd);
	}
}

Test(uring, one_wait_sees_all_three_kinds)
{
	for (unsigned i = 0; i < ARRAY_SIZE(masks); i++) {
		const uint64_t end = now_ns() + PATIENCE;
		int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		bool io_seen = false, readable = false, kicked = false;
		struct io_engine *e;
		struct swap_area s;
		struct swap_io io;
		char *memory = pages(1);

		must_open(&s, path, 0, MIB, masks[i]);
		e = must_create(&s, fd, masks[i]);
		fill(memory, 12);
		request(&io, SWAP_WRITE, 3, memory, 1);
		submit(e, &io);
		cr_assert(eq(int, eventfd_write(fd, 1), 0));
		e->ops->kick(e);
		while (!io_seen || !readable || !kicked) {
			struct io_events ev;

			e->ops->wait(e, SEC, &ev);
			io_seen |= ev.completed == &io;
			readable |= ev.readable;
			kicked |= ev.kicked;
			cr_assert(now_ns() < end, "io %d readable %d kicked %d", io_seen, readable,
				  kicked);
		}
		e->ops->destroy(e);
		swap_area_close(&s);
		close(fd);
		free(memory);
	}
}

/* --- engine: life --- */

/* A poll that is just being woken refuses to be cancelled; once that made destroy() hang. */
Test(uring, destroy_lets_go_of_the_watched_descriptor_at_once)
{
	const unsigned fds = count_fds();

	for (unsigned round = 0; round < 200; round++) {
		struct swap_area s = { .fd = -1 };
		struct io_engine *e;
		struct io_events ev;
		int p[2];

		cr_assert(eq(int, pipe2(p, O_NONBLOCK | O_CLOEXEC), 0));
		e = must_create(&s, p[0], masks[round % 2]);
		if (round % 4 >= 2)
			e->ops->wait(e, 0, &ev);
		cr_assert(write(p[1], "x", 1) == 1);
		e->ops->kick(e);
		if (round % 8 >= 4)
			e->ops->wait(e, PATIENCE, &ev);
		e->ops->kick(e);
		e->ops->destroy(e);
		close(p[0]);
		cr_assert(write(p[1], "x", 1) < 0 && errno == EPIPE,
			  "round %u: the ring still holds the other end", round);
		close(p[1]);
	}
	cr_assert(eq(uint, count_fds(), fds));
}

Test(uring, a_depth_out_of_range_is_refused)
{
	struct swap_area s = { .fd = -1 };
	struct io_engine *e = NULL;

	cr_assert(eq(int, io_engine_uring_create(&e, &s, -1, -1, 0, 0, &logger), -EINVAL));
	cr_assert(eq(int, io_engine_uring_create(&e, &s, -1, -1, 1000000, 0, &logger), -EINVAL));
	cr_assert(e == NULL);
	cr_assert(logged("E: io_uring: a depth of 1000000"));
}

static void
refused(int error, const char *why)
{
	const unsigned fds = count_fds();
	struct swap_area s = { .fd = -1 };
	struct io_engine *e = NULL;

	fail_syscall(__NR_io_uring_setup, 0, 0, error);
	cr_assert(eq(int, io_engine_uring_create(&e, &s, -1, -1, DEPTH, 0, &logger), -error));
	cr_assert(e == NULL);
	cr_assert(logged(why), "log:\n%s", log_text);
	cr_assert(eq(uint, count_fds(), fds));
}

Test(uring, without_permission_it_names_the_sysctl_and_the_filter)
{
	refused(EPERM, "kernel.io_uring_disabled");
	cr_assert(logged("must allow io_uring_setup"));
}

Test(uring, on_a_kernel_without_it_it_names_the_version)
{
	refused(ENOSYS, "Linux 5.10");
}

Test(uring, two_engines_share_an_area)
{
	struct swap_area s;
	struct io_engine *a, *b;
	char *memory = pages(2);

	must_open(&s, path, 0, MIB, 0);
	a = must_create(&s, -1, 0);
	b = must_create(&s, -1, 0);
	fill(memory, 21);
	cr_assert(eq(int, run_one(a, SWAP_WRITE, 200, memory, 1), 0));
	cr_assert(eq(int, run_one(b, SWAP_READ, 200, memory + PAGE_SIZE, 1), 0));
	cr_assert(filled(memory + PAGE_SIZE, 21));
	a->ops->destroy(a);
	b->ops->destroy(b);
	swap_area_close(&s);
	free(memory);
}

/* --- what a process that was killed has left --- */

Test(swap, a_file_is_reopened_with_what_is_in_it)
{
	struct swap_area before, after;
	char out[PAGE_SIZE], in[PAGE_SIZE];
	slot_t first;

	rig_up();
	cr_assert(zero(int, swap_area_open(&before, &heap.arena, path, 0, 0, 0, &logger)));
	cr_assert(zero(int, swap_area_grow(&before, 128)));
	cr_assert(eq(sz, swap_alloc(&before, 3, &first), 3));
	memset(out, 0x5a, sizeof out);
	/* Not through its own descriptor, which may be O_DIRECT. */
	cr_assert(eq(int, fcntl(before.fd, F_SETFL, 0), 0));
	cr_assert(eq(sz, (size_t)pwrite(before.fd, out, sizeof out, (off_t)first << PAGE_SHIFT),
		     sizeof out));
	/* As it is when its process is gone: no close of ours, but that of the lock. */
	close(before.fd);

	cr_assert(zero(int,
		       swap_area_open_shared(&after, &heap.arena, path, 0, 0, 0, true, &logger)));
	cr_assert(ge(sz, after.nslots, 128));
	cr_assert(swap_claim(&after, first));
	cr_assert(not(swap_claim(&after, first)));
	cr_assert(not(swap_claim(&after, (slot_t)after.nslots)));
	cr_assert(eq(sz, after.nused, 1));
	cr_assert(eq(int, fcntl(after.fd, F_SETFL, 0), 0));
	cr_assert(eq(sz, (size_t)pread(after.fd, in, sizeof in, (off_t)first << PAGE_SHIFT),
		     sizeof in));
	cr_assert(zero(int, memcmp(in, out, sizeof in)));
	/* What is not claimed is handed out, and what is claimed is not. */
	for (slot_t slot; swap_alloc(&after, 1, &slot) == 1;)
		cr_assert(ne(u32, slot, first));
	swap_free(&after, 0, after.nslots);
	swap_area_close(&after);
	runmap_fini(&before.slots);
	rig_down();
}

static bool
is_locked(void)
{
	const int fd = open(path, O_RDWR | O_CLOEXEC);
	bool locked;

	cr_assert(ge(int, fd, 0));
	locked = flock(fd, LOCK_EX | LOCK_NB) < 0;
	close(fd);
	return locked;
}

Test(swap, an_area_that_is_shared_is_held_by_its_rings)
{
	for (unsigned share = 0; share < 2; share++) {
		struct swap_area s;
		struct io_engine *e;

		rig_up();
		cr_assert(
			zero(int, share ? swap_area_open_shared(&s, &heap.arena, path, 0, 0, 0,
								false, &logger)
					: swap_area_open(&s, &heap.arena, path, 0, 0, 0, &logger)));
		cr_assert(zero(int, io_engine_uring_create(&e, &s, -1, -1, 4, 0, &logger)));
		/* As it is when its process is gone. */
		close(s.fd);
		cr_assert(eq(int, is_locked(), share));
		e->ops->destroy(e);
		cr_assert(not(is_locked()));
		runmap_fini(&s.slots);
		rig_down();
	}
}

/* Somebody else's descriptor, which goes while it is waited for. */
static void *
let_go(void *fd)
{
	const struct timespec moment = { .tv_nsec = 30000000 };

	nanosleep(&moment, NULL);
	close(*(int *)fd);
	*(int *)fd = -1;
	return NULL;
}

static void
expect_waited(const char *name, int fd)
{
	struct swap_area s;
	pthread_t thread;
	int r;

	cr_assert(zero(int, pthread_create(&thread, NULL, let_go, &fd)));
	r = swap_area_open_shared(&s, &heap.arena, name, 0, 0, 0, false, &logger);
	pthread_join(thread, NULL);
	cr_assert(zero(int, r));
	cr_assert(eq(int, fd, -1));
	swap_area_close(&s);
}

Test(swap, who_is_about_to_go_is_waited_for)
{
	char name[32];
	int fd, backing, device;

	rig_up();
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	cr_assert(zero(int, flock(fd, LOCK_EX | LOCK_NB)));
	expect_waited(path, fd);

	backing = open(path, O_RDWR | O_CLOEXEC);
	cr_assert(zero(int, ftruncate(backing, 4 * MIB)));
	device = make_loop(backing, name);
	fd = open(name, O_RDWR | O_EXCL | O_CLOEXEC);
	cr_assert(ge(int, fd, 0));
	expect_waited(name, fd);
	close(device);
	close(backing);
	rig_down();
}

Test(swap, a_file_that_somebody_still_has_is_waited_for)
{
	struct swap_area before, after;
	const uint64_t t0 = now_ns();

	rig_up();
	cr_assert(zero(int, swap_area_open(&before, &heap.arena, path, 0, 0, 0, &logger)));
	cr_assert(eq(int, swap_area_open_shared(&after, &heap.arena, path, 0, 0, 0, true, &logger),
		     -EBUSY));
	cr_assert(ge(u64, now_ns() - t0, (uint64_t)4000000000));
	cr_assert(logged("is locked"));
	swap_area_close(&before);
	rig_down();
}
