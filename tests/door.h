/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * door.h: a socket with the daemon's side of one protocol behind it, and without the daemon: sessions come, and leave, while a test waits in vmm_until().
 *
 *	door_open(path, open)		vmm_pump is door_turn() from now on
 *	   a client connects: open() makes a session, whose gone() is door_gone()
 *	door_empty(ms)			all that have come have left
 *	door_close()
 */
#ifndef UP_TESTS_DOOR_H
#define UP_TESTS_DOOR_H

#include <uv.h>

#include "logged.h"
#include "session.h"
#include "vmm.h"

extern uv_loop_t door_loop;
extern unsigned door_came, door_left; /* sessions */

void door_open(const char *path,
	       int (*open)(uv_loop_t *loop, int connection, struct session **out));
/* Nobody is there any more. */
void door_close(void);

/* The loop's turn, without waiting. */
void door_turn(void);
/* A session's gone(). */
void door_gone(void *ctx, struct session *s);

/* For vmm_until(): as many have left as have come. */
bool door_is_empty(void *unused);
void door_empty(unsigned ms);
/* One has come, perhaps to be refused. */
void door_somebody(void);

/* What the session counts that has come last; zeros: there is none. */
struct session_counts door_counts(void);

static inline bool
logs_text(void *text)
{
	return has_logged(text);
}

static inline void
logs_within(const char *text, unsigned ms)
{
	vmm_until(logs_text, (void *)(uintptr_t)text, ms, text);
}

static inline void
logs(const char *text)
{
	logs_within(text, VMM_DEADLINE_MS);
}

#endif
