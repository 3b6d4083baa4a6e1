/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * native.c: programs that link the library and are connected to the daemon (up_runtime_connect()).
 *
 *	the loop's thread                                   the runtime's keeper (lib/keeper.c)
 *	native_accept(): a session --- serve_accept() ----> its client, all that it says
 *	session_ops: numbers, maps, quotas <-- serve_*() --
 *	on_ended() <----------- uv_async_t ---------------- it has gone: ended()
 *
 * The socket is the runtime's from the moment it is accepted; here is only who it is, and what the operator wants of it.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adopt.h"
#include "childmsg.h"
#include "daemon.h"
#include "guardian.h"
#include "handoff.h"
#include "heirs.h"
#include "listen.h"
#include "log.h"
#include "serve.h"
#include "served.h"
#include "sessions.h"

#define OBJECTS_MAX 4096u

struct native {
	struct session session;	    /* first */
	uint64_t id;		    /* the runtime's */
	struct session_counts last; /* once it has gone it is not asked any more */
};

/* A client that the keeper says is gone, and the loop has not heard of.  There is one to spare for each that there is. */
struct gone {
	struct gone *next;
	uint64_t id;
};

static struct {
	struct daemon *d;
	bool started;
	uv_async_t wake;
	uv_mutex_t lock;
	struct gone *gone;  /* (lock) */
	struct gone *spare; /* (lock) */
} native;

/* --- what is asked of a session --- */

static void
counts(const struct session *s, struct session_counts *c)
{
	struct native *const n = (struct native *)(uintptr_t)s;

	served_counts(native.d->rt, n->id, &n->last);
	*c = n->last;
}

static json_t *
map(const struct session *s, const struct glance *g)
{
	return served_map(native.d->rt, ((const struct native *)s)->id, g);
}

static int64_t
evict(struct session *s, uint64_t bytes)
{
	return serve_evict(native.d->rt, ((struct native *)s)->id, bytes);
}

static void
leave(struct session *s, unsigned ms)
{
	serve_leave(native.d->rt, ((struct native *)s)->id, ms);
}

static void
end(struct session *s)
{
	serve_end(native.d->rt, ((struct native *)s)->id);
}

static int
limit(struct session *s, uint64_t bytes)
{
	return served_limit(native.d->rt, ((struct native *)s)->id, bytes);
}

static bool
latency(const struct session *s, enum up_fault_kind kind, struct latency_steps *steps)
{
	return served_latency(native.d->rt, ((const struct native *)s)->id, kind, steps);
}

static const struct session_ops ops = { "native", counts, map, evict, leave, end, limit, latency };

/* --- coming and going --- */

static struct native *
find(uint64_t id)
{
	for (struct session *s = session_first(); s != NULL; s = s->next) {
		struct native *const n = (struct native *)s;

		if (s->ops == &ops && n->id == id)
			return n;
	}
	return NULL;
}

static bool
put_spare(void)
{
	struct gone *const g = malloc(sizeof(*g));

	if (g == NULL)
		return false;
	uv_mutex_lock(&native.lock);
	g->next = native.spare;
	native.spare = g;
	uv_mutex_unlock(&native.lock);
	return true;
}

/* => the lock is held */
static struct gone *
take_spare(void)
{
	struct gone *const g = native.spare;

	native.spare = g->next;
	return g;
}

/* The keeper's thread. */
static void
ended(void *ctx, uint64_t id, bool guest)
{
	struct gone *g;

	(void)ctx;
	if (guest)
		return; /* those have sessions of their own */
	uv_mutex_lock(&native.lock);
	g = take_spare();
	g->id = id;
	g->next = native.gone;
	native.gone = g;
	uv_mutex_unlock(&native.lock);
	uv_async_send(&native.wake);
}

static void
on_ended(uv_async_t *wake)
{
	struct gone *g;

	(void)wake;
	uv_mutex_lock(&native.lock);
	g = native.gone;
	native.gone = NULL;
	uv_mutex_unlock(&native.lock);
	while (g != NULL) {
		struct gone *const next = g->next;
		struct native *const n = find(g->id);

		if (n != NULL) {
			session_gone(&n->session);
			free(n);
		}
		free(g);
		g = next;
	}
}

void
native_refuse(int fd, int status, const char *why)
{
	struct msg m = { .type = MSG_RETURN, .status = status };

	/* As up_runtime_connect() expects it. */
	snprintf(m.call.text, sizeof(m.call.text), "%s", why);
	(void)msg_send_by(fd, &m, NULL, 0, 0);
	close(fd);
}

void
native_quotas(struct daemon *d)
{
	if (!native.started)
		return;
	for (const struct config_named *g = d->cfg.named; g != NULL; g = g->next) {
		uint64_t most, least;
		int r;

		if (strcmp(g->kind, "group") != 0 || session_group(g->name, &most, &least) < 0)
			continue;
		r = serve_group_quota(d->rt, g->name, most, least);
		if (r < 0)
			log_error("group %s: limit %llu, minimum %llu: %s", g->name,
				  (unsigned long long)most, (unsigned long long)least,
				  r == -ENOSPC
					  ? "half of the budget at most can be promised, and three "
					    "quarters with what is wired"
				  : r == -EBUSY ? "its clients have more than half of that wired"
						: strerror(-r));
	}
}

unsigned
native_children(struct daemon *d)
{
	return native.started ? serve_children(d->rt) : 0;
}

void
native_audit(struct daemon *d)
{
	if (native.started)
		serve_audit(d->rt);
}

/* All but what is the runtime's. */
static int
prepare(struct daemon *d)
{
	int r;

	native.d = d;
	r = uv_async_init(&d->loop, &native.wake, on_ended);
	if (r == 0)
		r = uv_mutex_init(&native.lock);
	if (r == 0)
		uv_unref((uv_handle_t *)&native.wake);
	return r;
}

int
native_start(struct daemon *d)
{
	int r;

	if (native.started)
		return 0;
	r = prepare(d);
	if (r == 0)
		r = serve_start(d->rt, ended, NULL);
	if (r < 0)
		return r;
	native.started = true;
	native_quotas(d);
	return 0;
}

/* Guests that the last daemon has served (lib/guest.h), and that have no sessions yet: those ask the runtime. */
static struct guest_back {
	struct guest_back *next;
	uint64_t id;
	uint32_t tag;
	struct session who;
} * guests_back;

/* One that the last daemon has served. */
static void
returned(void *ctx, uint64_t id, const struct serve_info *info, const char *group)
{
	struct native *const n = info->guest ? NULL : calloc(1, sizeof(*n));
	struct guest_back *const g = info->guest ? calloc(1, sizeof(*g)) : NULL;
	struct session *const s = g != NULL ? &g->who : &n->session;

	(void)ctx;
	if ((n == NULL && g == NULL) || (n != NULL && !put_spare())) {
		log_error("out of memory");
		_exit(EXIT_FAILURE); /* the guardian ends, and clients are told by that */
	}
	s->pid = info->pid;
	s->uid = info->uid;
	s->gid = info->gid;
	snprintf(s->group, sizeof(s->group), "%s", group);
	if (n != NULL) {
		n->id = id;
		s->ops = &ops;
		session_come(s);
	} else {
		g->id = id;
		g->tag = info->tag;
		g->next = guests_back;
		guests_back = g;
	}
}

static void
orphan(void *unused, uint64_t id, int uffd)
{
	(void)unused;
	heirs_orphan(id, uffd);
}

/* Who has attached them has sessions for them again. */
static void
return_guests(struct daemon *d)
{
	struct guest_back *g;

	while ((g = guests_back) != NULL) {
		guest_fn *const fn =
			g->tag == GUEST_OF_HANDOFF ? handoff_returned : firecracker_returned;
		const int r = fn != NULL ? fn(d, g->id, &g->who) : -EPROTONOSUPPORT;

		guests_back = g->next;
		if (r == -ESRCH)
			serve_end(d->rt, g->id);
		else if (r < 0 && r != -ENOENT)
			log_error(
				"process %d is served as by the last daemon, and nobody hears of its end: %s",
				(int)g->who.pid, strerror(-r));
		free(g);
	}
}

static void
settled(void *unused)
{
	(void)unused;
	kept_settle();
}

int
native_create(struct daemon *d, const struct up_config *uc)
{
	const struct adopt_from from = {
		.take = kept_take, .settled = settled, .client = returned, .orphan = orphan
	};
	bool adopted = false;
	int r = prepare(d);

	if (r == 0)
		r = store_create(&d->store, uc->memory_limit, kept_keeper(), kept_pidfd());
	if (r == 0)
		r = adopt_create(&d->rt, uc, d->store, &from, ended, NULL, &adopted);
	if (r < 0 && adopted) {
		log_error("the clients of the last daemon can not be taken over: %s", strerror(-r));
		/* With what it has left as it is; the guardian tries again some times, unless that is hopeless. */
		if (r != -EPROTO)
			raise(SIGKILL);
		_exit(EXIT_FAILURE);
	}
	if (r < 0)
		return r;
	native.started = true;
	native_quotas(d);
	return_guests(d);
	return 0;
}

void
native_accept(struct daemon *d, const struct listener *l, int fd, const struct peer *peer)
{
	struct native *n;
	char why[MSG_TEXT];
	int r = session_admit(peer, why, sizeof(why));

	if (r == 0 && (r = native_start(d)) < 0) {
		snprintf(why, sizeof(why), "native clients can not be served here: %s",
			 strerror(-r));
		session_refused(REFUSED_FAILED);
	}
	if (r < 0) {
		native_refuse(fd, r, why);
		return;
	}
	n = calloc(1, sizeof(*n));
	if (n == NULL || !put_spare()) {
		free(n);
		native_refuse(fd, -ENOMEM, "out of memory");
		session_refused(REFUSED_FAILED);
		return;
	}
	n->session.ops = &ops;
	n->session.pid = peer->pid;
	n->session.uid = peer->uid;
	n->session.gid = peer->gid;
	snprintf(n->session.group, sizeof(n->session.group), "%s", l->group);
	session_come(&n->session);
	r = serve_accept(d->rt, fd,
			 &(struct serve_limits){
				 .regions = (unsigned)config_n(&d->cfg, KEY_LIMIT_REGIONS),
				 .objects = OBJECTS_MAX,
				 .fds = (unsigned)config_n(&d->cfg, KEY_LIMIT_FDS),
				 .mapped = UINT64_MAX / 2,
				 .inflight = config_n(&d->cfg, KEY_LIMIT_INFLIGHT),
				 .fuse = config_n(&d->cfg, KEY_LIMIT_FUSE) != 0,
				 .group = n->session.group },
			 &n->id);
	if (r < 0) {
		if (r == -EAGAIN)
			snprintf(
				why, sizeof(why),
				"there are %d clients and forked children of clients, and more can not be served",
				SERVE_SPACES_MAX);
		else
			snprintf(why, sizeof(why),
				 "there is no room for another client within the budget: %s",
				 strerror(-r));
		log_warning("client %u: refused: %s", n->session.id, why);
		native_refuse(fd, r, why);
		session_refused(r == -EAGAIN ? REFUSED_CLIENTS : REFUSED_FAILED);
		uv_mutex_lock(&native.lock);
		struct gone *const g = take_spare();
		uv_mutex_unlock(&native.lock);
		free(g);
		session_gone(&n->session);
		free(n);
	}
}
