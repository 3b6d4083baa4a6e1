/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * uffd_pager.h: paged memory in user space.
 *
 * A runtime serves page faults of this process, and of children that inherit regions, for the
 * regions mapped through it, keeps them and its own metadata under one memory limit, and moves
 * what does not fit to a swap file.  A region is ordinary memory: plain pointers, memcpy(),
 * atomics, system calls.
 *
 * Conventions, unless a comment says otherwise:
 *
 *   errors    every function returns 0 or a negative errno value.  A call that fails has
 *             changed nothing, and has said why in one line through the log callback.
 *   units     lengths, offsets and limits are bytes.  Addresses, offsets and lengths of
 *             regions are multiples of the page size, 4096; times are nanoseconds, but for
 *             up_config.fault_timeout_ms.
 *   threads   every function may be called from any thread, also while other threads use
 *             the regions.  None may be called from a signal handler, or on a stack that is
 *             itself paged memory.  Signals are held back during a call that works on ranges.
 *   fork      regions are absent in a forked child, and touching them there is SIGSEGV, never
 *             zeros, unless up_inherit() says what it gets: then the runtime serves it as well.
 *             The runtime belongs to the process that created it; every call in a child
 *             returns -ECHILD (or nothing) and changes nothing.
 *   lost data a page that can not be brought back (read error, checksum mismatch) raises
 *             SIGBUS in whoever touches it, until it is discarded or unmapped.
 *
 * What a program must not do to a region behind the library's back: munmap(), mremap(),
 * mprotect(), madvise(MADV_DONTNEED and relatives).  Use up_unmap(), up_protect() and
 * up_advise().  Never hand the region to a second userfaultfd.  With UP_TRACK_FOREIGN the first, the second and the last of these
 * are followed; not on what up_heap_create() made.
 */
#ifndef UFFD_PAGER_H
#define UFFD_PAGER_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define UP_API __attribute__((visibility("default")))
#else
#define UP_API
#endif

#define UP_VERSION_MAJOR 0
#define UP_VERSION_MINOR 1
#define UP_VERSION_PATCH 0

/* The only page size there is, in bytes. */
#define UP_PAGE_SIZE 4096u

/* The smallest up_config.memory_limit that is accepted, in bytes. */
#define UP_MEMORY_LIMIT_MIN ((size_t)2 << 20)

/* The largest up_config.service_threads. */
#define UP_SERVICE_THREADS_MAX 16

/* One pager: its threads, its memory limit, its swap.  Several may live in one process. */
struct up_runtime;

/* A source of pages that can be mapped; reference counted. */
struct up_object;

/* malloc() and its family in a region of a runtime. */
struct up_heap;

/* Severity of a log line. */
enum up_log_level {
	UP_LOG_ERROR = 0, /* data was lost, or a call was refused */
	UP_LOG_WARNING,	  /* works, but with less than asked for */
	UP_LOG_INFO,	  /* said once: features found, where the swap is */
};

/*
 * Receives one line, without newline, valid during the call only.  May be called from any
 * thread that is inside a call of this library, and from the runtime's service threads: it
 * must not touch paged memory, must not call this library, and should not block.
 */
typedef void (*up_log_fn)(void *ctx, enum up_log_level level, const char *line);

/*
 * up_config.feature_mask: kernel features to leave alone even when they are there, to run
 * as on an older kernel.
 */
#define UP_MASK_MOVE (UINT64_C(1) << 0)	    /* UFFDIO_MOVE, Linux 6.8 */
#define UP_MASK_POISON (UINT64_C(1) << 1)   /* UFFDIO_POISON, Linux 6.6 */
#define UP_MASK_ODIRECT (UINT64_C(1) << 2)  /* O_DIRECT on the swap file, and on files of objects */
#define UP_MASK_DEV_UFFD (UINT64_C(1) << 3) /* /dev/userfaultfd, Linux 6.1 */
#define UP_MASK_KERNEL_FAULTS (UINT64_C(1) << 4) /* faults from inside system calls */
#define UP_MASK_RING_FLAGS (UINT64_C(1) << 5)	 /* io_uring set-up flags, Linux 6.1 */
#define UP_MASK_SHARED (UINT64_C(1) << 6)	 /* write-protection of shared memory, Linux 5.19 */
#define UP_MASK_VECTOR \
	(UINT64_C(1) << 7) /* MADV_DONTNEED of pages all over in one call, Linux 6.13 */
#define UP_MASK_ALL ((UINT64_C(1) << 8) - 1)

/* Who serves a fault, up_config.delivery. */
enum up_delivery {
	/*
	 * A service thread does, and wakes the one that touched: a system call that touches a page that is not in memory waits for it
	 * as well.
	 */
	UP_DELIVER_SERVICE = 0,
	/*
	 * The thread that touched does it itself, in a handler of SIGBUS: no wake-up, no other thread, and threads that fault do so side
	 * by side.  In exchange:
	 *
	 *	- A system call that touches a page that is not in memory fails with EFAULT, or with a part of what it was to do:
	 *	  up_prefault() its buffers, or up_wire() them.  So does one that stores into a page that came back from swap for
	 *	  a load, until a thread has stored into it: who touches instead of up_prefault() must store.
	 *	- SIGBUS is the library's while there is such a runtime.  What was installed before (signal handlers are the process's) is
	 *	  called for what is not ours, and for pages that are lost.  A handler that is installed later has to call
	 *	  up_handle_sigbus() first.
	 *	- No thread that touches regions may have SIGBUS blocked, and it needs 32 KiB of room on the stack that it is on, which
	 *	  must not be paged memory.  The handler blocks all other signals, leaves errno alone, is not cancelled
	 *	  (pthread_cancel()), and calls nothing of the program's: log lines come later, and pages of custom pagers from
	 *	  service threads.
	 *
	 * Service threads there are all the same, for pageout, for advice, for forked children, and for custom pagers, whose pages come one
	 * at a time (up_prefault() or UP_ADVICE_WILLNEED bring in many).
	 */
	UP_DELIVER_INLINE,
};

/* Whether cold pages are kept in memory in less room before they go to swap, up_config.compression. */
enum up_compression {
	UP_COMPRESS_NONE = 0,
	UP_COMPRESS_LZ4,  /* a few microseconds a page */
	UP_COMPRESS_ZSTD, /* smaller, and several times as slow */
};

/* up_config.flags */
#define UP_OVERCOMMIT (1u << 0) /* every up_map() as if with UP_NORESERVE */
/*
 * Follow what the program does to regions behind the library's back: munmap(), mremap(), madvise(MADV_DONTNEED) and its
 * relatives, and mmap(MAP_FIXED) over them, of any part and from any thread.  Linux 6.8, and neither UP_MASK_MOVE nor
 * UP_MASK_POISON, else -ENOSYS.
 *
 *	madvise()  discards, as UP_ADVICE_DONTNEED; ranges that are wired stay wired, and read as zeros.
 *	munmap()   as up_unmap(), but what is in the page table is gone before the library hears of it: of a shared mapping of
 *		   a named object what has changed there since it was last written back is lost (with a log line); of one of
 *		   an anonymous object those pages are lost: SIGBUS.  Use up_unmap() for these.
 *	mremap()   the range is where it was moved to, and shorter by what was cut off.  Pages by which it grows, and the old
 *		   range of MREMAP_DONTUNMAP, belong to no mapping: SIGBUS.  Use up_remap() to grow.  What one thread moves to
 *		   addresses that another has unmapped or moved away in the same moment, and then on, is lost: SIGBUS, with
 *		   a log line.
 *
 * Each such call waits for the library, 20 to 100 us, and so do calls of the library's own and page-ins while one is under way.
 * Not to be had with it: read-only ranges (up_map() and up_protect() with PROT_READ alone: -ENOTSUP), and UP_MULTI mappings and
 * up_inherit(), as with UP_MASK_SHARED.  A program that makes such calls without any pause keeps page-ins waiting; up_map(), up_clone()
 * and up_remap() then say -EAGAIN after some seconds.  Two threads of the program that do such things to the same range at the same
 * time race as without the library.
 */
#define UP_TRACK_FOREIGN (1u << 1)

/* What to create.  Zero everywhere is a sound default: set the fields you care about. */
struct up_config {
	/*
	 * Hard limit, bytes: resident paged memory plus the library's own metadata.  It
	 * does not cover the kernel's page tables.  At least UP_MEMORY_LIMIT_MIN, at most 8 TiB.
	 * 0: a quarter of the machine's memory, or of the memory cgroup's limit if that is less.
	 */
	size_t memory_limit;

	/*
	 * Where cold pages go: a file (created if missing, truncated, left behind empty)
	 * or a block device (its contents are lost).  The string is copied.  NULL: an
	 * unlinked file in $TMPDIR, else /var/tmp, else the working directory; those in memory
	 * (tmpfs) are passed over.
	 */
	const char *swap_path;

	/*
	 * Instead of swap_path, an open descriptor of a file or block device, used if it
	 * is above 0.  It is duplicated: yours stays yours, and stays open.
	 */
	int swap_fd;

	/*
	 * Threads that serve faults, at most UP_SERVICE_THREADS_MAX; 0: one per CPU, at most 4,
	 * and one below a limit of 32 MiB, for each takes a quarter of a megabyte of it.
	 */
	unsigned service_threads;

	/*
	 * Swap space, bytes.  0: a block device's size; for a file as much as the mapped
	 * regions need, allocated when they are mapped.
	 */
	uint64_t swap_size;

	uint64_t feature_mask; /* UP_MASK_*; unknown bits are -EINVAL */

	up_log_fn log; /* NULL: silent */
	void *log_ctx; /* handed to log */

	unsigned flags; /* UP_OVERCOMMIT, UP_TRACK_FOREIGN */

	/*
	 * A fault that can not be served for this long, since every frame is pinned or the
	 * swap refuses every write, becomes SIGBUS, and the page's content is lost.
	 * Milliseconds; 0: 30,000.
	 */
	unsigned fault_timeout_ms;

	/*
	 * The most that up_wire() may hold in memory, bytes; at most memory_limit.  0: half of that.
	 * What is wired and the metadata that is promised to regions come out of the same limit.
	 */
	uint64_t wire_limit;

	enum up_delivery delivery; /* who serves a fault */

	enum up_compression compression;
	/*
	 * With it: the most that compressed pages take of memory_limit, bytes; 0: two thirds of it.  How much it is at a time depends on
	 * what they earn.
	 */
	uint64_t compress_limit;

	/*
	 * UP_DELIVER_INLINE: how long a thread that waits for a page from the swap, or from a file past the page cache, looks for it
	 * before it goes to sleep, microseconds, at most 1,000,000; 0: 200.  It saves what waking up takes, and costs the CPU meanwhile: it stops by itself while others want the
	 * CPU, while more threads wait than there are CPUs, and where reads take longer than this.  UP_NO_IO_POLL: never.  Linux 5.19, and
	 * a swap file that takes O_DIRECT; otherwise never.
	 */
	uint64_t io_poll_us;

	/*
	 * What up_runtime_set_limit() may raise memory_limit to, bytes; 0: no more than it is at first.  It costs address space, and of the
	 * limit some bytes for each MiB of it.
	 */
	uint64_t memory_limit_max;

	/*
	 * up_runtime_connect() only: the daemon is gone for good (its guardian too, or nobody has served for the guardian's away_timeout).  Called once, in a
	 * thread of the library's; touches of pages that are not in memory wait until it has returned, 5 s at most, and are SIGBUS from then on.  It must not
	 * touch such pages itself, nor destroy the runtime.  In a forked child it is not called.  NULL: nobody is told but by SIGBUS.
	 */
	void (*pager_lost)(void *ctx);
	void *pager_lost_ctx; /* handed to pager_lost */

	/*
	 * up_runtime_connect() only: the daemon is to end, and asks its clients to leave (up_runtime_destroy()).  All works as before for `ms` milliseconds; then the daemon is
	 * gone, as pager_lost has it.  0: it stays until the last client has left.  Called in a thread of the library's, each time that the daemon is told to end.  It may use the
	 * runtime, but not destroy it.  In a forked child it is not called.  NULL: nobody is told.
	 */
	void (*pager_leaving)(void *ctx, unsigned ms);
	void *pager_leaving_ctx; /* handed to pager_leaving */

	uint64_t reserved[3]; /* must be zero */
};
#define UP_NO_IO_POLL UINT64_MAX

/*
 * Create a runtime.  `cfg` may be NULL (all defaults) and is not kept.
 *
 * Success: *rt is yours until up_runtime_destroy().  Failure: *rt is NULL.
 * -EINVAL  a field is out of range.       -EPERM   userfaultfd or io_uring is not allowed
 * -ENOSYS  the kernel is too old (5.10).           here; the log line says the way out.
 * -ENOMEM, -ENOSPC, and what open() of the swap said.
 */
UP_API int up_runtime_create(struct up_runtime **rt, const struct up_config *cfg);

/*
 * Unmap every region, stop the threads, give everything back.  NULL is fine.  No other
 * call on this runtime may be in progress or follow; objects that are still referenced by
 * the caller die with it.  In a forked child it does nothing.  It waits for every request that a custom
 * pager has: page-ins are cancelled first, and a pager that never completes them hangs it.
 */
UP_API void up_runtime_destroy(struct up_runtime *rt);

/*
 * For a handler of SIGBUS that the program installs after it has created a runtime with UP_DELIVER_INLINE: what it was called with, a
 * siginfo_t (which strict C11 does not have) and the context.
 * 1: a page that was not in memory is now, or the touch is to be tried again: return.  0: it is something else: what is lost, or not ours; as always in a process without
 * such a runtime.  `context` may be NULL.  To be called in a signal handler, and as the first thing: errno stays as it is.  The handler is
 * to be installed with all signals in its sa_mask: one that interrupts it, and touches a region, finds SIGBUS blocked, which kills.
 */
UP_API int up_handle_sigbus(const void *info, void *context);

/*
 * Change up_config.memory_limit, to between UP_MEMORY_LIMIT_MIN and memory_limit_max, bytes; rounded down to whole pages.  wire_limit and
 * compress_limit stay what they were, or are the same share of it as by default.  Once this has returned 0, the new limit holds.
 *
 * To make it less takes as long as what is above it takes to be paged out, at most `timeout_ms` milliseconds (0: up_config.fault_timeout_ms).  Threads go
 * on meanwhile, and find less room already.  It is not to be called by functions of the program that the library waits for: those of custom pagers.
 *
 * On failure the limit is what it was, but some of what was paged out for it may still be.
 * -EINVAL     out of range.
 * -EBUSY      what has been promised does not fit: wired pages, metadata of reserved regions, minima of a daemon's clients.
 * -ETIMEDOUT  not enough could be paged out: pinned for I/O, or the swap is slow, full or fails.
 * -ENOTSUP    a daemon is the pager.
 */
UP_API int up_runtime_set_limit(struct up_runtime *rt, size_t bytes, unsigned timeout_ms);

/*
 * The same, with a daemon (uffd-pagerd) as the pager, to whose socket at `path` this connects: one budget and one swap for all its clients.  Of
 * `cfg`, which may be NULL, log and log_ctx are used, and feature_mask; the rest is the daemon's to say.
 *
 * All calls work on it but those of custom pagers and up_remap(), which are -ENOTSUP.  An object with a
 * name is found by other programs as well, of the same user and of those whom its mode lets (up_object_create_mode()).  up_stats_get() tells of this program's part.  A call for which the
 * daemon can not be reached any more is -ENOTCONN: what is in memory stays there, and can be unmapped; touching a page that is not raises SIGBUS.
 * If it is killed, and its guardian starts another one, calls and faults wait until that serves, and go on; up_object_remove() may then say -ENOENT of what it has
 * just removed, and creating an object with a name may find one that another program of the same user has made.
 *
 * -EINVAL, what connect() says, -ENOTCONN: the daemon does not take us, -EPROTONOSUPPORT: it speaks another version; -EPERM, -ENOSYS as above.
 */
UP_API int up_runtime_connect(struct up_runtime **rt, const char *path,
			      const struct up_config *cfg);

/* up_map() flags.  One of the first two is required. */
#define UP_PRIVATE (1u << 0) /* writes are this mapping's own */
#define UP_SHARED (1u << 1)  /* writes go to the object */
#define UP_FIXED (1u << 2)   /* exactly at hint, or -EEXIST if anything is there */
/*
 * Do not reserve swap and metadata for the worst case: a region of any size maps at once,
 * and a fault that finds the swap or the limit exhausted is SIGBUS.
 */
#define UP_NORESERVE (1u << 3)
/*
 * With UP_SHARED: the same pages may be mapped in several places, and shared with forked children (up_inherit()); what is
 * written in one place is seen in the others at once.  All mappings that an object has at a time must have it, or none.
 *
 * Such pages are of a file in memory.  Nobody can tell there that a page is pinned for I/O (O_DIRECT, registered buffers), and
 * what such I/O stores into a page after it was thrown out is lost: up_wire() buffers for as long as it lasts.
 */
#define UP_MULTI (1u << 4)

/*
 * Map `length` bytes of `object` from `offset` at *addr.
 *
 * `object` NULL: anonymous memory, zero-filled, offset 0; UP_PRIVATE.  An object made by
 * up_object_create_anon(): with UP_SHARED a page of it can be mapped in one place at a time
 * (-EBUSY; in several with UP_MULTI), and what was written stays in the object after up_unmap(); UP_PRIVATE maps a copy of
 * it as it is now, see up_clone(), and up_object's own reservation decides about UP_NORESERVE.  The
 * mapping takes a reference of its own.  `hint` may be NULL, and is rounded down unless UP_FIXED.  `prot` is PROT_NONE or a combination of
 * PROT_READ, PROT_WRITE; a region is readable whenever it is writable.
 *
 * Success: *addr is mapped until up_unmap() or up_runtime_destroy().
 * -EINVAL  an argument is out of range.      -ENOMEM  limit too small for the metadata of a
 * -ENOSPC  the swap can not hold the region.          reserved region, or address space is out.
 * -EEXIST  UP_FIXED and occupied.            -EBUSY   see above.
 * -EACCES  PROT_WRITE and a snapshot;        -ENOTSUP a combination that this version does not have.
 *          UP_SHARED and a name that may be read only (up_object_create_mode()).
 */
UP_API int up_map(struct up_runtime *rt, void *hint, size_t length, int prot, unsigned flags,
		  struct up_object *object, uint64_t offset, void **addr);

/*
 * Unmap all that is mapped through `rt` in the range; gaps are fine.  Waits for I/O in
 * flight on those pages, but for what custom pagers read: that is cancelled.  Another thread that touches the range gets SIGSEGV.
 * -EINVAL  a bad range.  -ENOMEM  no room to split an entry; nothing was unmapped.
 */
UP_API int up_unmap(struct up_runtime *rt, void *addr, size_t length);

/*
 * Change the protection; as mprotect(), with SIGSEGV for what is not allowed.
 * -EINVAL  a bad range or prot.  -ENOMEM  part of the range is not mapped through `rt`.
 * -EACCES  PROT_WRITE and a snapshot.
 */
UP_API int up_protect(struct up_runtime *rt, void *addr, size_t length, int prot);

/* up_remap() flags */
#define UP_MAYMOVE (1u << 0) /* go elsewhere if there is no room to grow */

/*
 * Make the range [addr, addr + old_length) `new_length` bytes long; as mremap().  Its contents stay.
 *
 * Shorter: the end is unmapped.  Longer: new pages follow on, private ones zero-filled, those of a
 * shared object its next ones; they have the protection, the advice and the promises of what was the
 * last page.  The range stays where it is if the addresses behind it are free; else, with UP_MAYMOVE,
 * all of it moves to where there is room.  It may consist of several mappings, and be any part of them.
 *
 * Moving takes pages out of the page table, a few microseconds each, and the first touch at the new
 * address is a soft fault.  Another thread that touches the range at the old address gets SIGSEGV.
 * I/O that the kernel still does into it (O_DIRECT, registered buffers) must have ended: it would go
 * to pages that nobody sees.
 *
 * Success: *new_addr is where the range is now, and `addr` is not mapped if that is another.
 * -EINVAL  an argument is out of range, or   -ENOMEM  part of the range is not mapped, there is no place
 *          the object ends.                           to grow into, no room for its metadata or for a map
 * -EBUSY   longer: a part is wired, or the            entry.
 *          object's next pages are mapped.   -ENOSPC  the swap can not hold it.
 * -ENOTSUP longer: private memory that shares pages with a clone of it or with what it is a clone of, or a private
 *          mapping of an object.  A shared range can grow as long as the object has pages there.
 */
UP_API int up_remap(struct up_runtime *rt, void *addr, size_t old_length, size_t new_length,
		    unsigned flags, void **new_addr);

enum up_advice {
	UP_ADVICE_NORMAL = 0, /* read ahead as the pattern suggests (the default) */
	UP_ADVICE_SEQUENTIAL, /* read far ahead from the first fault on; what was compressed and read so leaves before other pages */
	UP_ADVICE_RANDOM,     /* never read ahead */
	UP_ADVICE_WILLNEED,   /* start bringing the range in; returns at once */
	UP_ADVICE_DONTNEED, /* discard the contents: the range reads as zeros afterwards; see below */
	UP_ADVICE_COLD	    /* throw these pages out before others */
};

/*
 * Advise about a range.  The first three stay with the mapping; the others act once.
 * DONTNEED also clears pages that were lost to an error; if a part is wired it is -EINVAL, as madvise()
 * says of locked memory.  COLD passes wired pages by.  Memory of a named object reads as its source has it after DONTNEED;
 * what was changed in a shared mapping is written back first, and what can not be is kept.
 * -EINVAL  a bad range or advice.  -ENOMEM  part of the range is not mapped through `rt`; or DONTNEED of a clone, and no
 * metadata left within the limit to remember that: what lies before it in the range may be discarded.
 */
UP_API int up_advise(struct up_runtime *rt, void *addr, size_t length, enum up_advice advice);

/*
 * Bring every page of the range into the page table, copying what is shared with a clone and reading what is
 * a named object's, so that neither system calls nor time-critical
 * code fault on them, until pageout takes them out again.  Reads are in flight many at a time; content
 * is not touched, only put in place, so others may be writing to it.  `write` not 0: the range must be
 * writable.
 *
 * Returns when every page has been in the page table, which takes as long as the disk takes; unlike
 * with the other calls that work on ranges, no other call waits for this one.  A page that was there
 * already counts as brought in just now, so all of a range is there on return if nobody else needed
 * the memory.  Works also where system calls can not have their faults served (UP_MASK_KERNEL_FAULTS).
 * A page brought in is counted as a fault of its kind, or as read ahead.
 *
 * A call that failed may have brought in a part.
 * -EINVAL  a bad range.                     -EAGAIN  no room could be made within fault_timeout_ms;
 * -EACCES  the protection of a part does             nothing is lost by it, unlike by a fault.
 *          not allow it.                    -EIO     a page is lost, or its source has none.
 * -ENOMEM  part of the range is not mapped  -ENOSPC  UP_NORESERVE, and swap or limit are exhausted;
 *          through `rt` (any more), or it            nothing is lost by it.
 *          is larger than the memory that the limit has for pages at present.
 */
UP_API int up_prefault(struct up_runtime *rt, void *addr, size_t length, int write);

/*
 * Wire: as mlock(), every page of the range is in the page table on return, and pageout takes none of
 * them out until up_unwire(), or up_unmap() of it; what would have to take them out is refused (up_clone()
 * and its relatives, DONTNEED).  (The kernel may: where the machine has swap of its
 * own, they are its pages like others.)  Unlike with mlock(), calls nest: a page stays wired until it has
 * been unwired as often as wired.  Any part of a mapping can be wired or unwired.
 *
 * Most of the range is brought in as by up_prefault(), while other calls go on; what is missing after
 * that, while calls that change mappings wait.  Protection may be changed afterwards, also to PROT_NONE.
 * Of a heap's memory: unwire before up_free(), or the pages can not be discarded and are not handed out again.
 *
 * With a daemon as the pager one program may wire a quarter of what the daemon can hold, that is an eighth of its memory_limit, and no more than
 * half of what it is limited to itself or in its group; beyond that it is -EDQUOT.  All programs together may have half of memory_limit, and, with
 * what some of them were promised as a minimum, three quarters: beyond that it is -ENOMEM.  If the daemon is killed and another one
 * goes on, what is wired stays wired; of a range of which a page can not be had in memory then, it is not any more, and the daemon's log says so.
 *
 * Pages brought in by a call that failed may stay in memory, unwired.
 * -EINVAL  a bad range.                      -EAGAIN  no room could be made within fault_timeout_ms.
 * -EACCES  a part is PROT_NONE.                       So if the pager of an object does not give back
 * -EIO     a page is lost.                            what it had given before.
 * -ENOMEM  part of the range is not mapped,  -ENOSPC  UP_NORESERVE, and swap or limit are exhausted.
 *          more would be wired than wire_limit, or than the limit has beside the metadata that is
 *          promised to regions, or no room to split an entry.
 */
UP_API int up_wire(struct up_runtime *rt, void *addr, size_t length);

/*
 * Undo one up_wire() of every page of the range.
 * -EINVAL  a bad range, or a part is not wired.
 * -ENOMEM  part of it is not mapped, or no room to split an entry.
 */
UP_API int up_unwire(struct up_runtime *rt, void *addr, size_t length);

/* What a forked child gets of a range. */
enum up_inherit {
	UP_INHERIT_NONE = 0, /* nothing: touching it there is SIGSEGV (the default) */
	UP_INHERIT_COPY, /* a copy of what it is at fork(); what either writes from then on is its own */
	UP_INHERIT_SHARE /* the same memory; UP_MULTI mappings only */
};

/*
 * What children that this process forks from now on get of a range, at the same addresses.  The runtime in this process serves
 * their faults, and what they have is within its memory limit and its swap: a fork() promises as much as up_clone() of all
 * that is copied.  If that is not to be had, or a page is pinned or wired as for up_clone(), the child gets none of it, and
 * the log says so.  A child may fork again.  Its calls into this library still say -ECHILD.
 *
 * fork() waits like up_clone() does, and copies no data; the copy is what memory is at the instant of the fork, for all threads.
 * It has to be the C library's fork(): a child of a bare clone() has none of the ranges.  They are gone after exec().
 * A page that the child touches costs a copy to another process, a few microseconds more than in this one.  There, all of it is
 * as UP_MULTI says: it must not be given to I/O that pins it.
 *
 * When this process ends, is killed or executes another program, what the child has in memory stays as it is, and a page
 * that it would have to be brought is SIGBUS; all of it is when the runtime is destroyed.
 * A thread in the child, created by fork(), sees to that.  So a daemon forks first, and creates its runtimes afterwards.
 *
 * up_config.log may be called in fork(), in the parent and in the child, with what locks pthread_atfork() handlers of the program have
 * taken by then: it must not wait for one of those.
 *
 * -EINVAL  a bad range or value.         -ENOMEM  part of the range is not mapped through `rt`, or no room.
 * -ENOTSUP SHARE of a mapping that is not UP_MULTI, COPY of a shared one of a named object, or neither is to be had on this kernel
 *          (UP_MASK_SHARED).
 */
UP_API int up_inherit(struct up_runtime *rt, void *addr, size_t length, enum up_inherit inherit);

/* up_residency() bits */
/*
 * In the page table: a touch costs nothing, but for the first store to a page that has come back from swap for a load.  Of a shared
 * mapping: a fault of the kernel's own at most.
 */
#define UP_PAGE_MAPPED (1u << 0)
#define UP_PAGE_STAGED (1u << 1)  /* in memory: a touch is a soft fault */
#define UP_PAGE_SWAPPED (1u << 2) /* has a copy in swap, maybe of older content if it is mapped */
#define UP_PAGE_LOST (1u << 3)	  /* a touch is SIGBUS */
#define UP_PAGE_COMPRESSED (1u << 5) /* in memory, compressed: a touch is a soft fault */
#define UP_PAGE_WIRED (1u << 4)	     /* mapped, and never taken out; see up_wire() */

/*
 * As mincore(): one byte a page in vec[0 .. length / UP_PAGE_SIZE), a sum of UP_PAGE_*; 0 for
 * a page never written.  A snapshot, old when it returns.
 * -EINVAL  a bad range.  -ENOMEM  part of the range is not mapped through `rt`.
 */
UP_API int up_residency(struct up_runtime *rt, const void *addr, size_t length, unsigned char *vec);

/*
 * Create an anonymous object of `size` bytes: zero-filled memory that outlives its mappings.
 * `flags`: 0 or UP_NORESERVE.  Success: *obj holds one reference, yours.
 * -EINVAL, -ENOMEM, -ENOSPC as up_map().
 */
UP_API int up_object_create_anon(struct up_runtime *rt, uint64_t size, unsigned flags,
				 struct up_object **obj);

/* The longest name of an object, bytes, without the terminating 0. */
#define UP_OBJECT_NAME_MAX 255

/*
 * "Files in swap": an anonymous object that other parts of the program find by its name.  The name is copied, and keeps
 * the object and its content until up_object_remove(), or up_runtime_destroy(), whoever drops his references.
 *
 * create_named: as up_object_create_anon(); -EEXIST if there is one of that name.  open: *obj holds one more reference,
 * yours; -ENOENT, -EACCES (up_object_create_mode()).  remove: the name is free again; the object lives on while it is mapped or referenced; -ENOENT,
 * -EACCES.
 * All: -EINVAL for a name that is empty or too long.
 */
UP_API int up_object_create_named(struct up_runtime *rt, const char *name, uint64_t size,
				  unsigned flags, struct up_object **obj);
UP_API int up_object_open(struct up_runtime *rt, const char *name, struct up_object **obj);
UP_API int up_object_remove(struct up_runtime *rt, const char *name);

/*
 * With a daemon as the pager a name belongs to the user and the group of the program that made it, as they were when it connected, and has a mode as
 * a file has: who is the owner has the first three bits of it, else who is in the group the next three, else the last; root may everything.
 * A runtime of the program's own is one user's, and only checks that the arguments make sense.
 *
 *	read and write  open, and map UP_SHARED or UP_PRIVATE.  What others map shared then depends on this program as well.
 *	read            open, and map UP_PRIVATE (PROT_WRITE is fine: a copy as it is now, see up_map()) and up_object_snapshot().  UP_SHARED is
 *			-EACCES, with PROT_READ alone as well: the kernel serves no faults of memory that can not be made writable.
 *	write alone     nothing, as what is mapped can always be read
 *	neither         -EACCES, of up_object_open()
 *
 * What somebody has open or mapped stays as it is when the mode changes.  remove, chmod and chown are the owner's and root's: -EACCES for others.
 *
 * create_mode: as up_object_create_named(), which is 0600.  Of `mode` only 0666 may be set (-EINVAL); no umask is applied; who makes it may write, whatever
 * the mode.  chmod: -ENOENT.  chown: (uid_t)-1 and (gid_t)-1 leave what is there; the owner may give it to a group that he is in, and nobody but root to another
 * user (-EPERM), who has no more names with it than he may (-EDQUOT); -ENOENT.
 */
UP_API int up_object_create_mode(struct up_runtime *rt, const char *name, uint64_t size,
				 unsigned flags, unsigned mode, struct up_object **obj);
UP_API int up_object_chmod(struct up_runtime *rt, const char *name, unsigned mode);
UP_API int up_object_chown(struct up_runtime *rt, const char *name, uid_t uid, gid_t gid);

/*
 * Named objects: their pages come from somewhere, and go back there.
 *
 *	UP_SHARED   what is written goes back to the source: the pages that changed and only those, at up_sync(), when they
 *		    are thrown out, and when they are unmapped.  A page can be mapped in one place at a time, in several with UP_MULTI.  Nothing is
 *		    reserved, whatever the size: a fault that finds no room for metadata within the limit is SIGBUS.
 *	UP_PRIVATE  what is written is the mapping's own, and goes to the swap; reserved as anonymous memory is.
 *
 * Whether a page has changed is told by a 64-bit hash of its content.  So to store in a page only the bytes that it has already does not
 * count as writing: in a private mapping such a page still shows what the source has, should that change later.  The last page reads as zeros behind the end of the object.  A page
 * that can not be had (the source failed, or ends before it by now) is SIGBUS, until it is discarded or unmapped.  A write that fails keeps the
 * page in memory and is tried again; up_sync() tells of it once.  What can not be written back when it is unmapped is lost,
 * with a log line.
 *
 * All: success: *obj holds one reference, yours.  -EINVAL, -ENOMEM, and what is said below.
 */

/*
 * A regular file from `offset` (a multiple of the page size) on, `size` bytes; 0: to its end.  Pages beyond the end of the file
 * are SIGBUS.  What of the file is in the kernel's page cache is read and written there; the rest goes past it (O_DIRECT), where kernel (Linux 6.5)
 * and file system know how, and else through it.  Either way what somebody else has written or stored into a mapping of the file is what a page-in
 * reads, and what has been written back is what he sees; two who write to the same page at the same time overwrite each other's, and may
 * be told so by fsync() and up_sync() (EIO).  So no memory but the runtime's is used for the file; who wants the kernel to cache it beside has it read in before
 * (POSIX_FADV_WILLNEED), or creates the runtime with UP_MASK_ODIRECT.  The file is opened once more through `fd`, so that its flags (O_APPEND,
 * O_DIRECT) are the caller's own business; where that is not allowed, it is duplicated, and may have neither of them (-EACCES; set later,
 * O_APPEND is an error of write-back).  If it is not open for writing, UP_SHARED with
 * PROT_WRITE is -EACCES.  `flags`: 0.  -EBADF, and other errors of fstat().  Of a daemon also -ENOTSUP: a file of a file system that a process answers
 * for (FUSE); -EXDEV: of one that is mounted neither where the daemon is nor where the caller is.  See `fuse` in uffd-pagerd.conf(5).
 */
UP_API int up_object_create_file(struct up_runtime *rt, int fd, uint64_t offset, uint64_t size,
				 unsigned flags, struct up_object **obj);

/*
 * A block device, or a file of which nothing shall be in the page cache: whole sectors by O_DIRECT.  Else as up_object_create_file(), for
 * all of it.  `fd` is opened again through /proc; yours stays as it is.
 */
UP_API int up_object_create_device(struct up_runtime *rt, int fd, unsigned flags,
				   struct up_object **obj);

/* One run of pages of a custom object, to be filled or to be kept. */
struct up_request;

/*
 * A pager of your own.  The functions are called on a thread of the library that serves other faults as well: what takes its
 * time belongs on a thread of yours.  They must not touch paged memory of this runtime, nor call the library but for
 * up_request_*().
 */
struct up_pager_ops {
	size_t size; /* sizeof(struct up_pager_ops) */
	/*
	 * Fill the buffer of `req`.  0: up_request_complete() has been called, or will be, from any thread.  -errno: it
	 * will not be; the request failed.  Several may be under way.  One that is never completed keeps who touches its pages
	 * waiting, and nobody else: to unmap, discard, move or clone a range, or to look at it, waits for no page-in.  Those
	 * that are under way there are cancelled, see below, and a page that is still there is asked for again when it is
	 * touched, and may be paged out again, perhaps while the cancelled request is not completed yet.
	 */
	int (*page_in)(void *ctx, struct up_request *req);
	/*
	 * The same: keep what is in the buffer.  NULL: the object can not be written to.  A page-out is never cancelled: to
	 * unmap or sync its range, or to destroy the runtime, waits for it.
	 */
	int (*page_out)(void *ctx, struct up_request *req);
	/*
	 * The object is gone; no request is under way.  May be NULL.  Called in up_*() of the thread that let go of it last; or, if
	 * requests were still under way then, on a thread of the library as the others, when the last of them has been completed.
	 */
	void (*destroy)(void *ctx);

	/* What follows is new: `size` tells whether it is there. */

	/*
	 * Nobody wants what this page-in reads any more.  It must still be completed, sooner or later, with any status; its buffer
	 * stays until then.  It may just have been completed by another thread of yours: then there is nothing to do.  No
	 * other request has the same address until this call has returned.  Called once at most, on a thread of the library or one in
	 * up_*().  May be NULL.
	 */
	void (*cancel)(void *ctx, struct up_request *req);

	/*
	 * Asked before a page-in: is there a page at `offset`?  May be NULL: all of them are.  It must not block.
	 *
	 * 1: yes.  *before and *after, 0 at first: how many bytes in front of that page and behind it are there as well and best read
	 *    in the same request.  The request is for no more, but may be for less.  (UP_ADVICE_RANDOM: for the page alone.)
	 * 0: no.  It reads as zeros, without a request; so do *after bytes behind it.  Once it has been touched it is a page like others:
	 *    written back when it has changed.
	 * -errno: it can not be had: SIGBUS, as if page_in had failed.
	 */
	int (*has_page)(void *ctx, uint64_t offset, size_t *before, size_t *after);
};

/*
 * An object of `size` bytes whose pages your functions provide.  `ops` is copied; `ctx` is handed to them and stays yours to free,
 * at `destroy`.  On failure `destroy` is called if the arguments were sound.
 */
UP_API int up_object_create_custom(struct up_runtime *rt, uint64_t size,
				   const struct up_pager_ops *ops, void *ctx,
				   struct up_object **obj);

/* Where in the object, bytes, a multiple of the page size; how many bytes, less than whole pages only at its end. */
UP_API uint64_t up_request_offset(const struct up_request *req);
UP_API size_t up_request_length(const struct up_request *req);
/* Page aligned, and valid until the request is completed.  Of a page-out it must not be written to. */
UP_API void *up_request_buffer(const struct up_request *req);
/* The request is done: 0, or -errno.  Any thread, once; `req` is gone. */
UP_API void up_request_complete(struct up_request *req, int status);

/* up_sync() flags */
#define UP_SYNC_WAIT 0u		     /* until it is safe */
#define UP_SYNC_ASYNC (1u << 0)	     /* start it, and return */
#define UP_SYNC_INVALIDATE (1u << 1) /* and forget what is the same as in the source */

/*
 * Write what has changed in shared mappings of named objects in the range back, and wait until that is safe (fdatasync()).
 * Other memory in the range needs none.  Threads may go on writing meanwhile.  As msync().
 *
 * ASYNC: the writes are started, by the threads that serve faults, and the call does not wait for them.  What has changed leaves the page table for
 * that, so a thread that touches such a page waits until its write has ended.  Pages that are wired are written in the call; those
 * that are pinned for I/O not before the next waiting one.  Errors are told by that, once.
 *
 * INVALIDATE: wait, and let go of every page that is the same as in the source, so that the next touch reads what that has by then; also of private
 * mappings, whose changed pages stay, and those copied since a clone sees them too.  Lost pages of shared mappings are asked for again.
 *
 * 0, or the first error, of this call or of a write since the last one; those pages are kept and tried again.
 * -EINVAL  a bad range or flags.  -ENOMEM  part of the range is not mapped through `rt`.  -EBUSY  INVALIDATE, and a part is wired.
 */
UP_API int up_sync(struct up_runtime *rt, void *addr, size_t length, unsigned flags);

/* Take one more reference; returns `obj`.  NULL is fine.  Nothing happens in a forked child. */
UP_API struct up_object *up_object_ref(struct up_object *obj);

/* Drop one; the last (mappings count) frees pages and slots.  NULL is fine.  Nothing happens in a forked child. */
UP_API void up_object_unref(struct up_object *obj);

/*
 * Map a copy of [addr, addr + length) as it is now somewhere else, at *copy: private memory with the same protection,
 * advice and reservation.  What is written to either side from then on is seen there only.  Copies of copies are fine.
 *
 * No data is copied by the call, and the copy is one instant of the original: threads that touch paged memory of this
 * runtime while it is made wait until it is (0.05 to 0.2 us a page of the objects concerned that is in memory, and the
 * end of I/O in flight on them).  A page is copied when the first of those that see it touches it, to read or to write;
 * who is the last to see it takes it over instead.
 *
 * Success: *copy is mapped until up_unmap() or up_runtime_destroy().  Nothing is reserved for what both have in common
 * twice, but as much as for a new region of that length, in case both sides write everything (up_map()).
 * -EINVAL  an argument is out of range.      -ENOMEM  part of the range is not mapped through `rt`; or as up_map()
 * -ENOSPC  the swap can not hold the copy.   -ENOTSUP a shared mapping of a named object.
 * -EBUSY   a page is pinned for I/O (a registered buffer, O_DIRECT), or locked by mlock(), and was not let go of for
 *          half a second; or a page of the objects concerned is wired, in the range or not: it would have to leave
 *          the page table.
 */
UP_API int up_clone(struct up_runtime *rt, void *addr, size_t length, void **copy);

/*
 * Make an object that stays what `obj` is now, whoever writes to `obj` afterwards; see up_clone() for what it costs.  It can be
 * mapped UP_SHARED for reading, or UP_PRIVATE.  Success: *snapshot holds one reference, yours.
 * -EINVAL, -ENOMEM, -ENOSPC, -EBUSY as up_clone().  -ENOTSUP: a named object; others may write to its source.
 */
UP_API int up_object_snapshot(struct up_runtime *rt, struct up_object *obj,
			      struct up_object **snapshot);
/* What an object is and where its pages are; fields are only ever appended. */
struct up_object_stats {
	uint64_t id; /* 1, 2, ... in order of creation in its runtime; as up_map_dump() prints it */
	uint64_t size;	   /* bytes */
	uint64_t resident; /* in memory, in the page table or not, bytes */
	uint64_t swapped;  /* in swap only, bytes */
	uint64_t lost;	   /* unreadable, bytes */
	const char *pager; /* "anonymous", "file", "device" or "custom"; static storage */
	uint32_t refs; /* yours, its name's, and those of ranges that map it and objects above it */
	uint32_t depth; /* objects beneath, whose pages show through where it has none */
	int prot; /* PROT_READ, and PROT_WRITE unless a writable shared mapping would be -EACCES */
};

/*
 * Fill *info.  `size` is sizeof *info, as for up_stats_get().  The caller holds a reference.  The pages
 * are counted one by one: some milliseconds for each GiB that was ever touched, while faults on 2 MiB
 * of it at a time wait for some microseconds.  Old when it returns.  -EINVAL on NULL.
 */
UP_API int up_object_info(struct up_object *obj, struct up_object_stats *info, size_t size);

/* How a fault ended, for the latency histograms. */
enum up_fault_kind {
	UP_FAULT_MINOR = 0, /* the page was there already; the thread was woken */
	UP_FAULT_ZERO,	    /* never touched before: zero-filled */
	UP_FAULT_SOFT,	    /* in memory but unmapped: moved back */
	UP_FAULT_MAJOR,	    /* read from swap */
	UP_FAULT_WP,	    /* write to a protected page */
	UP_FAULT_KINDS
};

/* Nanoseconds from the pager's reading of the fault message to its answer. */
struct up_latency {
	uint64_t count;
	uint64_t p50, p99, p999, max; /* within 1/32 of the true value; max is exact */
};

/*
 * Counters since creation, and levels at the time of the call.  Fields are only ever
 * appended; see up_stats_get().
 *
 * With a daemon as the pager limit and limit_max are the daemon's, for all of its clients.  Of this runtime there are faults,
 * fault_waits, fault_retries, fault_exists, fault_sigbus and latency (within a quarter), resident, swapped (compressed memory and what is kept in
 * memory out of the program's reach are in it), wired, lost, mapped, entries and objects; used is resident, and metadata that of
 * its heaps.  The rest is not told, and 0.
 */
struct up_stats {
	/* faults, by outcome; `fault[UP_FAULT_MAJOR]` and so on */
	uint64_t faults[UP_FAULT_KINDS];
	uint64_t fault_waits;	   /* met a busy page, or no free frame, and waited */
	uint64_t fault_retries;	   /* the kernel said EAGAIN; tried again */
	uint64_t fault_strays;	   /* for an address being unmapped */
	uint64_t fault_sigbus;	   /* answered with SIGBUS */
	uint64_t rescues;	   /* soft faults on a page whose write was in flight */
	uint64_t foreign_discards; /* pages that the program discarded behind our back */

	/* read-ahead: pages brought in beside the demanded one */
	uint64_t readahead_pages;
	uint64_t zero_ahead_pages;

	/* pageout */
	uint64_t pages_staged; /* taken out of the page table */
	uint64_t pages_out;    /* left memory, by whichever way */
	uint64_t clean_skips;  /* found unchanged since they were written: not written again */
	uint64_t zero_skips;   /* found all zeros: not written, forgotten */
	uint64_t pages_pinned; /* could not be taken out; kept and tried later */

	/* swap */
	uint64_t swap_reads, swap_writes; /* I/O requests */
	uint64_t swap_read_bytes, swap_write_bytes;
	uint64_t swap_read_errors, swap_write_errors;
	uint64_t checksum_errors; /* pages that came back other than they left */
	uint64_t bad_slots;	  /* retired for good */

	/* levels, bytes */
	uint64_t limit; /* up_config.memory_limit, or what up_runtime_set_limit() has made of it */
	uint64_t resident;    /* in page tables of the program */
	uint64_t staged;      /* in memory, unmapped, content intact */
	uint64_t free_frames; /* in memory, without content */
	uint64_t metadata;    /* the library's own */
	uint64_t used;	      /* the four above and I/O buffers; never above limit */
	uint64_t used_max;    /* highest `used` since the limit was last changed */
	uint64_t swapped;     /* out of memory, content in swap */
	uint64_t
		lost; /* unreadable; of a connected runtime: of what it has mapped, as often as it has */

	/* reservation (swap space promised to mapped regions), bytes */
	uint64_t reserve_max, reserve_used, reserve_free;

	uint64_t mapped;	   /* address space mapped through the runtime, bytes */
	uint64_t entries, objects; /* counts */

	struct up_latency latency[UP_FAULT_KINDS];

	uint64_t copies; /* pages copied since somebody else sees them too: up_clone() */
	uint64_t source_reads, source_writes,
		source_errors; /* requests to the pagers of named objects */
	uint64_t wired;	       /* level: held in memory by up_wire(), bytes; part of `resident` */
	uint64_t
		mapped_anon, /* levels, bytes, the two parts of `resident`: private to the program, */
		mapped_named; /* and what the source of a named object has, or is to get */
	uint64_t
		referenced; /* shared pages left in place, since they had been touched where they are mapped */
	uint64_t
		foreign_events; /* UP_TRACK_FOREIGN: munmap() and the like of the program's own, acted upon */
	/* of what was read ahead of a stream, pages that it came to, and pages that left memory before it did */
	uint64_t readahead_hits, readahead_waste;
	/* the compressed tier: pages that went there, came back from there, and went on to swap; and levels, bytes */
	uint64_t pages_compressed, pages_decompressed, pages_written_back;
	uint64_t compressed;	  /* what is in it, decompressed */
	uint64_t compressed_pool; /* what that takes of the limit, part of `used` */
	uint64_t fault_exists;	  /* pages that were to be installed, and were there already */
	uint64_t limit_max;	  /* up_config.memory_limit_max, or memory_limit */
};

/*
 * Fill *st.  `size` is sizeof *st: a program built against an older header gets the fields
 * that it knows.  -EINVAL on NULL.
 */
UP_API int up_stats_get(struct up_runtime *rt, struct up_stats *st, size_t size);

/* Print the statistics for people, one screen, and flush.  -EINVAL on NULL, -EIO if printing failed. */
UP_API int up_stats_print(struct up_runtime *rt, FILE *out);

/*
 * Print the most recent events (faults, pageouts, swap I/O), oldest first, one a line.
 * The pager goes on recording meanwhile: an event overwritten while it is read is left out.
 * With a daemon as the pager: this program's faults and those of its children, and what was read for them.
 */
UP_API int up_trace_print(struct up_runtime *rt, FILE *out);

/*
 * Print the map, one line a range of addresses, lowest first, under a line that names the columns:
 *
 *	address perms offset object pager pages resident swapped lost refs wired fork name
 *
 * The first three are as in /proc/PID/maps, `p` private, `s` shared; then what up_object_info() says of
 * its object, sizes as counts of pages, how often the range is wired, what children get of it (up_inherit(): -, copy or
 * share), and the object's name if it has one.  Columns are separated by spaces, and wider where a number needs it.
 *
 * The objects beneath that object follow, one line each, nearest first, `over` in the column address, - in perms, wired and
 * fork, and in offset where the range begins there: what a page shows is of the first that has it.
 *
 * Behind this process come the children that it serves, oldest first, children of children among them: a line `child PID n`,
 * then its ranges in the same way.  n is - while the child is still on its way out of fork(); one that has just ended may
 * still be there.
 *
 * With a daemon as the pager it is the map of this runtime, and of children that were forked with it.
 *
 * A line costs as much as up_object_info(), unless the one before it is of the same object.  Calls that change mappings go ahead
 * between two lines: ranges, objects and children that change meanwhile may be missing or come in parts.
 * -EINVAL on NULL, -EIO if printing failed, -ENOTCONN: the daemon has gone.
 */
UP_API int up_map_dump(struct up_runtime *rt, FILE *out);

/* The features in use, as UP_MASK_* bits (a set bit: found and used). */
UP_API uint64_t up_features(struct up_runtime *rt);

/* "MAJOR.MINOR.PATCH" of the library that is linked in; static storage. */
UP_API const char *up_version(void);

/*
 * A heap: blocks of any size in one region, so that ordinary data structures live in paged memory.
 *
 * What the library knows of the blocks lies apart from them, wired, and counts as metadata against the
 * limit: allocating and freeing touch no block, and a block in swap is freed without being read.
 * Pages of which nothing is handed out are discarded, not swapped, but for one span of 64 KiB at most
 * that is kept for each of 36 sizes.
 *
 * With a daemon as the pager, blocks are in its memory, and what is known of them in this program's: at most half of what the daemon's
 * budget was when it was connected to, not counted by the daemon.  A discarded run of pages is a question to it.  When it is gone, blocks can be freed, and
 * their pages are not handed out again.
 *
 * Unlike the other calls, those that return a block say NULL and set errno, as malloc() does.
 * ENOMEM: no room in the heap, or none for metadata within the memory limit; ECHILD: in a forked
 * child; EINVAL: an argument.  Blocks are aligned to 16, those above 16 KiB to pages, and are the
 * caller's until up_free(), up_heap_destroy() or up_runtime_destroy().  Any thread may free them.
 */

/*
 * Create a heap over a region of `size` bytes, a multiple of the page size up to 16 TiB.
 * `flags`: 0, or UP_NORESERVE as in up_map(): with it a heap far larger than the swap costs nothing until
 * it is used, and a block that finds no swap or metadata left when it is touched is SIGBUS.
 *
 * Success: *heap is yours until up_heap_destroy() or up_runtime_destroy().  Failure: *heap is NULL.
 * -EINVAL  an argument is out of range.  -ENOMEM, -ENOSPC as up_map().
 */
UP_API int up_heap_create(struct up_runtime *rt, size_t size, unsigned flags,
			  struct up_heap **heap);

/*
 * Unmap the region with all that was allocated in it.  NULL is fine.  No other call on this heap
 * may be in progress or follow.  In a forked child it does nothing.
 */
UP_API void up_heap_destroy(struct up_heap *heap);

/* A block of at least n bytes, its content unknown.  n may be 0: a block of its own all the same. */
UP_API void *up_malloc(struct up_heap *heap, size_t n);

/* A block of count * size bytes, all zero.  One above 16 KiB is not touched for it. */
UP_API void *up_calloc(struct up_heap *heap, size_t count, size_t size);

/* A block at a multiple of `alignment`, a power of two. */
UP_API void *up_memalign(struct up_heap *heap, size_t alignment, size_t n);

/*
 * Make the block at `ptr` n bytes long; NULL: a new one.  Its content up to the smaller size stays.
 * It may move: what is returned replaces ptr.  NULL: nothing has changed, ptr is still yours.  A block made
 * smaller is never refused.  n may be 0, and is no up_free().  errno EINVAL: ptr is no block of this heap.
 */
UP_API void *up_realloc(struct up_heap *heap, void *ptr, size_t n);

/*
 * Free a block.  NULL is fine.  -EINVAL, and nothing has changed: ptr is not the start of a block of
 * this heap, or has been freed already and not handed out again since.
 */
UP_API int up_free(struct up_heap *heap, void *ptr);

/* Bytes that may be used of the block at `ptr`, at least what was asked for; 0 if it is none, or NULL. */
UP_API size_t up_malloc_usable_size(struct up_heap *heap, const void *ptr);

/* Levels, bytes unless it says otherwise.  Fields are only ever appended. */
struct up_heap_stats {
	void *base;	    /* the region: for up_advise(), never DONTNEED, and up_residency() */
	uint64_t size;	    /* of the region */
	uint64_t active;    /* pages that hold blocks; the rest of the region is discarded */
	uint64_t allocated; /* blocks handed out, with what they are rounded up by */
	uint64_t blocks;    /* their number */
	uint64_t metadata;  /* the heap's own, part of up_stats.metadata */
};

/* Fill *st; `size` is sizeof *st.  -EINVAL on NULL, -ECHILD in a forked child. */
UP_API int up_heap_stats_get(struct up_heap *heap, struct up_heap_stats *st, size_t size);

#ifdef __cplusplus
}
#endif
#endif
