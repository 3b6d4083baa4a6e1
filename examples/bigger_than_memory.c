/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * bigger_than_memory.c: work in a region larger than the memory we may use, and check it all.
 *
 * Four phases over one region: fill; verify in order; verify and update at random; verify in
 * order again.  Every byte of a page is a function of (seed, page, version), and the versions
 * are kept in plain memory, so that there is an exact answer to "is this page right?" at any
 * moment.  Meanwhile the main thread asks the kernel, not the pager, how much is resident.
 *
 * With --daemon the pager is uffd-pagerd, and the budget is its own, for all its clients together: what is resident of our
 * region has to be within it, and the rest of what the summary says of a pager is the daemon's to say (uffd-pager status).
 *
 * What an embedder can learn here: how to create a runtime and report why that failed
 * (main), what a log callback may do (say), how to survive SIGBUS on a page that was lost
 * (on_crash), and how to measure the memory of a region from outside (rss_now, smaps_now).
 *
 * How resident memory is counted.  /proc/self/smaps says which mapping is how large, but it is
 * read mapping by mapping while the pager moves pages between two of them: a busy sample counts
 * pages twice, or not at all.  So during a phase we sample RssAnon + RssShmem of
 * /proc/self/status, which moving a page does not change, and between the phases, when little
 * moves, smaps has to agree.  Both are differences to what they were right before the runtime was
 * created, and everything of our own is allocated and touched before that: what came on top is
 * the region, the pager's buffers, its metadata and its threads' stacks.  Both must be under the
 * limit, or the demo fails.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <argp.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include <uffd_pager.h>

#define WORDS (UP_PAGE_SIZE / sizeof(uint64_t))
#define THREADS_MAX 64
#define REPORTS_MAX 8	    /* mismatches that are described, of all that are counted */
#define SAMPLE_NS 10000000  /* between two looks at RssAnon */
#define REDRAW_NS 100000000 /* between two progress bars */
#define STALL_TICKS 12000   /* samples without progress before we call it a hang: 2 minutes */
#define MIB 1048576.0
#define NO_FLIP UINT64_MAX

/*
 * AddressSanitizer keeps an eighth of everything again as its shadow, and more for each thread, in
 * this process: in such a build the kernel's count may be that much above the budget.
 */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define SANITIZED
#endif
#ifdef SANITIZED
#define ALLOWANCE(size) ((size) / 8 + (4 << 20))
#else
#define ALLOWANCE(size) 0
#endif

enum { EXIT_OK = 0, EXIT_WRONG = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

struct mismatch {
	uint64_t page;
	uint32_t version; /* that it should have */
	uint32_t offset;  /* of the first wrong word, bytes */
	uint64_t expected, found;
	uint64_t first_word; /* tells whose page this is, if it is somebody's */
	bool zeros;	     /* the whole page */
};

/* One thread; on a cache line of its own, since the counters are hot. */
struct worker {
	pthread_t thread;
	unsigned id;
	uint64_t random;	    /* state of its random numbers */
	atomic_uint_fast64_t steps; /* pages done in this phase */
	atomic_uint_fast64_t verified, updated, mismatches;
} __attribute__((aligned(64)));

struct phase {
	const char *name;
	void (*run)(struct worker *w);
	uint64_t steps; /* by all threads together */
	uint64_t done;
	double seconds;
};

/* Bytes that the kernel says are resident. */
struct smaps {
	uint64_t total;	 /* anonymous, shared and special memory; no mapped files */
	uint64_t region; /* of that, in our region */
};

/* All there is; one demo a process.  Keys: (c) constant while threads run, (l) lock. */
static struct {
	/* options (c) */
	size_t size, memory;
	unsigned nthreads, rounds, service_threads;
	enum up_delivery delivery;
	enum up_compression compression;
	const char *swap_path;
	const char *daemon;	/* its socket; NULL: the pager is in this process */
	const char *pagers_own; /* an option that says how the pager is to be */
	uint64_t mask, seed, flip;
	bool trace;

	struct up_runtime *rt;
	uint64_t *region;  /* (c) */
	uint64_t npages;   /* (c) */
	uint16_t *version; /* [npages]; an element belongs to the thread that owns the page */
	struct worker worker[THREADS_MAX];

	pthread_mutex_t lock;
	pthread_cond_t start, finished;
	struct phase *phase;		     /* (l) */
	unsigned generation;		     /* (l) counts phases; a new value starts the threads */
	unsigned running;		     /* (l) threads still in the phase */
	bool quit;			     /* (l) */
	struct mismatch report[REPORTS_MAX]; /* (l) */
	unsigned nreports;		     /* (l) */

	atomic_int stop; /* a signal asked us to stop: its number */

	/* main thread only */
	int status_fd, smaps_fd;
	uint64_t rss_base, rss_peak, rss_samples;
	struct smaps smaps_base, smaps_peak;
	int columns; /* of the terminal; 0: no progress bar */
	bool colour;
} demo = {
	.size = (size_t)1 << 30,
	.memory = (size_t)256 << 20,
	.nthreads = 2,
	.rounds = 1,
	.seed = 1,
	.flip = NO_FLIP,
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.start = PTHREAD_COND_INITIALIZER,
};

/* A bar is on the screen, and whoever writes next must clear it. */
static atomic_bool bar_drawn;

/* What the crash handler leaves for the main thread. */
static struct {
	atomic_int state; /* 0, 1: being written, 2: written */
	int signal, worker;
	uintptr_t addr;
} crash;

static _Thread_local int this_thread = -1; /* a worker's id; -1: a thread of the pager */
#define MAIN_THREAD (-2)

/* ---- the content of a page ---- */

#define MIX UINT64_C(0xd6e8feb86659fd93)
#define MIX_INVERSE UINT64_C(0xcfee444d8b59a89b)
_Static_assert(MIX *MIX_INVERSE == 1, "unmix() must undo mix()");

/*
 * A bijection, so that different pages and versions have different keys, and the words of a
 * page are distinct.  It can be undone, so that a misplaced page tells where it belongs.
 */
static inline uint64_t
mix(uint64_t x)
{
	x ^= x >> 32;
	x *= MIX;
	return x ^ x >> 32;
}

static inline uint64_t
unmix(uint64_t x)
{
	x ^= x >> 32;
	x *= MIX_INVERSE;
	return x ^ x >> 32;
}

static inline uint64_t
page_key(uint64_t page, uint16_t version)
{
	return mix((page << 16 | version) ^ mix(demo.seed));
}

static inline uint64_t
page_word(uint64_t key, size_t i)
{
	return mix(key + i * UINT64_C(0x9e3779b97f4a7c15));
}

static void
page_fill(uint64_t page)
{
	const uint64_t key = page_key(page, demo.version[page]);
	uint64_t *const word = demo.region + page * WORDS;

	for (size_t i = 0; i < WORDS; i++)
		word[i] = page_word(key, i);
}

static void
page_report(uint64_t page, const uint64_t *word, uint64_t key)
{
	struct mismatch m = {
		.page = page,
		.version = demo.version[page],
		.first_word = word[0],
		.zeros = true,
	};
	size_t i = 0;

	while (i < WORDS - 1 && word[i] == page_word(key, i))
		i++;
	m.offset = (uint32_t)(i * sizeof(*word));
	m.expected = page_word(key, i);
	m.found = word[i];
	for (i = 0; i < WORDS; i++)
		m.zeros &= word[i] == 0;

	pthread_mutex_lock(&demo.lock);
	if (demo.nreports < REPORTS_MAX)
		demo.report[demo.nreports++] = m;
	pthread_mutex_unlock(&demo.lock);
}

/* Every byte is compared; the loop has no early exit, so that it can be vectorised. */
static void
page_verify(struct worker *w, uint64_t page)
{
	const uint64_t key = page_key(page, demo.version[page]);
	const uint64_t *const word = demo.region + page * WORDS;
	uint64_t wrong = 0;

	for (size_t i = 0; i < WORDS; i++)
		wrong |= word[i] ^ page_word(key, i);
	if (wrong != 0) {
		atomic_fetch_add_explicit(&w->mismatches, 1, memory_order_relaxed);
		page_report(page, word, key);
	}
	atomic_fetch_add_explicit(&w->verified, 1, memory_order_relaxed);
}

/* ---- the phases, as a thread runs them ---- */

static inline bool
step_done(struct worker *w)
{
	atomic_fetch_add_explicit(&w->steps, 1, memory_order_relaxed);
	return atomic_load_explicit(&demo.stop, memory_order_relaxed) == 0;
}

/* In order: each thread has its own stretch of the region. */
static inline uint64_t
stretch(unsigned id)
{
	return demo.npages * id / demo.nthreads;
}

static void
run_fill(struct worker *w)
{
	for (uint64_t p = stretch(w->id); p < stretch(w->id + 1); p++) {
		page_fill(p);
		if (!step_done(w))
			return;
	}
}

static void
run_verify(struct worker *w)
{
	for (uint64_t p = stretch(w->id); p < stretch(w->id + 1); p++) {
		page_verify(w, p);
		if (!step_done(w))
			return;
	}
}

/*
 * At random: thread t owns the pages p with p % nthreads == t.  So all threads roam the whole
 * region, neighbours in one cluster belong to different threads, and yet only one thread
 * knows and changes the version of a page.  Every other page is updated, so that there are
 * clean pages, too.
 */
static void
run_random(struct worker *w)
{
	const uint64_t owned = (demo.npages - w->id + demo.nthreads - 1) / demo.nthreads;

	for (uint64_t n = owned * demo.rounds; n > 0; n--) {
		w->random += UINT64_C(0x9e3779b97f4a7c15);
		const uint64_t r = mix(mix(w->random));
		const uint64_t p = (r >> 1) % owned * demo.nthreads + w->id;

		page_verify(w, p);
		if ((r & 1) != 0) {
			demo.version[p]++;
			page_fill(p);
			atomic_fetch_add_explicit(&w->updated, 1, memory_order_relaxed);
		}
		if (!step_done(w))
			return;
	}
}

/* Bring our stack in before the baseline is taken, so that it is not counted as the pager's. */
static __attribute__((noinline)) void
touch_stack(void)
{
	volatile char room[24 << 10];

	for (size_t i = 0; i < sizeof(room); i += UP_PAGE_SIZE)
		room[i] = 0;
}

static void *
worker_main(void *arg)
{
	struct worker *const w = arg;
	unsigned seen = 0;

	this_thread = (int)w->id;
	touch_stack();
	pthread_mutex_lock(&demo.lock);
	for (;;) {
		if (--demo.running == 0)
			pthread_cond_signal(&demo.finished);
		while (demo.generation == seen && !demo.quit)
			pthread_cond_wait(&demo.start, &demo.lock);
		if (demo.quit)
			break;
		seen = demo.generation;
		void (*const run)(struct worker *) = demo.phase->run;
		pthread_mutex_unlock(&demo.lock);
		run(w);
		pthread_mutex_lock(&demo.lock);
	}
	pthread_mutex_unlock(&demo.lock);
	return NULL;
}

/* ---- what the kernel says is resident ---- */

static _Noreturn void __attribute__((format(printf, 1, 2))) die(const char *fmt, ...)
{
	va_list ap;

	fflush(stdout);
	fputs("bigger_than_memory: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(EXIT_WRONG);
}

/* Bytes from a line such as "RssAnon:      1234 kB", if `line` is that; else false. */
static bool
kb_field(const char *line, const char *name, uint64_t *bytes)
{
	const size_t len = strlen(name);

	if (strncmp(line, name, len) != 0 || line[len] != ':')
		return false;
	*bytes = strtoull(line + len + 1, NULL, 10) << 10;
	return true;
}

/* RssAnon + RssShmem.  No stdio: sampling must not allocate what it measures. */
static uint64_t
rss_now(void)
{
	static char buf[8192];
	const ssize_t n = pread(demo.status_fd, buf, sizeof(buf) - 1, 0);
	uint64_t sum = 0, v;
	bool found = false;

	if (n <= 0)
		die("reading /proc/self/status: %s", strerror(errno));
	buf[n] = '\0';
	for (const char *line = buf; line != NULL; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (kb_field(line, "RssAnon", &v) || kb_field(line, "RssShmem", &v)) {
			sum += v;
			found = true;
		}
	}
	if (!found)
		die("/proc/self/status has no RssAnon line");
	return sum;
}

/*
 * Is this smaps header line a mapping of a file on disk?  Of those (program text) only the
 * private copies count: pages of a file are not what the pager pages.
 */
static bool
smaps_is_file(const char *line)
{
	const char *const path = strchr(line, '/');

	return path != NULL && strncmp(path, "/memfd:", 7) != 0 && strncmp(path, "/dev/", 5) != 0 &&
	       strncmp(path, "/SYSV", 5) != 0;
}

/* Read smaps once: whole lines out of a buffer that is refilled by read(). */
static void
smaps_read(struct smaps *s)
{
	static char buf[64 << 10];
	const uintptr_t lo = (uintptr_t)demo.region, hi = lo + demo.size;
	size_t have = 0;
	bool file = false, region = false;

	*s = (struct smaps){ 0 };
	if (lseek(demo.smaps_fd, 0, SEEK_SET) < 0)
		die("rewinding /proc/self/smaps: %s", strerror(errno));
	for (;;) {
		const ssize_t n = read(demo.smaps_fd, buf + have, sizeof(buf) - have);
		char *line = buf, *end;

		if (n < 0)
			die("reading /proc/self/smaps: %s", strerror(errno));
		if (n == 0)
			return;
		have += (size_t)n;
		while ((end = memchr(line, '\n', (size_t)(buf + have - line))) != NULL) {
			uint64_t v;

			*end = '\0';
			/* "start-end perms offset dev inode path", or "Name:  value kB" */
			if (line[0] < 'A' || line[0] > 'Z') {
				const uintptr_t start = strtoul(line, NULL, 16);

				file = smaps_is_file(line);
				region = demo.region != NULL && start >= lo && start < hi;
			} else if (kb_field(line, file ? "Anonymous" : "Rss", &v)) {
				s->total += v;
				s->region += region ? v : 0;
			}
			line = end + 1;
		}
		have = (size_t)(buf + have - line);
		memmove(buf, line, have);
	}
}

/*
 * Between phases.  The pager may still be writing and moving a little, so a reading can count
 * a page twice; the smallest of three can not be wrong for that reason for long.
 */
static void
smaps_now(struct smaps *s)
{
	struct smaps again;

	smaps_read(s);
	for (int i = 0; i < 2; i++) {
		smaps_read(&again);
		if (again.total < s->total)
			*s = again;
	}
}

static uint64_t
above(uint64_t now, uint64_t base)
{
	return now > base ? now - base : 0;
}

static uint64_t
rss_sample(void)
{
	const uint64_t rss = above(rss_now(), demo.rss_base);

	demo.rss_samples++;
	if (rss > demo.rss_peak)
		demo.rss_peak = rss;
	return rss;
}

static void
smaps_sample(void)
{
	struct smaps s;

	smaps_now(&s);
	s.total = above(s.total, demo.smaps_base.total);
	if (s.total > demo.smaps_peak.total)
		demo.smaps_peak = s;
}

/* ---- what people see ---- */

static uint64_t
now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/*
 * The pager's log.  It is called on the pager's own threads too, so it touches no paged memory,
 * takes no lock, allocates nothing, and writes the line in one go.
 */
static void
say(void *ctx, enum up_log_level level, const char *line)
{
	static const char *const name[] = { "error: ", "warning: ", "" };
	char buf[512];
	int n;

	(void)ctx;
	n = snprintf(buf, sizeof(buf), "%spager: %s%s\n",
		     atomic_exchange(&bar_drawn, false) ? "\n" : "",
		     level <= UP_LOG_INFO ? name[level] : "", line);
	if (n >= (int)sizeof(buf)) {
		n = sizeof(buf) - 1;
		buf[n - 1] = '\n';
	}
	if (write(STDERR_FILENO, buf, (size_t)n) < 0)
		return; /* nowhere left to say it */
}

static void
terminal_detect(void)
{
	const char *const term = getenv("TERM"), *const no_colour = getenv("NO_COLOR");
	struct winsize ws;

	if (!isatty(STDOUT_FILENO) || term == NULL || *term == '\0' || strcmp(term, "dumb") == 0)
		return;
	demo.columns = ioctl(STDOUT_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_col > 0 ? ws.ws_col : 80;
	if (demo.columns > 80)
		demo.columns = 80;
	if (demo.columns < 60) /* no room for a bar: plain lines */
		demo.columns = 0;
	demo.colour = no_colour == NULL || *no_colour == '\0';
}

static double
rate_mib(uint64_t pages, double seconds)
{
	return seconds > 0 ? (double)pages * UP_PAGE_SIZE / MIB / seconds : 0;
}

/* Plain text, a carriage return, and blanks to the end: it works on any terminal. */
static void
bar_draw(const struct phase *ph, uint64_t done, double seconds, uint64_t rss)
{
	static const char full[] = "########################################";
	char line[256], eta[32] = "--:--";
	const double part = (double)done / (double)ph->steps;
	const int width = demo.columns - 59, filled = (int)(part * width);

	if (done > 0 && seconds > 0.5) {
		const unsigned long left = (unsigned long)(seconds / part * (1 - part) + 0.5);

		snprintf(eta, sizeof(eta), "%02lu:%02lu", left / 60, left % 60);
	}
	snprintf(line, sizeof(line), "%-14s[%.*s%*s]%4.0f%% %7.1f MiB/s ETA %s  %.0f MiB", ph->name,
		 filled, full, width - filled, "", part * 100, rate_mib(done, seconds), eta,
		 (double)rss / MIB);
	atomic_store(&bar_drawn, true);
	printf("\r%-*.*s", demo.columns - 1, demo.columns - 1, line);
	fflush(stdout);
}

static void
bar_clear(void)
{
	if (demo.columns > 0 && atomic_exchange(&bar_drawn, false)) {
		printf("\r%*s\r", demo.columns - 1, "");
		fflush(stdout);
	}
}

static const char *
coloured(bool good, const char *text)
{
	static char buf[64];

	if (!demo.colour)
		return text;
	snprintf(buf, sizeof(buf), "\033[1;%dm%s\033[0m", good ? 32 : 31, text);
	return buf;
}

/* A duration in the unit that suits it. */
static const char *
duration(char *buf, size_t len, uint64_t ns)
{
	if (ns < 1000)
		snprintf(buf, len, "%" PRIu64 " ns", ns);
	else if (ns < 1000000)
		snprintf(buf, len, "%.1f us", (double)ns / 1e3);
	else if (ns < 1000000000)
		snprintf(buf, len, "%.1f ms", (double)ns / 1e6);
	else
		snprintf(buf, len, "%.1f s", (double)ns / 1e9);
	return buf;
}

static void
print_mismatch(const struct mismatch *m)
{
	/* If the page is a whole other page, or an older self, its first word says which. */
	const uint64_t id = unmix(unmix(m->first_word)) ^ mix(demo.seed);
	const uint64_t page = id >> 16, version = id & 0xffff;

	printf("  page %" PRIu64 " version %" PRIu32 " at +%" PRIu32 ": %016" PRIx64
	       ", not %016" PRIx64,
	       m->page, m->version, m->offset, m->found, m->expected);
	if (m->zeros)
		printf("; the page is all zeros");
	else if (page == m->page && version == m->version)
		printf("; its first word is right");
	else if (page < demo.npages)
		printf("; it begins as page %" PRIu64 " version %" PRIu64, page, version);
	putchar('\n');
}

/* A daemon tells how many faults were ours; how long they took it knows of all its clients together. */
static void
print_counts(const struct up_stats *st)
{
	uint64_t n = 0;

	for (int k = 0; k < UP_FAULT_KINDS; k++)
		n += st->faults[k];
	printf("\nfaults of this program, served by the daemon: %" PRIu64 " (%" PRIu64
	       " major, %" PRIu64 " zero-fill, %" PRIu64 " soft)\n",
	       n, st->faults[UP_FAULT_MAJOR], st->faults[UP_FAULT_ZERO], st->faults[UP_FAULT_SOFT]);
}

static void
print_faults(const struct up_stats *st)
{
	static const char *const name[UP_FAULT_KINDS] = {
		[UP_FAULT_MINOR] = "minor",	 [UP_FAULT_ZERO] = "zero-fill",
		[UP_FAULT_SOFT] = "soft",	 [UP_FAULT_MAJOR] = "major",
		[UP_FAULT_WP] = "write-protect",
	};
	char p50[32], p99[32], max[32];

	printf("\n%-15s %12s %11s %11s %11s\n", "faults", "count", "p50", "p99", "max");
	for (int k = 0; k < UP_FAULT_KINDS; k++) {
		const struct up_latency *const l = &st->latency[k];

		if (st->faults[k] == 0)
			printf("  %-13s %12d %11s %11s %11s\n", name[k], 0, "-", "-", "-");
		else
			printf("  %-13s %12" PRIu64 " %11s %11s %11s\n", name[k], st->faults[k],
			       duration(p50, sizeof(p50), l->p50),
			       duration(p99, sizeof(p99), l->p99),
			       duration(max, sizeof(max), l->max));
	}
	printf("  waits %" PRIu64 ", retries %" PRIu64 ", SIGBUS %" PRIu64 "\n", st->fault_waits,
	       st->fault_retries, st->fault_sigbus);
	printf("  pages brought along: %" PRIu64 " read ahead, %" PRIu64 " zero-filled ahead\n",
	       st->readahead_pages, st->zero_ahead_pages);
}

static void
print_swap(const struct up_stats *st)
{
	printf("\n%-15s %10s %12s %9s\n", "swap", "MiB", "requests", "errors");
	printf("  %-13s %10.1f %12" PRIu64 " %9" PRIu64 "\n", "read",
	       (double)st->swap_read_bytes / MIB, st->swap_reads,
	       st->swap_read_errors + st->checksum_errors);
	printf("  %-13s %10.1f %12" PRIu64 " %9" PRIu64 "\n", "written",
	       (double)st->swap_write_bytes / MIB, st->swap_writes, st->swap_write_errors);
	printf("  pages out %" PRIu64 ", of those not written: %" PRIu64 " unchanged, %" PRIu64
	       " all zeros\n",
	       st->pages_out, st->clean_skips, st->zero_skips);
}

/* The table, and the verdict: was every page right, and was the limit held? */
static int
summary(void)
{
	uint64_t verified = 0, updated = 0, mismatches = 0;
	struct up_stats st;
	const int r = up_stats_get(demo.rt, &st, sizeof(st));

	if (r < 0)
		die("up_stats_get: %s", strerror(-r));
	for (unsigned i = 0; i < demo.nthreads; i++) {
		verified += demo.worker[i].verified;
		updated += demo.worker[i].updated;
		mismatches += demo.worker[i].mismatches;
	}

	const uint64_t most = demo.memory + ALLOWANCE(demo.size);
	const bool held = demo.rss_peak <= most && demo.smaps_peak.total <= most;

	if (demo.daemon != NULL) {
		print_counts(&st);
	} else {
		print_faults(&st);
		print_swap(&st);
	}

	printf("\nresident, peak\n");
	printf("  by the kernel %10.1f MiB  RssAnon + RssShmem, %" PRIu64 " samples\n",
	       (double)demo.rss_peak / MIB, demo.rss_samples);
	printf("  by smaps      %10.1f MiB  between phases: %.1f region, %.1f pager\n",
	       (double)demo.smaps_peak.total / MIB, (double)demo.smaps_peak.region / MIB,
	       (double)above(demo.smaps_peak.total, demo.smaps_peak.region) / MIB);
	if (demo.daemon != NULL)
		printf("  by the daemon %10.1f MiB  now, of %.1f mapped\n",
		       (double)st.resident / MIB, (double)st.mapped / MIB);
	else
		printf("  by the pager  %10.1f MiB  its own count; metadata is %.1f now\n",
		       (double)st.used_max / MIB, (double)st.metadata / MIB);
	printf("  budget        %10.1f MiB  %s%s\n", (double)demo.memory / MIB,
	       held ? coloured(true, "held") : coloured(false, "EXCEEDED"),
	       demo.daemon != NULL ? ", by this client alone; it is the daemon's, for all" : "");

	printf("\npages verified  %10" PRIu64 "  (and %" PRIu64 " updated)\n", verified, updated);
	printf("mismatches      %10" PRIu64 "  %s\n", mismatches,
	       mismatches == 0 ? coloured(true, "none") : coloured(false, "WRONG DATA"));
	for (unsigned i = 0; i < demo.nreports; i++)
		print_mismatch(&demo.report[i]);
	if (mismatches > demo.nreports)
		printf("  and %" PRIu64 " more\n", mismatches - demo.nreports);
	return mismatches == 0 && held ? EXIT_OK : EXIT_WRONG;
}

/* ---- when things go wrong ---- */

/*
 * SIGBUS: a page could not be brought back.  SIGSEGV: not a page of ours, or a bug.  The thread
 * can't go on, and nothing of the pager may be called from here: leave a note for the main
 * thread and wait for the end.
 */
static void
on_crash(int sig, siginfo_t *si, void *uc)
{
	static const char msg[] = "bigger_than_memory: the main thread crashed\n";
	int none = 0;

	(void)uc;
	if (this_thread == MAIN_THREAD) {
		if (write(STDERR_FILENO, msg, sizeof(msg) - 1) < 0)
			_exit(EXIT_WRONG);
		_exit(EXIT_WRONG);
	}
	if (atomic_compare_exchange_strong(&crash.state, &none, 1)) {
		crash.signal = sig;
		crash.addr = (uintptr_t)si->si_addr;
		crash.worker = this_thread;
		atomic_store(&crash.state, 2);
	}
	for (;;)
		pause();
}

/*
 * Ctrl-C: stop after this page.  Again, but not at once (timeout(1) sends its signal twice): end
 * here and now.
 */
static void
on_stop(int sig)
{
	static atomic_uint_fast64_t first;
	uint64_t none = 0;

	if (atomic_compare_exchange_strong(&first, &none, now_ns()))
		atomic_store(&demo.stop, sig);
	else if (now_ns() - none > 500000000)
		_exit(EXIT_INTERRUPTED);
}

/* Everything the pager knows, then the end: threads are stuck, so nothing can be destroyed. */
static _Noreturn void
last_words(void)
{
	fflush(stdout);
	alarm(20); /* in case the pager is stuck with a lock held: SIGALRM ends us */
	fputs("\n", stderr);
	if (demo.daemon == NULL)
		up_stats_print(demo.rt, stderr);
	else
		fputs("what the daemon has to say is in its log, and uffd-pager status\n", stderr);
	if (demo.trace)
		up_trace_print(demo.rt, stderr);
	_exit(EXIT_WRONG);
}

static void
crash_check(void)
{
	const uintptr_t base = (uintptr_t)demo.region;

	if (atomic_load(&crash.state) != 2)
		return;
	bar_clear();
	fflush(stdout);
	fprintf(stderr, "bigger_than_memory: %s at address %#" PRIxPTR " in ",
		crash.signal == SIGBUS ? "SIGBUS" : "SIGSEGV", crash.addr);
	if (crash.worker >= 0)
		fprintf(stderr, "thread %d, ", crash.worker);
	else
		fputs("a thread of the pager, ", stderr);
	if (crash.addr >= base && crash.addr - base < demo.size)
		fprintf(stderr, "page %" PRIuPTR " of the region\n",
			(crash.addr - base) / UP_PAGE_SIZE);
	else
		fputs("outside the region\n", stderr);
	last_words();
}

static void
signals_init(void)
{
	struct sigaction crashed = { .sa_sigaction = on_crash, .sa_flags = SA_SIGINFO };
	struct sigaction stopped = { .sa_handler = on_stop, .sa_flags = SA_RESTART };

	this_thread = MAIN_THREAD;
	sigaction(SIGBUS, &crashed, NULL);
	sigaction(SIGSEGV, &crashed, NULL);
	sigaction(SIGINT, &stopped, NULL);
	sigaction(SIGTERM, &stopped, NULL);
}

/* ---- running the phases, in the main thread ---- */

static uint64_t
steps_done(void)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < demo.nthreads; i++)
		n += atomic_load_explicit(&demo.worker[i].steps, memory_order_relaxed);
	return n;
}

/* Wait one sampling interval, or until the phase is over; true if it is. */
static bool
phase_wait(void)
{
	const uint64_t until = now_ns() + SAMPLE_NS;
	const struct timespec ts = {
		.tv_sec = (time_t)(until / 1000000000u),
		.tv_nsec = (long)(until % 1000000000u),
	};
	int r = 0;
	bool over;

	pthread_mutex_lock(&demo.lock);
	while (demo.running > 0 && r == 0)
		r = pthread_cond_timedwait(&demo.finished, &demo.lock, &ts);
	over = demo.running == 0;
	pthread_mutex_unlock(&demo.lock);
	return over;
}

/* Start all threads on a phase, watch over them, print its line. */
static void
phase_run(struct phase *ph)
{
	const uint64_t begin = now_ns();
	uint64_t drawn = 0, last = 0;
	unsigned idle = 0;

	for (unsigned i = 0; i < demo.nthreads; i++)
		demo.worker[i].steps = 0;
	pthread_mutex_lock(&demo.lock);
	demo.phase = ph;
	demo.running = demo.nthreads;
	demo.generation++;
	pthread_cond_broadcast(&demo.start);
	pthread_mutex_unlock(&demo.lock);

	while (!phase_wait()) {
		const uint64_t rss = rss_sample(), now = now_ns(), done = steps_done();

		crash_check();
		if (demo.columns > 0 && now - drawn >= REDRAW_NS) {
			bar_draw(ph, done, (double)(now - begin) / 1e9, rss);
			drawn = now;
		}
		/* In samples, not seconds: a program stopped by Ctrl-Z is not a hang. */
		idle = done == last ? idle + 1 : 0;
		last = done;
		if (idle == STALL_TICKS) {
			bar_clear();
			fprintf(stderr, "bigger_than_memory: no progress in '%s'\n", ph->name);
			last_words();
		}
	}
	ph->seconds = (double)(now_ns() - begin) / 1e9;
	ph->done = steps_done();
	rss_sample();
	smaps_sample();
	bar_clear();
	printf("%-14s %10" PRIu64 " pages %8.2f s %9.1f MiB/s\n", ph->name, ph->done, ph->seconds,
	       rate_mib(ph->done, ph->seconds));
}

/* One bit of one page changes behind the oracle's back: the demo must notice. */
static void
flip_a_bit(void)
{
	demo.region[demo.flip * WORDS + WORDS / 2] ^= UINT64_C(1) << 17;
}

static int
phases_run(void)
{
	struct phase phase[] = {
		{ .name = "fill", .run = run_fill, .steps = demo.npages },
		{ .name = "verify", .run = run_verify, .steps = demo.npages },
		{ .name = "random", .run = run_random, .steps = demo.npages * demo.rounds },
		{ .name = "verify again", .run = run_verify, .steps = demo.npages },
	};
	const size_t n = sizeof(phase) / sizeof(phase[0]);
	int status;

	for (size_t i = 0; i < n && demo.stop == 0; i++) {
		if (phase[i].steps == 0)
			continue;
		phase_run(&phase[i]);
		if (i == 0 && demo.flip != NO_FLIP && demo.stop == 0)
			flip_a_bit();
	}
	status = summary();
	if (demo.stop != 0) {
		printf("\nstopped by %s before the end: what was done is above\n",
		       demo.stop == SIGINT ? "Ctrl-C" : "a signal");
		if (status == EXIT_OK)
			return EXIT_INTERRUPTED;
	}
	printf("\n%s\n", status == EXIT_OK ? coloured(true, "PASS") : coloured(false, "FAIL"));
	return status;
}

/* ---- options ---- */

const char *argp_program_version = "bigger_than_memory (uffd-pager)";

static const struct {
	const char *name;
	uint64_t bit;
} masks[] = {
	{ "move", UP_MASK_MOVE },
	{ "poison", UP_MASK_POISON },
	{ "odirect", UP_MASK_ODIRECT },
	{ "dev-uffd", UP_MASK_DEV_UFFD },
	{ "kernel-faults", UP_MASK_KERNEL_FAULTS },
	{ "ring-flags", UP_MASK_RING_FLAGS },
	{ "shared", UP_MASK_SHARED },
	{ "vector", UP_MASK_VECTOR },
	{ "all", UP_MASK_ALL },
	{ "none", 0 },
};

enum {
	OPT_SERVICE_THREADS = 256,
	OPT_DELIVERY,
	OPT_COMPRESS,
	OPT_FLIP,
	OPT_TRACE,
	OPT_SEED,
	OPT_DAEMON
};

static const struct argp_option options[] = {
	{ "size", 's', "BYTES", 0, "The region (default 1G)", 1 },
	{ "memory", 'm', "BYTES", 0, "The memory it may use (default 256M)", 1 },
	{ "threads", 't', "N", 0, "Threads that work in it (default 2)", 1 },
	{ "rounds", 'r', "N", 0, "Random steps, times the pages of the region (default 1)", 1 },
	{ "passes", 0, NULL, OPTION_ALIAS, NULL, 1 },
	{ "seed", OPT_SEED, "N", 0, "Of contents and of the random order (default 1)", 1 },
	{ "swap", 'S', "PATH", 0,
	  "Swap file or block device; overwritten (default: a temporary file)", 2 },
	{ "service-threads", OPT_SERVICE_THREADS, "N", 0,
	  "Threads that serve faults (default: as the library thinks)", 2 },
	{ "delivery", OPT_DELIVERY, "WHO", 0,
	  "Who serves a fault: a 'service' thread (default), or 'inline' the thread that touched",
	  2 },
	{ "compress", OPT_COMPRESS, "HOW", 0,
	  "Keep cold pages compressed before they go to swap: 'lz4', 'zstd', or 'none' (default)",
	  2 },
	{ "mask", 'M', "FEATURE,...", 0,
	  "Run as on a kernel without these: move, poison, odirect, "
	  "dev-uffd, kernel-faults, ring-flags, shared, or all of them: all",
	  2 },
	{ "daemon", OPT_DAEMON, "SOCKET", 0,
	  "Let uffd-pagerd page, which listens there: budget, swap, threads and compression are its",
	  2 },
	{ "trace", OPT_TRACE, NULL, 0, "Print the pager's most recent events at the end", 3 },
	{ "flip", OPT_FLIP, "PAGE", 0,
	  "Flip a bit of this page after the fill: a check of the check, since the demo "
	  "must then fail",
	  3 },
	{ 0 },
};

/* A size such as 4096, 512k, 1G or 1GiB.  A message and exit if it is not one. */
static size_t
parse_size(const char *name, const char *text, struct argp_state *state)
{
	static const char units[] = "KMGT";
	char *end;
	unsigned long long n;
	unsigned shift = 0;

	errno = 0;
	n = strtoull(text, &end, 10);
	if (text[0] < '0' || text[0] > '9' || errno != 0)
		argp_error(state, "--%s %s: not a size; say for example 512M or 4G", name, text);
	if (*end != '\0') {
		const char *const unit = strchr(units, *end & ~0x20);

		if (unit == NULL || (strcmp(end + 1, "") != 0 && strcmp(end + 1, "B") != 0 &&
				     strcmp(end + 1, "iB") != 0))
			argp_error(state, "--%s %s: '%s' is not a unit; use K, M, G or T", name,
				   text, end);
		else
			shift = 10 * (unsigned)(unit - units + 1);
	}
	if (n > SIZE_MAX >> shift)
		argp_error(state, "--%s %s: too large", name, text);
	return (size_t)n << shift;
}

static uint64_t
parse_number(const char *name, const char *text, uint64_t min, uint64_t max,
	     struct argp_state *state)
{
	char *end;
	unsigned long long n;

	errno = 0;
	n = strtoull(text, &end, 0);
	if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || n < min || n > max) {
		if (max == UINT64_MAX)
			argp_error(state, "--%s %s: not a number", name, text);
		else
			argp_error(state, "--%s %s: not a number from %" PRIu64 " to %" PRIu64,
				   name, text, min, max);
	}
	return n;
}

static uint64_t
parse_mask(const char *text, struct argp_state *state)
{
	uint64_t mask = 0;

	for (const char *p = text; *p != '\0';) {
		const size_t len = strcspn(p, ",");
		size_t i = 0;

		while (i < sizeof(masks) / sizeof(masks[0]) &&
		       (strlen(masks[i].name) != len || strncmp(masks[i].name, p, len) != 0))
			i++;
		if (i == sizeof(masks) / sizeof(masks[0]))
			argp_error(
				state,
				"--mask: no feature is called '%.*s'; there are move, poison, "
				"odirect, dev-uffd, kernel-faults, ring-flags, shared, all, none",
				(int)len, p);
		else
			mask |= masks[i].bit;
		p += len;
		p += *p == ',';
	}
	return mask;
}

static void
check_options(struct argp_state *state)
{
	if (demo.size == 0 || demo.size % UP_PAGE_SIZE != 0)
		argp_error(state, "--size: not a multiple of the page size, %u", UP_PAGE_SIZE);
	demo.npages = demo.size / UP_PAGE_SIZE;
	if (demo.memory < UP_MEMORY_LIMIT_MIN)
		argp_error(state, "--memory: the least is %zu MiB", UP_MEMORY_LIMIT_MIN >> 20);
	if (demo.npages < demo.nthreads)
		argp_error(state, "--size: fewer pages (%" PRIu64 ") than threads", demo.npages);
	if (demo.npages >> 40 != 0)
		argp_error(state, "--size: too large");
	if (demo.daemon != NULL && demo.pagers_own != NULL)
		argp_error(state, "--%s: not with --daemon, whose matter that is", demo.pagers_own);
	if (demo.flip != NO_FLIP && demo.flip >= demo.npages)
		argp_error(state, "--flip: the last page is %" PRIu64, demo.npages - 1);
}

static error_t
parse_option(int key, char *arg, struct argp_state *state)
{
	switch (key) {
	case 's':
		demo.size = parse_size("size", arg, state);
		break;
	case 'm':
		demo.pagers_own = "memory";
		demo.memory = parse_size("memory", arg, state);
		break;
	case 't':
		demo.nthreads = (unsigned)parse_number("threads", arg, 1, THREADS_MAX, state);
		break;
	case 'r':
		demo.rounds = (unsigned)parse_number("rounds", arg, 0, 1000, state);
		break;
	case OPT_SEED:
		demo.seed = parse_number("seed", arg, 0, UINT64_MAX, state);
		break;
	case 'S':
		demo.pagers_own = "swap";
		demo.swap_path = arg;
		break;
	case OPT_SERVICE_THREADS:
		demo.pagers_own = "service-threads";
		demo.service_threads = (unsigned)parse_number("service-threads", arg, 1,
							      UP_SERVICE_THREADS_MAX, state);
		break;
	case OPT_DELIVERY:
		demo.pagers_own = "delivery";
		if (strcmp(arg, "service") != 0 && strcmp(arg, "inline") != 0)
			argp_error(state, "--delivery %s: 'service' or 'inline'", arg);
		demo.delivery = arg[0] == 'i' ? UP_DELIVER_INLINE : UP_DELIVER_SERVICE;
		break;
	case OPT_COMPRESS:
		demo.pagers_own = "compress";
		if (strcmp(arg, "lz4") == 0)
			demo.compression = UP_COMPRESS_LZ4;
		else if (strcmp(arg, "zstd") == 0)
			demo.compression = UP_COMPRESS_ZSTD;
		else if (strcmp(arg, "none") == 0)
			demo.compression = UP_COMPRESS_NONE;
		else
			argp_error(state, "--compress %s: 'lz4', 'zstd' or 'none'", arg);
		break;
	case 'M':
		demo.mask = parse_mask(arg, state);
		break;
	case OPT_TRACE:
		demo.pagers_own = "trace";
		demo.trace = true;
		break;
	case OPT_DAEMON:
		demo.daemon = arg;
		break;
	case OPT_FLIP:
		demo.flip = parse_number("flip", arg, 0, UINT64_MAX - 1, state);
		break;
	case ARGP_KEY_ARG:
		argp_error(state, "%s: this program takes options only", arg);
		break;
	case ARGP_KEY_END:
		check_options(state);
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

/* ---- life of the demo ---- */

static void
workers_start(void)
{
	pthread_condattr_t monotonic;
	pthread_attr_t attr;
	int r;

	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&demo.finished, &monotonic);
	pthread_condattr_destroy(&monotonic);

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 256 << 10);
	demo.running = demo.nthreads;
	for (unsigned i = 0; i < demo.nthreads; i++) {
		struct worker *const w = &demo.worker[i];

		w->id = i;
		w->random = mix(demo.seed + i);
		r = pthread_create(&w->thread, &attr, worker_main, w);
		if (r != 0)
			die("starting thread %u: %s", i, strerror(r));
	}
	pthread_attr_destroy(&attr);
	while (!phase_wait()) /* until they have touched their stacks */
		continue;
}

static void
workers_stop(void)
{
	pthread_mutex_lock(&demo.lock);
	demo.quit = true;
	pthread_cond_broadcast(&demo.start);
	pthread_mutex_unlock(&demo.lock);
	for (unsigned i = 0; i < demo.nthreads; i++)
		pthread_join(demo.worker[i].thread, NULL);
	pthread_cond_destroy(&demo.finished);
}

/* Everything of ours that takes memory, so that the baseline includes it. */
static void
prepare(void)
{
	assert(demo.npages > 0);
	demo.version = calloc(demo.npages, sizeof(*demo.version));
	if (demo.version == NULL)
		die("no memory for %" PRIu64 " version counters", demo.npages);
	for (uint64_t i = 0; i < demo.npages; i++)
		demo.version[i] = 1; /* and touched, which calloc() does not do */
	demo.status_fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	demo.smaps_fd = open("/proc/self/smaps", O_RDONLY | O_CLOEXEC);
	if (demo.status_fd < 0 || demo.smaps_fd < 0)
		die("/proc/self/smaps: %s", strerror(errno));
	workers_start();
	touch_stack();
	smaps_now(&demo.smaps_base); /* the first call touches its buffer; the second counts */
	rss_now();
	smaps_now(&demo.smaps_base);
	demo.rss_base = rss_now();
}

/* Of the configuration it takes the log and the mask; the budget is what it says. */
static void
daemon_join(const struct up_config *cfg)
{
	struct up_stats st;
	int r = up_runtime_connect(&demo.rt, demo.daemon, cfg);

	if (r < 0)
		die("up_runtime_connect: %s", strerror(-r));
	r = up_stats_get(demo.rt, &st, sizeof(st));
	if (r < 0)
		die("up_stats_get: %s", strerror(-r));
	demo.memory = st.limit;
	printf("the budget is the daemon's: %.0f MiB, for all its clients together\n",
	       (double)demo.memory / MIB);
}

int
main(int argc, char **argv)
{
	static const struct argp argp = {
		.options = options,
		.parser = parse_option,
		.doc = "Work in a region of memory that is larger than the memory it may use, "
		       "verify every byte, and watch the budget.\v"
		       "BYTES takes the suffixes K, M, G and T.  The exit status is 0 if every "
		       "page was right and the budget was held, 1 if not, 2 for bad usage, 130 "
		       "after Ctrl-C.",
	};
	int r, status;
	void *p;

	argp_err_exit_status = EXIT_USAGE;
	argp_parse(&argp, argc, argv, 0, NULL, NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	terminal_detect();
	signals_init();
	if (demo.daemon != NULL)
		printf("%.0f MiB of memory from a daemon", (double)demo.size / MIB);
	else
		printf("%.0f MiB of memory in a budget of %.0f MiB", (double)demo.size / MIB,
		       (double)demo.memory / MIB);
	printf(": %u thread%s, seed %" PRIu64 "\n", demo.nthreads, demo.nthreads == 1 ? "" : "s",
	       demo.seed);
	prepare();

	const struct up_config cfg = {
		.memory_limit = demo.memory,
		.swap_path = demo.swap_path,
		.service_threads = demo.service_threads,
		.delivery = demo.delivery,
		.compression = demo.compression,
		.feature_mask = demo.mask,
		.log = say,
	};

	if (demo.daemon != NULL)
		daemon_join(&cfg);
	else if ((r = up_runtime_create(&demo.rt, &cfg)) < 0)
		die("up_runtime_create: %s", strerror(-r));
	r = up_map(demo.rt, NULL, demo.size, PROT_READ | PROT_WRITE, UP_PRIVATE, NULL, 0, &p);
	if (r < 0) {
		up_runtime_destroy(demo.rt);
		die("up_map of %.0f MiB: %s", (double)demo.size / MIB, strerror(-r));
	}
	demo.region = p;

	status = phases_run();
	if (demo.trace)
		up_trace_print(demo.rt, stdout);

	workers_stop();
	r = up_unmap(demo.rt, demo.region, demo.size);
	if (r < 0) {
		fprintf(stderr, "bigger_than_memory: up_unmap: %s\n", strerror(-r));
		status = EXIT_WRONG;
	}
	up_runtime_destroy(demo.rt);
	close(demo.smaps_fd);
	close(demo.status_fd);
	free(demo.version);
	if (fflush(stdout) != 0 || ferror(stdout)) {
		fprintf(stderr, "bigger_than_memory: standard output: %s\n", strerror(errno));
		status = EXIT_WRONG;
	}
	return status;
}
