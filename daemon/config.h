/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * config.h (private): what uffd-pagerd is told to do.
 *
 * One table of keys (config.c) is the file, the flags, --help and --print-config.  Values come in three
 * layers, the later over the earlier:
 *
 *	defaults in the table  <  the file  <  flags on the command line
 *
 * A reload builds all three anew beside what is in force; config_differs() tells key by key what to do.
 */
#ifndef UP_DAEMON_CONFIG_H
#define UP_DAEMON_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/types.h>

#ifndef CONFIG_FILE /* meson says where the system has its files */
#define CONFIG_FILE "/etc/uffd-pagerd.conf"
#endif

enum config_key {
	/* [daemon] */
	KEY_RUN_DIR,
	KEY_STATE_DIR,
	KEY_SOCKET,
	KEY_SOCKET_MODE,
	KEY_SOCKET_GROUP,
	KEY_CONTROL,
	KEY_CONTROL_MODE,
	KEY_CONTROL_GROUP,
	KEY_MEMORY,
	KEY_MEMORY_MAX,
	KEY_SWAP,
	KEY_SWAP_SIZE,
	KEY_SERVICE_THREADS,
	KEY_COMPRESSION,
	KEY_COMPRESS_LIMIT,
	KEY_OVERCOMMIT,
	KEY_FAULT_TIMEOUT,
	KEY_DRAIN_TIMEOUT,
	KEY_GUARDIAN,
	KEY_AWAY_TIMEOUT,
	KEY_HANG_TIMEOUT,
	/* [limits] */
	KEY_LIMIT_CLIENTS,
	KEY_LIMIT_USER,
	KEY_LIMIT_REGIONS,
	KEY_LIMIT_FDS,
	KEY_LIMIT_INFLIGHT,
	KEY_LIMIT_FUSE,
	KEY_LIMIT_MAPPED,
	KEY_LIMIT_SWAP,
	KEY_LIMIT_LIMIT,
	KEY_LIMIT_MINIMUM,
	/* [metrics] */
	KEY_METRICS_SOCKET,
	KEY_METRICS_MODE,
	KEY_METRICS_GROUP,
	KEY_METRICS_LISTEN,
	/* [log] */
	KEY_LOG_LEVEL,
	KEY_LOG_TO,
	CONFIG_KEYS,
	/* [group NAME] */
	KEY_GROUP_LIMIT = CONFIG_KEYS,
	KEY_GROUP_MINIMUM,
	KEY_GROUP_SWAP,
	KEY_GROUP_CLIENT_LIMIT,
	KEY_GROUP_CLIENT_MINIMUM,
	KEY_GROUP_USERS,
	/* [listen NAME] */
	KEY_LISTEN_TYPE,
	KEY_LISTEN_PATH,
	KEY_LISTEN_SOURCE,
	KEY_LISTEN_MODE,
	KEY_LISTEN_GROUP,
	CONFIG_ALL_KEYS
};

/* What a key says: a number, or a string.  Strings and users are owned. */
struct config_value {
	uint64_t n;    /* of a group of the system: its gid; of users: how many */
	char *s;       /* strings and choices; NULL: none */
	uid_t *uid;    /* users, looked up when they were read */
	bool percent;  /* n is hundredths of something, see config_bytes() */
	unsigned line; /* of the file that it is from; 0: of none */
};

/* One [group NAME] or [listen NAME]. */
struct config_named {
	struct config_named *next;
	char kind[8];
	char name[32];
	unsigned line; /* where it begins; 0: it is of flags only */
	struct config_value v[CONFIG_ALL_KEYS - CONFIG_KEYS];
};

struct config {
	struct config_value v[CONFIG_KEYS];
	struct config_named *named; /* in the order of the file */
};

/* Defaults.  Abort without memory: a daemon that can not even start. */
void config_init(struct config *c);
void config_finish(struct config *c);

/*
 * Read an INI file over what *c holds; `err` gets a line an error, as FILE:LINE: what is wrong.  The number of errors; -errno if it
 * can not be read, which `err` says as well.
 */
int config_read(struct config *c, const char *path, FILE *err);

/* One flag: `key` is a KEY_*, the text what followed it.  0, or -EINVAL and a message in why. */
int config_flag(struct config *c, unsigned key, const char *text, char *why, size_t whylen);

/*
 * What no key by itself shows: and no machine has to be looked at for.  The number of errors, told to `err` with `where`, the file, and the line; what need not be
 * an error is told there as a warning, and not counted.
 */
int config_check(const struct config *c, const char *where, FILE *err);
/* One of those, of a line or of none (0). */
void config_complain(FILE *err, const char *where, unsigned line, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/* ADDRESS:PORT or [ADDRESS]:PORT of the loopback.  NULL, or what is wrong with it: to be read behind the text. */
const char *config_address(const char *text, struct sockaddr_storage *ss, socklen_t *len);

/* Flags for argp: their number is CONFIG_ALL_KEYS; their keys begin at CONFIG_FLAG. */
#define CONFIG_FLAG 1000
const char *config_flag_name(unsigned key);
const char *config_flag_arg(unsigned key);
const char *config_key_help(unsigned key);

const char *config_section(unsigned key);
const char *config_key_name(unsigned key);
bool config_reloadable(unsigned key);

/* All of it, as a file that means the same. */
void config_print(const struct config *c, FILE *out);

/* The value of a key in words; of a bounded buffer. */
const char *config_text(unsigned key, const struct config_value *v, char *buf, size_t len);

static inline uint64_t
config_n(const struct config *c, enum config_key key)
{
	return c->v[key].n;
}

/* NULL: not set, which means what the table says about it. */
static inline const char *
config_s(const struct config *c, enum config_key key)
{
	return c->v[key].s;
}

/* Bytes; percents are of `whole`. */
uint64_t config_bytes(const struct config_value *v, uint64_t whole);

bool config_same(unsigned key, const struct config_value *a, const struct config_value *b);

static inline const struct config_value *
config_named_value(const struct config_named *n, enum config_key key)
{
	return &n->v[key - CONFIG_KEYS];
}

/* NULL: there is none of that name. */
const struct config_named *config_find(const struct config *c, const char *kind, const char *name);

#endif
