/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * string_table.c: a hash table of strings, eight times larger than the memory it may use.
 *
 * Nothing here knows of paging: the table is what one would write over malloc(), with up_malloc() instead.
 * It is filled, looked up entry by entry, changed (a third of the strings made longer, a third
 * removed), looked up again, and emptied.  Every string is a function of its number, so each byte that comes
 * back is known.
 *
 *	slots (one large block)           entries (small blocks)
 *	+--------+---+
 *	| hash   | --+----------------->  { number, length, "7f3a..." }
 *	+--------+---+
 *	| 0      | - |  empty
 *	+--------+---+
 *
 * What an embedder can learn here: put what decides a search (the hashes) together, and apart from what is
 * only needed when it has succeeded.  Looking for what is absent, and growing the table, then touch
 * no entry; in a table of chains either would read all of them back from swap.  Freeing needs no advice to
 * the pager: a page without blocks is discarded by the heap.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <uffd_pager.h>

#define MIB 1048576.0
#define SLOTS_MIN ((size_t)1024)
#define LENGTH_MIN 16
#define LENGTH_MAX 1000 /* of a string when it is new */

struct entry {
	uint64_t number;
	uint32_t length;
	uint32_t version; /* 0: as it was added */
	char text[];
};

struct slot {
	uint64_t hash;	     /* 0: the slot was never used */
	struct entry *entry; /* NULL: what was here has been removed */
};

static struct {
	size_t memory, size; /* bytes */
	uint64_t seed;
	const char *daemon; /* the socket of uffd-pagerd, whose memory it is then */
	struct up_runtime *rt;
	struct up_heap *heap;

	struct slot *slots;
	size_t nslots; /* a power of two */
	size_t nused;  /* slots that are not as they began */
	size_t nentries;
	uint64_t wrong;
} job = { .memory = (size_t)16 << 20, .seed = 1 };

static _Noreturn void __attribute__((format(printf, 2, 3))) die(int status, const char *fmt, ...)
{
	va_list ap;

	fflush(stdout);
	fputs("string_table: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(status);
}

static void
say(void *ctx, enum up_log_level level, const char *line)
{
	(void)ctx;
	if (level <= UP_LOG_WARNING)
		fprintf(stderr, "string_table: pager: %s\n", line);
}

static double
seconds_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* ---- strings that can be told apart ---- */

static uint64_t
mix(uint64_t x)
{
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

static uint64_t
hash_of(uint64_t number)
{
	const uint64_t h = mix(number ^ job.seed << 40);

	return h != 0 ? h : 1;
}

static uint32_t
length_of(uint64_t number, uint32_t version)
{
	const uint32_t length =
		LENGTH_MIN + (uint32_t)(hash_of(number) >> 20) % (LENGTH_MAX - LENGTH_MIN);

	return version == 0 ? length : length + length / 4 + 8;
}

/* Eight characters, from at = 0, 8, 16 ... */
static void
text_of(uint64_t number, uint32_t at, char text[8])
{
	uint64_t x = mix(hash_of(number) + at);

	for (unsigned i = 0; i < 8; i++, x >>= 8)
		text[i] = (char)('!' + (x & 0xff) % 94);
}

/* Write characters [from, e->length) and the end. */
static void
write_text(struct entry *e, uint32_t from)
{
	char piece[8];

	for (uint32_t i = from; i < e->length; i++) {
		if (i == from || i % 8 == 0)
			text_of(e->number, i & ~7u, piece);
		e->text[i] = piece[i % 8];
	}
	e->text[e->length] = '\0';
}

static bool
entry_is(const struct entry *e, uint64_t number, uint32_t version)
{
	char piece[8];

	if (e->number != number || e->version != version ||
	    e->length != length_of(number, version) || e->text[e->length] != '\0')
		return false;
	for (uint32_t i = 0; i < e->length; i += 8) {
		text_of(number, i, piece);
		if (memcmp(e->text + i, piece, e->length - i < 8 ? e->length - i : 8) != 0)
			return false;
	}
	return true;
}

/* ---- the table ---- */

static struct slot *
slots_new(size_t n)
{
	/* Large and all zero: not a page of it is touched here. */
	struct slot *slots = up_calloc(job.heap, n, sizeof(*slots));

	if (slots == NULL)
		die(1, "no room for a table of %zu slots: %s", n, strerror(errno));
	return slots;
}

static void
must_free(void *p)
{
	const int r = up_free(job.heap, p);

	if (r < 0)
		die(1, "up_free: %s", strerror(-r));
}

/* The slot of an entry, or, if it is absent, the one where it would go. */
static struct slot *
table_find(uint64_t number)
{
	const uint64_t hash = hash_of(number);
	size_t i = hash & (job.nslots - 1);
	struct slot *vacant = NULL;

	for (; job.slots[i].hash != 0; i = (i + 1) & (job.nslots - 1)) {
		struct slot *s = job.slots + i;

		if (s->entry == NULL) {
			if (vacant == NULL)
				vacant = s;
		} else if (s->hash == hash && s->entry->number == number) {
			return s;
		}
	}
	return vacant != NULL ? vacant : job.slots + i;
}

/* Twice as many slots; entries stay where they are, untouched. */
static void
table_grow(void)
{
	struct slot *const old = job.slots;
	const size_t nold = job.nslots;

	job.nslots = nold * 2;
	job.slots = slots_new(job.nslots);
	job.nused = job.nentries;
	for (size_t k = 0; k < nold; k++) {
		size_t i = old[k].hash & (job.nslots - 1);

		if (old[k].entry == NULL)
			continue;
		while (job.slots[i].hash != 0)
			i = (i + 1) & (job.nslots - 1);
		job.slots[i] = old[k];
	}
	must_free(old);
}

/* False if the heap is full. */
static bool
table_add(uint64_t number)
{
	struct entry *e;
	struct slot *s;

	if (job.nused + 1 > job.nslots / 3 * 2)
		table_grow();
	s = table_find(number);
	if (s->entry != NULL)
		die(1, "number %" PRIu64 " is there before it was added", number);
	e = up_malloc(job.heap, sizeof(*e) + length_of(number, 0) + 1);
	if (e == NULL)
		return false;
	*e = (struct entry){ .number = number, .length = length_of(number, 0) };
	write_text(e, 0);
	job.nused += s->hash == 0;
	job.nentries++;
	*s = (struct slot){ .hash = hash_of(number), .entry = e };
	return true;
}

static void
table_remove(uint64_t number)
{
	struct slot *s = table_find(number);

	if (s->entry == NULL)
		return; /* counted as missing when it was looked up */
	must_free(s->entry);
	s->entry = NULL;
	job.nentries--;
}

/* Make a string longer; its old part is kept by up_realloc(). */
static void
table_lengthen(uint64_t number)
{
	struct slot *s = table_find(number);
	struct entry *e;
	uint32_t was;

	if (s->entry == NULL)
		return;
	e = up_realloc(job.heap, s->entry, sizeof(*e) + length_of(number, 1) + 1);
	if (e == NULL)
		die(1, "no room to make number %" PRIu64 " longer: %s", number, strerror(errno));
	was = e->length;
	e->length = length_of(number, 1);
	e->version = 1;
	write_text(e, was);
	s->entry = e;
}

/* ---- the program ---- */

/* After change(): a third is gone, a third is longer. */
static uint32_t
fate_of(uint64_t number)
{
	return (uint32_t)(number % 3);
}

static void
look_up_all(uint64_t n, bool changed)
{
	const double begin = seconds_now();
	uint64_t found = 0, absent = 0, wrong = 0;
	double s;

	for (uint64_t i = 0; i < n; i++) {
		const bool want = !changed || fate_of(i) != 0;
		const struct entry *e = table_find(i)->entry;

		if (e == NULL && !want)
			absent++;
		else if (e != NULL && want && entry_is(e, i, changed && fate_of(i) == 1))
			found++;
		else
			wrong++;
	}
	wrong += found != job.nentries;
	s = seconds_now() - begin;
	printf("looked up     %" PRIu64 " strings right, %" PRIu64
	       " absent as they should be, %" PRIu64 " wrong; %.1f us each\n",
	       found, absent, wrong, n > 0 ? s * 1e6 / (double)n : 0);
	job.wrong += wrong;
}

static struct up_heap_stats
heap_stats(void)
{
	struct up_heap_stats st;
	const int r = up_heap_stats_get(job.heap, &st, sizeof(st));

	if (r < 0)
		die(1, "up_heap_stats_get: %s", strerror(-r));
	return st;
}

/*
 * Strings until they take five eighths of the heap.  The rest is for longer ones, which find the holes of
 * shorter ones too small, and for the slots.
 */
static uint64_t
fill(void)
{
	const double begin = seconds_now();
	uint64_t n = 0;
	size_t bytes = 0;
	struct up_heap_stats st;

	job.nslots = SLOTS_MIN;
	job.slots = slots_new(job.nslots);
	while (bytes < job.size / 8 * 5 && table_add(n))
		bytes += sizeof(struct entry) + length_of(n++, 0) + 1;
	st = heap_stats();
	printf("filled        %" PRIu64 " strings, %.1f MiB of blocks, %zu slots; %.1f us each\n",
	       n, (double)st.allocated / MIB, job.nslots,
	       (seconds_now() - begin) * 1e6 / (double)n);
	return n;
}

static void
change(uint64_t n)
{
	const double begin = seconds_now();
	struct up_heap_stats st;

	for (uint64_t i = 0; i < n; i++) {
		if (fate_of(i) == 0)
			table_remove(i);
		else if (fate_of(i) == 1)
			table_lengthen(i);
	}
	st = heap_stats();
	printf("changed       a third removed, a third made longer; %.1f MiB of blocks; %.1f us each\n",
	       (double)st.allocated / MIB, (seconds_now() - begin) * 1e6 / (double)n);
}

static void
empty(uint64_t n)
{
	struct up_stats st;
	struct up_heap_stats hs;

	for (uint64_t i = 0; i < n; i++)
		if (fate_of(i) != 0)
			table_remove(i);
	must_free(job.slots);
	hs = heap_stats();
	job.wrong += hs.blocks + job.nentries;
	if (up_stats_get(job.rt, &st, sizeof(st)) < 0)
		die(1, "no statistics");
	printf("emptied       %" PRIu64 " blocks left, %.1f MiB of pages kept", hs.blocks,
	       (double)hs.active / MIB);
	if (job.daemon == NULL)
		printf(", %.1f MiB in swap", (double)st.swapped / MIB);
	putchar('\n');
}

/* Swap, and the most there ever was, are the daemon's to tell. */
static void
report_daemon(const struct up_stats *st)
{
	printf("paged         %" PRIu64 " faults read from swap\n", st->faults[UP_FAULT_MAJOR]);
	printf("memory        %.1f MiB at the end; the daemon has %.1f for all, the heap has %.1f\n",
	       (double)st->resident / MIB, (double)st->limit / MIB, (double)job.size / MIB);
	if (st->resident > st->limit)
		job.wrong++;
}

static void
report_own(const struct up_stats *st)
{
	printf("paged         %" PRIu64 " faults read from swap; %.1f MiB read, %.1f MiB written\n",
	       st->faults[UP_FAULT_MAJOR], (double)st->swap_read_bytes / MIB,
	       (double)st->swap_write_bytes / MIB);
	printf("memory        at most %.1f MiB of %.1f; the heap has %.1f\n",
	       (double)st->used_max / MIB, (double)st->limit / MIB, (double)job.size / MIB);
	if (st->used_max > st->limit)
		job.wrong++;
}

static void
report(void)
{
	struct up_stats st;

	if (up_stats_get(job.rt, &st, sizeof(st)) < 0)
		die(1, "no statistics");
	if (job.daemon != NULL)
		report_daemon(&st);
	else
		report_own(&st);
	printf("%s\n", job.wrong == 0 ? "all as it should be" : "WRONG");
}

/* A size such as 8388608, 8M or 1G. */
static size_t
parse_size(const char *option, const char *text, size_t least)
{
	static const char units[] = "KMGT";
	const char *unit;
	char *end;
	unsigned long long n;
	unsigned shift = 0;

	errno = 0;
	n = strtoull(text, &end, 10);
	if (text[0] < '0' || text[0] > '9' || errno != 0)
		die(2, "--%s %s: not a size; say for example 8M", option, text);
	if (*end != '\0') {
		unit = strchr(units, *end & ~0x20);
		if (unit == NULL || end[1] != '\0')
			die(2, "--%s %s: '%s' is not a unit; use K, M, G or T", option, text, end);
		shift = 10 * (unsigned)(unit - units + 1);
	}
	if (n > (SIZE_MAX >> shift) / 16)
		die(2, "--%s %s: too large", option, text);
	n <<= shift;
	if (n < least)
		die(2, "--%s %s: the least is %zu MiB", option, text, least >> 20);
	return (size_t)n / UP_PAGE_SIZE * UP_PAGE_SIZE;
}

static const char usage[] =
	"Usage: string_table [OPTION]...\n"
	"Keep a hash table of strings in a heap larger than the memory it may use, and verify it.\n"
	"\n"
	"  -m, --memory=BYTES  the memory limit (default 16M, least 2M)\n"
	"  -s, --size=BYTES    the heap's size (default eight times that)\n"
	"      --daemon=SOCKET let uffd-pagerd page, which listens there, in its budget\n"
	"      --seed=N        other strings\n"
	"  -h, --help          this help\n"
	"\n"
	"Exit status: 0 all strings were right, 1 they were not or the pager failed, 2 bad usage.\n";

static void
parse_options(int argc, char **argv)
{
	static const struct option options[] = {
		{ "memory", required_argument, NULL, 'm' },
		{ "size", required_argument, NULL, 's' },
		{ "seed", required_argument, NULL, 'e' },
		{ "daemon", required_argument, NULL, 'd' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	bool limited = false;
	char *end;
	int c;

	while ((c = getopt_long(argc, argv, "m:s:h", options, NULL)) != -1) {
		switch (c) {
		case 'm':
			job.memory = parse_size("memory", optarg, UP_MEMORY_LIMIT_MIN);
			limited = true;
			break;
		case 's':
			job.size = parse_size("size", optarg, (size_t)1 << 20);
			break;
		case 'e':
			errno = 0;
			job.seed = strtoull(optarg, &end, 10);
			if (optarg[0] < '0' || optarg[0] > '9' || *end != '\0' || errno != 0)
				die(2, "--seed %s: not a number", optarg);
			break;
		case 'd':
			job.daemon = optarg;
			break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		default:
			fputs(usage, stderr);
			exit(2);
		}
	}
	if (optind < argc)
		die(2, "%s: not an option; string_table --help says more", argv[optind]);
	if (job.daemon != NULL && limited)
		die(2, "--daemon: the budget is the daemon's, not --memory");
	if (job.size == 0)
		job.size = job.memory * 8;
}

int
main(int argc, char **argv)
{
	struct up_config cfg = { .log = say };
	uint64_t n;
	int r;

	parse_options(argc, argv);
	cfg.memory_limit = job.memory;
	r = job.daemon != NULL ? up_runtime_connect(&job.rt, job.daemon, &cfg)
			       : up_runtime_create(&job.rt, &cfg);
	if (r < 0)
		die(1, "starting the pager: %s", strerror(-r));
	r = up_heap_create(job.rt, job.size, 0, &job.heap);
	if (r < 0)
		die(1, "a heap of %.1f MiB: %s", (double)job.size / MIB, strerror(-r));

	n = fill();
	look_up_all(n, false);
	change(n);
	look_up_all(n, true);
	empty(n);
	report();
	up_heap_destroy(job.heap);
	up_runtime_destroy(job.rt);
	return job.wrong != 0;
}
