/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * log.h (private): one line an event, to standard error or to the journal.
 *
 * To the journal a line goes with its level, and with whom it is about, as fields (journal.h).  What it can not have now is written to
 * standard error and begins with <N>, which journald takes for its level; elsewhere lines begin with the time and the level.  A line is
 * one write(), so lines of several threads do not mix.  What is not printable (names are the clients' own) is shown as \xNN.
 *
 * No thread waits for whoever reads it: lines that do not fit are dropped, and their number is a line later on.  Of lines that differ in numbers only, 20
 * errors or warnings a second are said, and 200 others; how many more there were is a line, too.
 */
#ifndef UP_DAEMON_LOG_H
#define UP_DAEMON_LOG_H

#include "base/base.h"
#include "uffd_pager.h"

enum log_level {
	LOG_ERROR,
	LOG_WARNING,
	LOG_INFO,
	LOG_DEBUG,
};

/* `to`: "auto", "stderr" or "journal".  Until then a line may wait. */
void log_init(const char *to, enum log_level least);
void log_set_level(enum log_level least);
/* Once a second: say what has been counted only. */
void log_tick(void);

/* Any thread. */
__attribute__((format(printf, 2, 3))) void daemon_log(enum log_level level, const char *fmt, ...);

/* The same of a client. */
__attribute__((format(printf, 3, 4))) void daemon_log_about(enum log_level level,
							    const struct log_about *about,
							    const char *fmt, ...);

#define log_error(...) daemon_log(LOG_ERROR, __VA_ARGS__)
#define log_warning(...) daemon_log(LOG_WARNING, __VA_ARGS__)
#define log_info(...) daemon_log(LOG_INFO, __VA_ARGS__)
#define log_debug(...) daemon_log(LOG_DEBUG, __VA_ARGS__)

/* For up_config.log. */
void log_library(void *ctx, enum up_log_level level, const char *line);

#endif
