/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * quotas.h (private): whether what the configuration allows and promises can be in force on this machine.
 */
#ifndef UP_DAEMON_QUOTAS_H
#define UP_DAEMON_QUOTAS_H

#include "config.h"

/* The number of errors, told to `err` with the line of the file `where`, or the flag. */
int quotas_check(const struct config *c, const char *where, FILE *err);

#endif
