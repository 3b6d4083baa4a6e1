/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * compressed_file.c: a compressed file behind a pointer.
 *
 *	compressed_file create IN OUT          compress
 *	compressed_file cat FILE               decompress, through the mapping
 *	compressed_file grep TEXT FILE         print the lines that contain TEXT
 *	compressed_file verify FILE ORIGINAL   random reads, then every byte, against the original
 *
 * The file is zstd frames of 64 KiB of data each, every one with a checksum, then a table of where they are,
 * in a frame that zstd skips: `zstd -dc FILE` works too.
 *
 *	frame 0 | frame 1 | ... | skippable: end of frame 0, end of frame 1, ..., data bytes, frames, magic
 *
 * Where the mapping is touched, page_in() hands the request to a thread of ours, through a pipe, and goes: the library's thread
 * serves other faults while we decompress.  The frame decompressed last is kept for the neighbours.
 *
 * Exit status: 0 done; 1 it could not be done, is damaged or differs, or no line has TEXT; 2 bad usage.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <uffd_pager.h>
#include <unistd.h>
#include <zstd.h>

#define FRAME ((size_t)64 << 10)
#define SKIPPABLE 0x184d2a50u
#define MAGIC UINT64_C(0x3130656c62617475)

static const char usage[] = "usage: compressed_file [--memory BYTES] create IN OUT\n"
			    "       compressed_file [--memory BYTES] cat FILE\n"
			    "       compressed_file [--memory BYTES] grep TEXT FILE\n"
			    "       compressed_file [--memory BYTES] verify FILE ORIGINAL\n"
			    "  --memory  that may be used, also with K, M or G (8M)\n";

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *fmt, ...)
{
	va_list ap;

	fputs("compressed_file: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(1);
}

static int
open_or_die(const char *path, int flags)
{
	const int fd = open(path, flags | O_CLOEXEC, 0666);

	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	return fd;
}

/* All of it, or less at the end of the file; -1. */
static ssize_t
read_all(int fd, void *to, size_t n, off_t at)
{
	size_t done = 0;

	while (done < n) {
		const ssize_t r = pread(fd, (char *)to + done, n - done, at + (off_t)done);

		if (r < 0 && errno != EINTR)
			return -1;
		if (r == 0)
			break;
		if (r > 0)
			done += (size_t)r;
	}
	return (ssize_t)done;
}

static void
write_all(int fd, const char *path, const void *from, size_t n)
{
	for (size_t done = 0; done < n;) {
		const ssize_t r = write(fd, (const char *)from + done, n - done);

		if (r < 0 && errno != EINTR)
			die("%s: %s", path, strerror(errno));
		if (r > 0)
			done += (size_t)r;
	}
}

/* --- create --- */

static int
create(const char *in, const char *out)
{
	const int from = open_or_die(in, O_RDONLY),
		  to = open_or_die(out, O_WRONLY | O_CREAT | O_TRUNC);
	const size_t bound = ZSTD_compressBound(FRAME);
	char *data = malloc(FRAME), *packed = malloc(bound);
	uint64_t *end = NULL, total = 0, at = 0, n = 0;
	uint32_t head[2] = { SKIPPABLE };
	ZSTD_CCtx *z = ZSTD_createCCtx();
	ssize_t got;

	if (data == NULL || packed == NULL || z == NULL)
		die("out of memory");
	ZSTD_CCtx_setParameter(z, ZSTD_c_checksumFlag, 1);
	while ((got = read_all(from, data, FRAME, (off_t)total)) > 0) {
		const size_t len = ZSTD_compress2(z, packed, bound, data, (size_t)got);

		if (ZSTD_isError(len))
			die("%s: %s", in, ZSTD_getErrorName(len));
		write_all(to, out, packed, len);
		total += (size_t)got;
		if (n % 1024 == 0) {
			uint64_t *more = realloc(end, (n + 1024 + 3) * sizeof *end);

			if (more == NULL)
				die("out of memory");
			end = more;
		}
		end[n++] = at += len;
	}
	if (got < 0)
		die("%s: %s", in, strerror(errno));
	if (total == 0)
		die("%s: empty", in);
	if (n > UINT32_MAX / sizeof *end - 3)
		die("%s: too large", in);
	end[n] = total;
	end[n + 1] = n;
	end[n + 2] = MAGIC;
	head[1] = (uint32_t)((n + 3) * sizeof *end);
	write_all(to, out, head, sizeof head);
	write_all(to, out, end, head[1]);
	if (close(to) < 0)
		die("%s: %s", out, strerror(errno));
	close(from);
	printf("%" PRIu64 " bytes in %" PRIu64 " frames, compressed to %" PRIu64 "\n", total, n,
	       at + sizeof head + head[1]);
	ZSTD_freeCCtx(z);
	free(end);
	free(data);
	free(packed);
	return 0;
}

/* --- the pager --- */

struct archive {
	int fd;
	uint64_t bytes, nframes, *end;
	int queue[2]; /* a pipe of requests */
	pthread_t thread;
	uint64_t frames_read; /* the worker's own, like all below; looked at when it is gone */
	ZSTD_DCtx *z;
	char packed[2 * FRAME], data[FRAME];
	uint64_t have; /* frame in data; UINT64_MAX: none */
};

static void
archive_open(struct archive *a, const char *path)
{
	struct stat st;
	uint64_t tail[3], start = 0;

	a->fd = open_or_die(path, O_RDONLY);
	if (fstat(a->fd, &st) < 0)
		die("%s: %s", path, strerror(errno));
	if (st.st_size < (off_t)sizeof tail ||
	    read_all(a->fd, tail, sizeof tail, st.st_size - (off_t)sizeof tail) != sizeof tail ||
	    tail[2] != MAGIC || tail[1] == 0 || tail[1] != (tail[0] + FRAME - 1) / FRAME ||
	    tail[1] > (uint64_t)st.st_size / sizeof tail[0])
		die("%s: not made by compressed_file", path);
	a->bytes = tail[0];
	a->nframes = tail[1];
	a->end = malloc(a->nframes * sizeof *a->end);
	if (a->end == NULL)
		die("out of memory");
	if (read_all(a->fd, a->end, a->nframes * sizeof *a->end,
		     st.st_size - (off_t)((a->nframes + 3) * sizeof *a->end)) !=
	    (ssize_t)(a->nframes * sizeof *a->end))
		die("%s: its table can not be read", path);
	for (uint64_t i = 0; i < a->nframes; start = a->end[i++]) {
		if (a->end[i] <= start || a->end[i] - start > sizeof a->packed ||
		    a->end[i] > (uint64_t)st.st_size)
			die("%s: its table is damaged", path);
	}
	a->have = UINT64_MAX;
	a->z = ZSTD_createDCtx();
	if (a->z == NULL)
		die("out of memory");
}

/* Frame i into a->data.  0, or -EIO: unreadable, or not what was compressed. */
static int
decompress(struct archive *a, uint64_t i)
{
	const uint64_t start = i > 0 ? a->end[i - 1] : 0;
	const size_t len = a->end[i] - start,
		     want = i + 1 < a->nframes ? FRAME : a->bytes - i * FRAME;

	if (a->have == i)
		return 0;
	a->have = UINT64_MAX;
	a->frames_read++;
	if (read_all(a->fd, a->packed, len, (off_t)start) != (ssize_t)len ||
	    ZSTD_decompressDCtx(a->z, a->data, FRAME, a->packed, len) != want)
		return -EIO;
	a->have = i;
	return 0;
}

/* A request may begin and end anywhere in a frame, and span several. */
static int
fill(struct archive *a, struct up_request *req)
{
	char *to = up_request_buffer(req);
	uint64_t at = up_request_offset(req);
	size_t left = up_request_length(req);

	while (left > 0) {
		const size_t in = at % FRAME, n = left < FRAME - in ? left : FRAME - in;
		const int r = decompress(a, at / FRAME);

		if (r < 0)
			return r;
		memcpy(to, a->data + in, n);
		to += n;
		at += n;
		left -= n;
	}
	return 0;
}

static void *
worker(void *arg)
{
	struct archive *a = arg;
	struct up_request *req;

	/* A pointer is written at once or not at all: pipes keep what is this small together. */
	while (read(a->queue[0], &req, sizeof req) == sizeof req)
		up_request_complete(req, fill(a, req));
	return NULL;
}

/* On the library's thread.  The pipe has room for thousands, and the library has far fewer under way. */
static int
page_in(void *ctx, struct up_request *req)
{
	struct archive *a = ctx;

	return write(a->queue[1], &req, sizeof req) == sizeof req ? 0 : -EIO;
}

static const struct up_pager_ops ops = { .size = sizeof ops, .page_in = page_in };

/* --- what is done with it --- */

static void
complain(void *ctx, enum up_log_level level, const char *line)
{
	(void)ctx;
	if (level <= UP_LOG_WARNING)
		fprintf(stderr, "uffd-pager: %s\n", line);
}

/* The pager's line has said which page, and why. */
static void
damaged(int sig)
{
	static const char text[] = "compressed_file: the file is damaged\n";

	(void)sig;
	if (write(STDERR_FILENO, text, sizeof text - 1) < 0)
		_exit(1);
	_exit(1);
}

/* Through a buffer: not every kernel lets a system call wait for a page of ours. */
static void
put(const char *from, size_t n)
{
	static char buffer[FRAME];

	for (size_t done = 0; done < n;) {
		const size_t part = n - done < sizeof buffer ? n - done : sizeof buffer;

		memcpy(buffer, from + done, part);
		write_all(STDOUT_FILENO, "standard output", buffer, part);
		done += part;
	}
}

static int
grep(const char *text, const char *data, size_t n)
{
	const char *end = data + n, *at = data, *hit;
	int status = 1;

	while (at < end && (hit = memmem(at, (size_t)(end - at), text, strlen(text))) != NULL) {
		const char *line = memrchr(at, '\n', (size_t)(hit - at));
		const char *stop = memchr(hit, '\n', (size_t)(end - hit));

		line = line != NULL ? line + 1 : at;
		at = stop != NULL ? stop + 1 : end;
		put(line, (size_t)(at - line));
		status = 0;
	}
	return status;
}

static int
verify(const char *original, const char *data, size_t n)
{
	const int fd = open_or_die(original, O_RDONLY);
	char *buffer = malloc(FRAME), byte;
	uint64_t state = 1, wrong = 0;
	const unsigned reads = 5000;

	if (buffer == NULL)
		die("out of memory");
	for (unsigned i = 0; i < reads; i++) {
		size_t at;

		state = state * UINT64_C(6364136223846793005) + 1442695040888963407u;
		at = (state >> 20) % n;
		wrong += read_all(fd, &byte, 1, (off_t)at) != 1 || byte != data[at];
	}
	printf("%" PRIu64 " of %u random bytes differ\n", wrong, reads);
	for (size_t at = 0;; at += FRAME) {
		const ssize_t got = read_all(fd, buffer, FRAME, (off_t)at);
		const size_t part = at < n ? (n - at < FRAME ? n - at : FRAME) : 0;

		if (got < 0)
			die("%s: %s", original, strerror(errno));
		if ((size_t)got != part || memcmp(buffer, data + at, part) != 0) {
			printf("they differ within 64 KiB from byte %zu on\n", at);
			wrong++;
			break;
		}
		if (part < FRAME)
			break;
	}
	if (wrong == 0)
		printf("all %zu bytes are the same\n", n);
	free(buffer);
	close(fd);
	return wrong != 0;
}

static void
check(const char *what, int r)
{
	if (r < 0)
		die("%s: %s", what, strerror(-r));
}

/* Map the archive and do `verb` with it. */
static int
use(const char *verb, const char *path, const char *argument, size_t memory)
{
	const struct up_config cfg = { .memory_limit = memory, .log = complain };
	struct archive *a = calloc(1, sizeof *a);
	struct up_runtime *rt;
	struct up_object *obj;
	struct up_stats st;
	size_t length;
	int status = 0;
	void *p;

	if (a == NULL)
		die("out of memory");
	archive_open(a, path);
	if (pipe2(a->queue, O_CLOEXEC) < 0)
		die("pipe: %s", strerror(errno));
	check("pthread_create", -pthread_create(&a->thread, NULL, worker, a));
	signal(SIGBUS, damaged);
	length = (a->bytes + UP_PAGE_SIZE - 1) / UP_PAGE_SIZE * UP_PAGE_SIZE;
	check("up_runtime_create", up_runtime_create(&rt, &cfg));
	check("up_object_create_custom", up_object_create_custom(rt, a->bytes, &ops, a, &obj));
	check("up_map", up_map(rt, NULL, length, PROT_READ, UP_SHARED, obj, 0, &p));

	if (strcmp(verb, "cat") == 0)
		put(p, a->bytes);
	else if (strcmp(verb, "grep") == 0)
		status = grep(argument, p, a->bytes);
	else
		status = verify(argument, p, a->bytes);

	check("up_stats_get", up_stats_get(rt, &st, sizeof st));
	up_runtime_destroy(rt); /* waits for requests under way; the object dies with it */
	close(a->queue[1]);
	pthread_join(a->thread, NULL);
	if (strcmp(verb, "verify") == 0) {
		printf("%" PRIu64 " frames decompressed, never more than %.1f MiB in memory\n",
		       a->frames_read, (double)st.used_max / (1 << 20));
		status |= st.used_max > memory;
		puts(status == 0 ? "PASS" : "FAIL");
	}
	close(a->queue[0]);
	close(a->fd);
	ZSTD_freeDCtx(a->z);
	free(a->end);
	free(a);
	return status;
}

static size_t
memory_of(const char *s)
{
	static const char units[] = "KMG";
	char *end = NULL;
	unsigned long long n = s != NULL && *s >= '0' && *s <= '9' ? strtoull(s, &end, 10) : 0;

	if (end != NULL && *end != '\0') {
		const char *unit = strchr(units, *end++);

		n = unit != NULL && *end == '\0' && n < 1u << 20 ? n << 10 * (unit - units + 1) : 0;
	}
	if (n < UP_MEMORY_LIMIT_MIN) {
		fprintf(stderr, "compressed_file: --memory is at least 2M; see --help\n");
		exit(2);
	}
	return n;
}

int
main(int argc, char **argv)
{
	size_t memory = (size_t)8 << 20;
	const char *verb;

	if (argc > 1 && strcmp(argv[1], "--help") == 0) {
		fputs(usage, stdout);
		return 0;
	}
	if (argc > 1 && strcmp(argv[1], "--memory") == 0) {
		memory = memory_of(argc > 2 ? argv[2] : NULL);
		argc -= 2;
		argv += 2;
	}
	verb = argc > 1 ? argv[1] : "";
	if (strcmp(verb, "create") == 0 && argc == 4)
		return create(argv[2], argv[3]);
	if (strcmp(verb, "cat") == 0 && argc == 3)
		return use(verb, argv[2], "", memory);
	if (strcmp(verb, "grep") == 0 && argc == 4 && argv[2][0] != '\0')
		return use(verb, argv[3], argv[2], memory);
	if (strcmp(verb, "verify") == 0 && argc == 4)
		return use(verb, argv[2], argv[3], memory);
	fputs(usage, stderr);
	fputs("see --help\n", stderr);
	return 2;
}
