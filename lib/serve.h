/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * serve.h (private): other programs as clients of a runtime, for a daemon.
 *
 *	serve_accept()            CONNECT, HELLO               end of file, serve_end()
 *	--------------> connected --------------> served, CALLs ----------------------> ended(id): all that it had is given back
 *	                    |                                                            ^
 *	                    +-- what is no message, a version we do not know ------------+
 *
 * The runtime's keeper does all of this, in its thread; a client is an address space of its own (space.c), whose regions are in pools
 * apart.  Nothing that a client sends is believed: each number is checked, and each object looked up in a table of the client's own.
 */
#ifndef UP_SERVE_H
#define UP_SERVE_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/pulse.h"
#include "uffd_pager.h"

#define SERVE_SPACES_MAX 4096
#define CLIENTS_MAX 2048u /* at a time; what they fork leaves room for so many */
#define HELLO_MS 10000u

struct serve_limits {
	unsigned regions; /* map entries */
	unsigned objects; /* that it holds at a time */
	unsigned
		fds; /* descriptors that are held for it: a file for each object that is mapped, or comes from one; 0: any */
	uint64_t mapped; /* bytes; 0: any */
	uint64_t
		swap; /* bytes of it that may be promised to it and its children; 0: any; and to all that has a name and is its user's */
	uint64_t
		inflight; /* bytes that are read for it ahead of what it waits for, at a time; 0: any */
	bool fuse; /* files of file systems that a process answers for; all clients wait while it does not */
	uint64_t limit, minimum; /* bytes: its quota from the beginning, as serve_quota() */
	unsigned hello_ms;	 /* it is served within that, or disconnected; 0: HELLO_MS */
	const char *group;	 /* "" or NULL: none */
};

struct serve_info {
	uint64_t id;
	pid_t pid; /* as the socket says */
	uid_t uid;
	gid_t gid;
	char name[64];	 /* what it calls itself; printable */
	bool guest;	 /* of guest.h; */
	uint32_t tag;	 /* and then what its guest_config had */
	bool attached;	 /* it has been served */
	uint64_t mapped; /* bytes */
	uint64_t regions, objects;
	uint64_t faults[UP_FAULT_KINDS];
	struct up_latency latency[UP_FAULT_KINDS], all; /* of those, within a quarter */
	uint64_t again, exists,
		deferred; /* EAGAIN of the kernel; pages that were there already; faults that had to wait */
	uint64_t
		sigbus; /* faults that were answered with that: what is lost, or past the end of its file */
	uint64_t
		resident; /* bytes that it has in memory, where it can touch them; objects with names are nobody's */
	uint64_t
		swapped; /* what it has written, and is in memory no more, or out of its reach; about, of objects that share pages */
	uint64_t limit, minimum; /* bytes; 0: none */
	uint64_t promised, swap; /* bytes of swap that it was promised, and may be; 0: any */
	uint64_t wired;		 /* bytes; part of what is resident */
};

/* A mapped range of a client. */
struct serve_range {
	uintptr_t start;
	size_t length;
	uint64_t object;
	uint64_t offset;   /* bytes, in the object */
	unsigned depth;	   /* objects beneath that */
	const char *pager; /* what the pages come from, as in up_object_stats; constant */
	uint64_t serial;   /* of no other mapping */
	unsigned wired;
	int prot;
	bool shared;
};

/*
 * From here on there may be clients.  ended() is called by the keeper's thread, with no lock held, when one is gone; guest: of those in guest.h.
 * 0 or -errno.
 */
int serve_start(struct up_runtime *rt, void (*ended)(void *ctx, uint64_t id, bool guest),
		void *ctx);
/*
 * A connected SOCK_SEQPACKET.  Any thread.  0: it is the runtime's; -EAGAIN: there are as many clients and children of clients as there may be; -ENOSPC, -EINVAL: its
 * quota, as serve_quota(); -ENOMEM.
 */
int serve_accept(struct up_runtime *rt, int sock, const struct serve_limits *limits, uint64_t *id);
/* Why, in words that the client may be told. */
const char *serve_refused(int r);
/*
 * Tell it, once it is served, that there will be no pager `ms` milliseconds from now; 0: when the last client has left.  It is served as before.  -ENOENT.  Any
 * thread.
 */
int serve_leave(struct up_runtime *rt, uint64_t id, unsigned ms);
/* How many forked children of clients are served, those included whose client has gone.  Any thread. */
unsigned serve_children(struct up_runtime *rt);
/* Disconnect it: what it has in memory stays there, what is missing is SIGBUS.  ended() follows.  -ENOENT.  Any thread. */
int serve_end(struct up_runtime *rt, uint64_t id);
/*
 * The most that a client may have in memory, where it can touch it, and what others can not push out of that; bytes, 0: none.  What it has beyond its
 * limit is taken out of its reach, and stays in memory while nobody needs the room.  -EINVAL: a limit below four windows of read-ahead for
 * each service thread (1 MiB each), or below the minimum; -ENOSPC: half of memory at most can be promised, and three quarters together with what is wired;
 * -EBUSY: the client has more than half of the new limit wired.  Any thread.
 */
int serve_quota(struct up_runtime *rt, uint64_t id, uint64_t limit, uint64_t minimum);
/* The same of all clients of a group together. */
int serve_group_quota(struct up_runtime *rt, const char *group, uint64_t limit, uint64_t minimum);
/* Bytes of swap that may be promised to them; 0: any.  What is promised stays so.  0 or -ENOMEM. */
int serve_group_swap(struct up_runtime *rt, const char *group, uint64_t swap);
/* What is in force for a group that has ever had clients or a quota.  -ENOENT.  Any thread. */
struct serve_group {
	char name[32];
	uint64_t limit, minimum, swap; /* bytes; 0: none */
	uint64_t promised;	       /* bytes of swap that they were promised */
	uint64_t resident; /* bytes that its clients have in memory, where they can touch them */
};
int serve_group_info(struct up_runtime *rt, const char *group, struct serve_group *info);
/* All of those, one after the other: n counts from 0.  -ENOENT: there are no more. */
int serve_group_nth(struct up_runtime *rt, unsigned n, struct serve_group *info);
/*
 * A client, its children and what they have count for that group from here on, "" for none, and not for the one before.  0, -ENOENT, -ENOMEM.  Any thread.
 */
int serve_regroup(struct up_runtime *rt, uint64_t id, const char *group);
/* The least that a limit can be, bytes; 0 threads: as many as there are by themselves with that memory limit. */
uint64_t serve_limit_min(unsigned service_threads, size_t memory_limit);
/* Take up to so many bytes out of its reach.  How many, or -ENOENT. */
int64_t serve_evict(struct up_runtime *rt, uint64_t id, uint64_t bytes);
/*
 * Look whether clients have put memory into the files of their pools themselves, where the budget does not see it: by write(), fallocate(), or another
 * mapping.  Who is found to twice in a row is disconnected, with a log line.  To be called once a second or so; if calls of
 * clients take long just then, it is left out.  Any thread.
 */
void serve_audit(struct up_runtime *rt);
/* Any thread.  -ENOENT. */
int serve_info(struct up_runtime *rt, uint64_t id, struct serve_info *info);
/* What has happened; of whom, as far as it was somebody's fault. */
struct serve_event {
	uint64_t time_ns; /* CLOCK_MONOTONIC */
	const char *kind; /* as up_trace_print() has it; constant */
	uint64_t at;	  /* an address: of that process, or of the daemon; or a slot of the swap */
	uint32_t arg;	  /* pages, or an errno */
	pid_t pid;	  /* a client's; 0: nobody's in particular */
	pid_t child;	  /* of its forked child; 0 */
};
/* The most recent events, n at most, oldest first; of one process and its children, or 0: all.  How many, or -ENOMEM.  Any thread but one that serves. */
int serve_trace(struct up_runtime *rt, pid_t pid, struct serve_event ev[], size_t n);
/* An object with a name. */
struct serve_name {
	uint64_t id; /* of the object, as in struct serve_range */
	char name[UP_OBJECT_NAME_MAX + 1];
	uid_t uid;
	gid_t gid;
	unsigned mode;
	uint64_t size;			  /* bytes, */
	uint64_t resident, swapped, lost; /* and of those in memory, in swap, unreadable */
	bool partly;			  /* there was no time to count all of it */
	unsigned clients; /* that have it open, or mapped shared, their children among them */
};
/*
 * The one with the lowest number above info->id; 0: the first.  Its pages are counted until `until`, of now_ns(); no fault is kept waiting.  -ENOENT: there are no more.  Any
 * thread.
 */
int serve_name(struct up_runtime *rt, uint64_t until, struct serve_name *info);
/* How long its faults of a kind took.  -ENOENT. */
struct latency_steps;
int serve_latency(struct up_runtime *rt, uint64_t id, enum up_fault_kind kind,
		  struct latency_steps *steps);
/* Its ranges, at most n, from `from` on; how many, or -ENOENT. */
int serve_ranges(struct up_runtime *rt, uint64_t id, uintptr_t from, struct serve_range range[],
		 size_t n);
/*
 * Where the pages of a range are, as of serve_ranges(), of which look[] has so many pieces of the same length: see range_count().  It keeps no
 * fault waiting, and takes as long as there are pages with content, at most until `until`, of now_ns(); 0: however long that is.  0; 1: it was not
 * enough; -ENOENT: it is not mapped any more.
 */
struct range_look;
int serve_look(struct up_runtime *rt, uint64_t id, const struct serve_range *range, unsigned step,
	       uint64_t until, struct range_look *look, unsigned nlook);

/*
 * Those of its threads that clients wait for: the keeper and the services.  Ask each that has answered to begin a turn.  One thread, and not while the runtime
 * is created or destroyed.
 */
void serve_ask(struct up_runtime *rt);
struct serve_thread {
	const char *name;
	const struct pulse *pulse;
	bool waits; /* it may wait for a transfer that others have begun; services do not */
};
/* The i-th of them, who may wait for those before it; false: there are no more. */
bool serve_thread(struct up_runtime *rt, unsigned i, struct serve_thread *t);

#endif
