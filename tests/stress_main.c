/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * stress_main.c: the stress of stress.c from the command line, for as long as you like.
 *
 *	stress [--seconds N] [--threads T] [--memory BYTES] [--mask LIST] [--seed S] [--services K]
 *	       [--alone] [--hold]
 *
 * LIST: features to do without, of move, poison, odirect, dev_uffd, kernel_faults, ring_flags, shared; or
 * all.
 * --alone: no fork(), no signals, no second runtime meanwhile.  --hold: a failure stays for a
 * debugger.
 *
 * A plain program, since Criterion does not start under ThreadSanitizer, which is where this
 * wants to be run as well.
 *
 * Exit status: 0 all is well, 2 usage, 77 userfaultfd is not allowed here; a failure aborts.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stress.h"

static void __attribute__((noreturn)) usage(void)
{
	fprintf(stderr,
		"usage: stress [--seconds N] [--threads T] [--memory BYTES] [--mask LIST] [--seed S]\n"
		"              [--services K] [--alone] [--hold]\n");
	exit(2);
}

static uint64_t
number(const char *s, uint64_t max)
{
	uint64_t n;

	if (!stress_parse_number(s, max, &n)) {
		fprintf(stderr, "stress: not a number up to %" PRIu64 ": %s\n", max, s);
		usage();
	}
	return n;
}

static void
parse(int argc, char **argv, struct stress *cfg)
{
	for (int i = 1; i < argc; i++) {
		const char *arg = argv[i], *value = argv[i + 1];

		if (strcmp(arg, "--alone") == 0) {
			cfg->alone = true;
			continue;
		}
		if (strcmp(arg, "--hold") == 0) {
			cfg->hold = true;
			continue;
		}
		if (value == NULL)
			usage();
		i++;
		if (strcmp(arg, "--seconds") == 0)
			cfg->seconds = (unsigned)number(value, 1u << 30);
		else if (strcmp(arg, "--threads") == 0)
			cfg->threads = (unsigned)number(value, 16);
		else if (strcmp(arg, "--memory") == 0)
			cfg->memory = number(value, UINT64_C(1) << 40);
		else if (strcmp(arg, "--seed") == 0)
			cfg->seed = number(value, UINT64_MAX);
		else if (strcmp(arg, "--services") == 0)
			cfg->services = (unsigned)number(value, 16);
		else if (strcmp(arg, "--mask") != 0 || !stress_parse_mask(value, &cfg->mask))
			usage();
	}
	if (cfg->threads == 0)
		usage();
}

static void
say(void *ctx, enum up_log_level level, const char *line)
{
	(void)ctx;
	if (level == UP_LOG_ERROR)
		fprintf(stderr, "stress: %s\n", line);
}

/* Is there a userfaultfd at all, with this much memory? */
static int
probe(const struct stress *cfg)
{
	const struct up_config config = { .memory_limit = cfg->memory,
					  .service_threads = cfg->services,
					  .feature_mask = cfg->mask,
					  .log = say };
	struct up_runtime *rt;
	const int r = up_runtime_create(&rt, &config);

	up_runtime_destroy(rt);
	return r;
}

int
main(int argc, char **argv)
{
	struct stress cfg = {
		.seconds = 5, .threads = 6, .services = 1, .memory = UP_MEMORY_LIMIT_MIN, .seed = 1
	};
	struct stress_result res;
	char mask[80];
	int r;

	parse(argc, argv, &cfg);
	r = probe(&cfg);
	if (r < 0) {
		fprintf(stderr, "stress: up_runtime_create: %s\n", strerrorname_np(-r));
		return r == -EPERM || r == -ENOSYS ? 77 : 1;
	}
	stress_run(&cfg, &res);
	stress_print_mask(cfg.mask, mask, sizeof mask);
	printf("stress: %u s, %u threads, %u services, %.1f MiB, without %s, seed %" PRIu64
	       ": %" PRIu64 " steps, %" PRIu64 " pages verified, %" PRIu64 " peeks, %" PRIu64
	       " system calls, %" PRIu64 " signals, %" PRIu64 " forks, %" PRIu64
	       " other runtimes, %" PRIu64 " clones, %" PRIu64 " snapshots, %" PRIu64
	       " pages copied\n",
	       cfg.seconds, cfg.threads, cfg.services, (double)cfg.memory / (1 << 20), mask,
	       cfg.seed, res.steps, res.pages, res.peeks, res.syscalls, res.racing_signals,
	       res.forks, res.runtimes, res.clones, res.snapshots, res.st.copies);
	printf("stress: faults: %" PRIu64 " minor, %" PRIu64 " zero, %" PRIu64 " soft, %" PRIu64
	       " major, %" PRIu64 " wp; %" PRIu64 " rescues, %" PRIu64 " waits, %" PRIu64
	       " strays, %" PRIu64 " retries, %" PRIu64 " pinned, %" PRIu64 " out\n",
	       res.st.faults[UP_FAULT_MINOR], res.st.faults[UP_FAULT_ZERO],
	       res.st.faults[UP_FAULT_SOFT], res.st.faults[UP_FAULT_MAJOR],
	       res.st.faults[UP_FAULT_WP], res.st.rescues, res.st.fault_waits, res.st.fault_strays,
	       res.st.fault_retries, res.st.pages_pinned, res.st.pages_out);
	printf("stress: peak resident by the kernel %.2f MiB in %" PRIu64
	       " samples, limit %.2f MiB; no mismatch\n",
	       (double)res.peak / (1 << 20), res.samples, (double)cfg.memory / (1 << 20));
	return 0;
}
