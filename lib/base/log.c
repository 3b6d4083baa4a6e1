/* SPDX-License-Identifier: BSD-2-Clause */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base.h"

uint64_t (*test_clock)(void);

_Thread_local bool log_hold;
_Thread_local const struct log_about *log_about;

static void
hold(struct log_held *h, enum up_log_level level, const char *line)
{
	const size_t len = MIN(strlen(line), sizeof h->line[0].text - 1);

	pthread_mutex_lock(&h->lock);
	if (h->n < LOG_HELD) {
		h->line[h->n].level = level;
		memcpy(h->line[h->n].text, line, len);
		h->line[h->n].text[len] = '\0';
		atomic_fetch_add(&h->n, 1);
	} else {
		h->dropped++;
	}
	pthread_mutex_unlock(&h->lock);
}

void
log_flush(const struct logger *log)
{
	struct log_held *h = log->held;
	char line[sizeof h->line[0].text];

	while (h != NULL && atomic_load(&h->n) > 0) {
		enum up_log_level level;
		unsigned dropped = 0;

		pthread_mutex_lock(&h->lock);
		if (h->n == 0) {
			pthread_mutex_unlock(&h->lock);
			return;
		}
		level = h->line[0].level;
		memcpy(line, h->line[0].text, sizeof line);
		atomic_fetch_sub(&h->n, 1);
		memmove(h->line, h->line + 1, h->n * sizeof h->line[0]);
		if (h->n == 0) {
			dropped = h->dropped;
			h->dropped = 0;
		}
		pthread_mutex_unlock(&h->lock);
		log->fn(log->ctx, level, line);
		if (dropped > 0) {
			snprintf(line, sizeof line, "%u more such lines", dropped);
			log->fn(log->ctx, level, line);
		}
	}
}

static void
say(const struct logger *log, const struct log_about *about, enum up_log_level level,
    const char *fmt, va_list ap)
{
	char line[512];

	if (log == NULL || log->fn == NULL)
		return;
	vsnprintf(line, sizeof line, fmt, ap);
	if (log->held != NULL && log_hold) {
		hold(log->held, level, line);
		return;
	}
	log_about = about != NULL && about->pid != 0 ? about : NULL;
	log->fn(log->ctx, level, line);
	log_about = NULL;
}

void
log_line(const struct logger *log, enum up_log_level level, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(log, NULL, level, fmt, ap);
	va_end(ap);
}

void
log_line_about(const struct logger *log, const struct log_about *about, enum up_log_level level,
	       const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(log, about, level, fmt, ap);
	va_end(ap);
}
