/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * survivor.c: a program that knows what its memory has to be, whatever becomes of the daemon that has it.
 *
 *	survivor SOCKET PAGES SECONDS SEED THREADS
 *	survivor SOCKET write|compare|remove NAME PAGES SEED	the same with one object that has a name, once
 *	survivor SOCKET cloned PAGES				and with a clone: "ready", a line, and it compares
 *	survivor SOCKET held PAGES				"ready"; for each line it compares: "right"; "fork": its child does from then on.  When it is
 *								asked to leave: "leaving MS".  It leaves at the end of its input
 *
 * Each thread has a part of a region, of a shared object, of a file if its number is odd, and of ordinary memory in which it notes a version a page; what a page has to be
 * follows from its number and version.  At random: write, read and compare, discard, clone (and compare the clone, then and later), unmap and map
 * again, fork a child that compares and writes what it has got, count in a few pages as fast as can be, wire some of those and unwire them as often, write a file and unmap it.  Prints what it did; exit status 0: all of it was as it had to be, 1: it
 * was not, 2: a call failed.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "uffd_pager.h"

#define WORDS (UP_PAGE_SIZE / sizeof(uint64_t))
#define CHILD_MS 30000
#define HOT_PAGES 64u
#define HOT_STORES 2000u
#define WIRED_MAX 3u
#define FILE_PAGES 64u
#define STAGED_MIN 64u
#define STAGED_TRIES 1500u /* 30 s */

static struct up_runtime *rt;
static const char *dir; /* for files */
static size_t npages;	/* of a part */
static uint64_t seed;
static atomic_bool over;
static bool calm; /* all pages are there from the beginning, and nobody forks */
static atomic_uint_fast64_t checked, wrote, clones, forks, maps;
static pthread_rwlock_t forking =
	PTHREAD_RWLOCK_INITIALIZER; /* a fork finds nobody in the middle of a page */

struct part {
	pthread_t thread;
	unsigned number;
	char *region, *shared;
	struct up_object *object;
	int file;		 /* that the object is of; -1: of none */
	uint32_t *version;	 /* of 2 * npages: the region's, and the shared object's */
	uint64_t *hot, *counted; /* HOT_PAGES more, with a counter each, and what they have to be */
	unsigned char wired[HOT_PAGES]; /* how often */
	uint64_t random;
};

static void
logged(void *ctx, enum up_log_level level, const char *line)
{
	(void)ctx;
	if (level <= UP_LOG_WARNING)
		fprintf(stderr, "survivor %d: %s\n", (int)getpid(), line);
}

static uint64_t
mix(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static uint64_t
rnd(struct part *p)
{
	return p->random = mix(p->random);
}

/* Word i of a page: pages that do not compress, that compress as well as this and that, and of one word. */
static uint64_t
word_of(uint64_t x, size_t i)
{
	switch (x % 6) {
	case 0:
		return mix(x + i);
	case 1:
		return x;
	case 2:
		return mix(x + i / 8);
	case 3:
		return x + i * (i + 1) / 2;
	default:
		return i < x / 8 % (WORDS * 3 / 4) ? mix(x + i) : x; /* of any length */
	}
}

static void
fill(char *page, uint64_t number, uint32_t version)
{
	const uint64_t x = mix(seed ^ number << 32 ^ version);
	uint64_t *const w = (uint64_t *)(void *)page;

	for (size_t i = 0; i < WORDS; i++)
		w[i] = word_of(x, i);
}

static void
compare(const char *what, const char *page, uint64_t number, uint32_t version)
{
	const uint64_t *const w = (const uint64_t *)(const void *)page;
	const uint64_t x = mix(seed ^ number << 32 ^ version);

	for (size_t i = 0; i < WORDS; i++) {
		const uint64_t want = version != 0 ? word_of(x, i) : 0;

		if (w[i] != want) {
			fprintf(stderr,
				"survivor %d: %s, page %" PRIu64
				" at %p, version %u, word %zu: %016" PRIx64 ", not %016" PRIx64
				"\n",
				(int)getpid(), what, number, (const void *)page, version, i, w[i],
				want);
			_exit(1);
		}
	}
	atomic_fetch_add_explicit(&checked, 1, memory_order_relaxed);
}

static void
need(const char *call, int r)
{
	if (r >= 0)
		return;
	fprintf(stderr, "survivor %d: %s: %s\n", (int)getpid(), call, strerror(-r));
	_exit(2);
}

/* A call over which the daemon has been killed too many times, one after the other, gives up, and says so. */
#define NEED(call, made)               \
	do {                           \
		int r_;                \
                                       \
		do                     \
			r_ = (made);   \
		while (r_ == -EAGAIN); \
		need(call, r_);        \
	} while (0)

static char *
page_of(const struct part *p, size_t i)
{
	return i < npages ? p->region + i * UP_PAGE_SIZE : p->shared + (i - npages) * UP_PAGE_SIZE;
}

static uint64_t
number_of(const struct part *p, size_t i)
{
	return (uint64_t)p->number * npages * 2 + i;
}

static void
write_page(struct part *p, size_t i)
{
	pthread_rwlock_rdlock(&forking);
	p->version[i]++;
	fill(page_of(p, i), number_of(p, i), p->version[i]);
	pthread_rwlock_unlock(&forking);
	atomic_fetch_add_explicit(&wrote, 1, memory_order_relaxed);
}

static void
discard(struct part *p, size_t i, size_t n)
{
	NEED("up_advise", up_advise(rt, page_of(p, i), n * UP_PAGE_SIZE, UP_ADVICE_DONTNEED));
	if (i < npages || p->file < 0)
		memset(&p->version[i], 0, n * sizeof(p->version[0]));
}

static void
clone_some(struct part *p, size_t i, size_t n)
{
	uint32_t *const then = malloc(n * sizeof(*then));
	void *copy;

	if (then == NULL)
		need("malloc", -ENOMEM);
	memcpy(then, &p->version[i], n * sizeof(*then));
	NEED("up_clone", up_clone(rt, page_of(p, i), n * UP_PAGE_SIZE, &copy));
	for (unsigned k = 0; k < 16; k++)
		write_page(p, i + rnd(p) % n);
	for (size_t k = 0; k < n; k++)
		compare("clone", (char *)copy + k * UP_PAGE_SIZE, number_of(p, i + k), then[k]);
	NEED("up_unmap", up_unmap(rt, copy, n * UP_PAGE_SIZE));
	free(then);
	atomic_fetch_add(&clones, 1);
}

/* As many stores as can be to a few pages: one of them falls into whatever instant the daemon is killed in, and taken over. */
static void
count_hot(struct part *p)
{
	for (unsigned k = 0; k < HOT_STORES; k++) {
		const size_t i = rnd(p) % HOT_PAGES;
		volatile uint64_t *const at = p->hot + i * WORDS;

		if (*at != p->counted[i]) {
			fprintf(stderr, "survivor %d: hot page %zu: %" PRIu64 ", not %" PRIu64 "\n",
				(int)getpid(), i, *at, p->counted[i]);
			_exit(1);
		}
		*at = ++p->counted[i];
	}
}

/* Wired is what was wired, not once more for a call that was asked twice, and nothing less. */
static void
check_wired(const struct part *p)
{
	unsigned char in[HOT_PAGES];

	need("up_residency", up_residency(rt, p->hot, HOT_PAGES * UP_PAGE_SIZE, in));
	for (size_t i = 0; i < HOT_PAGES; i++) {
		if ((p->wired[i] > 0) != ((in[i] & UP_PAGE_WIRED) != 0)) {
			fprintf(stderr, "survivor %d: hot page %zu, wired %u times: %#x\n",
				(int)getpid(), i, p->wired[i], in[i]);
			_exit(1);
		}
	}
}

static void
wire_some(struct part *p, bool more)
{
	const size_t i = rnd(p) % HOT_PAGES, n = rnd(p) % (HOT_PAGES - i) + 1;
	void *const at = p->hot + i * WORDS;
	int r;

	for (size_t k = i; k < i + n; k++) {
		if (more ? p->wired[k] == WIRED_MAX : p->wired[k] == 0)
			return;
	}
	r = more ? up_wire(rt, at, n * UP_PAGE_SIZE) : up_unwire(rt, at, n * UP_PAGE_SIZE);
	/* Others have it wired, or need the room. */
	if (more && (r == -ENOMEM || r == -EAGAIN))
		return;
	need("up_wire or up_unwire", r);
	for (size_t k = i; k < i + n; k++)
		p->wired[k] = (unsigned char)(more ? p->wired[k] + 1 : p->wired[k] - 1);
	check_wired(p);
}

static void
unwire_all(struct part *p)
{
	for (size_t i = 0; i < HOT_PAGES; i++) {
		for (; p->wired[i] > 0; p->wired[i]--)
			need("up_unwire", up_unwire(rt, p->hot + i * WORDS, UP_PAGE_SIZE));
	}
	check_wired(p);
}

/* What is written to a file through a mapping is in the file once that is unmapped, also if nobody else knows the object any more. */
static void
write_a_file(struct part *p)
{
	const int fd = open(dir, O_TMPFILE | O_RDWR, 0600);
	struct up_object *o;
	uint64_t word;
	void *at;

	if (fd < 0 || ftruncate(fd, (off_t)(FILE_PAGES * UP_PAGE_SIZE)) < 0)
		need("a file", -errno);
	NEED("up_object_create_file",
	     up_object_create_file(rt, fd, 0, FILE_PAGES * UP_PAGE_SIZE, 0, &o));
	NEED("up_map", up_map(rt, NULL, FILE_PAGES * UP_PAGE_SIZE, PROT_READ | PROT_WRITE,
			      UP_SHARED, o, 0, &at));
	up_object_unref(o);
	for (size_t i = 0; i < FILE_PAGES; i++)
		((uint64_t *)at)[i * WORDS] = p->random + i;
	NEED("up_unmap", up_unmap(rt, at, FILE_PAGES * UP_PAGE_SIZE));
	for (size_t i = 0; i < FILE_PAGES; i++) {
		if (pread(fd, &word, sizeof(word), (off_t)(i * UP_PAGE_SIZE)) !=
		    (ssize_t)sizeof(word))
			need("pread", -errno);
		if (word != p->random + i) {
			fprintf(stderr,
				"survivor %d: page %zu of a file after up_unmap(): %016" PRIx64
				", not %016" PRIx64 "\n",
				(int)getpid(), i, word, p->random + i);
			_exit(1);
		}
	}
	close(fd);
}

/* The shared object in another place; what is in it stays. */
static void
map_again(struct part *p)
{
	void *at;

	NEED("up_unmap", up_unmap(rt, p->shared, npages * UP_PAGE_SIZE));
	NEED("up_map", up_map(rt, NULL, npages * UP_PAGE_SIZE, PROT_READ | PROT_WRITE, UP_SHARED,
			      p->object, 0, &at));
	p->shared = at;
	atomic_fetch_add(&maps, 1);
}

static void
fork_one(struct part *p)
{
	struct timespec nap = { .tv_nsec = 2000000 };
	int status = 0;
	pid_t child;

	pthread_rwlock_wrlock(&forking);
	child = fork();
	if (child == 0) {
		for (unsigned k = 0; k < 64; k++) {
			const size_t i = rnd(p) % npages;

			compare("child", page_of(p, i), number_of(p, i), p->version[i]);
			fill(page_of(p, i), number_of(p, i), ++p->version[i]);
		}
		nanosleep(&nap, NULL);
		for (size_t i = 0; i < npages; i++)
			compare("child", page_of(p, i), number_of(p, i), p->version[i]);
		_exit(0);
	}
	pthread_rwlock_unlock(&forking);
	need("fork", child);
	for (unsigned ms = 0; waitpid(child, &status, WNOHANG) == 0; ms += 2) {
		if (ms >= CHILD_MS) {
			fprintf(stderr, "survivor: child %d has not ended within %d ms\n",
				(int)child, CHILD_MS);
			_exit(1);
		}
		nanosleep(&nap, NULL);
	}
	/* SIGSEGV: the daemon was killed in the middle of the fork, and the child has nothing. */
	if (status != 0 && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV)) {
		fprintf(stderr, "survivor: child %d: status %#x\n", (int)child, (unsigned)status);
		_exit(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS ? 2 : 1); /* it was told */
	}
	atomic_fetch_add(&forks, status == 0);
}

static void *
live(void *arg)
{
	struct part *const p = arg;
	const bool forker = p->number == 0 && !calm;
	const size_t both = 2 * npages;

	assert(both > 0);
	for (size_t i = 0; i < both && calm; i++)
		write_page(p, i);
	while (!atomic_load(&over)) {
		const size_t i = rnd(p) % both;
		const size_t left = i < npages ? npages - i : both - i;
		const unsigned what = rnd(p) % 1000;

		if (what < 450)
			write_page(p, i);
		else if (what < 980)
			compare("page", page_of(p, i), number_of(p, i), p->version[i]);
		else if (what < 990)
			discard(p, i, rnd(p) % (left < 64 ? left : 64) + 1);
		else if (what < 995 && i < npages)
			clone_some(p, i, rnd(p) % (left < 256 ? left : 256) + 1);
		else if (what < 997)
			map_again(p);
		else if (forker && what < 998)
			fork_one(p);
		else if (what == 998)
			write_a_file(p);
		if (what % 8 == 0)
			count_hot(p);
		if (what % 64 == 1)
			wire_some(p, rnd(p) % 2 == 0);
	}
	for (size_t i = 0; i < 2 * npages; i++)
		compare("page at the end", page_of(p, i), number_of(p, i), p->version[i]);
	unwire_all(p);
	return NULL;
}

/* Shared with a file: what is discarded of it is in there. */
static void
file_object(struct part *p)
{
	const int fd = open(dir, O_TMPFILE | O_RDWR, 0600);

	if (fd < 0 || ftruncate(fd, (off_t)(npages * UP_PAGE_SIZE)) < 0)
		need("a file", -errno);
	NEED("up_object_create_file",
	     up_object_create_file(rt, fd, 0, npages * UP_PAGE_SIZE, 0, &p->object));
	p->file = fd;
}

/* What a file has once it was asked for. */
static void
compare_file(const struct part *p)
{
	static char page[UP_PAGE_SIZE];

	NEED("up_sync", up_sync(rt, p->shared, npages * UP_PAGE_SIZE, 0));
	for (size_t i = 0; i < npages; i++) {
		if (pread(p->file, page, sizeof(page), (off_t)(i * UP_PAGE_SIZE)) !=
		    (ssize_t)sizeof(page))
			need("pread", -errno);
		compare("file", page, number_of(p, npages + i), p->version[npages + i]);
	}
}

/*
 * Pages that were staged when they were cloned, and are written since: two pages have known the same address then.  The daemon is killed between
 * "ready" and the line that it reads.
 */
static int
cloned(char **argv)
{
	const struct up_config cfg = { .log = logged };
	const struct timespec nap = { .tv_nsec = 20000000 };
	const size_t n = strtoull(argv[3], NULL, 0);
	unsigned char *const in = malloc(n);
	uint32_t *const version = calloc(n, sizeof(*version));
	size_t staged = 0;
	void *at, *copy;

	if (in == NULL || version == NULL)
		need("malloc", -ENOMEM);
	need("up_runtime_connect", up_runtime_connect(&rt, argv[1], &cfg));
	NEED("up_map",
	     up_map(rt, NULL, n * UP_PAGE_SIZE, PROT_READ | PROT_WRITE, UP_PRIVATE, NULL, 0, &at));
	for (size_t i = 0; i < n; i++)
		fill((char *)at + i * UP_PAGE_SIZE, i, version[i] = 1);
	for (unsigned tries = 0; staged < STAGED_MIN; tries++) {
		if (tries == STAGED_TRIES)
			need("staged pages", -ETIMEDOUT);
		nanosleep(&nap, NULL);
		need("up_residency", up_residency(rt, at, n * UP_PAGE_SIZE, in));
		staged = 0;
		for (size_t i = 0; i < n; i++)
			staged += (in[i] & UP_PAGE_STAGED) != 0;
	}
	NEED("up_clone", up_clone(rt, at, n * UP_PAGE_SIZE, &copy));
	for (size_t i = 0, written = 0; i < n && written < STAGED_MIN; i++) {
		if (in[i] & UP_PAGE_STAGED) {
			fill((char *)at + i * UP_PAGE_SIZE, i, ++version[i]);
			written++;
		}
	}
	puts("ready");
	fflush(stdout);
	(void)getchar();
	for (size_t i = 0; i < n; i++) {
		compare("original", (char *)at + i * UP_PAGE_SIZE, i, version[i]);
		compare("clone", (char *)copy + i * UP_PAGE_SIZE, i, 1);
	}
	up_runtime_destroy(rt);
	free(version);
	free(in);
	return 0;
}

static sigjmp_buf missed;

static void
on_sigbus(int sig)
{
	siglongjmp(missed, sig);
}

/* A file by direct I/O, half of which is cut off, and its daemon killed after that, between "ready" and the line that it reads. */
static int
cut(char **argv)
{
	const struct up_config cfg = { .log = logged };
	const struct sigaction sa = { .sa_handler = on_sigbus };
	const int fd = open(argv[3], O_RDWR | O_CLOEXEC);
	const size_t n = strtoull(argv[4], NULL, 0);
	volatile size_t gone = 0;
	struct up_object *o;
	void *at, *own;

	if (fd < 0)
		need("a file", -errno);
	need("up_runtime_connect", up_runtime_connect(&rt, argv[1], &cfg));
	need("up_object_create_device", up_object_create_device(rt, fd, 0, &o));
	NEED("up_map",
	     up_map(rt, NULL, n * UP_PAGE_SIZE, PROT_READ | PROT_WRITE, UP_SHARED, o, 0, &at));
	NEED("up_map",
	     up_map(rt, NULL, n * UP_PAGE_SIZE, PROT_READ | PROT_WRITE, UP_PRIVATE, NULL, 0, &own));
	for (size_t i = 0; i < n; i++) {
		fill((char *)at + i * UP_PAGE_SIZE, i, 1);
		fill((char *)own + i * UP_PAGE_SIZE, i, 2);
	}
	/* Written, and in memory no more. */
	need("up_sync", up_sync(rt, at, n * UP_PAGE_SIZE, UP_SYNC_INVALIDATE));
	puts("ready");
	fflush(stdout);
	(void)getchar();
	for (size_t i = 0; i < n; i++)
		compare("own", (char *)own + i * UP_PAGE_SIZE, i, 2);
	sigaction(SIGBUS, &sa, NULL);
	for (volatile size_t i = 0; i < n; i++) {
		if (sigsetjmp(missed, 1) == 0)
			compare("file", (char *)at + i * UP_PAGE_SIZE, i, 1);
		else
			gone += i >= n / 2 ? 1 : n;
	}
	printf("gone %zu\n", gone);
	up_object_unref(o);
	up_runtime_destroy(rt);
	close(fd);
	return 0;
}

static void
on_leaving(void *ctx, unsigned ms)
{
	(void)ctx;
	printf("leaving %u\n", ms);
	fflush(stdout);
}

static int
held(char **argv)
{
	const struct up_config cfg = { .log = logged, .pager_leaving = on_leaving };
	const size_t n = strtoull(argv[3], NULL, 0);
	char line[16];
	void *at;

	need("up_runtime_connect", up_runtime_connect(&rt, argv[1], &cfg));
	need("up_map",
	     up_map(rt, NULL, n * UP_PAGE_SIZE, PROT_READ | PROT_WRITE, UP_PRIVATE, NULL, 0, &at));
	need("up_inherit", up_inherit(rt, at, n * UP_PAGE_SIZE, UP_INHERIT_COPY));
	for (size_t i = 0; i < n; i++)
		fill((char *)at + i * UP_PAGE_SIZE, i, 1);
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) != NULL) {
		const pid_t child = strcmp(line, "fork\n") == 0 ? fork() : 0;

		need("fork", child);
		if (child > 0)
			_exit(0);
		for (size_t i = 0; i < n; i++)
			compare("page", (char *)at + i * UP_PAGE_SIZE, i, 1);
		puts("right");
		fflush(stdout);
	}
	up_runtime_destroy(rt);
	return 0;
}

/* An object with a name, of one program after the other. */
static int
once(char **argv)
{
	const struct up_config cfg = { .log = logged };
	const char *const what = argv[2], *const name = argv[3];
	const size_t n = strtoull(argv[4], NULL, 0);
	struct up_object *o;
	void *at;

	seed = strtoull(argv[5], NULL, 0);
	need("up_runtime_connect", up_runtime_connect(&rt, argv[1], &cfg));
	if (strcmp(what, "write") == 0)
		need("up_object_create_named",
		     up_object_create_named(rt, name, n * UP_PAGE_SIZE, 0, &o));
	else
		need("up_object_open", up_object_open(rt, name, &o));
	NEED("up_map",
	     up_map(rt, NULL, n * UP_PAGE_SIZE, PROT_READ | PROT_WRITE, UP_SHARED, o, 0, &at));
	for (size_t i = 0; i < n; i++) {
		char *const page = (char *)at + i * UP_PAGE_SIZE;

		if (strcmp(what, "write") == 0)
			fill(page, i, 1);
		else
			compare("named page", page, i, 1);
	}
	if (strcmp(what, "remove") == 0)
		need("up_object_remove", up_object_remove(rt, name));
	up_object_unref(o);
	up_runtime_destroy(rt);
	return 0;
}

static void *
sync_it(void *arg)
{
	const struct part *const p = arg;

	need("up_sync", up_sync(rt, p->shared, npages * UP_PAGE_SIZE, 0));
	return NULL;
}

static void
compare_device(const char *what, int fd, uint32_t version)
{
	static char page[UP_PAGE_SIZE];

	for (size_t i = 0; i < npages; i++) {
		if (pread(fd, page, sizeof(page), (off_t)(i * UP_PAGE_SIZE)) !=
		    (ssize_t)sizeof(page))
			need("pread", -errno);
		compare(what, page, i, version);
	}
}

static void
wait_for_line(const char *said)
{
	puts(said);
	fflush(stdout);
	(void)getchar();
}

/*
 * A file that is written back on a slow disk when the daemon is killed, between "writing" and the line that it reads; the disk is as fast as ever at
 * the next one.
 */
static int
late(char **argv)
{
	const struct up_config cfg = { .log = logged };
	struct part p = { .file = open(argv[3], O_RDWR | O_CLOEXEC) };
	pthread_t thread;
	void *at;

	npages = strtoull(argv[4], NULL, 0);
	if (p.file < 0)
		need("a file", -errno);
	need("up_runtime_connect", up_runtime_connect(&rt, argv[1], &cfg));
	need("up_object_create_file",
	     up_object_create_file(rt, p.file, 0, npages * UP_PAGE_SIZE, 0, &p.object));
	NEED("up_map", up_map(rt, NULL, npages * UP_PAGE_SIZE, PROT_READ | PROT_WRITE, UP_SHARED,
			      p.object, 0, &at));
	p.shared = at;
	for (size_t i = 0; i < npages; i++)
		fill(p.shared + i * UP_PAGE_SIZE, i, 1);
	wait_for_line("ready");
	if (pthread_create(&thread, NULL, sync_it, &p) != 0)
		need("pthread_create", -EAGAIN);
	wait_for_line("writing");
	for (size_t i = 0; i < npages; i++)
		fill(p.shared + i * UP_PAGE_SIZE, i, 2);
	pthread_join(thread, NULL);
	sync_it(&p);
	compare_device("written", p.file, 2);
	wait_for_line("written");
	if (posix_fadvise(p.file, 0, 0, POSIX_FADV_DONTNEED) != 0)
		need("posix_fadvise", -EIO);
	compare_device("what has come late", p.file, 2);
	up_object_unref(p.object);
	up_runtime_destroy(rt);
	close(p.file);
	return 0;
}

int
main(int argc, char **argv)
{
	const struct up_config cfg = { .log = logged };
	unsigned nthreads = 0;
	struct part *part;
	int r;

	if (argc == 6 && strtoull(argv[2], NULL, 0) == 0)
		return once(argv);
	if (argc == 4 && strcmp(argv[2], "cloned") == 0)
		return cloned(argv);
	if (argc == 5 && strcmp(argv[2], "cut") == 0)
		return cut(argv);
	if (argc == 5 && strcmp(argv[2], "late") == 0)
		return late(argv);
	if (argc == 4 && strcmp(argv[2], "held") == 0)
		return held(argv);
	calm = argc == 7 && strcmp(argv[6], "calm") == 0;
	if (argc == 6 || calm)
		nthreads = (unsigned)atoi(argv[5]);
	if (nthreads > 0)
		npages = strtoull(argv[2], NULL, 0) / nthreads / 2;
	if (nthreads == 0 || npages == 0) {
		fputs("usage: survivor SOCKET PAGES SECONDS SEED THREADS [calm]\n"
		      "       survivor SOCKET write|compare|remove NAME PAGES SEED\n"
		      "       survivor SOCKET cloned PAGES\n"
		      "       survivor SOCKET cut FILE PAGES\n"
		      "       survivor SOCKET late FILE PAGES\n"
		      "       survivor SOCKET held PAGES\n",
		      stderr);
		return 2;
	}
	seed = strtoull(argv[4], NULL, 0);
	dir = getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/var/tmp";
	r = up_runtime_connect(&rt, argv[1], &cfg);
	need("up_runtime_connect", r);
	part = calloc(nthreads, sizeof(*part));
	for (unsigned t = 0; t < nthreads; t++) {
		struct part *const p = &part[t];
		void *at;

		p->number = t;
		p->file = -1;
		p->random = mix(seed + t);
		p->version = calloc(2 * npages, sizeof(p->version[0]));
		p->counted = calloc(HOT_PAGES, sizeof(p->counted[0]));
		NEED("up_map", up_map(rt, NULL, HOT_PAGES * UP_PAGE_SIZE, PROT_READ | PROT_WRITE,
				      UP_PRIVATE, NULL, 0, &at));
		p->hot = at;
		NEED("up_map", up_map(rt, NULL, npages * UP_PAGE_SIZE, PROT_READ | PROT_WRITE,
				      UP_PRIVATE, NULL, 0, &at));
		p->region = at;
		NEED("up_inherit", up_inherit(rt, at, npages * UP_PAGE_SIZE, UP_INHERIT_COPY));
		if (t % 2 == 1)
			file_object(p);
		else
			NEED("up_object_create_anon",
			     up_object_create_anon(rt, npages * UP_PAGE_SIZE, 0, &p->object));
		NEED("up_map", up_map(rt, NULL, npages * UP_PAGE_SIZE, PROT_READ | PROT_WRITE,
				      UP_SHARED, p->object, 0, &at));
		p->shared = at;
	}
	for (unsigned t = 0; t < nthreads; t++)
		if (pthread_create(&part[t].thread, NULL, live, &part[t]) != 0)
			return 2;
	sleep((unsigned)atoi(argv[3]));
	atomic_store(&over, true);
	for (unsigned t = 0; t < nthreads; t++) {
		pthread_join(part[t].thread, NULL);
		if (part[t].file >= 0)
			compare_file(&part[t]);
	}
	for (unsigned t = 0; t < nthreads; t++) {
		up_object_unref(part[t].object);
		free(part[t].version);
		free(part[t].counted);
	}
	free(part);
	printf("wrote %" PRIuFAST64 ", compared %" PRIuFAST64 ", clones %" PRIuFAST64
	       ", forks %" PRIuFAST64 ", maps %" PRIuFAST64 "\n",
	       atomic_load(&wrote), atomic_load(&checked), atomic_load(&clones),
	       atomic_load(&forks), atomic_load(&maps));
	up_runtime_destroy(rt);
	return 0;
}
