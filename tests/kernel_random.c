/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * kernel_random.c: random operations of several threads on the real kernel, against an oracle that knows every byte.
 *
 *	kernel_random [--seconds N] [--seed S] [--threads T] [--memory BYTES] [--services K] [--mask LIST]
 *	              [--verbose]
 *
 * What test_random.c does over the simulated kernel, with threads that really run at the same time.
 *
 *	range    some mapping: anonymous, of an object or of a source, a clone; with holes, protections and wired parts
 *	thing    an object or a source that ranges map: anonymous (with a name or without), a snapshot, a file, a device,
 *	         a pager of the program whose threads answer late and out of order
 *	shadow   what must be in a range or thing, byte for byte, in ordinary private memory
 *
 * Each worker has ranges of its own; others are for everybody.  A round is one runtime, made and taken down, with a
 * limit that is a fraction of what is mapped.  Every word that is written says who wrote it, when and where, so
 * that one that is found at the wrong place tells where it comes from.
 *
 * Locks, outermost first:
 *
 *	still   read: any operation; write: main, to compare everything while nobody moves
 *	world   read: an operation that changes a shadow, with the paged memory that it describes; write: fork(), whose
 *	        child then has an oracle that is right.  Operations that only look go on meanwhile (OPEN)
 *	range   read: contents, and calls that change none; write: what changes the mapping or needs its contents to
 *	        stand still.  A second range is only ever try-locked
 *	stripe  of a range, 16 pages each: who has it writes there, or reads and knows what he must find
 *	wire    of a range: its wired counts
 *	thing   what it is and who maps it; its content is locked by the range that maps it shared
 *	desk    the requests that pagers keep
 *
 * In a forked child no lock means anything: there is one thread, and it has its copy of the oracle.
 *
 * Alternative looked at: the oracle of stress.c, a version a page.  It is small, but it can say nothing of writes to a part of a
 * page, and a clone or a snapshot of a range is more than a memcpy().
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "delivery.h"
#include "stress.h"

#define PAGE ((size_t)UP_PAGE_SIZE)
#define WORDS (PAGE / sizeof(uint64_t))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#define THREADS_MAX 16
#define OWN 4	 /* ranges of one worker */
#define COMMON 8 /* ranges of all */
#define THINGS 12
#define PAGES_MAX 1200 /* of a range, of a thing */
#define STRIPE 16
#define STRIPES (PAGES_MAX / STRIPE)
#define RUN_MAX 16 /* pages of one transfer; a pipe holds as many */
#define WIRED_MAX 3
#define BLOCKS 48	/* of the heap, of one worker */
#define BLOCK_MAX 24000 /* bytes */
#define HEAP_SIZE (PAGE * 1024)
#define KEPT_MAX 256
#define CHILDREN 5 /* that live on while their parent goes on */
#define CLERKS 2   /* threads that answer for the pagers of the program */
#define ROUND_SECONDS 8
#define GONE 0xff
#define SECOND UINT64_C(1000000000)

/* --- what there is --- */

enum kind { NOTHING, ANON, NAMED, SNAPSHOT, FILE_, DEVICE, CUSTOM };

struct mill;

struct thing {
	pthread_mutex_t lock;
	struct mill *m;
	enum kind kind;
	struct up_object *object;
	char name[24]; /* NAMED */
	size_t npages;
	uint64_t bytes;	 /* less than the pages only with a source */
	unsigned ranges; /* that map it shared, or show it where they were not written to */
	bool mapped;	 /* shared, by one range at most */
	bool fixed;	 /* nobody can write to it */
	bool multi;  /* mapped shared, it is so in two places, and can be shared with children */
	bool parted; /* there was a copy of it: it may be in a chain */
	/*
	 * Every word of it says where it belongs, so that private mappings can be looked at that show what is written to
	 * it, some time or other.
	 */
	bool pure;
	bool noreserve;
	atomic_bool sick; /* some of it was lost for want of metadata: good for nothing */
	uint64_t *
		shadow; /* [PAGES_MAX * WORDS]; locked by the range that maps it shared, else by lock */
	int fd;		/* FILE_, DEVICE: to look at it from outside */
	uint64_t offset;	      /* of page 0 in the file */
	uint64_t *store;	      /* CUSTOM (desk): what the pager has */
	unsigned char out[PAGES_MAX]; /* CUSTOM (desk): page-outs under way */
	struct {
		unsigned era;
		unsigned n;
	} in[PAGES_MAX]; /* CUSTOM (desk): page-ins under way that began in the latest era in which any did */
	atomic_uint changes;   /* calls under way that may cancel page-ins */
	atomic_uint era;       /* such calls that have ended */
	atomic_bool destroyed; /* CUSTOM */
};

struct range {
	pthread_rwlock_t lock;
	atomic_int holders; /* -1: one, exclusively */
	pthread_mutex_t stripe[STRIPES];
	pthread_mutex_t wire;
	int owner; /* constant; -1: everybody */
	char *va;  /* NULL: nothing is mapped here */
	size_t npages;
	struct thing *thing; /* NULL: private, zeros beneath */
	size_t first;	     /* page of the thing that page 0 shows */
	bool shared, fixed, noreserve;
	bool parted; /* may be in a chain */
	bool loose; /* private, of a pure thing that is written to: known are only the pages that are its own */
	atomic_bool sick;	       /* as of things */
	uint64_t *shadow;	       /* its own or the thing's */
	uint64_t *own;		       /* constant, [PAGES_MAX * WORDS] */
	unsigned char prot[PAGES_MAX]; /* PROT_*, or GONE */
	unsigned char wired[PAGES_MAX];
	unsigned char inherit[PAGES_MAX];
	struct thing *locked; /* exclusively: what it showed then */
	bool lent;	      /* to a child that is being waited for: it writes to what it shares */
	char *twin;	      /* the same pages in a second place, or NULL */
	size_t ntwin;
	int twin_prot;
	unsigned char mine[PAGES_MAX]; /* loose: written to here, so that the shadow is right */
};

/* A request that a pager has not completed yet. */
struct kept {
	struct thing *t;
	struct up_request *req;
	bool out;
	unsigned era; /* of a page-in: when it began */
	uint64_t due;
};

struct block {
	void *p;
	size_t n;
	unsigned char *shadow; /* constant, [BLOCK_MAX] */
};

struct worker {
	struct mill *m;
	struct post *post;
	pthread_t thread;
	unsigned id;
	uint64_t random;
	uint64_t writes;
	size_t cursor;
	uint64_t *buf; /* RUN_MAX pages, page aligned */
	unsigned char vec[PAGES_MAX];
	int file, direct, pipe[2]; /* direct: -1 without */
	FILE *null;
	struct block block[BLOCKS];
	uint64_t ok[40], refused[40]; /* by operation */
	uint64_t verified, syscalls;
};

struct config {
	unsigned seconds, threads, services;
	size_t memory;
	uint64_t mask, seed;
	bool verbose;
};

struct totals {
	uint64_t ok[40], refused[40], verified, syscalls, segv, sigbus, rests, samples, peak,
		rounds, children, orphans;
	struct up_stats st;
};

struct mill {
	const struct config *cfg;
	uint64_t seed;
	pid_t pid;
	struct watch watch;
	struct up_runtime *rt;
	struct up_heap *heap;
	uint64_t features;
	size_t memory;
	unsigned services, nranges;
	struct range *range; /* [nranges]: COMMON, then OWN of each */
	struct thing thing[THINGS];
	struct worker *worker;
	struct post *post; /* main's */
	pthread_rwlock_t still, world;
	atomic_bool stop, denied;
	atomic_uint books, names;
	_Atomic uint64_t segv, sigbus;
	bool no_device;
	uint64_t rests, samples, peak;
	char again[240];

	pthread_mutex_t desk;
	pthread_cond_t desk_cond;
	struct kept kept[KEPT_MAX];
	unsigned nkept;
	bool closing;
	pthread_t clerk[CLERKS];
	pthread_mutex_t nursery;
	pid_t child[CHILDREN]; /* (nursery) 0: none */
	bool killed[CHILDREN];
	_Atomic uint64_t children, orphans; /* that had something, and that had nothing */
};

static struct mill *the_mill;

#define fail(m, ...) watch_fail(&(m)->watch, __VA_ARGS__)

static void
on_log(void *ctx, enum up_log_level level, const char *line)
{
	struct mill *m = ctx;

	if (strstr(line, "no metadata left within the limit") != NULL)
		atomic_store(&m->denied, true);
	watch_log(NULL, level, line);
}

static uint64_t
below(struct worker *w, uint64_t n)
{
	w->random += 0x9e3779b97f4a7c15u;
	return stress_mix(w->random) % n;
}

static const char *
kind_name(enum kind k)
{
	static const char *const names[] = { "nothing", "anonymous", "named", "snapshot",
					     "file",	"device",    "custom" };

	return names[k];
}

/* Its pages come from somewhere and go back there. */
static bool
has_source(const struct thing *t)
{
	return t != NULL && t->kind >= FILE_;
}

/* --- words --- */

/*
 *	63       40  39    36  35  25  24      16  15      0
 *	the how     of whom   page    word of it  book: the range or thing it was written to
 *	many-th
 */
static uint64_t
word_of(uint64_t nth, unsigned who, unsigned book, size_t page, size_t word)
{
	return (nth & 0xffffff) << 40 | (uint64_t)(who & 15) << 36 |
	       (uint64_t)(page & 0x7ff) << 25 | (uint64_t)(word & 0x1ff) << 16 | (book & 0xffff);
}

/* Zero, or written as this word of this page. */
static bool
plausible(uint64_t v, size_t page, size_t word)
{
	return v == 0 || ((v >> 25 & 0x7ff) == page && (v >> 16 & 0x1ff) == word);
}

static const char *
word_print(uint64_t v, char *buf, size_t size)
{
	snprintf(buf, size, "%#" PRIx64 " (write %u of thread %u to book %u, page %u, word %u)", v,
		 (unsigned)(v >> 40), (unsigned)(v >> 36 & 15), (unsigned)(v & 0xffff),
		 (unsigned)(v >> 25 & 0x7ff), (unsigned)(v >> 16 & 0x1ff));
	return buf;
}

/* --- touches that may be refused --- */

static _Thread_local sigjmp_buf guard_env;
static _Thread_local volatile sig_atomic_t guarded;

static void
on_fault(int sig, siginfo_t *si, void *ctx)
{
	if (sig == SIGBUS && up_handle_sigbus(si, ctx))
		return;
	if (guarded) {
		guarded = 0;
		siglongjmp(guard_env, sig);
	}
	fail(the_mill, "%s at %p", sig == SIGBUS ? "SIGBUS" : "SIGSEGV", si->si_addr);
}

enum how { PLAIN, MEMCPY, PIPED, FILED, REMOTE, DIRECT };

static void
copy_words(uint64_t *to, const uint64_t *from, size_t bytes)
{
	for (size_t i = 0; i < bytes / sizeof *to; i++)
		((volatile uint64_t *)to)[i] = from[i];
}

/* Copy, one side being paged.  0, or the signal. */
static int
guarded_copy(void *to, const void *from, size_t bytes, enum how how)
{
	const int sig = sigsetjmp(guard_env, 1);

	if (sig != 0)
		return sig;
	guarded = 1;
	if (how == PLAIN && (((uintptr_t)to | (uintptr_t)from | bytes) & 7) == 0)
		copy_words(to, from, bytes);
	else
		memcpy(to, from, bytes);
	guarded = 0;
	return 0;
}

/* One byte, which nobody may touch: no race. */
static int __attribute__((no_sanitize_thread)) guarded_touch(void *at, bool write)
{
	const int sig = sigsetjmp(guard_env, 1);

	if (sig != 0)
		return sig;
	guarded = 1;
	if (write)
		*(volatile unsigned char *)at = 1;
	else
		(void)*(volatile unsigned char *)at;
	guarded = 0;
	return 0;
}

/* --- failures of contents --- */

static void __attribute__((noreturn))
wrong(struct worker *w, const struct range *r, size_t off, const char *at, const char *want,
      size_t len, const char *how)
{
	struct mill *m = w->m;
	size_t i = 0, bad = 0, zero = 0;
	unsigned char vec = 0xee;
	uint64_t g = 0, x = 0;
	char got[120], expect[120];
	const char *page;
	bool again;

	while (i < len && at[i] == want[i])
		i++;
	for (size_t k = i; k < len; k++) {
		bad += at[k] != want[k];
		zero += at[k] == 0;
	}
	memcpy(&x, (const char *)r->shadow + ((off + i) & ~(size_t)7), 8);
	memcpy(&g, at + i, MIN((size_t)8, len - i));
	page = r->va + (off + i) / PAGE * PAGE;
	up_residency(m->rt, page, PAGE, &vec);
	again = memcmp(r->va + off, (const char *)r->shadow + off, len) == 0;
	fail(m,
	     "%s%s range of %zu pages at %p (%s from page %zu), %s: byte %zu of page %zu (%p), %zu of %zu bytes wrong, "
	     "%zu zero after that; got %s, want %s; residency %#x; looked at again %s",
	     r->shared ? "shared" : "private", r->noreserve ? " overcommitted" : "", r->npages,
	     (void *)r->va, r->thing != NULL ? kind_name(r->thing->kind) : "-", r->first, how,
	     (off + i) % PAGE, (off + i) / PAGE, (const void *)page, bad, len, zero,
	     word_print(g, got, sizeof got), word_print(x, expect, sizeof expect), vec,
	     again ? "it is right" : "it is still wrong");
}

/* Was there no metadata left?  The library answers the fault first, counts it, and says why last. */
static bool
was_denied(struct mill *m)
{
	const uint64_t end = stress_now() + 5 * SECOND;

	while (!atomic_load(&m->denied) && stress_now() < end)
		sched_yield();
	return atomic_load(&m->denied);
}

/* A fault of it may find the limit exhausted, or a page beneath it that was lost for that. */
static bool
unreserved(const struct range *r)
{
	return r->noreserve || r->loose || (r->shared && has_source(r->thing));
}

/*
 * A touch of what is mapped was refused.  Where nothing was promised, SIGBUS is right once the limit has no metadata
 * left; what it lost is not known, so the range is dropped by who locks it next.
 */
static void
struck(struct worker *w, struct range *r, const char *what, int sig)
{
	struct mill *m = w->m;
	const bool may = unreserved(r);

	/* Without poison the library can only say SIGSEGV. */
	if ((sig != SIGBUS && (m->features & UP_MASK_POISON)) || !may || !was_denied(m))
		fail(m, "%s in a %s%s range of %zu pages at %p (%s): signal %d", what,
		     r->shared ? "shared" : "private", r->noreserve ? " overcommitted" : "",
		     r->npages, (void *)r->va, r->thing != NULL ? kind_name(r->thing->kind) : "-",
		     sig);
	atomic_fetch_add(&m->sigbus, 1);
	atomic_store(&r->sick, true);
}

/* --- moving bytes --- */

static void
new_pipe(struct worker *w)
{
	if (w->pipe[0] >= 0) {
		close(w->pipe[0]);
		close(w->pipe[1]);
	}
	if (pipe2(w->pipe, O_CLOEXEC) < 0)
		fail(w->m, "pipe: %s", strerror(errno));
}

/* All of it by one system call or several.  0, or SIGBUS for EFAULT. */
static int
through(struct worker *w, int fd, off_t at, char *mem, size_t len, bool in)
{
	for (size_t done = 0; done < len;) {
		ssize_t n;

		if (at < 0)
			n = in ? read(fd, mem + done, len - done)
			       : write(fd, mem + done, len - done);
		else
			n = in ? pread(fd, mem + done, len - done, at + (off_t)done)
			       : pwrite(fd, mem + done, len - done, at + (off_t)done);
		w->syscalls++;
		if (n < 0 && errno == EFAULT)
			return SIGBUS;
		if (n <= 0 && !(n < 0 && errno == EINTR))
			fail(w->m, "%s of %zu bytes at %p: %s", in ? "reading" : "writing",
			     len - done, (void *)(mem + done),
			     n < 0 ? strerrorname_np(errno) : "the end");
		done += n > 0 ? (size_t)n : 0;
	}
	return 0;
}

static int
remote(struct worker *w, void *to, const void *from, size_t len, bool in)
{
	for (size_t done = 0; done < len;) {
		char *t = (char *)to + done, *f = (char *)(uintptr_t)from + done;
		struct iovec local = { in ? f : t, len - done }, far = { in ? t : f, len - done };
		const ssize_t n = in ? process_vm_writev(w->m->pid, &local, 1, &far, 1, 0)
				     : process_vm_readv(w->m->pid, &local, 1, &far, 1, 0);

		w->syscalls++;
		if (n < 0 && errno == EFAULT)
			return SIGBUS;
		if (n <= 0)
			fail(w->m, "process_vm_%sv at %p: %s", in ? "write" : "read",
			     (void *)(in ? t : f), n < 0 ? strerrorname_np(errno) : "nothing");
		done += (size_t)n;
	}
	return 0;
}

/* Copy `len` bytes; `in`: `to` is paged, otherwise `from` is, and `to` is ordinary memory. */
static int
move_bytes(struct worker *w, void *to, const void *from, size_t len, bool in, enum how how)
{
	char *paged = in ? to : (char *)(uintptr_t)from, *plain = in ? (char *)(uintptr_t)from : to;
	int sig;

	switch (how) {
	case PIPED:
		sig = through(w, w->pipe[1], -1, in ? plain : paged, len, false);
		if (sig == 0)
			sig = through(w, w->pipe[0], -1, in ? paged : plain, len, true);
		if (sig != 0)
			new_pipe(w);
		return sig;
	case FILED:
		sig = through(w, w->file, 0, in ? plain : paged, len, false);
		return sig != 0 ? sig : through(w, w->file, 0, in ? paged : plain, len, true);
	case REMOTE:
		return remote(w, to, from, len, in);
	case DIRECT:
		sig = through(w, in ? w->file : w->direct, 0, in ? plain : paged, len, false);
		return sig != 0 ? sig
				: through(w, in ? w->direct : w->file, 0, in ? paged : plain, len,
					  true);
	default:
		return guarded_copy(to, from, len, how);
	}
}

static bool
is_multi(const struct range *r)
{
	return r->shared && r->thing->multi;
}

static enum how
some_how(struct worker *w, const struct range *r, const void *paged, size_t len, bool in)
{
	/* Where pages are copied out, nobody can tell that one is pinned, as some calls do: see pmap.h. */
	const bool pins = (w->m->features & UP_MASK_MOVE) && !is_multi(r);
	const uint64_t n = below(w, 20);

	if (n < 7 || len > RUN_MAX * PAGE)
		return n & 1 ? PLAIN : MEMCPY;
	if (n < 14 || !(w->m->features & UP_MASK_KERNEL_FAULTS))
		return MEMCPY;
	if (n < 16)
		return PIPED;
	if (n < 17)
		return FILED;
	if (n < 18 && w->direct >= 0 && (((uintptr_t)paged | len) & (PAGE - 1)) == 0)
		return pins ? DIRECT : MEMCPY;
	if (in && !pins)
		return MEMCPY;
	return REMOTE;
}

/* --- locking and finding --- */

static void drop(struct worker *w, struct range *r);

/*
 * => Takes the lock of a range; false: it was to be tried, and is not free.  That the lock does what
 * it should is not taken for granted: all that the oracle says stands on it.
 */
static bool
enter(struct mill *m, struct range *r, bool exclusive, bool wait)
{
	int e, others;

	if (!wait)
		e = pthread_rwlock_trywrlock(&r->lock);
	else if (exclusive)
		e = pthread_rwlock_wrlock(&r->lock);
	else
		e = pthread_rwlock_rdlock(&r->lock);
	if (!wait && e == EBUSY)
		return false;
	if (e != 0)
		fail(m, "locking range %td: %s", r - m->range, strerrorname_np(e));
	others = exclusive ? atomic_exchange(&r->holders, -1) : atomic_fetch_add(&r->holders, 1);
	if (exclusive ? others != 0 : others < 0)
		fail(m, "the lock of range %td was given away twice", r - m->range);
	if (exclusive) {
		r->locked = r->va != NULL ? r->thing : NULL;
		if (r->locked != NULL)
			atomic_fetch_add(&r->locked->changes, 1);
	}
	return true;
}

static void
leave(struct range *r)
{
	if (atomic_load(&r->holders) < 0) {
		if (r->locked != NULL) {
			atomic_fetch_add(&r->locked->era, 1);
			atomic_fetch_sub(&r->locked->changes, 1);
		}
		atomic_store(&r->holders, 0);
	} else {
		atomic_fetch_sub(&r->holders, 1);
	}
	pthread_rwlock_unlock(&r->lock);
}

/* A random range that is mapped, locked; or NULL. */
static struct range *
take(struct worker *w, bool exclusive)
{
	const bool mine = below(w, 5) < 2;
	struct mill *m = w->m;
	struct range *r = mine ? &m->range[COMMON + w->id * OWN + below(w, OWN)]
			       : &m->range[below(w, COMMON)];

	enter(m, r, exclusive, true);
	if (exclusive && r->va != NULL && atomic_load(&r->sick))
		drop(w, r);
	if (r->va == NULL || atomic_load(&r->sick)) {
		leave(r);
		return NULL;
	}
	atomic_store_explicit(&w->post->at, (uintptr_t)r->va, memory_order_relaxed);
	atomic_store_explicit(&w->post->pages, r->npages, memory_order_relaxed);
	return r;
}

/* A place where nothing is mapped, locked exclusively; or NULL. */
static struct range *
vacant(struct worker *w)
{
	struct mill *m = w->m;

	for (unsigned i = 0; i < 8; i++) {
		struct range *r = below(w, 2) ? &m->range[COMMON + w->id * OWN + below(w, OWN)]
					      : &m->range[below(w, COMMON)];

		if (!enter(m, r, true, false))
			continue;
		if (r->va == NULL)
			return r;
		leave(r);
	}
	return NULL;
}

static bool
allows(const struct range *r, size_t page, int need)
{
	return r->prot[page] != GONE && (r->prot[page] & need) == need;
}

/*
 * Up to `most` pages on which all of `need` is allowed.  Others may have been mapped into holes, so
 * no call may ever be made on a range with a hole in it.
 */
static bool
span(struct worker *w, struct range *r, size_t most, int need, size_t *first, size_t *n)
{
	const size_t want = 1 + below(w, most);
	size_t at = below(w, 3) == 0 ? w->cursor % r->npages : below(w, r->npages);
	size_t tries = 0;

	while (!allows(r, at, need)) {
		at = (at + 1) % r->npages;
		if (++tries > r->npages)
			return false;
	}
	for (*first = at, *n = 0; *n < want && at < r->npages && allows(r, at, need); at++)
		++*n;
	w->cursor = at;
	atomic_store_explicit(&w->post->at, (uintptr_t)(r->va + *first * PAGE),
			      memory_order_relaxed);
	atomic_store_explicit(&w->post->pages, *n, memory_order_relaxed);
	return true;
}

static size_t
some_length(struct worker *w)
{
	return below(w, 4) == 0 ? PAGES_MAX : 40;
}

static void
lock_stripes(struct range *r, size_t first, size_t n)
{
	for (size_t i = first / STRIPE; i <= (first + n - 1) / STRIPE; i++)
		pthread_mutex_lock(&r->stripe[i]);
}

static void
unlock_stripes(struct range *r, size_t first, size_t n)
{
	for (size_t i = first / STRIPE; i <= (first + n - 1) / STRIPE; i++)
		pthread_mutex_unlock(&r->stripe[i]);
}

static bool
wired_any(const struct range *r, size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++) {
		if (r->wired[i] > 0)
			return true;
	}
	return false;
}

static bool
wired_all(const struct range *r, size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++) {
		if (r->wired[i] == 0)
			return false;
	}
	return true;
}

/* What is mapped from `page` on: pages up to the next hole. */
static size_t
run_from(const struct range *r, size_t page)
{
	size_t n = 0;

	while (page + n < r->npages && r->prot[page + n] != GONE)
		n++;
	return n;
}

/* Errors that a call may always answer. */
static bool
scarce(int e)
{
	return e == -ENOMEM || e == -ENOSPC;
}

/* --- pagers of the program --- */

/* => desk is locked */
static void
carry(const struct kept *k)
{
	struct thing *t = k->t;
	const size_t first = up_request_offset(k->req) / PAGE, len = up_request_length(k->req);
	char *store = (char *)(t->store + first * WORDS), *buffer = up_request_buffer(k->req);

	if (k->out)
		memcpy(store, buffer, len);
	else
		memcpy(buffer, store, len);
	for (size_t i = first; i < first + (len + PAGE - 1) / PAGE; i++) {
		if (k->out)
			t->out[i]--;
		else if (t->in[i].era == k->era)
			t->in[i].n--;
	}
}

/*
 * A page is being read that is about to be written: it would be read from before, or torn.  But one that somebody has discarded, unmapped or
 * moved meanwhile nobody wants any more; and who has a copy of what others write to reads beside them.
 */
static bool
overtakes_in(const struct thing *t, size_t page)
{
	return !t->pure && t->in[page].n > 0 && atomic_load(&t->changes) == 0 &&
	       t->in[page].era == atomic_load(&t->era);
}

static int
requested(struct thing *t, struct up_request *req, bool out)
{
	struct mill *m = t->m;
	const uint64_t offset = up_request_offset(req), len = up_request_length(req);
	const size_t first = offset / PAGE, n = (len + PAGE - 1) / PAGE;
	struct kept k = { .t = t, .req = req, .out = out, .era = atomic_load(&t->era) };
	uint64_t chance;

	if (offset % PAGE != 0 || len == 0 || offset + len > t->bytes ||
	    (len % PAGE != 0 && offset + len != t->bytes))
		fail(m, "a pager was asked for %" PRIu64 " bytes at %" PRIu64 " of %" PRIu64, len,
		     offset, t->bytes);
	pthread_mutex_lock(&m->desk);
	for (size_t i = first; i < first + n; i++) {
		if (t->out[i] > 0 || (out && overtakes_in(t, i)))
			fail(m, "a page-%s of page %zu overtakes a page-%s", out ? "out" : "in", i,
			     t->out[i] > 0 ? "out" : "in");
		if (out) {
			t->out[i]++;
			continue;
		}
		if (t->in[i].era != k.era) {
			t->in[i].era = k.era;
			t->in[i].n = 0;
		}
		t->in[i].n++;
	}
	chance = stress_mix((uintptr_t)req ^ stress_now());
	if (m->nkept == KEPT_MAX || chance % 4 == 0) {
		carry(&k);
		pthread_mutex_unlock(&m->desk);
		up_request_complete(req, 0);
		return 0;
	}
	k.due = stress_now() + (chance >> 8) % (chance % 16 == 1 ? 5000000 : 300000);
	m->kept[m->nkept++] = k;
	pthread_cond_signal(&m->desk_cond);
	pthread_mutex_unlock(&m->desk);
	return 0;
}

static int
page_in(void *ctx, struct up_request *req)
{
	return requested(ctx, req, false);
}

static int
page_out(void *ctx, struct up_request *req)
{
	return requested(ctx, req, true);
}

static void
destroyed(void *ctx)
{
	struct thing *t = ctx;

	pthread_mutex_lock(&t->m->desk);
	for (unsigned i = 0; i < t->m->nkept; i++) {
		if (t->m->kept[i].t == t)
			fail(t->m, "an object was destroyed with a request under way");
	}
	pthread_mutex_unlock(&t->m->desk);
	if (atomic_exchange(&t->destroyed, true))
		fail(t->m, "an object was destroyed twice");
}

static void
nap(uint64_t ns)
{
	const struct timespec ts = { .tv_sec = (time_t)(ns / SECOND),
				     .tv_nsec = (long)(ns % SECOND) };

	clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
}

/* Completes what is due, whichever comes first in a table that others shuffle. */
static void *
clerk_thread(void *arg)
{
	struct mill *m = arg;

	pthread_mutex_lock(&m->desk);
	while (!m->closing || m->nkept > 0) {
		const uint64_t now = stress_now();
		unsigned i = 0;
		struct kept k;

		while (i < m->nkept && m->kept[i].due > now)
			i++;
		if (m->nkept == 0) {
			pthread_cond_wait(&m->desk_cond, &m->desk);
		} else if (i == m->nkept) {
			pthread_mutex_unlock(&m->desk);
			nap(50000);
			pthread_mutex_lock(&m->desk);
		} else {
			k = m->kept[i];
			m->kept[i] = m->kept[--m->nkept];
			carry(&k);
			pthread_mutex_unlock(&m->desk);
			up_request_complete(k.req, 0);
			pthread_mutex_lock(&m->desk);
		}
	}
	pthread_mutex_unlock(&m->desk);
	return NULL;
}

/* --- things --- */

static int
temporary_file(struct mill *m)
{
	char name[] = "/var/tmp/kernel_random.XXXXXX";
	const int fd = mkostemp(name, O_CLOEXEC);

	if (fd < 0)
		fail(m, "%s: %s", name, strerror(errno));
	unlink(name);
	return fd;
}

/* What is in [first, first + n) must have reached the source.  => nobody writes there */
static void
check_source(struct mill *m, struct thing *t, size_t first, size_t n, const char *when)
{
	static _Thread_local uint64_t buf[WORDS];

	if (!has_source(t) || atomic_load(&t->sick))
		return;
	for (size_t i = first; i < first + n && i * PAGE < t->bytes; i++) {
		const size_t len = MIN(PAGE, t->bytes - i * PAGE);
		const uint64_t *want = t->shadow + i * WORDS;
		char got[120], expect[120];
		size_t k = 0;

		memset(buf, 0, sizeof buf);
		if (t->kind == CUSTOM) {
			pthread_mutex_lock(&m->desk);
			memcpy(buf, t->store + i * WORDS, len);
			pthread_mutex_unlock(&m->desk);
		} else if (pread(t->fd, buf, len, (off_t)(t->offset + i * PAGE)) != (ssize_t)len) {
			fail(m, "pread of page %zu of a %s: %s", i, kind_name(t->kind),
			     strerror(errno));
		}
		if (memcmp(buf, want, len) == 0)
			continue;
		while (k < WORDS - 1 && buf[k] == want[k])
			k++;
		fail(m, "%s: page %zu of a %s of %zu pages, word %zu is %s in the source, not %s",
		     when, i, kind_name(t->kind), t->npages, k, word_print(buf[k], got, sizeof got),
		     word_print(want[k], expect, sizeof expect));
	}
}

static void
fill_shadow(struct worker *w, uint64_t *shadow, size_t npages, uint64_t bytes)
{
	const unsigned book = atomic_fetch_add(&w->m->books, 1);

	memset(shadow, 0, npages * PAGE);
	for (size_t i = 0; i < bytes / sizeof *shadow; i++) {
		if (i / WORDS % 16 != 7) /* some pages are zeros */
			shadow[i] = word_of(0, w->id, book, i / WORDS, i % WORDS);
	}
}

static int
create_custom(struct worker *w, struct thing *t)
{
	const struct up_pager_ops ops = { .size = sizeof ops,
					  .page_in = page_in,
					  .page_out = t->fixed ? NULL : page_out,
					  .destroy = destroyed };

	pthread_mutex_lock(&w->m->desk);
	memcpy(t->store, t->shadow, t->npages * PAGE);
	memset(t->out, 0, sizeof t->out);
	memset(t->in, 0, sizeof t->in);
	pthread_mutex_unlock(&w->m->desk);
	atomic_store(&t->destroyed, false);
	return up_object_create_custom(w->m->rt, t->bytes, &ops, t, &t->object);
}

static int
create_file(struct worker *w, struct thing *t)
{
	char path[64];
	int fd, e;

	t->fd = temporary_file(w->m);
	if (ftruncate(t->fd, (off_t)(t->offset + t->bytes)) < 0 ||
	    pwrite(t->fd, t->shadow, t->bytes, (off_t)t->offset) != (ssize_t)t->bytes)
		fail(w->m, "writing a file: %s", strerror(errno));
	snprintf(path, sizeof path, "/proc/self/fd/%d", t->fd);
	fd = open(path, (t->fixed ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	if (fd < 0)
		fail(w->m, "%s: %s", path, strerror(errno));
	if (t->kind == DEVICE)
		e = up_object_create_device(w->m->rt, fd, 0, &t->object);
	else
		e = up_object_create_file(w->m->rt, fd, t->offset, below(w, 2) ? t->bytes : 0, 0,
					  &t->object);
	close(fd);
	if (e == -EINVAL && t->kind == DEVICE) {
		w->m->no_device = true;
		e = -ENOMEM;
	}
	if (e != 0)
		close(t->fd);
	return e;
}

static int
create_named(struct worker *w, struct thing *t)
{
	struct up_object *other;
	int e;

	snprintf(t->name, sizeof t->name, "thing %u", atomic_fetch_add(&w->m->names, 1));
	e = up_object_create_named(w->m->rt, t->name, t->npages * PAGE,
				   t->noreserve ? UP_NORESERVE : 0, &t->object);
	if (e == 0 && up_object_create_named(w->m->rt, t->name, PAGE, 0, &other) != -EEXIST)
		fail(w->m, "two objects of one name");
	return e;
}

/* => lock is held, the thing is NOTHING; false: not now */
static bool
create_thing(struct worker *w, struct thing *t)
{
	static const enum kind kinds[] = {
		ANON, ANON, NAMED, FILE_, FILE_, DEVICE, CUSTOM, CUSTOM
	};
	const enum kind kind = kinds[below(w, ARRAY_SIZE(kinds))];
	int e;

	if (kind == DEVICE && w->m->no_device)
		return false;
	t->kind = kind;
	t->npages = 1 + below(w, below(w, 2) ? PAGES_MAX : 80);
	t->bytes = t->npages * PAGE;
	t->ranges = 0;
	t->mapped = t->fixed = t->pure = t->noreserve = false;
	t->multi = (w->m->features & UP_MASK_SHARED) && below(w, 2);
	t->parted = false;
	t->offset = kind == FILE_ ? below(w, 3) * PAGE : 0;
	t->fd = -1;
	atomic_store(&t->sick, false);
	if (has_source(t)) {
		t->fixed = below(w, 2);
		t->pure = !t->fixed && below(w, 2);
		if (below(w, 2) && !t->pure)
			t->bytes -= kind == DEVICE ? 512 * below(w, 8) : below(w, PAGE);
		fill_shadow(w, t->shadow, t->npages, t->bytes);
	} else {
		t->noreserve = below(w, 8) == 0;
		memset(t->shadow, 0, t->npages * PAGE);
	}
	if (kind == CUSTOM)
		e = create_custom(w, t);
	else if (has_source(t))
		e = create_file(w, t);
	else if (kind == NAMED)
		e = create_named(w, t);
	else
		e = up_object_create_anon(w->m->rt, t->npages * PAGE,
					  t->noreserve ? UP_NORESERVE : 0, &t->object);
	if (e != 0 && !scarce(e))
		fail(w->m, "creating a %s of %zu pages: %s", kind_name(kind), t->npages,
		     strerrorname_np(-e));
	if (e != 0)
		t->kind = NOTHING;
	return e == 0;
}

static void children_end(struct mill *m, bool all);

/* => lock is held, nobody maps it */
static void
destroy_thing(struct mill *m, struct thing *t)
{
	const uint64_t end = stress_now() + 10 * SECOND;
	struct up_object *o;

	check_source(m, t, 0, t->npages, "when it goes");
	if (t->kind == CUSTOM && t->multi)
		children_end(m, true); /* they may have it mapped */
	if (t->kind == NAMED) {
		const int removed = up_object_remove(m->rt, t->name);

		if (removed != 0 || up_object_remove(m->rt, t->name) != -ENOENT ||
		    up_object_open(m->rt, t->name, &o) != -ENOENT)
			fail(m, "the name %s does not go", t->name);
	}
	up_object_unref(t->object);
	/* Who prints the map may have held on to it for a moment. */
	while (t->kind == CUSTOM && !atomic_load(&t->destroyed)) {
		if (stress_now() > end)
			fail(m, "an object that nobody refers to is not destroyed");
		sched_yield();
	}
	if (t->fd >= 0)
		close(t->fd);
	t->fd = -1;
	t->kind = NOTHING;
}

/* --- operations: mapping --- */

/* => r is locked exclusively and vacant */
static void
settle_in(struct worker *w, struct range *r, void *p, size_t npages, struct thing *t, size_t first,
	  int prot)
{
	r->va = p;
	r->npages = npages;
	r->thing = t;
	r->first = first;
	r->shared = r->fixed = r->noreserve = r->parted = r->loose = false;
	atomic_store(&r->sick, false);
	r->shadow = r->own;
	memset(r->prot, prot, npages);
	memset(r->wired, 0, npages);
	memset(r->mine, 0, npages);
	memset(r->inherit, UP_INHERIT_NONE, npages);
	r->twin = NULL;
	(void)w;
}

static void
drop_twin(struct worker *w, struct range *r)
{
	const int e = r->twin != NULL ? up_unmap(w->m->rt, r->twin, r->ntwin * PAGE) : 0;

	if (e != 0)
		fail(w->m, "up_unmap of a second place: %s", strerrorname_np(-e));
	r->twin = NULL;
}

/* Where [off, off + len) of the range is: in one of its places. */
static char *
place_of(struct worker *w, const struct range *r, size_t off, size_t len, bool write)
{
	if (r->twin == NULL || off + len > r->ntwin * PAGE ||
	    !(r->twin_prot & (write ? PROT_WRITE : PROT_READ)) || below(w, 2))
		return r->va + off;
	return r->twin + off;
}

/* The last of a range is unmapped. */
static void
forget(struct worker *w, struct range *r)
{
	struct thing *t = r->thing;

	drop_twin(w, r);
	if (t != NULL) {
		pthread_mutex_lock(&t->lock);
		if (r->shared && atomic_load(&r->sick))
			atomic_store(&t->sick, true);
		if (r->shared) {
			check_source(w->m, t, 0, t->npages, "unmapped");
			t->mapped = false;
		}
		t->ranges--;
		if (t->ranges == 0 && (atomic_load(&t->sick) || below(w, 3) == 0))
			destroy_thing(w->m, t);
		pthread_mutex_unlock(&t->lock);
	}
	r->va = NULL;
	r->thing = NULL;
}

static void
drop(struct worker *w, struct range *r)
{
	for (size_t page = 0, n; page < r->npages; page += MAX(n, (size_t)1)) {
		int e;

		n = run_from(r, page);
		if (n == 0)
			continue;
		e = up_unmap(w->m->rt, r->va + page * PAGE, n * PAGE);
		if (e != 0)
			fail(w->m, "up_unmap of all that is mapped: %s", strerrorname_np(-e));
		memset(r->prot + page, GONE, n);
	}
	forget(w, r);
}

static bool
map_anon(struct worker *w, struct range *r)
{
	const size_t npages = 1 + below(w, below(w, 2) ? PAGES_MAX : 80);
	const bool noreserve = below(w, 8) == 0;
	void *p;
	const int e = up_map(w->m->rt, NULL, npages * PAGE, PROT_READ | PROT_WRITE,
			     UP_PRIVATE | (noreserve ? UP_NORESERVE : 0), NULL, 0, &p);

	if (e != 0 && !scarce(e))
		fail(w->m, "up_map of %zu pages: %s", npages, strerrorname_np(-e));
	if (e != 0)
		return false;
	settle_in(w, r, p, npages, NULL, 0, PROT_READ | PROT_WRITE);
	memset(r->own, 0, npages * PAGE);
	r->noreserve = noreserve;
	return true;
}

static void
map_twin(struct worker *w, struct range *r, int prot)
{
	void *p;
	const int e = up_map(w->m->rt, NULL, r->npages * PAGE, prot, UP_SHARED | UP_MULTI,
			     r->thing->object, r->first * PAGE, &p);

	if (e != 0 && !scarce(e))
		fail(w->m, "up_map in a second place: %s", strerrorname_np(-e));
	if (e != 0)
		return;
	r->twin = p;
	r->ntwin = r->npages;
	r->twin_prot = prot;
}

/* => t->lock is held */
static bool
map_thing(struct worker *w, struct range *r, struct thing *t)
{
	const bool part = below(w, 3) == 0;
	const size_t first = part ? below(w, t->npages) : 0;
	const size_t npages = part ? 1 + below(w, t->npages - first) : t->npages;
	const bool shared = below(w, 3) != 0;
	const bool loose = !shared && t->pure;
	const bool noreserve = !shared && (has_source(t) ? below(w, 4) == 0 : t->noreserve);
	const bool readonly = shared && (t->fixed || t->kind == SNAPSHOT);
	const int prot = readonly ? PROT_READ : PROT_READ | PROT_WRITE;
	struct up_object *o = t->object;
	void *p;
	int e;

	/* A copy of what others may be writing to just now is not to be had, but for what every word says of itself. */
	if (atomic_load(&t->sick) || (t->mapped && !loose) ||
	    (!shared && has_source(t) && !t->fixed && !t->pure))
		return false;
	if (t->kind == NAMED) {
		e = up_object_open(w->m->rt, t->name, &o);
		if (e != 0 || o != t->object)
			fail(w->m, "up_object_open of %s: %s", t->name, strerrorname_np(-e));
	}
	e = up_map(w->m->rt, NULL, npages * PAGE, prot,
		   shared ? UP_SHARED | (t->multi ? UP_MULTI : 0)
			  : (UP_PRIVATE | (noreserve ? UP_NORESERVE : 0)),
		   o, first * PAGE, &p);
	if (t->kind == NAMED)
		up_object_unref(o);
	if (e != 0 && !scarce(e))
		fail(w->m, "up_map of %zu pages of a %s: %s", npages, kind_name(t->kind),
		     strerrorname_np(-e));
	if (e != 0)
		return false;
	settle_in(w, r, p, npages, shared || has_source(t) ? t : NULL, first, prot);
	r->shared = shared;
	r->fixed = readonly;
	r->noreserve = shared ? t->noreserve : noreserve;
	if (shared) {
		t->mapped = true;
		r->shadow = t->shadow + first * WORDS;
		if (t->multi)
			map_twin(w, r, readonly || below(w, 3) == 0 ? PROT_READ : prot);
	} else {
		if (!loose)
			memcpy(r->own, t->shadow + first * WORDS, npages * PAGE);
		r->loose = loose;
		r->parted = true;
		t->parted |= !has_source(t);
	}
	t->ranges += r->thing != NULL;
	return true;
}

static bool
op_map(struct worker *w)
{
	struct thing *t = &w->m->thing[below(w, THINGS)];
	struct range *r = vacant(w);
	bool ok = false;

	if (r == NULL)
		return false;
	if (below(w, 2)) {
		ok = map_anon(w, r);
	} else {
		pthread_mutex_lock(&t->lock);
		if (t->kind != NOTHING || create_thing(w, t))
			ok = map_thing(w, r, t);
		if (t->kind != NOTHING && t->ranges == 0 && !t->mapped && below(w, 8) == 0)
			destroy_thing(w->m, t);
		pthread_mutex_unlock(&t->lock);
	}
	leave(r);
	return ok;
}

/* A shared mapping ends at these pages: what was written must be in the source. */
static void
parted_from(struct worker *w, struct range *r, size_t first, size_t n)
{
	if (r->shared)
		check_source(w->m, r->thing, r->first + first, n, "a part is unmapped");
}

static bool
op_unmap(struct worker *w)
{
	struct range *r = take(w, true);
	size_t first, n;
	bool left = false;
	int e;

	if (r == NULL)
		return false;
	if (below(w, 2) == 0) {
		drop(w, r);
		leave(r);
		return true;
	}
	if (!span(w, r, some_length(w), 0, &first, &n)) {
		leave(r);
		return false;
	}
	e = up_unmap(w->m->rt, r->va + first * PAGE, n * PAGE);
	if (e != 0 && e != -ENOMEM)
		fail(w->m, "up_unmap of a part: %s", strerrorname_np(-e));
	if (e == 0) {
		memset(r->prot + first, GONE, n);
		memset(r->wired + first, 0, n);
		parted_from(w, r, first, n);
		for (size_t i = 0; i < r->npages; i++)
			left |= r->prot[i] != GONE;
		if (!left)
			forget(w, r);
	}
	leave(r);
	return e == 0;
}

/* Something is mapped again where a part was unmapped, if nobody else came to lie there. */
static bool
refill(struct worker *w, struct range *r, size_t first, size_t n)
{
	const int prot = r->fixed ? PROT_READ : PROT_READ | PROT_WRITE;
	unsigned flags =
		UP_FIXED | (r->shared ? UP_SHARED : UP_PRIVATE) | (is_multi(r) ? UP_MULTI : 0);
	void *p;
	int e;

	if (!r->shared && r->noreserve)
		flags |= UP_NORESERVE;
	e = up_map(w->m->rt, r->va + first * PAGE, n * PAGE, prot, flags,
		   r->thing != NULL ? r->thing->object : NULL,
		   r->thing != NULL ? (r->first + first) * PAGE : 0, &p);
	if (e != 0 && !scarce(e) && e != -EEXIST)
		fail(w->m, "up_map into a hole: %s", strerrorname_np(-e));
	if (e != 0)
		return false;
	memset(r->prot + first, prot, n);
	memset(r->wired + first, 0, n);
	memset(r->mine + first, 0, n);
	memset(r->inherit + first, UP_INHERIT_NONE, n);
	if (!r->shared && r->thing != NULL && !r->loose)
		memcpy(r->own + first * WORDS, r->thing->shadow + (r->first + first) * WORDS,
		       n * PAGE);
	else if (!r->shared && r->thing == NULL)
		memset(r->own + first * WORDS, 0, n * PAGE);
	return true;
}

static bool
op_refill(struct worker *w)
{
	struct range *r = take(w, true);
	size_t first = 0, n = 0;
	bool ok = false;

	if (r == NULL)
		return false;
	while (first < r->npages && r->prot[first] != GONE)
		first++;
	while (first + n < r->npages && r->prot[first + n] == GONE)
		n++;
	if (n > 0 && below(w, 2))
		n = 1 + below(w, n);
	if (n > 0)
		ok = refill(w, r, first, n);
	leave(r);
	return ok;
}

static bool
op_protect(struct worker *w)
{
	static const unsigned char prots[] = { PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE,
					       PROT_READ | PROT_WRITE };
	const unsigned char prot = prots[below(w, ARRAY_SIZE(prots))];
	struct range *r = take(w, true);
	size_t first, n;
	int e = -EINVAL;

	if (r == NULL)
		return false;
	if (span(w, r, some_length(w), 0, &first, &n)) {
		e = up_protect(w->m->rt, r->va + first * PAGE, n * PAGE, prot);
		if (e == 0 && r->fixed && (prot & PROT_WRITE))
			fail(w->m, "a mapping of what can not be written to became writable");
		if (e != 0 && e != -ENOMEM && !(e == -EACCES && r->fixed && (prot & PROT_WRITE)))
			fail(w->m, "up_protect: %s", strerrorname_np(-e));
		if (e == 0)
			memset(r->prot + first, prot, n);
	}
	leave(r);
	return e == 0;
}

/* A touch that the protection does not allow. */
static bool
op_trespass(struct worker *w)
{
	const bool write = below(w, 2);
	struct range *r = take(w, false);
	bool ok = false;

	if (r == NULL)
		return false;
	for (size_t tries = 0, at = below(w, r->npages); tries < r->npages && !ok; tries++) {
		const size_t page = (at + tries) % r->npages;

		if (r->prot[page] == GONE || (r->prot[page] & (write ? PROT_WRITE : PROT_READ)))
			continue;
		ok = true;
		if (guarded_touch(r->va + page * PAGE + below(w, PAGE), write) != SIGSEGV)
			fail(w->m, "page %zu of %p: %s is allowed, protection %d", page,
			     (void *)r->va, write ? "writing" : "reading", r->prot[page]);
		atomic_fetch_add(&w->m->segv, 1);
	}
	leave(r);
	return ok;
}

static bool
op_remap(struct worker *w)
{
	struct range *r = take(w, true);
	size_t npages, old, most;
	unsigned flags;
	bool ends;
	void *p;
	int e;

	if (r == NULL)
		return false;
	old = r->npages;
	most = r->shared ? r->thing->npages - r->first : PAGES_MAX;
	npages = below(w, 2) ? below(w, most) : old + below(w, 30);
	npages = 1 + MIN(npages, most - 1);
	flags = below(w, 4) == 0 ? 0 : UP_MAYMOVE;
	if (run_from(r, 0) < old) {
		leave(r);
		return false;
	}
	e = up_remap(w->m->rt, r->va, old * PAGE, npages * PAGE, flags, &p);
	/* A private mapping of a source ends where that ends. */
	ends = !r->shared && r->thing != NULL && npages > r->thing->npages - r->first;
	if (!scarce(e) && ((e == -EBUSY) != (npages > old && wired_any(r, 0, old)) ||
			   (e == -ENOTSUP && (npages <= old || r->shared || !r->parted)) ||
			   (e != 0 && e != -EBUSY && e != -ENOTSUP && !(e == -EINVAL && ends))))
		fail(w->m,
		     "up_remap of %zu pages at %p to %zu: %s%s%s%s; pages %zu to %zu of the thing",
		     old, (void *)r->va, npages, strerrorname_np(-e),
		     wired_any(r, 0, old) ? ", wired" : "", r->shared ? ", shared " : "",
		     r->thing != NULL ? kind_name(r->thing->kind) : "", r->first,
		     r->thing != NULL ? r->thing->npages : 0);
	if (e != 0) {
		leave(r);
		return false;
	}
	if (flags == 0 && p != r->va)
		fail(w->m, "up_remap has moved what must not move");
	r->va = p;
	r->npages = npages;
	if (npages < old)
		parted_from(w, r, npages, old - npages);
	if (npages > old) {
		memset(r->prot + old, r->prot[old - 1], npages - old);
		memset(r->wired + old, 0, npages - old);
		memset(r->inherit + old, r->inherit[old - 1], npages - old);
		if (!r->shared)
			memset(r->own + old * WORDS, 0, (npages - old) * PAGE);
	}
	leave(r);
	return true;
}

/* --- operations: copies --- */

static bool
op_clone(struct worker *w)
{
	struct range *copy = vacant(w), *r;
	size_t first, n;
	void *p;
	int e;

	if (copy == NULL)
		return false;
	/* The copy's place is locked already: whoever waits for a range has none. */
	r = &w->m->range[below(w, w->m->nranges)];
	if ((r->owner >= 0 && r->owner != (int)w->id) || !enter(w->m, r, true, false)) {
		leave(copy);
		return false;
	}
	if (r->va == NULL || atomic_load(&r->sick) ||
	    !span(w, r, below(w, 2) ? PAGES_MAX : 40, 0, &first, &n)) {
		leave(r);
		leave(copy);
		return false;
	}
	e = up_clone(w->m->rt, r->va + first * PAGE, n * PAGE, &p);
	if (e == 0 && (wired_any(r, first, n) || (r->shared && has_source(r->thing))))
		fail(w->m, "up_clone of what can not be cloned");
	if (e != 0 && !scarce(e) && !(e == -EBUSY && wired_any(r, 0, r->npages)) &&
	    !(e == -ENOTSUP && r->shared && has_source(r->thing)))
		fail(w->m, "up_clone of %zu pages at %p: %s", n, (void *)(r->va + first * PAGE),
		     strerrorname_np(-e));
	if (e == 0) {
		settle_in(w, copy, p, n, r->shared ? NULL : r->thing, r->first + first, 0);
		memcpy(copy->prot, r->prot + first, n);
		for (size_t i = 0; i < n; i++)
			copy->inherit[i] = r->inherit[first + i] != UP_INHERIT_NONE
						   ? UP_INHERIT_COPY
						   : UP_INHERIT_NONE;
		memcpy(copy->mine, r->mine + first, n);
		copy->loose = r->loose;
		memcpy(copy->own, r->shadow + first * WORDS, n * PAGE);
		copy->noreserve = r->noreserve;
		copy->parted = r->parted = true;
		if (copy->thing != NULL) {
			pthread_mutex_lock(&copy->thing->lock);
			copy->thing->ranges++;
			pthread_mutex_unlock(&copy->thing->lock);
		}
	}
	leave(r);
	leave(copy);
	return e == 0;
}

/* A thing that is nothing yet, locked; or NULL. */
static struct thing *
vacant_thing(struct mill *m)
{
	for (unsigned i = 0; i < THINGS; i++) {
		struct thing *t = &m->thing[i];

		if (pthread_mutex_trylock(&t->lock) != 0)
			continue;
		if (t->kind == NOTHING)
			return t;
		pthread_mutex_unlock(&t->lock);
	}
	return NULL;
}

/* => the range, which maps `t` shared, and `snap` are locked */
static bool
take_snapshot(struct worker *w, const struct range *r, const struct thing *t, struct thing *snap)
{
	const bool wired = wired_any(r, 0, r->npages);
	struct up_object *o;
	const int e = up_object_snapshot(w->m->rt, t->object, &o);

	if (e == 0 ? wired : !scarce(e) && !(e == -EBUSY && wired))
		fail(w->m, "up_object_snapshot: %s, wired or not", strerrorname_np(-e));
	if (e != 0)
		return false;
	snap->kind = SNAPSHOT;
	snap->object = o;
	snap->npages = t->npages;
	snap->bytes = t->bytes;
	snap->ranges = 0;
	snap->mapped = snap->fixed = snap->pure = snap->multi = false;
	snap->noreserve = t->noreserve;
	snap->parted = true;
	snap->fd = -1;
	atomic_store(&snap->sick, false);
	memcpy(snap->shadow, t->shadow, t->npages * PAGE);
	return true;
}

static bool
op_snapshot(struct worker *w)
{
	struct range *r = take(w, true);
	struct thing *snap;
	bool ok = false;

	if (r == NULL)
		return false;
	snap = r->shared && !has_source(r->thing) ? vacant_thing(w->m) : NULL;
	if (snap != NULL) {
		ok = take_snapshot(w, r, r->thing, snap);
		r->thing->parted |= ok;
		pthread_mutex_unlock(&snap->lock);
	}
	leave(r);
	return ok;
}

/* --- operations: contents --- */

/* The pages that are the range's own are known; of the others every word must be at its place. */
static void
verify_loose(struct worker *w, struct range *r, size_t off, const char *got, size_t len,
	     const char *how)
{
	for (size_t at = off, n; at < off + len; at += n) {
		const char *want = (const char *)r->shadow + at, *is = got + (at - off);

		n = MIN(PAGE - at % PAGE, off + len - at);
		if (r->mine[at / PAGE]) {
			if (memcmp(is, want, n) != 0)
				wrong(w, r, at, is, want, n, how);
			continue;
		}
		for (size_t k = 0; k < n; k += 8) {
			char text[120];
			uint64_t v;

			memcpy(&v, is + k, 8);
			if (!plausible(v, r->first + at / PAGE, (at + k) % PAGE / 8))
				fail(w->m,
				     "private range of a %s at %p, %s: word %zu of page %zu (of the source: %zu) is %s",
				     kind_name(r->thing->kind), (void *)r->va, how,
				     (at + k) % PAGE / 8, at / PAGE, r->first + at / PAGE,
				     word_print(v, text, sizeof text));
		}
	}
}

/* Compare [off, off + len) of the range.  => its stripes, or the range, are locked */
static void
verify(struct worker *w, struct range *r, size_t off, size_t len, enum how how)
{
	static const char *const names[] = {
		"by words",	  "by memcpy",		 "through a pipe",
		"through a file", "by process_vm_readv", "by direct I/O"
	};
	const char *want = (const char *)r->shadow + off;

	for (size_t at = 0; at < len; at += RUN_MAX * PAGE) {
		const size_t n = MIN(len - at, RUN_MAX * PAGE);
		const char *from = how == REMOTE || how == DIRECT
					   ? r->va + off + at
					   : place_of(w, r, off + at, n, false);
		const int sig = move_bytes(w, w->buf, from, n, false, how);

		if (sig != 0) {
			struck(w, r, names[how], sig);
			return;
		}
		if (r->loose)
			verify_loose(w, r, off + at, (const char *)w->buf, n, names[how]);
		else if (memcmp(w->buf, want + at, n) != 0)
			wrong(w, r, off + at, (const char *)w->buf, want + at, n, names[how]);
	}
	w->verified += len / PAGE;
}

static bool
op_read(struct worker *w)
{
	struct range *r = take(w, false);
	size_t first, n, cut;
	bool ok;

	if (r == NULL)
		return false;
	ok = span(w, r, below(w, 20) == 0 ? 200 : RUN_MAX, PROT_READ, &first, &n);
	if (ok) {
		cut = below(w, 2) ? below(w, PAGE) : 0;
		if (r->loose)
			cut &= ~(size_t)7;
		lock_stripes(r, first, n);
		verify(w, r, first * PAGE + cut, n * PAGE - cut,
		       some_how(w, r, r->va + first * PAGE + cut, n * PAGE - cut, false));
		unlock_stripes(r, first, n);
	}
	leave(r);
	return ok;
}

static bool
is_pure(const struct range *r)
{
	return r->shared && r->thing->pure;
}

/* What a part of a shadow must become. */
static void
compose(struct worker *w, struct range *r, size_t off, size_t len)
{
	char *shadow = (char *)r->shadow;
	/* Where pages show what their source has, new words make them the range's own; the same ones do not. */
	const uint64_t what = r->loose ? 15 : below(w, 16);
	const size_t first = r->shared ? r->first : 0;
	const unsigned book = (unsigned)((uintptr_t)r->va >> 12);

	if (what == 0) /* what is there already */
		return;
	if (what < 3) {
		memset(shadow + off, what == 1 || is_pure(r) ? 0 : (int)below(w, 256), len);
		return;
	}
	w->writes++;
	for (size_t at = off & ~(size_t)7; at < off + len; at += 8) {
		const uint64_t v =
			word_of(w->writes, w->id, book, first + at / PAGE, at % PAGE / 8);
		const size_t from = MAX(at, off), to = MIN(at + 8, off + len);

		memcpy(shadow + from, (const char *)&v + (from - at), to - from);
	}
}

/* Where writing must end: of what is behind the end of a source nothing is said. */
static size_t
writable_bytes(const struct range *r, size_t first, size_t n)
{
	const size_t end = (first + n) * PAGE;
	size_t bytes = end;

	if (r->shared && has_source(r->thing))
		bytes = MIN(end, r->thing->bytes - MIN(r->first * PAGE, r->thing->bytes));
	return bytes > first * PAGE ? bytes - first * PAGE : 0;
}

/* These bytes of a loose range have been written: what else there is in their pages stays what it was at that moment. */
static void
learn(struct worker *w, struct range *r, size_t off, size_t len)
{
	for (size_t i = off / PAGE; i <= (off + len - 1) / PAGE; i++) {
		const size_t from = MAX(off, i * PAGE), to = MIN(off + len, (i + 1) * PAGE);
		const int sig =
			r->mine[i] ? 0 : guarded_copy(w->buf, r->va + i * PAGE, PAGE, MEMCPY);

		if (sig != 0) {
			struck(w, r, "learning", sig);
			return;
		}
		if (r->mine[i])
			continue;
		if (memcmp((const char *)w->buf + (from - i * PAGE), (const char *)r->shadow + from,
			   to - from) != 0)
			wrong(w, r, from, (const char *)w->buf + (from - i * PAGE),
			      (const char *)r->shadow + from, to - from, "learning");
		verify_loose(w, r, i * PAGE, (const char *)w->buf, from - i * PAGE, "learning");
		verify_loose(w, r, to, (const char *)w->buf + (to - i * PAGE), (i + 1) * PAGE - to,
			     "learning");
		memcpy(r->shadow + i * WORDS, w->buf, PAGE);
		r->mine[i] = true;
	}
	verify(w, r, off, len, MEMCPY);
}

static bool
op_write(struct worker *w)
{
	struct range *r = take(w, false);
	size_t first, n, off, len;
	enum how how;
	int sig = 0;
	bool ok;

	if (r == NULL)
		return false;
	ok = span(w, r, below(w, 20) == 0 ? 200 : RUN_MAX, PROT_READ | PROT_WRITE, &first, &n);
	len = ok ? writable_bytes(r, first, n) : 0;
	if (len > 0) {
		off = first * PAGE;
		if (below(w, 2)) { /* a part, from and to anywhere */
			const size_t skip = below(w, MIN(len, PAGE));

			off += skip;
			len = 1 + below(w, len - skip);
		}
		if (r->loose || is_pure(r)) {
			len = (len + off % 8 + 7) & ~(size_t)7;
			off &= ~(size_t)7;
		}
		how = some_how(w, r, r->va + off, len, true);
		lock_stripes(r, first, n);
		compose(w, r, off, len);
		sig = move_bytes(w, place_of(w, r, off, len, true), (const char *)r->shadow + off,
				 len, true, how);
		if (sig != 0)
			struck(w, r, "writing", sig);
		else if (r->loose)
			learn(w, r, off, len);
		else if (below(w, 4) == 0)
			verify(w, r, off, len, how == REMOTE ? REMOTE : MEMCPY);
		unlock_stripes(r, first, n);
	}
	leave(r);
	return ok && sig == 0;
}

/* From paged memory to paged memory. */
static bool
op_copy(struct worker *w)
{
	struct range *from = take(w, false), *to;
	size_t a, b, na, nb, len;
	int sig = 0;

	if (from == NULL)
		return false;
	to = &w->m->range[below(w, w->m->nranges)];
	if ((to->owner >= 0 && to->owner != (int)w->id) || to == from ||
	    !enter(w->m, to, true, false)) {
		leave(from);
		return false;
	}
	if (to->va != NULL && !atomic_load(&to->sick) && !from->loose && !to->loose &&
	    !is_pure(to) && span(w, from, RUN_MAX, PROT_READ, &a, &na) &&
	    span(w, to, RUN_MAX, PROT_READ | PROT_WRITE, &b, &nb)) {
		len = MIN(na * PAGE, writable_bytes(to, b, nb));
		lock_stripes(from, a, na);
		if (len > 0) {
			memcpy(to->shadow + b * WORDS, from->shadow + a * WORDS, len);
			if (below(w, 2) && (w->m->features & UP_MASK_KERNEL_FAULTS))
				sig = remote(w, to->va + b * PAGE, from->va + a * PAGE, len, false);
			else
				sig = guarded_copy(to->va + b * PAGE, from->va + a * PAGE, len,
						   MEMCPY);
			/* Which of the two it was is not told. */
			if (sig != 0 && !unreserved(from))
				struck(w, to, "copying", sig);
			else if (sig != 0) {
				atomic_store(&to->sick, true);
				struck(w, from, "copying", sig);
			} else {
				verify(w, to, b * PAGE, len, PLAIN);
			}
		}
		unlock_stripes(from, a, na);
	}
	leave(to);
	leave(from);
	return sig == 0;
}

/* --- operations: advice and waiting --- */

/* The range was discarded. */
static void
discarded(struct worker *w, struct range *r, size_t first, size_t n)
{
	if (has_source(r->thing) && r->shared)
		check_source(w->m, r->thing, r->first + first, n, "discarded");
	else if (r->loose)
		memset(r->mine + first, 0, n);
	else if (has_source(r->thing))
		memcpy(r->own + first * WORDS, r->thing->shadow + (r->first + first) * WORDS,
		       n * PAGE);
	else
		memset(r->shadow + first * WORDS, 0, n * PAGE);
}

static void refused_part(struct worker *w, struct range *r, size_t first, size_t n);

static bool
op_discard(struct worker *w)
{
	struct range *r = take(w, true);
	size_t first, n;
	int e = -EINVAL;

	if (r == NULL)
		return false;
	if (span(w, r, some_length(w), 0, &first, &n)) {
		e = up_advise(w->m->rt, r->va + first * PAGE, n * PAGE, UP_ADVICE_DONTNEED);
		if (e != -ENOMEM && (e == -EINVAL) != wired_any(r, first, n))
			fail(w->m, "discarding: %s, wired or not", strerrorname_np(-e));
		if (e != 0 && e != -EINVAL &&
		    !(e == -ENOMEM && (r->parted || (r->thing != NULL && r->thing->parted))))
			fail(w->m, "discarding %zu pages at %p: %s", n,
			     (void *)(r->va + first * PAGE), strerrorname_np(-e));
		if (e == 0)
			discarded(w, r, first, n);
		else if (e == -ENOMEM)
			refused_part(w, r, first, n);
	}
	leave(r);
	return e == 0;
}

/* No metadata to remember all of it: each page is discarded or is what it was; where one can not look, nobody knows. */
static void
refused_part(struct worker *w, struct range *r, size_t first, size_t n)
{
	const uint64_t *beneath = has_source(r->thing) ? r->thing->shadow + r->first * WORDS : NULL;
	static const uint64_t zeros[WORDS];

	for (size_t i = first; i < first + n; i++) {
		if (!(r->prot[i] & PROT_READ)) {
			atomic_store(&r->sick, true);
			return;
		}
		if (guarded_copy(w->buf, r->va + i * PAGE, PAGE, MEMCPY) != 0) {
			struck(w, r, "looking", SIGBUS);
			return;
		}
		if (r->loose) {
			/* Its own page or the source's: what it is, it may not stay if it is the latter. */
			if (r->mine[i] && memcmp(w->buf, r->shadow + i * WORDS, PAGE) != 0)
				r->mine[i] = false;
			verify_loose(w, r, i * PAGE, (const char *)w->buf, PAGE, "half discarded");
			continue;
		}
		if (memcmp(w->buf, beneath != NULL ? beneath + i * WORDS : zeros, PAGE) == 0)
			memcpy(r->shadow + i * WORDS, w->buf, PAGE);
		else if (memcmp(w->buf, r->shadow + i * WORDS, PAGE) != 0)
			wrong(w, r, i * PAGE, (const char *)w->buf,
			      (const char *)(r->shadow + i * WORDS), PAGE, "half discarded");
	}
}

static bool
op_advise(struct worker *w)
{
	static const enum up_advice advices[] = { UP_ADVICE_NORMAL, UP_ADVICE_SEQUENTIAL,
						  UP_ADVICE_RANDOM, UP_ADVICE_WILLNEED,
						  UP_ADVICE_COLD,   UP_ADVICE_COLD };
	const enum up_advice advice = advices[below(w, ARRAY_SIZE(advices))];
	struct range *r = take(w, false);
	size_t first, n;
	int e = -EINVAL;

	if (r == NULL)
		return false;
	if (span(w, r, some_length(w), 0, &first, &n)) {
		e = up_advise(w->m->rt, r->va + first * PAGE, n * PAGE, advice);
		if (e != 0 && e != -ENOMEM)
			fail(w->m, "up_advise(%d): %s", (int)advice, strerrorname_np(-e));
	}
	leave(r);
	return e == 0;
}

/* A call that brings pages in may end like this. */
static void
check_brought_in(struct worker *w, const struct range *r, const char *call, int e)
{
	const bool may = unreserved(r);

	if (e != 0 && e != -ENOMEM && !((e == -EIO || e == -ENOSPC) && may && was_denied(w->m)))
		fail(w->m, "%s: %s", call, strerrorname_np(-e));
}

static bool
op_prefault(struct worker *w)
{
	const bool write = below(w, 2);
	struct range *r = take(w, false);
	size_t first, n;
	int e = -EINVAL;

	if (r == NULL)
		return false;
	if (span(w, r, some_length(w), 0, &first, &n)) {
		bool allowed = true;

		for (size_t i = first; i < first + n; i++)
			allowed &= allows(r, i, write ? PROT_WRITE : PROT_READ);
		e = up_prefault(w->m->rt, r->va + first * PAGE, n * PAGE, write);
		if ((e == 0 && !allowed) || (e == -EACCES && allowed))
			fail(w->m, "up_prefault: %s, allowed or not", strerrorname_np(-e));
		if (e != -EACCES)
			check_brought_in(w, r, "up_prefault", e);
	}
	leave(r);
	return e == 0;
}

/* => wire is locked */
static void
check_wired(struct worker *w, struct range *r, size_t first, size_t n)
{
	const int e = up_residency(w->m->rt, r->va + first * PAGE, n * PAGE, w->vec);

	if (e != 0)
		fail(w->m, "up_residency: %s", strerrorname_np(-e));
	for (size_t i = 0; i < n; i++) {
		if ((r->wired[first + i] > 0) != ((w->vec[i] & UP_PAGE_WIRED) != 0) ||
		    (r->wired[first + i] > 0 && !(w->vec[i] & UP_PAGE_MAPPED)))
			fail(w->m, "page %zu of %p is wired %u times, residency %#x", first + i,
			     (void *)r->va, r->wired[first + i], w->vec[i]);
	}
}

static bool
op_wire(struct worker *w)
{
	struct range *r = take(w, false);
	size_t first, n;
	int e = -EINVAL;

	if (r == NULL)
		return false;
	pthread_mutex_lock(&r->wire);
	/* What is wired can not be cloned: half of the ranges never are; nor copied to children. */
	if ((r - w->m->range) % 2 == 0 && memchr(r->inherit, UP_INHERIT_COPY, r->npages) == NULL &&
	    span(w, r, 24, 0, &first, &n)) {
		bool allowed = true, full = false;

		for (size_t i = first; i < first + n; i++) {
			allowed &= r->prot[i] != PROT_NONE;
			full |= r->wired[i] == WIRED_MAX;
		}
		if (!full) {
			e = up_wire(w->m->rt, r->va + first * PAGE, n * PAGE);
			if ((e == 0 && !allowed) || (e == -EACCES && allowed))
				fail(w->m, "up_wire: %s, allowed or not", strerrorname_np(-e));
			if (e != -EACCES)
				check_brought_in(w, r, "up_wire", e);
			for (size_t i = first; e == 0 && i < first + n; i++)
				r->wired[i]++;
			check_wired(w, r, first, n);
		}
	}
	pthread_mutex_unlock(&r->wire);
	leave(r);
	return e == 0;
}

static bool
op_unwire(struct worker *w)
{
	struct range *r = take(w, false);
	size_t first, n;
	int e = -EINVAL;

	if (r == NULL)
		return false;
	pthread_mutex_lock(&r->wire);
	if (span(w, r, 40, 0, &first, &n)) {
		/* Most often of what is wired. */
		for (size_t i = below(w, 8) == 0 ? r->npages : 0; i < r->npages; i++) {
			if (r->wired[i] > 0 && r->prot[i] != GONE) {
				first = i;
				for (n = 1; i + n < r->npages && n < 40 && r->wired[i + n] > 0;)
					n++;
				break;
			}
		}
		e = up_unwire(w->m->rt, r->va + first * PAGE, n * PAGE);
		if (e != -ENOMEM && (e == 0) != wired_all(r, first, n))
			fail(w->m, "up_unwire: %s, wired or not", strerrorname_np(-e));
		for (size_t i = first; e == 0 && i < first + n; i++)
			r->wired[i]--;
		check_wired(w, r, first, n);
	}
	pthread_mutex_unlock(&r->wire);
	leave(r);
	return e == 0;
}

static bool
op_sync(struct worker *w)
{
	struct range *r = take(w, false);
	/* All of it while others write, or a part of which it is known what must have arrived. */
	const bool part = below(w, 3) != 0;
	size_t first, n;
	int e = -EINVAL;

	if (r == NULL)
		return false;
	if (span(w, r, part ? 100 : PAGES_MAX, 0, &first, &n)) {
		if (part)
			lock_stripes(r, first, n);
		e = up_sync(w->m->rt, r->va + first * PAGE, n * PAGE, UP_SYNC_WAIT);
		/* What could not be written for want of metadata is told of as well. */
		if (e != 0 && !atomic_load(&r->sick))
			fail(w->m, "up_sync of %zu pages at %p: %s", n,
			     (void *)(r->va + first * PAGE), strerrorname_np(-e));
		if (e == 0 && part && r->shared && !atomic_load(&r->sick))
			check_source(w->m, r->thing, r->first + first, n, "synced");
		if (part)
			unlock_stripes(r, first, n);
	}
	leave(r);
	return e == 0;
}

static bool
is_zero(const uint64_t *page)
{
	static const uint64_t zeros[WORDS];

	return memcmp(page, zeros, PAGE) == 0;
}

static bool
op_residency(struct worker *w)
{
	const unsigned char both = UP_PAGE_MAPPED | UP_PAGE_STAGED;
	const unsigned char known =
		both | UP_PAGE_SWAPPED | UP_PAGE_LOST | UP_PAGE_WIRED | UP_PAGE_COMPRESSED;
	struct range *r = take(w, false);
	size_t first, n;
	int e = -EINVAL;

	if (r == NULL)
		return false;
	if (span(w, r, 100, 0, &first, &n)) {
		lock_stripes(r, first, n);
		e = up_residency(w->m->rt, r->va + first * PAGE, n * PAGE, w->vec);
		if (e != 0)
			fail(w->m, "up_residency: %s", strerrorname_np(-e));
		for (size_t i = 0; i < n; i++) {
			const unsigned char v = w->vec[i];

			if ((v & ~known) != 0 || (v & both) == both ||
			    ((v & UP_PAGE_LOST) && !was_denied(w->m)) ||
			    (v == 0 && !has_source(r->thing) && !atomic_load(&r->sick) &&
			     !is_zero(r->shadow + (first + i) * WORDS)))
				fail(w->m, "page %zu of %p: residency %#x makes no sense",
				     first + i, (void *)r->va, v);
		}
		unlock_stripes(r, first, n);
	}
	leave(r);
	return e == 0;
}

/* --- operations: looking at the runtime --- */

static void
check_stats(struct mill *m, const struct up_stats *st)
{
	if (st->used > st->limit || st->used_max > st->limit)
		fail(m, "%" PRIu64 " bytes used (at most %" PRIu64 "), the limit is %" PRIu64,
		     st->used, st->used_max, st->limit);
	if (st->checksum_errors + st->swap_read_errors + st->swap_write_errors + st->source_errors >
		    0 ||
	    (st->fault_sigbus + st->lost > 0 && !was_denied(m)))
		fail(m,
		     "an error where there is none: %" PRIu64 " checksums, %" PRIu64
		     " reads, %" PRIu64 " writes, %" PRIu64 " of sources, %" PRIu64
		     " SIGBUS, %" PRIu64 " bytes lost",
		     st->checksum_errors, st->swap_read_errors, st->swap_write_errors,
		     st->source_errors, st->fault_sigbus, st->lost);
}

static bool
op_stats(struct worker *w)
{
	struct up_stats st;

	if (up_stats_get(w->m->rt, &st, sizeof st) != 0 || up_stats_print(w->m->rt, w->null) != 0 ||
	    (below(w, 4) == 0 && up_trace_print(w->m->rt, w->null) != 0))
		fail(w->m, "statistics or trace");
	check_stats(w->m, &st);
	return true;
}

static bool
op_dump(struct worker *w)
{
	if (up_map_dump(w->m->rt, w->null) != 0)
		fail(w->m, "up_map_dump");
	return true;
}

static bool
op_info(struct worker *w)
{
	struct thing *t = &w->m->thing[below(w, THINGS)];
	struct up_object_stats info;
	bool ok = false;

	/* Whoever has this lock may be waiting for a disk. */
	if (pthread_mutex_trylock(&t->lock) != 0)
		return false;
	if (t->kind != NOTHING) {
		const char *pager = t->kind < FILE_ ? "anonymous" : kind_name(t->kind);
		const int e = up_object_info(t->object, &info, sizeof info);

		if (e != 0 || info.size != t->npages * PAGE || strcmp(info.pager, pager) != 0 ||
		    info.refs == 0 || info.resident > t->npages * PAGE ||
		    (info.lost > 0 && !was_denied(w->m)))
			fail(w->m,
			     "up_object_info of a %s: %d, size %" PRIu64 " of %" PRIu64
			     ", %s, %" PRIu64 " resident, %" PRIu64 " swapped, %" PRIu64
			     " lost, %u refs",
			     kind_name(t->kind), e, info.size, (uint64_t)t->npages * PAGE,
			     info.pager, info.resident, info.swapped, info.lost, info.refs);
		ok = true;
	}
	pthread_mutex_unlock(&t->lock);
	return ok;
}

/* --- operations: the heap --- */

static void
check_block(struct worker *w, const struct block *b, size_t n)
{
	if (memcmp(b->p, b->shadow, n) != 0)
		fail(w->m, "a block of %zu bytes at %p is not what was written", b->n, b->p);
	w->verified += n / PAGE;
}

static void
fill_block(struct worker *w, struct block *b)
{
	const unsigned book = (unsigned)((uintptr_t)b->p >> 12);

	w->writes++;
	for (size_t at = 0; at < b->n; at += 8) {
		const uint64_t v = word_of(w->writes, w->id, book, at / PAGE, at % PAGE / 8);

		memcpy(b->shadow + at, &v, MIN((size_t)8, b->n - at));
	}
	memcpy(b->p, b->shadow, b->n);
}

static void *
new_block(struct worker *w, size_t n)
{
	static const unsigned char zeros[BLOCK_MAX];
	void *p;

	switch (below(w, 4)) {
	case 0:
		p = up_calloc(w->m->heap, 1, n);
		if (p != NULL && memcmp(p, zeros, n) != 0)
			fail(w->m, "up_calloc of %zu bytes at %p: not zero", n, p);
		return p;
	case 1:
		p = up_memalign(w->m->heap, 256, n);
		if ((uintptr_t)p % 256 != 0)
			fail(w->m, "up_memalign: %p", p);
		return p;
	default:
		return up_malloc(w->m->heap, n);
	}
}

static bool
op_heap(struct worker *w)
{
	struct block *b = &w->block[below(w, BLOCKS)];
	const size_t n = 1 + below(w, below(w, 4) == 0 ? BLOCK_MAX : 600);
	void *p;

	if (w->m->heap == NULL)
		return false;
	if (b->p == NULL) {
		b->p = new_block(w, n);
		if (b->p == NULL)
			return false;
		b->n = n;
		fill_block(w, b);
		return true;
	}
	check_block(w, b, b->n);
	switch (below(w, 3)) {
	case 0:
		fill_block(w, b);
		break;
	case 1:
		p = up_realloc(w->m->heap, b->p, n);
		if (p == NULL)
			return false;
		b->p = p;
		check_block(w, b, MIN(n, b->n));
		b->n = n;
		fill_block(w, b);
		if (up_malloc_usable_size(w->m->heap, p) < n)
			fail(w->m, "a block of %zu bytes has fewer", n);
		break;
	default:
		if (up_free(w->m->heap, b->p) != 0)
			fail(w->m, "up_free of %p", b->p);
		b->p = NULL;
	}
	return true;
}

static bool
op_heap_advise(struct worker *w)
{
	struct up_heap_stats hs;
	size_t first, n;

	if (w->m->heap == NULL)
		return false;
	if (up_heap_stats_get(w->m->heap, &hs, sizeof hs) != 0 || hs.size != HEAP_SIZE)
		fail(w->m, "up_heap_stats_get");
	first = below(w, HEAP_SIZE / PAGE);
	n = 1 + below(w, HEAP_SIZE / PAGE - first);
	return up_advise(w->m->rt, (char *)hs.base + first * PAGE, n * PAGE,
			 below(w, 2) ? UP_ADVICE_COLD : UP_ADVICE_WILLNEED) == 0;
}

/* --- operations: fork --- */

/* In the child: no lock, no stdio; the handler of faults is there. */
static void __attribute__((noreturn)) child_fail(const char *why)
{
	ssize_t ignored = write(STDERR_FILENO, why, strlen(why));

	(void)ignored;
	_exit(1);
}

/* The same, of a page that should not be there: what is there instead. */
static void __attribute__((noreturn)) child_has(const struct range *r, size_t page, int sig)
{
	char line[256];
	FILE *maps = fopen("/proc/self/maps", "re");
	const uintptr_t at = (uintptr_t)r->va + page * PAGE;

	while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
		uintptr_t start, end;

		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && at >= start && at < end)
			fprintf(stderr, "kernel_random: %s", line);
	}
	snprintf(
		line, sizeof line,
		"kernel_random: page %zu of a region at %p is there in a forked child: signal %d, inherit %d\n",
		page, (void *)r->va, sig, r->inherit[page]);
	child_fail(line);
}

/* The same, of a page that is not what it should be. */
static void __attribute__((noreturn))
child_differs(const struct mill *m, const struct range *r, size_t page, const uint64_t *got)
{
	const uint64_t *want = r->shadow + page * WORDS;
	char line[512], is[80], should[80];
	size_t n = 0, zeros = 0, first = WORDS;

	for (size_t i = 0; i < WORDS; i++) {
		zeros += got[i] == 0;
		if (got[i] == want[i])
			continue;
		n++;
		first = MIN(first, i);
	}
	snprintf(
		line, sizeof line,
		"kernel_random: range %u at %p,%s%s%s%s%s inherit %d, page %zu: %zu words differ, %zu are "
		"0; word %zu is %s, not %s\n",
		(unsigned)(r - m->range), (void *)r->va, r->shared ? " shared" : "",
		r->thing != NULL ? " named" : "", r->noreserve ? " noreserve" : "",
		r->parted ? " parted" : "", r->loose ? " loose" : "", r->inherit[page], page, n,
		zeros, first, word_print(got[first], is, sizeof is),
		word_print(want[first], should, sizeof should));
	child_fail(line);
}

/*
 * A child has all that it inherits or, if the parent could not copy it, nothing.  The first page that it may read tells;
 * -1: there is none.
 */
static int
has_something(const struct mill *m)
{
	for (unsigned i = 0; i < m->nranges; i++) {
		const struct range *r = &m->range[i];

		for (size_t page = 0; r->va != NULL && page < r->npages; page++) {
			if (allows(r, page, PROT_READ) && r->inherit[page] != UP_INHERIT_NONE)
				return guarded_touch(r->va + page * PAGE, false) != SIGSEGV;
		}
	}
	return -1;
}

/* What may be known of a page's content in a child; `alone`: nobody else writes to what is shared. */
static bool
is_known(const struct range *r, size_t page, bool alone)
{
	return !atomic_load(&r->sick) && (!r->loose || r->mine[page]) &&
	       (r->inherit[page] == UP_INHERIT_COPY || alone || r->fixed);
}

/* In a child.  Every n-th page is as the oracle says, or absent. */
static void
child_looks(const struct mill *m, size_t nth, bool something, bool alone)
{
	static uint64_t page_buf[WORDS];

	for (unsigned i = 0; i < m->nranges; i++) {
		const struct range *r = &m->range[i];

		for (size_t page = i % nth; r->va != NULL && page < r->npages; page += nth) {
			const bool here = something && r->inherit[page] != UP_INHERIT_NONE;
			int sig;

			if (!allows(r, page, PROT_READ))
				continue;
			sig = guarded_copy(page_buf, r->va + page * PAGE, PAGE, MEMCPY);
			if (!here && sig != SIGSEGV)
				child_has(r, page, sig);
			if (here && sig != 0 &&
			    !(sig == SIGBUS && (unreserved(r) || atomic_load(&r->sick))))
				child_fail("kernel_random: an inherited page is not there\n");
			if (here && sig == 0 && is_known(r, page, alone) &&
			    memcmp(page_buf, r->shadow + page * WORDS, PAGE) != 0)
				child_differs(m, r, page, page_buf);
		}
	}
}

/* Writes a child makes: where and what follows from the seed, so that its parent can tell what it has done to shared memory. */
static void
child_writes(struct worker *w, uint64_t seed, bool really)
{
	struct mill *m = w->m;
	const uint64_t random = w->random;

	w->random = seed;
	for (unsigned k = 0; k < 200; k++) {
		struct range *r = &m->range[below(w, m->nranges)];
		const uint64_t at = below(w, PAGES_MAX), word = below(w, WORDS),
			       salt = below(w, 1 << 20);
		const size_t page = r->va != NULL ? at % r->npages : 0;
		uint64_t v;

		if (r->va == NULL || atomic_load(&r->sick) || r->loose || is_pure(r) ||
		    r->inherit[page] == UP_INHERIT_NONE ||
		    (r->inherit[page] == UP_INHERIT_SHARE && (!r->lent || unreserved(r))) ||
		    !allows(r, page, PROT_READ | PROT_WRITE) || writable_bytes(r, page, 1) < PAGE ||
		    (!really && r->inherit[page] != UP_INHERIT_SHARE))
			continue;
		v = word_of(salt, w->id, (unsigned)k, (r->shared ? r->first : 0) + page, word);
		r->shadow[page * WORDS + word] = v;
		if (!really || guarded_copy(r->va + page * PAGE + word * 8, &v, 8, PLAIN) == 0)
			continue;
		if (!unreserved(r))
			child_fail("kernel_random: an inherited page can not be written to\n");
		/* There was no room for a copy: here the page is SIGBUS, and a child of ours sees it as it was before. */
		atomic_store(&r->sick, true);
	}
	w->random = random;
}

#define HAD_NOTHING 3

/* `alone`: the parent waits, and all that is shared stands still. */
static void __attribute__((noreturn)) child(struct worker *w, uint64_t seed, bool alone)
{
	struct mill *m = w->m;
	const int something = has_something(m);
	struct up_stats st;
	void *p;

	alarm(60);
	w->random = seed ^ 0x5555;
	child_looks(m, something == 1 ? 1 + below(w, 4) : 37, something == 1, alone);
	if (up_stats_get(m->rt, &st, sizeof st) != -ECHILD ||
	    up_map(m->rt, NULL, PAGE, PROT_READ, UP_PRIVATE, NULL, 0, &p) != -ECHILD)
		child_fail("kernel_random: a call in a forked child was not refused\n");
	if (something != 1)
		_exit(something == 0 ? HAD_NOTHING : 0);
	if (alone)
		child_writes(w, seed, true);
	child_looks(m, 3, true, alone);
	if (below(w, 2)) {
		const pid_t pid = fork();
		int status;

		if (pid == 0) {
			alarm(60);
			/* No room for another copy is a reason to have nothing. */
			if (has_something(m) == 1)
				child_looks(m, 4, true, alone);
			_exit(0);
		}
		child_looks(m, 5, true, alone);
		if (pid > 0 && below(w, 8) == 0)
			kill(pid, SIGKILL);
		if (pid > 0 &&
		    (waitpid(pid, &status, 0) != pid ||
		     (status != 0 && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL))))
			child_fail("kernel_random: a child's child has failed\n");
	}
	for (unsigned k = 0; !alone && k < 20; k++)
		child_looks(m, 7, true, false);
	_exit(0);
}

static void
child_ended(struct mill *m, int status, bool killed)
{
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && killed)
		return;
	if (!WIFEXITED(status) || (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != HAD_NOTHING))
		fail(m, "a child ended with status %#x", status);
	if (WEXITSTATUS(status) == 0)
		atomic_fetch_add(&m->children, 1);
	else
		atomic_fetch_add(&m->orphans, 1);
}

/* Take note of children that have ended.  `all`: kill and wait for those that have not. */
static void
children_end(struct mill *m, bool all)
{
	pthread_mutex_lock(&m->nursery);
	for (unsigned i = 0; i < CHILDREN; i++) {
		int status;
		pid_t got;

		if (m->child[i] == 0)
			continue;
		if (all) {
			m->killed[i] = true;
			kill(m->child[i], SIGKILL);
		}
		do {
			got = waitpid(m->child[i], &status, all ? 0 : WNOHANG);
		} while (got < 0 && errno == EINTR);
		if (got < 0)
			fail(m, "waitpid: %s", strerror(errno));
		if (got > 0) {
			child_ended(m, status, m->killed[i]);
			m->child[i] = 0;
		}
	}
	pthread_mutex_unlock(&m->nursery);
}

/* What may be parted by a fork from now on may be in a chain. */
static void
mark_parted(struct mill *m)
{
	for (unsigned i = 0; i < m->nranges; i++) {
		struct range *r = &m->range[i];

		for (size_t page = 0; r->va != NULL && page < r->npages; page++)
			r->parted |= r->inherit[page] == UP_INHERIT_COPY;
	}
}

/* Operations that only look go on: who may look at what a child writes to, waits. */
static void
lend(struct mill *m, bool on)
{
	for (unsigned i = 0; i < m->nranges; i++) {
		struct range *r = &m->range[i];

		if (on && enter(m, r, true, false))
			r->lent = true;
		else if (!on && r->lent) {
			r->lent = false;
			leave(r);
		}
	}
}

static bool
op_fork(struct worker *w)
{
	const bool alone = below(w, 2);
	const uint64_t seed = stress_mix(below(w, UINT64_MAX));
	struct mill *m = w->m;
	unsigned slot = 0;
	int status;
	pid_t pid;

	children_end(m, false);
	pthread_mutex_lock(&m->nursery);
	if (!alone) {
		slot = (unsigned)below(w, CHILDREN);
		if (m->child[slot] != 0) {
			m->killed[slot] = true;
			kill(m->child[slot], SIGKILL);
			pthread_mutex_unlock(&m->nursery);
			return false;
		}
	}
	/* The caller holds `world` for writing: the oracle is right, and so is the child's copy of it. */
	mark_parted(m);
	if (alone)
		lend(m, true);
	pid = fork();
	if (pid < 0)
		fail(m, "fork: %s", strerror(errno));
	if (pid == 0)
		child(w, seed, alone);
	if (!alone) {
		m->child[slot] = pid;
		m->killed[slot] = false;
	}
	pthread_mutex_unlock(&m->nursery);
	if (!alone)
		return true;
	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			fail(m, "waitpid: %s", strerror(errno));
	}
	child_ended(m, status, false);
	if (WEXITSTATUS(status) == 0)
		child_writes(w, seed, false);
	lend(m, false);
	return true;
}

static bool
op_inherit(struct worker *w)
{
	static const enum up_inherit hows[] = { UP_INHERIT_NONE, UP_INHERIT_COPY, UP_INHERIT_COPY,
						UP_INHERIT_SHARE };
	enum up_inherit how = hows[below(w, ARRAY_SIZE(hows))];
	struct range *r = take(w, true);
	bool may;
	size_t first, n;
	int e = -EINVAL;

	if (r == NULL)
		return false;
	/* Of an object that others may map later too it would have to be known there that it is in a chain. */
	if (how == UP_INHERIT_COPY && r->shared && !has_source(r->thing))
		how = is_multi(r) ? UP_INHERIT_SHARE : UP_INHERIT_NONE;
	/* What is wired is not parted, and then children have nothing at all. */
	if (how == UP_INHERIT_COPY && wired_any(r, 0, r->npages))
		how = UP_INHERIT_NONE;
	may = how == UP_INHERIT_NONE ||
	      ((w->m->features & UP_MASK_SHARED) &&
	       (how == UP_INHERIT_SHARE ? is_multi(r) : !(r->shared && has_source(r->thing))));
	if (span(w, r, below(w, 2) ? PAGES_MAX : 60, 0, &first, &n)) {
		e = up_inherit(w->m->rt, r->va + first * PAGE, n * PAGE, how);
		if (!scarce(e) && (e != 0 ? e != -ENOTSUP || may : !may))
			fail(w->m, "up_inherit(%d): %s, allowed or not", (int)how,
			     strerrorname_np(-e));
		if (e == 0)
			memset(r->inherit + first, (int)how, n);
	}
	leave(r);
	return e == 0;
}

/* --- the table --- */

enum access { CLOSED, OPEN, ALONE }; /* of `world`: read, not at all, write */

static const struct op {
	const char *name;
	unsigned weight;
	bool (*run)(struct worker *w); /* false: nothing was done, or it was refused */
	enum access access;
} ops[] = {
	{ "read", 220, op_read, OPEN },
	{ "write", 200, op_write, CLOSED },
	{ "copy", 40, op_copy, CLOSED },
	{ "trespass", 10, op_trespass, OPEN },
	{ "map", 40, op_map, CLOSED },
	{ "unmap", 32, op_unmap, CLOSED },
	{ "refill", 10, op_refill, CLOSED },
	{ "protect", 14, op_protect, CLOSED },
	{ "remap", 10, op_remap, CLOSED },
	{ "clone", 24, op_clone, CLOSED },
	{ "snapshot", 16, op_snapshot, CLOSED },
	{ "discard", 8, op_discard, CLOSED },
	{ "advise", 16, op_advise, OPEN },
	{ "prefault", 10, op_prefault, OPEN },
	{ "wire", 6, op_wire, CLOSED },
	{ "unwire", 16, op_unwire, CLOSED },
	{ "sync", 12, op_sync, OPEN },
	{ "residency", 8, op_residency, OPEN },
	{ "stats", 3, op_stats, OPEN },
	{ "dump", 2, op_dump, OPEN },
	{ "info", 6, op_info, OPEN },
	{ "heap", 60, op_heap, CLOSED },
	{ "heap advise", 3, op_heap_advise, OPEN },
	{ "inherit", 16, op_inherit, CLOSED },
	{ "fork", 2, op_fork, ALONE },
};

static void
step(struct worker *w, size_t i)
{
	struct mill *m = w->m;
	bool ok;

	post_step(w->post, ops[i].name, NULL, 0);
	pthread_rwlock_rdlock(&m->still);
	if (ops[i].access == CLOSED)
		pthread_rwlock_rdlock(&m->world);
	else if (ops[i].access == ALONE)
		pthread_rwlock_wrlock(&m->world);
	ok = ops[i].run(w);
	if (ops[i].access != OPEN)
		pthread_rwlock_unlock(&m->world);
	pthread_rwlock_unlock(&m->still);
	if (ok)
		w->ok[i]++;
	else
		w->refused[i]++;
}

static void *
worker_thread(void *arg)
{
	struct worker *w = arg;
	unsigned sum = 0;

	for (size_t i = 0; i < ARRAY_SIZE(ops); i++)
		sum += ops[i].weight;
	while (!atomic_load_explicit(&w->m->stop, memory_order_relaxed)) {
		uint64_t n = below(w, sum);
		size_t i = 0;

		for (; n >= ops[i].weight; i++)
			n -= ops[i].weight;
		step(w, i);
	}
	post_step(w->post, NULL, NULL, 0);
	return NULL;
}

/* --- main: everybody stands still --- */

static bool
same_activity(const struct up_stats *a, const struct up_stats *b)
{
	return a->resident == b->resident && a->staged == b->staged &&
	       a->free_frames == b->free_frames && a->pages_staged == b->pages_staged &&
	       a->pages_out == b->pages_out && a->used == b->used;
}

static uint64_t
present(struct mill *m, int pagemap, const char *va, size_t n)
{
	uint64_t entry[512], sum = 0;

	for (size_t i = 0; i < n; i += ARRAY_SIZE(entry)) {
		const size_t k = MIN(n - i, ARRAY_SIZE(entry));

		if (pread(pagemap, entry, k * 8, (off_t)((uintptr_t)va / PAGE + i) * 8) !=
		    (ssize_t)(k * 8))
			fail(m, "reading pagemap: %s", strerror(errno));
		for (size_t j = 0; j < k; j++)
			sum += entry[j] >> 63;
	}
	return sum;
}

/* What the pager, the kernel and the oracle say of the whole. */
static bool
agree(struct mill *m, int pagemap, const struct up_stats *st, char *why, size_t size)
{
	uint64_t mapped = 0, wired = 0, there = 0;
	struct up_heap_stats hs;
	struct resident rss;

	for (unsigned i = 0; i < m->nranges; i++) {
		const struct range *r = &m->range[i];

		for (size_t page = 0, n; r->va != NULL && page < r->npages;
		     page += MAX(n, (size_t)1)) {
			n = run_from(r, page);
			mapped += n;
			there += present(m, pagemap, r->va + page * PAGE, n);
			for (size_t k = page; k < page + n; k++)
				wired += r->wired[k] > 0;
		}
		mapped += r->va != NULL && r->twin != NULL ? r->ntwin : 0;
	}
	if (m->heap != NULL) {
		up_heap_stats_get(m->heap, &hs, sizeof hs);
		mapped += hs.size / PAGE;
		there += present(m, pagemap, hs.base, hs.size / PAGE);
	}
	resident_by_smaps(&rss);
	snprintf(why, size,
		 "oracle: %" PRIu64 " pages mapped, %" PRIu64 " wired; kernel: %" PRIu64
		 " present, %" PRIu64 " bytes of the library; pager: %" PRIu64 " mapped, %" PRIu64
		 " wired, %" PRIu64 " present; limit %" PRIu64 " bytes",
		 mapped, wired, there, rss.pager, st->mapped / PAGE, st->wired / PAGE,
		 st->resident / PAGE, st->limit);
	/* A page of shared memory is there once it is in its pool, though perhaps in nobody's page table. */
	return mapped * PAGE == st->mapped && wired * PAGE == st->wired &&
	       (there * PAGE == st->resident ||
		((m->features & UP_MASK_SHARED) && there * PAGE < st->resident)) &&
	       rss.pager <= st->limit;
}

static void
check_at_rest(struct mill *m)
{
	const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	const uint64_t end = stress_now() + 10 * SECOND;
	struct up_stats st, again;
	char why[400] = "";
	bool good = false;

	if (pagemap < 0)
		fail(m, "/proc/self/pagemap: %s", strerror(errno));
	while (!good) {
		up_stats_get(m->rt, &st, sizeof st);
		good = agree(m, pagemap, &st, why, sizeof why);
		up_stats_get(m->rt, &again, sizeof again);
		/* Services may still be at what was asked of them. */
		good &= same_activity(&st, &again);
		if (!good && stress_now() > end)
			fail(m, "at rest: %s", why);
	}
	check_stats(m, &st);
	close(pagemap);
	m->rests++;
}

/* The limit as the kernel sees it, while everybody runs. */
static void
sample_budget(struct mill *m)
{
	uint64_t mine;

	/* A sanitizer's own memory grows and shrinks beside us. */
	if (STRESS_SANITIZED || !resident_pager(&mine))
		return;
	m->samples++;
	m->peak = MAX(m->peak, mine);
	if (mine > m->memory)
		fail(m, "the kernel has %" PRIu64 " bytes of the pager resident, the limit is %zu",
		     mine, m->memory);
}

/* --- a round --- */

/* Ordinary memory that is there from the start, so that it does not look like the library's. */
static void *
arena(struct mill *m, size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		fail(m, "out of memory");
	memset(p, 0, size);
	return p;
}

static void
make_range(struct mill *m, unsigned i)
{
	struct range *r = &m->range[i];
	pthread_rwlockattr_t attr;

	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&r->lock, &attr);
	pthread_rwlockattr_destroy(&attr);
	for (unsigned k = 0; k < STRIPES; k++)
		pthread_mutex_init(&r->stripe[k], NULL);
	pthread_mutex_init(&r->wire, NULL);
	r->owner = i < COMMON ? -1 : (int)((i - COMMON) / OWN);
	r->own = arena(m, PAGES_MAX * PAGE);
}

static void
make_worker(struct mill *m, unsigned id)
{
	struct worker *w = &m->worker[id];
	char name[64];

	w->m = m;
	w->id = id;
	w->post = &m->watch.post[id];
	w->pipe[0] = -1;
	w->buf = arena(m, RUN_MAX * PAGE);
	w->file = temporary_file(m);
	snprintf(name, sizeof name, "/proc/self/fd/%d", w->file);
	w->direct = open(name, O_RDWR | O_DIRECT | O_CLOEXEC);
	new_pipe(w);
	w->null = fopen("/dev/null", "we");
	if (w->null == NULL)
		fail(m, "/dev/null: %s", strerror(errno));
	for (unsigned i = 0; i < BLOCKS; i++)
		w->block[i].shadow = (unsigned char *)arena(m, BLOCK_MAX);
}

/* Once: what rounds have in common. */
static void
set_up(struct mill *m)
{
	struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
	pthread_rwlockattr_t attr;

	the_mill = m;
	m->pid = getpid();
	sigfillset(&sa.sa_mask);
	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
	pthread_mutex_init(&m->desk, NULL);
	pthread_mutex_init(&m->nursery, NULL);
	pthread_cond_init(&m->desk_cond, NULL);
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&m->still, &attr);
	pthread_rwlock_init(&m->world, &attr);
	pthread_rwlockattr_destroy(&attr);
	m->nranges = COMMON + OWN * m->cfg->threads;
	m->range = calloc(m->nranges, sizeof *m->range);
	m->worker = calloc(m->cfg->threads, sizeof *m->worker);
	if (m->range == NULL || m->worker == NULL)
		fail(m, "out of memory");
	for (unsigned i = 0; i < m->nranges; i++)
		make_range(m, i);
	for (unsigned i = 0; i < THINGS; i++) {
		m->thing[i].m = m;
		m->thing[i].fd = -1;
		pthread_mutex_init(&m->thing[i].lock, NULL);
		m->thing[i].shadow = arena(m, PAGES_MAX * PAGE);
		m->thing[i].store = arena(m, PAGES_MAX * PAGE);
	}
	for (unsigned i = 0; i < m->cfg->threads; i++)
		make_worker(m, i);
	m->post = &m->watch.post[m->cfg->threads];
}

static int
start_round(struct mill *m, uint64_t seed)
{
	static const size_t memories[] = { 2u << 20, 3u << 20, 4u << 20, 8u << 20 };
	const struct config *cfg = m->cfg;
	struct up_config config = { .feature_mask = cfg->mask,
				    .delivery = test_delivery(),
				    .compression = test_compression(),
				    .log = on_log,
				    .log_ctx = m };
	const uint64_t pick = stress_mix(seed);
	char mask[80];
	int e;

	m->seed = seed;
	m->memory = cfg->memory != 0 ? cfg->memory : memories[pick % ARRAY_SIZE(memories)];
	m->services = cfg->services != 0 ? cfg->services : 1 + (pick >> 8) % 2;
	stress_print_mask(cfg->mask, mask, sizeof mask);
	snprintf(m->again, sizeof m->again,
		 "kernel_random --seconds %u --threads %u --memory %zu --mask %s --seed %" PRIu64
		 " --services %u",
		 ROUND_SECONDS, cfg->threads, m->memory, mask, seed, m->services);
	m->watch.again = m->again;
	config.memory_limit = m->memory;
	config.service_threads = m->services;
	atomic_store(&m->denied, false);
	atomic_store(&m->stop, false);
	m->closing = false;
	e = up_runtime_create(&m->rt, &config);
	if (e != 0)
		return e;
	m->features = up_features(m->rt);
	e = up_heap_create(m->rt, HEAP_SIZE, 0, &m->heap);
	if (e != 0 && e != -ENOMEM)
		fail(m, "up_heap_create: %s", strerrorname_np(-e));
	watch_start(&m->watch, m->rt, cfg->threads + 1, m->again);
	for (unsigned i = 0; i < CLERKS; i++) {
		if (pthread_create(&m->clerk[i], NULL, clerk_thread, m) != 0)
			fail(m, "pthread_create");
	}
	for (unsigned i = 0; i < cfg->threads; i++) {
		m->worker[i].random = stress_mix(seed << 8 | i);
		if (pthread_create(&m->worker[i].thread, NULL, worker_thread, &m->worker[i]) != 0)
			fail(m, "pthread_create");
	}
	return 0;
}

/* Every byte, once more. */
static void
verify_all(struct mill *m)
{
	struct worker *w = &m->worker[0];

	for (unsigned i = 0; i < m->nranges; i++) {
		struct range *r = &m->range[i];

		for (size_t page = 0, n;
		     r->va != NULL && page < r->npages && !atomic_load(&r->sick);
		     page += MAX(n, (size_t)1)) {
			n = run_from(r, page);
			if (n == 0)
				continue;
			post_step(m->post, "verifying all", r->va + page * PAGE, n);
			if (up_protect(m->rt, r->va + page * PAGE, n * PAGE, PROT_READ) == 0)
				memset(r->prot + page, PROT_READ, n);
			for (size_t k = page; k < page + n; k++) {
				if (r->prot[k] & PROT_READ)
					verify(w, r, k * PAGE, PAGE, MEMCPY);
			}
		}
	}
	for (unsigned i = 0; i < m->cfg->threads; i++) {
		for (unsigned k = 0; k < BLOCKS; k++) {
			if (m->worker[i].block[k].p != NULL)
				check_block(w, &m->worker[i].block[k], m->worker[i].block[k].n);
		}
	}
}

/* Unmap and let go of everything: nothing may be left, once the last writes have ended. */
static void
take_down(struct mill *m)
{
	const uint64_t end = stress_now() + 10 * SECOND;
	struct up_stats st;

	for (unsigned i = 0; i < m->nranges; i++) {
		struct range *r = &m->range[i];

		post_step(m->post, "unmapping all", r->va, r->npages);
		if (r->va != NULL)
			drop(&m->worker[0], r);
	}
	for (unsigned i = 0; i < THINGS; i++) {
		struct thing *t = &m->thing[i];

		post_step(m->post, "letting go of objects", NULL, 0);
		pthread_mutex_lock(&t->lock);
		if (t->kind != NOTHING)
			destroy_thing(m, t);
		pthread_mutex_unlock(&t->lock);
	}
	post_step(m->post, "up_heap_destroy", NULL, 0);
	up_heap_destroy(m->heap);
	do {
		up_stats_get(m->rt, &st, sizeof st);
		if (stress_now() > end)
			fail(m,
			     "everything is unmapped, and there are %" PRIu64
			     " bytes resident, %" PRIu64 " staged, %" PRIu64 " swapped, %" PRIu64
			     " lost, %" PRIu64 " promised, %" PRIu64 " mapped, %" PRIu64
			     " wired, %" PRIu64 " entries, %" PRIu64 " objects",
			     st.resident, st.staged, st.swapped, st.lost, st.reserve_used,
			     st.mapped, st.wired, st.entries, st.objects);
		sched_yield();
	} while (st.resident + st.staged + st.swapped + st.lost + st.reserve_used + st.mapped +
			 st.wired + st.entries + st.objects >
		 0);
}

/* Leave it all to up_runtime_destroy(): what was written to sources must be there afterwards as well. */
static void
walk_away(struct mill *m)
{
	up_runtime_destroy(m->rt);
	for (unsigned i = 0; i < m->nranges; i++) {
		struct range *r = &m->range[i];

		if (r->va != NULL && r->shared && atomic_load(&r->sick))
			atomic_store(&r->thing->sick, true);
		r->va = NULL;
	}
	for (unsigned i = 0; i < THINGS; i++) {
		struct thing *t = &m->thing[i];

		if (t->kind == NOTHING)
			continue;
		check_source(m, t, 0, t->npages, "after up_runtime_destroy");
		if (t->kind == CUSTOM && !atomic_load(&t->destroyed))
			fail(m, "up_runtime_destroy has left an object");
		if (t->fd >= 0)
			close(t->fd);
		t->fd = -1;
		t->kind = NOTHING;
	}
}

static void
end_round(struct mill *m, struct totals *sum)
{
	post_step(m->post, "waiting for the threads", NULL, 0);
	atomic_store(&m->stop, true);
	for (unsigned i = 0; i < m->cfg->threads; i++)
		pthread_join(m->worker[i].thread, NULL);
	post_step(m->post, "waiting for children", NULL, 0);
	children_end(m, true);
	verify_all(m);
	post_step(m->post, "comparing at the end", NULL, 0);
	check_at_rest(m);
	up_stats_get(m->rt, &sum->st, sizeof sum->st);
	if (m->seed % 4 != 0)
		take_down(m);
	post_step(m->post, "up_runtime_destroy", NULL, 0);
	if (m->seed % 4 != 0)
		up_runtime_destroy(m->rt);
	else
		walk_away(m);
	m->watch.rt = NULL;
	m->rt = NULL;
	m->heap = NULL;
	/* Requests are all completed by now. */
	post_step(m->post, "waiting for the pagers", NULL, 0);
	pthread_mutex_lock(&m->desk);
	m->closing = true;
	pthread_cond_broadcast(&m->desk_cond);
	pthread_mutex_unlock(&m->desk);
	for (unsigned i = 0; i < CLERKS; i++)
		pthread_join(m->clerk[i], NULL);
	post_step(m->post, NULL, NULL, 0);
	watch_stop(&m->watch);
	for (unsigned i = 0; i < m->cfg->threads; i++) {
		for (unsigned k = 0; k < BLOCKS; k++)
			m->worker[i].block[k].p = NULL;
	}
	sum->rounds++;
}

static int
play(struct mill *m, uint64_t seed, uint64_t seconds, struct totals *sum)
{
	const uint64_t end = stress_now() + seconds * SECOND;
	uint64_t rest = stress_now() + SECOND;
	const int e = start_round(m, seed);

	if (e != 0)
		return e;
	if (m->cfg->verbose)
		printf("%s\n", m->again);
	while (stress_now() < end) {
		post_step(m->post, "sampling", NULL, 0);
		sample_budget(m);
		nap(50000000);
		if (stress_now() < rest)
			continue;
		post_step(m->post, "waiting for everybody to stop", NULL, 0);
		pthread_rwlock_wrlock(&m->still);
		post_step(m->post, "comparing at rest", NULL, 0);
		check_at_rest(m);
		pthread_rwlock_unlock(&m->still);
		rest = stress_now() + SECOND;
	}
	end_round(m, sum);
	if (!STRESS_SANITIZED && m->samples == 0)
		fail(m, "no sample of the budget was of one moment");
	return 0;
}

static void
tally(const struct mill *m, struct totals *sum)
{
	for (unsigned i = 0; i < m->cfg->threads; i++) {
		const struct worker *w = &m->worker[i];

		for (size_t k = 0; k < ARRAY_SIZE(ops); k++) {
			sum->ok[k] += w->ok[k];
			sum->refused[k] += w->refused[k];
		}
		sum->verified += w->verified;
		sum->syscalls += w->syscalls;
	}
	sum->children = atomic_load(&m->children);
	sum->orphans = atomic_load(&m->orphans);
	sum->segv = atomic_load(&m->segv);
	sum->sigbus = atomic_load(&m->sigbus);
	sum->rests = m->rests;
	sum->samples = m->samples;
	sum->peak = m->peak;
}

static void
report(const struct config *cfg, const struct totals *sum)
{
	uint64_t all = 0;

	for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
		all += sum->ok[i];
		if (cfg->verbose)
			printf("%12s %10" PRIu64 " done %10" PRIu64 " not\n", ops[i].name,
			       sum->ok[i], sum->refused[i]);
	}
	printf("kernel_random: %" PRIu64 " rounds from seed %" PRIu64 ": %" PRIu64
	       " operations, %" PRIu64 " pages verified, %" PRIu64 " system calls, %" PRIu64
	       " SIGSEGV as asked for, %" PRIu64 " SIGBUS for want of metadata, %" PRIu64
	       " comparisons at rest, %" PRIu64 " samples, peak %.2f MiB, %" PRIu64
	       " children with memory, %" PRIu64 " without; no mismatch, no leak\n",
	       sum->rounds, cfg->seed, all, sum->verified, sum->syscalls, sum->segv, sum->sigbus,
	       sum->rests, sum->samples, (double)sum->peak / (1 << 20), sum->children,
	       sum->orphans);
}

static void __attribute__((noreturn)) usage(void)
{
	fprintf(stderr,
		"usage: kernel_random [--seconds N] [--seed S] [--threads T] [--memory BYTES]\n"
		"                     [--services K] [--mask LIST] [--verbose]\n");
	exit(2);
}

static uint64_t
number(const char *s, uint64_t max)
{
	uint64_t n;

	if (!stress_parse_number(s, max, &n))
		usage();
	return n;
}

static void
parse(int argc, char **argv, struct config *cfg)
{
	for (int i = 1; i < argc; i++) {
		const char *arg = argv[i], *value = argv[i + 1];

		if (strcmp(arg, "--verbose") == 0) {
			cfg->verbose = true;
			continue;
		}
		if (value == NULL)
			usage();
		i++;
		if (strcmp(arg, "--seconds") == 0)
			cfg->seconds = (unsigned)number(value, 1u << 30);
		else if (strcmp(arg, "--seed") == 0)
			cfg->seed = number(value, UINT64_MAX);
		else if (strcmp(arg, "--threads") == 0)
			cfg->threads = (unsigned)number(value, THREADS_MAX);
		else if (strcmp(arg, "--memory") == 0)
			cfg->memory = number(value, UINT64_C(1) << 40);
		else if (strcmp(arg, "--services") == 0)
			cfg->services = (unsigned)number(value, UP_SERVICE_THREADS_MAX);
		else if (strcmp(arg, "--mask") != 0 || !stress_parse_mask(value, &cfg->mask))
			usage();
	}
	if (cfg->threads == 0)
		usage();
}

int
main(int argc, char **argv)
{
	struct config cfg = { .seconds = 20, .threads = 4, .seed = stress_now() };
	struct mill *m = calloc(1, sizeof *m);
	struct totals sum = { 0 };
	uint64_t end;

	parse(argc, argv, &cfg);
	if (m == NULL)
		return 1;
	m->cfg = &cfg;
	set_up(m);
	end = stress_now() + cfg.seconds * SECOND;
	while (stress_now() < end) {
		const uint64_t left = (end - stress_now()) / SECOND + 1;
		const int e = play(m, cfg.seed + sum.rounds, MIN(left, ROUND_SECONDS), &sum);

		if (e != 0) {
			fprintf(stderr, "kernel_random: up_runtime_create: %s\n",
				strerrorname_np(-e));
			return e == -EPERM || e == -ENOSYS ? 77 : 1;
		}
	}
	tally(m, &sum);
	report(&cfg, &sum);
	return 0;
}
