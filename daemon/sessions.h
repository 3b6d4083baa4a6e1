/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * sessions.h (private): the registry's other side: what the daemon itself asks of it.  session.h is what protocols see.
 */
#ifndef UP_DAEMON_SESSIONS_H
#define UP_DAEMON_SESSIONS_H

#include "daemon.h"

#define SAMPLES 120 /* seconds that are remembered */

/* One second, over all clients. */
struct sample {
	double faults, major;	      /* a second */
	double swap_read, swap_write; /* bytes a second */
	uint64_t used, swapped;	      /* bytes */
	uint64_t p99_ns; /* of the worst kind of fault in that second; 0: there was none */
};

void sessions_init(struct daemon *d);
/* The configuration has changed: groups are looked up again. */
void sessions_reload(void);
/* Of each, as session_ops has it.  More than once does no harm. */
void sessions_leave(unsigned ms);
void sessions_end(void);

/* Grows with each session that comes or goes. */
unsigned sessions_changes(void);

/* Of a session, with room for the ops that leave something out. */
void session_counts(const struct session *s, struct session_counts *c);

/* Faults by kind since the daemon began, of all clients, those that are gone included. */
void sessions_faults(const struct up_stats *st, uint64_t faults[UP_FAULT_KINDS]);
/* The same of what only sessions count: to be added to what the runtime has.  And what all of them have now. */
void sessions_totals(struct session_counts *total);

/* Clients that the last daemon has had, and this one took over. */
unsigned sessions_taken_over(void);

/* Why somebody was turned away before he was a client, or could steer. */
enum refusal {
	REFUSED_DRAINING,
	REFUSED_CLIENTS,     /* there are as many as may be */
	REFUSED_DESCRIPTORS, /* none is left */
	REFUSED_PERMISSION,
	REFUSED_FAILED, /* no memory, no such protocol, or the kernel would not */
	REFUSALS
};
void session_refused(enum refusal why);
uint64_t sessions_refused(enum refusal why);
extern const char *const refusal_names[REFUSALS];

/* Of a group, by its name: how many clients it has now, and what they have in memory, bytes. */
unsigned sessions_of_group(const char *group, uint64_t *resident);

/* Once a second; the first time before anybody can come. */
void sessions_sample(void);
/* The last `n` seconds, oldest first; how many there were. */
unsigned sessions_history(struct sample *s, unsigned n);
/* How long faults of each kind took in the last second, of all clients. */
const struct up_latency *sessions_recent(void);

extern const char *const fault_names[UP_FAULT_KINDS];

#endif
