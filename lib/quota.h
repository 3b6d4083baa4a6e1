/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * quota.h (private): what clients and groups may have: memory that they can touch (limit), what others do not push out of that (minimum), what is wired, and
 * swap that they are promised.  Each has an account (vm/object.h); what the daemon asks for is in serve.h.
 */
#ifndef UP_QUOTA_H
#define UP_QUOTA_H

#include "runtime.h"

struct client;
struct space;

static inline size_t
pages_of(uint64_t bytes)
{
	return (size_t)MIN(bytes >> PAGE_SHIFT, SIZE_MAX / 2);
}

/* Rounded up: what is refused is more than is allowed. */
static inline unsigned long long
mib(uint64_t pages)
{
	return round_up(pages, 256) >> 8;
}

/* What an account with this limit is brought down to once it is full, pages. */
size_t account_room(const struct pager *p, size_t limit);
/* -EDQUOT, with a log line, and the same in `why`, MSG_TEXT bytes or NULL: the client is told as much as the operator, which limit it is. */
int client_over_limit(struct up_runtime *rt, const struct client *c, char *why, const char *fmt,
		      ...) __attribute__((format(printf, 4, 5)));
/* 0, or as client_over_limit(): whether it may be promised swap for so many pages more.  => map.change is held */
int client_swap(struct up_runtime *rt, const struct client *c, uint64_t nswap, char *why);
/* 0, or why the client may not wire so many pages more.  => map.change is held */
int client_may_wire(struct up_runtime *rt, const struct space *sp, uint64_t more);
/* The quota that it is to have from the beginning.  0, or as serve_quota().  => map.change is held, before client_space() */
int client_quota(struct up_runtime *rt, struct client *c);
/* Limits and minima of a new account are those of an old one.  => as for account_create().  NULL: no memory */
struct account *server_account(struct up_runtime *rt, const char *group, size_t limit,
			       size_t minimum);
/* True if what clients and groups were promised fits such a limit.  => map.change is held */
bool clients_fit(struct up_runtime *rt, size_t limit);
/* Take pages from whoever has more than it may.  True: to be done again soon. */
bool clients_reduce(struct up_runtime *rt);
/* pager.over: an account is full, and somebody waits. */
void clients_over(void *forks);

#endif
