/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * who.c: see who.h.
 */
#include "who.h"

#include <stdio.h>
#include <string.h>

#include "client.h"

/* NULL: ours, or gone.  => map.lock is held */
static const struct space *
space_of(const struct pager *p, unsigned shard)
{
	const size_t i = shard - PMAP_POOL - 1;

	return shard > PMAP_POOL && i < p->nspace_at ? ((struct space **)p->space_at.base)[i]
						     : NULL;
}

const struct client *
space_client(const struct pager *p, const struct space *sp)
{
	const struct space *of = p->spaces;

	if (sp->client != NULL || sp->account == NULL)
		return sp->client;
	while (of != NULL && (of->client == NULL || of->account != sp->account))
		of = of->next;
	return of != NULL ? of->client : NULL;
}

const struct log_about *
client_about(const struct client *c, struct log_about *about)
{
	about->client = 0;
	about->pid = (int)c->pid;
	memcpy(about->name, c->name, sizeof about->name);
	return about;
}

static const char *
say(const struct pager *p, const struct space *sp, uintptr_t va, struct who *w)
{
	const struct client *c = sp != NULL ? space_client(p, sp) : NULL;
	const unsigned long at = va;

	w->about.client = 0;
	w->about.pid = sp == NULL	    ? 0
		       : sp->client != NULL ? (int)sp->client->pid
					    : atomic_load(&sp->pid);
	snprintf(w->about.name, sizeof w->about.name, "%s", c != NULL ? c->name : "");
	if (sp == NULL)
		snprintf(w->text, sizeof w->text, "%#lx", at);
	else if (sp->client != NULL)
		snprintf(w->text, sizeof w->text, "%#lx of client %s, process %d", at,
			 sp->client->name, (int)sp->client->pid);
	else if (c != NULL)
		snprintf(w->text, sizeof w->text, "%#lx of client %s, its forked process %d", at,
			 c->name, atomic_load(&sp->pid));
	else
		snprintf(w->text, sizeof w->text, "%#lx of forked process %d", at,
			 atomic_load(&sp->pid));
	return w->text;
}

const char *
who_at(struct pager *p, unsigned space, uintptr_t va, struct who *w)
{
	pthread_rwlock_rdlock(&p->map.lock);
	say(p, space_of(p, space), va, w);
	pthread_rwlock_unlock(&p->map.lock);
	return w->text;
}

/* Where a map has that page, itself, or else beneath; 0: nowhere.  => the same */
static uintptr_t
where(const struct map *m, const struct object *o, uint64_t index)
{
	uintptr_t beneath = 0;

	for (const struct map_entry *e = m->first; e != NULL; e = e->next) {
		const uint64_t n = (e->end - e->start) >> PAGE_SHIFT;
		uint64_t first = e->offset;

		for (const struct object *b = e->object; b != NULL; b = b->backing) {
			const uintptr_t at = e->start + (uintptr_t)((index - first) << PAGE_SHIFT);

			if (b == o && index >= first && index - first < n) {
				if (b == e->object)
					return at;
				beneath = beneath != 0 ? beneath : at;
			}
			first += b->backing_offset;
		}
	}
	return beneath;
}

const char *
who_slot(struct pager *p, unsigned space, struct leaf *leaf, unsigned at, uintptr_t va,
	 unsigned shard, struct who *w)
{
	const struct space *sp = space_of(p, space);
	const struct object *o;
	uint64_t index, id;

	if (va != 0 && shard < p->nservices)
		return say(p, NULL, va, w);
	/* It may be on its way to another object: then nobody is found. */
	pthread_mutex_lock(&leaf->lock);
	o = leaf->object;
	id = o->id;
	index = leaf->base + at;
	pthread_mutex_unlock(&leaf->lock);
	va = where(sp != NULL ? &sp->map : &p->map, o, index);
	if (space > PMAP_POOL && sp == NULL)
		va = 0; /* who waited is gone */
	for (const struct space *any = p->spaces; va == 0 && any != NULL; any = any->next) {
		va = where(&any->map, o, index);
		sp = any;
	}
	if (va != 0)
		return say(p, sp, va, w);
	w->about.pid = 0;
	snprintf(w->text, sizeof w->text, "offset %#llx of object %llu",
		 (unsigned long long)index << PAGE_SHIFT, (unsigned long long)id);
	return w->text;
}

const char *
who_page(struct pager *p, unsigned space, const struct page *pg, struct who *w)
{
	pthread_rwlock_rdlock(&p->map.lock);
	who_slot(p, space, pg->leaf, pg->index, pg->va, pg->shard, w);
	pthread_rwlock_unlock(&p->map.lock);
	return w->text;
}
