/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * bench.h: what the parts of the benchmark share.
 *
 *	main.c         options, rounds, who runs when
 *	job.c          one measurement: a forked child with a deadline; results in shared memory
 *	janitor.c      a process that outlives the rest; takes down swap, cgroup and files
 *	report.c       series of values, the table, the JSON
 *	host.c         what machine this is
 *	patterns.c     the data, and the patterns over it, by one thread or by several
 *	floor.c        the raw floor: bare poll + read + UFFDIO_COPY
 *	huge.c         whether a first touch should bring 2 MiB in one frame
 *	inline.c       threads that serve their own faults, and the floor of that
 *	paged.c        the library, called "ours" everywhere
 *	backend.c      a runtime with another replacement policy than the default
 *	policies.c     the library with one replacement policy and another
 *	cgroup.c       the memory cgroup that contenders are put into
 *	kernel_swap.c  the kernel's own swap in a memory cgroup, also with zswap in front of it, and on zram
 *	mmap_file.c    a mapped file in the same cgroup
 *	program.c      other programs: fio, and a real one, the external sort
 *	meta.c         metadata per page, mapping 1 TiB, faults among many entries and in a sparse region
 *	remote.c       a pager in another process, and the floor of that
 *	filled.c       a microVM whose memory is filled from its snapshot, and the floor of that
 *	clone.c        up_clone(), and what a thousand of them leave behind
 *	disk.c         the disk alone
 *	plot.c         the table as pictures, by gnuplot
 *
 * A forked child for each measurement, rather than all of them in one process: a contender can
 * hang, be killed by the kernel or corrupt itself without taking the run along, its memory can
 * be put into a cgroup, and nobody inherits page tables, caches or threads from who ran before.
 */
#ifndef BENCH_H
#define BENCH_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#include "uffd_pager.h"

#define PAGE ((size_t)UP_PAGE_SIZE)
#define POOL_SIZE ((size_t)1 << 20)
#define ROUNDS_MAX 64
#define VALUES_MAX 96
#define CURVE_POINTS 101	      /* of a distribution: its percentiles, from 0 to 100 */
#define CHECKED_PAGES ((size_t)65536) /* the most that any row outside the patterns checks */

/* Where the faulting thread and the thread that serves it run. */
enum place { PLACE_UNPINNED, PLACE_SAME_CPU, PLACE_TWO_CPUS, PLACES };
extern const char *const place_name[PLACES];

enum pattern { FILL, SEQ_READ, BACKWARD, STREAMS4, RAND_READ, RAND_WRITE, ZIPF, PATTERNS };
extern const char *const pattern_name[PATTERNS];

/* What pages hold: nothing compresses; half of each page does; cut from this machine's files. */
enum data { DATA_RANDOM, DATA_HALF, DATA_REAL, DATAS };
extern const char *const data_name[DATAS];

/* A region, its budget, and what it holds.  Who is compared with each other has the same. */
enum scale_id { SCALE_MAIN, SCALE_REAL, SCALE_ZSWAP, SCALE_ZRAM, SCALE_SORT, SCALES };
struct scale {
	size_t pages;	 /* of the region in the pattern rows */
	size_t memory;	 /* budget of the pattern rows, bytes */
	size_t rand_ops; /* touches in a random pattern */
	enum data data;
	enum scale_id id;
};

/* Who runs the patterns, and how. */
struct race {
	const char *who; /* what the series are called by */
	unsigned threads;
	bool file;		/* the region is a file's */
	bool direct;		/* ... read and written by O_DIRECT */
	const char *compressor; /* of zswap; NULL: the kernel's default */
	enum up_delivery delivery;
	enum up_compression compression;
};

/* Set up once by main(), except `round`; children inherit it. */
struct bench {
	struct scale scale; /* of who runs now */
	struct scale scales[SCALES];
	unsigned rounds;
	unsigned round; /* 0 .. rounds - 1 */
	bool quick;
	bool advice;	   /* tell the kernel and the library which pattern comes */
	size_t touches;	   /* faults in a latency row */
	unsigned deadline; /* seconds that one child may take; 0: its own default */
	const char *json;
	const char *plots; /* where plots go; NULL: none are wanted */
	const char *only;
	char dir[PATH_MAX]; /* work files live here; removed at the end */
	int cpu[2];	    /* CPUs for pinning */
	unsigned ncpus;	    /* that we may run on */

	/*
	 * Shared with the children and touched by the parent first, so that it is charged to the
	 * parent and not to a contender's cgroup.
	 */
	struct result *result;
	unsigned char *pool[DATAS]; /* POOL_SIZE bytes that page contents are cut from */
	uint32_t *
		generation; /* [most pages of a scale, or CHECKED_PAGES] rewrites of a page's first word */
	uint32_t *ns;	 /* [most rand_ops of a scale, or touches] latencies */
	uint32_t *order; /* [ZIPF_OPS(most rand_ops)] pages in the order of ZIPF */
};
extern struct bench bench;

/*
 * Twice as many as there are pages in the region.  With an eighth of that fewer different pages are touched than fit in memory: then nothing
 * that came in ever leaves again, and each side waits for the same first touches, whatever it would keep.
 */
#define ZIPF_OPS(rand_ops) ((rand_ops)*16)

static inline uint64_t
bench_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* splitmix64's finaliser: a cheap hash, and one step of a random sequence. */
static inline uint64_t
mix64(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

/* Uniform in [0, n); the same sequence for every contender of a round. */
static inline size_t
rng_below(uint64_t *state, size_t n)
{
	*state += UINT64_C(0x9e3779b97f4a7c15);
	return (size_t)(((unsigned __int128)mix64(*state) * n) >> 64);
}

/* ---- job.c ---- */

typedef void job_fn(const void *arg);

enum job_end { JOB_DONE, JOB_SKIPPED, JOB_FAILED, JOB_HUNG, JOB_INTERRUPTED };

bool job_init(void); /* blocks the terminating signals; call once, before anything is set up */
/* Run fn(arg) in a child; its values become series of this round.  `why`: why not. */
enum job_end job_run(job_fn *fn, const void *arg, unsigned deadline_s, char *why, size_t why_size);
bool job_interrupted(void);

/*
 * For the child: record one value under the series `fmt`; give up with a reason; give up since
 * the machine does not allow it, which is not a failure.
 */
void job_value(const char *unit, double v, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
void job_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
void job_skip(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
/* Should the child be killed, this may be why: the last one is shown. */
void job_note(const char *text);
/* Sort bench.ns[0 .. n) and record PREFIX.p50, .p99 and .mean in microseconds. */
void job_quantiles(const char *prefix, size_t n);
/* Sort bench.ns[0 .. n) and keep its percentiles for a plot. */
void job_curve(const char *name, size_t n);
/* A buffer for O_DIRECT; never freed, the child ends soon. */
void *job_buffer(size_t size);
/* Pin the calling thread; threads that it creates inherit that. */
void place_service(enum place where);
void place_faulter(enum place where);
/* DIR/name */
void work_path(char path[PATH_MAX], const char *name);

/* ---- janitor.c ---- */

/*
 * The janitor waits until this process is gone or lets go, however it ended, then undoes what
 * the fields describe.  An empty string is nothing to undo.
 */
struct janitor_list {
	char dir[PATH_MAX];	 /* removed with the files in it */
	char swapfile[PATH_MAX]; /* swapoff() */
	char cgroup[PATH_MAX];	 /* emptied and removed */
	char zram[16];		 /* the number of a zram device: reset and removed */
	struct janitor_setting {
		char path[128]; /* of a parameter that is set back ... */
		char was[32];	/* ... to this */
	} setting[8];
};
extern struct janitor_list *janitor_list; /* shared with it; fill in before the deed */

bool janitor_start(void);
/* Set a parameter, and have it set back later.  False, and errno: it is as it was. */
bool janitor_set(const char *path, const char *value);
void janitor_set_back(void); /* all of them, now */
void zram_remove(void);	     /* the device, if there is one */
void janitor_leave(void);    /* in a child: let go of the pipe */
void janitor_finish(void);   /* clean up now and wait until it is done */

/* ---- report.c ---- */

void series_add(const char *name, const char *unit, double v);
void skip_add(const char *name, const char *reason);
void curve_add(const char *name, const double *point); /* [CURVE_POINTS] */
void report_print(FILE *out);
bool report_json(const char *path);

struct summary {
	double median, min, max;
};
/* Of a series; false: there is none. */
bool summarise(const char *name, struct summary *out);
/* The medians over the rounds, point[CURVE_POINTS]; false: there is none. */
bool curve_get(const char *name, double *point);

/* ---- plot.c ---- */

bool plots_make(const char *dir);

/* ---- host.c ---- */

struct host {
	char kernel[128], cpu[128], disk[64], fs[32], thp[32], zswap[16], page_cluster[16],
		swappiness[16];
	char library[32];
	long cpus;
	uint64_t memory;
	int rotational;		   /* -1: unknown */
	char rotational_path[128]; /* empty: unknown */
	char read_ahead_path[128]; /* likewise */
};
extern struct host host;

void host_init(const char *dir); /* of the disk that holds `dir` */
bool read_line(const char *path, char *buf, size_t size);
bool write_line(const char *path, const char *text);

/* ---- patterns.c ---- */

struct pattern_ops {
	/* Told before each pattern; outside the clock. */
	void (*advise)(void *ctx, enum pattern p);
	/* The end of a pattern that writes; inside the clock.  May be NULL. */
	void (*sync)(void *ctx);
	/* How many bytes have been read from swap and written to it so far.  May be NULL. */
	void (*moved)(void *ctx, uint64_t *in, uint64_t *out);
};
void pool_init(void);
/* What costs memory, before the child enters a cgroup. */
void patterns_prepare(unsigned threads);
void patterns_run(const struct race *race, unsigned char *base, const struct pattern_ops *ops,
		  void *ctx);
/* As madvise() has it: MADV_SEQUENTIAL, MADV_RANDOM, or MADV_NORMAL for what is neither. */
int pattern_advice(enum pattern p);
bool pattern_writes(enum pattern p);
/* NAME or NAME_2t */
void pattern_label(char label[32], enum pattern p, unsigned threads);
uint64_t page_word(size_t page, uint32_t generation);
void page_write(unsigned char *p, size_t page);
/* Fails the job with what is wrong. */
void page_check_word(uint64_t word, size_t page);
void page_check_all(const unsigned char *p, size_t page);

/* ---- the contenders: jobs, and what the parent does around them ---- */

job_fn floor_zero, floor_major, floor_soft;	    /* arg: enum place */
job_fn ours_zero, ours_major, ours_soft;	    /* arg: enum place */
job_fn floor_inline, ours_inline;		    /* arg: "zero" or "soft" */
job_fn floor_remote, ours_remote;		    /* arg: enum place */
job_fn floor_filled, ours_filled;		    /* arg: enum place; with BENCH_FILLED */
job_fn ours_restore;				    /* the same */
job_fn ours_patterns, swap_patterns, mmap_patterns; /* arg: struct race */
job_fn ours_threads;				    /* arg: struct threads_arg */
job_fn policy_strings;				    /* arg: the policy's name */
job_fn meta_per_page, meta_sparse, meta_sparse_fault, meta_entries, clone_cost, disk_raw;
job_fn fio_disk;
job_fn sort_run; /* arg: struct race */
job_fn huge_touch, huge_pageout, huge_pressure, huge_reach, huge_account, huge_ours;

struct threads_arg {
	unsigned n;
	bool shared; /* one region for all, rather than one each */
	enum up_delivery delivery;
	unsigned services; /* 0: as many as by default */
};

/* Touch base + order[i] * PAGE for each i and record the latencies as `prefix`. */
void latency_measure(unsigned char *base, const uint32_t *order, size_t n, bool write,
		     const char *prefix);
/* 0 .. n - 1 in random order */
uint32_t *random_order(size_t n);
/* A userfaultfd with these features. */
int floor_uffd(uint64_t features);
/* Record how many of the touches were faults of that kind, of which there were `before`. */
void latency_faults(struct up_runtime *rt, enum up_fault_kind kind, uint64_t before,
		    const char *prefix);
/* The file that floor_major reads, and that the library swaps to in ours_major. */
#define FLOOR_FILE "floor.dat"
#define FLOOR_PAGES ((size_t)16384)

/* With swap in the work directory unless the caller chose one.  Fails the job. */
struct up_runtime *ours_open(struct up_config *cfg);
/* backend.c: up_runtime_create(), with a replacement policy by its name; NULL: the default. */
int runtime_open_with(struct up_runtime **rt, const struct up_config *cfg, const char *policy);
/* ours_open() likewise. */
struct up_runtime *ours_open_with(struct up_config *cfg, const char *policy);
unsigned char *ours_map(struct up_runtime *rt, size_t npages);
void ours_advise(struct up_runtime *rt, void *p, size_t npages, enum up_advice advice);
struct up_stats ours_stats(struct up_runtime *rt);
/* The patterns with a policy, in no cgroup. */
void ours_patterns_with(const char *policy, const struct race *race);
/* Move npages to another address: in memory, and in no page table. */
unsigned char *ours_moved(struct up_runtime *rt, unsigned char *p, size_t npages);
/* An error line of the library since the last of these, or "". */
const char *ours_log(void);
void page_rewrite(unsigned char *base, size_t page);

/* ---- cgroup.c ---- */

bool cgroup_is_v2(void);
/* Parent, with a limit in bytes; the cgroup then holds nobody. */
bool cgroup_setup(size_t limit, char *why, size_t size);
void cgroup_teardown(void);
void cgroup_enter(void); /* child */
/* A process that keeps the statistics of the cgroup fresh until it is killed; it is not in the cgroup.  Before cgroup_enter(). */
pid_t cgroup_stat_reader(void);
/* Another limit of the cgroup, under the name that it has in v2; false: there is none. */
bool cgroup_set_v2(const char *name, size_t value);
/* Record the most that was charged. */
void cgroup_peak(const char *who);
/* What a process takes beside memory_limit: page tables, stacks, what the kernel keeps for it. */
size_t cgroup_margin(size_t npages);

/* ---- kernel_swap.c ---- */

typedef bool before_fn(const void *arg, char *why, size_t size);
before_fn cgroup_before, swap_before, swap_ssd_before, zswap_before, zram_before;
void swap_after(void), zswap_after(void), zram_after(void);
/* The budget from which on 1 % of the machine's memory, the least that zswap can be given, is no more than two thirds of it. */
size_t zswap_memory(size_t at_least);

/* ---- mmap_file.c ---- */

/* A file of the region's size, its blocks reserved, that is gone when it is closed. */
int mapped_file(const char *name);

/* ---- program.c ---- */

/* Run a program, its output to a file unless that is NULL, with a deadline.  -1: it is not there; else its exit status. */
int program_run(const char *const argv[], const char *output, unsigned deadline_s);
before_fn sort_before, sort_swap_before, sort_swap_ssd_before;

#endif
