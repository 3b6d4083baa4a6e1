/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * state.h (private): the daemon's state as JSON, for the control socket and for the page.
 */
#ifndef UP_DAEMON_STATE_H
#define UP_DAEMON_STATE_H

#include <jansson.h>

#include "daemon.h"

/* Each is the caller's reference; NULL: no memory. */
json_t *state_status(struct daemon *d);
json_t *state_client(const struct session *s);
json_t *state_clients(void);
/* A client with its map. */
json_t *state_map(const struct session *s);
/* status, and clients with their maps: of the first 64. */
json_t *state_page(struct daemon *d);

#endif
