/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * childmsg.h (private): what a client, a forked child or a program that is connected to a daemon, and the process of its pager have to say
 * to each other, over a SOCK_SEQPACKET.
 *
 *	child				pager
 *	HELLO, its userfaultfd ------->
 *	              <--------------- ACK, a pidfd		it is served
 *	FORK, a socket --------------->				it is about to fork
 *	              <--------------- REGION, descriptors ...	what its child is to map
 *	FORKED ----------------------->				it has, or will not
 *
 * A connected program begins with CONNECT, and has calls; one at a time.
 *
 *	CONNECT, PROTOCOL_VERSION, a name ->
 *	              <--------------- RETURN, its features	or why not, in words
 *	HELLO, its userfaultfd ------->
 *	              <--------------- ACK, a pidfd
 *	CALL, descriptors ------------>
 *	              <--------------- RETURN, descriptors	of the same serial
 *
 * A daemon that is to end says LEAVE, whenever that is and unasked: n milliseconds it goes on, 0: until the last client has left.  Who does not know the word
 * passes over it.  Not to forked children.
 *
 * A RETURN or REGION of serial 0 and -ERESTART: the pager was killed, and there is another one.  What has been asked and not answered
 * was done or was not, and is asked again.
 *
 * CALL_MAP and CALL_CLONE are answered with REGION messages, of what is to be mapped (inaccessible) and registered; then
 * CALL_MAPPED does it, or CALL_CANCEL does not.  Integers are of the machine: both sides are on it.
 *
 * Nothing is allocated and no lock is taken: most of it happens around a fork().
 */
#ifndef UP_CHILDMSG_H
#define UP_CHILDMSG_H

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/trace.h"
#include "watcher.h"

#define MSG_REGIONS 32u /* and descriptors, at most */
#define SEND_MS 2000	/* the other side has read something within that */
#define ANSWER_MS 30000 /* the pager answers within that */

#define PROTOCOL_VERSION 2u
#define RESTARTS_MAX 8u /* of the pager, during one call */
#define MSG_TEXT 256u	/* with its end */
#define MSG_BYTES 1024u

#define WIRE_PAGES 512u /* one CALL_WIRE does at most */
#define WIRE_LOOK 1u	/* only say whether all of the range may be wired, however long it is */

#define OPEN_OWN 1u	/* only what is the client's own: it may have made it, and not been told */
#define MODE_BITS 0666u /* of an object with a name */
#define ACCESS_MODE 1u	/* CALL_ACCESS: which of them are to change */
#define ACCESS_UID 2u
#define ACCESS_GID 4u

enum msg_type {
	MSG_HELLO = 1,
	MSG_ACK,
	MSG_FORK,
	MSG_REGION,
	MSG_FORKED,
	MSG_CONNECT,
	MSG_CALL,
	MSG_RETURN,
	MSG_LEAVE,
};

enum call_op {
	CALL_MAP = 1,	  /* addr, length, prot, flags, object, offset */
	CALL_MAPPED,	  /* what was asked for last is mapped now */
	CALL_CANCEL,	  /* it is not going to be */
	CALL_UNMAP,	  /* addr, length */
	CALL_PROTECT,	  /* addr, length, prot */
	CALL_ADVISE,	  /* addr, length, flags: enum up_advice */
	CALL_INHERIT,	  /* addr, length, flags: enum up_inherit */
	CALL_CLONE,	  /* addr, length, offset: where to */
	CALL_SYNC,	  /* addr, length, flags */
	CALL_RESIDENCY,	  /* addr, length (MSG_BYTES pages at most): bytes */
	CALL_CREATE_ANON, /* length, flags, mode, text: a name or "".  => object, length, prot */
	CALL_CREATE_FILE, /* offset, length, flags, a descriptor.  => object, length */
	CALL_CREATE_DEVICE,
	CALL_OPEN, /* text, flags: OPEN_OWN.  => object, length, prot: PROT_WRITE if it may be mapped shared */
	CALL_REMOVE,   /* text */
	CALL_SNAPSHOT, /* object.  => object, length */
	CALL_UNREF,    /* object */
	CALL_INFO, /* object.  => bytes: struct up_object_stats without .pager; n: pager_number() of that */
	CALL_STATS,    /* => bytes: struct up_stats */
	CALL_PREFAULT, /* addr, length, flags: 1, to be written: reads are begun.  -ENOMEM: more than can be in memory at a time */
	CALL_WIRE, /* addr, length, offset: a number that the last CALL_WIRE or _UNWIRE did not have, and not 0: the same again is done once.
		    * flags: WIRE_LOOK.  -EINPROGRESS: not all of it is in memory, and reads are begun: touch it, and ask again */
	CALL_UNWIRE, /* addr, length, offset: as for CALL_WIRE */
	CALL_DUMP, /* the lines after one of object: space, addr and length: range, offset: serial, flags: depth; all 0: from the first on.
		      * => bytes: n times struct dump_record (dump.h); left: 1, there may be more */
	CALL_ACCESS, /* text, flags: ACCESS_..., mode, addr: uid, length: gid */
	CALL_TRACE, /* offset: after those of that time, of which it has had length; addr: until then; all 0: from the first on.
		     * => bytes: struct trace_page; left: 1, there are more */
};

/* 0 is no object. */
struct call {
	uint32_t op, flags;
	int32_t prot;
	uint32_t mode;
	uint64_t addr, length, offset, object;
	char text[MSG_TEXT];
};

struct msg {
	uint32_t type;
	uint32_t serial; /* CALL, FORK: the client's; RETURN, REGION: of what it answers */
	int32_t status;	 /* RETURN, REGION: 0, or why there are none; FORKED: 0, or it will not */
	uint32_t n,
		left; /* REGION: how many here, and how many are still to come; CONNECT: the version */
	union {
		struct region r[MSG_REGIONS];
		struct call call;
		unsigned char bytes[MSG_BYTES];
	};
};

/* What CALL_TRACE tells: n events, in order, arg2 of the client's own being 0. */
struct trace_page {
	uint64_t until; /* what is asked for next does not go further, or it would never end */
	struct trace_event event[(MSG_BYTES - sizeof(uint64_t)) / sizeof(struct trace_event)];
};

static inline bool
msg_is_restart(const struct msg *m, enum msg_type type)
{
	return m->type == (uint32_t)type && m->serial == 0 && m->status == -ERESTART;
}

/*
 * 0 or -errno; -ETIMEDOUT: the other side does not read; -ENOTCONN: it is over.  `nfd` descriptors go
 * with it.
 */
int msg_send(int sock, const struct msg *m, const int fd[], size_t nfd);
/* The same by a time (now_ns()): for one of several, whose reader is to be waited for once and not each time. */
int msg_send_by(int sock, const struct msg *m, const int fd[], size_t nfd, uint64_t end);
/*
 * What is there now: 0, or -errno; -EAGAIN: nothing; -ENOTCONN: it is over; -EPROTO: not a whole message.  *nfd: descriptors that came, which
 * are the caller's, whatever is returned.  *pid: the sender's, if asked for.
 */
int msg_receive(int sock, struct msg *m, int fd[MSG_REGIONS], size_t *nfd, pid_t *pid);
void fds_close(const int fd[], size_t n);
/* up_object_stats.pager by a number: the name is where the pager has it, and not where the client does.  NULL: there is no such number. */
uint32_t pager_number(const char *name);
const char *pager_name(uint32_t number);
/*
 * Where who reads answers leaves what comes unasked, for the thread that tells the program; that thread is waked.
 */
struct unasked {
	_Atomic uint64_t leave; /* LEAVE: its milliseconds, and 1; 0: it has not come */
	int kick;		/* an eventfd; -1: nobody wants to know */
};
/* Of a message that is no answer.  u NULL: as kick -1. */
void msg_unasked(struct unasked *u, const struct msg *m);
/* Nothing that is there now is the answer to what is about to be asked. */
void msg_drain(int sock, struct unasked *u);
/* The same as msg_receive(), once there is one, within `ms`.  If it fails there are no descriptors. */
int msg_await(int sock, struct msg *m, int fd[MSG_REGIONS], size_t *nfd, int ms);

#endif
