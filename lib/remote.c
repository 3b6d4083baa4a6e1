/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * remote.c: a runtime whose pager is a daemon: the program's side of serve.c.
 *
 *	up_map()	reserve addresses ---- MAP ------------------> an object in a pool
 *			                  <--- REGION, the pool's file
 *			map it, inaccessible, and register it
 *			                  ---- MAPPED ----------------> a place of the pool: pageout knows of it
 *			                  <--- RETURN
 *			let it be touched
 *
 * What is mapped is the pool's memory itself, so that a page costs nothing once it is there: the daemon fills it in and takes it out, and
 * faults go to it through our userfaultfd.  A thread of ours (watcher.c) keeps a descriptor of that: when the daemon is gone, what is in memory
 * stays, and what is missing is SIGBUS.
 *
 * One call at a time, under `lock`, which a fork holds as well.  Nothing of this is in memory of malloc()'s, which may be paged.
 */
#include "remote.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "childmsg.h"
#include "dump.h"
#include "pmap/uffd_abi.h"
#include "sysmem.h"
#include "watcher.h"

#define REGIONS_MAX 65536u /* of a client, as vm.max_map_count has it */
#define CONNECT_MS 5000
#define CONNECT_TRIES 40u	/* two seconds: it may be killed again and again */
#define SERIAL_CALL 0x80000000u /* forks have the others */
#define RESTARTS_MAX 8u		/* of the daemon, during one call */
#define WIRE_TRIES 64u		/* for a piece to be in memory, all of it at a time */

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#define MADV_POPULATE_WRITE 23
#endif

struct remote {
	pthread_mutex_t lock;
	uint32_t serial;   /* (lock) */
	int sock;	   /* (c) */
	int uffd;	   /* (c) */
	int pager;	   /* (c) a pidfd of the daemon's process */
	uint64_t wirings;  /* (lock) numbers of CALL_WIRE and _UNWIRE */
	unsigned restarts; /* (lock) calls over which the daemon was killed */
	bool again;	   /* (c) should the daemon be killed over it, we connect again */
	bool broken;	   /* (lock) the daemon is gone, or has answered what it may not */
	struct ticket *ticket;
	const struct logger *log; /* (c) */
	uint64_t limit;		  /* (c) the daemon's */
	bool memory;		  /* (c) there is memory for heaps */
	atomic_size_t nregion;	  /* (lock) to change */
	struct region *region;	  /* REGIONS_MAX of them; length 0: free */
	char *watcher;
	atomic_bool over; /* we have hung up */
	/* up_config.pager_lost and pager_leaving; both NULL: there is no herald */
	void (*lost)(void *ctx);		 /* (c) */
	void (*leaving)(void *ctx, unsigned ms); /* (c) */
	void *lost_ctx, *leaving_ctx;		 /* (c) */
	pthread_t herald;
	struct unasked unasked; /* its kick: (c) -1: there is no herald */
	atomic_bool hushed;	/* it is to end */
	_Atomic uint32_t told;
};

/* The pointer that the program has is to this, and one more. */
struct remote_object {
	struct up_runtime *rt;
	uint64_t id, size;
	int prot; /* of CALL_OPEN */
	atomic_uint refs;
};

static struct remote_object *
remote_object(struct up_object *obj)
{
	return (struct remote_object *)((uintptr_t)obj - 1);
}

int
remote_lacks(struct up_runtime *rt, const char *call)
{
	log_line(&rt->p.log, UP_LOG_ERROR, "%s: not for a runtime that is connected to a daemon",
		 call);
	return -ENOTSUP;
}

/* How every call begins.  0, -ECHILD.  => no lock is held */
static int
begin(struct up_runtime *rt, const char *call, sigset_t *old)
{
	const int r = check_process(rt, call);

	if (r < 0)
		return r;
	signals_hold(old);
	pthread_mutex_lock(&rt->remote->lock);
	return 0;
}

static void
end(struct up_runtime *rt, const sigset_t *old)
{
	pthread_mutex_unlock(&rt->remote->lock);
	signals_release(old);
}

/* --- one question and its answer.  => the lock is held --- */

static int
lost(struct remote *re, int r)
{
	re->broken = true;
	return r;
}

static int
ask(struct remote *re, const struct call *q, int fd)
{
	struct msg m = { .type = MSG_CALL, .serial = SERIAL_CALL | ++re->serial, .call = *q };
	int r;

	if (re->broken)
		return -ENOTCONN;
	msg_drain(re->sock, &re->unasked);
	r = msg_send(re->sock, &m, &fd, fd >= 0);
	return r < 0 ? lost(re, r) : 0;
}

/* The next message that is an answer to the last question. */
static int
hear(struct remote *re, struct msg *m, int fd[MSG_REGIONS], size_t *nfd)
{
	for (;;) {
		int r = msg_await(re->sock, m, fd, nfd, ANSWER_MS);

		if (r < 0)
			return lost(re, r);
		if ((m->serial == (SERIAL_CALL | re->serial) &&
		     (m->type == MSG_RETURN || m->type == MSG_REGION)) ||
		    msg_is_restart(m, MSG_RETURN)) {
			/* Which of its limits it was, or why it may not; nothing else that has no more than a number to say is that. */
			if (m->type == MSG_RETURN &&
			    (m->status == -EDQUOT || m->status == -EACCES) &&
			    m->call.text[0] != '\0')
				log_line(re->log, UP_LOG_WARNING, "refused by the daemon: %.*s",
					 (int)MSG_TEXT - 1, m->call.text);
			return 0;
		}
		msg_unasked(&re->unasked, m);
		for (size_t i = 0; i < *nfd; i++)
			close(fd[i]);
	}
}

/* The same, once. */
static int
request_once(struct remote *re, const struct call *q, int with, struct msg *answer)
{
	int fd[MSG_REGIONS], r;
	size_t nfd;

	r = ask(re, q, with);
	if (r == 0)
		r = hear(re, answer, fd, &nfd);
	if (r < 0)
		return r;
	for (size_t i = 0; i < nfd; i++)
		close(fd[i]);
	if (answer->type != MSG_RETURN || nfd > 0)
		return lost(re, -EPROTO);
	if (answer->status == -ERESTART)
		re->restarts++;
	return answer->status > 0 ? lost(re, -EPROTO) : answer->status;
}

/*
 * One that is answered by RETURN alone.  -ERESTART: the daemon was killed over it, and there is another one; it was done or it was
 * not, and doing it again does no harm, unless what is done is to be done once.
 */
static int
request(struct remote *re, const struct call *q, int with, struct msg *answer)
{
	int r = -ERESTART;

	for (unsigned tries = 0; r == -ERESTART && tries < RESTARTS_MAX; tries++)
		r = request_once(re, q, with, answer);
	return r == -ERESTART ? -EAGAIN : r;
}

/* --- what is mapped.  => the lock is held --- */

static struct region *
region_add(struct remote *re, const struct region *rg)
{
	const size_t n = atomic_load(&re->nregion);
	size_t i = 0;

	while (i < n && re->region[i].len != 0)
		i++;
	if (i == REGIONS_MAX)
		return NULL;
	re->region[i] = *rg;
	if (i == n)
		atomic_store_explicit(&re->nregion, n + 1, memory_order_release);
	return &re->region[i];
}

/*
 * [va, va + len) is not mapped any more.  Nothing of it may stay on record: the addresses are the program's, and what is on record is
 * unmapped at the end.
 */
static void
region_cut(struct remote *re, uint64_t va, uint64_t len)
{
	const size_t n = atomic_load(&re->nregion);

	for (size_t i = 0; i < n; i++) {
		struct region *rg = &re->region[i];
		const uint64_t end = rg->va + rg->len;

		if (rg->len == 0 || end <= va || rg->va >= va + len)
			continue;
		if (rg->va >= va && end <= va + len)
			rg->len = 0;
		else if (rg->va >= va) {
			rg->len = end - (va + len);
			rg->va = va + len;
		} else {
			struct region tail = *rg;

			rg->len = va - rg->va;
			tail.va = va + len;
			tail.len = end - tail.va;
			/* Should the table be full, the end of it is not unmapped at the end: that harms nobody. */
			if (end > tail.va)
				region_add(re, &tail);
		}
	}
}

/*
 * Unmap what is on record of the range, and nothing else: what lies between is the program's.  0, or why something is still mapped: it stays
 * on record.
 */
static int
region_unmap(struct remote *re, uint64_t va, uint64_t len)
{
	int r = 0;

	/* What is cut off goes to a free place, or behind the last; it is outside of the range. */
	for (size_t i = 0; i < atomic_load(&re->nregion); i++) {
		const struct region rg = re->region[i];
		const uint64_t from = MAX(rg.va, va), to = MIN(rg.va + rg.len, va + len);

		if (rg.len == 0 || from >= to)
			continue;
		if (munmap((void *)(uintptr_t)from, to - from) < 0)
			r = -errno;
		else
			region_cut(re, from, to - from);
	}
	return r;
}

/* Map what one message tells, at addresses that are reserved, inaccessible. */
static int
map_message(struct remote *re, const struct msg *m, const int fd[], uint64_t *at, uint64_t end)
{
	int r = 0;

	for (uint32_t i = 0; i < m->n && r == 0; i++) {
		const struct region *rg = &m->r[i];
		void *va = (void *)(uintptr_t)rg->va;
		struct uffdio_register reg = {
			.range = { .start = rg->va, .len = rg->len },
			.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
		};

		if (rg->va != *at || rg->len == 0 || rg->len > end - *at)
			return -EPROTO;
		if (mmap(va, rg->len, PROT_NONE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd[i],
			 (off_t)rg->offset) != va)
			return -errno;
		munlock(va, rg->len);
		/* EINVAL: this kernel has no huge pages. */
		if ((madvise(va, rg->len, MADV_NOHUGEPAGE) < 0 && errno != EINVAL) ||
		    madvise(va, rg->len, MADV_DONTFORK) < 0 ||
		    ioctl(re->uffd, UFFDIO_REGISTER, &reg) < 0)
			return -errno;
		if (region_add(re, rg) == NULL)
			r = -ENOMEM;
		*at += rg->len;
	}
	return r;
}

/*
 * The rest of CALL_MAP and CALL_CLONE: [va, va + len) is reserved.  On failure it still is, perhaps with something mapped that is about to
 * be unmapped.
 */
static int
map_answer(struct remote *re, uint64_t va, uint64_t len)
{
	struct call q = { .op = CALL_MAPPED };
	uint64_t at = va;
	struct msg m;
	uint32_t left;
	int error = 0, r;

	do {
		int fd[MSG_REGIONS];
		size_t nfd;

		r = hear(re, &m, fd, &nfd);
		if (r == 0 && m.type == MSG_RETURN) {
			for (size_t i = 0; i < nfd; i++)
				close(fd[i]);
			r = m.status < 0 ? m.status : lost(re, -EPROTO);
		}
		if (r < 0) {
			region_cut(re, va, len);
			return r;
		}
		left = m.left;
		if (error == 0)
			error = m.n == nfd && m.n > 0 && m.n <= MSG_REGIONS
					? map_message(re, &m, fd, &at, va + len)
					: -EPROTO;
		for (size_t i = 0; i < nfd; i++)
			close(fd[i]);
		if (m.n == 0) {
			region_cut(re, va, len);
			return lost(re, -EPROTO);
		}
	} while (left > 0);
	if (error == 0 && at != va + len)
		error = -EPROTO;
	if (error < 0)
		q.op = CALL_CANCEL;
	r = request_once(re, &q, -1, &m);
	if (error < 0 || r < 0)
		region_cut(re, va, len);
	return error < 0 ? error : r;
}

static int
reserve(struct up_runtime *rt, const char *call, void *hint, bool fixed, size_t len, uintptr_t *va)
{
	void *p = mmap(hint, len, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
			       (fixed ? MAP_FIXED_NOREPLACE : 0),
		       -1, 0);
	int r = 0;

	if (p == MAP_FAILED)
		r = -errno;
	/* Kernels before 4.17 take it for a hint. */
	if (r == 0 && fixed && p != hint) {
		munmap(p, len);
		r = -EEXIST;
	}
	if (r < 0)
		log_line(&rt->p.log, UP_LOG_ERROR, "%s: mapping %zu bytes: %s", call, len,
			 strerrorname_np(-r));
	*va = (uintptr_t)p;
	return r;
}

/* The daemon was killed over what is mapped there, or not: so that it is not, and the addresses are reserved as before. */
static int
start_again(struct remote *re, uint64_t va, uint64_t len)
{
	const struct call undo = { .op = CALL_UNMAP, .addr = va, .length = len };
	struct msg m;
	int r;

	re->restarts++;
	if (mmap((void *)(uintptr_t)va, len, PROT_NONE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
		return -errno;
	r = request(re, &undo, -1, &m);
	return r == -ENOMEM ? 0 : r;
}

/* CALL_MAP or CALL_CLONE and all that follows, at addresses that are reserved. */
static int
map_call(struct remote *re, const struct call *q, uint64_t va, uint64_t len)
{
	int r;

	for (unsigned tries = 0; tries < RESTARTS_MAX; tries++) {
		r = ask(re, q, -1);
		if (r == 0)
			r = map_answer(re, va, len);
		if (r != -ERESTART)
			return r;
		r = start_again(re, va, len);
		if (r < 0)
			return r;
	}
	return -EAGAIN;
}

/* Writable memory can be read: the kernel knows no other. */
static int
real_prot(int prot)
{
	return prot & PROT_WRITE ? prot | PROT_READ : prot;
}

static int
failed(struct up_runtime *rt, const char *call, int r)
{
	if (r < 0)
		log_line(&rt->p.log, UP_LOG_ERROR, "%s: the daemon says %s", call,
			 strerrorname_np(-r));
	return r;
}

/* --- calls --- */

int
remote_map(struct up_runtime *rt, void *hint, size_t length, int prot, unsigned flags,
	   struct up_object *obj, uint64_t offset, void **addr)
{
	struct remote *re = rt->remote;
	const bool fixed = (flags & UP_FIXED) != 0;
	struct call q = { .op = CALL_MAP,
			  .length = length,
			  .prot = prot,
			  .flags = flags & ~(unsigned)UP_FIXED,
			  .offset = offset };
	uintptr_t va;
	sigset_t old;
	int r;

	if (addr == NULL)
		return bad(rt, "up_map: addr is NULL");
	*addr = NULL;
	if (obj != NULL && (!object_is_remote(obj) || remote_object(obj)->rt != rt))
		return bad(rt, "up_map: the object belongs to another runtime");
	r = check_range(rt, "up_map", fixed ? (uintptr_t)hint : 0, length);
	if (r < 0)
		return r;
	if (fixed && hint == NULL)
		return bad(rt, "up_map: UP_FIXED needs an address");
	r = begin(rt, "up_map", &old);
	if (r < 0)
		return r;
	r = reserve(rt, "up_map", hint, fixed, length, &va);
	if (r == 0) {
		q.addr = va;
		q.object = obj != NULL ? remote_object(obj)->id : 0;
		r = map_call(re, &q, va, length);
		if (r == 0 && real_prot(prot) != PROT_NONE &&
		    mprotect((void *)va, length, real_prot(prot)) < 0) {
			struct msg m;

			r = -errno;
			q = (struct call){ .op = CALL_UNMAP, .addr = va, .length = length };
			request(re, &q, -1, &m);
			region_cut(re, va, length);
		}
		if (r < 0)
			munmap((void *)va, length);
	}
	end(rt, &old);
	if (failed(rt, "up_map", r) == 0)
		*addr = (void *)va;
	return r;
}

/* A call on a range that is a question and an answer. */
static int
range_call(struct up_runtime *rt, const char *call, struct call *q, const void *addr, size_t length)
{
	struct msg m;
	sigset_t old;
	int r = check_range(rt, call, (uintptr_t)addr, length);

	if (r == 0)
		r = begin(rt, call, &old);
	if (r < 0)
		return r;
	q->addr = (uintptr_t)addr;
	q->length = length;
	r = request(rt->remote, q, -1, &m);
	end(rt, &old);
	return failed(rt, call, r);
}

int
remote_unmap(struct up_runtime *rt, void *addr, size_t length)
{
	struct call q = { .op = CALL_UNMAP, .addr = (uintptr_t)addr, .length = length };
	unsigned restarts;
	struct msg m;
	sigset_t old;
	int r = check_range(rt, "up_unmap", (uintptr_t)addr, length);

	if (r == 0)
		r = begin(rt, "up_unmap", &old);
	if (r < 0)
		return r;
	restarts = rt->remote->restarts;
	r = request(rt->remote, &q, -1, &m);
	if (r == -ENOMEM && restarts != rt->remote->restarts)
		r = 0; /* it was done */
	/* Without a daemon there is nobody to ask, and what is mapped can go. */
	if (r < 0 && !rt->remote->broken) {
		end(rt, &old);
		return failed(rt, "up_unmap", r);
	}
	r = region_unmap(rt->remote, q.addr, length);
	end(rt, &old);
	if (r < 0)
		log_line(&rt->p.log, UP_LOG_ERROR, "up_unmap: %s", strerrorname_np(-r));
	return r;
}

int
remote_protect(struct up_runtime *rt, void *addr, size_t length, int prot)
{
	struct call q = {
		.op = CALL_PROTECT, .prot = prot, .addr = (uintptr_t)addr, .length = length
	};
	struct msg m;
	sigset_t old;
	int r = check_range(rt, "up_protect", (uintptr_t)addr, length);

	if (r == 0)
		r = begin(rt, "up_protect", &old);
	if (r < 0)
		return r;
	r = request(rt->remote, &q, -1, &m);
	/* Under the lock: another thread may be about to unmap the range, and map something else there. */
	if (r == 0 && mprotect(addr, length, real_prot(prot)) < 0) {
		r = -errno;
		log_line(&rt->p.log, UP_LOG_ERROR, "up_protect: %s", strerrorname_np(-r));
	} else {
		failed(rt, "up_protect", r);
	}
	end(rt, &old);
	return r;
}

int
remote_advise(struct up_runtime *rt, void *addr, size_t length, enum up_advice advice)
{
	struct call q = { .op = CALL_ADVISE, .flags = advice };

	return range_call(rt, "up_advise", &q, addr, length);
}

int
remote_inherit(struct up_runtime *rt, void *addr, size_t length, enum up_inherit inherit)
{
	struct call q = { .op = CALL_INHERIT, .flags = inherit };

	return range_call(rt, "up_inherit", &q, addr, length);
}

int
remote_sync(struct up_runtime *rt, void *addr, size_t length, unsigned flags)
{
	struct call q = { .op = CALL_SYNC, .flags = flags };

	return range_call(rt, "up_sync", &q, addr, length);
}

/* What the daemon has begun to read, or has not, is touched here.  Without the lock: it waits for pages. */
static int
populate(struct up_runtime *rt, const char *call, void *addr, size_t length, int write)
{
	int r;

	if (madvise(addr, length, write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) == 0)
		return 0;
	r = -errno;
	/* EFAULT: a page is lost, or may not be touched like that; EINVAL: no such call before 5.14, or not writable. */
	if (r == -EINVAL)
		r = -EACCES;
	else if (r == -EFAULT)
		r = -EIO;
	log_line(&rt->p.log, UP_LOG_ERROR, "%s: %s", call, strerrorname_np(-r));
	return r;
}

int
remote_prefault(struct up_runtime *rt, void *addr, size_t length, int write)
{
	struct call q = { .op = CALL_PREFAULT, .flags = write != 0 };
	const int r = range_call(rt, "up_prefault", &q, addr, length);

	return r < 0 ? r : populate(rt, "up_prefault", addr, length, write);
}

/* Each has a number of its own, so that one which is asked twice, as the daemon was killed over it, is done once. */
static int
wire_call(struct up_runtime *rt, const char *call, enum call_op op, uint32_t flags, uintptr_t va,
	  size_t length)
{
	struct call q = { .op = op, .flags = flags, .addr = va, .length = length };
	struct msg m;
	sigset_t old;
	int r = begin(rt, call, &old);

	if (r < 0)
		return r;
	q.offset = ++rt->remote->wirings;
	r = request(rt->remote, &q, -1, &m);
	end(rt, &old);
	return r == -EINPROGRESS ? r : failed(rt, call, r);
}

/* A piece.  The daemon waits for nobody: what is missing is touched here. */
static int
wire_piece(struct up_runtime *rt, uintptr_t va, size_t length)
{
	int r = -EINPROGRESS;

	for (unsigned tries = 0; r == -EINPROGRESS && tries < WIRE_TRIES; tries++) {
		if (tries > 0) {
			r = populate(rt, "up_wire", (void *)va, length, 0);
			if (r < 0)
				return r;
		}
		r = wire_call(rt, "up_wire", CALL_WIRE, 0, va, length);
	}
	if (r != -EINPROGRESS)
		return r;
	log_line(&rt->p.log, UP_LOG_ERROR, "up_wire: others need the room again and again");
	return -EAGAIN;
}

int
remote_wire(struct up_runtime *rt, void *addr, size_t length)
{
	const size_t most = (size_t)WIRE_PAGES << PAGE_SHIFT;
	const uintptr_t start = (uintptr_t)addr;
	size_t done = 0;
	int r = check_range(rt, "up_wire", start, length);

	if (r == 0)
		r = wire_call(rt, "up_wire", CALL_WIRE, WIRE_LOOK, start, length);
	while (r == 0 && done < length) {
		const size_t n = MIN(length - done, most);

		r = wire_piece(rt, start + done, n);
		if (r == 0)
			done += n;
	}
	if (r < 0 && done > 0)
		wire_call(rt, "up_wire", CALL_UNWIRE, 0, start, done);
	return r;
}

int
remote_unwire(struct up_runtime *rt, void *addr, size_t length)
{
	const int r = check_range(rt, "up_unwire", (uintptr_t)addr, length);

	return r < 0 ? r : wire_call(rt, "up_unwire", CALL_UNWIRE, 0, (uintptr_t)addr, length);
}

int
remote_residency(struct up_runtime *rt, const void *addr, size_t length, unsigned char *vec)
{
	int r;

	if (vec == NULL)
		return bad(rt, "up_residency: vec is NULL");
	r = check_range(rt, "up_residency", (uintptr_t)addr, length);
	for (size_t done = 0; done < length && r == 0;) {
		const size_t n = MIN(length - done, (size_t)MSG_BYTES << PAGE_SHIFT);
		const struct call q = { .op = CALL_RESIDENCY,
					.addr = (uintptr_t)addr + done,
					.length = n };
		struct msg m;
		sigset_t old;

		r = begin(rt, "up_residency", &old);
		if (r < 0)
			return r;
		r = request(rt->remote, &q, -1, &m);
		end(rt, &old);
		/* The vector may itself be paged: not under the lock. */
		if (failed(rt, "up_residency", r) == 0)
			memcpy(vec + (done >> PAGE_SHIFT), m.bytes, n >> PAGE_SHIFT);
		done += n;
	}
	return r;
}

int
remote_clone(struct up_runtime *rt, void *addr, size_t length, void **copy)
{
	struct remote *re = rt->remote;
	const struct region *rg;
	uintptr_t va;
	sigset_t old;
	int r;

	if (copy == NULL)
		return bad(rt, "up_clone: copy is NULL");
	*copy = NULL;
	r = check_range(rt, "up_clone", (uintptr_t)addr, length);
	if (r == 0)
		r = begin(rt, "up_clone", &old);
	if (r < 0)
		return r;
	r = reserve(rt, "up_clone", NULL, false, length, &va);
	if (r == 0) {
		const struct call q = {
			.op = CALL_CLONE, .addr = (uintptr_t)addr, .length = length, .offset = va
		};

		r = map_call(re, &q, va, length);
		for (size_t i = 0; r == 0 && i < atomic_load(&re->nregion); i++) {
			rg = &re->region[i];
			if (rg->len > 0 && rg->va >= va && rg->va < va + length &&
			    mprotect((void *)(uintptr_t)rg->va, rg->len, real_prot(rg->prot)) < 0) {
				const struct call undo = { .op = CALL_UNMAP,
							   .addr = va,
							   .length = length };
				struct msg m;

				r = -errno;
				request(re, &undo, -1, &m);
				region_cut(re, va, length);
			}
		}
		if (r < 0)
			munmap((void *)va, length);
	}
	end(rt, &old);
	if (failed(rt, "up_clone", r) == 0)
		*copy = (void *)va;
	return r;
}

/* --- objects --- */

/* A call that makes or finds one. */
static int
object_call(struct up_runtime *rt, const char *call, const struct call *q, int fd,
	    struct up_object **obj)
{
	struct remote_object *o;
	struct msg m;
	sigset_t old;
	int r;

	if (obj == NULL)
		return bad(rt, "%s: obj is NULL", call);
	*obj = NULL;
	o = malloc(sizeof *o);
	if (o == NULL)
		return -ENOMEM;
	r = begin(rt, call, &old);
	if (r == 0) {
		const unsigned restarts = rt->remote->restarts;

		r = request(rt->remote, q, fd, &m);
		/* It has been made, and the answer got lost. */
		if (r == -EEXIST && restarts != rt->remote->restarts && q->op == CALL_CREATE_ANON) {
			struct call there = { .op = CALL_OPEN, .flags = OPEN_OWN };

			strcpy(there.text, q->text);
			r = request(rt->remote, &there, -1, &m);
		}
		end(rt, &old);
	}
	if (failed(rt, call, r) < 0) {
		free(o);
		return r;
	}
	o->rt = rt;
	o->id = m.call.object;
	o->size = m.call.length;
	o->prot = m.call.prot;
	atomic_init(&o->refs, 1);
	*obj = (struct up_object *)((uintptr_t)o + 1);
	return 0;
}

static int
put_name(struct up_runtime *rt, const char *call, const char *name, struct call *q)
{
	if (name == NULL || name[0] == '\0' || strlen(name) > UP_OBJECT_NAME_MAX)
		return bad(rt, "%s: a name has 1 to %d bytes", call, UP_OBJECT_NAME_MAX);
	strcpy(q->text, name);
	return 0;
}

int
remote_create_anon(struct up_runtime *rt, const char *name, uint64_t size, unsigned flags,
		   unsigned mode, struct up_object **obj)
{
	struct call q = { .op = CALL_CREATE_ANON, .length = size, .flags = flags, .mode = mode };
	int r = 0;

	if (name != NULL)
		r = put_name(rt, "up_object_create_named", name, &q);
	return r < 0 ? r
		     : object_call(rt,
				   name != NULL ? "up_object_create_named"
						: "up_object_create_anon",
				   &q, -1, obj);
}

int
remote_create_file(struct up_runtime *rt, int fd, uint64_t offset, uint64_t size, unsigned flags,
		   struct up_object **obj)
{
	const struct call q = {
		.op = CALL_CREATE_FILE, .offset = offset, .length = size, .flags = flags
	};

	return fd < 0 ? bad(rt, "up_object_create_file: descriptor %d", fd)
		      : object_call(rt, "up_object_create_file", &q, fd, obj);
}

int
remote_create_device(struct up_runtime *rt, int fd, unsigned flags, struct up_object **obj)
{
	const struct call q = { .op = CALL_CREATE_DEVICE, .flags = flags };

	return fd < 0 ? bad(rt, "up_object_create_device: descriptor %d", fd)
		      : object_call(rt, "up_object_create_device", &q, fd, obj);
}

int
remote_open(struct up_runtime *rt, const char *name, struct up_object **obj)
{
	struct call q = { .op = CALL_OPEN };
	const int r = put_name(rt, "up_object_open", name, &q);

	return r < 0 ? r : object_call(rt, "up_object_open", &q, -1, obj);
}

int
remote_snapshot(struct up_runtime *rt, struct up_object *obj, struct up_object **snapshot)
{
	struct call q = { .op = CALL_SNAPSHOT };

	if (obj == NULL || !object_is_remote(obj) || remote_object(obj)->rt != rt)
		return bad(rt, "up_object_snapshot: the object belongs to another runtime");
	q.object = remote_object(obj)->id;
	return object_call(rt, "up_object_snapshot", &q, -1, snapshot);
}

/* A question on an object. */
static int
ask_object(struct up_runtime *rt, const char *call, const struct call *q, struct msg *m)
{
	sigset_t old;
	int r = begin(rt, call, &old);

	if (r < 0)
		return r;
	r = request(rt->remote, q, -1, m);
	end(rt, &old);
	return r;
}

int
remote_remove(struct up_runtime *rt, const char *name)
{
	struct call q = { .op = CALL_REMOVE };
	struct msg m;
	int r = put_name(rt, "up_object_remove", name, &q);

	return r < 0 ? r
		     : failed(rt, "up_object_remove", ask_object(rt, "up_object_remove", &q, &m));
}

int
remote_access(struct up_runtime *rt, const char *call, const char *name, uint32_t flags,
	      unsigned mode, uid_t uid, gid_t gid)
{
	struct call q = {
		.op = CALL_ACCESS, .flags = flags, .mode = mode, .addr = uid, .length = gid
	};
	struct msg m;
	int r = put_name(rt, call, name, &q);

	return r < 0 ? r : failed(rt, call, ask_object(rt, call, &q, &m));
}

int
remote_info(struct up_object *obj, struct up_object_stats *info)
{
	struct remote_object *o = remote_object(obj);
	const struct call q = { .op = CALL_INFO, .object = o->id };
	struct msg m;
	int r = ask_object(o->rt, "up_object_info", &q, &m);

	if (r == 0 && pager_name(m.n) == NULL)
		r = -EPROTO;
	if (failed(o->rt, "up_object_info", r) == 0) {
		memcpy(info, m.bytes, sizeof *info);
		info->pager = pager_name(m.n);
		info->prot = o->prot;
	}
	return r;
}

void
remote_ref(struct up_object *obj)
{
	atomic_fetch_add(&remote_object(obj)->refs, 1);
}

void
remote_unref(struct up_object *obj)
{
	struct remote_object *o = remote_object(obj);
	const struct call q = { .op = CALL_UNREF, .object = o->id };
	struct msg m;

	if (o->rt->pid != getpid() || atomic_fetch_sub(&o->refs, 1) > 1)
		return;
	ask_object(o->rt, "up_object_unref", &q, &m);
	free(o);
}

int
remote_stats(struct up_runtime *rt, struct up_stats *st)
{
	const struct call q = { .op = CALL_STATS };
	struct msg m;
	const int r = ask_object(rt, "up_stats_get", &q, &m);

	if (failed(rt, "up_stats_get", r) == 0)
		memcpy(st, m.bytes, sizeof *st);
	/* That of heaps is ours. */
	if (r == 0)
		st->metadata += arena_bytes(&rt->p.arena);
	return r;
}

/* The lines of one answer.  0; -EPROTO: they are none. */
static int
dump_message(FILE *out, const struct msg *m, struct dump_line *line)
{
	size_t at = 0;

	for (uint32_t i = 0; i < m->n; i++) {
		const size_t n = dump_unpack(m->bytes + at, sizeof m->bytes - at, line);

		if (n == 0)
			return -EPROTO;
		at += n;
		dump_print(out, line);
	}
	return m->n == 0 && m->left > 0 ? -EPROTO : 0;
}

int
remote_dump(struct up_runtime *rt, FILE *out)
{
	struct dump_line line = { .end = 0 };
	int r = check_process(rt, "up_map_dump");
	struct msg m;

	if (r < 0)
		return r;
	if (out == NULL)
		return bad(rt, "up_map_dump: out is NULL");
	dump_head(out);
	do {
		const struct call q = { .op = CALL_DUMP,
					.flags = line.depth,
					.addr = line.start,
					.length = line.end - line.start,
					.offset = line.serial,
					.object = line.space };

		r = ask_object(rt, "up_map_dump", &q, &m);
		if (r == 0)
			r = dump_message(out, &m, &line);
	} while (r == 0 && m.left > 0);
	if (r < 0)
		return failed(rt, "up_map_dump", r);
	return fflush(out) != 0 || ferror(out) ? -EIO : 0;
}

int
remote_trace(struct up_runtime *rt, FILE *out)
{
	struct call q = { .op = CALL_TRACE };
	struct trace_page page;
	uint64_t first = 0;
	struct msg m;
	bool ok = true;
	int r;

	do {
		r = ask_object(rt, "up_trace_print", &q, &m);
		if (r == 0 &&
		    (m.n > sizeof page.event / sizeof page.event[0] || (m.n == 0 && m.left > 0)))
			r = -EPROTO;
		if (r < 0)
			return failed(rt, "up_trace_print", r);
		memcpy(&page, m.bytes, sizeof page);
		q.addr = page.until;
		for (uint32_t i = 0; i < m.n && ok; i++) {
			const struct trace_event *const ev = &page.event[i];

			if (q.offset == 0)
				first = ev->time_ns;
			q.length = ev->time_ns == q.offset ? q.length + 1 : 1;
			q.offset = ev->time_ns;
			ok = trace_print_event(ev, first, out);
		}
	} while (ok && m.left > 0);
	return !ok || fflush(out) != 0 || ferror(out) ? -EIO : 0;
}

uint64_t
remote_features(const struct up_runtime *rt)
{
	(void)rt;
	return UP_MASK_SHARED;
}

/* --- to connect --- */

static int
connect_to(struct up_runtime *rt, const char *path)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	int fd, r;

	if (strlen(path) >= sizeof sun.sun_path)
		return bad(rt, "up_runtime_connect: the path of a socket has at most %zu bytes",
			   sizeof sun.sun_path - 1);
	strcpy(sun.sun_path, path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&sun, sizeof sun) < 0 ||
	    fcntl(fd, F_SETFL, O_NONBLOCK) < 0) {
		r = -errno;
		log_line(&rt->p.log, UP_LOG_ERROR, "up_runtime_connect: %s: %s%s", path,
			 strerror(-r),
			 r == -ENOENT || r == -ECONNREFUSED ? " (is uffd-pagerd running?)" : "");
		if (fd >= 0)
			close(fd);
		return r;
	}
	return fd;
}

/* A hang-up is not worth a word to the program before the last of our tries. */
static bool
is_last_try(const struct remote *re, int r)
{
	return r != -ENOTCONN || !re->again;
}

/* Who we are, and what the daemon can do.  0 or -errno and a log line. */
static int
introduce(struct up_runtime *rt, uint64_t *features)
{
	struct remote *re = rt->remote;
	struct msg m = { .type = MSG_CONNECT, .serial = SERIAL_CALL, .n = PROTOCOL_VERSION };
	int fd[MSG_REGIONS], r;
	size_t nfd = 0;

	snprintf(m.call.text, sizeof m.call.text, "%s", program_invocation_short_name);
	r = msg_send(re->sock, &m, NULL, 0);
	if (r == 0)
		r = msg_await(re->sock, &m, fd, &nfd, CONNECT_MS);
	/* Who refuses us need not have read that, and that he has not is told before what he has said. */
	for (unsigned tries = 0; r == -ENOTCONN && tries < 2; tries++)
		r = msg_receive(re->sock, &m, fd, &nfd, NULL);
	for (size_t i = 0; i < nfd; i++)
		close(fd[i]);
	if (r == -EAGAIN)
		r = -ENOTCONN;
	if (r == 0 && (m.type != MSG_RETURN || m.status > 0))
		r = -EPROTO;
	if (r < 0) {
		if (is_last_try(re, r))
			log_line(&rt->p.log, UP_LOG_ERROR, "up_runtime_connect: %s",
				 r == -ENOTCONN
					 ? "the daemon has hung up, and has not said why: it may "
					   "not speak this version of the protocol"
					 : strerrorname_np(-r));
		return r;
	}
	if (m.status < 0) {
		m.call.text[MSG_TEXT - 1] = '\0';
		log_line(&rt->p.log, UP_LOG_ERROR, "up_runtime_connect: refused: %s", m.call.text);
		return m.status;
	}
	*features = m.call.offset;
	re->limit = m.call.length;
	return 0;
}

/* Our userfaultfd to the daemon, and a pidfd of it. */
static int
hello(struct up_runtime *rt)
{
	struct remote *re = rt->remote;
	struct msg m = { .type = MSG_HELLO };
	int fd[MSG_REGIONS], r;
	size_t nfd = 0;

	r = msg_send(re->sock, &m, &re->uffd, 1);
	do {
		if (r == 0)
			r = msg_await(re->sock, &m, fd, &nfd, CONNECT_MS);
		if (r == 0)
			msg_unasked(&re->unasked, &m);
	} while (r == 0 && m.type == MSG_LEAVE && nfd == 0);
	if (r == 0 && m.type == MSG_ACK && nfd == 1) {
		re->pager = fd[0];
		return 0;
	}
	for (size_t i = 0; i < nfd; i++)
		close(fd[i]);
	if (r == 0)
		r = -EPROTO;
	if (is_last_try(re, r))
		log_line(&rt->p.log, UP_LOG_ERROR,
			 "up_runtime_connect: the daemon does not serve us: %s",
			 strerrorname_np(-r));
	return r;
}

/*
 * What is known of heaps is ours: metadata as in any runtime, in memory that is not paged.  The daemon does not count it; it may be as much as if
 * the daemon's budget were ours.
 */
static int
memory_init(struct up_runtime *rt)
{
	const size_t limit = (size_t)MIN(rt->remote->limit, SIZE_MAX / 2) & ~PAGE_MASK;
	struct pager *p = &rt->p;
	int r;

	if (limit < UP_MEMORY_LIMIT_MIN)
		return -EPROTO;
	budget_init(&p->budget, limit);
	r = arena_init(&p->arena, &sysmem_ops, NULL, &p->budget, limit);
	if (r < 0)
		return r;
	r = heaps_init(&rt->heaps, &p->arena, limit / 2);
	if (r < 0) {
		arena_fini(&p->arena);
		return r;
	}
	resv_init(&p->resv_meta, limit / 2, NULL, NULL);
	rt->remote->memory = true;
	return 0;
}

static void
memory_fini(struct up_runtime *rt)
{
	if (!rt->remote->memory)
		return;
	heaps_fini(&rt->heaps, &rt->p);
	resv_fini(&rt->p.resv_meta);
	arena_fini(&rt->p.arena);
}

#define REMOTE_BYTES round_up(sizeof(struct up_runtime) + sizeof(struct remote), PAGE_SIZE)
#define TABLE_BYTES round_up(REGIONS_MAX * sizeof(struct region), PAGE_SIZE)

static void
remote_free(struct up_runtime *rt)
{
	struct remote *re = rt->remote;

	memory_fini(rt);
	if (re->pager >= 0)
		close(re->pager);
	if (re->uffd >= 0)
		close(re->uffd);
	if (re->sock >= 0)
		close(re->sock);
	if (re->unasked.kick >= 0)
		close(re->unasked.kick);
	munmap(rt, REMOTE_BYTES + TABLE_BYTES);
}

/* What has come while nobody waits for an answer: who does holds the lock, and hears it himself.  False: the socket is ours no more. */
static bool
hear_unasked(struct remote *re)
{
	bool ours;

	pthread_mutex_lock(&re->lock);
	ours = client_still_open(re->ticket);
	if (ours)
		msg_drain(re->sock, &re->unasked);
	pthread_mutex_unlock(&re->lock);
	return ours;
}

/* True if it is what it was, as far as can be seen: no file, socket or pipe of the program's in its place. */
static bool
kick_heard(int kick)
{
	struct stat st;
	uint64_t n;

	return fstat(kick, &st) == 0 && (st.st_mode & S_IFMT) == 0 &&
	       (read(kick, &n, sizeof n) > 0 || errno == EAGAIN || errno == EINTR);
}

static void
tell_lost(struct remote *re)
{
	if (re->lost == NULL)
		return;
	re->lost(re->lost_ctx);
	atomic_store(&re->told, 1);
	syscall(SYS_futex, &re->told, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/*
 * Tells the program what comes unasked; at last that the daemon is gone, and then the watcher that it may go on.  A descriptor that the program has closed says
 * nothing.
 */
static void *
herald(void *arg)
{
	struct remote *re = arg;
	struct pollfd pf[3] = { { .fd = re->unasked.kick, .events = POLLIN },
				{ .fd = re->sock, .events = re->leaving != NULL ? POLLIN : 0 },
				{ .fd = re->pager, .events = POLLIN } };

	while (!atomic_load(&re->hushed)) {
		const uint64_t leave = atomic_exchange(&re->unasked.leave, 0);

		if (leave != 0 && re->leaving != NULL)
			re->leaving(re->leaving_ctx, (unsigned)(leave - 1));
		if (poll(pf, 3, -1) <= 0 || atomic_load(&re->hushed))
			continue;
		if (pf[0].revents != 0 && !kick_heard(re->unasked.kick))
			return NULL;
		if ((pf[1].revents & POLLIN) && !hear_unasked(re))
			pf[1].revents = POLLNVAL;
		if (((pf[1].revents & ~(POLLNVAL | POLLIN)) | (pf[2].revents & ~POLLNVAL)) != 0) {
			tell_lost(re);
			return NULL;
		}
		for (unsigned i = 1; i < 3; i++)
			if (pf[i].revents & POLLNVAL)
				pf[i].fd = -1;
	}
	return NULL;
}

static bool
has_herald(const struct remote *re)
{
	return re->lost != NULL || re->leaving != NULL;
}

/* => unasked.kick and the ticket are there */
static int
herald_start(struct remote *re)
{
	sigset_t old;
	int r;

	if (!has_herald(re))
		return 0;
	signals_hold(&old);
	r = pthread_create(&re->herald, NULL, herald, re);
	signals_release(&old);
	return -r;
}

static void
herald_stop(struct remote *re)
{
	const uint64_t one = 1;

	if (!has_herald(re))
		return;
	atomic_store(&re->hushed, true);
	if (write(re->unasked.kick, &one, sizeof one) < 0)
		assert(errno == EAGAIN);
	pthread_join(re->herald, NULL);
}

static int
connect_once(struct up_runtime **out, const char *path, const struct up_config *cfg, bool again)
{
	static const struct up_config none;
	struct up_runtime *rt;
	struct remote *re;
	uint64_t features = 0;
	int r;

	/* The runtime, and behind it the table that the watcher reads. */
	rt = mmap(NULL, REMOTE_BYTES + TABLE_BYTES + WATCHER_BYTES, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (rt == MAP_FAILED)
		return -errno;
	re = (struct remote *)(void *)(rt + 1);
	re->log = &rt->p.log;
	rt->remote = re;
	rt->pid = getpid();
	re->again = again;
	if (cfg != NULL) {
		rt->p.log = (struct logger){ .fn = cfg->log, .ctx = cfg->log_ctx };
		re->lost = cfg->pager_lost;
		re->lost_ctx = cfg->pager_lost_ctx;
		re->leaving = cfg->pager_leaving;
		re->leaving_ctx = cfg->pager_leaving_ctx;
	}
	re->region = (struct region *)(void *)((char *)rt + REMOTE_BYTES);
	re->watcher = (char *)rt + REMOTE_BYTES + TABLE_BYTES;
	re->sock = re->uffd = re->pager = re->unasked.kick = -1;
	pthread_mutex_init(&re->lock, NULL);
	r = cfg != NULL && memcmp(cfg->reserved, none.reserved, sizeof none.reserved) != 0
		    ? bad(rt, "up_runtime_connect: reserved fields are not zero")
		    : connect_to(rt, path);
	if (r < 0)
		goto free;
	re->sock = r;
	if (has_herald(re)) {
		re->unasked.kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		r = re->unasked.kick < 0 ? -errno : 0;
		if (r < 0)
			goto free;
	}
	r = introduce(rt, &features);
	if (r == 0)
		r = memory_init(rt);
	if (r < 0)
		goto free;
	re->uffd = pmap_uffd_client_open(features, cfg != NULL ? cfg->feature_mask : 0, &rt->p.log);
	r = re->uffd < 0 ? re->uffd : hello(rt);
	if (r < 0)
		goto free;
	r = client_add(rt, re->sock, features, &re->lock, has_herald(re) ? &re->unasked : NULL,
		       &re->ticket);
	if (r < 0)
		goto free;
	r = herald_start(re);
	if (r == 0) {
		r = watcher_start(&(struct watched){ re->sock, re->uffd, re->pager, &re->nregion,
						     re->region, &re->over, 0,
						     re->lost != NULL ? &re->told : NULL },
				  re->watcher);
		if (r < 0)
			herald_stop(re);
	}
	if (r < 0) {
		client_remove(re->ticket);
		goto free;
	}
	*out = rt;
	return 0;
free:
	munmap(re->watcher, WATCHER_BYTES);
	remote_free(rt);
	return r;
}

int
up_runtime_connect(struct up_runtime **out, const char *path, const struct up_config *cfg)
{
	const struct timespec nap = { .tv_nsec = 50000000 };
	int r = -ENOTCONN;

	if (out == NULL || path == NULL)
		return -EINVAL;
	*out = NULL;
	/* It may have been killed over it. */
	for (unsigned tries = 0; r == -ENOTCONN && tries < CONNECT_TRIES; tries++) {
		if (tries > 0)
			nanosleep(&nap, NULL);
		r = connect_once(out, path, cfg, tries + 1 < CONNECT_TRIES);
	}
	return r;
}

/*
 * The watcher ends when the connection does, and after that answers whoever touches what is left: nothing is.  Its memory has to
 * stay.
 */
void
remote_destroy(struct up_runtime *rt)
{
	struct remote *re = rt->remote;
	sigset_t old;

	if (rt->pid != getpid())
		return;
	herald_stop(re);
	signals_hold(&old);
	pthread_mutex_lock(&re->lock);
	for (size_t i = 0; i < atomic_load(&re->nregion); i++) {
		if (re->region[i].len > 0)
			munmap((void *)(uintptr_t)re->region[i].va, re->region[i].len);
	}
	pthread_mutex_unlock(&re->lock);
	client_remove(re->ticket);
	atomic_store(&re->over, true);
	shutdown(re->sock, SHUT_RDWR);
	signals_release(&old);
	watcher_wait(re->watcher);
	munmap(re->watcher, WATCHER_BYTES);
	pthread_mutex_destroy(&re->lock);
	remote_free(rt);
}
