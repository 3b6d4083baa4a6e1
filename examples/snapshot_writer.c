/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * snapshot_writer.c: back up a table to a file while two threads go on changing it.
 *
 * The table is accounts, several times the memory we may use, in a paged object.  Each thread transfers
 * money between accounts of its own, which lie on pages that both threads write to, and keeps a journal as databases
 * do: what it is about to do on one page, then the two accounts, then, on another page at the far end of the table, that
 * it is done.  Every so often the main thread takes a snapshot, an O(1) copy of all of it, and writes
 * that to a file at its leisure.  The writers stand still only while the snapshot is taken.
 *
 * That a file is the table at one instant is proved from the file alone:
 *
 *	journal    what was begun is what was done, or one ahead of it; and of a transfer on its way
 *	           the second account was never written before the first
 *	sum        once transfers on their way are taken back, no money was made or lost
 *
 * A dump that is torn by as little as a few microseconds fails one of them: try --live, which dumps the
 * table itself.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <uffd_pager.h>

#define PAGE ((size_t)UP_PAGE_SIZE)
#define WORDS (PAGE / sizeof(uint64_t))
#define MIB 1048576.0
#define THREADS 2
#define INITIAL 1000		  /* what is in each account at first */
#define CHUNK ((size_t)256 << 10) /* of a dump, bytes */
#define BETWEEN_NS 100000000	  /* from the end of a dump to the next snapshot */
#define PAGES_MIN 64

/* A word that one thread stores and a snapshot sees: in the order of the program, hence release. */
typedef _Atomic uint64_t word;

/* The first THREADS pages: what a thread is about to do. */
enum { BEGUN, FROM, TO, AMOUNT, OLD_FROM, OLD_TO, JOURNAL_WORDS };

struct writer {
	pthread_t thread;
	unsigned id;
	uint64_t random, done;
	_Atomic uint64_t longest; /* ns that a transfer took, since somebody last looked */
};

static struct {
	size_t size, memory, npages, naccounts;
	double seconds;
	const char *daemon; /* the socket of uffd-pagerd; NULL: the pager is in this process */
	const char *out;    /* NULL: nothing is kept */
	bool live;

	struct up_runtime *rt;
	struct up_object *object;
	void *region;
	word *table; /* the same */
	char *chunk;
	atomic_bool stop;
	struct writer writer[THREADS];
} job = { .size = (size_t)256 << 20, .memory = (size_t)64 << 20, .seconds = 5 };

static _Noreturn void __attribute__((format(printf, 1, 2))) die(const char *fmt, ...)
{
	va_list ap;

	fputs("snapshot_writer: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(1);
}

static void
check(const char *what, int r)
{
	if (r < 0)
		die("%s: %s", what, strerror(-r));
}

/* On any thread of the pager: no paged memory, no call of the library. */
static void
say(void *ctx, enum up_log_level level, const char *line)
{
	(void)ctx;
	if (level <= UP_LOG_WARNING)
		fprintf(stderr, "snapshot_writer: pager: %s\n", line);
}

static uint64_t
now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t
next_random(uint64_t *state)
{
	uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);

	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

/* ---- the table ---- */

/* Where things are, as words from its beginning. */
static size_t
journal_at(unsigned thread)
{
	return thread * WORDS;
}

static size_t
done_at(unsigned thread)
{
	return (job.npages - 1 - thread) * WORDS;
}

static size_t
account_at(size_t account)
{
	return THREADS * WORDS + account;
}

static void
store(size_t at, uint64_t value)
{
	atomic_store_explicit(&job.table[at], value, memory_order_release);
}

static uint64_t
load(size_t at)
{
	return atomic_load_explicit(&job.table[at], memory_order_relaxed);
}

/* ---- the writers ---- */

/* An account of this thread's: every other one.  Most of the time from the same tenth of the table. */
static size_t
pick(struct writer *w)
{
	const uint64_t r = next_random(&w->random);
	const size_t n = r % 10 == 0 ? job.naccounts : job.naccounts / 10;

	return account_at((r >> 8) % (n / THREADS) * THREADS + w->id);
}

static void
transfer(struct writer *w)
{
	const size_t journal = journal_at(w->id), from = pick(w), to = pick(w);
	const uint64_t has = load(from), had = load(to);
	const uint64_t amount = has > 0 ? next_random(&w->random) % has + 1 : 0;

	if (from == to)
		return;
	store(journal + FROM, from);
	store(journal + TO, to);
	store(journal + AMOUNT, amount);
	store(journal + OLD_FROM, has);
	store(journal + OLD_TO, had);
	store(journal + BEGUN, ++w->done);
	store(from, has - amount);
	store(to, had + amount);
	store(done_at(w->id), w->done);
}

static void *
writer_thread(void *arg)
{
	struct writer *w = arg;
	uint64_t before = now_ns();

	while (!atomic_load_explicit(&job.stop, memory_order_relaxed)) {
		uint64_t after, took;

		transfer(w);
		after = now_ns();
		took = after - before;
		before = after;
		if (took > atomic_load_explicit(&w->longest, memory_order_relaxed))
			atomic_store_explicit(&w->longest, took, memory_order_relaxed);
	}
	return NULL;
}

/* The longest that a writer has waited since the last call, ns. */
static uint64_t
longest_wait(void)
{
	uint64_t longest = 0;

	for (unsigned i = 0; i < THREADS; i++) {
		const uint64_t ns = atomic_exchange(&job.writer[i].longest, 0);

		longest = ns > longest ? ns : longest;
	}
	return longest;
}

/* ---- dumps ---- */

/* By way of ordinary memory, which also works where the kernel may not fault on paged memory. */
static void
dump(int fd, char *from)
{
	assert(job.chunk != NULL);
	for (size_t at = 0; at < job.size; at += CHUNK) {
		const size_t len = job.size - at < CHUNK ? job.size - at : CHUNK;

		memcpy(job.chunk, from + at, len);
		for (size_t put = 0; put < len;) {
			const ssize_t n = pwrite(fd, job.chunk + put, len - put, (off_t)(at + put));

			if (n < 0 && errno == EINTR)
				continue;
			if (n <= 0)
				die("writing a dump: %s", strerror(n < 0 ? errno : ENOSPC));
			put += (size_t)n;
		}
		/* Of this snapshot: its copies need not be kept, let alone written to swap. */
		if (!job.live)
			check("discarding what was dumped",
			      up_advise(job.rt, from + at, len, UP_ADVICE_DONTNEED));
	}
}

static void
fetch(int fd, size_t at, void *buf, size_t len)
{
	for (size_t got = 0; got < len;) {
		const ssize_t n =
			pread(fd, (char *)buf + got, len - got, (off_t)(at * sizeof(word) + got));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			die("reading a dump: %s", n < 0 ? strerror(errno) : "it is too short");
		got += (size_t)n;
	}
}

static uint64_t
fetch_word(int fd, size_t at)
{
	uint64_t value;

	fetch(fd, at, &value, sizeof(value));
	return value;
}

/* What a thread's journal in the file says.  *back: what taking back its transfer adds to the sum. */
static bool
prove_journal(int fd, unsigned thread, uint64_t *back)
{
	uint64_t j[JOURNAL_WORDS], done, from, to;

	*back = 0;
	fetch(fd, journal_at(thread), j, sizeof(j));
	done = fetch_word(fd, done_at(thread));
	if (j[BEGUN] == done)
		return true;
	if (j[BEGUN] != done + 1) {
		fprintf(stderr,
			"thread %u: transfer %" PRIu64
			" is begun, and the last one done is %" PRIu64 "\n",
			thread, j[BEGUN], done);
		return false;
	}
	if (j[FROM] >= job.size / sizeof(word) || j[TO] >= job.size / sizeof(word)) {
		fprintf(stderr, "thread %u: the journal is garbage\n", thread);
		return false;
	}
	from = fetch_word(fd, j[FROM]);
	to = fetch_word(fd, j[TO]);
	if ((from != j[OLD_FROM] && from != j[OLD_FROM] - j[AMOUNT]) ||
	    (to != j[OLD_TO] && to != j[OLD_TO] + j[AMOUNT]) ||
	    (j[AMOUNT] != 0 && from == j[OLD_FROM] && to != j[OLD_TO])) {
		fprintf(stderr, "thread %u: transfer %" PRIu64 " was not written in its order\n",
			thread, j[BEGUN]);
		return false;
	}
	*back = j[OLD_FROM] - from + j[OLD_TO] - to;
	return true;
}

/* True if the file is the table as it was at some instant. */
static bool
prove(int fd)
{
	const size_t first = account_at(0), end = account_at(job.naccounts);
	uint64_t sum = 0, back;
	bool good = true;

	for (unsigned i = 0; i < THREADS; i++) {
		good &= prove_journal(fd, i, &back);
		sum += back;
	}
	for (size_t at = first; at < end; at += CHUNK / sizeof(word)) {
		const size_t left = end - at,
			     n = left < CHUNK / sizeof(word) ? left : CHUNK / sizeof(word);
		uint64_t value;

		fetch(fd, at, job.chunk, n * sizeof(word));
		for (size_t i = 0; i < n; i++) {
			memcpy(&value, job.chunk + i * sizeof(value), sizeof(value));
			sum += value;
		}
	}
	if (sum != (uint64_t)job.naccounts * INITIAL) {
		fprintf(stderr, "the accounts hold %" PRIu64 ", not %" PRIu64 "\n", sum,
			(uint64_t)job.naccounts * INITIAL);
		good = false;
	}
	return good;
}

static int
open_dump(unsigned number)
{
	char path[PATH_MAX];
	const char *dir = getenv("TMPDIR");
	int fd;

	if (job.out != NULL) {
		snprintf(path, sizeof(path), "%s/snapshot-%u", job.out, number);
		fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	} else {
		snprintf(path, sizeof(path), "%s/snapshot.XXXXXX",
			 dir != NULL && *dir != '\0' ? dir : "/var/tmp");
		fd = mkostemp(path, O_CLOEXEC);
		if (fd >= 0)
			unlink(path);
	}
	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	return fd;
}

static uint64_t
pages_copied(void)
{
	struct up_stats st;

	if (job.daemon != NULL) /* which tells its sum for all clients alone */
		return 0;
	check("up_stats_get", up_stats_get(job.rt, &st, sizeof(st)));
	return st.copies;
}

/* Take a snapshot, dump it, prove it.  One line of the table of results. */
static bool
back_up(unsigned number)
{
	struct up_object *snapshot = NULL;
	uint64_t begin, taken, stood, dumped, copied = pages_copied();
	void *p = job.region;
	const int fd = open_dump(number);
	bool good;

	longest_wait(); /* those before */
	begin = now_ns();
	if (!job.live) {
		check("up_object_snapshot", up_object_snapshot(job.rt, job.object, &snapshot));
		taken = now_ns() - begin;
		check("mapping a snapshot",
		      up_map(job.rt, NULL, job.size, PROT_READ, UP_SHARED, snapshot, 0, &p));
		check("up_advise", up_advise(job.rt, p, job.size, UP_ADVICE_SEQUENTIAL));
	} else {
		taken = 0;
	}
	/* Who waited for the snapshot has gone on by now, or will be seen by the next look. */
	nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL);
	stood = longest_wait();
	begin = now_ns();
	dump(fd, p);
	dumped = now_ns() - begin;
	copied = pages_copied() - copied;
	if (!job.live) {
		check("unmapping a snapshot", up_unmap(job.rt, p, job.size));
		up_object_unref(snapshot);
	}
	good = prove(fd);
	printf("%8u %10.2f %15.2f %10.0f %10.2f", number, (double)taken / 1e6, (double)stood / 1e6,
	       (double)dumped / 1e6, (double)longest_wait() / 1e6);
	if (job.daemon != NULL)
		printf(" %12s", "-");
	else
		printf(" %12" PRIu64, copied);
	printf("   %s\n", good ? "one instant" : "TORN");
	fflush(stdout);
	close(fd);
	return good;
}

/* ---- main ---- */

static void
set_up(void)
{
	const struct up_config cfg = { .memory_limit = job.memory, .log = say };
	void *p;

	job.npages = job.size / PAGE;
	job.naccounts = (job.npages - (size_t)2 * THREADS) * WORDS;
	job.chunk = malloc(CHUNK);
	if (job.chunk == NULL)
		die("no memory");
	if (job.daemon != NULL)
		check("up_runtime_connect", up_runtime_connect(&job.rt, job.daemon, &cfg));
	else
		check("up_runtime_create", up_runtime_create(&job.rt, &cfg));
	check("up_object_create_anon", up_object_create_anon(job.rt, job.size, 0, &job.object));
	check("up_map",
	      up_map(job.rt, NULL, job.size, PROT_READ | PROT_WRITE, UP_SHARED, job.object, 0, &p));
	job.region = p;
	job.table = p;
	for (size_t i = 0; i < job.naccounts; i++)
		store(account_at(i), INITIAL);
	for (unsigned i = 0; i < THREADS; i++) {
		struct writer *w = &job.writer[i];

		w->id = i;
		w->random = i + 1;
		if (pthread_create(&w->thread, NULL, writer_thread, w) != 0)
			die("pthread_create failed");
	}
}

static bool
run(void)
{
	const uint64_t end = now_ns() + (uint64_t)(job.seconds * 1e9);
	uint64_t transfers = 0;
	struct up_stats st;
	unsigned n = 0, torn = 0;

	check("up_stats_get", up_stats_get(job.rt, &st, sizeof(st)));
	printf("%.0f MiB in %.0f MiB%s, %d threads; milliseconds\n", (double)job.size / MIB,
	       (double)st.limit / MIB,
	       job.daemon != NULL ? ", of the daemon, for all its clients" : "", THREADS);
	printf("%8s %10s %15s %10s %10s %12s\n", "snapshot", "to take it", "writers waited",
	       "to dump", "meanwhile", "pages copied");
	do {
		nanosleep(&(struct timespec){ .tv_nsec = BETWEEN_NS }, NULL);
		torn += !back_up(++n);
	} while (n < 2 || now_ns() < end);
	atomic_store(&job.stop, true);
	for (unsigned i = 0; i < THREADS; i++) {
		pthread_join(job.writer[i].thread, NULL);
		transfers += job.writer[i].done;
	}
	check("up_stats_get", up_stats_get(job.rt, &st, sizeof(st)));
	if (job.daemon != NULL)
		printf("%" PRIu64 " transfers; %.1f MiB in memory now\n", transfers,
		       (double)st.resident / MIB);
	else
		printf("%" PRIu64 " transfers; at most %.1f MiB in memory, %.1f MiB in swap now\n",
		       transfers, (double)st.used_max / MIB, (double)st.swapped / MIB);
	if (torn > 0)
		printf("FAIL: %u of %u dumps are not the table at one instant\n", torn, n);
	else
		printf("PASS: %u dumps, each the table at one instant\n", n);
	return torn == 0 && transfers > 0 &&
	       (job.daemon != NULL ? st.resident : st.used_max) <= st.limit;
}

static void
usage(FILE *to)
{
	fprintf(to,
		"Usage: snapshot_writer [OPTION]...\n"
		"Transfer money between accounts with two threads, and write snapshots of the accounts to\n"
		"files meanwhile, each of which must be what the accounts were at one instant.\n"
		"\n"
		"  --size SIZE      of the accounts (256M)\n"
		"  --memory SIZE    that they may take (64M)\n"
		"  --daemon SOCKET  let uffd-pagerd page, which listens there, in its memory\n"
		"  --seconds N      how long, two snapshots at least (5)\n"
		"  --out DIR        keep the files there, as snapshot-1 and so on\n"
		"  --live           dump the accounts themselves instead: that must FAIL\n"
		"  --help           this\n"
		"\n"
		"SIZE: bytes, or with K, M or G.  Exit status: 0 each file is one instant; 1 it is not, or\n"
		"something went wrong; 2 bad usage.\n"
		"\n"
		"Columns: the call's duration; the longest that a writer waited around it, and while\n"
		"the dump was written (faults and swap included); pages copied for that.\n");
}

static _Noreturn void
refuse(const char *what, const char *value)
{
	fprintf(stderr, "snapshot_writer: %s: %s; try --help\n", what, value);
	exit(2);
}

static size_t
parse_size(const char *name, const char *s, size_t least)
{
	static const char units[] = "KMG";
	const char *unit;
	char *end;
	uint64_t n;

	errno = 0;
	n = strtoull(s, &end, 10);
	if (end == s || *s == '-' || errno != 0)
		refuse(name, s);
	if (*end != '\0') {
		unit = strchr(units, *end);
		if (unit == NULL || end[1] != '\0' || n > UINT64_MAX >> 40)
			refuse(name, s);
		n <<= 10 * (unit - units + 1);
	}
	if (n < least || n > (uint64_t)1 << 44 || n % PAGE != 0)
		refuse(name, s);
	return n;
}

static void
parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "size", required_argument, NULL, 's' },
		{ "memory", required_argument, NULL, 'm' },
		{ "daemon", required_argument, NULL, 'd' },
		{ "seconds", required_argument, NULL, 't' },
		{ "out", required_argument, NULL, 'o' },
		{ "live", no_argument, NULL, 'l' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct stat st;
	bool memory = false;
	char *end;
	int c;

	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (c) {
		case 's':
			job.size = parse_size("--size", optarg, PAGES_MIN * PAGE);
			break;
		case 'm':
			job.memory = parse_size("--memory", optarg, UP_MEMORY_LIMIT_MIN);
			memory = true;
			break;
		case 'd':
			job.daemon = optarg;
			break;
		case 't':
			job.seconds = strtod(optarg, &end);
			if (end == optarg || *end != '\0' ||
			    !(job.seconds >= 0 && job.seconds < 1e7))
				refuse("--seconds", optarg);
			break;
		case 'o':
			job.out = optarg;
			if (stat(optarg, &st) < 0 || !S_ISDIR(st.st_mode))
				refuse("--out is not a directory", optarg);
			break;
		case 'l':
			job.live = true;
			break;
		case 'h':
			usage(stdout);
			exit(0);
		default:
			fprintf(stderr, "try --help\n");
			exit(2);
		}
	}
	if (memory && job.daemon != NULL)
		refuse("--memory is the daemon's matter", job.daemon);
	if (optind < argc)
		refuse("an argument too many", argv[optind]);
}

int
main(int argc, char **argv)
{
	bool good;

	parse(argc, argv);
	set_up();
	good = run();
	check("up_unmap", up_unmap(job.rt, job.region, job.size));
	up_object_unref(job.object);
	up_runtime_destroy(job.rt);
	free(job.chunk);
	return good ? 0 : 1;
}
