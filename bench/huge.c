/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * huge.c: whether a first touch should bring 2 MiB at once, in one frame.
 *
 * Nearly no library in it: bare userfaultfd with handlers of SIGBUS, in one thread.  It has a *region*, a *staging* area of small frames (with a
 * descriptor of its own, as in lib/pmap/uffd.c) and a *pool*, memory under MADV_HUGEPAGE that is registered nowhere, where the kernel makes
 * transparent huge pages, THPs.  One UFFDIO_MOVE takes a THP from pool to region, if nothing forces the kernel to split it:
 *
 *	the page table		MOVE of a THP wants an empty entry one level up.  In a VMA with MADV_NOHUGEPAGE, as regions have it, the
 *				very fault that asks for the page has made a page table, and then the THP is split and moved in 512
 *				pieces.  MADV_DONTNEED of all 2 MiB frees that table (CONFIG_PT_RECLAIM): what drop_table() is for.
 *	MADV_HUGEPAGE instead	no table is made, but a write fault has the kernel allocate and clear a THP first, only to find out
 *				that it is for us to answer.
 *
 * The jobs: *touch* what a first touch costs (*ours*: with the library around it), *pageout* what it costs to take memory out again,
 * *pressure* a fill of four times the budget, *reach* the program's own accesses, *account* whether what is counted is what the
 * cgroup is charged with.
 * Within a job everybody takes turns, INNER times; a value is the median of those.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bench.h"
#include "pmap/uffd_abi.h"

#define HUGE ((size_t)2 << 20)
#define HUGE_PAGES ((size_t)512)
#define RUN ((size_t)64 * PAGE) /* the library's cluster */
#define RUNS ((size_t)8)
#define INNER 9
#define BUSY_MAX 100000u      /* moves to try again */
#define ACCOUNTED ((size_t)8) /* blocks looked at together: the cgroup's charge comes in steps */

enum how {
	KERNEL_4K, /* no userfaultfd */
	KERNEL_2M,
	COPY_64,      /* UFFDIO_COPY of 64 pages of zeros: what the library does */
	MOVE_SPLIT,   /* a THP into the page table that the fault has made */
	MOVE_ADVISED, /* a region with MADV_HUGEPAGE */
	MOVE_POOL,    /* a THP that was made before */
	MOVE_REFILL,  /* with the kernel making a THP in the handler */
	MOVE_RECYCLE, /* with memset() of a THP in the handler */
	HOWS
};
static const char *const how_name[HOWS] = {
	"kernel_4k", "kernel_2m", "copy64", "split", "advised", "pool", "refill", "recycle",
};

/* How a budget is kept once it is full. */
enum evict { SMALL, MIXED, SPLIT, WHOLE, EVICTS };
static const char *const evict_name[EVICTS] = { "small", "mixed", "split", "whole" };

static struct {
	int region_fd, stage_fd, usage_fd;
	unsigned char *zeros;
	unsigned char *stage, *pool;
	size_t pool_next;
	enum how how;
	size_t faults;

	/* pressure: the region is used in order, so what to evict is what came first */
	unsigned char *region;
	enum evict evict;
	size_t budget, counted, evicted; /* bytes */
	int64_t base, over; /* bytes: the cgroup's charge before, and the most above `counted` */
	bool watch;
	unsigned busy;	 /* moves that had to be tried again */
	uint64_t making; /* CPU time, ns, that went into making THPs */
} rig;

/* --- values: the median of the turns --- */

static struct tally {
	char name[56];
	const char *unit;
	unsigned n;
	double v[INNER];
} tallies[VALUES_MAX];
static unsigned ntallies;

__attribute__((format(printf, 3, 4))) static void
tally(const char *unit, double v, const char *fmt, ...)
{
	char name[56];
	struct tally *t = tallies;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(name, sizeof name, fmt, ap);
	va_end(ap);
	while (t < tallies + ntallies && strcmp(t->name, name) != 0)
		t++;
	if (t == tallies + ntallies) {
		if (ntallies++ == VALUES_MAX)
			job_fail("more than %d values", VALUES_MAX);
		memcpy(t->name, name, sizeof name);
		t->unit = unit;
	}
	if (t->n < INNER)
		t->v[t->n++] = v;
}

static int
compare_double(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void
tallies_report(void)
{
	for (struct tally *t = tallies; t < tallies + ntallies; t++) {
		qsort(t->v, t->n, sizeof t->v[0], compare_double);
		job_value(t->unit, t->v[t->n / 2], "huge.%s", t->name);
	}
}

struct clocks {
	uint64_t wall, cpu;
};

static uint64_t
cpu_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static struct clocks
clocks_start(void)
{
	return (struct clocks){ .cpu = cpu_now(), .wall = bench_now() };
}

static struct clocks
clocks_stop(struct clocks c)
{
	c.wall = bench_now() - c.wall;
	c.cpu = cpu_now() - c.cpu;
	return c;
}

/* --- memory --- */

/* Aligned to 2 MiB; never two areas in one VMA, as there is a hole behind each. */
static unsigned char *
area(size_t len, int advice)
{
	char *p = mmap(NULL, len + 2 * HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		       -1, 0);
	char *at;

	if (p == MAP_FAILED)
		job_fail("mmap: %s", strerror(errno));
	at = p + (HUGE - (uintptr_t)p % HUGE) % HUGE;
	munmap(p, (size_t)(at - p));
	munmap(at + len, 2 * HUGE - (size_t)(at - p));
	if (mprotect(at, len, PROT_READ | PROT_WRITE) < 0 || madvise(at, len, advice) < 0)
		job_fail("a mapping of %zu bytes: %s", len, strerror(errno));
	return (unsigned char *)at;
}

static void
enroll(int fd, unsigned char *p, size_t len)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)p, .len = len },
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
	};

	if (ioctl(fd, UFFDIO_REGISTER, &reg) < 0)
		job_fail("UFFDIO_REGISTER: %s", strerror(errno));
}

static unsigned char *
region_make(size_t len, int advice)
{
	unsigned char *p = area(len, advice);

	enroll(rig.region_fd, p, len);
	return p;
}

static int
try_move(int fd, unsigned char *dst, const unsigned char *src, size_t len)
{
	struct uffdio_move m = { .dst = (uintptr_t)dst, .src = (uintptr_t)src, .len = len };

	return ioctl(fd, UFFDIO_MOVE, &m) < 0 ? -errno : 0;
}

static void
move(int fd, unsigned char *dst, const unsigned char *src, size_t len)
{
	struct uffdio_move m = { .dst = (uintptr_t)dst, .src = (uintptr_t)src, .len = len };

	while (ioctl(fd, UFFDIO_MOVE, &m) < 0) {
		/* The kernel itself may be about to do something with one of the pages. */
		if ((errno != EBUSY && errno != EAGAIN) || ++rig.busy > BUSY_MAX)
			job_fail("UFFDIO_MOVE of %zu KiB: %s", len >> 10, strerror(errno));
		if (m.move > 0) {
			m.dst += (size_t)m.move;
			m.src += (size_t)m.move;
			m.len -= (size_t)m.move;
		}
	}
}

static void
copy_zeros(unsigned char *dst, size_t len)
{
	struct uffdio_copy c = { .dst = (uintptr_t)dst, .src = (uintptr_t)rig.zeros, .len = len };

	if (ioctl(rig.region_fd, UFFDIO_COPY, &c) < 0)
		job_fail("UFFDIO_COPY: %s", strerror(errno));
}

static void
drop(unsigned char *p, size_t len)
{
	if (madvise(p, len, MADV_DONTNEED) < 0)
		job_fail("madvise: %s", strerror(errno));
}

/* Of a block in which no page is: see the head of this file. */
static void
drop_table(unsigned char *block)
{
	drop(block, HUGE);
}

/* The KiB that are mapped as THPs, of what starts at p. */
static size_t
huge_kib(const unsigned char *p, size_t len)
{
	const uintptr_t from = (uintptr_t)p, to = from + len;
	unsigned long a, b, kib, sum = 0;
	bool within = false;
	char line[512];
	FILE *f = fopen("/proc/self/smaps", "re");

	if (f == NULL)
		job_fail("/proc/self/smaps: %s", strerror(errno));
	while (fgets(line, sizeof line, f) != NULL) {
		if (sscanf(line, "%lx-%lx ", &a, &b) == 2)
			within = a >= from && b <= to;
		else if (within && sscanf(line, "AnonHugePages: %lu", &kib) == 1)
			sum += kib;
	}
	fclose(f);
	return sum;
}

/* Have the kernel make n THPs in the pool. */
static void
pool_fill(size_t n)
{
	drop(rig.pool, n * HUGE);
	for (size_t i = 0; i < n; i++)
		*(volatile unsigned char *)(rig.pool + i * HUGE) = 0;
	rig.pool_next = 0;
}

/* One more, in the handler. */
static void
pool_make(unsigned char *at)
{
	const uint64_t t = cpu_now();

	*(volatile unsigned char *)at = 0;
	rig.making += cpu_now() - t;
}

static void
huge_in(unsigned char *block)
{
	move(rig.region_fd, block, rig.pool + rig.pool_next++ * HUGE, HUGE);
}

/* What this process's cgroup is charged with, or 0. */
static int64_t
usage(void)
{
	char text[32] = "";

	if (rig.usage_fd < 0 || pread(rig.usage_fd, text, sizeof text - 1, 0) <= 0)
		return 0;
	return strtoll(text, NULL, 10);
}

/* --- faults --- */

static void
first_touch(unsigned char *page, unsigned char *block)
{
	switch (rig.how) {
	case COPY_64:
		copy_zeros(page, RUN);
		return;
	case MOVE_REFILL:
		pool_make(rig.pool + rig.pool_next * HUGE);
		break;
	case MOVE_RECYCLE:
		memset(rig.pool + rig.pool_next * HUGE, 0, HUGE);
		break;
	default:
		break;
	}
	if (rig.how != MOVE_SPLIT && rig.how != MOVE_ADVISED)
		drop_table(block);
	huge_in(block);
}

/* A run of 64 pages in, for a run out once the budget is full; the program's pages go in order. */
static void
small_in(unsigned char *page)
{
	if (rig.counted < rig.budget) {
		copy_zeros(page, RUN);
		rig.counted += RUN;
		return;
	}
	move(rig.stage_fd, rig.stage, rig.region + rig.evicted, RUN);
	rig.evicted += RUN;
	memset(rig.stage, 0, RUN);
	move(rig.region_fd, page, rig.stage, RUN);
}

/* The same of a whole THP, which stays one. */
static void
whole_in(unsigned char *block)
{
	drop_table(block);
	if (rig.counted < rig.budget) {
		pool_make(rig.pool);
		rig.counted += HUGE;
	} else {
		move(rig.stage_fd, rig.stage, rig.region + rig.evicted, HUGE);
		rig.evicted += HUGE;
		memset(rig.stage, 0, HUGE);
		move(rig.region_fd, block, rig.stage, HUGE);
		drop_table(rig.stage);
		return;
	}
	move(rig.region_fd, block, rig.pool, HUGE);
}

/* A new THP in, for one that goes out by runs. */
static void
split_in(unsigned char *block)
{
	drop_table(block);
	if (rig.counted == rig.budget) {
		for (size_t i = 0; i < RUNS; i++, rig.evicted += RUN) {
			move(rig.stage_fd, rig.stage, rig.region + rig.evicted, RUN);
			drop(rig.stage, RUN);
			rig.counted -= RUN;
		}
	}
	pool_make(rig.pool);
	rig.counted += HUGE;
	move(rig.region_fd, block, rig.pool, HUGE);
}

static void
under_pressure(unsigned char *page, unsigned char *block)
{
	int64_t over;

	if (rig.evict == SMALL || (rig.evict == MIXED && rig.counted == rig.budget))
		small_in(page);
	else if (rig.evict == SPLIT)
		split_in(block);
	else
		whole_in(block);
	if (!rig.watch)
		return;
	over = usage() - rig.base - (int64_t)rig.counted;
	if (over > rig.over)
		rig.over = over;
}

static void
on_bus(int sig, siginfo_t *info, void *context)
{
	unsigned char *page = (unsigned char *)info->si_addr - (uintptr_t)info->si_addr % PAGE;
	unsigned char *block = page - (uintptr_t)page % HUGE;

	(void)sig;
	(void)context;
	rig.faults++;
	if (rig.budget > 0)
		under_pressure(page, block);
	else
		first_touch(page, block);
}

/* Areas are parts of it, down to an eighth. */
static void
needs_memory(void)
{
	if (bench.scale.memory < 16 * HUGE)
		job_skip("--memory is less than 32 MiB");
}

static void
setup(size_t pool, size_t stage)
{
	struct sigaction sa = { .sa_sigaction = on_bus, .sa_flags = SA_SIGINFO };

	needs_memory();
	rig.usage_fd = -1;
	rig.region_fd = floor_uffd(UFFD_FEATURE_SIGBUS | UFFD_FEATURE_MOVE);
	rig.stage_fd = floor_uffd(UFFD_FEATURE_SIGBUS | UFFD_FEATURE_MOVE);
	rig.zeros = job_buffer(RUN);
	rig.pool = area(pool, MADV_HUGEPAGE);
	rig.stage = area(stage, MADV_NOHUGEPAGE);
	enroll(rig.stage_fd, rig.stage, stage);
	sigfillset(&sa.sa_mask);
	sigaction(SIGBUS, &sa, NULL);
	pool_fill(1);
	if (huge_kib(rig.pool, pool) != HUGE >> 10)
		job_skip("the kernel makes no transparent huge pages");
}

static void
setup_in_cgroup(size_t pool, size_t stage)
{
	char path[PATH_MAX + 32];

	cgroup_enter();
	setup(pool, stage);
	snprintf(path, sizeof path, "%s/memory.usage_in_bytes", janitor_list->cgroup);
	rig.usage_fd = open(path, O_RDONLY | O_CLOEXEC);
	if (rig.usage_fd >= 0)
		return;
	snprintf(path, sizeof path, "%s/memory.current", janitor_list->cgroup);
	rig.usage_fd = open(path, O_RDONLY | O_CLOEXEC);
	if (rig.usage_fd < 0)
		job_fail("%.100s: %s", path, strerror(errno));
}

static void
write_pages(unsigned char *p, size_t len)
{
	for (size_t i = 0; i < len; i += PAGE)
		*(volatile unsigned char *)(p + i) = 1;
}

/* A fresh region, every page of it written once in order. */
static unsigned char *
populate(enum how how, size_t len, struct clocks *c)
{
	const bool kernel = how == KERNEL_4K || how == KERNEL_2M;
	const int advice =
		how == KERNEL_2M || how == MOVE_ADVISED ? MADV_HUGEPAGE : MADV_NOHUGEPAGE;
	unsigned char *p = kernel ? area(len, advice) : region_make(len, advice);

	pool_fill(0);
	drop(rig.pool, len);
	if (how >= MOVE_SPLIT && how != MOVE_REFILL)
		pool_fill(len / HUGE);
	rig.how = how;
	rig.faults = 0;
	*c = clocks_start();
	write_pages(p, len);
	*c = clocks_stop(*c);
	return p;
}

void
huge_touch(const void *arg)
{
	const size_t len = bench.scale.memory / 4 / HUGE * HUGE, npages = len / PAGE;

	(void)arg;
	setup(len, HUGE);
	for (unsigned turn = 0; turn < INNER; turn++) {
		for (enum how how = 0; how < HOWS; how++) {
			struct clocks c;
			unsigned char *p = populate(how, len, &c);
			const char *name = how_name[how];

			tally("us", (double)c.wall / 1e3 / (double)npages, "touch.%s.wall", name);
			tally("us", (double)c.cpu / 1e3 / (double)npages, "touch.%s.cpu", name);
			tally("%", 100.0 * (double)huge_kib(p, len) * 1024 / (double)len,
			      "touch.%s.huge", name);
			if (rig.faults > 0)
				tally("us", (double)c.wall / 1e3 / (double)rig.faults,
				      "touch.%s.fault", name);
			munmap(p, len);
		}
	}
	tallies_report();
}

/* The library, for what it has to do besides: the same fill, in a budget with room for it. */
void
huge_ours(const void *arg)
{
	const size_t len = bench.scale.memory / 4 / HUGE * HUGE, npages = len / PAGE;
	struct up_config cfg = { .memory_limit = len * 2 + (16u << 20),
				 .service_threads = 1,
				 .delivery = UP_DELIVER_INLINE };
	struct up_runtime *rt;

	(void)arg;
	needs_memory();
	rt = ours_open(&cfg);
	for (unsigned turn = 0; turn < INNER; turn++) {
		struct clocks c;
		unsigned char *p = ours_map(rt, npages);

		ours_advise(rt, p, npages, UP_ADVICE_SEQUENTIAL);
		c = clocks_start();
		write_pages(p, len);
		c = clocks_stop(c);
		tally("us", (double)c.wall / 1e3 / (double)npages, "touch.ours.wall");
		tally("us", (double)c.cpu / 1e3 / (double)npages, "touch.ours.cpu");
		if (up_unmap(rt, p, len) < 0)
			job_fail("up_unmap: %s", ours_log());
	}
	up_runtime_destroy(rt);
	tallies_report();
}

/* --- pageout --- */

/* All of a block out by runs, and in again. */
static void
out_and_in(const char *name, unsigned char *block)
{
	struct clocks c;
	double first = 0, all = 0;

	for (size_t off = 0; off < HUGE; off += RUN) {
		c = clocks_start();
		move(rig.stage_fd, rig.stage + off, block + off, RUN);
		c = clocks_stop(c);
		all += (double)c.cpu / 1e3;
		if (off == 0)
			first = all;
	}
	tally("us", first, "out.%s.first", name);
	tally("us", (all - first) / (RUNS - 1), "out.%s.next", name);
	tally("us", all / HUGE_PAGES, "out.%s.page", name);
	c = clocks_start();
	for (size_t off = 0; off < HUGE; off += RUN)
		move(rig.region_fd, block + off, rig.stage + off, RUN);
	c = clocks_stop(c);
	tally("us", (double)c.cpu / 1e3 / HUGE_PAGES, "out.%s.back", name);
}

static void
whole_out_and_in(unsigned char *block)
{
	struct clocks c = clocks_start();

	move(rig.stage_fd, rig.stage, block, HUGE);
	c = clocks_stop(c);
	tally("us", (double)c.cpu / 1e3, "out.whole.first");
	tally("us", (double)c.cpu / 1e3 / HUGE_PAGES, "out.whole.page");
	if (huge_kib(rig.stage, HUGE) != HUGE >> 10)
		job_fail("a THP that was moved out as a whole is in pieces");
	c = clocks_start();
	move(rig.region_fd, block, rig.stage, HUGE);
	c = clocks_stop(c);
	tally("us", (double)c.cpu / 1e3 / HUGE_PAGES, "out.whole.back");
}

void
huge_pageout(const void *arg)
{
	unsigned char *p;

	(void)arg;
	setup(HUGE, HUGE);
	for (unsigned turn = 0; turn < INNER; turn++) {
		for (int kind = 0; kind < 4; kind++) {
			p = region_make(HUGE, MADV_NOHUGEPAGE);
			if (kind == 0) {
				for (size_t off = 0; off < HUGE; off += RUN)
					copy_zeros(p + off, RUN);
			} else {
				pool_fill(1);
				huge_in(p);
			}
			if (kind != 2)
				write_pages(p, HUGE);
			if (kind == 3)
				whole_out_and_in(p);
			else
				out_and_in(kind == 0   ? "small"
					   : kind == 1 ? "split"
						       : "split_zero",
					   p);
			munmap(p, HUGE);
			drop_table(rig.stage);
		}
	}
	tallies_report();
}

void
huge_pressure(const void *arg)
{
	const size_t budget = bench.scale.memory / 8 / HUGE * HUGE, len = 4 * budget;
	const double npages = (double)budget / PAGE * 4;

	(void)arg;
	setup_in_cgroup(HUGE, HUGE);
	drop(rig.pool, HUGE);
	rig.budget = budget;
	for (unsigned turn = 0; turn <= INNER; turn++) {
		for (enum evict e = 0; e < EVICTS; e++) {
			struct clocks c;

			rig.region = region_make(len, MADV_NOHUGEPAGE);
			rig.evict = e;
			rig.counted = rig.evicted = 0;
			rig.making = 0;
			rig.over = 0;
			rig.watch = turn == 0; /* outside the figures: reading it takes time */
			rig.base = usage();
			c = clocks_start();
			write_pages(rig.region, len);
			c = clocks_stop(c);
			if (turn == 0) {
				tally("KiB", (double)rig.over / 1024, "pressure.%s.over",
				      evict_name[e]);
			} else {
				tally("us", (double)c.wall / 1e3 / npages, "pressure.%s.wall",
				      evict_name[e]);
				tally("us", (double)c.cpu / 1e3 / npages, "pressure.%s.cpu",
				      evict_name[e]);
				tally("us", (double)rig.making / 1e3 / npages, "pressure.%s.making",
				      evict_name[e]);
			}
			munmap(rig.region, len);
			drop(rig.stage, HUGE);
			drop(rig.pool, HUGE);
		}
	}
	tallies_report();
}

/* --- reach: what the program gains --- */

enum access { INDEPENDENT, CHASE, STORE, STREAM, ACCESSES };
static const char *const access_name[ACCESSES] = { "independent", "chase", "store", "stream" };

static uint64_t
accesses(enum access what, unsigned char *p, size_t len, size_t n)
{
	volatile uint64_t *word = (volatile uint64_t *)(void *)p;
	const size_t words = len / sizeof *word;
	uint64_t rng = 1, sum = 0;

	for (size_t i = 0; i < n; i++) {
		switch (what) {
		case INDEPENDENT:
			sum += word[rng_below(&rng, words)];
			break;
		case CHASE:
			rng += sum;
			sum = word[rng_below(&rng, words)];
			break;
		case STORE:
			word[rng_below(&rng, words)] = i;
			break;
		default:
			sum += word[i * 8 % words];
			break;
		}
	}
	return sum;
}

void
huge_reach(const void *arg)
{
	static const enum how hows[] = { COPY_64, MOVE_REFILL };
	static volatile uint64_t sink;
	const size_t len = bench.scale.memory / HUGE * HUGE, n = len / PAGE * 16;

	(void)arg;
	setup(len, HUGE);
	for (unsigned turn = 0; turn < INNER; turn++) {
		for (int h = 0; h < 2; h++) {
			const char *name = how_name[hows[h]];
			struct clocks c, fill;
			unsigned char *p = populate(hows[h], len, &fill);

			tally("%", 100.0 * (double)huge_kib(p, len) * 1024 / (double)len,
			      "reach.%s.huge", name);
			for (enum access a = 0; a < ACCESSES; a++) {
				c = clocks_start();
				sink = accesses(a, p, len, n);
				c = clocks_stop(c);
				tally("ns", (double)c.cpu / (double)n, "reach.%s.%s", name,
				      access_name[a]);
				if (a == INDEPENDENT) /* fill, then use: a workload */
					tally("ms", (double)(fill.cpu + c.cpu) / 1e6,
					      "reach.%s.fill_use", name);
			}
			munmap(p, len);
		}
	}
	tallies_report();
	(void)sink;
}

/* --- account: is what is counted what there is? --- */

static int64_t account_base;

/* What the cgroup is charged with beyond `counted` KiB of each block. */
static void
account(const char *what, size_t counted)
{
	const double more = (double)(usage() - account_base) / 1024.0 / ACCOUNTED - (double)counted;

	tally("KiB", more, "account.%s", what);
}

/* ACCOUNTED blocks with a THP each, of `used` pages that are not zeros. */
static unsigned char *
account_begin(size_t used)
{
	unsigned char *p = region_make(ACCOUNTED * HUGE, MADV_NOHUGEPAGE);

	account_base = usage();
	pool_fill(ACCOUNTED);
	for (size_t i = 0; i < ACCOUNTED; i++) {
		huge_in(p + i * HUGE);
		write_pages(p + i * HUGE, used * PAGE);
	}
	return p;
}

static void
account_end(unsigned char *p)
{
	munmap(p, ACCOUNTED * HUGE);
	drop(rig.stage, ACCOUNTED * HUGE);
	drop(rig.pool, ACCOUNTED * HUGE);
}

/* Of each block, the bytes from `off` on. */
static void
out_of_each(unsigned char *p, size_t off, size_t len)
{
	for (size_t i = 0; i < ACCOUNTED; i++)
		move(rig.stage_fd, rig.stage + i * HUGE + off, p + i * HUGE + off, len);
}

static void
drop_of_each(unsigned char *p, size_t off, size_t len)
{
	for (size_t i = 0; i < ACCOUNTED; i++)
		drop(p + i * HUGE + off, len);
}

/* How many of the other pages of a block can be moved while one is in use by a pipe. */
static size_t
movable(unsigned char *p)
{
	struct iovec iov = { .iov_base = p, .iov_len = PAGE };
	size_t n = 0;
	int fd[2];

	if (pipe2(fd, O_CLOEXEC) < 0 || vmsplice(fd[1], &iov, 1, 0) != (ssize_t)PAGE)
		job_fail("vmsplice: %s", strerror(errno));
	for (size_t off = PAGE; off < HUGE; off += PAGE)
		n += try_move(rig.stage_fd, rig.stage + off, p + off, PAGE) == 0;
	close(fd[0]);
	close(fd[1]);
	return n;
}

/* How many other pages of a block are still write-protected after a page has been moved out. */
static size_t
protected_after_split(unsigned char *p)
{
	const struct uffdio_writeprotect wp = { .range = { .start = (uintptr_t)p, .len = HUGE },
						.mode = UFFDIO_WRITEPROTECT_MODE_WP };
	const int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry[HUGE_PAGES];
	size_t n = 0;

	if (ioctl(rig.region_fd, UFFDIO_WRITEPROTECT, &wp) < 0)
		job_fail("UFFDIO_WRITEPROTECT: %s", strerror(errno));
	move(rig.stage_fd, rig.stage, p, PAGE);
	if (fd < 0 || pread(fd, entry, sizeof entry, (off_t)((uintptr_t)p / PAGE * 8)) !=
			      (ssize_t)sizeof entry)
		job_fail("/proc/self/pagemap: %s", strerror(errno));
	close(fd);
	for (size_t i = 1; i < HUGE_PAGES; i++)
		n += entry[i] >> 57 & 1;
	return n;
}

/* The most that the cgroup was ever charged with while a page was written in a VMA with `advice`, beyond the THP it got. */
static void
account_peak(const char *what, int advice)
{
	char path[PATH_MAX + 40], text[32];
	unsigned char *p;

	snprintf(path, sizeof path, "%s/memory.max_usage_in_bytes", janitor_list->cgroup);
	if (access(path, W_OK) < 0)
		return; /* cgroup v2 */
	p = region_make(HUGE, advice);
	pool_fill(1);
	account_base = usage();
	rig.how = advice == MADV_HUGEPAGE ? MOVE_ADVISED : MOVE_POOL;
	write_line(path, "0");
	write_pages(p, HUGE);
	if (read_line(path, text, sizeof text))
		tally("KiB", (double)(strtoll(text, NULL, 10) - account_base) / 1024.0,
		      "account.%s", what);
	munmap(p, HUGE);
}

void
huge_account(const void *arg)
{
	const size_t all = HUGE >> 10, run = RUN >> 10;
	unsigned char *p;

	(void)arg;
	setup_in_cgroup(ACCOUNTED * HUGE, ACCOUNTED * HUGE);
	drop(rig.pool, HUGE);
	for (unsigned turn = 0; turn < INNER; turn++) {
		p = account_begin(HUGE_PAGES);
		account("in", all);
		out_of_each(p, 0, RUN);
		account("staged", all);
		drop_of_each(rig.stage, 0, RUN);
		account("dropped", all - run);
		account_end(p);

		/* Who writes little of what he was given. */
		p = account_begin(1);
		account("zeros_in", all);
		out_of_each(p, 0, RUN);
		account("zeros_staged", all);
		drop_of_each(rig.stage, 0, RUN);
		for (size_t i = 0; i < ACCOUNTED; i++)
			write_pages(p + i * HUGE + RUN, HUGE - RUN);
		account("zeros_written", all - run);
		account_end(p);

		/* madvise() or munmap() of a part, the program's or ours. */
		p = account_begin(HUGE_PAGES);
		drop_of_each(p, 0, RUN);
		account("discard_run", all - run);
		drop_of_each(p, 0, HUGE - PAGE);
		account("discard_but_one", PAGE >> 10);
		out_of_each(p, HUGE - PAGE, PAGE);
		account("discard_split", PAGE >> 10);
		account_end(p);

		account_peak("peak_nohuge", MADV_NOHUGEPAGE);
		account_peak("peak_advised", MADV_HUGEPAGE);

		p = account_begin(HUGE_PAGES);
		tally("pages", (double)movable(p), "account.movable");
		account_end(p);
		p = account_begin(HUGE_PAGES / 2); /* of zeros the other half */
		tally("pages", (double)protected_after_split(p), "account.protected");
		account_end(p);
		p = region_make(HUGE, MADV_NOHUGEPAGE);
		for (size_t off = 0; off < HUGE; off += RUN)
			copy_zeros(p + off, RUN);
		tally("pages", (double)movable(p), "account.movable_small");
		munmap(p, HUGE);
		drop(rig.stage, HUGE);
	}
	tallies_report();
}
