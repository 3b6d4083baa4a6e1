/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pulse.h (private): the proof that the daemon lives.
 *
 *	pulse thread                       the loop, the keeper, each service thread, each filler's
 *	four times in hang_timeout:
 *	  ask, kick --------------------->  begins a turn, and has answered (lib/base/pulse.h)
 *	  all have answered ---> kept_lives(), and without a guardian WATCHDOG=1
 *	  somebody has not ----> kept_lives(who), which proves nothing: the guardian kills a daemon of which it hears nothing else
 *
 * A thread of its own, which takes no lock that others hold while they work: the loop may wait for the keeper, and the keeper for a disk, and what is to be told
 * apart is who waits for something that will come.
 *
 * Not silent is a thread
 *	in state D: it waits in the kernel, does not die of SIGKILL, and a successor would wait for the same;
 *	that may wait for a disk, the loop and the keeper, while a transfer has been under way since the last look: it may be what is waited for, by way of
 *	others.  The successor would wait for that as well.  Service threads wait for nothing (lib/pager/service.c), and fillers in the kernel only; a stuck one's own transfers prove nothing.
 * A disk that never answers so keeps a daemon from being taken for one that hangs; a busy one does not.
 */
#ifndef UP_DAEMON_PULSE_H
#define UP_DAEMON_PULSE_H

#include "daemon.h"

/* When the runtime is there, with clients about to be served.  Without a thread for it nobody is watched, which is logged. */
void pulse_start(struct daemon *d);
/* hang_timeout may have changed. */
void pulse_reload(void);
/* The loop does not turn any more: nobody is to wonder. */
void pulse_stop(void);

#endif
