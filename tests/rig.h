/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * rig.h: a whole runtime over the simulated kernel and disk, driven by hand.
 *
 *	struct rig *r = rig_up(&(struct rig_config){ .memory = 2 << 20, .seed = 7 });
 *	char *p = rig_map(r, 16 << 20);			an address of the simulated kernel
 *	rig_put(r, (uintptr_t)p, 42);			one word, through faults if need be
 *	cr_assert(rig_get(r, (uintptr_t)p) == 42);
 *	rig_down(r);					runs every checker; counts to zero
 *
 * The real up_*() calls work on r->rt.  Nothing runs by itself: rig_step() gives each service one turn, and
 * calls that touch memory step until they are through.  A call that does not get through in RIG_PATIENCE
 * steps, or a thread that nobody will wake, aborts with what is known.
 */
#ifndef UP_TESTS_RIG_H
#define UP_TESTS_RIG_H

#include "pmap/sim.h"
#include "runtime.h"
#include "swap/sim.h"

#define RIG_PATIENCE 200000u

struct rig_config {
	size_t memory;	    /* limit; 0: 2 MiB */
	size_t memory_most; /* up_config.memory_limit_max */
	size_t swap_slots;  /* 0: 65536; the swap has a fixed size */
	unsigned services;  /* 0: 1 */
	uint64_t mask;	    /* UP_MASK_MOVE */
	uint64_t seed;
	unsigned flags; /* up_config.flags */
	unsigned fault_timeout_ms;
	enum up_delivery delivery;
	enum up_compression compression;
	uint64_t compress_limit;
	enum policy_kind policy; /* of replacement; 0: the default */
	unsigned buffers;	 /* large requests go through so many; 0: none */
	bool honest_backoff; /* leave the pause after a failed write alone; else it is over at once */
};

struct rig {
	struct sim_faults f;
	struct rig_config cfg;
	struct arena_ops memory;
	unsigned fail_commit; /* fail the nth commit of metadata from now; 0: off */
	bool commit_failed;
	size_t reserved; /* bytes of address space that metadata has, and the compressed pool */
	struct backend backend;
	struct pmap *pm;
	struct sim_disk *disk;
	struct up_runtime *rt;
	struct pager *p;   /* of rt */
	char log[16][512]; /* the most recent lines */
	unsigned nlog;	   /* lines ever */
};

/* NULL, with *err set, if the runtime could not be created. */
struct rig *rig_try(const struct rig_config *cfg, int *err);
/* The same, but aborts. */
struct rig *rig_up(const struct rig_config *cfg);
/* A rig whose create is still to come: for failing it. */
struct rig *rig_prepare(const struct rig_config *cfg);
int rig_create(struct rig *r);
/* Destroys the runtime, which checks it, and the simulation, which aborts on what is left. */
void rig_down(struct rig *r);

/* One turn of every service. */
void rig_step(struct rig *r);
/* So much time passes. */
void rig_later(uint64_t ns);
/* Steps until nothing is in flight, queued or parked. */
void rig_settle(struct rig *r);

/* An anonymous region; aborts if that fails. */
uintptr_t rig_map(struct rig *r, size_t len);

/*
 * One attempt of a program thread.  Where threads serve themselves (cfg.delivery) it does that, too; SIM_FAULT then
 * means that the page was not to be had yet, and nobody will wake it.
 */
enum sim_result rig_try_touch(struct rig *r, unsigned thread, uintptr_t va, bool write, void *buf,
			      size_t off, size_t len);
/* As a program thread does; steps until the touch is through.  SIM_OK, SIM_SIGBUS or SIM_SIGSEGV. */
enum sim_result rig_touch(struct rig *r, unsigned thread, uintptr_t va, bool write, void *buf,
			  size_t off, size_t len);
/* The first word of a page; both abort unless the touch is SIM_OK. */
void rig_put(struct rig *r, uintptr_t va, uint64_t word);
uint64_t rig_get(struct rig *r, uintptr_t va);
/* Steps until the page is SIM_ABSENT from the page table: others are touched to push it out. */
void rig_push_out(struct rig *r, uintptr_t va);

struct up_stats rig_stats(struct rig *r);
/* True if one of the recent log lines contains `text`. */
bool rig_logged(const struct rig *r, const char *text);

#endif
