/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * config.c: the table of keys, and the file that sets them.
 *
 * The file is INI, read by inih.  That library tells a handler the section, the name and the value, but (as Debian builds it) not
 * the line; nor does it tell of a section without keys.  So lines reach it through a reader of ours (next_line), which counts them,
 * looks at section headers, and refuses lines that inih would cut.
 *
 * Alternative: TOML.  No parser of it is in Debian 12 as a C library, and nothing here is nested deeper than a named section.
 */
#include "config.h"

#include <arpa/inet.h>
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "listen.h"
#include "serve.h"
#include "uffd_pager.h"

enum type {
	T_STRING,
	T_GROUP,   /* of the system, a name or a number */
	T_USERS,   /* the same, with commas between */
	T_ADDRESS, /* config_address() */
	T_BYTES,   /* with K, M, G, T */
	T_SIZE,	   /* the same; or N% */
	T_COUNT,
	T_MODE, /* octal */
	T_TIME, /* milliseconds; ms, s, m, h */
	T_BOOL,
	T_CHOICE, /* a word of `choices` */
};

struct key {
	const char *section, *name;
	enum type type;
	const char *initial;   /* as it is written in a file; "": none */
	const char *automatic; /* the word that stands for "none", if there is one */
	uint64_t min, max;
	const char *choices; /* "a|b|c" */
	bool reload;	     /* can be changed while it runs */
	const char *help;
};

static const struct key keys[CONFIG_ALL_KEYS] = {
	[KEY_RUN_DIR] = { "daemon", "run_dir", T_STRING, "auto", "auto", 0, 0, NULL, false,
			  "Where the sockets are; auto: $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR/uffd-pagerd, or /run/uffd-pagerd" },
	[KEY_STATE_DIR] = { "daemon", "state_dir", T_STRING, "auto", "auto", 0, 0, NULL, false,
			    "Where the swap file is; auto: $STATE_DIRECTORY, /var/lib/uffd-pagerd as root, or "
			    "$XDG_STATE_HOME/uffd-pagerd (~/.local/state)" },
	[KEY_SOCKET] = { "daemon", "socket", T_STRING, "auto", "auto", 0, 0, NULL, false,
			 "Where programs connect; auto: pager.sock in run_dir" },
	[KEY_SOCKET_MODE] = { "daemon", "socket_mode", T_MODE, "0660", NULL, 0, 0777, NULL, false,
			      "Permissions of that socket" },
	[KEY_SOCKET_GROUP] = { "daemon", "socket_group", T_GROUP, "none", "none", 0, 0, NULL, false,
			       "Its group, a name or a number; none: the daemon's" },
	[KEY_CONTROL] = { "daemon", "control", T_STRING, "auto", "auto", 0, 0, NULL, false,
			  "Where the command uffd-pager connects; auto: control.sock in run_dir" },
	[KEY_CONTROL_MODE] = { "daemon", "control_mode", T_MODE, "auto", "auto", 0, 0777, NULL,
			       false,
			       "Permissions of that socket; auto: 0600, or 0660 with control_group" },
	[KEY_CONTROL_GROUP] = { "daemon", "control_group", T_GROUP, "none", "none", 0, 0, NULL,
				false,
				"Members of this group may steer the daemon, beside root and the daemon's user" },
	[KEY_MEMORY] = { "daemon", "memory", T_SIZE, "auto", "auto", UP_MEMORY_LIMIT_MIN,
			 UINT64_C(8) << 40, NULL, true,
			 "The budget of all clients together; auto: a quarter of the memory of the machine, or of the memory cgroup" },
	[KEY_MEMORY_MAX] = { "daemon", "memory_max", T_SIZE, "auto", "auto", UP_MEMORY_LIMIT_MIN,
			     UINT64_C(8) << 40, NULL, false,
			     "What it may be raised to while the daemon runs; auto: three quarters of that memory" },
	[KEY_SWAP] = { "daemon", "swap", T_STRING, "auto", "auto", 0, 0, NULL, false,
		       "Swap file or block device, overwritten; auto: swap in state_dir" },
	[KEY_SWAP_SIZE] = { "daemon", "swap_size", T_BYTES, "auto", "auto", 1 << 20, UINT64_MAX,
			    NULL, false,
			    "Its size; auto: as much as the mapped regions need, or all of a device" },
	[KEY_SERVICE_THREADS] = { "daemon", "service_threads", T_COUNT, "auto", "auto", 1,
				  UP_SERVICE_THREADS_MAX, NULL, false,
				  "Threads that serve faults; auto: one a CPU, at most 4" },
	[KEY_COMPRESSION] = { "daemon", "compression", T_CHOICE, "none", NULL, 0, 0,
			      "none|lz4|zstd", false,
			      "Keep cold pages compressed in memory before they go to swap" },
	[KEY_COMPRESS_LIMIT] = { "daemon", "compress_limit", T_SIZE, "auto", "auto", 1, UINT64_MAX,
				 NULL, false,
				 "The most of the budget that compressed pages take; auto: two thirds" },
	[KEY_OVERCOMMIT] = { "daemon", "overcommit", T_BOOL, "no", NULL, 0, 0, NULL, false,
			     "Let clients map more than swap can hold; a fault that finds it full is then SIGBUS" },
	[KEY_FAULT_TIMEOUT] = { "daemon", "fault_timeout", T_TIME, "30s", NULL, 1, 3600000, NULL,
				false, "A fault that can not be served for this long is SIGBUS" },
	[KEY_DRAIN_TIMEOUT] = { "daemon", "drain_timeout", T_TIME, "30s", NULL, 0, 3600000, NULL,
				true, "How long clients have to leave once SIGTERM has come" },
	[KEY_GUARDIAN] = { "daemon", "guardian", T_BOOL, "yes", NULL, 0, 0, NULL, false,
			   "Have a process beside the daemon that starts it again, with all its clients, if it is killed" },
	[KEY_AWAY_TIMEOUT] = { "daemon", "away_timeout", T_TIME, "10s", NULL, 100, 3600000, NULL,
			       false,
			       "Once the daemon was killed, clients that nobody serves for this long get SIGBUS" },
	[KEY_HANG_TIMEOUT] = { "daemon", "hang_timeout", T_TIME, "1m", "off", 200, 3600000, NULL,
			       true,
			       "A daemon that has hung for this long is killed, and the next one serves its clients; off: never" },
	[KEY_LIMIT_CLIENTS] = { "limits", "clients", T_COUNT, "1024", NULL, 1, CLIENTS_MAX, NULL,
				true, "Clients at a time" },
	[KEY_LIMIT_USER] = { "limits", "clients_per_user", T_COUNT, "512", "none", 1, CLIENTS_MAX,
			     NULL, true, "Clients of one user" },
	[KEY_LIMIT_REGIONS] = { "limits", "regions", T_COUNT, "4096", NULL, 1, 1 << 20, NULL, true,
				"Regions of one client" },
	[KEY_LIMIT_FDS] = { "limits", "fds", T_COUNT, "4096", NULL, 1, 65536, NULL, true,
			    "File descriptors that the daemon holds for one client" },
	[KEY_LIMIT_INFLIGHT] = { "limits", "inflight", T_BYTES, "16M", NULL, 4096,
				 UINT64_C(1) << 40, NULL, true,
				 "Bytes that are read ahead for one client at a time; what its threads wait for comes in any case" },
	[KEY_LIMIT_FUSE] = { "limits", "fuse", T_BOOL, "no", NULL, 0, 0, NULL, true,
			     "Take files of file systems that a process answers for (FUSE): while it does not, other clients wait" },
	[KEY_LIMIT_MAPPED] = { "limits", "mapped", T_BYTES, "1T", "none", 1 << 20,
			       UINT64_C(1) << 47, NULL, true,
			       "What one client maps, touched or not" },
	[KEY_LIMIT_SWAP] = { "limits", "swap", T_SIZE, "75%", "none", 1 << 20, UINT64_MAX, NULL,
			     true,
			     "Swap that one client may be promised; percents are of all that can be promised" },
	[KEY_LIMIT_LIMIT] = { "limits", "client_limit", T_SIZE, "none", "none", 4096, UINT64_MAX,
			      NULL, true,
			      "The most memory that each client has; percents are of the budget" },
	[KEY_LIMIT_MINIMUM] = { "limits", "client_minimum", T_SIZE, "0", NULL, 0, UINT64_MAX, NULL,
				true,
				"Memory that is each client's whatever others do; percents are of the budget" },
	[KEY_METRICS_SOCKET] = { "metrics", "socket", T_STRING, "auto", "auto", 0, 0, NULL, false,
				 "Unix socket for HTTP; auto: http.sock in run_dir; none: no such socket" },
	[KEY_METRICS_MODE] = { "metrics", "mode", T_MODE, "0660", NULL, 0, 0777, NULL, false,
			       "Permissions of that socket" },
	[KEY_METRICS_GROUP] = { "metrics", "group", T_GROUP, "none", "none", 0, 0, NULL, false,
				"Its group, a name or a number; none: the daemon's" },
	[KEY_METRICS_LISTEN] = { "metrics", "listen", T_ADDRESS, "none", "none", 0, 0, NULL, false,
				 "The same over TCP: ADDRESS:PORT, or [ADDRESS]:PORT, of the loopback only" },
	[KEY_LOG_LEVEL] = { "log", "level", T_CHOICE, "info", NULL, 0, 0,
			    "error|warning|info|debug", true,
			    "The least important lines that are logged" },
	[KEY_LOG_TO] = { "log", "to", T_CHOICE, "auto", NULL, 0, 0, "auto|stderr|journal", false,
			 "auto: to the journal where standard error is the journal; journal: there in any case, and what it does not take to standard error" },
	[KEY_GROUP_LIMIT] = { "group", "limit", T_SIZE, "none", "none", 4096, UINT64_MAX, NULL,
			      true,
			      "The most memory that its clients have together; percents are of the budget" },
	[KEY_GROUP_MINIMUM] = { "group", "minimum", T_SIZE, "0", NULL, 0, UINT64_MAX, NULL, true,
				"Memory that is theirs whatever others do; percents are of the budget" },
	[KEY_GROUP_SWAP] = { "group", "swap", T_SIZE, "none", "none", 1 << 20, UINT64_MAX, NULL,
			     true,
			     "Swap that its clients may be promised together; percents are of all that can be promised" },
	[KEY_GROUP_CLIENT_LIMIT] = { "group", "client_limit", T_SIZE, "none", "none", 4096,
				     UINT64_MAX, NULL, true,
				     "As in [limits], for its clients; none: as there" },
	[KEY_GROUP_CLIENT_MINIMUM] = { "group", "client_minimum", T_SIZE, "none", "none", 1,
				       UINT64_MAX, NULL, true,
				       "As in [limits], for its clients; none: as there" },
	[KEY_GROUP_USERS] = { "group", "users", T_USERS, "none", "none", 0, 0, NULL, true,
			      "Users whose clients are in it: names or numbers, with commas between" },
	[KEY_LISTEN_TYPE] = { "listen", "type", T_CHOICE, "native", NULL, 0, 0,
			      "native|firecracker|criu|handoff|test", true,
			      "The protocol that is spoken there" },
	[KEY_LISTEN_PATH] = { "listen", "path", T_STRING, "none", "none", 0, 0, NULL, true,
			      "A further socket; relative to run_dir" },
	[KEY_LISTEN_SOURCE] = { "listen", "source", T_STRING, "none", "none", 0, 0, NULL, true,
				"Where its pages come from: a memory file, an image directory" },
	[KEY_LISTEN_MODE] = { "listen", "mode", T_MODE, "0660", NULL, 0, 0777, NULL, true,
			      "Permissions of that socket" },
	[KEY_LISTEN_GROUP] = { "listen", "group", T_STRING, "none", "none", 0, 0, NULL, true,
			       "The [group NAME] that its clients are in" },
};

static bool
is_named(unsigned key)
{
	return key >= CONFIG_KEYS;
}

const char *
config_section(unsigned key)
{
	return keys[key].section;
}

const char *
config_key_name(unsigned key)
{
	return keys[key].name;
}

const char *
config_key_help(unsigned key)
{
	return keys[key].help;
}

bool
config_reloadable(unsigned key)
{
	return keys[key].reload;
}

/* --memory of [daemon]; --limits-clients, --log-level, --group-limit of the others. */
const char *
config_flag_name(unsigned key)
{
	static char names[CONFIG_ALL_KEYS][40];
	char *const name = names[key];

	if (name[0] == '\0') {
		if (strcmp(keys[key].section, "daemon") == 0)
			snprintf(name, sizeof(names[0]), "%s", keys[key].name);
		else
			snprintf(name, sizeof(names[0]), "%s-%s", keys[key].section,
				 keys[key].name);
		for (char *p = name; *p != '\0'; p++)
			if (*p == '_')
				*p = '-';
	}
	return name;
}

const char *
config_flag_arg(unsigned key)
{
	static const char *const arg[] = {
		[T_STRING] = "TEXT", [T_GROUP] = "GROUP",
		[T_USERS] = "USERS", [T_ADDRESS] = "ADDRESS:PORT",
		[T_BYTES] = "BYTES", [T_SIZE] = "BYTES|N%",
		[T_COUNT] = "N",     [T_MODE] = "MODE",
		[T_TIME] = "TIME",   [T_BOOL] = "yes|no",
		[T_CHOICE] = "WORD",
	};
	static char named[CONFIG_ALL_KEYS][24];

	if (!is_named(key))
		return keys[key].type == T_CHOICE ? keys[key].choices : arg[keys[key].type];
	snprintf(named[key], sizeof(named[0]), "NAME=%s", arg[keys[key].type]);
	return named[key];
}

static char *
copy(const char *text)
{
	char *const s = strdup(text);

	if (s == NULL)
		abort();
	return s;
}

/* ---- one value ---- */

/* Digits, then what is left of the text.  -EINVAL without digits, -ERANGE. */
static int
digits(const char *text, int base, uint64_t *n, char **end)
{
	if (!isdigit((unsigned char)*text))
		return -EINVAL;
	errno = 0;
	*n = strtoull(text, end, base);
	return -errno;
}

static const char *
parse_size(const struct key *k, const char *text, struct config_value *v)
{
	static const char units[] = "KMGT";
	const char *unit;
	char *end;
	unsigned shift = 0;

	if (digits(text, 10, &v->n, &end) < 0)
		return "is not a size; say for example 512M or 4G";
	if (k->type == T_SIZE && strcmp(end, "%") == 0) {
		if (v->n > 100)
			return "is more than 100%";
		if (k->min > 0 && v->n == 0)
			return "is nothing";
		v->percent = true;
		return NULL;
	}
	if (*end != '\0') {
		unit = strchr(units, toupper((unsigned char)*end));
		if (unit == NULL || (strcmp(end + 1, "") != 0 && strcmp(end + 1, "B") != 0 &&
				     strcmp(end + 1, "iB") != 0))
			return k->type == T_SIZE ? "has a unit that is none of K, M, G, T or %"
						 : "has a unit that is none of K, M, G, T";
		shift = 10 * (unsigned)(unit - units + 1);
	}
	if (v->n > UINT64_MAX >> shift)
		return "is too large";
	v->n <<= shift;
	return NULL;
}

static const char *
parse_time(const char *text, struct config_value *v)
{
	static const struct {
		const char *unit;
		uint64_t ms;
	} units[] = { { "ms", 1 }, { "s", 1000 }, { "", 1000 }, { "m", 60000 }, { "h", 3600000 } };
	char *end;

	if (digits(text, 10, &v->n, &end) < 0)
		return "is not a time; say for example 500ms, 30s or 2m";
	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
		if (strcmp(end, units[i].unit) == 0) {
			if (v->n > UINT64_MAX / units[i].ms)
				return "is too large";
			v->n *= units[i].ms;
			return NULL;
		}
	return "has a unit that is none of ms, s, m or h";
}

static const char *
parse_bool(const char *text, struct config_value *v)
{
	static const char *const words[] = { "no", "yes", "off", "on", "false", "true", "0", "1" };

	for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (strcasecmp(text, words[i]) == 0) {
			v->n = i % 2;
			return NULL;
		}
	return "is neither yes nor no";
}

/* Whether `word` is one of "a|b|c", and its number. */
static bool
is_choice(const char *choices, const char *word, uint64_t *n)
{
	const size_t len = strlen(word);

	*n = 0;
	for (const char *p = choices;; p++, (*n)++) {
		const size_t l = strcspn(p, "|");

		if (l == len && memcmp(p, word, l) == 0)
			return true;
		p += l;
		if (*p == '\0')
			return false;
	}
}

const char *
config_address(const char *text, struct sockaddr_storage *ss, socklen_t *len)
{
	static const char wanted[] = "is not ADDRESS:PORT, with a number for an address",
			  outside[] =
				  "is not the loopback; put a proxy with authentication before it";
	struct sockaddr_in *const in = (struct sockaddr_in *)ss;
	struct sockaddr_in6 *const in6 = (struct sockaddr_in6 *)ss;
	const char *const colon = strrchr(text, ':');
	char address[64], *end;
	unsigned long port;

	if (colon == NULL || (size_t)(colon - text) >= sizeof(address) || colon[1] < '0' ||
	    colon[1] > '9')
		return wanted;
	port = strtoul(colon + 1, &end, 10);
	if (*end != '\0' || port > 65535)
		return wanted;
	memset(ss, 0, sizeof(*ss));
	memcpy(address, text, (size_t)(colon - text));
	address[colon - text] = '\0';
	if (address[0] == '[' && colon > text + 1 && colon[-1] == ']') {
		address[colon - text - 1] = '\0';
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons((uint16_t)port);
		*len = sizeof(*in6);
		if (inet_pton(AF_INET6, address + 1, &in6->sin6_addr) != 1)
			return wanted;
		return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr) ? NULL : outside;
	}
	in->sin_family = AF_INET;
	in->sin_port = htons((uint16_t)port);
	*len = sizeof(*in);
	if (inet_pton(AF_INET, strcmp(address, "localhost") == 0 ? "127.0.0.1" : address,
		      &in->sin_addr) != 1)
		return wanted;
	return ntohl(in->sin_addr.s_addr) >> 24 == 127 ? NULL : outside;
}

/* Here, and not when somebody connects: who they are may be far away, and would keep all others waiting. */
static const char *
parse_users(const char *text, struct config_value *v, char *why, size_t len)
{
	for (const char *p = text; *p != '\0'; p += *p == ',') {
		const size_t part = strcspn(p, ",");
		char name[64];
		uid_t *more;

		snprintf(name, sizeof(name), "%.*s", (int)part, p);
		p += part;
		/* Blanks around it. */
		char *const word = name + strspn(name, " \t");

		word[strcspn(word, " \t")] = '\0';
		more = realloc(v->uid, (v->n + 1) * sizeof(*more));
		if (more == NULL)
			abort();
		v->uid = more;
		if (user_by_name(word, &v->uid[v->n]) < 0) {
			snprintf(why, len, "has a user that there is not: '%s'", word);
			free(v->uid);
			*v = (struct config_value){ 0 };
			return why;
		}
		v->n++;
	}
	v->s = copy(text);
	return NULL;
}

static const char *
parse_group(const char *text, struct config_value *v)
{
	gid_t gid;

	if (group_by_name(text, &gid) < 0)
		return "is no group that there is";
	v->n = gid;
	v->s = copy(text);
	return NULL;
}

/* NULL, or what is wrong with the text: to be read behind the text itself. */
static const char *
parse(const struct key *k, const char *text, struct config_value *v)
{
	static __thread char range[120];
	struct sockaddr_storage ss;
	const char *wrong = NULL;
	socklen_t len;
	char *end;

	*v = (struct config_value){ 0 };
	if (k->automatic != NULL && strcmp(text, k->automatic) == 0)
		return NULL;
	if (*text == '\0')
		return "is empty";
	switch (k->type) {
	case T_ADDRESS:
		wrong = config_address(text, &ss, &len);
		if (wrong != NULL)
			return wrong;
		v->s = copy(text);
		return NULL;
	case T_STRING:
		v->s = copy(text);
		return NULL;
	case T_GROUP:
		return parse_group(text, v);
	case T_USERS:
		return parse_users(text, v, range, sizeof(range));
	case T_BYTES:
	case T_SIZE:
		wrong = parse_size(k, text, v);
		break;
	case T_COUNT:
		if (digits(text, 10, &v->n, &end) < 0 || *end != '\0')
			wrong = "is not a number";
		break;
	case T_MODE:
		if (digits(text, 8, &v->n, &end) < 0 || *end != '\0')
			wrong = "is not a mode; say for example 0660";
		break;
	case T_TIME:
		wrong = parse_time(text, v);
		break;
	case T_BOOL:
		return parse_bool(text, v);
	case T_CHOICE:
		if (is_choice(k->choices, text, &v->n)) {
			v->s = copy(text);
			return NULL;
		}
		snprintf(range, sizeof(range), "is none of %s", k->choices);
		return range;
	}
	if (wrong != NULL || v->percent)
		return wrong;
	if (v->n < k->min || v->n > k->max) {
		if (k->type == T_MODE)
			snprintf(range, sizeof(range), "is above 0777");
		else if (k->max == UINT64_MAX)
			snprintf(range, sizeof(range), "is below %" PRIu64, k->min);
		else
			snprintf(range, sizeof(range),
				 "is not between %" PRIu64 " and %" PRIu64 "%s", k->min, k->max,
				 k->type == T_TIME ? " ms" : "");
		return range;
	}
	return NULL;
}

const char *
config_text(unsigned key, const struct config_value *v, char *buf, size_t len)
{
	static const char units[] = "KMGT";
	const struct key *const k = &keys[key];
	uint64_t n = v->n;
	unsigned shift = 0;

	if (v->s != NULL)
		snprintf(buf, len, "%s", v->s);
	else if (k->automatic != NULL && n == 0 && !v->percent)
		snprintf(buf, len, "%s", k->automatic);
	else if (v->percent)
		snprintf(buf, len, "%" PRIu64 "%%", n);
	else if (k->type == T_SIZE || k->type == T_BYTES) {
		while (shift < 4 && n != 0 && n % 1024 == 0) {
			n /= 1024;
			shift++;
		}
		snprintf(buf, len, "%" PRIu64 "%.*s", n, shift != 0,
			 shift != 0 ? &units[shift - 1] : "");
	} else if (k->type == T_MODE)
		snprintf(buf, len, "%04" PRIo64, n);
	else if (k->type == T_TIME)
		snprintf(buf, len, "%" PRIu64 "%s", n % 1000 == 0 ? n / 1000 : n,
			 n % 1000 == 0 ? "s" : "ms");
	else if (k->type == T_BOOL)
		snprintf(buf, len, "%s", n != 0 ? "yes" : "no");
	else
		snprintf(buf, len, "%" PRIu64, n);
	return buf;
}

bool
config_same(unsigned key, const struct config_value *a, const struct config_value *b)
{
	(void)key;
	if (a->s != NULL && b->s != NULL)
		return strcmp(a->s, b->s) == 0;
	return a->s == b->s && a->n == b->n && a->percent == b->percent;
}

uint64_t
config_bytes(const struct config_value *v, uint64_t whole)
{
	if (!v->percent)
		return v->n;
	return whole / 100 * v->n + whole % 100 * v->n / 100;
}

/* ---- all of them ---- */

static void
set_initial(const struct key *k, struct config_value *v)
{
	const char *const wrong = parse(k, k->initial, v);

	assert(wrong == NULL);
	(void)wrong;
}

void
config_init(struct config *c)
{
	*c = (struct config){ .named = NULL };
	for (unsigned i = 0; i < CONFIG_KEYS; i++)
		set_initial(&keys[i], &c->v[i]);
}

static void
value_free(const struct config_value *v)
{
	free(v->s);
	free(v->uid);
}

void
config_finish(struct config *c)
{
	for (unsigned i = 0; i < CONFIG_KEYS; i++)
		value_free(&c->v[i]);
	while (c->named != NULL) {
		struct config_named *const n = c->named;

		c->named = n->next;
		for (unsigned i = 0; i < CONFIG_ALL_KEYS - CONFIG_KEYS; i++)
			value_free(&n->v[i]);
		free(n);
	}
	*c = (struct config){ 0 };
}

const struct config_named *
config_find(const struct config *c, const char *kind, const char *name)
{
	for (const struct config_named *n = c->named; n != NULL; n = n->next)
		if (strcmp(n->kind, kind) == 0 && strcmp(n->name, name) == 0)
			return n;
	return NULL;
}

static bool
is_name(const char *name)
{
	const size_t len = strlen(name);

	if (len == 0 || len >= sizeof(((struct config_named *)0)->name))
		return false;
	return strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") ==
	       len;
}

/* The one of that name, made if there is none; with its defaults. */
static struct config_named *
named_get(struct config *c, const char *kind, const char *name)
{
	struct config_named **p = &c->named, *n;

	for (; *p != NULL; p = &(*p)->next)
		if (strcmp((*p)->kind, kind) == 0 && strcmp((*p)->name, name) == 0)
			return *p;
	n = calloc(1, sizeof(*n));
	if (n == NULL)
		abort();
	snprintf(n->kind, sizeof(n->kind), "%s", kind);
	snprintf(n->name, sizeof(n->name), "%s", name);
	for (unsigned i = CONFIG_KEYS; i < CONFIG_ALL_KEYS; i++)
		set_initial(&keys[i], &n->v[i - CONFIG_KEYS]);
	return *p = n;
}

static int
set(struct config *c, unsigned key, const char *name, const char *text, unsigned line, char *why,
    size_t whylen)
{
	struct config_value *const slot =
		is_named(key) ? &named_get(c, keys[key].section, name)->v[key - CONFIG_KEYS]
			      : &c->v[key];
	struct config_value v;
	const char *const wrong = parse(&keys[key], text, &v);

	if (wrong != NULL) {
		snprintf(why, whylen, "%s: '%.80s' %s", keys[key].name, text, wrong);
		return -EINVAL;
	}
	value_free(slot);
	*slot = v;
	slot->line = line;
	return 0;
}

int
config_flag(struct config *c, unsigned key, const char *text, char *why, size_t whylen)
{
	char name[sizeof(((struct config_named *)0)->name)];
	const char *eq;

	if (!is_named(key))
		return set(c, key, "", text, 0, why, whylen);
	eq = strchr(text, '=');
	if (eq == NULL || (size_t)(eq - text) >= sizeof(name)) {
		snprintf(why, whylen, "%s: NAME=VALUE is wanted, not '%.80s'",
			 config_flag_name(key), text);
		return -EINVAL;
	}
	memcpy(name, text, (size_t)(eq - text));
	name[eq - text] = '\0';
	if (!is_name(name)) {
		snprintf(why, whylen, "%s: '%s' is no name", config_flag_name(key), name);
		return -EINVAL;
	}
	return set(c, key, name, eq + 1, 0, why, whylen);
}

void
config_print(const struct config *c, FILE *out)
{
	const char *section = "";
	char buf[512];

	for (unsigned i = 0; i < CONFIG_KEYS; i++) {
		if (strcmp(section, keys[i].section) != 0) {
			fprintf(out, "%s[%s]\n", i == 0 ? "" : "\n", keys[i].section);
			section = keys[i].section;
		}
		fprintf(out, "%s = %s\n", keys[i].name, config_text(i, &c->v[i], buf, sizeof(buf)));
	}
	for (const struct config_named *n = c->named; n != NULL; n = n->next) {
		fprintf(out, "\n[%s %s]\n", n->kind, n->name);
		for (unsigned i = CONFIG_KEYS; i < CONFIG_ALL_KEYS; i++)
			if (strcmp(keys[i].section, n->kind) == 0)
				fprintf(out, "%s = %s\n", keys[i].name,
					config_text(i, config_named_value(n, i), buf, sizeof(buf)));
	}
}

static bool
wants_source(const char *type)
{
	return strcmp(type, "firecracker") == 0 || strcmp(type, "criu") == 0;
}

void
config_complain(FILE *err, const char *where, unsigned line, const char *fmt, ...)
{
	va_list ap;

	if (line != 0)
		fprintf(err, "%s:%u: ", where, line);
	else
		fprintf(err, "%s: ", where);
	va_start(ap, fmt);
	vfprintf(err, fmt, ap);
	va_end(ap);
	fputc('\n', err);
}

/* The number of errors. */
static int
check_listen(const struct config *c, const struct config_named *n, const char *where, FILE *err)
{
	const struct config_value *const group = config_named_value(n, KEY_LISTEN_GROUP),
					 *const source = config_named_value(n, KEY_LISTEN_SOURCE),
					 *const type = config_named_value(n, KEY_LISTEN_TYPE);
	static const char *const own[] = { "native", "control", "http" };
	int errors = 0;

	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
		if (strcmp(n->name, own[i]) == 0) {
			config_complain(err, where, n->line,
					"[listen %s]: that is the name of a socket of [%s]",
					n->name, i < 2 ? "daemon" : "metrics");
			errors++;
		}
	if (config_named_value(n, KEY_LISTEN_PATH)->s == NULL) {
		config_complain(err, where, n->line, "[listen %s] has no path", n->name);
		errors++;
	}
	if (wants_source(type->s) && source->s == NULL) {
		config_complain(err, where, n->line, "[listen %s] has no source", n->name);
		errors++;
	} else if (wants_source(type->s) && access(source->s, F_OK) < 0) {
		/* It may come yet, and others are not to wait for it. */
		config_complain(err, where, source->line, "warning: [listen %s]: source: %s: %s",
				n->name, source->s, strerror(errno));
	}
	if (group->s != NULL && config_find(c, "group", group->s) == NULL) {
		config_complain(err, where, group->line, "[listen %s]: there is no [group %s]",
				n->name, group->s);
		errors++;
	}
	return errors;
}

int
config_check(const struct config *c, const char *where, FILE *err)
{
	const struct config_value *const memory = &c->v[KEY_MEMORY], *const most =
									     &c->v[KEY_MEMORY_MAX];
	int errors = 0;

	if (most->n != 0 && memory->percent == most->percent && memory->n > most->n) {
		config_complain(err, where, memory->line, "memory is above memory_max");
		errors++;
	}
	for (const struct config_named *n = c->named; n != NULL; n = n->next) {
		if (strcmp(n->kind, "listen") == 0) {
			errors += check_listen(c, n, where, err);
		}
	}
	return errors;
}

/* ---- the file ---- */

struct reading {
	struct config *c;
	FILE *in, *err;
	const char *path;
	unsigned line; /* that the handler is called for */
	int errors;
	bool skip;		    /* in a section that is none: its keys are not worth a word */
	char kind[16], name[32];    /* of the section */
	unsigned seen[CONFIG_KEYS]; /* the line that set it */
};

__attribute__((format(printf, 2, 3))) static void
complain(struct reading *r, const char *fmt, ...)
{
	char text[400];
	va_list ap;

	r->errors++;
	if (r->errors > 20)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	/* What is quoted may be anything, and goes to a terminal. */
	for (char *p = text; *p != '\0'; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = '?';
	fprintf(r->err, "%s:%u: %s\n", r->path, r->line, text);
}

/* How many letters have to be changed, added or left out. */
static unsigned
distance(const char *a, const char *b)
{
	unsigned row[64];
	const size_t lb = strlen(b);

	if (lb >= 63)
		return 99;
	for (size_t j = 0; j <= lb; j++)
		row[j] = (unsigned)j;
	for (size_t i = 0; a[i] != '\0'; i++) {
		unsigned diagonal = row[0];

		row[0] = (unsigned)i + 1;
		for (size_t j = 0; j < lb; j++) {
			const unsigned up = row[j + 1];
			unsigned best = diagonal + (a[i] != b[j]);

			best = up + 1 < best ? up + 1 : best;
			best = row[j] + 1 < best ? row[j] + 1 : best;
			diagonal = up;
			row[j + 1] = best;
		}
	}
	return row[lb];
}

static void
unknown_key(struct reading *r, const char *name)
{
	const struct key *near = NULL;
	unsigned best = 4;

	/* The same name elsewhere says more than one that looks alike here. */
	for (unsigned i = 0; i < CONFIG_ALL_KEYS; i++)
		if (strcmp(keys[i].name, name) == 0) {
			complain(r, "there is no '%s' in [%s]; it belongs into [%s%s]", name,
				 r->kind, keys[i].section, is_named(i) ? " NAME" : "");
			return;
		}
	for (unsigned i = 0; i < CONFIG_ALL_KEYS; i++) {
		const unsigned d =
			distance(name, keys[i].name) + (strcmp(keys[i].section, r->kind) != 0);

		if (d < best) {
			best = d;
			near = &keys[i];
		}
	}
	if (near == NULL)
		complain(r, "there is no '%.60s' in [%s]", name, r->kind);
	else if (strcmp(near->section, r->kind) == 0)
		complain(r, "there is no '%.60s' in [%s]; did you mean '%s'?", name, r->kind,
			 near->name);
	else
		complain(r, "there is no '%.60s' in [%s]; did you mean '%s' in [%s]?", name,
			 r->kind, near->name, near->section);
}

static int
on_key(void *user, const char *section, const char *name, const char *value)
{
	struct reading *const r = user;
	char why[240];
	unsigned i;

	if (r->kind[0] == '\0' && !r->skip && section[0] == '\0') {
		complain(r, "'%.60s' stands before the first section", name);
		return 1;
	}
	if (r->skip)
		return 1;
	for (i = 0; i < CONFIG_ALL_KEYS; i++)
		if (strcmp(keys[i].section, r->kind) == 0 && strcmp(keys[i].name, name) == 0)
			break;
	if (i == CONFIG_ALL_KEYS) {
		unknown_key(r, name);
		return 1;
	}
	if (!is_named(i)) {
		if (r->seen[i] != 0) {
			complain(r, "%s: set in line %u already", name, r->seen[i]);
			return 1;
		}
		r->seen[i] = r->line;
	}
	if (set(r->c, i, r->name, value, r->line, why, sizeof(why)) < 0)
		complain(r, "%s", why);
	return 1;
}

/* "[kind]" or "[kind NAME]", without the brackets. */
static void
enter_section(struct reading *r, char *text)
{
	static const char *const sections[] = { "daemon", "limits", "metrics",
						"log",	  "group",  "listen" };
	const char *near = NULL;
	unsigned best = 3, i;
	bool has_name;
	char *name = text + strcspn(text, " \t");

	if (*name != '\0')
		*name++ = '\0';
	name += strspn(name, " \t");
	r->skip = true;
	for (i = 0; i < sizeof(sections) / sizeof(sections[0]); i++) {
		const unsigned d = distance(text, sections[i]);

		if (d == 0)
			break;
		if (d < best) {
			best = d;
			near = sections[i];
		}
	}
	if (i == sizeof(sections) / sizeof(sections[0])) {
		if (near != NULL)
			complain(r, "there is no section [%.40s]; did you mean [%s]?", text, near);
		else
			complain(r, "there is no section [%.40s]", text);
		return;
	}
	has_name = strcmp(text, "group") == 0 || strcmp(text, "listen") == 0;
	if (has_name && !is_name(name)) {
		complain(
			r,
			"[%s NAME]: a name of at most 31 letters, digits, '-', '_' and '.' is wanted",
			text);
		return;
	}
	if (!has_name && *name != '\0') {
		complain(r, "[%s] has no name", text);
		return;
	}
	r->skip = false;
	snprintf(r->kind, sizeof(r->kind), "%s", sections[i]);
	snprintf(r->name, sizeof(r->name), "%s", name);
	if (has_name) {
		struct config_named *const n = named_get(r->c, r->kind, r->name);

		n->line = n->line != 0 ? n->line : r->line;
	}
}

/* For inih: the next line.  What it could not read or would read as something else, we complain of, and show it a comment. */
static char *
next_line(char *buf, int size, void *stream)
{
	struct reading *const r = stream;
	char *start, *end;

	if (fgets(buf, size, r->in) == NULL)
		return NULL;
	r->line++;
	if (strlen(buf) + 1 < (size_t)size && strchr(buf, '\n') == NULL && !feof(r->in)) {
		complain(r, "there is a zero byte in the line");
		return strcpy(buf, "#\n");
	}
	if (strchr(buf, '\n') == NULL && !feof(r->in)) {
		complain(r, "the line is longer than %d characters", size - 2);
		for (int ch = 0; ch != '\n' && ch != EOF;)
			ch = fgetc(r->in);
		return strcpy(buf, "#\n");
	}
	for (start = buf; isspace((unsigned char)*start); start++)
		continue;
	if (r->line == 1 && strncmp(start, "\xef\xbb\xbf", 3) == 0)
		start += 3;
	/* To the margin: an indented line would continue the one before. */
	memmove(buf, start, strlen(start) + 1);
	if (buf[0] == '[') {
		end = strchr(buf, ']');
		if (end == NULL || (end[1] != '\0' && !isspace((unsigned char)end[1]))) {
			complain(r, "the section has no end: ']' is missing");
			r->skip = true;
		} else {
			char text[64];

			snprintf(text, sizeof(text), "%.*s", (int)(end - buf - 1), buf + 1);
			enter_section(r, text);
		}
		return strcpy(buf, "#\n");
	}
	if (buf[0] != '\0' && buf[0] != '#' && buf[0] != ';' && strpbrk(buf, "=:") == NULL) {
		buf[strcspn(buf, "\r\n")] = '\0';
		complain(r, "neither a section, nor KEY = VALUE: '%.60s'", buf);
		return strcpy(buf, "#\n");
	}
	return buf[0] == '\0' ? strcpy(buf, "\n") : buf;
}

int
config_read(struct config *c, const char *path, FILE *err)
{
	struct reading r = { .c = c, .err = err, .path = path };
	int n;

	r.in = fopen(path, "re");
	if (r.in == NULL) {
		n = -errno;
		fprintf(err, "%s: %s\n", path, strerror(errno));
		return n;
	}
	/* The sections are ours (enter_section): all keys reach the handler with none. */
	n = ini_parse_stream(next_line, &r, on_key, &r);
	if (ferror(r.in)) {
		complain(&r, "%s", strerror(errno == 0 ? EIO : errno));
	} else if (n > 0 && r.errors == 0) {
		r.line = (unsigned)n;
		complain(&r, "not understood");
	} else if (n < 0 && r.errors == 0)
		complain(&r, "no memory to read it");
	if (r.errors > 20)
		fprintf(err, "%s: and %d more errors\n", path, r.errors - 20);
	fclose(r.in);
	return r.errors;
}
