/* SPDX-License-Identifier: BSD-2-Clause */
#include "adoption.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "pager/source.h"

#define DEPTH_MAX 4096u

/* --- accounts --- */

int
adopt_account(struct adoption *a, uint64_t then, struct account **now)
{
	const struct account *was = then != 0 ? past_at(a, then, sizeof *was) : NULL;
	const struct account *group;
	char name[sizeof was->name] = "";
	int r;

	*now = NULL;
	if (was == NULL)
		return then != 0 ? -EINVAL : 0;
	*now = table_get(&a->accounts, then);
	if (*now != NULL)
		return 0;
	group = was->group != NULL ? past_at(a, then_of(was->group), sizeof *group) : NULL;
	if (group != NULL)
		snprintf(name, sizeof name, "%.*s", (int)sizeof name - 1, group->name);
	*now = server_account(a->rt, name, was->limit, was->minimum);
	if (*now == NULL)
		return -ENOMEM;
	atomic_store(&(*now)->reads_max, atomic_load(&was->reads_max));
	atomic_store(&(*now)->swap_limit, atomic_load(&was->swap_limit));
	r = table_put(&a->accounts, then, *now);
	if (r < 0)
		account_unref(*now);
	return r;
}

/* --- objects --- */

void
adopt_shape(const struct adoption *a, const struct object *was, uint64_t then, uint64_t *root,
	    uint64_t *backing, uint64_t *offset)
{
	const struct relink *re = &a->root->relink;

	*root = then_of(was->root);
	*backing = then_of(was->backing);
	*offset = was->backing_offset;
	for (unsigned i = 0; i < MIN(re->n, 2u); i++) {
		if (then_of(re->to[i].object) == then) {
			*root = then_of(re->to[i].root);
			*backing = then_of(re->to[i].backing);
			*offset = re->to[i].offset;
		}
	}
}

uint64_t
adopt_then_of(const struct adoption *a, const struct object *was)
{
	return a->root->base + (uint64_t)((const char *)was - a->base);
}

int
adopt_take(const struct adoption *a, const char *kind, uint64_t id, const char *part)
{
	char name[STORE_NAME_MAX];

	store_name(name, kind, id, part);
	return a->from->take(a->from->ctx, name);
}

/* Where it was made from; NULL: there is no record. */
static struct served_file *
record_of(const struct adoption *a, uint64_t then)
{
	struct served_file *f = a->rt->server->files;

	while (f != NULL && then_of(f->object) != then)
		f = f->next;
	return f;
}

/* One with a source, opened anew.  Its record has its address then until it has it now. */
static int
object_of_file(struct adoption *a, const struct object *was, uint64_t then, struct object **out)
{
	struct served_file *f = record_of(a, then);
	struct up_object *obj = NULL;
	int fd, r;

	fd = f != NULL ? adopt_take(a, "file", was->id, NULL) : -1;
	if (fd < 0)
		return -EBADF;
	if (f->op == GUEST_SOURCE) {
		const int less = adopt_take(a, "file", was->id, "less");

		r = less < 0 ? -EBADF : guest_source(a->rt, fd, f->offset, f->length, less, &obj);
		if (less >= 0)
			close(less);
	} else {
		r = f->op == CALL_CREATE_FILE
			    ? up_object_create_file(a->rt, fd, f->offset, f->length, f->flags, &obj)
			    : object_create_device(a->rt, fd, f->length, f->flags, &obj);
	}
	close(fd);
	*out = (struct object *)obj;
	/* Not before it is kept: what goes takes its record with it. */
	if (r == 0 && (*out)->npages == was->npages)
		f->object = *out;
	return r;
}

/* One that is a part of a guest's file. */
static int
pool_of_guest(struct adoption *a, struct heir *h, uint64_t then, uintptr_t *pool)
{
	struct served_file *f = record_of(a, then);
	const int fd = f != NULL ? adopt_take(a, "file", h->was->id, NULL) : -1;
	int r;

	if (fd < 0)
		return -EBADF;
	r = pmap_uffd_adopt(a->rt->p.pmap, a->shard, fd, f->offset, h->o->npages, pool);
	close(fd);
	if (r == 0)
		f->object = h->o;
	return r;
}

static int
adopt_pool(struct adoption *a, struct heir *h, uint64_t then)
{
	struct pager *p = &a->rt->p;
	const uint64_t npages = h->o->npages;
	uintptr_t pool, page;
	size_t n;
	int fd, r;

	h->there = calloc(1, npages / 8 + 1);
	if (h->there == NULL)
		return -ENOMEM;
	if (h->o->guest) {
		r = pool_of_guest(a, h, then, &pool);
	} else {
		fd = h->was->apart ? adopt_take(a, "object", h->was->id, NULL) : -1;
		r = fd < 0 ? -EBADF : pmap_uffd_pool_adopt(p->pmap, fd, npages, &pool);
	}
	if (r < 0)
		return r;
	h->o->pool = pool;
	h->pool_then = h->was->pool;
	for (page = pool; pmap_uffd_pool_next(p->pmap, &page, pool + (npages << PAGE_SHIFT), &n);) {
		for (; n > 0; n--, page += PAGE_SIZE)
			set_bit(h->there, (page - pool) >> PAGE_SHIFT, true);
		if (page == pool + (npages << PAGE_SHIFT))
			break;
	}
	return 0;
}

int
adopt_object(struct adoption *a, uint64_t then, struct object **out, unsigned depth)
{
	const struct object *was = past_at(a, then, sizeof *was);
	struct pager *p = &a->rt->p;
	uint64_t root, backing, offset;
	struct account *account = NULL;
	struct object *b = NULL;
	struct heir *h = table_get(&a->objects, then);
	sigset_t signals;
	int r;

	*out = h != NULL ? h->o : NULL;
	if (h != NULL)
		return 0;
	if (was == NULL || was->npages == 0 || was->npages > UINT64_C(1) << 52 || depth > DEPTH_MAX)
		return -EINVAL;
	h = calloc(1, sizeof *h);
	if (h == NULL)
		return -ENOMEM;
	h->was = was;
	h->handle = was->source != NULL;
	if (h->handle) {
		r = object_of_file(a, was, then, &h->o);
		if (r == 0 && h->o->npages != was->npages) {
			log_line(&p->log, UP_LOG_ERROR, "re-attach: a file has changed its length");
			up_object_unref((struct up_object *)h->o);
			r = -EINVAL;
		}
	} else {
		change_begin(p, &signals);
		r = object_create(a->rt, "re-attach", was->npages, was->reserved, was->noreserve,
				  &h->o);
		change_end(p, &signals);
	}
	if (r < 0) {
		free(h);
		return r;
	}
	/* From here on it is in the list, and goes with it. */
	*a->last = h;
	a->last = &h->next;
	h->o->id = was->id;
	h->o->readonly = was->readonly;
	h->o->roams = was->roams;
	h->o->apart = was->apart;
	h->o->guest = was->guest;
	h->o->loose = true;
	h->o->named |= was->named;
	atomic_store(&h->o->unrecorded, atomic_load(&was->unrecorded));
	a->max_object = MAX(a->max_object, was->id);
	r = table_put(&a->objects, then, h);
	if (r == 0)
		r = adopt_account(a, then_of(was->account), &account);
	if (r == 0 && account != NULL)
		object_pays(h->o, account_ref(account));
	if (r == 0 && was->pool != 0)
		r = adopt_pool(a, h, then);
	adopt_shape(a, was, then, &root, &backing, &offset);
	if (r == 0 && backing != 0)
		r = adopt_object(a, backing, &b, depth + 1);
	if (r == 0 && b != NULL) {
		if (offset > b->npages || h->o->npages > b->npages - offset)
			return -EINVAL;
		object_ref(b);
		pthread_rwlock_wrlock(&p->map.lock);
		object_shadow(h->o, b, offset);
		atomic_store(&h->o->chained, atomic_load(&was->chained) || b->source == NULL);
		pthread_rwlock_unlock(&p->map.lock);
	}
	*out = h->o;
	return r;
}
