/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * runtime.h (private): a pager and what it stands on.
 *
 * up_runtime_create() puts the pager on userfaultfd, io_uring and threads.  Tests put it on the simulated
 * kernel instead, through the same door, and turn the crank of each service themselves.
 */
#ifndef UP_RUNTIME_H
#define UP_RUNTIME_H

#include <errno.h>
#include <signal.h>
#include <sys/types.h>

#include "foreign.h"
#include "heap.h"
#include "pager/pager.h"

struct up_runtime {
	struct pager p;
	const struct backend *backend; /* (c) */
	pthread_mutex_t
		limit_lock; /* up_runtime_set_limit(), one at a time: outside of all others */
	atomic_size_t memory_limit; /* (limit_lock) to change; as configured, or set since */
	size_t memory_most;	    /* (c) that it can come to be */
	size_t wire_limit;	    /* (map.change) */
	uint64_t wire_wanted;	    /* (c) as configured; 0: half of the limit */
	bool overcommit;	    /* (c) */
	pid_t pid;		    /* (c) the process that created it */
	uint64_t mask;		    /* (c) features not to use */
	bool swap_open;
	struct log_held held; /* lines of threads that serve their own faults */
	struct heaps heaps;
	_Atomic(struct forks *) forks; /* fork.c; NULL: no child is to get anything */
	struct server *server;	       /* serve.c; NULL: no other program is served */
	struct guests *guests;	       /* guest.c; NULL: none has come yet */
	struct remote *
		remote; /* (c) remote.c: the pager is in another process, and of all this only pid and p.log are used; NULL: it is here */
	struct foreign foreign; /* p.foreign points here, if it is used */

	/* starting and stopping threads */
	pthread_mutex_t start_lock;
	pthread_cond_t start_cond;
	unsigned started; /* (start_lock) threads whose engine may be used */
	unsigned failed;  /* (start_lock) threads that could not make one */
	int start_error;  /* (start_lock) the first failure */
};

struct backend {
	void *ctx;
	const struct arena_ops *memory;
	int (*pmap_create)(void *ctx, struct pmap **pm, frame_t nstage, unsigned nshards,
			   uint64_t mask, const struct logger *log);
	int (*swap_open)(void *ctx, struct swap_area *s, struct arena *arena,
			 const struct up_config *cfg, const struct logger *log);
	/* Called from the thread that will use the engine. */
	int (*engine_create)(void *ctx, struct io_engine **e, struct pager *p, unsigned service,
			     unsigned depth, uint64_t mask);
	/* The engine of a thread that serves its own fault; NULL: one that blocks. */
	int (*worker_engine)(void *ctx, struct io_engine **e, struct pager *p);
	/* NULL: services run in threads.  Else nobody runs them, and this is called instead of sleeping. */
	void (*idle)(void *ctx);
	uint64_t hash_seed;	 /* 0: random */
	struct store *store;	 /* NULL: memory ends with the process */
	enum policy_kind policy; /* of replacement; 0: the default */
};

/*
 * arena_ops.reclaim of a runtime's arena (ctx: its pager): a caller's allocation of metadata found the
 * limit reached; make room.  The caller holds map.change at most.
 */
int runtime_reclaim(void *ctx, size_t bytes);

/* The limit is this, at least what it was and at most memory_most. */
void runtime_raise_limit(struct up_runtime *rt, size_t limit);

/* Bytes of the budget for each thread: its stack and its ring. */
#define THREAD_OVERHEAD ((size_t)96 << 10)

/* A call that changes mappings, or looks at them at leisure: one at a time.  Signals are held meanwhile. */
void change_begin(struct pager *p, sigset_t *old);
void change_end(struct pager *p, const sigset_t *old);
/* The same for calls that map or unmap, so that for a while something is mapped and in no entry, or the other way round. */
void move_begin(struct pager *p, sigset_t *old);
void move_end(struct pager *p, const sigset_t *old);
/*
 * Such a call ended like that; true if it is to be made again, after a moment, since the program was doing something to mappings
 * itself (-EAGAIN, with UP_TRACK_FOREIGN only).  => map.change is not held
 */
bool change_again(struct pager *p, int r, unsigned tries);

/* What may be wired within such a limit. */
size_t limit_of_wired(const struct up_runtime *rt, size_t limit);

/* A caller's mistake: what is wrong, as a log line, and the result. */
#define bad(rt, ...) (log_line(&(rt)->p.log, UP_LOG_ERROR, __VA_ARGS__), -EINVAL)
/* 0, or -ECHILD and a log line in a process other than the one that created it. */
int check_process(const struct up_runtime *rt, const char *call);
/* 0, or -EINVAL and a log line: why [addr, addr + length) is no range. */
int check_range(struct up_runtime *rt, const char *call, uintptr_t addr, size_t length);
/* How every call on a range begins: a runtime, of this process, and a range.  0, or -EINVAL, -ECHILD and a log line. */
static inline int
check_call(struct up_runtime *rt, const char *call, uintptr_t addr, size_t length)
{
	int r;

	if (rt == NULL)
		return -EINVAL;
	r = check_process(rt, call);
	return r < 0 ? r : check_range(rt, call, addr, length);
}
/* 0, or -ENOMEM and a log line: part of it is not mapped.  => map.change is held, so the map does not change. */
int check_covered(struct up_runtime *rt, struct map *m, const char *call, uintptr_t start,
		  uintptr_t end);

/* 0, or why the range can not be brought in, all of it at a time, and a log line: -ENOMEM, -EACCES.  => map.lock is not held */
int check_prefault(struct up_runtime *rt, struct map *m, const char *call, uintptr_t start,
		   uintptr_t end, bool write);
/* A map entry out of the metadata's share of the limit, or NULL. */
struct map_entry *entry_alloc(struct pager *p);
void entry_free(struct pager *p, struct map_entry *e);

/*
 * A new object with its promises: metadata for npages, and `nswap` slots, unless noreserve.  One reference, the
 * caller's.  => map.change is held
 */
int object_create(struct up_runtime *rt, const char *call, uint64_t npages, uint64_t nswap,
		  bool noreserve, struct object **out);

/* The object for a source, which is destroyed if there can be none.  The reference, and a handle, are the program's.  => map.change is not held */
int object_create_source(struct up_runtime *rt, const char *call, struct source *src, bool readonly,
			 struct up_object **out);

/* up_object_create_device() of what had `size` bytes when it was made, and may have less by now; 0: as many as it has. */
int object_create_device(struct up_runtime *rt, int fd, uint64_t size, unsigned flags,
			 struct up_object **obj);

/* Service threads, unless the configuration says how many. */
unsigned runtime_services(size_t limit);

/* An anonymous object that outlives its mappings; the reference is the program's.  => map.change is held */
int object_create_handle(struct up_runtime *rt, const char *call, uint64_t npages, unsigned flags,
			 struct object **o);

/*
 * cow.c: an object for pages [first, first + n) of `from` as they are now; what either writes from here on is its own.
 * => map.change is held.  0: *copy has one reference, the caller's.
 */
int cow_shadow(struct up_runtime *rt, const char *call, struct object *from, uint64_t first,
	       uint64_t n, struct object **copy);

/*
 * space.c: an address space for a child that is about to be forked from the one of `map`, with what it inherits.  Faults are
 * frozen from here until the caller says chain_thaw(), which is when the fork is over.
 * => map.change is held; `sock` is fork.c's, kept in *out.  0, *out NULL: it inherits nothing, and nothing is frozen.  -errno and a log line.
 */
int space_fork(struct up_runtime *rt, struct map *map, int sock, struct space **out);
/* A copy for the same client, or its child. */
static inline void
object_copy_client(struct object *copy, const struct object *from)
{
	copy->apart = from->apart;
	if (from->account != NULL)
		object_pays(copy, account_ref(from->account));
}

/* From here on faults of spaces are counted, for each.  0 or -ENOMEM.  => map.change is held */
int space_tallies(struct pager *p);
/* One that is empty, and in no list; and into that.  NULL: no room.  => map.change is held */
struct space *space_make(struct pager *p);
void space_link(struct pager *p, struct space *sp);
/* From here on what the entry maps is mapped in that process, which has done so.  0 or -errno and a log line. */
int space_place(struct pager *p, const char *call, const struct map_entry *e);
/* Nobody runs there any more: let go of all that it has.  => map.change is held */
void space_end(struct pager *p, struct space *sp);

/* fork.c: from here on forks take along what is to be inherited.  => no lock is held.  0 or -errno and a log line. */
int forks_start(struct up_runtime *rt);
/* The runtime goes: children fend for themselves.  => no lock is held; all services still run */
void forks_stop(struct up_runtime *rt);

/*
 * fork.c: a program that is connected to a pager elsewhere.  Its children get what is inherited; `lock` is held by whoever uses the socket, and
 * during forks; what a fork hears unasked goes to `unasked` (childmsg.h).  => no lock is held
 */
struct ticket;
struct unasked;
int client_add(struct up_runtime *rt, int sock, uint64_t features, pthread_mutex_t *lock,
	       struct unasked *unasked, struct ticket **out);
void client_remove(struct ticket *t);
/* True if its descriptor is still what it was, and not closed by the program. */
bool client_still_open(const struct ticket *t);

/*
 * The entries that map_clip() will use, all or none: 0, or -ENOMEM and a log line.  What is left of them goes back
 * with spare_free().  => map.change is held.
 */
int spare_alloc(struct pager *p, struct map *m, uintptr_t start, uintptr_t end,
		struct map_entry *spare[2]);
void spare_free(struct pager *p, struct map_entry *spare[2]);

/*
 * The next run of [*at, end) of the object that no entry maps, ours or a child's, *at the first page of it, *n how many; false:
 * there is none.  `wired`: that no wired entry maps.  => map.change is held.
 */
bool object_unreached(struct pager *p, const struct object *o, uint64_t *at, uint64_t end,
		      bool wired, uint64_t *n);
/*
 * From here on the object's pages are in a pool, so that several can map them.
 * => it is mapped nowhere, or is in a pool already; map.change is held.  0; -ENOTSUP, -ENOMEM and the like and a log line.
 */
int object_pool(struct up_runtime *rt, const char *call, struct object *o);

/*
 * set() every entry of a range, clipped; then entries that are like their neighbours again are one with them.
 * => map.change is held; of spare_alloc(), which is used up: spare_free() is done.
 */
void entries_set(struct pager *p, struct map *m, uintptr_t start, uintptr_t end,
		 struct map_entry *spare[2], void (*set)(struct map_entry *e, void *to), void *to);

/* Unmap an entry that is in no map any more, and free it.  => map.change is held */
void entry_destroy(struct pager *p, struct map_entry *e);
/* An entry of a pool that was wired is not any more: neither are its pages, unless another holds them.  => map.change */
void wired_leave(struct pager *p, const struct map_entry *e);

/* pmap's map.  -EAGAIN, with UP_TRACK_FOREIGN: what was mapped there before is not done with.  => map.change is held */
int map_addresses(struct pager *p, uintptr_t hint, bool fixed, size_t len, int prot, unsigned shard,
		  uintptr_t *va);

/* Give the addresses of an entry back; it is in no map any more, and nothing is in its page table. */
void entry_unmap(struct pager *p, const struct map_entry *e);
/* Make sure that what is mapped of the range can be unmapped.  0, or -ENOMEM and a log line. */
int split_vmas(struct pager *p, struct map *m, const char *call, uintptr_t start, uintptr_t end);
/* The whole of up_unmap() on a range that is one. */
int unmap_range(struct pager *p, struct map *m, const char *call, uintptr_t start, uintptr_t end);

/* True if some entry maps pages [first, first + n) of the object.  => map.change is held. */
bool object_is_mapped(struct pager *p, const struct object *o, uint64_t first, uint64_t n);
/*
 * Make an object that is not in a chain at least `npages` long, with the promises for `more` pages that a mapping of it is to have.
 * => map.change is held.  0, or -ENOMEM, -ENOSPC and a log line.
 */
int object_extend(struct up_runtime *rt, const char *call, struct object *o, uint64_t npages,
		  uint64_t more);

/*
 * The object to map for pages [*first, *first + npages) of `o`, which may be NULL, with one reference, the caller's; *first becomes the first page
 * of that.  => check_map() has passed; map.change is held.  0 or -errno and a log line.
 */
int object_to_map(struct up_runtime *rt, uint64_t npages, unsigned flags, struct object *o,
		  uint64_t *first, struct object **out);
/* 0, or what is wrong with the arguments of up_map() and a log line. */
int check_map(struct up_runtime *rt, const void *hint, size_t length, int prot, unsigned flags,
	      const struct object *o, uint64_t offset);
/* The rest of calls on a range, of any map; with pages of another process, as far as that is ours to do.  => map.change is held */
int protect_entries(struct up_runtime *rt, struct map *m, uintptr_t start, uintptr_t end, int prot);
int advise_range(struct up_runtime *rt, struct map *m, uintptr_t start, uintptr_t end,
		 enum up_advice advice);
/* up_sync(), piece by piece. */
struct syncing {
	uintptr_t at, end;
	unsigned flags;
	bool gaps;	      /* what is not mapped of it does not matter */
	int error;	      /* the first */
	struct source *flush; /* is to be, before it goes on; a reference */
};
/*
 * What can be begun by a time (now_ns()), and something in any case.  1: it is to be called again, and what y->flush is, if anything, is to be asked by
 * source_settle() first, which may take long, and the result given to sync_flushed(): neither needs a lock.  0 or -errno: over.  => map.change is held
 */
int sync_some(struct up_runtime *rt, struct map *m, struct syncing *y, uint64_t until);
void sync_flushed(struct up_runtime *rt, struct syncing *y, int r);
/* Of [start, end), which is mapped. */
void map_residency(struct pager *p, struct map *m, uintptr_t start, uintptr_t end,
		   unsigned char *vec);
/* What up_object_info() tells.  => signals are held */
void object_info(struct pager *p, struct object *o, struct up_object_stats *info);

/* True if a part of the range is wired, there or in another place that has the same pages.  => map.change is held. */
bool is_wired(struct pager *p, struct map *m, uintptr_t start, uintptr_t end);
/* An entry of any space that wires one of pages [first, first + n) of the object, or NULL.  => map.change is held. */
const struct map_entry *wired_entry(struct pager *p, const struct object *o, uint64_t first,
				    uint64_t n);
/*
 * A part of a shared mapping of a source: written back if it has changed, and forgotten.  => map.change is held; none of it is wired.
 * 0, or the first error: what could not be written is kept.
 */
int discard_shared(struct pager *p, struct map_entry *e, uintptr_t start, uintptr_t end);

/* Pages that up_wire() may hold in memory, more or less by n: counted, and promised out of the limit. */
bool wired_take(struct pager *p, uint64_t n);
void wired_give(struct pager *p, uint64_t n);

/*
 * How far counts of a range have been changed, for who takes over from a process that was killed over it: up_wire() nests, so what was done must
 * not be done again.
 *
 *	doing == 0, or done	nothing is under way
 *	else			the entry at slot[which].at is wired slot[which].to times, those of [start, at) have their new counts,
 *				those of (at, end) have the old ones
 */
struct wire_note {
	uint64_t done; /* what the last call that has ended was known by; 0: there was none */
	uint64_t doing, token;
	uintptr_t start, end;
	bool more; /* up_wire(), not up_unwire() */
	unsigned which;
	struct {
		uintptr_t at;
		unsigned to;
	} slot[2];
};
/* What an entry's count was going to be. */
unsigned wire_noted(const struct wire_note *note, const struct map_entry *e);

/* 0, or why the range can not be wired and a log line; *more: its pages that are not wired yet.  => map.change is held */
int check_wire(struct up_runtime *rt, struct map *m, uintptr_t start, uintptr_t end,
	       uint64_t *more);
/*
 * The whole of up_wire() and up_unwire() on a range that is one.  A range of this process is waited for; of another map pages have to be
 * there.  note: NULL, or where to write down how far it is, with a token that is not 0.
 * => map.change is held.  -EINPROGRESS: of another map, and not all of it is there at the same time; the rest as in uffd_pager.h.
 */
int wire_entries(struct up_runtime *rt, struct map *m, uintptr_t start, uintptr_t end,
		 struct wire_note *note, uint64_t token);
int unwire_entries(struct up_runtime *rt, struct map *m, uintptr_t start, uintptr_t end,
		   struct wire_note *note, uint64_t token);
/* An entry's pages are to be held again, or, if they are not all there, it is not wired any more: false.  => map.change is held */
bool rewire_entry(struct pager *p, struct map *m, struct map_entry *e);

/* stats.c: how long faults of a kind took, of all that the runtime serves.  Either may be NULL.  => no lock is held */
void stats_latency(struct up_runtime *rt, enum up_fault_kind kind, struct up_latency *l,
		   struct latency_steps *steps);

/* Pages of swap that there can be, and those promised to mapped regions and objects. */
void swap_promised(struct pager *p, uint64_t *max, uint64_t *used);

/*
 * Around what a thread of the program does in here: no handler runs meanwhile.  One that touches paged memory
 * would wait for a service thread, and that for a lock which the interrupted call holds.
 */
void signals_hold(sigset_t *old);
void signals_release(const sigset_t *old);

/* The one that up_runtime_create() takes: for a benchmark to copy and to change the policy in. */
const struct backend *runtime_backend(void);
/* Frames that there are addresses for. */
size_t runtime_nstage(size_t memory_limit);
/* up_runtime_create() on another foundation; `b` must outlive the runtime. */
int runtime_create(struct up_runtime **out, const struct up_config *cfg, const struct backend *b);

#endif
