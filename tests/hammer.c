/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * hammer.c: no increment of shared memory is lost while its pages come and go.
 *
 *	adders	two threads, each through a place of its own, and a child process: atomic increments of
 *		words that all of them share, each counting what it has added to a page
 *	mover	removes batches of pages, and enters them again
 *	service	answers faults
 *	mapper	makes a place, adds through it, unmaps it in two parts
 *	killer	forks a child that scribbles where nobody counts, and kills it at any moment
 *
 * Plain C, so that it runs under ThreadSanitizer too.  Exit status 0: all is well; 1: it is not, with a line on
 * stderr; 77: this kernel can not.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "heap_arena.h"
#include "pool_child.h"

#define PAGES 48u
#define WORDS 8u /* of a page that are counted; one more is for scribbling */
#define NSTAGE 256u
#define ADDERS 4u /* two threads, the mapper, the child */
#define DEADLINE 30

static struct pmap *pm;
static struct heap_arena heap;
static struct zone records;
static uintptr_t pool, place[2];
static int file;
static uint64_t offset;
static pthread_mutex_t busy[PAGES];
static frame_t frame[PAGES]; /* (busy) where it is, or FRAME_NONE: in the pool */
static atomic_bool quit;     /* the service */
static atomic_uint removed, soft, mapped, killed;

/* Shared with children. */
static struct shared {
	atomic_bool stop;
	uint64_t added[ADDERS][PAGES]; /* each its adder's */
} * shared;

static void
fail(const char *what, long value)
{
	fprintf(stderr, "hammer: %s (%ld)\n", what, value);
	_exit(1);
}

static void
check(bool good, const char *what, long value)
{
	if (!good)
		fail(what, value);
}

static uint64_t
next_random(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

/*
 * ThreadSanitizer holds a lock of its own across an atomic access that it sees; the service would wait for that
 * lock while the access waits for the service.
 */
#if defined(__clang__) && defined(__has_attribute)
#if __has_attribute(disable_sanitizer_instrumentation)
#define UNSEEN __attribute__((noinline, disable_sanitizer_instrumentation))
#endif
#endif
#ifndef UNSEEN
#define UNSEEN __attribute__((noinline, no_sanitize_thread))
#endif

UNSEEN static void
add_to(uintptr_t word)
{
	__atomic_fetch_add((uint64_t *)word, 1, __ATOMIC_SEQ_CST);
}

static void
add_one(unsigned me, uintptr_t base, unsigned first, unsigned n, uint64_t *rng)
{
	const unsigned p = (unsigned)(next_random(rng) % n);

	add_to(base + p * PAGE_SIZE + next_random(rng) % WORDS * sizeof(uint64_t));
	shared->added[me][first + p]++;
}

static void *
adder_main(void *arg)
{
	const unsigned me = (unsigned)(uintptr_t)arg;
	uint64_t rng = 88172645463325252u + me;

	while (!atomic_load(&shared->stop))
		add_one(me, place[me], 0, PAGES, &rng);
	return NULL;
}

static void *
service_main(void *arg)
{
	struct pollfd fds[4];

	(void)arg;
	for (unsigned i = 0; i < 2; i++) {
		fds[2 * i] = (struct pollfd){ .fd = pmap_uffd_fd(pm, i), .events = POLLIN };
		fds[2 * i + 1] =
			(struct pollfd){ .fd = pmap_uffd_more_fd(pm, i), .events = POLLIN };
	}
	while (!atomic_load(&quit)) {
		struct pmap_fault f[8];
		unsigned n;

		poll(fds, 4, 50);
		for (unsigned shard = 0; shard < 2; shard++) {
			n = pm->ops->faults(pm, shard, f, 8);
			for (unsigned i = 0; i < n; i++)
				pm->ops->wake(pm, f[i].shard, f[i].va, 1);
			/* Whose page that was the mover knows as well as we: all that are out come in. */
			for (unsigned p = 0; p < PAGES && n > 0; p++) {
				size_t done;
				int r;

				pthread_mutex_lock(&busy[p]);
				while (frame[p] != FRAME_NONE) {
					r = pm->ops->enter(pm, PMAP_POOL, pool + p * PAGE_SIZE,
							   frame[p], 1, &done);
					check(r == 0 || r == -EAGAIN, "enter", r);
					if (r == 0)
						frame[p] = FRAME_NONE;
				}
				pthread_mutex_unlock(&busy[p]);
			}
			atomic_fetch_add(&soft, n);
		}
	}
	return NULL;
}

/* Take a batch out, as far as it is in, or in, as far as it is out at these frames. */
static void
move(unsigned first, unsigned n, frame_t to, bool out)
{
	const uintptr_t va = pool + first * PAGE_SIZE;
	unsigned fit = 0;
	size_t done = 0;
	int r = 0;

	for (unsigned i = first; i < first + n; i++)
		pthread_mutex_lock(&busy[i]);
	while (fit < n && frame[first + fit] == (out ? FRAME_NONE : to + first + fit))
		fit++;
	if (fit > 0 && out)
		r = pm->ops->remove(pm, PMAP_POOL, va, to + first, fit, &done);
	else if (fit > 0)
		r = pm->ops->enter(pm, PMAP_POOL, va, to + first, fit, &done);
	check((r == 0 && done == fit) || r == -EAGAIN, out ? "remove" : "enter", r);
	for (unsigned i = first; i < first + done; i++)
		frame[i] = out ? to + i : FRAME_NONE;
	for (unsigned i = first; i < first + n; i++)
		pthread_mutex_unlock(&busy[i]);
	pm->ops->wake(pm, PMAP_POOL, va, n);
	if (out)
		atomic_fetch_add(&removed, (unsigned)done);
}

static void *
mover_main(void *arg)
{
	uint64_t rng = 1234567;

	(void)arg;
	while (!atomic_load(&shared->stop)) {
		const unsigned first = (unsigned)(next_random(&rng) % PAGES);
		const unsigned n = 1 + (unsigned)(next_random(&rng) % 24);
		const frame_t to = (frame_t)(next_random(&rng) % (NSTAGE / PAGES)) * PAGES;

		move(first, MIN(n, PAGES - first), to, next_random(&rng) % 4 != 0);
	}
	return NULL;
}

static void *
mapper_main(void *arg)
{
	uint64_t rng = 7654321;

	(void)arg;
	while (!atomic_load(&shared->stop)) {
		const unsigned first = (unsigned)(next_random(&rng) % (PAGES - 8));
		const size_t len = 8 * PAGE_SIZE;
		uintptr_t va;

		check(pm->ops->pool_map(pm, pool + first * PAGE_SIZE, 0, false, len,
					PROT_READ | PROT_WRITE, 1, &va) == 0,
		      "pool_map", 0);
		for (unsigned i = 0; i < 4; i++)
			add_one(2, va, first, 8, &rng);
		check(pm->ops->split(pm, 0, va, len / 2) == 0, "split", 0);
		check(pm->ops->unmap(pm, va, len / 2, 1) == 0, "unmap", 0);
		for (unsigned i = 0; i < 4; i++)
			add_one(2, va + len / 2, first + 4, 4, &rng);
		check(pm->ops->unmap(pm, va + len / 2, len / 2, 1) == 0, "unmap", 0);
		atomic_fetch_add(&mapped, 1);
	}
	return NULL;
}

/* --- children --- */

struct child {
	pid_t pid;
	int sock;
	unsigned shard;
	uintptr_t va;
};

static void
child_main(int sock, bool scribbles)
{
	const uintptr_t va = pool_child_map(pm, file, offset, PAGES * PAGE_SIZE, sock);
	uint64_t rng = 33333;
	char go;

	alarm(600);
	if (va == 0 || read(sock, &go, 1) != 1)
		_exit(1);
	while (!atomic_load(&shared->stop)) {
		if (scribbles)
			add_to(va + next_random(&rng) % PAGES * PAGE_SIZE +
			       WORDS * sizeof(uint64_t));
		else
			add_one(3, va, 0, PAGES, &rng);
	}
	_exit(0);
}

static void
child_start(struct child *c, unsigned near, bool scribbles)
{
	uintptr_t va;
	int pair[2], fd;

	check(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0, "socketpair", errno);
	check(pm->ops->space_create(pm, near, &c->shard) == 0, "space_create", 0);
	c->sock = pair[0];
	c->pid = fork();
	check(c->pid >= 0, "fork", errno);
	if (c->pid == 0)
		child_main(pair[1], scribbles);
	close(pair[1]);
	fd = pool_child_hear(c->sock, DEADLINE, &c->va);
	check(fd >= 0, "no word from a child", c->pid);
	check(pm->ops->pool_map(pm, pool, c->va, true, PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
				c->shard, &va) == 0,
	      "pool_map of a space", 0);
	check(pm->ops->space_attach(pm, c->shard, fd, c->pid) == 0, "space_attach", 0);
	check(write(c->sock, "g", 1) == 1, "write", errno);
}

/* => it is dead or dying. */
static void
child_finish(struct child *c, bool by_itself)
{
	int status = 0;

	for (int ms = 0; waitpid(c->pid, &status, WNOHANG) == 0; ms++) {
		check(ms < DEADLINE * 1000, "a child does not end", c->pid);
		poll(NULL, 0, 1);
	}
	check(!by_itself || status == 0, "the child ended with", status);
	pm->ops->space_detach(pm, c->shard);
	check(pm->ops->unmap(pm, c->va, PAGES * PAGE_SIZE, c->shard) == 0, "unmap of a space", 0);
	pm->ops->space_destroy(pm, c->shard);
	close(c->sock);
}

static void *
killer_main(void *arg)
{
	uint64_t rng = 424242;

	(void)arg;
	while (!atomic_load(&shared->stop)) {
		struct child c;

		child_start(&c, (unsigned)(next_random(&rng) % 2), true);
		poll(NULL, 0, (int)(next_random(&rng) % 8)); /* any moment */
		kill(c.pid, SIGKILL);
		child_finish(&c, false);
		atomic_fetch_add(&killed, 1);
	}
	return NULL;
}

static void
join(pthread_t thread, const char *who)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += DEADLINE;
	check(pthread_timedjoin_np(thread, NULL, &until) == 0, who, DEADLINE);
}

static void
verify(void)
{
	for (unsigned p = 0; p < PAGES; p++) {
		const bool in = frame[p] == FRAME_NONE;
		const uint64_t *words =
			in ? (void *)(place[0] + p * PAGE_SIZE) : pmap_frame(pm, frame[p]);
		uint64_t sum = 0, added = 0;

		for (unsigned w = 0; w < WORDS; w++)
			sum += words[w];
		for (unsigned a = 0; a < ADDERS; a++)
			added += shared->added[a][p];
		check(sum == added, "increments lost of a page", (long)(added - sum));
	}
}

int
main(int argc, char **argv)
{
	static const char *const names[] = { "an adder is stuck", "an adder is stuck",
					     "the mover is stuck", "the mapper is stuck",
					     "the killer is stuck" };
	static void *(*const mains[])(void *) = { adder_main, adder_main, mover_main, mapper_main,
						  killer_main };
	const int seconds = argc > 1 ? atoi(argv[1]) : 4;
	const struct logger log = { 0 };
	pthread_t threads[ARRAY_SIZE(mains)], service;
	struct child c;
	size_t done;
	int r;

	r = pmap_uffd_create(&pm, NSTAGE, 2, 0, &log);
	if (r == -EPERM || r == -ENOSYS || (r == 0 && !(pm->features & UP_MASK_SHARED))) {
		fputs("hammer: no userfaultfd for shared memory here\n", stderr);
		return 77;
	}
	check(r == 0, "pmap_uffd_create", r);
	heap_arena_init(&heap, 64 << 20, 16 << 20);
	zone_init(&records, &heap.arena, "place", pm->place_size, NULL, NULL);
	pm->places = &records;
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	check(shared != MAP_FAILED, "mmap", errno);
	check(pm->ops->pool_create(pm, PAGES, false, &pool) == 0, "pool_create", 0);
	file = pmap_uffd_pool_fd(pm, pool, &offset);
	for (unsigned i = 0; i < 2; i++)
		check(pm->ops->pool_map(pm, pool, 0, false, PAGES * PAGE_SIZE,
					PROT_READ | PROT_WRITE, i, &place[i]) == 0,
		      "pool_map", 0);
	for (unsigned i = 0; i < PAGES; i++) {
		pthread_mutex_init(&busy[i], NULL);
		frame[i] = FRAME_NONE;
	}
	check(pm->ops->zero(pm, PMAP_POOL, pool, PAGES, &done) == 0, "zero", 0);

	child_start(&c, 1, false);
	pthread_create(&service, NULL, service_main, NULL);
	for (uintptr_t i = 0; i < ARRAY_SIZE(mains); i++)
		pthread_create(&threads[i], NULL, mains[i], (void *)i);
	poll(NULL, 0, seconds * 1000);
	atomic_store(&shared->stop, true);
	for (unsigned i = 0; i < ARRAY_SIZE(mains); i++)
		join(threads[i], names[i]);
	child_finish(&c, true);
	atomic_store(&quit, true);
	join(service, "the service is stuck");
	verify();
	printf("hammer: %u pages removed, %u faults, %u places, %u children killed; nothing lost\n",
	       atomic_load(&removed), atomic_load(&soft), atomic_load(&mapped),
	       atomic_load(&killed));
	check(atomic_load(&removed) > 100 && atomic_load(&soft) > 10 && atomic_load(&mapped) > 1 &&
		      atomic_load(&killed) > 1,
	      "this was no race: pages removed", (long)atomic_load(&removed));

	for (unsigned i = 0; i < 2; i++)
		check(pm->ops->unmap(pm, place[i], PAGES * PAGE_SIZE, i) == 0, "unmap", 0);
	for (unsigned i = 0; i < PAGES; i++)
		if (frame[i] != FRAME_NONE)
			pm->ops->frame_drop(pm, frame[i], 1);
	pm->ops->pool_destroy(pm, pool);
	check(zone_count(&records) == 0, "records left", (long)zone_count(&records));
	pm->ops->destroy(pm);
	zone_fini(&records);
	heap_arena_fini(&heap);
	return 0;
}
