/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * stress.c: everything at once, on the real kernel, against an oracle.
 *
 *	workers    each owns pages by hash, so that neighbours in a cluster, a leaf, a mapping
 *	           belong to different threads.  Only the owner of a page writes, discards, protects
 *	           or unmaps it, and remembers what it must hold; reading, advising and counting is
 *	           for everyone
 *	teaser     sends signals whose handler touches paged memory
 *	forker     forks; its children must find the regions gone
 *	neighbour  creates, fills and destroys other runtimes
 *	clerk      prints statistics and the trace
 *	main       samples what the kernel has resident; now and then stops everybody and compares
 *	           the pager's idea of each page with the kernel's; keeps a snapshot of the shared object
 *	           and looks whether it stays what it was while the workers write
 *
 * What a page holds follows from (id, major, minor), over all of its 512 words; the first is a tag
 * that checks itself, so that others may look at a page at any time, also while it is unmapped
 * under them, and tell a page of another owner from a page in motion.
 *
 * Alternative looked at: one lock a page, any thread does anything.  It has more freedom, but the
 * lock orders the threads, and with it go the interleavings (and the races that TSan could see).
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "delivery.h"
#include "stress.h"

#define PAGE ((size_t)UP_PAGE_SIZE)
#define WORDS (PAGE / sizeof(uint64_t))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

uint64_t
stress_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t
stress_mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static void
nap(uint64_t ns)
{
	const struct timespec ts = { .tv_sec = (time_t)(ns / 1000000000),
				     .tv_nsec = (long)(ns % 1000000000) };

	clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
}

/* --- masks --- */

static const struct {
	const char *name;
	uint64_t mask;
} mask_names[] = {
	{ "move", UP_MASK_MOVE },
	{ "poison", UP_MASK_POISON },
	{ "odirect", UP_MASK_ODIRECT },
	{ "dev_uffd", UP_MASK_DEV_UFFD },
	{ "kernel_faults", UP_MASK_KERNEL_FAULTS },
	{ "ring_flags", UP_MASK_RING_FLAGS },
	{ "shared", UP_MASK_SHARED },
	{ "all", UP_MASK_ALL },
	{ "none", 0 },
};

bool
stress_parse_mask(const char *list, uint64_t *mask)
{
	*mask = 0;
	while (*list != '\0') {
		const size_t len = strcspn(list, ",");
		size_t i = 0;

		while (i < ARRAY_SIZE(mask_names) && (strlen(mask_names[i].name) != len ||
						      strncmp(mask_names[i].name, list, len) != 0))
			i++;
		if (i == ARRAY_SIZE(mask_names))
			return false;
		*mask |= mask_names[i].mask;
		list += len + (list[len] == ',');
	}
	return true;
}

bool
stress_parse_number(const char *s, uint64_t max, uint64_t *n)
{
	char *end;

	*n = strtoull(s, &end, 0);
	return *s != '\0' && *end == '\0' && *n <= max;
}

void
stress_print_mask(uint64_t mask, char *buf, size_t size)
{
	size_t n = 0;

	snprintf(buf, size, "none");
	for (size_t i = 0; i < 6; i++) {
		if ((mask & mask_names[i].mask) && n < size)
			n += (size_t)snprintf(buf + n, size - n, "%s%s", n > 0 ? "," : "",
					      mask_names[i].name);
	}
}

/* --- the watch --- */

static struct watch *the_watch; /* of the process, for signal handlers */

void
post_step(struct post *p, const char *what, const void *at, size_t pages)
{
	if (atomic_load_explicit(&p->tid, memory_order_relaxed) == 0)
		atomic_store(&p->tid, (int)syscall(SYS_gettid));
	atomic_store_explicit(&p->at, (uintptr_t)at, memory_order_relaxed);
	atomic_store_explicit(&p->pages, pages, memory_order_relaxed);
	atomic_store_explicit(&p->since, stress_now(), memory_order_relaxed);
	atomic_fetch_add_explicit(&p->steps, 1, memory_order_relaxed);
	atomic_store_explicit(&p->what, what, memory_order_release);
}

/* Where the kernel has a thread: wchan and the system call it is in. */
static void
print_task(int tid)
{
	static const char *const files[] = { "comm", "wchan", "syscall" };
	char name[64], buf[160];

	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		ssize_t n = -1;
		int fd;

		snprintf(name, sizeof name, "/proc/self/task/%d/%s", tid, files[i]);
		fd = open(name, O_RDONLY | O_CLOEXEC);
		if (fd >= 0) {
			n = read(fd, buf, sizeof buf - 1);
			close(fd);
		}
		if (n > 0 && buf[n - 1] == '\n')
			n--;
		fprintf(stderr, "%s %.*s", i > 0 ? "," : "", n > 0 ? (int)n : 1, n > 0 ? buf : "?");
	}
	fputc('\n', stderr);
}

static void
print_posts(struct watch *w)
{
	const uint64_t now = stress_now();

	for (unsigned i = 0; i < w->nposts; i++) {
		struct post *p = &w->post[i];
		const char *what = atomic_load(&p->what);

		fprintf(stderr,
			"  thread %2u: %s at %#lx, %" PRIu64 " pages, for %.1f s; %" PRIu64
			" steps;",
			i, what != NULL ? what : "(nothing)", (unsigned long)atomic_load(&p->at),
			atomic_load(&p->pages),
			(double)(now - MIN(now, atomic_load(&p->since))) / 1e9,
			atomic_load(&p->steps));
		print_task(atomic_load(&p->tid));
	}
}

static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static char log_line[24][200];
static unsigned nlog;
static _Atomic pid_t log_pid;

void
watch_log(void *ctx, enum up_log_level level, const char *line)
{
	pid_t first = 0;

	(void)ctx;
	/* In a child another thread may have held the lock, for ever now. */
	if (!atomic_compare_exchange_strong(&log_pid, &first, getpid()) && first != getpid())
		return;
	pthread_mutex_lock(&log_lock);
	snprintf(log_line[nlog++ % ARRAY_SIZE(log_line)], sizeof log_line[0], "%d %s", (int)level,
		 line);
	pthread_mutex_unlock(&log_lock);
}

static void
print_log(void)
{
	for (unsigned i = nlog > ARRAY_SIZE(log_line) ? nlog - ARRAY_SIZE(log_line) : 0; i < nlog;
	     i++)
		fprintf(stderr, "log: %s\n", log_line[i % ARRAY_SIZE(log_line)]);
}

static void
die(int sig)
{
	(void)sig;
	abort();
}

void
watch_fail(struct watch *w, const char *fmt, ...)
{
	static atomic_flag failing = ATOMIC_FLAG_INIT;
	va_list ap;

	/* The first failure is the one to see. */
	if (atomic_flag_test_and_set(&failing)) {
		for (;;)
			pause();
	}
	print_log();
	fprintf(stderr, "stress: FAILED (thread %d): ", (int)syscall(SYS_gettid));
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap); /* NOLINT(clang-analyzer-valist.Uninitialized): it is */
	va_end(ap);
	fprintf(stderr, "\nstress: again with: %s\n", w->again);
	print_posts(w);
	/* Beyond this point locks are taken that somebody may be hanging with. */
	signal(SIGALRM, die);
	alarm(w->hold ? 0 : 10);
	if (w->rt != NULL) {
		up_trace_print(w->rt, stderr);
		fflush(stderr);
		if (!w->hold)
			up_stats_print(w->rt, stderr);
	}
	if (w->hold) {
		fprintf(stderr, "stress: holding for a debugger: process %d\n", (int)getpid());
		for (;;)
			pause();
	}
	abort();
}

struct starting {
	void *(*body)(void *);
	void *arg;
	sem_t runs;
};

static void *
start_body(void *arg)
{
	struct starting *s = arg;
	void *(*body)(void *) = s->body;

	arg = s->arg;
	sem_post(&s->runs); /* the last use */
	return body(arg);
}

int
start_thread(pthread_t *t, void *(*body)(void *), void *arg)
{
	struct starting s = { .body = body, .arg = arg };
	int r;

	sem_init(&s.runs, 0, 0);
	r = pthread_create(t, NULL, start_body, &s);
	while (r == 0 && sem_wait(&s.runs) < 0)
		;
	return r;
}

static void *
watch_thread(void *arg)
{
	struct watch *w = arg;

	while (!atomic_load(&w->stop)) {
		const uint64_t now = stress_now();

		for (unsigned i = 0; i < w->nposts; i++) {
			struct post *p = &w->post[i];
			const char *what = atomic_load_explicit(&p->what, memory_order_acquire);
			const uint64_t since =
				atomic_load_explicit(&p->since, memory_order_relaxed);

			if (what != NULL && now > since &&
			    now - since > STEP_SECONDS * UINT64_C(1000000000))
				watch_fail(w, "thread %u hangs in %s", i, what);
		}
		nap(100000000);
	}
	return NULL;
}

void
watch_start(struct watch *w, struct up_runtime *rt, unsigned nposts, const char *again)
{
	pthread_t t;

	if (nposts > POSTS_MAX)
		abort();
	w->rt = rt;
	w->nposts = nposts;
	w->again = again;
	atomic_store(&w->stop, false);
	for (unsigned i = 0; i < nposts; i++) {
		atomic_store(&w->post[i].what, NULL);
		atomic_store(&w->post[i].tid, 0);
		atomic_store(&w->post[i].steps, 0);
	}
	the_watch = w;
	if (start_thread(&t, watch_thread, w) != 0)
		watch_fail(w, "pthread_create");
	w->thread = t;
}

void
watch_stop(struct watch *w)
{
	atomic_store(&w->stop, true);
	pthread_join(w->thread, NULL);
}

/* --- touching what may not be there --- */

static _Thread_local sigjmp_buf touch_env;
static _Thread_local volatile sig_atomic_t touching;

static void
on_fault(int sig, siginfo_t *si, void *ctx)
{
	if (sig == SIGBUS && up_handle_sigbus(si, ctx))
		return;
	if (touching) {
		touching = 0;
		siglongjmp(touch_env, sig);
	}
	if (the_watch != NULL)
		watch_fail(the_watch, "%s at %p", sig == SIGBUS ? "SIGBUS" : "SIGSEGV",
			   si->si_addr);
	abort();
}

void
touch_init(void)
{
	struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };

	/* What interrupted it would find SIGBUS blocked. */
	sigfillset(&sa.sa_mask);
	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
}

/* Not an access as far as the compiler and the sanitizers know: a race with the owner is meant. */
static uint64_t
peek_word(const void *addr)
{
	uint64_t v;

#if defined(__x86_64__)
	__asm__ volatile("movq %1, %0" : "=r"(v) : "m"(*(const uint64_t *)addr));
#elif defined(__aarch64__)
	__asm__ volatile("ldr %0, %1" : "=r"(v) : "m"(*(const uint64_t *)addr));
#else
	v = __atomic_load_n((const uint64_t *)addr, __ATOMIC_RELAXED);
#endif
	return v;
}

/*
 * An atomic addition, unseen as well: ThreadSanitizer makes an atomic access under a lock of its
 * own, and with that lock held a page fault waits for a thread of the pager, which needs the lock.
 */
static uint64_t
add_word(uint64_t *addr, uint64_t n)
{
#if defined(__x86_64__)
	__asm__ volatile("lock xaddq %0, %1" : "+r"(n), "+m"(*addr) : : "memory");
	return n;
#else
	return __atomic_fetch_add(addr, n, __ATOMIC_SEQ_CST);
#endif
}

int
touch_read(const void *addr, uint64_t *value)
{
	const int sig = sigsetjmp(touch_env, 1);

	if (sig != 0)
		return sig == SIGBUS ? -1 : 0;
	touching = 1;
	*value = peek_word(addr);
	touching = 0;
	return 1;
}

int
touch_write(void *addr, uint64_t value)
{
	const int sig = sigsetjmp(touch_env, 1);

	if (sig != 0)
		return sig == SIGBUS ? -1 : 0;
	touching = 1;
	*(volatile uint64_t *)addr = value;
	touching = 0;
	return 1;
}

/* --- what the kernel has resident --- */

static bool
kb_field(const char *line, const char *name, uint64_t *bytes)
{
	const size_t len = strlen(name);

	if (strncmp(line, name, len) != 0 || line[len] != ':')
		return false;
	*bytes = strtoull(line + len + 1, NULL, 10) << 10;
	return true;
}

#define POOL_NAME "uffd-pager-pool"

/* What is in files in memory, mapped or not. */
uint64_t
resident_pools(void)
{
	DIR *d = opendir("/proc/self/fd");
	const struct dirent *e;
	uint64_t bytes = 0;

	if (d == NULL)
		abort();
	while ((e = readdir(d)) != NULL) {
		char path[300], name[64];
		struct stat st;
		ssize_t n;

		snprintf(path, sizeof path, "/proc/self/fd/%s", e->d_name);
		n = readlink(path, name, sizeof name - 1);
		if (n <= 0)
			continue;
		name[n] = '\0';
		if (strstr(name, POOL_NAME) != NULL && stat(path, &st) == 0)
			bytes += (uint64_t)st.st_blocks * 512;
	}
	closedir(d);
	return bytes;
}

void
resident_by_smaps(struct resident *r)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	uint64_t rss = 0, anon = 0;
	bool pool = false;
	char line[512];

	*r = (struct resident){ .pager = resident_pools() };
	if (f == NULL)
		abort();
	while (fgets(line, sizeof line, f) != NULL) {
		(void)(kb_field(line, "Rss", &rss) || kb_field(line, "Anonymous", &anon));
		/* The first line of a mapping has its name; shared memory has been counted, once. */
		if (strchr(line, '-') != NULL && strstr(line, " kB\n") == NULL)
			pool = strstr(line, POOL_NAME) != NULL;
		/* The flags are the last line of a mapping. */
		if (strncmp(line, "VmFlags:", 8) != 0)
			continue;
		if (!pool && (strstr(line, " dc") != NULL || strstr(line, " wf") != NULL))
			r->pager += rss;
		else
			r->program += anon;
	}
	fclose(f);
}

uint64_t
resident_anon(void)
{
	const int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	char buf[8192];
	const ssize_t n = fd >= 0 ? read(fd, buf, sizeof buf - 1) : -1;
	uint64_t v = 0;

	if (n <= 0)
		abort();
	close(fd);
	buf[n] = '\0';
	for (const char *line = buf; line != NULL; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (kb_field(line, "RssAnon", &v))
			return v;
	}
	abort();
}

bool
resident_pager(uint64_t *bytes)
{
	struct resident before, after;
	uint64_t anon, pools, program;

	resident_by_smaps(&before);
	pools = resident_pools();
	anon = resident_anon();
	if (resident_pools() != pools)
		return false;
	resident_by_smaps(&after);
	program = MAX(before.program, after.program);
	*bytes = (anon > program ? anon - program : 0) + pools;
	return true;
}

/* --- what a page must hold --- */

/* major 0: zeros, never written or discarded. */
struct want {
	uint32_t id;	/* region << 16 | page, of where it was written first */
	uint32_t major; /* 24 bits; decides words 0 and 2..511 */
	uint32_t minor; /* decides word 1 */
};

#define MAJOR_MASK 0xffffffu

static uint64_t
tag_of(const struct want *w)
{
	const uint64_t low = (uint64_t)w->id << 24 | (w->major & MAJOR_MASK);

	return low | stress_mix(low) << 48;
}

/* True if the word is the tag of some page; its id. */
static bool
tag_valid(uint64_t tag, uint32_t *id)
{
	const uint64_t low = tag & ((UINT64_C(1) << 48) - 1);

	*id = (uint32_t)(low >> 24);
	return tag == (low | stress_mix(low) << 48);
}

/* Some versions are zeros that were written: pageout has a way of its own for these. */
static bool
is_zeros(const struct want *w)
{
	return w->major % 16 == 0;
}

static inline uint64_t
word_of(const struct want *w, uint64_t base, size_t i)
{
	if (i >= 2)
		return base * (2 * i + 1);
	return i == 0 ? tag_of(w) : stress_mix(base ^ w->minor);
}

static uint64_t
base_of(const struct want *w)
{
	return stress_mix((uint64_t)w->id << 32 | w->major) | 1;
}

static void
page_fill(uint64_t *page, const struct want *w)
{
	const uint64_t base = base_of(w);

	if (is_zeros(w)) {
		memset(page, 0, PAGE);
		return;
	}
	for (size_t i = 0; i < WORDS; i++)
		page[i] = word_of(w, base, i);
}

/* The first word that is wrong, or WORDS. */
static size_t
page_verify(const uint64_t *page, const struct want *w)
{
	const uint64_t base = base_of(w);
	const bool zeros = is_zeros(w);

	for (size_t i = 0; i < WORDS; i++) {
		if (page[i] != (zeros ? 0 : word_of(w, base, i)))
			return i;
	}
	return WORDS;
}

/* --- the mill --- */

#define WORKERS_MAX 16
#define NSHARED 4     /* regions whose pages all workers own some of */
#define OWN_PAGES 300 /* most pages of a worker's own region */
#define RUN_MAX 16    /* pages of most operations */
#define COUNTER_PAGES 48
#define COUNTERS_PER_PAGE 4
#define LATTICE 16    /* pages; clips by everybody fall on multiples, or entries would never end */
#define PIECES_MAX 12 /* mappings of their own, each of which has its leaf's metadata promised */
#define NEIGHBOUR_MEMORY UP_MEMORY_LIMIT_MIN
#define CLONES 2 /* of one worker */
#define CLONES_MAX \
	4 /* of all: each has metadata promised, and so has what it shares with the original */
#define CLONE_PAGES 64	      /* most pages of one */
#define SNAPPED (NSHARED - 1) /* the region whose object is snapshot */

/* The unit of ownership, and of unmapping. */
struct grain {
	_Atomic uintptr_t va; /* where it is, or was last */
	atomic_uint flux;     /* odd: unmapped or not readable, or about to be */
	uint8_t owner;	      /* constant */
	/* the owner's: */
	bool mapped, held;
	int prot;
	unsigned pieces;
};

struct region {
	unsigned index;
	size_t npages, gsize, ngrains;
	unsigned flags; /* UP_PRIVATE or UP_SHARED, UP_NORESERVE */
	struct up_object *object;
	uintptr_t base; /* of the first mapping; others may be there now */
	struct grain *grain;
	struct want *want; /* [npages], each the owner's */
};

struct mill;

/* A copy of pages that a worker owned, its own whatever becomes of those. */
struct clone {
	uintptr_t va; /* 0: none */
	size_t n;
	bool held; /* somebody further up is at it */
	struct want want[CLONE_PAGES];
};

struct worker {
	struct mill *m;
	struct post *post;
	pthread_t thread;
	unsigned id;
	uint64_t random;
	uint32_t serial;
	struct region own; /* nobody else's */
	struct clone clone[CLONES];
	uint64_t *buf; /* RUN_MAX pages of ordinary memory */
	unsigned char *vec;
	int file, direct, pipe[2]; /* direct: the file with O_DIRECT, or -1 */
	uint64_t count[COUNTER_PAGES * COUNTERS_PER_PAGE]; /* what it added */
	_Atomic uint64_t signal_adds;
	uint64_t pages, peeks, syscalls, clones;
};

enum helper { TEASER, FORKER, NEIGHBOUR, CLERK, HELPERS };

struct mill {
	const struct stress *cfg;
	pid_t pid;
	struct watch watch;
	struct up_runtime *rt;
	uint64_t features;
	unsigned
		noreserve; /* UP_NORESERVE, or 0 where the limit leaves no metadata to overcommit */
	struct region region[NSHARED];
	uint64_t *counters; /* COUNTER_PAGES of paged memory; add_word(), peek_word() */
	struct worker worker[WORKERS_MAX];
	struct post *main_post;
	pthread_t helper[HELPERS];
	atomic_uint pieces, clones;
	struct up_object *snap; /* main's, NULL: none just now */
	char *snap_va;
	struct want *snap_want;
	uint64_t snapshots;
	atomic_bool stop;
	atomic_bool neighbours; /* another runtime may exist just now */
	_Atomic uint64_t forks, runtimes;
	atomic_uint rests; /* times that everybody stood still */
	uint64_t samples, peak;
	char again[200];

	/* the gate that stops everybody */
	pthread_mutex_t gate;
	pthread_cond_t gate_cond;
	atomic_bool closed;
	unsigned waiting, participants; /* (gate) */
};

static _Thread_local struct worker *me;

/* A few pages that this worker owns. */
struct spot {
	struct region *r;
	struct grain *g;
	size_t page, n; /* in the region */
	char *va;
};

static uint64_t
below(struct worker *w, uint64_t n)
{
	w->random += 0x9e3779b97f4a7c15u;
	return stress_mix(w->random) % n;
}

#define fail(m, ...) watch_fail(&(m)->watch, __VA_ARGS__)

/* --- the gate --- */

static void
pass_gate(struct mill *m, struct post *post)
{
	if (!atomic_load_explicit(&m->closed, memory_order_relaxed))
		return;
	post_step(post, NULL, NULL, 0);
	pthread_mutex_lock(&m->gate);
	m->waiting++;
	pthread_cond_broadcast(&m->gate_cond);
	while (atomic_load(&m->closed))
		pthread_cond_wait(&m->gate_cond, &m->gate);
	m->waiting--;
	pthread_mutex_unlock(&m->gate);
}

/* Returns when everybody waits; the watch sees to it that they come. */
static void
close_gate(struct mill *m)
{
	pthread_mutex_lock(&m->gate);
	atomic_store(&m->closed, true);
	while (m->waiting < m->participants)
		pthread_cond_wait(&m->gate_cond, &m->gate);
	pthread_mutex_unlock(&m->gate);
}

static void
open_gate(struct mill *m)
{
	pthread_mutex_lock(&m->gate);
	atomic_store(&m->closed, false);
	pthread_cond_broadcast(&m->gate_cond);
	pthread_mutex_unlock(&m->gate);
}

/* --- regions and spots --- */

static size_t
grain_pages(const struct region *r, const struct grain *g)
{
	return MIN(r->gsize, r->npages - (size_t)(g - r->grain) * r->gsize);
}

static size_t
grain_first(const struct region *r, const struct grain *g)
{
	return (size_t)(g - r->grain) * r->gsize;
}

static void
set_flux(struct grain *g, bool on)
{
	if ((atomic_load_explicit(&g->flux, memory_order_relaxed) & 1) != on)
		atomic_fetch_add(&g->flux, 1);
}

static void
forget(struct region *r, size_t first, size_t n)
{
	memset(r->want + first, 0, n * sizeof r->want[0]);
}

/*
 * Map [first, first + n) of the region again, exactly at `va` if that is not 0.  False: not now,
 * for a reason that may go away.
 */
static bool
map_pages(struct mill *m, struct region *r, size_t first, size_t n, uintptr_t va, uintptr_t *got)
{
	void *p;
	const int e = up_map(m->rt, (void *)va, n * PAGE, PROT_READ | PROT_WRITE,
			     r->flags | (va != 0 ? UP_FIXED : 0), r->object,
			     r->object != NULL ? first * PAGE : 0, &p);

	if (e == 0) {
		*got = (uintptr_t)p;
		return true;
	}
	/* Somebody else's mapping has come to lie in the gap; or metadata is scarce. */
	if (e != -ENOMEM && !(e == -EEXIST && va != 0))
		fail(m, "up_map of %zu pages of region %u at %#lx: %s", n, r->index,
		     (unsigned long)va, strerrorname_np(-e));
	return false;
}

static bool
unmap_pages(struct mill *m, uintptr_t va, size_t n)
{
	const int e = up_unmap(m->rt, (void *)va, n * PAGE);

	if (e != 0 && e != -ENOMEM)
		fail(m, "up_unmap of %zu pages at %#lx: %s", n, (unsigned long)va,
		     strerrorname_np(-e));
	return e == 0;
}

/* Make a grain that this worker owns accessible, if it is not. */
static bool
ensure(struct worker *w, struct region *r, struct grain *g, int prot)
{
	const size_t first = grain_first(r, g), n = grain_pages(r, g);
	uintptr_t va;
	int e;

	if (!g->mapped) {
		/* Back to where it was, half of the time, if nobody is there. */
		if (!(below(w, 2) && map_pages(w->m, r, first, n, atomic_load(&g->va), &va)) &&
		    !map_pages(w->m, r, first, n, 0, &va))
			return false;
		atomic_store(&g->va, va);
		g->mapped = true;
		g->prot = PROT_READ | PROT_WRITE;
		g->pieces = 1;
		atomic_fetch_add(&w->m->pieces, 1);
		set_flux(g, false);
	}
	if ((g->prot & prot) != prot) {
		e = up_protect(w->m->rt, (void *)atomic_load(&g->va), n * PAGE,
			       PROT_READ | PROT_WRITE);
		if (e != 0 && e != -ENOMEM)
			fail(w->m, "up_protect: %s", strerrorname_np(-e));
		if (e != 0)
			return false;
		g->prot = PROT_READ | PROT_WRITE;
		set_flux(g, false);
	}
	return true;
}

/* Up to `most` pages that are ours.  False: none was found in a few attempts. */
static bool
pick(struct worker *w, struct spot *s, size_t most)
{
	size_t size, at;

	for (unsigned tries = 0; tries < 64; tries++) {
		s->r = below(w, 6) == 0 ? &w->own : &w->m->region[below(w, NSHARED)];
		s->g = &s->r->grain[below(w, s->r->ngrains)];
		if (s->g->owner != w->id || s->g->held)
			continue;
		size = grain_pages(s->r, s->g);
		at = below(w, size);
		s->n = 1 + below(w, MIN(size - at, most));
		s->page = grain_first(s->r, s->g) + at;
		s->va = (void *)((uintptr_t)atomic_load(&s->g->va) + at * PAGE);
		return true;
	}
	return false;
}

/* The same, and accessible. */
static bool
pick_ready(struct worker *w, struct spot *s, size_t most, int prot)
{
	if (!pick(w, s, most) || !ensure(w, s->r, s->g, prot))
		return false;
	s->va = (char *)atomic_load(&s->g->va) + (s->page - grain_first(s->r, s->g)) * PAGE;
	atomic_store_explicit(&w->post->at, (uintptr_t)s->va, memory_order_relaxed);
	atomic_store_explicit(&w->post->pages, s->n, memory_order_relaxed);
	return true;
}

static struct want
next_version(struct worker *w, const struct region *r, size_t page)
{
	do
		w->serial = (w->serial + 1) & MAJOR_MASK;
	while (w->serial == 0);
	return (struct want){ .id = r->index << 16 | (uint32_t)page, .major = w->serial };
}

static void __attribute__((noreturn))
wrong(struct worker *w, const struct spot *s, size_t page, const uint64_t *at, size_t word)
{
	const struct want *want = &s->r->want[page];
	const uint64_t expect = is_zeros(want) ? 0 : word_of(want, base_of(want), word),
		       got = at[word];
	size_t n = 0, zero = 0;
	unsigned char vec = 0xee;
	uint32_t id = 0;
	bool tag;

	for (size_t i = 0; i < WORDS; i++) {
		n += at[i] != (is_zeros(want) ? 0 : word_of(want, base_of(want), i));
		zero += at[i] == 0;
	}
	tag = tag_valid(at[0], &id);
	up_residency(w->m->rt, s->va + (page - s->page) * PAGE, PAGE, &vec);
	fail(w->m,
	     "region %u page %zu (%p): %zu words wrong, %zu zero; word %zu is %#" PRIx64
	     ", not %#" PRIx64
	     "; want id %#x version %u.%u; %s tag, id %#x version %u; looked at again %s; residency %#x",
	     s->r->index, page, (const void *)(s->va + (page - s->page) * PAGE), n, zero, word, got,
	     expect, want->id, want->major, want->minor, tag ? "valid" : "no", id,
	     (unsigned)(at[0] & MAJOR_MASK),
	     page_verify(at, want) == WORDS ? "it is right" : "it is still wrong", vec);
}

static void
verify_at(struct worker *w, const struct spot *s, const void *mem)
{
	for (size_t i = 0; i < s->n; i++) {
		const uint64_t *page = (const uint64_t *)((const char *)mem + i * PAGE);
		const size_t bad = page_verify(page, &s->r->want[s->page + i]);

		if (bad < WORDS)
			wrong(w, s, s->page + i, page, bad);
	}
	w->pages += s->n;
}

/* --- what workers do: contents --- */

static void
op_read(struct worker *w)
{
	struct spot s;

	if (pick_ready(w, &s, 8, PROT_READ))
		verify_at(w, &s, s.va);
}

static void
op_write(struct worker *w)
{
	struct spot s;

	if (!pick_ready(w, &s, 8, PROT_READ | PROT_WRITE))
		return;
	for (size_t i = 0; i < s.n; i++) {
		s.r->want[s.page + i] = next_version(w, s.r, s.page + i);
		page_fill((uint64_t *)(s.va + i * PAGE), &s.r->want[s.page + i]);
	}
}

/* Change one word of pages, or write what is there already. */
static void
op_touch(struct worker *w)
{
	const bool same = below(w, 3) == 0;
	struct spot s;

	if (!pick_ready(w, &s, 8, PROT_READ | PROT_WRITE))
		return;
	for (size_t i = 0; i < s.n; i++) {
		struct want *want = &s.r->want[s.page + i];
		uint64_t *page = (uint64_t *)(s.va + i * PAGE);

		if (is_zeros(want)) {
			page[below(w, WORDS)] = 0;
			continue;
		}
		want->minor += !same;
		page[1] = word_of(want, base_of(want), 1);
	}
	verify_at(w, &s, s.va);
}

static bool
pick_two(struct worker *w, struct spot *from, struct spot *to)
{
	if (!pick_ready(w, from, RUN_MAX - 1, PROT_READ) ||
	    !pick_ready(w, to, RUN_MAX - 1, PROT_READ | PROT_WRITE))
		return false;
	/* Making the second accessible has not moved the first, unless they are one grain. */
	from->va = (char *)atomic_load(&from->g->va) +
		   (from->page - grain_first(from->r, from->g)) * PAGE;
	from->n = to->n = MIN(from->n, to->n);
	return true;
}

static bool
overlap(const struct spot *a, const struct spot *b)
{
	return a->r == b->r && a->page < b->page + b->n && b->page < a->page + a->n;
}

static void
moved(struct spot *from, struct spot *to)
{
	memmove(&to->r->want[to->page], &from->r->want[from->page], to->n * sizeof to->r->want[0]);
}

static void
op_copy(struct worker *w)
{
	struct spot from, to;

	if (!pick_two(w, &from, &to))
		return;
	memmove(to.va, from.va, to.n * PAGE);
	moved(&from, &to);
	verify_at(w, &to, to.va);
}

/* In and out by memcpy() of ordinary memory. */
static void
op_local(struct worker *w)
{
	struct spot s;

	if (!pick_ready(w, &s, RUN_MAX, PROT_READ | PROT_WRITE))
		return;
	memcpy(w->buf, s.va, s.n * PAGE);
	verify_at(w, &s, w->buf);
	for (size_t i = 0; i < s.n; i++) {
		s.r->want[s.page + i] = next_version(w, s.r, s.page + i);
		page_fill(w->buf + i * WORDS, &s.r->want[s.page + i]);
	}
	memcpy(s.va, w->buf, s.n * PAGE);
}

static void
op_count(struct worker *w)
{
	for (unsigned i = 0; i < 8; i++) {
		const size_t page = below(w, COUNTER_PAGES), k = below(w, COUNTERS_PER_PAGE);
		const uint64_t n = 1 + below(w, 1000);

		add_word(&w->m->counters[page * WORDS + 1 + k * 17], n);
		w->count[page * COUNTERS_PER_PAGE + k] += n;
	}
}

/* --- what workers do: system calls --- */

/* All of it, in as many calls as the kernel likes. */
static void
transfer(struct worker *w, const char *what, int fd, char *va, size_t len, bool in, off_t at,
	 bool split)
{
	size_t done = 0;

	while (done < len) {
		/* Vectors that cut pages, so that one call meets several states of one page. */
		const size_t left = len - done, cut = split && left > 3000 ? left / 3 + 7 : left;
		struct iovec iov[2] = { { va + done, cut }, { va + done + cut, left - cut } };
		const int n = cut < left ? 2 : 1;
		ssize_t r;

		if (at < 0)
			r = in ? readv(fd, iov, n) : writev(fd, iov, n);
		else
			r = in ? preadv(fd, iov, n, at + (off_t)done)
			       : pwritev(fd, iov, n, at + (off_t)done);
		w->syscalls++;
		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			fail(w->m, "%s of %zu bytes at %p: %s", what, left, (void *)(va + done),
			     r < 0 ? strerrorname_np(errno) : "the end");
		done += (size_t)r;
	}
}

static void
op_file(struct worker *w)
{
	struct spot from, to;

	if (!pick_two(w, &from, &to) || overlap(&from, &to))
		return;
	transfer(w, "pwritev from a region", w->file, from.va, from.n * PAGE, false, 0,
		 below(w, 2));
	transfer(w, "preadv into a region", w->file, to.va, to.n * PAGE, true, 0, below(w, 2));
	moved(&from, &to);
	verify_at(w, &to, to.va);
}

static void
op_pipe(struct worker *w)
{
	struct spot from, to;

	if (!pick_two(w, &from, &to) || overlap(&from, &to))
		return;
	transfer(w, "writev from a region to a pipe", w->pipe[1], from.va, from.n * PAGE, false, -1,
		 below(w, 2));
	transfer(w, "readv from a pipe into a region", w->pipe[0], to.va, to.n * PAGE, true, -1,
		 below(w, 2));
	moved(&from, &to);
	verify_at(w, &to, to.va);
}

/* The disk reads and writes the pages themselves: they are pinned meanwhile. */
static void
op_direct(struct worker *w)
{
	struct spot from, to;

	if (w->direct < 0 || !pick_two(w, &from, &to) || overlap(&from, &to))
		return;
	transfer(w, "direct pwritev from a region", w->direct, from.va, from.n * PAGE, false, 0,
		 false);
	transfer(w, "direct preadv into a region", w->direct, to.va, to.n * PAGE, true, 0, false);
	moved(&from, &to);
	verify_at(w, &to, to.va);
}

/* --- what workers do: ranges --- */

static void
advise(struct worker *w, const void *va, size_t n, enum up_advice advice, bool must)
{
	const int e = up_advise(w->m->rt, (void *)(uintptr_t)va, n * PAGE, advice);

	/* A gap; or no room to split an entry. */
	if (e == -ENOMEM && (!must || advice <= UP_ADVICE_RANDOM))
		return;
	if (e != 0)
		fail(w->m, "up_advise %d: %s", (int)advice, strerrorname_np(-e));
}

static void
op_dontneed(struct worker *w)
{
	struct spot s;

	if (!pick_ready(w, &s, below(w, 16) == 0 ? SIZE_MAX : 4, PROT_NONE))
		return;
	/* Have it read in, written out or moved about just now. */
	if (below(w, 3) == 0)
		advise(w, s.va, s.n, below(w, 2) ? UP_ADVICE_WILLNEED : UP_ADVICE_COLD, true);
	advise(w, s.va, s.n, UP_ADVICE_DONTNEED, true);
	forget(s.r, s.page, s.n);
	if (s.g->prot != PROT_NONE && below(w, 2))
		verify_at(w, &s, s.va);
}

static void
op_residency(struct worker *w)
{
	struct spot s;

	if (!pick_ready(w, &s, SIZE_MAX, PROT_NONE))
		return;
	if (up_residency(w->m->rt, s.va, s.n * PAGE, w->vec) != 0)
		fail(w->m, "up_residency of a mapped range");
	for (size_t i = 0; i < s.n; i++) {
		if (w->vec[i] & UP_PAGE_LOST)
			fail(w->m, "region %u page %zu is lost", s.r->index, s.page + i);
		if (w->vec[i] == 0 && !is_zeros(&s.r->want[s.page + i]))
			fail(w->m,
			     "region %u page %zu has content, residency says it was never written",
			     s.r->index, s.page + i);
	}
}

/* Advice about whatever is there, whoever owns it. */
static void
op_span(struct worker *w)
{
	static const enum up_advice kinds[] = {
		UP_ADVICE_WILLNEED, UP_ADVICE_WILLNEED, UP_ADVICE_COLD,	      UP_ADVICE_COLD,
		UP_ADVICE_NORMAL,   UP_ADVICE_RANDOM,	UP_ADVICE_SEQUENTIAL,
	};
	const struct region *r = &w->m->region[below(w, NSHARED)];
	const size_t first = below(w, r->npages / LATTICE) * LATTICE;
	const size_t n = MIN((1 + below(w, 8)) * LATTICE, r->npages - first);

	advise(w, (void *)(r->base + first * PAGE), n, kinds[below(w, ARRAY_SIZE(kinds))], false);
}

/* Other pages come and go while the grain that `s` is in stays as it is. */
static void
meanwhile(struct worker *w, const struct spot *s)
{
	s->g->held = true;
	for (uint64_t i = below(w, 4); i > 0; i--)
		below(w, 2) ? op_read(w) : op_write(w);
	s->g->held = false;
}

static void
op_protect(struct worker *w)
{
	const int prot = below(w, 2) ? PROT_READ : PROT_NONE;
	const bool whole = below(w, 2);
	uint64_t v;
	struct spot s;
	int e;

	if (!pick_ready(w, &s, SIZE_MAX, PROT_READ | PROT_WRITE))
		return;
	if (whole) {
		s.page = grain_first(s.r, s.g);
		s.n = grain_pages(s.r, s.g);
		s.va = (char *)atomic_load(&s.g->va);
	}
	if (prot == PROT_NONE)
		set_flux(s.g, true);
	e = up_protect(w->m->rt, s.va, s.n * PAGE, prot);
	if (e == -ENOMEM) {
		set_flux(s.g, false);
		return;
	}
	if (e != 0)
		fail(w->m, "up_protect to %d: %s", prot, strerrorname_np(-e));
	if (touch_write(s.va, 0) != 0)
		fail(w->m, "%p with protection %d could be written", (void *)s.va, prot);
	if (touch_read(s.va, &v) != (prot == PROT_READ))
		fail(w->m, "%p with protection %d: reading it went wrong", (void *)s.va, prot);
	meanwhile(w, &s);
	if (prot == PROT_READ && below(w, 2))
		verify_at(w, &s, s.va);
	if (whole) {
		s.g->prot = prot; /* until somebody needs more */
		return;
	}
	e = up_protect(w->m->rt, s.va, s.n * PAGE, PROT_READ | PROT_WRITE);
	if (e != 0)
		fail(w->m, "up_protect back: %s", strerrorname_np(-e));
	set_flux(s.g, false);
}

static void
unmapped(struct worker *w, struct spot *s)
{
	atomic_fetch_sub(&w->m->pieces, s->g->pieces);
	s->g->pieces = 0;
	s->g->mapped = false;
	if (s->r->object == NULL)
		forget(s->r, grain_first(s->r, s->g), grain_pages(s->r, s->g));
}

/* Unmap a part of a grain and map it again in the same place. */
static void
replace_part(struct worker *w, struct spot *s)
{
	const size_t at = s->page - grain_first(s->r, s->g), size = grain_pages(s->r, s->g);
	const uintptr_t va = atomic_load(&s->g->va);
	uintptr_t got;

	if (!unmap_pages(w->m, (uintptr_t)s->va, s->n))
		return;
	if (s->r->object == NULL)
		forget(s->r, s->page, s->n);
	if (below(w, 2))
		meanwhile(w, s);
	if (map_pages(w->m, s->r, s->page, s->n, (uintptr_t)s->va, &got)) {
		s->g->pieces++;
		atomic_fetch_add(&w->m->pieces, 1);
		return;
	}
	/* Somebody has settled in the gap: leave the place. */
	while ((at > 0 && !unmap_pages(w->m, va, at)) ||
	       (at + s->n < size && !unmap_pages(w->m, va + (at + s->n) * PAGE, size - at - s->n)))
		sched_yield();
	unmapped(w, s);
}

static void
op_unmap(struct worker *w)
{
	struct spot s;

	if (!pick(w, &s, SIZE_MAX) || !s.g->mapped || grain_pages(s.r, s.g) == 1)
		return;
	if (s.r->object == NULL && s.g->pieces == 0 && atomic_load(&w->m->pieces) >= PIECES_MAX)
		return;
	set_flux(s.g, true);
	/* Unmapping finds pages being read in, written out, cooled, or just faulted in. */
	switch (below(w, 4)) {
	case 0:
		advise(w, s.va, s.n, UP_ADVICE_WILLNEED, true);
		break;
	case 1:
		advise(w, s.va, s.n, UP_ADVICE_COLD, true);
		break;
	default:
		break;
	}
	if (s.g->prot == (PROT_READ | PROT_WRITE) && atomic_load(&w->m->pieces) < PIECES_MAX &&
	    below(w, 2)) {
		replace_part(w, &s);
	} else if (unmap_pages(w->m, atomic_load(&s.g->va), grain_pages(s.r, s.g))) {
		unmapped(w, &s);
		meanwhile(w, &s);
		if (below(w, 2))
			ensure(w, s.r, s.g, PROT_READ);
	}
	if (s.g->mapped && s.g->prot != PROT_NONE)
		set_flux(s.g, false);
}

/* --- what workers do: their own region --- */

static void
drop_own(struct worker *w)
{
	struct region *r = &w->own;
	/* An object may be dropped while it is mapped, and live on as long as that. */
	const bool first = below(w, 2);

	if (first)
		up_object_unref(r->object);
	while (r->grain[0].mapped) {
		struct spot s = { .r = r, .g = &r->grain[0] };

		if (unmap_pages(w->m, atomic_load(&s.g->va), r->npages))
			unmapped(w, &s);
	}
	if (!first)
		up_object_unref(r->object);
	r->object = NULL;
	forget(r, 0, OWN_PAGES);
}

/* Another region, of another size and kind. */
static void
op_own(struct worker *w)
{
	struct region *r = &w->own;
	int e;

	if (r->grain[0].held)
		return;
	drop_own(w);
	r->npages = r->gsize = 1 + below(w, OWN_PAGES);
	r->flags = UP_PRIVATE;
	switch (below(w, 3)) {
	case 0:
		e = up_object_create_anon(w->m->rt, r->npages * PAGE,
					  below(w, 2) ? w->m->noreserve : 0, &r->object);
		if (e == 0)
			r->flags = UP_SHARED;
		else if (e != -ENOMEM)
			fail(w->m, "up_object_create_anon: %s", strerrorname_np(-e));
		break;
	case 1:
		r->flags |= w->m->noreserve;
		break;
	default:
		break;
	}
	ensure(w, r, &r->grain[0], PROT_READ);
}

/* --- what workers do: clones --- */

static void
verify_clone(struct worker *w, const struct clone *c, size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++) {
		const uint64_t *page = (const uint64_t *)(c->va + i * PAGE);
		const struct want *want = &c->want[i];
		const size_t bad = page_verify(page, want);
		unsigned char vec = 0xee;
		uint64_t got;
		uint32_t id;
		bool tag;

		if (bad == WORDS)
			continue;
		got = page[bad];
		tag = tag_valid(page[0], &id);
		up_residency(w->m->rt, page, PAGE, &vec);
		fail(w->m,
		     "page %zu of %zu of a clone (%p): word %zu is %#" PRIx64
		     "; want id %#x version %u.%u; %s tag, id %#x version %u; residency %#x",
		     i, c->n, (const void *)page, bad, got, want->id, want->major, want->minor,
		     tag ? "valid" : "no", id, (unsigned)(page[0] & MAJOR_MASK), vec);
	}
	w->pages += n;
}

static void
write_clone(struct worker *w, struct clone *c, size_t first, size_t n)
{
	const struct region none = { .index = NSHARED + w->id };

	for (size_t i = first; i < first + n; i++) {
		c->want[i] = next_version(w, &none, i);
		page_fill((uint64_t *)(c->va + i * PAGE), &c->want[i]);
	}
}

static bool
drop_clone(struct worker *w, struct clone *c)
{
	/* Both ends are those of mappings: there is nothing that could be short. */
	if (!unmap_pages(w->m, c->va, c->n))
		return false;
	c->va = 0;
	atomic_fetch_sub(&w->m->clones, 1);
	return true;
}

/* Copy n pages; *c is filled in but for what they hold.  False: not now. */
static bool
make_clone(struct worker *w, struct clone *c, const void *va, size_t n)
{
	void *p;
	int e;

	if (atomic_fetch_add(&w->m->clones, 1) >= CLONES_MAX) {
		atomic_fetch_sub(&w->m->clones, 1);
		return false;
	}
	e = up_clone(w->m->rt, (void *)(uintptr_t)va, n * PAGE, &p);
	/* No metadata; or direct I/O of others does not come to an end, or pages are locked. */
	if (e != 0 && e != -ENOMEM && e != -EBUSY)
		fail(w->m, "up_clone of %zu pages at %p: %s", n, va, strerrorname_np(-e));
	if (e != 0) {
		atomic_fetch_sub(&w->m->clones, 1);
		return false;
	}
	c->va = (uintptr_t)p;
	c->n = n;
	w->clones++;
	/* The original may be PROT_READ or PROT_NONE. */
	e = up_protect(w->m->rt, p, n * PAGE, PROT_READ | PROT_WRITE);
	if (e != 0)
		fail(w->m, "up_protect of a whole clone: %s", strerrorname_np(-e));
	return true;
}

static struct clone *
free_clone(struct worker *w)
{
	for (unsigned i = 0; i < CLONES; i++) {
		if (w->clone[i].va == 0)
			return &w->clone[i];
	}
	return NULL;
}

static void
op_clone(struct worker *w)
{
	struct clone *c = free_clone(w);
	struct spot s;
	size_t i, n;

	/* Also what nobody may read just now. */
	if (c == NULL || !pick_ready(w, &s, CLONE_PAGES, below(w, 3) ? PROT_READ : PROT_NONE))
		return;
	if (!make_clone(w, c, s.va, s.n))
		return;
	memcpy(c->want, &s.r->want[s.page], s.n * sizeof c->want[0]);
	i = below(w, c->n);
	n = 1 + below(w, MIN(c->n - i, 16));
	if (below(w, 2))
		verify_clone(w, c, i, n);
	if (below(w, 2))
		write_clone(w, c, i, n);
	/* And the other side, which has to see its own. */
	if (s.g->prot == (PROT_READ | PROT_WRITE) && below(w, 2)) {
		s.va += i * PAGE;
		s.page += i;
		s.n = n;
		if (below(w, 2))
			verify_at(w, &s, s.va);
		for (size_t k = 0; k < s.n; k += 2) {
			s.r->want[s.page + k] = next_version(w, s.r, s.page + k);
			page_fill((uint64_t *)(s.va + k * PAGE), &s.r->want[s.page + k]);
		}
		verify_at(w, &s, s.va);
	}
	if (below(w, 2)) {
		c->held = true;
		meanwhile(w, &s);
		c->held = false;
		verify_clone(w, c, 0, c->n);
	}
}

static void
op_use_clone(struct worker *w)
{
	struct clone *c = &w->clone[below(w, CLONES)], *other = free_clone(w);
	size_t i, n;

	if (c->va == 0 || c->held)
		return;
	i = below(w, c->n);
	n = 1 + below(w, MIN(c->n - i, 16));
	switch (below(w, 16)) {
	case 0:
	case 1:
		advise(w, (void *)(c->va + i * PAGE), n, UP_ADVICE_DONTNEED, true);
		memset(&c->want[i], 0, n * sizeof c->want[0]);
		if (below(w, 2))
			verify_clone(w, c, i, n);
		break;
	case 2:
		advise(w, (void *)(c->va + i * PAGE), n,
		       below(w, 2) ? UP_ADVICE_WILLNEED : UP_ADVICE_COLD, true);
		break;
	case 3:
		if (other != NULL && make_clone(w, other, (void *)(c->va + i * PAGE), c->n - i)) {
			memcpy(other->want, &c->want[i], other->n * sizeof other->want[0]);
			verify_clone(w, other, 0, MIN(other->n, 8));
		}
		break;
	case 4:
		if (i > 0 && unmap_pages(w->m, c->va + i * PAGE, c->n - i))
			c->n = i;
		break;
	case 5:
	case 6:
	case 7:
	case 8:
		if (below(w, 2))
			verify_clone(w, c, 0, c->n);
		drop_clone(w, c);
		break;
	case 9:
	case 10:
	case 11:
		write_clone(w, c, i, n);
		break;
	default:
		verify_clone(w, c, i, n);
		break;
	}
}

/* --- what workers do: look at what is not theirs --- */

static unsigned
owner_of(struct mill *m, uint32_t id)
{
	const unsigned region = id >> 16, page = id & 0xffff;

	if (region >= NSHARED)
		return region - NSHARED;
	return m->region[region].grain[page / m->region[region].gsize].owner;
}

static void
peek(struct worker *w, const struct region *r, size_t page)
{
	struct grain *g = &r->grain[page / r->gsize];
	const unsigned flux = atomic_load(&g->flux);
	const char *va = (const char *)atomic_load(&g->va) + (page - grain_first(r, g)) * PAGE;
	const uint64_t begin = stress_now();
	uint64_t v = 0;
	uint32_t id;
	int got;

	atomic_store_explicit(&w->post->at, (uintptr_t)va, memory_order_relaxed);
	w->peeks++;
	for (;;) {
		got = touch_read(va, &v);
		if ((flux & 1) || atomic_load(&g->flux) != flux)
			return;
		if (got != 1)
			fail(w->m, "region %u page %zu of worker %u: %s", r->index, page, g->owner,
			     got == 0 ? "SIGSEGV" : "SIGBUS");
		if (v == 0 || (tag_valid(v, &id) && owner_of(w->m, id) == g->owner))
			return;
		/* Half a word of a copy in progress, perhaps. */
		if (stress_now() - begin > 2000000000u)
			fail(w->m, "region %u page %zu of worker %u begins with %#" PRIx64,
			     r->index, page, g->owner, v);
		sched_yield();
	}
}

static void
op_peek(struct worker *w)
{
	const struct region *r = &w->m->region[below(w, NSHARED)];

	for (unsigned i = 0; i < 4; i++)
		peek(w, r, below(w, r->npages));
}

/*
 * Pages that are locked into memory can not be taken out, nor thrown away as others can; whatever
 * happens to them, it is without mistake.
 */
static void
op_lock(struct worker *w)
{
	struct spot s;
	int e;

	if (!pick_ready(w, &s, 3, PROT_READ | PROT_WRITE))
		return;
	w->syscalls++;
	/* Locking brings the pages in; an interrupted or refused attempt has locked some. */
	if (mlock(s.va, s.n * PAGE) < 0 && errno != EAGAIN && errno != EINTR && errno != ENOMEM)
		fail(w->m, "mlock of %zu pages at %p: %s", s.n, (void *)s.va,
		     strerrorname_np(errno));
	switch (below(w, 4)) {
	case 0:
		advise(w, s.va, s.n, UP_ADVICE_DONTNEED, true);
		forget(s.r, s.page, s.n);
		break;
	case 1:
		advise(w, s.va, s.n, UP_ADVICE_COLD, true);
		break;
	case 2:
		/* Taken away as it is; the lock goes with the mapping. */
		if (s.r->object != NULL && grain_pages(s.r, s.g) > 1) {
			set_flux(s.g, true);
			if (unmap_pages(w->m, atomic_load(&s.g->va), grain_pages(s.r, s.g))) {
				unmapped(w, &s);
				return;
			}
			set_flux(s.g, false);
		}
		break;
	default:
		break;
	}
	meanwhile(w, &s);
	verify_at(w, &s, s.va);
	e = munlock(s.va, s.n * PAGE) < 0 ? errno : 0;
	if (e != 0)
		fail(w->m, "munlock of %zu pages at %p: %s", s.n, (void *)s.va, strerrorname_np(e));
}

/* Run through a region as a program that reads it from end to end: neighbours are brought along. */
static void
op_scan(struct worker *w)
{
	const struct region *r = &w->m->region[below(w, NSHARED)];
	const size_t stride = below(w, 4) == 0 ? 1 + below(w, 4) : 1;
	size_t page = below(w, r->npages);

	for (unsigned i = 0; i < 48 && page < r->npages; i++, page += stride)
		peek(w, r, page);
}

/* The kernel looks the pages up itself, as a debugger would. */
static void
op_vm_read(struct worker *w)
{
	struct iovec local = { .iov_base = w->buf }, remote;
	struct spot s;

	if (!pick_ready(w, &s, RUN_MAX, PROT_READ))
		return;
	remote = (struct iovec){ s.va, s.n * PAGE };
	local.iov_len = s.n * PAGE;
	w->syscalls++;
	if (process_vm_readv(w->m->pid, &local, 1, &remote, 1, 0) != (ssize_t)(s.n * PAGE))
		fail(w->m, "process_vm_readv of %zu pages at %p: %s", s.n, (void *)s.va,
		     strerrorname_np(errno));
	verify_at(w, &s, w->buf);
}

/* --- workers --- */

static const struct op {
	const char *name;
	void (*fn)(struct worker *);
	unsigned weight;
	uint64_t needs; /* UP_MASK_*: features */
} ops[] = {
	{ "read", op_read, 200, 0 },
	{ "write", op_write, 160, 0 },
	{ "touch", op_touch, 80, 0 },
	{ "copy", op_copy, 30, 0 },
	{ "local copy", op_local, 30, 0 },
	{ "count", op_count, 60, 0 },
	{ "peek", op_peek, 60, 0 },
	{ "scan", op_scan, 20, 0 },
	{ "process_vm_readv", op_vm_read, 20, UP_MASK_KERNEL_FAULTS },
	{ "file I/O", op_file, 20, UP_MASK_KERNEL_FAULTS },
	{ "pipe I/O", op_pipe, 20, UP_MASK_KERNEL_FAULTS },
	{ "direct I/O", op_direct, 10, UP_MASK_KERNEL_FAULTS | UP_MASK_MOVE },
	{ "dontneed", op_dontneed, 20, 0 },
	{ "residency", op_residency, 10, 0 },
	{ "advice", op_span, 30, 0 },
	{ "protect", op_protect, 15, 0 },
	{ "unmap", op_unmap, 30, 0 },
	{ "mlock", op_lock, 6, UP_MASK_KERNEL_FAULTS },
	{ "own region", op_own, 4, 0 },
	{ "clone", op_clone, 20, 0 },
	{ "use a clone", op_use_clone, 60, 0 },
};

static void
work_once(struct worker *w)
{
	unsigned total = 0, at;

	for (size_t i = 0; i < ARRAY_SIZE(ops); i++)
		total += ops[i].weight;
	at = (unsigned)below(w, total);
	for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
		if (at < ops[i].weight) {
			if ((ops[i].needs & ~w->m->features) == 0) {
				post_step(w->post, ops[i].name, NULL, 0);
				ops[i].fn(w);
			}
			return;
		}
		at -= ops[i].weight;
	}
}

/* Begin with content, lest the first seconds be about zeros. */
static void
fill_some(struct worker *w)
{
	for (unsigned k = 0; k < NSHARED; k++) {
		struct region *r = &w->m->region[k];

		post_step(w->post, "first fill", (void *)r->base, r->npages);
		for (size_t page = 0; page < r->npages; page++) {
			if (r->grain[page / r->gsize].owner != w->id || page % 4 == 0)
				continue;
			r->want[page] = next_version(w, r, page);
			page_fill((uint64_t *)(r->base + page * PAGE), &r->want[page]);
		}
	}
}

static void *
worker_thread(void *arg)
{
	struct worker *w = arg;

	me = w;
	fill_some(w);
	while (!atomic_load_explicit(&w->m->stop, memory_order_relaxed)) {
		work_once(w);
		pass_gate(w->m, w->post);
	}
	post_step(w->post, NULL, NULL, 0);
	return NULL;
}

/* --- helpers --- */

/* In any thread at any moment, also inside a call of the library. */
static void
on_tease(int sig)
{
	const int saved = errno;
	struct worker *w = me;

	(void)sig;
	if (w != NULL) {
		const uint64_t n = atomic_fetch_add(&w->signal_adds, 1);

		add_word(&w->m->counters[stress_mix(n ^ w->id) % COUNTER_PAGES * WORDS + 100], 1);
	}
	errno = saved;
}

/*
 * Every other time between two rests only: a signal makes a thread that waits for a page fault
 * again, and so hides that nobody was going to wake it.
 */
static void *
teaser_thread(void *arg)
{
	struct mill *m = arg;
	struct post *post = &m->watch.post[m->cfg->threads + 1 + TEASER];
	uint64_t n = m->cfg->seed;

	while (!atomic_load(&m->stop)) {
		post_step(post, "teasing", NULL, 0);
		n = stress_mix(n);
		if (atomic_load(&m->rests) % 2 == 0)
			pthread_kill(m->worker[n % m->cfg->threads].thread, SIGUSR1);
		nap(n >> 32 & 0x1fffff);
		pass_gate(m, post);
	}
	post_step(post, NULL, NULL, 0);
	return NULL;
}

/* In the child: what must hold there.  Exit status, or death by SIGSEGV if `touch`. */
static void __attribute__((noreturn)) child(struct mill *m, bool touch)
{
	const struct rlimit no_core = { 0, 0 };
	struct up_stats st;

	if (up_stats_get(m->rt, &st, sizeof st) != -ECHILD)
		_exit(2);
	if (up_unmap(m->rt, m->counters, PAGE) != -ECHILD)
		_exit(3);
	up_runtime_destroy(m->rt);
	if (touch) {
		setrlimit(RLIMIT_CORE, &no_core);
		signal(SIGSEGV, SIG_DFL);
		peek_word(m->counters);
		_exit(4);
	}
	_exit(0);
}

static void *
forker_thread(void *arg)
{
	struct mill *m = arg;
	struct post *post = &m->watch.post[m->cfg->threads + 1 + FORKER];

	for (unsigned i = 0; !atomic_load(&m->stop); i++) {
		const bool touch = i % 4 == 0;
		int status;
		pid_t pid;

		post_step(post, "fork", NULL, 0);
		pid = fork();
		if (pid == 0)
			child(m, touch);
		if (pid < 0)
			fail(m, "fork: %s", strerror(errno));
		post_step(post, "waitpid", NULL, 0);
		while (waitpid(pid, &status, 0) < 0) {
			if (errno != EINTR)
				fail(m, "waitpid: %s", strerror(errno));
		}
		if (touch ? !WIFSIGNALED(status) || WTERMSIG(status) != SIGSEGV : status != 0)
			fail(m, "a child that %s ended with status %#x",
			     touch ? "touched a region" : "touched nothing", (unsigned)status);
		atomic_fetch_add(&m->forks, 1);
		nap(3000000);
		pass_gate(m, post);
	}
	post_step(post, NULL, NULL, 0);
	return NULL;
}

/* Another runtime from cradle to grave. */
static void
live(struct mill *m, struct post *post, uint64_t seed)
{
	const struct up_config cfg = { .memory_limit = NEIGHBOUR_MEMORY,
				       .service_threads = 1 + seed % 2,
				       .feature_mask = seed % 3 == 0 ? UP_MASK_ALL : m->cfg->mask };
	const size_t n = 400 + seed % 800;
	struct up_object *o = NULL;
	struct up_runtime *rt;
	void *p, *q;
	int e;

	post_step(post, "another up_runtime_create", NULL, 0);
	e = up_runtime_create(&rt, &cfg);
	if (e != 0)
		fail(m, "another up_runtime_create: %s", strerrorname_np(-e));
	e = up_map(rt, NULL, n * PAGE, PROT_READ | PROT_WRITE, UP_PRIVATE, NULL, 0, &p);
	if (e != 0)
		fail(m, "another up_map: %s", strerrorname_np(-e));
	post_step(post, "filling another runtime", p, n);
	for (size_t i = 0; i < n; i++) {
		const struct want w = { .id = (uint32_t)i, .major = 1 + (uint32_t)(seed & 0xffff) };

		page_fill((uint64_t *)((char *)p + i * PAGE), &w);
	}
	if (seed % 4 == 0 && up_object_create_anon(rt, 64 * PAGE, 0, &o) == 0 &&
	    up_map(rt, NULL, 64 * PAGE, PROT_READ | PROT_WRITE, UP_SHARED, o, 0, &q) == 0)
		memset(q, 1, 64 * PAGE);
	post_step(post, "verifying another runtime", p, n);
	for (size_t k = 0; k < n / 4; k++) {
		const size_t i = stress_mix(seed + k) % n;
		const struct want w = { .id = (uint32_t)i, .major = 1 + (uint32_t)(seed & 0xffff) };

		if (page_verify((uint64_t *)((char *)p + i * PAGE), &w) < WORDS)
			fail(m, "another runtime: page %zu at %p is wrong", i,
			     (void *)((char *)p + i * PAGE));
	}
	post_step(post, "ending another runtime", p, n);
	if (seed % 2 == 0 && up_unmap(rt, (char *)p + 3 * PAGE, (n - 10) * PAGE) != 0)
		fail(m, "another up_unmap failed");
	up_runtime_destroy(rt);
}

static void *
neighbour_thread(void *arg)
{
	struct mill *m = arg;
	struct post *post = &m->watch.post[m->cfg->threads + 1 + NEIGHBOUR];
	uint64_t seed = m->cfg->seed;

	while (!atomic_load(&m->stop)) {
		seed = stress_mix(seed);
		atomic_store(&m->neighbours, true);
		live(m, post, seed);
		/* Counted before it is denied: sample_budget() looks at both, in the other order. */
		atomic_fetch_add(&m->runtimes, 1);
		atomic_store(&m->neighbours, false);
		nap(50000000);
		pass_gate(m, post);
	}
	post_step(post, NULL, NULL, 0);
	return NULL;
}

static void *
clerk_thread(void *arg)
{
	struct mill *m = arg;
	struct post *post = &m->watch.post[m->cfg->threads + 1 + CLERK];
	FILE *null = fopen("/dev/null", "we");
	struct up_stats st;

	if (null == NULL)
		fail(m, "/dev/null: %s", strerror(errno));
	while (!atomic_load(&m->stop)) {
		post_step(post, "statistics", NULL, 0);
		if (up_stats_print(m->rt, null) != 0 || up_trace_print(m->rt, null) != 0 ||
		    up_stats_get(m->rt, &st, sizeof st) != 0)
			fail(m, "statistics or trace");
		if (st.used > st.limit || st.used_max > st.limit)
			fail(m,
			     "%" PRIu64 " bytes used (at most %" PRIu64 "), the limit is %" PRIu64,
			     st.used, st.used_max, st.limit);
		if (st.fault_sigbus + st.checksum_errors + st.swap_read_errors +
			    st.swap_write_errors + st.lost >
		    0)
			fail(m, "an error where there is none");
		nap(7000000);
		pass_gate(m, post);
	}
	fclose(null);
	post_step(post, NULL, NULL, 0);
	return NULL;
}

/* --- main: the kernel's view --- */

static void
sample_budget(struct mill *m)
{
	uint64_t limit = m->cfg->memory, runtimes, mine;
	bool others;

	/* A sanitizer's shadow grows and shrinks beside us. */
	if (STRESS_SANITIZED)
		return;
	runtimes = atomic_load(&m->runtimes);
	others = atomic_load(&m->neighbours);
	if (!resident_pager(&mine))
		return;
	/* One that is there, or was there meanwhile, from its first page to its last. */
	if (others || atomic_load(&m->neighbours) || atomic_load(&m->runtimes) != runtimes)
		limit += NEIGHBOUR_MEMORY;
	m->samples++;
	if (mine > limit)
		fail(m,
		     "the kernel has %" PRIu64
		     " bytes of the pager resident, the limit is %" PRIu64,
		     mine, limit);
	if (limit == m->cfg->memory)
		m->peak = MAX(m->peak, mine);
}

static bool
same_activity(const struct up_stats *a, const struct up_stats *b)
{
	return a->resident == b->resident && a->staged == b->staged &&
	       a->free_frames == b->free_frames && a->pages_staged == b->pages_staged &&
	       a->pages_out == b->pages_out && a->swap_writes == b->swap_writes &&
	       a->swap_reads == b->swap_reads && a->readahead_pages == b->readahead_pages &&
	       a->used == b->used;
}

/*
 * Pages of [va, va + n) that the kernel has; each must be one that the pager says is mapped.  Shared memory may also be there
 * without being in this page table.
 */
static bool
compare_pages(struct mill *m, int pagemap, uintptr_t va, size_t n, bool shared, uint64_t *present,
	      char *why, size_t size)
{
	uint64_t entry[512];
	unsigned char vec[512];

	for (size_t i = 0; i < n; i += ARRAY_SIZE(entry)) {
		const size_t k = MIN(n - i, ARRAY_SIZE(entry));
		const uintptr_t at = va + i * PAGE;

		if (up_residency(m->rt, (void *)at, k * PAGE, vec) != 0)
			fail(m, "up_residency of a mapped range");
		if (pread(pagemap, entry, k * 8, (off_t)(at / PAGE * 8)) != (ssize_t)(k * 8))
			fail(m, "reading pagemap: %s", strerror(errno));
		for (size_t j = 0; j < k; j++) {
			const bool there = entry[j] >> 63, mapped = (vec[j] & UP_PAGE_MAPPED) != 0;

			*present += shared ? mapped : there;
			if (shared ? there && !mapped : there != mapped) {
				snprintf(
					why, size,
					"the page at %#lx is %s for the kernel, residency %#x for the pager",
					(unsigned long)(at + j * PAGE),
					there ? "present" : "absent", vec[j]);
				return false;
			}
		}
	}
	return true;
}

/* Two of the ways to look at the same thing agree, if nothing moved meanwhile. */
static bool
compare_all(struct mill *m, int pagemap, const struct up_stats *st, char *why, size_t size)
{
	const bool pools = (up_features(m->rt) & UP_MASK_SHARED) != 0;
	bool unseen =
		pools && m->snap_va == NULL; /* there may be shared memory that is not mapped */
	uint64_t present = 0;

	for (unsigned i = 0; i < NSHARED + m->cfg->threads; i++) {
		const struct region *r = i < NSHARED ? &m->region[i] : &m->worker[i - NSHARED].own;
		const bool shared = (r->flags & UP_MULTI) != 0;

		for (size_t g = 0; g < r->ngrains; g++) {
			unseen |= shared && !r->grain[g].mapped;
			if (r->grain[g].mapped &&
			    !compare_pages(m, pagemap, atomic_load(&r->grain[g].va),
					   grain_pages(r, &r->grain[g]), shared, &present, why,
					   size))
				return false;
		}
	}
	for (unsigned i = 0; i < m->cfg->threads * CLONES; i++) {
		const struct clone *c = &m->worker[i / CLONES].clone[i % CLONES];

		if (c->va != 0 &&
		    !compare_pages(m, pagemap, c->va, c->n, false, &present, why, size))
			return false;
	}
	if (m->snap_va != NULL &&
	    !compare_pages(m, pagemap, (uintptr_t)m->snap_va, m->region[SNAPPED].npages, pools,
			   &present, why, size))
		return false;
	if (!compare_pages(m, pagemap, (uintptr_t)m->counters, COUNTER_PAGES, false, &present, why,
			   size))
		return false;
	if (present * PAGE == st->resident || (unseen && present * PAGE < st->resident))
		return true;
	snprintf(why, size, "the kernel has %" PRIu64 " pages of the regions, the pager %" PRIu64,
		 present, st->resident / PAGE);
	return false;
}

static void
check_counters(struct mill *m)
{
	for (size_t page = 0; page < COUNTER_PAGES; page++) {
		for (size_t k = 0; k < COUNTERS_PER_PAGE; k++) {
			const uint64_t got = peek_word(&m->counters[page * WORDS + 1 + k * 17]);
			uint64_t sum = 0;

			for (unsigned i = 0; i < m->cfg->threads; i++)
				sum += m->worker[i].count[page * COUNTERS_PER_PAGE + k];
			if (got != sum)
				fail(m, "counter %zu of page %zu (%p) is %" PRIu64 ", not %" PRIu64,
				     k, page, (void *)&m->counters[page * WORDS + 1 + k * 17], got,
				     sum);
		}
	}
}

/* Everybody stands still: once the pager has come to rest as well, all must agree. */
static void
check_at_rest(struct mill *m)
{
	const uint64_t end = stress_now() + STEP_SECONDS * UINT64_C(1000000000) / 2;
	const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	struct up_stats st, again;
	struct resident r;
	char why[200] = "the pager does not come to rest";
	bool good = false;

	if (pagemap < 0)
		fail(m, "/proc/self/pagemap: %s", strerror(errno));
	check_counters(m);
	while (!good && stress_now() < end) {
		up_stats_get(m->rt, &st, sizeof st);
		good = compare_all(m, pagemap, &st, why, sizeof why);
		resident_by_smaps(&r);
		if (r.pager > st.limit) {
			good = false;
			snprintf(why, sizeof why,
				 "smaps has %" PRIu64 " bytes of the pager, the limit is %" PRIu64,
				 r.pager, st.limit);
		}
		up_stats_get(m->rt, &again, sizeof again);
		if (!same_activity(&st, &again))
			good = false;
		else if (!good && stress_now() > end - STEP_SECONDS * UINT64_C(1000000000) / 4)
			break;
	}
	if (!good)
		fail(m, "at rest: %s", why);
	close(pagemap);
}

/* --- main: a snapshot --- */

static void
verify_snapshot(struct mill *m, size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++) {
		const uint64_t *page = (const uint64_t *)(m->snap_va + i * PAGE);
		const size_t bad = page_verify(page, &m->snap_want[i]);

		if (bad < WORDS)
			fail(m,
			     "page %zu of a snapshot (%p): word %zu is %#" PRIx64
			     "; want id %#x version %u.%u",
			     i, (const void *)page, bad, page[bad], m->snap_want[i].id,
			     m->snap_want[i].major, m->snap_want[i].minor);
	}
}

static void
drop_snapshot(struct mill *m)
{
	if (m->snap == NULL)
		return;
	post_step(m->main_post, "verifying a snapshot", m->snap_va, m->region[SNAPPED].npages);
	verify_snapshot(m, 0, m->region[SNAPPED].npages);
	post_step(m->main_post, "dropping a snapshot", m->snap_va, m->region[SNAPPED].npages);
	up_object_unref(m->snap);
	if (!unmap_pages(m, (uintptr_t)m->snap_va, m->region[SNAPPED].npages))
		fail(m, "up_unmap of a whole snapshot");
	m->snap = NULL;
	m->snap_va = NULL;
}

/* => everybody stands still, so that it is known what it must hold */
static void
take_snapshot(struct mill *m)
{
	const struct region *r = &m->region[SNAPPED];
	void *p;
	int e;

	if (m->snap != NULL)
		return;
	post_step(m->main_post, "taking a snapshot", NULL, r->npages);
	e = up_object_snapshot(m->rt, r->object, &m->snap);
	if (e != 0 && e != -ENOMEM && e != -EBUSY)
		fail(m, "up_object_snapshot: %s", strerrorname_np(-e));
	if (e != 0)
		return;
	e = up_map(m->rt, NULL, r->npages * PAGE, PROT_READ, UP_SHARED, m->snap, 0, &p);
	if (e != 0 && e != -ENOMEM)
		fail(m, "up_map of a snapshot: %s", strerrorname_np(-e));
	if (e != 0) {
		up_object_unref(m->snap);
		m->snap = NULL;
		return;
	}
	m->snap_va = p;
	memcpy(m->snap_want, r->want, r->npages * sizeof r->want[0]);
	m->snapshots++;
}

/* --- setting up and taking down --- */

static void
make_region(struct mill *m, unsigned index, size_t npages, size_t gsize, unsigned flags)
{
	struct region *r = &m->region[index];
	void *p;
	int e;

	*r = (struct region){ .index = index, .npages = npages, .gsize = gsize, .flags = flags };
	r->ngrains = (npages + gsize - 1) / gsize;
	r->grain = calloc(r->ngrains, sizeof *r->grain);
	r->want = calloc(npages, sizeof *r->want);
	if (r->grain == NULL || r->want == NULL)
		fail(m, "out of memory");
	if (flags & UP_SHARED) {
		e = up_object_create_anon(m->rt, npages * PAGE, 0, &r->object);
		if (e != 0)
			fail(m, "up_object_create_anon: %s", strerrorname_np(-e));
	}
	e = up_map(m->rt, NULL, npages * PAGE, PROT_READ | PROT_WRITE, flags, r->object, 0, &p);
	if (e != 0)
		fail(m, "up_map of %zu pages: %s", npages, strerrorname_np(-e));
	r->base = (uintptr_t)p;
	for (size_t i = 0; i < r->ngrains; i++) {
		struct grain *g = &r->grain[i];

		atomic_store(&g->va, r->base + i * gsize * PAGE);
		g->mapped = true;
		g->prot = PROT_READ | PROT_WRITE;
		g->owner =
			(uint8_t)(stress_mix(m->cfg->seed ^ (index << 16 | i)) % m->cfg->threads);
	}
}

static int
temporary_file(struct mill *m)
{
	char name[] = "/var/tmp/stress.XXXXXX";
	const int fd = mkostemp(name, O_CLOEXEC);

	if (fd < 0)
		fail(m, "%s: %s", name, strerror(errno));
	unlink(name);
	return fd;
}

static void
make_worker(struct mill *m, unsigned id)
{
	struct worker *w = &m->worker[id];
	struct region *r = &w->own;
	char name[64];

	w->m = m;
	w->id = id;
	w->post = &m->watch.post[id];
	w->random = stress_mix(m->cfg->seed << 8 | id);
	w->buf = malloc(RUN_MAX * PAGE);
	w->vec = malloc(4096);
	r->index = NSHARED + id;
	r->npages = r->gsize = r->ngrains = 1;
	r->flags = UP_PRIVATE;
	r->grain = calloc(1, sizeof *r->grain);
	r->want = calloc(OWN_PAGES, sizeof *r->want);
	if (w->buf == NULL || w->vec == NULL || r->grain == NULL || r->want == NULL)
		fail(m, "out of memory");
	r->grain[0].owner = (uint8_t)id;
	set_flux(&r->grain[0], true);
	w->file = temporary_file(m);
	snprintf(name, sizeof name, "/proc/self/fd/%d", w->file);
	w->direct = open(name, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (pipe2(w->pipe, O_CLOEXEC) < 0)
		fail(m, "pipe: %s", strerror(errno));
}

static void
free_worker(struct worker *w)
{
	free(w->buf);
	free(w->vec);
	free(w->own.grain);
	free(w->own.want);
	close(w->file);
	if (w->direct >= 0)
		close(w->direct);
	close(w->pipe[0]);
	close(w->pipe[1]);
}

static void
set_up(struct mill *m)
{
	const struct stress *cfg = m->cfg;
	const struct up_config config = { .memory_limit = cfg->memory,
					  .service_threads = cfg->services,
					  .feature_mask = cfg->mask,
					  .delivery = test_delivery(),
					  .compression = test_compression(),
					  .log = watch_log };
	struct sigaction sa = { .sa_handler = on_tease, .sa_flags = SA_RESTART };
	char mask[80];
	void *p;
	int e;

	touch_init();
	sigaction(SIGUSR1, &sa, NULL);
	stress_print_mask(cfg->mask, mask, sizeof mask);
	snprintf(m->again, sizeof m->again,
		 "stress --seconds %u --threads %u --memory %zu --mask %s --seed %" PRIu64
		 " --services %u%s",
		 cfg->seconds, cfg->threads, cfg->memory, mask, cfg->seed, cfg->services,
		 cfg->alone ? " --alone" : "");
	pthread_mutex_init(&m->gate, NULL);
	pthread_cond_init(&m->gate_cond, NULL);
	m->watch.hold = cfg->hold;
	m->watch.again = m->again;

	e = up_runtime_create(&m->rt, &config);
	if (e != 0)
		fail(m, "up_runtime_create: %s", strerrorname_np(-e));
	m->features = up_features(m->rt);
	/* Where services take up nearly all, SIGBUS would be the right answer to overcommitting. */
	if (cfg->memory / MAX(cfg->services, 1) >= (size_t)768 << 10)
		m->noreserve = UP_NORESERVE;
	watch_start(&m->watch, m->rt, cfg->threads + 1 + HELPERS, m->again);
	m->main_post = &m->watch.post[cfg->threads];
	post_step(m->main_post, "setting up", NULL, 0);
	/* Grains of a page, of clusters, and of what unmapping is quick with. */
	make_region(m, 0, 1000, 1, UP_PRIVATE);
	make_region(m, 1, 1500, 24, UP_PRIVATE);
	make_region(m, 2, 1024, 64, UP_PRIVATE | m->noreserve);
	make_region(m, 3, 1100, 32, UP_SHARED);
	e = up_map(m->rt, NULL, COUNTER_PAGES * PAGE, PROT_READ | PROT_WRITE, UP_PRIVATE, NULL, 0,
		   &p);
	if (e != 0)
		fail(m, "up_map: %s", strerrorname_np(-e));
	m->counters = p;
	m->snap_want = calloc(m->region[SNAPPED].npages, sizeof *m->snap_want);
	if (m->snap_want == NULL)
		fail(m, "out of memory");
	for (unsigned i = 0; i < cfg->threads; i++)
		make_worker(m, i);
}

static void
start(struct mill *m)
{
	static void *(*const body[HELPERS])(void *) = {
		[TEASER] = teaser_thread,
		[FORKER] = forker_thread,
		[NEIGHBOUR] = neighbour_thread,
		[CLERK] = clerk_thread,
	};

	m->participants = m->cfg->threads + (m->cfg->alone ? 0 : HELPERS);
	for (unsigned i = 0; i < m->cfg->threads; i++) {
		if (pthread_create(&m->worker[i].thread, NULL, worker_thread, &m->worker[i]) != 0)
			fail(m, "pthread_create");
	}
	for (unsigned i = 0; i < HELPERS && !m->cfg->alone; i++) {
		if (pthread_create(&m->helper[i], NULL, body[i], m) != 0)
			fail(m, "pthread_create");
	}
}

static void
finish(struct mill *m)
{
	post_step(m->main_post, "waiting for the threads", NULL, 0);
	atomic_store(&m->stop, true);
	/* The teaser first: it aims at the others. */
	for (unsigned i = 0; i < HELPERS && !m->cfg->alone; i++)
		pthread_join(m->helper[i], NULL);
	for (unsigned i = 0; i < m->cfg->threads; i++)
		pthread_join(m->worker[i].thread, NULL);
}

static void
verify_region(struct mill *m, struct worker *w, struct region *r)
{
	for (size_t i = 0; i < r->ngrains; i++) {
		struct grain *g = &r->grain[i];
		struct spot s = {
			.r = r, .g = g, .page = grain_first(r, g), .n = grain_pages(r, g)
		};

		if (g->owner != w->id || !ensure(w, r, g, PROT_READ))
			continue;
		s.va = (char *)atomic_load(&g->va);
		post_step(m->main_post, "verifying all", s.va, s.n);
		verify_at(w, &s, s.va);
	}
}

static void
verify_all(struct mill *m)
{
	uint64_t teased = 0, got = 0;

	for (unsigned i = 0; i < m->cfg->threads; i++) {
		struct worker *w = &m->worker[i];

		for (unsigned k = 0; k < NSHARED; k++)
			verify_region(m, w, &m->region[k]);
		verify_region(m, w, &w->own);
		for (unsigned k = 0; k < CLONES; k++) {
			post_step(m->main_post, "verifying a clone", (void *)w->clone[k].va,
				  w->clone[k].n);
			if (w->clone[k].va != 0)
				verify_clone(w, &w->clone[k], 0, w->clone[k].n);
		}
		teased += atomic_load(&w->signal_adds);
	}
	check_counters(m);
	for (size_t page = 0; page < COUNTER_PAGES; page++)
		got += peek_word(&m->counters[page * WORDS + 100]);
	if (got != teased)
		fail(m, "signal handlers added %" PRIu64 ", the pages say %" PRIu64, teased, got);
}

/* After everything is unmapped nothing may be left, once the last writes have ended. */
static void
take_down(struct mill *m, struct up_stats *st)
{
	const uint64_t end = stress_now() + STEP_SECONDS * UINT64_C(1000000000) / 2;

	post_step(m->main_post, "unmapping all", NULL, 0);
	drop_snapshot(m);
	for (unsigned i = 0; i < m->cfg->threads; i++) {
		struct worker *w = &m->worker[i];

		drop_own(w);
		for (unsigned k = 0; k < CLONES; k++) {
			if (w->clone[k].va != 0 && !drop_clone(w, &w->clone[k]))
				fail(m, "the last up_unmap of a clone: no memory");
		}
	}
	for (unsigned k = 0; k < NSHARED; k++) {
		struct region *r = &m->region[k];

		for (size_t i = 0; i < r->ngrains; i++) {
			if (r->grain[i].mapped && !unmap_pages(m, atomic_load(&r->grain[i].va),
							       grain_pages(r, &r->grain[i])))
				fail(m, "the last up_unmap: no memory");
		}
		up_object_unref(r->object);
	}
	if (!unmap_pages(m, (uintptr_t)m->counters, COUNTER_PAGES))
		fail(m, "the last up_unmap: no memory");
	do {
		up_stats_get(m->rt, st, sizeof *st);
		if (stress_now() > end)
			fail(m,
			     "everything is unmapped, and there are %" PRIu64
			     " bytes resident, %" PRIu64 " staged, %" PRIu64 " swapped, %" PRIu64
			     " promised, %" PRIu64 " entries, %" PRIu64 " objects",
			     st->resident, st->staged, st->swapped, st->reserve_used, st->entries,
			     st->objects);
		sched_yield();
	} while (st->resident + st->staged + st->swapped + st->lost + st->reserve_used +
			 st->mapped + st->entries + st->objects >
		 0);
}

static void
tally(struct mill *m, struct stress_result *res)
{
	for (unsigned i = 0; i < m->cfg->threads; i++) {
		res->steps += atomic_load(&m->worker[i].post->steps);
		res->pages += m->worker[i].pages;
		res->peeks += m->worker[i].peeks;
		res->syscalls += m->worker[i].syscalls;
		res->clones += m->worker[i].clones;
		res->racing_signals += atomic_load(&m->worker[i].signal_adds);
	}
	res->forks = atomic_load(&m->forks);
	res->runtimes = atomic_load(&m->runtimes);
	res->snapshots = m->snapshots;
	res->samples = m->samples;
	res->peak = m->peak;
}

void
stress_run(const struct stress *cfg, struct stress_result *res)
{
	struct mill *m = calloc(1, sizeof *m);
	uint64_t end, rest;

	if (m == NULL || cfg->threads < 1 || cfg->threads > WORKERS_MAX)
		abort();
	*res = (struct stress_result){ 0 };
	m->cfg = cfg;
	m->pid = getpid();
	set_up(m);
	start(m);
	end = stress_now() + cfg->seconds * UINT64_C(1000000000);
	rest = stress_now() + 1000000000;
	while (stress_now() < end) {
		post_step(m->main_post, "sampling", NULL, 0);
		sample_budget(m);
		if (m->snap != NULL) {
			const size_t at = stress_now() % (m->region[SNAPPED].npages - 16);

			post_step(m->main_post, "looking at a snapshot", m->snap_va + at * PAGE,
				  16);
			verify_snapshot(m, at, 16);
		}
		nap(30000000);
		if (stress_now() < rest)
			continue;
		post_step(m->main_post, "waiting for everybody to stop", NULL, 0);
		close_gate(m);
		post_step(m->main_post, "comparing at rest", NULL, 0);
		check_at_rest(m);
		if (atomic_fetch_add(&m->rests, 1) % 3 == 0)
			take_snapshot(m);
		open_gate(m);
		/* Two rests later, in the midst of the others. */
		if (atomic_load(&m->rests) % 3 == 0)
			drop_snapshot(m);
		rest = stress_now() + 1000000000;
	}
	finish(m);
	verify_all(m);
	post_step(m->main_post, "comparing at the end", NULL, 0);
	check_at_rest(m);
	/* Every other time the runtime is left to clean up by itself. */
	up_stats_get(m->rt, &res->st, sizeof res->st);
	if (cfg->seed % 2 == 0) {
		struct up_stats st;

		take_down(m, &st);
	}
	tally(m, res);
	post_step(m->main_post, "up_runtime_destroy", NULL, 0);
	up_runtime_destroy(m->rt);
	m->watch.rt = NULL;
	post_step(m->main_post, NULL, NULL, 0);
	watch_stop(&m->watch);
	for (unsigned i = 0; i < cfg->threads; i++)
		free_worker(&m->worker[i]);
	for (unsigned k = 0; k < NSHARED; k++) {
		free(m->region[k].grain);
		free(m->region[k].want);
	}
	free(m->snap_want);
	free(m);
}
