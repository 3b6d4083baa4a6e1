/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * logged.h: what has been said to the log of whatever a test has made, for messages of assertions and to look for.
 *
 * Any thread may say something.  A test that forks without exec() has a collector of its own, since another thread may have held the lock.
 */
#ifndef UP_TESTS_LOGGED_H
#define UP_TESTS_LOGGED_H

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "uffd_pager.h"

static char logged[65536]; /* "LEVEL: line\n"; what does not fit is cut */
static unsigned nlogged[UP_LOG_INFO + 1];
static pthread_mutex_t logged_lock = PTHREAD_MUTEX_INITIALIZER;

static inline void
collect(void *ctx, enum up_log_level level, const char *line)
{
	size_t len;

	(void)ctx;
	pthread_mutex_lock(&logged_lock);
	len = strlen(logged);
	snprintf(logged + len, sizeof logged - len, "%d: %s\n", (int)level, line);
	nlogged[level]++;
	pthread_mutex_unlock(&logged_lock);
}

static inline bool
has_logged(const char *text)
{
	bool r;

	pthread_mutex_lock(&logged_lock);
	r = strstr(logged, text) != NULL;
	pthread_mutex_unlock(&logged_lock);
	return r;
}

static inline void
log_clear(void)
{
	pthread_mutex_lock(&logged_lock);
	logged[0] = '\0';
	memset(nlogged, 0, sizeof nlogged);
	pthread_mutex_unlock(&logged_lock);
}

#endif
