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

static int64_t
storm(uint64_t rounds)
{
	const uint64_t half = me.npages / 2;
	struct job job[3] = { { .n = half, .step = 1 },
			      { .n = half, .step = 3 },
			      { .n = half, .step = 5 } };
	int64_t r = 0;

	for (unsigned i = 0; i < 3; i++) {
		if (pthread_create(&job[i].thread, NULL, work, &job[i]) != 0)
			return -1;
	}
	for (uint64_t k = 0; k < rounds; k++) {
		const uint64_t n = 1 + k * 7 % 16, at = half + k * 13 % (half - n);

		if (madvise(me.base + at * VMM_PAGE, n * VMM_PAGE, MADV_DONTNEED) < 0)
			r++;
		for (uint64_t i = at; i < at + n; i++)
			r += !all(me.base + i * VMM_PAGE, 0);
		memset(me.base + at * VMM_PAGE, 0xaa, VMM_PAGE);
	}
	for (unsigned i = 0; i < 3; i++) {
		pthread_join(job[i].thread, NULL);
		r += job[i].r;
	}
	return r;
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
in_child(uint64_t first, uint64_t n)
{
	const pid_t pid = fork();
	int status;

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(verify(first, n) == 0 ? 0 : 1);
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
		for (uint64_t i = 0; i < c->n; i++)
			r += !all(at + i * VMM_PAGE, 0);
		return r;
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
		return in_child(c->first, c->n);
	case VMM_STORM:
		return storm(c->arg);
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
	}
	return -ENOSYS;
}

/* 0, or why not, as an errno; 1000: no huge pages. */
static int
make_memory(const struct vmm_config *cfg)
{
	struct uffdio_api api = { .api = UFFD_API, .features = cfg->features };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
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
		reg.mode |= UFFDIO_REGISTER_MODE_WP;
	}
	me.base = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, me.memfd, 0);
	if (me.base == MAP_FAILED)
		return cfg->huge ? 1000 : errno;
	if (!cfg->huge)
		madvise(me.base, len, MADV_NOHUGEPAGE);
	reg.range.start = (uintptr_t)me.base;
	reg.range.len = len;
	return ioctl(me.uffd, UFFDIO_REGISTER, &reg) < 0 ? errno : 0;
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
	int pair[2];

	if (cfg->huge)
		reserve_huge(cfg);
	*v = (struct vmm){ .uffd = -1, .memfd = -1, .npages = cfg->npages };
	cr_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	v->pid = fork();
	cr_assert(v->pid >= 0);
	if (v->pid == 0) {
		close(pair[0]);
		child_main(pair[1], cfg);
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
