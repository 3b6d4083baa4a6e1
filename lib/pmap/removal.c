/* SPDX-License-Identifier: BSD-2-Clause */
#include "pmap/removal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"

/* The state in its parts. */
struct state {
	unsigned first, nheld, nnew;
};

static struct state
state_of(const struct removals *r)
{
	const uint64_t s = atomic_load_explicit(&r->kept->state, memory_order_relaxed);

	return (struct state){ s & 0xffff, s >> 16 & 0xffff, s >> 32 & 0xffff };
}

static void
set_state(struct removals *r, struct state s)
{
	stores_in_order();
	atomic_store_explicit(&r->kept->state,
			      (uint64_t)s.first | (uint64_t)s.nheld << 16 | (uint64_t)s.nnew << 32,
			      memory_order_relaxed);
	stores_in_order();
}

int
removals_file(void)
{
	const uint32_t size = sizeof(struct removals_kept);
	const int fd = memfd_create("uffd-pager-removals", MFD_CLOEXEC);
	int r;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)size) == 0 && pwrite(fd, &size, sizeof size, 0) == sizeof size)
		return fd;
	r = errno != 0 ? -errno : -EIO;
	close(fd);
	return r;
}

int
removals_open(int fd, int told, struct removals **out)
{
	struct removals *r;
	struct stat st;
	struct state s;

	if (fstat(fd, &st) < 0 || st.st_size != (off_t)sizeof(struct removals_kept))
		return -EINVAL;
	r = malloc(sizeof *r);
	if (r == NULL)
		return -ENOMEM;
	r->told = told;
	r->kept = mmap(NULL, sizeof *r->kept, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (r->kept == MAP_FAILED) {
		free(r);
		return -ENOMEM;
	}
	s = state_of(r);
	if (r->kept->size != sizeof *r->kept || s.first >= REMOVALS_MAX ||
	    s.nheld + s.nnew > REMOVALS_MAX) {
		removals_close(r);
		return -EINVAL;
	}
	/* A child has no part in it. */
	(void)madvise(r->kept, sizeof *r->kept, MADV_DONTFORK);
	removals_hear(r, now_ns());
	*out = r;
	return 0;
}

void
removals_close(struct removals *r)
{
	if (r == NULL)
		return;
	munmap(r->kept, sizeof *r->kept);
	free(r);
}

/* The n-th oldest. */
static struct removal *
nth(const struct removals *r, const struct state *s, unsigned n)
{
	return &r->kept->ring[(s->first + n) % REMOVALS_MAX];
}

bool
removals_room(const struct removals *r, unsigned n)
{
	return state_of(r).nnew + n <= REMOVALS_MAX;
}

static struct state
without_first(struct state s)
{
	assert(s.nheld > 0);
	s.first = (s.first + 1) % REMOVALS_MAX;
	s.nheld--;
	return s;
}

void
removals_add(struct removals *r, uintptr_t start, uintptr_t end, uint64_t now)
{
	const uint64_t one = 1;
	struct state s = state_of(r);

	assert(s.nnew < REMOVALS_MAX);
	/* So many a second: the oldest are held for less. */
	if (s.nheld + s.nnew == REMOVALS_MAX) {
		s = without_first(s);
		set_state(r, s);
	}
	*nth(r, &s, s.nheld + s.nnew) = (struct removal){ start, end, now };
	s.nnew++;
	set_state(r, s);
	if (write(r->told, &one, sizeof one) < 0)
		assert(errno == EAGAIN);
}

static bool
is_newest(const struct removals *r, const struct uffd_msg *m)
{
	const struct state s = state_of(r);
	const struct removal *const last = nth(r, &s, s.nheld + s.nnew - 1);

	return s.nnew > 0 && last->start == m->arg.remove.start && last->end == m->arg.remove.end;
}

void
removals_hear(struct removals *r, uint64_t now)
{
	for (unsigned i = 0; i < REMOVALS_HEARD; i++) {
		struct uffd_msg *m = &r->kept->heard[i];

		/* By a process that was killed in between it was added, but not struck out. */
		if (m->event == UFFD_EVENT_REMOVE && !is_newest(r, m))
			removals_add(r, (uintptr_t)m->arg.remove.start,
				     (uintptr_t)m->arg.remove.end, now);
		m->event = 0;
		stores_in_order();
	}
}

bool
removals_forbid(const struct removals *r, uintptr_t start, uintptr_t end, bool out, uint64_t now)
{
	const struct state s = state_of(r);

	for (unsigned i = out ? 0 : s.nheld; i < s.nheld + s.nnew; i++) {
		const struct removal *a = nth(r, &s, i);

		if (a->start < end && start < a->end &&
		    (i >= s.nheld || now - a->when < REMOVAL_HOLD_NS))
			return true;
	}
	return false;
}

int
removals_next(const struct removals *r, uint64_t now, struct removal *next, bool *over)
{
	const struct state s = state_of(r);

	*over = s.nnew == 0;
	if (s.nheld + s.nnew == 0)
		return 0;
	if (*over && now - nth(r, &s, 0)->when < REMOVAL_HOLD_NS)
		return -EAGAIN;
	*next = *nth(r, &s, *over ? 0 : s.nheld);
	return 1;
}

void
removals_done(struct removals *r, bool over)
{
	struct state s = state_of(r);

	if (over) {
		s = without_first(s);
	} else {
		assert(s.nnew > 0);
		s.nheld++;
		s.nnew--;
	}
	set_state(r, s);
}
