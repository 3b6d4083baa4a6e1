/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * audit.c: memory in the files of pools that is not the pager's.
 *
 * A client has the descriptor of its pool's file, for it has to map it, writable.  With that it can do more: write(), fallocate(), and store through
 * a mapping that it has not registered.  All of that makes pages that we have not charged to anybody, and would not throw out.  So the file's blocks
 * are held against what its account has there.
 *
 * Seals do not help: F_SEAL_FUTURE_WRITE forbids what the client needs to map the range once more, and what we need to punch holes.
 */
#include <sys/socket.h>
#include <time.h>

#include "client.h"
#include "keeper.h"

#define STRIKES 2
#define WAIT_NS 10000000 /* for calls under way */

/* On their way in or out, and not counted: of each service, and of a caller. */
static size_t
in_motion(const struct pager *p)
{
	return ((size_t)RUN_MAX + CLUSTER_MAX) * (p->nservices + 1);
}

/* True if the client maps something of this account; of its own in any case.  => map.change is held */
static bool
has_part(const struct space *sp, const struct account *a)
{
	if (sp->client->account == a)
		return true;
	for (const struct map_entry *e = sp->map.first; e != NULL; e = e->next) {
		if (e->object->account == a)
			return true;
	}
	return false;
}

/* => map.change is held */
static void
disconnect(struct pager *p, const struct account *a)
{
	const size_t mapped = atomic_load(&a->mapped);
	struct log_about about;

	for (const struct space *sp = p->spaces; sp != NULL; sp = sp->next) {
		if (sp->client == NULL || !has_part(sp, a))
			continue;
		log_line_about(
			&p->log, client_about(sp->client, &about), UP_LOG_ERROR,
			"client %s, process %d: %zu KiB in the files of its memory are not the pager's: disconnected",
			sp->client->name, (int)sp->client->pid,
			(a->files - MIN(a->files, mapped)) << (PAGE_SHIFT - 10));
		/* Its keeper hears the end of the file. */
		shutdown(sp->sock, SHUT_RDWR);
	}
}

/* As change_begin(), but whoever asks has other things to do than to wait for a call that waits for a disk. */
static bool
change_try(struct pager *p, sigset_t *old)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += WAIT_NS;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	signals_hold(old);
	if (pthread_mutex_timedlock(&p->map.change, &until) == 0)
		return true;
	signals_release(old);
	return false;
}

void
serve_audit(struct up_runtime *rt)
{
	struct pager *p = &rt->p;
	sigset_t old;

	/* What the program itself does to mappings is not followed where there are clients. */
	if (rt->server == NULL || p->pmap->ops->pool_pages == NULL || p->foreign != NULL ||
	    !change_try(p, &old))
		return;
	for (const struct object *o = p->objects; o != NULL; o = o->next) {
		if (o->account != NULL)
			o->account->files = 0;
	}
	for (const struct object *o = p->objects; o != NULL; o = o->next) {
		if (o->account != NULL && o->pool != 0)
			o->account->files += p->pmap->ops->pool_pages(p->pmap, o->pool);
	}
	for (const struct object *o = p->objects; o != NULL; o = o->next) {
		struct account *a = o->account;

		if (a == NULL || a->files == 0)
			continue;
		if (a->files <= atomic_load(&a->mapped) + in_motion(p)) {
			a->strikes = 0;
		} else if (++a->strikes >= STRIKES) {
			disconnect(p, a);
			a->strikes = 0;
		}
		a->files = 0; /* it has been looked at */
	}
	change_end(p, &old);
}
