/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * keeper.c: the thread that looks after a runtime's forked children, in the process of the pager.
 *
 *	space_fork()                HELLO                   end of file
 *	------------> not there yet ------> attached, served -----------> keeper_end(): its memory goes
 *	                   |                  |      ^
 *	                   |                 FORK    | whatever it says next, FORKED as a rule
 *	                   |                  +------+ there is a space for its child; its own is frozen; it is told what to map
 *	                   |                  |
 *	                   |                  + slow call (slow.c), or its end while it has files to be written: nothing is heard until that is over
 *	                   +-- end of file: it never came, or died on the way --> keeper_end()
 *
 * Only this thread ends spaces, but for one whose fork is called off while the caller holds map.change (keeper_end()) and, after the
 * thread, keeper_stop().
 */
#include "keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "client.h"
#include "store.h"

#define KEEPER_STACK ((size_t)256 << 10)
#define KEEPER_OVERHEAD ((size_t)64 << 10) /* charged to the limit: touched stack, this struct */
#define AGAIN_MS \
	10 /* a client has more than it may, and nothing could be taken; too many descriptors are on their way */
#define QUEUE_BYTES (4 << 10) /* three or four messages */
#define MORE_MS 1     /* of slow calls there is more to do: who else waits for a lock gets it */
#define TELL_MS 1000  /* who waits for one may have to be told so */
#define ENDED_MS 1000 /* what has ended is put away within that, or waits for something else */

struct region
keeper_region(struct pager *p, const struct map_entry *e)
{
	const struct place place = entry_place(e, e->start);
	struct region rg = { .va = e->start, .len = e->end - e->start, .prot = e->prot };

	rg.fd = pmap_uffd_pool_fd(p->pmap, place.va, &rg.offset);
	return rg;
}

/* Nobody runs there any more.  => map.change is held */
void
keeper_end(struct pager *p, struct space *sp)
{
	const int sock = sp->sock;

	/* What a guest misses is made SIGBUS here: until then somebody else has to have its userfaultfd, too. */
	if (sp->client != NULL && sp->client->guest != NULL) {
		sp->client->leaving = true;
		stores_in_order();
		p->pmap->ops->space_detach(p->pmap, sp->shard);
	}
	sp->attached = false;
	stores_in_order();
	store_drop(p->store, "space", sp->id, "uffd");
	store_drop(p->store, "space", sp->id, "sock");
	store_drop(p->store, "space", sp->id, "removals");
	if (sp->client == NULL || sp->client->guest == NULL)
		p->pmap->ops->space_detach(p->pmap, sp->shard);
	if (sp->client != NULL)
		client_end(p, sp);
	/* Other children may have a copy of the descriptor; this ends it for all of them. */
	shutdown(sock, SHUT_RDWR);
	space_end(p, sp);
	/* Not before nobody can find it: its number may be another client's at once. */
	close(sock);
}

static void
end_now(struct forks *f, struct space *sp)
{
	struct pager *p = &f->rt->p;
	struct client *c = sp->client;
	const uint64_t id = sp->id;
	sigset_t old;

	slow_done(f->rt, sp);
	change_begin(p, &old);
	keeper_end(p, sp);
	change_end(p, &old);
	if (c != NULL)
		client_free(f->rt, c, id);
	pthread_mutex_lock(&f->ended_lock);
	f->ended++;
	pthread_cond_broadcast(&f->ended_cond);
	pthread_mutex_unlock(&f->ended_lock);
}

static bool
is_ending(const struct space *sp)
{
	return sp->slow != NULL && slow_op(sp->slow) == SLOW_END;
}

static void failed(struct forks *f, struct space *sp, int r);

/* Another piece of what it waits for. */
static void
go_on_slowly(struct forks *f, struct space *sp)
{
	const bool ends = is_ending(sp);
	struct msg m = { .type = MSG_RETURN, .serial = slow_serial(sp->slow) };
	int r = 0;

	switch (slow_piece(f, sp, &m.status)) {
	case SLOW_OVER:
		slow_done(f->rt, sp);
		if (ends)
			end_now(f, sp);
		else
			r = msg_send_by(sp->sock, &m, NULL, 0, 0);
		break;
	case SLOW_MORE:
		f->soon = MIN(f->soon, MORE_MS);
		break;
	case SLOW_LATER:
		f->soon = MIN(f->soon, AGAIN_MS);
		break;
	case SLOW_KICKED:
		f->soon = MIN(f->soon, TELL_MS);
		break;
	}
	if (r == 0 && !ends && sp->slow != NULL && slow_tells(sp->slow)) {
		m = (struct msg){ .type = MSG_ACK };
		r = msg_send_by(sp->sock, &m, NULL, 0, 0);
	}
	if (r < 0)
		failed(f, sp, r);
}

/* What it has changed of files is written first. */
static void
end_child(struct forks *f, struct space *sp)
{
	static const struct call all = { .op = SLOW_END, .length = UINT64_MAX };

	if (f->rt->server == NULL || slow_begin(f->rt, sp, &all, 0) < 0)
		end_now(f, sp);
	else
		go_on_slowly(f, sp);
}

/* The space of that number; NULL: it has ended. */
static struct space *
space_of(struct pager *p, uint64_t id)
{
	struct space *sp = p->spaces;

	while (sp != NULL && sp->id != id)
		sp = sp->next;
	return sp;
}

/* 0, or -errno; -EAGAIN: when there is room in its queue, or for descriptors that are on their way. */
static int
say_now(struct space *sp, const struct msg *m, const int fd[], size_t nfd)
{
	const int r = msg_send_by(sp->sock, m, fd, nfd, 0);

	/* The kernel counts those of all sockets together. */
	sp->later = r == -ETOOMANYREFS;
	return r == -ETIMEDOUT || r == -ETOOMANYREFS ? -EAGAIN : r;
}

/* It is to hear what to map: as much of that as goes into its queue; whoever does not read keeps nobody waiting.  0 or -errno. */
static int
tell_on(struct forks *f, struct space *sp)
{
	const struct part *pending = NULL;
	const struct map_entry *e = NULL;
	struct msg *m = &f->msg;
	size_t n;

	if (sp->coming != 0) {
		const struct space *child = space_of(&f->rt->p, sp->coming);

		if (child == NULL)
			return -ECANCELED;
		n = child->map.n;
		e = child->map.first;
		for (size_t i = 0; i < sp->told; i++)
			e = e->next;
	} else {
		n = sp->client->npending;
		pending = sp->client->pending;
	}
	while (sp->told < n) {
		int fd[MSG_REGIONS], r;

		*m = (struct msg){ .type = MSG_REGION, .serial = sp->serial };
		for (; sp->told + m->n < n && m->n < MSG_REGIONS; m->n++) {
			if (pending != NULL)
				e = pending[sp->told + m->n].entry;
			assert(e != NULL);
			m->r[m->n] = keeper_region(&f->rt->p, e);
			fd[m->n] = m->r[m->n].fd;
			e = e->next;
		}
		m->left = (uint32_t)(n - sp->told - m->n);
		r = say_now(sp, m, fd, m->n);
		if (r < 0)
			return r == -EAGAIN ? 0 : r;
		sp->told += m->n;
	}
	sp->telling = false;
	return 0;
}

int
keeper_tell(struct forks *f, struct space *sp, uint32_t serial)
{
	sp->telling = true;
	sp->serial = serial;
	sp->told = 0;
	return tell_on(f, sp);
}

/* 0, or why a client or what it has forked may not fork now.  For its child as much is promised as for a clone. */
static int
may_fork(const struct forks *f, const struct space *parent)
{
	size_t all = 0, forked = 0, same = 0, user = 0;
	const struct client *c = NULL;
	uint64_t nswap = 0;

	for (const struct space *sp = f->rt->p.spaces; sp != NULL; sp = sp->next, all++) {
		const bool mine = sp->account == parent->account;

		same += mine;
		forked += sp->client == NULL;
		user += sp->client == NULL && sp->uid == parent->uid;
		c = mine && sp->client != NULL ? sp->client : c;
	}
	if (all >= CHILDREN_MAX)
		return -EAGAIN;
	if (parent->account == NULL)
		return 0;
	/* The rest is for other users', and for clients. */
	if (same >= CHILDREN_MAX / 8 || user >= CHILDREN_MAX / 4 ||
	    forked >= CHILDREN_MAX - CLIENTS_MAX) {
		log_line(
			&f->rt->p.log, UP_LOG_WARNING,
			"process %d: refused: a fork: there are %zu processes of its client, %zu forked ones "
			"of user %u, and %zu of all; %u, %u and %u are allowed",
			atomic_load(&parent->pid), same, user, (unsigned)parent->uid, forked,
			CHILDREN_MAX / 8, CHILDREN_MAX / 4, CHILDREN_MAX - CLIENTS_MAX);
		return -EAGAIN;
	}
	for (const struct map_entry *e = parent->map.first; e != NULL; e = e->next) {
		if (e->inherit == UP_INHERIT_COPY && !e->object->noreserve)
			nswap += (e->end - e->start) >> PAGE_SHIFT;
	}
	if (c != NULL)
		return client_swap(f->rt, c, nswap, NULL);
	return nswap == 0 || account_may_promise(parent->account, nswap) ? 0 : -EDQUOT;
}

/*
 * A child forks.  Its own child's end of a socket is with it, ours came with the message.  From here on until it has forked its own faults
 * wait, and nobody else's: what it shares with others is not copied.
 */
static int
fork_of_child(struct forks *f, struct space *parent, int sock)
{
	struct pager *p = &f->rt->p;
	const uint32_t serial = f->msg.serial;
	struct space *sp = NULL;
	sigset_t old;
	int r;

	change_begin(p, &old);
	r = may_fork(f, parent);
	if (r == 0)
		r = space_fork(f->rt, &parent->map, sock, &sp);
	if (sp == NULL) {
		const struct msg none = { .type = MSG_REGION, .serial = serial, .status = r };

		change_end(p, &old);
		close(sock);
		return msg_send_by(parent->sock, &none, NULL, 0, 0);
	}
	store_keep(p->store, "space", sp->id, "sock", sock);
	sp->uid = parent->uid;
	sp->account = parent->account != NULL ? account_ref(parent->account) : NULL;
	parent->coming = sp->id;
	parent->thaw_at = now_ns() + (uint64_t)FORK_MS * 1000000;
	space_freeze(p, parent);
	chain_thaw(p);
	change_end(p, &old);
	return keeper_tell(f, parent, serial);
}

/* It has forked, or will not if status < 0.  Its child's space ends at its own turn, when nobody has the other end of the socket. */
static void
fork_over(struct forks *f, struct space *parent, int status)
{
	struct pager *p = &f->rt->p;
	const struct space *child;
	sigset_t old;

	change_begin(p, &old);
	child = space_of(p, parent->coming);
	if (status < 0 && child != NULL)
		shutdown(child->sock, SHUT_RDWR);
	parent->coming = 0;
	parent->returned = false;
	space_thaw(p, parent);
	change_end(p, &old);
}

static int
acknowledge(struct forks *f, struct space *sp)
{
	const struct msg ack = { .type = MSG_ACK };
	const int r = say_now(sp, &ack, &f->pidfd, 1);

	sp->acked = r == 0;
	return r == -EAGAIN ? 0 : r;
}

int
keeper_attach(struct forks *f, struct space *sp, int uffd, pid_t pid)
{
	const int queue = QUEUE_BYTES;
	struct pager *p = &f->rt->p;
	int r;

	/* Who does not read has few descriptors on their way to him. */
	setsockopt(sp->sock, SOL_SOCKET, SO_SNDBUF, &queue, sizeof queue);

	/* Before anybody can rely on it. */
	store_keep(p->store, "space", sp->id, "uffd", uffd);
	store_keep(p->store, "space", sp->id, "sock", sp->sock);
	r = p->pmap->ops->space_attach(p->pmap, sp->shard, uffd, pid);
	if (r < 0)
		return r;
	atomic_store(&sp->pid, (int)pid);
	stores_in_order();
	sp->attached = true;
	return acknowledge(f, sp);
}

/* Nothing has come of a message. */
static void
failed(struct forks *f, struct space *sp, int r)
{
	if (r != -ENOTCONN)
		log_line(&f->rt->p.log, UP_LOG_ERROR, "a message of %s %d: %s",
			 sp->client != NULL ? "client" : "the forked child",
			 sp->client != NULL ? (int)sp->client->pid : atomic_load(&sp->pid),
			 strerrorname_np(-r));
	sp->telling = false;
	/* Who was killed may have forked all the same. */
	if (sp->coming != 0 && r != -ENOTCONN)
		fork_over(f, sp, r);
	/* As long as a child lives it is served: what it stores in shared memory must not go unseen. */
	if (r == -ENOTCONN || !sp->attached || sp->client != NULL)
		end_child(f, sp);
}

static void
heard(struct forks *f, struct space *sp)
{
	int fd[MSG_REGIONS], r;
	pid_t pid = 0;
	size_t nfd;

	r = msg_receive(sp->sock, &f->msg, fd, &nfd, &pid);
	if (r == -EAGAIN)
		return;
	/* Whatever it says, it is back from that. */
	if (r == 0)
		sp->telling = false;
	if (r == 0 && sp->coming != 0)
		fork_over(f, sp, f->msg.type == MSG_FORKED ? f->msg.status : 0);
	/* In a daemon it may be anything, and be sent with what is no message. */
	if (nfd > 0 && f->rt->server != NULL) {
		const int vetted = client_vet(f, sp, fd, &nfd);

		r = r < 0 ? r : vetted;
	}
	if (r == 0 && sp->client != NULL && f->msg.type != MSG_FORK && f->msg.type != MSG_FORKED) {
		r = client_heard(f, sp, fd, &nfd);
		if (r == 1)
			go_on_slowly(f, sp);
	} else if (r == 0 && f->msg.type == MSG_HELLO && nfd == 1 && !sp->attached) {
		nfd = 0;
		r = keeper_attach(f, sp, fd[0], pid);
	} else if (r == 0 && f->msg.type == MSG_FORK && nfd == 1 && sp->attached) {
		nfd = 0;
		r = fork_of_child(f, sp, fd[0]);
	} else if (r == 0 && f->msg.type != MSG_FORKED &&
		   (f->msg.type != MSG_HELLO || !sp->attached)) {
		/* Those may come too late: a predecessor had waited for the one and has had the other. */
		r = -EPROTO;
	}
	fds_close(fd, nfd);
	if (r < 0)
		failed(f, sp, r);
}

/* There is something that it is to be told. */
static bool
says(const struct space *sp)
{
	return sp->telling || (sp->attached && (!sp->acked || atomic_load(&sp->leave) != 0));
}

static int
ask_to_leave(struct space *sp)
{
	unsigned leave = atomic_load(&sp->leave);
	const struct msg m = { .type = MSG_LEAVE, .n = leave - 1 };
	const int r = say_now(sp, &m, NULL, 0);

	/* Unless there is something newer to be said. */
	if (r == 0)
		(void)atomic_compare_exchange_strong(&sp->leave, &leave, 0);
	return r == -EAGAIN ? 0 : r;
}

static void
go_on_telling(struct forks *f, struct space *sp)
{
	int r = 0;

	/* It may have said something meanwhile, and there is nothing to tell any more. */
	sp->later = false;
	if (sp->attached && !sp->acked)
		r = acknowledge(f, sp);
	if (r == 0 && sp->attached && sp->acked && atomic_load(&sp->leave) != 0)
		r = ask_to_leave(sp);
	if (r == 0 && sp->telling)
		r = tell_on(f, sp);
	if (r < 0)
		failed(f, sp, r);
}

/* A fork has taken too long. */
static void
did_not_come_back(struct forks *f, struct space *sp)
{
	const struct space *child = space_of(&f->rt->p, sp->coming);
	const bool late = !sp->returned && child != NULL && !child->attached;

	if (late)
		log_line(
			&f->rt->p.log, UP_LOG_WARNING,
			"process %d was forking and did not come back; its child has no paged memory",
			atomic_load(&sp->pid));
	fork_over(f, sp, late ? -ETIMEDOUT : 0);
}

/* It has connected, and is not served yet. */
static bool
is_silent(const struct space *sp)
{
	return sp->client != NULL && sp->client->guest == NULL && !sp->attached && sp->thaw_at != 0;
}

/* It keeps a place that somebody else could have. */
static void
said_no_hello(struct forks *f, struct space *sp)
{
	struct log_about about;

	log_line_about(&f->rt->p.log, client_about(sp->client, &about), UP_LOG_WARNING,
		       "client %s, process %d: disconnected: it has not said hello within %u ms",
		       sp->client->name, (int)sp->client->pid, sp->client->limits.hello_ms);
	sp->thaw_at = 0;
	shutdown(sp->sock, SHUT_RDWR);
}

/* Whose faults wait for a fork does not wait for ever, nor does who says nothing stay.  When that is to be looked at again: ms; INT_MAX: there is none. */
static int
forks_in_time(struct forks *f)
{
	uint64_t now = 0, next = UINT64_MAX;

	for (struct space *sp = f->rt->p.spaces; sp != NULL; sp = sp->next) {
		if (sp->coming == 0 && !is_silent(sp))
			continue;
		now = now != 0 ? now : now_ns();
		if (now < sp->thaw_at)
			next = MIN(next, sp->thaw_at);
		else if (sp->coming == 0)
			said_no_hello(f, sp);
		else
			did_not_come_back(f, sp);
	}
	return next == UINT64_MAX ? INT_MAX : (int)((next - now) / 1000000) + 1;
}

static void *
keep(void *arg)
{
	struct forks *f = arg;
	struct pager *p = &f->rt->p;

	while (!atomic_load(&f->stop)) {
		pulse_answer(&f->pulse);
		const bool again = clients_reduce(f->rt);
		bool later = false;
		uint64_t count;
		nfds_t n = 1;

		slow_reap(f->rt, false);
		f->soon = MIN(f->soon, forks_in_time(f));
		f->poll[0] = (struct pollfd){ .fd = f->kick, .events = POLLIN };
		pthread_rwlock_rdlock(&p->map.lock);
		for (struct space *sp = p->spaces; sp != NULL && n < ARRAY_SIZE(f->poll);
		     sp = sp->next) {
			f->space[n] = sp;
			f->poll[n++] = (struct pollfd){
				.fd = is_ending(sp) ? -1 : sp->sock,
				/* One call at a time; but its end is heard in any case. */
				.events = sp->slow != NULL	   ? 0
					  : says(sp) && !sp->later ? POLLIN | POLLOUT
								   : POLLIN,
			};
			later |= sp->later;
		}
		pthread_rwlock_unlock(&p->map.lock);
		if (again || later)
			f->soon = MIN(f->soon, AGAIN_MS);
		if (poll(f->poll, n, f->soon != INT_MAX ? f->soon : -1) < 0)
			continue;
		f->soon = INT_MAX;
		if (f->poll[0].revents != 0 && read(f->kick, &count, sizeof count) < 0)
			assert(errno == EAGAIN);
		/* Only we end spaces, each at its own turn: the others stay. */
		for (nfds_t i = 1; i < n && !atomic_load(&f->stop); i++) {
			pulse_answer(&f->pulse);
			if (f->space[i]->slow != NULL && f->poll[i].revents != 0)
				failed(f, f->space[i], -ENOTCONN);
			else if (f->poll[i].revents & ~POLLOUT)
				heard(f, f->space[i]);
			else if (f->space[i]->slow != NULL)
				go_on_slowly(f, f->space[i]);
			else if (f->poll[i].revents != 0 || f->space[i]->later)
				go_on_telling(f, f->space[i]);
		}
	}
	return NULL;
}

void
keeper_kick(struct forks *f)
{
	const uint64_t one = 1;

	if (write(f->kick, &one, sizeof one) < 0)
		assert(errno == EAGAIN);
}

static int
start_thread(struct forks *f)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int r;

	/* As long as there may be a successor, watchers have nothing to do. */
	f->pidfd = f->rt->p.store != NULL ? fcntl(f->rt->p.store->pidfd, F_DUPFD_CLOEXEC, 0)
					  : (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (f->pidfd < 0)
		return -errno;
	f->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (f->kick < 0) {
		r = -errno;
		close(f->pidfd);
		return r;
	}
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, KEEPER_STACK);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&f->keeper, &attr, keep, f);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	if (r == 0)
		pthread_setname_np(f->keeper, "uffd-keeper");
	if (r != 0) {
		close(f->kick);
		close(f->pidfd);
	}
	return -r;
}

int
keeper_start(struct up_runtime *rt, struct forks **out)
{
	struct pager *p = &rt->p;
	struct forks *f;
	pthread_condattr_t attr;
	int r = -ENOMEM;

	/* Not malloc(): what that gives may be paged, and the keeper must not touch what it serves. */
	f = mmap(NULL, sizeof *f, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (f == MAP_FAILED)
		return -errno;
	if (!budget_charge(&p->budget, KEEPER_OVERHEAD) &&
	    (runtime_reclaim(p, KEEPER_OVERHEAD) < 0 ||
	     !budget_charge(&p->budget, KEEPER_OVERHEAD)))
		goto unmap;
	f->rt = rt;
	f->soon = INT_MAX;
	pthread_mutex_init(&f->ended_lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&f->ended_cond, &attr);
	pthread_condattr_destroy(&attr);
	r = start_thread(f);
	if (r < 0)
		goto uncharge;
	atomic_fetch_add(&p->overhead, KEEPER_OVERHEAD);
	*out = f;
	return 0;

uncharge:
	pthread_cond_destroy(&f->ended_cond);
	pthread_mutex_destroy(&f->ended_lock);
	budget_uncharge(&p->budget, KEEPER_OVERHEAD);
unmap:
	munmap(f, sizeof *f);
	return r;
}

void
keeper_stop(struct forks *f)
{
	struct pager *p = &f->rt->p;

	atomic_store(&f->stop, true);
	keeper_kick(f);
	pthread_join(f->keeper, NULL);
	/* Their watchers take over when the socket ends, and whoever waits faults anew. */
	while (p->spaces != NULL) {
		if (is_ending(p->spaces))
			go_on_slowly(f, p->spaces);
		else
			end_child(f, p->spaces);
	}
	slow_reap(f->rt, true);
	close(f->kick);
	close(f->pidfd);
	pthread_cond_destroy(&f->ended_cond);
	pthread_mutex_destroy(&f->ended_lock);
	munmap(f, sizeof *f);
	atomic_fetch_sub(&p->overhead, KEEPER_OVERHEAD);
	budget_uncharge(&p->budget, KEEPER_OVERHEAD);
}

/* True if some child has ended, and its space is still there. */
static bool
behind(struct pager *p)
{
	bool gone = false;

	pthread_rwlock_rdlock(&p->map.lock);
	for (const struct space *sp = p->spaces; sp != NULL && !gone; sp = sp->next) {
		struct pollfd pf = { .fd = sp->sock };

		gone = poll(&pf, 1, 0) > 0 && (pf.revents & POLLHUP);
	}
	pthread_rwlock_unlock(&p->map.lock);
	return gone;
}

void
keeper_catch_up(struct forks *f)
{
	struct timespec until;
	int r = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += ENDED_MS / 1000;
	while (r == 0) {
		unsigned long ended;

		pthread_mutex_lock(&f->ended_lock);
		ended = f->ended;
		pthread_mutex_unlock(&f->ended_lock);
		if (!behind(&f->rt->p))
			return;
		pthread_mutex_lock(&f->ended_lock);
		while (r == 0 && f->ended == ended)
			r = pthread_cond_timedwait(&f->ended_cond, &f->ended_lock, &until);
		pthread_mutex_unlock(&f->ended_lock);
	}
}
