/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * listen.h (private): the sockets where clients and operators knock, and who knocks.
 *
 * A listener is a line in a table: a path, a type of socket, and the function that takes a connection over.  Its socket is one that
 * systemd handed over under the listener's name, or one that is made here.  A path that is taken by a living socket is refused; a dead
 * one, left behind by a daemon that was killed, is replaced.
 */
#ifndef UP_DAEMON_LISTEN_H
#define UP_DAEMON_LISTEN_H

#include <sys/un.h>

#include "daemon.h"

/* The other end of a Unix socket, as the kernel knows it. */
struct peer {
	pid_t pid;
	uid_t uid;
	gid_t gid;
	int pidfd; /* of `pid`, or -1: valid until accept() returns; dup() it to keep it */
};

struct listener {
	struct listener *next;
	char name[48];	  /* "native", "control", "http", or of a [listen NAME] */
	bool named;	  /* the last */
	const char *type; /* "native", "firecracker", ...; "control" */
	int socktype;	  /* SOCK_SEQPACKET or SOCK_STREAM */
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	mode_t mode;
	const char *group_of_file; /* NULL: the daemon's */
	char group[32];		   /* "": by user */
	char source[PATH_MAX];	   /* "": none */
	accept_fn *accept;
	refuse_fn *refuse; /* NULL: the protocol has no words for it */
	struct daemon *d;
	int fd;		/* -1: closed */
	bool inherited; /* systemd's: the file stays */
	dev_t dev;
	ino_t ino;
	uv_poll_t poll;
};

/*
 * Open a listener and begin to accept.  *l is copied; name, type, socktype, path, mode and accept are set.  0, or -errno with a log
 * line.
 */
int listen_add(struct daemon *d, const struct listener *l);
struct listener *listen_first(void);
/*
 * The configuration has changed: let l be as `like`, which has its name.  Who has come stays; who waits in its queue waits on, unless the path or the type is another
 * one.  0: it is, and if it was not before the log says so; -errno with a log line: as listen_add(), and what was there is there, if it could be.
 */
int listen_change(struct listener *l, const struct listener *like);
/* Stop to accept there.  A file of ours is removed. */
void listen_remove(struct listener *l);
void listen_close(void);

/*
 * A listening Unix socket at `path`, non-blocking.  The descriptor, or -errno with a log line.  `dev` and `ino` say which file it is,
 * for listen_unlink(), which removes no other.
 */
int listen_unix(const char *path, int socktype, mode_t mode, const char *group, dev_t *dev,
		ino_t *ino);
void listen_unlink(const char *path, dev_t dev, ino_t ino);

/* Lock PATH.pid against a second daemon.  The descriptor, or -errno with a log line. */
int listen_lock(const char *path);
void listen_unlock(const char *path, int fd);

/* Who is at the other end; close its pidfd afterwards. */
int peer_get(int fd, struct peer *p);
/* Whether it is a member, by its group or one of its supplementary groups. */
bool peer_in_group(int fd, const struct peer *p, gid_t gid);
/* A name or a number.  0, or -ENOENT. */
int group_by_name(const char *name, gid_t *gid);
int user_by_name(const char *name, uid_t *uid);

#endif
