/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * client.h (private): what a runtime keeps of a connected program, beside its space; serve.c and keeper.c.
 */
#ifndef UP_CLIENT_H
#define UP_CLIENT_H

#include "cow.h"
#include "keeper.h"
#include "serve.h"

/* Keys: (c) constant, (k) the keeper's thread, (m) map.change to change. */
struct client {
	struct serve_limits limits; /* (c) */
	pid_t pid;		    /* (c) */
	uid_t uid;		    /* (c) */
	gid_t gid;		    /* (c) */
	char name[64];		    /* (k) */
	bool connected;		    /* (k) it speaks our version */
	struct object **object;	    /* (k) by their numbers, less 1; each with a handle */
	unsigned nobject, nheld;    /* (k) */
	struct account *account;    /* (c) */
	struct part *pending;	    /* (m) */
	size_t npending;
	struct wired_array pending_mem;
};

/* A message of a client.  < 0: it is to go.  Descriptors that are left in fd[] are the caller's. */
int client_heard(struct forks *f, struct space *sp, int fd[], size_t *nfd);
void client_end(struct pager *p, struct space *sp);
void client_free(struct up_runtime *rt, struct client *c, uint64_t id);
void server_free(struct up_runtime *rt);
/* Take pages from whoever has more than it may.  True: to be done again soon. */
bool clients_reduce(struct up_runtime *rt);

#endif
