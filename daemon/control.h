/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * control.h (private): the socket of the command uffd-pager.
 *
 * SOCK_STREAM; a request is a line of JSON, {"verb": ...}, and so is its answer: {"ok": true, ...}, or
 * {"ok": false, "errno": "ENOTSUP", "error": in words}.  Whoever is neither root, nor the daemon's user, nor in control_group is
 * told so and hung up on.  uffd-pagerd(8) lists the verbs.
 */
#ifndef UP_DAEMON_CONTROL_H
#define UP_DAEMON_CONTROL_H

#include "daemon.h"

refuse_fn control_refuse;
accept_fn control_accept;
/* Once a second: who is slow, or says nothing, is hung up on. */
void control_tick(void);
void control_close(void);

#endif
