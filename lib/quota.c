/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * quota.c: what clients and groups may have: see quota.h and, for what the daemon asks for, serve.h.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"

#define PAUSE_MIN 10000000u /* ns, after nothing could be taken from an account; doubling */
#define PAUSE_MAX 1000000000u

size_t
account_room(const struct pager *p, size_t limit)
{
	const size_t room = MAX(limit / 8, (size_t)RUN_MAX * p->nservices * 2);

	return limit > room ? limit - room : 0;
}

int
client_over_limit(struct up_runtime *rt, const struct client *c, char *why, const char *fmt, ...)
{
	char text[MSG_TEXT] = ""; /* all of it goes to the client */
	struct log_about about;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	log_line_about(&rt->p.log, client_about(c, &about), UP_LOG_WARNING,
		       "client %s, process %d: refused: %s", c->name, (int)c->pid, text);
	if (why != NULL)
		memcpy(why, text, sizeof text);
	return -EDQUOT;
}

/* Pages of swap that a group's clients were promised.  => map.change is held */
static uint64_t
group_promised(const struct pager *p, const struct account *g)
{
	uint64_t n = atomic_load(&g->promised);

	for (const struct space *sp = p->spaces; sp != NULL; sp = sp->next) {
		if (sp->client != NULL && sp->client->account->group == g)
			n += atomic_load(&sp->client->account->touched);
	}
	return n;
}

int
client_swap(struct up_runtime *rt, const struct client *c, uint64_t nswap, char *why)
{
	const struct account *a = c->account, *g = a->group;
	uint64_t n, most;

	if (nswap == 0)
		return 0;
	if (!account_may_promise(a, nswap)) {
		n = atomic_load(&a->promised) + atomic_load(&a->touched) + nswap;
		most = atomic_load(&a->swap_limit);
		return client_over_limit(rt, c, why,
					 "%llu MiB of swap promised, and %llu are allowed (swap)",
					 mib(n), mib(most));
	}
	most = g != NULL ? atomic_load(&g->swap_limit) : 0;
	n = most != 0 ? group_promised(&rt->p, g) + nswap : 0;
	return n <= most
		       ? 0
		       : client_over_limit(
				 rt, c, why,
				 "%llu MiB of swap promised to group %s, and %llu are allowed (swap)",
				 mib(n), g->name, mib(most));
}

/* All that clients and groups may keep, pages; `of` aside.  => map.change is held */
static size_t
minima(struct up_runtime *rt, const struct account *of)
{
	struct pager *p = &rt->p;
	size_t sum = 0;

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
	return sum;
}

/* Pages that are wired by whoever counts for the account.  => map.change is held */
static uint64_t
wired_of(const struct pager *p, const struct account *of)
{
	uint64_t n = 0;

	for (const struct space *sp = p->spaces; sp != NULL; sp = sp->next) {
		const struct account *a = sp->account;

		while (a != NULL && a != of)
			a = a->group;
		if (a != NULL)
			n += sp->map.wired;
	}
	return n;
}

/* True if so much may be wired and promised, pages, within a limit: a quarter is left to page with. */
static bool
wired_fits(struct up_runtime *rt, uint64_t minimum, uint64_t wired, size_t limit)
{
	return minimum + wired + atomic_load(&rt->p.nwired) <= limit / PAGE_SIZE / 4 * 3;
}

int
client_may_wire(struct up_runtime *rt, const struct space *sp, uint64_t more)
{
	const uint64_t most = (rt->wire_limit >> PAGE_SHIFT) / 4;
	struct pager *p = &rt->p;
	struct log_about about;

	if (more == 0)
		return 0;
	if (sp->map.wired + more > most) {
		log_line_about(
			&p->log, client_about(sp->client, &about), UP_LOG_WARNING,
			"client %s, process %d: refused: %llu pages wired, and one may have %llu",
			sp->client->name, (int)sp->client->pid,
			(unsigned long long)sp->map.wired + more, (unsigned long long)most);
		return -EDQUOT;
	}
	/* The rest is for what it has to page in and out; see account_room(). */
	for (const struct account *a = sp->account; a != NULL; a = a->group) {
		const size_t limit = atomic_load(&a->limit);

		if (limit != 0 && wired_of(p, a) + more > limit / 2)
			return -EDQUOT;
	}
	return wired_fits(rt, minima(rt, NULL), more, rt->memory_limit) ? 0 : -ENOMEM;
}

void
clients_over(void *forks)
{
	keeper_kick(forks);
}

/* True if somebody waits for it.  => map.change is held */
static bool
reduce(struct pager *p, struct account *a, bool *full)
{
	const size_t limit = atomic_load(&a->limit);

	if (!atomic_load(&a->over))
		return false;
	if (now_ns() < a->again) {
		*full = true;
		return false;
	}
	atomic_store(&a->over, false);
	if (limit != 0 && account_reduce(p, a, account_room(p, limit)) == 0 &&
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

/* At most half of memory, and three quarters with what is wired. */
bool
clients_fit(struct up_runtime *rt, size_t limit)
{
	const size_t promised = rt->server != NULL ? minima(rt, NULL) : 0;

	return rt->server == NULL ||
	       (promised <= limit / PAGE_SIZE / 2 && wired_fits(rt, promised, 0, limit));
}

uint64_t
serve_limit_min(unsigned service_threads, size_t memory_limit)
{
	const uint64_t n = service_threads != 0 ? service_threads : runtime_services(memory_limit);

	return (RUN_MAX * n * 4) << PAGE_SHIFT;
}

/* => map.change is held */
static int
set_quota(struct up_runtime *rt, struct account *a, uint64_t limit, uint64_t minimum)
{
	if (limit != 0 && limit < serve_limit_min(rt->p.nservices, 0))
		return -EINVAL;
	if (limit != 0 && minimum > limit)
		return -EINVAL;
	if (minima(rt, a) + pages_of(minimum) > rt->memory_limit / PAGE_SIZE / 2 ||
	    (minimum > 0 &&
	     !wired_fits(rt, minima(rt, a) + pages_of(minimum), 0, rt->memory_limit)))
		return -ENOSPC;
	if (limit != 0 && wired_of(&rt->p, a) > pages_of(limit) / 2)
		return -EBUSY;
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
	sp = client_find(&rt->p, id);
	if (sp != NULL)
		r = set_quota(rt, sp->client->account, limit, minimum);
	change_end(&rt->p, &old);
	keeper_kick(rt->forks);
	return r;
}

/* NULL: there is none.  => lock */
static struct group *
find_group(struct server *sv, const char *name)
{
	struct group *g = sv->groups;

	while (g != NULL && strcmp(g->account->name, name) != 0)
		g = g->next;
	return g;
}

/* => no lock is held, as anything may be asked to make room */
static struct account *
group_account(struct up_runtime *rt, const char *name)
{
	struct server *sv = rt->server;
	struct account *fresh = account_create(&rt->p.zones, NULL);
	struct group *g, *more = calloc(1, sizeof *more);

	pthread_mutex_lock(&sv->lock);
	g = find_group(sv, name);
	if (g == NULL && more != NULL && fresh != NULL) {
		g = more;
		more = NULL;
		g->account = fresh;
		fresh = NULL;
		snprintf(g->account->name, sizeof g->account->name, "%s", name);
		g->next = sv->groups;
		sv->groups = g;
	}
	pthread_mutex_unlock(&sv->lock);
	free(more);
	account_unref(fresh);
	return g != NULL ? g->account : NULL;
}

int
serve_group_quota(struct up_runtime *rt, const char *group, uint64_t limit, uint64_t minimum)
{
	struct account *a = group_account(rt, group);
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

int
serve_group_swap(struct up_runtime *rt, const char *group, uint64_t swap)
{
	struct account *a = group_account(rt, group);

	if (a == NULL)
		return -ENOMEM;
	atomic_store(&a->swap_limit, pages_of(swap));
	return 0;
}

static void
group_info(const struct account *a, struct serve_group *info)
{
	*info = (struct serve_group){
		.limit = atomic_load(&a->limit) << PAGE_SHIFT,
		.minimum = atomic_load(&a->minimum) << PAGE_SHIFT,
		.resident = atomic_load(&a->mapped) << PAGE_SHIFT,
		.swap = atomic_load(&a->swap_limit) << PAGE_SHIFT,
		.promised = atomic_load(&a->promised) << PAGE_SHIFT,
	};
	memcpy(info->name, a->name, sizeof info->name);
}

int
serve_group_info(struct up_runtime *rt, const char *group, struct serve_group *info)
{
	struct server *sv = rt->server;
	const struct group *g;

	if (sv == NULL)
		return -ENOENT;
	pthread_mutex_lock(&sv->lock);
	g = find_group(sv, group);
	if (g != NULL)
		group_info(g->account, info);
	pthread_mutex_unlock(&sv->lock);
	return g != NULL ? 0 : -ENOENT;
}

int
serve_group_nth(struct up_runtime *rt, unsigned n, struct serve_group *info)
{
	struct server *sv = rt->server;
	const struct group *g;

	if (sv == NULL)
		return -ENOENT;
	pthread_mutex_lock(&sv->lock);
	for (g = sv->groups; g != NULL && n > 0; g = g->next)
		n--;
	if (g != NULL)
		group_info(g->account, info);
	pthread_mutex_unlock(&sv->lock);
	return g != NULL ? 0 : -ENOENT;
}

int
serve_regroup(struct up_runtime *rt, uint64_t id, const char *group)
{
	struct account *to = NULL, *from = NULL;
	struct pager *p = &rt->p;
	struct space *sp;
	sigset_t old;

	if (rt->server == NULL)
		return -ENOENT;
	if (group[0] != '\0' && (to = group_account(rt, group)) == NULL)
		return -ENOMEM;
	change_begin(p, &old);
	sp = client_find(p, id);
	if (sp != NULL) {
		struct account *a = sp->client->account;

		from = a->group;
		if (from != to) {
			page_account_move(&p->pages, a, to != NULL ? account_ref(to) : NULL);
			if (to != NULL && account_is_full(p, to))
				atomic_store(&to->over, true);
			/* Who was turned away by the old one comes again. */
			wake_turned_away(p);
		} else {
			from = NULL;
		}
	}
	change_end(p, &old);
	account_unref(from);
	keeper_kick(rt->forks);
	return sp != NULL ? 0 : -ENOENT;
}

int64_t
serve_evict(struct up_runtime *rt, uint64_t id, uint64_t bytes)
{
	struct space *sp;
	sigset_t old;
	int64_t gone = -ENOENT;

	change_begin(&rt->p, &old);
	sp = client_find(&rt->p, id);
	if (sp != NULL) {
		struct account *a = sp->client->account;
		const size_t has = atomic_load(&a->mapped);

		gone = (int64_t)account_reduce(&rt->p, a, has - MIN(has, pages_of(bytes)))
		       << PAGE_SHIFT;
	}
	change_end(&rt->p, &old);
	return gone;
}

struct account *
server_account(struct up_runtime *rt, const char *group, size_t limit, size_t minimum)
{
	const bool has = group != NULL && group[0] != '\0';
	struct account *of = has ? group_account(rt, group) : NULL;
	struct account *a = has && of == NULL ? NULL : account_create(&rt->p.zones, of);

	if (a != NULL) {
		atomic_store(&a->limit, limit);
		atomic_store(&a->minimum, minimum);
	}
	return a;
}

/* Not in the list yet, its own minimum is none of those that there are. */
int
client_quota(struct up_runtime *rt, struct client *c)
{
	return c->limits.limit == 0 && c->limits.minimum == 0
		       ? 0
		       : set_quota(rt, c->account, c->limits.limit, c->limits.minimum);
}
