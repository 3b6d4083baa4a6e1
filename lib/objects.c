/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * objects.c: named objects, whose pages come from a file, a device or a pager of the program; and anonymous ones that
 * have a name to be found by.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "childmsg.h"
#include "pager/custom.h"
#include "pager/source.h"
#include "pager/vnode.h"
#include "remote.h"
#include "runtime.h"

/* Arguments that every kind has.  0, or the error of the call. */
static int
check_create(struct up_runtime *rt, const char *call, unsigned flags, struct up_object **out)
{
	int r;

	if (out != NULL)
		*out = NULL;
	if (rt == NULL)
		return -EINVAL;
	r = check_process(rt, call);
	if (r < 0)
		return r;
	if (out == NULL)
		return bad(rt, "%s: obj is NULL", call);
	if (flags != 0)
		return bad(rt, "%s: unknown flags %#x", call, flags);
	return 0;
}

/* --- by name --- */

/* => map.change is held */
static struct object *
find_name(struct pager *p, const char *name)
{
	struct object *o = p->objects;

	while (o != NULL && (o->name == NULL || strcmp(o->name, name) != 0))
		o = o->next;
	return o;
}

static int
check_name(struct up_runtime *rt, const char *call, const char *name)
{
	int r;

	if (rt == NULL)
		return -EINVAL;
	r = check_process(rt, call);
	if (r < 0)
		return r;
	if (name == NULL || name[0] == '\0' || strlen(name) > UP_OBJECT_NAME_MAX)
		return bad(rt, "%s: a name has 1 to %d bytes", call, UP_OBJECT_NAME_MAX);
	return 0;
}

static int
create_named(struct up_runtime *rt, const char *call, const char *name, uint64_t size,
	     unsigned flags, unsigned mode, struct up_object **obj)
{
	struct object *o;
	sigset_t old;
	char *copy;
	int r;

	if (rt != NULL && (mode & ~MODE_BITS) != 0)
		return bad(rt, "%s: mode %#o has other bits than 0666", call, mode);
	if (rt != NULL && rt->remote != NULL)
		return remote_create_anon(rt, name, size, flags, mode, obj);
	if (obj != NULL)
		*obj = NULL;
	r = check_name(rt, call, name);
	if (r < 0)
		return r;
	if (obj == NULL)
		return bad(rt, "%s: obj is NULL", call);
	if (size == 0 || (size & PAGE_MASK))
		return bad(rt, "%s: size %llu is not a positive multiple of the page size", call,
			   (unsigned long long)size);
	if (flags & ~UP_NORESERVE)
		return bad(rt, "%s: unknown flags %#x", call, flags & ~UP_NORESERVE);

	copy = strdup(name);
	change_begin(&rt->p, &old);
	if (copy == NULL) {
		log_line(&rt->p.log, UP_LOG_ERROR, "%s: out of memory", call);
		r = -ENOMEM;
	} else if (find_name(&rt->p, copy) != NULL) {
		log_line(&rt->p.log, UP_LOG_ERROR, "%s: there is a \"%s\" already", call, copy);
		r = -EEXIST;
	} else {
		r = object_create_handle(rt, call, size >> PAGE_SHIFT, flags, &o);
	}
	if (r == 0) {
		/* The name is a handle of its own. */
		o->name = copy;
		copy = NULL;
		up_object_ref((struct up_object *)o);
	}
	change_end(&rt->p, &old);
	if (r == 0)
		*obj = (struct up_object *)o;
	free(copy);
	return r;
}

int
up_object_create_named(struct up_runtime *rt, const char *name, uint64_t size, unsigned flags,
		       struct up_object **obj)
{
	return create_named(rt, "up_object_create_named", name, size, flags, 0600, obj);
}

int
up_object_create_mode(struct up_runtime *rt, const char *name, uint64_t size, unsigned flags,
		      unsigned mode, struct up_object **obj)
{
	return create_named(rt, "up_object_create_mode", name, size, flags, mode, obj);
}

/* Whose a name is only a daemon asks.  0, or -ENOENT and a log line. */
static int
access_change(struct up_runtime *rt, const char *call, const char *name, uint32_t flags,
	      unsigned mode, uid_t uid, gid_t gid)
{
	char key[UP_OBJECT_NAME_MAX + 1];
	sigset_t old;
	bool found;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_access(rt, call, name, flags, mode, uid, gid);
	r = check_name(rt, call, name);
	if (r < 0)
		return r;
	strcpy(key, name);
	change_begin(&rt->p, &old);
	found = find_name(&rt->p, key) != NULL;
	if (!found)
		log_line(&rt->p.log, UP_LOG_ERROR, "%s: there is no \"%s\"", call, key);
	change_end(&rt->p, &old);
	return found ? 0 : -ENOENT;
}

int
up_object_chmod(struct up_runtime *rt, const char *name, unsigned mode)
{
	if (rt != NULL && (mode & ~MODE_BITS) != 0)
		return bad(rt, "up_object_chmod: mode %#o has other bits than 0666", mode);
	return access_change(rt, "up_object_chmod", name, ACCESS_MODE, mode, 0, 0);
}

int
up_object_chown(struct up_runtime *rt, const char *name, uid_t uid, gid_t gid)
{
	const uint32_t flags =
		(uid != (uid_t)-1 ? ACCESS_UID : 0) | (gid != (gid_t)-1 ? ACCESS_GID : 0);

	return access_change(rt, "up_object_chown", name, flags, 0, uid, gid);
}

int
up_object_open(struct up_runtime *rt, const char *name, struct up_object **obj)
{
	char key[UP_OBJECT_NAME_MAX + 1]; /* the caller's may itself be paged */
	struct object *o;
	sigset_t old;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_open(rt, name, obj);
	if (obj != NULL)
		*obj = NULL;
	r = check_name(rt, "up_object_open", name);
	if (r < 0)
		return r;
	if (obj == NULL)
		return bad(rt, "up_object_open: obj is NULL");
	strcpy(key, name);
	change_begin(&rt->p, &old);
	o = find_name(&rt->p, key);
	if (o != NULL)
		up_object_ref((struct up_object *)o);
	else
		log_line(&rt->p.log, UP_LOG_ERROR, "up_object_open: there is no \"%s\"", key);
	change_end(&rt->p, &old);
	*obj = (struct up_object *)o;
	return o != NULL ? 0 : -ENOENT;
}

int
up_object_remove(struct up_runtime *rt, const char *name)
{
	char key[UP_OBJECT_NAME_MAX + 1];
	struct object *o;
	sigset_t old;
	char *gone = NULL;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_remove(rt, name);
	r = check_name(rt, "up_object_remove", name);
	if (r < 0)
		return r;
	strcpy(key, name);
	change_begin(&rt->p, &old);
	o = find_name(&rt->p, key);
	if (o != NULL) {
		gone = o->name;
		o->name = NULL;
	} else {
		log_line(&rt->p.log, UP_LOG_ERROR, "up_object_remove: there is no \"%s\"", key);
	}
	change_end(&rt->p, &old);
	free(gone);
	/* The name's reference, which kept it until here. */
	up_object_unref((struct up_object *)o);
	return o != NULL ? 0 : -ENOENT;
}

/* --- with a source --- */

int
object_create_source(struct up_runtime *rt, const char *call, struct source *src, bool readonly,
		     struct up_object **out)
{
	const uint64_t npages = (src->bytes + PAGE_MASK) >> PAGE_SHIFT;
	struct object *o;
	sigset_t old;
	int r;

	change_begin(&rt->p, &old);
	/* Its leaves are promised as they are made: a file may be far larger than what is touched of it. */
	r = object_create(rt, call, npages, 0, true, &o);
	if (r == 0) {
		o->source = src;
		o->named = o->loose = true;
		o->readonly = readonly;
		atomic_store(&o->handles, 1);
	}
	change_end(&rt->p, &old);
	if (r == 0)
		*out = (struct up_object *)o;
	if (r < 0)
		src->ops->destroy(src);
	return r;
}

int
up_object_create_file(struct up_runtime *rt, int fd, uint64_t offset, uint64_t size, unsigned flags,
		      struct up_object **obj)
{
	struct source *src;
	bool readonly;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_create_file(rt, fd, offset, size, flags, obj);
	r = check_create(rt, "up_object_create_file", flags, obj);
	if (r < 0)
		return r;
	if ((offset & PAGE_MASK) || offset > INT64_MAX || size > INT64_MAX - offset)
		return bad(rt, "up_object_create_file: offset %llu, size %llu",
			   (unsigned long long)offset, (unsigned long long)size);
	r = vnode_file(fd, offset, size, (rt->mask & UP_MASK_ODIRECT) == 0, &readonly, &src);
	if (r < 0) {
		log_line(&rt->p.log, UP_LOG_ERROR, "up_object_create_file: descriptor %d: %s%s", fd,
			 r == -EINVAL	? "not a regular file open for reading, or empty: "
			 : r == -EACCES ? "O_APPEND or O_DIRECT, and it can not be reopened: "
					: "",
			 strerrorname_np(-r));
		return r;
	}
	return object_create_source(rt, "up_object_create_file", src, readonly, obj);
}

int
up_object_create_device(struct up_runtime *rt, int fd, unsigned flags, struct up_object **obj)
{
	if (rt != NULL && rt->remote != NULL)
		return remote_create_device(rt, fd, flags, obj);
	return object_create_device(rt, fd, 0, flags, obj);
}

int
object_create_device(struct up_runtime *rt, int fd, uint64_t size, unsigned flags,
		     struct up_object **obj)
{
	struct source *src;
	bool readonly;
	int r;

	r = check_create(rt, "up_object_create_device", flags, obj);
	if (r < 0)
		return r;
	r = vnode_device(fd, size, &readonly, &src);
	if (r < 0) {
		log_line(&rt->p.log, UP_LOG_ERROR, "up_object_create_device: descriptor %d: %s%s",
			 fd,
			 r == -EINVAL ? "no block device or file for direct I/O, or empty: " : "",
			 strerrorname_np(-r));
		return r;
	}
	return object_create_source(rt, "up_object_create_device", src, readonly, obj);
}

int
up_object_create_custom(struct up_runtime *rt, uint64_t size, const struct up_pager_ops *ops,
			void *ctx, struct up_object **obj)
{
	struct source *src;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_lacks(rt, "up_object_create_custom");
	r = check_create(rt, "up_object_create_custom", 0, obj);
	if (r < 0)
		return r;
	if (size == 0 || size > INT64_MAX)
		return bad(rt, "up_object_create_custom: size %llu", (unsigned long long)size);
	if (ops == NULL || ops->size < offsetof(struct up_pager_ops, cancel) ||
	    ops->page_in == NULL)
		return bad(rt, "up_object_create_custom: ops without page_in, or of no known size");
	r = custom_source(size, ops, ctx, &src);
	if (r < 0) {
		log_line(&rt->p.log, UP_LOG_ERROR, "up_object_create_custom: out of memory");
		return r;
	}
	return object_create_source(rt, "up_object_create_custom", src, ops->page_out == NULL, obj);
}

static void
sync_failed(struct up_runtime *rt, struct syncing *y, const struct source *src, int r)
{
	if (r == 0 || y->error != 0)
		return;
	y->error = r;
	log_line(&rt->p.log, UP_LOG_ERROR, "up_sync: writing back to the %s pager: %s",
		 src->ops->name, strerrorname_np(-r));
}

/* From y->at on, and on with that, of one entry.  => map.change is held. */
static void
sync_part(struct up_runtime *rt, struct syncing *y, struct map_entry *e, uint64_t until)
{
	const uintptr_t start = y->at, end = MIN(y->end, e->end);
	uint64_t first = e->offset + ((start - e->start) >> PAGE_SHIFT);
	const uint64_t stop = first + ((end - start) >> PAGE_SHIFT);
	struct object *o = e->object;
	struct pager *p = &rt->p;
	int r;

	y->at = end;
	if (o->source == NULL) {
		if ((y->flags & UP_SYNC_INVALIDATE) && o->named)
			range_refresh(p, o, first, stop - first);
		return;
	}
	if (y->flags & UP_SYNC_INVALIDATE) {
		r = discard_shared(p, e, start, end);
	} else {
		if ((y->flags & UP_SYNC_ASYNC) && e->wired == 0 && e->shard < p->nservices &&
		    source_push(p, e->shard, start, end))
			return;
		r = writeback(p, o, &first, stop, until);
		y->at -= (stop - first) << PAGE_SHIFT;
	}
	if (y->flags & UP_SYNC_ASYNC) {
		source_failed(o->source, r);
		return;
	}
	sync_failed(rt, y, o->source, r);
	if (y->at < end)
		return;
	source_ref(o->source);
	y->flush = o->source;
}

int
sync_some(struct up_runtime *rt, struct map *m, struct syncing *y, uint64_t until)
{
	struct pager *p = &rt->p;
	struct map_entry *e;
	int r = 0;

	assert(y->flush == NULL);
	if (y->at < y->end && !y->gaps)
		r = check_covered(rt, m, "up_sync", y->at, y->end);
	if (r == 0 && (y->flags & UP_SYNC_INVALIDATE) && is_wired(p, m, y->at, y->end)) {
		log_line(&p->log, UP_LOG_ERROR,
			 "up_sync: part of %#lx-%#lx is wired, and can not be invalidated",
			 (unsigned long)y->at, (unsigned long)y->end);
		r = -EBUSY;
	}
	e = r == 0 ? map_first_from(m, y->at) : NULL;
	while (e != NULL && e->start < y->end && y->at < y->end) {
		y->at = MAX(y->at, e->start);
		sync_part(rt, y, e, until);
		if (y->flush != NULL || (until != UINT64_MAX && now_ns() >= until))
			return 1;
		if (y->at >= e->end)
			e = e->next;
	}
	return y->error != 0 ? y->error : r;
}

void
sync_flushed(struct up_runtime *rt, struct syncing *y, int r)
{
	sync_failed(rt, y, y->flush, r);
	source_unref(y->flush);
	y->flush = NULL;
}

int
up_sync(struct up_runtime *rt, void *addr, size_t length, unsigned flags)
{
	const uintptr_t start = (uintptr_t)addr;
	struct syncing y = { .at = start, .end = start + length, .flags = flags };
	sigset_t old;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_sync(rt, addr, length, flags);
	r = check_call(rt, "up_sync", start, length);
	if (r < 0)
		return r;
	if (flags > UP_SYNC_INVALIDATE)
		return bad(rt, "up_sync: flags %#x", flags);
	do {
		change_begin(&rt->p, &old);
		r = sync_some(rt, &rt->p.map, &y, UINT64_MAX);
		change_end(&rt->p, &old);
		if (y.flush != NULL)
			sync_flushed(rt, &y, source_settle(y.flush));
	} while (r > 0);
	return r;
}
