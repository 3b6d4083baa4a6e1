/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * base.h: what every layer uses: page arithmetic, the log, the clock.
 */
#ifndef UP_BASE_H
#define UP_BASE_H

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "uffd_pager.h"

#define PAGE_SHIFT 12
#define PAGE_SIZE ((size_t)1 << PAGE_SHIFT)
#define PAGE_MASK (PAGE_SIZE - 1)

/* Pages in one cluster: the most that one swap request, or one move, carries. */
#define CLUSTER_MAX 64

/* Index of a page-sized address in the staging area (vm/frame.h, pmap/pmap.h). */
typedef uint32_t frame_t;
#define FRAME_NONE UINT32_MAX

/* Number of a page in memory (vm/page.h), which replacement sorts (vm/policy.h). */
typedef uint32_t pageno_t;
#define PAGE_NONE UINT32_MAX

#ifndef MIN /* sys/param.h, which uv.h includes, has the same */
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#endif
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

static inline size_t
round_up(size_t n, size_t to)
{
	return (n + to - 1) / to * to;
}

/* Tests: what time it is, instead of the system's clock; NULL otherwise. */
extern uint64_t (*test_clock)(void);

static inline uint64_t
now_ns(void)
{
	struct timespec ts;

	if (__builtin_expect(test_clock != NULL, 0))
		return test_clock();
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/*
 * A lock that is held for less than it takes to sleep and to be woken: who meets it held looks again a few times first.  On one CPU that is in vain, and
 * short.
 */
static inline int
mutex_init_brief(pthread_mutex_t *m)
{
	pthread_mutexattr_t attr;
	int r = pthread_mutexattr_init(&attr);

	if (r != 0)
		return r;
#ifdef PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP
	pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
#endif
	r = pthread_mutex_init(m, &attr);
	pthread_mutexattr_destroy(&attr);
	return r;
}

/* Lines of threads that may not call the program now; see log_hold. */
#define LOG_HELD 8
struct log_held {
	pthread_mutex_t lock;
	atomic_uint n;	  /* (lock) to change */
	unsigned dropped; /* (lock) for which there was no room */
	struct {
		enum up_log_level level;
		char text[256];
	} line[LOG_HELD];
};

/* Whom a line is about: a process that is served. */
struct log_about {
	unsigned client; /* the daemon's number of it; 0: not known */
	int pid;
	char name[64];
};

/* While the callback is called, for one that has more to say of it than the text; NULL: nobody in particular.  Not of lines that were held. */
extern _Thread_local const struct log_about *log_about __attribute__((tls_model("initial-exec")));

/* Where log lines go: the user's callback, or nowhere. */
struct logger {
	up_log_fn fn;
	void *ctx;
	struct log_held *held; /* NULL: no thread ever holds any */
};

/*
 * This thread has interrupted the program, perhaps in malloc(): its lines wait until somebody else calls log_flush().
 * Of the static TLS, since what is allocated on its first use is allocated by malloc().
 */
extern _Thread_local bool log_hold __attribute__((tls_model("initial-exec")));

/* True if there are any. */
static inline bool
log_waits(const struct logger *log)
{
	return log->held != NULL && atomic_load(&log->held->n) > 0;
}

void log_flush(const struct logger *log);

/* One line through the callback; takes no lock, but to hold it, and allocates nothing. */
void log_line(const struct logger *log, enum up_log_level level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* The same of somebody; pid 0: of nobody.  What is in *about is looked at when the arguments have been. */
void log_line_about(const struct logger *log, const struct log_about *about,
		    enum up_log_level level, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

/*
 * What is stored before is there before what is stored after, to whoever looks at this memory once the process has been killed (adopt.h): its
 * threads stopped between two instructions, so only the compiler has to keep the order.
 */
static inline void
stores_in_order(void)
{
	atomic_signal_fence(memory_order_seq_cst);
}

#endif
