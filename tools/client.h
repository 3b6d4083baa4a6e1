/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * client.h (private): the control socket of uffd-pagerd from the other side.
 */
#ifndef UP_TOOLS_CLIENT_H
#define UP_TOOLS_CLIENT_H

#include <jansson.h>
#include <stddef.h>

enum { EXIT_OK = 0, EXIT_REFUSED = 1, EXIT_USAGE = 2, EXIT_UNREACHABLE = 3 };

struct client {
	int fd;
	char *buf; /* what has come and is not an answer yet */
	size_t have, room;
};

/* The socket where the daemon is, if nobody says another. */
const char *client_default_socket(void);

/* 0, or -errno. */
int client_connect(struct client *c, const char *path);
void client_close(struct client *c);

/*
 * Ask, and wait for the answer, 10 s at most.  Takes the reference to `req`.  The answer; NULL and errno: there is none.
 */
json_t *client_ask(struct client *c, json_t *req);

#endif
