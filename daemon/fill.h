/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fill.h (private): memory of other processes that can be filled, and not taken back.
 *
 *	firecracker.c, criu.c		their protocols: what is where
 *	fill.c				a filler per client, and its threads
 *	fill_space.c			its address spaces: ranges, the state of each page
 *	fill_record.c, fill_heir.c	and what a successor of this process is to know of it; what a predecessor has left
 *	fill_fault.c, fill_event.c	what the kernel tells, and what is done about it
 *	fill_bring.c, fill_aide.c	pages that nobody waits for; those of the working set
 *	fill_transfer.c			all of them, until there is nothing left to do
 *	fill_call.c			one system call each, and what its errors mean
 *	memfile.c			the file that it comes from
 *
 * A client's filler has a thread of its own, so that nobody waits for a slow one's disk; with a working set it has a second one for its
 * first seconds, and one that is transferred has one for that.  It never waits for the loop, nor the loop for it: that is told by `notify`, from its threads.
 *
 * Functions are the loop's, but where they say otherwise.
 */
#ifndef UP_DAEMON_FILL_H
#define UP_DAEMON_FILL_H

#include <jansson.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/base.h"
#include "base/pulse.h"
#include "descriptors.h"
#include "memfile.h"
#include "session.h"
#include "store.h"

#define FILL_HUGE ((uint64_t)2 << 20)
#define FILL_SPACES_MAX 1024u		   /* of one client */
#define FILL_RANGES_MAX 262144u		   /* of one space; half of it at first */
#define FILL_PAGES_MAX ((uint64_t)1 << 34) /* of one space: 64 TiB, 4 GiB of states */
#define FILL_PARKED_MAX 1024u		   /* faults of one space that wait for the next try */
#define FILL_RUN ((uint64_t)256 << 10)	   /* bytes of one copy that nobody waits for */

struct fill;

/* Pages of a client, and where they are in the file. */
struct fill_range {
	uint64_t start, len, offset;
	uint32_t page_size; /* PAGE_SIZE or FILL_HUGE */
	struct memfile *source;
	bool wiped; /* MADV_WIPEONFORK: a child has zeros there */
};

/* Of a space. */
#define FILL_TRACKED \
	1u /* registered with MISSING|WP: copies are write-protected if the kernel resolves that by itself */
#define FILL_OUTSIDE_ZERO 2u /* a fault in no range is a page of zeros; otherwise SIGBUS */
#define FILL_SOLE \
	4u /* nobody else has its userfaultfd: not closed while a page is missing, as that would read as zeros */

enum fill_event {
	FILL_GONE, /* no space has a process any more, or misses a page: then the filler has let go of it */
	FILL_STOPPED, /* the threads are at their end: fill_destroy() does not wait */
};

struct fill_config {
	const char *name; /* in log lines; copied */
	struct logger log;
	void (*notify)(void *ctx, enum fill_event ev); /* from a thread of the filler */
	void *ctx;
	int pidfd; /* where SIGBUS goes if there is no UFFDIO_POISON; -1; the caller's, who keeps it open */
	struct memfile *working_set; /* whose working set is recorded and prefetched; NULL: none */
	unsigned record_ms;
	/*
	 * Who keeps what a successor of this process needs (store.h); NULL: there will be none.  What it keeps it keeps until the filler is destroyed, or
	 * a space lets go of its userfaultfd.
	 */
	const struct store_keeper *keeper;
	uint64_t holder; /* with it: by what a successor is to know this process's (holder.h) */
	uint64_t id;	 /* of what a predecessor has had: fill_heir.id; 0: a new one */
	int socket;	 /* kept with it, if there is a keeper; -1; the caller's */
	bool transfer;	 /* there is to be a thread for fill_transfer(); not with a working set */
	uint64_t call_mask; /* tests: calls that are not there, FILL_NO_... */
};

#define FILL_NO_POISON 1u

/* What is to become of pages that are not there yet. */
enum fill_end {
	FILL_END_DROP,	 /* nothing: the client is gone, or waits for somebody else */
	FILL_END_POISON, /* SIGBUS */
	FILL_END_FILL,	 /* filled as long as that takes, a while at most; then SIGBUS */
};

#define FILL_IO_WANT UINT64_C(0xff)

/* What a successor is to know of a session; the protocol's. */
struct fill_about {
	char kind[16]; /* session_ops.kind */
	int32_t pid;
	uint32_t uid, gid;
	uint32_t phase;
	bool between; /* nothing has been read of the connection but what is in here, or in spaces */
	/*
	 * For a protocol that receives into here, so that nothing is lost between: bytes and what came along, and by one store what is done (the protocol's).
	 * What is asked for is in `io` before, and `control` all zeros; with SO_PASSCRED it is not any more once something has been received.
	 */
	_Atomic uint64_t
		io; /* FILL_IO_WANT of it: bytes asked for; 0: all that has been received is done with */
	char word[4], data[4];
	bool pending_kept; /* the descriptor in there is kept as "fill/ID/pending" */
	_Alignas(struct cmsghdr) char control[DESCRIPTORS_CONTROL];
	char name[64], group[32];
	char text[PATH_MAX];
	uint64_t source; /* memfile.number */
};

/* Who it is: kind, process, name and group.  And back, with the rest of *s zero. */
void about_session(struct fill_about *about, const struct session *s);
void about_whom(const struct fill_about *about, struct session *s);

/* A filler's, in memory that it shares with a successor. */
struct fill_note {
	char magic[8];
	uint32_t version, sizes;
	_Atomic uint64_t spaces; /* that it has had */
	uint64_t holder;	 /* fill_config.holder */
	struct fill_about about;
};

/* What a predecessor that was killed has left. */
struct fill_heir {
	uint64_t id;
	const struct fill_note *note;
	int socket; /* -1: none; whose takes it sets it to that */
	/* A descriptor that was kept, and from then on the caller's; -1: there is none. */
	int (*take)(void *ctx, const char *name);
	/* The same of one that was not, by its number in the predecessor that had this holder; negative: it is gone. */
	int (*fetch)(void *ctx, uint64_t holder, int number);
	void *ctx;
};

/* What is kept as "fill/ID/N/orphan" is for nobody to serve, and not to be closed (fill_orphan()). */
#define FILL_ORPHAN "orphan"

/* Whether a descriptor of a note ("fill/ID/note") is of this version: 0, or -EPROTO. */
int fill_heir_look(int note);
/* 0; -ENOENT: nothing was kept under that id; -EPROTO: it is another version's. */
int fill_heir_open(struct fill_heir *h, uint64_t id, int (*take)(void *ctx, const char *name),
		   int (*fetch)(void *ctx, uint64_t holder, int number), void *ctx);
void fill_heir_close(struct fill_heir *h);

/* 0 or a negative errno. */
int fill_create(struct fill **out, const struct fill_config *cfg);

/*
 * Memory behind one more userfaultfd; the tag is the caller's, and its children's too.  0: uffd is the filler's, and each range holds a reference to its source.  Otherwise uffd is
 * the caller's: -EINVAL for ranges that overlap or are misaligned, or something that is no userfaultfd; -E2BIG for too much; -ENOMEM.
 * No range at all: with FILL_OUTSIDE_ZERO only.
 */
int fill_add(struct fill *f, int uffd, const struct fill_range *range, size_t n, unsigned flags,
	     uint32_t tag);

/* The caller's to write, at any time.  What there is with the first space is kept. */
struct fill_about *fill_about(struct fill *f);

/*
 * All spaces of a predecessor, by one whose cfg.id is h->id: served from now on.  How many.  What can not be served any more is logged as an
 * error; whoever keeps it goes on with it, so that who misses a page waits.  Before anything else is added.
 */
unsigned fill_resume(struct fill *f, const struct fill_heir *h);

/* The descriptor that a predecessor had received into its fill_about.control and not used; the caller's, who calls fill_pending_done() when it is; -1: none. */
int fill_pending(struct fill *f);
void fill_pending_done(struct fill *f);

/* Whether there is a space with that tag. */
bool fill_has(struct fill *f, uint32_t tag);

/* What there is to know is kept from now on, even without a space. */
void fill_keep(struct fill *f);

/*
 * From now on pages are filled that nobody has asked for, while nobody does; and a space that misses none any more, children's included,
 * is let go: its userfaultfd is closed.  What can not be read is SIGBUS before; where the kernel has no UFFDIO_POISON, such a space is
 * kept.  All that is registered with a userfaultfd is so by now.  Once, with cfg.transfer, after the last fill_add().
 */
void fill_transfer(struct fill *f);

/* Does not wait; FILL_STOPPED comes.  Once more with another way: it is changed. */
void fill_stop(struct fill *f, enum fill_end how, unsigned ms);

/* Waits for the threads.  NULL is fine. */
void fill_destroy(struct fill *f);

/* Ask the service threads of all fillers of this process, those that have answered, to begin a turn; but those that have been told to stop and are at their end.  By one thread. */
void fill_ask(void);
/* Whether this is so of one of them.  Meanwhile none of them can come or go. */
bool fill_any(bool (*is)(const struct pulse *pulse));

/* Whether any space that has not been let go has a process: asks the kernel. */
bool fill_alive(struct fill *f);

void fill_counts(struct fill *f, struct session_counts *c);
void fill_latency(struct fill *f, enum up_fault_kind kind, struct latency_steps *steps);
json_t *fill_map(struct fill *f);

/* Any thread: pages not filled yet, of all spaces. */
uint64_t fill_missing(struct fill *f);

/* --- fill_call.c --- */

/* Below it nothing is mapped (vm.mmap_min_addr).  There hardly anything is, and to unprotect it changes nothing. */
#define FOREIGN_LOWEST UINT64_C(65536)

struct foreign_info {
	uint64_t features;
	unsigned pending, total; /* threads that wait: faults not read yet, all */
};

/* 0; -EINVAL: it is no userfaultfd. */
int foreign_info(int fd, struct foreign_info *info);

/*
 * 0: all of it.  Otherwise why not, and *done says how many bytes are: -EAGAIN the address space is changing, -EEXIST a page is
 * there, -ENOENT nothing is registered there, -ESRCH the process is gone, -EFAULT the source can't be read...
 */
int foreign_copy(int fd, uint64_t to, const void *from, uint64_t len, bool protect, uint64_t *done);
int foreign_zero(int fd, uint64_t to, uint64_t len, uint64_t *done);
int foreign_poison(int fd, uint64_t to, uint64_t len, uint64_t *done);
int foreign_unprotect(int fd, uint64_t at, uint64_t len);
int foreign_wake(int fd, uint64_t at, uint64_t len);
void foreign_unregister(int fd, uint64_t at, uint64_t len);

/* False: the process is gone. */
bool foreign_alive(int fd);

#endif
