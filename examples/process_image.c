/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * process_image.c: a little process image, before and after a fork(), as a picture of objects.
 *
 *	process_image [--memory 8M | --daemon SOCKET]
 *
 * Five ranges are laid out as a process has them:
 *
 *	text    a file, shared, read only     children share it
 *	data    a file, private               children get a copy
 *	bss     anonymous                     children get a copy
 *	stack   anonymous                     children get a copy
 *	keys    anonymous                     children get nothing
 *
 * A copy is not copied: what was there becomes an object that nobody writes to any more, and parent and child each have an empty one
 * in front of it, into which goes what they touch:
 *
 *	parent   range --> what it touched since --.
 *	                                            >-- what was there at fork() --> the file
 *	child    range --> what it touched since --'
 *
 * The map is printed four times, by up_map_dump(), with the names of the ranges put into it.  In between, parent and child check
 * every byte that they can see.
 *
 * With --daemon the pager is uffd-pagerd, which serves parent and child, and has their maps to print.
 *
 * Exit status: 0 all bytes are right, 1 not so or something can not be had here, 2 bad usage.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <uffd_pager.h>

#define PAGE ((size_t)UP_PAGE_SIZE)
#define WORDS (PAGE / sizeof(uint64_t))
#define RW (PROT_READ | PROT_WRITE)
#define PAGES_MAX 4
#define GONE_MS 10000 /* by then the pager has noticed that the child has ended */

static const char usage[] = "usage: process_image [--memory BYTES | --daemon SOCKET]\n"
			    "  --memory  that may be used, by parent and child together (8M)\n"
			    "  --daemon  let uffd-pagerd page, which listens there\n"
			    "  BYTES may end in K, M or G.\n";

enum { TEXT, DATA, BSS, STACK, KEYS, NSEGMENTS };

/* What a process image consists of.  The addresses are those of a program of long ago, so that lines are short. */
static struct segment {
	const char *name;
	uintptr_t hint;
	size_t npages;
	bool file;
	int prot;
	unsigned flags;
	enum up_inherit inherit;

	uint64_t *at;		     /* where it is */
	uint64_t object;	     /* the file's object, by its number in the map */
	unsigned version[PAGES_MAX]; /* what each page has to hold; a child's copy is a child's */
} segment[NSEGMENTS] = {
	[TEXT] = { .name = "text",
		   .hint = 0x10000000,
		   .npages = 3,
		   .file = true,
		   .prot = PROT_READ,
		   .flags = UP_SHARED | UP_MULTI,
		   .inherit = UP_INHERIT_SHARE },
	[DATA] = { .name = "data",
		   .hint = 0x10010000,
		   .npages = 3,
		   .file = true,
		   .prot = RW,
		   .flags = UP_PRIVATE,
		   .inherit = UP_INHERIT_COPY },
	[BSS] = { .name = "bss",
		  .hint = 0x10020000,
		  .npages = 4,
		  .prot = RW,
		  .flags = UP_PRIVATE,
		  .inherit = UP_INHERIT_COPY },
	[STACK] = { .name = "stack",
		    .hint = 0x1fffc000,
		    .npages = 4,
		    .prot = RW,
		    .flags = UP_PRIVATE,
		    .inherit = UP_INHERIT_COPY },
	[KEYS] = { .name = "keys",
		   .hint = 0x30000000,
		   .npages = 1,
		   .prot = RW,
		   .flags = UP_PRIVATE,
		   .inherit = UP_INHERIT_NONE },
};

static struct up_runtime *rt;
static const char *daemon_socket; /* NULL: the pager is in this process */

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *fmt, ...)
{
	va_list ap;

	fputs("process_image: ", stderr);
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
		fprintf(stderr, "process_image: pager: %s\n", line);
}

/* --- contents --- */

/* A word of a page.  Version 0 is what is there at first: what the file has, or zeros. */
static uint64_t
content(const struct segment *s, size_t page, unsigned version, size_t i)
{
	if (version == 0 && !s->file)
		return 0;
	return ((((uint64_t)(s - segment) * PAGES_MAX + page) * 1000 + version) * WORDS + i + 1) *
	       UINT64_C(0x9e3779b97f4a7c15);
}

static void
write_page(struct segment *s, size_t page)
{
	const unsigned version = ++s->version[page];

	for (size_t i = 0; i < WORDS; i++)
		s->at[page * WORDS + i] = content(s, page, version, i);
}

static bool
page_is_right(const struct segment *s, size_t page)
{
	for (size_t i = 0; i < WORDS; i++) {
		if (s->at[page * WORDS + i] != content(s, page, s->version[page], i))
			return false;
	}
	return true;
}

/* Every byte of what this process has.  Returns how many pages are wrong. */
static size_t
verify(const char *who, bool child)
{
	size_t n = 0, wrong = 0;

	for (const struct segment *s = segment; s < segment + NSEGMENTS; s++) {
		if (child && s->inherit == UP_INHERIT_NONE)
			continue;
		for (size_t page = 0; page < s->npages; page++, n++) {
			if (page_is_right(s, page))
				continue;
			printf("page %zu of %s is wrong\n", page, s->name);
			wrong++;
		}
	}
	printf("%s: %zu of %zu pages are right\n", who, n - wrong, n);
	return wrong;
}

/* --- the image --- */

/*
 * A file with what a segment holds at first, which goes when nobody has it open any more.  It is open for reading only: what a
 * private mapping changes is no business of the file's.
 */
static int
make_file(const struct segment *s, const char *dir)
{
	uint64_t page[WORDS];
	char path[4096];
	int fd, again;

	snprintf(path, sizeof path, "%s/%s", dir, s->name);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	for (size_t n = 0; fd >= 0 && n < s->npages; n++) {
		for (size_t i = 0; i < WORDS; i++)
			page[i] = content(s, n, 0, i);
		if (write(fd, page, sizeof page) != (ssize_t)sizeof page)
			die("%s: %s", path, strerror(errno));
	}
	again = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || again < 0)
		die("%s: %s", path, strerror(errno));
	close(fd);
	unlink(path);
	return again;
}

static void
build(struct segment *s, const char *dir)
{
	const size_t size = s->npages * PAGE;
	struct up_object *file = NULL;
	struct up_object_stats info;
	void *p;

	if (s->file) {
		const int fd = make_file(s, dir);

		check("up_object_create_file", up_object_create_file(rt, fd, 0, 0, 0, &file));
		close(fd);
		check("up_object_info", up_object_info(file, &info, sizeof info));
		s->object = info.id;
	}
	/* A hint: should something be there, the image is elsewhere, and its lines are longer. */
	check(s->name, up_map(rt, (void *)s->hint, size, s->prot, s->flags, file, 0, &p));
	up_object_unref(file); /* the mapping has it */
	s->at = p;
	/* Page by page: what a picture shows is then what was touched, and nothing that was read ahead. */
	check("up_advise", up_advise(rt, p, size, UP_ADVICE_RANDOM));
	check("up_inherit", up_inherit(rt, p, size, s->inherit));
}

/* --- pictures --- */

static struct segment *
segment_at(uintptr_t at)
{
	struct segment *s = segment;

	while (s < segment + NSEGMENTS && (uintptr_t)s->at != at)
		s++;
	return s < segment + NSEGMENTS ? s : NULL;
}

/* A line of the map, with what it is about in the column of addresses. */
static void
print_line(char *line, struct segment **last)
{
	static const int column = 25; /* up_map_dump()'s width of it */
	char what[64] = "";
	const char *name = "";
	uint64_t object;
	int n = 0;

	if (sscanf(line, " over %*s %*x %" SCNu64 "%n", &object, &n) == 1 && n > 0) {
		name = *last != NULL ? (*last)->name : "?";
		if (*last != NULL && (*last)->object == object)
			snprintf(what, sizeof what, "  over %s's file", name);
		else
			snprintf(what, sizeof what, "  over %s at fork()", name);
	} else if (line[0] != 'a' && line[0] != 'c') { /* the names of columns, a child */
		uintptr_t at = 0, end = 0;

		*last = sscanf(line, "%" SCNxPTR "-%" SCNxPTR, &at, &end) == 2 ? segment_at(at)
									       : NULL;
		name = *last != NULL ? (*last)->name : "";
		snprintf(what, sizeof what, "%" PRIxPTR "-%" PRIxPTR " %s", at, end, name);
	}
	if (what[0] == '\0')
		fputs(line, stdout);
	else if ((int)strlen(what) <= column)
		printf("%-*s%s", column, what, line + column);
	else /* no room */
		printf("%.*s %s\n", (int)strcspn(line, "\n"), line, name);
}

/* The map as it is now, as a string to free(). */
static char *
map_text(void)
{
	char *text = NULL;
	size_t size;
	FILE *f = open_memstream(&text, &size);
	int r;

	if (f == NULL)
		die("out of memory");
	r = up_map_dump(rt, f);
	if (fclose(f) != 0 || text == NULL)
		die("out of memory");
	check("up_map_dump", r);
	return text;
}

static void
picture(const char *title)
{
	struct segment *last = NULL;
	char *text, *next;

	text = map_text();
	printf("\n%s\n\n", title);
	for (char *line = text; *line != '\0'; line = next) {
		char keep;

		next = strchr(line, '\n') + 1;
		keep = *next;
		*next = '\0';
		print_line(line, &last);
		*next = keep;
	}
	free(text);
}

/* A child ends when the kernel says so, which the pager's thread hears some time after waitpid() has. */
static void
wait_until_gone(void)
{
	const struct timespec ms = { .tv_nsec = 1000000 };

	for (unsigned i = 0; i < GONE_MS; i++) {
		char *text = map_text();
		const bool there = strstr(text, "\nchild ") != NULL;

		free(text);
		if (!there)
			return;
		nanosleep(&ms, NULL);
	}
	die("the pager still has the child after %d ms", GONE_MS);
}

/* --- the fork --- */

/* A word to the other one; a word from it. */
static void
tell(int fd)
{
	fflush(stdout); /* both print to the same place: each in his turn */
	if (write(fd, "", 1) != 1)
		die("the other process has gone");
}

static void
hear(int fd)
{
	char byte;

	if (read(fd, &byte, 1) != 1)
		die("the other process has gone");
}

/* All that the child does.  Returns its exit status. */
static int
child(int from, int to)
{
	size_t wrong;

	tell(to);
	hear(from); /* the second picture is taken */
	write_page(&segment[STACK], 3);
	tell(to);
	hear(from); /* the third */
	wrong = verify("child", true);
	/* A system call says what is there without a signal. */
	if (access((const char *)segment[KEYS].at, F_OK) == 0 || errno != EFAULT) {
		puts("the child has the keys");
		wrong++;
	}
	fflush(stdout);
	return wrong > 0;
}

static size_t
number(const char *option, const char *s)
{
	static const char units[] = "KMG";
	char *end = NULL;
	unsigned long long n = s != NULL && *s >= '0' && *s <= '9' ? strtoull(s, &end, 10) : 0;

	if (end != NULL && *end != '\0') {
		const char *unit = strchr(units, *end++);
		const unsigned shift = unit != NULL ? 10 * (unsigned)(unit - units + 1) : 64;

		n = shift < 64 && *end == '\0' && n <= (1ull << 42) >> shift ? n << shift : 0;
	}
	if (n < UP_MEMORY_LIMIT_MIN || n > 1ull << 42) {
		fprintf(stderr, "process_image: %s is a number from %zu on; see --help\n", option,
			UP_MEMORY_LIMIT_MIN);
		exit(2);
	}
	return n;
}

static void
make_directory(char *dir, size_t size)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(dir, size, "%s/process_image.XXXXXX",
		 tmp != NULL && tmp[0] != '\0' ? tmp : "/var/tmp");
	if (mkdtemp(dir) == NULL)
		die("%s: %s", dir, strerror(errno));
}

int
main(int argc, char **argv)
{
	size_t memory = (size_t)8 << 20, wrong;
	int to_child[2], to_parent[2], status;
	bool memory_given = false;
	struct up_stats st;
	char dir[4000];
	pid_t pid;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--help") == 0) {
			fputs(usage, stdout);
			return 0;
		} else if (strcmp(argv[i], "--memory") == 0) {
			memory = number("--memory", argv[++i]);
			memory_given = true;
		} else if (strcmp(argv[i], "--daemon") == 0 && i + 1 < argc) {
			daemon_socket = argv[++i];
		} else {
			fprintf(stderr, "process_image: unknown argument %s; see --help\n",
				argv[i]);
			return 2;
		}
	}

	if (memory_given && daemon_socket != NULL) {
		fputs("process_image: --memory is the daemon's matter; see --help\n", stderr);
		return 2;
	}

	const struct up_config cfg = { .memory_limit = memory, .log = say };

	if (daemon_socket != NULL)
		check("up_runtime_connect", up_runtime_connect(&rt, daemon_socket, &cfg));
	else
		check("up_runtime_create", up_runtime_create(&rt, &cfg));
	make_directory(dir, sizeof dir);
	for (struct segment *s = segment; s < segment + NSEGMENTS; s++)
		build(s, dir);
	rmdir(dir);

	/* The program has run for a while. */
	if (!page_is_right(&segment[TEXT], 0))
		die("the text is not what its file has");
	write_page(&segment[DATA], 0);
	write_page(&segment[DATA], 1);
	write_page(&segment[BSS], 0);
	write_page(&segment[STACK], 2);
	write_page(&segment[STACK], 3);
	write_page(&segment[KEYS], 0);
	picture("1. Before the fork.  A range shows an object; what that has not is shown by the one beneath.\n"
		"   Two pages of data have been written, and one of the text read, which is its file's.");

	if (pipe2(to_child, O_CLOEXEC) < 0 || pipe2(to_parent, O_CLOEXEC) < 0)
		die("pipe: %s", strerror(errno));
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		die("fork: %s", strerror(errno));
	if (pid == 0) {
		close(to_child[1]);
		close(to_parent[0]);
		_exit(child(to_child[0], to_parent[1]));
	}
	close(to_child[0]);
	close(to_parent[1]);
	hear(to_parent[0]);
	picture("2. After the fork, before anybody writes.  Nothing was copied: what there was is in objects beneath\n"
		"   both, which nobody writes to.  The text is one object still; of the keys the child has nothing.");

	write_page(&segment[DATA], 0);
	tell(to_child[1]);
	hear(to_parent[0]);
	picture("3. The parent has written a page of its data, the child one of its stack.  Each has a copy of that\n"
		"   in front, and the other one goes on seeing the page beneath.");

	tell(to_child[1]);
	puts("");
	fflush(stdout);
	if (waitpid(pid, &status, 0) != pid)
		die("waitpid: %s", strerror(errno));
	wait_until_gone();
	picture("4. The child has gone, and with it what only it saw.  Where a single object was left in front of\n"
		"   another, the two were joined.  What the child has read of the text is still there.");
	puts("");
	wrong = verify("parent", false);
	wrong += !WIFEXITED(status) || WEXITSTATUS(status) != 0;

	check("up_stats_get", up_stats_get(rt, &st, sizeof st));
	if (daemon_socket != NULL) {
		printf("%.1f MiB of this process are in memory; the daemon's budget is %.1f MiB, for all its clients\n",
		       (double)st.resident / (1 << 20), (double)st.limit / (1 << 20));
		wrong += st.resident > st.limit;
	} else {
		printf("%" PRIu64 " pages copied, never more than %.1f MiB in memory\n", st.copies,
		       (double)st.used_max / (1 << 20));
		wrong += st.used_max > memory;
	}
	up_runtime_destroy(rt);
	puts(wrong == 0 ? "PASS" : "FAIL");
	return wrong != 0;
}
