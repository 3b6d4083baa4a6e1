/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * uffd-pager.c: look at uffd-pagerd, and steer it, through its control socket.
 */
#include <argp.h>
#include <ctype.h>
#include <errno.h>
#include <grp.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "client.h"
#include "top.h"

/* How long an upgrade may take, which is longer than away_timeout is by default; and how often that is looked at. */
#define NEXT_MS 30000u
#define NEXT_AGAIN_MS 20u

enum {
	OPT_JSON = 'j',
	OPT_SOCKET = 's',
	OPT_ONCE = '1',
	OPT_DELAY = 'd',
	OPT_LINES = 'n',
	OPT_CLIENT = 'c',
	OPT_CANCEL = 256,
	OPT_LIMIT,
	OPT_MINIMUM,
	OPT_GROUP
};

static struct {
	const char *socket, *client;
	const char *word[4]; /* the verb, and what follows it */
	unsigned nwords;
	double delay;
	unsigned long lines;
	bool json, once, cancel;
	const char *limit, *minimum, *group; /* of `limit` */
} arg = { .delay = 1, .lines = 200 };

const char *argp_program_version = "uffd-pager " VERSION;

/* A size such as 4096, 512k or 1G. */
static uint64_t
parse_size(const char *text, struct argp_state *state)
{
	static const char units[] = "KMGT";
	const char *unit;
	char *end;
	unsigned long long n;
	unsigned shift = 0;

	errno = 0;
	n = strtoull(text, &end, 10);
	if (!isdigit((unsigned char)text[0]) || errno != 0)
		argp_error(state, "%s: not a size; say for example 512M or 4G", text);
	if (*end != '\0') {
		unit = strchr(units, toupper((unsigned char)*end));
		if (unit == NULL || (strcmp(end + 1, "") != 0 && strcmp(end + 1, "B") != 0 &&
				     strcmp(end + 1, "iB") != 0))
			argp_error(state, "%s: '%s' is not a unit; use K, M, G or T", text, end);
		else
			shift = 10 * (unsigned)(unit - units + 1);
	}
	if (n > (uint64_t)INT64_MAX >> shift)
		argp_error(state, "%s: too large", text);
	return (uint64_t)n << shift;
}

static json_int_t
size_or_none(const char *text, struct argp_state *state)
{
	return strcmp(text, "none") == 0 ? 0 : (json_int_t)parse_size(text, state);
}

/* ---- answers, for people ---- */

static void
print_status(const json_t *answer)
{
	const json_t *const st = json_object_get(answer, "status");
	const json_t *g, *l;
	const char *kind;
	size_t i;

	printf("uffd-pagerd %s, process %.0f: %s for %.0f s, %.0f clients\n",
	       get_text(st, "version"), get_number(st, "pid"), get_text(st, "state"),
	       get_number(st, "uptime"), get_number(st, "clients"));
	if (json_object_get(st, "ends_in") != NULL)
		printf("ending    when they have left, in %.0f s at the latest\n",
		       get_number(st, "ends_in"));
	printf("memory    %s of %s used, at most %s so far: %s mapped, %s staged, %s free, %s metadata\n",
	       bytes_text(get_number(st, "budget.used")),
	       bytes_text(get_number(st, "budget.limit")),
	       bytes_text(get_number(st, "budget.used_max")),
	       bytes_text(get_number(st, "budget.resident")),
	       bytes_text(get_number(st, "budget.staged")),
	       bytes_text(get_number(st, "budget.free")),
	       bytes_text(get_number(st, "budget.metadata")));
	if (get_number(st, "budget.compressed_pool") > 0)
		printf("          %s compressed to %s\n",
		       bytes_text(get_number(st, "budget.compressed")),
		       bytes_text(get_number(st, "budget.compressed_pool")));
	printf("swap      %s in %s; %s read, %s written\n",
	       bytes_text(get_number(st, "swap.swapped")),
	       get_text(json_object_get(st, "swap"), "path"),
	       bytes_text(get_number(st, "swap.read_bytes")),
	       bytes_text(get_number(st, "swap.write_bytes")));
	if (get_number(st, "swap.read_errors") + get_number(st, "swap.write_errors") +
		    get_number(st, "swap.checksum_errors") >
	    0)
		printf("          ERRORS: %.0f reads, %.0f writes, %.0f checksums\n",
		       get_number(st, "swap.read_errors"), get_number(st, "swap.write_errors"),
		       get_number(st, "swap.checksum_errors"));
	printf("faults   ");
	json_object_foreach(json_object_get(st, "faults"), kind, g)
		printf(" %s %.0f", kind, json_number_value(g));
	printf("; %.0f a second\n", get_number(st, "rate.faults"));
	if (get_number(st, "fault_counts.sigbus") > 0)
		printf("          %.0f SIGBUS\n", get_number(st, "fault_counts.sigbus"));
	json_object_foreach(json_object_get(st, "latency"), kind, l) if (get_number(l, "count") > 0)
		printf("latency   %-5s  50%% %s, 99%% %s, 99.9%% %s, longest %s\n", kind,
		       time_text(get_number(l, "p50_ns")), time_text(get_number(l, "p99_ns")),
		       time_text(get_number(l, "p999_ns")), time_text(get_number(l, "max_ns")));
	json_array_foreach(json_object_get(st, "groups"), i, g)
	{
		printf("group     %s: %.0f clients, %s in memory; limit %s, minimum %s\n",
		       get_text(g, "name"), get_number(g, "clients"),
		       bytes_text(get_number(g, "resident")),
		       get_number(g, "limit") > 0 ? bytes_text(get_number(g, "limit")) : "none",
		       bytes_text(get_number(g, "minimum")));
		if (get_text(g, "refused")[0] != '\0')
			printf("          NOT IN FORCE: limit %s, minimum %s: %s\n",
			       get_number(g, "configured.limit") > 0
				       ? bytes_text(get_number(g, "configured.limit"))
				       : "none",
			       bytes_text(get_number(g, "configured.minimum")),
			       get_text(g, "refused"));
	}
	json_array_foreach(json_object_get(st, "listeners"), i, l)
		printf("socket    %s (%s)\n", get_text(l, "path"), get_text(l, "type"));
}

static void
print_clients(const json_t *answer)
{
	const json_t *c;
	size_t i;

	printf("%5s %8s %-20s %-11s %-10s %7s %7s %7s %9s\n", "ID", "PROCESS", "NAME", "KIND",
	       "GROUP", "MEMORY", "MAPPED", "SWAP", "FAULTS/s");
	json_array_foreach(json_object_get(answer, "clients"), i, c)
	{
		const double lost = get_number(c, "lost");

		printf("%5.0f %8.0f %-20.20s %-11s %-10.10s %7s %7s %7s %9.0f", get_number(c, "id"),
		       get_number(c, "pid"), get_text(c, "name"), get_text(c, "kind"),
		       get_text(c, "group")[0] != '\0' ? get_text(c, "group") : "-",
		       bytes_text(get_number(c, "resident")), bytes_text(get_number(c, "mapped")),
		       bytes_text(get_number(c, "swapped")), get_number(c, "rate"));
		if (lost > 0)
			printf("  %.0f LOST", lost);
		putchar('\n');
	}
}

/* Of its user or group, or the number. */
static const char *
who_text(const char *name, double id, char text[24])
{
	if (name != NULL)
		return name;
	snprintf(text, 24, "%.0f", id);
	return text;
}

/* A client gave it: nothing of it is for the terminal to act upon. */
static void
print_name(const char *name)
{
	for (; *name != '\0'; name++) {
		/* Those of 8 bits are two bytes of UTF-8. */
		const bool wide = (unsigned char)name[0] == 0xc2 && (unsigned char)name[1] < 0xa0;

		putchar(wide || iscntrl((unsigned char)*name) ? '?' : *name);
		name += wide && name[1] != '\0';
	}
}

static void
print_objects(const json_t *answer)
{
	const json_t *o;
	size_t i;

	printf("%-9s %-12s %-12s %7s %7s %7s %7s NAME\n", "MODE", "OWNER", "GROUP", "SIZE",
	       "MEMORY", "SWAP", "CLIENTS");
	json_array_foreach(json_object_get(answer, "objects"), i, o)
	{
		const struct passwd *const user = getpwuid((uid_t)get_number(o, "uid"));
		const struct group *const group = getgrgid((gid_t)get_number(o, "gid"));
		const bool partly = json_is_true(json_object_get(o, "partly"));
		char uid[24], gid[24];

		printf("%-9s %-12s %-12s %7s %7s %7s %7.0f ", get_text(o, "mode"),
		       who_text(user != NULL ? user->pw_name : NULL, get_number(o, "uid"), uid),
		       who_text(group != NULL ? group->gr_name : NULL, get_number(o, "gid"), gid),
		       bytes_text(get_number(o, "size")),
		       partly ? "?" : bytes_text(get_number(o, "resident")),
		       partly ? "?" : bytes_text(get_number(o, "swapped")),
		       get_number(o, "clients"));
		print_name(get_text(o, "name"));
		if (get_number(o, "lost") > 0)
			printf("  %s LOST", bytes_text(get_number(o, "lost")));
		putchar('\n');
	}
}

static void
print_lines(const json_t *lines)
{
	const json_t *l;
	size_t i;

	json_array_foreach(lines, i, l) puts(json_string_value(l));
}

static void
print_map(const json_t *answer)
{
	struct look l;

	look_init(&l, 100);
	if (json_object_get(answer, "client") != NULL)
		map_draw(&l, stdout, json_object_get(answer, "client"));
	else
		print_lines(json_object_get(answer, "runtime"));
}

static void
print_evict(const json_t *answer)
{
	printf("%s thrown out\n", bytes_text(get_number(answer, "evicted")));
}

static void
print_limit(const json_t *answer)
{
	const double limit = get_number(answer, "limit");

	if (arg.limit != NULL || arg.minimum != NULL || arg.group != NULL)
		printf("limit %s, minimum %s\n", limit > 0 ? bytes_text(limit) : "none",
		       bytes_text(get_number(answer, "minimum")));
	else
		printf("%s\n", bytes_text(limit));
}

static void
print_trace(const json_t *answer)
{
	const json_t *ev;
	size_t i;

	json_array_foreach(json_object_get(answer, "trace"), i, ev)
	{
		const json_int_t ns = json_integer_value(json_object_get(ev, "time_ns"));
		const time_t second = (time_t)(ns / 1000000000);
		char when[32];
		struct tm tm;

		strftime(when, sizeof(when), "%H:%M:%S", localtime_r(&second, &tm));
		printf("%s.%06d %-12s 0x%012llx %5.0f", when, (int)(ns % 1000000000 / 1000),
		       get_text(ev, "kind"),
		       (unsigned long long)json_integer_value(json_object_get(ev, "at")),
		       get_number(ev, "arg"));
		if (get_number(ev, "pid") > 0)
			printf("  %s, process %.0f", get_text(ev, "name"), get_number(ev, "pid"));
		if (get_number(ev, "child") > 0)
			printf(", forked process %.0f", get_number(ev, "child"));
		putchar('\n');
	}
}

static void
print_drain(const json_t *answer)
{
	if (!json_is_true(json_object_get(answer, "draining")))
		puts("serving again");
	else if (get_number(answer, "clients") > 0)
		printf("draining: it ends when %.0f clients have left\n",
		       get_number(answer, "clients"));
	else
		puts("draining: there are no clients, it ends now");
}

static void
print_upgrade(const json_t *answer)
{
	printf("uffd-pagerd %s serves\n", get_text(answer, "version"));
}

static const struct verb {
	const char *name;
	unsigned least, most; /* words behind it */
	const char *usage;
	void (*print)(const json_t *answer);
} verbs[] = {
	{ "status", 0, 0, "", print_status },
	{ "clients", 0, 0, "", print_clients },
	{ "objects", 0, 0, "", print_objects },
	{ "top", 0, 0, "", NULL },
	{ "map", 0, 1, " [PID|NAME]", print_map },
	{ "evict", 2, 2, " PID|NAME BYTES", print_evict },
	{ "limit", 0, 2,
	  " [BYTES | PID|NAME BYTES | PID|NAME|--group=NAME [--limit=BYTES] [--minimum=BYTES]]",
	  print_limit },
	{ "trace", 0, 0, "", print_trace },
	{ "drain", 0, 0, "", print_drain },
	{ "upgrade", 0, 0, "", print_upgrade },
};

static const struct verb *
find_verb(const char *name)
{
	for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++)
		if (strcmp(verbs[i].name, name) == 0)
			return &verbs[i];
	return NULL;
}

/* ---- options ---- */

static const struct argp_option options[] = {
	{ "json", OPT_JSON, NULL, 0, "Print the daemon's answer as it is", 0 },
	{ "socket", OPT_SOCKET, "PATH", 0,
	  "The daemon's control socket (default: in $XDG_RUNTIME_DIR/uffd-pagerd if there is one, else in /run/uffd-pagerd)",
	  0 },
	{ "once", OPT_ONCE, NULL, 0, "top: print one frame, and end", 0 },
	{ "delay", OPT_DELAY, "SECONDS", 0, "top: between two frames (default 1)", 0 },
	{ "lines", OPT_LINES, "N", 0, "trace: the most recent N events (default 200, at most 1000)",
	  0 },
	{ "client", OPT_CLIENT, "CLIENT", 0, "trace: of one client only, and its children", 0 },
	{ "limit", OPT_LIMIT, "BYTES", 0, "limit: the most memory that it has, or none", 0 },
	{ "minimum", OPT_MINIMUM, "BYTES", 0,
	  "limit: memory of it that others do not push out, or none", 0 },
	{ "group", OPT_GROUP, "NAME", 0, "limit: of a group, instead of a client", 0 },
	{ "cancel", OPT_CANCEL, NULL, 0, "drain: take it back", 0 },
	{ 0 },
};

static error_t
parse_option(int key, char *text, struct argp_state *state)
{
	const struct verb *v;
	char *end;

	switch (key) {
	case OPT_JSON:
		arg.json = true;
		break;
	case OPT_SOCKET:
		arg.socket = text;
		break;
	case OPT_ONCE:
		arg.once = true;
		break;
	case OPT_DELAY:
		arg.delay = strtod(text, &end);
		if (*end != '\0' || !(arg.delay >= 0.1 && arg.delay <= 3600))
			argp_error(state, "--delay %s: not a number from 0.1 to 3600", text);
		break;
	case OPT_LINES:
		arg.lines = strtoul(text, &end, 10);
		if (*end != '\0' || !isdigit((unsigned char)text[0]) || arg.lines < 1 ||
		    arg.lines > 1000)
			argp_error(state, "--lines %s: not a number from 1 to 1000", text);
		break;
	case OPT_CLIENT:
		arg.client = text;
		break;
	case OPT_CANCEL:
		arg.cancel = true;
		break;
	case OPT_LIMIT:
		arg.limit = text;
		break;
	case OPT_MINIMUM:
		arg.minimum = text;
		break;
	case OPT_GROUP:
		arg.group = text;
		break;
	case ARGP_KEY_ARG:
		if (arg.nwords == sizeof(arg.word) / sizeof(arg.word[0]))
			argp_error(state, "%s: one word too many", text);
		else
			arg.word[arg.nwords++] = text;
		break;
	case ARGP_KEY_END:
		if (arg.nwords == 0)
			argp_error(state, "a verb is wanted");
		v = find_verb(arg.word[0]);
		if (v == NULL)
			argp_error(state, "%s: there is no such verb", arg.word[0]);
		else if (arg.nwords - 1 < v->least || arg.nwords - 1 > v->most)
			argp_error(state, "usage: uffd-pager %s%s", v->name, v->usage);
		if (arg.limit != NULL || arg.minimum != NULL || arg.group != NULL) {
			/* One who it is for, and one word for the limit at most. */
			const unsigned words =
				arg.nwords - 1 + (arg.group != NULL) + (arg.limit != NULL);

			if (strcmp(arg.word[0], "limit") != 0 || words > 2 ||
			    arg.nwords - 1 + (arg.group != NULL) == 0 ||
			    (words == 1 && arg.minimum == NULL))
				argp_error(state, "usage: uffd-pager limit%s",
					   find_verb("limit")->usage);
		}
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

/* The daemon that was asked is gone: what the next one says, once it serves.  NULL and errno: there is none. */
static json_t *
outcome(struct client *c)
{
	int r = -ETIMEDOUT;

	for (unsigned tries = 0; tries < NEXT_MS / NEXT_AGAIN_MS; tries++) {
		json_t *answer = NULL;

		client_close(c);
		r = client_connect(c, arg.socket);
		if (r == 0) {
			answer = client_ask(c, json_pack("{s:s, s:b}", "verb", "upgrade", "outcome",
							 1));
			r = -errno;
		}
		if (answer != NULL)
			return answer;
		usleep(NEXT_AGAIN_MS * 1000);
	}
	errno = -r;
	return NULL;
}

/* The request that the words mean. */
static json_t *
request(const struct verb *v, struct argp_state *state)
{
	json_t *const req = json_pack("{s:s}", "verb", v->name);
	const unsigned n = arg.nwords - 1;
	const char *client = NULL, *bytes = arg.limit;

	if (n == 1 && (strcmp(v->name, "map") == 0 ||
		       (arg.group == NULL && (arg.limit != NULL || arg.minimum != NULL))))
		client = arg.word[1];
	else if (n == 2) {
		client = arg.word[1];
		bytes = arg.word[2];
	} else if (n == 1)
		bytes = arg.word[1];
	if (strcmp(v->name, "trace") == 0 && arg.client != NULL)
		client = arg.client;
	if (client != NULL) {
		json_t *const name = json_string(client);

		if (name == NULL)
			argp_error(state, "a name is UTF-8");
		json_object_set_new(req, "client", name);
	}
	if (arg.group != NULL)
		json_object_set_new(req, "group", json_string(arg.group));
	if (bytes != NULL)
		json_object_set_new(req, "bytes", json_integer(size_or_none(bytes, state)));
	if (arg.minimum != NULL)
		json_object_set_new(req, "minimum", json_integer(size_or_none(arg.minimum, state)));
	if (strcmp(v->name, "trace") == 0)
		json_object_set_new(req, "lines", json_integer((json_int_t)arg.lines));
	if (arg.cancel)
		json_object_set_new(req, "cancel", json_true());
	return req;
}

int
main(int argc, char **argv)
{
	static const struct argp argp = {
		.options = options,
		.parser = parse_option,
		.args_doc =
			"status\nclients\nobjects\ntop\nmap [PID|NAME]\nevict PID|NAME BYTES\nlimit [BYTES]\nlimit PID|NAME BYTES\nlimit PID|NAME|--group=NAME --limit=BYTES --minimum=BYTES\ntrace\ndrain\nupgrade",
		.doc = "Look at uffd-pagerd, and steer it.\v"
		       "BYTES takes the suffixes K, M, G and T.  A client is named by its process, by its name, or by #ID.  The exit status "
		       "is 0 if it was done, 1 if it was refused or failed, 2 for bad usage, 3 if the daemon is not reachable.",
	};
	struct argp_state state = { .root_argp = &argp,
				    .name = (char *)(uintptr_t) "uffd-pager",
				    .err_stream = stderr };
	const struct verb *v;
	struct client c;
	json_t *answer, *req;
	int r, status = EXIT_OK;

	argp_err_exit_status = EXIT_USAGE;
	argp_parse(&argp, argc, argv, 0, NULL, NULL);
	v = find_verb(arg.word[0]);
	req = request(v, &state);
	if (arg.socket == NULL)
		arg.socket = client_default_socket();
	r = client_connect(&c, arg.socket);
	if (r < 0) {
		fprintf(stderr, "uffd-pager: %s: %s\n", arg.socket, strerror(-r));
		json_decref(req);
		return EXIT_UNREACHABLE;
	}
	if (v->print == NULL && !arg.json) {
		json_decref(req);
		status = top_run(&c, arg.socket, arg.once, arg.delay);
		client_close(&c);
		return status;
	}
	answer = client_ask(&c, req);
	if (answer == NULL && errno == ECONNRESET && strcmp(v->name, "upgrade") == 0)
		answer = outcome(&c);
	if (answer == NULL) {
		fprintf(stderr, "uffd-pager: %s: %s\n", arg.socket, strerror(errno));
		client_close(&c);
		return EXIT_UNREACHABLE;
	}
	if (!json_is_true(json_object_get(answer, "ok")))
		status = EXIT_REFUSED;
	if (arg.json) {
		json_dumpf(answer, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
		putchar('\n');
	} else if (status == EXIT_OK)
		v->print(answer);
	else
		fprintf(stderr, "uffd-pager: %s\n", get_text(answer, "error"));
	json_decref(answer);
	client_close(&c);
	if (fflush(stdout) != 0) {
		fprintf(stderr, "uffd-pager: standard output: %s\n", strerror(errno));
		status = EXIT_REFUSED;
	}
	return status;
}
