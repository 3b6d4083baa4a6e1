/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * journal.h (private): lines to systemd's journal, with what they are about in fields of their own.
 */
#ifndef UP_DAEMON_JOURNAL_H
#define UP_DAEMON_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>

#include "base/base.h"

/* Where journald listens; tests have another.  Before journal_open(). */
extern const char *journal_socket;

/* False: there can be no socket. */
bool journal_open(void);
/*
 * A line with its priority, as syslog counts them, and whom it is about, or NULL.  Any thread; it does not wait.  False: it is not in the journal, which is not there or
 * does not read.
 */
bool journal_send(int priority, const char *line, size_t n, const struct log_about *about);

#endif
