/* SPDX-License-Identifier: BSD-2-Clause */
#include "adoption.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ENTRIES_MAX ((size_t)1 << 24)

static void
tell_unwired(const struct adoption *a, const struct returned *re, uintptr_t start, uintptr_t end,
	     const char *why)
{
	log_line(&a->rt->p.log, UP_LOG_WARNING,
		 "process %d: what it had wired at %#lx-%#lx is not wired any more: %s",
		 atomic_load(&re->was->pid), (unsigned long)start, (unsigned long)end, why);
}

/* How often it is wired: its pages are counted from here on, and held once they are there (adopt_wired()). */
static unsigned
wired_count(const struct adoption *a, const struct returned *re, const struct map_entry *was,
	    uint64_t npages)
{
	const struct client *c = re->sp->client;
	const unsigned n = c != NULL ? wire_noted(&c->wiring, was) : 0;

	if (n == 0 || wired_take(&a->rt->p, npages))
		return n;
	tell_unwired(a, re, was->start, was->end, "there is no room for that");
	return 0;
}

static int
adopt_entry(struct adoption *a, struct returned *re, const struct map_entry *was, uintptr_t *floor)
{
	const uintptr_t next =
		was->next != NULL && past_at(a, then_of(was->next), sizeof *was) != NULL
			? ((const struct map_entry *)past_at(a, then_of(was->next), sizeof *was))
				  ->start
			: UINTPTR_MAX;
	const uintptr_t start = was->start, end = MIN(was->end, next);
	struct pager *p = &a->rt->p;
	struct map_entry *e;
	struct object *o;
	sigset_t signals;
	int r = adopt_object(a, then_of(was->object), &o, 0);

	if (r < 0)
		return r;
	if (start >= end || start < *floor || ((start | end) & PAGE_MASK) != 0 || o->pool == 0 ||
	    was->offset > o->npages || (end - start) >> PAGE_SHIFT > o->npages - was->offset)
		return -EINVAL;
	*floor = end;
	change_begin(p, &signals);
	e = entry_alloc(p);
	if (e != NULL) {
		object_ref(o);
		e->start = start;
		e->end = end;
		e->object = o;
		e->offset = was->offset;
		e->prot = was->prot;
		e->advice = was->advice;
		e->inherit = was->inherit;
		e->flags = was->flags;
		e->shard = re->sp->shard;
		e->serial = was->serial;
		e->wired = wired_count(a, re, was, (end - start) >> PAGE_SHIFT);
		a->max_serial = MAX(a->max_serial, was->serial);
		r = space_place(p, "re-attach", e);
		if (r < 0) {
			if (e->wired > 0)
				wired_give(p, (end - start) >> PAGE_SHIFT);
			object_unref(o);
			entry_free(p, e);
		}
	}
	if (e != NULL && r == 0) {
		pthread_rwlock_wrlock(&p->map.lock);
		r = map_insert(&re->sp->map, e);
		assert(r == 0);
		pthread_rwlock_unlock(&p->map.lock);
	}
	change_end(p, &signals);
	return e != NULL ? r : -ENOMEM;
}

static int
adopt_handles(struct adoption *a, struct client *c, const struct client *was)
{
	const struct handle *table;
	struct handle *h;
	int r;

	if (was->object.n > was->object.max || was->object.n > c->object.max)
		return -EINVAL;
	if (was->object.n == 0)
		return 0;
	table = past_at(a, then_of(was->object.base), was->object.n * sizeof table[0]);
	if (table == NULL)
		return -EINVAL;
	r = wired_array_grow_wait(&c->object, was->object.n);
	for (size_t i = 0; i < was->object.n && r == 0; i++) {
		struct object *o;

		const struct object *then = atomic_load(&table[i].object);

		if (then == NULL)
			continue;
		r = adopt_object(a, then_of(then), &o, 0);
		if (r < 0)
			break;
		h = &((struct handle *)c->object.base)[i];
		h->readonly = table[i].readonly;
		atomic_store(&h->object, (struct object *)up_object_ref((struct up_object *)o));
		c->nheld++;
	}
	atomic_store(&c->nhandles, c->object.n);
	return r;
}

static int
adopt_client(struct adoption *a, struct returned *re)
{
	const struct client *was = past_at(a, then_of(re->was->client), sizeof *was);
	struct account *account;
	struct client *c;
	int r;

	if (was == NULL)
		return -EINVAL;
	r = adopt_account(a, then_of(was->account), &account);
	if (r < 0 || account == NULL)
		return r < 0 ? r : -EINVAL;
	c = client_alloc(a->rt, &was->limits);
	if (c == NULL)
		return -ENOMEM;
	c->account = account_ref(account);
	c->pid = was->pid;
	c->uid = was->uid;
	c->gid = was->gid;
	memcpy(c->name, was->name, sizeof c->name);
	c->name[sizeof c->name - 1] = '\0';
	c->connected = !re->guest;
	c->tag = was->tag;
	c->wiring = was->wiring;
	re->sp->client = c;
	if (re->guest) {
		r = guest_return(c);
		if (r < 0)
			return -ENOMEM; /* for now */
		re->sp->sock = r;
	}
	return adopt_handles(a, c, was);
}

/* All but to run there. */
int
adopt_space(struct adoption *a, const void *item)
{
	const struct space *was = item;
	const struct client *client;
	struct pager *p = &a->rt->p;
	struct account *account = NULL;
	struct returned *re;
	const struct map_entry *e;
	uintptr_t floor = 0;
	uint64_t at;
	sigset_t signals;
	size_t n = 0;
	int sock, uffd, r;
	bool guest;

	a->max_serial = MAX(a->max_serial, was->id);
	/* A child that has been forked, or will be in a moment, comes; a client that has not come yet tries again. */
	if (!was->attached && was->client != NULL)
		return 0;
	guest = was->client != NULL &&
		(client = past_at(a, then_of(was->client), sizeof *client)) != NULL &&
		client->guest != NULL;
	uffd = was->attached ? adopt_take(a, "space", was->id, "uffd") : -1;
	/* It was about to come (guest.h), and nothing has been done to it. */
	if (guest && uffd < 0)
		return 0;
	/* What it misses was being made SIGBUS, and it is not watched where that has been done. */
	if (guest && client->leaving) {
		a->from->orphan(a->from->ctx, was->id, uffd);
		return 0;
	}
	sock = guest ? -1 : adopt_take(a, "space", was->id, "sock");
	if (!was->attached && sock < 0)
		return 0;
	re = calloc(1, sizeof *re);
	if (re == NULL) {
		if (sock >= 0)
			close(sock);
		if (uffd >= 0)
			close(uffd);
		return -ENOMEM;
	}
	re->was = was;
	re->uffd = uffd;
	re->guest = guest;
	re->removed = guest ? adopt_take(a, "space", was->id, "removals") : -1;
	change_begin(p, &signals);
	re->sp = space_make(p);
	change_end(p, &signals);
	if (re->sp == NULL) {
		if (re->uffd >= 0)
			close(re->uffd);
		if (sock >= 0)
			close(sock);
		if (re->removed >= 0)
			close(re->removed);
		free(re);
		return -ENOMEM;
	}
	a->shard = re->sp->shard;
	re->next = a->spaces;
	a->spaces = re;
	re->sp->id = was->id;
	re->sp->uid = was->uid;
	re->sp->sock = sock;
	atomic_store(&re->sp->pid, atomic_load(&was->pid));
	r = (guest ? re->removed >= 0 : sock >= 0) && (re->uffd >= 0 || !was->attached) ? 0
											: -EBADF;
	if (r == 0)
		r = adopt_account(a, then_of(was->account), &account);
	if (account != NULL)
		re->sp->account = account_ref(account);
	if (r == 0 && was->client != NULL)
		r = adopt_client(a, re);
	for (at = then_of(was->map.first); r == 0 && at != 0;) {
		e = past_at(a, at, sizeof *e);
		if (e == NULL || ++n > ENTRIES_MAX) {
			r = -EINVAL;
			break;
		}
		r = adopt_entry(a, re, e, &floor);
		at = then_of(e->next);
	}
	re->sp->coming = was->coming;
	re->sp->acked = true; /* or asks again */
	atomic_store(&re->sp->leave, atomic_load(&was->leave));
	/* What was under way is done now. */
	if (re->sp->client != NULL && re->sp->client->wiring.doing != 0) {
		re->sp->client->wiring.done = re->sp->client->wiring.doing;
		re->sp->client->wiring.doing = 0;
	}
	/* For a successor that finds this store, from the switch on.  Here nobody can see it yet. */
	re->sp->attached = r == 0 && re->uffd >= 0;
	if (r < 0)
		adopt_failed(a, re, r);
	return r == -ENOMEM ? r : 0;
}

void
adopt_failed(struct adoption *a, struct returned *re, int r)
{
	/* Before the switch: the store of ours does not know of it. */
	if (r != -ENOMEM && re->guest && re->uffd >= 0) {
		a->from->orphan(a->from->ctx, re->was->id, re->uffd);
		re->uffd = -1;
	}
	re->sp->attached = false;
	re->failed = true;
	log_line(&a->rt->p.log, UP_LOG_ERROR,
		 "process %d can not be re-attached: %s; what it misses is %s",
		 atomic_load(&re->was->pid), strerrorname_np(-r),
		 re->guest ? "waited for" : "SIGBUS");
}

int
adopt_file(struct adoption *a, const void *item)
{
	const struct served_file *was = item;
	struct server *sv = a->rt->server;
	struct served_file *f;

	if (was->object == NULL)
		return 0;
	f = zone_alloc(&sv->file_zone, ZONE_WAIT);
	if (f == NULL)
		return -ENOMEM;
	*f = *was;
	f->next = sv->files;
	sv->files = f;
	return 0;
}

int
adopt_owner(struct adoption *a, const void *item)
{
	const struct owner *was = item;
	struct server *sv = a->rt->server;
	struct owner *o;
	struct object *object;
	int r;

	if (was->object == NULL || memchr(was->name, '\0', sizeof was->name) == NULL)
		return 0;
	r = adopt_object(a, then_of(was->object), &object, 0);
	if (r < 0 || object->name != NULL)
		return r == -ENOMEM ? r : 0;
	o = zone_alloc(&sv->owner_zone, ZONE_WAIT);
	if (o == NULL || (object->name = strdup(was->name)) == NULL) {
		zone_free(&sv->owner_zone, o);
		return -ENOMEM;
	}
	up_object_ref((struct up_object *)object); /* as the name is a handle */
	*o = *was;
	o->mode &= MODE_BITS;
	o->object = object;
	o->next = sv->owners;
	sv->owners = o;
	return 0;
}

void
adopt_forget_files(struct adoption *a)
{
	struct server *sv = a->rt->server;
	struct served_file **link = &sv->files, *f;

	while ((f = *link) != NULL) {
		bool found = false;

		for (const struct heir *h = a->heirs; h != NULL && !found; h = h->next)
			found = f->object == h->o;
		if (found) {
			link = &f->next;
		} else {
			*link = f->next;
			zone_free(&sv->file_zone, f);
		}
	}
}

void
adopt_wired(struct adoption *a)
{
	struct pager *p = &a->rt->p;
	sigset_t signals;

	change_begin(p, &signals);
	for (const struct returned *re = a->spaces; re != NULL; re = re->next) {
		for (struct map_entry *e = re->sp->map.first; e != NULL; e = e->next) {
			if (e->wired > 0 && !rewire_entry(p, &re->sp->map, e))
				tell_unwired(a, re, e->start, e->end, "not all of it is in memory");
		}
	}
	change_end(p, &signals);
}
