/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmm.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "pmap/uffd_abi.h"

#define HUGE_PAGES "/proc/sys/vm/nr_hugepages"
#define THREADS_MAX 16
#define CONTROL 3 /* the child's descriptor */

void (*vmm_pump)(void);

uint64_t
vmm_word(uint64_t page, unsigned i)
{
	return (page + 1) * UINT64_C(0x9e3779b97f4a7c15) + i;
}

void
vmm_make_file(const char *path, uint64_t npages)
{
	uint64_t w[VMM_PAGE / 8];
	FILE *f = fopen(path, "we");

	cr_assert(f != NULL, "%s: %s", path, strerror(errno));
	for (uint64_t p = 0; p < npages; p++) {
		for (unsigned i = 0; i < VMM_PAGE / 8; i++)
			w[i] = vmm_word(p, i);
		cr_assert(fwrite(w, sizeof w, 1, f) == 1);
	}
	cr_assert(fclose(f) == 0);
}

/* --- the child: no allocation, no assertion --- */

static struct {
	unsigned char *base;
	uint64_t npages;
	int uffd, memfd, connection;
	uint32_t *version; /* a page: how often VMM_RANDOM has written it */
} me;

static _Thread_local sigjmp_buf away;
static _Thread_local volatile sig_atomic_t guarded;

static void
on_bus(int sig)
{
	if (!guarded)
		_exit(100 + sig);
	siglongjmp(away, 1);
}

static bool
same(const unsigned char *p, uint64_t page)
{
	const volatile uint64_t *w = (const volatile uint64_t *)(const void *)p;

	for (unsigned i = 0; i < VMM_PAGE / 8; i++) {
		if (w[i] != vmm_word(page, i))
			return false;
	}
	return true;
}

static bool
all(const unsigned char *p, unsigned char value)
{
	const volatile unsigned char *b = p;

	for (size_t i = 0; i < VMM_PAGE; i++) {
		if (b[i] != value)
			return false;
	}
	return true;
}

/* 0 as it should be, 1 wrong, 1 << 32 SIGBUS */
static int64_t
verify_one(uint64_t page)
{
	int64_t r;

	guarded = 1;
	if (sigsetjmp(away, 1) != 0)
		r = INT64_C(1) << 32;
	else
		r = !same(me.base + page * VMM_PAGE, page);
	guarded = 0;
	return r;
}

static int64_t
verify(uint64_t first, uint64_t n)
{
	int64_t r = 0;

	for (uint64_t i = 0; i < n; i++)
		r += verify_one(first + i);
	return r;
}

struct job {
	pthread_t thread;
	uint64_t first, n, step;
	int64_t r;
	bool removes;
};

static void *
work(void *arg)
{
	struct job *j = arg;

	for (uint64_t i = 0; i < j->n; i++)
		j->r += verify_one(j->first + i * j->step % j->n);
	return NULL;
}

static int64_t
threads(uint64_t first, uint64_t n, unsigned count)
{
	/* Odd numbers have no factor in common with the powers of two that there are of pages. */
	struct job job[THREADS_MAX] = { 0 };
	int64_t r = 0;

	for (unsigned i = 0; i < count; i++) {
		job[i] = (struct job){ .first = first, .n = n, .step = 2 * i + 1 };
		if (pthread_create(&job[i].thread, NULL, work, &job[i]) != 0)
			return -1;
	}
	for (unsigned i = 0; i < count; i++) {
		pthread_join(job[i].thread, NULL);
		r += job[i].r;
	}
	return r;
}

static uint64_t
versioned(uint64_t page, uint32_t version, unsigned i)
{
	return version == 0 ? 0 : vmm_word(page, i) + version * UINT64_C(0xd1342543de82ef95);
}

/* As verify_one(), of what VMM_RANDOM writes; `write` is the version that comes after. */
static int64_t
look(uint64_t page, bool write)
{
	volatile uint64_t *w = (volatile uint64_t *)(void *)(me.base + page * VMM_PAGE);
	int64_t r = 0;

	guarded = 1;
	if (sigsetjmp(away, 1) != 0) {
		guarded = 0;
		return INT64_C(1) << 32;
	}
	for (unsigned i = 0; i < VMM_PAGE / 8 && r == 0; i++)
		r = w[i] != versioned(page, me.version[page], i);
	if (write) {
		const uint32_t next = me.version[page] + 1;

		for (unsigned i = 0; i < VMM_PAGE / 8; i++)
			w[i] = versioned(page, next, i);
		me.version[page] = next;
	}
	guarded = 0;
	return r;
}

/* Pages first, first + step...: nobody else writes them. */
static void *
scribble(void *arg)
{
	struct job *j = arg;
	const uint64_t own = (me.npages - j->first + j->step - 1) / j->step;
	uint64_t seed = j->r;

	j->r = 0;
	for (uint64_t i = 0; i < j->n; i++) {
		seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		j->r += look(j->first + (seed >> 33) % own * j->step, (seed & (1 << 20)) != 0);
		if (j->removes && (seed >> 21) % 8 == 0) {
			const uint64_t page = j->first + (seed >> 34) % own * j->step;

			if (madvise(me.base + page * VMM_PAGE, VMM_PAGE, MADV_REMOVE) < 0)
				j->r++;
			me.version[page] = 0;
		}
	}
	return NULL;
}

static int64_t
scribbles(uint64_t seed, uint64_t rounds, uint64_t arg)
{
	const unsigned count = (unsigned)(arg & ~VMM_REMOVING);
	struct job job[THREADS_MAX] = { 0 };
	int64_t r = 0;

	for (unsigned i = 0; i < count; i++) {
		job[i] = (struct job){ .first = i,
				       .n = rounds,
				       .step = count,
				       .r = (int64_t)(seed + i),
				       .removes = (arg & VMM_REMOVING) != 0 };
		if (pthread_create(&job[i].thread, NULL, scribble, &job[i]) != 0)
			return -1;
	}
	for (unsigned i = 0; i < count; i++) {
		pthread_join(job[i].thread, NULL);
		r += job[i].r;
	}
	return r;
}

#define VERIFIERS 3

/* All of them look at the first half. */
static bool
start_verifiers(struct job job[VERIFIERS])
{
	for (unsigned i = 0; i < VERIFIERS; i++) {
		job[i] = (struct job){ .n = me.npages / 2, .step = 2 * i + 1 };
		if (pthread_create(&job[i].thread, NULL, work, &job[i]) != 0)
			return false;
	}
	return true;
}

static int64_t
end_verifiers(struct job job[VERIFIERS])
{
	int64_t r = 0;

	for (unsigned i = 0; i < VERIFIERS; i++) {
		pthread_join(job[i].thread, NULL);
		r += job[i].r;
	}
	return r;
}

static int64_t
storm(uint64_t rounds)
{
	const uint64_t half = me.npages / 2;
	struct job job[VERIFIERS];
	int64_t r = 0;

	if (!start_verifiers(job))
		return -1;
	for (uint64_t k = 0; k < rounds; k++) {
		const uint64_t n = 1 + k * 7 % 16, at = half + k * 13 % (half - n);

		if (madvise(me.base + at * VMM_PAGE, n * VMM_PAGE, MADV_DONTNEED) < 0)
			r++;
		for (uint64_t i = at; i < at + n; i++)
			r += !all(me.base + i * VMM_PAGE, 0);
		memset(me.base + at * VMM_PAGE, 0xaa, VMM_PAGE);
	}
	return r + end_verifiers(job);
}

#define PIECE UINT64_C(8) /* pages that are moved together */

/* A piece is moved away, looked at, and moved back. */
static int64_t
there_and_back(uint64_t first)
{
	const size_t len = PIECE * VMM_PAGE;
	unsigned char *const at = me.base + first * VMM_PAGE;
	unsigned char *to = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int64_t r = 0;

	to = mremap(at, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	if (to == MAP_FAILED)
		return 1000;
	for (uint64_t i = 0; i < PIECE; i += 3)
		r += !same(to + i * VMM_PAGE, first + i);
	return mremap(to, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, at) == at ? r : 1000;
}

/* What a child of fork() sees of some pages, and what it sees once it has moved them. */
static int64_t
ask_child(uint64_t first)
{
	const pid_t pid = fork();
	int status;

	if (pid == 0) {
		int64_t r = there_and_back(first);

		for (uint64_t i = 0; i < PIECE; i++)
			r += !same(me.base + (first + i) * VMM_PAGE, first + i);
		_exit(r == 0 ? 0 : 1);
	}
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return 1000;
	return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

static int64_t
shuffle(uint64_t rounds)
{
	const uint64_t half = me.npages / 2;
	struct job job[VERIFIERS];
	int64_t r = 0;

	if (!start_verifiers(job))
		return -1;
	for (uint64_t k = 0; k < rounds; k++) {
		const uint64_t first = half + k * 37 % (half / PIECE) * PIECE;

		r += there_and_back(first);
		if (k % 16 == 0)
			r += ask_child(half + k * 41 % (half / PIECE) * PIECE);
	}
	return r + end_verifiers(job);
}

static int64_t
move(void)
{
	const size_t len = me.npages * VMM_PAGE;
	void *to = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	to = mremap(me.base, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	if (to == MAP_FAILED)
		return -errno;
	me.base = to;
	return 0;
}

static uint32_t ns[16384];

static int
by_ns(const void *a, const void *b)
{
	const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static uint64_t
clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static int64_t
time_touches(uint64_t first, uint64_t n)
{
	for (uint64_t i = 0; i < n && i < sizeof ns / sizeof ns[0]; i++) {
		const uint64_t t = clock_ns();

		(void)*(volatile unsigned char *)(me.base + (first + i) * VMM_PAGE);
		ns[i] = (uint32_t)(clock_ns() - t);
	}
	qsort(ns, n, sizeof ns[0], by_ns);
	return ns[n / 2] | (int64_t)ns[n - 1 - n / 100] << 32;
}

static int64_t
zeros(uint64_t first, uint64_t n)
{
	int64_t r = 0;

	for (uint64_t i = 0; i < n; i++)
		r += !all(me.base + (first + i) * VMM_PAGE, 0);
	return r;
}

static int64_t
in_child(uint64_t first, uint64_t n, bool are_zeros)
{
	const pid_t pid = fork();
	int status;

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit((are_zeros ? zeros(first, n) : verify(first, n)) == 0 ? 0 : 1);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return -1;
	return status;
}

/*
 * Real mode, one CPU, no BIOS: for each page of the memory (ds) its first word is added up in bx, then out.
 *
 *	mov cx, npages	xor ax, ax	xor bx, bx
 * next:	mov ds, ax	add bx, [0]	add ax, 0x100	loop next
 *	mov ax, bx	out 0x10, ax	hlt
 */
static int64_t
kvm(uint64_t npages)
{
	unsigned char code[] = { 0xb9, 0,    0, 0x31, 0xc0, 0x31, 0xdb, 0x8e, 0xd8, 0x03, 0x1e, 0,
				 0,    0x05, 0, 1,    0xe2, 0xf5, 0x89, 0xd8, 0xe7, 0x10, 0xf4 };
	struct kvm_userspace_memory_region ram = {
		.memory_size = npages * VMM_PAGE,
		.userspace_addr = (uintptr_t)me.base,
	};
	struct kvm_userspace_memory_region rom = {
		.slot = 1,
		.guest_phys_addr = 0x100000,
		.memory_size = VMM_PAGE,
	};
	int dev = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm = -1, cpu = -1, size;
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0, .rflags = 2 };
	struct kvm_run *run;
	unsigned char *page;

	if (dev < 0 || (vm = ioctl(dev, KVM_CREATE_VM, 0)) < 0)
		return -errno;
	page = mmap(NULL, VMM_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		return -errno;
	code[1] = (unsigned char)npages;
	code[2] = (unsigned char)(npages >> 8);
	memcpy(page, code, sizeof code);
	rom.userspace_addr = (uintptr_t)page;
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &ram) < 0 ||
	    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &rom) < 0 ||
	    (cpu = ioctl(vm, KVM_CREATE_VCPU, 0)) < 0 ||
	    (size = ioctl(dev, KVM_GET_VCPU_MMAP_SIZE, 0)) < 0)
		return -errno;
	run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
	if (run == MAP_FAILED || ioctl(cpu, KVM_GET_SREGS, &sregs) < 0)
		return -errno;
	sregs.cs.base = 0x100000;
	sregs.cs.selector = 0xf000;
	if (ioctl(cpu, KVM_SET_SREGS, &sregs) < 0 || ioctl(cpu, KVM_SET_REGS, &regs) < 0)
		return -errno;
	for (;;) {
		if (ioctl(cpu, KVM_RUN, 0) < 0)
			return -errno;
		if (run->exit_reason == KVM_EXIT_IO && run->io.port == 0x10)
			return *(uint16_t *)((char *)run + run->io.data_offset);
		if (run->exit_reason != KVM_EXIT_INTR)
			return -10000 - (int64_t)run->exit_reason;
	}
}

static int64_t
go_there(const char *path, size_t len)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };

	if (len >= sizeof sun.sun_path)
		return -ENAMETOOLONG;
	memcpy(sun.sun_path, path, len);
	if (me.connection >= 0)
		close(me.connection);
	me.connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	return connect(me.connection, (struct sockaddr *)&sun, sizeof sun) < 0 ? -errno : 0;
}

static int64_t
send_all(const char *text, size_t len, unsigned which, size_t piece)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(4 * sizeof(int))];
	} control;
	int fd[4], n = 0;

	if (which & VMM_NOT_UFFD)
		fd[n++] = me.connection;
	if (which & VMM_UFFD)
		fd[n++] = me.uffd;
	if (which & VMM_MEMFD)
		fd[n++] = me.memfd >= 0 ? me.memfd : me.connection;
	if (which & VMM_THIRD)
		fd[n++] = me.connection;
	while (len > 0) {
		struct iovec iov = { (void *)(uintptr_t)text,
				     piece > 0 && piece < len ? piece : len };
		struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
		ssize_t sent;

		if (n > 0) {
			struct cmsghdr *c;

			memset(&control, 0, sizeof control);
			msg.msg_control = &control;
			msg.msg_controllen = CMSG_SPACE((size_t)n * sizeof(int));
			c = CMSG_FIRSTHDR(&msg);
			c->cmsg_level = SOL_SOCKET;
			c->cmsg_type = SCM_RIGHTS;
			c->cmsg_len = CMSG_LEN((size_t)n * sizeof(int));
			memcpy(CMSG_DATA(c), fd, (size_t)n * sizeof(int));
			n = 0;
		}
		sent = sendmsg(me.connection, &msg, MSG_NOSIGNAL);
		if (sent < 0)
			return -errno;
		text += sent;
		len -= (size_t)sent;
	}
	return 0;
}

static int
protect(void *base, size_t len, bool guard)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)base, .len = len },
		.mode = UFFDIO_REGISTER_MODE_MISSING | (guard ? UFFDIO_REGISTER_MODE_WP : 0),
	};

	return ioctl(me.uffd, UFFDIO_REGISTER, &reg) < 0 ? -errno : 0;
}

/* Where to count from: all pages are zeros. */
static int
count_versions(uint64_t npages)
{
	me.version = mmap(NULL, npages * sizeof me.version[0], PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return me.version == MAP_FAILED ? errno : 0;
}

static int64_t
more(uint64_t npages, bool own)
{
	const size_t len = npages * VMM_PAGE, old = me.npages * VMM_PAGE;
	const int fd = own ? memfd_create("more", MFD_CLOEXEC) : me.memfd;
	void *p;
	int r;

	if (fd < 0 || ftruncate(fd, (off_t)(own ? len : old + len)) < 0)
		return -errno;
	p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)(own ? 0 : old));
	if (p == MAP_FAILED)
		return -errno;
	r = protect(p, len, true);
	if (r == 0)
		r = -count_versions(npages);
	if (r < 0)
		return r;
	me.base = p;
	me.npages = npages;
	return (int64_t)(uintptr_t)p;
}

static int64_t
answer_byte(int ms)
{
	struct pollfd pf = { .fd = me.connection, .events = POLLIN };
	unsigned char byte;
	ssize_t n;

	if (poll(&pf, 1, ms) == 0)
		return -ETIMEDOUT;
	n = read(me.connection, &byte, 1);
	return n == 1 ? byte : n == 0 ? -ENODATA : -errno;
}

static char text[VMM_TEXT_MAX];

static bool
get(int fd, void *buf, size_t len)
{
	for (size_t at = 0; at < len;) {
		const ssize_t n = read(fd, (char *)buf + at, len - at);

		if (n <= 0)
			return false;
		at += (size_t)n;
	}
	return true;
}

static int64_t
obey(const struct vmm_command *c)
{
	unsigned char *at = me.base + c->first * VMM_PAGE;
	const size_t len = c->n * VMM_PAGE;
	int64_t r = 0;

	switch ((enum vmm_op)c->op) {
	case VMM_VERIFY:
		return verify(c->first, c->n);
	case VMM_ZEROS:
		return zeros(c->first, c->n);
	case VMM_THREADS:
		return threads(c->first, c->n, (unsigned)c->arg);
	case VMM_REMOVE:
		return madvise(at, len, MADV_DONTNEED) < 0 ? -errno : 0;
	case VMM_WRITE:
		memset(at, (int)c->arg, len);
		return 0;
	case VMM_WRITTEN:
		for (uint64_t i = 0; i < c->n; i++)
			r += !all(at + i * VMM_PAGE, (unsigned char)c->arg);
		return r;
	case VMM_UNMAP:
		return munmap(at, len) < 0 ? -errno : 0;
	case VMM_MOVE:
		return move();
	case VMM_FORK:
		return in_child(c->first, c->n, c->arg != 0);
	case VMM_WIPE:
		return madvise(at, len, MADV_WIPEONFORK) < 0 ? -errno : 0;
	case VMM_BECOME_CHILD:
		r = fork();
		if (r != 0)
			_exit(r < 0);
		return getpid();
	case VMM_REGISTER:
		return protect(me.base, len, me.memfd >= 0);
	case VMM_STORM:
		return storm(c->arg);
	case VMM_SHUFFLE:
		return shuffle(c->arg);
	case VMM_CONNECT:
		return go_there(text, c->n);
	case VMM_SEND:
		return send_all(text, c->n, (unsigned)c->first, c->arg);
	case VMM_HANG_UP:
		close(me.connection);
		me.connection = -1;
		return 0;
	case VMM_CLOSE_UFFD:
		return close(me.uffd);
	case VMM_TIME:
		return time_touches(c->first, c->n);
	case VMM_KVM:
		return kvm(c->n);
	case VMM_RANDOM:
		return scribbles(c->first, c->n, c->arg);
	case VMM_CHECK:
		for (uint64_t i = 0; i < c->n; i++)
			r += look(c->first + i, false);
		return r;
	case VMM_PUNCH:
		return madvise(at, len, MADV_REMOVE) < 0 ? -errno : 0;
	case VMM_AGAIN:
		return mmap(NULL, me.npages * VMM_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
			    me.memfd, 0) == MAP_FAILED
			       ? -errno
			       : 0;
	case VMM_MORE:
		return more(c->n, c->arg != 0);
	case VMM_ANSWER:
		return answer_byte((int)c->arg);
	}
	return -ENOSYS;
}

/* 0, or why not, as an errno; 1000: no huge pages. */
static int
make_memory(const struct vmm_config *cfg)
{
	struct uffdio_api api = { .api = UFFD_API, .features = cfg->features };
	const size_t len = cfg->npages * VMM_PAGE;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | (cfg->huge ? MAP_HUGETLB : 0);

	me.memfd = me.connection = -1;
	me.npages = cfg->npages;
	me.uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (me.uffd < 0 || ioctl(me.uffd, UFFDIO_API, &api) < 0)
		return errno;
	if (cfg->memfd) {
		me.memfd = memfd_create("guest", MFD_CLOEXEC);
		if (me.memfd < 0 || ftruncate(me.memfd, (off_t)len) < 0)
			return errno;
		flags = MAP_SHARED;
	}
	me.base = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, me.memfd, 0);
	if (me.base == MAP_FAILED)
		return cfg->huge ? 1000 : errno;
	if (!cfg->huge)
		madvise(me.base, len, MADV_NOHUGEPAGE);
	for (uint64_t page = 0; page < cfg->before; page++) {
		uint64_t *w = (uint64_t *)(void *)(me.base + page * VMM_PAGE);

		for (unsigned i = 0; i < VMM_PAGE / 8; i++)
			w[i] = vmm_word(page, i);
	}
	if (count_versions(me.npages) != 0)
		return errno;
	return cfg->late ? 0 : -protect(me.base, len, cfg->memfd && !cfg->unguarded);
}

struct hello {
	int err;
	uint64_t address;
};

static void
say_hello(int control, int err)
{
	struct hello h = { err, (uintptr_t)me.base };

	me.connection = control;
	send_all((const char *)&h, sizeof h,
		 err != 0 ? 0 : VMM_UFFD | (me.memfd >= 0 ? VMM_MEMFD : 0), 0);
	me.connection = -1;
}

static void __attribute__((noreturn)) child_main(int control, const struct vmm_config *cfg)
{
	struct sigaction sa = { .sa_handler = on_bus };
	struct vmm_command c;
	int err;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigaction(SIGBUS, &sa, NULL);
	err = make_memory(cfg);
	say_hello(control, err);
	while (err == 0 && get(control, &c, sizeof c)) {
		int64_t r;

		if ((c.op == VMM_CONNECT || c.op == VMM_SEND) && !get(control, text, c.n))
			break;
		r = obey(&c);
		if (write(control, &r, sizeof r) != sizeof r)
			break;
	}
	_exit(0);
}

/* --- the test's side --- */

static uint64_t
now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void
wait_for(struct vmm *v, const char *what)
{
	const uint64_t until = now_ms() + VMM_DEADLINE_MS;
	struct pollfd p = { .fd = v->control, .events = POLLIN };

	for (;;) {
		const int n = poll(&p, 1, vmm_pump != NULL ? 2 : 100);

		if (vmm_pump != NULL)
			vmm_pump();
		if (n > 0)
			return;
		cr_assert(now_ms() < until, "the vmm has not answered within %d ms: %s",
			  VMM_DEADLINE_MS, what);
	}
}

static long
huge_pages(long set)
{
	char line[32] = "";
	const int fd = open(HUGE_PAGES, O_RDWR | O_CLOEXEC);
	long was = -1;

	if (fd < 0)
		return -1;
	if (read(fd, line, sizeof line - 1) > 0)
		was = atol(line);
	if (set >= 0)
		was = pwrite(fd, line, (size_t)snprintf(line, sizeof line, "%ld\n", set), 0) > 0
			      ? was
			      : -1;
	close(fd);
	return was;
}

static long huge_before = -1;

static void
huge_back(void)
{
	if (huge_before >= 0)
		huge_pages(huge_before);
}

static void
reserve_huge(const struct vmm_config *cfg)
{
	const long n = (long)(cfg->npages * VMM_PAGE >> 21), was = huge_pages(-1);

	if (was < 0)
		return;
	if (huge_before < 0) {
		huge_before = was;
		atexit(huge_back);
	}
	huge_pages(was + n);
}

#define VMM_ENV "UP_TEST_VMM"

static char *
asan_options(void)
{
	static char set[512];
	const char *const is = getenv("ASAN_OPTIONS");

	snprintf(set, sizeof set, "ASAN_OPTIONS=%s", is != NULL ? is : "");
	return set;
}

/*
 * In the process that vmm_start() makes: the same program anew, which is a monitor before it is a test.  Without exec() it would be a fork of a process
 * with threads, whose allocator may be locked for ever: AddressSanitizer's does not follow a fork (up to LLVM 16).
 */
__attribute__((constructor)) static void
become_vmm(void)
{
	const char *const set = getenv(VMM_ENV);
	struct vmm_config cfg;

	if (set == NULL || strlen(set) != 2 * sizeof cfg)
		return;
	for (size_t i = 0; i < sizeof cfg; i++) {
		unsigned byte;

		if (sscanf(set + 2 * i, "%2x", &byte) != 1)
			_exit(1);
		((unsigned char *)&cfg)[i] = (unsigned char)byte;
	}
	fcntl(CONTROL, F_SETFD, FD_CLOEXEC);
	child_main(CONTROL, &cfg);
}

void
vmm_start(struct vmm *v, const struct vmm_config *cfg)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(2 * sizeof(int))];
	} control;
	struct hello h = { 0 };
	struct iovec iov = { &h, sizeof h };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control,
	};
	char set[sizeof VMM_ENV + 2 * sizeof *cfg + 2] = VMM_ENV "=";
	char *env[] = { set, asan_options(), NULL };
	int pair[2];

	if (cfg->huge)
		reserve_huge(cfg);
	*v = (struct vmm){ .uffd = -1, .memfd = -1, .npages = cfg->npages };
	cr_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	for (size_t i = 0; i < sizeof *cfg; i++)
		snprintf(set + strlen(set), sizeof set - strlen(set), "%02x",
			 ((const unsigned char *)cfg)[i]);
	v->pid = fork();
	cr_assert(v->pid >= 0);
	if (v->pid == 0) {
		/* Nothing else: userfaultfds of others, that the test has, would never be closed. */
		if (dup2(pair[1], CONTROL) == CONTROL && close_range(CONTROL + 1, ~0u, 0) == 0)
			execve("/proc/self/exe", (char *[]){ (char *)(uintptr_t) "vmm", NULL },
			       env);
		_exit(1);
	}
	close(pair[1]);
	v->control = pair[0];
	wait_for(v, "start");
	cr_assert(recvmsg(v->control, &msg, MSG_CMSG_CLOEXEC) == sizeof h);
	if (h.err == 1000) {
		vmm_stop(v);
		cr_skip_test("no huge pages of 2 MiB can be had here");
	}
	if (h.err != 0) {
		vmm_stop(v);
		cr_skip_test("no such userfaultfd here: %s", strerror(h.err));
	}
	v->address = h.address;
	cr_assert(CMSG_FIRSTHDR(&msg) != NULL);
	memcpy(&v->uffd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof v->uffd);
	if (cfg->memfd)
		memcpy(&v->memfd, CMSG_DATA(CMSG_FIRSTHDR(&msg)) + sizeof(int), sizeof v->memfd);
}

void
vmm_stop(struct vmm *v)
{
	kill(v->pid, SIGKILL);
	waitpid(v->pid, NULL, 0);
	close(v->control);
	if (v->uffd >= 0)
		close(v->uffd);
	if (v->memfd >= 0)
		close(v->memfd);
	v->uffd = v->memfd = -1;
}

void
vmm_ask(struct vmm *v, enum vmm_op op, uint64_t first, uint64_t n, uint64_t arg)
{
	const struct vmm_command c = { (uint32_t)op, first, n, arg };

	cr_assert(write(v->control, &c, sizeof c) == sizeof c);
}

int64_t
vmm_answer(struct vmm *v)
{
	int64_t r = -1;

	wait_for(v, "a command");
	cr_assert(read(v->control, &r, sizeof r) == sizeof r, "the vmm has died");
	return r;
}

int64_t
vmm_do(struct vmm *v, enum vmm_op op, uint64_t first, uint64_t n, uint64_t arg)
{
	vmm_ask(v, op, first, n, arg);
	return vmm_answer(v);
}

int64_t
vmm_text(struct vmm *v, enum vmm_op op, const char *t, size_t len, uint64_t first, uint64_t arg)
{
	vmm_ask(v, op, first, len, arg);
	for (size_t at = 0; at < len;) {
		const ssize_t n = write(v->control, t + at, len - at);

		cr_assert(n > 0);
		at += (size_t)n;
	}
	return vmm_answer(v);
}

void
vmm_until(bool (*is)(void *), void *arg, unsigned ms, const char *what)
{
	const uint64_t until = now_ms() + ms;

	while (!is(arg)) {
		cr_assert(now_ms() < until, "within %u ms: not %s", ms, what);
		if (vmm_pump != NULL)
			vmm_pump();
		poll(NULL, 0, 1);
	}
}

static unsigned
entries(const char *path)
{
	DIR *d = opendir(path);
	unsigned n = 0;

	while (readdir(d) != NULL)
		n++;
	closedir(d);
	return n;
}

unsigned
vmm_threads(void)
{
	return entries("/proc/self/task");
}

unsigned
vmm_descriptors(void)
{
	return entries("/proc/self/fd");
}
