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
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"
#include "cow.h"
#include "descriptor.h"
#include "dump.h"
#include "keeper.h"
#include "pager/source.h"
#include "serve.h"
#include "store.h"

#define ADDRESS_END ((uint64_t)1 << 47)
#define DUMP_NS 2000000u /* for lines of one answer, which count pages: other clients wait */
#define NAMES_MAX 256u	 /* of objects of one user, which outlive those who made them */

/* --- objects --- */

static struct object *
held(const struct client *c, uint64_t id)
{
	const struct handle *table = c->object.base;

	return id > 0 && id <= c->object.n ? atomic_load(&table[id - 1].object) : NULL;
}

/* => it is held */
static bool
held_readonly(const struct client *c, uint64_t id)
{
	return ((struct handle *)c->object.base)[id - 1].readonly;
}

/* The reference is the client's from here on, or given back.  Its number, 0: it has as many as it gets. */
static uint64_t
hold(struct client *c, struct object *o, bool readonly)
{
	struct handle *table = c->object.base;
	size_t i = 0;

	while (i < c->object.n && atomic_load(&table[i].object) != NULL)
		i++;
	if (i == c->object.max ||
	    (i == c->object.n && wired_array_grow_wait(&c->object, i + 1) < 0)) {
		up_object_unref((struct up_object *)o);
		return 0;
	}
	/* First: a successor finds no object with more rights than it was opened with. */
	table[i].readonly = readonly;
	atomic_store(&table[i].object, o);
	atomic_store(&c->nhandles, c->object.n);
	c->nheld++;
	return i + 1;
}

static void
unhold(struct client *c, uint64_t id)
{
	struct object *o = held(c, id);

	if (o == NULL)
		return;
	atomic_store(&((struct handle *)c->object.base)[id - 1].object, NULL);
	c->nheld--;
	up_object_unref((struct up_object *)o);
}

/* A new object of the client's: nothing maps it yet.  => map.change is held */
static void
own(struct client *c, struct object *o)
{
	assert(o != NULL);
	if (o->pool != 0)
		return;
	o->apart = true;
	if (o->account == NULL)
		object_pays(o, account_ref(c->account));
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

/* Of the peer of a connection, as it was when it connected: a successor finds the same there. */
static bool
peer_in_group(int sock, gid_t gid)
{
	gid_t few[64], *groups = few;
	socklen_t len = sizeof few;
	bool in = false;

	/* ERANGE: there are more, and len says how much room they take. */
	if (getsockopt(sock, SOL_SOCKET, SO_PEERGROUPS, few, &len) < 0) {
		groups = errno == ERANGE ? malloc(len) : NULL;
		if (groups == NULL)
			return false;
		if (getsockopt(sock, SOL_SOCKET, SO_PEERGROUPS, groups, &len) < 0)
			len = 0;
	}
	for (size_t i = 0; i < len / sizeof groups[0] && !in; i++)
		in = groups[i] == gid;
	if (groups != few)
		free(groups);
	return in;
}

static bool
is_owner(const struct owner *o, const struct client *c)
{
	return c->uid == 0 || o->uid == c->uid;
}

/* 0, or why not: -ENOENT; -EACCES: it may not read.  *readonly: it may do no more than that.  => the keeper's thread */
static int
may_open_name(struct server *sv, const struct space *sp, const char *name, bool *readonly)
{
	const struct client *c = sp->client;
	const struct owner *o = *find_owner(sv, name);
	uint32_t bits;

	/* What the daemon itself has is nobody's. */
	if (o == NULL)
		return -ENOENT;
	if (c->uid == 0)
		bits = 6;
	else if (o->uid == c->uid)
		bits = o->mode >> 6;
	else if (o->gid == c->gid || peer_in_group(sp->sock, o->gid))
		bits = o->mode >> 3;
	else
		bits = o->mode;
	*readonly = (bits & 2) == 0;
	return (bits & 4) != 0 ? 0 : -EACCES;
}

/* 0; -ENOENT; -EACCES: the name is somebody else's.  => the keeper's thread */
static int
check_owner(struct server *sv, const struct client *c, const char *name)
{
	const struct owner *o = *find_owner(sv, name);

	return o == NULL ? -ENOENT : is_owner(o, c) ? 0 : -EACCES;
}

static unsigned
names_of(const struct server *sv, uid_t uid)
{
	unsigned n = 0;

	for (const struct owner *o = sv->owners; o != NULL; o = o->next)
		n += o->uid == uid;
	return n;
}

static int
add_owner(struct server *sv, const struct client *c, const char *name, uint32_t mode)
{
	struct owner *o;

	if ((mode & ~MODE_BITS) != 0)
		return -EINVAL;
	if (names_of(sv, c->uid) >= NAMES_MAX)
		return -EDQUOT;
	o = zone_alloc(&sv->owner_zone, ZONE_WAIT);
	if (o == NULL)
		return -ENOMEM;
	o->uid = c->uid;
	o->gid = c->gid;
	o->mode = mode;
	o->object = NULL;
	snprintf(o->name, sizeof o->name, "%s", name);
	pthread_mutex_lock(&sv->lock);
	o->next = sv->owners;
	sv->owners = o;
	pthread_mutex_unlock(&sv->lock);
	return 0;
}

/* => the name has an owner: only the keeper, who asks, adds and removes them */
static void
set_owned(struct server *sv, const char *name, struct object *o)
{
	struct owner *owner;

	pthread_mutex_lock(&sv->lock);
	owner = *find_owner(sv, name);
	assert(owner != NULL);
	owner->object = o;
	pthread_mutex_unlock(&sv->lock);
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
	zone_free(&sv->owner_zone, o);
}

/* As chmod() and chown(): the mode is the owner's to change, the group as long as he is in the new one, and root gives a name to somebody else. */
static int
call_access(struct server *sv, const struct space *sp, const struct call *q)
{
	const uid_t uid = (uid_t)q->addr;
	const gid_t gid = (gid_t)q->length;
	const struct client *c = sp->client;
	struct owner *o;
	int r;

	if ((q->flags & ~(ACCESS_MODE | ACCESS_UID | ACCESS_GID)) != 0 ||
	    ((q->flags & ACCESS_MODE) && (q->mode & ~MODE_BITS) != 0) ||
	    ((q->flags & ACCESS_UID) && q->addr >= UINT32_MAX) ||
	    ((q->flags & ACCESS_GID) && q->length >= UINT32_MAX))
		return -EINVAL;
	r = check_owner(sv, c, q->text);
	if (r < 0)
		return r;
	o = *find_owner(sv, q->text);
	if (c->uid != 0 && (q->flags & ACCESS_UID) && uid != o->uid)
		return -EPERM;
	if (c->uid != 0 && (q->flags & ACCESS_GID) && gid != o->gid && gid != c->gid &&
	    !peer_in_group(sp->sock, gid))
		return -EPERM;
	if ((q->flags & ACCESS_UID) && uid != o->uid && names_of(sv, uid) >= NAMES_MAX)
		return -EDQUOT;
	pthread_mutex_lock(&sv->lock);
	if (q->flags & ACCESS_GID)
		o->gid = gid;
	if (q->flags & ACCESS_MODE)
		o->mode = q->mode;
	if (q->flags & ACCESS_UID)
		o->uid = uid;
	pthread_mutex_unlock(&sv->lock);
	return 0;
}

/* --- files --- */

int
server_note_file(struct up_runtime *rt, const struct object *o, const struct served_file *what,
		 int fd)
{
	struct server *sv = rt->server;
	struct served_file *f;

	if (rt->p.store == NULL)
		return 0;
	f = zone_alloc(&sv->file_zone, ZONE_WAIT);
	if (f == NULL)
		return -ENOMEM;
	*f = *what;
	stores_in_order();
	f->object = o;
	store_keep(rt->p.store, "file", o->id, NULL, fd);
	pthread_mutex_lock(&sv->lock);
	f->next = sv->files;
	sv->files = f;
	pthread_mutex_unlock(&sv->lock);
	return 0;
}

/* Of an object that a client has asked for. */
static int
add_file(struct up_runtime *rt, const struct object *o, const struct call *q, int fd)
{
	/* As long as it is now: what is added to the file later is not in the object, and what is cut off is missed page by page. */
	const struct served_file what = {
		.op = q->op,
		.flags = q->flags,
		.offset = q->offset,
		.length = o->source->bytes,
	};

	return server_note_file(rt, o, &what, fd);
}

void
server_forget(struct up_runtime *rt, const struct object *o)
{
	struct server *sv = rt->server;
	struct served_file **link, *f;

	if (sv == NULL)
		return;
	pthread_mutex_lock(&sv->lock);
	for (link = &sv->files; *link != NULL && (*link)->object != o; link = &(*link)->next)
		;
	f = *link;
	if (f != NULL)
		*link = f->next;
	pthread_mutex_unlock(&sv->lock);
	if (f == NULL)
		return;
	f->object = NULL;
	store_drop(rt->p.store, "file", o->id, NULL);
	if (f->op == GUEST_SOURCE)
		store_drop(rt->p.store, "file", o->id, "less");
	zone_free(&sv->file_zone, f);
}

/* --- calls --- */

/* True if so many descriptors more may be held for the client.  => map.change is held */
static bool
has_fds(const struct pager *p, const struct client *c, size_t more)
{
	size_t n = 2 + more; /* its socket and its userfaultfd */
	struct log_about about;

	if (c->limits.fds == 0)
		return true;
	for (const struct object *o = p->objects; o != NULL; o = o->next) {
		if (o->account == c->account)
			n += (o->pool != 0) + (o->source != NULL);
	}
	if (n <= c->limits.fds)
		return true;
	log_line_about(&p->log, client_about(c, &about), UP_LOG_WARNING,
		       "client %s, process %d: refused: %zu descriptors, and %u are allowed",
		       c->name, (int)c->pid, n, c->limits.fds);
	return false;
}

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

int
client_room(struct up_runtime *rt, const struct space *sp, uint64_t addr, uint64_t length,
	    size_t regions, uint64_t nswap, char *why)
{
	const struct client *c = sp->client;
	struct map *m = (struct map *)(uintptr_t)&sp->map;
	const uint64_t mapped = (sp->map.pages << PAGE_SHIFT) + length;
	const struct map_entry *e;

	if (!valid_range(addr, length))
		return -EINVAL;
	if (sp->map.n + regions > c->limits.regions)
		return client_over_limit(rt, c, why, "%zu regions, and %u are allowed (regions)",
					 sp->map.n + regions, c->limits.regions);
	if (c->limits.mapped != 0 && mapped > c->limits.mapped)
		return client_over_limit(rt, c, why,
					 "%llu MiB mapped, and %llu are allowed (mapped)",
					 mib(mapped >> PAGE_SHIFT),
					 mib(c->limits.mapped >> PAGE_SHIFT));
	e = map_first_from(m, addr);
	if (e != NULL && e->start < addr + length)
		return -EEXIST;
	return client_swap(rt, c, nswap, why);
}

/* What a mapping of `o`, or NULL, is promised as it is made; see object_to_map(). */
static uint64_t
swap_of_map(const struct up_runtime *rt, const struct object *o, unsigned flags, uint64_t npages)
{
	const bool noreserve = o != NULL && o->source == NULL
				       ? o->noreserve
				       : rt->overcommit || (flags & UP_NORESERVE) != 0;

	return noreserve || (o != NULL && (flags & UP_SHARED) != 0) ? 0 : npages;
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
call_map(struct up_runtime *rt, struct space *sp, const struct call *q, char *why)
{
	struct client *c = sp->client;
	struct pager *p = &rt->p;
	unsigned flags = q->flags & ~(unsigned)UP_FIXED;
	struct object *o = held(c, q->object), *mapped;
	uint64_t first = q->offset >> PAGE_SHIFT;
	int r = client_room(rt, sp, q->addr, q->length, 1,
			    swap_of_map(rt, o, flags, q->length >> PAGE_SHIFT), why);

	if (r == 0 && q->object != 0 && o == NULL)
		r = -EBADF;
	if (r == 0 && o != NULL && (flags & UP_SHARED) != 0 && held_readonly(c, q->object)) {
		snprintf(why, MSG_TEXT,
			 "the object may be read only: UP_PRIVATE maps a copy of it as it is now");
		r = -EACCES;
	}
	/* Each is in a pool: that it may be mapped in several places costs nothing. */
	if (flags & UP_SHARED)
		flags |= UP_MULTI;
	if (r == 0 && (o == NULL || o->pool == 0) && !has_fds(p, c, 1))
		r = -EMFILE;
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
call_clone(struct up_runtime *rt, struct space *sp, const struct call *q, char *why)
{
	const uint64_t start = q->addr, end = start + q->length;
	struct client *c = sp->client;
	struct pager *p = &rt->p;
	const struct map_entry *e;
	uintptr_t to = q->offset;
	uint64_t nswap = 0;
	size_t n = 0;
	int r;

	if (!valid_range(start, q->length))
		return -EINVAL;
	r = check_covered(rt, &sp->map, "up_clone", start, end);
	for (e = map_first_from(&sp->map, start); r == 0 && e != NULL && e->start < end;
	     e = e->next, n++) {
		if (!e->object->noreserve)
			nswap += (MIN(end, e->end) - MAX(start, e->start)) >> PAGE_SHIFT;
	}
	if (r == 0)
		r = client_room(rt, sp, to, q->length, n, nswap, why);
	if (r == 0 && !has_fds(p, c, n))
		r = -EMFILE;
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
	int r = c->npending > 0 ? 0 : -ERESTART; /* a predecessor had prepared it, if anybody has */

	for (size_t i = 0; i < c->npending; i++) {
		const struct object *from = c->pending[i].from;

		parts |= from != NULL;
		/* Another client may have done that meanwhile. */
		if (r == 0 && from != NULL && wired_entry(p, from, 0, from->npages) != NULL)
			r = -EBUSY;
	}
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
		/* Of what is private there is one mapping, and its pages are promised to that. */
		if (how == UP_INHERIT_SHARE && (e->flags & UP_SHARED) == 0)
			r = -ENOTSUP;
	}
	if (r == 0)
		r = spare_alloc(&rt->p, &sp->map, start, end, spare);
	if (r == 0)
		entries_set(&rt->p, &sp->map, start, end, spare, set_inherit, &how);
	return r;
}

/* The client touches the pages itself: here it is said whether they can all be in memory, and reads are begun. */
static int
call_prefault(struct up_runtime *rt, struct space *sp, const struct call *q)
{
	const uintptr_t start = q->addr, end = start + q->length;
	const size_t limit = atomic_load(&sp->account->limit);
	int r;

	if (q->flags > 1)
		return -EINVAL;
	r = check_prefault(rt, &sp->map, "up_prefault", start, end, q->flags != 0);
	if (r < 0)
		return r;
	/* What an account is given back to when it is full; what it has more it would lose to the rest of the range. */
	if (limit != 0 && q->length >> PAGE_SHIFT > account_room(&rt->p, limit))
		return -ENOMEM;
	return advise_range(rt, &sp->map, start, end, UP_ADVICE_WILLNEED);
}

/*
 * Nobody waits for pages here: whoever asks touches what is missing himself, and comes again.  So one call takes a piece, which
 * stays there while the next one comes in.
 */
static int
call_wire(struct up_runtime *rt, struct space *sp, const struct call *q)
{
	const uintptr_t start = q->addr, end = start + q->length;
	struct client *c = sp->client;
	uint64_t more;
	int r;

	if (q->offset == 0 || (q->flags & ~WIRE_LOOK) != 0)
		return -EINVAL;
	/* It was asked before, of a predecessor perhaps, and the answer got lost. */
	if (q->offset == c->wiring.done)
		return 0;
	if (q->op == CALL_UNWIRE)
		return unwire_entries(rt, &sp->map, start, end, &c->wiring, q->offset);
	if ((q->flags & WIRE_LOOK) == 0 && q->length >> PAGE_SHIFT > WIRE_PAGES)
		return -EINVAL;
	r = check_wire(rt, &sp->map, start, end, &more);
	if (r == 0)
		r = client_may_wire(rt, sp, more);
	if (r < 0 || (q->flags & WIRE_LOOK))
		return r;
	r = wire_entries(rt, &sp->map, start, end, &c->wiring, q->offset);
	if (r == -EINPROGRESS)
		range_willneed(&rt->p, sp->shard, start, end);
	return r;
}

int
client_unmap(struct up_runtime *rt, struct space *sp, const struct call *q)
{
	return unmap_range(&rt->p, &sp->map, "up_unmap", q->addr, q->addr + q->length);
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
	case CALL_PROTECT:
		if (q->prot & ~(PROT_READ | PROT_WRITE))
			return -EINVAL;
		return protect_entries(rt, &sp->map, start, end, q->prot);
	case CALL_ADVISE:
		if (q->flags > UP_ADVICE_COLD)
			return -EINVAL;
		return advise_range(rt, &sp->map, start, end, (enum up_advice)q->flags);
	case CALL_PREFAULT:
		return call_prefault(rt, sp, q);
	case CALL_WIRE:
	case CALL_UNWIRE:
		return call_wire(rt, sp, q);
	case CALL_INHERIT:
		return call_inherit(rt, sp, q);
	default:
		if (q->length >> PAGE_SHIFT > MSG_BYTES)
			return -EINVAL;
		r = check_covered(rt, &sp->map, "up_residency", start, end);
		if (r == 0)
			map_residency(&rt->p, &sp->map, start, end, answer->bytes);
		return r;
	}
}

/* 0, or why an object may not be promised its swap.  => map.change is not held */
static int
may_promise(struct up_runtime *rt, const struct client *c, const struct call *q, char *why)
{
	const struct object *o = q->op == CALL_SNAPSHOT ? held(c, q->object) : NULL;
	const uint64_t npages =
		o != NULL ? o->npages : round_up(q->length, PAGE_SIZE) >> PAGE_SHIFT;
	struct server *sv = rt->server;
	uint64_t n = npages;
	sigset_t old;
	int r = 0;

	if (o != NULL ? o->noreserve : rt->overcommit || (q->flags & UP_NORESERVE) != 0)
		return 0;
	change_begin(&rt->p, &old);
	if (o != NULL || q->text[0] == '\0') {
		r = client_swap(rt, c, npages, why);
	} else if (c->limits.swap != 0) {
		/* What has a name is in nobody's account: a user's names together have as much as one client. */
		pthread_mutex_lock(&sv->lock);
		for (const struct owner *of = sv->owners; of != NULL; of = of->next)
			n += of->uid == c->uid && of->object != NULL ? of->object->reserved : 0;
		pthread_mutex_unlock(&sv->lock);
		if (n > c->limits.swap >> PAGE_SHIFT)
			r = client_over_limit(
				rt, c, why,
				"%llu MiB of swap promised to names of user %u, and %llu are allowed (swap)",
				mib(n), (unsigned)c->uid, mib(c->limits.swap >> PAGE_SHIFT));
	}
	change_end(&rt->p, &old);
	return r;
}

/* => map.change is not held */
static bool
may_open(struct up_runtime *rt, const struct client *c)
{
	sigset_t old;
	bool ok;

	change_begin(&rt->p, &old);
	ok = has_fds(&rt->p, c, 1);
	change_end(&rt->p, &old);
	return ok;
}

/* A new object, or one that has a name.  => map.change is not held, as for all calls on objects */
static int
call_object(struct up_runtime *rt, struct server *sv, const struct space *sp, const struct call *q,
	    int fd, struct call *answer)
{
	struct client *c = sp->client;
	bool readonly = false;
	struct account *account = NULL;
	struct up_object *o = NULL;
	struct up_object_stats info;
	sigset_t old;
	int r;

	/* Before there is one, with a name perhaps, that nobody would have in hand. */
	if (c->nheld >= c->limits.objects)
		return -EDQUOT;
	switch (q->op) {
	case CALL_CREATE_ANON:
		r = may_promise(rt, c, q, answer->text);
		if (r < 0)
			return r;
		if (q->text[0] == '\0') {
			r = up_object_create_anon(rt, q->length, q->flags, &o);
			break;
		}
		r = add_owner(sv, c, q->text, q->mode);
		if (r < 0)
			return r;
		r = up_object_create_named(rt, q->text, q->length, q->flags, &o);
		if (r < 0)
			remove_owner(sv, q->text);
		else
			set_owned(sv, q->text, (struct object *)o);
		break;
	case CALL_CREATE_FILE:
	case CALL_CREATE_DEVICE:
		if (!may_open(rt, c))
			return -EMFILE;
		r = q->op == CALL_CREATE_FILE
			    ? up_object_create_file(rt, fd, q->offset, q->length, q->flags, &o)
			    : up_object_create_device(rt, fd, q->flags, &o);
		if (r == 0 && (r = add_file(rt, (struct object *)o, q, fd)) < 0)
			up_object_unref(o);
		break;
	case CALL_OPEN:
		if ((q->flags & ~OPEN_OWN) != 0)
			return -EINVAL;
		r = may_open_name(sv, sp, q->text, &readonly);
		/* As if it were made now, whatever its mode is. */
		if (r != -ENOENT && (q->flags & OPEN_OWN)) {
			const struct owner *own = *find_owner(sv, q->text);

			r = own != NULL && own->uid == c->uid ? 0 : -EEXIST;
			readonly = false;
		}
		if (r == 0)
			r = up_object_open(rt, q->text, &o);
		break;
	default:
		if (held(c, q->object) == NULL)
			return -EBADF;
		r = may_promise(rt, c, q, answer->text);
		if (r == 0)
			r = up_object_snapshot(rt, (struct up_object *)held(c, q->object), &o);
		break;
	}
	if (r < 0)
		return r;
	/* It counts what is in its file all the same. */
	if (q->op == CALL_CREATE_ANON && q->text[0] != '\0')
		account = account_create(&rt->p.zones, NULL);
	change_begin(&rt->p, &old);
	/* What has a name outlives its client, and is nobody's. */
	if ((q->op != CALL_CREATE_ANON && q->op != CALL_OPEN) || q->text[0] == '\0')
		own(c, (struct object *)o);
	else if (((struct object *)o)->pool == 0)
		((struct object *)o)->apart = true;
	if (account != NULL) {
		atomic_store(&account->swap_limit, pages_of(c->limits.swap));
		object_pays((struct object *)o, account);
	}
	change_end(&rt->p, &old);
	r = up_object_info(o, &info, sizeof info);
	answer->length = info.size;
	answer->prot = PROT_READ | (readonly || ((struct object *)o)->readonly ? 0 : PROT_WRITE);
	answer->object = hold(c, (struct object *)o, readonly);
	return answer->object == 0 ? -EDQUOT : r;
}

static int
call_stats(struct up_runtime *rt, struct space *sp, struct msg *answer)
{
	struct up_stats st = { .limit = rt->memory_limit, .limit_max = rt->memory_most };
	const struct space_tally *const tally = client_tally(&rt->p, sp);

	static_assert(sizeof st <= MSG_BYTES, "up_stats fits a message");
	pthread_rwlock_rdlock(&rt->p.map.lock);
	st.mapped = sp->map.pages << PAGE_SHIFT;
	st.entries = sp->map.n;
	st.wired = sp->map.wired << PAGE_SHIFT;
	st.resident = atomic_load(&sp->client->account->mapped) << PAGE_SHIFT;
	st.swapped = client_swapped(sp, st.resident);
	pthread_rwlock_unlock(&rt->p.map.lock);
	st.lost = client_lost(&rt->p, sp);
	st.used = st.resident;
	st.objects = sp->client->nheld;
	st.fault_sigbus = atomic_load(&tally->sigbus);
	for (unsigned k = 0; k < UP_FAULT_KINDS; k++) {
		tally_sum(&tally->latency[k], 1, &st.latency[k]);
		st.faults[k] = st.latency[k].count;
	}
	st.fault_retries = atomic_load(&tally->again);
	st.fault_exists = atomic_load(&tally->exists);
	st.fault_waits = atomic_load(&tally->deferred);
	memcpy(answer->bytes, &st, sizeof st);
	return 0;
}

static int
call_info(const struct client *c, const struct call *q, struct msg *answer)
{
	struct up_object *o = (struct up_object *)held(c, q->object);
	struct up_object_stats info;
	int r;

	static_assert(sizeof info <= MSG_BYTES, "up_object_stats fits a message");
	r = o == NULL ? -EBADF : up_object_info(o, &info, sizeof info);
	if (r < 0)
		return r;
	answer->n = pager_number(info.pager);
	info.pager = NULL;
	memcpy(answer->bytes, &info, sizeof info);
	return 0;
}

/* => map.change is not held */
static void
call_dump(struct up_runtime *rt, const struct space *sp, const struct call *q, struct msg *answer)
{
	struct dump_line line = { .space = q->object,
				  .serial = q->offset,
				  .depth = q->flags,
				  .start = q->addr,
				  .end = q->addr + q->length };
	const uint64_t until = now_ns() + DUMP_NS;
	size_t used = 0, n;
	sigset_t old;
	bool more;

	do {
		change_begin(&rt->p, &old);
		more = dump_next(&rt->p, sp, &line);
		change_end(&rt->p, &old);
		n = more ? dump_pack(answer->bytes + used, sizeof answer->bytes - used, &line) : 0;
		used += n;
		answer->n += n > 0;
	} while (n > 0 && now_ns() < until);
	answer->left = more;
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
	if (q.op == CALL_SYNC || q.op == CALL_UNMAP) {
		change_end(&rt->p, &old);
		if (!valid_range(q.addr, q.length) ||
		    (q.op == CALL_SYNC && q.flags > UP_SYNC_INVALIDATE))
			answer.status = -EINVAL;
		else
			answer.status = slow_begin(rt, sp, &q, serial);
		return answer.status == 0 ? 1 : msg_send_by(sp->sock, &answer, NULL, 0, 0);
	}
	switch (q.op) {
	case CALL_MAP:
	case CALL_CLONE:
		r = q.op == CALL_MAP ? call_map(rt, sp, &q, answer.call.text)
				     : call_clone(rt, sp, &q, answer.call.text);
		if (r < 0)
			abandon(&rt->p, c);
		break;
	case CALL_MAPPED:
		r = call_mapped(rt, sp);
		break;
	case CALL_CANCEL:
		r = 0;
		break;
	case CALL_PROTECT:
	case CALL_ADVISE:
	case CALL_PREFAULT:
	case CALL_WIRE:
	case CALL_UNWIRE:
	case CALL_INHERIT:
	case CALL_RESIDENCY:
		r = call_range(rt, sp, &q, &answer);
		break;
	default:
		r = 1;
		break;
	}
	change_end(&rt->p, &old);
	if (r == 0 && (q.op == CALL_MAP || q.op == CALL_CLONE))
		return keeper_tell(f, sp, serial);
	if (r == 1) {
		switch (q.op) {
		case CALL_CREATE_ANON:
		case CALL_CREATE_FILE:
		case CALL_CREATE_DEVICE:
		case CALL_OPEN:
		case CALL_SNAPSHOT:
			r = call_object(rt, rt->server, sp, &q, fd, &answer.call);
			break;
		case CALL_REMOVE:
			r = check_owner(rt->server, c, q.text);
			/* First: the object may go with its name. */
			if (r == 0)
				set_owned(rt->server, q.text, NULL);
			if (r == 0)
				r = up_object_remove(rt, q.text);
			if (r == 0)
				remove_owner(rt->server, q.text);
			break;
		case CALL_ACCESS:
			r = call_access(rt->server, sp, &q);
			break;
		case CALL_UNREF:
			unhold(c, q.object);
			r = 0;
			break;
		case CALL_INFO:
			r = call_info(c, &q, &answer);
			break;
		case CALL_DUMP:
			call_dump(rt, sp, &q, &answer);
			r = 0;
			break;
		case CALL_TRACE:
			r = client_trace(rt, sp, &q, &answer);
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
	/* One at a time: whose queue is full does not read, and is not waited for. */
	return msg_send_by(sp->sock, &answer, NULL, 0, 0);
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
	return msg_send_by(sp->sock, &answer, NULL, 0, 0);
}

int
client_vet(struct forks *f, const struct space *sp, const int fd[], size_t *nfd)
{
	const struct client *c = sp->client;
	const struct msg *m = &f->msg;
	struct msg answer = { .type = MSG_RETURN, .serial = m->serial };
	struct log_about about = { .pid = (int)atomic_load(&sp->pid) };
	bool harmful[MSG_REGIONS] = { false };

	for (size_t i = 0; i < *nfd; i++) {
		const int r = descriptor_vet(fd[i], c != NULL ? c->pid : atomic_load(&sp->pid));

		harmful[i] = r < 0 && (r != -ENOTSUP || c == NULL || !c->limits.fuse);
		answer.status = harmful[i] ? r : answer.status;
	}
	if (answer.status == 0)
		return 0;
	for (size_t i = 0; i < *nfd; i++) {
		if (harmful[i])
			descriptor_drop(fd[i]);
		else
			close(fd[i]);
	}
	*nfd = 0;
	if (c != NULL)
		client_about(c, &about);
	log_line_about(&f->rt->p.log, &about, UP_LOG_WARNING,
		       "client %s, process %d: refused: a descriptor %s", c != NULL ? c->name : "",
		       c != NULL ? (int)c->pid : atomic_load(&sp->pid),
		       answer.status == -ENOTSUP
			       ? "of a file system that a process answers for (FUSE)"
		       : answer.status == -EXDEV
			       ? "of a file that is mounted neither here nor where the client is"
			       : strerrorname_np(-answer.status));
	if (m->type != MSG_CALL || c == NULL || !sp->attached)
		return -EPROTO;
	return msg_send_by(sp->sock, &answer, NULL, 0, 0) < 0 ? -EPROTO : 1;
}

int
client_heard(struct forks *f, struct space *sp, int fd[], size_t *nfd)
{
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
		r = keeper_attach(f, sp, fd[0], sp->client->pid);
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

struct space *
client_find(struct pager *p, uint64_t id)
{
	struct space *sp = p->spaces;

	while (sp != NULL && (sp->id != id || sp->client == NULL))
		sp = sp->next;
	return sp;
}

/* --- the daemon's side --- */

int
serve_start(struct up_runtime *rt, void (*ended)(void *ctx, uint64_t id, bool guest), void *ctx)
{
	struct server *sv;
	sigset_t old;
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
	zone_init(&sv->client_zone, &rt->p.arena, "client", sizeof(struct client), NULL, NULL);
	zone_init(&sv->owner_zone, &rt->p.arena, "owner", sizeof(struct owner), NULL, NULL);
	zone_init(&sv->file_zone, &rt->p.arena, "file", sizeof(struct served_file), NULL, NULL);
	slow_init(rt, sv);
	sv->ended = ended;
	sv->ctx = ctx;
	change_begin(&rt->p, &old);
	r = space_tallies(&rt->p);
	change_end(&rt->p, &old);
	/* Before there is a keeper, who looks. */
	rt->server = sv;
	if (r == 0)
		r = forks_start(rt);
	if (r < 0) {
		rt->server = NULL;
		zone_fini(&sv->slow_zone);
		zone_fini(&sv->file_zone);
		zone_fini(&sv->owner_zone);
		zone_fini(&sv->client_zone);
		pthread_mutex_destroy(&sv->lock);
		free(sv);
		return r;
	}
	rt->p.over_ctx = rt->forks;
	rt->p.over = clients_over;
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
		zone_free(&sv->owner_zone, o);
	}
	zone_fini(&sv->slow_zone);
	zone_fini(&sv->file_zone);
	zone_fini(&sv->owner_zone);
	zone_fini(&sv->client_zone);
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
}

struct client *
client_alloc(struct up_runtime *rt, const struct serve_limits *limits)
{
	struct client *c = zone_alloc(&rt->server->client_zone, ZONE_WAIT);

	if (c == NULL)
		return NULL;
	memset(c, 0, sizeof *c);
	c->limits = *limits;
	c->limits.group = NULL;
	if (c->limits.hello_ms == 0)
		c->limits.hello_ms = HELLO_MS;
	if (wired_array_init(&c->object, &rt->p.arena, sizeof(struct handle), limits->objects) <
	    0) {
		zone_free(&rt->server->client_zone, c);
		return NULL;
	}
	return c;
}

void
client_discard(struct up_runtime *rt, struct client *c)
{
	guest_free(c->guest);
	wired_array_fini(&c->object);
	account_unref(c->account);
	zone_free(&rt->server->client_zone, c);
}

int
client_create(struct up_runtime *rt, const struct serve_limits *limits, pid_t pid, uid_t uid,
	      gid_t gid, const char *name, struct client **out)
{
	struct client *c = client_alloc(rt, limits);

	if (c == NULL)
		return -ENOMEM;
	c->pid = pid;
	c->uid = uid;
	c->gid = gid;
	snprintf(c->name, sizeof c->name, "%s", name);
	c->account = server_account(rt, limits->group, 0, 0);
	if (c->account == NULL) {
		client_discard(rt, c);
		return -ENOMEM;
	}
	atomic_store(&c->account->swap_limit, pages_of(limits->swap));
	if (limits->inflight != 0)
		atomic_store(&c->account->reads_max,
			     (unsigned)MAX(MIN(limits->inflight >> PAGE_SHIFT, UINT32_MAX / 2), 1));
	*out = c;
	return 0;
}

int
client_space(struct pager *p, struct client *c, int sock, struct space **out)
{
	size_t nclients = 0;
	struct space *sp;

	for (const struct space *s = p->spaces; s != NULL; s = s->next)
		nclients++;
	if (nclients >= CHILDREN_MAX)
		return -EAGAIN;
	sp = space_make(p);
	if (sp == NULL)
		return -ENOMEM;
	sp->sock = sock;
	sp->client = c;
	sp->account = account_ref(c->account);
	sp->uid = c->uid;
	sp->thaw_at = now_ns() + (uint64_t)c->limits.hello_ms * 1000000;
	space_link(p, sp);
	*out = sp;
	return 0;
}

int
serve_accept(struct up_runtime *rt, int sock, const struct serve_limits *limits, uint64_t *id)
{
	struct pager *p = &rt->p;
	struct ucred cred = { .pid = 0 };
	socklen_t len = sizeof cred;
	struct client *c = NULL;
	struct space *sp;
	char name[16];
	sigset_t old;
	int r = 0;

	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		r = -errno;
	snprintf(name, sizeof name, "%d", (int)cred.pid);
	if (r == 0)
		r = client_create(rt, limits, cred.pid, cred.uid, cred.gid, name, &c);
	if (r == 0) {
		change_begin(p, &old);
		r = client_quota(rt, c);
		if (r == 0)
			r = client_space(p, c, sock, &sp);
		if (r == 0)
			*id = sp->id;
		change_end(p, &old);
	}
	if (r == 0) {
		keeper_kick(rt->forks);
		return 0;
	}
	if (c != NULL)
		client_discard(rt, c);
	return r;
}

const char *
serve_refused(int r)
{
	switch (r) {
	case -EAGAIN:
		return "there are as many clients and forked children of clients as there may be, and more can not be served";
	case -ENOSPC:
		return "what each client is to be promised can not be promised to one more (client_minimum)";
	case -EINVAL:
		return "what each client is to have at most is too little (client_limit)";
	default:
		return strerror(-r);
	}
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
	bool guest;

	for (size_t i = 0; i < c->object.n; i++)
		unhold(c, i + 1);
	/* Its children, should there be any, are held to its limit: else that would be who forks and goes.  What it was promised ends. */
	atomic_store(&c->account->minimum, 0);
	guest = c->guest != NULL;
	client_discard(rt, c);
	if (rt->server != NULL && rt->server->ended != NULL)
		rt->server->ended(rt->server->ctx, id, guest);
}

int
serve_leave(struct up_runtime *rt, uint64_t id, unsigned ms)
{
	struct pager *p = &rt->p;
	struct space *sp;

	pthread_rwlock_rdlock(&p->map.lock);
	sp = client_find(p, id);
	if (sp != NULL && sp->client->guest == NULL)
		atomic_store(&sp->leave, MIN(ms, UINT_MAX - 1) + 1);
	pthread_rwlock_unlock(&p->map.lock);
	keeper_kick(rt->forks);
	return sp != NULL ? 0 : -ENOENT;
}

unsigned
serve_children(struct up_runtime *rt)
{
	struct pager *p = &rt->p;
	unsigned n = 0;

	pthread_rwlock_rdlock(&p->map.lock);
	for (const struct space *sp = p->spaces; sp != NULL; sp = sp->next)
		n += sp->client == NULL;
	pthread_rwlock_unlock(&p->map.lock);
	return n;
}

int
serve_end(struct up_runtime *rt, uint64_t id)
{
	struct pager *p = &rt->p;
	const struct space *sp;

	/* Its keeper hears the end of the file. */
	pthread_rwlock_rdlock(&p->map.lock);
	sp = client_find(p, id);
	if (sp != NULL)
		shutdown(sp->sock, SHUT_RDWR);
	pthread_rwlock_unlock(&p->map.lock);
	return sp != NULL ? 0 : -ENOENT;
}
