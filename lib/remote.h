/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * remote.h (private): a runtime whose pager is in another process, a daemon: remote.c.
 *
 * The calls are those of uffd_pager.h without their first letters.  Arguments have not been looked at, but for rt, which is one of these.
 */
#ifndef UP_REMOTE_H
#define UP_REMOTE_H

#include "runtime.h"

/* An object's pointer says whose it is: those of remote runtimes are odd. */
static inline bool
object_is_remote(const struct up_object *obj)
{
	return ((uintptr_t)obj & 1) != 0;
}

void remote_destroy(struct up_runtime *rt);
int remote_map(struct up_runtime *rt, void *hint, size_t length, int prot, unsigned flags,
	       struct up_object *obj, uint64_t offset, void **addr);
int remote_unmap(struct up_runtime *rt, void *addr, size_t length);
int remote_protect(struct up_runtime *rt, void *addr, size_t length, int prot);
int remote_advise(struct up_runtime *rt, void *addr, size_t length, enum up_advice advice);
int remote_inherit(struct up_runtime *rt, void *addr, size_t length, enum up_inherit inherit);
int remote_prefault(struct up_runtime *rt, void *addr, size_t length, int write);
int remote_wire(struct up_runtime *rt, void *addr, size_t length);
int remote_unwire(struct up_runtime *rt, void *addr, size_t length);
int remote_residency(struct up_runtime *rt, const void *addr, size_t length, unsigned char *vec);
int remote_sync(struct up_runtime *rt, void *addr, size_t length, unsigned flags);
int remote_clone(struct up_runtime *rt, void *addr, size_t length, void **copy);
int remote_create_anon(struct up_runtime *rt, const char *name, uint64_t size, unsigned flags,
		       unsigned mode, struct up_object **obj);
int remote_create_file(struct up_runtime *rt, int fd, uint64_t offset, uint64_t size,
		       unsigned flags, struct up_object **obj);
int remote_create_device(struct up_runtime *rt, int fd, unsigned flags, struct up_object **obj);
int remote_open(struct up_runtime *rt, const char *name, struct up_object **obj);
/* flags: ACCESS_... */
int remote_access(struct up_runtime *rt, const char *call, const char *name, uint32_t flags,
		  unsigned mode, uid_t uid, gid_t gid);
int remote_remove(struct up_runtime *rt, const char *name);
int remote_snapshot(struct up_runtime *rt, struct up_object *obj, struct up_object **snapshot);
int remote_info(struct up_object *obj, struct up_object_stats *info);
void remote_ref(struct up_object *obj);
void remote_unref(struct up_object *obj);
int remote_stats(struct up_runtime *rt, struct up_stats *st);
int remote_dump(struct up_runtime *rt, FILE *out);
int remote_trace(struct up_runtime *rt, FILE *out);
uint64_t remote_features(const struct up_runtime *rt);
/* -ENOTSUP and a log line. */
int remote_lacks(struct up_runtime *rt, const char *call);

#endif
