/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * notify.h (private): what systemd is told, and what it hands over.  Without libsystemd, or not under systemd, nothing happens.
 */
#ifndef UP_DAEMON_NOTIFY_H
#define UP_DAEMON_NOTIFY_H

#include <uv.h>

/* "READY=1" and the like; several with newlines between.  A manager that does not read is waited for for 5 s, for STATUS= and WATCHDOG= not at all.  Any thread. */
__attribute__((format(printf, 1, 2))) void notify(const char *fmt, ...);
/* RELOADING=1 with the time, as Type=notify-reload wants it. */
void notify_reloading(void);

/* Within what time systemd wants to hear of this process, by "WATCHDOG=1", ns; 0: it does not. */
uint64_t notify_watchdog(void);

/*
 * A descriptor that was handed over under this name (FileDescriptorName= of the socket unit), once; -1: none.  With a socket type and
 * a listening socket, or not at all.
 */
int notify_take(const char *name, int socktype);
/* Close what nobody took, saying so. */
void notify_close_rest(void);

#endif
