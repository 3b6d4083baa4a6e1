/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * holder.h (private): a process that has all descriptors that this one has, at any time, and outlives it.
 *
 *	this process	one table of descriptors	holder: waits, and does nothing
 *	killed						hands out what it is asked for by number, to a successor of this process
 *							ends when nobody has the other end of its socket any more
 *
 * For descriptors that the kernel makes and nobody else has yet: UFFD_EVENT_FORK is read with the userfaultfd of the child, and if this process is killed
 * before it can give that to somebody, what the child misses would read as zeros.  So it is with a connection that has just been accepted, by which somebody has
 * sent his, and gone.
 */
#ifndef UP_DAEMON_HOLDER_H
#define UP_DAEMON_HOLDER_H

#include "store.h"

/* Either way.  `turn` is the question's, so that an answer to somebody who has been killed meanwhile is not taken for another. */
struct holder_word {
	uint64_t turn;
	int number; /* of a descriptor; or below 0 something else that is wanted */
	int found;  /* of an answer: the number of what comes along */
};

/*
 * In a process that may have a successor, for which the socket by which it asks is kept as "holder/ID".  0 or a negative errno.  Any thread; the holder has a
 * copy of this process's memory, of which nothing is used.
 */
int holder_start(const struct store_keeper *keeper, uint64_t id);

/*
 * In a successor, first: what it will not be asked for is closed (locks, listening sockets, rings), which is all but userfaultfds and connections.  The predecessor is
 * gone, so it is the only one that has this table.
 */
void holder_alone(int sock);
/*
 * A connection (a Unix stream that was accepted, of whatever listener) of a number from *from on, which is behind it then; the caller's.  A negative errno: there
 * is none any more.
 */
int holder_connection(int sock, int *from);

/* In a successor: the predecessor's descriptor of that number, the caller's; or a negative errno. */
int holder_ask(int sock, int number);

/* Nothing more will be asked for.  The socket is closed. */
void holder_end(int sock);

#endif
