/* SPDX-License-Identifier: BSD-2-Clause */
#include "wire.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

void
wire_tell(const struct wire_reason *why, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why->text, why->size, fmt, ap);
	va_end(ap);
}

int
wire_number(const json_t *o, const char *key, size_t i, uint64_t *value,
	    const struct wire_reason *why)
{
	const json_t *v = json_object_get(o, key);

	if (v == NULL)
		return wire_refuse(why, -ENOENT, "region %zu has no %s", i, key);
	if (!json_is_integer(v) || json_integer_value(v) < 0)
		return wire_refuse(why, -EINVAL, "%s of region %zu is no number that is fit for it",
				   key, i);
	*value = (uint64_t)json_integer_value(v);
	return 0;
}
