/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * criu_main.c: `uffd-pagerd criu -D IMG -W WORK`, the shape of `criu lazy-pages -D IMG -W WORK`.
 *
 * It serves one `criu restore --lazy-pages -D IMG -W WORK`, and ends when all that was restored has its pages.
 */
#include <argp.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>

#include "criu.h"
#include "verb.h"

#define DRAIN_MAX 3600u /* seconds */

enum { OPT_DRAIN = 256 };

struct restore {
	struct verb v;
	const char *images, *work;
	bool complete;
};

static error_t
parse(int key, char *arg, struct argp_state *state)
{
	struct restore *re = state->input;
	unsigned n = 0;

	switch (key) {
	case 'D':
		re->images = arg;
		return 0;
	case 'W':
		re->work = arg;
		return 0;
	case OPT_DRAIN:
		if (!verb_seconds(arg, DRAIN_MAX, &n))
			argp_error(state, "--drain-seconds: 0 to %u, not '%s'", DRAIN_MAX, arg);
		re->v.drain_ms = n * 1000;
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "%s: too many arguments", arg);
		return 0;
	case ARGP_KEY_END:
		if (re->images == NULL)
			argp_error(state, "--images-dir is wanted");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static void
on_gone(void *ctx, struct session *s)
{
	struct restore *re = container_of((struct verb *)ctx, struct restore, v);

	re->complete = criu_complete(s);
	verb_gone(ctx, s);
}

static int
open_client(struct verb *v, int fd)
{
	struct restore *re = container_of(v, struct restore, v);
	struct criu_config cfg = {
		.dir = re->images,
		.log = v->log,
		.gone = v->gone,
		.ctx = v,
	};
	struct session *s;

	cfg.keeper = verb_keeper(&cfg.holder);
	return criu_open(&v->loop, fd, &cfg, &s);
}

int
criu_main(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "images-dir", 'D', "DIR", 0, "Where the images are", 0 },
		{ "work-dir", 'W', "DIR", 0,
		  "Where `criu restore` looks for " CRIU_SOCKET " (that of the images)", 0 },
		{ "drain-seconds", OPT_DRAIN, "N", 0,
		  "On SIGTERM, fill what is missing for as long as that; then it is SIGBUS (5)",
		  0 },
		{ 0 },
	};
	static const struct argp argp = {
		.options = options,
		.parser = parse,
		.doc = "Serve the memory of one `criu restore --lazy-pages`, and end when all of it is there.\v"
		       "The exit status is 0 if it is, 1 if the restore has failed, or pages have been lost, 2 for bad usage.",
	};
	struct restore re = {
		.v = {
			.log = { .fn = verb_to_stderr },
			.drain_ms = VERB_DRAIN_MS,
			.once = true,
			.open = open_client,
			.end = criu_end,
			.gone = on_gone,
			.fd = -1,
		},
	};
	char path[PATH_MAX];

	argp_err_exit_status = 2;
	if (argp_parse(&argp, argc, argv, 0, NULL, &re) != 0)
		return 2;
	signal(SIGPIPE, SIG_IGN);
	snprintf(path, sizeof path, "%s/%s", re.work != NULL ? re.work : re.images, CRIU_SOCKET);
	re.v.socket_path = path;
	re.v.what = re.images;
	return verb_run(&re.v) < 0 || !re.complete ? 1 : 0;
}
