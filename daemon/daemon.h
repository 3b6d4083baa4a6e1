/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * daemon.h (private): what the parts of uffd-pagerd share.
 *
 *	starting --all sockets are there--> SERVING --`drain`, SIGTERM--> DRAINING --last client left, or drain_timeout after SIGTERM--> ENDING --> gone
 *	                                       ^                             |
 *	                                       +------ `drain --cancel` -----+
 *
 * DRAINING refuses new clients, asks those there are to leave, and serves them as before: until end_at, if there was a SIGTERM, which can not be taken back; otherwise
 * however long.  ENDING takes leave of those that are left.  A second SIGTERM ends it on the spot.
 *
 * All of it belongs to the loop's thread.
 */
#ifndef UP_DAEMON_DAEMON_H
#define UP_DAEMON_DAEMON_H

#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>
#include <uv.h>

#include "config.h"
#include "session.h"
#include "uffd_pager.h"

enum daemon_state {
	STATE_SERVING,
	STATE_DRAINING,
	STATE_ENDING,
};

struct daemon {
	uv_loop_t loop;
	struct config cfg;     /* in force */
	struct up_runtime *rt; /* NULL only before it is created */
	struct store *
		store; /* all that it knows lies in there, for a successor; NULL: it ends with us */
	enum daemon_state state;
	uint64_t
		end_at; /* CLOCK_MONOTONIC, ns: it ends then at the latest; 0: nobody has told it to */
	uint64_t since;	 /* CLOCK_MONOTONIC, ns */
	uint64_t budget; /* bytes: up_stats.limit */
	char run_dir[PATH_MAX], state_dir[PATH_MAX], swap[PATH_MAX];
};

/* Refuse new clients, and end once the last has left; false: serve again.  -EBUSY: it is to end in any case. */
int daemon_drain(struct daemon *d, bool on);
/* The registry's word that a client has left. */
void daemon_client_left(struct daemon *d);

/*
 * Doors of the protocols.  Each takes a connection over, `fd` included, whatever becomes of it; a connection that is to be refused is
 * told why in the protocol's own words.  They are weak: one that is not built in is NULL, and its listeners are refused at start.
 */
struct listener;
struct peer;
typedef void accept_fn(struct daemon *d, const struct listener *l, int fd, const struct peer *peer);

/* One of those words, to who has just come; the descriptor is used up. */
typedef void refuse_fn(int fd, int status, const char *why);

accept_fn native_accept __attribute__((weak));
refuse_fn native_refuse __attribute__((weak));
/*
 * The runtime, with what the last daemon has left, and its clients.  0 or -errno and a log line.  If what it has left can not be taken over, this process ends
 * on the spot.
 */
int native_create(struct daemon *d, const struct up_config *uc) __attribute__((weak));
/* Before the first client that is the runtime's: 0 or a negative errno.  More than once does no harm. */
int native_start(struct daemon *d);
/* Forked children of clients, those included whose client has gone: they have no sessions. */
unsigned native_children(struct daemon *d) __attribute__((weak));
/*
 * Limits and minima of groups are to be as the configuration and the budget have them now; what can not be is in the log.  anew: and not as native_group_limit()
 * has set them since.
 */
void native_quotas(struct daemon *d, bool anew) __attribute__((weak));
/* Until the configuration is read again; LIMIT_KEEP: as it is, and *most, *least are what they were.  0, -ESRCH: no such group; as serve_quota(). */
int native_group_limit(struct daemon *d, const char *group, uint64_t *most, uint64_t *least)
	__attribute__((weak));
/* What serve_quota() says, in words. */
const char *native_quota_refused(int r) __attribute__((weak));
/* What is in force for a group, and why that is not what is configured; "": it is. */
struct serve_group;
void native_group(struct daemon *d, const char *group, struct serve_group *is, const char **why)
	__attribute__((weak));
/* What a client in that group may have beside regions, as configured.  The loop's thread. */
struct serve_limits;
void native_limits(const char *group, struct serve_limits *l);
/* Once a second: whether they take more than they have. */
void native_audit(struct daemon *d) __attribute__((weak));
accept_fn firecracker_accept __attribute__((weak));
accept_fn criu_accept __attribute__((weak));
accept_fn handoff_accept __attribute__((weak));
/*
 * Memory of such a client that the last daemon has served and the runtime serves on (lib/guest.h): a session for it.  0 or a negative errno, -ESRCH: its process is gone.
 */
struct session;
typedef int guest_fn(struct daemon *d, uint64_t guest, const struct session *who);
guest_fn firecracker_returned __attribute__((weak));
guest_fn handoff_returned __attribute__((weak));
accept_fn test_accept __attribute__((weak)); /* tests/daemon/puppet.c */

/* `uffd-pagerd firecracker SOCK MEMFILE`: argv[0] is "firecracker".  The exit status. */
int firecracker_main(int argc, char **argv) __attribute__((weak));
/* `uffd-pagerd criu --images-dir IMG --work-dir WORK`, the same. */
int criu_main(int argc, char **argv) __attribute__((weak));

uint64_t monotonic_ns(void);

#endif
