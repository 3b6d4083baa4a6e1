/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * tenant.c: a client of uffd-pagerd that does what it is told, a line at a time, and says what came of it; for tests of quotas, and of names.
 *
 *	tenant SOCKET [UID [GID [GROUP]]]	"there", or the name of an error and what was said about it
 *	map PAGES [noreserve]		a further region.  "ok", or the name of an error
 *	fill N				write all of it, with another number than the last time, and compare.  "ok", or how many pages are wrong
 *	unmap				all of it
 *	wire PAGES			of the first region
 *	object NAME PAGES		a new one, which is mapped and has that name
 *	clone				of the first region
 *	fork N				as many children, until one is refused, with copies of the first region; they stay until they are forked again.  How many there are
 *	look N				compare, as fill has left it; of the others too, and write nothing
 *	mode NAME PAGES MODE		as object, with that mode
 *	chmod NAME MODE
 *	remove NAME
 *	keep NAME			open it, for
 *	share PAGES			map that shared,
 *	copy PAGES			or a copy of it
 */
#include <errno.h>
#include <grp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "uffd_pager.h"

#define REGIONS_MAX 64u
#define CHILDREN_MAX 600u
#define WORDS (UP_PAGE_SIZE / sizeof(uint64_t))

static struct up_runtime *rt;
static char said[512];
static struct {
	uint64_t *at;
	size_t npages;
} region[REGIONS_MAX];
static unsigned nregions;
static sigjmp_buf out;

static void
logged(void *ctx, enum up_log_level level, const char *line)
{
	const size_t n = strlen(said);

	(void)ctx;
	if (level <= UP_LOG_WARNING)
		snprintf(said + n, sizeof(said) - n, "%s; ", line);
}

static void
on_sigbus(int sig)
{
	siglongjmp(out, sig);
}

static void
answer(int r)
{
	if (r == 0)
		puts("ok");
	else
		printf("%s %s\n", strerrorname_np(-r), said);
}

static int
map(size_t npages, unsigned flags, struct up_object *o)
{
	void *at = NULL;
	const int r = nregions == REGIONS_MAX ? -ENFILE
					      : up_map(rt, NULL, npages * UP_PAGE_SIZE,
						       PROT_READ | PROT_WRITE, flags, o, 0, &at);

	if (r == 0) {
		region[nregions].at = at;
		region[nregions++].npages = npages;
	}
	return r;
}

static int
named(const char *name, size_t npages, unsigned mode)
{
	struct up_object *o;
	int r = up_object_create_mode(rt, name, npages * UP_PAGE_SIZE, 0, mode, &o);

	if (r == 0) {
		r = map(npages, UP_SHARED, o);
		up_object_unref(o);
	}
	return r;
}

static int
copy_first(void)
{
	void *at = NULL;
	const int r = up_clone(rt, region[0].at, region[0].npages * UP_PAGE_SIZE, &at);

	if (r == 0) {
		region[nregions].at = at;
		region[nregions++].npages = region[0].npages;
	}
	return r;
}

static pid_t child[CHILDREN_MAX];
static unsigned nchildren;

/* One that is not served has no such memory, and dies of it. */
static bool
fork_one(void)
{
	int end[2];
	char byte;
	pid_t pid;

	if (pipe(end) < 0)
		return false;
	pid = fork();
	if (pid == 0) {
		signal(SIGBUS, SIG_DFL);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		byte = (char)(*(volatile uint64_t *)region[0].at == 0);
		_exit(write(end[1], &byte, 1) != 1 || pause());
	}
	close(end[1]);
	if (pid > 0 && read(end[0], &byte, 1) == 1) {
		child[nchildren++] = pid;
	} else if (pid > 0) {
		waitpid(pid, NULL, 0);
		pid = -1;
	}
	close(end[0]);
	return pid > 0;
}

static void
fork_many(unsigned n)
{
	while (nchildren > 0) {
		kill(child[--nchildren], SIGKILL);
		waitpid(child[nchildren], NULL, 0);
	}
	if (up_inherit(rt, region[0].at, region[0].npages * UP_PAGE_SIZE, UP_INHERIT_COPY) == 0)
		while (nchildren < n && nchildren < CHILDREN_MAX && fork_one())
			;
	printf("%u %s\n", nchildren, said);
}

static void
fill(uint64_t tag, int from)
{
	volatile size_t wrong = 0;

	if (sigsetjmp(out, 1) != 0) {
		puts("SIGBUS");
		return;
	}
	for (int look = from; look < 2; look++)
		for (unsigned i = 0; i < nregions; i++)
			for (size_t k = 0; k < region[i].npages; k++) {
				uint64_t *const word = &region[i].at[k * WORDS + k % WORDS];
				const uint64_t is = tag * 1000003 + i * 10007 + k;

				if (look)
					wrong = wrong + (*word != is);
				else
					*word = is;
			}
	if (wrong == 0)
		puts("ok");
	else
		printf("%zu\n", wrong);
}

int
main(int argc, char **argv)
{
	const struct up_config cfg = { .log = logged };
	char line[256], word[32], name[64], third[16];
	struct up_object *kept = NULL;
	int r;

	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGBUS, on_sigbus);
	if (argc > 2) {
		const gid_t gid = (gid_t)atoi(argv[argc > 3 ? 3 : 2]);

		const gid_t group = argc > 4 ? (gid_t)atoi(argv[4]) : 0;

		if (setgroups(argc > 4, &group) < 0 || setgid(gid) < 0 ||
		    setuid((uid_t)atoi(argv[2])) < 0)
			return 2;
	}
	r = up_runtime_connect(&rt, argv[1], &cfg);
	if (r < 0) {
		answer(r);
		return 1;
	}
	puts("there");
	while (fgets(line, sizeof(line), stdin) != NULL) {
		unsigned mode = 0;
		const int words = sscanf(line, "%31s %63s %15s %o", word, name, third, &mode);
		const unsigned long n = words > 2 ? strtoul(third, NULL, 10) : 0;
		const unsigned long first = words > 1 ? strtoul(name, NULL, 10) : 0;

		said[0] = '\0';
		if (strcmp(word, "map") == 0)
			answer(map(first,
				   UP_PRIVATE | (strstr(line, "noreserve") ? UP_NORESERVE : 0),
				   NULL));
		else if (strcmp(word, "fill") == 0)
			fill(first, 0);
		else if (strcmp(word, "look") == 0)
			fill(first, 1);
		else if (strcmp(word, "wire") == 0)
			answer(up_wire(rt, region[0].at, first * UP_PAGE_SIZE));
		else if (strcmp(word, "object") == 0)
			answer(named(name, n, 0600));
		else if (strcmp(word, "mode") == 0)
			answer(named(name, n, mode));
		else if (strcmp(word, "chmod") == 0)
			answer(up_object_chmod(rt, name, (unsigned)strtoul(third, NULL, 8)));
		else if (strcmp(word, "remove") == 0)
			answer(up_object_remove(rt, name));
		else if (strcmp(word, "keep") == 0)
			answer(up_object_open(rt, name, &kept));
		else if (strcmp(word, "share") == 0)
			answer(map(first, UP_SHARED, kept));
		else if (strcmp(word, "copy") == 0)
			answer(map(first, UP_PRIVATE, kept));
		else if (strcmp(word, "clone") == 0)
			answer(copy_first());
		else if (strcmp(word, "fork") == 0)
			fork_many((unsigned)first);
		else if (strcmp(word, "unmap") == 0) {
			for (r = 0; nregions > 0 && r == 0; nregions -= r == 0)
				r = up_unmap(rt, region[nregions - 1].at,
					     region[nregions - 1].npages * UP_PAGE_SIZE);
			answer(r);
		} else
			puts("?");
	}
	while (nchildren > 0)
		kill(child[--nchildren], SIGKILL);
	up_runtime_destroy(rt);
	return 0;
}
