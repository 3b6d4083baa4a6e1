/* SPDX-License-Identifier: BSD-2-Clause */
/* test_removal.c: what guests say that they remove (pmap/removal.h), and what is left of it when the process is killed. */
#include "assertions.h"
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/base.h"
#include "pager/less.h"
#include "pager/source.h"
#include "pmap/removal.h"

TestSuite(removal, .timeout = 30);

#define HOLD REMOVAL_HOLD_NS

static int file, told;
static struct removals *r;

static void
up(void)
{
	told = eventfd(0, EFD_NONBLOCK);
	file = removals_file();
	cr_assert(ge(int, told, 0));
	cr_assert(ge(int, file, 0));
	cr_assert(zero(int, removals_open(file, told, &r)));
}

static void
down(void)
{
	removals_close(r);
	close(file);
	close(told);
}

/* Another process opens it, and this one is gone without a word. */
static void
killed(void)
{
	struct removals *next;

	cr_assert(zero(int, removals_open(file, told, &next)));
	removals_close(r);
	r = next;
}

static void
expect(int ret, uintptr_t start, bool over, uint64_t now)
{
	struct removal next = { 0 };
	bool is;

	cr_assert(eq(int, removals_next(r, now, &next, &is), ret));
	if (ret == 1) {
		cr_assert(eq(ulong, next.start, start));
		cr_assert(eq(int, is, over));
	}
}

static struct uffd_msg
says(uint8_t event, uint64_t start, uint64_t end)
{
	struct uffd_msg m = { .event = event };

	m.arg.remove.start = start;
	m.arg.remove.end = end;
	return m;
}

Test(removal, nothing_goes_in_until_it_is_put_right_and_nothing_out_for_a_second, .init = up,
     .fini = down)
{
	uint64_t n;

	expect(0, 0, false, 0);
	removals_add(r, 0x1000, 0x3000, 5);
	cr_assert(eq(sz, (size_t)read(told, &n, sizeof n), sizeof n));
	for (int out = 0; out < 2; out++) {
		cr_assert(removals_forbid(r, 0x2000, 0x4000, out, 5 + 2 * HOLD));
		cr_assert(not(removals_forbid(r, 0x3000, 0x4000, out, 5)));
		cr_assert(not(removals_forbid(r, 0, 0x1000, out, 5)));
	}
	expect(1, 0x1000, false, 6);
	removals_done(r, false);
	cr_assert(not(removals_forbid(r, 0x2000, 0x4000, false, 6)));
	cr_assert(removals_forbid(r, 0x2000, 0x4000, true, 4 + HOLD));
	expect(-EAGAIN, 0, true, 4 + HOLD);
	cr_assert(not(removals_forbid(r, 0x2000, 0x4000, true, 5 + HOLD)));
	expect(1, 0x1000, true, 5 + HOLD);
	removals_done(r, true);
	expect(0, 0, false, 5 + HOLD);
}

Test(removal, a_successor_finds_all_of_it, .init = up, .fini = down)
{
	removals_add(r, 0x1000, 0x2000, 1);
	removals_add(r, 0x5000, 0x6000, 2);
	removals_done(r, false);
	killed();
	cr_assert(removals_forbid(r, 0x5000, 0x6000, false, 3));
	cr_assert(not(removals_forbid(r, 0x1000, 0x2000, false, 3)));
	cr_assert(removals_forbid(r, 0x1000, 0x2000, true, 3));
	expect(1, 0x5000, false, 3);
	removals_done(r, false);
	killed();
	expect(1, 0x1000, true, 1 + HOLD);
	removals_done(r, true);
	killed();
	expect(-EAGAIN, 0, true, 1 + HOLD);
	expect(1, 0x5000, true, 2 + HOLD);
}

Test(removal, what_was_read_and_not_acted_upon_is_acted_upon, .init = up, .fini = down)
{
	const uint64_t before = now_ns();

	r->kept->heard[0] = says(UFFD_EVENT_PAGEFAULT, 0x7000, 0x8000);
	r->kept->heard[2] = says(UFFD_EVENT_REMOVE, 0x1000, 0x2000);
	r->kept->heard[REMOVALS_HEARD - 1] = says(UFFD_EVENT_REMOVE, 0x3000, 0x4000);
	killed();
	cr_assert(removals_forbid(r, 0x1000, 0x2000, false, before));
	cr_assert(removals_forbid(r, 0x3000, 0x4000, false, before));
	cr_assert(not(removals_forbid(r, 0x7000, 0x8000, false, before)));
	expect(1, 0x1000, false, before);
	removals_done(r, false);
	removals_done(r, false);
	/* Once. */
	killed();
	expect(-EAGAIN, 0, true, now_ns());
}

Test(removal, one_that_was_added_and_not_struck_out_takes_no_second_place, .init = up, .fini = down)
{
	/* As the process that was killed has left it: the room is for what is read, and no more. */
	for (unsigned i = 0; i < REMOVALS_MAX - REMOVALS_HEARD; i++)
		removals_add(r, 0, 0x1000, 1);
	for (unsigned i = 0; i < REMOVALS_HEARD; i++)
		r->kept->heard[i] = says(UFFD_EVENT_REMOVE, (i + 1) << 12, (i + 2) << 12);
	removals_add(r, 0x1000, 0x2000, 1);
	killed();
	for (uintptr_t i = 1; i <= REMOVALS_HEARD; i++)
		cr_assert(removals_forbid(r, i << 12, (i + 1) << 12, false, now_ns()), "%lu",
			  (unsigned long)i);
}

Test(removal, the_oldest_are_held_for_less_when_there_are_too_many, .init = up, .fini = down)
{
	for (unsigned i = 0; i < 3 * REMOVALS_MAX; i++) {
		cr_assert(removals_room(r, 1));
		removals_add(r, (uintptr_t)i << 12, (uintptr_t)(i + 1) << 12, 1);
		removals_done(r, false);
	}
	killed();
	cr_assert(not(removals_forbid(r, 0, (uintptr_t)(2 * REMOVALS_MAX) << 12, true, 1)));
	for (uintptr_t i = 2 * REMOVALS_MAX; i < 3 * REMOVALS_MAX; i++)
		cr_assert(removals_forbid(r, i << 12, (i + 1) << 12, true, 1));
	for (unsigned i = 0; i < REMOVALS_MAX; i++)
		removals_add(r, 0, 0x1000, 1);
	cr_assert(not(removals_room(r, 1)));
	expect(1, 0, false, 1);
}

Test(removal, a_file_of_something_else_is_refused, .init = up, .fini = down)
{
	struct removals *other = NULL;
	const uint64_t state = UINT64_C(700) << 16 | UINT64_C(700) << 32;

	cr_assert(eq(int, removals_open(told, told, &other), -EINVAL));
	atomic_store(&r->kept->state, state);
	cr_assert(eq(int, removals_open(file, told, &other), -EINVAL));
	atomic_store(&r->kept->state, REMOVALS_MAX);
	cr_assert(eq(int, removals_open(file, told, &other), -EINVAL));
	atomic_store(&r->kept->state, 0);
	r->kept->size++;
	cr_assert(eq(int, removals_open(file, told, &other), -EINVAL));
	r->kept->size--;
	cr_assert(zero(int, ftruncate(file, 4096)));
	cr_assert(eq(int, removals_open(file, told, &other), -EINVAL));
	cr_assert(zero(int, ftruncate(file, sizeof *r->kept)));
}

/* --- less.h --- */

static unsigned ndestroyed;

static void
destroyed(struct source *src)
{
	(void)src;
	ndestroyed++;
}

static const struct source_ops beneath_ops = { .name = "beneath", .destroy = destroyed };

static struct source *
less_of(int fd)
{
	static struct source beneath = { .ops = &beneath_ops, .bytes = 200 * PAGE_SIZE + 1 };
	struct source *src;

	cr_assert(zero(int, less_source(&beneath, fd, &src)));
	return src;
}

Test(removal, what_a_guest_has_removed_of_its_source_a_successor_knows)
{
	const int fd = less_file(200 * PAGE_SIZE + 1);
	uint64_t before, after;
	struct source *src = less_of(fd), *next;

	less_remove(src, 3, 2);
	less_remove(src, 200, 1);
	next = less_of(fd);
	for (uint64_t i = 0; i <= 200; i++) {
		const bool is = i != 3 && i != 4 && i != 200;

		cr_assert(eq(int, next->ops->has(next, i, &before, &after), is), "page %lu",
			  (unsigned long)i);
	}
	cr_assert(not(zero(int, next->ops->has(next, 0, &before, &after))));
	cr_assert(eq(u64, after, 2));
	src->ops->destroy(src);
	next->ops->destroy(next);
	/* And one that nobody is to succeed does not. */
	src = less_of(-1);
	cr_assert(not(zero(int, src->ops->has(src, 3, &before, &after))));
	src->ops->destroy(src);
	cr_assert(eq(uint, ndestroyed, 3));
	close(fd);
}

Test(removal, bits_of_another_source_are_refused)
{
	static struct source beneath = { .ops = &beneath_ops, .bytes = (uint64_t)1 << 40 };
	const int fd = less_file(PAGE_SIZE);
	struct source *src;

	cr_assert(eq(int, less_source(&beneath, fd, &src), -EINVAL));
	cr_assert(eq(uint, ndestroyed, 1));
	close(fd);
}
