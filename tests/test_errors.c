/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_errors.c: every error that uffd_pager.h documents, produced once, and what is said about it.
 *
 * Through the public header only, on the real kernel.  A refused call is judged by three things:
 * its result, that it has changed nothing, and one line in the log that names the call and the reason.
 * What needs other rights, limits or mounts runs in a child process, which reports by its exit status: the
 * number of the step that went wrong.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "real.h"
#include "uffd_pager.h"

#define RW (PROT_READ | PROT_WRITE)
#define PAGE ((size_t)UP_PAGE_SIZE)
#define MiB ((size_t)1 << 20)
#define NOBODY 65534
#define SKIP 77
#define DEADLINE 60 /* seconds, for a child */
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

TestSuite(errors, .timeout = 110);

static struct up_runtime *rt;

/* --- the log --- */

static struct up_config
config(void)
{
	return (struct up_config){ .memory_limit = 8 * MiB, .service_threads = 1, .log = collect };
}

static void
create(const struct up_config *cfg)
{
	log_clear();
	rt = real_start(cfg);
}

/* The result, and exactly one line that says so; `text` is part of it. */
static void
refused(const char *what, int r, int want, const char *text)
{
	cr_expect(r == want, "%s: %s instead of %s", what, r < 0 ? strerrorname_np(-r) : "success",
		  strerrorname_np(-want));
	cr_expect(strstr(logged, text) != NULL, "%s: \"%s\" is not in: %s", what, text, logged);
	cr_expect(nlogged[UP_LOG_ERROR] == 1, "%s: %u lines: %s", what, nlogged[UP_LOG_ERROR],
		  logged);
	log_clear();
}
#define REFUSED(call, want, text) refused(#call, (call), (want), (text))

/* --- children --- */

static int
in_child(int (*fn)(void))
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		int r;

		alarm(DEADLINE);
		r = fn();
		if (r != 0 && r != SKIP)
			fprintf(stderr, "step %d; the log: %s\n", r, logged);
		_exit(r);
	}
	cr_assert(waitpid(pid, &status, 0) == pid);
	cr_assert(!WIFSIGNALED(status), "signal %d killed the child", WTERMSIG(status));
	return WEXITSTATUS(status);
}

static void
child(int (*fn)(void), const char *why_skip)
{
	const int r = in_child(fn);

	if (r == SKIP)
		cr_skip_test("%s", why_skip);
	cr_assert(r == 0, "step %d", r);
}

/* From here on a system call fails with `err`. */
static bool
deny(int call, unsigned err)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | err),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { .len = COUNT(code), .filter = code };

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
	       prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0;
}

/* --- SIGBUS --- */

static sigjmp_buf escape;

static void
on_signal(int sig)
{
	siglongjmp(escape, sig);
}

/* Write a word; 0, or the signal that it raised. */
static int
try_write(char *p, uint64_t word)
{
	const struct sigaction sa = { .sa_handler = on_signal };
	int sig;

	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
	sig = sigsetjmp(escape, 1);
	if (sig == 0)
		*(volatile uint64_t *)(void *)p = word;
	signal(SIGBUS, SIG_DFL);
	signal(SIGSEGV, SIG_DFL);
	return sig;
}

/* What is counted after the thread was woken is there soon; the suite's time-out is the deadline. */
#define AWAIT_STAT(field, value)                                  \
	do                                                        \
		cr_assert(up_stats_get(rt, &st, sizeof st) == 0); \
	while (st.field < (value))

/* --- create --- */

static void
create_refused(const struct up_config *cfg, int want, const char *text)
{
	struct up_runtime *out = (struct up_runtime *)(void *)&out;
	int r;

	log_clear();
	r = up_runtime_create(&out, cfg);
	cr_expect(r == want, "%s instead of %s: %s", r < 0 ? strerrorname_np(-r) : "success",
		  strerrorname_np(-want), logged);
	cr_expect(out == NULL, "a failed create returned a runtime");
	cr_expect(strstr(logged, text) != NULL, "\"%s\" is not in: %s", text, logged);
	cr_expect(nlogged[UP_LOG_ERROR] >= 1, "nothing was said: %s", logged);
	if (r == 0)
		up_runtime_destroy(out);
}

#define BAD_FIELD(field, value, text)                                \
	do {                                                         \
		struct up_config cfg_ = config();                    \
                                                                     \
		cfg_.field = (value);                                \
		create_refused(&cfg_, -EINVAL, (text));              \
		cr_expect(nlogged[UP_LOG_ERROR] == 1, "%s", logged); \
	} while (0)

Test(errors, create_names_the_field_that_is_out_of_range)
{
	BAD_FIELD(memory_limit, 1, "memory_limit 1 is below");
	BAD_FIELD(memory_limit, UP_MEMORY_LIMIT_MIN - 1, "memory_limit");
	BAD_FIELD(memory_limit, SIZE_MAX, "memory_limit");
	BAD_FIELD(service_threads, 17, "service_threads 17 is above 16");
	BAD_FIELD(service_threads, UINT32_MAX, "service_threads");
	BAD_FIELD(feature_mask, UP_MASK_ALL + 1, "feature_mask has unknown bits 0x100");
	BAD_FIELD(feature_mask, UINT64_MAX, "feature_mask");
	BAD_FIELD(flags, 4, "flags has unknown bits 0x4");
	BAD_FIELD(reserved[0], 1, "reserved");
	BAD_FIELD(reserved[2], 1, "reserved");
	BAD_FIELD(memory_limit_max, 8 * MiB - 1,
		  "memory_limit_max 8388607 is below memory_limit 8388608");
	BAD_FIELD(memory_limit_max, UINT64_MAX, "above 8 TiB");
	BAD_FIELD(delivery, 2, "delivery");
	BAD_FIELD(io_poll_us, 1000001, "io_poll_us 1000001 is above 1000000");
	BAD_FIELD(wire_limit, 8 * MiB + 1, "wire_limit 8388609 is above memory_limit 8388608");
	BAD_FIELD(swap_size, 1, "size of 1 bytes");
	BAD_FIELD(swap_size, UINT64_MAX, "size of");
}

Test(errors, create_wants_one_swap_not_two)
{
	struct up_config cfg = config();

	cfg.swap_path = "/var/tmp/uffd-pager-not-made";
	cfg.swap_fd = 3;
	create_refused(&cfg, -EINVAL, "both swap_path and swap_fd");
	cr_expect(access(cfg.swap_path, F_OK) < 0, "the swap file was made all the same");
}

Test(errors, create_takes_no_place_for_the_result)
{
	cr_assert(up_runtime_create(NULL, NULL) == -EINVAL);
}

Test(errors, create_says_what_open_said_of_the_swap)
{
	static const struct {
		const char *path;
		int error;
		const char *text;
	} bad[] = {
		{ "/nonexistent/swap", -ENOENT, "/nonexistent/swap" },
		{ "", -EINVAL, "swap_path is an empty string" },
		{ "/var/tmp", -EINVAL, "a directory" },
		{ "/dev/null", -EINVAL, "a character device" },
		{ "/proc/self/exe", -EINVAL, "a symbolic link" },
	};
	struct up_config cfg = config();

	create(&cfg);
	up_runtime_destroy(rt);
	for (size_t i = 0; i < COUNT(bad); i++) {
		cfg.swap_path = bad[i].path;
		create_refused(&cfg, bad[i].error, bad[i].text);
	}
}

Test(errors, create_says_what_is_wrong_with_a_descriptor)
{
	struct up_config cfg = config();
	int fd, pipes[2];

	create(&cfg);
	up_runtime_destroy(rt);
	cfg.swap_fd = 1000;
	create_refused(&cfg, -EBADF, "descriptor 1000");
	fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	cr_assert(fd > 0);
	cfg.swap_fd = fd;
	create_refused(&cfg, -EINVAL, "reading and writing");
	close(fd);
	cr_assert(pipe(pipes) == 0);
	cfg.swap_fd = pipes[1];
	create_refused(&cfg, -EINVAL, "a fifo");
	close(pipes[0]);
	close(pipes[1]);
}

Test(errors, a_swap_file_has_one_user)
{
	char path[] = "/var/tmp/uffd-pager-errors-XXXXXX";
	struct up_config cfg = config();
	const int fd = mkstemp(path);

	cr_assert(fd > 0);
	cfg.swap_path = path;
	create(&cfg);
	create_refused(&cfg, -EBUSY, "is locked");
	cfg.swap_path = NULL;
	cfg.swap_fd = fd;
	create_refused(&cfg, -EBUSY, "is locked");
	up_runtime_destroy(rt);
	create(&cfg); /* and then it is free again */
	up_runtime_destroy(rt);
	cr_assert(fcntl(fd, F_GETFD) >= 0, "our descriptor was closed");
	close(fd);
	unlink(path);
}

Test(errors, a_limit_too_small_for_the_threads_is_enomem)
{
	struct up_config cfg = config();

	create(&cfg);
	up_runtime_destroy(rt);
	cfg.memory_limit = UP_MEMORY_LIMIT_MIN;
	cfg.service_threads = 16;
	create_refused(&cfg, -ENOMEM, "too small for service_threads 16");
}

static int
child_no_userfaultfd(void)
{
	struct up_config cfg = config();

	if (!deny(SYS_userfaultfd, EPERM))
		return SKIP;
	cfg.feature_mask = UP_MASK_DEV_UFFD;
	if (up_runtime_create(&rt, &cfg) != -EPERM || rt != NULL)
		return 1;
	if (strstr(logged, "vm.unprivileged_userfaultfd") == NULL ||
	    strstr(logged, "/dev/userfaultfd") == NULL)
		return 2;
	return 0;
}

Test(errors, without_userfaultfd_create_says_the_way_out)
{
	child(child_no_userfaultfd, "seccomp filters are not available");
}

static int
child_old_kernel(void)
{
	struct up_config cfg = config();

	if (!deny(SYS_userfaultfd, ENOSYS))
		return SKIP;
	cfg.feature_mask = UP_MASK_DEV_UFFD;
	if (up_runtime_create(&rt, &cfg) != -ENOSYS || rt != NULL)
		return 1;
	return strstr(logged, "5.10") != NULL ? 0 : 2;
}

Test(errors, on_an_old_kernel_create_says_which_it_needs)
{
	child(child_old_kernel, "seccomp filters are not available");
}

static int
child_no_uring(void)
{
	struct up_config cfg = config();
	int r;

	r = up_runtime_create(&rt, &cfg);
	if (r == -EPERM || r == -ENOSYS)
		return SKIP;
	if (r < 0)
		return 1;
	up_runtime_destroy(rt);
	log_clear();
	if (!deny(SYS_io_uring_setup, EPERM))
		return SKIP;
	cfg.service_threads = 4;
	if (up_runtime_create(&rt, &cfg) != -EPERM || rt != NULL)
		return 2;
	return strstr(logged, "kernel.io_uring_disabled") != NULL ? 0 : 3;
}

Test(errors, without_io_uring_create_says_the_way_out)
{
	child(child_no_uring, "no userfaultfd, io_uring or seccomp here");
}

/* 0: user mode faults only. */
static int
unprivileged_userfaultfd(void)
{
	const int fd = open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY | O_CLOEXEC);
	char c = '1';

	if (fd >= 0 && read(fd, &c, 1) != 1)
		c = '1';
	if (fd >= 0)
		close(fd);
	return c - '0';
}

static int
child_nobody(void)
{
	struct up_config cfg = config();
	int zero, r;
	void *p;

	if (unprivileged_userfaultfd() != 0 || setgid(NOBODY) < 0 || setuid(NOBODY) < 0 ||
	    access("/dev/userfaultfd", R_OK | W_OK) == 0)
		return SKIP;
	r = up_runtime_create(&rt, &cfg);
	if (r == -EPERM) /* before Linux 5.11 there is no way */
		return strstr(logged, "vm.unprivileged_userfaultfd") != NULL ? 0 : 1;
	if (r != 0)
		return 2;
	if (nlogged[UP_LOG_WARNING] == 0 || strstr(logged, "EFAULT") == NULL)
		return 3;
	if ((up_features(rt) & UP_MASK_KERNEL_FAULTS) != 0)
		return 4;
	if (up_map(rt, NULL, 16 * PAGE, RW, UP_PRIVATE, NULL, 0, &p) != 0)
		return 5;
	zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	if (read(zero, p, 1) >= 0 || errno != EFAULT) /* as the warning says */
		return 6;
	*(volatile char *)p = 1; /* own touches are served */
	if (read(zero, p, 1) != 1)
		return 7;
	up_runtime_destroy(rt);
	return 0;
}

Test(errors, an_unprivileged_user_is_warned_of_system_calls)
{
	child(child_nobody, "not root, or unprivileged users may use all of userfaultfd");
}

static int
child_foreign_swap(void)
{
	struct up_config cfg = config();
	char path[] = "/var/tmp/uffd-pager-errors-XXXXXX";
	const int fd = mkstemp(path);
	int r;

	if (fd < 0 || geteuid() != 0)
		return SKIP;
	close(fd);
	if (seteuid(NOBODY) < 0)
		return SKIP;
	cfg.swap_path = path;
	r = up_runtime_create(&rt, &cfg);
	if (seteuid(0) < 0)
		return 1;
	unlink(path);
	return r == -EACCES && strstr(logged, path) != NULL ? 0 : 2;
}

Test(errors, a_swap_file_of_somebody_else_is_eacces)
{
	child(child_foreign_swap, "not root");
}

/* --- no space --- */

Test(errors, a_region_that_the_swap_can_not_hold_is_refused_when_it_is_mapped)
{
	struct up_config cfg = config();
	struct up_stats was, st;
	struct up_object *o;
	void *p = &p;

	cfg.swap_size = 2 * MiB;
	create(&cfg);
	up_stats_get(rt, &was, sizeof was);
	log_clear();
	REFUSED(up_map(rt, NULL, 4 * MiB, RW, UP_PRIVATE, NULL, 0, &p), -ENOSPC,
		"no swap space for 1024 pages");
	cr_expect(p == NULL);
	REFUSED(up_object_create_anon(rt, 4 * MiB, 0, &o), -ENOSPC,
		"up_object_create_anon: no swap space");
	cr_expect(o == NULL);
	up_stats_get(rt, &st, sizeof st);
	cr_expect(st.reserve_used == 0 && st.reserve_free == 2 * MiB && st.objects == 0 &&
		  st.mapped == 0);

	/* All of it but a page; then one page fits, and no second. */
	cr_assert(up_map(rt, NULL, 2 * MiB - PAGE, RW, UP_PRIVATE, NULL, 0, &p) == 0);
	cr_assert(up_map(rt, NULL, PAGE, RW, UP_PRIVATE, NULL, 0, &p) == 0);
	log_clear();
	REFUSED(up_map(rt, NULL, PAGE, RW, UP_PRIVATE, NULL, 0, &p), -ENOSPC, "UP_NORESERVE");
	cr_assert(up_map(rt, NULL, 64 * MiB, RW, UP_PRIVATE | UP_NORESERVE, NULL, 0, &p) == 0, "%s",
		  logged);
	up_runtime_destroy(rt);
}

Test(errors, an_overcommitted_fault_without_swap_is_sigbus_and_logged)
{
	struct up_config cfg = config();
	struct up_stats st;
	unsigned bus = 0;
	char *p;

	cfg.swap_size = 2 * MiB;
	cfg.flags = UP_OVERCOMMIT;
	create(&cfg);
	cr_assert(up_map(rt, NULL, 8 * MiB, RW, UP_PRIVATE, NULL, 0, (void **)&p) == 0, "%s",
		  logged);
	for (size_t i = 0; i < 8 * MiB / PAGE; i++) {
		const int sig = try_write(p + i * PAGE, i + 1);

		cr_assert(sig == 0 || sig == SIGBUS, "signal %d", sig);
		bus += sig == SIGBUS;
	}
	cr_assert(bus == 6 * MiB / PAGE, "%u pages of 2048 got SIGBUS with swap for 512", bus);
	up_stats_get(rt, &st, sizeof st);
	cr_assert(st.reserve_used == 2 * MiB, "%lu bytes of swap are promised, of 2 MiB",
		  st.reserve_used);
	cr_assert(strstr(logged, "overcommitted, and the swap is full") != NULL, "%s", logged);
	up_stats_get(rt, &st, sizeof st);
	cr_assert(st.lost == (uint64_t)bus * PAGE);
	AWAIT_STAT(fault_sigbus, bus);
	for (size_t i = 0; i < 2 * MiB / PAGE; i++)
		cr_assert(*(uint64_t *)(void *)(p + i * PAGE) == i + 1, "page %zu", i);

	/* What is discarded makes room, and a lost page can be written again. */
	cr_assert(up_advise(rt, p, 4 * MiB, UP_ADVICE_DONTNEED) == 0);
	cr_assert(try_write(p + 3 * MiB, 1) == 0, "%s", logged);
	cr_assert(try_write(p + 5 * MiB, 1) == SIGBUS, "a lost page has come back by itself");
	up_runtime_destroy(rt);
}

static char mount_point[] = "/tmp/uffd-pager-errors-XXXXXX";

/* A file system of 8 MiB that nobody else sees. */
static bool
small_file_system(void)
{
	return mkdtemp(mount_point) != NULL && unshare(CLONE_NEWNS) == 0 &&
	       mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
	       mount("none", mount_point, "tmpfs", 0, "size=8m") == 0;
}

static int
full_disk(void)
{
	struct up_config cfg = config();
	char path[64];
	struct up_stats st;
	void *p;
	int r;

	snprintf(path, sizeof path, "%s/swap", mount_point);
	cfg.swap_path = path;
	cfg.swap_size = 64 * MiB;
	r = up_runtime_create(&rt, &cfg);
	if (r == -EPERM || r == -ENOSYS)
		return SKIP;
	if (r != -ENOSPC || rt != NULL)
		return 1;
	if (strstr(logged, "65536 KiB") == NULL || access(path, F_OK) == 0)
		return 2;
	cfg.swap_size = 0;
	log_clear();
	if (up_runtime_create(&rt, &cfg) != 0 || nlogged[UP_LOG_WARNING] == 0)
		return 3; /* and warns of tmpfs */
	log_clear();
	if (up_map(rt, NULL, 32 * MiB, RW, UP_PRIVATE, NULL, 0, &p) != -ENOSPC || p != NULL)
		return 4;
	if (nlogged[UP_LOG_ERROR] != 1 ||
	    strstr(logged, "no swap space for 8192 pages (ENOSPC)") == NULL)
		return 5;
	up_stats_get(rt, &st, sizeof st);
	if (st.reserve_used != 0 || st.mapped != 0)
		return 6;
	if (up_map(rt, NULL, 4 * MiB, RW, UP_PRIVATE, NULL, 0, &p) != 0)
		return 7;
	up_runtime_destroy(rt);
	return 0;
}

static int
child_full_disk(void)
{
	int r;

	if (!small_file_system())
		return SKIP;
	r = full_disk();
	umount2(mount_point, MNT_DETACH);
	rmdir(mount_point);
	return r;
}

Test(errors, a_file_system_that_is_full_refuses_the_mapping)
{
	child(child_full_disk, "can not mount a tmpfs, or no userfaultfd");
}

/* A file that was sealed behind our back takes no writes any more. */
Test(errors, a_fault_that_finds_no_frame_in_time_is_sigbus)
{
	const int fd = memfd_create("sealed swap", MFD_ALLOW_SEALING | MFD_CLOEXEC);
	const size_t n = 16 * MiB / PAGE;
	struct up_config cfg = config();
	struct up_stats st;
	size_t first = n;
	char *p;

	cr_assert(fd > 0);
	cfg.swap_fd = fd;
	cfg.swap_size = 32 * MiB;
	cfg.fault_timeout_ms = 300;
	create(&cfg);
	cr_assert(up_map(rt, NULL, 16 * MiB, RW, UP_PRIVATE, NULL, 0, (void **)&p) == 0, "%s",
		  logged);
	cr_assert(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0, "seal: %s", strerror(errno));
	for (size_t i = 0; i < n; i++) {
		const int sig = try_write(p + i * PAGE, i + 1);

		cr_assert(sig == 0 || sig == SIGBUS, "signal %d", sig);
		if (sig == SIGBUS) {
			first = i;
			break;
		}
	}
	cr_assert(first < n, "16 MiB fit into 8");
	cr_assert(first > 4 * MiB / PAGE, "only %zu pages fit into 8 MiB", first);
	cr_assert(strstr(logged, "not served for 3") != NULL, "%s", logged);
	up_stats_get(rt, &st, sizeof st);
	cr_assert(st.swap_write_errors > 0, "no write failed");
	cr_assert(st.lost == PAGE, "%lu bytes are lost, not one page", st.lost);
	AWAIT_STAT(fault_sigbus, 1);
	for (size_t i = 0; i < first; i++)
		cr_assert(*(uint64_t *)(void *)(p + i * PAGE) == i + 1, "page %zu was lost too", i);
	up_runtime_destroy(rt);
	close(fd);
}

/* --- arguments --- */

static struct up_object *
make_object(struct up_runtime *of, uint64_t size)
{
	struct up_object *o;
	const int r = up_object_create_anon(of, size, 0, &o);

	cr_assert(r == 0, "object: %d", r);
	return o;
}

Test(errors, map_names_the_argument_that_is_out_of_range)
{
	const struct up_config cfg = config();
	struct up_runtime *other;
	struct up_object *o, *foreign;
	struct up_stats st;
	void *p;

	create(&cfg);
	cr_assert(up_runtime_create(&other, NULL) == 0);
	o = make_object(rt, 8 * PAGE);
	foreign = make_object(other, 8 * PAGE);
	log_clear();
	REFUSED(up_map(rt, NULL, 0, RW, UP_PRIVATE, NULL, 0, &p), -EINVAL, "up_map: length 0");
	REFUSED(up_map(rt, NULL, 100, RW, UP_PRIVATE, NULL, 0, &p), -EINVAL, "up_map: length 100");
	REFUSED(up_map(rt, NULL, PAGE, RW | PROT_EXEC, UP_PRIVATE, NULL, 0, &p), -EINVAL,
		"up_map: prot 0x7");
	REFUSED(up_map(rt, NULL, PAGE, RW, 0, NULL, 0, &p), -EINVAL,
		"one of UP_PRIVATE and UP_SHARED");
	REFUSED(up_map(rt, NULL, PAGE, RW, UP_PRIVATE | UP_SHARED, NULL, 0, &p), -EINVAL,
		"one of UP_PRIVATE");
	REFUSED(up_map(rt, NULL, PAGE, RW, UP_PRIVATE | 0x100, NULL, 0, &p), -EINVAL,
		"unknown flags 0x100");
	REFUSED(up_map(rt, NULL, PAGE, RW, UP_PRIVATE, NULL, PAGE, &p), -EINVAL, "has no offset");
	REFUSED(up_map(rt, NULL, PAGE, RW, UP_SHARED, o, 5, &p), -EINVAL, "offset 5");
	REFUSED(up_map(rt, NULL, 2 * PAGE, RW, UP_SHARED, o, 7 * PAGE, &p), -EINVAL,
		"the object ends before");
	REFUSED(up_map(rt, NULL, PAGE, RW, UP_SHARED, o, 8 * PAGE, &p), -EINVAL,
		"the object ends before");
	REFUSED(up_map(rt, NULL, PAGE, RW, UP_SHARED, o, UINT64_MAX - PAGE + 1, &p), -EINVAL,
		"the object ends");
	REFUSED(up_map(rt, NULL, SIZE_MAX - PAGE + 1, RW, UP_SHARED, o, 0, &p), -EINVAL,
		"the object ends");
	REFUSED(up_map(rt, NULL, PAGE, RW, UP_SHARED, foreign, 0, &p), -EINVAL, "another runtime");
	REFUSED(up_map(rt, NULL, PAGE, RW, UP_PRIVATE | UP_FIXED, NULL, 0, &p), -EINVAL,
		"UP_FIXED needs");
	REFUSED(up_map(rt, (void *)0x10000001, PAGE, RW, UP_PRIVATE | UP_FIXED, NULL, 0, &p),
		-EINVAL, "address 0x10000001");
	REFUSED(up_map(rt, (void *)(UINTPTR_MAX - PAGE + 1), 2 * PAGE, RW, UP_PRIVATE | UP_FIXED,
		       NULL, 0, &p),
		-EINVAL, "wraps");
	REFUSED(up_map(rt, NULL, PAGE, RW, UP_PRIVATE, NULL, 0, NULL), -EINVAL, "addr is NULL");
	cr_expect(up_map(NULL, NULL, PAGE, RW, UP_PRIVATE, NULL, 0, &p) == -EINVAL);

	REFUSED(up_map(rt, NULL, PAGE, RW, UP_SHARED, NULL, 0, &p), -ENOTSUP,
		"shared anonymous memory needs");
	cr_expect(p == NULL);
	up_stats_get(rt, &st, sizeof st);
	cr_expect(st.mapped == 0 && st.entries == 0 && st.objects == 1 &&
		  st.reserve_used == 8 * PAGE);

	/* A hint is only that. */
	cr_expect(up_map(rt, (void *)0x10000001, PAGE, RW, UP_PRIVATE, NULL, 0, &p) == 0, "%s",
		  logged);
	cr_expect(((uintptr_t)p & (PAGE - 1)) == 0);
	cr_expect(try_write(p, 1) == 0);
	up_runtime_destroy(rt);
	up_runtime_destroy(other);
}

Test(errors, a_fixed_mapping_replaces_nothing)
{
	const struct up_config cfg = config();
	volatile char *theirs = mmap(NULL, 4 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *ours;
	void *p;

	create(&cfg);
	cr_assert(up_map(rt, NULL, 4 * PAGE, RW, UP_PRIVATE, NULL, 0, (void **)&ours) == 0);
	theirs[3 * PAGE] = 5;
	ours[3 * PAGE] = 6;
	log_clear();
	REFUSED(up_map(rt, (void *)(uintptr_t)theirs, 4 * PAGE, RW, UP_PRIVATE | UP_FIXED, NULL, 0,
		       &p),
		-EEXIST, "EEXIST");
	REFUSED(up_map(rt, ours + 3 * PAGE, PAGE, RW, UP_PRIVATE | UP_FIXED, NULL, 0, &p), -EEXIST,
		"up_map");
	cr_expect(p == NULL && theirs[3 * PAGE] == 5 && ours[3 * PAGE] == 6);
	up_runtime_destroy(rt);
}

Test(errors, a_page_of_an_object_is_mapped_in_one_place)
{
	const struct up_config cfg = config();
	struct up_object *o;
	void *a, *b;

	create(&cfg);
	o = make_object(rt, 8 * PAGE);
	cr_assert(up_map(rt, NULL, 4 * PAGE, RW, UP_SHARED, o, 2 * PAGE, &a) == 0);
	log_clear();
	REFUSED(up_map(rt, NULL, 8 * PAGE, RW, UP_SHARED, o, 0, &b), -EBUSY, "mapped already");
	REFUSED(up_map(rt, NULL, PAGE, RW, UP_SHARED, o, 5 * PAGE, &b), -EBUSY, "mapped already");
	cr_expect(b == NULL);
	cr_expect(up_map(rt, NULL, 2 * PAGE, RW, UP_SHARED, o, 6 * PAGE, &b) == 0, "%s", logged);
	cr_expect(up_map(rt, NULL, 2 * PAGE, RW, UP_SHARED, o, 0, &b) == 0, "%s", logged);
	up_runtime_destroy(rt);
}

#define WRAPPING ((void *)(UINTPTR_MAX - PAGE + 1))

Test(errors, calls_on_ranges_name_what_is_wrong_with_them)
{
	struct up_object *snapshot;
	void *copy;
	const struct up_config cfg = config();
	unsigned char vec[8];
	char *p;

	create(&cfg);
	cr_assert(up_map(rt, NULL, 8 * PAGE, RW, UP_PRIVATE, NULL, 0, (void **)&p) == 0);
	p[0] = 1;
	log_clear();
	REFUSED(up_unmap(rt, p + 1, PAGE), -EINVAL, "up_unmap: address");
	REFUSED(up_unmap(rt, p, 0), -EINVAL, "up_unmap: length 0");
	REFUSED(up_unmap(rt, p, 17), -EINVAL, "up_unmap: length 17");
	REFUSED(up_unmap(rt, WRAPPING, 2 * PAGE), -EINVAL, "up_unmap: the range wraps");
	cr_expect(up_unmap(NULL, p, PAGE) == -EINVAL);

	REFUSED(up_protect(rt, p + 1, PAGE, RW), -EINVAL, "up_protect: address");
	REFUSED(up_protect(rt, p, 0, RW), -EINVAL, "up_protect: length 0");
	REFUSED(up_protect(rt, WRAPPING, 2 * PAGE, RW), -EINVAL, "up_protect: the range wraps");
	REFUSED(up_protect(rt, p, PAGE, RW | PROT_EXEC), -EINVAL, "up_protect: prot 0x7");
	REFUSED(up_protect(rt, p, 9 * PAGE, PROT_READ), -ENOMEM, "up_protect: part of");
	cr_expect(up_protect(NULL, p, PAGE, RW) == -EINVAL);

	REFUSED(up_clone(rt, p + 1, PAGE, &copy), -EINVAL, "up_clone: address");
	REFUSED(up_clone(rt, p, 0, &copy), -EINVAL, "up_clone: length 0");
	REFUSED(up_clone(rt, WRAPPING, 2 * PAGE, &copy), -EINVAL, "up_clone: the range wraps");
	REFUSED(up_clone(rt, p, PAGE, NULL), -EINVAL, "up_clone: copy is NULL");
	REFUSED(up_clone(rt, p, 9 * PAGE, &copy), -ENOMEM, "up_clone: part of");
	cr_expect(up_clone(NULL, p, PAGE, &copy) == -EINVAL && copy == NULL);
	REFUSED(up_object_snapshot(rt, NULL, &snapshot), -EINVAL,
		"up_object_snapshot: an argument");

	REFUSED(up_advise(rt, p + 1, PAGE, UP_ADVICE_COLD), -EINVAL, "up_advise: address");
	REFUSED(up_advise(rt, p, 0, UP_ADVICE_COLD), -EINVAL, "up_advise: length 0");
	REFUSED(up_advise(rt, WRAPPING, 2 * PAGE, UP_ADVICE_COLD), -EINVAL,
		"up_advise: the range wraps");
	REFUSED(up_advise(rt, p, PAGE, (enum up_advice)6), -EINVAL, "unknown advice 6");
	REFUSED(up_advise(rt, p, PAGE, (enum up_advice) - 1), -EINVAL, "unknown advice -1");
	for (enum up_advice a = UP_ADVICE_NORMAL; a <= UP_ADVICE_COLD; a++)
		REFUSED(up_advise(rt, p, 9 * PAGE, a), -ENOMEM, "up_advise: part of");
	cr_expect(up_advise(NULL, p, PAGE, UP_ADVICE_COLD) == -EINVAL);

	REFUSED(up_residency(rt, p + 1, PAGE, vec), -EINVAL, "up_residency: address");
	REFUSED(up_residency(rt, p, 0, vec), -EINVAL, "up_residency: length 0");
	REFUSED(up_residency(rt, WRAPPING, 2 * PAGE, vec), -EINVAL,
		"up_residency: the range wraps");
	REFUSED(up_residency(rt, p, 9 * PAGE, vec), -ENOMEM, "up_residency: part of");
	REFUSED(up_residency(rt, p, PAGE, NULL), -EINVAL, "vec is NULL");
	cr_expect(up_residency(NULL, p, PAGE, vec) == -EINVAL);

	/* Nothing of all that has happened, and gaps are fine for unmap alone. */
	cr_expect(p[0] == 1 && try_write(p + 7 * PAGE, 1) == 0);
	cr_expect(up_unmap(rt, p + 2 * PAGE, PAGE) == 0);
	log_clear();
	REFUSED(up_protect(rt, p, 8 * PAGE, PROT_READ), -ENOMEM, "part of");
	cr_expect(try_write(p, 2) == 0, "a refused up_protect() has changed a part");
	cr_expect(up_unmap(rt, p - 4 * PAGE, 16 * PAGE) == 0, "%s", logged);
	cr_expect(up_unmap(rt, p, 8 * PAGE) == 0, "%s", logged);
	up_runtime_destroy(rt);
}

Test(errors, object_calls_name_what_is_wrong)
{
	const struct up_config cfg = config();
	struct up_object *o = NULL;

	create(&cfg);
	log_clear();
	REFUSED(up_object_create_anon(rt, 0, 0, &o), -EINVAL, "up_object_create_anon: size 0");
	REFUSED(up_object_create_anon(rt, PAGE + 1, 0, &o), -EINVAL,
		"up_object_create_anon: size 4097");
	REFUSED(up_object_create_anon(rt, PAGE, UP_SHARED, &o), -EINVAL, "unknown flags 0x2");
	REFUSED(up_object_create_anon(rt, PAGE, 0, NULL), -EINVAL, "obj is NULL");
	REFUSED(up_object_create_anon(rt, UINT64_MAX - PAGE + 1, 0, &o), -ENOMEM,
		"up_object_create_anon: the meta");
	cr_expect(o == NULL);
	cr_expect(up_object_create_anon(NULL, PAGE, 0, &o) == -EINVAL);
	up_object_unref(NULL);
	up_runtime_destroy(rt);
}

Test(errors, null_is_einval_or_nothing_everywhere)
{
	const struct up_config cfg = config();
	struct up_stats st;

	up_runtime_destroy(NULL);
	cr_expect(up_features(NULL) == 0);
	cr_expect(up_stats_get(NULL, &st, sizeof st) == -EINVAL);
	cr_expect(up_stats_print(NULL, stdout) == -EINVAL);
	cr_expect(up_trace_print(NULL, stdout) == -EINVAL);
	create(&cfg);
	cr_expect(up_stats_get(rt, NULL, sizeof st) == -EINVAL);
	cr_expect(up_stats_print(rt, NULL) == -EINVAL);
	cr_expect(up_trace_print(rt, NULL) == -EINVAL);
	up_runtime_destroy(rt);
	cr_expect(up_runtime_create(&rt, NULL) == 0);
	up_runtime_destroy(rt);
}

Test(errors, printing_to_a_full_device_is_eio)
{
	const struct up_config cfg = config();
	FILE *full = fopen("/dev/full", "w");
	struct up_stats st = { 0 };
	void *p;

	cr_assert(full != NULL);
	setvbuf(full, NULL, _IONBF, 0);
	create(&cfg);
	cr_assert(up_map(rt, NULL, PAGE, RW, UP_PRIVATE, NULL, 0, &p) == 0);
	cr_assert(try_write(p, 1) == 0);
	AWAIT_STAT(faults[UP_FAULT_ZERO], 1);
	cr_expect(up_stats_print(rt, full) == -EIO);
	clearerr(full);
	cr_expect(up_trace_print(rt, full) == -EIO);
	fclose(full);
	up_runtime_destroy(rt);
}

Test(errors, metadata_that_does_not_fit_the_limit_is_enomem)
{
	struct up_config cfg = config();
	struct up_stats st;
	void *p;

	cfg.memory_limit = UP_MEMORY_LIMIT_MIN;
	create(&cfg);
	log_clear();
	REFUSED(up_map(rt, NULL, (size_t)4 << 30, RW, UP_PRIVATE, NULL, 0, &p), -ENOMEM,
		"memory limit, 2097152");
	REFUSED(up_map(rt, NULL, SIZE_MAX - PAGE + 1, RW, UP_PRIVATE, NULL, 0, &p), -ENOMEM,
		"up_map: the metadata");
	REFUSED(up_map(rt, NULL, (size_t)1 << 50, RW, UP_PRIVATE | UP_NORESERVE, NULL, 0, &p),
		-ENOMEM, "up_map: mapping 1125899906842624 bytes");
	cr_expect(p == NULL);
	up_stats_get(rt, &st, sizeof st);
	cr_expect(st.mapped == 0 && st.objects == 0 && st.reserve_used == 0);
	up_runtime_destroy(rt);
}

/* --- fork --- */

static char *region;
static struct up_object *object;

/* Each step that a call gets wrong is its number. */
static int
child_of_fork(void)
{
	struct up_stats st = { .limit = 12345 };
	struct up_object *o = object;
	unsigned char vec[1];
	unsigned lines = 0;
	void *p;

	log_clear();
#define ECHILD_OF(n, call)                            \
	do {                                          \
		if ((call) != -ECHILD)                \
			return (n);                   \
		if (nlogged[UP_LOG_ERROR] != ++lines) \
			return 100 + (n);             \
	} while (0)
	ECHILD_OF(1, up_map(rt, NULL, PAGE, RW, UP_PRIVATE, NULL, 0, &p));
	ECHILD_OF(2, up_unmap(rt, region, PAGE));
	ECHILD_OF(3, up_protect(rt, region, PAGE, PROT_READ));
	ECHILD_OF(4, up_advise(rt, region, PAGE, UP_ADVICE_DONTNEED));
	ECHILD_OF(5, up_residency(rt, region, PAGE, vec));
	ECHILD_OF(6, up_object_create_anon(rt, PAGE, 0, &o));
	/* Bad arguments do not matter here. */
	ECHILD_OF(7, up_unmap(rt, region + 1, 3));
	if (up_stats_get(rt, &st, sizeof st) != -ECHILD || st.limit != 12345)
		return 8;
	if (up_stats_print(rt, stderr) != -ECHILD)
		return 9;
	if (up_trace_print(rt, stderr) != -ECHILD)
		return 10;
	up_object_unref(object);
	up_runtime_destroy(rt);
	up_runtime_destroy(rt); /* twice: it does nothing at all */
	if (try_write(region, 7) != SIGSEGV)
		return 11;
	/* It may have one of its own. */
	if (up_runtime_create(&rt, NULL) != 0)
		return 12;
	if (up_map(rt, NULL, PAGE, RW, UP_PRIVATE, NULL, 0, &p) != 0 || try_write(p, 7) != 0)
		return 13;
	up_runtime_destroy(rt);
	return 0;
}

Test(errors, in_a_forked_child_every_call_is_echild)
{
	const struct up_config cfg = config();
	struct up_stats st;
	int r;

	create(&cfg);
	cr_assert(up_map(rt, NULL, 8 * PAGE, RW, UP_PRIVATE, NULL, 0, (void **)&region) == 0);
	object = make_object(rt, PAGE);
	*(uint64_t *)(void *)region = 42;
	r = in_child(child_of_fork);
	cr_assert(r == 0, "step %d", r);
	cr_assert(*(uint64_t *)(void *)region == 42);
	cr_assert(up_stats_get(rt, &st, sizeof st) == 0 && st.objects == 2 &&
		  st.mapped == 8 * PAGE);
	up_object_unref(object);
	cr_assert(up_unmap(rt, region, 8 * PAGE) == 0);
	up_runtime_destroy(rt);
}
