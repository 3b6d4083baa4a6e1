/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * main.c: uffd-pager-policy: replacement policies over reference strings, side by side.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

/*
 * A soft fault in misses: 4.4 us to be moved back against 77 us to be read from the disk, see
 * docs/benchmarks.md.
 */
#define SOFT_COST (1.0 / 16)

static struct {
	struct refstring_config string;
	const char *trace; /* NULL: all laws */
	const char *json;
	uint32_t staged; /* 0: as the library */
} options = {
	.string = { .pages = 65536, .memory = 16384, .n = 4000000, .seed = 1 },
};

struct policy_row {
	const char *name, *sees;
	run_fn *run; /* NULL: the library's, `kind` */
	enum policy_kind kind;
};

static const struct policy_row rows[] = {
	{ .name = "optimum", .sees = "the future", .run = optimum_run },
	{ .name = "lru", .sees = "every touch", .run = lru_run },
	{ .name = "s3fifo-paper", .sees = "every touch", .run = s3fifo_run },
	{ .name = "fifo", .sees = "misses", .run = fifo_run },
	{ .name = NULL, .sees = "soft faults", .kind = POLICY_SFIFO },
	{ .name = NULL, .sees = "soft faults", .kind = POLICY_SFIFO_REFAULT },
	{ .name = NULL, .sees = "soft faults", .kind = POLICY_S3FIFO },
};
#define NROWS (sizeof rows / sizeof rows[0])

static const char *
row_name(const struct policy_row *row)
{
	return row->run != NULL ? row->name : policy_name(row->kind);
}

static void
usage(FILE *out)
{
	fprintf(out,
		"usage: uffd-pager-policy [options]\n"
		"  --pages N        pages of the program (65536)\n"
		"  --memory N       pages that fit into memory (16384)\n"
		"  --accesses N     length of the reference string (4000000)\n"
		"  --seed N         another string of the same law (1)\n"
		"  --trace NAME     only this one, or a file with one page number a line\n"
		"  --staged N       pages to keep staged and not written (an eighth of memory)\n"
		"  --json FILE      write the figures there, too\n"
		"\n"
		"strings:\n");
	for (unsigned i = 0; refstring_name(i) != NULL; i++)
		fprintf(out, "  %-16s %s\n", refstring_name(i), refstring_what(i));
}

static bool
parse_number(const char *text, uint64_t max, uint64_t *v)
{
	char *end;

	errno = 0;
	*v = strtoull(text, &end, 0);
	return *text >= '0' && *text <= '9' && *end == '\0' && errno == 0 && *v <= max;
}

static bool
parse_options(int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "pages", required_argument, NULL, 'p' },
		{ "memory", required_argument, NULL, 'm' },
		{ "accesses", required_argument, NULL, 'a' },
		{ "seed", required_argument, NULL, 's' },
		{ "trace", required_argument, NULL, 't' },
		{ "staged", required_argument, NULL, 'g' },
		{ "json", required_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	uint64_t pages = options.string.pages, memory = options.string.memory;
	uint64_t accesses = options.string.n, staged = 0;
	bool ok = true;
	int c;

	while ((c = getopt_long(argc, argv, "", longopts, NULL)) != -1) {
		switch (c) {
		case 'p':
			ok &= parse_number(optarg, UINT32_C(1) << 30, &pages);
			break;
		case 'm':
			ok &= parse_number(optarg, UINT32_C(1) << 30, &memory);
			break;
		case 'a':
			ok &= parse_number(optarg, UINT32_MAX - 1, &accesses);
			break;
		case 's':
			ok &= parse_number(optarg, UINT64_MAX, &options.string.seed);
			break;
		case 't':
			options.trace = optarg;
			break;
		case 'g':
			ok &= parse_number(optarg, UINT32_C(1) << 30, &staged);
			break;
		case 'j':
			options.json = optarg;
			break;
		case 'h':
			usage(stdout);
			exit(0);
		default:
			usage(stderr);
			return false;
		}
	}
	if (!ok || optind < argc || memory < 1 || pages < 2 || accesses < 1) {
		fprintf(stderr,
			"policy: numbers are wanted: 1 or more pages of memory, 2 or more in "
			"all, 1 or more accesses\n");
		return false;
	}
	options.string.pages = (uint32_t)pages;
	options.string.memory = (uint32_t)memory;
	options.string.n = (size_t)accesses;
	options.staged = (uint32_t)staged;
	return true;
}

static double
per_access(uint64_t n, const struct refstring *r)
{
	return (double)n / (double)r->n;
}

static void
print_json(FILE *f, const char *name, const struct refstring *r, const struct outcome out[],
	   bool first)
{
	/* A name of ours, or a file's: quotes and what is not ASCII are left out. */
	fprintf(f, "%s\n    \"", first ? "" : ",");
	for (; *name != '\0'; name++)
		if (*name >= 0x20 && *name < 0x7f && *name != '"' && *name != '\\')
			fputc(*name, f);
	fprintf(f, "\": { \"accesses\": %zu, \"pages\": %u, \"policies\": {", r->n, r->npages);
	for (size_t i = 0; i < NROWS; i++)
		fprintf(f,
			"%s\n      \"%s\": { \"misses\": %llu, \"soft_faults\": %llu, "
			"\"staged\": %llu }",
			i == 0 ? "" : ",", row_name(&rows[i]), (unsigned long long)out[i].misses,
			(unsigned long long)out[i].soft, (unsigned long long)out[i].staged);
	fprintf(f, "\n    } }");
}

static void
print_table(const char *name, const struct refstring *r, const struct outcome out[])
{
	printf("\n%s: %zu accesses to %u pages\n", name, r->n, r->npages);
	printf("  %-14s %-12s %10s %10s %12s %10s\n", "policy", "sees", "misses", "/optimum",
	       "soft faults", "cost");
	for (size_t i = 0; i < NROWS; i++)
		printf("  %-14s %-12s %10.4f %10.2f %12.4f %10.4f\n", row_name(&rows[i]),
		       rows[i].sees, per_access(out[i].misses, r),
		       (double)out[i].misses / (double)out[0].misses, per_access(out[i].soft, r),
		       per_access(out[i].misses, r) + SOFT_COST * per_access(out[i].soft, r));
}

static bool
compare_on(const char *name, const struct refstring *r, FILE *json, bool first)
{
	struct model_config cfg = model_config_for(options.string.memory);
	struct outcome out[NROWS];

	if (options.staged != 0)
		cfg.staged_target = options.staged;

	for (size_t i = 0; i < NROWS; i++) {
		const bool ok = rows[i].run != NULL ? rows[i].run(&cfg, r, &out[i])
						    : model_run(rows[i].kind, &cfg, r, &out[i]);

		if (!ok) {
			fprintf(stderr, "policy: no memory for %zu accesses\n", r->n);
			return false;
		}
	}
	print_table(name, r, out);
	if (json != NULL)
		print_json(json, name, r, out, first);
	return true;
}

static bool
compare_all(FILE *json)
{
	bool any = false;

	for (unsigned i = 0; refstring_name(i) != NULL; i++) {
		struct refstring r;
		bool ok;

		if (options.trace != NULL && strcmp(options.trace, refstring_name(i)) != 0)
			continue;
		if (!refstring_make(&r, i, &options.string)) {
			fprintf(stderr, "policy: no memory for %zu accesses\n", options.string.n);
			return false;
		}
		ok = compare_on(refstring_name(i), &r, json, !any);
		refstring_free(&r);
		if (!ok)
			return false;
		any = true;
	}
	if (!any) {
		struct refstring r;
		bool ok;

		if (!refstring_read(&r, options.trace))
			return false;
		ok = compare_on(options.trace, &r, json, true);
		refstring_free(&r);
		return ok;
	}
	return true;
}

int
main(int argc, char **argv)
{
	FILE *json = NULL;
	bool ok;

	if (!parse_options(argc, argv))
		return 2;
	if (options.json != NULL) {
		json = fopen(options.json, "we");
		if (json == NULL) {
			fprintf(stderr, "policy: %s: %s\n", options.json, strerror(errno));
			return 1;
		}
		fprintf(json, "{\n  \"memory\": %u,\n  \"seed\": %llu,\n  \"strings\": {",
			options.string.memory, (unsigned long long)options.string.seed);
	}
	printf("memory of %u pages; per access; cost: a soft fault is 1/%.0f of a miss\n",
	       options.string.memory, 1 / SOFT_COST);
	ok = compare_all(json);
	if (json != NULL) {
		fprintf(json, "\n  }\n}\n");
		ok &= ferror(json) == 0;
		ok &= fclose(json) == 0;
		if (!ok)
			fprintf(stderr, "policy: %s is not complete\n", options.json);
	}
	return ok ? 0 : 1;
}
