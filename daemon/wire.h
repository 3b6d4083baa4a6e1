/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * wire.h (private): what parsers of protocols in JSON share: numbers, and why something is refused.
 */
#ifndef UP_DAEMON_WIRE_H
#define UP_DAEMON_WIRE_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

/* Where to say why, for a log line. */
struct wire_reason {
	char *text;
	size_t size;
};

__attribute__((format(printf, 2, 3))) void wire_tell(const struct wire_reason *why, const char *fmt,
						     ...);
#define wire_refuse(why, err, ...) (wire_tell(why, __VA_ARGS__), (err))

/* A number of region i that is there, and not negative.  -ENOENT: it is not there; -EINVAL. */
int wire_number(const json_t *o, const char *key, size_t i, uint64_t *value,
		const struct wire_reason *why);

#endif
