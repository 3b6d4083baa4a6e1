/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * firecracker_main.c: `uffd-pagerd firecracker SOCK MEMFILE`, the shape of Firecracker's own example handlers.
 *
 * Any number of microVMs may be restored from MEMFILE, one after the other or at once.
 */
#include <argp.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>

#include "firecracker.h"
#include "verb.h"

#define RECORD_MAX 3600u /* seconds */

enum { OPT_NO_WORKING_SET = 256, OPT_RECORD, OPT_DRAIN };

struct handler {
	struct verb v;
	const char *memfile;
	bool no_working_set;
	unsigned record_seconds;
	struct memfile *source;
};

static error_t
parse(int key, char *arg, struct argp_state *state)
{
	struct handler *h = state->input;
	unsigned n = 0;

	switch (key) {
	case OPT_NO_WORKING_SET:
		h->no_working_set = true;
		return 0;
	case OPT_RECORD:
		if (!verb_seconds(arg, RECORD_MAX, &h->record_seconds) || h->record_seconds == 0)
			argp_error(state, "--record-seconds: 1 to %u, not '%s'", RECORD_MAX, arg);
		return 0;
	case OPT_DRAIN:
		if (!verb_seconds(arg, RECORD_MAX, &n))
			argp_error(state, "--drain-seconds: 0 to %u, not '%s'", RECORD_MAX, arg);
		h->v.drain_ms = n * 1000;
		return 0;
	case ARGP_KEY_ARG:
		if (state->arg_num == 0)
			h->v.socket_path = arg;
		else if (state->arg_num == 1)
			h->memfile = arg;
		else
			argp_error(state, "too many arguments");
		return 0;
	case ARGP_KEY_END:
		if (h->memfile == NULL)
			argp_error(state, "SOCK and MEMFILE are wanted");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static int
open_client(struct verb *v, int fd)
{
	struct handler *h = container_of(v, struct handler, v);
	struct firecracker_config cfg = {
		.source = h->source,
		.log = v->log,
		.working_set = !h->no_working_set,
		.record_seconds = h->record_seconds,
		.gone = v->gone,
		.ctx = v,
	};
	struct session *s;

	cfg.keeper = verb_keeper(&cfg.holder);
	return firecracker_open(&v->loop, fd, &cfg, &s);
}

int
firecracker_main(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "no-working-set", OPT_NO_WORKING_SET, NULL, 0,
		  "Neither read nor write MEMFILE.ws", 0 },
		{ "record-seconds", OPT_RECORD, "N", 0,
		  "Pages touched in the first N seconds are the working set (5)", 0 },
		{ "drain-seconds", OPT_DRAIN, "N", 0,
		  "On SIGTERM, fill what clients miss for as long as that; then it is SIGBUS (5)",
		  0 },
		{ 0 },
	};
	static const struct argp argp = {
		.options = options,
		.parser = parse,
		.args_doc = "SOCK MEMFILE",
		.doc = "Serve page faults of Firecracker microVMs that are restored from MEMFILE "
		       "(mem_backend: backend_type \"Uffd\", backend_path SOCK).",
	};
	struct handler h = {
		.record_seconds = FC_RECORD_SECONDS,
		.v = {
			.log = { .fn = verb_to_stderr },
			.drain_ms = VERB_DRAIN_MS,
			.open = open_client,
			.end = firecracker_end,
			.gone = verb_gone,
			.fd = -1,
		},
	};
	char what[PATH_MAX + 32];
	int r;

	argp_err_exit_status = 2;
	if (argp_parse(&argp, argc, argv, 0, NULL, &h) != 0)
		return 2;
	signal(SIGPIPE, SIG_IGN);
	if (memfile_open(&h.source, h.memfile, &h.v.log) < 0)
		return 1;
	snprintf(what, sizeof what, "%s (%llu MiB)", h.memfile,
		 (unsigned long long)(h.source->size >> 20));
	h.v.what = what;
	r = verb_run(&h.v);
	memfile_unref(h.source);
	return r < 0 ? 1 : 0;
}
