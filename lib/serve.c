/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * serve.c: what a connected program asks for.  See serve.h.
 *
 *	          MAP, CLONE: prepared, and told what to map             MAPPED: entries, places, the copy
 *	  at rest -----------------------------------------> pending ------------------------------------> at rest
 *	                                                        |  CANCEL, or anything else: abandoned
 *	                                                        +----------------------------------------> at rest
 *
 * A place is one from MAPPED on: the client has registered the range by then, and nobody can touch it yet.  Earlier a page could be taken
 * out of the pool that the client is about to see, and may write; later it would be seen before pageout knows that it has to be stopped there.
 */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"
#include "cow.h"
#include "keeper.h"
#include "serve.h"

#define ADDRESS_END ((uint64_t)1 << 47)
#define OBJECTS_STEP 64u
#define PAUSE_MIN 10000000u /* ns, after nothing could be taken from an account; doubling */
#define PAUSE_MAX 1000000000u
#define NAMES_MAX 256u /* of objects of one user, which outlive those who made them */

/* Who may open a named object: as of a file with mode 0600, its owner and root. */
struct owner {
	struct owner *next;
	uid_t uid;
	char name[];
};

struct group {
	struct group *next;
	struct account *account;
	char name[32];
};

struct server {
	pthread_mutex_t lock;
	struct owner *owners; /* (lock) */
	struct group *groups; /* (lock) never removed */
	void (*ended)(void *ctx, uint64_t id);
	void *ctx;
};

/* --- objects --- */

static struct object *
held(const struct client *c, uint64_t id)
{
	return id > 0 && id <= c->nobject ? c->object[id - 1] : NULL;
}

/* The reference is the client's from here on, or given back.  Its number, 0: it has as many as it gets. */
static uint64_t
hold(struct client *c, struct object *o)
{
	unsigned i = 0;

	while (i < c->nobject && c->object[i] != NULL)
		i++;
	if (i == c->nobject && i < c->limits.objects) {
		const unsigned n = MIN(c->nobject + OBJECTS_STEP, c->limits.objects);
		struct object **more = realloc(c->object, n * sizeof(struct object *));

		if (more != NULL) {
			memset(more + i, 0, (n - i) * sizeof(struct object *));
			c->object = more;
			c->nobject = n;
		}
	}
	if (i == c->nobject) {
		up_object_unref((struct up_object *)o);
		return 0;
	}
	c->object[i] = o;
	c->nheld++;
	return i + 1;
}

static void
unhold(struct client *c, uint64_t id)
{
	struct object *o = held(c, id);

	if (o == NULL)
		return;
	c->object[id - 1] = NULL;
	c->nheld--;
	up_object_unref((struct up_object *)o);
}

/* A new object of the client's: nothing maps it yet. */
static void
own(struct client *c, struct object *o)
{
	if (o->pool != 0)
		return;
	o->apart = true;
	if (o->account == NULL)
		o->account = account_ref(c->account);
}

/* --- who owns what has a name --- */

static struct owner **
find_owner(struct server *sv, const char *name)
{
	struct owner **link = &sv->owners;

	while (*link != NULL && strcmp((*link)->name, name) != 0)
		link = &(*link)->next;
	return link;
}

static int
check_owner(struct server *sv, const struct client *c, const char *name)
{
	const struct owner *o;
	int r;

	pthread_mutex_lock(&sv->lock);
	o = *find_owner(sv, name);
	/* What the daemon itself has is nobody's. */
	r = o == NULL ? -ENOENT : o->uid != c->uid && c->uid != 0 ? -EACCES : 0;
	pthread_mutex_unlock(&sv->lock);
	return r;
}

static int
add_owner(struct server *sv, const struct client *c, const char *name)
{
	struct owner *o;
	unsigned n = 0;

	pthread_mutex_lock(&sv->lock);
	for (o = sv->owners; o != NULL; o = o->next)
		n += o->uid == c->uid;
	pthread_mutex_unlock(&sv->lock);
	if (n >= NAMES_MAX)
		return -EDQUOT;
	o = malloc(sizeof *o + strlen(name) + 1);
	if (o == NULL)
		return -ENOMEM;
	o->uid = c->uid;
	strcpy(o->name, name);
	pthread_mutex_lock(&sv->lock);
	o->next = sv->owners;
	sv->owners = o;
	pthread_mutex_unlock(&sv->lock);
	return 0;
}

static void
remove_owner(struct server *sv, const char *name)
{
	struct owner **link, *o;

	pthread_mutex_lock(&sv->lock);
	link = find_owner(sv, name);
	o = *link;
	if (o != NULL)
		*link = o->next;
	pthread_mutex_unlock(&sv->lock);
	free(o);
}

/* --- calls --- */

static bool
valid_range(uint64_t addr, uint64_t length)
{
	return ((addr | length) & PAGE_MASK) == 0 && addr >= PAGE_SIZE && length > 0 &&
	       length <= ADDRESS_END && addr <= ADDRESS_END - length;
}

static void
abandon(struct pager *p, struct client *c)
{
	for (size_t i = 0; i < c->npending; i++)
		part_abandon(p, &c->pending[i]);
	if (c->pending != NULL)
		wired_array_fini(&c->pending_mem);
	c->pending = NULL;
	c->npending = 0;
}

/* An entry for what is pending. */
static int
prepare_entry(struct pager *p, const struct space *sp, struct part *part, uintptr_t start, int prot,
	      unsigned flags, uint64_t offset)
{
	struct map_entry *e = entry_alloc(p);

	if (e == NULL) {
		log_line(&p->log, UP_LOG_ERROR,
			 "%s: no room for a map entry within the memory limit", sp->client->name);
		return -ENOMEM;
	}
	part->entry = e;
	e->start = start;
	e->end = start + (part->n << PAGE_SHIFT);
	e->object = part->copy;
	e->offset = offset;
	e->prot = prot;
	e->flags = flags;
	e->advice = UP_ADVICE_NORMAL;
	e->shard = sp->shard;
	e->serial = ++p->next_serial;
	return 0;
}

/* 0, or why the client can not have [addr, addr + length) as well. */
static int
check_room(const struct space *sp, uint64_t addr, uint64_t length, size_t regions)
{
	const struct client *c = sp->client;
	struct map *m = (struct map *)(uintptr_t)&sp->map;
	const struct map_entry *e;

	if (!valid_range(addr, length))
		return -EINVAL;
	if (sp->map.n + regions > c->limits.regions ||
	    (sp->map.pages << PAGE_SHIFT) + length > c->limits.mapped)
		return -EDQUOT;
	e = map_first_from(m, addr);
	return e != NULL && e->start < addr + length ? -EEXIST : 0;
}

static int
pend(struct pager *p, struct client *c, size_t n)
{
	c->pending = parts_alloc(p, &c->pending_mem, n);
	c->npending = c->pending != NULL ? n : 0;
	for (size_t i = 0; i < c->npending; i++)
		c->pending[i] = (struct part){ .n = 0 };
	return c->pending != NULL ? 0 : -ENOMEM;
}

/* => map.change is held, as for all calls */
static int
call_map(struct up_runtime *rt, struct space *sp, const struct call *q)
{
	struct client *c = sp->client;
	struct pager *p = &rt->p;
	unsigned flags = q->flags & ~(unsigned)UP_FIXED;
	struct object *o = held(c, q->object), *mapped;
	uint64_t first = q->offset >> PAGE_SHIFT;
	int r = check_room(sp, q->addr, q->length, 1);

	if (r == 0 && q->object != 0 && o == NULL)
		r = -EBADF;
	/* Each is in a pool: that it may be mapped in several places costs nothing. */
	if (flags & UP_SHARED)
		flags |= UP_MULTI;
	if (r == 0)
		r = check_map(rt, NULL, q->length, q->prot, flags, o, q->offset);
	if (r < 0)
		return r;
	r = pend(p, c, 1);
	if (r < 0)
		return r;
	r = object_to_map(rt, q->length >> PAGE_SHIFT, flags, o, &first, &mapped);
	if (r < 0)
		return r;
	c->pending[0].copy = mapped;
	c->pending[0].first = first;
	c->pending[0].n = q->length >> PAGE_SHIFT;
	own(c, mapped);
	r = object_pool(rt, "up_map", mapped);
	if (r == 0)
		r = prepare_entry(p, sp, &c->pending[0], q->addr, q->prot, flags, first);
	return r;
}

static int
call_clone(struct up_runtime *rt, struct space *sp, const struct call *q)
{
	const uint64_t start = q->addr, end = start + q->length;
	struct client *c = sp->client;
	struct pager *p = &rt->p;
	const struct map_entry *e;
	uintptr_t to = q->offset;
	size_t n = 0;
	int r;

	if (!valid_range(start, q->length))
		return -EINVAL;
	r = check_covered(rt, &sp->map, "up_clone", start, end);
	for (e = map_first_from(&sp->map, start); r == 0 && e != NULL && e->start < end;
	     e = e->next)
		n++;
	if (r == 0)
		r = check_room(sp, to, q->length, n);
	if (r == 0)
		r = pend(p, c, n);
	e = map_first_from(&sp->map, start);
	for (size_t i = 0; i < n && r == 0; i++, e = e->next) {
		struct part *part = &c->pending[i];
		const uintptr_t from = MAX(start, e->start);

		part->from = e->object;
		part->first = e->offset + ((from - e->start) >> PAGE_SHIFT);
		part->n = (MIN(end, e->end) - from) >> PAGE_SHIFT;
		r = part_prepare(rt, "up_clone", part);
		if (r < 0)
			break;
		own(c, part->copy);
		r = object_pool(rt, "up_clone", part->copy);
		if (r == 0)
			r = prepare_entry(p, sp, part, to, e->prot,
					  UP_PRIVATE | (e->flags & UP_NORESERVE), 0);
		to += part->n << PAGE_SHIFT;
	}
	/* Until it is mapped others may part the same objects, forks and clients that share them: each for itself. */
	for (size_t i = 0; i < c->npending; i++) {
		if (c->pending[i].from != NULL)
			c->pending[i].from->parting = false;
	}
	return r;
}

/* What is pending is mapped by the client, and registered. */
static int
call_mapped(struct up_runtime *rt, struct space *sp)
{
	struct client *c = sp->client;
	struct pager *p = &rt->p;
	bool parts = false;
	size_t placed = 0;
	int r = c->npending > 0 ? 0 : -EINVAL;

	for (size_t i = 0; i < c->npending; i++)
		parts |= c->pending[i].from != NULL;
	while (r == 0 && placed < c->npending) {
		r = space_place(p, "up_map", c->pending[placed].entry);
		placed += r == 0;
	}
	if (r == 0 && parts)
		r = parts_freeze(p, "up_clone", c->pending, c->npending);
	if (r < 0) {
		while (placed-- > 0)
			p->pmap->ops->unmap(p->pmap, c->pending[placed].entry->start,
					    c->pending[placed].n << PAGE_SHIFT, sp->shard);
		abandon(p, c);
		return r;
	}
	pthread_rwlock_wrlock(&p->map.lock);
	parts_take(c->pending, c->npending, &sp->map);
	pthread_rwlock_unlock(&p->map.lock);
	if (parts)
		chain_thaw(p);
	parts_done(c->pending, c->npending);
	wired_array_fini(&c->pending_mem);
	c->pending = NULL;
	c->npending = 0;
	return 0;
}

static void
set_inherit(struct map_entry *e, void *to)
{
	e->inherit = *(enum up_inherit *)to;
}

static int
call_inherit(struct up_runtime *rt, struct space *sp, const struct call *q)
{
	const uintptr_t start = q->addr, end = start + q->length;
	enum up_inherit how = (enum up_inherit)q->flags;
	struct map_entry *spare[2];
	int r = check_covered(rt, &sp->map, "up_inherit", start, end);

	if (q->flags > UP_INHERIT_SHARE)
		return -EINVAL;
	for (const struct map_entry *e = map_first_from(&sp->map, start);
	     r == 0 && e != NULL && e->start < end; e = e->next) {
		if (how == UP_INHERIT_COPY && e->object->source != NULL)
			r = -ENOTSUP;
	}
	if (r == 0)
		r = spare_alloc(&rt->p, &sp->map, start, end, spare);
	if (r == 0)
		entries_set(&rt->p, &sp->map, start, end, spare, set_inherit, &how);
	return r;
}

/* Calls on what the client has mapped. */
static int
call_range(struct up_runtime *rt, struct space *sp, const struct call *q, struct msg *answer)
{
	const uint64_t start = q->addr, end = start + q->length;
	int r;

	if (!valid_range(start, q->length))
		return -EINVAL;
	switch (q->op) {
	case CALL_UNMAP:
		return unmap_range(&rt->p, &sp->map, "up_unmap", start, end);
	case CALL_PROTECT:
		if (q->prot & ~(PROT_READ | PROT_WRITE))
			return -EINVAL;
		return protect_entries(rt, &sp->map, start, end, q->prot);
	case CALL_ADVISE:
		if (q->flags > UP_ADVICE_COLD)
			return -EINVAL;
		return advise_range(rt, &sp->map, start, end, (enum up_advice)q->flags);
	case CALL_INHERIT:
		return call_inherit(rt, sp, q);
	case CALL_SYNC:
		if (q->flags > UP_SYNC_INVALIDATE)
			return -EINVAL;
		return sync_entries(rt, &sp->map, start, end, q->flags);
	default:
		if (q->length >> PAGE_SHIFT > MSG_BYTES)
			return -EINVAL;
		r = check_covered(rt, &sp->map, "up_residency", start, end);
		if (r == 0)
			map_residency(&rt->p, &sp->map, start, end, answer->bytes);
		return r;
	}
}

/* A new object, or one that has a name.  => map.change is not held, as for all calls on objects */
static int
call_object(struct up_runtime *rt, struct server *sv, struct client *c, const struct call *q,
	    int fd, struct call *answer)
{
	struct up_object *o = NULL;
	struct up_object_stats info;
	int r;

	/* Before there is one, with a name perhaps, that nobody would have in hand. */
	if (c->nheld >= c->limits.objects)
		return -EDQUOT;
	switch (q->op) {
	case CALL_CREATE_ANON:
		if (q->text[0] == '\0') {
			r = up_object_create_anon(rt, q->length, q->flags, &o);
			break;
		}
		r = add_owner(sv, c, q->text);
		if (r < 0)
			return r;
		r = up_object_create_named(rt, q->text, q->length, q->flags, &o);
		if (r < 0)
			remove_owner(sv, q->text);
		break;
	case CALL_CREATE_FILE:
		r = up_object_create_file(rt, fd, q->offset, q->length, q->flags, &o);
		break;
	case CALL_CREATE_DEVICE:
		r = up_object_create_device(rt, fd, q->flags, &o);
		break;
	case CALL_OPEN:
		r = check_owner(sv, c, q->text);
		if (r == 0)
			r = up_object_open(rt, q->text, &o);
		break;
	default:
		if (held(c, q->object) == NULL)
			return -EBADF;
		r = up_object_snapshot(rt, (struct up_object *)held(c, q->object), &o);
		break;
	}
	if (r < 0)
		return r;
	/* What has a name outlives its client, and is nobody's. */
	if ((q->op != CALL_CREATE_ANON && q->op != CALL_OPEN) || q->text[0] == '\0')
		own(c, (struct object *)o);
	else if (((struct object *)o)->pool == 0)
		((struct object *)o)->apart = true;
	r = up_object_info(o, &info, sizeof info);
	answer->length = info.size;
	answer->object = hold(c, (struct object *)o);
	return answer->object == 0 ? -EDQUOT : r;
}

static uint64_t
space_faults(struct pager *p, const struct space *sp, unsigned kind)
{
	return atomic_load(&p->space_faults[sp->shard - PMAP_POOL - 1][kind]);
}

static int
call_stats(struct up_runtime *rt, struct space *sp, struct msg *answer)
{
	struct up_stats st = { .limit = rt->memory_limit };

	static_assert(sizeof st <= MSG_BYTES, "up_stats fits a message");
	pthread_rwlock_rdlock(&rt->p.map.lock);
	st.mapped = sp->map.pages << PAGE_SHIFT;
	st.entries = sp->map.n;
	pthread_rwlock_unlock(&rt->p.map.lock);
	st.objects = sp->client->nheld;
	st.resident = atomic_load(&sp->client->account->mapped) << PAGE_SHIFT;
	for (unsigned k = 0; k < UP_FAULT_KINDS; k++)
		st.faults[k] = space_faults(&rt->p, sp, k);
	memcpy(answer->bytes, &st, sizeof st);
	return 0;
}

/* Tell what is pending.  0: told, with the last message. */
static int
tell_pending(struct forks *f, struct space *sp, uint32_t serial)
{
	const uint64_t end = now_ns() + (uint64_t)FORK_MS * 1000000;
	const struct client *c = sp->client;
	size_t done = 0;

	while (done < c->npending) {
		struct msg *m = &f->msg;
		int fd[MSG_REGIONS], r;

		*m = (struct msg){ .type = MSG_REGION, .serial = serial };
		for (; done < c->npending && m->n < MSG_REGIONS; m->n++, done++) {
			m->r[m->n] = keeper_region(&f->rt->p, c->pending[done].entry);
			fd[m->n] = m->r[m->n].fd;
		}
		m->left = (uint32_t)(c->npending - done);
		r = msg_send_by(sp->sock, m, fd, m->n, end);
		if (r < 0)
			return r;
	}
	return 0;
}

static int
call(struct forks *f, struct space *sp, int fd)
{
	struct up_runtime *rt = f->rt;
	struct client *c = sp->client;
	const uint32_t serial = f->msg.serial;
	const struct call q = f->msg.call;
	struct msg answer = { .type = MSG_RETURN, .serial = serial };
	sigset_t old;
	int r;

	if (memchr(q.text, '\0', sizeof q.text) == NULL)
		return -EPROTO;
	change_begin(&rt->p, &old);
	if (q.op != CALL_MAPPED)
		abandon(&rt->p, c);
	switch (q.op) {
	case CALL_MAP:
	case CALL_CLONE:
		r = q.op == CALL_MAP ? call_map(rt, sp, &q) : call_clone(rt, sp, &q);
		if (r < 0)
			abandon(&rt->p, c);
		break;
	case CALL_MAPPED:
		r = call_mapped(rt, sp);
		break;
	case CALL_CANCEL:
		r = 0;
		break;
	case CALL_UNMAP:
	case CALL_PROTECT:
	case CALL_ADVISE:
	case CALL_INHERIT:
	case CALL_SYNC:
	case CALL_RESIDENCY:
		r = call_range(rt, sp, &q, &answer);
		break;
	default:
		r = 1;
		break;
	}
	change_end(&rt->p, &old);
	if (r == 0 && (q.op == CALL_MAP || q.op == CALL_CLONE))
		return tell_pending(f, sp, serial);
	if (r == 1) {
		switch (q.op) {
		case CALL_CREATE_ANON:
		case CALL_CREATE_FILE:
		case CALL_CREATE_DEVICE:
		case CALL_OPEN:
		case CALL_SNAPSHOT:
			r = call_object(rt, rt->server, c, &q, fd, &answer.call);
			break;
		case CALL_REMOVE:
			r = check_owner(rt->server, c, q.text);
			if (r == 0)
				r = up_object_remove(rt, q.text);
			if (r == 0)
				remove_owner(rt->server, q.text);
			break;
		case CALL_UNREF:
			unhold(c, q.object);
			r = 0;
			break;
		case CALL_INFO:
			r = held(c, q.object) == NULL
				    ? -EBADF
				    : up_object_info((struct up_object *)held(c, q.object),
						     (void *)answer.bytes,
						     sizeof(struct up_object_stats));
			break;
		case CALL_STATS:
			r = call_stats(rt, sp, &answer);
			break;
		default:
			r = -ENOSYS;
			break;
		}
	}
	answer.status = r;
	return msg_send(sp->sock, &answer, NULL, 0);
}

static int
welcome(struct forks *f, struct space *sp)
{
	struct client *c = sp->client;
	struct msg answer = { .type = MSG_RETURN, .serial = f->msg.serial, .n = PROTOCOL_VERSION };
	const char *name = f->msg.call.text;

	if (c->connected || memchr(name, '\0', MSG_TEXT) == NULL)
		return -EPROTO;
	memset(c->name, 0, sizeof c->name);
	for (size_t i = 0; i + 1 < sizeof c->name && name[i] != '\0'; i++)
		c->name[i] = (char)(isprint((unsigned char)name[i]) ? name[i] : '?');
	if (f->msg.n != PROTOCOL_VERSION) {
		answer.status = -EPROTONOSUPPORT;
		snprintf(answer.call.text, MSG_TEXT,
			 "this daemon speaks version %u of the protocol, and not %u",
			 PROTOCOL_VERSION, f->msg.n);
	}
	answer.call.offset = pmap_uffd_client_features(f->rt->p.pmap);
	answer.call.length = f->rt->memory_limit;
	c->connected = answer.status == 0;
	return msg_send(sp->sock, &answer, NULL, 0);
}

int
client_heard(struct forks *f, struct space *sp, int fd[], size_t *nfd)
{
	struct pager *p = &f->rt->p;
	int r = -EPROTO;

	switch (f->msg.type) {
	case MSG_CONNECT:
		if (*nfd == 0)
			r = welcome(f, sp);
		break;
	case MSG_HELLO:
		if (!sp->client->connected || sp->attached || *nfd != 1)
			break;
		*nfd = 0;
		r = p->pmap->ops->space_attach(p->pmap, sp->shard, fd[0], sp->client->pid);
		if (r == 0) {
			const struct msg ack = { .type = MSG_ACK };

			sp->attached = true;
			atomic_store(&sp->pid, (int)sp->client->pid);
			r = msg_send(sp->sock, &ack, &f->pidfd, 1);
		}
		break;
	case MSG_CALL:
		if (sp->attached && *nfd <= 1)
			r = call(f, sp, *nfd == 1 ? fd[0] : -1);
		break;
	default:
		break;
	}
	return r;
}

/* --- quotas --- */

/* => map.change or map.lock is held */
static struct space *
find(struct pager *p, uint64_t id)
{
	struct space *sp = p->spaces;

	while (sp != NULL && (sp->id != id || sp->client == NULL))
		sp = sp->next;
	return sp;
}

static void
over(void *forks)
{
	keeper_kick(forks);
}

/* True if somebody waits for it.  => map.change is held */
static bool
reduce(struct pager *p, struct account *a, bool *full)
{
	const size_t limit = atomic_load(&a->limit), margin = (size_t)RUN_MAX * p->nservices;
	const size_t room = MAX(limit / 8, margin * 2);

	if (!atomic_load(&a->over))
		return false;
	if (now_ns() < a->again) {
		*full = true;
		return false;
	}
	atomic_store(&a->over, false);
	if (limit != 0 && account_reduce(p, a, limit > room ? limit - room : 0) == 0 &&
	    account_is_full(p, a)) {
		/* Pinned, all of it, or on its way: looking for something else takes time that all clients wait for. */
		a->pause = MIN(MAX(a->pause * 2, PAUSE_MIN), PAUSE_MAX);
		a->again = now_ns() + a->pause;
	} else {
		a->pause = 0;
	}
	*full |= account_is_full(p, a);
	return true;
}

/* Whoever waits since its account had no more comes again, forked children too.  => map.change is held */
static void
wake_turned_away(struct pager *p)
{
	for (const struct space *sp = p->spaces; sp != NULL; sp = sp->next) {
		for (const struct map_entry *e = sp->map.first; e != NULL; e = e->next) {
			if (e->object->account != NULL)
				p->pmap->ops->wake(p->pmap, e->shard, e->start,
						   (e->end - e->start) >> PAGE_SHIFT);
		}
	}
}

bool
clients_reduce(struct up_runtime *rt)
{
	struct server *sv = rt->server;
	struct pager *p = &rt->p;
	bool any = false, full = false;
	sigset_t old;

	if (sv == NULL)
		return false;
	change_begin(p, &old);
	for (const struct space *sp = p->spaces; sp != NULL; sp = sp->next) {
		/* Also of those whose client has gone, and its children have not: they are held to what it was. */
		if (sp->account != NULL)
			any |= reduce(p, sp->account, &full);
	}
	pthread_mutex_lock(&sv->lock);
	for (const struct group *g = sv->groups; g != NULL; g = g->next)
		any |= reduce(p, g->account, &full);
	pthread_mutex_unlock(&sv->lock);
	if (any)
		wake_turned_away(p);
	change_end(p, &old);
	return full;
}

static size_t
pages_of(uint64_t bytes)
{
	return (size_t)MIN(bytes >> PAGE_SHIFT, SIZE_MAX / 2);
}

/* All that clients and groups may keep, at most half of memory.  => map.change is held */
static bool
minimum_fits(struct up_runtime *rt, const struct account *of, size_t minimum)
{
	struct pager *p = &rt->p;
	size_t sum = minimum;

	for (const struct space *sp = p->spaces; sp != NULL; sp = sp->next) {
		if (sp->client != NULL && sp->client->account != of)
			sum += atomic_load(&sp->client->account->minimum);
	}
	pthread_mutex_lock(&rt->server->lock);
	for (const struct group *g = rt->server->groups; g != NULL; g = g->next) {
		if (g->account != of)
			sum += atomic_load(&g->account->minimum);
	}
	pthread_mutex_unlock(&rt->server->lock);
	return sum <= rt->memory_limit / PAGE_SIZE / 2;
}

/* => map.change is held */
static int
set_quota(struct up_runtime *rt, struct account *a, uint64_t limit, uint64_t minimum)
{
	const size_t least = (size_t)RUN_MAX * rt->p.nservices * 4;

	if (limit != 0 && pages_of(limit) < least)
		return -EINVAL;
	if (limit != 0 && minimum > limit)
		return -EINVAL;
	if (!minimum_fits(rt, a, pages_of(minimum)))
		return -ENOSPC;
	atomic_store(&a->limit, pages_of(limit));
	atomic_store(&a->minimum, pages_of(minimum));
	if (limit != 0 && account_is_full(&rt->p, a))
		atomic_store(&a->over, true);
	return 0;
}

int
serve_quota(struct up_runtime *rt, uint64_t id, uint64_t limit, uint64_t minimum)
{
	struct space *sp;
	sigset_t old;
	int r = -ENOENT;

	change_begin(&rt->p, &old);
	sp = find(&rt->p, id);
	if (sp != NULL)
		r = set_quota(rt, sp->client->account, limit, minimum);
	change_end(&rt->p, &old);
	keeper_kick(rt->forks);
	return r;
}

static struct account *
group_account(struct server *sv, const char *name)
{
	struct group *g;

	pthread_mutex_lock(&sv->lock);
	for (g = sv->groups; g != NULL && strcmp(g->name, name) != 0; g = g->next)
		;
	if (g == NULL && (g = calloc(1, sizeof *g)) != NULL) {
		g->account = account_create(NULL);
		if (g->account == NULL) {
			free(g);
			g = NULL;
		}
	}
	if (g != NULL && g->name[0] == '\0') {
		snprintf(g->name, sizeof g->name, "%s", name);
		g->next = sv->groups;
		sv->groups = g;
	}
	pthread_mutex_unlock(&sv->lock);
	return g != NULL ? g->account : NULL;
}

int
serve_group_quota(struct up_runtime *rt, const char *group, uint64_t limit, uint64_t minimum)
{
	struct account *a = group_account(rt->server, group);
	sigset_t old;
	int r;

	if (a == NULL)
		return -ENOMEM;
	change_begin(&rt->p, &old);
	r = set_quota(rt, a, limit, minimum);
	change_end(&rt->p, &old);
	keeper_kick(rt->forks);
	return r;
}

int64_t
serve_evict(struct up_runtime *rt, uint64_t id, uint64_t bytes)
{
	struct space *sp;
	sigset_t old;
	int64_t gone = -ENOENT;

	change_begin(&rt->p, &old);
	sp = find(&rt->p, id);
	if (sp != NULL) {
		struct account *a = sp->client->account;
		const size_t has = atomic_load(&a->mapped);

		gone = (int64_t)account_reduce(&rt->p, a, has - MIN(has, pages_of(bytes)))
		       << PAGE_SHIFT;
	}
	change_end(&rt->p, &old);
	return gone;
}

/* --- the daemon's side --- */

int
serve_start(struct up_runtime *rt, void (*ended)(void *ctx, uint64_t id), void *ctx)
{
	struct server *sv;
	int r;

	if (rt->p.pmap->ops->pool_create == NULL) {
		log_line(
			&rt->p.log, UP_LOG_ERROR,
			"other programs can be served with write-protection of shared memory only (Linux 5.19)");
		return -ENOTSUP;
	}
	sv = calloc(1, sizeof *sv);
	if (sv == NULL)
		return -ENOMEM;
	pthread_mutex_init(&sv->lock, NULL);
	sv->ended = ended;
	sv->ctx = ctx;
	rt->p.space_faults = calloc(SPACES_MAX, sizeof *rt->p.space_faults);
	r = rt->p.space_faults != NULL ? forks_start(rt) : -ENOMEM;
	if (r < 0) {
		pthread_mutex_destroy(&sv->lock);
		free(sv);
		return r;
	}
	rt->server = sv;
	rt->p.over_ctx = rt->forks;
	rt->p.over = over;
	return 0;
}

void
server_free(struct up_runtime *rt)
{
	struct server *sv = rt->server;

	if (sv == NULL)
		return;
	while (sv->owners != NULL) {
		struct owner *o = sv->owners;

		sv->owners = o->next;
		free(o);
	}
	pthread_mutex_destroy(&sv->lock);
	while (sv->groups != NULL) {
		struct group *g = sv->groups;

		sv->groups = g->next;
		account_unref(g->account);
		free(g);
	}
	free(sv);
	rt->server = NULL;
	rt->p.over = NULL;
	free(rt->p.space_faults);
	rt->p.space_faults = NULL;
}

int
serve_accept(struct up_runtime *rt, int sock, const struct serve_limits *limits, uint64_t *id)
{
	struct pager *p = &rt->p;
	struct client *c = calloc(1, sizeof *c);
	struct ucred cred = { .pid = 0 };
	socklen_t len = sizeof cred;
	struct space *sp = NULL;
	size_t nclients = 0;
	sigset_t old;
	int r = 0;

	if (c == NULL) {
		close(sock);
		return -ENOMEM;
	}
	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		r = -errno;
	c->limits = *limits;
	c->pid = cred.pid;
	c->uid = cred.uid;
	c->gid = cred.gid;
	snprintf(c->name, sizeof c->name, "%d", (int)cred.pid);
	c->account = account_create(limits->group != NULL && limits->group[0] != '\0'
					    ? group_account(rt->server, limits->group)
					    : NULL);
	if (c->account == NULL)
		r = -ENOMEM;
	change_begin(p, &old);
	for (const struct space *s = p->spaces; s != NULL; s = s->next)
		nclients++;
	if (r == 0 && nclients >= CHILDREN_MAX)
		r = -EAGAIN;
	if (r == 0) {
		sp = space_make(p);
		r = sp != NULL ? 0 : -ENOMEM;
	}
	if (r == 0) {
		sp->sock = sock;
		sp->client = c;
		sp->account = account_ref(c->account);
		sp->uid = c->uid;
		*id = sp->id;
		space_link(p, sp);
	}
	change_end(p, &old);
	if (r == 0) {
		keeper_kick(rt->forks);
		return 0;
	}
	account_unref(c->account);
	free(c);
	close(sock);
	return r;
}

/* What a client had, when its space is about to end.  => map.change is held */
void
client_end(struct pager *p, struct space *sp)
{
	abandon(p, sp->client);
}

/* And what is left after it.  => no lock is held */
void
client_free(struct up_runtime *rt, struct client *c, uint64_t id)
{
	for (unsigned i = 0; i < c->nobject; i++)
		unhold(c, i + 1);
	free(c->object);
	/* Its children, should there be any, are held to its limit: else that would be who forks and goes.  What it was promised ends. */
	atomic_store(&c->account->minimum, 0);
	account_unref(c->account);
	free(c);
	if (rt->server != NULL && rt->server->ended != NULL)
		rt->server->ended(rt->server->ctx, id);
}

int
serve_end(struct up_runtime *rt, uint64_t id)
{
	struct pager *p = &rt->p;
	const struct space *sp;

	/* Its keeper hears the end of the file. */
	pthread_rwlock_rdlock(&p->map.lock);
	sp = find(p, id);
	if (sp != NULL)
		shutdown(sp->sock, SHUT_RDWR);
	pthread_rwlock_unlock(&p->map.lock);
	return sp != NULL ? 0 : -ENOENT;
}

/* Pages that its own objects have.  => map.lock is held */
static uint64_t
written(const struct space *sp)
{
	const struct object *before = NULL;
	uint64_t n = 0;

	for (const struct map_entry *e = sp->map.first; e != NULL; e = e->next) {
		/* Pieces of one object lie side by side, as a rule. */
		if (e->object != before && e->object->account != NULL)
			n += object_count(e->object);
		before = e->object;
	}
	return n;
}

int
serve_info(struct up_runtime *rt, uint64_t id, struct serve_info *info)
{
	struct pager *p = &rt->p;
	const struct space *sp;

	pthread_rwlock_rdlock(&p->map.lock);
	sp = find(p, id);
	if (sp != NULL) {
		const struct client *c = sp->client;

		*info = (struct serve_info){
			.id = id,
			.pid = c->pid,
			.uid = c->uid,
			.gid = c->gid,
			.attached = sp->attached,
			.mapped = sp->map.pages << PAGE_SHIFT,
			.regions = sp->map.n,
			.objects = c->nheld,
			.resident = atomic_load(&c->account->mapped) << PAGE_SHIFT,
			.limit = atomic_load(&c->account->limit) << PAGE_SHIFT,
			.minimum = atomic_load(&c->account->minimum) << PAGE_SHIFT,
		};
		info->swapped = written(sp) << PAGE_SHIFT;
		info->swapped -= MIN(info->swapped, info->resident);
		memcpy(info->name, c->name, sizeof info->name);
		for (unsigned k = 0; k < UP_FAULT_KINDS; k++)
			info->faults[k] = space_faults(p, sp, k);
	}
	pthread_rwlock_unlock(&p->map.lock);
	return sp != NULL ? 0 : -ENOENT;
}

int
serve_ranges(struct up_runtime *rt, uint64_t id, uintptr_t from, struct serve_range range[],
	     size_t n)
{
	struct pager *p = &rt->p;
	struct space *sp;
	size_t i = 0;

	pthread_rwlock_rdlock(&p->map.lock);
	sp = find(p, id);
	for (const struct map_entry *e = sp != NULL ? map_first_from(&sp->map, from) : NULL;
	     e != NULL && i < n; e = e->next, i++)
		range[i] = (struct serve_range){
			.start = e->start,
			.length = e->end - e->start,
			.object = e->object->id,
			.prot = e->prot,
			.shared = (e->flags & UP_SHARED) != 0,
		};
	pthread_rwlock_unlock(&p->map.lock);
	return sp != NULL ? (int)i : -ENOENT;
}

int
serve_residency(struct up_runtime *rt, uint64_t id, uintptr_t va, size_t npages,
		unsigned char vec[])
{
	struct pager *p = &rt->p;
	struct space *sp;
	sigset_t old;
	int r = -ENOENT;

	change_begin(p, &old);
	sp = find(p, id);
	if (sp != NULL)
		r = npages > 0 && map_covers(&sp->map, va, va + (npages << PAGE_SHIFT)) ? 0
											: -ENOMEM;
	if (r == 0)
		map_residency(p, &sp->map, va, va + (npages << PAGE_SHIFT), vec);
	change_end(p, &old);
	return r;
}
