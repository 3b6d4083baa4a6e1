/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * log.c: see log.h.  No buffer, no lock, no thread: the library logs from threads that serve faults.
 */
#include "log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static _Atomic int threshold = LOG_INFO;
static bool journal;

/* $JOURNAL_STREAM is DEVICE:INODE of the stream that systemd has given us. */
static bool
stderr_is_the_journal(void)
{
	const char *const stream = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat st;

	return stream != NULL && sscanf(stream, "%llu:%llu", &dev, &ino) == 2 &&
	       fstat(STDERR_FILENO, &st) == 0 && st.st_dev == dev && st.st_ino == ino;
}

void
log_init(const char *to, enum log_level least)
{
	journal =
		strcmp(to, "journal") == 0 || (strcmp(to, "auto") == 0 && stderr_is_the_journal());
	log_set_level(least);
}

void
log_set_level(enum log_level least)
{
	atomic_store(&threshold, (int)least);
}

static size_t
prefix(enum log_level level, char *buf, size_t len)
{
	static const char *const names[] = { "error", "warning", "info", "debug" };
	static const char *const journald[] = { "<3>", "<4>", "<6>", "<7>" };
	struct timespec now;
	struct tm tm;
	size_t n;

	if (journal)
		return (size_t)snprintf(buf, len, "%s", journald[level]);
	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &tm);
	n = strftime(buf, len, "%Y-%m-%dT%H:%M:%S", &tm);
	return n + (size_t)snprintf(buf + n, len - n, ".%03ldZ %s: ", now.tv_nsec / 1000000,
				    names[level]);
}

void
daemon_log(enum log_level level, const char *fmt, ...)
{
	static const char hex[] = "0123456789abcdef";
	char text[1024], line[sizeof(text) * 4 + 64];
	size_t n;
	va_list ap;

	if ((int)level > atomic_load(&threshold))
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	n = prefix(level, line, sizeof(line));
	for (const char *p = text; *p != '\0'; p++) {
		const unsigned char ch = (unsigned char)*p;

		/* UTF-8 of more than one byte passes: paths have it. */
		if (ch >= 0x20 && ch != 0x7f) {
			line[n++] = *p;
		} else {
			line[n++] = '\\';
			line[n++] = 'x';
			line[n++] = hex[ch >> 4];
			line[n++] = hex[ch & 15];
		}
	}
	line[n++] = '\n';
	if (write(STDERR_FILENO, line, n) < 0)
		return; /* there is nobody else to tell */
}

void
log_library(void *ctx, enum up_log_level level, const char *line)
{
	static const enum log_level levels[] = {
		[UP_LOG_ERROR] = LOG_ERROR, [UP_LOG_WARNING] = LOG_WARNING, [UP_LOG_INFO] = LOG_INFO
	};

	(void)ctx;
	daemon_log(levels[level], "pager: %s", line);
}
