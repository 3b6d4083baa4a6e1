/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * quotas.c: see quotas.h.
 *
 * The same that serve_quota() (lib/serve.h) would refuse, with the memory and the threads that there would be: a limit that is not in force, with a line in a
 * log, is found out when it was needed.  What only a running daemon can know, what is wired and what single clients were promised, is left to that.
 */
#include "quotas.h"

#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#include "budget.h"
#include "serve.h"

#define LEAST "a limit is at least %" PRIu64 " MiB here: 4 MiB for each service thread"

struct check {
	const struct config *c;
	const char *where;
	FILE *err;
	int errors;
};

__attribute__((format(printf, 4, 5))) static void
complain(struct check *k, const struct config_named *n, enum config_key key, const char *fmt, ...)
{
	unsigned line = 0;
	va_list ap;

	if (n != NULL)
		line = config_named_value(n, key)->line;
	else if (key < CONFIG_KEYS)
		line = k->c->v[key].line;

	k->errors++;
	if (line != 0)
		fprintf(k->err, "%s:%u: ", k->where, line);
	else
		fprintf(k->err, "--%s: ", config_flag_name(key));
	if (n != NULL)
		fprintf(k->err, "[%s %s]: ", n->kind, n->name);
	else
		fprintf(k->err, "%s: ", config_key_name(key));
	va_start(ap, fmt);
	vfprintf(k->err, fmt, ap);
	va_end(ap);
	fputc('\n', k->err);
}

/* What each client has: of a group, or NULL for [limits]. */
static void
check_client(struct check *k, const struct config_named *n, const struct config_value *limit,
	     const struct config_value *minimum, uint64_t budget, uint64_t floor)
{
	const uint64_t most = config_bytes(limit, budget), least = config_bytes(minimum, budget);

	if (most != 0 && most < floor)
		complain(k, n, n != NULL ? KEY_GROUP_CLIENT_LIMIT : KEY_LIMIT_LIMIT, LEAST,
			 floor >> 20);
	if (least > budget / 2 || (most != 0 && least > most))
		complain(k, n, n != NULL ? KEY_GROUP_CLIENT_MINIMUM : KEY_LIMIT_MINIMUM,
			 "each client is promised more than %s",
			 least > budget / 2 ? "half of the budget" : "its limit");
}

int
quotas_check(const struct config *c, const char *where, FILE *err)
{
	const uint64_t budget = budget_wanted(c);
	const uint64_t floor = serve_limit_min((unsigned)config_n(c, KEY_SERVICE_THREADS), budget);
	struct check k = { .c = c, .where = where, .err = err };
	uint64_t promised = 0;

	check_client(&k, NULL, &c->v[KEY_LIMIT_LIMIT], &c->v[KEY_LIMIT_MINIMUM], budget, floor);
	for (const struct config_named *n = c->named; n != NULL; n = n->next) {
		uint64_t limit, minimum;

		if (strcmp(n->kind, "group") != 0)
			continue;
		check_client(&k, n, config_named_value(n, KEY_GROUP_CLIENT_LIMIT),
			     config_named_value(n, KEY_GROUP_CLIENT_MINIMUM), budget, floor);
		limit = config_bytes(config_named_value(n, KEY_GROUP_LIMIT), budget);
		minimum = config_bytes(config_named_value(n, KEY_GROUP_MINIMUM), budget);
		if (limit != 0 && minimum > limit)
			complain(&k, n, KEY_GROUP_MINIMUM, "its minimum is above its limit");
		if (limit != 0 && limit < floor)
			complain(&k, n, KEY_GROUP_LIMIT, LEAST, floor >> 20);
		promised += minimum < budget ? minimum : budget;
		if (minimum > 0 && promised > budget / 2)
			complain(&k, n, KEY_GROUP_MINIMUM,
				 "with it the groups are promised %" PRIu64
				 "%% of the budget (%" PRIu64
				 " MiB), and half of it can be promised",
				 (promised * 100 + budget / 2) / budget, budget >> 20);
	}
	return k.errors;
}
