/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * textbook.c: what the library's policies are held against.
 *
 * The optimum is a bound: no policy that brings in a page only when it is touched can miss less.  LRU
 * and S3-FIFO that see every touch show what the missing accessed bit costs, plain FIFO what
 * staging gains.  Written apart from the library's, and without its structures, so that a mistake there
 * is not repeated here.
 */
#include <stdlib.h>

#include "model.h"

#define NONE UINT32_MAX

/* --- the optimum: throw out what is needed again latest --- */

/* A page in memory, or one that was: stale if `next` is not the page's any more. */
struct candidate {
	uint32_t next; /* index of its next access; NONE: never */
	uint32_t page;
};

/* A heap, latest need on top. */
struct heap {
	struct candidate *v;
	size_t n;
};

static void
heap_push(struct heap *h, struct candidate c)
{
	size_t i = h->n++;

	while (i > 0 && h->v[(i - 1) / 2].next < c.next) {
		h->v[i] = h->v[(i - 1) / 2];
		i = (i - 1) / 2;
	}
	h->v[i] = c;
}

static struct candidate
heap_pop(struct heap *h)
{
	const struct candidate top = h->v[0], last = h->v[--h->n];
	size_t i = 0;

	for (;;) {
		size_t child = 2 * i + 1;

		if (child >= h->n)
			break;
		if (child + 1 < h->n && h->v[child + 1].next > h->v[child].next)
			child++;
		if (h->v[child].next <= last.next)
			break;
		h->v[i] = h->v[child];
		i = child;
	}
	h->v[i] = last;
	return top;
}

static void
optimum(uint32_t memory, const struct refstring *r, uint32_t *next, uint32_t *need, bool *in,
	struct heap *h, struct outcome *out)
{
	size_t resident = 0;

	/* next[i]: when the page of access i is accessed again; need[] is the last access seen, from the end. */
	for (uint32_t i = 0; i < r->npages; i++)
		need[i] = NONE;
	for (size_t i = r->n; i-- > 0;) {
		next[i] = need[r->page[i]];
		need[r->page[i]] = (uint32_t)i;
	}
	for (size_t i = 0; i < r->n; i++) {
		const uint32_t page = r->page[i];

		if (!in[page]) {
			out->misses++;
			while (resident == memory) {
				const struct candidate c = heap_pop(h);

				if (!in[c.page] || need[c.page] != c.next)
					continue;
				in[c.page] = false;
				resident--;
			}
			in[page] = true;
			resident++;
		}
		need[page] = next[i];
		heap_push(h, (struct candidate){ next[i], page });
	}
}

bool
optimum_run(const struct model_config *cfg, const struct refstring *r, struct outcome *out)
{
	struct heap h = { .v = calloc(r->n, sizeof h.v[0]) };
	uint32_t *next = malloc(r->n * sizeof next[0]);
	uint32_t *need = malloc(r->npages * sizeof need[0]);
	bool *in = calloc(r->npages, sizeof in[0]);
	const bool ok = h.v != NULL && next != NULL && need != NULL && in != NULL;

	*out = (struct outcome){ 0 };
	if (ok)
		optimum(cfg->memory, r, next, need, in, &h, out);
	free(h.v);
	free(next);
	free(need);
	free(in);
	return ok;
}

/* --- lists of pages --- */

struct link {
	uint32_t next, prev;
};

struct list {
	struct link *link; /* [npages], shared by all lists: a page is on one at most */
	uint32_t oldest, youngest;
	size_t n;
};

static void
list_add(struct list *l, uint32_t page)
{
	l->link[page] = (struct link){ .next = NONE, .prev = l->youngest };
	if (l->youngest == NONE)
		l->oldest = page;
	else
		l->link[l->youngest].next = page;
	l->youngest = page;
	l->n++;
}

static void
list_remove(struct list *l, uint32_t page)
{
	const struct link k = l->link[page];

	if (k.prev == NONE)
		l->oldest = k.next;
	else
		l->link[k.prev].next = k.next;
	if (k.next == NONE)
		l->youngest = k.prev;
	else
		l->link[k.next].prev = k.prev;
	l->n--;
}

static uint32_t
list_oldest(struct list *l)
{
	const uint32_t page = l->oldest;

	list_remove(l, page);
	return page;
}

/* --- LRU, and FIFO, which is LRU that is blind to hits --- */

static bool
one_list(const struct model_config *cfg, const struct refstring *r, struct outcome *out, bool lru)
{
	struct list l = { .link = calloc(r->npages, sizeof l.link[0]),
			  .oldest = NONE,
			  .youngest = NONE };
	bool *in = calloc(r->npages, sizeof in[0]);
	const bool ok = l.link != NULL && in != NULL;

	*out = (struct outcome){ 0 };
	for (size_t i = 0; ok && i < r->n; i++) {
		const uint32_t page = r->page[i];

		if (!in[page]) {
			out->misses++;
			if (l.n == cfg->memory)
				in[list_oldest(&l)] = false;
			in[page] = true;
			list_add(&l, page);
		} else if (lru) {
			list_remove(&l, page);
			list_add(&l, page);
		}
	}
	free(l.link);
	free(in);
	return ok;
}

bool
lru_run(const struct model_config *cfg, const struct refstring *r, struct outcome *out)
{
	return one_list(cfg, r, out, true);
}

bool
fifo_run(const struct model_config *cfg, const struct refstring *r, struct outcome *out)
{
	return one_list(cfg, r, out, false);
}

/* --- S3-FIFO as in the paper, Algorithm 1 --- */

struct s3 {
	struct list small, main;
	uint8_t *freq;	 /* [npages] */
	bool *in;	 /* [npages] */
	uint64_t *ghost; /* [npages] the number of its entry in the ghost queue, from 1; 0: none */
	uint64_t nghost; /* entries ever made */
	size_t memory, small_max;
};

static bool
s3_evict_main(struct s3 *s)
{
	while (s->main.n > 0) {
		const uint32_t page = list_oldest(&s->main);

		if (s->freq[page] == 0) {
			s->in[page] = false;
			return true;
		}
		s->freq[page]--;
		list_add(&s->main, page);
	}
	return false;
}

static bool
s3_evict_small(struct s3 *s)
{
	while (s->small.n > 0) {
		const uint32_t page = list_oldest(&s->small);

		if (s->freq[page] <= 1) {
			s->in[page] = false;
			s->ghost[page] = ++s->nghost;
			return true;
		}
		s->freq[page] = 0;
		list_add(&s->main, page);
	}
	return false;
}

static void
s3_miss(struct s3 *s, uint32_t page)
{
	const bool ghost =
		s->ghost[page] != 0 && s->nghost - s->ghost[page] < s->memory - s->small_max;

	while (s->small.n + s->main.n >= s->memory)
		if (s->small.n >= s->small_max ? !s3_evict_small(s) : !s3_evict_main(s))
			/* What was asked for is empty: the other is not. */
			(void)(s->small.n > 0 ? s3_evict_small(s) : s3_evict_main(s));
	s->ghost[page] = 0;
	s->freq[page] = 0;
	s->in[page] = true;
	list_add(ghost ? &s->main : &s->small, page);
}

bool
s3fifo_run(const struct model_config *cfg, const struct refstring *r, struct outcome *out)
{
	struct link *link = calloc(r->npages, sizeof link[0]);
	struct s3 s = {
		.small = { .link = link, .oldest = NONE, .youngest = NONE },
		.main = { .link = link, .oldest = NONE, .youngest = NONE },
		.freq = calloc(r->npages, sizeof s.freq[0]),
		.in = calloc(r->npages, sizeof s.in[0]),
		.ghost = calloc(r->npages, sizeof s.ghost[0]),
		.memory = cfg->memory,
		.small_max = MAX(cfg->memory / 10, 1),
	};
	const bool ok = link != NULL && s.freq != NULL && s.in != NULL && s.ghost != NULL;

	*out = (struct outcome){ 0 };
	for (size_t i = 0; ok && i < r->n; i++) {
		const uint32_t page = r->page[i];

		if (s.in[page]) {
			s.freq[page] = (uint8_t)MIN(s.freq[page] + 1, 3);
		} else {
			out->misses++;
			s3_miss(&s, page);
		}
	}
	free(link);
	free(s.freq);
	free(s.in);
	free(s.ghost);
	return ok;
}
