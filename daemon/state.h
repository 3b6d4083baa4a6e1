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
/* Those with names, of native clients. */
json_t *state_objects(struct daemon *d);
/* A client with its map; "more": ranges that are not in it. */
json_t *state_map(const struct session *s, const struct glance *g);
/*
 * status, and clients with their maps: of the first 64; as text, good for a second, so that many who look cost as much as one.  The memory is in
 * here until the next call.  NULL: none.
 */
const char *state_page(struct daemon *d);
/* As closely as one client is looked at for who asks: not so long that others notice. */
struct glance state_glance(void);

#endif
