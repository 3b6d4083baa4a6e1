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
#include "budget.h"
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
limit(struct session *s, uint64_t most, uint64_t least)
{
	return served_limit(native.d->rt, ((struct native *)s)->id, most, least);
}

static int
regroup(struct session *s, const char *group)
{
	return serve_regroup(native.d->rt, ((struct native *)s)->id, group);
}

static bool
latency(const struct session *s, enum up_fault_kind kind, struct latency_steps *steps)
{
	return served_latency(native.d->rt, ((const struct native *)s)->id, kind, steps);
}

static const struct session_ops ops = { "native", counts, map,	   evict,  leave,
					end,	  limit,  regroup, latency };

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

/* What percents of swap are of; 0: nobody knows. */
static uint64_t
swap_there(void)
{
	struct up_stats st = { 0 };

	return up_stats_get(native.d->rt, &st, sizeof(st)) == 0 ? st.reserve_max : 0;
}

/* Of a group: why its quota is not as it was to be, until it is; and what it is to be by the operator's word, until the next reload. */
static struct note {
	struct note *next;
	char group[32];
	char why[120];
	bool by_hand;
	uint64_t most, least; /* by hand */
} * notes;

static struct note *
note_of(const char *group)
{
	struct note *f = notes;

	while (f != NULL && strcmp(f->group, group) != 0)
		f = f->next;
	return f;
}

/* NULL: no memory. */
static struct note *
note_make(const char *group)
{
	struct note *f = note_of(group);

	if (f == NULL && (f = calloc(1, sizeof(*f))) != NULL) {
		snprintf(f->group, sizeof(f->group), "%s", group);
		f->next = notes;
		notes = f;
	}
	return f;
}

const char *
native_quota_refused(int r)
{
	return r == -ENOSPC
		       ? "half of the budget at most can be promised, and three quarters with what is wired"
	       : r == -EBUSY ? "its clients have more than half of that wired"
	       : r == -EINVAL
		       ? "the limit is below what its clients are served with, or below the minimum"
		       : strerror(-r);
}

static void
set_group(struct daemon *d, const char *group, uint64_t most, uint64_t least)
{
	const int r = serve_group_quota(d->rt, group, most, least);
	struct note *const f = r < 0 ? note_make(group) : note_of(group);

	if (r < 0)
		log_error("group %s: limit %llu, minimum %llu: not in force: %s", group,
			  (unsigned long long)most, (unsigned long long)least,
			  native_quota_refused(r));
	if (f != NULL)
		snprintf(f->why, sizeof(f->why), "%s", r < 0 ? native_quota_refused(r) : "");
}

/* Those that give something back come first: what others are promised may be that. */
static void
set_groups(struct daemon *d, bool larger)
{
	struct serve_group is;

	for (unsigned n = 0; !larger && serve_group_nth(d->rt, n, &is) == 0; n++)
		if (config_find(&d->cfg, "group", is.name) == NULL &&
		    (is.limit != 0 || is.minimum != 0 || is.swap != 0)) {
			set_group(d, is.name, 0, 0);
			(void)serve_group_swap(d->rt, is.name, 0);
		}
	for (const struct config_named *g = d->cfg.named; g != NULL; g = g->next) {
		const struct note *const f = note_of(g->name);
		uint64_t most, least;

		if (strcmp(g->kind, "group") == 0 && larger)
			(void)serve_group_swap(d->rt, g->name,
					       config_bytes(config_named_value(g, KEY_GROUP_SWAP),
							    swap_there()));
		if (strcmp(g->kind, "group") != 0 || session_group(g->name, &most, &least) < 0)
			continue;
		if (f != NULL && f->by_hand) {
			most = f->most;
			least = f->least;
		}
		is.minimum = 0;
		(void)serve_group_info(d->rt, g->name, &is);
		if ((least > is.minimum) == larger)
			set_group(d, g->name, most, least);
	}
}

unsigned
native_children(struct daemon *d)
{
	return native.started ? serve_children(d->rt) : 0;
}

void
native_quotas(struct daemon *d, bool anew)
{
	bool any = native.started;
	int r;

	for (struct note *f = notes; f != NULL && anew; f = f->next)
		f->by_hand = false;
	for (const struct config_named *g = d->cfg.named; g != NULL && !any; g = g->next)
		any = strcmp(g->kind, "group") == 0;
	r = any ? native_start(d) : 0;
	if (r < 0)
		log_error("groups have no effect: %s", strerror(-r));
	if (!native.started)
		return;
	set_groups(d, false);
	set_groups(d, true);
}

void
native_group(struct daemon *d, const char *group, struct serve_group *is, const char **why)
{
	const struct note *const f = note_of(group);

	*is = (struct serve_group){ .limit = 0 };
	if (native.started)
		(void)serve_group_info(d->rt, group, is);
	*why = !native.started ? "no client can have a limit here" : f != NULL ? f->why : "";
}

int
native_group_limit(struct daemon *d, const char *group, uint64_t *most, uint64_t *least)
{
	struct serve_group is = { .limit = 0 };
	struct note *f;
	int r;

	if (!native.started || config_find(&d->cfg, "group", group) == NULL)
		return -ESRCH;
	f = note_make(group);
	if (f == NULL)
		return -ENOMEM;
	(void)serve_group_info(d->rt, group, &is);
	*most = *most != LIMIT_KEEP ? *most : is.limit;
	*least = *least != LIMIT_KEEP ? *least : is.minimum;
	r = serve_group_quota(d->rt, group, *most, *least);
	if (r < 0)
		return r;
	f->by_hand = true;
	f->most = *most;
	f->least = *least;
	f->why[0] = '\0';
	return 0;
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
	return_guests(d);
	/* They are where their accounts were; the configuration may be another one. */
	sessions_reload();
	return 0;
}

/* Of what each client of a group has there, or else in [limits]. */
static uint64_t
of_client(const char *group, enum config_key here, enum config_key there)
{
	const struct config *const c = &native.d->cfg;
	const struct config_named *const g = config_find(c, "group", group);
	const uint64_t own =
		g != NULL ? config_bytes(config_named_value(g, here), native.d->budget) : 0;

	return own != 0 ? own : config_bytes(&c->v[there], native.d->budget);
}

void
native_limits(const char *group, struct serve_limits *l)
{
	const struct config *const c = &native.d->cfg;
	const uint64_t least =
		serve_limit_min((unsigned)config_n(c, KEY_SERVICE_THREADS), budget_wanted(c));

	l->mapped = config_n(c, KEY_LIMIT_MAPPED);
	l->swap = config_bytes(&c->v[KEY_LIMIT_SWAP], swap_there());
	l->limit = of_client(group, KEY_GROUP_CLIENT_LIMIT, KEY_LIMIT_LIMIT);
	/* A percentage of a budget that has become small. */
	l->limit = l->limit != 0 && l->limit < least ? least : l->limit;
	l->minimum = of_client(group, KEY_GROUP_CLIENT_MINIMUM, KEY_LIMIT_MINIMUM);
}

void
native_accept(struct daemon *d, const struct listener *l, int fd, const struct peer *peer)
{
	struct serve_limits limits;
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
	n->session.by_door = l->group[0] != '\0';
	session_come(&n->session);
	limits = (struct serve_limits){ .regions = (unsigned)config_n(&d->cfg, KEY_LIMIT_REGIONS),
					.objects = OBJECTS_MAX,
					.fds = (unsigned)config_n(&d->cfg, KEY_LIMIT_FDS),
					.inflight = config_n(&d->cfg, KEY_LIMIT_INFLIGHT),
					.fuse = config_n(&d->cfg, KEY_LIMIT_FUSE) != 0,
					.group = n->session.group };
	native_limits(n->session.group, &limits);
	r = serve_accept(d->rt, fd, &limits, &n->id);
	if (r < 0) {
		snprintf(why, sizeof(why), "%s", serve_refused(r));
		log_session(LOG_WARNING, &n->session,
			    "client %u: %s: refused: limit %llu, minimum %llu: %s", n->session.id,
			    n->session.name, (unsigned long long)limits.limit,
			    (unsigned long long)limits.minimum,
			    r == -ENOSPC || r == -EINVAL ? native_quota_refused(r) : why);
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
