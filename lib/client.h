/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * client.h (private): what a runtime keeps of a connected program, beside its space; serve.c and keeper.c.
 */
#ifndef UP_CLIENT_H
#define UP_CLIENT_H

#include "childmsg.h"
#include "cow.h"
#include "keeper.h"
#include "quota.h"
#include "serve.h"
#include "slow.h"

/* What a client has of an object that it holds. */
struct handle {
	struct object *_Atomic object; /* (k, a) with a reference; NULL: a free place */
	bool readonly; /* (k) opened by who may not write: never mapped shared, see `struct owner` */
};

/* Keys: (c) constant, (k) the keeper's thread, (m) map.change to change, (a) atomic, for others to look at. */
struct client {
	struct serve_limits limits; /* (c) */
	pid_t pid;		    /* (c) */
	uid_t uid;		    /* (c) */
	gid_t gid;		    /* (c) */
	char name[64];		    /* (k) */
	bool connected;		    /* (k) it speaks our version */
	struct wired_array object;  /* (k) struct handle, by their numbers, less 1 */
	atomic_size_t nhandles;	    /* (k, a) of those */
	unsigned nheld;		    /* (k) */
	struct account *account;    /* (c) */
	struct part *pending;	    /* (m) */
	size_t npending;
	struct wired_array pending_mem;
	struct wire_note wiring; /* (m) */
	uint32_t tag;		 /* (c) of a guest: whose it is */
	bool leaving; /* (m) a guest's memory is being let go: a successor does not serve it */
	struct guest *
		guest; /* (c) once it has a space: of one that does not know of us (guest.c); NULL */
};

/*
 * Who may open a named object: as of a file, the first class of its mode that a client is in decides, and root may everything.
 *
 * Who may read and not write never gets a descriptor of the object's pool: even one that is open for reading puts zeros where the pager has
 * punched a hole, as soon as it is mapped and touched there, and what is mapped through it can not be registered with a userfaultfd (EPERM).  So what
 * it maps is a copy-on-write copy in a file of its own, and UP_SHARED is refused.
 *
 * The keeper changes it, with the lock, and reads it without.
 */
struct owner {
	struct owner *next;
	uid_t uid;
	gid_t gid;
	uint32_t mode;	       /* of MODE_BITS */
	struct object *object; /* whose name it is; NULL: it is still to be made */
	char name[MSG_TEXT];
};

/*
 * Where an object of a client has its pages from; or of a guest the file that its memory is.  The descriptor is kept (store.h) as "file" with the object's id.
 */
#define GUEST_MEMORY 1000u /* in place of a call */
#define GUEST_SOURCE \
	1001u /* what is not in its memory comes from there; and as "file/N/less" what it has removed of that (less.h) */
struct served_file {
	struct served_file *next;
	const struct object *object;
	uint32_t op; /* CALL_CREATE_FILE or _DEVICE, GUEST_... */
	uint32_t flags;
	uint64_t offset, length;
};

struct group {
	struct group *next;
	struct account *account; /* which has the name */
};

struct server {
	pthread_mutex_t lock;
	struct zone client_zone, owner_zone, file_zone;
	struct owner *owners;	   /* (lock) */
	struct served_file *files; /* (lock) */
	struct group *groups;	   /* (lock) never removed */
	struct zone slow_zone;
	struct flush *flush[FLUSHES]; /* (k) those that are under way, or have not been put away */
	unsigned nflushes;
	void (*ended)(void *ctx, uint64_t id, bool guest);
	void *ctx;
};

/* Of that process, with a reference of its own to an account.  0, or -ENOMEM. */
int client_create(struct up_runtime *rt, const struct serve_limits *limits, pid_t pid, uid_t uid,
		  gid_t gid, const char *name, struct client **out);
/* Its space, in the list; sock is the space's.  0; -EAGAIN: there are too many; -ENOMEM.  => map.change is held */
int client_space(struct pager *p, struct client *c, int sock, struct space **out);
/* NULL: it has gone.  => map.change or map.lock is held */
struct space *client_find(struct pager *p, uint64_t id);
/*
 * 0, or why the client can not have [addr, addr + length) as well, in so many regions and with swap for so many pages.  -EDQUOT: with a log line, and the
 * same in `why`, MSG_TEXT bytes or NULL.  => map.change is held
 */
int client_room(struct up_runtime *rt, const struct space *sp, uint64_t addr, uint64_t length,
		size_t regions, uint64_t nswap, char *why);

/* guest.c.  guests_stop(): nothing is done for guests any more; before the keeper stops.  guests_free(): when no guest is left. */
void guests_stop(struct up_runtime *rt);
void guests_free(struct up_runtime *rt);
void guest_free(struct guest *g);
/*
 * For adopt.c.  guests_start(): before any of the others.  guest_return(): a client that was a guest is one again; its space's socket or -errno.  guest_source(): what is not in the memory of
 * one comes from that file, as guest_region has it; `less` of less_file(), or -1.  guest_resume(): its entries and their places are there, `uffd` is the pager's from the
 * call on, `removed` the caller's; 0 or -errno, and then it is not served.  => map.change is held
 */
int guests_start(struct up_runtime *rt);
int guest_return(struct client *c);
int guest_source(struct up_runtime *rt, int fd, uint64_t offset, uint64_t length, int less,
		 struct up_object **o);
int guest_resume(struct up_runtime *rt, struct space *sp, int uffd, int removed);

/*
 * The descriptors of a message are asked, and closed, by the thread that does all clients' calls: none of them may be a file that a process answers for.  0; 1: it was
 * told that this call can not be done with such a file; < 0: it is to go.  But for 0 none of them is left.
 */
int client_vet(struct forks *f, const struct space *sp, const int fd[], size_t *nfd);
/* A message of a client.  0; 1: what it asks for is a slow call, which has begun; < 0: it is to go.  Descriptors that are left in fd[] are the caller's. */
int client_heard(struct forks *f, struct space *sp, int fd[], size_t *nfd);
void client_end(struct pager *p, struct space *sp);
/* What CALL_UNMAP asks for.  => map.change is held */
int client_unmap(struct up_runtime *rt, struct space *sp, const struct call *q);
void client_free(struct up_runtime *rt, struct client *c, uint64_t id);
void server_free(struct up_runtime *rt);
/* From what an object is made, for a successor; the descriptor is the caller's.  0, -ENOMEM. */
int server_note_file(struct up_runtime *rt, const struct object *o, const struct served_file *what,
		     int fd);
/* It goes. */
void server_forget(struct up_runtime *rt, const struct object *o);
/* A client without anything, but with room for so many objects; NULL: no memory.  client_discard() or an end of its space takes it back. */
struct client *client_alloc(struct up_runtime *rt, const struct serve_limits *limits);
void client_discard(struct up_runtime *rt, struct client *c);

/* who.c.  For log_line_about(): *about, filled in. */
const struct log_about *client_about(const struct client *c, struct log_about *about);

/* serve_info.c.  What is counted of a space's faults. */
const struct space_tally *client_tally(const struct pager *p, const struct space *sp);
/* What it has written, and is not where it can touch it; bytes.  => map.lock is held */
uint64_t client_swapped(const struct space *sp, uint64_t resident);
/*
 * The answer to CALL_TRACE: what has been recorded of it and its children, and of nobody else.  0, -ENOMEM.  => no lock is held
 */
int client_trace(struct up_runtime *rt, const struct space *sp, const struct call *q,
		 struct msg *answer);
/* What it has mapped and can not be had any more, bytes; what is mapped twice counts twice.  If anything is lost to anybody it looks at all of it, for 20 ms at most: others wait for that.  => no lock is held */
uint64_t client_lost(struct pager *p, struct space *sp);

#endif
