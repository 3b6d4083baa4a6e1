/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * log.c: see log.h.  The library logs from threads that serve faults: no line waits for whoever reads them.
 *
 * There is no buffer and no thread: what has been said before a crash is there, and a fork needs no care.  What would have to wait is dropped, and counted; so is
 * what repeats more often than somebody can read, since a client can have an error logged for each page that it touches.
 */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "journal.h"

#define SOURCES 64u
#define WARNINGS_MAX 20u /* of a source, and errors, a second; */
#define LINES_MAX 200u	 /* and others */

static _Atomic int threshold = LOG_INFO;
static bool journal; /* what is written is its own stream, or stands in for it */
static bool native;  /* it has a socket */

static struct {
	int fd;
	bool socket;
	atomic_uint lost; /* lines */
} out = { .fd = STDERR_FILENO };

/* Lines that are alike. */
struct source {
	uint64_t hash;
	time_t second;	     /* of CLOCK_MONOTONIC, in which there were */
	unsigned said, more; /* so many, and more that were not said */
	enum log_level level;
	char text[200]; /* the first of those */
};

static struct {
	pthread_mutex_t lock; /* for no system call */
	struct source source[SOURCES];
} table = { .lock = PTHREAD_MUTEX_INITIALIZER };

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

/*
 * Standard error may be others' as well, who do not expect that it does not block: of a pipe or a terminal we have an open file of our own.
 */
static void
open_out(void)
{
	struct stat st;
	int fd;

	if (fstat(STDERR_FILENO, &st) < 0)
		return;
	out.socket = S_ISSOCK(st.st_mode);
	if (!S_ISFIFO(st.st_mode) && !isatty(STDERR_FILENO))
		return;
	fd = open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	if (fd >= 0)
		out.fd = fd;
}

void
log_init(const char *to, enum log_level least)
{
	if (out.fd == STDERR_FILENO)
		open_out();
	journal =
		strcmp(to, "journal") == 0 || (strcmp(to, "auto") == 0 && stderr_is_the_journal());
	native = journal && journal_open();
	log_set_level(least);
}

void
log_set_level(enum log_level least)
{
	atomic_store(&threshold, (int)least);
}

static const int priorities[] = { 3, 4, 6, 7 }; /* syslog's */

static size_t
prefix(enum log_level level, char *buf, size_t len)
{
	static const char *const names[] = { "error", "warning", "info", "debug" };
	struct timespec now;
	struct tm tm;
	size_t n;

	if (journal)
		return (size_t)snprintf(buf, len, "<%d>", priorities[level]);
	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &tm);
	n = strftime(buf, len, "%Y-%m-%dT%H:%M:%S", &tm);
	return n + (size_t)snprintf(buf + n, len - n, ".%03ldZ %s: ", now.tv_nsec / 1000000,
				    names[level]);
}

/* --- what is written does not wait --- */

static ssize_t
try_write(const char *line, size_t n)
{
	return out.socket ? send(out.fd, line, n, MSG_DONTWAIT | MSG_NOSIGNAL)
			  : write(out.fd, line, n);
}

/* A line, with what its level begins with and without what a terminal would obey.  False: it can not be written now. */
static bool
put_line(enum log_level level, const struct log_about *about, const char *text)
{
	static const char hex[] = "0123456789abcdef";
	char line[PIPE_BUF]; /* all of it or nothing, then */
	const size_t begin = prefix(level, line, sizeof(line));
	size_t n = begin;

	for (const char *p = text; *p != '\0' && n + 5 < sizeof(line); p++) {
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
	if (native && journal_send(priorities[level], line + begin, n - begin, about))
		return true;
	line[n++] = '\n';
	return try_write(line, n) >= 0 || (errno != EAGAIN && errno != EINTR && errno != ENOBUFS);
}

/* What could not be written is counted, and that is said as soon as something can be.  False: it still can not. */
static bool
put_note(void)
{
	const unsigned lost = atomic_exchange(&out.lost, 0);
	char note[80];

	if (lost == 0)
		return true;
	snprintf(note, sizeof(note), "%u lines are missing here: nobody read them in time", lost);
	if (put_line(LOG_WARNING, NULL, note))
		return true;
	atomic_fetch_add(&out.lost, lost);
	return false;
}

static void
put_or_count(enum log_level level, const struct log_about *about, const char *text)
{
	if (!put_note() || !put_line(level, about, text))
		atomic_fetch_add(&out.lost, 1);
}

/* --- what repeats is counted --- */

/* The same for lines that differ in numbers only: those are skipped. */
static uint64_t
source_of(const char *text)
{
	uint64_t h = UINT64_C(0xcbf29ce484222325); /* FNV-1a */

	while (*text != '\0') {
		if (text[0] == '0' && text[1] == 'x')
			text += 2 + strspn(text + 2, "0123456789abcdef");
		else if (*text >= '0' && *text <= '9')
			text++;
		else
			h = (h ^ (unsigned char)*text++) * UINT64_C(0x100000001b3);
	}
	return h;
}

static void
tell_more(const struct source *s)
{
	char text[sizeof(s->text) + 40];

	if (s->more == 0)
		return;
	snprintf(text, sizeof(text), "%u more like \"%s\"", s->more, s->text);
	put_or_count(s->level, NULL, text);
}

/* Whether a line is said, or only counted.  *over: one whose second is over, for tell_more(). */
static bool
may_say(enum log_level level, const char *text, struct source *over)
{
	const uint64_t h = source_of(text) + (uint64_t)level;
	struct source *const s = &table.source[h % SOURCES];
	struct timespec now;
	bool may;

	clock_gettime(CLOCK_MONOTONIC, &now);
	over->more = 0;
	pthread_mutex_lock(&table.lock);
	if (s->hash != h || s->second != now.tv_sec) {
		*over = *s;
		s->hash = h;
		s->second = now.tv_sec;
		s->said = s->more = 0;
		s->level = level;
	}
	may = s->said < (level <= LOG_WARNING ? WARNINGS_MAX : LINES_MAX);
	if (may)
		s->said++;
	else if (s->more++ == 0)
		snprintf(s->text, sizeof(s->text), "%.*s", (int)sizeof(s->text) - 1, text);
	pthread_mutex_unlock(&table.lock);
	return may;
}

void
log_tick(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	for (unsigned i = 0; i < SOURCES; i++) {
		struct source *const s = &table.source[i];
		struct source over = { .more = 0 };

		pthread_mutex_lock(&table.lock);
		if (s->second != now.tv_sec) {
			over = *s;
			s->more = 0;
		}
		pthread_mutex_unlock(&table.lock);
		tell_more(&over);
	}
	put_note();
}

static void
say(enum log_level level, const struct log_about *about, const char *fmt, va_list ap)
{
	struct source over;
	char text[1024];

	if ((int)level > atomic_load(&threshold))
		return;
	vsnprintf(text, sizeof(text), fmt, ap);
	if (level < LOG_DEBUG) {
		const bool may = may_say(level, text, &over);

		tell_more(&over);
		if (!may)
			return;
	}
	put_or_count(level, about, text);
}

void
daemon_log(enum log_level level, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(level, NULL, fmt, ap);
	va_end(ap);
}

void
daemon_log_about(enum log_level level, const struct log_about *about, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(level, about, fmt, ap);
	va_end(ap);
}

void
log_library(void *ctx, enum up_log_level level, const char *line)
{
	static const enum log_level levels[] = {
		[UP_LOG_ERROR] = LOG_ERROR, [UP_LOG_WARNING] = LOG_WARNING, [UP_LOG_INFO] = LOG_INFO
	};

	(void)ctx;
	daemon_log_about(levels[level], log_about, "pager: %s", line);
}
