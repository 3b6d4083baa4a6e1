/* SPDX-License-Identifier: BSD-2-Clause */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pager/source.h"
#include "rig.h"
#include "sysmem.h"

static void __attribute__((noreturn, format(printf, 2, 3))) die(struct rig *r, const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "rig (seed %llu): ", (unsigned long long)r->cfg.seed);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\n");
	for (unsigned i = r->nlog > 16 ? r->nlog - 16 : 0; i < r->nlog; i++)
		fprintf(stderr, "  log: %s\n", r->log[i % 16]);
	if (r->rt != NULL) {
		up_stats_print(r->rt, stderr);
		up_trace_print(r->rt, stderr);
	}
	abort();
}

static struct rig
	*current; /* the arena's ops get the pager as ctx, which is not there early enough */

static void *
reserve(void *ctx, size_t len)
{
	void *addr = sysmem_ops.reserve(ctx, len);

	current->reserved += addr != NULL ? len : 0;
	return addr;
}

static void
release(void *ctx, void *addr, size_t len)
{
	current->reserved -= len;
	sysmem_ops.release(ctx, addr, len);
}

static int
commit(void *ctx, void *addr, size_t len)
{
	struct rig *r = current;

	if (r->fail_commit > 0 && --r->fail_commit == 0) {
		r->commit_failed = true;
		return -ENOMEM;
	}
	return sysmem_ops.commit(ctx, addr, len);
}

static int
pmap_create(void *ctx, struct pmap **pm, frame_t nstage, unsigned nshards, uint64_t mask,
	    const struct logger *log)
{
	struct rig *r = ctx;
	int ret;

	(void)log;
	ret = pmap_sim_create(pm, nstage, nshards, mask, &r->f);
	r->pm = ret == 0 ? *pm : NULL;
	return ret;
}

/* Slots whose file holds nothing: the content is in the simulated disk. */
static int
swap_open(void *ctx, struct swap_area *s, struct arena *arena, const struct up_config *cfg,
	  const struct logger *log)
{
	const size_t n = round_up(cfg->swap_size / PAGE_SIZE, 64);
	int ret;

	*s = (struct swap_area){ .fd = memfd_create("rig", MFD_CLOEXEC),
				 .odirect = ((struct rig *)ctx)->cfg.buffers > 0,
				 .fixed = true,
				 .log = log };
	if (s->fd < 0)
		return -errno;
	ret = runmap_init(&s->slots, arena, n);
	if (ret < 0)
		goto close;
	ret = runmap_grow(&s->slots, n, true);
	if (ret < 0)
		goto fini;
	pthread_mutex_init(&s->lock, NULL);
	s->nslots = n;
	return 0;

fini:
	runmap_fini(&s->slots);
close:
	log_line(log, UP_LOG_ERROR, "swap: no memory for its map");
	close(s->fd);
	return ret;
}

static int
engine_create(void *ctx, struct io_engine **e, struct pager *p, unsigned service, unsigned depth,
	      uint64_t mask)
{
	const struct sim_engine_hooks hooks = {
		.ctx = p->pmap,
		.shard = service,
		.readable = sim_readable,
		.pin = sim_io_pin,
		.unpin = sim_io_unpin,
	};
	struct rig *r = ctx;

	(void)mask;
	return io_engine_sim_create(e, r->disk, depth, &hooks);
}

static int
worker_engine(void *ctx, struct io_engine **e, struct pager *p)
{
	const struct sim_engine_hooks hooks = { .ctx = p->pmap,
						.pin = sim_io_pin,
						.unpin = sim_io_unpin };
	struct rig *r = ctx;

	return io_engine_sim_create(e, r->disk, 2, &hooks);
}

/* Time passes only when somebody looks at the clock: the same seed is the same run. */
static uint64_t virtual_now;

static uint64_t
virtual_clock(void)
{
	return virtual_now += 1000;
}

void
rig_later(uint64_t ns)
{
	virtual_now += ns;
}

static void
idle(void *ctx)
{
	rig_step(ctx);
}

static void
log_fn(void *ctx, enum up_log_level level, const char *line)
{
	struct rig *r = ctx;

	(void)level;
	snprintf(r->log[r->nlog++ % 16], sizeof r->log[0], "%s", line);
}

struct rig *
rig_prepare(const struct rig_config *cfg)
{
	struct rig *r = calloc(1, sizeof *r);

	if (r == NULL)
		abort();
	r->cfg = *cfg;
	if (r->cfg.memory == 0)
		r->cfg.memory = (size_t)2 << 20;
	if (r->cfg.swap_slots == 0)
		r->cfg.swap_slots = 65536;
	if (r->cfg.services == 0)
		r->cfg.services = 1;
	sim_faults_init(&r->f, r->cfg.seed);
	if (sim_disk_create(&r->disk, &r->f) < 0)
		abort();
	r->memory = sysmem_ops;
	r->memory.reserve = reserve;
	r->memory.release = release;
	r->memory.commit = commit;
	r->memory.reclaim = runtime_reclaim;
	r->backend = (struct backend){ .ctx = r,
				       .memory = &r->memory,
				       .pmap_create = pmap_create,
				       .swap_open = swap_open,
				       .engine_create = engine_create,
				       .worker_engine = worker_engine,
				       .idle = idle,
				       .hash_seed = cfg->seed + 1,
				       .policy = cfg->policy };
	current = r;
	virtual_now = 1000000000;
	test_clock = virtual_clock;
	return r;
}

int
rig_create(struct rig *r)
{
	const struct up_config cfg = {
		.memory_limit = r->cfg.memory,
		.memory_limit_max = r->cfg.memory_most,
		.swap_size = r->cfg.swap_slots * PAGE_SIZE,
		.service_threads = r->cfg.services,
		.feature_mask = r->cfg.mask,
		.flags = r->cfg.flags,
		.fault_timeout_ms = r->cfg.fault_timeout_ms,
		.delivery = r->cfg.delivery,
		.compression = r->cfg.compression,
		.compress_limit = r->cfg.compress_limit,
		.log = log_fn,
		.log_ctx = r,
	};
	const int ret = runtime_create(&r->rt, &cfg, &r->backend);

	r->p = ret == 0 ? &r->rt->p : NULL;
	if (ret == 0 && r->cfg.buffers > 0) {
		r->p->bounce.n = r->cfg.buffers;
		r->p->bounce.least = 1;
		r->p->bounce.pages = 2;
	}
	return ret;
}

struct rig *
rig_try(const struct rig_config *cfg, int *err)
{
	struct rig *r = rig_prepare(cfg);

	*err = rig_create(r);
	if (*err == 0)
		return r;
	rig_down(r);
	return NULL;
}

struct rig *
rig_up(const struct rig_config *cfg)
{
	int err;
	struct rig *r = rig_try(cfg, &err);

	if (r == NULL) {
		fprintf(stderr, "rig: the runtime could not be created: error %d\n", -err);
		abort();
	}
	return r;
}

void
rig_down(struct rig *r)
{
	if (r->rt != NULL)
		rig_settle(r);
	up_runtime_destroy(r->rt);
	r->rt = NULL;
	if (r->reserved != 0)
		die(r, "%zu bytes of address space are left", r->reserved);
	sim_disk_destroy(r->disk);
	current = NULL;
	test_clock = NULL;
	free(r);
}

static void
forget_failures(struct pager *p)
{
	atomic_store(&p->write_again, 0);
	for (const struct object *o = p->objects; o != NULL; o = o->next) {
		if (o->source != NULL)
			atomic_store(&o->source->write_again, 0);
	}
}

void
rig_step(struct rig *r)
{
	struct pager *p = r->p;

	if (!r->cfg.honest_backoff)
		forget_failures(p);
	for (unsigned i = 0; i < p->nservices; i++) {
		struct service *s = p->service[i];

		/* Time does not pass here: a kick makes it look at what is parked. */
		if (s->nparked > 0 || s->parked_overflow)
			s->io->ops->kick(s->io);
		service_step(s, 0);
	}
}

static bool
busy(struct rig *r)
{
	for (unsigned i = 0; i < r->p->nservices; i++) {
		const struct service *s = r->p->service[i];

		if (s->io->inflight > 0 || s->nhanded > 0 || s->nparked > 0 || s->parked_overflow ||
		    s->more || s->willneed.n > 0 || s->push.n > 0 || sim_queued(r->pm, i) > 0)
			return true;
	}
	return false;
}

void
rig_settle(struct rig *r)
{
	for (unsigned steps = 0; busy(r); steps++) {
		if (steps == RIG_PATIENCE)
			die(r, "does not come to rest");
		rig_step(r);
	}
}

uintptr_t
rig_map(struct rig *r, size_t len)
{
	void *p;
	const int ret = up_map(r->rt, NULL, len, PROT_READ | PROT_WRITE, UP_PRIVATE, NULL, 0, &p);

	if (ret < 0)
		die(r, "up_map(%zu): %s", len, strerrorname_np(-ret));
	return (uintptr_t)p;
}

enum sim_result
rig_try_touch(struct rig *r, unsigned thread, uintptr_t va, bool write, void *buf, size_t off,
	      size_t len)
{
	const enum sim_result res = sim_touch(r->pm, thread, va, write, buf, off, len);

	/* While everything is frozen it would wait for the caller. */
	if (res != SIM_FAULT || r->cfg.delivery != UP_DELIVER_INLINE || r->p->frozen)
		return res;
	if (worker_serve(r->p, va, write) == SERVED_LOST)
		return SIM_SIGBUS;
	return sim_touch(r->pm, thread, va, write, buf, off, len);
}

enum sim_result
rig_touch(struct rig *r, unsigned thread, uintptr_t va, bool write, void *buf, size_t off,
	  size_t len)
{
	for (unsigned steps = 0; steps < RIG_PATIENCE; steps++) {
		const enum sim_result res = rig_try_touch(r, thread, va, write, buf, off, len);

		if (res != SIM_FAULT)
			return res;
		if (r->cfg.delivery == UP_DELIVER_SERVICE && !busy(r) && sim_stranded(r->pm) >= 0)
			die(r, "thread %d sleeps at %#lx and nobody will wake it",
			    sim_stranded(r->pm), (unsigned long)va);
		rig_step(r);
	}
	die(r, "the fault at %#lx is not served", (unsigned long)va);
}

void
rig_put(struct rig *r, uintptr_t va, uint64_t word)
{
	const enum sim_result res = rig_touch(r, 0, va, true, &word, 0, sizeof word);

	if (res != SIM_OK)
		die(r, "writing %#lx: result %d", (unsigned long)va, (int)res);
}

uint64_t
rig_get(struct rig *r, uintptr_t va)
{
	uint64_t word = 0;
	const enum sim_result res = rig_touch(r, 0, va, false, &word, 0, sizeof word);

	if (res != SIM_OK)
		die(r, "reading %#lx: result %d", (unsigned long)va, (int)res);
	return word;
}

void
rig_push_out(struct rig *r, uintptr_t va)
{
	const size_t len = 2 * r->cfg.memory;

	/*
	 * Whatever the policy: a scan alone may not push out what was used before; and a page of a pool that was touched
	 * is passed over once.
	 */
	for (unsigned round = 0; round < 2; round++) {
		const uintptr_t other = rig_map(r, len);
		int ret = up_advise(r->rt, (void *)va, PAGE_SIZE, UP_ADVICE_COLD);

		if (ret < 0)
			die(r, "up_advise: %s", strerrorname_np(-ret));
		for (size_t at = 0; at < len; at += PAGE_SIZE)
			rig_put(r, other + at, at + 1);
		ret = up_unmap(r->rt, (void *)other, len);
		if (ret < 0)
			die(r, "up_unmap: %s", strerrorname_np(-ret));
		rig_settle(r);
		if (sim_state(r->pm, va) != SIM_PRESENT)
			return;
	}
	die(r, "page %#lx stays although four times the limit was written", (unsigned long)va);
}

struct up_stats
rig_stats(struct rig *r)
{
	struct up_stats st;

	up_stats_get(r->rt, &st, sizeof st);
	return st;
}

bool
rig_logged(const struct rig *r, const char *text)
{
	const unsigned n = MIN(r->nlog, 16u);

	for (unsigned i = 0; i < n; i++) {
		if (strstr(r->log[i], text) != NULL)
			return true;
	}
	return false;
}
