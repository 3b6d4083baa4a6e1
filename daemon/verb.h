/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * verb.h (private): `uffd-pagerd firecracker ...`, `uffd-pagerd criu ...`: one protocol, one socket, and nothing else: no budget, no swap.
 *
 * A loop of its own.  It ends at SIGTERM, SIGINT or SIGHUP, when its clients have; with `once` when the first one has.
 */
#ifndef UP_DAEMON_VERB_H
#define UP_DAEMON_VERB_H

#include <stdbool.h>
#include <sys/types.h>
#include <uv.h>

#include "fill.h"
#include "session.h"

#define VERB_DRAIN_MS \
	5000u /* that pages which nobody has asked for are still filled at the end, by default */

#define VERB_AWAY_MS 10000u /* as away_timeout of a whole daemon */

struct verb {
	const char *socket_path;
	const char *what; /* that is served: a word for the log */
	struct logger log;
	unsigned drain_ms;
	bool once; /* one client, and no other */
	/* A connection: 0, and it is a session's, which calls verb_gone() at its end; otherwise -errno. */
	int (*open)(struct verb *v, int fd);
	/* firecracker_end(), criu_end() */
	void (*end)(struct session *s, enum fill_end how, unsigned ms);
	/* Of a session, with the verb as ctx: it calls verb_gone(), or is that. */
	void (*gone)(void *ctx, struct session *s);

	/* verb.c's own: fd is -1, and the rest zero. */
	uv_loop_t loop;
	uv_poll_t listener;
	uv_signal_t term, intr, hup;
	int fd;
	dev_t dev; /* of the socket's file, so that only ours is removed */
	ino_t ino;
	unsigned clients;
	bool ending, full;
};

/*
 * Over the death of this process: heirs.h, in a program that has a guardian; otherwise NULL, and what clients miss ends with it.
 */
struct verb_heirs {
	void (*begin)(void);
	unsigned (*come)(uv_loop_t *loop, void (*gone)(void *ctx, struct session *s), void *ctx);
	const struct store_keeper *(*keeper)(uint64_t *holder);
	void (*serves)(void);
	int (*take)(void *unused, const char *name);
	int (*connection)(const char *path);
};
extern const struct verb_heirs *verb_heirs;

/* For a new session. */
const struct store_keeper *verb_keeper(uint64_t *holder);

/* 0, or -errno, and a log line. */
int verb_run(struct verb *v);

/* A session has ended; ctx: the verb. */
void verb_gone(void *ctx, struct session *s);

/* For the log: standard error. */
void verb_to_stderr(void *ctx, enum up_log_level level, const char *line);

/* A number of seconds, `max` at most.  False: it is none. */
bool verb_seconds(const char *text, unsigned max, unsigned *value);

#endif
