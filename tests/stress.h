/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * stress.h: many threads at once on a runtime over the real kernel, and a watch over them.
 *
 * Public header only: what is tested is what an embedder has.  A failure prints what it knows
 * (how to run it again, where every thread is, the trace, the statistics) and aborts: with
 * other threads in the middle of everything there is nothing to unwind.
 */
#ifndef STRESS_H
#define STRESS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "uffd_pager.h"

/* A step of one thread may take this long before it counts as hanging. */
#define STEP_SECONDS 20

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define STRESS_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define STRESS_SANITIZED 1
#endif
#endif
#ifndef STRESS_SANITIZED
#define STRESS_SANITIZED 0
#endif

/* --- a watch over threads --- */

#define POSTS_MAX 32

/* What one thread is doing. */
struct post {
	_Atomic(const char *) what; /* NULL: nothing that could hang */
	_Atomic uint64_t since;	    /* ns */
	_Atomic uintptr_t at;	    /* an address, if it is about one */
	_Atomic uint64_t pages;
	_Atomic uint64_t steps;
	_Atomic int tid;
};

struct watch {
	struct up_runtime *rt; /* to print; NULL: none */
	const char *again;     /* how to run this again */
	bool hold;	       /* on failure stay for a debugger instead of aborting */
	unsigned nposts;
	struct post post[POSTS_MAX];
	atomic_bool stop;
	unsigned long thread;
};

/*
 * pthread_create(), and the thread has begun to run: from here on it holds no lock of an allocator for having been started, which a child
 * forked now would wait for if that is AddressSanitizer's (up to LLVM 16 it is not safe to fork beside).  0 or an errno value.
 */
int start_thread(pthread_t *t, void *(*body)(void *), void *arg);

/* Start the thread that ends the program if a post stays at one step for too long. */
void watch_start(struct watch *w, struct up_runtime *rt, unsigned nposts, const char *again);
void watch_stop(struct watch *w);
/* This thread begins a step, or (NULL) has none. */
void post_step(struct post *p, const char *what, const void *at, size_t pages);
/* An up_log_fn that keeps the last lines for watch_fail(); those of forked children are dropped. */
void watch_log(void *ctx, enum up_log_level level, const char *line);
/* Print everything and abort. */
void watch_fail(struct watch *w, const char *fmt, ...)
	__attribute__((noreturn, format(printf, 2, 3)));

/* --- the mill --- */

struct stress {
	unsigned seconds;
	unsigned threads;  /* 1..16 */
	unsigned services; /* 0: the default */
	size_t memory;
	uint64_t mask; /* UP_MASK_* */
	uint64_t seed;
	bool alone; /* no fork(), signals or other runtimes meanwhile */
	bool hold;
};

struct stress_result {
	uint64_t steps, pages, peeks, racing_signals, syscalls, forks, runtimes, clones, snapshots;
	uint64_t samples, peak; /* bytes resident, as the kernel counts them */
	struct up_stats st;
};

/* Returns if every byte was right, nothing hung, and the limit held. */
void stress_run(const struct stress *cfg, struct stress_result *res);

/* UP_MASK_* from "move,poison,...", "all" or "none".  False: an unknown word. */
bool stress_parse_mask(const char *list, uint64_t *mask);
void stress_print_mask(uint64_t mask, char *buf, size_t size);

/* A number from the command line.  False: it is none, or above max. */
bool stress_parse_number(const char *s, uint64_t max, uint64_t *n);

/* --- what the kernel says --- */

struct resident {
	uint64_t pager;	  /* mappings of the library: regions, staging, metadata */
	uint64_t program; /* anonymous memory of everything else */
};
/* By smaps: right when nothing moves.  What fork() leaves out or wipes is the library's. */
void resident_by_smaps(struct resident *r);
/* RssAnon of the process, one number, right at any time. */
uint64_t resident_anon(void);
/* What the files in memory behind shared mappings hold, in any page table or none. */
uint64_t resident_pools(void);
/*
 * What the kernel has of the pager, private and shared, all anonymous memory but the program's own.  The figures are of instants that follow
 * each other, not of one: false if shared memory became more or less in between, for a page that went from or to private memory then
 * is in both, or in neither.
 */
bool resident_pager(uint64_t *bytes);

/* 1: a touch of this address works; 0: SIGSEGV; -1: SIGBUS.  *value: the word there. */
int touch_read(const void *addr, uint64_t *value);
int touch_write(void *addr, uint64_t value);
/* The process's handlers for both signals, from now on; needed once before touch_*(). */
void touch_init(void);

uint64_t stress_now(void);
uint64_t stress_mix(uint64_t x);

#endif
