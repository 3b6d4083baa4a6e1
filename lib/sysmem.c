/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * sysmem.c: arena_ops over mmap, mprotect, mlock and madvise.
 *
 * A reservation is one PROT_NONE mapping without swap accounting; it carries its advice
 * (MADV_WIPEONFORK, MADV_NOHUGEPAGE) from the start.  Commit and decommit change protection
 * inside it, so a stray access to memory that went back is SIGSEGV.
 *
 * Alternative: map anew over the range (MAP_FIXED), which drops memory, lock and protection in
 * one call.  A new mapping comes without the advice, so it would be another VMA until two
 * more calls are made, and for that moment a fork() in another thread would copy it.
 *
 * The kernel may refuse to split a VMA (vm.max_map_count).  Commit then fails and leaves the
 * range as it was; decommit has no way to fail, so it has a way without splitting: see there.
 */
#include "sysmem.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Linux 5.14 and 5.18; older C library headers lack them, older kernels say EINVAL. */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

static void *
sysmem_reserve(void *ctx, size_t len)
{
	const size_t over = len + SLAB_SIZE - PAGE_SIZE;
	char *p, *base;
	size_t head, tail;

	(void)ctx;
	assert(len != 0 && len % PAGE_SIZE == 0);
	if (over < len)
		return NULL;
	p = mmap(NULL, over, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return NULL;
	head = (SLAB_SIZE - (uintptr_t)p % SLAB_SIZE) % SLAB_SIZE;
	tail = over - head - len;
	base = p + head;
	if (head != 0)
		munmap(p, head);
	if (tail != 0)
		munmap(base + len, tail);
	if (madvise(base, len, MADV_WIPEONFORK) < 0) {
		munmap(base, len);
		return NULL;
	}
	/* EINVAL: a kernel without huge pages, which is as good. */
	(void)madvise(base, len, MADV_NOHUGEPAGE);
	return base;
}

static void
sysmem_release(void *ctx, void *addr, size_t len)
{
	(void)ctx;
	(void)munmap(addr, len);
}

/*
 * Give back the pages of a range that may be locked; the range then reads as zeros.
 *
 * Unlocking part of a VMA splits it.  Where that is refused the lock stays (it locks what
 * the next commit brings) and MADV_DONTNEED_LOCKED frees the pages under it.  A kernel
 * before 5.18 at its limit of VMAs has neither: the pages stay, but are zero as promised.
 */
static void
sysmem_drop(void *addr, size_t len)
{
	(void)munlock(addr, len);
	if (madvise(addr, len, MADV_DONTNEED) == 0)
		return;
	if (madvise(addr, len, MADV_DONTNEED_LOCKED) == 0)
		return;
	memset(addr, 0, len);
}

static void
sysmem_decommit(void *ctx, void *addr, size_t len)
{
	(void)ctx;
	sysmem_drop(addr, len);
	/* If refused, the range stays accessible: a safety net lost, nothing else. */
	(void)mprotect(addr, len, PROT_NONE);
}

/* Make pages resident that are zero or absent.  0 or -ENOMEM. */
static int
sysmem_populate(char *addr, size_t len)
{
	int r;

	do {
		r = madvise(addr, len, MADV_POPULATE_WRITE);
	} while (r < 0 && (errno == EINTR || errno == EAGAIN));
	if (r == 0)
		return 0;
	if (errno != EINVAL)
		return -ENOMEM;
	/* A write of zero over zero; volatile, or the compiler knows better. */
	for (size_t i = 0; i < len; i += PAGE_SIZE)
		*(volatile char *)(addr + i) = 0;
	return 0;
}

static int
sysmem_commit(void *ctx, void *addr, size_t len)
{
	int r;

	if (mprotect(addr, len, PROT_READ | PROT_WRITE) < 0)
		return -ENOMEM;
	/*
	 * Best effort: past RLIMIT_MEMLOCK the pages are resident, though not for certain for good.
	 * Before the first page is there: a VMA gets its anon_vma with it, shares that of a
	 * neighbour only if both are locked or neither is, and can merge only if it shares.
	 */
	(void)mlock(addr, len);
	r = sysmem_populate(addr, len);
	if (r < 0)
		sysmem_decommit(ctx, addr, len);
	return r;
}

const struct arena_ops sysmem_ops = {
	.reserve = sysmem_reserve,
	.release = sysmem_release,
	.commit = sysmem_commit,
	.decommit = sysmem_decommit,
};

/* --- how much there is --- */

/* A limit as the kernel prints it; SIZE_MAX for none ("max", or a number close to 2^63). */
static size_t
read_limit(const char *path)
{
	unsigned long long n = 0;
	FILE *f = fopen(path, "re");

	if (f == NULL)
		return SIZE_MAX;
	if (fscanf(f, "%llu", &n) != 1 || n == 0 || n > (1ULL << 62))
		n = SIZE_MAX;
	fclose(f);
	return (size_t)n;
}

/* The smallest limit from a cgroup upwards: root is where its hierarchy is mounted. */
static size_t
cgroup_limit(const char *root, char *group, const char *file)
{
	size_t least = SIZE_MAX;

	for (;;) {
		char path[PATH_MAX], *slash;
		size_t n;

		snprintf(path, sizeof path, "%s%s/%s", root, group, file);
		n = read_limit(path);
		least = MIN(least, n);
		slash = strrchr(group, '/');
		if (slash == NULL)
			return least;
		*slash = '\0';
	}
}

size_t
sysmem_total(bool *in_cgroup)
{
	const long pages = sysconf(_SC_PHYS_PAGES);
	size_t total = pages > 0 ? (size_t)pages * PAGE_SIZE : SIZE_MAX;
	char line[PATH_MAX];
	FILE *f = fopen("/proc/self/cgroup", "re");

	*in_cgroup = false;
	while (f != NULL && fgets(line, sizeof line, f) != NULL) {
		char *names = strchr(line, ':'),
		     *group = names != NULL ? strchr(names + 1, ':') : NULL;
		size_t n = SIZE_MAX;

		if (group == NULL)
			continue;
		*group++ = '\0';
		names++;
		group[strcspn(group, "\n")] = '\0';
		if (*names == '\0')
			n = cgroup_limit("/sys/fs/cgroup", group, "memory.max");
		else if (strcmp(names, "memory") == 0)
			n = cgroup_limit("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes");
		if (n < total) {
			total = n;
			*in_cgroup = true;
		}
	}
	if (f != NULL)
		fclose(f);
	return total;
}
