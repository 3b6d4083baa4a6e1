/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * session.h (private): a client of uffd-pagerd, whatever protocol it speaks.
 *
 *	main.c      the loop, signals, sockets; accepts, checks who it is, and hands the connection to
 *	native.c    programs that link the library
 *	firecracker.c, criu.c, handoff.c   those that speak a protocol of their own, over
 *	fill.c      memory of other processes that can be filled, and not taken back
 *	control.c, http.c   ask each session about itself
 *
 * All of this is the loop's thread; a session that has threads of its own answers out of atomics.
 */
#ifndef UP_DAEMON_SESSION_H
#define UP_DAEMON_SESSION_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

#include "base/base.h"
#include "base/histogram.h"
#include "uffd_pager.h"

struct session;

/* What is only ever added to, as far as the runtime serves a session: its own statistics have it. */
struct session_events {
	uint64_t faults[UP_FAULT_KINDS];
	uint64_t again, exists, deferred, lost;
};

struct session_counts {
	uint64_t mapped, resident, swapped, wired; /* bytes */
	uint64_t limit, minimum; /* of what is resident, in force; bytes, 0: none of its own */
	uint64_t promised, swap; /* swap that it was promised, and may be; bytes, 0: any */
	uint64_t regions;	 /* ranges; 0: not known */
	uint64_t faults[UP_FAULT_KINDS];  /* served */
	uint64_t again, exists, deferred; /* EAGAIN, EEXIST, faults put off */
	uint64_t prefetched;		  /* pages filled before they were asked for */
	uint64_t lost;			  /* faults, or pages, that were SIGBUS */
	struct session_events ours;	  /* what of these the runtime has counted, too */
	uint64_t p50_ns, p99_ns; /* of faults, from the message to the wake-up; 0: none yet */
	struct up_latency latency[UP_FAULT_KINDS]; /* the same of each kind */
};

/* How closely memory is looked at for a picture: all of a client's pages if they are no more than that, and until then, now_ns(). */
struct glance {
	uint64_t pages, until;
};

struct session_ops {
	const char *kind; /* "native", "firecracker", "criu", "handoff" */
	void (*counts)(const struct session *s, struct session_counts *c);
	/*
	 * What it has mapped: an array of {"start", "length", "page_size", "resident" (bytes), "strip": a string of digits 0..9, at most 64, the part that is
	 * in memory of each 64th}, and more of those that the runtime serves.  The caller's reference; NULL: no memory.
	 */
	json_t *(*map)(const struct session *s, const struct glance *g);
	/* Throw out up to so many bytes.  How many there were; -ENOTSUP: its memory can not be taken back. */
	int64_t (*evict)(struct session *s, uint64_t bytes);
	/*
	 * The daemon is to end in so many milliseconds, 0: once all have left: who can be asked to leave is, and what can do without us by then is helped to.  It is served as before
	 * until it has gone.  NULL: nothing can be done.
	 */
	void (*leave)(struct session *s, unsigned ms);
	/* It is to end now: what it holds is given back, and session_gone() is called, perhaps before this returns. */
	void (*end)(struct session *s);
	/*
	 * The most memory that it may have, and what of that others do not push out; bytes, 0: none, LIMIT_KEEP: as it is.  0, or as
	 * serve_quota(); NULL: there is no such limit for it.
	 */
#define LIMIT_KEEP UINT64_MAX
	int (*limit)(struct session *s, uint64_t most, uint64_t least);
	/* It is in that group from here on, "" in none, with all that it has.  0 or -errno; NULL: what it has is in no account, and in no group's. */
	int (*regroup)(struct session *s, const char *group);
	/* How long its faults of a kind took.  False: it is gone.  NULL: nobody knows. */
	bool (*latency)(const struct session *s, enum up_fault_kind kind,
			struct latency_steps *steps);
};

/* Embedded first. */
struct session {
	const struct session_ops *ops;
	struct session *next; /* the registry's */
	unsigned id;	      /* unique in this daemon's life */
	pid_t pid;
	uid_t uid;
	gid_t gid;
	char name[64];	/* from /proc/PID/comm, or what the client calls itself */
	char group[32]; /* "" none */
	bool by_door;	/* it is, by the socket where it came, and not by its user */
	uint64_t since; /* CLOCK_MONOTONIC, ns */

	/* The registry's, once a second: what it had served then, and per second since the time before. */
	uint64_t served;
	double rate;
	struct latency_steps before[UP_FAULT_KINDS];
	struct up_latency recent[UP_FAULT_KINDS],
		all; /* of faults between the last two times; all kinds */
};

/* Whom a line is about. */
static inline struct log_about
session_about(const struct session *s)
{
	struct log_about about = { .client = s->id, .pid = (int)s->pid };

	memcpy(about.name, s->name, sizeof(about.name));
	return about;
}

#define log_session(level, s, ...)                                \
	do {                                                      \
		const struct log_about about_ = session_about(s); \
		daemon_log_about(level, &about_, __VA_ARGS__);    \
	} while (0)

/*
 * Whether one more may come: 0; -EBUSY: the daemon drains or ends; -EUSERS: there are as many as are allowed.  `why` says it in words, for
 * the client.  Asked at hello, before session_come().
 */
struct peer;
int session_admit(const struct peer *peer, char *why, size_t len);
/* The same for a protocol that has no words for a refusal.  False: the connection has been closed, and why is in the log. */
bool session_admit_or_close(const struct peer *peer, int fd);

/* Registry (sessions.c).  ops, pid, uid and gid are set, name and group may be; the rest is filled in. */
void session_come(struct session *s);
/* It is in no list any more on return; the memory is the caller's.  It is asked for its counts the last time. */
void session_gone(struct session *s);
struct session *session_first(void);
unsigned session_number(void);

/* Of PID, #ID or a name.  -ESRCH: none; -ENOTUNIQ: several of that name. */
int session_find(const char *who, struct session **found);

/*
 * What a group is to allow its clients, bytes: its limit (0: none) and its guaranteed minimum; native_group() has what is in force.  -ENOENT: no such
 * group.  May change with every SIGHUP, so it is asked for, not kept.
 */
int session_group(const char *group, uint64_t *limit, uint64_t *minimum);

#endif
