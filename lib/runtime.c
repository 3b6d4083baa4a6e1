/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * runtime.c: the public calls: create, map, unmap, protect, advise, objects, destroy.
 *
 * Calls that change mappings hold map.change from beginning to end, also across their system
 * calls and while they wait for busy pages; map.lock only while entries change.  So a range is never in two
 * hands, and service threads are never kept from the map by a caller that waits for them.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "base/hash.h"
#include "client.h"
#include "pager/source.h"
#include "remote.h"
#include "runtime.h"
#include "sigbus.h"
#include "store.h"
#include "sysmem.h"

#define STACK_SIZE ((size_t)256 << 10)
#define STACK_TOUCH ((size_t)32 << 10)
/* What a service thread costs besides its struct: the touched stack, its io_uring's rings. */
#define TRACK_OVERHEAD ((size_t)256 << 10) /* the list of events */

/* up_config.io_poll_us */
#define IO_POLL_US 200
#define IO_POLL_MAX_US 1000000

#define PROT_VALID (PROT_READ | PROT_WRITE)

/* How often it is tried, every millisecond, to make room for metadata if nothing is under way; and in all, for disks stand still for seconds. */
#define RECLAIM_IDLE 1000
#define RECLAIM_TURNS 60000
#define AGAIN_TRIES 5000 /* ms that a call makes way for what the program does to regions itself */

/* --- the real foundation --- */

static int
real_pmap_create(void *ctx, struct pmap **pm, frame_t nstage, unsigned nshards, uint64_t mask,
		 const struct logger *log)
{
	(void)ctx;
	return pmap_uffd_create(pm, nstage, nshards, mask, log);
}

static int
real_swap_open(void *ctx, struct swap_area *s, struct arena *arena, const struct up_config *cfg,
	       const struct logger *log)
{
	(void)ctx;
	return swap_area_open(s, arena, cfg->swap_path, cfg->swap_fd, cfg->swap_size,
			      cfg->feature_mask, log);
}

static int
real_engine_create(void *ctx, struct io_engine **e, struct pager *p, unsigned service,
		   unsigned depth, uint64_t mask)
{
	(void)ctx;
	return io_engine_uring_create(e, &p->swap, pmap_uffd_fd(p->pmap, service),
				      pmap_uffd_more_fd(p->pmap, service), depth, mask, &p->log);
}

/* sysmem_ops with a way to make room; filled in by up_runtime_create(). */
static struct arena_ops real_memory;

static const struct backend real_backend = {
	.memory = &real_memory,
	.pmap_create = real_pmap_create,
	.swap_open = real_swap_open,
	.engine_create = real_engine_create,
};

static pthread_once_t real_once = PTHREAD_ONCE_INIT;

static void
real_init(void)
{
	real_memory = sysmem_ops;
	real_memory.reclaim = runtime_reclaim;
}

/* --- waiting for room --- */

int
runtime_reclaim(void *ctx, size_t bytes)
{
	struct pager *p = ctx;
	const struct timespec ms = { .tv_nsec = 1000000 };
	unsigned idle = 0;

	for (unsigned turn = 0; turn < RECLAIM_TURNS && idle < RECLAIM_IDLE; turn++) {
		if (atomic_load(&p->budget.used) + bytes <= p->budget.limit)
			return 0;
		pager_starved(p, bytes);
		if (frames_shrink(p))
			continue;
		for (unsigned k = 0; k < p->nservices; k++)
			p->service[k]->io->ops->kick(p->service[k]->io);
		if (p->idle != NULL)
			p->idle(p->idle_ctx);
		else
			clock_nanosleep(CLOCK_MONOTONIC, 0, &ms, NULL);
		idle += atomic_load(&p->laundering) == 0;
	}
	return -ENOMEM;
}

/* --- create --- */

/* The limit as configured, or a quarter of what there is. */
static size_t
choose_limit(size_t configured, const struct logger *log)
{
	bool in_cgroup;
	const size_t total = sysmem_total(&in_cgroup);

	if (configured == 0)
		return MAX(MIN(total, SIZE_MAX / 8) / 4 & ~PAGE_MASK, UP_MEMORY_LIMIT_MIN);
	if (configured >= total)
		log_line(
			log, UP_LOG_WARNING,
			"memory_limit %zu is not below the %zu bytes of %s: the kernel may kill first",
			configured, total, in_cgroup ? "the memory cgroup" : "this machine");
	return configured;
}

unsigned
runtime_services(size_t limit)
{
	const long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	/* Each costs a quarter of a megabyte: not where the limit is small. */
	if (limit < ((size_t)32 << 20))
		return 1;
	return (unsigned)MIN(MAX(cpus, 1), 4);
}

static int
check_config(const struct up_config *cfg, const struct logger *log)
{
	static const uint64_t none[ARRAY_SIZE(cfg->reserved)];

	if (cfg->memory_limit != 0 && cfg->memory_limit < UP_MEMORY_LIMIT_MIN) {
		log_line(log, UP_LOG_ERROR,
			 "up_runtime_create: memory_limit %zu is below the minimum, %zu",
			 cfg->memory_limit, UP_MEMORY_LIMIT_MIN);
		return -EINVAL;
	}
	if (MAX(cfg->memory_limit, cfg->memory_limit_max) / PAGE_SIZE > UINT32_MAX / 2) {
		log_line(log, UP_LOG_ERROR,
			 "up_runtime_create: memory_limit %zu, memory_limit_max %llu: above 8 TiB",
			 cfg->memory_limit, (unsigned long long)cfg->memory_limit_max);
		return -EINVAL;
	}
	if (cfg->memory_limit_max != 0 && cfg->memory_limit_max < cfg->memory_limit) {
		log_line(log, UP_LOG_ERROR,
			 "up_runtime_create: memory_limit_max %llu is below memory_limit %zu",
			 (unsigned long long)cfg->memory_limit_max, cfg->memory_limit);
		return -EINVAL;
	}
	if (cfg->service_threads > MAX_SERVICES) {
		log_line(log, UP_LOG_ERROR, "up_runtime_create: service_threads %u is above %d",
			 cfg->service_threads, MAX_SERVICES);
		return -EINVAL;
	}
	if ((unsigned)cfg->compression > UP_COMPRESS_ZSTD) {
		log_line(log, UP_LOG_ERROR, "up_runtime_create: compression %d is none",
			 (int)cfg->compression);
		return -EINVAL;
	}
	if (cfg->memory_limit != 0 && cfg->compress_limit > cfg->memory_limit) {
		log_line(log, UP_LOG_ERROR,
			 "up_runtime_create: compress_limit %llu is above memory_limit %zu",
			 (unsigned long long)cfg->compress_limit, cfg->memory_limit);
		return -EINVAL;
	}
	if (cfg->delivery != UP_DELIVER_SERVICE && cfg->delivery != UP_DELIVER_INLINE) {
		log_line(log, UP_LOG_ERROR, "up_runtime_create: delivery %d is none",
			 (int)cfg->delivery);
		return -EINVAL;
	}
	if (cfg->io_poll_us > IO_POLL_MAX_US && cfg->io_poll_us != UP_NO_IO_POLL) {
		log_line(log, UP_LOG_ERROR, "up_runtime_create: io_poll_us %llu is above %d",
			 (unsigned long long)cfg->io_poll_us, IO_POLL_MAX_US);
		return -EINVAL;
	}
	if (cfg->feature_mask & ~UP_MASK_ALL) {
		log_line(log, UP_LOG_ERROR,
			 "up_runtime_create: feature_mask has unknown bits %#llx",
			 (unsigned long long)(cfg->feature_mask & ~UP_MASK_ALL));
		return -EINVAL;
	}
	if (cfg->flags & ~(UP_OVERCOMMIT | UP_TRACK_FOREIGN)) {
		log_line(log, UP_LOG_ERROR, "up_runtime_create: flags has unknown bits %#x",
			 cfg->flags & ~UP_OVERCOMMIT);
		return -EINVAL;
	}
	if (cfg->memory_limit != 0 && cfg->wire_limit > cfg->memory_limit) {
		log_line(log, UP_LOG_ERROR,
			 "up_runtime_create: wire_limit %llu is above memory_limit %zu",
			 (unsigned long long)cfg->wire_limit, cfg->memory_limit);
		return -EINVAL;
	}
	if (cfg->swap_path != NULL && cfg->swap_fd > 0) {
		log_line(log, UP_LOG_ERROR,
			 "up_runtime_create: both swap_path and swap_fd are set");
		return -EINVAL;
	}
	if (cfg->swap_path != NULL && cfg->swap_path[0] == '\0') {
		log_line(log, UP_LOG_ERROR, "up_runtime_create: swap_path is an empty string");
		return -EINVAL;
	}
	if (memcmp(cfg->reserved, none, sizeof none) != 0) {
		log_line(log, UP_LOG_ERROR, "up_runtime_create: reserved fields are not zero");
		return -EINVAL;
	}
	return 0;
}

/* Swap slots for `need` pages, and some to spare, so that clusters find neighbours when it is nearly full. */
static int
grow_swap(void *ctx, uint64_t need, uint64_t *max)
{
	struct pager *p = ctx;
	int r;

	if (need > SLOT_NONE - need / 16 - 1)
		return -ENOSPC;
	r = swap_area_grow(&p->swap, (size_t)(need + need / 16));
	if (r == -ENOSPC)
		r = swap_area_grow(&p->swap, (size_t)need);
	if (r == 0)
		*max = p->swap.nslots - p->swap.nbad;
	return r;
}

/* Fault the stack in now: later the thread may not take a page fault at an awkward moment. */
static void __attribute__((noinline)) touch_stack(void)
{
	volatile char room[STACK_TOUCH];

	for (size_t i = 0; i < sizeof room; i += 1024)
		room[i] = 0;
}

static void
report_started(struct up_runtime *rt, int error)
{
	pthread_mutex_lock(&rt->start_lock);
	if (error == 0)
		rt->started++;
	else
		rt->failed++;
	if (error < 0 && rt->start_error == 0)
		rt->start_error = error;
	pthread_cond_signal(&rt->start_cond);
	pthread_mutex_unlock(&rt->start_lock);
}

/* While one service still runs it may kick any other's engine: none goes before all have come to rest. */
static void
wait_for_others(struct up_runtime *rt)
{
	pthread_mutex_lock(&rt->start_lock);
	rt->started--;
	pthread_cond_broadcast(&rt->start_cond);
	while (rt->started > 0)
		pthread_cond_wait(&rt->start_cond, &rt->start_lock);
	pthread_mutex_unlock(&rt->start_lock);
}

static void *
service_thread(void *arg)
{
	struct service *s = arg;
	struct up_runtime *rt = container_of(s->p, struct up_runtime, p);
	int r;

	touch_stack();
	r = rt->backend->engine_create(rt->backend->ctx, &s->io, s->p, s->id, NREADS + NWRITES,
				       rt->mask);
	report_started(rt, r);
	if (r < 0)
		return NULL;
	service_run(s);
	wait_for_others(rt);
	s->io->ops->destroy(s->io); /* an engine belongs to its thread to the last */
	s->io = NULL;
	return NULL;
}

/*
 * Threads are created with every signal blocked but SIGBUS: handlers run in the program's own threads.  But a custom pager may use
 * memory of another runtime, which serves the threads that touch it by SIGBUS.
 */
static int
start_thread(struct service *s)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int r;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_SIZE);
	sigfillset(&all);
	sigdelset(&all, SIGBUS);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&s->thread, &attr, service_thread, s);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	if (r == 0)
		pthread_setname_np(s->thread, "uffd-pager");
	return -r;
}

/* Ask service threads [0, n) to finish, and wait until they have. */
static void
stop_threads(struct pager *p, unsigned n)
{
	struct up_runtime *rt = container_of(p, struct up_runtime, p);

	/* Under the lock none of them gets as far as giving its engine up. */
	pthread_mutex_lock(&rt->start_lock);
	for (unsigned i = 0; i < n; i++) {
		struct service *s = p->service[i];

		atomic_store_explicit(&s->stop, true, memory_order_release);
		if (s->io != NULL)
			s->io->ops->kick(s->io);
	}
	pthread_mutex_unlock(&rt->start_lock);
	for (unsigned i = 0; i < n; i++)
		pthread_join(p->service[i]->thread, NULL);
}

static int
start_services(struct up_runtime *rt)
{
	struct pager *p = &rt->p;
	unsigned n;
	int r = 0;

	if (rt->backend->idle != NULL) {
		for (unsigned i = 0; i < p->nservices && r == 0; i++)
			r = rt->backend->engine_create(rt->backend->ctx, &p->service[i]->io, p, i,
						       NREADS + NWRITES, rt->mask);
		return r;
	}
	for (n = 0; n < p->nservices && r == 0; n++)
		r = start_thread(p->service[n]);
	if (r < 0)
		n--;
	pthread_mutex_lock(&rt->start_lock);
	while (rt->started + rt->failed < n)
		pthread_cond_wait(&rt->start_cond, &rt->start_lock);
	if (r == 0)
		r = rt->start_error;
	pthread_mutex_unlock(&rt->start_lock);
	if (r < 0)
		stop_threads(p, n);
	return r;
}

static void
free_services(struct pager *p)
{
	for (unsigned i = 0; i < p->nservices; i++) {
		struct service *s = p->service[i];

		if (s != NULL && s->io != NULL)
			s->io->ops->destroy(s->io);
		service_free(s);
	}
}

size_t
runtime_nstage(size_t memory_limit)
{
	/* A quarter more addresses than frames: runs of neighbours stay easy to find. */
	const size_t n = memory_limit / PAGE_SIZE;

	return round_up(n + n / 4 + (size_t)4 * CLUSTER_MAX, 64);
}

int
runtime_create(struct up_runtime **out, const struct up_config *cfg, const struct backend *b)
{
	static const struct up_config defaults;
	struct up_runtime *rt;
	struct pager *p;
	size_t nstage;
	int r;

	if (out == NULL)
		return -EINVAL;
	*out = NULL;
	if (cfg == NULL)
		cfg = &defaults;
	r = check_config(cfg, &(struct logger){ .fn = cfg->log, .ctx = cfg->log_ctx });
	if (r < 0)
		return r;
	rt = calloc(1, sizeof *rt);
	if (rt == NULL)
		return -ENOMEM;
	p = &rt->p;
	rt->backend = b;
	rt->pid = getpid();
	rt->mask = cfg->feature_mask;
	rt->overcommit = (cfg->flags & UP_OVERCOMMIT) != 0;
	if (cfg->flags & UP_TRACK_FOREIGN)
		rt->mask |= UP_MASK_SHARED | PMAP_TRACK;
	p->workers.on = cfg->delivery == UP_DELIVER_INLINE;
	if (p->workers.on)
		rt->mask |= PMAP_INTHREAD;
	p->log = (struct logger){ .fn = cfg->log, .ctx = cfg->log_ctx };
	rt->memory_limit = choose_limit(cfg->memory_limit, &p->log);
	rt->memory_most = MAX(rt->memory_limit, cfg->memory_limit_max);
	rt->wire_wanted = cfg->wire_limit;
	rt->wire_limit = limit_of_wired(rt, rt->memory_limit);
	p->fault_timeout =
		(uint64_t)(cfg->fault_timeout_ms != 0 ? cfg->fault_timeout_ms : 30000) * 1000000;
	polling_init(&p->polling, cfg->io_poll_us == UP_NO_IO_POLL ? 0
				  : cfg->io_poll_us != 0	   ? cfg->io_poll_us
								   : IO_POLL_US);
	p->workers.mask = cfg->feature_mask;
	p->nservices = cfg->service_threads != 0 ? cfg->service_threads
						 : runtime_services(rt->memory_limit);
	p->store = b->store;
	p->idle = b->idle;
	p->idle_ctx = b->ctx;
	p->worker_engine = b->worker_engine;
	p->worker_ctx = b->ctx;
	pthread_mutex_init(&rt->limit_lock, NULL);
	pthread_mutex_init(&rt->start_lock, NULL);
	pthread_cond_init(&rt->start_cond, NULL);
	pthread_mutex_init(&rt->held.lock, NULL);
	if (p->workers.on)
		p->log.held = &rt->held;
	tier_choose(p, cfg->compression, b->store != NULL ? &b->store->zplace : NULL);
	p->policy = b->policy;
	p->hash_seed = b->hash_seed;
	if (p->hash_seed == 0 &&
	    getrandom(&p->hash_seed, sizeof p->hash_seed, 0) != (ssize_t)sizeof p->hash_seed) {
		r = -EIO;
		goto free_rt;
	}

	nstage = runtime_nstage(rt->memory_most);
	r = b->pmap_create(b->ctx, &p->pmap, (frame_t)nstage, p->nservices, rt->mask, &p->log);
	if (r < 0)
		goto free_rt;
	budget_init(&p->budget, rt->memory_limit - p->pmap->headroom);
	r = arena_init(&p->arena, b->memory, p, &p->budget, rt->memory_most);
	if (r < 0)
		goto free_pmap;
	r = heaps_init(&rt->heaps, &p->arena, rt->memory_most / 2);
	if (r < 0)
		goto fini_arena;
	arena_sub_limit(&rt->heaps.arena, rt->memory_limit / 2);
	zone_init(&p->space_zone, &p->arena, "space", sizeof(struct space), NULL, NULL);
	zone_init(&p->place_zone, &p->arena, "place", MAX(p->pmap->place_size, 16), NULL, NULL);
	p->pmap->places = &p->place_zone;
	p->overhead = b->idle == NULL ? p->nservices * THREAD_OVERHEAD : 0;
	if (b->idle == NULL && (rt->mask & PMAP_TRACK))
		p->overhead += THREAD_OVERHEAD + TRACK_OVERHEAD;
	r = -ENOMEM;
	if (!budget_charge(&p->budget, p->overhead))
		goto fini_heaps;
	for (unsigned i = 0; i < p->nservices; i++) {
		if (service_alloc(p, i) == NULL) {
			log_line(&p->log, UP_LOG_ERROR,
				 "memory_limit %zu is too small for service_threads %u",
				 rt->memory_limit, p->nservices);
			goto free_services;
		}
	}
	r = b->swap_open(b->ctx, &p->swap, &p->arena, cfg, &p->log);
	if (r < 0)
		goto free_services;
	resv_init(&p->resv_swap, p->swap.nslots, p->swap.fixed ? NULL : grow_swap, p);
	r = pager_init(p, rt->memory_most - p->pmap->headroom);
	if (r < 0) {
		log_line(&p->log, UP_LOG_ERROR, "no memory for the runtime within memory_limit %zu",
			 rt->memory_limit);
		goto close_swap;
	}
	if (p->store != NULL)
		p->zones.relink = &p->store->root->relink;
	if (p->tier.kind != UP_COMPRESS_NONE) {
		r = tier_init(p, (size_t)cfg->compress_limit, rt->memory_most - p->pmap->headroom);
		if (r < 0) {
			log_line(&p->log, UP_LOG_ERROR,
				 "memory_limit %zu is too small for compression", rt->memory_limit);
			goto fini_pager;
		}
	}
	if (p->workers.on) {
		r = workers_init(p);
		if (r < 0) {
			log_line(&p->log, UP_LOG_ERROR,
				 "memory_limit %zu is too small for UP_DELIVER_INLINE",
				 rt->memory_limit);
			goto fini_pager;
		}
		r = b->idle == NULL ? sigbus_add(p) : 0;
		if (r < 0)
			goto fini_workers;
	}
	if (rt->mask & PMAP_TRACK) {
		/* Before there is somebody to call it. */
		r = foreign_start(&rt->foreign, p, b->idle == NULL);
		if (r < 0)
			goto remove_bus;
		p->foreign = &rt->foreign;
	}
	r = start_services(rt);
	if (r < 0)
		goto stop_keeper;
	*out = rt;
	return 0;

stop_keeper:
	if (p->foreign != NULL)
		foreign_fini(p->foreign);
remove_bus:
	if (p->workers.on && b->idle == NULL)
		sigbus_remove(p);
fini_workers:
	if (p->workers.on)
		workers_fini(p);
fini_pager:
	pager_fini(p);
close_swap:
	resv_fini(&p->resv_swap);
	swap_area_close(&p->swap);
free_services:
	free_services(p);
	budget_uncharge(&p->budget, p->overhead);
fini_heaps:
	zone_fini(&p->place_zone);
	zone_fini(&p->space_zone);
	heaps_fini(&rt->heaps, p);
fini_arena:
	arena_fini(&p->arena);
free_pmap:
	p->pmap->ops->destroy(p->pmap);
free_rt:
	log_flush(&p->log);
	pthread_mutex_destroy(&rt->held.lock);
	pthread_cond_destroy(&rt->start_cond);
	pthread_mutex_destroy(&rt->start_lock);
	pthread_mutex_destroy(&rt->limit_lock);
	free(rt);
	return r;
}

const struct backend *
runtime_backend(void)
{
	pthread_once(&real_once, real_init);
	return &real_backend;
}

int
up_runtime_create(struct up_runtime **rt, const struct up_config *cfg)
{
	return runtime_create(rt, cfg, runtime_backend());
}

/* --- ranges --- */

/* The calling process is not the one that created the runtime: nothing may be touched. */
static bool
foreign(const struct up_runtime *rt)
{
	return rt->pid != getpid();
}

int
check_process(const struct up_runtime *rt, const char *call)
{
	if (!foreign(rt))
		return 0;
	log_line(&rt->p.log, UP_LOG_ERROR, "%s: a runtime does not follow into a forked child",
		 call);
	return -ECHILD;
}

void
signals_hold(sigset_t *old)
{
	/* Those that an instruction raises can not wait. */
	static const int own[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT };
	sigset_t set;

	sigfillset(&set);
	for (size_t i = 0; i < ARRAY_SIZE(own); i++)
		sigdelset(&set, own[i]);
	pthread_sigmask(SIG_BLOCK, &set, old);
}

void
signals_release(const sigset_t *old)
{
	pthread_sigmask(SIG_SETMASK, old, NULL);
}

void
change_begin(struct pager *p, sigset_t *old)
{
	signals_hold(old);
	pthread_mutex_lock(&p->map.change);
	if (p->foreign != NULL)
		foreign_begin(p->foreign);
}

bool
change_again(struct pager *p, int r, unsigned tries)
{
	if (p->foreign == NULL || r != -EAGAIN || tries >= AGAIN_TRIES)
		return false;
	range_doze(p);
	return true;
}

int
map_addresses(struct pager *p, uintptr_t hint, bool fixed, size_t len, int prot, unsigned shard,
	      uintptr_t *va)
{
	int r = p->pmap->ops->map(p->pmap, hint, fixed, len, prot, shard, va);

	if (r == 0 && p->foreign != NULL) {
		r = foreign_clear(p->foreign, *va, len, shard);
		if (r < 0)
			p->pmap->ops->unmap(p->pmap, *va, len, shard);
	}
	return r;
}

void
move_begin(struct pager *p, sigset_t *old)
{
	change_begin(p, old);
	atomic_fetch_add(&p->moving, 1);
}

void
move_end(struct pager *p, const sigset_t *old)
{
	atomic_fetch_sub(&p->moving, 1);
	change_end(p, old);
}

void
change_end(struct pager *p, const sigset_t *old)
{
	pthread_mutex_unlock(&p->map.change);
	signals_release(old);
}

int
check_range(struct up_runtime *rt, const char *call, uintptr_t addr, size_t length)
{
	if (addr & PAGE_MASK)
		return bad(rt, "%s: address %#lx is not a multiple of the page size", call,
			   (unsigned long)addr);
	if (length == 0 || (length & PAGE_MASK))
		return bad(rt, "%s: length %zu is not a positive multiple of the page size", call,
			   length);
	if (addr + length < addr)
		return bad(rt, "%s: the range wraps around", call);
	return 0;
}

static uint64_t
meta_for(uint64_t npages)
{
	return (npages + LEAF_SLOTS - 1) / LEAF_SLOTS * META_PER_LEAF;
}

/* What an entry or an object takes out of the metadata's share of the limit, slab slack included. */
#define META_PER_ENTRY (MAP_ENTRY_BYTES + MAP_ENTRY_BYTES / 8)
/* (128: what the pmap remembers of its pool.) */
#define META_PER_OBJECT (sizeof(struct object) + sizeof(struct object) / 8 + 128)

/* With what the pmap remembers of an entry, should it be of a pool. */
static size_t
meta_per_entry(const struct pager *p)
{
	return META_PER_ENTRY + p->pmap->place_size + p->pmap->place_size / 8;
}

struct map_entry *
entry_alloc(struct pager *p)
{
	struct map_entry *e;

	if (!resv_try(&p->resv_meta, meta_per_entry(p)))
		return NULL;
	e = map_entry_alloc(&p->map, ZONE_WAIT);
	if (e == NULL)
		resv_give(&p->resv_meta, meta_per_entry(p));
	return e;
}

void
entry_free(struct pager *p, struct map_entry *e)
{
	map_entry_free(&p->map, e);
	resv_give(&p->resv_meta, meta_per_entry(p));
}

/* What a successor would need of it. */
static void
let_go_of(struct pager *p, const struct object *o)
{
	if (p->store == NULL)
		return;
	if (o->pool != 0 && o->apart && !o->guest)
		store_drop(p->store, "object", o->id, NULL);
	if (o->source != NULL || o->guest)
		server_forget(container_of(p, struct up_runtime, p), o);
}

/* One of a chain.  Returns its backing object if that was its last reference, or NULL. */
static struct object *
release_one(struct object *o)
{
	struct pager *p = o->owner;
	const uint64_t npages = o->npages, offset = o->backing_offset;
	struct object *b = NULL;

	if (o->backing != NULL) {
		pthread_rwlock_wrlock(&p->map.lock);
		b = object_unshadow(o);
		pthread_rwlock_unlock(&p->map.lock);
	}
	range_free(p, o, 0, npages, o->pool, PMAP_POOL, true);
	let_go_of(p, o);
	if (o->pool != 0)
		p->pmap->ops->pool_destroy(p->pmap, o->pool);
	resv_give(&p->resv_swap, o->reserved);
	account_promise(o->account, -(int64_t)o->reserved);
	resv_give(&p->resv_meta, META_PER_OBJECT + (o->noreserve ? 0 : meta_for(o->npages)));
	if (o->next != NULL)
		o->next->prev = o->prev;
	if (o->prev != NULL)
		o->prev->next = o->next;
	else
		p->objects = o->next;
	if (o->source != NULL)
		source_unref(o->source);
	free(o->name);
	o->name = NULL;
	object_free(o);
	if (b == NULL)
		return NULL;
	chain_dropped(p, b, offset, npages);
	return object_drop(b) ? b : NULL;
}

/* => map.change is held.  The object's last reference is gone.  A chain may be too deep for recursion. */
static void
object_release(struct object *o)
{
	while (o != NULL)
		o = release_one(o);
}

/* How often memory for more swap is made: others who want frames take it away meanwhile. */
#define PROMISE_TRIES 32u

/* Swap for npages.  A file that grows needs room for its slot maps too, which pageout may have to make. */
static int
promise_swap(struct pager *p, uint64_t npages)
{
	int r = resv_take(&p->resv_swap, npages);

	for (unsigned tries = 0; tries < PROMISE_TRIES && r == -ENOMEM; tries++) {
		if (runtime_reclaim(p, MIN(npages / 4, p->budget.limit / 2) + SLAB_SIZE) < 0)
			break;
		r = resv_take(&p->resv_swap, npages);
	}
	return r;
}

void
swap_promised(struct pager *p, uint64_t *max, uint64_t *used)
{
	resv_get(&p->resv_swap, max, used);
	if (!p->swap.fixed)
		*max = MAX(*max, swap_area_max(&p->swap));
}

/* `meta` bytes of metadata, for npages as far as people are told, and swap for nswap; both or neither. */
static int
promise(struct up_runtime *rt, const char *call, uint64_t npages, uint64_t nswap, uint64_t meta)
{
	struct pager *p = &rt->p;
	uint64_t max, used;
	int r;

	if (!resv_try(&p->resv_meta, meta)) {
		log_line(
			&p->log, UP_LOG_ERROR,
			"%s: the metadata of %llu pages does not fit the memory limit, %zu; raise it or use "
			"UP_NORESERVE",
			call, (unsigned long long)npages, rt->memory_limit);
		return -ENOMEM;
	}
	if (nswap == 0)
		return 0;
	r = promise_swap(p, nswap);
	if (r == 0)
		return 0;
	swap_promised(p, &max, &used);
	log_line(&p->log, UP_LOG_ERROR,
		 "%s: no swap space for %llu pages (%s): %llu are promised of %llu; "
		 "make it larger or use UP_NORESERVE",
		 call, (unsigned long long)nswap, strerrorname_np(-r), (unsigned long long)used,
		 (unsigned long long)max);
	resv_give(&p->resv_meta, meta);
	return r;
}

/* => nothing has used it. */
static void
promise_give(struct pager *p, uint64_t nswap, uint64_t meta)
{
	resv_give(&p->resv_swap, nswap);
	resv_give(&p->resv_meta, meta);
}

int
object_create(struct up_runtime *rt, const char *call, uint64_t npages, uint64_t nswap,
	      bool noreserve, struct object **out)
{
	const uint64_t meta = META_PER_OBJECT + (noreserve ? 0 : meta_for(npages));
	struct pager *p = &rt->p;
	struct object *o;
	int r;

	if (noreserve)
		nswap = 0;
	r = promise(rt, call, npages, nswap, meta);
	if (r < 0)
		return r;
	o = object_alloc(&p->zones, npages, ZONE_WAIT);
	if (o == NULL) {
		log_line(&p->log, UP_LOG_ERROR, "%s: no room for an object within the memory limit",
			 call);
		promise_give(p, nswap, meta);
		return -ENOMEM;
	}
	o->noreserve = noreserve;
	o->reserved = nswap;
	o->release = object_release;
	o->owner = p;
	o->id = ++p->next_object;
	o->next = p->objects;
	if (o->next != NULL)
		o->next->prev = o;
	p->objects = o;
	*out = o;
	return 0;
}

int
object_extend(struct up_runtime *rt, const char *call, struct object *o, uint64_t npages,
	      uint64_t more)
{
	const uint64_t now = o->npages, then = MAX(npages, now);
	const uint64_t meta = o->noreserve ? 0 : meta_for(then) - meta_for(now);
	const uint64_t nswap = o->noreserve ? 0 : more;
	struct pager *p = &rt->p;
	int r;

	/* What is in a chain is as long as what it has been parted from, or is its window. */
	assert(o->source == NULL && o->backing == NULL && o->nshadows == 0);
	r = promise(rt, call, more, nswap, meta);
	if (r < 0)
		return r;
	if (object_grow(o, then, ZONE_WAIT) < 0) {
		log_line(&p->log, UP_LOG_ERROR,
			 "%s: no room for a longer object within the memory limit", call);
		promise_give(p, nswap, meta);
		return -ENOMEM;
	}
	o->reserved += nswap;
	account_promise(o->account, (int64_t)nswap);
	return 0;
}

bool
object_is_mapped(struct pager *p, const struct object *o, uint64_t first, uint64_t n)
{
	for (struct map_entry *e = map_first_from(&p->map, 0); e != NULL; e = e->next) {
		const uint64_t len = (e->end - e->start) >> PAGE_SHIFT;

		if (e->object == o && e->offset < first + n && first < e->offset + len)
			return true;
	}
	return false;
}

/* True if an entry of ours or of a child maps page `at` of the object; else *next: the first one behind it that one does. */
static bool
is_reached(struct pager *p, const struct object *o, uint64_t at, bool wired, uint64_t *next)
{
	struct space *sp = NULL;
	struct map *map = &p->map;

	for (;;) {
		for (const struct map_entry *e = map_first_from(map, 0); e != NULL; e = e->next) {
			const uint64_t end = e->offset + ((e->end - e->start) >> PAGE_SHIFT);

			if (e->object != o || (wired && e->wired == 0))
				continue;
			if (e->offset <= at && at < end) {
				*next = end;
				return true;
			}
			if (e->offset > at)
				*next = MIN(*next, e->offset);
		}
		sp = sp == NULL ? p->spaces : sp->next;
		if (sp == NULL)
			return false;
		map = &sp->map;
	}
}

bool
object_unreached(struct pager *p, const struct object *o, uint64_t *at, uint64_t end, bool wired,
		 uint64_t *n)
{
	while (*at < end) {
		uint64_t next = end;

		if (!is_reached(p, o, *at, wired, &next)) {
			*n = MIN(next, end) - *at;
			return true;
		}
		*at = next;
	}
	return false;
}

int
object_pool(struct up_runtime *rt, const char *call, struct object *o)
{
	struct pager *p = &rt->p;
	uintptr_t pool;
	int r;

	if (o->pool != 0)
		return 0;
	if (p->pmap->ops->pool_create == NULL) {
		log_line(&p->log, UP_LOG_ERROR,
			 "%s: memory in several places needs write-protection of shared memory "
			 "(Linux 5.19)",
			 call);
		return -ENOTSUP;
	}
	r = p->pmap->ops->pool_create(p->pmap, o->npages, o->apart, &pool);
	if (r < 0) {
		log_line(&p->log, UP_LOG_ERROR, "%s: shared memory for %llu pages: %s", call,
			 (unsigned long long)o->npages, strerrorname_np(-r));
		return r;
	}
	if (p->store != NULL && o->apart) {
		uint64_t at;

		store_keep(p->store, "object", o->id, NULL, pmap_uffd_pool_fd(p->pmap, pool, &at));
	}
	pthread_rwlock_wrlock(&p->map.lock);
	o->pool = pool;
	pthread_rwlock_unlock(&p->map.lock);
	return 0;
}

/* Nothing maps it any more, and its pages are to be mapped one by one again.  => map.change is held. */
static void
object_unpool(struct pager *p, struct object *o)
{
	const uintptr_t pool = o->pool;

	/* Until all that is there, or on its way, is staged: then nobody looks at its address but to wake who waits there. */
	range_keep(p, o, 0, o->npages, false, 0, 0);
	pthread_rwlock_wrlock(&p->map.lock);
	o->pool = 0;
	atomic_store(&o->unrecorded, false); /* the marks went with the places */
	pthread_rwlock_unlock(&p->map.lock);
	if (p->store != NULL && o->apart)
		store_drop(p->store, "object", o->id, NULL);
	p->pmap->ops->pool_destroy(p->pmap, pool);
}

/* True if any page of the object is mapped, by us or by a child.  => map.change is held. */
static bool
is_mapped(struct pager *p, const struct object *o)
{
	uint64_t at = 0, n = 0;

	return !object_unreached(p, o, &at, o->npages, false, &n) || at > 0 || n < o->npages;
}

/* The object can be mapped UP_SHARED with these flags.  0, or -errno and a log line.  => map.change is held. */
static int
share(struct up_runtime *rt, struct object *o, uint64_t first, uint64_t n, unsigned flags)
{
	struct pager *p = &rt->p;
	const bool multi = (flags & UP_MULTI) != 0;

	/* Other pages of it too: an object is in a pool or it is not. */
	if ((o->pool != 0) != multi && is_mapped(p, o)) {
		log_line(&p->log, UP_LOG_ERROR, "up_map: the object is mapped already, %s UP_MULTI",
			 multi ? "without" : "with");
		return -EBUSY;
	}
	if (multi)
		return object_pool(rt, "up_map", o);
	if (o->pool != 0)
		object_unpool(p, o);
	if (object_is_mapped(p, o, first, n)) {
		log_line(
			&p->log, UP_LOG_ERROR,
			"up_map: these pages of the object are mapped already; several places need "
			"UP_MULTI");
		return -EBUSY;
	}
	return 0;
}

/*
 * The kernel does not move pages of memory that nobody may write to, and what may be unmapped behind our back can not be taken out
 * in any other way.
 */
static int
check_tracked(struct up_runtime *rt, const char *call, int prot)
{
	if (rt->p.foreign == NULL || prot != PROT_READ)
		return 0;
	log_line(&rt->p.log, UP_LOG_ERROR, "%s: read-only memory does not go with UP_TRACK_FOREIGN",
		 call);
	return -ENOTSUP;
}

int
check_map(struct up_runtime *rt, const void *hint, size_t length, int prot, unsigned flags,
	  const struct object *o, uint64_t offset)
{
	const unsigned kind = flags & (UP_PRIVATE | UP_SHARED);
	int r;

	r = check_range(rt, "up_map", (flags & UP_FIXED) ? (uintptr_t)hint : 0, length);
	if (r < 0)
		return r;
	if ((flags & UP_FIXED) && hint == NULL)
		return bad(rt, "up_map: UP_FIXED needs an address");
	if (prot & ~PROT_VALID)
		return bad(rt, "up_map: prot %#x has more than PROT_READ and PROT_WRITE",
			   (unsigned)prot);
	r = check_tracked(rt, "up_map", prot);
	if (r < 0)
		return r;
	if (flags & ~(UP_PRIVATE | UP_SHARED | UP_FIXED | UP_NORESERVE | UP_MULTI))
		return bad(rt, "up_map: unknown flags %#x",
			   flags & ~(UP_PRIVATE | UP_SHARED | UP_FIXED | UP_NORESERVE | UP_MULTI));
	if (kind != UP_PRIVATE && kind != UP_SHARED)
		return bad(rt, "up_map: flags must have one of UP_PRIVATE and UP_SHARED");
	if ((flags & UP_MULTI) && kind != UP_SHARED)
		return bad(rt, "up_map: UP_MULTI goes with UP_SHARED");
	if (offset & PAGE_MASK)
		return bad(rt, "up_map: offset %llu is not a multiple of the page size",
			   (unsigned long long)offset);
	if (o == NULL && offset != 0)
		return bad(rt, "up_map: anonymous memory has no offset");
	if (o != NULL && o->owner != &rt->p)
		return bad(rt, "up_map: the object belongs to another runtime");
	if (o != NULL && (offset >> PAGE_SHIFT >= o->npages ||
			  length >> PAGE_SHIFT > o->npages - (offset >> PAGE_SHIFT)))
		return bad(rt, "up_map: the object ends before offset %llu + length %zu",
			   (unsigned long long)offset, length);
	if (o == NULL && kind == UP_SHARED) {
		log_line(&rt->p.log, UP_LOG_ERROR,
			 "up_map: shared anonymous memory needs an object");
		return -ENOTSUP;
	}
	if (o != NULL && o->readonly && kind == UP_SHARED && (prot & PROT_WRITE)) {
		log_line(&rt->p.log, UP_LOG_ERROR, "up_map: the object can not be written to");
		return -EACCES;
	}
	return 0;
}

int
object_to_map(struct up_runtime *rt, uint64_t npages, unsigned flags, struct object *o,
	      uint64_t *first, struct object **out)
{
	const bool noreserve = rt->overcommit || (flags & UP_NORESERVE);
	struct pager *p = &rt->p;
	int r;

	if (o == NULL)
		return object_create(rt, "up_map", npages, npages, noreserve, out);
	if (o->source != NULL && (flags & UP_PRIVATE)) {
		r = object_create(rt, "up_map", npages, npages, noreserve, out);
		if (r < 0)
			return r;
		pthread_rwlock_wrlock(&p->map.lock);
		(*out)->named = (*out)->loose = true;
		object_ref(o);
		object_shadow(*out, o, *first);
		pthread_rwlock_unlock(&p->map.lock);
		*first = 0;
		return 0;
	}
	if (flags & UP_PRIVATE) {
		r = cow_shadow(rt, "up_map", o, *first, npages, out);
		if (r == 0)
			*first = 0;
		return r;
	}
	r = share(rt, o, *first, npages, flags);
	if (r < 0)
		return r;
	object_ref(o);
	*out = o;
	return 0;
}

/* => map.change is held.  -EAGAIN: change_again() */
static int
map_locked(struct up_runtime *rt, void *hint, size_t length, int prot, unsigned flags,
	   struct object *o, uint64_t offset, uintptr_t *at)
{
	uint64_t first = offset >> PAGE_SHIFT;
	struct pager *p = &rt->p;
	struct map_entry *e;
	int r;

	r = object_to_map(rt, length >> PAGE_SHIFT, flags, o, &first, &o);
	if (r < 0)
		return r;
	e = entry_alloc(p);
	if (e == NULL) {
		log_line(&p->log, UP_LOG_ERROR,
			 "up_map: no room for a map entry within the memory limit");
		r = -ENOMEM;
		goto unref;
	}
	e->shard = p->next_shard++ % p->nservices;
	e->serial = ++p->next_serial;
	e->object = o;
	e->offset = first;
	e->prot = prot;
	e->flags = flags;
	e->advice = UP_ADVICE_NORMAL;
	if (o->pool != 0)
		r = p->pmap->ops->pool_map(p->pmap, o->pool + (first << PAGE_SHIFT),
					   (uintptr_t)hint, (flags & UP_FIXED) != 0, length, prot,
					   e->shard, &e->start);
	else
		r = p->pmap->ops->map(p->pmap, (uintptr_t)hint, (flags & UP_FIXED) != 0, length,
				      prot, e->shard, &e->start);
	if (r == 0 && p->foreign != NULL) {
		r = foreign_settle(p->foreign, e->start, length, e->shard);
		if (r < 0) {
			p->pmap->ops->unmap(p->pmap, e->start, length, e->shard);
			goto free_entry;
		}
	}
	if (r < 0) {
		log_line(&p->log, UP_LOG_ERROR, "up_map: mapping %zu bytes: %s", length,
			 strerrorname_np(-r));
		goto free_entry;
	}
	e->end = e->start + length;

	pthread_rwlock_wrlock(&p->map.lock);
	r = map_insert(&p->map, e);
	pthread_rwlock_unlock(&p->map.lock);
	assert(r == 0); /* the kernel gave us free addresses */
	*at = e->start;
	return 0;

free_entry:
	entry_free(p, e);
unref:
	object_unref(o);
	return r;
}

int
up_map(struct up_runtime *rt, void *hint, size_t length, int prot, unsigned flags,
       struct up_object *object, uint64_t offset, void **addr)
{
	struct object *o = (struct object *)object;
	struct pager *p;
	uintptr_t at = 0;
	sigset_t old;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_map(rt, hint, length, prot, flags, object, offset, addr);
	if (addr != NULL)
		*addr = NULL;
	if (rt == NULL)
		return -EINVAL;
	p = &rt->p;
	r = check_process(rt, "up_map");
	if (r < 0)
		return r;
	if (addr == NULL)
		return bad(rt, "up_map: addr is NULL");
	r = check_map(rt, hint, length, prot, flags, o, offset);
	if (r < 0)
		return r;

	for (unsigned tries = 0;; tries++) {
		move_begin(p, &old);
		r = map_locked(rt, hint, length, prot, flags, o, offset, &at);
		move_end(p, &old);
		if (!change_again(p, r, tries))
			break;
	}
	if (r == 0)
		*addr = (void *)at; /* not earlier: it may itself be paged */
	return r;
}

/* True if an entry has to be cut at this address. */
static bool
cuts(struct map *m, uintptr_t at)
{
	const struct map_entry *e = map_lookup(m, at);

	return e != NULL && e->start != at;
}

/* No more than those that are used: what takes whole entries away must go ahead when there is no room for another. */
int
spare_alloc(struct pager *p, struct map *m, uintptr_t start, uintptr_t end,
	    struct map_entry *spare[2])
{
	spare[0] = spare[1] = NULL;
	if (cuts(m, start) && (spare[0] = entry_alloc(p)) == NULL)
		goto fail;
	if (cuts(m, end) && (spare[1] = entry_alloc(p)) == NULL)
		goto fail;
	return 0;
fail:
	if (spare[0] != NULL)
		entry_free(p, spare[0]);
	log_line(&p->log, UP_LOG_ERROR, "no room for a map entry within the memory limit");
	return -ENOMEM;
}

void
spare_free(struct pager *p, struct map_entry *spare[2])
{
	for (unsigned i = 0; i < 2; i++) {
		if (spare[i] != NULL)
			entry_free(p, spare[i]);
	}
}

void
entries_set(struct pager *p, struct map *m, uintptr_t start, uintptr_t end,
	    struct map_entry *spare[2], void (*set)(struct map_entry *e, void *to), void *to)
{
	struct map_entry *gone, *e;

	pthread_rwlock_wrlock(&p->map.lock);
	map_clip(m, start, end, spare);
	for (e = map_first_from(m, start); e != NULL && e->start < end; e = e->next)
		set(e, to);
	gone = map_join(m, start, end);
	pthread_rwlock_unlock(&p->map.lock);
	spare_free(p, spare);
	while ((e = gone) != NULL) {
		gone = e->next;
		object_unref(e->object); /* never the last: what it was joined with has one */
		entry_free(p, e);
	}
}

void
entry_unmap(struct pager *p, const struct map_entry *e)
{
	const int r = p->pmap->ops->unmap(p->pmap, e->start, e->end - e->start, e->shard);

	if (r == 0)
		return;
	/* Not after split(); but if it should be, nobody may wait there for a page that never comes. */
	log_line(&p->log, UP_LOG_ERROR, "unmapping %#lx-%#lx: %s", (unsigned long)e->start,
		 (unsigned long)e->end, strerrorname_np(-r));
	if (e->shard < p->nservices)
		p->pmap->ops->protect(p->pmap, e->start, e->end - e->start, PROT_NONE);
	p->pmap->ops->wake(p->pmap, e->shard, e->start, (e->end - e->start) >> PAGE_SHIFT);
}

/* What a part of a shared mapping of a source holds goes back there.  `last`: and is mapped nowhere else. */
static void
leave_source(struct pager *p, const struct map_entry *e, uint64_t first, uint64_t n, bool last)
{
	struct object *o = e->object;
	const struct place place = entry_place(e, e->start + ((first - e->offset) << PAGE_SHIFT));
	/* Nobody makes room for pages that are taken out, once the services are gone. */
	uint64_t at = first;
	const int r = p->closing || !last
			      ? writeback(p, o, &at, first + n, UINT64_MAX)
			      : range_give_back(p, o, first, n, place.va, place.shard, true);

	if (r < 0) {
		/* For up_sync() of what else is mapped of it to tell. */
		source_failed(o->source, r);
		log_line(&p->log, UP_LOG_ERROR,
			 "unmapping %#lx-%#lx: writing back to the %s pager: %s; %s",
			 (unsigned long)e->start, (unsigned long)e->end, o->source->ops->name,
			 strerrorname_np(-r),
			 last ? "content lost" : "it is kept where else it is mapped");
	}
	if (last)
		range_free(p, o, first, n, place.va, place.shard, false);
}

/*
 * An entry of a pool goes.  Its pages stay where they are as long as somebody can get at them: another entry, or who has
 * the object in his hand.
 */
static void
leave_pool(struct pager *p, const struct map_entry *e)
{
	struct object *o = e->object;
	const uint64_t end = e->offset + ((e->end - e->start) >> PAGE_SHIFT);
	uint64_t at = e->offset, n = 0;

	if (e->wired > 0)
		wired_leave(p, e);
	if (o->source == NULL && atomic_load(&o->handles) > 0)
		return;
	if (o->source == NULL && (p->closing || atomic_load(&o->refs) == 1)) {
		const struct place place = entry_place(e, e->start);

		range_free(p, o, at, end - at, place.va, place.shard, true);
		return;
	}
	if (o->source != NULL && !p->closing)
		leave_source(p, e, at, end - at, false);
	for (; object_unreached(p, o, &at, end, false, &n); at += n) {
		const struct place place =
			entry_place(e, e->start + ((at - e->offset) << PAGE_SHIFT));

		if (o->source != NULL) {
			leave_source(p, e, at, n, true);
			continue;
		}
		chain_hide(p, o, at, n);
		range_free(p, o, at, n, place.va, place.shard, false);
	}
}

/* Unmap an entry that is in no map any more, and free it.  => map.change is held. */
void
entry_destroy(struct pager *p, struct map_entry *e)
{
	struct object *o = e->object;
	const uint64_t npages = (e->end - e->start) >> PAGE_SHIFT;
	const struct place place = entry_place(e, e->start);

	if (o->pool != 0) {
		leave_pool(p, e);
	} else if (o->source != NULL) {
		if (e->prot == PROT_NONE && !e->gone)
			p->pmap->ops->protect(p->pmap, e->start, e->end - e->start, PROT_READ);
		leave_source(p, e, e->offset, npages, true);
	} else if (atomic_load(&o->handles) > 0) {
		/* A page that nobody may read can not always be copied out; if this fails, keep_page() still tries. */
		if (e->prot == PROT_NONE && !e->gone)
			p->pmap->ops->protect(p->pmap, e->start, e->end - e->start, PROT_READ);
		range_keep(p, o, e->offset, npages, false, 0, 0);
	} else {
		const bool gone = p->closing || atomic_load(&o->refs) == 1;

		/* Nobody can look there any more; if it is not hidden, what only this part saw stays for a while. */
		if (!gone)
			chain_hide(p, o, e->offset, npages);
		range_free(p, o, e->offset, npages, place.va, place.shard, gone);
	}
	if (e->wired > 0)
		wired_give(p, npages);
	if (!e->gone)
		entry_unmap(p, e);
	if (!o->roams && o->reserved > 0) {
		assert(o->reserved >= npages);
		o->reserved -= npages;
		resv_give(&p->resv_swap, npages);
		account_promise(o->account, -(int64_t)npages);
	}
	object_unref(o);
	entry_free(p, e);
}

int
split_vmas(struct pager *p, struct map *m, const char *call, uintptr_t start, uintptr_t end)
{
	for (struct map_entry *e = map_first_from(m, start); e != NULL && e->start < end;
	     e = e->next) {
		const uintptr_t from = MAX(start, e->start), to = MIN(end, e->end);
		const int r = p->pmap->ops->split(p->pmap, e->shard, from, to - from);

		if (r < 0) {
			log_line(&p->log, UP_LOG_ERROR,
				 "%s: splitting %#lx-%#lx: %s (vm.max_map_count?)", call,
				 (unsigned long)from, (unsigned long)to, strerrorname_np(-r));
			return -ENOMEM;
		}
	}
	return 0;
}

int
unmap_range(struct pager *p, struct map *m, const char *call, uintptr_t start, uintptr_t end)
{
	struct map_entry *spare[2], *gone = NULL, **tail = &gone, *e;
	int r;

	r = spare_alloc(p, m, start, end, spare);
	if (r < 0)
		return r;
	r = split_vmas(p, m, call, start, end);
	if (r < 0) {
		spare_free(p, spare);
		return r;
	}
	pthread_rwlock_wrlock(&p->map.lock);
	map_clip(m, start, end, spare);
	while ((e = map_first_from(m, start)) != NULL && e->start < end) {
		map_remove(m, e);
		e->next = NULL;
		*tail = e;
		tail = &e->next;
	}
	pthread_rwlock_unlock(&p->map.lock);
	while ((e = gone) != NULL) {
		gone = e->next;
		entry_destroy(p, e);
	}
	spare_free(p, spare);
	return 0;
}

int
up_unmap(struct up_runtime *rt, void *addr, size_t length)
{
	const uintptr_t start = (uintptr_t)addr;
	sigset_t old;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_unmap(rt, addr, length);
	r = check_call(rt, "up_unmap", start, length);
	if (r < 0)
		return r;
	move_begin(&rt->p, &old);
	r = unmap_range(&rt->p, &rt->p.map, "up_unmap", start, start + length);
	move_end(&rt->p, &old);
	return r;
}

int
check_covered(struct up_runtime *rt, struct map *m, const char *call, uintptr_t start,
	      uintptr_t end)
{
	if (map_covers(m, start, end))
		return 0;
	log_line(&rt->p.log, UP_LOG_ERROR, "%s: part of %#lx-%#lx is not mapped", call,
		 (unsigned long)start, (unsigned long)end);
	return -ENOMEM;
}

/* A snapshot stays as it is.  => map.change is held. */
static int
check_writable(struct up_runtime *rt, struct map *m, uintptr_t start, uintptr_t end)
{
	for (struct map_entry *e = map_first_from(m, start); e != NULL && e->start < end;
	     e = e->next) {
		if (e->object->readonly) {
			log_line(&rt->p.log, UP_LOG_ERROR,
				 "up_protect: the object can not be written to");
			return -EACCES;
		}
	}
	return 0;
}

/* Out of the page table while that can be done: see check_tracked().  What is pinned or wired stays. */
static void
stage_all(struct pager *p, uintptr_t start, uintptr_t end)
{
	for (struct map_entry *e = map_first_from(&p->map, start); e != NULL && e->start < end;
	     e = e->next) {
		const uintptr_t from = MAX(start, e->start), to = MIN(end, e->end);

		if (e->wired == 0)
			range_keep(p, e->object, e->offset + ((from - e->start) >> PAGE_SHIFT),
				   (to - from) >> PAGE_SHIFT, true, from, e->shard);
	}
}

static void
set_prot(struct map_entry *e, void *to)
{
	e->prot = *(int *)to;
}

int
protect_entries(struct up_runtime *rt, struct map *m, uintptr_t start, uintptr_t end, int prot)
{
	struct map_entry *spare[2];
	int r;

	r = check_covered(rt, m, "up_protect", start, end);
	if (r == 0 && (prot & PROT_WRITE))
		r = check_writable(rt, m, start, end);
	if (r == 0)
		r = spare_alloc(&rt->p, m, start, end, spare);
	if (r == 0)
		entries_set(&rt->p, m, start, end, spare, set_prot, &prot);
	return r;
}

int
up_protect(struct up_runtime *rt, void *addr, size_t length, int prot)
{
	const uintptr_t start = (uintptr_t)addr, end = start + length;
	struct map_entry *spare[2];
	struct pager *p;
	sigset_t old;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_protect(rt, addr, length, prot);
	r = check_call(rt, "up_protect", start, length);
	if (r < 0)
		return r;
	p = &rt->p;
	if (prot & ~PROT_VALID)
		return bad(rt, "up_protect: prot %#x has more than PROT_READ and PROT_WRITE",
			   (unsigned)prot);
	r = check_tracked(rt, "up_protect", prot);
	if (r < 0)
		return r;

	change_begin(p, &old);
	r = check_covered(rt, &rt->p.map, "up_protect", start, end);
	if (r == 0 && (prot & PROT_WRITE))
		r = check_writable(rt, &p->map, start, end);
	if (r < 0)
		goto unlock;
	r = spare_alloc(p, &p->map, start, end, spare);
	if (r < 0)
		goto unlock;
	if (p->foreign != NULL && prot == PROT_NONE)
		stage_all(p, start, end);
	r = p->pmap->ops->protect(p->pmap, start, length, prot);
	if (r < 0) {
		log_line(&p->log, UP_LOG_ERROR, "up_protect: %s", strerrorname_np(-r));
		/* It may have come half-way. */
		for (struct map_entry *e = map_first_from(&p->map, start);
		     e != NULL && e->start < end; e = e->next)
			p->pmap->ops->protect(p->pmap, MAX(start, e->start),
					      MIN(end, e->end) - MAX(start, e->start), e->prot);
		goto free_spare;
	}
	entries_set(p, &p->map, start, end, spare, set_prot, &prot);
	goto unlock;
free_spare:
	spare_free(p, spare);
unlock:
	change_end(p, &old);
	return r;
}

static void
set_advice(struct map_entry *e, void *to)
{
	e->advice = *(enum up_advice *)to;
}

/* Advice that stays with the mapping.  => map.change is held. */
static int
advise_entries(struct pager *p, struct map *m, uintptr_t start, uintptr_t end,
	       enum up_advice advice)
{
	struct map_entry *spare[2];
	int r;

	r = spare_alloc(p, m, start, end, spare);
	if (r == 0)
		entries_set(p, m, start, end, spare, set_advice, &advice);
	return r;
}

/* Of this process, whose page tables can be reached. */
static bool
ours(const struct pager *p, const struct map_entry *e)
{
	return e->shard < p->nservices;
}

int
discard_shared(struct pager *p, struct map_entry *e, uintptr_t start, uintptr_t end)
{
	const uint64_t first = e->offset + ((start - e->start) >> PAGE_SHIFT);
	const uint64_t n = (end - start) >> PAGE_SHIFT;
	const struct place place = entry_place(e, start);
	int r;

	if (e->prot == PROT_NONE && ours(p, e))
		p->pmap->ops->protect(p->pmap, start, end - start, PROT_READ);
	r = range_give_back(p, e->object, first, n, place.va, place.shard, false);
	if (e->prot == PROT_NONE && ours(p, e))
		p->pmap->ops->protect(p->pmap, start, end - start, PROT_NONE);
	if (r == 0)
		range_unrecord(p, e, start, end);
	if (atomic_load(&p->fenced) && ours(p, e))
		p->pmap->ops->protect(p->pmap, start, end - start, e->prot);
	p->pmap->ops->wake(p->pmap, place.shard, place.va, n);
	return r;
}

/* Advice that acts once, on one entry's part of the range.  => map.change is held. */
static int
advise_part(struct pager *p, struct map_entry *e, uintptr_t start, uintptr_t end,
	    enum up_advice advice)
{
	const uint64_t first = e->offset + ((start - e->start) >> PAGE_SHIFT);
	const uint64_t n = (end - start) >> PAGE_SHIFT;
	const struct place place = entry_place(e, start);
	int r = 0;

	switch (advice) {
	case UP_ADVICE_WILLNEED:
		range_willneed(p, e->shard, start, end);
		break;
	case UP_ADVICE_DONTNEED:
		if (e->object->source != NULL) {
			r = discard_shared(p, e, start, end);
			if (r < 0)
				log_line(&p->log, UP_LOG_ERROR, "up_advise: writing back: %s",
					 strerrorname_np(-r));
			break;
		}
		r = chain_hide(p, e->object, first, n);
		if (r < 0)
			break;
		range_free(p, e->object, first, n, place.va, place.shard, false);
		range_unrecord(p, e, start, end);
		if (atomic_load(&p->fenced) && ours(p, e))
			p->pmap->ops->protect(p->pmap, start, end - start, e->prot);
		p->pmap->ops->wake(p->pmap, place.shard, place.va, n);
		break;
	default:
		range_cool(p, e->object, first, n, place.va, place.shard);
		break;
	}
	return r;
}

static const struct map_entry *
wired_entry_in(const struct map *m, const struct object *o, uint64_t first, uint64_t n)
{
	for (const struct map_entry *e = m->wired > 0 ? m->first : NULL; e != NULL; e = e->next) {
		const uint64_t len = (e->end - e->start) >> PAGE_SHIFT;

		if (e->object == o && e->wired > 0 && e->offset < first + n &&
		    first < e->offset + len)
			return e;
	}
	return NULL;
}

const struct map_entry *
wired_entry(struct pager *p, const struct object *o, uint64_t first, uint64_t n)
{
	const struct map_entry *e = wired_entry_in(&p->map, o, first, n);

	for (const struct space *sp = p->spaces; sp != NULL && e == NULL; sp = sp->next)
		e = wired_entry_in(&sp->map, o, first, n);
	return e;
}

bool
is_wired(struct pager *p, struct map *m, uintptr_t start, uintptr_t end)
{
	if (atomic_load(&p->nwired) == 0)
		return false;
	for (const struct map_entry *e = map_first_from(m, start); e != NULL && e->start < end;
	     e = e->next) {
		const uintptr_t from = MAX(start, e->start);

		if (e->wired > 0)
			return true;
		if (e->object->pool != 0 &&
		    wired_entry(p, e->object, e->offset + ((from - e->start) >> PAGE_SHIFT),
				(MIN(end, e->end) - from) >> PAGE_SHIFT) != NULL)
			return true;
	}
	return false;
}

int
advise_range(struct up_runtime *rt, struct map *m, uintptr_t start, uintptr_t end,
	     enum up_advice advice)
{
	struct pager *p = &rt->p;
	int r;

	r = check_covered(rt, m, "up_advise", start, end);
	if (r == 0 && advice == UP_ADVICE_DONTNEED && is_wired(p, m, start, end))
		r = bad(rt, "up_advise: part of %#lx-%#lx is wired, and can not be discarded",
			(unsigned long)start, (unsigned long)end);
	if (r == 0 && advice <= UP_ADVICE_RANDOM)
		return advise_entries(p, m, start, end, advice);
	for (struct map_entry *e = map_first_from(m, start); e != NULL && e->start < end && r == 0;
	     e = e->next)
		r = advise_part(p, e, MAX(start, e->start), MIN(end, e->end), advice);
	return r;
}

int
up_advise(struct up_runtime *rt, void *addr, size_t length, enum up_advice advice)
{
	const uintptr_t start = (uintptr_t)addr;
	sigset_t old;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_advise(rt, addr, length, advice);
	r = check_call(rt, "up_advise", start, length);
	if (r < 0)
		return r;
	if ((unsigned)advice > UP_ADVICE_COLD)
		return bad(rt, "up_advise: unknown advice %d", (int)advice);
	change_begin(&rt->p, &old);
	r = advise_range(rt, &rt->p.map, start, start + length, advice);
	change_end(&rt->p, &old);
	return r;
}

#define RESIDENCY_PIECE 1024

void
map_residency(struct pager *p, struct map *m, uintptr_t start, uintptr_t end, unsigned char *vec)
{
	for (struct map_entry *e = map_first_from(m, start); e != NULL && e->start < end;
	     e = e->next) {
		const uintptr_t from = MAX(start, e->start), to = MIN(end, e->end);
		const struct place place = entry_place(e, from);

		range_residency(p, e->object, e->offset + ((from - e->start) >> PAGE_SHIFT),
				(to - from) >> PAGE_SHIFT, place.va, place.shard,
				vec + ((from - start) >> PAGE_SHIFT));
	}
}

int
up_residency(struct up_runtime *rt, const void *addr, size_t length, unsigned char *vec)
{
	const uintptr_t start = (uintptr_t)addr, end = start + length;
	struct pager *p;
	sigset_t old;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_residency(rt, addr, length, vec);
	r = check_call(rt, "up_residency", start, length);
	if (r < 0)
		return r;
	p = &rt->p;
	if (vec == NULL)
		return bad(rt, "up_residency: vec is NULL");
	/* In pieces, by way of memory of our own: the caller's vector may itself be paged, even be of this range. */
	for (uintptr_t at = start, to; at < end && r == 0; at = to) {
		unsigned char bits[RESIDENCY_PIECE];

		to = at + MIN(end - at, (uintptr_t)RESIDENCY_PIECE << PAGE_SHIFT);
		change_begin(p, &old);
		r = check_covered(rt, &rt->p.map, "up_residency", at, at == start ? end : to);
		if (r == 0)
			map_residency(p, &p->map, at, to, bits);
		change_end(p, &old);
		if (r == 0)
			memcpy(vec + ((at - start) >> PAGE_SHIFT), bits, (to - at) >> PAGE_SHIFT);
	}
	return r;
}

/* --- objects --- */

int
object_create_handle(struct up_runtime *rt, const char *call, uint64_t npages, unsigned flags,
		     struct object **o)
{
	const int r = object_create(rt, call, npages, npages,
				    rt->overcommit || (flags & UP_NORESERVE), o);

	if (r == 0) {
		(*o)->roams = (*o)->loose = true;
		atomic_store(&(*o)->handles, 1);
	}
	return r;
}

int
up_object_create_anon(struct up_runtime *rt, uint64_t size, unsigned flags, struct up_object **out)
{
	struct object *o;
	struct pager *p;
	sigset_t old;
	int r;

	if (rt != NULL && rt->remote != NULL)
		return remote_create_anon(rt, NULL, size, flags, 0, out);
	if (out != NULL)
		*out = NULL;
	if (rt == NULL)
		return -EINVAL;
	p = &rt->p;
	r = check_process(rt, "up_object_create_anon");
	if (r < 0)
		return r;
	if (out == NULL)
		return bad(rt, "up_object_create_anon: obj is NULL");
	if (size == 0 || (size & PAGE_MASK))
		return bad(
			rt,
			"up_object_create_anon: size %llu is not a positive multiple of the page size",
			(unsigned long long)size);
	if (flags & ~UP_NORESERVE)
		return bad(rt, "up_object_create_anon: unknown flags %#x", flags & ~UP_NORESERVE);

	change_begin(p, &old);
	r = object_create_handle(rt, "up_object_create_anon", size >> PAGE_SHIFT, flags, &o);
	change_end(p, &old);
	if (r == 0)
		*out = (struct up_object *)o;
	return r;
}

struct up_object *
up_object_ref(struct up_object *obj)
{
	struct object *o = (struct object *)obj;

	if (object_is_remote(obj)) {
		remote_ref(obj);
		return obj;
	}
	if (o == NULL || o->owner == NULL)
		return obj; /* NULL in a forked child, where this memory is wiped */
	atomic_fetch_add(&o->handles, 1);
	object_ref(o);
	return obj;
}

void
up_object_unref(struct up_object *obj)
{
	struct object *o = (struct object *)obj;
	struct pager *p;
	sigset_t old;

	if (object_is_remote(obj)) {
		remote_unref(obj);
		return;
	}
	if (o == NULL)
		return;
	p = o->owner; /* NULL in a forked child, where this memory is wiped */
	if (p == NULL || foreign(container_of(p, struct up_runtime, p)))
		return;
	change_begin(p, &old);
	assert(atomic_load(&o->handles) > 0);
	atomic_fetch_sub(&o->handles, 1);
	object_unref(o);
	change_end(p, &old);
}

/* --- destroy --- */

/* As stop_threads(), where there are none. */
static void
come_to_rest(struct pager *p)
{
	for (unsigned i = 0; i < p->nservices; i++)
		source_abandon(p->service[i]);
	for (unsigned i = 0; i < p->nservices; i++) {
		while (atomic_load(&p->laundering) > 0 || p->service[i]->nhanded > 0)
			p->idle(p->idle_ctx);
	}
}

void
up_runtime_destroy(struct up_runtime *rt)
{
	struct map_entry *e;
	struct pager *p;
	sigset_t old;

	if (rt != NULL && rt->remote != NULL) {
		remote_destroy(rt);
		return;
	}
	if (rt == NULL || foreign(rt))
		return;
	p = &rt->p;
	guests_stop(rt);
	forks_stop(rt);
	guests_free(rt);
	server_free(rt);
	/* What the program has done itself is put right while there are services. */
	change_begin(p, &old);
	change_end(p, &old);
	signals_hold(&old);
	workers_stop(p);
	workers_wait(p);
	signals_release(&old);
	if (p->idle == NULL)
		stop_threads(p, p->nservices);
	else
		come_to_rest(p);
	source_bury(p);
	if (p->foreign != NULL)
		foreign_drain(p->foreign);
	move_begin(p, &old);
#ifndef NDEBUG
	pager_check(p);
#endif
	/* Nobody serves faults any more: threads that still wait for one wake up to SIGSEGV. */
	p->closing = true;
	for (struct object *o = p->objects; o != NULL; o = o->next)
		atomic_store(&o->handles, 0); /* nothing is kept */
	while ((e = map_first_from(&p->map, 0)) != NULL) {
		map_remove(&p->map, e);
		entry_destroy(p, e);
	}
	/* Nothing but handles is left, and what their objects are shadows of. */
	while (p->objects != NULL) {
		struct object *o = p->objects;

		while (o->nshadows > 0)
			o = o->shadows;
		atomic_store(&o->refs, 1);
		object_unref(o);
	}
	move_end(p, &old);

	for (;;) {
		frame_t f;
		const size_t n = frame_take(&p->frames, CLUSTER_MAX, &f);

		if (n == 0)
			break;
		frames_drop(p, f, n);
	}
	if (p->foreign != NULL)
		foreign_fini(p->foreign);
	if (p->workers.on && p->idle == NULL)
		sigbus_remove(p);
	log_flush(&p->log);
	if (p->workers.on)
		workers_fini(p);
	heaps_fini(&rt->heaps, p);
	pager_fini(p);
	resv_fini(&p->resv_swap);
	swap_area_close(&p->swap);
	free_services(p);
	budget_uncharge(&p->budget, p->overhead);
	zone_fini(&p->place_zone);
	zone_fini(&p->space_zone);
	arena_fini(&p->arena);
	assert(atomic_load(&p->budget.used) == 0);
	p->pmap->ops->destroy(p->pmap);
	pthread_mutex_destroy(&rt->held.lock);
	pthread_cond_destroy(&rt->start_cond);
	pthread_mutex_destroy(&rt->start_lock);
	pthread_mutex_destroy(&rt->limit_lock);
	free(rt);
}

uint64_t
up_features(struct up_runtime *rt)
{
	if (rt == NULL)
		return 0;
	if (rt->remote != NULL)
		return remote_features(rt);
	return (rt->p.pmap->features & UP_MASK_ALL) | (rt->p.swap.odirect ? UP_MASK_ODIRECT : 0) |
	       (~rt->mask & UP_MASK_RING_FLAGS);
}

const char *
up_version(void)
{
#define STR2(x) #x
#define STR(x) STR2(x)
	return STR(UP_VERSION_MAJOR) "." STR(UP_VERSION_MINOR) "." STR(UP_VERSION_PATCH);
}
