/* SPDX-License-Identifier: BSD-2-Clause */
#include "pmap/removal.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/base.h"

struct removals *
removals_create(int told)
{
	struct removals *r = calloc(1, sizeof *r);

	if (r != NULL)
		r->told = told;
	return r;
}

void
removals_destroy(struct removals *r)
{
	free(r);
}

/* Where the n-th oldest is. */
static unsigned
nth(const struct removals *r, unsigned n)
{
	return (r->first + n) % REMOVALS_MAX;
}

bool
removals_room(const struct removals *r, unsigned n)
{
	return r->nnew + n <= REMOVALS_MAX;
}

static void
forget_first(struct removals *r)
{
	assert(r->nheld > 0);
	r->first = (r->first + 1) % REMOVALS_MAX;
	r->nheld--;
}

void
removals_add(struct removals *r, uintptr_t start, uintptr_t end, uint64_t now)
{
	const uint64_t one = 1;

	assert(removals_room(r, 1));
	/* So many a second: the oldest are held for less. */
	if (r->nheld + r->nnew == REMOVALS_MAX)
		forget_first(r);
	r->ring[nth(r, r->nheld + r->nnew++)] = (struct removal){ start, end, now };
	if (write(r->told, &one, sizeof one) < 0)
		assert(errno == EAGAIN);
}

bool
removals_forbid(const struct removals *r, uintptr_t start, uintptr_t end, bool out, uint64_t now)
{
	for (unsigned i = out ? 0 : r->nheld; i < r->nheld + r->nnew; i++) {
		const struct removal *a = &r->ring[nth(r, i)];

		if (a->start < end && start < a->end &&
		    (i >= r->nheld || now - a->when < REMOVAL_HOLD_NS))
			return true;
	}
	return false;
}

int
removals_next(const struct removals *r, uint64_t now, struct removal *next, bool *over)
{
	*over = r->nnew == 0;
	if (r->nheld + r->nnew == 0)
		return 0;
	if (*over && now - r->ring[r->first].when < REMOVAL_HOLD_NS)
		return -EAGAIN;
	*next = r->ring[nth(r, *over ? 0 : r->nheld)];
	return 1;
}

void
removals_done(struct removals *r, bool over)
{
	if (over) {
		forget_first(r);
	} else {
		assert(r->nnew > 0);
		r->nheld++;
		r->nnew--;
	}
}
