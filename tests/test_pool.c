/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * test_pool.c: pools and spaces on the real kernel.
 *
 * As in test_uffd.c nobody serves faults but the test itself.  A process that shares a pool is a child that
 * obeys: it touches what it is told to and says what came of it.  hammer.c is the race.
 */
#include "assertions.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "heap_arena.h"
#include "pool_child.h"

#define RW (PROT_READ | PROT_WRITE)
#define NPAGES 128u
#define NSTAGE 256u
#define MAX_PLACES 3u
#define DEADLINE 20 /* seconds, for whatever has to happen */

TestSuite(pool, .timeout = 110);

static struct pmap *pm;
static struct heap_arena heap;
static struct zone records;
static uintptr_t pool;
static uintptr_t at[MAX_PLACES]; /* of this process: place i is on shard i % 2 */
static unsigned nplaces;
static char logged[4096];

/* --- rig --- */

static void
collect(void *ctx, enum up_log_level level, const char *line)
{
	const size_t len = strlen(logged);

	(void)ctx;
	snprintf(logged + len, sizeof logged - len, "%d: %s\n", (int)level, line);
}

static void
pmap_make(uint64_t mask)
{
	const struct logger log = { .fn = collect };
	int r;

	logged[0] = '\0';
	r = pmap_uffd_create(&pm, NSTAGE, 2, mask, &log);
	if (r == -EPERM || r == -ENOSYS)
		cr_skip_test("no userfaultfd here: %s", logged);
	cr_assert(eq(int, r, 0), "%s", logged);
	if (!(mask & UP_MASK_SHARED) && !(pm->features & UP_MASK_SHARED))
		cr_skip_test("this kernel can not write-protect shared memory");
}

static void
rig_make(uint64_t mask, unsigned places)
{
	pmap_make(mask);
	heap_arena_init(&heap, 64 << 20, 16 << 20);
	zone_init(&records, &heap.arena, "place", pm->place_size, NULL, NULL);
	pm->places = &records;
	/* UP_TEST_APART=1: all of it with a pool that has a file of its own. */
	cr_assert(eq(int, pm->ops->pool_create(pm, NPAGES, getenv("UP_TEST_APART") != NULL, &pool),
		     0));
	nplaces = places;
	for (unsigned i = 0; i < places; i++)
		cr_assert(eq(int,
			     pm->ops->pool_map(pm, pool, 0, false, NPAGES * PAGE_SIZE, RW, i % 2,
					       &at[i]),
			     0));
}

static void
rig_drop(void)
{
	for (unsigned i = 0; i < nplaces; i++)
		cr_assert(eq(int, pm->ops->unmap(pm, at[i], NPAGES * PAGE_SIZE, i % 2), 0));
	pm->ops->pool_destroy(pm, pool);
	cr_assert(eq(sz, zone_count(&records), 0));
	pm->ops->destroy(pm);
	zone_fini(&records);
	heap_arena_fini(&heap);
}

static uintptr_t
page(size_t i)
{
	return pool + i * PAGE_SIZE;
}

static uint64_t *
word(unsigned place, size_t i)
{
	return (uint64_t *)(at[place] + i * PAGE_SIZE);
}

static bool
there(uintptr_t va)
{
	const int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;
	ssize_t got;

	got = pread(fd, &entry, sizeof entry, (off_t)(va >> PAGE_SHIFT) * (off_t)sizeof entry);
	close(fd);
	cr_assert(eq(sz, (size_t)got, sizeof entry), "cannot read /proc/self/pagemap");
	return (entry >> 63) != 0;
}

static unsigned
frames_there(void)
{
	unsigned n = 0;

	for (frame_t f = 0; f < NSTAGE; f++)
		n += there((uintptr_t)pmap_frame(pm, f));
	return n;
}

/* Pages [i, i + n) are in the pool, the first word of page k being 1000 + k. */
static void
fill(size_t i, size_t n)
{
	size_t done;

	cr_assert(eq(int, pm->ops->zero(pm, PMAP_POOL, page(i), n, &done), 0));
	cr_assert(eq(sz, done, n));
	for (size_t k = i; k < i + n; k++)
		*word(0, k) = 1000 + k;
}

static void
take(size_t i, frame_t hole, size_t n)
{
	size_t done;

	cr_assert(eq(int, pm->ops->remove(pm, PMAP_POOL, page(i), hole, n, &done), 0));
	cr_assert(eq(sz, done, n));
}

static void
give(size_t i, frame_t frame, size_t n)
{
	size_t done;

	cr_assert(eq(int, pm->ops->enter(pm, PMAP_POOL, page(i), frame, n, &done), 0));
	cr_assert(eq(sz, done, n));
}

static bool
in_pool(size_t i)
{
	size_t done;
	const int r = pm->ops->zero(pm, PMAP_POOL, page(i), 1, &done);

	if (r == 0)
		cr_assert(eq(int, pm->ops->discard(pm, PMAP_POOL, page(i), 1), 0));
	else
		cr_assert(eq(int, r, -EEXIST));
	return r != 0;
}

/* --- accesses that may fail or wait --- */

static _Thread_local sigjmp_buf escape;
static _Thread_local volatile sig_atomic_t escaping;

static void
on_signal(int sig)
{
	if (escaping)
		siglongjmp(escape, sig);
	signal(sig, SIG_DFL);
	raise(sig);
}

static void
catch_signals(void)
{
	struct sigaction sa = { .sa_handler = on_signal };

	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
}

/* 0 or the signal.  The word is read into *value, or written from it. */
static int
touch(uintptr_t va, bool write, uint64_t *value)
{
	volatile uint64_t *p = (volatile uint64_t *)va;
	const int sig = sigsetjmp(escape, 1);

	if (sig == 0) {
		escaping = 1;
		if (write)
			*p = *value;
		else
			*value = *p;
	}
	escaping = 0;
	return sig;
}

/* A thread that touches one word. */
struct toucher {
	pthread_t thread;
	uintptr_t va;
	bool write;
	uint64_t value;
	int sig;
};

static void *
toucher_main(void *arg)
{
	struct toucher *t = arg;

	t->sig = touch(t->va, t->write, &t->value);
	return NULL;
}

static void
start(struct toucher *t, uintptr_t va, bool write, uint64_t value)
{
	*t = (struct toucher){ .va = va, .write = write, .value = value, .sig = -1 };
	cr_assert(eq(int, pthread_create(&t->thread, NULL, toucher_main, t), 0));
}

static int
finish(struct toucher *t)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += DEADLINE;
	cr_assert(eq(int, pthread_timedjoin_np(t->thread, NULL, &until), 0),
		  "the thread that touches is stuck");
	return t->sig;
}

static struct pmap_fault
wait_fault(unsigned shard)
{
	struct pollfd p[2] = { { .fd = pmap_uffd_fd(pm, shard), .events = POLLIN },
			       { .fd = pmap_uffd_more_fd(pm, shard), .events = POLLIN } };
	struct pmap_fault f;

	cr_assert(gt(int, poll(p, 2, DEADLINE * 1000), 0), "no fault came");
	cr_assert(eq(uint, pm->ops->faults(pm, shard, &f, 1), 1));
	return f;
}

static unsigned
faults_left(void)
{
	struct pmap_fault f[8];

	return pm->ops->faults(pm, 0, f, 8) + pm->ops->faults(pm, 1, f, 8);
}

/* --- a process that shares the pool --- */

enum order { ORDER_READ, ORDER_WRITE, ORDER_UNMAP };

struct message {
	enum order order;
	size_t page;
	uint64_t value;
	int sig;
};

struct child {
	pid_t pid;
	int sock;
	uintptr_t va;
	unsigned shard;
};

static void
child_main(int sock, int file, uint64_t offset)
{
	struct message m;
	uintptr_t base;

	alarm(100);
	catch_signals();
	base = pool_child_map(pm, file, offset, NPAGES * PAGE_SIZE, sock);
	if (base == 0)
		_exit(1);
	while (read(sock, &m, sizeof m) == (ssize_t)sizeof m) {
		const uintptr_t va = base + m.page * PAGE_SIZE;

		if (m.order == ORDER_UNMAP)
			m.sig = munmap((void *)va, PAGE_SIZE);
		else
			m.sig = touch(va, m.order == ORDER_WRITE, &m.value);
		if (write(sock, &m, sizeof m) != (ssize_t)sizeof m)
			break;
	}
	_exit(0);
}

static void
child_start(struct child *c, unsigned near)
{
	uintptr_t va;
	uint64_t offset;
	int pair[2], fd, file;

	file = pmap_uffd_pool_fd(pm, pool, &offset);
	cr_assert(eq(int, socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0));
	cr_assert(eq(int, pm->ops->space_create(pm, near, &c->shard), 0));
	cr_assert(gt(uint, c->shard, PMAP_POOL));
	c->sock = pair[0];
	c->pid = fork();
	cr_assert(ge(int, c->pid, 0));
	if (c->pid == 0) {
		close(pair[0]);
		child_main(pair[1], file, offset);
	}
	close(pair[1]);
	fd = pool_child_hear(c->sock, DEADLINE, &c->va);
	cr_assert(ge(int, fd, 0), "no word from the child");
	cr_assert(
		eq(int,
		   pm->ops->pool_map(pm, pool, c->va, true, NPAGES * PAGE_SIZE, RW, c->shard, &va),
		   0));
	cr_assert(eq(sz, va, c->va));
	cr_assert(eq(int, pm->ops->space_attach(pm, c->shard, fd, c->pid), 0));
}

static void
order(struct child *c, enum order what, size_t i, uint64_t value)
{
	const struct message m = { .order = what, .page = i, .value = value };

	cr_assert(eq(sz, (size_t)write(c->sock, &m, sizeof m), sizeof m));
}

/* The signal that came of the last order, or 0 and the value. */
static int
answer(struct child *c, uint64_t *value)
{
	struct pollfd p = { .fd = c->sock, .events = POLLIN };
	struct message m;

	cr_assert(eq(int, poll(&p, 1, DEADLINE * 1000), 1), "the child is stuck");
	cr_assert(eq(sz, (size_t)read(c->sock, &m, sizeof m), sizeof m), "the child is gone");
	if (value != NULL)
		*value = m.value;
	return m.sig;
}

/* An order that needs nobody's help. */
static int
obey(struct child *c, enum order what, size_t i, uint64_t *value)
{
	order(c, what, i, *value);
	return answer(c, value);
}

static void
child_kill(struct child *c)
{
	kill(c->pid, SIGKILL);
	cr_assert(eq(int, waitpid(c->pid, NULL, 0), c->pid));
	c->pid = 0;
}

static void
child_end(struct child *c)
{
	if (c->pid != 0)
		child_kill(c);
	close(c->sock);
	pm->ops->space_detach(pm, c->shard);
	cr_assert(eq(int, pm->ops->unmap(pm, c->va, NPAGES * PAGE_SIZE, c->shard), 0));
	pm->ops->space_destroy(pm, c->shard);
}

/* --- pools in this process --- */

Test(pool, without_shared_memory_there_are_no_operations_for_it)
{
	pmap_make(UP_MASK_SHARED);
	cr_assert(eq(u64, pm->features & UP_MASK_SHARED, 0));
	cr_assert(pm->ops->pool_create == NULL && pm->ops->pool_destroy == NULL &&
		  pm->ops->pool_map == NULL && pm->ops->pool_referenced == NULL &&
		  pm->ops->pool_populate == NULL && pm->ops->space_create == NULL &&
		  pm->ops->space_destroy == NULL && pm->ops->space_attach == NULL &&
		  pm->ops->space_detach == NULL);
	cr_assert(eq(int, pmap_uffd_more_fd(pm, 0), -1));
	cr_assert(ne(ptr, strstr(logged, "shared memory: no"), NULL), "%s", logged);
	pm->ops->destroy(pm);
	pmap_make(0);
	cr_assert(ne(ptr, strstr(logged, "shared memory: yes"), NULL), "%s", logged);
	pm->ops->destroy(pm);
}

Test(pool, a_page_is_one_at_all_places_and_keeps_its_bytes_on_the_way_out_and_in)
{
	for (unsigned places = 1; places <= MAX_PLACES; places++) {
		rig_make(0, places);
		fill(0, 100);
		for (unsigned i = 0; i < places; i++)
			cr_assert(eq(u64, *word(i, 7), 1007));
		*word(places - 1, 99) = 77;
		take(0, 10, 100);
		cr_assert(eq(uint, frames_there(), 100));
		for (size_t k = 0; k < 99; k++)
			cr_assert(eq(u64, *(uint64_t *)pmap_frame(pm, 10 + (frame_t)k), 1000 + k));
		for (unsigned i = 0; i < places; i++)
			for (size_t k = 0; k < 100; k++)
				cr_assert(eq(int, there((uintptr_t)word(i, k)), 0));
		give(0, 10, 100);
		cr_assert(eq(uint, frames_there(), 0));
		/* Nothing stayed write-protected: nobody is here to serve that. */
		for (unsigned i = 0; i < places; i++) {
			cr_assert(eq(u64, *word(i, 99), 77));
			for (size_t k = 0; k < 99; k++)
				cr_assert(eq(u64, (*word(i, k))++, 1000 + k + i));
		}
		cr_assert(eq(uint, faults_left(), 0));
		rig_drop();
	}
}

Test(pool, a_touch_faults_where_it_was_and_what_enters_wakes_all_places, .init = catch_signals)
{
	struct toucher t[MAX_PLACES];

	for (unsigned zeroed = 0; zeroed < 2; zeroed++) {
		size_t done;

		rig_make(0, MAX_PLACES);
		fill(5, 1);
		take(5, 3, 1);
		for (unsigned i = 0; i < MAX_PLACES; i++) {
			struct pmap_fault f;

			start(&t[i], (uintptr_t)word(i, 5), i == 1, 1005);
			f = wait_fault(i % 2);
			cr_assert(eq(sz, f.va, (uintptr_t)word(i, 5)));
			cr_assert(eq(uint, f.shard, i % 2));
			cr_assert(eq(int, f.write, i == 1));
			cr_assert(eq(int, f.wp, 0));
		}
		if (zeroed) {
			pm->ops->frame_drop(pm, 3, 1);
			cr_assert(eq(int, pm->ops->zero(pm, PMAP_POOL, page(5), 1, &done), 0));
		} else {
			give(5, 3, 1);
		}
		for (unsigned i = 0; i < MAX_PLACES; i++)
			cr_assert(eq(int, finish(&t[i]), 0));
		cr_assert(zeroed || t[2].value == 1005);
		rig_drop();
	}
}

Test(pool, zero_and_enter_stop_at_a_page_that_is_there)
{
	size_t done;

	rig_make(0, 2);
	fill(3, 1);
	cr_assert(eq(int, pm->ops->zero(pm, PMAP_POOL, page(0), 6, &done), -EEXIST));
	cr_assert(eq(sz, done, 3));
	cr_assert(eq(u64, *word(1, 3), 1003));
	cr_assert(eq(int, pm->ops->frame_new(pm, 0, 4, &done), 0));
	cr_assert(eq(int, pm->ops->discard(pm, PMAP_POOL, page(0), 3), 0));
	cr_assert(eq(int, pm->ops->enter(pm, PMAP_POOL, page(1), 0, 4, &done), -EEXIST));
	cr_assert(eq(sz, done, 2));
	cr_assert(eq(uint, frames_there(), 2));
	pm->ops->frame_drop(pm, 2, 2);
	rig_drop();
}

Test(pool, remove_takes_pages_that_are_not_there_as_zeros)
{
	rig_make(0, 1);
	fill(1, 1);
	take(0, 0, 3);
	cr_assert(eq(u64, *(uint64_t *)pmap_frame(pm, 0), 0));
	cr_assert(eq(u64, *(uint64_t *)pmap_frame(pm, 1), 1001));
	cr_assert(eq(u64, *(uint64_t *)pmap_frame(pm, 2), 0));
	pm->ops->frame_drop(pm, 0, 3);
	rig_drop();
}

Test(pool, places_may_be_read_only_or_closed)
{
	rig_make(0, 3);
	fill(0, 8);
	cr_assert(eq(int, pm->ops->protect(pm, at[1], NPAGES * PAGE_SIZE, PROT_READ), 0));
	cr_assert(eq(int, pm->ops->protect(pm, at[2], NPAGES * PAGE_SIZE, PROT_NONE), 0));
	take(0, 0, 8);
	give(0, 0, 8);
	cr_assert(eq(u64, *word(1, 7), 1007));
	*word(0, 7) = 8;
	cr_assert(eq(u64, *word(1, 7), 8));
	rig_drop();
}

Test(pool, read_gives_what_is_there_and_zeros_elsewhere)
{
	uint64_t buf[PAGE_SIZE / 8];

	rig_make(0, 2);
	fill(4, 1);
	cr_assert(eq(int, pm->ops->protect(pm, at[0], NPAGES * PAGE_SIZE, PROT_NONE), 0));
	cr_assert(eq(int, pm->ops->read(pm, page(4), buf), 0));
	cr_assert(eq(u64, buf[0], 1004));
	cr_assert(eq(int, pm->ops->read(pm, page(5), buf), 0));
	cr_assert(eq(u64, buf[0], 0));
	cr_assert(eq(int, in_pool(5), 0));
	rig_drop();
}

Test(pool, discard_empties_all_places, .init = catch_signals)
{
	struct toucher t;

	rig_make(0, 3);
	fill(0, NPAGES);
	cr_assert(eq(u64, *word(2, 9), 1009));
	cr_assert(eq(int, pm->ops->discard(pm, PMAP_POOL, page(0), NPAGES), 0));
	for (size_t i = 0; i < NPAGES; i++)
		cr_assert(eq(int, in_pool(i), 0));
	start(&t, (uintptr_t)word(2, 9), false, 0);
	cr_assert(eq(sz, wait_fault(0).va, (uintptr_t)word(2, 9)));
	fill(9, 1);
	cr_assert(eq(int, finish(&t), 0));
	rig_drop();
}

Test(pool, wake_reaches_all_places, .init = catch_signals)
{
	struct toucher t[3];

	rig_make(0, 3);
	for (unsigned i = 0; i < 3; i++) {
		start(&t[i], (uintptr_t)word(i, 100), false, 0);
		wait_fault(i % 2);
	}
	pm->ops->wake(pm, PMAP_POOL, page(64), 64);
	/* They look again, and nothing is there. */
	for (unsigned i = 0; i < 3; i++)
		cr_assert(eq(sz, wait_fault(i == 1).va & PAGE_MASK, 0));
	fill(100, 1);
	for (unsigned i = 0; i < 3; i++)
		cr_assert(eq(int, finish(&t[i]), 0));
	rig_drop();
}

Test(pool, a_run_may_go_from_one_pool_to_its_neighbour)
{
	const size_t len = NPAGES * PAGE_SIZE;
	uintptr_t other[8], place;
	unsigned i, n = 0;
	size_t done;

	rig_make(0, 1);
	/* The kernel maps downwards, so before long two are neighbours. */
	do {
		cr_assert(eq(int, pm->ops->pool_create(pm, NPAGES, false, &other[n]), 0));
		for (i = 0; i < n && other[i] != other[n] + len; i++)
			;
	} while (i == n++ && n < ARRAY_SIZE(other));
	if (i < n - 1) {
		const uintptr_t last = other[n - 1] + len - 2 * PAGE_SIZE;

		cr_assert(
			eq(int, pm->ops->pool_map(pm, other[i], 0, false, len, RW, 0, &place), 0));
		cr_assert(eq(int, pm->ops->zero(pm, PMAP_POOL, last, 4, &done), 0));
		*(uint64_t *)(place + PAGE_SIZE) = 5;
		cr_assert(eq(int, pm->ops->remove(pm, PMAP_POOL, last, 0, 4, &done), 0));
		cr_assert(eq(u64, *(uint64_t *)pmap_frame(pm, 3), 5));
		cr_assert(eq(int, pm->ops->enter(pm, PMAP_POOL, last, 0, 4, &done), 0));
		cr_assert(eq(u64, *(uint64_t *)(place + PAGE_SIZE), 5));
		pm->ops->wake(pm, PMAP_POOL, last, 4);
		cr_assert(eq(int, pm->ops->discard(pm, PMAP_POOL, last, 4), 0));
		cr_assert(eq(int, pm->ops->unmap(pm, place, len, 0), 0));
	}
	while (n-- > 0)
		pm->ops->pool_destroy(pm, other[n]);
	rig_drop();
}

/* --- places come and go --- */

Test(pool, a_part_of_a_place_can_go, .init = catch_signals)
{
	struct toucher t, u;
	uint64_t value = 0;
	size_t count;

	rig_make(0, 2);
	fill(0, 40);
	take(20, 20, 1);
	start(&t, (uintptr_t)word(1, 20), true, 1);
	wait_fault(1);
	start(&u, (uintptr_t)word(0, 20), false, 1);
	wait_fault(0);
	count = zone_count(&records);
	cr_assert(eq(int, pm->ops->split(pm, 0, at[1] + 16 * PAGE_SIZE, 8 * PAGE_SIZE), 0));
	cr_assert(eq(sz, zone_count(&records), count + 2));
	/* Needs no record now. */
	atomic_store(&records.fail_in, 1);
	cr_assert(eq(int, pm->ops->unmap(pm, at[1] + 16 * PAGE_SIZE, 8 * PAGE_SIZE, 1), 0));
	atomic_store(&records.fail_in, 0);
	cr_assert(eq(sz, zone_count(&records), count + 1));
	cr_assert(eq(int, finish(&t), SIGSEGV));
	give(20, 20, 1);
	cr_assert(eq(int, finish(&u), 0));
	cr_assert(eq(u64, u.value, 1020));

	take(0, 0, 40);
	give(0, 0, 40);
	cr_assert(eq(u64, *word(1, 15), 1015));
	cr_assert(eq(u64, ++*word(1, 24), 1025));
	cr_assert(eq(int, touch((uintptr_t)word(1, 16), false, &value), SIGSEGV));
	cr_assert(eq(u64, *word(0, 16), 1016));
	cr_assert(eq(uint, faults_left(), 0));
	/* The rest goes in one call. */
	rig_drop();
}

Test(pool, a_place_may_show_a_part_of_the_pool)
{
	uintptr_t part;
	uint64_t offset = 0;

	rig_make(0, 1);
	cr_assert(eq(int, pm->ops->pool_map(pm, page(50), 0, false, 10 * PAGE_SIZE, RW, 1, &part),
		     0));
	fill(45, 20);
	cr_assert(eq(u64, *(uint64_t *)(part + 9 * PAGE_SIZE), 1059));
	take(45, 0, 20);
	give(45, 0, 20);
	cr_assert(eq(u64, (*(uint64_t *)part)++, 1050));
	cr_assert(eq(u64, *word(0, 50), 1051));
	cr_assert(ge(int, pmap_uffd_pool_fd(pm, page(50), &offset), 0));
	cr_assert(eq(u64, offset, 50 * PAGE_SIZE));
	cr_assert(eq(int, pmap_uffd_pool_fd(pm, part, &offset), -ENOENT));
	cr_assert(eq(int, pm->ops->unmap(pm, part, 10 * PAGE_SIZE, 1), 0));
	rig_drop();
}

Test(pool, a_fixed_place_does_not_replace_what_is_there)
{
	uintptr_t got;
	size_t count;

	rig_make(0, 2);
	count = zone_count(&records);
	cr_assert(
		eq(int, pm->ops->pool_map(pm, pool, at[1], true, PAGE_SIZE, RW, 0, &got), -EEXIST));
	cr_assert(eq(sz, zone_count(&records), count));
	cr_assert(eq(int, pm->ops->unmap(pm, at[1] + 8 * PAGE_SIZE, 8 * PAGE_SIZE, 1), 0));
	cr_assert(eq(int,
		     pm->ops->pool_map(pm, page(8), at[1] + 8 * PAGE_SIZE, true, 8 * PAGE_SIZE, RW,
				       1, &got),
		     0));
	cr_assert(eq(sz, got, at[1] + 8 * PAGE_SIZE));
	rig_drop();
}

Test(pool, without_metadata_nothing_is_made)
{
	uintptr_t va;
	unsigned shard;
	size_t count;

	rig_make(0, 1);
	count = zone_count(&records);
	atomic_store(&records.fail_in, 1);
	cr_assert(eq(int, pm->ops->pool_create(pm, 4, false, &va), -ENOMEM));
	atomic_store(&records.fail_in, 1);
	cr_assert(eq(int, pm->ops->pool_map(pm, pool, 0, false, PAGE_SIZE, RW, 0, &va), -ENOMEM));
	atomic_store(&records.fail_in, 1);
	cr_assert(eq(int, pm->ops->space_create(pm, 0, &shard), -ENOMEM));
	for (unsigned nth = 1; nth <= 2; nth++) {
		atomic_store(&records.fail_in, nth);
		cr_assert(eq(int, pm->ops->split(pm, 0, at[0] + 8 * nth * PAGE_SIZE, PAGE_SIZE),
			     -ENOMEM));
	}
	atomic_store(&records.fail_in, 0);
	cr_assert(ge(sz, zone_count(&records), count));
	fill(0, NPAGES);
	rig_drop();
}

static int
child_looks(void)
{
	uint64_t value = 0;

	if (touch(pool, false, &value) != SIGSEGV)
		return 1;
	return touch(at[0], false, &value) == SIGSEGV ? 0 : 2;
}

Test(pool, a_forked_child_has_neither_places_nor_the_alias, .init = catch_signals)
{
	int status;
	pid_t pid;

	rig_make(0, 1);
	fill(0, 1);
	pid = fork();
	if (pid == 0) {
		alarm(DEADLINE);
		_exit(child_looks());
	}
	cr_assert(eq(int, waitpid(pid, &status, 0), pid));
	cr_assert(eq(int, status, 0));
	rig_drop();
}

/* --- what was touched --- */

Test(pool, referenced_counts_the_places_that_saw_it_since)
{
	rig_make(0, 3);
	fill(0, 2);
	cr_assert(eq(uint, pm->ops->pool_referenced(pm, page(0)), 1)); /* fill() wrote */
	cr_assert(eq(uint, pm->ops->pool_referenced(pm, page(0)), 0));
	cr_assert(eq(u64, *word(1, 0), 1000));
	cr_assert(eq(u64, *word(2, 0), 1000));
	cr_assert(eq(uint, pm->ops->pool_referenced(pm, page(0)), 2));
	cr_assert(eq(uint, pm->ops->pool_referenced(pm, page(1)), 1));
	cr_assert(in_pool(0));
	cr_assert(eq(uint, pm->ops->pool_referenced(pm, page(7)), 0));
	rig_drop();
}

Test(pool, populate_maps_what_is_there_and_waits_for_nothing)
{
	for (unsigned write = 0; write < 2; write++) {
		rig_make(0, 2);
		fill(3, 4);
		fill(9, 1);
		pm->ops->pool_populate(pm, 1, at[1] + PAGE_SIZE, 20 * PAGE_SIZE, write);
		for (size_t i = 0; i < 24; i++)
			cr_assert(
				eq(int, there((uintptr_t)word(1, i)), (i >= 3 && i < 7) || i == 9));
		cr_assert(eq(int, in_pool(8), 0));
		rig_drop();
	}
}

/* --- lost pages --- */

static const uint64_t poison_modes[] = { 0, UP_MASK_POISON };

Test(pool, a_poisoned_page_is_sigbus_at_all_places_until_discarded, .init = catch_signals)
{
	for (size_t m = 0; m < ARRAY_SIZE(poison_modes); m++) {
		for (unsigned places = 1; places <= MAX_PLACES; places++) {
			struct toucher t;
			uint64_t value = 0;

			rig_make(poison_modes[m], places);
			fill(0, 8);
			take(5, 5, 1);
			pm->ops->frame_drop(pm, 5, 1);
			start(&t, (uintptr_t)word(places - 1, 5), false, 0);
			wait_fault((places - 1) % 2);
			cr_assert(eq(int, pm->ops->poison(pm, PMAP_POOL, page(5)), 0));
			cr_assert(eq(int, finish(&t), SIGBUS));
			cr_assert(eq(int, pm->ops->poison(pm, PMAP_POOL, page(5)), -EEXIST));
			for (unsigned i = 0; i < places; i++) {
				cr_assert(eq(int, touch((uintptr_t)word(i, 5), i % 2, &value),
					     SIGBUS));
				cr_assert(eq(u64, *word(i, 4), 1004));
				cr_assert(eq(u64, *word(i, 6), 1006));
			}
			cr_assert(eq(int, pm->ops->discard(pm, PMAP_POOL, page(4), 3), 0));
			for (unsigned i = 0; i < places; i++) {
				start(&t, (uintptr_t)word(i, 5), i % 2, 1005);
				cr_assert(eq(sz, wait_fault(i % 2).va, (uintptr_t)word(i, 5)));
				fill(5, 1);
				cr_assert(eq(int, finish(&t), 0));
				cr_assert(eq(int, pm->ops->discard(pm, PMAP_POOL, page(5), 1), 0));
			}
			cr_assert(eq(int, in_pool(5), 0));
			rig_drop();
		}
	}
}

Test(pool, a_page_that_is_there_is_not_poisoned)
{
	for (size_t m = 0; m < ARRAY_SIZE(poison_modes); m++) {
		rig_make(poison_modes[m], 2);
		fill(3, 1);
		/* Also where nobody has looked yet: place 1. */
		cr_assert(eq(int, pm->ops->poison(pm, PMAP_POOL, page(3)), -EEXIST));
		cr_assert(eq(u64, *word(1, 3), 1003));
		rig_drop();
	}
}

Test(pool, a_place_that_comes_later_is_poisoned_by_its_own_fault, .init = catch_signals)
{
	for (size_t m = 0; m < ARRAY_SIZE(poison_modes); m++) {
		struct toucher t;
		uintptr_t late;

		rig_make(poison_modes[m], 1);
		cr_assert(eq(int, pm->ops->poison(pm, PMAP_POOL, page(3)), 0));
		cr_assert(eq(int,
			     pm->ops->pool_map(pm, pool, 0, false, 8 * PAGE_SIZE, RW, 1, &late),
			     0));
		start(&t, late + 3 * PAGE_SIZE, true, 1);
		wait_fault(1);
		cr_assert(eq(int, pm->ops->poison(pm, PMAP_POOL, page(3)), 0));
		cr_assert(eq(int, finish(&t), SIGBUS));
		cr_assert(eq(int, pm->ops->poison(pm, PMAP_POOL, page(3)), -EEXIST));
		cr_assert(eq(int, pm->ops->unmap(pm, late, 8 * PAGE_SIZE, 1), 0));
		rig_drop();
	}
}

Test(pool, who_is_given_the_file_of_a_pool_apart_sees_no_other_and_can_not_cut_it)
{
	uintptr_t other[2];
	struct stat st[2];
	uint64_t offset;
	int fd[2];

	rig_make(0, 1);
	for (unsigned i = 0; i < 2; i++) {
		cr_assert(eq(int, pm->ops->pool_create(pm, 16, true, &other[i]), 0));
		fd[i] = pmap_uffd_pool_fd(pm, other[i] + 3 * PAGE_SIZE, &offset);
		cr_assert(ge(int, fd[i], 0));
		cr_assert(eq(u64, offset, 3 * PAGE_SIZE));
		cr_assert(fstat(fd[i], &st[i]) == 0);
		cr_assert(eq(u64, (uint64_t)st[i].st_size, 16 * PAGE_SIZE));
		cr_assert(ftruncate(fd[i], 0) < 0 && errno == EPERM);
		cr_assert(ftruncate(fd[i], 1 << 20) < 0 && errno == EPERM);
		cr_assert(fcntl(fd[i], F_ADD_SEALS, F_SEAL_WRITE) < 0 && errno == EPERM);
	}
	cr_assert(st[0].st_ino != st[1].st_ino);
	fd[0] = pmap_uffd_pool_fd(pm, pool, &offset);
	cr_assert(fstat(fd[0], &st[0]) == 0 && st[0].st_ino != st[1].st_ino);
	for (unsigned i = 0; i < 2; i++)
		pm->ops->pool_destroy(pm, other[i]);
	/* And the descriptor went with it. */
	cr_assert(fcntl(fd[1], F_GETFD) < 0 && errno == EBADF);
	rig_drop();
}

/* --- another process --- */

Test(pool, another_process_sees_the_pool_and_its_faults_come_here, .init = catch_signals)
{
	struct child c;
	struct pmap_fault f;
	uint64_t value = 0;

	rig_make(0, 2);
	fill(0, 70);
	child_start(&c, 1);
	cr_assert(eq(int, obey(&c, ORDER_READ, 3, &value), 0));
	cr_assert(eq(u64, value, 1003));
	value = 5;
	cr_assert(eq(int, obey(&c, ORDER_WRITE, 3, &value), 0));
	cr_assert(eq(u64, *word(1, 3), 5));

	take(0, 0, 70);
	order(&c, ORDER_READ, 3, 0);
	f = wait_fault(1);
	cr_assert(eq(uint, f.shard, c.shard));
	cr_assert(eq(sz, f.va, c.va + 3 * PAGE_SIZE));
	cr_assert(eq(int, f.write || f.wp, 0));
	/* It looks again. */
	pm->ops->wake(pm, c.shard, f.va, 1);
	f = wait_fault(1);
	cr_assert(eq(sz, f.va, c.va + 3 * PAGE_SIZE));
	pm->ops->wake(pm, PMAP_POOL, page(3), 1);
	wait_fault(1);
	give(0, 0, 70);
	cr_assert(eq(int, answer(&c, &value), 0));
	cr_assert(eq(u64, value, 5));
	value = 6;
	cr_assert(eq(int, obey(&c, ORDER_WRITE, 60, &value), 0));
	cr_assert(eq(u64, *word(0, 60), 6));
	cr_assert(eq(uint, faults_left(), 0));
	child_end(&c);
	fill(70, 1);
	rig_drop();
}

Test(pool, pages_leave_also_if_only_another_process_maps_them)
{
	struct child c;
	uint64_t value = 9;
	size_t done;

	rig_make(0, 0);
	child_start(&c, 0);
	cr_assert(eq(int, pm->ops->zero(pm, PMAP_POOL, page(0), 4, &done), 0));
	cr_assert(eq(int, obey(&c, ORDER_WRITE, 2, &value), 0));
	cr_assert(eq(uint, pm->ops->pool_referenced(pm, page(2)), 0));
	pm->ops->pool_populate(pm, c.shard, c.va, 4 * PAGE_SIZE, true);
	take(0, 0, 4);
	cr_assert(eq(u64, *(uint64_t *)pmap_frame(pm, 2), 9));
	order(&c, ORDER_READ, 2, 0);
	cr_assert(eq(uint, wait_fault(0).shard, c.shard));
	give(0, 0, 4);
	cr_assert(eq(int, answer(&c, &value), 0));
	cr_assert(eq(u64, value, 9));
	child_end(&c);
	rig_drop();
}

Test(pool, every_space_has_its_turn)
{
	struct child c[3];
	unsigned seen = 0;

	rig_make(0, 1);
	for (unsigned i = 0; i < 3; i++) {
		child_start(&c[i], 0);
		order(&c[i], ORDER_READ, i, 0);
	}
	while (seen != 7) {
		const struct pmap_fault f = wait_fault(0);

		for (unsigned i = 0; i < 3; i++)
			if (f.shard == c[i].shard) {
				cr_assert(eq(sz, f.va, c[i].va + i * PAGE_SIZE));
				cr_assert(eq(uint, seen & 1u << i, 0), "twice");
				seen |= 1u << i;
			}
	}
	fill(0, 3);
	for (unsigned i = 0; i < 3; i++) {
		cr_assert(eq(int, answer(&c[i], NULL), 0));
		child_end(&c[i]);
	}
	rig_drop();
}

Test(pool, a_lost_page_stays_sigbus_in_another_process)
{
	struct child c[2];
	uint64_t value = 0;

	rig_make(0, 1);
	if (!(pm->features & UP_MASK_POISON))
		cr_skip_test("no UFFDIO_POISON");
	child_start(&c[0], 0);
	child_start(&c[1], 1);
	order(&c[0], ORDER_READ, 5, 0);
	wait_fault(0);
	cr_assert(eq(int, pm->ops->poison(pm, PMAP_POOL, page(5)), 0));
	cr_assert(eq(int, answer(&c[0], NULL), SIGBUS));
	cr_assert(eq(int, obey(&c[1], ORDER_WRITE, 5, &value), SIGBUS));
	cr_assert(eq(int, pm->ops->discard(pm, PMAP_POOL, page(0), NPAGES), 0));
	cr_assert(eq(int, in_pool(5), 0));
	/* Not zeros, not for an instant, and not what comes afterwards. */
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < 2; i++)
			cr_assert(eq(int, obey(&c[i], ORDER_READ, 5, &value), SIGBUS));
		if (round == 0)
			fill(4, 2);
	}
	for (unsigned i = 0; i < 2; i++) {
		cr_assert(eq(int, obey(&c[i], ORDER_READ, 4, &value), 0), "child %u", i);
		child_end(&c[i]);
	}
	rig_drop();
}

Test(pool, without_poison_the_other_process_as_a_whole_gets_the_sigbus, .init = catch_signals)
{
	struct child c;
	uint64_t value = 0;

	rig_make(UP_MASK_POISON, 1);
	child_start(&c, 0);
	order(&c, ORDER_READ, 5, 0);
	wait_fault(0);
	cr_assert(eq(int, pm->ops->poison(pm, PMAP_POOL, page(5)), 0));
	cr_assert(eq(int, answer(&c, NULL), SIGBUS)); /* it has a handler; else it were dead */
	cr_assert(eq(int, touch((uintptr_t)word(0, 5), false, &value), SIGBUS));
	cr_assert(eq(int, pm->ops->discard(pm, PMAP_POOL, page(5), 1), 0));
	fill(5, 1);
	child_end(&c);
	rig_drop();
}

Test(pool, a_process_that_is_gone_holds_nothing_up)
{
	struct child c;
	size_t done;

	rig_make(0, 1);
	child_start(&c, 0);
	fill(0, 64);
	order(&c, ORDER_READ, 100, 0);
	wait_fault(0);
	child_kill(&c);
	take(0, 0, 64);
	give(0, 0, 64);
	cr_assert(eq(u64, (*word(0, 63))++, 1063));
	cr_assert(eq(int, pm->ops->zero(pm, PMAP_POOL, page(100), 1, &done), 0));
	cr_assert(eq(int, pm->ops->discard(pm, PMAP_POOL, page(100), 1), 0));
	cr_assert(eq(int, pm->ops->poison(pm, PMAP_POOL, page(100)), 0));
	cr_assert(eq(int, pm->ops->discard(pm, PMAP_POOL, page(100), 1), 0));
	pm->ops->wake(pm, PMAP_POOL, page(0), NPAGES);
	pm->ops->wake(pm, c.shard, c.va, 1);
	cr_assert(eq(uint, faults_left(), 0));
	child_end(&c);
	rig_drop();
}

Test(pool, what_another_process_unmaps_by_itself_does_not_stay)
{
	struct child c;
	uint64_t value = 0;

	rig_make(0, 1);
	child_start(&c, 0);
	fill(0, 16);
	cr_assert(eq(int, obey(&c, ORDER_UNMAP, 4, &value), 0));
	cr_assert(eq(int, obey(&c, ORDER_UNMAP, 15, &value), 0));
	take(0, 0, 16);
	take(16, 16, 1);
	pm->ops->frame_drop(pm, 16, 1);
	give(0, 0, 16);
	value = 3;
	cr_assert(eq(int, obey(&c, ORDER_WRITE, 5, &value), 0));
	cr_assert(eq(u64, *word(0, 5), 3));
	cr_assert(eq(int, obey(&c, ORDER_READ, 4, &value), SIGSEGV));
	/* We are told. */
	cr_assert(eq(int, pm->ops->unmap(pm, c.va + 4 * PAGE_SIZE, PAGE_SIZE, c.shard), 0));
	child_end(&c);
	rig_drop();
}

Test(pool, a_space_without_a_process_is_left_out)
{
	uintptr_t va;
	unsigned shard;
	int fd;

	rig_make(0, 1);
	cr_assert(eq(int, pm->ops->space_create(pm, 1, &shard), 0));
	cr_assert(eq(int,
		     pm->ops->pool_map(pm, pool, 0x10000, true, NPAGES * PAGE_SIZE, RW, shard, &va),
		     0));
	fill(0, 4);
	take(0, 0, 4);
	give(0, 0, 4);
	pm->ops->wake(pm, shard, va, 1);
	/* What is no userfaultfd is refused, and closed. */
	fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	cr_assert(eq(int, pm->ops->space_attach(pm, shard, fd, getpid()), -EPERM));
	cr_assert(eq(int, fcntl(fd, F_GETFD), -1));
	pm->ops->space_detach(pm, shard);
	cr_assert(eq(int, pm->ops->unmap(pm, va, NPAGES * PAGE_SIZE, shard), 0));
	pm->ops->space_destroy(pm, shard);
	rig_drop();
}

Test(pool, there_are_4096_spaces_and_numbers_are_used_again)
{
	unsigned shard, last = 0;

	rig_make(0, 0);
	for (unsigned i = 0; i < 4096; i++) {
		cr_assert(eq(int, pm->ops->space_create(pm, i % 2, &shard), 0));
		cr_assert(gt(uint, shard, MAX(PMAP_POOL, last)));
		last = shard;
	}
	cr_assert(lt(uint, last, PMAP_POOL + 1 + 4096));
	cr_assert(eq(int, pm->ops->space_create(pm, 0, &shard), -ENOMEM));
	pm->ops->space_destroy(pm, last - 7);
	cr_assert(eq(int, pm->ops->space_create(pm, 0, &shard), 0));
	cr_assert(eq(uint, shard, last - 7));
	for (unsigned s = PMAP_POOL + 1; s <= last; s++)
		pm->ops->space_destroy(pm, s);
	rig_drop();
}
