/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * guardian.h (private): the process that outlives the daemon.
 *
 *	guardian ---fork, exec---> daemon                 serves; tells which descriptors a successor needs: kept_keep()
 *	   |                          | killed: SIGKILL, a crash, the kernel's out-of-memory killer, an upgrade
 *	   +------fork, exec-------> the next one         is given all of them: kept_take(); clients go on
 *	   |                          | exits
 *	   +--- exits as it did
 *
 * It does nothing else: one thread, no library but libc, and nothing in memory that a client can have an influence on but names.  What clients
 * watch is its pidfd.  Should it be killed itself, or the daemon be away for longer than `away_timeout`, all descriptors go with it, and
 * clients are told by that: what they miss is SIGBUS.  The daemon does not outlive it.
 *
 * A daemon that hangs (pulse.h) is killed, and that is all: the next one goes on.  systemd hears of the guardian (WATCHDOG=1) as long as it looks after a daemon.
 *
 * SIGTERM, SIGINT and SIGHUP are handed on; a daemon that takes leave of its clients, and is killed over it, has a successor that goes on with that.  SIGUSR2 is an upgrade, to the program that lies at the path of this one now:
 *
 *	a process of it says that it can take over (candidate.h)? --no--> that is logged, and all is as it was
 *	   | yes
 *	the daemon is killed, the new program started --ends before it serves--> the last one is started again
 *	   | serves
 *	it is the one that is started from now on
 *
 * A program is started by a descriptor of its file: what somebody has put at its path and not asked for is not started after a crash.
 */
#ifndef UP_DAEMON_GUARDIAN_H
#define UP_DAEMON_GUARDIAN_H

#include <stdbool.h>
#include <stdint.h>

#include "store.h"

/*
 * In the process that was started: become the guardian, and return only in a daemon.  away_ms: how long there may be none; drains: one that is to end, and is killed, has a
 * successor, which asks kept_ending().  -1: there can be none.
 */
int guardian_run(char **argv, uint64_t away_ms, bool drains);

/* --- in a daemon --- */

/* First: hear what is kept.  False, as kept_any() later: there is no guardian, and the rest of this must not be called. */
bool kept_open(void);
bool kept_any(void);
/* What a predecessor had under that name, and from now on the caller's; -1: nothing. */
int kept_take(void *unused, const char *name);
/* Some name of those that nobody has taken yet, which begins and ends so.  False: there is none. */
bool kept_some(const char *begin, const char *end, char name[STORE_NAME_MAX]);
/* All that nobody has taken is not kept any more. */
void kept_settle(void);
/* The same, and clients are served from now on: away_timeout begins anew with the next death. */
void kept_serves(void);
/*
 * To be said about four times in hang_ms, ms: all threads that clients wait for turn, or one of them has not answered (silent, "" if there is none).  Without the
 * former for that long the daemon is killed, and the next one serves.  0: nothing is expected from here on.  Any thread.
 */
void kept_lives(uint64_t hang_ms, const char *silent);
/*
 * Ask for an upgrade.  Either this process is killed for it, or when kept_socket() is readable kept_refused() says, once, why not.  It may say that without having
 * been asked: somebody else has asked the guardian, or has asked the predecessor, and what was to be the next did not come to serve.
 */
void kept_upgrade(void);
int kept_socket(void);
bool kept_refused(char why[STORE_NAME_MAX]);
/* The guardian's. */
int kept_pidfd(void);
/* A predecessor had been told to end: when, CLOCK_MONOTONIC in ns.  0: none had. */
uint64_t kept_ending(void);
/* How many daemons it has had before this one. */
unsigned kept_before(void);
/* For store_create(). */
const struct store_keeper *kept_keeper(void);

#endif
