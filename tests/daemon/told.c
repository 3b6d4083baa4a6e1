/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * told.c: a connected program that does what it is told: a word a line on its standard input, an answer a line on its output.
 *
 *	told SOCKET
 *	map BYTES | noreserve BYTES | file PATH | shared PATH	"at ADDRESS"
 *	clone ADDRESS BYTES					the same, of the copy
 *	read ADDRESS | write ADDRESS				"ok" or "SIGBUS"
 *	stats							counters of its own
 */
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "uffd_pager.h"

static struct up_runtime *rt;
static sigjmp_buf out;

static void
on_sigbus(int sig)
{
	siglongjmp(out, sig);
}

static void
say(void *ctx, enum up_log_level level, const char *line)
{
	(void)ctx;
	(void)level;
	fprintf(stderr, "told: %s\n", line);
}

static void
answer(int r, const void *at)
{
	if (r < 0)
		printf("failed %d\n", -r);
	else
		printf("at %#" PRIxPTR "\n", (uintptr_t)at);
}

static void
map(size_t bytes, unsigned flags, struct up_object *o)
{
	void *at = NULL;
	const int r = up_map(rt, NULL, bytes, PROT_READ | PROT_WRITE, flags, o, 0, &at);

	answer(r, at);
}

static void
map_file(const char *path, unsigned flags)
{
	const int fd = open(path, O_RDWR | O_CLOEXEC);
	struct up_object *o;
	struct stat st;
	int r;

	if (fd < 0 || fstat(fd, &st) < 0)
		exit(1);
	r = up_object_create_file(rt, fd, 0, 0, 0, &o);
	close(fd);
	if (r < 0) {
		answer(r, NULL);
		return;
	}
	map((size_t)st.st_size, flags, o);
	up_object_unref(o);
}

static void
touch(volatile char *at, bool write)
{
	if (sigsetjmp(out, 1) != 0) {
		puts("SIGBUS");
		return;
	}
	if (write)
		*at = 1;
	else
		(void)*at;
	puts("ok");
}

static void
stats(void)
{
	struct up_stats st;

	if (up_stats_get(rt, &st, sizeof(st)) < 0)
		exit(1);
	printf("resident %" PRIu64 " swapped %" PRIu64 " sigbus %" PRIu64 " used %" PRIu64 "\n",
	       st.resident, st.swapped, st.fault_sigbus, st.used);
}

int
main(int argc, char **argv)
{
	const struct up_config cfg = { .log = say };
	const struct sigaction sa = { .sa_handler = on_sigbus };
	char line[4096];

	if (argc != 2 || up_runtime_connect(&rt, argv[1], &cfg) < 0)
		return 1;
	sigaction(SIGBUS, &sa, NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("connected");
	while (fgets(line, sizeof(line), stdin) != NULL) {
		char *rest = strchr(line, ' ');
		char *end;

		line[strcspn(line, "\n")] = '\0';
		if (rest != NULL)
			*rest++ = '\0';
		if (rest == NULL && strcmp(line, "stats") != 0)
			return 1;
		if (rest == NULL)
			stats();
		else if (strcmp(line, "map") == 0)
			map(strtoull(rest, NULL, 0), UP_PRIVATE, NULL);
		else if (strcmp(line, "noreserve") == 0)
			map(strtoull(rest, NULL, 0), UP_PRIVATE | UP_NORESERVE, NULL);
		else if (strcmp(line, "file") == 0)
			map_file(rest, UP_PRIVATE);
		else if (strcmp(line, "shared") == 0)
			map_file(rest, UP_SHARED);
		else if (strcmp(line, "clone") == 0) {
			void *const from = (void *)(uintptr_t)strtoull(rest, &end, 0);
			void *at = NULL;
			const int r = up_clone(rt, from, strtoull(end, NULL, 0), &at);

			answer(r, at);
		} else if (strcmp(line, "read") == 0 || strcmp(line, "write") == 0)
			touch((volatile char *)(uintptr_t)strtoull(rest, NULL, 0), line[0] == 'w');
		else
			return 1;
	}
	up_runtime_destroy(rt);
	return 0;
}
