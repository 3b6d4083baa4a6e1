/* SPDX-License-Identifier: BSD-2-Clause */
#include <stdarg.h>
#include <stdio.h>

#include "base.h"

uint64_t (*test_clock)(void);

void
log_line(const struct logger *log, enum up_log_level level, const char *fmt, ...)
{
	char line[512];
	va_list ap;

	if (log == NULL || log->fn == NULL)
		return;
	va_start(ap, fmt);
	vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	log->fn(log->ctx, level, line);
}
