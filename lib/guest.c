/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * guest.c: see guest.h.
 *
 * What lasts is done by a thread of its own, a little at a time under map.change, so that calls of others come in between:
 *
 *	take over	pages that are in the memfd and have no anon: one each, MAPPED, charged
 *	removals	(pmap/removal.h) what is not in the memfd is forgotten: zeros, and not what swap or the source has; faults go on.
 *			A while later what is believed to be in the memfd, and is not, is forgotten too.
 *
 * A page is charged when it is taken over, after it has been in memory all along: until then the budget is exceeded by it.  So the thread does not wait
 * for room to come by itself but presses pageout, and gives up frames for pages.
 *
 * A mark in the memfd (an extended attribute) says which pager has had it.  Another one, after this one was killed, finds holes that look like pages that were never touched;
 * they may be what the first has written to its swap.  It refuses, and the guest waits instead of reading zeros.  A successor (adopt.h) goes on with what the first has, and puts its own
 * mark in place of that one.
 *
 * What a successor needs: "space/N/uffd", "space/N/removals" (pmap/removal.h), and of each range "file/N", the memfd, with a record that says where in it (struct served_file); of its source
 * "file/M" and "file/M/less".  A guest is one of his once its userfaultfd is kept, which is before anything is taken over.
 */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "client.h"
#include "pager/less.h"
#include "pager/vnode.h"
#include "pmap/removal.h"
#include "store.h"

#define ADDRESS_END ((uint64_t)1 << 47)
#define TAKEN_AT_ONCE (16 * CLUSTER_MAX) /* pages taken over with map.change held */
#define REMOVED_AT_ONCE 64u		 /* removals */
#define FRAMES_SPARE (CLUSTER_MAX / 2)	 /* that are left for faults */
#define ROOM_MS 1			 /* between looks for room */
#define SWEEP_MS 200			 /* between looks at removals of some time ago */

static const char *const marks[] = { "trusted.uffd_pager", "user.uffd_pager" };

struct guests {
	struct up_runtime *rt;
	pthread_t thread;
	int kick; /* eventfd; what spaces tell of removals by */
	atomic_bool stop;
	uint64_t mark; /* ours */
};

/* Of a range: how far it has been taken over.  Keys: (m) map.change. */
struct taking {
	struct taking *next; /* (m) */
	uintptr_t start;     /* (c) in the guest */
	uint64_t at, end;    /* (m) pages of the object that its entry maps */
};

struct guest {
	int peer; /* (c) the other end of the space's socket: nobody says anything there */
	struct taking *taking; /* (m) what is not done yet */
};

/* --- taking over --- */

/* So many pages charged, those that frames have to be given up for included.  Fewer: there is no more room now.  Metadata and faults come first. */
static unsigned
charge(struct pager *p, unsigned n)
{
	frame_t f[CLUSTER_MAX];
	unsigned got = 0, there;

	if (atomic_load(&p->starved) > 0 || frames_available(p) < FRAMES_SPARE)
		return 0;
	/* Their anons are still to be made. */
	while (got < n &&
	       atomic_load(&p->budget.used) + METADATA_STEP + PAGE_SIZE <= p->budget.limit &&
	       budget_charge(&p->budget, PAGE_SIZE))
		got++;
	if (got == n)
		return n;
	/* Their charge stands for the page. */
	there = frames_there(p, n - got, f);
	for (unsigned i = 0; i < there; i++) {
		p->pmap->ops->frame_drop(p->pmap, f[i], 1);
		hole_give(&p->frames, f[i], 1);
	}
	return got + there;
}

/*
 * Pages [first, first + n) of the object, of one leaf, are in the file: those without an anon get one.  Returns how many have been dealt with; fewer than
 * n: there is no room, now.  => map.change is held
 */
static unsigned
take_run(struct pager *p, struct object *o, uint64_t first, unsigned n)
{
	const unsigned paid = charge(p, n);
	struct page *pg[CLUSTER_MAX];
	unsigned done = 0, taken = 0;
	struct leaf *leaf;
	bool denied;

	leaf = paid > 0 ? leaf_for(p, o, first, &denied) : NULL;
	if (paid > 0 && leaf == NULL)
		pager_starved(p, METADATA_STEP);
	for (; leaf != NULL && done < n; done++) {
		const unsigned at = (unsigned)(first + done - leaf->base);
		struct anon *an;

		if (leaf_anon(leaf, at) != NULL)
			continue;
		if (taken == paid)
			break;
		an = anon_alloc(&p->zones.anon);
		pg[taken] = an != NULL ? page_alloc(&p->pages, an, leaf, at, false) : NULL;
		if (pg[taken] == NULL) {
			if (an != NULL)
				anon_gone(p, an, PMAP_POOL, 0);
			pager_starved(p, METADATA_STEP);
			break;
		}
		pg[taken]->va = o->pool + ((first + done) << PAGE_SHIFT);
		pg[taken]->shard = PMAP_POOL;
		an->loc = page_no(&p->pages, pg[taken]);
		leaf_set_anon(leaf, at, an);
		taken++;
	}
	if (leaf != NULL)
		pthread_mutex_unlock(&leaf->lock);
	budget_uncharge(&p->budget, (paid - taken) * PAGE_SIZE);
	for (unsigned i = 0; i < taken; i++) {
		struct anon *an = pg[i]->anon;
		const uintptr_t va = pg[i]->va;

		page_enqueue(&p->pages, pg[i], Q_ACTIVE, PAGE_MAPPED);
		page_unbusy(p, an, PMAP_POOL, va);
	}
	return done;
}

/* Some of what is left of a range.  *room: false, it has to be made.  => map.change is held; true: there is more */
static bool
take_more(struct pager *p, struct object *o, struct taking *t, size_t *budget, bool *room)
{
	while (t->at<t->end && * budget> 0) {
		uintptr_t page = o->pool + (t->at << PAGE_SHIFT);
		size_t n = pmap_uffd_data(p->pmap, &page, (size_t)(t->end - t->at)), step;

		if (n == 0) {
			t->at = t->end;
			break;
		}
		t->at = (page - o->pool) >> PAGE_SHIFT;
		step = MIN(MIN(n, *budget), LEAF_SLOTS - t->at % LEAF_SLOTS);
		step = MIN(step, (size_t)CLUSTER_MAX);
		n = take_run(p, o, t->at, (unsigned)step);
		t->at += n;
		*budget -= n;
		if (n < step) {
			*room = false;
			return true;
		}
	}
	return t->at < t->end;
}

/* => map.change is held.  True: there is more to do */
static bool
take_over(struct pager *p, struct space *sp, bool *room)
{
	struct guest *g = sp->client->guest;
	struct account *a = sp->account;
	size_t budget = TAKEN_AT_ONCE;

	while (g->taking != NULL && budget > 0 && *room) {
		struct taking *t = g->taking;
		const struct map_entry *e = map_lookup(&sp->map, t->start);

		if (take_more(p, e->object, t, &budget, room))
			break;
		g->taking = t->next;
		free(t);
		if (g->taking == NULL)
			log_line(&p->log, UP_LOG_INFO,
				 "%s: what was in its memory has been taken over",
				 sp->client->name);
	}
	for (; a != NULL; a = a->group) {
		if (account_is_full(p, a)) {
			atomic_store(&a->over, true);
			p->over(p->over_ctx);
		}
	}
	return g->taking != NULL;
}

/* --- removals --- */

/* Whether a busy page is where the guest itself sees it. */
static bool
in_file(struct pager *p, const struct anon *an)
{
	uintptr_t va;

	if (!anon_in_core(an) || page_at(&p->pages, an->loc)->state != PAGE_MAPPED)
		return false;
	va = page_at(&p->pages, an->loc)->va;
	return pmap_uffd_data(p->pmap, &va, 1) == 1;
}

/*
 * Pages that the guest has removed: what is not in the file is forgotten.  What is there stays, for the kernel to remove; it may be new.
 * => map.change is held
 */
static void
forget(struct pager *p, struct object *o, uint64_t first, uint64_t n, bool over)
{
	const uint64_t end = first + n;
	uint64_t at = first;
	struct batch b;

	if (!over && o->backing != NULL)
		less_remove(o->backing->source, first + o->backing_offset, n);
	while (range_batch(p, o, &at, end, READS_CANCEL, &b)) {
		for (unsigned i = 0; i < b.n; i++) {
			struct anon *an = b.anon[i];
			const uintptr_t va = o->pool + ((b.leaf->base + b.at[i]) << PAGE_SHIFT);
			const bool core = anon_in_core(an);
			const bool mapped =
				core && page_at(&p->pages, an->loc)->state == PAGE_MAPPED;

			/* Until some time has passed what is MAPPED is left alone, and later whatever is not: it has come since. */
			if (over ? !mapped || in_file(p, an) : mapped) {
				page_unbusy(p, an, PMAP_POOL, va);
				continue;
			}
			release_content(p, an);
			leaf_forget(p, b.leaf, b.at[i]);
			anon_gone(p, an, PMAP_POOL, va);
		}
	}
}

/* => map.change is held.  True: there is more; *later: in a while */
static bool
removals(struct pager *p, struct space *sp, bool *later)
{
	unsigned n = 0;
	uintptr_t va;
	size_t len;
	bool over;
	int r;

	while ((r = pmap_uffd_removal(p->pmap, sp->shard, &va, &len, &over)) > 0 &&
	       n++ < REMOVED_AT_ONCE) {
		const uintptr_t end = va + len;

		for (const struct map_entry *e = map_first_from(&sp->map, va);
		     e != NULL && e->start < end; e = e->next) {
			const uintptr_t from = MAX(va, e->start), to = MIN(end, e->end);

			forget(p, e->object, e->offset + ((from - e->start) >> PAGE_SHIFT),
			       (to - from) >> PAGE_SHIFT, over);
		}
		pmap_uffd_removal_done(p->pmap, sp->shard, over);
		if (!over)
			p->pmap->ops->wake(p->pmap, sp->shard, va, len >> PAGE_SHIFT);
	}
	*later |= r < 0;
	return r > 0;
}

/* --- the thread --- */

static void *
run(void *arg)
{
	struct guests *g = arg;
	struct pager *p = &g->rt->p;

	while (!atomic_load(&g->stop)) {
		struct pollfd pf = { .fd = g->kick, .events = POLLIN };
		bool more = false, room = true, later = false;
		uint64_t count;
		sigset_t old;

		change_begin(p, &old);
		for (struct space *sp = p->spaces; sp != NULL; sp = sp->next) {
			if (sp->client == NULL || sp->client->guest == NULL)
				continue;
			more |= removals(p, sp, &later);
			more |= take_over(p, sp, &room);
		}
		change_end(p, &old);
		if (!room)
			services_press(p);
		if (poll(&pf, 1,
			 !room	 ? ROOM_MS
			 : more	 ? 0
			 : later ? SWEEP_MS
				 : -1) > 0 &&
		    read(g->kick, &count, sizeof count) < 0)
			assert(errno == EAGAIN);
	}
	return NULL;
}

static void
kick(struct guests *g)
{
	const uint64_t one = 1;

	if (write(g->kick, &one, sizeof one) < 0)
		assert(errno == EAGAIN);
}

int
guests_start(struct up_runtime *rt)
{
	struct guests *g;
	sigset_t all, old;
	int r;

	pthread_mutex_lock(&rt->start_lock);
	if (rt->guests != NULL) {
		pthread_mutex_unlock(&rt->start_lock);
		return 0;
	}
	g = calloc(1, sizeof *g);
	r = g != NULL ? 0 : -ENOMEM;
	if (r == 0) {
		g->rt = rt;
		g->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		r = g->kick < 0 ? -errno : 0;
	}
	if (r == 0 && getrandom(&g->mark, sizeof g->mark, 0) != sizeof g->mark)
		r = -EIO;
	if (r == 0) {
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &old);
		r = -pthread_create(&g->thread, NULL, run, g);
		pthread_sigmask(SIG_SETMASK, &old, NULL);
	}
	if (r == 0) {
		pthread_setname_np(g->thread, "uffd-guests");
		rt->guests = g;
	} else if (g != NULL) {
		if (g->kick > 0)
			close(g->kick);
		free(g);
	}
	pthread_mutex_unlock(&rt->start_lock);
	return r;
}

void
guests_stop(struct up_runtime *rt)
{
	struct guests *g = rt->guests;

	if (g == NULL)
		return;
	atomic_store(&g->stop, true);
	kick(g);
	pthread_join(g->thread, NULL);
}

void
guests_free(struct up_runtime *rt)
{
	if (rt->guests == NULL)
		return;
	close(rt->guests->kick);
	free(rt->guests);
	rt->guests = NULL;
}

/* --- coming and going --- */

void
guest_free(struct guest *g)
{
	struct taking *t;

	if (g == NULL)
		return;
	while ((t = g->taking) != NULL) {
		g->taking = t->next;
		free(t);
	}
	if (g->peer >= 0)
		close(g->peer);
	free(g);
}

/* Whether another pager has had the file. */
static bool
marked_by_other(const struct guests *g, int fd)
{
	for (size_t i = 0; i < ARRAY_SIZE(marks); i++) {
		uint64_t whose;

		if (fgetxattr(fd, marks[i], &whose, sizeof whose) >= 0 && whose != g->mark)
			return true;
	}
	return false;
}

/* From here on no other pager takes it. */
static void
mark(struct pager *p, const struct guests *g, int fd)
{
	int r = -ENOTSUP;

	for (size_t i = 0; i < ARRAY_SIZE(marks) && r < 0; i++)
		r = fsetxattr(fd, marks[i], &g->mark, sizeof g->mark, 0) < 0 ? -errno : 0;
	if (r < 0)
		log_line(
			&p->log, UP_LOG_WARNING,
			"a guest's memory can not be marked (%s): a pager after this one would take what is in swap for zeros",
			strerrorname_np(-r));
}

static int
check_region(const struct guest_region *rg)
{
	struct statfs fs;
	struct stat st;

	if (((rg->start | rg->length | rg->offset | rg->source_offset) & PAGE_MASK) != 0 ||
	    rg->start < PAGE_SIZE || rg->length == 0 || rg->length > ADDRESS_END ||
	    rg->start > ADDRESS_END - rg->length || rg->offset > INT64_MAX - rg->length ||
	    rg->source_offset > INT64_MAX - rg->length)
		return -EINVAL;
	if (fstat(rg->memfd, &st) < 0 || fstatfs(rg->memfd, &fs) < 0)
		return -errno;
	/* Huge pages are of another file system; who names a file may open it to write. */
	if (!S_ISREG(st.st_mode) || fs.f_type != TMPFS_MAGIC || st.st_nlink > 0 ||
	    (fcntl(rg->memfd, F_GETFL) & (O_ACCMODE | O_PATH)) != O_RDWR)
		return -EINVAL;
	if ((uint64_t)st.st_size < rg->offset + rg->length)
		return -EINVAL;
	return 0;
}

int
guest_source(struct up_runtime *rt, int fd, uint64_t offset, uint64_t length, int less,
	     struct up_object **o)
{
	struct source *src;
	bool readonly;
	int r = vnode_file(fd, offset, length, (rt->mask & UP_MASK_ODIRECT) == 0, &readonly, &src);

	if (r == 0)
		r = less_source(src, less, &src);
	return r < 0 ? r : object_create_source(rt, "guest", src, true, o);
}

/* What the range's pages come from: an object over its source.  0: *o has a handle, the caller's; NULL: zeros. */
static int
source_of(struct up_runtime *rt, const struct guest_region *rg, struct up_object **o)
{
	const struct served_file what = { .op = GUEST_SOURCE,
					  .offset = rg->source_offset,
					  .length = rg->length };
	int less, r;

	*o = NULL;
	if (rg->source < 0)
		return 0;
	less = rt->p.store != NULL ? less_file(rg->length) : -1;
	if (rt->p.store != NULL && less < 0)
		return less;
	r = guest_source(rt, rg->source, rg->source_offset, rg->length, less, o);
	if (r == 0 && less >= 0) {
		const struct object *const from = (const struct object *)*o;

		store_keep(rt->p.store, "file", from->id, "less", less);
		r = server_note_file(rt, from, &what, rg->source);
		if (r < 0) {
			store_drop(rt->p.store, "file", from->id, "less");
			up_object_unref(*o);
			*o = NULL;
		}
	}
	if (less >= 0)
		close(less);
	return r;
}

/* Two ranges may not have the same pages of a file: they would be taken out of one behind the other's back.  => map.change is held */
static int
check_file(const struct pager *p, const struct guest_region *rg)
{
	struct stat st;

	if (fstat(rg->memfd, &st) < 0)
		return -errno;
	return pmap_uffd_adopted(p->pmap, st.st_dev, st.st_ino, rg->offset, rg->length) ? -EEXIST
											: 0;
}

/* A range is there: what is in the file is still to be taken over.  => map.change is held */
static void
take_on(struct space *sp, const struct map_entry *e, struct taking *t)
{
	*t = (struct taking){ sp->client->guest->taking, e->start, 0, e->object->npages };
	sp->client->guest->taking = t;
}

/* Its files are ours.  => map.change is held, it is a successor's too by now, and nothing of what is new has been taken out */
static void
mark_all(struct pager *p, const struct guests *g, const struct space *sp)
{
	uint64_t at;

	for (const struct map_entry *e = sp->map.first; e != NULL; e = e->next)
		mark(p, g, pmap_uffd_pool_fd(p->pmap, e->object->pool, &at));
}

/*
 * => map.change is held, the space is in the list and has its userfaultfd; `from` as of source_of(), which stays the caller's
 */
static int
add(struct up_runtime *rt, struct space *sp, const struct guest_region *rg, struct object *from)
{
	const struct served_file what = { .op = GUEST_MEMORY,
					  .offset = rg->offset,
					  .length = rg->length };
	struct client *c = sp->client;
	struct pager *p = &rt->p;
	struct taking *t = calloc(1, sizeof *t);
	struct map_entry *e = entry_alloc(p);
	struct object *o = NULL;
	uint64_t first = 0;
	uintptr_t pool;
	int r = t == NULL || e == NULL ? -ENOMEM : 0;

	if (r == 0)
		r = client_room(rt, sp, rg->start, rg->length, 1, rg->length >> PAGE_SHIFT, NULL);
	if (r == 0)
		r = check_file(p, rg);
	if (r == 0 && marked_by_other(rt->guests, rg->memfd))
		r = -ESTALE;
	if (r == 0)
		r = object_to_map(rt, rg->length >> PAGE_SHIFT, UP_PRIVATE, from, &first, &o);
	if (r != 0)
		goto fail;
	o->apart = o->guest = true;
	object_pays(o, account_ref(c->account));
	r = server_note_file(rt, o, &what, rg->memfd);
	if (r < 0)
		goto unref;
	r = pmap_uffd_adopt(p->pmap, sp->shard, rg->memfd, rg->offset, rg->length >> PAGE_SHIFT,
			    &pool);
	if (r == 0) {
		pthread_rwlock_wrlock(&p->map.lock);
		o->pool = pool;
		pthread_rwlock_unlock(&p->map.lock);
		r = pmap_uffd_guard(p->pmap, sp->shard, rg->start, rg->length);
	}
	if (r < 0)
		goto unref;
	e->start = rg->start;
	e->end = rg->start + rg->length;
	e->object = o;
	e->prot = PROT_READ | PROT_WRITE;
	e->flags = UP_PRIVATE;
	e->advice = UP_ADVICE_NORMAL;
	e->shard = sp->shard;
	e->serial = ++p->next_serial;
	r = space_place(p, "guest_attach", e);
	if (r < 0)
		goto unref;
	pthread_rwlock_wrlock(&p->map.lock);
	r = map_insert(&sp->map, e);
	pthread_rwlock_unlock(&p->map.lock);
	assert(r == 0); /* client_room() has looked */
	take_on(sp, e, t);
	/* Who has faulted already may be parked, or have been dropped. */
	p->pmap->ops->wake(p->pmap, sp->shard, rg->start, rg->length >> PAGE_SHIFT);
	return 0;
unref:
	object_unref(o);
fail:
	if (e != NULL)
		entry_free(p, e);
	free(t);
	return r;
}

int
guest_return(struct client *c)
{
	struct guest *g = calloc(1, sizeof *g);
	int sock[2], r;

	if (g == NULL)
		return -ENOMEM;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sock) < 0) {
		r = -errno;
		free(g);
		return r;
	}
	g->peer = sock[1];
	c->guest = g;
	return sock[0];
}

/* A space for it, with its userfaultfd, which is not kept yet.  => map.change is held; cfg->uffd is used up */
static int
make_space(struct up_runtime *rt, const struct guest_config *cfg, struct client *c,
	   struct space **out)
{
	const int sock = guest_return(c), removed = sock >= 0 ? removals_file() : -1;
	struct pager *p = &rt->p;
	struct space *sp = NULL;
	int r = sock < 0 ? sock : removed < 0 ? removed : client_quota(rt, c);

	if (r == 0)
		r = client_space(p, c, sock, &sp);

	if (r == 0) {
		sp->attached = true;
		sp->acked = true; /* there is nobody to be told */
		atomic_store(&sp->pid, (int)cfg->pid);
		*out = sp;
		store_keep(p->store, "space", sp->id, "removals", removed);
		r = pmap_uffd_guest(p->pmap, sp->shard, cfg->uffd, cfg->pid, rt->guests->kick,
				    removed);
	} else {
		if (sock >= 0)
			close(sock);
		close(cfg->uffd);
	}
	if (removed >= 0)
		close(removed);
	return r;
}

int
guest_attach(struct up_runtime *rt, const struct guest_config *cfg,
	     const struct guest_region region[], size_t n, uint64_t *id)
{
	struct up_object **from = calloc(n, sizeof(struct up_object *));
	struct pager *p = &rt->p;
	struct client *c = NULL;
	struct space *sp = NULL;
	sigset_t old;
	int r = from == NULL ? -ENOMEM : 0;

	for (size_t i = 0; i < n && r == 0; i++)
		r = check_region(&region[i]);
	if (r == 0)
		r = guests_start(rt);
	for (size_t i = 0; i < n && r == 0; i++)
		r = source_of(rt, &region[i], &from[i]);
	if (r == 0)
		r = client_create(rt, &cfg->limits, cfg->pid, cfg->uid, cfg->gid, cfg->name, &c);
	if (r == 0) {
		c->tag = cfg->tag;
		change_begin(p, &old);
		r = make_space(rt, cfg, c, &sp);
		for (size_t i = 0; i < n && r == 0; i++)
			r = add(rt, sp, &region[i], (struct object *)from[i]);
		/* From here on it is a successor's, too. */
		if (r == 0)
			store_keep(p->store, "space", sp->id, "uffd", cfg->uffd);
		if (r == 0)
			mark_all(p, rt->guests, sp);
		if (r == 0)
			r = pmap_uffd_guest_serve(p->pmap, sp->shard);
		/* No fault has been read, so nothing of it has been put in or taken out. */
		if (sp != NULL && r < 0)
			pmap_uffd_guest_leave(p->pmap, sp->shard, true);
		if (sp != NULL)
			*id = sp->id;
		change_end(p, &old);
	} else {
		close(cfg->uffd);
	}
	for (size_t i = 0; from != NULL && i < n; i++)
		up_object_unref(from[i]);
	free(from);
	if (sp != NULL) {
		/* The keeper ends what did not come about, as all spaces. */
		keeper_kick(rt->forks);
		if (r < 0)
			serve_end(rt, *id);
		else
			kick(rt->guests);
	} else if (c != NULL) {
		client_discard(rt, c);
	}
	return r;
}

int
guest_resume(struct up_runtime *rt, struct space *sp, int uffd, int removed)
{
	struct pager *p = &rt->p;
	int r = pmap_uffd_guest(p->pmap, sp->shard, uffd, (pid_t)atomic_load(&sp->pid),
				rt->guests->kick, removed);

	for (const struct map_entry *e = sp->map.first; r == 0 && e != NULL; e = e->next) {
		struct taking *t = malloc(sizeof *t);

		if (t != NULL)
			take_on(sp, e, t);
		else
			r = -ENOMEM;
	}
	if (r == 0) {
		mark_all(p, rt->guests, sp);
		r = pmap_uffd_guest_serve(p->pmap, sp->shard);
	}
	kick(rt->guests);
	return r;
}

int
guest_add(struct up_runtime *rt, uint64_t id, const struct guest_region *region)
{
	struct pager *p = &rt->p;
	struct up_object *from = NULL;
	struct space *sp;
	sigset_t old;
	int r;

	r = check_region(region);
	if (r == 0)
		r = source_of(rt, region, &from);
	if (r < 0)
		return r;
	change_begin(p, &old);
	sp = client_find(p, id);
	r = sp != NULL && sp->client->guest != NULL ? add(rt, sp, region, (struct object *)from)
						    : -ENOENT;
	if (r == 0)
		mark_all(p, rt->guests, sp);
	change_end(p, &old);
	up_object_unref(from);
	if (r == 0)
		kick(rt->guests);
	return r;
}

int
guest_leave(struct up_runtime *rt, uint64_t id)
{
	struct pager *p = &rt->p;
	struct space *sp;
	sigset_t old;

	change_begin(p, &old);
	sp = client_find(p, id);
	if (sp != NULL) {
		sp->client->leaving = true;
		stores_in_order();
		pmap_uffd_guest_leave(p->pmap, sp->shard, false);
	}
	change_end(p, &old);
	return sp != NULL ? serve_end(rt, id) : -ENOENT;
}

int
guest_uffd(struct up_runtime *rt, uint64_t id)
{
	struct pager *p = &rt->p;
	const struct space *sp;
	sigset_t old;
	int fd = -ENOENT;

	change_begin(p, &old);
	sp = client_find(p, id);
	if (sp != NULL && sp->client->guest != NULL) {
		fd = pmap_uffd_guest_fd(p->pmap, sp->shard);
		fd = fd < 0 ? -EMFILE : fd;
	}
	change_end(p, &old);
	return fd;
}

int64_t
guest_regions(struct up_runtime *rt, uint64_t id, struct guest_region region[], size_t n)
{
	struct pager *p = &rt->p;
	const struct space *sp;
	int64_t i = -ENOENT;
	sigset_t old;

	change_begin(p, &old);
	sp = client_find(p, id);
	if (sp != NULL && sp->client->guest != NULL) {
		i = 0;
		for (const struct map_entry *e = sp->map.first; e != NULL; e = e->next, i++) {
			uint64_t at = 0;

			if ((uint64_t)i >= n)
				continue;
			(void)pmap_uffd_pool_fd(p->pmap, e->object->pool, &at);
			region[i] = (struct guest_region){ .start = e->start,
							   .length = e->end - e->start,
							   .memfd = -1,
							   .offset = at,
							   .source = -1 };
		}
	}
	change_end(p, &old);
	return i;
}

int64_t
guest_left(struct up_runtime *rt, uint64_t id)
{
	struct pager *p = &rt->p;
	const struct space *sp;
	int64_t left = -ENOENT;
	sigset_t old;

	change_begin(p, &old);
	sp = client_find(p, id);
	if (sp != NULL && sp->client->guest != NULL) {
		left = 0;
		for (const struct taking *t = sp->client->guest->taking; t != NULL; t = t->next)
			left += (int64_t)(t->end - t->at);
	}
	change_end(p, &old);
	return left;
}
