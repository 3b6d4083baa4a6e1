/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fork.c: fork() of a process that has regions which its children inherit.
 *
 *	parent: thread that forks     keeper (keeper.c)                  child
 *	prepare:  map.change
 *	          space_fork(): frozen
 *	          a socket pair
 *	---------------------------------- fork() ----------------------------------
 *	thaw, change released                                            userfaultfd
 *	                                                                 maps its pools at the same addresses
 *	                              space_attach() <---- HELLO, uffd -- registers them
 *	                              ACK -----------------------------> accessible
 *	                              ...                                a watcher thread
 *	                              end of file: space_end() <-------- exit, exec, killed
 *
 * Faults stay frozen from the making of the copy until the fork is over: no thread can store anything to paged
 * memory in between, so what the child sees of it and of its other memory is one instant.  These handlers are the first to
 * be registered, so they run last before the fork and first after it.
 *
 * A child that forks asks our keeper to do what prepare does (FORK, which is answered with what there is to map; FORKED when it
 * may thaw).  Should the child not come back with that, its child gets nothing.
 *
 * The watcher has a table of descriptors of its own, with the socket, the userfaultfd and a pidfd of the pager in it and nothing
 * else: whatever the program closes, the socket ends when the process does, and the userfaultfd stays.  When it is the pager that
 * goes, the watcher answers: what is in memory stays there, what is missing is SIGBUS.  Never zeros, and nobody waits for ever.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "keeper.h"
#include "pmap/uffd_abi.h"

/*
 * What a child is to map; made before the fork, in memory that is copied by it.  In the child it stays, to know what it
 * has mapped: a client of the pager then.
 */
struct ticket {
	struct ticket *next;
	struct up_runtime
		*rt; /* whose: in a child, a copy of which only what is constant may be looked at */
	char *pair;  /* the mapping that this is in a half of; see ticket_alloc() */
	size_t half; /* bytes; at the end of each is memory for a watcher */
	bool shared; /* `of` is in the other half, and the mapping is still its */
	bool watched;	   /* in the child: the watcher runs, so that all this stays */
	int sock;	   /* the child's end */
	ino_t inode;	   /* its number: the program may have closed it */
	int uffd;	   /* in a client: the watcher's, as is `pager` */
	int pager;	   /* a pidfd of the pager's process */
	uint64_t features; /* of a userfaultfd for a pager that is elsewhere; 0: `rt` knows */
	int error; /* in the child: why it has nothing of this; in a client: why its child has not */
	uint32_t serial;   /* in a client: of its last FORK */
	bool received;	   /* the descriptors of pools are ours to close */
	struct ticket *of; /* the client that forks; NULL: the pager's own process does */
	pthread_mutex_t *
		lock; /* of a program that is connected: nobody else uses the socket; NULL: a forked child */
	struct unasked *unasked; /* NULL: nobody wants to know */
	atomic_size_t n;
	struct region r[];
};

static struct {
	pthread_mutex_t lock;
	struct forks *first;	/* runtimes of this process */
	struct ticket *clients; /* in a child: runtimes of others that serve us */
	struct ticket *tickets; /* between prepare and what comes after the fork */
	sigset_t old;
} registry = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* --- what the child is told --- */

/*
 * What the child needs is mapped in the process of the pager, where all regions are: mapped in the child, it could get the addresses of one
 * that is absent there, and that may not be touched.  So there is a half for the child, and one for what it gives to children of its own
 * (`of`: the child's), which in turn find the first half free.
 */
static struct ticket *
ticket_alloc(struct up_runtime *rt, size_t n, struct ticket *of)
{
	size_t half = round_up(sizeof(struct ticket) + n * sizeof(struct region), PAGE_SIZE) +
		      WATCHER_BYTES;
	const bool shared = of != NULL && half <= of->half;
	struct ticket *t;
	char *pair;

	if (shared) {
		half = of->half;
		pair = of->pair;
		t = (struct ticket *)(void *)((char *)of == pair ? pair + half : pair);
		if (madvise(t, half, MADV_DONTNEED) < 0) /* locked */
			memset(t, 0, half);
	} else {
		pair = mmap(NULL, 2 * half, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			    0);
		if (pair == MAP_FAILED)
			return NULL;
		t = (struct ticket *)(void *)pair;
	}
	t->rt = rt;
	t->pair = pair;
	t->half = half;
	t->shared = shared;
	t->features = of != NULL ? of->features : 0;
	t->sock = t->uffd = t->pager = -1;
	return t;
}

static void
ticket_unmap(struct ticket *t)
{
	if (!t->shared)
		munmap(t->pair, 2 * t->half);
}

static void
ticket_free(struct ticket *t)
{
	for (size_t i = 0; i < t->n && t->received; i++)
		close(t->r[i].fd);
	ticket_unmap(t);
}

int
forks_start(struct up_runtime *rt)
{
	struct forks *f;
	sigset_t old;
	int r = 0;

	signals_hold(&old);
	pthread_mutex_lock(&registry.lock);
	if (rt->forks == NULL) {
		r = keeper_start(rt, &f);
		if (r == 0) {
			f->next = registry.first;
			registry.first = f;
			rt->forks = f;
		}
	}
	pthread_mutex_unlock(&registry.lock);
	signals_release(&old);
	if (r < 0)
		log_line(&rt->p.log, UP_LOG_ERROR,
			 "up_inherit: no thread that looks after children: %s",
			 strerrorname_np(-r));
	return r;
}

void
forks_stop(struct up_runtime *rt)
{
	struct forks *f = rt->forks, **link;
	sigset_t old;

	if (f == NULL)
		return;
	signals_hold(&old);
	pthread_mutex_lock(&registry.lock);
	for (link = &registry.first; *link != f; link = &(*link)->next)
		;
	*link = f->next;
	pthread_mutex_unlock(&registry.lock);
	signals_release(&old);
	keeper_stop(f);
	rt->forks = NULL;
}

int
client_add(struct up_runtime *rt, int sock, uint64_t features, pthread_mutex_t *lock,
	   struct unasked *unasked, struct ticket **out)
{
	struct ticket *t = ticket_alloc(rt, 0, NULL);
	struct stat st;
	sigset_t old;

	if (t == NULL || fstat(sock, &st) < 0) {
		const int r = -errno;

		if (t != NULL)
			ticket_unmap(t);
		return r;
	}
	t->sock = sock;
	t->inode = st.st_ino;
	t->features = features;
	t->lock = lock;
	t->unasked = unasked;
	signals_hold(&old);
	pthread_mutex_lock(&registry.lock);
	t->next = registry.clients;
	registry.clients = t;
	pthread_mutex_unlock(&registry.lock);
	signals_release(&old);
	*out = t;
	return 0;
}

void
client_remove(struct ticket *t)
{
	struct ticket **link;
	sigset_t old;

	signals_hold(&old);
	pthread_mutex_lock(&registry.lock);
	for (link = &registry.clients; *link != t; link = &(*link)->next)
		;
	*link = t->next;
	pthread_mutex_unlock(&registry.lock);
	signals_release(&old);
	ticket_unmap(t);
}

/* --- before fork() --- */

/* Both ends of a socket, and the number of the second.  0 or -errno. */
static int
make_sockets(int sock[2], ino_t *inode)
{
	const int on = 1;
	struct stat st;
	int r;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sock) < 0)
		return -errno;
	if (setsockopt(sock[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0 &&
	    fstat(sock[1], &st) == 0) {
		*inode = st.st_ino;
		return 0;
	}
	r = -errno;
	close(sock[0]);
	close(sock[1]);
	return r;
}

/*
 * Of a runtime of this process.  => map.change is held.  NULL: the child gets nothing, and nothing is frozen.
 *
 * Once faults are frozen nothing may be logged: the program's function could wait for a lock, and who has that for a fault.
 */
static struct ticket *
prepare_own(struct forks *f)
{
	struct up_runtime *rt = f->rt;
	struct pager *p = &rt->p;
	struct ticket *t = NULL;
	size_t nchildren = 0;
	ino_t inode = 0;
	int sock[2], r;

	for (const struct space *sp = p->spaces; sp != NULL; sp = sp->next)
		nchildren++;
	r = nchildren < CHILDREN_MAX ? make_sockets(sock, &inode) : -EAGAIN;
	if (r == 0) {
		r = space_fork(rt, &p->map, sock[0], &f->coming);
		if (f->coming == NULL) {
			close(sock[0]);
			close(sock[1]);
			if (r == 0)
				return NULL; /* there is nothing to inherit */
		} else {
			t = ticket_alloc(rt, f->coming->map.n, NULL);
			if (t == NULL) {
				r = -ENOMEM;
				chain_thaw(p);
				keeper_end(p, f->coming);
				close(sock[1]);
				f->coming = NULL;
			}
		}
	}
	if (t == NULL) {
		f->refused = r;
		return NULL;
	}
	t->sock = sock[1];
	t->inode = inode;
	for (const struct map_entry *e = f->coming->map.first; e != NULL; e = e->next)
		t->r[t->n++] = keeper_region(p, e);
	return t;
}

bool
client_still_open(const struct ticket *t)
{
	struct stat st;

	return t->sock >= 0 && fstat(t->sock, &st) == 0 && st.st_ino == t->inode &&
	       S_ISSOCK(st.st_mode);
}

/* The descriptors are the ticket's, or closed.  0 or -errno. */
static int
take_regions(struct ticket *of, struct ticket **ticket, const struct msg *m, const int fd[],
	     size_t nfd)
{
	struct ticket *t = *ticket;
	int r = m->status <= 0 ? m->status : -EPROTO;

	if (r == 0 && t == NULL && m->n > 0)
		*ticket = t = ticket_alloc(of->rt, m->n + m->left, of);
	if (r == 0 && m->n > 0 && t == NULL)
		r = -ENOMEM;
	if (r == 0 && nfd != m->n)
		r = -EPROTO;
	if (r < 0) {
		fds_close(fd, nfd);
		return r;
	}
	for (size_t i = 0; i < nfd; i++) {
		t->received = true;
		t->r[t->n] = m->r[i];
		t->r[t->n++].fd = fd[i];
	}
	return 0;
}

/*
 * The pager's answer, to its last message whatever has gone wrong before: nothing of it may be taken for the answer to
 * the next fork.  What is older than that was not waited for.  0 or -errno; *ticket may be made in any case.
 */
static int
hear_regions(struct ticket *of, struct ticket **ticket)
{
	uint32_t left;
	int error = 0;

	do {
		struct msg m = { .type = 0 };
		int fd[MSG_REGIONS], r;
		size_t nfd;

		r = msg_await(of->sock, &m, fd, &nfd, ANSWER_MS);
		/* EPROTO: out of descriptors; all else of the message is there. */
		if (r < 0 && r != -EPROTO)
			return r;
		left = m.left;
		if (r == 0 && msg_is_restart(&m, MSG_REGION)) {
			fds_close(fd, nfd);
			return -ERESTART;
		}
		if (m.type != MSG_REGION || m.serial != of->serial) {
			fds_close(fd, nfd);
			left = 1;
			if (r == 0)
				msg_unasked(of->unasked, &m);
		} else if (r < 0 || error < 0) {
			fds_close(fd, nfd);
			error = error < 0 ? error : r;
		} else {
			error = take_regions(of, ticket, &m, fd, nfd);
		}
	} while (left > 0);
	return error;
}

/* *out NULL: the child gets nothing.  -ERESTART: the daemon was killed over it, and there is another one. */
static int
prepare_once(struct ticket *of, struct ticket **out)
{
	struct msg m = { .type = MSG_FORK, .serial = ++of->serial };
	struct ticket *t = NULL;
	int sock[2], r;
	ino_t inode = 0;

	r = client_still_open(of) ? make_sockets(sock, &inode) : -EBADF;
	if (r < 0)
		return r;
	msg_drain(of->sock, of->unasked);
	r = msg_send(of->sock, &m, &sock[0], 1);
	close(sock[0]);
	if (r == 0) {
		r = hear_regions(of, &t);
		if (r < 0) {
			/* It waits for us. */
			m = (struct msg){ .type = MSG_FORKED, .status = -ECANCELED };
			msg_send(of->sock, &m, NULL, 0);
		}
	}
	if (r == 0 && t != NULL) {
		t->sock = sock[1];
		t->inode = inode;
		t->of = of;
		*out = t;
		return 0;
	}
	close(sock[1]);
	if (t != NULL)
		ticket_free(t);
	return r;
}

/* Of a runtime that serves us.  NULL: the child gets nothing. */
static struct ticket *
prepare_client(struct ticket *of)
{
	struct ticket *t = NULL;
	int r = -ERESTART;

	for (unsigned tries = 0; r == -ERESTART && tries < RESTARTS_MAX; tries++)
		r = prepare_once(of, &t);
	of->error = r; /* said when nobody is frozen any more */
	return t;
}

static void
keep_ticket(struct ticket *t)
{
	if (t == NULL)
		return;
	t->next = registry.tickets;
	registry.tickets = t;
}

static void
before_fork(void)
{
	sigset_t old;

	signals_hold(&old);
	pthread_mutex_lock(&registry.lock);
	registry.old = old;
	registry.tickets = NULL;
	for (struct forks *f = registry.first; f != NULL; f = f->next)
		keeper_catch_up(f);
	/* All locks before anything is frozen: who has one of them may touch memory of another runtime. */
	for (struct forks *f = registry.first; f != NULL; f = f->next)
		pthread_mutex_lock(&f->rt->p.map.change);
	for (const struct ticket *of = registry.clients; of != NULL; of = of->next) {
		if (of->lock != NULL)
			pthread_mutex_lock(of->lock);
	}
	for (struct ticket *of = registry.clients; of != NULL; of = of->next)
		keep_ticket(prepare_client(of));
	for (struct forks *f = registry.first; f != NULL; f = f->next) {
		keep_ticket(prepare_own(f));
		f->nends = 0;
		for (const struct space *sp = f->rt->p.spaces; sp != NULL; sp = sp->next)
			f->end[f->nends++] = sp->sock;
	}
}

/* --- after it, where it was called; also if it failed: then the socket's other end is closed, and that is that --- */

static void
tell_refused(struct up_runtime *rt, int *error)
{
	if (*error < 0)
		log_line(&rt->p.log, UP_LOG_WARNING, "fork: the child gets no paged memory: %s",
			 strerrorname_np(-*error));
	*error = 0;
}

static void
after_in_parent(void)
{
	sigset_t old;
	struct ticket *t;

	while ((t = registry.tickets) != NULL) {
		registry.tickets = t->next;
		close(t->sock);
		if (t->of != NULL) {
			const struct msg m = { .type = MSG_FORKED };

			msg_send(t->of->sock, &m, NULL, 0);
		}
		ticket_free(t);
	}
	for (const struct ticket *of = registry.clients; of != NULL; of = of->next) {
		if (of->lock != NULL)
			pthread_mutex_unlock(of->lock);
	}
	for (struct forks *f = registry.first; f != NULL; f = f->next) {
		if (f->coming != NULL) {
			chain_thaw(&f->rt->p);
			f->coming = NULL;
			keeper_kick(f);
		}
		pthread_mutex_unlock(&f->rt->p.map.change);
	}
	/* Not before: nobody is frozen any more who could have a lock that the program's function wants. */
	for (struct ticket *of = registry.clients; of != NULL; of = of->next)
		tell_refused(of->rt, &of->error);
	for (struct forks *f = registry.first; f != NULL; f = f->next)
		tell_refused(f->rt, &f->refused);
	old = registry.old;
	pthread_mutex_unlock(&registry.lock);
	signals_release(&old);
}

/* --- in the child --- */

/* Inaccessible until the pager knows of us. */
static int
map_region(const struct ticket *t, const struct region *rg)
{
	struct uffdio_register reg = {
		.range = { .start = rg->va, .len = rg->len },
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
	};
	void *va = (void *)(uintptr_t)rg->va;

	if (mmap(va, rg->len, PROT_NONE, MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_NORESERVE, rg->fd,
		 (off_t)rg->offset) != va)
		return -errno;
	munlock(va, rg->len);
	/* EINVAL: this kernel has no huge pages. */
	if ((madvise(va, rg->len, MADV_NOHUGEPAGE) < 0 && errno != EINVAL) ||
	    madvise(va, rg->len, MADV_DONTFORK) < 0 || ioctl(t->uffd, UFFDIO_REGISTER, &reg) < 0) {
		const int r = -errno;

		munmap(va, rg->len);
		return r;
	}
	return 0;
}

/* Tell the pager that we are there, and wait until it serves us. */
static int
hello(struct ticket *t)
{
	int fd[MSG_REGIONS], r;
	size_t nfd = 0;
	struct msg m;

	do {
		m = (struct msg){ .type = MSG_HELLO };
		r = msg_send(t->sock, &m, &t->uffd, 1);
		if (r == 0)
			r = msg_await(t->sock, &m, fd, &nfd, ANSWER_MS);
		if (r < 0)
			return r;
	} while (nfd == 0 && msg_is_restart(&m, MSG_REGION)); /* it may have got lost */
	if (m.type == MSG_ACK && nfd == 1) {
		t->pager = fd[0];
		return 0;
	}
	for (size_t i = 0; i < nfd; i++)
		close(fd[i]);
	return -EPROTO;
}

static void
unmap_regions(const struct ticket *t, size_t n)
{
	for (size_t i = 0; i < n; i++)
		munmap((void *)(uintptr_t)t->r[i].va, t->r[i].len);
}

/* Take the addresses, before anything else of ours could.  0, or why the child has nothing of this runtime. */
static int
map_regions(struct ticket *t)
{
	size_t n;
	int r = 0;

	t->uffd = t->features != 0 ? pmap_uffd_client_open(t->features, 0, &t->rt->p.log)
				   : pmap_uffd_child_open(t->rt->p.pmap);
	if (t->uffd < 0)
		return t->uffd;
	for (n = 0; n < t->n && r == 0; n++)
		r = map_region(t, &t->r[n]);
	if (r < 0) {
		unmap_regions(t, n - 1);
		close(t->uffd);
	}
	return r;
}

static int
adopt(struct ticket *t)
{
	int r = hello(t);

	if (r == 0)
		r = watcher_start(&(struct watched){ t->sock, t->uffd, t->pager, &t->n, t->r, NULL,
						     0, NULL },
				  (char *)t + t->half - WATCHER_BYTES);
	t->watched = r == 0;
	for (size_t i = 0; i < t->n && r == 0; i++) {
		const struct region *rg = &t->r[i];
		const int prot = rg->prot | ((rg->prot & PROT_WRITE) ? PROT_READ : 0);

		if (prot != PROT_NONE && mprotect((void *)(uintptr_t)rg->va, rg->len, prot) < 0)
			r = -errno;
	}
	if (r < 0)
		unmap_regions(t, t->n);
	/* From here on these two are the watcher's, in its own table. */
	close(t->uffd);
	if (t->pager >= 0)
		close(t->pager);
	return r;
}

static void
after_in_child(void)
{
	struct ticket *tickets = registry.tickets, *t;

	/* What served our parent, if it was a client itself, does not serve us. */
	while ((t = registry.clients) != NULL) {
		struct ticket *heir = tickets;

		registry.clients = t->next;
		if (client_still_open(t))
			close(t->sock);
		while (heir != NULL && !(heir->shared && heir->of == t))
			heir = heir->next;
		if (heir != NULL)
			heir->shared = false; /* the mapping is its own now */
		else
			ticket_unmap(t);
	}
	/*
	 * These runtimes are our parent's.  Nobody but it may have its ends of sockets: when it becomes another program, that they are
	 * closed is all that tells.
	 */
	for (const struct forks *f = registry.first; f != NULL; f = f->next) {
		for (size_t i = 0; i < f->nends; i++)
			close(f->end[i]);
	}
	registry.first = NULL;
	registry.tickets = NULL;
	pthread_mutex_init(&registry.lock, NULL);
	for (t = tickets; t != NULL; t = t->next)
		t->error = map_regions(t);
	while ((t = tickets) != NULL) {
		tickets = t->next;
		if (t->error == 0)
			t->error = adopt(t);
		for (size_t i = 0; i < t->n && t->received; i++)
			close(t->r[i].fd);
		t->received = false;
		t->of = NULL;
		if (t->error == 0) {
			t->next = registry.clients;
			registry.clients = t;
			continue;
		}
		log_line(&t->rt->p.log, UP_LOG_ERROR,
			 "fork: no paged memory in the child: %s; touching it is SIGSEGV",
			 strerrorname_np(-t->error));
		close(t->sock);
		if (!t->watched)
			ticket_unmap(t);
	}
	signals_release(&registry.old);
}

/* Before any other library can register its own. */
static void __attribute__((constructor)) register_handlers(void)
{
	pthread_atfork(before_fork, after_in_parent, after_in_child);
}
