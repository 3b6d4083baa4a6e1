/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * external_sort.c: sort text files larger than the memory we may use, as `LC_ALL=C sort` does.
 *
 * There is nothing external in the algorithm: two arrays, plain pointers, a recursive merge
 * sort.  No temporary files, no run length tuned to the memory, no merge width.  What
 * makes it fast on paged memory is locality alone:
 *
 *   - The recursion is depth first.  Once a part fits in the budget, all sorting below it
 *     happens in memory, whatever the budget is; the program never asks.
 *   - A merge reads two streams and writes one, in address order, so the pager's
 *     read-ahead sees them coming and its pageout writes whole clusters.
 *   - The text moves along with the lines.  Sorting references alone would be less copying,
 *     but comparing two lines would then touch two random pages; and where lines share a
 *     long prefix, as paths do, nearly every comparison would be a fault.
 *
 *	                  text                          lines, one for each line of the text
 *	  from   [pear\nfig\nkiwi\napple\n...]    [{"pear",0,4} {"fig",5,3} {"kiwi",9,4} ...]
 *	            merge |                            | merge
 *	  to     [fig\npear\napple\nkiwi\n...]    [{"fig",0,3} {"pear",4,4} ...]
 *
 * Two such pairs, used in turn.  A part of the lines always owns the same stretch of both
 * texts; sorting permutes it.
 *
 * What an embedder can learn here: read() and write() work on paged memory, but not where the
 * kernel is not allowed to fault through userfaultfd (get, put); give back what is not
 * needed any more (sort_files: discarding is cheaper than swapping out); leave no files in a page
 * cache that counts as our memory (forget_read, forget_written); and the same program runs
 * over plain mmap() (memory_map, --in-memory-of-kernel), since a region is just memory.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <uffd_pager.h>

#define CHUNK ((size_t)256 << 10) /* of a file, at once; more of it is not kept in memory */
#define SMALL 128		  /* lines that are sorted at once, without merging */
#define OFFSET_BITS 40
#define LENGTH_BITS 24
#define MIB 1048576.0

/*
 * Most comparisons end at the prefix: the first 8 bytes, big endian, padded with zeros, so that
 * numeric order is byte order.
 */
struct line {
	uint64_t prefix;
	uint64_t offset : OFFSET_BITS; /* in the text */
	uint64_t length : LENGTH_BITS; /* without its newline, which is in the text, too */
};

struct lines {
	char *text;
	struct line *line;
};

static struct {
	size_t memory;
	const char *daemon; /* the socket of uffd-pagerd, whose memory it is then */
	bool unique, count, kernel, in_thread;
	struct up_runtime *rt; /* NULL: plain mmap() */
	bool bounce;	       /* the kernel can't fault on our memory */
	char *bounce_buf;      /* a chunk of plain memory between the files and paged memory */
	size_t fresh;	       /* written, and not begun to be stored */

	struct lines a, b;
	size_t text_bytes; /* of each text */
	size_t line_bytes; /* of each array of lines */
	size_t nlines;
	size_t nwritten; /* lines */
} job = { .memory = (size_t)64 << 20 };

static _Noreturn void __attribute__((format(printf, 1, 2))) die(const char *fmt, ...)
{
	va_list ap;

	fputs("external_sort: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(2); /* as sort(1) does: 1 is for "not sorted" */
}

static void
say(void *ctx, enum up_log_level level, const char *line)
{
	(void)ctx;
	if (level <= UP_LOG_WARNING)
		fprintf(stderr, "external_sort: pager: %s\n", line);
}

/* ---- memory: from the pager, or from the kernel for comparison ---- */

static void *
memory_map(size_t *length)
{
	void *p;
	int r;

	*length = (*length + UP_PAGE_SIZE - 1) / UP_PAGE_SIZE * UP_PAGE_SIZE;
	if (*length == 0)
		*length = UP_PAGE_SIZE;
	if (job.rt == NULL) {
		p = mmap(NULL, *length, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (p == MAP_FAILED)
			die("mapping %.1f MiB: %s", (double)*length / MIB, strerror(errno));
		return p;
	}
	r = up_map(job.rt, NULL, *length, PROT_READ | PROT_WRITE, UP_PRIVATE, NULL, 0, &p);
	if (r < 0)
		die("mapping %.1f MiB: %s", (double)*length / MIB, strerror(-r));
	return p;
}

static void
memory_unmap(void *p, size_t length)
{
	int r = 0;

	if (job.rt != NULL)
		r = up_unmap(job.rt, p, length);
	else if (munmap(p, length) < 0)
		r = -errno;
	if (r < 0)
		die("unmapping %.1f MiB: %s", (double)length / MIB, strerror(-r));
}

/* ---- lines ---- */

static uint64_t
prefix_of(const char *text, size_t length)
{
	unsigned char b[8] = { 0 };

	memcpy(b, text, length < sizeof(b) ? length : sizeof(b));
	return (uint64_t)b[0] << 56 | (uint64_t)b[1] << 48 | (uint64_t)b[2] << 40 |
	       (uint64_t)b[3] << 32 | (uint64_t)b[4] << 24 | (uint64_t)b[5] << 16 |
	       (uint64_t)b[6] << 8 | (uint64_t)b[7];
}

/* As memcmp(), then the shorter first: the order of strcmp() in the C locale, NULs included. */
static int
line_compare(const char *text, const struct line *x, const struct line *y)
{
	const size_t n = x->length < y->length ? x->length : y->length;
	int r;

	if (x->prefix != y->prefix)
		return x->prefix < y->prefix ? -1 : 1;
	if (n > sizeof(x->prefix)) {
		r = memcmp(text + x->offset, text + y->offset, n);
		if (r != 0)
			return r;
	}
	return (x->length > y->length) - (x->length < y->length);
}

static int
line_compare_r(const void *x, const void *y, void *text)
{
	return line_compare(text, x, y);
}

/* Copy line *l of `from` to `to`, as line number i at offset `at`; returns the offset after it. */
static uint64_t
line_move(struct lines *to, size_t i, uint64_t at, const struct lines *from, const struct line *l)
{
	memcpy(to->text + at, from->text + l->offset, l->length + 1);
	to->line[i] = *l;
	to->line[i].offset = at;
	return at + l->length + 1;
}

/* ---- the sort ---- */

/*
 * Lines [lo, hi) of `from`, few, into the same place of `to`.  Their references fit on the
 * stack; their text is a few pages.
 */
static void
sort_small(struct lines *to, const struct lines *from, size_t lo, size_t hi)
{
	struct line sorted[SMALL];
	uint64_t at = from->line[lo].offset;

	memcpy(sorted, from->line + lo, (hi - lo) * sizeof(*sorted));
	qsort_r(sorted, hi - lo, sizeof(*sorted), line_compare_r, from->text);
	for (size_t i = lo; i < hi; i++)
		at = line_move(to, i, at, from, &sorted[i - lo]);
}

static void
merge(struct lines *to, const struct lines *from, size_t lo, size_t mid, size_t hi)
{
	const struct line *x = from->line + lo, *const xend = from->line + mid;
	const struct line *y = xend, *const yend = from->line + hi;
	uint64_t at = x->offset;

	for (size_t i = lo; i < hi; i++) {
		const bool left = y == yend || (x < xend && line_compare(from->text, x, y) <= 0);

		at = line_move(to, i, at, from, left ? x++ : y++);
	}
}

/* Sort lines [lo, hi), unsorted in `a`, into `to`, which is `a` or `b`; the other is scratch. */
static void
sort_lines(struct lines *to, size_t lo, size_t hi)
{
	struct lines *const other = to == &job.a ? &job.b : &job.a;
	const size_t mid = lo + (hi - lo) / 2;

	if (hi - lo > SMALL) {
		sort_lines(other, lo, mid);
		sort_lines(other, mid, hi);
		merge(to, other, lo, mid, hi);
	} else {
		sort_small(&job.b, &job.a, lo, hi);
		if (to == &job.a) {
			const uint64_t at = job.b.line[lo].offset;
			const struct line *const last = &job.b.line[hi - 1];
			const uint64_t end = last->offset + last->length + 1;

			memcpy(job.a.text + at, job.b.text + at, end - at);
			memcpy(job.a.line + lo, job.b.line + lo, (hi - lo) * sizeof(struct line));
		}
	}
}

/* ---- in and out ---- */

/*
 * All is read once and written once.  What the page cache would keep of it counts in our memory cgroup, beside the memory
 * that we sort in, so it is let go of: what was read at once, what is written as soon as it is on the disk, where it goes
 * while the next chunk is made.  A pipe has nothing of all this, and these calls fail.
 */
static void
forget_read(int fd)
{
	const off_t at = lseek(fd, 0, SEEK_CUR);

	if (at > 0)
		posix_fadvise(fd, 0, at, POSIX_FADV_DONTNEED);
}

static void
forget_written(int fd)
{
	const off_t at = lseek(fd, 0, SEEK_CUR), before = at - (off_t)job.fresh;

	sync_file_range(fd, before, (off_t)job.fresh, SYNC_FILE_RANGE_WRITE);
	if (before > 0) {
		sync_file_range(fd, 0, before,
				SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
					SYNC_FILE_RANGE_WAIT_AFTER);
		posix_fadvise(fd, 0, before, POSIX_FADV_DONTNEED);
	}
	job.fresh = 0;
}

/* read() into paged memory; through plain memory where the kernel may not fault on it. */
static ssize_t
get(int fd, char *to, size_t length)
{
	const ssize_t n =
		read(fd, job.bounce ? job.bounce_buf : to, length < CHUNK ? length : CHUNK);

	if (n > 0 && job.bounce)
		memcpy(to, job.bounce_buf, (size_t)n);
	if (n > 0)
		forget_read(fd);
	return n;
}

/* write() all of it to the standard output. */
static void
put(const char *from, size_t length)
{
	while (length > 0) {
		const size_t want = length < CHUNK ? length : CHUNK;
		ssize_t n;

		if (job.bounce)
			memcpy(job.bounce_buf, from, want);
		n = write(STDOUT_FILENO, job.bounce ? job.bounce_buf : from, want);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			die("writing: %s", strerror(errno));
		from += n;
		length -= (size_t)n;
		job.fresh += (size_t)n;
		if (job.fresh >= CHUNK)
			forget_written(STDOUT_FILENO);
	}
}

/* Append a file of `size` bytes at text + at; ends with a newline, even if the file does not. */
static size_t
load(const char *name, int fd, size_t size, char *text)
{
	size_t have = 0;

	/* No read-ahead: it may be megabytes, and a chunk is enough for the disk. */
	posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	while (have < size) {
		const ssize_t n = get(fd, text + have, size - have);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			die("%s: %s", name, strerror(errno));
		if (n == 0)
			break; /* it has become shorter */
		have += (size_t)n;
	}
	if (have > 0 && text[have - 1] != '\n')
		text[have++] = '\n';
	return have;
}

static size_t
count_newlines(const char *text, size_t length)
{
	size_t n = 0;

	for (size_t i = 0; i < length; i++)
		n += text[i] == '\n';
	return n;
}

static void
split(struct lines *l, size_t length)
{
	const char *const text = l->text;
	size_t at = 0;

	for (size_t i = 0; at < length; i++) {
		const char *const newline = memchr(text + at, '\n', length - at);
		const size_t n = (size_t)(newline - (text + at));

		if (n >> LENGTH_BITS != 0)
			die("line %zu is longer than %u MiB", i + 1, (1u << LENGTH_BITS) >> 20);
		l->line[i] = (struct line){
			.prefix = prefix_of(text + at, n),
			.offset = at,
			.length = n,
		};
		at += n + 1;
	}
}

static void
write_sorted(const struct lines *l, size_t length)
{
	size_t from = 0; /* the text [from, to) is to be written and has not been */
	size_t to = 0;

	if (!job.unique) {
		put(l->text, length);
		job.nwritten = job.nlines;
		return;
	}
	for (size_t i = 0; i < job.nlines; i++) {
		const struct line *const x = l->line + i;

		if (i == 0 || line_compare(l->text, x - 1, x) != 0) {
			to = x->offset + x->length + 1;
			job.nwritten++;
			continue;
		}
		if (from < to)
			put(l->text + from, to - from);
		from = to = x->offset + x->length + 1;
	}
	if (from < to)
		put(l->text + from, to - from);
}

/* ---- the program ---- */

static double
seconds_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void
print_counts(size_t length, double seconds)
{
	struct rusage ru;
	struct up_stats st;

	getrusage(RUSAGE_SELF, &ru);
	fprintf(stderr, "lines %zu, bytes %zu, written %zu, %.2f s\n", job.nlines, length,
		job.nwritten, seconds);
	fprintf(stderr, "peak resident %.1f MiB of the process", (double)ru.ru_maxrss / 1024);
	if (job.daemon != NULL) { /* swap and the most there ever was are the daemon's to tell */
		if (up_stats_get(job.rt, &st, sizeof(st)) != 0)
			die("the daemon has gone");
		fprintf(stderr, " (limit of the daemon, for all: %.1f)\n", (double)st.limit / MIB);
		fprintf(stderr,
			"faults: %" PRIu64 " zero-fill, %" PRIu64 " soft, %" PRIu64 " major",
			st.faults[UP_FAULT_ZERO], st.faults[UP_FAULT_SOFT],
			st.faults[UP_FAULT_MAJOR]);
	} else if (job.rt != NULL && up_stats_get(job.rt, &st, sizeof(st)) == 0) {
		fprintf(stderr, ", %.1f of the pager (limit %.1f)\n", (double)st.used_max / MIB,
			(double)st.limit / MIB);
		fprintf(stderr,
			"faults: %" PRIu64 " zero-fill, %" PRIu64 " soft, %" PRIu64
			" major; swap: %.1f MiB read, %.1f MiB written",
			st.faults[UP_FAULT_ZERO], st.faults[UP_FAULT_SOFT],
			st.faults[UP_FAULT_MAJOR], (double)st.swap_read_bytes / MIB,
			(double)st.swap_write_bytes / MIB);
	}
	fputc('\n', stderr);
}

/* How much text there is at most: a file may need a newline at its end. */
static size_t
total_size(char **name)
{
	size_t sum = 0;
	struct stat st;

	for (; *name != NULL; name++) {
		if (stat(*name, &st) < 0)
			die("%s: %s", *name, strerror(errno));
		if (!S_ISREG(st.st_mode))
			die("%s: not a regular file; its size must be known", *name);
		sum += (size_t)st.st_size + 1;
	}
	if (sum >> OFFSET_BITS != 0)
		die("more than %u GiB of text", 1u << (OFFSET_BITS - 30));
	return sum;
}

static void
sort_files(char **name)
{
	const double begin = seconds_now();
	const size_t room = total_size(name);
	size_t length = 0;

	job.text_bytes = room;
	job.a.text = memory_map(&job.text_bytes);
	for (; *name != NULL; name++) {
		const int fd = open(*name, O_RDONLY | O_CLOEXEC);
		struct stat st;

		if (fd < 0 || fstat(fd, &st) < 0)
			die("%s: %s", *name, strerror(errno));
		if ((size_t)st.st_size + 1 > room - length)
			die("%s has grown meanwhile", *name);
		length += load(*name, fd, (size_t)st.st_size, job.a.text + length);
		close(fd);
	}

	job.nlines = count_newlines(job.a.text, length);
	job.line_bytes = job.nlines * sizeof(struct line);
	job.a.line = memory_map(&job.line_bytes);
	job.b.text = memory_map(&job.text_bytes);
	job.b.line = memory_map(&job.line_bytes);
	split(&job.a, length);
	if (job.nlines > 0)
		sort_lines(&job.b, 0, job.nlines);

	/* The unsorted half is not needed any more: dropped, it need not be swapped out. */
	memory_unmap(job.a.text, job.text_bytes);
	memory_unmap(job.a.line, job.line_bytes);
	write_sorted(&job.b, length);
	if (job.count)
		print_counts(length, seconds_now() - begin);
	memory_unmap(job.b.text, job.text_bytes);
	memory_unmap(job.b.line, job.line_bytes);
}

/* A size such as 8388608, 8M or 1G. */
static size_t
parse_size(const char *text)
{
	static const char units[] = "KMGT";
	const char *unit;
	char *end;
	unsigned long long n;
	unsigned shift = 0;

	errno = 0;
	n = strtoull(text, &end, 10);
	if (text[0] < '0' || text[0] > '9' || errno != 0)
		die("--memory %s: not a size; say for example 8M", text);
	if (*end != '\0') {
		unit = strchr(units, *end & ~0x20);
		if (unit == NULL || end[1] != '\0')
			die("--memory %s: '%s' is not a unit; use K, M, G or T", text, end);
		shift = 10 * (unsigned)(unit - units + 1);
	}
	if (n > SIZE_MAX >> shift)
		die("--memory %s: too large", text);
	if ((n << shift) < UP_MEMORY_LIMIT_MIN)
		die("--memory %s: the least is %zu MiB", text, UP_MEMORY_LIMIT_MIN >> 20);
	return (size_t)n << shift;
}

static const char usage[] =
	"Usage: external_sort [OPTION]... FILE...\n"
	"Write the sorted lines of all FILEs to the standard output, as LC_ALL=C sort does.\n"
	"\n"
	"  -m, --memory=BYTES      sort in this much memory (default 64M, least 2M)\n"
	"  -u, --unique            write only the first of equal lines\n"
	"  -c, --count             say on the standard error what it took\n"
	"      --inline            let the thread that faults serve its faults itself\n"
	"      --daemon=SOCKET     let uffd-pagerd page, which listens there, in its budget\n"
	"      --in-memory-of-kernel  sort in plain memory, without the pager: for comparison\n"
	"  -h, --help              this help\n";

static void
parse_options(int argc, char **argv)
{
	static const struct option options[] = {
		{ "memory", required_argument, NULL, 'm' },
		{ "unique", no_argument, NULL, 'u' },
		{ "count", no_argument, NULL, 'c' },
		{ "inline", no_argument, NULL, 'i' },
		{ "daemon", required_argument, NULL, 'd' },
		{ "in-memory-of-kernel", no_argument, NULL, 'k' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	bool pagers_own = false;
	int c;

	while ((c = getopt_long(argc, argv, "m:uch", options, NULL)) != -1) {
		switch (c) {
		case 'm':
			job.memory = parse_size(optarg);
			pagers_own = true;
			break;
		case 'u':
			job.unique = true;
			break;
		case 'c':
			job.count = true;
			break;
		case 'i':
			job.in_thread = pagers_own = true;
			break;
		case 'd':
			job.daemon = optarg;
			break;
		case 'k':
			job.kernel = pagers_own = true;
			break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		default:
			fputs(usage, stderr);
			exit(2);
		}
	}
	if (job.daemon != NULL && pagers_own)
		die("--daemon: budget and delivery are the daemon's, and there is no other pager");
	if (optind == argc)
		die("no files to sort; external_sort --help says more");
}

int
main(int argc, char **argv)
{
	parse_options(argc, argv);
	if (!job.kernel) {
		const struct up_config cfg = { .memory_limit = job.memory,
					       .log = say,
					       .delivery = job.in_thread ? UP_DELIVER_INLINE
									 : UP_DELIVER_SERVICE };
		const int r = job.daemon != NULL ? up_runtime_connect(&job.rt, job.daemon, &cfg)
						 : up_runtime_create(&job.rt, &cfg);

		if (r < 0)
			die("starting the pager: %s", strerror(-r));
		job.bounce = job.in_thread || (up_features(job.rt) & UP_MASK_KERNEL_FAULTS) == 0;
		if (job.bounce && (job.bounce_buf = malloc(CHUNK)) == NULL)
			die("no memory");
	}
	sort_files(argv + optind);
	up_runtime_destroy(job.rt);
	free(job.bounce_buf);
	return 0;
}
