/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * kernel_swap.c: the kernel's own swap, in a memory cgroup of the budget's size; plain, with zswap, on zram.
 *
 * The swap file lies in the work directory, so on the disk that everybody uses, has the highest
 * priority, and is on only while this contender runs.  Its header is written here: two fields
 * and a magic, not worth a dependency on mkswap.
 *
 * A disk flagged rotational makes the kernel leave its better swap read-ahead (by address) alone,
 * and virtual disks are often flagged so by mistake.  Therefore two contenders: "swap" as the disk
 * is flagged, and "swap_ssd", where the flag is 0 during swapon(), when the kernel looks at it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/types.h>
#include <unistd.h>

#include "bench.h"

#define SWAP_HEADROOM_PAGES ((size_t)16384)

#define ZRAM_CONTROL "/sys/class/zram-control"
#define ZSWAP "/sys/module/zswap/parameters/"

/* Offsets of union swap_header in the kernel's linux/swap.h; magic at the end of the page. */
static bool
swapfile_header(int fd, size_t npages)
{
	static const char magic[10] = { 'S', 'W', 'A', 'P', 'S', 'P', 'A', 'C', 'E', '2' };
	unsigned char page[4096] = { 0 };
	const uint32_t info[3] = { 1, (uint32_t)(npages - 1), 0 }; /* version, last page, bad */

	memcpy(page + 1024, info, sizeof info);
	memcpy(page + sizeof page - sizeof magic, magic, sizeof magic);
	return pwrite(fd, page, sizeof page, 0) == (ssize_t)sizeof page && fsync(fd) == 0;
}

/* With all blocks written: some file systems refuse to swap on blocks that are only reserved. */
static bool
swapfile_write(int fd, size_t npages)
{
	for (size_t i = 0; i < npages * PAGE; i += POOL_SIZE)
		if (pwrite(fd, bench.pool[DATA_RANDOM], POOL_SIZE, (off_t)i) != (ssize_t)POOL_SIZE)
			return false;
	return true;
}

static bool
swapfile_make(bool written, char *why, size_t size)
{
	size_t npages = bench.scale.pages + SWAP_HEADROOM_PAGES;
	bool ok;
	int fd, r;

	unlink(janitor_list->swapfile);
	fd = open(janitor_list->swapfile, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0) {
		snprintf(why, size, "swap file: %s", strerror(errno));
		return false;
	}
	r = posix_fallocate(fd, 0, (off_t)(npages * PAGE));
	ok = r == 0 && (!written || swapfile_write(fd, npages)) && swapfile_header(fd, npages);
	if (!ok)
		snprintf(why, size, "swap file: %s", strerror(r != 0 ? r : errno));
	close(fd);
	return ok;
}

static bool
swap_on(char *why, size_t size)
{
	if (swapon(janitor_list->swapfile, SWAP_FLAG_PREFER | (SWAP_FLAG_PRIO_MASK & 32767)) == 0)
		return true;
	snprintf(why, size, "swapon: %s%s", strerror(errno),
		 errno == EPERM ? " (needs root and CAP_SYS_ADMIN)" : "");
	return false;
}

/* A file for each scale: how full the swap is matters to the kernel. */
static bool
swapfile_on(char *why, size_t size)
{
	char name[32];

	snprintf(name, sizeof name, "kernel.swap.%d", (int)bench.scale.id);
	work_path(janitor_list->swapfile, name);
	if (access(janitor_list->swapfile, F_OK) < 0 && !swapfile_make(false, why, size))
		return false;
	if (swap_on(why, size))
		return true;
	return errno == EINVAL && swapfile_make(true, why, size) && swap_on(why, size);
}

static bool
swap_within(size_t limit, char *why, size_t size)
{
	if (!cgroup_setup(limit, why, size))
		return false;
	if (!swapfile_on(why, size)) {
		cgroup_teardown();
		return false;
	}
	return true;
}

bool
cgroup_before(const void *arg, char *why, size_t size)
{
	(void)arg;
	return cgroup_setup(bench.scale.memory, why, size);
}

bool
swap_before(const void *arg, char *why, size_t size)
{
	(void)arg;
	return swap_within(bench.scale.memory, why, size);
}

bool
swap_ssd_before(const void *arg, char *why, size_t size)
{
	bool ok;

	if (host.rotational != 1) {
		snprintf(why, size, "the disk is %s",
			 host.rotational == 0 ? "not flagged rotational: \"swap\" is this already"
					      : "unknown");
		return false;
	}
	if (!janitor_set(host.rotational_path, "0")) {
		snprintf(why, size, "%.100s: %s", host.rotational_path, strerror(errno));
		return false;
	}
	ok = swap_before(arg, why, size);
	janitor_set_back();
	return ok;
}

void
swap_after(void)
{
	cgroup_teardown();
	if (swapoff(janitor_list->swapfile) < 0)
		fprintf(stderr, "bench: swapoff %s: %s\n", janitor_list->swapfile, strerror(errno));
}

/* ---- zswap ---- */

/* One per cent of memory, the least that its pool can be limited to. */
static size_t
zswap_least(void)
{
	return (size_t)sysconf(_SC_PHYS_PAGES) * PAGE / 100;
}

size_t
zswap_memory(size_t at_least)
{
	const size_t memory = zswap_least() / 2 * 3;
	const size_t mib = (size_t)1 << 20;

	return memory > at_least ? (memory + mib - 1) / mib * mib : at_least;
}

/*
 * cgroup v2 charges a compressed page to who swapped it out, so limit and budget are the same, with half of it for the pool at most.
 * v1 does not: there the cgroup gets what the budget leaves beside a pool of 1 % of the machine's memory.
 */
static bool
zswap_cgroup(char *why, size_t size)
{
	size_t limit = bench.scale.memory;

	if (!swap_within(limit, why, size))
		return false;
	if (cgroup_set_v2("memory.zswap.max", limit / 2))
		return true;
	if (janitor_set(ZSWAP "max_pool_percent", "1")) {
		limit -= zswap_least();
		if (cgroup_setup(limit, why, size))
			return true;
	} else {
		snprintf(why, size, "max_pool_percent: %s", strerror(errno));
	}
	swap_after();
	janitor_set_back();
	return false;
}

bool
zswap_before(const void *arg, char *why, size_t size)
{
	const struct race *race = arg;
	char text[32];

	if (access(ZSWAP "enabled", F_OK) < 0) {
		snprintf(why, size, "this kernel has no zswap");
		return false;
	}
	if (bench.scale.pages * PAGE > (size_t)8 << 30) {
		snprintf(
			why, size,
			"the least pool, 1 %% of this machine's memory, is too large for a region of 8 GiB");
		return false;
	}
	if (race->compressor != NULL && (!janitor_set(ZSWAP "compressor", race->compressor) ||
					 !read_line(ZSWAP "compressor", text, sizeof text) ||
					 strcmp(text, race->compressor) != 0)) {
		snprintf(why, size, "this kernel's zswap has no %s", race->compressor);
		janitor_set_back();
		return false;
	}
	if (!janitor_set(ZSWAP "enabled", "Y")) {
		snprintf(why, size, "can not be enabled: %s", strerror(errno));
		janitor_set_back();
		return false;
	}
	/* With a compressor that is not there it would fall back silently. */
	if (race->compressor != NULL && (!read_line(ZSWAP "compressor", text, sizeof text) ||
					 strcmp(text, race->compressor) != 0)) {
		snprintf(why, size, "this kernel's zswap has no %s", race->compressor);
		janitor_set_back();
		return false;
	}
	return zswap_cgroup(why, size);
}

void
zswap_after(void)
{
	swap_after();
	janitor_set_back();
}

/* ---- zram ---- */

static bool
zram_attribute(const char *name, const char *value, char *why, size_t size)
{
	char path[96];

	snprintf(path, sizeof path, "/sys/block/zram%.15s/%s", janitor_list->zram, name);
	if (write_line(path, value))
		return true;
	snprintf(why, size, "%s of zram to %s: %s", name, value, strerror(errno));
	return false;
}

static bool
zram_make(char *why, size_t size)
{
	const size_t bytes = (bench.scale.pages + SWAP_HEADROOM_PAGES) * PAGE;
	char text[32];
	bool ok;
	int fd;

	snprintf(text, sizeof text, "%zu", bytes);
	if (!zram_attribute("comp_algorithm", "lz4", why, size) ||
	    !zram_attribute("disksize", text, why, size))
		return false;
	snprintf(text, sizeof text, "%zu", bench.scale.memory / 2);
	if (!zram_attribute("mem_limit", text, why, size))
		return false;
	snprintf(janitor_list->swapfile, sizeof janitor_list->swapfile, "/dev/zram%.15s",
		 janitor_list->zram);
	fd = open(janitor_list->swapfile, O_RDWR | O_CLOEXEC);
	ok = fd >= 0 && swapfile_header(fd, bytes / PAGE);
	if (!ok)
		snprintf(why, size, "%.64s: %s", janitor_list->swapfile, strerror(errno));
	if (fd >= 0)
		close(fd);
	return ok;
}

/* Half of the budget in pages, half of it compressed: zram's memory is charged to nobody. */
bool
zram_before(const void *arg, char *why, size_t size)
{
	static const char *const modprobe[] = { "modprobe", "zram", NULL };

	(void)arg;
	if (access(ZRAM_CONTROL, F_OK) < 0)
		program_run(modprobe, "/dev/null", 10);
	/* Reading it makes a device, and tells its number. */
	if (!read_line(ZRAM_CONTROL "/hot_add", janitor_list->zram, sizeof janitor_list->zram)) {
		snprintf(why, size, "no zram: %s", strerror(errno));
		return false;
	}
	if (zram_make(why, size) && cgroup_setup(bench.scale.memory / 2, why, size)) {
		if (swap_on(why, size))
			return true;
		cgroup_teardown();
	}
	zram_remove();
	return false;
}

void
zram_after(void)
{
	swap_after();
	zram_remove();
}

/* What the compressed store took, as the kernel has it at the end. */
static void
zram_values(const char *who)
{
	char path[64], text[256];
	unsigned long long original, compressed, total, limit, most;

	snprintf(path, sizeof path, "/sys/block/zram%.15s/mm_stat", janitor_list->zram);
	if (janitor_list->zram[0] == '\0' || !read_line(path, text, sizeof text) ||
	    sscanf(text, "%llu %llu %llu %llu %llu", &original, &compressed, &total, &limit,
		   &most) != 5)
		return;
	if (original > 0)
		job_value("1", (double)compressed / (double)original, "%s.compressed_to", who);
	job_value("MiB", (double)most / 1048576, "%s.store_peak", who);
}

/* All of the machine's, but nobody else swaps as a rule. */
static void
zswap_values(const char *who)
{
	unsigned long long kib, pool = 0, pages = 0;
	FILE *f = fopen("/proc/meminfo", "re");
	char line[128];

	while (f != NULL && fgets(line, sizeof line, f) != NULL) {
		if (sscanf(line, "Zswap: %llu", &kib) == 1)
			pool = kib;
		else if (sscanf(line, "Zswapped: %llu", &kib) == 1)
			pages = kib;
	}
	if (f != NULL)
		fclose(f);
	if (pages == 0)
		return;
	job_value("1", (double)pool / (double)pages, "%s.compressed_to", who);
	job_value("MiB", (double)pool / 1024, "%s.store", who);
}

static void
advise(void *ctx, enum pattern p)
{
	if (bench.advice)
		madvise(ctx, bench.scale.pages * PAGE, pattern_advice(p));
}

void
swap_patterns(const void *arg)
{
	static const struct pattern_ops ops = { .advise = advise };
	const struct race *race = arg;
	void *p;

	patterns_prepare(race->threads);
	cgroup_enter();
	p = mmap(NULL, bench.scale.pages * PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		job_fail("mmap: %s", strerror(errno));
	patterns_run(race, p, &ops, p);
	cgroup_peak(race->who);
	zram_values(race->who);
	zswap_values(race->who);
}
