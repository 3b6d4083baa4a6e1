/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * http.h (private): /metrics, /healthz, / and /state.json.
 */
#ifndef UP_DAEMON_HTTP_H
#define UP_DAEMON_HTTP_H

#include "daemon.h"

/* Open what [metrics] asks for.  0, or -errno with a log line. */
int http_open(struct daemon *d);
void http_close(void);

/* The text of /metrics; free() it.  NULL: no memory.  (metrics.c) */
char *metrics_text(struct daemon *d, size_t *len);

#endif
