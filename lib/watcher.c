/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * watcher.c: a thread that needs nothing of libc.
 *
 * pthread_create() allocates.  The C library's malloc() can do that after fork() beside threads that were in it; another one
 * (AddressSanitizer's, up to LLVM 16) waits for ever for a thread that the child does not have.  It also counts: a process whose
 * own threads have all called pthread_exit() would go on for this one.  And its stack has to hold the program's static TLS,
 * however much that is.
 *
 * So the kernel is asked for a thread (clone(2)): no CLONE_FILES, which gives it a copy of the table of descriptors, whatever the program
 * closes or opens afterwards; thread-local storage of its own, empty, so that it shares nobody's errno; and from there on
 * only system calls, made here.
 */
#include "watcher.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/base.h"
#include "pmap/uffd_abi.h"

#define OVER_NS 50000000 /* how soon it sees that it is to end */
#define TOLD_NS UINT64_C(5000000000)
#define TLS_BYTES ((size_t)4 << 10)
#define STACK_BYTES (WATCHER_BYTES - TLS_BYTES)

/* What a sanitizer adds to a function wants thread-local storage of its own. */
#define PLAIN __attribute__((no_sanitize("address", "thread", "undefined")))

/* A system call without errno: its result, or -errno. */
static inline PLAIN __attribute__((always_inline)) long
call(long number, long a, long b, long c, long d, long e)
{
#if defined(__x86_64__)
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return ret;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;

	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
			 : "memory");
	return x0;
#else
#error "userfaultfd can write-protect on x86-64 and arm64 only"
#endif
}

static inline PLAIN __attribute__((always_inline)) long
control(int fd, unsigned long request, void *arg)
{
	return call(SYS_ioctl, fd, (long)request, (long)arg, 0, 0);
}

static PLAIN void
close_between(int low, int high)
{
	if (low < high)
		call(SYS_close_range, low, high - 1, 0, 0, 0);
}

/* Of this table of descriptors keep three. */
static PLAIN void
close_others(int a, int b, int c)
{
	const int low = MIN(MIN(a, b), c), high = MAX(MAX(a, b), c),
		  middle = a ^ b ^ c ^ low ^ high;

	close_between(0, low);
	close_between(low + 1, middle);
	close_between(middle + 1, high);
	close_between(high + 1, INT_MAX);
}

/* A fault of an orphan: a page that is there may be written to, one that is missing is an error. */
static PLAIN void
lose(const struct watched *w, uint64_t va, bool wp)
{
	struct uffdio_writeprotect allow;
	struct uffdio_poison lost;
	long r = -EEXIST;

	allow.range.start = lost.range.start = va;
	allow.range.len = lost.range.len = PAGE_SIZE;
	allow.mode = lost.mode = 0;
	if (!wp)
		r = control(w->uffd, UFFDIO_POISON, &lost);
	if (r == -EEXIST) {
		/*
		 * The pager was about to take it out, and was killed.  Either the page is still there; or its protection has
		 * outlived it, in a mark that poison does not replace: the next fault would be the same again.
		 */
		control(w->uffd, UFFDIO_WRITEPROTECT, &allow);
		if (!wp)
			r = control(w->uffd, UFFDIO_POISON, &lost);
	}
	if (r < 0 && r != -EEXIST && r != -EAGAIN && r != -ENOENT) /* before Linux 6.6 */
		call(SYS_kill, call(SYS_getpid, 0, 0, 0, 0, 0), SIGBUS, 0, 0, 0);
	control(w->uffd, UFFDIO_WAKE, &lost.range);
}

/* What no pager serves any more. */
static PLAIN void
watch_alone(const struct watched *w)
{
	const size_t n = atomic_load_explicit(w->n, memory_order_acquire);

	for (size_t i = 0; i < n; i++) {
		struct uffdio_range all;

		all.start = w->r[i].va;
		all.len = w->r[i].len;
		control(w->uffd, UFFDIO_WAKE, &all); /* what the pager read and did not answer */
	}
	while (w->over == NULL || !atomic_load(w->over)) {
		struct timespec ts;
		struct pollfd pf;
		struct uffd_msg m;

		pf.fd = w->uffd;
		pf.events = POLLIN;
		ts.tv_sec = 0;
		ts.tv_nsec = OVER_NS;
		m.event = 0;
		if (call(SYS_ppoll, (long)&pf, 1, w->over != NULL ? (long)&ts : 0, 0, 0) <= 0 ||
		    call(SYS_read, w->uffd, (long)&m, sizeof m, 0, 0) != (long)sizeof m ||
		    m.event != UFFD_EVENT_PAGEFAULT)
			continue;
		lose(w, m.arg.pagefault.address & ~(uint64_t)PAGE_MASK,
		     (m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0);
	}
}

/* The program comes first: it may want to save something, or to end. */
static PLAIN void
watch_told(const struct watched *w)
{
	struct timespec ts;

	ts.tv_sec = 0;
	ts.tv_nsec = OVER_NS;
	for (unsigned i = 0; i < TOLD_NS / OVER_NS && atomic_load(w->told) == 0 &&
			     (w->over == NULL || !atomic_load(w->over));
	     i++)
		call(SYS_futex, (long)w->told, FUTEX_WAIT, 0, (long)&ts, 0);
}

static PLAIN int
watch(void *arg)
{
	const struct watched *w = arg;
	struct pollfd pf[2];

	call(SYS_prctl, PR_SET_NAME, (long)"uffd-watcher", 0, 0, 0);
	close_others(w->sock, w->uffd, w->pager);
	pf[0].fd = w->sock;
	pf[0].events = 0;
	pf[1].fd = w->pager;
	pf[1].events = POLLIN;
	while (call(SYS_ppoll, (long)pf, 2, 0, 0, 0) <= 0)
		;
	if (w->told != NULL)
		watch_told(w);
	if (w->over == NULL || !atomic_load(w->over))
		watch_alone(w);
	return 0;
}

static struct watched *
own_copy(void *memory)
{
	return (struct watched *)(void *)((char *)memory + STACK_BYTES -
					  round_up(sizeof(struct watched), 64));
}

void
watcher_wait(void *memory)
{
	int *tid = &own_copy(memory)->tid, now;

	while ((now = __atomic_load_n(tid, __ATOMIC_ACQUIRE)) != 0)
		syscall(SYS_futex, tid, FUTEX_WAIT, now, NULL, NULL,
			0); /* the kernel's wake-up is not private */
}

int
watcher_start(const struct watched *w, void *memory)
{
	const int flags = CLONE_VM | CLONE_FS | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
			  CLONE_SETTLS | CLONE_CHILD_CLEARTID | CLONE_PARENT_SETTID;
	/* Its stack, which grows down from the struct; then its thread-local storage, which is zeros. */
	char *base = memory, *tls = base + STACK_BYTES;
	struct watched *own;
	sigset_t all, old;
	int r;

	*(void **)(void *)tls = tls; /* x86-64 finds the address of it there */
	own = own_copy(memory);
	*own = *w;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &old);
	r = clone(watch, own, flags, own, &own->tid, tls, &own->tid) < 0 ? -errno : 0;
	sigprocmask(SIG_SETMASK, &old, NULL);
	return r;
}
