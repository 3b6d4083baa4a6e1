/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * budget.c: see budget.h.
 *
 *	budget_set() ---> smaller: groups' shares of it first ---> a thread of libuv's: up_runtime_set_limit()
 *	                                                                  |
 *	done() <--- larger, or as it was: groups' shares of it <----------+
 *
 * Minima of groups may be percents of the budget: they have to be less before it can be.
 */
#include "budget.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "log.h"

#define PAGE_OUT_MS 20000 /* the command waits a little longer */

static struct {
	uv_work_t work;
	bool busy;
	struct daemon *d;
	uint64_t bytes, before;
	int r;
	budget_done *done; /* NULL: nobody wants to know */
	void *ctx;
} change;

/* What percents are of: the machine's memory, or that of the memory cgroup (v2) if it is less. */
static uint64_t
memory_there(void)
{
	uint64_t least = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE), max;
	char path[PATH_MAX + 32] = "/sys/fs/cgroup", line[PATH_MAX];
	FILE *f = fopen("/proc/self/cgroup", "re");
	size_t root = strlen(path);

	while (f != NULL && fgets(line, sizeof(line), f) != NULL)
		if (strncmp(line, "0::/", 4) == 0) {
			line[strcspn(line, "\n")] = '\0';
			snprintf(path + root, sizeof(path) - root, "%s", line + 3);
		}
	if (f != NULL)
		fclose(f);
	while (strlen(path) > root) {
		char file[sizeof(path) + 16];
		char *const slash = strrchr(path, '/');

		snprintf(file, sizeof(file), "%s/memory.max", path);
		f = fopen(file, "re");
		if (f != NULL) {
			if (fscanf(f, "%" SCNu64, &max) == 1 && max < least)
				least = max;
			fclose(f);
		}
		*slash = '\0';
	}
	return least;
}

static uint64_t
whole_pages(uint64_t bytes)
{
	return bytes / UP_PAGE_SIZE * UP_PAGE_SIZE;
}

uint64_t
budget_wanted(const struct config *c)
{
	const uint64_t there = memory_there(), set = config_bytes(&c->v[KEY_MEMORY], there);

	return whole_pages(set != 0 ? set : MAX(there / 4, UP_MEMORY_LIMIT_MIN));
}

uint64_t
budget_most(const struct config *c)
{
	const uint64_t wanted = budget_wanted(c), there = memory_there();
	const uint64_t set = config_bytes(&c->v[KEY_MEMORY_MAX], there);
	const uint64_t most = whole_pages(set != 0 ? set : there / 4 * 3);

	return MAX(most, wanted);
}

static void
in_force(uint64_t bytes)
{
	change.d->budget = bytes;
	if (native_quotas != NULL)
		native_quotas(change.d, false);
}

/* A thread of the pool. */
static void
work(uv_work_t *req)
{
	(void)req;
	change.r = up_runtime_set_limit(change.d->rt, change.bytes, PAGE_OUT_MS);
}

static void
after(uv_work_t *req, int status)
{
	const int r = status < 0 ? status : change.r;
	budget_done *const done = change.done;

	(void)req;
	change.busy = false;
	if (r == 0 && change.bytes > change.before)
		in_force(change.bytes);
	else if (r < 0 && change.bytes < change.before)
		in_force(change.before);
	if (r == 0)
		log_info("the budget is %" PRIu64 " MiB now, was %" PRIu64 " MiB",
			 change.bytes >> 20, change.before >> 20);
	else
		log_error("the budget stays %" PRIu64 " MiB, %" PRIu64 " MiB: %s",
			  change.before >> 20, change.bytes >> 20, strerror(-r));
	if (done != NULL)
		done(change.ctx, r, change.bytes);
}

int
budget_set(struct daemon *d, uint64_t bytes, budget_done *done, void *ctx)
{
	int r;

	if (change.busy)
		return -EBUSY;
	change.busy = true;
	change.d = d;
	change.bytes = whole_pages(bytes);
	change.before = d->budget;
	change.r = 0;
	change.done = done;
	change.ctx = ctx;
	if (change.bytes < change.before)
		in_force(change.bytes);
	r = uv_queue_work(&d->loop, &change.work, work, after);
	if (r < 0) {
		change.busy = false;
		in_force(change.before);
	}
	return r;
}

void
budget_forget(const void *ctx)
{
	if (change.busy && change.ctx == ctx)
		change.done = NULL;
}
