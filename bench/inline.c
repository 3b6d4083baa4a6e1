/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * inline.c: faults that the thread serves itself, and their raw floor.
 *
 * The floor is a handler of SIGBUS (UFFD_FEATURE_SIGBUS) with one ioctl in it: UFFDIO_COPY of a page for *zero*, UFFDIO_MOVE of one from
 * a staging area for *soft*, a page that the library has taken out of the page table and still has in memory.
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "bench.h"
#include "pmap/uffd_abi.h"

static struct {
	int uffd;
	bool soft;
	uintptr_t base, stage; /* page i of the region is at stage + i pages */
	unsigned char *zeros;
} bare;

static void
on_bus(int sig, siginfo_t *info, void *context)
{
	const uintptr_t va = (uintptr_t)info->si_addr & ~(PAGE - 1);
	struct uffdio_copy copy = { .dst = va, .src = (uintptr_t)bare.zeros, .len = PAGE };
	struct uffdio_move move = { .dst = va, .src = bare.stage + (va - bare.base), .len = PAGE };

	(void)sig;
	(void)context;
	if ((bare.soft ? ioctl(bare.uffd, UFFDIO_MOVE, &move)
		       : ioctl(bare.uffd, UFFDIO_COPY, &copy)) < 0)
		job_fail("the floor's ioctl: %s", strerror(errno));
}

static unsigned char *
anonymous(size_t npages)
{
	void *p = mmap(NULL, npages * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED || madvise(p, npages * PAGE, MADV_NOHUGEPAGE) < 0)
		job_fail("mmap: %s", strerror(errno));
	return p;
}

void
floor_inline(const void *arg)
{
	const char *kind = arg;
	const size_t npages = bench.touches * 4;
	struct sigaction sa = { .sa_sigaction = on_bus, .sa_flags = SA_SIGINFO };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	unsigned char *p = anonymous(npages), *stage = anonymous(npages);
	char prefix[48];

	bare.soft = strcmp(kind, "soft") == 0;
	bare.base = (uintptr_t)p;
	bare.stage = (uintptr_t)stage;
	bare.zeros = job_buffer(PAGE);
	memset(bare.zeros, 0, PAGE);
	bare.uffd = floor_uffd(UFFD_FEATURE_SIGBUS | (bare.soft ? UFFD_FEATURE_MOVE : 0));
	reg.range.start = bare.base;
	reg.range.len = npages * PAGE;
	if (ioctl(bare.uffd, UFFDIO_REGISTER, &reg) < 0)
		job_fail("UFFDIO_REGISTER: %s", strerror(errno));
	if (bare.soft)
		memset(stage, 1, npages * PAGE);
	sigfillset(&sa.sa_mask);
	sigaction(SIGBUS, &sa, NULL);
	snprintf(prefix, sizeof prefix, "floor.inline_%s", kind);
	latency_measure(p, random_order(npages), bench.touches, true, prefix);
}

/* All of it is staged then: the first touch at the new address finds out. */
unsigned char *
ours_moved(struct up_runtime *rt, unsigned char *p, size_t npages)
{
	void *q;
	int r;

	memset(p, 1, npages * PAGE);
	/* So that it can not stay where it is. */
	r = up_map(rt, p + npages * PAGE, PAGE, PROT_READ, UP_PRIVATE | UP_FIXED, NULL, 0, &q);
	if (r < 0 && r != -EEXIST)
		job_fail("up_map: %s%s", strerror(-r), ours_log());
	r = up_remap(rt, p, npages * PAGE, (npages + 1) * PAGE, UP_MAYMOVE, &q);
	if (r < 0)
		job_fail("up_remap: %s%s", strerror(-r), ours_log());
	return q;
}

void
ours_inline(const void *arg)
{
	const char *kind = arg;
	const bool soft = strcmp(kind, "soft") == 0;
	const size_t npages = bench.touches * 4;
	struct up_config cfg = { .memory_limit = npages * PAGE * 2 + (64u << 20),
				 .service_threads = 1,
				 .delivery = UP_DELIVER_INLINE };
	struct up_runtime *rt = ours_open(&cfg);
	unsigned char *p = ours_map(rt, npages);
	char prefix[48];
	uint64_t before;

	if (soft)
		p = ours_moved(rt, p, npages);
	ours_advise(rt, p, npages, UP_ADVICE_RANDOM);
	before = ours_stats(rt).faults[soft ? UP_FAULT_SOFT : UP_FAULT_ZERO];
	snprintf(prefix, sizeof prefix, "ours.inline_%s", kind);
	latency_measure(p, random_order(npages), bench.touches, true, prefix);
	latency_faults(rt, soft ? UP_FAULT_SOFT : UP_FAULT_ZERO, before, prefix);
	up_runtime_destroy(rt);
}
