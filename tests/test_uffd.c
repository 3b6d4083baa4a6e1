/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_uffd.c: the real kernel behind pmap_ops.
 *
 * No pager here: the test's own thread reads the faults and answers them by hand, so that every
 * order of events is one that the test has chosen; only the last tests run a small service
 * thread, to race with.  Most tests run once with UFFDIO_MOVE and once as on a kernel without.
 * What needs fewer rights or a system call that fails runs in a child process.
 */
#include "assertions.h"
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pmap/pmap.h"
#include "pmap/uffd_abi.h"

#define RW (PROT_READ | PROT_WRITE)
#define NPAGES 128u
#define NSTAGE 256u
#define DEADLINE 20 /* seconds, for whatever has to happen */
#define NOBODY 65534

TestSuite(uffd, .timeout = 110);

/* As on a new kernel, and as on one without UFFDIO_MOVE. */
static const uint64_t modes[] = { 0, UP_MASK_MOVE };
static const int prots[] = { RW, PROT_READ, PROT_NONE };

static struct pmap *pm;
static uintptr_t va; /* a region of NPAGES on shard 0 */
static char logged[4096];

/* --- rig --- */

static void
collect(void *ctx, enum up_log_level level, const char *line)
{
	const size_t len = strlen(logged);

	(void)ctx;
	snprintf(logged + len, sizeof logged - len, "%d: %s\n", (int)level, line);
}

static int
make_pmap(uint64_t mask)
{
	const struct logger log = { .fn = collect };

	logged[0] = '\0';
	return pmap_uffd_create(&pm, NSTAGE, 2, mask, &log);
}

static void
rig_make(uint64_t mask, int prot)
{
	const int r = make_pmap(mask);

	if (r == -EPERM || r == -ENOSYS)
		cr_skip_test("no userfaultfd here: %s", logged);
	cr_assert(eq(int, r, 0), "%s", logged);
	if (!(mask & UP_MASK_MOVE) && !(pm->features & UP_MASK_MOVE))
		cr_skip_test("this kernel has no UFFDIO_MOVE");
	cr_assert(eq(int, pm->ops->map(pm, 0, false, NPAGES * PAGE_SIZE, prot, 0, &va), 0));
}

/* Pages of one's own that are dropped all over in one call: from 6.13 on that not to be found is a bug of ours. */
static void
needs_vector(void)
{
	unsigned major = 0, minor = 0;
	struct utsname un;

	if (pm->features & UP_MASK_VECTOR)
		return;
	cr_assert(eq(int, uname(&un), 0));
	cr_assert(eq(int, sscanf(un.release, "%u.%u", &major, &minor), 2));
	cr_assert(major < 6 || (major == 6 && minor < 13),
		  "Linux %s drops pages of one's own all over, and the probe says that it does not",
		  un.release);
	cr_skip_test("this kernel drops no pages of one's own all over");
}

static void
rig_drop(void)
{
	cr_assert(eq(int, pm->ops->unmap(pm, va, NPAGES * PAGE_SIZE, 0), 0));
	pm->ops->destroy(pm);
	pm = NULL;
}

static uintptr_t
page(size_t i)
{
	return va + i * PAGE_SIZE;
}

/* True if there is a page table entry with memory behind. */
static bool
there(uintptr_t addr)
{
	const int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;
	ssize_t got;

	got = pread(fd, &entry, sizeof entry, (off_t)(addr >> PAGE_SHIFT) * (off_t)sizeof entry);
	close(fd);
	cr_assert(eq(sz, (size_t)got, sizeof entry), "cannot read /proc/self/pagemap");
	return (entry >> 63) != 0;
}

static bool
frame_there(frame_t f)
{
	return there((uintptr_t)pmap_frame(pm, f));
}

/* Content that no other page has, in every word. */
static uint64_t
word(size_t i, size_t w)
{
	return (i + 1) * UINT64_C(0x9e3779b97f4a7c15) + w;
}

static void
write_content(void *p, size_t i)
{
	for (size_t w = 0; w < PAGE_SIZE / 8; w++)
		((uint64_t *)p)[w] = word(i, w);
}

static bool
has_content(const void *p, size_t i)
{
	for (size_t w = 0; w < PAGE_SIZE / 8; w++)
		if (((const uint64_t *)p)[w] != word(i, w))
			return false;
	return true;
}

static bool
all_zero(const void *p)
{
	static const char zeros[PAGE_SIZE];

	return memcmp(p, zeros, PAGE_SIZE) == 0;
}

/* Pages [i, i + n) of the region, with content. */
static void
fill(size_t i, size_t n)
{
	size_t done;

	cr_assert(eq(int, pm->ops->zero(pm, 0, page(i), n, &done), 0));
	cr_assert(eq(int, pm->ops->protect(pm, va, NPAGES * PAGE_SIZE, RW), 0));
	for (size_t j = i; j < i + n; j++)
		write_content((void *)page(j), j);
}

static void
protect(int prot)
{
	cr_assert(eq(int, pm->ops->protect(pm, va, NPAGES * PAGE_SIZE, prot), 0));
}

/* --- accesses that may fail or wait --- */

static _Thread_local sigjmp_buf escape;
static _Thread_local volatile sig_atomic_t escaping;

static void
on_signal(int sig)
{
	if (escaping)
		siglongjmp(escape, sig);
	signal(sig, SIG_DFL);
	raise(sig);
}

static void
catch_signals(void)
{
	struct sigaction sa = { .sa_handler = on_signal };

	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
}

/* 0 or the signal that the access raised. */
static int
touch(uintptr_t addr, bool write)
{
	volatile char *p = (volatile char *)addr;
	const int sig = sigsetjmp(escape, 1);

	if (sig == 0) {
		escaping = 1;
		if (write)
			*p = 'w';
		else
			(void)*p;
	}
	escaping = 0;
	return sig;
}

/* A thread that touches one address; with `fd`, by read(2) of one byte from there. */
struct toucher {
	pthread_t thread;
	uintptr_t addr;
	bool write;
	int fd;
	int result; /* signal number, or of read(): what it returned or -errno */
};

static void *
toucher_main(void *arg)
{
	struct toucher *t = arg;

	if (t->fd < 0) {
		t->result = touch(t->addr, t->write);
	} else {
		t->result = (int)read(t->fd, (void *)t->addr, 1);
		if (t->result < 0)
			t->result = -errno;
	}
	return NULL;
}

static void
start(struct toucher *t, uintptr_t addr, bool write, int fd)
{
	*t = (struct toucher){ .addr = addr, .write = write, .fd = fd, .result = -1000 };
	cr_assert(eq(int, pthread_create(&t->thread, NULL, toucher_main, t), 0));
}

static void
join(pthread_t thread, int seconds, const char *who)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += seconds;
	cr_assert(eq(int, pthread_timedjoin_np(thread, NULL, &until), 0), "%s is stuck", who);
}

static int
finish(struct toucher *t)
{
	join(t->thread, DEADLINE, "the thread that touches");
	return t->result;
}

static struct pmap_fault
wait_fault(unsigned shard)
{
	struct pollfd pfd = { .fd = pmap_uffd_fd(pm, shard), .events = POLLIN };
	struct pmap_fault f;

	cr_assert(eq(int, poll(&pfd, 1, DEADLINE * 1000), 1), "no fault came");
	cr_assert(eq(uint, pm->ops->faults(pm, shard, &f, 1), 1));
	return f;
}

/* --- creation --- */

static int
in_child(int (*fn)(void))
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		alarm(DEADLINE);
		_exit(fn());
	}
	cr_assert(eq(int, waitpid(pid, &status, 0), pid));
	cr_assert(eq(int, WIFSIGNALED(status) ? WTERMSIG(status) : 0, 0),
		  "a signal killed the child");
	return WEXITSTATUS(status);
}

/* From here on userfaultfd(2) fails with `err`. */
static bool
deny_userfaultfd(unsigned err)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | err),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { .len = ARRAY_SIZE(code), .filter = code };

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
	       prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0;
}

static int
child_denied(void)
{
	if (!deny_userfaultfd(EPERM))
		return 77;
	if (make_pmap(UP_MASK_DEV_UFFD) != -EPERM || pm != NULL)
		return 1;
	return strstr(logged, "vm.unprivileged_userfaultfd") &&
			       strstr(logged, "/dev/userfaultfd") &&
			       strstr(logged, "CAP_SYS_PTRACE") && strstr(logged, "seccomp")
		       ? 0
		       : 2;
}

Test(uffd, without_permission_creation_says_the_way_out)
{
	const int r = in_child(child_denied);

	if (r == 77)
		cr_skip_test("seccomp filters are not available");
	cr_assert(eq(int, r, 0), "step %d", r);
}

static int
child_no_call(void)
{
	if (!deny_userfaultfd(ENOSYS))
		return 77;
	if (make_pmap(UP_MASK_DEV_UFFD) != -ENOSYS || pm != NULL)
		return 1;
	return strstr(logged, "Linux 5.10") ? 0 : 2;
}

Test(uffd, on_a_kernel_without_userfaultfd_creation_says_which_is_needed)
{
	const int r = in_child(child_no_call);

	if (r == 77)
		cr_skip_test("seccomp filters are not available");
	cr_assert(eq(int, r, 0), "step %d", r);
}

/* Read one byte from /dev/zero into a missing page. */
static int
read_into_missing(void)
{
	const int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);

	if (zero < 0 || pm->ops->map(pm, 0, false, PAGE_SIZE, RW, 0, &va) != 0)
		return 1000;
	return read(zero, (void *)va, 1) < 0 ? -errno : 0;
}

static int
child_unprivileged(void)
{
	size_t done;

	if (setgid(NOBODY) < 0 || setuid(NOBODY) < 0)
		return 77;
	/* As after a change of identity, also if there was none: /proc/self/mem is closed. */
	if (prctl(PR_SET_DUMPABLE, 0) < 0)
		return 77;
	if (make_pmap(0) != 0)
		return 1;
	if (pm->features & UP_MASK_KERNEL_FAULTS)
		return 78;
	if (!strstr(logged, "1: a system call") || !strstr(logged, "EFAULT"))
		return 2;
	if (read_into_missing() != -EFAULT)
		return 3;

	/* Nor may it read /proc/self/mem now: a page that it cannot read must not be taken. */
	if (pm->ops->zero(pm, 0, va, 1, &done) != 0)
		return 4;
	write_content((void *)va, 5);
	if (pm->ops->protect(pm, va, PAGE_SIZE, PROT_NONE) != 0)
		return 5;
	if (pm->ops->remove(pm, 0, va, 3, 1, &done) != -EBUSY || done != 0)
		return 6;
	if (pm->ops->protect(pm, va, PAGE_SIZE, RW) != 0 || !has_content((void *)va, 5))
		return 7;
	if (pm->ops->remove(pm, 0, va, 3, 1, &done) != 0 || !has_content(pmap_frame(pm, 3), 5))
		return 8;
	return 0;
}

Test(uffd, an_unprivileged_user_gets_user_mode_faults_and_a_warning)
{
	const int r = in_child(child_unprivileged);

	if (r == 77)
		cr_skip_test("only root can become nobody");
	if (r == 78)
		cr_skip_test("unprivileged users may use all of userfaultfd here");
	cr_assert(eq(int, r, 0), "step %d", r);
}

Test(uffd, masked_kernel_faults_make_system_calls_fail_on_missing_pages)
{
	int r;

	rig_make(0, RW);
	rig_drop();
	cr_assert(eq(int, make_pmap(UP_MASK_KERNEL_FAULTS), 0), "%s", logged);
	cr_assert(eq(u64, pm->features & UP_MASK_KERNEL_FAULTS, 0));
	cr_assert(eq(ptr, strstr(logged, "1: "), NULL), "a warning of what was asked for: %s",
		  logged);
	r = read_into_missing();
	cr_assert(eq(int, r, -EFAULT));
}

Test(uffd, masked_features_are_not_used)
{
	static const uint64_t bits[] = { UP_MASK_MOVE,		UP_MASK_POISON, UP_MASK_DEV_UFFD,
					 UP_MASK_KERNEL_FAULTS, UP_MASK_SHARED, UP_MASK_VECTOR };
	uint64_t all;

	rig_make(0, RW);
	all = pm->features;
	rig_drop();
	for (size_t i = 0; i < ARRAY_SIZE(bits); i++) {
		rig_make(bits[i] | UP_MASK_MOVE, RW);
		cr_assert(eq(u64, pm->features & bits[i], 0));
		cr_assert(eq(u64, pm->features | bits[i] | UP_MASK_MOVE, all | bits[i]));
		cr_assert(eq(sz, pm->headroom, CLUSTER_MAX * PAGE_SIZE));
		rig_drop();
	}
}

Test(uffd, descriptors_do_not_block_and_do_not_survive_exec)
{
	struct pmap_fault f;

	rig_make(UP_MASK_MOVE, RW);
	for (unsigned s = 0; s < 2; s++) {
		const int fd = pmap_uffd_fd(pm, s);

		cr_assert(eq(int, fcntl(fd, F_GETFD), FD_CLOEXEC));
		cr_assert(eq(int, fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK));
		cr_assert(eq(uint, pm->ops->faults(pm, s, &f, 1), 0));
	}
	rig_drop();
}

/* --- regions --- */

Test(uffd, a_fixed_region_does_not_replace_what_is_there)
{
	uintptr_t got = 0;

	rig_make(UP_MASK_MOVE, RW);
	fill(3, 1);
	cr_assert(eq(int, pm->ops->map(pm, page(3), true, PAGE_SIZE, RW, 0, &got), -EEXIST));
	cr_assert(has_content((void *)page(3), 3));
	cr_assert(eq(int, pm->ops->unmap(pm, page(8), 8 * PAGE_SIZE, 0), 0));
	cr_assert(eq(int, pm->ops->map(pm, page(8), true, 8 * PAGE_SIZE, RW, 1, &got), 0));
	cr_assert(eq(sz, got, page(8)));
	rig_drop();
}

Test(uffd, regions_have_the_protection_asked_for, .init = catch_signals)
{
	for (size_t i = 0; i < ARRAY_SIZE(prots); i++) {
		size_t done;

		rig_make(UP_MASK_MOVE, prots[i]);
		cr_assert(eq(int, pm->ops->zero(pm, 0, page(0), 1, &done), 0));
		cr_assert(eq(int, touch(page(0), false), prots[i] == PROT_NONE ? SIGSEGV : 0));
		cr_assert(eq(int, touch(page(0), true), prots[i] == RW ? 0 : SIGSEGV));
		rig_drop();
	}
}

Test(uffd, protecting_a_gap_is_refused)
{
	rig_make(UP_MASK_MOVE, RW);
	cr_assert(eq(int, pm->ops->unmap(pm, page(8), PAGE_SIZE, 0), 0));
	cr_assert(eq(int, pm->ops->protect(pm, page(4), 8 * PAGE_SIZE, PROT_READ), -ENOMEM));
	rig_drop();
}

static int
child_touches(void)
{
	return touch(page(0), false);
}

Test(uffd, a_forked_child_has_no_regions, .init = catch_signals)
{
	rig_make(UP_MASK_MOVE, RW);
	fill(0, 1);
	cr_assert(eq(int, in_child(child_touches), SIGSEGV));
	rig_drop();
}

static int
child_locks(void)
{
	size_t done;

	if (mlockall(MCL_FUTURE) < 0)
		return 77;
	if (make_pmap(UP_MASK_MOVE) != 0)
		return 1;
	if (pm->ops->map(pm, 0, false, NPAGES * PAGE_SIZE, RW, 0, &va) != 0)
		return 2;
	for (unsigned i = 0; i < NPAGES; i++)
		if (there(page(i)))
			return 3;
	for (frame_t f = 0; f < NSTAGE; f++)
		if (frame_there(f))
			return 4;
	if (pm->ops->zero(pm, 0, va, 4, &done) != 0)
		return 5;
	return pm->ops->remove(pm, 0, va, 0, 4, &done) == 0 ? 0 : 6;
}

Test(uffd, mlockall_neither_fills_regions_nor_keeps_them_in_memory)
{
	const int r = in_child(child_locks);

	if (r == 77)
		cr_skip_test("mlockall is not permitted");
	cr_assert(eq(int, r, 0), "step %d: %s", r, logged);
}

Test(uffd, unmap_wakes_a_thread_that_waits_there, .init = catch_signals)
{
	struct toucher t;

	rig_make(UP_MASK_MOVE, RW);
	start(&t, page(5) + 100, true, -1);
	cr_assert(eq(sz, wait_fault(0).va, page(5)));
	cr_assert(eq(int, pm->ops->unmap(pm, page(4), 4 * PAGE_SIZE, 0), 0));
	cr_assert(eq(int, finish(&t), SIGSEGV));
	rig_drop();
}

Test(uffd, discarded_pages_are_absent_and_fault_again)
{
	struct toucher t;
	size_t done;

	rig_make(UP_MASK_MOVE, RW);
	fill(0, 8);
	cr_assert(eq(int, pm->ops->discard(pm, 0, page(2), 4), 0));
	for (size_t i = 0; i < 8; i++)
		cr_assert(eq(int, there(page(i)), i < 2 || i >= 6));
	start(&t, page(3), false, -1);
	cr_assert(eq(sz, wait_fault(0).va, page(3)));
	cr_assert(eq(int, pm->ops->zero(pm, 0, page(3), 1, &done), 0));
	cr_assert(eq(int, finish(&t), 0));
	cr_assert(all_zero((void *)page(3)));
	rig_drop();
}

Test(uffd, what_is_not_mapped_is_enoent)
{
	for (size_t m = 0; m < ARRAY_SIZE(modes); m++) {
		size_t done;

		rig_make(modes[m], RW);
		cr_assert(eq(int, pm->ops->frame_new(pm, 0, 2, &done), 0));
		cr_assert(eq(int, pm->ops->unmap(pm, page(8), 8 * PAGE_SIZE, 0), 0));

		cr_assert(eq(int, pm->ops->zero(pm, 0, page(8), 2, &done), -ENOENT));
		cr_assert(eq(sz, done, 0));
		cr_assert(eq(int, pm->ops->enter(pm, 0, page(8), 0, 2, &done), -ENOENT));
		cr_assert(eq(sz, done, 0));
		cr_assert(frame_there(0) && frame_there(1));
		cr_assert(eq(int, pm->ops->remove(pm, 0, page(8), 5, 2, &done), -ENOENT));
		cr_assert(eq(sz, done, 0));
		cr_assert(eq(int, pm->ops->discard(pm, 0, page(8), 2), -ENOENT));
		cr_assert(eq(int, pm->ops->poison(pm, 0, page(8)), -ENOENT));
		rig_drop();
	}
}

/* --- faults --- */

Test(uffd, a_fault_says_where_and_whether_it_is_a_write)
{
	struct pmap_fault f;
	struct toucher r, w;
	size_t done;

	rig_make(UP_MASK_MOVE, RW);
	start(&r, page(7) + 123, false, -1);
	f = wait_fault(0);
	cr_assert(eq(sz, f.va, page(7)));
	cr_assert(not(f.write));
	cr_assert(not(f.wp));
	start(&w, page(9) + 4095, true, -1);
	f = wait_fault(0);
	cr_assert(eq(sz, f.va, page(9)));
	cr_assert(f.write);
	cr_assert(not(f.wp));
	cr_assert(eq(int, pm->ops->zero(pm, 0, page(7), 3, &done), 0));
	cr_assert(eq(int, finish(&r), 0));
	cr_assert(eq(int, finish(&w), 0));
	rig_drop();
}

Test(uffd, faults_come_to_the_shard_of_their_region)
{
	struct toucher t;
	uintptr_t other;
	size_t done;
	struct pmap_fault f;

	rig_make(UP_MASK_MOVE, RW);
	cr_assert(eq(int, pm->ops->map(pm, 0, false, PAGE_SIZE, RW, 1, &other), 0));
	start(&t, other, false, -1);
	cr_assert(eq(sz, wait_fault(1).va, other));
	cr_assert(eq(uint, pm->ops->faults(pm, 0, &f, 1), 0));
	cr_assert(eq(int, pm->ops->zero(pm, 1, other, 1, &done), 0));
	cr_assert(eq(int, finish(&t), 0));
	cr_assert(eq(int, pm->ops->unmap(pm, other, PAGE_SIZE, 1), 0));
	rig_drop();
}

Test(uffd, more_faults_than_asked_for_stay_in_the_queue)
{
	enum { N = 24 };
	struct toucher t[N];
	struct pmap_fault f[N + 1];
	size_t done;
	unsigned seen = 0, n;

	rig_make(UP_MASK_MOVE, RW);
	for (size_t i = 0; i < N; i++)
		start(&t[i], page(i), false, -1);
	/* One at a time first, then more than one read()'s worth. */
	for (; seen < 4; seen++)
		f[seen] = wait_fault(0);
	while (seen < N) {
		struct pollfd pfd = { .fd = pmap_uffd_fd(pm, 0), .events = POLLIN };

		cr_assert(eq(int, poll(&pfd, 1, DEADLINE * 1000), 1), "a fault is missing");
		n = pm->ops->faults(pm, 0, f + seen, N + 1 - seen);
		cr_assert(gt(uint, n, 0));
		seen += n;
	}
	cr_assert(eq(uint, seen, N));
	for (unsigned i = 0; i < N; i++)
		for (unsigned j = 0; j < i; j++)
			cr_assert(ne(sz, f[i].va, f[j].va), "reported twice");
	cr_assert(eq(int, pm->ops->zero(pm, 0, page(0), N, &done), 0));
	for (size_t i = 0; i < N; i++)
		cr_assert(eq(int, finish(&t[i]), 0));
	rig_drop();
}

Test(uffd, wake_lets_a_thread_look_again)
{
	struct toucher t;
	size_t done;

	rig_make(UP_MASK_MOVE, RW);
	start(&t, page(0), false, -1);
	wait_fault(0);
	pm->ops->wake(pm, 0, page(0), 1);
	wait_fault(0); /* nothing there: it faults again */
	cr_assert(eq(int, pm->ops->zero(pm, 0, page(0), 1, &done), 0));
	cr_assert(eq(int, finish(&t), 0));
	rig_drop();
}

Test(uffd, a_system_call_that_meets_a_missing_page_is_served)
{
	struct toucher t;
	size_t done;
	int fd[2];

	rig_make(UP_MASK_MOVE, RW);
	if (!(pm->features & UP_MASK_KERNEL_FAULTS))
		cr_skip_test("faults of system calls are not permitted here");
	cr_assert(eq(int, pipe(fd), 0));
	cr_assert(eq(int, (int)write(fd[1], "x", 1), 1));
	start(&t, page(2) + 17, true, fd[0]);
	cr_assert(eq(sz, wait_fault(0).va, page(2)));
	cr_assert(eq(int, pm->ops->zero(pm, 0, page(2), 1, &done), 0));
	cr_assert(eq(int, finish(&t), 1));
	cr_assert(eq(chr, ((char *)page(2))[17], 'x'));
	rig_drop();
}

/* --- zero, enter, remove --- */

Test(uffd, zero_installs_private_pages_and_stops_at_one_that_is_there)
{
	size_t done;

	rig_make(UP_MASK_MOVE, RW);
	fill(100, 1);
	cr_assert(eq(int, pm->ops->zero(pm, 0, page(10), 110, &done), -EEXIST));
	cr_assert(eq(sz, done, 90));
	for (size_t i = 10; i < 100; i++)
		cr_assert(there(page(i)) && all_zero((void *)page(i)));
	cr_assert(has_content((void *)page(100), 100));
	cr_assert(not(there(page(101))));
	rig_drop();
}

Test(uffd, frames_are_memory_and_holes_are_not)
{
	size_t done;

	rig_make(UP_MASK_MOVE, RW);
	cr_assert(eq(int, pm->ops->frame_new(pm, 3, 80, &done), 0));
	cr_assert(eq(sz, done, 80));
	for (frame_t f = 0; f < NSTAGE; f++)
		cr_assert(eq(int, frame_there(f), f >= 3 && f < 83));
	for (frame_t f = 3; f < 83; f++)
		write_content(pmap_frame(pm, f), f);
	pm->ops->frame_drop(pm, 10, 60);
	for (frame_t f = 0; f < NSTAGE; f++)
		cr_assert(eq(int, frame_there(f), (f >= 3 && f < 10) || (f >= 70 && f < 83)));
	cr_assert(has_content(pmap_frame(pm, 82), 82));
	rig_drop();
}

Test(uffd, content_survives_the_way_out_and_in_whatever_the_protection)
{
	for (size_t m = 0; m < ARRAY_SIZE(modes); m++) {
		for (size_t p = 0; p < ARRAY_SIZE(prots); p++) {
			const size_t n = 70; /* not a multiple of anything */
			size_t done;

			rig_make(modes[m], RW);
			fill(0, n + 1);
			protect(prots[p]);
			cr_assert(eq(int, pm->ops->remove(pm, 0, page(0), 20, n, &done), 0),
				  "mode %zu prot %d", m, prots[p]);
			cr_assert(eq(sz, done, n));
			for (size_t i = 0; i < n; i++) {
				cr_assert(not(there(page(i))));
				cr_assert(has_content(pmap_frame(pm, 20 + (frame_t)i), i));
				write_content(pmap_frame(pm, 20 + (frame_t)i), i + 1000);
			}
			cr_assert(eq(int, pm->ops->enter(pm, 0, page(0), 20, n, &done), 0));
			cr_assert(eq(sz, done, n));
			protect(RW);
			for (size_t i = 0; i < n; i++) {
				cr_assert(not(frame_there(20 + (frame_t)i)));
				cr_assert(has_content((void *)page(i), i + 1000));
				write_content((void *)page(i), i);
			}
			cr_assert(has_content((void *)page(n), n));
			rig_drop();
		}
	}
}

Test(uffd, enter_wakes_the_thread_that_waits)
{
	for (size_t m = 0; m < ARRAY_SIZE(modes); m++) {
		struct toucher t;
		size_t done;

		rig_make(modes[m], RW);
		fill(0, 2);
		cr_assert(eq(int, pm->ops->remove(pm, 0, page(0), 0, 2, &done), 0));
		start(&t, page(1), false, -1);
		wait_fault(0);
		cr_assert(eq(int, pm->ops->enter(pm, 0, page(0), 0, 2, &done), 0));
		cr_assert(eq(int, finish(&t), 0));
		rig_drop();
	}
}

Test(uffd, enter_stops_at_a_page_that_is_there_and_keeps_the_frames_behind)
{
	for (size_t m = 0; m < ARRAY_SIZE(modes); m++) {
		for (size_t p = 0; p < ARRAY_SIZE(prots); p++) {
			size_t done;

			rig_make(modes[m], RW);
			fill(30, 1);
			protect(prots[p]);
			cr_assert(eq(int, pm->ops->frame_new(pm, 0, 40, &done), 0));
			for (frame_t f = 0; f < 40; f++)
				write_content(pmap_frame(pm, f), f);
			cr_assert(eq(int, pm->ops->enter(pm, 0, page(0), 0, 40, &done), -EEXIST));
			cr_assert(eq(sz, done, 30));
			for (frame_t f = 0; f < 40; f++) {
				cr_assert(eq(int, frame_there(f), f >= 30));
				if (f >= 30)
					cr_assert(has_content(pmap_frame(pm, f), f));
			}
			protect(RW);
			for (size_t i = 0; i <= 30; i++)
				cr_assert(has_content((void *)page(i), i));
			cr_assert(not(there(page(31))));
			rig_drop();
		}
	}
}

/* Also what a page is that the program has discarded behind our back: nothing may wait for it. */
Test(uffd, remove_stops_at_a_missing_page_and_leaves_those_behind_writable)
{
	for (size_t m = 0; m < ARRAY_SIZE(modes); m++) {
		for (size_t p = 0; p < ARRAY_SIZE(prots); p++) {
			size_t done;

			rig_make(modes[m], RW);
			fill(0, 40);
			protect(prots[p]);
			madvise((void *)page(21), PAGE_SIZE, MADV_DONTNEED);
			cr_assert(eq(int, pm->ops->remove(pm, 0, page(0), 0, 40, &done), -ENOENT));
			cr_assert(eq(sz, done, 21));
			cr_assert(eq(int, pm->ops->remove(pm, 0, page(21), 21, 1, &done), -ENOENT));
			cr_assert(eq(sz, done, 0));
			protect(RW);
			for (frame_t i = 0; i < 40; i++) {
				cr_assert(eq(int, frame_there(i), i < 21));
				cr_assert(eq(int, there(page(i)), i > 21));
				if (i < 21)
					cr_assert(has_content(pmap_frame(pm, i), i));
				if (i > 21) {
					struct toucher t;

					cr_assert(has_content((void *)page(i), i));
					start(&t, page(i), true, -1);
					cr_assert(eq(int, finish(&t), 0), "still protected");
				}
			}
			rig_drop();
		}
	}
}

/* Neighbours on one shard may be different regions; each page is treated as its own asks for. */
/*
 * The kernel between us and the next UFFDIO_MOVE, which moves `forget` pages and then one more that it does not count.
 * (Linked with --wrap=ioctl.)
 */
static unsigned forget;

int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);

int
__wrap_ioctl(int fd, unsigned long request, ...)
{
	struct uffdio_move *m;
	va_list ap;
	void *arg;
	int r;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (request != UFFDIO_MOVE || forget == 0)
		return __real_ioctl(fd, request, arg);
	m = arg;
	m->len = (uint64_t)(forget + 1) * PAGE_SIZE;
	r = __real_ioctl(fd, request, m);
	if (r < 0)
		return r;
	m->move = (int64_t)forget * PAGE_SIZE;
	forget = 0;
	errno = EAGAIN;
	return -1;
}

Test(uffd, a_page_that_the_kernel_forgot_to_count_has_been_removed)
{
	size_t done;

	rig_make(0, RW);
	if (!(pm->features & UP_MASK_MOVE))
		cr_skip_test("no UFFDIO_MOVE");
	fill(0, 40);
	forget = 13;
	cr_assert(eq(int, pm->ops->remove(pm, 0, page(0), 0, 40, &done), 0));
	cr_assert(eq(uint, forget, 0), "nobody has moved pages");
	cr_assert(eq(sz, done, 40));
	for (frame_t i = 0; i < 40; i++) {
		cr_assert(frame_there(i) && !there(page(i)), "page %u", i);
		cr_assert(has_content(pmap_frame(pm, i), i));
	}
	/* And on the way in, where somebody else may have been faster: it says so, and the page is there. */
	forget = 5;
	cr_assert(eq(int, pm->ops->enter(pm, 0, page(0), 0, 40, &done), -EEXIST));
	cr_assert(eq(sz, done, 5));
	cr_assert(there(page(5)) && !frame_there(5) && has_content((void *)page(5), 5));
	cr_assert(eq(int, pm->ops->enter(pm, 0, page(6), 6, 34, &done), 0));
	for (frame_t i = 0; i < 40; i++)
		cr_assert(has_content((void *)page(i), i));
	rig_drop();
}

Test(uffd, a_batch_may_span_regions_of_different_protection)
{
	for (size_t m = 0; m < ARRAY_SIZE(modes); m++) {
		size_t done;

		rig_make(modes[m], RW);
		fill(0, 90);
		for (size_t i = 0; i < 90; i += 10)
			cr_assert(
				eq(int,
				   pm->ops->protect(pm, page(i), 10 * PAGE_SIZE, prots[i / 10 % 3]),
				   0));
		cr_assert(eq(int, pm->ops->remove(pm, 0, page(0), 0, 90, &done), 0));
		cr_assert(eq(sz, done, 90));
		for (frame_t i = 0; i < 90; i++)
			cr_assert(has_content(pmap_frame(pm, i), i));
		cr_assert(eq(int, pm->ops->enter(pm, 0, page(0), 0, 90, &done), 0));
		cr_assert(eq(sz, done, 90));
		cr_assert(eq(int, pm->ops->discard(pm, 0, page(45), 30), 0));
		cr_assert(eq(int, pm->ops->zero(pm, 0, page(45), 30, &done), 0));
		protect(RW);
		for (size_t i = 0; i < 90; i++)
			cr_assert(i < 45 || i >= 75 ? has_content((void *)page(i), i)
						    : all_zero((void *)page(i)));
		rig_drop();
	}
}

Test(uffd, a_lent_page_is_guarded_until_it_may_be_written_and_many_are_recalled_at_once)
{
	uintptr_t at[3] = { 0 };
	frame_t f[3] = { 0, 1, 2 };
	size_t done;

	rig_make(0, RW);
	needs_vector();
	cr_assert(eq(int, pm->ops->frame_new(pm, 0, 3, &done), 0));
	for (unsigned i = 0; i < 3; i++) {
		at[i] = page(2 * (size_t)i);
		write_content(pmap_frame(pm, f[i]), i);
		cr_assert(eq(int, pm->ops->lend(pm, 0, at[i], f[i], 1, true, &done), 0));
		cr_assert(frame_there(f[i]));
		cr_assert(has_content((void *)at[i], i));
	}
	cr_assert(eq(int, pm->ops->lend(pm, 0, at[0], f[0], 1, true, &done), -EEXIST));
	pm->ops->allow(pm, 0, at[1]);
	write_content((void *)at[1], 9);
	at[1] = at[2];
	cr_assert(eq(int, pm->ops->recall(pm, at, f, 2, &done), 0));
	cr_assert(eq(sz, done, 2));
	cr_assert(eq(int, there(page(0)), false));
	cr_assert(there(page(2)));
	cr_assert(eq(int, there(page(4)), false));
	cr_assert(has_content(pmap_frame(pm, f[0]), 0));
	cr_assert(has_content(pmap_frame(pm, f[1]), 2));
	cr_assert(has_content((void *)page(2), 9));
	/* What the program has discarded is told, and nobody waits for it. */
	at[0] = page(2);
	at[1] = page(4);
	cr_assert(eq(int, pm->ops->recall(pm, at, f, 2, &done), -ENOENT));
	cr_assert(eq(sz, done, 1));
	cr_assert(has_content(pmap_frame(pm, f[0]), 9));
	f[1] = 2;
	pm->ops->frames_drop(pm, f, 2);
	cr_assert(eq(int, frame_there(0), false));
	cr_assert(frame_there(1));
	cr_assert(eq(int, frame_there(2), false));
	pm->ops->frame_drop(pm, 1, 1);
	rig_drop();
}

Test(uffd, frames_are_dropped_wherever_they_lie)
{
	const frame_t gone[] = { 1, 2, 3, 6, 5, 8 }; /* runs, one of them the wrong way round */
	size_t done;

	rig_make(0, RW);
	needs_vector();
	cr_assert(eq(int, pm->ops->frame_new(pm, 0, 10, &done), 0));
	pm->ops->frames_drop(pm, gone, ARRAY_SIZE(gone));
	for (frame_t f = 0; f < 10; f++) {
		bool stays = true;

		for (unsigned i = 0; i < ARRAY_SIZE(gone); i++)
			stays &= gone[i] != f;
		cr_assert(eq(int, frame_there(f), stays), "frame %u", f);
		if (stays)
			pm->ops->frame_drop(pm, f, 1);
	}
	rig_drop();
}

Test(uffd, neighbours_are_lent_up_to_one_that_is_there)
{
	size_t done;

	rig_make(0, RW);
	needs_vector();
	cr_assert(eq(int, pm->ops->frame_new(pm, 0, 4, &done), 0));
	for (frame_t f = 0; f < 4; f++)
		write_content(pmap_frame(pm, f), f);
	cr_assert(eq(int, pm->ops->lend(pm, 0, page(0), 0, 2, false, &done), 0));
	cr_assert(eq(sz, done, 2));
	cr_assert(eq(int, pm->ops->lend(pm, 0, page(4), 3, 1, false, &done), 0));
	cr_assert(eq(int, pm->ops->lend(pm, 0, page(2), 0, 4, false, &done), -EEXIST));
	cr_assert(eq(sz, done, 2));
	for (unsigned i = 0; i < 5; i++)
		cr_assert(has_content((void *)page(i), i < 4 ? i % 2 : 3));
	pm->ops->frame_drop(pm, 0, 4);
	rig_drop();
}

Test(uffd, a_lent_page_that_the_program_locks_stays)
{
	uintptr_t at[2];
	const frame_t f[2] = { 0, 1 };
	size_t done;

	rig_make(0, RW);
	needs_vector();
	cr_assert(eq(int, pm->ops->frame_new(pm, 0, 2, &done), 0));
	for (unsigned i = 0; i < 2; i++) {
		at[i] = page(2 * (size_t)i);
		write_content(pmap_frame(pm, f[i]), i);
		cr_assert(eq(int, pm->ops->lend(pm, 0, at[i], f[i], 1, true, &done), 0));
	}
	/* What it would populate it would store into, and wait for us. */
	cr_assert(eq(int, mlock2((void *)at[1], PAGE_SIZE, MLOCK_ONFAULT), 0));
	cr_assert(eq(int, pm->ops->recall(pm, at, f, 2, &done), -EBUSY));
	cr_assert(eq(sz, done, 1));
	cr_assert(eq(int, there(at[0]), false));
	cr_assert(there(at[1]));
	cr_assert(has_content((void *)at[1], 1));
	munlock((void *)at[1], PAGE_SIZE);
	pm->ops->frame_drop(pm, 0, 2);
	rig_drop();
}

Test(uffd, read_copies_a_page_that_is_there_whatever_the_protection)
{
	static char buf[PAGE_SIZE];

	for (size_t p = 0; p < ARRAY_SIZE(prots); p++) {
		rig_make(UP_MASK_MOVE, RW);
		fill(3, 1);
		protect(prots[p]);
		cr_assert(eq(int, pm->ops->read(pm, page(3), buf), 0));
		cr_assert(has_content(buf, 3));
		cr_assert(there(page(3)));
		cr_assert(eq(int, pm->ops->read(pm, page(4), buf), -ENOENT));
		rig_drop();
	}
}

/* --- pages that others hold --- */

/* Registered io_uring buffers are pinned for as long as they are registered. */
static void
pin(struct io_uring *ring, void *p)
{
	struct iovec iov = { .iov_base = p, .iov_len = PAGE_SIZE };

	if (io_uring_queue_init(4, ring, 0) < 0 || io_uring_register_buffers(ring, &iov, 1) < 0)
		cr_skip_test("io_uring cannot pin a page here");
}

static void
unpin(struct io_uring *ring)
{
	io_uring_unregister_buffers(ring);
	io_uring_queue_exit(ring);
}

/* The kernel lets go of the pin from a worker of its own. */
static int
remove_soon(uintptr_t addr, frame_t hole, size_t n, size_t *done)
{
	const uint64_t until = now_ns() + DEADLINE * UINT64_C(1000000000);
	int r;

	do {
		r = pm->ops->remove(pm, 0, addr, hole, n, done);
	} while (r == -EBUSY && now_ns() < until);
	return r;
}

Test(uffd, a_page_pinned_for_io_stays)
{
	struct io_uring ring;
	size_t done;

	rig_make(0, RW);
	fill(0, 40);
	pin(&ring, (void *)page(20));
	cr_assert(eq(int, pm->ops->remove(pm, 0, page(0), 0, 40, &done), -EBUSY));
	cr_assert(eq(sz, done, 20));
	for (frame_t i = 0; i < 40; i++) {
		cr_assert(eq(int, frame_there(i), i < 20));
		cr_assert(has_content(i < 20 ? pmap_frame(pm, i) : (void *)page(i), i));
	}
	unpin(&ring);
	cr_assert(eq(int, remove_soon(page(20), 20, 20, &done), 0));
	cr_assert(has_content(pmap_frame(pm, 20), 20));
	rig_drop();
}

Test(uffd, a_pinned_page_stays_also_next_to_a_read_only_region)
{
	struct io_uring ring;
	size_t done;

	rig_make(0, RW);
	fill(0, 20);
	cr_assert(eq(int, pm->ops->protect(pm, page(0), 5 * PAGE_SIZE, PROT_READ), 0));
	pin(&ring, (void *)page(5));
	cr_assert(eq(int, pm->ops->remove(pm, 0, page(0), 0, 20, &done), -EBUSY));
	cr_assert(eq(sz, done, 5));
	cr_assert(there(page(5)) && has_content((void *)page(5), 5));
	unpin(&ring);
	rig_drop();
}

Test(uffd, a_frame_that_io_still_holds_enters_by_copy)
{
	for (size_t m = 0; m < ARRAY_SIZE(modes); m++) {
		struct io_uring ring;
		size_t done;

		rig_make(modes[m], RW);
		cr_assert(eq(int, pm->ops->frame_new(pm, 0, 8, &done), 0));
		for (frame_t f = 0; f < 8; f++)
			write_content(pmap_frame(pm, f), f);
		pin(&ring, pmap_frame(pm, 4));
		cr_assert(eq(int, pm->ops->enter(pm, 0, page(0), 0, 8, &done), 0));
		cr_assert(eq(sz, done, 8));
		for (frame_t f = 0; f < 8; f++) {
			cr_assert(has_content((void *)page(f), f));
			cr_assert(not(frame_there(f)));
		}
		unpin(&ring);
		rig_drop();
	}
}

/* A child that has the region, against our advice; it compares when told to, and exits. */
static pid_t
fork_with_region(int tell[2], size_t n)
{
	pid_t pid;
	char c;

	cr_assert(eq(int, madvise((void *)page(0), n * PAGE_SIZE, MADV_DOFORK), 0));
	cr_assert(eq(int, pipe(tell), 0));
	pid = fork();
	if (pid == 0) {
		alarm(DEADLINE);
		close(tell[1]);
		if (read(tell[0], &c, 1) != 0)
			_exit(2);
		for (size_t i = 0; i < n; i++)
			if (!has_content((void *)page(i), i))
				_exit(1);
		_exit(0);
	}
	close(tell[0]);
	return pid;
}

static int
child_status(pid_t pid, int tell)
{
	int status = -1;

	close(tell);
	cr_assert(eq(int, waitpid(pid, &status, 0), pid));
	return status;
}

Test(uffd, pages_shared_by_a_fork_leave_and_the_child_keeps_its_own)
{
	for (size_t m = 0; m < ARRAY_SIZE(modes); m++) {
		size_t done;
		pid_t pid;
		int tell[2];

		rig_make(modes[m], RW);
		fill(0, 20);
		pid = fork_with_region(tell, 20);
		cr_assert(eq(int, pm->ops->remove(pm, 0, page(0), 0, 20, &done), 0));
		for (frame_t i = 0; i < 20; i++) {
			cr_assert(has_content(pmap_frame(pm, i), i));
			memset(pmap_frame(pm, i), 0xee, PAGE_SIZE);
		}
		cr_assert(eq(int, child_status(pid, tell[1]), 0), "the child saw our changes");
		rig_drop();
	}
}

Test(uffd, pages_once_shared_by_a_fork_leave_after_the_child_is_gone)
{
	size_t done;
	pid_t pid;
	int tell[2];

	rig_make(0, RW);
	fill(0, 20);
	pid = fork_with_region(tell, 20);
	cr_assert(eq(int, child_status(pid, tell[1]), 0));
	cr_assert(eq(int, pm->ops->remove(pm, 0, page(0), 0, 20, &done), 0));
	for (frame_t i = 0; i < 20; i++)
		cr_assert(has_content(pmap_frame(pm, i), i));
	rig_drop();
}

Test(uffd, a_page_that_the_program_locks_stays_until_it_is_unlocked)
{
	for (size_t m = 0; m < ARRAY_SIZE(modes); m++) {
		for (size_t p = 0; p < ARRAY_SIZE(prots); p++) {
			size_t done;

			rig_make(modes[m], RW);
			fill(0, 40);
			/* Not mlock(): sanitizers make it do nothing. */
			if (syscall(SYS_mlock, page(20), 2 * PAGE_SIZE) < 0)
				cr_skip_test("mlock is not permitted");
			protect(prots[p]);
			cr_assert(eq(int, pm->ops->remove(pm, 0, page(0), 0, 40, &done), -EBUSY));
			cr_assert(eq(sz, done, 20));
			protect(RW);
			for (frame_t i = 0; i < 40; i++) {
				cr_assert(eq(int, frame_there(i), i < 20));
				cr_assert(has_content(i < 20 ? pmap_frame(pm, i) : (void *)page(i),
						      i));
				if (i >= 20)
					write_content((void *)page(i), i); /* not protected */
			}
			syscall(SYS_munlock, page(20), 2 * PAGE_SIZE);
			cr_assert(eq(int, pm->ops->remove(pm, 0, page(20), 20, 20, &done), 0));
			cr_assert(has_content(pmap_frame(pm, 21), 21));
			rig_drop();
		}
	}
}

/* --- lost pages --- */

static const uint64_t poison_modes[] = { 0, UP_MASK_POISON };

Test(uffd, a_poisoned_page_is_sigbus_and_its_neighbours_are_not, .init = catch_signals)
{
	for (size_t m = 0; m < ARRAY_SIZE(poison_modes); m++) {
		rig_make(poison_modes[m] | UP_MASK_MOVE, RW);
		fill(4, 1);
		fill(6, 1);
		cr_assert(eq(int, pm->ops->poison(pm, 0, page(5)), 0));
		cr_assert(eq(int, touch(page(5), false), SIGBUS));
		cr_assert(eq(int, touch(page(5) + 9, true), SIGBUS));
		cr_assert(has_content((void *)page(4), 4) && has_content((void *)page(6), 6));
		cr_assert(eq(int, pm->ops->poison(pm, 0, page(5)), -EEXIST));
		cr_assert(eq(int, touch(page(5), true), SIGBUS));
		rig_drop();
	}
}

Test(uffd, poison_wakes_the_thread_that_waits, .init = catch_signals)
{
	for (size_t m = 0; m < ARRAY_SIZE(poison_modes); m++) {
		struct toucher t;

		rig_make(poison_modes[m] | UP_MASK_MOVE, RW);
		start(&t, page(5), true, -1);
		wait_fault(0);
		cr_assert(eq(int, pm->ops->poison(pm, 0, page(5)), 0));
		cr_assert(eq(int, finish(&t), SIGBUS));
		rig_drop();
	}
}

Test(uffd, a_page_that_is_there_is_not_poisoned)
{
	for (size_t m = 0; m < ARRAY_SIZE(poison_modes); m++) {
		rig_make(poison_modes[m] | UP_MASK_MOVE, RW);
		fill(5, 1);
		cr_assert(eq(int, pm->ops->poison(pm, 0, page(5)), -EEXIST));
		cr_assert(has_content((void *)page(5), 5));
		rig_drop();
	}
}

Test(uffd, discard_heals_poisoned_pages_with_the_protection_of_the_region, .init = catch_signals)
{
	char name[240];
	int fd;

	/* A line in /proc/self/maps that is longer than ours need be. */
	memset(name, 'x', sizeof name - 1);
	name[sizeof name - 1] = '\0';
	fd = memfd_create(name, MFD_CLOEXEC);
	cr_assert(ge(int, fd, 0));
	cr_assert(ne(ptr, mmap(NULL, PAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0), MAP_FAILED));

	for (size_t m = 0; m < ARRAY_SIZE(poison_modes); m++) {
		for (size_t p = 0; p < ARRAY_SIZE(prots); p++) {
			const int prot = prots[p];
			struct toucher t;
			size_t done;

			rig_make(poison_modes[m] | UP_MASK_MOVE, prot);
			for (size_t i = 5; i < 8; i++)
				cr_assert(eq(int, pm->ops->poison(pm, 0, page(i)), 0));
			cr_assert(eq(int, pm->ops->discard(pm, 0, page(4), 3), 0));
			protect(PROT_READ);
			cr_assert(eq(int, touch(page(7), false), SIGBUS),
				  "healed beyond the range");
			cr_assert(eq(int, pm->ops->discard(pm, 0, page(7), 1), 0));
			protect(prot);

			/* Registered again: a touch is a fault for us, and copies go both ways. */
			if (prot != PROT_NONE) {
				start(&t, page(6), prot == RW, -1);
				cr_assert(eq(sz, wait_fault(0).va, page(6)));
			}
			cr_assert(eq(int, pm->ops->zero(pm, 0, page(4), 4, &done), 0));
			if (prot != PROT_NONE)
				cr_assert(eq(int, finish(&t), 0));
			for (size_t i = 4; i < 8; i++) {
				cr_assert(eq(int, touch(page(i), false),
					     prot == PROT_NONE ? SIGSEGV : 0));
				cr_assert(eq(int, touch(page(i), true), prot == RW ? 0 : SIGSEGV));
			}
			cr_assert(eq(int, pm->ops->remove(pm, 0, page(4), 0, 4, &done), 0));
			cr_assert(eq(int, pm->ops->enter(pm, 0, page(4), 0, 4, &done), 0));
			protect(RW);
			cr_assert(eq(int, touch(page(6), true), 0));
			rig_drop();
		}
	}
}

Test(uffd, protect_and_unmap_reach_over_poisoned_pages, .init = catch_signals)
{
	for (size_t m = 0; m < ARRAY_SIZE(poison_modes); m++) {
		size_t done;

		rig_make(poison_modes[m] | UP_MASK_MOVE, RW);
		cr_assert(eq(int, pm->ops->poison(pm, 0, page(5)), 0));
		protect(PROT_NONE);
		cr_assert(eq(int, touch(page(5), false), SIGSEGV));
		protect(PROT_READ);
		cr_assert(eq(int, touch(page(5), false), SIGBUS));
		cr_assert(eq(int, pm->ops->discard(pm, 0, page(5), 1), 0));
		cr_assert(eq(int, pm->ops->zero(pm, 0, page(5), 1, &done), 0));
		cr_assert(eq(int, touch(page(5), false), 0));
		cr_assert(eq(int, touch(page(5), true), SIGSEGV));

		cr_assert(eq(int, pm->ops->poison(pm, 0, page(7)), 0));
		cr_assert(eq(int, pm->ops->unmap(pm, page(6), 3 * PAGE_SIZE, 0), 0));
		cr_assert(eq(int, touch(page(7), false), SIGSEGV));
		rig_drop();
	}
}

/* --- races --- */

/*
 * Writers count in words of their own, in all pages; one thread moves batches out and in; one
 * answers faults.  A page's mutex is what busy is in the pager.
 */
#define RACE_PAGES 48u
#define RACE_WORDS 8u
#define WRITERS 2u

static struct race {
	pthread_mutex_t busy[RACE_PAGES];
	frame_t frame[RACE_PAGES]; /* (busy) where it is, or FRAME_NONE: in the region */
	unsigned removals;	   /* how many until the end */
	bool flipping;		   /* the protection changes all the time */
	atomic_bool stop;	   /* writers and flipper */
	atomic_bool quit;	   /* the service thread */
	atomic_int error, error_line;
	atomic_uint soft, taken, stopped;
	uint64_t count[WRITERS][RACE_PAGES][RACE_WORDS]; /* each its writer's */
} race;

static void
race_error(int r, int line)
{
	int none = 0;

	if (atomic_compare_exchange_strong(&race.error, &none, r))
		atomic_store(&race.error_line, line);
}

static uint64_t
next_random(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

/* True if it was added; if the page is read-only the store raises SIGSEGV and has not happened. */
static bool
count_up(uintptr_t addr)
{
	volatile uint64_t *p = (volatile uint64_t *)addr;

	if (race.flipping) {
		if (sigsetjmp(escape, 1) != 0) {
			escaping = 0;
			return false;
		}
		escaping = 1;
	}
	*p = *p + 1;
	escaping = 0;
	return true;
}

static void *
race_writer(void *arg)
{
	const unsigned me = (unsigned)(uintptr_t)arg;
	uint64_t rng = 88172645463325252u + me;

	while (!atomic_load(&race.stop)) {
		const unsigned p = (unsigned)(next_random(&rng) % RACE_PAGES);
		const unsigned w = (unsigned)(next_random(&rng) % RACE_WORDS);

		race.count[me][p][w] += count_up(page(p) + (me * RACE_WORDS + w) * 8);
	}
	return NULL;
}

static void *
race_flipper(void *arg)
{
	(void)arg;
	while (!atomic_load(&race.stop)) {
		if (pm->ops->protect(pm, va, RACE_PAGES * PAGE_SIZE, PROT_READ) != 0 ||
		    pm->ops->protect(pm, va, RACE_PAGES * PAGE_SIZE, RW) != 0)
			race_error(1, __LINE__);
		sched_yield();
	}
	return NULL;
}

static void *
race_service(void *arg)
{
	struct pollfd pfd = { .fd = pmap_uffd_fd(pm, 0), .events = POLLIN };

	(void)arg;
	while (!atomic_load(&race.quit)) {
		struct pmap_fault f[8];
		unsigned n;

		poll(&pfd, 1, 50);
		n = pm->ops->faults(pm, 0, f, 8);
		for (unsigned i = 0; i < n; i++) {
			const unsigned p = (unsigned)((f[i].va - va) >> PAGE_SHIFT);
			size_t done;
			int r;

			pthread_mutex_lock(&race.busy[p]);
			if (race.frame[p] != FRAME_NONE) {
				do {
					r = pm->ops->enter(pm, 0, f[i].va, race.frame[p], 1, &done);
				} while (r == -EAGAIN);
				if (r != 0)
					race_error(r, __LINE__);
				race.frame[p] = FRAME_NONE;
				atomic_fetch_add(&race.soft, 1);
			}
			pthread_mutex_unlock(&race.busy[p]);
			pm->ops->wake(pm, 0, f[i].va, 1);
		}
	}
	return NULL;
}

/* Pages from `first` on whose frame with this offset is a hole (out), or is where they are (in). */
static unsigned
race_fitting(unsigned first, unsigned n, frame_t offset, bool out)
{
	unsigned i = 0;

	while (i < n && (race.frame[first + i] == offset + first + i) != out)
		i++;
	return i;
}

/*
 * Take a batch out or in.  When it goes out, some of its pages may be out already, at another
 * offset; when it goes in, all are frames: enter from a hole is undefined.
 */
static void
race_batch(unsigned first, unsigned n, frame_t offset, bool out)
{
	const frame_t frame = offset + first;
	unsigned fit;
	size_t done;
	int r;

	for (unsigned i = first; i < first + n; i++)
		pthread_mutex_lock(&race.busy[i]);
	fit = race_fitting(first, n, offset, out);
	if (out)
		r = pm->ops->remove(pm, 0, page(first), frame, fit, &done);
	else
		r = pm->ops->enter(pm, 0, page(first), frame, fit, &done);
	for (unsigned i = first; i < first + done; i++) {
		if ((race.frame[i] == FRAME_NONE) != out)
			race_error(2, __LINE__);
		race.frame[i] = out ? offset + i : FRAME_NONE;
	}
	if (r == 0 ? done != fit : done >= fit)
		race_error(3, __LINE__);
	if (r == -ENOENT) {
		atomic_fetch_add(&race.stopped, 1);
		if (!out || race.frame[first + done] == FRAME_NONE)
			race_error(r, __LINE__);
	} else if (r != 0 && r != -EAGAIN) {
		race_error(r, __LINE__);
	}
	if (out)
		atomic_fetch_add(&race.taken, (unsigned)done);
	for (unsigned i = first; i < first + n; i++)
		pthread_mutex_unlock(&race.busy[i]);
	pm->ops->wake(pm, 0, page(first), n);
}

static void *
race_mover(void *arg)
{
	uint64_t rng = 1234567;

	(void)arg;
	while (atomic_load(&race.taken) < race.removals && atomic_load(&race.error) == 0) {
		const unsigned first = (unsigned)(next_random(&rng) % RACE_PAGES);
		const unsigned n = 1 + (unsigned)(next_random(&rng) % 24);
		const bool out = next_random(&rng) % 4 != 0;
		frame_t offset = (frame_t)(next_random(&rng) % (NSTAGE / RACE_PAGES)) * RACE_PAGES;

		race_batch(first, MIN(n, RACE_PAGES - first), offset, out);
	}
	return NULL;
}

static void
race_run(uint64_t mask, unsigned removals, bool flipping)
{
	pthread_t writer[WRITERS], service, mover, flipper;
	unsigned frames = 0;
	size_t done;

	rig_make(mask, RW);
	race.removals = removals;
	race.flipping = flipping;
	for (unsigned i = 0; i < RACE_PAGES; i++) {
		pthread_mutex_init(&race.busy[i], NULL);
		race.frame[i] = FRAME_NONE;
	}
	cr_assert(eq(int, pm->ops->zero(pm, 0, page(0), RACE_PAGES, &done), 0));

	pthread_create(&service, NULL, race_service, NULL);
	for (unsigned i = 0; i < WRITERS; i++)
		pthread_create(&writer[i], NULL, race_writer, (void *)(uintptr_t)i);
	if (flipping)
		pthread_create(&flipper, NULL, race_flipper, NULL);
	pthread_create(&mover, NULL, race_mover, NULL);

	join(mover, 80, "the mover");
	atomic_store(&race.stop, true);
	if (flipping)
		join(flipper, DEADLINE, "the flipper");
	for (unsigned i = 0; i < WRITERS; i++)
		join(writer[i], DEADLINE, "a writer");
	atomic_store(&race.quit, true);
	join(service, DEADLINE, "the service thread");
	cr_assert(eq(int, race.error, 0), "at line %d", race.error_line);

	for (unsigned p = 0; p < RACE_PAGES; p++) {
		const frame_t f = race.frame[p];
		const uint64_t *words = f != FRAME_NONE ? pmap_frame(pm, f) : (void *)page(p);

		frames += f != FRAME_NONE;
		cr_assert(eq(int, there(page(p)), f == FRAME_NONE), "page %u", p);
		for (unsigned me = 0; me < WRITERS; me++)
			for (unsigned w = 0; w < RACE_WORDS; w++)
				cr_assert(eq(u64, words[me * RACE_WORDS + w], race.count[me][p][w]),
					  "page %u: a write was lost", p);
	}
	for (frame_t f = 0; f < NSTAGE; f++)
		frames -= frame_there(f);
	cr_assert(eq(uint, frames, 0), "frames that nobody knows of");
	cr_assert(gt(uint, race.soft, removals / 100), "hardly any fault: this was no race");
	cr_assert(gt(uint, race.stopped, 0), "no batch met a missing page");
	rig_drop();
}

Test(uffd, no_write_is_lost_while_pages_are_moved)
{
	race_run(0, 100000, false);
}

Test(uffd, no_write_is_lost_while_pages_are_copied)
{
	race_run(UP_MASK_MOVE, 100000, false);
}

Test(uffd, no_write_is_lost_while_the_protection_changes, .init = catch_signals)
{
	race_run(0, 50000, true);
}
